"""jobs/spool.py and rows.py: what was committed is there after any end, what was not is not, and one process writes."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from fake_disk import Disk, Killed, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_embed.errors import JobError, StorageError
from gguf_embed.jobs import spool as spool_module
from gguf_embed.jobs.rows import Row
from gguf_embed.jobs.spool import Checkpoint, Spool
from gguf_embed.stream.chunking import Span

DIM = 3
TEXT = st.text(st.characters(exclude_categories=("Cs",)))
IDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda some: st.lists(some, max_size=3) | st.dictionaries(TEXT, some, max_size=3),
    max_leaves=5,
)
SPANS = st.builds(Span, start=st.integers(0), end=st.integers(0), first_line=st.integers(1), last_line=st.integers(1))
ROWS = st.builds(
    Row, id=IDS, text=st.none() | TEXT, text_sha256=st.none() | st.just("f" * 64), span=st.none() | SPANS,
    truncated=st.booleans(), place=TEXT,
)  # fmt: skip


@pytest.fixture
def output(tmp_path):
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / "o.npy"


@pytest.fixture
def disk(monkeypatch, tmp_path):
    one = Disk(monkeypatch, tmp_path / "outputs")
    yield one
    one.begin()


def spool_of(output, identity=None, **more):
    return Spool(output, dim=DIM, identity=identity or {"model": "fake"}, **more)


def rows_of(n, begin=0):
    return [Row(text=f"text {at}", place=f"line {at}") for at in range(begin, begin + n)]


def vectors_of(n, begin=0):
    return np.arange(begin, begin + n, dtype=np.float32)[:, None] * np.ones((1, DIM), dtype=np.float32)


def append(spool, n, begin=0):
    spool.append(rows_of(n, begin), vectors_of(n, begin))


def content(spool):
    """All rows and vectors that it reads back."""
    blocks = list(spool.blocks())
    vectors = [block.vectors for block in blocks] or [np.empty((0, DIM), dtype=np.float32)]
    return [row for block in blocks for row in block.rows], np.concatenate(vectors)


def has(spool, n):
    """Whether it has the first n rows of `rows_of` and nothing else."""
    rows, vectors = content(spool)
    return rows == rows_of(n) and vectors.tolist() == vectors_of(n).tolist() and spool.checkpoint.n_rows == n


# Rows


@given(ROWS)
def test_a_row_that_was_dumped_is_loaded(row):
    """Ids of any kind that JSON has, spans, texts with every character; one line each."""
    line = row.dump()
    assert line.count(b"\n") == 1
    assert Row.load(line) == row


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 elsewhere")
def test_a_place_whose_name_is_no_utf8_is_loaded():
    """File names are bytes on Linux; a row of such a file is a row."""
    row = Row(text="a", place=os.fsdecode(b"caf\xe9.txt, line 1"))
    loaded = Row.load(row.dump())
    assert loaded.text == "a"
    assert loaded.place.endswith(".txt, line 1")


def test_columns_are_what_a_row_has():
    """Zero and the empty text are ids; what is None, and False for a cut, is left out."""
    assert Row(place="x").columns() == {}
    assert Row(id=0, text="").columns() == {"id": 0, "text": ""}
    span = Span(start=0, end=3, first_line=1, last_line=1)
    assert Row(id="", truncated=True, span=span).columns() == {
        "id": "", "start": 0, "end": 3, "first_line": 1, "last_line": 1, "truncated": True,
    }  # fmt: skip


# Appending and reading back


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=6), st.integers(1, 900))
def test_rows_come_back_in_order(tmp_path_factory, steps, n_bytes_block):
    """However they were appended, committed and are read; an array of them is an .npy file of that shape."""
    output = tmp_path_factory.mktemp("s") / "o.npy"
    n = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "_N_BYTES_BLOCK", n_bytes_block)
        with spool_of(output) as spool:
            for n_more, commits in steps:
                append(spool, n_more, n)
                n += n_more
                if commits:
                    spool.commit(n_records=n)
            spool.commit(n_records=n)
            assert has(spool, n)
            for block in spool.blocks():
                assert sum(len(row.dump()) + 4 * spool.dim for row in block.rows[:-1]) < n_bytes_block
        with spool_of(output) as spool:
            assert has(spool, n)
            spool.become_npy()
            spool.remove()
    assert np.load(output).tolist() == vectors_of(n).tolist()
    assert snapshot(output.parent).keys() == {"o.npy"}


def test_vectors_of_any_layout_and_order_are_kept_by_value(output):
    """Transposed, sliced and big-endian arrays too."""
    with spool_of(output) as spool:
        spool.append(rows_of(2), np.asfortranarray(np.arange(12, dtype=np.float32).reshape(2, 6))[:, ::2])
        spool.append(rows_of(1), np.array([[1, 2, 3]], dtype=">f4"))
        spool.commit()
        assert content(spool)[1].tolist() == [[0, 2, 4], [6, 8, 10], [1, 2, 3]]


def test_columns_of_all_rows_are_known(output):
    """Those that any row has, from before an interruption too."""
    with spool_of(output) as spool:
        spool.append([Row(text="a")], vectors_of(1))
        spool.commit()
    with spool_of(output) as spool:
        spool.append([Row(text="b", id=3, truncated=True)], vectors_of(1))
        spool.commit()
    with spool_of(output) as spool:
        assert set(spool.checkpoint.columns) == {"text", "id", "truncated"}


# Interruptions


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6))
def test_what_was_not_committed_is_gone(tmp_path_factory, lives):
    """In each life some rows are committed and some are not; the next one begins at what was, whatever its length."""
    output = tmp_path_factory.mktemp("s") / "o.npy"
    n = 0
    for n_kept, n_lost in lives:
        with spool_of(output) as spool:
            assert spool.checkpoint.n_rows == n
            if n_kept:
                append(spool, n_kept, n)
                n += n_kept
            spool.commit(n_records=n)
            assert has(spool, n)
            append(spool, n_lost, 1000)
    with spool_of(output) as spool:
        assert has(spool, n)
        assert spool.checkpoint.n_records == n


@pytest.mark.parametrize("n_before", [1, 3, 100, 10_000])
@pytest.mark.parametrize("is_committed", [True, False], ids=["restarted", "before its first checkpoint"])
def test_a_new_beginning_reads_its_own_rows(output, n_before, is_committed):
    """What lay there before a --restart, or before anything was committed, is not read back and moves nothing."""
    with spool_of(output) as spool:
        append(spool, n_before, 5000)
        if is_committed:
            spool.commit(n_records=n_before)
    with spool_of(output, restarts=is_committed) as spool:
        append(spool, 5)
        spool.commit(n_records=5)
        assert has(spool, 5)


def test_a_commit_of_nothing_after_an_interruption_is_sound(output):
    """Rows that were lost and are not made again, as of an input that shrank, leave a checkpoint that can be read."""
    with spool_of(output) as spool:
        append(spool, 2)
        spool.commit(n_records=2)
        append(spool, 50, 2)
    with spool_of(output) as spool:
        spool.commit(n_records=2)
        assert spool.checkpoint.rows_bytes == (spool.folder / "rows.jsonl").stat().st_size
    with spool_of(output) as spool:
        assert has(spool, 2)


def test_a_spool_that_is_killed_anywhere_has_what_was_committed(output, disk):
    """At every step of three commits: the next life has all rows of one of them, and goes on from there."""

    def life(spool):
        for n in range(spool.checkpoint.n_rows, 9, 3):
            append(spool, 3, n)
            spool.commit(n_records=n + 3)

    disk.begin()
    with spool_of(output) as spool:
        life(spool)
        n_steps = disk.n_steps
    wrong = {}
    for kill_at in range(1, n_steps + 1):
        disk.begin(kill_at=kill_at)
        place = output.with_name(f"{kill_at}.npy")
        with pytest.raises(Killed):  # noqa: SIM117 - either may be where it ends
            with spool_of(place) as spool:
                life(spool)
        n_committed = 3 * disk.names[:-1].count("replace")  # the last one was not done
        disk.begin()
        with spool_of(place) as spool:
            if spool.checkpoint.n_rows % 3 or spool.checkpoint.n_rows < n_committed:
                wrong[kill_at] = f"{spool.checkpoint.n_rows} rows"
            life(spool)
            if not has(spool, 9):
                wrong[kill_at] = "other rows"
    assert wrong == {}


@pytest.mark.parametrize("full_from", [1, 2, 3, 5, 8, 12])
def test_a_full_disk_keeps_what_was_committed(output, disk, full_from):
    """StorageError with the output's name and its cause."""
    disk.begin()
    with spool_of(output) as spool:
        append(spool, 3)
        spool.commit(n_records=3)
    disk.begin(full_from=full_from)
    with pytest.raises(StorageError, match=r"o\.npy cannot be written") as caught:  # noqa: PT012, SIM117 - anywhere in it
        with spool_of(output) as spool:
            for n in range(3, 30, 3):
                append(spool, 3, n)
                spool.commit(n_records=n + 3)
    assert isinstance(caught.value.__cause__, OSError)
    disk.begin()
    with spool_of(output) as spool:
        assert has(spool, spool.checkpoint.n_rows)
        assert spool.checkpoint.n_rows >= 3


