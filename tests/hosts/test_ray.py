"""ray_data.py on a real Ray of two CPUs: what actors ask, give and survive, and the example."""

from __future__ import annotations

import math
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from animals import DOCUMENTS, MODEL, QUERY

from gguf_embed import EncodeOptions, Limits
from gguf_embed.embedder import Embedder
from gguf_embed.errors import DoesNotFitError, FingerprintError, UnknownModelError
from gguf_embed.integrations import ray_data
from gguf_embed.integrations.ray_data import EmbedActor, embed_dataset

ray = pytest.importorskip("ray")
CheckpointConfig = pytest.importorskip("ray.data.checkpoint").CheckpointConfig
EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_folder.py"
PROMPTS = 'prompts = { query = "Represent this question for a search: ", document = "A passage: " }'
DIM = 384


@pytest.fixture(scope="module")
def cluster(starter, tmp_path_factory):
    """A Ray of two CPUs, whose processes find the starter model, with prompts and cuts of its own."""
    home = tmp_path_factory.mktemp("ray")
    (home / "cache").mkdir()
    (home / "cache" / "models").symlink_to(starter.parent)
    (home / "config").mkdir()
    entry = f"schema = 1\n[models.{MODEL}]\n{PROMPTS}\nmatryoshka = {{ min = 32, max = {DIM} }}\n"
    (home / "config" / "models.toml").write_text(entry, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cache", "config", "state"):
            patch.setenv(f"GGUF_EMBED_{name.upper()}_DIR", str(home / name))
        patch.setenv("HF_HUB_CACHE", str(home / "hub"))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 2 << 20  # Ray holds actors back whose next block might not go into its store
        yield home
    ray.shutdown()


@pytest.fixture
def here(cluster, monkeypatch):
    """Let this process find what the workers find, for what it is compared with."""
    for name in ("cache", "config", "state"):
        monkeypatch.setenv(f"GGUF_EMBED_{name.upper()}_DIR", str(cluster / name))
    return cluster


@pytest.fixture
def checkpointed():
    """Ray's context, as it was before."""
    context = ray.data.DataContext.get_current()
    yield context
    context.checkpoint_config = None


def texts(n_rows):
    """Different texts that take an actor some time."""
    return [f"{number} {DOCUMENTS[number % 3]} {'Then it rained. ' * 8}" for number in range(n_rows)]


def write_folder(folder, n_rows, n_files=4):
    """A folder of Parquet files with id and text."""
    folder.mkdir()
    table = pa.table({"id": range(n_rows), "text": texts(n_rows)})
    size = math.ceil(n_rows / n_files)
    for number in range(n_files):
        pq.write_table(table.slice(number * size, size), folder / f"{number}.parquet")
    return folder


def read_folder(folder):
    """What was written, by id, read without Ray."""
    return pq.read_table(folder).sort_by("id")


def cosines(table, expected):
    """Of each row with the row of a matrix."""
    return np.einsum("ij,ij->i", matrix(table["embedding"]), expected)


def matrix(column):
    """A column of vectors as (n, dim)."""
    return column.combine_chunks().flatten().to_numpy().reshape(-1, column.type.list_size)


# One actor, without Ray


@pytest.fixture
def actor(here):
    """An actor of the starter model that takes the texts of the column `body`."""
    return EmbedActor(MODEL, column="body")


def test_an_actor_adds_two_columns(actor):
    """What was there stays; embedding is a plain fixed-size list of float32, error is null."""
    table = actor(pa.table({"body": DOCUMENTS, "n": [1, 2, 3]}))
    assert table.column_names == ["body", "n", "embedding", "error"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), DIM)
    assert table["error"].to_pylist() == [None] * 3
    with Embedder(MODEL) as embedder:
        assert cosines(table, embedder.encode_document(DOCUMENTS)).min() > 0.9999


