"""`cache`: the vectors that are kept for later runs.

It must not know how they are kept.
"""

from __future__ import annotations

import click

from gguf_embed.cli.options import json_option, verbosity
from gguf_embed.cli.tables import print_facts, print_json

__all__ = ["cache_command"]


@click.command("cache")
@click.argument("action", type=click.Choice(["info", "clear", "path"]), metavar="info|clear|path")
@click.option("-y", "--yes", is_flag=True, help="Clear without asking.")
@json_option
@verbosity
def cache_command(action: str, yes: bool, as_json: bool) -> None:
    """Show or clear the vectors kept for later runs.

    `embed` with -i and -o keeps every vector that it computes, at full length, so that no text is computed twice for
    the same model and prompt. cache_size in config.toml, or GGUF_EMBED_CACHE_SIZE, says how much is kept; 0 is nothing.
    """
    from gguf_embed.config import load_config  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.sizes import format_size  # noqa: PLC0415
    from gguf_embed.stream.cache import user_cache  # noqa: PLC0415

    with user_cache(load_config()) as cache:
        if action == "path":
            click.echo(cache.path)
            return
        info = cache.info()
        if action == "info" and as_json:
            print_json(info)
        elif action == "info":
            size = f"{format_size(info.size_bytes)} of {format_size(info.limit_bytes)}"
            print_facts([("path", str(info.path)), ("vectors", f"{info.n_rows:,}"), ("size", size)])
        elif yes or click.confirm(f"Delete {info.n_rows:,} vectors ({format_size(info.size_bytes)})?", err=True):
            freed_bytes = cache.clear()
            if as_json:
                print_json({"freed_bytes": freed_bytes})
            else:
                click.echo(f"freed {format_size(freed_bytes)}")
        else:
            click.echo("nothing was deleted", err=True)
