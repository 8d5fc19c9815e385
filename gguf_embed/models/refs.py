"""What the user typed -> a Reference: a model of the registry, a hub repo, one file in it, or a file on disk.

It knows no network and loads nothing; the one thing it asks the disk is whether a path that was typed is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from gguf_embed.errors import UnknownModelError, UnknownQuantError
from gguf_embed.models.registry import Registry
from gguf_embed.models.specs import QUANT_PATTERN, ModelSpec
from gguf_embed.native.quantize import FTYPES
from gguf_embed.sizes import format_size

__all__ = [
    "FileLike",
    "Reference",
    "files_by_quant",
    "is_shard",
    "parse_reference",
    "quant_of_file_name",
    "select_file",
]

_NAME = r"\w[\w.-]*"
_REVISION = r"refs/\w+/[\w-]+|[\w.-]+"
_HUB = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>{_REVISION}))?"
    rf"(?:/(?P<file>[^@:]+\.gguf)(?:@(?P<file_revision>{_REVISION}))?|:(?P<quant>[^@:/]+)(?:@(?P<quant_revision>{_REVISION}))?)?",
    re.IGNORECASE,
)
_HUB_PREFIX = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://", re.IGNORECASE)
_WEB_ROUTE = re.compile(r"([^/]+/[^/]+)/(?:resolve|blob|raw|tree)/([^/]+)/?(.*)")
_PATH_START = re.compile(r"[./~\\]|[A-Za-z]:[\\/]")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)
_SPELLING = rf"{QUANT_PATTERN}|FP16|FP32"
# Named last, after a dash, a dot or an underscore: model-Q4_K_M, model.i1-IQ4_XS, ggml-model-f16, model_q8_0.
_QUANT_IN_NAME = re.compile(rf"(?:^|.*[-._])({_SPELLING})(?:[-.].*)?", re.IGNORECASE)
_LOOKS_LIKE_QUANT = re.compile(r"(?:I?Q|TQ|B?F|FP)\d.*", re.IGNORECASE)
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a text means; exactly one of spec alone, repo or path says where the model is.

    Attributes:
        text: as typed.
        spec: the registry's model, also for a repo or file that the registry knows.
        repo: owner/name on the hub, None for a registry name or a path.
        revision: branch, tag or commit of the repo, None for the pinned or newest one.
        file: path inside the repo, None where the quant decides.
        quant: in upper case, None where the planner chooses.
        path: a file on disk that is there.
    """

    text: str
    spec: ModelSpec | None = None
    repo: str | None = None
    revision: str | None = None
    file: str | None = None
    quant: str | None = None
    path: Path | None = None


class FileLike(Protocol):
    """A file of a repo: QuantFile, or one that the hub listed."""

    @property
    def file(self) -> str:
        """Path inside the repo."""

    @property
    def size_bytes(self) -> int | None:
        """Size in bytes, None where it is not known."""


_File = TypeVar("_File", bound=FileLike)


def parse_reference(text: str, registry: Registry) -> Reference:
    """Read a model reference.

    A registry name beats every other reading, a file on disk beats a hub path of the same spelling.

    Args:
        text: model id or alias, optionally with a quant (`qwen3-embedding:4b:Q4_K_S`); `owner/repo`, optionally with
            `@revision` and `:quant`; `owner/repo/file.gguf`; the last two also after `hf.co/`, `hf://` or as an
            address on huggingface.co; or the path of a .gguf.
        registry: the models that have a name.

    Returns:
        The reference; its quant is in upper case.

    Raises:
        UnknownModelError: there is no such model or file, or the text is no reference.
        UnknownQuantError: the model is known, and there is no such quant, nor can there be.
    """
    wanted = text.strip()
    if not wanted:
        raise UnknownModelError("no model was named; write one such as qwen3-embedding-4b", model_id=text)
    if prefix := _HUB_PREFIX.match(wanted):
        return _hub_reference(text, _plain_hub(wanted, wanted[prefix.end() :]), registry)
    if "://" in wanted:
        message = f"{text!r} is no address on huggingface.co; download the file and name its path"
        raise UnknownModelError(message, model_id=text)
    if _PATH_START.match(wanted) or "\\" in wanted:
        return _path_reference(text, wanted, registry)
    if wanted.lower().endswith(".gguf") and (wanted.count("/") < 2 or _is_there(text, Path(wanted))):
        return _path_reference(text, wanted, registry)
    if "/" in wanted:
        return _hub_reference(text, wanted, registry)
    return _name_reference(text, wanted, registry)


