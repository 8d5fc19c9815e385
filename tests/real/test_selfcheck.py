"""The first look at a file: short, once for a file on a machine, and never silent about what it found."""

from __future__ import annotations

import json
import logging
import shutil
import time

import broken
import numpy as np
import pytest

from gguf_embed import BackendError, Embedder, Limits, ModelLoadError, selfcheck
from gguf_embed.engine.checks import Check
from gguf_embed.engine.session import Session
from gguf_embed.fit.margins import margins_path
from gguf_embed.native.context import Context
from gguf_embed.native.head import HeadStop

pytestmark = pytest.mark.real


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Where this test's looks are remembered, apart from the run's."""
    monkeypatch.setattr(selfcheck, "checks_path", lambda state_dir: state_dir / "checks.json")
    return tmp_path / "state" / "checks.json"


@pytest.fixture
def looks(monkeypatch):
    """The files that were looked at."""
    names = []
    real = selfcheck.first_look

    def recording(session, **known):
        names.append(session.settings.path.name)
        return real(session, **known)

    monkeypatch.setattr(selfcheck, "first_look", recording)
    return names


def test_it_is_done_once(qwen3, path, looks):
    """The second load, and a second Embedder, take what was remembered."""
    for _ in range(2):
        with Embedder(qwen3) as model:
            model.encode("the")
    assert looks == [qwen3.name]
    [entry] = json.loads(path.read_text()).values()
    assert (entry["file"], entry["flash_attn"], entry["warnings"]) == (qwen3.name, True, [])


def test_a_changed_file_is_looked_at_again(qwen3, tmp_path, path, looks):
    """Size, time and place tell files apart; another way of running one too."""
    copy = tmp_path / "copy.gguf"
    for _ in range(2):
        shutil.copyfile(qwen3, copy)
        with Embedder(copy) as model:
            model.load()
    with Embedder(copy, pooling_type="mean") as model:
        model.load()
    assert looks == ["copy.gguf"] * 3


@pytest.mark.parametrize("what", ["library_stamp", "driver_stamp"])
def test_another_build_or_driver_is_another_look(qwen3, path, looks, monkeypatch, what):
    """An upgrade may have changed every vector."""
    with Embedder(qwen3) as model:
        model.load()
    monkeypatch.setattr(selfcheck, what, lambda: "another")
    with Embedder(qwen3) as model:
        model.load()
    assert len(looks) == 2


def test_it_takes_no_time(starter_cache, path, record_property):
    """Two seconds at most for the starter model, on a busy machine too."""
    with Embedder("all-minilm-l6-v2") as model:
        session, opened = model._model.open()
        begun = time.monotonic()
        selfcheck.first_look(session, quant=opened.selection.plan.quant, state_dir=path.parent, key="k")
    seconds = time.monotonic() - begun
    record_property("seconds", seconds)
    assert seconds <= 2


@pytest.mark.parametrize(
    ("fault", "words"), [("nan_weight", "no finite embedding"), ("zero_output", "no usable vectors")]
)
def test_a_file_of_no_use_is_refused_at_load(tmp_path, path, fault, words):
    """With what to type; it is not remembered as right."""
    file = broken.nan_weight(tmp_path) if fault == "nan_weight" else broken.zeroed(tmp_path, "output_norm.weight")
    for _ in range(2):
        with Embedder(file) as model, pytest.raises(ModelLoadError, match=words) as caught:
            model.encode("the capital")
        assert "gguf-embed verify" in str(caught.value)
    assert not path.exists()


def test_flash_attention_that_differs_is_left_out(qwen3, path, monkeypatch, caplog):
    """One warning, a new plan, and the same vectors as without it; remembered."""
    real = Session.embed_otherwise

    def meddling(self, tokens, **changes):
        rows = real(self, tokens, **changes)
        return rows + np.float32(0.5) if changes == {"flash_attn": "off"} else rows

    monkeypatch.setattr(Session, "embed_otherwise", meddling)
    loads = []
    monkeypatch.setattr("gguf_embed.loading.Session", lambda settings: loads.append(settings) or Session(settings))
    for n_loads in (2, 3):
        caplog.clear()
        with caplog.at_level(logging.WARNING), Embedder(qwen3) as model:
            model.load()
            assert len(loads) == n_loads
            assert model.plan.layout.flash_attn == "off"
            assert model._model._session.layout.flash_attn == "off"
            assert np.isclose(np.linalg.norm(model.encode("the")), 1)
        assert caplog.text.count("flash attention gives other vectors") == 1
    assert not margins_path(path.parent).exists()


def test_flash_attention_that_loses_rows_is_left_out(qwen3, path, monkeypatch, caplog):
    """NaN with it and none without: not the CPU's rows held against the CPU's."""
    real_init, real_rows = Context.__init__, Context.embeddings

    def init(self, model, layout, **options):
        real_init(self, model, layout, **options)
        self.is_broken = layout.flash_attn == "auto"

    monkeypatch.setattr(Context, "__init__", init)
    monkeypatch.setattr(
        Context, "embeddings", lambda self, n: real_rows(self, n) * np.float32(np.nan if self.is_broken else 1)
    )
    monkeypatch.setattr("gguf_embed.engine.canary._disagreement", lambda *_: "")
    with caplog.at_level(logging.WARNING), Embedder(qwen3) as model:
        assert np.isfinite(model.encode("the")).all()
        assert model.plan.layout.flash_attn == "off"
        assert model._model._session.n_rescued == 0
    assert "flash attention gives other vectors" in caplog.text


def test_rows_that_need_a_second_try_are_told_at_every_load(qwen3, path, monkeypatch, caplog):
    """They are right and slow, which is no secret."""
    real, plain = HeadStop.rows, np.float32(np.nan)
    monkeypatch.setattr(HeadStop, "rows", lambda stop: real(stop) * plain)
    monkeypatch.setattr("gguf_embed.engine.canary._disagreement", lambda *_: "")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING), Embedder(qwen3) as model:
            model.load()
        assert "have no finite row until they are tried again, which is slow" in caplog.text


def test_without_it_is_another_way(qwen3, path, looks):
    """A look without flash attention says nothing about one with it."""
    for flash_attn in (False, True, False, True):
        with Embedder(qwen3, limits=Limits(flash_attn=flash_attn)) as model:
            model.load()
    assert len(looks) == 2


def test_what_could_not_be_looked_at_is_looked_at_again(qwen3, path, looks, monkeypatch):
    """Memory that was refused once is no proof."""
    real = Session.embed_otherwise

    def refuse(self, tokens, **changes):
        raise BackendError("no memory")

    monkeypatch.setattr(Session, "embed_otherwise", refuse)
    with Embedder(qwen3) as model:
        model.load()
    monkeypatch.setattr(Session, "embed_otherwise", real)
    for _ in range(2):
        with Embedder(qwen3) as model:
            model.load()
    assert len(looks) == 2


@pytest.mark.parametrize("n_ctx", [4, 6, 16])
def test_a_short_context_is_looked_at_too(qwen3, path, n_ctx):
    """The look's own texts are cut to what is taken."""
    with Embedder(qwen3, limits=Limits(n_ctx=n_ctx)) as model:
        assert model.encode("1").shape == (256,)


