"""LangChain: an `Embeddings` of langchain-core over a shared model.

It must not know other hosts.
"""

from __future__ import annotations

from typing import Any

from gguf_embed.integrations.shared import configured_model, missing_host

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    raise missing_host("langchain-core", "langchain", error) from error

from pydantic import ConfigDict, Field

from gguf_embed.integrations.fields import ModelFields

__all__ = ["GGUFEmbeddings"]


class GGUFEmbeddings(ModelFields, Embeddings):
    """Text embeddings on this machine: `embed_query` with the model's query prompt, documents with the other one.

    Args:
        model: a model reference; the configured one if not given.
        truncate_dim: components to keep (MRL); this and the other fields are those of SharedModel.

    Raises:
        UnknownModelError: nothing answers to `model`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(default_factory=configured_model, description="A model reference.")

    def model_post_init(self, _context: Any) -> None:
        """Refuse a model that nobody knows before the first text comes."""
        self.shared_model(self.model).check()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents: a list of `dim` floats each, of unit length."""
        rows: list[list[float]] = self.shared_model(self.model).documents(texts).tolist()
        return rows

    def embed_query(self, text: str) -> list[float]:
        """Embed a search query: `dim` floats of unit length."""
        row: list[float] = self.shared_model(self.model).queries([text])[0].tolist()
        return row
