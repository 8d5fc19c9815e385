"""models.toml -> a Registry: which models there are, where their files lie, what they were trained with.

It knows no network, no hardware and no llama.cpp, and never looks whether a model file is there.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import tomllib
import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from gguf_embed.errors import InvalidRegistryError, UnknownModelError
from gguf_embed.models.specs import (
    Discoverable,
    Golden,
    Matryoshka,
    ModelSpec,
    QuantFile,
    Shape,
    WheelSource,
)
from gguf_embed.prompts import PromptSet

__all__ = [
    "Discoverable",
    "Golden",
    "Matryoshka",
    "ModelSpec",
    "PromptSet",
    "QuantFile",
    "Registry",
    "Shape",
    "WheelSource",
    "load_registry",
]

_SCHEMA = 1
_N_SUGGESTIONS = 3
# Keys of models.toml that read better than the field's name.
_KEY_OF_FIELD = {"discoverable": "discover"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Every model that has a name here."""

    models: tuple[ModelSpec, ...]

    def __post_init__(self) -> None:
        owners: dict[str, str] = {}
        for spec in self.models:
            for name in (spec.model_id, *spec.aliases):
                if name in owners:
                    raise ValueError(f"aliases: {name!r} belongs to {owners[name]} and {spec.model_id}; rename one")
                owners[name] = spec.model_id

    def get(self, model_id: str) -> ModelSpec:
        """Find a model by its id or alias, in any case.

        Raises:
            UnknownModelError: there is none; it suggests at most three ids that look alike.
        """
        if (found := self.find(model_id)) is not None:
            return found
        by_name = {name: spec for spec in self.models for name in (spec.model_id, *spec.aliases)}
        alike = difflib.get_close_matches(model_id.strip().lower(), by_name, n=4 * _N_SUGGESTIONS)
        suggestions = tuple(dict.fromkeys(by_name[name].model_id for name in alike))[:_N_SUGGESTIONS]
        hint = f" Did you mean {' or '.join(suggestions)}?" if suggestions else ""
        message = f"no model is called {model_id!r}.{hint} 'gguf-embed models' lists them all."
        raise UnknownModelError(message, model_id=model_id, suggestions=suggestions)

    def find(self, model_id: str) -> ModelSpec | None:
        """Find a model by its id or alias, in any case; None if there is none."""
        wanted = model_id.strip().lower()
        return next((spec for spec in self.models if wanted == spec.model_id or wanted in spec.aliases), None)

    def find_repo(self, repo: str) -> ModelSpec | None:
        """Find the model that has a file, a discoverable repo or its original under this repo name, in any case."""
        wanted = repo.lower()
        for spec in self.models:
            repos = (spec.base_repo, *(file.repo for file in spec.files), *(one.repo for one in spec.discoverable))
            if wanted in {repo.lower() for repo in repos}:
                return spec
        return None

    def find_file(self, file_name: str) -> ModelSpec | None:
        """Find the model with a pinned file of this base name, in any case."""
        wanted = PurePosixPath(file_name).name.lower()
        for spec in self.models:
            if any(PurePosixPath(file.file).name.lower() == wanted for file in spec.files):
                return spec
        return None


def load_registry(user_path: Path | None = None) -> Registry:
    """Read the package's models.toml, then the user's own.

    A user's table of a known id overrides the keys that it gives, each as a whole (`files` too); a new id adds a model.

    Args:
        user_path: the user's models.toml; None, or a file that is not there, adds nothing.

    Returns:
        Every model, the package's first; parsed once for as long as the files stay as they are.

    Raises:
        InvalidRegistryError: a file cannot be read, or a value is missing, unknown or wrong.
    """
    stamp = None
    if user_path is not None:
        try:
            stat = user_path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            user_path = None
        except OSError as error:
            _fail(user_path, "", f"it cannot be read: {error}. Mend it or move it away.", error)
    return _load(_package_path(), user_path, stamp)


def _package_path() -> Path:
    """Where models.toml lies: inside the package in a wheel, beside it in a checkout."""
    inside = Path(str(importlib.resources.files("gguf_embed"))) / "models.toml"
    return inside if inside.is_file() else inside.parents[1] / "models.toml"


