"""batching.py: laws of packing and splitting."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gguf_embed.engine.batching import level, pack, split

LENGTHS = st.lists(st.integers(1, 700), max_size=60)
TOKENS = st.integers(1, 800)
SEQUENCES = st.integers(1, 70)


@given(LENGTHS, TOKENS, SEQUENCES)
def test_each_text_is_decoded_exactly_once(lengths, n_tokens_max, n_seq_max):
    """No position is lost or packed twice."""
    batches = pack(lengths, n_tokens_max=n_tokens_max, n_seq_max=n_seq_max)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))


@given(LENGTHS, TOKENS, SEQUENCES)
@example([5, 5], 10, 2)
@example([5, 5], 9, 2)
@example([1, 1, 1], 3, 2)
def test_a_batch_keeps_both_budgets(lengths, n_tokens_max, n_seq_max):
    """At most n_seq_max texts and n_tokens_max tokens; a text that is longer alone stands alone."""
    for batch in pack(lengths, n_tokens_max=n_tokens_max, n_seq_max=n_seq_max):
        assert 1 <= len(batch) <= n_seq_max
        assert sum(lengths[index] for index in batch) <= n_tokens_max or len(batch) == 1


@given(LENGTHS, TOKENS, SEQUENCES)
@example([5, 5], 10, 2)
@example([1, 1, 1], 9, 2)
def test_a_batch_is_full_before_the_next_begins(lengths, n_tokens_max, n_seq_max):
    """The first text of a batch had no room in the one before, so no decode is wasted."""
    batches = pack(lengths, n_tokens_max=n_tokens_max, n_seq_max=n_seq_max)
    for full, following in pairwise(batches):
        n_tokens = sum(lengths[index] for index in full) + lengths[following[0]]
        assert len(full) == n_seq_max or n_tokens > n_tokens_max


@given(LENGTHS, TOKENS, SEQUENCES)
def test_the_longest_texts_come_first(lengths, n_tokens_max, n_seq_max):
    """What cannot run fails before hours of what can."""
    order = [index for batch in pack(lengths, n_tokens_max=n_tokens_max, n_seq_max=n_seq_max) for index in batch]
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)


@given(LENGTHS, TOKENS, SEQUENCES)
def test_the_same_lengths_give_the_same_batches(lengths, n_tokens_max, n_seq_max):
    """Packing has no memory, and texts of one length keep their order."""
    batches = pack(lengths, n_tokens_max=n_tokens_max, n_seq_max=n_seq_max)
    assert pack(tuple(lengths), n_tokens_max=n_tokens_max, n_seq_max=n_seq_max) == batches
    order = [index for batch in batches for index in batch]
    assert order == sorted(order, key=lambda index: (-lengths[index], index))


def test_short_texts_share_a_decode():
    """Worked by hand: 6 alone is too long, 4 fills a batch, 2 and 1 share one."""
    assert pack([1, 6, 2, 4], n_tokens_max=4, n_seq_max=9) == [(1,), (3,), (2, 0)]


def test_nothing_makes_no_batch():
    """An empty batch would abort llama.cpp."""
    assert pack([], n_tokens_max=1, n_seq_max=1) == []


@pytest.mark.parametrize("length", [0, -3])
def test_a_text_without_tokens_is_refused(length):
    """The message names the text."""
    with pytest.raises(ValueError, match=f"text 1 has {length} tokens"):
        pack([3, length], n_tokens_max=8, n_seq_max=8)


@pytest.mark.parametrize(("n_tokens_max", "n_seq_max"), [(0, 1), (1, 0), (-1, 1)])
def test_a_limit_below_one_is_refused(n_tokens_max, n_seq_max):
    """A budget of nothing would never end."""
    with pytest.raises(ValueError, match="at least 1"):
        pack([1], n_tokens_max=n_tokens_max, n_seq_max=n_seq_max)


@given(st.integers(1, 5000), TOKENS)
def test_the_parts_of_a_text_are_the_text(n_tokens, n_tokens_max):
    """Slices cover the text in order, and only the last may be shorter."""
    tokens = list(range(n_tokens))
    parts = [tokens[part] for part in split(n_tokens, n_tokens_max=n_tokens_max)]
    assert [token for part in parts for token in part] == tokens
    assert all(len(part) == n_tokens_max for part in parts[:-1])
    assert 1 <= len(parts[-1]) <= n_tokens_max


def test_a_slice_ends_with_the_text():
    """The last slice says its true end, so that its length can be asked."""
    assert list(split(5, n_tokens_max=2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]


@given(st.lists(st.integers(1, 256), min_size=1, max_size=60), st.integers(1, 4))
def test_levelling_keeps_texts_and_limits(lengths, n_side):
    """Each text comes once, no batch is larger than the largest before, and no more run than a multiple of n_side."""
    batches = pack(lengths, n_tokens_max=256, n_seq_max=8)
    even = level(batches, lengths, n_side=n_side)
    assert sorted(index for batch in even for index in batch) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in batch) for batch in even]
    assert max(sums) <= max(sum(lengths[index] for index in batch) for batch in batches)
    assert max(map(len, even)) <= 8
    assert all(even)
    assert len(even) <= -(-len(batches) // n_side) * n_side


def test_levelled_batches_end_together():
    """What would have been a full batch and a small one are two of a size."""
    lengths = [40] * 8
    assert [len(batch) for batch in pack(lengths, n_tokens_max=256, n_seq_max=64)] == [6, 2]
    assert [len(batch) for batch in level([(0, 1, 2, 3, 4, 5), (6, 7)], lengths, n_side=2)] == [4, 4]
    assert [len(batch) for batch in level([tuple(range(8))], lengths, n_side=2)] == [4, 4]
