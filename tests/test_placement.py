"""placement.py: what actors of Ray ask for and are told, held against plans that they then make themselves."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from gguf_embed.errors import DoesNotFitError, MissingExtraError
from gguf_embed.fit.hardware import Accelerator, Hardware
from gguf_embed.fit.places import MARGIN_DEVICE
from gguf_embed.fit.planner import Candidate, Limits, plan
from gguf_embed.integrations.placement import count_actors, place_actors, share_threads
from gguf_embed.integrations.ray_survey import import_ray
from gguf_embed.models.header import facts_of_spec
from gguf_embed.models.registry import load_registry

GIB = 1 << 30
UNITS = 10_000  # of one Ray resource


def candidates_of(model_id):
    """A model's ladder with the sizes that the registry knows."""
    spec = load_registry().get(model_id)
    sizes = {file.quant: file.size_bytes for file in spec.files}
    known = [(quant, facts_of_spec(spec, quant, sizes[quant])) for quant in spec.ladder if sizes.get(quant)]
    return tuple(Candidate(quant=quant, facts=facts) for quant, facts in known if facts is not None)


LADDERS = {name: candidates_of(name) for name in ("qwen3-embedding-0.6b", "qwen3-embedding-4b", "bge-m3")}
LADDERS = {name: found for name, found in LADDERS.items() if found}
SMALL, LARGE = LADDERS["qwen3-embedding-0.6b"], LADDERS["qwen3-embedding-4b"]


def card(free_bytes, *, name="CUDA0", kind="discrete"):
    """A device with so much free."""
    return Accelerator(name=name, description=name, total_bytes=max(free_bytes, 1), free_bytes=free_bytes, kind=kind)


def machine(*accelerators, ram_bytes=64 * GIB, n_cores=16):
    """A computer with these devices and so much free beside them."""
    return Hardware(
        accelerators=accelerators, ram_total_bytes=ram_bytes + GIB, ram_available_bytes=ram_bytes, n_cores=n_cores
    )


def counted(hardware, *, n_cpus=None, n_spare=1):
    """What Ray counts there."""
    n_cpus = hardware.n_cores if n_cpus is None else n_cpus
    return {"CPU": max(0, n_cpus - n_spare), "GPU": len(hardware.accelerators), "memory": hardware.ram_available_bytes}


def place(candidates, hardware, limits=None, *, n_per_place=None, resources=None):
    """The plan of one actor and what comes of it."""
    limits = share_threads(limits or Limits(), hardware, n_per_place)
    planned = plan("m", candidates, hardware, limits)
    placed = place_actors(planned, hardware, limits, resources or counted(hardware), n_per_place=n_per_place)
    return planned, placed


def left(hardware, planned, placed, n_actors):
    """The machine after so many actors have taken what they were told."""
    taken = n_actors * (placed.limits.memory_bytes + MARGIN_DEVICE)
    devices = tuple(
        dataclasses.replace(one, free_bytes=max(0, one.free_bytes - taken))
        if one.name in planned.layout.devices
        else one
        for one in hardware.accelerators
    )
    ram_bytes = max(0, hardware.ram_available_bytes - n_actors * placed.memory_bytes)
    return dataclasses.replace(hardware, accelerators=devices, ram_available_bytes=ram_bytes)


machines = st.builds(
    lambda sizes, ram, cores: machine(
        *(card(size << 20, name=f"CUDA{at}") for at, size in enumerate(sizes)), ram_bytes=ram << 20, n_cores=cores
    ),
    st.lists(st.integers(600, 48_000), max_size=2),
    st.integers(2_000, 256_000),
    st.integers(1, 64),
)
ladders = st.sampled_from(list(LADDERS.values()))


@settings(deadline=None)
@given(ladders, machines, st.integers(1, 12))
def test_every_actor_of_a_place_plans_the_same(candidates, hardware, n_per_place):
    """The last of several actors, with what the others left, comes to the quantization and text length of the first."""
    try:
        planned, placed = place(candidates, hardware, n_per_place=n_per_place)
    except DoesNotFitError:
        reject()
    assume(planned.placement != "partial")
    same = tuple(one for one in candidates if one.quant == planned.quant)
    for n_before in (0, n_per_place - 1):
        own = plan("m", same, left(hardware, planned, placed, n_before), placed.limits)
        assert (own.placement, own.n_ctx_max, own.layout.kv_type) == (
            planned.placement, placed.limits.n_ctx, planned.layout.kv_type,
        )  # fmt: skip
        assert own.required_bytes <= placed.limits.memory_bytes
        assert own.n_threads == placed.limits.n_threads


@settings(deadline=None)
@given(ladders, machines, st.one_of(st.none(), st.integers(1, 12)), st.sampled_from([1, 2]))
def test_a_machine_holds_the_actors_that_are_meant_for_it(candidates, hardware, n_per_place, n_spare):
    """Ray can place them all at once with CPUs to spare, and the count of a cluster of such machines says so."""
    resources = counted(hardware, n_spare=n_spare)
    try:
        _, placed = place(candidates, hardware, n_per_place=n_per_place, resources=resources)
    except DoesNotFitError:
        reject()
    n_gpus = len(hardware.accelerators) if placed.n_gpus else 0
    n_here = placed.n_per_place * max(1, n_gpus) if placed.n_gpus <= 1 else n_gpus / placed.n_gpus
    assert round(n_here * placed.n_cpus, 6) <= resources["CPU"]
    assert round(n_here * placed.n_gpus, 6) <= n_gpus
    if placed.memory_bytes * n_here <= resources["memory"]:
        assert count_actors([resources, resources], placed) >= 2 * n_here


