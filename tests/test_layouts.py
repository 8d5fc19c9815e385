"""layouts.py: what is tried in a place, in which order, and how layers are shared out."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_embed.fit.hardware import Accelerator
from gguf_embed.fit.layouts import (
    N_CTX_FLOOR,
    N_CTX_PARTIAL,
    N_CTX_WORKING,
    can_split_texts,
    layouts,
    n_ctx_working,
    whole_blocks,
    whole_layout,
)
from gguf_embed.fit.memory import memory_cost
from gguf_embed.fit.places import Place
from gguf_embed.fit.plan import Limits
from gguf_embed.models.header import facts_of_spec
from gguf_embed.models.registry import load_registry
from gguf_embed.native.layout import Layout

GIB, MIB = 1 << 30, 1 << 20
REGISTRY = load_registry()
QWEN = facts_of_spec(REGISTRY.get("qwen3-embedding-4b"), "Q4_K_M", 2_496_703_776)
BERT = facts_of_spec(REGISTRY.get("bge-m3"), "Q8_0", 600_000_000)
MEAN = dataclasses.replace(QWEN, pooling_type="mean")
FACTS = {"last token": QWEN, "mean of a decoder": MEAN, "encoder": BERT}


def place(placement, *budgets, kind="discrete"):
    """Somewhere with so much room on each of its devices."""
    devices = tuple(
        Accelerator(name=f"CUDA{index}", description="a card", total_bytes=size + 1, free_bytes=size, kind=kind)
        for index, size in enumerate(() if placement == "cpu" else budgets)
    )
    return Place(
        placement=placement, accelerators=devices, budgets=budgets, free_bytes=sum(budgets), host_budget_bytes=8 * GIB
    )


GPU, PART, CPU = place("gpu", 4 * GIB), place("partial", 2 * GIB), place("cpu", 8 * GIB)
MAC, SPLIT = place("gpu", 8 * GIB, kind="unified"), place("split", 2 * GIB, 3 * GIB)
PLACES = {"card": GPU, "part of a card": PART, "processor": CPU, "Mac": MAC, "two cards": SPLIT}


def each(layouts, *names):
    """Some of each layout's values."""
    return [tuple(getattr(layout, name) for name in names) for layout in layouts]


def test_only_a_causal_model_of_the_last_token_may_split_a_text():
    """Any other needs the whole text in one decode."""
    assert can_split_texts(QWEN)
    assert not can_split_texts(MEAN)
    assert not can_split_texts(BERT)
    assert not can_split_texts(dataclasses.replace(QWEN, is_causal=False))


@pytest.mark.parametrize(
    ("facts", "limits", "n_ctx"),
    [
        (QWEN, Limits(), N_CTX_WORKING),
        (QWEN, Limits(n_ctx=832), 832),
        (dataclasses.replace(QWEN, n_ctx_train=1024), Limits(), 1024),
        (BERT, Limits(), 512),
        (dataclasses.replace(BERT, n_ctx_train=256), Limits(), 256),
        (BERT, Limits(n_ctx=8192), 8192),
    ],
)
def test_tokens_in_flight(facts, limits, n_ctx):
    """2,048 for a model that may split texts, 512 for another, never more than it was trained for, or what is asked."""
    assert n_ctx_working(facts, limits) == n_ctx
    assert {layout.n_ctx for layout in layouts(facts, GPU, limits)} == {n_ctx}


def test_contexts_are_of_whole_blocks():
    """Beyond 64 tokens they are rounded up to multiples of 64, so that a decode can hold as many texts."""
    assert [whole_blocks(n_ctx) for n_ctx in (1, 63, 64, 65, 128, 777)] == [1, 63, 64, 128, 128, 832]
    for n_ctx, shape in ((777, (832, 512, 64)), (100, (128, 128, 64)), (61, (61, 61, 61))):
        assert each(layouts(QWEN, CPU, Limits(n_ctx=n_ctx)), "n_ctx", "n_ubatch", "n_seq_max")[0] == shape


