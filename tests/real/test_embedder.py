"""What a user holds: lazy, closable, with words of sentence-transformers and facts about itself."""

from __future__ import annotations

import dataclasses
import logging
import shutil

import numpy as np
import pytest
from fake_hub import FakeHub

from gguf_embed import (
    DimensionError,
    DoesNotFitError,
    Embedder,
    EncodeOptions,
    FingerprintError,
    Limits,
    ModelLoadError,
    OfflineError,
    UnknownModelError,
    UnknownQuantError,
    UnsupportedModelError,
)
from gguf_embed.engine import decoder
from gguf_embed.fit import hardware


def test_nothing_happens_before_first_use(monkeypatch):
    """Making an Embedder fetches and loads nothing, and tells what the registry knows."""
    monkeypatch.setenv("GGUF_EMBED_OFFLINE", "1")
    model = Embedder()
    assert (model.dim, model.n_embd) == (2560, 2560)
    assert Embedder("qwen3-embedding-4b", truncate_dim=512).get_embedding_dimension() == 512
    assert model.prompts.query.endswith("\nQuery:")
    assert repr(model) == "Embedder('qwen3-embedding-4b')"
    with pytest.raises(OfflineError, match="go online once"):
        model.encode("text")


def test_wrong_names_are_errors_at_once():
    """A typo is an error when the Embedder is made, with the nearest names."""
    with pytest.raises(UnknownModelError, match="Did you mean qwen3-embedding-4b"):
        Embedder("qwen3-embeding-4b")
    with pytest.raises(UnknownQuantError, match="Q4_K_M, Q4_K_S, Q3_K_M"):
        Embedder("qwen3-embedding-4b:Q9_K")
    with pytest.raises(DimensionError, match=r"32\.\.2560"):
        Embedder("qwen3-embedding-4b", truncate_dim=16)
    with pytest.raises(UnknownModelError, match="no file"):
        Embedder("./nowhere.gguf")


def test_starter_model_end_to_end(starter_cache):
    """Name a model, get unit vectors of its length, and its plan."""
    with Embedder("all-minilm-l6-v2") as model:
        vectors = model.encode_document(["one", "two", ""])
        assert vectors.shape == (3, 384)
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
        assert (model.plan.quant, model.plan.placement, model.max_seq_length) == ("F16", "cpu", 256)
        assert model.encode_query("one").shape == (384,)
        assert model.model_id == "all-minilm-l6-v2"
        with pytest.raises(ValueError, match="takes no task"):
            model.encode_query("one", task="anything")
        with pytest.raises(DimensionError, match="was not trained to be cut and gives 384"):
            model.encode("one", truncate_dim=128)
        with pytest.raises(ValueError, match="unknown prompt_name 'qurey'"):
            model.encode("one", prompt_name="qurey")


def test_report_tells_tokens_and_cuts(qwen3):
    """A report has tokens of each text, and the positions of the cut ones."""
    with Embedder(str(qwen3)) as model:
        report = model.report(["a", "the", "b" * 2000], EncodeOptions(truncate="end"))
    assert report.n_tokens == (2, 2, 1024)
    assert report.truncated == (2,)
    assert report.embeddings.shape == (3, 256)


def test_on_batch_counts_every_text_and_token(qwen3):
    """Progress adds up to all texts and all tokens."""
    seen = []
    with Embedder(str(qwen3)) as model:
        report = model.report(["the"] * 100, on_batch=lambda texts, tokens: seen.append((texts, tokens)))
    assert tuple(map(sum, zip(*seen, strict=True))) == (100, sum(report.n_tokens))
    assert len(seen) > 1


def test_precisions(qwen3):
    """Binary packs signs, int8 keeps directions."""
    texts = ["the capital", "of a thing", "and words", "é"]
    with Embedder(str(qwen3)) as model:
        rows = model.encode(texts)
        assert np.array_equal(model.encode(texts, precision="ubinary"), np.packbits(rows > 0, axis=-1))
        assert model.encode(texts, precision="int8").dtype == np.int8
        with pytest.raises(ValueError, match="precision is 'int4'"):
            model.encode(texts, precision="int4")


