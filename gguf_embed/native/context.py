"""llama.cpp's context and batch: buffers in which a model decodes.

It must not know texts, files or plans; whatever llama.cpp refuses becomes a BackendError here.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_embed.errors import AllocationError, ClosedError, DecodeError, ModelLoadError
from gguf_embed.native.backend import backend, clear_errors, last_error, ran_out_of_memory
from gguf_embed.native.head import HeadStop
from gguf_embed.native.interrupts import interrupt_deferred
from gguf_embed.native.layout import FLASH_ATTN_TYPES, KV_TYPES, Layout
from gguf_embed.native.llama import POOLING_TYPES, Model

__all__ = ["Context"]

Tokens = NDArray[np.int32]
Float32Matrix = NDArray[np.float32]


class Context:
    """Buffers in which a Model decodes: one KV cache, one compute graph.

    Args:
        model: stays open for as long as the context does.
        layout: how large the context is, and whether decodes stop before the vocabulary projection.
        pooling_type: a key of POOLING_TYPES; "last" where the layout skips the head.
        n_threads: CPU threads.

    Raises:
        ValueError: sizes that would make llama.cpp abort the process, or a skipped head with another pooling.
        AllocationError: memory was refused.
        ModelLoadError: llama.cpp could not create it.
    """

    def __init__(self, model: Model, layout: Layout, *, pooling_type: str, n_threads: int) -> None:
        self._binding = backend()
        self.n_seq_ids = int(self._binding.llama_max_parallel_sequences())
        if layout.n_seq_max > self.n_seq_ids:
            raise ValueError(f"n_seq_max is {layout.n_seq_max}; llama.cpp takes fewer sequences")
        if layout.n_ubatch % layout.n_seq_max:  # llama.cpp rounds up, and then its mean pooling fails an assertion
            raise ValueError(f"n_ubatch {layout.n_ubatch} is no multiple of n_seq_max {layout.n_seq_max}")
        if layout.skips_head and pooling_type != "last":
            raise ValueError(f"the head can be skipped for the last token, not for pooling {pooling_type!r}")
        self._model = model
        self._stop = HeadStop(model.n_embd) if layout.skips_head else None
        params = self._params(layout, pooling_type, n_threads)
        clear_errors()
        with interrupt_deferred():
            self._handle = self._binding.llama_init_from_model(model.handle, params)
            if self._handle:
                self._finalizer = weakref.finalize(self, self._binding.llama_free, self._handle)
                self._finalizer.atexit = False
        if not self._handle:
            kind = AllocationError if ran_out_of_memory() else ModelLoadError
            raise kind(
                f"{model.path.name}: llama.cpp could not create a context of {layout.n_ctx} tokens: {last_error()}. "
                "Close other programs that hold memory, or ask for less with n_ctx.",
                path=model.path,
            )
        self.n_ctx, self.n_ubatch, self.n_seq_max = layout.n_ctx, layout.n_ubatch, layout.n_seq_max
        self._n_embd = model.n_embd
        self._memory = self._binding.llama_get_memory(self._handle)
        self._allocate_batch()

    def _params(self, layout: Layout, pooling_type: str, n_threads: int) -> Any:
        params = self._binding.llama_context_default_params()
        params.n_ctx = layout.n_ctx
        params.n_batch = params.n_ubatch = layout.n_ubatch
        params.n_seq_max = layout.n_seq_max
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = FLASH_ATTN_TYPES[layout.flash_attn]
        params.type_k = params.type_v = KV_TYPES[layout.kv_type]
        params.kv_unified = True
        params.no_perf = True
        params.pooling_type = POOLING_TYPES["none" if layout.skips_head else pooling_type]
        params.embeddings = not layout.skips_head
        if self._stop is not None:
            params.n_outputs_max = layout.n_seq_max
            params.cb_eval = self._stop.callback
        return params

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
    def can_share(self) -> bool:
        """Whether sequences may begin with cells of others: attention does that, a recurrent state does not."""
        model = self._model.handle
        is_stateful = self._binding.llama_model_is_recurrent(model) or self._binding.llama_model_is_hybrid(model)
        return self.is_causal and not is_stateful

    @property
    def is_causal(self) -> bool:
        """Whether tokens see only what came before; only then may a text be split over decodes."""
        return bool(self._binding.llama_get_causal_attn(self._open())) and self._memory is not None

    def decode(self, token: Tokens, pos: Tokens, seq_id: Tokens, *, is_end: bool = True) -> None:
        """Run one batch; its embeddings are then read with `embeddings`.

        Args:
            token: (n_tokens,) int32 ids, 1 <= n_tokens <= n_ubatch.
            pos: (n_tokens,) int32 positions within each sequence.
            seq_id: (n_tokens,) int32 sequences in rising order, 0 <= id < n_seq_max.
            is_end: every sequence ends in this batch; False for the first parts of a long one.

        Raises:
            ValueError: sizes or ids that would make llama.cpp abort the process.
            DecodeError: llama_decode's own error codes.
        """
        n_tokens = len(token)
        if not 1 <= n_tokens <= self.n_ubatch:
            raise ValueError(f"a batch has {n_tokens} tokens; 1..{self.n_ubatch} is what this context takes")
        ends = np.flatnonzero(np.diff(seq_id, append=-1))  # the last token of each sequence
        if int(seq_id.min()) < 0 or int(seq_id.max()) >= self.n_seq_max:
            raise ValueError(f"a sequence id is outside 0..{self.n_seq_max - 1}")
        self._token[:n_tokens], self._pos[:n_tokens], self._seq_id[:n_tokens] = token, pos, seq_id
        self._batch.n_tokens = n_tokens
        if self._stop is not None:
            self._output[:n_tokens] = 0
            if is_end:
                self._output[ends] = 1
            self._stop.clear()
        clear_errors()
        if self._stop is None:
            code = int(self._binding.llama_decode(self._open(), self._batch))
        else:
            with interrupt_deferred(self._stop.stop):
                code = int(self._binding.llama_decode(self._open(), self._batch))
            self._stop.raise_error()
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
        if self._stop is not None:
            rows = self._stop.rows()
            if len(rows) != n_seq:
                raise DecodeError(f"llama.cpp gave {len(rows)} rows for {n_seq} texts", return_code=0)
            return rows
        rows = np.empty((n_seq, self._n_embd), dtype=np.float32)
        for seq in range(n_seq):
            pointer = self._binding.llama_get_embeddings_seq(self._open(), seq)
            if not pointer:
                raise DecodeError(f"llama.cpp gave no embedding for sequence {seq}", return_code=0)
            rows[seq] = np.ctypeslib.as_array(pointer, shape=(self._n_embd,))
        return rows

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Let an empty sequence begin with the first n_tokens of another; the cells are shared, not copied.

        Sequences from n_seq_max up to n_seq_ids cannot be decoded, and are there to keep what was.
        """
        self._binding.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)

    def forget(self, seq_id: int) -> None:
        """Forget one sequence; cells that others share stay."""
        self._binding.llama_memory_seq_rm(self._memory, seq_id, -1, -1)

    def clear(self, *, wipe: bool = False) -> None:
        """Forget every sequence.

        Args:
            wipe: overwrite the cells too, so that no NaN is left in them to be multiplied by zero; takes as long as
                writing the whole cache.
        """
        if self._memory is not None:
            self._binding.llama_memory_clear(self._memory, wipe)

    def _open(self) -> Any:
        if self._handle is None:
            raise ClosedError(f"the context of {self._model.path.name} was closed")
        return self._handle

    def close(self) -> None:
        """Free the buffers; closing twice is allowed."""
        if self._handle is not None:
            self._handle = self._memory = None
            self._finalizer()
