"""jobs/sinks.py: vectors to files and streams, read back by other programs; a file appears whole or not at all."""

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

from gguf_embed.errors import InputError, MissingExtraError, StorageError
from gguf_embed.jobs import sinks
from gguf_embed.jobs.outputs import Output, load_ranges, write_stream
from gguf_embed.jobs.rows import Row, RowBlock
from gguf_embed.jobs.sinks import FORMATS, Table, check_format, format_of_name, replaced, write_table
from gguf_embed.stream.chunking import Span
from gguf_embed.vectors import PRECISIONS, quantize_embeddings

VECTORS = np.array([[0.1, -1e-30, 3.4e38], [1 / 3, 0.0, -2.5]], dtype=np.float32)
ROWS = (Row(text="plain"), Row(text='h\u00e9, \U0001f600 "q"\n', id=7))
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
COLUMNS = ("id", "text", "text_sha256", "start", "end", "first_line", "last_line", "truncated")


def table_of(vectors=VECTORS, rows=ROWS, *, n_rows_block=None, **more):
    """Rows as a table, in blocks; its columns are those that any row has."""
    size = n_rows_block or max(1, len(rows))
    blocks = [RowBlock(rows=tuple(rows[at : at + size]), vectors=vectors[at : at + size])
              for at in range(0, len(rows), size)]  # fmt: skip
    found = {name for row in rows for name in row.columns()}
    columns = tuple(name for name in COLUMNS if name in found) or ("text",)
    return Table(blocks=blocks, shape=vectors.shape, dtype=vectors.dtype, **{"columns": columns} | more)


def write(output_format, vectors=VECTORS, rows=ROWS, **more):
    stream = io.BytesIO()
    write_table(stream, table_of(vectors, rows, **more), output_format=output_format)
    return stream.getvalue()


def read(content, output_format, dtype=np.float32):
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


# Numbers


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_format_gives_back_the_same_float32(output_format):
    """Not a bit is lost, at 1e-30 and at 3.4e38 either."""
    back = read(write(output_format), output_format)
    assert back.dtype == np.float32
    assert back.tobytes() == VECTORS.tobytes()


@pytest.mark.parametrize("output_format", FORMATS)
@given(st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=5), st.integers(1, 3))
def test_any_finite_float32_comes_back(output_format, values, n_rows_block):
    """Subnormal numbers and negative zeros too, in blocks of any size."""
    vectors = np.array(values, dtype=np.float32)
    rows = [Row(text="t")] * len(vectors)
    content = write(output_format, vectors, rows, n_rows_block=n_rows_block)
    assert read(content, output_format).tobytes() == vectors.tobytes()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float16])
@pytest.mark.parametrize("output_format", FORMATS)
def test_fewer_bits_come_back_as_they_are(output_format, dtype):
    """Whole numbers stay whole, halves stay halves, in every format."""
    most = {np.int8: -128, np.uint8: 255, np.float16: 65504}[dtype]
    vectors = np.array([[0, 127, most], [1, 2, 3]], dtype=dtype)
    content = write(output_format, vectors)
    assert read(content, output_format, dtype).tolist() == vectors.tolist()
    if output_format == "npy":
        assert read(content, "npy").dtype == dtype
    if output_format == "jsonl" and dtype != np.float16:
        assert b"." not in content


@pytest.mark.parametrize("output_format", ["json", "jsonl"])
@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_any_float16_comes_back_from_json(output_format, values):
    """NumPy's halves too."""
    vectors = np.array([values], dtype=np.float16)
    back = read(write(output_format, vectors, [Row(text="t")]), output_format, np.float16)
    assert back.tobytes() == vectors.tobytes()


@pytest.mark.parametrize("output_format", FORMATS)
def test_vectors_of_any_layout_are_written(output_format):
    """A transposed or sliced array is written by value."""
    vectors = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(2, 6))[:, ::2]
    assert read(write(output_format, vectors), output_format).tolist() == [[0, 2, 4], [6, 8, 10]]


