"""stream/pipeline.py and results.py: texts to results in order, block by block, over a model of words."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_model import N_EMBD, QUERY, FakeModel, embedder_over, n_tokens_of, raw_row
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_embed import vectors
from gguf_embed.encoding import EncodeOptions
from gguf_embed.errors import (
    AllocationError,
    DecodeError,
    DimensionError,
    InvalidTextError,
    NonFiniteEmbeddingError,
    TextTooLongError,
)
from gguf_embed.stream import pipeline
from gguf_embed.stream.cache import VectorCache
from gguf_embed.stream.chunking import Chunking
from gguf_embed.stream.pipeline import TextStream
from gguf_embed.stream.results import PlainText, plain_texts

WORDS = st.lists(st.sampled_from(["a", "bb", "c", "abc", "x"]), min_size=1, max_size=6).map(" ".join)
LONG = "a b c " * 40  # 120 words, where 50 tokens are taken
BAD = {"NUL": "a\0b", "surrogate": "a \ud800", "too long": LONG, "not finite": "a nan"}
ERRORS = {
    "NUL": InvalidTextError, "surrogate": InvalidTextError, "too long": TextTooLongError,
    "not finite": NonFiniteEmbeddingError,
}  # fmt: skip
RAW = EncodeOptions(normalize_embeddings=False)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 4 pieces."""
    monkeypatch.setattr(pipeline, "_N_PIECES_BLOCK", 4)


@pytest.fixture
def cache(tmp_path):
    with VectorCache(tmp_path / "v.sqlite", limit_bytes=1 << 30) as one:
        yield one


def texts_of(texts):
    return list(plain_texts(texts))


def blocks_of(model, texts, options=RAW, *, chunking=None, cache=None, **more):
    stream = TextStream(model, options, chunking=chunking or Chunking(), cache=cache, **more)
    return list(stream.blocks(plain_texts(texts)))


def results_of(model, texts, options=RAW, **more):
    return [result for block in blocks_of(model, texts, options, **more) for result in block.results]


def matrix(results):
    return np.stack([one.vector for one in results])


def unit(rows):
    return vectors.l2_normalize(np.asarray(rows, dtype=np.float32))


# Order


@given(st.lists(WORDS, max_size=20), st.integers(1, 5))
def test_results_come_in_the_order_of_the_texts(texts, n_pieces):
    """Each with its own row, id, place, text and tokens, however blocks and decodes fall."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_N_PIECES_BLOCK", n_pieces)
        results = results_of(FakeModel(), [(f"id {at}", text) for at, text in enumerate(texts)])
    assert [(one.id, one.place, one.text) for one in results] == [
        (f"id {at}", f"text {at}", text) for at, text in enumerate(texts)
    ]
    assert [one.vector.tolist() for one in results] == [raw_row(text) for text in texts]
    assert [one.n_tokens for one in results] == [n_tokens_of(text) for text in texts]
    assert all((one.error, one.span, one.truncated, one.is_cached) == (None, None, False, False) for one in results)


def test_ids_of_any_kind_come_through():
    """None, tuples and objects are the caller's own."""
    ids = [None, 0, "", ("a", 1), 1.5, frozenset()]
    found = results_of(FakeModel(), [(one, "a") for one in ids])
    assert [one.id for one in found] == ids


def test_texts_without_ids_are_called_by_their_positions():
    """0, 1, 2, and pairs may stand among them."""
    assert [one.id for one in results_of(FakeModel(), ["a", ("x", "b"), "c"])] == [0, "x", 2]


@pytest.mark.parametrize("texts", ["a", b"a", {"a": "b"}], ids=["str", "bytes", "dict"])
def test_what_is_no_list_of_texts_is_refused(texts):
    """One text is not a list of its letters."""
    with pytest.raises(TypeError, match="expected texts"):
        plain_texts(texts)


@pytest.mark.parametrize("one", [None, 3, b"a", ("id", 3), ("a", "b", "c")], ids=repr)
def test_what_is_no_text_is_refused_by_its_position(one):
    """The others before it are read."""
    reading = plain_texts(["a", one])
    next(reading)
    with pytest.raises(TypeError, match="text 1 is"):
        next(reading)


