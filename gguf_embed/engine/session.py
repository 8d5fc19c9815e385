"""One loaded model: its contexts, its tokenizer, and every guard between a text and a row.

Token ids in, raw rows in the caller's order out. It must not know model names, the hub, prompts or HTTP.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.batching import pack, split
from gguf_embed.engine.normalizing import endless_run, normalizer_for
from gguf_embed.errors import (
    BackendError,
    ClosedError,
    DecodeError,
    InvalidTextError,
    ModelLoadError,
    NonFiniteEmbeddingError,
    TextTooLongError,
    UnsupportedModelError,
)
from gguf_embed.native.llama import Context, Model

__all__ = ["Session", "SessionSettings", "Tokens"]

logger = logging.getLogger(__name__)

Tokens = NDArray[np.int32]
Float32Matrix = NDArray[np.float32]
OnBatch = Callable[[int, int], None]  # texts and tokens of the batch that was just decoded

_STRIP_ACCENTS = "tokenizer.ggml.normalizer.strip_accents"
# llama.cpp rounds a context up to whole multiples of this many cells.
_N_CTX_STEP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How to run one file.

    Attributes:
        path: the GGUF.
        pooling_type: "last", "mean" or "cls".
        add_eos: overrides tokenizer.ggml.add_eos_token; None leaves the file's word.
        n_ctx: tokens in flight to begin with.
        n_ctx_max: longest text; the context grows up to it on demand.
        n_batch: tokens packed into one decode.
        n_ubatch: most tokens that one decode can hold to begin with, n_batch <= n_ubatch <= n_ctx.
        n_seq_max: most texts packed into one decode.
        n_gpu_layers: layers on the device, -1 for all of them and the output.
        device: ggml's name of the device, None for the CPU.
        load_mode: "mmap" or "none".
        n_threads: CPU threads.
    """

    path: Path
    pooling_type: str
    add_eos: bool | None = None
    n_ctx: int = 2048
    n_ctx_max: int = 2048
    n_batch: int = 512
    n_ubatch: int = 512
    n_seq_max: int = 64
    n_gpu_layers: int = 0
    device: str | None = None
    load_mode: str = "none"
    n_threads: int = 1

    def __post_init__(self) -> None:
        if self.pooling_type not in ("last", "mean", "cls"):
            raise ValueError(f"pooling_type is {self.pooling_type!r}; it is last, mean or cls")
        if not 1 <= self.n_seq_max <= self.n_batch <= self.n_ubatch <= self.n_ctx <= self.n_ctx_max:
            raise ValueError(f"1 <= n_seq_max <= n_batch <= n_ubatch <= n_ctx <= n_ctx_max does not hold in {self}")


