"""How far two matrices of vectors of the same texts agree: cosines, neighbours kept, order of similarities.

It knows nothing of models, files or words for a person.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_embed.vectors import l2_normalize

__all__ = ["Agreement", "agree", "neighbours", "overlap", "rank_correlation"]

Float32Matrix = NDArray[np.float32]

_N_TEXTS_NEIGHBOURS = 20  # among fewer, ten neighbours are half of all
_N_TEXTS_ALL_PAIRS = 2000  # two million pairs
_N_PAIRS_SAMPLE = 1_000_000
_N_SCORES_BLOCK = 8 * 1024 * 1024  # 32 MiB of float32
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Agreement:
    """What two matrices have in common, row by row and as a whole.

    Attributes:
        cosines: (n,) float64 in -1..1, of each row of one with the same row of the other; 0 for a row of zeros.
        mean: of the cosines.
        least: of the cosines.
        percentile_1: a hundredth of the cosines are below.
        k: neighbours looked at.
        neighbours_kept: mean share of a row's k nearest others that are the same in both, in 0..1; None for fewer
            than 20 rows, or no more than k.
        rank_correlation: Spearman's, of the cosines between different rows in one and in the other, in -1..1; None
            for fewer than 3 rows (2 pairs), or where all cosines of one side are equal.
        n_pairs: pairs of rows that rank_correlation was found with.
    """

    cosines: NDArray[np.float64]
    mean: float
    least: float
    percentile_1: float
    k: int
    neighbours_kept: float | None
    rank_correlation: float | None
    n_pairs: int

    def worst(self, n: int) -> tuple[int, ...]:
        """Return the positions of the n rows with the least cosines, the least first; ties by position."""
        return tuple(np.argsort(self.cosines, kind="stable")[:n].tolist())


def agree(a: ArrayLike, b: ArrayLike, *, k: int = 10) -> Agreement:
    """Compare vectors of the same texts, in the same order.

    For more than 2,000 rows the rank correlation is that of a million pairs, drawn with a fixed seed.

    Args:
        a: (n, dim), n >= 1, finite; rows need no unit length.
        b: the same shape as `a`.
        k: neighbours to look at, at least 1.

    Raises:
        ValueError: shapes differ, there are no rows, a number is not finite, or k is below 1.
    """
    left, right = _matrix(a), _matrix(b)
    if left.shape != right.shape:
        raise ValueError(f"shapes {left.shape} and {right.shape} differ; vectors of the same texts have one shape")
    if not len(left):
        raise ValueError("there are no rows to compare")
    if k < 1:
        raise ValueError(f"k is {k}; it is at least 1")
    n = len(left)
    cosines = _pair_cosines(left, right)
    kept = None
    if n >= _N_TEXTS_NEIGHBOURS and n > k:
        kept = overlap(neighbours(left, k), neighbours(right, k))
    between_left, between_right = _between(left), _between(right)
    correlation = rank_correlation(between_left, between_right)
    return Agreement(
        cosines=cosines,
        mean=float(cosines.mean()),
        least=float(cosines.min()),
        percentile_1=float(np.percentile(cosines, 1)),
        k=k,
        neighbours_kept=kept,
        rank_correlation=None if math.isnan(correlation) else correlation,
        n_pairs=len(between_left),
    )


def neighbours(embeddings: ArrayLike, k: int) -> NDArray[np.intp]:
    """Find the k nearest other rows of each row by cosine.

    Works in blocks: memory is bounded by some 64 MiB beside the rows.

    Args:
        embeddings: (n, dim), finite; rows need no unit length.
        k: how many, 1 <= k < n.

    Returns:
        (n, k) intp, the nearest first; equal cosines in the order of their positions.

    Raises:
        ValueError: no matrix, a number is not finite, or k is outside 1..n-1.
    """
    rows = l2_normalize(_matrix(embeddings))
    n = len(rows)
    if not 1 <= k < n:
        raise ValueError(f"k is {k}; it is 1..{n - 1} for {n} rows")
    found = np.empty((n, k), dtype=np.intp)
    for start, end in _blocks(n, n):
        scores = rows[start:end] @ rows.T
        scores[np.arange(end - start), np.arange(start, end)] = -np.inf
        bounds = np.partition(scores, n - k, axis=1)[:, n - k]  # the k-th greatest of each
        for i, bound in enumerate(bounds):
            candidates = np.flatnonzero(scores[i] >= bound)
            order = np.argsort(-scores[i, candidates], kind="stable")[:k]
            found[start + i] = candidates[order]
    return found


def overlap(a: NDArray[np.intp], b: NDArray[np.intp]) -> float:
    """Mean share of each row's entries that the same row of the other has too, in whatever order.

    Args:
        a: (n, k) of distinct entries a row, n >= 1, as `neighbours` gives them.
        b: the same shape as `a`.

    Returns:
        0..1.

    Raises:
        ValueError: shapes differ, or there are no entries.
    """
    if a.shape != b.shape or a.ndim != 2 or not a.size:
        raise ValueError(f"neighbours of shapes {a.shape} and {b.shape} do not compare")
    n_common = sum(
        int((a[start:end, :, None] == b[start:end, None, :]).sum()) for start, end in _blocks(len(a), a.shape[1] ** 2)
    )
    return n_common / a.size


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
        x: (n,) finite numbers.
        y: as many.

    Returns:
        -1..1; NaN for fewer than 2 values, or where all of one side are equal.

    Raises:
        ValueError: the lengths differ.

    Source: Pearson's correlation of average ranks, as scipy.stats.spearmanr (SciPy 1.14) defines it.
    """
    left, right = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1:
        raise ValueError(f"values of shapes {left.shape} and {right.shape} do not compare")
    if len(left) < 2:
        return math.nan
    ranks_x, ranks_y = _ranks(left), _ranks(right)
    ranks_x -= ranks_x.mean()
    ranks_y -= ranks_y.mean()
    scale = math.sqrt(float(ranks_x @ ranks_x) * float(ranks_y @ ranks_y))
    return max(-1.0, min(1.0, float(ranks_x @ ranks_y) / scale)) if scale else math.nan


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values get the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places], dtype=np.float64)


