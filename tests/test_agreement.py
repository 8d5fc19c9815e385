"""agreement.py: figures that a person can check by eye, and laws for the rest."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_embed.quality import agreement, metrics
from gguf_embed.quality.agreement import agree, neighbours, overlap, rank_correlation


@pytest.fixture
def rows():
    return np.random.default_rng(7).standard_normal((40, 16)).astype(np.float32)


def slow_neighbours(rows, k):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scores = unit @ unit.T
    return [sorted((j for j in range(len(rows)) if j != i), key=lambda j: (-scores[i, j], j))[:k]
            for i in range(len(rows))]  # fmt: skip


def test_neighbours_are_those_of_a_full_sort(rows):
    """The k nearest others, the nearest first, and never the row itself."""
    found = neighbours(rows, 5)
    assert found.dtype == np.intp
    assert found.tolist() == slow_neighbours(rows, 5)


def test_neighbours_do_not_hang_on_the_block_size(rows, monkeypatch):
    """Blocks of 3 rows give what one block gives."""
    whole = neighbours(rows, 10)
    monkeypatch.setattr(metrics, "_N_SCORES_BLOCK", 3 * len(rows))
    assert neighbours(rows, 10).tolist() == whole.tolist()


def test_equal_cosines_go_by_position():
    """Of rows that are as near, the first come first."""
    rows = np.array([[1, 0], [0, 1], [0, 1], [0, 1], [1, 0]], dtype=np.float32)
    assert neighbours(rows, 3).tolist() == [[4, 1, 2], [2, 3, 0], [1, 3, 0], [1, 2, 0], [0, 1, 2]]


def test_lengths_of_rows_do_not_count(rows):
    """Neighbours are by cosine."""
    assert neighbours(rows * np.arange(1, 41)[:, None], 5).tolist() == neighbours(rows, 5).tolist()


@pytest.mark.parametrize("k", [0, 40])
def test_k_has_bounds(rows, k):
    """There is no neighbour beside the others."""
    with pytest.raises(ValueError, match=r"1\.\.39"):
        neighbours(rows, k)


def test_overlap_counts_what_both_have():
    """In whatever order: 2 of 3 and 1 of 3 are a half."""
    a, b = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 1, 9], [6, 8, 9]])
    assert overlap(a, b) == pytest.approx(0.5)
    assert overlap(a, a[:, ::-1]) == 1
    with pytest.raises(ValueError, match="do not compare"):
        overlap(a, b[:, :2])


def test_rank_correlation_with_ties():
    """As scipy.stats.spearmanr([1, 2, 2, 4, 5], [2, 1, 3, 3, 9]) has it."""
    assert rank_correlation([1, 2, 2, 4, 5], [2, 1, 3, 3, 9]) == pytest.approx(0.7631578947368421)


def test_rank_correlation_is_of_the_order_alone():
    """Any rising function gives 1, any falling one -1; a constant has none."""
    x = np.linspace(-2, 3, 50)
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert rank_correlation(x, -(x**3)) == pytest.approx(-1)
    assert np.isnan(rank_correlation(x, np.ones(50)))
    assert np.isnan(rank_correlation([1], [1]))


def test_a_matrix_agrees_with_itself(rows):
    """Everything is 1, at any length of the rows."""
    found = agree(rows, rows * 3)
    assert (found.mean, found.least) == (pytest.approx(1), pytest.approx(1))
    assert (found.neighbours_kept, found.rank_correlation) == (1, pytest.approx(1))
    assert found.n_pairs == 40 * 39 // 2


def test_a_rotation_keeps_neighbours_and_no_cosines(rows):
    """Similarities between rows stay; the rows do not."""
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))
    found = agree(rows, rows @ turn)
    assert found.neighbours_kept == 1
    assert found.rank_correlation == pytest.approx(1)
    assert found.mean < 0.5


def test_noise_costs_neighbours_before_cosines(rows):
    """A tenth of noise leaves the cosines above 0.98 and loses neighbours."""
    found = agree(rows, rows + 0.1 * np.random.default_rng(2).standard_normal(rows.shape))
    assert found.mean > 0.98
    assert 0.7 < found.neighbours_kept < 1
    assert found.least <= found.percentile_1 <= found.mean


def test_the_worst_come_first(rows):
    """The rows that were spoilt, in the order of how much."""
    other = rows.copy()
    other[7] *= -1
    other[3, :8] = 0
    found = agree(rows, other)
    assert found.worst(2) == (7, 3)
    assert found.cosines[7] == pytest.approx(-1)
    assert found.worst(0) == ()


def test_a_row_of_zeros_agrees_with_nothing(rows):
    """Its cosine is 0, and no number is divided by nothing."""
    other = rows.copy()
    other[5] = 0
    assert agree(rows, other).cosines[5] == 0


def test_few_rows_have_few_figures(rows):
    """19 rows have no neighbours to speak of, 2 no ranks."""
    assert agree(rows[:19], rows[:19]).neighbours_kept is None
    assert agree(rows[:20], rows[:20]).neighbours_kept == 1
    assert agree(rows[:2], rows[:2]).rank_correlation is None
    assert agree(rows[:1], rows[:1]).mean == pytest.approx(1)
    assert agree(rows[:20], rows[:20], k=20).neighbours_kept is None


def noisy(n, seed=3):
    random = np.random.default_rng(seed)
    a = random.standard_normal((n, 8)).astype(np.float32)
    return a, a + 0.5 * random.standard_normal(a.shape).astype(np.float32)


def test_a_sample_of_pairs_is_near_all_pairs():
    """Beyond 1,000 rows the figure is of 1,000 at even distances, about that of all, and the same each time."""
    a, b = noisy(1400)
    found = agree(a, b)
    assert found.n_pairs == 1000 * 999 // 2
    whole = rank_correlation(*(metrics.pairwise_cosines(rows, max_rows=1400) for rows in (a, b)))
    assert found.rank_correlation == pytest.approx(whole, abs=0.02)
    assert found.rank_correlation == agree(a, b).rank_correlation


def test_of_many_rows_some_have_their_neighbours_looked_at(monkeypatch):
    """Among all rows; about the figure of all, the same each time, and how many they were is told."""
    a, b = noisy(600)
    whole = agree(a, b)
    assert whole.n_sampled == 600
    monkeypatch.setattr(agreement, "_N_TEXTS_SAMPLED", 599)
    monkeypatch.setattr(agreement, "_N_SAMPLE", 300)
    drawn = agree(a, b)
    assert drawn.n_sampled == 300
    assert drawn.neighbours_kept == agree(a, b).neighbours_kept
    assert drawn.neighbours_kept == pytest.approx(whole.neighbours_kept, abs=0.03)
    assert (drawn.mean, drawn.least) == (whole.mean, whole.least)


def test_neighbours_of_some_are_those_of_all(rows):
    """Found among all rows, and never the row itself."""
    some = np.array([3, 11, 39])
    assert neighbours(rows, 5, of=some).tolist() == neighbours(rows, 5)[some].tolist()


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "differ"),
        (np.ones((2, 3)), np.ones((3, 3)), "differ"),
        (np.ones((0, 3)), np.ones((0, 3)), "no rows"),
        (np.ones(3), np.ones(3), "a matrix"),
        (np.full((2, 3), np.nan), np.ones((2, 3)), "NaN"),
    ],
)
def test_what_does_not_compare_is_refused(a, b, words):
    """By name."""
    with pytest.raises(ValueError, match=words):
        agree(a, b)


def test_k_of_nothing_is_refused(rows):
    """One neighbour at least."""
    with pytest.raises(ValueError, match="k is 0"):
        agree(rows, rows, k=0)
