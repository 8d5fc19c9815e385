"""LanceDB: an embedding function that is registered as "gguf-embed" when this module is imported.

It must not know other hosts.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gguf_embed.integrations.shared import SharedModel, configured_model, missing_host

try:
    from lancedb.embeddings import TextEmbeddingFunction, get_registry
except ImportError as error:
    raise missing_host("lancedb", "lancedb", error) from error

from pydantic import Field

from gguf_embed.integrations.fields import VectorFields

__all__ = ["GGUFEmbeddings"]


@get_registry().register("gguf-embed")
class GGUFEmbeddings(VectorFields, TextEmbeddingFunction):
    """Text embeddings on this machine: searches with the model's query prompt, rows with the document's.

    Make it with `create`, as all of LanceDB's. A table keeps its options, and makes it anew from these; what speaks of
    one machine is in that machine's config.toml.

    Args:
        name: a model reference; the configured one if not given.
        max_retries: 0, since nothing that fails here comes right by waiting.
        truncate_dim: components to keep (MRL); this and the other fields are those of SharedModel.
    """

    name: str = Field(default_factory=configured_model, description="A model reference.")
    max_retries: int = 0

    @classmethod
    def create(cls, **options: Any) -> Self:
        """Make one; a table that keeps it names its model, also where it was the configured one.

        Raises:
            UnknownModelError: nothing answers to `name`.
        """
        made: Self = super().create(**{"name": configured_model()} | options)
        made._shared.check()
        return made

    @property
    def _shared(self) -> SharedModel:
        return self.shared_model(self.name)

    def ndims(self) -> int:
        """Return the components of a vector."""
        return self._shared.dim

    def generate_embeddings(
        self, texts: list[str | None] | NDArray[Any], *_: Any, **__: Any
    ) -> list[NDArray[np.float32] | None]:
        """Embed rows: (dim,) float32 each, of unit length; None for a null."""
        rows = iter(self._shared.documents([text for text in texts if text is not None]))
        return [None if text is None else next(rows) for text in texts]

    def compute_query_embeddings(self, query: str, *_: Any, **__: Any) -> list[NDArray[np.float32]]:
        """Embed a search query, or a list of them: (dim,) float32 each, of unit length."""
        return list(self._shared.queries(self.sanitize_input(query)))
