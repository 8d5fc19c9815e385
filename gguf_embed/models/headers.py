"""GGUF headers without their weights: a small cache of the first bytes of files on the hub.

It must not know what a header says.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from gguf_embed.models.hub import RemoteFile

__all__ = ["HeaderCache"]

logger = logging.getLogger(__name__)

# Qwen3's headers take 6 MB each; the ones used last are kept.
_MAX_HEADERS = 24


class HeaderCache:
    """Headers by checksum, else by commit; a file that may still change is not kept.

    Args:
        folder: holds one file a header.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, remote: RemoteFile) -> Path | None:
        """Look a header up, and count it as used.

        Returns:
            A file with the first bytes of the remote one, its whole header among them; None where it is not kept.
        """
        path = self._path(remote)
        if path is None or not path.is_file():
            return None
        try:
            os.utime(path)
        except OSError as error:
            logger.debug("%s cannot be touched: %s", path, error)
        return path

    def keep(self, remote: RemoteFile, head: bytes) -> Path | None:
        """Keep a header that was read, and drop those unused for longest.

        Returns:
            Where it is kept; None where it may change or the folder cannot be written.
        """
        path = self._path(remote)
        if path is None:
            return None
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(head)
            fresh.replace(path)
            kept = sorted(self._folder.glob("*.gguf-header"), key=lambda one: one.stat().st_mtime_ns)
            for old in kept[:-_MAX_HEADERS]:
                old.unlink(missing_ok=True)
        except OSError as error:
            logger.info("the header of %s cannot be kept: %s", remote.file, error)
            return None
        return path

    def _path(self, remote: RemoteFile) -> Path | None:
        if remote.sha256 is not None:
            name = remote.sha256
        elif remote.is_pinned:
            name = hashlib.sha256(f"{remote.repo}/{remote.revision}/{remote.file}".encode()).hexdigest()
        else:
            return None
        return self._folder / f"{name}.gguf-header"
