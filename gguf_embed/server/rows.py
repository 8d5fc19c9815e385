"""Rows of vectors as JSON: a little at a time, so that a large answer holds nobody else up.

It must not know what a dialect writes around them.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response

from gguf_embed.server.exchange import json_reply, stream_reply

__all__ = ["reply_with_rows", "to_base64"]

Float32Matrix = NDArray[np.float32]

_N_FLOATS_PART = 65_536  # some 4 ms


def to_base64(row: NDArray[np.float32]) -> str:
    """Write a vector as OpenAI's clients read it: base64 of little-endian float32."""
    return base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode()


def reply_with_rows(
    rows: Float32Matrix, item: Callable[[int, NDArray[np.float32]], Any], whole: Callable[[Any], Any]
) -> Response:
    """Answer with rows.

    Args:
        rows: (n, dim) float32.
        item: what stands for one row, given its position.
        whole: puts a list of items where it belongs.

    Returns:
        At once where it is small, else in parts.
    """
    if rows.size <= _N_FLOATS_PART:
        return json_reply(whole([item(index, row) for index, row in enumerate(rows)]))
    before, after = orjson.dumps(whole(["@"])).split(b'"@"')
    return stream_reply(_parts(rows, item, before, after))


async def _parts(
    rows: Float32Matrix, item: Callable[[int, NDArray[np.float32]], Any], before: bytes, after: bytes
) -> AsyncIterator[bytes]:
    n_rows = max(1, _N_FLOATS_PART // rows.shape[1])
    for start in range(0, len(rows), n_rows):
        items = [item(start + offset, row) for offset, row in enumerate(rows[start : start + n_rows])]
        encoded = orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        yield (before if not start else b",") + encoded
        await asyncio.sleep(0)  # others' turn
    yield after
