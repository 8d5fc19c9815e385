"""integrations/pydantic_ai.py against pydantic-ai."""

from __future__ import annotations

import asyncio

import pytest
from animals import DOCUMENTS, QUERY

pytest.importorskip("pydantic_ai", reason="scripts/test-hosts runs this")
from pydantic_ai import Embedder
from pydantic_ai.embeddings import EmbeddingSettings

from gguf_embed import TextTooLongError, UnknownModelError
from gguf_embed.integrations.pydantic_ai import GGUFEmbeddingModel
from gguf_embed.integrations.shared import SharedModel


def test_queries_and_documents_go_their_ways(expected, same, host_model, loads):
    """By pydantic-ai's Embedder, with usage; the model is loaded once."""
    embedder = Embedder(GGUFEmbeddingModel(host_model))

    async def ask():
        return await embedder.embed_query(QUERY), await embedder.embed_documents(DOCUMENTS)

    query, documents = asyncio.run(ask())
    assert same(query.embeddings[0], expected.query)
    assert same(documents.embeddings, expected.documents)
    assert same(documents[DOCUMENTS[1]], expected.documents[1])
    assert (query.model_name, query.provider_name, query.input_type) == (host_model, "gguf-embed", "query")
    assert documents.usage.input_tokens > 20
    assert same(Embedder(GGUFEmbeddingModel()).embed_query_sync(QUERY).embeddings, expected.query)
    assert len(loads) == 1


def test_settings(host_model):
    """`dimensions` and `truncate`, of the model and of the call; others are refused."""
    model = GGUFEmbeddingModel(host_model, settings=EmbeddingSettings(dimensions=64))
    embedder = Embedder(model)
    assert len(embedder.embed_query_sync(QUERY).embeddings[0]) == 64
    assert len(embedder.embed_query_sync(QUERY, settings={"dimensions": 32}).embeddings[0]) == 32
    with pytest.raises(TextTooLongError):
        embedder.embed_query_sync("word " * 600)
    assert len(embedder.embed_query_sync("word " * 600, settings={"truncate": True}).embeddings) == 1
    with pytest.raises(TypeError, match="truncate='error'"):
        embedder.embed_query_sync(QUERY, settings={"truncate": "error"})
    with pytest.raises(ValueError, match="extra_headers"):
        embedder.embed_query_sync(QUERY, settings={"extra_headers": {"a": "b"}})


def test_tokens_and_limits(host_model):
    """As the model counts them."""
    model = GGUFEmbeddingModel(SharedModel(model=host_model, n_threads=1))
    assert asyncio.run(model.max_input_tokens()) == 256
    assert asyncio.run(model.count_tokens("a cat")) == 4
    with pytest.raises(UnknownModelError):
        GGUFEmbeddingModel("qwen3-embeding-4b")
