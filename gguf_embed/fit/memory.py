"""Bytes that a file needs in a layout: weights from its tensor table, KV by formula, buffers measured or estimated.

It must not know machines or choices; tests hold its sums against llama.cpp's own numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from gguf_embed.fit.graph import compute_bytes
from gguf_embed.models.header import ModelFacts
from gguf_embed.native.layout import Layout

__all__ = ["BufferSizes", "Measurements", "MemoryCost", "Usage", "memory_cost"]

# llama.cpp rounds a KV cache up to whole multiples of this many cells.
_KV_STEP = 256
# Bytes of a KV component: F16, and Q8_0's 34 bytes for 32.
_KV_BYTES = {"f16": (2, 1), "q8_0": (34, 32)}
# Python, numpy and llama.cpp's libraries; then the vocabulary: 210 bytes a token, and 120 more for byte-pair merges.
# Source: resident memory of a process that loads llama.cpp's ggml-vocab-qwen2 and -bert-bge, Linux, 2026-11-21.
_PROCESS_BYTES = 45 << 20  # 45 MiB
_TOKEN_BYTES, _MERGE_BYTES = 210, 120
# Each further context: its graph's nodes and its thread's work buffers, which llama.cpp does not count as buffers.
# Source: peak of 2,000 sentences with all-MiniLM-L6-v2, one context against three, less their buffers, 2026-11-21.
_CONTEXT_BYTES = 12 << 20  # 12 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes in one memory.

    Attributes:
        weights_bytes: tensors.
        kv_bytes: KV cache.
        compute_bytes: compute buffer.
        output_bytes: logits and embeddings that llama.cpp copies out; host only.
        process_bytes: the program itself and the vocabulary; host only.
    """

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    output_bytes: int = 0
    process_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.output_bytes + self.process_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCost:
    """Bytes by memory and part.

    Attributes:
        devices: one for each of the layout's devices, in its order.
        host: host memory.
        is_measured: llama.cpp itself said how large the buffers are.
    """

    devices: tuple[Usage, ...]
    host: Usage
    is_measured: bool = False

    @property
    def device_bytes(self) -> int:
        """Everything on the devices."""
        return sum(usage.total_bytes for usage in self.devices)

    @property
    def host_bytes(self) -> int:
        """Everything in host memory."""
        return self.host.total_bytes

    @property
    def total_bytes(self) -> int:
        """Both together."""
        return self.device_bytes + self.host_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferSizes:
    """Buffers of one context, as llama.cpp says it would allocate them.

    Attributes:
        compute_bytes: compute buffer of each of the layout's devices.
        host_compute_bytes: compute buffer in host memory.
        host_output_bytes: output buffer.
    """

    compute_bytes: tuple[int, ...]
    host_compute_bytes: int
    host_output_bytes: int


def memory_cost(facts: ModelFacts, layout: Layout) -> MemoryCost:
    """Add up what llama.cpp will allocate, buffers in closed form.

    Args:
        facts: of the file.
        layout: how it is laid out; n_gpu_layers beyond n_layer + 1 count as that.

    Returns:
        The parts; no devices where the layout has none.
    """
    shares = _shares(facts, layout)
    kv_bytes = _kv_bytes_per_layer(facts, layout)
    devices = tuple(
        Usage(
            weights_bytes=sum(facts.layer_sizes[layer] for layer in layers) + output_bytes,
            kv_bytes=kv_bytes * len(layers),
        )
        for layers, output_bytes in shares
    )
    n_on_host = facts.n_layer - sum(len(layers) for layers, _ in shares)
    host = Usage(
        weights_bytes=facts.table_bytes
        + sum(facts.layer_sizes[:n_on_host])
        + (0 if facts.is_tied or any(output for _, output in shares) else facts.output_bytes),
        kv_bytes=kv_bytes * n_on_host,
        process_bytes=_PROCESS_BYTES
        + facts.n_vocab * (_TOKEN_BYTES + (_MERGE_BYTES if facts.is_decoder else 0))
        + _CONTEXT_BYTES * (layout.n_contexts - 1),
    )
    return _with_buffers(MemoryCost(devices=devices, host=host), layout, _closed_form(facts, layout, n_on_host))


def _shares(facts: ModelFacts, layout: Layout) -> list[tuple[range, int]]:
    """Layers of each device, and the bytes of the output where it is: the last device, unless it is kept off.

    Source: src/llama-model.cpp, load_tensors: n_gpu_layers counts the output and takes layers from the last one down.
    """
    if not layout.devices:
        return []
    n_active = min(layout.n_gpu_layers, facts.n_layer + 1)
    begin = facts.n_layer + 1 - n_active
    counts = layout.tensor_split or (n_active,)
    shares = []
    for index, count in enumerate(counts):
        is_last = index == len(counts) - 1
        output = facts.output_bytes if is_last and not layout.is_output_on_host else 0
        shares.append((range(begin, min(begin + count, facts.n_layer)), output))
        begin = min(begin + count, facts.n_layer)
    return shares


