"""integrations/haystack.py against haystack-ai."""

from __future__ import annotations

import pytest
from animals import DOCUMENTS, QUERY

pytest.importorskip("haystack", reason="scripts/test-hosts runs this")
import haystack
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

from gguf_embed import UnknownModelError
from gguf_embed.integrations.haystack import GGUFDocumentEmbedder, GGUFTextEmbedder

IS_GUARDED = int(haystack.version.__version__.split(".")[0]) >= 3  # classes outside haystack have to be allowed


def loaded(text):
    return Pipeline.loads(text, **({"allowed_modules": ["gguf_embed.*"]} if IS_GUARDED else {}))


def test_queries_and_documents_go_their_ways(expected, same, host_model):
    """With lists of Python's floats, and usage beside them."""
    asked = GGUFTextEmbedder(host_model).run(QUERY)
    assert same(asked["embedding"], expected.query)
    assert type(asked["embedding"][0]) is float
    assert asked["meta"]["model"] == host_model
    assert asked["meta"]["usage"]["prompt_tokens"] > 10
    documents = [Document(content=text, meta={"at": at}) for at, text in enumerate(DOCUMENTS)]
    given = GGUFDocumentEmbedder(host_model).run(documents)["documents"]
    assert same([one.embedding for one in given], expected.documents)
    assert [(one.id, one.meta) for one in given] == [(one.id, one.meta) for one in documents]
    assert [one.embedding for one in documents] == [None, None, None]
    assert GGUFDocumentEmbedder(host_model).run([])["documents"] == []


def test_meta_goes_before_the_content(host_model, same):
    """The fields that are named, in their order, where a document has them."""
    embedder = GGUFDocumentEmbedder(host_model, meta_fields_to_embed=["title", "no"], embedding_separator=" - ")
    given = embedder.run([Document(content="body", meta={"title": "Head", "no": None}), Document(content=None)])
    plain = GGUFDocumentEmbedder(host_model).run([Document(content="Head - body"), Document(content="")])
    assert same([one.embedding for one in given["documents"]], [one.embedding for one in plain["documents"]])


def test_a_pipeline_is_written_and_read_as_yaml(host_model, loads):
    """Both components with their options; what was read indexes and finds, with one load of the model."""
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing, searching = Pipeline(), Pipeline()
    indexing.add_component("embedder", GGUFDocumentEmbedder(host_model, truncate_dim=64, progress_bar=True))
    searching.add_component("embedder", GGUFTextEmbedder(host_model, truncate_dim=64, n_threads=1))
    texts = indexing.dumps(), searching.dumps()
    indexing, searching = (loaded(text) for text in texts)
    assert (indexing.dumps(), searching.dumps()) == texts
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    searching.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    searching.connect("embedder.embedding", "retriever.query_embedding")
    indexing.run({"embedder": {"documents": [Document(content=text) for text in DOCUMENTS]}})
    found = searching.run({"embedder": {"text": QUERY}})["retriever"]["documents"]
    assert found[0].content == DOCUMENTS[0]
    assert len(store.filter_documents()[0].embedding) == 64
    assert len(loads) == 2  # n_threads differs, so these two are two models


@pytest.mark.skipif(not IS_GUARDED, reason="this Haystack loads any class")
def test_a_pipeline_is_refused_without_leave(host_model):
    """Haystack names what would allow it; this is why README names `allowed_modules`."""
    pipeline = Pipeline()
    pipeline.add_component("embedder", GGUFTextEmbedder(host_model))
    with pytest.raises(Exception, match="allow"):
        Pipeline.loads(pipeline.dumps())


def test_what_is_wrong_is_said(host_model):
    """The wrong kind of input names the other component; an unknown model is refused when it is made."""
    with pytest.raises(TypeError, match="GGUFDocumentEmbedder"):
        GGUFTextEmbedder(host_model).run([Document(content="a")])
    with pytest.raises(TypeError, match="GGUFTextEmbedder"):
        GGUFDocumentEmbedder(host_model).run("a")
    with pytest.raises(TypeError, match="meta_fields_to_embed is 'title'; it is a list"):
        GGUFDocumentEmbedder(host_model, meta_fields_to_embed="title")
    with pytest.raises(ValueError, match="documents have none, it goes to GGUFTextEmbedder"):
        GGUFDocumentEmbedder(host_model, task="find")
    with pytest.raises(UnknownModelError):
        GGUFTextEmbedder("qwen3-embeding-4b")


def test_warm_up_loads(host_model, loads):
    """Before the first text, and not again."""
    embedder = GGUFTextEmbedder(host_model)
    assert loads == []
    embedder.warm_up()
    embedder.warm_up()
    embedder.run(QUERY)
    assert len(loads) == 1
