"""Systems from the outside: each one a child process that embeds what it is given, and dies with this one.

It must not know tasks, or how a system embeds; bench/program.py is what the child runs.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from gguf_embed.bench.measuring import Answer
from gguf_embed.errors import BackendError
from gguf_embed.native.child import child_command, last_words

__all__ = ["System"]

logger = logging.getLogger(__name__)

_END_S = 5.0
_MAX_LOG_BYTES = 64 << 10  # 64 KiB


class System:
    """A program that embeds, started and ready.

    Args:
        name: for people; two systems may be of one kind.
        settings: "system", its kind, and what that takes; see bench/program.py.

    Attributes:
        load_s: seconds from its start until it was ready.
        version: its own.
        facts: what else it says of itself.
        peak_bytes: the most memory it held; 0 before `stop`, and where that is not known.

    Raises:
        BackendError: it cannot run here; the message begins with its name.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        self.peak_bytes = 0
        command = child_command("gguf_embed.bench.program", json.dumps(settings))
        if command is None:
            raise BackendError("this application has no Python interpreter to run a benchmark in")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        try:
            ready = self._answer()
        except BaseException:
            self.close()
            raise
        self.load_s: float = ready["load_s"]
        self.version: str = ready["version"]
        self.facts: Mapping[str, Any] = ready["facts"]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of texts, as gguf-embed alone can."""
        n_tokens: list[int] = self._ask({"count": list(texts)})["n_tokens"]
        return n_tokens

    def embed(self, texts: Sequence[str], *, prompt: str, with_rows: bool) -> Answer:
        """Embed texts with a prompt before each.

        Raises:
            BackendError: it refused, or died.
        """
        told = self._ask({"embed": list(texts), "prompt": prompt, "with_rows": with_rows})
        rows = None
        if with_rows:
            rows = np.frombuffer(base64.b64decode(told["rows"]), dtype="<f4").reshape(len(texts), told["n_embd"])
        return Answer(seconds=told["seconds"], rows=rows)

    def stop(self) -> None:
        """Ask for the memory it took, and end it; of one that has died by now it stays unknown."""
        try:
            self.peak_bytes = self._ask({"stop": True})["peak_bytes"]
        except BackendError as error:
            logger.warning("%s", error)
        finally:
            self.close()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        if self._process.stdin is None or self._process.stdin.closed:
            raise BackendError(f"{self.name} was ended")
        with contextlib.suppress(OSError):  # it died; why, the answer that does not come tells
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line.endswith(b"\n"):  # the rest died with the child
            raise BackendError(f"{self.name}: {self._why()}")
        answer = json.loads(line)
        for words in answer["warnings"]:
            logger.warning("%s: %s", self.name, words)
        if "error" in answer:
            raise BackendError(f"{self.name}: {answer['error']}")
        return answer

    def _why(self) -> str:
        code = self._process.wait()
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _MAX_LOG_BYTES))
        words = last_words(self._log.read().decode(errors="replace"))
        if code < 0 and -code in set(signal.Signals):
            return f"it was stopped by {signal.Signals(-code).name}; its last words: {words}"
        return f"it ended with code {code}; its last words: {words}"

    def close(self) -> None:
        """End it, in the middle of its work too; closing twice is allowed."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # a request that never went through
                    pipe.close()
        try:
            self._process.wait(_END_S)  # its stdin has ended, so it ends what it started and then itself
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
