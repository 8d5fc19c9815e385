"""Tables and facts on stdout, for people and as JSON.

It must not know where the facts come from.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

# For pipes: a row stays a line, however long its path.
_UNFOLDED_WIDTH = 10_000

__all__ = ["print_facts", "print_json", "print_table"]


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> None:
    """Print a table without lines.

    Args:
        columns: headings.
        rows: as many texts as there are columns.
        right: columns that are aligned to the right.
    """
    from rich.console import Console  # noqa: PLC0415 - 60 ms, and only where a table is printed
    from rich.table import Table  # noqa: PLC0415

    numbers = set(right)
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _UNFOLDED_WIDTH
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    with console.capture() as capture:  # a reader that left is the group's to handle; rich would exit with 1
        console.print(table)
    click.echo(capture.get(), nl=False)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair a line."""
    pairs = list(facts)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {value}".rstrip())


def print_json(value: Any) -> None:
    """Print dataclasses, paths and plain values as JSON."""
    click.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
