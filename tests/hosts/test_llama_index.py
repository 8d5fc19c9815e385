"""integrations/llama_index.py against llama-index-core."""

from __future__ import annotations

import asyncio
import pickle

import pytest
from animals import DOCUMENTS, QUERY

pytest.importorskip("llama_index.core", reason="scripts/test-hosts runs this")
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from gguf_embed import UnknownModelError
from gguf_embed.integrations.llama_index import GGUFEmbedding


def test_queries_and_documents_go_their_ways(expected, same, host_model):
    """By each of LlamaIndex's ways in, sync and async."""
    embedding = GGUFEmbedding(model_name=host_model)
    assert same(embedding.get_query_embedding(QUERY), expected.query)
    assert same(embedding.get_text_embedding(QUERY), expected.query_as_document)
    assert same(embedding.get_text_embedding_batch(DOCUMENTS), expected.documents)
    assert type(embedding.get_query_embedding(QUERY)[0]) is float

    async def ask():
        return [
            await embedding.aget_query_embedding(QUERY),
            await embedding.aget_text_embedding(QUERY),
            *await embedding.aget_text_embedding_batch(DOCUMENTS),
        ]

    query, text, *documents = asyncio.run(ask())
    assert same(query, expected.query)
    assert same(text, expected.query_as_document)
    assert same(documents, expected.documents)


def test_an_index_finds_with_it(host_model, loads):
    """A VectorStoreIndex embeds its nodes in one go, finds the cat, and loads the model once."""
    nodes = [TextNode(text=text) for text in DOCUMENTS]
    index = VectorStoreIndex(nodes, embed_model=GGUFEmbedding(model_name=host_model))
    found = index.as_retriever(similarity_top_k=1, embed_model=GGUFEmbedding()).retrieve(QUERY)
    assert found[0].node.get_content() == DOCUMENTS[0]
    assert len(loads) == 1


def test_it_survives_what_hosts_do_to_it(host_model, expected, same):
    """A dict and back, and a pickle and back: with its options, and without a model in it."""
    embedding = GGUFEmbedding(model_name=host_model, embed_batch_size=7)
    for copy in (GGUFEmbedding.from_dict(embedding.to_dict()), pickle.loads(pickle.dumps(embedding))):
        assert (copy.model_name, copy.embed_batch_size, copy.class_name()) == (host_model, 7, "GGUFEmbedding")
        assert same(copy.get_query_embedding(QUERY), expected.query)


@pytest.mark.usefixtures("host_model")
def test_what_is_wrong_is_said():
    """A model that nobody knows and an option that there is not, when it is made; another host's word is one."""
    with pytest.raises(UnknownModelError):
        GGUFEmbedding(model_name="qwen3-embeding-4b")
    for wrong in ({"model": "bge-m3"}, {"truncate_dims": 64}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GGUFEmbedding(**wrong)
