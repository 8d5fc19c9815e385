"""places.py: stages, budgets, and what a device may be called."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_embed.errors import DoesNotFitError
from gguf_embed.fit.hardware import Accelerator, Hardware
from gguf_embed.fit.places import MARGIN_DEVICE, MARGIN_HOST, MARGIN_LIMITED, MARGIN_UNIFIED, find_places
from gguf_embed.fit.plan import Limits

GIB, MIB = 1 << 30, 1 << 20


def card(free_bytes, *, name="CUDA0", kind="discrete"):
    """A device with so much free."""
    return Accelerator(name=name, description=name, total_bytes=max(free_bytes, 1), free_bytes=free_bytes, kind=kind)


def machine(*accelerators, ram_bytes=16 * GIB):
    """A computer with these devices and so much free beside them."""
    return Hardware(
        accelerators=accelerators, ram_total_bytes=ram_bytes + GIB, ram_available_bytes=ram_bytes, n_cores=4
    )


def stages(*accelerators, limits=None, **known):
    """Placement and devices of each place, stage by stage."""
    found = find_places(machine(*accelerators), limits or Limits(), **known)
    return [[(place.placement, place.name) for place in stage] for stage in found]


CPU = [("cpu", "host memory")]
SMALL, LARGE = card(4 * GIB), card(6 * GIB, name="CUDA1")
MAC = card(10 * GIB, name="MTL0", kind="unified")
INSIDE = card(16 * GIB, name="Vulkan0", kind="integrated")
PLACES = [
    pytest.param((), [CPU], id="nothing"),
    pytest.param((SMALL,), [[("gpu", "CUDA0")], [("partial", "CUDA0")], CPU], id="a card"),
    pytest.param((MAC,), [[("gpu", "MTL0")], CPU], id="a Mac"),
    pytest.param((INSIDE,), [CPU], id="graphics inside the processor"),
    pytest.param((INSIDE, SMALL), [[("gpu", "CUDA0")], [("partial", "CUDA0")], CPU], id="both"),
    pytest.param(
        (SMALL, LARGE),
        [[("gpu", "CUDA1"), ("gpu", "CUDA0"), ("split", "CUDA0 and CUDA1")], [("partial", "CUDA1")], CPU],
        id="two cards",
    ),
]


@pytest.mark.parametrize(("devices", "expected"), PLACES)
def test_whole_comes_before_part_and_part_before_the_processor(devices, expected):
    """One device by size, then several, then part of the largest card, then the CPU; unasked no integrated one."""
    assert stages(*devices) == expected


def test_several_cards_are_shared_in_the_machine_s_order():
    """A split names every card as ggml lists them, and nothing but cards."""
    third = card(2 * GIB, name="CUDA2")
    (whole, _, _) = find_places(machine(SMALL, INSIDE, LARGE, third), Limits())
    assert [one.name for one in whole[-1].accelerators] == ["CUDA0", "CUDA1", "CUDA2"]
    assert whole[-1].budgets == tuple(one.free_bytes - MARGIN_DEVICE for one in (SMALL, LARGE, third))
    assert whole[-1].free_bytes == 12 * GIB
    assert not whole[-1].is_unified


def test_gpu_leaves_out_the_processor():
    """Who asks for a GPU gets one, an integrated one too where there is no other."""
    assert stages(SMALL, limits=Limits(device="gpu")) == [[("gpu", "CUDA0")], [("partial", "CUDA0")]]
    assert stages(INSIDE, limits=Limits(device="gpu")) == [[("gpu", "Vulkan0")]]
    assert stages(INSIDE, SMALL, limits=Limits(device="gpu")) == [[("gpu", "CUDA0")], [("partial", "CUDA0")]]


def test_cpu_leaves_out_everything_else():
    """Who asks for the CPU gets nothing but it."""
    assert stages(SMALL, MAC, limits=Limits(device="cpu")) == [CPU]


NAMES = [
    ("CUDA1", "CUDA1"), ("cuda1", "CUDA1"), ("cuda:1", "CUDA1"), ("CUDA:1", "CUDA1"), ("cuda", "CUDA0"),
    ("cuda:0", "CUDA0"), ("mps", "MTL0"), ("mps:0", "MTL0"), ("metal", "MTL0"), ("MTL0", "MTL0"),
    ("vulkan:0", "Vulkan0"), ("Vulkan0", "Vulkan0"), ("rocm:0", "ROCm0"), ("xpu", "SYCL0"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "name"), NAMES)
def test_a_device_answers_to_both_of_its_names(asked, name):
    """Its name in ggml, in any case, and PyTorch's, with or without a number; nothing else is then tried."""
    others = (card(GIB, name="ROCm0"), card(GIB, name="SYCL0"))
    found = find_places(machine(SMALL, LARGE, MAC, INSIDE, *others), Limits(device=asked))
    assert {one.name for stage in found for place in stage for one in place.accelerators} == {name}
    assert all(place.accelerators for stage in found for place in stage)


def test_a_name_that_nothing_answers_to_is_a_mistake():
    """The message tells which names there are."""
    with pytest.raises(ValueError, match="auto, gpu, cpu or one of CUDA0, CUDA1"):
        stages(SMALL, LARGE, limits=Limits(device="cuda:2"))
    with pytest.raises(ValueError, match="auto, gpu, cpu or one of Vulkan0"):
        stages(INSIDE, limits=Limits(device="cuda"))


