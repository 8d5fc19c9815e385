"""A session whose vectors a person can check by eye, for a worker's child: no model, no llama.cpp."""

from __future__ import annotations

import dataclasses
import os
import time
from functools import partial

import numpy as np

from gguf_embed.errors import DecodeError, ModelLoadError, TextTooLongError

MAX_TOKENS = 50


@dataclasses.dataclass
class _Settings:
    n_batch: int = 8


@dataclasses.dataclass
class _Layout:
    n_seq_max: int = 4
    n_side: int = 1


class FakeSession:
    """A token is a word; a row is the number of words, the first word's length, and the process that made it.

    Some words do things: "abort" and "exit" end the process, "slow" takes a while, "hang" ten minutes, "broken" fails
    its decode, and "tokenizer-abort" ends it before any decode.
    """

    def __init__(self, slow_s=0.05):
        self.settings, self.layout, self.n_embd = _Settings(), _Layout(), 3
        self._slow_s, self._words = slow_s, {}

    def tokenize(self, texts, *, truncate, prefix, names):
        """Words to ids, which stay the same."""
        tokens, cut = [], []
        for name, text in zip(names, texts, strict=True):
            words = (prefix + text).split() or [""]
            if "tokenizer-abort" in words:
                os.abort()
            if "unpicklable" in words:
                raise type("Local", (Exception,), {})("a class of its own")
            if len(words) > MAX_TOKENS:
                if truncate == "error":
                    raise TextTooLongError(f"text {name} is long", index=name, n_tokens=len(words), n_ctx=MAX_TOKENS)
                words, _ = words[:MAX_TOKENS], cut.append(name)
            tokens.append(np.array([self._words.setdefault(word, len(self._words)) for word in words], dtype=np.int32))
        return tokens, cut

    def cost_of(self, prompt):
        """What a text costs beside its prompt."""
        return lambda ids: max(1, len(ids) - len(prompt.split()))

    def pieces(self, ids):
        """The words again."""
        words = {number: word for word, number in self._words.items()}
        return {token: (words[token], False) for token in ids}

    def embed(self, tokens, *, prompt="", names=None, batch_size=None):
        """Rows, or what the words say."""
        words = {number: word for word, number in self._words.items()}
        said = [[words[token] for token in ids.tolist()] for ids in tokens]
        for text in said:
            if "abort" in text:
                os.abort()
            if "exit" in text:
                os._exit(7)
            if "hang" in text:
                time.sleep(600)
            if "slow" in text:
                time.sleep(self._slow_s)
            if "broken" in text:
                raise DecodeError(f"broken with {len(tokens)} texts, names {names}", return_code=-3)
        return np.array([[len(text), len(text[0]), os.getpid()] for text in said], dtype=np.float32)


def doubled(rows):
    """A finish that can be seen."""
    return rows * 2


def opener(_facts, **options):
    """What a worker is given."""
    return partial(_open, options)


def _open(options, on_progress):
    on_progress(1, 2)
    if "sleep_s" in options:
        time.sleep(options.pop("sleep_s"))
    if "refuse" in options:
        raise ModelLoadError("it is no model", path=options["refuse"])
    if options.pop("abort", False):
        os.abort()
    return FakeSession(**options), {"pid": os.getpid()}
