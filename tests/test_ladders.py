"""ladders.py and made.py: what is tried first, and what can be made where it lies."""

from __future__ import annotations

import pytest

from gguf_embed.cli.options import PREFERENCES as OFFERED
from gguf_embed.errors import UnknownQuantError
from gguf_embed.models import ladders
from gguf_embed.models.ladders import LADDER, MAKEABLE_FROM, PREFERENCES, QUALITY_LADDER, ladder_of, quality_rank
from gguf_embed.models.made import made_files, made_path, missing_offers, offer, sizes_by_quant, unknown_quant
from gguf_embed.models.registry import load_registry
from gguf_embed.native.quantize import FTYPES

MODELS = {spec.model_id: spec for spec in load_registry().models}
QWEN = MODELS["qwen3-embedding-4b"]


# Ladders


@pytest.mark.parametrize("model_id", [None, *MODELS])
def test_a_preference_orders_and_never_invents(model_id):
    """Each ladder is of quantizations that the model's own ladders have, none of them twice."""
    spec = MODELS.get(model_id)
    known = {*ladder_of("default", spec), *ladder_of("quality", spec)}
    for prefer in PREFERENCES:
        ladder = ladder_of(prefer, spec)
        assert ladder
        assert len(set(ladder)) == len(ladder)
        assert set(ladder) <= known


@pytest.mark.parametrize("model_id", [None, *MODELS])
def test_small_begins_with_the_least(model_id):
    """It is the default ladder from its other end, so the quantization of the fewest bytes comes first."""
    spec = MODELS.get(model_id)
    small = ladder_of("small", spec)
    assert small == ladder_of("default", spec)[::-1]
    sizes = {file.quant: file.size_bytes for file in spec.files} if spec else {}
    listed = [sizes[quant] for quant in small if sizes.get(quant)]
    assert listed == sorted(listed)


@pytest.mark.parametrize("model_id", [None, *MODELS])
def test_quality_falls_from_best_to_smallest(model_id):
    """Whatever a model comes in, the larger goes first."""
    ranks = [quality_rank(quant) for quant in ladder_of("quality", MODELS.get(model_id))]
    assert ranks == sorted(ranks)


def test_speed_is_as_measured():
    """Fastest first; what was not measured comes after what was, in the order of quality."""
    assert ladder_of("speed", QWEN)[:3] == ("IQ4_XS", "Q5_K_M", "Q6_K")
    assert ladder_of("speed", QWEN)[-2:] == ("Q8_0", "Q5_0")
    unknown = ladder_of("speed", None)
    assert set(unknown) == set(QUALITY_LADDER)
    assert unknown[len(ladders._SPEED_LADDER) :] == tuple(
        quant for quant in QUALITY_LADDER if quant not in ladders._SPEED_LADDER
    )


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_only_what_there_is(prefer):
    """What is not available is left out, and the order of the rest stays."""
    available = {"Q3_K_M", "Q8_0", "Q4_K_M", "F64"}
    ladder = ladder_of(prefer, QWEN, available)
    assert ladder == tuple(quant for quant in ladder_of(prefer, QWEN) if quant in available)
    assert ladder_of(prefer, QWEN, ()) == ()


def test_measured_goes_first():
    """In the order it is given, whether or not the ladder has it; the rest of the default ladder comes behind."""
    assert ladder_of("measured", QWEN, measured=("Q8_0", "Q4_K_S", "IQ4_NL")) == (
        "Q8_0", "Q4_K_S", "IQ4_NL", "Q4_K_M", "Q3_K_M",
    )  # fmt: skip
    assert ladder_of("measured", QWEN, {"Q3_K_M", "Q8_0"}, measured=("Q6_K", "Q3_K_M")) == ("Q3_K_M",)
    assert ladder_of("measured", None, measured=("Q3_K_M",)) == ("Q3_K_M", "Q4_K_M", "Q4_K_S")


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_without_measurements_measured_is_the_default(prefer):
    """And what was measured moves no other ladder."""
    expected = ladder_of("default" if prefer == "measured" else prefer, QWEN)
    assert ladder_of(prefer, QWEN) == expected
    if prefer != "measured":
        assert ladder_of(prefer, QWEN, measured=("Q8_0",)) == expected


def test_the_command_line_offers_each_preference():
    """It keeps a list of its own, so that --help loads nothing."""
    assert OFFERED == PREFERENCES


def test_a_preference_that_is_none():
    """The message lists those that there are."""
    with pytest.raises(ValueError, match="prefer is 'best'; it is one of default, quality, speed, small"):
        ladder_of("best", None)


def test_an_unknown_quantization_ranks_last():
    """What no ladder knows is no better than what is known to be bad."""
    assert quality_rank("F32") == 0
    assert quality_rank("TQ1_0") > max(map(quality_rank, QUALITY_LADDER))


def test_the_ladders_fit_together():
    """What is tried unasked has a rank and a speed, and what files are made from is better than what is made."""
    assert set(LADDER) <= set(QUALITY_LADDER) & set(ladders._SPEED_LADDER)
    assert set(MAKEABLE_FROM) <= set(FTYPES)
    assert max(map(quality_rank, MAKEABLE_FROM)) < min(
        quality_rank(quant) for quant in QUALITY_LADDER if quant not in MAKEABLE_FROM
    )


