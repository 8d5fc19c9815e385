"""Bytes over HTTP for hub.py, its only importer: ranged reads, resume, retries, the hub's refusals in our words.

It knows no cache layout, no revisions and no locks: it gets a URL and a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

# Exported lazily, which mypy does not see.
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    httpx,
)

from gguf_embed import __version__
from gguf_embed.errors import (
    AccessDeniedError,
    ChecksumError,
    DownloadError,
    GGUFEmbedError,
    HubError,
    OfflineError,
    StorageError,
    UnknownModelError,
)
from gguf_embed.sizes import format_size

__all__ = ["LIBRARY", "Progress", "Source", "Wire", "check_reachable", "storage"]

T = TypeVar("T")
Progress = Callable[[int, int], None]

_LOG = logging.getLogger(__name__)
# What huggingface_hub calls put into the user agent.
LIBRARY: dict[str, Any] = {"library_name": "gguf-embed", "library_version": __version__}
_RETRIABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S = 60.0
_DISK_MARGIN_BYTES = 64 << 20  # 64 MiB stay free for everything else on the disk
_RANGE_START = re.compile(r"bytes (\d+)-")


def check_reachable(endpoint: str, *, timeout_s: float = 5.0) -> None:
    """Ask a hub for the name of one model, once.

    Raises:
        DownloadError: nothing answers there, or no model hub.
    """
    url = f"{endpoint}/api/models?limit=1"
    try:
        answer = get_session().get(url, headers=build_hf_headers(**LIBRARY), timeout=timeout_s)
        answer.raise_for_status()
        answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise DownloadError(f"{type(error).__name__}: {error}", url=url, attempts=1) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a request is about, for its messages: `file` is empty when it is about the whole repo."""

    url: str
    repo: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.repo}/{self.file}" if self.file else self.repo


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """How patient a transfer is.

    Attributes:
        stall_timeout_s: seconds without a byte after which a connection counts as broken.
        max_attempts: tries in a row that bring nothing new before giving up.
        sleep: waits between tries.
    """

    stall_timeout_s: float
    max_attempts: int
    sleep: Callable[[float], None]

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.stall_timeout_s <= 0:
            raise ValueError(f"max_attempts {self.max_attempts} and stall_timeout_s {self.stall_timeout_s} are above 0")

    def persist(
        self,
        attempt: Callable[[], T],
        source: Source,
        *,
        present: Callable[[], int] = lambda: 0,
        max_attempts: int | None = None,
    ) -> T:
        """Try until it works; wait 1, 2, 4, 8 s between tries, or what Retry-After says, up to 60 s.

        Args:
            attempt: one request and its answer.
            source: what it is about.
            present: bytes that are here; more than ever before starts the count of tries anew.
            max_attempts: another count than self.max_attempts.

        Raises:
            OfflineError: no connection could be made and nothing is here yet.
            AccessDeniedError: 401, 403 or gated.
            UnknownModelError: 404, or no possible name.
            DownloadError: out of tries.
        """
        limit, failures, most = max_attempts or self.max_attempts, 0, present()
        while True:
            try:
                return attempt()
            except OfflineModeIsEnabled as error:
                raise OfflineError(f"{source} is not in the cache: {error}") from error
            except HFValidationError as error:
                raise UnknownModelError(f"{source} is no repository name: {error}", model_id=source.repo) from error
            except HfHubHTTPError as error:
                if error.response.status_code not in _RETRIABLE:
                    raise _refusal(error, source) from error
                cause: Exception = error
            except (httpx.RequestError, LocalEntryNotFoundError, FileMetadataError) as error:
                cause = error
            except (ImportError, ValueError, FileNotFoundError, httpx.InvalidURL) as error:
                raise _bad_settings(error, source) from error
            if present() > most:  # a high-water mark: a server that always cuts at one place makes no progress
                most, failures = present(), 0
            failures += 1
            if failures >= limit:
                raise _gave_up(cause, source, failures, present()) from cause
            self.sleep(_wait_s(cause, failures))

    def grow_head(self, source: Source, head: bytearray, target_bytes: int, *, max_attempts: int | None = None) -> bool:
        """Append the file's next bytes to `head` until it has target_bytes; True when the file ended before.

        Raises:
            HubError, UnknownModelError: as persist().
        """
        grow = partial(self._grow_head, source, head, target_bytes)
        return self.persist(grow, source, present=lambda: len(head), max_attempts=max_attempts)

    def fetch_into(
        self, path: Path, source: Source, *, size_bytes: int, sha256: str | None, on_progress: Progress | None
    ) -> None:
        """Complete the file at `path`, which may hold the first bytes already, and verify it.

        Args:
            path: kept on every failure but a wrong checksum; created when missing.
            source: where the bytes are.
            size_bytes: of the whole file.
            sha256: of the whole file; None checks the size only.
            on_progress: called with the bytes present so far and size_bytes.

        Raises:
            ChecksumError: other bytes arrived; they are deleted.
            StorageError: too little room.
            HubError, UnknownModelError: as persist().
        """
        if sha256 is None:
            _LOG.warning("%s has no published sha256; only its size is checked", source)
        with _Partial(path) as part:
            if part.size_bytes > size_bytes or (part.size_bytes == size_bytes and sha256 not in (None, part.sha256)):
                part.restart()
            _require_room(path.parent, size_bytes - part.size_bytes)
            stream = partial(self._stream, source, part, size_bytes, on_progress)
            self.persist(stream, source, present=lambda: part.size_bytes)
            actual = part.sha256
            part.sync()
        if part.size_bytes != size_bytes or sha256 not in (None, actual):
            path.unlink()
            raise ChecksumError(
                f"{source} arrived damaged: sha256 {actual}, expected {sha256}; {part.size_bytes} of {size_bytes} "
                "bytes. It was deleted; run the same command again. If it happens again, a proxy changes the file.",
                path=path,
                expected=str(sha256),
                actual=actual,
            )

    def _stream(self, source: Source, part: _Partial, size_bytes: int, on_progress: Progress | None) -> None:
        if on_progress:
            on_progress(part.size_bytes, size_bytes)
        if part.size_bytes == size_bytes:
            return
        with self._get(source, part.size_bytes) as response:
            start = _range_start(response)
            if start not in (0, part.size_bytes):
                part.restart()
                raise httpx.RemoteProtocolError(f"the server answered another range than asked: {response.status_code}")
            if start != part.size_bytes:  # 200: the whole file, from the start
                part.restart()
            for piece in response.iter_raw():  # as they arrive, at most 64 KiB: kill -9 loses no more
                part.write(piece)
                if on_progress:
                    on_progress(part.size_bytes, size_bytes)
                if part.size_bytes > size_bytes:
                    return
        if part.size_bytes < size_bytes:
            raise httpx.ReadError(f"the server closed after {part.size_bytes} of {size_bytes} bytes")

    def _grow_head(self, source: Source, head: bytearray, target_bytes: int) -> bool:
        with self._get(source, len(head), target_bytes - 1) as response:
            if response.status_code == 416:
                return True
            start = _range_start(response)
            if start not in (0, len(head)):
                raise httpx.RemoteProtocolError("the server answered another range than asked")
            del head[start:]
            for piece in response.iter_raw():
                head += piece
                if len(head) >= target_bytes:
                    return False
        return True

    @contextlib.contextmanager
    def _get(self, source: Source, start: int, last: int | None = None) -> Iterator[httpx.Response]:
        """Open bytes start..last (all when None) of a URL; a redirect to another host loses Authorization in httpx."""
        headers = build_hf_headers(**LIBRARY) | {"Accept-Encoding": "identity"}
        if start or last is not None:
            headers["Range"] = f"bytes={start}-{'' if last is None else last}"
        timeout = httpx.Timeout(self.stall_timeout_s)
        with get_session().stream("GET", source.url, headers=headers, timeout=timeout) as response:
            if response.status_code != 416:
                hf_raise_for_status(response)
            yield response


