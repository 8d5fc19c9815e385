"""The sole home of downloads: what the hub has, what the cache has, and getting from one to the other.

It knows no registry, no quantization names and no GGUF: a file is a repo, a revision, a name and a checksum.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

# huggingface_hub reads both when it is imported: no telemetry from this program, and no warning that a cache without
# symlinks doubles every file, because fetch_file moves instead of copying there.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_SYMLINKS_WARNING", "1")

from huggingface_hub import (
    HfApi,
    HFCacheInfo,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    scan_cache_dir,
    try_to_load_from_cache,
)
from huggingface_hub.file_download import are_symlinks_supported, repo_folder_name
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # exported lazily

from gguf_embed.errors import ChecksumError, DownloadError, InvalidGGUFError, OfflineError
from gguf_embed.models.transfer import LIBRARY, Progress, Source, Wire, storage
from gguf_embed.sizes import format_size

__all__ = ["CachedFile", "Hub", "Progress", "RemoteFile"]

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")  # it becomes a file name
_HEADER_START_BYTES = 1 << 20  # 1 MiB
_HEADER_CAP_BYTES = 64 << 20  # 64 MiB; a vocabulary of 250,000 tokens takes 6


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
        if not self.revision or ".." in self.revision:
            raise ValueError(f"revision is {self.revision!r}; it is a commit, a branch or a tag")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Published:
    """A remote file as the hub describes it now; the etag names its blob."""

    repo: str
    file: str
    commit: str
    etag: str
    size_bytes: int
    sha256: str | None


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

    def __init__(
        self,
        *,
        endpoint: str,
        cache_dir: Path,
        offline: bool = False,
        stall_timeout_s: float = 30.0,
        max_attempts: int = 5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._cache_dir = Path(cache_dir)
        self._offline = offline
        self._wire = Wire(stall_timeout_s=stall_timeout_s, max_attempts=max_attempts, sleep=sleep)

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
        api = HfApi(endpoint=self._endpoint, **LIBRARY)

        def ask() -> tuple[RemoteFile, ...]:
            answer = api.model_info(repo, revision=revision, files_metadata=True, timeout=self._wire.stall_timeout_s)
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

        return self._wire.persist(ask, Source(url=f"{self._endpoint}/api/models/{repo}", repo=repo))

    def cached_path(self, repo: str, file: str, revision: str | None, *, size_bytes: int | None = None) -> Path | None:
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
        folder = "models--*" if repo is None else self._folder(repo).name
        found: list[CachedFile] = []
        # Not scan_cache_dir: it measures every file of every model and data set, and skips repos with one bad link.
        for path in self._cache_dir.glob(f"{folder}/snapshots/*/**/*"):
            if path.suffix.lower() != ".gguf" or not path.is_file():
                continue
            name, _, revision, *parts = path.relative_to(self._cache_dir).parts
            repo_name, file = name.removeprefix("models--").replace("--", "/"), "/".join(parts)
            size_bytes = path.stat().st_size
            found.append(CachedFile(repo=repo_name, revision=revision, file=file, path=path, size_bytes=size_bytes))
        return tuple(sorted(found, key=lambda f: (f.repo, f.file, f.revision)))

    def fetch_header(
        self, remote: RemoteFile, accept: Callable[[bytes], T | None], *, max_attempts: int | None = None
    ) -> T:
        """Read a remote file from its start until `accept` is content: 1 MiB, then 2, 4, ... 64 MiB in all.

        Args:
            remote: the file; its weights are not moved.
            accept: gets all bytes so far; returns None to ask for more.
            max_attempts: tries in a row; None for the hub's own.

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
        source = self._source(remote, remote.revision)
        head, target_bytes = bytearray(), _HEADER_START_BYTES
        while True:
            ended = self._wire.grow_head(source, head, target_bytes, max_attempts=max_attempts)
            if (accepted := accept(bytes(head))) is not None:
                return accepted
            if ended or target_bytes >= _HEADER_CAP_BYTES:
                raise InvalidGGUFError(
                    f"{remote.repo}/{remote.file} has no whole GGUF header in its first {format_size(len(head))}. "
                    "It is no GGUF file, or it was cut short when it was published.",
                    path=Path(remote.file),
                )
            target_bytes *= 2

    def fetch_file(self, remote: RemoteFile, *, on_progress: Progress | None = None) -> Path:
        """Bring a file into the cache: decide, resume, verify, place.

        A cached commit makes no request. A broken transfer, also one ended by kill -9, is resumed by the next call;
        processes that want the same file share one download.

        Args:
            remote: the file. A size or sha256 that is given must hold.
            on_progress: called with the bytes present so far (resumed ones included) and the total.

        Returns:
            Its path in the cache snapshot.

        Raises:
            OfflineError: not cached, and offline or no way to the hub.
            AccessDeniedError: private or gated.
            UnknownModelError: no such repository, revision or file.
            DownloadError: the transfer kept failing; the partial file stays.
            ChecksumError: the published or the received file is another one than asked for.
            StorageError: the disk is full or the cache cannot be written.
        """
        cached = self.cached_path(remote.repo, remote.file, remote.revision, size_bytes=remote.size_bytes)
        if cached is not None and (remote.is_pinned or self._offline):
            return cached
        self._refuse_offline(f"{remote.repo}/{remote.file} is not in the cache {self._cache_dir}")
        try:
            published = self._fetch_published(remote, max_attempts=1 if cached else None)
        except (OfflineError, DownloadError) as error:
            if cached is None:
                raise
            _LOG.warning("Using the cached %s; its newest version could not be looked up: %s", cached, error)
            return cached
        with storage(self._cache_dir):
            self._place(published, on_progress)
            path = self._point(published)
        self._write_ref(remote, published.commit)
        return path

    def delete(self, cached: CachedFile) -> int:
        """Remove one file from the cache; its blob goes too unless another snapshot uses it.

        Args:
            cached: from cached_files().

        Returns:
            Bytes freed; 0 when the blob stays or the file was gone already.

        Raises:
            StorageError: the file is in use or the cache cannot be written.
        """
        if not cached.path.exists():
            return 0
        pointer, folder = cached.path.parent.resolve() / cached.path.name, self._folder(cached.repo).resolve()
        blob = pointer.resolve()
        with storage(pointer):
            if hasattr(HFCacheInfo, "delete_files"):  # since 2.x; it knows of blobs that several repositories share
                cache = scan_cache_dir(self._cache_dir)
                files = (f for repo in cache.repos for revision in repo.revisions for f in revision.files)
                cache.delete_files(*(f for f in files if f.file_path == pointer)).execute()
            if pointer.exists():  # before 2.x, or the scan left out a damaged repository
                pointer.unlink()
                used = any(other.resolve() == blob for other in folder.glob("snapshots/*/**/*"))
                if not used and blob.is_relative_to(folder):
                    blob.unlink(missing_ok=True)
        return 0 if blob.exists() else cached.size_bytes

    def _folder(self, repo: str) -> Path:
        return self._cache_dir / repo_folder_name(repo_id=repo, repo_type="model")

    def _source(self, file: RemoteFile | _Published, revision: str) -> Source:
        url = hf_hub_url(file.repo, file.file, revision=revision, endpoint=self._endpoint)
        return Source(url=url, repo=file.repo, file=file.file)

    def _refuse_offline(self, consequence: str) -> None:
        if self._offline:
            raise OfflineError(
                f"Offline: {consequence}. Run the same command once with the network on (unset HF_HUB_OFFLINE and "
                "GGUF_EMBED_OFFLINE), or give the path of a local .gguf file."
            )

    def _fetch_published(self, remote: RemoteFile, *, max_attempts: int | None) -> _Published:
        """Ask what the hub would send: one HEAD, no bytes."""
        source = self._source(remote, remote.revision)
        ask = partial(get_hf_file_metadata, source.url, timeout=min(10.0, self._wire.stall_timeout_s))
        answer = self._wire.persist(partial(ask, **LIBRARY), source, max_attempts=max_attempts)
        commit, etag = answer.commit_hash or "", answer.etag or ""
        size_bytes = remote.size_bytes if answer.size is None else answer.size
        if not _COMMIT.fullmatch(commit) or not _ETAG.fullmatch(etag) or size_bytes is None:
            raise DownloadError(
                f"{source.url} does not answer like a model hub (no commit, ETag or size). "
                "Check HF_ENDPOINT, and whether a proxy or a login page stands in between.",
                url=source.url,
                attempts=1,
            )
        sha256 = etag if _SHA256.fullmatch(etag) else remote.sha256
        for asked, got, unit in ((remote.sha256, sha256, ""), (remote.size_bytes, size_bytes, " bytes")):
            if asked not in (None, got):
                raise ChecksumError(
                    f"{remote.repo}/{remote.file} at {commit[:12]} is {got}{unit}, expected {asked}{unit}. Nothing was "
                    "downloaded. The pinned entry is wrong or the repository was rewritten: correct it in models.toml.",
                    path=Path(remote.file),
                    expected=str(asked),
                    actual=str(got),
                )
        return _Published(
            repo=remote.repo, file=remote.file, commit=commit, etag=etag, size_bytes=size_bytes, sha256=sha256
        )

    def _place(self, published: _Published, on_progress: Progress | None) -> None:
        """Bring the blob into the cache, under the lock that every huggingface_hub process takes for it."""
        if self._hit(published):
            return
        folder = self._folder(published.repo)
        blob = folder / "blobs" / published.etag
        pointer = folder / "snapshots" / published.commit / published.file
        lock = self._cache_dir / ".locks" / folder.name / f"{published.etag}.lock"
        for path in (lock, blob, pointer):
            path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if self._hit(published) or (blob.exists() and blob.stat().st_size == published.size_bytes):
                return  # another process was faster
            incomplete = blob.with_name(f"{blob.name}.incomplete")
            source = self._source(published, published.commit)
            size_bytes, sha256 = published.size_bytes, published.sha256
            self._wire.fetch_into(incomplete, source, size_bytes=size_bytes, sha256=sha256, on_progress=on_progress)
            pointer.unlink(missing_ok=True)  # it led to a file of the wrong size
            incomplete.replace(blob if are_symlinks_supported(self._cache_dir) else pointer)

    def _point(self, published: _Published) -> Path:
        """Let huggingface_hub lay the snapshot's pointer to the blob: one HEAD, no bytes."""
        if (path := self._hit(published)) is not None:
            return path
        point = partial(hf_hub_download, published.repo, published.file, revision=published.commit)
        point = partial(point, cache_dir=self._cache_dir, endpoint=self._endpoint, **LIBRARY)
        return Path(self._wire.persist(point, self._source(published, published.commit), max_attempts=1))

    def _hit(self, published: _Published) -> Path | None:
        return self.cached_path(published.repo, published.file, published.commit, size_bytes=published.size_bytes)

    def _write_ref(self, remote: RemoteFile, commit: str) -> None:
        """Note which commit the branch stands for, so that it can be found offline."""
        if remote.is_pinned:
            return
        ref = self._folder(remote.repo) / "refs" / remote.revision
        fresh = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
        # Without the note the next call only asks the hub again; a read-only cache may still be read.
        with contextlib.suppress(OSError):
            ref.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(commit, encoding="ascii")
            fresh.replace(ref)
