"""jobs/job.py and outputs.py: a job that is ended anywhere goes on and makes what an undisturbed one makes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_disk import Disk, Killed, snapshot
from fake_model import FakeModel, embedder_over, n_tokens_of, raw_row

from gguf_embed.cli.app import run as run_cli
from gguf_embed.encoding import EncodeOptions
from gguf_embed.errors import GGUFEmbedError, InputError, InvalidTextError, JobError, StorageError, TextTooLongError
from gguf_embed.jobs import spool as spool_module
from gguf_embed.jobs.job import Job, JobOptions, JobStoppedError, Progress
from gguf_embed.jobs.outputs import Output, load_ranges
from gguf_embed.jobs.records import BadRecord, Record, bad_record
from gguf_embed.jobs.sinks import FORMATS
from gguf_embed.stream import pipeline
from gguf_embed.stream.cache import VectorCache
from gguf_embed.stream.chunking import Chunking
from gguf_embed.vectors import calibrate, l2_normalize, quantize_embeddings

BLOCK = 3  # pieces
TEXTS = ["a", "b b", "c", "abc x", "a", "b a b", "c c c c", "x"]
SKIPPING = JobOptions(skips_bad=True)
CHUNKED = JobOptions(chunking=Chunking(long="chunk", n_tokens=4, n_overlap=1))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 3 pieces; rows are read back 5 at a time."""
    monkeypatch.setattr(pipeline, "_N_PIECES_BLOCK", BLOCK)
    monkeypatch.setattr(spool_module, "_N_BYTES_BLOCK", 300)


@pytest.fixture
def disk(monkeypatch, tmp_path):
    one = Disk(monkeypatch, tmp_path / "outputs")
    yield one
    one.begin()


@pytest.fixture
def folder(tmp_path):
    """Where outputs go; nothing else is in it."""
    one = tmp_path / "outputs"
    one.mkdir()
    return one


def records_of(texts, *, with_ids=False):
    return [
        Record(text=text, id=f"id {at}" if with_ids else None, place=f"in.txt, line {at + 1}")
        for at, text in enumerate(texts)
    ]


def unreadable(at):
    return bad_record(f"in.txt, line {at}", "not UTF-8", index=at, reason="not UTF-8")


class Watcher:
    """Keeps what it is told."""

    def __init__(self):
        self.seen, self.bad = [], []

    def on_progress(self, progress):
        self.seen.append(progress)

    def on_bad(self, place, error):
        self.bad.append((place, error))


def run(path, source=None, options=None, *, model=None, output_format=None, precision="float32", **more):
    """Run one job; returns its progress."""
    source = records_of(TEXTS) if source is None else source
    output = Output(
        output_format=output_format or path.suffix[1:], precision=precision, ranges=more.pop("ranges", None)
    )
    how = {"source_identity": more.pop("identity", ["in.txt"]), "restarts": more.pop("restarts", False)}
    embedder = embedder_over(model or FakeModel(), truncate_dim=more.pop("truncate_dim", None))
    job = Job(embedder, source, options or JobOptions(), observer=more.pop("observer", Watcher()), **more)
    return job.run(path, output, **how)


def expected(texts=TEXTS):
    """Unit rows of texts."""
    return l2_normalize(np.array([raw_row(text) for text in texts], dtype=np.float32))


def same_files(found, wanted):
    """Byte for byte, but Parquet by rows, order, row groups and metadata."""
    if set(found) != set(wanted):
        return False
    for name, content in wanted.items():
        if name.endswith(".parquet"):
            one, other = (pq.ParquetFile(io.BytesIO(some)) for some in (found[name], content))
            if not one.read().equals(other.read(), check_metadata=True) or one.num_row_groups != other.num_row_groups:
                return False
        elif found[name] != content:
            return False
    return True


# What a job makes


@pytest.mark.parametrize("output_format", FORMATS)
def test_an_output_has_a_row_for_each_text_in_order(folder, output_format):
    """Whatever the blocks were; nothing of the work in progress is left."""
    progress = run(folder / "out", output_format=output_format)
    wanted = {"out"} | ({"out.meta.json"} if output_format != "parquet" else set())
    assert set(snapshot(folder)) == wanted
    assert (progress.n_records, progress.n_rows, progress.n_failed) == (8, 8, 0)
    content = (folder / "out").read_bytes()
    if output_format == "npy":
        assert np.load(folder / "out").tolist() == expected().tolist()
    elif output_format == "jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        assert [line["text"] for line in lines] == TEXTS
        assert np.array([line["embedding"] for line in lines], dtype=np.float32).tolist() == expected().tolist()
    elif output_format == "parquet":
        table = pq.read_table(io.BytesIO(content))
        assert table["text"].to_pylist() == TEXTS
        assert np.array(table["embedding"].to_pylist(), dtype=np.float32).tolist() == expected().tolist()
    elif output_format == "json":
        assert np.array(json.loads(content), dtype=np.float32).tolist() == expected().tolist()
    else:
        assert content.count(b"\n") == 8


def test_what_made_the_rows_lies_beside_them(folder):
    """Model, prompt, length, precision and number of rows; inside the file for Parquet."""
    options = JobOptions(encode=EncodeOptions(prompt_name="query"))
    run(folder / "o.npy", options=options, precision="float16")
    run(folder / "o.parquet", options=options, precision="float16")
    beside = json.loads((folder / "o.npy.meta.json").read_text())
    inside = json.loads(pq.read_schema(folder / "o.parquet").metadata[b"gguf_embed"])
    assert beside == inside
    facts = {"model": "fake", "quant": "Q8_0", "dim": 4, "prompt": "q: ", "precision": "float16", "n_rows": 8}
    assert facts.items() <= beside.items()


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (records_of(TEXTS, with_ids=True), JobOptions()),
        ([*records_of(TEXTS), unreadable(9)], SKIPPING),
        ([*records_of(TEXTS[:2]), Record(text="a nan", place="in.txt, line 3"), *records_of(TEXTS)], SKIPPING),
        (records_of(TEXTS), CHUNKED),
        (records_of(["a " * 60]), JobOptions(chunking=Chunking(long="truncate"))),
    ],
    ids=["ids", "unreadable", "not finite", "chunks", "cut"],
)
def test_what_positions_do_not_tell_lies_beside_an_npy(folder, source, options):
    """A line for each row, in order: id, place, span and whether it was cut."""
    run(folder / "o.npy", source, options)
    lines = [json.loads(line) for line in (folder / "o.npy.rows.jsonl").read_bytes().splitlines()]
    run(folder / "o.jsonl", source, options)
    rows = [json.loads(line) for line in (folder / "o.jsonl").read_bytes().splitlines()]
    assert len(lines) == len(rows) == len(np.load(folder / "o.npy"))
    for line, row in zip(lines, rows, strict=True):
        row.pop("text")
        row.pop("embedding")
        assert line.pop("place").startswith("in.txt, line ")
        assert line == row


