"""The sole home of downloads: what the hub has, what the cache has, and getting from one to the other.

It knows no registry, no quantization names and no GGUF: a file is a repo, a revision, a name and a checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn, TypeVar

# huggingface_hub reads both when it is imported: no telemetry from this program, and no warning that a cache without
# symlinks doubles every file, because fetch_file moves instead of copying there.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_SYMLINKS_WARNING", "1")

from huggingface_hub import (
    HfApi,
    HFCacheInfo,
    HfFileMetadata,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    scan_cache_dir,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    FileMetadataError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.file_download import are_symlinks_supported, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status, httpx

from gguf_embed.errors import (
    AccessDeniedError,
    ChecksumError,
    DownloadError,
    GGUFEmbedError,
    HubError,
    InvalidGGUFError,
    OfflineError,
    StorageError,
    UnknownModelError,
)
from gguf_embed.sizes import format_size

__all__ = ["CachedFile", "Hub", "Progress", "RemoteFile"]

T = TypeVar("T")
Progress = Callable[[int, int], None]

_LOG = logging.getLogger(__name__)
_LIBRARY = "gguf-embed"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")
_RETRIABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_HEADER_START = 1 << 20  # 1 MiB
_HEADER_CAP = 64 << 20  # 64 MiB
_DISK_MARGIN = 64 << 20  # 64 MiB stay free for everything else on the disk
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file on the hub.

    Attributes:
        repo: "organisation/name".
        revision: 40 hex digits of a commit, or a branch or tag when unpinned.
        file: path inside the repo, with forward slashes.
        size_bytes: None when unknown.
        sha256: 64 hex digits, None when unknown.
    """

    repo: str
    revision: str
    file: str
    size_bytes: int | None
    sha256: str | None

    def __post_init__(self) -> None:
        path = PurePosixPath(self.file)
        if not self.file or path.is_absolute() or ".." in path.parts or "\\" in self.file:
            raise ValueError(f"file is {self.file!r}; it is a path inside the repository")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 is {self.sha256!r}; it is 64 lower-case hex digits")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return _COMMIT.fullmatch(self.revision) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFile:
    """One GGUF in the Hugging Face cache; `revision` is a commit, `path` lies in its snapshot."""

    repo: str
    revision: str
    file: str
    path: Path
    size_bytes: int


