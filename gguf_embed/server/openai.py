"""OpenAI's dialect: /v1/embeddings and /v1/models. A translator: parse, call, print.

It must not know how anything is computed.
"""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import msgspec
from starlette.responses import Response

from gguf_embed.encoding import EncodeOptions
from gguf_embed.models.specs import ModelSpec
from gguf_embed.opening import Opened
from gguf_embed.server.exchange import FINGERPRINT_HEADER, Exchange, json_reply
from gguf_embed.server.refusals import Refusal
from gguf_embed.server.rows import reply_with_rows, to_base64
from gguf_embed.server.service import Call, Service, wrong_options

__all__ = ["EmbeddingsRequest", "OpenAI", "check_texts"]

_NO_IDS = (
    "token ids are not taken, since another tokenizer may have made them: send text. In LangChain: "
    "OpenAIEmbeddings(check_embedding_ctx_length=False)."
)


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """Body of /v1/embeddings; `input_type`, `task`, `prompt_name` and `truncate` are this server's own.

    Attributes:
        input: one text, or some.
        model: its name; None for the first one served.
        dimensions: components to keep (MRL).
        encoding_format: "float", or "base64" of little-endian float32.
        user: not used.
        input_type: "query" or "document", for the model's prompt.
        prompt_name: one of the model's other prompts.
        task: takes the place of the task in the query prompt.
        truncate: "error", or "end" to cut over-long texts.
    """

    input: str | list[str | int | list[Any]]
    model: str | None = None
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None
    input_type: Literal["query", "document"] | None = None
    prompt_name: str | None = None
    task: str | None = None
    truncate: Literal["error", "end"] | None = None


class OpenAI:
    """The routes.

    Args:
        service: what computes.
        started: when this server did, in Unix time.
    """

    name = "openai"

    def __init__(self, service: Service, *, started: int) -> None:
        self._service, self._started = service, started

    def error(self, refusal: Refusal) -> Any:
        """{"error": {...}}."""
        is_ours = refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        kind = "server_error" if is_ours else "invalid_request_error"
        if refusal.status == HTTPStatus.TOO_MANY_REQUESTS:
            kind = "rate_limit_error"
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            kind = "authentication_error"
        return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}

    def status(self, refusal: Refusal) -> int:
        """As it is; too many texts are a bad request there."""
        return HTTPStatus.BAD_REQUEST if refusal.code == "too_many_inputs" else refusal.status

    async def embeddings(self, exchange: Exchange) -> Response:
        """Embed texts."""
        wanted = await exchange.read(EmbeddingsRequest)
        texts = check_texts(wanted.input, param="input")
        if "" in texts:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"input {texts.index('')} is empty", param="input")
        prompt_name = wanted.prompt_name or wanted.input_type or ("query" if wanted.task is not None else None)
        with wrong_options():
            options = EncodeOptions(
                prompt_name=prompt_name,
                task=wanted.task,
                truncate_dim=wanted.dimensions,
                truncate=wanted.truncate or "error",
            )
        call = Call(model=wanted.model, texts=texts, options=options, is_query=prompt_name == "query")
        answer = await self._service.embed(call, exchange.gone)
        n_tokens = sum(answer.result.n_tokens)
        exchange.headers |= {FINGERPRINT_HEADER: answer.fingerprint} if answer.fingerprint else {}
        exchange.facts |= {"model": answer.hosted.name, "n_texts": len(texts), "n_tokens": n_tokens}
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        write = to_base64 if wanted.encoding_format == "base64" else lambda row: row
        return reply_with_rows(
            answer.result.rows,
            lambda index, row: {"object": "embedding", "index": index, "embedding": write(row)},
            lambda data: {"object": "list", "data": data, "model": wanted.model or answer.hosted.name, "usage": usage},
        )

    async def models(self, _exchange: Exchange) -> Response:
        """List the models that can be asked for."""
        pool = self._service.pool
        data = {one.name: _facts(one.name, one.spec, one.opened, created=self._started) for one in pool.hosted}
        for name, file in pool.available().items():
            reference = pool.parse(name)
            if name not in data and not any(hosted.is_same(reference) for hosted in pool.hosted):
                data[name] = _facts(name, reference.spec, None, created=_mtime(file.path))
        return json_reply({"object": "list", "data": list(data.values())})

    async def model(self, exchange: Exchange) -> Response:
        """Describe one of them."""
        one = self._service.pool.find(exchange.path_params["model"])
        return json_reply(_facts(one.name, one.spec, one.opened, created=self._started))


def _facts(name: str, spec: ModelSpec | None, opened: Opened | None, *, created: int) -> dict[str, Any]:
    max_len = opened.max_tokens if opened is not None else spec.max_tokens if spec is not None else None
    n_embd = opened.n_embd if opened is not None else spec.n_embd if spec is not None else None
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": (spec.base_repo.partition("/")[0] if spec is not None else "") or "local",
        "max_model_len": max_len,
        "dimensions": n_embd,
    }


def _mtime(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return 0


def check_texts(given: str | list[Any], *, param: str) -> list[str]:
    """Take texts as they are, one or some.

    Raises:
        Refusal: there is none, or they are token ids.
    """
    if isinstance(given, str):
        return [given]
    if not given:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"{param} is empty; send a text, or a list of them", param=param)
    for index, one in enumerate(given):
        if isinstance(one, (int, list)) and not isinstance(one, bool):
            raise Refusal(HTTPStatus.BAD_REQUEST, f"{param}: {_NO_IDS}", param=param)
        if not isinstance(one, str):
            raise Refusal(
                HTTPStatus.BAD_REQUEST, f"{param} {index} is {type(one).__name__}; texts are strings", param=param
            )
    return given
