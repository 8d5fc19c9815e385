"""The command line: parse, call, print. The only user of stdout and of exit codes.

It must not know how anything is done, only whom to ask.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run `gguf-embed`; what it raises becomes a message and an exit code."""
    from gguf_embed.cli.app import run  # noqa: PLC0415 - importing the package must not import click

    sys.exit(run(sys.argv[1:]))
