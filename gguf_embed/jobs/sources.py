"""Texts from files, folders and streams, one after the other, however large the input is.

It must not know what becomes of them. Tables, folders and documents are read by the modules of these names.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from gguf_embed.errors import InputError, InvalidTextError
from gguf_embed.jobs import documents
from gguf_embed.jobs.folders import Folder, FolderSource, Found
from gguf_embed.jobs.records import (
    FORMATS,
    ID_FIELD,
    BadRecord,
    Line,
    Record,
    Source,
    SourceOptions,
    bad_record,
    kind_of_name,
    printable,
)

__all__ = ["FORMATS", "BadRecord", "Record", "Source", "SourceOptions", "open_source"]

_TABLES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_N_BYTES_READ = 64 * 1024
_STATEFUL = ("iso2022", "hz", "utf-7")  # a line's bytes depend on the lines before it


def open_source(
    inputs: Sequence[Path | BinaryIO], options: SourceOptions | None = None, *, stdin_name: str = "stdin"
) -> Source:
    """Open files, folders and streams, to be read one after the other.

    By name .jsonl and .ndjson are JSON Lines, .csv and .tsv and .parquet (.pq) are tables, PDF, Office, e-book, mail
    and HTML files are documents, one text each. Every other file and every stream is a text a line, .md and .py too;
    input_format="document" takes them whole. Inside folders every file is one text, tables are left out; where a glob
    chooses them they are read as tables. Binary files (a NUL in the first 8 KiB) of folders are left out likewise.

    A whole file's id is its path in the folder with "/", a single file's its name; with several inputs the path as
    given goes before. The same files give the same records in the same order, each time a source is iterated; a
    stream can be read once.

    Args:
        inputs: files, folders, binary streams.
        options: how to read.
        stdin_name: what streams are called.

    Raises:
        ValueError: no inputs; globs without a folder; Parquet from a stream.
        InputError: an input is not there or cannot be read, has no such column, or no file matches the globs. For
            streams, at the first record.
        MissingExtraError: pyarrow, pathspec or, for a document that is no folder's, kreuzberg is not installed.
    """
    options = options or SourceOptions()
    if not inputs:
        raise ValueError("no inputs")
    folders = [one for one in inputs if isinstance(one, Path) and one.is_dir()]
    if options.globs and not folders:
        raise ValueError("globs choose files of folders, and no folder was given")
    has_many = len(inputs) > 1
    sources: list[Source] = []
    for given in inputs:
        if isinstance(given, Path) and given.is_dir():
            sources.append(_folder_source(given, options, has_many=has_many))
            continue
        name = printable(str(given)) if isinstance(given, Path) else stdin_name
        source = _file_source(given, _format_of(given, options), options, name=name, has_many=has_many)
        if isinstance(source, _FileSource):
            source.check()
        sources.append(source)
    return sources[0] if len(sources) == 1 else _Several(sources)


def _format_of(given: Path | BinaryIO, options: SourceOptions) -> str:
    if options.input_format is not None:
        return options.input_format
    if not isinstance(given, Path):
        return "lines"
    return "document" if documents.is_document(given) else _TABLES.get(given.suffix.lower(), "lines")


def _file_source(
    given: Path | BinaryIO, input_format: str, options: SourceOptions, *, name: str, has_many: bool
) -> Source:
    if input_format != "parquet":
        id_ = None
        if isinstance(given, Path):
            id_ = printable(given.as_posix() if has_many else given.name)
        return _FileSource(given, input_format, options, name=name, id_=id_)
    if not isinstance(given, Path):
        raise ValueError(f"Parquet cannot be read from a stream; save {name} to a file first")  # noqa: TRY004 - a choice
    from gguf_embed.jobs.tables import ParquetTable  # noqa: PLC0415 - csv is loaded for tables alone

    return ParquetTable(given, name=name, field=options.field, id_field=options.id_field)


def _folder_source(folder: Path, options: SourceOptions, *, has_many: bool) -> Source:
    def read(found: Found, place: str) -> Iterator[Record | BadRecord]:
        table = _TABLES.get(found.path.suffix.lower())
        if options.input_format is None and table and not found.is_named:
            return
        input_format = options.input_format or table or "document"
        if input_format == "parquet":
            yield from _file_source(found.path, input_format, options, name=place, has_many=True)
        else:
            yield from _FileSource(
                found.path, input_format, options, name=place, id_=place if has_many else found.relative
            )

    source = FolderSource(
        Folder(folder, globs=options.globs, honours_ignore=options.honours_ignore, output=options.output), read
    )
    if options.globs and not source.n_total:
        raise InputError(
            f"{folder} has no file that matches {' '.join(options.globs)}; hidden files and what .gitignore names are "
            "left out"
        )
    return source


class _FileSource:
    """A file or a stream of lines, JSON Lines or CSV, or that is one text."""

    unit = "bytes"

    def __init__(
        self, given: Path | BinaryIO, input_format: str, options: SourceOptions, *, name: str, id_: str | None
    ) -> None:
        self.name = name
        self._given, self._format, self._options, self._id = given, input_format, options, id_
        self._counted: _Counted | None = None
        self._is_file = isinstance(given, Path) and given.is_file()
        with self._failing():
            self.n_total = given.stat().st_size if isinstance(given, Path) and self._is_file else None
            if isinstance(given, Path):
                given.stat()

    @property
    def n_done(self) -> int:
        return 0 if self._counted is None else self._counted.n_bytes

    def check(self) -> None:
        """Raise what is wrong with the whole file, if it can be told without reading it."""
        if not self._is_file:
            return
        with self._failing(), self._opened() as counted:
            if self._format == "csv":
                from gguf_embed.jobs.tables import columns_of  # noqa: PLC0415 - csv is loaded for tables alone

                lines = _lines(counted, self._options.encoding)
                columns_of(lines, name=self.name, field=self._options.field, id_field=self._options.id_field)
            elif self._is_document():
                documents.check(self.name)

    def __iter__(self) -> Iterator[Record | BadRecord]:
        if self._counted is not None and not self._is_file:
            raise ValueError(f"{self.name} is a stream, which can be read once")
        with self._failing(), self._opened() as self._counted:
            yield from self._records(self._counted)

    def _records(self, counted: _Counted) -> Iterator[Record | BadRecord]:
        if self._format == "document":
            yield from self._whole(counted)
            return
        lines = _lines(counted, self._options.encoding)
        names: dict[str, Any] = {
            "name": self.name, "field": self._options.field, "id_field": self._options.id_field,
        }  # fmt: skip
        if self._format == "csv":
            from gguf_embed.jobs.tables import read_csv  # noqa: PLC0415 - csv is loaded for tables alone

            yield from read_csv(lines, **names)
        elif self._format == "jsonl":
            yield from (_record_of_json(line, **names) for line in lines if line.why or line.text.strip())
        else:
            yield from (_record_of_line(line, self.name) for line in lines)

    def _whole(self, counted: _Counted) -> Iterator[Record | BadRecord]:
        try:
            if self._is_document() and isinstance(self._given, Path):
                documents.check(self.name)
                text = documents.extract(self._given) if self.n_total else ""
                counted.n_bytes, kind = self.n_total or 0, documents.KIND
            else:
                text = documents.read_text(io.BufferedReader(counted), self._options.encoding)
                kind = kind_of_name(self.name)
        except InvalidTextError as error:
            yield bad_record(self.name, str(error), index=0, reason=error.reason, cause=error)
            return
        if text:
            yield Record(text=text, id=self._id, place=self.name, kind=kind)

    def _is_document(self) -> bool:
        return self._format == "document" and isinstance(self._given, Path) and documents.is_document(self._given)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[_Counted]:
        if isinstance(self._given, Path):
            with self._given.open("rb", buffering=0) as stream:
                yield _Counted(stream)
        else:
            yield _Counted(self._given)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.name} cannot be read: {error.strerror or error}") from error


class _Several:
    """Sources one after the other; where their units differ it counts files, those that are whole."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._n_begun = 0
        self.name = f"{sources[0].name} and {len(sources) - 1} more"
        self._is_mixed = len({one.unit for one in sources}) > 1
        self.unit = "files" if self._is_mixed else sources[0].unit

    @property
    def n_total(self) -> int | None:
        if any(one.n_total is None for one in self._sources):
            return None
        return sum(self._size(one) for one in self._sources)

    @property
    def n_done(self) -> int:
        if not self._n_begun:
            return 0
        *whole, now = self._sources[: self._n_begun]
        is_counted = not self._is_mixed or now.unit == "files"
        return sum(self._size(one) for one in whole) + (now.n_done if is_counted else int(now.n_done == now.n_total))

    def __iter__(self) -> Iterator[Record | BadRecord]:
        for i, source in enumerate(self._sources):
            self._n_begun = i + 1
            yield from source

    def _size(self, one: Source) -> int:
        if self._is_mixed and one.unit != "files":
            return 1
        return one.n_done if one.n_total is None else one.n_total


