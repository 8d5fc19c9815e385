"""What sources are asked for and what they give: texts with name and place, or the reason why there is none.

It knows nothing of how they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol

from gguf_embed.errors import GGUFEmbedError, InvalidTextError

__all__ = [
    "BINARY",
    "FORMATS",
    "BadRecord",
    "Line",
    "Record",
    "Source",
    "SourceOptions",
    "bad_record",
    "kind_of_name",
    "printable",
]

BINARY = "binary"  # the reason of an InvalidTextError about a file that is no text
ID_FIELD = "id"  # where nobody names another
FORMATS = ("lines", "jsonl", "csv", "parquet", "document")

# What a job writes beside its output, and the output itself.
OUTPUT_SUFFIXES = ("", ".partial", ".meta.json", ".rows.jsonl")
_KINDS = {
    ".md": "markdown", ".markdown": "markdown", ".mdx": "markdown",
    ".py": "python", ".pyi": "python",
    ".js": "javascript", ".mjs": "javascript", ".cjs": "javascript", ".jsx": "javascript",
    ".ts": "typescript", ".mts": "typescript", ".cts": "typescript", ".tsx": "tsx",
    ".go": "go", ".rs": "rust", ".java": "java",
    ".c": "c", ".h": "c",
    ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp", ".hh": "cpp", ".hpp": "cpp", ".hxx": "cpp",
    ".cs": "c_sharp", ".rb": "ruby", ".php": "php",
    ".sh": "bash", ".bash": "bash",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One text to embed.

    Attributes:
        text: as it was, line ends inside it too.
        id: whatever the input called it, None where it did not.
        place: where it was found, for a person: "docs.jsonl, line 17", "notes/a.md", "t.parquet, row 3"; from 1.
        kind: "text", "markdown", or the name of a programming language; by the file's name, for whole files alone.
    """

    text: str
    id: Any = None
    place: str = ""
    kind: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """One text that could not be read; those after it still come.

    Attributes:
        place: as in Record.
        error: its message begins with the place, says what is wrong and what to do.
    """

    place: str
    error: GGUFEmbedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a file, with its line end.

    Attributes:
        number: from 1.
        text: where `why` is not empty, what could be made of it, for its quotes alone.
        why: what is wrong with it and what to do, "" where nothing is.
        reason: the same in two words, for InvalidTextError.
        cause: the exception that told it.
    """

    number: int
    text: str
    why: str = ""
    reason: str = ""
    cause: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How to read.

    Attributes:
        field: of JSON objects, or the column of tables, that has the texts.
        id_field: the same for ids; a table without it is an error. None: "id", where there are any.
        encoding: of text files; None: UTF-8 with or without a byte order mark, UTF-16 and UTF-32 by their marks.
        globs: which files of folders: gitwildmatch patterns, any of which takes a file; "!" before one leaves out.
        honours_ignore: whether .gitignore files count.
        input_format: one of FORMATS for every file and stream; "document": a whole file is one text. None: by name,
            see sources.open_source().
        output: what is being written: in folders it is left out, with all that is named after it.
    """

    field: str = "text"
    id_field: str | None = None
    encoding: str | None = None
    globs: tuple[str, ...] = ()
    honours_ignore: bool = True
    input_format: str | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        if not self.field or self.id_field == "":
            raise ValueError("field and id_field are names, not empty")
        if self.input_format is not None and self.input_format not in FORMATS:
            raise ValueError(f"input_format is one of {', '.join(FORMATS)}, not {self.input_format!r}")
        if self.encoding is not None:
            try:
                " ".encode(self.encoding)
            except (LookupError, UnicodeError) as error:
                raise ValueError(f"{self.encoding!r} is no encoding of text; one is like latin-1 or cp1252") from error


class Source(Protocol):
    """Records in order, and how far reading has come.

    Attributes:
        name: of the input, for a person.
        unit: of n_done and n_total: "bytes", "rows" or "files".
    """

    name: str
    unit: str

    @property
    def n_done(self) -> int:
        """How much has been read, since iterating last began."""

    @property
    def n_total(self) -> int | None:
        """How much there is; None for streams."""

    def __iter__(self) -> Iterator[Record | BadRecord]:
        """Read from the start."""


def printable(name: str) -> str:
    """Write the bytes of a file's name that are no UTF-8 as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def bad_record(place: str, why: str, *, index: int, reason: str, cause: BaseException | None = None) -> BadRecord:
    """Say that there is no text at a place.

    Args:
        place: as in Record.
        why: what is wrong and what to do.
        index: position in the input, from 0.
        reason: the same in two words.
        cause: the exception that told it.
    """
    error = InvalidTextError(f"{place}: {why}", index=index, reason=reason)
    error.__cause__ = cause
    return BadRecord(place=place, error=error)


def kind_of_name(name: str) -> str:
    """Return what a file holds by its name: "markdown", a programming language, or "text"."""
    return _KINDS.get(PurePath(name).suffix.lower(), "text")
