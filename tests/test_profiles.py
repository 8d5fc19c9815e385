"""profiles.toml as Hardware."""

from __future__ import annotations

import pytest

from gguf_embed.fit.places import MARGIN_DEVICE, MARGIN_HOST, MARGIN_UNIFIED
from gguf_embed.fit.profiles import load_profiles

PROFILES = load_profiles()


def test_the_machines_of_the_readme_are_there():
    """A 4 GB card, an 8 GB card, two Macs and two machines without a GPU can be planned for."""
    assert {"rtx-3050-4gb", "rtx-4060-8gb", "m1-8gb", "m2-16gb", "cpu-8gb", "cpu-16gb"} <= set(PROFILES)


def test_a_profile_reads_as_it_is_written():
    """The RTX 3050 has 4096 MiB of which 3768 are free, and 10 of 16 GiB of RAM."""
    machine = PROFILES["rtx-3050-4gb"]
    (device,) = machine.accelerators
    assert (device.name, device.total_bytes, device.free_bytes) == ("CUDA0", 4 << 30, 3768 << 20)
    assert (device.is_unified, device.is_integrated) == (False, False)
    assert (machine.ram_total_bytes, machine.ram_available_bytes) == (16 << 30, 10 << 30)
    assert machine.n_cores == 6
    assert machine.description == device.description == "RTX 3050 laptop, 4 GB"


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_a_possible_machine(name):
    """Nothing is freer than it is large, and margins leave something to plan with."""
    machine = PROFILES[name]
    assert MARGIN_HOST < machine.ram_available_bytes < machine.ram_total_bytes
    assert machine.n_cores >= 1
    assert machine.description
    for device in machine.accelerators:
        assert MARGIN_DEVICE < device.free_bytes <= device.total_bytes
        if device.is_unified:
            assert device.total_bytes < machine.ram_total_bytes
            assert machine.ram_total_bytes > MARGIN_UNIFIED


@pytest.mark.parametrize("name", PROFILES)
def test_a_name_tells_the_kind_of_machine(name):
    """cpu-* has no accelerator, an Apple one shares its memory, a card does not."""
    devices = PROFILES[name].accelerators
    assert bool(devices) != name.startswith("cpu-")
    assert [device.is_unified for device in devices] == ([True] if name.startswith("m") else [False] * len(devices))


def test_profiles_cannot_be_changed():
    """They are read once and shared, so they are read-only."""
    assert load_profiles() is load_profiles()
    with pytest.raises(TypeError):
        PROFILES["mine"] = PROFILES["cpu-8gb"]