def test_an_actor_gives_errors_to_rows(actor):
    """A text that is missing, too long or none at all has an error and no vector; its neighbours have theirs."""
    bad = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    body = pa.chunked_array([pa.array(["fine", None, "word " * 5000, "a\0b", ""]), bad])
    table = actor(pa.table({"body": body}))
    errors = table["error"].to_pylist()
    assert [error is None for error in errors] == [True, False, False, False, True, False]
    assert [error.split(":")[0] for error in errors if error] == [
        "InvalidTextError", "TextTooLongError", "InvalidTextError", "InvalidTextError",
    ]  # fmt: skip
    assert "the text has" in errors[2]
    assert table["embedding"].is_null().to_pylist() == [error is not None for error in errors]
    assert matrix(table["embedding"].drop_null()).shape == (2, DIM)


def test_an_actor_takes_what_arrow_calls_text(actor):
    """Large, dictionary-encoded and all-null columns are texts too, and an empty batch gives its columns."""
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        assert actor(pa.table({"body": pa.array(DOCUMENTS).cast(kind)}))["error"].null_count == 3
    assert actor(pa.table({"body": pa.nulls(2)}))["embedding"].null_count == 2
    assert actor(pa.table({"body": pa.array([], pa.string())})).schema.field("embedding").type.list_size == DIM


@pytest.mark.parametrize(
    ("table", "words"),
    [
        pytest.param({"text": ["a"]}, "no column 'body'; there are text", id="none"),
        pytest.param({"body": [1]}, "holds int64", id="numbers"),
        pytest.param({"body": ["a"], "error": ["b"]}, "'error' already", id="taken"),
    ],
)
def test_an_actor_refuses_a_table_that_is_wrong(actor, table, words):
    """What is wrong with a whole table is an error."""
    with pytest.raises(ValueError, match=words):
        actor(pa.table(table))


def test_options_change_the_vectors(here):
    """The query prompt, a cut and half precision come through."""
    options = EncodeOptions(prompt_name="query", truncate_dim=64, precision="float16")
    table = EmbedActor(MODEL, options=options)(pa.table({"text": [QUERY]}))
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 64)
    with Embedder(MODEL) as embedder:
        assert cosines(table, embedder.encode_query([QUERY], truncate_dim=64)).min() > 0.999


def test_an_actor_refuses_other_vectors(here):
    """One whose fingerprint is not the expected one gives none at all."""
    with pytest.raises(FingerprintError):
        EmbedActor(MODEL, expect_fingerprint="0" * 32)(pa.table({"text": DOCUMENTS}))


# What is asked for


class Asked:
    """A Dataset that keeps what it is told."""

    context = SimpleNamespace(checkpoint_config=None)

    def repartition(self, *, target_num_rows_per_block):
        self.n_rows = target_num_rows_per_block
        return self

    def map_batches(self, actor, *, udf_modifying_row_count=True, **told):
        self.actor, self.told = actor, told
        return self


def test_actors_share_a_machine_and_leave_a_cpu(cluster):
    """Two actors of one thread ask for half a CPU each, or nothing could read; all are told the same model."""
    asked = embed_dataset(Asked(), MODEL, n_actors=2)
    made = asked.told["fn_constructor_kwargs"]
    assert asked.actor is EmbedActor
    assert (made["model"], made["limits"].n_threads, made["limits"].device) == (f"{MODEL}:F16", 1, "cpu")
    assert (asked.told["num_cpus"], asked.told["num_gpus"], asked.told["compute"].max_size) == (0.5, None, 2)
    assert made["limits"].memory_bytes < asked.told["memory"] < 1 << 30
    assert made["options"].prompt_name == "document"
    assert len(made["expect_fingerprint"]) == 32
    assert asked.n_rows == asked.told["batch_size"]


def test_one_actor_has_all_threads(cluster):
    """Without n_actors there is one on a machine, and it does what its plan says."""
    asked = embed_dataset(Asked(), MODEL, kind="query")
    made = asked.told["fn_constructor_kwargs"]
    assert (made["limits"].n_threads, asked.told["num_cpus"], asked.told["compute"].max_size) == (2, 1.0, 1)
    assert made["options"].prompt_name == "query"


def test_what_cannot_be_is_refused_before_anything_runs(cluster):
    """The errors of the machine that plans are raised here as what they are."""
    with pytest.raises(UnknownModelError):
        embed_dataset(Asked(), "no-such-model")
    with pytest.raises(DoesNotFitError, match="Take fewer"):
        embed_dataset(Asked(), MODEL, n_actors=1000)
    with pytest.raises(ValueError, match="kind"):
        embed_dataset(Asked(), MODEL, kind="question")
    with pytest.raises(ValueError, match="n_actors"):
        embed_dataset(Asked(), MODEL, n_actors=0)
    with pytest.raises(ValueError, match="int8"):
        embed_dataset(Asked(), MODEL, options=EncodeOptions(precision="int8"))


