"""What `import gguf_embed` gives, and what it does not load."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import gguf_embed
from gguf_embed import errors

HEAVY = ("llama_cpp", "numpy", "huggingface_hub", "httpx", "click", "rich", "psutil", "platformdirs", "pyarrow", "gguf")


def loaded_by(code):
    """Top-level modules that a fresh interpreter has loaded after this code."""
    script = f"{code}\nimport sys, json; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy():
    """`import gguf_embed` is quick because it loads neither llama.cpp, numpy, the hub client nor click."""
    loaded = loaded_by("import gguf_embed; gguf_embed.__version__; dir(gguf_embed)")
    assert loaded.isdisjoint(HEAVY)
    assert "gguf_embed" in loaded


def test_catching_an_error_loads_nothing_heavy():
    """An except clause may name our classes for free."""
    assert loaded_by("from gguf_embed import GGUFEmbedError, TextTooLongError").isdisjoint(HEAVY)


def test_vectors_load_numpy_alone():
    """Cutting stored vectors needs no model library."""
    loaded = loaded_by("from gguf_embed import similarity, similarity_pairwise, truncate_dim")
    assert loaded.isdisjoint(set(HEAVY) - {"numpy"})


def test_help_loads_neither_model_nor_hub():
    """`gguf-embed --help` needs click and nothing else of weight."""
    code = """
import sys
from gguf_embed.cli import main
sys.argv[1:] = ["--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code
"""
    assert loaded_by(code).isdisjoint(set(HEAVY) - {"click"})


def test_help_of_a_command_loads_neither_model_nor_hub():
    """`gguf-embed embed --help` is as light."""
    code = "from gguf_embed.cli.app import run\nassert run(['embed', '--help']) == 0"
    assert loaded_by(code).isdisjoint(set(HEAVY) - {"click"})


def test_making_an_embedder_does_not_load_llama_cpp():
    """Nothing is loaded before it is needed; a name is only looked up."""
    assert "llama_cpp" not in loaded_by("from gguf_embed import Embedder; Embedder('qwen3-embedding-4b')")


@pytest.mark.parametrize("name", gguf_embed.__all__)
def test_a_public_name_resolves(name):
    """Every name of __all__ is there, and stays the same object."""
    value = getattr(gguf_embed, name)
    assert getattr(gguf_embed, name) is value


def test_all_is_sorted_and_without_doubles():
    """The list can be read by a person."""
    assert gguf_embed.__all__ == sorted(set(gguf_embed.__all__))


def test_dir_is_all():
    """What a shell completes is what is promised."""
    assert dir(gguf_embed) == sorted(gguf_embed.__all__)


def test_every_error_is_public():
    """Each class of errors.py can be imported from the package."""
    assert set(errors.__all__) <= set(gguf_embed.__all__)
    assert gguf_embed.ClosedError is errors.ClosedError


@pytest.mark.parametrize("name", ["Embeder", "load_config", "_nothing", "np"])
def test_an_unknown_name_is_an_attribute_error(name):
    """hasattr, mock and pickle rely on AttributeError."""
    with pytest.raises(AttributeError, match=f"module 'gguf_embed' has no attribute '{name}'"):
        getattr(gguf_embed, name)
    with pytest.raises(ImportError):
        exec(f"from gguf_embed import {name}")  # noqa: S102 - a name of this test


def test_the_version_is_the_project_file_s():
    """One version, in the package and in what pip installed."""
    from importlib.metadata import version  # noqa: PLC0415 - only here

    assert gguf_embed.__version__ == version("gguf-embed")


def test_the_package_is_typed():
    """py.typed tells type checkers to read the annotations."""
    from importlib.resources import files  # noqa: PLC0415 - only here

    assert (files("gguf_embed") / "py.typed").is_file()


ENCODE = [
    "prompt_name",
    "prompt",
    "batch_size",
    "show_progress_bar",
    "precision",
    "normalize_embeddings",
    "truncate_dim",
]


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_encode_has_the_words_of_sentence_transformers(method):
    """Texts by position, the rest by the keywords that sentence-transformers has, and `truncate`."""
    parameters = inspect.signature(getattr(gguf_embed.Embedder, method)).parameters
    assert list(parameters)[:2] == ["self", "inputs"]
    keywords = {name for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}
    assert keywords == {*ENCODE, "truncate"} | ({"task"} if method == "encode_query" else set())
    assert keywords | {"self", "inputs"} == set(parameters)


@pytest.mark.parametrize(
    ("keyword", "default"),
    [("normalize_embeddings", True), ("truncate_dim", None), ("truncate", "error"), ("precision", "float32"),
     ("show_progress_bar", False), ("batch_size", None)],
)  # fmt: skip
@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_defaults_give_whole_unit_rows(method, keyword, default):
    """Unit length, full dimension, no silent cut."""
    assert inspect.signature(getattr(gguf_embed.Embedder, method)).parameters[keyword].default == default


def test_queries_and_documents_take_their_prompts():
    """Plain encode is bare, encode_query and encode_document name their prompt."""
    names = {
        method: inspect.signature(getattr(gguf_embed.Embedder, method)).parameters["prompt_name"].default
        for method in ("encode", "encode_query", "encode_document")
    }
    assert names == {"encode": None, "encode_query": "query", "encode_document": "document"}


@pytest.mark.parametrize(
    "name",
    ["plan", "fingerprint", "dim", "max_seq_length", "tokenize", "similarity", "similarity_pairwise",
     "get_embedding_dimension", "close", "load", "prompts", "model_id"],
)  # fmt: skip
def test_an_embedder_has_the_members_of_the_design(name):
    """DESIGN section 3's words are there, with a docstring each."""
    assert inspect.getdoc(getattr(gguf_embed.Embedder, name))


def test_an_embedder_takes_keywords_after_its_model():
    """Embedder("m", 512) is refused: a bare number would say nothing."""
    with pytest.raises(TypeError):
        gguf_embed.Embedder("qwen3-embedding-4b", 512)
