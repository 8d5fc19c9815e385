"""Bad texts, bad files and failures of llama.cpp end in a named error, and the model works afterwards."""

from __future__ import annotations

import gc
import os
import threading
import time

import numpy as np
import psutil
import pytest
import synthetic

from gguf_embed import (
    BackendError,
    ClosedError,
    DecodeError,
    Embedder,
    InvalidGGUFError,
    InvalidTextError,
    NonFiniteEmbeddingError,
    TextTooLongError,
    UnsupportedModelError,
)
from gguf_embed.engine.normalizing import endless_run
from gguf_embed.native.context import Context
from gguf_embed.native.layout import Layout
from gguf_embed.native.llama import Model


@pytest.fixture
def model(qwen3):
    """The synthetic Qwen3."""
    with Embedder(str(qwen3)) as embedder:
        yield embedder


def test_empty_list_and_empty_text(model):
    """No texts give no rows; an empty text is a text."""
    assert model.encode([]).shape == (0, 256)
    assert model.encode([]).dtype == np.float32
    assert np.isclose(np.linalg.norm(model.encode("")), 1)


@pytest.mark.parametrize("wrong", [b"bytes", 3, None, ["a", b"b"], ["a", None], [1.5], {"a": "b"}])
def test_non_strings_are_type_errors(model, wrong):
    """Anything but str is a TypeError that names the type."""
    with pytest.raises(TypeError, match=r"bytes|int|NoneType|float|dict"):
        model.encode(wrong)


def test_nul_and_lone_surrogates_name_the_text(model):
    """What no tokenizer can take names the text and the place."""
    with pytest.raises(InvalidTextError, match=r"text 1 has a NUL character at 2") as caught:
        model.encode(["fine", "ab\0c"])
    assert caught.value.index == 1
    with pytest.raises(InvalidTextError, match=r"text 0 has a lone surrogate \(U\+D800\) at 1"):
        model.encode("a\ud800")


def test_over_long_text_names_index_tokens_and_limit(model):
    """An over-long text is an error with index, tokens and limit, and nothing is cut."""
    with pytest.raises(TextTooLongError, match=r"text 1 has 1,101 tokens; at most 1,024 are taken") as caught:
        model.encode(["short", "a" * 1100])
    assert (caught.value.index, caught.value.n_tokens, caught.value.n_ctx) == (1, 1101, 1024)


def test_ten_megabytes_are_refused_at_once(model):
    """A text of 10 MB is an error before it is tokenized, and truncate="end" embeds its beginning."""
    begun = time.monotonic()
    with pytest.raises(TextTooLongError, match=r"at least"):
        model.encode("word " * 2_000_000)
    assert time.monotonic() - begun < 10
    assert model.encode("word " * 2_000_000, truncate="end").shape == (256,)


def test_use_after_close_raises(qwen3):
    """A closed model says so, and closing twice is allowed."""
    model = Embedder(str(qwen3))
    model.encode("the")
    model.close()
    model.close()
    with pytest.raises(ClosedError):
        model.encode("the")


def test_not_a_gguf(tmp_path):
    """Any other file is named as such."""
    path = tmp_path / "not.gguf"
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(InvalidGGUFError, match="does not start with the GGUF magic"):
        _ = Embedder(str(path)).plan


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
def test_truncated_gguf(qwen3, tmp_path, keep):
    """A file cut short, in its header or after it, is refused before llama.cpp maps it."""
    data = qwen3.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InvalidGGUFError, match="cut short"):
        _ = Embedder(str(path)).plan


def test_unknown_architecture_is_named(tmp_path):
    """An architecture that this llama.cpp lacks is named, with the way out."""
    path = synthetic.write_qwen3(tmp_path / "new.gguf", architecture="qwen9")
    with pytest.raises(UnsupportedModelError, match=r"'qwen9'.*pip install -U llama-cpp-python"):
        _ = Embedder(str(path)).plan


def test_decode_failure_leaves_the_model_usable(model, monkeypatch):
    """After llama_decode fails, the error has its code and the next call is right."""
    before = model.encode("the capital")
    real = Context.decode
    monkeypatch.setattr(Context, "decode", lambda *_, **__: (_ for _ in ()).throw(DecodeError("no", return_code=1)))
    with pytest.raises(DecodeError):
        model.encode("the capital")
    monkeypatch.setattr(Context, "decode", real)
    assert model.similarity(before, model.encode("the capital"))[0, 0] > 0.999999


def test_non_finite_row_in_a_batch_is_embedded_alone(model, monkeypatch, caplog):
    """A row that is NaN in a batch is retried alone; the others are untouched."""
    texts = ["the", "capital of", "and words"]
    right = model.encode(texts)
    real = Context.embeddings

    def poisoned(self, n_seq):
        rows = real(self, n_seq)
        if n_seq > 1:
            rows[1] = np.nan
        return rows

    monkeypatch.setattr(Context, "embeddings", poisoned)
    assert np.abs(model.encode(texts) - right).max() < 1e-5
    assert "non-finite" in caplog.text


