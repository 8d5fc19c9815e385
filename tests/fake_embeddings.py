"""Servers of embeddings on loopback, in three dialects, and with faults on demand.

It knows nothing of gguf_embed.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["FakeServer", "ollama", "openai", "rows_of", "tei"]


class FakeServer:
    """Answers vectors whose components are a text's length and 1; knows the routes that it is given.

    Args:
        routes: what a path answers: a value as JSON, or a function of the request's body to (status, content).
    """

    def __init__(self, **routes):
        self.routes = {"/" + path.replace("__", "/"): answer for path, answer in routes.items()}
        self.seen = []
        self.breaks = 0  # so many connections are closed without an answer
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                self.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def answer(self, body):
                fake.seen.append((self.command, self.path, body, dict(self.headers)))
                if body is not None and fake.breaks:
                    fake.breaks -= 1
                    self.close_connection = True
                    return
                known = fake.routes.get(self.path.partition("?")[0], lambda _: (404, {"error": "no such path"}))
                status, content = known(body) if callable(known) else (200, known)
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("location", "http://elsewhere.test/")
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def posted(self):
        return [(path, body) for method, path, body, _ in self.seen if method == "POST"]


def rows_of(texts):
    return [[len(text), 1.0] for text in texts]


def openai(body):
    rows = [{"index": i, "embedding": row} for i, row in enumerate(rows_of(body["input"]))]
    return 200, {"data": rows[::-1]}


def ollama(body):
    return 200, {"embeddings": rows_of(body["input"])}


def tei(body):
    return 200, rows_of(body["inputs"])