def test_fingerprint_is_the_contents_not_the_name(qwen3, tmp_path):
    """Copies under other names share a fingerprint; another length has another one."""
    copy = shutil.copy(qwen3, tmp_path / "another-name.gguf")
    with Embedder(str(qwen3)) as one, Embedder(str(copy)) as other:
        assert one.fingerprint == other.fingerprint
        assert len(one.fingerprint) == 32


def test_fingerprint_is_the_same_before_and_after_the_download(qwen3, tmp_path, monkeypatch):
    """What the registry leaves open is read from the file, on the first run as on every other."""
    entry = f"""schema = 1
[models.open]
base_repo = "someone/open"
license = "MIT"
arch = "qwen3"
pooling_type = "last"
n_embd = 256
max_tokens = 1024
ladder = ["F32"]
shape = {{ n_layer = 3, n_embd = 256, n_ff = 512, n_head = 4, n_head_kv = 2, head_dim = 128, n_vocab = 290 }}
[[models.open.files]]
quant = "F32"
repo = "someone/open-GGUF"
file = "open-F32.gguf"
size_bytes = {qwen3.stat().st_size}
"""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.toml").write_text(entry)
    with FakeHub() as hub:
        hub.add("someone/open-GGUF", "open-F32.gguf", qwen3.read_bytes())
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        prints = []
        for _ in range(2):
            with Embedder("open") as model:
                prints.append(model.fingerprint)
    assert prints[0] == prints[1]


def test_limits_leave_the_rest_as_configured(qwen3, monkeypatch):
    """Giving one limit does not undo the user's other settings."""
    monkeypatch.setenv("GGUF_EMBED_N_THREADS", "1")
    plan = Embedder(qwen3, limits=Limits(n_ctx=512)).plan
    assert (plan.n_ctx_max, plan.n_threads) == (512, 1)


def test_fingerprint_tells_dimensions_apart(registered):
    """Vectors of different length do not compare, and neither do their fingerprints."""
    with Embedder(str(registered)) as full, Embedder(str(registered), truncate_dim=64) as cut:
        assert full.fingerprint != cut.fingerprint
        assert cut.encode("the").shape == (64,)
        assert cut.encode([]).shape == (0, 64)


def test_gpu_without_a_gpu_is_an_error(qwen3, monkeypatch):
    """device="gpu" never falls back to the CPU in silence."""
    none = dataclasses.replace(hardware.probe(), accelerators=())
    monkeypatch.setattr(hardware, "probe", lambda: none)
    with pytest.raises(DoesNotFitError, match="sees none"):
        _ = Embedder(str(qwen3), device="gpu").plan


def test_too_little_memory_is_an_error_with_the_shortfall(qwen3):
    """A limit below what is needed names the shortfall before anything loads."""
    with pytest.raises(DoesNotFitError, match="too much for host memory") as caught:
        Embedder(str(qwen3), limits=Limits(memory_bytes=1 << 20)).load()
    assert caught.value.rejected[0].shortfall_bytes > 0
    assert caught.value.available_bytes == 1 << 20


def test_n_ctx_above_the_model_is_refused(qwen3):
    """A longest text beyond what the model was trained on is refused."""
    with pytest.raises(ValueError, match="takes texts of at most 1024"):
        Embedder(str(qwen3), limits=Limits(n_ctx=4096)).load()


@pytest.mark.parametrize("wrong", [0, -3, 2.5, "8"])
def test_batch_size_is_a_whole_number(qwen3, wrong):
    """A batch size that is none is refused."""
    with Embedder(str(qwen3)) as model, pytest.raises(ValueError, match="batch_size"):
        model.encode(["a"], batch_size=wrong)


def test_growth_that_fails_leaves_the_old_context(tmp_path, monkeypatch):
    """Where a longer context cannot be had, the error says so and short texts still work."""
    import synthetic  # noqa: PLC0415 - beside the tests

    path = synthetic.write_qwen3(tmp_path / "grow.gguf", shape=synthetic.Qwen3Shape(n_ctx_train=8192))
    with Embedder(str(path)) as model:
        before = model.encode("the")
        real = decoder.Context

        def failing(model, layout, **sizes):
            if layout.n_ctx > 2048:
                raise ModelLoadError("no memory", path=path)
            return real(model, layout, **sizes)

        monkeypatch.setattr(decoder, "Context", failing)
        with pytest.raises(ModelLoadError):
            model.encode("a" * 4000)
        assert model.similarity(before, model.encode("the"))[0, 0] > 0.999999