# Damage


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b"\xff\xfe", b'{"version": 1, "identity": {}}',
     b'{"version": 1, "identity": {}, "columns": 3}', b'{"version": 1, "identity": {}, "columns": [], "more": 1}'],
    ids=repr,
)  # fmt: skip
def test_a_damaged_checkpoint_is_told(output, damage):
    """JobError with the way out; --restart takes it."""
    with spool_of(output) as spool:
        append(spool, 3)
        spool.commit()
        path = spool.folder / "checkpoint.json"
    path.write_bytes(damage)
    with pytest.raises(JobError, match="--restart"):
        spool_of(output)
    with spool_of(output, restarts=True) as spool:
        append(spool, 2)
        spool.commit()
        assert has(spool, 2)


def test_a_checkpoint_of_another_version_is_told(output):
    """What a newer program wrote is not guessed at."""
    with spool_of(output) as spool:
        spool.commit()
        path = spool.folder / "checkpoint.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {"version": known["version"] + 1}))
    with pytest.raises(JobError, match="--restart"):
        spool_of(output)


@pytest.mark.parametrize("name", ["vectors.npy", "rows.jsonl"])
@pytest.mark.parametrize("damage", ["empty", "short", "missing"])
def test_a_damaged_file_is_told(output, name, damage):
    """A file that has less than its checkpoint says, or is gone, is a JobError: never a shorter output, never a bug."""
    with spool_of(output) as spool:
        append(spool, 3)
        spool.commit()
        path = spool.folder / name
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size - 1)
    with pytest.raises(JobError, match="--restart"):
        spool_of(output)


