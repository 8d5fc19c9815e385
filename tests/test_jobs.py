"""jobs/: texts from files and streams, vectors to files and streams."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import stat
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.errors import InvalidTextError, MissingExtraError, StorageError
from gguf_embed.jobs import sinks
from gguf_embed.jobs.sinks import FORMATS, check_format, format_of_name, write_embeddings
from gguf_embed.jobs.sources import Record, is_jsonl_name, read_records

ROWS = np.array([[0.1, -1e-30, 3.4e38], [1 / 3, 0.0, -2.5]], dtype=np.float32)
RECORDS = (Record(text="plain"), Record(text='h\u00e9, \U0001f600 "q"\n', id=7))


def read(content, *, is_jsonl=False, name="in.txt"):
    return list(read_records(io.BytesIO(content), name=name, is_jsonl=is_jsonl))


def texts(content, **options):
    return [record.text for record in read(content, **options)]


# Sources


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"a\nb\n", ["a", "b"], id="newlines"),
        pytest.param(b"a\nb", ["a", "b"], id="no newline at the end"),
        pytest.param(b"a\r\nb\r\n", ["a", "b"], id="CRLF"),
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
    assert texts(content) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b'"a"\n{"text": "b"}\n', [Record(text="a"), Record(text="b")], id="strings and objects"),
        pytest.param(b'{"text": "a", "id": 7, "other": 1}\n', [Record(text="a", id=7)], id="id kept, others not"),
        pytest.param(b'{"text": "a", "id": "x-1"}\n', [Record(text="a", id="x-1")], id="id of letters"),
        pytest.param(b'"a"\n\n \t\n"b"\n', [Record(text="a"), Record(text="b")], id="blank lines skipped"),
        pytest.param(b'\xef\xbb\xbf"a"\r\n"b"\r\n', [Record(text="a"), Record(text="b")], id="mark and CRLF"),
        pytest.param(b'"a\\nb"', [Record(text="a\nb")], id="a newline inside a text"),
        pytest.param(b'{"text": ""}', [Record(text="")], id="an empty text"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_a_line_of_json_lines_is_a_record(content, expected):
    """A JSON string, or an object with a text and perhaps an id."""
    assert read(content, is_jsonl=True) == expected


@pytest.mark.parametrize("is_jsonl", [False, True], ids=["lines", "JSON Lines"])
def test_bytes_that_are_no_utf8_are_named_by_line(is_jsonl):
    """Latin-1 is refused with file, line, byte and the command that converts it."""
    with pytest.raises(InvalidTextError, match=r"in\.txt, line 3: not UTF-8 at byte 4.*iconv") as caught:
        read(b'"a"\n\n"caf\xe9"\n', is_jsonl=is_jsonl)
    assert (caught.value.index, caught.value.reason) == (2, "not UTF-8")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{text: 1}", "no JSON"),
        (b'{"text": "a"', "no JSON"),
        (b'"a" "b"', "no JSON"),
        (b'{"id": 1}', 'with a "text"'),
        (b'{"text": 3}', 'with a "text"'),
        (b'{"text": null}', 'with a "text"'),
        (b'["a"]', 'with a "text"'),
        (b"17", 'with a "text"'),
        (b"null", 'with a "text"'),
    ],
)
def test_a_line_without_a_text_is_named(line, words):
    """The error has the file, the line as an editor counts it, and what is wrong."""
    with pytest.raises(InvalidTextError, match=words) as caught:
        read(b'"fine"\n\n' + line + b"\n", is_jsonl=True, name="docs.jsonl")
    assert "docs.jsonl, line 3:" in str(caught.value)
    assert caught.value.index == 2


def test_a_line_of_too_many_brackets_is_named():
    """However deep a line is nested, it is bad input and no traceback."""
    with pytest.raises(InvalidTextError, match="line 1"):
        read(b"[" * 200_000, is_jsonl=True)


@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
def test_an_id_that_is_no_utf8_is_refused_or_written(output_format):
    """JSON may hold half a surrogate pair in an id; it is InvalidTextError at reading, or comes back."""
    try:
        records = read(b'{"text": "a", "id": "\\ud800"}', is_jsonl=True)
    except InvalidTextError:
        return
    write(output_format, ROWS[:1], records)


def test_records_come_one_by_one():
    """Lines before a broken one are read, so a long file need not fit into memory."""
    reader = read_records(io.BytesIO(b"a\n\xff\n"), name="f", is_jsonl=False)
    assert next(reader) == Record(text="a")
    with pytest.raises(InvalidTextError):
        next(reader)


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n\r")), max_size=8))
def test_lines_that_were_written_are_read_back(lines):
    """Any texts without line ends survive a file of lines."""
    content = "".join(f"{line}\n" for line in lines).encode()
    assert texts(content) == [line.removeprefix("\ufeff") if i == 0 else line for i, line in enumerate(lines)]


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))), max_size=8))
def test_json_lines_that_were_written_are_read_back(values):
    """Any texts survive JSON Lines, with ids in order."""
    content = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(values)).encode()
    assert read(content, is_jsonl=True) == [Record(text=text, id=i) for i, text in enumerate(values)]


@pytest.mark.parametrize(
    ("name", "expected"), [("a.jsonl", True), ("a.NDJSON", True), ("a.json", False), ("a.txt", False), ("jsonl", False)]
)
def test_json_lines_are_known_by_their_name(tmp_path, name, expected):
    """.jsonl and .ndjson, in any case."""
    assert is_jsonl_name(tmp_path / name) is expected


# Sinks


def write(output_format, rows=ROWS, records=RECORDS, *, is_one=False):
    stream = io.BytesIO()
    write_embeddings(stream, rows, records, output_format=output_format, is_one=is_one)
    return stream.getvalue()


def rows_of(content, output_format, dtype=np.float32):
    """Read a written format back with other programs' readers."""
    if output_format == "json":
        return np.array(json.loads(content), dtype=dtype)
    if output_format == "jsonl":
        return np.array([json.loads(line)["embedding"] for line in content.splitlines()], dtype=dtype)
    if output_format == "base64":
        return np.array(
            [np.frombuffer(base64.b64decode(line), np.dtype(dtype).newbyteorder("<")) for line in content.splitlines()]
        )
    if output_format == "npy":
        return np.load(io.BytesIO(content), allow_pickle=False)
    return np.array(pq.read_table(io.BytesIO(content))["embedding"].to_pylist(), dtype=dtype)


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_format_gives_back_the_same_float32(output_format):
    """Not a bit is lost, at 1e-30 and at 3.4e38 either."""
    back = rows_of(write(output_format), output_format)
    assert back.dtype == np.float32
    assert back.tobytes() == ROWS.tobytes()