def _between(rows: Float32Matrix) -> NDArray[np.float64]:
    """Cosines of all pairs of different rows, or of a million pairs drawn with a fixed seed."""
    n = len(rows)
    if n <= _N_TEXTS_ALL_PAIRS:
        unit = rows / np.maximum(_lengths(rows), np.finfo(np.float64).tiny)[:, None]
        return np.asarray((unit @ unit.T)[np.triu_indices(n, k=1)], dtype=np.float64)
    random = np.random.default_rng(_SEED)
    first = random.integers(0, n, _N_PAIRS_SAMPLE, dtype=np.intp)
    second = random.integers(0, n - 1, _N_PAIRS_SAMPLE, dtype=np.intp)
    second += second >= first
    blocks = _blocks(_N_PAIRS_SAMPLE, rows.shape[1])
    return np.concatenate([_pair_cosines(rows[first[i:j]], rows[second[i:j]]) for i, j in blocks])


def _pair_cosines(a: Float32Matrix, b: Float32Matrix) -> NDArray[np.float64]:
    """Cosine of each row with the same row of the other; 0 where one is all zeros."""
    # Summed in float64: 0.9999 is told from 0.99999 with digits to spare.
    dots = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    lengths = _lengths(a) * _lengths(b)
    cosines = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)
    return np.asarray(np.clip(cosines, -1, 1), dtype=np.float64)


def _lengths(rows: Float32Matrix) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)), dtype=np.float64)


def _blocks(n: int, n_per_row: int) -> Iterator[tuple[int, int]]:
    """Yield starts and ends of consecutive rows whose numbers together stay within a block."""
    size = max(1, _N_SCORES_BLOCK // max(n_per_row, 1))
    for start in range(0, n, size):
        yield start, min(start + size, n)


def _matrix(embeddings: ArrayLike) -> Float32Matrix:
    matrix = np.asarray(embeddings, dtype=np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"expected a matrix, a row each text; got {matrix.ndim} dimensions")
    if not np.isfinite(matrix).all():
        raise ValueError("a row has NaN or infinity; nothing compares with it")
    return matrix
