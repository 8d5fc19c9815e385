"""diagnosis.py over a table of machines: what is found, which of it is a problem, and what to type."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gguf_embed.fit import diagnosis
from gguf_embed.fit.diagnosis import Finding, System, diagnose, probe_system
from gguf_embed.fit.hardware import Accelerator, Hardware


def device(kind, name="CUDA0"):
    return Accelerator(name=name, description="a card", total_bytes=8 << 30, free_bytes=7 << 30, kind=kind)


CARD, METAL, GRAPHICS = device("discrete"), device("unified", "MTL0"), device("integrated", "Vulkan0")


def hardware(*devices, limited_by=""):
    return Hardware(
        accelerators=devices,
        ram_total_bytes=16 << 30,
        ram_available_bytes=8 << 30,
        n_cores=4,
        ram_limited_by=limited_by,
    )


def linux(**facts):
    return System(**{"platform": "linux", "machine": "x86_64"} | facts)


def mac(**facts):
    return System(**{"platform": "darwin", "machine": "arm64", "can_offload": True} | facts)


NVIDIA = {"has_nvidia": True}
BUILT = NVIDIA | {"can_offload": True}

# Devices that llama.cpp sees, the system, and the first words of the one thing that is wrong; "" where nothing is.
MACHINES = {
    "a server without a GPU": ((), linux(), ""),
    "a build for GPUs without a GPU": ((), linux(can_offload=True), ""),
    "a card that is used": ((CARD,), linux(**BUILT), ""),
    "two cards that are used": ((CARD, device("discrete", "CUDA1")), linux(**BUILT), ""),
    "an NVIDIA card by Vulkan": ((device("discrete", "Vulkan0"),), linux(**BUILT), ""),
    "a card and a graphics unit": ((CARD, GRAPHICS), linux(**BUILT), ""),
    "a Mac": ((METAL,), mac(), ""),
    "an Intel Mac": ((), mac(machine="x86_64", can_offload=False), ""),
    "Windows without a GPU": ((), System(platform="win32", machine="AMD64"), ""),
    "an AMD card that is used": ((device("discrete", "ROCm0"),), linux(has_amd=True, can_offload=True), ""),
    "cards of which one is chosen": ((CARD,), linux(**BUILT, visible_devices="1"), ""),
    "a CPU build beside a card": ((), linux(**NVIDIA), "an NVIDIA GPU is present"),
    "a CPU build beside cards of which one is chosen": (
        (), linux(**NVIDIA, visible_devices="1"), "an NVIDIA GPU is present",
    ),
    "a CPU build beside chosen cards": ((), linux(**NVIDIA, visible_devices="1,11"), "an NVIDIA GPU is present"),
    "a CPU build on Windows": ((), System(platform="win32", machine="AMD64", **NVIDIA), "an NVIDIA GPU is present"),
    "a driver that is too old": ((), linux(**BUILT), "an NVIDIA driver is present and llama.cpp"),
    "a card beside which only graphics are seen": ((GRAPHICS,), linux(**BUILT), "an NVIDIA driver is present"),
    "cards that are hidden": ((), linux(**BUILT, visible_devices=""), "CUDA_VISIBLE_DEVICES is ''"),
    "cards that are hidden by a blank": ((), linux(**BUILT, visible_devices=" "), "CUDA_VISIBLE_DEVICES is ' '"),
    "cards that are hidden by -1": ((), linux(**BUILT, visible_devices="-1"), "CUDA_VISIBLE_DEVICES is '-1'"),
    "cards of which the first is none": ((), linux(**BUILT, visible_devices="-1,0"), "CUDA_VISIBLE_DEVICES is '-1,0'"),
    "hidden cards and a CPU build": ((), linux(**NVIDIA, visible_devices="-1"), "CUDA_VISIBLE_DEVICES is '-1'"),
    "a chosen card that is not seen": ((), linux(**BUILT, visible_devices="0"), "an NVIDIA driver is present"),
    "another chosen card that is not seen": (
        (), linux(**BUILT, visible_devices="1"), ("an NVIDIA driver is present", "CUDA_VISIBLE_DEVICES is '1'"),
    ),
    "a hidden card that nobody has": ((), linux(visible_devices=""), ""),
    "a CPU build beside an AMD card": ((), linux(has_amd=True), "an AMD GPU is present"),
    "AMD and NVIDIA, neither used": ((), linux(has_amd=True, **NVIDIA), "an NVIDIA GPU is present"),
    "a CPU build on Apple Silicon": ((), mac(can_offload=False), "Apple Silicon's GPU is present"),
    "Rosetta": ((), mac(machine="x86_64", is_translated=True, can_offload=False), "this Python is an x86-64 build"),
    "Rosetta with a device": ((METAL,), mac(machine="x86_64", is_translated=True), "this Python is an x86-64 build"),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_wrong_with_a_machine(name):
    """Each machine has at most one problem with its GPU, the one that explains the others, and something to type."""
    devices, system, words = MACHINES[name]
    findings = diagnose(hardware(*devices), system)
    problems = [finding for finding in findings if finding.is_problem]
    assert len(problems) == bool(words)
    assert all(finding.what.startswith(words) for finding in problems)
    assert all(finding.fix for finding in problems)


@pytest.mark.parametrize(
    ("name", "backend"),
    [("a CPU build beside a card", "CUDA"), ("a CPU build beside an AMD card", "VULKAN"),
     ("a CPU build on Apple Silicon", "METAL")],
)  # fmt: skip
def test_the_build_that_mends_it(name, backend):
    """A build that lacks the GPU is told how to get one, in a line that a shell takes."""
    devices, system, _ = MACHINES[name]
    [finding] = diagnose(hardware(*devices), system)
    assert finding.fix.startswith(f'CMAKE_ARGS="-DGGML_{backend}=on" pip install ')
    assert '"llama-cpp-python>=0.3.36"' in finding.fix  # quoted, or a shell would write to a file "=0.3.36"


def test_a_build_for_gpus_is_not_called_cpu_only():
    """A build that can use some GPU, and not the AMD card that is there, is not said to have none."""
    for finding in diagnose(hardware(), linux(has_amd=True, can_offload=True)):
        assert "CPU-only" not in finding.what


def test_graphics_inside_the_processor_are_a_note():
    """They are used when asked for; that is worth a word and no problem."""
    [finding] = diagnose(hardware(GRAPHICS), linux())
    assert (finding.is_problem, finding.fix) == (False, "")
    assert "--device gpu" in finding.what


@pytest.mark.parametrize("limited_by", ["cgroup", "RLIMIT_AS"])
def test_memory_that_is_held_to_less_is_a_note(limited_by):
    """What holds it is named."""
    [finding] = diagnose(hardware(limited_by=limited_by), linux())
    assert not finding.is_problem
    assert finding.what.endswith(f"by {limited_by}")


def test_problems_come_first():
    """Notes follow them."""
    findings = diagnose(hardware(limited_by="cgroup"), linux(**NVIDIA))
    assert [finding.is_problem for finding in findings] == [True, False]
    assert diagnose(hardware(), linux()) == ()


def test_this_machine_is_probed():
    """The system's own facts, and what CUDA was told."""
    system = probe_system("0,1")
    assert (system.platform, system.visible_devices) == (sys.platform, "0,1")
    assert system.machine
    assert probe_system().visible_devices is None
    assert isinstance(system.can_offload, bool)


