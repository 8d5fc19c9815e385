"""The files of a folder: in one order on every machine, without what .gitignore and globs leave out.

It must not know how a text is read out of them. pathspec is used here alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_embed.errors import GGUFEmbedError, InputError, InvalidTextError, MissingExtraError
from gguf_embed.jobs.records import BINARY, OUTPUT_SUFFIXES, BadRecord, Record, bad_record, printable

__all__ = ["Folder", "FolderSource", "Found"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One file of a folder.

    Attributes:
        path: to open it by.
        relative: to the folder, with "/" on every machine.
        is_named: a glob chose it.
        error: why it, or the folder of this name, cannot be read.
    """

    path: Path
    relative: str
    is_named: bool = False
    error: OSError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pattern:
    """One line of a .gitignore: `matcher` is pathspec's, without "!" and the slash at the end."""

    matcher: Any
    ignores: bool
    for_folders: bool
    is_anchored: bool
    is_inside: bool

    def matches(self, path: str, *, is_folder: bool) -> bool:
        """Tell whether this entry matches by itself, not through a folder above it, as git does.

        pathspec's pattern for "a/b" matches "a/b/c" too; git asks about "a/b" before it comes to "a/b/c".
        """
        if self.for_folders and not is_folder:
            return False
        if not self.is_anchored:
            return self.matcher.match_file(path.rpartition("/")[2]) is not None
        found = self.matcher.match_file(path)
        return found is not None and (self.is_inside or found.match.end() == len(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """One .gitignore: `base` is its folder, from the top of the repository, "" or with a slash at its end."""

    base: str
    patterns: tuple[_Pattern, ...]

    def verdict(self, path: str, *, is_folder: bool) -> bool | None:
        """Tell whether a path from the top is ignored; None: these rules say nothing of it."""
        inside = path[len(self.base) :]
        for pattern in reversed(self.patterns):  # the last that matches decides
            if pattern.matches(inside, is_folder=is_folder):
                return pattern.ignores
        return None


class Folder:
    """A folder's files, found anew at each call: no list of them is kept.

    Left out: hidden files and folders, .git first of them; what .gitignore files say, those inside, those above in
    the same git repository, not the user's own settings of git; what no glob matches; devices and pipes; symbolic
    links to folders, to nowhere and to files of this folder, which have their own place. A link to a file elsewhere
    stands for it, once however many links lead there.

    Args:
        root: the folder; itself it may be hidden or ignored.
        globs: gitwildmatch patterns relative to the folder; a file that any of them matches is taken, all files where
            there are none; one that begins with "!" leaves out.
        honours_ignore: whether .gitignore files count.
        output: what is being written; it is left out, and what lies beside it.

    Raises:
        ValueError: a glob is no pattern.
        MissingExtraError: globs or .gitignore files count and pathspec is not installed.
    """

    def __init__(
        self, root: Path, *, globs: Sequence[str] = (), honours_ignore: bool = True, output: Path | None = None
    ) -> None:
        self.root = root
        self._outputs = {f"{output.resolve()}{suffix}" for suffix in OUTPUT_SUFFIXES} if output is not None else set()
        self._honours_ignore = honours_ignore
        if globs or honours_ignore:
            _pathspec()
        self._chosen = _spec_of([glob for glob in globs if not glob.startswith("!")])
        self._refused = _spec_of([glob[1:] for glob in globs if glob.startswith("!")])
        self._real = os.path.realpath(root)
        self._above, self._rules_above = self._look_above() if honours_ignore else ("", ())

    def files(self) -> Iterator[Found]:
        """Yield files by the bytes of their paths; one folder's names are in memory at a time, and those above it.

        Raises:
            InputError: a .gitignore cannot be read.
        """
        linked: set[str] = set()
        pending = [self._listed("", self._rules_above)]
        while pending:
            entry = next(pending[-1], None)
            if entry is None:
                pending.pop()
            elif isinstance(entry, tuple):
                pending.append(self._listed(*entry))
            elif entry.error is not None or not entry.path.is_symlink() or self._is_news(entry.path, linked):
                yield entry

    def _listed(self, inside: str, rules: tuple[_Rules, ...]) -> Iterator[Found | tuple[str, tuple[_Rules, ...]]]:
        """Yield one folder's files, and its folders with the rules that count in them."""
        folder = self.root / inside
        try:
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=_order)
        except OSError as error:
            yield Found(path=folder, relative=inside.rstrip("/"), error=error)
            return
        if self._honours_ignore:
            rules = (*rules, *_rules_of(folder / ".gitignore", f"{self._above}{inside}"))
        names = {entry.name for entry in entries}
        for entry in entries:
            relative, is_folder = inside + entry.name, entry.is_dir(follow_symlinks=False)
            if entry.name.startswith(".") or self._is_ignored(relative, rules, is_folder=is_folder):
                continue
            if self._outputs and os.path.join(self._real, relative) in self._outputs:  # noqa: PTH118 - a text
                continue
            if entry.name.endswith(".meta.json") and entry.name.removesuffix(".meta.json") in names:
                continue  # what a job told of its output
            if is_folder:
                if not self._refused.match_file(f"{relative}/"):
                    yield f"{relative}/", rules
            elif (found := self._found(entry, relative)) is not None:
                yield found

    def _found(self, entry: os.DirEntry[str], relative: str) -> Found | None:
        is_named = bool(self._chosen) and self._chosen.match_file(relative)
        if (self._chosen and not is_named) or self._refused.match_file(relative):
            return None
        try:
            if entry.is_symlink() and not os.path.isdir(entry.path):  # noqa: PTH112 - quicker, and `stat` tells why
                os.stat(entry.path)  # noqa: PTH116
            is_file = entry.is_file()
        except OSError as error:
            if entry.is_symlink():  # to nowhere, or in a loop
                return None
            return Found(path=Path(entry.path), relative=relative, is_named=is_named, error=error)
        return Found(path=Path(entry.path), relative=relative, is_named=is_named) if is_file else None

    def _is_ignored(self, relative: str, rules: tuple[_Rules, ...], *, is_folder: bool) -> bool:
        path = f"{self._above}{relative}"
        verdicts = (one.verdict(path, is_folder=is_folder) for one in reversed(rules))  # the nearest decides
        return next((verdict for verdict in verdicts if verdict is not None), False)

    def _is_news(self, link: Path, linked: set[str]) -> bool:
        """Tell whether a link leads out of this folder, and to a file that no link before it led to."""
        real = os.path.realpath(link)
        if real in linked or Path(real).is_relative_to(self._real):
            return False
        linked.add(real)
        return True

    def _look_above(self) -> tuple[str, tuple[_Rules, ...]]:
        """Return this folder's path from the top of its repository, and the rules of the folders between."""
        real = Path(self._real)
        top = next((one for one in (real, *real.parents) if (one / ".git").exists()), real)
        parts = real.relative_to(top).parts
        rules: list[_Rules] = []
        for n_parts in range(len(parts)):
            base = "".join(f"{part}/" for part in parts[:n_parts])
            rules += _rules_of(top.joinpath(*parts[:n_parts], ".gitignore"), base)
        return "".join(f"{part}/" for part in parts), tuple(rules)


class FolderSource:
    """A folder's files as a source of records.

    Args:
        folder: where they are.
        read: gives a file's records, and may raise; takes the file and its place. What it finds binary is left out
            where no glob chose it.
    """

    unit = "files"

    def __init__(self, folder: Folder, read: Callable[[Found, str], Iterator[Record | BadRecord]]) -> None:
        self.name = str(folder.root)
        self._folder, self._read = folder, read
        self.n_done = 0
        self.n_total: int | None = sum(1 for _ in folder.files())

    def __iter__(self) -> Iterator[Record | BadRecord]:
        self.n_done = 0
        for found in self._folder.files():
            place = printable((self._folder.root / found.relative).as_posix())
            try:
                yield from self._records(found, place)
            except GGUFEmbedError as error:
                yield BadRecord(place=place, error=error)
            self.n_done += 1

    def _records(self, found: Found, place: str) -> Iterator[Record | BadRecord]:
        if found.error is not None:
            raise InputError(f"{place} cannot be read: {found.error.strerror or found.error}") from found.error
        try:
            found.relative.encode("utf-8")
        except UnicodeEncodeError as error:
            why = "its name is not UTF-8; rename it"
            yield bad_record(place, why, index=self.n_done, reason="not UTF-8", cause=error)
            return
        for record in self._read(found, place):
            error_or_none = record.error if isinstance(record, BadRecord) else None
            is_binary = isinstance(error_or_none, InvalidTextError) and error_or_none.reason == BINARY
            if found.is_named or not is_binary:
                yield record


def _order(entry: os.DirEntry[str]) -> bytes:
    """Sort a folder by its name and the slash after it, so that whole paths are in order."""
    return os.fsencode(f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name)


def _pathspec() -> Any:
    try:
        import pathspec  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError(
            'Reading folders needs pathspec; run: pip install "gguf-embed[corpus]"', extra="corpus"
        ) from error
    return pathspec


class _Nothing:
    """Stands for no globs: matches no file, and is false."""

    def __len__(self) -> int:
        return 0

    def match_file(self, _path: str) -> bool:
        return False


def _spec_of(globs: Sequence[str]) -> Any:
    """Return a spec that matches what any of these globs does."""
    if not globs:
        return _Nothing()
    lines = [_literal_start(glob) for glob in globs]
    for glob, line in zip(globs, lines, strict=True):
        try:
            (pattern,) = _pathspec().GitIgnoreSpec.from_lines([line]).patterns
        except ValueError:
            pattern = None
        if pattern is None or pattern.include is None:
            raise ValueError(f"globs: {glob!r} is no pattern; one is like *.md, docs/** or !drafts/")
    return _pathspec().GitIgnoreSpec.from_lines(lines)


def _literal_start(pattern: str) -> str:
    return f"\\{pattern}" if pattern.startswith(("!", "#")) else pattern


def _rules_of(path: Path, base: str) -> tuple[_Rules, ...]:
    """Read a .gitignore; nothing where there is none."""
    if not path.is_file():
        return ()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}; without it, files that git ignores would be read"
        ) from error
    lines = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").split("\n")
    patterns = [pattern for line in lines if (pattern := _pattern_of(line.removesuffix("\r"))) is not None]
    return (_Rules(base=base, patterns=tuple(patterns)),) if patterns else ()


def _pattern_of(line: str) -> _Pattern | None:
    """Return a line's pattern, None for blank lines, comments, and what git takes for no pattern.

    Source: gitignore(5), PATTERN FORMAT.
    """
    bare = line.rstrip(" ")
    if bare.endswith("\\") and len(bare) < len(line):
        bare += " "  # an escaped space stays
    if bare.startswith("#"):
        return None
    ignores, bare = not bare.startswith("!"), bare.removeprefix("!")
    for_folders, bare = bare.endswith("/"), bare.removesuffix("/")
    bare = bare.removeprefix("/") if bare.startswith("/**/") else bare
    while bare.startswith("**/"):
        bare = bare[3:]
        if "/" in bare:
            bare = f"**/{bare}"
            break
    try:
        matcher = _pathspec().GitIgnoreSpec.from_lines([_literal_start(bare)]).patterns[0]
    except (ValueError, IndexError):
        return None
    if matcher.include is None:
        return None
    return _Pattern(
        matcher=matcher,
        ignores=ignores,
        for_folders=for_folders,
        is_anchored="/" in bare,
        is_inside=bare.endswith("/**"),
    )
