"""A session in a child process: what ends the child fails the jobs that it was at, and nothing else.

It must not know models' names or files; how a session is opened it is told, and hands on.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.breaker import Breaker, Pace
from gguf_embed.engine.process import End, WorkerProcess
from gguf_embed.engine.program import Opener, Opening
from gguf_embed.engine.tickets import Request, Result, Ticket
from gguf_embed.errors import BackendError, ClosedError, WorkerCrashedError

__all__ = ["Observer", "Request", "Result", "Ticket", "Worker"]

logger = logging.getLogger(__name__)

Float32Matrix = NDArray[np.float32]
OnProgress = Callable[[int, int], None]


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
        self._pace = Pace()
        self._breaker = Breaker(name, clock=clock)
        self._is_closed = False
        self._on_progress: OnProgress | None = None
        self._finalizer: weakref.finalize[..., Any] = weakref.finalize(self, int)  # of nothing yet
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
        self._check_process()
        with self._lock:
            self._check()
            if self._opened is None:
                self._on_progress = on_progress
                return self._start()
            return self._opened

    @property
    def is_open(self) -> bool:
        """Whether there is a child whose session is open."""
        opened = self._opened
        return opened is not None and opened.done()

    @property
    def process_id(self) -> int | None:
        """Of the child, None while there is none."""
        return None if (process := self._process) is None else process.process_id

    @property
    def trouble(self) -> str | None:
        """Why nothing is started at the moment, or None."""
        return self._breaker.trouble

    def _check_process(self) -> None:
        """Refuse a forked process, before it waits for a lock that somebody may have held."""
        if os.getpid() != self._process_id:
            raise BackendError(
                f"{self._name}'s worker belongs to the process that this one was forked from; make a new one here"
            )

    def _check(self) -> None:
        if self._is_closed:
            raise ClosedError(f"{self._name} was closed; open it again to embed more")
        if self._opened is None:
            self._breaker.check()

    def _start(self) -> Future[Any]:
        opened = self._opened = Future()
        self._step = self._tokenizing = None
        self._life += 1
        opening = Opening(
            opener=self._opener_for(self.facts), log_level=logging.getLogger("gguf_embed").getEffectiveLevel()
        )
        try:
            # By weak references, so that a worker that nobody holds ends its child.
            tell, told = weakref.WeakMethod(self._receive), weakref.WeakMethod(self._ended)
            self._process = process = WorkerProcess(
                opening, on_message=partial(_call, tell, self._life), on_end=partial(_call, told, self._life)
            )
        except BaseException:
            self._opened = None
            raise
        self._finalizer.detach()  # of the child before
        self._finalizer = weakref.finalize(self, _end, process, os.getpid())
        return opened

    # Jobs

    def submit(self, request: Request) -> Ticket:
        """Queue a job, and start the child where there is none.

        Raises:
            WorkerCrashedError: it has crashed too often just now.
            ClosedError: after close().
        """
        ticket = Ticket(next(self._ids), request, on_cancel=self._cancel)  # not under the lock: it reads all texts
        if ticket.is_done:
            return ticket
        self._check_process()
        with self._lock:
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
            self._tell_progress(*rest)
        elif kind in ("opened", "unopened"):
            self._on_opened(life, kind, rest[0])
        elif kind == "begun":
            job_ids, n_texts, n_tokens = rest
            self._begun(_Step(job_ids, n_texts, n_tokens, self._clock()))
        elif kind == "tokenizing":
            self._tokenizing = rest[0]
        elif kind == "ended":
            self._end_step()
        else:
            self._tell(kind, rest, body)

    def _tell_progress(self, n_done: int, n_total: int) -> None:
        if self._on_progress is None:
            return
        try:
            self._on_progress(n_done, n_total)
        except Exception as error:  # noqa: BLE001 - it is told to whoever opens
            self._let_go(error)

    def _on_opened(self, life: int, kind: str, value: Any) -> None:
        with self._lock:
            opened, process = self._opened, self._process
            if opened is None or process is None or life != self._life:
                return
            if kind == "opened":
                self.facts = value
                opened.set_result(value)
                for ticket in self._tickets.values():
                    process.send(("job", ticket.job()))
                return
            self._opened = None
            tickets, self._tickets = list(self._tickets.values()), {}
        opened.set_exception(value)
        for ticket in tickets:
            ticket.fail(value)

    def _begun(self, step: _Step) -> None:
        self._step = step
        if self._process is not None:
            self._process.expect_within(self._pace.patience_s(step.n_tokens))

    def _end_step(self) -> None:
        step, self._step = self._step, None
        if self._process is not None:
            self._process.expect_within(None)
        if step is None:
            return
        seconds = self._clock() - step.begun_s
        self._pace.took(step.n_tokens, seconds)
        if self._observer is not None:
            self._observer.decoded(step.n_texts, step.n_tokens, seconds)

    def _tell(self, kind: str, rest: list[Any], body: bytes) -> None:
        if kind in ("tokenized", "failed"):
            self._tokenizing = None
        ticket = self._tickets.get(rest[0])
        if ticket is None:
            return  # it was cancelled
        if ticket.take(kind, rest[1:], body):
            with self._lock:
                is_ours = self._tickets.pop(ticket.job_id, None) is not None
            if is_ours:  # and not of somebody who has just stopped this worker
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
            crash = self._breaker.crashed(end.words, end.return_code)
            lost = self._lost_with(is_open=opened.done())
        if not opened.done():
            opened.set_exception(crash)
        for ticket in lost:
            ticket.fail(crash)
        with self._lock:
            if self._tickets and self._opened is None and not self._is_closed:
                self._start_again()
        if self._observer is not None:
            self._observer.crashed(crash)

    def _start_again(self) -> None:
        """Start the next child for those who wait, or tell them why there is none."""
        try:
            self._check()
            self._start()
        except Exception as error:  # noqa: BLE001 - told to those who wait
            tickets, self._tickets = list(self._tickets.values()), {}
            for ticket in tickets:
                ticket.fail(error)

    def _lost_with(self, *, is_open: bool) -> list[Ticket]:
        """Take off the jobs that died with the child."""
        begun = set(self._step.job_ids) if self._step is not None else set()
        if (suspect := self._tickets.get(-1 if self._tokenizing is None else self._tokenizing)) is not None:
            suspect.n_crashes += 1  # the first may be another's doing, and this one is tried again
        lost = [one for one in self._tickets.values() if one.job_id in begun or one.n_crashes > 1 or not is_open]
        for ticket in lost:
            del self._tickets[ticket.job_id]
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

    def detach(self) -> Callable[[], None]:
        """Let go of the child, now: its jobs fail with ClosedError, and the next one starts another.

        Returns:
            What ends it, and waits until its memory is free.
        """
        process = self._let_go(ClosedError(f"{self._name} was unloaded"))
        return (lambda: None) if process is None else process.close

    def _let_go(self, error: Exception) -> WorkerProcess | None:
        with self._lock:
            process, opened, self._process, self._opened = self._process, self._opened, None, None
            self._life += 1
            lost, self._tickets = list(self._tickets.values()), {}
        if opened is not None and not opened.done():
            opened.set_exception(error)
            if process is not None:
                process.kill("it is not wanted any more")  # it does not listen while it loads
        for ticket in lost:
            ticket.fail(error)
        return process

    def stop(self) -> None:
        """End the child, which frees all of its memory; the next job starts another."""
        self.detach()()

    def close(self) -> None:
        """End the child for good; closing twice is allowed."""
        if os.getpid() != self._process_id:
            return  # the child is the other process's
        self._is_closed = True
        self.stop()


def _call(method: weakref.WeakMethod[Any], *arguments: Any) -> None:
    """Call a method of what may be gone."""
    if (bound := method()) is not None:
        bound(*arguments)


def _end(process: WorkerProcess, process_id: int) -> None:
    """End the child of a worker that nobody holds any more; not in a process that was forked from its own."""
    if os.getpid() == process_id:
        process.send(None)