@pytest.mark.parametrize("sign", ["nvidia", "wsl", "tool", "none"])
def test_an_nvidia_driver_is_seen_by_its_traces(tmp_path, monkeypatch, sign):
    """By /proc, by WSL's library, or by nvidia-smi on the path; without any there is none."""
    signs = {name: tmp_path / name for name in ("nvidia", "wsl")}
    monkeypatch.setattr(diagnosis, "_NVIDIA_SIGNS", tuple(map(str, signs.values())))
    monkeypatch.setattr(diagnosis, "_AMD_SIGNS", (str(tmp_path / "kfd"),))
    monkeypatch.setattr(diagnosis.shutil, "which", lambda name: name if sign == "tool" else None)
    if sign in signs:
        signs[sign].touch()
    assert probe_system().has_nvidia is (sign != "none")
    assert probe_system().has_amd is False
    (tmp_path / "kfd").touch()
    assert probe_system().has_amd is True


@pytest.mark.parametrize(
    ("platform", "machine", "answer", "expected"),
    [
        ("darwin", "x86_64", "1\n", True),
        ("darwin", "x86_64", "0\n", False),
        ("darwin", "x86_64", "", False),
        ("darwin", "x86_64", None, False),
        ("darwin", "arm64", "1\n", False),
        ("linux", "x86_64", "1\n", False),
    ],
)
def test_rosetta_is_asked_of_the_system(monkeypatch, platform, machine, answer, expected):
    """Only an x86-64 Python on a Mac asks; a system that does not answer, or has no such program, is not translated."""

    def run(command, **_):
        assert command[-1] == "sysctl.proc_translated"
        if answer is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, stdout=answer)

    monkeypatch.setattr(diagnosis.sys, "platform", platform)
    monkeypatch.setattr(diagnosis.platform, "machine", lambda: machine)
    monkeypatch.setattr(diagnosis.subprocess, "run", run)
    assert diagnosis._is_translated() is expected


def test_a_finding_is_a_note_unless_it_is_said():
    """The least that a finding says."""
    assert Finding(what="so") == Finding(what="so", fix="", is_problem=False)
