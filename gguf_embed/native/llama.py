"""llama.cpp's model, tokenizer, context and batch as small objects that close.

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

from gguf_embed.errors import BackendError, ClosedError, DecodeError, ModelLoadError
from gguf_embed.native import ggml
from gguf_embed.native.backend import backend, clear_errors, errors_logged, last_error, raise_interrupt

__all__ = ["POOLING_TYPES", "Context", "Model", "is_architecture_supported"]

Tokens = NDArray[np.int32]
Float32Matrix = NDArray[np.float32]

# Source: include/llama.h, enum llama_pooling_type.
POOLING_TYPES = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
LOAD_MODES = {"none": 0, "mmap": 1}
# Source: include/llama.h, enum llama_vocab_type.
_VOCAB_TYPES = {0: "none", 1: "spm", 2: "bpe", 3: "wpm", 4: "ugm", 5: "rwkv", 6: "plamo2"}


class Model:
    """Weights and vocabulary of one GGUF, loaded.

    Args:
        path: the file.
        n_gpu_layers: layers to put on the device, -1 for all of them and the output.
        device: ggml's name of the one device to use; None uses the CPU alone.
        load_mode: "mmap", or "none" to read the weights so that they are not held twice beside a repacked copy.
        overrides: metadata to replace, such as {"tokenizer.ggml.add_eos_token": True}.
        vocab_only: load the tokenizer alone.

    Raises:
        InvalidGGUFError: not a GGUF, or cut short.
        ModelLoadError: llama.cpp refused it; the message has its reason.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_gpu_layers: int = 0,
        device: str | None = None,
        load_mode: str = "mmap",
        overrides: Mapping[str, bool | int] | None = None,
        vocab_only: bool = False,
    ) -> None:
        self._binding = backend()
        self.path = path
        params = self._binding.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.load_mode = LOAD_MODES[load_mode]
        params.vocab_only = vocab_only
        params.split_mode = 0  # one device: an embedder's batch never earns a second one
        # A NULL-terminated list; an empty one keeps every device out, where NULL itself would mean all.
        handles = [] if device is None else [ggml.device_handle(device)]
        devices = (ctypes.c_void_p * (len(handles) + 1))(*handles, None)
        params.devices = ctypes.cast(devices, ctypes.c_void_p)
        if overrides:
            params.kv_overrides = self._kv_overrides(overrides)
        clear_errors()
        self._handle = self._binding.llama_model_load_from_file(os.fsencode(path), params)
        if not self._handle:
            ggml.load_header(path)
            raise ModelLoadError(f"{path}: llama.cpp could not load it: {last_error()}", path=path)
        # For whoever forgets to close; at exit the system frees it, and the library may be gone already.
        self._finalizer = weakref.finalize(self, self._binding.llama_model_free, self._handle)
        self._finalizer.atexit = False
        raise_interrupt()
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


