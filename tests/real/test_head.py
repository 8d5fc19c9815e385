"""Stopping before the vocabulary projection gives the rows of the ordinary path, or is not done."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
import time

import numpy as np
import pytest

from gguf_embed import DecodeError, Embedder, Limits, ModelLoadError, similarity_pairwise
from gguf_embed.engine import decoder
from gguf_embed.engine.session import Session
from gguf_embed.engine.settings import SessionSettings
from gguf_embed.native import head
from gguf_embed.native.context import Context
from gguf_embed.native.head import HeadStop
from gguf_embed.native.layout import Layout
from gguf_embed.native.llama import Model

SMALL = Layout(n_ctx=256, n_ubatch=64, n_seq_max=8, skips_head=True)
TEXTS = ["the capital", "", "a", "in the end and on", "é 中", "words " * 5]
LONG = "the capital and the end of it " * 20


@pytest.fixture
def open_session(qwen3):
    """Open the synthetic Qwen3 in some layout; all are closed at the end."""
    opened = []

    def open_one(layout=SMALL, **settings):
        known = {"path": qwen3, "pooling_type": "last", "n_ctx_max": 1024, "n_batch": layout.n_ubatch}
        opened.append(Session(SessionSettings(**known | settings, layout=layout)))
        return opened[-1]

    yield open_one
    for session in opened:
        session.close()


@pytest.fixture
def ordinary(open_session):
    """The session that computes the head: what is right."""
    return open_session(dataclasses.replace(SMALL, skips_head=False))


class Meddling:
    """ggml's library, but for one function."""

    def __init__(self, base, **functions):
        self._base = base
        for name, function in functions.items():
            setattr(self, name, function)

    def __getattr__(self, name):
        return getattr(self._base, name)


def meddle(session, **functions):
    """Let the callback of a session call other functions than ggml's."""
    stop = session._decoder._context._stop
    stop._base = Meddling(stop._base, **functions)
    return stop


def rows_of(session, texts, **options):
    tokens, _ = session.tokenize(texts)
    return session.embed(tokens, **options)


def cosines(a, b):
    return np.einsum("ij,ij->i", a, b) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# The same rows


@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_rows_are_those_of_the_ordinary_path(open_session, ordinary, batch_size):
    """Alone and in batches, in the caller's order."""
    session = open_session()
    assert (session.layout.skips_head, ordinary.layout.skips_head) == (True, False)
    rows = rows_of(session, TEXTS, batch_size=batch_size)
    assert rows.shape == (len(TEXTS), session.n_embd)
    assert cosines(rows, rows_of(ordinary, TEXTS)).min() >= 0.99999


def test_lengths_are_those_of_the_ordinary_path_too(open_session, ordinary):
    """Rows are the same before they are normalised, not their directions alone."""
    rows, right = rows_of(open_session(), TEXTS), rows_of(ordinary, TEXTS)
    assert np.abs(rows - right).max() <= 1e-3 * np.abs(right).max()


def test_a_text_of_several_parts(open_session, ordinary):
    """Only the last part of a text that is longer than n_ubatch has a row, and it has seen the others."""
    session = open_session()
    tokens, _ = session.tokenize([LONG])
    assert 2 * SMALL.n_ubatch < len(tokens[0]) <= SMALL.n_ctx
    assert cosines(rows_of(session, [LONG]), rows_of(ordinary, [LONG])).min() >= 0.99999
    assert cosines(rows_of(session, [LONG]), session.embed([tokens[0][-SMALL.n_ubatch :]])).max() < 0.9999


def test_a_part_that_is_not_the_last_has_no_row(qwen3):
    """Nothing is computed for a text that goes on, and asking for it is an error."""
    with Model(qwen3, SMALL) as model:
        context = Context(model, SMALL, pooling_type="last", n_threads=1)
        ids, sequence = np.arange(4, dtype=np.int32), np.zeros(4, dtype=np.int32)
        context.decode(ids, ids, sequence, is_end=False)
        with pytest.raises(DecodeError, match="0 rows for 1 texts"):
            context.embeddings(1)
        context.decode(ids, ids + 4, sequence)
        assert context.embeddings(1).shape == (1, 256)
        context.close()


def test_a_text_that_just_fills_its_parts(open_session, ordinary):
    """The row comes where a part ends with the text, not a part later."""
    tokens = [ids[: 2 * SMALL.n_ubatch] for ids in ordinary.tokenize([LONG])[0]]
    assert cosines(open_session().embed(tokens), ordinary.embed(tokens)).min() >= 0.99999


def test_long_and_short_texts_in_turn(open_session, ordinary):
    """Rows of one decode never turn up in the next."""
    session, texts = open_session(), [LONG, *TEXTS, LONG[:200], *TEXTS]
    assert cosines(rows_of(session, texts), rows_of(ordinary, texts)).min() >= 0.99999


