"""`embed` and `similarity`.

They must not know formats, plans or models beyond what they pass on.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gguf_embed.cli.exits import usage_errors
from gguf_embed.cli.options import is_quiet, json_option, load_model, model_option, open_model, plan_options, verbosity

__all__ = ["embed_command", "similarity_command"]

_FORMATS = ("json", "jsonl", "npy", "parquet", "base64")
_PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


@click.command("embed")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("-i", "--input", "source", type=click.Path(path_type=Path, allow_dash=True, exists=True, dir_okay=False),
              help="File of texts, one a line (.jsonl: JSON Lines), - for stdin.")  # fmt: skip
@model_option
@click.option("--as", "kind", type=click.Choice(["query", "document"]), help="Use the model's prompt for these.")
@click.option("--task", help="Instruction in place of the query prompt's task.")
@click.option("--prompt", help="Put this before each text instead.")
@click.option("-d", "--dim", "truncate_dim", type=int, help="Keep this many components (MRL).")
@click.option("-f", "--format", "output_format", type=click.Choice(_FORMATS), help="Default: by -o's name, else json.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write here instead of stdout.")
@click.option("--truncate", type=click.Choice(["error", "end"]), default="error", show_default=True,
              help="What to do with over-long texts.")  # fmt: skip
@click.option("--precision", type=click.Choice(_PRECISIONS), default="float32", show_default=True)
@click.option("--no-normalize", is_flag=True, help="Leave rows at the model's length.")
@click.option("--pooling", "pooling_type", type=click.Choice(["last", "mean", "cls"]),
              help="For a file whose header does not say.")  # fmt: skip
@click.option("--add-eos/--no-add-eos", default=None, help="For a file whose header does not say.")
@plan_options
@verbosity
def embed_command(
    texts: tuple[str, ...], source: Path | None, output: Path | None, output_format: str | None, model: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Turn texts into vectors.

    Texts come from the command line, from a file, or from stdin; unit vectors go to stdout or to a file.

    \b
      gguf-embed embed "The capital of China is Beijing."
      gguf-embed embed -i docs.txt -o docs.npy --as document -d 512
      echo "What is the capital of China?" | gguf-embed embed --as query
    """  # noqa: D301 - click reads the backspace itself
    from gguf_embed.jobs.sinks import check_format, format_of_name, write_embeddings  # noqa: PLC0415 - keeps --help quick

    output_format = output_format or (format_of_name(output) if output else "json")
    if output_format is None:
        raise click.UsageError(f"{output} ends in no format that is known; add -f {'|'.join(_FORMATS)}")
    if output is None and output_format in ("npy", "parquet") and sys.stdout.isatty():
        raise click.UsageError(f"{output_format} is no text; add -o FILE")
    if output is not None and not output.parent.is_dir():
        raise click.UsageError(f"there is no folder {output.parent}")
    check_format(output_format)
    records = _records(texts, source)
    report = _report([record.text for record in records], model, options)
    target = output or sys.stdout.buffer
    is_one = len(texts) == 1
    write_embeddings(target, report.embeddings, records, output_format=output_format, is_one=is_one)


def _records(texts: tuple[str, ...], source: Path | None) -> Sequence[Any]:
    from gguf_embed.jobs.sources import Record, is_jsonl_name, read_records  # noqa: PLC0415 - keeps --help quick

    if texts and source is not None:
        raise click.UsageError("texts come from the command line or from -i, not from both")
    if texts:
        return [Record(text=text) for text in texts]
    if source is None and sys.stdin.isatty():
        raise click.UsageError("nothing to embed; give a TEXT, or -i FILE, or pipe lines in")
    if source is None or str(source) == "-":
        return list(read_records(sys.stdin.buffer, name="stdin", is_jsonl=False))
    with source.open("rb") as stream:
        return list(read_records(stream, name=str(source), is_jsonl=is_jsonl_name(source)))


def _report(texts: list[str], model: str | None, options: dict[str, Any]) -> Any:
    from gguf_embed.encoding import EncodeOptions  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.progress import texts_progress  # noqa: PLC0415
    from gguf_embed.prompts import resolve_prompt  # noqa: PLC0415

    task = options.pop("task")
    kind = options.pop("kind") or ("query" if task else None)
    with usage_errors():
        how = EncodeOptions(
            prompt_name=kind,
            prompt=options.pop("prompt"),
            task=task,
            normalize_embeddings=not options.pop("no_normalize"),
            truncate=options.pop("truncate"),
            precision=options.pop("precision"),
        )
    with open_model(model, options) as embedder:
        with usage_errors():
            resolve_prompt(embedder.prompts, prompt_name=how.prompt_name, prompt=how.prompt, task=how.task)
            how.check_n_texts(len(texts))
        if texts:
            load_model(embedder)
        show = not is_quiet() and len(texts) > 1 and sys.stderr.isatty()
        with texts_progress(len(texts)) if show else contextlib.nullcontext() as on_batch:
            return embedder.report(texts, how, on_batch=on_batch)


@click.command("similarity")
@click.argument("texts", nargs=-1, required=True, metavar="A B...")
@model_option
@click.option("--query", is_flag=True, help="A is a search query and the others are documents: use their prompts.")
@json_option
@plan_options
@verbosity
def similarity_command(texts: tuple[str, ...], query: bool, as_json: bool, model: str | None, **options: Any) -> None:
    """Compare texts: cosine of the first with each of the others.

    \b
      gguf-embed similarity "a cat on a mat" "a kitten on a rug" "stock prices"
    """  # noqa: D301 - click reads the backspace itself
    if len(texts) < 2:
        raise click.UsageError("give at least two texts")
    with open_model(model, options) as embedder:
        load_model(embedder)
        first = (embedder.encode_query if query else embedder.encode)(texts[0])
        others = (embedder.encode_document if query else embedder.encode)(list(texts[1:]))
        scores = embedder.similarity(first, others)[0].tolist()
    if as_json:
        rows = [{"a": texts[0], "b": text, "cosine": score} for text, score in zip(texts[1:], scores, strict=True)]
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    for text, score in sorted(zip(texts[1:], scores, strict=True), key=lambda pair: -pair[1]):
        click.echo(f"{score:7.4f}  {text}")
