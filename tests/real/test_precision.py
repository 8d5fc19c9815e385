"""Fewer bits: the levels of sentence-transformers, most of the search kept, and a job's ranges used again."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from gguf_embed import Embedder, EncodeOptions
from gguf_embed.cli.app import run
from gguf_embed.vectors import PRECISIONS, calibrate, quantize_embeddings

MODEL = "all-minilm-l6-v2"


@pytest.fixture(scope="module")
def proof():
    """scripts/precision-proof, which measures the same on more text."""
    path = Path(__file__).parents[2] / "scripts" / "precision-proof"
    loader = importlib.machinery.SourceFileLoader("precision_proof", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def texts(proof):
    """300 documents and 60 queries out of the docstrings of a part of the standard library."""
    return proof.texts_of(proof.docstrings(sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))), 300, 60)


@pytest.fixture(scope="module")
def rows(texts, starter):
    """The vectors of the documents and of the queries."""
    how = EncodeOptions(truncate="end")
    with Embedder(starter) as model:
        return tuple(model.report(some, how).embeddings for some in texts)


@pytest.fixture(params=["random", "real"])
def data(request):
    """Rows and others that they are calibrated with, so that some components lie outside."""
    if request.param == "real":
        documents, queries = request.getfixturevalue("rows")
        return queries, documents[:100]
    generator = np.random.default_rng(4)
    # 37 components fill no whole byte; the third never changes.
    both = (generator.standard_normal((2, 200, 37)) * generator.uniform(0.01, 3, 37)).astype(np.float32)
    both[:, :, 2] = 0.25
    return both[0], both[1]


def test_bits_are_those_of_sentence_transformers(data):
    """A component above zero is a one, packed; "binary" is that less 128."""
    embeddings, _ = data
    packed = np.packbits(embeddings > 0, axis=-1)
    assert np.array_equal(quantize_embeddings(embeddings, "ubinary"), packed)
    assert np.array_equal(quantize_embeddings(embeddings, "binary"), (packed - 128).astype(np.int8))


def test_ranges_are_those_of_sentence_transformers(data):
    """Least and greatest of each component of the calibration data."""
    _, others = data
    assert np.array_equal(calibrate(others), np.vstack((np.min(others, axis=0), np.max(others, axis=0))))


def since_6(embeddings, precision, ranges):
    """Levels as sentence-transformers 6.0 to 6.2 takes them; values outside are the nearest."""
    starts = ranges[0, :]
    steps = (ranges[1, :] - starts) / 255
    steps = np.where(steps == 0, 1, steps)
    levels = np.clip(np.floor((embeddings - starts) / steps), 0, 255)
    return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)


def before_6(embeddings, precision, ranges):
    """Levels as sentence-transformers 2.6 to 5.7 takes them, cut towards zero; values outside wrap round there."""
    starts = ranges[0, :]
    steps = (ranges[1, :] - starts) / 255
    steps = np.where(steps == 0, 1, steps)  # a division by zero there
    levels = np.clip((embeddings - starts) / steps, 0, 255)  # not clipped there
    return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)


@pytest.mark.parametrize(
    ("precision", "formula"),
    [
        ("uint8", since_6),
        ("uint8", before_6),
        ("int8", since_6),
    ],
)
def test_levels_are_those_of_sentence_transformers(precision, formula, data):
    """Every level is equal, with ranges of other rows and with those of the very rows."""
    embeddings, others = data
    for ranges in (calibrate(others), calibrate(embeddings)):
        assert np.array_equal(
            quantize_embeddings(embeddings, precision, ranges=ranges), formula(embeddings, precision, ranges)
        )


@pytest.mark.parametrize(("precision", "least", "greatest"), [("int8", -128, 127), ("uint8", 0, 255)])
def test_what_lies_outside_is_the_nearest_level(precision, least, greatest, data):
    """Below the range is the least level and above it the greatest: nothing wraps round."""
    embeddings, others = data
    ranges = calibrate(others)
    levels = quantize_embeddings(embeddings, precision, ranges=ranges)
    below, above = embeddings < ranges[0], embeddings > ranges[1]
    assert below.any()
    assert above.any()
    assert (levels[below] == least).all()
    assert (levels[above] == greatest).all()


def test_restored_values_are_within_a_level(rows, proof):
    """What levels stand for differs from what was stored by one level at most."""
    documents, _ = rows
    ranges = calibrate(documents)
    for precision in ("int8", "uint8"):
        off = np.abs(proof.restored(quantize_embeddings(documents, precision), ranges) - documents)
        assert (off <= (ranges[1] - ranges[0]) / 255 * 1.001).all()


# Bytes a vector and the least share of float32's ten best that is kept, a little below the worst of 150 draws of 300
# documents and 60 queries out of scripts/precision-proof's 8,000 and 500.
AS_THEY_ARE, RESTORED = "query, levels as they are", "float32 query, levels restored"
BOUNDS = {
    ("float32", "inner product"): (1536, 1.0),
    ("float16", "float16 query"): (768, 0.99),
    ("int8", f"int8 {AS_THEY_ARE}"): (384, 0.71),
    ("int8", RESTORED): (384, 0.98),
    ("int8, ranges of 100", f"int8 {AS_THEY_ARE}"): (384, 0.70),
    ("int8, ranges of 100", RESTORED): (384, 0.95),
    ("int8, one range -x..x", f"int8 {AS_THEY_ARE}"): (384, 0.97),
    ("int8, one range -x..x", RESTORED): (384, 0.97),
    ("uint8", f"uint8 {AS_THEY_ARE}"): (384, 0.58),
    ("uint8", RESTORED): (384, 0.98),
    ("binary", "Hamming"): (48, 0.58),
    ("binary", "Hamming, best 40 by float32 query and signs"): (48, 0.69),
    ("binary and int8", "Hamming, best 40 by float32 query and int8 restored"): (432, 0.91),
}


def test_search_is_kept(rows, proof, monkeypatch, record_property):
    """Each precision keeps its share of float32's ten best, in its bytes."""
    monkeypatch.setattr(proof, "N_CALIBRATION", 100)
    documents, queries = rows
    found = {(stored, how): (n_bytes, ten) for stored, how, n_bytes, ten in proof.searches(queries, documents)}
    _, exact = found["float32", "inner product"]
    kept = {case: (n_bytes, proof.recall(ten, exact)) for case, (n_bytes, ten) in found.items()}
    for case, (_, share) in kept.items():
        record_property(": ".join(case), share)
    assert {case: n_bytes for case, (n_bytes, _) in kept.items()} == {case: size for case, (size, _) in BOUNDS.items()}
    lost = {case: share for case, (_, share) in kept.items() if share < BOUNDS[case][1]}
    assert not lost


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_a_job_s_ranges_serve_other_texts(precision, texts, starter_cache, tmp_path, monkeypatch):
    """A job has the levels of all its vectors at once, and its .meta.json gives queries theirs."""
    monkeypatch.setattr("gguf_embed.jobs.spool._N_BYTES_BLOCK", 50_000)  # so that ranges come of many blocks
    documents, queries = texts
    for name, some in (("documents", documents[:100]), ("queries", queries[:1])):
        (tmp_path / f"{name}.txt").write_text("\n".join(some) + "\n", encoding="utf-8")

    def embedded(name, output, *options):
        command = ["embed", "-q", "-m", MODEL, "-i", tmp_path / f"{name}.txt", "-o", tmp_path / output, *options]
        assert run([str(word) for word in command]) == 0
        return np.load(tmp_path / output)

    whole = embedded("documents", "whole.npy")
    levels = embedded("documents", "levels.npy", "--precision", precision)
    assert whole.shape == (100, 384)
    assert levels.dtype == precision
    assert np.array_equal(levels, quantize_embeddings(whole, precision))

    meta = tmp_path / "levels.npy.meta.json"
    ranges = np.asarray(json.loads(meta.read_text(encoding="utf-8"))["ranges"], dtype=np.float32)
    assert np.array_equal(ranges, calibrate(whole))
    query = embedded("queries", "query.npy")
    other = embedded("queries", "other.npy", "--precision", precision, "--ranges", meta)
    assert np.array_equal(other, quantize_embeddings(query, precision, ranges=ranges))
    assert np.array_equal(embedded("documents", "again.npy", "--precision", precision, "--ranges", meta), levels)


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name not in ("float32", "int8", "uint8")])
def test_a_job_stores_what_the_function_gives(precision, texts, starter_cache, tmp_path):
    """Precisions without ranges need no more than the row itself, and a job writes none."""
    (tmp_path / "lines.txt").write_text("\n".join(texts[0][:20]) + "\n", encoding="utf-8")
    command = ["embed", "-q", "-m", MODEL, "-i", str(tmp_path / "lines.txt"), "-o"]
    assert run([*command, str(tmp_path / "whole.npy")]) == 0
    assert run([*command, str(tmp_path / "fewer.npy"), "--precision", precision]) == 0
    expected = quantize_embeddings(np.load(tmp_path / "whole.npy"), precision)
    found = np.load(tmp_path / "fewer.npy")
    assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist())
    assert "ranges" not in json.loads((tmp_path / "fewer.npy.meta.json").read_text(encoding="utf-8"))
