"""The server's application: dialects, operations and the page behind one door.

It must not know sockets or how anything is computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from gguf_embed.config import Config
from gguf_embed.errors import GGUFEmbedError
from gguf_embed.models.catalog import Catalog
from gguf_embed.server import ollama, openai, operations, tei
from gguf_embed.server.exchange import Dialect, Endpoint, Exchange, Handler, Limits, json_reply, refuse
from gguf_embed.server.guard import Guard
from gguf_embed.server.metrics import Metrics
from gguf_embed.server.openapi import Operation, describe
from gguf_embed.server.page import Page
from gguf_embed.server.pool import Pool
from gguf_embed.server.refusals import Refusal, hide
from gguf_embed.server.service import Service
from gguf_embed.server.settings import ServerSettings

__all__ = ["App"]

logger = logging.getLogger(__name__)


class App:
    """An ASGI application.

    Args:
        settings: of the server.
        config: of the user.

    Raises:
        RegistryError: a model that is to be served is unknown.
    """

    def __init__(self, settings: ServerSettings, config: Config) -> None:
        self.settings = settings
        hide(config.hub_cache, config.cache_dir, config.state_dir, config.config_dir, Path.home())
        self.metrics = Metrics(lambda: operations.gauges(self.service))
        self.pool = Pool(settings, Catalog(config), self.metrics)
        self.service = Service(self.pool)
        self._openai = openai.OpenAI(self.service, started=int(time.time()))
        self._ollama = ollama.Ollama(self.service)
        self._tei = tei.TEI(self.service)
        self._operations = list(self._all_operations())
        self._document = describe(self._operations)
        self._guarded = Guard(self._router(), settings=settings, dialect_of=self._dialect_of, metrics=self.metrics)
        self._tasks: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or begin and end the server's life."""
        if scope["type"] == "http":
            scope["app"] = self  # so that the router raises for a method that a route has not
        await self._guarded(scope, receive, send)

    def _dialect_of(self, path: str) -> Dialect:
        if path.startswith("/v1/") or path == "/embeddings":
            return self._openai
        return self._ollama if path.startswith("/api/") else self._tei

    def _all_operations(self) -> Sequence[Operation]:
        ops, page = operations.Operations(self.service, self.metrics), Page(self._ollama.root)
        oai, oll, hf = self._openai, self._ollama, self._tei
        return [
            Operation("POST", "/v1/embeddings", oai.embeddings, body=openai.EmbeddingsRequest),
            Operation("POST", "/embeddings", oai.embeddings, body=openai.EmbeddingsRequest),
            Operation("GET", "/v1/models", oai.models),
            Operation("GET", "/v1/models/{model:path}", oai.model),
            Operation("GET", "/api/version", oll.version),
            Operation("GET", "/api/tags", oll.tags),
            Operation("GET", "/api/ps", oll.ps),
            Operation("POST", "/api/show", oll.show, body=ollama.ModelRequest),
            Operation("POST", "/api/embed", oll.embed, body=ollama.EmbedRequest),
            Operation("POST", "/api/embeddings", oll.embeddings, body=ollama.LegacyRequest),
            Operation("POST", "/api/pull", oll.pull, body=ollama.PullRequest),
            Operation("POST", "/api/generate", oll.unsupported, body=ollama.ModelRequest),
            Operation("POST", "/api/chat", oll.unsupported, body=ollama.ModelRequest),
            Operation("POST", "/", hf.root, body=tei.EmbedRequest),
            Operation("POST", "/embed", hf.embed, body=tei.EmbedRequest),
            Operation("POST", "/similarity", hf.similarity, body=tei.SimilarityRequest),
            Operation("POST", "/tokenize", hf.tokenize, body=tei.TokenizeRequest),
            Operation("GET", "/info", hf.info),
            Operation("GET", "/health", ops.health),
            Operation("GET", "/metrics", ops.metrics),
            Operation("GET", "/stats", ops.stats),
            Operation("POST", "/load", ops.load, body=operations.LoadRequest),
            Operation("POST", "/unload", ops.unload, body=operations.UnloadRequest),
            Operation("GET", "/openapi.json", self._openapi),
            Operation("GET", "/", page.root),
            Operation("GET", "/page.js", page.script),
            Operation("GET", "/page.css", page.style),
        ]

    def _router(self) -> ASGIApp:
        by_path: dict[str, dict[str, Operation]] = {}
        for one in self._operations:
            by_path.setdefault(one.path, {})[one.method] = one
        routes = [
            Route(
                path, _ByMethod({key: self._endpoint(one) for key, one in by_method.items()}), methods=list(by_method)
            )
            for path, by_method in by_path.items()
        ]
        return Router(routes, redirect_slashes=False, default=self._nowhere, lifespan=self._lifespan)

    def _endpoint(self, operation: Operation) -> Endpoint:
        handler: Handler = operation.handler
        limits = Limits(max_body_bytes=self.settings.max_body_bytes, timeout_s=self.settings.timeout_s)
        return Endpoint(handler, dialect=self._dialect_of(operation.path), metrics=self.metrics, limits=limits)

    async def _nowhere(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = Refusal(
            HTTPStatus.NOT_FOUND, f"there is no {scope['path'][:200]} here; /openapi.json lists what there is"
        )
        await refuse(self._dialect_of(scope["path"]), refusal)(scope, receive, send)

    async def _openapi(self, _exchange: Exchange) -> Response:
        """Describe these routes, as OpenAPI 3.1."""
        return json_reply(self._document)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Any) -> AsyncIterator[None]:
        self._tasks.append(asyncio.create_task(self.pool.watch()))
        if self.settings.preload:
            self._tasks.append(asyncio.create_task(self._preload()))
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.to_thread(self.pool.close)

    async def _preload(self) -> None:
        for hosted in self.pool.served:
            try:
                await self.pool.load(hosted)
            except GGUFEmbedError as error:
                logger.error("%s is not loaded: %s", hosted.name, error)  # noqa: TRY400 - it says why
            except Exception:
                logger.exception("%s is not loaded", hosted.name)
            else:
                plan = hosted.opened.selection.plan if hosted.opened is not None else None
                logger.info("%s is ready: %s, %s", hosted.name, plan.quant if plan else "", plan.reason if plan else "")


class _ByMethod:
    """One path's endpoints."""

    def __init__(self, endpoints: dict[str, Endpoint]) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self._endpoints[method](scope, receive, send)
