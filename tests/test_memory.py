"""memory.py: sums worked out by hand, and laws over every shape."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.fit.memory import memory_cost
from gguf_embed.models.header import ModelFacts, facts_of_spec
from gguf_embed.models.registry import load_registry

MIB = 1 << 20
# Round numbers: 10 layers of 100 bytes, a table of 70, keys and values of 2*10*2*8*2 = 640 bytes a token.
CAUSAL = ModelFacts(
    architecture="qwen3", quant="Q4_K_M", n_layer=10, n_embd=16, n_ff=64, n_head_kv=2, head_dim=8, n_vocab=50,
    n_ctx_train=4096, pooling_type="last", is_causal=True, add_eos=True, layer_bytes=1000, table_bytes=70,
    output_bytes=60, is_exact=True,
)  # fmt: skip
ENCODER = dataclasses.replace(CAUSAL, architecture="bert", pooling_type="mean", is_causal=False)


def parts(facts, *, n_ctx=100, n_ubatch=10, n_gpu_layers=0):
    return memory_cost(facts, n_ctx=n_ctx, n_ubatch=n_ubatch, n_gpu_layers=n_gpu_layers)


def test_facts_add_up():
    """F16 keys and values: 2 sides, 10 layers, 2 heads, 8 components, 2 bytes; an encoder has none."""
    assert CAUSAL.kv_bytes_per_token == 640
    assert ENCODER.kv_bytes_per_token == 0
    assert CAUSAL.weights_bytes == 1070


def test_on_the_cpu_everything_is_on_the_host():
    """Weights, KV at n_ctx, activations with the mask, and logits, all in host memory."""
    cost = parts(CAUSAL)
    logits = 10 * 4 * 50
    graph = 10 * 12 * 16 + 2 * 10 * 100
    assert (cost.weights_bytes, cost.kv_bytes, cost.compute_bytes, cost.device_bytes) == (0, 0, 0, 0)
    assert (cost.host_weights_bytes, cost.host_kv_bytes) == (1070, 64_000)
    assert (cost.host_compute_bytes, cost.host_output_bytes) == (graph + logits, logits + 10 * 4 * 16)
    assert cost.host_bytes == cost.total_bytes == 1070 + 64_000 + graph + 2 * logits + 640


def test_whole_on_a_device_the_table_stays_on_the_host():
    """Layers, KV, activations and the output projection go over; the token table does not."""
    cost = parts(CAUSAL, n_gpu_layers=11)
    assert (cost.weights_bytes, cost.host_weights_bytes) == (1000 + 60, 70)
    assert (cost.kv_bytes, cost.host_kv_bytes) == (64_000, 0)
    assert cost.compute_bytes == 10 * 12 * 16 + 2 * 10 * 100 + 10 * 4 * 50
    assert cost.host_compute_bytes == 10 * 4 * 16
    assert cost.total_bytes == cost.device_bytes + cost.host_bytes


def test_half_of_the_layers_take_half_of_weights_and_kv():
    """Five of ten layers: half on each side, the table on the host."""
    cost = parts(CAUSAL, n_gpu_layers=5)
    assert (cost.weights_bytes, cost.host_weights_bytes) == (500, 570)
    assert (cost.kv_bytes, cost.host_kv_bytes) == (32_000, 32_000)


def test_all_layers_without_the_output():
    """n_layer layers leave the vocabulary projection, and its logits, on the host."""
    with_output, without = parts(CAUSAL, n_gpu_layers=11), parts(CAUSAL, n_gpu_layers=10)
    assert with_output.weights_bytes - without.weights_bytes == CAUSAL.output_bytes
    assert with_output.compute_bytes - without.compute_bytes == 10 * 4 * 50


def test_an_encoder_has_neither_kv_nor_logits():
    """A BERT needs weights and activations; its context costs nothing."""
    cost = parts(ENCODER, n_gpu_layers=11)
    assert (cost.kv_bytes, cost.host_kv_bytes) == (0, 0)
    assert cost.weights_bytes == 1000
    assert cost.compute_bytes == 10 * 4 * (64 + 4 * 16) + 2 * 10 * 10
    assert cost.host_output_bytes == 10 * 4 * 16
    assert parts(ENCODER, n_ctx=4000) == parts(ENCODER)


SPECS = [spec for spec in load_registry().models if spec.shape is not None]
FACTS = st.sampled_from([
    facts for spec in SPECS for file in spec.files[:3]
    if file.size_bytes and (facts := facts_of_spec(spec, file.quant, file.size_bytes))
])  # fmt: skip
CTX, UBATCH = st.integers(1, 32768), st.integers(1, 2048)
FIELDS = [field.name for field in dataclasses.fields(parts(CAUSAL))]


@given(FACTS, CTX, CTX, UBATCH, st.data())
def test_more_context_never_costs_less(facts, n_ctx, more, n_ubatch, data):
    """Each part grows with n_ctx or stays."""
    layers = data.draw(st.integers(0, facts.n_layer + 1))
    small, large = (parts(facts, n_ctx=n, n_ubatch=n_ubatch, n_gpu_layers=layers) for n in sorted((n_ctx, more)))
    assert all(getattr(small, name) <= getattr(large, name) for name in FIELDS)


@given(FACTS, CTX, UBATCH, UBATCH, st.data())
def test_more_tokens_a_decode_never_cost_less(facts, n_ctx, n_ubatch, more, data):
    """Each part grows with n_ubatch or stays."""
    layers = data.draw(st.integers(0, facts.n_layer + 1))
    small, large = (parts(facts, n_ctx=n_ctx, n_ubatch=n, n_gpu_layers=layers) for n in sorted((n_ubatch, more)))
    assert all(getattr(small, name) <= getattr(large, name) for name in FIELDS)


@given(FACTS, CTX, UBATCH, st.data())
def test_more_layers_need_more_device_and_less_host(facts, n_ctx, n_ubatch, data):
    """Moving layers over moves bytes over."""
    few, many = sorted(data.draw(st.lists(st.integers(0, facts.n_layer + 1), min_size=2, max_size=2)))
    small, large = (parts(facts, n_ctx=n_ctx, n_ubatch=n_ubatch, n_gpu_layers=n) for n in (few, many))
    assert small.device_bytes <= large.device_bytes
    assert small.host_bytes >= large.host_bytes


@given(FACTS, CTX, UBATCH, st.data())
def test_no_weight_and_no_key_is_lost_between_the_sides(facts, n_ctx, n_ubatch, data):
    """Device and host together hold the file once and the KV cache once."""
    layers = data.draw(st.integers(0, facts.n_layer))
    cost = parts(facts, n_ctx=n_ctx, n_ubatch=n_ubatch, n_gpu_layers=layers)
    assert cost.weights_bytes + cost.host_weights_bytes == facts.weights_bytes
    assert cost.kv_bytes + cost.host_kv_bytes == facts.kv_bytes_per_token * n_ctx
    assert cost.total_bytes == sum(getattr(cost, name) for name in FIELDS)
    assert min(getattr(cost, name) for name in FIELDS) >= 0


def test_qwen3_4b_has_its_published_kv_cache():
    """36 layers, 8 heads of 128: 144 KiB a token, 288 MiB at 2,048 (head_dim is not n_embd / n_head)."""
    spec = load_registry().get("qwen3-embedding-4b")
    facts = facts_of_spec(spec, "Q4_K_M", 2_496_703_776)
    assert facts.kv_bytes_per_token == 144 * 1024
    assert parts(facts, n_ctx=2048, n_ubatch=512).host_kv_bytes == 288 * MIB


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.model_id)
def test_facts_of_the_registry_hold_the_file_s_bytes(spec):
    """Layers and table of an estimate are the whole file, and neither is empty."""
    for file in spec.files:
        if file.size_bytes:
            facts = facts_of_spec(spec, file.quant, file.size_bytes)
            assert facts.weights_bytes == file.size_bytes
            assert facts.layer_bytes > 0
            assert facts.table_bytes > 0
            assert not facts.is_exact


def test_a_model_without_a_shape_has_no_estimate():
    """Without a shape nothing is guessed; the header must be read."""
    spec = dataclasses.replace(SPECS[0], shape=None)
    assert facts_of_spec(spec, "Q8_0", 10**9) is None