class Session:
    """One model in memory, safe to call from several threads (calls wait for each other).

    Args:
        settings: what to load and how.

    Raises:
        ModelLoadError: llama.cpp refused the file or a buffer.
        UnsupportedModelError: a last-token model whose tokenizer does not end texts with EOS.
    """

    def __init__(self, settings: SessionSettings) -> None:
        self.settings = settings
        self._process_id = os.getpid()
        self._lock = threading.RLock()  # contexts: one decode at a time
        self._vocab_lock = threading.Lock()  # the tokenizer, which must not wait for a decode
        self._context: Context | None = None
        self._on_cpu: Session | None = None
        # Accents are taken off here (normalizing.py), so that llama.cpp does not do it its own way.
        overrides = {_STRIP_ACCENTS: False}
        if settings.add_eos is not None:
            overrides["tokenizer.ggml.add_eos_token"] = settings.add_eos
        self._model: Model | None = Model(
            settings.path,
            n_gpu_layers=settings.n_gpu_layers,
            device=settings.device,
            load_mode=settings.load_mode,
            overrides=overrides,
        )
        try:
            self._begin(self._model)
        except BaseException:
            self.close()
            raise

    def _begin(self, model: Model) -> None:
        self.n_embd = model.n_embd
        self.max_tokens = min(self.settings.n_ctx_max, model.n_ctx_train)
        # What the tokenizer puts after every text: EOS, SEP or nothing.
        closing = model.tokenize(b"")[-1:]
        self._closing: Tokens = closing if set(closing.tolist()) <= model.closing_tokens else closing[:0]
        if self.settings.pooling_type == "last" and not len(self._closing):
            raise UnsupportedModelError(
                f"{self.settings.path.name} pools the last token, but its tokenizer adds no EOS "
                "(tokenizer.ggml.add_eos_token is not true), so its vectors would be wrong. "
                "Take a newer conversion of it, or pass add_eos=True (--add-eos).",
                path=self.settings.path,
            )
        # Byte-level BPE keeps every byte, so bytes bound tokens from below; other tokenizers fold spaces.
        self._max_text_bytes = self.max_tokens * model.longest_token_bytes() if model.vocab_type == "bpe" else None
        lowercase = model.metadata("tokenizer.ggml.normalizer.lowercase") or "true"
        self._tokenizer = (model.vocab_type, model.metadata("tokenizer.ggml.pre") or "")
        self._normalize = normalizer_for(
            *self._tokenizer,
            strips_accents=(model.metadata(_STRIP_ACCENTS) or lowercase) == "true",
            unknown=_unknown_word(model),
        )
        self._context = self._new_context(model, n_ctx=self.settings.n_ctx, n_ubatch=self.settings.n_ubatch)
        # Elsewhere a text must be whole in one decode: pooling over parts is silently wrong.
        self._is_splittable = self._context.is_causal and self.settings.pooling_type == "last"

    def tokenize(
        self, texts: Sequence[str], *, truncate: str = "error", prefix: str = ""
    ) -> tuple[list[Tokens], list[int]]:
        """Turn texts into ids that end in exactly one EOS where the model has one.

        Args:
            texts: any strings; control tokens spelt out in them stay text.
            truncate: "error", or "end" to cut over-long texts before their EOS.
            prefix: prompt put before each text.

        Returns:
            One (n_tokens,) int32 array a text, and the positions of the texts that were cut.

        Raises:
            TypeError: an item is not a str.
            InvalidTextError: an item has a lone surrogate or a NUL.
            TextTooLongError: an item has more than max_tokens tokens and truncate is "error".
        """
        if truncate not in ("error", "end"):
            raise ValueError(f"truncate is {truncate!r}; it is 'error' or 'end'")
        tokens, truncated = [], []
        for index, text in enumerate(texts):
            ids = self._ids(self._utf8(text, prefix, index), index, cut=truncate == "end")
            if len(ids) > self.max_tokens:
                if truncate == "error":
                    raise self._too_long(index, f"{len(ids):,}", len(ids))
                truncated.append(index)
                ids = np.concatenate([ids[: self.max_tokens - len(self._closing)], self._closing])
            tokens.append(ids)
        return tokens, truncated

    def _utf8(self, text: str, prefix: str, index: int) -> bytes:
        """Check one text, and write it as the reference tokenizer would see it."""
        if not isinstance(text, str):
            raise TypeError(f"text {index} is {type(text).__name__}; texts are str")
        whole = prefix + text
        if "\0" in whole:
            raise InvalidTextError(
                f"text {index} has a NUL character at {text.find(chr(0))}, which binary data has and text has not",
                index=index,
                reason="NUL character",
            )
        if run := endless_run(whole, *self._tokenizer):
            raise InvalidTextError(
                f"text {index} has {run} as binary data has; split it or leave it out",
                index=index,
                reason="endless run",
            )
        try:
            return self._normalize(whole).encode("utf-8")
        except UnicodeEncodeError:
            at = next(position for position, char in enumerate(whole) if "\ud800" <= char <= "\udfff")
            raise InvalidTextError(
                f"text {index} has a lone surrogate (U+{ord(whole[at]):04X}) at {at - len(prefix)}; "
                "it was cut or decoded wrongly",
                index=index,
                reason="lone surrogate",
            ) from None

    def _ids(self, encoded: bytes, index: int, *, cut: bool) -> Tokens:
        """Tokenize one text, or as much of an endless one as can matter."""
        limit = self._max_text_bytes
        if limit is not None and len(encoded) > limit:
            if not cut:
                least = len(encoded) * self.max_tokens // limit
                raise self._too_long(index, f"at least {least:,}", least)
            encoded = encoded[: 2 * limit].decode(errors="ignore").encode()
        with self._vocab_lock:
            ids = self._open().tokenize(encoded)
        if not len(ids):
            raise InvalidTextError(
                f"text {index} is empty, and this model adds no token of its own to embed", index=index, reason="empty"
            )
        return ids

    def _too_long(self, index: int, count: str, n_tokens: int) -> TextTooLongError:
        return TextTooLongError(
            f"text {index} has {count} tokens; at most {self.max_tokens:,} are taken here. "
            'Split it, or pass truncate="end" (--truncate end) to cut it there.',
            index=index,
            n_tokens=n_tokens,
            n_ctx=self.max_tokens,
        )

    def embed(
        self, tokens: Sequence[Tokens], *, batch_size: int | None = None, on_batch: OnBatch | None = None
    ) -> Float32Matrix:
        """Run token lists through the model.

        Args:
            tokens: (n_tokens,) int32 arrays, 1 <= n_tokens <= max_tokens.
            batch_size: at most this many texts a decode; None leaves it to the token budget.
            on_batch: called after each decode with its texts and tokens.

        Returns:
            (n, n_embd) float32 in the order of `tokens`, as the model gave them: finite, not normalised.

        Raises:
            ValueError: a list is empty or longer than max_tokens.
            DecodeError: llama.cpp failed, or an id is not of its vocabulary.
            NonFiniteEmbeddingError: one text has no finite row, on the CPU neither.
            ClosedError: after close().
        """
        self._open()
        lengths = [len(ids) for ids in tokens]
        if lengths and not 1 <= min(lengths) <= max(lengths) <= self.max_tokens:
            raise ValueError(f"token lists have 1..{self.max_tokens} ids here, not {min(lengths)}..{max(lengths)}")
        n_seq_max = min(self.settings.n_seq_max, batch_size or self.settings.n_seq_max)
        rows = np.empty((len(tokens), self.n_embd), dtype=np.float32)
        for batch in pack(lengths, n_tokens_max=self.settings.n_batch, n_seq_max=n_seq_max):
            with self._lock:
                rows[list(batch)] = self._decode_guarded([tokens[index] for index in batch], batch)
            if on_batch is not None:
                on_batch(len(batch), sum(lengths[index] for index in batch))
        return rows

    def _decode_guarded(self, texts: list[Tokens], indices: Sequence[int]) -> Float32Matrix:
        """Decode, and give every text whose row is not finite another chance alone, then on the CPU."""
        rows = self._decode(texts)
        for position in map(int, np.flatnonzero(~_is_sound(rows))):
            rows[position] = self._rescue(texts[position], indices[position])
        return rows

    def _rescue(self, ids: Tokens, index: int) -> Float32Matrix:
        """Embed one text again: alone, then on the CPU. Returns (1, n_embd)."""
        row = self._decode([ids])
        if _is_sound(row)[0]:
            logger.warning("text %d gave a non-finite embedding in a batch; alone it is right", index)
            return row
        if self.settings.device is not None:
            if self._on_cpu is None:
                self._on_cpu = Session(
                    dataclasses.replace(self.settings, device=None, n_gpu_layers=0, load_mode="mmap")
                )
            row = self._on_cpu._decode([ids])  # noqa: SLF001 - the same class
            if _is_sound(row)[0]:
                logger.warning(
                    "text %d gave a non-finite embedding on %s; taken from the CPU", index, self.settings.device
                )
                return row
        raise NonFiniteEmbeddingError(
            f"text {index} has no finite embedding in {self.settings.path.name}, alone and on the CPU too; "
            "another quantization may embed it",
            index=index,
        )

    def _decode(self, texts: list[Tokens]) -> Float32Matrix:
        """One batch through one context, which is left empty whatever happens."""
        context = self._context_for(max(len(ids) for ids in texts))
        context.clear()
        try:
            if len(texts) == 1:
                ids, position = texts[0], np.arange(len(texts[0]), dtype=np.int32)
                for part in split(len(ids), n_tokens_max=context.n_ubatch):
                    context.decode(ids[part], position[part], np.zeros(len(ids[part]), dtype=np.int32))
            else:
                lengths = [len(ids) for ids in texts]
                context.decode(
                    np.concatenate(texts),
                    np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
                    np.repeat(np.arange(len(texts), dtype=np.int32), lengths),
                )
            return context.embeddings(len(texts))
        finally:
            context.clear()

    def _context_for(self, n_tokens: int) -> Context:
        """The context, grown first when a text needs more than it has."""
        model, context = self._open(), self._context
        if context is None:
            raise DecodeError("the context was lost to an earlier failure; open the model again", return_code=-1)
        if n_tokens > (context.n_ctx if self._is_splittable else context.n_ubatch):
            wanted = max(n_tokens, min(2 * context.n_ctx, self.settings.n_ctx_max))
            n_ctx = -(-wanted // _N_CTX_STEP) * _N_CTX_STEP
            n_ubatch = self.settings.n_ubatch if self._is_splittable else n_ctx
            self._context = None
            context.close()  # first, or the old buffers would stand beside the new ones
            try:
                self._context = self._new_context(model, n_ctx=n_ctx, n_ubatch=n_ubatch)
            except ModelLoadError:
                self._context = self._new_context(model, n_ctx=context.n_ctx, n_ubatch=context.n_ubatch)
                raise
            context = self._context
        return context

    def _new_context(self, model: Model, *, n_ctx: int, n_ubatch: int) -> Context:
        return Context(
            model,
            n_ctx=n_ctx,
            n_ubatch=n_ubatch,
            n_seq_max=self.settings.n_seq_max,
            pooling_type=self.settings.pooling_type,
            n_threads=self.settings.n_threads,
        )

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
        with self._lock, self._vocab_lock:
            if self._on_cpu is not None:
                self._on_cpu.close()
            if self._context is not None:
                self._context.close()
            if self._model is not None:
                self._model.close()
            self._on_cpu = self._context = self._model = None


def _is_sound(rows: Float32Matrix) -> NDArray[np.bool_]:
    """Which rows are finite and not all zeros."""
    return np.asarray(np.isfinite(rows).all(axis=1) & rows.any(axis=1))


def _unknown_word(model: Model) -> str:
    """Find a word that a WordPiece vocabulary has not; "" for other tokenizers, or where it has all of these."""
    unknown = model.metadata("tokenizer.ggml.unknown_token_id") or "100"
    if model.vocab_type != "wpm" or not unknown.isdecimal():
        return ""
    for word in ("\U00010348", "\ua66e", "\u16a0", "\u2c00"):
        ids = model.tokenize(word.encode())
        if len(ids) == 3 and int(ids[1]) == int(unknown):  # CLS, the word, SEP
            return word
    return ""
