"""Vectors to files and streams: JSON, JSON Lines, base64, NumPy, Parquet.

A file appears whole or not at all. It must not know where the vectors come from.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gguf_embed.errors import MissingExtraError, StorageError
from gguf_embed.jobs.sources import Record

__all__ = ["FORMATS", "check_format", "format_of_name", "write_embeddings"]

Embeddings = NDArray[Any]

_SUFFIXES = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npy": "npy", ".parquet": "parquet", ".b64": "base64",
}  # fmt: skip


def format_of_name(path: Path) -> str | None:
    """Return the format that a file's name asks for, None where it asks for none."""
    return _SUFFIXES.get(path.suffix.lower())


def write_embeddings(
    target: Path | IO[bytes], embeddings: Embeddings, records: Sequence[Record], *, output_format: str, is_one: bool
) -> None:
    """Write embeddings.

    Args:
        target: a file, replaced whole once everything is written, or a stream.
        embeddings: (n, dim).
        records: the n texts.
        output_format: one of FORMATS.
        is_one: a single text was given: "json" is then one array, not an array of them.

    Raises:
        StorageError: the file cannot be written; what was there stays.
    """
    write = _WRITERS[output_format]
    if isinstance(target, Path):
        with _replaced(target) as stream:
            write(stream, embeddings, records, is_one)
    else:
        write(target, embeddings, records, is_one)


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    """Yield a stream beside `path` that takes its place at the end; a failure leaves `path` as it was.

    Devices and pipes are written to, never replaced; a link stays and what it leads to is replaced.
    """
    temporary: str | None = None
    path = path.resolve()
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                yield stream
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            temporary = stream.name
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)  # noqa: PTH105 - atomic, and says so
        temporary = None
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}", path=path) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _json_array(row: NDArray[Any]) -> str:
    """Shortest decimals that read back as the same float32 (json would print float64's)."""
    return f"[{','.join(row.astype(str))}]"


def _write_json(stream: IO[bytes], embeddings: Embeddings, _records: Sequence[Record], is_one: bool) -> None:
    rows = [_json_array(row) for row in embeddings]
    stream.write((rows[0] if is_one else "[" + ",\n ".join(rows) + "]").encode() + b"\n")


def _write_jsonl(stream: IO[bytes], embeddings: Embeddings, records: Sequence[Record], _is_one: bool) -> None:
    for record, row in zip(records, embeddings, strict=True):
        facts = {"text": record.text} if record.id is None else {"id": record.id, "text": record.text}
        head = json.dumps(facts, ensure_ascii=False)[:-1]
        stream.write(f'{head}, "embedding": {_json_array(row)}}}\n'.encode())


def _write_base64(stream: IO[bytes], embeddings: Embeddings, _records: Sequence[Record], _is_one: bool) -> None:
    """One line a text: little-endian bytes, as OpenAI's encoding_format has them."""
    stream.writelines(base64.b64encode(row.astype(row.dtype.newbyteorder("<")).tobytes()) + b"\n" for row in embeddings)


def _write_npy(stream: IO[bytes], embeddings: Embeddings, _records: Sequence[Record], _is_one: bool) -> None:
    np.lib.format.write_array(stream, np.ascontiguousarray(embeddings), allow_pickle=False)


def _write_parquet(stream: IO[bytes], embeddings: Embeddings, records: Sequence[Record], _is_one: bool) -> None:
    """Columns id (where there is one), text and embedding, a fixed-size list."""
    import pyarrow as pa  # noqa: PLC0415 - an extra
    import pyarrow.parquet as pq  # noqa: PLC0415

    flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
    columns: dict[str, Any] = {}
    if any(record.id is not None for record in records):
        columns["id"] = pa.array([None if record.id is None else str(record.id) for record in records], pa.string())
    columns["text"] = pa.array([record.text for record in records], pa.string())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    pq.write_table(pa.table(columns), stream)


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


_WRITERS: dict[str, Callable[[IO[bytes], Embeddings, Sequence[Record], bool], None]] = {
    "json": _write_json,
    "jsonl": _write_jsonl,
    "npy": _write_npy,
    "parquet": _write_parquet,
    "base64": _write_base64,
}
FORMATS = tuple(_WRITERS)
