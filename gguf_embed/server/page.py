"""The page for people at /: three files that need nothing from outside.

It must not know what they show.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.responses import Response

from gguf_embed.server.exchange import Exchange

__all__ = ["Page"]

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Page:
    """The routes.

    Args:
        otherwise: answers at / those who do not ask for HTML.
    """

    def __init__(self, otherwise: Callable[[Exchange], Awaitable[Response]]) -> None:
        self._otherwise = otherwise
        folder = files("gguf_embed.server") / "page"
        self._files = {name: (folder / name).read_bytes() for name in ("index.html", "page.js", "page.css")}

    async def root(self, exchange: Exchange) -> Response:
        """Show the page to browsers, and "Ollama is running" to others."""
        if "text/html" not in exchange.header("accept"):
            return await self._otherwise(exchange)
        return self._reply("index.html", "text/html")

    async def script(self, _exchange: Exchange) -> Response:
        """Return the page's script."""
        return self._reply("page.js", "text/javascript")

    async def style(self, _exchange: Exchange) -> Response:
        """Return the page's style."""
        return self._reply("page.css", "text/css")

    def _reply(self, name: str, media_type: str) -> Response:
        return Response(self._files[name], media_type=f"{media_type}; charset=utf-8", headers=_HEADERS)