def test_what_is_no_npy_is_told(output):
    """A header that cannot be read, or is of another length, is a JobError."""
    with spool_of(output) as spool:
        append(spool, 3)
        spool.commit()
        path = spool.folder / "vectors.npy"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(JobError, match="--restart"):
        spool_of(output)


def test_files_of_a_spool_that_cannot_be_opened_are_closed(output, recwarn):
    """Windows deletes no open file."""
    import gc  # noqa: PLC0415 - only here

    with spool_of(output) as spool:
        append(spool, 3)
        spool.commit()
        path = spool.folder / "rows.jsonl"
    os.truncate(path, 0)
    gc.collect()
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()  # noqa: PTH112, PTH208
    try:
        spool_of(output)
    except JobError as error:
        caught = error
    after = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()  # noqa: PTH112, PTH208
    assert len(after) <= len(before), caught


# Who may write


def test_another_job_is_told_with_all_that_differs(output):
    """Both values, by name; what only one of them has counts."""
    with spool_of(output, {"model": "a", "dim": 3, "source": ["x"]}) as spool:
        spool.commit()
    with pytest.raises(JobError) as caught:
        spool_of(output, {"model": "b", "dim": 3, "source": ["y"], "longest": 5})
    for words in ("model was 'a' and is 'b'", "source was ['x'] and is ['y']", "longest was None and is 5"):
        assert words in str(caught.value)
    assert "dim" not in str(caught.value)


