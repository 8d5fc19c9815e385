"""Who may ask: the door before every route. Host, Origin, key, content type and size; and CORS for those who may.

It must not know models or what routes do.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gguf_embed.server.exchange import FINGERPRINT_HEADER, Dialect, refuse, too_large
from gguf_embed.server.metrics import Metrics
from gguf_embed.server.refusals import Refusal
from gguf_embed.server.settings import ServerSettings

__all__ = ["Guard"]

_LOCAL_NAME = re.compile(r"(.+\.)?localhost|127(\.\d{1,3}){3}|\[::1\]|0\.0\.0\.0", re.IGNORECASE)
# Pages of this machine and desktop applications. Source: Ollama, envconfig/config.go, AllowedOrigins.
_LOCAL_ORIGIN = re.compile(
    r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(:\d+)?|(app|file|tauri|vscode-webview|vscode-file)://.*",
    re.IGNORECASE,
)
_OPEN_PATHS = {"/", "/page.js", "/page.css", "/health"}  # hold no secret, and tell how to give the key
_METHODS_WITH_BODY = {"POST", "PUT", "PATCH", "DELETE"}


class Guard:
    """An ASGI application before another.

    Args:
        app: what answers those who may ask.
        settings: of the server.
        dialect_of: whose errors a path's clients read.
        metrics: where a refusal is counted.
    """

    def __init__(
        self, app: ASGIApp, *, settings: ServerSettings, dialect_of: Callable[[str], Dialect], metrics: Metrics
    ) -> None:
        self._app, self._settings, self._dialect_of, self._metrics = app, settings, dialect_of, metrics
        self._hosts = {name.lower() for name in settings.allow_hosts}
        self._origins = {name.lower().rstrip("/") for name in settings.allow_origins}
        self._key = settings.api_key.encode() if settings.api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        is_allowed = self._is_allowed(origin, headers.get(b"host", b"").decode("latin-1"))
        if origin and is_allowed:
            send = _with_cors(send, origin)
        dialect = self._dialect_of(scope["path"])
        try:
            self._check_sender(headers, origin, is_allowed=is_allowed)
            if origin and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await _preflight(headers, send)
                return
            self._check_key(scope, headers)
            self._check_body(scope, headers)
            await self._app(scope, receive, send)
        except Refusal as refusal:
            response = refuse(dialect, refusal)
        except HTTPException as error:  # the router's: no such method
            response = refuse(dialect, Refusal(HTTPStatus(error.status_code), f"{scope['method']}: {error.detail}"))
            response.headers.update(error.headers or {})
        else:
            return
        self._metrics.answered(dialect.name, response.status_code, 0.0)
        await response(scope, receive, send)

    def _is_allowed(self, origin: str, host: str) -> bool:
        if not origin or "*" in self._origins or origin.lower() in self._origins:
            return True
        if host and origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return True  # this server's own page; the host is checked
        return _LOCAL_ORIGIN.fullmatch(origin) is not None

    def _check_sender(self, headers: dict[bytes, bytes], origin: str, *, is_allowed: bool) -> None:
        """Refuse what a foreign web page may have sent, or made another name of this machine for."""
        if self._settings.is_local and self._settings.uds is None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = re.sub(r":\d*$", "", host)
            if _LOCAL_NAME.fullmatch(name) is None and name not in self._hosts and "*" not in self._hosts:
                raise Refusal(
                    HTTPStatus.FORBIDDEN,
                    f"Host {host!r} is not a name of this machine; allow it with --allow-host",
                    code="host_not_allowed",
                )
        if not is_allowed:
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                f"Origin {origin!r} may not use this server; allow it with --allow-origin",
                code="origin_not_allowed",
            )

    def _check_key(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if self._key is None or (scope["method"] in ("GET", "HEAD") and scope["path"] in _OPEN_PATHS):
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key):
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                "the API key is missing or wrong; send Authorization: Bearer KEY",
                code="invalid_api_key",
            )

    def _check_body(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if scope["method"] not in _METHODS_WITH_BODY:
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._settings.max_body_bytes:
            raise too_large(self._settings.max_body_bytes)
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json" and not (length == b"0" and b"transfer-encoding" not in headers):
            raise Refusal(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"the body is {kind.decode('latin-1')[:80] or 'of no type'}; send JSON, with Content-Type: "
                "application/json",
                code="unsupported_media_type",
            )


def _with_cors(send: Send, origin: str) -> Send:
    """Let a page that may ask read the answer."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            named = [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", f"retry-after, {FINGERPRINT_HEADER}".encode()),
                (b"vary", b"origin"),
            ]
            message = {**message, "headers": [*message.get("headers", ()), *named]}
        await send(message)

    return sending


async def _preflight(headers: dict[bytes, bytes], send: Send) -> None:
    """Tell a browser that it may send what it is about to."""
    wanted = headers.get(b"access-control-request-headers", b"authorization, content-type")
    answer = [
        (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
        (b"access-control-allow-headers", wanted),
        (b"access-control-max-age", b"600"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": HTTPStatus.NO_CONTENT, "headers": answer})
    await send({"type": "http.response.body", "body": b""})
