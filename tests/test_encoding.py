"""encoding.py: options that check themselves, lengths that are allowed, rows that are finished."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gguf_embed.encoding import EncodeKeywords, EncodeOptions, QueryKeywords, check_dim, finish
from gguf_embed.errors import DimensionError
from gguf_embed.models.specs import Matryoshka
from gguf_embed.vectors import l2_normalize, layer_norm

ROWS = np.array([[3, 4, 12], [0, 0, 2]], dtype=np.float32)
RANGE = Matryoshka(min=32, max=2560)
LIST = Matryoshka(dims=(512, 256))


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "8"])
def test_batch_size_is_a_whole_number_of_at_least_one(batch_size):
    """Anything else is the caller's mistake, quoted."""
    with pytest.raises(ValueError, match=f"batch_size is {batch_size!r}; it is a whole number"):
        EncodeOptions(batch_size=batch_size)


def test_truncate_is_one_of_two_words():
    """A misspelt word does not silently cut texts."""
    with pytest.raises(ValueError, match="truncate is 'start'; it is 'error' or 'end'"):
        EncodeOptions(truncate="start")


def test_precision_is_one_of_five_words():
    """A misspelt word is refused before hours of embedding, as the other options are."""
    with pytest.raises(ValueError, match="precision is 'int4'"):
        EncodeOptions(precision="int4")


def test_nothing_is_cut_unless_asked():
    """The defaults are float32, unit rows, full length, over-long texts an error."""
    options = EncodeOptions()
    assert (options.precision, options.normalize_embeddings) == ("float32", True)
    assert (options.truncate_dim, options.truncate) == (None, "error")


def test_keywords_are_the_options_and_a_progress_bar():
    """The types of encode's keywords and the options dataclass cannot drift apart."""
    options = {field.name for field in dataclasses.fields(EncodeOptions)}
    assert set(QueryKeywords.__annotations__) == options | {"show_progress_bar"}
    assert set(QueryKeywords.__annotations__) - set(EncodeKeywords.__annotations__) == {"task"}


@pytest.mark.parametrize("dim", [None, 3])
def test_full_rows_get_unit_length(dim):
    """No length, or the model's own, cuts nothing."""
    np.testing.assert_allclose(finish(ROWS, dim), [[3 / 13, 4 / 13, 12 / 13], [0, 0, 1]], atol=1e-6)


def test_full_rows_may_stay_raw():
    """normalize=False gives what the model gave."""
    assert np.array_equal(finish(ROWS, None, normalize=False), ROWS)


def test_a_cut_row_gets_unit_length_again():
    """(3, 4, 12) cut to two is (0.6, 0.8); a row with nothing left stays zero."""
    np.testing.assert_allclose(finish(ROWS, 2), [[0.6, 0.8], [0, 0]], atol=1e-6)


def test_a_cut_row_may_stay_raw():
    """normalize=False cuts and leaves the numbers, C-contiguous."""
    cut = finish(ROWS, 2, normalize=False)
    assert cut.tolist() == [[3, 4], [0, 0]]
    assert cut.flags.c_contiguous


def test_layer_norm_goes_before_the_cut_where_the_model_wants_it():
    """Nomic's order: layer norm over all components, cut, L2."""
    nomic = Matryoshka(dims=(2,), layer_norm_first=True)
    np.testing.assert_allclose(finish(ROWS, 2, matryoshka=nomic), l2_normalize(layer_norm(ROWS)[:, :2]), atol=1e-6)
    np.testing.assert_allclose(finish(ROWS, 2, matryoshka=nomic, normalize=False), layer_norm(ROWS)[:, :2], atol=1e-6)


def test_layer_norm_stays_away_from_full_rows():
    """Nothing is normed that is not cut, so full vectors are the reference model's."""
    nomic = Matryoshka(dims=(2,), layer_norm_first=True)
    assert np.array_equal(finish(ROWS, None, matryoshka=nomic), l2_normalize(ROWS))
    assert np.array_equal(finish(ROWS, 3, matryoshka=nomic), l2_normalize(ROWS))


@pytest.mark.parametrize("dim", [32, 33, 512, 2560])
def test_a_range_allows_what_lies_in_it(dim):
    """Qwen3 takes any length from 32 to its own."""
    assert check_dim(dim, 2560, model="qwen3-embedding-4b", matryoshka=RANGE) == dim


@pytest.mark.parametrize("dim", [-1, 0, 31, 2561])
def test_a_range_refuses_what_lies_outside(dim):
    """The error has the range in its message and as facts."""
    with pytest.raises(DimensionError, match=r"qwen3-embedding-4b gives 32\.\.2560") as caught:
        check_dim(dim, 2560, model="qwen3-embedding-4b", matryoshka=RANGE)
    assert (caught.value.dim, caught.value.allowed) == (dim, "32..2560")


def test_a_list_allows_its_lengths_alone():
    """A model trained for some lengths gives those and its own, and says which."""
    assert [check_dim(dim, 768, model="nomic", matryoshka=LIST) for dim in (768, 512, 256)] == [768, 512, 256]
    with pytest.raises(DimensionError, match="truncate_dim is 300; nomic gives 768, 512, 256"):
        check_dim(300, 768, model="nomic", matryoshka=LIST)


def test_a_model_that_was_not_trained_for_it_gives_its_own_length():
    """Without MRL only n_embd is allowed."""
    assert check_dim(384, 384, model="all-minilm-l6-v2", matryoshka=None) == 384
    with pytest.raises(DimensionError, match="all-minilm-l6-v2 was not trained to be cut and gives 384") as caught:
        check_dim(128, 384, model="all-minilm-l6-v2", matryoshka=None)
    assert caught.value.allowed == "384"


def test_a_file_that_the_registry_does_not_know_is_not_cut_by_guess():
    """The error says what to call instead."""
    with pytest.raises(DimensionError, match=r"cut it yourself with gguf_embed\.truncate_dim\(\)"):
        check_dim(128, 384, model=None, matryoshka=None)


@pytest.mark.parametrize("dim", [True, 2.0, "2", None])
def test_a_length_is_a_whole_number(dim):
    """True is no length, though Python counts it as 1."""
    with pytest.raises(TypeError, match="truncate_dim is"):
        check_dim(dim, 384, model="m", matryoshka=RANGE)
