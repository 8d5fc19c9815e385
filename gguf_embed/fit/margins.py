"""What failed loads taught about this machine: how much of a memory that looks free cannot be had.

It must not know why a load failed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gguf_embed.fit.hardware import Hardware
from gguf_embed.fit.lessons import delete_lessons, load_lessons, write_lessons

__all__ = ["forget_margins", "load_margins", "margins_path", "remember_margin"]

logger = logging.getLogger(__name__)

# With a quarter more free than when a load failed, it is tried again.
_MORE_FREE = 1.25


def margins_path(state_dir: Path) -> Path:
    """Return the file that holds them."""
    return state_dir / "margins.json"


def load_margins(state_dir: Path, hardware: Hardware) -> dict[str, int]:
    """Read what was learnt on this machine with this build; nothing where there is nothing to read.

    A margin counts as long as about as much is free as when it was learnt: with more, the refusal may not come again.

    Returns:
        Bytes to leave alone by device, "host" for the CPU.
    """
    entry = load_lessons(margins_path(state_dir)).get(hardware.fingerprint, {})
    if not isinstance(entry, dict) or entry.get("llama_cpp") != version("llama-cpp-python"):
        return {}
    margins = entry.get("margins")
    if not isinstance(margins, dict):
        return {}
    free, learnt_at = _free(hardware), entry.get("free", {})
    return {
        name: size
        for name, size in margins.items()
        if isinstance(size, int) and size >= 0 and free.get(name, 0) <= _at_most(learnt_at, name)
    }


def remember_margin(state_dir: Path, hardware: Hardware, margins: Mapping[str, int]) -> None:
    """Write them down, beside those of other machines; a folder that cannot be written only costs the next failure."""
    known = load_lessons(margins_path(state_dir))
    known[hardware.fingerprint] = {
        "margins": dict(margins),
        "free": {name: free_bytes for name, free_bytes in _free(hardware).items() if name in margins},
        "llama_cpp": version("llama-cpp-python"),
        "since": date.today().isoformat(),  # noqa: DTZ011 - for people, in their own time zone
    }
    path = margins_path(state_dir)
    try:
        write_lessons(path, known)
    except OSError as error:
        logger.info("what this machine taught cannot be kept in %s: %s", path, error)


def forget_margins(state_dir: Path) -> bool:
    """Delete them all. Returns whether there were any.

    Raises:
        StorageError: the file cannot be deleted.
    """
    return delete_lessons(margins_path(state_dir))


def _free(hardware: Hardware) -> dict[str, int]:
    return {one.name: one.free_bytes for one in hardware.accelerators} | {"host": hardware.ram_available_bytes}


def _at_most(learnt_at: Any, name: str) -> float:
    """The most that may be free now for what was learnt then to hold."""
    then = learnt_at.get(name) if isinstance(learnt_at, dict) else None
    return then * _MORE_FREE if isinstance(then, int) else float("inf")
