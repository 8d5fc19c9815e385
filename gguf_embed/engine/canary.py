"""Whether a context that skips the head gives the rows of one that does not: asked of one short text at load.

It must not know files or what happens where they disagree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.decoder import Decoder
from gguf_embed.errors import DecodeError
from gguf_embed.native.layout import Layout
from gguf_embed.native.llama import Model

__all__ = ["open_both_ways"]

_TEXT = b"The capital of China is Beijing."
_N_TOKENS, _N_CTX = 16, 256
_COSINE = 0.9999


def open_both_ways(model: Model, layout: Layout, open_decoder: Callable[[Layout], Decoder]) -> tuple[Decoder, str]:
    """Open a decoder that skips the head, and hold its row for one text against the ordinary path's.

    Args:
        model: whose tokenizer reads the text.
        layout: one that skips the head.
        open_decoder: opens one for a layout.

    Returns:
        The decoder, and how its row differs from the ordinary one: "" where they agree.
    """
    ids = model.tokenize(_TEXT)[:_N_TOKENS]
    ordinary = open_decoder(
        dataclasses.replace(layout, n_ctx=_N_CTX, n_ubatch=_N_TOKENS, n_seq_max=1, skips_head=False)
    )
    try:
        expected = ordinary.decode([ids])[0]
    finally:
        ordinary.close()  # first, so that the two never stand side by side
    decoder = open_decoder(layout)
    try:
        return decoder, _disagreement(expected, decoder.decode([ids])[0])
    except DecodeError as error:
        return decoder, str(error)


def _disagreement(expected: NDArray[np.float32], row: NDArray[np.float32]) -> str:
    """Say how two rows differ that should be the same; "" where they agree."""
    if not (np.isfinite(expected).all() and np.isfinite(row).all()):
        return "a row is not finite"
    cosine = float(expected @ row / max(np.linalg.norm(expected) * np.linalg.norm(row), np.finfo(np.float32).tiny))
    return "" if cosine >= _COSINE else f"its row and the ordinary one have cosine {cosine:.6f}"
