"""HTTP/1.1 on a socket, with an end to a client's patience: a head that is too slow or too large closes it.

It must not know routes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["PatientProtocol"]

_HEAD_S = 30.0
_MAX_HEAD_BYTES = 64 << 10  # 64 KiB


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's, which waits for ever for the end of a request's head and keeps all of it."""

    _timer: asyncio.TimerHandle | None = None
    _is_in_head = True
    _n_head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._wait()

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(_HEAD_S, self._refuse, b"408 Request Timeout", b"the head is too slow")

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def data_received(self, data: bytes) -> None:
        """Take what came, and count it while it is a head."""
        if self._is_in_head:
            if self.cycle is None or self.cycle.response_complete:  # else somebody is being answered, with time
                self._wait()
            self._n_head += len(data)
        super().data_received(data)
        if self._is_in_head and self._n_head > _MAX_HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large", b"the head is larger than 64 KiB")

    def on_headers_complete(self) -> None:
        """A head is here."""
        self._is_in_head, self._n_head = False, 0
        self._rest()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is here; a head may follow, or nothing."""
        self._is_in_head = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._rest()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(b"400 Bad Request", msg.encode("ascii", "replace"))

    def _refuse(self, status: bytes, words: bytes) -> None:
        body = b'{"error":"' + words.replace(b'"', b"'") + b'"}'
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        transport: Any = self.transport
        transport.write(b"HTTP/1.1 " + status + b"\r\n" + head + body)
        transport.close()
