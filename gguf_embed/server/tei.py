"""Text Embeddings Inference's dialect: /embed and its kin. A translator: parse, call, print.

It must not know how anything is computed.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Literal

import msgspec
import numpy as np
from starlette.responses import Response

from gguf_embed import __version__, vectors
from gguf_embed.encoding import EncodeOptions
from gguf_embed.server.exchange import FINGERPRINT_HEADER, Exchange, decode, json_reply
from gguf_embed.server.openai import check_texts
from gguf_embed.server.refusals import Refusal
from gguf_embed.server.rows import reply_with_rows
from gguf_embed.server.service import Answer, Call, Service

__all__ = ["TEI", "EmbedRequest", "SimilarityRequest", "TokenizeRequest"]

_POOLING = {"last": "last_token", "mean": "mean", "cls": "cls"}


class EmbedRequest(msgspec.Struct, kw_only=True):
    """Body of /embed, and of / where it holds texts.

    Attributes:
        inputs: one text, or some.
        truncate: cut over-long texts at their end.
        truncation_direction: "right" alone.
        prompt_name: one of the model's prompts.
        normalize: give vectors unit length.
        dimensions: components to keep (MRL).
    """

    inputs: str | list[str | int | list[Any]]
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None


class _Pair(msgspec.Struct, kw_only=True):
    source_sentence: str
    sentences: list[str]


class _Parameters(msgspec.Struct, kw_only=True):
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] | None = None
    prompt_name: str | None = None


class SimilarityRequest(msgspec.Struct, kw_only=True):
    """Body of /similarity, and of / where it holds a sentence and others.

    Attributes:
        inputs: "source_sentence" and "sentences".
        parameters: as for /embed.
    """

    inputs: _Pair
    parameters: _Parameters | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Body of /tokenize.

    Attributes:
        inputs: one text, or some.
        add_special_tokens: with those that the model puts around a text.
        prompt_name: one of the model's prompts.
    """

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class _Root(msgspec.Struct, kw_only=True):
    inputs: Any = None


class TEI:
    """The routes.

    Args:
        service: what computes.
    """

    name = "tei"

    def __init__(self, service: Service) -> None:
        self._service = service

    def error(self, refusal: Refusal) -> Any:
        """{"error": words, "error_type": kind}."""
        return {"error": refusal.message, "error_type": _kind(refusal)}

    def status(self, refusal: Refusal) -> int:
        """As TEI has them: 422 for what is wrong in a request, 424 for what failed below."""
        if refusal.status == HTTPStatus.BAD_REQUEST and refusal.code != "empty":
            return HTTPStatus.UNPROCESSABLE_ENTITY
        return HTTPStatus.FAILED_DEPENDENCY if refusal.code == "backend" else refusal.status

    async def embed(self, exchange: Exchange) -> Response:
        """Embed texts."""
        return await self._embed(exchange, await exchange.read(EmbedRequest))

    async def similarity(self, exchange: Exchange) -> Response:
        """Compare a sentence with others: cosines."""
        return await self._similarity(exchange, await exchange.read(SimilarityRequest))

    async def root(self, exchange: Exchange) -> Response:
        """Do what the body is for: /embed or /similarity."""
        body = await exchange.body()
        kind = type(decode(body, _Root).inputs)
        if kind is dict:
            return await self._similarity(exchange, decode(body, SimilarityRequest))
        return await self._embed(exchange, decode(body, EmbedRequest))

    async def _embed(self, exchange: Exchange, wanted: EmbedRequest) -> Response:
        texts = _checked(wanted.inputs)
        options = EncodeOptions(
            prompt_name=wanted.prompt_name,
            truncate_dim=wanted.dimensions,
            normalize_embeddings=wanted.normalize is not False,
            truncate="end" if wanted.truncate else "error",
        )
        answer = await self._ask(exchange, texts, options)
        return reply_with_rows(answer.result.rows, lambda _, row: row, lambda rows: rows)

    async def _similarity(self, exchange: Exchange, wanted: SimilarityRequest) -> Response:
        sentences = _checked(wanted.inputs.sentences)
        how = wanted.parameters or _Parameters()
        options = EncodeOptions(prompt_name=how.prompt_name, truncate="end" if how.truncate else "error")
        answer = await self._ask(exchange, [wanted.inputs.source_sentence, *sentences], options)
        rows = answer.result.rows
        return json_reply(np.ascontiguousarray(vectors.similarity(rows[0], rows[1:])[0]))

    async def _ask(self, exchange: Exchange, texts: list[str], options: EncodeOptions) -> Answer:
        call = Call(model=None, texts=texts, options=options, is_query=options.prompt_name == "query")
        answer = await self._service.embed(call, exchange.gone)
        n_tokens = sum(answer.result.n_tokens)
        exchange.headers |= {FINGERPRINT_HEADER: answer.fingerprint} if answer.fingerprint else {}
        exchange.facts |= {"model": answer.hosted.name, "n_texts": len(texts), "n_tokens": n_tokens}
        return answer

    async def tokenize(self, exchange: Exchange) -> Response:
        """Turn texts into tokens."""
        wanted = await exchange.read(TokenizeRequest)
        texts = _checked(wanted.inputs)
        options = EncodeOptions(prompt_name=wanted.prompt_name)
        call = Call(model=None, texts=texts, options=options, wants_tokens=True)
        answer = await self._service.embed(call, exchange.gone)
        pieces = answer.result.pieces
        return json_reply([
            [
                {"id": token, "text": pieces[token][0], "special": pieces[token][1], "start": None, "stop": None}
                for token in ids.tolist()
                if wanted.add_special_tokens or not pieces[token][1]
            ]
            for ids in answer.result.tokens
        ])  # fmt: skip

    async def info(self, _exchange: Exchange) -> Response:
        """Describe the model and the limits."""
        settings = self._service.settings
        hosted = self._service.pool.find(None)
        spec, opened = hosted.spec, hosted.opened
        max_length = opened.max_tokens if opened is not None else spec.max_tokens if spec is not None else 0
        pooling = opened.selection.pooling_type if opened is not None else spec.pooling_type if spec is not None else ""
        return json_reply({
            "model_id": hosted.name,
            "model_sha": None,
            "model_dtype": opened.selection.plan.quant if opened is not None else "gguf",
            "served_model_name": hosted.name,
            "model_type": {"embedding": {"pooling": _POOLING.get(pooling, pooling)}},
            "max_concurrent_requests": settings.max_queue,
            "max_input_length": max_length,
            "max_batch_tokens": opened.selection.plan.n_batch if opened is not None else 0,
            "max_client_batch_size": settings.max_inputs,
            "auto_truncate": False,
            "tokenization_workers": 1,
            "version": __version__,
        })  # fmt: skip


def _kind(refusal: Refusal) -> str:
    if refusal.status == HTTPStatus.TOO_MANY_REQUESTS:
        return "Overloaded"
    if refusal.code == "empty":
        return "Empty"
    if refusal.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT):
        return "Unhealthy"
    return "Backend" if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "Validation"


def _checked(given: str | list[Any]) -> list[str]:
    if given == []:
        raise Refusal(HTTPStatus.BAD_REQUEST, "`inputs` cannot be empty", param="inputs", code="empty")
    return check_texts(given, param="inputs")
