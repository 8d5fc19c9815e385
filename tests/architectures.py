"""Hollow GGUFs at the true shapes of the registry's models: headers that llama.cpp plans with, and no weights.

Load them with no_alloc. Vocabularies are Qwen3's merges padded to the true length, whatever the real tokenizer is: the
graph sees their length alone. Tensors are those of src/models/<architecture>.cpp, llama.cpp 0c1e57098.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import synthetic

LAST, MEAN, CLS = 3, 1, 2  # llama.h, enum llama_pooling_type

# Tensors outside the layers and of one layer: name, then rows and columns (a letter is a size, "3E" three of them).
# V vocabulary, C n_ctx_train, E n_embd, F n_ff, Q and K the rows of queries and keys, D head_dim, X experts.
_NORMED_TABLE = "token_embd.weight V E, token_embd_norm.weight E, token_embd_norm.bias E, token_types.weight 2 E"
_RMS_TABLE = "token_embd.weight V E, output_norm.weight E"
_QKV = "attn_q.weight Q E, attn_k.weight K E, attn_v.weight K E, attn_output.weight E Q"
_QKV_BIAS = f"{_QKV}, attn_q.bias Q, attn_k.bias K, attn_v.bias K"
_FUSED = "attn_qkv.weight 3E E, attn_output.weight E E"
_QK_NORM = "attn_q_norm.weight D, attn_k_norm.weight D"
_PRE_NORMS = "attn_norm.weight E, ffn_norm.weight E"
_POST_NORMS = "attn_output_norm.weight E, attn_output_norm.bias E, layer_output_norm.weight E, layer_output_norm.bias E"
_GATED = "ffn_gate.weight F E, ffn_up.weight F E, ffn_down.weight E F"
_PLAIN = "ffn_up.weight F E, ffn_up.bias F, ffn_down.weight E F, ffn_down.bias E"
_EXPERTS = "ffn_gate_inp.weight X E, ffn_up_exps.weight X F E, ffn_down_exps.weight X E F"
_BERT_LAYER = f"{_QKV_BIAS}, attn_output.bias E, {_POST_NORMS}"

_TENSORS = {
    "qwen3": (_RMS_TABLE, f"{_QKV}, {_QK_NORM}, {_PRE_NORMS}, {_GATED}"),
    "qwen2vl": (_RMS_TABLE, f"{_QKV_BIAS}, {_PRE_NORMS}, {_GATED}"),
    "bert": (f"{_NORMED_TABLE}, position_embd.weight C E", f"{_BERT_LAYER}, {_PLAIN}"),
    "nomic-bert": (_NORMED_TABLE, f"{_FUSED}, {_POST_NORMS}, {_GATED}"),
    "nomic-bert-moe": (_NORMED_TABLE, f"{_FUSED}, attn_qkv.bias 3E, attn_output.bias E, {_POST_NORMS}"),
    "jina-bert-v2": (_NORMED_TABLE, f"{_BERT_LAYER}, ffn_up.weight 2F E, ffn_down.weight E F, ffn_down.bias E"),
    "modern-bert": (
        "token_embd.weight V E, token_embd_norm.weight E, output_norm.weight E",
        f"{_FUSED}, {_PRE_NORMS}, ffn_up.weight 2F E, ffn_down.weight E F",
    ),
    "gemma-embedding": (
        _RMS_TABLE,
        f"{_QKV}, {_QK_NORM}, {_PRE_NORMS}, post_attention_norm.weight E, post_ffw_norm.weight E, {_GATED}",
    ),
    "eurobert": (_RMS_TABLE, f"{_QKV}, {_PRE_NORMS}, {_GATED}"),
    "llama-embed": (_RMS_TABLE, f"{_QKV}, {_PRE_NORMS}, {_GATED}"),
    "jina-bert-v3": (_NORMED_TABLE, f"{_FUSED}, attn_qkv.bias 3E, attn_output.bias E, {_POST_NORMS}, {_PLAIN}"),
    "neo-bert": (
        "token_embd.weight V E, enc.output_norm.weight E",
        f"{_FUSED}, {_PRE_NORMS}, ffn_up.weight 2F E, ffn_down.weight E F",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model's shape; n_head_kv and head_dim follow from the others where they are left out.

    `keys` are further header keys, below the architecture's name.
    """

    architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_vocab: int
    n_ctx_train: int
    pooling_type: int
    n_head_kv: int = 0
    head_dim: int = 0
    n_expert: int = 0
    keys: dict[str, int] = field(default_factory=dict)

    @property
    def has_head(self) -> bool:
        """Whether the graph ends in a vocabulary projection; a KV cache goes with it."""
        return self.architecture.startswith("qwen")

    def sizes(self) -> dict[str, int]:
        """Name the sizes as _TENSORS does."""
        head_dim = self.head_dim or self.n_embd // self.n_head
        kv = (self.n_head_kv or self.n_head) * head_dim
        sizes = {"V": self.n_vocab, "C": self.n_ctx_train, "E": self.n_embd, "F": self.n_ff, "D": head_dim}
        sizes |= {"Q": self.n_head * head_dim, "K": kv, "X": self.n_expert, "2": 2}
        return sizes | {f"{n}{letter}": n * sizes[letter] for n in (2, 3) for letter in "EF"}


