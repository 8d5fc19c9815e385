"""llama.cpp's quantizer, in this process or, by `python -m gguf_embed.native.quantize`, in one of its own.

It must not know registries or plans, nor where the files come from; models/quantize.py runs the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gguf_embed.errors import BackendError, GGUFEmbedError
from gguf_embed.native import ggml
from gguf_embed.native.backend import backend, clear_errors, last_error, listening
from gguf_embed.native.interrupts import interrupt_deferred

__all__ = ["BITS", "FTYPES", "llama_cpp_version", "main", "quantize"]

# Source: include/llama.h, enum llama_ftype; those that llama.cpp makes without an importance matrix, so no IQ1, IQ2,
# IQ3_XS or Q2_K_S (src/llama-quant.cpp of llama.cpp 0c1e57098, tensor_requires_imatrix).
FTYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ3_S": 26,
    "IQ3_M": 27, "IQ4_XS": 30, "BF16": 32,
}  # fmt: skip

# Bits a weight of a whole file. Source: llama.cpp 0c1e57098 tools/quantize/README.md, Llama 3.1 8B; Q4_0 to Q5_1 from
# the sizes in tools/quantize/quantize.cpp.
BITS = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.5633, "Q5_1": 6.04, "Q5_K_M": 5.7036,
    "Q5_K_S": 5.5704, "Q5_0": 5.57, "Q4_1": 5.11, "Q4_K_M": 4.8944, "IQ4_NL": 4.6818, "Q4_K_S": 4.6672, "Q4_0": 4.64,
    "IQ4_XS": 4.4597, "Q3_K_L": 4.2979, "Q3_K_M": 3.9960, "IQ3_M": 3.7628, "IQ3_S": 3.6606, "Q3_K_S": 3.6429,
    "Q2_K": 3.1593,
}  # fmt: skip

# Source: include/llama.h, llama_model_kv_override: char val_str[128] with its NUL, and enum ..._override_type.
_MAX_TEXT_BYTES = 127
_INT_TAG, _STR_TAG = 0, 3
_ALIGNMENT = 32  # bytes; llama-quant.cpp pads to GGUF_DEFAULT_ALIGNMENT whatever the source's header says
# Rows that llama.cpp holds in memory at once. Its own 8 GiB takes a whole token table: 2.5 GiB for a model of 8B.
_MAX_BUFFER_BYTES = 256 << 20  # 256 MiB
_PROGRESS = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_NO_METADATA: Mapping[str, str] = MappingProxyType({})


def quantize(
    source: Path,
    target: Path,
    quant: str,
    *,
    n_threads: int = 0,
    metadata: Mapping[str, str] = _NO_METADATA,
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Write `source` again with another quantization.

    Args:
        source: an F32, F16, BF16 or Q8_0 GGUF; one of fewer bits is taken too, and has lost what it has lost.
        target: the file to write; a failed run leaves none.
        quant: a key of FTYPES.
        n_threads: CPU threads, 0 for all.
        metadata: texts to add to the header, each cut to 127 bytes.
        on_line: called with each line that llama.cpp logs, one a tensor when it is done.

    Raises:
        ValueError: no such quantization.
        InvalidGGUFError: source is not a GGUF.
        BackendError: llama.cpp refused.
    """
    if quant not in FTYPES:
        raise ValueError(f"{quant!r} is not one of {', '.join(FTYPES)}")
    header = ggml.load_header(source)
    binding = backend()
    overrides = _overrides(binding, header, metadata)
    params = binding.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = FTYPES[quant], n_threads, True
    params.kv_overrides, params.max_buf_size = overrides, _MAX_BUFFER_BYTES
    with _removed_on_error(target), listening(on_line or _ignore):
        clear_errors()
        with interrupt_deferred():
            code = binding.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
        if code:
            raise BackendError(f"{source.name} cannot be quantized to {quant}: {last_error()}")


def llama_cpp_version() -> str:
    """Return the version of llama-cpp-python, whose llama.cpp does the work."""
    backend()
    import llama_cpp  # noqa: PLC0415 - loaded by now, by backend()

    return str(llama_cpp.__version__)


def _ignore(_line: str) -> None:
    pass


def _overrides(binding: Any, header: ggml.GGUFHeader, metadata: Mapping[str, str]) -> Any:
    """Build llama_model_quantize_params.kv_overrides: what to add, and what of the source's is no longer true."""
    values: dict[str, str | int] = dict(metadata)
    for key, value in header.metadata.items():
        if key.startswith("quantize.imatrix."):  # keys cannot be removed, and no importance matrix is used here
            values[key] = "" if isinstance(value, str) else 0
    if "general.alignment" in header.metadata:
        values["general.alignment"] = _ALIGNMENT
    array = (binding.llama_model_kv_override * (len(values) + 1))()  # an empty key ends it
    for entry, (key, value) in zip(array, values.items(), strict=False):
        entry.key, entry.tag = key.encode(), _STR_TAG if isinstance(value, str) else _INT_TAG
        if isinstance(value, str):
            entry.value.val_str = _cut(value)
        else:
            entry.value.val_i64 = value
    return array


def _cut(text: str) -> bytes:
    """The UTF-8 of a text, without the character that would end beyond the limit."""
    return text.encode(errors="replace")[:_MAX_TEXT_BYTES].decode(errors="ignore").encode()


@contextlib.contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def main(argv: Sequence[str]) -> int:
    """Quantize as the child of a process that holds the other end of stdin, and end when that one does.

    Args:
        argv: SOURCE PARTIAL QUANT N_THREADS METADATA, the last a JSON object of texts.

    Returns:
        0 when PARTIAL is whole. stdout gets one JSON object a line: {"done": 12, "total": 398} when a tensor is done,
        {"warning": text} and {"error": text}.
    """
    source, partial, quant, n_threads, metadata = argv
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent decides
    threading.Thread(target=_end_with_parent, args=(Path(partial),), daemon=True).start()
    channel = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no line of the protocol

    def tell(**facts: Any) -> None:
        try:
            os.write(channel, json.dumps(facts).encode() + b"\n")
        except OSError:  # nobody reads any more
            _end(Path(partial))

    def read(line: str) -> None:
        if match := _PROGRESS.match(line):
            tell(done=int(match[1]), total=int(match[2]))
        elif "required fallback quantization" in line:
            tell(warning=line.partition("WARNING: ")[2])

    try:
        texts = json.loads(metadata)
        quantize(Path(source), Path(partial), quant, n_threads=int(n_threads), metadata=texts, on_line=read)
    except GGUFEmbedError as error:
        tell(error=str(error))
        return 1
    return 0


def _end_with_parent(partial: Path) -> None:
    while os.read(0, 1):
        pass
    _end(partial)


def _end(partial: Path) -> None:
    """Leave at once, in the middle of llama.cpp's work."""
    with contextlib.suppress(OSError):  # on Windows an open file stays; the next run removes it
        partial.unlink()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
