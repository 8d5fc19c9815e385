"""integrations/sentence_transformers.py, held against the real package's words and its `util`."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from animals import DOCUMENTS, QUERY

theirs = pytest.importorskip("sentence_transformers", reason="scripts/test-hosts runs this")
torch = pytest.importorskip("torch")
from sentence_transformers import util

from gguf_embed import DimensionError, UnknownModelError
from gguf_embed.integrations.sentence_transformers import SentenceTransformer


def test_queries_and_documents_go_their_ways(expected, same, loads):
    """By the original's name, with sentence-transformers' calls; one load of the model."""
    model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
    assert same(model.encode_query(QUERY), expected.query)
    assert same(model.encode_document(DOCUMENTS), expected.documents)
    assert same(model.encode(QUERY, "query"), expected.query)
    assert same(model.encode(QUERY, prompt=model.prompts["query"]), expected.query)
    assert same(SentenceTransformer(default_prompt_name="document").encode(DOCUMENTS), expected.documents)
    assert not same(model.encode(QUERY), expected.query)
    assert len(loads) == 1


@pytest.mark.usefixtures("host_model")
def test_util_takes_what_it_gives():
    """`semantic_search` and `community_detection` over arrays and over tensors."""
    model = SentenceTransformer()
    corpus = model.encode_document(DOCUMENTS)
    hits = util.semantic_search(model.encode_query(QUERY), corpus, top_k=2)
    assert hits[0][0]["corpus_id"] == 0
    tensors = model.encode_document(DOCUMENTS, convert_to_tensor=True)
    assert isinstance(tensors, torch.Tensor)
    again = util.semantic_search(model.encode_query(QUERY, convert_to_tensor=True), tensors, top_k=2)
    assert again[0][0]["score"] == pytest.approx(hits[0][0]["score"], abs=1e-4)
    assert sorted(util.community_detection(tensors, threshold=0.99, min_community_size=1)) == [[0], [1], [2]]


@pytest.mark.usefixtures("host_model")
def test_shapes_and_similarity():
    """As sentence-transformers has them, in numpy."""
    model = SentenceTransformer(truncate_dim=64)
    assert model.get_embedding_dimension() == model.get_sentence_embedding_dimension() == 64
    assert model.max_seq_length == 256
    one, many = model.encode("a"), model.encode(["a", "b"])
    assert (one.shape, many.shape, model.encode([]).shape) == ((64,), (2, 64), (0, 64))
    assert [row.shape for row in model.encode(["a", "b"], convert_to_numpy=False)] == [(64,), (64,)]
    assert model.encode(["a", "b"], precision="ubinary").dtype == np.uint8
    assert model.encode("a", precision=None, truncate_dim=32).shape == (32,)
    cosines = model.similarity(many, many)
    assert np.allclose(cosines, util.cos_sim(many, many).numpy(), atol=1e-5)
    assert np.allclose(model.similarity_pairwise(many, many), 1, atol=1e-5)


def test_the_words_are_theirs():
    """Each positional and keyword of `encode` and of the class is one of the real package, in its order."""
    ours = list(inspect.signature(SentenceTransformer.encode).parameters)
    real = list(inspect.signature(theirs.SentenceTransformer.encode).parameters)
    assert ours[:5] == [name if name != "sentences" else "inputs" for name in real[:5]]
    assert set(ours) - {"inputs"} <= set(real)
    real_class = set(inspect.signature(theirs.SentenceTransformer.__init__).parameters)
    assert set(inspect.signature(SentenceTransformer.__init__).parameters) - real_class == {"truncate"}


@pytest.mark.usefixtures("host_model")
def test_what_is_wrong_is_said():
    """An unknown model, prompt or keyword."""
    with pytest.raises(UnknownModelError):
        SentenceTransformer("qwen3-embeding-4b")
    for dim in (0, -1, 20):
        with pytest.raises(DimensionError):
            SentenceTransformer(truncate_dim=dim)
        with pytest.raises(DimensionError):
            SentenceTransformer().encode("a", truncate_dim=dim)
    with pytest.raises(ValueError, match="prompt_name is 'qery'; it is one of query, document"):
        SentenceTransformer().encode("a", "qery")
    with pytest.raises(ValueError, match="'qery'"):
        SentenceTransformer(default_prompt_name="qery")
    with pytest.raises(TypeError, match="output_value"):
        SentenceTransformer().encode("a", output_value="token_embeddings")
