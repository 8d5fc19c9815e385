"""The same vector as the reference model."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic

from gguf_embed import Embedder, similarity_pairwise


def test_minilm_f16_is_the_reference(starter_cache, golden, golden_texts, record_property):
    """Every one of 64 texts in many scripts has the vector that sentence-transformers gives it."""
    with Embedder("all-minilm-l6-v2") as model:
        cosines = similarity_pairwise(model.encode(golden_texts), golden("minilm")["embeddings"])
    record_property("min_cosine", float(cosines.min()))
    assert cosines.min() >= 0.9999, golden_texts[int(cosines.argmin())]


def test_qwen3_ids_are_the_reference(qwen3, golden, golden_texts):
    """Token ids equal those of the reference tokenizer, composed characters and literal control tokens included."""
    reference = golden("qwen3")
    ids = np.split(reference["ids"], np.cumsum(reference["lengths"])[:-1])
    with Embedder(str(qwen3)) as model:
        assert model.tokenize(golden_texts) == [row.tolist() for row in ids]


# What was measured (tests/golden, CPU): Q8_0 0.99979, Q4_K_M 0.9853, Q4_K_S 0.9865, Q3_K_M 0.9591 at the least.
# Random weights suffer more from quantization than trained ones; the bounds guard against a broken path.
@pytest.mark.parametrize(
    ("quant", "least"),
    [("F32", 0.9999), ("F16", 0.999), ("Q8_0", 0.999), ("Q4_K_M", 0.98), ("Q4_K_S", 0.98), ("Q3_K_M", 0.95)],
)
def test_qwen3_is_the_reference(quant, least, qwen3, qwen3_quantized, golden, golden_texts, tmp_path, record_property):
    """A Qwen3 with GQA and a key length of its own gives transformers' vectors, quantized ones within their loss."""
    path = qwen3
    if quant == "F16":
        path = synthetic.write_qwen3(tmp_path / "synthetic-F16.gguf", f16=True)
    elif quant != "F32":
        path = qwen3_quantized(quant)
    with Embedder(str(path)) as model:
        cosines = similarity_pairwise(model.encode(golden_texts), golden("qwen3")["embeddings"])
    record_property("min_cosine", float(cosines.min()))
    record_property("mean_cosine", float(cosines.mean()))
    assert cosines.min() >= least


def test_meaning_survives(starter_cache):
    """Sentences that mean the same are nearer than those that do not."""
    with Embedder("minilm") as model:
        cat, kitten, bank = model.encode(["A cat sleeps.", "The kitten is napping.", "The bank raised its rates."])
    assert model.similarity(cat, kitten)[0, 0] > 0.6
    assert model.similarity(cat, bank)[0, 0] < 0.2
