"""The upgrade gate: no build of llama.cpp moves a vector unnoticed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gate
import numpy as np
import pytest
import synthetic

from gguf_embed.native.quantize import quantize

pytestmark = pytest.mark.real


@pytest.fixture(scope="session")
def file_of(starter, qwen3, qwen3_quantized, tmp_path_factory):
    """The file of a case, made once."""
    folder = tmp_path_factory.mktemp("gate")

    def find(model, quant):
        if model == "synthetic-qwen3":
            if quant == "F16":
                path = folder / "qwen3-F16.gguf"
                return path if path.exists() else synthetic.write_qwen3(path, f16=True)
            return qwen3 if quant == "F32" else qwen3_quantized(quant)
        path = starter if quant == "F16" else folder / f"{quant}.gguf"
        if not path.exists():
            quantize(starter, path, quant, n_threads=2)
        return path

    return find


@pytest.fixture(scope="session")
def golden_file():
    """The vectors of the build that the project was measured with."""
    return Path(__file__).parents[1] / "golden" / "engine.npz"


@pytest.mark.parametrize(("model", "quant"), gate.CASES)
def test_an_upgrade_moves_no_vector(model, quant, file_of, golden_texts, golden_file, record_property):
    """Each of 64 texts has the vector of before, to 0.9999, or the failure says what moved."""
    before, now = gate.load(golden_file, model, quant), gate.measure(file_of(model, quant), golden_texts)
    record_property("least", float(gate.cosines(before.embeddings, now.embeddings).min()))
    moved = gate.what_moved(model, quant, before, now, golden_texts)
    assert not moved, moved


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "the arithmetic changed"),
        ({"weights": "x"}, "llama.cpp quantizes differently"),
        ({"tokens": "x"}, "its tokens are others for 1 of these: ['HELLO WORLD']"),
        ({"build": "0.4.0"}, "made with llama-cpp-python 0.4.0"),
    ],
)
def test_what_moved_is_said(golden_file, golden_texts, change, words):
    """A golden file that differs in one text of 64 is seen, and the cause is named."""
    now = gate.load(golden_file, "all-minilm-l6-v2", "Q8_0")
    assert gate.what_moved("m", "Q8_0", now, now, golden_texts) == ""
    at = golden_texts.index("HELLO WORLD")
    rows = now.embeddings.copy()
    rows[at, :8] += np.float16(0.02)
    if "tokens" in change:
        tokens = list(now.tokens)
        tokens[at] = change["tokens"]
        change = {"tokens": tuple(tokens)}
    before = dataclasses.replace(now, embeddings=rows, **change)
    told = gate.what_moved("m", "Q8_0", before, now, golden_texts)
    assert told.startswith("m Q8_0: 1 of 64 texts are below 0.9999")
    assert "'HELLO WORLD'" in told
    assert words in told


def test_lost_vectors_are_moved_ones(golden_file, golden_texts):
    """NaN is below any bound."""
    now = gate.load(golden_file, "synthetic-qwen3", "F32")
    lost = dataclasses.replace(now, embeddings=np.full_like(now.embeddings, np.nan))
    assert gate.what_moved("m", "F32", now, lost, golden_texts).startswith("m F32: 64 of 64 texts")


def test_another_processor_rounds_otherwise(golden_file):
    """The bound is that of kernels' drift there, and 0.9999 where weights are not quantized."""
    now = gate.load(golden_file, "synthetic-qwen3", "F32")
    other = dataclasses.replace(now, features="NEON")
    assert gate.bound_for("Q4_K_M", now, now) == gate.bound_for("F16", now, other) == 0.9999
    assert gate.bound_for("Q4_K_M", now, other) == 0.995
