"""Saved vectors out of Parquet tables, with their ids, texts and what made them.

It must not know what is done with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_embed.errors import InputError
from gguf_embed.jobs.sinks import check_format

__all__ = ["VECTOR_NAMES", "SavedTable", "read_saved_table"]

VECTOR_NAMES = ("embedding", "embeddings", "vector")  # of a column or field, the first that is there


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SavedTable:
    """Rows of a file of vectors, as they are.

    Attributes:
        vectors: (n, dim) of the file's own dtype.
        columns: what else is known of all rows, n values each: "id", "text", "text_sha256", "start", "end".
        about: what made them, where the file says.
    """

    vectors: NDArray[Any]
    columns: Mapping[str, list[Any]]
    about: Mapping[str, Any] = field(default_factory=dict)


def read_saved_table(path: Path, columns: Mapping[str, str]) -> SavedTable:
    """Read a Parquet file with a column of vectors.

    Args:
        path: the file.
        columns: names that the result has, and the columns that have them; those that are not there are left out.

    Raises:
        MissingExtraError: pyarrow is not installed.
        InputError: the file cannot be read, is no Parquet, or has no vectors of one length.
    """
    check_format("parquet")
    import pyarrow.parquet as pq  # noqa: PLC0415 - an extra

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = _vector_column(names, path)
            known = {name: column for name, column in columns.items() if column in names}
            table = file.read(columns=[wanted, *dict.fromkeys(known.values())])
            about = _about(file.schema_arrow.metadata)
            return SavedTable(
                vectors=_matrix(table.column(wanted), f'{path}, column "{wanted}"'),
                columns={name: table.column(column).to_pylist() for name, column in known.items()},
                about=about,
            )
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except InputError:
        raise
    except ValueError as error:  # ArrowInvalid is one
        raise InputError(f"{path} is no Parquet file that can be read: {error}") from error


def _vector_column(names: list[str], path: Path) -> str:
    for name in VECTOR_NAMES:
        if name in names:
            return name
    raise InputError(f'{path} has no column "{VECTOR_NAMES[0]}"; its columns are: {", ".join(names[:50])}')


def _about(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    try:
        found = json.loads((metadata or {}).get(b"gguf_embed", b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _matrix(column: Any, name: str) -> NDArray[Any]:
    """Turn a column of lists of one length into a matrix."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    kind = column.type
    is_fixed = pa.types.is_fixed_size_list(kind)
    if not (is_fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise InputError(f"{name} is {kind}; vectors are lists of numbers")
    if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise InputError(f"{name} is {kind}; vectors are lists of numbers")
    if column.null_count:
        first = next(i for i, one in enumerate(column) if not one.is_valid)
        raise InputError(
            f"{name}, row {first + 1}: no vector ({column.null_count} rows have none); leave such rows out"
        )
    lists = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], kind)
    lengths = {kind.list_size} if is_fixed else set(np.diff(lists.offsets.to_numpy()).tolist())
    if len(lengths) > 1:
        raise InputError(f"{name}: vectors of {min(lengths)} to {max(lengths)} components; all have the same length")
    flat = lists.flatten()
    if flat.null_count:
        raise InputError(f"{name}: {flat.null_count} components are missing; make the vectors again")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(lists), lengths.pop() if lengths else 0)