def test_a_plain_list_of_texts_needs_no_such_file(folder):
    """Row i is text i; one that an earlier run left there is taken away."""
    run(folder / "o.npy", records_of(TEXTS, with_ids=True))
    run(folder / "o.npy")
    assert set(snapshot(folder)) == {"o.npy", "o.npy.meta.json"}


def test_texts_can_be_left_out(folder):
    """Their SHA-256 stands for them, in the file and beside it."""
    import hashlib  # noqa: PLC0415 - only here

    run(folder / "o.jsonl", options=JobOptions(with_text=False))
    rows = [json.loads(line) for line in (folder / "o.jsonl").read_bytes().splitlines()]
    assert [row["text_sha256"] for row in rows] == [hashlib.sha256(text.encode()).hexdigest() for text in TEXTS]
    assert not any("text" in row for row in rows)


@pytest.mark.parametrize("output_format", ["npy", "jsonl", "parquet"])
@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_ranges_are_those_of_all_rows(folder, output_format, precision):
    """Numbers are those that quantize_embeddings gives for the whole, and the ranges can be read again."""
    run(folder / "out", output_format=output_format, precision=precision)
    wanted = quantize_embeddings(expected(), precision)
    if output_format == "npy":
        found = np.load(folder / "out")
    elif output_format == "parquet":
        found = np.array(pq.read_table(folder / "out")["embedding"].to_pylist(), dtype=precision)
    else:
        found = np.array([json.loads(line)["embedding"] for line in (folder / "out").read_bytes().splitlines()],
                         dtype=precision)  # fmt: skip
    assert found.dtype == wanted.dtype
    assert found.tolist() == wanted.tolist()
    if output_format != "parquet":
        assert load_ranges(folder / "out.meta.json", 4).tolist() == calibrate(expected()).tolist()


def test_ranges_of_before_are_taken_as_they_are(folder):
    """A later part of a corpus compares with an earlier one."""
    run(folder / "one.npy", precision="int8")
    ranges = load_ranges(folder / "one.npy.meta.json", 4)
    run(folder / "two.npy", records_of(TEXTS[:1]), precision="int8", ranges=ranges)
    assert np.load(folder / "two.npy").tolist() == np.load(folder / "one.npy")[:1].tolist()


@pytest.mark.parametrize("precision", ["float16", "binary", "ubinary"])
def test_other_precisions_are_row_by_row(folder, precision):
    """As quantize_embeddings gives them."""
    run(folder / "o.npy", precision=precision)
    wanted = quantize_embeddings(expected(), precision)
    found = np.load(folder / "o.npy")
    assert (found.dtype, found.tolist()) == (wanted.dtype, wanted.tolist())


def test_a_single_row_has_no_range(folder):
    """It is bad input, and what was embedded is there for another precision."""
    with pytest.raises(InputError, match="int8"):
        run(folder / "o.npy", records_of(["a"]), precision="int8")
    model = FakeModel()
    run(folder / "o.npy", records_of(["a"]), model=model)
    assert np.load(folder / "o.npy").tolist() == expected(["a"]).tolist()
    assert model.decodes == []


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
@pytest.mark.parametrize("source", [[], [unreadable(1), Record(text="nan", place="x")]], ids=["no text", "all bad"])
def test_nothing_makes_an_empty_output(folder, output_format, precision, source):
    """It is of the right kind and length, and nothing is wrong with it."""
    progress = run(folder / "out", source, SKIPPING, output_format=output_format, precision=precision)
    assert (progress.n_rows, progress.n_failed) == (0, len(source))
    dim = 1 if precision == "binary" else 4
    if output_format == "npy":
        assert np.load(folder / "out").shape == (0, dim)
    elif output_format == "parquet":
        assert pq.read_table(folder / "out")["embedding"].type.list_size == dim
    else:
        assert (folder / "out").read_bytes() == (b"[]\n" if output_format == "json" else b"")
    assert not list(folder.glob("*.partial"))


def test_a_job_that_is_done_begins_anew(folder):
    """A file that is there is replaced, and another input is another job."""
    run(folder / "o.npy")
    run(folder / "o.npy", records_of(["a"]), identity=["other.txt"])
    assert np.load(folder / "o.npy").tolist() == expected(["a"]).tolist()


# Kill -9 anywhere

MIXED = [
    *records_of(TEXTS[:3], with_ids=True), unreadable(4), Record(text="a nan", place="in.txt, line 5"),
    *records_of(TEXTS[3:6]), Record(text="a " * 60, id=7, place="in.txt, line 9"), Record(text="\ud800", place="p"),
    *records_of(TEXTS[6:], with_ids=True), unreadable(12),
]  # fmt: skip
CASES = {
    "npy": (None, JobOptions(), {}),
    "npy int8": (None, JobOptions(), {"precision": "int8"}),
    "npy chunks": (None, CHUNKED, {}),
    "npy mixed": (MIXED, SKIPPING, {}),
    "jsonl mixed": (MIXED, dataclasses.replace(SKIPPING, with_text=False), {}),
    "jsonl means": (None, JobOptions(chunking=Chunking(long="mean", n_tokens=3)), {}),
    "parquet chunks": (MIXED, dataclasses.replace(CHUNKED, skips_bad=True), {}),
    "base64": (None, JobOptions(), {"precision": "float16"}),
    "json": (None, JobOptions(), {"precision": "uint8"}),
    "npy empty": ([unreadable(1)], SKIPPING, {}),
}


