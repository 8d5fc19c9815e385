"""From a job's rows to the file that was asked for, and what lies beside it.

It must not know sources or models.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gguf_embed import __version__
from gguf_embed.errors import InputError
from gguf_embed.jobs.rows import Row, RowBlock
from gguf_embed.jobs.sinks import Table, check_format, storage_errors, write_table
from gguf_embed.jobs.spool import Spool
from gguf_embed.vectors import calibrate, quantize_embeddings

__all__ = ["Output", "forget_beside", "load_ranges", "table_of", "write_output", "write_stream"]

_COLUMNS = ("id", "text", "text_sha256", "start", "end", "first_line", "last_line", "truncated")
_NEEDS_RANGES = ("int8", "uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """How rows are written.

    Attributes:
        output_format: one of sinks.FORMATS.
        precision: of the vectors.
        ranges: (2, dim) for int8 and uint8; None takes those of all vectors.
    """

    output_format: str
    precision: str = "float32"
    ranges: NDArray[np.float32] | None = None


def write_output(output: Output, spool: Spool, about: Mapping[str, Any], *, has_gaps: bool) -> None:
    """Make the output of all rows; what lies beside it comes first, so that the output means that all is there.

    Args:
        output: how.
        spool: the rows, and whose output it is.
        about: what made them.
        has_gaps: whether some texts have no row, so that positions do not tell which has which.

    Raises:
        StorageError: something cannot be written; the spool stays.
    """
    checkpoint = spool.checkpoint
    output = dataclasses.replace(output, ranges=_ranges(output, spool))
    shape = (checkpoint.n_rows, spool.dim)
    table = table_of(spool.blocks, output, shape=shape, columns=checkpoint.columns, about=about)
    is_ready = output.output_format == "npy" and output.precision == "float32"
    with spool.storing():
        if output.output_format == "npy" and (has_gaps or not set(checkpoint.columns) <= {"text", "text_sha256"}):
            with spool.staged(".rows.jsonl") as stream:
                stream.writelines(_line(row) for block in spool.blocks() for row in block.rows)
        if output.output_format != "parquet":
            with spool.staged(".meta.json") as stream:
                stream.write(json.dumps(table.metadata, ensure_ascii=False, indent=1).encode() + b"\n")
        if not is_ready:
            with spool.staged("") as stream:
                write_table(stream, table, output_format=output.output_format)
        spool.place((".rows.jsonl", ".meta.json"))
        if is_ready:
            spool.become_npy()
        else:
            spool.place(("",))


def forget_beside(path: Path) -> None:
    """Delete what an earlier output of this name left beside it.

    Raises:
        StorageError: it cannot be deleted.
    """
    for suffix in (".rows.jsonl", ".meta.json"):
        beside = path.with_name(f"{path.name}{suffix}")
        with storage_errors(beside):
            beside.unlink(missing_ok=True)


def table_of(
    blocks: Callable[[], Iterable[RowBlock]],
    output: Output,
    *,
    shape: tuple[int, int],
    columns: tuple[str, ...],
    about: Mapping[str, Any],
) -> Table:
    """Describe rows as they are to be written.

    Args:
        blocks: called for the rows, with float32 vectors.
        output: how.
        shape: of all vectors in float32.
        columns: that any row has.
        about: what made them.
    """
    sample = quantize_embeddings(np.zeros((0, shape[1]), dtype=np.float32), output.precision)
    metadata = {"gguf_embed": __version__, **about, "precision": output.precision, "n_rows": shape[0]}
    if output.ranges is not None:
        metadata["ranges"] = output.ranges.tolist()

    def quantized() -> Iterator[RowBlock]:
        for block in blocks():
            vectors = quantize_embeddings(block.vectors, output.precision, ranges=output.ranges)
            yield dataclasses.replace(block, vectors=vectors)

    return Table(
        blocks=quantized(),
        shape=(shape[0], sample.shape[1]),
        dtype=sample.dtype,
        columns=tuple(name for name in _COLUMNS if name in columns) or ("text",),
        metadata=metadata,
    )


def write_stream(
    stream: IO[bytes],
    blocks: Iterable[RowBlock],
    output: Output,
    *,
    dim: int,
    about: Callable[[], Mapping[str, Any]],
    is_one: bool = False,
) -> None:
    """Write rows to a stream as they come, or all at the end where the format or the precision wants to know all.

    Args:
        stream: to write to.
        blocks: consecutive rows with their (n, dim) float32 vectors.
        output: how.
        dim: components of the vectors.
        about: called for what made them, where there are some.
        is_one: a single text was given.

    Raises:
        InputError: int8 or uint8 of a single row without ranges.
    """
    columns: tuple[str, ...] = _COLUMNS
    n_rows = 0
    needs_ranges = output.precision in _NEEDS_RANGES and output.ranges is None
    if needs_ranges or output.output_format not in ("jsonl", "base64"):
        blocks = list(blocks)
        n_rows = sum(len(block.rows) for block in blocks)
        columns = tuple({name for block in blocks for row in block.rows for name in row.columns()})
    if needs_ranges and n_rows:
        output = dataclasses.replace(output, ranges=_ranges_of(blocks, n_rows, output.precision))
    table = table_of(lambda: blocks, output, shape=(n_rows, dim), columns=columns, about=about() if n_rows else {})
    table = dataclasses.replace(table, is_one=is_one)
    write_table(stream, table, output_format=output.output_format)


def _ranges(output: Output, spool: Spool) -> NDArray[np.float32] | None:
    """Find the range of each component where the precision wants it and nobody gave it."""
    if output.precision not in _NEEDS_RANGES or output.ranges is not None or not spool.checkpoint.n_rows:
        return output.ranges if output.precision in _NEEDS_RANGES else None
    return _ranges_of(spool.blocks(), spool.checkpoint.n_rows, output.precision)


def _ranges_of(blocks: Iterable[RowBlock], n_rows: int, precision: str) -> NDArray[np.float32]:
    if n_rows == 1:
        raise InputError(f"{precision} spreads the range of many rows and got 1; use binary or float32, or --ranges")
    found: NDArray[np.float32] | None = None
    for block in blocks:
        here = calibrate(block.vectors)
        found = here if found is None else calibrate(np.concatenate([found, here]))
    return np.zeros((2, 0), dtype=np.float32) if found is None else found


def _line(row: Row) -> bytes:
    known = row.columns()
    known.pop("text", None)
    return json.dumps({**known, "place": row.place}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def load_ranges(path: Path, dim: int, *, about: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
    """Read the ranges of an earlier output.

    Args:
        path: its .meta.json, the output itself where that is Parquet, or an .npy of (2, dim).
        dim: components of the vectors.
        about: what is to be the same there, such as the fingerprint; None to believe so.

    Raises:
        InputError: there are none, or they are of other vectors.
    """
    known: Mapping[str, Any] = {}
    try:
        found = _load_about(path)
        if isinstance(found, dict):
            known, found = found, found["ranges"]
        ranges = np.asarray(found, dtype=np.float32)
        quantize_embeddings(np.zeros((1, dim), dtype=np.float32), "int8", ranges=ranges)
    except KeyError:
        raise InputError(f"{path} has no ranges: it is of no int8 or uint8 output") from None
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise InputError(
            f"{path} has no ranges for {dim} components ({error}); give the .meta.json of an int8 or uint8 output"
        ) from error
    for name, value in (about or {}).items():
        if known and known.get(name) != value:
            raise InputError(f"{path} is of other vectors: {name} is {known.get(name)!r} there and {value!r} here")
    return ranges


def _load_about(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".parquet":
        check_format("parquet")
        import pyarrow.parquet as pq  # noqa: PLC0415 - an extra

        return json.loads((pq.read_schema(path).metadata or {}).get(b"gguf_embed", b"{}"))
    return json.loads(path.read_text("utf-8"))
