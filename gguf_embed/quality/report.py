"""An evaluation for a reader: tables, what their columns mean, Markdown, and one HTML file.

It must not know how anything is measured or drawn.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gguf_embed.errors import StorageError
from gguf_embed.quality.evaluation import MEASURES, Evaluation, Judged
from gguf_embed.quality.page import PAGE
from gguf_embed.sizes import format_size

__all__ = ["TITLES", "Table", "legend", "summary", "tables", "to_facts", "to_html", "to_markdown", "write_report"]

GOOD_SHARE = 0.99  # of what the reference reaches: what the summary looks for

# What a column is called, its digits and what it means; in the order of the table.
_COLUMNS = (
    ("cosine_mean", "cosine", 5, "mean cosine of a text's vector with that of {reference} at the same dim"),
    ("cosine_min", "min", 5, "the least of these cosines"),
    ("neighbours_kept", "top 10", 4, "share of a text's ten nearest that {reference} at full length finds too"),
    (
        "rank_correlation",
        "ranks",
        4,
        "rank correlation of all cosines between texts with those of {reference} at full length",
    ),
    ("spearman", "pairs", 4, "rank correlation of the cosines of pairs with their scores"),
    ("ndcg_at_10", "nDCG@10", 4, "how far up the relevant documents are among the first ten"),
    ("recall_at_10", "recall@10", 4, "share of the relevant documents that are among the first ten"),
)
TITLES = {
    "neighbours_kept": "ten nearest kept",
    "spearman": "pairs, Spearman",
    "ndcg_at_10": "nDCG@10",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Words in rows and columns; all but the first column are numbers.

    Attributes:
        title: above it, "" for the first one.
        columns: headings.
        rows: as many words as there are columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(evaluation: Evaluation) -> tuple[Table, ...]:
    """Set an evaluation in tables: quantizations, mteb's tasks, then each measure by dim."""
    return (_of_quants(evaluation), *_of_tasks(evaluation), *_of_dims(evaluation))


def legend(evaluation: Evaluation) -> tuple[tuple[str, str], ...]:
    """Say what the columns mean that are there: heading and words."""
    columns = tuple(
        (title, words.format(reference=evaluation.reference))
        for name, title, _, words in _COLUMNS
        if _is_measured(evaluation, name)
    )
    return (*columns, *_of_kept(evaluation))


def summary(evaluation: Evaluation) -> str:
    """Say in a sentence which is the smallest that costs next to nothing; "" where nothing was compared."""
    reference = evaluation.quants[0]
    smaller = [
        (one, one.score)
        for one in evaluation.quants[1:]
        if one.score is not None and one.size_bytes < reference.size_bytes
    ]
    if good := [(one, score) for one, score in smaller if score >= GOOD_SHARE]:
        one, score = min(good, key=lambda pair: pair[0].size_bytes)
        return (
            f"{one.quant} is the smallest that keeps {GOOD_SHARE:.0%} of what {reference.quant} reaches: {score:.1%} "
            f"in {format_size(one.size_bytes)} instead of {format_size(reference.size_bytes)}"
        )
    if smaller:
        one, score = max(smaller, key=lambda pair: pair[1])
        return (
            f"None of the smaller ones keeps {GOOD_SHARE:.0%} of what {reference.quant} reaches; {one.quant} comes "
            f"nearest with {score:.1%}"
        )
    return ""


def to_facts(evaluation: Evaluation) -> dict[str, Any]:
    """Everything for a program, with the versions that it was measured with."""
    return {**dataclasses.asdict(evaluation), "versions": _versions()}


def to_markdown(evaluation: Evaluation) -> str:
    """Write the tables and what belongs to them as Markdown."""
    lines = [f"# What quantization costs {evaluation.model_id}", ""]
    if words := summary(evaluation):
        lines += [f"{words}.", ""]
    for table in tables(evaluation):
        lines += [f"## {table.title}", ""] if table.title else []
        lines += [_markdown_row(table.columns), _markdown_row(["---", *["---:"] * (len(table.columns) - 1)])]
        lines += [*map(_markdown_row, table.rows), ""]
    lines += [f"- **{title}**: {words}" for title, words in legend(evaluation)]
    lines += ["", *(f"- {line}" for line in _details(evaluation)), ""]
    return "\n".join(lines)


