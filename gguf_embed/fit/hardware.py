"""What this machine is: devices, their memory, host RAM and cores.

It decides nothing; the planner does, over the frozen Hardware that `probe` returns.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

from gguf_embed.fit.host import probe_host
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
        kind: "discrete" (memory of its own), "unified" (Apple Silicon: the host's memory) or "integrated" (a graphics
            unit inside the processor, with the host's memory; never picked unasked).
    """

    name: str
    description: str
    total_bytes: int
    free_bytes: int
    kind: str = "discrete"

    def __post_init__(self) -> None:
        if self.kind not in ("discrete", "unified", "integrated"):
            raise ValueError(f"kind is {self.kind!r}; it is discrete, unified or integrated")

    @property
    def is_unified(self) -> bool:
        """Whether its memory is the host's."""
        return self.kind != "discrete"

    @property
    def is_integrated(self) -> bool:
        """Whether it is a graphics unit inside the processor."""
        return self.kind == "integrated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One machine.

    Attributes:
        accelerators: in ggml's order, without the CPU.
        ram_total_bytes: host memory, or what a container allows of it.
        ram_available_bytes: what this process can still have without swapping.
        ram_limited_by: "" for the machine itself, "cgroup" or "RLIMIT_AS" where that holds it to less.
        n_cores: physical cores this process may use.
        processor: the CPU's name.
        description: for people.
    """

    accelerators: tuple[Accelerator, ...]
    ram_total_bytes: int
    ram_available_bytes: int
    n_cores: int
    ram_limited_by: str = ""
    processor: str = ""
    description: str = "this machine"

    @property
    def fingerprint(self) -> str:
        """What tells machines apart that llama.cpp treats alike: the devices and the processor, not what is free."""
        devices = [f"{one.name} {one.description} {one.total_bytes}" for one in self.accelerators]
        return "; ".join([*devices, self.processor])


def probe() -> Hardware:
    """Ask llama.cpp for its devices and the system for its memory, now."""
    devices = ggml.probe_devices()  # first: it loads llama.cpp's libraries, whose memory is then no longer free
    n_cores = _usable_cores()
    memory = probe_host(n_threads=n_cores)
    accelerators = tuple(
        Accelerator(
            name=device.name,
            description=device.description,
            total_bytes=device.total_bytes,
            free_bytes=device.free_bytes,
            kind=_kind(device),
        )
        for device in devices
        if device.kind in ("gpu", "igpu") and device.total_bytes > 0
    )
    processor = next((device.description for device in devices if device.kind == "cpu"), "CPU")
    return Hardware(
        accelerators=accelerators,
        ram_total_bytes=memory.total_bytes,
        ram_available_bytes=memory.available_bytes,
        ram_limited_by=memory.limited_by,
        n_cores=n_cores,
        processor=processor,
        description=", ".join(one.description for one in accelerators) or processor,
    )


def _kind(device: ggml.Device) -> str:
    if device.backend in _UNIFIED_BACKENDS:
        return "unified"
    return "integrated" if device.kind == "igpu" else "discrete"


def _usable_cores() -> int:
    """Physical cores, or fewer where the process is held to fewer."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, min(physical, len(affinity(0)) if affinity else physical))
