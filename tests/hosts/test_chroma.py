"""integrations/chroma.py against chromadb."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from animals import DOCUMENTS, QUERY

chromadb = pytest.importorskip("chromadb", reason="scripts/test-hosts runs this")
from chromadb.utils.embedding_functions import known_embedding_functions

from gguf_embed import UnknownModelError
from gguf_embed.integrations.chroma import GGUFEmbeddingFunction


def test_queries_and_documents_go_their_ways(expected, same, host_model):
    """`embed_query` with the query prompt, a call with the document's."""
    function = GGUFEmbeddingFunction(host_model)
    assert same(function(DOCUMENTS), expected.documents)
    assert same(function.embed_query([QUERY]), expected.query)
    assert same(function([QUERY]), expected.query_as_document)


def test_a_collection_is_added_to_asked_closed_and_opened_again(tmp_path, expected, same, host_model, loads):
    """With one load of the model, and its own cosine space; the copies that Chroma builds share it."""
    client = chromadb.PersistentClient(tmp_path / "db")
    collection = client.create_collection("animals", embedding_function=GGUFEmbeddingFunction(host_model))
    collection.add(ids=["0", "1", "2"], documents=DOCUMENTS)
    assert collection.query(query_texts=[QUERY], n_results=1)["ids"] == [["0"]]
    del collection, client
    again = chromadb.PersistentClient(tmp_path / "db").get_collection("animals")
    found = again.query(query_texts=[QUERY], n_results=1, include=["embeddings", "distances"])
    assert found["ids"] == [["0"]]
    assert found["distances"][0][0] == pytest.approx(1 - float(expected.query @ expected.documents[0]), abs=1e-3)
    assert same(found["embeddings"][0][0], expected.documents[0])
    assert len(loads) == 1


def test_a_new_process_opens_a_collection(tmp_path, host_model):
    """It has only to import the adapter: Chroma finds the function by the name that it kept."""
    client = chromadb.PersistentClient(tmp_path / "db")
    collection = client.create_collection("animals", embedding_function=GGUFEmbeddingFunction(host_model))
    collection.add(ids=["0", "1", "2"], documents=DOCUMENTS)
    code = (
        "import sys, chromadb, gguf_embed.integrations.chroma\n"
        "collection = chromadb.PersistentClient(sys.argv[1]).get_collection('animals')\n"
        "print(collection.query(query_texts=[sys.argv[2]], n_results=1)['ids'][0][0])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "db"), QUERY]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "0"


@pytest.mark.usefixtures("host_model")
def test_what_a_collection_keeps():
    """JSON that names the model, also where it was the configured one, and nothing of this machine."""
    function = GGUFEmbeddingFunction(truncate_dim=64, task=None, device="cpu", n_threads=1, memory="2GiB")
    config = json.loads(json.dumps(function.get_config()))
    assert config == {
        "model_name": "all-minilm-l6-v2", "truncate_dim": 64, "expect_fingerprint": None, "task": None,
        "truncate": "error", "prefer": "default",
    }  # fmt: skip
    assert GGUFEmbeddingFunction.build_from_config(config).get_config() == config
    assert known_embedding_functions["gguf-embed"] is GGUFEmbeddingFunction
    assert function.default_space() == "cosine"
    GGUFEmbeddingFunction.validate_config(config)


def test_what_may_not_change(tmp_path, host_model):
    """Another model or dimension for the same vectors, by Chroma's own way and by the function's."""
    function = GGUFEmbeddingFunction(host_model)
    kept = function.get_config()
    with pytest.raises(ValueError, match=r"model_name of a collection cannot change .* make a new collection"):
        function.validate_config_update(kept, kept | {"model_name": "bge-m3"})
    with pytest.raises(ValueError, match="truncate_dim"):
        function.validate_config_update(kept, kept | {"truncate_dim": 64})
    function.validate_config_update(kept, kept | {"truncate": "end", "expect_fingerprint": "0" * 32})
    with pytest.raises(ValueError, match="expect_fingerprint"):
        function.validate_config_update(kept | {"expect_fingerprint": "0" * 32}, kept | {"expect_fingerprint": None})
    with pytest.raises(ValueError, match="unknown options of gguf-embed: dims"):
        GGUFEmbeddingFunction.validate_config(kept | {"dims": 3})
    client = chromadb.PersistentClient(tmp_path / "db")
    collection = client.create_collection("animals", embedding_function=function)
    with pytest.raises(ValueError, match="model_name of a collection cannot change"):
        collection.modify(configuration={"embedding_function": GGUFEmbeddingFunction("bge-m3")})


@pytest.mark.usefixtures("host_model")
def test_what_is_wrong_is_said():
    """An unknown model and an unknown option, when it is made."""
    with pytest.raises(UnknownModelError):
        GGUFEmbeddingFunction("qwen3-embeding-4b")
    with pytest.raises(TypeError, match="dims"):
        GGUFEmbeddingFunction(dims=3)
