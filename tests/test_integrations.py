"""integrations/shared.py: one model in a process, whoever asks; and adapters whose host is not there."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from animals import DOCUMENTS, MODEL, QUERY

from gguf_embed import DimensionError, MissingExtraError, UnknownModelError
from gguf_embed.integrations.shared import SharedModel, close_shared_models, configured_model

ADAPTERS = {
    "langchain": ("langchain_core", "langchain"),
    "llama_index": ("llama_index", "llama-index"),
    "chroma": ("chromadb", "chroma"),
    "haystack": ("haystack", "haystack"),
    "lancedb": ("lancedb", "lancedb"),
    "llm_plugin": ("llm", "llm"),
    "pydantic_ai": ("pydantic_ai", "pydantic-ai"),
    "mteb": ("mteb", "mteb"),
}


@pytest.fixture(autouse=True)
def _closed():
    """No model outlives its test."""
    yield
    close_shared_models()


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_missing_host_is_one_line_with_the_pip_command(name, monkeypatch):
    """Importing the adapter says which extra brings its host, and keeps the cause."""
    host, extra = ADAPTERS[name]
    for known in [one for one in sys.modules if one.startswith(f"{host}.")]:  # another test may have imported it
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, host, None)
    monkeypatch.delitem(sys.modules, f"gguf_embed.integrations.{name}", raising=False)
    with pytest.raises(MissingExtraError) as caught:
        importlib.import_module(f"gguf_embed.integrations.{name}")
    assert str(caught.value).endswith(f'run: pip install "gguf-embed[{extra}]"')
    assert "\n" not in str(caught.value)
    assert caught.value.extra == extra
    assert isinstance(caught.value.__cause__, ImportError)


def test_the_package_of_adapters_loads_no_host():
    """Nor llama.cpp, nor pydantic; sentence-transformers' shape needs neither it nor torch."""
    code = (
        "import sys, gguf_embed.integrations, gguf_embed.integrations.shared\n"
        "import gguf_embed.integrations.sentence_transformers\n"
        f"print([one for one in {[host for host, _ in ADAPTERS.values()]} + ['torch', 'pydantic', 'llama_cpp']"
        " if one in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_spellings_of_one_model_are_one_embedder(monkeypatch):
    """An alias, another case, and the original's name; another quantization or way of running is another one."""
    monkeypatch.setenv("GGUF_EMBED_MODEL", "qwen3-embedding:4b")
    one = SharedModel(model="qwen3-embedding-4b").embedder
    for text in ("qwen3-embedding:4b", "Qwen3-Embedding-4B", "Qwen/Qwen3-Embedding-4B", configured_model()):
        assert SharedModel(model=text).embedder is one
    assert SharedModel(model="qwen3-embedding-4b", truncate_dim=256, task="t", truncate="end").embedder is one
    monkeypatch.setenv("GGUF_EMBED_MODEL", "bge-m3")
    assert SharedModel(model="qwen3-embedding-4b", device="auto").embedder is one
    others = [
        SharedModel(model="qwen3-embedding-4b:Q4_K_M"), SharedModel(model="qwen3-embedding-0.6b"),
        SharedModel(model="qwen3-embedding-4b", device="cpu"), SharedModel(model="qwen3-embedding-4b", memory="2GiB"),
        SharedModel(model="qwen3-embedding-4b", n_threads=1), SharedModel(model="qwen3-embedding-4b", prefer="small"),
    ]  # fmt: skip
    assert len({id(other.embedder) for other in others} | {id(one)}) == 7


def test_what_cannot_be_is_refused_before_anything_is_planned():
    """By `check`, and options that no model can have when they are given."""
    with pytest.raises(UnknownModelError, match="qwen3-embedding-4b"):
        SharedModel(model="qwen3-embeding-4b").check()
    with pytest.raises(DimensionError):
        SharedModel(model="qwen3-embedding-4b", truncate_dim=16).check()
    for wrong in ({"truncate": "start"}, {"memory": "much"}, {"n_threads": 0}, {"device": "a b"}):
        with pytest.raises(ValueError, match=next(iter(wrong)) if "memory" not in wrong else "size"):
            SharedModel(model="qwen3-embedding-4b", **wrong)
    with pytest.raises(ValueError, match="takes no task"):
        SharedModel(model="all-minilm-l6-v2", task="t").check()
    with pytest.raises(ValueError, match="prefer is 'best'; it is one of default"):
        SharedModel(model="qwen3-embedding-4b", prefer="best")
    for wrong in ({"n_threads": 2.5}, {"n_threads": True}, {"memory": 1 << 32}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            SharedModel(model="qwen3-embedding-4b", **wrong)
    SharedModel(model="qwen3-embedding-4b", task="t").check()
    assert SharedModel(model="qwen3-embedding-4b", truncate_dim=64).dim == 64
    assert SharedModel(model="qwen3-embedding-4b").dim == 2560


@pytest.mark.real
def test_copies_share_one_model_also_from_threads(starter_cache, loads):
    """Ten threads and a pickled copy load it once, and get the same vectors."""
    assert starter_cache.is_file()
    shared = SharedModel(model=MODEL)
    copies = [pickle.loads(pickle.dumps(shared)) for _ in range(10)]  # noqa: S301 - made here
    with ThreadPoolExecutor(10) as pool:
        rows = list(pool.map(lambda one: one.queries([QUERY])[0], copies))
    assert len(loads) == 1
    assert all(row @ rows[0] > 0.9999 for row in rows)


@pytest.mark.real
def test_closing_frees_all_and_ends_nothing(starter_cache, loads):
    """A model that was closed is loaded again when it is asked again."""
    assert starter_cache.is_file()
    shared = SharedModel(model=MODEL)
    before = shared.documents(DOCUMENTS)
    close_shared_models()
    assert np.array_equal(shared.documents(DOCUMENTS), before)
    assert len(loads) == 2


@pytest.mark.real
def test_closing_while_others_embed_costs_them_nothing(starter_cache):
    """A call that was about to ask a model that is closed loads it again."""
    assert starter_cache.is_file()
    shared = SharedModel(model=MODEL)
    wanted = shared.queries([QUERY])[0]
    until = time.monotonic() + 3

    def ask():
        n = 0
        while time.monotonic() < until:
            assert shared.queries([QUERY])[0] @ wanted > 0.9999
            n += 1
        return n

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask) for _ in range(3)]
        while time.monotonic() < until:
            close_shared_models()
            time.sleep(0.2)
    assert all(one.result() > 0 for one in asked)


@pytest.mark.real
@pytest.mark.parametrize("before", ["shared.documents(texts)", "Embedder(model).encode(texts)"])
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_loads_a_model_of_its_own(starter_cache, before):
    """Its parent's waits for threads that the child has not; the child's vectors are right."""
    assert starter_cache.is_file()
    code = (
        "import os, sys\n"
        "from gguf_embed import Embedder\n"
        "from gguf_embed.integrations.shared import SharedModel\n"
        f"model, texts = {MODEL!r}, {DOCUMENTS!r}\n"
        "shared = SharedModel(model=model)\n"
        f"before = {before}\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    again = shared.documents(texts)\n"
        "    os._exit(0 if ((again * before).sum(1) > 0.9999).all() else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