def test_no_texts_open_no_model():
    """Nothing is loaded for nothing."""
    model = FakeModel()
    assert blocks_of(model, []) == []
    assert model.n_opened == 0


def test_a_prompt_goes_before_each_text():
    """It is in the row and in the tokens, not in the text."""
    (one,) = results_of(FakeModel(), ["a b"], EncodeOptions(prompt_name="query", normalize_embeddings=False))
    assert (one.vector.tolist(), one.n_tokens, one.text) == (raw_row("a b", QUERY), n_tokens_of("a b", QUERY), "a b")


def test_rows_are_what_encode_gives():
    """Unit length, a cut length and every precision that needs no range."""
    texts = ["a", "a b", "abc abc x"]
    for precision, dim in itertools.product(["float32", "float16", "binary", "ubinary"], [None, 3, 2]):
        options = EncodeOptions(precision=precision, truncate_dim=dim)
        found = matrix(results_of(FakeModel(), texts, options))
        wanted = embedder_over(FakeModel()).report(texts, options).embeddings
        assert found.dtype == wanted.dtype
        assert found.tolist() == wanted.tolist()


def test_what_cannot_be_done_is_told_before_anything_is_read():
    """A precision that needs all vectors, a prompt or a length that the model has not."""
    for options, error in (
        (EncodeOptions(precision="int8"), ValueError),
        (EncodeOptions(precision="uint8"), ValueError),
        (EncodeOptions(prompt_name="haiku"), ValueError),
        (EncodeOptions(truncate_dim=1), DimensionError),
    ):
        with pytest.raises(error):
            TextStream(FakeModel(), options, chunking=Chunking(), cache=None)


def test_what_no_text_is_to_blame_for_ends_the_stream(small_blocks):
    """Refused memory is raised, after the blocks before it."""
    model = FakeModel()
    blocks = TextStream(model, RAW, chunking=Chunking(), cache=None).blocks(plain_texts(["a", "b"] * 4))
    next(blocks)

    def fail():
        raise AllocationError("no memory", path=Path("fake.gguf"))

    model.on_decode = fail
    with pytest.raises(AllocationError):
        next(blocks)


def test_a_text_that_cannot_be_decoded_is_named_and_the_others_are_right(small_blocks):
    """A decode that fails with one text of many costs that text alone."""
    model = FakeModel()

    def fail():
        if any("c" in text.split() for text in model.decoding):
            raise DecodeError("broken", return_code=-3)

    model.on_decode = fail
    texts = ["a", "b", "c", "a b"] * 3
    blocks = list(TextStream(model, RAW, chunking=Chunking(), cache=None).blocks(plain_texts(texts)))
    results = [one for block in blocks for one in block.results]
    for one in results:
        if one.text == "c":
            assert isinstance(one.error, DecodeError)
            assert one.error.index == one.id
            assert f"text {one.id} " in str(one.error)
        else:
            assert one.vector.tolist() == raw_row(one.text)


# Blocks


def test_a_block_has_at_most_1024_texts():
    """The last one has the rest, and each ends with a whole text."""
    blocks = blocks_of(FakeModel(n_batch=4096, n_seq_max=512), ["a"] * 2500)
    assert [len(block.results) for block in blocks] == [1024, 1024, 452]
    assert [(block.last.id, block.is_whole) for block in blocks] == [(1023, True), (2047, True), (2499, True)]
    assert [one.id for block in blocks for one in block.results] == list(range(2500))


@settings(max_examples=30)
@given(st.lists(st.integers(1, 70_000), min_size=1, max_size=8), st.sampled_from(["a", "\u4e2d"]))
def test_a_block_has_at_most_64_kib(sizes, letter):
    """In UTF-8; only a text that is longer by itself makes a larger one, alone."""
    model = FakeModel(max_tokens=1 << 20)
    texts = [letter * size for size in sizes]
    blocks = blocks_of(model, texts)
    for block in blocks:
        n_bytes = sum(len(one.text.encode()) for one in block.results)
        assert n_bytes <= 64 << 10 or len(block.results) == 1
    assert [one.text for block in blocks for one in block.results] == texts


