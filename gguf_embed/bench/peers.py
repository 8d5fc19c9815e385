"""Other programs that embed: llama-server over HTTP, and sentence-transformers. Loaded in a child of the benchmark.

It must not know tasks, our engine or how the child is talked to.
"""

from __future__ import annotations

import contextlib
import http
import http.client
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from gguf_embed.errors import BackendError
from gguf_embed.native.child import last_words

__all__ = ["Children", "LlamaServer", "SentenceTransformers", "server_arguments"]

# llama-server's own defaults that matter here, and flags that embed faster on a CPU than those.
# Source: llama.cpp 0c1e57098, common/common.h; flags measured with a 0.6B model on 2 cores, 2026-11-21.
_N_UBATCH_DEFAULT = 512
_N_SLOTS, _N_CTX = 16, 8192
_N_CTX_STEP = 256

_START_S, _POLL_S, _DYING_S = 600.0, 0.05, 1.0
_MAX_REFUSAL, _MAX_LOG_BYTES = 300, 64 << 10  # 64 KiB
_BATCH_SIZE = 32  # sentence-transformers' default, said aloud


class Children:
    """Processes that must not outlive this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a program that writes to a log.

        Raises:
            BackendError: there is no such program.
        """
        with self._lock:  # or kill() could come between the start and the note of it
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            except OSError as error:
                raise BackendError(f"{command[0]} cannot be started: {error.strerror or error}") from error
            self._processes.append(process)
            return process

    def kill(self) -> None:
        """End them all at once; nothing can be started afterwards."""
        self._lock.acquire()
        for process in self._processes:
            process.kill()
            process.wait()


