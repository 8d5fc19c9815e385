"""models/measured.py: what was measured is kept, read leniently, and orders the ladder of `--prefer measured`."""

from __future__ import annotations

import dataclasses
import json

import pytest
from fake_hub import FakeHub
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.config import load_config
from gguf_embed.errors import ConfigError, StorageError, UnknownQuantError
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.ladders import QUALITY_LADDER
from gguf_embed.models.made import made_path
from gguf_embed.models.measured import (
    EQUAL_WITHIN,
    Measured,
    MeasuredQuant,
    keep_measured,
    load_measured,
    measured_path,
)

SCORES = st.dictionaries(
    st.sampled_from(QUALITY_LADDER), st.tuples(st.integers(900, 1010), st.integers(1, 50)), min_size=1
)


def quant(name, score, size_bytes=1, sha256=None):
    return MeasuredQuant(quant=name, score=score, size_bytes=size_bytes, sha256=sha256 or name.lower())


def measured(*quants, reference="F16", measured_on=("20 texts",)):
    return Measured(reference=reference, measured_on=measured_on, quants=quants)


# Order


def test_the_best_comes_first_and_of_equals_the_smaller():
    """Q8_0 is within 0.002 of F16 and smaller; Q5_K_M is not within 0.002 of the best of the two."""
    found = measured(
        quant("F16", 1.0, 44), quant("Q8_0", 0.998, 24), quant("Q5_K_M", 0.9975, 20), quant("Q4_K_M", 0.96, 19)
    )
    assert found.order == ("Q8_0", "F16", "Q5_K_M", "Q4_K_M")


def test_a_worse_score_of_a_larger_file_is_no_surprise():
    """Order is by score, whatever quality is said to be."""
    assert measured(quant("Q4_K_M", 0.95, 20), quant("Q4_K_S", 0.97, 19)).order == ("Q4_K_S", "Q4_K_M")


@given(SCORES)
def test_every_order_is_of_all_and_hangs_on_values_alone(scores):
    """Each once, in whatever order they were given; none goes before one that is clearly better."""
    quants = [quant(name, score / 1000, size) for name, (score, size) in scores.items()]
    order = measured(*quants).order
    assert sorted(order) == sorted(scores)
    assert measured(*reversed(quants)).order == order
    by_name = {one.quant: one for one in quants}
    for place, name in enumerate(order):
        for later in order[place + 1 :]:
            assert by_name[later].score <= by_name[name].score + EQUAL_WITHIN + 1e-6


# Keeping


def test_what_is_kept_is_read_again(tmp_path):
    """By model, beside what is known of others, in a file that is written whole."""
    first, second = measured(quant("F16", 1.0)), measured(quant("Q8_0", 0.5, 7), reference="Q8_0")
    assert load_measured(tmp_path, "a") is None
    assert keep_measured(tmp_path / "state", "a", first) == measured_path(tmp_path / "state")
    keep_measured(tmp_path / "state", "b/c", second)
    assert load_measured(tmp_path / "state", "a") == first
    assert load_measured(tmp_path / "state", "b/c") == second
    assert load_measured(tmp_path / "state", "d") is None
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["evaluations.json"]


def test_more_of_the_same_is_added(tmp_path):
    """Measured on the same beside the same file: what was known stays, what is measured again is replaced."""
    keep_measured(tmp_path, "a", measured(quant("F16", 1.0), quant("Q8_0", 0.9), quant("Q4_K_M", 0.8)))
    keep_measured(tmp_path, "a", measured(quant("F16", 1.0), quant("Q8_0", 0.95)))
    assert load_measured(tmp_path, "a").order == ("F16", "Q8_0", "Q4_K_M")
    assert {one.quant: one.score for one in load_measured(tmp_path, "a").quants}["Q8_0"] == 0.95


@pytest.mark.parametrize(
    "now",
    [
        measured(quant("F16", 1.0), quant("Q8_0", 0.8), measured_on=("30 texts",)),
        measured(quant("F32", 1.0), quant("Q8_0", 0.8), reference="F32"),
        measured(quant("F16", 1.0, sha256="another")),
    ],
    ids=["other texts", "another reference", "another file of the reference"],
)
def test_what_does_not_compare_goes(tmp_path, now):
    """Scores of one evaluation are never ordered with those of another."""
    keep_measured(tmp_path, "a", measured(quant("F16", 1.0), quant("Q8_0", 0.9)))
    keep_measured(tmp_path, "a", now)
    assert load_measured(tmp_path, "a") == now