def test_show_progress_bar_writes_to_stderr_alone(qwen3, capsys):
    """A bar is asked for by sentence-transformers' word and stays off stdout."""
    with Embedder(str(qwen3)) as model:
        model.encode(["the"] * 10, show_progress_bar=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "10/10 texts" in captured.err


def test_unknown_file_without_prompts_warns_once(qwen3, caplog):
    """A query of a file that the registry does not know has no prompt, and that is said once."""
    with Embedder(str(qwen3)) as model, caplog.at_level(logging.WARNING, "gguf_embed"):
        model.encode_query("the")
        model.encode_query("the")
    assert caplog.text.count("no query prompt is known") == 1


def test_a_file_under_a_wrong_name_is_refused(qwen3, tmp_path):
    """A file that is called like a model of the registry and is another one never gets its prompts and length."""
    impostor = shutil.copy(qwen3, tmp_path / "Qwen3-Embedding-4B-Q4_K_M.gguf")
    with pytest.raises(UnsupportedModelError, match="qwen3 with 256 components, not qwen3 with 2560"):
        Embedder(str(impostor)).load()


def test_only_the_expected_vectors_are_given(registered):
    """With the fingerprint of before nothing changes; another dimension, length or file is refused before any row."""
    with Embedder(registered) as model:
        before, row = model.fingerprint, model.encode("the")
    with Embedder(registered, expect_fingerprint=before) as same:
        assert np.array_equal(same.encode("the"), row)
        assert len(list(same.encode_stream(["the", "capital"]))) == 2
        for prompt in ({"prompt": ""}, {"prompt_name": "query"}, {"prompt": "Instruct: the task\nQuery:"}):
            assert same.encode("the", **prompt).shape == (256,)  # the model's own prompts compare with each other
        for options in ({"truncate_dim": 64}, {"normalize_embeddings": False}, {"prompt": "of my own: "}):
            with pytest.raises(FingerprintError, match="do not compare") as caught:
                same.encode("the", **options)
            assert (caught.value.expected, caught.value.actual != before) == (before, True)
        with pytest.raises(FingerprintError):
            same.encode_stream(["the"], EncodeOptions(truncate_dim=64))
    with Embedder(registered, expect_fingerprint=before) as same:
        with pytest.raises(FingerprintError):
            same.encode_stream(["the"], EncodeOptions(truncate_dim=64))
        assert len(list(same.encode_stream(["the"]))) == 1  # what was refused before does not count
    with Embedder(registered, expect_fingerprint="0" * 32) as other, pytest.raises(FingerprintError):
        other.encode(["the"])
    with Embedder(registered, expect_fingerprint=before.upper()) as same:
        assert np.array_equal(same.encode("the"), row)


@pytest.mark.parametrize("wrong", ["", "zz", "0" * 31, "g" * 32, 5, b"0" * 32])
def test_what_is_no_fingerprint_is_a_mistake(wrong):
    """Refused at once, before anything is fetched."""
    with pytest.raises(ValueError, match="is no fingerprint; it is 32 hex digits"):
        Embedder("all-minilm-l6-v2", expect_fingerprint=wrong)


def test_a_stream_notices_what_was_loaded_instead(qwen3, qwen3_quantized, monkeypatch):
    """Where memory is refused and less is loaded, the fingerprint is looked at again before the first row."""
    with Embedder(qwen3) as model:
        expected = model.fingerprint
    with Embedder(qwen3, expect_fingerprint=expected) as model:
        stream = model.encode_stream(["the"])
        lazy = model._model
        real = lazy.open

        def stepped_down(on_progress=None):
            session, opened = real(on_progress)
            layout = dataclasses.replace(opened.selection.plan.layout, kv_type="q8_0")
            plan = dataclasses.replace(opened.selection.plan, layout=layout)
            lazy._selection = dataclasses.replace(opened.selection, plan=plan)
            return session, opened

        monkeypatch.setattr(lazy, "open", stepped_down)
        with pytest.raises(FingerprintError):
            list(stream)


def test_a_quantized_cache_gives_other_vectors(qwen3):
    """The KV type is part of the fingerprint."""
    prints = {Embedder(qwen3, limits=Limits(kv_type=kv_type)).fingerprint for kv_type in ("f16", "q8_0")}
    assert len(prints) == 2
