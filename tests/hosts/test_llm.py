"""integrations/llm_plugin.py against the `llm` command and library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from animals import DOCUMENTS, QUERY

llm = pytest.importorskip("llm", reason="scripts/test-hosts runs this")


@pytest.fixture
def shell(host_model, tmp_path, monkeypatch):
    """Run `llm` in a user folder of its own."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    program = Path(sys.executable).with_name("llm")

    def run(*words, check=True):
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


def test_embed_from_the_shell(shell, expected, same):
    """One text, as a document."""
    printed = shell("embed", "-m", "gguf-embed/all-minilm-l6-v2", "-c", DOCUMENTS[0]).stdout
    assert same(json.loads(printed), expected.documents[0])


def test_similar_from_the_shell(shell, tmp_path, expected):
    """A collection of documents is searched with the query prompt; by id as it is stored."""
    entries = tmp_path / "entries.json"
    entries.write_text(json.dumps([{"id": str(at), "text": text} for at, text in enumerate(DOCUMENTS)]))
    shell("embed-multi", "notes", str(entries), "-m", "gguf-embed/all-minilm-l6-v2", "--store")
    found = [json.loads(line) for line in shell("similar", "notes", "-c", QUERY).stdout.splitlines()]
    scores = expected.documents @ expected.query
    assert [(int(one["id"]), one["content"]) for one in found] == [
        (at, DOCUMENTS[at]) for at in np.argsort(-scores).tolist()
    ]
    assert [one["score"] for one in found] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-3)
    near = [json.loads(line) for line in shell("similar", "notes", "0").stdout.splitlines()]
    by_id = sorted((expected.documents[1:] @ expected.documents[0]).tolist(), reverse=True)
    assert [one["score"] for one in near] == pytest.approx(by_id, abs=1e-3)


def test_models_are_listed_without_loading_any(shell):
    """Ids and aliases of the registry, in well under a second beside `llm` itself."""
    listed = shell("embed-models").stdout
    assert "gguf-embed/qwen3-embedding-4b" in listed
    assert "gguf-embed/qwen3-embedding:4b" in listed


def test_from_python(host_model, expected, same, loads):
    """`embed_query` for `similar_by_vector`, by id or alias; the model is loaded once."""
    model = llm.get_embedding_model(f"gguf-embed/{host_model}")
    collection = llm.Collection("notes", model=model)
    collection.embed_multi([(str(at), text) for at, text in enumerate(DOCUMENTS)], store=True)
    found = collection.similar_by_vector(model.embed_query(QUERY), number=1)[0]
    assert found.content == DOCUMENTS[0]
    assert found.score == pytest.approx(float(expected.query @ expected.documents[0]), abs=1e-3)
    assert same(list(model.embed_multi(DOCUMENTS)), expected.documents)
    assert len(loads) == 1
    with pytest.raises(ValueError, match="binary"):
        model.embed(b"\x00")
    for wrong in (None, 3, ["a"]):
        with pytest.raises(TypeError):
            model.embed(wrong)


def test_what_is_wrong_is_one_line(shell, tmp_path):
    """An over-long text names itself, without a traceback; a broken models.toml stops no command."""
    done = shell("embed", "-m", "gguf-embed/all-minilm-l6-v2", "-c", "word " * 600, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: text 0 has 6")
    assert "Traceback" not in done.stderr
    (tmp_path / "config" / "models.toml").write_text("schema = [", encoding="utf-8")
    done = shell("embed-models")
    assert "no model of gguf-embed is here" in done.stderr
