"""`embed` and `similarity`.

They must not know formats, plans or models beyond what they pass on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from gguf_embed.cli.corpus import READING, Corpus, chunking_of, input_options, long_text_options, run_corpus
from gguf_embed.cli.exits import usage_errors
from gguf_embed.cli.options import json_option, load_model, model_option, open_model, plan_options, verbosity

__all__ = ["embed_command", "similarity_command"]

_FORMATS = ("json", "jsonl", "npy", "parquet", "base64")
_PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")


@click.command("embed")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("-i", "--input", "inputs", type=click.Path(path_type=Path, allow_dash=True, exists=True), multiple=True,
              help="File or folder of texts, - for stdin; may be repeated.")  # fmt: skip
@model_option
@click.option("--as", "kind", type=click.Choice(["query", "document"]), help="Use the model's prompt for these.")
@click.option("--task", help="Instruction in place of the query prompt's task.")
@click.option("--prompt", help="Put this before each text instead.")
@click.option("-d", "--dim", "truncate_dim", type=int, help="Keep this many components (MRL).")
@click.option("-f", "--format", "output_format", type=click.Choice(_FORMATS), help="Default: by -o's name, else json.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write here instead of stdout.")
@long_text_options
@click.option("--precision", type=click.Choice(_PRECISIONS), default="float32", show_default=True)
@click.option("--ranges", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="For int8, uint8: the .meta.json of vectors to compare with.")  # fmt: skip
@click.option("--no-normalize", is_flag=True, help="Leave rows at the model's length.")
@click.option("--no-text", is_flag=True, help="Write each text's SHA-256 instead of the text.")
@click.option("--cache/--no-cache", default=None, help="Keep vectors for later runs; on with -i and -o.")
@input_options
@click.option("--pooling", "pooling_type", type=click.Choice(["last", "mean", "cls"]),
              help="For a file whose header does not say.")  # fmt: skip
@click.option("--add-eos/--no-add-eos", default=None, help="For a file whose header does not say.")
@click.option("--expect-fingerprint", metavar="HEX", help="Refuse vectors that do not compare with those of before.")
@plan_options
@json_option
@verbosity
def embed_command(
    texts: tuple[str, ...], inputs: tuple[Path, ...], output: Path | None, as_json: bool, model: str | None,
    **options: Any,
) -> int:  # fmt: skip
    """Turn texts into vectors.

    Texts come from the command line, files, folders or stdin; unit vectors go to stdout or to a file. With -i and -o an
    interrupted run goes on where it stopped, and what was embedded before is not embedded again.

    \b
      gguf-embed embed "The capital of China is Beijing."
      gguf-embed embed -i docs.txt -o docs.npy --as document -d 512
      gguf-embed embed -i notes/ -o notes.parquet --as document --chunk 512
      echo "What is the capital of China?" | gguf-embed embed --as query
    """  # noqa: D301 - click reads the backspace itself
    if texts and inputs:
        raise click.UsageError("texts come from the command line or from -i, not from both")
    if not texts and not inputs and sys.stdin.isatty():
        raise click.UsageError("nothing to embed; give a TEXT, or -i FILE, or pipe lines in")
    if as_json and (texts or output is None):
        raise click.UsageError("--json tells of a run that writes a file; add -i FILE and -o FILE")
    chunking, how = chunking_of(options), _how(options)
    corpus = Corpus(
        texts=texts, inputs=inputs, output=output, output_format=_checked_format(output, options.pop("output_format")),
        precision=options.pop("precision"), ranges=options.pop("ranges"), as_json=as_json,
    )  # fmt: skip
    reading = {name: options.pop(name) for name in READING}
    with open_model(model, options) as embedder:
        return run_corpus(corpus, embedder, how, chunking, reading)


def _checked_format(output: Path | None, output_format: str | None) -> str:
    """Decide on a format, and refuse what cannot be written before anything is embedded."""
    from gguf_embed.jobs.sinks import check_format, format_of_name  # noqa: PLC0415 - keeps --help quick

    found = output_format or (format_of_name(output) if output else "json")
    if found is None:
        raise click.UsageError(f"{output} ends in no format that is known; add -f {'|'.join(_FORMATS)}")
    if output is None and found in ("npy", "parquet") and sys.stdout.isatty():
        raise click.UsageError(f"{found} is no text; add -o FILE")
    if output is not None and not output.parent.is_dir():
        raise click.UsageError(f"there is no folder {output.parent}")
    check_format(found)
    return found


def _how(options: dict[str, Any]) -> Any:
    from gguf_embed.encoding import EncodeOptions  # noqa: PLC0415 - keeps --help quick

    task = options.pop("task")
    kind = options.pop("kind") or ("query" if task else None)
    with usage_errors():
        return EncodeOptions(
            prompt_name=kind,
            prompt=options.pop("prompt"),
            task=task,
            normalize_embeddings=not options.pop("no_normalize"),
        )


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