def test_a_block_holds_as_much_as_it_may():
    """65,536 bytes are one block, one more begins the next."""
    assert len(blocks_of(FakeModel(), ["a" * 32_768] * 2)) == 1
    assert len(blocks_of(FakeModel(), ["a" * 32_768, "a" * 32_769])) == 2


def test_blocks_are_the_same_whatever_is_cached(cache, small_blocks):
    """So that a job's checkpoints do not hang on the cache."""
    texts = ["a", "b b", "c", "a", "nan", "b", "a b c"]
    shapes = [
        [(len(block.results), block.last.id) for block in blocks_of(FakeModel(), texts, cache=one)]
        for one in (None, cache, cache)
    ]
    assert shapes[0] == shapes[1] == shapes[2]


def test_texts_are_read_as_results_are_taken():
    """Of a million texts no more than a block and one are read ahead."""
    n_read = 0

    def many():
        nonlocal n_read
        for n_read in range(1, 1_000_001):
            yield PlainText(id=n_read, text="a", place="")

    blocks = TextStream(FakeModel(n_batch=4096, n_seq_max=512), RAW, chunking=Chunking(), cache=None).blocks(many())
    assert n_read == 0
    for number in range(1, 4):
        next(blocks)
        assert n_read <= 1024 * number + 1
    blocks.close()
    assert n_read <= 1024 * 3 + 1


def test_a_stream_that_pauses_is_waited_for_no_longer_than_a_block():
    """A pipe that stays open gets its results as blocks fill, and the rest at its end."""

    def slow():
        yield from plain_texts(["a"] * 1025)
        time.sleep(0.01)
        yield PlainText(id="late", text="b", place="")

    blocks = list(TextStream(FakeModel(), RAW, chunking=Chunking(), cache=None).blocks(slow()))
    assert [len(block.results) for block in blocks] == [1024, 2]


# Bad texts


def test_vectors_of_a_block_leave_out_those_without():
    """As many rows as results that have one, in their order."""
    (block,) = blocks_of(FakeModel(), ["a", "nan", "b"])
    assert block.vectors().tolist() == [raw_row("a"), raw_row("b")]


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("chunking", [Chunking(), Chunking(long="chunk", n_tokens=20)], ids=["whole", "chunked"])
@pytest.mark.parametrize("at", [0, 2, 5], ids=["first", "middle", "last"])
def test_a_bad_text_is_named_and_the_others_are_there(kind, chunking, at):
    """Its error begins with its place and has its position in the stream; no other is lost."""
    if kind == "too long" and chunking.n_tokens:
        pytest.skip("it is cut")
    texts = ["a", "b b", "c", "a b", "a b c"]
    texts.insert(at, BAD[kind])
    records = [PlainText(id=index, text=text, place=f"in.txt, line {index + 1}") for index, text in enumerate(texts)]
    stream = TextStream(FakeModel(), RAW, chunking=chunking, cache=None)
    results = [one for block in stream.blocks(records) for one in block.results]
    assert [one.id for one in results] == list(range(6))
    bad = results.pop(at)
    assert type(bad.error) is ERRORS[kind]
    assert (bad.vector, bad.error.index, bad.n_tokens) == (None, at, 0)
    assert str(bad.error).startswith(f"in.txt, line {at + 1}")
    assert [one.vector.tolist() for one in results] == [raw_row(one.text) for one in results]
    assert all(one.error is None for one in results)


def test_a_bad_text_of_a_later_block_is_named_by_the_stream(small_blocks):
    """Positions count from the stream's start, not from a block's."""
    texts = ["a"] * 9 + [BAD["NUL"], "a", BAD["not finite"]]
    bad = [one for one in results_of(FakeModel(), texts) if one.error is not None]
    assert [(one.id, one.error.index) for one in bad] == [(9, 9), (11, 11)]
    assert [str(one.error).split(" has ")[0] for one in bad] == ["text 9", "text 11"]


