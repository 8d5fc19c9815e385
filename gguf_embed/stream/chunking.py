"""Long texts cut into chunks that a model takes, at headings, definitions, paragraphs and sentences, with exact spans.

Tokens are whatever the caller counts. It must not know models, tokenizers, files or the command line.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gguf_embed.errors import InvalidTextError, MissingExtraError, TextTooLongError

__all__ = ["KINDS", "LONG", "Chunking", "Span", "chunk"]

logger = logging.getLogger(__name__)

Count = Callable[[str], int]

KINDS = (
    "text", "markdown", "python", "javascript", "typescript", "tsx", "go", "rust", "java", "c", "cpp", "c_sharp",
    "ruby", "php", "bash",
)  # fmt: skip
_PROSE = ("text", "markdown")
LONG = ("error", "truncate", "chunk", "mean")

# A splitter's time grows with the square of what it gets and with how deep that nests, so that it gets windows: of 64
# chunks of prose, or of 16 where those are long. Source: 1 MB of CPython's library at once, chunks of 128 tokens, 2 s.
_WINDOW_CHARS, _CODE_WINDOW_CHARS = 65_536, 32_768
# More characters a token than this are no text that is worth a larger chunk; what has more is not counted but cut.
# Source: gpt-2, Qwen3 and WordPiece give 3 to 5 characters a token for prose and code, 8 for indented tables.
_CHARS_PER_TOKEN = 16
_TOO_MANY = 2**31 - 1  # tokens of what is not counted
# A grammar's splitter looks at every level of nesting for every chunk. Code that is likely to nest without end is text:
# brackets so deep, lines so long on average, or more questions than these for each token's worth of a window.
# Source: 5,000 `else if`, 288 s for 64 KB; sources of CPython ask 2 to 3, 2026-11.
_DEEPEST, _LONGEST_LINES_CHARS, _QUESTIONS = 256, 400, 8

_BRACKET = re.compile(r"[()\[\]{}]")
# Where something begins is the group; none of them can be led to look at a run of spaces more than once.
_WORD = re.compile(r"(?<=\s)(\S)")
_LINE = re.compile(r"(?<=\n)([^\r\n])")
_SENTENCE = re.compile("(?:[.!?\u2026][\"')\\]\u201d\u2019]?\\s|[\u3002\uff01\uff1f])(\\S)")
_JOINERS = frozenset("\u200d\ufe0e\ufe0f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """What becomes of long texts.

    Attributes:
        n_tokens: most tokens of a chunk as the model sees it, prompt and special tokens counted; None for the longest
            text that the model takes. Only for "chunk" and "mean".
        n_overlap: tokens that neighbours share at most, 0 <= n_overlap < n_tokens. Only for "chunk" and "mean".
        long: for texts above the limit: "error", "truncate" to cut them, "chunk" for a row a chunk, "mean" for the
            mean of their chunks.

    Raises:
        ValueError: a value is out of its range, or has no meaning beside `long`.
    """

    n_tokens: int | None = None
    n_overlap: int = 0
    long: str = "error"

    def __post_init__(self) -> None:
        if self.long not in LONG:
            raise ValueError(f"long is {self.long!r}; it is one of {', '.join(map(repr, LONG))}")
        if self.n_tokens is not None and self.n_tokens < 1:
            raise ValueError(f"n_tokens is {self.n_tokens}; a chunk has at least 1 token")
        if self.n_overlap < 0:
            raise ValueError(f"n_overlap is {self.n_overlap}; it is 0 or more")
        if self.n_tokens is not None and self.n_overlap >= self.n_tokens:
            raise ValueError(f"n_overlap is {self.n_overlap}; it is less than n_tokens, which is {self.n_tokens}")
        if self.long not in ("chunk", "mean") and (self.n_tokens is not None or self.n_overlap):
            raise ValueError(f"n_tokens and n_overlap are for long='chunk' and long='mean', not for {self.long!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where a chunk lies in its text.

    Attributes:
        start: characters before its first one.
        end: characters before the first one after it.
        first_line: line of its first character, from 1; a line feed ends a line.
        last_line: line of its last character.
    """

    start: int
    end: int
    first_line: int
    last_line: int


