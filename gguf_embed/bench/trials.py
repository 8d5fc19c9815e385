"""Tries other ways to pack tokens and to share out threads than the plan's, and says which is fastest.

It must not know other programs or how figures are shown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_embed.bench.measuring import Spread, ratio, rotated, spread
from gguf_embed.bench.question import Question, fetch
from gguf_embed.bench.workload import documents, sentences
from gguf_embed.engine.session import Session, Tokens
from gguf_embed.engine.settings import SessionSettings
from gguf_embed.fit import hardware
from gguf_embed.fit.hardware import Hardware
from gguf_embed.fit.plan import Plan
from gguf_embed.fit.tuning import Tuning, load_tuning, remember_tuning, tuning_path
from gguf_embed.loading import load_session
from gguf_embed.models.catalog import Catalog
from gguf_embed.selection import Overrides, Selection

__all__ = [
    "Found", "Trial", "Tuned", "batch_candidates", "choose", "is_steady", "search", "thread_candidates", "tune",
]  # fmt: skip

# Measures pairs of n_batch and n_threads.
Run = Callable[[Sequence[tuple[int, int]]], "list[Trial]"]

_N_BATCHES = (64, 128, 256, 512)
_MIN_ROUNDS, _N_WARM_TEXTS = 3, 16
# Less than this is as good: two runs of one setting differ by as much.
_GAIN = 1.03
# Rounds that are further apart than this measured something else that ran meanwhile.
_STEADY = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One setting, measured.

    Attributes:
        n_batch: tokens packed into one decode.
        n_threads: CPU threads.
        tokens_per_s: over all rounds.
    """

    n_batch: int
    n_threads: int
    tokens_per_s: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the trials came to.

    Attributes:
        trials: in the order in which they were made; n_batch first, then n_threads with the better n_batch.
        tuning: what is faster than the plan's own choice; empty where that is as good.
        gain: how many times as fast it is, 1 where nothing is.
        is_steady: the rounds of what is compared are near enough to each other to tell.
    """

    trials: tuple[Trial, ...]
    tuning: Tuning
    gain: float
    is_steady: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What was found for a model, and what is remembered.

    Attributes:
        model_id: of the model.
        quant: of its file.
        n_batch: the plan's own choice.
        n_threads: the same.
        found: what the trials came to.
        remembered: from now on; what it was before where the trials are not steady.
        path: where it is remembered.
    """

    model_id: str
    quant: str
    n_batch: int
    n_threads: int
    found: Found
    remembered: Tuning
    path: Path


def batch_candidates(plan: Plan) -> tuple[int, ...]:
    """Return the sizes of n_batch that the plan's layout allows, and its own."""
    layout = plan.layout
    allowed = {n_batch for n_batch in _N_BATCHES if layout.n_seq_max <= n_batch <= layout.n_ubatch}
    return tuple(sorted(allowed | {plan.n_batch}))


