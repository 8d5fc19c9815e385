"""planner.py: laws over machines and limits, and the choices that the README promises."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gguf_embed.engine.session import SessionSettings
from gguf_embed.errors import DoesNotFitError
from gguf_embed.fit.hardware import Accelerator, Hardware
from gguf_embed.fit.memory import memory_cost
from gguf_embed.fit.planner import (
    MARGIN_DEVICE,
    MARGIN_HOST,
    MARGIN_UNIFIED,
    N_CTX_FLOOR,
    N_CTX_WORKING,
    Candidate,
    Limits,
    plan,
)
from gguf_embed.fit.profiles import load_profiles
from gguf_embed.models.header import facts_of_spec
from gguf_embed.models.registry import load_registry

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


LADDERS = {
    name: found
    for model_id in (spec.model_id for spec in load_registry().models)
    for name, quality in ((model_id, False), (f"{model_id}, quality", True))
    if (found := candidates_of(model_id, quality=quality))
}
QWEN = LADDERS["qwen3-embedding-4b"]
ENCODER = next(found for found in LADDERS.values() if not found[0].facts.is_causal)


def machine(*, free_bytes=None, ram_bytes=16 * GIB, is_unified=False, is_integrated=False, name="CUDA0"):
    """A computer with so much free on its one device (None for no device) and in its memory."""
    devices = () if free_bytes is None else (
        Accelerator(name=name, description="a card", total_bytes=max(free_bytes, 1), free_bytes=free_bytes,
                    is_unified=is_unified, is_integrated=is_integrated),
    )  # fmt: skip
    return Hardware(accelerators=devices, ram_total_bytes=ram_bytes + GIB, ram_available_bytes=ram_bytes, n_cores=4)


def attempt(candidates, hardware, limits=None):
    """The plan, or None where nothing fits."""
    try:
        return plan("m", candidates, hardware, limits)
    except DoesNotFitError:
        return None


MEMORY = st.integers(0, 26 * 1024).map(lambda n_mib: n_mib * MIB)
MACHINES = st.builds(
    machine,
    free_bytes=st.none() | MEMORY,
    ram_bytes=MEMORY,
    is_unified=st.booleans(),
    is_integrated=st.booleans(),
)
LIMITS = st.builds(
    Limits,
    memory_bytes=st.none() | MEMORY.filter(bool),
    device=st.sampled_from(["auto", "cpu", "gpu"]),
    n_ctx=st.none() | st.integers(1, 40_000),
    n_threads=st.none() | st.integers(1, 8),
)
LADDER = st.sampled_from(list(LADDERS.values()))


@st.composite
def cases(draw):
    """A ladder, a machine, and limits whose n_ctx the model takes."""
    candidates, hardware, limits = draw(LADDER), draw(MACHINES), draw(LIMITS)
    n_ctx_train = min(candidate.facts.n_ctx_train for candidate in candidates)
    return candidates, hardware, dataclasses.replace(limits, n_ctx=limits.n_ctx and min(limits.n_ctx, n_ctx_train))


law = settings(deadline=None, max_examples=150)


@law
@given(cases())
def test_the_same_inputs_give_the_same_plan(case):
    """Nothing but the arguments decides, and a plan or its error crosses processes."""
    candidates, hardware, limits = case

    def outcome():
        try:
            return plan("m", candidates, hardware, limits)
        except DoesNotFitError as error:
            return (str(error), error.required_bytes, error.available_bytes, error.rejected)

    assert outcome() == outcome() == pickle.loads(pickle.dumps(outcome()))  # noqa: S301 - our own bytes


@law
@given(cases())
def test_a_plan_never_needs_more_than_there_is(case):
    """What counts against a budget is within it, and the budget within free memory less the margin."""
    candidates, hardware, limits = case
    assume(found := attempt(candidates, hardware, limits))
    assert found.required_bytes <= found.available_bytes
    if found.placement == "cpu":
        assert found.available_bytes <= hardware.ram_available_bytes - MARGIN_HOST
    else:
        assert found.available_bytes <= hardware.accelerators[0].free_bytes - MARGIN_DEVICE
    if not found.is_unified:
        assert found.cost.host_bytes <= hardware.ram_available_bytes - MARGIN_HOST


@law
@given(cases())
def test_the_longest_text_fits_too(case):
    """Memory for n_ctx_max was free when the plan was made."""
    candidates, hardware, limits = case
    assume(found := attempt(candidates, hardware, limits))
    n_ubatch = found.n_ubatch if found.facts.is_causal and found.facts.pooling_type == "last" else found.n_ctx_max
    cost = memory_cost(found.facts, n_ctx=found.n_ctx_max, n_ubatch=n_ubatch, n_gpu_layers=found.n_gpu_layers)
    longest = dataclasses.replace(found, cost=cost)
    assert longest.required_bytes <= found.available_bytes
    assert found.n_ctx_max <= found.facts.n_ctx_train


@law
@given(cases())
def test_a_plan_is_one_that_the_engine_can_run(case):
    """Tokens, texts and contexts stand in the order that llama.cpp asserts."""
    candidates, hardware, limits = case
    assume(found := attempt(candidates, hardware, limits))
    SessionSettings(
        path="m.gguf", pooling_type=found.facts.pooling_type, n_ctx=found.n_ctx, n_ctx_max=found.n_ctx_max,
        n_batch=found.n_batch, n_ubatch=found.n_ubatch, n_seq_max=found.n_seq_max,
    )  # fmt: skip
    assert found.n_threads == (limits.n_threads or hardware.n_cores)
    assert found.placement in ("gpu", "partial", "cpu")
    assert (found.device is None) == (found.placement == "cpu")
    assert {"gpu": found.facts.n_layer + 1, "cpu": 0}.get(found.placement, found.n_gpu_layers) == found.n_gpu_layers
    assert found.placement != "partial" or 1 <= found.n_gpu_layers <= found.facts.n_layer
    assert not (found.is_unified and found.placement == "partial")
    assert limits.n_ctx is None or found.n_ctx == found.n_ctx_max == limits.n_ctx


@law
@given(cases())
def test_every_candidate_is_chosen_or_rejected_with_a_reason(case):
    """A plan accounts for all quantizations, in the ladder's order."""
    candidates, hardware, limits = case
    assume(found := attempt(candidates, hardware, limits))
    names = [candidate.quant for candidate in candidates]
    assert [lost.quant for lost in found.rejected] == [name for name in names if name != found.quant]
    assert found.quant in names
    for lost in (*found.rejected, found):
        assert lost.reason
        assert lost.required_bytes > 0


