"""Where a model could run on one machine, and how much room there is.

It must not know quantizations or layouts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from gguf_embed.errors import DoesNotFitError
from gguf_embed.fit.hardware import Accelerator, Hardware
from gguf_embed.fit.plan import Limits

__all__ = ["MARGIN_DEVICE", "MARGIN_HOST", "MARGIN_LIMITED", "MARGIN_UNIFIED", "Place", "find_places"]

# What a plan leaves alone: a driver's own buffers and the desktop on a GPU, everything else on the host.
MARGIN_DEVICE = 256 << 20  # 256 MiB
MARGIN_HOST = 512 << 20  # 512 MiB
# Where a container or a limit of its own holds a process to less, nothing else lives on what is left.
MARGIN_LIMITED = 64 << 20  # 64 MiB
# What macOS and its programs need on a machine whose GPU shares their memory.
MARGIN_UNIFIED = 3 << 30  # 3 GiB
# PyTorch's names for ggml's devices.
_TORCH_NAMES = {
    "cuda": "CUDA",
    "mps": "MTL",
    "metal": "MTL",
    "rocm": "ROCm",
    "hip": "ROCm",
    "musa": "MUSA",
    "xpu": "SYCL",
    "vulkan": "Vulkan",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Somewhere to run.

    Attributes:
        placement: "gpu", "split", "partial" or "cpu".
        accelerators: one, several for "split", none for "cpu".
        budgets: bytes that each of them may be filled with; the host's for "cpu".
        free_bytes: what is free there, margins not taken off.
        host_budget_bytes: bytes of host memory beside them.
        limit_bytes: most that all accelerators together may be filled with; None for their budgets.
        has_tiled_matmul: as the hardware's.
        n_cores: as the hardware's.
    """

    placement: str
    accelerators: tuple[Accelerator, ...]
    budgets: tuple[int, ...]
    free_bytes: int
    host_budget_bytes: int
    limit_bytes: int | None = None
    has_tiled_matmul: bool = False
    n_cores: int = 1

    @property
    def is_unified(self) -> bool:
        """Whether device and host memory are one."""
        return any(one.is_unified for one in self.accelerators)

    @property
    def budget_bytes(self) -> int:
        """All budgets together, within the limit."""
        return sum(self.budgets) if self.limit_bytes is None else min(sum(self.budgets), self.limit_bytes)

    @property
    def name(self) -> str:
        """For people."""
        return " and ".join(one.name for one in self.accelerators) or "host memory"


def find_places(hardware: Hardware, limits: Limits, margins: Mapping[str, int] | None = None) -> list[list[Place]]:
    """List where to try, best first; the places of one stage are tried in turn for each quantization.

    Args:
        hardware: the machine.
        limits: memory and device that the user allows.
        margins: bytes to leave alone by device name ("host" for the CPU), where a load has failed before.

    Returns:
        Stages: whole on devices, part of it there, the CPU.

    Raises:
        DoesNotFitError: a device is asked for and there is none.
        ValueError: no device answers to that name.
    """
    margins = margins or {}
    wanted = (limits.device or "auto").lower()
    free_host = hardware.ram_available_bytes
    margin_host = MARGIN_LIMITED if hardware.ram_limited_by else MARGIN_HOST
    host = max(0, free_host - max(margin_host, margins.get("host", 0)))
    devices = [] if wanted == "cpu" else _usable(hardware, wanted)
    budgets = {one.name: _budget(one, hardware, limits, margins) for one in devices}
    stages = []
    if devices:
        whole = [_place("gpu", (one,), budgets, host) for one in sorted(devices, key=lambda one: -budgets[one.name])]
        discrete = tuple(one for one in devices if not one.is_unified)
        if len(discrete) > 1:
            split = _place("split", discrete, budgets, host)
            whole.append(dataclasses.replace(split, limit_bytes=limits.memory_bytes))
        stages.append(whole)
        if discrete:
            largest = max(discrete, key=lambda one: budgets[one.name])
            stages.append([_place("partial", (largest,), budgets, host)])
    if wanted in ("auto", "cpu"):
        capped = host if limits.memory_bytes is None else min(host, limits.memory_bytes)
        cpu = Place(placement="cpu", accelerators=(), budgets=(capped,), free_bytes=free_host, host_budget_bytes=capped)
        stages.append([cpu])
    tiled, n_cores = hardware.has_tiled_matmul, hardware.n_cores
    return [[dataclasses.replace(one, has_tiled_matmul=tiled, n_cores=n_cores) for one in stage] for stage in stages]


def _place(placement: str, accelerators: tuple[Accelerator, ...], budgets: Mapping[str, int], host: int) -> Place:
    return Place(
        placement=placement,
        accelerators=accelerators,
        budgets=tuple(budgets[one.name] for one in accelerators),
        free_bytes=sum(one.free_bytes for one in accelerators),
        host_budget_bytes=host,
    )


def _budget(device: Accelerator, hardware: Hardware, limits: Limits, margins: Mapping[str, int]) -> int:
    free = device.free_bytes - max(MARGIN_DEVICE, margins.get(device.name, 0))
    if device.is_unified:
        free = min(free, hardware.ram_total_bytes - MARGIN_UNIFIED)
    return max(0, free if limits.memory_bytes is None else min(free, limits.memory_bytes))


def _usable(hardware: Hardware, wanted: str) -> list[Accelerator]:
    """Devices that `wanted` means; graphics inside the processor only when asked for."""
    outside = [one for one in hardware.accelerators if not one.is_integrated]
    if wanted == "auto":
        return outside
    found = (outside or list(hardware.accelerators)) if wanted == "gpu" else _named(hardware, wanted)
    if not found and (wanted == "gpu" or not hardware.accelerators):
        raise DoesNotFitError(
            f"device is {wanted}, and this build of llama.cpp sees none. gguf-embed doctor tells why and what to "
            "install; or run on the CPU: --device cpu.",
            required_bytes=0,
            available_bytes=0,
        )
    if not found:
        names = ", ".join(one.name for one in hardware.accelerators)
        raise ValueError(f"device is {wanted!r}; it is auto, gpu, cpu or one of {names}")
    return found


def _named(hardware: Hardware, wanted: str) -> list[Accelerator]:
    """The device of one name: ggml's in any case, or PyTorch's with or without a number."""
    torch = re.fullmatch(r"([a-z]+):?(\d*)", wanted)
    names = {wanted}
    if torch and torch[1] in _TORCH_NAMES:
        names.add(f"{_TORCH_NAMES[torch[1]]}{torch[2] or 0}".lower())
    return [one for one in hardware.accelerators if one.name.lower() in names]
