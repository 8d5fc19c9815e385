"""Embedder: what a user holds. It composes catalog, plan, session, prompts and vectors, and does nothing itself.

It must not know the command line, HTTP or files of texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_embed import vectors
from gguf_embed.config import load_config
from gguf_embed.engine.session import Session, SessionSettings
from gguf_embed.errors import ClosedError, DimensionError
from gguf_embed.fit import hardware, planner
from gguf_embed.models.catalog import Catalog, Resolved, Source
from gguf_embed.models.header import ModelFacts, check_embeddable, load_facts
from gguf_embed.prompts import PromptSet, resolve_prompt

__all__ = ["EmbedReport", "Embedder", "EncodeOptions"]

logger = logging.getLogger(__name__)

Float32Matrix = NDArray[np.float32]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """How texts become vectors.

    Attributes:
        prompt_name: a prompt of the model, such as "query".
        prompt: put before each text as it is; wins over prompt_name.
        task: takes the place of the task in the query prompt.
        batch_size: at most this many texts a decode; memory is bounded by tokens, not by it.
        normalize_embeddings: give rows unit length.
        truncate_dim: components to keep (MRL), None for the Embedder's.
        truncate: "error" for over-long texts, or "end" to cut them.
        precision: "float32", "int8", "uint8", "binary" or "ubinary".
    """

    prompt_name: str | None = None
    prompt: str | None = None
    task: str | None = None
    batch_size: int | None = None
    normalize_embeddings: bool = True
    truncate_dim: int | None = None
    truncate: str = "error"
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.batch_size is not None and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise ValueError(f"batch_size is {self.batch_size!r}; it is a whole number of at least 1")
        if self.truncate not in ("error", "end"):
            raise ValueError(f"truncate is {self.truncate!r}; it is 'error' or 'end'")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedReport:
    """Embeddings and what happened on the way.

    Attributes:
        embeddings: (n, dim) in the order of the texts.
        n_tokens: tokens of each text as embedded, special ones included.
        truncated: positions of the texts that were cut.
    """

    embeddings: NDArray[Any]
    n_tokens: tuple[int, ...]
    truncated: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """Everything known before the weights load."""

    resolved: Resolved
    source: Source
    plan: planner.Plan
    pooling_type: str
    add_eos: bool | None


class Embedder:
    """A model that turns texts into vectors; nothing is planned, fetched or loaded before it is needed.

    Rows have unit length unless `normalize_embeddings=False` (sentence-transformers has it the other way round).
    Safe to share between threads.

    Args:
        model: a model reference, such as "qwen3-embedding-4b", "qwen3-embedding-4b:Q3_K_M", "owner/repo:Q4_K_M" or
            "./file.gguf"; None takes the configured one.
        device: "auto", "gpu" or "cpu"; wins over limits.
        limits: memory, longest text and threads that the plan may use.
        prefer: "default", or "quality" to try F16 and Q8_0 first.
        truncate_dim: components to keep of every vector (MRL).
        pooling_type: "last", "mean" or "cls", for a file whose header does not say.
        add_eos: end texts with EOS, for a file whose header does not say.

    Raises:
        UnknownModelError: nothing answers to `model`.
        UnknownQuantError: the model is known, the quantization is not.
        DimensionError: the model was not trained for truncate_dim.
        ConfigError: a setting cannot be used.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        device: str | None = None,
        limits: planner.Limits | None = None,
        prefer: str = "default",
        truncate_dim: int | None = None,
        pooling_type: str | None = None,
        add_eos: bool | None = None,
    ) -> None:
        config = load_config()
        self._catalog = Catalog(config)
        self._text = config.model if model is None else model
        self._prefer = prefer
        self._pooling_type, self._add_eos = pooling_type, add_eos
        limits = limits or planner.Limits(
            memory_bytes=config.memory_bytes, device=config.device, n_threads=config.n_threads
        )
        self._limits = dataclasses.replace(limits, device=device) if device else limits
        self._spec = self._catalog.parse(self._text).spec
        self._truncate_dim = truncate_dim
        if truncate_dim is not None and self._spec is not None:
            self._check_dim(truncate_dim, self._spec.n_embd)
        self._lock = threading.RLock()
        self._ready: _Ready | None = None
        self._path: Path | None = None
        self._session: Session | None = None
        self._is_closed = False

    # What is known of the model

    @property
    def plan(self) -> planner.Plan:
        """The quantization that was chosen, where it runs, what it costs and why the others lost.

        Raises:
            DoesNotFitError: nothing fits.
            HubError: a header or a listing that is needed cannot be fetched.
        """
        return self._prepare().plan

    @property
    def model_id(self) -> str:
        """The registry's name of the model, else the repository or file."""
        return self._prepare().resolved.model_id

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
        return self._spec.n_embd if self._spec is not None else self._loaded().n_embd

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens, special ones included."""
        return self._loaded().max_tokens

    def get_embedding_dimension(self) -> int:
        """Return `dim`; sentence-transformers' name for it."""
        return self.dim

    @property
    def fingerprint(self) -> str:
        """32 hex digits that are equal only where vectors compare: file, pooling, EOS, prompts and length.

        Reads the whole file once where its checksum is not known from the cache.
        """
        ready, path = self._prepare(), self.load()
        facts: dict[str, Any] = {
            "sha256": _sha256(path),
            "pooling_type": ready.pooling_type,
            "add_eos": ready.add_eos if ready.add_eos is not None else ready.plan.facts.add_eos,
            "prompts": dataclasses.asdict(self.prompts),
            "dim": self.dim,
            "normalize": True,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

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
        with self._lock:
            if self._is_closed:
                raise ClosedError(f"the Embedder of {self._text!r} was closed; make a new one")
            if self._path is None or self._session is None:
                ready = self._prepare()
                self._path = self._catalog.fetch(ready.resolved, ready.source, on_progress=on_progress)
                ready = self._ready = self._checked_on_disk(ready, self._path)
                self._session = Session(_settings(ready, self._path))
            return self._path

    def _loaded(self) -> Session:
        with self._lock:
            self.load()
            if self._session is None:
                raise ClosedError(f"the Embedder of {self._text!r} was closed; make a new one")
            return self._session

    def _prepare(self) -> _Ready:
        with self._lock:
            if self._ready is None:
                resolved = self._catalog.resolve(self._text, prefer=self._prefer)
                candidates, poolings = {}, {}
                for source in resolved.sources:
                    facts = self._catalog.facts(resolved, source)
                    pooling = self._pooling(facts, Path(source.name))
                    candidates[source.quant] = planner.Candidate(
                        quant=source.quant,
                        facts=dataclasses.replace(facts, pooling_type=pooling),
                        is_on_disk=source.is_on_disk,
                    )
                    poolings[source.quant] = pooling
                plan = planner.plan(resolved.model_id, tuple(candidates.values()), hardware.probe(), self._limits)
                source = next(source for source in resolved.sources if source.quant == plan.quant)
                self._ready = _Ready(
                    resolved=resolved,
                    source=source,
                    plan=plan,
                    pooling_type=poolings[plan.quant],
                    add_eos=self._eos_override(plan.facts),
                )
            return self._ready

    def _pooling(self, facts: ModelFacts, path: Path) -> str:
        return check_embeddable(
            facts, path, pooling_type=self._pooling_type or (self._spec and self._spec.pooling_type)
        )

    def _eos_override(self, facts: ModelFacts) -> bool | None:
        """What to tell llama.cpp about EOS, None where the header may speak for itself."""
        wanted = self._add_eos if self._add_eos is not None else self._spec.add_eos if self._spec is not None else None
        return None if wanted == facts.add_eos else wanted

    def _checked_on_disk(self, ready: _Ready, path: Path) -> _Ready:
        """Look at the file that was really fetched, and say where its header is overridden."""
        facts = load_facts(path)
        pooling = self._pooling(facts, path)
        add_eos = self._eos_override(facts)
        whose = "as told" if self._spec is None else f"as the registry has it for {self._spec.model_id}"
        if facts.pooling_type != pooling:
            logger.warning("%s: pooling is %s in the file; using %s, %s", path.name, facts.pooling_type, pooling, whose)
        if add_eos is not None:
            logger.warning(
                "%s: add_eos_token is %s in the file; using %s, %s", path.name, facts.add_eos, add_eos, whose
            )
        return dataclasses.replace(ready, pooling_type=pooling, add_eos=add_eos)

    # Embedding

    @overload
    def encode(self, inputs: str, **options: Any) -> NDArray[np.float32]: ...
    @overload
    def encode(self, inputs: Sequence[str], **options: Any) -> Float32Matrix: ...
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
            precision: "float32", or "int8", "uint8", "binary", "ubinary" as in sentence-transformers.
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
    def encode_query(self, inputs: str, **options: Any) -> NDArray[np.float32]: ...
    @overload
    def encode_query(self, inputs: Sequence[str], **options: Any) -> Float32Matrix: ...
    def encode_query(
        self, inputs: str | Sequence[str], *, task: str | None = None, show_progress_bar: bool = False, **options: Any
    ) -> NDArray[Any]:
        """Turn search queries into vectors, with the model's query prompt.

        Args:
            inputs: one query, or any number of them.
            task: takes the place of the default task in the prompt.
            show_progress_bar: draw one on stderr.
            options: as in `encode`; `prompt_name` and `prompt` replace the query prompt.

        Returns:
            As `encode`.

        Raises:
            ValueError: the model takes no task; and as `encode`.
        """
        options.setdefault("prompt_name", "query")
        return self._encode(inputs, EncodeOptions(task=task, **options), show_progress_bar=show_progress_bar)

    @overload
    def encode_document(self, inputs: str, **options: Any) -> NDArray[np.float32]: ...
    @overload
    def encode_document(self, inputs: Sequence[str], **options: Any) -> Float32Matrix: ...
    def encode_document(
        self, inputs: str | Sequence[str], *, show_progress_bar: bool = False, **options: Any
    ) -> NDArray[Any]:
        """Turn documents into vectors, with the model's document prompt where it has one.

        Args:
            inputs: one document, or any number of them.
            show_progress_bar: draw one on stderr.
            options: as in `encode`; `prompt_name` and `prompt` replace the document prompt.

        Returns:
            As `encode`.

        Raises:
            ValueError: as `encode`.
        """
        options.setdefault("prompt_name", "document")
        return self._encode(inputs, EncodeOptions(**options), show_progress_bar=show_progress_bar)

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
        texts = _as_list(inputs)
        prefix = resolve_prompt(self.prompts, prompt_name=options.prompt_name, prompt=options.prompt, task=options.task)
        dim = self._check_dim(options.truncate_dim or self._truncate_dim, None) if texts else None
        if not texts:
            width = options.truncate_dim or self.dim
            return EmbedReport(embeddings=np.empty((0, width), dtype=np.float32), n_tokens=(), truncated=())
        session = self._loaded()
        tokens, truncated = session.tokenize(texts, truncate=options.truncate, prefix=prefix)
        if truncated:
            logger.warning("%d of %d texts were cut to %d tokens", len(truncated), len(texts), session.max_tokens)
        rows = session.embed(tokens, batch_size=options.batch_size, on_batch=on_batch)
        embeddings = self._finish(rows, dim, normalize=options.normalize_embeddings)
        return EmbedReport(
            embeddings=vectors.quantize_embeddings(embeddings, options.precision),
            n_tokens=tuple(len(ids) for ids in tokens),
            truncated=tuple(truncated),
        )

    def tokenize(self, inputs: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text as the model sees it, special ones included, without a prompt.

        Raises:
            TypeError: an input is not a str.
            InputError: a text cannot be tokenized or is too long.
        """
        tokens, _ = self._loaded().tokenize(_as_list(inputs))
        return [ids.tolist() for ids in tokens]

    def similarity(self, a: ArrayLike, b: ArrayLike) -> Float32Matrix:
        """Return the cosine of every vector of `a` with every vector of `b`, (n, m) float32."""
        return vectors.similarity(a, b)

    def similarity_pairwise(self, a: ArrayLike, b: ArrayLike) -> NDArray[np.float32]:
        """Return the cosine of the first of `a` with the first of `b`, and so on, (n,) float32."""
        return vectors.similarity_pairwise(a, b)

    def _encode(self, inputs: str | Sequence[str], options: EncodeOptions, *, show_progress_bar: bool) -> NDArray[Any]:
        is_one = isinstance(inputs, str)
        texts = [inputs] if isinstance(inputs, str) else _as_list(inputs)
        if show_progress_bar:
            from gguf_embed.progress import texts_progress  # noqa: PLC0415 - rich costs 60 ms

            with texts_progress(len(texts)) as on_batch:
                report = self.report(texts, options, on_batch=on_batch)
        else:
            report = self.report(texts, options)
        return report.embeddings[0] if is_one else report.embeddings

    def _finish(self, rows: Float32Matrix, dim: int | None, *, normalize: bool) -> Float32Matrix:
        """Raw rows to what was asked for: (layer norm), L2, cut, L2."""
        if dim is None or dim == rows.shape[1]:
            return vectors.l2_normalize(rows) if normalize else rows
        matryoshka = self._spec.matryoshka if self._spec is not None else None
        if matryoshka is not None and matryoshka.layer_norm_first:
            rows = vectors.layer_norm(rows)
        return vectors.truncate_dim(rows, dim) if normalize else np.ascontiguousarray(rows[:, :dim])

    def _check_dim(self, dim: int | None, n_embd: int | None) -> int | None:
        if dim is None:
            return None
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise TypeError(f"truncate_dim is {dim!r}; it is a whole number")
        full = n_embd or self.n_embd
        matryoshka = self._spec.matryoshka if self._spec is not None else None
        allowed = matryoshka.describe(full) if matryoshka is not None else str(full)
        if dim == full or (matryoshka is not None and matryoshka.allows(dim, full)):
            return dim
        if self._spec is None:
            why = "whether this file was trained to be cut is not known; cut it yourself with gguf_embed.truncate_dim()"
        elif matryoshka is None:
            why = f"{self._spec.model_id} was not trained to be cut; it gives {full}"
        else:
            why = f"{self._spec.model_id} gives {allowed}"
        raise DimensionError(f"truncate_dim is {dim}; {why}", dim=dim, allowed=allowed)

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


def _settings(ready: _Ready, path: Path) -> SessionSettings:
    plan = ready.plan
    return SessionSettings(
        path=path,
        pooling_type=ready.pooling_type,
        add_eos=ready.add_eos,
        n_ctx=plan.n_ctx,
        n_ctx_max=plan.n_ctx_max,
        n_batch=plan.n_batch,
        n_ubatch=plan.n_ubatch,
        n_seq_max=plan.n_seq_max,
        n_gpu_layers=plan.n_gpu_layers,
        device=plan.device,
        load_mode=plan.load_mode,
        n_threads=plan.n_threads,
    )


def _as_list(inputs: Iterable[str]) -> list[str]:
    if isinstance(inputs, str | bytes | bytearray | dict) or not isinstance(inputs, Iterable):
        raise TypeError(f"expected texts, got {type(inputs).__name__}")
    return list(inputs)


def _sha256(path: Path) -> str:
    """The file's checksum; a blob of the Hugging Face cache carries it as its name."""
    name = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
