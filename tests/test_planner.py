"""planner.py: laws over machines and limits, and the choices that the README promises."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gguf_embed.engine.settings import SessionSettings
from gguf_embed.errors import DoesNotFitError
from gguf_embed.fit.hardware import Accelerator, Hardware
from gguf_embed.fit.layouts import N_CTX_FLOOR, N_CTX_WORKING, can_quantize_kv
from gguf_embed.fit.memory import BufferSizes, Measurements, memory_cost
from gguf_embed.fit.places import MARGIN_DEVICE, MARGIN_HOST, MARGIN_UNIFIED
from gguf_embed.fit.planner import Candidate, Limits, grown, plan
from gguf_embed.fit.profiles import load_profiles
from gguf_embed.models.header import facts_of_spec
from gguf_embed.models.registry import load_registry
from gguf_embed.native.layout import Layout
from gguf_embed.sizes import format_size

GIB, MIB = 1 << 30, 1 << 20
PROFILES = load_profiles()


def candidates_of(model_id, *, quality=False):
    """A model's ladder with the sizes that the registry knows."""
    spec = load_registry().get(model_id)
    sizes = {quant: size for source in spec.discoverable for quant, size in source.quants}
    sizes |= {file.quant: file.size_bytes for file in spec.files}
    ladder = spec.quality_ladder if quality else spec.ladder
    known = [(quant, facts_of_spec(spec, quant, sizes[quant])) for quant in ladder if sizes.get(quant)]
    return tuple(Candidate(quant=quant, facts=facts) for quant, facts in known if facts is not None)


def changed(candidates, **change):
    """The same ladder with other facts."""
    return tuple(dataclasses.replace(one, facts=dataclasses.replace(one.facts, **change)) for one in candidates)


LADDERS = {
    name: found
    for model_id in (spec.model_id for spec in load_registry().models)
    for name, quality in ((model_id, False), (f"{model_id}, quality", True))
    if (found := candidates_of(model_id, quality=quality))
}
QWEN = LADDERS["qwen3-embedding-4b"]
ENCODER = LADDERS["bge-m3"]
LADDERS |= {
    "a projection of its own": changed(QWEN, is_tied=False),
    "a decoder that pools the mean": changed(QWEN, pooling_type="mean"),
    "keys that q8_0 cannot take": changed(QWEN, head_dim=80),
    "an encoder of short texts": changed(ENCODER, n_ctx_train=100),
}


def card(free_bytes, *, name="CUDA0", kind="discrete"):
    """A device with so much free."""
    return Accelerator(name=name, description=name, total_bytes=max(free_bytes, 1), free_bytes=free_bytes, kind=kind)


def machine(*accelerators, ram_bytes=16 * GIB):
    """A computer with these devices and so much free beside them."""
    return Hardware(
        accelerators=accelerators, ram_total_bytes=ram_bytes + GIB, ram_available_bytes=ram_bytes, n_cores=4
    )


def attempt(candidates, hardware, limits=None, **known):
    """The plan, or None where nothing fits."""
    try:
        return plan("m", candidates, hardware, limits, **known)
    except DoesNotFitError:
        return None


KINDS = {"discrete": "CUDA", "unified": "MTL", "integrated": "Vulkan"}


