"""llama.cpp with faults: what its binding returns is changed for texts that have certain tokens.

A fault is a kind and where it strikes. Kinds: "nan" and "zeros" as rows, "code" for llama_decode's -1, "rows" for a row
too few; "nan" also poisons the cache, so that all that is decoded there is NaN until the cells are overwritten.
Places: "batch" (right alone), "fast" (right on the plain way) and "everywhere".
"""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass

import numpy as np

from gguf_embed.errors import DecodeError
from gguf_embed.native.backend import backend
from gguf_embed.native.head import HeadStop


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to texts with a token."""

    token: int
    kind: str
    place: str

    def strikes(self, *, is_batch: bool, is_plain: bool) -> bool:
        """Whether it does so here."""
        return self.place == "everywhere" or (self.place == "fast" and not is_plain) or (is_batch and not is_plain)


class FaultyBackend:
    """Puts faults into the binding of this process.

    Args:
        monkeypatch: pytest's.
        faults: by token.

    Attributes:
        struck: how often each kind did.
    """

    def __init__(self, monkeypatch, faults):
        self._faults = {fault.token: fault for fault in faults}
        self._binding = backend()
        self._decode, self._row, self._clear = (
            getattr(self._binding, name) for name in ("llama_decode", "llama_get_embeddings_seq", "llama_memory_clear")
        )
        self._rows = HeadStop.rows
        self.struck = Counter()
        self._now = {}  # context -> {sequence: kind} of its last decode; contexts of a crew decode side by side
        self._poisoned = set()
        self._last = None
        self._kept = []
        monkeypatch.setattr(self._binding, "llama_decode", self.llama_decode)
        monkeypatch.setattr(self._binding, "llama_get_embeddings_seq", self.llama_get_embeddings_seq)
        monkeypatch.setattr(self._binding, "llama_memory_clear", self.llama_memory_clear)
        monkeypatch.setattr(HeadStop, "rows", lambda stop: self.rows(stop))  # noqa: PLW0108 - a bound method would lose the stop

    def llama_decode(self, context, batch):
        """As llama.cpp does, but for the faults of its texts."""
        n_tokens = batch.n_tokens
        token = np.ctypeslib.as_array(batch.token, (n_tokens,))
        seq_id = np.array([batch.seq_id[at][0] for at in range(n_tokens)])
        is_batch, is_plain = len(set(seq_id.tolist())) > 1, self._binding.llama_n_seq_max(context) == 1
        now = self._now[context] = {
            int(seq): fault.kind
            for one, seq in zip(token.tolist(), seq_id, strict=True)
            if (fault := self._faults.get(one)) is not None and fault.strikes(is_batch=is_batch, is_plain=is_plain)
        }
        self._last = context
        self.struck.update(now.values())
        if "code" in now.values():
            return -1
        if "nan" in now.values():
            self._poisoned.add(self._binding.llama_get_memory(context))  # None for encoders, which keep no cells
        return self._decode(context, batch)

    def llama_memory_clear(self, memory, data):
        """Overwriting the cells is what heals."""
        if data:
            self._poisoned.discard(memory)
        self._clear(memory, data)

    def _is_poisoned(self, context):
        memory = self._binding.llama_get_memory(context)
        return memory is not None and memory in self._poisoned

    def llama_get_embeddings_seq(self, context, seq):
        """Of the ordinary way: a pointer, or none."""
        kind = self._now[context].get(seq)
        if kind == "rows":
            return None
        pointer = self._row(context, seq)
        n_embd = self._binding.llama_model_n_embd_out(self._binding.llama_get_model(context))
        if kind is None and not self._is_poisoned(context):
            return pointer
        row = np.full(n_embd, 0 if kind == "zeros" else np.nan, dtype=np.float32)
        self._kept = [*self._kept[-512:], row]
        return row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def rows(self, stop):
        """Of the way that skips the head."""
        rows = self._rows(stop)
        now = self._now[self._last]
        if "rows" in now.values():
            return rows[:-1]
        if self._is_poisoned(self._last):
            return np.full_like(rows, np.nan)
        for seq, kind in now.items():
            rows[seq] = {"nan": np.nan, "zeros": 0}[kind]
        return rows


def decode_fails(*_arguments, **_options):
    """Stands in for Context.decode."""
    raise DecodeError("llama_decode returned -3: injected", return_code=-3)
