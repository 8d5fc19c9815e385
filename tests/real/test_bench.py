"""`bench` on a synthetic Qwen3: every program in a process of its own, llama-server played by a small one."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from gguf_embed import Embedder
from gguf_embed.bench import trials
from gguf_embed.bench.measuring import Spread
from gguf_embed.bench.peers import server_arguments
from gguf_embed.bench.question import Question
from gguf_embed.bench.systems import System
from gguf_embed.bench.trials import Trial, tune
from gguf_embed.bench.workload import INSTRUCTION
from gguf_embed.cli.app import run
from gguf_embed.config import load_config
from gguf_embed.errors import BackendError
from gguf_embed.fit.tuning import Tuning, tuning_path
from gguf_embed.models.catalog import Catalog

ROOT = Path(__file__).parents[2]
TEXTS = ["the cat", "of the capital and the", "a"]

FAKE_SERVER = '''#!{python}
"""Plays llama-server: a vector that counts letters. Writes down what it is asked, and over which connection."""
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

arguments = dict(zip(sys.argv[1:], sys.argv[2:]))
log = open({log!r}, "a", buffering=1)
print(json.dumps({{"argv": sys.argv[1:], "pid": os.getpid()}}), file=log)
n_health = 0

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def answer(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        global n_health
        if self.path == "/props":
            self.answer(200, {{"build_info": "b1-fake"}})
        else:
            n_health += 1
            self.answer(503 if n_health < 3 else 200, {{}})

    def do_POST(self):
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        print(json.dumps({{"path": self.path, "texts": texts, "port": self.client_address[1]}}), file=log)
        if "die" in texts:
            print("GGML_ASSERT or the like", file=sys.stderr, flush=True)
            os._exit(3)
        if "refuse" in texts:
            self.answer(500, {{"error": "too large"}})
            return
        if "hang up" in texts:
            self.close_connection = True
        rows = [{{"index": i, "embedding": [len(text), text.count("a")]}} for i, text in enumerate(texts)]
        self.answer(200, {{"data": rows[::-1]}})

if "--broken" in sys.argv:
    sys.exit("error: unknown argument: --broken")
ThreadingHTTPServer((arguments["--host"], int(arguments["--port"])), Handler).serve_forever()
'''

posix = pytest.mark.skipif(os.name == "nt", reason="scripts and signals are POSIX")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Two programs at once on a machine of two cores are enough."""
    monkeypatch.setenv("GGUF_EMBED_N_THREADS", "1")


@pytest.fixture
def shell(capfd):
    """Run `bench` in this process: exit code, stdout, stderr."""
    package = logging.getLogger("gguf_embed")
    before = (package.handlers[:], package.propagate, package.level)

    def call(*arguments):
        capfd.readouterr()
        code = run(["bench", *map(str, arguments)])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    yield call
    package.handlers[:], package.propagate = before[:2]
    package.setLevel(before[2])


@pytest.fixture
def fake_server(tmp_path):
    """The program, and what it wrote down."""
    program, log = tmp_path / "llama-server", tmp_path / "server.log"
    program.write_text(FAKE_SERVER.format(python=sys.executable, log=str(log)), encoding="utf-8")
    program.chmod(0o755)

    def notes():
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        return [one for one in lines if "argv" in one], [one for one in lines if "texts" in one]

    return SimpleNamespace(path=program, notes=notes)


def serving(fake_server, *arguments):
    """A system around it."""
    return System("theirs", {"system": "llama-server", "program": str(fake_server.path), "arguments": [*arguments]})


