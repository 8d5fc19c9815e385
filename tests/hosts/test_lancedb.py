"""integrations/lancedb.py against lancedb."""

from __future__ import annotations

import subprocess
import sys

import pytest
from animals import DOCUMENTS, QUERY

lancedb = pytest.importorskip("lancedb", reason="scripts/test-hosts runs this")
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector

from gguf_embed import UnknownModelError
from gguf_embed.integrations.lancedb import GGUFEmbeddings


def filled(path, function):
    """A table whose vectors LanceDB asks the function for."""

    class Note(LanceModel):
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()

    table = lancedb.connect(path).create_table("notes", schema=Note)
    table.add([{"text": text} for text in DOCUMENTS])
    return table


def test_queries_and_documents_go_their_ways(tmp_path, expected, same, host_model, loads):
    """Rows with the document prompt, a search with the query's; one load of the model."""
    table = filled(tmp_path / "db", get_registry().get("gguf-embed").create(name=host_model))
    assert same(table.to_arrow().column("vector").to_pylist(), expected.documents)
    found = table.search(QUERY).metric("cosine").limit(1).to_list()[0]
    assert found["text"] == DOCUMENTS[0]
    assert found["_distance"] == pytest.approx(1 - float(expected.query @ expected.documents[0]), abs=1e-3)
    assert len(loads) == 1


def test_a_new_process_opens_a_table(tmp_path, host_model):
    """It has only to import the adapter, and finds the model that was the configured one when the table was made."""
    filled(tmp_path / "db", GGUFEmbeddings.create())
    code = (
        "import sys, lancedb, gguf_embed.integrations.lancedb\n"
        "table = lancedb.connect(sys.argv[1]).open_table('notes')\n"
        "function = table.embedding_functions['vector'].function\n"
        "print(function.name, table.search(sys.argv[2]).limit(1).to_list()[0]['text'])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "db"), QUERY]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert printed == f"{host_model} {DOCUMENTS[0]}"


def test_dimensions(tmp_path, host_model, expected, same):
    """`truncate_dim` decides the width of the column."""
    function = GGUFEmbeddings.create(name=host_model, truncate_dim=64)
    assert function.ndims() == 64
    rows = filled(tmp_path / "db", function).to_arrow().column("vector").to_pylist()
    assert len(rows[0]) == 64
    assert same(function.compute_query_embeddings([QUERY, QUERY])[1], function.compute_query_embeddings(QUERY)[0])
    assert same(function.compute_source_embeddings(DOCUMENTS), rows)
    assert GGUFEmbeddings.create().max_retries == 0
    assert same(GGUFEmbeddings.create().compute_query_embeddings(QUERY)[0], expected.query)


def test_a_null_has_no_vector(tmp_path, host_model, same, expected):
    """It is not the word None; what is no text is refused."""
    function = GGUFEmbeddings.create(name=host_model)

    class Note(LanceModel):
        text: str | None = function.SourceField()
        vector: Vector(function.ndims(), nullable=True) = function.VectorField(default=None)

    assert function.compute_source_embeddings([None, DOCUMENTS[0]])[0] is None
    table = lancedb.connect(tmp_path / "db").create_table("notes", schema=Note)
    table.add([{"text": None}, {"text": DOCUMENTS[0]}], on_bad_vectors="null")
    first, second = table.to_arrow().column("vector").to_pylist()
    assert first is None
    assert same(second, expected.documents[0])
    with pytest.raises(TypeError, match="bytes"):
        function.compute_source_embeddings([b"abc"])


@pytest.mark.usefixtures("host_model")
def test_what_is_wrong_is_said():
    """An unknown model and an unknown option, when it is made; what speaks of this machine is one."""
    with pytest.raises(UnknownModelError):
        GGUFEmbeddings.create(name="qwen3-embeding-4b")
    for wrong in ({"model_name": "bge-m3"}, {"truncate_dims": 64}, {"n_threads": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GGUFEmbeddings.create(**wrong)
