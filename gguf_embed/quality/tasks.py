"""Tasks of mteb over an Embedder, and the main scores that it gives.

It must not know what else is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gguf_embed.embedder import Embedder
from gguf_embed.errors import DownloadError, MissingExtraError

__all__ = ["find_tasks", "load_tasks", "run_tasks"]


def find_tasks(names: Sequence[str]) -> list[Any]:
    """Look tasks up by name, without their data.

    Raises:
        ValueError: mteb has no such task.
        MissingExtraError: mteb is not installed.
    """
    _check_mteb()
    import mteb  # noqa: PLC0415 - an extra, 10 s

    tasks = []
    for name in names:
        try:
            tasks.append(mteb.get_task(name))
        except KeyError as error:
            raise ValueError(f"mteb: {str(error.args[0]).removeprefix('KeyError: ')}") from error
    return tasks


def load_tasks(tasks: Sequence[Any]) -> None:
    """Get the data of tasks, which uses the network where it is not on this disk.

    Raises:
        DownloadError: it cannot be had.
    """
    for task in tasks:
        try:
            task.load_data()
        except Exception as error:  # the loaders of tasks are many, and so are their errors
            first = str(error).strip().split("\n", 1)[0]
            raise DownloadError(
                f"the data of {task.metadata.name} cannot be had: {first or type(error).__name__}; go online once",
                url=str(task.metadata.dataset.get("path", "")),
                attempts=1,
            ) from error


def run_tasks(embedder: Embedder, tasks: Iterable[Any], *, truncate: str = "error") -> tuple[tuple[str, float], ...]:
    """Run tasks with one model; nothing is kept in mteb's cache, where files of one model would be taken for another.

    Args:
        embedder: to embed with.
        tasks: as `find_tasks` gives them.
        truncate: "error" for over-long texts, or "end" to cut them.

    Returns:
        Name and main score of each task, mostly 0..1.

    Raises:
        MissingExtraError: mteb is not installed.
        GGUFEmbedError: a text cannot be embedded.
    """
    _check_mteb()
    import mteb  # noqa: PLC0415 - an extra, 10 s

    from gguf_embed.integrations.mteb import GGUFEncoder  # noqa: PLC0415 - needs it

    encoder = GGUFEncoder(embedder, truncate=truncate)
    scores = []
    for task in tasks:
        results = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
        scores.append((str(task.metadata.name), float(results.task_results[0].get_score())))
    return tuple(scores)


def _check_mteb() -> None:
    try:
        import mteb  # noqa: F401, PLC0415 - an extra, checked at the door
    except ImportError as error:
        raise MissingExtraError('Tasks of mteb need it; run: pip install "gguf-embed[mteb]"', extra="mteb") from error
