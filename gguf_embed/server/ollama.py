"""Ollama's dialect: /api/embed and what its clients ask besides. A translator: parse, call, print.

It must not know how anything is computed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import msgspec
import orjson
from starlette.responses import PlainTextResponse, Response

from gguf_embed import __version__
from gguf_embed.encoding import EncodeOptions
from gguf_embed.models.shelf import FileOnDisk
from gguf_embed.server.exchange import FINGERPRINT_HEADER, Exchange, json_reply, stream_reply
from gguf_embed.server.hosted import Hosted
from gguf_embed.server.refusals import Refusal, refusal_of
from gguf_embed.server.rows import reply_with_rows
from gguf_embed.server.service import Answer, Call, Service, wrong_options
from gguf_embed.server.settings import parse_keep_alive

__all__ = ["EmbedRequest", "LegacyRequest", "ModelRequest", "Ollama", "PullRequest"]

# The version of Ollama whose routes these are: its clients look whether they can be used.
_VERSION = "0.30.0"
_NS = 1_000_000_000
_N_PULLS = 2
_ALWAYS_S = 100 * 365 * 86_400.0


class EmbedRequest(msgspec.Struct, kw_only=True):
    """Body of /api/embed; `options` are Ollama's and not used: the context is as long as the plan has it.

    Attributes:
        model: its name.
        input: one text, or some; none loads the model.
        truncate: cut over-long texts, as Ollama does unless told otherwise.
        dimensions: components to keep (MRL).
        keep_alive: how long the model stays in memory afterwards: seconds, or "5m"; below 0 for always.
        options: not used.
    """

    model: str
    input: Any = None
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: str | float | None = None
    options: dict[str, Any] | None = None


class LegacyRequest(msgspec.Struct, kw_only=True):
    """Body of /api/embeddings.

    Attributes:
        model: its name.
        prompt: the text; an empty one loads the model.
        keep_alive: as for /api/embed.
        options: not used.
    """

    model: str
    prompt: str = ""
    keep_alive: str | float | None = None
    options: dict[str, Any] | None = None


class ModelRequest(msgspec.Struct, kw_only=True):
    """Body of /api/show.

    Attributes:
        model: its name.
        name: the same, as older clients have it.
    """

    model: str | None = None
    name: str | None = None


class PullRequest(msgspec.Struct, kw_only=True):
    """Body of /api/pull.

    Attributes:
        model: a reference.
        name: the same, as older clients have it.
        stream: tell the progress, a line of JSON at a time.
    """

    model: str | None = None
    name: str | None = None
    stream: bool | None = None


class Ollama:
    """The routes.

    Args:
        service: what computes.
    """

    name = "ollama"

    def __init__(self, service: Service) -> None:
        self._service = service
        self._pool = service.pool
        self._n_pulls = 0

    def error(self, refusal: Refusal) -> Any:
        """{"error": words}, in Ollama's own where its clients look for them."""
        message = refusal.message
        if refusal.code == "context_length_exceeded":
            message = f"the input length exceeds the context length: {message}"
        return {"error": message}

    def status(self, refusal: Refusal) -> int:
        """As it is; too many texts are a bad request there."""
        return HTTPStatus.BAD_REQUEST if refusal.code == "too_many_inputs" else refusal.status

    async def root(self, _exchange: Exchange) -> Response:
        """Say that a server is here, as clients expect it."""
        return PlainTextResponse("Ollama is running")

    async def version(self, _exchange: Exchange) -> Response:
        """Return the version of these routes."""
        return json_reply({"version": _VERSION, "gguf_embed": __version__})

    async def embed(self, exchange: Exchange) -> Response:
        """Embed texts; none loads the model, or unloads it with keep_alive 0."""
        wanted = await exchange.read(EmbedRequest)
        texts = _texts(wanted.input)
        if not texts:
            return await self._touch(wanted.model, wanted.keep_alive, {"model": wanted.model, "embeddings": []})
        options = EncodeOptions(truncate_dim=wanted.dimensions, truncate="error" if wanted.truncate is False else "end")
        answer = await self._embed(exchange, wanted.model, texts, options, wanted.keep_alive)
        return reply_with_rows(
            answer.result.rows,
            lambda _, row: row,
            lambda rows: {
                "model": wanted.model,
                "embeddings": rows,
                "total_duration": int(answer.total_s * _NS),
                "load_duration": int(answer.load_s * _NS),
                "prompt_eval_count": sum(answer.result.n_tokens),
            },
        )

    async def embeddings(self, exchange: Exchange) -> Response:
        """Embed one text; the vector is not normalised, as Ollama has it."""
        wanted = await exchange.read(LegacyRequest)
        if not wanted.prompt:
            return await self._touch(wanted.model, wanted.keep_alive, {"embedding": []})
        options = EncodeOptions(normalize_embeddings=False, truncate="end")
        answer = await self._embed(exchange, wanted.model, [wanted.prompt], options, wanted.keep_alive)
        return json_reply({"embedding": answer.result.rows[0]})

    async def _embed(
        self, exchange: Exchange, model: str, texts: list[str], options: EncodeOptions, keep_alive: str | float | None
    ) -> Answer:
        call = Call(model=model, texts=texts, options=options, keep_alive_s=_keep_alive(keep_alive))
        answer = await self._service.embed(call, exchange.gone)
        n_tokens = sum(answer.result.n_tokens)
        exchange.headers |= {FINGERPRINT_HEADER: answer.fingerprint} if answer.fingerprint else {}
        exchange.facts |= {"model": answer.hosted.name, "n_texts": len(texts), "n_tokens": n_tokens}
        return answer

    async def _touch(self, model: str, keep_alive: str | float | None, content: dict[str, Any]) -> Response:
        hosted, seconds = self._pool.find(model), _keep_alive(keep_alive)
        if seconds == 0:
            hosted.used(0)
        else:
            await self._pool.load(hosted, seconds)
        return json_reply(content)

    async def tags(self, _exchange: Exchange) -> Response:
        """List the models on this disk."""
        return json_reply({"models": [_tag(name, file) for name, file in self._pool.available().items()]})

    async def show(self, exchange: Exchange) -> Response:
        """Describe a model."""
        wanted = await exchange.read(ModelRequest)
        hosted = self._pool.find(_named(wanted.model, wanted.name))
        spec, opened = hosted.spec, hosted.opened
        info: dict[str, Any] = {}
        if spec is not None:
            info = {
                "general.architecture": spec.arch,
                f"{spec.arch}.context_length": opened.max_tokens if opened is not None else spec.max_tokens,
                f"{spec.arch}.embedding_length": spec.n_embd,
                f"{spec.arch}.pooling_type": spec.pooling_type,
            }
        return json_reply({
            "license": spec.license if spec is not None else "",
            "modelfile": "",
            "parameters": "",
            "template": spec.prompts.query_template or spec.prompts.query if spec is not None else "",
            "details": _details(spec.arch if spec is not None else "", _quant(hosted)),
            "model_info": info,
            "capabilities": ["embedding"],
        })  # fmt: skip

    async def ps(self, _exchange: Exchange) -> Response:
        """List the models in memory."""
        return json_reply({"models": [_running(hosted) for hosted in self._pool.hosted if hosted.is_loaded]})

    async def pull(self, exchange: Exchange) -> Response:
        """Fetch a model, telling the progress."""
        wanted = await exchange.read(PullRequest)
        reference = self._pool.parse(_named(wanted.model, wanted.name))
        told = self._pull(reference.text)
        if wanted.stream is not False:
            return stream_reply(_told(told, reference.text), media_type="application/x-ndjson")
        async for _ in told:
            pass
        return json_reply({"status": "success"})

    async def _pull(self, text: str) -> AsyncIterator[tuple[int, int]]:
        """Fetch a model; not more than some at a time."""
        if self._n_pulls >= _N_PULLS:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS, f"{_N_PULLS} downloads run already; wait for one", retry_after_s=30
            )
        self._n_pulls += 1
        try:
            async for told in self._pool.pull(text):
                yield told
        finally:
            self._n_pulls -= 1

    async def unsupported(self, exchange: Exchange) -> Response:
        """Say that this server embeds and does nothing else."""
        wanted = await exchange.read(ModelRequest)
        hosted = self._pool.find(_named(wanted.model, wanted.name))
        what = exchange.scope["path"].rpartition("/")[2]
        raise Refusal(HTTPStatus.BAD_REQUEST, f'"{hosted.name}" does not support {what}; this server embeds')