class Hub:
    """The model hub at one endpoint, with one cache folder.

    Transfers are always plain HTTP with our own resume, for Xet repositories too (the hub serves them over HTTP as
    well): since 1.18 huggingface_hub does not resume a download that another process began, and on plain HTTP it never
    compares the sha256 (huggingface_hub issue 4196).

    Args:
        endpoint: the hub's address.
        cache_dir: the Hugging Face cache folder.
        offline: never open a connection.
        stall_timeout_s: seconds without a byte after which a connection counts as broken.
        max_attempts: tries in a row that bring nothing new before giving up.
        sleep: waits between tries; a parameter for tests.
    """

    def __init__(  # noqa: PLR0913  all keyword-only settings
        self,
        *,
        endpoint: str,
        cache_dir: Path,
        offline: bool = False,
        stall_timeout_s: float = 30.0,
        max_attempts: int = 5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if max_attempts < 1:
            raise ValueError(f"max_attempts is {max_attempts}; it is at least 1")
        self._endpoint = endpoint.rstrip("/")
        self._cache_dir = Path(cache_dir)
        self._offline = offline
        self._stall_timeout_s = stall_timeout_s
        self._max_attempts = max_attempts
        self._sleep = sleep

    def fetch_listing(self, repo: str, revision: str | None = None) -> tuple[RemoteFile, ...]:
        """Ask the hub for the GGUF files of a repository, in one request.

        Args:
            repo: "organisation/name".
            revision: branch, tag or commit; None for the main branch.

        Returns:
            The files sorted by name, each pinned to the commit that the revision stands for now.

        Raises:
            OfflineError: offline, or no way to the hub.
            AccessDeniedError: private or gated; also a repository that does not exist, without a token.
            UnknownModelError: no such repository or revision.
            DownloadError: the hub kept failing.
        """
        self._refuse_offline(f"the files of {repo} cannot be listed")
        api = HfApi(endpoint=self._endpoint, library_name=_LIBRARY)

        def ask() -> tuple[RemoteFile, ...]:
            answer = api.model_info(repo, revision=revision, files_metadata=True, timeout=self._stall_timeout_s)
            found = [s for s in answer.siblings or () if s.rfilename.lower().endswith(".gguf")]
            return tuple(
                RemoteFile(
                    repo=repo,
                    revision=answer.sha or revision or "main",
                    file=sibling.rfilename,
                    size_bytes=sibling.size,
                    sha256=sibling.lfs.sha256 if sibling.lfs else None,
                )
                for sibling in sorted(found, key=lambda s: s.rfilename)
            )

        return self._persist(ask, url=f"{self._endpoint}/api/models/{repo}", repo=repo)

    def cached_path(
        self, repo: str, file: str, revision: str | None, *, size_bytes: int | None = None
    ) -> Path | None:
        """Look a file up in the cache, without a request.

        Args:
            repo: "organisation/name".
            file: path inside the repo.
            revision: branch, tag or commit; None for the main branch.
            size_bytes: what the file must measure; a file of another size is not a hit. None accepts any.

        Returns:
            The path in the snapshot, None when it is not there.
        """
        found = try_to_load_from_cache(repo, file, cache_dir=self._cache_dir, revision=revision)
        if not isinstance(found, str):  # absent, or huggingface_hub's marker "known not to exist"
            return None
        path = Path(found)
        return path if size_bytes is None or path.stat().st_size == size_bytes else None

    def cached_files(self, repo: str | None = None) -> tuple[CachedFile, ...]:
        """List the GGUF files in the cache, without a request, whoever put them there.

        Args:
            repo: only this repository; None for all.

        Returns:
            The files sorted by repo, file and commit; broken pointers are left out.
        """
        folder = "models--*" if repo is None else _folder(repo)
        found: list[CachedFile] = []
        # Not scan_cache_dir: it measures every file of every model and data set, and skips repos with one bad link.
        for path in self._cache_dir.glob(f"{folder}/snapshots/*/**/*"):
            if path.suffix.lower() != ".gguf" or not path.is_file():
                continue
            name, _, revision, *parts = path.relative_to(self._cache_dir).parts
            found.append(
                CachedFile(
                    repo=name.removeprefix("models--").replace("--", "/"),
                    revision=revision,
                    file="/".join(parts),
                    path=path,
                    size_bytes=path.stat().st_size,
                )
            )
        return tuple(sorted(found, key=lambda f: (f.repo, f.file, f.revision)))

    def fetch_header(self, remote: RemoteFile, accept: Callable[[bytes], T | None]) -> T:
        """Read a remote file from its start until `accept` is content: 1 MiB, then 2, 4, ... 64 MiB in all.

        Args:
            remote: the file; its weights are not moved.
            accept: gets all bytes so far; returns None to ask for more.

        Returns:
            What accept returned.

        Raises:
            InvalidGGUFError: the file ended, or 64 MiB were read, and accept still asked for more.
            OfflineError: offline, or no way to the hub.
            AccessDeniedError: private or gated.
            UnknownModelError: no such repository, revision or file.
            DownloadError: the hub kept failing.
        """
        self._refuse_offline(f"the header of {remote.repo}/{remote.file} cannot be read")
        url = self._url(remote, remote.revision)
        head = bytearray()
        target = _HEADER_START
        while True:
            ended = self._persist(
                lambda: self._grow_head(url, head, target),  # noqa: B023  called before target changes
                url=url,
                repo=remote.repo,
                file=remote.file,
                present=lambda: len(head),
            )
            if (accepted := accept(bytes(head[:target]))) is not None:
                return accepted
            if ended or target >= _HEADER_CAP:
                raise InvalidGGUFError(
                    f"{remote.repo}/{remote.file} has no whole GGUF header in its first {format_size(len(head))}. "
                    "It is no GGUF file, or it was cut short when it was published.",
                    path=Path(remote.file),
                )
            target *= 2