def job_of(case, path, model, **more):
    source, options, how = CASES[case]
    return run(path, source, options, model=model, output_format=case.split()[0], **how, **more)


def undisturbed(case, folder, disk, suffix=""):
    """Run a case to its end; returns its files, its steps, and how many texts were decoded."""
    name = f"out{suffix}.{case.split()[0]}"
    whole = folder / "whole"
    whole.mkdir()
    disk.begin()
    model = FakeModel(shows_batch=True)
    model.on_decode = lambda: disk.step("decode")
    job_of(case, whole / name, model)
    return snapshot(whole), disk.n_steps, len(model.decoded), name


def steps_of(case, disk):
    """Every step; where only the end differs from other cases, each fourth before the last commit begins."""
    n_steps = disk.n_steps
    last = n_steps - disk.names[::-1].index("decode") if "decode" in disk.names else 0
    return [at for at in range(1, n_steps + 1) if case.startswith("npy") or at >= last or at % 4 == 1]


@pytest.mark.parametrize("case", CASES)
def test_a_job_that_is_killed_anywhere_goes_on(folder, disk, case):
    """At any step: the next run makes the same files, leaves nothing else, and repeats one block at most."""
    wanted, n_steps, n_decoded, name = undisturbed(case, folder, disk)
    assert n_steps > 20
    wrong = {}
    for kill_at in steps_of(case, disk):
        here = folder / str(kill_at)
        here.mkdir()
        model = FakeModel(shows_batch=True)
        model.on_decode = lambda: disk.step("decode")
        disk.begin(kill_at=kill_at)
        with pytest.raises(Killed) as killed:
            job_of(case, here / name, model)
        disk.begin()
        what = f"{kill_at} {killed.value}"
        killed_with_output = (here / name).exists()
        has_checkpoint = (here / f"{name}.partial" / "checkpoint.json").exists()
        try:
            job_of(case, here / name, model)
        except Exception as error:  # noqa: BLE001 - told with its step below
            wrong[what] = repr(error)
            continue
        found = snapshot(here)
        if not same_files(found, wanted):
            wrong[what] = sorted(set(found) ^ set(wanted)) or "other bytes"
        # A text without a finite row is decoded alone, too; a text of several blocks is committed whole.
        n_again = 15 if "chunks" in case else 2 * BLOCK
        is_over = killed_with_output and not has_checkpoint  # what comes then is another job
        if what not in wrong and not is_over and len(model.decoded) > n_decoded + n_again:
            wrong[what] = f"{len(model.decoded)} texts decoded instead of {n_decoded}"
    assert wrong == {}


@pytest.mark.parametrize("case", ["npy", "npy mixed", "parquet chunks"])
def test_a_job_that_is_killed_twice_goes_on(folder, disk, case):
    """The second time while it goes on, at any step."""
    wanted, n_steps, _, name = undisturbed(case, folder, disk)
    wrong = {}
    for first in Random(1).sample(range(2, n_steps + 1), 6):
        for second in Random(first).sample(range(1, n_steps + 1), 3):
            here = folder / f"{first} {second}"
            here.mkdir()
            try:
                for kill_at in (first, second, None):
                    disk.begin(kill_at=kill_at)
                    with contextlib.suppress(Killed):
                        job_of(case, here / name, FakeModel(shows_batch=True))
            except Exception as error:  # noqa: BLE001 - told with its steps below
                wrong[first, second] = repr(error)
                continue
            disk.begin()
            if list(here.glob("*.partial")):  # the second kill came after all was done, and began anew
                job_of(case, here / name, FakeModel(shows_batch=True))
            if not same_files(snapshot(here), wanted):
                wrong[first, second] = sorted(set(snapshot(here)) ^ set(wanted)) or "other bytes"
    assert wrong == {}


def test_with_a_cache_no_text_is_decoded_twice(folder, disk, tmp_path):
    """Killed at any step, what was decoded in a whole block is not decoded again."""
    _, n_steps, _, name = undisturbed("npy", folder, disk)
    source, options, _ = CASES["npy"]
    for kill_at in range(1, n_steps + 1, 3):
        here = folder / str(kill_at)
        here.mkdir()
        model = FakeModel()
        with VectorCache(tmp_path / f"{kill_at}.sqlite", limit_bytes=1 << 30) as cache:
            cached = dataclasses.replace(options, cache=cache)
            for at in (kill_at, None):
                disk.begin(kill_at=at)
                with contextlib.suppress(Killed):
                    run(here / name, source, cached, model=model)
        assert sorted(model.decoded) == sorted(set(TEXTS)), f"killed at {kill_at}"


