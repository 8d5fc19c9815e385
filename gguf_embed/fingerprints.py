"""What moves a vector, and the number that stands for it: equal only where vectors compare.

It must not know plans, texts or how a file is found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gguf_embed.models.header import ModelFacts, load_facts
from gguf_embed.models.specs import ModelSpec
from gguf_embed.prompts import PromptSet

__all__ = ["TOKEN_RULE", "Recipe", "checked_fingerprint", "recipe_of", "sha256_of"]

# Raised when `engine.tokenizing` gives other tokens for the same text, so that rows of before do not pass for new ones.
TOKEN_RULE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that moves a vector but the text, and which of the model's own prompts went before it.

    How it is written is no part: float32, int8 and binary outputs share a fingerprint, and say their precision beside.

    Attributes:
        sha256: of the file: weights, quantization, tokenizer.
        pooling_type: "last", "mean" or "cls".
        add_eos: texts end in EOS; None where the file leaves it to llama.cpp.
        token_rule: of this program: what is done to a text before llama.cpp's tokenizer sees it.
        kv_type: of the KV cache, "f16" or "q8_0".
        prompts: what goes before queries and documents.
        prompt: what went before the texts instead of these, None for nothing of the kind.
        dim: components of the vectors.
        layer_norm_first: rows are layer-normed before they are cut.
        normalize: rows have unit length.
    """

    sha256: str
    pooling_type: str
    add_eos: bool | None
    token_rule: int = TOKEN_RULE
    kv_type: str = "f16"
    prompts: PromptSet
    prompt: str | None = None
    dim: int
    layer_norm_first: bool = False
    normalize: bool = True

    def cut(self, dim: int, *, normalize: bool, spec: ModelSpec | None) -> Recipe:
        """Return the recipe of vectors of `dim` components, of unit length or not."""
        is_cut = spec is not None and dim < spec.n_embd
        return dataclasses.replace(
            self, dim=dim, normalize=normalize, layer_norm_first=is_cut and _has_layer_norm(spec)
        )

    @property
    def fingerprint(self) -> str:
        """32 hex digits."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:32]


def recipe_of(
    path: Path,
    *,
    spec: ModelSpec | None,
    dim: int | None = None,
    normalize: bool = True,
    prompt: str | None = None,
    kv_type: str = "f16",
    pooling_type: str | None = None,
    add_eos: bool | None = None,
) -> Recipe:
    """Say what moves the vectors of a file.

    Args:
        path: the GGUF; read once where its checksum is not its name in the cache.
        spec: what the registry knows of the model, None where it does not.
        dim: components of the vectors, None for all.
        normalize: whether rows have unit length.
        prompt: of the caller's own; one of the model's does not count.
        kv_type: of the KV cache.
        pooling_type: in place of the registry's and the header's.
        add_eos: in place of the registry's and the header's.

    Raises:
        ModelLoadError: it is no GGUF.
    """
    facts: ModelFacts = load_facts(path)
    of_spec = (spec.pooling_type, spec.add_eos) if spec is not None else (None, None)
    eos = next((one for one in (add_eos, of_spec[1]) if one is not None), facts.add_eos)
    dim = facts.n_embd if dim is None else dim
    prompts = spec.prompts if spec is not None else PromptSet()
    return Recipe(
        sha256=sha256_of(path),
        pooling_type=pooling_type or of_spec[0] or facts.pooling_type or "",
        add_eos=eos,
        kv_type=kv_type,
        prompts=prompts,
        prompt=prompts.foreign(prompt),
        dim=dim,
        layer_norm_first=dim < facts.n_embd and _has_layer_norm(spec),
        normalize=normalize,
    )


def _has_layer_norm(spec: ModelSpec | None) -> bool:
    """Whether rows are layer-normed before they are cut."""
    return spec is not None and spec.matryoshka is not None and spec.matryoshka.layer_norm_first


def checked_fingerprint(text: str) -> str:
    """Return a fingerprint as it is written here.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{32}", text.lower()):
        raise ValueError(f"{text!r} is no fingerprint; it is 32 hex digits, as gguf-embed show prints them")
    return text.lower()


def sha256_of(path: Path) -> str:
    """The file's checksum; a blob of the Hugging Face cache carries it as its name."""
    real = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    facts = real.stat()
    return _sha256_of(real, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256_of(path: Path, size_bytes: int, changed_ns: int) -> str:  # noqa: ARG001 - what tells files apart
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