@st.composite
def cases(draw, *, is_limited=False, parts=1):
    """A ladder, a machine that holds it or only one of so many parts, and limits whose n_ctx the model takes."""
    candidates = draw(st.sampled_from(list(LADDERS.values())))
    n_mib = (draw(st.sampled_from(candidates)).facts.weights_bytes // MIB + 1024) // parts
    about = st.integers(0, n_mib).map(lambda missing: (n_mib - missing) * MIB)
    kinds = draw(st.lists(st.sampled_from(["discrete", "discrete", "discrete", "unified", "integrated"]), max_size=3))
    devices = [
        card(draw(about) // draw(st.integers(1, 3)), name=f"{KINDS[kind]}{index}", kind=kind)
        for index, kind in enumerate(kinds)
    ]
    n_ctx_train = min(candidate.facts.n_ctx_train for candidate in candidates)
    kv_types = ["q8_0"] if all(can_quantize_kv(candidate.facts) for candidate in candidates) else []
    limits = Limits(
        memory_bytes=draw(about.filter(bool)) if is_limited else None,
        device=draw(st.sampled_from([None, "auto", "gpu", *(device.name for device in devices), "cpu"])),
        n_ctx=draw(st.none() | st.integers(1, n_ctx_train)),
        n_threads=draw(st.none() | st.integers(1, 8)),
        kv_type=draw(st.sampled_from([None, "f16", *kv_types])),
    )
    return candidates, machine(*devices, ram_bytes=(n_mib * MIB if parts == 1 else 0) + draw(about)), limits


law = settings(deadline=None, max_examples=80)


def outcome(case, **known):
    """The plan, or all that its error says."""
    candidates, hardware, limits = case
    try:
        return plan("m", candidates, hardware, limits, **known)
    except DoesNotFitError as error:
        return (str(error), error.required_bytes, error.available_bytes, error.rejected)


@law
@given(cases())
def test_the_same_inputs_give_the_same_plan(case):
    """Nothing but the arguments decides, and a plan or its error crosses processes."""
    assert outcome(case) == outcome(case) == pickle.loads(pickle.dumps(outcome(case)))  # noqa: S301 - our own bytes


def budget_bytes(device, hardware, limits):
    """What one device may be filled with."""
    free = device.free_bytes - MARGIN_DEVICE
    if device.kind != "discrete":
        free = min(free, hardware.ram_total_bytes - MARGIN_UNIFIED)
    return min(free, limits.memory_bytes or free)


def fits(found, hardware, limits, layout):
    """Whether each memory of a plan holds a layout of its file, its margin left alone."""
    cost = memory_cost(found.facts, layout)
    budgets = {device.name: budget_bytes(device, hardware, limits) for device in hardware.accelerators}
    room = hardware.ram_available_bytes - MARGIN_HOST
    if not layout.devices:
        return cost.host_bytes <= min(room, limits.memory_bytes or room)
    if found.is_unified:  # the file is mapped once for both sides
        weights = cost.host.weights_bytes + sum(usage.weights_bytes for usage in cost.devices)
        return cost.total_bytes - weights + found.facts.weights_bytes <= budgets[layout.devices[0]]
    if cost.device_bytes > (limits.memory_bytes or cost.device_bytes):
        return False
    pairs = zip(layout.devices, cost.devices, strict=True)
    return cost.host_bytes <= room and all(usage.total_bytes <= budgets[name] for name, usage in pairs)


@law
@given(cases() | cases(is_limited=True))
def test_a_plan_never_needs_more_than_there_is(case):
    """Every device and the host hold what is planned for them, and the sum is what the plan says."""
    candidates, hardware, limits = case
    assume(found := attempt(candidates, hardware, limits))
    assert fits(found, hardware, limits, found.layout)
    assert found.cost == memory_cost(found.facts, found.layout)
    assert found.required_bytes <= found.available_bytes == found.free_bytes - found.margin_bytes
    free = {device.name: device.free_bytes for device in hardware.accelerators}
    assert found.free_bytes == (sum(free[name] for name in found.layout.devices) or hardware.ram_available_bytes)
    if not found.is_unified:
        assert found.required_bytes == (found.cost.device_bytes or found.cost.host_bytes)


@law
@given(cases() | cases(is_limited=True))
def test_the_longest_text_fits_and_a_longer_one_does_not(case):
    """Memory for n_ctx_max was free when the plan was made, and for the next 256 tokens it was not."""
    candidates, hardware, limits = case
    assume(found := attempt(candidates, hardware, limits))
    n_ctx_train = found.facts.n_ctx_train
    assert found.layout.n_ctx - 64 < found.n_ctx_max <= n_ctx_train  # rounded up to whole decodes of 64 texts
    assert fits(found, hardware, limits, grown(found.layout, found.facts, found.n_ctx_max))
    if limits.n_ctx is None and found.n_ctx_max < n_ctx_train:
        longer = min(n_ctx_train, (found.n_ctx_max // 256 + 1) * 256)
        assert not fits(found, hardware, limits, grown(found.layout, found.facts, longer))


@law
@given(cases())
def test_a_plan_is_one_that_the_engine_can_run(case):
    """Tokens, texts and contexts stand in the order that llama.cpp asserts, layers where the placement says."""
    candidates, hardware, limits = case
    assume(found := attempt(candidates, hardware, limits))
    layout, facts = found.layout, found.facts
    SessionSettings(
        path=Path("m.gguf"), pooling_type=facts.pooling_type, layout=layout, n_ctx_max=found.n_ctx_max,
        n_batch=found.n_batch, n_threads=found.n_threads,
    )  # fmt: skip
    assert 1 <= layout.n_seq_max <= found.n_batch <= layout.n_ubatch <= layout.n_ctx
    assert layout.n_ubatch % layout.n_seq_max == 0
    assert found.n_threads == (limits.n_threads or hardware.n_cores)
    assert limits.n_ctx is None or found.n_ctx_max == limits.n_ctx <= layout.n_ctx < limits.n_ctx + 64
    n_whole = facts.n_layer + 1
    n_layers = {"gpu": [n_whole], "split": [n_whole], "partial": range(2, n_whole + 1), "cpu": [0]}
    assert layout.n_gpu_layers in n_layers[found.placement]
    assert len(layout.devices) == {"cpu": 0, "split": len(layout.tensor_split)}.get(found.placement, 1)
    assert not (found.is_unified and found.placement != "gpu")


@law
@given(cases())
def test_every_candidate_is_chosen_or_rejected_with_a_reason(case):
    """A plan accounts for all quantizations in the ladder's order; a better one is always short of memory."""
    candidates, hardware, limits = case
    assume(found := attempt(candidates, hardware, limits))
    names = [candidate.quant for candidate in candidates]
    assert [lost.quant for lost in found.rejected] == [name for name in names if name != found.quant]
    for lost in found.rejected:
        assert lost.is_better == (names.index(lost.quant) < names.index(found.quant))
        assert lost.required_bytes > 0
        if lost.is_better or lost.shortfall_bytes:
            assert lost.shortfall_bytes > 0
            assert lost.reason.startswith(f"{format_size(lost.shortfall_bytes)} too much for ")
        else:
            assert lost.reason == f"fits, but {found.quant} comes first"


@law
@given(cases(parts=4))
def test_what_does_not_fit_tells_every_shortfall(case):
    """The error lists each candidate with what it needs and how much is missing."""
    candidates, hardware, limits = case
    assume(limits.device != "gpu" or hardware.accelerators)
    assume(attempt(candidates, hardware, limits) is None)
    with pytest.raises(DoesNotFitError, match="does not fit") as caught:
        plan("m", candidates, hardware, limits)
    error = caught.value
    assert [lost.quant for lost in error.rejected] == [candidate.quant for candidate in candidates]
    assert all(lost.shortfall_bytes > 0 and lost.required_bytes > 0 for lost in error.rejected)
    assert all(f"{format_size(lost.shortfall_bytes)} too much for " in lost.reason for lost in error.rejected)
    assert error.required_bytes in {lost.required_bytes for lost in error.rejected}
    assert 0 <= error.available_bytes < error.required_bytes


def never_smaller(before, after, candidates):
    """Hold a plan against the one for less memory: no later stage, and no later step of the ladder in the same one."""
    assert after is not None
    stages = {"gpu": 0, "split": 0, "partial": 1, "cpu": 2}
    assert stages[after.placement] <= stages[before.placement]
    if stages[after.placement] == stages[before.placement]:
        names = [candidate.quant for candidate in candidates]
        assert names.index(after.quant) <= names.index(before.quant)
        if (after.quant, after.layout) == (before.quant, before.layout):
            assert after.n_ctx_max >= before.n_ctx_max


MORE = st.integers(0, 512).map(lambda n_mib: n_mib * MIB + 1) | st.integers(0, 26).map(lambda n_gib: n_gib * GIB)


@law
@given(cases(), MORE)
def test_more_host_memory_never_picks_a_smaller_quantization(case, more):
    """A machine with more RAM gets the same step of the ladder or a better one."""
    candidates, hardware, limits = case
    assume(before := attempt(candidates, hardware, limits))
    larger = dataclasses.replace(
        hardware,
        ram_total_bytes=hardware.ram_total_bytes + more,
        ram_available_bytes=hardware.ram_available_bytes + more,
    )
    never_smaller(before, attempt(candidates, larger, limits), candidates)


@law
@given(cases(), MORE, st.data())
def test_more_device_memory_never_picks_a_smaller_quantization(case, more, data):
    """The same machine with more free on one of its devices gets the same step of the ladder or a better one."""
    candidates, hardware, limits = case
    assume(hardware.accelerators)
    assume(before := attempt(candidates, hardware, limits))
    index = data.draw(st.integers(0, len(hardware.accelerators) - 1))
    devices = list(hardware.accelerators)
    devices[index] = card(devices[index].free_bytes + more, name=devices[index].name, kind=devices[index].kind)
    larger = dataclasses.replace(hardware, accelerators=tuple(devices))
    never_smaller(before, attempt(candidates, larger, limits), candidates)


@law
@given(cases(is_limited=True), st.none() | MORE)
def test_a_wider_limit_never_picks_a_smaller_quantization(case, more):
    """Who allows more memory, or all of it, gets the same step of the ladder or a better one."""
    candidates, hardware, limits = case
    assume(before := attempt(candidates, hardware, limits))
    wider = dataclasses.replace(limits, memory_bytes=None if more is None else limits.memory_bytes + more)
    never_smaller(before, attempt(candidates, hardware, wider), candidates)


@law
@given(cases(is_limited=True))
def test_what_the_user_allows_is_kept(case):
    """limits.memory_bytes caps what a plan needs where it runs, whatever is free."""
    candidates, hardware, limits = case
    assume(found := attempt(candidates, hardware, limits))
    assert found.required_bytes <= limits.memory_bytes


@law
@given(cases(), st.integers(0, 4096), st.data())
def test_a_margin_leaves_so_much_more_alone(case, margin_mib, data):
    """Planning with a margin is planning for a machine where what goes beyond the usual one is not free."""
    candidates, hardware, limits = case
    margin_bytes = margin_mib * MIB
    name = data.draw(st.sampled_from(["host", *(device.name for device in hardware.accelerators)]))
    over = max(0, margin_bytes - (MARGIN_HOST if name == "host" else MARGIN_DEVICE))
    smaller = dataclasses.replace(
        hardware,
        ram_available_bytes=hardware.ram_available_bytes - (over if name == "host" else 0),
        accelerators=tuple(
            dataclasses.replace(device, free_bytes=device.free_bytes - (over if name == device.name else 0))
            for device in hardware.accelerators
        ),
    )
    with_margin = outcome(case, margins={name: margin_bytes, "another": 8 * GIB})
    with_less = outcome((candidates, smaller, limits))
    if isinstance(with_margin, tuple):
        assert with_margin == with_less
    else:
        took = with_margin.free_bytes - with_less.free_bytes
        assert took in (0, over)
        same = {"free_bytes": with_margin.free_bytes, "margin_bytes": with_margin.margin_bytes}
        assert dataclasses.replace(with_less, **same) == with_margin
        assert with_margin.margin_bytes - with_less.margin_bytes in (0, took)


def measured_as_planned(found, measurements):
    """Measurements of a plan's first and longest context that say what the closed form says."""
    for layout in (found.layout, grown(found.layout, found.facts, found.n_ctx_max)):
        cost = memory_cost(found.facts, dataclasses.replace(layout, n_contexts=1))  # llama.cpp is asked of one
        sizes = BufferSizes(
            compute_bytes=tuple(usage.compute_bytes for usage in cost.devices),
            host_compute_bytes=cost.host.compute_bytes,
            host_output_bytes=cost.host.output_bytes,
        )
        measurements = measurements.with_point(found.quant, layout, sizes)
    return measurements


@law
@given(cases())
def test_a_measurement_that_agrees_changes_nothing(case):
    """Where llama.cpp says what the closed form says, the plan is the same, and its cost is measured."""
    candidates, hardware, limits = case
    assume(found := attempt(candidates, hardware, limits))
    again = attempt(candidates, hardware, limits, measurements=measured_as_planned(found, Measurements()))
    assert again == dataclasses.replace(found, cost=dataclasses.replace(found.cost, is_measured=True))


def test_an_encoder_s_longest_text_can_be_measured():
    """Its context grows with its decode; having measured the largest is no obstacle to weighing the smaller ones."""
    found = plan("m", ENCODER, PROFILES["cpu-16gb"])
    assert found.n_ctx_max == 8192
    measurements = measured_as_planned(found, Measurements())
    assert plan("m", ENCODER, PROFILES["cpu-16gb"], measurements=measurements).n_ctx_max == 8192


def test_a_buffer_larger_than_reckoned_costs_context_or_quantization():
    """What llama.cpp says of a layout counts, not the closed form."""
    card_of_4_gib = PROFILES["rtx-3050-4gb"]
    found = plan("m", QWEN, card_of_4_gib)
    huge = BufferSizes(compute_bytes=(3 * GIB,), host_compute_bytes=MIB, host_output_bytes=MIB)
    known = Measurements().with_point(found.quant, found.layout, huge)
    again = plan("m", QWEN, card_of_4_gib, measurements=known)
    assert (again.quant, again.layout) == ("Q4_K_M", dataclasses.replace(found.layout, n_ubatch=256))


def test_a_4_gib_card_takes_the_best_of_three():
    """The RTX 3050 of the README runs Q4_K_M whole, in at most 3 GiB with 2,048 tokens in flight."""
    found = plan("qwen3-embedding-4b", QWEN, PROFILES["rtx-3050-4gb"])
    assert (found.quant, found.placement, found.device) == ("Q4_K_M", "gpu", "CUDA0")
    assert (found.layout.n_gpu_layers, found.n_layers_on_device) == (37, 36)
    assert found.layout.n_ctx == N_CTX_WORKING == 2048
    assert found.required_bytes == found.cost.device_bytes <= 3 * GIB
    assert not found.layout.is_output_on_host
    assert found.layout.skips_head
    assert [lost.reason for lost in found.rejected] == ["fits, but Q4_K_M comes first"] * 2
    assert found.reason.startswith("the best that fits whole on CUDA0: ")


@pytest.mark.parametrize(
    ("profile", "placement"), [("rtx-3050-4gb", "gpu"), ("m1-8gb", "gpu"), ("cpu-8gb", "cpu")], ids=str
)
def test_the_machines_of_the_readme_take_q4_k_m(profile, placement):
    """The table of the README: a small card, a small Mac and a small computer without either."""
    found = plan("m", QWEN, PROFILES[profile])
    assert (found.quant, found.placement, found.layout.n_ctx) == ("Q4_K_M", placement, 2048)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_a_plan_for_the_default_model(profile):
    """The 4B runs on each known machine, in one of the three quantizations."""
    assert plan("m", QWEN, PROFILES[profile]).quant in ("Q4_K_M", "Q4_K_S", "Q3_K_M")


def on_card(facts, **change):
    """All of a last-token model on one card."""
    whole = {"n_gpu_layers": facts.n_layer + 1, "devices": ("CUDA0",), "skips_head": True, "load_mode": "mmap"}
    return Layout(**whole | change)


LAST_RESORT = {"n_ubatch": 128, "n_seq_max": 16, "is_output_on_host": True}


def on_card_bytes(candidate, **change):
    """Free bytes that a card must have to hold a candidate whole."""
    return memory_cost(candidate.facts, on_card(candidate.facts, **change)).device_bytes + MARGIN_DEVICE


def test_with_less_memory_the_ladder_is_climbed_down():
    """Q4_K_M, Q4_K_S, Q3_K_M, each from the byte at which the one above no longer fits in any way."""
    q4_k_m, q4_k_s, q3_k_m = (on_card_bytes(candidate, **LAST_RESORT) for candidate in QWEN)
    picks = []
    for free_bytes in (q4_k_m, q4_k_m - 1, q4_k_s, q4_k_s - 1, q3_k_m):
        found = plan("m", QWEN, machine(card(free_bytes)))
        picks.append((found.quant, found.placement, found.layout.n_ctx))
    assert picks == [
        ("Q4_K_M", "gpu", N_CTX_WORKING),
        ("Q4_K_S", "gpu", N_CTX_WORKING),
        ("Q4_K_S", "gpu", N_CTX_WORKING),
        ("Q3_K_M", "gpu", N_CTX_WORKING),
        ("Q3_K_M", "gpu", N_CTX_WORKING),
    ]


def test_with_less_memory_decodes_shrink_before_the_projection_moves():
    """One quantization is tried with 512, 256 and 128 tokens a decode, then without its projection on the card."""
    ways = [{"n_ubatch": n_ubatch} for n_ubatch in (512, 256, 128)]
    ways += [way | {"n_seq_max": 16, "is_output_on_host": True} for way in ways]
    layouts = [on_card(QWEN[0].facts, **way) for way in ways]
    sizes = [memory_cost(QWEN[0].facts, layout).device_bytes + MARGIN_DEVICE for layout in layouts]
    assert sizes == sorted(sizes, reverse=True)
    assert [plan("m", QWEN, machine(card(size))).layout for size in sizes] == layouts


def test_the_projection_stays_on_the_host_where_only_that_fits():
    """Going up in memory there are cards that hold a quantization whole but for its projection, before all of it."""
    plans = [plan("m", QWEN, machine(card(size))) for size in range(2 * GIB, 4 * GIB, 16 * MIB)]
    for candidate in QWEN:
        chosen = [one for one in plans if (one.quant, one.placement) == (candidate.quant, "gpu")]
        without = [one for one in chosen if one.layout.is_output_on_host]
        assert without
        smallest = memory_cost(candidate.facts, on_card(candidate.facts, n_ubatch=128)).device_bytes
        assert all(one.available_bytes < smallest for one in without if one.layout.n_ctx == N_CTX_WORKING)
        assert all("the vocabulary projection kept in host memory" in one.reason for one in without)
    assert not plans[-1].layout.is_output_on_host


def test_the_smallest_goes_down_to_the_floor_before_it_is_split():
    """Below the working context the last of the ladder keeps 512 tokens in flight; below that a part goes over."""
    working = on_card_bytes(QWEN[-1], **LAST_RESORT)
    floor = on_card_bytes(QWEN[-1], **LAST_RESORT, n_ctx=N_CTX_FLOOR)
    small = plan("m", QWEN, machine(card(working - 1)))
    assert (small.quant, small.placement, small.layout.n_ctx) == ("Q3_K_M", "gpu", N_CTX_FLOOR)
    assert plan("m", QWEN, machine(card(floor))).placement == "gpu"
    assert plan("m", QWEN, machine(card(floor - 1))).placement == "partial"


def test_part_of_a_model_goes_to_a_card_that_is_too_small():
    """On 1.5 GiB as many layers as fit run on the card, of the smallest quantization, and one more would not fit."""
    found = plan("m", QWEN, machine(card(1536 * MIB)))
    assert (found.quant, found.placement) == ("Q3_K_M", "partial")
    assert 1 <= found.n_layers_on_device < 36
    more = dataclasses.replace(found.layout, n_gpu_layers=found.layout.n_gpu_layers + 1)
    assert memory_cost(found.facts, more).device_bytes > found.available_bytes
    assert f"{found.n_layers_on_device} of 36 layers go there" in found.reason
    assert all("too much for CUDA0" in lost.reason and lost.shortfall_bytes > 0 for lost in found.rejected)


def test_without_a_card_the_processor_takes_it():
    """16 GB of RAM run the best of the ladder on the CPU, read into memory so that it is not held twice."""
    found = plan("m", QWEN, PROFILES["cpu-16gb"])
    assert (found.quant, found.placement, found.device, found.n_layers_on_device) == ("Q4_K_M", "cpu", None, 0)
    assert (found.layout.load_mode, found.n_threads) == ("none", 8)
    assert found.reason.startswith("the best that fits in host memory: ")


def test_a_file_on_a_card_is_mapped():
    """Whole on the device, the map is read once and costs nothing after."""
    assert plan("m", QWEN, PROFILES["rtx-3050-4gb"]).layout.load_mode == "mmap"


def test_a_card_too_small_for_anything_leaves_it_to_the_processor():
    """A card without room for one layer does not stand in the way, and the reason names it."""
    found = plan("m", QWEN, machine(card(MARGIN_DEVICE + MIB)))
    assert (found.quant, found.placement) == ("Q4_K_M", "cpu")
    assert found.reason.startswith("too little is free on CUDA0; ")


def test_the_processor_can_be_asked_for():
    """device="cpu" leaves the card alone."""
    assert plan("m", QWEN, PROFILES["rtx-4060-8gb"], Limits(device="cpu")).placement == "cpu"


def test_gpu_without_a_gpu_is_an_error_that_says_what_to_do():
    """device="gpu" never falls back in silence."""
    with pytest.raises(DoesNotFitError, match=r"this build of llama\.cpp sees none.*--device cpu"):
        plan("m", QWEN, PROFILES["cpu-16gb"], Limits(device="gpu"))


@pytest.mark.parametrize("device", ["gpu", "CUDA0", "cuda"])
def test_a_device_that_is_asked_for_is_never_the_processor(device):
    """A card without room is an error, with the card's numbers."""
    with pytest.raises(DoesNotFitError) as caught:
        plan("m", QWEN, machine(card(MARGIN_DEVICE + MIB)), Limits(device=device))
    assert caught.value.available_bytes == MIB
    assert [lost.quant for lost in caught.value.rejected] == ["Q4_K_M", "Q4_K_S", "Q3_K_M"]
    assert all("CUDA0" in lost.reason for lost in caught.value.rejected)


TWO_CARDS = (card(4 * GIB), card(6 * GIB, name="CUDA1"))


@pytest.mark.parametrize("asked", ["cuda:1", "CUDA1", "cuda1"])
def test_one_of_several_cards_can_be_asked_for(asked):
    """The second card by PyTorch's name or ggml's, also where the first one has more room."""
    larger_first = machine(card(8 * GIB), card(6 * GIB, name="CUDA1"))
    assert plan("m", QWEN, larger_first, Limits(device=asked)).device == "CUDA1"
    assert plan("m", QWEN, larger_first, Limits(device="cuda")).device == "CUDA0"


def test_a_mac_answers_to_mps():
    """PyTorch's name for Metal."""
    assert plan("m", QWEN, PROFILES["m2-16gb"], Limits(device="mps")).device == "MTL0"


def test_a_device_that_is_not_there_is_a_mistake_or_a_lack():
    """Where there are others the names are told; where there are none the message says what to install."""
    with pytest.raises(ValueError, match="auto, gpu, cpu or one of CUDA0, CUDA1"):
        plan("m", QWEN, machine(*TWO_CARDS), Limits(device="cuda:2"))
    with pytest.raises(DoesNotFitError, match="gguf-embed doctor"):
        plan("m", QWEN, machine(), Limits(device="cuda:2"))


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_the_largest_card_that_holds_all_is_taken(device):
    """Of two cards the one with more free memory, of card and integrated unit the card."""
    inside = card(16 * GIB, name="Vulkan0", kind="integrated")
    assert plan("m", QWEN, machine(inside, *TWO_CARDS), Limits(device=device)).device == "CUDA1"
    assert plan("m", QWEN, machine(inside, *reversed(TWO_CARDS)), Limits(device=device)).device == "CUDA1"


def test_an_integrated_gpu_is_never_picked_unasked():
    """A graphics unit inside the processor shares its memory and is slower than it; asking takes it."""
    computer = machine(card(12 * GIB, name="Vulkan0", kind="integrated"))
    assert plan("m", QWEN, computer).placement == "cpu"
    for device in ("gpu", "vulkan:0", "Vulkan0"):
        assert plan("m", QWEN, computer, Limits(device=device)).device == "Vulkan0"


def test_what_no_card_holds_alone_is_shared_out():
    """Two cards of 2 GiB hold the best quantization together, the freer one more of it; a third kind stays out."""
    inside = card(16 * GIB, name="Vulkan0", kind="integrated")
    cards = (card(1800 * MIB), inside, card(2200 * MIB, name="CUDA1"))
    found = plan("m", QWEN, machine(*cards))
    assert (found.quant, found.placement, found.device) == ("Q4_K_M", "split", "CUDA0+CUDA1")
    small, large = found.layout.tensor_split
    assert small + large == found.layout.n_gpu_layers == 37
    assert small < large
    assert found.required_bytes == sum(usage.total_bytes for usage in found.cost.devices)
    assert found.available_bytes == 4000 * MIB - 2 * MARGIN_DEVICE
    assert found.reason.startswith("the best that fits whole on CUDA0 and CUDA1: ")


def test_a_card_that_holds_all_beats_two_that_hold_more():
    """A better quantization comes first, then as few devices as hold it."""
    one_is_enough = machine(card(4 * GIB), card(4 * GIB, name="CUDA1"))
    assert plan("m", QWEN, one_is_enough).placement == "gpu"
    too_small_alone = on_card_bytes(QWEN[0], **LAST_RESORT) - 1
    two = machine(card(too_small_alone), card(too_small_alone, name="CUDA1"))
    assert (plan("m", QWEN, two).quant, plan("m", QWEN, two).placement) == ("Q4_K_M", "split")


@pytest.mark.parametrize("limits", [Limits(), Limits(memory_bytes=2308 * MIB)], ids=["all", "2308 MiB"])
@pytest.mark.parametrize("others", [(1280,), (360, 1024)], ids=str)
def test_more_on_one_of_several_cards_never_picks_less(others, limits):
    """The last card larger and larger beside one or two of fixed size, however the layers come to be shared out."""
    plans = []
    for n_mib in range(512, 2560, 48):
        cards = [card(size * MIB, name=f"CUDA{index}") for index, size in enumerate((*others, n_mib))]
        plans.append(plan("m", QWEN, machine(*cards), limits))
    for before, after in itertools.pairwise(plans):
        never_smaller(before, after, QWEN)


def test_a_card_with_room_for_hardly_a_layer_is_no_obstacle():
    """Three cards, the second nearly full: every quantization is weighed, also those that cannot be shared out so."""
    ladder = LADDERS["qwen3-embedding-0.6b, quality"]
    cards = (card(769 * MIB), card(290 * MIB, name="CUDA1"), card(769 * MIB, name="CUDA2"))
    found = plan("m", ladder, machine(*cards))
    assert len(found.rejected) == len(ladder) - 1


def test_what_the_user_allows_is_for_all_cards_together():
    """With 2 GiB allowed, two cards of 4 GiB do not take 2 GiB each."""
    two = machine(card(4 * GIB), card(4 * GIB, name="CUDA1"))
    found = plan("m", QWEN, two, Limits(memory_bytes=2 * GIB))
    assert found.required_bytes <= found.available_bytes <= 2 * GIB


def test_unified_memory_counts_the_file_once():
    """On Apple Silicon weights are mapped by both sides, so the file's bytes count a single time."""
    found = plan("m", QWEN, PROFILES["m2-16gb"])
    assert (found.quant, found.placement, found.is_unified) == ("Q4_K_M", "gpu", True)
    (device,), host = found.cost.devices, found.cost.host
    beside = device.kv_bytes + device.compute_bytes + host.kv_bytes + host.compute_bytes
    assert found.required_bytes == found.facts.weights_bytes + beside + host.output_bytes + host.process_bytes


def test_unified_memory_leaves_the_system_its_share():
    """The budget is the device's free memory less the margin, and never more than the total less 3 GiB."""
    mac = PROFILES["m1-8gb"]
    assert plan("m", QWEN, mac).available_bytes == 8 * GIB - MARGIN_UNIFIED
    busy = dataclasses.replace(mac, accelerators=(dataclasses.replace(mac.accelerators[0], free_bytes=4 * GIB),))
    assert plan("m", QWEN, busy).available_bytes == 4 * GIB - MARGIN_DEVICE


def test_unified_memory_is_never_split():
    """There is no other side to put layers on; what does not fit whole goes to the CPU, or nowhere."""
    computer = machine(card(GIB, name="MTL0", kind="unified"))
    assert plan("m", QWEN, computer).placement == "cpu"
    with pytest.raises(DoesNotFitError):
        plan("m", QWEN, computer, Limits(device="gpu"))


def test_the_longest_text_asked_for_is_planned_for():
    """limits.n_ctx is the context, no more and no less."""
    found = plan("m", QWEN, PROFILES["rtx-4060-8gb"], Limits(n_ctx=8192))
    assert (found.layout.n_ctx, found.n_ctx_max) == (8192, 8192)


def test_a_long_text_takes_a_smaller_cache_before_a_smaller_quantization():
    """Where 16,384 tokens are asked for and do not fit, keys and values become q8_0; f16 asked for costs a step."""
    size = on_card_bytes(QWEN[0], n_ctx=16384, **LAST_RESORT)
    hardware = machine(card(size - 1))
    found = plan("m", QWEN, hardware, Limits(n_ctx=16384))
    assert (found.quant, found.layout.kv_type) == ("Q4_K_M", "q8_0")
    found = plan("m", QWEN, hardware, Limits(n_ctx=16384, kv_type="f16"))
    assert (found.quant, found.layout.kv_type) == ("Q4_K_S", "f16")
    assert plan("m", QWEN, machine(card(size)), Limits(n_ctx=16384)).layout.kv_type == "f16"


@law
@given(cases())
def test_the_cache_is_of_the_type_that_was_asked_for(case):
    """kv_type is kept where a cache can have it, and nobody gets q8_0 who asked for neither it nor a context."""
    candidates, hardware, limits = case
    assume(found := attempt(candidates, hardware, limits))
    if limits.kv_type == "q8_0":
        assert found.layout.kv_type == "q8_0"
    if limits.kv_type == "f16" or not can_quantize_kv(found.facts) or (limits.kv_type is None and limits.n_ctx is None):
        assert found.layout.kv_type == "f16"


def test_a_cache_that_a_model_has_not_cannot_be_of_a_type():
    """An encoder keeps no keys and values, and says so where q8_0 is asked for."""
    with pytest.raises(ValueError, match="kv_type is q8_0; m keeps no KV cache"):
        plan("m", ENCODER, machine(), Limits(kv_type="q8_0"))


def test_a_text_longer_than_the_model_is_refused():
    """n_ctx beyond what the model was trained for is the caller's mistake."""
    assert plan("m", QWEN, machine(ram_bytes=64 * GIB), Limits(n_ctx=32768)).layout.n_ctx == 32768
    with pytest.raises(ValueError, match="n_ctx is 32769; m takes texts of at most 32768"):
        plan("m", QWEN, machine(), Limits(n_ctx=32769))


def test_an_encoder_holds_a_text_in_one_decode():
    """No text of an encoder crosses a decode, so n_ubatch is n_ctx; on a CPU fewer tokens are packed together."""
    on_cpu, on_gpu = plan("m", ENCODER, PROFILES["cpu-16gb"]), plan("m", ENCODER, PROFILES["rtx-4060-8gb"])
    assert on_cpu.layout.n_ubatch == on_cpu.layout.n_ctx == on_gpu.layout.n_ubatch == 512
    assert (on_cpu.n_batch, on_gpu.n_batch) == (256, 512)
    longer = plan("m", ENCODER, PROFILES["rtx-4060-8gb"], Limits(n_ctx=1024))
    assert (longer.layout.n_ctx, longer.n_batch, longer.layout.n_ubatch) == (1024, 1024, 1024)
    assert grown(on_cpu.layout, ENCODER[0].facts, 8192).n_ubatch == 8192
    assert grown(on_card(QWEN[0].facts), QWEN[0].facts, 8192).n_ubatch == 512


def test_a_decode_is_as_large_as_the_kernels_like():
    """512 tokens where K-quants are multiplied in tiles and on a card, 256 where a CPU's weights are reordered."""
    cpu = machine()
    tiled = dataclasses.replace(cpu, has_tiled_matmul=True)
    assert (plan("m", QWEN, cpu).n_batch, plan("m", QWEN, tiled).n_batch) == (256, 512)
    assert plan("m", QWEN, machine(card(16 * GIB))).n_batch == 512
    assert plan("m", ENCODER, tiled).n_batch == 256


def test_the_head_is_skipped_as_the_user_wants_it():
    """False plans the ordinary path and its larger buffers, True goes on to the load, and is refused for encoders."""
    free, never, always = (plan("m", QWEN, machine(), Limits(skips_head=wanted)) for wanted in (None, False, True))
    assert (free.layout.skips_head, free.must_skip_head) == (True, False)
    assert (never.layout.skips_head, never.must_skip_head) == (False, False)
    assert (always.layout.skips_head, always.must_skip_head) == (True, True)
    assert never.cost.host.compute_bytes > 3 * free.cost.host.compute_bytes
    with pytest.raises(ValueError, match="skips_head is True; m has no head"):
        plan("m", ENCODER, machine(), Limits(skips_head=True))


def test_no_candidates_is_a_mistake():
    """An empty ladder is refused instead of never fitting."""
    with pytest.raises(ValueError, match="at least one candidate"):
        plan("m", (), machine())


@pytest.mark.parametrize(
    "change",
    [{"device": "tpu"}, {"memory_bytes": 0}, {"n_ctx": 0}, {"n_threads": -1}, {"n_threads": 513}, {"kv_type": "q4_0"}],
    ids=str,
)
def test_limits_check_themselves(change):
    """A limit that means nothing is refused with its name."""
    with pytest.raises(ValueError, match=next(iter(change))):
        Limits(**change)


def test_quality_takes_the_largest_that_fits():
    """The quality ladder opens F16 and Q8_0 where there is room."""
    ladder = LADDERS["qwen3-embedding-4b, quality"]
    assert plan("m", ladder, machine(card(24 * GIB))).quant == "F16"
    assert plan("m", ladder, PROFILES["rtx-2060-6gb"]).quant == "Q8_0"


def test_others_are_weighed_and_never_chosen():
    """What is not in the ladder stands at the end of the rejected, with what it would need."""
    f16 = LADDERS["qwen3-embedding-4b, quality"][0]
    roomy, small = (plan("m", QWEN, PROFILES[name], others=[f16]) for name in ("rtx-4090-24gb", "rtx-3050-4gb"))
    assert roomy.quant == small.quant == "Q4_K_M"
    assert [lost.quant for lost in roomy.rejected] == ["Q4_K_S", "Q3_K_M", "F16"]
    assert roomy.rejected[-1].reason == "fits, but is taken only by name or with --prefer quality"
    assert small.rejected[-1].shortfall_bytes > 0
    assert not roomy.rejected[-1].is_better


def test_a_shortfall_is_told_where_it_is():
    """A large card in a computer without host memory: the error does not say that the card is too small."""
    with pytest.raises(DoesNotFitError, match="too much for host memory") as caught:
        plan("m", QWEN, machine(card(20 * GIB), ram_bytes=600 * MIB), Limits(device="gpu"))
    assert "too much for CUDA0" not in str(caught.value)
    assert caught.value.required_bytes > caught.value.available_bytes


def test_the_least_shortfall_is_what_is_really_missing():
    """With a byte less than the least shortfall it still does not fit, with the whole of it it does."""
    with pytest.raises(DoesNotFitError) as caught:
        plan("m", QWEN, machine(ram_bytes=GIB))
    missing = min(lost.shortfall_bytes for lost in caught.value.rejected)
    assert attempt(QWEN, machine(ram_bytes=GIB + missing)) is not None
    assert attempt(QWEN, machine(ram_bytes=GIB + missing - 1)) is None
