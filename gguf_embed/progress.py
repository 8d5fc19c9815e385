"""Progress bars on stderr: bytes of a download, texts and tokens of a run.

It must not know what is downloaded or embedded. Where stderr is no terminal, a plain line every few seconds.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from gguf_embed.sizes import format_size

__all__ = ["counted_progress", "download_progress", "tensors_progress", "texts_progress"]

_PLAIN_EVERY_S = 5.0


@contextlib.contextmanager
def texts_progress(n_texts: int) -> Iterator[Callable[[int, int], None]]:
    """Show texts done and tokens a second.

    Args:
        n_texts: how many there are.

    Yields:
        To be called after each batch with its texts and tokens.
    """
    begun, done, n_tokens = time.monotonic(), 0, 0

    def counts() -> str:
        return f"{n_tokens / max(time.monotonic() - begun, 1e-9):,.0f} tokens/s"

    with counted_progress("embedding", n_texts) as advance:

        def on_batch(batch_texts: int, batch_tokens: int) -> None:
            nonlocal done, n_tokens
            done, n_tokens = done + batch_texts, n_tokens + batch_tokens
            advance(done, n_texts, f"{done:,}/{n_texts:,} texts  {counts()}")

        yield on_batch


@contextlib.contextmanager
def download_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show bytes present, bytes in all and bytes a second.

    Args:
        label: the file's name.

    Yields:
        To be called with bytes present and bytes in all.
    """
    first: tuple[float, int] | None = None

    with counted_progress(label, None) as advance:

        def on_bytes(present: int, total: int) -> None:
            nonlocal first
            now = time.monotonic()
            first = first or (now, present)
            speed = (present - first[1]) / max(now - first[0], 1e-9)
            words = f"{format_size(present)} of {format_size(total)}"
            advance(present, total, f"{words}  {format_size(int(speed))}/s" if now > first[0] else words)

        yield on_bytes


@contextlib.contextmanager
def tensors_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show tensors done.

    Args:
        label: what is made.

    Yields:
        To be called with tensors done and tensors in all.
    """
    with counted_progress(label, None) as advance:
        yield lambda done, total: advance(done, total, f"{done}/{total} tensors")


@contextlib.contextmanager
def counted_progress(label: str, total: int | None) -> Iterator[Callable[[int, int | None, str], None]]:
    """Show how much is done in the caller's words.

    Args:
        label: what is done.
        total: of it, None where that is not known.

    Yields:
        advance(completed, total, words); nothing is drawn before it is called.
    """
    if not (sys.stderr is not None and sys.stderr.isatty()):
        yield _plain_lines(label)
        return
    from rich.console import Console  # noqa: PLC0415 - 60 ms, and only for a terminal
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(compact=True),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task(label, total=total, words="")

    def advance(completed: int, whole: int | None, words: str) -> None:
        progress.start()
        progress.update(task, completed=completed, total=whole, words=words)

    try:
        yield advance
    finally:
        progress.stop()


def _plain_lines(label: str) -> Callable[[int, int | None, str], None]:
    last, is_done = time.monotonic(), False

    def advance(completed: int, whole: int | None, words: str) -> None:
        nonlocal last, is_done
        is_late = time.monotonic() - last >= _PLAIN_EVERY_S
        if sys.stderr is not None and (is_late or (completed == whole and not is_done)):
            last, is_done = time.monotonic(), completed == whole
            sys.stderr.write(f"{label}: {words}\n")

    return advance
