"""The models of a server by name: found, loaded at first use within the memory, unloaded when others need it.

It must not know routes or dialects.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import re
from collections.abc import AsyncIterator, Iterable
from http import HTTPStatus

from gguf_embed.errors import DoesNotFitError, RegistryError
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.refs import Reference, parse_reference
from gguf_embed.models.shelf import FileOnDisk, files_on_disk
from gguf_embed.opening import Wish
from gguf_embed.server.hosted import Hosted
from gguf_embed.server.metrics import Metrics
from gguf_embed.server.pulls import pull
from gguf_embed.server.refusals import Refusal
from gguf_embed.server.settings import ServerSettings

__all__ = ["Pool"]

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
_BUSY_LOOK_S = 0.05
_SHELF_S = 5.0
_MAX_NAME = 256
_PATH = re.compile(r"[./~]|[A-Za-z]:[/]|file:", re.IGNORECASE)


class Pool:
    """Every model that clients can name.

    Args:
        settings: of the server.
        catalog: where models are found.
        metrics: where decodes are counted.

    Raises:
        RegistryError: a model that is to be served is unknown.
    """

    def __init__(self, settings: ServerSettings, catalog: Catalog, metrics: Metrics) -> None:
        self.settings, self.catalog, self._metrics = settings, catalog, metrics
        self._hosted: dict[str, Hosted] = {}
        self._names: dict[str, str] = {}  # what clients may write, in lower case -> a key of _hosted
        self._loading = asyncio.Lock()  # one at a time, or each would plan with the same free memory
        self._shelf: tuple[float, tuple[FileOnDisk, ...]] = (-_SHELF_S, ())
        for text in settings.models:
            self._serve(text, catalog.parse(text))
        for name, text in settings.aliases:
            hosted = self._serve(text, catalog.parse(text))
            self._names[_key(name)] = hosted.name

    def _serve(self, text: str, reference: Reference) -> Hosted:
        hosted = self._host(_name_of(reference), reference, is_served=True)
        self._names[_key(text)] = hosted.name
        return hosted

    def _host(self, name: str, reference: Reference, *, is_served: bool) -> Hosted:
        if name not in self._hosted:
            self._hosted[name] = Hosted(name, reference, wish=self._wish, metrics=self._metrics, is_served=is_served)
            self._names[_key(name)] = name
        return self._hosted[name]

    @property
    def hosted(self) -> list[Hosted]:
        """Those that have been asked for, the served ones first."""
        return list(self._hosted.values())

    @property
    def served(self) -> list[Hosted]:
        """Those that were named at the start."""
        return [one for one in self._hosted.values() if one.is_served]

    def files(self) -> tuple[FileOnDisk, ...]:
        """List the model files on this disk; looked at anew every few seconds."""
        now = asyncio.get_running_loop().time()
        if now - self._shelf[0] > _SHELF_S:
            self._shelf = (now, files_on_disk(self.catalog))
        return self._shelf[1]

    def available(self) -> dict[str, FileOnDisk]:
        """The files on this disk by the names that clients can give them."""
        found = {}
        for file in self.files():
            name = f"{file.model_id}:{file.quant}" if file.quant else file.model_id
            with contextlib.suppress(Refusal):
                self.parse(name)
                found[name] = file
        return found

    def find(self, name: str | None) -> Hosted:
        """Find what a client means: a model that is served, or another one that is on this disk.

        Args:
            name: any form of reference but a path; None for the first one served.

        Raises:
            Refusal: 404; it is unknown, or not on this disk.
        """
        if name is None or not name.strip():
            return self.served[0]
        key = _key(name)
        if key in self._names:
            return self._hosted[self._names[key]]
        reference = self.parse(name)
        known = _name_of(reference)
        for hosted in self.hosted:
            if hosted.is_same(reference):
                return hosted
        if known not in self._hosted and not self.is_on_disk(reference.text):
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                f"model {name!r} is not on this machine; fetch it with: gguf-embed pull {known}",
                param="model",
                code="model_not_found",
            )
        return self._host(known, reference, is_served=False)

    def parse(self, name: str) -> Reference:
        """Read a client's reference; a path is none, and is not looked for.

        Raises:
            Refusal: 404; nothing answers to it.
        """
        text = name.strip().removesuffix(":latest")
        is_file = text.lower().endswith(".gguf")
        if len(text) > _MAX_NAME or _PATH.match(text) or "\\" in text or (is_file and text.count("/") < 2):
            raise _unknown(text, tuple(one.name for one in self.served))
        try:
            return parse_reference(text, self.catalog.registry)
        except RegistryError as error:
            suggestions = getattr(error, "suggestions", ()) or tuple(one.name for one in self.served)
            raise _unknown(text, suggestions) from None

    def is_on_disk(self, text: str) -> bool:
        """Whether a file of this disk answers to a reference."""
        with contextlib.suppress(RegistryError):
            return bool(files_on_disk(self.catalog, text))
        return False

    # Memory

    def _wish(self, hosted: Hosted) -> Wish:
        """Say what a model may use beside those that are loaded now."""
        settings, others = self.settings, [one for one in self.hosted if one is not hosted]
        limits = settings.limits
        if limits.memory_bytes is not None:
            left = limits.memory_bytes - sum(one.held_bytes for one in others)
            limits = dataclasses.replace(limits, memory_bytes=max(1, left))
        config = self.catalog.config
        return Wish(
            # What was not named at the start runs from the disk alone: no request makes this machine download.
            config=config if hosted.is_served else dataclasses.replace(config, offline=True),
            text=hosted.reference.text,
            prefer=settings.prefer,
            limits=limits,
            evictable_bytes=hosted.evictable_bytes,
            reserved_bytes=sum(one.mapped_bytes for one in others),
        )

    @contextlib.asynccontextmanager
    async def using(self, hosted: Hosted, keep_alive_s: float | None = None) -> AsyncIterator[None]:
        """Keep a model in memory meanwhile, loading it first where it is not.

        Raises:
            GGUFEmbedError: it cannot be loaded.
        """
        while hosted.is_giving_way:  # noqa: ASYNC110 - rare, and an event would be more to get wrong
            await asyncio.sleep(_BUSY_LOOK_S)
        hosted.n_active += 1
        try:
            if not hosted.is_loaded:
                await hosted.loaded(self._load)
            yield
        finally:
            hosted.n_active -= 1
            hosted.used(self.settings.keep_alive_s if keep_alive_s is None else keep_alive_s)

    async def load(self, hosted: Hosted, keep_alive_s: float | None = None) -> None:
        """Load a model before it is needed.

        Raises:
            GGUFEmbedError: it cannot be loaded.
        """
        async with self.using(hosted, keep_alive_s):
            pass

    async def _load(self, hosted: Hosted) -> None:
        """Open a model; others that nobody has used for longest make room where it would run worse beside them."""
        if hosted.is_served:
            await self._fetch(hosted)  # first and apart, so that others may be loaded meanwhile
        async with self._loading:
            while not hosted.is_loaded:
                others = [one for one in self.hosted if one.is_loaded and one is not hosted]
                hosted.evictable_bytes = sum(one.held_bytes for one in others)
                try:
                    await hosted.open()
                except DoesNotFitError:
                    if not others:
                        raise
                    await self._make_room(min(others, key=lambda one: (one.n_active > 0, one.last_used_s)))
                finally:
                    hosted.evictable_bytes = 0

    async def _fetch(self, hosted: Hosted) -> None:
        """Download a model that is not on this disk."""
        if hosted.opened is None and hosted.reference.path is None and not self.is_on_disk(hosted.reference.text):
            async for n_done, n_total in self.pull(hosted.reference.text):
                hosted.n_done, hosted.n_total = n_done, n_total

    async def pull(self, text: str) -> AsyncIterator[tuple[int, int]]:
        """Fetch a model, as `pulls.pull` does."""
        limits = self.settings.limits
        async for told in pull(Wish(config=self.catalog.config, text=text, prefer=self.settings.prefer, limits=limits)):
            yield told
        self._shelf = (-_SHELF_S, ())  # there is a new file

    async def _make_room(self, victim: Hosted) -> None:
        """Unload a model when those who use it now are done; those who come meanwhile wait for its next turn."""
        victim.is_giving_way = True
        try:
            while victim.n_active and victim.is_loaded:  # noqa: ASYNC110 - the same
                await asyncio.sleep(_BUSY_LOOK_S)
            logger.info("%s makes room", victim.name)
            await self.unload(victim)
        finally:
            victim.is_giving_way = False

    async def unload(self, hosted: Hosted) -> None:
        """Take a model out of memory; it is let go of before anybody else runs, and its end is waited for."""
        end = hosted.worker.detach()
        await asyncio.to_thread(end)

    async def watch(self) -> None:
        """Unload what nobody has wanted for long enough, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for hosted in self.hosted:
                if hosted.is_expired:
                    logger.info("%s was not used and is unloaded", hosted.name)
                    try:
                        await self.unload(hosted)
                    except Exception:
                        logger.exception("%s could not be unloaded", hosted.name)

    def close(self) -> None:
        """End every worker."""
        for hosted in self.hosted:
            hosted.worker.close()


def _key(name: str) -> str:
    """Names are the same in any case, and with Ollama's default tag."""
    return name.strip().lower().removesuffix(":latest")


def _name_of(reference: Reference) -> str:
    """What a model is called to clients; never a folder of this machine."""
    if reference.path is not None:
        return reference.path.stem
    base = reference.spec.model_id if reference.spec is not None and reference.repo is None else reference.repo
    if reference.file is not None:
        return f"{base}/{reference.file}"
    return f"{base}:{reference.quant}" if reference.quant else str(base)


def _unknown(name: str, suggestions: Iterable[str]) -> Refusal:
    hint = ", ".join(suggestions)
    return Refusal(
        HTTPStatus.NOT_FOUND,
        f"model {name[:80]!r} not found" + (f"; did you mean {hint}?" if hint else ""),
        param="model",
        code="model_not_found",
    )