@pytest.mark.parametrize("device", ["gpu", "cuda", "CUDA1", "mps"])
def test_no_device_at_all_is_a_lack(device):
    """A build of llama.cpp that sees none is the world's failure, and the message says what to do."""
    with pytest.raises(DoesNotFitError, match="gguf-embed doctor") as caught:
        stages(limits=Limits(device=device))
    assert device.lower() in str(caught.value)
    assert caught.value.rejected == ()


SIZES = st.integers(0, 32 * 1024).map(lambda n_mib: n_mib * MIB)
MARGINS = st.dictionaries(st.sampled_from(["CUDA0", "CUDA1", "MTL0", "Vulkan0", "host", "gone"]), SIZES)
KINDS = {"CUDA0": "discrete", "CUDA1": "discrete", "MTL0": "unified", "Vulkan0": "integrated"}
law = settings(deadline=None, max_examples=60)


@st.composite
def machines(draw):
    """Any of four devices, of any size, and a memory that a container may hold to less."""
    names = draw(st.lists(st.sampled_from(list(KINDS)), unique=True))
    found = machine(*(card(draw(SIZES), name=name, kind=KINDS[name]) for name in names), ram_bytes=draw(SIZES))
    return dataclasses.replace(found, ram_limited_by=draw(st.sampled_from(["", "cgroup", "RLIMIT_AS"])))


LIMITS = st.builds(Limits, memory_bytes=st.none() | SIZES.filter(bool), device=st.sampled_from([None, "auto", "cpu"]))


def all_places(hardware, limits, margins):
    """Every place of every stage."""
    return [place for stage in find_places(hardware, limits, margins) for place in stage]


@law
@given(machines(), LIMITS, MARGINS)
def test_a_budget_is_what_is_free_less_the_larger_margin(hardware, limits, margins):
    """Never below zero, never above what is allowed; macOS keeps 3 GiB of a shared memory, a container 64 MiB."""
    cap = limits.memory_bytes or 1 << 62
    margin = MARGIN_LIMITED if hardware.ram_limited_by else MARGIN_HOST
    host = max(0, hardware.ram_available_bytes - max(margin, margins.get("host", 0)))
    for place in all_places(hardware, limits, margins):
        if place.placement == "cpu":
            assert place.budgets == (place.host_budget_bytes,) == (min(host, cap),)
            assert place.free_bytes == hardware.ram_available_bytes
            continue
        assert place.host_budget_bytes == host
        assert place.free_bytes == sum(one.free_bytes for one in place.accelerators)
        for one, budget in zip(place.accelerators, place.budgets, strict=True):
            room = one.free_bytes - max(MARGIN_DEVICE, margins.get(one.name, 0))
            shared = hardware.ram_total_bytes - MARGIN_UNIFIED if one.kind != "discrete" else room
            assert budget <= max(0, min(room, shared, cap))
            assert budget == max(0, min(room, shared, cap)) or (place.placement == "split" and limits.memory_bytes)
        assert place.budget_bytes <= cap


@law
@given(machines(), LIMITS, MARGINS)
def test_there_is_always_a_last_resort(hardware, limits, margins):
    """The stages end with the CPU, none is empty, and each is of one kind."""
    found = find_places(hardware, limits, margins)
    assert [place.placement for place in found[-1]] == ["cpu"]
    kinds = [{"split": "gpu"}.get(place.placement, place.placement) for stage in found for place in stage]
    assert kinds == sorted(kinds, key=["gpu", "partial", "cpu"].index)
    assert all({place.placement for place in stage} <= {"gpu", "split"} or len(stage) == 1 for stage in found)


@law
@given(machines(), LIMITS, MARGINS)
def test_the_roomiest_device_comes_first(hardware, limits, margins):
    """Single devices are tried by budget, and part of a model goes to the roomiest card."""
    found = all_places(hardware, limits, margins)
    budgets = [place.budget_bytes for place in found if place.placement == "gpu"]
    assert budgets == sorted(budgets, reverse=True)
    cards = [place for place in found if place.placement == "gpu" and not place.is_unified]
    assert [place.budgets for place in found if place.placement == "partial"] == [one.budgets for one in cards[:1]]


@law
@given(machines(), LIMITS, SIZES)
def test_a_margin_of_another_memory_changes_nothing(hardware, limits, size_bytes):
    """What was learnt of a device that is gone, and of nothing, is no matter."""
    assert find_places(hardware, limits, {"gone": size_bytes}) == find_places(hardware, limits)


def test_a_place_knows_whether_its_memory_is_the_host_s():
    """Apple Silicon and integrated graphics share it, a card and the CPU do not."""
    shared = {one.name: one.kind != "discrete" for one in (SMALL, MAC, INSIDE)}
    for name, is_unified in shared.items():
        place = find_places(machine(SMALL, MAC, INSIDE), Limits(device=name))[0][0]
        assert (place.name, place.is_unified) == (name, is_unified)
    assert not find_places(machine(), Limits())[0][0].is_unified


def test_a_device_is_of_a_known_kind():
    """A misspelt kind would take a shared memory for a card's."""
    with pytest.raises(ValueError, match="discrete, unified or integrated"):
        dataclasses.replace(SMALL, kind="shared")