class Context:
    """Buffers in which a Model decodes: one KV cache, one compute graph.

    Args:
        model: stays open for as long as the context does.
        n_ctx: KV cells, shared by all sequences of a decode.
        n_ubatch: most tokens of one decode; n_batch is the same.
        n_seq_max: most sequences of one decode, 1 <= n_seq_max <= n_ubatch.
        pooling_type: a key of POOLING_TYPES.
        n_threads: CPU threads.

    Raises:
        ValueError: sizes that would make llama.cpp abort the process.
        ModelLoadError: llama.cpp could not allocate it.
    """

    def __init__(
        self, model: Model, *, n_ctx: int, n_ubatch: int, n_seq_max: int, pooling_type: str, n_threads: int
    ) -> None:
        if not 1 <= n_seq_max <= min(n_ubatch, int(backend().llama_max_parallel_sequences())) or n_ubatch > n_ctx:
            raise ValueError(f"1 <= n_seq_max {n_seq_max} <= n_ubatch {n_ubatch} <= n_ctx {n_ctx} does not hold")
        self._binding = backend()
        self._model = model
        params = self._binding.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = n_ubatch
        params.n_seq_max = n_seq_max
        params.n_threads = params.n_threads_batch = n_threads
        params.pooling_type = POOLING_TYPES[pooling_type]
        params.flash_attn_type = self._binding.LLAMA_FLASH_ATTN_TYPE_AUTO
        params.embeddings = True
        params.kv_unified = True
        params.no_perf = True
        clear_errors()
        self._handle = self._binding.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise ModelLoadError(
                f"{model.path.name}: llama.cpp could not create a context of {n_ctx} tokens: {last_error()}. "
                "Close other programs that hold memory, or ask for less with n_ctx.",
                path=model.path,
            )
        self._finalizer = weakref.finalize(self, self._binding.llama_free, self._handle)
        self._finalizer.atexit = False
        raise_interrupt()
        self.n_ctx, self.n_ubatch, self.n_seq_max = n_ctx, n_ubatch, n_seq_max
        self._n_embd = model.n_embd
        self._memory = self._binding.llama_get_memory(self._handle)
        self._allocate_batch()

    def _allocate_batch(self) -> None:
        """Own arrays for llama_batch; llama_batch_init would take n_ubatch * n_seq_max ints for nothing."""
        n = self.n_ubatch
        self._token = np.zeros(n, dtype=np.int32)
        self._pos = np.zeros(n, dtype=np.int32)
        self._seq_id = np.zeros(n, dtype=np.int32)
        self._n_seq_id = np.ones(n, dtype=np.int32)
        self._output = np.ones(n, dtype=np.int8)
        # llama_batch wants one pointer to a list of sequence ids for each token.
        self._seq_id_pointers = self._seq_id.ctypes.data + np.arange(n, dtype=np.uint64) * self._seq_id.itemsize
        batch = self._binding.llama_batch()
        for name, array in (
            ("token", self._token),
            ("pos", self._pos),
            ("n_seq_id", self._n_seq_id),
            ("seq_id", self._seq_id_pointers),
            ("logits", self._output),
        ):
            field_type = dict(self._binding.llama_batch._fields_)[name]
            setattr(batch, name, ctypes.cast(array.ctypes.data, field_type))
        self._batch = batch

    @property
    def is_causal(self) -> bool:
        """Whether tokens see only what came before; only then may a text be split over decodes."""
        return bool(self._binding.llama_get_causal_attn(self._open())) and self._memory is not None

    def decode(self, token: Tokens, pos: Tokens, seq_id: Tokens) -> None:
        """Run one batch; its embeddings are then read with `embeddings`.

        Args:
            token: (n_tokens,) int32 ids, 1 <= n_tokens <= n_ubatch.
            pos: (n_tokens,) int32 positions within each sequence.
            seq_id: (n_tokens,) int32 sequences, 0 <= id < n_seq_max.

        Raises:
            ValueError: sizes or ids that would make llama.cpp abort the process.
            DecodeError: llama_decode's own error codes.
        """
        n_tokens = len(token)
        if not 1 <= n_tokens <= self.n_ubatch:
            raise ValueError(f"a batch has {n_tokens} tokens; 1..{self.n_ubatch} is what this context takes")
        if int(seq_id.min()) < 0 or int(seq_id.max()) >= self.n_seq_max:
            raise ValueError(f"a sequence id is outside 0..{self.n_seq_max - 1}")
        self._token[:n_tokens], self._pos[:n_tokens], self._seq_id[:n_tokens] = token, pos, seq_id
        self._batch.n_tokens = n_tokens
        clear_errors()
        code = int(self._binding.llama_decode(self._open(), self._batch))
        if code:
            reason = {1: "no free KV cells", 2: "aborted"}.get(code, last_error())
            raise DecodeError(f"llama_decode returned {code}: {reason}", return_code=code)

    def embeddings(self, n_seq: int) -> Float32Matrix:
        """Copy the pooled rows of sequences 0..n_seq-1 of the last decode.

        Returns:
            (n_seq, n_embd) float32 as the model gave them, not normalised.

        Raises:
            DecodeError: llama.cpp has no row for a sequence.
        """
        rows = np.empty((n_seq, self._n_embd), dtype=np.float32)
        for seq in range(n_seq):
            pointer = self._binding.llama_get_embeddings_seq(self._open(), seq)
            if not pointer:
                raise DecodeError(f"llama.cpp gave no embedding for sequence {seq}", return_code=0)
            rows[seq] = np.ctypeslib.as_array(pointer, shape=(self._n_embd,))
        return rows

    def clear(self) -> None:
        """Forget every sequence."""
        if self._memory is not None:
            self._binding.llama_memory_clear(self._memory, True)  # noqa: FBT003 - C signature

    def _open(self) -> Any:
        if self._handle is None:
            raise ClosedError(f"the context of {self._model.path.name} was closed")
        return self._handle

    def close(self) -> None:
        """Free the buffers; closing twice is allowed."""
        if self._handle is not None:
            self._handle = self._memory = None
            self._finalizer()


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
