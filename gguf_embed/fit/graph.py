"""Bytes of llama.cpp's compute buffer in closed form: what its graph keeps alive where it is widest.

It must not know layouts, devices or machines; in whose memory the buffer lies is the caller's business.

Source: the graphs of src/models/*.cpp and src/llama-graph.cpp, and the allocator of ggml/src/ggml-alloc.c, llama.cpp
0c1e57098, with flash attention; tests/real/test_graph.py holds the sums against its "compute buffer size".
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf_embed.models.header import ModelFacts

__all__ = ["compute_bytes"]

_F32, _F16 = 4, 2
# Masks are as wide as the KV cache, which is a multiple of this many cells.
_KV_STEP = 256
# A token's id, its position (four numbers for M-RoPE), its rows in the caches of keys and values, its output's index.
_INDEX_BYTES = 40
# Matrices that spread outliers before keys and values are quantized: one of head_dim, one of 64 components squared.
_ROTATION_DIM = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """How a layer is built, where its widest point depends on it.

    Attributes:
        is_gated: the feed-forward part multiplies two projections (GeGLU, SwiGLU) into a third tensor.
        is_prenorm: norms come before attention and the feed-forward part, not after.
        n_masks: one, and another where some layers see a sliding window only.
        n_expert_used: feed-forward parts that a token goes through.
    """

    is_gated: bool = True
    is_prenorm: bool = True
    n_masks: int = 1
    n_expert_used: int = 1


_DECODER = _Layer()
# Graphs without a KV cache and without a vocabulary projection; every other architecture has both, as llama.cpp builds
# them whether or not the header says that attention is causal.
_ENCODERS = {
    "bert": _Layer(is_gated=False, is_prenorm=False),
    "eurobert": _Layer(),
    "gemma-embedding": _Layer(n_masks=2),
    "jina-bert-v2": _Layer(is_prenorm=False),
    "jina-bert-v3": _Layer(is_gated=False, is_prenorm=False),
    "llama-embed": _Layer(),
    "modern-bert": _Layer(n_masks=2),
    "neo-bert": _Layer(),
    "nomic-bert": _Layer(is_prenorm=False),
    "nomic-bert-moe": _Layer(is_gated=False, is_prenorm=False, n_expert_used=2),
}


def compute_bytes(
    facts: ModelFacts, *, n_ctx: int, n_ubatch: int, n_outputs: int, skips_head: bool, kv_type: str = "f16",
    has_scores: bool = False,
) -> int:  # fmt: skip
    """Say how large llama.cpp makes the compute buffer of a context, all of it in one memory.

    Args:
        facts: of the file.
        n_ctx: KV cells.
        n_ubatch: tokens of one decode; llama.cpp rounds them up to a multiple of n_seq_max.
        n_outputs: texts of one decode, n_seq_max; where the head is skipped, n_outputs_max too.
        skips_head: the context has embeddings off and room for n_outputs rows of logits, not n_ubatch.
        kv_type: of keys and values; "f16", or a quantized one.
        has_scores: attention without flash attention, whose scores stand in memory in float32.

    Returns:
        Bytes, never fewer for a larger n_ctx, n_ubatch or n_outputs.
    """
    layer = _ENCODERS.get(facts.architecture, _DECODER)
    n_cells = -(-n_ctx // _KV_STEP) * _KV_STEP
    n_tokens = min(n_cells, n_ubatch)
    n_outputs = min(n_outputs, n_tokens)
    row_bytes = n_tokens * _F32
    # Reserved for callers who bring embeddings instead of tokens, and alive to the end; so are the weights of a mean.
    inputs = row_bytes * facts.n_embd + n_tokens * _INDEX_BYTES + (0 if skips_head else row_bytes * n_outputs)
    if kv_type != "f16":
        inputs += _F32 * (facts.head_dim**2 + _ROTATION_DIM**2)
    is_encoder = layer is not _DECODER
    masks = _F16 * n_tokens * (layer.n_masks * n_tokens if is_encoder else n_cells)
    layers = masks + row_bytes * _layer_width(facts, layer)
    if has_scores:
        layers = max(
            layers, masks + row_bytes * (facts.n_embd + 2 * facts.n_head * (n_tokens if is_encoder else n_cells))
        )
    return inputs + max(layers, 0 if is_encoder else _head_bytes(facts, row_bytes, masks, n_outputs, skips_head))


def _layer_width(facts: ModelFacts, layer: _Layer) -> int:
    """Components a token has alive in the feed-forward part; attention, 6.5 n_embd at most, is narrower as a rule."""
    n_embd, n_ff = facts.n_embd, facts.n_ff
    # Tensors too large for the room that attention left go above the residual, and that room below it stays empty.
    empty = min(n_embd + facts.n_head * facts.head_dim, n_ff) if layer.is_prenorm else n_embd
    if layer.is_gated:  # the residual; both projections, and their product
        return n_embd + empty + 3 * n_ff
    if layer.n_expert_used == 1:  # narrow enough for that room
        empty = 0
    return n_embd + empty + layer.n_expert_used * (n_ff + n_embd)


def _head_bytes(facts: ModelFacts, row_bytes: int, masks: int, n_outputs: int, skips_head: bool) -> int:
    """Logits, the hidden states that they are made from, and the room below them that stays empty."""
    hidden = row_bytes * facts.n_embd
    if skips_head:
        return n_outputs * _F32 * (facts.n_vocab + facts.n_embd) + hidden
    return row_bytes * facts.n_vocab + max(masks, 2 * hidden + min(masks, 2 * hidden))
