"""A stream over a worker: the text of which a child dies or hangs is named, and the others are right."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import fake_session
import pytest

from gguf_embed.encoding import EncodeOptions
from gguf_embed.engine import breaker
from gguf_embed.engine.worker import Worker
from gguf_embed.errors import WorkerCrashedError
from gguf_embed.stream.chunking import Chunking
from gguf_embed.stream.pipeline import TextStream
from gguf_embed.stream.results import plain_texts

RAW = EncodeOptions(normalize_embeddings=False)


class WorkerModel:
    """What a stream needs of a model, over a worker."""

    spec, n_embd, max_tokens = None, 3, fake_session.MAX_TOKENS

    def __init__(self, worker):
        self._worker = worker

    def open_as_fetched(self):
        """The worker."""
        return self._worker


@pytest.fixture
def stream():
    """Embed texts with a worker whose clock runs a minute a look, so that no breaker opens."""
    minutes = itertools.count(step=60)
    worker = Worker(fake_session.opener, name="fake", clock=lambda: next(minutes))
    model = WorkerModel(worker)

    def embed(texts):
        blocks = TextStream(model, RAW, chunking=Chunking(), cache=None).blocks(plain_texts(texts))
        return [one for block in blocks for one in block.results]

    yield SimpleNamespace(embed=embed, worker=worker, model=model)
    worker.close()


@pytest.mark.parametrize("fatal", ["abort", "exit now", "tokenizer-abort"])
def test_the_text_of_which_the_worker_dies_is_named(stream, fatal):
    """It is tried alone, dies again, and has the error; all others have their rows."""
    texts = ["one", "two words", fatal, "three words here", "four", "five words"] * 2
    results = stream.embed(texts)
    for one in results:
        if one.text == fatal:
            assert isinstance(one.error, WorkerCrashedError)
            assert one.error.index == one.id
            assert str(one.error).startswith(f"text {one.id}: fake's worker")
        else:
            assert one.vector[0] == len(one.text.split())


def test_a_hang_is_a_crash(stream, monkeypatch):
    """A decode that does not come back is ended, and its text is named."""
    monkeypatch.setattr(breaker, "_LEAST_S", 1.0)
    monkeypatch.setattr(breaker, "_S_PER_TOKEN", 0.0)
    monkeypatch.setattr(breaker, "_PATIENCE", 0)
    results = stream.embed(["one", "two words", "hang", "three words here"])
    assert [one.error is None for one in results] == [True, True, False, True]
    assert "many times as long" in str(results[2].error)


def test_a_worker_that_is_not_started_again_ends_the_stream():
    """After three crashes in a short time no text is to blame any more."""
    worker = Worker(fake_session.opener, name="fake")
    model = WorkerModel(worker)
    try:
        blocks = TextStream(model, RAW, chunking=Chunking(), cache=None).blocks(plain_texts(["abort", "abort 2", "a"]))
        with pytest.raises(WorkerCrashedError, match="not started again"):
            list(blocks)
    finally:
        worker.close()