def test_an_identity_of_tuples_is_the_same_again(output):
    """What JSON makes of it is compared."""
    identity = {"source": (("a",), None, {"x": (1, 2)})}
    with spool_of(output, identity) as spool:
        append(spool, 1)
        spool.commit()
    with spool_of(output, identity) as spool:
        assert has(spool, 1)


def test_one_process_at_a_time(output):
    """Another one is told, and can begin once the first has ended, however that came."""
    code = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        from gguf_embed.jobs.spool import Spool
        spool = Spool(Path({str(output)!r}), dim={DIM}, identity={{"model": "fake"}})
        print("in", flush=True)
        sys.stdin.read()
        os._exit(9)
    """)
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"in\n"
        for restarts in (False, True):
            with pytest.raises(JobError, match="another process is writing"):
                spool_of(output, restarts=restarts)
    finally:
        child.communicate(b"")
    with spool_of(output) as spool:
        assert spool.checkpoint == Checkpoint()


def test_closing_twice_is_allowed(output):
    """Others are let in after the first time, and the second time takes nothing away from them."""
    spool = spool_of(output)
    spool.close()
    with spool_of(output) as other:
        append(other, 2)
        spool.close()
        with pytest.raises(JobError):
            spool_of(output)
        other.commit()
        assert has(other, 2)


def test_what_was_removed_stays_another_s(output):
    """Whoever begins right after `remove` keeps the work that it then does, when the first one leaves."""
    with spool_of(output) as spool:
        append(spool, 3)
        spool.commit()
        spool.remove()
        other = spool_of(output)
        append(other, 2)
    with other:
        other.commit()
        assert has(other, 2)


def test_a_folder_that_is_left_without_files_begins_anew(output):
    """Killed between making the folder and the first file."""
    output.with_name("o.npy.partial").mkdir()
    with spool_of(output) as spool:
        append(spool, 2)
        spool.commit()
        assert has(spool, 2)


def test_a_job_that_is_placed_and_not_removed_is_known(output):
    """Killed after the vectors took the output's place: what is appended later does not change the output."""
    with spool_of(output) as spool:
        append(spool, 2)
        spool.commit(n_records=2)
        spool.become_npy()
    before = output.read_bytes()
    with spool_of(output) as spool:
        assert spool.checkpoint.n_rows == 2
        append(spool, 3)
        spool.commit(n_records=5)
        assert output.read_bytes() == before
        spool.remove()
    assert snapshot(output.parent) == {"o.npy": before}


def test_a_large_number_of_rows_keeps_the_header_s_length(output):
    """The header of an .npy is written before the rows are counted."""
    with spool_of(output) as spool:
        lengths = set()
        for n_rows in (0, 1, 10**6, 10**12, 10**18):
            stream = io.BytesIO()
            spool._write_header(stream, n_rows)
            lengths.add(len(stream.getvalue()))
    assert len(lengths) == 1


def test_a_checkpoint_is_what_was_committed(output):
    """Every field, and nothing else is kept."""
    with spool_of(output) as spool:
        append(spool, 2)
        spool.commit(n_records=7, chain="abc", n_failed=1)
        wanted = spool.checkpoint
    with spool_of(output) as spool:
        assert spool.checkpoint == wanted
        known = {"n_records": 7, "chain": "abc", "n_failed": 1, "n_rows": 2}
        assert dataclasses.asdict(wanted) | known == dataclasses.asdict(wanted)
