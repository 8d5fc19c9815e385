"""`quantize`: make a quantization that no repository carries, from one that it does.

It must not know how it is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gguf_embed.cli.exits import usage_errors
from gguf_embed.cli.options import is_quiet, json_option, model_argument, verbosity
from gguf_embed.cli.tables import print_json

__all__ = ["quantize_command"]


@click.command("quantize")
@model_argument
@click.option("--to", "quant", required=True, help="The quantization to make, such as Q4_K_S.")
@click.option("--from", "source_quant", help="What to make it from; Q8_0 or F16, whichever is here or smaller.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write it there instead.")
@click.option("--threads", "n_threads", type=click.IntRange(1, 512), help="CPU threads; all cores if left out.")
@json_option
@verbosity
def quantize_command(
    model: str, quant: str, source_quant: str | None, output: Path | None, n_threads: int | None, as_json: bool
) -> None:
    """Make a quantization of MODEL on this machine.

    MODEL is a name or a .gguf of yours. What was made is found by its name from then on; of a file of yours it is
    written beside it. Ctrl-C leaves nothing behind.

    \b
      gguf-embed quantize qwen3-embedding-4b --to Q4_K_S
      gguf-embed embed -m qwen3-embedding-4b:Q4_K_S "a text"
    """  # noqa: D301 - click reads the backspace itself
    from gguf_embed.config import load_config  # noqa: PLC0415 - keeps --help quick
    from gguf_embed.models.catalog import Catalog  # noqa: PLC0415
    from gguf_embed.models.making import find_making, make  # noqa: PLC0415
    from gguf_embed.progress import download_progress, tensors_progress  # noqa: PLC0415

    catalog = Catalog(load_config())
    with usage_errors():
        making = find_making(catalog, model, quant, source_quant=source_quant, target=output)
        if is_quiet():
            path = make(catalog, making, n_threads=n_threads or 0)
        else:
            label = f"{making.resolved.model_id} {making.source.quant}"
            with download_progress(label) as on_bytes, tensors_progress(f"making {making.quant}") as on_tensors:
                path = make(catalog, making, n_threads=n_threads or 0, on_bytes=on_bytes, on_tensors=on_tensors)
    if as_json:
        facts: dict[str, Any] = {"model": making.resolved.model_id, "quant": making.quant, "path": path}
        print_json(facts | {"size_bytes": path.stat().st_size, "from": making.source.name})
    else:
        click.echo(path)
