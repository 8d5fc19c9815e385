"""Haystack: a text embedder and a document embedder over a shared model.

A pipeline's file names these classes, and Haystack loads none outside its own packages unless it is told to:
`Pipeline.loads(text, allowed_modules=["gguf_embed.*"])`. It must not know other hosts.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, Self, Unpack

from gguf_embed.integrations.shared import ModelKeywords, SharedModel, configured_model, missing_host
from gguf_embed.progress import texts_progress

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise missing_host("haystack-ai", "haystack", error) from error

__all__ = ["GGUFDocumentEmbedder", "GGUFTextEmbedder"]


class _Embedder:
    """What both components are told, and how they are written to a pipeline's file."""

    def __init__(self, model: str | None = None, **options: Unpack[ModelKeywords]) -> None:
        self._shared = SharedModel(model=model or configured_model(), **options)
        self._shared.check()

    def warm_up(self) -> None:
        """Fetch and load the model; `run` does it too."""
        self._shared.embedder.load()

    def to_dict(self) -> dict[str, Any]:
        """Return what a pipeline's file keeps."""
        kept: dict[str, Any] = default_to_dict(self, **dataclasses.asdict(self._shared))
        return kept

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make it again from what `to_dict` gave."""
        made: Self = default_from_dict(cls, data)
        return made

    def _meta(self, n_tokens: int) -> dict[str, Any]:
        return {"model": self._shared.model, "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens}}


@component
class GGUFTextEmbedder(_Embedder):
    """Embeds a search query on this machine, with the model's query prompt.

    Args:
        model: a model reference, None for the configured one.
        options: those of SharedModel.

    Raises:
        UnknownModelError: nothing answers to `model`.
        ValueError: an option cannot be used.
    """

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query.

        Args:
            text: the query.

        Returns:
            "embedding", `dim` floats of unit length, and "meta", the model and the tokens.

        Raises:
            TypeError: `text` is not a str.
        """
        if not isinstance(text, str):
            raise TypeError(f"GGUFTextEmbedder takes a str and got {type(text).__name__}; documents go to "
                            "GGUFDocumentEmbedder")  # fmt: skip
        report = self._shared.report([text], "query")
        return {"embedding": report.embeddings[0].tolist(), "meta": self._meta(sum(report.n_tokens))}


@component
class GGUFDocumentEmbedder(_Embedder):
    """Embeds documents on this machine, with the model's document prompt where it has one.

    Args:
        model: a model reference, None for the configured one.
        meta_fields_to_embed: names of what stands in a document's `meta` and goes before its content.
        embedding_separator: between those and the content.
        progress_bar: draw one on stderr.
        options: those of SharedModel, but for task.

    Raises:
        UnknownModelError: nothing answers to `model`.
        ValueError: an option cannot be used.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
        progress_bar: bool = False,
        **options: Unpack[ModelKeywords],
    ) -> None:
        if isinstance(meta_fields_to_embed, str):
            raise TypeError(f"meta_fields_to_embed is {meta_fields_to_embed!r}; it is a list of names")
        if options.get("task") is not None:
            raise ValueError(f"task is {options['task']!r}; documents have none, it goes to GGUFTextEmbedder")
        _Embedder.__init__(self, model, **options)  # Haystack makes the class anew, which super() does not see
        self.meta_fields_to_embed, self.embedding_separator = list(meta_fields_to_embed), embedding_separator
        self.progress_bar = progress_bar

    def to_dict(self) -> dict[str, Any]:
        """Return what a pipeline's file keeps."""
        own = {key: vars(self)[key] for key in ("meta_fields_to_embed", "embedding_separator", "progress_bar")}
        kept: dict[str, Any] = default_to_dict(self, **dataclasses.asdict(self._shared), **own)
        return kept

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents.

        Args:
            documents: with or without content.

        Returns:
            "documents", copies that have their embedding of `dim` floats, and "meta", the model and the tokens.

        Raises:
            TypeError: `documents` is not a list of Document.
        """
        if not isinstance(documents, list) or not all(isinstance(one, Document) for one in documents):
            raise TypeError("GGUFDocumentEmbedder takes a list of Document; a query goes to GGUFTextEmbedder")
        texts = [self._text_of(document) for document in documents]
        with texts_progress(len(texts)) if self.progress_bar else contextlib.nullcontext() as on_batch:
            report = self._shared.report(texts, "document", on_batch=on_batch)
        pairs = zip(documents, report.embeddings.tolist(), strict=True)
        embedded = [dataclasses.replace(document, embedding=row) for document, row in pairs]
        return {"documents": embedded, "meta": self._meta(sum(report.n_tokens))}

    def _text_of(self, document: Document) -> str:
        fields = [document.meta.get(name) for name in self.meta_fields_to_embed]
        parts = [str(field) for field in fields if field is not None]
        return self.embedding_separator.join([*parts, document.content or ""])
