"""Records out of tables: CSV and TSV by the standard library, Parquet by pyarrow.

It must not know folders, nor how bytes became lines.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_embed.errors import InputError, MissingExtraError
from gguf_embed.jobs.records import ID_FIELD, BadRecord, Line, Record, bad_record

__all__ = ["Columns", "ParquetTable", "columns_of", "read_csv"]

_DELIMITERS = (",", ";", "\t", "|")
_N_CHARS_FIELD = 16 * 1024 * 1024  # more than any model reads; csv holds 4 bytes a character
_N_CHARS_HEADER = 1024 * 1024
_N_BYTES_BATCH = 8 * 1024 * 1024  # texts in memory at a time
_N_ROWS_BATCH = 1024
_N_BYTES_PAGES = 1024 * 1024  # read at a time of a Parquet column


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What a CSV header says: the delimiter, and where text and id are (id None: nowhere) among `n` columns."""

    delimiter: str
    text: int
    id: int | None
    n: int


# CSV


def columns_of(lines: Iterator[Line], *, name: str, field: str, id_field: str | None) -> Columns:
    """Read the header, as far as it goes, and find its delimiter: the one that gives a column named `field`.

    Args:
        lines: from the start; a name ending in .tsv has the tab tried first, then comma, semicolon, tab and bar.
        name: of the input.
        field: column of the texts.
        id_field: column of the ids, None for "id" if there is one.

    Raises:
        InputError: there is no header, it cannot be decoded, or has no such column, or has it twice.
    """
    header = ""
    for line in lines:
        if line.why:
            raise InputError(f"{name}, line {line.number}: {line.why}") from line.cause
        header += line.text
        if header.strip() and (header.count('"') % 2 == 0 or len(header) > _N_CHARS_HEADER):
            break
    if not header.strip():
        raise InputError(f'{name} is empty; its first line must name the columns, one of them "{field}"')
    delimiters = ("\t", *_DELIMITERS) if name.lower().endswith(".tsv") else _DELIMITERS
    splits = {delimiter: names for delimiter in delimiters if (names := _names(header, delimiter))}
    for delimiter, names in splits.items():
        if names.count(field) == 1:
            return Columns(
                delimiter=delimiter, text=names.index(field), id=_id_column(name, names, field, id_field), n=len(names)
            )
    raise _no_column(name, field, max(splits.values(), key=len, default=[]))


def read_csv(lines: Iterator[Line], *, name: str, field: str, id_field: str | None) -> Iterator[Record | BadRecord]:
    """Read the rows under a header.

    Fields may be quoted, and have line ends and doubled quotes inside the quotes. Blank lines are skipped. A row with
    fewer fields than the header has, or more that are not empty, is bad: a quote is missing there. So is one whose
    quotes are wrong; reading goes on with the next line. A field is at most 16 Mi characters long.

    Args:
        lines: with their line ends.
        name: of the input.
        field: column of the texts.
        id_field: column of the ids, None for "id" if there is one; ids are str.

    Raises:
        InputError: as columns_of().
    """
    columns = columns_of(lines, name=name, field=field, id_field=id_field)
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=columns.delimiter, strict=True)
    while True:
        feed.first = feed.fault = None
        cells: list[str] | None = None
        cause: Exception | None = None
        try:
            cells = _next_row(reader)
        except csv.Error as error:
            cause = error
        if feed.first is None:
            return
        if cells == [] and feed.fault is None:
            continue
        yield _record(cells, columns, feed, f"{name}, line {feed.first}", cause)


def _record(
    cells: list[str] | None, columns: Columns, feed: _Feed, place: str, cause: Exception | None
) -> Record | BadRecord:
    index = (feed.first or 1) - 1
    if feed.fault is not None:
        fault = feed.fault
        here = "" if fault.number == feed.first else f"line {fault.number} is "
        return bad_record(place, f"{here}{fault.why}", index=index, reason=fault.reason, cause=fault.cause)
    if cells is None:
        why = "a quoted field is never closed, or is longer than 16 Mi characters" if _is_open(cause) else str(cause)
        return bad_record(
            place, f'no CSV: {why}; quote fields with " and double the quotes inside', index=index, reason="no CSV",
            cause=cause,
        )  # fmt: skip
    if len(cells) < columns.n or any(cells[columns.n :]):
        return bad_record(
            place,
            f"{len(cells)} fields where the header has {columns.n}; quote fields that have a delimiter or a line end "
            "inside",
            index=index,
            reason="wrong number of fields",
        )
    return Record(text=cells[columns.text], id=None if columns.id is None else cells[columns.id], place=place)


def _is_open(cause: Exception | None) -> bool:
    return str(cause).startswith(("unexpected end of data", "field larger"))


class _Feed:
    """Gives csv its lines and remembers, for the row at hand, the first line and the first broken one."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self.first: int | None = None
        self.fault: Line | None = None

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if self.first is None:
            self.first = line.number
        if line.why and self.fault is None:
            self.fault = line
        return line.text


def _next_row(reader: Any) -> list[str] | None:
    """Return the next row, None at the end.

    csv's limit of a field is the process's; it is lifted for this call alone.
    """
    before = csv.field_size_limit(_N_CHARS_FIELD)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def _names(header: str, delimiter: str) -> list[str]:
    """Split a header; empty where it is none with this delimiter."""
    try:
        rows = [row for row in csv.reader(header.splitlines(keepends=True), delimiter=delimiter, strict=True) if row]
    except csv.Error:
        return []
    return [name.strip() for name in rows[0]] if rows else []


def _id_column(name: str, names: list[str], field: str, id_field: str | None) -> int | None:
    """Find the ids' column; one that was asked for by name must be there."""
    wanted = id_field or ID_FIELD
    if wanted != field and names.count(wanted) == 1:
        return names.index(wanted)
    if id_field is not None and id_field != field:
        raise _no_column(name, id_field, names, "ids")
    return None


