"""What this machine is: devices, their memory, host RAM and cores.

It decides nothing; the planner does, over the frozen Hardware that `probe` returns.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

from gguf_embed.native import ggml

__all__ = ["Accelerator", "Hardware", "probe"]

# ggml's name of the backend whose devices live in the host's memory.
_UNIFIED_BACKENDS = ("MTL", "Metal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """A device that layers can be offloaded to.

    Attributes:
        name: ggml's, such as "CUDA0".
        description: the product's name.
        total_bytes: its memory; on Apple Silicon, Metal's recommended working set.
        free_bytes: free now.
        is_unified: its memory is the host's.
        is_integrated: a graphics unit inside the processor, never picked unasked.
    """

    name: str
    description: str
    total_bytes: int
    free_bytes: int
    is_unified: bool = False
    is_integrated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One machine.

    Attributes:
        accelerators: in ggml's order, without the CPU.
        ram_total_bytes: host memory.
        ram_available_bytes: what new programs can have without swapping.
        n_cores: physical cores this process may use.
        description: for people.
    """

    accelerators: tuple[Accelerator, ...]
    ram_total_bytes: int
    ram_available_bytes: int
    n_cores: int
    description: str = "this machine"


def probe() -> Hardware:
    """Ask llama.cpp for its devices and the system for its memory, now."""
    memory = psutil.virtual_memory()
    accelerators = []
    processor = ""
    for device in ggml.probe_devices():
        if device.kind == "cpu":
            processor = device.description
        elif device.kind in ("gpu", "igpu") and device.total_bytes > 0:
            accelerators.append(
                Accelerator(
                    name=device.name,
                    description=device.description,
                    total_bytes=device.total_bytes,
                    free_bytes=device.free_bytes,
                    is_unified=device.kind == "igpu" or device.backend in _UNIFIED_BACKENDS,
                    is_integrated=device.kind == "igpu",
                )
            )
    names = [accelerator.description for accelerator in accelerators] or [processor or "CPU"]
    return Hardware(
        accelerators=tuple(accelerators),
        ram_total_bytes=memory.total,
        ram_available_bytes=memory.available,
        n_cores=_usable_cores(),
        description=", ".join(names),
    )


def _usable_cores() -> int:
    """Physical cores, or fewer where the process is held to fewer."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, min(physical, len(affinity(0)) if affinity else physical))
