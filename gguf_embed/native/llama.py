"""llama.cpp's model and tokenizer as an object that closes.

It must not know models by name, plans or prompts; whatever llama.cpp refuses becomes a BackendError here.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gguf_embed.errors import AllocationError, BackendError, ClosedError, ModelLoadError
from gguf_embed.native import ggml
from gguf_embed.native.backend import (
    backend,
    clear_errors,
    errors_logged,
    last_error,
    ran_out_of_memory,
)
from gguf_embed.native.interrupts import interrupt_deferred
from gguf_embed.native.layout import LOAD_MODES, Layout

__all__ = ["POOLING_TYPES", "Model", "is_architecture_supported"]

Tokens = NDArray[np.int32]

# Source: include/llama.h, enum llama_pooling_type.
POOLING_TYPES = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
# Source: include/llama.h, enum llama_vocab_type.
_VOCAB_TYPES = {0: "none", 1: "spm", 2: "bpe", 3: "wpm", 4: "ugm", 5: "rwkv", 6: "plamo2"}


class Model:
    """Weights and vocabulary of one GGUF, loaded.

    Args:
        path: the file.
        layout: where the layers go; None keeps them on the CPU.
        overrides: metadata to replace, such as {"tokenizer.ggml.add_eos_token": True}.
        vocab_only: load the tokenizer alone.
        no_alloc: load the header alone, to ask how large contexts would be; nothing can be decoded.

    Raises:
        InvalidGGUFError: not a GGUF, or cut short.
        AllocationError: memory for the weights was refused.
        ModelLoadError: llama.cpp refused it; the message has its reason.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout | None = None,
        *,
        overrides: Mapping[str, bool | int] | None = None,
        vocab_only: bool = False,
        no_alloc: bool = False,
    ) -> None:
        self._binding = backend()
        self.path = path
        params = self._binding.llama_model_default_params()
        layout = layout or Layout()
        params.vocab_only, params.no_alloc = vocab_only, no_alloc
        params.load_mode = LOAD_MODES["none" if no_alloc else layout.load_mode]
        params.use_extra_bufts = layout.use_extra_bufts
        keep_alive = _set_placement(params, layout)  # until llama.cpp has read it
        if overrides:
            params.kv_overrides = self._kv_overrides(overrides)
        clear_errors()
        with interrupt_deferred():
            self._handle = self._binding.llama_model_load_from_file(os.fsencode(path), params)
            if self._handle:
                # For whoever forgets to close; at exit the system frees it, and the library may be gone already.
                self._finalizer = weakref.finalize(self, self._binding.llama_model_free, self._handle)
                self._finalizer.atexit = False
        del keep_alive
        if not self._handle:
            if ran_out_of_memory():
                raise AllocationError(f"{path.name}: memory for its weights was refused: {last_error()}", path=path)
            ggml.load_header(path)
            raise ModelLoadError(f"{path}: llama.cpp could not load it: {last_error()}", path=path)
        self._vocab = self._binding.llama_model_get_vocab(self._handle)

    def _kv_overrides(self, overrides: Mapping[str, bool | int]) -> Any:
        array = (self._binding.llama_model_kv_override * (len(overrides) + 1))()  # a zero key ends the list
        for entry, (key, value) in zip(array, overrides.items(), strict=False):
            entry.key = key.encode()
            if isinstance(value, bool):
                entry.tag, entry.value.val_bool = self._binding.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
            else:
                entry.tag, entry.value.val_i64 = self._binding.LLAMA_KV_OVERRIDE_TYPE_INT, value
        return array

    @property
    def handle(self) -> Any:
        """llama.cpp's pointer, for Context.

        Raises:
            ClosedError: after close().
        """
        if self._handle is None:
            raise ClosedError(f"{self.path.name} was closed")
        return self._handle

    @property
    def n_embd(self) -> int:
        """Length of the vectors that the model emits."""
        return int(self._binding.llama_model_n_embd_out(self.handle))

    @property
    def n_ctx_train(self) -> int:
        """Longest text, in tokens, that the model was trained on; position tables end here."""
        return int(self._binding.llama_model_n_ctx_train(self.handle))

    @property
    def vocab_type(self) -> str:
        """Tokenizer family: "bpe", "wpm", "spm", "ugm" or another of llama.cpp's."""
        return _VOCAB_TYPES.get(self._binding.llama_vocab_type(self._vocab), "unknown")

    def metadata(self, key: str) -> str | None:
        """Return a value of the file's header as text ("true", "256", "qwen2"), without overrides; None without one."""
        value = ctypes.create_string_buffer(256)
        length = self._binding.llama_model_meta_val_str(self.handle, key.encode(), value, len(value))
        return value.value.decode("utf-8", "replace") if length >= 0 else None

    @property
    def closing_tokens(self) -> frozenset[int]:
        """Ids that may end a text: EOS and, for BERT, SEP."""
        vocab, binding = self._vocab, self._binding
        return frozenset({int(binding.llama_vocab_eos(vocab)), int(binding.llama_vocab_sep(vocab))} - {-1})

    def tokenize(self, text: bytes) -> Tokens:
        """Turn UTF-8 into ids, with the model's own BOS, EOS, CLS and SEP around them.

        Args:
            text: UTF-8; control tokens spelt out in it stay text.

        Returns:
            (n_tokens,) int32, a new array.

        Raises:
            ClosedError: after close().
            BackendError: more than 2^31 tokens.
        """
        if self._handle is None:
            raise ClosedError(f"{self.path.name} was closed")
        capacity = len(text) + 8  # every token covers at least a byte, and few are added
        while True:
            buffer = np.empty(capacity, dtype=np.int32)
            ids = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            n_tokens = self._binding.llama_tokenize(self._vocab, text, len(text), ids, capacity, True, False)  # noqa: FBT003
            if n_tokens >= 0:
                return buffer[:n_tokens].copy()
            if n_tokens == -(2**31):
                raise BackendError("a text has more than 2^31 tokens; split it")
            capacity = -n_tokens

    def piece(self, token: int) -> tuple[str, bool]:
        """Return the text that a token stands for, and whether it is a control token such as EOS."""
        self.handle  # noqa: B018 - raises after close()
        buffer = ctypes.create_string_buffer(512)
        length = self._binding.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)  # noqa: FBT003
        is_control = bool(self._binding.llama_vocab_is_control(self._vocab, token))
        return buffer.raw[: max(0, length)].decode("utf-8", "replace"), is_control

    def longest_token_bytes(self) -> int:
        """Return the length of the vocabulary's longest piece, in bytes of text, for byte-level BPE."""
        vocab, text_of = self._vocab, self._binding.llama_vocab_get_text
        pieces = (text_of(vocab, token) or b"" for token in range(self._binding.llama_vocab_n_tokens(vocab)))
        return max(len(piece.decode("utf-8", "replace")) for piece in pieces)  # one character stands for one byte

    def close(self) -> None:
        """Free the weights; closing twice is allowed."""
        if self._handle is not None:
            self._handle = None
            self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _set_placement(params: Any, layout: Layout) -> tuple[Any, ...]:
    """Say which layers go to which device; returns the arrays that params points into."""
    binding = backend()
    params.n_gpu_layers = layout.n_gpu_layers
    # An embedder's batch never earns a second device; only what is too large for one is split, by layers.
    params.split_mode = binding.LLAMA_SPLIT_MODE_LAYER if layout.tensor_split else binding.LLAMA_SPLIT_MODE_NONE
    # A NULL-terminated list; an empty one keeps every device out, where NULL itself would mean all.
    handles = [ggml.device_handle(name) for name in layout.devices]
    devices = (ctypes.c_void_p * (len(handles) + 1))(*handles, None)
    params.devices = ctypes.cast(devices, ctypes.c_void_p)
    split = (ctypes.c_float * binding.llama_max_devices())(*map(float, layout.tensor_split))
    if layout.tensor_split:
        params.tensor_split = split
    overrides = ggml.output_on_host(layout.devices[-1]) if layout.is_output_on_host and layout.devices else None
    if overrides is not None:
        params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    return devices, split, overrides


@functools.cache
def is_architecture_supported(architecture: str) -> bool:
    """Ask this llama.cpp whether it knows an architecture, by loading an empty file of it.

    Args:
        architecture: value of general.architecture, such as "qwen3".
    """
    binding = backend()
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gguf-embed-"))
            path = Path(folder) / "architecture.gguf"
            ggml.write_metadata_file(path, {"general.architecture": architecture})
        except OSError:
            return True  # nowhere to write the question; loading will answer it
        params = binding.llama_model_default_params()
        params.vocab_only = True
        clear_errors()
        handle = binding.llama_model_load_from_file(os.fsencode(path), params)
        if handle:
            binding.llama_model_free(handle)
            return True
        return not any("unknown model architecture" in line for line in errors_logged())