@given(st.lists(st.one_of(WORDS, st.sampled_from(list(BAD.values()))), max_size=16))
def test_any_mixture_of_good_and_bad_texts(texts):
    """Each text has a row or its own error, whatever stands beside it, equal ones too."""
    results = results_of(FakeModel(), texts)
    kinds = {text: kind for kind, text in BAD.items()}
    assert [one.id for one in results] == list(range(len(texts)))
    for at, (one, text) in enumerate(zip(results, texts, strict=True)):
        if text in kinds:
            assert type(one.error) is ERRORS[kinds[text]]
            assert (one.error.index, one.vector) == (at, None)
            assert str(one.error).startswith(f"text {at} ")
        else:
            assert (one.error, one.vector.tolist(), one.n_tokens) == (None, raw_row(text), n_tokens_of(text))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_text_costs_no_other_text_a_second_decode(kind):
    """Good ones are decoded once, wherever the bad one stands among them."""
    texts = [f"{'a ' * n}x{n}" for n in range(12)]
    for at in range(13):
        model = FakeModel()
        results_of(model, [*texts[:at], BAD[kind], *texts[at:]])
        good = [text for text in model.decoded if "nan" not in text.split()]
        assert sorted(good) == sorted(texts), f"the bad one is text {at}"


@pytest.mark.parametrize("kind", BAD)
def test_equal_texts_beside_a_bad_one_are_decoded_once(kind):
    """A repeated text takes the row of its like, also where the block was tried again."""
    model = FakeModel(n_seq_max=1)
    results = results_of(model, ["a a a", "b b b", "a a a", BAD[kind], "b b b", "a a a"])
    assert sorted(text for text in model.decoded if "nan" not in text) == ["a a a", "b b b"]
    assert [one.error is None for one in results] == [True, True, True, False, True, True]


def test_texts_before_an_error_of_the_iterable_are_not_lost():
    """They are embedded, and then the error is raised."""

    def failing():
        yield from plain_texts(["a", "b"])
        raise RuntimeError("the database is gone")

    results = []
    with pytest.raises(RuntimeError, match="database is gone"):  # noqa: PT012 - what came before it counts
        for block in TextStream(FakeModel(), EncodeOptions(), chunking=Chunking(), cache=None).blocks(failing()):
            results += block.results
    assert [one.text for one in results] == ["a", "b"]


def test_many_texts_without_a_finite_row_cost_little():
    """Each is an error of its own, and no batch is decoded again for every one of them."""
    model = FakeModel(n_batch=4096, n_seq_max=64)
    texts = [f"{'nan' if at % 2 else 'a'} {at}" for at in range(200)]
    results = results_of(model, texts)
    assert [one.error is None for one in results] == [at % 2 == 0 for at in range(200)]
    assert {str(one.error).split(" has")[0] for one in results if one.error} == {
        f"text {at}" for at in range(1, 200, 2)
    }
    assert len(model.decoded) <= 5 * len(texts)


def test_a_prompt_that_is_no_unicode_is_an_error_of_each_text(cache):
    """As without a cache."""
    for kept in (None, cache):
        (result,) = results_of(FakeModel(), ["a"], EncodeOptions(prompt="\udcff"), cache=kept)
        assert isinstance(result.error, InvalidTextError)


def test_many_bad_texts_cost_little():
    """A block of binary lines is refused text by text, not tried again as a whole for each of them."""
    model = FakeModel(n_batch=4096, n_seq_max=512)
    texts = [LONG if at % 2 else f"a {at}" for at in range(600)]
    session = model.open_as_fetched()
    n_tokenized = 0
    tokenize = session.tokenize

    def counted(some, **how):
        nonlocal n_tokenized
        n_tokenized += len(some)
        return tokenize(some, **how)

    session.tokenize = counted
    results = results_of(model, texts)
    assert sum(one.error is not None for one in results) == 300
    assert n_tokenized <= 10 * len(texts)


def test_a_block_of_bad_texts_alone_has_no_vectors():
    """Every result has its error, and nothing is raised."""
    results = results_of(FakeModel(), [BAD["NUL"], BAD["not finite"], BAD["surrogate"], BAD["too long"]])
    assert [type(one.error) for one in results] == [
        InvalidTextError, NonFiniteEmbeddingError, InvalidTextError, TextTooLongError,
    ]  # fmt: skip


