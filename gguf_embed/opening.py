"""From what a user asked for to a model that runs, in this process or in a worker's.

It joins catalog, selection and loading; it must not know texts or vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gguf_embed.config import Config
from gguf_embed.engine.program import Opener
from gguf_embed.engine.session import Session
from gguf_embed.engine.worker import Worker
from gguf_embed.errors import DoesNotFitError
from gguf_embed.fit import hardware
from gguf_embed.fit.planner import Limits, Plan
from gguf_embed.loading import load_session
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.sources import Resolved
from gguf_embed.native.buffers import Buffer
from gguf_embed.native.layout import Layout
from gguf_embed.selection import Overrides, Selection, select
from gguf_embed.sizes import format_size

__all__ = ["Opened", "Wish", "open_session", "open_worker", "opener_for"]

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A model, and what may be used to run it.

    Attributes:
        config: folders, endpoint, offline.
        text: the reference as typed.
        prefer: which quantizations come first.
        limits: what the plan may use.
        overrides: what the caller knows better than the file.
        resolved: what the reference came to, where that is known; None to find out.
        evictable_bytes: memory that could be made free; a plan that is worse for the lack of it is an error.
        reserved_bytes: host memory that others use although the system counts it as free: files that they map.
    """

    config: Config
    text: str
    prefer: str = "default"
    limits: Limits
    overrides: Overrides = dataclasses.field(default_factory=Overrides)
    resolved: Resolved | None = None
    evictable_bytes: int = 0
    reserved_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What came of a wish.

    Attributes:
        selection: the file and the plan that it runs by.
        path: the file.
        n_embd: components of the model's full vectors.
        max_tokens: longest text.
        layout: as it came to be.
        buffers: what llama.cpp allocated.
    """

    selection: Selection
    path: Path
    n_embd: int
    max_tokens: int
    layout: Layout
    buffers: tuple[Buffer, ...]


def open_session(
    wish: Wish,
    on_progress: OnProgress | None = None,
    *,
    catalog: Catalog | None = None,
    selection: Selection | None = None,
) -> tuple[Session, Opened]:
    """Plan, fetch and load in this process.

    Args:
        wish: what is wanted.
        on_progress: called while downloading, with bytes present and bytes in all.
        catalog: of wish.config, where there is one already.
        selection: as it was chosen before; None to choose now.

    Raises:
        DoesNotFitError: nothing fits, or not as well as it could beside what is evictable.
        GGUFEmbedError: whatever else stands in the way.
    """
    catalog = catalog or Catalog(wish.config)
    if selection is None:
        resolved = wish.resolved or catalog.resolve(wish.text, prefer=wish.prefer)
        machine = hardware.probe()
        free_bytes = max(0, machine.ram_available_bytes - wish.reserved_bytes)
        here = dataclasses.replace(machine, ram_available_bytes=free_bytes)
        selection = select(catalog, resolved, limits=wish.limits, overrides=wish.overrides, here=here)
    _check_room(selection.plan, wish.evictable_bytes)
    path = catalog.fetch(selection.resolved, selection.source, on_progress=on_progress)
    selection, session = load_session(catalog, selection, path, limits=wish.limits, overrides=wish.overrides)
    opened = Opened(
        selection=selection,
        path=session.settings.path,
        n_embd=session.n_embd,
        max_tokens=session.max_tokens,
        layout=session.layout,
        buffers=session.buffers,
    )
    return session, opened


def open_worker(wish: Wish, on_progress: OnProgress | None = None) -> tuple[Worker, Opened]:
    """Grant a wish in a process of its own.

    Args:
        wish: what is wanted.
        on_progress: called while downloading, with bytes present and bytes in all.

    Raises:
        GGUFEmbedError: as `open_session`.
        WorkerCrashedError: the process ended meanwhile.
    """
    worker = Worker(partial(opener_for, wish), name=wish.text)
    try:
        return worker, worker.open(on_progress)
    except BaseException:
        worker.close()
        raise


def opener_for(wish: Wish, opened: Opened | None) -> Opener:
    """Return what a worker's child is to do, picklable.

    Args:
        wish: what is wanted.
        opened: what came of it before; the same file is taken again then, whatever memory there is: another
            quantization's vectors would not compare.
    """
    if opened is None:
        return partial(_open, wish)
    selection = opened.selection
    same = dataclasses.replace(selection.source, path=opened.path)
    resolved = dataclasses.replace(selection.resolved, sources=(same,), others=())
    return partial(_open, dataclasses.replace(wish, resolved=resolved))


def _open(wish: Wish, on_progress: OnProgress) -> tuple[Session, Opened]:
    return open_session(wish, on_progress)


def _check_room(plan: Plan, evictable_bytes: int) -> None:
    """Refuse a plan that is worse than it would be if others made room: a quantization must not hang on its neighbours.

    Raises:
        DoesNotFitError: a better quantization, or more of this one on a device, would fit then.
    """
    lost = [
        one.shortfall_bytes for one in plan.rejected if one.is_better and 0 < one.shortfall_bytes <= evictable_bytes
    ]
    if evictable_bytes and (lost or plan.placement == "partial"):
        raise DoesNotFitError(
            f"{plan.model_id} would run better with {format_size(max(lost, default=0))} more memory, which other "
            "models hold",
            required_bytes=plan.required_bytes + max(lost, default=0),
            available_bytes=plan.available_bytes,
        )
