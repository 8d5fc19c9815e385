"""What keeps a server running: health, figures, loading and unloading.

It must not know dialects or how anything is computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from gguf_embed import __version__
from gguf_embed.fit.host import resident_bytes
from gguf_embed.fit.planner import Plan
from gguf_embed.server.exchange import Exchange, json_reply
from gguf_embed.server.hosted import Hosted
from gguf_embed.server.metrics import CONTENT_TYPE, Metrics
from gguf_embed.server.refusals import public_words
from gguf_embed.server.service import Service, wrong_options
from gguf_embed.server.settings import parse_keep_alive

__all__ = ["LoadRequest", "Operations", "UnloadRequest", "gauges"]


class LoadRequest(msgspec.Struct, kw_only=True):
    """Body of /load.

    Attributes:
        model: its name; None for the first one served.
        keep_alive: how long it stays: seconds, or "5m"; below 0 for always.
    """

    model: str | None = None
    keep_alive: str | float | None = None


class UnloadRequest(msgspec.Struct, kw_only=True):
    """Body of /unload.

    Attributes:
        model: its name; None for the first one served.
    """

    model: str | None = None


class Operations:
    """The routes.

    Args:
        service: what computes.
        metrics: what is counted.
    """

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service, self._metrics = service, metrics
        self._started_s = time.monotonic()

    async def health(self, _exchange: Exchange) -> Response:
        """Say whether the served models can be used: 200 ready, 503 loading or degraded."""
        status, reason = self._status()
        content = {"status": status} | ({"reason": reason} if reason else {})
        code = HTTPStatus.OK if status == "ready" else HTTPStatus.SERVICE_UNAVAILABLE
        return json_reply(content, status=code)

    def _status(self) -> tuple[str, str]:
        served = self._service.pool.served
        for hosted in served:
            if words := hosted.worker.trouble or (str(hosted.trouble) if hosted.trouble is not None else ""):
                return "degraded", public_words(words)
        loading = [hosted.name for hosted in served if hosted.is_loading]
        return ("loading", f"loading {', '.join(loading)}") if loading else ("ready", "")

    async def metrics(self, _exchange: Exchange) -> Response:
        """Return Prometheus' figures."""
        return Response(self._metrics.render(), media_type=CONTENT_TYPE)

    async def stats(self, _exchange: Exchange) -> Response:
        """Return what the page shows: models, plans, queue and speed."""
        status, reason = self._status()
        texts_s, tokens_s = self._metrics.speed()
        service = self._service
        return json_reply({
            "version": __version__,
            "status": status,
            "reason": reason,
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "server_bytes": resident_bytes(),
            "queue": {"requests": service.n_waiting, "texts": service.n_texts_waiting},
            "speed": {"texts_per_s": round(texts_s, 1), "tokens_per_s": round(tokens_s, 1)},
            "models": [_facts(hosted) for hosted in service.pool.hosted],
        })  # fmt: skip

    async def load(self, exchange: Exchange) -> Response:
        """Load a model before it is needed."""
        wanted = await exchange.read(LoadRequest)
        hosted = self._service.pool.find(wanted.model)
        with wrong_options():
            keep_alive_s = None if wanted.keep_alive is None else parse_keep_alive(wanted.keep_alive)
        await self._service.pool.load(hosted, keep_alive_s)
        return json_reply(_facts(hosted))

    async def unload(self, exchange: Exchange) -> Response:
        """Take a model out of memory; its requests that are not done fail."""
        wanted = await exchange.read(UnloadRequest)
        hosted = self._service.pool.find(wanted.model)
        await self._service.pool.unload(hosted)
        return json_reply(_facts(hosted))


def gauges(service: Service) -> Iterator[tuple[str, str, float, dict[str, str]]]:
    """Yield what is so at the moment: name, help, value, labels."""
    yield "queue_requests", "Requests that are not answered yet.", service.n_waiting, {}
    yield "queue_texts", "Texts of these.", service.n_texts_waiting, {}
    yield "server_resident_bytes", "Memory of the server beside its workers.", resident_bytes(), {}
    for hosted in service.pool.hosted:
        labels = {"model": hosted.name}
        yield "model_loaded", "Whether a model is in memory.", float(hosted.is_loaded), labels
        if hosted.is_loaded and hosted.opened is not None:
            cost = hosted.opened.selection.plan.cost
            yield "memory_planned_bytes", "What the plan counts, host and devices.", cost.total_bytes, labels
            yield "worker_resident_bytes", "Memory of a worker in the host.", _resident(hosted), labels


def _resident(hosted: Hosted) -> int:
    process_id = hosted.worker.process_id
    return 0 if process_id is None else resident_bytes(process_id)


def _facts(hosted: Hosted) -> dict[str, Any]:
    opened, spec = hosted.opened, hosted.spec
    state = "loaded" if hosted.is_loaded else "loading" if hosted.is_loading else "unloaded"
    facts: dict[str, Any] = {
        "name": hosted.name,
        "state": state,
        "trouble": public_words(hosted.worker.trouble or str(hosted.trouble or "")),
        "n_done": hosted.n_done,
        "n_total": hosted.n_total,
        "n_active": hosted.n_active,
        "expires_in_s": round(hosted.seconds_left, 1) if math.isfinite(hosted.seconds_left) else None,
        "prompts": list(spec.prompts.names()) if spec is not None else [],
        "worker_bytes": _resident(hosted) if hosted.is_loaded else 0,
    }
    if opened is not None:
        plan = opened.selection.plan
        facts |= {
            "quant": plan.quant,
            "device": plan.device_description if plan.device else "CPU",
            "reason": plan.reason,
            "n_embd": opened.n_embd,
            "max_tokens": opened.max_tokens,
            "parts": list(_parts(plan)),
            "required_bytes": plan.required_bytes,
            "available_bytes": plan.available_bytes,
        }
    return facts


def _parts(plan: Plan) -> Iterator[dict[str, Any]]:
    """What the plan's bytes are for, in each memory."""
    places = [*zip(plan.layout.devices, plan.cost.devices, strict=True), ("host memory", plan.cost.host)]
    for where, usage in places:
        parts = {
            "weights": usage.weights_bytes,
            "KV cache": usage.kv_bytes,
            "buffers": usage.compute_bytes + usage.output_bytes,
            "program": usage.process_bytes,
        }
        yield from ({"where": where, "part": part, "bytes": size} for part, size in parts.items() if size)
