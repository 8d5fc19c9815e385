"""What the figures of a comparison mean for a person: a verdict, and the causes that they point at.

It knows nothing of models, servers or files.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from gguf_embed.quality.agreement import Agreement
from gguf_embed.vectors import similarity

__all__ = ["Evidence", "Kind", "Look", "Verdict", "judge", "look_at", "share_elsewhere"]

Float32Matrix = NDArray[np.float32]

# "Measured" is: all-MiniLM-L6-v2 F16 over the 300 texts of eval's sample against itself, changed; CPU, 2026-11-22.
# Batches and kernels move F16 vectors by less (docs/quality.md, "Drift"); Q8_0 moved the least alike text to 0.9975.
SAME = 0.9999
ROUNDED = 0.99  # a choice: measured, Q4_K_M kept 91% of ten neighbours with a mean of 0.990, Q3_K_M 87% with 0.976
# Measured, the least alike text: 0.95 with Q4_K_M and 0.90 with Q3_K_M, 0.43 or less with cut texts or a prompt.
_ODD_TEXT = 0.9
_COARSE_MEAN, _ORDER_KEPT = 0.9, 0.95  # measured: Q3_K_M 0.976 and 0.968; prompts above a mean of 0.9 0.74 to 0.86
# Measured: mean 0.94 ("query: ") to 0.64 (Qwen's prompt), 0.77 with the last token's pooling, 0.49 with CLS. Of Qwen3
# without EOS others report 0.80 and 0.33, of Q2_K 0.95 was measured; 0.06 is of other texts.
_ONE_SIDED = (0.6, 0.95)
_AGREE_SHARE = 0.1  # at ROUNDED or above; measured: 0.11 to 0.81 with cut texts, 0.06 or less with prompts
_LONGER = 2  # a choice: times the median length
_MOST = 0.5  # a choice: of the rows, that are in another place
_UNIT_TOLERANCE = 2e-3  # float16 rows are off by up to 5e-4
_CONSTANT = 0.9999  # a choice: as like as rows of the same text
_N_SAMPLE = 256  # a choice: scores with all rows of a million texts take 1 GiB
_N_FEW = 20  # as many as neighbours need


class Kind(StrEnum):
    """How two sides compare, the best first."""

    SAME = "same"
    ROUNDING = "rounding"
    SOME = "some texts"
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the rows of one side are like.

    Attributes:
        is_unit: whether all rows but those of zeros have unit length, to 0.002.
        shortest: length of the shortest row.
        longest: length of the longest.
        n_zero: rows of zeros.
        is_constant: whether all rows point the same way (cosine 0.9999), of up to 256 rows.
    """

    is_unit: bool
    shortest: float
    longest: float
    n_zero: int
    is_constant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a verdict is made of.

    Attributes:
        agreement: of the two sides.
        looks: of A and of B.
        share_elsewhere: as share_elsewhere() has it.
        prompts: put before each text in A and in B; None where that is not known.
        is_same_fingerprint: None where it is not known of both.
        n_chars: of each text, where texts are known.
    """

    agreement: Agreement
    looks: tuple[Look, Look]
    share_elsewhere: float = 0.0
    prompts: tuple[str | None, str | None] = (None, None)
    is_same_fingerprint: bool | None = None
    n_chars: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is found.

    Attributes:
        kind: in one word.
        words: what it means for an index.
        causes: of a difference, those that the figures point at, the surest first.
        notes: what else to know.
    """

    kind: Kind
    words: str
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def look_at(embeddings: Float32Matrix) -> Look:
    """Describe rows.

    Args:
        embeddings: (n, dim), n >= 1, finite.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64))
    there = lengths[lengths > 0]
    sample = embeddings[lengths > 0][:_N_SAMPLE]
    return Look(
        is_unit=bool(len(there)) and bool((np.abs(there - 1) <= _UNIT_TOLERANCE).all()),
        shortest=float(lengths.min()),
        longest=float(lengths.max()),
        n_zero=len(lengths) - len(there),
        is_constant=len(sample) > 1 and float(similarity(sample[0], sample).min()) >= _CONSTANT,
    )


def share_elsewhere(a: Float32Matrix, b: Float32Matrix) -> float:
    """Share of the first 256 rows of a that are not their row of b (below 0.9) and are another one (0.99 or more).

    Args:
        a: (n, dim), n >= 1.
        b: the same shape.
    """
    scores = similarity(a[:_N_SAMPLE], b)
    own = np.diagonal(scores)
    return float(((own < _ODD_TEXT) & (scores.max(axis=1) >= ROUNDED)).mean())


def judge(evidence: Evidence) -> Verdict:
    """Say what the figures mean."""
    figures = evidence.agreement
    if figures.least >= SAME:
        kind, words = Kind.SAME, "the same: an index made with A can be searched with B."
    elif figures.mean < ROUNDED:
        kind, words = Kind.DIFFERENT, "different vectors: an index made with A has to be made again for B."
    elif figures.least < _ODD_TEXT:
        n_odd = int((figures.cosines < _ODD_TEXT).sum())
        kind = Kind.SOME
        words = f"the same for most texts and not for all: {n_odd:,} of {len(figures.cosines):,} are below {_ODD_TEXT}."
    else:
        kind, words = Kind.ROUNDING, f"the same but for rounding or quantization: {_loss(figures)}"
    causes = tuple(_causes(evidence)) if kind in (Kind.SOME, Kind.DIFFERENT) else ()
    if kind is Kind.DIFFERENT and not causes:
        causes = ("the figures point at no one cause: compare model, pooling, prompt and EOS of both sides.",)
    return Verdict(kind=kind, words=words, causes=causes, notes=tuple(_notes(evidence, kind)))


def _loss(figures: Agreement) -> str:
    kept = figures.neighbours_kept
    if kept is None:
        return f"for what a search loses, give at least {max(_N_FEW, figures.k + 1)} texts."
    return (
        f"of each text's {figures.k} nearest others, {kept:.1%} are the same in both. An index made with A can be "
        "searched with B where that is enough; make it again where it is not."
    )


def _notes(evidence: Evidence, kind: Kind) -> Iterator[str]:
    n = len(evidence.agreement.cosines)
    if n < _N_FEW and kind is not Kind.DIFFERENT:
        yield f"this is of {n} {'text' if n == 1 else 'texts'}; some hundred of your own tell more."
    looks = evidence.looks
    if looks[0].is_unit != looks[1].is_unit and kind is not Kind.DIFFERENT:
        unit, other = ("A", "B") if looks[0].is_unit else ("B", "A")
        yield f"rows of {unit} have unit length and those of {other} have not: search by cosine, not by dot product."
    if evidence.is_same_fingerprint is False and kind is Kind.SAME:
        yield "the fingerprints differ all the same: another file, pooling, EOS, prompt or length; see the figures."
    if evidence.is_same_fingerprint and kind is Kind.ROUNDING:
        yield "the fingerprints are equal, so this is of the machines or programs, not of the models."


def _causes(evidence: Evidence) -> Iterator[str]:
    """What is known or seen first, what the figures resemble after that."""
    figures, names = evidence.agreement, ("A", "B")
    prompt_a, prompt_b = evidence.prompts
    has_other_prompt = prompt_a is not None and prompt_b is not None and prompt_a != prompt_b
    if has_other_prompt:
        yield f"A was made with {_prompt(prompt_a or '')}, B with {_prompt(prompt_b or '')}."
    for name, look in zip(names, evidence.looks, strict=True):
        if look.n_zero:
            yield f"{look.n_zero:,} rows of {name} are all zeros: embed their texts again."
        if look.is_constant and len(figures.cosines) > 1:
            yield f"all rows of {name} are nearly one vector: wrong pooling, or one text again and again."
    if evidence.share_elsewhere >= _MOST:
        yield f"{evidence.share_elsewhere:.0%} of the rows agree with another row: one side is in another order."
    if has_other_prompt:
        return
    if evidence.is_same_fingerprint:
        yield "the fingerprints are equal, so the model is the same: look for other texts or a damaged file."
    if (cut := _of_some(evidence)) is not None:
        yield cut
    elif evidence.share_elsewhere < _MOST and not any(look.is_constant for look in evidence.looks):
        yield from _resembled(figures)


def _of_some(evidence: Evidence) -> str | None:
    """Where some texts agree and others do not: whether the long ones do not."""
    cosines = evidence.agreement.cosines
    is_odd = cosines < _ODD_TEXT
    if not 0 < is_odd.sum() < len(cosines) or (cosines >= ROUNDED).mean() < _AGREE_SHARE:
        return None
    if evidence.n_chars is not None:
        odd = statistics.median(n for n, odd in zip(evidence.n_chars, is_odd, strict=True) if odd)
        even = statistics.median(n for n, odd in zip(evidence.n_chars, is_odd, strict=True) if not odd)
        if odd > _LONGER * even:
            return (
                f"those that differ are longer ({odd:,.0f} characters against {even:,.0f}): one side cuts long texts."
            )
    return "some texts agree and others do not: look whether these are the same texts on both sides."


def _resembled(figures: Agreement) -> Iterator[str]:
    mean, order = figures.mean, figures.rank_correlation
    least, most = _ONE_SIDED
    keeps_order = order is not None and order >= _ORDER_KEPT
    if mean >= _COARSE_MEAN and keeps_order:
        yield f"similarities keep their order ({order:.3f}): a coarse quantization of the same model looks like this."
    elif least <= mean < most:
        yield (
            f"a mean of {mean:.2f} is what a prompt, an end-of-text token (EOS) or another pooling on one side gives."
        )
    elif mean < least and keeps_order:
        yield f"similarities keep their order ({order:.2f}) and vectors do not: components in another order, or turned."
    elif mean < least and order is not None:
        yield "similarities do not keep their order either: other models, pooling or texts, or EOS on one side."


def _prompt(prompt: str) -> str:
    return f"the prompt {prompt[:60]!r}" if prompt else "no prompt"
