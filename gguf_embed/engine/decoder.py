"""The contexts of one loaded model: one that grows when a text needs more, and the prefixes that it keeps.

Token ids in, raw rows out. It must not know packing, guards or tokenizers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.batching import split
from gguf_embed.engine.kept import KeptPrefixes
from gguf_embed.engine.prefixes import Tokens
from gguf_embed.errors import DecodeError, ModelLoadError
from gguf_embed.native.context import Context
from gguf_embed.native.layout import Layout
from gguf_embed.native.llama import Model

__all__ = ["Decoder"]

Float32Matrix = NDArray[np.float32]

# llama.cpp rounds a context up to whole multiples of this many cells.
_N_CTX_STEP = 256


class Decoder:
    """Decodes batches of one model; one thread at a time.

    Args:
        model: stays open for as long as the decoder does.
        layout: the first context.
        pooling_type: "last", "mean" or "cls".
        n_ctx_max: longest text; the context grows up to it.
        n_threads: CPU threads.

    Raises:
        AllocationError: memory was refused.
        ModelLoadError: llama.cpp could not create the context.
    """

    def __init__(self, model: Model, layout: Layout, *, pooling_type: str, n_ctx_max: int, n_threads: int) -> None:
        self._model, self._layout = model, layout
        self._pooling_type, self._n_ctx_max, self._n_threads = pooling_type, n_ctx_max, n_threads
        self._context: Context | None = None
        self._open(layout)
        # Elsewhere a text must be whole in one decode: pooling over parts is silently wrong.
        self.is_splittable = self._opened().is_causal and pooling_type == "last"

    def _open(self, layout: Layout) -> None:
        self._context = Context(self._model, layout, pooling_type=self._pooling_type, n_threads=self._n_threads)
        # Half of the first context's cells, also when it has grown: the same call is to take the same way again.
        self._kept = KeptPrefixes(self._context, n_tokens_max=self._layout.n_ctx // 2)

    @property
    def n_prefix_max(self) -> int:
        """Longest prefix that texts may share, 0 where they may not."""
        return self._kept.n_tokens_max if self.is_splittable and self._opened().can_share else 0

    def room_for(self, n_prefix: int) -> int:
        """Tokens that fit in one decode beside a prefix."""
        context = self._opened()
        return min(context.n_ubatch, self._layout.n_ctx - n_prefix)

    def decode(self, texts: Sequence[Tokens], *, n_prefix: int = 0) -> Float32Matrix:
        """Run one batch.

        Args:
            texts: (n_tokens,) int32 each; together n_ubatch tokens at most beside their prefix, or one alone.
            n_prefix: tokens that all of them begin with, fewer than any has.

        Returns:
            (n, n_embd) float32 as the model gave them.

        Raises:
            AllocationError: a longer text needs more memory than there is; what was before still works.
            DecodeError: llama.cpp failed; nothing of the batch is left in the cache.
        """
        context = self._context_for(max(len(ids) for ids in texts))
        try:
            return self._decode(context, texts, n_prefix)
        except BaseException:
            self.wipe()
            raise

    def _decode(self, context: Context, texts: Sequence[Tokens], n_prefix: int) -> Float32Matrix:
        prefix_id = self._kept.hold(texts[0][:n_prefix]) if n_prefix else -1
        lengths = [len(ids) - n_prefix for ids in texts]
        self._kept.make_room(sum(lengths), spare=prefix_id)
        for seq_id in range(len(texts) if n_prefix else 0):
            context.share(prefix_id, seq_id, n_prefix)
        if len(texts) == 1:
            ids = texts[0]
            position = np.arange(len(ids), dtype=np.int32)
            for part in split(lengths[0], n_tokens_max=context.n_ubatch):
                here = slice(part.start + n_prefix, part.stop + n_prefix)
                sequence = np.zeros(part.stop - part.start, dtype=np.int32)
                context.decode(ids[here], position[here], sequence, is_end=here.stop == len(ids))
        else:
            context.decode(
                np.concatenate([ids[n_prefix:] for ids in texts]),
                np.concatenate([np.arange(n_prefix, len(ids), dtype=np.int32) for ids in texts]),
                np.repeat(np.arange(len(texts), dtype=np.int32), lengths),
            )
        rows = context.embeddings(len(texts))
        if not self._kept.n_cells:
            context.clear()
        else:
            for seq_id in range(len(texts)):
                context.forget(seq_id)
        return rows

    def wipe(self) -> None:
        """Forget everything, and overwrite it: what a failed decode left must not reach the next one."""
        self._kept.clear()
        if self._context is not None:
            self._context.clear(wipe=True)

    def _context_for(self, n_tokens: int) -> Context:
        """The context, grown first when a text needs more than it has."""
        context = self._opened()
        if n_tokens <= (context.n_ctx if self.is_splittable else context.n_ubatch):
            return context
        wanted = max(n_tokens, min(2 * context.n_ctx, self._n_ctx_max))
        n_ctx = -(-wanted // _N_CTX_STEP) * _N_CTX_STEP
        n_ubatch = self._layout.n_ubatch if self.is_splittable else n_ctx
        self.close()  # first, or the old buffers would stand beside the new ones
        try:
            self._open(dataclasses.replace(self._layout, n_ctx=n_ctx, n_ubatch=n_ubatch))
        except ModelLoadError:
            self._open(dataclasses.replace(self._layout, n_ctx=context.n_ctx, n_ubatch=context.n_ubatch))
            raise
        return self._opened()

    def _opened(self) -> Context:
        if self._context is None:
            raise DecodeError("the context was lost to an earlier failure; open the model again", return_code=-1)
        return self._context

    def close(self) -> None:
        """Free the context; closing twice is allowed."""
        if self._context is not None:
            self._context.close()
            self._context = None
