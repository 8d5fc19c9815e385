"""Asks llama.cpp how large contexts would be, without allocating them. Runs as a program of its own.

    python -m gguf_embed.native.simulate < request.json > answer.json

A header that makes llama.cpp abort then takes this process down and not its caller. It must not know plans or caches.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf_embed.errors import BackendError
from gguf_embed.native.buffers import Buffer, recording
from gguf_embed.native.context import Context
from gguf_embed.native.layout import Layout
from gguf_embed.native.llama import Model

__all__ = ["simulate"]


def simulate(path: Path, layouts: list[Layout], *, pooling_type: str) -> list[list[Buffer] | str]:
    """Load a header and create each context without its memory.

    Args:
        path: a GGUF, or its header with a hole for the rest.
        layouts: which differ in their context alone are asked of one model.
        pooling_type: as for Context.

    Returns:
        For each layout the compute and output buffers, or why there can be no such context.

    Raises:
        ModelLoadError: llama.cpp refused the header.
    """
    answers: list[list[Buffer] | str] = []
    model, placement = None, None
    try:
        for layout in layouts:
            if placement != _placement(layout):
                if model is not None:
                    model.close()
                model, placement = Model(path, layout, no_alloc=True), _placement(layout)
            assert model is not None  # noqa: S101 - for the type checker
            try:
                with recording() as buffers:
                    Context(model, layout, pooling_type=pooling_type, n_threads=1).close()
                answers.append([buffer for buffer in buffers if buffer.part in ("compute", "output")])
            except (BackendError, ValueError) as error:
                answers.append(str(error))
    finally:
        if model is not None:
            model.close()
    return answers


def _placement(layout: Layout) -> tuple[Any, ...]:
    return (layout.devices, layout.n_gpu_layers, layout.tensor_split, layout.is_output_on_host, layout.use_extra_bufts)


def _layout(fields: Any) -> Layout:
    """Read a layout back, in which JSON has made lists of tuples."""
    values: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Layout(**values)


def main(_argv: Sequence[str]) -> int:
    """Read one request from stdin and answer it on stdout.

    Returns:
        0 when there is an answer, which may be {"error": text}.
    """
    logging.disable(logging.CRITICAL)
    request = json.load(sys.stdin)
    layouts = [_layout(one) for one in request["layouts"]]
    try:
        answers = simulate(Path(request["path"]), layouts, pooling_type=request["pooling_type"])
    except BackendError as error:
        json.dump({"error": str(error).partition("llama.cpp could not load it: ")[2] or str(error)}, sys.stdout)
        return 0
    buffers = [one if isinstance(one, str) else [dataclasses.asdict(buffer) for buffer in one] for one in answers]
    json.dump({"buffers": buffers}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
