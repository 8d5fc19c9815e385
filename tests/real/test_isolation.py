"""Embedder(isolation="process"): the same answers from a child whose end this process outlives."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import synthetic

from gguf_embed import (
    ClosedError,
    Embedder,
    EncodeOptions,
    ModelLoadError,
    OfflineError,
    TextTooLongError,
    UnknownModelError,
    WorkerCrashedError,
)

pytestmark = pytest.mark.real

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
TEXTS = ["A cat sleeps.", "", "The kitten is napping.", "Interest rates rose.", "A cat sleeps.", "x " * 150]


@pytest.fixture
def pair(starter_cache):
    """The same model in this process and in another."""
    with Embedder("all-minilm-l6-v2") as here, Embedder("all-minilm-l6-v2", isolation="process") as there:
        yield here, there


def test_rows_are_the_same(pair):
    """Vectors, counts, cuts, tokens and facts; one text, some, none; with every option."""
    here, there = pair
    for options in ({}, {"normalize_embeddings": False}, {"batch_size": 1}, {"precision": "binary"}):
        assert np.allclose(there.encode(TEXTS, **options), here.encode(TEXTS, **options), atol=1e-4)
    assert np.allclose(there.encode("one"), here.encode("one"), atol=1e-6)
    assert there.encode([]).shape == (0, 384)
    assert there.tokenize(TEXTS) == here.tokenize(TEXTS)
    assert there.fingerprint == here.fingerprint
    assert (there.max_seq_length, there.n_embd) == (here.max_seq_length, here.n_embd)
    assert there.plan.quant == here.plan.quant
    long = "word " * 1000
    assert there.report([long], EncodeOptions(truncate="end")).truncated == (0,)


def test_errors_are_the_same(pair):
    """By class and by facts."""
    for model in pair:
        with pytest.raises(TextTooLongError) as caught:
            model.encode(["a", "word " * 1000])
        assert (caught.value.index, caught.value.n_ctx) == (1, 256)
        with pytest.raises(TypeError, match="text 1 is int"):
            model.encode(["a", 1])


def test_what_cannot_be_loaded_is_told_by_its_own_error(tmp_path, monkeypatch):
    """As in this process; an unknown name at once."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelLoadError), Embedder(broken, isolation="process") as model:
        model.load()
    with pytest.raises(UnknownModelError):
        Embedder("no-such-model", isolation="process")
    monkeypatch.setenv("GGUF_EMBED_OFFLINE", "1")
    with pytest.raises(OfflineError), Embedder("qwen3-embedding-0.6b", isolation="process") as model:
        model.encode("x")


def test_isolation_is_process_or_none():
    """Anything else is a mistake."""
    with pytest.raises(ValueError, match="isolation is 'thread'"):
        Embedder("all-minilm-l6-v2", isolation="thread")


@posix
def test_a_crash_costs_one_call(pair):
    """The next one is answered by another process, from the same file."""
    _, model = pair
    expected = model.encode(TEXTS)
    child = psutil.Process(model._model._session.process_id)
    threading.Timer(0.3, child.send_signal, (signal.SIGABRT,)).start()
    with pytest.raises(WorkerCrashedError, match="SIGABRT"):
        model.encode([f"a sentence of some words {number}" for number in range(5000)])
    assert np.allclose(model.encode(TEXTS), expected, atol=1e-6)
    assert model._model._session.process_id != child.pid


def test_threads_share_it(pair):
    """A query is answered while a large call runs in another thread."""
    _, model = pair
    model.load()
    large = threading.Thread(target=model.encode, args=([f"some words to embed {number}" for number in range(3000)],))
    large.start()
    time.sleep(0.3)
    assert model.encode("x").shape == (384,)
    large.join()


def test_warnings_come_through(starter_cache, caplog):
    """What the child logs is this process's log."""
    caplog.set_level(logging.DEBUG, logger="gguf_embed")
    with Embedder("all-minilm-l6-v2", isolation="process") as model:
        model.load()
    assert any(record.name.startswith("gguf_embed.native") for record in caplog.records)


def test_closing_ends_the_process(starter_cache):
    """And use after it is ClosedError."""
    model = Embedder("all-minilm-l6-v2", isolation="process")
    model.load()
    child = model._model._session.process_id
    model.close()
    model.close()
    assert not psutil.pid_exists(child)
    with pytest.raises(ClosedError):
        model.encode("x")


def test_last_token_models_work_there_too(tmp_path):
    """With prompts that are shared, as here."""
    path = synthetic.write_qwen3(tmp_path / "Qwen3-synthetic.gguf")
    texts = [f"query number {number}" for number in range(40)]
    prompt = "Instruct: Given a web search query, find passages\nQuery:"
    with Embedder(path) as here, Embedder(path, isolation="process") as there:
        rows = here.encode(texts, prompt=prompt)
        assert (rows * there.encode(texts, prompt=prompt)).sum(axis=1).min() >= 0.9999


def test_a_script_without_a_main_guard_may_use_it(starter_cache):
    """The child does not run the caller's script again."""
    code = (
        "from gguf_embed import Embedder\n"
        "print('once')\n"
        "with Embedder('all-minilm-l6-v2', isolation='process') as model: print(model.encode('x').shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=dict(os.environ)
    )
    assert done.stdout.split("\n")[:2] == ["once", "(384,)"]


def test_llama_cpp_is_not_loaded_here(starter_cache):
    """Planning, loading and decoding are the child's: nothing native is in this process."""
    code = (
        "import sys; from gguf_embed import Embedder\n"
        "with Embedder('all-minilm-l6-v2', isolation='process') as model: model.encode('x'); model.plan\n"
        "print('llama_cpp' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "False"
