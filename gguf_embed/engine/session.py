"""One loaded model: its contexts, its tokenizer, and every guard between a text and a row.

Token ids in, raw rows in the caller's order out. It must not know model names, the hub, prompts or HTTP.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.batching import pack, split
from gguf_embed.engine.tokenizing import OVERRIDES, Tokenizer, Tokens
from gguf_embed.errors import (
    BackendError,
    ClosedError,
    DecodeError,
    ModelLoadError,
    NonFiniteEmbeddingError,
    UnsupportedModelError,
)
from gguf_embed.native.buffers import Buffer, recording
from gguf_embed.native.context import Context
from gguf_embed.native.layout import Layout
from gguf_embed.native.llama import Model

__all__ = ["Session", "SessionSettings", "Tokens"]

logger = logging.getLogger(__name__)

Float32Matrix = NDArray[np.float32]
OnBatch = Callable[[int, int], None]  # texts and tokens of the batch that was just decoded

# Embedded both ways when a model is loaded that skips its head; the rows must point the same way.
_CANARY = b"The capital of China is Beijing."
_CANARY_TOKENS = 16
_CANARY_COSINE = 0.9999
# llama.cpp rounds a context up to whole multiples of this many cells.
_N_CTX_STEP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How to run one file.

    Attributes:
        path: the GGUF.
        pooling_type: "last", "mean" or "cls".
        add_eos: overrides tokenizer.ggml.add_eos_token; None leaves the file's word.
        layout: where the layers go, and how large the context is to begin with.
        n_ctx_max: longest text; the context grows up to it on demand.
        n_batch: tokens packed into one decode, n_seq_max <= n_batch <= n_ubatch.
        n_threads: CPU threads.
    """

    path: Path
    pooling_type: str
    add_eos: bool | None = None
    layout: Layout = field(default_factory=Layout)
    n_ctx_max: int = 2048
    n_batch: int = 512
    n_threads: int = 1

    def __post_init__(self) -> None:
        if self.pooling_type not in ("last", "mean", "cls"):
            raise ValueError(f"pooling_type is {self.pooling_type!r}; it is last, mean or cls")
        layout = self.layout
        if not layout.n_seq_max <= self.n_batch <= layout.n_ubatch or self.n_ctx_max < 1:
            raise ValueError(f"n_seq_max <= n_batch <= n_ubatch and 1 <= n_ctx_max do not hold in {self}")