def test_batches_that_disagree_are_told_at_every_load(qwen3, path, monkeypatch, caplog):
    """Remembered as a warning; nothing is refused."""
    fault = Check(name="batches", state="fault", words="a text's vector hangs on the texts beside it")
    monkeypatch.setattr(selfcheck, "check_batches", lambda *_, **__: fault)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING), Embedder(qwen3) as model:
            model.load()
        assert caplog.text.count("hangs on the texts beside it. Look closer: gguf-embed verify") == 1


@pytest.mark.parametrize("content", ["", "[]", '{"x": 7}', "\x00"])
def test_what_was_remembered_and_is_damaged_is_looked_at_again(qwen3, path, looks, content):
    """Never a reason to fail."""
    with Embedder(qwen3) as model:
        model.load()
    path.write_text(content)
    with Embedder(qwen3) as model:
        model.load()
    assert len(looks) == 2


def test_a_folder_that_cannot_be_written_costs_a_look(qwen3, path, looks):
    """And no more than that."""
    path.parent.write_text("a file where the folder should be")
    for _ in range(2):
        with Embedder(qwen3) as model:
            model.encode("the")
    assert len(looks) == 2


def test_doctor_forgets(path, capsys):
    """--forget drops them with the other lessons."""
    path.parent.mkdir()
    path.write_text("{}")
    assert selfcheck.forget_looks(path.parent)
    assert not selfcheck.forget_looks(path.parent)
