"""A server over HTTP, whose only home is here: a whole answer within a time and a size, or an error without secrets.

It must not know dialects, models or vectors.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

# Exported lazily, which mypy does not see.
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from gguf_embed import __version__
from gguf_embed.errors import RemoteError

__all__ = ["Answer", "Ask", "check_api_key", "opened", "plain", "public", "without_secrets"]

_CONNECT_TIMEOUT_S = 10.0
# 64 MiB: 32 vectors of 8192 numbers are 6.5 MB of JSON with 17 digits each, and 10 MB with a line for each.
_N_BYTES_ANSWER = 64 * 1024 * 1024
_N_CHARS_WORDS = 300
_N_CHARS_SECRET = 8  # a shorter key is found in words that have nothing to do with it
_KEY = re.compile(r"[\x21-\x7e]+")
_BROKEN = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server sent, whole.

    Attributes:
        status: 200, 404, ...
        headers: by name, in any case.
        content: decompressed.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        """The beginning of it, for a person."""
        return self.content[: 4 * _N_CHARS_WORDS].decode("utf-8", "replace")

    def json(self) -> Any:
        """Read it.

        Raises:
            ValueError: it is no JSON, or more deeply nested than anybody's.
        """
        try:
            return json.loads(self.content)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


Ask = Callable[..., Answer]


def check_api_key(api_key: str) -> None:
    """Refuse a key that no header can carry; the message does not have it.

    Raises:
        ValueError: it is not visible ASCII throughout.
    """
    if not _KEY.fullmatch(api_key):
        raise ValueError(
            "the API key has a space, a line break or a character beyond ASCII, which no header carries; it is not "
            "shown here: look at what --api-key was given"
        )


@contextlib.contextmanager
def opened(url: str, *, api_key: str | None, timeout_s: float) -> Iterator[Ask]:
    """Yield ask(method, url, body), which returns an Answer whatever its status.

    A request whose connection breaks is sent once more.

    Args:
        url: of the server.
        api_key: sent as a bearer token; none if empty.
        timeout_s: for a whole answer, from connecting to its last byte.

    Raises:
        ValueError: a key that no header can carry.
        RemoteError: it cannot be reached, or gives no whole answer.
    """
    headers = {"User-Agent": f"gguf-embed/{__version__}", "Accept": "application/json"}
    if api_key:
        check_api_key(api_key)
        headers["Authorization"] = f"Bearer {api_key}"
    timeout = httpx.Timeout(timeout_s, connect=min(_CONNECT_TIMEOUT_S, timeout_s))
    try:
        # A proxy is for the world outside; a server on this machine is behind none.
        with httpx.Client(headers=headers, timeout=timeout, trust_env=not _is_here(url)) as client:
            yield lambda method, url, body=None: _ask(client, method, url, body, timeout_s)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise _unanswered(error, public(url), timeout_s) from error
    except RemoteError as error:  # a server may say the key again that it refuses
        if api_key and len(api_key) >= _N_CHARS_SECRET and api_key in str(error):
            raise RemoteError(str(error).replace(api_key, "***"), url=public(url)) from None
        raise


def public(url: str) -> str:
    """A URL without user, password and query, which may be a key."""
    return re.sub(r"(?<=//)[^/#]*@", "", url.partition("?")[0])


def without_secrets(text: str) -> str:
    """What was meant as a URL, without all that may be a password or a key."""
    return re.sub(r"//.*@", "//", text, flags=re.DOTALL).partition("?")[0]


def plain(words: str) -> str:
    """A server's words on one line, without what a terminal would act on."""
    line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    return line if len(line) <= _N_CHARS_WORDS else f"{line[:_N_CHARS_WORDS]}..."


def _is_here(url: str) -> bool:
    """Whether a URL is of this machine, by its whole name or address."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def _ask(client: httpx.Client, method: str, url: str, body: Any, timeout_s: float) -> Answer:
    def fetch() -> Answer:
        return _fetch(client, method, url, body, timeout_s)

    try:
        return _within(timeout_s, fetch)
    except _BROKEN:  # a server that was just restarted; a second time is no accident
        return _within(timeout_s, fetch)


def _within(timeout_s: float, fetch: Callable[[], Answer]) -> Answer:
    """Return what fetch gives; httpx times each read alone, so a byte now and then would keep it for ever."""
    results: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((fetch(), None))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            results.put((None, error))

    threading.Thread(target=work, name="gguf-embed-remote", daemon=True).start()
    try:
        answer, error = results.get(timeout=timeout_s)
    except queue.Empty:  # closing the client ends what the thread still reads
        raise httpx.ReadTimeout("no whole answer") from None
    if error is not None:
        raise error
    if answer is None:
        raise RuntimeError("neither an answer nor an error")
    return answer


def _fetch(client: httpx.Client, method: str, url: str, body: Any, timeout_s: float) -> Answer:
    ends, content = time.monotonic() + timeout_s, bytearray()
    with client.stream(method, url, json=body) as response:
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > _N_BYTES_ANSWER:
                raise RemoteError(
                    f"{public(url)} answered more than {_N_BYTES_ANSWER >> 20} MiB, which no vectors of one request "
                    "are. Is it a server for embeddings?",
                    url=public(url),
                )
            if time.monotonic() > ends:
                raise httpx.ReadTimeout("no whole answer")
        return Answer(status=response.status_code, headers=response.headers, content=bytes(content))


def _unanswered(error: Exception, shown: str, timeout_s: float) -> RemoteError:
    why = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        words = f"{shown} cannot be reached: {why}. Start the server, or check host and port."
    elif isinstance(error, httpx.TimeoutException):
        words = f"{shown} did not answer within {timeout_s:g} s. Look at its log, or give it fewer or shorter texts."
    else:
        words = f"{shown} broke off: {why}. Look at the server's log, then run the same command again."
    return RemoteError(words, url=shown)
