"""saved.py: vectors of anybody's files, with ids, texts and what made them; what is broken is told by name."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gguf_embed.errors import InputError
from gguf_embed.quality.saved import Fields, digest_of, load_saved
from gguf_embed.vectors import calibrate, quantize_embeddings

ROWS = np.array([[0.6, 0.8], [1, 0], [0, -1]], dtype=np.float32)
ABOUT = {"model": "m", "quant": "F16", "fingerprint": "f" * 32, "prompt": "p: ", "precision": "float32", "n_rows": 3}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path, columns, about=None):
    table = pa.table(columns)
    if about is not None:
        table = table.replace_schema_metadata({"gguf_embed": json.dumps(about)})
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_float(tmp_path, dtype, order):
    """Rows come as contiguous float32, to the precision that they had."""
    np.save(tmp_path / "a.npy", np.asarray(ROWS, dtype=dtype, order=order))
    saved = load_saved(tmp_path / "a.npy")
    assert saved.embeddings.dtype == np.float32
    assert saved.embeddings.flags.c_contiguous
    assert np.allclose(saved.embeddings, ROWS, atol=1e-3 if dtype == "float16" else 1e-7)
    assert (saved.keys.n, saved.keys.ids, saved.keys.texts, dict(saved.about)) == (3, None, None, {})


def test_what_lies_beside_an_npy(tmp_path):
    """.meta.json tells what made it, .rows.jsonl has the ids; chunks of a text are told apart."""
    np.save(tmp_path / "a.npy", ROWS)
    (tmp_path / "a.npy.meta.json").write_text(json.dumps(ABOUT))
    rows = [{"id": "x", "start": 0, "end": 5}, {"id": "x", "start": 5, "end": 9}, {"id": 7}]
    write_lines(tmp_path / "a.npy.rows.jsonl", rows)
    saved = load_saved(tmp_path / "a.npy")
    assert saved.about["fingerprint"] == "f" * 32
    assert saved.keys.ids == ("x [0:5]", "x [5:9]", "7")


def test_json_lines(tmp_path):
    """Ids, texts and their digests come with the vectors."""
    rows = [{"id": i, "text": f"t{i}", "embedding": row.tolist()} for i, row in enumerate(ROWS)]
    saved = load_saved(write_lines(tmp_path / "a.jsonl", rows))
    assert np.array_equal(saved.embeddings, ROWS)
    assert saved.keys.ids == ("0", "1", "2")
    assert saved.keys.texts == ("t0", "t1", "t2")
    assert saved.keys.digests == tuple(map(digest_of, saved.keys.texts))


def test_json_lines_by_other_names(tmp_path):
    """A field may be called otherwise, and a vector "vector"; without all ids there are none."""
    rows = [{"key": i, "body": "b", "vector": [1, 0.5]} for i in range(2)] + [{"body": "b", "vector": [0, 1]}]
    saved = load_saved(write_lines(tmp_path / "a.ndjson", rows), Fields(text="body", id="key"))
    assert (saved.keys.texts, saved.keys.ids) == (("b", "b", "b"), None)


def test_digests_stand_for_texts(tmp_path):
    """What --no-text wrote is compared by."""
    rows = [{"text_sha256": digest_of("t"), "embedding": [1.0, 0.0]}]
    assert load_saved(write_lines(tmp_path / "a.jsonl", rows)).keys.digests == (digest_of("t"),)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 2), pa.list_(pa.float32()), pa.large_list(pa.float64()),
                                  pa.list_(pa.float16(), 2)], ids=str)  # fmt: skip
def test_parquet(tmp_path, kind):
    """Any list of numbers is a vector; metadata of ours is read."""
    is_half = kind.value_type == pa.float16()
    column = pa.array([row.astype(np.float16) if is_half else row.tolist() for row in ROWS], kind)
    columns = {"id": ["a", "b", "c"], "text": ["x", "y", "z"], "embedding": column}
    saved = load_saved(write_parquet(tmp_path / "a.parquet", columns, ABOUT))
    assert np.allclose(saved.embeddings, ROWS, atol=1e-3)
    assert (saved.keys.ids, saved.keys.texts) == (("a", "b", "c"), ("x", "y", "z"))
    assert saved.about["quant"] == "F16"


def test_a_filtered_table_keeps_what_it_says(tmp_path):
    """Fewer rows than its metadata counts are no mistake, since a table carries its metadata along."""
    columns = {"embedding": pa.array(ROWS[:2].tolist(), pa.list_(pa.float32(), 2))}
    assert load_saved(write_parquet(tmp_path / "a.parquet", columns, ABOUT)).keys.n == 2


def test_a_sliced_table_gives_its_own_rows(tmp_path):
    """Row groups of different sizes are put together in order."""
    many = pa.array(np.tile(ROWS, (5, 1)).tolist(), pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"embedding": many}), tmp_path / "a.parquet", row_group_size=4)
    assert np.array_equal(load_saved(tmp_path / "a.parquet").embeddings, np.tile(ROWS, (5, 1)))


def test_json_is_a_list_of_vectors(tmp_path):
    """What embed writes to stdout."""
    (tmp_path / "a.json").write_text(json.dumps(ROWS.tolist()))
    assert np.array_equal(load_saved(tmp_path / "a.json").embeddings, ROWS)


def test_int8_comes_back_by_its_ranges(tmp_path):
    """Within a step of what it was."""
    ranges = calibrate(ROWS)
    np.save(tmp_path / "a.npy", quantize_embeddings(ROWS, "int8", ranges=ranges))
    about = ABOUT | {"precision": "int8", "ranges": ranges.tolist()}
    (tmp_path / "a.npy.meta.json").write_text(json.dumps(about))
    assert np.allclose(load_saved(tmp_path / "a.npy").embeddings, ROWS, atol=2 / 255)


def save(array, name="a.npy"):
    return lambda folder: np.save(folder / name, array)


def lines(*rows, name="a.jsonl"):
    return lambda folder: write_lines(folder / name, rows)


def column(value, kind):
    return lambda folder: write_parquet(
        folder / "a.parquet", {"embedding": pa.array(value, kind), "t": ["x"] * len(value)}
    )


NAN = np.array([[1, 0], [np.nan, 0], [0, np.inf]], dtype=np.float32)


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (lambda _: None, "a.npy", "not there"),
        (lambda _: None, "a.parquet", "not there"),
        (lambda _: None, "a.jsonl", "not there"),
        (save(NAN), "a.npy", "row 2 has NaN or infinity, and so have 1 more of 3"),
        (save(np.full((1, 2), 1e300)), "a.npy", "row 1 has NaN or infinity"),
        (save(np.ones(3)), "a.npy", r"shape \(3,\)"),
        (save(np.float32(3)), "a.npy", "a matrix, a row each text"),
        (save(np.ones((0, 3))), "a.npy", "no vectors"),
        (save(np.ones((2, 3), dtype=np.int8)), "a.npy", "whole numbers and nothing says their ranges"),
        (save(np.array([["x"]])), "a.npy", "<U1"),
        (save(np.array([[None]], dtype=object)), "a.npy", "no .npy file that can be read"),
        (lambda folder: (folder / "a.npy").write_bytes(b"x"), "a.npy", "no .npy file that can be read"),
        (lambda folder: (folder / "a.parquet").write_bytes(b"x" * 20), "a.parquet", "no Parquet file"),
        (lambda folder: (folder / "a.json").write_text("[[1,2],[3]]"), "a.json", "different lengths"),
        (lines({"text": "x"}), "a.jsonl", 'line 1: expected an object with an "embedding"; its keys are: text'),
        (lines([1, 2]), "a.jsonl", "expected an object"),
        (lines({"embedding": [1, None]}), "a.jsonl", "not all are numbers"),
        (lines({"embedding": [1, 2]}, {"embedding": [1]}), "a.jsonl", r"line 2: a vector of shape \(1,\); .*2 numbers"),
        (lines({"embedding": [[1, 2]]}), "a.jsonl", "list of numbers"),
        (lambda folder: (folder / "a.jsonl").write_text("{"), "a.jsonl", "line 1: no JSON"),
        (lambda folder: (folder / "a.jsonl").write_text(""), "a.jsonl", "no vectors"),
        (column(["x"], pa.string()), "a.parquet", "vectors are lists of numbers"),
        (column([["x"]], pa.list_(pa.string())), "a.parquet", "vectors are lists of numbers"),
        (column([[1.0], None], pa.list_(pa.float32(), 1)), "a.parquet", r"row 2: no vector \(1 rows"),
        (column([[1.0, None]], pa.list_(pa.float32())), "a.parquet", "1 components are missing"),
        (column([[1.0], [1.0, 2.0]], pa.list_(pa.float32())), "a.parquet", "1 to 2 components"),
        (lambda folder: write_parquet(folder / "a.parquet", {"x": [1]}), "a.parquet", 'no column "embedding"'),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told(tmp_path, make, name, words):
    """Which file, which row, and what is wrong with it."""
    make(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        load_saved(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize(("suffix", "content"), [(".meta.json", json.dumps(ABOUT)), (".rows.jsonl", '{"id": 1}\n' * 3)])
def test_what_belongs_to_another_output_is_not_believed(tmp_path, suffix, content):
    """A file that was written over keeps neither ids nor fingerprint of the one before."""
    np.save(tmp_path / "a.npy", ROWS[:2])
    (tmp_path / f"a.npy{suffix}").write_text(content)
    with pytest.raises(InputError, match="belongs to another output"):
        load_saved(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("suffix", "content", "words"),
    [
        (".rows.jsonl", "5\n5\n", r"a\.npy\.rows\.jsonl, line 1: expected an object, .* got '5'"),
        (".rows.jsonl", '{"id": 1}\n["id"]\n', r"a\.npy\.rows\.jsonl, line 2: expected an object"),
        (".rows.jsonl", '{"id": 1}\n{\n', r"a\.npy\.rows\.jsonl, line 2: no JSON"),
        (".rows.jsonl", "[" * 100_000, r"a\.npy\.rows\.jsonl, line 1: no JSON"),
        (".meta.json", "[" * 100_000, r"a\.npy\.meta\.json, which tells .*; delete it"),
        (".meta.json", '{"n_rows": [2]}', r"beside it is of \[2\]: it belongs to another output"),
    ],
)
def test_what_is_damaged_beside_an_npy_is_told(tmp_path, suffix, content, words):
    """By its own name and line."""
    np.save(tmp_path / "a.npy", ROWS[:2])
    (tmp_path / f"a.npy{suffix}").write_text(content)
    with pytest.raises(InputError, match=words):
        load_saved(tmp_path / "a.npy")


@pytest.mark.parametrize("ranges", [{"low": 0}, "x", [[0, 1], None]])
def test_ranges_that_are_none_are_told(tmp_path, ranges):
    """Of an int8 file."""
    np.save(tmp_path / "a.npy", np.ones((2, 2), dtype=np.int8))
    (tmp_path / "a.npy.meta.json").write_text(json.dumps({"precision": "int8", "ranges": ranges}))
    with pytest.raises(InputError, match="do not belong together"):
        load_saved(tmp_path / "a.npy")


def test_an_archive_is_no_array(tmp_path):
    """Whatever its name says."""
    np.savez(tmp_path / "a.npz", a=ROWS)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(InputError, match="is an archive"):
        load_saved(tmp_path / "a.npy")


def test_bits_have_no_cosine(tmp_path):
    """Binary outputs are refused by their .meta.json."""
    np.save(tmp_path / "a.npy", quantize_embeddings(ROWS, "ubinary"))
    (tmp_path / "a.npy.meta.json").write_text(json.dumps(ABOUT | {"precision": "ubinary"}))
    with pytest.raises(InputError, match="a bit a component"):
        load_saved(tmp_path / "a.npy")