def test_texts_of_a_decode_divide_its_tokens():
    """61 tokens, a prime, are one text beside a projection on the host, which takes at most 16."""
    (whole, without) = layouts(QWEN, GPU, Limits(n_ctx=61, kv_type="f16"))
    assert (whole.n_seq_max, without.n_seq_max) == (61, 1)


def test_a_card_is_tried_with_smaller_decodes_and_then_without_the_projection():
    """512, 256, 128 tokens with all of it on the card; the same with the projection on the host and fewer texts."""
    assert each(layouts(QWEN, GPU, Limits()), "n_ubatch", "n_seq_max", "is_output_on_host") == [
        (512, 64, False), (256, 64, False), (128, 64, False), (512, 16, True), (256, 16, True), (128, 16, True),
    ]  # fmt: skip


def test_a_shared_memory_and_the_processor_keep_the_projection_where_it_is():
    """There is no other side for it to be on."""
    for where in (MAC, CPU):
        assert each(layouts(QWEN, where, Limits()), "n_ubatch", "is_output_on_host") == [
            (512, False), (256, False), (128, False),
        ]  # fmt: skip


def test_a_text_that_must_be_whole_has_one_size_of_decode():
    """An encoder and a mean take their context in one decode, and their projection, if any, has a row a token."""
    for facts, on_host in ((BERT, [False]), (MEAN, [False])):
        found = layouts(facts, GPU, Limits(n_ctx=1024, kv_type="f16"))
        assert each(found, "n_ubatch", "is_output_on_host") == [(1024, one) for one in on_host]


def test_keys_and_values_shrink_where_a_context_is_asked_for():
    """q8_0 comes after every way with f16, never unasked, and never where blocks of 32 do not divide a head."""
    assert {layout.kv_type for layout in layouts(QWEN, GPU, Limits())} == {"f16"}
    found = layouts(QWEN, GPU, Limits(n_ctx=8192))
    assert [layout.kv_type for layout in found] == ["f16"] * 6 + ["q8_0"] * 6
    assert [dataclasses.replace(layout, kv_type="f16") for layout in found[6:]] == found[:6]
    for kv_type in ("f16", "q8_0"):
        assert {layout.kv_type for layout in layouts(QWEN, GPU, Limits(kv_type=kv_type))} == {kv_type}
    for facts in (BERT, dataclasses.replace(QWEN, head_dim=80)):
        assert {layout.kv_type for layout in layouts(facts, GPU, Limits(n_ctx=512, kv_type="q8_0"))} == {"f16"}
        assert {layout.kv_type for layout in layouts(facts, GPU, Limits(n_ctx=512))} == {"f16"}


def test_part_of_a_model_is_tried_with_fewer_and_fewer_layers():
    """All 36 down to one, the projection on the host, and 4,096 tokens for a text that turns out longer."""
    found = layouts(QWEN, PART, Limits())
    assert [layout.n_gpu_layers for layout in found] == list(range(37, 1, -1))
    assert set(each(found, "n_ctx", "n_ubatch", "n_seq_max", "is_output_on_host")) == {(N_CTX_PARTIAL, 512, 16, True)}
    assert {layout.n_ctx for layout in layouts(QWEN, PART, Limits(n_ctx=640))} == {640}
    short = dataclasses.replace(QWEN, n_ctx_train=3000)
    assert {layout.n_ctx for layout in layouts(short, PART, Limits())} == {3000}
    assert set(each(layouts(BERT, PART, Limits()), "n_ctx", "is_output_on_host")) == {(512, False)}


def test_the_floor_is_512_tokens():
    """Nothing goes below the context that was asked for, an encoder's, or the floor."""
    for where in (GPU, CPU, MAC, SPLIT):
        assert {layout.n_ctx for layout in layouts(QWEN, where, Limits(), at_floor=True)} == {N_CTX_FLOOR}
    assert layouts(QWEN, GPU, Limits(n_ctx=4096), at_floor=True) == []
    assert layouts(BERT, GPU, Limits(), at_floor=True) == []
    assert layouts(MEAN, GPU, Limits(), at_floor=True) == []
    assert layouts(dataclasses.replace(QWEN, n_ctx_train=512), GPU, Limits(), at_floor=True) == []


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
@pytest.mark.parametrize("where", PLACES.values(), ids=PLACES)
def test_the_head_is_skipped_and_the_file_mapped_where_that_is_right(facts, where):
    """Only a last-token model skips its head; only a model whole on devices is mapped, for the CPU repacks."""
    load_mode = "mmap" if where.placement in ("gpu", "split") else "none"
    found = layouts(facts, where, Limits())
    assert set(each(found, "skips_head", "load_mode")) == {(can_split_texts(facts), load_mode)}