def test_after_growth(open_session, ordinary):
    """A context that has grown for a long text skips the head as the first one did."""
    session = open_session()
    rows = rows_of(session, [LONG * 3, *TEXTS])
    assert session._decoder._context.n_ctx > SMALL.n_ctx
    assert session._decoder._context._stop is not None
    assert cosines(rows, rows_of(ordinary, [LONG * 3, *TEXTS])).min() >= 0.99999


def test_with_a_quantized_cache(open_session, ordinary):
    """Keys and values of Q8_0 cost a little accuracy, in both paths alike."""
    layout = dataclasses.replace(SMALL, kv_type="q8_0")
    session, right = open_session(layout), rows_of(ordinary, [LONG, *TEXTS])
    rows = rows_of(session, [LONG, *TEXTS])
    alike = rows_of(open_session(dataclasses.replace(layout, skips_head=False)), [LONG, *TEXTS])
    assert cosines(rows, right).min() >= 0.999
    assert cosines(rows, alike).min() >= 0.99999
    sizes = [buffer.size_bytes for one in (session, ordinary) for buffer in one.buffers if buffer.part == "KV"]
    assert sizes[0] / sizes[1] == pytest.approx(34 / 64, rel=0.01)


def test_quantized_weights(open_session, qwen3_quantized):
    """The head is skipped whatever the weights are."""
    path = qwen3_quantized("Q4_K_M")
    right = rows_of(open_session(dataclasses.replace(SMALL, skips_head=False), path=path), TEXTS)
    assert cosines(rows_of(open_session(path=path), TEXTS), right).min() >= 0.99999


# Who skips


def test_an_embedder_of_a_last_token_model_skips(qwen3):
    """The plan says so, and the session does so."""
    with Embedder(qwen3, limits=Limits(n_threads=1)) as model:
        assert model.plan.layout.skips_head
        model.load()
        assert model._model._session.layout.skips_head
        assert model._model._session._decoder._context._stop is not None


@pytest.mark.parametrize("pooling_type", ["mean", "cls"])
def test_other_poolings_never_skip(qwen3, pooling_type):
    """A decoder whose vectors are not its last token's needs every row."""
    with Embedder(qwen3, pooling_type=pooling_type, limits=Limits(n_threads=1, n_ctx=256)) as model:
        assert not model.plan.layout.skips_head
        if pooling_type == "cls":  # the first token of a causal model has seen nothing of the text
            with pytest.raises(ModelLoadError, match="begin with a word and not with CLS"):
                model.encode("the")
            return
        assert model.encode("the").shape == (256,)
        assert model._model._session._decoder._context._stop is None


def test_encoders_never_skip(bert, starter):
    """They have no head to skip."""
    for path in (bert, starter):
        with Embedder(path, limits=Limits(n_threads=1)) as model:
            assert not model.plan.layout.skips_head
            model.load()
            assert not model._model._session.layout.skips_head
            assert model._model._session._decoder._context._stop is None


# The canary


def test_rows_that_disagree_are_not_used(open_session, ordinary, monkeypatch, caplog):
    """Where the two paths do not agree at load, one warning has the cosine, and the ordinary one embeds."""
    noise = np.random.default_rng(0).standard_normal((1, 256), dtype=np.float32)
    monkeypatch.setattr(HeadStop, "rows", lambda _: noise)
    session = open_session()
    [record] = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert (
        "synthetic-qwen3-F32.gguf: its head cannot be skipped: its row and the ordinary one have cosine " in caplog.text
    )
    assert abs(float(record.getMessage().partition("have cosine ")[2].partition(";")[0])) < 0.5
    assert not session.layout.skips_head
    assert session.layout == dataclasses.replace(SMALL, skips_head=False)
    assert cosines(rows_of(session, [LONG, *TEXTS]), rows_of(ordinary, [LONG, *TEXTS])).min() >= 0.99999
    assert rows_of(session, [LONG * 3]).shape == (1, 256)  # after growth too
    assert session._decoder._context._stop is None
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("angle", "is_used"), [(0.001, True), (0.1, False)])
def test_how_far_rows_may_differ(open_session, monkeypatch, angle, is_used):
    """Rounding is allowed; a cosine below 0.9999 is not."""
    real = HeadStop.rows

    def turned(self):
        rows = real(self)
        aside = np.roll(rows, 1, axis=1)
        aside -= (aside * rows).sum() / (rows * rows).sum() * rows
        return np.cos(angle) * rows + np.sin(angle) * aside * np.linalg.norm(rows) / np.linalg.norm(aside)

    monkeypatch.setattr(HeadStop, "rows", turned)
    assert open_session().layout.skips_head is is_used


def test_rows_that_are_not_finite_are_not_used(open_session, monkeypatch, caplog):
    """A canary of NaN counts as disagreement."""
    monkeypatch.setattr(HeadStop, "rows", lambda _: np.full((1, 256), np.nan, dtype=np.float32))
    assert not open_session().layout.skips_head
    assert "a row is not finite" in caplog.text


