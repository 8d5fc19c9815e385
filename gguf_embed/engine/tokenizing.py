"""From texts to token ids, as the model's reference tokenizer has them, and every guard on the way.

It must not know contexts, batches or prompts by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.normalizing import endless_run, normalizer_for
from gguf_embed.errors import InvalidTextError, TextTooLongError
from gguf_embed.native.llama import Model

__all__ = ["OVERRIDES", "Tokenizer", "Tokens"]

Tokens = NDArray[np.int32]

_STRIP_ACCENTS = "tokenizer.ggml.normalizer.strip_accents"
# Accents are taken off here (normalizing.py), so that llama.cpp does not do it its own way.
OVERRIDES = {_STRIP_ACCENTS: False}


class Tokenizer:
    """A loaded model's tokenizer; its owner sees to it that the model stays open.

    Args:
        model: loaded with OVERRIDES.
        max_tokens: longest text in tokens.

    Attributes:
        closing: what is put after every text: (1,) with EOS or SEP, or (0,).
    """

    def __init__(self, model: Model, *, max_tokens: int) -> None:
        self._model = model
        self.max_tokens = max_tokens
        closing = model.tokenize(b"")[-1:]
        self.closing: Tokens = closing if set(closing.tolist()) <= model.closing_tokens else closing[:0]
        # Byte-level BPE keeps every byte, so bytes bound tokens from below; other tokenizers fold spaces.
        self._max_text_bytes = max_tokens * model.longest_token_bytes() if model.vocab_type == "bpe" else None
        lowercase = model.metadata("tokenizer.ggml.normalizer.lowercase") or "true"
        self._family = (model.vocab_type, model.metadata("tokenizer.ggml.pre") or "")
        self._normalize = normalizer_for(
            *self._family,
            strips_accents=(model.metadata(_STRIP_ACCENTS) or lowercase) == "true",
            unknown=_unknown_word(model),
        )

    def tokenize(
        self, texts: Sequence[str], *, truncate: str = "error", prefix: str = "", names: Sequence[int] | None = None
    ) -> tuple[list[Tokens], list[int]]:
        """Turn texts into ids that end in exactly one EOS where the model has one.

        Args:
            texts: any strings; control tokens spelt out in them stay text.
            truncate: "error", or "end" to cut over-long texts before their EOS.
            prefix: prompt put before each text.
            names: what to call each text, by number; None for its position.

        Returns:
            One (n_tokens,) int32 array a text, and the numbers of the texts that were cut.

        Raises:
            TypeError: an item is not a str.
            InvalidTextError: an item has a lone surrogate or a NUL.
            TextTooLongError: an item has more than max_tokens tokens and truncate is "error".
        """
        if truncate not in ("error", "end"):
            raise ValueError(f"truncate is {truncate!r}; it is 'error' or 'end'")
        tokens, truncated = [], []
        for index, text in zip(range(len(texts)) if names is None else names, texts, strict=True):
            ids = self._ids(self._utf8(text, prefix, index), index, cut=truncate == "end")
            if len(ids) > self.max_tokens:
                if truncate == "error":
                    raise self._too_long(index, f"{len(ids):,}", len(ids))
                truncated.append(index)
                ids = np.concatenate([ids[: self.max_tokens - len(self.closing)], self.closing])
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
        if run := endless_run(whole, *self._family):
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
        ids = self._model.tokenize(encoded)
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
