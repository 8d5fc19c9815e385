"""What is seen of a job: a bar or lines on stderr, or events as JSON Lines on stdout.

It must not know how jobs run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click

__all__ = ["Counts", "events", "shown"]

_N_BAD_SHOWN = 20
_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Where a job comes from and goes to.

    Attributes:
        source: has n_done, n_total and unit.
        output: for messages.
        is_job: whether it can go on after an interruption.
        draws: whether a bar would be seen and disturb nothing.
    """

    source: Any
    output: str
    is_job: bool
    draws: bool = True


class _Shown:
    """A person's view: a bar or lines, the first bad texts, totals.

    Args:
        counts: of the job.
        advance: draws; None for nothing.
        is_quiet: no words at all.
    """

    def __init__(
        self, counts: Counts, advance: Callable[[int, int | None, str], None] | None, *, is_quiet: bool
    ) -> None:
        self._counts, self._advance, self._is_quiet = counts, advance, is_quiet
        self._n_bad = 0
        self.last_words = ""

    def on_progress(self, progress: Any) -> None:
        if self._advance is not None:
            source = self._counts.source
            total = source.n_total if sys.stderr.isatty() else None  # lines have no end to wait for
            self._advance(min(source.n_done, total or source.n_done), total, _words(progress))

    def on_bad(self, place: str, error: Exception) -> None:  # noqa: ARG002 - the message begins with it
        self._n_bad += 1
        # Not by click, which writes past the bar and into it.
        if self._n_bad <= _N_BAD_SHOWN and not self._is_quiet:
            sys.stderr.write(f"skipped: {error}\n")
        elif self._n_bad == _N_BAD_SHOWN + 1 and not self._is_quiet:
            sys.stderr.write("skipped: more of them, which are only counted from here\n")

    def failed(self, error: Exception) -> None:
        """Nothing: the error is shown at the end."""

    def done(self, progress: Any) -> None:
        if self._counts.is_job:
            self.last_words = _totals(progress)
        elif progress.n_truncated:
            self.last_words = f"warning: {progress.n_truncated:,} texts were cut"

    def stopped(self, progress: Any) -> None:
        kept = f"; {progress.n_kept:,} rows are kept, and the same command goes on" if self._counts.is_job else ""
        self.last_words = f"interrupted{kept}"


@contextlib.contextmanager
def shown(counts: Counts, *, is_quiet: bool) -> Iterator[_Shown]:
    """Show a job to a person, on stderr."""
    from gguf_embed.progress import counted_progress  # noqa: PLC0415 - keeps --help quick

    is_drawn = counts.draws and not is_quiet
    with contextlib.nullcontext() if not is_drawn else counted_progress("embedding", counts.source.n_total) as advance:
        view = _Shown(counts, advance, is_quiet=is_quiet)
        yield view
    if view.last_words and (not is_quiet or view.last_words.startswith("interrupted")):
        click.echo(view.last_words, err=True)


class _Events:
    """A program's view: one JSON object a line."""

    def __init__(self, counts: Counts) -> None:
        self._counts, self._told_s = counts, 0.0
        self._say("start", {"output": counts.output, "total": counts.source.n_total, "unit": counts.source.unit})

    def _say(self, event: str, facts: dict[str, Any]) -> None:
        try:
            click.echo(json.dumps({"event": event, **facts}))
        except BrokenPipeError:  # whoever listened is gone; the job goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def on_progress(self, progress: Any) -> None:
        now = time.monotonic()
        if now - self._told_s >= _EVERY_S:
            self._told_s = now
            self._say("progress", self._facts(progress))

    def _facts(self, progress: Any) -> dict[str, Any]:
        from gguf_embed.fit.host import resident_bytes  # noqa: PLC0415 - keeps --help quick

        source, total = self._counts.source, self._counts.source.n_total
        fraction = min(1.0, source.n_done / total) if total else None
        eta = None
        if fraction and (n_made := progress.n_rows - progress.n_resumed):  # what was resumed took no time
            eta = progress.seconds * progress.n_rows * (1 - fraction) / fraction / n_made
        return dataclasses.asdict(progress) | {
            "tokens_per_second": round(progress.n_tokens / max(progress.seconds, 1e-9), 1),
            "fraction": fraction,
            "eta_seconds": eta,
            "resident_bytes": resident_bytes(),
        }

    def on_bad(self, place: str, error: Exception) -> None:
        self._say("bad", {"place": place, "error": type(error).__name__, "message": str(error)})

    def failed(self, error: Exception) -> None:
        self._say("error", {"error": type(error).__name__, "message": str(error)})

    def done(self, progress: Any) -> None:
        self._say("done", self._facts(progress))

    def stopped(self, progress: Any) -> None:
        self._say("stopped", self._facts(progress))


@contextlib.contextmanager
def events(counts: Counts) -> Iterator[_Events]:
    """Show a job to a program, on stdout."""
    yield _Events(counts)


def _words(progress: Any) -> str:
    from gguf_embed.fit.host import resident_bytes  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.sizes import format_size  # noqa: PLC0415

    speed = progress.n_tokens / max(progress.seconds, 1e-9)
    cached = f"  {progress.n_cached:,} cached" if progress.n_cached else ""
    failed = f"  {progress.n_failed:,} bad" if progress.n_failed else ""
    return f"{progress.n_rows:,} rows  {speed:,.0f} tok/s{cached}{failed}  {format_size(resident_bytes())}"


def _totals(progress: Any) -> str:
    """Say what came of a job in one line."""
    texts = "" if progress.n_rows == progress.n_records else f" of {_number(progress.n_records, 'text')}"
    speed = f" ({progress.n_tokens / max(progress.seconds, 1e-9):,.0f} tokens/s)" if progress.n_decoded else ""
    counts = [
        f"{number:,} {word}"
        for number, word in (
            (progress.n_decoded, f"computed{speed}"),
            (progress.n_cached, "from the cache"),
            (progress.n_resumed, "resumed"),
            (progress.n_rows - progress.n_decoded - progress.n_cached - progress.n_resumed, "repeated"),
            (progress.n_truncated, "cut"),
            (progress.n_failed, "without a vector"),
        )
        if number > 0
    ]
    done = f"{_number(progress.n_rows, 'row')}{texts} in {_duration(progress.seconds)}"
    return ": ".join([done, ", ".join(counts)]) if counts else done


def _number(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
