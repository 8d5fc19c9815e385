"""jobs/sources.py and jobs/tables.py: texts from files and streams."""

from __future__ import annotations

import csv
import io
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_embed.errors import GGUFEmbedError, InputError, InvalidTextError, MissingExtraError
from gguf_embed.jobs import documents
from gguf_embed.jobs.records import BadRecord, Record
from gguf_embed.jobs.sources import SourceOptions, open_source

TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)


def read(content, input_format="lines", **options):
    """Records of a stream named "in"."""
    options = SourceOptions(input_format=input_format, **options)
    return list(open_source([io.BytesIO(content)], options, stdin_name="in"))


def read_file(path, **options):
    return list(open_source([path], SourceOptions(**options)))


def good(records):
    """(id, text) of each record, None for a bad one."""
    return [None if isinstance(one, BadRecord) else (one.id, one.text) for one in records]


def texts(records):
    return [None if isinstance(one, BadRecord) else one.text for one in records]


def written(path, content):
    path.write_bytes(content)
    return path


# Lines


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"a\nb\n", ["a", "b"], id="newlines"),
        pytest.param(b"a\nb", ["a", "b"], id="no newline at the end"),
        pytest.param(b"a\r\nb\r\n", ["a", "b"], id="CRLF"),
        pytest.param(b"a\rb\n", ["a\rb"], id="CR alone ends nothing"),
        pytest.param(b"\xef\xbb\xbfa\nb\n", ["a", "b"], id="byte order mark"),
        pytest.param(b"a\n\xef\xbb\xbfb\n", ["a", "\ufeffb"], id="a mark elsewhere is text"),
        pytest.param(b"\xef\xbb\xbf", [""], id="a mark alone"),
        pytest.param(b"a\n\nb\n", ["a", "", "b"], id="an empty line is an empty text"),
        pytest.param(b"  a \t\n", ["  a \t"], id="spaces stay"),
        pytest.param("a\u2028b\x0bc\x85d\n".encode(), ["a\u2028b\x0bc\x85d"], id="only newlines end a line"),
        pytest.param("\u4e2d\u6587\n".encode(), ["\u4e2d\u6587"], id="UTF-8"),
        pytest.param(b'"a"\n', ['"a"'], id="JSON is no JSON here"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_a_line_is_a_text(content, expected):
    """Lines become texts as they are, whatever system wrote them."""
    assert texts(read(content)) == expected


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n\r")), max_size=8))
def test_lines_that_were_written_are_read_back(lines):
    """Any texts without line ends survive a file of lines."""
    content = "".join(f"{line}\n" for line in lines).encode()
    expected = [line.removeprefix("\ufeff") if i == 0 else line for i, line in enumerate(lines)]
    assert texts(read(content)) == expected


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@given(lines=st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n\r\0")), max_size=6))
def test_wide_encodings_are_known_by_their_mark(encoding, lines):
    """What PowerShell writes with > is read; no half of a character is taken for a newline.

    A UTF-16 text that begins with NUL has the mark of UTF-32, and is left out here.
    """
    content = ("\ufeff" + "".join(f"{line}\r\n" for line in lines)).encode(encoding)
    assert texts(read(content))[1:] == lines[1:]
    assert texts(read(content))[:1] == [line.removeprefix("\ufeff") for line in lines[:1]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "shift_jis", "gb18030", "iso2022_jp"])
def test_an_encoding_that_is_named_is_used(encoding):
    """Lines of any encoding of Python's come back, with or without states."""
    line = "caf\u00e9" if encoding in ("latin-1", "cp1252") else "\u65e5\u672c\u8a9e"
    assert texts(read(f"{line}\n{line}".encode(encoding), encoding=encoding)) == [line, line]


@pytest.mark.parametrize("input_format", ["lines", "jsonl"])
def test_a_bad_byte_spoils_its_line_alone(input_format):
    """It is named with line, byte and the command that converts it; the lines after it are read."""
    before, bad, after = read(b'"a"\n"caf\xe9"\n"b"\n', input_format)
    assert (before.text.strip('"'), after.text.strip('"'), after.place) == ("a", "b", "in, line 3")
    assert str(bad.error).startswith("in, line 2: not UTF-8 at byte 4; convert it first: iconv")
    assert (bad.place, bad.error.index, bad.error.reason) == ("in, line 2", 1, "not UTF-8")
    assert isinstance(bad.error.__cause__, UnicodeDecodeError)


def test_half_a_pair_spoils_its_line_alone_in_utf_16():
    """A lone surrogate is named, the next line is read."""
    content = b"\xff\xfe" + "a\n".encode("utf-16-le") + b"\x00\xd8" + "\nb\n".encode("utf-16-le")
    assert texts(read(content)) == ["a", None, "b"]


def test_after_a_bad_byte_in_an_encoding_with_states_reading_ends():
    """What cannot be told apart any more is not guessed at, and that is said."""
    content = "\u65e5\n".encode("iso2022_jp") + b"\xff\n" + "\u65e5\n".encode("iso2022_jp")
    records = read(content, encoding="iso2022_jp")
    assert isinstance(records[-1], BadRecord)
    assert "nothing after it is read" in str(records[-1].error)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("mark", [b"", b"\xff\xfe"], ids=["UTF-8", "UTF-16"])
def test_a_line_beyond_the_limit_is_skipped(monkeypatch, mark, end):
    """Lines up to the limit are texts, a longer one is named, those after it are read."""
    monkeypatch.setattr(documents, "N_BYTES_TEXT", 10)
    encoding = "utf-16-le" if mark else "utf-8"
    lines = [b"1234567", b"123456789" * 400_000, b"last"]
    content = mark + b"\n".join(lines[:2]).decode().encode(encoding) + b"\n".decode().encode(encoding)
    records = read(content + (lines[2] + end).decode().encode(encoding))
    assert texts(records) == ["1234567", None, "last"]
    assert "in, line 2: is longer than 64 MiB" in str(records[1].error)


@pytest.mark.parametrize("encoding", ["utf-9", "base64", "rot13", ""])
def test_what_is_no_encoding_is_refused(encoding):
    """An unknown one, and what Python calls an encoding and is none of text."""
    with pytest.raises(ValueError, match="no encoding of text"):
        SourceOptions(encoding=encoding)


def test_a_stream_is_read_as_it_comes():
    """A record comes as soon as its line is there, without waiting for more."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as feed:
        feed.write(b"first\nsec")
        records = iter(open_source([stream]))
        assert next(records).text == "first"
        feed.write(b"ond\n")
        assert next(records).text == "second"


def test_a_stream_is_read_once_and_stays_open():
    """A second reading is refused instead of giving nothing."""
    stream = io.BytesIO(b"a\n")
    source = open_source([stream])
    assert (source.name, source.unit, source.n_total) == ("stdin", "bytes", None)
    assert texts(source) == ["a"]
    assert not stream.closed
    with pytest.raises(ValueError, match="read once"):
        list(source)


# JSON Lines


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b'"a"\n{"text": "b"}\n', [(None, "a"), (None, "b")], id="strings and objects"),
        pytest.param(b'{"text": "a", "id": 7, "other": 1}\n', [(7, "a")], id="id kept, others not"),
        pytest.param(b'{"text": "a", "id": "x-1"}\n', [("x-1", "a")], id="id of letters"),
        pytest.param(b'"a"\n\n \t\n"b"\n', [(None, "a"), (None, "b")], id="blank lines skipped"),
        pytest.param(b'\xef\xbb\xbf"a"\r\n"b"\r\n', [(None, "a"), (None, "b")], id="mark and CRLF"),
        pytest.param(b'"a\\nb"', [(None, "a\nb")], id="a newline inside a text"),
        pytest.param(b'{"text": ""}', [(None, "")], id="an empty text"),
        pytest.param(b'{"text": "\\ud83d\\ude00"}', [(None, "\U0001f600")], id="a pair of surrogates"),
        pytest.param(b'{"text": "a", "other": "\\ud800"}', [(None, "a")], id="what is ignored may be anything"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_a_line_of_json_lines_is_a_record(content, expected):
    """A JSON string, or an object with a text and perhaps an id."""
    assert good(read(content, "jsonl")) == expected


def test_text_and_id_may_have_other_names():
    """Options choose the keys."""
    records = read(b'{"text": "no", "body": "yes", "key": 3}', "jsonl", field="body", id_field="key")
    assert records == [Record(text="yes", id=3, place="in, line 1")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{text: 1}", "no JSON"), (b'{"text": "a"', "no JSON"), (b'"a" "b"', "no JSON"), (b"[" * 100_000, "no JSON"),
        (b'{"text": "a", "id": NaN}', "no JSON"), (b'{"text": "a", "id": Infinity}', "no JSON"),
        (b'{"id": 1}', 'with a "text" that is one; its keys are: id'), (b'{"text": 3}', 'with a "text"'),
        (b'{"text": null}', 'with a "text"'), (b'["a"]', 'with a "text"'), (b"17", 'with a "text"'),
        (b"null", 'with a "text"'), (b'{"text": "\\ud800"}', "lone surrogate"),
        (b'{"text": "a", "id": "\\udfff"}', "lone surrogate"), (b'"caf\xe9"', "not UTF-8"),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_a_line_without_a_text_is_named_and_passed_by(line, words):
    """The error has the file, the line as an editor counts it, and what is wrong; the next line is read."""
    first, bad, last = read(b'"fine"\n\n' + line + b'\n"too"\n', "jsonl")
    assert (first.text, last.text, last.place) == ("fine", "too", "in, line 4")
    assert isinstance(bad.error, InvalidTextError)
    assert str(bad.error).startswith("in, line 3: ")
    assert words in str(bad.error)
    assert bad.error.index == 2


@given(st.lists(TEXTS, max_size=8))
def test_json_lines_that_were_written_are_read_back(values):
    """Any texts survive JSON Lines, escaped or not, with ids in order."""
    for is_ascii in (True, False):
        lines = [json.dumps({"text": text, "id": i}, ensure_ascii=is_ascii) + "\n" for i, text in enumerate(values)]
        assert good(read("".join(lines).encode(), "jsonl")) == list(enumerate(values))


@pytest.mark.parametrize("key", ["1e999", '"\\ud800"', "NaN"])
def test_an_id_that_could_not_be_written_again_is_a_bad_record(key):
    """A number beyond floats, a lone surrogate, no number."""
    (record,) = read(f'{{"text": "a", "id": {key}}}'.encode(), "jsonl")
    assert isinstance(record, BadRecord)


@pytest.mark.parametrize(
    ("name", "expected"), [("a.jsonl", True), ("a.NDJSON", True), ("a.json", False), ("a.txt", False), ("jsonl", False)]
)
def test_json_lines_are_known_by_their_name(tmp_path, name, expected):
    """.jsonl and .ndjson, in any case."""
    (tmp_path / name).write_text('"a"')
    (record,) = open_source([tmp_path / name])
    assert (record.text == "a") is expected


# CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@given(values=st.lists(TEXTS, max_size=8))
def test_rows_that_csv_wrote_are_read_back(delimiter, line_end, values):
    """Any texts with line ends, quotes and delimiters inside survive CSV, with their ids."""
    stream = io.StringIO(newline="")
    rows = csv.writer(stream, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    rows.writerow(["id", "note", "text"])
    rows.writerows([i, "x", text] for i, text in enumerate(values))
    content = stream.getvalue().encode()
    assert good(read(content, "csv")) == [(str(i), text) for i, text in enumerate(values)]


def test_a_place_is_the_line_where_a_row_begins():
    """Lines inside quotes count, as an editor counts them."""
    records = read(b'text,id\n"a\nb\nc",1\n\nd,2\n', "csv")
    assert [one.place for one in records] == ["in, line 2", "in, line 6"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"1", "1 fields where the header has 2"),
        (b"1,two,three", "3 fields where the header has 2"),
        (b'1,"two"x', "no CSV"),
        (b"1,caf\xe9", "not UTF-8 at byte 5"),
        (b'1,"a\ncaf\xe9"', "line 4 is not UTF-8"),
        (b"1,a\rb", "no CSV"),
    ],
)
def test_a_row_that_is_broken_is_named_and_passed_by(row, words):
    """The error has the line where the row begins; the rows around it are read."""
    first, bad, last = read(b"id,text\n0,a\n" + row + b"\n2,b\n", "csv")
    assert (first.text, last.text, last.id) == ("a", "b", "2")
    assert str(bad.error).startswith("in, line 3: ")
    assert words in str(bad.error)


def test_empty_cells_at_the_end_are_no_error():
    """A delimiter at the end of each row, as spreadsheets write it."""
    assert good(read(b"id,text\n1,a,,\n", "csv")) == [("1", "a")]


def test_a_quote_that_is_never_closed_is_named():
    """The rest of the file does not become one text."""
    first, bad = read(b'text\na\n"b\nc\nd\n', "csv")
    assert first.text == "a"
    assert "in, line 3: no CSV: a quoted field is never closed" in str(bad.error)


def test_a_long_field_is_read_and_csv_keeps_its_limit():
    """A text beyond csv's 128 KiB comes back, and the process's limit is as it was."""
    before = csv.field_size_limit()
    text = "x" * 1_000_000
    assert texts(read(f"text\n{text}\n".encode(), "csv")) == [text]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"\n\n", "is empty"), (b"id,body\n1,a\n", 'no column "text"; its columns are: id, body'),
     (b"text,text\na,b\n", "2 columns named"), (b"te\xff\n", "line 1: not UTF-8 at byte 2")],
)  # fmt: skip
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "stream"])
def test_a_header_without_the_column_is_an_error_of_the_whole(tmp_path, content, words, as_file):
    """It is told at once, with the columns that there are."""
    with pytest.raises(InputError, match=words):
        open_source([written(tmp_path / "a.csv", content)]) if as_file else read(content, "csv")


def test_a_tsv_has_tabs(tmp_path):
    """One column named text is split by tabs alone when the name says so."""
    path = written(tmp_path / "a.tsv", b'text\tid\nOne, two; "three"\t1\n')
    assert good(read_file(path)) == [("1", 'One, two; "three"')]
    assert texts(read_file(written(tmp_path / "b.tsv", b"text\nOne, two\n"))) == ["One, two"]


# Parquet


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


@FILES
@given(values=st.lists(TEXTS, max_size=8))
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_rows_of_parquet_are_read_back(tmp_path, kind, values):
    """Any texts, in row groups, of each type of string, with ids and without the other columns."""
    column = pa.array(values, pa.string()).cast(kind)
    path = parquet(tmp_path / "t.parquet", other=[0] * len(values), text=column, id=list(range(len(values))))
    source = open_source([path])
    assert good(source) == list(enumerate(values))
    assert (source.unit, source.n_done, source.n_total) == ("rows", len(values), len(values))


def test_a_row_without_a_text_is_named_and_passed_by(tmp_path):
    """Rows count from 1; an id that is missing is None."""
    path = parquet(tmp_path / "t.parquet", text=["a", None, "c"], id=[1.5, None, float("nan")])
    first, bad, last = open_source([path])
    assert (first.id, last.id, last.place) == (1.5, None, f"{path}, row 3")
    assert str(bad.error) == f"{path}, row 2: has no text; leave such rows out of the table"


def test_bytes_that_are_no_text_are_named_in_parquet(tmp_path):
    """Arrow does not check its strings; the row is bad, its neighbours are read."""
    column = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    assert texts(read_file(parquet(tmp_path / "t.parquet", text=column))) == ["a", None, "c"]


def test_an_id_that_json_has_no_form_for_becomes_str(tmp_path):
    """A date is written as one reads it."""
    path = parquet(tmp_path / "t.parquet", text=["a"], id=pa.array([0], pa.date32()))
    assert good(read_file(path)) == [("1970-01-01", "a")]


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"body": ["a"], "id": [1]}, "no column .text.; its columns are: body, id"), ({"text": [1]}, "int64, not text")],
)
def test_a_table_without_texts_is_an_error_of_the_whole(tmp_path, columns, words):
    """It is told at the door, with the columns that there are."""
    with pytest.raises(InputError, match=words):
        open_source([parquet(tmp_path / "t.parquet", **columns)])


def test_what_is_no_parquet_is_named(tmp_path):
    """A file of another kind with this name."""
    with pytest.raises(InputError, match=r"t\.parquet is no Parquet file"):
        open_source([written(tmp_path / "t.parquet", b"hello")])


def test_a_row_group_that_is_broken_is_named_and_passed_by(tmp_path):
    """The rows before and after it are read, and the error says which are not."""
    path = tmp_path / "t.parquet"
    table = pa.table({"text": ["a"] * 60})
    pq.write_table(table, path, row_group_size=20, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content[start : start + 40] = b"\xff" * 40
    source = open_source([written(path, bytes(content))])
    records = list(source)
    assert texts(records) == ["a"] * 20 + [None] + ["a"] * 20
    assert f"{path}, row 21: the file is broken from here to row 40" in str(records[20].error)
    assert (records[21].place, source.n_done) == (f"{path}, row 41", 60)


def test_parquet_is_not_read_from_a_stream():
    """The error says to save it first."""
    with pytest.raises(ValueError, match="save in to a file first"):
        read(b"", "parquet")


def test_parquet_without_pyarrow_names_the_pip_line(tmp_path, monkeypatch):
    """The missing extra is told at the door."""
    path = parquet(tmp_path / "t.parquet", text=["a"])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r'pip install "gguf-embed\[arrow\]"'):
        open_source([path])


# Files


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a"])
def test_a_single_file_is_lines_unless_told(tmp_path, name):
    """Markdown and code too; input_format="document" takes the whole, with its kind and name."""
    path = written(tmp_path / name, b"# a\n\nb\n")
    assert texts(read_file(path)) == ["# a", "", "b"]
    kind = {".md": "markdown", ".py": "python"}.get(path.suffix, "text")
    whole = Record(text="# a\n\nb\n", id=name, place=str(path), kind=kind)
    assert read_file(path, input_format="document") == [whole]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet"])
def test_a_file_can_be_read_again(tmp_path, name):
    """Every iteration gives the same records, however far the one before it came, and counts to the end."""
    path = tmp_path / name
    if name.endswith("parquet"):
        parquet(path, text=["a", "b", "c"])
    else:
        path.write_text({"a.csv": "text\na\nb\nc\n"}.get(name, '"a"\n"b"\n"c"\n'))
    source = open_source([path])
    assert source.n_done == 0
    next(iter(source))
    assert list(source) == list(source)
    assert len(list(source)) == 3
    assert source.n_done == source.n_total > 0


def test_inputs_are_read_one_after_the_other(tmp_path):
    """Each by its name, in the order given, counted together; bytes with rows are counted by files."""
    lines, json_lines = written(tmp_path / "b.txt", b"1\n2\n"), written(tmp_path / "a.jsonl", b'"3"\n')
    source = open_source([lines, json_lines])
    assert texts(source) == texts(source) == ["1", "2", "3"]
    assert (source.unit, source.n_done, source.n_total) == ("bytes", 8, 8)
    mixed = open_source([lines, parquet(tmp_path / "t.parquet", text=["4"])])
    seen = [(one.text, mixed.n_done) for one in mixed]
    assert [text for text, _ in seen] == ["1", "2", "4"]
    assert [n for _, n in seen] == sorted(n for _, n in seen)
    assert (mixed.unit, mixed.n_done, mixed.n_total) == ("files", 2, 2)
    assert open_source([lines, io.BytesIO(b"")]).n_total is None


@pytest.mark.parametrize("name", ["none.txt", "none.jsonl", "none.csv", "none.parquet", "none.pdf"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    """The system's words, as InputError, before anything is read."""
    with pytest.raises(InputError, match=r"none\.\w+ cannot be read: .*No such file"):
        open_source([tmp_path / name])


@pytest.mark.parametrize(
    ("inputs", "options"),
    [([], {}), ([io.BytesIO()], {"globs": ("*.md",)}), ([io.BytesIO()], {"input_format": "xml"}),
     ([io.BytesIO()], {"field": ""})],
)  # fmt: skip
def test_options_that_cannot_be_meant_are_refused(inputs, options):
    """Nothing to read, globs without a folder, an unknown format, no name."""
    with pytest.raises(ValueError) as caught:
        open_source(inputs, SourceOptions(**options))
    assert not isinstance(caught.value, GGUFEmbedError)


def test_importing_sources_loads_no_reader():
    """csv, pyarrow, pathspec and kreuzberg come when they are used."""
    import subprocess  # noqa: PLC0415 - here alone

    code = "import gguf_embed.jobs.sources, sys; print({'csv', 'pyarrow', 'pathspec', 'kreuzberg'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_ids_that_were_asked_for_are_there(tmp_path, suffix):
    """A column named for the ids must exist, as the one for the texts; "id" is taken where there is one."""
    path = tmp_path / f"t{suffix}"
    if suffix == ".csv":
        path.write_text("text,slug\na,x\n")
    else:
        pq.write_table(pa.table({"text": ["a"], "slug": ["x"]}), path)
    assert [one.id for one in open_source([path])] == [None]
    assert [one.id for one in open_source([path], SourceOptions(id_field="slug"))] == ["x"]
    with pytest.raises(
        InputError, match='has no column "nope"; its columns are: text, slug; say which one has the ids'
    ):
        list(open_source([path], SourceOptions(id_field="nope")))
