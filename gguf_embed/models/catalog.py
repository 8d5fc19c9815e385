"""From what the user typed to files that could run it, and from the chosen one to a path on disk.

It joins registry, references, hub and starter wheel; it must not know plans or memory.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable
from importlib.util import find_spec
from pathlib import Path

from gguf_embed.config import Config
from gguf_embed.errors import ConfigError, DownloadError, InvalidGGUFError, OfflineError, UnknownQuantError
from gguf_embed.models.headers import HeaderCache
from gguf_embed.models.hub import Hub, Progress, RemoteFile
from gguf_embed.models.ladders import QUALITY_LADDER, ladder_of, quality_rank
from gguf_embed.models.made import made_path, sizes_by_quant, unknown_quant
from gguf_embed.models.measured import load_measured
from gguf_embed.models.refs import Reference, files_by_quant, parse_reference, select_file
from gguf_embed.models.registry import load_registry
from gguf_embed.models.sources import Resolved, Source
from gguf_embed.models.specs import ModelSpec, QuantFile
from gguf_embed.models.wheel import fetch_wheel_model, wheel_model_path

__all__ = ["Catalog"]

logger = logging.getLogger(__name__)


class Catalog:
    """Every model that this user can name.

    Args:
        config: folders, endpoint, offline.
        hub: stands in for the hub of `config`, for tests.
    """

    def __init__(self, config: Config, hub: Hub | None = None) -> None:
        self.config = config
        self.registry = load_registry(config.config_dir / "models.toml")
        self.hub = hub or Hub(endpoint=config.endpoint, cache_dir=config.hub_cache, offline=config.offline)
        self.headers = HeaderCache(config.cache_dir / "headers")

    def parse(self, text: str) -> Reference:
        """Read a reference without asking the hub anything.

        Raises:
            UnknownModelError: nothing answers to it.
            UnknownQuantError: the model does not come in this quantization.
        """
        return parse_reference(text, self.registry)

    def resolve(self, text: str, *, prefer: str = "default", with_others: bool = False) -> Resolved:
        """Find out what a reference means and which quantizations could be had.

        Lists a repository that the registry does not know, which uses the network.

        Args:
            text: any form of model reference.
            prefer: which quantizations come first; one of ladders.PREFERENCES.
            with_others: also list what is outside the ladder.

        Raises:
            UnknownModelError: nothing answers to it.
            UnknownQuantError: the model does not come in this quantization.
            HubError: the repository cannot be listed.
            ConfigError: prefer is "measured", and nothing of this model was.
        """
        reference = self.parse(text)
        spec = reference.spec
        if reference.path is not None:
            sources = [Source(origin="local", quant=reference.quant or "", path=reference.path.absolute())]
            return _resolved(reference, reference.path.name, spec, sources)
        if reference.repo is None and spec is not None:
            wanted = _wanted(reference, lambda: self._ladder_of_spec(prefer, spec))
            sources = self._reachable([self._source_of_spec(spec, quant) for quant in wanted])
            quants = sorted(set(spec.quants) - set(wanted), key=quality_rank) if with_others else ()
            others = [self._source_of_spec(spec, quant) for quant in quants]
            return _resolved(reference, spec.model_id, spec, sources, others)
        model_id = spec.model_id if spec is not None else reference.repo or text
        sources = self._sources_of_repo(reference, prefer)
        chosen = {source.quant for source in sources}
        besides = self._sources_of_repo(dataclasses.replace(reference, quant=None), "quality") if with_others else ()
        others = [source for source in besides if source.quant not in chosen]
        return _resolved(reference, model_id, spec, sources, others)

    def fetch(self, resolved: Resolved, source: Source, *, on_progress: Progress | None = None) -> Path:
        """Return the file on disk, downloading or making it when it is not there.

        Args:
            resolved: where the source comes from.
            source: the chosen one.
            on_progress: called with bytes present and bytes in all.

        Raises:
            HubError: it cannot be had.
            UnknownQuantError: a listed repository does not hold this quantization after all.
        """
        if source.path is not None:
            return source.path
        if source.origin == "wheel" and resolved.spec is not None and resolved.spec.wheel is not None:
            return fetch_wheel_model(
                resolved.spec.wheel, resolved.spec.model_id, self.config.cache_dir, offline=self.config.offline
            )
        return self.hub.fetch_file(self.remote(resolved, source), on_progress=on_progress)

    def remote(self, resolved: Resolved, source: Source) -> RemoteFile:
        """Return the exact file of a source on the hub; a repository is listed now.

        Raises:
            InvalidGGUFError: the source is no file on the hub.
            HubError: the repository cannot be listed.
        """
        if source.repo is None:
            raise InvalidGGUFError(f"{source.name} is not on the hub", path=Path(source.name))
        if source.file is None:
            listing = self.hub.fetch_listing(source.repo, source.revision)
            return select_file(listing, source.quant, model_id=resolved.model_id)
        return source.remote

    def _ladder_of_spec(self, prefer: str, spec: ModelSpec) -> tuple[str, ...]:
        """The ladder of a model by its name; of what was measured, also what was made here and is here still."""
        if prefer != "measured":
            return ladder_of(prefer, spec)
        measured = self._measured_order(spec.model_id)
        return ladder_of(prefer, spec, {*spec.quants, *(one for one in measured if self._made(spec.model_id, one))},
                         measured=measured)  # fmt: skip

    def _ladder(self, prefer: str, spec: ModelSpec | None, repo: str, available: Collection[str]) -> tuple[str, ...]:
        """The ladder of what one repository holds."""
        model_id = spec.model_id if spec is not None else repo
        return ladder_of(
            prefer, spec, available, measured=self._measured_order(model_id) if prefer == "measured" else ()
        )

    def _measured_order(self, model_id: str) -> tuple[str, ...]:
        measured = load_measured(self.config.state_dir, model_id)
        if measured is None:
            raise ConfigError(
                f"prefer is 'measured', and no quantization of {model_id} was measured here; "
                f"run: gguf-embed eval {model_id}",
                key="prefer",
            )
        return measured.order

    def _source_of_spec(self, spec: ModelSpec, quant: str) -> Source:
        """The best way to one quantization: on disk, then the starter wheel, then a pinned file, then a listed repo."""
        known = [*self._made(spec.model_id, quant)]
        known += [self._source_of_file(file) for file in spec.files if file.quant == quant]
        if spec.wheel is not None and spec.wheel.quant == quant:
            path = wheel_model_path(spec.wheel, spec.model_id, self.config.cache_dir)
            wheel = Source(
                origin="wheel",
                quant=quant,
                file=spec.wheel.package,
                size_bytes=spec.wheel.size_bytes,
                path=path if path.is_file() else None,
            )
            has_extra = find_spec("gguf") is not None and find_spec("safetensors") is not None
            known = [wheel, *known] if has_extra or not known else [*known, wheel]
        for discoverable in spec.discoverable:
            for name, tensor_bytes in discoverable.quants:
                if name == quant:
                    cached = self._cached(discoverable.repo, quant)
                    known.append(cached or Source(
                        origin="repo", quant=quant, repo=discoverable.repo, size_bytes=tensor_bytes
                    ))  # fmt: skip
        if not known:
            raise unknown_quant(spec.model_id, sizes_by_quant(spec), quant)
        return next((source for source in known if source.is_on_disk), known[0])

    def _made(self, model_id: str, quant: str) -> list[Source]:
        """The quantization that was made here, if it was."""
        path = made_path(self.config.cache_dir, model_id, quant)
        return [Source(origin="local", quant=quant, path=path)] if path.is_file() else []

    def _source_of_file(self, file: QuantFile) -> Source:
        return Source(
            origin="hub",
            quant=file.quant,
            repo=file.repo,
            file=file.file,
            revision=file.revision,
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            path=self.hub.cached_path(file.repo, file.file, file.revision, size_bytes=file.size_bytes),
        )

    def _cached(self, repo: str, quant: str) -> Source | None:
        """A file of this quantization that is in the cache already, whatever its commit."""
        newest = {cached.file: cached for cached in self.hub.cached_files(repo)}
        try:
            cached = select_file(list(newest.values()), quant, model_id=repo)
        except UnknownQuantError:
            return None
        return Source(
            origin="hub", quant=quant, repo=cached.repo, file=cached.file, revision=cached.revision,
            size_bytes=cached.size_bytes, path=cached.path,
        )  # fmt: skip

    def _sources_of_repo(self, reference: Reference, prefer: str) -> list[Source]:
        """Quantizations of one named repository; those that the registry pins need no listing."""
        repo, spec = reference.repo or "", reference.spec
        pinned = [file for file in spec.files if file.repo == repo] if spec and reference.revision is None else []
        if reference.file is not None:
            pinned = [file for file in pinned if file.file == reference.file]
            return [self._source_of_file(file) for file in pinned] or [self._source_of_named_file(reference)]
        if pinned:
            by_quant = {file.quant: file for file in pinned}
            wanted = _wanted(reference, lambda: self._ladder(prefer, spec, repo, by_quant) or tuple(by_quant))
            if all(quant in by_quant for quant in wanted):
                return self._reachable(self._source_of_file(by_quant[quant]) for quant in wanted)
        if reference.quant is not None:
            if made := self._made(spec.model_id if spec is not None else repo, reference.quant):
                return made
            if cached := self._cached(repo, reference.quant):
                return [cached]
        listing = self._listing(reference)
        quants = files_by_quant(listing)
        wanted = _wanted(
            reference,
            lambda: (
                self._ladder(prefer, spec, repo, quants) or tuple(quant for quant in QUALITY_LADDER if quant in quants)
            ),
        )
        if reference.quant is not None and quants and reference.quant not in quants:
            raise unknown_quant(repo, {quant: files[0].size_bytes for quant, files in quants.items()}, reference.quant)
        if not wanted:
            raise UnknownQuantError(
                f"{repo} has no GGUF in one file; name another repository", model_id=repo, quant="", available=()
            )
        return [self._source_of_remote(select_file(listing, quant, model_id=repo), quant) for quant in wanted]

    def _listing(self, reference: Reference) -> tuple[RemoteFile, ...]:
        """What a repository holds; without a network, what of it is in the cache."""
        repo = reference.repo or ""
        try:
            return self.hub.fetch_listing(repo, reference.revision)
        except (DownloadError, OfflineError) as error:
            newest = {cached.file: cached for cached in self.hub.cached_files(repo)}
            has_none = not newest if reference.quant is None else reference.quant not in files_by_quant(newest.values())
            if has_none or reference.revision is not None:
                raise
            logger.warning("%s cannot be listed (%s); using what is in the cache", repo, error)
            return tuple(
                RemoteFile(
                    repo=repo, revision=cached.revision, file=cached.file, size_bytes=cached.size_bytes, sha256=None
                )
                for cached in newest.values()
            )

    def _source_of_named_file(self, reference: Reference) -> Source:
        repo, file = reference.repo or "", reference.file or ""
        return Source(
            origin="hub", quant=reference.quant or "", repo=repo, file=file, revision=reference.revision,
            path=self.hub.cached_path(repo, file, reference.revision),
        )  # fmt: skip

    def _source_of_remote(self, remote: RemoteFile, quant: str) -> Source:
        path = self.hub.cached_path(remote.repo, remote.file, remote.revision, size_bytes=remote.size_bytes)
        return Source(
            origin="hub", quant=quant, repo=remote.repo, file=remote.file, revision=remote.revision,
            size_bytes=remote.size_bytes, sha256=remote.sha256, path=path,
        )  # fmt: skip

    def _reachable(self, sources: Iterable[Source]) -> list[Source]:
        """All of them, or when offline those on disk; none on disk is an error that says what to do."""
        every = list(sources)
        if not self.config.offline:
            return every
        here = [source for source in every if source.is_on_disk]
        if not here:
            names = ", ".join(source.quant for source in every)
            raise OfflineError(
                f"the network is off and none of {names} is on disk; go online once and run: gguf-embed pull"
            )
        if len(here) < len(every):
            logger.warning("offline: only %s on disk", ", ".join(source.quant for source in here))
        return here


def _resolved(
    reference: Reference,
    model_id: str,
    spec: ModelSpec | None,
    sources: Iterable[Source],
    others: Iterable[Source] = (),
) -> Resolved:
    return Resolved(reference=reference, model_id=model_id, spec=spec, sources=tuple(sources), others=tuple(others))


def _wanted(reference: Reference, ladder: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    return (reference.quant,) if reference.quant is not None else ladder()
