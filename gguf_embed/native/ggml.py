"""ggml by ctypes, where llama-cpp-python has no binding: devices and their memory, GGUF headers.

It must not know what a header means for embeddings, nor which device to prefer.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_embed.errors import InvalidGGUFError
from gguf_embed.native.backend import backend

__all__ = [
    "Device", "GGUFHeader", "InitParams", "TensorInfo", "find_duplicate_token", "load_header", "parse_header",
    "probe_devices",
]  # fmt: skip

Scalar = bool | int | float | str

# Source: ggml/include/gguf.h, enum gguf_type; the tag is that of llama.cpp 0c1e57098.
_GETTERS: dict[int, tuple[str, Any]] = {
    0: ("u8", ctypes.c_uint8),
    1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16),
    3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32),
    5: ("i32", ctypes.c_int32),
    6: ("f32", ctypes.c_float),
    7: ("bool", ctypes.c_bool),
    8: ("str", ctypes.c_char_p),
    10: ("u64", ctypes.c_uint64),
    11: ("i64", ctypes.c_int64),
    12: ("f64", ctypes.c_double),
}
_STRING, _ARRAY = 8, 9
# Per-layer hyperparameters are short arrays; a vocabulary is a long one and is only counted.
_MAX_ARRAY_READ = 1024
# Source: ggml/include/ggml-backend.h, enum ggml_backend_dev_type.
_DEVICE_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel", 4: "meta"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One compute device as this build of llama.cpp sees it.

    Attributes:
        index: its place in ggml's list, what `device_handle` takes.
        name: ggml's name, such as "CUDA0", "MTL0" or "CPU".
        description: the product's name.
        kind: "cpu", "gpu", "igpu" (shares the host's memory), "accel" or "meta".
        backend: name of ggml's backend, such as "CUDA" or "MTL".
        total_bytes: the device's memory; on Metal, the recommended working set.
        free_bytes: what is free now.
    """

    index: int
    name: str
    description: str
    kind: str
    backend: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One row of a GGUF's tensor table: `shape` innermost first, as ggml counts, `size_bytes` as stored."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFHeader:
    """A GGUF header as llama.cpp's own parser reads it.

    Attributes:
        version: GGUF version.
        data_offset: bytes before the first tensor.
        metadata: scalars and texts by key; short numeric arrays as tuples.
        array_lengths: items of every array, the long ones included.
        tensors: the tensor table in file order.
    """

    version: int
    data_offset: int
    metadata: dict[str, Scalar | tuple[int | float | bool, ...]]
    array_lengths: dict[str, int]
    tensors: tuple[TensorInfo, ...]

    @property
    def file_bytes(self) -> int:
        """The least size of a whole file with this header (the last tensor's padding may be missing)."""
        return self.data_offset + self._data_bytes()

    def _data_bytes(self) -> int:
        alignment = self.metadata.get("general.alignment", 32)
        step = alignment if isinstance(alignment, int) and alignment > 0 else 32
        end = 0
        for tensor in self.tensors:
            end = -(-end // step) * step + tensor.size_bytes
        return end


class InitParams(ctypes.Structure):
    """gguf_init_params."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


_POINTER, _SIZE, _TEXT, _INDEX = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int64
# Source: ggml/include/gguf.h, ggml.h and ggml-backend.h; return type and arguments.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "gguf_init_from_file": (_POINTER, [_TEXT, InitParams]),
    "gguf_init_from_buffer": (_POINTER, [_TEXT, _SIZE, InitParams]),
    "gguf_init_empty": (_POINTER, []),
    "gguf_free": (None, [_POINTER]),
    "gguf_get_version": (ctypes.c_uint32, [_POINTER]),
    "gguf_get_data_offset": (_SIZE, [_POINTER]),
    "gguf_get_n_kv": (_INDEX, [_POINTER]),
    "gguf_get_key": (_TEXT, [_POINTER, _INDEX]),
    "gguf_get_kv_type": (ctypes.c_int, [_POINTER, _INDEX]),
    "gguf_get_arr_type": (ctypes.c_int, [_POINTER, _INDEX]),
    "gguf_get_arr_n": (_SIZE, [_POINTER, _INDEX]),
    "gguf_get_arr_data": (_POINTER, [_POINTER, _INDEX]),
    "gguf_get_arr_str": (_TEXT, [_POINTER, _INDEX, _SIZE]),
    "gguf_find_key": (_INDEX, [_POINTER, _TEXT]),
    "gguf_get_n_tensors": (_INDEX, [_POINTER]),
    "gguf_get_tensor_name": (_TEXT, [_POINTER, _INDEX]),
    "gguf_get_tensor_ne": (ctypes.POINTER(ctypes.c_int64), [_POINTER, _INDEX]),
    "gguf_get_tensor_type": (ctypes.c_int, [_POINTER, _INDEX]),
    "gguf_get_tensor_size": (_SIZE, [_POINTER, _INDEX]),
    "gguf_get_tensor_offset": (_SIZE, [_POINTER, _INDEX]),
    "gguf_set_val_str": (None, [_POINTER, _TEXT, _TEXT]),
    "gguf_write_to_file": (ctypes.c_bool, [_POINTER, _TEXT, ctypes.c_bool]),
    "ggml_get_type_traits": (_POINTER, [ctypes.c_int]),
    "ggml_type_name": (_TEXT, [ctypes.c_int]),
    "ggml_get_name": (_TEXT, [_POINTER]),
    "ggml_nbytes": (_SIZE, [_POINTER]),
    "ggml_backend_tensor_get": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_dev_host_buffer_type": (_POINTER, [_POINTER]),
    "ggml_backend_cpu_buffer_type": (_POINTER, []),
    "ggml_backend_dev_name": (_TEXT, [_POINTER]),
    "ggml_backend_dev_description": (_TEXT, [_POINTER]),
    "ggml_backend_dev_type": (ctypes.c_int, [_POINTER]),
    "ggml_backend_dev_memory": (None, [_POINTER, ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)]),
    "ggml_backend_dev_backend_reg": (_POINTER, [_POINTER]),
    "ggml_backend_reg_name": (_TEXT, [_POINTER]),
}


@functools.cache
def libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """Find the libggml-base and libggml that libllama itself uses.

    A wheel holds each library under several names, and a second copy by another name would have a log and a device
    registry of its own. So the symbols are looked up through libllama, which reaches what it depends on.

    Returns:
        (base, ggml) with the signatures that this module calls.
    """
    binding = backend()
    if sys.platform == "win32":  # symbols of dependencies are not to be had there, but a name is one module
        from llama_cpp._ctypes_extensions import load_shared_library  # noqa: PLC0415 - loaded by now, by backend()

        base = load_shared_library("ggml-base", binding._base_path)  # noqa: SLF001 - the only place that tells it
        ggml = load_shared_library("ggml", binding._base_path)  # noqa: SLF001
    else:
        llama = binding._lib  # noqa: SLF001
        base = ggml = ctypes.CDLL(llama._name, handle=llama._handle)  # noqa: SLF001 - signatures of our own
    signatures = dict(_SIGNATURES)
    for kind, (_, c_type) in _GETTERS.items():
        signatures[f"gguf_get_val_{_GETTERS[kind][0]}"] = (c_type, [_POINTER, _INDEX])
    for name, (restype, argtypes) in signatures.items():
        function = getattr(base, name)
        function.restype, function.argtypes = restype, argtypes
    ggml.ggml_backend_dev_count.restype, ggml.ggml_backend_dev_count.argtypes = _SIZE, []
    ggml.ggml_backend_dev_get.restype, ggml.ggml_backend_dev_get.argtypes = _POINTER, [_SIZE]
    return base, ggml


def probe_devices() -> tuple[Device, ...]:
    """Ask ggml for every device and its memory, now.

    Returns:
        Devices in ggml's order, the CPU among them. Its memory figures are not to be trusted (free equals total).
    """
    base, ggml = libraries()
    devices = []
    for index in range(ggml.ggml_backend_dev_count()):
        handle = ggml.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        base.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
        devices.append(
            Device(
                index=index,
                name=base.ggml_backend_dev_name(handle).decode(),
                description=base.ggml_backend_dev_description(handle).decode(errors="replace").strip(),
                kind=_DEVICE_KINDS.get(base.ggml_backend_dev_type(handle), "meta"),
                backend=base.ggml_backend_reg_name(base.ggml_backend_dev_backend_reg(handle)).decode(),
                total_bytes=total.value,
                free_bytes=free.value,
            )
        )
    return tuple(devices)


def device_handle(name: str) -> int:
    """Return ggml's handle of the device with this name, for llama_model_params.devices.

    Raises:
        ValueError: there is no such device.
    """
    _, ggml = libraries()
    for device in probe_devices():
        if device.name == name:
            return int(ggml.ggml_backend_dev_get(device.index))
    raise ValueError(f"no device is called {name!r}; there are {', '.join(d.name for d in probe_devices())}")


class _BufferOverride(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]


def output_on_host(device: str) -> Any:
    """Make llama_model_params.tensor_buft_overrides that keep the vocabulary projection in host memory.

    The device's own host memory type is asked for: with mmap llama.cpp turns it into the mapping, which a tied token
    table then shares, where the CPU's type might repack a second copy (src/llama-model-loader.cpp, buft_for_tensor).
    """
    base, _ = libraries()
    host = base.ggml_backend_dev_host_buffer_type(device_handle(device)) or base.ggml_backend_cpu_buffer_type()
    override = _BufferOverride(rb"^(output|token_embd)\.weight$", host)
    return (_BufferOverride * 2)(override, _BufferOverride())  # an entry without a pattern ends the list


def load_header(path: Path) -> GGUFHeader:
    """Read the header of a GGUF on disk.

    Args:
        path: the file; only its header is read.

    Raises:
        InvalidGGUFError: no such file, not a GGUF, or cut short within or after the header.
    """
    base, _ = libraries()
    if not path.is_file():
        raise InvalidGGUFError(f"{path} is not a file", path=path)
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    except OSError as error:
        raise InvalidGGUFError(f"{path} cannot be read: {error.strerror}", path=path) from error
    # llama.cpp prints what is no GGUF to stderr by itself, past its own log.
    handle = base.gguf_init_from_file(os.fsencode(path), InitParams(no_alloc=True, ctx=None)) if is_gguf else None
    if not handle:
        why = "its header is damaged or cut short" if is_gguf else "it does not start with the GGUF magic"
        raise InvalidGGUFError(f"{path} is not a usable GGUF: {why}. Delete it, and fetch or make it again.", path=path)
    header = _read(handle)
    size_bytes = path.stat().st_size
    if size_bytes < header.file_bytes:
        raise InvalidGGUFError(
            f"{path} is cut short: {size_bytes:,} bytes, its header promises {header.file_bytes:,}. Delete it, and "
            "fetch or make it again.",
            path=path,
        )
    return header


def find_duplicate_token(path: Path) -> str | None:
    """Look for a token that a vocabulary has twice, on which llama.cpp aborts the process.

    Returns:
        The token, None where there is none (or no vocabulary).
    """
    base, _ = libraries()
    handle = base.gguf_init_from_file(os.fsencode(path), InitParams(no_alloc=True, ctx=None))
    if not handle:
        return None
    try:
        index = base.gguf_find_key(handle, b"tokenizer.ggml.tokens")
        if index < 0 or base.gguf_get_kv_type(handle, index) != _ARRAY:
            return None
        if base.gguf_get_arr_type(handle, index) != _STRING:
            return None
        seen: set[bytes] = set()
        for position in range(base.gguf_get_arr_n(handle, index)):
            token = base.gguf_get_arr_str(handle, index, position)
            if token in seen:
                return str(token.decode(errors="replace"))
            seen.add(token)
        return None
    finally:
        base.gguf_free(handle)


def parse_header(prefix: bytes) -> GGUFHeader | None:
    """Read a header from the first bytes of a file.

    Args:
        prefix: bytes from offset 0.

    Returns:
        The header, or None when the prefix ends before it does (or is no GGUF).
    """
    base, _ = libraries()
    if not prefix:
        return None
    handle = base.gguf_init_from_buffer(prefix, len(prefix), InitParams(no_alloc=True, ctx=None))
    return _read(handle) if handle else None


def write_metadata_file(path: Path, metadata: dict[str, str]) -> None:
    """Write a GGUF that has texts as metadata and no tensors; enough to ask llama.cpp about an architecture."""
    base, _ = libraries()
    handle = base.gguf_init_empty()
    try:
        for key, value in metadata.items():
            base.gguf_set_val_str(handle, key.encode(), value.encode())
        if not base.gguf_write_to_file(handle, os.fsencode(path), True):  # noqa: FBT003 - C signature
            raise OSError(f"{path} cannot be written")
    finally:
        base.gguf_free(handle)


def _read(handle: int) -> GGUFHeader:
    base, _ = libraries()
    try:
        metadata: dict[str, Scalar | tuple[int | float | bool, ...]] = {}
        array_lengths: dict[str, int] = {}
        for index in range(base.gguf_get_n_kv(handle)):
            key = base.gguf_get_key(handle, index).decode(errors="replace")
            kind = base.gguf_get_kv_type(handle, index)
            if kind == _ARRAY:
                array_lengths[key] = base.gguf_get_arr_n(handle, index)
                values = _short_array(handle, index, array_lengths[key])
                if values is not None:
                    metadata[key] = values
            elif kind in _GETTERS:
                metadata[key] = _scalar(getattr(base, f"gguf_get_val_{_GETTERS[kind][0]}"), handle, index)
        return GGUFHeader(
            version=base.gguf_get_version(handle),
            data_offset=base.gguf_get_data_offset(handle),
            metadata=metadata,
            array_lengths=array_lengths,
            tensors=tuple(_tensor(handle, index) for index in range(base.gguf_get_n_tensors(handle))),
        )
    finally:
        base.gguf_free(handle)


def _scalar(getter: Callable[[int, int], Any], handle: int, index: int) -> Scalar:
    value = getter(handle, index)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _short_array(handle: int, index: int, length: int) -> tuple[int | float | bool, ...] | None:
    base, _ = libraries()
    kind = base.gguf_get_arr_type(handle, index)
    if kind not in _GETTERS or kind == _STRING or length > _MAX_ARRAY_READ:
        return None
    c_type = _GETTERS[kind][1]
    data = base.gguf_get_arr_data(handle, index)
    return tuple(ctypes.cast(data, ctypes.POINTER(c_type))[:length]) if length else ()


def _tensor(handle: int, index: int) -> TensorInfo:
    base, _ = libraries()
    sizes = base.gguf_get_tensor_ne(handle, index)[:4]
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return TensorInfo(
        name=base.gguf_get_tensor_name(handle, index).decode(errors="replace"),
        type_name=base.ggml_type_name(base.gguf_get_tensor_type(handle, index)).decode().upper(),
        shape=tuple(sizes),
        size_bytes=base.gguf_get_tensor_size(handle, index),
    )
