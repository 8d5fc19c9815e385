"""The closed form against llama.cpp's own buffer sizes, at the shapes of the real models."""

from __future__ import annotations

import logging
import re

import pytest
import synthetic

from gguf_embed.fit.memory import memory_cost
from gguf_embed.models.header import load_facts
from gguf_embed.native.backend import backend

SHAPES = {
    "0.6B": synthetic.Qwen3Shape(n_layer=28, n_embd=1024, n_ff=3072, n_head=16, n_head_kv=8, n_ctx_train=32768),
    "4B": synthetic.Qwen3Shape(n_layer=36, n_embd=2560, n_ff=9728, n_head=32, n_head_kv=8, n_ctx_train=40960),
    "8B": synthetic.Qwen3Shape(n_layer=36, n_embd=4096, n_ff=12288, n_head=32, n_head_kv=8, n_ctx_train=40960),
}
MIB = 1 << 20


def compute_buffer_bytes(path, n_ctx, n_ubatch, caplog):
    """Let llama.cpp plan a context without allocating, and read the size from its log."""
    binding = backend()
    params = binding.llama_model_default_params()
    params.no_alloc, params.load_mode, params.n_gpu_layers = True, 0, 0
    model = binding.llama_model_load_from_file(str(path).encode(), params)
    sizes = binding.llama_context_default_params()
    sizes.n_ctx, sizes.n_batch, sizes.n_ubatch, sizes.n_seq_max = n_ctx, n_ubatch, n_ubatch, 64
    sizes.embeddings, sizes.kv_unified, sizes.pooling_type = True, True, 3
    with caplog.at_level(logging.DEBUG, "gguf_embed.native.backend"):
        context = binding.llama_init_from_model(model, sizes)
    binding.llama_free(context)
    binding.llama_model_free(model)
    found = re.findall(r"compute buffer size = +([\d.]+) MiB", caplog.text)
    return float(found[-1]) * MIB


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("n_ctx", "n_ubatch"), [(2048, 512), (8192, 512), (32768, 512), (512, 512), (2048, 2048)])
def test_compute_buffer(name, n_ctx, n_ubatch, tmp_path, caplog):
    """The predicted compute buffer is within 3 % or 64 MiB, and never under by more than 64 MiB."""
    path = synthetic.write_qwen3(tmp_path / "hollow.gguf", shape=SHAPES[name], n_vocab=151_669, f16=True, holes=True)
    measured = compute_buffer_bytes(path, n_ctx, n_ubatch, caplog)
    predicted = memory_cost(load_facts(path), n_ctx=n_ctx, n_ubatch=n_ubatch, n_gpu_layers=0).host_compute_bytes
    assert abs(predicted - measured) <= max(0.03 * measured, 64 * MIB)
    assert predicted >= measured - 64 * MIB


def test_kv_cache_uses_the_key_length(tmp_path):
    """4B at 2,048 tokens keeps 288 MiB of keys and values: head_dim is key_length, not n_embd / n_head."""
    path = synthetic.write_qwen3(tmp_path / "hollow.gguf", shape=SHAPES["4B"], f16=True, holes=True)
    cost = memory_cost(load_facts(path), n_ctx=2048, n_ubatch=512, n_gpu_layers=0)
    assert cost.host_kv_bytes == 288 * MIB
