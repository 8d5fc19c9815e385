"""Vectors from a server in OpenAI's, Ollama's or TEI's dialect: what is asked, and what an answer holds.

It must not know models, files, how HTTP is spoken, or what the vectors are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from gguf_embed.errors import RemoteError
from gguf_embed.quality.remote import Answer, Ask, opened, plain, public, without_secrets

__all__ = ["Address", "Dialect", "Fetched", "fetch_embeddings", "parse_address"]

Float32Matrix = NDArray[np.float32]
Dialect = Literal["openai", "ollama", "tei"]
OnTexts = Callable[[int], None]

_N_TEXTS_REQUEST = 32  # TEI's default limit of a request
_TIMEOUT_S = 600.0  # 32 long texts on a slow CPU
_FINGERPRINT = "x-gguf-embed-fingerprint"  # of our own server's answers
_PATHS: dict[Dialect, str] = {"openai": "/v1/embeddings", "ollama": "/api/embed", "tei": "/embed"}
# Ends of a path that tell the dialect, and what goes in their place.
_ENDS: tuple[tuple[str, Dialect, str], ...] = (
    ("/api/embed", "ollama", "/api/embed"),
    ("/api/embeddings", "ollama", "/api/embed"),  # the older route, a text a request
    ("/api", "ollama", "/api/embed"),
    ("/embeddings", "openai", "/embeddings"),
    ("/v1", "openai", "/v1/embeddings"),
    ("/embed", "tei", "/embed"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A server, and what to ask it for.

    Attributes:
        url: where texts are sent where the dialect is known; else what the routes come after. No fragment.
        model: its name there, "" for none.
        dialect: None where the server has to be asked first.
    """

    url: str
    model: str = ""
    dialect: Dialect | None = None

    def __str__(self) -> str:
        """The URL without user, password and query."""
        return public(self.url)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fetched:
    """What a server gave.

    Attributes:
        embeddings: (n, dim) float32, finite, as they came.
        address: with its dialect, and the model that was asked for or that it has.
        fingerprint: as Embedder has it, where it is our own server; None elsewhere.
    """

    embeddings: Float32Matrix
    address: Address
    fingerprint: str | None


def parse_address(text: str) -> Address:
    """Read a URL with the model's name as its fragment: http://localhost:11434#qwen3-embedding:4b.

    Raises:
        ValueError: it is no URL of a host; the message has no password.
    """
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its words may have the password
        is_url = False
    if not is_url:
        raise ValueError(f"{without_secrets(text)} is no URL of a server; one is like http://localhost:11434#model")
    path = parts.path.rstrip("/")
    for end, dialect, route in _ENDS:
        if path.endswith(end):
            return Address(
                url=_with_path(parts, path.removesuffix(end) + route), model=unquote(parts.fragment), dialect=dialect
            )
    return Address(url=_with_path(parts, path), model=unquote(parts.fragment))