def server_arguments(
    facts: Mapping[str, Any], *, n_tokens_max: int, is_tuned: bool, own: Sequence[str] | None = None
) -> list[str]:
    """Return llama-server's arguments but for host and port.

    Args:
        facts: what gguf-embed runs by: path, n_threads, placement, n_gpu_layers, pooling_type.
        n_tokens_max: of the longest text; context and ubatch are raised where it would not fit.
        is_tuned: with flags that are faster than the defaults.
        own: the user's, in place of those.
    """
    given = ["--embedding", "-m", facts["path"], "-t", str(facts["n_threads"])]
    if facts["placement"] == "cpu":
        given += ["--device", "none"]
    elif facts["placement"] == "partial":
        given += ["-ngl", str(facts["n_gpu_layers"])]
    if is_tuned and own is not None:
        return [*given, *own]
    n_tokens = -(-(n_tokens_max + 1) // _N_CTX_STEP) * _N_CTX_STEP
    # Only with last-token pooling may a text go through in parts.
    n_ubatch = _N_UBATCH_DEFAULT if facts["pooling_type"] == "last" else max(_N_UBATCH_DEFAULT, n_tokens)
    if is_tuned:
        n_ctx = max(_N_CTX, _N_SLOTS * n_tokens)
        given += ["-c", str(n_ctx), "-b", str(max(2048, n_ubatch)), "-ub", str(n_ubatch)]
        return [*given, "-np", str(_N_SLOTS), "--no-repack"]
    return given if n_ubatch == _N_UBATCH_DEFAULT else [*given, "-b", str(max(2048, n_ubatch)), "-ub", str(n_ubatch)]


class LlamaServer:
    """llama-server on this machine, asked over one connection that stays open.

    Args:
        settings: "program", and "arguments" but for host and port.
        children: it is one of them.

    Raises:
        BackendError: it cannot be started, or died before it was ready.
    """

    facts: Mapping[str, Any]

    def __init__(self, settings: Mapping[str, Any], children: Children) -> None:
        port = _free_port()
        command = [settings["program"], *settings["arguments"], "--host", "127.0.0.1", "--port", str(port)]
        self.facts = {"command": command}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server
        self._process = children.start(command, self._log)
        self.process_id = self._process.pid
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            self._wait()
            self.version = self._ask_version()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BackendError(self._why(""))
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._request("GET", "/health")[0] == http.HTTPStatus.OK:
                    return
            self._connection.close()
            time.sleep(_POLL_S)
        raise BackendError(self._why(f"it was not ready after {_START_S:.0f} s"))

    def _ask_version(self) -> str:
        """What it says of its build; "" for one that says nothing."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            properties = json.loads(self._request("GET", "/props")[1])
            return str(properties.get("build_info", "")) if isinstance(properties, dict) else ""
        return ""

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        self._connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = self._connection.getresponse()
        return response.status, response.read()

    def embed(self, texts: Sequence[str], prompt: str) -> tuple[float, Any]:
        """Embed texts in one request; single ones share a connection.

        Returns:
            Seconds from the request to the last byte of the answer, and the rows.

        Raises:
            BackendError: it refused, or died.
        """
        body = json.dumps({"input": [prompt + text for text in texts]}).encode()
        try:
            try:
                seconds, status, content = self._timed(body, is_fresh=len(texts) > 1)
            except (OSError, http.client.HTTPException):  # it may have closed an idle connection
                seconds, status, content = self._timed(body, is_fresh=True)
        except (OSError, http.client.HTTPException) as error:
            raise BackendError(self._why(f"it does not answer ({error!r})")) from error
        if status != http.HTTPStatus.OK:
            raise BackendError(f"it answered {status}: {content[:_MAX_REFUSAL].decode(errors='replace')}")
        found = sorted(json.loads(content)["data"], key=lambda one: one["index"])
        return seconds, [one["embedding"] for one in found]

    def _timed(self, body: bytes, *, is_fresh: bool) -> tuple[float, int, bytes]:
        if is_fresh:
            self._connection.close()
        if self._connection.sock is None:
            self._connection.connect()
        begun = time.perf_counter()
        status, content = self._request("POST", "/v1/embeddings", body)
        return time.perf_counter() - begun, status, content

    def _why(self, what: str) -> str:
        """Say what went wrong, or that it ended, and its last words; ends it, for they share the log's position."""
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):  # a connection breaks a moment before its process ends
            code = self._process.wait(_DYING_S)
        self._process.kill()
        self._process.wait()
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _MAX_LOG_BYTES))
        words = last_words(self._log.read().decode(errors="replace"))
        return f"{what if code is None else f'it ended with code {code}'}; its last words: {words}"

    def close(self) -> None:
        """End the server; closing twice is allowed."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class SentenceTransformers:
    """sentence-transformers over PyTorch.

    Args:
        settings: "model", a name or a folder, "n_threads", and "device" as PyTorch names it, None for its choice.

    Raises:
        BackendError: it is not installed, or cannot load the model.
    """

    facts: Mapping[str, Any]

    def __init__(self, settings: Mapping[str, Any], _children: Children) -> None:
        try:
            import sentence_transformers  # noqa: PLC0415 - no dependency of ours
            import torch  # noqa: PLC0415
        except ImportError as error:
            raise BackendError("not installed; pip install sentence-transformers") from error
        torch.set_num_threads(settings["n_threads"])
        try:
            self._model = sentence_transformers.SentenceTransformer(settings["model"], device=settings["device"])
        except (OSError, ValueError, RuntimeError) as error:
            why = str(error).strip().partition("\n")[0]
            raise BackendError(f"{settings['model']} cannot be loaded: {why}") from error
        self.process_id = os.getpid()
        self.version = f"{sentence_transformers.__version__}, torch {torch.__version__}"
        self.facts = {"model": settings["model"]}

    def embed(self, texts: Sequence[str], prompt: str) -> tuple[float, Any]:
        """Embed texts. Returns the seconds it took, and the rows."""
        whole = [prompt + text for text in texts]
        begun = time.perf_counter()  # an empty prompt keeps it from putting one of its own before them
        rows = self._model.encode(whole, batch_size=_BATCH_SIZE, prompt="", show_progress_bar=False)
        return time.perf_counter() - begun, rows

    def close(self) -> None:
        """Let go of the model."""
        del self._model
