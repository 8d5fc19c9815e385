"""A thousand faults of llama.cpp's: every good text is right, every bad one is named, and the process lives."""

from __future__ import annotations

import itertools
import random
import shutil

import numpy as np
import pytest
import synthetic
from faulty import Fault, FaultyBackend

from gguf_embed import DecodeError, Embedder, NonFiniteEmbeddingError
from gguf_embed.native.backend import backend

pytestmark = pytest.mark.real

CASES = list(itertools.product(("nan", "zeros", "code", "rows"), ("batch", "fast", "everywhere")))
# Words that are one token of the synthetic vocabulary, and whole words of BERT's.
MARKS = {
    "qwen3": (" the", " of", " and", " capital", " w", " s", " t", " a", "er", "on", "re", "it"),
    "bert": ("apple", "river", "stone", "window", "garden", "paper", "music", "winter", "silver", "bridge", "letter",
             "summer"),
}  # fmt: skip
FILLERS = {"qwen3": "0123456789", "bert": "0123456789"}


def texts_of(family, *, n_texts, n_faults, seed):
    """Texts of digits, some with the mark of a case; (text, case) pairs."""
    rng = random.Random(seed)
    cases = [CASES[at % len(CASES)] for at in range(n_faults)] + [None] * (n_texts - n_faults)
    rng.shuffle(cases)
    pairs = []
    for case in cases:
        digits = "".join(rng.choices(FILLERS[family], k=rng.randint(3, 12)))
        mark = "" if case is None else MARKS[family][CASES.index(case)]
        between = " " if family == "bert" else ""
        pairs.append((f"{digits}{between}{mark}{between}{digits[::-1]}", case))
    return pairs


def faults_of(model, family):
    """The token that only texts with a mark have."""
    faults = []
    for mark, (kind, place) in zip(MARKS[family], CASES, strict=True):
        [plain], [marked] = model.tokenize(["1"]), model.tokenize([f"1 {mark} 1" if family == "bert" else f"1{mark}1"])
        [token] = [one for one in marked if one not in plain]
        faults.append(Fault(token=token, kind=kind, place=place))
    assert len({fault.token for fault in faults}) == len(CASES)
    return faults


@pytest.mark.parametrize(("family", "n_faults"), [("qwen3", 1000), ("bert", 120)])
def test_a_thousand_faults(family, n_faults, qwen3, starter_cache, monkeypatch, caplog, record_property):
    """NaN, zeros, -1 and missing rows, in batches, alone and everywhere, among twice as many sound texts."""
    caplog.set_level("ERROR")
    pairs = texts_of(family, n_texts=3 * n_faults, n_faults=n_faults, seed=7)
    texts = [text for text, _ in pairs]
    with Embedder(str(qwen3) if family == "qwen3" else "all-minilm-l6-v2") as model:
        right = model.encode(texts)
        faulty = FaultyBackend(monkeypatch, faults_of(model, family))
        results = list(model.encode_stream(texts))
        monkeypatch.undo()
        assert float(model.encode(texts[0]) @ right[0]) >= 0.99999
    assert [one.id for one in results] == list(range(len(texts)))
    for one, (_, case), row in zip(results, pairs, right, strict=True):
        if case is not None and case[1] == "everywhere":
            wanted = DecodeError if case[0] in ("code", "rows") else NonFiniteEmbeddingError
            assert type(one.error) is wanted, (case, one)
            assert one.error.index == one.id
            assert f"text {one.id} " in str(one.error)
        else:
            assert one.error is None, (case, one.error)
            assert float(one.vector @ row) >= 0.9999, (case, one.text)
    record_property("struck", dict(faulty.struck))
    assert min(faulty.struck[kind] for kind, _ in CASES) >= n_faults / len(CASES)


def test_a_call_names_every_bad_text(qwen3, monkeypatch):
    """`encode` raises for the first, and the error carries the others of its batch."""
    with Embedder(str(qwen3)) as model:
        bad = MARKS["qwen3"][CASES.index(("zeros", "everywhere"))]
        FaultyBackend(monkeypatch, faults_of(model, "qwen3"))
        with pytest.raises(NonFiniteEmbeddingError) as caught:
            model.encode(["123", f"4{bad}5", "678", f"9{bad}0"])
    assert sorted([caught.value.index, *(one.index for one in caught.value.others)]) == [1, 3]


def test_a_poisoned_cache_does_not_reach_the_next_text(qwen3, monkeypatch):
    """NaN in the cells of one text is overwritten before the next is decoded."""
    with Embedder(str(qwen3)) as model:
        right = model.encode("12345")
        mark = MARKS["qwen3"][CASES.index(("nan", "everywhere"))]
        FaultyBackend(monkeypatch, faults_of(model, "qwen3"))
        for _ in range(20):
            with pytest.raises(NonFiniteEmbeddingError):
                model.encode(f"1{mark}1")
            assert np.array_equal(model.encode("12345"), right)


def test_a_replaced_file_rescues_nothing(qwen3, tmp_path, monkeypatch):
    """What lies there now is another model: its row must not stand among these."""
    path = shutil.copy(qwen3, tmp_path / "model.gguf")
    with Embedder(path) as model:
        mark = MARKS["qwen3"][CASES.index(("nan", "fast"))]
        model.encode(f"1{mark}1")
        FaultyBackend(monkeypatch, faults_of(model, "qwen3"))
        synthetic.write_qwen3(tmp_path / "other.gguf", seed=1).replace(path)
        with pytest.raises(NonFiniteEmbeddingError, match="was changed after it was loaded"):
            model.encode(f"1{mark}1")


def test_the_plain_way_is_another_one(qwen3, monkeypatch):
    """It is taken with a float32 cache, without flash attention, and gives the same vector."""
    made = []
    binding = backend()
    real = binding.llama_init_from_model

    def record(model, params):
        made.append((params.type_k, params.flash_attn_type, params.n_seq_max))
        return real(model, params)

    with Embedder(str(qwen3)) as model:
        mark = MARKS["qwen3"][CASES.index(("nan", "fast"))]
        right = model.encode(f"1{mark}1")
        monkeypatch.setattr(binding, "llama_init_from_model", record)
        FaultyBackend(monkeypatch, faults_of(model, "qwen3"))
        assert float(model.encode(f"1{mark}1") @ right) >= 0.99999
    assert made == [(0, 0, 1)]