def _kv_bytes_per_layer(facts: ModelFacts, layout: Layout) -> int:
    times, over = _KV_BYTES[layout.kv_type]
    n_cells = -(-layout.n_ctx // _KV_STEP) * _KV_STEP
    return 2 * facts.n_head_kv * facts.head_dim * n_cells * times // over if facts.is_decoder else 0


def _closed_form(facts: ModelFacts, layout: Layout, n_on_host: int) -> BufferSizes:
    """Say how large the buffers are without asking llama.cpp."""
    n_rows = layout.n_seq_max if layout.skips_head else layout.n_ubatch
    n_outputs = layout.n_seq_max if layout.skips_head or not facts.is_decoder else layout.n_ubatch
    graph = compute_bytes(
        facts,
        n_ctx=layout.n_ctx,
        n_ubatch=layout.n_ubatch,
        n_outputs=layout.n_seq_max,
        skips_head=layout.skips_head,
        kv_type=layout.kv_type,
        has_scores=layout.flash_attn == "off",
    )
    inputs = layout.n_ubatch * 4 * facts.n_embd
    logits = n_rows * 4 * facts.n_vocab if facts.is_decoder else 0
    on_device = graph
    if n_on_host:  # llama.cpp copies weights of host layers over, one tensor at a time; a third of a layer at most
        on_device += max(facts.layer_sizes) // 3
    on_host = graph if n_on_host else inputs + (logits if layout.is_output_on_host else 0)
    return BufferSizes(
        compute_bytes=(on_device,) * len(layout.devices),
        host_compute_bytes=on_host,
        host_output_bytes=n_outputs * 4 * (facts.n_vocab + (0 if layout.skips_head else facts.n_embd)),
    )


def _with_buffers(cost: MemoryCost, layout: Layout, sizes: BufferSizes, *, is_measured: bool = False) -> MemoryCost:
    """Put in the buffers of all the layout's contexts, given those of one."""
    devices = zip(cost.devices, sizes.compute_bytes, strict=True)
    return MemoryCost(
        devices=tuple(dataclasses.replace(usage, compute_bytes=size) for usage, size in devices),
        host=dataclasses.replace(
            cost.host,
            compute_bytes=sizes.host_compute_bytes * layout.n_contexts,
            output_bytes=sizes.host_output_bytes * layout.n_contexts,
        ),
        is_measured=is_measured,
    )


class Measurements:
    """What llama.cpp said of some layouts, and the closed form of the others, set right by what it said.

    Args:
        points: buffer sizes by quantization and layout.
    """

    def __init__(self, points: Mapping[tuple[str, Layout], BufferSizes] | None = None) -> None:
        self._points = dict(points or {})

    def __contains__(self, key: tuple[str, Layout]) -> bool:
        return key in self._points

    def with_point(self, quant: str, layout: Layout, sizes: BufferSizes) -> Measurements:
        """Return these and one more."""
        return Measurements(self._points | {(quant, layout): sizes})

    def cost(self, quant: str, facts: ModelFacts, layout: Layout) -> MemoryCost:
        """Add up what a layout needs: measured, else in closed form plus the most that it was ever short by."""
        cost = memory_cost(facts, layout)
        if sizes := self._points.get((quant, layout)):
            return _with_buffers(cost, layout, sizes, is_measured=True)
        short = [
            _short(_with_buffers(memory_cost(facts, measured), measured, sizes), memory_cost(facts, measured))
            for (name, measured), sizes in self._points.items()
            if name == quant and _is_same_but_for_context(measured, layout)
        ]
        if not short:
            return cost
        devices = tuple(
            dataclasses.replace(usage, compute_bytes=max(0, usage.compute_bytes + max(by[index] for by, _ in short)))
            for index, usage in enumerate(cost.devices)
        )
        host_bytes = max(0, cost.host.compute_bytes + max(by for _, by in short))
        return MemoryCost(devices=devices, host=dataclasses.replace(cost.host, compute_bytes=host_bytes))


def _is_same_but_for_context(one: Layout, other: Layout) -> bool:
    names = (field.name for field in dataclasses.fields(Layout) if field.name != "n_ctx")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _short(measured: MemoryCost, closed: MemoryCost) -> tuple[tuple[int, ...], int]:
    """Bytes of compute buffer that the closed form has too few, on each device and in host memory."""
    pairs = zip(measured.devices, closed.devices, strict=True)
    by_device = tuple(one.compute_bytes - other.compute_bytes for one, other in pairs)
    return by_device, measured.host.compute_bytes - closed.host.compute_bytes
