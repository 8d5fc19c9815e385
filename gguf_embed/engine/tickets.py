"""What was asked of a worker and what has come back of it so far.

It must not know processes or pipes.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.repeats import Repeats
from gguf_embed.engine.schedule import Job

__all__ = ["Request", "Result", "Ticket"]

Float32Matrix = NDArray[np.float32]
OnBatch = Callable[[int, int], None]

_LOOK_S = 0.5  # a wait without end cannot be interrupted on Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Texts to embed, or to tokenize alone.

    Attributes:
        texts: any strings.
        prompt: put before each.
        truncate: "error", or "end" to cut over-long texts.
        finish: makes (m, dim) rows of the (m, n_embd) that the model gave, in the child; None for tokens alone.
        is_interactive: goes before others at the next decode.
        batch_size: at most this many texts a decode.
        into: (n, dim) float32 to fill; None for a new one.
        with_pieces: also tell what each token stands for, where only tokens are wanted.
    """

    texts: Sequence[str]
    prompt: str = ""
    truncate: str = "error"
    finish: Callable[[Float32Matrix], Float32Matrix] | None
    is_interactive: bool = False
    batch_size: int | None = None
    into: Float32Matrix | None = None
    with_pieces: bool = False


@dataclass(slots=True, kw_only=True)
class Result:
    """What came of a request.

    Attributes:
        rows: (n, dim) float32; (0, 0) where only tokens were wanted.
        n_tokens: of each text.
        truncated: positions of the texts that were cut.
        tokens: ids of each text, where only these were wanted.
        pieces: what each of these ids stands for, and whether it is a control token; where that was wanted.
    """

    rows: Float32Matrix = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    n_tokens: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    tokens: list[NDArray[np.int32]] = field(default_factory=list)
    pieces: dict[int, tuple[str, bool]] = field(default_factory=dict)


class Ticket:
    """A request on its way; `future` has its result.

    Args:
        job_id: what it is called.
        request: what is wanted.
        on_cancel: told when nobody wants it any more.

    Raises:
        TypeError: a text is not a str.
    """

    def __init__(self, job_id: int, request: Request, *, on_cancel: Callable[[Ticket], None]) -> None:
        self.job_id, self.request, self._on_cancel = job_id, request, on_cancel
        self.future: Future[Result] = Future()
        self._repeats = Repeats(request.texts)
        n_texts = len(self._repeats.texts)
        self._rows = request.into
        self._lengths = np.zeros(n_texts, dtype=np.intp)
        self._is_here = np.zeros(n_texts, dtype=np.bool_)
        self._sent: NDArray[np.intp] = np.arange(n_texts, dtype=np.intp)  # what a job's positions mean
        self._truncated: set[int] = set()
        self._error: Exception | None = None
        self.n_crashes = 0  # that came while it was being tokenized, and may be its doing
        self._tokens: dict[int, NDArray[np.int32]] = {}
        self._pieces: dict[int, tuple[str, bool]] = {}
        self._batches: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        if not n_texts:
            self.future.set_result(Result())

    @property
    def is_done(self) -> bool:
        """Whether there is a result, an error or no more wish for one."""
        return self.future.done()

    def job(self) -> Job:
        """Make the job of what is not here yet: all of it, or what a crash left."""
        self._sent = np.flatnonzero(~self._is_here)
        request = self.request
        return Job(
            job_id=self.job_id,
            texts=[str.__str__(self._repeats.texts[at]) for at in self._sent],  # a subclass may not be known there
            names=self._repeats.positions[self._sent].tolist(),
            prompt=request.prompt,
            truncate=request.truncate,
            finish=request.finish,
            is_interactive=request.is_interactive,
            batch_size=request.batch_size,
            with_pieces=request.with_pieces,
        )

    def take(self, kind: str, rest: Sequence[Any], body: bytes) -> bool:
        """Take a message of the worker's.

        Returns:
            Whether this is the last one; `settle` then tells those who wait.
        """
        if kind == "tokenized":
            start, lengths, cut = rest
            self._lengths[self._sent[start : start + len(lengths)]] = lengths
            self._truncated.update(cut)
            return False
        if kind == "ids":
            start, lengths, pieces = rest
            self._pieces.update(pieces)
            self._take_ids(start, lengths, body)
        elif kind == "rows":
            positions, dim = rest
            self._take_rows(positions, dim, body)
        elif kind == "failed":
            self._error = rest[0]
            return True
        return bool(self._is_here.all())

    def _take_ids(self, start: int, lengths: Sequence[int], body: bytes) -> None:
        ids = np.frombuffer(body, dtype=np.int32)
        for at, one in zip(range(start, start + len(lengths)), np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
            self._tokens[int(self._sent[at])] = one
        self._is_here[self._sent[start : start + len(lengths)]] = True

    def _take_rows(self, positions: Sequence[int], dim: int, body: bytes) -> None:
        rows = np.frombuffer(body, dtype=np.float32).reshape(-1, dim)
        if self._rows is None:
            self._rows = np.empty((len(self.request.texts), dim), dtype=np.float32)
        which = self._sent[list(positions)]
        self._rows[self._repeats.positions[which]] = rows
        self._is_here[which] = True
        self._batches.put((len(which), int(self._lengths[which].sum())))

    def settle(self) -> None:
        """Tell those who wait that all is here, or why it is not."""
        if self._error is not None:
            self.fail(self._error)
            return
        repeats = self._repeats
        result = Result(n_tokens=repeats.spread(self._lengths).tolist(), truncated=repeats.all_of(self._truncated))
        if self.request.finish is None:
            result.pieces = self._pieces
            result.tokens = [self._tokens[int(at)] for at in repeats.spread(np.arange(len(repeats.texts)))]
        elif self._rows is not None:
            repeats.copy(self._rows)
            result.rows = self._rows
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(result)
        if repeats.again:
            self._batches.put((len(repeats.again), sum(result.n_tokens[at] for at in repeats.again)))
        self._batches.put(None)

    def fail(self, error: Exception) -> None:
        """Tell those who wait that it will not come."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)
        self._batches.put(None)

    def cancel(self) -> None:
        """Want it no more: what is not decoded yet never will be."""
        if self.future.cancel():
            self._on_cancel(self)
            self._batches.put(None)

    def wait(self, on_batch: OnBatch | None) -> Result:
        """Wait for all of it, telling of each decode in this thread.

        Raises:
            GGUFEmbedError: as it was told.
        """
        try:
            while True:
                try:
                    batch = self._batches.get(timeout=_LOOK_S)
                except queue.Empty:
                    if self.is_done:
                        break
                    continue
                if batch is None:
                    break
                if on_batch is not None:
                    on_batch(*batch)
        except BaseException:
            self.cancel()
            raise
        return self.future.result()
