"""llama-cpp-python's library, loaded once, and its log.

It must not know models or contexts; native's other modules ask it for the binding and for the last error.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gguf_embed.errors import BackendError

__all__ = [
    "backend",
    "clear_errors",
    "errors_logged",
    "last_error",
    "library_stamp",
    "listening",
    "ran_out_of_memory",
]

logger = logging.getLogger(__name__)

# Source: ggml/include/ggml.h, enum ggml_log_level. One step quieter than llama.cpp has it: its information fills
# screens, its warnings are about chat, and its errors reach the user as exceptions. Its debugging tells every tensor.
_LOG_LEVELS = {1: logging.DEBUG - 5, 2: logging.DEBUG, 3: logging.INFO, 4: logging.INFO}
_LOG_ERROR, _LOG_CONTINUED = 4, 5

# How llama.cpp and its backends say that memory was refused. Source: ggml/src and src of llama.cpp 0c1e57098.
_OUT_OF_MEMORY = (
    "out of memory", "failed to allocate", "unable to allocate", "Cannot allocate memory", "bad_alloc",
    "failed to create ggml context", "OutOfDeviceMemory", "allocation failed", "insufficient memory",
)  # fmt: skip

_listeners = threading.local()
_errors: collections.deque[str] = collections.deque(maxlen=20)


@functools.cache
def backend() -> Any:
    """Import llama_cpp once, send its log to `logging`, and start its backends.

    Returns:
        The module llama_cpp.llama_cpp.

    Raises:
        BackendError: llama-cpp-python is missing its library, or it is older than 0.3.36.
    """
    # GNU OpenMP reads this when it is loaded. Threads that wait for each other then give their core away after some
    # microseconds: beside another busy program that is three to twelve times as fast, and alone it costs nothing.
    # Source: all-MiniLM-L6-v2 and the 0.6B shape with GOMP_SPINCOUNT 0, 1000, 10000 and unset, 2 cores, 2026-11-21.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        import llama_cpp  # noqa: PLC0415 - 160 ms, and only when a model is really wanted
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"llama-cpp-python cannot be loaded: {error}. Install it again: see README, Install."
        ) from error
    if _version(llama_cpp.__version__) < (0, 3, 36):
        raise BackendError(
            f"llama-cpp-python {llama_cpp.__version__} is too old; run: pip install 'llama-cpp-python>=0.3.36'"
        )
    binding = llama_cpp.llama_cpp
    binding.llama_log_set(_log_callback(binding), ctypes.c_void_p(0))
    binding.llama_backend_init()
    return binding


def cpu_features() -> frozenset[str]:
    """Names of what the CPU kernels of this build use and this processor has, such as AVX2 and AVX512_VNNI."""
    described = backend().llama_print_system_info().decode("utf-8", "replace")
    return frozenset(re.findall(r"(\w+) = 1\b", described))


def library_stamp() -> str:
    """Tell builds of llama.cpp apart: size and time of its library, which a rebuild or another folder changes."""
    path = Path(backend()._lib._name)  # noqa: SLF001 - ctypes has no other word for it
    try:
        stat = path.stat()
    except OSError:
        return path.name
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


@functools.cache
def _log_callback(binding: Any) -> Any:
    line: list[str] = []
    level = 0

    def receive(raw_level: int, text: bytes, _user_data: Any) -> None:
        nonlocal level
        if raw_level != _LOG_CONTINUED:
            level = raw_level
        line.append(text.decode("utf-8", "replace"))
        if not line[-1].endswith("\n"):
            return
        message = "".join(line).strip()
        line.clear()
        if level == _LOG_ERROR:
            _errors.append(message)
        for listener in getattr(_listeners, "active", ()):
            listener(message)
        logger.log(_LOG_LEVELS.get(level, logging.DEBUG), "%s", message)

    return binding.llama_log_callback(receive)


def last_error() -> str:
    """The most telling line that llama.cpp logged since the errors were cleared."""
    lines = [line.split(": ", 1)[-1] if line.startswith("llama_") else line for line in _errors]
    return next(
        (line for line in lines if "failed to load model" not in line), lines[-1] if lines else "no reason given"
    )


def clear_errors() -> None:
    """Forget what was logged; called before each call into llama.cpp that may fail."""
    _errors.clear()


def ran_out_of_memory() -> bool:
    """Whether one of those errors is that memory was refused."""
    return any(words in line for line in _errors for words in _OUT_OF_MEMORY)


@contextlib.contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Hand every line that llama.cpp logs in this thread to `listener` too."""
    active: list[Callable[[str], None]] = _listeners.__dict__.setdefault("active", [])
    active.append(listener)
    try:
        yield
    finally:
        active.remove(listener)


def errors_logged() -> tuple[str, ...]:
    """Return the errors that llama.cpp logged since then, oldest first."""
    return tuple(_errors)