# Equal texts


@given(st.lists(st.sampled_from(["a", "b", "a b", "c c c"]), min_size=1, max_size=30))
def test_equal_texts_of_a_block_are_decoded_once(texts):
    """Each result is its own all the same."""
    model = FakeModel()
    results = results_of(model, texts)
    assert sorted(model.decoded) == sorted(set(texts))
    assert [one.vector.tolist() for one in results] == [raw_row(text) for text in texts]


def test_on_batch_hears_of_every_text_that_is_decoded():
    """Its texts and tokens add up to those of the different texts."""
    heard = []
    texts = ["a", "b b", "a", "c c c", "b b", "x"]
    results = results_of(FakeModel(), texts, on_batch=lambda *counts: heard.append(counts))
    different = {one.text: one.n_tokens for one in results}
    assert tuple(map(sum, zip(*heard, strict=True))) == (len(different), sum(different.values()))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_bounds_a_decode(batch_size):
    """At most so many texts together."""
    model = FakeModel()
    results_of(model, [f"a {at}" for at in range(10)], EncodeOptions(batch_size=batch_size))
    assert max(map(len, model.decodes)) == batch_size


# Cache


def test_a_second_run_decodes_nothing(cache):
    """Not even the model is opened, and all but `is_cached` is the same."""
    texts = ["a", "b b", "a", "abc x"]
    first = results_of(FakeModel(), texts, cache=cache)
    model = FakeModel()
    again = results_of(model, texts, cache=cache)
    assert (model.decodes, model.n_opened) == ([], 0)
    assert not any(one.is_cached for one in first)
    assert all(one.is_cached for one in again)
    assert matrix(first).tobytes() == matrix(again).tobytes()
    assert [(one.n_tokens, one.truncated, one.text, one.id) for one in first] == [
        (one.n_tokens, one.truncated, one.text, one.id) for one in again
    ]


@pytest.mark.parametrize(
    "options",
    [EncodeOptions(truncate_dim=2), EncodeOptions(), EncodeOptions(precision="binary"), EncodeOptions(batch_size=1)],
    ids=["another length", "unit length", "another precision", "another batch size"],
)
def test_what_is_made_of_a_row_needs_no_decode(cache, options):
    """Rows are kept as the model gave them."""
    texts = ["a", "b b", "abc x"]
    results_of(FakeModel(), texts, RAW, cache=cache)
    model = FakeModel()
    again = matrix(results_of(model, texts, options, cache=cache))
    assert model.decodes == []
    assert again.tolist() == matrix(results_of(FakeModel(), texts, options)).tolist()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("other", RAW),
        ("fake", EncodeOptions(prompt_name="query")),
        ("fake", EncodeOptions(prompt="a ")),
        ("fake", EncodeOptions(prompt=" ")),
    ],
    ids=["model", "prompt_name", "prompt", "a space"],
)
def test_what_changes_a_row_decodes_all(cache, name, options):
    """Another model or another prompt is another row."""
    texts = ["a", "b b", "abc x"]
    results_of(FakeModel(), texts, RAW, cache=cache)
    model = FakeModel(name)
    results_of(model, texts, options, cache=cache)
    assert len(model.decoded) == 3


@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "a ", "b"]), st.sampled_from(["", "a", " a", "b", "a b"])),
             min_size=2, max_size=8)
)  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_no_prompt_and_text_share_a_row_with_others(tmp_path_factory, pairs):
    """The prompt "a" before "b" is not the text "ab", whatever was asked for before."""
    with VectorCache(tmp_path_factory.mktemp("c") / "v.sqlite", limit_bytes=1 << 30) as cache:
        for prompt, text in pairs:
            options = EncodeOptions(prompt=prompt, normalize_embeddings=False)
            (one,) = results_of(FakeModel(), [text], options, cache=cache)
            assert (one.vector.tolist(), one.n_tokens) == (raw_row(text, prompt), n_tokens_of(text, prompt))