@pytest.mark.parametrize(
    ("quant", "is_tiled"),
    [("Q4_K_M", True), ("Q6_K", True), ("IQ4_XS", True), ("Q8_0", False), ("Q4_0", False), ("IQ4_NL", False),
     ("F16", False), (None, False)],
)  # fmt: skip
def test_what_a_cpu_multiplies_in_tiles_stays_as_it_lies(quant, is_tiled):
    """K-quants on such a CPU are mapped and not reordered; other types, other CPUs and devices go on as before."""
    facts = dataclasses.replace(QWEN, quant=quant)
    tiled_cpu = dataclasses.replace(CPU, has_tiled_matmul=True)
    found = whole_layout(facts, tiled_cpu)
    assert (found.use_extra_bufts, found.load_mode) == ((False, "mmap") if is_tiled else (True, "none"))
    assert whole_layout(facts, CPU).use_extra_bufts
    assert whole_layout(facts, dataclasses.replace(GPU, has_tiled_matmul=True)) == whole_layout(facts, GPU)


def test_an_encoder_on_a_cpu_has_contexts_side_by_side():
    """One for each thread up to eight, beside the first, and none where there is one thread, a device or a decoder."""
    cpu = dataclasses.replace(CPU, n_cores=4)
    assert each(layouts(BERT, cpu, Limits()), "n_contexts") == [(5,), (1,)]
    assert each(layouts(BERT, dataclasses.replace(CPU, n_cores=64), Limits()), "n_contexts") == [(9,), (1,)]
    assert each(layouts(BERT, cpu, Limits(n_threads=2)), "n_contexts") == [(3,), (1,)]
    assert set(each(layouts(BERT, cpu, Limits(n_threads=1)), "n_contexts")) == {(1,)}
    for facts, place in ((QWEN, cpu), (BERT, dataclasses.replace(GPU, n_cores=4))):
        assert set(each(layouts(facts, place, Limits()), "n_contexts")) == {(1,)}


def test_whole_is_every_layer_and_the_output():
    """n_layer + 1 on a device, none on the CPU, and no more tokens or texts than the context holds."""
    assert whole_layout(QWEN, GPU) == Layout(n_gpu_layers=37, devices=("CUDA0",), skips_head=True, load_mode="mmap")
    assert whole_layout(QWEN, CPU) == Layout(skips_head=True)
    small = whole_layout(QWEN, CPU, n_ctx=40)
    assert (small.n_ctx, small.n_ubatch, small.n_seq_max) == (40, 40, 40)


@pytest.mark.parametrize(
    "change",
    [
        {"n_seq_max": 0},
        {"n_seq_max": 513},
        {"n_ubatch": 2049},
        {"kv_type": "q4_0"},
        {"load_mode": "direct"},
        {"n_gpu_layers": 5},
        {"devices": ("CUDA0",)},
        {"n_gpu_layers": -1, "devices": ("CUDA0",)},
        {"n_gpu_layers": 5, "devices": ("CUDA0", "CUDA1"), "tensor_split": (5,)},
        {"n_gpu_layers": 5, "devices": ("CUDA0", "CUDA1"), "tensor_split": (3, 3)},
    ],
    ids=str,
)
def test_a_layout_checks_itself(change):
    """What llama.cpp would abort on, or take for something else, is refused."""
    with pytest.raises(ValueError):
        Layout(**change)


law = settings(deadline=None, max_examples=60)
LIMITS = st.builds(Limits, n_ctx=st.none() | st.integers(1, 8192), kv_type=st.sampled_from([None, "f16", "q8_0"]))


