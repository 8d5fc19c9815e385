"""vectors.py: L2, MRL, layer norm, cosine and fewer bits, against formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.vectors import (
    calibrate,
    l2_normalize,
    layer_norm,
    quantize_embeddings,
    restore_embeddings,
    similarity,
    similarity_pairwise,
    truncate_dim,
)

N_EMBD = 48
ROWS = np.random.default_rng(0).standard_normal((5, N_EMBD), dtype=np.float32) * 7


def matrix(*rows):
    return np.array(rows, dtype=np.float32)


def is_plain(array, dtype=np.float32):
    return array.dtype == dtype and array.flags.c_contiguous


def test_rows_become_unit_length():
    """A 3-4-5 triangle comes to its sine and cosine."""
    assert np.array_equal(l2_normalize(matrix([3, 4], [0, -2])), matrix([0.6, 0.8], [0, -1]))


def test_a_row_of_zeros_stays_zero():
    """No division by zero, no NaN, no warning."""
    assert np.array_equal(l2_normalize(matrix([0, 0], [0, 5])), matrix([0, 0], [0, 1]))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1, 1e6, 1e18, 1e30])
def test_length_does_not_matter_however_small_or_large(scale):
    """Squares are summed in float64, so neither tiny nor huge rows lose their direction."""
    scaled = (ROWS.astype(np.float64) * scale).astype(np.float32)
    np.testing.assert_allclose(l2_normalize(scaled), l2_normalize(ROWS), atol=1e-6)


@pytest.mark.parametrize("dim", [1, 7, 4096])
def test_unit_rows_are_unit_to_float32(dim):
    """The length of a row is 1 to within 1e-6, at the widest models too."""
    rows = np.random.default_rng(dim).standard_normal((3, dim), dtype=np.float32)
    np.testing.assert_allclose(np.linalg.norm(l2_normalize(rows).astype(np.float64), axis=1), 1, atol=1e-6)


def test_results_are_new_contiguous_float32():
    """The input is not written to, and what comes out is C-contiguous float32 of its own."""
    before = ROWS.copy()
    for result in (l2_normalize(ROWS[:, ::2]), truncate_dim(ROWS, N_EMBD), truncate_dim(ROWS, 3), layer_norm(ROWS)):
        assert is_plain(result)
        assert not np.shares_memory(result, ROWS)
    assert np.array_equal(ROWS, before)


@pytest.mark.parametrize("dim", range(1, N_EMBD + 1))
def test_truncation_is_a_slice_and_then_l2(dim):
    """For every length: the first components, over their own length (MRL)."""
    expected = [[value / math.hypot(*map(float, row[:dim])) for value in map(float, row[:dim])] for row in ROWS]
    np.testing.assert_allclose(truncate_dim(ROWS, dim), expected, atol=1e-6)


@pytest.mark.parametrize("dim", range(1, N_EMBD + 1))
def test_normalising_before_the_cut_changes_nothing(dim):
    """Cutting unit rows and cutting raw rows give the same vectors, so stored full vectors may be cut later."""
    np.testing.assert_allclose(truncate_dim(l2_normalize(ROWS), dim), truncate_dim(ROWS, dim), atol=1e-6)


@pytest.mark.parametrize("dim", [0, -1, N_EMBD + 1])
def test_a_length_that_rows_do_not_have_is_refused(dim):
    """The message has the number and the range."""
    with pytest.raises(ValueError, match=rf"dim is {dim}; it is 1..{N_EMBD} here"):
        truncate_dim(ROWS, dim)


def test_a_row_of_zeros_is_cut_to_zeros():
    """A row whose first components are zero stays zero."""
    assert np.array_equal(truncate_dim(matrix([0, 0, 3]), 2), matrix([0, 0]))


def test_layer_norm_is_the_formula():
    """(x - mean) / sqrt(variance + 1e-5), the variance over n and not n - 1."""
    row = [1.0, 2.0, 4.0, 9.0]
    mean = sum(row) / 4
    variance = sum((x - mean) ** 2 for x in row) / 4
    expected = [(x - mean) / math.sqrt(variance + 1e-5) for x in row]
    np.testing.assert_allclose(layer_norm(matrix(row)), [expected], atol=1e-6)


def test_eps_is_added_to_the_variance():
    """A row without variance is divided by the root of eps, and comes to zeros."""
    np.testing.assert_allclose(layer_norm(matrix([-1, 1]), eps=3.0), [[-0.5, 0.5]], atol=1e-6)
    assert np.array_equal(layer_norm(matrix([2, 2])), matrix([0, 0]))


def test_similarity_is_the_cosine_of_every_pair():
    """Right angles, opposites and half angles, rows of any length."""
    scores = similarity(matrix([2, 0], [1, 1]), matrix([5, 0], [0, 3], [-1, -1]))
    root = math.sqrt(0.5)
    np.testing.assert_allclose(scores, [[1, 0, -root], [root, root, -1]], atol=1e-6)
    assert is_plain(scores)


def test_a_vector_counts_as_one_row():
    """(dim,) against (dim,) gives (1, 1), and lists of numbers do as well as arrays."""
    assert similarity([1, 0], [0.6, 0.8]).shape == (1, 1)
    assert similarity([1, 0], [[0.6, 0.8], [1, 0]]).tolist() == [[pytest.approx(0.6), 1.0]]


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_a_cosine_never_leaves_its_range(dim, seed):
    """Rounding never gives 1.0000001, which would make an arccos NaN."""
    rows = np.random.default_rng(seed).standard_normal((4, dim)).astype(np.float32)
    scores = similarity(rows, rows)
    assert scores.max() <= 1
    assert scores.min() >= -1
    assert similarity_pairwise(rows, -rows).min() >= -1


def test_pairs_are_the_diagonal_of_the_matrix():
    """similarity_pairwise is similarity of the first with the first and so on."""
    others = ROWS[::-1]
    np.testing.assert_allclose(similarity_pairwise(ROWS, others), np.diag(similarity(ROWS, others)), atol=1e-6)
    assert similarity_pairwise(ROWS, others).dtype == np.float32


def test_vectors_of_different_lengths_do_not_compare():
    """The message has both lengths."""
    with pytest.raises(ValueError, match="vectors of 2 and 3 components do not compare"):
        similarity([1, 0], [1, 0, 0])


def test_pairs_need_the_same_shape():
    """One vector is not broadcast over many, which would hide a mistake."""
    with pytest.raises(ValueError, match="differ; pairs need"):
        similarity_pairwise(ROWS, ROWS[0])


@pytest.mark.parametrize("compare", [similarity, similarity_pairwise])
def test_more_than_a_matrix_is_refused(compare):
    """Three dimensions are neither a vector nor a matrix."""
    with pytest.raises(ValueError, match="got 3 dimensions"):
        compare(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)))


# Signs of nine components: + - + - - - - +, then one more that opens a second byte.
SIGNED = matrix([0.3, -1, 2, 0, -0.1, -5, -0.2, 4, 1], [-1, 1, 1, 1, 1, 1, 1, 1, -1])


def test_ubinary_packs_signs_high_bit_first():
    """A component above zero is a one; zero is none; the last byte is filled with zeros."""
    packed = quantize_embeddings(SIGNED, "ubinary")
    assert packed.tolist() == [[0b10100001, 0b10000000], [0b01111111, 0]]
    assert is_plain(packed, np.uint8)


def test_binary_is_ubinary_less_128():
    """The signed form that sentence-transformers and vector databases use."""
    packed = quantize_embeddings(SIGNED, "binary")
    assert packed.tolist() == [[0b10100001 - 128, 0], [-1, -128]]
    assert is_plain(packed, np.int8)


# Ranges of 255 and 510, so that a level is 1 and 2 wide and no rounding of float32 blurs the picture.
RANGED = matrix([0, -255], [255, 255], [127.9, 0], [64, -127])


def test_uint8_spreads_the_range_of_each_component():
    """Each component's least value is 0, its greatest 255, the rest lies between by its share, rounded down."""
    levels = quantize_embeddings(RANGED, "uint8")
    assert levels.tolist() == [[0, 0], [255, 255], [127, 127], [64, 64]]
    assert is_plain(levels, np.uint8)