@pytest.mark.parametrize("output_format", FORMATS)
@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_any_finite_float32_comes_back(output_format, values):
    """Subnormal numbers and negative zeros too."""
    rows = np.array(values, dtype=np.float32)
    records = [Record(text="t")] * len(rows)
    assert rows_of(write(output_format, rows, records), output_format).tobytes() == rows.tobytes()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("output_format", FORMATS)
def test_fewer_bits_come_back_as_they_are(output_format, dtype):
    """int8 and binary embeddings are whole numbers in every format."""
    rows = np.array([[0, 127, -128 if dtype == np.int8 else 255], [1, 2, 3]], dtype=dtype)
    back = rows_of(write(output_format, rows), output_format, dtype)
    assert back.tolist() == rows.tolist()


@pytest.mark.parametrize("output_format", FORMATS)
def test_rows_of_any_layout_are_written(output_format):
    """A transposed or sliced array is written by value."""
    rows = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(2, 6))[:, ::2]
    assert rows_of(write(output_format, rows), output_format).tolist() == [[0, 2, 4], [6, 8, 10]]


def test_numbers_in_json_are_the_shortest():
    """0.1 is written as 0.1, not as 0.10000000149011612."""
    assert write("json").startswith(b"[[0.1,-1e-30,3.4e+38],\n [0.33333334,0.0,-2.5]]\n")