def quant_of_file_name(file: str) -> str | None:
    """Read the quant out of a GGUF's name: "Qwen3-Embedding-4B.i1-Q4_K_S.gguf" -> "Q4_K_S".

    Returns:
        The last quant of the base name, in upper case (FP16 becomes F16); None if there is none or the name tells of a
        mix of two ("bf16_q8_0").
    """
    stem = _SHARD.sub("", re.split(r"[/\\]", file)[-1])
    stem = re.sub(r"\.gguf$", "", stem, flags=re.IGNORECASE)
    match = _QUANT_IN_NAME.fullmatch(stem)
    if match is None or _is_mix(stem[: match.start(1)]):
        return None
    return _upper(match[1])


def is_shard(file: str) -> bool:
    """Tell whether a file is one part of a split GGUF: `-00001-of-00003.gguf`."""
    return _SHARD.search(file) is not None


def files_by_quant(files: Iterable[_File]) -> dict[str, list[_File]]:
    """Group the models among a repo's files by their quant.

    Parts of split models, projectors (mmproj), importance matrices and other formats do not count.
    """
    whole: dict[str, list[_File]] = {}
    for file in files:
        quant, name = quant_of_file_name(file.file), PurePosixPath(file.file).name
        if quant is not None and name.lower().endswith(".gguf") and not (_NO_MODEL.search(name) or is_shard(name)):
            whole.setdefault(quant, []).append(file)
    return whole


def select_file(files: Sequence[_File], quant: str, *, model_id: str) -> _File:
    """Find the one file with this quant among those of a repo.

    Args:
        files: everything the repo holds, in any order.
        quant: in upper case.
        model_id: what to call the model in an error.

    Raises:
        UnknownQuantError: no file or several have this quant; `available` has the quants, or the files in question.
    """
    whole = files_by_quant(files)
    n_shards = sum(is_shard(file.file) and quant_of_file_name(file.file) == quant for file in files)
    matches = whole.get(quant, [])
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = sorted(f"{file.file} ({_size_words(file.size_bytes)})" for file in matches)
        message = f"{model_id} has several {quant} files: {', '.join(listed)}. Name one: owner/repo/file.gguf"
        raise UnknownQuantError(
            message, model_id=model_id, quant=quant, available=tuple(sorted(file.file for file in matches))
        )
    available = tuple(sorted(whole))
    split = " but in parts, and split files cannot be used" if n_shards else ""
    raise UnknownQuantError(
        f"{model_id} has no {quant}{split}; it has {', '.join(available) or 'no GGUF at all'}",
        model_id=model_id,
        quant=quant,
        available=available,
    )


def _name_reference(text: str, wanted: str, registry: Registry) -> Reference:
    if (spec := registry.find(wanted)) is not None:
        return Reference(text=text, spec=spec)
    ollama = re.fullmatch(rf"([^:]+:[^:]+)-({_SPELLING})", wanted, re.IGNORECASE)  # qwen3-embedding:4b-q8_0
    if ollama and (spec := registry.find(ollama[1])) is not None:
        return Reference(text=text, spec=spec, quant=_quant_of_spec(ollama[2], spec))
    name, colon, tag = wanted.rpartition(":")
    looks_like_quant = bool(colon) and _LOOKS_LIKE_QUANT.fullmatch(tag) is not None
    spec = registry.find(name)
    # After a family's alias, "12b" is a size that there is not; after a whole name, anything is meant as a quant.
    if spec is not None and (looks_like_quant or ":" in name or name.lower() == spec.model_id):
        return Reference(text=text, spec=spec, quant=_quant_of_spec(tag, spec))
    return Reference(text=text, spec=registry.get(name if looks_like_quant else wanted))


