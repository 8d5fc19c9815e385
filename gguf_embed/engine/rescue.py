"""What becomes of texts whose decode failed or gave no usable row: each alone, then by the plainest way there is.

It must not know packing, tokenizers or what the other texts are.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.decoder import Decoder
from gguf_embed.engine.prefixes import Tokens
from gguf_embed.engine.settings import SessionSettings
from gguf_embed.errors import AllocationError, BackendError, DecodeError, ModelLoadError, NonFiniteEmbeddingError
from gguf_embed.native.layout import Layout
from gguf_embed.native.llama import Model
from gguf_embed.native.reserve import can_reserve

__all__ = ["Rescue", "decode_or_nan", "raise_first"]

logger = logging.getLogger(__name__)

Float32Matrix = NDArray[np.float32]
# Enough for llama.cpp's matrix kernels, and little memory beside a model that fills what there is.
_N_UBATCH_PLAIN = 64
_N_CTX_STEP = 256
_LOOK_CLOSER = "What is wrong: gguf-embed verify"


def decode_or_nan(decoder: Decoder, texts: Sequence[Tokens], *, n_embd: int, n_prefix: int) -> Float32Matrix:
    """Decode a batch; where llama.cpp fails at it, the rows are NaN.

    Args:
        decoder: wiped by itself when it fails.
        texts: as `Decoder.decode` takes them.
        n_embd: components of a row.
        n_prefix: as `Decoder.decode` takes it.

    Raises:
        AllocationError: a longer text needs more memory than there is.
    """
    try:
        return decoder.decode(texts, n_prefix=n_prefix)
    except DecodeError as error:
        logger.warning("a batch of %d texts failed, and each is decoded alone: %s", len(texts), error)
        return np.full((len(texts), n_embd), np.nan, dtype=np.float32)


class Rescue:
    """Another chance for single texts; the plain way's model is loaded when the first one needs it, and then stays.

    The plain way is the CPU without flash attention, with a float32 cache, weights as they are in the file and nothing
    skipped or shared: what overflows in float16 or meets a kernel's fault elsewhere is computed there.

    Args:
        settings: of the session.

    Attributes:
        n_rescued: texts that got their row here.
    """

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._identity = _identity(settings.path)
        self.n_rescued = 0
        self._model: Model | None = None
        self._plain: Decoder | None = None
        self._n_ctx = 0

    def mend(
        self, rows: Float32Matrix, texts: Sequence[Tokens], names: NDArray[np.intp], decoder: Callable[[], Decoder]
    ) -> list[BackendError]:
        """Put a right row in place of each that is not finite or all zeros; NaN where there is none.

        Args:
            rows: (n, n_embd) of these texts.
            texts: (n_tokens,) int32 each.
            names: (n,) what to call each in messages, by number.
            decoder: returns the one for single texts, where there is need of it.

        Returns:
            An error for each text without a row, which has its name as `index`.
        """
        errors: list[BackendError] = []
        for at in map(int, np.flatnonzero(~_is_sound(rows))):
            try:
                rows[at] = self._row(texts[at], int(names[at]), decoder())
                self.n_rescued += 1
            except (DecodeError, NonFiniteEmbeddingError) as error:
                rows[at] = np.nan
                errors.append(error)
        return errors

    def plain_rows(self, texts: Sequence[Tokens]) -> Float32Matrix:
        """Embed texts by the plain way alone. Returns (n, n_embd) as llama.cpp gave them.

        Raises:
            BackendError: there is no memory for it, or llama.cpp failed.
        """
        return np.concatenate([self._plain_decoder(len(ids)).decode([ids]) for ids in texts])

    def _row(self, ids: Tokens, index: int, decoder: Decoder) -> Float32Matrix:
        """Embed one text again. Returns (1, n_embd)."""
        decoder.wipe()
        row, failure = _try(decoder, ids)
        if row is not None:
            logger.warning("text %d had a non-finite embedding; tried again alone it is right", index)
            return row
        try:
            row, plain_failure = _try(self._plain_decoder(len(ids)), ids)
        except BackendError as error:  # there may be no memory for it
            row, plain_failure = None, error
        if row is not None:
            logger.warning("text %d has a non-finite embedding alone too; taken from the CPU, in float32", index)
            return row
        raise _failure(self._settings.path, index, failure, plain_failure)

    def _plain_decoder(self, n_tokens: int) -> Decoder:
        """Open the plain way for a text of so many tokens; the model stays, its context is as large as the text."""
        settings, layout = self._settings, plain_layout(n_tokens, is_split=self._settings.pooling_type == "last")
        if self._plain is not None and layout.n_ctx == self._n_ctx:
            return self._plain
        if self._plain is not None:
            self._plain.close()
            self._plain = None
        if self._model is None:
            if _identity(settings.path) != self._identity:
                raise ModelLoadError(f"{settings.path.name} was changed after it was loaded", path=settings.path)
            if not can_reserve(settings.path.stat().st_size, n_threads=settings.n_threads):
                raise AllocationError(f"{settings.path.name}: there is no memory to load it again", path=settings.path)
            self._model = Model(settings.path, layout)
        self._plain = Decoder(
            self._model,
            layout,
            pooling_type=settings.pooling_type,
            n_ctx_max=settings.n_ctx_max,
            n_threads=settings.n_threads,
        )
        self._n_ctx = layout.n_ctx
        return self._plain

    def close(self) -> None:
        """Free what was loaded; closing twice is allowed."""
        if self._plain is not None:
            self._plain.close()
        if self._model is not None:
            self._model.close()
        self._plain = self._model = None


def plain_layout(n_tokens: int, *, is_split: bool) -> Layout:
    """Return the plainest layout for one text.

    Args:
        n_tokens: of the text.
        is_split: it may be decoded in parts.
    """
    n_ctx = -(-n_tokens // _N_CTX_STEP) * _N_CTX_STEP
    return Layout(
        n_ctx=n_ctx,
        n_ubatch=min(n_ctx, _N_UBATCH_PLAIN) if is_split else n_ctx,
        n_seq_max=1,
        kv_type="f32",
        flash_attn="off",
        use_extra_bufts=False,
        load_mode="mmap",
    )


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from the one that was there before; None where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _try(decoder: Decoder, ids: Tokens) -> tuple[Float32Matrix | None, BackendError | None]:
    """Decode one text. Returns its (1, n_embd) row, or why there is none: None where llama.cpp gave no reason."""
    try:
        row = decoder.decode([ids])
    except DecodeError as error:
        return None, error
    if _is_sound(row)[0]:
        return row, None
    decoder.wipe()
    return None, None


def _failure(path: Path, index: int, failure: BackendError | None, plain: BackendError | None) -> BackendError:
    """Name a text, and what was tried."""
    on_cpu = "and on the CPU in float32 too" if plain is None else f"and the CPU in float32 failed: {plain}"
    if failure is None:
        return NonFiniteEmbeddingError(
            f"text {index} has no finite embedding in {path.name}, alone {on_cpu}; another quantization may embed it. "
            f"{_LOOK_CLOSER} {shlex.quote(str(path))}",
            index=index,
        )
    return DecodeError(
        f"text {index} cannot be decoded by {path.name}: {failure}, alone {on_cpu}. "
        f"{_LOOK_CLOSER} {shlex.quote(str(path))}",
        return_code=getattr(failure, "return_code", -1),
        index=index,
    )


def raise_first(errors: Sequence[BackendError]) -> None:
    """Raise the first error of several texts, if there is one; it carries the others."""
    if errors:
        first = errors[0]
        if isinstance(first, DecodeError | NonFiniteEmbeddingError):
            first.others = tuple(errors[1:])
        raise first


def _is_sound(rows: Float32Matrix) -> NDArray[np.bool_]:
    """Which rows are finite and not all zeros."""
    return np.asarray(np.isfinite(rows).all(axis=1) & rows.any(axis=1))
