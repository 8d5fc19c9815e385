"""Vectors that somebody saved: .npy, .json, .jsonl and .parquet, of this program or of any other.

It must not know models, servers, or what the vectors are compared with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_embed.errors import InputError
from gguf_embed.jobs.saved_tables import VECTOR_NAMES, SavedTable, read_saved_table
from gguf_embed.vectors import restore_embeddings

__all__ = ["SUFFIXES", "Fields", "Keys", "SavedVectors", "digest_of", "id_words", "load_saved"]

Float32Matrix = NDArray[np.float32]

_LINES = (".jsonl", ".ndjson")
_TABLES = (".parquet", ".pq")
SUFFIXES = (".npy", ".json", *_LINES, *_TABLES)
_WANTED = ("id", "text", "text_sha256", "start", "end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """What ids and texts are called in a file: a field of JSON Lines, a column of a table."""

    text: str = "text"
    id: str = "id"

    def columns(self) -> dict[str, str]:
        """Return our names of what is read, and the file's."""
        return dict(zip(_WANTED, _WANTED, strict=True)) | {"id": self.id, "text": self.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What tells n texts or rows apart.

    Attributes:
        n: how many there are.
        ids: one each, None where not all have one.
        texts: one each, None where not all have one.
        digests: sha256 of each text, None where neither it nor the text is known of all.
    """

    n: int
    ids: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None
    digests: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SavedVectors:
    """A file of vectors.

    Attributes:
        path: the file.
        embeddings: (n, dim) float32, finite, as they were saved.
        keys: ids and texts, where the file has them.
        about: what made them, where that is written in or beside the file; with "fingerprint" and "prompt" if we did.
    """

    path: Path
    embeddings: Float32Matrix
    keys: Keys
    about: Mapping[str, Any]


def load_saved(path: Path, fields: Fields | None = None) -> SavedVectors:
    """Read vectors, with their ids and texts.

    .npy is (n, dim); .json a list of vectors; .jsonl and .parquet have one row each, in the field or column
    "embedding", "embeddings" or "vector". int8 and uint8 are turned back into numbers where the ranges are known.

    Args:
        path: a file with one of SUFFIXES.
        fields: names of ids and texts.

    Raises:
        InputError: the file is not there, has no vectors, or some with NaN or of another length.
        MissingExtraError: Parquet without pyarrow.
    """
    table = _read(path, fields or Fields())
    beside = _load_json(path.with_name(f"{path.name}.meta.json"))
    about = table.about or (beside if isinstance(beside, dict) else {})
    if not table.about:  # a table that was filtered keeps what it says of itself
        _check_beside(path, table, about)
    embeddings = _checked(path, _floats(path, table.vectors, about))
    return SavedVectors(path=path, embeddings=embeddings, keys=_keys(len(embeddings), table.columns), about=about)


def digest_of(text: str) -> str:
    """Return the sha256 of a text in UTF-8, as --no-text writes it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path, fields: Fields) -> SavedTable:
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        if not path.exists():
            raise InputError(f"{path} is not there; check its name")
        return read_saved_table(path, fields.columns())
    try:
        if suffix in _LINES:
            return _read_lines(path, fields)
        if suffix == ".json":
            return SavedTable(vectors=_array(json.loads(path.read_bytes()), str(path)), columns={})
        if suffix == ".npy":
            return _read_npy(path, fields)
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there; check its name") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no {suffix} file that can be read: {error}") from error
    raise InputError(f"{path} is no file of vectors; they are {', '.join(SUFFIXES)}")


def _read_lines(path: Path, fields: Fields) -> SavedTable:
    rows: list[NDArray[Any]] = []
    found: list[dict[str, Any]] = []
    for place, value in _objects(path):
        name = next((one for one in VECTOR_NAMES if one in value), None)
        if name is None:
            keys = ", ".join(list(value)[:20])
            raise InputError(f'{place}: expected an object with an "{VECTOR_NAMES[0]}"; its keys are: {keys}')
        row = _array(value.pop(name), f'{place}, "{name}"')
        if row.ndim != 1 or row.shape != (rows or [row])[0].shape:
            wanted = f"{len(rows[0])} numbers, as before" if rows else "numbers"
            raise InputError(f"{place}: a vector of shape {row.shape}; it is a list of {wanted}")
        rows.append(row)
        found.append(value)
    matrix = np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)
    return SavedTable(vectors=matrix, columns=_columns(found, fields))


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and object of each line that is not blank."""
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place}: no JSON: {error}") from error
            if not isinstance(value, dict):
                raise InputError(f"{place}: expected an object, such as {{...}}; got {line.strip()[:40]!r}")
            yield place, value


def _array(value: Any, place: str) -> NDArray[Any]:
    """Turn a list of numbers, or of lists of them, into an array."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(f"{place}: vectors of different lengths; all have the same") from None
    if array.dtype.kind not in "iuf":
        raise InputError(f"{place}: not all are numbers (null, text or true is among them); make the vectors again")
    return array if array.dtype.kind == "f" else array.astype(np.int64)


