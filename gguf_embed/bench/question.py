"""What is to be measured, and the file that it is measured with.

It must not know how anything is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gguf_embed.bench.workload import USUAL, WORKLOADS
from gguf_embed.fit.planner import Limits
from gguf_embed.models.catalog import Catalog
from gguf_embed.selection import Overrides, Selection, select

__all__ = ["PEERS", "Question", "fetch"]

PEERS = ("llama-cpp-python", "llama-server", "sentence-transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be compared, and how.

    Attributes:
        model: a model reference; its file is on this disk.
        limits: what the plan may use.
        prefer: as Embedder.
        n_texts: documents, queries or sentences of a round.
        n_rounds: that count; one more warms up.
        workloads: of workload.WORKLOADS.
        against: of PEERS.
        llama_server: the program; None where there is none.
        llama_server_args: in place of the flags of "llama-server, tuned".
        sentence_transformers_model: a name or a folder; None for nothing to compare with.
    """

    model: str
    limits: Limits = dataclasses.field(default_factory=Limits)
    prefer: str = "default"
    n_texts: int = 64
    n_rounds: int = 5
    workloads: tuple[str, ...] = USUAL
    against: tuple[str, ...] = ()
    llama_server: Path | None = None
    llama_server_args: tuple[str, ...] | None = None
    sentence_transformers_model: str | None = None

    def __post_init__(self) -> None:
        if self.n_texts < 1 or self.n_rounds < 1:
            raise ValueError(f"n_texts is {self.n_texts} and n_rounds {self.n_rounds}; both are at least 1")
        for what, given, known in (("workload", self.workloads, WORKLOADS), ("peer", self.against, PEERS)):
            for name in given:
                if name not in known:
                    raise ValueError(f"{name!r} is no {what}; there are {', '.join(known)}")


def fetch(
    catalog: Catalog, question: Question, on_progress: Callable[[int, int], None] | None = None
) -> tuple[Selection, Path]:
    """Choose the file as an Embedder would, and fetch it where it is not here.

    Args:
        catalog: where models come from.
        question: which model, and its limits.
        on_progress: called with bytes present and bytes in all.

    Raises:
        ValueError: a limit that the model cannot have.
        GGUFEmbedError: whatever stands in the way, each with its own class.
    """
    resolved = catalog.resolve(question.model, prefer=question.prefer)
    chosen = select(catalog, resolved, limits=question.limits, overrides=Overrides())
    return chosen, catalog.fetch(chosen.resolved, chosen.source, on_progress=on_progress)