@given(st.lists(FLOATS, min_size=3, max_size=3))
def test_numbers_in_json_are_the_shortest(values):
    """0.1 is written in as many digits as tell it from the next float32, not in those of a float64."""
    vectors = np.array([values], dtype=np.float32)
    for one, number in zip(write("json", vectors, [Row(text="t")]).strip(b"[]\n").split(b","), vectors[0], strict=True):
        digits = one.decode().lower().split("e")[0].replace(".", "").strip("-").lstrip("0").rstrip("0")
        shortest = np.format_float_scientific(number, unique=True, trim="-").split("e")[0].replace(".", "").strip("-")
        assert len(digits) <= len(shortest.lstrip("0").rstrip("0"))


def test_base64_is_little_endian():
    """As OpenAI's encoding_format: the bytes of 1.0 are 00 00 80 3f, whatever the array's order."""
    for order in ("<f4", ">f4"):
        line = write("base64", np.array([[1.0]], dtype=order), ROWS[:1])
        assert base64.b64decode(line) == b"\x00\x00\x80\x3f"


# Rows


def test_a_single_text_is_one_array_in_json():
    """One text given on the command line gives [...], not [[...]]."""
    assert json.loads(write("json", VECTORS[:1], ROWS[:1], is_one=True)) == pytest.approx(VECTORS[0].tolist())
    assert len(json.loads(write("json", VECTORS[:1], ROWS[:1]))) == 1


def test_json_lines_keep_text_and_id():
    """A line has the text as it was, and the id where there was one, before the embedding."""
    first, second = (json.loads(line) for line in write("jsonl").splitlines())
    assert list(first) == ["text", "embedding"]
    assert list(second) == ["id", "text", "embedding"]
    assert (second["id"], second["text"]) == (7, ROWS[1].text)
    assert "h\u00e9".encode() in write("jsonl")


def test_json_lines_have_what_a_row_has():
    """A row of which nothing is known is its embedding alone; a place is not written."""
    (line,) = write("jsonl", VECTORS[:1], [Row(place="in.txt, line 1")]).splitlines()
    assert list(json.loads(line)) == ["embedding"]


