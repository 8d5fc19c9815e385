"""graph.py: a closed form that never falls, and what it is made of."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.fit.graph import _ENCODERS, compute_bytes
from gguf_embed.models.header import facts_of_spec
from gguf_embed.models.registry import load_registry

REGISTRY = load_registry()
MIB = 1 << 20
DECODER = facts_of_spec(REGISTRY.get("qwen3-embedding-4b"), "Q4_K_M", 2_497_000_000)
FACTS = [DECODER, *(dataclasses.replace(DECODER, architecture=name, is_causal=False) for name in _ENCODERS)]
sizes = st.fixed_dictionaries({
    "n_ctx": st.integers(1, 65536), "n_ubatch": st.integers(1, 8192), "n_outputs": st.integers(1, 256),
})  # fmt: skip


@given(st.sampled_from(FACTS), sizes, sizes, st.booleans(), st.sampled_from(["f16", "q8_0"]))
def test_never_smaller_for_more(facts, one, other, skips_head, kv_type):
    """More cells, tokens or outputs never take fewer bytes."""
    more = {name: max(one[name], other[name]) for name in one}
    assert compute_bytes(facts, **more, skips_head=skips_head, kv_type=kv_type) >= compute_bytes(
        facts, **one, skips_head=skips_head, kv_type=kv_type
    )


@given(sizes)
def test_skipping_the_head_never_costs(context):
    """A decoder without its vocabulary projection needs no more than with it."""
    assert compute_bytes(DECODER, **context, skips_head=True) <= compute_bytes(DECODER, **context, skips_head=False)


def test_causal_attention_is_no_matter():
    """A decoder whose header turns the causal mask off still has a KV cache's mask and a vocabulary projection."""
    context = {"n_ctx": 8192, "n_ubatch": 512, "n_outputs": 64, "skips_head": False}
    bidirectional = dataclasses.replace(DECODER, is_causal=False)
    assert compute_bytes(bidirectional, **context) == compute_bytes(DECODER, **context)


@pytest.mark.parametrize(("n_ctx", "mask_mib"), [(8192, 8), (32768, 32)])
def test_mask_grows_with_the_cache(n_ctx, mask_mib):
    """512 tokens see every cell through two bytes."""
    fixed = {"n_ubatch": 512, "n_outputs": 1, "skips_head": True}
    without = compute_bytes(DECODER, n_ctx=512, **fixed) - 512 * 512 * 2
    assert compute_bytes(DECODER, n_ctx=n_ctx, **fixed) - without == mask_mib * MIB


def test_quantized_kv_adds_rotations():
    """q8_0 takes two matrices of 128 and of 64 components squared, whatever the context."""
    context = {"n_ctx": 8192, "n_ubatch": 512, "n_outputs": 64, "skips_head": True}
    f16, q8_0 = (compute_bytes(DECODER, **context, kv_type=name) for name in ("f16", "q8_0"))
    assert q8_0 - f16 == 81_920