def test_beside_llama_cpp_python(shell, qwen3):
    """Both embed the very same texts and agree; the figures are of the round that counts, our plan is beside them."""
    done = shell(qwen3, "--texts", "4", "--rounds", "1", "--against", "llama-cpp-python", "--json")
    told = json.loads(done.out)
    assert done.code == 0
    assert [line for line in done.err.splitlines() if line] == [
        "starting gguf-embed", "starting llama-cpp-python", "warming up", "round 1 of 1",
    ]  # fmt: skip
    ours, theirs = told["systems"]
    assert (ours["name"], theirs["name"], told["not_measured"]) == ("gguf-embed", "llama-cpp-python", {})
    assert (ours["facts"]["pooling_type"], ours["facts"]["n_threads"]) == ("last", 1)
    assert ours["facts"]["host_bytes"] > 40 << 20
    assert min(one["peak_bytes"] for one in told["systems"]) > 40 << 20
    assert min(one["load_s"] for one in told["systems"]) > 0
    speeds = {(one["workload"], one["system"]): one for one in told["speeds"]}
    assert list(dict.fromkeys(workload for workload, _ in speeds)) == ["documents", "queries", "single", "long"]
    for (workload, system), speed in speeds.items():
        assert speed["tokens_per_s"]["low"] > 0
        assert (speed["ratio"] is None) == (system == "gguf-embed")
        if system != "gguf-embed":
            assert speed["agreement"] > 0.9999, workload
    assert {one["round_number"] for one in told["timings"]} == {1}
    tasks = {task["workload"]: task for task in told["tasks"]}
    assert (tasks["documents"]["prompt"], tasks["queries"]["prompt"]) == ("", INSTRUCTION)
    assert [tasks[name]["n_texts"] for name in ("documents", "queries", "single", "long")] == [4, 4, 4, 2]
    assert tasks["long"]["n_tokens"] <= 2 * 1024