def fetch_embeddings(
    address: Address,
    texts: Sequence[str],
    *,
    api_key: str | None = None,
    on_texts: OnTexts | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> Fetched:
    """Ask a server for the vectors of texts, 32 at a time.

    Texts that are too long for the model are an error where the server lets one ask for that (Ollama would cut them).
    A request whose connection breaks is sent once more.

    Args:
        address: whom; where the dialect is not known, Ollama's /api/version and TEI's /info are looked for, and
            OpenAI's /v1/embeddings taken otherwise.
        texts: at least one.
        api_key: sent as a bearer token.
        on_texts: called after each request with its number of texts.
        timeout_s: for the whole answer to one request.

    Raises:
        ValueError: a key that no header can carry.
        RemoteError: it cannot be reached, refuses, or answers something else than one finite vector a text.
    """
    with opened(address.url, api_key=api_key, timeout_s=timeout_s) as ask:
        address = _named(ask, _known(ask, address))
        rows: list[Float32Matrix] = []
        prints: set[str | None] = set()
        for start in range(0, len(texts), _N_TEXTS_REQUEST):
            batch = list(texts[start : start + _N_TEXTS_REQUEST])
            place = f" to texts {start + 1} to {start + len(batch)}"
            response = ask("POST", address.url, _body(address, batch))
            answer = _checked(response, address, place)
            prints.add(response.headers.get(_FINGERPRINT))
            rows.append(_matrix(_vectors_of(answer, address, len(batch)), address, start))
            if rows[-1].shape[1] != rows[0].shape[1] or len(prints) > 1:
                raise RemoteError(f"{address} changed its model meanwhile; run it again", url=str(address))
            if on_texts is not None:
                on_texts(len(batch))
    return Fetched(embeddings=np.concatenate(rows), address=address, fingerprint=prints.pop())


# Answers


def _checked(response: Answer, address: Address, place: str = "") -> Any:
    """Return what a response to some texts holds.

    Raises:
        RemoteError: it is a refusal, or no JSON.
    """
    status = response.status
    if 300 <= status < 400:
        where = plain(public(response.headers.get("location", "")))
        raise RemoteError(f"{address} leads to {where or 'nowhere'} ({status}); give that URL", url=str(address))
    if status >= 400:
        words = _words_of(response)
        told = f"{address} answered {status}{place}{f': {words}' if words else ''}"
        told += "" if told.endswith((".", "?", "!")) else "."
        raise RemoteError(f"{told} {_advice(status, address)}", url=str(address))
    try:
        return response.json()
    except ValueError as error:
        raise _strange(address, f"no JSON: {plain(response.text)[:80]!r}") from error


def _advice(status: int, address: Address) -> str:
    if status in (401, 403):
        return "Give its key with --api-key."
    named = f"whether it has the model {address.model}" if address.model else "the model's name, after # in the URL"
    if status == 404 and address.dialect == "ollama" and address.model:
        return f"If it has no such model: ollama pull {address.model}"
    if status in (404, 405):
        return f"Check the path, and {named}."
    if status == 429:
        return "Wait until it has less to do."
    return f"Look at the server's log; check {named}." if status >= 500 else f"Check the texts, and {named}."


def _words_of(response: Answer) -> str:
    """Find what a refusal says, as each dialect puts it."""
    try:
        content = response.json()
    except ValueError:
        kind = response.headers.get("content-type", "")
        return "" if "html" in kind else plain(response.text)
    if isinstance(content, dict):
        content = next((content[key] for key in ("error", "detail", "message") if content.get(key)), content)
    if isinstance(content, dict) and content.get("message"):
        content = content["message"]
    try:
        return plain(content if isinstance(content, str) else str(content))
    except RecursionError:  # what can just be read may be nested too deeply to be written
        return ""


def _strange(address: Address, what: str) -> RemoteError:
    return RemoteError(
        f"{address} answered {what}. Is it a server for embeddings? The URL may end in /v1/embeddings (OpenAI), "
        "/api/embed (Ollama) or /embed (TEI).",
        url=str(address),
    )


# Dialects


def _known(ask: Ask, address: Address) -> Address:
    """Find out which dialect a server speaks."""
    if address.dialect is not None:
        return address
    version = _content(ask, _at(address, "/api/version"))
    # Ours speaks all three; TEI's alone needs no model's name.
    dialect: Dialect = "openai"
    if "version" in version and not ("gguf_embed" in version and not address.model):
        dialect = "ollama"
    elif "model_id" in _content(ask, _at(address, "/info")):
        dialect = "tei"
    return replace(address, url=_at(address, _PATHS[dialect]), dialect=dialect)


def _named(ask: Ask, address: Address) -> Address:
    """Name the model where the dialect wants it and the server has but one; TEI tells which one it has."""
    if address.dialect == "tei":
        return _served_model(ask, address)
    if address.model:
        return address
    listing, key, field = ("/models", "data", "id")
    base = address.url.removesuffix("/embeddings")
    if address.dialect == "ollama":
        listing, key, field, base = "/tags", "models", "name", address.url.removesuffix("/embed")
    content = _content(ask, _with_path(urlsplit(base), urlsplit(base).path + listing))
    rows = content.get(key)
    listed = [one.get(field) for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []
    names = [plain(name) for name in listed if isinstance(name, str) and name]
    if len(names) == 1:
        return replace(address, model=names[0])
    if not names and address.dialect == "openai":  # several servers of one model take requests without its name
        return address
    known = f"it has {', '.join(names[:10])}" if names else "it does not say which it has"
    raise RemoteError(f"{address} wants a model's name, and {known}. Add one to the URL: #NAME", url=str(address))


def _served_model(ask: Ask, address: Address) -> Address:
    base = address.url.partition("?")[0].removesuffix("/embed")
    told = _content(ask, f"{base}/info").get("model_id")
    name = plain(told) if isinstance(told, str) else ""
    if name and address.model and name.rpartition("/")[2].lower() != address.model.rpartition("/")[2].lower():
        raise RemoteError(
            f"{address} serves {name}, not {address.model}. Start it with that model, or leave out #{address.model}.",
            url=str(address),
        )
    return replace(address, model=name or address.model)


def _content(ask: Ask, url: str) -> dict[str, Any]:
    """What a GET gives where that is a JSON object, else nothing."""
    response = ask("GET", url)
    if response.status in (401, 403):
        _checked(response, Address(url=url))
    if response.status != 200:
        return {}
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _body(address: Address, texts: list[str]) -> dict[str, Any]:
    if address.dialect == "tei":
        return {"inputs": texts, "truncate": False}
    if address.dialect == "ollama":
        return {"model": address.model, "input": texts, "truncate": False}
    named = {"model": address.model} if address.model else {}
    return {**named, "input": texts, "encoding_format": "float"}


def _vectors_of(answer: Any, address: Address, n: int) -> list[Any]:
    """Take the vectors out of an answer, in the order of the texts."""
    rows = answer
    if address.dialect == "ollama":
        rows = answer.get("embeddings") if isinstance(answer, dict) else None
    elif address.dialect == "openai":
        rows = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _strange(address, "no list of vectors")
        places = [row.get("index", i) for i, row in enumerate(rows)]
        if not all(isinstance(i, int | float) for i in places) or sorted(places) != list(range(len(rows))):
            raise _strange(address, "rows whose indexes are not those of the texts")
        rows = [rows[i].get("embedding") for i in np.argsort(places).tolist()]
    if not isinstance(rows, list):
        raise _strange(address, "no list of vectors")
    if len(rows) != n:
        raise _strange(address, f"{len(rows)} vectors for {n} texts")
    return rows


def _matrix(rows: list[Any], address: Address, start: int) -> Float32Matrix:
    try:
        matrix = np.asarray(rows)
    except ValueError:
        raise _strange(address, "vectors of different lengths") from None
    if matrix.ndim != 2 or not matrix.size or matrix.dtype.kind not in "iuf":
        raise _strange(address, f"something that is no matrix of numbers for texts {start + 1} to {start + len(rows)}")
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, which is told below
        matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    wrong = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(wrong):
        raise RemoteError(
            f"{address} gave NaN or infinity for text {start + wrong[0] + 1}. The server computes wrongly: try it on "
            "the CPU, or with another file.",
            url=str(address),
        )
    return matrix


# URLs


def _at(address: Address, route: str) -> str:
    parts = urlsplit(address.url)
    return _with_path(parts, parts.path + route)


def _with_path(parts: SplitResult, path: str) -> str:
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
