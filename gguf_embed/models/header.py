"""Facts of one model file that planning and loading need, from its GGUF header or from the registry.

It must not know plans, memory or the network: whoever has the header's bytes passes them in.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_embed.errors import InvalidGGUFError, UnsupportedModelError
from gguf_embed.models.lint import check_header
from gguf_embed.models.specs import ModelSpec, Shape
from gguf_embed.native import ggml
from gguf_embed.native.llama import POOLING_TYPES, is_architecture_supported
from gguf_embed.native.quantize import BITS, FTYPES

__all__ = ["ModelFacts", "check_embeddable", "facts_of_header", "facts_of_sibling", "facts_of_spec", "load_facts"]

_POOLING_NAMES = {value: name for name, value in POOLING_TYPES.items()}
_FTYPE_NAMES = {value: name for name, value in FTYPES.items()}
# Encoders without a causal mask keep no KV cache; llama.cpp names them so.
_ENCODERS = re.compile(r"bert|eurobert|gemma-embedding|llama-embed|t5encoder")
_LAYER = re.compile(r"blk\.(\d{1,5})\.")
# Bits a weight of the token table in files of tied embeddings, where llama.cpp keeps it finer than the layers.
# Source: llama.cpp 0c1e57098 src/llama-quant.cpp; Q6_K is 210 bytes for 256 weights, Q8_0 is 34 for 32.
_TABLE_BITS = {"F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5}
_TABLE_BITS_K = 6.5625
# Sizes that are further apart than this, bits taken into account, are of different models.
_SIBLING_FACTOR = 1.35


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What one file is, in llama.cpp's words.

    Attributes:
        architecture: general.architecture.
        quant: Q4_K_M, F16, ...; None where the header does not say.
        n_layer: transformer layers.
        n_embd: components of a hidden state.
        n_ff: width of the feed-forward part.
        n_head: query heads of a layer.
        n_head_kv: key and value heads of a layer (the mean, where layers differ).
        head_dim: components of a key; attention.key_length, not n_embd / n_head.
        n_vocab: rows of the token table.
        n_ctx_train: longest text in the header, in tokens.
        pooling_type: "last", "mean", "cls", "rank", "none", or None where the header does not say.
        is_causal: tokens see only what came before, and a KV cache is kept.
        add_eos: the tokenizer ends texts with EOS; None where the header does not say.
        layer_sizes: bytes of each layer's weights.
        table_bytes: the token table and what else stays on the host.
        output_bytes: the vocabulary projection; 0 for a model that has none.
        is_tied: the projection is the token table again, and takes no room in the file.
        header_bytes: what comes before the first tensor, 0 where no header was read.
        is_exact: read from this file's own header.
    """

    architecture: str
    quant: str | None
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx_train: int
    pooling_type: str | None
    is_causal: bool
    add_eos: bool | None
    layer_sizes: tuple[int, ...]
    table_bytes: int
    output_bytes: int
    is_tied: bool
    header_bytes: int = 0
    is_exact: bool = True

    @property
    def is_decoder(self) -> bool:
        """Whether llama.cpp keeps a KV cache and a vocabulary projection, also where tokens see all others."""
        return not _ENCODERS.search(self.architecture)

    @property
    def layer_bytes(self) -> int:
        """Weights of all layers together."""
        return sum(self.layer_sizes)

    @property
    def kv_bytes_per_token(self) -> int:
        """F16 keys and values of one token over all layers; an encoder keeps none."""
        return 2 * self.n_layer * self.n_head_kv * self.head_dim * 2 if self.is_decoder else 0

    @property
    def weights_bytes(self) -> int:
        """All tensors of the file."""
        return self.layer_bytes + self.table_bytes + (0 if self.is_tied else self.output_bytes)