@functools.lru_cache(maxsize=8)
def _load(package_path: Path, user_path: Path | None, stamp: tuple[int, int] | None) -> Registry:  # noqa: ARG001 (stamp is part of the cache key)
    tables: dict[str, Any] = {}
    origins: dict[str, Path] = {}
    for path in (package_path, *([user_path] if user_path else [])):
        for model_id, table in _read(path).items():
            if not isinstance(table, dict):
                _fail(path, "models", f"{model_id} is {table!r}; it is a table, [models.{model_id}]")
            tables[model_id] = tables.get(model_id, {}) | table
            origins[model_id] = path
    models = tuple(_model(model_id, table, origins[model_id]) for model_id, table in tables.items())
    try:
        return Registry(models=models)
    except ValueError as error:
        _fail(user_path or package_path, "models", str(error), error)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        _fail(path, "", f"it cannot be read: {error}. Mend it or move it away.", error)
    if document.get("schema") != _SCHEMA:
        _fail(path, "", f"schema is {document.get('schema')!r}; write schema = {_SCHEMA} at the top")
    if unknown := sorted(document.keys() - {"schema", "models"}):
        _fail(path, "", f"unknown key {unknown[0]!r}; the keys are schema and models")
    models = document.get("models", {})
    if not isinstance(models, dict):
        _fail(path, "models", f"models is {models!r}; write one table per model, [models.some-id]")
    return models


def _model(model_id: str, table: dict[str, Any], path: Path) -> ModelSpec:
    name = f'models."{model_id}"' if "." in model_id else f"models.{model_id}"
    if "model_id" in table:
        _fail(path, name, "unknown key 'model_id'; the id is the table's own name")
    table = {"model_id": model_id, "quality_ladder": table.get("ladder", []), **table}
    spec: ModelSpec = _build(ModelSpec, table, path, name)
    return spec


def _build(cls: Any, table: dict[str, Any], path: Path, name: str) -> Any:
    """Make one dataclass of one table; every key is a field, every value of the field's type."""
    known = {_KEY_OF_FIELD.get(field.name, field.name): field for field in fields(cls)}
    for key in table:
        if key not in known:
            _fail(path, name, f"unknown key {key!r}; the keys are {', '.join(known)}")
    values = {}
    for key, field in known.items():
        if key in table:
            values[field.name] = _convert(_hints(cls)[field.name], table[key], path, name, key)
        elif field.default is MISSING and field.default_factory is MISSING:
            _fail(path, name, f"{key} is missing; add it")
    try:
        return cls(**values)
    except ValueError as error:
        _fail(path, name, str(error), error)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, raw: Any, path: Path, name: str, key: str) -> Any:
    """Turn a TOML value into what the annotation says, or fail naming the key."""
    if isinstance(hint, types.UnionType):  # TOML has no null: None is the absent key
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if is_dataclass(hint):
        if not isinstance(raw, dict):
            _fail(path, name, f"{key} is {raw!r}; it is a table")
        return _build(hint, raw, path, f"{name}.{key}")
    if typing.get_origin(hint) is tuple:
        return _convert_tuple(typing.get_args(hint)[0], raw, path, name, key)
    if hint is float and type(raw) is int:
        return float(raw)
    if type(raw) is not hint:  # bool is an int to isinstance
        _fail(path, name, f"{key} is {raw!r}; it is {_WORDS[hint]}")
    return raw


def _convert_tuple(item: Any, raw: Any, path: Path, name: str, key: str) -> tuple[Any, ...]:
    if _is_pair(item):
        value_hint = typing.get_args(item)[1]
        if isinstance(raw, dict):
            return tuple((k, _convert(value_hint, v, path, name, f"{key}.{k}")) for k, v in raw.items())
        if type(None) not in typing.get_args(value_hint):
            _fail(path, name, f"{key} is {raw!r}; it is a table")
        return tuple((quant, None) for quant in _convert_tuple(str, raw, path, name, key))
    if not isinstance(raw, list):
        _fail(path, name, f"{key} is {raw!r}; it is a list")
    return tuple(_convert(item, value, path, name, f"{key}[{index}]") for index, value in enumerate(raw))


def _is_pair(hint: Any) -> bool:
    """Tell tuple[str, X], which TOML writes as a table, from tuple[X, ...]."""
    args = typing.get_args(hint)
    return typing.get_origin(hint) is tuple and args[1] is not Ellipsis


_WORDS = {str: "a text in quotes", int: "a whole number", float: "a number", bool: "true or false"}


def _fail(path: Path, table: str, why: str, cause: Exception | None = None) -> NoReturn:
    place = f"{path}: [{table}]" if table else f"{path}:"
    raise InvalidRegistryError(f"{place} {why}", path=path, table=table) from cause