@given(st.text(st.characters(exclude_categories=("Cs",))), st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_and_id_come_back(text, name):
    """One line each, whatever is in them; the same from Parquet."""
    content = write("jsonl", VECTORS[:1], [Row(text=text, id=name)])
    (line,) = content.splitlines(keepends=False) if content.count(b"\n") == 1 else pytest.fail("several lines")
    known = json.loads(line)
    assert (known["text"], known["id"]) == (text, name)
    table = pq.read_table(io.BytesIO(write("parquet", VECTORS[:1], [Row(text=text, id=name)])))
    assert (table["text"].to_pylist(), table["id"].to_pylist()) == ([text], [name])


@pytest.mark.parametrize("value", [0, "", "x", 1.5, False, [1, 2], {"a": None}], ids=repr)
def test_an_id_of_any_kind_comes_back(value):
    """Ids are the input's own; zero and the empty text are ids too. Parquet has them as words, JSON's where no str."""
    line = write("jsonl", VECTORS[:1], [Row(text="t", id=value)])
    assert json.loads(line)["id"] == value
    table = pq.read_table(io.BytesIO(write("parquet", VECTORS[:1], [Row(text="t", id=value)])))
    assert table["id"].to_pylist() == [value if isinstance(value, str) else json.dumps(value)]


@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
def test_rows_and_vectors_are_as_many(output_format):
    """A text without its vector is a bug, never a shorter file."""
    block = RowBlock(rows=ROWS[:1], vectors=VECTORS)
    table = Table(blocks=[block], shape=(2, 3), dtype=VECTORS.dtype)
    with pytest.raises(ValueError):  # zip's words, or Arrow's
        write_table(io.BytesIO(), table, output_format=output_format)


@pytest.mark.parametrize(("output_format", "expected"), [("json", b"[]\n"), ("jsonl", b""), ("base64", b"")])
def test_no_texts_give_no_rows(output_format, expected):
    """Empty input is a valid, empty output."""
    assert write(output_format, np.empty((0, 4), np.float32), ()) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
@pytest.mark.parametrize("output_format", ["npy", "parquet"])
def test_no_texts_keep_the_dimension(output_format, dtype):
    """An empty array or table still says how long vectors are, and of what."""
    content = write(output_format, np.empty((0, 4), dtype), ())
    if output_format == "npy":
        assert np.load(io.BytesIO(content)).shape == (0, 4)
        assert np.load(io.BytesIO(content)).dtype == dtype
    else:
        table = pq.read_table(io.BytesIO(content))
        assert (table.num_rows, table["embedding"].type.list_size) == (0, 4)
        assert table["embedding"].type.value_type.to_pandas_dtype() is dtype


# Parquet

SPAN = Span(start=3, end=9, first_line=1, last_line=2)
FULL = (
    Row(id="a", text="whole", text_sha256="0" * 64, place="x"),
    Row(id=7, text="chunk", text_sha256="1" * 64, span=SPAN, place="y"),
    Row(id=None, text="cut", text_sha256="2" * 64, truncated=True, place="z"),
)


def full(dtype=np.float32, **more):
    vectors = np.array([[1, 0, 3], [4, 5, 6], [7, 8, 9]], dtype=dtype)
    return write("parquet", vectors, FULL, n_rows_block=2, **more), vectors


def test_parquet_has_columns_that_others_read():
    """Id where any row has one, text, and a fixed-size list of float."""
    table = pq.read_table(io.BytesIO(write("parquet")))
    assert table.column_names == ["id", "text", "embedding"]
    assert table["id"].to_pylist() == [None, "7"]
    assert table["text"].to_pylist() == [row.text for row in ROWS]
    assert str(table["embedding"].type) == "fixed_size_list<element: float>[3]"
    assert pq.read_table(io.BytesIO(write("parquet", VECTORS[:1], ROWS[:1]))).column_names == ["text", "embedding"]


def test_parquet_has_everything_that_a_row_has():
    """Spans are whole numbers or null, a cut is true or false, and each block is a row group."""
    content, vectors = full()
    file = pq.ParquetFile(io.BytesIO(content))
    table = file.read()
    assert file.num_row_groups == 2
    assert table.column_names == [*COLUMNS, "embedding"]
    assert table["id"].to_pylist() == ["a", "7", None]
    assert table["start"].to_pylist() == [None, 3, None]
    assert table["last_line"].to_pylist() == [None, 2, None]
    assert table["truncated"].to_pylist() == [False, False, True]
    assert table["text_sha256"].to_pylist() == [row.text_sha256 for row in FULL]
    assert table["embedding"].to_pylist() == vectors.tolist()


def test_parquet_has_metadata():
    """As one JSON value under "gguf_embed"; none where nothing is known."""
    facts = {"model": "h\u00e9", "ranges": [[0.1, 0.2]], "n_rows": 3, "prompt": None}
    content, _ = full(metadata=facts)
    assert json.loads(pq.read_schema(io.BytesIO(content)).metadata[b"gguf_embed"]) == facts
    assert b"gguf_embed" not in (pq.read_schema(io.BytesIO(full()[0])).metadata or {})


@pytest.mark.parametrize(
    ("dtype", "words"), [(np.float32, "FLOAT"), (np.int8, "TINYINT"), (np.uint8, "UTINYINT"), (np.float16, "FLOAT")]
)
def test_duckdb_reads_parquet(tmp_path, dtype, words):
    """Columns, types and numbers."""
    duckdb = pytest.importorskip("duckdb")
    content, vectors = full(dtype)
    (tmp_path / "o.parquet").write_bytes(content)
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT * FROM '{tmp_path / 'o.parquet'}'")  # noqa: S608 - the test's own file
        assert [column[0] for column in found.description] == [*COLUMNS, "embedding"]
        assert words in str(found.description[-1][1])
        rows = found.fetchall()
    assert [list(row[-1]) for row in rows] == vectors.tolist()
    assert [row[0] for row in rows] == ["a", "7", None]
    assert [row[3] for row in rows] == [None, 3, None]


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8, np.float16])
def test_polars_reads_parquet(dtype):
    """Columns, types and numbers; an array of fixed length."""
    polars = pytest.importorskip("polars")
    content, vectors = full(dtype)
    frame = polars.read_parquet(io.BytesIO(content))
    assert frame.columns == [*COLUMNS, "embedding"]
    assert frame["embedding"].to_list() == vectors.tolist()
    assert frame["embedding"].to_numpy().dtype == dtype
    assert frame["truncated"].to_list() == [False, False, True]
    empty = polars.read_parquet(io.BytesIO(write("parquet", np.empty((0, 3), dtype), ())))
    assert empty.shape == (0, 2)


