"""Packs token lists into decodes and cuts long ones: pure functions over lengths.

It must not know llama.cpp, texts or vectors.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

__all__ = ["level", "pack", "split"]


def pack(lengths: Sequence[int], *, n_tokens_max: int, n_seq_max: int) -> list[tuple[int, ...]]:
    """Group texts of similar length into decodes of a bounded number of tokens.

    Longest first, so that what cannot run fails before hours of what can. A text longer than n_tokens_max gets a
    decode of its own.

    Args:
        lengths: tokens of each text, each at least 1.
        n_tokens_max: most tokens of a decode, at least 1.
        n_seq_max: most texts of a decode, at least 1.

    Returns:
        Positions in `lengths`, each exactly once; the same lengths give the same batches.

    Raises:
        ValueError: a length or a limit is below 1.
    """
    if n_tokens_max < 1 or n_seq_max < 1:
        raise ValueError(f"n_tokens_max {n_tokens_max} and n_seq_max {n_seq_max} are at least 1")
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    n_tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[index] < 1:
            raise ValueError(f"text {index} has {lengths[index]} tokens; an empty text still has its EOS")
        if batch and (n_tokens + lengths[index] > n_tokens_max or len(batch) == n_seq_max):
            batches.append(tuple(batch))
            batch, n_tokens = [], 0
        batch.append(index)
        n_tokens += lengths[index]
    if batch:
        batches.append(tuple(batch))
    return batches


def level(batches: Sequence[Sequence[int]], lengths: Sequence[int], *, n_side: int) -> list[tuple[int, ...]]:
    """Share texts out anew so that batches that run side by side end together.

    Args:
        batches: as `pack` made them.
        lengths: tokens of each text.
        n_side: how many run at a time.

    Returns:
        The same texts in a multiple of n_side batches, as even as longest-first makes them; none is larger than the
        largest before, in tokens or in texts. The batches themselves where that cannot be.

    Source: Graham's longest processing time rule, 1969.
    """
    n_batches = -(-len(batches) // n_side) * n_side
    texts = sorted((index for batch in batches for index in batch), key=lambda index: -lengths[index])
    n_tokens_max = max(sum(lengths[index] for index in batch) for batch in batches)
    n_texts_max = max(map(len, batches))
    shares: list[list[int]] = [[] for _ in range(min(n_batches, len(texts)))]
    heap = [(0, number) for number in range(len(shares))]
    for index in texts:
        n_tokens, number = heapq.heappop(heap)
        shares[number].append(index)
        if len(shares[number]) > n_texts_max or n_tokens + lengths[index] > n_tokens_max:
            return [tuple(batch) for batch in batches]
        if len(shares[number]) < n_texts_max:
            heapq.heappush(heap, (n_tokens + lengths[index], number))
        if not heap:
            heap = [(n_tokens_max, number)]  # all are full; what is left, if anything, shows that it cannot be
    return [tuple(share) for share in shares]


def split(n_tokens: int, *, n_tokens_max: int) -> Iterator[slice]:
    """Cut one text into consecutive decodes.

    Args:
        n_tokens: tokens of the text, at least 1.
        n_tokens_max: most tokens of a decode, at least 1.

    Yields:
        Slices that cover 0..n_tokens in order; only the last may be shorter.
    """
    for start in range(0, n_tokens, n_tokens_max):
        yield slice(start, min(start + n_tokens_max, n_tokens))
