"""One server of the starter model for all clients, as a user starts it."""

from __future__ import annotations

import gc
import warnings

import pytest
from serving import Served

from gguf_embed import Embedder


@pytest.fixture(scope="module")
def served(starter, tmp_path_factory):
    """A server of all-MiniLM-L6-v2 in a process of its own."""
    with Served(tmp_path_factory.mktemp("served"), starter, "all-minilm-l6-v2") as server:
        yield server


@pytest.fixture(scope="module")
def library(starter):
    """What vectors are held against: the same model by the same name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GGUF_EMBED_CACHE_DIR", str(starter.parents[1]))
        model = Embedder("all-minilm-l6-v2")
    with model:
        yield model


@pytest.fixture(autouse=True)
def sockets_of_others():
    """Clients that are never closed leave sockets to the collector; that is theirs."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