def test_kill_9_itself(folder, tmp_path):
    """A process that is killed by the system, as often as it takes, makes the same file."""
    code = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from fake_model import FakeModel, embedder_over
        from gguf_embed.jobs.job import Job, JobOptions
        from gguf_embed.jobs.outputs import Output
        from gguf_embed.jobs.records import Record
        from gguf_embed.stream import pipeline
        pipeline._N_PIECES_BLOCK = 10
        class Quiet:
            on_progress = on_bad = staticmethod(lambda *_: None)
        model = FakeModel(shows_batch=True)
        model.on_decode = lambda: time.sleep(float(sys.argv[2]))
        source = [Record(text=f"a {{'b ' * (at % 7)}}{{at}}", place=f"p {{at}}") for at in range(200)]
        job = Job(embedder_over(model), source, JobOptions(), observer=Quiet())
        progress = job.run(Path(sys.argv[1]), Output(output_format="npy"), source_identity=None)
        print(progress.n_resumed, len(model.decoded))
    """)
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}

    def start(name, seconds):
        return subprocess.Popen([sys.executable, "-c", code, str(folder / name), str(seconds)], env=environ,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    whole = start("whole.npy", 0)
    child = start("killed.npy", 0.05)
    checkpoint = folder / "killed.npy.partial" / "checkpoint.json"
    until = time.monotonic() + 60
    while not checkpoint.exists() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(0.2)
    child.kill()
    _, error = child.communicate()
    assert child.returncode == -signal.SIGKILL, error.decode()
    out, error = start("killed.npy", 0).communicate()
    assert error == b""
    n_resumed, n_decoded = map(int, out.split())
    assert n_resumed >= 10
    assert n_resumed + n_decoded == 200
    assert whole.communicate()[1] == b""
    for end in (".npy", ".npy.meta.json"):
        assert (folder / f"killed{end}").read_bytes() == (folder / f"whole{end}").read_bytes()


# Full disks, other processes, other jobs


@pytest.mark.parametrize("case", ["npy", "npy int8", "jsonl mixed", "parquet chunks"])
def test_a_full_disk_is_told_and_the_work_is_kept(folder, disk, case):
    """From any step on: StorageError, and with room again the same call goes on."""
    wanted, n_steps, _, name = undisturbed(case, folder, disk)
    wrong = {}
    for full_from in range(1, n_steps + 1, 2):
        here = folder / str(full_from)
        here.mkdir()
        model = FakeModel(shows_batch=True)
        disk.begin(full_from=full_from)
        try:
            job_of(case, here / name, model)
        except StorageError as error:
            if name not in str(error) or not isinstance(error.__cause__, OSError):
                wrong[full_from] = f"says {error}"
        except Exception as error:  # noqa: BLE001 - told with its step below
            wrong[full_from] = f"raises {error!r}"
        else:
            if {"write", "open", "mkdir"} & set(disk.names[full_from - 1 :]):
                wrong[full_from] = "raises nothing"
        disk.begin()
        try:
            job_of(case, here / name, model)
        except Exception as error:  # noqa: BLE001 - told with its step below
            wrong[full_from] = f"then raises {error!r}"
            continue
        if not same_files(snapshot(here), wanted):
            wrong[full_from] = f"then makes {sorted(set(snapshot(here)) ^ set(wanted)) or 'other bytes'}"
    assert wrong == {}


def test_a_full_disk_says_that_it_is_full(folder, disk):
    """And what to do."""
    disk.begin(full_from=12)
    with pytest.raises(StorageError, match=r"o\.npy.*disk is full.*run the same command again") as caught:
        run(folder / "o.npy")
    assert caught.value.__cause__.errno == errno.ENOSPC


def stopped_after(n_blocks, path, source=None, options=None, **more):
    """Run a job that is asked to stop after some blocks."""
    asked = itertools.count(1)
    with pytest.raises(JobStoppedError):
        run(path, source, options, should_stop=lambda: next(asked) >= n_blocks, **more)


def test_a_job_that_is_stopped_keeps_everything(folder):
    """Its next run decodes what is left and nothing else."""
    first, second = FakeModel(shows_batch=True), FakeModel(shows_batch=True)
    stopped_after(2, folder / "o.npy", model=first)
    assert not (folder / "o.npy").exists()
    progress = run(folder / "o.npy", model=second)
    assert (len(first.decoded), len(second.decoded)) == (6, 2)
    assert (progress.n_resumed, progress.n_rows) == (6, 8)
    run(folder / "whole.npy", model=FakeModel(shows_batch=True))
    assert (folder / "o.npy").read_bytes() == (folder / "whole.npy").read_bytes()


OTHERS = {
    "the model": ({"model": FakeModel("other")}, "model"),
    "the length": ({"truncate_dim": 2}, "dim"),
    "the prompt": ({"options": JobOptions(encode=EncodeOptions(prompt="a "))}, "prompt"),
    "the vectors' length": ({"options": JobOptions(encode=EncodeOptions(normalize_embeddings=False))}, "normalized"),
    "chunks": ({"options": CHUNKED}, "chunk"),
    "truncation": ({"options": JobOptions(encode=EncodeOptions(truncate="end"))}, "long_texts"),
    "texts": ({"options": JobOptions(with_text=False)}, "with_text"),
    "the input's name": ({"identity": ["other.txt"]}, "other.txt"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_job_does_not_go_on_with_this_one_s_work(folder, what):
    """JobError says what differs and what to do; nothing is lost, and --restart begins anew."""
    more, word = OTHERS[what]
    stopped_after(1, folder / "o.npy")
    before = snapshot(folder)
    with pytest.raises(JobError, match=word) as caught:
        run(folder / "o.npy", **more)
    assert "--restart" in str(caught.value)
    assert caught.value.path == folder / "o.npy.partial"
    assert snapshot(folder) == before
    run(folder / "o.npy", **more, restarts=True)
    run(folder / "wanted.npy", **more)
    assert (folder / "o.npy").read_bytes() == (folder / "wanted.npy").read_bytes()


def test_a_job_that_begins_anew_has_rows_of_its_own(folder):
    """After --restart each text has its vector in formats that are written from the work in progress, too."""
    stopped_after(2, folder / "o.parquet")
    run(folder / "o.parquet", records_of(TEXTS[::-1]), restarts=True)
    table = pq.read_table(folder / "o.parquet")
    assert table["text"].to_pylist() == TEXTS[::-1]
    assert np.array(table["embedding"].to_pylist(), dtype=np.float32).tolist() == expected(TEXTS[::-1]).tolist()


CHANGES = {
    "an earlier text": lambda source: [Record(text="other", place="in.txt, line 1"), *source[1:]],
    "an earlier id": lambda source: [dataclasses.replace(source[0], id="x"), *source[1:]],
    "a text less": lambda source: source[1:],
    "a text more": lambda source: [source[0], *source],
    "another order": lambda source: [source[1], source[0], *source[2:]],
    "fewer than were done": lambda source: source[:2],
    "none": lambda source: [],
    "unreadable": lambda source: [unreadable(1), *source[1:]],
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_input_does_not_go_on(folder, what):
    """What was done is compared with what is there now: JobError, and nothing is lost."""
    stopped_after(1, folder / "o.npy")
    source = records_of(TEXTS)
    before = snapshot(folder)
    model = FakeModel()
    with pytest.raises(JobError, match=r"differs within its first 3 texts.*--restart"):
        run(folder / "o.npy", CHANGES[what](source), SKIPPING, model=model)
    assert model.decodes == []
    assert snapshot(folder) == before
    run(folder / "o.npy", source)
    assert np.load(folder / "o.npy").tolist() == expected().tolist()


def test_an_input_that_has_grown_goes_on(folder):
    """What comes after what was done may change: a log that grows, a line that was mended."""
    stopped_after(1, folder / "o.npy")
    run(folder / "o.npy", records_of([*TEXTS[:3], "mended", *TEXTS[4:], "new"]))
    wanted = expected([*TEXTS[:3], "mended", *TEXTS[4:], "new"])
    assert np.load(folder / "o.npy").tolist() == wanted.tolist()


def test_an_input_that_has_shrunk_to_what_was_done_is_done(folder):
    """Nothing is left to do, and the output has what was done."""
    stopped_after(1, folder / "o.npy")
    model = FakeModel()
    run(folder / "o.npy", records_of(TEXTS[:3]), model=model)
    assert np.load(folder / "o.npy").tolist() == expected(TEXTS[:3]).tolist()
    assert model.decodes == []


def test_format_and_precision_may_change_before_the_end(folder):
    """The work in progress is of neither."""
    stopped_after(2, folder / "out", output_format="npy")
    run(folder / "out", output_format="parquet", precision="int8")
    found = pq.read_table(folder / "out")["embedding"].to_pylist()
    assert found == quantize_embeddings(expected(), "int8").tolist()


def test_a_job_that_had_ended_is_not_done_for_another_format(folder, disk):
    """Killed while it cleared up after an npy, it makes the Parquet file that is asked for now."""
    run(folder / "whole.parquet")
    disk.begin()
    run(folder / "out", output_format="npy")
    ends = range(disk.n_steps - disk.names[::-1].index("replace") + 1, disk.n_steps + 1)
    for kill_at in ends:
        (folder / "out").unlink(missing_ok=True)
        disk.begin(kill_at=kill_at)
        with pytest.raises(Killed):
            run(folder / "out", output_format="npy")
        disk.begin()
        run(folder / "out", output_format="parquet")
        assert pq.read_table(folder / "out").equals(pq.read_table(folder / "whole.parquet"))


def test_a_job_that_had_ended_is_not_done_for_another_input(folder, disk):
    """Killed while it cleared up, the next run of a changed input is told or begins anew, and is never called done."""
    disk.begin()
    run(folder / "out", output_format="npy")
    ends = range(disk.n_steps - disk.names[::-1].index("replace") + 1, disk.n_steps + 1)
    other = ["c", *TEXTS[1:]]
    for kill_at in ends:
        disk.begin(kill_at=kill_at)
        with pytest.raises(Killed):
            run(folder / "out", output_format="npy")
        disk.begin()
        with contextlib.suppress(JobError):
            run(folder / "out", records_of(other), output_format="npy")
            assert np.load(folder / "out").tolist() == expected(other).tolist()
        run(folder / "out", output_format="npy", restarts=True)


@pytest.mark.parametrize("output_format", ["npy", "parquet"])
def test_clearing_up_may_be_cut_short_in_any_order(folder, monkeypatch, output_format):
    """Whichever files are gone with the checkpoint, which goes first, the same call ends well."""
    whole = folder / "whole"
    whole.mkdir()
    run(whole / "out", output_format=output_format)
    monkeypatch.setattr(spool_module.Spool, "remove", spool_module.Spool.close)
    names = ("vectors.npy", "rows.jsonl", "lock")
    wrong = {}
    for gone in ((), *(("checkpoint.json", *some) for n in range(4) for some in itertools.combinations(names, n))):
        here = folder / " ".join(gone or ["none"])
        here.mkdir()
        run(here / "out", output_format=output_format)
        for name in gone:
            (here / "out.partial" / name).unlink(missing_ok=True)
        try:
            run(here / "out", output_format=output_format)
        except Exception as error:  # noqa: BLE001 - told with the files below
            wrong[gone] = repr(error)
        if (here / "out").read_bytes() != (whole / "out").read_bytes():
            wrong[gone] = "other bytes"
    assert wrong == {}


def test_a_second_process_is_turned_away(folder):
    """While one runs, another one at the same output is told so, --restart or not; the first one is not disturbed."""
    told = []

    class Second(Watcher):
        def on_progress(self, progress):
            for restarts in (False, True):
                with pytest.raises(JobError, match="another process is writing") as caught:
                    run(folder / "o.npy", restarts=restarts)
                told.append(caught.value)

    run(folder / "o.npy", observer=Second())
    assert told
    assert np.load(folder / "o.npy").tolist() == expected().tolist()


def test_a_second_process_that_comes_at_the_end_disturbs_nothing(folder, monkeypatch):
    """While the first one clears up it is turned away; neither sees the other's files vanish."""
    sweep, outcome = spool_module.Spool._sweep, []

    def swept(self, *, keep):
        if not keep and not outcome:
            outcome.append("")
            with pytest.raises(JobError, match="another process is writing"):
                run(folder / "o.npy")
            outcome.append("turned away")
        sweep(self, keep=keep)

    monkeypatch.setattr(spool_module.Spool, "_sweep", swept)
    run(folder / "o.npy")
    assert outcome == ["", "turned away"]
    assert np.load(folder / "o.npy").tolist() == expected().tolist()


