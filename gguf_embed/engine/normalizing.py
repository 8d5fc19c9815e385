"""What reference tokenizers do to a text before they cut it and llama.cpp leaves out or does by halves.

Pure functions over text. It must not know models by name, tokens or llama.cpp's objects.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

__all__ = ["Normalizer", "normalizer_for"]

Normalizer = Callable[[str], str]

# Byte-level BPE tokenizers whose reference composes characters first.
# Source: "normalizer" in tokenizer.json of Qwen3-Embedding; transformers 5.23, Qwen2Tokenizer.
_COMPOSING = frozenset({"qwen2"})


def normalizer_for(vocab_type: str, pretokenizer: str, *, strips_accents: bool) -> Normalizer:
    """Choose what to do to a text before llama.cpp sees it.

    Args:
        vocab_type: llama.cpp's tokenizer family: "bpe", "wpm", ...
        pretokenizer: tokenizer.ggml.pre, "" where the file has none.
        strips_accents: whether the file's WordPiece tokenizer takes accents off.

    Returns:
        A function over one text; the identity where llama.cpp does all that the reference does.
    """
    if vocab_type == "bpe" and pretokenizer in _COMPOSING:
        return _compose
    if vocab_type == "wpm" and strips_accents:
        return _strip_accents
    return str


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _strip_accents(text: str) -> str:
    """Decompose and drop what has no width of its own, as BERT does.

    llama.cpp decomposes to the first character alone, which loses all but the first part of a Hangul syllable, and
    drops spacing marks too, which are vowels in Devanagari and Tamil.

    Source: huggingface/tokenizers, normalizers/bert.rs, do_strip_accents.
    """
    if text.isascii():
        return text
    return "".join(char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char) != "Mn")
