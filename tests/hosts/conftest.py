"""What hosts of adapters are tested with: a model whose queries differ from documents, and how often it is loaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from animals import DOCUMENTS, MODEL, QUERY

from gguf_embed import Embedder
from gguf_embed.integrations.shared import close_shared_models


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a real model."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)


@dataclass(frozen=True)
class Expected:
    """What Embedder itself gives.

    Attributes:
        query: (384,) of QUERY with the query prompt.
        documents: (3, 384) of DOCUMENTS with the document prompt.
        query_as_document: (384,) of QUERY with the document prompt.
    """

    query: Any
    documents: Any
    query_as_document: Any


@pytest.fixture
def host_model(tmp_path, starter_cache, monkeypatch):
    """The starter model, with prompts and cuts that it was not trained for; also what is meant where none is named."""
    config = tmp_path / "config"
    config.mkdir(exist_ok=True)
    prompts = 'prompts = { query = "Represent this question for a search: ", document = "A passage: " }'
    entry = f"schema = 1\n[models.{MODEL}]\n{prompts}\nmatryoshka = {{ min = 32, max = 384 }}\n"
    (config / "models.toml").write_text(entry, encoding="utf-8")
    monkeypatch.setenv("GGUF_EMBED_MODEL", MODEL)
    yield MODEL
    close_shared_models()


@pytest.fixture
def qwen3_host(tmp_path, monkeypatch):
    """A synthetic Qwen3, whose query prompt takes a task."""
    path = synthetic.write_qwen3(tmp_path / "synthetic-qwen3-F32.gguf")
    synthetic.register_qwen3(tmp_path / "config", path)
    yield str(path)
    close_shared_models()


@pytest.fixture
def expected(host_model):
    """The vectors that an adapter has to give; the three are not alike."""
    with Embedder(host_model) as embedder:
        made = Expected(
            query=embedder.encode_query(QUERY),
            documents=embedder.encode_document(DOCUMENTS),
            query_as_document=embedder.encode_document(QUERY),
        )
    assert made.query @ made.query_as_document < 0.97
    return made


@pytest.fixture
def same():
    """Whether two vectors, or two matrices, are the same but for their last bits."""

    def are_same(a, b):
        left, right = np.atleast_2d(np.asarray(a, dtype=np.float32)), np.atleast_2d(np.asarray(b, dtype=np.float32))
        return left.shape == right.shape and bool((np.einsum("ij,ij->i", left, right) > 0.9999).all())

    return are_same


@pytest.fixture(autouse=True)
def _quiet_hosts():
    """Hosts change logging for the process; each test begins as a program does."""
    yield
    logging.disable(logging.NOTSET)
