"""Jobs on real models: killed, interrupted, repeated, cut to other lengths; streams from Python."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from gguf_embed import Chunking, Embedder, EncodeOptions, Limits, VectorCache
from gguf_embed.errors import InvalidTextError, ModelLoadError, TextTooLongError
from gguf_embed.jobs.job import Job, JobOptions, JobStoppedError
from gguf_embed.jobs.outputs import Output
from gguf_embed.jobs.records import Record

PROGRAM = [sys.executable, "-c", "from gguf_embed.cli import main; main()"]
# Runs a command line and prints the process's peak memory.
PEAK = (
    "import resource, sys; from gguf_embed.cli.app import run; code = run(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)
STARTER = "all-minilm-l6-v2"
WORDS = (
    "cat",
    "sat",
    "mat",
    "while",
    "rates",
    "rose",
    "and",
    "rivers",
    "fell",
    "into",
    "slow",
    "green",
    "seas",
    "light",
)
N_LINES = 1500  # two blocks


@pytest.fixture
def lines(tmp_path):
    """Different short texts, two blocks of them."""
    return write_lines(tmp_path / "lines.txt")


def write_lines(path):
    generator = random.Random(3)
    texts = [f"{number} " + " ".join(generator.choices(WORDS, k=generator.randint(3, 12))) for number in range(N_LINES)]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, starter):
    """The same lines embedded by jobs that were left alone, in each format."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "cache").mkdir()
    (folder / "cache" / "models").symlink_to(starter.parent)
    write_lines(folder / "lines.txt")
    for suffix in (".npy", ".jsonl", ".parquet"):
        subprocess.run(
            [*PROGRAM, "embed", "-q", "-m", STARTER, "-i", folder / "lines.txt", "-o", folder / f"whole{suffix}"],
            check=True, env=os.environ | {"GGUF_EMBED_CACHE_DIR": str(folder / "cache")},
        )  # fmt: skip
    return folder


