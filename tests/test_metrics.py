"""quality/metrics.py: figures that a person can work out, and laws that hold for any."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gguf_embed.quality import metrics
from gguf_embed.quality.metrics import cosines, ndcg, nearest, pairwise_cosines, recall
from gguf_embed.vectors import l2_normalize

ROWS = arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 8)), elements=st.integers(-4, 4).map(float))
RELEVANCE = st.dictionaries(st.integers(0, 15), st.sampled_from([-1.0, 0.0, 1.0, 2.0, 3.0]), min_size=1).filter(
    lambda judged: any(gain > 0 for gain in judged.values())
)


def matrix(*rows):
    return np.array(rows, dtype=np.float32)


def ranking(*documents):
    return np.array(documents, dtype=np.intp)


# Cosines


def test_cosines_are_row_by_row():
    """The angle alone counts: 0, 45, 90 and 180 degrees; a row of zeros is like nothing."""
    a = matrix([1, 0], [2, 0], [3, 0], [1, 1], [0, 0])
    b = matrix([5, 0], [1, 1], [0, 7], [-1, -1], [1, 0])
    assert cosines(a, b) == pytest.approx([1, math.sqrt(0.5), 0, -1, 0])
    assert cosines(a, b).dtype == np.float64


def test_cosines_are_of_equal_shapes():
    """Vectors cut to different dims do not compare."""
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(1, 3\) differ"):
        cosines(matrix([1, 0]), matrix([1, 0, 0]))


@given(ROWS)
def test_cosines_lie_within_one(rows):
    """Rounding takes none out of -1..1, and each row is nearest to itself."""
    found = cosines(rows, rows)
    assert (np.abs(found) <= 1).all()
    assert found == pytest.approx(np.any(rows != 0, axis=1).astype(float))


def test_pairwise_cosines_are_of_each_pair_once():
    """Three rows make three pairs: first with second, first with third, second with third."""
    rows = l2_normalize(matrix([1, 0], [1, 1], [0, 1]))
    assert pairwise_cosines(rows * 3) == pytest.approx(pairwise_cosines(rows))
    assert pairwise_cosines(rows) == pytest.approx([math.sqrt(0.5), 0, math.sqrt(0.5)], abs=1e-7)


def test_of_many_rows_those_at_even_distances_are_taken():
    """The same ones for any matrix of as many rows, the first and the last among them."""
    rows = l2_normalize(np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32))
    found = pairwise_cosines(rows, max_rows=12)
    assert np.array_equal(found, pairwise_cosines(rows[np.arange(0, 100, 9)]))
    assert len(found) == 12 * 11 / 2


# Ranking


def test_the_nearest_come_first():
    """Of three documents the one in the query's direction, then the one beside it."""
    documents = l2_normalize(matrix([0, 1], [1, 0], [1, 1]))
    assert nearest(matrix([1, 0], [0, 1]), documents, 2).tolist() == [[1, 2], [0, 2]]
    assert nearest(matrix([1, 0]), documents, 10).tolist() == [[1, 2, 0]]


def test_equal_scores_keep_the_order_of_the_documents():
    """Also where the cut falls among them."""
    documents = matrix([0, 1], *[[1, 0]] * 7)
    assert nearest(matrix([1, 0]), documents, 3).tolist() == [[1, 2, 3]]


def test_a_query_that_is_a_document_is_not_its_own_answer():
    """Where it stands among the documents is said."""
    rows = l2_normalize(matrix([1, 0], [1, 1], [0, 1]))
    assert nearest(rows[1:], rows, 2, places=ranking(1, 2)).tolist() == [[0, 2], [1, 0]]


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 30))
def test_blocks_change_nothing(seed, size, k):
    """However few scores fit into memory at once, the ranking is that of a full sort."""
    random = np.random.default_rng(seed)
    queries, documents = (random.integers(-2, 3, size=(n, 3)).astype(np.float32) for n in (5, 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_N_SCORES_BLOCK", size)
        found = nearest(queries, documents, k)
    expected = np.argsort(-(queries.astype(float) @ documents.astype(float).T), axis=1, kind="stable")[:, :k]
    assert np.array_equal(found, expected)


# nDCG and recall


def test_ndcg_by_hand():
    """Gains 3, 2, 0, 0, 1, 2 and, ideally, 3, 3, 2, 2, 1: linear, over log2 of the place plus one."""
    relevance = {0: 3.0, 1: 2.0, 2: 3.0, 3: 0.0, 4: 1.0, 5: 2.0}
    dcg = 3 + 2 / math.log2(3) + 0 + 0 + 1 / math.log2(6) + 2 / math.log2(7)
    ideal = 3 + 3 / math.log2(3) + 2 / math.log2(4) + 2 / math.log2(5) + 1 / math.log2(6)
    assert ndcg(ranking(0, 1, 3, 9, 4, 5), relevance) == pytest.approx(dcg / ideal, abs=1e-12)
    assert dcg / ideal == pytest.approx(0.75075, abs=1e-5)


def test_ndcg_is_cut():
    """What comes after the k-th counts for nothing, and the ideal is cut as well."""
    relevance = {0: 1.0, 1: 1.0, 2: 1.0}
    assert ndcg(ranking(0, 9, 1), relevance, 2) == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert ndcg(ranking(0, 1), relevance, 2) == 1
    assert ndcg(ranking(*range(20, 30), 0), relevance) == 0


def test_a_judgement_below_zero_counts_as_none():
    """As trec_eval has it: such a document neither costs nor is ideal."""
    assert ndcg(ranking(1, 0), {0: 1.0, 1: -1.0}) == pytest.approx(1 / math.log2(3))


def test_recall_by_hand():
    """Two of three relevant documents are among the first ten; what is judged 0 is not relevant."""
    relevance = {0: 1.0, 1: 2.0, 2: 1.0, 3: 0.0}
    assert recall(ranking(3, 1, 9, 0), relevance) == pytest.approx(2 / 3)
    assert recall(ranking(3, 1, 9, 0), relevance, 2) == pytest.approx(1 / 3)
    assert recall(ranking(*range(10, 20), 0), relevance) == 0


@pytest.mark.parametrize("figure", [ndcg, recall])
def test_without_a_relevant_document_there_is_no_figure(figure):
    """Such queries are left out before."""
    with pytest.raises(ValueError, match="no document is relevant"):
        figure(ranking(0), {0: 0.0})


@given(st.permutations(range(16)), RELEVANCE)
def test_the_ideal_ranking_is_one_and_none_is_better(order, relevance):
    """By falling relevance both figures are at their greatest, and they lie in 0..1."""
    ideal = ranking(*sorted(order, key=lambda document: -relevance.get(document, 0)))
    assert ndcg(ideal, relevance) == pytest.approx(1)
    for figure in (ndcg, recall):
        assert 0 <= figure(ranking(*order), relevance) <= figure(ideal, relevance) + 1e-12


@given(st.permutations(range(16)), RELEVANCE, st.integers(0, 14))
def test_moving_a_relevant_document_up_never_costs(order, relevance, place):
    """Swapping two neighbours so that the more relevant goes first raises nDCG, or leaves it."""
    better = list(order)
    if relevance.get(better[place], 0) < relevance.get(better[place + 1], 0):
        better[place], better[place + 1] = better[place + 1], better[place]
    assert ndcg(ranking(*better), relevance) >= ndcg(ranking(*order), relevance) - 1e-12
