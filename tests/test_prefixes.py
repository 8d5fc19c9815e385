"""prefixes.py: laws of grouping texts that begin alike."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gguf_embed.engine.prefixes import Group, common_length, group_by_prefix

SHORTEST = 8  # a prefix below this is not worth a batch
N_VOCAB = 151_936
ANY_LENGTH = 10_000

# Runs of few tokens, so that much begins alike; ids of one, two and three bytes.
TOKEN = st.sampled_from([0, 1, 255, 256, 65_536, 151_935])
RUNS = st.lists(st.tuples(TOKEN, st.integers(1, 12)), min_size=1, max_size=5)
TEXT = RUNS.map(lambda runs: tuple(token for token, n in runs for _ in range(n)))
TEXTS = st.lists(TEXT, max_size=12)
LENGTH_MAX = st.integers(1, 70)
COST = st.integers(0, 80)


def arrays(texts):
    return [np.array(ids, dtype=np.int32) for ids in texts]


def group(texts, *, seen=(), kept=(), n_prefix_max=ANY_LENGTH, n_tokens_decode=0):
    return group_by_prefix(
        arrays(texts),
        seen=arrays(seen),
        kept=arrays(kept),
        n_prefix_max=n_prefix_max,
        n_tokens_decode=n_tokens_decode,
    )


def saved(prefix, texts, seen, kept, cost):
    """Tokens that one cut saves, by the definition alone: (gain, members)."""

    def is_below(ids):
        return ids[: len(prefix)] == prefix

    members = [index for index, ids in enumerate(texts) if len(ids) > len(prefix) and is_below(ids)]
    is_kept = any(is_below(ids) for ids in kept)
    n_times = len(members) + (0 if is_kept else sum(map(is_below, seen)) - 1)
    n_decodes = (not is_kept) + (len(members) < len(texts))
    return len(prefix) * n_times - cost * n_decodes, members


def most_saved(texts, *, seen=(), kept=(), n_prefix_max=ANY_LENGTH, n_tokens_decode=0):
    """The best of all ways to cut, by trying each: at every common beginning, either here or further down."""

    def best(prefix):
        gain, members = saved(prefix, texts, seen, kept, n_tokens_decode)
        if not members or len(prefix) > n_prefix_max:
            return 0
        following = {texts[index][len(prefix)] for index in members}
        further = sum(best((*prefix, token)) for token in following)
        return max(further, gain if len(prefix) >= SHORTEST else 0)

    return best(())


# Who is in a group


@given(TEXTS, TEXTS, TEXTS, LENGTH_MAX, COST)
def test_each_text_is_in_exactly_one_group(texts, seen, kept, n_prefix_max, cost):
    """No position is lost or grouped twice, and members rise."""
    groups = group(texts, seen=seen, kept=kept, n_prefix_max=n_prefix_max, n_tokens_decode=cost)
    assert sorted(member for one in groups for member in one.members) == list(range(len(texts)))
    assert all(one.members and list(one.members) == sorted(one.members) for one in groups)


@given(TEXTS, TEXTS, TEXTS, LENGTH_MAX, COST)
@example([(7,) * 9] * 2, [], [], 70, 0)
@example([(7,) * 9, (7,) * 8], [], [], 70, 0)
@example([(7,)], [], [(7,) * 20], 70, 0)
def test_members_share_their_prefix_and_have_more(texts, seen, kept, n_prefix_max, cost):
    """A prefix is really theirs, leaves each of them a token, and keeps both bounds."""
    for one in group(texts, seen=seen, kept=kept, n_prefix_max=n_prefix_max, n_tokens_decode=cost):
        beginnings = {texts[member][: one.n_prefix] for member in one.members}
        assert len(beginnings) == 1 or not one.n_prefix
        assert all(one.n_prefix < len(texts[member]) for member in one.members)
        assert not one.n_prefix or SHORTEST <= one.n_prefix <= n_prefix_max


@given(TEXTS, TEXTS, TEXTS, COST)
def test_the_group_without_a_prefix_comes_first(texts, seen, kept, cost):
    """There is at most one."""
    groups = group(texts, seen=seen, kept=kept, n_tokens_decode=cost)
    assert not any(one.n_prefix == 0 for one in groups[1:])


@given(TEXTS, TEXTS, TEXTS, COST, st.randoms(use_true_random=False))
def test_order_does_not_matter(texts, seen, kept, cost, rng):
    """Texts in another order are grouped with the same ones, under the same prefixes."""

    def together(order):
        groups = group([texts[index] for index in order], seen=seen, kept=kept, n_tokens_decode=cost)
        return {(one.n_prefix, frozenset(order[member] for member in one.members)) for one in groups}

    order = rng.sample(range(len(texts)), len(texts))
    assert together(order) == together(range(len(texts)))


@given(TEXTS, TEXTS, COST, st.randoms(use_true_random=False))
def test_order_of_what_was_earlier_does_not_matter(texts, others, cost, rng):
    """Earlier texts and kept prefixes are sets."""
    shuffled = rng.sample(others, len(others))
    assert group(texts, seen=others, n_tokens_decode=cost) == group(texts, seen=shuffled, n_tokens_decode=cost)
    assert group(texts, kept=others, n_tokens_decode=cost) == group(texts, kept=shuffled, n_tokens_decode=cost)


# What a grouping saves


@given(TEXTS, TEXTS, TEXTS, LENGTH_MAX, COST)
@example([(1,) * 9 + (2,) * 9 + (n,) for n in range(3)] + [(1,) * 9 + (3,) * 9 + (n,) for n in range(3)], [], [], 70, 5)
@example([(1,) * 30 + (n,) for n in range(3)] + [(5,)], [], [], 70, 30)
def test_no_other_grouping_saves_more(texts, seen, kept, n_prefix_max, cost):
    """Of all ways to cut the tree of beginnings, the best one is taken; one cut is a way."""
    options = {"seen": seen, "kept": kept, "n_prefix_max": n_prefix_max, "n_tokens_decode": cost}
    total = 0
    for one in group(texts, **options):
        if one.n_prefix:
            prefix = texts[one.members[0]][: one.n_prefix]
            gain, members = saved(prefix, texts, seen, kept, cost)
            assert gain > 0
            assert list(one.members) == members  # whoever begins so is in it
            total += gain
    assert total == most_saved(texts, **options)


def test_texts_that_differ_in_the_last_token():
    """All but the last token is computed once."""
    texts = [(*range(50), token) for token in range(100, 140)]
    assert group(texts, n_tokens_decode=64) == [Group(n_prefix=50, members=tuple(range(40)))]


def test_equal_texts_keep_their_last_token():
    """What pools the last token has to compute it for each text."""
    assert group([tuple(range(20))] * 3) == [Group(n_prefix=19, members=(0, 1, 2))]


def test_a_text_that_is_a_prefix_of_others_gives_up_its_last_token():
    """Nine tokens that begin two longer texts share eight with them."""
    texts = [tuple(range(9)), (*range(9), 40, 41), (*range(9), 50)]
    assert group(texts[1:]) == [Group(n_prefix=9, members=(0, 1))]
    assert group(texts) == [Group(n_prefix=8, members=(0, 1, 2))]


def test_a_header_within_a_header():
    """Worked by hand: two sections of 20 tokens each beat the 10 that all have."""
    texts = [(*[1] * 10, *[section] * 10, n) for section in (2, 3) for n in range(4)]
    sections = [Group(n_prefix=20, members=(0, 1, 2, 3)), Group(n_prefix=20, members=(4, 5, 6, 7))]
    assert group(texts) == sections  # 2 * 20 * 3 against 10 * 7
    assert group(texts, n_tokens_decode=20) == [Group(n_prefix=10, members=tuple(range(8)))]  # 120 - 80 against 70 - 20


@pytest.mark.parametrize("n_prefix", [SHORTEST - 1, SHORTEST])
def test_the_shortest_prefix(n_prefix):
    """Below eight tokens nothing is shared, however many texts begin so and whatever is kept."""
    texts = [(*[3] * n_prefix, *[token] * 5) for token in range(10, 60)]
    is_shared = n_prefix == SHORTEST
    assert any(one.n_prefix for one in group(texts)) is is_shared
    assert any(one.n_prefix for one in group(texts, kept=[(3,) * n_prefix])) is is_shared


def test_texts_of_one_token():
    """They have nothing to share, not even with a kept prefix."""
    assert group([(5,)] * 4, kept=[(5,) * 20], seen=[(5,) * 20] * 9) == [Group(n_prefix=0, members=(0, 1, 2, 3))]


def test_nothing_makes_no_group():
    """Earlier texts and kept prefixes are no texts."""
    assert group([]) == []
    assert group([], seen=[(1,) * 20] * 2, kept=[(1,) * 20]) == []


# What is kept, what was seen


@pytest.mark.parametrize(("cost", "is_worth_it"), [(19, True), (20, False)])
def test_a_prefix_is_worth_more_than_its_decode(cost, is_worth_it):
    """Two texts save 20 tokens, and computing them costs one more decode."""
    groups = group([(*[1] * 20, 2, 2), (*[1] * 20, 3, 3)], n_tokens_decode=cost)
    assert any(one.n_prefix for one in groups) is is_worth_it


@pytest.mark.parametrize(("cost", "is_worth_it"), [(9, True), (10, False)])
def test_apart_from_others_costs_a_decode_too(cost, is_worth_it):
    """Where other texts stay outside, the group takes two more decodes: its prefix's and its own."""
    groups = group([(*[1] * 20, 2, 2), (*[1] * 20, 3, 3), (9, 9, 9)], n_tokens_decode=cost)
    assert any(one.n_prefix for one in groups) is is_worth_it


