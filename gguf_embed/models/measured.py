"""What evaluations found out about a model's quantizations, kept for `--prefer measured`; whole files, read leniently.

It must not know how anything is measured.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf_embed.errors import StorageError
from gguf_embed.models.ladders import quality_rank

__all__ = ["EQUAL_WITHIN", "Measured", "MeasuredQuant", "keep_measured", "load_measured", "measured_path"]

logger = logging.getLogger(__name__)

# Scores this near count as equal, and bytes decide: a choice, two in a thousand.
EQUAL_WITHIN = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredQuant:
    """What one file is worth beside the reference.

    Attributes:
        quant: Q4_K_M, ...
        score: mean share of what the reference reaches, at most 1; files of older versions may have more.
        size_bytes: of the file.
        sha256: of the file, 64 hex digits.
    """

    quant: str
    score: float
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known of one model.

    Attributes:
        reference: the quantization that the others were held against.
        measured_on: what was embedded, a line each; scores compare only where these are the same.
        quants: each once, in any order.
    """

    reference: str
    measured_on: tuple[str, ...]
    quants: tuple[MeasuredQuant, ...]

    @property
    def order(self) -> tuple[str, ...]:
        """The quantizations, best first; of those within EQUAL_WITHIN of the best that is left, the smaller first."""
        left = sorted(self.quants, key=lambda one: (-one.score, one.size_bytes, quality_rank(one.quant), one.quant))
        order: list[str] = []
        while left:
            bound = left[0].score - EQUAL_WITHIN - 1e-9  # 0.998 is within 0.002 of 1, whatever binary makes of it
            equal = [one for one in left if one.score >= bound]
            left = left[len(equal) :]
            order += [one.quant for one in sorted(equal, key=lambda one: (one.size_bytes, quality_rank(one.quant)))]
        return tuple(order)

    def is_like(self, other: Measured) -> bool:
        """Whether both were measured on the same, against the same."""
        return (self.reference, self.measured_on) == (other.reference, other.measured_on)

    def over(self, before: Measured | None) -> Measured:
        """Add what was measured before on the same; what was measured on something else does not compare and goes."""
        if before is None or not self.is_like(before):
            return self
        now = {one.quant for one in self.quants}
        kept = tuple(one for one in before.quants if one.quant not in now)
        same_reference = [one.sha256 for one in (*self.quants, *before.quants) if one.quant == self.reference]
        if len(set(same_reference)) != 1:
            return self
        return Measured(reference=self.reference, measured_on=self.measured_on, quants=self.quants + kept)


def measured_path(state_dir: Path) -> Path:
    """Return where evaluations are kept, whether or not there are any."""
    return state_dir / "evaluations.json"


def load_measured(state_dir: Path, model_id: str) -> Measured | None:
    """Read what is known of a model; None where there is nothing, or nothing that can be read.

    Args:
        state_dir: what was learnt on this machine.
        model_id: the registry's name, else the repository.
    """
    return _measured_of(_load(measured_path(state_dir)).get(model_id))


def keep_measured(state_dir: Path, model_id: str, measured: Measured) -> Path | None:
    """Keep what was found out, beside what is known of other models; the log says what it replaces, or why it cannot.

    Args:
        state_dir: what was learnt on this machine.
        model_id: the registry's name, else the repository.
        measured: goes over what was measured before, but not over more that was measured on something else.

    Returns:
        The file that was written; None where what was measured before stays.

    Raises:
        StorageError: it cannot be written.
    """
    path = measured_path(state_dir)
    known = _load(path)
    before = _measured_of(known.get(model_id))
    if before is not None and not measured.is_like(before) and not _replaces(model_id, measured, before):
        return None
    known[model_id] = asdict(measured.over(before))
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fresh.write_text(json.dumps(known, indent=2, sort_keys=True), encoding="utf-8")
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}", path=path) from error
    return path


def _replaces(model_id: str, measured: Measured, before: Measured) -> bool:
    """Whether what does not compare goes for this; said either way."""
    words = f"{_listed(before)} of {model_id}, held against {before.reference} on {', '.join(before.measured_on)}"
    if len(measured.quants) < len(before.quants):
        logger.warning(
            "not kept for --prefer measured, which has more: %s. To replace it, run eval on these data with "
            "--quants %s",
            words, ",".join(one.quant for one in before.quants),
        )  # fmt: skip
        return False
    logger.warning("for --prefer measured this replaces %s", words)
    return True


def _listed(measured: Measured) -> str:
    return ", ".join(one.quant for one in measured.quants)


def _load(path: Path) -> dict[str, Any]:
    """Everything that is kept; nothing of a file that is damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _measured_of(entry: Any) -> Measured | None:
    try:
        quants = tuple(_quant_of(one) for one in entry["quants"])
        if not quants or len({one.quant for one in quants}) < len(quants):
            return None
        return Measured(reference=str(entry["reference"]), measured_on=tuple(map(str, entry["measured_on"])),
                        quants=quants)  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):  # size_bytes may be 1e400, too
        return None


def _quant_of(one: Mapping[str, Any]) -> MeasuredQuant:
    score = float(one["score"])
    if not abs(score) < float("inf"):  # NaN too
        raise ValueError(f"score is {score}; it is a finite number")
    return MeasuredQuant(
        quant=str(one["quant"]), score=score, size_bytes=int(one["size_bytes"]), sha256=str(one["sha256"])
    )