@pytest.mark.parametrize(
    ("n_quants", "words"),
    [
        (2, "for --prefer measured this replaces F16, Q8_0 of a, held against F16 on 20 texts"),
        (1, ("not kept for --prefer measured, which has more: F16, Q8_0 of a, held against F16 on 20 texts. "
            "To replace it, run eval on these data with --quants F16,Q8_0")),
    ],
)  # fmt: skip
def test_a_small_experiment_spoils_nothing(tmp_path, caplog, n_quants, words):
    """What was measured on something else goes for as much, not for less, and either is said."""
    before, now = measured(quant("F16", 1.0), quant("Q8_0", 0.9)), (quant("F16", 1.0), quant("Q4_K_M", 0.8))
    keep_measured(tmp_path, "a", before)
    assert caplog.text == ""
    now = measured(*now[:n_quants], measured_on=("30 texts",))
    assert (keep_measured(tmp_path, "a", now) is None) == (n_quants == 1)
    assert load_measured(tmp_path, "a") == (now if n_quants == 2 else before)
    assert [record.getMessage() for record in caplog.records] == [words]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"a": 1}', '{"a": {"quants": []}}', '{"a": {"quants": [{"quant": "F16"}]}}', "[" * 100_000,
     json.dumps({"a": dataclasses.asdict(measured(quant("F16", float("nan"))))}),
     json.dumps({"a": dataclasses.asdict(measured(quant("F16", 1.0, 77)))}).replace("77", "1e400"),
     json.dumps({"a": dataclasses.asdict(measured(quant("F16", 77.0)))}).replace("77.0", "1" * 400)],
    ids=["empty", "cut", "a list", "a number", "no quants", "half a quant", "deep", "not a number", "an endless size",
         "a score beyond any float"],
)  # fmt: skip
def test_a_damaged_file_is_none(tmp_path, content):
    """It is read as nothing, and the next evaluation writes it anew."""
    measured_path(tmp_path).write_text(content, encoding="utf-8")
    assert load_measured(tmp_path, "a") is None
    keep_measured(tmp_path, "a", measured(quant("F16", 1.0)))
    assert load_measured(tmp_path, "a") == measured(quant("F16", 1.0))


def test_what_another_version_wrote_beside_stays(tmp_path):
    """Entries of other models are kept as they are, whether or not they can be read."""
    measured_path(tmp_path).write_text('{"b": {"of": "another kind"}}', encoding="utf-8")
    keep_measured(tmp_path, "a", measured(quant("F16", 1.0)))
    assert json.loads(measured_path(tmp_path).read_text(encoding="utf-8"))["b"] == {"of": "another kind"}


def test_a_folder_that_cannot_be_written(tmp_path):
    """The file and the system's reason are told, and nothing is left beside."""
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StorageError, match=r"evaluations\.json cannot be written"):
        keep_measured(tmp_path / "state", "a", measured(quant("F16", 1.0)))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


# The ladder


@pytest.fixture
def catalog():
    return Catalog(load_config())


def keep_here(catalog, model_id, *quants):
    keep_measured(catalog.config.state_dir, model_id, measured(*quants))


def test_measured_orders_the_ladder_of_a_model(catalog):
    """What was measured goes first, best first; the rest of the ladder keeps its place behind."""
    keep_here(catalog, "qwen3-embedding-4b", quant("Q8_0", 1.0, 8), quant("Q4_K_S", 0.97, 2), quant("Q6_K", 0.99, 6))
    found = catalog.resolve("qwen3-embedding:4b", prefer="measured")
    assert [source.quant for source in found.sources] == ["Q8_0", "Q6_K", "Q4_K_S", "Q4_K_M", "Q3_K_M"]
    assert catalog.resolve("qwen3-embedding-4b").sources[0].quant == "Q4_K_M"


def test_what_was_made_here_counts_while_it_is_here(catalog):
    """A quantization that no source has is in the ladder as long as its file is."""
    keep_here(catalog, "all-minilm-l6-v2", quant("F16", 1.0, 44), quant("Q5_K_M", 0.999, 20), quant("Q4_K_M", 0.9, 19))
    made = made_path(catalog.config.cache_dir, "all-minilm-l6-v2", "Q5_K_M")
    made.parent.mkdir(parents=True)
    made.write_bytes(b"GGUF")
    ladder = [source.quant for source in catalog.resolve("minilm", prefer="measured").sources]
    assert ladder == ["Q5_K_M", "F16", "Q8_0"]
    made.unlink()
    assert [source.quant for source in catalog.resolve("minilm", prefer="measured").sources] == ["F16", "Q8_0"]


def test_a_model_that_was_not_measured_says_what_to_type(catalog):
    """An error, and no other ladder in its place; a quantization that is named needs none."""
    with pytest.raises(ConfigError, match=r"run: gguf-embed eval qwen3-embedding-4b$") as caught:
        catalog.resolve("qwen3-embedding-4b", prefer="measured")
    assert caught.value.key == "prefer"
    assert [one.quant for one in catalog.resolve("qwen3-embedding-4b:Q6_K", prefer="measured").sources] == ["Q6_K"]
    with pytest.raises(UnknownQuantError):
        catalog.resolve("minilm:Q4_K_S", prefer="measured")


def test_the_ladder_of_a_repository_is_ordered_too(monkeypatch):
    """Of what it holds; its name is what it was measured under."""
    with FakeHub() as hub:
        for name in ("Q8_0", "Q4_K_M", "Q3_K_M"):
            hub.add("someone/Model-GGUF", f"Model-{name}.gguf", name.encode())
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        catalog = Catalog(load_config())
        keep_here(catalog, "someone/Model-GGUF", quant("Q8_0", 1.0, 8), quant("Q5_K_M", 0.99, 5), quant("Q3_K_M", 0.9))
        found = catalog.resolve("someone/Model-GGUF", prefer="measured")
        assert [source.quant for source in found.sources] == ["Q8_0", "Q3_K_M", "Q4_K_M"]
