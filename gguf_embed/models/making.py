"""From "this model in that quantization" to a file that is made here: which source, which target, then the work.

It joins catalog and quantize; it must not know plans.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gguf_embed.errors import OfflineError, UnknownQuantError
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.ladders import MAKEABLE_FROM, quality_rank
from gguf_embed.models.made import made_path
from gguf_embed.models.quantize import quantize_file
from gguf_embed.models.refs import Reference
from gguf_embed.models.sources import Resolved, Source
from gguf_embed.native.quantize import FTYPES

__all__ = ["Making", "find_making", "make"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What will be made of what.

    Attributes:
        resolved: the model.
        source: the file to start from.
        quant: to make.
        target: the file to write.
    """

    resolved: Resolved
    source: Source
    quant: str
    target: Path


def find_making(
    catalog: Catalog, text: str, quant: str, *, source_quant: str | None = None, target: Path | None = None
) -> Making:
    """Decide what to make a quantization from, and where.

    Args:
        catalog: where models are found.
        text: a model reference; its quantization, if it names one, is what to start from.
        quant: to make, in any case.
        source_quant: to start from; None takes the best of Q8_0, F16, BF16 and F32 that is on disk, else the first that
            can be had.
        target: the file to write; None keeps it where its name is found again, or beside a file of the user's.

    Raises:
        ValueError: no such quantization.
        UnknownModelError: nothing answers to the reference.
        UnknownQuantError: there is nothing to start from.
        HubError: the repository cannot be listed.
    """
    quant = quant.upper()
    if quant not in FTYPES:
        raise ValueError(f"{quant!r} is no quantization that can be made; it is one of {', '.join(FTYPES)}")
    reference = catalog.parse(text)
    resolved = _sources(catalog, reference, text, source_quant)
    here = [one for one in resolved.sources if one.is_on_disk]
    source = min(here, key=lambda one: quality_rank(one.quant), default=resolved.sources[0])
    if target is None and source.origin == "local" and reference.path is not None and source.path is not None:
        target = _beside(source.path, quant)
    return Making(
        resolved=resolved,
        source=source,
        quant=quant,
        target=target or made_path(catalog.config.cache_dir, resolved.model_id, quant),
    )


def _sources(catalog: Catalog, reference: Reference, text: str, source_quant: str | None) -> Resolved:
    """What could be started from, best first."""
    if reference.path is not None or reference.quant is not None or reference.file is not None:
        return catalog.resolve(text)
    wanted = (source_quant.upper(),) if source_quant is not None else MAKEABLE_FROM
    known: Resolved | None = None
    sources: list[Source] = []
    missing: UnknownQuantError | None = None
    offline: OfflineError | None = None
    for quant in wanted:
        try:
            found = catalog.resolve(f"{text}:{quant}")
        except UnknownQuantError as error:
            missing = error
        except OfflineError as error:  # another one may be on disk
            offline = error
        else:
            known, sources = known or found, [*sources, *found.sources]
    if known is None and offline is not None:
        raise offline
    if known is None:
        available = missing.available if missing is not None else ()
        has = ", ".join(available) or "nothing"
        raise UnknownQuantError(
            f"{text} has no {wanted[0]}; it has {has}"
            if source_quant is not None
            else f"{text} comes in none of {', '.join(wanted)}, and what it has, {has}, is too coarse to be quantized "
            "again; take another repository",
            model_id=text,
            quant=wanted[0],
            available=available,
        ) from missing
    return Resolved(
        reference=known.reference, model_id=known.model_id, spec=known.spec, sources=tuple(sources), others=()
    )


def _beside(path: Path, quant: str) -> Path:
    """The name of a file with another quantization: model-F16.gguf becomes model-Q4_K_S.gguf."""
    stem = re.sub(r"[-._](F32|F16|FP16|BF16|Q8_0)$", "", path.stem, flags=re.IGNORECASE)
    return path.with_name(f"{stem}-{quant}.gguf")


def make(
    catalog: Catalog,
    making: Making,
    *,
    n_threads: int = 0,
    on_bytes: Progress | None = None,
    on_tensors: Progress | None = None,
) -> Path:
    """Fetch the source and quantize it.

    Args:
        catalog: where the making comes from.
        making: as decided.
        n_threads: CPU threads, 0 for all.
        on_bytes: called while downloading, with bytes present and bytes in all.
        on_tensors: called while quantizing, with tensors done and tensors in all.

    Returns:
        The file that was made.

    Raises:
        HubError: the source cannot be had.
        BackendError: llama.cpp refused.
    """
    path = catalog.fetch(making.resolved, making.source, on_progress=on_bytes)
    return quantize_file(path, making.target, making.quant, n_threads=n_threads, on_progress=on_tensors)