class _Partial:
    """The bytes of a download that are on disk, and their sha256.

    Writes go to positions, not to the end: where locks do nothing (some network file systems) two processes then
    write the same bytes over each other instead of one after the other.
    """

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("r+b", buffering=0)
        self._hash = hashlib.file_digest(self._file, "sha256")
        self.size_bytes = self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def restart(self) -> None:
        self._file.truncate(0)
        self._file.seek(0)
        self._hash, self.size_bytes = hashlib.sha256(), 0

    def write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._hash.update(piece)
        self.size_bytes += len(piece)

    def sync(self) -> None:
        os.fsync(self._file.fileno())


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn what the disk refuses below `path` into StorageError; the network's own OSErrors pass."""
    try:
        yield
    except (HfHubHTTPError, ConnectionError):
        raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error}. Make room or give write permission, or set HF_HUB_CACHE to another "
            "folder; then run the same command again.",
            path=path,
        ) from error


def _require_room(folder: Path, missing_bytes: int) -> None:
    free_bytes, need_bytes = shutil.disk_usage(folder).free, missing_bytes + _DISK_MARGIN_BYTES
    if need_bytes > free_bytes:
        raise StorageError(
            f"{folder} has {format_size(free_bytes)} free; the download needs {format_size(need_bytes)}. Make room "
            "(gguf-embed rm), or set HF_HUB_CACHE to a folder on another disk.",
            path=folder,
        )