# Bytes to lines


class _Counted(io.RawIOBase):
    """A stream that counts what is read of it, and whose head can be seen before; closing it leaves the stream open."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._read = getattr(stream, "read1", stream.read)  # what is there, without waiting for more
        self._head = b""
        self.n_bytes = 0

    def readable(self) -> bool:
        return True

    def head(self, n_bytes: int) -> bytes:
        """Return the first bytes without taking them."""
        while len(self._head) < n_bytes and (more := self._read(n_bytes - len(self._head))):
            self._head += more
        return self._head

    def readinto(self, buffer: Any) -> int:
        taken = self._head[: len(buffer)] or self._read(len(buffer)) or b""
        self._head = self._head[len(buffer) :]
        buffer[: len(taken)] = taken
        self.n_bytes += len(taken)
        return len(taken)


def _lines(counted: _Counted, encoding: str | None) -> Iterator[Line]:
    """Yield lines with their ends; only a newline ends one."""
    encoding = documents.encoding_of(counted.head(4), encoding)
    stream = io.BufferedReader(counted, _N_BYTES_READ)
    if "\n".encode(encoding) == b"\n" and not encoding.startswith(_STATEFUL):
        return _lines_of_bytes(stream, encoding)
    return _lines_of_text(stream, encoding)


def _lines_of_bytes(stream: BinaryIO, encoding: str) -> Iterator[Line]:
    """Decode each line alone, so that a bad byte spoils one line."""
    number = 0
    while raw := stream.readline(documents.N_BYTES_TEXT + 2):
        number += 1
        if len(raw) > documents.N_BYTES_TEXT and not raw.endswith(b"\n"):
            while (rest := stream.readline(_N_BYTES_READ)) and not rest.endswith(b"\n"):
                pass
            yield Line(number=number, text="\n", why="is longer than 64 MiB; split it", reason="too long")
            continue
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            why, reason = documents.why_not_decoded(encoding, error.start), f"not {encoding.upper()}"
            yield Line(number=number, text=raw.decode(encoding, "replace"), why=why, reason=reason, cause=error)
            continue
        yield Line(number=number, text=text.removeprefix("\ufeff") if number == 1 else text)


def _lines_of_text(stream: BinaryIO, encoding: str) -> Iterator[Line]:
    """Decode UTF-16, UTF-32 and encodings with states as a whole.

    Half a surrogate pair spoils one line; after any other bad byte nothing can be told, so reading ends there.
    """
    errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "strict"
    reader = io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline="\n")
    number = 0
    while True:
        number += 1
        try:
            text = reader.readline(documents.N_BYTES_TEXT)
            is_long = len(text) == documents.N_BYTES_TEXT and not text.endswith("\n")
            while is_long and (rest := reader.readline(_N_BYTES_READ)) and not rest.endswith("\n"):
                pass
        except UnicodeDecodeError as error:
            why = f"not {encoding.upper()} here or soon after, and nothing after it is read; say its right encoding"
            yield Line(number=number, text="\n", why=why, reason=f"not {encoding.upper()}", cause=error)
            return
        if not text:
            return
        text = text.removeprefix("\ufeff") if number == 1 else text
        if is_long:
            yield Line(number=number, text="\n", why="is longer than 64 MiB; split it", reason="too long")
        elif _has_surrogate(text):
            why = "has a lone surrogate; it was cut or decoded wrongly"
            yield Line(number=number, text=text, why=why, reason="lone surrogate")
        else:
            yield Line(number=number, text=text)


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


# Lines to records


def _record_of_line(line: Line, name: str) -> Record | BadRecord:
    place = f"{name}, line {line.number}"
    if line.why:
        return bad_record(place, line.why, index=line.number - 1, reason=line.reason, cause=line.cause)
    text = line.text
    if text.endswith("\n"):
        text = text[:-1].removesuffix("\r")
    return Record(text=text, place=place)


def _record_of_json(line: Line, *, name: str, field: str, id_field: str | None) -> Record | BadRecord:
    place, index = f"{name}, line {line.number}", line.number - 1
    if line.why:
        return bad_record(place, line.why, index=index, reason=line.reason, cause=line.cause)
    try:
        value = json.loads(line.text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        return bad_record(place, f"no JSON: {error}", index=index, reason="no JSON", cause=error)
    text, id_ = (value.get(field), value.get(id_field or ID_FIELD)) if isinstance(value, dict) else (value, None)
    if not isinstance(text, str):
        keys = (
            f"; its keys are: {', '.join(list(value)[:20])}" if isinstance(value, dict) and field not in value else ""
        )
        return bad_record(
            place, f'expected a JSON string or an object with a "{field}" that is one{keys}', index=index,
            reason="no text",
        )  # fmt: skip
    if "\\u" in line.text and _has_surrogate(json.dumps([text, id_], ensure_ascii=False)):
        why = "has a lone surrogate; it was cut or decoded wrongly"
        return bad_record(place, why, index=index, reason="lone surrogate")
    return Record(text=text, id=id_, place=place)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(number: str) -> float:
    """Read a number; one beyond all floats would be written as Infinity, which is no JSON."""
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is larger than numbers can be")
    return value
