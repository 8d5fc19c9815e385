"""Decides what is tokenized and decoded next: texts of many jobs in one decode, small jobs before large ones.

Values and queues alone; one thread at a time. It must not know llama.cpp, threads or pipes.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguf_embed.engine.batching import pack
from gguf_embed.engine.tokenizing import Tokens

__all__ = ["Job", "Schedule", "Step", "StepSize"]

# Texts of one job that are tokenized ahead: enough to pack full decodes, and little memory however large the job is.
N_TEXTS_AHEAD = 1024
# Texts that are tokenized in one go, so that a small job never waits for a large one. Some 5 ms.
N_TEXTS_GO = 128
# Small jobs overtake; of this many steps one is a large job's all the same, so that it always gets on.
_N_STEPS_TURN = 4


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """Texts that somebody waits for.

    Attributes:
        job_id: what it is called in messages.
        texts: all different.
        names: what to call each of them in errors.
        prompt: put before each text.
        truncate: "error", or "end" to cut over-long texts.
        finish: makes the rows that are wanted of those that the model gave; None where only tokens are wanted.
        is_interactive: somebody waits for it as a whole, so it goes before others.
        batch_size: at most this many texts a decode.
        with_pieces: also tell what each token stands for, where only tokens are wanted.
    """

    job_id: int
    texts: Sequence[str]
    names: Sequence[int]
    prompt: str = ""
    truncate: str = "error"
    finish: Callable[[Any], Any] | None = None
    is_interactive: bool = False
    batch_size: int | None = None
    with_pieces: bool = False
    n_tokenized: int = 0
    ready: list[tuple[int, Tokens]] = field(default_factory=list)  # positions and ids that wait for a decode
    n_taken: int = 0
    n_sent: int = 0

    @property
    def is_tokenized(self) -> bool:
        """Whether every text has its ids."""
        return self.n_tokenized == len(self.texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Texts to be decoded next, all with the same prompt.

    Attributes:
        parts: each job, with the positions of its texts.
        tokens: of these texts, in that order.
        prompt: of all of them.
    """

    parts: tuple[tuple[Job, tuple[int, ...]], ...]
    tokens: tuple[Tokens, ...]
    prompt: str

    @property
    def n_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """How much one step may hold.

    Attributes:
        n_batches: that are decoded side by side.
        n_tokens: of one of them.
        n_texts: of one of them.
    """

    n_batches: int
    n_tokens: int
    n_texts: int

    def within(self, batch_size: int | None) -> StepSize:
        """Return the same with at most this many texts a batch."""
        return self if batch_size is None else dataclasses.replace(self, n_texts=min(self.n_texts, batch_size))


class Schedule:
    """The jobs that are not done, in the order in which they came."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._n_steps = 0

    def add(self, job: Job) -> None:
        """Take a job."""
        self._jobs[job.job_id] = job

    def remove(self, job_id: int) -> Job | None:
        """Forget a job, done or not; what of it is being decoded is not stopped."""
        return self._jobs.pop(job_id, None)

    def __contains__(self, job: Job) -> bool:
        return self._jobs.get(job.job_id) is job

    def next_to_tokenize(self) -> tuple[Job, slice] | None:
        """Find the texts to tokenize next: of interactive jobs first, then of the one with the fewest ready."""
        waiting = [job for job in self._jobs.values() if not job.is_tokenized and len(job.ready) < N_TEXTS_AHEAD]
        if not waiting:
            return None
        job = min(waiting, key=lambda job: (not job.is_interactive, len(job.ready)))
        stop = min(job.n_tokenized + N_TEXTS_GO, len(job.texts))
        return job, slice(job.n_tokenized, stop)

    def tokenized(self, job: Job, which: slice, tokens: Sequence[Tokens]) -> None:
        """Take the ids of texts; of a job that is there no more they are dropped."""
        job.n_tokenized = which.stop
        if job in self:
            job.ready += zip(range(which.start, which.stop), tokens, strict=True)

    def take(self, cost_of: Callable[[str], Callable[[Tokens], int]], size: StepSize) -> Step | None:
        """Choose what is decoded next.

        Args:
            cost_of: for a prompt, how many tokens a text really costs beside what is shared.
            size: of the step; one text alone may cost more.

        Returns:
            The step, whose texts are off the queue; None while there is nothing.
        """
        ready = [job for job in self._jobs.values() if job.ready]
        lanes = [[job for job in ready if job.is_interactive], [job for job in ready if not job.is_interactive]]
        if not ready:
            return None
        self._n_steps += 1
        is_turn = self._n_steps % _N_STEPS_TURN == 0
        lane = lanes[1] if not lanes[0] or (lanes[1] and is_turn) else lanes[0]
        first = lane[0]
        if not first.is_interactive:  # large jobs get on side by side
            first = min(lane, key=_progress)
        # A job with a batch_size of its own is not mixed with others.
        together = [job for job in lane if job.prompt == first.prompt and job.batch_size == first.batch_size]
        if not first.is_interactive:
            together.sort(key=_progress)
        return _fill(together, cost_of(first.prompt), size.within(first.batch_size))


def _progress(job: Job) -> float:
    return job.n_taken / len(job.texts)


def _fill(jobs: Sequence[Job], cost: Callable[[Tokens], int], size: StepSize) -> Step:
    """Take texts of one job after the other until the batches are full."""
    chosen: list[Job] = []
    costs: list[int] = []
    n_texts_max = size.n_batches * size.n_texts
    room = size.n_batches * size.n_tokens
    for job, (_, ids) in ((one, item) for one in jobs for item in one.ready):
        price = cost(ids)
        room -= price
        if chosen and (room < 0 or len(chosen) == n_texts_max):
            break
        chosen.append(job)
        costs.append(price)
    while len(chosen) > 1 and len(pack(costs, n_tokens_max=size.n_tokens, n_seq_max=size.n_texts)) > size.n_batches:
        chosen.pop()  # what would make one small batch more waits for the next step
        costs.pop()
    counts = collections.Counter(job.job_id for job in chosen)
    parts, tokens = [], []
    for job in jobs:
        if n := counts[job.job_id]:
            parts.append((job, tuple(position for position, _ in job.ready[:n])))
            tokens += [ids for _, ids in job.ready[:n]]
            del job.ready[:n]
            job.n_taken += n
    return Step(parts=tuple(parts), tokens=tuple(tokens), prompt=jobs[0].prompt)