# Bad texts


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (unreadable(5), InvalidTextError),
        (Record(text="a\0", place="in.txt, line 5"), InvalidTextError),
        (Record(text="\ud800", place="in.txt, line 5"), InvalidTextError),
        (Record(text="a " * 60, place="in.txt, line 5"), TextTooLongError),
        (Record(text="nan", place="in.txt, line 5"), GGUFEmbedError),
    ],
    ids=["unreadable", "NUL", "surrogate", "too long", "not finite"],
)
def test_a_bad_text_stops_the_job_or_is_skipped(folder, bad, error):
    """Stopped, it names the text and goes on once that is mended; skipped, it is told once and counted."""
    source = records_of(TEXTS)
    broken = [*source[:4], bad, *source[5:]]
    with pytest.raises(error, match=r"in\.txt, line 5"):
        run(folder / "stop.npy", broken)
    assert not (folder / "stop.npy").exists()
    progress = run(folder / "stop.npy", source)
    # A text that cannot be read ends its block, and those before it are kept; one that cannot be embedded is in it.
    assert progress.n_resumed == (4 if isinstance(bad, BadRecord) else BLOCK)
    assert np.load(folder / "stop.npy").tolist() == expected().tolist()
    watcher = Watcher()
    progress = run(folder / "skip.npy", broken, SKIPPING, observer=watcher)
    assert [place for place, _ in watcher.bad] == ["in.txt, line 5"]
    assert (progress.n_records, progress.n_rows, progress.n_failed) == (8, 7, 1)
    assert np.load(folder / "skip.npy").tolist() == expected(TEXTS[:4] + TEXTS[5:]).tolist()