def _bert(n_embd: int, n_layer: int, n_head: int, n_vocab: int = 30522, n_ctx: int = 512, pooling: int = CLS) -> Model:
    return Model(
        architecture="bert", n_layer=n_layer, n_embd=n_embd, n_ff=4 * n_embd, n_head=n_head, n_vocab=n_vocab,
        n_ctx_train=n_ctx, pooling_type=pooling,
    )  # fmt: skip


def _qwen3(n_layer: int, n_embd: int, n_ff: int, n_head: int, n_ctx: int = 40960) -> Model:
    return Model(
        architecture="qwen3", n_layer=n_layer, n_embd=n_embd, n_ff=n_ff, n_head=n_head, n_head_kv=8, head_dim=128,
        n_vocab=151_669, n_ctx_train=n_ctx, pooling_type=LAST,
    )  # fmt: skip


MODELS = {
    "qwen3-embedding-0.6b": _qwen3(28, 1024, 3072, 16, 32768),
    "qwen3-embedding-4b": _qwen3(36, 2560, 9728, 32),
    "qwen3-embedding-8b": _qwen3(36, 4096, 12288, 32),
    "all-minilm-l6-v2": _bert(384, 6, 12, pooling=MEAN),
    "bge-base": _bert(768, 12, 12),
    "bge-large": _bert(1024, 24, 16),
    "bge-m3": _bert(1024, 24, 16, n_vocab=250_002, n_ctx=8192),
    "nomic-embed-text-v1.5": Model(
        architecture="nomic-bert", n_layer=12, n_embd=768, n_ff=3072, n_head=12, n_vocab=30522, n_ctx_train=2048,
        pooling_type=MEAN,
    ),
    "nomic-embed-text-v2-moe": Model(
        architecture="nomic-bert-moe", n_layer=12, n_embd=768, n_ff=3072, n_head=12, n_vocab=250_048, n_ctx_train=512,
        pooling_type=MEAN, n_expert=8, keys={"moe_every_n_layers": 2, "expert_count": 8, "expert_used_count": 2},
    ),
    "embeddinggemma-300m": Model(
        architecture="gemma-embedding", n_layer=24, n_embd=768, n_ff=1152, n_head=3, n_head_kv=1, head_dim=256,
        n_vocab=262_144, n_ctx_train=2048, pooling_type=MEAN, keys={"attention.sliding_window": 512},
    ),
    "gte-modernbert-base": Model(
        architecture="modern-bert", n_layer=22, n_embd=768, n_ff=1152, n_head=12, n_vocab=50368, n_ctx_train=8192,
        pooling_type=CLS, keys={"attention.sliding_window": 128},
    ),
    "granite-embedding-small": Model(
        architecture="modern-bert", n_layer=12, n_embd=384, n_ff=1536, n_head=12, n_vocab=50368, n_ctx_train=8192,
        pooling_type=CLS, keys={"attention.sliding_window": 128},
    ),
    "jina-embeddings-v2-base": Model(
        architecture="jina-bert-v2", n_layer=12, n_embd=768, n_ff=3072, n_head=12, n_vocab=30528, n_ctx_train=8192,
        pooling_type=MEAN,
    ),
    "jina-embeddings-v5-nano": Model(
        architecture="eurobert", n_layer=12, n_embd=768, n_ff=3072, n_head=12, n_vocab=128_256, n_ctx_train=8192,
        pooling_type=LAST,
    ),
    "jina-embeddings-v3": Model(
        architecture="jina-bert-v3", n_layer=24, n_embd=1024, n_ff=4096, n_head=16, n_vocab=250_002, n_ctx_train=8192,
        pooling_type=MEAN,
    ),
    "neobert": Model(
        architecture="neo-bert", n_layer=28, n_embd=768, n_ff=2048, n_head=12, n_vocab=30522, n_ctx_train=4096,
        pooling_type=CLS,
    ),
    "llama-embed-nemotron-8b": Model(
        architecture="llama-embed", n_layer=32, n_embd=4096, n_ff=14336, n_head=32, n_head_kv=8, n_vocab=128_256,
        n_ctx_train=131_072, pooling_type=MEAN,
    ),
    "jina-embeddings-v4": Model(
        architecture="qwen2vl", n_layer=36, n_embd=2048, n_ff=11008, n_head=16, n_head_kv=2, n_vocab=151_936,
        n_ctx_train=128_000, pooling_type=MEAN,
    ),
}  # fmt: skip