def thread_candidates(n_threads: int, n_cpus: int) -> tuple[int, ...]:
    """Return the plan's threads, half of them, and up to twice as many where there are that many CPUs.

    More than that is never faster: the plan has one thread for each core that is worth one.
    """
    most = max(n_threads, min(n_cpus, 2 * n_threads))
    return tuple(sorted({max(1, n_threads // 2), n_threads, (n_threads + most) // 2, most}))


def choose(trials: Sequence[Trial], default: Trial) -> Trial:
    """Return the fastest trial where it is 3 % faster than the default, else the default."""
    best = max(trials, key=lambda one: one.tokens_per_s.median)
    return best if best.tokens_per_s.median >= _GAIN * default.tokens_per_s.median else default


def is_steady(trial: Trial) -> bool:
    """Whether its rounds are near enough to each other to tell anything; on a busy machine they are not."""
    return trial.tokens_per_s.high <= _STEADY * trial.tokens_per_s.low


def search(plan: Plan, run: Run, *, n_cpus: int | None) -> Found:
    """Measure n_batch, then n_threads with the better n_batch.

    Args:
        plan: whose own choice is the default.
        run: measures pairs of n_batch and n_threads side by side.
        n_cpus: logical processors; None leaves the threads as they are.
    """
    trials = run([(n_batch, plan.n_threads) for n_batch in batch_candidates(plan)])
    default = next(one for one in trials if one.n_batch == plan.n_batch)
    best = choose(trials, default)
    counted = [default, best]
    gain = ratio(best.tokens_per_s.median, default.tokens_per_s.median)
    sizes = thread_candidates(plan.n_threads, n_cpus) if n_cpus is not None else ()
    if len(sizes) > 1:
        of_threads = run([(best.n_batch, n_threads) for n_threads in sizes])
        default = next(one for one in of_threads if one.n_threads == plan.n_threads)
        best, trials = choose(of_threads, default), [*trials, *of_threads]
        counted += [default, best]
        gain *= ratio(best.tokens_per_s.median, default.tokens_per_s.median)
    tuning = Tuning(
        n_batch=best.n_batch if best.n_batch != plan.n_batch else None,
        n_threads=best.n_threads if best.n_threads != plan.n_threads else None,
    )
    return Found(trials=tuple(trials), tuning=tuning, gain=gain, is_steady=all(is_steady(one) for one in counted))


def tune(
    catalog: Catalog,
    question: Question,
    *,
    on_step: Callable[[str], None],
) -> Tuned:
    """Measure n_batch, and n_threads unless they are given, and remember what is faster than the plan's choice.

    One session is open at a time, so that this takes no more memory than the model does.

    Args:
        catalog: where models come from.
        question: which model, its limits, n_texts documents a round and n_rounds, of which there are at least 3.
        on_step: told in words what comes next.

    Raises:
        GGUFEmbedError: the model cannot be run, or what was found cannot be kept.
    """
    machine, state_dir = hardware.probe(), catalog.config.state_dir
    selection, session = _load(catalog, question)
    with _forgotten(state_dir, machine, selection.plan) as before:
        if before != Tuning():
            session.close()
            selection, session = _load(catalog, question)
        with contextlib.closing(session):
            texts = _tokenize(session, question)
        plan = selection.plan
        run = functools.partial(_measure, settings=session.settings, texts=texts, on_step=on_step)
        found = search(plan, run, n_cpus=_n_cpus() if question.limits.n_threads is None else None)
        remembered = found.tuning if found.is_steady else before
        remember_tuning(state_dir, machine, plan.facts, plan.placement, remembered)
    return Tuned(
        model_id=plan.model_id,
        quant=plan.quant,
        n_batch=plan.n_batch,
        n_threads=plan.n_threads,
        found=found,
        remembered=remembered,
        path=tuning_path(state_dir),
    )


def _n_cpus() -> int:
    """Logical processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _load(catalog: Catalog, question: Question) -> tuple[Selection, Session]:
    selection, path = fetch(catalog, question)
    return load_session(catalog, selection, path, limits=question.limits, overrides=Overrides())


@contextlib.contextmanager
def _forgotten(state_dir: Path, machine: Hardware, plan: Plan) -> Iterator[Tuning]:
    """Take out what was remembered of this model, so that plans are made without it; back in if this fails.

    Yields:
        What was remembered.
    """
    before = load_tuning(state_dir, machine, plan.facts, plan.placement)
    remember_tuning(state_dir, machine, plan.facts, plan.placement, Tuning())
    try:
        yield before
    except BaseException:
        remember_tuning(state_dir, machine, plan.facts, plan.placement, before)
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """Tokens to measure with, by round, and a few to warm up with."""

    rounds: list[list[Tokens]]
    warm: list[Tokens]


def _tokenize(session: Session, question: Question) -> _Texts:
    """Make the documents of each round; what is too long for the model is cut, which takes no time from it."""
    made = [documents(question.n_texts, seed=number) for number in range(max(_MIN_ROUNDS, question.n_rounds))]
    rounds = [session.tokenize(texts, truncate="end")[0] for texts in made]
    return _Texts(rounds=rounds, warm=session.tokenize(sentences(_N_WARM_TEXTS, seed=0), truncate="end")[0])


def _measure(
    pairs: Sequence[tuple[int, int]], *, settings: SessionSettings, texts: _Texts, on_step: Callable[[str], None]
) -> list[Trial]:
    """Measure pairs of n_batch and n_threads, interleaved; loading is not counted."""
    rates: dict[tuple[int, int], list[float]] = {pair: [] for pair in pairs}
    for number, tokens in enumerate(texts.rounds):
        on_step(f"round {number + 1} of {len(texts.rounds)}: {_words(pairs)}")
        n_tokens = sum(len(ids) for ids in tokens)
        for n_batch, n_threads in rotated(pairs, number):
            changed = dataclasses.replace(settings, n_batch=n_batch, n_threads=n_threads)
            with contextlib.closing(Session(changed)) as session:
                session.embed(texts.warm)
                begun = time.perf_counter()
                session.embed(tokens)
                rates[n_batch, n_threads].append(ratio(n_tokens, time.perf_counter() - begun))
    return [
        Trial(n_batch=n_batch, n_threads=n_threads, tokens_per_s=spread(values))
        for (n_batch, n_threads), values in rates.items()
    ]


def _words(pairs: Sequence[tuple[int, int]]) -> str:
    """Say what differs between pairs."""
    n_batches, n_threads = (sorted(set(values)) for values in zip(*pairs, strict=True))
    name, values = ("n_threads", n_threads) if len(n_threads) > 1 else ("n_batch", n_batches)
    return f"{name} {', '.join(map(str, values))}"
