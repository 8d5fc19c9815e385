"""How texts become vectors: the options of a call, its report, and the way from raw rows to what was asked for.

It must not know sessions, files or plans.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, SupportsIndex, TypedDict

import numpy as np
from numpy.typing import NDArray

from gguf_embed import vectors
from gguf_embed.errors import DimensionError
from gguf_embed.models.specs import Matryoshka, ModelSpec
from gguf_embed.prompts import PromptSet, resolve_prompt

__all__ = [
    "EmbedReport", "EncodeKeywords", "EncodeOptions", "Preparation", "QueryKeywords", "as_list", "check_dim", "finish",
    "prepare",
]  # fmt: skip

Float32Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """How texts become vectors.

    Attributes:
        prompt_name: a prompt of the model, such as "query".
        prompt: put before each text as it is; wins over prompt_name.
        task: takes the place of the task in the query prompt.
        batch_size: at most this many texts a decode; memory is bounded by tokens, not by it.
        normalize_embeddings: give rows unit length.
        truncate_dim: components to keep (MRL), None for the Embedder's.
        truncate: "error" for over-long texts, or "end" to cut them.
        precision: "float32", "float16", "int8", "uint8", "binary" or "ubinary".
    """

    prompt_name: str | None = None
    prompt: str | None = None
    task: str | None = None
    batch_size: int | None = None
    normalize_embeddings: bool = True
    truncate_dim: int | None = None
    truncate: str = "error"
    precision: str = "float32"

    def __post_init__(self) -> None:
        size = self.batch_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, SupportsIndex) or size < 1):
            raise ValueError(f"batch_size is {self.batch_size!r}; it is a whole number of at least 1")
        if self.truncate not in ("error", "end"):
            raise ValueError(f"truncate is {self.truncate!r}; it is 'error' or 'end'")
        if self.precision not in vectors.PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; it is one of {', '.join(vectors.PRECISIONS)}")

    def check_n_texts(self, n_texts: int) -> None:
        """Refuse int8 and uint8 for a single text, whose components have no range.

        Raises:
            ValueError: they were asked for.
        """
        if self.precision in ("int8", "uint8") and n_texts == 1:
            raise ValueError(f"{self.precision} spreads the range of many rows and got one; use binary or float32")


class EncodeKeywords(TypedDict, total=False):
    """Keywords of `encode` and `encode_document`."""

    prompt_name: str | None
    prompt: str | None
    batch_size: int | None
    show_progress_bar: bool
    precision: str
    normalize_embeddings: bool
    truncate_dim: int | None
    truncate: str


class QueryKeywords(EncodeKeywords, total=False):
    """Keywords of `encode_query`."""

    task: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedReport:
    """Embeddings and what happened on the way.

    Attributes:
        embeddings: (n, dim) in the order of the texts.
        n_tokens: tokens of each text as embedded, special ones included.
        truncated: positions of the texts that were cut.
    """

    embeddings: NDArray[Any]
    n_tokens: tuple[int, ...]
    truncated: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What the options of a call come to for one model.

    Attributes:
        prefix: put before each text, "" for nothing.
        dim: components of the vectors.
        finish: makes (n, dim) rows of the (n, n_embd) that the model gives; picklable.
    """

    prefix: str
    dim: int
    finish: Callable[[Float32Matrix], Float32Matrix]


def prepare(
    options: EncodeOptions, spec: ModelSpec | None, n_embd: Callable[[], int], *, truncate_dim: int | None = None
) -> Preparation:
    """Decide what goes before texts and what becomes of their rows.

    Args:
        options: of the call.
        spec: what the registry knows of the model, None where it does not.
        n_embd: components of the model's full vectors, asked for when all else is in order.
        truncate_dim: taken where the options have none.

    Raises:
        ValueError: an unknown prompt_name, or a task where none can go.
        DimensionError: the model was not trained for the dimension.
    """
    prompts = spec.prompts if spec is not None else PromptSet()
    matryoshka = spec.matryoshka if spec is not None else None
    prefix = resolve_prompt(prompts, prompt_name=options.prompt_name, prompt=options.prompt, task=options.task)
    dim = truncate_dim if options.truncate_dim is None else options.truncate_dim
    if dim is not None:
        dim = check_dim(dim, n_embd(), model=spec.model_id if spec is not None else None, matryoshka=matryoshka)
    return Preparation(
        prefix=prefix,
        dim=n_embd() if dim is None else dim,
        finish=partial(finish, dim=dim, matryoshka=matryoshka, normalize=options.normalize_embeddings),
    )


def as_list(inputs: Iterable[str]) -> list[str]:
    """Take any number of texts; one text, bytes or a mapping is a mistake, and a TypeError."""
    if isinstance(inputs, str | bytes | bytearray | dict) or not isinstance(inputs, Iterable):
        raise TypeError(f"expected texts, got {type(inputs).__name__}")
    return list(inputs)


def finish(
    rows: Float32Matrix, dim: int | None, *, matryoshka: Matryoshka | None = None, normalize: bool = True
) -> Float32Matrix:
    """Raw rows to what was asked for: layer norm where the model wants it before a cut, cut, L2.

    Args:
        rows: (n, n_embd) float32 as the model gave them.
        dim: components to keep, None for all.
        matryoshka: how the model was trained to be cut.
        normalize: give rows unit length.

    Returns:
        (n, dim) float32.
    """
    if dim is None or dim == rows.shape[1]:
        return vectors.l2_normalize(rows) if normalize else rows
    if matryoshka is not None and matryoshka.layer_norm_first:
        rows = vectors.layer_norm(rows)
    return vectors.truncate_dim(rows, dim) if normalize else np.ascontiguousarray(rows[:, :dim])


def check_dim(dim: int, n_embd: int, *, model: str | None, matryoshka: Matryoshka | None) -> int:
    """Refuse to cut vectors where the model was not trained for it.

    Args:
        dim: components asked for.
        n_embd: components of a full vector.
        model: the registry's name, None for a file that it does not know.
        matryoshka: how the model was trained to be cut, None for not.

    Returns:
        `dim`.

    Raises:
        TypeError: dim is no whole number.
        DimensionError: dim is not allowed; the message has what is.
    """
    if isinstance(dim, bool) or not isinstance(dim, SupportsIndex):
        raise TypeError(f"truncate_dim is {dim!r}; it is a whole number")
    dim = operator.index(dim)  # NumPy's integers too
    if dim == n_embd or (matryoshka is not None and matryoshka.allows(dim, n_embd)):
        return dim
    allowed = matryoshka.describe(n_embd) if matryoshka is not None else str(n_embd)
    if model is None:
        why = "whether this file was trained to be cut is not known; cut it yourself with gguf_embed.truncate_dim()"
    elif matryoshka is None:
        why = f"{model} was not trained to be cut and gives {n_embd}"
    else:
        why = f"{model} gives {allowed}"
    raise DimensionError(f"truncate_dim is {dim}; {why}", dim=dim, allowed=allowed)
