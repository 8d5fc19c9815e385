"""pydantic-ai: an `EmbeddingModel` over a shared model.

It must not know other hosts.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Literal

from gguf_embed.integrations.shared import SharedModel, configured_model, missing_host

try:
    from pydantic_ai.embeddings import EmbeddingModel, EmbeddingResult, EmbeddingSettings
    from pydantic_ai.usage import RequestUsage
except ImportError as error:
    raise missing_host("pydantic-ai", "pydantic-ai", error) from error

__all__ = ["GGUFEmbeddingModel"]

_KNOWN_SETTINGS = frozenset({"dimensions", "truncate"})


class GGUFEmbeddingModel(EmbeddingModel):
    """Text embeddings on this machine, for `pydantic_ai.Embedder`.

    Args:
        model: a model reference or a SharedModel with options, None for the configured model.
        settings: of pydantic-ai: `dimensions` keeps that many components, `truncate` cuts over-long texts.

    Raises:
        UnknownModelError: nothing answers to `model`.
    """

    def __init__(self, model: str | SharedModel | None = None, *, settings: EmbeddingSettings | None = None) -> None:
        super().__init__(settings=settings)
        self._shared = model if isinstance(model, SharedModel) else SharedModel(model=model or configured_model())
        self._shared.check()

    @property
    def model_name(self) -> str:
        """The model reference."""
        return self._shared.model

    @property
    def system(self) -> str:
        """Who provides the model: "gguf-embed"."""
        return "gguf-embed"

    async def embed(
        self,
        inputs: str | Sequence[str],
        *,
        input_type: Literal["query", "document"],
        settings: EmbeddingSettings | None = None,
    ) -> EmbeddingResult:
        """Embed texts, with the model's prompt for that type.

        Args:
            inputs: one text or several.
            input_type: "query" or "document".
            settings: win over those of the model.

        Returns:
            A list of `dim` floats of unit length for each, and the tokens used.

        Raises:
            TypeError: truncate is no bool.
            ValueError: a setting that cannot be honoured here.
            GGUFEmbedError: a text cannot be embedded.
        """
        texts, merged = self.prepare_embed(inputs, settings)
        report = await asyncio.to_thread(self._with(merged).report, texts, input_type)
        return EmbeddingResult(
            embeddings=report.embeddings.tolist(),
            inputs=texts,
            input_type=input_type,
            model_name=self.model_name,
            provider_name=self.system,
            usage=RequestUsage(input_tokens=sum(report.n_tokens)),
        )

    async def max_input_tokens(self) -> int:
        """Return the longest text in tokens; loads the model."""
        return await asyncio.to_thread(lambda: self._shared.embedder.max_seq_length)

    async def count_tokens(self, text: str) -> int:
        """Return the tokens of a text, special ones included, its prompt not; loads the model."""
        return len((await asyncio.to_thread(self._shared.embedder.tokenize, text))[0])

    def _with(self, settings: EmbeddingSettings) -> SharedModel:
        if unknown := {key for key, value in settings.items() if value is not None} - _KNOWN_SETTINGS:
            raise ValueError(f"settings has {', '.join(sorted(unknown))}; a model in this process knows dimensions and "
                             "truncate")  # fmt: skip
        changes: dict[str, object] = {}
        if settings.get("dimensions") is not None:
            changes["truncate_dim"] = settings["dimensions"]
        if (cuts := settings.get("truncate")) is not None:
            if not isinstance(cuts, bool):
                raise TypeError(f"settings has truncate={cuts!r}; it is True or False")
            changes["truncate"] = "end" if cuts else "error"
        return dataclasses.replace(self._shared, **changes) if changes else self._shared  # type: ignore[arg-type]
