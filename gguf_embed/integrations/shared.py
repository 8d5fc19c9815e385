"""The models that adapters share: one Embedder in a process for each model and way of running it.

Hosts build several copies of an adapter, and write them to disk; so a copy holds options, and asks here for the model.
It must not know any host.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from gguf_embed.config import load_config
from gguf_embed.embedder import Embedder
from gguf_embed.encoding import EmbedReport, EncodeOptions
from gguf_embed.errors import ClosedError, MissingExtraError
from gguf_embed.fit.planner import Limits
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.ladders import PREFERENCES
from gguf_embed.models.refs import Reference
from gguf_embed.sizes import parse_size

__all__ = ["ModelKeywords", "SharedModel", "close_shared_models", "configured_model", "missing_host"]


class _Pool:
    """The Embedders of this process by what tells them apart."""

    def __init__(self) -> None:
        self.isolation: str | None = None
        self.embedders: dict[tuple[Any, ...], Embedder] = {}
        self.lock = threading.Lock()

    def begin_in_fork(self) -> None:
        """Start afresh in a forked child, where OpenMP waits for ever for threads that its parent computed with.

        Source: libgomp, GCC bug 58378. Who used OpenMP in the parent cannot be known, so a child computes in a process
        that is not forked.
        """
        self.isolation, self.embedders, self.lock = "process", {}, threading.Lock()


_pool = _Pool()


class ModelKeywords(TypedDict, total=False):
    """Keywords of SharedModel, but for the model's name, which each host calls by a name of its own."""

    truncate_dim: int | None
    task: str | None
    truncate: str
    prefer: str
    device: str | None
    memory: str | None
    n_threads: int | None
    expect_fingerprint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedModel:
    """What an adapter is told, and the vectors that come of it; picklable, since it holds no model.

    Attributes:
        model: a model reference, as for Embedder.
        truncate_dim: components to keep (MRL); models that differ in it alone are one in memory.
        task: takes the place of the task in the query prompt.
        truncate: "error" for over-long texts, or "end" to cut them and warn.
        prefer: which quantizations come first, as for Embedder.
        device: "auto", "gpu", "cpu" or a device's name; None for the configured one.
        memory: most memory that the plan may use, such as "4GiB"; None for what is free.
        n_threads: CPU threads; None for the physical cores.
        expect_fingerprint: of vectors made before; any others are refused with a FingerprintError.

    Raises:
        TypeError: an option is of another type.
        ValueError: an option cannot be used.
    """

    model: str
    truncate_dim: int | None = None
    task: str | None = None
    truncate: str = "error"
    prefer: str = "default"
    device: str | None = None
    memory: str | None = None
    n_threads: int | None = None
    expect_fingerprint: str | None = None

    def __post_init__(self) -> None:
        for name, kind in (("memory", str), ("n_threads", int), ("task", str)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise TypeError(f"{name} is {value!r}; it is {'a whole number' if kind is int else 'a str'}")
        if self.prefer not in PREFERENCES:
            raise ValueError(f"prefer is {self.prefer!r}; it is one of {', '.join(PREFERENCES)}")
        self._options("query")
        self._limits()

    @property
    def embedder(self) -> Embedder:
        """The Embedder that all of this process share; it plans, fetches and loads at its first use.

        Raises:
            UnknownModelError: nothing answers to `model`.
            UnknownQuantError: the model is known, the quantization is not.
            ConfigError: a setting cannot be used.
        """
        config = load_config()
        reference = Catalog(config).parse(self.model)
        place = dataclasses.replace(config, model="")  # which model is the configured one makes no difference
        key = (place, *_identity(reference), self.prefer, self._limits().over(config), self.expect_fingerprint)
        with _pool.lock:
            if key not in _pool.embedders:
                _pool.embedders[key] = Embedder(
                    self.model, limits=self._limits(), prefer=self.prefer, isolation=_pool.isolation,
                    expect_fingerprint=self.expect_fingerprint,
                )  # fmt: skip
            return _pool.embedders[key]

    def check(self) -> None:
        """Refuse now what could not be had later; plans and loads nothing.

        Raises:
            UnknownModelError: nothing answers to `model`.
            UnknownQuantError: the model is known, the quantization is not.
            DimensionError: the model was not trained for truncate_dim.
            ValueError: the model takes no task, or expect_fingerprint is none.
        """
        model = Embedder(
            self.model, limits=self._limits(), prefer=self.prefer, truncate_dim=self.truncate_dim,
            expect_fingerprint=self.expect_fingerprint,
        )  # fmt: skip
        if self.task is not None and model.prompts.query_template is None:
            raise ValueError(f"{self.model} takes no task, so {self.task!r} has no place; leave task out")

    @property
    def dim(self) -> int:
        """Components of the vectors."""
        return self.embedder.n_embd if self.truncate_dim is None else self.truncate_dim

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed search queries, with the model's query prompt.

        Returns:
            (n, dim) float32, rows of unit length.

        Raises:
            Exception: as Embedder.encode_query.
        """
        return self.report(texts, "query").embeddings

    def documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed documents, with the model's document prompt where it has one; as `queries` otherwise."""
        return self.report(texts, "document").embeddings

    def report(
        self, texts: Sequence[str], kind: str, *, on_batch: Callable[[int, int], None] | None = None
    ) -> EmbedReport:
        """Embed texts and also tell their tokens.

        Args:
            texts: to embed.
            kind: "query" or "document".
            on_batch: called after each decode with its texts and tokens.

        Raises:
            Exception: as Embedder.encode_query.
        """
        while True:
            embedder = self.embedder
            try:
                return embedder.report(texts, self._options(kind), on_batch=on_batch)
            except ClosedError:
                if self.embedder is embedder:
                    raise
                # close_shared_models() came between: what is loaded now is another one

    def _options(self, kind: str) -> EncodeOptions:
        return EncodeOptions(
            prompt_name=kind,
            task=self.task if kind == "query" else None,
            truncate=self.truncate,
            truncate_dim=self.truncate_dim,
        )

    def _limits(self) -> Limits:
        memory_bytes = None if self.memory is None else parse_size(self.memory)
        return Limits(memory_bytes=memory_bytes, device=self.device, n_threads=self.n_threads)


def configured_model() -> str:
    """Name the model that is meant where none is named: what a host writes to disk has to say which one that was."""
    return load_config().model


def close_shared_models() -> None:
    """Free all models that adapters have loaded here; an adapter that is used again loads its model again."""
    with _pool.lock:
        embedders = list(_pool.embedders.values())
        _pool.embedders.clear()
    for embedder in embedders:
        embedder.close()


def missing_host(host: str, extra: str, error: ImportError) -> MissingExtraError:
    """Say which line installs the host of an adapter."""
    return MissingExtraError(
        f'{host} cannot be imported ({error}); run: pip install "gguf-embed[{extra}]"', extra=extra
    )


def _identity(reference: Reference) -> tuple[Any, ...]:
    """What two spellings of one model have in common."""
    model_id = reference.spec.model_id if reference.spec is not None else None
    path = reference.path.resolve() if reference.path is not None else None
    return model_id, reference.repo, reference.revision, reference.file, reference.quant, path


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.begin_in_fork)