@law
@given(cases(), MEMORY, MEMORY)
def test_more_memory_never_picks_a_smaller_quantization(case, more_ram, more_device):
    """In one placement, a machine with more free memory gets the same step of the ladder or a better one."""
    candidates, hardware, limits = case
    larger = dataclasses.replace(
        hardware,
        ram_total_bytes=hardware.ram_total_bytes + more_ram,
        ram_available_bytes=hardware.ram_available_bytes + more_ram,
        accelerators=tuple(
            dataclasses.replace(device, free_bytes=device.free_bytes + more_device) for device in hardware.accelerators
        ),
    )
    before, after = attempt(candidates, hardware, limits), attempt(candidates, larger, limits)
    assume(before)
    assert after is not None
    if before.placement == after.placement:
        names = [candidate.quant for candidate in candidates]
        assert names.index(after.quant) <= names.index(before.quant)
        assert after.n_gpu_layers >= before.n_gpu_layers
        if (after.quant, after.n_gpu_layers) == (before.quant, before.n_gpu_layers):
            assert after.n_ctx_max >= before.n_ctx_max


@law
@given(LADDER, MACHINES, st.integers(1, 24 * 1024).map(lambda n_mib: n_mib * MIB))
def test_what_the_user_allows_is_kept(candidates, hardware, memory_bytes):
    """limits.memory_bytes caps what a plan needs where it runs, whatever is free."""
    assume(found := attempt(candidates, hardware, Limits(memory_bytes=memory_bytes)))
    assert found.required_bytes <= found.available_bytes <= memory_bytes


@law
@given(cases())
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
    assert error.required_bytes in {lost.required_bytes for lost in error.rejected}
    assert error.available_bytes >= 0


