"""Quantizations of one model one after the other over the same texts, and what each keeps of the reference.

It must not know files of texts, other programs or how a report looks.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_embed.embedder import Embedder
from gguf_embed.encoding import EncodeOptions, finish
from gguf_embed.errors import DimensionError, StorageError, UnknownQuantError
from gguf_embed.models.ladders import quality_rank
from gguf_embed.models.measured import Measured, MeasuredQuant, keep_measured
from gguf_embed.models.specs import Matryoshka
from gguf_embed.quality import metrics
from gguf_embed.quality.agreement import neighbours, overlap, rank_correlation
from gguf_embed.quality.candidates import Candidate, Subject
from gguf_embed.quality.datasets import Material

__all__ = [
    "Evaluation", "Figures", "Judged", "Settings", "check_comparable", "dims_of", "evaluate", "keep", "share",
    "to_measured",
]  # fmt: skip

logger = logging.getLogger(__name__)

Float32Matrix = NDArray[np.float32]
Rows = dict[str, Float32Matrix]  # as the model gave them, by part of the material
Watch = Callable[[str, int], AbstractContextManager[Callable[[int, int], None] | None]]

K = 10  # neighbours, and where rankings are cut
_MIN_DIM = 32  # a sweep by halves ends here
_MANY = 100  # pairs or queries; of fewer a reader is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of one quantization at one dim; None for what was not.

    Attributes:
        dim: components of the vectors.
        cosine_mean: of the vectors of the same text, the reference's being cut to the same dim.
        cosine_p1: the same, below which a hundredth lie.
        cosine_min: the same, the least.
        neighbours_kept: mean share of a text's ten nearest that are the same as the reference's at full length.
        rank_correlation: Spearman's, of the cosines between texts with the reference's at full length.
        spearman: of the cosines of pairs with their scores.
        ndcg_at_10: mean over the queries, linear gain.
        recall_at_10: mean over the queries.
    """

    dim: int
    cosine_mean: float | None = None
    cosine_p1: float | None = None
    cosine_min: float | None = None
    neighbours_kept: float | None = None
    rank_correlation: float | None = None
    spearman: float | None = None
    ndcg_at_10: float | None = None
    recall_at_10: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One quantization and what it is worth.

    Attributes:
        quant: Q4_K_M, ...
        file: its name.
        size_bytes: of the file.
        sha256: of the file.
        figures: at each dim, the full length first.
        tasks: main score of each of mteb's tasks, by name.
        n_truncated: texts that were cut to the model's longest.
        score: mean of what it keeps, over everything that was measured, each at most 1; None where nothing can be
            compared.
    """

    quant: str
    file: str
    size_bytes: int
    sha256: str
    figures: tuple[Figures, ...]
    tasks: tuple[tuple[str, float], ...] = ()
    n_truncated: int = 0
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the quantizations of a model cost.

    Attributes:
        model_id: the registry's name, else the repository or file.
        reference: the quantization that the others are held against.
        dims: that were measured, the full length first.
        measured_on: what was embedded, a line each.
        quants: the reference first, then from best to smallest.
        notes: what a reader should know, a sentence each.
    """

    model_id: str
    reference: str
    dims: tuple[int, ...]
    measured_on: tuple[str, ...]
    quants: tuple[Judged, ...]
    notes: tuple[str, ...] = ()

    def kept(self, judged: Judged, measure: str, dim: int) -> float | None:
        """Share of what the reference reaches at full length.

        Args:
            judged: of this evaluation.
            measure: "neighbours_kept", which is such a share, "spearman" or "ndcg_at_10".
            dim: of `dims`.

        Returns:
            About 0..1; None where it was not measured, or the reference reaches nothing.
        """
        place = self.dims.index(dim)
        value, whole = getattr(judged.figures[place], measure), getattr(self.quants[0].figures[0], measure)
        return share(value, 1.0 if measure == "neighbours_kept" else whole)


