"""What goes into a stream of texts and what comes out of it: values.

It must not know how one becomes the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_embed.errors import GGUFEmbedError
from gguf_embed.stream.chunking import Span

__all__ = ["Block", "PlainText", "StreamResult", "Text", "n_bytes_of", "plain_texts"]


class Text(Protocol):
    """One text of a stream."""

    @property
    def id(self) -> Any:
        """What it is called, of any kind."""

    @property
    def text(self) -> str:
        """The text itself."""

    @property
    def kind(self) -> str:
        """What it is written in, for where to cut it: "text", "markdown" or a programming language."""

    @property
    def place(self) -> str:
        """Where it comes from, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainText:
    """A text of a list."""

    id: Any
    text: str
    kind: str = "text"
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamResult:
    """What came of one text, or of one chunk of it.

    Attributes:
        id: of the text.
        place: where the text comes from.
        text: what was embedded.
        vector: (dim,) as `encode` gives it; None where there is an error.
        error: why there is no vector.
        n_tokens: as embedded, special ones included; of all chunks together for their mean.
        truncated: whether the text was cut.
        span: where in the text the chunk lies, where texts are chunked.
        is_cached: whether nothing had to be computed.
    """

    id: Any
    place: str
    text: str
    vector: NDArray[Any] | None
    error: GGUFEmbedError | None = None
    n_tokens: int = 0
    truncated: bool = False
    span: Span | None = None
    is_cached: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Results that were computed together, in the order of the texts.

    Attributes:
        results: of texts or chunks.
        last: the text to which the last result belongs.
        is_whole: whether all of that text is here; a long text may take several blocks.
    """

    results: tuple[StreamResult, ...]
    last: Text
    is_whole: bool

    def vectors(self) -> NDArray[np.float32]:
        """(n, dim) of the results that have one."""
        return np.stack([result.vector for result in self.results if result.vector is not None])


def plain_texts(inputs: Iterable[str | tuple[Any, str]]) -> Iterator[PlainText]:
    """Name texts by their positions, where they do not come in pairs with an id.

    Raises:
        TypeError: an input is neither.
    """
    if isinstance(inputs, str | bytes | dict):
        raise TypeError(f"expected texts, got {type(inputs).__name__}")
    return (_plain_text(index, one) for index, one in enumerate(inputs))


def _plain_text(index: int, one: Any) -> PlainText:
    key, text = one if isinstance(one, tuple) and len(one) == 2 else (index, one)
    if not isinstance(text, str):
        raise TypeError(f"text {index} is {type(text).__name__}; texts are str, or pairs of an id and a str")
    return PlainText(id=key, text=text, place=f"text {index}")


def n_bytes_of(text: str) -> int:
    """Count the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
