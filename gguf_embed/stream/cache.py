"""Rows that were computed before, and notes about them, kept in one SQLite file for all programs of a user.

It must not know models or texts, only keys; nothing that goes wrong here stops those who embed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from gguf_embed.config import Config
from gguf_embed.errors import StorageError
from gguf_embed.sizes import format_size

__all__ = ["CacheInfo", "CachedRow", "VectorCache", "closing", "user_cache"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
_Entry = tuple[int, int, bytes]  # tokens, whether cut, the row or note

# A table with a rowid: 5 times faster to fill than one without, rows being larger than a page's twentieth.
# Source: 20,480 rows of 384 numbers, 0.21 against 1.05 s, SQLite 3.40, 2026-11-21.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    key BLOB PRIMARY KEY, n_tokens INTEGER NOT NULL, truncated INTEGER NOT NULL, day INTEGER NOT NULL,
    crc INTEGER NOT NULL, row BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS rows_by_day ON rows (day);
"""
_VERSION = 1
_BUSY_S = 60.0
_N_KEYS_QUERY = 900  # SQLite before 3.32 takes 999 variables
_KEEP_FREE_BYTES = 1 << 30  # of the disk: a cache is not worth a full one
_AFTER_EVICTION = 0.9  # of the limit, so that not every block evicts
_DAY_S = 86_400  # a row that is read is marked once a day, which is as fine as eviction needs


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedRow:
    """What one text came to.

    Attributes:
        row: (n_embd,) float32 as the model gave it.
        n_tokens: as embedded, special ones included.
        truncated: whether it was cut.
    """

    row: NDArray[np.float32]
    n_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """What a cache holds.

    Attributes:
        path: its file.
        n_rows: vectors in it.
        size_bytes: on disk, all files of it.
        limit_bytes: what it may grow to.
    """

    path: Path
    n_rows: int
    size_bytes: int
    limit_bytes: int


