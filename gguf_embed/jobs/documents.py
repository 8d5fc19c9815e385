"""Files that are one text: PDF, Office, e-book, mail and HTML through kreuzberg, and plain text.

Another extractor could stand here: callers see check, is_document, extract and KIND. It must not know who takes the
text.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any, BinaryIO

from gguf_embed.errors import InvalidTextError, MissingExtraError
from gguf_embed.jobs.records import BINARY

__all__ = ["KIND", "N_BYTES_TEXT", "check", "encoding_of", "extract", "is_document", "read_text", "why_not_decoded"]

N_BYTES_TEXT = 64 * 1024 * 1024  # of a line, or of a file that is one text: more than any model reads
_N_BYTES_SNIFF = 8 * 1024  # Source: git, buffer_is_binary() in xdiff-interface.c

KIND = "markdown"  # what extract() returns

_HTML = frozenset((".html", ".htm", ".xhtml"))
_SUFFIXES = _HTML | frozenset(
    (".pdf", ".docx", ".doc", ".pptx", ".ppt", ".xlsx", ".xls", ".odt", ".ods", ".odp", ".epub", ".rtf", ".eml", ".msg")
)
# kreuzberg 4.10 writes a page's title and meta tags as a garbled heading ("## title: ...") before its body.
_HEAD = re.compile(rb"(?is)<head\b[^>]*>.*?(?=</head\s*>|<body\b)|<title\b.*?</title\s*>|<meta\b[^>]*>")
_CHARSET = re.compile(rb"""(?i)<meta\b[^>]*?charset\s*=\s*["']?\s*([\w.:-]+)""")
_N_BYTES_CHARSET = 1024  # Source: WHATWG HTML, "prescan a byte stream to determine its encoding"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),  # before UTF-16, whose mark begins it
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def is_document(path: Path) -> bool:
    """Tell by its name whether a file's text has to be extracted."""
    return path.suffix.lower() in _SUFFIXES


def check(name: str) -> Any:
    """Check at the door that documents can be read, `name` among them, and return what reads them.

    Raises:
        MissingExtraError: kreuzberg is not installed.
    """
    try:
        import kreuzberg  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError(f'{name} needs kreuzberg; run: pip install "gguf-embed[docs]"', extra="docs") from error
    return kreuzberg


def extract(path: Path) -> str:
    """Return a document's text as Markdown, without what is no text: OCR, network and caches are off.

    An HTML page is its body; its encoding is UTF-8, or what a byte order mark or a meta tag says.
    kreuzberg unpacks its PDF library into the system's folder of temporary files, once a machine.

    Raises:
        MissingExtraError: kreuzberg is not installed.
        InvalidTextError: the file is broken, encrypted, or has no text, such as scanned pages. The message has the
            reason and not the file's name.
        OSError: the file cannot be read.
    """
    kreuzberg = check(path.name)
    config = kreuzberg.ExtractionConfig(use_cache=False, output_format="markdown")
    try:
        if path.suffix.lower() in _HTML:
            html = _HEAD.sub(b"", _utf8_of_html(path.read_bytes()))
            text = str(kreuzberg.extract_bytes_sync(html, "text/html", config).content)
        else:
            with path.open("rb"):  # kreuzberg's own words for a file it may not read name no reason
                text = str(kreuzberg.extract_file_sync(path, config=config).content)
    except (OSError, InvalidTextError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # what Rust calls a bug
            raise
        raise InvalidTextError(f"cannot be extracted: {_words(error)}", index=0, reason="broken document") from error
    text = text.strip()
    if not text:
        raise InvalidTextError("has no text in it; scanned pages need OCR first", index=0, reason="no text")
    return text


def _utf8_of_html(content: bytes) -> bytes:
    """Return a page in UTF-8; kreuzberg would replace what is not."""
    named = _CHARSET.search(content[:_N_BYTES_CHARSET])
    names = ["utf-8"] if named is None else ["utf-8", named[1].decode("ascii", "replace")]
    marked = encoding_of(content[:4], None)
    for encoding in names if marked == "utf-8" else [marked]:
        try:
            return content.decode(encoding).removeprefix("\ufeff").encode("utf-8")
        except (UnicodeError, LookupError):
            continue
    raise InvalidTextError(
        "is neither UTF-8 nor what its meta tag says; convert it first: iconv -t UTF-8", index=0, reason="not UTF-8"
    )


def _words(error: BaseException) -> str:
    """Return an error's words, once: kreuzberg says some of them twice."""
    parts = list(dict.fromkeys(str(error).removeprefix(f"{type(error).__name__}: ").split(": ")))
    return ": ".join(parts)


# Plain text


def encoding_of(head: bytes, encoding: str | None) -> str:
    """Return an encoding's name as Python has it; None: what the mark at a file's head says, else "utf-8"."""
    if encoding is not None:
        return codecs.lookup(encoding).name.removesuffix("-sig")
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def read_text(stream: BinaryIO, encoding: str | None) -> str:
    """Return the text of a whole file, without a byte order mark, its line ends as they are.

    Args:
        stream: at its start.
        encoding: as SourceOptions has it.

    Raises:
        InvalidTextError: the file is binary, larger than 64 MiB, or not of this encoding. The message has the reason
            and not the file's name.
    """
    content = stream.read(_N_BYTES_SNIFF)
    encoding = encoding_of(content, encoding)
    if b"\0" in content and b"\0" not in "\n".encode(encoding):
        raise InvalidTextError("is no text, it has NUL bytes; leave it out", index=0, reason=BINARY)
    content += stream.read(N_BYTES_TEXT + 1 - len(content))
    if len(content) > N_BYTES_TEXT:
        raise InvalidTextError("is larger than 64 MiB; split it, or read it by lines", index=0, reason="too long")
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InvalidTextError(
            why_not_decoded(encoding, error.start), index=0, reason=f"not {encoding.upper()}"
        ) from error


def why_not_decoded(encoding: str, start: int) -> str:
    """Say that a byte is not of this encoding, and what to do."""
    if encoding == "utf-8":
        return f"not UTF-8 at byte {start}; convert it first: iconv -t UTF-8, or say its encoding"
    return f"not {encoding.upper()} at byte {start}; say its right encoding"