def _range_start(response: httpx.Response) -> int:
    """First byte that the answer brings; -1 when it does not say, or there is none (416)."""
    if response.status_code == 200:
        return 0
    match = _RANGE_START.match(response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _wait_s(cause: Exception, failures: int) -> float:
    answer = cause.response if isinstance(cause, HfHubHTTPError) else None
    asked = answer.headers.get("Retry-After", "") if answer is not None else ""
    return min(float(asked) if asked.isdecimal() else 2.0 ** (failures - 1), _LONGEST_WAIT_S)


def _bad_settings(error: Exception, source: Source) -> DownloadError:
    return DownloadError(
        f"{source.url} cannot be asked with these settings: {error}. Check HF_ENDPOINT, HF_TOKEN, the proxy "
        "variables and SSL_CERT_FILE.",
        url=source.url,
        attempts=1,
    )


def _gave_up(cause: Exception, source: Source, attempts: int, present_bytes: int) -> HubError:
    if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout) and not present_bytes:
        return OfflineError(
            f"{source} is not in the cache, and {source.url} cannot be reached: {cause}. Check the network, the proxy "
            "variables and HF_ENDPOINT, or give the path of a local .gguf file."
        )
    kept = f" The {format_size(present_bytes)} that arrived stay: the same command resumes." if present_bytes else ""
    why = str(cause) or type(cause).__name__
    return DownloadError(
        f"{source.url}: {why}. Gave up after {attempts} attempts without progress.{kept}",
        url=source.url,
        attempts=attempts,
    )


def _refusal(error: HfHubHTTPError, source: Source) -> GGUFEmbedError:
    status, code = error.response.status_code, error.response.headers.get("X-Error-Code", "")
    if isinstance(error, GatedRepoError):
        return AccessDeniedError(
            f"{source.repo} is gated. Accept its conditions on its page, then log in with `hf auth login` or set "
            "HF_TOKEN.",
            repo=source.repo,
        )
    if status in (401, 403):
        return AccessDeniedError(
            f"The hub refuses {source} ({status}). A repository that does not exist gets the same answer: check the "
            "name. If it is private, log in with `hf auth login` or set HF_TOKEN.",
            repo=source.repo,
        )
    if status == 404:
        missing = f"The hub has no repository {source.repo}" if code == "RepoNotFound" else f"The hub has no {source}"
        return UnknownModelError(f"{missing} ({code or status}). Check the spelling.", model_id=source.repo)
    return DownloadError(f"{source.url}: the hub answered {status}: {error}", url=source.url, attempts=1)
