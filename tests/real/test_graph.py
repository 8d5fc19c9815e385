"""The compute buffer's closed form against llama.cpp's own dry run, at the shapes of the registry's models."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any

import architectures
import pytest

from gguf_embed.fit.graph import compute_bytes
from gguf_embed.models.header import ModelFacts, load_facts
from gguf_embed.native.backend import backend

MIB = 1 << 20
LOG = "gguf_embed.native.backend"
GGML_TYPES = {"f16": 1, "q8_0": 8}
DECODERS = [name for name, model in architectures.MODELS.items() if model.has_head]
ENCODERS = [name for name, model in architectures.MODELS.items() if not model.has_head]
CELLS, TOKENS = (512, 2048, 8192, 32768), (256, 512, 2048)
GRID = [(n_ctx, n_ubatch) for n_ctx in CELLS for n_ubatch in TOKENS if n_ubatch <= n_ctx]
# An encoder sees all of a text in one decode, so that the product makes both alike; a larger n_ctx changes nothing.
SQUARES = [(256, 256), (512, 512), (2048, 2048), (8192, 8192), (8192, 512)]


@dataclass(frozen=True, kw_only=True)
class Hollow:
    """A model that llama.cpp holds without its weights."""

    model: Any
    facts: ModelFacts


@pytest.fixture(scope="module")
def hollow(request, tmp_path_factory):
    """Load a model of tests/architectures.py as a header alone, once for all its cases."""
    path = tmp_path_factory.mktemp("hollow") / f"{request.param}.gguf"
    # An encoder's vocabulary is no part of its graph, and would be 240 MiB of it at 2,048 tokens.
    architectures.write_hollow(path, request.param, max_vocab=30_522 if request.param in ENCODERS else None)
    binding = backend()
    params = binding.llama_model_default_params()
    params.no_alloc, params.load_mode, params.n_gpu_layers = True, 0, 0
    model = binding.llama_model_load_from_file(str(path).encode(), params)
    yield Hollow(model=model, facts=load_facts(path))
    binding.llama_model_free(model)


def measured_bytes(hollow, caplog, *, n_ctx, n_ubatch, n_seq_max, skips_head, kv_type):
    """Let llama.cpp plan a context without allocating, and read the compute buffer's size from its log."""
    binding = backend()
    params = binding.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = n_ctx, n_ubatch, n_ubatch, n_seq_max
    params.kv_unified, params.embeddings = True, not skips_head
    params.type_k = params.type_v = GGML_TYPES[kv_type]
    if skips_head:
        params.pooling_type, params.n_outputs_max = 0, n_seq_max
    caplog.clear()
    with caplog.at_level(logging.DEBUG, LOG):
        context = binding.llama_init_from_model(hollow.model, params)
    binding.llama_free(context)
    return float(re.findall(r"compute buffer size = +([\d.]+) MiB", caplog.text)[-1]) * MIB


def assert_close(hollow, caplog, *, n_ctx, n_ubatch, n_seq_max=64, skips_head=False, kv_type="f16"):
    """Hold the closed form to 10 % or 8 MiB, and to 3 % or 64 MiB."""
    context = {"n_ctx": n_ctx, "n_ubatch": n_ubatch, "skips_head": skips_head, "kv_type": kv_type}
    measured = measured_bytes(hollow, caplog, n_seq_max=n_seq_max, **context)
    predicted = compute_bytes(hollow.facts, n_outputs=n_seq_max, **context)
    assert abs(predicted - measured) <= max(0.03 * measured, 64 * MIB)
    assert abs(predicted - measured) <= max(0.10 * measured, 8 * MIB)


@pytest.mark.parametrize("hollow", DECODERS, indirect=True)
@pytest.mark.parametrize("skips_head", [False, True], ids=["ordinary", "head-skipped"])
@pytest.mark.parametrize(("n_ctx", "n_ubatch"), GRID)
def test_decoder(hollow, n_ctx, n_ubatch, skips_head, caplog):
    """A decoder's buffer is predicted with its vocabulary projection over every token, and over 64 outputs."""
    assert_close(hollow, caplog, n_ctx=n_ctx, n_ubatch=n_ubatch, skips_head=skips_head)


@pytest.mark.parametrize("hollow", ENCODERS, indirect=True)
@pytest.mark.parametrize(("n_ctx", "n_ubatch"), SQUARES)
def test_encoder(hollow, n_ctx, n_ubatch, caplog):
    """An encoder's buffer is predicted: masks of n_ubatch squared, and no logits."""
    assert_close(hollow, caplog, n_ctx=n_ctx, n_ubatch=n_ubatch)


@pytest.mark.parametrize("hollow", DECODERS, indirect=True)
@pytest.mark.parametrize("n_seq_max", [1, 16, 256])
def test_outputs(hollow, n_seq_max, caplog):
    """With the head skipped, logits are reserved for n_seq_max outputs, which is most of the buffer from 256 on."""
    assert_close(hollow, caplog, n_ctx=2048, n_ubatch=512, n_seq_max=n_seq_max, skips_head=True)


@pytest.mark.parametrize("hollow", DECODERS, indirect=True)
@pytest.mark.parametrize("n_ubatch", TOKENS)
def test_quantized_kv(hollow, n_ubatch, caplog):
    """Keys and values in q8_0 leave the compute buffer as it is but for two small rotations."""
    assert_close(hollow, caplog, n_ctx=8192, n_ubatch=n_ubatch, skips_head=True, kv_type="q8_0")
