"""sentence-transformers: its class, its words and their order, over a shared model; needs neither it nor torch.

It must not know other hosts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_embed import vectors
from gguf_embed.errors import MissingExtraError
from gguf_embed.integrations.shared import SharedModel, configured_model

__all__ = ["SentenceTransformer"]


class SentenceTransformer:
    """A model in place of `sentence_transformers.SentenceTransformer`, for the calls that embed and compare.

    Other than there: rows have unit length unless `normalize_embeddings=False`; over-long texts are an error unless
    `truncate="end"`; `similarity` returns numpy arrays; a keyword that cannot be honoured here is refused.

    Args:
        model_name_or_path: a model reference, which may be the original's name, such as "Qwen/Qwen3-Embedding-0.6B";
            None for the configured one.
        device: "cuda", "mps", "cpu" and so on; None for the configured one.
        prompts: by name, before the model's own of the same names.
        default_prompt_name: of the prompt for `encode` where it names none.
        truncate_dim: components to keep (MRL).
        truncate: "error" for over-long texts, or "end" to cut them and warn.

    Raises:
        UnknownModelError: nothing answers to the name.
        ValueError: an option cannot be used.
    """

    similarity_fn_name = "cosine"  # what such models are trained for; the dot product of unit vectors is the same

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        device: str | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        truncate_dim: int | None = None,
        truncate: str = "error",
    ) -> None:
        name = model_name_or_path or configured_model()
        self._shared = SharedModel(model=name, device=device, truncate=truncate, truncate_dim=truncate_dim)
        self._shared.check()
        self.default_prompt_name = default_prompt_name
        own = self._shared.embedder.prompts
        self.prompts = {"query": own.query, "document": own.document, **dict(own.others), **(prompts or {})}
        self._prompt(default_prompt_name, None)  # refuses one that is not there

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens, special ones included; loads the model."""
        return self._shared.embedder.max_seq_length

    def get_embedding_dimension(self) -> int:
        """Return the components of a vector."""
        return self._shared.dim

    get_sentence_embedding_dimension = get_embedding_dimension  # its name before version 6

    def encode(  # noqa: PLR0913 - sentence-transformers' words, in their order
        self,
        inputs: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
    ) -> Any:
        """Embed one text or several.

        Args:
            inputs: a str or a sequence of them.
            prompt_name: of one of `prompts`.
            prompt: put before each text; wins over prompt_name.
            batch_size: at most this many texts a decode.
            show_progress_bar: draw one on stderr.
            precision: "float32", also where it is None, "float16", "int8", "uint8", "binary" or "ubinary".
            convert_to_numpy: False for torch tensors: a list of rows, or the one row.
            convert_to_tensor: give one torch tensor.
            normalize_embeddings: give rows unit length.
            truncate_dim: components to keep (MRL), None for the model's.

        Returns:
            (dim,) for a str, (n, dim) for a sequence.

        Raises:
            ValueError: no such prompt or precision.
            GGUFEmbedError: a text cannot be embedded.
            MissingExtraError: a tensor is wanted and there is no torch.
        """
        rows = self._shared.embedder.encode(
            inputs,
            prompt=self._prompt(prompt_name or self.default_prompt_name, prompt),
            batch_size=batch_size,
            show_progress_bar=bool(show_progress_bar),
            precision=precision or "float32",
            normalize_embeddings=normalize_embeddings,
            truncate_dim=self._shared.truncate_dim if truncate_dim is None else truncate_dim,
            truncate=self._shared.truncate,
        )
        if convert_to_tensor or (isinstance(inputs, str) and not convert_to_numpy):
            return _tensor(rows)
        return rows if convert_to_numpy else list(_tensor(rows))

    def encode_query(self, inputs: str | Sequence[str], prompt_name: str | None = None, **options: Any) -> Any:
        """Embed search queries: as `encode`, with the prompt "query"."""
        return self.encode(inputs, prompt_name or "query", **options)

    def encode_document(self, inputs: str | Sequence[str], prompt_name: str | None = None, **options: Any) -> Any:
        """Embed documents: as `encode`, with the prompt "document"."""
        return self.encode(inputs, prompt_name or "document", **options)

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> NDArray[np.float32]:
        """Return the cosine of every vector of one with every one of the other, (n, m) float32."""
        return vectors.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> NDArray[np.float32]:
        """Return the cosine of the first of one with the first of the other, and so on, (n,) float32."""
        return vectors.similarity_pairwise(embeddings1, embeddings2)

    def _prompt(self, prompt_name: str | None, prompt: str | None) -> str | None:
        if prompt is None and prompt_name not in (None, *self.prompts):
            raise ValueError(f"prompt_name is {prompt_name!r}; it is one of {', '.join(self.prompts)}")
        return self.prompts[prompt_name] if prompt is None and prompt_name is not None else prompt


def _tensor(rows: NDArray[Any]) -> Any:
    try:
        import torch  # noqa: PLC0415 - whoever asks for a tensor has it
    except ImportError as error:
        raise MissingExtraError(f"tensors need torch ({error}); run: pip install torch", extra="torch") from error
    return torch.from_numpy(rows)