@pytest.mark.parametrize("cost", [0, 64, 1000])
def test_a_kept_prefix_costs_nothing(cost):
    """One text alone takes it, whatever a decode costs."""
    text, prefix = (*[1] * 20, 5, 6), (1,) * 20
    assert group([text], kept=[prefix], n_tokens_decode=cost) == [Group(n_prefix=20, members=(0,))]
    assert group([text], kept=[(2,) * 20], n_tokens_decode=cost) == [Group(n_prefix=0, members=(0,))]


def test_part_of_a_kept_prefix_is_kept():
    """The first tokens of a longer one need not be computed either."""
    assert group([(*[1] * 20, 5, 6)], kept=[(*[1] * 20, 7, 7, 7)]) == [Group(n_prefix=20, members=(0,))]


@pytest.mark.parametrize(("n_seen", "is_worth_it"), [(0, False), (1, False), (2, False), (3, False), (4, True)])
def test_what_was_seen_comes_again(n_seen, is_worth_it):
    """One text of 20 shared tokens pays for a decode of 64 after four others that began so."""
    groups = group([(*[1] * 20, 5)], seen=[(*[1] * 20, 9, n) for n in range(n_seen)], n_tokens_decode=64)
    assert groups == [Group(n_prefix=20 if is_worth_it else 0, members=(0,))]


