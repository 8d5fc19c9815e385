"""One life of a worker's child process: its pipes, its signs of life, and why it ended.

It must not know jobs or what is done about an end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gguf_embed.engine.program import BEAT_S, Opening
from gguf_embed.engine.wire import Channel
from gguf_embed.errors import BackendError
from gguf_embed.native.child import child_command, last_words

__all__ = ["End", "WorkerProcess"]

logger = logging.getLogger(__name__)

# Looks in a row at which a child that beats twice a second has given no sign of life. Counted, not timed: a machine
# that slept, or a terminal that stopped the whole group with Ctrl-Z, has not lost it.
_N_SILENT = 20  # 10 s
_N_STOPPED = 2  # 1 s, of a child that was stopped alone
_END_S = 5.0
_MAX_LOG_BYTES = 64 << 10  # 64 KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a child ended.

    Attributes:
        return_code: as subprocess has it: negative for a signal.
        words: for people.
    """

    return_code: int
    words: str


class WorkerProcess:
    """A child that runs engine/program.py.

    Args:
        opening: what it opens.
        on_message: called in a thread of its own with each message and its body.
        on_end: called once in that thread, after the last message.

    Raises:
        BackendError: this application has no interpreter to run it in.
    """

    def __init__(
        self, opening: Opening, *, on_message: Callable[[Any, bytes], None], on_end: Callable[[End], None]
    ) -> None:
        command = child_command("gguf_embed.engine.program")
        if command is None:
            raise BackendError(
                "this application carries its own Python inside, so no worker can be started; run the model in its own "
                "process (isolation=None), or run gguf-embed serve beside it"
            )
        self._on_message, self._on_end = on_message, on_end
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        except OSError as error:
            raise BackendError(f"a worker cannot be started: {error}; close other programs and try again") from error
        if self._process.stdin is None or self._process.stdout is None:
            raise BackendError("the worker has no pipes")
        self._channel = Channel(self._process.stdout, self._process.stdin)  # type: ignore[arg-type]
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._is_closing = threading.Event()
        self._n_silent = 0
        self._n_left: float | None = None  # looks until what is being decoded must be done
        self._blame = ""
        self.send(opening)
        try:
            for work in (self._read, self._write, self._watch):
                threading.Thread(target=work, name=f"gguf-embed-worker{work.__name__}", daemon=True).start()
        except RuntimeError as error:
            self._process.kill()
            raise BackendError(f"a worker cannot be looked after: {error}") from error

    @property
    def process_id(self) -> int:
        """Of the child."""
        return self._process.pid

    def send(self, message: Any) -> None:
        """Queue a message; of a child that is gone, `on_end` tells."""
        self._outbox.put(message)

    def expect_within(self, seconds: float | None) -> None:
        """Kill the child unless this is said again in time; None while nothing is expected."""
        self._n_left = None if seconds is None else seconds / BEAT_S

    def close(self, end_s: float = _END_S) -> None:
        """End the child; at once, since its memory is the system's to free. Closing twice is allowed."""
        self._is_closing.set()
        self._outbox.put(None)
        try:
            self._process.wait(end_s)
        except subprocess.TimeoutExpired:
            self.kill("it did not end")

    def kill(self, blame: str) -> None:
        """Kill the child, and say why when its end is told."""
        self._blame = self._blame or blame
        self._process.kill()

    # Threads

    def _read(self) -> None:
        try:
            while (frame := self._channel.receive()) is not None:
                self._n_silent = 0
                if frame[0][0] != "beat":
                    self._on_message(*frame)
                frame = None  # a large one is not kept while nothing comes
        except Exception as error:
            logger.exception("a worker's message could not be taken")
            self.kill(f"its message could not be taken: {error}")
        self._channel.close()
        self._is_closing.set()
        self._outbox.put(None)
        code = self._process.wait()
        end = End(return_code=code, words=self._why(code))
        self._log.close()
        self._on_end(end)

    def _write(self) -> None:
        try:
            while (message := self._outbox.get()) is not None:
                self._channel.send(message)
                message = None
        except OSError:
            pass  # it died; why, the end of its output tells
        except Exception as error:
            logger.exception("a message could not be sent to a worker")
            self.kill(f"a message could not be sent to it: {error}")
        with contextlib.suppress(OSError):
            self._channel.end()

    def _watch(self) -> None:
        n_stopped = 0
        while not self._is_closing.wait(BEAT_S):
            self._n_silent += 1
            n_stopped = n_stopped + 1 if self._is_stopped() else 0
            if n_stopped >= _N_STOPPED:
                self.kill("it was stopped by a signal, and a stopped worker answers nobody")
            elif self._n_silent >= _N_SILENT:
                self.kill(f"it gave no sign of life for {_N_SILENT * BEAT_S:.0f} s")
            elif self._n_left is not None:
                self._n_left -= 1
                if self._n_left < 0:
                    self.kill("a decode took many times as long as those before it")

    def _is_stopped(self) -> bool:
        """Whether a signal has stopped the child; where the system does not tell, its silence will."""
        if not hasattr(os, "waitid"):
            return False
        with contextlib.suppress(ChildProcessError):
            return os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        return False

    def _why(self, code: int) -> str:
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _MAX_LOG_BYTES))
        log = self._log.read().decode(errors="replace")
        words = f"; its last words: {last_words(log)}" if log.strip() else ""
        if self._blame:
            return f"was killed, since {self._blame}"
        if code < 0 and -code in set(signal.Signals):
            memory = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
            return f"was ended by {signal.Signals(-code).name}{memory}{words}"
        return f"ended with code {code}{words}"