def test_a_4_gib_card_takes_the_best_of_three():
    """The RTX 3050 of the README runs Q4_K_M whole, at the working budget or more."""
    found = plan("qwen3-embedding-4b", QWEN, PROFILES["rtx-3050-4gb"])
    assert (found.quant, found.placement, found.device) == ("Q4_K_M", "gpu", "CUDA0")
    assert found.n_gpu_layers == 37
    assert found.n_ctx >= N_CTX_WORKING
    assert [lost.reason for lost in found.rejected] == ["fits, but Q4_K_M is better"] * 2
    assert found.reason.startswith("the best that fits whole on CUDA0: ")


def whole_on_device_bytes(candidate, n_ctx=N_CTX_WORKING):
    """Free bytes that a card must have to hold a candidate whole."""
    cost = memory_cost(candidate.facts, n_ctx=n_ctx, n_ubatch=512, n_gpu_layers=candidate.facts.n_layer + 1)
    return cost.device_bytes + MARGIN_DEVICE


def test_with_less_memory_the_ladder_is_climbed_down():
    """Q4_K_M, Q4_K_S, Q3_K_M, each from the byte at which the one above no longer fits."""
    q4_k_m, q4_k_s, q3_k_m = (whole_on_device_bytes(candidate) for candidate in QWEN)
    picks = {}
    for free_bytes in (q4_k_m, q4_k_m - 1, q4_k_s, q4_k_s - 1, q3_k_m):
        found = plan("m", QWEN, machine(free_bytes=free_bytes))
        picks[free_bytes] = (found.quant, found.placement, found.n_ctx)
    assert list(picks.values()) == [
        ("Q4_K_M", "gpu", N_CTX_WORKING),
        ("Q4_K_S", "gpu", N_CTX_WORKING),
        ("Q4_K_S", "gpu", N_CTX_WORKING),
        ("Q3_K_M", "gpu", N_CTX_WORKING),
        ("Q3_K_M", "gpu", N_CTX_WORKING),
    ]


def test_the_smallest_goes_down_to_the_floor_before_it_is_split():
    """Below the working budget the last of the ladder keeps 512 tokens in flight; below that it is split."""
    working, floor = whole_on_device_bytes(QWEN[-1]), whole_on_device_bytes(QWEN[-1], N_CTX_FLOOR)
    small = plan("m", QWEN, machine(free_bytes=working - 1))
    assert (small.quant, small.placement) == ("Q3_K_M", "gpu")
    assert small.n_ctx == N_CTX_FLOOR
    assert plan("m", QWEN, machine(free_bytes=floor)).placement == "gpu"
    assert plan("m", QWEN, machine(free_bytes=floor - 1)).placement == "partial"


def test_part_of_a_model_goes_to_a_card_that_is_too_small():
    """On 1.5 GiB as many layers as fit run on the card, of the smallest quantization, and one more would not fit."""
    found = plan("m", QWEN, machine(free_bytes=1536 * MIB))
    assert (found.quant, found.placement) == ("Q3_K_M", "partial")
    assert 1 <= found.n_gpu_layers < 36
    more = memory_cost(found.facts, n_ctx=found.n_ctx, n_ubatch=found.n_ubatch, n_gpu_layers=found.n_gpu_layers + 1)
    assert more.device_bytes > found.available_bytes
    assert f"{found.n_gpu_layers} of 36 layers go there" in found.reason
    assert all("too much for CUDA0" in lost.reason and lost.shortfall_bytes > 0 for lost in found.rejected)


def test_without_a_card_the_processor_takes_it():
    """16 GB of RAM run the best of the ladder on the CPU, read into memory so that it is not held twice."""
    found = plan("m", QWEN, PROFILES["cpu-16gb"])
    assert (found.quant, found.placement, found.device, found.n_gpu_layers) == ("Q4_K_M", "cpu", None, 0)
    assert (found.load_mode, found.n_threads) == ("none", 8)
    assert "host memory" in found.reason


def test_a_file_on_a_card_is_mapped():
    """Whole on the device, the map is read once and costs nothing after."""
    assert plan("m", QWEN, PROFILES["rtx-3050-4gb"]).load_mode == "mmap"


def test_a_card_too_small_for_anything_leaves_it_to_the_processor():
    """A card without room for one layer does not stand in the way."""
    found = plan("m", QWEN, machine(free_bytes=MARGIN_DEVICE + MIB))
    assert (found.quant, found.placement) == ("Q4_K_M", "cpu")