def chunk(text: str, *, kind: str, n_tokens_max: int, n_overlap: int, count: Count) -> list[Span]:
    """Cut a text into chunks that have no more tokens than a model takes.

    Args:
        text: of any length.
        kind: one of KINDS: where to cut first. A language whose grammar is not installed is cut as text.
        n_tokens_max: most tokens of a chunk by `count`.
        n_overlap: tokens of a chunk's beginning, without those of count(""), that the chunk before ends with, at most.
        count: gives the tokens of a piece, prompt and special tokens included; TextTooLongError stands for too many.

    Returns:
        Spans in order: the first starts at 0, each starts after the start of the one before and at or before its end,
        the last ends at len(text). A text that fits is one span, and so is an empty one.

    Raises:
        ValueError: the kind is unknown, or a number is out of its range, n_overlap also where prompt and special tokens
            leave no room beside it.
        TextTooLongError: one character, or prompt and special tokens alone, have more tokens than n_tokens_max.
        MissingExtraError: semantic-text-splitter is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it is one of {', '.join(KINDS)}")
    if not 0 <= n_overlap < n_tokens_max:
        raise ValueError(f"n_overlap is {n_overlap}; it is 0 or more and less than n_tokens_max, {n_tokens_max}")
    _splitters()
    counted = _Counted(count)
    n_own = counted("")
    if n_own > n_tokens_max:
        raise TextTooLongError(
            f"prompt and special tokens alone have {n_own:,} tokens, and a chunk at most {n_tokens_max:,}; "
            "take larger chunks or a shorter prompt",
            index=0, n_tokens=n_own, n_ctx=n_tokens_max,
        )  # fmt: skip
    if n_overlap and n_overlap >= n_tokens_max - n_own:
        raise ValueError(
            f"n_overlap is {n_overlap}, and a chunk of {n_tokens_max} tokens has {n_tokens_max - n_own} beside prompt "
            "and special tokens; take less overlap or larger chunks"
        )
    if counted(text) <= n_tokens_max:
        return _spans(text, [0], [len(text)])
    cutter = _Cutter(kind, counted, n_tokens_max=n_tokens_max, n_overlap=n_overlap)
    ends = cutter.ends(text)
    return _spans(text, cutter.starts(text, ends), ends)


class _AskedTooMuchError(Exception):
    """A splitter asked about more pieces than a window's text is worth."""


class _Counted:
    """Tokens of pieces; a window's pieces that were counted once are not counted again."""

    def __init__(self, count: Count) -> None:
        self._count = count
        self._known: dict[str, int] = {}

    def __call__(self, piece: str) -> int:
        known = self._known.get(piece)
        if known is None:
            known = self._known[piece] = self._tokens(piece)
        return known

    def forget(self) -> None:
        """Give back the memory of a window."""
        self._known.clear()

    def _tokens(self, piece: str) -> int:
        try:
            return self._count(piece)
        except TextTooLongError:
            return _TOO_MANY
        except InvalidTextError as error:
            if error.reason == "empty":
                return 0
            if error.reason == "endless run" and len(piece) > 1:
                return _TOO_MANY  # a shorter piece of it can be taken
            raise