@posix
def test_the_model_s_own_prompt_and_its_tokens(shell, registered, fake_server):
    """Queries begin with the registry's prompt, and are counted with it by our tokenizer."""
    done = shell(
        registered, "--texts", "2", "--rounds", "1", "--only", "single", "--against", "llama-server", "--llama-server",
        fake_server.path, "--json", "-q",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    (task,) = json.loads(done.out)["tasks"]
    assert task["prompt"] == "Instruct: the task\nQuery:"
    texts = [text for one in fake_server.notes()[1][-2:] for text in one["texts"]]
    with Embedder(registered) as model:
        assert task["n_tokens"] == sum(map(len, model.tokenize(texts)))


@posix
def test_llama_server_is_asked_over_http(shell, qwen3, fake_server):
    """Started twice, waited for, asked for lists in one request and for single queries one by one, and ended."""
    done = shell(
        qwen3, "--texts", "3", "--rounds", "1", "--only", "queries,single", "--against", "llama-server",
        "--llama-server", fake_server.path, "--llama-server-args", "-np 2",
    )  # fmt: skip
    assert done.code == 0
    assert "llama-server, tuned" in done.out
    assert "b1-fake" in done.out
    starts, asked = fake_server.notes()
    for start, own in zip(starts, ([], ["-np", "2"]), strict=True):
        expected = [
            "--embedding",
            "-m",
            str(qwen3),
            "-t",
            "1",
            "--device",
            "none",
            *own,
            "--host",
            "127.0.0.1",
            "--port",
        ]
        assert start["argv"][:-1] == expected
        assert not psutil.pid_exists(start["pid"])
    assert {one["path"] for one in asked} == {"/v1/embeddings"}
    assert all(text.startswith(INSTRUCTION) for one in asked for text in one["texts"])
    assert [len(one["texts"]) for one in asked] == 2 * [3, 3, *[1] * 6]  # two systems take turns in two rounds


@posix
def test_a_row_belongs_to_its_text(fake_server):
    """Rows come in any order and are put in the order of the texts; prompt and text arrive as one string."""
    with serving(fake_server) as system:
        assert system.version == "b1-fake"
        answer = system.embed(["a", "bcd", "aaaa"], prompt="+", with_rows=True)
        assert answer.rows.tolist() == [[2, 1], [4, 0], [5, 4]]
        assert answer.seconds > 0


@posix
def test_single_queries_share_a_connection(fake_server):
    """One connection for requests of one text, another for each list; one that was hung up is opened again."""
    with serving(fake_server) as system:
        for texts in (["a", "b"], ["c"], ["d"], ["hang up"], ["e"], ["f", "g"]):
            system.embed(texts, prompt="", with_rows=False)
    ports = {one["texts"][0]: one["port"] for one in fake_server.notes()[1]}
    assert ports["a"] == ports["c"] == ports["d"] == ports["hang up"]
    assert len({ports["hang up"], ports["e"], ports["f"]}) == 3


@posix
@pytest.mark.parametrize(
    ("text", "words"),
    [("refuse", 'theirs: it answered 500: {"error": "too large"}'),
     ("die", "theirs: it ended with code 3; its last words: GGML_ASSERT or the like")],
)  # fmt: skip
def test_a_server_that_fails_says_why(fake_server, text, words):
    """A refusal has its text, a death its last words."""
    with serving(fake_server) as system, pytest.raises(BackendError) as caught:
        system.embed([text], prompt="", with_rows=False)
    assert str(caught.value) == words


@posix
def test_a_server_that_does_not_start_is_one_line(shell, qwen3, fake_server):
    """The comparison goes on without it, and both the line and the JSON have the reason."""
    done = shell(
        qwen3, "--texts", "2", "--rounds", "1", "--only", "queries", "--against", "llama-server", "--llama-server",
        fake_server.path, "--llama-server-args", "--broken", "--json",
    )  # fmt: skip
    why = "llama-server, tuned: it ended with code 1; its last words: error: unknown argument: --broken"
    assert done.code == 0
    assert f"warning: {why}" in done.err.splitlines()
    told = json.loads(done.out)
    assert told["not_measured"] == {"llama-server, tuned": why}
    assert [one["name"] for one in told["systems"]] == ["gguf-embed", "llama-server"]


def test_what_is_not_there_is_one_line(shell, qwen3, monkeypatch):
    """No llama-server on PATH, no model for sentence-transformers: said once each, and ours is measured."""
    monkeypatch.setattr("gguf_embed.cli.bench.shutil.which", lambda _name: None)
    done = shell(qwen3, "--texts", "1", "--rounds", "1", "--only", "queries", "--against",
                 "llama-server,sentence-transformers")  # fmt: skip
    no_model = "no model of it is known to compare with; name one with --sentence-transformers-model"
    assert done.code == 0
    assert [line for line in done.err.splitlines() if line.startswith("warning")] == [
        "warning: llama-server: not found on PATH; name it with --llama-server",
        f"warning: sentence-transformers: {no_model}",
    ]
    assert "gguf-embed" in done.out


def test_a_child_that_is_killed_says_so(qwen3):
    """By the signal's name; ending it again does no harm."""
    with System("ours", {"system": "gguf-embed", "model": str(qwen3)}) as system:
        assert system.count(["", "the"])[1] > 0
        rows = system.embed(TEXTS, prompt="", with_rows=True).rows
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0)
        (child,) = psutil.Process().children()
        if os.name != "nt":
            child.send_signal(signal.SIGINT)  # the parent's to decide about
            assert system.embed(TEXTS, prompt="", with_rows=True).rows == pytest.approx(rows)
        child.kill()
        with pytest.raises(BackendError, match=r"ours: it (was stopped by SIGKILL|ended with code)"):
            system.embed(TEXTS, prompt="", with_rows=True)
        system.stop()
    assert not child.is_running()


def test_what_our_child_warns_of_is_said(registered, tmp_path, caplog):
    """A pooling that is not the file's, as when it is loaded anywhere else."""
    models = tmp_path / "config" / "models.toml"
    models.write_text(models.read_text(encoding="utf-8").replace('"last"', '"mean"'), encoding="utf-8")
    with System("ours", {"system": "gguf-embed", "model": str(registered)}) as system:
        assert system.facts["pooling_type"] == "mean"
    (words,) = caplog.messages
    assert words.startswith(f"ours: {registered.name}: pooling is last in the file; using mean")


