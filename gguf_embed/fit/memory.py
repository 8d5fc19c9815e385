"""Bytes that a file needs at a given context and offload, in closed form.

It must not know machines or choices; tests hold its sums against llama.cpp's own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf_embed.models.header import ModelFacts

__all__ = ["MemoryCost", "memory_cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCost:
    """Bytes by part, on the device and on the host.

    Attributes:
        weights_bytes: weights on the device.
        kv_bytes: KV cache on the device.
        compute_bytes: compute buffer on the device.
        host_weights_bytes: weights on the host.
        host_kv_bytes: KV cache on the host.
        host_compute_bytes: compute buffer on the host.
        host_output_bytes: logits and embeddings that llama.cpp copies out.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    host_weights_bytes: int
    host_kv_bytes: int
    host_compute_bytes: int
    host_output_bytes: int

    @property
    def device_bytes(self) -> int:
        """Everything on the device."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes

    @property
    def host_bytes(self) -> int:
        """Everything on the host."""
        return self.host_weights_bytes + self.host_kv_bytes + self.host_compute_bytes + self.host_output_bytes

    @property
    def total_bytes(self) -> int:
        """Both together, which is what unified memory holds."""
        return self.device_bytes + self.host_bytes


def memory_cost(facts: ModelFacts, *, n_ctx: int, n_ubatch: int, n_gpu_layers: int) -> MemoryCost:
    """Add up what llama.cpp will allocate.

    Args:
        facts: of the file.
        n_ctx: KV cells.
        n_ubatch: tokens of one decode.
        n_gpu_layers: layers on the device, 0..n_layer; n_layer + 1 puts the output there too.

    Returns:
        The parts; nothing is on the device when n_gpu_layers is 0.
    """
    on_device = min(n_gpu_layers, facts.n_layer)
    layer_bytes = facts.layer_bytes * on_device // max(facts.n_layer, 1)
    kv_bytes = facts.kv_bytes_per_token * n_ctx
    kv_on_device = kv_bytes * on_device // max(facts.n_layer, 1)
    # The ordinary path runs the vocabulary projection, and a tied table is then held on both sides.
    has_output = n_gpu_layers > facts.n_layer and facts.is_causal
    graph_bytes = _graph_bytes(facts, n_ctx=n_ctx, n_ubatch=n_ubatch)
    logits_bytes = n_ubatch * 4 * facts.n_vocab if facts.is_causal else 0
    return MemoryCost(
        weights_bytes=layer_bytes + (facts.output_bytes if has_output else 0),
        kv_bytes=kv_on_device,
        compute_bytes=(graph_bytes + (logits_bytes if has_output else 0)) if on_device else 0,
        host_weights_bytes=facts.weights_bytes - layer_bytes,
        host_kv_bytes=kv_bytes - kv_on_device,
        host_compute_bytes=n_ubatch * 4 * facts.n_embd if has_output else graph_bytes + logits_bytes,
        host_output_bytes=logits_bytes + n_ubatch * 4 * facts.n_embd,
    )


def _graph_bytes(facts: ModelFacts, *, n_ctx: int, n_ubatch: int) -> int:
    """The compute buffer without the logits: activations at the graph's widest point, and the mask.

    Source: fitted to llama.cpp 0c1e57098's "compute buffer size" at the shapes of Qwen3-Embedding 0.6B, 4B and 8B
    (n_ctx 512..32768, n_ubatch 256..2048) and of MiniLM; tests/real/test_memory.py holds the bounds.
    """
    if facts.is_causal:
        mask_bytes = 2 * n_ubatch * n_ctx  # F16, for flash attention
        return n_ubatch * 12 * facts.n_embd + mask_bytes
    return n_ubatch * 4 * (facts.n_ff + 4 * facts.n_embd) + 2 * n_ubatch * n_ubatch
