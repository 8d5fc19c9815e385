"""A server as a user starts it, for tests: in a process of its own, on a free port, with folders of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import psutil

PROGRAM = (sys.executable, "-c", "import sys; from gguf_embed.cli import main; sys.exit(main())")


class Served:
    """`gguf-embed serve`, ready.

    Args:
        folder: for its settings, its state and its log.
        starter: the starter model's file, whose cache is used.
        options: of the command line.
    """

    def __init__(self, folder: Path, starter: Path, *options: str, wait: bool = True, start_new_session: bool = False,
                 **environment: str) -> None:  # fmt: skip
        env = {key: value for key, value in os.environ.items() if not key.startswith(("GGUF_EMBED_", "HF_"))}
        env |= {
            "GGUF_EMBED_CACHE_DIR": str(starter.parents[1]), "GGUF_EMBED_CONFIG_DIR": str(folder / "config"),
            "GGUF_EMBED_STATE_DIR": str(folder / "state"), "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1",
        } | environment  # fmt: skip
        self.log_path = folder / "serve.log"
        with self.log_path.open("wb") as log:
            port = () if "--uds" in options else ("--port", "0")
            self.process = subprocess.Popen(
                [*PROGRAM, "serve", *options, *port], stdout=subprocess.PIPE, stderr=log, env=env, text=True,
                start_new_session=start_new_session,
            )  # fmt: skip
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            self.process.communicate()
            raise RuntimeError(self.log)
        self.uds = self.url.removeprefix("unix:") if self.url.startswith("unix:") else None
        self.port = 0 if self.uds else int(self.url.rpartition(":")[2])
        if wait:
            self.wait_until_ready()

    @property
    def log(self) -> str:
        """What it wrote to stderr."""
        return self.log_path.read_text(errors="replace")

    def wait_until_ready(self, within_s: float = 60) -> None:
        """Wait until its models are loaded."""
        until = time.monotonic() + within_s
        while self.ask("GET", "/health")[0] != 200:
            if time.monotonic() > until:
                raise TimeoutError(self.log)
            time.sleep(0.05)

    def connect(self) -> socket.socket:
        """A plain connection."""
        if self.uds:
            plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            plain.connect(self.uds)
            return plain
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None):
        """Send one request as it is; returns status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port or 80, timeout=120)
        connection.sock = self.connect()
        try:
            # A body that is refused for its size is answered before all of it was sent.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def ask(self, method: str, path: str, content: object = None, **headers: str):
        """Send JSON; returns status and what came, decoded where it is JSON."""
        known = {key.replace("_", "-"): value for key, value in headers.items()}
        body = None
        if content is not None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            known.setdefault("content-type", "application/json")
        status, told, raw = self.request(method, path, body, known)
        if "json" in told.get("content-type", "") and "ndjson" not in told["content-type"]:
            return status, json.loads(raw)
        return status, raw.decode()

    @property
    def worker_id(self) -> int:
        """The process that runs the model."""
        return next(child.pid for child in psutil.Process(self.process.pid).children())

    def stop(self, how: signal.Signals = signal.SIGTERM, within_s: float = 20) -> int:
        """End it, and return its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(how)
        try:
            return self.process.wait(within_s)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()
        elif not self.process.stdout.closed:
            self.process.stdout.close()