class Session:
    """One model in memory, safe to call from several threads (calls wait for each other).

    Args:
        settings: what to load and how.

    Attributes:
        layout: as it came to be; another one than asked for where the model's head cannot be skipped.
        buffers: what llama.cpp allocated for weights and the first context.

    Raises:
        AllocationError: memory was refused.
        ModelLoadError: llama.cpp refused the file.
        UnsupportedModelError: a last-token model whose tokenizer does not end texts with EOS.
    """

    def __init__(self, settings: SessionSettings) -> None:
        self.settings = settings
        self.layout = settings.layout
        self._process_id = os.getpid()
        self._lock = threading.RLock()  # contexts: one decode at a time
        self._vocab_lock = threading.Lock()  # the tokenizer, which must not wait for a decode
        self._context: Context | None = None
        self._on_cpu: Session | None = None
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
        self.n_embd = model.n_embd
        self.max_tokens = min(self.settings.n_ctx_max, model.n_ctx_train)
        self._tokenizer = Tokenizer(model, max_tokens=self.max_tokens)
        if self.settings.pooling_type == "last" and not len(self._tokenizer.closing):
            raise UnsupportedModelError(
                f"{self.settings.path.name} pools the last token, but its tokenizer adds no EOS "
                "(tokenizer.ggml.add_eos_token is not true), so its vectors would be wrong. "
                "Take a newer conversion of it, or pass add_eos=True (--add-eos).",
                path=self.settings.path,
            )
        if self.layout.skips_head:
            self._begin_without_head(model)
        else:
            self._context = self._new_context(model, self.layout)
        # Elsewhere a text must be whole in one decode: pooling over parts is silently wrong.
        self._is_splittable = self._open_context().is_causal and self.settings.pooling_type == "last"

    def _begin_without_head(self, model: Model) -> None:
        """Open the context that skips the head, and the ordinary one instead where the two do not agree."""
        ids = model.tokenize(_CANARY)[:_CANARY_TOKENS]
        small = Layout(n_ctx=_N_CTX_STEP, n_ubatch=_CANARY_TOKENS, n_seq_max=1, kv_type=self.layout.kv_type)
        ordinary = self._new_context(model, small)
        try:
            expected = _decode_one(ordinary, ids)
        finally:
            ordinary.close()  # first, so that the two never stand side by side
        self._context = self._new_context(model, self.layout)
        try:
            reason = _disagreement(expected, _decode_one(self._context, ids))
        except DecodeError as error:
            reason = str(error)
        if reason:
            logger.warning("%s: its head cannot be skipped: %s; embedding is slower", self.settings.path.name, reason)
            self.layout = dataclasses.replace(self.layout, skips_head=False)
            self._context.close()
            self._context = self._new_context(model, self.layout)

    def tokenize(
        self, texts: Sequence[str], *, truncate: str = "error", prefix: str = ""
    ) -> tuple[list[Tokens], list[int]]:
        """Turn texts into ids; see `Tokenizer.tokenize`.

        Raises:
            ClosedError: after close().
        """
        with self._vocab_lock:
            self._open()
            return self._tokenizer.tokenize(texts, truncate=truncate, prefix=prefix)

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
        n_seq_max = min(self.layout.n_seq_max, batch_size or self.layout.n_seq_max)
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
        if self.layout.devices:
            if self._on_cpu is None:
                on_cpu = dataclasses.replace(
                    self.layout, devices=(), tensor_split=(), n_gpu_layers=0, is_output_on_host=False, load_mode="mmap"
                )
                self._on_cpu = Session(dataclasses.replace(self.settings, layout=on_cpu))
            row = self._on_cpu._decode([ids])  # noqa: SLF001 - the same class
            if _is_sound(row)[0]:
                logger.warning(
                    "text %d gave a non-finite embedding on %s; taken from the CPU", index, self.layout.devices[0]
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
                    sequence = np.zeros(len(ids[part]), dtype=np.int32)
                    context.decode(ids[part], position[part], sequence, is_end=part.stop >= len(ids))
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
        model, context = self._open(), self._open_context()
        if n_tokens > (context.n_ctx if self._is_splittable else context.n_ubatch):
            wanted = max(n_tokens, min(2 * context.n_ctx, self.settings.n_ctx_max))
            n_ctx = -(-wanted // _N_CTX_STEP) * _N_CTX_STEP
            n_ubatch = self.layout.n_ubatch if self._is_splittable else n_ctx
            grown = dataclasses.replace(self.layout, n_ctx=n_ctx, n_ubatch=n_ubatch)
            self._context = None
            context.close()  # first, or the old buffers would stand beside the new ones
            try:
                self._context = self._new_context(model, grown)
            except ModelLoadError:
                self._context = self._new_context(
                    model, dataclasses.replace(self.layout, n_ctx=context.n_ctx, n_ubatch=context.n_ubatch)
                )
                raise
            context = self._context
        return context

    def _open_context(self) -> Context:
        if self._context is None:
            raise DecodeError("the context was lost to an earlier failure; open the model again", return_code=-1)
        return self._context

    def _new_context(self, model: Model, layout: Layout) -> Context:
        return Context(model, layout, pooling_type=self.settings.pooling_type, n_threads=self.settings.n_threads)

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


def _decode_one(context: Context, ids: Tokens) -> NDArray[np.float32]:
    """Embed one short text, and leave the context empty. Returns (n_embd,)."""
    try:
        context.decode(ids, np.arange(len(ids), dtype=np.int32), np.zeros(len(ids), dtype=np.int32))
        return np.asarray(context.embeddings(1)[0])
    finally:
        context.clear()


def _disagreement(expected: NDArray[np.float32], row: NDArray[np.float32]) -> str:
    """Say how two rows differ that should be the same; "" where they agree."""
    if not (np.isfinite(expected).all() and np.isfinite(row).all()):
        return "a row is not finite"
    cosine = float(expected @ row / max(np.linalg.norm(expected) * np.linalg.norm(row), np.finfo(np.float32).tiny))
    return "" if cosine >= _CANARY_COSINE else f"its row and the ordinary one have cosine {cosine:.6f}"
