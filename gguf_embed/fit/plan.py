"""The values of planning: what could be had, what is allowed, what was chosen and what was not, and why.

It must not know how a choice is made.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from gguf_embed.config import MAX_THREADS, Config
from gguf_embed.fit.memory import MemoryCost
from gguf_embed.models.header import ModelFacts

__all__ = ["Candidate", "Limits", "Plan", "Rejection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A quantization that could be had.

    Attributes:
        quant: Q4_K_M, ...
        facts: of its file.
    """

    quant: str
    facts: ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the user allows.

    Attributes:
        memory_bytes: most memory, device or host, that the plan may use; None for what is free.
        device: "auto", "gpu" or "cpu"; None for the configured one.
        n_ctx: longest text in tokens; None for as long as model and memory allow.
        n_threads: CPU threads; None for the physical cores.
    """

    memory_bytes: int | None = None
    device: str | None = None
    n_ctx: int | None = None
    n_threads: int | None = None

    def __post_init__(self) -> None:
        if self.device not in (None, "auto", "gpu", "cpu"):
            raise ValueError(f"device is {self.device!r}; it is auto, gpu or cpu")
        for name in ("memory_bytes", "n_ctx", "n_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it is at least 1")
        if self.n_threads is not None and self.n_threads > MAX_THREADS:
            raise ValueError(f"n_threads is {self.n_threads}; it is 1 to {MAX_THREADS}")

    def over(self, config: Config) -> Limits:
        """Fill what is not given from the user's configuration."""
        return dataclasses.replace(
            self,
            memory_bytes=self.memory_bytes or config.memory_bytes,
            device=self.device or config.device,
            n_threads=self.n_threads or config.n_threads,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A quantization that was not chosen, and why.

    Attributes:
        quant: Q4_K_M, ...
        reason: a sentence for people.
        is_better: it comes before the chosen one in the ladder.
        required_bytes: what it needs where it was tried.
        shortfall_bytes: how much is missing, 0 where it would have fitted.
    """

    quant: str
    reason: str
    is_better: bool
    required_bytes: int
    shortfall_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What runs, where, at what cost, and why not something else.

    Attributes:
        model_id: what the user asked for.
        quant: the chosen quantization.
        facts: of its file.
        placement: "gpu" (whole), "partial" or "cpu".
        device: ggml's name of the accelerator, None on the CPU.
        device_description: for people.
        is_unified: device and host share their memory.
        n_gpu_layers: layers on the device, n_layer + 1 for all and the output.
        n_ctx: tokens in flight to begin with.
        n_ctx_max: longest text; the memory for it was free when this plan was made.
        n_batch: tokens packed into one decode.
        n_ubatch: most tokens of one decode.
        n_seq_max: most texts of one decode.
        n_threads: CPU threads.
        load_mode: "mmap", or "none" where a repacked copy would stand beside the map.
        cost: bytes by part at n_ctx.
        required_bytes: what of the cost counts against available_bytes.
        available_bytes: what limits and margin leave on the device, or on the host for "cpu".
        rejected: every other quantization, best first.
        reason: a sentence for people.
    """

    model_id: str
    quant: str
    facts: ModelFacts
    placement: str
    device: str | None
    device_description: str
    is_unified: bool
    n_gpu_layers: int
    n_ctx: int
    n_ctx_max: int
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    n_threads: int
    load_mode: str
    cost: MemoryCost
    required_bytes: int
    available_bytes: int
    rejected: tuple[Rejection, ...]
    reason: str
