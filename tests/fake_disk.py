"""A disk under a test's hand: it counts what a program does to files, ends the program there, or is full."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path


class Killed(BaseException):
    """As kill -9: what is done after it has no effect, whoever catches it."""


class _File(io.FileIO):
    """What is written unbuffered, so that a kill loses buffers and may tear a write in two."""

    disk = None

    def write(self, data):
        content = bytes(data)
        if self.disk.step("write", lambda: super(_File, self).write(content[: len(content) // 2])):
            return super().write(content)
        return len(content)

    def truncate(self, size=None):
        return super().truncate(size) if self.disk.step("truncate") else size


class Disk:
    """Takes the place of os and open for the files below a folder.

    Attributes:
        n_steps: operations so far, those of `step` too.
        names: of them.
        kill_at: the operation, from 1, that is not done any more; half of a write is.
        full_from: the first operation that finds no room, where it wants some.
    """

    def __init__(self, monkeypatch, folder):
        self.folder, self.kill_at, self.full_from, self.is_dead = folder, None, None, False
        self.n_steps, self.names, self._files = 0, [], []
        for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync", "chmod"):
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))
        opened = io.open

        def counted_open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True,  # noqa: FBT002 - open's own
                         opener=None):  # fmt: skip
            if isinstance(file, int) or not set(mode) & set("wax+") or not self._is_here(file):
                return opened(file, mode, buffering, encoding, errors, newline, closefd, opener)
            return self._open(file, mode, encoding=encoding, newline=newline, opener=opener)

        monkeypatch.setattr(io, "open", counted_open)

    def begin(self, *, kill_at=None, full_from=None):
        """Start counting anew, as another process: what the one before had open is closed."""
        for raw, _ in self._files:
            raw.close()
        self._files.clear()
        self.kill_at, self.full_from, self.is_dead = kill_at, full_from, False
        self.n_steps, self.names = 0, []

    def step(self, name, half=lambda: None):
        """Count one operation; tell whether it is to be done."""
        if self.is_dead:
            return False
        self.n_steps += 1
        self.names.append(name)
        if self.n_steps == self.kill_at:
            half()
            self.is_dead = True
            raise Killed(name)
        if self.full_from is not None and self.n_steps >= self.full_from and name in ("write", "open", "mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return True

    def _is_here(self, path):
        return os.path.realpath(path).startswith(os.path.realpath(self.folder))

    def _counted(self, name, real):
        def act(*arguments, **options):
            if name == "fsync":
                self.step(name)  # nothing here loses power, and it takes long
                return None
            is_other = isinstance(arguments[0], str | os.PathLike) and Path(arguments[0]).is_absolute()
            if is_other and not self._is_here(arguments[0]):
                return real(*arguments, **options)
            return real(*arguments, **options) if self.step(name) else None

        return act

    def _open(self, file, mode, *, encoding, newline, opener):
        if not self.step("open"):
            file, mode, opener = os.devnull, "w+b" if "b" in mode else "w+", None
        raw = _File(file, mode.replace("b", "").replace("t", ""), opener=opener)
        raw.disk = self
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        self._files.append((raw, buffered))  # the latter so that it lives as long as its process
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=encoding, newline=newline)


def snapshot(folder):
    """Every file below a folder, by its path in it."""
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}