def test_what_is_cached_and_what_is_not_come_in_order(cache):
    """A block of both is as one that is computed."""
    texts = [f"{'a ' * at}b" for at in range(10)]
    results_of(FakeModel(), texts[::2], cache=cache)
    model = FakeModel()
    again = results_of(model, texts, cache=cache)
    assert [one.is_cached for one in again] == [True, False] * 5
    assert sorted(model.decoded) == sorted(texts[1::2])
    assert [one.vector.tolist() for one in again] == [raw_row(text) for text in texts]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_text_is_bad_again(cache, kind):
    """An error is not kept, and what was good beside it is."""
    for _ in range(2):
        results = results_of(FakeModel(), ["a", BAD[kind], "b"], cache=cache)
        assert [type(one.error) for one in results] == [type(None), ERRORS[kind], type(None)]
    assert [one.is_cached for one in results] == [True, False, True]


def test_a_cut_text_is_no_whole_one(cache):
    """A row of the cut text is not taken for an error's text, nor for a cut elsewhere."""
    cut = Chunking(long="truncate")
    (one,) = results_of(FakeModel(), [LONG], chunking=cut, cache=cache)
    assert one.truncated
    (one,) = results_of(FakeModel(), [LONG], cache=cache)
    assert type(one.error) is TextTooLongError
    model = FakeModel(max_tokens=20)
    (one,) = results_of(model, [LONG], chunking=cut, cache=cache)
    assert (one.n_tokens, one.is_cached, len(model.decoded)) == (20, False, 1)
    (one,) = results_of(FakeModel(max_tokens=200), [LONG], chunking=cut, cache=cache)
    assert (one.truncated, one.n_tokens) == (False, 121)


def test_a_cache_that_fails_stops_nothing(tmp_path):
    """Where its folder cannot be, rows are computed."""
    (tmp_path / "file").write_text("")
    with VectorCache(tmp_path / "file" / "v.sqlite", limit_bytes=1 << 30) as broken:
        assert [one.vector.tolist() for one in results_of(FakeModel(), ["a"], cache=broken)] == [raw_row("a")]


# Long texts


@pytest.mark.parametrize(
    ("options", "chunking"),
    [(EncodeOptions(truncate="end", normalize_embeddings=False), Chunking()), (RAW, Chunking(long="truncate"))],
    ids=["truncate", "long"],
)
def test_a_long_text_is_cut_where_that_is_wanted(cache, options, chunking):
    """It says so, from the cache too; its row is that of what was left."""
    for is_cached in (False, True):
        results = results_of(FakeModel(), ["a", LONG, "b"], options, chunking=chunking, cache=cache)
        assert [one.truncated for one in results] == [False, True, False]
        assert [one.is_cached for one in results] == [is_cached] * 3
        assert results[1].n_tokens == 50
        assert results[1].vector.tolist() == raw_row(" ".join(LONG.split()[:49]))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["a", "bb", "abc.", "c\n", "\n\n", "\u4e2d"]), max_size=60).map(" ".join),
             min_size=1, max_size=4),
    st.integers(4, 30),
    st.integers(0, 2),
    st.sampled_from(["text", "markdown", "python"]),
)  # fmt: skip
def test_chunks_are_texts_of_their_own(texts, n_tokens, n_overlap, kind):
    """Their spans are where they lie and leave nothing out; row and tokens are those of the chunk embedded alone."""
    records = [PlainText(id=at, text=text, kind=kind, place=f"text {at}") for at, text in enumerate(texts)]
    chunking = Chunking(long="chunk", n_tokens=n_tokens, n_overlap=n_overlap)
    stream = TextStream(FakeModel(), RAW, chunking=chunking, cache=None)
    results = [one for block in stream.blocks(records) for one in block.results]
    assert [one.id for one in results] == sorted(one.id for one in results)
    for at, text in enumerate(texts):
        mine = [one for one in results if one.id == at]
        end = 0
        for one in mine:
            assert one.text == text[one.span.start : one.span.end]
            assert one.span.start <= end <= one.span.end
            assert one.span.first_line == 1 + text.count("\n", 0, one.span.start)
            assert one.span.last_line == 1 + text.count("\n", 0, max(0, one.span.end - 1))
            end = one.span.end
            assert one.n_tokens == n_tokens_of(one.text) <= n_tokens
            assert one.vector.tolist() == raw_row(one.text)
            assert not one.truncated
        assert (mine[0].span.start, end) == (0, len(text))
        assert len(mine) == 1 or n_tokens_of(text) > n_tokens


