"""The `gguf-embed` group: loads a command's module only when it is called, so that --help is quick.

It must not know what commands do.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import click

from gguf_embed import __version__
from gguf_embed.errors import GGUFEmbedError

__all__ = ["cli", "run"]

# Command, module, first line of its help: shown by --help without importing the module.
_COMMANDS = {
    "embed": ("embed", "Turn texts into vectors."),
    "similarity": ("embed", "Compare texts: cosine of their vectors."),
    "plan": ("plan", "Show which quantization fits here, and why."),
    "pull": ("manage", "Fetch a model."),
    "list": ("manage", "List the model files on this disk."),
    "show": ("manage", "Show what is known of a model."),
    "rm": ("manage", "Delete a model's files from this disk."),
    "quantize": ("quantize", "Make a quantization of a model on this machine."),
    "doctor": ("doctor", "Look this machine over."),
    "verify": ("verify", "Prove that a file gives the vectors it should."),
    "eval": ("eval", "Measure what a quantization costs in quality."),
    "compare": ("compare", "Hold one model's vectors against another's."),
    "serve": ("serve", "Serve models over local HTTP, as OpenAI, Ollama and TEI do."),
    "cache": ("cache", "Show or clear the vectors kept for later runs."),
    "bench": ("bench", "Measure how fast a model is on this machine."),
    "models": ("manage", "List the models that have a name here."),
    "completion": ("manage", "Print the script that completes commands in a shell."),
}


class _LazyGroup(click.Group):
    """A group that knows its commands' names and help, and imports them late."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"gguf_embed.cli.{_COMMANDS[cmd_name][0]}")
        return getattr(module, f"{cmd_name}_command")  # type: ignore[no-any-return]

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; a reader that has enough, as `head` does, is no failure."""
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing may be written at exit either
            return None
        return result

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="gguf-embed")
def cli() -> None:
    """Text embeddings on the machine you own.

    Picks the quantization that fits your memory, fetches it, and gives unit vectors.

    \b
      gguf-embed embed "What is the capital of China?" --as query
      gguf-embed plan qwen3-embedding-4b
    """  # noqa: D301 - click reads the backspace itself


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: without the program's name.

    Returns:
        The exit code; bugs are raised and show their traceback.
    """
    from gguf_embed.cli.exits import INTERRUPTED, UNWRITABLE, exit_code  # noqa: PLC0415 - keeps --help quick

    _open_closed_streams()
    try:
        code = cli.main(args=list(arguments), prog_name="gguf-embed", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except GGUFEmbedError as error:
        click.echo(_wrapped(f"error: {error}"), err=True)
        return exit_code(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        click.echo(f"error: stdout cannot be written: {error.strerror}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would fail on it again at exit
        return UNWRITABLE
    return code if isinstance(code, int) else 0  # a command that exits by itself


def _open_closed_streams() -> None:
    """Put the null device where a caller closed a stream (`>&-`), as other programs would have it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open as long as we run


def _wrapped(message: str) -> str:
    """Break lines between words where a terminal would break them within."""
    if not sys.stderr.isatty():
        return message
    width = shutil.get_terminal_size().columns
    return textwrap.fill(message, width, break_long_words=False, break_on_hyphens=False)


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Send the package's log to stderr: warnings, nothing (-q), or everything (-v)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    package = logging.getLogger("gguf_embed")
    package.handlers[:] = [handler]
    package.propagate = False
    package.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"
