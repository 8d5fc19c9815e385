"""Keeps Ctrl-C from being lost inside a call into C that calls back.

ctypes prints and forgets what a callback raises, and a signal that came meanwhile is raised as soon as a callback
begins. It must not know what is called.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["interrupt_deferred"]


@contextlib.contextmanager
def interrupt_deferred(on_interrupt: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold SIGINT back until the block ends, then let the handler that was there before have it.

    Args:
        on_interrupt: called at once when it comes, to end the block sooner; must not raise. None waits for the end.

    Raises:
        KeyboardInterrupt: after the block, where it came and nobody else handles it.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield  # signals are handled in the main thread alone
        return
    pending: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        pending.append((number, frame))
        if on_interrupt is not None:
            on_interrupt()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if pending:
            previous(*pending[0])
