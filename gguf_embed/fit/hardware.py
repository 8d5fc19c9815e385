"""What this machine is: devices, their memory, host RAM and cores.

It decides nothing; the planner does, over the frozen Hardware that `probe` returns.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf_embed.fit.cores import usable_cores
from gguf_embed.fit.host import probe_host
from gguf_embed.native import ggml
from gguf_embed.native.backend import cpu_features

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
        has_tiled_matmul: llama.cpp multiplies K-quants on this CPU in tiles, which it does only where they lie as in
            the file.
        description: for people.
    """

    accelerators: tuple[Accelerator, ...]
    ram_total_bytes: int
    ram_available_bytes: int
    n_cores: int
    ram_limited_by: str = ""
    processor: str = ""
    has_tiled_matmul: bool = False
    description: str = "this machine"

    @property
    def fingerprint(self) -> str:
        """What tells machines apart that llama.cpp treats alike: the devices and the processor, not what is free."""
        devices = [f"{one.name} {one.description} {one.total_bytes}" for one in self.accelerators]
        return "; ".join([*devices, self.processor])


def probe() -> Hardware:
    """Ask llama.cpp for its devices and the system for its memory, now."""
    devices = ggml.probe_devices()  # first: it loads llama.cpp's libraries, whose memory is then no longer free
    n_cores = usable_cores()
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
        has_tiled_matmul=_has_tiled_matmul(cpu_features()),
        description=", ".join(one.description for one in accelerators) or processor,
    )


def _has_tiled_matmul(features: frozenset[str]) -> bool:
    """x86 from AVX on; AMX has kernels of its own for reordered weights, and those are faster still.

    Source: ggml/src/ggml-cpu/tiled/tiled.cpp, ggml_tiled_supported; ggml/src/ggml-cpu/amx.
    """
    return "AVX" in features and "AMX_INT8" not in features


def _kind(device: ggml.Device) -> str:
    if device.backend in _UNIFIED_BACKENDS:
        return "unified"
    return "integrated" if device.kind == "igpu" else "discrete"
