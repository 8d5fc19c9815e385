"""Cosines, the nearest rows, and how good a ranking is: nDCG, recall; numpy alone, cosines summed in float64.

It must not know models, files or what a figure is called on a report.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from gguf_embed.vectors import l2_normalize

__all__ = ["blocks", "cosines", "ndcg", "nearest", "pairwise_cosines", "recall"]

Float32Matrix = NDArray[np.float32]
Float64Vector = NDArray[np.float64]

_MAX_ROWS_PAIRWISE = 1000  # half a million pairs
_N_SCORES_BLOCK = 8 * 1024 * 1024  # 32 MiB of float32


def cosines(a: Float32Matrix, b: Float32Matrix) -> Float64Vector:
    """Cosine of each row of one with the same row of the other.

    Args:
        a: (n, dim) float32, rows of any length.
        b: the same shape as `a`.

    Returns:
        (n,) float64 in -1..1; 0 where one of the rows is all zeros.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape} differ; a cosine is of rows of one length")
    dots = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", a, a, dtype=np.float64) * np.einsum("ij,ij->i", b, b, dtype=np.float64))
    found = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)
    return np.asarray(np.clip(found, -1, 1), dtype=np.float64)


def pairwise_cosines(embeddings: Float32Matrix, *, max_rows: int = _MAX_ROWS_PAIRWISE) -> Float64Vector:
    """Cosines between different rows, in an order that depends on the number of rows alone.

    Args:
        embeddings: (n, dim) float32, rows of any length.
        max_rows: of more rows, so many are taken at even distances.

    Returns:
        (m * (m - 1) / 2,) float64 of the m rows that were taken; 0 where one is all zeros.
    """
    n = len(embeddings)
    taken = np.arange(n) if n <= max_rows else np.linspace(0, n - 1, max_rows).astype(np.intp)
    rows = l2_normalize(embeddings[taken]).astype(np.float64)
    return np.asarray((rows @ rows.T)[np.triu_indices(len(rows), k=1)], dtype=np.float64)


def nearest(
    queries: Float32Matrix, documents: Float32Matrix, k: int, *, places: NDArray[np.intp] | None = None
) -> NDArray[np.intp]:
    """Find the k documents nearest to each query by dot product.

    Works in blocks: memory is bounded by some 100 MiB beside the rows.

    Args:
        queries: (n, dim) float32, rows of unit length.
        documents: (m, dim) float32, rows of unit length.
        k: how many, at least 1; fewer documents give fewer.
        places: (n,) positions of the queries among the documents, where they are some of these: none is its own
            answer, and k is below m then.

    Returns:
        (n, min(k, m)) intp, the nearest first; equal scores in the order of the documents.
    """
    n_documents = len(documents)
    k = min(k, n_documents)
    found = np.empty((len(queries), k), dtype=np.intp)
    for start, end in blocks(len(queries), n_documents):
        scores = queries[start:end] @ documents.T
        if places is not None:
            scores[np.arange(end - start), places[start:end]] = -np.inf
        bounds = np.partition(scores, n_documents - k, axis=1)[:, n_documents - k]  # the k-th greatest of each
        for i, bound in enumerate(bounds):
            candidates = np.flatnonzero(scores[i] >= bound)
            found[start + i] = candidates[np.argsort(-scores[i, candidates], kind="stable")[:k]]
    return found


def blocks(n: int, n_per_row: int) -> Iterator[tuple[int, int]]:
    """Yield starts and ends of consecutive rows whose numbers together stay within a block."""
    size = max(1, _N_SCORES_BLOCK // max(n_per_row, 1))
    for start in range(0, n, size):
        yield start, min(start + size, n)


def ndcg(ranking: NDArray[np.intp], relevance: Mapping[int, float], k: int = 10) -> float:
    """Normalised discounted cumulative gain of one ranking, with linear gain; what is not judged counts 0.

    Args:
        ranking: documents, the best first; those after the k-th do not count.
        relevance: of the judged documents, one at least above 0; below 0 counts 0.
        k: where the ranking is cut.

    Returns:
        0..1.

    Raises:
        ValueError: no document is relevant.

    Source: trec_eval 9.0.7 m_ndcg_cut.c, which pytrec_eval and BEIR use: gain / log2(rank + 1).
    """
    gains = [max(relevance.get(document, 0.0), 0.0) for document in ranking[:k].tolist()]
    ideal = sorted((gain for gain in relevance.values() if gain > 0), reverse=True)[:k]
    if not ideal:
        raise ValueError("no document is relevant; nDCG has no value")
    return _discounted(gains) / _discounted(ideal)


def recall(ranking: NDArray[np.intp], relevance: Mapping[int, float], k: int = 10) -> float:
    """Share of the relevant documents that are among the first k.

    Args:
        ranking: documents, the best first.
        relevance: of the judged documents; above 0 is relevant, and one at least is.
        k: where the ranking is cut.

    Returns:
        0..1.

    Raises:
        ValueError: no document is relevant.
    """
    relevant = {document for document, gain in relevance.items() if gain > 0}
    if not relevant:
        raise ValueError("no document is relevant; recall has no value")
    return len(relevant.intersection(ranking[:k].tolist())) / len(relevant)


def _discounted(gains: list[float]) -> float:
    return math.fsum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
