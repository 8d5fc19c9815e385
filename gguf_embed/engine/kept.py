"""Keeps the KV of prefixes between decodes, so that a text that begins with one of them is decoded from there on.

It must not know texts, tokenizers or which prefixes are worth it.
"""

from __future__ import annotations

import numpy as np

from gguf_embed.engine.batching import split
from gguf_embed.engine.prefixes import Tokens, common_length
from gguf_embed.native.context import Context

__all__ = ["KeptPrefixes"]

# Enough for some tasks' instructions and a corpus's header; each takes cells from what can be in flight.
_N_KEPT_MAX = 8


class KeptPrefixes:
    """Prefixes in one context's KV cache, the least recently used given up first.

    They live in sequences from n_seq_max on, which no text uses; sequence 0 is free between decodes.

    Args:
        context: with a unified KV cache, of a causal model; nothing else decodes in it meanwhile.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._free = list(range(context.n_seq_max, min(context.n_seq_max + _N_KEPT_MAX, context.n_seq_ids)))
        self._kept: dict[int, Tokens] = {}  # by sequence, least recently used first

    @property
    def n_tokens_max(self) -> int:
        """Longest prefix, and all of them together: half of the cells, for the other half is what is in flight."""
        return self._context.n_ctx // 2 if self._free or self._kept else 0

    @property
    def n_cells(self) -> int:
        """Cells that they take, at most."""
        return sum(len(ids) for ids in self._kept.values())

    @property
    def prefixes(self) -> list[Tokens]:
        """The prefixes, each (n_tokens,) int32."""
        return list(self._kept.values())

    def hold(self, prefix: Tokens) -> int:
        """Compute a prefix, or as much of it as no kept one begins with.

        Args:
            prefix: (n_tokens,) int32, 1 <= n_tokens <= n_tokens_max.

        Returns:
            A sequence that begins with it, the most recently used one from now on.

        Raises:
            DecodeError: llama.cpp's own error codes.
        """
        source, n_common = self._longest_match(prefix)
        if n_common == len(prefix):
            self._kept[source] = self._kept.pop(source)
            return source
        self.make_room(self._context.n_ctx - self.n_tokens_max + len(prefix), spare=source)
        if not self._free:
            self._give_up(next(seq for seq in self._kept if seq != source))
        if n_common:
            self._context.share(source, 0, n_common)
        for part in split(len(prefix) - n_common, n_tokens_max=self._context.n_ubatch):
            pos = np.arange(n_common + part.start, n_common + part.stop, dtype=np.int32)
            self._context.decode(prefix[pos], pos, np.zeros(len(pos), dtype=np.int32), is_end=False)
        seq_id = self._free.pop()
        self._context.share(0, seq_id, len(prefix))
        self._context.forget(0)
        self._kept[seq_id] = prefix.copy()
        return seq_id

    def _longest_match(self, prefix: Tokens) -> tuple[int, int]:
        matches = ((common_length(ids, prefix), seq_id) for seq_id, ids in self._kept.items())
        n_common, seq_id = max(matches, default=(0, -1))
        return seq_id, n_common

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
        self._free += self._kept
        self._kept.clear()
