"""What `embed` does with texts, files, folders and streams: a job to a file, or rows as they come.

It must not know formats or models beyond what it passes on.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click

from gguf_embed.cli.events import Counts, events, shown
from gguf_embed.cli.exits import INTERRUPTED, usage_errors
from gguf_embed.cli.options import fetch_model, is_quiet
from gguf_embed.errors import GGUFEmbedError

__all__ = ["READING", "Corpus", "chunking_of", "input_options", "long_text_options", "run_corpus"]

Command = Callable[..., Any]
_INPUT_FORMATS = ("lines", "jsonl", "csv", "parquet", "document")
READING = (
    "field", "id_field", "encoding", "globs", "no_ignore", "input_format", "on_error", "restart", "cache", "no_text",
)  # fmt: skip
_LONG = ("error", "truncate", "chunk", "mean")


def input_options(command: Command) -> Command:
    """Add where texts come from and what becomes of bad ones."""
    for option in (
        click.option("--restart", is_flag=True, help="Throw away what an interrupted run left unfinished."),
        click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True,
                     help="What to do with a text that cannot be read or embedded."),
        click.option("--no-ignore", is_flag=True, help="Do not honour .gitignore in folders."),
        click.option("--glob", "globs", multiple=True, metavar="PATTERN", help="Which files of a folder; ! excludes."),
        click.option("--encoding", help="Of the input; UTF-8 if left out, UTF-16 by its mark."),
        click.option("--id", "id_field", help="Field or column of the ids; id if left out and there is one."),
        click.option("--field", default="text", show_default=True, help="Field or column of the texts."),
        click.option("--input-format", type=click.Choice(_INPUT_FORMATS),
                     help="Default: by name, else a text a line; document: a text a file."),
    ):  # fmt: skip
        command = option(command)
    return command


def long_text_options(command: Command) -> Command:
    """Add what becomes of long texts."""
    for option in (
        click.option("--overlap", "n_overlap", type=click.IntRange(min=0), default=0, help="Tokens chunks share."),
        click.option("--chunk", "n_tokens", type=click.IntRange(min=1), metavar="TOKENS",
                     help="Cut longer texts into chunks of at most this many tokens."),
        click.option("--truncate", type=click.Choice(["error", "end"]), help="--truncate end is --long truncate."),
        click.option("--long", "long_texts", type=click.Choice(_LONG),
                     help="Over-long texts; error if left out, chunk with --chunk."),
    ):  # fmt: skip
        command = option(command)
    return command


def chunking_of(options: dict[str, Any]) -> Any:
    """Take what becomes of long texts out of a command's options."""
    from gguf_embed.stream.chunking import Chunking  # noqa: PLC0415 - keeps --help quick

    wanted, truncate = options.pop("long_texts"), options.pop("truncate")
    n_tokens, n_overlap = options.pop("n_tokens"), options.pop("n_overlap")
    said = {"end": "truncate", "error": "error", None: None}[truncate]
    if said is not None and wanted is not None and said != wanted:
        raise click.UsageError(f"--truncate {truncate} and --long {wanted} exclude each other")
    long = wanted or said or ("chunk" if n_tokens is not None else "error")
    if n_tokens is not None and n_overlap >= n_tokens:
        raise click.UsageError(f"--overlap {n_overlap} must be less than --chunk {n_tokens}")
    if long in ("error", "truncate") and n_tokens is not None:
        raise click.UsageError(f"--chunk cuts long texts, so --long is chunk or mean, not {long}")
    if long in ("error", "truncate") and n_overlap:
        raise click.UsageError("--overlap is of chunks; add --chunk TOKENS, --long chunk or --long mean")
    with usage_errors():
        return Chunking(n_tokens=n_tokens, n_overlap=n_overlap, long=long)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What is to be embedded and where to.

    Attributes:
        texts: of the command line.
        inputs: files and folders; none, where there are no texts, or "-" for stdin.
        output: a file, None for stdout.
        output_format: one of jobs.sinks.FORMATS.
        precision: of the vectors.
        ranges: a file that has them, for int8 and uint8.
        as_json: events of the job on stdout.
    """

    texts: tuple[str, ...]
    inputs: Sequence[Path]
    output: Path | None
    output_format: str
    precision: str
    ranges: Path | None
    as_json: bool

    @property
    def is_job(self) -> bool:
        """Whether it can go on after an interruption: files to a file."""
        return not self.texts and self.output is not None and (self.output.is_file() or not self.output.exists())


@dataclass(frozen=True, slots=True)
class _Given:
    """Texts of the command line, as a source."""

    texts: tuple[str, ...]
    n_done: int = 0
    n_total: None = None
    unit: str = "texts"

    def __iter__(self) -> Iterator[Any]:
        from gguf_embed.jobs.records import Record  # noqa: PLC0415 - keeps --help quick

        return (Record(text=text, place=f"text {index}") for index, text in enumerate(self.texts))


def run_corpus(corpus: Corpus, embedder: Any, how: Any, chunking: Any, options: dict[str, Any]) -> int:
    """Embed a corpus; return the exit code.

    Args:
        corpus: what and where to.
        embedder: what embeds.
        how: EncodeOptions.
        chunking: Chunking.
        options: of input_options, and cache and no_text.
    """
    from gguf_embed.jobs.job import Job, JobOptions  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.jobs.outputs import Output  # noqa: PLC0415
    from gguf_embed.prompts import resolve_prompt  # noqa: PLC0415

    _check(corpus, options)
    source, identity = _source(corpus, options)
    with usage_errors():
        resolve_prompt(embedder.prompts, prompt_name=how.prompt_name, prompt=how.prompt, task=how.task)
    with contextlib.ExitStack() as stack:
        cache = _cache(corpus.is_job if options["cache"] is None else options["cache"], stack)
        job_options = JobOptions(
            encode=how, chunking=chunking, cache=cache, skips_bad=options["on_error"] == "skip",
            with_text=not options["no_text"],
        )  # fmt: skip
        draws = corpus.is_job or (len(corpus.texts) != 1 and not sys.stdout.isatty())
        counts = Counts(source=source, output=str(corpus.output), is_job=corpus.is_job, draws=draws)
        observer: Any = stack.enter_context(events(counts) if corpus.as_json else shown(counts, is_quiet=is_quiet()))
        stopping = stack.enter_context(_stops_on_interrupt()) if corpus.is_job else lambda: False
        if not corpus.is_job:
            source = _fetching(source, embedder)
        job = Job(embedder, source, job_options, observer=observer, should_stop=stopping)
        ranges = _ranges(corpus, embedder, how)
        output = Output(output_format=corpus.output_format, precision=corpus.precision, ranges=ranges)
        try:
            if corpus.is_job and corpus.output is not None:
                fetch_model(embedder)
                job.run(corpus.output, output, source_identity=identity, restarts=options["restart"])
            else:
                _to_stream(job, output, corpus, dim=embedder.dim)
            observer.done(job.progress)
            _warn_of_nothing(corpus, job)
        except KeyboardInterrupt:
            observer.stopped(job.progress)
            return INTERRUPTED
        except GGUFEmbedError as error:
            observer.failed(error)
            raise
    return 0


def _warn_of_nothing(corpus: Corpus, job: Any) -> None:
    folders = [str(one) for one in corpus.inputs if one.is_dir()]
    if folders and not job.progress.n_records and not is_quiet():
        click.echo(
            f"warning: nothing in {', '.join(folders)} was read; hidden, ignored and binary files are left out, and "
            "tables that no --glob names",
            err=True,
        )


def _check(corpus: Corpus, options: dict[str, Any]) -> None:
    """Refuse what makes no sense together, and an output that would replace what is read."""
    from gguf_embed.jobs.records import OUTPUT_SUFFIXES  # noqa: PLC0415 - keeps --help quick

    has_ranges = corpus.precision in ("int8", "uint8")
    if corpus.ranges is not None and not has_ranges:
        raise click.UsageError(f"--ranges are for --precision int8 and uint8, not {corpus.precision}")
    if len(corpus.texts) == 1 and has_ranges and corpus.ranges is None:
        raise click.UsageError(f"{corpus.precision} spreads the range of many rows and got one; add --ranges")
    if corpus.texts and (options["globs"] or options["input_format"] or options["encoding"] or options["restart"]):
        raise click.UsageError("--glob, --input-format, --encoding and --restart are for -i, not for texts given here")
    if [str(one) for one in corpus.inputs].count("-") > 1:
        raise click.UsageError("stdin can be read once; give one -")
    if corpus.output is None:
        return
    written = {corpus.output.with_name(f"{corpus.output.name}{suffix}").resolve() for suffix in OUTPUT_SUFFIXES}
    for one in (*corpus.inputs, *filter(None, [corpus.ranges])):
        if one.resolve() in written:
            raise click.UsageError(f"{one} is read and would be overwritten by -o {corpus.output}; name another file")


def _fetching(source: Any, embedder: Any) -> Iterator[Any]:
    """Read a source, and fetch the model when there is something to embed."""
    for index, record in enumerate(source):
        if index == 0:
            fetch_model(embedder)
        yield record


def _source(corpus: Corpus, options: dict[str, Any]) -> tuple[Any, Any]:
    """Open the input, and say what tells it from another."""
    from gguf_embed.jobs.sources import SourceOptions, open_source  # noqa: PLC0415 - keeps --help quick

    if corpus.texts:
        return _Given(corpus.texts), None
    with usage_errors():
        known = SourceOptions(
            field=options["field"],
            id_field=options["id_field"],
            encoding=options["encoding"],
            globs=tuple(options["globs"]),
            honours_ignore=not options["no_ignore"],
            input_format=options["input_format"],
            output=corpus.output,
        )
        inputs = [sys.stdin.buffer if str(one) == "-" else one for one in corpus.inputs or [Path("-")]]
        source = open_source(inputs, known)
    names = [str(one if str(one) == "-" else one.absolute()) for one in corpus.inputs or [Path("-")]]
    return source, {
        "input": ", ".join(names), "field": known.field, "id": known.id_field, "encoding": known.encoding,
        "globs": known.globs, "ignore files": known.honours_ignore, "input format": known.input_format,
    }  # fmt: skip


def _cache(is_wanted: bool, stack: contextlib.ExitStack) -> Any:
    from gguf_embed.config import load_config  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.stream.cache import user_cache  # noqa: PLC0415

    return stack.enter_context(user_cache(load_config())) if is_wanted else None


def _ranges(corpus: Corpus, embedder: Any, how: Any) -> Any:
    from gguf_embed.jobs.outputs import load_ranges  # noqa: PLC0415 - keeps --help quick

    if corpus.ranges is None:
        return None
    fetch_model(embedder)
    about = {"fingerprint": embedder.fingerprint_of(how), "normalized": how.normalize_embeddings}
    return load_ranges(corpus.ranges, embedder.dim, about=about)


def _to_stream(job: Any, output: Any, corpus: Corpus, *, dim: int) -> None:
    """Write rows as they come where the format allows it, all at the end otherwise."""
    from gguf_embed.jobs.outputs import forget_beside, write_stream  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.jobs.sinks import replaced  # noqa: PLC0415

    with contextlib.nullcontext(sys.stdout.buffer) if corpus.output is None else replaced(corpus.output) as stream:
        write_stream(stream, job.rows(), output, dim=dim, about=job.about, is_one=len(corpus.texts) == 1)
    if corpus.output is not None:
        forget_beside(corpus.output)


@contextlib.contextmanager
def _stops_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield whether Ctrl-C was pressed; the second one ends at once."""
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.SIG_IGN:  # nohup, or the background of a script
        yield lambda: False
        return
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's arguments
        pressed.append(number)
        signal.signal(signal.SIGINT, previous)
        with contextlib.suppress(RuntimeError):  # it came while stderr was being written
            sys.stderr.write("\nfinishing what is begun; Ctrl-C again stops at once\n")

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)