@law
@given(st.sampled_from(list(FACTS.values())), st.sampled_from(list(PLACES.values())), LIMITS, st.booleans())
def test_every_layout_is_one_of_its_place(facts, where, limits, at_floor):
    """The place's devices, a context that the model takes, and no layout twice."""
    found = layouts(facts, where, limits, at_floor=at_floor)
    assert at_floor or found
    assert len(set(found)) == len(found)
    for layout in found:
        assert layout.devices == tuple(one.name for one in where.accelerators)
        assert layout.n_ctx <= facts.n_ctx_train
        assert limits.n_ctx is None or limits.n_ctx <= layout.n_ctx < limits.n_ctx + 64
        assert layout.n_ubatch % layout.n_seq_max == 0
        assert can_split_texts(facts) or layout.n_ubatch == layout.n_ctx
        assert bool(layout.tensor_split) == (where.placement == "split")


@law
@given(st.sampled_from(list(FACTS.values())), st.sampled_from([GPU, PART, MAC]), LIMITS)
def test_later_layouts_need_less_of_the_device(facts, where, limits):
    """Best first: with one type of cache and the projection on one side, each next one takes fewer bytes there."""
    found = layouts(facts, where, limits)
    for before, after in itertools.pairwise(found):
        if (before.kv_type, before.is_output_on_host) == (after.kv_type, after.is_output_on_host):
            assert memory_cost(facts, after).device_bytes <= memory_cost(facts, before).device_bytes


SIZES = st.integers(0, 4096).map(lambda n_mib: n_mib * MIB)
BUDGETS = st.lists(SIZES, min_size=2, max_size=8)
FEW_LAYERS = dataclasses.replace(BERT, n_layer=3, layer_sizes=BERT.layer_sizes[:3])


@law
@given(st.sampled_from([*FACTS.values(), FEW_LAYERS]), BUDGETS)
def test_every_layer_is_shared_out(facts, budgets):
    """A split gives all of n_layer + 1, nobody less than none, and something to the last, which has the output."""
    for layout in layouts(facts, place("split", *budgets), Limits()):
        assert sum(layout.tensor_split) == layout.n_gpu_layers == facts.n_layer + 1
        assert len(layout.tensor_split) == len(budgets)
        assert layout.tensor_split[-1] >= 1
        assert min(layout.tensor_split) >= 0


@law
@given(st.integers(2, 4), SIZES)
def test_equal_cards_get_nearly_equal_shares(n_devices, more):
    """The best way of several equal cards that hold the model gives each as many layers, give or take two."""
    first = layouts(QWEN, place("split", *[2 * GIB + more] * n_devices), Limits(n_ctx=512))[0]
    assert max(first.tensor_split) - min(first.tensor_split) <= 2


@law
@given(SIZES, SIZES, SIZES)
def test_a_roomier_card_gets_no_fewer_layers(first, second, more):
    """The share of a card in the best way grows with its room, where there is room for all of the model."""
    first, second = first + 2 * GIB, second + 2 * GIB
    before = layouts(QWEN, place("split", first, second), Limits())[0].tensor_split
    after = layouts(QWEN, place("split", first + more, second), Limits())[0].tensor_split
    assert after[0] >= before[0]


@law
@given(st.lists(st.integers(1, 10), min_size=2, max_size=4))
def test_cards_with_a_little_room_to_spare_are_enough(sizes):
    """Cards of any proportions that together have room, and each for three layers more, hold it in the best way."""
    names = tuple(f"CUDA{index}" for index in range(len(sizes)))
    one = memory_cost(QWEN, whole_layout(QWEN, GPU)).devices[0]
    layers = QWEN.layer_bytes + one.kv_bytes
    budgets = [one.compute_bytes + layers * size // sum(sizes) + 3 * layers // QWEN.n_layer for size in sizes]
    budgets[-1] += QWEN.output_bytes
    first = layouts(QWEN, place("split", *budgets), Limits())[0]
    assert (first.devices, first.n_ubatch, first.is_output_on_host) == (names, 512, False)
    usages = memory_cost(QWEN, first).devices
    assert all(usage.total_bytes <= budget for usage, budget in zip(usages, budgets, strict=True))
