"""A download in a process of its own: what it needs of memory goes when it is done.

It must not know routes, or who asked for it.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from gguf_embed.engine.worker import Worker
from gguf_embed.models.catalog import Catalog
from gguf_embed.opening import Wish
from gguf_embed.selection import choose_source

__all__ = ["pull"]

_LOOK_S = 0.2


async def pull(wish: Wish) -> AsyncIterator[tuple[int, int]]:
    """Fetch the file of a wish: the one that is named, or the one that fits here.

    Args:
        wish: what is wanted.

    Yields:
        Bytes present and bytes in all, now and then; what is here already yields nothing.

    Raises:
        GGUFEmbedError: it cannot be had.
    """
    told: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    worker = Worker(partial(_fetcher, wish), name=f"the download of {wish.text}")
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
    finally:
        await asyncio.to_thread(worker.close)


def _fetcher(wish: Wish, _facts: Any) -> Callable[..., tuple[None, str]]:
    return partial(_fetch, wish)


def _fetch(wish: Wish, on_progress: Callable[[int, int], None]) -> tuple[None, str]:
    """Fetch in the child; there is no session to open."""
    catalog = Catalog(wish.config)
    resolved = catalog.resolve(wish.text, prefer=wish.prefer)
    source = choose_source(catalog, resolved, limits=wish.limits, overrides=wish.overrides)
    return None, catalog.fetch(resolved, source, on_progress=on_progress).name
