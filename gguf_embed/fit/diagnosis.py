"""What is wrong with this machine for running models, and what mends it.

`probe_system` asks the system, `diagnose` is pure. It must not know models.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gguf_embed.fit.hardware import Hardware
from gguf_embed.native.backend import backend

__all__ = ["Finding", "System", "diagnose", "driver_stamp", "probe_system"]

# Where a driver shows itself, whether or not llama.cpp was built for it.
_NVIDIA_SIGNS = ("/proc/driver/nvidia/version", "/usr/lib/wsl/lib/libcuda.so.1", "C:/Windows/System32/nvcuda.dll")
_AMD_SIGNS = ("/dev/kfd",)
_SYSCTL_TIMEOUT_S = 5.0


def driver_stamp() -> str:
    """Tell apart what lies between llama.cpp and a device: the system's release, and NVIDIA's driver where it shows."""
    words = [platform.platform()]
    with contextlib.suppress(OSError):
        words.append(Path(_NVIDIA_SIGNS[0]).read_text(encoding="utf-8").split("\n", 1)[0])
    return "; ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What is known of the machine beside llama.cpp's own devices.

    Attributes:
        platform: sys.platform.
        machine: the processor's architecture that this Python was built for.
        is_translated: an x86-64 Python that runs on Apple Silicon through Rosetta.
        has_nvidia: an NVIDIA driver is installed.
        has_amd: an AMD compute driver is installed.
        can_offload: llama.cpp was built for some GPU.
        visible_devices: CUDA_VISIBLE_DEVICES, None where it is not set.
    """

    platform: str
    machine: str
    is_translated: bool = False
    has_nvidia: bool = False
    has_amd: bool = False
    can_offload: bool = False
    visible_devices: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing worth knowing.

    Attributes:
        what: what is so.
        fix: what to type, "" where nothing needs mending.
        is_problem: a GPU is there and is not used, or nothing runs.
    """

    what: str
    fix: str = ""
    is_problem: bool = False


_ROSETTA = Finding(
    what="this Python is an x86-64 build that Rosetta translates; llama.cpp runs slowly and without Metal",
    fix="install an arm64 Python (python.org's universal2, Homebrew's in /opt/homebrew) and gguf-embed in it",
    is_problem=True,
)
_NO_CUDA_DEVICE = Finding(
    what="an NVIDIA driver is present and llama.cpp, built for GPUs, sees none",
    fix="look at nvidia-smi; the driver may be older than the CUDA that llama-cpp-python was built with",
    is_problem=True,
)
_NO_AMD_DEVICE = Finding(
    what="an AMD compute driver is present and llama.cpp, built for GPUs, sees none",
    fix="look at rocminfo or vulkaninfo; this user may lack the groups render and video",
    is_problem=True,
)


def probe_system(visible_devices: str | None = None) -> System:
    """Ask the system.

    Args:
        visible_devices: CUDA_VISIBLE_DEVICES as configured.

    Raises:
        BackendError: llama-cpp-python cannot be loaded.
    """
    return System(
        platform=sys.platform,
        machine=platform.machine(),
        is_translated=_is_translated(),
        has_nvidia=shutil.which("nvidia-smi") is not None or any(Path(sign).exists() for sign in _NVIDIA_SIGNS),
        has_amd=any(Path(sign).exists() for sign in _AMD_SIGNS),
        can_offload=bool(backend().llama_supports_gpu_offload()),
        visible_devices=visible_devices,
    )


def _is_translated() -> bool:
    """Whether Rosetta runs this process. Source: Apple, "About the Rosetta translation environment"."""
    if sys.platform != "darwin" or platform.machine() != "x86_64":
        return False
    try:
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "sysctl.proc_translated"],
            capture_output=True, text=True, timeout=_SYSCTL_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return False
    return answer.stdout.strip() == "1"


def diagnose(hardware: Hardware, system: System) -> tuple[Finding, ...]:
    """Say what keeps this machine from its best.

    Args:
        hardware: as llama.cpp sees it.
        system: as the system has it.

    Returns:
        Problems first.
    """
    findings = [*_gpu_findings(hardware, system), *_memory_findings(hardware)]
    return tuple(sorted(findings, key=lambda finding: not finding.is_problem))


def _gpu_findings(hardware: Hardware, system: System) -> list[Finding]:
    """The first that is so: each would only repeat the ones before."""
    kinds = {one.kind for one in hardware.accelerators}
    visible = system.visible_devices
    lacks_nvidia = system.has_nvidia and "discrete" not in kinds
    rules = (
        (system.is_translated, _ROSETTA),
        (system.platform == "darwin" and "unified" not in kinds and system.machine == "arm64",
         _unused("Apple Silicon's GPU", "METAL")),
        (lacks_nvidia and visible is not None and visible.split(",")[0].strip() in ("", "-1"),
         Finding(what=f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides every NVIDIA GPU",
                 fix="unset CUDA_VISIBLE_DEVICES", is_problem=True)),
        (lacks_nvidia and system.can_offload, _NO_CUDA_DEVICE),
        (lacks_nvidia, _unused("an NVIDIA GPU", "CUDA")),
        (system.has_amd and not kinds and not system.can_offload, _unused("an AMD GPU", "VULKAN")),
        (system.has_amd and not kinds, _NO_AMD_DEVICE),
        (kinds == {"integrated"},
         Finding(what="the graphics unit inside the processor is used only when asked for: --device gpu")),
    )  # fmt: skip
    return [finding for is_so, finding in rules if is_so][:1]


def _unused(gpu: str, backend_name: str) -> Finding:
    return Finding(
        what=f"{gpu} is present, but this llama-cpp-python is CPU-only",
        fix=f'CMAKE_ARGS="-DGGML_{backend_name}=on" pip install --no-cache-dir --force-reinstall '
        '--no-binary=llama-cpp-python "llama-cpp-python>=0.3.36"',
        is_problem=True,
    )


def _memory_findings(hardware: Hardware) -> list[Finding]:
    if not hardware.ram_limited_by:
        return []
    return [Finding(what=f"memory is held to less than the machine has by {hardware.ram_limited_by}")]
