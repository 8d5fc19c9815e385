"""Finds texts that begin alike, so that what they share is computed once: pure functions over token lists.

It must not know llama.cpp, texts or what a prefix means.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Group", "common_length", "group_by_prefix"]

Tokens = NDArray[np.int32]

# A shorter prefix is not worth a batch of its own.
_SHORTEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Texts that begin alike.

    Attributes:
        n_prefix: tokens that they share and that are computed once, 0 for none.
        members: positions of the texts, at least one, in rising order.
    """

    n_prefix: int
    members: tuple[int, ...]


@dataclass(slots=True)
class _Interval:
    """Neighbours in sorted order that share n_common tokens: a node of their prefix tree, while it is walked."""

    n_common: int
    first: int
    gain: int = 0
    groups: list[tuple[int, int, int]] = field(default_factory=list)  # n_prefix, first and last position


def group_by_prefix(
    texts: Sequence[Tokens],
    *,
    seen: Sequence[Tokens] = (),
    kept: Sequence[Tokens] = (),
    n_prefix_max: int,
    n_tokens_decode: int,
) -> list[Group]:
    """Group texts by the prefixes that save the most tokens.

    Of the tree of common prefixes, each branch is cut where (tokens shared) x (texts that share them) is largest,
    less what it costs to compute the prefix and to decode its texts apart from the others.

    Args:
        texts: token lists, each at least one token long; its last token is never part of a prefix.
        seen: earlier texts; what they share with these is likely to come again.
        kept: prefixes that cost nothing here, since they are wanted by later calls too: a prompt's.
        n_prefix_max: longest prefix.
        n_tokens_decode: what one more decode costs, in tokens.

    Returns:
        Groups that hold each text exactly once; the group without a prefix first, where there is one.
    """
    items = _sorted_items(texts, seen, kept, n_prefix_max)
    groups: list[Group] = []
    alone = set(range(len(texts)))
    for n_prefix, first, last in _best_cuts(items, len(texts), n_tokens_decode):
        members = tuple(sorted(item.index for item in items[first : last + 1] if item.kind == "text"))
        groups.append(Group(n_prefix=n_prefix, members=members))
        alone.difference_update(members)
    return [Group(n_prefix=0, members=tuple(sorted(alone))), *groups] if alone else groups


@dataclass(frozen=True, slots=True)
class _Item:
    kind: str  # "text", "seen" or "kept"
    index: int
    prefix: Tokens


def _sorted_items(
    texts: Sequence[Tokens], seen: Sequence[Tokens], kept: Sequence[Tokens], n_prefix_max: int
) -> list[_Item]:
    """Everything that may share a prefix, so that what begins alike stands side by side."""
    items = [_Item("text", index, ids[: min(len(ids) - 1, n_prefix_max)]) for index, ids in enumerate(texts)]
    items += [_Item("seen", index, ids[:n_prefix_max]) for index, ids in enumerate(seen)]
    items += [_Item("kept", index, ids[:n_prefix_max]) for index, ids in enumerate(kept)]
    # Big-endian bytes sort as the numbers do.
    return sorted(items, key=lambda item: item.prefix.astype(">i4").tobytes())


def _best_cuts(items: list[_Item], n_texts: int, n_tokens_decode: int) -> list[tuple[int, int, int]]:
    """Walk the tree of common prefixes from its leaves, and keep the better of each node and what is below it."""
    texts, seen, kept = (_running_count(items, kind) for kind in ("text", "seen", "kept"))

    def count(counts: list[int], first: int, last: int) -> int:
        return counts[last + 1] - counts[first]

    def close(node: _Interval, last: int) -> None:
        n_members = count(texts, node.first, last)
        if node.n_common < _SHORTEST or not n_members:
            return
        is_kept = count(kept, node.first, last) > 0
        gain = node.n_common * (n_members if is_kept else n_members + count(seen, node.first, last) - 1)
        gain -= n_tokens_decode * ((not is_kept) + (n_members < n_texts))
        if gain > max(0, node.gain):
            node.gain, node.groups = gain, [(node.n_common, node.first, last)]

    root = _Interval(0, 0)
    stack = [root]
    for position, n_common in enumerate([*_common_with_next(items), 0]):
        first, below = position, None
        while n_common < stack[-1].n_common:
            below = stack.pop()
            close(below, position)
            first = below.first
            if n_common <= stack[-1].n_common:
                stack[-1].gain += below.gain
                stack[-1].groups += below.groups
        if n_common > stack[-1].n_common:
            stack.append(_Interval(n_common, first, below.gain if below else 0, list(below.groups) if below else []))
    return root.groups


def _running_count(items: list[_Item], kind: str) -> list[int]:
    return [0, *itertools.accumulate(int(item.kind == kind) for item in items)]


def _common_with_next(items: list[_Item]) -> Iterator[int]:
    return (common_length(one.prefix, other.prefix) for one, other in itertools.pairwise(items))


def common_length(one: Tokens, other: Tokens) -> int:
    """Count the tokens with which both begin."""
    n = min(len(one), len(other))
    different = np.flatnonzero(one[:n] != other[:n])
    return int(different[0]) if len(different) else n