def test_a_graph_without_the_norm_is_embedded_ordinarily(open_session, ordinary, monkeypatch, caplog):
    """A model whose graph has no result_norm loads all the same, with one warning that says why."""
    monkeypatch.setattr(head, "_LAST_NORM", b"no_such_norm")
    session = open_session()
    assert not session.layout.skips_head
    assert "no result_norm to stop at" in caplog.text
    assert len(caplog.records) == 1
    assert cosines(rows_of(session, TEXTS), rows_of(ordinary, TEXTS)).min() >= 0.99999


def test_the_canary_leaves_nothing_behind(open_session, qwen3, monkeypatch):
    """Its context is closed before the real one is made, and the buffers told are those of the real one."""
    alive, most = [], []
    real = decoder.Context

    def counting(*arguments, **options):
        alive[:] = [context for context in alive if context._handle is not None]
        alive.append(real(*arguments, **options))
        most.append(len(alive))
        return alive[-1]

    monkeypatch.setattr(decoder, "Context", counting)
    session = open_session()
    assert most == [1, 1]
    parts = [buffer.part for buffer in session.buffers]
    assert sorted(parts) == ["KV", "compute", "model", "output"]
    [kv] = [buffer.size_bytes for buffer in session.buffers if buffer.part == "KV"]
    assert kv == 3 * 2 * 2 * 128 * 2 * SMALL.n_ctx  # layers, keys and values, heads, head_dim, F16


# What happens inside a decode


def test_an_exception_inside_the_callback_is_raised(open_session, ordinary):
    """It comes out of the call instead of being printed, and the next call is right."""
    session = open_session()

    def broken(*_):
        raise MemoryError("no room for a row")

    stop = meddle(session, ggml_backend_tensor_get=broken)
    with pytest.raises(MemoryError, match="no room for a row"):
        rows_of(session, TEXTS)
    stop._base = stop._base._base
    assert cosines(rows_of(session, TEXTS), rows_of(ordinary, TEXTS)).min() >= 0.99999


@pytest.mark.parametrize("function", ["ggml_get_name", "ggml_nbytes", "ggml_backend_tensor_get"])
def test_a_ctrl_c_inside_the_callback_is_raised(open_session, ordinary, function):
    """Wherever in the callback it comes, it comes out of the call, and the next call is right."""
    session = open_session()

    def interrupted(*_):
        raise KeyboardInterrupt

    stop = meddle(session, **{function: interrupted})
    with pytest.raises(KeyboardInterrupt):
        rows_of(session, TEXTS)
    stop._base = stop._base._base
    assert cosines(rows_of(session, TEXTS), rows_of(ordinary, TEXTS)).min() >= 0.99999


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals come otherwise here")
@pytest.mark.parametrize("after_ms", [0, 1, 2, 3])
def test_a_real_ctrl_c_while_decoding_is_raised(open_session, ordinary, after_ms):
    """A signal between two nodes of the graph ends the call; the handler of before is in place again."""
    session, before = open_session(), signal.getsignal(signal.SIGINT)
    is_decoding = threading.Event()

    def interrupt():
        is_decoding.wait(20)
        time.sleep(after_ms / 1000)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    tokens, _ = session.tokenize([LONG] * 100)
    with pytest.raises(KeyboardInterrupt):
        session.embed(tokens, batch_size=1, on_batch=lambda *_: is_decoding.set())
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert cosines(rows_of(session, TEXTS), rows_of(ordinary, TEXTS)).min() >= 0.99999


def test_too_few_rows_never_make_a_wrong_matrix(open_session, monkeypatch, caplog):
    """A decode that gave other than one row a text is told, and the rows are taken by the ordinary path."""
    session = open_session()
    right = rows_of(session, TEXTS)
    real = HeadStop.rows
    monkeypatch.setattr(HeadStop, "rows", lambda self: real(self)[1:])
    assert similarity_pairwise(rows_of(session, TEXTS), right).min() >= 0.9999
    assert "5 rows for 6 texts" in caplog.text


def test_the_head_is_really_skipped(qwen3):
    """No node after the last norm is computed: the vocabulary's scores are never asked for."""
    seen = []
    layout = dataclasses.replace(SMALL, n_seq_max=1)
    with Model(qwen3, layout) as model:
        context = Context(model, layout, pooling_type="last", n_threads=1)
        base = context._stop._base
        context._stop._base = Meddling(
            base, ggml_get_name=lambda tensor: seen.append(base.ggml_get_name(tensor)) or seen[-1]
        )
        ids = np.arange(3, dtype=np.int32)
        context.decode(ids, ids, np.zeros(3, dtype=np.int32))
        assert context.embeddings(1).shape == (1, 256)
        context.close()
    assert seen[-1] == b"result_norm"
    assert b"result_output" not in seen