def load_facts(path: Path) -> ModelFacts:
    """Read the facts of a GGUF on disk.

    Raises:
        InvalidGGUFError: not a GGUF, cut short, or with values that llama.cpp would abort on.
        UnsupportedModelError: a shard of a split file, or a GGUF without an architecture or its sizes.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise InvalidGGUFError(f"{path} cannot be read: {error.strerror}", path=path) from error
    return _load_facts(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=64)
def _load_facts(path: Path, _mtime_ns: int, _size_bytes: int) -> ModelFacts:
    """Read a file once for as long as it stays as it is: planning and loading both ask, and a vocabulary is long."""
    facts = facts_of_header(ggml.load_header(path), path)
    if token := ggml.find_duplicate_token(path):
        raise InvalidGGUFError(
            f"{path.name} is damaged or was written wrongly: its vocabulary has {token!r} twice. Delete it, and fetch "
            "or make it again.",
            path=path,
        )
    return facts


def facts_of_header(header: ggml.GGUFHeader, path: Path) -> ModelFacts:
    """Draw the facts from a header.

    Args:
        header: as llama.cpp parsed it.
        path: names the file in errors.

    Raises:
        InvalidGGUFError: values that llama.cpp would abort on.
        UnsupportedModelError: a shard of a split file, or a header without an architecture or its sizes.
    """
    metadata = header.metadata
    architecture = _architecture(header, path)
    check_header(header, architecture, path)
    number = functools.partial(_number, header, path, architecture)
    n_embd, n_head = number("embedding_length"), number("attention.head_count")
    layer_sizes, rest = _sizes(header, number("block_count"))
    pooling, causal = metadata.get(f"{architecture}.pooling_type"), metadata.get(f"{architecture}.attention.causal")
    add_eos, file_type = metadata.get("tokenizer.ggml.add_eos_token"), metadata.get("general.file_type")
    output_bytes = rest.pop("output.weight", None)
    return ModelFacts(
        architecture=architecture,
        quant=_FTYPE_NAMES.get(file_type) if isinstance(file_type, int) else None,
        n_layer=number("block_count"),
        n_embd=n_embd,
        n_ff=number("feed_forward_length", 4 * n_embd),
        n_head=n_head,
        n_head_kv=number("attention.head_count_kv", n_head),
        head_dim=number("attention.key_length", n_embd // max(n_head, 1)),
        n_vocab=header.array_lengths.get("tokenizer.ggml.tokens", 0),
        n_ctx_train=number("context_length"),
        pooling_type=_POOLING_NAMES.get(pooling) if isinstance(pooling, int) else None,
        is_causal=causal if isinstance(causal, bool) else not _ENCODERS.search(architecture),
        add_eos=add_eos if isinstance(add_eos, bool) else None,
        layer_sizes=layer_sizes,
        table_bytes=sum(rest.values()),
        output_bytes=_tied_bytes(rest, architecture) if output_bytes is None else output_bytes,
        is_tied=output_bytes is None,
        header_bytes=header.data_offset,
    )


def _tied_bytes(tensors: dict[str, int], architecture: str) -> int:
    """Bytes of a projection that is the token table again; an encoder has none."""
    return 0 if _ENCODERS.search(architecture) else tensors.get("token_embd.weight", 0)


def _sizes(header: ggml.GGUFHeader, n_layer: int) -> tuple[tuple[int, ...], dict[str, int]]:
    """Bytes of each layer, and of each tensor outside them."""
    layers, rest = [0] * n_layer, {}
    for tensor in header.tensors:
        layer = _LAYER.match(tensor.name)
        if layer and int(layer[1]) < n_layer:
            layers[int(layer[1])] += tensor.size_bytes
        else:
            rest[tensor.name] = tensor.size_bytes
    return tuple(layers), rest


def _architecture(header: ggml.GGUFHeader, path: Path) -> str:
    n_shards = header.metadata.get("split.count", 0)
    if isinstance(n_shards, int) and n_shards > 1:
        raise UnsupportedModelError(
            f"{path.name} is one of {n_shards} shards of a split file; merge them with llama.cpp's llama-gguf-split "
            "--merge, or take a quantization in one file.",
            path=path,
        )
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise UnsupportedModelError(f"{path.name} names no general.architecture; it is no model.", path=path)
    return architecture


def _number(header: ggml.GGUFHeader, path: Path, architecture: str, key: str, default: int | None = None) -> int:
    value: Any = header.metadata.get(f"{architecture}.{key}", default)
    if isinstance(value, tuple):  # one value a layer
        value = round(sum(value) / len(value)) if value else default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UnsupportedModelError(f"{path.name} has no usable {architecture}.{key} in its header.", path=path)
    return value


def facts_of_spec(spec: ModelSpec, quant: str, size_bytes: int) -> ModelFacts | None:
    """Estimate the facts of a file that is not here from what the registry knows.

    Args:
        spec: the model.
        quant: of the file.
        size_bytes: of the file, or of its tensors.

    Returns:
        Facts with is_exact False, or None where the registry has no shape for this model.
    """
    shape = spec.shape
    if shape is None:
        return None
    table_bytes = min(_table_bytes(shape, quant), size_bytes)
    is_causal = not _ENCODERS.search(spec.arch)
    return ModelFacts(
        architecture=spec.arch,
        quant=quant,
        n_layer=shape.n_layer,
        n_embd=shape.n_embd,
        n_ff=shape.n_ff,
        n_head=shape.n_head,
        n_head_kv=shape.n_head_kv,
        head_dim=shape.head_dim,
        n_vocab=shape.n_vocab,
        n_ctx_train=spec.max_tokens,
        pooling_type=spec.pooling_type,
        is_causal=is_causal,
        add_eos=spec.add_eos,
        layer_sizes=_shares(size_bytes - table_bytes, shape.n_layer),
        table_bytes=table_bytes,
        output_bytes=table_bytes if is_causal else 0,
        is_tied=True,
        is_exact=False,
    )


def facts_of_sibling(donor: ModelFacts, quant: str, tensor_bytes: int) -> ModelFacts | None:
    """Draw the facts of a file from the header of another quantization of the same model.

    Args:
        donor: facts of the header that was read.
        quant: of the file.
        tensor_bytes: of the file without its header; from a listing.

    Returns:
        Facts with is_exact False: the split between layers and token table is llama.cpp's rule, the sum is the
        listing's. None where the sizes do not belong to one model, or a quantization's bits are not known.
    """
    bits, donor_bits = BITS.get(quant), BITS.get(donor.quant or "")
    if bits is None or donor_bits is None:
        return None
    if not 1 / _SIBLING_FACTOR < tensor_bytes / bits / (donor.weights_bytes / donor_bits) < _SIBLING_FACTOR:
        return None
    table_elements = donor.n_vocab * donor.n_embd
    donor_table = int(table_elements * _TABLE_BITS.get(donor.quant or "", _TABLE_BITS_K) / 8)
    table_bytes = int(table_elements * _TABLE_BITS.get(quant, _TABLE_BITS_K) / 8)
    beside_bytes = max(0, donor.table_bytes - donor_table)  # positions and norms, which keep their types
    output_bytes = table_bytes if donor.output_bytes else 0
    layer_bytes = tensor_bytes - table_bytes - beside_bytes - (0 if donor.is_tied else output_bytes)
    if layer_bytes <= 0:
        return None
    return dataclasses.replace(
        donor,
        quant=quant,
        layer_sizes=_shares(layer_bytes, donor.n_layer),
        table_bytes=table_bytes + beside_bytes,
        output_bytes=output_bytes,
        is_exact=False,
    )


def _shares(size_bytes: int, n: int) -> tuple[int, ...]:
    """Split bytes into n nearly equal parts that add up."""
    return tuple(size_bytes * (i + 1) // n - size_bytes * i // n for i in range(n))


def _table_bytes(shape: Shape, quant: str) -> int:
    return int(shape.n_vocab * shape.n_embd * _TABLE_BITS.get(quant, _TABLE_BITS_K) / 8)


def check_embeddable(facts: ModelFacts, path: Path, *, pooling_type: str | None) -> str:
    """Check that this llama.cpp can embed with the file, before its weights move or load.

    Args:
        facts: of the file.
        path: names the file in errors.
        pooling_type: overrides the header's; from the registry or the caller.

    Returns:
        The pooling to use: "last", "mean" or "cls".

    Raises:
        UnsupportedModelError: the architecture is unknown here, or no usable pooling is known.
    """
    if not is_architecture_supported(facts.architecture):
        raise UnsupportedModelError(
            f"{path.name} is of architecture {facts.architecture!r}, which this llama.cpp does not know; "
            "a newer one may: pip install -U llama-cpp-python",
            path=path,
        )
    pooling = pooling_type or facts.pooling_type
    if pooling in ("last", "mean", "cls"):
        return pooling
    if pooling == "rank":
        raise UnsupportedModelError(f"{path.name} is a reranker: it scores pairs and has no embeddings.", path=path)
    raise UnsupportedModelError(
        f"{path.name} says nothing of pooling ({facts.architecture}.pooling_type), as a chat model does, and vectors "
        "from a guess would be wrong. If it is an embedding model, take a newer conversion of it, or pass what its "
        "card says: pooling_type='last' (--pooling last).",
        path=path,
    )
