"""Texts to results, block by block: cut, looked up, embedded, kept. Memory is that of one block.

It must not know where texts come from, where results go, or how a model is found.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_embed import vectors
from gguf_embed.encoding import EncodeOptions, prepare
from gguf_embed.engine.session import Session, as_they_are
from gguf_embed.engine.worker import Worker
from gguf_embed.errors import (
    DecodeError,
    GGUFEmbedError,
    InputError,
    InvalidTextError,
    NonFiniteEmbeddingError,
    TextTooLongError,
    WorkerCrashedError,
)
from gguf_embed.models.specs import ModelSpec
from gguf_embed.stream.cache import CachedRow, VectorCache
from gguf_embed.stream.chunking import Chunking, Span
from gguf_embed.stream.cutting import Cutter
from gguf_embed.stream.results import Block, StreamResult, Text, n_bytes_of

__all__ = ["StreamModel", "TextStream"]

Float32Matrix = NDArray[np.float32]
OnBatch = Callable[[int, int], None]

# What is sorted, packed and kept together: about a second of all-MiniLM-L6-v2 on two cores. The same texts make the
# same blocks whatever is cached, so that an interrupted job repeats the decodes that it would have made.
_N_PIECES_BLOCK = 1024
_N_BYTES_BLOCK = 64 << 10
_OF_ONE_TEXT = (TextTooLongError, InvalidTextError, NonFiniteEmbeddingError, DecodeError)


class StreamModel(Protocol):
    """What a stream needs of a model; only the last two load it."""

    @property
    def spec(self) -> ModelSpec | None:
        """What the registry knows of it."""

    @property
    def n_embd(self) -> int:
        """Components of a row."""

    def row_identity(self) -> str:
        """Equal only where rows are."""

    @property
    def max_tokens(self) -> int:
        """Longest text."""

    def open_as_fetched(self) -> Session | Worker:
        """What embeds."""


@dataclass(slots=True, kw_only=True)
class _Piece:
    owner: Text
    index: int  # of the owner in the stream
    text: str
    span: Span | None
    is_last: bool  # of its text
    error: GGUFEmbedError | None = None  # found before anything was embedded


@dataclass(slots=True, kw_only=True)
class _Embedded:
    row: NDArray[np.float32] | None = None
    n_tokens: int = 0
    truncated: bool = False
    error: GGUFEmbedError | None = None
    is_cached: bool = False


class _Reader:
    """Texts up to the error that ends them, which waits until those before it are embedded."""

    def __init__(self, texts: Iterable[Text]) -> None:
        self._texts = texts
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Text]:
        try:
            yield from self._texts
        except Exception as error:  # noqa: BLE001 - raised in its turn
            self.error = error


class TextStream:
    """One way of turning texts into results.

    Args:
        model: what embeds.
        options: how.
        truncate_dim: components to keep where the options say nothing of it.
        chunking: what becomes of long texts.
        cache: rows of before, None for none.
        on_batch: called after each decode with its texts and tokens.

    Attributes:
        dim: components of the vectors.

    Raises:
        ValueError: a precision that needs all vectors, an unknown prompt_name, or truncate beside chunks.
        DimensionError: the model was not trained for the dimension.
    """

    def __init__(
        self,
        model: StreamModel,
        options: EncodeOptions,
        *,
        truncate_dim: int | None = None,
        chunking: Chunking,
        cache: VectorCache | None,
        on_batch: OnBatch | None = None,
    ) -> None:
        if options.precision in ("int8", "uint8"):
            raise ValueError(f"{options.precision} needs the range of all vectors, which a stream does not know")
        if options.truncate == "end" and chunking.long not in ("error", "truncate"):
            raise ValueError(f"truncate='end' and long={chunking.long!r} exclude each other")
        self._model, self._options, self._chunking = model, options, chunking
        self._how = prepare(options, model.spec, lambda: model.n_embd, truncate_dim=truncate_dim)
        self.dim = self._how.dim
        self._cache, self._on_batch = cache, on_batch
        self._truncate = "end" if chunking.long == "truncate" else options.truncate
        self._cuts = chunking.long in ("chunk", "mean")
        self._cutter = Cutter(model, self._how.prefix, chunking, cache)
        self._key: hashlib._Hash | None = None
        self._begin_mean()

    def blocks(self, texts: Iterable[Text]) -> Iterator[Block]:
        """Embed texts in order, reading one block and one text ahead.

        Yields:
            Blocks of whole texts, or parts of a single one that is larger than a block.

        Raises:
            GGUFEmbedError: what no single text is to blame for.
        """
        self._begin_mean()
        waiting: list[_Piece] = []
        n_bytes = 0
        reader = _Reader(texts)
        for index, text in enumerate(reader):
            pieces = self._pieces(text, index)
            size = sum(n_bytes_of(piece.text) for piece in pieces)
            if waiting and (len(waiting) + len(pieces) > _N_PIECES_BLOCK or n_bytes + size > _N_BYTES_BLOCK):
                yield self._block(waiting)
                waiting, n_bytes = [], 0
            if len(pieces) > _N_PIECES_BLOCK or size > _N_BYTES_BLOCK:
                for part in _parts(pieces):
                    yield self._block(part)
            else:
                waiting += pieces
                n_bytes += size
        if waiting:
            yield self._block(waiting)
        if reader.error is not None:
            raise reader.error

    # Cutting

    def _pieces(self, text: Text, index: int) -> list[_Piece]:
        """Cut a text where it is long and that is wanted."""
        whole = _Piece(owner=text, index=index, text=text.text, span=None, is_last=True)
        if not self._cuts:
            return [whole]
        try:
            spans = self._cutter.spans(text)
        except _OF_ONE_TEXT as error:
            whole.error = error
            return [whole]
        pieces = [
            _Piece(owner=text, index=index, text=text.text[one.start : one.end], span=one, is_last=False)
            for one in spans
        ]
        pieces[-1].is_last = True
        return pieces

    # Embedding

    def _block(self, pieces: Sequence[_Piece]) -> Block:
        embedded = self._embed(pieces)
        self._cutter.keep()
        if self._chunking.long == "mean":
            whole = [(piece, self._add(piece, one)) for piece, one in zip(pieces, embedded, strict=True)]
            found = [(piece, one) for piece, one in whole if one is not None]
        else:
            found = list(zip(pieces, embedded, strict=True))
        rows = [one.row for _, one in found if one.row is not None]
        finished = iter(self._finish(np.stack(rows)) if rows else ())
        results = [self._result(piece, one, None if one.row is None else next(finished).copy()) for piece, one in found]
        return Block(results=tuple(results), last=pieces[-1].owner, is_whole=pieces[-1].is_last)

    def _finish(self, rows: Float32Matrix) -> NDArray[np.float32]:
        return vectors.quantize_embeddings(self._how.finish(rows), self._options.precision)

    def _result(self, piece: _Piece, one: _Embedded, vector: NDArray[np.float32] | None) -> StreamResult:
        is_mean = self._chunking.long == "mean"
        return StreamResult(
            id=piece.owner.id,
            place=piece.owner.place,
            text=piece.owner.text if is_mean else piece.text,
            vector=vector,
            error=None if one.error is None else _named(one.error, piece),
            n_tokens=one.n_tokens,
            truncated=one.truncated,
            span=None if is_mean else piece.span,
            is_cached=one.is_cached,
        )

    def _add(self, piece: _Piece, one: _Embedded) -> _Embedded | None:
        """Add a chunk to the mean of its text; return the mean after the last one.

        Source: OpenAI cookbook, "Embedding texts that are longer than the model's maximum context length": unit vectors
        of chunks, weighted by their tokens.
        """
        mean = self._mean
        if one.row is not None:
            row = vectors.l2_normalize(one.row[None])[0] if self._options.normalize_embeddings else one.row
            self._sum += one.n_tokens * row.astype(np.float64)
        mean.n_tokens += one.n_tokens
        mean.error = mean.error or one.error
        mean.is_cached = mean.is_cached and one.is_cached
        if not piece.is_last:
            return None
        if mean.error is None:
            mean.row = np.asarray(self._sum / mean.n_tokens, dtype=np.float32)
        self._begin_mean()
        return mean

    def _begin_mean(self) -> None:
        """Begin the mean of the next text's chunks."""
        self._sum = np.zeros(self._model.n_embd, dtype=np.float64)
        self._mean = _Embedded(is_cached=True)

    def _embed(self, pieces: Sequence[_Piece]) -> list[_Embedded]:
        """Take rows from the cache, compute the others and keep them."""
        embedded = [_Embedded(error=piece.error) for piece in pieces]
        keys = [self._key_of(piece.text) for piece in pieces] if self._cache is not None else []
        known = self._cache.get(list(dict.fromkeys(keys)), self._model.n_embd) if self._cache is not None else {}
        for one, key in zip(embedded, keys, strict=False):
            if (found := known.get(key)) is not None and one.error is None:
                one.row, one.n_tokens, one.truncated = found.row, found.n_tokens, found.truncated
                one.is_cached = True
        first: dict[str, int] = {}  # equal texts are computed once
        for at, one in enumerate(embedded):
            if one.row is None and one.error is None:
                first.setdefault(pieces[at].text, at)
        if first:
            self._compute(list(first), [embedded[at] for at in first.values()])
        for at, one in enumerate(embedded):
            if one.row is None and one.error is None:
                embedded[at] = embedded[first[pieces[at].text]]
        if self._cache is not None:
            self._cache.put(
                (keys[at], CachedRow(row=one.row, n_tokens=one.n_tokens, truncated=one.truncated))
                for at in first.values()
                if (one := embedded[at]).row is not None
            )
        return embedded

    def _key_of(self, text: str) -> bytes:
        if self._key is None:
            cut = f"end {self._model.max_tokens}" if self._truncate == "end" else "whole"
            self._key = hashlib.sha256(
                f"{self._model.row_identity()}\0{self._how.prefix}\0{cut}\0".encode("utf-8", "surrogatepass")
            )
        key = self._key.copy()
        key.update(text.encode("utf-8", "surrogatepass"))
        return key.digest()

    def _compute(self, texts: Sequence[str], into: Sequence[_Embedded]) -> None:
        """Embed different texts; one that cannot be does not stop the others."""
        session = self._model.open_as_fetched()
        if isinstance(session, Session):  # a worker's decodes hang on what others ask of it anyway
            session.forget()  # so that a block's bits do not hang on the blocks before it
        left = list(range(len(texts)))
        while left:
            wanted = [texts[at] for at in left]
            rows = np.full((len(left), self._model.n_embd), np.inf, dtype=np.float32)  # until they are decoded
            try:
                n_tokens, truncated = self._run(session, wanted, rows)
            except _OF_ONE_TEXT as error:
                if error.index is None:
                    raise
                for one in (error, *getattr(error, "others", ())):
                    into[left[one.index]].error = one
                self._take_finished(left, wanted, rows, into)
                left = [at for at in left if into[at].row is None and into[at].error is None]
                if isinstance(error, InputError):
                    left = self._without_refused(left, texts, into)
            except WorkerCrashedError:
                self._take_finished(left, wanted, rows, into)
                self._each_alone([at for at in left if into[at].row is None], texts, into)
                return
            else:
                _take(left, rows, n_tokens, set(truncated), into)
                return

    def _run(self, session: Session | Worker, texts: Sequence[str], rows: Float32Matrix) -> tuple[list[int], list[int]]:
        return session.embed_texts(
            texts,
            rows,
            finish=as_they_are,
            truncate=self._truncate,
            prefix=self._how.prefix,
            batch_size=self._options.batch_size,
            on_batch=self._on_batch,
        )

    def _each_alone(self, which: list[int], texts: Sequence[str], into: Sequence[_Embedded]) -> None:
        """Embed texts one at a time after a crash, so that the one of which the worker dies is known."""
        session = self._model.open_as_fetched()
        for at in which:
            row = np.empty((1, self._model.n_embd), dtype=np.float32)
            if isinstance(session, Worker):
                session.open()  # raises where it is not started again for now, whatever the text
            try:
                n_tokens, truncated = self._run(session, [texts[at]], row)
            except (*_OF_ONE_TEXT, WorkerCrashedError) as error:
                into[at].error = error
            else:
                _take([at], row, n_tokens, set(truncated), into)

    def _take_finished(
        self, which: list[int], texts: list[str], rows: Float32Matrix, into: Sequence[_Embedded]
    ) -> None:
        """Take the rows that were there before one text failed."""
        here = np.flatnonzero(np.isfinite(rows[:, 0])).tolist()
        if here:
            tokens, truncated = self._model.open_as_fetched().tokenize(
                [texts[at] for at in here], truncate=self._truncate, prefix=self._how.prefix
            )
            _take([which[at] for at in here], rows[here], list(map(len, tokens)), set(truncated), into)

    def _without_refused(self, which: list[int], texts: Sequence[str], into: Sequence[_Embedded]) -> list[int]:
        """Find the other texts that cannot be tokenized, instead of failing at one after the other."""
        session, sound = self._model.open_as_fetched(), []
        for at in which:
            try:
                session.tokenize([texts[at]], truncate=self._truncate, prefix=self._how.prefix)
            except _OF_ONE_TEXT as error:
                into[at].error = error
            else:
                sound.append(at)
        return sound


def _take(
    which: list[int], rows: Float32Matrix, n_tokens: list[int], truncated: set[int], into: Sequence[_Embedded]
) -> None:
    for at, (index, row) in enumerate(zip(which, rows, strict=True)):
        one = into[index]
        one.row, one.n_tokens, one.truncated = row, n_tokens[at], at in truncated


def _parts(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Cut one text's pieces into blocks."""
    part: list[_Piece] = []
    n_bytes = 0
    for piece in pieces:
        size = n_bytes_of(piece.text)
        if part and (len(part) == _N_PIECES_BLOCK or n_bytes + size > _N_BYTES_BLOCK):
            yield part
            part, n_bytes = [], 0
        part.append(piece)
        n_bytes += size
    yield part


def _named(error: GGUFEmbedError, piece: _Piece) -> GGUFEmbedError:
    """Say which text it was as the caller counts, not by its place in a block."""
    named, where = copy.copy(error), f"text {getattr(error, 'index', None)} "
    place = piece.owner.place
    if error.message.startswith(where):
        named.message = f"{place} {error.message.removeprefix(where)}"
    else:
        named.message = f"{place}: {error.message}"
    named.index = piece.index  # type: ignore[attr-defined]  # a worker's crash has none of its own
    return named