def to_html(evaluation: Evaluation, plots: Sequence[tuple[str, str]]) -> str:
    """Write one file that needs no other.

    Args:
        evaluation: what to show.
        plots: words for who cannot see it, and SVG, of each picture.
    """
    first, *others = tables(evaluation)
    words = summary(evaluation)
    figures = (f'<figure role="img" aria-label="{escape(label)}">{svg}</figure>' for label, svg in plots)
    terms = "".join(f"<dt>{escape(title)}</dt><dd>{escape(said)}</dd>" for title, said in legend(evaluation))
    return PAGE.substitute(
        title=escape(f"What quantization costs {evaluation.model_id}"),
        summary=f'<p class="summary">{escape(words)}.</p>' if words else "",
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in evaluation.notes),
        table=_html_table(first),
        legend=f"<dl>{terms}</dl>",
        plots="".join(figures),
        sweeps="".join(f"<section><h2>{escape(one.title)}</h2>{_html_table(one)}</section>" for one in others),
        details="".join(f"<li>{escape(line)}</li>" for line in _details(evaluation, with_notes=False)),
    )


def write_report(path: Path, text: str) -> None:
    """Write a report whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8", newline="\n")
        fresh.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}", path=path) from error
    finally:
        fresh.unlink(missing_ok=True)


def _of_quants(evaluation: Evaluation) -> Table:
    shown = [(name, title, digits) for name, title, digits, _ in _COLUMNS if _is_measured(evaluation, name)]
    rows = (
        (one.quant, format_size(one.size_bytes), *(_number(getattr(one.figures[0], name), n) for name, _, n in shown))
        for one in evaluation.quants
    )
    return Table(title="", columns=("quant", "size", *(title for _, title, _ in shown)), rows=tuple(rows))


def _of_kept(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Say what the one number is that the summary speaks of."""
    parts = [title for name, title, _, _ in _COLUMNS if name in MEASURES and _is_measured(evaluation, name)]
    parts += ["mteb's scores"] if evaluation.quants[0].tasks else []
    if not parts or all(one.score is None for one in evaluation.quants):
        return
    listed, of = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])), f"of {evaluation.reference}'s"
    if len(parts) == 1 and not evaluation.quants[0].tasks:
        yield "kept", f"{listed} as a share {of}, at most 1"
    else:
        yield "kept", f"mean of {listed} as shares {of}, each at most 1"


def _of_tasks(evaluation: Evaluation) -> Iterator[Table]:
    if names := [name for name, _ in evaluation.quants[0].tasks]:
        rows = ((one.quant, *(_number(score, 4) for _, score in one.tasks)) for one in evaluation.quants)
        yield Table(title="mteb, main scores", columns=("quant", *names), rows=tuple(rows))


def _of_dims(evaluation: Evaluation) -> Iterator[Table]:
    if len(evaluation.dims) == 1:
        return
    for name in MEASURES:
        if _is_measured(evaluation, name):
            rows = ((one.quant, *_along(one, name)) for one in evaluation.quants)
            yield Table(
                title=f"{TITLES[name]}, by dim", columns=("quant", *map(str, evaluation.dims)), rows=tuple(rows)
            )


def _along(judged: Judged, name: str) -> list[str]:
    return [_number(getattr(figures, name), 4) for figures in judged.figures]


def _is_measured(evaluation: Evaluation, name: str) -> bool:
    return getattr(evaluation.quants[0].figures[0], name) is not None


def _number(value: float | None, n_digits: int) -> str:
    return "-" if value is None else f"{value:.{n_digits}f}"


def _details(evaluation: Evaluation, *, with_notes: bool = True) -> Iterator[str]:
    yield from evaluation.notes if with_notes else ()
    yield from (f"Measured on {line}." for line in evaluation.measured_on)
    for one in evaluation.quants:
        kept = f", keeps {one.score:.2%} on average" if one.score is not None else ""
        yield f"{one.quant}: {one.file}, {one.size_bytes:,} bytes, sha256 {one.sha256}{kept}."
    yield ", ".join(f"{name} {number}" for name, number in _versions().items()) + "."


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("gguf-embed", "llama-cpp-python", "numpy")}


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for first, *cells in table.rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
