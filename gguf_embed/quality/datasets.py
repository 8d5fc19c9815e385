"""What quality is measured on: texts, scored pairs of sentences, and queries with judged documents.

It must not know models or vectors. What is wrong with a file is told before anything is embedded.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_embed.errors import InputError
from gguf_embed.jobs.records import BadRecord
from gguf_embed.jobs.sources import open_source

__all__ = ["Material", "Pairs", "Retrieval", "Texts", "load_pairs", "load_retrieval", "load_sample", "load_texts"]

MIN_TEXTS = 20  # among fewer, ten neighbours are half of all
MIN_PAIRS = 10
MIN_DOCUMENTS = 11  # ten of ten are always found
SAMPLE = Path(__file__).parent / "sample"

_PAIR_FIELDS = ("sentence1", "sentence2", "score")
_QREL_FIELDS = ("query-id", "corpus-id", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Texts without labels, each once.

    Attributes:
        name: of the files, for a person.
        texts: at least MIN_TEXTS.
    """

    name: str
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.texts) < MIN_TEXTS:
            n = f"{len(self.texts)} text{'s' if len(self.texts) != 1 else ''}"
            raise InputError(
                f"{self.name} has {n}, each counted once; give at least {MIN_TEXTS}, since among fewer "
                "the ten nearest say nothing"
            )

    def __str__(self) -> str:
        return f"{len(self.texts):,} texts of {self.name} ({_digest(self.texts)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs of sentences, scored by likeness (STS).

    Attributes:
        name: of the file, for a person.
        left: the first sentences.
        right: the second ones.
        scores: as many; the greater the more alike.
    """

    name: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.scores) < MIN_PAIRS:
            raise InputError(
                f"{self.name} has {len(self.scores)} pairs; give at least {MIN_PAIRS}: two texts and a score a line"
            )
        if len(set(self.scores)) == 1:
            raise InputError(f"{self.name} scores every pair {self.scores[0]:g}; without an order nothing is measured")

    def __str__(self) -> str:
        return f"{len(self.scores):,} pairs of {self.name} ({_digest([self.left, self.right, self.scores])})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """Queries, documents, and which of these answer which.

    Attributes:
        name: of the folder, for a person.
        documents: title and text.
        queries: those that have a relevant document.
        relevance: of each query: score by position of the document.
        n_left_out: queries without a relevant document, which are not among `queries`.
    """

    name: str
    documents: tuple[str, ...]
    queries: tuple[str, ...]
    relevance: tuple[dict[int, float], ...]
    n_left_out: int = 0

    def __post_init__(self) -> None:
        if len(self.documents) < MIN_DOCUMENTS:
            raise InputError(
                f"{self.name} has {len(self.documents)} documents; give at least {MIN_DOCUMENTS}, since the first ten "
                "of so few are all"
            )
        if not self.queries:
            raise InputError(f"{self.name} has no query with a relevant document; see its qrels")

    def __str__(self) -> str:
        left_out = f", {self.n_left_out:,} without a relevant document left out" if self.n_left_out else ""
        digest = _digest([self.documents, self.queries, [sorted(one.items()) for one in self.relevance]])
        return (
            f"{len(self.queries):,} queries over {len(self.documents):,} documents of {self.name}{left_out} ({digest})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Everything that is measured on; at least one of it.

    Attributes:
        texts: for cosines, neighbours and order; None for none.
        pairs: for the correlation with their scores.
        retrieval: for nDCG and recall.
        tasks: names of mteb's.
    """

    texts: Texts | None = None
    pairs: Pairs | None = None
    retrieval: Retrieval | None = None
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.texts, self.pairs, self.retrieval, self.tasks) == (None, None, None, ()):
            raise ValueError("there is nothing to measure on")

    @property
    def lines(self) -> tuple[str, ...]:
        """What it is, a line each, with a digest of the contents."""
        parts = [str(one) for one in (self.texts, self.pairs, self.retrieval) if one is not None]
        return (*parts, *(f"{name} of mteb" for name in self.tasks))


def load_sample() -> Material:
    """Read what is measured on where nobody names anything; sample/README.md says what it is."""
    return Material(
        texts=load_texts([SAMPLE / "texts.jsonl"], name="the sample"),
        pairs=load_pairs(SAMPLE / "pairs.tsv", name="the sample"),
        retrieval=load_retrieval(SAMPLE / "retrieval", name="the sample"),
    )


def load_texts(inputs: Sequence[Path], *, name: str | None = None) -> Texts:
    """Read texts as `embed -i` does; one that comes again is left out.

    Args:
        inputs: files and folders.
        name: what to call them; None for their own names.

    Raises:
        InputError: a file or a text of it cannot be read, or there are fewer than MIN_TEXTS.
        MissingExtraError: the format needs one.
    """
    texts: dict[str, None] = {}
    for record in open_source(inputs):
        if isinstance(record, BadRecord):
            raise record.error
        texts[record.text] = None
    return Texts(name=name or ", ".join(path.name for path in inputs), texts=tuple(texts))