def test_a_single_text_is_one_array_in_json():
    """One text given on the command line gives [...], not [[...]]."""
    assert json.loads(write("json", ROWS[:1], RECORDS[:1], is_one=True)) == pytest.approx(ROWS[0].tolist())
    assert len(json.loads(write("json", ROWS[:1], RECORDS[:1]))) == 1


def test_json_lines_keep_text_and_id():
    """A line has the text as it was, and the id where there was one, before the embedding."""
    first, second = (json.loads(line) for line in write("jsonl").splitlines())
    assert list(first) == ["text", "embedding"]
    assert list(second) == ["id", "text", "embedding"]
    assert (second["id"], second["text"]) == (7, RECORDS[1].text)
    assert "h\u00e9".encode() in write("jsonl")


@pytest.mark.parametrize("value", [0, "", "x", 1.5, False, [1, 2], {"a": None}], ids=repr)
def test_an_id_of_any_kind_comes_back(value):
    """Ids are the input's own; zero and the empty text are ids too."""
    line = write("jsonl", ROWS[:1], [Record(text="t", id=value)])
    assert json.loads(line)["id"] == value
    table = pq.read_table(io.BytesIO(write("parquet", ROWS[:1], [Record(text="t", id=value)])))
    assert table["id"].to_pylist() == [str(value)]


def test_parquet_has_columns_that_others_read():
    """Id where any record has one, text, and a fixed-size list of float."""
    table = pq.read_table(io.BytesIO(write("parquet")))
    assert table.column_names == ["id", "text", "embedding"]
    assert table["id"].to_pylist() == [None, "7"]
    assert table["text"].to_pylist() == [record.text for record in RECORDS]
    assert str(table["embedding"].type) == "fixed_size_list<element: float>[3]"
    assert pq.read_table(io.BytesIO(write("parquet", ROWS[:1], RECORDS[:1]))).column_names == ["text", "embedding"]


def test_base64_is_little_endian():
    """As OpenAI's encoding_format: the bytes of 1.0 are 00 00 80 3f, whatever the array's order."""
    for order in ("<f4", ">f4"):
        line = write("base64", np.array([[1.0]], dtype=order), RECORDS[:1])
        assert base64.b64decode(line) == b"\x00\x00\x80\x3f"


@pytest.mark.parametrize(("output_format", "expected"), [("json", b"[]\n"), ("jsonl", b""), ("base64", b"")])
def test_no_texts_give_no_rows(output_format, expected):
    """Empty input is a valid, empty output."""
    assert write(output_format, np.empty((0, 4), np.float32), ()) == expected


@pytest.mark.parametrize("output_format", ["npy", "parquet"])
def test_no_texts_keep_the_dimension(output_format):
    """An empty array or table still says how long vectors are."""
    content = write(output_format, np.empty((0, 4), np.float32), ())
    if output_format == "npy":
        assert np.load(io.BytesIO(content)).shape == (0, 4)
    else:
        table = pq.read_table(io.BytesIO(content))
        assert (table.num_rows, table["embedding"].type.list_size) == (0, 4)


def test_records_and_rows_are_as_many():
    """A text without its vector is a bug, never a shorter file."""
    with pytest.raises(ValueError, match="zip"):
        write("jsonl", ROWS[:1])


@pytest.mark.parametrize(
    ("name", "output_format"),
    [("a.json", "json"), ("a.jsonl", "jsonl"), ("a.ndjson", "jsonl"), ("a.NPY", "npy"), ("a.parquet", "parquet"),
     ("a.b64", "base64"), ("a.txt", None), ("npy", None), ("a.npy.gz", None)],
)  # fmt: skip
def test_a_file_s_name_asks_for_a_format(tmp_path, name, output_format):
    """By the last suffix, in any case; None where it asks for none."""
    assert format_of_name(tmp_path / name) == output_format


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_file_holds_what_a_stream_gets(tmp_path, output_format):
    """Writing to a path and to a stream give the same bytes, and leave nothing else in the folder."""
    path = tmp_path / "out"
    write_embeddings(path, ROWS, RECORDS, output_format=output_format, is_one=False)
    assert path.read_bytes() == write(output_format)
    assert os.listdir(tmp_path) == ["out"]  # noqa: PTH208 - names