def _no_column(name: str, field: str, names: Sequence[str], what: str = "texts") -> InputError:
    if names.count(field) > 1:
        return InputError(f'{name} has {names.count(field)} columns named "{field}"; rename all but one')
    known = ", ".join(names[:50]) + (", ..." if len(names) > 50 else "")
    return InputError(f'{name} has no column "{field}"; its columns are: {known}; say which one has the {what}')


# Parquet


class ParquetTable:
    """A Parquet file as a source of records: two of its columns, a few MiB of texts at a time.

    Pages are read one after the other, so the size of a row group does not count, but for what its pages share: a
    column that is dictionary-encoded holds the dictionary of its row group. Ids that JSON has no form for become str.

    Args:
        path: the file.
        name: of the input.
        field: column of the texts: string, large_string, or a dictionary of these.
        id_field: column of the ids, None for "id" if there is one.

    Raises:
        MissingExtraError: pyarrow is not installed.
        InputError: the file is no Parquet, or has no such column, or no texts in it.
    """

    unit = "rows"

    def __init__(self, path: Path, *, name: str, field: str, id_field: str | None) -> None:
        self.name = name
        self._path, self._field, self._id_field = path, field, id_field
        self.n_done = 0
        with self._opened() as table:
            self.n_total: int | None = table.metadata.num_rows
            self._check(table.schema_arrow)

    def __iter__(self) -> Iterator[Record | BadRecord]:
        self.n_done = 0
        with self._opened() as table:
            names = table.schema_arrow.names
            at = _id_column(self.name, names, self._field, self._id_field)
            columns = [self._field] if at is None else [self._field, names[at]]
            n_rows_batch = self._n_rows_batch(table.metadata)
            for i in range(table.metadata.num_row_groups):
                end = self.n_done + table.metadata.row_group(i).num_rows
                batches = table.iter_batches(batch_size=n_rows_batch, row_groups=[i], columns=columns)
                try:
                    while (batch := next(batches, None)) is not None:
                        ids = _values(batch.column(columns[1])) if at is not None else [None] * batch.num_rows
                        yield from self._records(_values(batch.column(self._field)), ids)
                except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
                    why = f"the file is broken from here to row {end}, and these are left out: {error}"
                    place = f"{self.name}, row {self.n_done + 1}"
                    yield bad_record(place, why, index=self.n_done, reason="broken file", cause=error)
                    self.n_done = end

    def _records(self, texts: list[Any], ids: list[Any]) -> Iterator[Record | BadRecord]:
        for text, id_ in zip(texts, ids, strict=True):
            record = self._record(text, id_)
            self.n_done += 1
            yield record

    def _record(self, text: Any, id_: Any) -> Record | BadRecord:
        place = f"{self.name}, row {self.n_done + 1}"
        if text is None:
            why = "has no text; leave such rows out of the table"
            return bad_record(place, why, index=self.n_done, reason="no text")
        if not isinstance(text, str):
            return bad_record(place, "not UTF-8; write the table anew", index=self.n_done, reason="not UTF-8")
        return Record(text=text, id=_id_of(id_), place=place)

    def _opened(self) -> Any:
        try:
            import pyarrow.parquet as pq  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise MissingExtraError(
                'Parquet needs pyarrow; run: pip install "gguf-embed[arrow]"', extra="arrow"
            ) from error
        try:
            return pq.ParquetFile(self._path, buffer_size=_N_BYTES_PAGES, pre_buffer=False)
        except OSError as error:
            raise InputError(f"{self.name} cannot be read: {error.strerror or error}") from error
        except ValueError as error:  # ArrowInvalid is one
            raise InputError(f"{self.name} is no Parquet file: {error}") from error

    def _check(self, schema: Any) -> None:
        import pyarrow as pa  # noqa: PLC0415 - an extra

        if schema.names.count(self._field) != 1:
            raise _no_column(self.name, self._field, schema.names)
        _id_column(self.name, schema.names, self._field, self._id_field)
        kind = schema.field(self._field).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(
            is_text(plain) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        ):
            raise InputError(
                f'{self.name}: the column "{self._field}" is {kind}, not text; say which one has the texts'
            )

    def _n_rows_batch(self, metadata: Any) -> int:
        """Return how many rows to read at a time, by the mean size of a text in the largest row group."""
        mean = 1.0
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            sizes = [group.column(j) for j in range(group.num_columns)]
            n_bytes = sum(one.total_uncompressed_size for one in sizes if one.path_in_schema == self._field)
            mean = max(mean, n_bytes / max(group.num_rows, 1))
        return max(1, min(_N_ROWS_BATCH, int(_N_BYTES_BATCH / mean)))


def _values(column: Any) -> list[Any]:
    """Return a column's values; bytes stand where a text is no UTF-8, which Arrow does not check."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(one) for one in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes() if hasattr(scalar, "as_buffer") else b""


def _id_of(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)  # pandas has NaN where an id is missing
    return value if value is None or isinstance(value, str | int | float) else str(value)
