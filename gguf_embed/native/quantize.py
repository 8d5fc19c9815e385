"""llama.cpp's quantizer.

It must not know registries or plans.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from gguf_embed.errors import BackendError
from gguf_embed.native import ggml
from gguf_embed.native.backend import backend, clear_errors, last_error

__all__ = ["FTYPES", "quantize"]

# Source: include/llama.h, enum llama_ftype; the ones that a registry names.
FTYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13,
    "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_XS": 30, "BF16": 32,
}  # fmt: skip


def quantize(source: Path, target: Path, quant: str, *, n_threads: int = 0) -> None:
    """Write `source` again with another quantization.

    Args:
        source: an F32, F16 or BF16 GGUF.
        target: the file to write; a failed run leaves none.
        quant: a key of FTYPES.
        n_threads: CPU threads, 0 for all.

    Raises:
        ValueError: no such quantization.
        InvalidGGUFError: source is not a GGUF.
        BackendError: llama.cpp refused.
    """
    if quant not in FTYPES:
        raise ValueError(f"{quant!r} is not one of {', '.join(FTYPES)}")
    ggml.load_header(source)
    binding = backend()
    params = binding.llama_model_quantize_default_params()
    params.ftype, params.nthread = FTYPES[quant], n_threads
    with _removed_on_error(target):
        clear_errors()
        code = binding.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
        if code:
            raise BackendError(f"{source.name} cannot be quantized to {quant}: {last_error()}")


@contextlib.contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
