"""The child of a Worker: opens a session, tokenizes ahead, decodes step by step, and sends rows as they come.

Runs as a program of its own. It must not know models' names or files; how the session is opened it is told.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gguf_embed.engine.schedule import Job, Schedule, Step, StepSize
from gguf_embed.engine.session import Session
from gguf_embed.engine.wire import Channel
from gguf_embed.errors import BackendError, GGUFEmbedError
from gguf_embed.native.reserve import give_back_freed_memory

__all__ = ["BEAT_S", "Opener", "Opening", "main"]

BEAT_S = 0.5
# Called in the child with a function for its progress; gives the session, and facts of any kind for the parent.
Opener = Callable[[Callable[[int, int], None]], tuple[Session | None, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The first frame that a child gets.

    Attributes:
        opener: what to open; picklable.
        log_level: of the package's log; what is below stays in the child.
    """

    opener: Opener
    log_level: int


class _Host:
    """A session and the jobs that wait for it; tokenizes in one thread, decodes in another."""

    def __init__(self, session: Session, channel: Channel) -> None:
        self._session, self._channel = session, channel
        self._schedule = Schedule()
        self._size = StepSize(
            n_batches=session.layout.n_side, n_tokens=session.settings.n_batch, n_texts=session.layout.n_seq_max
        )
        self._changed = threading.Condition()
        for work in (self._tokenize, self._decode):
            threading.Thread(target=_or_die, args=(work,), daemon=True).start()

    def take(self, kind: str, value: Any) -> None:
        """Take a message: a job, or the number of one that nobody wants any more."""
        with self._changed:
            if kind == "cancel":
                self._schedule.remove(value)
            else:
                self._schedule.add(value)
                self._changed.notify_all()

    # Tokenizing

    def _tokenize(self) -> None:
        while True:
            with self._changed:
                while (found := self._schedule.next_to_tokenize()) is None:
                    self._changed.wait()
            job, which = found
            self._channel.send(("tokenizing", job.job_id))
            try:
                tokens, cut = self._session.tokenize(
                    job.texts[which], truncate=job.truncate, prefix=job.prompt, names=job.names[which]
                )
            except Exception as error:  # noqa: BLE001 - it is the job's, and told to whoever waits for it
                self._fail(job, error)
                continue
            self._channel.send(("tokenized", job.job_id, which.start, [len(ids) for ids in tokens], cut))
            if job.finish is None:
                ids = np.concatenate(tokens, dtype=np.int32)
                pieces = self._session.pieces(np.unique(ids).tolist()) if job.with_pieces else {}
                self._channel.send(
                    ("ids", job.job_id, which.start, [len(one) for one in tokens], pieces), ids.tobytes()
                )
            with self._changed:
                if job.finish is not None:
                    self._schedule.tokenized(job, which, tokens)
                else:
                    job.n_tokenized = which.stop
                    if job.is_tokenized:
                        self._schedule.remove(job.job_id)
                self._changed.notify_all()
            del job, found, tokens

    # Decoding

    def _decode(self) -> None:
        while True:
            with self._changed:
                while (step := self._schedule.take(self._session.cost_of, self._size)) is None:
                    self._changed.wait()
                self._changed.notify_all()  # there is room to tokenize again
            begun = [job.job_id for job, _ in step.parts]
            self._channel.send(("begun", begun, len(step.tokens), step.n_tokens))
            if len(step.parts) == 1:
                self._run_alone(*step.parts[0], step)
            else:
                self._run(step)
            self._channel.send(("ended",))
            del step

    def _run(self, step: Step) -> None:
        """Decode texts of several jobs; where that fails, each job's alone, so that only the one in fault fails."""
        try:
            batch_size = step.parts[0][0].batch_size  # the same of all
            rows = self._session.embed(step.tokens, prompt=step.prompt, batch_size=batch_size)
        except Exception:  # noqa: BLE001 - told by the job whose it is
            start = 0
            for job, positions in step.parts:
                tokens = step.tokens[start : start + len(positions)]
                start += len(positions)
                self._run_alone(job, positions, Step(parts=((job, positions),), tokens=tokens, prompt=step.prompt))
            return
        start = 0
        for job, positions in step.parts:
            self._send(job, positions, rows[start : start + len(positions)])
            start += len(positions)

    def _run_alone(self, job: Job, positions: tuple[int, ...], step: Step) -> None:
        try:
            names = [job.names[position] for position in positions]
            rows = self._session.embed(step.tokens, prompt=step.prompt, names=names, batch_size=job.batch_size)
            self._send(job, positions, rows)
        except Exception as error:  # noqa: BLE001 - it is the job's, and told to whoever waits for it
            self._fail(job, error)

    def _send(self, job: Job, positions: Sequence[int], rows: Any) -> None:
        if job.finish is None or job not in self._schedule:
            return
        done = np.ascontiguousarray(job.finish(rows), dtype=np.float32)
        self._channel.send(("rows", job.job_id, positions, done.shape[1]), done.tobytes())
        job.n_sent += len(positions)
        if job.n_sent == len(job.texts):
            with self._changed:
                self._schedule.remove(job.job_id)

    def _fail(self, job: Job, error: Exception) -> None:
        with self._changed:
            if self._schedule.remove(job.job_id) is None:
                return
        self._channel.send(("failed", job.job_id, _portable(error)))