class VectorCache:
    """A store of rows by key; safe between threads and processes. Trouble is told once and turns it off.

    Args:
        path: the file; made with its folder when it is used.
        limit_bytes: what it may grow to; the rows that were not read for longest go first. 0 keeps nothing.
        clock: stands in for time.time, for tests.
    """

    def __init__(self, path: Path, *, limit_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.path, self.limit_bytes, self._clock = path, limit_bytes, clock
        self._lock = threading.Lock()
        self._process_id = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._is_off = self._is_full = False

    def get(self, keys: Sequence[bytes], n_embd: int) -> dict[bytes, CachedRow]:
        """Find rows.

        Args:
            keys: of the rows that are wanted.
            n_embd: components of each; others are no rows of this model.

        Returns:
            Those that there are, by key.
        """
        return {
            key: CachedRow(row=np.frombuffer(blob, dtype="<f4"), n_tokens=n_tokens, truncated=bool(truncated))
            for key, (n_tokens, truncated, blob) in self._find(keys).items()
            if len(blob) == 4 * n_embd
        }

    def put(self, rows: Iterable[tuple[bytes, CachedRow]]) -> None:
        """Keep rows; one that is there stays as it is."""
        self._keep(
            (key, one.n_tokens, one.truncated, np.ascontiguousarray(one.row, dtype="<f4").tobytes())
            for key, one in rows
        )

    def get_note(self, key: bytes) -> bytes | None:
        """Find what `put_notes` kept, None where there is nothing."""
        found = self._find([key])
        return found[key][2] if key in found else None

    def put_notes(self, notes: Mapping[bytes, bytes]) -> None:
        """Keep what else is worth not computing twice."""
        self._keep((key, 0, False, note) for key, note in notes.items())

    def _find(self, keys: Sequence[bytes]) -> dict[bytes, _Entry]:
        nothing: dict[bytes, _Entry] = {}
        return self._safely(lambda connection: self._get(connection, keys), nothing) if self.limit_bytes else nothing

    def _keep(self, entries: Iterable[tuple[bytes, int, bool, bytes]]) -> None:
        if not self._has_room():
            return
        day = self._day()
        values = [
            (key, n_tokens, truncated, day, _crc(key, n_tokens, truncated, blob), blob)
            for key, n_tokens, truncated, blob in entries
        ]
        self._safely(lambda connection: self._put(connection, values), None)

    def info(self) -> CacheInfo:
        """Count what is here; no file is made."""
        n_rows = 0
        if self.path.exists():
            n_rows = self._safely(lambda connection: _number(connection, "SELECT count(*) FROM rows WHERE n_tokens"), 0)
        return CacheInfo(path=self.path, n_rows=n_rows, size_bytes=self._size_bytes(), limit_bytes=self.limit_bytes)

    def clear(self) -> int:
        """Delete every row and give the disk its space back.

        Returns:
            Bytes that were freed.

        Raises:
            StorageError: it cannot be opened.
        """

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM rows")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

        before = self._size_bytes()
        if before:
            self._safely(delete, None)
        if self._is_off:
            raise StorageError(f"{self.path} cannot be cleared; delete it yourself", path=self.path)
        return max(0, before - self._size_bytes())

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # With a connection, under the lock

    def _get(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, _Entry]:
        found: dict[bytes, _Entry] = {}
        today, stale, broken = self._day(), [], []
        for start in range(0, len(keys), _N_KEYS_QUERY):
            some = keys[start : start + _N_KEYS_QUERY]
            marks = ",".join("?" * len(some))
            query = f"SELECT key, n_tokens, truncated, day, crc, row FROM rows WHERE key IN ({marks})"  # noqa: S608
            for key, n_tokens, truncated, day, crc, blob in connection.execute(query, some):
                if not isinstance(blob, bytes) or _crc(key, n_tokens, truncated, blob) != crc:
                    broken.append((key,))
                    continue
                found[key] = n_tokens, truncated, blob
                if day != today:
                    stale.append((today, key))
        if stale or broken:
            with _transaction(connection):
                connection.executemany("UPDATE rows SET day = ? WHERE key = ?", stale)
                connection.executemany("DELETE FROM rows WHERE key = ?", broken)
        if broken:
            logger.warning("%d damaged rows of the cache %s are computed anew", len(broken), self.path)
        return found

    def _put(self, connection: sqlite3.Connection, values: Sequence[tuple[object, ...]]) -> None:
        with _transaction(connection):
            connection.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?)", values)
            self._evict(connection)

    def _evict(self, connection: sqlite3.Connection) -> None:
        """Delete what was not read for longest until what is used is well below the limit."""
        n_pages = _number(connection, "PRAGMA page_count") - _number(connection, "PRAGMA freelist_count")
        used_bytes = n_pages * _number(connection, "PRAGMA page_size")
        if used_bytes <= self.limit_bytes:
            return
        n_rows = _number(connection, "SELECT count(*) FROM rows")
        share = 1 - _AFTER_EVICTION * self.limit_bytes / used_bytes
        connection.execute(
            "DELETE FROM rows WHERE rowid IN (SELECT rowid FROM rows ORDER BY day, rowid LIMIT ?)",
            (max(1, round(n_rows * share)),),
        )

    # Opening, and what may go wrong

    def _safely(self, use: Callable[[sqlite3.Connection], T], instead: T) -> T:
        """Use the file; a damaged one is set aside and a new one begun, any other trouble turns the cache off."""
        if self._process_id != os.getpid():  # SQLite's connections and a lock of somebody's do not survive a fork
            self._lock, self._connection, self._process_id = threading.Lock(), None, os.getpid()
        with self._lock:
            for is_again in (False, True):
                if self._is_off:
                    break
                try:
                    return use(self._opened())
                except (sqlite3.Error, OSError) as error:
                    self._drop()
                    # Exactly this class: its subclasses are locks, full disks and the like.
                    if is_again or type(error) is not sqlite3.DatabaseError or not self._set_aside(error):
                        self._is_off = True
                        logger.warning("the cache %s is not used: %s", self.path, error)
        return instead

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = self._connection = sqlite3.connect(
                self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            if not (version := _number(connection, "PRAGMA user_version")):
                with self._alone():
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
            elif version != _VERSION:
                raise sqlite3.NotSupportedError(f"it has version {version}; this program reads {_VERSION}")
            connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may take the last rows, never the file
        return self._connection

    def _alone(self) -> FileLock:
        return FileLock(f"{self.path}.lock")

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _set_aside(self, error: Exception) -> bool:
        """Rename a damaged file, unless another process has just done it; tell whether there is a sound one now."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        with self._alone():
            if self._is_sound():
                return True
            try:
                self.path.replace(aside)
                for suffix in ("-wal", "-shm"):
                    Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            except OSError:
                return False
        logger.warning(
            "the cache %s cannot be read (%s); it is now %s, and a new one is begun", self.path, error, aside.name
        )
        return True

    def _is_sound(self) -> bool:
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=_BUSY_S)) as connection:
                return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
        except sqlite3.Error:
            return False

    def _has_room(self) -> bool:
        if self._is_off or self._is_full or not self.limit_bytes:
            return False
        try:
            folder = next(folder for folder in self.path.parents if folder.is_dir())
            free_bytes = shutil.disk_usage(folder).free
        except OSError:  # told when it is opened
            return True
        if free_bytes < _KEEP_FREE_BYTES:
            self._is_full = True
            logger.warning(
                "the cache %s takes nothing new: only %s are free on its disk", self.path, format_size(free_bytes)
            )
        return not self._is_full

    def _day(self) -> int:
        return int(self._clock() // _DAY_S)

    def _size_bytes(self) -> int:
        files = (self.path, Path(f"{self.path}-wal"), Path(f"{self.path}-shm"))
        total = 0
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # another process may close it meanwhile
                total += file.stat().st_size
        return total


def user_cache(config: Config) -> VectorCache:
    """Return the cache that all programs of this user share."""
    return VectorCache(config.cache_dir / "vectors.sqlite", limit_bytes=config.cache_bytes)


def closing(cache: VectorCache, items: Iterable[T]) -> Iterator[T]:
    """Yield items, and close the cache after the last one or when nobody wants more."""
    with cache:
        yield from items


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


def _crc(key: bytes, n_tokens: int, truncated: bool, blob: bytes) -> int:
    """Sum up all that is given out."""
    return zlib.crc32(blob, zlib.crc32(b"%b %r %r" % (key, n_tokens, int(truncated))))


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Take the write lock at once, so that two writers wait for each other instead of failing half-way."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # SQLite ends one itself when the disk is full
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
