"""Which files of a model are held against each other, and how the missing ones are got: fetched or quantized here.

It must not know what is measured.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from gguf_embed.errors import HubError, InvalidGGUFError, UnknownQuantError, UnsupportedModelError
from gguf_embed.fingerprints import sha256_of
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.header import load_facts
from gguf_embed.models.ladders import MAKEABLE_FROM, quality_rank
from gguf_embed.models.making import find_making, make
from gguf_embed.models.refs import Reference, quant_of_file_name
from gguf_embed.models.shelf import files_on_disk
from gguf_embed.models.specs import ModelSpec
from gguf_embed.native.quantize import FTYPES

__all__ = ["Candidate", "Subject", "Wish", "find_subject", "get_candidates"]

# Called with what is fetched or made; what it yields is called with how much is done and how much there is.
Watch = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]

_FLOATS = ("F32", "F16", "BF16")  # made of nothing that is smaller


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked for.

    Attributes:
        model: a model reference; its quantization, if it names one, is the one to judge.
        quants: to judge; empty for all that are on this disk.
        reference: to hold the others against; None for the best of them, of a single one the best on this disk.
        makes: whether what is not on this disk is quantized here.
    """

    model: str
    quants: tuple[str, ...] = ()
    reference: str | None = None
    makes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model and the quantizations of it that will be measured.

    Attributes:
        model_id: the registry's name, else the repository or file.
        spec: what the registry knows of it, None where it does not.
        base: the reference without a quantization; of a file, its path.
        quants: the reference first, then from best to smallest; each once.
        is_file: whether it was named by a path, so that no name leads to what is found out.
    """

    model_id: str
    spec: ModelSpec | None
    base: str
    quants: tuple[str, ...]
    is_file: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One quantization that is on this disk.

    Attributes:
        quant: Q4_K_M, ...
        model: the reference that opens it.
        path: of the file.
        size_bytes: of the file.
        sha256: of the file, 64 hex digits.
    """

    quant: str
    model: str
    path: Path
    size_bytes: int
    sha256: str


def find_subject(catalog: Catalog, wish: Wish) -> Subject:
    """Decide which quantizations will be measured, without fetching any.

    Args:
        catalog: where models are found.
        wish: what is asked for.

    Raises:
        UnknownModelError: nothing answers to the reference.
        UnknownQuantError: a name is none of a quantization, or there is nothing to measure.
    """
    parsed = catalog.parse(wish.model)
    base, model_id = _base_of(parsed), _model_id(parsed)
    here = tuple(_paths(catalog, parsed, base))
    named = tuple(_spelt(catalog, parsed, base, quant) for quant in wish.quants)
    quants = set(named or ((parsed.quant,) if parsed.quant and parsed.path is None else here))
    if len(quants) == 1 and wish.reference is None:  # held against the best that is here
        quants |= set(sorted(here, key=quality_rank)[:1])
    reference = _spelt(catalog, parsed, base, wish.reference) if wish.reference else None
    if not quants:
        raise UnknownQuantError(
            f"nothing of {base} is on this disk; fetch it: gguf-embed pull {base}, or name what to fetch: --quants",
            model_id=model_id, quant="", available=(),
        )  # fmt: skip
    ordered = sorted(quants | ({reference} if reference else set()), key=lambda one: (quality_rank(one), one))
    first = reference or ordered[0]
    return Subject(
        model_id=model_id, spec=parsed.spec, base=base, is_file=parsed.path is not None,
        quants=(first, *(one for one in ordered if one != first)),
    )  # fmt: skip


def get_candidates(
    catalog: Catalog, subject: Subject, *, makes: bool = False, on_bytes: Watch | None = None,
    on_tensors: Watch | None = None, n_threads: int = 0,
) -> tuple[Candidate, ...]:  # fmt: skip
    """Fetch or make what is not on this disk.

    Args:
        catalog: where models are found.
        subject: what will be measured.
        makes: whether to quantize here what is not on this disk, rather than to fetch it.
        on_bytes: watches a download.
        on_tensors: watches a quantization.
        n_threads: CPU threads to quantize with, 0 for all.

    Returns:
        In the order of the subject's quantizations.

    Raises:
        UnknownQuantError: no source has a quantization; the message has what makes it.
        HubError: it cannot be fetched.
        BackendError: it cannot be made.
    """
    parsed = catalog.parse(subject.base)
    getting = _Getting(catalog, subject, parsed, makes, on_bytes or _silent, on_tensors or _silent, n_threads)
    candidates = []
    for quant in subject.quants:
        path = _paths(catalog, parsed, subject.base).get(quant) or getting.get(quant)
        candidates.append(
            Candidate(
                quant=quant,
                model=str(path) if subject.is_file else f"{subject.base}:{quant}",
                path=path,
                size_bytes=path.stat().st_size,
                sha256=sha256_of(path),
            )
        )
    return tuple(candidates)


