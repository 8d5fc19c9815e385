"""A job's work in progress: vectors and rows so far, and a checkpoint that says how much of them counts.

All of it lies in one folder beside the output, `OUT.partial`. It must not know models, sources or formats.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gguf_embed.errors import JobError, StorageError
from gguf_embed.jobs.rows import Row, RowBlock
from gguf_embed.jobs.sinks import mode_of

__all__ = ["Checkpoint", "Spool"]

logger = logging.getLogger(__name__)

_VERSION = 1
_FILES = ("checkpoint.json", "vectors.npy", "rows.jsonl")
# Of rows and vectors that are read back together and that make a row group of Parquet.
_N_BYTES_BLOCK = 16 << 20  # 16 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How far a job is. What was written after it does not count.

    Attributes:
        n_records: records of the input that are done, bad ones included.
        chain: checksum of all of these records.
        n_rows: rows written.
        n_failed: records and chunks without a vector.
        rows_bytes: length of the file of rows.
        columns: of the rows, those that any has.
    """

    n_records: int = 0
    chain: str = ""
    n_rows: int = 0
    n_failed: int = 0
    rows_bytes: int = 0
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Files:
    vectors: IO[bytes]
    rows: IO[bytes]
    header_bytes: int


class Spool:
    """The folder of one job; one process at a time.

    Args:
        output: the file that it is to become, no link; the folder is beside it.
        dim: components of a vector.
        identity: what makes a job the same: model, options, input; written into the checkpoint.
        restarts: throw away what another job, or an earlier run, left there.

    Attributes:
        folder: where it is.
        dim: as given.
        checkpoint: the last one.

    Raises:
        JobError: another process works there, or what is there is damaged or of another job.
        StorageError: it cannot be written.
    """

    def __init__(self, output: Path, *, dim: int, identity: Mapping[str, Any], restarts: bool = False) -> None:
        self.folder = output.with_name(f"{output.name}.partial")
        self._output, self.dim = output, dim
        self._identity = json.loads(json.dumps(identity))
        self._is_closed = False
        with self.storing():
            self.folder.mkdir(exist_ok=True)
            self._lock = FileLock(self.folder / "lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise JobError(
                    f"another process is writing {output}; wait for it, or name another file", path=self.folder
                ) from None
            try:
                before = None if restarts else self._read()
                self._sweep(keep=() if before is None else _FILES)
                self.checkpoint = before or Checkpoint()
                self._files = self._begin(is_new=before is None)
            except BaseException:
                self._lock.release()
                raise

    @property
    def _vectors_path(self) -> Path:
        return self.folder / "vectors.npy"

    @property
    def _rows_path(self) -> Path:
        return self.folder / "rows.jsonl"

    def _sweep(self, *, keep: Sequence[str]) -> None:
        """Delete what a run left here and is of no use, such as an output that was being written when it was killed."""
        ours = {*_FILES, "checkpoint.json.new", "vectors.new", "placed.npy"}
        for file in self.folder.iterdir():
            if file.name not in keep and (file.name in ours or file.name.startswith("staged")):
                file.unlink()

    def _begin(self, *, is_new: bool) -> _Files:
        """Open the files, cut to what the checkpoint says."""
        if not is_new and self._vectors_path.exists() and self._vectors_path.stat().st_nlink > 1:
            self._part_from_output()
        with contextlib.ExitStack() as stack:
            vectors = stack.enter_context(self._vectors_path.open("a+b"))
            rows = stack.enter_context(self._rows_path.open("a+b"))
            if is_new:
                self._write_header(vectors, 0)
                vectors.flush()
            vectors.seek(0)
            try:
                np.lib.format.read_magic(vectors)
                _, _, dtype = np.lib.format.read_array_header_1_0(vectors)
            except ValueError as error:
                raise self._damaged(self._vectors_path, "is no .npy any more") from error
            if dtype != np.dtype("<f4"):
                raise self._damaged(self._vectors_path, f"holds {dtype}")
            header_bytes = vectors.tell()
            self._cut(vectors, header_bytes + 4 * self.dim * self.checkpoint.n_rows)
            self._cut(rows, self.checkpoint.rows_bytes)
            stack.pop_all()
        return _Files(vectors, rows, header_bytes)

    def _part_from_output(self) -> None:
        """Copy vectors that are the output's too, so that what is appended here does not change it."""
        copy = self.folder / "vectors.new"
        shutil.copyfile(self._vectors_path, copy)
        copy.replace(self._vectors_path)

    def _cut(self, file: IO[bytes], size: int) -> None:
        if file.seek(0, os.SEEK_END) < size:
            raise self._damaged(Path(file.name), "is shorter than its checkpoint says")
        file.truncate(size)
        file.seek(size)

    def _damaged(self, path: Path, what: str) -> JobError:
        return JobError(f"{path} {what}; begin again with --restart", path=self.folder)

    def _write_header(self, file: IO[bytes], n_rows: int) -> None:
        """Write the header of an .npy file; its length is the same for any number of rows."""
        header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, self.dim)}
        np.lib.format.write_array_header_1_0(file, header)

    def _read(self) -> Checkpoint | None:
        """Read the checkpoint, None where there is none."""
        path = self.folder / "checkpoint.json"
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            version, identity = known.pop("version"), known.pop("identity")
            checkpoint = Checkpoint(**known | {"columns": tuple(known["columns"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged(path, "cannot be read") from error
        if version != _VERSION:
            raise self._damaged(path, f"is of version {version}, and this program reads {_VERSION}")
        if identity != self._identity:
            raise JobError(
                f"{self.folder} was begun by another job: {_difference(identity, self._identity)}. Finish it as it was "
                "begun, name another file, or begin again with --restart",
                path=self.folder,
            )
        return checkpoint

    def append(self, rows: Sequence[Row], vectors: NDArray[np.float32]) -> None:
        """Add rows; they do not count before `commit`.

        Args:
            rows: n of them.
            vectors: (n, dim) float32.
        """
        files = self._files
        with self.storing():
            files.vectors.write(np.ascontiguousarray(vectors, dtype="<f4").data)
            files.rows.write(b"".join(row.dump() for row in rows))
        seen = dict.fromkeys(self.checkpoint.columns) | dict.fromkeys(name for row in rows for name in row.columns())
        self.checkpoint = dataclasses.replace(
            self.checkpoint, n_rows=self.checkpoint.n_rows + len(rows), columns=tuple(seen)
        )

    def commit(self, **progress: Any) -> None:
        """Make what was appended count, with what else is to be known of it.

        Args:
            progress: fields of the checkpoint that are new.
        """
        files = self._files
        with self.storing():
            for file in (files.vectors, files.rows):
                file.flush()
                os.fsync(file.fileno())
            self.checkpoint = dataclasses.replace(self.checkpoint, rows_bytes=files.rows.tell(), **progress)
            known = {"version": _VERSION, "identity": self._identity, **dataclasses.asdict(self.checkpoint)}
            temporary = self.folder / "checkpoint.json.new"
            with temporary.open("w", encoding="utf-8") as stream:
                json.dump(known, stream, indent=1)  # in ASCII: names of files may be no Unicode
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self.folder / "checkpoint.json")

    def blocks(self) -> Iterator[RowBlock]:
        """Read the rows back, a bounded number of bytes at a time.

        Raises:
            JobError: the rows are damaged.
        """
        with self._vectors_path.open("rb") as vectors, self._rows_path.open("rb") as file:
            vectors.seek(self._files.header_bytes)
            for lines in _portions(file, n_bytes_row=4 * self.dim):
                found = np.frombuffer(vectors.read(4 * self.dim * len(lines)), dtype="<f4")
                try:
                    rows = tuple(Row.load(line) for line in lines)
                    block = RowBlock(rows=rows, vectors=found.reshape(len(rows), self.dim))
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise self._damaged(self._rows_path, "cannot be read") from error
                yield block

    @contextlib.contextmanager
    def staged(self, suffix: str) -> Iterator[IO[bytes]]:
        """Yield a stream to what is to become the output with this suffix, when `place` is called."""
        with (self.folder / f"staged{suffix}").open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    def place(self, suffixes: Sequence[str]) -> None:
        """Put what was staged in its place; delete what is there of another run where nothing was."""
        for suffix in suffixes:
            staged = self.folder / f"staged{suffix}"
            target = self._output.with_name(f"{self._output.name}{suffix}")
            if staged.exists():
                staged.chmod(mode_of(target))
                staged.replace(target)
            else:
                target.unlink(missing_ok=True)

    def become_npy(self) -> None:
        """Put the vectors in the output's place: as another name of the same file, or copied where that cannot be."""
        with self.storing():
            self._close_files()  # Windows gives no other name to an open file
            with self._vectors_path.open("r+b") as file:
                self._write_header(file, self.checkpoint.n_rows)
                file.flush()
                os.fsync(file.fileno())
            placed = self.folder / "placed.npy"
            try:
                placed.hardlink_to(self._vectors_path)
            except OSError:  # a file system without links
                shutil.copyfile(self._vectors_path, placed)
            placed.chmod(mode_of(self._output))
            placed.replace(self._output)

    def remove(self) -> None:
        """Delete the folder: the job is done. The checkpoint goes first, without which the rest is nothing."""
        (self.folder / "checkpoint.json").unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the files and let others in; closing twice is allowed. A folder without a checkpoint goes."""
        if self._is_closed:
            return
        self._is_closed = True
        self._close_files()
        try:
            if not (self.folder / "checkpoint.json").exists():
                self._sweep(keep=())
                (self.folder / "lock").unlink()  # while it is held, so that nobody else has begun here
                self.folder.rmdir()
        except OSError as error:
            logger.debug("%s was not deleted: %s", self.folder, error)
        finally:
            self._lock.release()

    def _close_files(self) -> None:
        for file in (self._files.vectors, self._files.rows):
            with contextlib.suppress(OSError):  # a full disk was told of before
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """Say what is kept where the system refuses to write.

        Raises:
            StorageError: it does.
        """
        try:
            yield
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "its disk is full" if is_full else error.strerror or str(error)
            raise StorageError(
                f"{self._output} cannot be written: {why}. What was done until the last checkpoint is kept; "
                f"{'make room' if is_full else 'mend that'} and run the same command again.",
                path=self._output,
            ) from error


def _portions(lines: IO[bytes], *, n_bytes_row: int) -> Iterator[list[bytes]]:
    """Read lines, as many at a time as take a bounded number of bytes with their vectors."""
    portion: list[bytes] = []
    n_bytes = 0
    for line in lines:
        portion.append(line)
        n_bytes += len(line) + n_bytes_row
        if n_bytes >= _N_BYTES_BLOCK:
            yield portion
            portion, n_bytes = [], 0
    if portion:
        yield portion


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what differs between two jobs."""
    words = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and old != new:
            words.append(_difference(old, new))
        elif old != new:
            words.append(f"{name} was {old!r} and is {new!r}")
    return ", ".join(words)
