"""Texts from files and streams: one a line, or JSON Lines.

It must not know what becomes of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf_embed.errors import InvalidTextError

__all__ = ["Record", "is_jsonl_name", "read_records"]

_TEXT_KEY, _ID_KEY = "text", "id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One text to embed: `id` is whatever the input called it, None where it did not."""

    text: str
    id: Any = None


def read_records(stream: BinaryIO, *, name: str, is_jsonl: bool) -> Iterator[Record]:
    """Read records one by one.

    Args:
        stream: UTF-8, with or without a byte order mark.
        name: of the input, for errors.
        is_jsonl: each line is a JSON string, or an object with a "text" and perhaps an "id"; otherwise each line is
            a text, the empty ones too.

    Yields:
        Records in order. Blank lines of JSON Lines are skipped.

    Raises:
        InvalidTextError: a line is no UTF-8, no JSON, or has no text.
    """
    for index, line in enumerate(_lines(stream, name)):
        if not is_jsonl:
            yield Record(text=line)
        elif line.strip():
            yield _record(line, index, name)


def is_jsonl_name(path: Path) -> bool:
    """Tell whether a file is JSON Lines by its name."""
    return path.suffix.lower() in (".jsonl", ".ndjson")


def _lines(stream: Iterable[bytes], name: str) -> Iterator[str]:
    for index, raw in enumerate(stream):
        line = raw.removeprefix(b"\xef\xbb\xbf") if index == 0 else raw
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InvalidTextError(
                f"{name}, line {index + 1}: not UTF-8 at byte {error.start}; convert it first: iconv -t UTF-8",
                index=index,
                reason="not UTF-8",
            ) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _record(line: str, index: int, name: str) -> Record:
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidTextError(
            f"{name}, line {index + 1}: has a lone surrogate; it was cut or decoded wrongly",
            index=index,
            reason="lone surrogate",
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidTextError(f"{name}, line {index + 1}: no JSON: {error}", index=index, reason="no JSON") from error
    if isinstance(value, str):
        return Record(text=value)
    if isinstance(value, dict) and isinstance(value.get(_TEXT_KEY), str):
        return Record(text=value[_TEXT_KEY], id=value.get(_ID_KEY))
    raise InvalidTextError(
        f'{name}, line {index + 1}: expected a JSON string or an object with a "text" that is one',
        index=index,
        reason="no text",
    )
