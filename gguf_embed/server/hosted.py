"""One model that a server runs: its worker, who uses it, and how long it stays.

It must not know routes, dialects or the other models.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

from gguf_embed.engine.program import Opener
from gguf_embed.engine.worker import Worker
from gguf_embed.errors import ClosedError, GGUFEmbedError, WorkerCrashedError
from gguf_embed.fingerprints import Recipe
from gguf_embed.models.refs import Reference
from gguf_embed.models.specs import ModelSpec
from gguf_embed.opening import Opened, Wish, opener_for
from gguf_embed.selection import recipe
from gguf_embed.server.metrics import Metrics

__all__ = ["Hosted"]

logger = logging.getLogger(__name__)


class Hosted:
    """A model by the name that it has here.

    Args:
        name: for clients.
        reference: what it is.
        wish: makes the wish, as things are when it is loaded.
        metrics: where its decodes are counted.
        is_served: named at the start of the server, so it may be downloaded and counts for its health.
        clock: stands in for time.monotonic, for tests.

    Attributes:
        is_giving_way: about to be unloaded; who comes now waits.
        evictable_bytes: memory that others would give up for it, while it is being loaded.
        n_active: requests that use it.
        last_used_s: by the clock.
        expires_s: when it is unloaded if nobody uses it, by the clock.
        trouble: why it could not be loaded the last time, or None.
        n_done, n_total: bytes while it is downloaded.
    """

    def __init__(
        self,
        name: str,
        reference: Reference,
        *,
        wish: Callable[[Hosted], Wish],
        metrics: Metrics,
        is_served: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.reference, self.is_served = name, reference, is_served
        self._wish, self._metrics, self._clock = wish, metrics, clock
        self.worker = Worker(self._opener, name=name, observer=self)
        self._loading: asyncio.Task[None] | None = None
        self.is_giving_way = False
        self.evictable_bytes = 0
        self.n_active = 0
        self.last_used_s = clock()
        self.expires_s = math.inf
        self.trouble: GGUFEmbedError | None = None
        self.n_done = self.n_total = 0
        self._hashing = asyncio.Lock()
        self._recipe: tuple[Opened, Recipe | None] | None = None  # of what was opened last

    def _opener(self, opened: Opened | None) -> Opener:
        return opener_for(self._wish(self), opened)

    @property
    def spec(self) -> ModelSpec | None:
        """What the registry knows of it."""
        return self.reference.spec

    @property
    def opened(self) -> Opened | None:
        """What came of loading it; stays when it is unloaded."""
        facts: Opened | None = self.worker.facts
        return facts

    async def fingerprint(self, dim: int, *, normalize: bool) -> str:
        """Tell vectors apart that do not compare, "" before it was loaded; a thread reads the file where it must."""
        opened = self.opened
        if opened is None:
            return ""
        async with self._hashing:
            if self._recipe is None or self._recipe[0] is not opened:
                self._recipe = (opened, await asyncio.to_thread(_recipe_of, opened))
        whole = self._recipe[1]
        return "" if whole is None else whole.cut(dim, normalize=normalize, spec=self.spec).fingerprint

    @property
    def is_loaded(self) -> bool:
        """Whether it is in memory."""
        return self.worker.is_open

    @property
    def is_loading(self) -> bool:
        """Whether it is on its way."""
        return self._loading is not None and not self._loading.done()

    def is_same(self, reference: Reference) -> bool:
        """Whether a reference with a quantization means the file that runs here."""
        if (
            self.spec is None
            or reference.spec is not self.spec
            or reference.quant is None
            or reference.repo is not None
        ):
            return False
        return self.opened is not None and self.opened.selection.plan.quant == reference.quant

    @property
    def held_bytes(self) -> int:
        """What its plan counts, of the memory that limits it; 0 while it is not in memory."""
        return self.opened.selection.plan.required_bytes if self.is_loaded and self.opened is not None else 0

    @property
    def mapped_bytes(self) -> int:
        """Weights in host memory that are mapped from the file, which the system counts as free."""
        if not self.is_loaded or self.opened is None or self.opened.layout.load_mode != "mmap":
            return 0
        return self.opened.selection.plan.cost.host.weights_bytes

    def used(self, keep_alive_s: float) -> None:
        """Somebody is done with it."""
        self.last_used_s = self._clock()
        self.expires_s = self.last_used_s + keep_alive_s

    @property
    def is_expired(self) -> bool:
        """Whether nobody has wanted it for long enough."""
        return self.is_loaded and not self.n_active and not self.is_loading and self._clock() >= self.expires_s

    @property
    def seconds_left(self) -> float:
        """Until it is unloaded."""
        return max(0.0, self.expires_s - self._clock())

    async def loaded(self, load: Callable[[Hosted], Coroutine[Any, Any, None]]) -> None:
        """Wait until it is in memory; loading goes on when one who waits leaves.

        Raises:
            GGUFEmbedError: it cannot be loaded.
        """
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(load(self))
            self._loading.add_done_callback(self._note)
        await asyncio.shield(self._loading)

    def _note(self, loading: asyncio.Task[None]) -> None:
        """Keep why it could not be loaded; that it was unloaded meanwhile is no trouble."""
        error = None if loading.cancelled() else loading.exception()
        self.trouble = error if isinstance(error, GGUFEmbedError) and not isinstance(error, ClosedError) else None

    async def open(self) -> None:
        """Open it; the caller has seen to the memory.

        Raises:
            GGUFEmbedError: it cannot be opened.
        """
        await asyncio.wrap_future(self.worker.opening(self._progress))
        await self.fingerprint(1, normalize=True)  # the file is read for it now, while it is the one that was loaded

    def _progress(self, n_done: int, n_total: int) -> None:
        self.n_done, self.n_total = n_done, n_total

    # Observer, called in the worker's threads

    def decoded(self, n_texts: int, n_tokens: int, seconds: float) -> None:
        """Count a decode."""
        n_room = 1
        if self.opened is not None:
            n_room = self.opened.selection.plan.n_batch * self.opened.layout.n_side
        self._metrics.decoded(self.name, n_texts, n_tokens, seconds, n_room=n_room)

    def crashed(self, error: WorkerCrashedError) -> None:
        """Count a crash."""
        self._metrics.crashed(self.name, error)


def _recipe_of(opened: Opened) -> Recipe | None:
    """What moves the vectors of a model that was just loaded; None where its file is gone already."""
    try:
        return recipe(opened.selection, opened.path, dim=opened.n_embd)
    except (OSError, GGUFEmbedError) as error:
        logger.warning("%s: its fingerprint is not known: %s", opened.path.name, error)
        return None
