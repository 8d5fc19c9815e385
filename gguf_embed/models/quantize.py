"""Quantizing a model file on this machine, in a child process that may be stopped or die at any moment.

It must not know registries, plans or the network; native/quantize.py is what the child runs.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import filelock

from gguf_embed.errors import BackendError, GGUFEmbedError, InvalidGGUFError, StorageError, UnsupportedModelError
from gguf_embed.models.header import facts_of_header
from gguf_embed.native import ggml
from gguf_embed.native.child import child_command, last_words
from gguf_embed.native.quantize import BITS, FTYPES, llama_cpp_version
from gguf_embed.sizes import format_size

__all__ = ["estimate_size", "quantize_file", "read_provenance"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_LOSSLESS_ENOUGH_BITS = 8  # from Q8_0 up, the source's own rounding is lost in the target's
# Source: llama.cpp 0c1e57098 src/llama-quant.cpp. The table and the projection are Q6_K at least, and rows that are no
# multiple of 256 take a type of 32 instead: Q4_0 for Q3_K, Q5_0 for Q4_K, Q8_0 for Q6_K, at most 2 bits more. BERT's
# positions and token types stay as they are.
_TABLES, _TABLE_BITS = ("token_embd.weight", "output.weight"), 6.5625
_KEPT = ("position_embd.weight", "token_types.weight")
_BLOCK, _FALLBACK_BITS = 256, 2.0
_DISK_MARGIN_BYTES = 64 << 20  # 64 MiB stay free for everything else on the disk

_PREFIX = "gguf_embed."
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_LOG_BYTES = 64 << 10  # 64 KiB


def quantize_file(
    source: Path, target: Path, quant: str, *, n_threads: int = 0, on_progress: Progress | None = None
) -> Path:
    """Write a model again with another quantization, in a child process.

    Nothing is at `target` but a whole file, whenever this stops: the child writes beside it, and dies with this
    process. Of several processes that make the same target, one does and the others wait for its file; a target that
    was made from this very source before is not made again, and any other is replaced.

    Args:
        source: an F32, F16, BF16 or Q8_0 GGUF; one that is quantized further is taken with a warning.
        target: the file to write.
        quant: Q4_K_M, ...; of fewer bits than the source.
        n_threads: CPU threads, 0 for all.
        on_progress: called with the tensors done and all tensors, 0 of them at first.

    Returns:
        The target.

    Raises:
        ValueError: no such quantization, n_threads below 0, or a target that is a folder or the source.
        InvalidGGUFError: source is not a GGUF.
        UnsupportedModelError: source has no more bits than the target, or is a shard or no model.
        StorageError: too little room, or the folder cannot be written.
        BackendError: llama.cpp refused, or died.
    """
    on_progress = on_progress or _ignore
    _check_arguments(source, target, quant, n_threads)
    header = ggml.load_header(source)
    named = facts_of_header(header, source).quant
    source_quant, bits = (named, BITS[named]) if named in BITS else _measured_quant(header)
    _check_bits(source, source_quant, bits, quant)
    metadata = {
        f"{_PREFIX}source_sha256": _source_sha256(source),
        f"{_PREFIX}source_name": source.name,
        f"{_PREFIX}source_quant": source_quant,
        f"{_PREFIX}ftype": quant,
        f"{_PREFIX}llama_cpp": llama_cpp_version(),
    }
    with _locked(target):
        if _is_made(target, metadata):
            return target
        _check_room(target.parent, estimate_size(header, quant), quant)
        with _partial(target) as partial:
            on_progress(0, len(header.tensors))
            command = _command(source, partial, quant, n_threads, metadata)
            _run_child(command, f"{source.name} cannot be quantized to {quant}", target.parent, on_progress)
            _finish(partial, target, len(header.tensors))
    logger.info("wrote %s from %s", target, source)
    return target


def read_provenance(path: Path) -> Mapping[str, str]:
    """Read what a file that quantize_file() wrote says it was made from.

    Args:
        path: a GGUF; only its header is read.

    Returns:
        gguf_embed.source_sha256, .source_name, .source_quant, .ftype and .llama_cpp; empty for any other GGUF.

    Raises:
        InvalidGGUFError: no such file, not a GGUF, or cut short.
    """
    metadata = ggml.load_header(path).metadata
    return {key: value for key, value in metadata.items() if key.startswith(_PREFIX) and isinstance(value, str)}


def estimate_size(header: ggml.GGUFHeader, quant: str) -> int:
    """Estimate the bytes of a file with these tensors in another quantization, rather too many than too few.

    Args:
        header: of the source.
        quant: a key of FTYPES.
    """
    return header.data_offset + sum(_tensor_bytes(tensor, quant) for tensor in header.tensors)


def _tensor_bytes(tensor: ggml.TensorInfo, quant: str) -> int:
    if len(tensor.shape) < 2 or tensor.name in _KEPT or not tensor.name.endswith("weight"):
        return tensor.size_bytes
    bits = max(BITS[quant], _TABLE_BITS) if tensor.name in _TABLES else BITS[quant]
    if bits < _LOSSLESS_ENOUGH_BITS and tensor.shape[0] % _BLOCK:
        bits += _FALLBACK_BITS
    return math.ceil(math.prod(tensor.shape) * bits / 8)


def _ignore(_done: int, _total: int) -> None:
    pass


def _check_arguments(source: Path, target: Path, quant: str, n_threads: int) -> None:
    if quant not in FTYPES:
        raise ValueError(f"{quant!r} is not one of {', '.join(FTYPES)}")
    if n_threads < 0:
        raise ValueError(f"n_threads is {n_threads}; it is 0 for all, or at least 1")
    if target.is_dir():
        raise ValueError(f"{target} is a folder; name the file to write")
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"{target} is the source itself; name another file to write")


def _measured_quant(header: ggml.GGUFHeader) -> tuple[str, float]:
    """The type of most weights and its bits, for a header whose file_type tells nothing known."""
    matrices = [tensor for tensor in header.tensors if len(tensor.shape) > 1] or list(header.tensors)
    n_weights: collections.Counter[str] = collections.Counter()
    for tensor in matrices:
        n_weights[tensor.type_name] += math.prod(tensor.shape)
    name = max(n_weights, key=lambda name: n_weights[name])
    n_bytes = sum(tensor.size_bytes for tensor in matrices if tensor.type_name == name)
    return name, n_bytes * 8 / n_weights[name]


def _check_bits(source: Path, source_quant: str, bits: float, quant: str) -> None:
    if bits <= BITS[quant]:
        raise UnsupportedModelError(
            f"{source.name} is {source_quant}, of {bits:.3g} bits a weight, and {quant} has {BITS[quant]:.3g}: what "
            "was rounded away does not come back. Use this file as it is, or quantize the model's F16 or Q8_0.",
            path=source,
        )
    if bits < _LOSSLESS_ENOUGH_BITS:
        logger.warning("%s is %s already; a %s made from F16 or Q8_0 is better", source.name, source_quant, quant)


def _source_sha256(source: Path) -> str:
    """The source's checksum: the Hugging Face cache names its blobs by it, any other file is read."""
    blob = source.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidGGUFError(f"{source} cannot be read: {error.strerror or error}", path=source) from error