def test_llama_cpp_python_cuts_nothing(qwen3):
    """A text that is longer than its default batch gives the same vector as ours."""
    text = "the cat of the capital " * 100
    with System("ours", {"system": "gguf-embed", "model": str(qwen3)}) as ours:
        (n_tokens,) = ours.count([text])
        assert n_tokens > 512
        settings = {"path": str(qwen3), "n_tokens_max": n_tokens, "n_threads": 1, "n_gpu_layers": 0}
        with System("theirs", settings | {"system": "llama-cpp-python"}) as theirs:
            rows = [one.embed([text], prompt="", with_rows=True).rows[0] for one in (ours, theirs)]
    assert float(rows[0] @ rows[1] / np.linalg.norm(rows[1])) > 0.9999


def test_a_file_that_llama_cpp_python_cannot_run_is_one_line(tmp_path):
    """Its refusal comes back as a message."""
    path = tmp_path / "no.gguf"
    path.write_bytes(b"nothing")
    settings = {"path": str(path), "n_tokens_max": 10, "n_threads": 1, "n_gpu_layers": 0}
    with pytest.raises(BackendError, match=r"theirs: no\.gguf: llama-cpp-python could not load it"):
        System("theirs", settings | {"system": "llama-cpp-python"})


@posix
@pytest.mark.parametrize("to_all", [True, False], ids=["terminal", "kill -INT"])
def test_ctrl_c_ends_every_child(qwen3, fake_server, to_all):
    """Exit code 130 and nobody left, whether the signal reaches the children or not."""
    code = "import sys; from gguf_embed.cli import main; sys.exit(main())"
    arguments = ["bench", str(qwen3), "--texts", "4", "--rounds", "300", "--only", "queries,single", "--against",
                 "llama-server", "--llama-server", str(fake_server.path)]  # fmt: skip
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True, text=True) as process:
        while "round 2 " not in process.stderr.readline():
            assert process.poll() is None
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 5
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
        assert process.stderr.read().splitlines()[-1] == "interrupted"
        assert process.wait(timeout=10) == 130
    assert not [child for child in children if child.is_running()]


@posix
def test_children_end_with_a_parent_that_was_killed(qwen3, fake_server):
    """Kill -9 leaves nobody to clear up, so each child sees to itself, and to its server."""
    code = f"""
import sys
from gguf_embed.bench.systems import System
System("ours", {{"system": "gguf-embed", "model": {str(qwen3)!r}}})
server = System("theirs", {{"system": "llama-server", "program": {str(fake_server.path)!r}, "arguments": []}})
print("ready", flush=True)
while True:
    server.embed(["a"], prompt="", with_rows=False)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.kill()
    deadline = time.monotonic() + 5
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --tune


def fastest(n_batch, *, apart=1.0):
    """Stand in for the measuring: one size is twice as fast as every other, with any threads."""

    def trial(size, n_threads):
        median = 200.0 if size == n_batch else 100.0
        spread = Spread(median=median, low=median, high=apart * median)
        return Trial(n_batch=size, n_threads=n_threads, tokens_per_s=spread)

    return lambda pairs, **_given: [trial(*pair) for pair in pairs]


@pytest.fixture
def tuning(qwen3, monkeypatch):
    """Tune the synthetic model with figures that are given."""

    def call(measured):
        monkeypatch.setattr(trials, "_measure", measured)
        catalog = Catalog(load_config())
        return tune(catalog, Question(model=str(qwen3), n_texts=2, n_rounds=1), on_step=str)

    return call


@pytest.fixture
def default(qwen3):
    """The n_batch of the plan while nothing was tuned."""
    n_batch = Embedder(qwen3).plan.n_batch
    assert n_batch not in (64, 128)
    return n_batch


def test_what_is_faster_is_planned_with(tuning, qwen3, default):
    """From then on the Embedder's plan has it."""
    tuned = tuning(fastest(128))
    assert tuned.n_batch == default
    assert tuned.remembered == tuned.found.tuning == Tuning(n_batch=128)
    with Embedder(qwen3) as model:
        assert model.plan.n_batch == 128
        assert model.encode("the").shape == (256,)


