"""jobs/documents.py: the text of PDF, Office and HTML files."""

from __future__ import annotations

import io
import sys
import zipfile

import pytest

from gguf_embed.errors import MissingExtraError
from gguf_embed.jobs.documents import extract, is_document
from gguf_embed.jobs.records import BadRecord, Record
from gguf_embed.jobs.sources import SourceOptions, open_source

pytest.importorskip("kreuzberg")

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def pdf(text):
    """One page with one line, as small as a PDF gets."""
    drawn = b"BT /F1 24 Tf 72 720 Td (" + text + b") Tj ET" if text else b""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(drawn), drawn),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    content, starts = b"%PDF-1.4\n", []
    for i, one in enumerate(objects):
        starts.append(len(content))
        content += b"%d 0 obj%sendobj\n" % (i + 1, one)
    table = b"0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % start for start in starts)
    end = b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % len(content)
    return content + b"xref\n0 6\n" + table + end


def docx(*paragraphs):
    """A Word file of plain paragraphs."""
    body = "".join(f"<w:p><w:r><w:t>{one}</w:t></w:r></w:p>" for one in paragraphs)
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types"><Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" ContentType='
        f'"application/xml"/><Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="r1" '
        f'Type="{OFFICE}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, f'<?xml version="1.0"?>{content}')
    return stream.getvalue()


HTML = """<!doctype html><html><head><title>T</title><meta name="author" content="Me"><script>var x</script></head>
<body><h1>Rooks</h1><p>They fly <b>home</b> &amp; caf\u00e9.</p><header>Top</header><script>alert(1)</script></body>"""
FILES = {
    "a.pdf": (pdf(b"Rooks fly home"), "Rooks fly home"),
    "b.docx": (docx("Rooks fly home", "at dusk"), "Rooks fly home\n\nat dusk"),
    "c.html": (HTML.encode(), "# Rooks\n\nThey fly **home** & caf\u00e9.\n\nTop"),
    "d.rtf": (rb"{\rtf1\ansi Rooks fly home.}", "Rooks fly home."),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of documents, which is the working directory and the home too."""
    path = tmp_path / "papers"
    path.mkdir()
    for name, (content, _) in FILES.items():
        (path / name).write_bytes(content)
    monkeypatch.chdir(path)
    monkeypatch.setenv("HOME", str(path))
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_document_is_one_markdown_text(folder, name):
    """Given alone, it is a text with its name for an id; scripts and a page's head are no text."""
    source = open_source([folder / name])
    assert list(source) == [Record(text=FILES[name][1], id=name, place=str(folder / name), kind="markdown")]
    assert source.n_done == source.n_total == len(FILES[name][0])


def test_documents_are_read_out_of_folders(folder):
    """Among other files, in order, and nothing is written anywhere near them."""
    (folder / "e.md").write_text("# E\n")
    before = sorted(folder.rglob("*"))
    records = list(open_source([folder]))
    assert [(one.id, one.text) for one in records] == [*((name, text) for name, (_, text) in FILES.items()),
                                                       ("e.md", "# E\n")]  # fmt: skip
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pdf", pdf(b"x")[:60], "cannot be extracted: "),
        ("a.pdf", b"hello", "cannot be extracted: "),
        ("a.pdf", pdf(b""), "has no text in it; scanned pages need OCR first"),
        ("b.docx", docx("x")[:200], "cannot be extracted: "),
        ("c.html", b"<p>caf\xe9", "is neither UTF-8 nor what its meta tag says"),
    ],
    ids=["cut PDF", "no PDF", "no text", "cut Word file", "no encoding"],
)
def test_a_document_without_a_text_is_named_and_passed_by(folder, name, content, words):
    """The reason is the extractor's; the documents after it are read."""
    (folder / name).write_bytes(content)
    records = {one.place.rpartition("/")[2]: one for one in open_source([folder])}
    assert list(records) == list(FILES)
    assert [key for key, one in records.items() if isinstance(one, BadRecord)] == [name]
    assert str(records[name].error).startswith(f"{folder.as_posix()}/{name}: {words}")
    assert records[name].error.__cause__ is not None


def test_an_empty_document_gives_no_record(folder):
    """As any empty file."""
    (folder / "a.pdf").write_bytes(b"")
    assert [one.id for one in open_source([folder])] == list(FILES)[1:]


@pytest.mark.parametrize(
    "content",
    [HTML.encode("utf-16"), b"\xef\xbb\xbf" + HTML.encode(),
     HTML.replace("<title>", '<meta charset="iso-8859-1"><title>').encode("latin-1")],
    ids=["UTF-16", "mark", "meta tag"],
)  # fmt: skip
def test_a_page_says_its_encoding(folder, content):
    """By a byte order mark or a meta tag; no character is replaced."""
    (folder / "c.html").write_bytes(content)
    assert extract(folder / "c.html") == FILES["c.html"][1]


def test_a_named_format_makes_a_document_lines(folder):
    """input_format="lines" reads a page's source by lines."""
    records = list(open_source([folder / "c.html"], SourceOptions(input_format="lines")))
    assert [one.text for one in records] == HTML.split("\n")


def test_kreuzberg_that_is_missing_names_the_pip_line(folder, monkeypatch):
    """An error at the door for a file; a bad record for each document of a folder, the rest is read."""
    (folder / "e.md").write_text("# E\n")
    monkeypatch.setitem(sys.modules, "kreuzberg", None)
    with pytest.raises(MissingExtraError, match=r'a\.pdf needs kreuzberg; run: pip install "gguf-embed\[docs\]"'):
        open_source([folder / "a.pdf"])
    *bad, fine = open_source([folder])
    assert fine.id == "e.md"
    assert {one.error.extra for one in bad} == {"docs"}
    assert len(bad) == len(FILES)
    assert str(bad[0].error).startswith(bad[0].place)


@pytest.mark.parametrize(
    ("name", "expected"), [("a.PDF", True), ("a.html", True), ("a.epub", True), ("a.md", False), ("pdf", False)]
)
def test_documents_are_known_by_their_names(tmp_path, name, expected):
    """By the suffix, in any case."""
    assert is_document(tmp_path / name) is expected
