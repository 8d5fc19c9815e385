"""The ways to lay one file out in one place, best first.

Pure. It must not know which of them fits.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator

from gguf_embed.fit.memory import memory_cost
from gguf_embed.fit.places import Place
from gguf_embed.fit.plan import Limits
from gguf_embed.models.header import ModelFacts
from gguf_embed.native.layout import Layout

__all__ = [
    "N_CTX_FLOOR",
    "N_CTX_WORKING",
    "can_split_texts",
    "layouts",
    "n_ctx_working",
    "whole_blocks",
    "whole_layout",
]

# Tokens in flight: what a plan has at least, and what the smallest quantization may go down to.
N_CTX_WORKING, N_CTX_FLOOR = 2048, 512
# Part of a model on a device leaves room there to grow to this: a longer text must not be refused for one more layer.
N_CTX_PARTIAL = 4096
N_UBATCH = 512
# Smaller decodes need smaller compute buffers; the last resorts before a smaller quantization.
_N_UBATCHES = (N_UBATCH, 256, 128)
N_SEQ_MAX = 64
# llama.cpp computes a projection that is kept on the host there only for fewer than 32 rows; for more it would copy
# the weights over after all. Source: ggml/src/ggml-cuda/ggml-cuda.cu, GGML_OP_OFFLOAD_MIN_BATCH.
_N_SEQ_MAX_OUTPUT_ON_HOST = 16


# Contexts of an encoder that decode side by side on a CPU, each with a share of the threads: its matrices are small,
# and threads that share one wait for each other. Source: MiniLM F16, 2 cores, 2026-11-21: 619 sentences a second with
# two contexts of one thread, 520 with one context of two.
_N_SIDE_MAX = 8


def can_split_texts(facts: ModelFacts) -> bool:
    """Only a causal model that pools its last token may take a text in several decodes."""
    return facts.is_causal and facts.pooling_type == "last"


def can_quantize_kv(facts: ModelFacts) -> bool:
    """Q8_0 takes keys and values in blocks of 32, of a model that keeps any."""
    return facts.is_decoder and facts.head_dim % 32 == 0


def _n_threads(place: Place, limits: Limits) -> int:
    return limits.n_threads or place.n_cores


def n_ctx_working(facts: ModelFacts, limits: Limits) -> int:
    """Tokens in flight that a plan for this model has at least."""
    return limits.n_ctx or min(N_CTX_WORKING if can_split_texts(facts) else N_UBATCH, facts.n_ctx_train)


def layouts(facts: ModelFacts, place: Place, limits: Limits, *, at_floor: bool = False) -> list[Layout]:
    """List layouts of a file in a place, best first.

    Args:
        facts: of the file.
        place: where.
        limits: what the user allows.
        at_floor: with the smallest context instead of the working one.

    Returns:
        None at all where there is no smaller context than the working one; where a part of the model is asked for,
        one for each number of layers that the place could hold.
    """
    n_ctx = n_ctx_working(facts, limits)
    if at_floor:
        if limits.n_ctx is not None or not can_split_texts(facts) or n_ctx <= N_CTX_FLOOR:
            return []
        n_ctx = N_CTX_FLOOR
    n_ctx = whole_blocks(n_ctx)
    skips_head = can_split_texts(facts) and limits.skips_head is not False
    flash_attn = "auto" if limits.flash_attn else "off"
    found = []
    for kv_type in _kv_types(facts, limits):
        sized = [
            dataclasses.replace(
                whole_layout(facts, place, n_ctx=n_ctx, n_ubatch=n_ubatch),
                kv_type=kv_type,
                skips_head=skips_head,
                flash_attn=flash_attn,
            )
            for n_ubatch in _n_ubatches(facts, n_ctx)
        ]
        if place.placement == "partial":
            found += list(_parts(facts, sized[0], limits))
            continue
        if place.placement == "cpu" and not facts.is_decoder and _n_threads(place, limits) > 1:
            n_contexts = 1 + min(_n_threads(place, limits), _N_SIDE_MAX)
            found += [dataclasses.replace(layout, n_contexts=n_contexts) for layout in sized]
        found += sized
        if skips_head and place.accelerators and not place.is_unified:
            found += [_without_output(layout) for layout in sized]
    return [shared for layout in found for shared in _shared_out(facts, place, layout)]


def whole_layout(facts: ModelFacts, place: Place, *, n_ctx: int = N_CTX_WORKING, n_ubatch: int = N_UBATCH) -> Layout:
    """Return the layout with all of a model in a place."""
    n_ubatch = min(n_ubatch, n_ctx)
    is_on_devices = place.placement in ("gpu", "split")
    is_tiled = not is_on_devices and place.has_tiled_matmul and _is_tiled(facts)
    return Layout(
        n_ctx=n_ctx,
        n_ubatch=n_ubatch,
        n_seq_max=_divisor(n_ubatch, N_SEQ_MAX),
        n_gpu_layers=facts.n_layer + 1 if place.accelerators else 0,
        devices=tuple(one.name for one in place.accelerators),
        skips_head=can_split_texts(facts),
        use_extra_bufts=not is_tiled,
        load_mode="mmap" if is_on_devices or is_tiled else "none",  # a reordered copy would stand beside the map
    )


def _is_tiled(facts: ModelFacts) -> bool:
    """Whether a file's weights are K-quants or i-quants, which are faster as they lie where they are taken in tiles.

    Source: scripts/bench-quants, 0.6B shape, 2 cores with AVX-512; llama-bench --repack 0,1 built for AVX2 alone.
    """
    return re.match(r"Q\d_K|IQ\d_(X|S|M)", facts.quant or "") is not None


def whole_blocks(n_ctx: int) -> int:
    """Round a context up to whole blocks of N_SEQ_MAX tokens, so that its decodes can hold that many texts."""
    return n_ctx if n_ctx <= N_SEQ_MAX else -(-n_ctx // N_SEQ_MAX) * N_SEQ_MAX


def _divisor(n_ubatch: int, most: int) -> int:
    """The largest divisor of n_ubatch that is at most this."""
    return next(n for n in range(min(most, n_ubatch), 0, -1) if n_ubatch % n == 0)


def _kv_types(facts: ModelFacts, limits: Limits) -> tuple[str, ...]:
    """Cache types to try: F16, and Q8_0 where the user's own n_ctx does not fit otherwise; blocks are of 32."""
    if limits.kv_type is not None:
        return (limits.kv_type if can_quantize_kv(facts) else "f16",)
    is_quantizable = can_quantize_kv(facts) and limits.flash_attn
    return ("f16", "q8_0") if is_quantizable and limits.n_ctx is not None else ("f16",)


