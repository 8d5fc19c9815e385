"""integrations/langchain.py against langchain-core and its standard tests."""

from __future__ import annotations

import asyncio
import pickle

import pytest
from animals import DOCUMENTS, MODEL, QUERY

pytest.importorskip("langchain_tests", reason="scripts/test-hosts runs this")
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from gguf_embed import FingerprintError, TextTooLongError, UnknownModelError
from gguf_embed.integrations.langchain import GGUFEmbeddings


@pytest.mark.usefixtures("host_model")
class TestUnit(EmbeddingsUnitTests):
    """LangChain's own unit tests of an Embeddings."""

    @property
    def embeddings_class(self):
        return GGUFEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": MODEL}


@pytest.mark.usefixtures("host_model")
class TestIntegration(EmbeddingsIntegrationTests):
    """LangChain's own integration tests of an Embeddings."""

    @property
    def embeddings_class(self):
        return GGUFEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": MODEL}


def test_queries_and_documents_go_their_ways(expected, same):
    """Each has its prompt, and vectors are lists of Python's floats."""
    embeddings = GGUFEmbeddings(model=MODEL)
    query, documents = embeddings.embed_query(QUERY), embeddings.embed_documents(DOCUMENTS)
    assert same(query, expected.query)
    assert same(documents, expected.documents)
    assert type(query) is list
    assert type(query[0]) is float
    assert type(documents[0][0]) is float
    assert embeddings.embed_documents([]) == []


def test_both_ways_also_where_they_are_awaited(expected, same):
    """As the sync ones."""
    embeddings = GGUFEmbeddings()

    async def ask():
        return await asyncio.gather(embeddings.aembed_query(QUERY), embeddings.aembed_documents(DOCUMENTS))

    query, documents = asyncio.run(ask())
    assert same(query, expected.query)
    assert same(documents, expected.documents)


def test_copies_share_one_model(host_model, loads):
    """Two of other dimensions, and a pickled copy, load it once."""
    first, second = GGUFEmbeddings(model=host_model), GGUFEmbeddings(model="all-MiniLM-L6-v2", truncate_dim=64)
    assert len(first.embed_query(QUERY)) == 384
    assert len(second.embed_query(QUERY)) == 64
    assert pickle.loads(pickle.dumps(second)).embed_query(QUERY) == second.embed_query(QUERY)
    assert len(loads) == 1


@pytest.mark.usefixtures("host_model")
def test_a_store_finds_with_it():
    """The in-memory vector store of langchain-core finds the cat."""
    store = InMemoryVectorStore.from_texts(DOCUMENTS, embedding=GGUFEmbeddings())
    assert store.similarity_search(QUERY, k=1)[0].page_content == DOCUMENTS[0]


@pytest.mark.usefixtures("host_model")
def test_what_is_wrong_is_said():
    """An unknown model and an unknown option when it is made; an over-long text, a foreign fingerprint at its use."""
    with pytest.raises(UnknownModelError, match="qwen3-embedding-4b"):
        GGUFEmbeddings(model="qwen3-embeding-4b")
    with pytest.raises(ValueError, match="n_thread"):
        GGUFEmbeddings(n_thread=2)
    with pytest.raises(TextTooLongError):
        GGUFEmbeddings().embed_documents(["word " * 600])
    assert len(GGUFEmbeddings(truncate="end").embed_query("word " * 600)) == 384
    with pytest.raises(FingerprintError):
        GGUFEmbeddings(expect_fingerprint="0" * 32).embed_query(QUERY)