def test_a_job_that_stopped_at_a_bad_text_can_skip_it(folder):
    """--on-error skip goes on with the same work."""
    source = [*records_of(TEXTS[:5]), unreadable(6), *records_of(TEXTS[5:])]
    with pytest.raises(InvalidTextError):
        run(folder / "o.npy", source)
    progress = run(folder / "o.npy", source, SKIPPING)
    assert (progress.n_resumed, progress.n_rows, progress.n_failed) == (5, 8, 1)


def test_bad_texts_of_before_are_counted_and_not_told_again(folder):
    """After an interruption the totals are those of the whole job."""
    source = [unreadable(1), *records_of(["nan", "a", "b", "c", "a b"]), unreadable(8)]
    stopped_after(1, folder / "o.npy", source, SKIPPING)
    watcher = Watcher()
    progress = run(folder / "o.npy", source, SKIPPING, observer=watcher)
    whole = run(folder / "whole.npy", source, SKIPPING)
    assert (progress.n_records, progress.n_rows, progress.n_failed) == (7, 4, 3)
    assert (whole.n_records, whole.n_rows, whole.n_failed) == (7, 4, 3)
    assert [place for place, _ in watcher.bad] == ["in.txt, line 8"]


def test_what_is_no_error_of_a_text_ends_the_job_however_bad_ones_are_treated(folder):
    """The disk of the input, a decode that fails: skipping is for texts."""

    def source():
        yield from records_of(TEXTS[:5])
        raise InputError("in.txt cannot be read: Input/output error")

    with pytest.raises(InputError):
        run(folder / "o.npy", source(), SKIPPING)
    assert run(folder / "o.npy").n_resumed == 5


# Counts


def test_progress_adds_up(folder, tmp_path):
    """Rows, texts, tokens, what came from the cache and what was cut."""
    source = [*records_of(["a", "b b", "a", "a " * 60, "nan", "c"]), unreadable(7)]
    with VectorCache(tmp_path / "v.sqlite", limit_bytes=1 << 30) as cache:
        options = JobOptions(skips_bad=True, cache=cache, chunking=Chunking(long="truncate"))
        model, watcher = FakeModel(), Watcher()
        first = run(folder / "o.npy", source, options, model=model, observer=watcher)
        again = run(folder / "o.npy", source, options)  # the text without a finite row is tried again
    assert (first.n_records, first.n_rows, first.n_failed, first.n_truncated) == (7, 5, 2, 1)
    assert (first.n_cached, first.n_resumed) == (0, 0)
    assert (again.n_cached, again.n_decoded, again.n_tokens, again.n_truncated, again.n_failed) == (5, 1, 2, 1, 2)
    for name in ("n_records", "n_rows", "n_failed", "n_tokens", "n_decoded"):
        counts = [getattr(one, name) for one in watcher.seen]
        assert counts == sorted(counts)
    assert watcher.seen[-1].n_rows == 5


def test_what_was_decoded_is_counted(folder):
    """Each decoded text and its tokens once."""
    model = FakeModel()
    progress = run(folder / "o.npy", records_of(["a", "b b", "c c c", "a b c a"]), model=model)
    assert progress.n_decoded == len(model.decoded) == 4
    assert progress.n_tokens == sum(map(n_tokens_of, model.decoded))


def test_equal_texts_are_not_counted_as_decoded(folder):
    """Of ten equal texts of a block one is decoded."""
    model = FakeModel()
    progress = run(folder / "o.npy", records_of(["a", "a", "a"]), model=model)
    assert progress.n_decoded == len(model.decoded) == 1


def test_the_clock_is_this_run_s(folder):
    """Seconds count from the job's making."""
    now = SimpleNamespace(s=100.0)
    watcher = Watcher()
    run(folder / "o.npy", observer=watcher, clock=lambda: now.s)
    assert {one.seconds for one in watcher.seen} == {0.0}
    assert Progress().seconds == 0.0


def test_a_job_that_had_ended_still_tells_its_counts(folder, disk):
    """Killed while it cleared up, the next run says how many rows there are."""
    disk.begin()
    run(folder / "o.npy")
    place = disk.n_steps - disk.names[::-1].index("replace") + 1
    disk.begin(kill_at=place)
    with pytest.raises(Killed):
        run(folder / "o.npy")
    disk.begin()
    assert run(folder / "o.npy").n_rows == 8


# Outputs that are not plain files in a plain folder


@pytest.mark.skipif(os.name == "nt", reason="needs a right on Windows")
@pytest.mark.parametrize("output_format", ["npy", "jsonl", "parquet"])
@pytest.mark.parametrize("is_there", [True, False], ids=["to a file", "to nothing yet"])
def test_a_link_stays_a_link(folder, output_format, is_there):
    """What it leads to is replaced."""
    real = folder / "far"
    real.mkdir()
    if is_there:
        (real / "real").write_text("old")
    (folder / "link").symlink_to(real / "real")
    run(folder / "link", output_format=output_format)
    assert (folder / "link").is_symlink()
    run(folder / "plain", output_format=output_format)
    assert (real / "real").read_bytes() == (folder / "plain").read_bytes()
    assert not list(folder.glob("*.partial"))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")  # noqa: S108 - one of Linux
