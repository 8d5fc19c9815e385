"""Batches of an encoder that are decoded side by side have the rows that they have one after the other."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import synthetic

from gguf_embed import ClosedError, DecodeError
from gguf_embed.engine import crew, decoder
from gguf_embed.engine.session import Session
from gguf_embed.engine.settings import SessionSettings
from gguf_embed.errors import AllocationError
from gguf_embed.native.layout import Layout

pytestmark = pytest.mark.real

LAYOUT = Layout(n_ctx=128, n_ubatch=128, n_seq_max=8, n_contexts=4)
TEXTS = [f"the cat sat on a mat {'dog ' * (index % 7)}{chr(97 + index % 26)} {chr(97 + index // 26)}"
         for index in range(120)]  # fmt: skip


@pytest.fixture
def open_session(tmp_path):
    """Open a synthetic BERT; all sessions are closed at the end."""
    path = synthetic.write_bert(tmp_path / "bert.gguf", pooling_type=1)
    opened = []

    def open_one(layout=LAYOUT):
        settings = SessionSettings(
            path=path, pooling_type="mean", layout=layout, n_ctx_max=128, n_batch=64, n_threads=3
        )
        opened.append(Session(settings))
        return opened[-1]

    yield open_one
    for session in opened:
        session.close()


def rows_of(session, texts=TEXTS, **options):
    """Embed texts as they are."""
    rows = np.full((len(texts), session.n_embd), np.nan, dtype=np.float32)
    session.embed_texts(texts, rows, finish=lambda found: found, **options)
    return rows


def alike(rows, others):
    """The same but for what texts they were packed with."""
    cosines = (rows * others).sum(axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(others, axis=1)
    return cosines.min() >= 0.99999


def test_side_by_side_is_as_one_after_the_other(open_session):
    """The same rows in the caller's order, and the same bits when it is done again."""
    together = open_session()
    alone = open_session(dataclasses.replace(LAYOUT, n_contexts=1))
    assert alike(rows_of(together), rows_of(alone))
    assert np.array_equal(rows_of(together), rows_of(together))
    assert len(together._crew._decoders) == 3
    assert alone._crew is None


def test_a_few_texts_open_no_contexts(open_session):
    """A query has the first context with all threads, and costs no memory beside it."""
    session = open_session()
    rows_of(session, TEXTS[:3])
    assert session._crew._decoders == []


def test_progress_counts_everything(open_session):
    """on_batch is called in the caller's thread, and adds up."""
    seen, threads = [], set()

    def on_batch(n_texts, n_tokens):
        seen.append((n_texts, n_tokens))
        threads.add(threading.current_thread())

    session = open_session()
    rows = np.empty((len(TEXTS), session.n_embd), dtype=np.float32)
    n_tokens, _ = session.embed_texts(TEXTS, rows, finish=lambda found: found, on_batch=on_batch)
    assert (sum(n for n, _ in seen), sum(n for _, n in seen)) == (len(TEXTS), sum(n_tokens))
    assert threads == {threading.current_thread()}


def test_refused_memory_means_one_after_the_other(open_session, monkeypatch, caplog):
    """Where there is no memory for the others, one warning says so and the rows are the same."""
    expected = rows_of(open_session(dataclasses.replace(LAYOUT, n_contexts=1)))
    session = open_session()
    real, made = decoder.Context, []

    def second_fails(*arguments, **options):
        if made:
            raise AllocationError("refused", path=session.settings.path)
        made.append(real(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(decoder, "Context", second_fails)
    assert alike(rows_of(session), expected)
    assert alike(rows_of(session), expected)
    assert made[0]._handle is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_batch_that_fails_costs_nothing_but_time(open_session, monkeypatch, caplog):
    """The batches are decoded one after the other, the next call has them side by side, and no thread is left."""
    session = open_session()
    expected = rows_of(session)
    real, calls = decoder.Decoder.decode, []

    def fails_once(self, *arguments, **options):
        calls.append(self)
        if len(calls) == 5:
            raise DecodeError("broken", return_code=-3)
        return real(self, *arguments, **options)

    monkeypatch.setattr(decoder.Decoder, "decode", fails_once)
    assert np.allclose(rows_of(session), expected, atol=1e-4)
    assert "batches side by side failed, and are decoded one after the other: broken" in caplog.text
    assert np.array_equal(rows_of(session), expected)
    session.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("gguf-embed-decode")]


def test_a_row_that_is_not_finite_is_computed_again(open_session, monkeypatch, caplog):
    """A crew's row has the same guard as any other."""
    session = open_session()
    expected = rows_of(session)
    real, spoilt = crew.Crew.decode, []

    def spoiling(self, batches):
        found = real(self, batches)
        spoilt.append(found[0])
        found[0][0] = np.nan
        return found

    monkeypatch.setattr(crew.Crew, "decode", spoiling)
    rows = rows_of(session)
    assert np.isfinite(rows).all()
    assert np.abs(rows - expected).max() < 1e-3
    assert "alone it is right" in caplog.text


def test_a_callback_may_close_or_embed(open_session):
    """on_batch is called while nothing is held: another call goes through, and close() ends this one."""
    session = open_session()
    expected, again = rows_of(session), []

    def nested(*_):
        if not again:
            again.append(rows_of(session))

    rows_of(session, on_batch=nested)
    assert np.array_equal(again[0], expected)
    assert np.isfinite(rows_of(session, on_batch=lambda *_: session.close())).all()
    with pytest.raises(ClosedError):
        rows_of(session)


def test_calls_from_many_threads_and_close(open_session):
    """Calls take turns; after close() they say so."""
    session = open_session()
    expected = rows_of(session)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda _: rows_of(session), range(8)):
            assert np.array_equal(rows, expected)
    session.close()
    with pytest.raises(ClosedError):
        rows_of(session)
