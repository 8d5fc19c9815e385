"""`bench`: how fast a model is on this machine, beside other programs, and which settings are fastest.

It must not know how anything is measured.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from gguf_embed.cli.exits import usage_errors
from gguf_embed.cli.options import is_quiet, json_option, limits_of, model_argument, plan_options, verbosity
from gguf_embed.cli.tables import print_json, print_table
from gguf_embed.sizes import format_size

__all__ = ["bench_command"]


class _Names(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """Names with commas between them."""

    name = "names"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))


@click.command("bench")
@model_argument
@click.option("--texts", "n_texts", type=click.IntRange(min=1), default=64, show_default=True,
              help="Documents, queries or sentences of a round.")  # fmt: skip
@click.option("--rounds", "n_rounds", type=click.IntRange(min=1), default=5, show_default=True,
              help="Rounds that count; one more warms up.")  # fmt: skip
@click.option(
    "--only", "workloads", type=_Names(), help="Of documents,queries,single,long,sentences; the first four if left out."
)
@click.option("--against", type=_Names(), default="", help="llama-cpp-python,llama-server,sentence-transformers.")
@click.option("--llama-server", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The program; found on PATH if left out.")  # fmt: skip
@click.option(
    "--llama-server-args", type=shlex.split, metavar="ARGS", help="In place of the flags of 'llama-server, tuned'."
)
@click.option("--sentence-transformers-model", help="Its name or folder; the model's own if left out.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the speeds: .png, .svg or .pdf.")
@click.option("--tune", is_flag=True, help="Find the fastest n_batch and threads instead, and remember them.")
@plan_options
@json_option
@verbosity
def bench_command(model: str, plot: Path | None, tune: bool, as_json: bool, **options: Any) -> None:
    """Measure how fast MODEL embeds on this machine.

    Each program runs in a process of its own, over the same texts, round by round in turn; figures are medians.

    \b
      gguf-embed bench qwen3-embedding-0.6b --against llama-server
      gguf-embed bench qwen3-embedding-0.6b --tune
    """  # noqa: D301 - click reads the backspace itself
    if tune and (plot or any(options[name] for name in _OF_COMPARISONS)):
        raise click.UsageError(
            "--tune measures gguf-embed alone; leave out --plot, --only, --against and what is theirs"
        )
    if plot:
        from gguf_embed.bench.plot import check_plot  # noqa: PLC0415 - keeps --help quick

        with usage_errors():
            check_plot(plot)
    if tune:
        _tune(model, options, as_json=as_json)
    else:
        _compare(model, options, plot, as_json=as_json)


_OF_COMPARISONS = ("workloads", "against", "llama_server", "llama_server_args", "sentence_transformers_model")


def _question(model: str, options: dict[str, Any], catalog: Any) -> Any:
    """Say what is to be measured; what is left open is as it is on this machine."""
    from gguf_embed.bench.question import Question  # noqa: PLC0415 - keeps --help quick

    server = options.pop("llama_server") or shutil.which("llama-server")
    arguments, workloads = options.pop("llama_server_args"), options.pop("workloads")
    with usage_errors():
        spec = catalog.parse(model).spec
        theirs = options.pop("sentence_transformers_model") or (spec.base_repo if spec else None)
        return Question(
            model=model,
            limits=limits_of(options),
            llama_server=Path(server) if server else None,
            llama_server_args=None if arguments is None else tuple(arguments),
            sentence_transformers_model=theirs,
            **({"workloads": workloads} if workloads else {}),
            **options,
        )


def _catalog() -> Any:
    from gguf_embed.config import load_config  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.models.catalog import Catalog  # noqa: PLC0415

    return Catalog(load_config())


def _say(words: str) -> None:
    if not is_quiet():
        click.echo(words, err=True)


def _fetch(catalog: Any, question: Any) -> None:
    from gguf_embed.bench.question import fetch  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.progress import download_progress  # noqa: PLC0415

    with usage_errors():
        if is_quiet():
            fetch(catalog, question)
            return
        with download_progress(question.model) as on_progress:
            fetch(catalog, question, on_progress)


def _compare(model: str, options: dict[str, Any], plot: Path | None, *, as_json: bool) -> None:
    from gguf_embed.bench.comparison import compare  # noqa: PLC0415 - keeps --help quick

    catalog = _catalog()
    question = _question(model, options, catalog)
    _fetch(catalog, question)
    comparison = compare(question, on_step=_say)
    if plot:
        from gguf_embed.bench.plot import draw  # noqa: PLC0415 - an extra

        threads = _threads(comparison.systems[0].facts["n_threads"])
        draw(comparison.speeds, plot, title=f"{_title(comparison)}, {threads}")
    if as_json:
        print_json({"command": shlex.join(sys.argv), "question": question, **_facts(comparison)})
    else:
        _print(comparison)


def _facts(comparison: Any) -> dict[str, Any]:
    """Everything but the texts, which the same version makes again."""
    facts = {field.name: getattr(comparison, field.name) for field in dataclasses.fields(comparison)}
    names = ("workload", "prompt", "n_tokens")
    tasks = [{name: getattr(task, name) for name in names} | {"n_texts": len(task.texts)} for task in comparison.tasks]
    return facts | {"tasks": tasks}


def _title(comparison: Any) -> str:
    return f"{comparison.model_id} {comparison.quant} on {comparison.systems[0].facts['device_description']}"


def _threads(n_threads: int) -> str:
    return f"{n_threads} threads" if n_threads > 1 else "1 thread"


def _print(comparison: Any) -> None:
    n_rounds = max(one.round_number for one in comparison.timings)
    rounds = f"medians of {n_rounds} rounds" if n_rounds > 1 else "one round"
    click.echo(f"{_title(comparison)}\n{_threads(comparison.systems[0].facts['n_threads'])}, {rounds}")
    for task in comparison.tasks:
        speeds = [one for one in comparison.speeds if one.workload == task.workload]
        click.echo(f"\n{task.workload}: {_count(task)}")
        rows = [_latencies(one) if task.is_one_by_one else _rates(one) for one in speeds]
        columns = ("p50 ms", "p95 ms", "p50 of rounds") if task.is_one_by_one else ("tokens/s", "texts/s", "of rounds")
        print_table(("system", *columns, "ours is", "agrees"), rows, right=range(1, 6))
    click.echo()
    print_table(
        ("system", "loads in", "memory", "predicted", "version"),
        [
            (one.name, f"{one.load_s:.2f} s", format_size(one.peak_bytes), _predicted(one), one.version)
            for one in comparison.systems
        ],
        right=range(1, 4),
    )


def _rates(speed: Any) -> tuple[str, ...]:
    tokens, texts = _number(speed.tokens_per_s.median), _number(speed.texts_per_s.median)
    return (speed.system, tokens, texts, _range(speed.tokens_per_s), *_beside(speed))


def _latencies(speed: Any) -> tuple[str, ...]:
    p50, p95 = _number(speed.p50_ms.median), _number(speed.p95_ms.median)
    return (speed.system, p50, p95, _range(speed.p50_ms), *_beside(speed))


def _beside(speed: Any) -> tuple[str, str]:
    """How many times as fast ours is, and how alike the vectors are."""
    return (
        "" if speed.ratio is None else f"{speed.ratio:.2f}x",
        "" if speed.agreement is None else f"{speed.agreement:.5f}",
    )


def _count(task: Any) -> str:
    """Say how much a task is."""
    lengths = [len(text.split()) for text in task.texts]
    what = "requests" if task.is_one_by_one else "texts"
    words = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else str(lengths[0])
    after = " after a prompt" if task.prompt else ""
    return f"{len(lengths)} {what} of {words} words{after}, {task.n_tokens:,} tokens a round"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _range(figure: Any) -> str:
    return f"{_number(figure.low)}-{_number(figure.high)}"


def _predicted(system: Any) -> str:
    return format_size(system.facts["host_bytes"]) if "host_bytes" in system.facts else ""


def _tune(model: str, options: dict[str, Any], *, as_json: bool) -> None:
    from gguf_embed.bench.trials import tune  # noqa: PLC0415 - keeps --help quick

    catalog = _catalog()
    question = _question(model, options, catalog)
    _fetch(catalog, question)
    tuned = tune(catalog, question, on_step=_say)
    if as_json:
        print_json(tuned)
    else:
        _print_tuned(tuned)


def _print_tuned(tuned: Any) -> None:
    click.echo(f"{tuned.model_id} {tuned.quant}\n")
    rows = [
        (str(one.n_batch), str(one.n_threads), _number(one.tokens_per_s.median), _range(one.tokens_per_s))
        for one in tuned.found.trials
    ]
    print_table(("n_batch", "n_threads", "tokens/s", "of rounds"), rows, right=range(4))
    default = f"n_batch {tuned.n_batch} with {_threads(tuned.n_threads)}"
    words = " and ".join(
        f"{name} {value}" for name in ("n_batch", "n_threads") if (value := getattr(tuned.found.tuning, name))
    )
    click.echo()
    if not tuned.found.is_steady:
        click.echo("the rounds differ too much to tell; close other programs and run it again. Nothing was changed")
    elif words:
        click.echo(f"{words}: {tuned.found.gain - 1:.0%} faster than {default};\nremembered in {tuned.path}")
    else:
        click.echo(f"the default, {default}, is as good; nothing is remembered")
