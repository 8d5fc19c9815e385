"""`compare`: one model's vectors against another's, a saved file's or a server's.

It must not know how sides are read or what figures mean.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from gguf_embed.cli.exits import NOT_AS_IT_SHOULD
from gguf_embed.cli.options import fetch_model, is_quiet, json_option, load_model, open_model, plan_options, verbosity
from gguf_embed.cli.tables import print_facts, print_json

__all__ = ["compare_command"]

_PRINTS = {True: "equal", False: "different", None: "not known of both sides, or of other lengths"}


@click.command("compare")
@click.argument("a")
@click.argument("b")
@click.option("-i", "--input", "inputs", type=click.Path(path_type=Path, allow_dash=True, exists=True), multiple=True,
              help="File or folder of texts, - for stdin; may be repeated.")  # fmt: skip
@click.option("--as", "kind", type=click.Choice(["query", "document"]), help="Use the model's prompt for these.")
@click.option("--task", help="Instruction in place of the query prompt's task.")
@click.option("--prompt", help="Put this before each text instead.")
@click.option("-d", "--dim", type=click.IntRange(min=1), help="Compare this many components (MRL).")
@click.option("--at-least", type=click.FloatRange(-1, 1), metavar="COSINE",
              help="Exit with 9 where the mean cosine is below.")  # fmt: skip
@click.option("--worst", "n_worst", type=click.IntRange(min=0), default=5, show_default=True,
              help="Texts to show whose vectors differ most.")  # fmt: skip
@click.option("--api-key", "api_keys", multiple=True, help="Of a server; with two URLs, give two in their order.")
@click.option("--field", default="text", show_default=True, help="Field or column of the texts.")
@click.option("--id", "id_field", help="Field or column of the ids; id if left out and there is one.")
@click.option("--pooling", "pooling_type", type=click.Choice(["last", "mean", "cls"]),
              help="For files whose header does not say.")  # fmt: skip
@click.option("--add-eos/--no-add-eos", default=None, help="For files whose header does not say.")
@click.option("--truncate", type=click.Choice(["error", "end"]), default="error", show_default=True,
              help="What becomes of texts that are too long for a model.")  # fmt: skip
@plan_options
@json_option
@verbosity
def compare_command(
    a: str, b: str, inputs: tuple[Path, ...], at_least: float | None, n_worst: int, as_json: bool, **options: Any
) -> int:
    """Hold the vectors of A against those of B, text by text.

    Each is a model, a file of vectors (.npy, .json, .jsonl, .parquet), or a URL that speaks OpenAI, Ollama or TEI, with
    the model's name after #. No prompt goes before texts unless asked for.

    \b
      gguf-embed compare qwen3-embedding-4b old.npy -i docs.txt
      gguf-embed compare qwen3-embedding-0.6b:Q8_0 \\
          http://localhost:11434#qwen3-embedding:0.6b -i docs.txt --as document
      gguf-embed compare old.parquet new.parquet --at-least 0.99
    """  # noqa: D301 - click reads the backspace itself
    from gguf_embed.quality.comparing import QuestionError, compare  # noqa: PLC0415 - keeps --help quick

    question = _question(a, b, inputs, options)
    try:
        comparison = compare(question, _hooks(options))
    except QuestionError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        print_json(_facts(comparison, n_worst))
    else:
        _print(comparison, n_worst)
    return _exit_code(comparison.agreement.mean, at_least)


def _exit_code(mean: float, at_least: float | None) -> int:
    """Say why it is not 0."""
    if at_least is None or mean >= at_least:
        return 0
    shown = f"{mean:.5f}" if float(f"{mean:.5f}") < at_least else f"{mean:.9f}"
    click.echo(f"mean cosine {shown} is below --at-least {at_least:g}", err=True)
    return NOT_AS_IT_SHOULD


def _question(a: str, b: str, inputs: tuple[Path, ...], options: dict[str, Any]) -> Any:
    """Say what is to be compared; texts are read here."""
    from gguf_embed.encoding import EncodeOptions  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.quality.comparing import Question  # noqa: PLC0415
    from gguf_embed.quality.saved import Fields  # noqa: PLC0415

    field, id_field, task = options.pop("field"), options.pop("id_field"), options.pop("task")
    kind = options.pop("kind") or ("query" if task else None)
    return Question(
        a=a,
        b=b,
        texts=_texts(inputs, field, id_field) if inputs else None,
        options=EncodeOptions(
            prompt_name=kind, prompt=options.pop("prompt"), task=task, truncate=options.pop("truncate")
        ),
        dim=options.pop("dim"),
        api_keys=options.pop("api_keys"),
        fields=Fields(text=field, id=id_field or "id"),
    )


def _texts(inputs: tuple[Path, ...], field: str, id_field: str | None) -> tuple[Any, ...]:
    """Read all texts; one that cannot be read ends it, since rows would be matched wrongly after it."""
    from gguf_embed.jobs.sources import BadRecord, SourceOptions, open_source  # noqa: PLC0415 - keeps --help quick

    given = [sys.stdin.buffer if str(one) == "-" else one for one in inputs]
    records = []
    for record in open_source(given, SourceOptions(field=field, id_field=id_field)):
        if isinstance(record, BadRecord):
            raise record.error
        records.append(record)
    return tuple(records)


def _hooks(options: dict[str, Any]) -> Any:
    """Open models with this command's options, and tell what is done."""
    from gguf_embed.quality.comparing import Hooks  # noqa: PLC0415 - keeps --help quick

    return Hooks(
        open_model=lambda name, dim: open_model(name, {**options, "truncate_dim": dim}),
        load=load_model,
        fetch=fetch_model,
        progress=_progress,
    )