# Streams


def stream_of(output_format, n_rows, precision="float32", *, ranges=None, n_rows_block=2):
    """Write rows as they come; returns the bytes and how many rows had been taken at each write."""
    taken, writes = 0, []
    vectors = np.arange(3 * n_rows, dtype=np.float32).reshape(n_rows, 3)

    def rows():
        nonlocal taken
        for at in range(0, n_rows, n_rows_block):
            here = vectors[at : at + n_rows_block]
            taken += len(here)
            yield RowBlock(rows=tuple(Row(text=f"t{at + i}") for i in range(len(here))), vectors=here)

    class Watched(io.BytesIO):
        def write(self, content):
            writes.append(taken)
            return super().write(content)

    stream = Watched()
    output = Output(output_format=output_format, precision=precision, ranges=ranges)
    write_stream(stream, rows(), output, dim=3, about=dict)
    return stream.getvalue(), vectors, writes


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("output_format", FORMATS)
def test_a_stream_gets_what_quantize_embeddings_gives(output_format, precision):
    """Of all rows together, however they come."""
    content, vectors, _ = stream_of(output_format, 5, precision)
    wanted = quantize_embeddings(vectors, precision)
    assert read(content, output_format, wanted.dtype).tolist() == wanted.tolist()


@pytest.mark.parametrize("output_format", ["jsonl", "base64"])
def test_lines_are_written_as_they_come(output_format):
    """A reader of the pipe need not wait for the last row, nor this program keep them."""
    _, _, writes = stream_of(output_format, 6)
    assert writes[0] == 2
    ranges = np.array([[0, 0, 0], [9, 9, 9]], dtype=np.float32)
    _, _, writes = stream_of(output_format, 6, "int8", ranges=ranges)
    assert writes[0] == 2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("output_format", FORMATS)
def test_an_empty_stream_is_an_empty_output(output_format, precision):
    """Of every format and precision, without a question to the model."""

    def about():
        pytest.fail("asked")

    stream = io.BytesIO()
    output = Output(output_format=output_format, precision=precision)
    write_stream(stream, iter(()), output, dim=8, about=about)
    found = stream.getvalue()
    dim = 1 if precision.endswith("binary") else 8
    if output_format == "npy":
        assert np.load(io.BytesIO(found)).shape == (0, dim)
    elif output_format == "parquet":
        assert pq.read_table(io.BytesIO(found))["embedding"].type.list_size == dim
    else:
        assert found == (b"[]\n" if output_format == "json" else b"")


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_a_single_row_has_no_range(precision):
    """It is bad input, told before anything is written."""
    with pytest.raises(InputError, match=precision):
        stream_of("jsonl", 1, precision)


# Ranges