def _n_ubatches(facts: ModelFacts, n_ctx: int) -> tuple[int, ...]:
    if not can_split_texts(facts):
        return (n_ctx,)  # a text must be whole in one decode
    return tuple(dict.fromkeys(min(n_ubatch, n_ctx) for n_ubatch in _N_UBATCHES))


def _without_output(layout: Layout) -> Layout:
    return dataclasses.replace(
        layout, is_output_on_host=True, n_seq_max=_divisor(layout.n_ubatch, _N_SEQ_MAX_OUTPUT_ON_HOST)
    )


def _parts(facts: ModelFacts, layout: Layout, limits: Limits) -> Iterator[Layout]:
    """Fewer and fewer layers on the device, with room in the context to grow."""
    if limits.n_ctx is None and can_split_texts(facts):
        layout = dataclasses.replace(layout, n_ctx=min(max(N_CTX_PARTIAL, layout.n_ctx), facts.n_ctx_train))
    if layout.skips_head:  # others compute a row a token, for which the weights would be copied over after all
        layout = _without_output(layout)
    for n_layers in range(facts.n_layer, 0, -1):
        yield dataclasses.replace(layout, n_gpu_layers=n_layers + 1)


def _shared_out(facts: ModelFacts, place: Place, layout: Layout) -> Iterator[Layout]:
    """Share the layers of a whole model out over several devices: in proportion to their room, then as it goes in.

    The second way fits whenever any does, so that more memory anywhere never spoils what fitted before.
    """
    if place.placement != "split":
        yield layout
        return
    usage = memory_cost(facts, dataclasses.replace(layout, devices=layout.devices[:1])).devices[0]
    output_bytes = 0 if layout.is_output_on_host else facts.output_bytes
    sizes = [size + usage.kv_bytes // facts.n_layer for size in facts.layer_sizes]
    room = [max(0, budget - usage.compute_bytes) for budget in place.budgets]
    room[-1] = max(0, room[-1] - output_bytes)  # which the last device has
    for shares in dict.fromkeys((_in_proportion(len(sizes), room), _as_it_goes_in(sizes, room))):
        yield dataclasses.replace(layout, tensor_split=(*shares[:-1], shares[-1] + 1))  # the output counts as a layer


def _in_proportion(n_layers: int, room: list[int]) -> tuple[int, ...]:
    """Layers by room; equal shares where there is none."""
    room = room if sum(room) else [1] * len(room)
    ends = [n_layers * sum(room[: index + 1]) // sum(room) for index in range(len(room))]
    return tuple(end - begin for begin, end in itertools.pairwise([0, *ends]))


def _as_it_goes_in(sizes: list[int], room: list[int]) -> tuple[int, ...]:
    """Each device filled in turn; what is left over goes to the last, too much for it or not."""
    shares, begin = [], 0
    for bytes_left in room[:-1]:
        end, used = begin, 0
        while end < len(sizes) and used + sizes[end] <= bytes_left:
            used += sizes[end]
            end += 1
        shares.append(end - begin)
        begin = end
    return (*shares, len(sizes) - begin)
