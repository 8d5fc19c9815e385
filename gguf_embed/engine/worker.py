"""A session in a child process: what ends the child fails the jobs that it was at, and nothing else.

It must not know models' names or files; how a session is opened it is told, and hands on.
"""

from __future__ import annotations

import collections
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.process import End, WorkerProcess
from gguf_embed.engine.program import Opener, Opening
from gguf_embed.engine.tickets import Request, Result, Ticket
from gguf_embed.errors import BackendError, ClosedError, WorkerCrashedError

__all__ = ["Observer", "Request", "Result", "Ticket", "Worker"]

logger = logging.getLogger(__name__)

Float32Matrix = NDArray[np.float32]
OnProgress = Callable[[int, int], None]

# So many crashes in so long a time are a loop, and nothing is started again for a while.
_N_CRASHES, _CRASHES_S, _PAUSE_S = 3, 90.0, 60.0
# A decode may take so many times as long as the speed so far lets expect, and this long at least: a laptop that swaps.
_PATIENCE, _LEAST_S, _S_PER_TOKEN = 20, 300.0, 1.0


class Observer(Protocol):
    """Who counts what a worker does; called in the worker's threads."""

    def decoded(self, n_texts: int, n_tokens: int, seconds: float) -> None:
        """A step was decoded."""

    def crashed(self, error: WorkerCrashedError) -> None:
        """The child ended by itself."""


@dataclass(slots=True)
class _Step:
    job_ids: list[int]
    n_texts: int
    n_tokens: int
    begun_s: float


