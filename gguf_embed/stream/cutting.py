"""Texts to pieces: which are cut, where, and what is remembered of it.

It must not know rows or where texts come from.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from functools import cache
from typing import Protocol

import numpy as np

from gguf_embed.engine.session import Session
from gguf_embed.engine.worker import Worker
from gguf_embed.errors import InputError
from gguf_embed.stream.cache import VectorCache
from gguf_embed.stream.chunking import Chunking, Span, chunk
from gguf_embed.stream.results import Text, n_bytes_of

__all__ = ["Cutter"]

_RULE = 1  # raised when `chunk` cuts elsewhere
# What decides where a kind of text is cut beside `chunk` itself.
_SPLITTER = "semantic-text-splitter"
_GRAMMARS = {"tsx": "typescript", "c_sharp": "c-sharp"}


class CutterModel(Protocol):
    """What cutting needs of a model."""

    def row_identity(self) -> str:
        """Equal only where tokens are."""

    @property
    def max_tokens(self) -> int:
        """Longest text."""

    def open_as_fetched(self) -> Session | Worker:
        """What tokenizes."""


class Cutter:
    """Cuts texts as one call wants it.

    Args:
        model: whose tokens count.
        prefix: goes before each chunk.
        chunking: how.
        kept: where cuts of before are, None for nowhere; counting a text's tokens takes a tenth of embedding it.
    """

    def __init__(self, model: CutterModel, prefix: str, chunking: Chunking, kept: VectorCache | None) -> None:
        self._model, self._prefix, self._chunking, self._kept = model, prefix, chunking, kept
        self._new: dict[bytes, bytes] = {}
        self._identity = ""

    def spans(self, text: Text) -> list[Span]:
        """Find the chunks of a text, one where it is short.

        Raises:
            TextTooLongError: one character is longer than a chunk.
            InvalidTextError: it cannot be tokenized.
            InputError: prompt and overlap leave no room in a chunk, or the model takes none that long.
        """
        n_tokens_max = self._chunking.n_tokens or self._model.max_tokens
        # No tokenizer makes more than two tokens of a byte and eight of its own, so short texts are not counted.
        if 2 * (n_bytes_of(text.text) + n_bytes_of(self._prefix)) + 8 <= n_tokens_max:
            return [Span(start=0, end=len(text.text), first_line=1, last_line=1 + text.text.count("\n", 0, -1))]
        key = self._key_of(text, n_tokens_max) if self._kept is not None else b""
        if self._kept is not None and (found := self._new.get(key) or self._kept.get_note(key)):
            return _read(found)
        n_overlap = self._chunking.n_overlap
        if n_tokens_max > self._model.max_tokens:
            raise InputError(
                f"chunks of {n_tokens_max:,} tokens were asked for, and {self._model.max_tokens:,} are taken here; "
                "take smaller ones, or say --n-ctx (Limits.n_ctx) where there is memory for it"
            )
        try:
            spans = chunk(text.text, kind=text.kind, n_tokens_max=n_tokens_max, n_overlap=n_overlap, count=self._count)
        except InputError:
            raise
        except ValueError as error:  # the prompt leaves no room beside the overlap, which the tokenizer alone knows
            raise InputError(str(error)) from error
        self._new[key] = _written(spans)
        return spans

    def keep(self) -> None:
        """Remember the cuts since the last call."""
        if self._kept is not None and self._new:
            self._kept.put_notes(self._new)
        self._new = {}

    def _count(self, text: str) -> int:
        tokens, _ = self._model.open_as_fetched().tokenize([text], prefix=self._prefix)
        return len(tokens[0])

    def _key_of(self, text: Text, n_tokens_max: int) -> bytes:
        self._identity = self._identity or f"chunks\0{self._model.row_identity()}\0{self._prefix}"
        how = f"{self._identity}\0{n_tokens_max} {self._chunking.n_overlap} {_rule_of(text.kind)}\0{text.text}"
        return hashlib.sha256(how.encode("utf-8", "surrogatepass")).digest()


@cache
def _rule_of(kind: str) -> str:
    """What decides where texts of a kind are cut, with versions."""
    versions = []
    for package in (_SPLITTER, f"tree-sitter-{_GRAMMARS.get(kind, kind)}"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return f"{_RULE} {kind} {versions}"


def _written(spans: list[Span]) -> bytes:
    return np.array([(one.start, one.end, one.first_line, one.last_line) for one in spans], dtype="<i8").tobytes()


def _read(written: bytes) -> list[Span]:
    rows = np.frombuffer(written, dtype="<i8").reshape(-1, 4).tolist()
    return [Span(start=start, end=end, first_line=first, last_line=last) for start, end, first, last in rows]