@contextlib.contextmanager
def _storage(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into StorageError; not around what the caller's on_progress may raise."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{folder} cannot take the file: {error}. Make room or give write permission, then run the same command "
            "again.",
            path=folder,
        ) from error


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Be the only one that makes this target, and clear away what dead runs left of it."""
    lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
    with _storage(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        stale = re.compile(rf"{re.escape(target.name)}\.\d+\.partial")
        for path in target.parent.iterdir():
            if stale.fullmatch(path.name):  # whoever made it held this lock, and is gone
                with contextlib.suppress(OSError):  # on Windows, a child that is just ending has it open
                    path.unlink()
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[Path]:
    path = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # what failed before is what matters
            path.unlink()


def _is_made(target: Path, metadata: Mapping[str, str]) -> bool:
    try:
        provenance = read_provenance(target)
    except InvalidGGUFError:
        return False
    return all(provenance.get(key) == metadata[key] for key in (f"{_PREFIX}source_sha256", f"{_PREFIX}ftype"))


def _check_room(folder: Path, size_bytes: int, quant: str) -> None:
    free_bytes, need_bytes = shutil.disk_usage(folder).free, size_bytes + _DISK_MARGIN_BYTES
    if need_bytes > free_bytes:
        raise StorageError(
            f"{folder} has {format_size(free_bytes)} free; the {quant} file needs {format_size(need_bytes)}. Make room "
            "(gguf-embed rm), or write to a folder on another disk.",
            path=folder,
        )


def _command(source: Path, partial: Path, quant: str, n_threads: int, metadata: Mapping[str, str]) -> list[str]:
    arguments = (str(source.absolute()), str(partial.absolute()), quant, str(n_threads), json.dumps(metadata))
    command = child_command("gguf_embed.native.quantize", *arguments)
    if command is None:
        raise BackendError(
            f"this application has no Python interpreter of its own to make {quant} in; run gguf-embed from an "
            "ordinary Python installation."
        )
    return command


def _run_child(command: list[str], failure: str, folder: Path, on_progress: Progress) -> None:
    """Run the quantizer to its end; kill it when anything is raised here, Ctrl-C included."""
    error = ""
    with tempfile.TemporaryFile() as log:
        with _child(command, log) as process:
            for line in process.stdout or ():
                facts = json.loads(line) if line.endswith(b"\n") else {}  # the rest died with the child
                if "done" in facts:
                    on_progress(facts["done"], facts["total"])
                elif "warning" in facts:
                    logger.warning("llama.cpp: %s, so the file is larger than its name says", facts["warning"])
                error = facts.get("error", error)
            code = process.wait()
        if code:
            raise _failure(failure, error, code, _last_words(log), folder)


@contextlib.contextmanager
def _child(command: list[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    except OSError as error:
        raise BackendError(f"{command[0]} cannot be started to quantize in: {error}") from error
    try:
        yield process
    finally:
        process.kill()  # nothing, where it has ended
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def _last_words(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _MAX_LOG_BYTES))
    return last_words(log.read().decode(errors="replace"))


def _failure(failure: str, error: str, code: int, last_words: str, folder: Path) -> GGUFEmbedError:
    if "iostream" in error:  # the C++ library's only word for a file that cannot be written on
        return StorageError(f"{failure}: {folder} cannot take the file, most likely for want of room. Make room "
                            "(gguf-embed rm), or write to a folder on another disk.", path=folder)  # fmt: skip
    if error:
        return BackendError(error)
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = ", as a machine that is out of memory does" if name == "SIGKILL" else ""
        return BackendError(f"{failure}: the quantizer was stopped by {name}{hint}. Its last words: {last_words}")
    return BackendError(f"{failure}: the quantizer ended with code {code}. Its last words: {last_words}")


def _finish(partial: Path, target: Path, n_tensors: int) -> None:
    """Put a whole file in its place."""
    try:
        header = ggml.load_header(partial)
    except InvalidGGUFError as error:
        raise BackendError(f"llama.cpp wrote a file that cannot be read again; it was deleted: {error}") from error
    if len(header.tensors) != n_tensors:
        raise BackendError(
            f"llama.cpp wrote {len(header.tensors)} of {n_tensors} tensors; the file was deleted. Run the same command "
            "again, and report it if this stays."
        )
    with _storage(target.parent):
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(target)