# Whole jobs


def actors_of_ray():
    """Processes of this Ray's actors that embed."""
    children = psutil.Process().children(recursive=True)
    return [one for one in children if any("EmbedActor" in part for part in one.cmdline())]


def when_written(out, n_files, act):
    """Do something in another thread as soon as so many files of a job are there."""

    def watch():
        deadline = time.monotonic() + 120
        while len(list(out.glob("*.parquet"))) < n_files and time.monotonic() < deadline:
            time.sleep(0.02)
        act()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    return watcher


def test_a_killed_actor_loses_and_doubles_nothing(here, tmp_path):
    """After kill -9 of one of two actors the job ends with every row once, and the vectors are the same."""
    n_rows, out, left = 600, tmp_path / "out", []
    rows = ray.data.read_parquet(str(write_folder(tmp_path / "in", n_rows)))
    rows = embed_dataset(rows, MODEL, n_actors=2, batch_size=50)

    def kill():
        os.kill(actors_of_ray()[0].pid, signal.SIGKILL)
        left.append(12 - len(list(out.glob("*.parquet"))))

    killer = when_written(out, 3, kill)
    rows.write_parquet(str(out))
    killer.join()
    table = read_folder(out)
    assert left[0] > 0
    assert table["id"].to_pylist() == list(range(n_rows))
    assert table["error"].null_count == n_rows
    with Embedder(MODEL) as embedder:
        assert cosines(table, embedder.encode_document(texts(n_rows))).min() > 0.9999


def test_an_interrupted_job_goes_on(cluster, tmp_path, checkpointed):
    """With a checkpoint, a second run embeds what the first one did not write, and nothing twice."""
    source, out, seen, stop = write_folder(tmp_path / "in", 600), tmp_path / "out", tmp_path / "seen", tmp_path / "stop"
    checkpointed.checkpoint_config = CheckpointConfig("id", str(tmp_path / "done"), delete_checkpoint_on_success=False)

    def noted(table):  # inside, so that Ray ships what it says and not where it stands
        with seen.open("a") as file:
            file.writelines(f"{one}\n" for one in table["id"].to_pylist())
        return table

    def stopped(table):
        if stop.exists():
            raise RuntimeError("the job was stopped")
        return table

    def run():
        rows = ray.data.read_parquet(str(source)).map_batches(noted, batch_format="pyarrow")
        rows = embed_dataset(rows, MODEL, n_actors=1, limits=Limits(n_threads=1), batch_size=50)
        rows.map_batches(stopped, batch_format="pyarrow").write_parquet(str(out))

    stopper = when_written(out, 2, stop.touch)
    with pytest.raises(ray.exceptions.RayTaskError, match="the job was stopped"):
        run()
    stopper.join()
    done = set(read_folder(out)["id"].to_pylist())
    assert 0 < len(done) < 600
    stop.unlink()
    seen.unlink()
    run()
    assert read_folder(out)["id"].to_pylist() == list(range(600))
    assert sorted(map(int, seen.read_text().split())) == sorted(set(range(600)) - done)


def test_the_example_embeds_a_folder(here, tmp_path, monkeypatch, checkpointed):
    """examples/ray_folder.py gives Parquet that others read; run again it finds nothing left to do."""
    source, out = write_folder(tmp_path / "in", 60), tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["ray_folder.py", str(source), str(out), MODEL])
    for _ in range(2):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    table = read_folder(out)
    assert table["id"].to_pylist() == list(range(60))
    assert table.schema.field("embedding").type.equals(pa.list_(pa.field("element", pa.float32()), DIM))
    with Embedder(MODEL) as embedder:
        assert cosines(table, embedder.encode_document(texts(60))).min() > 0.9999


def test_the_module_of_the_actor_is_what_workers_import():
    """Ray ships the class by its name, so every machine needs the package and not this file."""
    assert EmbedActor.__module__ == ray_data.__name__
