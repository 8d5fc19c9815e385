"""What `bench --tune` measured on this machine: the packing and the threads that are fastest for a model.

It must not know how it was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from gguf_embed.config import MAX_THREADS
from gguf_embed.errors import StorageError
from gguf_embed.fit.hardware import Hardware
from gguf_embed.fit.lessons import delete_lessons, load_lessons, write_lessons
from gguf_embed.models.header import ModelFacts

__all__ = ["Tuning", "forget_tunings", "load_tuning", "remember_tuning", "tuning_path"]

_MAX_BATCH = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What was faster than the plan's own choice; None where that is as good.

    Attributes:
        n_batch: tokens packed into one decode; the layout's bounds still hold, n_seq_max <= n_batch <= n_ubatch.
        n_threads: CPU threads.
    """

    n_batch: int | None = None
    n_threads: int | None = None

    def __post_init__(self) -> None:
        for name, value, most in (("n_batch", self.n_batch, _MAX_BATCH), ("n_threads", self.n_threads, MAX_THREADS)):
            if value is not None and (type(value) is not int or not 1 <= value <= most):
                raise ValueError(f"{name} is {value!r}; it is a whole number from 1 to {most}")


def tuning_path(state_dir: Path) -> Path:
    """Return the file that holds them."""
    return state_dir / "tuning.json"


def load_tuning(state_dir: Path, machine: Hardware, facts: ModelFacts, placement: str) -> Tuning:
    """Read what was fastest for a model, placed like this, on this machine.

    Threads count only while the process may use as many cores as when they were measured.

    Args:
        state_dir: the folder.
        machine: this one.
        facts: of the file; its size in layers and components and its quantization count, not its name.
        placement: as Plan.

    Returns:
        An empty Tuning where nothing is known, or nothing that can be used.
    """
    of_machine = load_lessons(tuning_path(state_dir)).get(machine.fingerprint)
    entry = of_machine.get(_key(facts, placement)) if isinstance(of_machine, dict) else None
    if not isinstance(entry, dict):
        return Tuning()
    n_threads = entry.get("n_threads") if entry.get("n_cores") == machine.n_cores else None
    try:
        return Tuning(n_batch=entry.get("n_batch"), n_threads=n_threads)
    except ValueError:
        return Tuning()


def remember_tuning(state_dir: Path, machine: Hardware, facts: ModelFacts, placement: str, tuning: Tuning) -> None:
    """Write it down beside the others; an empty Tuning takes this one out.

    Raises:
        StorageError: the folder cannot be written.
    """
    path, key = tuning_path(state_dir), _key(facts, placement)
    known = load_lessons(path)
    before = known.get(machine.fingerprint)
    of_machine: dict[str, Any] = before if isinstance(before, dict) else {}
    if tuning == Tuning():
        if key not in of_machine:
            return
        del of_machine[key]
    else:
        of_machine[key] = {
            "n_batch": tuning.n_batch,
            "n_threads": tuning.n_threads,
            "n_cores": machine.n_cores,
            "since": date.today().isoformat(),  # noqa: DTZ011 - for people, in their own time zone
        }
    known[machine.fingerprint] = of_machine
    try:
        write_lessons(path, known)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}", path=path) from error


def forget_tunings(state_dir: Path) -> bool:
    """Delete them all. Returns whether there were any.

    Raises:
        StorageError: the file cannot be deleted.
    """
    return delete_lessons(tuning_path(state_dir))


def _key(facts: ModelFacts, placement: str) -> str:
    return f"{facts.architecture} {facts.n_layer}x{facts.n_embd} {facts.quant} {placement}"
