"""The numbers of a GGUF's tensors, looked at through ggml's own dequantization: finite, and not all zeros.

It must not know what a tensor is for.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gguf_embed.errors import InvalidGGUFError
from gguf_embed.native import ggml

__all__ = ["TensorState", "scan_tensors"]

# Values that are turned into float32 at a time, 16 MiB of them.
_N_VALUES = 1 << 22
# Types that numpy reads as they are. Source: ggml/include/ggml.h, enum ggml_type.
_PLAIN: dict[int, Any] = {0: np.float32, 28: np.float64}

_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """The first members of ggml_type_traits. Source: ggml/include/ggml.h of llama.cpp 0c1e57098."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _ToFloat),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorState:
    """What the numbers of one tensor are like.

    Attributes:
        name: of the tensor.
        n_values: its numbers.
        n_non_finite: of them, NaN or infinite.
        n_zero_rows: rows that are zeros throughout.
        n_rows: all of its rows.
    """

    name: str
    n_values: int
    n_non_finite: int
    n_zero_rows: int
    n_rows: int

    @property
    def is_zero(self) -> bool:
        """Whether there is nothing but zeros in it."""
        return self.n_zero_rows == self.n_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    name: str
    kind: int
    offset: int
    n_columns: int
    n_values: int
    size_bytes: int


def scan_tensors(path: Path, *, n_threads: int) -> tuple[TensorState, ...]:
    """Look at every number of a file; the whole of it is read.

    Args:
        path: a whole GGUF.
        n_threads: tensors that are looked at side by side.

    Returns:
        One for each tensor in file order, but for those without numbers or of integers.

    Raises:
        InvalidGGUFError: it is no GGUF, or cut short.
    """
    ggml.load_header(path)  # raises, and says why
    places = _places(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    with ThreadPoolExecutor(n_threads, thread_name_prefix="gguf-embed-scan") as pool:
        return tuple(pool.map(partial(_look, data), places))


def _places(path: Path) -> list[_Place]:
    base, _ = ggml.libraries()
    handle = base.gguf_init_from_file(os.fsencode(path), ggml.InitParams(no_alloc=True, ctx=None))
    if not handle:
        raise InvalidGGUFError(f"{path} cannot be read as a GGUF any more", path=path)
    try:
        start = base.gguf_get_data_offset(handle)
        return [place for index in range(base.gguf_get_n_tensors(handle)) if (place := _place(handle, index, start))]
    finally:
        base.gguf_free(handle)


def _place(handle: int, index: int, start: int) -> _Place | None:
    base, _ = ggml.libraries()
    kind = base.gguf_get_tensor_type(handle, index)
    sizes = base.gguf_get_tensor_ne(handle, index)[:4]
    n_values = int(np.prod(sizes, dtype=np.int64))
    if not n_values or (kind not in _PLAIN and not _traits(kind).to_float):
        return None  # integers, of which no model's weights are
    return _Place(
        name=base.gguf_get_tensor_name(handle, index).decode(errors="replace"),
        kind=kind,
        offset=start + base.gguf_get_tensor_offset(handle, index),
        n_columns=sizes[0],
        n_values=n_values,
        size_bytes=base.gguf_get_tensor_size(handle, index),
    )


def _traits(kind: int) -> Any:
    base, _ = ggml.libraries()
    return ctypes.cast(base.ggml_get_type_traits(kind), ctypes.POINTER(_Traits)).contents


def _look(data: Any, place: _Place) -> TensorState:
    n_non_finite = n_zero_rows = 0
    for rows in _rows(data[place.offset : place.offset + place.size_bytes], place):
        n_non_finite += int(rows.size - np.isfinite(rows).sum())
        n_zero_rows += int((~rows.any(axis=1)).sum())
    return TensorState(
        name=place.name,
        n_values=place.n_values,
        n_non_finite=n_non_finite,
        n_zero_rows=n_zero_rows,
        n_rows=place.n_values // place.n_columns,
    )


def _rows(data: Any, place: _Place) -> Iterator[Any]:
    """Yield some rows of a tensor at a time, (n, n_columns) float32."""
    n_rows = place.n_values // place.n_columns
    row_bytes = place.size_bytes // n_rows
    n_each = max(1, _N_VALUES // place.n_columns)
    if place.kind in _PLAIN:
        values = data.view(_PLAIN[place.kind]).reshape(n_rows, place.n_columns)
        yield from (values[start : start + n_each] for start in range(0, n_rows, n_each))
        return
    to_float = _traits(place.kind).to_float
    buffer = np.empty((min(n_each, n_rows), place.n_columns), dtype=np.float32)
    for start in range(0, n_rows, n_each):
        part = data[start * row_bytes : (start + n_each) * row_bytes]
        n = len(part) // row_bytes
        to_float(part.ctypes.data, buffer.ctypes.data, n * place.n_columns)
        yield buffer[:n]
