"""Byte counts to and from the words people write: 4GiB, 4G, 4096MiB.

It knows nothing else; everywhere inside the package a size is an int of bytes.
"""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["format_size", "parse_size"]

# G and GB mean GiB too: memory is sold and reported in powers of two.
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_TOO_LARGE = 1 << 63
_SIZE = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?:(?P<unit>[KMGT])(?:i?B)?|B)?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Read a size such as "4GiB", "4G", "1.5 GB", "4096MiB" or "1048576".

    Args:
        text: a number and an optional unit, K, M, G or T, each a power of 1024.

    Returns:
        Bytes, at least 1.

    Raises:
        ValueError: the text is no size, or the size is below 1 or beyond 2^63.
    """
    match = _SIZE.fullmatch(text)
    unit = (match["unit"] or "").upper() if match else ""
    size_bytes = int(Decimal(match["number"]) * (1 << _UNITS[unit])) if match else 0
    if not 1 <= size_bytes < _TOO_LARGE or (not unit and "." in text):  # nobody means four and a half bytes
        raise ValueError(f"{text!r} is not a size; write one like 4GiB, 4G or 4096MiB")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """Write a size the way `gguf-embed plan` prints it: "2.33 GiB", "288 MiB", "12 KiB", "0 B".

    Args:
        size_bytes: bytes, zero or more; a shortfall below zero keeps its sign.

    Returns:
        At most three significant digits and a binary unit.
    """
    magnitude, sign = abs(size_bytes), "-" if size_bytes < 0 else ""
    for shift, unit in ((10, "KiB"), (20, "MiB"), (30, "GiB"), (40, "TiB")):
        value = magnitude / (1 << shift)
        digits = (2 if value < 9.995 else 1 if value < 99.95 else 0) if shift >= 30 else 0
        if magnitude >= 1 << 10 and (round(value) < 1024 or shift == 40):  # what rounds up to 1024 takes the next unit
            return f"{sign}{value:.{digits}f} {unit}"
    return f"{sign}{magnitude} B"
