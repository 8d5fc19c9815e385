"""Small JSON files in which this machine's lessons are kept: read leniently, written whole, deleted aloud.

It must not know what was learnt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_embed.errors import StorageError

__all__ = ["delete_lessons", "load_lessons", "write_lessons"]


def load_lessons(path: Path) -> dict[str, Any]:
    """Read them; nothing where there is no file, or one that is damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def write_lessons(path: Path, known: Mapping[str, Any]) -> None:
    """Put them in place of what was there, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        fresh.write_text(json.dumps(known, indent=2), encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def delete_lessons(path: Path) -> bool:
    """Delete them all. Returns whether there were any.

    Raises:
        StorageError: the file cannot be deleted.
    """
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"{path} cannot be deleted: {error.strerror}", path=path) from error
    return True