def write_hollow(path: Path, name: str, *, max_vocab: int | None = None) -> Path:
    """Write the header of a model of MODELS, with a hole for its weights.

    Args:
        path: the file to write.
        name: a key of MODELS.
        max_vocab: shortens the vocabulary, which takes most of the time and is no part of an encoder's graph.
    """
    model = MODELS[name]
    if max_vocab is not None:
        model = dataclasses.replace(model, n_vocab=min(model.n_vocab, max_vocab))
    sizes = model.sizes()
    writer = gguf.GGUFWriter(path, model.architecture)
    numbers = {
        "context_length": model.n_ctx_train,
        "embedding_length": model.n_embd,
        "feed_forward_length": model.n_ff,
        "block_count": model.n_layer,
        "attention.head_count": model.n_head,
        "attention.head_count_kv": model.n_head_kv or model.n_head,
        "attention.key_length": sizes["D"],
        "attention.value_length": sizes["D"],
        "pooling_type": model.pooling_type,
        **model.keys,
    }
    for key, number in numbers.items():
        writer.add_uint32(f"{model.architecture}.{key}", number)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_layer_norm_eps(1e-6)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if model.architecture == "qwen2vl":
        writer.add_rope_dimension_sections([16, 24, 24, 0])
    if not model.has_head:
        writer.add_causal_attention(value=False)
    _add_vocabulary(writer, model)
    return synthetic._finish(writer, path, _tensors(model), f16=True, holes=True)


def _add_vocabulary(writer: gguf.GGUFWriter, model: Model) -> None:
    tokens = synthetic.bpe_vocabulary()
    n_used = len(tokens)
    tokens += [f"<|unused{index}|>" for index in range(model.n_vocab - n_used)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * n_used + [gguf.TokenType.UNUSED] * (model.n_vocab - n_used))
    writer.add_token_merges(list(synthetic.MERGES))
    writer.add_eos_token_id(tokens.index(synthetic.END_OF_TEXT))
    writer.add_token_type_count(2)


def _tensors(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """Yield tensors that take no memory: one zero, broadcast."""
    outside, inside = _TENSORS[model.architecture]
    layers = [inside] * model.n_layer
    if model.n_expert:
        layers = [f"{inside}, {_EXPERTS if layer % 2 else _PLAIN}" for layer in range(model.n_layer)]
    sizes = model.sizes()
    for prefix, tensors in [("", outside), *((f"blk.{index}.", layer) for index, layer in enumerate(layers))]:
        for tensor in tensors.split(", "):
            name, *dimensions = tensor.split()
            yield prefix + name, np.broadcast_to(np.float32(0), [sizes[letter] for letter in dimensions])