@pytest.fixture
def broken(monkeypatch):
    """A format whose writer fails half-way in the way that is asked for."""

    def fail_with(error):
        def half(stream, *_):
            stream.write(b"half")
            raise error

        monkeypatch.setitem(sinks._WRITERS, "json", half)

    return fail_with


FAILURES = [OSError(28, "No space left on device"), ValueError("a bug"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("had_file", [True, False], ids=["over a file", "anew"])
def test_a_failing_write_leaves_everything_as_it_was(tmp_path, broken, error, had_file):
    """The old file stays whole, no half file and no temporary one is left."""
    path = tmp_path / "out.json"
    if had_file:
        path.write_bytes(b"old")
    broken(error)
    with pytest.raises(StorageError if isinstance(error, OSError) else type(error)):
        write_embeddings(path, ROWS, RECORDS, output_format="json", is_one=False)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == ({"out.json": b"old"} if had_file else {})


def test_a_full_disk_is_named_with_the_file(tmp_path, broken):
    """The system's words and the path are in the message, the path is a fact, the cause is kept."""
    broken(FAILURES[0])
    with pytest.raises(StorageError, match=r"out\.json cannot be written: No space left on device") as caught:
        write_embeddings(tmp_path / "out.json", ROWS, RECORDS, output_format="json", is_one=False)
    assert caught.value.path == tmp_path / "out.json"
    assert isinstance(caught.value.__cause__, OSError)


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path):
    """It is named instead of a temporary file."""
    with pytest.raises(StorageError, match=r"none.out\.json cannot be written"):
        write_embeddings(tmp_path / "none" / "out.json", ROWS, RECORDS, output_format="json", is_one=False)


def test_a_folder_in_the_file_s_place_is_a_storage_error(tmp_path):
    """A folder is never replaced."""
    (tmp_path / "out.json").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        write_embeddings(tmp_path / "out.json", ROWS, RECORDS, output_format="json", is_one=False)
    assert [one.name for one in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_new_file_has_the_user_s_umask(tmp_path, mask):
    """Not the 0600 of a temporary file."""
    before = os.umask(mask)
    try:
        write_embeddings(tmp_path / "out.json", ROWS, RECORDS, output_format="json", is_one=False)
        assert stat.S_IMODE((tmp_path / "out.json").stat().st_mode) == 0o666 & ~mask
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_replaced_file_keeps_its_mode(tmp_path):
    """Vectors in a private file stay private."""
    path = tmp_path / "out.json"
    path.write_text("old")
    path.chmod(0o600)
    write_embeddings(path, ROWS, RECORDS, output_format="json", is_one=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name == "nt", reason="needs a right on Windows")
def test_a_link_stays_a_link(tmp_path):
    """-o latest.json writes the file that the link leads to."""
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_embeddings(tmp_path / "link.json", ROWS, RECORDS, output_format="json", is_one=False)
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_bytes() == write("json")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_what_is_no_regular_file_is_never_replaced(tmp_path):
    """-o /dev/null or a named pipe is written to or refused; as root it must not become a plain file."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(StorageError):
            write_embeddings(path, ROWS, RECORDS, output_format="json", is_one=False)
        assert stat.S_ISFIFO(path.stat().st_mode)
    finally:
        os.close(reader)


def test_parquet_without_pyarrow_names_the_pip_line(tmp_path, monkeypatch):
    """The missing extra is told before anything is written."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r'pip install "gguf-embed\[arrow\]"') as caught:
        check_format("parquet")
    assert caught.value.extra == "arrow"
    check_format("npy")