def test_the_processor_can_be_asked_for():
    """device="cpu" leaves the card alone."""
    assert plan("m", QWEN, PROFILES["rtx-4060-8gb"], Limits(device="cpu")).placement == "cpu"


def test_gpu_without_a_gpu_is_an_error_that_says_what_to_do():
    """device="gpu" never falls back in silence."""
    with pytest.raises(DoesNotFitError, match=r"this build of llama\.cpp sees none.*--device cpu"):
        plan("m", QWEN, PROFILES["cpu-16gb"], Limits(device="gpu"))


def test_gpu_never_runs_on_the_processor():
    """device="gpu" on a card without room is an error, with the card's numbers."""
    with pytest.raises(DoesNotFitError) as caught:
        plan("m", QWEN, machine(free_bytes=MARGIN_DEVICE + MIB), Limits(device="gpu"))
    assert caught.value.available_bytes == MIB
    assert [lost.quant for lost in caught.value.rejected] == ["Q4_K_M", "Q4_K_S", "Q3_K_M"]
    assert all("CUDA0" in lost.reason for lost in caught.value.rejected)


def test_an_integrated_gpu_is_never_picked_unasked():
    """A graphics unit inside the processor shares its memory and is slower than it; device="gpu" takes it."""
    computer = machine(free_bytes=12 * GIB, is_unified=True, is_integrated=True, name="Vulkan0")
    assert plan("m", QWEN, computer).placement == "cpu"
    assert plan("m", QWEN, computer, Limits(device="gpu")).device == "Vulkan0"


def test_a_card_beats_an_integrated_gpu_and_the_freest_card_wins():
    """Of two cards the one with more free memory is taken, of card and integrated unit the card."""
    small, large = (
        Accelerator(name=name, description=name, total_bytes=8 * GIB, free_bytes=free)
        for name, free in (("CUDA0", 4 * GIB), ("CUDA1", 6 * GIB))
    )
    inside = Accelerator(name="Vulkan0", description="inside", total_bytes=16 * GIB, free_bytes=16 * GIB,
                         is_unified=True, is_integrated=True)  # fmt: skip
    computer = dataclasses.replace(machine(), accelerators=(inside, small, large))
    for device in ("auto", "gpu"):
        assert plan("m", QWEN, computer, Limits(device=device)).device == "CUDA1"


def test_unified_memory_counts_the_file_once():
    """On Apple Silicon weights are mapped by both sides, so the file's bytes count a single time."""
    found = plan("m", QWEN, PROFILES["m2-16gb"])
    assert (found.quant, found.placement, found.is_unified) == ("Q4_K_M", "gpu", True)
    cost = found.cost
    other = cost.kv_bytes + cost.compute_bytes + cost.host_kv_bytes + cost.host_compute_bytes + cost.host_output_bytes
    assert found.required_bytes == found.facts.weights_bytes + other


def test_unified_memory_leaves_the_system_its_share():
    """The budget is the device's free memory less the margin, and never more than the total less 3 GiB."""
    mac = PROFILES["m1-8gb"]
    assert plan("m", QWEN, mac).available_bytes == 8 * GIB - MARGIN_UNIFIED
    busy = dataclasses.replace(mac, accelerators=(dataclasses.replace(mac.accelerators[0], free_bytes=4 * GIB),))
    assert plan("m", QWEN, busy).available_bytes == 4 * GIB - MARGIN_DEVICE


def test_unified_memory_is_never_split():
    """There is no other side to put layers on; what does not fit whole goes to the CPU, or nowhere."""
    computer = machine(free_bytes=1 * GIB, ram_bytes=16 * GIB, is_unified=True, name="MTL0")
    assert plan("m", QWEN, computer).placement == "cpu"
    with pytest.raises(DoesNotFitError):
        plan("m", QWEN, computer, Limits(device="gpu"))


def test_the_longest_text_asked_for_is_planned_for():
    """limits.n_ctx is the context, no more and no less."""
    found = plan("m", QWEN, PROFILES["rtx-4060-8gb"], Limits(n_ctx=8192))
    assert (found.n_ctx, found.n_ctx_max) == (8192, 8192)


