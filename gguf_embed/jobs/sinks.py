"""Vectors to files and streams: JSON, JSON Lines, base64, NumPy, Parquet.

A file appears whole or not at all. It must not know where the vectors come from.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from gguf_embed.errors import MissingExtraError, StorageError
from gguf_embed.jobs.rows import RowBlock

__all__ = ["FORMATS", "Table", "check_format", "format_of_name", "mode_of", "replaced", "storage_errors", "write_table"]

_SUFFIXES = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npy": "npy", ".parquet": "parquet", ".b64": "base64",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows to write.

    Attributes:
        blocks: the rows in order; Parquet makes each a row group.
        shape: of all vectors together.
        dtype: of the vectors.
        columns: of the rows beside their vectors, those that any row has.
        metadata: about all of them.
        is_one: a single text was given: "json" is then one array, not an array of them.
    """

    blocks: Iterable[RowBlock]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    columns: tuple[str, ...] = ("text",)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    is_one: bool = False


def format_of_name(path: Path) -> str | None:
    """Return the format that a file's name asks for, None where it asks for none."""
    return _SUFFIXES.get(path.suffix.lower())


def write_table(stream: IO[bytes], table: Table, *, output_format: str) -> None:
    """Write rows.

    Args:
        stream: to write to.
        table: what to write; read block by block.
        output_format: one of FORMATS.
    """
    _WRITERS[output_format](stream, table)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Yield a stream beside `path` that takes its place at the end; a failure leaves `path` as it was.

    Devices and pipes are written to, never replaced; a link stays and what it leads to is replaced.

    Raises:
        StorageError: the file cannot be written.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        with storage_errors(path), path.open("wb") as stream:
            yield stream
        return
    temporary: Path | None = None
    try:
        with storage_errors(path):
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
                temporary = Path(stream.name)
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(mode_of(path))
            temporary.replace(path)
            temporary = None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Say that a file cannot be written where the system says so of it, or of what is to become it.

    Raises:
        StorageError: an OSError that names no file, or one of these; others are somebody else's.
    """
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes) else path.name
        if named != path.name and not named.startswith(f".{path.name}."):
            raise
        raise StorageError(f"{path} cannot be written: {error.strerror or error}", path=path) from error


def mode_of(path: Path) -> int:
    """Return the permissions of a file, or those that a new one gets."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _json_array(row: NDArray[Any]) -> bytes:
    """Shortest decimals that read back as the same float32 (json would print float64's)."""
    return orjson.dumps(np.ascontiguousarray(row), option=orjson.OPT_SERIALIZE_NUMPY)


def _write_json(stream: IO[bytes], table: Table) -> None:
    before = b"" if table.is_one else b"["
    for block in table.blocks:
        for row in block.vectors:
            stream.write(before + _json_array(row))
            before = b",\n "
    stream.write(b"\n" if table.is_one else (b"[" if before == b"[" else b"") + b"]\n")


def _write_jsonl(stream: IO[bytes], table: Table) -> None:
    for block in table.blocks:
        for facts, row in zip(block.rows, block.vectors, strict=True):
            head = json.dumps(facts.columns(), ensure_ascii=False)[:-1].encode()
            comma = b", " if len(head) > 1 else b""
            stream.write(head + comma + b'"embedding": ' + _json_array(row) + b"}\n")


def _write_base64(stream: IO[bytes], table: Table) -> None:
    """One line a text: little-endian bytes, as OpenAI's encoding_format has them."""
    for block in table.blocks:
        for row in block.vectors:
            stream.write(base64.b64encode(row.astype(row.dtype.newbyteorder("<")).tobytes()) + b"\n")


def _write_npy(stream: IO[bytes], table: Table) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(table.dtype), "fortran_order": False, "shape": table.shape}
    np.lib.format.write_array_header_1_0(stream, header)
    for block in table.blocks:
        stream.write(np.ascontiguousarray(block.vectors).data)


def _write_parquet(stream: IO[bytes], table: Table) -> None:
    """Columns id (where there is one), text and so on, and embedding, a fixed-size list; metadata as JSON."""
    import pyarrow as pa  # noqa: PLC0415 - an extra
    import pyarrow.parquet as pq  # noqa: PLC0415

    kinds = {"start": pa.int64(), "end": pa.int64(), "first_line": pa.int64(), "last_line": pa.int64(),
             "truncated": pa.bool_()}  # fmt: skip
    fields = [pa.field(name, kinds.get(name, pa.string())) for name in table.columns]
    fields.append(pa.field("embedding", pa.list_(pa.from_numpy_dtype(table.dtype), table.shape[1])))
    metadata = {"gguf_embed": json.dumps(table.metadata, ensure_ascii=False)} if table.metadata else None
    schema = pa.schema(fields, metadata=metadata)
    with pq.ParquetWriter(stream, schema) as writer:
        for block in table.blocks:
            columns = [row.columns() for row in block.rows]
            values = [_column(name, columns) for name in table.columns]
            arrays = [pa.array(one, kind.type) for one, kind in zip(values, fields, strict=False)]
            flat = pa.array(np.ascontiguousarray(block.vectors).reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, table.shape[1]))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _column(name: str, rows: list[dict[str, Any]]) -> list[Any]:
    if name == "truncated":
        return [row.get(name, False) for row in rows]
    if name == "id":
        return [_id_words(row.get(name)) for row in rows]
    return [row.get(name) for row in rows]


def _id_words(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def check_format(output_format: str) -> None:
    """Check at the door that a format can be written.

    Raises:
        MissingExtraError: Parquet without pyarrow.
    """
    if output_format != "parquet":
        return
    try:
        import pyarrow as pa  # noqa: F401, PLC0415 - an extra, checked at the door
    except ImportError as error:
        raise MissingExtraError('Parquet needs pyarrow; run: pip install "gguf-embed[arrow]"', extra="arrow") from error


_WRITERS: dict[str, Callable[[IO[bytes], Table], None]] = {
    "json": _write_json,
    "jsonl": _write_jsonl,
    "npy": _write_npy,
    "parquet": _write_parquet,
    "base64": _write_base64,
}
FORMATS = tuple(_WRITERS)
