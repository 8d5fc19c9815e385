"""A model hub on loopback for the real huggingface_hub client: models, files, ranges, and faults on demand.

It knows nothing of gguf_embed.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import unquote, urlsplit

__all__ = ["COMMIT", "FakeHub", "Faults", "Seen"]

COMMIT = "c0ffee" + "0" * 33 + "1"
_PIECE = 64 << 10  # 64 KiB
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_MODEL = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(/revision/(?P<revision>.+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request that arrived."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass(slots=True, kw_only=True)
class Faults:
    """What goes wrong; positions are bytes of the file, `None` and 0 mean nothing does."""

    status: int = 0  # answer this instead ...
    status_times: int = 1 << 30  # ... so many times ...
    status_method: str = ""  # ... to HEAD or GET only
    error_code: str = ""  # X-Error-Code of that answer
    retry_after: str = ""
    cut_after: int | None = None  # close after so many bytes of one answer ...
    cut_times: int = 1 << 30
    no_length: bool = False  # do not say how long a body is; its end is the connection's end
    stall_after: int | None = None  # send no more after so many bytes of one answer ...
    stall_times: int = 1 << 30
    flip_at: int | None = None  # this byte of the file is wrong
    ignore_range: bool = False
    shift_range: int = 0  # answer a range that starts so many bytes later
    bytes_per_s: int = 0
    redirect_to: str = ""  # the origin that has the bytes
    etag: str | None = None
    commit: str | None = None


@dataclass(kw_only=True)
class FakeHub:
    """Files by (repo, path), all in one commit that the branch main stands for."""

    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    commit: str = COMMIT
    requests: list[Seen] = field(default_factory=list)
    served_bytes: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo: str, file: str, body: bytes) -> str:
        """Publish a file; returns its sha256."""
        self.files[repo, file] = body
        return hashlib.sha256(body).hexdigest()

    def count(self, method: str) -> int:
        """Requests with this method so far."""
        return sum(seen.method == method for seen in self.requests)

    def take(self, name: str) -> bool:
        """Use up one of the times that a fault happens."""
        with self.lock:
            left = getattr(self.faults, f"{name}_times")
            setattr(self.faults, f"{name}_times", left - 1)
            return left > 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: FakeHub

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 20

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.hub.requests.append(
            Seen(method=self.command, path=path, headers={k.lower(): v for k, v in self.headers.items()})
        )
        faults = self.server.hub.faults
        if faults.status and faults.status_method in ("", self.command) and self.server.hub.take("status"):
            headers = {"X-Error-Code": faults.error_code, "Retry-After": faults.retry_after}
            self.reply(faults.status, {name: value for name, value in headers.items() if value})
        elif match := _MODEL.fullmatch(path):
            self.model(match["repo"], match["revision"] or "main")
        elif match := _RESOLVE.fullmatch(path):
            self.file(match["repo"], match["revision"], match["file"])
        else:
            self.reply(404, {})

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def model(self, repo: str, revision: str) -> None:
        files = {file: body for (owner, file), body in self.server.hub.files.items() if owner == repo}
        if not files:
            return self.reply(401, {"X-Error-Code": "RepoNotFound"})  # as the real hub without a token
        if revision not in ("main", self.server.hub.commit):
            return self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        siblings = [
            {
                "rfilename": file,
                "size": len(body),
                "blobId": "b" * 40,
                "lfs": {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130},
            }
            for file, body in files.items()
        ]
        answer = {
            "id": repo,
            "modelId": repo,
            "sha": self.server.hub.commit,
            "siblings": siblings,
            "tags": [],
            "downloads": 0,
        }
        return self.reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def file(self, repo: str, revision: str, file: str) -> None:
        body = self.server.hub.files.get((repo, file))
        if body is None:
            known = any(owner == repo for owner, _ in self.server.hub.files)
            code = "EntryNotFound" if known else "RepoNotFound"
            return self.reply(404, {"X-Error-Code": code})
        if revision not in ("main", self.server.hub.commit):
            return self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        faults = self.server.hub.faults
        etag = hashlib.sha256(body).hexdigest() if faults.etag is None else faults.etag
        commit = self.server.hub.commit if faults.commit is None else faults.commit
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Size": str(len(body))}
        if faults.redirect_to:
            headers |= {"ETag": '"of-the-redirect"', "X-Linked-Etag": f'"{etag}"'}
            return self.reply(302, headers | {"Location": f"{faults.redirect_to}{self.path}"})
        return self.send(body, headers)

    def send(self, body: bytes, headers: dict[str, str]) -> None:
        total, start, end = len(body), 0, len(body)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        ranged = wanted is not None and not self.server.hub.faults.ignore_range
        if wanted is not None and ranged:
            start = int(wanted[1]) + self.server.hub.faults.shift_range
            end = min(end, int(wanted[2]) + 1) if wanted[2] else end
            if start >= total:
                return self.reply(416, {"Content-Range": f"bytes */{total}"})
            headers |= {"Content-Range": f"bytes {start}-{end - 1}/{total}"}
        self.send_response(206 if ranged else 200)
        for name, value in ({"Content-Length": str(end - start)} | headers).items():
            if name != "Content-Length" or not self.server.hub.faults.no_length:
                self.send_header(name, value)
        self.end_headers()
        return None if self.command == "HEAD" else self.pour(body, start, end)

    def pour(self, body: bytes, start: int, end: int) -> None:
        faults, sent = self.server.hub.faults, 0
        while start + sent < end:
            room = min(_PIECE, end - start - sent)
            for name in ("cut", "stall"):
                after = getattr(faults, f"{name}_after")
                if after is not None and sent + room > after and getattr(faults, f"{name}_times") > 0:
                    room = after - sent
            if room <= 0:
                break
            piece = bytearray(body[start + sent : start + sent + room])
            if faults.flip_at is not None and 0 <= faults.flip_at - start - sent < room:
                piece[faults.flip_at - start - sent] ^= 1
            with self.server.hub.lock:  # before the write: whoever has the bytes sees them counted
                self.server.hub.served_bytes += room
            self.wfile.write(piece)
            sent += room
            if faults.bytes_per_s:
                time.sleep(room / faults.bytes_per_s)
        if start + sent < end or faults.no_length:
            self.close_connection = True
            if faults.stall_after is not None and self.server.hub.take("stall"):
                self.server.hub.closing.wait(20)
            elif faults.cut_after is not None:
                self.server.hub.take("cut")
