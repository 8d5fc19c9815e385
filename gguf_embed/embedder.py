"""Embedder: what a user holds. It composes catalog, plan, session, prompts and vectors, and does nothing itself.

It must not know the command line, HTTP or files of texts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_embed import vectors
from gguf_embed.encoding import EmbedReport, EncodeKeywords, EncodeOptions, QueryKeywords, as_list, check_dim, prepare
from gguf_embed.fit.planner import Limits, Plan
from gguf_embed.model import LazyModel
from gguf_embed.progress import texts_progress
from gguf_embed.prompts import PromptSet
from gguf_embed.selection import Overrides
from gguf_embed.stream.cache import VectorCache, closing, user_cache
from gguf_embed.stream.chunking import Chunking
from gguf_embed.stream.pipeline import TextStream
from gguf_embed.stream.results import Block, StreamResult, Text, plain_texts

__all__ = ["Embedder"]

logger = logging.getLogger(__name__)

Float32Matrix = NDArray[np.float32]
OnProgress = Callable[[int, int], None]


class Embedder:
    """A model that turns texts into vectors; nothing is planned, fetched or loaded before it is needed.

    Rows have unit length unless `normalize_embeddings=False` (sentence-transformers has it the other way round).
    Safe to share between threads.

    Args:
        model: a model reference, such as "qwen3-embedding-4b", "qwen3-embedding-4b:Q3_K_M", "owner/repo:Q4_K_M" or
            "./file.gguf", or a path; None takes the configured one.
        device: "auto", "gpu", "cpu" or a device's name ("CUDA1", "cuda:1", "mps"); wins over limits.
        limits: memory, longest text and threads that the plan may use; what they leave open is as configured.
        prefer: "default", "quality" (F16 and Q8_0 first), "speed", "small" or "measured" (by `gguf-embed eval`).
        truncate_dim: components to keep of every vector (MRL).
        pooling_type: "last", "mean" or "cls", for a file whose header does not say.
        add_eos: end texts with EOS, for a file whose header does not say.
        isolation: "process" for a child, whose crash (WorkerCrashedError) leaves this process alone; None for none.
        expect_fingerprint: of vectors made before; any others are refused with a FingerprintError.

    Raises:
        UnknownModelError: nothing answers to `model`.
        UnknownQuantError: the model is known, the quantization is not.
        DimensionError: the model was not trained for truncate_dim.
        ConfigError: a setting cannot be used.
    """

    def __init__(  # noqa: PLR0913 - what an Embedder is told
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        limits: Limits | None = None,
        prefer: str = "default",
        truncate_dim: int | None = None,
        pooling_type: str | None = None,
        add_eos: bool | None = None,
        isolation: str | None = None,
        expect_fingerprint: str | None = None,
    ) -> None:
        if isolation not in (None, "process"):
            raise ValueError(f"isolation is {isolation!r}; it is None or 'process'")
        limits = limits or Limits()
        self._model = LazyModel(
            None if model is None else os.fspath(model),
            limits=dataclasses.replace(limits, device=device) if device else limits,
            prefer=prefer,
            overrides=Overrides(pooling_type=pooling_type, add_eos=add_eos),
            in_process=isolation is None,
            expects=expect_fingerprint,
        )
        self._truncate_dim = truncate_dim
        spec = self._model.spec
        if truncate_dim is not None and spec is not None:
            check_dim(truncate_dim, spec.n_embd, model=spec.model_id, matryoshka=spec.matryoshka)

    @property
    def plan(self) -> Plan:
        """The quantization that was chosen, where it runs, what it costs and why the others lost.

        Raises:
            DoesNotFitError: nothing fits.
            HubError: a header or a listing that is needed cannot be fetched.
        """
        return self._model.selection().plan

    @property
    def model_id(self) -> str:
        """The registry's name of the model, else the repository or file."""
        return self._model.selection().resolved.model_id

    @property
    def prompts(self) -> PromptSet:
        """The prompts that the model was trained with; empty where the registry does not know it."""
        return self._model.prompts

    @property
    def dim(self) -> int:
        """Components of the vectors that `encode` returns."""
        return self._truncate_dim or self.n_embd

    @property
    def n_embd(self) -> int:
        """Components of the model's full vectors."""
        return self._model.n_embd

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens, special ones included."""
        return self._model.max_tokens

    def get_embedding_dimension(self) -> int:
        """Return `dim`; sentence-transformers' name for it."""
        return self.dim

    @property
    def fingerprint(self) -> str:
        """32 hex digits, equal only where vectors compare (see fingerprints.Recipe); may read the whole file once."""
        return self.fingerprint_of(EncodeOptions())

    def fingerprint_of(self, options: EncodeOptions) -> str:
        """Return the fingerprint of vectors that are made with these options."""
        return self._model.fingerprint(options.truncate_dim or self.dim, options)

    def fetch(self, on_progress: OnProgress | None = None) -> Path:
        """Plan and fetch now, without loading; as `load` otherwise."""
        return self._model.fetch(on_progress)

    def load(self, on_progress: OnProgress | None = None) -> Path:
        """Plan, fetch and load now, and return the file.

        Args:
            on_progress: called while downloading, with bytes present and bytes in all.

        Raises:
            GGUFEmbedError: whatever stands in the way, each with its own class.
        """
        return self._model.open(on_progress)[1].path

    @overload
    def encode(self, inputs: str, **options: Unpack[EncodeKeywords]) -> NDArray[np.float32]: ...
    @overload
    def encode(self, inputs: Sequence[str], **options: Unpack[EncodeKeywords]) -> Float32Matrix: ...
    def encode(  # noqa: PLR0913 - sentence-transformers' words
        self,
        inputs: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        precision: str = "float32",
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        truncate: str = "error",
    ) -> NDArray[Any]:
        """Turn texts into vectors, as they are or with a prompt.

        Args:
            inputs: one text, or any number of them.
            prompt_name: a prompt of the model, such as "query".
            prompt: put before each text as it is; wins over prompt_name.
            batch_size: at most this many texts a decode; memory is bounded by tokens, not by it.
            show_progress_bar: draw one on stderr.
            precision: "float32", "float16", or as in sentence-transformers "int8", "uint8" (of two texts or more),
                "binary", "ubinary".
            normalize_embeddings: give rows unit length.
            truncate_dim: components to keep (MRL), None for the Embedder's.
            truncate: "error" for over-long texts, or "end" to cut them before their EOS and warn.

        Returns:
            (dim,) float32 for a text, (n, dim) for a sequence, (0, dim) for none.

        Raises:
            TypeError: an input is not a str.
            ValueError: an unknown prompt_name, truncate or precision, or batch_size below 1.
            InputError: a text cannot be tokenized or is too long, or truncate_dim is not allowed.
            NonFiniteEmbeddingError: the model gave no usable vector for one text.
            ClosedError: after close().
        """
        return self._encode(inputs, show_progress_bar, EncodeOptions(
            prompt_name=prompt_name, prompt=prompt, batch_size=batch_size, precision=precision,
            normalize_embeddings=normalize_embeddings, truncate_dim=truncate_dim, truncate=truncate,
        ))  # fmt: skip

    @overload
    def encode_query(self, inputs: str, **options: Unpack[QueryKeywords]) -> NDArray[np.float32]: ...
    @overload
    def encode_query(self, inputs: Sequence[str], **options: Unpack[QueryKeywords]) -> Float32Matrix: ...
    def encode_query(  # noqa: PLR0913 - sentence-transformers' words
        self,
        inputs: str | Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str | None = "query",
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        precision: str = "float32",
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        truncate: str = "error",
    ) -> NDArray[Any]:
        """Turn search queries into vectors, with the model's query prompt; as `encode` otherwise.

        `task` takes the place of the default task in the prompt; a model that takes none raises ValueError.
        """
        return self._encode(inputs, show_progress_bar, EncodeOptions(
            prompt_name=prompt_name, prompt=prompt, task=task, batch_size=batch_size, precision=precision,
            normalize_embeddings=normalize_embeddings, truncate_dim=truncate_dim, truncate=truncate,
        ))  # fmt: skip

    @overload
    def encode_document(self, inputs: str, **options: Unpack[EncodeKeywords]) -> NDArray[np.float32]: ...
    @overload
    def encode_document(self, inputs: Sequence[str], **options: Unpack[EncodeKeywords]) -> Float32Matrix: ...
    def encode_document(  # noqa: PLR0913 - sentence-transformers' words
        self,
        inputs: str | Sequence[str],
        *,
        prompt_name: str | None = "document",
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        precision: str = "float32",
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        truncate: str = "error",
    ) -> NDArray[Any]:
        """Turn documents into vectors, with the model's document prompt where it has one; as `encode` otherwise."""
        return self._encode(inputs, show_progress_bar, EncodeOptions(
            prompt_name=prompt_name, prompt=prompt, batch_size=batch_size, precision=precision,
            normalize_embeddings=normalize_embeddings, truncate_dim=truncate_dim, truncate=truncate,
        ))  # fmt: skip

    def report(
        self, inputs: Iterable[str], options: EncodeOptions | None = None, *, on_batch: OnProgress | None = None
    ) -> EmbedReport:
        """Embed texts and also tell their tokens and which were cut.

        Args:
            inputs: the texts.
            options: how; None for the defaults.
            on_batch: called after each decode with its texts and tokens.

        Raises:
            Exception: as `encode`.
        """
        options = options or EncodeOptions()
        texts = as_list(inputs)
        options.check_n_texts(len(texts))
        how = prepare(options, self._model.spec, lambda: self.n_embd, truncate_dim=self._truncate_dim)
        self._model.warn_of_missing_prompt(options)
        embeddings = np.empty((len(texts), how.dim), dtype=np.float32)
        n_tokens: list[int] = []
        truncated: list[int] = []
        if texts:
            session, opened = self._model.open()
            self._model.check_fingerprint(how.dim, options)
            n_tokens, truncated = session.embed_texts(
                texts,
                embeddings,
                finish=how.finish,
                truncate=options.truncate,
                prefix=how.prefix,
                batch_size=options.batch_size,
                on_batch=on_batch,
            )
            if truncated:
                logger.warning("%d of %d texts were cut to %d tokens", len(truncated), len(texts), opened.max_tokens)
        return EmbedReport(
            embeddings=vectors.quantize_embeddings(embeddings, options.precision),
            n_tokens=tuple(n_tokens),
            truncated=tuple(truncated),
        )

    def encode_stream(
        self,
        inputs: Iterable[str | tuple[Any, str]],
        options: EncodeOptions | None = None,
        *,
        chunking: Chunking | None = None,
        cache: VectorCache | bool = False,
    ) -> Iterator[StreamResult]:
        """Embed any number of texts in the memory of a thousand.

        Args:
            inputs: texts, or pairs of an id and a text; an id left out is the text's position. They are read as
                results are taken, at most 1,024 texts or 64 KiB and one text ahead.
            options: how, as for `report`; not "int8" and "uint8", which need the range of all vectors:
                take float32 and `quantize_embeddings` with ranges.
            chunking: what becomes of long texts; None for an error on each.
            cache: rows of before; True for the user's own, which all programs share.

        Yields:
            A result for each text in order, or for each chunk of it. A text that cannot be embedded has its error in
            the result and stops nothing.

        Raises:
            TypeError: an input is not a str or a pair.
            Exception: as `encode`, but for what a single text is to blame for.
        """
        blocks = self.stream(plain_texts(inputs), options or EncodeOptions(), chunking=chunking, cache=cache)
        return (result for block in blocks for result in block.results)

    def stream(
        self,
        texts: Iterable[Text],
        options: EncodeOptions,
        *,
        chunking: Chunking | None = None,
        cache: VectorCache | bool = False,
        on_batch: OnProgress | None = None,
    ) -> Iterator[Block]:
        """Embed as `encode_stream` does, in the blocks that are computed together; `on_batch` as for `report`."""
        self._model.warn_of_missing_prompt(options)
        rows = user_cache(self._model.config) if cache is True else cache or None
        stream = TextStream(
            self._model, options, truncate_dim=self._truncate_dim, chunking=chunking or Chunking(), cache=rows,
            on_batch=on_batch,
        )  # fmt: skip
        self._model.check_fingerprint(stream.dim, options)
        return closing(rows, stream.blocks(texts)) if rows is not None and cache is True else stream.blocks(texts)

    def encode_multi_dim(
        self, inputs: Iterable[str], dims: Sequence[int], options: EncodeOptions | None = None
    ) -> dict[int, NDArray[Any]]:
        """Embed texts once and cut the vectors to several lengths (MRL).

        Args:
            inputs: the texts.
            dims: components to keep; each is checked before anything is embedded.
            options: as for `report`, but for truncate_dim.

        Returns:
            By length, (n, dim) as `encode` gives it for that truncate_dim.
        """
        options = options or EncodeOptions()
        cuts = {dim: prepare(dataclasses.replace(options, truncate_dim=dim), self._model.spec, lambda: self.n_embd)
                for dim in dims}  # fmt: skip
        raw = dataclasses.replace(options, normalize_embeddings=False, truncate_dim=self.n_embd, precision="float32")
        rows = self.report(inputs, raw).embeddings
        return {dim: vectors.quantize_embeddings(how.finish(rows), options.precision) for dim, how in cuts.items()}

    def tokenize(self, inputs: str | Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, or of the one text, as the model sees it: special ones, no prompt.

        Raises:
            TypeError: an input is not a str.
            InputError: a text cannot be tokenized or is too long.
        """
        tokens, _ = self._model.open()[0].tokenize([inputs] if isinstance(inputs, str) else as_list(inputs))
        return [ids.tolist() for ids in tokens]

    def similarity(self, a: ArrayLike, b: ArrayLike) -> Float32Matrix:
        """Return the cosine of every vector of `a` with every vector of `b`, (n, m) float32."""
        return vectors.similarity(a, b)

    def similarity_pairwise(self, a: ArrayLike, b: ArrayLike) -> NDArray[np.float32]:
        """Return the cosine of the first of `a` with the first of `b`, and so on, (n,) float32."""
        return vectors.similarity_pairwise(a, b)

    def _encode(self, inputs: str | Sequence[str], show_progress_bar: bool, options: EncodeOptions) -> NDArray[Any]:
        texts = [inputs] if isinstance(inputs, str) else as_list(inputs)
        with texts_progress(len(texts)) if show_progress_bar else contextlib.nullcontext() as on_batch:
            report = self.report(texts, options, on_batch=on_batch)
        return report.embeddings[0] if isinstance(inputs, str) else report.embeddings

    def close(self) -> None:
        """Free the model; closing twice is allowed, use after it raises ClosedError."""
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Embedder({self._model.text!r})"
