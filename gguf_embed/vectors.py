"""Post-processing of embeddings in numpy: L2, MRL truncation, similarity.

It knows nothing of models, files or llama.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")

__all__ = [
    "PRECISIONS",
    "calibrate",
    "l2_normalize",
    "layer_norm",
    "quantize_embeddings",
    "restore_embeddings",
    "similarity",
    "similarity_pairwise",
    "truncate_dim",
]

Float32Matrix = NDArray[np.float32]


def l2_normalize(embeddings: Float32Matrix) -> Float32Matrix:
    """Scale every row to unit length.

    Args:
        embeddings: (n, dim) float32, finite.

    Returns:
        (n, dim) float32, a new C-contiguous array; a row of zeros stays zero.
    """
    # Summed in float64: at dim 4096 a float32 sum of squares is off by up to 1e-6.
    norms = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64))
    norms[norms == 0] = 1
    return np.ascontiguousarray(embeddings / norms[:, None], dtype=np.float32)


def layer_norm(embeddings: Float32Matrix, *, eps: float = 1e-5) -> Float32Matrix:
    """Take mean and variance out of every row, without weights, as nomic-embed-text asks before truncation.

    Args:
        embeddings: (n, n_embd) float32.
        eps: added to the variance.

    Returns:
        (n, n_embd) float32, a new array.

    Source: torch.nn.functional.layer_norm with its default eps, as on the model card of nomic-embed-text-v1.5.
    """
    centred = embeddings - embeddings.mean(axis=1, keepdims=True, dtype=np.float64)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    return np.ascontiguousarray(centred / np.sqrt(variance + eps), dtype=np.float32)


def truncate_dim(embeddings: ArrayLike, dim: int) -> Float32Matrix:
    """Keep the first `dim` components and normalise again (MRL).

    Args:
        embeddings: (n, n_embd), or (n_embd,) for one.
        dim: components to keep, 1 <= dim <= n_embd.

    Returns:
        (n, dim) or (dim,) float32, a new array of unit rows; a row of zeros stays zero.

    Raises:
        ValueError: dim is outside 1..n_embd.

    Source: Matryoshka Representation Learning, arXiv:2205.13147.
    """
    rows = _rows(embeddings)
    n_embd = rows.shape[1]
    if not 1 <= dim <= n_embd:
        raise ValueError(f"dim is {dim}; it is 1..{n_embd} here")
    cut = l2_normalize(rows[:, :dim])
    return np.asarray(cut[0] if np.ndim(embeddings) == 1 else cut, dtype=np.float32)


def similarity(a: ArrayLike, b: ArrayLike) -> Float32Matrix:
    """Cosine of every vector of `a` with every vector of `b`.

    Args:
        a: (dim,) or (n, dim).
        b: (dim,) or (m, dim).

    Returns:
        (n, m) float32 in -1..1; a single vector counts as one row.

    Raises:
        ValueError: the lengths differ, or an argument is neither a vector nor a matrix.
    """
    left, right = _rows(a), _rows(b)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"vectors of {left.shape[1]} and {right.shape[1]} components do not compare")
    return np.asarray(np.clip(l2_normalize(left) @ l2_normalize(right).T, -1, 1), dtype=np.float32)


def similarity_pairwise(a: ArrayLike, b: ArrayLike) -> NDArray[np.float32]:
    """Cosine of the first of `a` with the first of `b`, the second with the second, and so on.

    Args:
        a: (dim,) or (n, dim).
        b: the same shape as `a`.

    Returns:
        (n,) float32 in -1..1.

    Raises:
        ValueError: the shapes differ.
    """
    left, right = _rows(a), _rows(b)
    if left.shape != right.shape:
        raise ValueError(f"shapes {left.shape} and {right.shape} differ; pairs need as many rows of the same length")
    return np.asarray(np.clip(np.einsum("ij,ij->i", l2_normalize(left), l2_normalize(right)), -1, 1), dtype=np.float32)


def _rows(vectors: ArrayLike) -> Float32Matrix:
    matrix = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    if matrix.ndim != 2:
        raise ValueError(f"expected a vector or a matrix, got {matrix.ndim} dimensions")
    return matrix


def calibrate(embeddings: Float32Matrix) -> Float32Matrix:
    """Find the range of each component, for `quantize_embeddings`.

    Args:
        embeddings: (n, dim), n >= 1: what is to be quantized, or enough like it.

    Returns:
        (2, dim) float32: least and greatest of each component.

    Raises:
        ValueError: there are no rows.
    """
    if not len(embeddings):
        raise ValueError("ranges are found in rows, and there are none")
    return np.stack([embeddings.min(axis=0), embeddings.max(axis=0)]).astype(np.float32)


def quantize_embeddings(embeddings: Float32Matrix, precision: str, *, ranges: ArrayLike | None = None) -> NDArray[Any]:
    """Store embeddings in fewer bits.

    Args:
        embeddings: (n, dim) float32.
        precision: "float32", "float16", "int8", "uint8", "binary" or "ubinary".
        ranges: (2, dim) as `calibrate` gives them, for int8 and uint8; rows compare only where they were quantized
            with the same. What lies outside is taken as the nearest. None takes those of these very rows, of which
            there are two at least then.

    Returns:
        (n, dim) float32, float16, int8 or uint8; (n, ceil(dim / 8)) int8 for "binary", uint8 for "ubinary".

    Raises:
        ValueError: no matrix, no such precision, a single row for int8 and uint8 without ranges, or ranges of another
            shape.

    Source: sentence-transformers 6.2, util/quantization.py, quantize_embeddings.
    """
    if np.ndim(embeddings) != 2:
        raise ValueError(f"embeddings have {np.ndim(embeddings)} dimensions; they are a matrix, a row each")
    if precision == "float32":
        return embeddings
    if precision == "float16":
        return embeddings.astype(np.float16)
    if precision in ("binary", "ubinary"):
        packed = np.packbits(embeddings > 0, axis=-1)
        return packed if precision == "ubinary" else np.asarray(packed.astype(np.int16) - 128, dtype=np.int8)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it is one of {', '.join(PRECISIONS)}")
    if len(embeddings) == 0:
        return np.empty(embeddings.shape, dtype=precision)
    low, steps = _low_and_steps(_checked_ranges(embeddings, precision, ranges))
    levels = np.floor(np.clip((embeddings - low) / np.where(steps > 0, steps, np.float32(1)), 0, 255))
    offset, dtype = _OFFSETS[precision]
    return np.asarray(levels - offset, dtype=dtype)


def restore_embeddings(levels: NDArray[Any], *, ranges: ArrayLike) -> Float32Matrix:
    """Turn int8 or uint8 embeddings back into numbers that compare with any other embeddings.

    Levels of two components do not compare, since each has a range of its own: a search over raw levels finds four of
    five of the ten nearest, one over restored ones nearly all (scripts/precision-proof).

    Args:
        levels: (n, dim) int8 or uint8, as `quantize_embeddings` made them.
        ranges: (2, dim), those that they were made with.

    Returns:
        (n, dim) float32, each within half a step of what it was, or of the range's end where it lay outside; not of
        unit length.

    Raises:
        ValueError: another dtype, or ranges of another shape.
    """
    name = str(levels.dtype)
    if name not in _OFFSETS:
        raise ValueError(f"levels are {name}; they are int8 or uint8")
    low, steps = _low_and_steps(_checked_ranges(levels, name, ranges))
    offset, _ = _OFFSETS[name]
    return np.asarray(low + (levels.astype(np.float32) + offset + 0.5) * steps, dtype=np.float32)


_OFFSETS: dict[str, tuple[int, type[np.generic]]] = {"uint8": (0, np.uint8), "int8": (128, np.int8)}


def _low_and_steps(ranges: Float32Matrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    low, high = ranges
    return low, (high - low) / np.float32(255)


def _checked_ranges(embeddings: NDArray[Any], precision: str, ranges: ArrayLike | None) -> Float32Matrix:
    if ranges is None:
        if len(embeddings) == 1:
            raise ValueError(
                f"{precision} spreads the range of many rows and got 1; use binary or float32, or give ranges"
            )
        return calibrate(embeddings)
    known = np.asarray(ranges, dtype=np.float32)
    if known.shape != (2, embeddings.shape[1]):
        raise ValueError(f"ranges have shape {known.shape}; here it is (2, {embeddings.shape[1]})")
    if not np.isfinite(known).all() or (known[0] > known[1]).any():
        raise ValueError("ranges have a least value above the greatest, or one that is not finite")
    return known