class Worker:
    """One session in a child process that is started when it is needed, and again after it crashed.

    Safe to share between threads; what they ask for is packed into common decodes.

    Args:
        opener_for: given the facts of an earlier opening, or None, returns what the child is to open; picklable.
        name: for messages.
        observer: who counts.
        clock: stands in for time.monotonic, for tests.
    """

    def __init__(
        self,
        opener_for: Callable[[Any], Opener],
        *,
        name: str,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opener_for, self._name, self._observer, self._clock = opener_for, name, observer, clock
        self._process_id = os.getpid()
        self._lock = threading.RLock()
        self._process: WorkerProcess | None = None
        self._life = 0  # of the child that runs; what an earlier one still says does not count
        self._opened: Future[Any] | None = None  # of the child that runs
        self._tickets: dict[int, Ticket] = {}
        self._ids = itertools.count()
        self._step: _Step | None = None
        self._tokenizing: int | None = None  # the job whose texts were tokenized last
        self._s_per_token: float | None = None
        self._crashes: collections.deque[float] = collections.deque(maxlen=_N_CRASHES)
        self._last_crash: WorkerCrashedError | None = None
        self._is_closed = False
        self._on_progress: OnProgress | None = None
        self.facts: Any = None

    # Opening

    def open(self, on_progress: OnProgress | None = None) -> Any:
        """Start the child where there is none, and wait until its session is open.

        Args:
            on_progress: called while downloading, with bytes present and bytes in all.

        Returns:
            What the opener told of it.

        Raises:
            GGUFEmbedError: whatever stands in the way.
            WorkerCrashedError: the child ended meanwhile.
        """
        opened = self.opening(on_progress)
        try:
            return opened.result()
        except BaseException:
            if not opened.done():  # an interrupt: nobody waits any more
                self.close()
            raise

    def opening(self, on_progress: OnProgress | None = None) -> Future[Any]:
        """Start the child where there is none; the future has what `open` returns.

        Args:
            on_progress: as for `open`, called in a thread of the worker's.

        Raises:
            GGUFEmbedError: it cannot be started.
        """
        with self._lock:
            self._check()
            if self._opened is None:
                self._on_progress = on_progress
                self._start()
            return self._opened or Future()

    @property
    def is_open(self) -> bool:
        """Whether there is a child whose session is open."""
        opened = self._opened
        return opened is not None and opened.done()

    @property
    def process_id(self) -> int | None:
        """Of the child, None while there is none."""
        process = self._process
        return None if process is None else process.process_id

    @property
    def n_waiting(self) -> int:
        """Jobs that are not done."""
        return len(self._tickets)

    @property
    def trouble(self) -> str | None:
        """Why nothing is started at the moment, or None."""
        wait_s = self._pause_s()
        return self._loop_words(wait_s) if wait_s > 0 else None

    def _check(self) -> None:
        if os.getpid() != self._process_id:
            raise BackendError(
                f"{self._name}'s worker belongs to the process that this one was forked from; make a new one here"
            )
        if self._is_closed:
            raise ClosedError(f"{self._name} was closed; open it again to embed more")
        if self._opened is None and (wait_s := self._pause_s()) > 0:
            raise self._crash_error(self._loop_words(wait_s))

    def _pause_s(self) -> float:
        """Seconds until the next start is allowed."""
        now = self._clock()
        if len(self._crashes) < _N_CRASHES or self._crashes[-1] - self._crashes[0] > _CRASHES_S:
            return 0
        return max(0.0, self._crashes[-1] + _PAUSE_S - now)

    def _loop_words(self, wait_s: float) -> str:
        return (
            f"{self._name}'s worker crashed {_N_CRASHES} times in {_CRASHES_S:.0f} s and is not started again for "
            f"{wait_s:.0f} s. The last time it {self._last_crash.why if self._last_crash else 'ended'}. Run "
            "gguf-embed doctor; another quantization, or --device cpu, may run."
        )

    def _crash_error(self, words: str) -> WorkerCrashedError:
        last = self._last_crash
        return WorkerCrashedError(words, why=last.why if last else "", return_code=last.return_code if last else 0)

    def _start(self) -> None:
        self._opened = Future()
        self._step = self._tokenizing = None
        self._life += 1
        opening = Opening(
            opener=self._opener_for(self.facts), log_level=logging.getLogger("gguf_embed").getEffectiveLevel()
        )
        try:
            self._process = WorkerProcess(
                opening, on_message=partial(self._receive, self._life), on_end=partial(self._ended, self._life)
            )
        except BaseException:
            self._opened = None
            raise

    # Jobs

    def submit(self, request: Request) -> Ticket:
        """Queue a job, and start the child where there is none.

        Raises:
            WorkerCrashedError: it has crashed too often just now.
            ClosedError: after close().
        """
        with self._lock:
            ticket = Ticket(next(self._ids), request, on_cancel=self._cancel)
            if ticket.is_done:
                return ticket
            opened = self.opening()
            self._tickets[ticket.job_id] = ticket
            if opened.done() and self._process is not None:
                self._process.send(("job", ticket.job()))
        return ticket

    def _cancel(self, ticket: Ticket) -> None:
        with self._lock:
            self._tickets.pop(ticket.job_id, None)
            if self.is_open and self._process is not None:
                self._process.send(("cancel", ticket.job_id))

    # Messages, in the child's reading thread

    def _receive(self, life: int, message: Any, body: bytes) -> None:
        if life != self._life:
            return
        kind, *rest = message
        if kind == "log":
            name, level, text = rest
            logging.getLogger(name).log(level, "%s", text)
        elif kind == "progress":
            if self._on_progress is not None:
                self._on_progress(*rest)
        elif kind in ("opened", "unopened"):
            self._on_opened(kind, rest[0])
        elif kind == "begun":
            job_ids, n_texts, n_tokens = rest
            self._begun(_Step(job_ids, n_texts, n_tokens, self._clock()))
        elif kind == "tokenizing":
            self._tokenizing = rest[0]
        elif kind == "ended":
            self._end_step()
        else:
            self._tell(kind, rest, body)

    def _on_opened(self, kind: str, value: Any) -> None:
        with self._lock:
            opened = self._opened
            if opened is None:
                return
            if kind == "opened":
                self.facts = value
                opened.set_result(value)
                for ticket in self._tickets.values():
                    self._send_job(ticket)
                return
            self._opened = None
            tickets, self._tickets = list(self._tickets.values()), {}
        opened.set_exception(value)
        for ticket in tickets:
            ticket.fail(value)

    def _send_job(self, ticket: Ticket) -> None:
        if self._process is not None:
            self._process.send(("job", ticket.job()))

    def _begun(self, step: _Step) -> None:
        self._step = step
        expected_s = step.n_tokens * (self._s_per_token or _S_PER_TOKEN)
        if self._process is not None:
            self._process.expect_within(max(_LEAST_S, (_PATIENCE if self._s_per_token else 1) * expected_s))

    def _end_step(self) -> None:
        step, self._step = self._step, None
        if self._process is not None:
            self._process.expect_within(None)
        if step is None:
            return
        seconds = self._clock() - step.begun_s
        # Long texts take longer a token than short ones; the slowest so far is what may come again.
        self._s_per_token = max(self._s_per_token or 0.0, seconds / max(1, step.n_tokens))
        if self._observer is not None:
            self._observer.decoded(step.n_texts, step.n_tokens, seconds)

    def _tell(self, kind: str, rest: list[Any], body: bytes) -> None:
        ticket = self._tickets.get(rest[0])
        if ticket is None:
            return  # it was cancelled
        if ticket.take(kind, rest[1:], body):
            with self._lock:
                self._tickets.pop(ticket.job_id, None)
            ticket.settle()

    # Ends

    def _ended(self, life: int, end: End) -> None:
        """Fail what was being decoded, and begin again with the rest."""
        with self._lock:
            if life != self._life:
                return
            opened, self._opened, self._process = self._opened, None, None
            if opened is None:
                return  # it said that it could not be opened
            crash = self._crash(end)
            lost = self._lost_with(is_open=opened.done())
        if not opened.done():
            opened.set_exception(crash)
        for ticket in lost:
            ticket.fail(crash)
        if self._observer is not None:
            self._observer.crashed(crash)

    def _crash(self, end: End) -> WorkerCrashedError:
        self._crashes.append(self._clock())
        self._last_crash = WorkerCrashedError(
            f"{self._name}'s worker {end.words}. It is started again when it is needed.",
            why=end.words,
            return_code=end.return_code,
        )
        logger.warning("%s", self._last_crash)
        return self._last_crash

    def _lost_with(self, *, is_open: bool) -> list[Ticket]:
        """Take off the jobs that died with the child; start again at once where others wait."""
        begun = set(self._step.job_ids) if self._step is not None else set()
        if (suspect := self._tickets.get(-1 if self._tokenizing is None else self._tokenizing)) is not None:
            suspect.n_crashes += 1  # the first may be another's doing, and this one is tried again
        lost = [one for one in self._tickets.values() if one.job_id in begun or one.n_crashes > 1 or not is_open]
        for ticket in lost:
            del self._tickets[ticket.job_id]
        if self._tickets:
            try:
                self._check()
                self._start()
            except BackendError as error:
                for ticket in self._tickets.values():
                    ticket.fail(error)
                self._tickets = {}
        return lost

    # As a Session

    def embed_texts(
        self,
        texts: Sequence[str],
        into: Float32Matrix,
        *,
        finish: Callable[[Float32Matrix], Float32Matrix],
        truncate: str = "error",
        prefix: str = "",
        batch_size: int | None = None,
        on_batch: OnProgress | None = None,
    ) -> tuple[list[int], list[int]]:
        """Embed texts as `Session.embed_texts` does; `finish` is called in the child.

        Raises:
            WorkerCrashedError: the child ended while it was at these texts.
            GGUFEmbedError: as there.
        """
        request = Request(
            texts=texts, prompt=prefix, truncate=truncate, finish=finish, batch_size=batch_size, into=into
        )
        result = self.submit(request).wait(on_batch)
        return result.n_tokens, result.truncated

    def tokenize(
        self, texts: Sequence[str], *, truncate: str = "error", prefix: str = ""
    ) -> tuple[list[NDArray[np.int32]], list[int]]:
        """Turn texts into ids as `Session.tokenize` does."""
        result = self.submit(Request(texts=texts, prompt=prefix, truncate=truncate, finish=None)).wait(None)
        return result.tokens, result.truncated

    def stop(self) -> None:
        """End the child, which frees all of its memory; the next job starts another. Its jobs fail with ClosedError."""
        with self._lock:
            process, opened, self._process, self._opened = self._process, self._opened, None, None
            self._life += 1
            lost, self._tickets = list(self._tickets.values()), {}
            is_opening = opened is not None and not opened.done()
        error = ClosedError(f"{self._name} was unloaded")
        if opened is not None and is_opening:
            opened.set_exception(error)
        for ticket in lost:
            ticket.fail(error)
        if process is not None and os.getpid() == self._process_id:
            if is_opening:  # it does not listen
                process.kill("it was closed")
            process.close()

    def close(self) -> None:
        """End the child for good; closing twice is allowed."""
        self._is_closed = True
        self.stop()