def start(*arguments, model=STARTER):
    return subprocess.Popen(
        [*PROGRAM, "embed", "-m", model, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def job(*arguments, model=STARTER, expects=0):
    """Run a job to its end; return its last event."""
    child = start(*arguments, "--json", model=model)
    out, err = child.communicate()
    assert child.returncode == expects, err
    return json.loads(out.splitlines()[-1])


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rows_are_what_encode_gives(lines, undisturbed, starter_cache):
    """Cosine 0.99999 to one call for all of them: other texts are packed together."""
    with Embedder(STARTER) as model:
        expected = model.encode(lines.read_text(encoding="utf-8").splitlines()[::10])
    rows = np.load(undisturbed / "whole.npy", mmap_mode="r")[::10]
    assert np.einsum("ij,ij->i", rows, expected).min() > 0.99999


@pytest.mark.parametrize(
    ("suffix", "cached"),
    [(".npy", "--cache"), (".npy", "--no-cache"), (".jsonl", "--no-cache"), (".parquet", "--no-cache")],
)
def test_kill_and_go_on(lines, undisturbed, tmp_path, starter_cache, suffix, cached):
    """Killed after its first block, a job ends in the same bytes as one that was left alone, and computes less."""
    whole, killed = undisturbed / f"whole{suffix}", tmp_path / f"killed{suffix}"
    child = start("-i", lines, "-o", killed, cached, "-q")
    wait_for((tmp_path / f"killed{suffix}.partial" / "checkpoint.json").exists)
    child.kill()
    child.communicate()
    assert not killed.exists()
    done = job("-i", lines, "-o", killed, cached)
    assert done["n_resumed"] >= 900
    assert done["n_resumed"] + done["n_decoded"] + done["n_cached"] == done["n_rows"] == N_LINES
    if suffix == ".parquet":
        left, right = pq.read_table(whole), pq.read_table(killed)
        assert left.equals(right)
        assert left.schema.metadata == right.schema.metadata
    else:
        assert killed.read_bytes() == whole.read_bytes()
        assert (tmp_path / f"killed{suffix}.meta.json").read_bytes() == (
            undisturbed / f"whole{suffix}.meta.json"
        ).read_bytes()
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_causal_model_with_a_prompt_goes_on_bit_for_bit(registered, tmp_path):
    """What texts begin with is kept between calls of a session; a block of a job must not hang on the blocks before."""
    texts = [f"{number} {' '.join(WORDS[number % 5 : 5 + number % 9])}" for number in range(1300)]
    records = [Record(text=text, place=f"line {number}") for number, text in enumerate(texts)]
    observer = SimpleNamespace(on_progress=lambda _: None, on_bad=None)
    how, options = Output(output_format="npy"), JobOptions(encode=EncodeOptions(prompt_name="query"))
    with Embedder(str(registered)) as model:
        Job(model, records, options, observer=observer).run(tmp_path / "whole.npy", how, source_identity=None)
        stopped = Job(model, records, options, observer=observer, should_stop=lambda: True)
        with pytest.raises(JobStoppedError):
            stopped.run(tmp_path / "o.npy", how, source_identity=None)
    with Embedder(str(registered)) as model:
        done = Job(model, records, options, observer=observer).run(tmp_path / "o.npy", how, source_identity=None)
    assert done.n_resumed > 0 < done.n_decoded
    assert (tmp_path / "o.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_ctrl_c_finishes_the_block(lines, tmp_path, starter_cache):
    """Exit code 130, what is done is kept, and the same command goes on."""
    output = tmp_path / "out.npy"
    child = start("-i", lines, "-o", output, "--no-cache")
    wait_for((tmp_path / "out.npy.partial" / "checkpoint.json").exists)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode == 130
    assert "Ctrl-C again stops at once" in err
    assert "rows are kept, and the same command goes on" in err
    kept = json.loads((tmp_path / "out.npy.partial" / "checkpoint.json").read_text(encoding="utf-8"))["n_rows"]
    assert f"{kept:,} rows are kept" in err
    assert job("-i", lines, "-o", output, "--no-cache")["n_resumed"] == kept >= 900


def test_the_second_run_decodes_nothing(lines, tmp_path, starter_cache):
    """Not for another format or precision either, and the model is not even loaded."""
    assert job("-i", lines, "-o", tmp_path / "a.npy")["n_decoded"] == N_LINES
    for options in (("b.npy",), ("b.jsonl",), ("b.parquet", "--precision", "int8"), ("c.npy", "--no-normalize")):
        done = job("-i", lines, "-o", tmp_path / options[0], *options[1:])
        assert (done["n_decoded"], done["n_tokens"], done["n_cached"]) == (0, 0, N_LINES)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_another_dim_decodes_nothing(registered, tmp_path):
    """A vector is kept at full length, so that every MRL dimension comes from it."""
    (tmp_path / "in.txt").write_text("\n".join(f"{number} {' '.join(WORDS)}" for number in range(30)))
    job("-i", tmp_path / "in.txt", "-o", tmp_path / "full.npy", model=str(registered))
    for dim in (128, 33):
        done = job("-i", tmp_path / "in.txt", "-o", tmp_path / f"{dim}.npy", "-d", dim, model=str(registered))
        assert (done["n_decoded"], done["n_cached"]) == (0, 30)
        full, cut = np.load(tmp_path / "full.npy"), np.load(tmp_path / f"{dim}.npy")
        by_hand = full[:, :dim] / np.linalg.norm(full[:, :dim], axis=1, keepdims=True)
        assert np.abs(cut - by_hand).max() < 1e-6
    done = job("-i", tmp_path / "in.txt", "-o", tmp_path / "query.npy", "--as", "query", model=str(registered))
    assert (done["n_decoded"], done["n_cached"]) == (30, 0)


def test_one_changed_file_of_many(tmp_path, starter_cache):
    """Only the chunks of the changed file are computed, and of these only the changed ones."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(50):
        paragraphs = [f"Paragraph {at} of note {number} tells of {' '.join(WORDS)}." for at in range(8)]
        (folder / f"{number}.md").write_text("\n\n".join(paragraphs))
    command = ("-i", folder, "-o", tmp_path / "notes.parquet", "--chunk", "64")
    first = job(*command)
    changed = folder / "17.md"
    changed.write_text(changed.read_text().replace("Paragraph 3", "Paragraph three"))
    second = job(*command)
    assert first["n_decoded"] == first["n_rows"] > 150
    assert 1 <= second["n_decoded"] <= 3
    assert second["n_rows"] == second["n_decoded"] + second["n_cached"]
    table = pq.read_table(tmp_path / "notes.parquet").to_pylist()
    for row in table:
        text = (folder / row["id"]).read_text()
        assert text[row["start"] : row["end"]] == row["text"]
        assert row["first_line"] == 1 + text.count("\n", 0, row["start"])


def test_a_disk_that_takes_no_more(lines, undisturbed, tmp_path, starter_cache):
    """Exit code 4 with what to do; with room again the same command goes on and loses nothing."""
    output = tmp_path / "out.npy"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, limit[1]))

    command = [*PROGRAM, "embed", "-m", STARTER, "-i", str(lines), "-o", str(output), "--no-cache"]
    failed = subprocess.run(command, preexec_fn=small_files, capture_output=True, text=True, check=False)
    assert failed.returncode == 4, failed.stderr
    assert "run the same command again" in failed.stderr
    assert not output.exists()
    done = job("-i", lines, "-o", output, "--no-cache")
    assert done["n_resumed"] >= 900
    assert output.read_bytes() == (undisturbed / "whole.npy").read_bytes()


def test_two_jobs_on_one_cache(lines, tmp_path, starter_cache):
    """Both end well, and one output is written by one job at a time."""
    children = [start("-i", lines, "-o", tmp_path / f"{name}.npy", "-q") for name in ("one", "two")]
    wait_for((tmp_path / "one.npy.partial" / "lock").exists)
    third = start("-i", lines, "-o", tmp_path / "one.npy", "-q")
    _, err = third.communicate()
    assert (third.returncode, "another process is writing" in err) == (2, True)
    assert [child.wait() for child in children] == [0, 0]
    for child in children:
        child.communicate()
    one, two = (np.load(tmp_path / f"{name}.npy") for name in ("one", "two"))
    assert np.einsum("ij,ij->i", one, two).min() > 0.99999


# From Python


def test_a_stream_is_in_order_and_reads_little_ahead(starter_cache):
    """An endless iterable gives its first results; errors stand where their texts stood."""
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield ("bad\0" if number == 7 else "word " * 600 if number == 9 else f"text {number}")

    with Embedder(STARTER) as model:
        results = list(itertools.islice(model.encode_stream(endless()), 1500))
        expected = model.encode(["text 0", "text 1499"])
    assert [result.id for result in results] == list(range(1500))
    assert len(read) <= 2 * 1024 + 1
    failed = {result.id: type(result.error) for result in results if result.error is not None}
    assert failed == {7: InvalidTextError, 9: TextTooLongError}
    assert str(results[9].error).startswith("text 9 has")
    assert results[9].error.index == 9
    assert np.dot(results[0].vector, expected[0]) > 0.99999 < np.dot(results[1499].vector, expected[1])


@pytest.mark.parametrize("isolation", [None, "process"])
def test_a_stream_with_a_cache(starter_cache, tmp_path, isolation):
    """Rows come back bit for bit, in this process and from a worker, bad texts or not."""
    texts = [("a", "one"), ("b", "two\0"), ("c", "three"), ("a", "one")]
    with (
        VectorCache(tmp_path / "v.sqlite", limit_bytes=1 << 30) as cache,
        Embedder(STARTER, isolation=isolation) as model,
    ):
        first = list(model.encode_stream(texts, cache=cache))
        second = list(model.encode_stream(texts, cache=cache))
    assert [result.id for result in first] == ["a", "b", "c", "a"]
    assert [result.is_cached for result in first] == [False] * 4
    assert [result.is_cached for result in second] == [True, False, True, True]
    for one, two in zip(first, second, strict=True):
        assert (one.vector is None) == (two.vector is None)
        assert one.vector is None or one.vector.tobytes() == two.vector.tobytes()
        assert one.n_tokens == two.n_tokens


def test_rows_of_another_model_are_another_key(starter, qwen3, tmp_path):
    """Another file, pooling, EOS rule or KV type gives another identity; another name for the same file does not."""
    copy = tmp_path / "copy.gguf"
    shutil.copyfile(starter, copy)

    def identity(path, **options):
        with Embedder(path, **options) as model:
            return model._model.row_identity()

    found = [
        identity(starter), identity(starter, pooling_type="cls"), identity(starter, add_eos=True),
        identity(qwen3), identity(qwen3, limits=Limits(kv_type="q8_0")),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert identity(copy) == found[0]


def test_a_file_that_is_replaced_is_not_believed(starter, tmp_path):
    """The weights in memory are not those on disk any more, so nothing is kept under their name."""
    path = tmp_path / "m.gguf"
    shutil.copyfile(starter, path)
    with Embedder(path) as model, VectorCache(tmp_path / "v.sqlite", limit_bytes=1 << 30) as cache:
        model.load()
        shutil.copyfile(starter, tmp_path / "new")
        (tmp_path / "new").replace(path)
        with pytest.raises(ModelLoadError, match="has changed since"):
            list(model.encode_stream(["a"], cache=cache))
        assert cache.info().n_rows == 0


def test_the_mean_of_chunks(starter_cache):
    """Unit vectors of the chunks weighted by their tokens; one result a text."""
    text = " ".join(f"Sentence {number} about {WORDS[number % 14]}." for number in range(80))
    with Embedder(STARTER) as model:
        chunks = list(model.encode_stream([text], chunking=Chunking(n_tokens=64, n_overlap=8, long="chunk")))
        (mean,) = model.encode_stream([text, "short"][:1], chunking=Chunking(n_tokens=64, n_overlap=8, long="mean"))
    weighted = sum(chunk.n_tokens * chunk.vector.astype(np.float64) for chunk in chunks)
    assert mean.vector == pytest.approx(weighted / np.linalg.norm(weighted), abs=1e-6)
    assert (mean.text, mean.span, mean.n_tokens) == (text, None, sum(chunk.n_tokens for chunk in chunks))
    assert len(chunks) > 5


def test_several_lengths_of_one_decode(registered):
    """Each is what encode gives for that truncate_dim, to the last bit but rounding."""
    texts = [f"{number} {' '.join(WORDS)}" for number in range(9)]
    with Embedder(str(registered)) as model:
        several = model.encode_multi_dim(texts, [256, 128, 32], EncodeOptions(prompt_name="query"))
        for dim, rows in several.items():
            assert rows.shape == (9, dim)
            assert np.abs(rows - model.encode_query(texts, truncate_dim=dim)).max() < 1e-6
        with pytest.raises(ValueError, match="truncate_dim is 16"):
            model.encode_multi_dim(texts, [256, 16])


def test_memory_does_not_grow_with_the_corpus(tmp_path, starter_cache):
    """Peak memory of 20,000 texts, read from the cache, is within 8 MiB of 2,000's."""
    peaks = []
    for n_lines in (2000, 20_000):
        path = tmp_path / f"{n_lines}.txt"
        path.write_text("\n".join(f"text {number % 1000}" for number in range(n_lines)))
        job("-i", path, "-o", path.with_suffix(".npy"))
        done = subprocess.run(
            [sys.executable, "-c", PEAK, "embed", "-m", STARTER, "-q", "-i", str(path), "-o", str(path) + ".parquet"],
            check=True, capture_output=True, text=True, env=os.environ,
        )  # fmt: skip
        peaks.append(int(done.stdout) * 1024)
    assert abs(peaks[1] - peaks[0]) < 8 << 20, peaks