async def _told(pull: AsyncIterator[tuple[int, int]], name: str) -> AsyncIterator[bytes]:
    """Tell a download as Ollama's clients read it."""
    yield _line({"status": "pulling manifest"})
    try:
        async for n_done, n_total in pull:
            yield _line({"status": f"pulling {name}", "digest": name, "total": n_total, "completed": n_done})
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise
        yield _line({"error": refusal.message})
        return
    yield _line({"status": "verifying sha256 digest"})
    yield _line({"status": "success"})


def _line(content: Any) -> bytes:
    return orjson.dumps(content) + b"\n"


def _texts(given: Any) -> list[str]:
    if given is None:
        return []
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refusal(HTTPStatus.BAD_REQUEST, "invalid input type", param="input")
    return [] if texts == [""] and isinstance(given, str) else texts


def _keep_alive(given: str | float | None) -> float | None:
    with wrong_options():
        return None if given is None else parse_keep_alive(given)


def _named(model: str | None, name: str | None) -> str:
    wanted = model or name
    if not wanted:
        raise Refusal(HTTPStatus.BAD_REQUEST, "model is required", param="model")
    return wanted


def _quant(hosted: Hosted) -> str:
    return hosted.opened.selection.plan.quant if hosted.opened is not None else hosted.reference.quant or ""


def _details(family: str, quant: str) -> dict[str, Any]:
    return {
        "parent_model": "", "format": "gguf", "family": family, "families": [family] if family else [],
        "parameter_size": "", "quantization_level": quant,
    }  # fmt: skip


def _tag(name: str, file: FileOnDisk) -> dict[str, Any]:
    try:
        modified_s = file.path.stat().st_mtime
    except OSError:
        modified_s = 0.0
    digest = file.path.resolve().name  # a blob of the Hugging Face cache carries its sha256 as its name
    if len(digest) != 64:
        digest = hashlib.sha256(f"{name} {file.size_bytes} {modified_s}".encode()).hexdigest()
    return {
        "name": name, "model": name, "modified_at": _time(modified_s), "size": file.size_bytes, "digest": digest,
        "details": _details("", file.quant),
    }  # fmt: skip


def _running(hosted: Hosted) -> dict[str, Any]:
    plan = hosted.opened.selection.plan if hosted.opened is not None else None
    seconds = min(hosted.seconds_left, _ALWAYS_S)
    until = dt.datetime.now(tz=dt.UTC).timestamp() + seconds
    return {
        "name": hosted.name,
        "model": hosted.name,
        "size": plan.cost.total_bytes if plan is not None else 0,
        "size_vram": plan.cost.device_bytes if plan is not None else 0,
        "digest": "",
        "details": _details(hosted.spec.arch if hosted.spec is not None else "", _quant(hosted)),
        "expires_at": _time(until),
        "context_length": hosted.opened.max_tokens if hosted.opened is not None else 0,
    }


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC).isoformat()