@given(st.integers(1, 64))
def test_a_share_of_a_gpu_admits_no_one_more(n_per_place):
    """So many fit on it as Ray counts, and one more does not."""
    _, placed = place(SMALL, machine(card(512 * GIB), ram_bytes=512 * GIB), n_per_place=n_per_place)
    share = round(placed.n_gpus * UNITS)
    assert n_per_place * share <= UNITS < (n_per_place + 1) * share


def test_several_actors_go_on_one_gpu_only_where_they_fit():
    """Two models of 0.6 billion fit on a card of 4 GiB, two of 4 billion do not; alone each has the whole card."""
    small = machine(card(4 * GIB))
    assert place(SMALL, small, n_per_place=2)[1].n_gpus == 0.5
    assert place(LARGE, small)[1].n_gpus == 1
    with pytest.raises(DoesNotFitError, match=r"2 actors of m do not fit on CUDA0 .* 1 would") as caught:
        place(LARGE, small, n_per_place=2)
    assert caught.value.required_bytes > 4 * GIB


def test_a_model_over_two_devices_asks_for_both():
    """A split takes whole devices, since its layers were shared out over them."""
    planned, placed = place(LARGE, machine(card(2 * GIB), card(2 * GIB, name="CUDA1")))
    assert planned.placement == "split"
    assert placed.n_gpus == 2
    assert placed.limits.device == "gpu"


def test_part_of_a_model_takes_its_gpu_alone():
    """What fills a device shares it with nobody."""
    planned, placed = place(LARGE, machine(card(2 * GIB)))
    assert planned.placement == "partial"
    assert placed.n_gpus == 1
    with pytest.raises(DoesNotFitError):
        place(LARGE, machine(card(2 * GIB)), n_per_place=2)


@pytest.mark.parametrize(
    "device",
    [pytest.param(card(10 * GIB, name="MTL0", kind="unified"), id="Metal"),
     pytest.param(card(10 * GIB, name="Vulkan0"), id="Vulkan")],
)  # fmt: skip
def test_a_device_that_ray_does_not_know_is_not_asked_for(device):
    """Nobody would ever get it, and the job would wait."""
    planned, placed = place(SMALL, machine(device))
    assert planned.placement == "gpu"
    assert placed.n_gpus == 0
    assert placed.limits.device != "cpu"


def test_a_cpu_is_filled_with_actors_of_the_threads_asked_for():
    """As many as there are cores for, and less where memory ends first; without threads there is one actor."""
    assert place(SMALL, machine(), Limits(n_threads=4))[1].n_per_place == 4
    assert place(LARGE, machine(ram_bytes=8 * GIB), Limits(n_threads=4))[1].n_per_place == 2
    _, alone = place(SMALL, machine())
    assert (alone.n_per_place, alone.limits.n_threads, alone.limits.device, alone.n_cpus) == (1, 16, "cpu", 15)


def test_hyperthreads_count_as_ray_counts_them():
    """Four threads of sixteen cores are eight of Ray's thirty-two CPUs, less the one that is spared."""
    hardware = machine()
    _, placed = place(SMALL, hardware, Limits(n_threads=4), resources=counted(hardware, n_cpus=32))
    assert placed.n_cpus == 7.75


def test_where_nothing_is_to_spare_actors_ask_for_nothing():
    """On one CPU, or on two beside a checkpoint, an actor that asked for any would keep Ray from reading."""
    hardware = machine(n_cores=2)
    resources = counted(hardware, n_spare=2)
    _, placed = place(SMALL, hardware, n_per_place=2, resources=resources)
    assert placed.n_cpus == 0
    assert count_actors([resources], placed) == 2


def test_what_the_user_allows_is_what_an_actor_is_told():
    """Memory, threads and longest text of the caller's stay as they are, and memory is what Ray is asked for."""
    limits = Limits(memory_bytes=3 * GIB, n_threads=3, n_ctx=4096)
    _, placed = place(SMALL, machine(), limits)
    assert (placed.limits.memory_bytes, placed.limits.n_threads, placed.limits.n_ctx) == (3 * GIB, 3, 4096)
    assert 3 * GIB < placed.memory_bytes < 4 * GIB


def test_threads_are_shared_by_those_on_one_machine():
    """Each gets its part and at least one, and the caller's word comes first."""
    assert share_threads(Limits(), machine(), 5).n_threads == 3
    assert share_threads(Limits(), machine(), 50).n_threads == 1
    assert share_threads(Limits(), machine(), None).n_threads is None
    assert share_threads(Limits(n_threads=7), machine(), 5).n_threads == 7


def test_without_ray_the_error_is_the_line_that_installs_it(monkeypatch):
    """MissingExtraError, with pip's command."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "gguf-embed\[ray\]"'):
        import_ray()
