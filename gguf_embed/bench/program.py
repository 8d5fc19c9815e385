"""The child process in which one system embeds: loads it, then answers requests, one line of JSON each.

    python -m gguf_embed.bench.program '{"system": "gguf-embed", "model": "all-minilm-l6-v2"}'

It must not know tasks, rounds or other systems.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from gguf_embed import __version__
from gguf_embed.bench.peers import Children, LlamaServer, SentenceTransformers
from gguf_embed.embedder import Embedder
from gguf_embed.errors import GGUFEmbedError, TextTooLongError
from gguf_embed.fit.planner import Limits
from gguf_embed.native.reference import Reference

__all__ = ["main"]


class _Running(Protocol):
    """A system that is loaded."""

    version: str
    process_id: int
    facts: Mapping[str, Any]

    def embed(self, texts: Sequence[str], prompt: str) -> tuple[float, Any]:
        """Return the seconds of the embedding call alone, and (n, n_embd) numbers."""

    def close(self) -> None:
        """End it."""


class _Ours:
    """gguf-embed, as a user has it."""

    version = __version__

    def __init__(self, settings: Mapping[str, Any], _children: Children) -> None:
        self.process_id = os.getpid()
        self._model = Embedder(
            settings["model"], limits=Limits(**settings.get("limits", {})), prefer=settings.get("prefer", "default")
        )
        path = self._model.load()
        plan, prompts = self._model.plan, self._model.prompts
        self.facts: Mapping[str, Any] = {
            "path": str(path),
            "model_id": plan.model_id,
            "quant": plan.quant,
            "placement": plan.placement,
            "device_description": plan.device_description,
            "pooling_type": plan.facts.pooling_type,
            "n_gpu_layers": plan.layout.n_gpu_layers,
            "n_batch": plan.n_batch,
            "n_threads": plan.n_threads,
            "max_tokens": self._model.max_seq_length,
            "query_prompt": prompts.query,
            "document_prompt": prompts.document,
            "host_bytes": plan.cost.host_bytes,
            "device_bytes": plan.cost.device_bytes,
        }

    def embed(self, texts: Sequence[str], prompt: str) -> tuple[float, Any]:
        begun = time.perf_counter()
        rows = self._model.encode(texts, prompt=prompt)
        return time.perf_counter() - begun, rows

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, special ones included, also of those that are too long."""
        return [self._count(text) for text in texts]

    def _count(self, text: str) -> int:
        try:
            return len(self._model.tokenize(text)[0])
        except TextTooLongError as error:
            return error.n_tokens

    def close(self) -> None:
        self._model.close()


class _LlamaCppPython:
    """`Llama.embed` of llama-cpp-python."""

    facts: Mapping[str, Any] = {}

    def __init__(self, settings: Mapping[str, Any], _children: Children) -> None:
        self.process_id = os.getpid()
        self._llama = Reference(
            Path(settings["path"]),
            n_tokens_max=settings["n_tokens_max"],
            n_threads=settings["n_threads"],
            n_gpu_layers=settings["n_gpu_layers"],
        )
        self.version = self._llama.version

    def embed(self, texts: Sequence[str], prompt: str) -> tuple[float, Any]:
        whole = [prompt + text for text in texts]
        begun = time.perf_counter()
        rows = self._llama.embed(whole)
        return time.perf_counter() - begun, rows

    def close(self) -> None:
        self._llama.close()


class _Warnings(logging.Handler):
    """Keeps what a user must be told until it can be."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("gguf_embed.models"):  # the parent has looked the model up too
            self._lines.append(record.getMessage())

    def take(self) -> list[str]:
        """Return what came since the last time."""
        lines, self._lines = self._lines, []
        return lines


_SYSTEMS: dict[str, Callable[[Mapping[str, Any], Children], _Running]] = {
    "gguf-embed": _Ours,
    "llama-cpp-python": _LlamaCppPython,
    "llama-server": LlamaServer,
    "sentence-transformers": SentenceTransformers,
}


def main(argv: Sequence[str]) -> int:
    """Embed as the child of a process that holds the other end of stdin, and end when that one does.

    Args:
        argv: SETTINGS, a JSON object with the name of the system and what it takes.

    Returns:
        0 after {"stop": true}. stdout gets one JSON object for the start and for each request:
            (start)                                  {"load_s": .., "version": .., "facts": {..}}
            {"count": [texts]}                       {"n_tokens": [..]}
            {"embed": [texts], "prompt": .., "with_rows": ..}
                                                     {"seconds": .., "rows": base64 of float32, "n_embd": ..}
            {"stop": true}                           {"peak_bytes": ..}
        or {"error": text}; "warnings" has what was logged meanwhile.
    """
    begun = time.perf_counter()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no line of the protocol
    settings, children = json.loads(argv[0]), Children()
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, children), daemon=True).start()

    warnings = _Warnings()
    logging.getLogger("gguf_embed").addHandler(warnings)

    def tell(**facts: Any) -> None:
        answers.write(json.dumps(facts | {"warnings": warnings.take()}).encode() + b"\n")
        answers.flush()

    try:
        system = _SYSTEMS[settings["system"]](settings, children)
    except GGUFEmbedError as error:
        tell(error=str(error))
        return 1
    tell(load_s=time.perf_counter() - begun, version=system.version, facts=dict(system.facts))
    try:
        _serve(system, requests, tell)
    finally:
        system.close()
    return 0


def _serve(system: _Running, requests: queue.SimpleQueue[bytes], tell: Callable[..., None]) -> None:
    peak = peak_bytes(system.process_id)
    while True:
        request = json.loads(requests.get())
        try:
            if "stop" in request:
                tell(peak_bytes=max(peak, peak_bytes(system.process_id)))
                return
            if isinstance(system, _Ours) and "count" in request:
                tell(n_tokens=system.count(request["count"]))
                continue
            seconds, rows = system.embed(request["embed"], request["prompt"])
        except GGUFEmbedError as error:
            tell(error=str(error))
            continue
        peak = max(peak, peak_bytes(system.process_id))
        tell(seconds=seconds, **_packed(rows) if request["with_rows"] else {})


def _packed(rows: Any) -> dict[str, Any]:
    array = np.ascontiguousarray(rows, dtype="<f4")
    return {"rows": base64.b64encode(array.tobytes()).decode(), "n_embd": array.shape[1]}


def _read(requests: queue.SimpleQueue[bytes], children: Children) -> None:
    """Hand requests over; when the parent is gone, in the middle of work too, leave at once."""
    with os.fdopen(0, "rb", closefd=False) as stdin:  # sys.stdin's lock would be held when the interpreter ends
        for line in stdin:
            requests.put(line)
    children.kill()
    os._exit(1)


def peak_bytes(process_id: int) -> int:
    """Return the most memory that a process has held; what it holds now, where the system does not know; 0 after it.

    Source: proc_pid_status(5), VmHWM; psutil's peak_wset on Windows.
    """
    status = Path(f"/proc/{process_id}/status")
    try:
        if status.exists():
            lines = status.read_text(encoding="ascii", errors="replace").splitlines()
            return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
        usage = psutil.Process(process_id).memory_info()
    except (OSError, psutil.Error):
        return 0
    return int(getattr(usage, "peak_wset", usage.rss))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
