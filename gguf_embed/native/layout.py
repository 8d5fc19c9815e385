"""Layout: where a model's layers go and how large its context is, in llama.cpp's own knobs.

It must not know machines, memory sizes or how a layout is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FLASH_ATTN_TYPES", "KV_TYPES", "LOAD_MODES", "Layout"]

# Source: include/llama.h, enum llama_load_mode; ggml/include/ggml.h, enum ggml_type.
LOAD_MODES = {"none": 0, "mmap": 1}
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
# Source: include/llama.h, enum llama_flash_attn_type.
FLASH_ATTN_TYPES = {"auto": -1, "off": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How one file is laid out in memory and run.

    Attributes:
        n_ctx: KV cells, shared by all texts of a decode.
        n_ubatch: most tokens of one decode; n_batch is the same.
        n_seq_max: most texts of one decode, 1 <= n_seq_max <= n_ubatch <= n_ctx, and a divisor of n_ubatch.
        n_gpu_layers: layers on the devices, counted from the last one; n_layer + 1 for all. The output is always one
            of them: llama.cpp 0c1e57098 gives it a device before any layer (src/llama-model.cpp, i_gpu_start).
        devices: ggml's names, none for the CPU.
        tensor_split: layers of n_gpu_layers for each of several devices; () for one.
        is_output_on_host: keep the vocabulary projection off the device all the same.
        kv_type: a key of KV_TYPES.
        flash_attn: a key of FLASH_ATTN_TYPES; "auto" has it where llama.cpp can.
        skips_head: stop before the vocabulary projection (last-token models).
        use_extra_bufts: let llama.cpp reorder weights on the host for other kernels (its --repack).
        n_contexts: contexts side by side: one with all threads for what comes alone, the others with a share each for
            many texts (encoders on the CPU).
        load_mode: "mmap", or "none" to read the weights so that they are not held twice beside a repacked copy.
    """

    n_ctx: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 64
    n_gpu_layers: int = 0
    devices: tuple[str, ...] = ()
    tensor_split: tuple[int, ...] = ()
    is_output_on_host: bool = False
    kv_type: str = "f16"
    flash_attn: str = "auto"
    skips_head: bool = False
    use_extra_bufts: bool = True
    n_contexts: int = 1
    load_mode: str = "none"

    @property
    def n_side(self) -> int:
        """Batches that are decoded side by side."""
        return max(1, self.n_contexts - 1)

    def __post_init__(self) -> None:
        if not 1 <= self.n_seq_max <= self.n_ubatch <= self.n_ctx:
            raise ValueError(
                f"1 <= n_seq_max {self.n_seq_max} <= n_ubatch {self.n_ubatch} <= n_ctx {self.n_ctx} does not hold"
            )
        if self.n_contexts < 1:
            raise ValueError(f"n_contexts is {self.n_contexts}; it is at least 1")
        if self.kv_type not in KV_TYPES:
            raise ValueError(f"kv_type is {self.kv_type!r}; it is one of {', '.join(KV_TYPES)}")
        if self.flash_attn not in FLASH_ATTN_TYPES:
            raise ValueError(f"flash_attn is {self.flash_attn!r}; it is one of {', '.join(FLASH_ATTN_TYPES)}")
        if self.load_mode not in LOAD_MODES:
            raise ValueError(f"load_mode is {self.load_mode!r}; it is one of {', '.join(LOAD_MODES)}")
        if self.n_gpu_layers < 0 or bool(self.n_gpu_layers) != bool(self.devices):
            raise ValueError(f"n_gpu_layers is {self.n_gpu_layers} on {len(self.devices)} devices")
        if self.tensor_split and (
            len(self.tensor_split) != len(self.devices) or sum(self.tensor_split) != self.n_gpu_layers
        ):
            raise ValueError(f"tensor_split {self.tensor_split} does not share out {self.n_gpu_layers} layers")
