"""Two sides and their texts: opened, matched, embedded where they are not saved, and compared.

A side is a model, a file of vectors or a server. It must not know the command line or what dialects look like.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_embed.embedder import Embedder
from gguf_embed.encoding import EncodeOptions
from gguf_embed.errors import DimensionError, InputError
from gguf_embed.jobs.records import Record
from gguf_embed.prompts import PromptSet, resolve_prompt
from gguf_embed.quality.agreement import Agreement, agree
from gguf_embed.quality.dialects import Address, fetch_embeddings, parse_address
from gguf_embed.quality.matching import match
from gguf_embed.quality.remote import check_api_key
from gguf_embed.quality.saved import SUFFIXES, Fields, Keys, SavedVectors, digest_of, id_words, load_saved
from gguf_embed.quality.verdicts import Evidence, Look, Verdict, judge, look_at, share_elsewhere
from gguf_embed.vectors import truncate_dim

__all__ = ["Comparison", "Hooks", "Question", "QuestionError", "Side", "compare"]

Float32Matrix = NDArray[np.float32]
OnTexts = Callable[[int], None]
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+([/#].*)?")  # no quantization is a number


class QuestionError(ValueError):
    """What was asked makes no sense: the caller's mistake, told apart from a bug that ends in a ValueError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be compared.

    Attributes:
        a: a model reference, a file of vectors or a URL.
        b: the same.
        texts: to embed and to match saved rows with; None takes those of a saved side.
        options: prompt_name, prompt and task, for models and servers.
        dim: components to keep of both sides, None for all.
        api_keys: one for each URL, in their order.
        fields: names of ids and texts in saved files.
    """

    a: str
    b: str
    texts: tuple[Record, ...] | None = None
    options: EncodeOptions = field(default_factory=EncodeOptions)
    dim: int | None = None
    api_keys: tuple[str, ...] = ()
    fields: Fields = field(default_factory=Fields)

    @property
    def has_prompt(self) -> bool:
        """Whether one was asked for."""
        return (self.options.prompt_name, self.options.prompt, self.options.task) != (None, None, None)


def _open(name: str, dim: int | None) -> Embedder:
    return Embedder(name, truncate_dim=dim)


@contextlib.contextmanager
def _untold(_name: str, _n_texts: int) -> Iterator[OnTexts]:
    yield lambda _n: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What a command line puts in.

    Attributes:
        open_model: makes an Embedder of a reference and the components to keep.
        load: fetches and loads it.
        fetch: plans and fetches it.
        progress: tells the texts done of a side, by its name and their number.
    """

    open_model: Callable[[str, int | None], Embedder] = _open
    load: Callable[[Embedder], object] = Embedder.load
    fetch: Callable[[Embedder], object] = Embedder.fetch
    progress: Callable[[str, int], contextlib.AbstractContextManager[OnTexts]] = _untold


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side, as it was compared.

    Attributes:
        name: as it was given, without a password.
        kind: "model", "file" or "server".
        dim: components of its vectors before any cut.
        look: what its rows are like, before any cut.
        facts: what else is known: model, quant, dialect.
        prompt: put before each text, None where that is not known.
        fingerprint: as Embedder has it, None where it is not known.
        n_left_out: rows that the other side has not.
        n_truncated: texts that were cut to the model's longest.
    """

    name: str
    kind: str
    dim: int
    look: Look
    facts: Mapping[str, Any]
    prompt: str | None
    fingerprint: str | None
    n_left_out: int
    n_truncated: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """What was found.

    Attributes:
        a: one side.
        b: the other.
        dim: components that were compared.
        keys: of the texts that were compared.
        agreement: the figures.
        is_same_fingerprint: None where it is not known of both, or is of vectors of other lengths.
        verdict: what the figures mean.
    """

    a: Side
    b: Side
    dim: int
    keys: Keys
    agreement: Agreement
    is_same_fingerprint: bool | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rows:
    """The vectors of a side, and what Side has of it beside its look."""

    embeddings: Float32Matrix
    known: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Live:
    """What is to be embedded, for models and servers alike; `prefix` is for servers, and n_left_out of the input."""

    question: Question
    hooks: Hooks
    texts: Sequence[str]
    prefix: str
    n_left_out: int


def compare(question: Question, hooks: Hooks | None = None) -> Comparison:
    """Embed what is not saved, and compare.

    Models run one after the other; the first is freed before the second is loaded. Where both sides are live, the
    second is tried before the first is embedded.

    Args:
        question: what.
        hooks: how models are opened and progress is told; None for plainly.

    Raises:
        QuestionError: texts are missing, or options that have no use here; or a prompt or key that no side has.
        InputError: a file cannot be used, rows do not match, or lengths differ.
        RemoteError: a server failed.
        GGUFEmbedError: a model failed.
    """
    hooks = hooks or Hooks()
    names = (question.a, question.b)
    sides = [_side_of(name, question.fields) for name in names]
    given = _check(question, sides)
    prefix = _prefix(question, sides, hooks)
    keyed = [(str(side.path), side.keys) for side in sides if isinstance(side, SavedVectors)]
    matched, places = match([*keyed, ("the texts", given)] if given is not None else keyed)
    n_left_out = 0 if given is None else given.n - matched.n
    live = _Live(question=question, hooks=hooks, texts=matched.texts or (), prefix=prefix, n_left_out=n_left_out)
    if not any(isinstance(side, SavedVectors) for side in sides):
        _try(sides[1], live)
    api_keys, where = iter(question.api_keys), iter(places)
    rows: list[_Rows] = []
    for side in sides:
        if isinstance(side, SavedVectors):
            rows.append(_saved(side, next(where)))
            continue
        with hooks.progress(str(side), len(live.texts)) as on_texts:
            if isinstance(side, Address):
                rows.append(_served(side, live, next(api_keys, None), on_texts))
            else:
                rows.append(_embedded(side, live, on_texts))
    return _compared(question, rows, matched)


def _try(side: SavedVectors | Address | str, live: _Live) -> None:
    """Find a mistake in the second side before the first is embedded, which may take hours."""
    if isinstance(side, Address):
        api_key = live.question.api_keys[-1] if live.question.api_keys else None
        fetch_embeddings(side, [live.prefix + min(live.texts, key=len)], api_key=api_key)
    elif isinstance(side, str):
        with live.hooks.open_model(side, None) as embedder:
            _model_prefix(embedder.prompts, live.question.options)
            live.hooks.fetch(embedder)


# Sides


def _side_of(name: str, fields: Fields) -> SavedVectors | Address | str:
    """Tell what a side is; models stay names."""
    if name.lower().startswith(("http://", "https://")):
        with _asked_wrongly():
            return parse_address(name)
    path = Path(name)
    if _HOST_AND_PORT.fullmatch(name) and not path.exists():
        raise QuestionError(f"{name} is no model; a server's URL begins with http://, as in http://{name}")
    if path.suffix.lower() in SUFFIXES:
        return load_saved(path, fields)
    if path.is_file() and path.suffix.lower() != ".gguf":
        raise InputError(f"{name} is no file of vectors ({', '.join(SUFFIXES)}), and no .gguf file")
    return name


def _check(question: Question, sides: Sequence[SavedVectors | Address | str]) -> Keys | None:
    """Refuse what makes no sense together, and return what texts there are beside those of saved rows."""
    saved = [side for side in sides if isinstance(side, SavedVectors)]
    n_urls = sum(isinstance(side, Address) for side in sides)
    if question.api_keys and len(question.api_keys) != n_urls:
        raise QuestionError(f"{len(question.api_keys)} --api-key for {n_urls} URLs; give one for each, in their order")
    with _asked_wrongly():
        for api_key in filter(None, question.api_keys):
            check_api_key(api_key)
    if question.has_prompt and len(saved) == 2:
        raise QuestionError("--as, --task and --prompt are for models and servers, and both sides are saved vectors")
    if question.dim is not None and question.dim < 1:
        raise QuestionError(f"-d is {question.dim}; it is at least 1")
    if question.texts is None:
        if len(saved) < 2 and not any(side.keys.texts for side in saved):
            what = f"{saved[0].path} has no texts" if saved else "there are no texts"
            raise QuestionError(f"{what} to embed for the other side; add -i FILE with them, a text a line")
        return None
    if not question.texts:
        raise InputError("there are no texts in the input")
    texts = tuple(record.text for record in question.texts)
    has_ids = all(record.id is not None for record in question.texts)
    return Keys(
        n=len(texts),
        ids=tuple(id_words(record.id) for record in question.texts) if has_ids else None,
        texts=texts,
        digests=tuple(map(digest_of, texts)),
    )


def _prefix(question: Question, sides: Sequence[SavedVectors | Address | str], hooks: Hooks) -> str:
    """Decide what goes before texts for a server: the same that a model at the other side puts there."""
    how = question.options
    if not question.has_prompt or not any(isinstance(side, Address) for side in sides):
        return ""
    model = next((side for side in sides if isinstance(side, str)), None)
    if model is None:
        if how.prompt is None or how.task is not None:
            raise QuestionError("a server's prompts are not known here; say the prompt's text with --prompt instead")
        return how.prompt
    with hooks.open_model(model, None) as embedder:
        return _model_prefix(embedder.prompts, how)


def _model_prefix(prompts: PromptSet, how: EncodeOptions) -> str:
    with _asked_wrongly():
        return resolve_prompt(prompts, prompt_name=how.prompt_name, prompt=how.prompt, task=how.task)


@contextlib.contextmanager
def _asked_wrongly() -> Iterator[None]:
    """Around what checks a question, and nothing else."""
    try:
        yield
    except ValueError as error:
        raise QuestionError(str(error)) from error


def _saved(side: SavedVectors, places: NDArray[np.intp]) -> _Rows:
    about, n = side.about, side.keys.n
    told = {name: about[name] for name in ("model", "quant", "precision", "prompt") if isinstance(about.get(name), str)}
    prompt = told.pop("prompt", None)
    is_all = len(places) == n and bool((places == np.arange(n)).all())
    return _Rows(
        embeddings=side.embeddings if is_all else side.embeddings[places],
        known={
            "name": str(side.path), "kind": "file", "facts": told, "prompt": prompt,
            "fingerprint": about.get("fingerprint"), "n_left_out": n - len(places),
        },
    )  # fmt: skip


def _served(address: Address, live: _Live, api_key: str | None, on_texts: OnTexts) -> _Rows:
    texts = [live.prefix + text for text in live.texts]
    found = fetch_embeddings(address, texts, api_key=api_key, on_texts=on_texts)
    facts = {"dialect": found.address.dialect, "model": found.address.model}
    is_own = live.question.options.prompt is None  # a prompt of the caller's own is put before texts here, not there
    return _Rows(
        embeddings=found.embeddings,
        known={
            "name": str(found.address), "kind": "server", "facts": facts,
            "prompt": live.prefix, "fingerprint": found.fingerprint if is_own else None, "n_left_out": live.n_left_out,
        },
    )  # fmt: skip


def _embedded(name: str, live: _Live, on_texts: OnTexts) -> _Rows:
    """Embed with a model; cut as it was trained to be where it was, left whole to be cut plainly where not."""
    try:
        return _embedded_at(live.question.dim, name, live, on_texts)
    except DimensionError:
        return _embedded_at(None, name, live, on_texts)


def _embedded_at(dim: int | None, name: str, live: _Live, on_texts: OnTexts) -> _Rows:
    how = live.question.options
    with live.hooks.open_model(name, dim) as embedder:
        prefix = _model_prefix(embedder.prompts, how)
        live.hooks.load(embedder)
        report = embedder.report(live.texts, how, on_batch=lambda n, _: on_texts(n))
        return _Rows(
            embeddings=report.embeddings,
            known={
                "name": name, "kind": "model", "facts": {"model": embedder.model_id, "quant": embedder.plan.quant},
                "prompt": prefix, "fingerprint": embedder.fingerprint_of(how), "n_left_out": live.n_left_out,
                "n_truncated": len(report.truncated),
            },
        )  # fmt: skip


def _compared(question: Question, rows: Sequence[_Rows], keys: Keys) -> Comparison:
    dims = [one.embeddings.shape[1] for one in rows]
    names = [str(one.known["name"]) for one in rows]
    dim = question.dim or dims[0]
    if question.dim is None and dims[0] != dims[1]:
        raise InputError(
            f"{names[0]} has {dims[0]} components and {names[1]} has {dims[1]}. Two models; or one is cut: "
            f"then add -d {min(dims)}"
        )
    if dim > min(dims):
        raise InputError(f"-d {dim} is more than the {min(dims)} components of {names[int(dims[1] < dims[0])]}")
    a, b = (one.embeddings if one.embeddings.shape[1] == dim else truncate_dim(one.embeddings, dim) for one in rows)
    looks = (look_at(rows[0].embeddings), look_at(rows[1].embeddings))
    sides = [Side(dim=n, look=look, **one.known) for n, look, one in zip(dims, looks, rows, strict=True)]
    prints = [side.fingerprint for side in sides]
    is_same = None if None in prints or dims[0] != dims[1] else prints[0] == prints[1]
    agreement = agree(a, b)
    evidence = Evidence(
        agreement=agreement,
        looks=looks,
        share_elsewhere=share_elsewhere(a, b),
        prompts=(sides[0].prompt, sides[1].prompt),
        is_same_fingerprint=is_same,
        n_chars=None if keys.texts is None else [len(text) for text in keys.texts],
    )
    return Comparison(
        a=sides[0], b=sides[1], dim=dim, keys=keys, agreement=agreement, is_same_fingerprint=is_same,
        verdict=judge(evidence),
    )  # fmt: skip