@given(st.lists(st.lists(FLOATS, min_size=2, max_size=2), min_size=2, max_size=2))
def test_ranges_that_were_written_are_read(tmp_path_factory, values):
    """From .meta.json and from .npy, to the bit."""
    folder = tmp_path_factory.mktemp("r")
    ranges = np.sort(np.array(values, dtype=np.float32), axis=0)
    (folder / "o.npy.meta.json").write_text(json.dumps({"ranges": ranges.tolist()}))
    np.save(folder / "r.npy", ranges)
    assert load_ranges(folder / "o.npy.meta.json", 2).tobytes() == ranges.tobytes()
    assert load_ranges(folder / "r.npy", 2).tobytes() == ranges.tobytes()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"null", b"{}", b'{"ranges": null}', b'{"ranges": "x"}', b'{"ranges": [[1, 2], [3]]}',
     b'{"ranges": [[1, 2, 3], [4, 5, 6]]}', b'{"ranges": [["a", "b"], ["c", "d"]]}', b"\xff"],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("name", ["o.meta.json", "r.npy"])
def test_what_has_no_ranges_is_named(tmp_path, name, content):
    """Whatever is in the file, it is bad input and no bug."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load_ranges(tmp_path / name, 2)


# Files


@pytest.mark.parametrize(
    ("name", "output_format"),
    [("a.json", "json"), ("a.jsonl", "jsonl"), ("a.ndjson", "jsonl"), ("a.NPY", "npy"), ("a.parquet", "parquet"),
     ("a.b64", "base64"), ("a.txt", None), ("npy", None), ("a.npy.gz", None)],
)  # fmt: skip
def test_a_file_s_name_asks_for_a_format(tmp_path, name, output_format):
    """By the last suffix, in any case; None where it asks for none."""
    assert format_of_name(tmp_path / name) == output_format


def write_file(path, output_format="json"):
    with replaced(path) as stream:
        write_table(stream, table_of(), output_format=output_format)


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_file_holds_what_a_stream_gets(tmp_path, output_format):
    """Writing to a path and to a stream give the same bytes, and leave nothing else in the folder."""
    path = tmp_path / "out"
    write_file(path, output_format)
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
        write_file(path)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == ({"out.json": b"old"} if had_file else {})


def test_a_full_disk_is_named_with_the_file(tmp_path, broken):
    """The system's words and the path are in the message, the path is a fact, the cause is kept."""
    broken(FAILURES[0])
    with pytest.raises(StorageError, match=r"out\.json cannot be written: No space left on device") as caught:
        write_file(tmp_path / "out.json")
    assert caught.value.path == tmp_path / "out.json"
    assert isinstance(caught.value.__cause__, OSError)


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path):
    """It is named instead of a temporary file."""
    with pytest.raises(StorageError, match=r"none.out\.json cannot be written"):
        write_file(tmp_path / "none" / "out.json")


def test_a_folder_in_the_file_s_place_is_a_storage_error(tmp_path):
    """A folder is never replaced."""
    (tmp_path / "out.json").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        write_file(tmp_path / "out.json")
    assert [one.name for one in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_new_file_has_the_user_s_umask(tmp_path, mask):
    """Not the 0600 of a temporary file."""
    before = os.umask(mask)
    try:
        write_file(tmp_path / "out.json")
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
    write_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name == "nt", reason="needs a right on Windows")
@pytest.mark.parametrize("is_there", [True, False], ids=["to a file", "to nothing yet"])
def test_a_link_stays_a_link(tmp_path, is_there):
    """-o latest.json writes the file that the link leads to."""
    if is_there:
        (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_file(tmp_path / "link.json")
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
            write_file(path)
        assert stat.S_ISFIFO(path.stat().st_mode)
    finally:
        os.close(reader)


def test_what_fails_while_a_file_is_written_is_not_the_file_s_fault(tmp_path):
    """An OSError of what is read meanwhile does not say that the output cannot be written."""
    with pytest.raises(OSError, match="Input/output error") as caught, replaced(tmp_path / "o.json"):  # noqa: PT012
        (tmp_path / "in.txt").write_text("")
        raise OSError(5, "Input/output error", str(tmp_path / "in.txt"))
    assert not isinstance(caught.value, StorageError)


def test_parquet_without_pyarrow_names_the_pip_line(monkeypatch):
    """The missing extra is told before anything is written."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r'pip install "gguf-embed\[arrow\]"') as caught:
        check_format("parquet")
    assert caught.value.extra == "arrow"
    check_format("npy")
