"""How far two matrices of vectors of the same texts agree: cosines, neighbours kept, order of similarities.

It knows nothing of models, files or words for a person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_embed.quality.metrics import blocks, cosines, nearest, pairwise_cosines
from gguf_embed.vectors import l2_normalize

__all__ = ["Agreement", "agree", "neighbours", "overlap", "rank_correlation"]

Float32Matrix = NDArray[np.float32]

_N_TEXTS_NEIGHBOURS = 20  # among fewer, ten neighbours are half of all
_N_TEXTS_SAMPLED = 20_000  # of more, 5,000 are looked at: 100,000 take seconds then, and no minute
_N_SAMPLE = 5000  # a share of theirs is off by 0.7 points at most (one standard error, 0.5 / sqrt(5000))
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
        n_sampled: rows that neighbours_kept is the mean of: all, or of more than 20,000 a sample of 5,000, whose
            neighbours are looked for among all.
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
    n_sampled: int
    rank_correlation: float | None
    n_pairs: int

    def worst(self, n: int) -> tuple[int, ...]:
        """Return the positions of the n rows with the least cosines, the least first; ties by position."""
        return tuple(np.argsort(self.cosines, kind="stable")[:n].tolist())


def agree(a: ArrayLike, b: ArrayLike, *, k: int = 10) -> Agreement:
    """Compare vectors of the same texts, in the same order.

    For more than 1,000 rows the rank correlation is that of 1,000 at even distances; for more than 20,000 the
    neighbours are those of 5,000, drawn with a fixed seed.

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
    of_each = cosines(left, right)
    kept, sample = None, _sample(n)
    if n >= _N_TEXTS_NEIGHBOURS and n > k:
        kept = overlap(neighbours(left, k, of=sample), neighbours(right, k, of=sample))
    between = pairwise_cosines(left)
    correlation = rank_correlation(between, pairwise_cosines(right))
    return Agreement(
        cosines=of_each,
        mean=float(of_each.mean()),
        least=float(of_each.min()),
        percentile_1=float(np.percentile(of_each, 1)),
        k=k,
        neighbours_kept=kept,
        n_sampled=len(sample),
        rank_correlation=None if math.isnan(correlation) else correlation,
        n_pairs=len(between),
    )


def neighbours(embeddings: ArrayLike, k: int, *, of: NDArray[np.intp] | None = None) -> NDArray[np.intp]:
    """Find the k nearest other rows of each row by cosine.

    Args:
        embeddings: (n, dim), finite; rows need no unit length.
        k: how many, 1 <= k < n.
        of: (m,) positions of the rows whose neighbours are wanted; None for all.

    Returns:
        (m, k) intp, the nearest first; equal cosines in the order of their positions.

    Raises:
        ValueError: no matrix, a number is not finite, or k is outside 1..n-1.
    """
    rows = l2_normalize(_matrix(embeddings))
    n = len(rows)
    if not 1 <= k < n:
        raise ValueError(f"k is {k}; it is 1..{n - 1} for {n} rows")
    places = np.arange(n, dtype=np.intp) if of is None else of
    return nearest(rows if of is None else rows[of], rows, k, places=places)


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
        int((a[start:end, :, None] == b[start:end, None, :]).sum()) for start, end in blocks(len(a), a.shape[1] ** 2)
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


def _sample(n: int) -> NDArray[np.intp]:
    """Positions of the rows whose neighbours are looked at, in rising order."""
    if n <= _N_TEXTS_SAMPLED:
        return np.arange(n, dtype=np.intp)
    drawn = np.random.default_rng(_SEED).choice(n, _N_SAMPLE, replace=False)
    return np.asarray(np.sort(drawn), dtype=np.intp)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values get the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places], dtype=np.float64)


def _matrix(embeddings: ArrayLike) -> Float32Matrix:
    matrix = np.asarray(embeddings, dtype=np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"expected a matrix, a row each text; got {matrix.ndim} dimensions")
    if not np.isfinite(matrix).all():
        raise ValueError("a row has NaN or infinity; nothing compares with it")
    return matrix