def test_chunks_have_room_for_the_prompt():
    """A chunk's tokens are counted as the model sees them."""
    options = EncodeOptions(prompt="p p p ", normalize_embeddings=False)
    results = results_of(FakeModel(), [LONG], options, chunking=Chunking(long="chunk", n_tokens=10))
    assert max(one.n_tokens for one in results) <= 10
    assert all(one.vector[0] == len(one.text.split()) + 3 + 1 for one in results)
    assert "".join(one.text for one in results) == LONG


def test_chunks_without_a_size_are_as_long_as_the_model_takes():
    """A text that fits is one chunk."""
    results = results_of(FakeModel(), ["a b", LONG], chunking=Chunking(long="chunk"))
    assert [one.id for one in results][:2] == [0, 1]
    assert max(one.n_tokens for one in results) <= 50
    assert len(results) <= 6


def test_a_text_of_many_chunks_takes_several_blocks(small_blocks):
    """No block has more than its pieces; only the last one is whole, and other texts are not mixed in."""
    texts = ["a", "b b b b b b b b b b b b b b b b b b b b b", "c"]
    blocks = blocks_of(FakeModel(), texts, chunking=Chunking(long="chunk", n_tokens=4))
    assert [{one.id for one in block.results} for block in blocks] == [{0}, {1}, {1}, {2}]
    assert [block.is_whole for block in blocks] == [True, False, True, True]
    assert [block.last.id for block in blocks] == [0, 1, 1, 2]
    assert max(len(block.results) for block in blocks) <= 4


def test_a_chunk_without_a_row_costs_no_other_chunk():
    """It is named by its text's place, and has its span."""
    text = "a a a nan a a a a a a a a a"
    results = results_of(FakeModel(), ["x", text], chunking=Chunking(long="chunk", n_tokens=5))
    (bad,) = [one for one in results if one.error is not None]
    assert "nan" in bad.text.split()
    assert (bad.id, bad.error.index, str(bad.error).startswith("text 1 ")) == (1, 1, True)
    assert "".join(one.text for one in results if one.id == 1) == text


@pytest.mark.parametrize("text", ["a" * 300 + " \0", "a " * 30 + "\ud800"], ids=["NUL", "surrogate"])
def test_a_long_text_that_no_tokenizer_takes_is_one_error(text):
    """It is found when its tokens are counted for cutting."""
    results = results_of(FakeModel(), ["a", text, "b"], chunking=Chunking(long="chunk", n_tokens=10))
    assert [type(one.error) for one in results] == [type(None), InvalidTextError, type(None)]
    assert str(results[1].error).startswith("text 1 ")


def test_a_prompt_that_leaves_no_room_is_told_with_the_text():
    """Whoever reads the message learns which text it is about."""
    options = EncodeOptions(prompt="p " * 20)
    records = [PlainText(id=1, text=LONG, place="in.txt, line 7")]
    ((one,),) = [
        block.results
        for block in TextStream(FakeModel(), options, chunking=Chunking(long="chunk", n_tokens=10), cache=None).blocks(
            records
        )
    ]
    assert type(one.error) is TextTooLongError
    assert str(one.error).startswith("in.txt, line 7")


# Means


def mean_of(chunks):
    weights = [one.n_tokens for one in chunks]
    return np.average(unit(matrix(chunks)).astype(np.float64), axis=0, weights=weights)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "bb", "abc", "x"]), min_size=1, max_size=80).map(" ".join),
                min_size=1, max_size=4), st.integers(1, 6))  # fmt: skip