@dataclass(frozen=True, slots=True)
class _Getting:
    """How the files that are not here are got."""

    catalog: Catalog
    subject: Subject
    parsed: Reference
    makes: bool
    on_bytes: Watch
    on_tensors: Watch
    n_threads: int

    def get(self, quant: str) -> Path:
        if self.makes and quant not in _FLOATS:
            return self._make(quant)
        if self.subject.is_file:
            raise UnknownQuantError(
                f"there is no {quant} beside {self.subject.base}; add --make, or run: "
                f"gguf-embed quantize {self.subject.base} --to {quant}",
                model_id=self.subject.model_id, quant=quant, available=self.subject.quants,
            )  # fmt: skip
        try:
            return self._fetch(quant)
        except UnknownQuantError as error:
            hint = "; or add --make to this command" if "gguf-embed quantize" in str(error) else ""
            raise UnknownQuantError(
                f"{error}{hint}", model_id=error.model_id, quant=error.quant, available=error.available
            ) from error

    def _fetch(self, quant: str) -> Path:
        resolved = self.catalog.resolve(f"{self.subject.base}:{quant}")
        with self.on_bytes(f"{self.subject.model_id} {quant}") as on_progress:
            return self.catalog.fetch(resolved, resolved.sources[0], on_progress=on_progress)

    def _make(self, quant: str) -> Path:
        """Quantize the best that is here, or what would be fetched for it."""
        if quant not in FTYPES:
            raise UnknownQuantError(
                f"{quant} is no quantization that can be made; it is one of {', '.join(FTYPES)}",
                model_id=self.subject.model_id, quant=quant, available=tuple(FTYPES),
            )  # fmt: skip
        here = _paths(self.catalog, self.parsed, self.subject.base)
        best = min((one for one in here if one in MAKEABLE_FROM), key=quality_rank, default=None)
        source = str(here[best]) if best and self.subject.is_file else self.subject.base
        making = find_making(self.catalog, source, quant, source_quant=best)
        if making.source.quant == quant:  # nothing better is to be had
            return self._fetch(quant)
        label = f"{self.subject.model_id} {making.source.quant}"
        with self.on_bytes(label) as on_bytes, self.on_tensors(f"making {quant}") as on_tensors:
            return make(self.catalog, making, n_threads=self.n_threads, on_bytes=on_bytes, on_tensors=on_tensors)


def _base_of(parsed: Reference) -> str:
    """The reference without its quantization."""
    if parsed.path is not None:
        return str(parsed.path)
    if parsed.repo is None:
        return parsed.spec.model_id if parsed.spec is not None else parsed.text
    return f"{parsed.repo}@{parsed.revision}" if parsed.revision else parsed.repo


def _model_id(parsed: Reference) -> str:
    if parsed.path is not None:
        return parsed.path.name
    return parsed.spec.model_id if parsed.spec is not None else parsed.repo or parsed.text


def _paths(catalog: Catalog, parsed: Reference, base: str) -> dict[str, Path]:
    """The files on this disk by quantization; of a file, those whose names differ in that alone."""
    if parsed.path is not None:
        stem = _without_quant(parsed.path)
        files = sorted(one for one in parsed.path.absolute().parent.glob("*.gguf") if _without_quant(one) == stem)
        by_quant = {_quant_of(one): one for one in (*files, parsed.path.absolute())}
        unknown = by_quant.pop("", None)
        return by_quant | ({unknown.stem: unknown} if unknown == parsed.path.absolute() else {})
    quants = dict.fromkeys(file.quant for file in files_on_disk(catalog, base) if file.quant)
    paths = {quant: _path_on_disk(catalog, f"{base}:{quant}") for quant in quants}
    return {quant: path for quant, path in paths.items() if path is not None}


def _path_on_disk(catalog: Catalog, text: str) -> Path | None:
    """The file that this reference opens, where it is here; a name may lead to another than the first of the shelf."""
    try:
        return catalog.resolve(text).sources[0].path
    except (UnknownQuantError, HubError):  # on the shelf, and nothing that this name leads to
        return None


def _quant_of(path: Path) -> str:
    """What the name says, else the header; "" where neither does, or there is none that can be read."""
    try:
        return quant_of_file_name(path.name) or load_facts(path).quant or ""
    except (InvalidGGUFError, UnsupportedModelError):  # opening it tells why
        return ""


def _without_quant(path: Path) -> str:
    quant = quant_of_file_name(path.name)
    return re.sub(rf"[-._]{quant}(?=\W|_|$)", "", path.stem, flags=re.IGNORECASE) if quant else path.stem


def _spelt(catalog: Catalog, parsed: Reference, base: str, quant: str) -> str:
    """A quantization's name as it is on files; what is none is an error with those that there are."""
    if parsed.path is not None:
        return quant.upper()
    return catalog.parse(f"{base}:{quant}").quant or quant.upper()


def _silent(_what: str) -> AbstractContextManager[None]:
    return contextlib.nullcontext()
