"""What must hold however texts are grouped, ordered, cut or shared."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import synthetic

from gguf_embed import DimensionError, Embedder, Limits, similarity_pairwise
from gguf_embed.native.layout import Layout


def texts_of(n: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Texts of mixed length, the empty one among them."""
    rng = random.Random(seed)
    words = [
        "the",
        "capital",
        "of",
        "a",
        "thing",
        "and",
        "words",
        "on",
        "tides",
        "é",
        "你好",
        "🙂",
        "return",
        "x",
        "=",
        "1",
    ]
    return [" ".join(rng.choice(words) for _ in range(rng.randint(0, longest))) for _ in range(n)]


@pytest.fixture(params=["qwen3", "bert", "starter"])
def model(request):
    """A model of each pooling: last, cls, mean."""
    with Embedder(str(request.getfixturevalue(request.param))) as embedder:
        yield embedder


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 1000])
def test_any_number_of_texts(qwen3, n):
    """Any number of texts of mixed lengths works, in order, and each equals the text embedded alone."""
    texts = texts_of(n, seed=n)
    with Embedder(str(qwen3)) as model:
        together = model.encode(texts)
        some = random.Random(n).sample(range(n), min(n, 40))
        alone = np.stack([model.encode(texts[index]) for index in some])
    assert together.shape == (n, 256)
    assert similarity_pairwise(together[some], alone).min() >= 0.99999


def test_batched_equals_one_by_one(model):
    """For every pooling, a text has one vector however it is grouped."""
    texts = texts_of(120, longest=15)
    together = model.encode(texts)
    alone = np.stack([model.encode(text) for text in texts])
    assert similarity_pairwise(together, alone).min() >= 0.99999
    assert similarity_pairwise(model.encode(texts, batch_size=3), alone).min() >= 0.99999


def test_order_survives(model):
    """Shuffled texts come back with their own vectors."""
    texts = texts_of(60, longest=15)
    order = random.Random(7).sample(range(60), 60)
    shuffled = model.encode([texts[index] for index in order])
    assert similarity_pairwise(shuffled, model.encode(texts)[order]).min() >= 0.99999


def test_long_texts_are_split_without_loss(tmp_path):
    """A last-token text longer than a decode has the vector that one large decode gives it."""
    path = synthetic.write_qwen3(tmp_path / "long.gguf", shape=synthetic.Qwen3Shape(n_ctx_train=4096))
    text = " ".join(texts_of(1, seed=3, longest=50)) * 60
    with Embedder(str(path)) as split, Embedder(str(path)) as whole:
        assert len(split.tokenize([text])[0]) > 3 * split.plan.layout.n_ubatch
        whole.load()
        whole._model._session._decoder._open(Layout(n_ctx=4096, n_ubatch=4096, n_seq_max=1))
        assert split.similarity(split.encode(text), whole.encode(text))[0, 0] >= 0.9999


def test_threads_agree_with_serial(model):
    """Eight threads on one object get what one thread gets."""
    texts = texts_of(64, longest=12)
    serial = model.encode(texts)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(model.encode, texts * 3))
    assert similarity_pairwise(np.stack(rows), np.concatenate([serial] * 3)).min() >= 0.99999


def test_rows_are_unit_or_raw(model):
    """Rows have unit length unless asked otherwise, and then point the same way."""
    texts = texts_of(10, longest=10)
    unit, raw = model.encode(texts), model.encode(texts, normalize_embeddings=False)
    assert np.abs(np.linalg.norm(unit, axis=1) - 1).max() < 1e-6
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 1e-3
    assert similarity_pairwise(unit, raw).min() > 0.999999


def test_mrl_is_slice_then_l2(registered):
    """truncate_dim=d equals slicing and normalising by hand to 1e-6, for every d from 32 to n_embd."""
    texts = texts_of(4)
    with Embedder(str(registered)) as model:
        raw = model.encode(texts, normalize_embeddings=False)
        for dim in range(32, 257):
            by_hand = raw[:, :dim] / np.linalg.norm(raw[:, :dim], axis=1, keepdims=True)
            assert np.abs(model.encode(texts, truncate_dim=dim) - by_hand).max() <= 1e-6


@pytest.mark.parametrize("dim", [31, 257, 0, -1])
def test_mrl_outside_the_range_is_refused(registered, dim):
    """A length that the model was not trained for is an error that has the allowed ones."""
    with Embedder(str(registered)) as model, pytest.raises(DimensionError, match=r"32\.\.256"):
        model.encode("the", truncate_dim=dim)


def test_query_prompt_is_the_whole_text(registered):
    """encode_query embeds template and text as one string, and a task replaces the task alone."""
    with Embedder(str(registered)) as model:
        query = model.encode_query("the capital")
        assert model.similarity(query, model.encode("Instruct: the task\nQuery:the capital"))[0, 0] > 0.999999
        tasked = model.encode_query("the capital", task="find {text}")
        assert model.similarity(tasked, model.encode("Instruct: find {text}\nQuery:the capital"))[0, 0] > 0.999999
        assert model.similarity(model.encode_document("the"), model.encode("the"))[0, 0] > 0.999999


def test_context_grows_for_a_long_text(tmp_path):
    """A text beyond the working context is embedded, and short ones after it still are."""
    path = synthetic.write_qwen3(tmp_path / "grow.gguf", shape=synthetic.Qwen3Shape(n_ctx_train=8192))
    with Embedder(str(path)) as model:
        before = model.encode("the capital")
        assert model.plan.layout.n_ctx == 2048
        model.encode("a" * 5000)
        assert model._model._session._decoder._context.n_ctx >= 5001
        assert model.similarity(before, model.encode("the capital"))[0, 0] > 0.99999


def test_limits_n_ctx_is_the_longest_text(qwen3):
    """n_ctx bounds texts."""
    with Embedder(str(qwen3), limits=Limits(n_ctx=512)) as model:
        assert model.max_seq_length == 512