MEASURES = ("neighbours_kept", "spearman", "ndcg_at_10")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How it is measured.

    Attributes:
        dims: to measure at beside the full length; None for those that the model was trained for, by halves.
        truncate: "error" for over-long texts, or "end" to cut them.
        run_tasks: gives the main scores of mteb's tasks with an open model; None where there are none.
        watch: called with a quantization and how many texts there are; what it yields, after each batch with its
            texts and tokens.
    """

    dims: tuple[int, ...] | None = None
    truncate: str = "error"
    run_tasks: Callable[[Embedder], tuple[tuple[str, float], ...]] | None = None
    watch: Watch = field(default=lambda _quant, _n: contextlib.nullcontext())


def evaluate(
    subject: Subject,
    candidates: Sequence[Candidate],
    material: Material,
    open_model: Callable[[Candidate], Embedder],
    *,
    settings: Settings | None = None,
) -> Evaluation:
    """Measure quantizations, one model open at a time, each text embedded once by each.

    Args:
        subject: the model.
        candidates: its files, the reference first.
        material: what to measure on.
        open_model: opens a file; closed before the next is opened.
        settings: how; None for the defaults.

    Raises:
        DimensionError: a dim is longer than the model's vectors.
        GGUFEmbedError: a file cannot be loaded, or a text not embedded.
    """
    settings = settings or Settings()
    matryoshka = subject.spec.matryoshka if subject.spec is not None else None
    dims: tuple[int, ...] = ()
    reference: _Reference | None = None
    judged: list[Judged] = []
    for candidate in candidates:
        with open_model(candidate) as model:
            dims = dims or dims_of(model.n_embd, matryoshka, settings.dims)
            rows, n_truncated = _embed(model, material, candidate.quant, settings)
            tasks = settings.run_tasks(model) if settings.run_tasks is not None else ()
        reference = reference or _Reference(rows.get("texts"), matryoshka)
        judged.append(
            Judged(
                quant=candidate.quant, file=candidate.path.name, size_bytes=candidate.size_bytes,
                sha256=candidate.sha256, tasks=tasks, n_truncated=n_truncated,
                figures=tuple(_figures(reference, rows, material, dim) for dim in dims),
            )
        )  # fmt: skip
    evaluation = Evaluation(
        model_id=subject.model_id, reference=candidates[0].quant, dims=dims, measured_on=material.lines,
        quants=tuple(judged), notes=tuple(_notes(subject, dims, judged, material)),
    )  # fmt: skip
    return replace(evaluation, quants=tuple(replace(one, score=_score(evaluation, one)) for one in judged))


def dims_of(n_embd: int, matryoshka: Matryoshka | None, asked: Sequence[int] | None) -> tuple[int, ...]:
    """Decide at which dims to measure.

    Args:
        n_embd: components of a full vector.
        matryoshka: how the model was trained to be cut, None for not.
        asked: beside the full length; None for the trained ones, of a range those by halves.

    Returns:
        The full length, then the others, the longest first.

    Raises:
        DimensionError: one asked for is outside 1..n_embd.
    """
    if asked is None:
        halves = [n_embd >> times for times in range(1, n_embd.bit_length()) if n_embd >> times >= _MIN_DIM]
        trained = matryoshka.dims or [dim for dim in halves if matryoshka.allows(dim, n_embd)] if matryoshka else []
        return (n_embd, *trained)
    for dim in asked:
        if not 1 <= dim <= n_embd:
            raise DimensionError(f"dim is {dim}; the model gives {n_embd}, so it is 1..{n_embd}",
                                 dim=dim, allowed=f"1..{n_embd}")  # fmt: skip
    return tuple(sorted({n_embd, *asked}, reverse=True))


def to_measured(evaluation: Evaluation) -> Measured | None:
    """Make what is kept of an evaluation; None where nothing was compared, or not with the best of all."""
    scored = [(one, one.score) for one in evaluation.quants if one.score is not None]
    best = min((one.quant for one in evaluation.quants), key=quality_rank)
    if len(scored) < 2 or quality_rank(best) < quality_rank(evaluation.reference):
        return None
    return Measured(
        reference=evaluation.reference,
        measured_on=evaluation.measured_on,
        quants=tuple(
            MeasuredQuant(quant=one.quant, score=score, size_bytes=one.size_bytes, sha256=one.sha256)
            for one, score in scored
        ),
    )


def check_comparable(subject: Subject, material: Material) -> None:
    """Refuse texts without labels where a quantization would be held against itself alone.

    Raises:
        UnknownQuantError: there is nothing to compare; the message says what to type.
    """
    if len(subject.quants) == 1 and material.texts is not None:
        [only] = subject.quants
        raise UnknownQuantError(
            f"there is nothing to hold {only} of {subject.model_id} against; name more, such as: "
            f"gguf-embed eval {subject.base} --quants {only},Q8_0,Q4_K_M --make",
            model_id=subject.model_id, quant=only, available=subject.quants,
        )  # fmt: skip


def keep(state_dir: Path, subject: Subject, evaluation: Evaluation) -> Path | None:
    """Keep what was found for `--prefer measured`; a folder that cannot be written is a warning.

    Returns:
        The file; None for a model that has no name, or where nothing was kept; the log says what went, or why not.
    """
    measured = to_measured(evaluation)
    if measured is None or subject.is_file:
        return None
    try:
        return keep_measured(state_dir, subject.model_id, measured)
    except StorageError as error:
        logger.warning("%s; nothing was kept for --prefer measured", error)
        return None


def share(value: float | None, whole: float | None) -> float | None:
    """Part of a whole; None where either is not known, or the whole is not above 0."""
    return value / whole if value is not None and whole is not None and whole > 0 else None


class _Reference:
    """Rows of the texts by the reference; what is asked of them again and again is found once."""

    def __init__(self, rows: Float32Matrix | None, matryoshka: Matryoshka | None) -> None:
        self._rows, self.matryoshka = rows, matryoshka

    @cached_property
    def near(self) -> NDArray[np.intp]:
        """The neighbours of each text at full length."""
        return neighbours(self.cut(None), K)

    @cached_property
    def between(self) -> NDArray[np.float64]:
        """The cosines between texts at full length."""
        return metrics.pairwise_cosines(self.cut(None))

    def cut(self, dim: int | None) -> Float32Matrix:
        """Cut the rows to a dim, None for the full length."""
        if self._rows is None:
            raise ValueError("there are no texts")
        return finish(self._rows, dim, matryoshka=self.matryoshka)


def _embed(model: Embedder, material: Material, quant: str, settings: Settings) -> tuple[Rows, int]:
    """Raw rows of every part of the material, and how many texts were cut."""
    parts: list[tuple[str, Sequence[str], str | None]] = []
    if material.texts is not None:
        parts.append(("texts", material.texts.texts, None))
    if material.pairs is not None:
        parts += [("left", material.pairs.left, None), ("right", material.pairs.right, None)]
    if material.retrieval is not None:
        parts += [("queries", material.retrieval.queries, "query")]
        parts += [("documents", material.retrieval.documents, "document")]
    rows, n_truncated = {}, 0
    with settings.watch(quant, sum(len(texts) for _, texts, _ in parts)) as on_batch:
        for part, texts, prompt_name in parts:
            options = EncodeOptions(
                prompt_name=prompt_name, normalize_embeddings=False, truncate_dim=model.n_embd,
                truncate=settings.truncate,
            )  # fmt: skip
            report = model.report(texts, options, on_batch=on_batch)
            rows[part], n_truncated = report.embeddings, n_truncated + len(report.truncated)
    return rows, n_truncated


def _figures(reference: _Reference, rows: Rows, material: Material, dim: int) -> Figures:
    cut = {part: finish(raw, dim, matryoshka=reference.matryoshka) for part, raw in rows.items()}
    found: dict[str, Any] = {}
    if material.texts is not None:
        found |= _of_texts(reference, cut["texts"])
    if material.pairs is not None:
        cosines = metrics.cosines(cut["left"], cut["right"])
        found["spearman"] = _or_none(rank_correlation(cosines, material.pairs.scores))
    if material.retrieval is not None:
        rankings = metrics.nearest(cut["queries"], cut["documents"], K)
        judged = list(zip(rankings, material.retrieval.relevance, strict=True))
        found["ndcg_at_10"] = _mean([metrics.ndcg(ranking, relevance, K) for ranking, relevance in judged])
        found["recall_at_10"] = _mean([metrics.recall(ranking, relevance, K) for ranking, relevance in judged])
    return Figures(dim=dim, **found)


def _of_texts(reference: _Reference, rows: Float32Matrix) -> dict[str, float | None]:
    cosines = metrics.cosines(rows, reference.cut(rows.shape[1]))
    return {
        "cosine_mean": float(cosines.mean()),
        "cosine_p1": float(np.percentile(cosines, 1)),
        "cosine_min": float(cosines.min()),
        "neighbours_kept": overlap(neighbours(rows, K), reference.near),
        "rank_correlation": _or_none(rank_correlation(metrics.pairwise_cosines(rows), reference.between)),
    }


def _score(evaluation: Evaluation, judged: Judged) -> float | None:
    """Mean of what is kept of each thing that was measured, at full length; luck with one pays for no other."""
    shares = [evaluation.kept(judged, measure, evaluation.dims[0]) for measure in MEASURES]
    whole = dict(evaluation.quants[0].tasks)
    shares += [share(score, whole[name]) for name, score in judged.tasks]
    known = [min(one, 1.0) for one in shares if one is not None]
    return _mean(known) if known else None


def _notes(subject: Subject, dims: Sequence[int], judged: Sequence[Judged], material: Material) -> Iterator[str]:
    matryoshka = subject.spec.matryoshka if subject.spec is not None else None
    untrained = [dim for dim in dims[1:] if matryoshka is None or not matryoshka.allows(dim, dims[0])]
    if untrained:
        listed = ", ".join(map(str, untrained))
        if subject.spec is None:
            yield f"Whether {subject.model_id} was trained to be cut is not known, to {listed} or at all."
        elif matryoshka is None:
            yield f"{subject.model_id} was not trained to be cut; {listed} are its first components nevertheless."
        else:
            yield f"{subject.model_id} was trained for {matryoshka.describe(dims[0])}; {listed} is none of them."
    if n_truncated := max(one.n_truncated for one in judged):
        yield f"{n_truncated} texts were longer than the model takes, and were cut."
    counts = {
        "pairs": len(material.pairs.scores) if material.pairs is not None else _MANY,
        "queries": len(material.retrieval.queries) if material.retrieval is not None else _MANY,
    }
    if few := [f"{n} {name if n > 1 else 'query'}" for name, n in counts.items() if n < _MANY]:
        yield f"{' and '.join(few)} are few: differences of some hundredths are chance."


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
