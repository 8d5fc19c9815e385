"""Texts to measure with: English words in a random order that is the same each time, and no text twice.

It must not know models or who embeds them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "INSTRUCTION", "USUAL", "WORKLOADS", "Task", "cut", "documents", "long_texts", "make_round", "queries", "sentences",
]  # fmt: skip

USUAL = ("documents", "queries", "single", "long")
WORKLOADS = (*USUAL, "sentences")
# What goes before a query where the model's own prompt is not known. Source: Qwen3-Embedding's model card.
INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"

_N_SINGLE, _N_LONG, _N_LONG_WORDS = 20, 2, 400
_ROOM = 0.95  # words are not all of the same number of tokens

_WORDS = tuple(  # a text, for a hundred lines of one word each would be no easier to read
    """
    the of and a to in is you that it he was for on are as with his they at be this have from or one had by word but
    not what all were we when your can said there use an each which she do how their if will up other about out many
    then them these so some her would make like him into time has look two more write go see number no way could
    people my than first water been call who oil its now find long down day did get come made may part over new sound
    take only little work know place year live me back give most very after thing our just name good sentence man
    think say great where help through much before line right too mean old any same tell boy follow came want show
    also around form three small set put end does another well large must big even such because turn here why ask
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What every system embeds in one round.

    Attributes:
        workload: one of WORKLOADS.
        texts: without the prompt.
        prompt: put before each of them.
        n_tokens: of all texts, prompts and special tokens included; 0 where they were not counted yet.
    """

    workload: str
    texts: tuple[str, ...]
    prompt: str = ""
    n_tokens: int = 0

    def __post_init__(self) -> None:
        if self.workload not in WORKLOADS:
            raise ValueError(f"workload is {self.workload!r}; it is one of {', '.join(WORKLOADS)}")

    @property
    def is_one_by_one(self) -> bool:
        """Whether each text is a request of its own."""
        return self.workload == "single"

    @property
    def whole_texts(self) -> list[str]:
        """The texts with their prompt, as a system sees them that takes no prompts."""
        return [self.prompt + text for text in self.texts]


def documents(n: int, *, seed: int) -> tuple[str, ...]:
    """Make texts of 8 to 100 words."""
    return _texts(n, 8, 100, seed=seed)


def queries(n: int, *, seed: int) -> tuple[str, ...]:
    """Make texts of 3 to 12 words."""
    return _texts(n, 3, 12, seed=seed)


def sentences(n: int, *, seed: int) -> tuple[str, ...]:
    """Make texts of 5 to 25 words."""
    return _texts(n, 5, 25, seed=seed)


def long_texts(n: int, n_words: int, *, seed: int) -> tuple[str, ...]:
    """Make texts of n_words words."""
    return _texts(n, n_words, n_words, seed=seed)


def _texts(n: int, shortest: int, longest: int, *, seed: int) -> tuple[str, ...]:
    """Make n texts whose lengths in words are spread evenly, so that other seeds make as much work."""
    rng = random.Random(seed)  # noqa: S311 - the same each time, and no secret
    lengths = [round(shortest + (longest - shortest) * index / max(1, n - 1)) for index in range(n)]
    rng.shuffle(lengths)
    made: dict[str, None] = {}
    for length in lengths:
        text = " ".join(rng.choices(_WORDS, k=length))
        while text in made:
            text = " ".join(rng.choices(_WORDS, k=length))
        made[text] = None
    return tuple(made)


def make_round(
    workloads: Iterable[str], *, n_texts: int, number: int, query_prompt: str = "", document_prompt: str = ""
) -> tuple[Task, ...]:
    """Make the tasks of one round; no other round has the same texts, so that no cache can know them.

    Args:
        workloads: of WORKLOADS.
        n_texts: documents, queries and sentences; single queries are 20 at most, long texts 2.
        number: of the round, from 0.
        query_prompt: put before queries.
        document_prompt: put before all others.
    """
    seed = number * len(WORKLOADS)
    made = {
        "documents": lambda: documents(n_texts, seed=seed),
        "queries": lambda: queries(n_texts, seed=seed + 1),
        "single": lambda: queries(min(_N_SINGLE, n_texts), seed=seed + 2),
        "long": lambda: long_texts(min(_N_LONG, n_texts), _N_LONG_WORDS, seed=seed + 3),
        "sentences": lambda: sentences(n_texts, seed=seed + 4),
    }
    prompts = {"queries": query_prompt, "single": query_prompt}
    return tuple(
        Task(workload=name, texts=made[name](), prompt=prompts.get(name, document_prompt)) for name in workloads
    )


def cut(task: Task, n_tokens: Iterable[int], *, max_tokens: int) -> Task:
    """Take words off the end of texts that are too long for the model.

    Args:
        task: as made.
        n_tokens: of each text with its prompt.
        max_tokens: the longest text that the model takes.

    Returns:
        The same task where every text fits; otherwise one that may have to be cut again.
    """
    texts = []
    for text, length in zip(task.texts, n_tokens, strict=True):
        words = text.split(" ")
        n_words = max(1, int(len(words) * _ROOM * max_tokens / length)) if length > max_tokens else len(words)
        texts.append(" ".join(words[:n_words]))
    return dataclasses.replace(task, texts=tuple(texts))
