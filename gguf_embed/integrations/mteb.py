"""MTEB: an encoder over an Embedder, and the ModelMeta that names it in results.

It must not know other hosts, nor which tasks are run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_embed.config import load_config
from gguf_embed.embedder import Embedder
from gguf_embed.encoding import EncodeOptions
from gguf_embed.integrations.shared import SharedModel, missing_host
from gguf_embed.models.catalog import Catalog

try:
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.similarity_functions import cos_sim, pairwise_cos_sim
except ImportError as error:
    raise missing_host("mteb", "mteb", error) from error

__all__ = ["GGUFEncoder", "model_meta"]


class GGUFEncoder:
    """A model as mteb's EncoderProtocol: queries with the query prompt, documents with the document prompt.

    Texts that mteb calls neither go as they are.

    Args:
        model_name: a model reference, or an Embedder that the caller closes.
        revision: for mteb, which passes one; a quantization is named in the reference.
        device: "auto", "gpu", "cpu" or a device's name, None for the configured one.
        truncate: "error" for over-long texts, or "end" to cut them.
        truncate_dim: components to keep (MRL).
        reference: in place of model_name, where mteb passes the name of a ModelMeta.
        instructions: put each task's own instruction in place of the task in the query prompt, where the model takes
            one: what leaderboards measure. Without it, the model's default task is used throughout.

    Raises:
        UnknownModelError: nothing answers to `model_name`.
    """

    def __init__(
        self,
        model_name: str | Embedder,
        revision: str | None = None,
        *,
        device: str | None = None,
        truncate: str = "error",
        truncate_dim: int | None = None,
        instructions: bool = False,
        reference: str | None = None,
    ) -> None:
        self._model: Any = model_name
        if not isinstance(model_name, Embedder):
            reference = reference or model_name
            self._model = SharedModel(model=reference, device=device)
        self._truncate, self._truncate_dim, self._instructions = truncate, truncate_dim, instructions
        how = {"truncate_dim": truncate_dim, "instructions": instructions, "truncate": truncate}
        vectors = {key: value for key, value in how.items() if value not in (None, False, "error")}
        again = None if reference is None else {"reference": reference, "device": device}
        self.mteb_model_meta = _model_meta(self._embedder, revision, vectors, again)

    @property
    def _embedder(self) -> Embedder:
        found: Embedder = self._model.embedder if isinstance(self._model, SharedModel) else self._model
        return found

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any = None,
        prompt_type: Any = None,
        **_split_and_batches: Any,
    ) -> NDArray[np.float32]:
        """Embed batches.

        Args:
            inputs: each with a list of texts under "text".
            task_metadata: has the task's instruction.
            prompt_type: mteb's PromptType.query or PromptType.document; None for neither.

        Returns:
            (n, dim) float32, rows of unit length.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        kind = None if prompt_type is None else str(prompt_type.value)
        options = EncodeOptions(
            prompt_name=kind,
            task=self._instruction(task_metadata) if kind == "query" else None,
            truncate=self._truncate,
            truncate_dim=self._truncate_dim,
        )
        return np.asarray(self._embedder.report(texts, options).embeddings)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of every vector of one with every one of the other, as mteb computes it."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of the first of one with the first of the other, and so on, as mteb computes it."""
        return pairwise_cos_sim(embeddings1, embeddings2)

    def _instruction(self, task_metadata: Any) -> str | None:
        if not self._instructions or task_metadata is None or self._embedder.prompts.query_template is None:
            return None
        prompt = task_metadata.prompt
        return prompt.get("query") if isinstance(prompt, dict) else prompt


def model_meta(model_name: str, *, truncate_dim: int | None = None, instructions: bool = False) -> Any:
    """Describe a model for mteb; plans at most, and loads nothing.

    Args:
        model_name: a model reference.
        truncate_dim: components to keep (MRL).
        instructions: as for GGUFEncoder.

    Returns:
        A ModelMeta: named gguf-embed/MODEL, its revision the quantization; its `load_model` makes the encoder.
    """
    return GGUFEncoder(model_name, truncate_dim=truncate_dim, instructions=instructions).mteb_model_meta


def _model_meta(embedder: Embedder, revision: str | None, vectors: dict[str, Any], again: dict[str, Any] | None) -> Any:
    spec = Catalog(load_config()).registry.find(embedder.model_id)
    quant = embedder.plan.quant
    known = {} if spec is None else {"max_tokens": spec.max_tokens, "adapted_from": spec.base_repo}
    return ModelMeta.create_empty(
        overwrites={
            "loader": None if again is None else GGUFEncoder,  # an Embedder of the caller's cannot be made again
            "loader_kwargs": vectors | (again or {}),
            "name": f"gguf-embed/{embedder.model_id.replace('/', '--')}",
            "revision": revision or quant or "unknown",
            "embed_dim": vectors.get("truncate_dim") or embedder.n_embd,
            "framework": ["GGUF"],
            "open_weights": True,
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": embedder.prompts.query_template is not None,
            "experiment_kwargs": vectors or None,
            **known,
        }
    )
