"""A desktop app's parent process: it starts a server of its own, talks to it, and starts it again if it dies.

    python examples/desktop_app.py "A cat is asleep." "The kitten naps." "Rates rose."

The same few steps hold in Electron, Swift or C#: start the program with these options, read one line of JSON, ask by
HTTP. Needs: pip install "gguf-embed[server]", and nothing else on the app's side.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import TracebackType
from typing import Any, Self


class EmbeddingServer:
    """`gguf-embed serve` as a child: on a free port of loopback, and gone when this program is."""

    def __init__(self, *options: str) -> None:
        self._command = [
            sys.executable,
            "-m",
            "gguf_embed",
            "serve",
            *options,
            "--port",
            "0",
            "--exit-with-parent",
            "--json",
        ]
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline()  # printed when connections are accepted
        if not line:
            raise RuntimeError(f"the server did not start and exited with {self._process.wait()}; see above")
        self.url = json.loads(line)["url"]

    def wait_until_ready(self, within_s: float = 600) -> None:
        """Wait while the model is fetched and loaded; /health says which of it."""
        until, said = time.monotonic() + within_s, ""
        while time.monotonic() < until:
            try:
                self._ask("/health")
            except urllib.error.HTTPError as error:  # 503 until it is ready
                if (status := json.loads(error.read())["status"]) != said:
                    print(f"  {(said := status)} ...", file=sys.stderr)
                time.sleep(0.1)
            else:
                return
        raise TimeoutError(f"no model after {within_s} s")

    def embed(self, texts: list[str], **options: Any) -> list[list[float]]:
        """Embed texts; once more where the server had died or its worker was being started again."""
        for attempt in (1, 2, 3):
            try:
                reply = self._ask("/v1/embeddings", {"input": texts, **options})
            except urllib.error.HTTPError as error:
                if error.code != 503 or attempt == 3:
                    raise RuntimeError(json.loads(error.read())["error"]["message"]) from error
            except (urllib.error.URLError, ConnectionError):
                if attempt == 3 or self._process.poll() is None:
                    raise
                print("  the server is gone; starting it again", file=sys.stderr)
                self._start()
            else:
                return [row["embedding"] for row in reply["data"]]
            self.wait_until_ready()
        raise AssertionError("unreachable")

    def _ask(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(self.url + path, headers={"Content-Type": "application/json"})  # noqa: S310 - http
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(request, data, timeout=120) as reply:  # noqa: S310 - our own server
            return json.load(reply)

    def close(self) -> None:
        """Let it finish what it is at, and end it."""
        self._process.terminate()
        self._process.wait(timeout=15)
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main() -> None:
    """Show what is most like the first text; then kill the server as a crash would, and ask again."""
    texts = sys.argv[1:] or ["A cat is asleep.", "The kitten naps.", "Rates rose."]
    if len(texts) < 2:
        sys.exit("give two texts or more: the first is compared with the others")
    first, *others = texts
    with EmbeddingServer() as server:
        server.wait_until_ready()
        print(f"ready at {server.url}")
        for _ in range(2):
            query = server.embed([first], input_type="query")[0]
            rows = server.embed(others, input_type="document")
            scores = [sum(a * b for a, b in zip(query, row, strict=True)) for row in rows]
            for score, text in sorted(zip(scores, others, strict=True), reverse=True):
                print(f"{score:.2f}  {text}")
            server._process.kill()  # noqa: SLF001 - what a crash would do
            server._process.wait()  # noqa: SLF001


if __name__ == "__main__":
    main()
