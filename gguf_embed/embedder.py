"""Embedder: what a user holds. It composes catalog, plan, session, prompts and vectors, and does nothing itself.

It must not know the command line, HTTP or files of texts.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_embed import vectors
from gguf_embed.config import load_config
from gguf_embed.encoding import EmbedReport, EncodeKeywords, EncodeOptions, QueryKeywords, as_list, check_dim, prepare
from gguf_embed.engine.session import Session
from gguf_embed.engine.worker import Worker
from gguf_embed.errors import ClosedError
from gguf_embed.fit.planner import Limits, Plan
from gguf_embed.models.catalog import Catalog
from gguf_embed.opening import Opened, Wish, open_session, open_worker
from gguf_embed.prompts import PromptSet
from gguf_embed.selection import Overrides, Selection, fingerprint, select

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
        prefer: "default", "quality" (F16 and Q8_0 first), "speed" or "small".
        truncate_dim: components to keep of every vector (MRL).
        pooling_type: "last", "mean" or "cls", for a file whose header does not say.
        add_eos: end texts with EOS, for a file whose header does not say.
        isolation: None to run in this process; "process" for a child, whose crash fails the calls that it was at
            (WorkerCrashedError) and leaves this process alone.

    Raises:
        UnknownModelError: nothing answers to `model`.
        UnknownQuantError: the model is known, the quantization is not.
        DimensionError: the model was not trained for truncate_dim.
        ConfigError: a setting cannot be used.
    """

    def __init__(
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
    ) -> None:
        if isolation not in (None, "process"):
            raise ValueError(f"isolation is {isolation!r}; it is None or 'process'")
        self._isolation = isolation
        config = load_config()
        self._catalog = Catalog(config)
        self._text = config.model if model is None else os.fspath(model)
        self._prefer = prefer
        self._overrides = Overrides(pooling_type=pooling_type, add_eos=add_eos)
        limits = (limits or Limits()).over(config)
        self._limits = dataclasses.replace(limits, device=device) if device else limits
        self._spec = self._catalog.parse(self._text).spec
        self._truncate_dim = truncate_dim
        if truncate_dim is not None and self._spec is not None:
            check_dim(truncate_dim, self._spec.n_embd, model=self._spec.model_id, matryoshka=self._spec.matryoshka)
        self._lock = threading.RLock()
        self._selection: Selection | None = None
        self._opened: Opened | None = None
        self._session: Session | Worker | None = None
        self._is_closed = self._has_warned = False

    @property
    def plan(self) -> Plan:
        """The quantization that was chosen, where it runs, what it costs and why the others lost.

        Raises:
            DoesNotFitError: nothing fits.
            HubError: a header or a listing that is needed cannot be fetched.
        """
        return self._select().plan

    @property
    def model_id(self) -> str:
        """The registry's name of the model, else the repository or file."""
        return self._select().resolved.model_id

    @property
    def prompts(self) -> PromptSet:
        """The prompts that the model was trained with; empty where the registry does not know it."""
        return self._spec.prompts if self._spec is not None else PromptSet()

    @property
    def dim(self) -> int:
        """Components of the vectors that `encode` returns."""
        return self._truncate_dim or self.n_embd

    @property
    def n_embd(self) -> int:
        """Components of the model's full vectors."""
        return self._spec.n_embd if self._spec is not None else self._loaded()[1].n_embd

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens, special ones included."""
        return self._loaded()[1].max_tokens

    def get_embedding_dimension(self) -> int:
        """Return `dim`; sentence-transformers' name for it."""
        return self.dim

    @property
    def fingerprint(self) -> str:
        """32 hex digits that are equal only where vectors compare: file, pooling, EOS, prompts and length.

        Reads the whole file once where its checksum is not known from the cache.
        """
        path = self.load()
        return fingerprint(self._select(), path, prompts=self.prompts, dim=self.dim)

    # Loading

    def load(self, on_progress: OnProgress | None = None) -> Path:
        """Plan, fetch and load now.

        Args:
            on_progress: called while downloading, with bytes present and bytes in all.

        Returns:
            The file that was loaded.

        Raises:
            GGUFEmbedError: whatever stands in the way, each with its own class.
        """
        return self._loaded(on_progress)[1].path

    def _loaded(self, on_progress: OnProgress | None = None) -> tuple[Session | Worker, Opened]:
        with self._lock:
            if self._is_closed:
                raise ClosedError(f"the Embedder of {self._text!r} was closed; make a new one")
            if self._session is None or self._opened is None:
                wish = Wish(
                    config=self._catalog.config, text=self._text, prefer=self._prefer, limits=self._limits,
                    overrides=self._overrides,
                )  # fmt: skip
                if self._isolation == "process":
                    self._session, self._opened = open_worker(wish, on_progress)
                else:
                    self._session, self._opened = open_session(
                        wish, on_progress, catalog=self._catalog, selection=self._select()
                    )
                self._selection = self._opened.selection
            return self._session, self._opened

    def _select(self) -> Selection:
        with self._lock:
            if self._selection is None:
                resolved = self._catalog.resolve(self._text, prefer=self._prefer)
                self._selection = select(self._catalog, resolved, limits=self._limits, overrides=self._overrides)
            return self._selection

    # Embedding

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
            precision: "float32", or "int8", "uint8" (of two texts or more), "binary", "ubinary" as in
                sentence-transformers.
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
        options = EncodeOptions(
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            truncate=truncate,
            precision=precision,
        )
        return self._encode(inputs, options, show_progress_bar=show_progress_bar)

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
        options = EncodeOptions(
            prompt_name=prompt_name,
            prompt=prompt,
            task=task,
            batch_size=batch_size,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            truncate=truncate,
            precision=precision,
        )
        return self._encode(inputs, options, show_progress_bar=show_progress_bar)

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
        options = EncodeOptions(
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            truncate=truncate,
            precision=precision,
        )
        return self._encode(inputs, options, show_progress_bar=show_progress_bar)

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
        how = prepare(options, self._spec, lambda: self.n_embd, truncate_dim=self._truncate_dim)
        self._warn_of_missing_prompt(options)
        embeddings = np.empty((len(texts), how.dim), dtype=np.float32)
        n_tokens: list[int] = []
        truncated: list[int] = []
        if texts:
            session, opened = self._loaded()
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

    def _warn_of_missing_prompt(self, options: EncodeOptions) -> None:
        if self._spec is None and options.prompt_name == "query" and options.prompt is None and not self._has_warned:
            self._has_warned = True
            logger.warning("no query prompt is known for %s; if its card has one, pass it as prompt", self._text)

    def tokenize(self, inputs: str | Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, or of the one text, as the model sees it: special ones, no prompt.

        Raises:
            TypeError: an input is not a str.
            InputError: a text cannot be tokenized or is too long.
        """
        tokens, _ = self._loaded()[0].tokenize([inputs] if isinstance(inputs, str) else as_list(inputs))
        return [ids.tolist() for ids in tokens]

    def similarity(self, a: ArrayLike, b: ArrayLike) -> Float32Matrix:
        """Return the cosine of every vector of `a` with every vector of `b`, (n, m) float32."""
        return vectors.similarity(a, b)

    def similarity_pairwise(self, a: ArrayLike, b: ArrayLike) -> NDArray[np.float32]:
        """Return the cosine of the first of `a` with the first of `b`, and so on, (n,) float32."""
        return vectors.similarity_pairwise(a, b)

    def _encode(self, inputs: str | Sequence[str], options: EncodeOptions, *, show_progress_bar: bool) -> NDArray[Any]:
        texts = [inputs] if isinstance(inputs, str) else as_list(inputs)
        if show_progress_bar:
            from gguf_embed.progress import texts_progress  # noqa: PLC0415 - rich costs 60 ms

            with texts_progress(len(texts)) as on_batch:
                report = self.report(texts, options, on_batch=on_batch)
        else:
            report = self.report(texts, options)
        return report.embeddings[0] if isinstance(inputs, str) else report.embeddings

    # Closing

    def close(self) -> None:
        """Free the model; closing twice is allowed, use after it raises ClosedError."""
        with self._lock:
            self._is_closed = True
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Embedder({self._text!r})"
