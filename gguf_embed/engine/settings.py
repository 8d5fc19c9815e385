"""How a session is to run one file: a value.

It must not know where its figures come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gguf_embed.native.layout import Layout

__all__ = ["SessionSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How to run one file.

    Attributes:
        path: the GGUF.
        pooling_type: "last", "mean" or "cls".
        add_eos: overrides tokenizer.ggml.add_eos_token; None leaves the file's word.
        layout: where the layers go, and how large the context is to begin with.
        n_ctx_max: longest text; the context grows up to it on demand.
        n_batch: tokens packed into one decode, n_seq_max <= n_batch <= n_ubatch.
        n_threads: CPU threads.
        must_skip_head: an error instead of the ordinary path where the head cannot be skipped.
    """

    path: Path
    pooling_type: str
    add_eos: bool | None = None
    layout: Layout = field(default_factory=Layout)
    n_ctx_max: int = 2048
    n_batch: int = 512
    n_threads: int = 1
    must_skip_head: bool = False

    def __post_init__(self) -> None:
        if self.pooling_type not in ("last", "mean", "cls"):
            raise ValueError(f"pooling_type is {self.pooling_type!r}; it is last, mean or cls")
        layout = self.layout
        if not layout.n_seq_max <= self.n_batch <= layout.n_ubatch or self.n_ctx_max < 1:
            raise ValueError(f"n_seq_max <= n_batch <= n_ubatch and 1 <= n_ctx_max do not hold in {self}")
