"""A model whose rows a person can check by eye, under the real Session, tokenizer guards and Embedder: no llama.cpp."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from gguf_embed.embedder import Embedder
from gguf_embed.engine.rescue import Rescue
from gguf_embed.engine.session import Session
from gguf_embed.engine.sharing import Sharing
from gguf_embed.engine.tokenizing import Tokenizer
from gguf_embed.models.specs import Matryoshka
from gguf_embed.native.layout import Layout
from gguf_embed.prompts import PromptSet

N_EMBD = 4
QUERY = "q: "


def raw_row(text, prompt=""):
    """What the model makes of a text: its tokens, and its letters a, b and c; a text with the word "nan" has none."""
    return [n_tokens_of(text, prompt), *((prompt + text).count(letter) for letter in "abc")]


def n_tokens_of(text, prompt=""):
    """Words and EOS."""
    return len((prompt + text).split()) + 1


class _Words:
    """Stands in for native.llama.Model: a token is a word, and EOS is 0."""

    vocab_type, closing_tokens, n_embd = "none", frozenset({0}), N_EMBD

    def __init__(self):
        self._ids = {}

    def tokenize(self, encoded):
        ids = [self._ids.setdefault(word, len(self._ids) + 1) for word in encoded.split()]
        return np.array([*ids, 0], dtype=np.int32)

    def metadata(self, name):
        return None

    def text(self, ids):
        words = {number: word for word, number in self._ids.items()}
        return b" ".join(words[token] for token in ids if token).decode()

    def close(self):
        pass


class _Decoder:
    """Stands in for engine.decoder.Decoder."""

    n_prefix_max = 0

    def __init__(self, words, model, *, n_batch):
        self._words, self._model, self._n_batch = words, model, n_batch

    def room_for(self, n_prefix):
        return self._n_batch

    def decode(self, texts, *, n_prefix=0):
        known = [self._words.text(ids.tolist()) for ids in texts]
        self._model.decoding = known
        self._model.on_decode()
        self._model.decodes.append(known)
        rows = np.array([raw_row(text) for text in known], dtype=np.float32)
        if self._model.shows_batch:
            rows[:, 0] += len(texts) / 64  # as llama.cpp's last bits tell what was decoded together
        rows[[("nan" in text.split()) for text in known]] = np.nan
        return rows

    def wipe(self):
        pass

    def close(self):
        pass


class _Rescue(Rescue):
    """The real one, with the same decoder as the plain way."""

    def __init__(self, settings, decoder):
        super().__init__(settings)
        self._same = decoder

    def _plain_decoder(self, n_tokens):
        return self._same


class _Session(Session):
    """The real one over words."""

    def __init__(self, model):
        words = _Words()
        self.settings = SimpleNamespace(n_batch=model.n_batch, path=Path(f"{model.name}.gguf"))
        self.layout = SimpleNamespace(n_seq_max=model.n_seq_max, n_side=1, n_contexts=1, devices=())
        self._process_id = os.getpid()
        self._lock, self._vocab_lock = threading.RLock(), threading.Lock()
        self._decoder = _Decoder(words, model, n_batch=model.n_batch)
        self._crew = None
        self._rescue = _Rescue(self.settings, self._decoder)
        self._model, self.n_embd, self.max_tokens = words, N_EMBD, model.longest
        self._tokenizer = Tokenizer(words, max_tokens=model.longest)
        self._sharing = Sharing(self._tokenizer.tokenize)


class FakeModel:
    """Stands in for model.LazyModel.

    Args:
        name: two models of different names have different rows, by their identities.
        max_tokens: longest text.
        n_seq_max: most texts of a decode.
        shows_batch: add a 64th for each text of a decode to the first component.

    Attributes:
        decodes: the texts of each decode, prompts included.
        n_opened: how often it was asked for its session.
        on_decode: called before each decode.
        decoding: the texts of the decode that is about to be.
    """

    config = None

    def __init__(self, name="fake", *, max_tokens=50, n_batch=64, n_seq_max=4, shows_batch=False):
        self.name = self.text = name
        self.longest, self.n_batch, self.n_seq_max, self.shows_batch = max_tokens, n_batch, n_seq_max, shows_batch
        self.spec = SimpleNamespace(
            model_id=name, prompts=PromptSet(query=QUERY), matryoshka=Matryoshka(dims=(3, 2)), n_embd=N_EMBD
        )
        self.n_embd = N_EMBD
        self.decodes, self.decoding = [], []
        self.n_opened = 0
        self.on_decode = lambda: None
        self._session = None

    @property
    def decoded(self):
        """Every text that was decoded, as often as it was."""
        return [text for texts in self.decodes for text in texts]

    @property
    def prompts(self):
        return self.spec.prompts

    @property
    def max_tokens(self):
        self.open_as_fetched()
        return self.longest

    def selection(self):
        return SimpleNamespace(
            plan=SimpleNamespace(model_id=self.name, quant="Q8_0", layout=Layout()),
            resolved=SimpleNamespace(model_id=self.name),
        )

    def fetch(self, on_progress=None):
        return Path(f"{self.name}.gguf")

    def open(self, on_progress=None):
        return self.open_as_fetched(), SimpleNamespace(max_tokens=self.longest, path=self.fetch())

    def open_as_fetched(self):
        self.n_opened += 1
        if self._session is None:
            self._session = _Session(self)
        return self._session

    def fingerprint(self, dim, options=None):
        return f"{self.name} {dim} {options}"

    def check_fingerprint(self, dim, options):
        pass

    def row_identity(self):
        return self.name

    def warn_of_missing_prompt(self, options):
        pass

    def close(self):
        pass


def embedder_over(model, *, truncate_dim=None):
    """Return a real Embedder of a fake model."""
    embedder = Embedder.__new__(Embedder)
    embedder._model, embedder._truncate_dim = model, truncate_dim
    return embedder