def _hub_reference(text: str, wanted: str, registry: Registry) -> Reference:
    match = _HUB.fullmatch(wanted)
    revisions = [match[key] for key in ("revision", "file_revision", "quant_revision") if match[key]] if match else []
    if match is None or len(revisions) > 1:
        message = (
            f"{text!r} is no model; write owner/repo, owner/repo:Q4_K_M, owner/repo@revision or owner/repo/file.gguf"
        )
        raise UnknownModelError(message, model_id=text)
    revision = revisions[0] if revisions else None
    repo, file, tag = match["repo"], match["file"], match["quant"]
    spec = registry.find_repo(repo)
    if file is not None:
        spec = spec or registry.find_file(file)
        quant = quant_of_file_name(file)
        return Reference(text=text, spec=spec, repo=repo, revision=revision, file=file, quant=quant)
    if spec is not None:
        sources = {source.lower(): source for source in _source_repos(spec)}
        if (
            repo.lower() not in sources and revision is None
        ):  # the original model: it holds no GGUF, its spec knows who does
            return Reference(text=text, spec=spec, quant=_quant_of_spec(tag, spec) if tag else None)
        repo = sources.get(repo.lower(), repo)
    quant = _spelt(tag) if tag else None
    if tag and quant is None:
        known = spec.quants if spec else ()
        raise UnknownQuantError(
            f"{tag!r} is no quant; write one such as {repo}:Q4_K_M", model_id=repo, quant=tag, available=known
        )
    return Reference(text=text, spec=spec, repo=repo, revision=revision, quant=quant)


def _path_reference(text: str, wanted: str, registry: Registry) -> Reference:
    try:
        path = Path(wanted).expanduser()
    except RuntimeError as error:
        raise UnknownModelError(f"{text!r} names a home folder that is not known", model_id=text) from error
    spec = registry.find_file(path.name)
    if not _is_there(text, path):
        suggestions = (spec.model_id,) if spec else ()
        hint = f" 'gguf-embed pull {spec.model_id}' fetches it." if spec else " Look at the spelling and the folder."
        raise UnknownModelError(f"there is no file {str(path)!r}.{hint}", model_id=text, suggestions=suggestions)
    if path.is_dir():
        raise UnknownModelError(f"{str(path)!r} is a folder; name a .gguf in it", model_id=text)
    return Reference(text=text, spec=spec, quant=quant_of_file_name(path.name), path=path)


def _plain_hub(text: str, rest: str) -> str:
    """Write an address of the hub's site as owner/repo[@revision][/file]."""
    parts = urlsplit(rest) if "://" in text else None
    plain = (parts.path if parts else rest).strip("/")
    if route := _WEB_ROUTE.fullmatch(plain):
        repo, revision, file = (unquote(part) for part in route.groups())
        return f"{repo}@{revision}" + (f"/{file}" if file else "")
    return unquote(plain)


def _is_there(text: str, path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise UnknownModelError(f"{text!r} cannot be looked up: {error.strerror}", model_id=text) from error


def _source_repos(spec: ModelSpec) -> tuple[str, ...]:
    return (*(file.repo for file in spec.files), *(source.repo for source in spec.discoverable))


def _quant_of_spec(tag: str, spec: ModelSpec) -> str:
    quant = _spelt(tag)
    if quant in FTYPES:  # no source may have it and yet it can be made, or was
        return quant
    if quant is None or quant not in spec.quants:
        raise UnknownQuantError(
            f"{spec.model_id} has no quant {tag!r}; it has {', '.join(spec.quants)}",
            model_id=spec.model_id,
            quant=tag,
            available=spec.quants,
        )
    return quant


def _is_mix(before: str) -> bool:
    """Tell whether a name that ends before its last quant has another one joined to it: "model-bf16_"."""
    return re.search(rf"(?:^|[-.])(?:{_SPELLING})_$", before, re.IGNORECASE) is not None


def _spelt(tag: str) -> str | None:
    return _upper(tag) if re.fullmatch(_SPELLING, tag, re.IGNORECASE) else None


def _upper(quant: str) -> str:
    return quant.upper().replace("FP", "F", 1) if quant.upper().startswith("FP") else quant.upper()


def _size_words(size_bytes: int | None) -> str:
    return "size not known" if size_bytes is None else format_size(size_bytes)
