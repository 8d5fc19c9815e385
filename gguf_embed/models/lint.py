"""Checks of a GGUF header for what makes llama.cpp abort the process or tokenize wrongly.

Pure, over one header. It must not know registries, plans or what the file is used for.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

from gguf_embed.errors import InvalidGGUFError, UnsupportedModelError
from gguf_embed.native.ggml import GGUFHeader

__all__ = ["check_header"]

logger = logging.getLogger(__name__)

# Beyond these no model is known, and llama.cpp asserts or overflows. Source: fuzzing of llama.cpp 0c1e57098.
_RANGES = {
    "block_count": (1, 4096),
    "embedding_length": (1, 1 << 20),
    "feed_forward_length": (1, 1 << 24),
    "context_length": (1, 1 << 30),
    "attention.head_count": (1, 1 << 16),
    "attention.head_count_kv": (0, 1 << 16),
    "attention.key_length": (1, 1 << 16),
}
_EPSILONS = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")
# Ids that llama.cpp uses for WordPiece whether or not the file has them. Source: src/llama-vocab.cpp, special_*_id.
_WORDPIECE_DEFAULTS = {"bos_token_id": 101, "unknown_token_id": 100, "seperator_token_id": 102}


def check_header(header: GGUFHeader, architecture: str, path: Path) -> None:
    """Refuse a header that llama.cpp would abort on, and warn of one that it would misread.

    Args:
        header: as llama.cpp parsed it.
        architecture: general.architecture.
        path: names the file in errors.

    Raises:
        InvalidGGUFError: a value that no model has.
        UnsupportedModelError: no vocabulary.
    """
    _check_numbers(header, architecture, path)
    _check_norms(header, path)
    _check_vocabulary(header, path)


def _check_numbers(header: GGUFHeader, architecture: str, path: Path) -> None:
    for name, (least, most) in _RANGES.items():
        value = header.metadata.get(f"{architecture}.{name}", least)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
                raise _damaged(path, f"{architecture}.{name} is {number!r}")
    for name in _EPSILONS:
        epsilon = header.metadata.get(f"{architecture}.{name}", 1e-6)
        if not isinstance(epsilon, float) or not math.isfinite(epsilon) or epsilon < 0:
            raise _damaged(path, f"{architecture}.{name} is {epsilon!r}")


def _check_norms(header: GGUFHeader, path: Path) -> None:
    for tensor in header.tensors:
        if tensor.name.endswith("norm.weight") and tensor.type_name != "F32":
            raise _damaged(path, f"{tensor.name} is {tensor.type_name}, and norms are F32")


def _check_vocabulary(header: GGUFHeader, path: Path) -> None:
    n_vocab = header.array_lengths.get("tokenizer.ggml.tokens", 0)
    if not n_vocab:
        raise UnsupportedModelError(
            f"{path.name} has no vocabulary (tokenizer.ggml.tokens); it is no text model.", path=path
        )
    family = header.metadata.get("tokenizer.ggml.model")
    ids = {f"tokenizer.ggml.{name}": default for name, default in _WORDPIECE_DEFAULTS.items() if family == "bert"}
    ids |= {
        key: value
        for key, value in header.metadata.items()
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id") and isinstance(value, int)
    }
    for key, value in ids.items():
        if not 0 <= value < n_vocab:
            raise _damaged(path, f"{key} is {value} in a vocabulary of {n_vocab}")
    if family == "gpt2" and "tokenizer.ggml.pre" not in header.metadata:
        logger.warning(
            "%s does not say how its tokenizer cuts texts (tokenizer.ggml.pre), and llama.cpp's default may not be the "
            "model's; take a newer conversion of it",
            path.name,
        )


def _damaged(path: Path, what: str) -> InvalidGGUFError:
    return InvalidGGUFError(
        f"{path.name} is damaged or was written wrongly: {what}. Delete it, and fetch or make it again.", path=path
    )
