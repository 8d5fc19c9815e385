"""`eval`: what a quantization costs in quality, beside the best one there is.

It must not know how anything is measured.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from gguf_embed.cli.exits import usage_errors
from gguf_embed.cli.options import is_quiet, json_option, limit_options, limits_of, model_argument, verbosity
from gguf_embed.cli.tables import print_json, print_table

__all__ = ["eval_command"]

_REPORTS = (".html", ".md", ".png")


def _names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Read names with commas between them."""
    return tuple(dict.fromkeys(name.strip() for name in (value or "").split(",") if name.strip()))


def _dims(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    names = _names(ctx, param, value)
    if bad := [name for name in names if not name.isdecimal() or int(name) < 1]:
        raise click.BadParameter(f"{bad[0]!r} is no dim; write them like 384,256,128")
    return tuple(map(int, names)) or None


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("eval")
@model_argument
@click.option("--quants", callback=_names, metavar="Q,Q...", help="Which; those on this disk if left out.")
@click.option("--reference", metavar="QUANT", help="What to hold them against; the best of them if left out.")
@click.option("--make", "makes", is_flag=True, help="Quantize here those that are not on this disk.")
@click.option("--dims", callback=_dims, metavar="N,N...", help="Also at these; those the model was trained for, by "
              "halves, if left out.")  # fmt: skip
@click.option("--texts", type=click.Path(path_type=Path, exists=True), multiple=True,
              help="File or folder of texts, as for embed -i; may be repeated.")  # fmt: skip
@click.option("--pairs", type=_FILE, help="Two texts and a score a line: .tsv, .csv, .jsonl (STS).")
@click.option("--retrieval", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder with corpus.jsonl, queries.jsonl, qrels (BEIR).")  # fmt: skip
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="A task of mteb; may be repeated.")
@click.option("--truncate", type=click.Choice(["error", "end"]), default="error", show_default=True,
              help="What becomes of texts that are too long.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Report: .html, .md or .png.")
@limit_options
@json_option
@verbosity
def eval_command(model: str, output: Path | None, as_json: bool, **options: Any) -> None:
    """Measure what the quantizations of MODEL cost in quality.

    Each is held against the best one: on texts of yours, on pairs with scores, on searches with judgements, on tasks
    of mteb; on a small sample of this project's own if you name none. What is found is kept for --prefer measured.

    \b
      gguf-embed eval qwen3-embedding-0.6b --texts notes.txt -o report.html
      gguf-embed eval all-minilm-l6-v2 --quants F16,Q8_0,Q4_K_M --make
    """  # noqa: D301 - click reads the backspace itself
    _check_output(output)
    evaluation, kept_in = _evaluate(model, options)
    if output is not None:
        _write(evaluation, output)
    if as_json:
        from gguf_embed.quality.report import to_facts  # noqa: PLC0415 - keeps --help quick

        print_json(to_facts(evaluation))
    else:
        _print(evaluation, kept_in)
    if output is not None and not is_quiet():
        click.echo(f"report in {output}", err=True)


def _check_output(output: Path | None) -> None:
    """Refuse what cannot be written before anything is measured."""
    if output is None:
        return
    if output.suffix.lower() not in _REPORTS:
        raise click.UsageError(f"{output} does not end in {', '.join(_REPORTS)}")
    if not output.parent.is_dir():
        raise click.UsageError(f"there is no folder {output.parent}")
    if output.suffix.lower() != ".md":
        from gguf_embed.quality.plots import check_plots  # noqa: PLC0415 - keeps --help quick

        check_plots()


def _evaluate(model: str, options: dict[str, Any]) -> tuple[Any, Path | None]:
    """Read what is measured on, get the files, measure, and keep what was found; also where it is kept."""
    from gguf_embed.config import load_config  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.embedder import Embedder  # noqa: PLC0415
    from gguf_embed.models.catalog import Catalog  # noqa: PLC0415
    from gguf_embed.quality.candidates import Wish, find_subject, get_candidates  # noqa: PLC0415
    from gguf_embed.quality.evaluation import Settings, check_comparable, evaluate, keep  # noqa: PLC0415

    limits, n_threads = limits_of(options), options.get("n_threads")
    config = load_config()
    catalog = Catalog(config)
    material, run_tasks = _material(options)
    wish = Wish(model=model, quants=options["quants"], reference=options["reference"], makes=options["makes"])
    subject = find_subject(catalog, wish)
    check_comparable(subject, material)
    settings = Settings(dims=options["dims"], truncate=options["truncate"], run_tasks=run_tasks, watch=_watch_texts)
    candidates = get_candidates(
        catalog, subject, makes=wish.makes, on_bytes=_watch_bytes, on_tensors=_watch_tensors, n_threads=n_threads or 0
    )

    def open_planned(one: Any) -> Any:
        embedder = Embedder(one.model, limits=limits)
        with usage_errors():  # a device that is not here, a cache that this model has not
            _ = embedder.plan
        return embedder

    evaluation = evaluate(subject, candidates, material, open_planned, settings=settings)
    return evaluation, keep(config.state_dir, subject, evaluation)


def _material(options: dict[str, Any]) -> tuple[Any, Any]:
    """Read what is measured on, and how mteb's tasks are run where there are some."""
    from gguf_embed.quality.datasets import (  # noqa: PLC0415 - keeps --help quick
        Material,
        load_pairs,
        load_retrieval,
        load_sample,
        load_texts,
    )

    texts, pairs, retrieval, tasks = (options[name] for name in ("texts", "pairs", "retrieval", "tasks"))
    if not (texts or pairs or retrieval or tasks):
        return load_sample(), None
    material = Material(
        texts=load_texts(texts) if texts else None,
        pairs=load_pairs(pairs) if pairs else None,
        retrieval=load_retrieval(retrieval) if retrieval else None,
        tasks=tasks,
    )
    if not tasks:
        return material, None
    from gguf_embed.quality.tasks import find_tasks, load_tasks, run_tasks  # noqa: PLC0415 - an extra

    with usage_errors():
        found = find_tasks(tasks)
    load_tasks(found)
    return material, lambda model: run_tasks(model, found, truncate=options["truncate"])


@contextlib.contextmanager
def _watch_texts(quant: str, n_texts: int) -> Iterator[Callable[[int, int], None] | None]:
    from gguf_embed.progress import counted_progress  # noqa: PLC0415 - keeps --help quick

    if is_quiet():
        yield None
        return
    done = 0
    with counted_progress(f"embedding with {quant}", n_texts) as advance:

        def on_batch(n_batch: int, _n_tokens: int) -> None:
            nonlocal done
            done += n_batch
            advance(done, n_texts, f"{done:,}/{n_texts:,} texts")

        yield on_batch


def _watch_bytes(label: str) -> Any:
    from gguf_embed.progress import download_progress  # noqa: PLC0415 - keeps --help quick

    return contextlib.nullcontext() if is_quiet() else download_progress(label)


def _watch_tensors(label: str) -> Any:
    from gguf_embed.progress import tensors_progress  # noqa: PLC0415 - keeps --help quick

    return contextlib.nullcontext() if is_quiet() else tensors_progress(label)


def _write(evaluation: Any, output: Path) -> None:
    from gguf_embed.quality.report import to_html, to_markdown, write_report  # noqa: PLC0415 - keeps --help quick

    if output.suffix.lower() == ".md":
        write_report(output, to_markdown(evaluation))
        return
    from gguf_embed.quality.plots import draw_png, draw_svg  # noqa: PLC0415 - an extra

    if output.suffix.lower() == ".png":
        draw_png(evaluation, output)
    else:
        write_report(output, to_html(evaluation, draw_svg(evaluation)))


def _print(evaluation: Any, kept_in: Path | None) -> None:
    from gguf_embed.quality.report import legend, summary, tables  # noqa: PLC0415 - keeps --help quick

    click.echo(evaluation.model_id)
    for line in evaluation.measured_on:
        click.echo(f"  {line}")
    click.echo()
    for number, table in enumerate(tables(evaluation)):
        if table.title:
            click.echo(f"\n{table.title}")
        print_table(table.columns, table.rows, right=range(1, len(table.columns)))
        if number == 0:
            click.echo()
            for title, words in legend(evaluation):
                click.echo(textwrap.fill(f"{title:<9} {words}", 80, subsequent_indent=" " * 10))
    for note in evaluation.notes:
        click.echo(f"\n{textwrap.fill(note, 80)}")
    if words := summary(evaluation):
        click.echo(f"\n{textwrap.fill(words, 80)}")
    if kept_in is not None and not is_quiet():
        click.echo(f"kept for --prefer measured in {kept_in}", err=True)