def test_a_link_to_another_disk_is_followed(folder, tmp_path):
    """The vectors get there though they cannot be moved."""
    import tempfile  # noqa: PLC0415 - only here

    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if Path(other).stat().st_dev == folder.stat().st_dev:
            pytest.skip("one file system")
        (folder / "o.npy").symlink_to(Path(other) / "o.npy")
        run(folder / "o.npy")
        assert np.load(Path(other) / "o.npy").tolist() == expected().tolist()
        assert sorted(os.listdir(other)) == ["o.npy", "o.npy.meta.json"]  # noqa: PTH208 - names


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize("output_format", FORMATS)
def test_a_replaced_file_keeps_its_mode(folder, output_format):
    """Vectors in a private file stay private."""
    (folder / "out").write_text("old")
    (folder / "out").chmod(0o600)
    run(folder / "out", output_format=output_format)
    assert stat.S_IMODE((folder / "out").stat().st_mode) == 0o600


def test_a_folder_in_the_way_is_a_storage_error(folder):
    """Where the output, or what lies beside it, should go."""
    for number, suffix in enumerate(("", ".meta.json", ".rows.jsonl")):
        output = folder / f"{number}.npy"
        Path(f"{output}{suffix}").mkdir()
        with pytest.raises(StorageError):
            run(output, records_of(TEXTS, with_ids=True))
        Path(f"{output}{suffix}").rmdir()
        model = FakeModel()
        run(output, records_of(TEXTS, with_ids=True), model=model)
        assert model.decodes == []
    (folder / "p.npy.partial").write_text("a file")
    with pytest.raises(StorageError):
        run(folder / "p.npy")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_told_before_anything_is_embedded(folder):
    """With the file's name."""
    folder.chmod(0o500)
    model = FakeModel()
    try:
        with pytest.raises(StorageError, match=r"o\.npy"):
            run(folder / "o.npy", model=model)
    finally:
        folder.chmod(0o700)
    assert model.decodes == []


def test_a_folder_that_is_not_there_is_told_before_anything_is_embedded(folder):
    """With the file's name."""
    model = FakeModel()
    with pytest.raises(StorageError, match=r"o\.npy"):
        run(folder / "none" / "o.npy", model=model)
    assert model.decodes == []


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 elsewhere")
@pytest.mark.parametrize("output_format", ["npy", "jsonl", "parquet"])
def test_an_input_whose_name_is_no_utf8_is_read(folder, output_format):
    """Its place is written somehow; the job does not break off."""
    name = os.fsdecode(b"caf\xe9.txt")
    source = [Record(text=text, id=at, place=f"{name}, line {at + 1}") for at, text in enumerate(TEXTS)]
    assert run(folder / "out", source, output_format=output_format).n_rows == 8


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 elsewhere")
def test_an_input_path_that_is_no_utf8_is_an_identity(folder):
    """The job goes on with it, too."""
    name = os.fsdecode(b"/caf\xe9.txt")
    stopped_after(1, folder / "o.npy", identity=[name])
    assert run(folder / "o.npy", identity=[name]).n_resumed == 3


# Through the command line


@pytest.fixture
def shell(monkeypatch, capsysbinary):
    """Run `embed` in this process over a fake model: (code, stdout, stderr); `model` has its decodes."""
    model = FakeModel(shows_batch=True)
    monkeypatch.setattr("gguf_embed.embedder.Embedder", lambda *_, **__: embedder_over(model))

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsysbinary.readouterr()
        code = run_cli(["embed", *map(str, arguments)])
        sys.stdout.flush()
        out, err = capsysbinary.readouterr()
        return SimpleNamespace(code=code, out=out, err=err.decode())

    call.model = model
    return call


def test_a_job_is_a_file_to_a_file(shell, tmp_path):
    """Nothing on stdout, totals on stderr; the second run finds all in the cache."""
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    done = shell("-i", tmp_path / "in.txt", "-o", tmp_path / "o.npy")
    assert (done.code, done.out) == (0, b"")
    assert "8 rows" in done.err
    n_decodes = len(shell.model.decodes)
    shell("-i", tmp_path / "in.txt", "-o", tmp_path / "o.npy")
    assert len(shell.model.decodes) == n_decodes


def test_a_killed_command_goes_on(shell, disk, folder, tmp_path):
    """The same words again."""
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    words = ("-i", tmp_path / "in.txt", "--no-cache", "-o")
    shell(*words, folder / "whole.npy")
    disk.begin(kill_at=35)
    with pytest.raises(Killed):
        shell(*words, folder / "o.npy")
    disk.begin()
    n_before = len(shell.model.decoded)
    done = shell(*words, folder / "o.npy")
    assert done.code == 0
    assert "resumed" in done.err
    assert len(shell.model.decoded) - n_before < 8
    assert (folder / "o.npy").read_bytes() == (folder / "whole.npy").read_bytes()


