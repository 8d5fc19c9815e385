"""The one core call that every dialect translates to: texts and options in, rows and counts out.

It must not know JSON, routes or status codes' words.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from gguf_embed.encoding import EncodeOptions, Preparation, prepare
from gguf_embed.engine.worker import Request, Result
from gguf_embed.errors import GGUFEmbedError
from gguf_embed.server.exchange import ClientLeftError
from gguf_embed.server.hosted import Hosted
from gguf_embed.server.pool import Pool
from gguf_embed.server.refusals import Refusal

__all__ = ["Answer", "Call", "Gone", "Service", "wrong_options"]

Gone = Callable[[], Coroutine[Any, Any, None]]  # returns when the client is no longer there

# A call of so few bytes is one that somebody waits for: it fits in one decode, and goes before bulk.
_INTERACTIVE_BYTES = 2048
_N_QUERIES = 64
_MAX_TASK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a client wants.

    Attributes:
        model: its name, None for the first one served.
        texts: to embed.
        options: how.
        is_query: these are search queries, so somebody waits for them.
        keep_alive_s: how long the model stays afterwards; None for the server's.
        wants_tokens: in place of vectors.
    """

    model: str | None
    texts: Sequence[str]
    options: EncodeOptions = field(default_factory=EncodeOptions)
    is_query: bool = False
    keep_alive_s: float | None = None
    wants_tokens: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a call.

    Attributes:
        hosted: the model that was used.
        result: rows, tokens, what was cut.
        load_s: seconds until the model was in memory.
        total_s: seconds in all.
        fingerprint: of the vectors, "" where it is not known.
    """

    hosted: Hosted
    result: Result
    fingerprint: str
    load_s: float
    total_s: float


@contextlib.contextmanager
def wrong_options() -> Iterator[None]:
    """Turn stock errors about options into refusals; elsewhere they are bugs."""
    try:
        yield
    except GGUFEmbedError:
        raise
    except (TypeError, ValueError) as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from None


class Service:
    """The models of a server and the queue before them.

    Args:
        pool: the models.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.settings = pool.settings
        self.n_waiting = self.n_texts_waiting = self._n_bytes_waiting = 0

    async def embed(self, call: Call, gone: Gone) -> Answer:
        """Embed texts, or tokenize them.

        Args:
            call: what is wanted.
            gone: returns when the client is no longer there.

        Raises:
            Refusal: unknown model, too many texts, full queue, out of time.
            GGUFEmbedError: what stood in the way.
            ClientLeftError: nobody is there any more.
        """
        started_s = time.monotonic()
        hosted = self.pool.find(call.model)
        n_bytes = self._check_size(call.texts, beside=call.options.task or "")
        with self._queued(len(call.texts), n_bytes):
            try:
                async with asyncio.timeout(self.settings.timeout_s), self.pool.using(hosted, call.keep_alive_s):
                    load_s = time.monotonic() - started_s
                    how = self._how(hosted, call)
                    result = await self._run(hosted, call, how, n_bytes, gone)
                    fingerprint = await hosted.fingerprint(how.dim, normalize=call.options.normalize_embeddings)
            except TimeoutError:
                raise Refusal(
                    HTTPStatus.GATEWAY_TIMEOUT,
                    f"not done within {self.settings.timeout_s:.0f} s (--timeout); send fewer texts at a time",
                    code="timeout",
                ) from None
        total_s = time.monotonic() - started_s
        return Answer(hosted=hosted, result=result, fingerprint=fingerprint, load_s=load_s, total_s=total_s)

    @staticmethod
    def _how(hosted: Hosted, call: Call) -> Preparation:
        opened = hosted.opened
        with wrong_options():
            return prepare(call.options, hosted.spec, lambda: opened.n_embd if opened is not None else 0)

    async def _run(self, hosted: Hosted, call: Call, how: Preparation, n_bytes: int, gone: Gone) -> Result:
        is_interactive = n_bytes <= _INTERACTIVE_BYTES or (call.is_query and len(call.texts) <= _N_QUERIES)
        request = Request(
            texts=call.texts,
            prompt=how.prefix,
            truncate=call.options.truncate,
            finish=None if call.wants_tokens else how.finish,
            is_interactive=is_interactive,
            with_pieces=call.wants_tokens,
        )
        return await self._wait(hosted, request, gone)

    async def _wait(self, hosted: Hosted, request: Request, gone: Gone) -> Result:
        """Wait for the rows or for the client to leave, whichever is first."""
        ticket = hosted.worker.submit(request)
        rows = asyncio.wrap_future(ticket.future)
        leaving = asyncio.create_task(gone())
        both: set[asyncio.Future[Any]] = {rows, leaving}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if rows.done():
                return rows.result()
            raise ClientLeftError
        finally:
            leaving.cancel()
            if not rows.done():
                ticket.cancel()

    def _check_size(self, texts: Sequence[str], *, beside: str) -> int:
        """Count the characters of texts and of what goes before each, and refuse more than are taken at once."""
        if len(beside) > _MAX_TASK:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"task is longer than {_MAX_TASK:,} characters", param="task")
        if len(texts) > self.settings.max_inputs:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{len(texts):,} texts; at most {self.settings.max_inputs:,} are taken at once (--max-inputs)",
                param="input",
                code="too_many_inputs",
            )
        return sum(map(len, texts)) + len(beside) * len(texts)

    @contextlib.contextmanager
    def _queued(self, n_texts: int, n_bytes: int) -> Iterator[None]:
        """Take a place in the queue, which has an end: by requests, and by the memory that their texts take."""
        is_full = self.n_waiting >= self.settings.max_queue
        is_heavy = self._n_bytes_waiting > 0 and self._n_bytes_waiting + n_bytes > 4 * self.settings.max_body_bytes
        if is_full or is_heavy:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{self.n_waiting} requests are waiting already (--max-queue); try again later",
                code="queue_full",
                retry_after_s=1,
            )
        self.n_waiting += 1
        self.n_texts_waiting += n_texts
        self._n_bytes_waiting += n_bytes
        try:
            yield
        finally:
            self.n_waiting -= 1
            self.n_texts_waiting -= n_texts
            self._n_bytes_waiting -= n_bytes
