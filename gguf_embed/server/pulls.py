"""A download that a client asked for, in a process of its own: what it needs of memory goes when it is done.

It must not know a dialect's words for it.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from gguf_embed.engine.worker import Worker
from gguf_embed.models.catalog import Catalog
from gguf_embed.opening import Wish
from gguf_embed.selection import choose_source
from gguf_embed.server.hosted import Hosted
from gguf_embed.server.pool import Pool
from gguf_embed.server.refusals import Refusal

__all__ = ["Pull", "fetch"]

_LOOK_S = 0.2
_N_PULLS = 2


class Pull:
    """Fetching one model.

    Args:
        pool: told when there is a new file.
        text: the reference.

    Attributes:
        name: of the model, for the client.

    Raises:
        Refusal: nothing answers to the reference, or it is a path.
    """

    def __init__(self, pool: Pool, text: str) -> None:
        self._pool = pool
        reference = pool.parse(text)
        self.name = reference.spec.model_id if reference.spec is not None else str(reference.repo)
        self._wish = Wish(
            config=pool.catalog.config, text=reference.text, prefer=pool.settings.prefer, limits=pool.settings.limits
        )

    async def finish(self) -> None:
        """Fetch it.

        Raises:
            GGUFEmbedError: it cannot be had.
        """
        async for _ in self.progress():
            pass

    async def progress(self) -> AsyncIterator[tuple[int, int]]:
        """Fetch it, yielding bytes present and bytes in all.

        Raises:
            GGUFEmbedError: it cannot be had.
        """
        if self._pool.n_pulls >= _N_PULLS:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS, f"{_N_PULLS} downloads run already; wait for one", retry_after_s=30
            )
        self._pool.n_pulls += 1
        told: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        worker = Worker(partial(_fetcher, self._wish), name=f"the download of {self.name}")
        try:
            done = asyncio.wrap_future(worker.opening(lambda n_done, n_total: told.put((n_done, n_total))))
            while not done.done():
                await asyncio.wait({done}, timeout=_LOOK_S)
                last = None
                while not told.empty():
                    last = told.get()
                if last is not None:
                    yield last
            done.result()
            self._pool.forget_files()
        finally:
            self._pool.n_pulls -= 1
            await asyncio.to_thread(worker.close)


async def fetch(pool: Pool, hosted: Hosted) -> None:
    """Fetch a model that is not on this disk, telling its progress by its own figures.

    Raises:
        GGUFEmbedError: it cannot be had.
    """
    if hosted.reference.path is None and not pool.is_on_disk(hosted.reference.text):
        async for n_done, n_total in Pull(pool, hosted.reference.text).progress():
            hosted.n_done, hosted.n_total = n_done, n_total


def _fetcher(wish: Wish, _facts: Any) -> Callable[..., tuple[None, str]]:
    return partial(_fetch, wish)


def _fetch(wish: Wish, on_progress: Callable[[int, int], None]) -> tuple[None, str]:
    """Fetch in the child; there is no session to open."""
    catalog = Catalog(wish.config)
    resolved = catalog.resolve(wish.text, prefer=wish.prefer)
    source = choose_source(catalog, resolved, limits=wish.limits, overrides=wish.overrides)
    return None, catalog.fetch(resolved, source, on_progress=on_progress).name
