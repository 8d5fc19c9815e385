"""What is known of each vector in a file beside the vector: a row's facts, and how they are written down.

It must not know formats or models.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

from numpy.typing import NDArray

from gguf_embed.stream.chunking import Span

__all__ = ["Row", "RowBlock"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of an output.

    Attributes:
        id: what the input called its text, None where it did not.
        text: what was embedded, None where only its checksum is wanted.
        text_sha256: of the text in UTF-8, where that is wanted.
        span: of a chunk in its text, None where texts are whole.
        truncated: whether the text was cut.
        place: where the text comes from, such as "docs.txt, line 5".
    """

    id: Any = None
    text: str | None = None
    text_sha256: str | None = None
    span: Span | None = None
    truncated: bool = False
    place: str = ""

    def columns(self) -> dict[str, Any]:
        """Return what a reader of the output sees, without what this row has not."""
        span = self.span
        known = {
            "id": self.id,
            "text": self.text,
            "text_sha256": self.text_sha256,
            "start": None if span is None else span.start,
            "end": None if span is None else span.end,
            "first_line": None if span is None else span.first_line,
            "last_line": None if span is None else span.last_line,
            "truncated": self.truncated or None,
        }
        return {name: value for name, value in known.items() if value is not None}

    def dump(self) -> bytes:
        """Write the row as a line of JSON, in ASCII: a place may have a name that is no Unicode."""
        return json.dumps(self.columns() | {"place": self.place}).encode() + b"\n"

    @classmethod
    def load(cls, line: bytes) -> Self:
        """Read what `dump` wrote."""
        known = json.loads(line)
        places = ("start", "end", "first_line", "last_line")
        span = Span(**{name: known.pop(name) for name in places}) if "start" in known else None
        return cls(span=span, **known)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Some consecutive rows.

    Attributes:
        rows: n of them.
        vectors: (n, dim), or (n, ceil(dim / 8)) for binary.
    """

    rows: tuple[Row, ...]
    vectors: NDArray[Any]
