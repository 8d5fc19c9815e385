"""The short check of a model that was just loaded: once for a file, a driver and a build of llama.cpp; remembered.

It joins the engine's checks and this machine's lessons; it must not know how a model was chosen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from gguf_embed.engine.checks import (
    FLASH_ATTN,
    Check,
    check_batches,
    check_distinct,
    check_finite,
    check_flash_attn,
    check_tokens,
    drift_bound,
)
from gguf_embed.engine.session import Session
from gguf_embed.engine.settings import SessionSettings
from gguf_embed.errors import ModelLoadError
from gguf_embed.fit.diagnosis import driver_stamp
from gguf_embed.fit.hardware import Hardware
from gguf_embed.fit.lessons import delete_lessons, load_lessons, write_lessons
from gguf_embed.native.backend import library_stamp

__all__ = ["Look", "checks_path", "first_look", "forget_looks", "look_key", "recall"]

logger = logging.getLogger(__name__)

# Raised when a check is added or changed, so that files are looked at again.
_RULE = 1
# Short, so that a 4B model on a CPU takes seconds: prose, code that overflowed float16, CJK, accents, nothing.
_TEXTS = (
    "The capital of China is Beijing.",
    'import { useState } from "react";',
    "importance",
    "北京是中国的首都。",
    "NAÏVE CAFÉ",
    "",
)
_N_KEPT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a first look found.

    Attributes:
        is_flash_attn_right: rows are the same with and without it.
        warnings: to be said at every load.
    """

    is_flash_attn_right: bool = True
    warnings: tuple[str, ...] = ()


def checks_path(state_dir: Path) -> Path:
    """Return the file in which they are remembered."""
    return state_dir / "checks.json"


def look_key(settings: SessionSettings, machine: Hardware) -> str:
    """Tell apart what may give other vectors: file, way of running it, devices, driver and build."""
    layout = settings.layout
    facts = settings.path.stat()
    words = [
        str(settings.path.resolve()), facts.st_size, facts.st_mtime_ns, settings.pooling_type, settings.add_eos,
        layout.devices, layout.n_gpu_layers, layout.kv_type, layout.flash_attn, layout.skips_head,
        layout.use_extra_bufts, layout.n_ubatch, layout.n_seq_max, layout.n_contexts, _RULE,
        machine.fingerprint, driver_stamp(), library_stamp(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def recall(state_dir: Path, key: str) -> Look | None:
    """Return what was found before; None where nobody has looked."""
    entry = load_lessons(checks_path(state_dir)).get(key)
    if not isinstance(entry, dict) or not isinstance(entry.get("warnings"), list):
        return None
    warnings = tuple(word for word in entry["warnings"] if isinstance(word, str))
    return Look(is_flash_attn_right=entry.get("flash_attn") is not False, warnings=warnings)


def first_look(session: Session, *, quant: str, state_dir: Path, key: str) -> Look:
    """Check a session, and remember what was found.

    Args:
        session: as loaded.
        quant: of its file; kernels of some drift more.
        state_dir: where it is remembered.
        key: by which.

    Raises:
        ModelLoadError: its vectors would be of no use; that is not remembered.
    """
    begun_s = time.monotonic()
    name = session.settings.path.name
    checks = _checks(session, quant)
    faults = {check.name: check for check in checks if check.state == "fault"}
    logger.info("%s was checked in %.2f s: %s", name, time.monotonic() - begun_s, ", ".join(faults) or "all is well")
    for wrong in ("tokens", "finite", "distinct"):
        if wrong in faults:
            raise ModelLoadError(
                f"{name} gives no usable vectors here: {faults[wrong].words.rstrip('.')}. Delete it, and fetch or make "
                f"it again, or take another quantization or --device cpu. Look closer: {_verify(session)}",
                path=session.settings.path,
            )
    told = [check for check in checks if check.state == "mended" or (check.name, check.state) == ("batches", "fault")]
    warnings = tuple(f"{name}: {check.words}. Look closer: {_verify(session)}" for check in told)
    look = Look(is_flash_attn_right=FLASH_ATTN not in faults, warnings=warnings)
    is_whole = session.layout.kv_type != "f16" or all(
        check.state != "skipped" for check in checks if check.name == FLASH_ATTN
    )
    if is_whole:  # what could not be looked at is looked at the next time
        _remember(state_dir, key, look, name)
    return look


def _checks(session: Session, quant: str) -> list[Check]:
    finite, sample = check_finite(session, _TEXTS)
    checks = [check_tokens(session, _TEXTS), finite]
    if sample is None:
        return checks
    bound = drift_bound(quant, on_device=bool(session.layout.devices))
    return [
        *checks,
        check_distinct(sample),
        check_batches(session, sample, bound=bound),
        check_flash_attn(session, sample, bound=bound),
    ]


def _verify(session: Session) -> str:
    """The command that looks closer."""
    return f"gguf-embed verify {shlex.quote(str(session.settings.path))}"


def _remember(state_dir: Path, key: str, look: Look, name: str) -> None:
    """Write it down; a folder that cannot be written costs the same look at every load."""
    path = checks_path(state_dir)
    known: dict[str, Any] = load_lessons(path)
    known[key] = {
        "file": name,
        "flash_attn": look.is_flash_attn_right,
        "warnings": look.warnings,
        "since": date.today().isoformat(),  # noqa: DTZ011 - for people, in their own time zone
    }
    try:
        write_lessons(path, dict(list(known.items())[-_N_KEPT:]))
    except OSError as error:
        logger.info("what was checked cannot be kept in %s: %s", path, error)


def forget_looks(state_dir: Path) -> bool:
    """Forget them all, so that every file is checked again. Returns whether there were any.

    Raises:
        StorageError: the file cannot be deleted.
    """
    return delete_lessons(checks_path(state_dir))
