"""LlamaIndex: a `BaseEmbedding` of llama-index-core over a shared model.

It must not know other hosts.
"""

from __future__ import annotations

import asyncio
from typing import Any

from gguf_embed.integrations.shared import SharedModel, configured_model, missing_host

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
except ImportError as error:
    raise missing_host("llama-index-core", "llama-index", error) from error

from pydantic import Field

from gguf_embed.integrations.fields import ModelFields

__all__ = ["GGUFEmbedding"]


class GGUFEmbedding(ModelFields, BaseEmbedding):
    """Text embeddings on this machine: queries with the model's query prompt, nodes with the document's.

    Args:
        model_name: a model reference; the configured one if not given.
        embed_batch_size: texts that LlamaIndex hands over at once, 1..2048; memory does not depend on it.
        truncate_dim: components to keep (MRL); this and the other fields are those of SharedModel.

    Raises:
        UnknownModelError: nothing answers to `model_name`.
    """

    model_name: str = Field(default_factory=configured_model, description="A model reference.")
    embed_batch_size: int = Field(default=512, gt=0, le=2048, description="Texts that are handed over at once.")

    def model_post_init(self, context: Any) -> None:
        """Refuse a model that nobody knows before the first text comes."""
        super().model_post_init(context)
        self._shared.check()

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex writes to disk."""
        return "GGUFEmbedding"

    @property
    def _shared(self) -> SharedModel:
        return self.shared_model(self.model_name)

    def _get_query_embedding(self, query: str) -> list[float]:
        row: list[float] = self._shared.queries([query])[0].tolist()
        return row

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        rows: list[list[float]] = self._shared.documents(texts).tolist()
        return rows

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
