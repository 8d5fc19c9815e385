"""One loaded model: its contexts, its tokenizer, and every guard between a text and a row. Rows in the caller's order.

It must not know model names, the hub, prompts or HTTP.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.batching import level, pack
from gguf_embed.engine.canary import open_both_ways
from gguf_embed.engine.crew import Crew
from gguf_embed.engine.decoder import Decoder
from gguf_embed.engine.repeats import Repeats
from gguf_embed.engine.rescue import Rescue, decode_or_nan, raise_first
from gguf_embed.engine.settings import SessionSettings
from gguf_embed.engine.sharing import Sharing
from gguf_embed.engine.tokenizing import OVERRIDES, Tokenizer, Tokens
from gguf_embed.engine.windows import Windows
from gguf_embed.errors import (
    BackendError,
    ClosedError,
    DecodeError,
    InputError,
    UnsupportedModelError,
)
from gguf_embed.native.buffers import Buffer, recording
from gguf_embed.native.layout import Layout
from gguf_embed.native.llama import Model

__all__ = ["Session", "Tokens", "as_they_are"]

logger = logging.getLogger(__name__)

Float32Matrix = NDArray[np.float32]
T = TypeVar("T")
# Fewer tokens, as a part of a full batch, are decoded faster with all threads than side by side.
# Source: queries with all-MiniLM-L6-v2, 2 cores, 152 tokens 27 against 30 ms, 228 tokens 35 against 32 ms, 2026-11-21.
_LEAST_SIDE = 0.75
# Tokens of a decode beside the model's own context: little memory, for comparisons.
_N_UBATCH_SMALL = 64

OnBatch = Callable[[int, int], None]  # texts and tokens of the batch that was just decoded
Finish = Callable[[Float32Matrix], Float32Matrix]  # (n, n_embd) as the model gave them to (n, dim) as they are wanted


class Session:
    """One model in memory, safe to call from several threads (calls wait for each other).

    Args:
        settings: what to load and how.

    Attributes:
        layout: as it came to be; another one than asked for where the model's head cannot be skipped.
        buffers: what llama.cpp allocated for weights and the first context.
        closing: the token that every text ends in, (1,) int32; (0,) where there is none.

    Raises:
        AllocationError: memory was refused.
        ModelLoadError: llama.cpp refused the file.
        UnsupportedModelError: a last-token model whose tokenizer does not end texts with EOS.
        DecodeError: the head must be skipped and cannot be.
    """

    def __init__(self, settings: SessionSettings) -> None:
        self.settings, self.layout = settings, settings.layout
        self._process_id = os.getpid()
        self._lock = threading.RLock()  # one decode at a time
        self._vocab_lock = threading.Lock()  # the tokenizer, which must not wait for a decode
        self._decoder: Decoder | None = None
        self._crew: Crew | None = None
        self._rescue = Rescue(settings)
        overrides = dict(OVERRIDES)
        if settings.add_eos is not None:
            overrides["tokenizer.ggml.add_eos_token"] = settings.add_eos
        with recording() as weights:
            self._model: Model | None = Model(settings.path, settings.layout, overrides=overrides)
        try:
            with recording() as buffers:
                self._begin(self._model)
        except BaseException:
            self.close()
            raise
        # The canary's small context was logged as well; the last line of each part and place is the one that stays.
        last = {(buffer.part, buffer.place): buffer for buffer in buffers}
        self.buffers: tuple[Buffer, ...] = (*weights, *last.values())

    def _begin(self, model: Model) -> None:
        self.n_embd, self.max_tokens = model.n_embd, min(self.settings.n_ctx_max, model.n_ctx_train)
        self._tokenizer = Tokenizer(model, max_tokens=self.max_tokens)
        self.closing = self._tokenizer.closing
        self._sharing = Sharing(_locked(self._vocab_lock, partial(self._tokenizer.tokenize, truncate="end")))
        if self.settings.pooling_type == "last" and not len(self.closing):
            raise UnsupportedModelError(
                f"{self.settings.path.name} pools the last token, but its tokenizer adds no EOS "
                "(tokenizer.ggml.add_eos_token is not true), so its vectors would be wrong. "
                "Take a newer conversion of it, or pass add_eos=True (--add-eos).",
                path=self.settings.path,
            )
        if self.layout.skips_head:
            self._begin_without_head(model)
        else:
            self._decoder = _decoder_of(self.settings, model, self.layout)
        if n_side := self.layout.n_contexts - 1:
            n_threads = max(1, self.settings.n_threads // n_side)
            self._crew = Crew(partial(_decoder_of, self.settings, model, self.layout, n_threads=n_threads), n_side)

    def _begin_without_head(self, model: Model) -> None:
        """Open the context that skips the head, and the ordinary one instead where the two do not agree."""
        decoder, reason = open_both_ways(model, self.layout, partial(_decoder_of, self.settings, model))
        self._decoder = decoder
        if not reason:
            return
        if self.settings.must_skip_head:
            raise DecodeError(
                f"{self.settings.path.name}: its head cannot be skipped: {reason}. Leave the choice to this program: "
                "without --skip-head, or skips_head=None in Limits.",
                return_code=-1,
            )
        logger.warning("%s: its head cannot be skipped: %s; embedding is slower", self.settings.path.name, reason)
        self.layout = dataclasses.replace(self.layout, skips_head=False)
        decoder.close()
        self._decoder = _decoder_of(self.settings, model, self.layout)

    def tokenize(
        self, texts: Sequence[str], *, truncate: str = "error", prefix: str = "", names: Sequence[int] | None = None
    ) -> tuple[list[Tokens], list[int]]:
        """Turn texts into ids; see `Tokenizer.tokenize`. Raises ClosedError after close()."""
        with self._vocab_lock:
            self._open()
            return self._tokenizer.tokenize(texts, truncate=truncate, prefix=prefix, names=names)

    def pieces(self, ids: Iterable[int]) -> dict[int, tuple[str, bool]]:
        """Tell what tokens stand for, and whether they are control tokens."""
        with self._vocab_lock:
            return {token: self._open().piece(token) for token in ids}

    @property
    def n_rescued(self) -> int:
        """Texts so far that had no usable row until they were tried again."""
        return self._rescue.n_rescued

    def embed_plainly(self, tokens: Sequence[Tokens]) -> Float32Matrix:
        """Run token lists one at a time by the plainest way there is; as `embed_otherwise` otherwise."""
        with self._lock:
            self._opened()
            return self._rescue.plain_rows(tokens)

    def embed_otherwise(
        self, tokens: Sequence[Tokens], *, flash_attn: str | None = None, skips_head: bool | None = None
    ) -> Float32Matrix:
        """Run token lists one at a time in a small context of their own, with what is not None of the layout changed.

        Returns:
            (n, n_embd) float32 as llama.cpp gave them, finite or not.

        Raises:
            BackendError: there is no memory for it, or llama.cpp failed.
        """
        n_ctx = -(-max(map(len, tokens)) // 256) * 256
        model, layout = self._open(), self.layout
        with self._lock:
            decoder = _decoder_of(self.settings, model, dataclasses.replace(
                layout, n_ctx=n_ctx, n_ubatch=min(n_ctx, _N_UBATCH_SMALL) if self._opened().is_splittable else n_ctx,
                n_seq_max=1, n_contexts=1, flash_attn=flash_attn or layout.flash_attn,
                skips_head=layout.skips_head if skips_head is None else skips_head,
            ))  # fmt: skip
            try:
                return np.concatenate([decoder.decode([ids]) for ids in tokens])
            finally:
                decoder.close()

    def forget(self) -> None:
        """Embed the next texts as a session just opened would; what they begin with is kept between calls otherwise."""
        self._open()
        with self._lock:
            self._sharing.forget()
            self._opened().wipe()

    def cost_of(self, prompt: str) -> Callable[[Tokens], int]:
        """Tell how many tokens a text after this prompt really costs: those beside what its texts share."""
        with self._lock:
            try:
                n_shared = self._sharing.n_prompt_tokens(prompt, self._opened())
            except InputError:  # a prompt that no text can follow; each says so itself
                n_shared = 0
        return lambda ids: max(1, len(ids) - n_shared)

    def embed_texts(
        self,
        texts: Sequence[str],
        into: Float32Matrix,
        *,
        finish: Finish,
        truncate: str = "error",
        prefix: str = "",
        batch_size: int | None = None,
        on_batch: OnBatch | None = None,
    ) -> tuple[list[int], list[int]]:
        """Embed texts, tokenizing ahead of the decodes; equal ones once.

        Args:
            texts: any strings.
            into: (n, dim) float32, filled in the order of `texts`.
            finish: makes (m, dim) rows of the (m, n_embd) that the model gave.
            truncate: as for `tokenize`.
            prefix: as for `tokenize`.
            batch_size: as for `embed`.
            on_batch: as for `embed`.

        Returns:
            Tokens of each text, and the positions of those that were cut.

        Raises:
            InputError: a text cannot be tokenized or is too long; a late one stops the decodes of the first ones.
            GGUFEmbedError: as `embed`.
        """
        repeats = Repeats(texts)
        lengths = np.empty(len(repeats.texts), dtype=np.intp)
        truncated: list[int] = []

        def tokenize(start: int, window: Sequence[str]) -> tuple[list[Tokens], list[int]]:
            names = repeats.positions[start : start + len(window)].tolist()
            return self.tokenize(window, truncate=truncate, prefix=prefix, names=names)

        with Windows(tokenize, repeats.texts) as windows:
            each = _in_turn(windows.check, on_batch)
            for start, (tokens, cut) in windows:
                here = slice(start, start + len(tokens))
                lengths[here] = [len(ids) for ids in tokens]
                truncated += cut
                how: dict[str, Any] = {"finish": finish, "batch_size": batch_size, "on_batch": each}
                self._embed(tokens, into, repeats.positions[here], prompt=prefix, **how)
        n_tokens = repeats.spread(lengths).tolist()
        repeats.copy(into)
        if again := repeats.again:
            each(len(again), sum(n_tokens[index] for index in again))
        return n_tokens, repeats.all_of(truncated)

    def embed(
        self,
        tokens: Sequence[Tokens],
        *,
        prompt: str = "",
        names: Sequence[int] | None = None,
        batch_size: int | None = None,
        on_batch: OnBatch | None = None,
    ) -> Float32Matrix:
        """Run token lists through the model.

        Args:
            tokens: (n_tokens,) int32 arrays, 1 <= n_tokens <= max_tokens.
            prompt: what was put before each text; its tokens are computed once.
            names: what to call each text in errors and warnings, by number; None for its position.
            batch_size: at most this many texts a decode; None leaves it to the token budget.
            on_batch: called after each decode with its texts and tokens.

        Returns:
            (n, n_embd) float32 in the order of `tokens`, as the model gave them: finite, not normalised.

        Raises:
            ValueError: a list is empty or longer than max_tokens.
            GGUFEmbedError: llama.cpp failed, one text has no finite row, or after close().
        """
        rows = np.empty((len(tokens), self.n_embd), dtype=np.float32)
        how: dict[str, Any] = {"finish": as_they_are, "batch_size": batch_size, "on_batch": on_batch}
        self._embed(tokens, rows, np.arange(len(tokens), dtype=np.intp), names=names, prompt=prompt, **how)
        return rows

    def _embed(
        self,
        tokens: Sequence[Tokens],
        into: Float32Matrix,
        positions: NDArray[np.intp],
        *,
        names: Sequence[int] | None = None,
        prompt: str = "",
        finish: Finish,
        batch_size: int | None,
        on_batch: OnBatch | None,
    ) -> None:
        """Group, pack and decode one window; row i goes to into[positions[i]]."""
        self._open()
        named = positions if names is None else np.asarray(names, dtype=np.intp)
        lengths = [len(ids) for ids in tokens]
        if lengths and not 1 <= min(lengths) <= max(lengths) <= self.max_tokens:
            raise ValueError(f"token lists have 1..{self.max_tokens} ids here, not {min(lengths)}..{max(lengths)}")
        n_seq_max = min(self.layout.n_seq_max, batch_size or self.layout.n_seq_max)
        with self._lock:
            groups = self._sharing.groups(tokens, self._opened(), prompt=prompt, n_batch=self.settings.n_batch)
        for group in groups:
            n_prefix = group.n_prefix
            with self._lock:
                n_tokens_max = min(self.settings.n_batch, self._opened().room_for(n_prefix))
            rest = [lengths[member] - n_prefix for member in group.members]
            packed = pack(rest, n_tokens_max=n_tokens_max, n_seq_max=n_seq_max)
            if self._crew is not None and sum(rest) >= _LEAST_SIDE * n_tokens_max:
                packed = level(packed, rest, n_side=self.layout.n_side)
            batches = [[group.members[index] for index in batch] for batch in packed]
            for members, rows in self._decode(batches, tokens, named, n_prefix):
                into[positions[members]] = finish(rows)
                if on_batch is not None:
                    on_batch(len(members), sum(lengths[member] for member in members))

    def _decode(
        self, batches: list[list[int]], tokens: Sequence[Tokens], names: NDArray[np.intp], n_prefix: int
    ) -> Iterator[tuple[list[int], Float32Matrix]]:
        """Decode batches side by side where that can be, else one after the other; yield each with its rows."""
        texts = [[tokens[member] for member in members] for members in batches]
        errors: list[BackendError] = []
        found = self._decoded_together(texts)
        for at, (members, batch) in enumerate(zip(batches, texts, strict=True)):
            with self._lock:
                if found is None:
                    rows = decode_or_nan(self._opened(), batch, n_embd=self.n_embd, n_prefix=n_prefix)
                else:
                    rows = found[at]
                errors += self._rescue.mend(rows, batch, names[members], self._opened)
            yield members, rows
            if found is None:
                raise_first(errors)
        raise_first(errors)

    def _decoded_together(self, texts: list[list[Tokens]]) -> list[Float32Matrix] | None:
        """Decode batches side by side; None where that cannot be, or failed."""
        try:
            return self._crew.decode(texts) if self._crew is not None else None
        except DecodeError as error:
            logger.warning("%d batches side by side failed, and are decoded one after the other: %s", len(texts), error)
            return None

    def _opened(self) -> Decoder:
        if self._decoder is None:
            raise ClosedError(f"{self.settings.path.name} was closed; open it again to embed more")
        return self._decoder

    def _open(self) -> Model:
        if os.getpid() != self._process_id:
            raise BackendError(
                f"{self.settings.path.name} was loaded before this process was forked, and llama.cpp's threads did not "
                "come along. Start workers first and load in each, or use the spawn start method."
            )
        if self._model is None:
            raise ClosedError(f"{self.settings.path.name} was closed; open it again to embed more")
        return self._model

    def close(self) -> None:
        """Free contexts and weights; waits for a running call, and closing twice is allowed."""
        if os.getpid() != self._process_id:
            return  # the memory is the parent's, and its locks may be held for ever
        if self._crew is not None:
            self._crew.close()  # first and alone: its call may want the lock to save a row
        with self._lock, self._vocab_lock:
            self._rescue.close()
            if self._decoder is not None:
                self._decoder.close()
            if self._model is not None:
                self._model.close()
            self._decoder = self._model = None


def _decoder_of(settings: SessionSettings, model: Model, layout: Layout, *, n_threads: int | None = None) -> Decoder:
    n_threads = n_threads or settings.n_threads
    return Decoder(model, layout, pooling_type=settings.pooling_type, n_ctx_max=settings.n_ctx_max, n_threads=n_threads)


def _locked(lock: threading.Lock, function: Callable[..., T]) -> Callable[..., T]:
    """Call a function under a lock; without the session, which would hold itself alive."""

    def call(*arguments: Any, **options: Any) -> T:
        with lock:
            return function(*arguments, **options)

    return call


def as_they_are(rows: Float32Matrix) -> Float32Matrix:
    """Return raw rows: the `finish` that does nothing."""
    return rows


def _in_turn(check: Callable[[], None], on_batch: OnBatch | None) -> OnBatch:
    """Check, then tell the caller."""

    def both(n_texts: int, n_tokens: int) -> None:
        check()
        if on_batch is not None:
            on_batch(n_texts, n_tokens)

    return both