def test_a_mean_is_that_of_the_unit_vectors_of_its_chunks(texts, n_pieces):
    """Weighted by their tokens; one result a text, over as many blocks as its chunks take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_N_PIECES_BLOCK", n_pieces)
        how = {"n_tokens": 8, "n_overlap": 2}
        chunks = results_of(FakeModel(), texts, chunking=Chunking(**how, long="chunk"))
        means = results_of(FakeModel(), texts, EncodeOptions(), chunking=Chunking(**how, long="mean"))
    assert [(one.id, one.text, one.span) for one in means] == [(at, text, None) for at, text in enumerate(texts)]
    for one in means:
        mine = [chunk for chunk in chunks if chunk.id == one.id]
        wanted = mean_of(mine)
        assert one.vector == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-6)
        assert one.n_tokens == sum(chunk.n_tokens for chunk in mine)


@pytest.mark.parametrize("long", ["truncate", "chunk", "mean"])
@pytest.mark.parametrize("options", [EncodeOptions(), RAW], ids=["unit length", "as it is"])
def test_a_text_that_fits_has_the_same_vector_whatever_becomes_of_long_ones(long, options):
    """What is not long is not changed."""
    (one,) = results_of(FakeModel(), ["a a b"], options, chunking=Chunking(long=long))
    (wanted,) = results_of(FakeModel(), ["a a b"], options)
    assert one.vector == pytest.approx(wanted.vector, abs=1e-6)


def test_a_mean_with_a_bad_chunk_is_that_text_s_error(small_blocks):
    """It has no vector, and the sums of the texts around it are their own."""
    how = Chunking(n_tokens=4, long="mean")
    bad = "a a a " * 3 + "nan " + "a " * 9
    results = results_of(FakeModel(), [LONG, bad, LONG], EncodeOptions(), chunking=how)
    assert [type(one.error) for one in results] == [type(None), NonFiniteEmbeddingError, type(None)]
    assert (results[1].vector, results[1].error.index) == (None, 1)
    (alone,) = results_of(FakeModel(), [LONG], EncodeOptions(), chunking=how)
    assert results[0].vector.tobytes() == results[2].vector.tobytes() == alone.vector.tobytes()


def test_a_mean_is_cached_where_all_its_chunks_are(cache):
    """A second run decodes none; one more word decodes what changed."""
    how = {"chunking": Chunking(n_tokens=8, long="mean"), "cache": cache}
    results_of(FakeModel(), [LONG], **how)
    model = FakeModel()
    (again,) = results_of(model, [LONG], **how)
    assert (again.is_cached, model.decodes) == (True, [])
    (more,) = results_of(model, [LONG + "x x x x x x x x x"], **how)
    assert not more.is_cached
    assert 0 < len(model.decoded) < 6


def test_a_stream_can_be_run_again():
    """What an abandoned run had summed up is not in the next one's means."""
    how = Chunking(n_tokens=4, long="mean")
    stream = TextStream(FakeModel(), EncodeOptions(), chunking=how, cache=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_N_PIECES_BLOCK", 2)
        next(stream.blocks(plain_texts(["c " * 40])))
        results = [one for block in stream.blocks(plain_texts([LONG])) for one in block.results]
    (alone,) = results_of(FakeModel(), [LONG], EncodeOptions(), chunking=how)
    assert results[0].vector == pytest.approx(alone.vector, abs=1e-6)
    assert results[0].n_tokens == alone.n_tokens


# The Embedder's own


def test_encode_stream_is_the_same_stream():
    """One result a text, with the Embedder's length where the options name none."""
    embedder = embedder_over(FakeModel(), truncate_dim=2)
    found = list(embedder.encode_stream([("x", "a"), "b b"]))
    assert [one.id for one in found] == ["x", 1]
    assert matrix(found).tolist() == unit([raw_row("a")[:2], raw_row("b b")[:2]]).tolist()
    full = EncodeOptions(truncate_dim=N_EMBD)
    assert matrix(list(embedder.encode_stream(["a"], full))).tolist() == unit([raw_row("a")]).tolist()


def test_records_of_any_class_are_texts():
    """What has an id, a text, a kind and a place is one."""
    record = SimpleNamespace(id="x", text="a", kind="text", place="here", more=3)
    (block,) = TextStream(FakeModel(), RAW, chunking=Chunking(), cache=None).blocks([record])
    assert block.last is record
