"""The values of planning: what could be had, what is allowed, what was chosen and what was not, and why.

It must not know how a choice is made.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from gguf_embed.config import DEVICE_NAME, MAX_THREADS, Config
from gguf_embed.fit.memory import MemoryCost
from gguf_embed.models.header import ModelFacts
from gguf_embed.native.layout import Layout

__all__ = ["Candidate", "Limits", "Plan", "Rejection"]

_KV_TYPES = ("f16", "q8_0")


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
        memory_bytes: most memory of the devices, or of the host on a CPU, that the plan may use; None for what is free.
        device: "auto", "gpu", "cpu", or one device by ggml's or PyTorch's name ("CUDA1", "cuda:1", "mps"); None for the
            configured one.
        n_ctx: longest text in tokens; None for as long as model and memory allow.
        n_threads: CPU threads; None for the physical cores.
        kv_type: "f16" or "q8_0"; None for f16, and q8_0 where only that makes room for n_ctx.
        skips_head: stop before the vocabulary projection; None where a load-time check says that it may, True for an
            error where it may not, False for the ordinary path.
        flash_attn: have it where llama.cpp can; a load-time check turns it off where it gives other vectors.
    """

    memory_bytes: int | None = None
    device: str | None = None
    n_ctx: int | None = None
    n_threads: int | None = None
    kv_type: str | None = None
    skips_head: bool | None = None
    flash_attn: bool = True

    def __post_init__(self) -> None:
        if self.device is not None and not DEVICE_NAME.fullmatch(self.device):
            raise ValueError(f"device is {self.device!r}; it is auto, gpu, cpu or a name such as CUDA0 or cuda:1")
        if self.kv_type not in (None, *_KV_TYPES):
            raise ValueError(f"kv_type is {self.kv_type!r}; it is one of {', '.join(_KV_TYPES)}")
        if self.kv_type == "q8_0" and not self.flash_attn:
            raise ValueError(
                "kv_type is q8_0, which llama.cpp reads with flash attention alone, and flash_attn is False"
            )
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
        placement: "gpu" (whole), "split" (whole, over several devices), "partial" or "cpu".
        device_description: for people.
        is_unified: device and host share their memory.
        layout: where the layers go, and how large the context is to begin with.
        n_ctx_max: longest text; the memory for it was free when this plan was made.
        n_batch: tokens packed into one decode.
        n_threads: CPU threads.
        cost: bytes by part at layout.n_ctx.
        required_bytes: what of the cost counts against available_bytes.
        available_bytes: what limits and margin leave on the devices, or on the host for "cpu".
        free_bytes: what was free there.
        margin_bytes: what is left alone of it.
        must_skip_head: an error where the head cannot be skipped, as the user wants it.
        rejected: every other quantization, best first.
        reason: a sentence for people.
    """

    model_id: str
    quant: str
    facts: ModelFacts
    placement: str
    device_description: str
    is_unified: bool
    layout: Layout
    n_ctx_max: int
    n_batch: int
    n_threads: int
    cost: MemoryCost
    required_bytes: int
    available_bytes: int
    free_bytes: int
    margin_bytes: int
    must_skip_head: bool
    rejected: tuple[Rejection, ...]
    reason: str

    @property
    def device(self) -> str | None:
        """Ggml's names of the devices, joined by +; None on the CPU."""
        return "+".join(self.layout.devices) or None

    @property
    def n_layers_on_device(self) -> int:
        """Layers that are not on the host, the output not counted."""
        return max(0, min(self.layout.n_gpu_layers, self.facts.n_layer + 1) - 1)
