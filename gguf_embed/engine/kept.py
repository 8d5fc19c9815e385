"""Keeps the KV of prefixes between decodes, so that a text that begins with one of them is decoded from there on.

It must not know texts, tokenizers or which prefixes are worth it.
"""

from __future__ import annotations

import numpy as np

from gguf_embed.engine.batching import split
from gguf_embed.engine.prefixes import Tokens
from gguf_embed.native.context import Context

__all__ = ["KeptPrefixes"]

# Enough for some tasks' instructions and a corpus's header; each takes cells from what can be in flight.
_N_KEPT_MAX = 8


class KeptPrefixes:
    """Prefixes in one context's KV cache, the least recently used given up first.

    They live in sequences from n_seq_max on, which no text uses; sequence 0 is free between decodes.

    Args:
        context: with a unified KV cache, of a causal model; nothing else decodes in it meanwhile.
        n_tokens_max: longest prefix, and all of them together, less than the context has cells.

    Attributes:
        n_tokens_max: the same, 0 where no sequence is left to keep any in.
    """

    def __init__(self, context: Context, *, n_tokens_max: int) -> None:
        self._context = context
        self._seq_ids = range(context.n_seq_max, min(context.n_seq_max + _N_KEPT_MAX, context.n_seq_ids))
        self.n_tokens_max = n_tokens_max if self._seq_ids else 0
        self._free = list(self._seq_ids)
        self._kept: dict[int, Tokens] = {}  # by sequence, least recently used first

    @property
    def n_cells(self) -> int:
        """Cells that they take, at most."""
        return sum(len(ids) for ids in self._kept.values())

    def hold(self, prefix: Tokens) -> int:
        """Compute a prefix where it is not kept, all of it at once: what else is kept must not change its bits.

        Args:
            prefix: (n_tokens,) int32, 1 <= n_tokens <= n_tokens_max.

        Returns:
            The sequence that holds it and nothing else, the most recently used one from now on.

        Raises:
            DecodeError: llama.cpp's own error codes.
        """
        for seq_id, ids in self._kept.items():
            if np.array_equal(ids, prefix):
                self._kept[seq_id] = self._kept.pop(seq_id)
                return seq_id
        self.make_room(self._context.n_ctx - self.n_tokens_max + len(prefix))
        if not self._free:
            self._give_up(next(iter(self._kept)))
        for part in split(len(prefix), n_tokens_max=self._context.n_ubatch):
            pos = np.arange(part.start, part.stop, dtype=np.int32)
            self._context.decode(prefix[pos], pos, np.zeros(len(pos), dtype=np.int32), is_end=False)
        seq_id = self._free.pop()
        self._context.share(0, seq_id, len(prefix))
        self._context.forget(0)
        self._kept[seq_id] = prefix.copy()
        return seq_id

    def make_room(self, n_cells: int, *, spare: int = -1) -> None:
        """Give prefixes up until this many cells are free, or only the spared sequence is left."""
        for seq_id in [seq for seq in self._kept if seq != spare]:
            if self._context.n_ctx - self.n_cells >= n_cells:
                return
            self._give_up(seq_id)

    def _give_up(self, seq_id: int) -> None:
        self._context.forget(seq_id)
        del self._kept[seq_id]
        self._free.append(seq_id)

    def clear(self) -> None:
        """Forget that anything is kept; the caller clears the cache."""
        self._kept.clear()
        self._free = list(self._seq_ids)