# What is made here


@pytest.mark.parametrize(
    ("model_id", "expected"),
    [
        ("qwen3-embedding-4b", "quantized/qwen3-embedding-4b/qwen3-embedding-4b-Q4_K_S.gguf"),
        ("nomic-embed-text-v1.5", "quantized/nomic-embed-text-v1.5/nomic-embed-text-v1.5-Q4_K_S.gguf"),
        ("someone/Model-GGUF", "quantized/someone--Model-GGUF/Model-Q4_K_S.gguf"),
    ],
)
def test_what_is_made_lies_by_model_and_is_listed(tmp_path, model_id, expected):
    """A folder for each model; listing tells the model's name again."""
    path = made_path(tmp_path, model_id, "Q4_K_S")
    assert path == tmp_path / expected
    assert made_files(tmp_path) == []
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    assert made_files(tmp_path) == [(model_id, path)]


def test_what_is_not_whole_is_not_listed(tmp_path):
    """Partial files and locks beside the made ones are none."""
    path = made_path(tmp_path, "m", "Q4_K_S")
    path.parent.mkdir(parents=True)
    for name in (f"{path.name}.123.partial", f".{path.name}.lock"):
        path.with_name(name).write_bytes(b"")
    assert made_files(tmp_path) == []


def test_files_are_listed_in_order(tmp_path):
    """By model, then by name."""
    paths = [made_path(tmp_path, *one) for one in (("a", "Q4_K_S"), ("a", "Q5_K_S"), ("b/c", "Q4_K_S"))]
    for path in reversed(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert [path for _, path in made_files(tmp_path)] == paths


# What could be made


def test_a_missing_quantization_is_offered():
    """With the command and what it downloads: of Q8_0 where there is one, which is the smallest that is good enough."""
    words = offer("m", {"F16": 8 << 30, "Q8_0": 4 << 30, "Q4_K_M": 2 << 30}, "Q4_K_S")
    assert words == "'gguf-embed quantize m --to Q4_K_S' makes it from Q8_0, 4.00 GiB to download"
    assert offer("m", {"Q4_K_M": 1, "F16": 8 << 30, "F32": 16 << 30}, "Q4_K_S").endswith(
        "from F16, 8.00 GiB to download"
    )
    assert offer("m", {"F16": None}, "Q4_K_S").endswith("makes it from F16")


@pytest.mark.parametrize("quant", ["IQ1_S", "Q9_X", "Q8_0", "F16", "F32", "Q5_0", ""])
def test_what_cannot_be_made_is_not_offered(quant):
    """What needs an importance matrix, is none at all, is a source itself, or is there already."""
    assert offer("m", {"BF16": 2, "Q5_0": 1}, quant) is None


def test_without_a_source_nothing_is_offered():
    """A small quantization is no source for another."""
    assert offer("m", {"Q4_K_M": 1, "Q6_K": 1}, "Q4_K_S") is None
    assert offer("m", {}, "Q4_K_S") is None


def test_an_unknown_quantization_says_what_there_is_and_what_to_type():
    """The error lists what there is, and the command that makes the missing one."""
    sizes = {"Q8_0": 1 << 30, "Q4_K_M": None}
    error = unknown_quant("m", sizes, "Q4_K_S")
    assert isinstance(error, UnknownQuantError)
    assert (error.model_id, error.quant, error.available) == ("m", "Q4_K_S", ("Q8_0", "Q4_K_M"))
    assert str(error).startswith("m has no quant 'Q4_K_S'; it has Q8_0, Q4_K_M. 'gguf-embed quantize m --to Q4_K_S'")
    assert str(unknown_quant("m", sizes, "IQ1_S")) == "m has no quant 'IQ1_S'; it has Q8_0, Q4_K_M"


@pytest.mark.parametrize("model_id", MODELS)
def test_a_model_s_sizes_are_of_all_its_quantizations(model_id):
    """Every source counts, pinned files, listed repositories and the wheel; a pinned file's size goes first."""
    spec = MODELS[model_id]
    sizes = sizes_by_quant(spec)
    assert set(sizes) == set(spec.quants)
    assert {file.quant: file.size_bytes for file in spec.files}.items() <= sizes.items()


@pytest.mark.parametrize("model_id", MODELS)
def test_offers_of_the_registry_can_be_kept(model_id):
    """What is offered of a model is commonly wanted, not to be had, and made of something better that is."""
    spec = MODELS[model_id]
    for quant, words in missing_offers(spec):
        assert quant in LADDER
        assert quant not in spec.quants
        [source] = [name for name in spec.quants if f" makes it from {name}," in f"{words},"]
        assert source in MAKEABLE_FROM
        assert quality_rank(source) < quality_rank(quant)
        assert f"'gguf-embed quantize {model_id} --to {quant}'" in words


def test_the_registry_has_offers_and_models_without():
    """A model with a Q8_0 alone is offered the smaller ones; one with nothing to start from is offered none."""
    assert [quant for quant, _ in missing_offers(MODELS["embeddinggemma-300m"])] == list(LADDER)
    assert missing_offers(MODELS["jina-embeddings-v4-text-retrieval"]) == ()