def test_int8_is_the_same_range_from_minus_128():
    """Least is -128 and greatest 127; what lies between is rounded down, as in sentence-transformers since 6.0."""
    levels = quantize_embeddings(RANGED, "int8")
    assert levels.tolist() == [[-128, -128], [127, 127], [-1, -1], [-64, -64]]
    assert is_plain(levels, np.int8)


@pytest.mark.parametrize(("precision", "offset"), [("uint8", 0), ("int8", 128)])
def test_levels_are_those_of_sentence_transformers(precision, offset):
    """(x - least) / ((greatest - least) / 255), in float32, rounded down, less 128 for int8."""
    least, greatest = ROWS.min(axis=0), ROWS.max(axis=0)
    expected = (np.floor((ROWS - least) / ((greatest - least) / 255)) - offset).astype(precision)
    assert np.array_equal(quantize_embeddings(ROWS, precision), expected)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_restored_rows_are_within_half_a_step(precision):
    """Levels and their ranges give the rows back, those outside of the ranges cut to them."""
    ranges = calibrate(ROWS)
    restored = restore_embeddings(quantize_embeddings(ROWS, precision, ranges=ranges), ranges=ranges)
    steps = (ranges[1] - ranges[0]) / 255
    assert (np.abs(restored - ROWS) <= 0.5 * steps * 1.001 + 1e-7).all()
    assert is_plain(restored, np.float32)
    with pytest.raises(ValueError, match="levels are float32"):
        restore_embeddings(ROWS, ranges=ranges)
    with pytest.raises(ValueError, match="least value above the greatest"):
        restore_embeddings(np.zeros((1, ROWS.shape[1]), dtype=precision), ranges=ranges[::-1])


