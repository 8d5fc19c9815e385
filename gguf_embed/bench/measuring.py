"""Measures systems side by side, and the arithmetic of what came out: medians, spreads, ratios, cosines.

It must not know processes, models or how a system embeds.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gguf_embed import vectors
from gguf_embed.bench.workload import Task
from gguf_embed.errors import BackendError

__all__ = [
    "Answer", "Measurement", "Speed", "Spread", "Timing", "agreement", "measure", "percentile", "ratio", "rotated",
    "speeds", "spread",
]  # fmt: skip

logger = logging.getLogger(__name__)

Float32Matrix = NDArray[np.float32]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a system makes of some texts.

    Attributes:
        seconds: of the embedding call alone.
        rows: (n, n_embd) float32 where they were asked for.
    """

    seconds: float
    rows: Float32Matrix | None = None


class Embedding(Protocol):
    """A system as it is measured."""

    name: str

    def embed(self, texts: Sequence[str], *, prompt: str, with_rows: bool) -> Answer:
        """Embed texts with a prompt before each; raises BackendError where it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One task, measured once.

    Attributes:
        workload: the task's.
        system: the system's name.
        round_number: from 1; the warm-up is not kept.
        n_texts: texts of the task.
        n_tokens: as Task.
        seconds: of the one call, or of each text's where they are requests of their own.
    """

    workload: str
    system: str
    round_number: int
    n_texts: int
    n_tokens: int
    seconds: tuple[float, ...]

    @property
    def total_s(self) -> float:
        """Seconds of all calls."""
        return sum(self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Everything that was measured.

    Attributes:
        systems: names of those that held out, the one that the others are compared with first.
        timings: in the order in which they were taken.
        agreements: by workload and system, the least cosine between its rows and the first system's.
        lost: why a system was given up, by its name; it has no timings then.
    """

    systems: tuple[str, ...]
    timings: tuple[Timing, ...]
    agreements: Mapping[tuple[str, str], float]
    lost: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over all rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast one system is at one workload.

    Attributes:
        workload: of workload.WORKLOADS.
        system: its name.
        tokens_per_s: tokens of the task over the seconds of its calls.
        texts_per_s: the same of texts.
        p50_ms: of the requests of a round, where each text is one; None elsewhere.
        p95_ms: the same.
        ratio: how many times as fast the first system is; None for itself.
        agreement: the least cosine between the two systems' rows of one text; None for the first system.
    """

    workload: str
    system: str
    tokens_per_s: Spread
    texts_per_s: Spread
    p50_ms: Spread | None
    p95_ms: Spread | None
    ratio: float | None
    agreement: float | None


def spread(values: Sequence[float]) -> Spread:
    """Return the median of values, the least and the greatest; at least one value."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that so many per cent do not exceed, between two where it falls there.

    Source: numpy.percentile's default, linear interpolation.
    """
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent))


def rotated(items: Sequence[Item], by: int) -> list[Item]:
    """Put the first `by` items last, so that over the rounds each one is once first."""
    by %= max(1, len(items))
    return [*items[by:], *items[:by]]


def ratio(ours: float, theirs: float) -> float:
    """Return how many times theirs goes into ours; infinite for none of theirs."""
    return ours / theirs if theirs else float("inf")


def agreement(rows: Float32Matrix, others: Float32Matrix) -> float:
    """Return the least cosine between rows of the same number; -1 where they cannot be compared."""
    if rows.shape != others.shape:
        return -1.0
    return float(vectors.similarity_pairwise(rows, others).min())


def measure(
    systems: Sequence[Embedding], rounds: Sequence[Sequence[Task]], *, on_step: Callable[[str], None]
) -> Measurement:
    """Measure every system at every task, interleaved, so that what else the machine does hits all alike.

    Args:
        systems: the first is what the others are compared with; one of them that fails is given up.
        rounds: of tasks; the first warms up, and its rows are compared.
        on_step: told in words what comes next.

    Raises:
        BackendError: the first system failed.
    """
    alive, timings, lost = list(systems), list[Timing](), dict[str, str]()
    rows: dict[tuple[str, str], Float32Matrix] = {}
    for number, tasks in enumerate(rounds):
        on_step(f"round {number} of {len(rounds) - 1}" if number else "warming up")
        for task in tasks:
            for system in rotated(alive, number):
                try:
                    seconds, found = _run(system, task, with_rows=not number)
                except BackendError as error:
                    if system is systems[0]:
                        raise
                    alive.remove(system)
                    lost[system.name] = str(error)
                    logger.warning("%s", error)
                    continue
                if found is not None:
                    rows[task.workload, system.name] = found
                if number:
                    timings.append(_timing(system, task, number, seconds))
    ours = systems[0].name
    return Measurement(
        systems=tuple(system.name for system in alive),
        timings=tuple(one for one in timings if one.system not in lost),
        agreements={
            (workload, name): agreement(rows[workload, ours], found)
            for (workload, name), found in rows.items()
            if name != ours and name not in lost
        },
        lost=lost,
    )


def _run(system: Embedding, task: Task, *, with_rows: bool) -> tuple[tuple[float, ...], Float32Matrix | None]:
    """Embed a task once, in one call or text by text."""
    calls = [[text] for text in task.texts] if task.is_one_by_one else [list(task.texts)]
    answers = [system.embed(texts, prompt=task.prompt, with_rows=with_rows) for texts in calls]
    rows = [answer.rows for answer in answers if answer.rows is not None]
    return tuple(answer.seconds for answer in answers), np.concatenate(rows) if rows else None


def _timing(system: Embedding, task: Task, number: int, seconds: tuple[float, ...]) -> Timing:
    return Timing(
        workload=task.workload,
        system=system.name,
        round_number=number,
        n_texts=len(task.texts),
        n_tokens=task.n_tokens,
        seconds=seconds,
    )


def speeds(measurement: Measurement) -> tuple[Speed, ...]:
    """Turn timings into speeds, by workload in the order of the tasks and then by system."""
    found = []
    for workload in dict.fromkeys(one.workload for one in measurement.timings):
        first: Speed | None = None
        for system in measurement.systems:
            timings = [one for one in measurement.timings if (one.workload, one.system) == (workload, system)]
            speed = _speed(timings, first, measurement.agreements.get((workload, system)))
            first = first or speed
            found.append(speed)
    return tuple(found)


def _speed(timings: Sequence[Timing], first: Speed | None, least_cosine: float | None) -> Speed:
    """Sum up the rounds of one system at one workload, and compare them with the first system's."""
    tokens_per_s = spread([ratio(one.n_tokens, one.total_s) for one in timings])
    p50_ms = p95_ms = None
    if timings[0].workload == "single":
        milliseconds = [[1000 * seconds for seconds in one.seconds] for one in timings]
        p50_ms = spread([percentile(values, 50) for values in milliseconds])
        p95_ms = spread([percentile(values, 95) for values in milliseconds])
    faster = None
    if first is not None and first.p50_ms is not None and p50_ms is not None:
        faster = ratio(p50_ms.median, first.p50_ms.median)
    elif first is not None:
        faster = ratio(first.tokens_per_s.median, tokens_per_s.median)
    return Speed(
        workload=timings[0].workload,
        system=timings[0].system,
        tokens_per_s=tokens_per_s,
        texts_per_s=spread([ratio(one.n_texts, one.total_s) for one in timings]),
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        ratio=faster,
        agreement=least_cosine,
    )
