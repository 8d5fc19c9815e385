"""Tasks of mteb over an Embedder: the encoder that mteb asks, and the main scores that it gives.

It must not know what else is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_embed.embedder import Embedder
from gguf_embed.encoding import EncodeOptions
from gguf_embed.errors import DownloadError, MissingExtraError

__all__ = ["MtebEncoder", "find_tasks", "load_tasks", "run_tasks"]


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

    encoder = MtebEncoder(embedder, truncate=truncate)
    scores = []
    for task in tasks:
        results = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
        scores.append((str(task.metadata.name), float(results.task_results[0].get_score())))
    return tuple(scores)


class MtebEncoder:
    """An Embedder as mteb's EncoderProtocol: queries with the query prompt, documents with the document prompt.

    Texts that mteb calls neither go as they are. The model's own prompts are used, not those of tasks.

    Args:
        embedder: to embed with; the caller closes it.
        truncate: "error" for over-long texts, or "end" to cut them.

    Raises:
        MissingExtraError: mteb is not installed.
    """

    def __init__(self, embedder: Embedder, *, truncate: str = "error") -> None:
        _check_mteb()
        from mteb.models.model_meta import ModelMeta, ScoringFunction  # noqa: PLC0415 - an extra, 10 s

        self._embedder, self._truncate = embedder, truncate
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": f"gguf-embed/{embedder.model_id.replace('/', '--')}",
                "revision": embedder.plan.quant or "unknown",
                "embed_dim": embedder.n_embd,
                "framework": ["GGUF"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "modalities": ["text"],
            }
        )

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any = None,  # noqa: ARG002 - mteb's words
        hf_split: str = "",  # noqa: ARG002
        hf_subset: str = "",  # noqa: ARG002
        prompt_type: Any = None,
        **_kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embed batches.

        Args:
            inputs: each with a list of texts under "text".
            task_metadata: not looked at.
            hf_split: not looked at.
            hf_subset: not looked at.
            prompt_type: mteb's PromptType.query or PromptType.document; None for neither.

        Returns:
            (n, n_embd) float32, rows of unit length.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        options = EncodeOptions(
            prompt_name=None if prompt_type is None else str(prompt_type.value), truncate=self._truncate
        )
        rows: NDArray[np.float32] = self._embedder.report(texts, options).embeddings
        return rows

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of every vector of one with every one of the other, as mteb computes it."""
        from mteb.similarity_functions import cos_sim  # noqa: PLC0415 - an extra

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of the first of one with the first of the other, and so on, as mteb computes it."""
        from mteb.similarity_functions import pairwise_cos_sim  # noqa: PLC0415 - an extra

        return pairwise_cos_sim(embeddings1, embeddings2)


def _check_mteb() -> None:
    try:
        import mteb  # noqa: F401, PLC0415 - an extra, checked at the door
    except ImportError as error:
        raise MissingExtraError('Tasks of mteb need it; run: pip install "gguf-embed[mteb]"', extra="mteb") from error