def test_a_component_that_never_changes_is_restored():
    """Its range has no steps, and its value is the range's."""
    rows = matrix([3, 0], [3, 255])
    levels = quantize_embeddings(rows, "int8")
    assert restore_embeddings(levels, ranges=calibrate(rows))[:, 0].tolist() == [3, 3]


def test_ranges_of_before():
    """Rows quantized with given ranges are those of the whole, and what lies outside takes the nearest level."""
    whole = quantize_embeddings(ROWS, "int8")
    assert np.array_equal(quantize_embeddings(ROWS[:1], "int8", ranges=calibrate(ROWS)), whole[:1])
    outside = np.vstack([ROWS[:1] * 0 + 1e6, ROWS[:1] * 0 - 1e6]).astype(np.float32)
    assert set(quantize_embeddings(outside, "int8", ranges=calibrate(ROWS)).ravel().tolist()) == {127, -128}


def test_float16_is_the_nearest():
    """Half the bytes."""
    assert np.array_equal(quantize_embeddings(ROWS, "float16"), ROWS.astype(np.float16))


def test_a_component_that_never_changes_is_no_division_by_zero():
    """Equal values in a column become the least level."""
    assert quantize_embeddings(matrix([3, 0], [3, 255]), "uint8").tolist() == [[0, 0], [0, 255]]


def test_float32_is_left_as_it_is():
    """No copy is made where nothing is stored in fewer bits."""
    assert quantize_embeddings(ROWS, "float32") is ROWS


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_a_range_needs_two_rows(precision):
    """One row has no range; the message says what to use instead. No rows are no rows of that type."""
    with pytest.raises(ValueError, match="got 1; use binary or float32"):
        quantize_embeddings(ROWS[:1], precision)
    assert quantize_embeddings(ROWS[:0], precision).dtype == precision


def test_another_precision_is_refused_by_name():
    """The message has the word and the words that there are."""
    with pytest.raises(
        ValueError, match="precision is 'int4'; it is one of float32, float16, int8, uint8, binary, ubinary"
    ):
        quantize_embeddings(ROWS, "int4")
