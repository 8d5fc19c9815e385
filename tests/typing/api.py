"""The types that users see; mypy reads this, nobody runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import gguf_embed
from gguf_embed import (
    DoesNotFitError,
    Embedder,
    EmbedReport,
    EncodeOptions,
    GGUFEmbedError,
    Limits,
    MissingExtraError,
    Plan,
    TextTooLongError,
    similarity,
    similarity_pairwise,
    truncate_dim,
)

Matrix = NDArray[np.float32]


def encoding(model: Embedder, one: str, many: list[str], fixed: tuple[str, ...], any_number: Sequence[str]) -> None:
    """A text and a sequence of texts both give float32 arrays, with every keyword."""
    assert_type(model.encode(one), NDArray[np.float32])
    assert_type(model.encode(many), Matrix)
    assert_type(model.encode(fixed), Matrix)
    assert_type(model.encode(any_number), Matrix)
    assert_type(model.encode_query(one, task="t", truncate_dim=512), NDArray[np.float32])
    assert_type(model.encode_document(many, batch_size=8, show_progress_bar=True), Matrix)
    model.encode(
        one,
        prompt_name="query",
        prompt=None,
        batch_size=None,
        show_progress_bar=False,
        precision="float32",
        normalize_embeddings=True,
        truncate_dim=None,
        truncate="error",
    )


def refused(model: Embedder) -> None:
    """What mypy must refuse; an ignore that is not needed is an error, so each line is really refused."""
    model.encode(3)  # type: ignore[call-overload]
    model.encode(["a", 3])  # type: ignore[list-item]
    model.encode(b"bytes")  # type: ignore[arg-type]
    model.encode("a", dim=3)  # type: ignore[call-overload]
    model.encode("a", None)  # type: ignore[call-overload]
    model.encode("a", task="t")  # type: ignore[call-overload]
    model.encode("a", batch_size="8")  # type: ignore[call-overload]
    Embedder("m", "cpu")  # type: ignore[call-arg]
    Embedder("m", context=3)  # type: ignore[call-arg]


def facts(model: Embedder) -> None:
    """What is known of a model."""
    assert_type(model.dim, int)
    assert_type(model.n_embd, int)
    assert_type(model.max_seq_length, int)
    assert_type(model.get_embedding_dimension(), int)
    assert_type(model.fingerprint, str)
    assert_type(model.model_id, str)
    assert_type(model.load(), Path)
    assert_type(model.tokenize(["a"]), list[list[int]])
    assert_type(model.plan, Plan)
    assert_type(model.plan.quant, str)
    assert_type(model.plan.required_bytes, int)
    assert_type(model.plan.device, str | None)
    model.dim = 3  # type: ignore[misc]


def reports(model: Embedder) -> None:
    """The long form tells tokens and cuts."""
    report = model.report(["a"], EncodeOptions(truncate="end"))
    assert_type(report, EmbedReport)
    assert_type(report.embeddings, NDArray[Any])
    assert_type(report.n_tokens, tuple[int, ...])
    assert_type(report.truncated, tuple[int, ...])
    report.truncated = ()  # type: ignore[misc]
    EncodeOptions(trunc="end")  # type: ignore[call-arg]


def comparing(model: Embedder, rows: Matrix) -> None:
    """Vectors and lists compare, through the model and without one."""
    assert_type(model.similarity(rows, [[0.1, 0.2]]), Matrix)
    assert_type(model.similarity_pairwise(rows, rows), NDArray[np.float32])
    assert_type(similarity(rows, rows), Matrix)
    assert_type(similarity_pairwise(rows, rows), NDArray[np.float32])
    assert_type(truncate_dim(rows, 3), Matrix)


def making() -> None:
    """Every way to make one."""
    with Embedder() as model:
        assert_type(model, Embedder)
    Embedder(
        "qwen3-embedding-4b:Q3_K_M",
        device="cpu",
        limits=Limits(memory_bytes=4 << 30, device="auto", n_ctx=512, n_threads=4),
        prefer="quality",
        truncate_dim=512,
        pooling_type="last",
        add_eos=True,
    ).close()
    assert_type(gguf_embed.__version__, str)


def failing(error: GGUFEmbedError) -> None:
    """Facts are typed attributes, and stock classes catch ours."""
    if isinstance(error, TextTooLongError):
        assert_type(error.index, int)
        assert_type(error.n_tokens, int)
        assert_type(error.n_ctx, int)
    if isinstance(error, DoesNotFitError):
        assert_type(error.required_bytes, int)
    too_long: type[ValueError] = TextTooLongError
    missing: type[ImportError] = MissingExtraError
    print(too_long, missing)  # noqa: T201 - never run