class _Cutter:
    """Cuts a text into pieces that touch, each small enough that an overlap can be put before it."""

    def __init__(self, kind: str, counted: _Counted, *, n_tokens_max: int, n_overlap: int) -> None:
        self._counted = counted
        self._kind, self._in_lines = kind, kind != "text"
        self._n_tokens_max, self._n_overlap, self._n_own = n_tokens_max, n_overlap, counted("")
        self._capacity = n_tokens_max - n_overlap
        room = max(1, self._capacity - self._n_own)
        self._n_chars_max = max(1024, _CHARS_PER_TOKEN * room)
        self._window = max(4 * self._n_chars_max, min(_WINDOW_CHARS, 256 * room))
        if kind not in _PROSE:
            self._window = min(max(self._n_chars_max, min(_CODE_WINDOW_CHARS, 64 * room)), _WINDOW_CHARS)
        self._n_questions, self._n_questions_max = 0, 256 + _QUESTIONS * self._window // room
        self._plain = _splitter_for("text", self._size, self._capacity)
        self._splitter = _splitter_for(kind, self._size, self._capacity)

    def ends(self, text: str) -> list[int]:
        """Find where each piece ends; the last of a window, which may have cut it, begins the next one again."""
        ends: list[int] = []
        start = 0
        while start < len(text):
            window = text[start : start + self._window]
            if start + len(window) < len(text):
                window = window[: window.rfind("\n", len(window) // 2) + 1] or window
            pieces = self._split(window)
            if start + len(window) < len(text) and len(pieces) > 1:
                pieces.pop()
            for piece_start, piece_end in pieces:
                ends += self._sound(text, start + piece_start, start + piece_end)
            start = ends[-1]
            self._counted.forget()
        return self._at_lines(text, ends)

    def _split(self, window: str) -> list[tuple[int, int]]:
        """Ask the splitter; from where it asks too much on, the text is plain."""
        splitter = self._splitter if self._kind in _PROSE or not _nests(window) else self._plain
        self._n_questions = 0
        try:
            found = splitter.chunk_indices(window)
        except _AskedTooMuchError:
            logger.debug("nests too deep to be cut as %s, so that it is cut as text", self._kind)
            self._splitter = self._plain
            found = self._plain.chunk_indices(window)
        starts = [0, *(start for start, _ in found[1:])]
        return list(pairwise([*starts, len(window)]))

    def _size(self, piece: str) -> int:
        """Tell a splitter how many tokens a piece has, or that they are too many without counting them."""
        self._n_questions += 1
        if self._n_questions > self._n_questions_max and self._splitter is not self._plain:
            raise _AskedTooMuchError
        return _TOO_MANY if len(piece) > self._n_chars_max else self._counted(piece)

    def _sound(self, text: str, start: int, end: int) -> Iterator[int]:
        """Cut further what has too many tokens; more characters can have fewer tokens, which misleads a splitter."""
        rest = [end]
        while rest:
            end = rest[-1]
            n_tokens = self._counted(text[start:end])
            if n_tokens <= self._capacity or (end - start == 1 and n_tokens <= self._n_tokens_max):
                yield end
                start = rest.pop()
            elif end - start > 1:
                rest.append(_middle(text, start, end))
            else:
                raise TextTooLongError(
                    f"the character {text[start]!r} at {start} alone has {n_tokens:,} tokens with prompt and special "
                    f"tokens, and a chunk at most {self._n_tokens_max:,}; take larger chunks",
                    index=0, n_tokens=n_tokens, n_ctx=self._n_tokens_max,
                )  # fmt: skip

    def _at_lines(self, text: str, ends: list[int]) -> list[int]:
        """Move borders within white space to where a line begins, and join what is white space alone, where it fits."""
        kept, start = [], 0
        for at, end in pairwise(ends):
            left = start + len(text[start:at].rstrip())
            right = at + len(text[at:end]) - len(text[at:end].lstrip())
            border = end if right == end else text.rfind("\n", left, right) + 1
            if border <= start or not (border == at or self._fit(text[start:border], text[border:end])):
                border = at
            if border < end:
                kept.append(start := border)
        return [*kept, ends[-1]]

    def _fit(self, *pieces: str) -> bool:
        self._counted.forget()
        return all(self._counted(piece) <= self._capacity for piece in pieces)

    def starts(self, text: str, ends: list[int]) -> list[int]:
        """Find where each chunk starts, each but the first within what the one before it ends with."""
        starts = [0]
        for start, end in pairwise(ends):
            starts.append(self._reach_back(text, start, end, lowest=starts[-1] + 1) if self._n_overlap else start)
            self._counted.forget()
        return starts

    def _reach_back(self, text: str, start: int, end: int, *, lowest: int) -> int:
        """Find the first good start from `lowest` on from where to `start` there are n_overlap tokens at most."""

        def is_short(at: int) -> bool:
            return self._counted(text[at:start]) - self._n_own <= self._n_overlap

        lowest = max(lowest, start - _CHARS_PER_TOKEN * self._n_overlap)
        tried = range(lowest, start, self._n_overlap // 4 + 1)  # characters: a sixteenth of an overlap of prose
        first = bisect_left(tried, x=True, key=is_short)
        at = _good_start(text, tried[first], start, in_lines=self._in_lines) if first < len(tried) else start
        while at < start and not (is_short(at) and self._counted(text[at:end]) <= self._n_tokens_max):
            at = _border(text, start - (start - at) // 2, start)
        return at


def _good_start(text: str, start: int, end: int, *, in_lines: bool) -> int:
    """Find where a sentence, a line or a word begins in the first quarter of a piece."""
    until = start + (end - start) // 4
    for pattern in (_LINE, _SENTENCE, _WORD) if in_lines else (_SENTENCE, _LINE, _WORD):
        for match in pattern.finditer(text, max(0, start - 3), until + 1):
            if start <= (at := match.start(1)) <= until:
                return at
    return _border(text, start, end)


def _middle(text: str, start: int, end: int) -> int:
    """Find where to halve a piece of at least two characters: before a word if one begins near the middle."""
    quarter = (end - start) // 4
    if quarter and (match := _WORD.search(text, start + (end - start) // 2, end - quarter)):
        return match.start()
    at = _border(text, start + (end - start) // 2, end)
    return at if start < at < end else start + (end - start) // 2


def _border(text: str, at: int, end: int) -> int:
    """Move on to where what is seen as one character begins, at `end` at the latest."""
    while 0 < at < end and _is_inside(text[at - 1], text[at]):
        at += 1
    return at


def _is_inside(before: str, char: str) -> bool:
    if char.isascii():
        return char == "\n" and before == "\r"
    return char in _JOINERS or before == "\u200d" or unicodedata.category(char).startswith("M")


def _spans(text: str, starts: list[int], ends: list[int]) -> list[Span]:
    """Give spans their lines; line feeds are looked for once."""
    feeds = [match.start() for match in re.finditer("\n", text)]
    firsts = [bisect_left(feeds, at) + 1 for at in starts]
    lasts = [bisect_left(feeds, max(0, end - 1)) + 1 for end in ends]
    return [
        Span(start=start, end=end, first_line=first, last_line=last)
        for start, end, first, last in zip(starts, ends, firsts, lasts, strict=True)
    ]


def _nests(code: str) -> bool:
    """Tell whether code is likely to nest so deep that its grammar is of no use; a closing bracket too many is none."""
    if len(code) > _LONGEST_LINES_CHARS * (code.count("\n") + 1):
        return True
    depth = 0
    for match in _BRACKET.finditer(code):
        depth = depth + 1 if match[0] in "([{" else max(0, depth - 1)
        if depth > _DEEPEST:
            return True
    return False


def _splitters() -> Any:
    try:
        import semantic_text_splitter  # noqa: PLC0415 - an extra, checked at the door
    except ImportError as error:
        raise MissingExtraError(
            'chunking needs semantic-text-splitter; run: pip install "gguf-embed[corpus]"', extra="corpus"
        ) from error
    return semantic_text_splitter


def _splitter_for(kind: str, size: Count, capacity: int) -> Any:
    library = _splitters()
    if kind == "markdown":
        return library.MarkdownSplitter.from_callback(size, capacity, trim=False)
    if kind != "text":
        try:
            return library.CodeSplitter.from_callback(_grammar(kind), size, capacity, trim=False)
        except (ImportError, ValueError) as error:  # not installed, or of another version than the library takes
            logger.debug("no grammar for %s, cut as text: %s", kind, error)
    return library.TextSplitter.from_callback(size, capacity, trim=False)


def _grammar(kind: str) -> object:  # noqa: C901, PLR0912 - one case a language; all are of an extra
    match kind:
        case "python":
            from tree_sitter_python import language  # noqa: PLC0415
        case "javascript":
            from tree_sitter_javascript import language  # noqa: PLC0415
        case "typescript":
            from tree_sitter_typescript import language_typescript as language  # noqa: PLC0415
        case "tsx":
            from tree_sitter_typescript import language_tsx as language  # noqa: PLC0415
        case "go":
            from tree_sitter_go import language  # noqa: PLC0415
        case "rust":
            from tree_sitter_rust import language  # noqa: PLC0415
        case "java":
            from tree_sitter_java import language  # noqa: PLC0415
        case "c":
            from tree_sitter_c import language  # noqa: PLC0415
        case "cpp":
            from tree_sitter_cpp import language  # noqa: PLC0415
        case "c_sharp":
            from tree_sitter_c_sharp import language  # noqa: PLC0415
        case "ruby":
            from tree_sitter_ruby import language  # noqa: PLC0415
        case "php":
            from tree_sitter_php import language_php as language  # noqa: PLC0415
        case "bash":
            from tree_sitter_bash import language  # noqa: PLC0415
        case _:
            raise ImportError(f"{kind} has no grammar")
    return language()