def test_non_finite_alone_is_an_error_with_the_index(model, monkeypatch):
    """A text that has no finite vector at all is named, and zeros count as none."""
    model.load()
    real = Context.embeddings
    monkeypatch.setattr(Context, "embeddings", lambda self, n: real(self, n) * 0)
    with pytest.raises(NonFiniteEmbeddingError) as caught:
        model.encode(["the"])
    assert caught.value.index == 0


def test_context_refuses_what_would_abort(qwen3):
    """Sizes that reach a GGML_ASSERT are ValueErrors before they do."""
    with Model(qwen3) as loaded:
        for sizes in ({"n_seq_max": 65}, {"n_seq_max": 0}, {"n_ubatch": 4096}):
            with pytest.raises(ValueError, match="does not hold"):
                Layout(**({"n_ctx": 512, "n_ubatch": 64, "n_seq_max": 4} | sizes))
        with pytest.raises(ValueError, match="fewer sequences"):
            Context(loaded, Layout(n_ctx=2048, n_ubatch=2048, n_seq_max=2048), pooling_type="last", n_threads=1)
        with pytest.raises(ValueError, match="head can be skipped"):
            Context(loaded, Layout(skips_head=True), pooling_type="mean", n_threads=1)
        context = Context(loaded, Layout(n_ctx=256, n_ubatch=64, n_seq_max=4), pooling_type="last", n_threads=1)
        ids = np.zeros(65, dtype=np.int32)
        for n_tokens, seq in ((0, 0), (65, 0), (3, 4), (3, -1)):
            with pytest.raises(ValueError, match=r"tokens|sequence"):
                context.decode(ids[:n_tokens], ids[:n_tokens], np.full(n_tokens, seq, dtype=np.int32))
        context.close()


def test_nothing_is_printed(qwen3, capfd):
    """llama.cpp's log reaches neither stdout nor stderr."""
    with Embedder(str(qwen3)) as embedder:
        embedder.encode(["the", "capital"])
    assert capfd.readouterr() == ("", "")


def test_close_waits_for_running_calls(starter):
    """Closing while other threads embed is a ClosedError for them, never a crash."""
    for delay_s in (0.0, 0.02, 0.1):
        model = Embedder(starter)
        model.load()
        failures: list[BaseException] = []

        def work(model=model, failures=failures):
            try:
                while True:
                    model.encode(["word " * 5000] * 4, truncate="end")
            except ClosedError:
                pass
            except BaseException as error:  # noqa: BLE001 - whatever else it is, the test shows it
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(delay_s)
        model.close()
        for thread in threads:
            thread.join(60)
        assert not failures


def test_forgotten_models_are_freed(starter):
    """A model that nobody closes goes with its Embedder."""
    process = psutil.Process()

    def once():
        Embedder(starter).encode("a")
        gc.collect()

    for _ in range(3):
        once()
    before = process.memory_info().rss
    for _ in range(6):
        once()
    assert process.memory_info().rss - before < 60 << 20  # one copy of the weights is 44 MiB


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_told(model):
    """A child of fork gets an error, where llama.cpp's threads would leave it waiting for ever."""
    model.encode("the")
    child = os.fork()
    if not child:
        try:
            model.encode("the")
        except BackendError as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_endless_marks_are_refused_at_once(model):
    """A run of combining marks, which takes minutes to normalize, is refused in no time."""
    begun = time.monotonic()
    with pytest.raises(InvalidTextError, match="combining marks in a row"):
        model.encode("a" + "\u0301\u0323" * 200_000)
    assert time.monotonic() - begun < 10


def test_endless_runs_are_refused_where_llama_cpp_recurses():
    """Pre-tokenizers that recurse once a character never get a run that would overflow the stack."""
    assert endless_run("1" * 32_000, "bpe", "gpt-4o")
    assert endless_run("1" * 32_000, "bpe", "")
    assert endless_run("1" * 32_000, "bpe", "qwen2") is None
    assert endless_run("1" * 32_000, "wpm", "") is None
    assert endless_run("word " * 10_000, "bpe", "gpt-4o") is None


def test_overlong_words_are_unknown(starter_cache):
    """WordPiece takes a word of more than 100 characters for unknown, as the reference does, and no shorter one."""
    cls, unknown, sep = 101, 100, 102
    with Embedder("all-minilm-l6-v2") as starter_model:
        for word in ("a" * 101, "ACGT" * 40, "\u00e9" * 101):
            assert starter_model.tokenize(word) == [[cls, unknown, sep]]
        assert len(starter_model.tokenize("a" * 100)[0]) > 3
        [url] = starter_model.tokenize("see https://example.com/" + "Qx7" * 50 + " ok")
        assert url.count(unknown) == 1