def test_a_long_text_costs_a_smaller_quantization():
    """Where 4,096 tokens are asked for, their cache takes the room of the better quantization."""
    found = plan("m", QWEN, machine(free_bytes=whole_on_device_bytes(QWEN[1], 4096)), Limits(n_ctx=4096))
    assert (found.quant, found.placement) == ("Q4_K_S", "gpu")


def test_a_text_longer_than_the_model_is_refused():
    """n_ctx beyond what the model was trained for is the caller's mistake."""
    assert plan("m", QWEN, machine(ram_bytes=64 * GIB), Limits(n_ctx=32768)).n_ctx == 32768
    with pytest.raises(ValueError, match="n_ctx is 32769; m takes texts of at most 32768"):
        plan("m", QWEN, machine(), Limits(n_ctx=32769))


def test_the_longest_text_is_as_long_as_memory_allows():
    """On a 4 GiB card n_ctx_max is the last step of 256 tokens that fits."""
    found = plan("m", QWEN, PROFILES["rtx-3050-4gb"])
    beyond = memory_cost(found.facts, n_ctx=found.n_ctx_max + 256, n_ubatch=512, n_gpu_layers=37)
    assert N_CTX_WORKING < found.n_ctx_max < 32768
    assert found.n_ctx_max % 256 == 0
    assert beyond.device_bytes > found.available_bytes


def test_an_encoder_holds_a_text_in_one_decode():
    """No text of an encoder crosses a decode, so n_ubatch is n_ctx; on a CPU fewer tokens are packed together."""
    on_cpu, on_card = plan("m", ENCODER, PROFILES["cpu-16gb"]), plan("m", ENCODER, PROFILES["rtx-4060-8gb"])
    assert on_cpu.n_ubatch == on_cpu.n_ctx == on_card.n_ubatch == 512
    assert (on_cpu.n_batch, on_card.n_batch) == (256, 512)
    longer = plan("m", ENCODER, PROFILES["rtx-4060-8gb"], Limits(n_ctx=1024))
    assert (longer.n_ctx, longer.n_batch, longer.n_ubatch) == (1024, 1024, 1024)


def test_no_candidates_is_a_mistake():
    """An empty ladder is refused instead of never fitting."""
    with pytest.raises(ValueError, match="at least one candidate"):
        plan("m", (), machine())


@pytest.mark.parametrize("change", [{"device": "tpu"}, {"memory_bytes": 0}, {"n_ctx": 0}, {"n_threads": -1}], ids=str)
def test_limits_check_themselves(change):
    """A limit that means nothing is refused with its name."""
    with pytest.raises(ValueError, match=next(iter(change))):
        Limits(**change)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_a_plan_for_the_default_model(profile):
    """The 4B runs on each machine that the README shows, in one of the three quantizations."""
    assert plan("m", QWEN, PROFILES[profile]).quant in ("Q4_K_M", "Q4_K_S", "Q3_K_M")


def test_quality_takes_the_largest_that_fits():
    """The quality ladder opens F16 and Q8_0 where there is room."""
    ladder = LADDERS["qwen3-embedding-4b, quality"]
    assert plan("m", ladder, machine(free_bytes=24 * GIB)).quant == "F16"
    assert plan("m", ladder, PROFILES["rtx-4060-8gb"]).quant == "Q8_0"


def test_a_shortfall_is_told_where_it_is():
    """A large card in a computer without host memory: the error does not say that the card is too small."""
    computer = machine(free_bytes=20 * GIB, ram_bytes=600 * MIB)
    with pytest.raises(DoesNotFitError) as caught:
        plan("m", QWEN, computer, Limits(device="gpu"))
    assert "too much for CUDA0" not in str(caught.value)
    assert caught.value.required_bytes > caught.value.available_bytes


def test_the_least_shortfall_is_what_is_really_missing():
    """With a byte less than the least shortfall it still does not fit, with the whole of it it does."""
    with pytest.raises(DoesNotFitError) as caught:
        plan("m", QWEN, machine(ram_bytes=GIB))
    missing = min(lost.shortfall_bytes for lost in caught.value.rejected)
    assert attempt(QWEN, machine(ram_bytes=GIB + missing)) is not None
    assert attempt(QWEN, machine(ram_bytes=GIB + missing - 1)) is None