def _columns(rows: Sequence[dict[str, Any]], fields: Fields) -> dict[str, list[Any]]:
    return {
        name: [row.get(column) for row in rows]
        for name, column in fields.columns().items()
        if any(column in row for row in rows)
    }


def _read_npy(path: Path, fields: Fields) -> SavedTable:
    """Read an array, and the facts of its rows beside one of our outputs."""
    vectors = np.load(path, allow_pickle=False)
    if not isinstance(vectors, np.ndarray):
        raise InputError(f"{path} is an archive (.npz) of arrays; save the vectors alone, with numpy.save")
    beside = path.with_name(f"{path.name}.rows.jsonl")
    columns = _columns([value for _, value in _objects(beside)], fields) if beside.is_file() else {}
    return SavedTable(vectors=vectors, columns=columns)


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}, which tells what made the vectors, cannot be read: {error}; delete it") from error


def _floats(path: Path, vectors: NDArray[Any], about: Mapping[str, Any]) -> Float32Matrix:
    """Turn what was saved into float32."""
    precision = about.get("precision")
    if precision in ("binary", "ubinary"):
        raise InputError(f"{path} has a bit a component, which has no cosine; save the vectors as float32 or int8")
    if vectors.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, which is refused as such
            return np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.dtype.kind not in "iu":
        raise InputError(f"{path} has {vectors.dtype}; vectors are float32, float64 or float16")
    if precision not in ("int8", "uint8") or "ranges" not in about:
        raise InputError(
            f"{path} has whole numbers and nothing says their ranges; save the vectors as float32, or keep the "
            ".meta.json of an int8 output beside it"
        )
    try:
        return restore_embeddings(vectors.astype(precision), ranges=about["ranges"])
    except (TypeError, ValueError) as error:  # of the ranges: text, an object
        raise InputError(f"{path} and the ranges in its .meta.json do not belong together: {error}") from error


def _checked(path: Path, embeddings: Float32Matrix) -> Float32Matrix:
    if embeddings.ndim != 2:
        raise InputError(f"{path} has an array of shape {embeddings.shape}; vectors are a matrix, a row each text")
    if not embeddings.size:
        raise InputError(f"{path} has no vectors (its shape is {embeddings.shape})")
    wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(wrong):
        raise InputError(
            f"{path}: row {wrong[0] + 1} has NaN or infinity, and so have {len(wrong) - 1:,} more of "
            f"{len(embeddings):,}; embed these texts again"
        )
    return embeddings


def _check_beside(path: Path, table: SavedTable, about: Mapping[str, Any]) -> None:
    """Refuse what lies beside a file that was replaced since."""
    n = table.vectors.shape[0] if table.vectors.ndim else 0
    counts = [(len(values), ".rows.jsonl") for values in table.columns.values()]
    for count, suffix in (*counts, (about.get("n_rows", n), ".meta.json")):
        if count != n:
            raise InputError(
                f"{path} has {n} rows and {path.name}{suffix} beside it is of {count}: it belongs to "
                "another output; delete it, or make both again"
            )


def _keys(n: int, columns: Mapping[str, list[Any]]) -> Keys:
    """Make keys of what is known of all rows; chunks of one text are told apart by their places in it."""
    known = {name: values for name, values in columns.items() if None not in values}
    ids: tuple[str, ...] | None = None
    if "id" in known:
        nowhere = [None] * n
        places = zip(columns.get("start", nowhere), columns.get("end", nowhere), strict=True)
        ids = tuple(
            id_words(one) if start is None else f"{id_words(one)} [{start}:{end}]"
            for one, (start, end) in zip(known["id"], places, strict=True)
        )
    texts = known.get("text")
    if texts is not None and not all(isinstance(text, str) for text in texts):
        texts = None
    digests = known.get("text_sha256") if texts is None else [digest_of(text) for text in texts]
    return Keys(
        n=n,
        ids=ids,
        texts=None if texts is None else tuple(texts),
        digests=None if digests is None else tuple(map(str, digests)),
    )


def id_words(value: Any) -> str:
    """Return an id as text: 5 and "5" are the same, as Parquet outputs have it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