def test_what_was_seen_alone_is_no_reason():
    """A beginning that no text has is not computed for the future."""
    assert group([(9,) * 30], seen=[(1,) * 40] * 16) == [Group(n_prefix=0, members=(0,))]


# Size


def in_one_second(texts, **options):
    begun = time.perf_counter()
    groups = group(texts, **options)
    assert time.perf_counter() - begun < 1
    return groups


def tokens_of(rng, n):
    return tuple(rng.randrange(N_VOCAB) for _ in range(n))


def test_a_window_of_texts_takes_no_time():
    """1,024 texts of 200 tokens that begin alike in every depth are grouped in well under a second."""
    rng = random.Random(0)
    header = tokens_of(rng, 200)
    texts = [(*header[: rng.randrange(200)], *tokens_of(rng, 200))[:200] for _ in range(1024)]
    groups = in_one_second(texts, n_tokens_decode=64)
    assert max(one.n_prefix for one in groups) > SHORTEST


def test_a_chain_takes_no_time():
    """1,024 texts of which each begins the next are no deeper than the tree is walked."""
    header = tokens_of(random.Random(1), 1024)
    groups = in_one_second([header[: n + 1] for n in range(1024)], n_tokens_decode=64)
    [prefix] = [one.n_prefix for one in groups if one.n_prefix]
    assert 400 < prefix < 600  # L * (1024 - L) is largest in the middle


def test_pairs_at_every_depth_take_no_time():
    """A tree as deep as it is wide: each depth has a pair of its own, and all pairs are groups."""
    spine = tokens_of(random.Random(2), 512)
    texts = [(*spine[: n + 1], *[n] * 600, tail) for n in range(512) for tail in (1, 2)]
    groups = in_one_second(texts)
    assert len(groups) == 512
    assert all(len(one.members) == 2 for one in groups)


# Beginnings


@given(st.lists(TOKEN, max_size=30), st.lists(TOKEN, max_size=30), st.lists(TOKEN, max_size=30))
def test_common_length_is_the_longest_common_beginning(shared, one, other):
    """As many tokens are alike, and the next ones are not."""
    one, other = [*shared, *one], [*shared, *other]
    n_common = common_length(*arrays([one, other]))
    assert n_common >= len(shared)
    assert one[:n_common] == other[:n_common]
    assert one[n_common : n_common + 1] != other[n_common : n_common + 1] or n_common == len(one) == len(other)
    assert n_common == common_length(*arrays([other, one]))


@given(st.lists(TEXT, min_size=2, max_size=12))
def test_ids_of_any_size_are_told_apart(texts):
    """Shifting every id by a constant changes no group: only which tokens are equal counts."""
    largest = max(token for ids in texts for token in ids)
    shifted = [tuple(token + N_VOCAB - 1 - largest for token in ids) for ids in texts]
    assert {(one.n_prefix, one.members) for one in group(texts)} == {
        (one.n_prefix, one.members) for one in group(shifted)
    }


def test_neighbours_in_the_vocabulary_do_not_share():
    """Ids that agree in some of their bytes are different tokens."""
    for one, other in pairwise((0, 1, 256, 257, 65_536, 65_792, 151_935)):
        texts = [(*[one] * 10, 2), (*[one] * 9, other, 2)]
        assert group(texts) == [Group(n_prefix=9, members=(0, 1))]