def load_pairs(path: Path, *, name: str | None = None) -> Pairs:
    """Read pairs of sentences with scores.

    A .tsv has two texts and a score a line, a .csv the same with quotes where a comma is meant; a first line that
    names sentence1, sentence2 and score orders the columns. A .jsonl has objects of these fields.

    Args:
        path: .tsv, .csv or .jsonl; any other name is read as .tsv.
        name: what to call it; None for its own name.

    Raises:
        InputError: it cannot be read, a line has fewer than three columns or a score that is no number, or there are
            fewer than MIN_PAIRS.
    """
    rows = [
        (left, right, _score(score, place))
        for place, (left, right, score) in _rows(path, _PAIR_FIELDS)
    ]  # fmt: skip
    left, right, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return Pairs(name=name or path.name, left=left, right=right, scores=scores)


def load_retrieval(folder: Path, *, name: str | None = None) -> Retrieval:
    """Read a folder as BEIR lays it out.

    `corpus.jsonl` has _id, title and text, `queries.jsonl` _id and text; `qrels/test.tsv`, every other file of qrels/
    where there is no test.tsv, `qrels.tsv` or `qrels.jsonl` has query-id, corpus-id and score.

    Args:
        folder: that holds them.
        name: what to call it; None for its own name.

    Raises:
        InputError: a file is missing or cannot be read, an id comes twice, or a judgement names a query or a document
            that is not there.
    """
    documents = _texts_by_id(folder / "corpus.jsonl")
    queries = _texts_by_id(folder / "queries.jsonl")
    places = {id_: place for place, id_ in enumerate(documents)}
    relevance: dict[str, dict[int, float]] = {id_: {} for id_ in queries}
    for path in _qrels(folder):
        for place, (query, document, score) in _rows(path, _QREL_FIELDS):
            for id_, known, file in ((query, queries, "queries.jsonl"), (document, documents, "corpus.jsonl")):
                if id_ not in known:
                    raise InputError(f"{place}: {id_!r} is not in {file}; add it there, or delete the line")
            relevance[query][places[document]] = _score(score, place)
    kept = [id_ for id_, judged in relevance.items() if any(score > 0 for score in judged.values())]
    return Retrieval(
        name=name or folder.resolve().name,
        documents=tuple(documents.values()),
        queries=tuple(queries[id_] for id_ in kept),
        relevance=tuple(relevance[id_] for id_ in kept),
        n_left_out=len(queries) - len(kept),
    )


def _qrels(folder: Path) -> list[Path]:
    if (folder / "qrels" / "test.tsv").is_file():
        return [folder / "qrels" / "test.tsv"]
    if found := sorted((folder / "qrels").glob("*.tsv")):
        return found
    for name in ("qrels.tsv", "qrels.jsonl"):
        if (folder / name).is_file():
            return [folder / name]
    raise InputError(
        f"{folder} has no qrels/test.tsv, qrels.tsv or qrels.jsonl, which say which documents are relevant"
    )


def _texts_by_id(path: Path) -> dict[str, str]:
    """Title and text by _id, in the file's order."""
    texts: dict[str, str] = {}
    for place, found in _objects(path):
        id_, title, text = found.get("_id"), found.get("title") or "", found.get("text")
        if not isinstance(id_, str | int) or not isinstance(text, str) or not isinstance(title, str):
            raise InputError(f'{place} has no _id and text; a line is {{"_id": "...", "text": "..."}}')
        if str(id_) in texts:
            raise InputError(f"{place}: _id {str(id_)!r} comes twice; give each its own")
        texts[str(id_)] = f"{title} {text}".strip()
    return texts


def _rows(path: Path, fields: tuple[str, str, str]) -> Iterator[tuple[str, tuple[str, str, Any]]]:
    """Yield place and three values of each line, in the order of `fields`."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        for place, found in _objects(path):
            if missing := [name for name in fields if name not in found]:
                raise InputError(f"{place} has no {missing[0]}; each has {', '.join(fields)}")
            yield place, (str(found[fields[0]]), str(found[fields[1]]), found[fields[2]])
        return
    order: list[int] | None = None
    for place, cells in _cells(path):
        is_unnamed = False
        if order is None:
            names = [cell.strip().lower() for cell in cells]
            has_header = set(fields) <= set(names)
            order = [names.index(name) for name in fields] if has_header else [0, 1, 2]
            if has_header:
                continue
            is_unnamed = True
        if len(cells) <= max(order):
            raise InputError(f"{place} has {len(cells)} columns; it has {', '.join(fields)}")
        first, second, third = (cells[column] for column in order)
        if is_unnamed:  # names of another kind would be taken for the first row
            _score(third, place, f"; the names of a first line are {', '.join(fields)}")
        yield place, (first, second, third)


def _cells(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield place and cells of each line; a .tsv has no quotes."""
    lines = _lines(path)
    if path.suffix.lower() != ".csv":
        for number, line in lines:
            yield f"{path.name}, line {number}", line.split("\t")
        return
    reader = csv.reader(f"{line}\n" for _, line in lines)
    try:
        for cells in reader:
            yield f"{path.name}, row {reader.line_num}", cells
    except csv.Error as error:
        raise InputError(f"{path.name}, row {reader.line_num} is no CSV: {error}") from error


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in _lines(path):
        place = f"{path.name}, line {number}"
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise InputError(f"{place} is no JSON object")
        yield place, found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8: {error.reason}; save it as UTF-8") from error


def _score(value: Any, place: str, hint: str = "") -> float:
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{place}: score is {value!r}, which is no number{hint}")
    return score


def _digest(parts: Iterable[Any]) -> str:
    """Twelve hex digits that tell contents apart."""
    content = json.dumps(list(parts), ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
