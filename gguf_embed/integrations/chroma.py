"""Chroma: an `EmbeddingFunction` that is registered when this module is imported, so that a collection finds it again.

It must not know other hosts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from gguf_embed.integrations.shared import ModelKeywords, SharedModel, configured_model, missing_host

try:
    from chromadb.api.types import Documents, EmbeddingFunction
    from chromadb.utils.embedding_functions import register_embedding_function
except ImportError as error:
    raise missing_host("chromadb", "chroma", error) from error

__all__ = ["GGUFEmbeddingFunction"]

_NAME = "gguf-embed"
# What decides whether vectors compare; a collection keeps them for life.
_FOR_LIFE = ("model_name", "truncate_dim", "expect_fingerprint")
_FOR_NOW = ("task", "truncate", "prefer")


class GGUFEmbeddingFunction(EmbeddingFunction[Documents]):
    """Text embeddings on this machine: `query` with the model's query prompt, `add` with the document's.

    Args:
        model_name: a model reference, None for the configured one; a quantization in it ("...:Q4_K_M") makes sure that
            every machine that opens the collection makes vectors that compare.
        options: those of SharedModel; device, memory and n_threads speak of this machine and are not kept with a
            collection.

    Raises:
        UnknownModelError: nothing answers to `model_name`.
        ValueError: an option cannot be used.
    """

    def __init__(self, model_name: str | None = None, **options: Unpack[ModelKeywords]) -> None:
        self._shared = SharedModel(model=model_name or configured_model(), **options)
        self._shared.check()

    def __call__(self, input: Documents) -> list[NDArray[np.float32]]:  # noqa: A002 - Chroma's name
        """Embed documents: (dim,) float32 each, of unit length."""
        return list(self._shared.documents(input))

    def embed_query(self, input: Documents) -> list[NDArray[np.float32]]:  # noqa: A002 - Chroma's name
        """Embed search queries: (dim,) float32 each, of unit length."""
        return list(self._shared.queries(input))

    @staticmethod
    def name() -> str:
        """Return the name under which collections keep it."""
        return _NAME

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> GGUFEmbeddingFunction:
        """Make it again from what `get_config` gave."""
        return GGUFEmbeddingFunction(**config)

    def get_config(self) -> dict[str, Any]:
        """Return what a collection keeps: JSON, without what speaks of this machine."""
        options = dataclasses.asdict(self._shared)
        return {"model_name": options.pop("model")} | {
            key: options[key] for key in (*_FOR_LIFE, *_FOR_NOW) if key in options
        }

    def default_space(self) -> str:
        """Return "cosine", which such models are trained for."""
        return "cosine"

    def supported_spaces(self) -> list[str]:
        """Return all three: for vectors of unit length they rank alike."""
        return ["cosine", "l2", "ip"]

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Refuse what would give vectors that do not compare with the collection's.

        Raises:
            ValueError: the model or the dimension changes.
        """
        for key in _FOR_LIFE:
            is_first_pin = key == "expect_fingerprint" and old_config.get(key) is None
            if key in new_config and old_config.get(key) != new_config[key] and not is_first_pin:
                raise ValueError(
                    f"{key} of a collection cannot change from {old_config.get(key)!r} to {new_config[key]!r}: the "
                    "vectors would not compare; make a new collection"
                )

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Refuse a configuration that is not one of `get_config`.

        Raises:
            ValueError: it has an unknown key, or no model.
        """
        if unknown := set(config) - {*_FOR_LIFE, *_FOR_NOW}:
            raise ValueError(f"unknown options of {_NAME}: {', '.join(sorted(unknown))}")
        if not config.get("model_name"):
            raise ValueError(f"the configuration of {_NAME} names no model_name")


register_embedding_function(GGUFEmbeddingFunction)