def test_another_command_is_told_apart(shell, disk, folder, tmp_path):
    """A JobError is an exit code and a message, and --restart is what it says."""
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    words = ("-i", tmp_path / "in.txt", "-o", folder / "o.npy")
    disk.begin(kill_at=35)
    with pytest.raises(Killed):
        shell(*words)
    disk.begin()
    done = shell(*words, "--as", "query")
    assert done.code not in (0, 1)
    assert "prompt was '' and is 'q: '" in done.err
    assert shell(*words, "--as", "query", "--restart").code == 0
    assert not list(folder.glob("*.partial"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no /dev/null")
@pytest.mark.parametrize("output_format", FORMATS)
def test_dev_null_takes_everything(shell, tmp_path, output_format):
    """It is written to, and neither replaced nor given a folder beside it."""
    (tmp_path / "in.txt").write_text("a\nb\n")
    assert shell("-i", tmp_path / "in.txt", "-o", "/dev/null", "-f", output_format).code == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert not Path("/dev/null.partial").exists()


def test_an_output_inside_the_input_s_folder(shell, disk, tmp_path):
    """Work in progress is no input: `-i notes -o notes/o.npy` goes on after a kill, too."""
    wanted = None
    for kill_at in (None, 30, 45):
        notes = tmp_path / "outputs" / f"notes {kill_at}"
        notes.mkdir(parents=True)
        for at, text in enumerate(TEXTS):
            (notes / f"{'az'[at % 2]} {at}.md").write_text(text)
        words = ("-i", notes, "-o", notes / "o.npy", "--no-cache")
        disk.begin(kill_at=kill_at)
        with contextlib.suppress(Killed):
            assert shell(*words).code == 0
        disk.begin()
        if kill_at is not None:
            done = shell(*words)
            assert (done.code, done.err.count("error")) == (0, 0), done.err
        ids = [json.loads(line)["id"] for line in (notes / "o.npy.rows.jsonl").read_text().splitlines()]
        assert ids == sorted(f"{'az'[at % 2]} {at}.md" for at in range(8))
        found = (notes / "o.npy").read_bytes()
        assert wanted in (None, found)
        wanted = found


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 elsewhere")
def test_a_file_whose_name_is_no_utf8(shell, folder, tmp_path):
    """Its texts are embedded."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_text("a\nb\n")
    assert shell("-i", path, "-o", folder / "o.npy").code == 0
    assert len(np.load(folder / "o.npy")) == 2


def test_stdin_to_a_file_goes_on_where_the_same_is_piped_again(shell, disk, folder):
    """And another pipe is another input."""
    content = "".join(f"{text}\n" for text in TEXTS).encode()
    disk.begin(kill_at=35)
    with pytest.raises(Killed):
        shell("-o", folder / "o.npy", stdin=content)
    disk.begin()
    assert shell("-o", folder / "o.npy", stdin=b"other\n" + content).code not in (0, 1)
    done = shell("-o", folder / "o.npy", stdin=content)
    assert done.code == 0
    assert len(np.load(folder / "o.npy")) == 8


def test_events_tell_of_a_job_as_json(shell, folder, tmp_path):
    """--json: a start, every bad text and the end, one object a line, and nothing else on stdout."""
    (tmp_path / "in.txt").write_bytes(b"a\n\xff\nb\n")
    done = shell("-i", tmp_path / "in.txt", "-o", folder / "o.npy", "--json", "--on-error", "skip")
    told = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0
    assert (told[0]["event"], told[-1]["event"]) == ("start", "done")
    assert [one["place"] for one in told if one["event"] == "bad"] == [f"{tmp_path / 'in.txt'}, line 2"]
    assert (told[-1]["n_rows"], told[-1]["n_failed"], told[-1]["fraction"]) == (2, 1, 1.0)


def test_an_interrupted_job_says_what_is_kept(shell, folder, tmp_path, monkeypatch):
    """Ctrl-C: code 130, and the same command goes on."""
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    n_decodes = itertools.count(1)
    shell.model.on_decode = lambda: next(n_decodes) == 3 and os.kill(os.getpid(), signal.SIGINT)
    done = shell("-i", tmp_path / "in.txt", "-o", folder / "o.npy")
    assert done.code == 130
    assert "rows are kept, and the same command goes on" in done.err
    shell.model.on_decode = lambda: None
    assert shell("-i", tmp_path / "in.txt", "-o", folder / "o.npy").code == 0
    assert len(np.load(folder / "o.npy")) == 8


def test_a_bad_record_has_its_place_as_identity():
    """Two bad records of one place are the same record to a job that goes on."""
    assert isinstance(unreadable(1), BadRecord)
    assert unreadable(1).place == unreadable(1).place != unreadable(2).place


# What lay there before


def test_an_output_is_never_touched_before_it_is_replaced(folder, disk):
    """Killed anywhere while it clears up, and dead again at its first decode: what was put in place is still whole."""
    disk.begin()
    run(folder / "whole.npy")
    wanted = (folder / "whole.npy").read_bytes()
    n_steps = disk.n_steps
    for kill_at in range(n_steps - 8, n_steps + 1):
        output = folder / f"{kill_at}.npy"
        disk.begin(kill_at=kill_at)
        with contextlib.suppress(Killed):
            run(output)
        disk.begin()
        if not output.exists():
            continue
        model = FakeModel()
        model.on_decode = lambda: 1 / 0
        with contextlib.suppress(ZeroDivisionError):
            run(output, records_of([*TEXTS, "more"]), model=model)
        assert output.read_bytes() == wanted


def test_strangers_in_the_folder_stay(folder):
    """A folder of that name that was there before keeps what it had."""
    (folder / "o.npy.partial").mkdir()
    (folder / "o.npy.partial" / "thesis.txt").write_text("all my work")
    run(folder / "o.npy")
    run(folder / "o.npy", restarts=True)
    assert (folder / "o.npy.partial" / "thesis.txt").read_text() == "all my work"


def test_rows_are_read_back_in_bounded_memory(folder, monkeypatch):
    """A row group holds no more bytes than it may, however long the texts are."""
    monkeypatch.setattr(spool_module, "_N_BYTES_BLOCK", 5000)
    texts = [f"{'a' * 900} {at}" for at in range(40)]
    run(folder / "o.parquet", records_of(texts))
    groups = pq.ParquetFile(folder / "o.parquet").metadata.num_row_groups
    assert groups >= 40 * 900 // 5000
    assert pq.read_table(folder / "o.parquet")["text"].to_pylist() == texts


@pytest.mark.parametrize("output_format", FORMATS)
def test_ranges_are_kept_whatever_the_format(folder, output_format):
    """int8 without its ranges could never be restored."""
    run(folder / "out", output_format=output_format, precision="int8")
    if output_format == "parquet":
        about = json.loads(pq.read_schema(folder / "out").metadata[b"gguf_embed"])
    else:
        about = json.loads((folder / "out.meta.json").read_text())
    assert about["ranges"] == calibrate(expected()).tolist()


def test_rows_stop_when_they_are_asked_to():
    """A stream to stdout ends after its block, too."""
    job = Job(embedder_over(FakeModel()), records_of(TEXTS), JobOptions(), observer=Watcher(), should_stop=lambda: True)
    rows = job.rows()
    assert len(next(rows).rows) == BLOCK
    with pytest.raises(JobStoppedError):
        next(rows)


def test_damaged_rows_are_told(folder):
    """A checkpoint whose rows are no JSON any more asks for --restart."""
    stopped_after(1, folder / "o.jsonl")
    rows = folder / "o.jsonl.partial" / "rows.jsonl"
    rows.write_bytes(b"x" * rows.stat().st_size)
    with pytest.raises(JobError, match=r"rows\.jsonl cannot be read; begin again with --restart"):
        run(folder / "o.jsonl")
