"""What reference tokenizers do to a text before they cut it and llama.cpp leaves out or does by halves.

Pure functions over text. It must not know models by name, tokens or llama.cpp's objects.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable

__all__ = ["Normalizer", "endless_run", "normalizer_for"]

Normalizer = Callable[[str], str]

# Byte-level BPE tokenizers whose reference composes characters first.
# Source: "normalizer" in tokenizer.json of Qwen3-Embedding; transformers 5.23, Qwen2Tokenizer.
_COMPOSING = frozenset({"qwen2"})
# A longer word is unknown as a whole. Source: huggingface/tokenizers, models/wordpiece, max_input_chars_per_word.
_LONGEST_WORD = 100
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")
# Ideographs that BERT takes for words of their own. Source: google-research/bert tokenization.py, _is_chinese_char.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip

# Normalizing a run of marks takes time in the square of its length; real text has a handful at most.
# Source: measured with CPython 3.11, 200,000 marks take 20 s; Unicode's stream-safe format allows 30.
_MARKS = re.compile(r"[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{1000,}")
# Pre-tokenizers that llama.cpp walks by hand. The others go through std::regex, which recurses once a character and
# overflows the stack. Source: runs of 300,000 characters through every pre-tokenizer of llama.cpp 0c1e57098.
_WALKED = frozenset({"qwen2", "gpt-2", "llama-bpe", "modern-bert", "jina-v5-nano"})
_LONGEST_RUN = 4000
_LONG_RUN = re.compile(rf"\S{{{_LONGEST_RUN},}}|\s{{{_LONGEST_RUN},}}")


def endless_run(text: str, vocab_type: str, pretokenizer: str) -> str | None:
    """Look for what a tokenizer cannot take in bounded time or stack.

    Args:
        text: as given.
        vocab_type: llama.cpp's tokenizer family.
        pretokenizer: tokenizer.ggml.pre, "" where the file has none.

    Returns:
        What it is, for an error; None where there is nothing.
    """
    if len(text) < 1000:
        return None
    if match := _MARKS.search(text):
        return f"{len(match[0]):,} combining marks in a row"
    if vocab_type == "bpe" and pretokenizer not in _WALKED and (match := _LONG_RUN.search(text)):
        return f"{len(match[0]):,} characters without a break, which this model's tokenizer cannot take,"
    return None


def normalizer_for(vocab_type: str, pretokenizer: str, *, strips_accents: bool, unknown: str = "") -> Normalizer:
    """Choose what to do to a text before llama.cpp sees it.

    Args:
        vocab_type: llama.cpp's tokenizer family: "bpe", "wpm", ...
        pretokenizer: tokenizer.ggml.pre, "" where the file has none.
        strips_accents: whether the file's WordPiece tokenizer takes accents off.
        unknown: a word that the WordPiece vocabulary has not; "" where none was found.

    Returns:
        A function over one text; the identity where llama.cpp does all that the reference does.
    """
    if vocab_type == "bpe" and pretokenizer in _COMPOSING:
        return _compose
    if vocab_type == "wpm":
        return functools.partial(_wordpiece, strips_accents=strips_accents, unknown=unknown)
    return str


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _wordpiece(text: str, *, strips_accents: bool, unknown: str) -> str:
    """Decompose and drop what has no width of its own, and take overlong words for unknown, as BERT does.

    llama.cpp decomposes to the first character alone, which loses all but the first part of a Hangul syllable, drops
    spacing marks too, which are vowels in Devanagari and Tamil, and cuts words of any length into pieces.

    Source: huggingface/tokenizers, normalizers/bert.rs, do_strip_accents; models/wordpiece.
    """
    if strips_accents and not text.isascii():
        text = "".join(char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char) != "Mn")
    if not unknown or len(text) <= _LONGEST_WORD:
        return text
    return _LONG_WORD.sub(lambda match: _with_unknown(match[0], unknown), text)


def _with_unknown(run: str, unknown: str) -> str:
    """Replace the words of a run that are too long; punctuation and ideographs part words without a space."""
    pieces: list[str] = []
    word: list[str] = []
    for char in [*run, ""]:
        if char and not _parts_words(char):
            word.append(char)
            continue
        # Spaces keep the stand-in a word of its own; BERT drops them.
        pieces.append(f" {unknown} " if len(word) > _LONGEST_WORD else "".join(word))
        pieces.append(char)
        word.clear()
    return "".join(pieces)


def _parts_words(char: str) -> bool:
    code = ord(char)
    if code < 128:
        return not char.isalnum()
    return unicodedata.category(char).startswith("P") or any(first <= code <= last for first, last in _IDEOGRAPHS)