def test_tuning_begins_with_the_plan_s_own_choice(tuning, qwen3, default):
    """What was remembered is no default of the next time; where the default is as good it is forgotten."""
    tuning(fastest(128))
    tuned = tuning(fastest(default))
    assert (tuned.n_batch, tuned.remembered) == (default, Tuning())
    assert Embedder(qwen3).plan.n_batch == default


def test_a_busy_machine_changes_nothing(tuning, qwen3, default):
    """Rounds that are far apart leave what was remembered as it was."""
    tuning(fastest(128))
    tuned = tuning(fastest(64, apart=3.0))
    assert not tuned.found.is_steady
    assert tuned.remembered == Tuning(n_batch=128)
    assert Embedder(qwen3).plan.n_batch == 128


def test_an_interrupted_tuning_changes_nothing(tuning, qwen3, default):
    """Ctrl-C half-way puts back what was remembered."""

    def interrupted(_pairs, **_given):
        raise KeyboardInterrupt

    tuning(fastest(128))
    with pytest.raises(KeyboardInterrupt):
        tuning(interrupted)
    assert Embedder(qwen3).plan.n_batch == 128


def test_tune_measures_and_says_what_it_found(shell, qwen3, tmp_path):
    """Every size that the layout allows, three rounds at least; what is told is what is remembered."""
    done = shell(qwen3, "--tune", "--texts", "3", "--rounds", "1", "--json")
    assert done.code == 0
    assert [line.partition(": ")[0] for line in done.err.splitlines()] == [f"round {n} of 3" for n in (1, 2, 3)]
    told = json.loads(done.out)
    assert {64, 128, 256, 512} <= {one["n_batch"] for one in told["found"]["trials"]}
    assert {one["n_threads"] for one in told["found"]["trials"]} == {1}  # as configured
    assert all(one["tokens_per_s"]["low"] > 0 for one in told["found"]["trials"])
    n_batch = told["remembered"]["n_batch"]
    assert Embedder(qwen3).plan.n_batch == (n_batch or told["n_batch"])
    assert tuning_path(tmp_path / "state").exists() == (n_batch is not None)


def test_tune_prints_a_table(shell, qwen3, monkeypatch, tmp_path, default):
    """The trials, then one sentence: what is faster and where it is kept, or that nothing is."""
    own = f"n_batch {default} with 1 thread"
    for measured, words in (
        (fastest(128), f"n_batch 128: 100% faster than {own};\nremembered in {tuning_path(tmp_path / 'state')}\n"),
        (fastest(default), f"the default, {own}, is as good; nothing is remembered\n"),
        (fastest(128, apart=9.0), "Nothing was changed\n"),
    ):
        monkeypatch.setattr(trials, "_measure", measured)
        done = shell(qwen3, "--tune", "-q")
        assert (done.code, done.err) == (0, "")
        assert done.out.endswith(words)
        assert done.out.splitlines()[2].split() == ["n_batch", "n_threads", "tokens/s", "of", "rounds"]


def test_the_server_s_arguments_are_taken_from_our_plan(qwen3):
    """The facts that our child tells are those that its peers are started with."""
    with System("ours", {"system": "gguf-embed", "model": str(qwen3), "limits": {"n_threads": 1}}) as ours:
        arguments = server_arguments(ours.facts, n_tokens_max=10, is_tuned=False)
    assert arguments == ["--embedding", "-m", str(qwen3), "-t", "1", "--device", "none"]
