"""One request and its answer: the body within its limits, JSON both ways, and what an error is in a dialect.

It must not know models or what is computed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import msgspec
import orjson
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gguf_embed.server.metrics import Metrics
from gguf_embed.server.refusals import Refusal, refusal_of

__all__ = [
    "FINGERPRINT_HEADER",
    "ClientLeftError",
    "Dialect",
    "Endpoint",
    "Exchange",
    "Limits",
    "decode",
    "json_reply",
    "refuse",
    "stream_reply",
    "too_large",
]

logger = logging.getLogger(__name__)
access = logging.getLogger("gguf_embed.server.access")

T = TypeVar("T")

FINGERPRINT_HEADER = "x-gguf-embed-fingerprint"  # of the vectors in an answer
_SILENCE_S = 30.0  # between two parts of a body
_LEFT = 499  # nginx's word for a client that left; nobody reads it


class ClientLeftError(Exception):
    """Nobody is there to be answered."""


class Dialect(Protocol):
    """How one family of clients wants to be told of errors."""

    name: str

    def error(self, refusal: Refusal) -> Any:
        """Return the body of an error, as JSON takes it."""

    def status(self, refusal: Refusal) -> int:
        """Return the status of an error, which dialects do not agree on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may be.

    Attributes:
        max_body_bytes: of its body.
        timeout_s: for all of it to arrive.
    """

    max_body_bytes: int
    timeout_s: float


class Exchange:
    """A request that is being answered.

    Args:
        scope: of ASGI.
        receive: of ASGI.
        limits: for the body.
    """

    def __init__(self, scope: Scope, receive: Receive, limits: Limits) -> None:
        self.scope, self._receive, self._limits = scope, receive, limits
        self.facts: dict[str, Any] = {}  # for the log
        self.headers: dict[str, str] = {}  # of the answer, beside its own

    @property
    def path_params(self) -> Mapping[str, Any]:
        """What the route took out of the path."""
        params: Mapping[str, Any] = self.scope.get("path_params", {})
        return params

    def header(self, name: str) -> str:
        """Return a header, "" without one."""
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == wanted), "")

    async def body(self) -> bytes:
        """Read the body.

        Raises:
            Refusal: it is too large, too slow, or the client left.
        """
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await self._read_all()
        except TimeoutError:
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the body took too long to arrive") from None

    async def _read_all(self) -> bytes:
        parts, n_bytes = [], 0
        while True:
            message = await asyncio.wait_for(self._receive(), _SILENCE_S)
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            parts.append(message.get("body", b""))
            n_bytes += len(parts[-1])
            if n_bytes > self._limits.max_body_bytes:
                raise too_large(self._limits.max_body_bytes)
            if not message.get("more_body"):
                return b"".join(parts)

    async def read(self, kind: type[T]) -> T:
        """Read the body as JSON of a kind; fields that it has not are ignored.

        Raises:
            Refusal: it is not.
        """
        return decode(await self.body(), kind)

    async def gone(self) -> None:
        """Return when the client is no longer there."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


def decode(body: bytes, kind: type[T]) -> T:
    """Read JSON of a kind; fields that it has not are ignored.

    Raises:
        Refusal: it is not.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        words = str(error)
        field = words.rpartition("`$.")[2].rstrip("`") if "`$." in words else None
        raise Refusal(HTTPStatus.BAD_REQUEST, words, param=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {error}") from None
    except RecursionError:
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is nested too deeply") from None


Handler = Callable[[Exchange], Awaitable[Response]]


class Endpoint:
    """A route's ASGI application: calls a handler, and turns what it raises into the dialect's error.

    Args:
        handler: answers.
        dialect: whose errors.
        metrics: where it is counted.
        limits: for the body.
    """

    def __init__(self, handler: Handler, *, dialect: Dialect, metrics: Metrics, limits: Limits) -> None:
        self._handler, self._dialect = handler, dialect
        self._metrics, self._limits = metrics, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started_s = time.monotonic()
        exchange = Exchange(scope, receive, self._limits)
        status = _LEFT
        try:
            try:
                response = await self._handler(exchange)
                response.headers.update(exchange.headers)
            except ClientLeftError:
                return
            except Exception as error:  # noqa: BLE001 - answered, and a bug is logged with its traceback
                response = self._answer_to(error)
            status = response.status_code
            await response(scope, receive, send)
        finally:
            seconds = time.monotonic() - started_s
            self._metrics.answered(self._dialect.name, status, seconds)
            facts = {
                "method": scope["method"],
                "path": scope["raw_path"].decode("latin-1"),
                "status": status,
                "ms": round(1000 * seconds, 1),
            }
            access.info("%(method)s %(path)s %(status)s %(ms)s ms", facts, extra={"facts": facts | exchange.facts})

    def _answer_to(self, error: Exception) -> Response:
        """Return the dialect's answer to an error."""
        refusal = refusal_of(error)
        if refusal is None:
            logger.error("a bug: %s", type(error).__name__, exc_info=error)
            refusal = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log has it")
        return refuse(self._dialect, refusal)


def refuse(dialect: Dialect, refusal: Refusal) -> Response:
    """Return a dialect's error."""
    headers = {}
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(refusal.retry_after_s)
    if refusal.code == "body_too_large" or refusal.status == HTTPStatus.REQUEST_TIMEOUT:
        headers["connection"] = "close"  # the rest of the body is not read
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return json_reply(dialect.error(refusal), status=dialect.status(refusal), headers=headers)


def too_large(max_body_bytes: int) -> Refusal:
    """Refuse a body for its size."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {max_body_bytes:,} bytes (--max-body); send fewer texts at a time",
        code="body_too_large",
    )


def json_reply(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer of JSON; float32 arrays are written with the digits that they have."""
    encoded = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(encoded, status_code=status, headers=dict(headers or {}), media_type="application/json")


def stream_reply(parts: AsyncIterator[bytes], *, media_type: str = "application/json") -> Response:
    """Return an answer that is written as it comes."""
    return StreamingResponse(parts, media_type=media_type)