class _LogToParent(logging.Handler):
    """Sends the package's log to the parent, whose it is to show."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(("log", record.name, record.levelno, self.format(record)))


def _portable(error: Exception) -> Exception:
    """The error itself where the parent can have it, else one that says the same."""
    if isinstance(error, GGUFEmbedError) or type(error) in (TypeError, ValueError, MemoryError):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
            return error
    return BackendError(f"the worker failed: {type(error).__name__}: {error}")


def _or_die(work: Callable[[], None]) -> None:
    """Run a thread's work; without it the process is of no use, and its end tells the parent so."""
    try:
        work()
    except OSError:  # the parent is gone
        os._exit(0)
    except BaseException:
        logging.getLogger(__name__).exception("the worker's thread failed")
        os._exit(1)


def _beat(channel: Channel) -> None:
    while True:
        time.sleep(BEAT_S)
        channel.send(("beat",))


def _channel() -> Channel:
    """Take stdin and stdout for frames, and put stderr where a library's own words would go to stdout."""
    reader, writer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a descriptor is wanted
        os.dup2(nothing.fileno(), 0)
    return Channel(reader, writer)


def main(_argv: Sequence[str]) -> int:
    """Open what the first frame says, then run jobs until stdin ends.

    Returns:
        0 when the parent wants no more; 1 when the session could not be opened, which was told.
    """
    for one in (signal.SIGINT, signal.SIGTERM):  # sent to the group, they are the parent's to answer; it ends stdin
        signal.signal(one, signal.SIG_IGN)
    give_back_freed_memory()
    channel = _channel()
    first = channel.receive()
    if first is None:
        return 0
    opening: Opening = first[0]
    package = logging.getLogger("gguf_embed")
    package.handlers[:], package.propagate = [_LogToParent(channel)], False
    package.setLevel(opening.log_level)
    threading.Thread(target=_or_die, args=(lambda: _beat(channel),), daemon=True).start()
    del first
    session, code = _open(opening, channel)
    host = _Host(session, channel) if session is not None else None
    while not code and (frame := channel.receive()) is not None:
        if host is not None:
            host.take(*frame[0])
        del frame
    os._exit(code)  # in the middle of a decode too: the memory is the system's to free


def _open(opening: Opening, channel: Channel) -> tuple[Session | None, int]:
    """Open the session; that the parent ends meanwhile, the beat notices."""
    try:
        session, facts = opening.opener(lambda done, total: channel.send(("progress", done, total)))
    except Exception as error:  # whoever asked is told
        logging.getLogger(__name__).debug("opening failed", exc_info=True)
        channel.send(("unopened", _portable(error)))
        return None, 1
    channel.send(("opened", facts))
    return session, 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
