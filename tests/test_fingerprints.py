"""fingerprints.py: whatever moves a vector moves the number, and nothing else does."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import synthetic

from gguf_embed.fingerprints import Recipe, recipe_of, sha256_of
from gguf_embed.models.registry import load_registry
from gguf_embed.prompts import PromptSet

RECIPE = Recipe(sha256="0" * 64, pooling_type="last", add_eos=True, prompts=PromptSet(query="q: "), dim=64)
OTHERS = {
    "sha256": "1" * 64, "pooling_type": "mean", "add_eos": False, "token_rule": 99, "kv_type": "q8_0",
    "prompts": PromptSet(query="q:"), "prompt": "p: ", "dim": 32, "layer_norm_first": True, "normalize": False,
}  # fmt: skip


def test_each_part_counts():
    """A recipe with any one part changed has a fingerprint of its own."""
    assert set(OTHERS) == {field.name for field in dataclasses.fields(Recipe)}
    prints = [dataclasses.replace(RECIPE, **{name: value}).fingerprint for name, value in OTHERS.items()]
    assert len({RECIPE.fingerprint, *prints}) == 1 + len(OTHERS)


def test_it_does_not_change_between_versions():
    """What users have written down stays true: a change here makes them embed all anew, and wants a good reason."""
    assert RECIPE.fingerprint == "3f633dd513147d76d546d05176e54ae1"


def test_names_do_not_count(tmp_path):
    """Two names of the same bytes share it; a flag in the header does not."""
    one = synthetic.write_bert(tmp_path / "one.gguf", pooling_type=1)
    two = shutil.copy(one, tmp_path / "two.gguf")
    assert recipe_of(one, spec=None) == recipe_of(two, spec=None)
    other = synthetic.write_bert(tmp_path / "other.gguf", pooling_type=2)
    assert recipe_of(other, spec=None).fingerprint != recipe_of(one, spec=None).fingerprint


def test_the_callers_word_comes_first_then_the_registrys_then_the_headers(tmp_path):
    """Pooling and EOS as they are really used."""
    path = synthetic.write_bert(tmp_path / "one.gguf", pooling_type=2)
    spec = load_registry().get("all-minilm-l6-v2")
    assert recipe_of(path, spec=None).pooling_type == "cls"
    assert recipe_of(path, spec=spec).pooling_type == "mean"
    assert recipe_of(path, spec=spec, pooling_type="last", add_eos=True).pooling_type == "last"
    assert recipe_of(path, spec=spec, add_eos=True).add_eos is True


def test_a_blob_of_the_hubs_cache_is_not_read(tmp_path):
    """Its name is its checksum."""
    blob = tmp_path / ("a" * 64)
    blob.write_bytes(b"anything")
    (tmp_path / "model.gguf").symlink_to(blob)
    assert sha256_of(tmp_path / "model.gguf") == "a" * 64


@pytest.mark.parametrize("content", [b"", b"GGUF"])
def test_any_other_file_is_read(tmp_path, content):
    """And a change is noticed."""
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    before = sha256_of(path)
    path.write_bytes(content + b"x")
    assert sha256_of(path) != before