@contextlib.contextmanager
def _progress(name: str, n_texts: int) -> Iterator[Callable[[int], None]]:
    from gguf_embed.progress import counted_progress  # noqa: PLC0415 - keeps --help quick

    if is_quiet():
        yield lambda _: None
        return
    done = 0
    with counted_progress(_short(name, 30), n_texts) as advance:

        def on_texts(n: int) -> None:
            nonlocal done
            done += n
            advance(done, n_texts, f"{done:,}/{n_texts:,} texts")

        yield on_texts


def _facts(comparison: Any, n_worst: int) -> dict[str, Any]:
    """Everything, for programs."""
    figures, keys = comparison.agreement, comparison.keys
    names = ("mean", "least", "percentile_1", "k", "neighbours_kept", "n_sampled", "rank_correlation", "n_pairs")
    return {
        "a": comparison.a,
        "b": comparison.b,
        "n_texts": keys.n,
        "dim": comparison.dim,
        **{name: getattr(figures, name) for name in names},
        "is_same_fingerprint": comparison.is_same_fingerprint,
        "verdict": comparison.verdict,
        "worst": [_row(comparison, i) for i in figures.worst(n_worst)],
        "cosines": [round(one, 7) for one in figures.cosines.tolist()],
        **({"ids": keys.ids} if keys.ids is not None else {}),
    }


def _row(comparison: Any, i: int) -> dict[str, Any]:
    keys = comparison.keys
    row = {"row": i + 1, "cosine": float(comparison.agreement.cosines[i])}
    known = {"id": keys.ids[i] if keys.ids else None, "text": keys.texts[i] if keys.texts else None}
    return row | {name: value for name, value in known.items() if value is not None}


def _print(comparison: Any, n_worst: int) -> None:
    verdict, figures = comparison.verdict, comparison.agreement
    _say(verdict.words[0].upper() + verdict.words[1:])
    for words in (*verdict.causes, *verdict.notes):
        _say(f"- {words[0].upper()}{words[1:]}", indent="  ")
    click.echo()
    for letter, side in (("A", comparison.a), ("B", comparison.b)):
        _say(f"{letter}  {side.name}: {_described(side)}", indent="   ")
    click.echo()
    cut = f", {comparison.dim:,} components" if comparison.dim < max(comparison.a.dim, comparison.b.dim) else ""
    print_facts([
        ("texts", f"{comparison.keys.n:,}{cut}"),
        ("cosine", f"mean {figures.mean:.5f}, least {figures.least:.5f}, 1st percentile {figures.percentile_1:.5f}"),
        ("neighbours", _neighbours(figures)),
        ("rank correlation", _correlation(figures)),
        ("fingerprints", _PRINTS[comparison.is_same_fingerprint]),
    ])  # fmt: skip
    rows = [_row(comparison, i) for i in figures.worst(n_worst)]
    if rows:
        click.echo("\nWorst")
    for row in rows:
        label = row.get("text", "").strip() or (f"id {row['id']}" if "id" in row else f"row {row['row']}")
        click.echo(f"{row['cosine']:8.5f}  {_short(label, shutil.get_terminal_size().columns - 10)}")


def _described(side: Any) -> str:
    """What a side is, in the words of its facts."""
    facts = [str(value) for value in side.facts.values() if value and str(value) != side.name]
    look, prompt = side.look, side.prompt
    lengths = "unit length" if look.is_unit else f"lengths {look.shortest:.3g} to {look.longest:.3g}"
    left_out = f"{side.n_left_out:,} left out" if side.n_left_out else ""
    cut = f"{side.n_truncated:,} cut to its longest" if side.n_truncated else ""
    with_prompt = f"prompt {_short(repr(prompt), 40)}" if prompt else ""
    return ", ".join(filter(None, [" ".join(facts), f"{side.dim:,} components", lengths, with_prompt, left_out, cut]))


def _neighbours(figures: Any) -> str:
    if figures.neighbours_kept is None:
        return "too few texts; give 20 or more"
    kept, k = f"{figures.neighbours_kept:.1%}", figures.k
    if figures.n_sampled < len(figures.cosines):
        return f"{kept} of the {k} nearest of {figures.n_sampled:,} texts drawn are the same"
    return f"{kept} of each text's {k} nearest are the same in both"


def _correlation(figures: Any) -> str:
    if figures.rank_correlation is None:
        return "none: too few texts, or all are alike"
    return f"{figures.rank_correlation:.4f}, of the similarities of {figures.n_pairs:,} pairs"


def _say(words: str, indent: str = "") -> None:
    width = shutil.get_terminal_size().columns
    click.echo(textwrap.fill(words, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))


def _short(text: str, width: int) -> str:
    """A text on one line of so many columns."""
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - keeps --help quick

    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if cell_len(line) <= width else f"{set_cell_size(line, max(width - 3, 1)).rstrip()}..."
