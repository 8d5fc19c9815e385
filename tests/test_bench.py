"""bench: texts that are the same each time, arithmetic that a person can check, and what is printed of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_embed.bench import comparison, plot, workload
from gguf_embed.bench.comparison import Comparison, SystemFacts
from gguf_embed.bench.measuring import (
    Answer,
    Measurement,
    Spread,
    Timing,
    agreement,
    measure,
    percentile,
    ratio,
    rotated,
    speeds,
    spread,
)  # fmt: skip
from gguf_embed.bench.peers import server_arguments
from gguf_embed.bench.question import Question
from gguf_embed.bench.systems import System
from gguf_embed.bench.workload import USUAL, WORKLOADS, Task, cut, make_round
from gguf_embed.cli import bench as command
from gguf_embed.cli.app import run
from gguf_embed.errors import BackendError, MissingExtraError, StorageError
from gguf_embed.fit.hardware import Hardware

SEEDS = st.integers(0, 1 << 32)
MAKERS = {
    "documents": (workload.documents, 8, 100),
    "queries": (workload.queries, 3, 12),
    "sentences": (workload.sentences, 5, 25),
    "long": (lambda n, *, seed: workload.long_texts(n, 400, seed=seed), 400, 400),
}


@pytest.fixture(autouse=True)
def logs():
    """Commands set the log up for the whole process; it is put back as it was."""
    package = logging.getLogger("gguf_embed")
    before = (package.handlers[:], package.propagate, package.level)
    yield
    package.handlers[:], package.propagate = before[:2]
    package.setLevel(before[2])


# Texts


@pytest.mark.parametrize(("make", "shortest", "longest"), MAKERS.values(), ids=MAKERS)
@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 80), seed=SEEDS)
def test_texts_are_the_same_each_time(make, shortest, longest, n, seed):
    """A seed makes the same texts, no two alike, from the shortest to the longest, and as many words as any other."""
    texts = make(n, seed=seed)
    assert texts == make(n, seed=seed)
    assert len(set(texts)) == n
    lengths = [len(text.split()) for text in texts]
    assert (min(lengths), max(lengths)) == (shortest, longest)
    other = make(n, seed=seed + 1)
    assert sorted(lengths) == sorted(len(text.split()) for text in other)
    assert not set(texts) & set(other)


def test_no_text_comes_twice_out_of_few_words(monkeypatch):
    """A text that is there already is made anew."""
    monkeypatch.setattr(workload, "_WORDS", ("yes", "no"))
    assert all(len(set(workload.queries(30, seed=seed))) == 30 for seed in range(20))


def test_rounds_share_no_text():
    """No cache can have seen a text before; queries have their prompt and documents theirs."""
    rounds = [make_round(WORKLOADS, n_texts=30, number=n, query_prompt="q: ", document_prompt="d: ") for n in range(4)]
    texts = [text for tasks in rounds for task in tasks for text in task.texts]
    assert len(texts) == len(set(texts)) == 4 * (30 + 30 + 20 + 2 + 30)
    assert [(task.workload, len(task.texts), task.prompt) for task in rounds[0]] == [
        ("documents", 30, "d: "), ("queries", 30, "q: "), ("single", 20, "q: "), ("long", 2, "d: "),
        ("sentences", 30, "d: "),
    ]  # fmt: skip
    assert rounds[0][1].whole_texts[0] == f"q: {rounds[0][1].texts[0]}"


def test_a_round_has_what_is_asked_for():
    """In the order in which it is asked for; few texts make few single queries and long texts."""
    tasks = make_round(("long", "single"), n_texts=1, number=0)
    assert [(task.workload, len(task.texts)) for task in tasks] == [("long", 1), ("single", 1)]


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, n_each=st.integers(1, 6), n_around=st.integers(0, 30), max_tokens=st.integers(40, 2000))
def test_cut_texts_come_to_fit(seed, n_each, n_around, max_tokens):
    """Whatever a word's tokens: after a few cuts all texts fit, those that fitted are whole, none is empty."""

    def count(task):
        return [n_around + n_each * len(text.split()) for text in task.texts]

    task = Task(workload="documents", texts=workload.documents(20, seed=seed) + workload.long_texts(1, 400, seed=seed))
    fitting = task
    for _ in range(10):
        fitting = cut(fitting, count(fitting), max_tokens=max_tokens)
    assert max(count(fitting)) <= max_tokens
    for before, n_tokens, after in zip(task.texts, count(task), fitting.texts, strict=True):
        assert after == before if n_tokens <= max_tokens else before.startswith(after + " ")


def test_a_task_is_of_a_known_workload():
    """A name that nothing is made for is a mistake."""
    with pytest.raises(ValueError, match="'nonsense'"):
        Task(workload="nonsense", texts=())


# Arithmetic

FIGURES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=30)


def test_a_spread_is_median_least_and_greatest():
    """Of an even number the median lies between two."""
    assert spread([3.0, 1.0, 2.0]) == Spread(median=2.0, low=1.0, high=3.0)
    assert spread([4.0, 1.0]) == Spread(median=2.5, low=1.0, high=4.0)


@pytest.mark.parametrize(("percent", "value"), [(0, 10.0), (50, 105.0), (95, 190.5), (100, 200.0)])
def test_percentiles_lie_between_two(percent, value):
    """Of twenty values the 95th per cent is half-way between the 19th and the 20th, nearly."""
    assert percentile([10.0 * n for n in range(20, 0, -1)], percent) == pytest.approx(value)


@given(FIGURES)
def test_half_of_all_are_below_the_median(values):
    """The 50th percentile is the median, and percentiles rise."""
    assert percentile(values, 50) == pytest.approx(spread(values).median)
    assert min(values) <= percentile(values, 50) <= percentile(values, 95) <= max(values)


@given(st.lists(st.integers(), min_size=1, max_size=6, unique=True), st.integers(0, 20))
def test_each_is_first_once(items, by):
    """Over as many rounds as there are systems each one is once first, and none is ever left out."""
    orders = [rotated(items, by + number) for number in range(len(items))]
    assert sorted(order[0] for order in orders) == sorted(items)
    assert all(sorted(order) == sorted(items) for order in orders)


def test_a_ratio_says_how_many_times():
    """Twice as many tokens are 2; nothing at all is outrun without end."""
    assert ratio(300.0, 150.0) == 2.0
    assert ratio(1.0, 0.0) == float("inf")


def test_agreement_is_of_the_worst_text():
    """The least cosine; rows of another length cannot agree."""
    ours = np.array([[1, 0], [0, 2]], dtype=np.float32)
    theirs = np.array([[3, 0], [1, 1]], dtype=np.float32)
    assert agreement(ours, theirs) == pytest.approx(0.5**0.5)
    assert agreement(ours, ours) == pytest.approx(1.0)
    assert agreement(ours, np.ones((2, 3), dtype=np.float32)) == -1.0


# Measuring


class FakeSystem:
    """Takes so long for a text, and turns it into a vector that counts its letters."""

    def __init__(self, name, seconds_a_text, diary=None, *, fails_in_call=None, turned=0.0):
        self.name, self._seconds, self._turned, self._fails_in = name, seconds_a_text, turned, fails_in_call
        self.diary, self.n_calls = diary if diary is not None else [], 0

    def embed(self, texts, *, prompt, with_rows):
        self.n_calls += 1
        if self.n_calls == self._fails_in:
            raise BackendError(f"{self.name}: it had enough")
        self.diary.append((self.name, len(texts)))
        rows = np.array([[len(prompt + text), text.count("a") + self._turned] for text in texts], dtype=np.float32)
        return Answer(seconds=self._seconds * len(texts), rows=rows if with_rows else None)


def rounds_of(n, *workloads, n_texts=4, n_tokens=100):
    """So many rounds that count, and the one that warms up."""
    tasks = [make_round(workloads, n_texts=n_texts, number=number) for number in range(n + 1)]
    return [[dataclasses.replace(task, n_tokens=n_tokens) for task in one] for one in tasks]


def test_systems_take_turns_at_each_task():
    """All systems do a task before any does the next one, and another one begins each round."""
    diary, steps = [], []
    systems = [FakeSystem(name, 0.1, diary) for name in "abc"]
    measurement = measure(systems, rounds_of(2, "documents", "long"), on_step=steps.append)
    assert ["".join(name for name, _ in diary[at : at + 3]) for at in range(0, len(diary), 3)] == [
        "abc", "abc", "bca", "bca", "cab", "cab",
    ]  # fmt: skip
    assert steps == ["warming up", "round 1 of 2", "round 2 of 2"]
    assert [(one.workload, one.system, one.round_number) for one in measurement.timings[:4]] == [
        ("documents", "b", 1), ("documents", "c", 1), ("documents", "a", 1), ("long", "b", 1),
    ]  # fmt: skip
    assert measurement.systems == ("a", "b", "c")


def test_the_warm_up_is_compared_and_not_counted():
    """Its rows are held against ours; its time is in no figure."""
    systems = [FakeSystem("ours", 0.1), FakeSystem("alike", 0.1), FakeSystem("other", 0.1, turned=50.0)]
    measurement = measure(systems, rounds_of(3, "documents", "single"), on_step=str)
    assert {one.round_number for one in measurement.timings} == {1, 2, 3}
    assert set(measurement.agreements) == {
        (task, name) for task in ("documents", "single") for name in ("alike", "other")
    }
    assert measurement.agreements["documents", "alike"] == pytest.approx(1.0)
    assert measurement.agreements["single", "other"] < 0.99


def test_single_queries_are_calls_of_one_text():
    """Each is timed for itself; other tasks are one call."""
    diary = []
    measurement = measure([FakeSystem("ours", 0.25, diary)], rounds_of(1, "single", "queries"), on_step=str)
    assert [n for _, n in diary] == [1, 1, 1, 1, 4] * 2
    single, queries = measurement.timings
    assert single.seconds == (0.25,) * 4
    assert queries.seconds == (1.0,)


def test_speeds_are_of_medians():
    """Twice as slow a peer is outrun by 2, by tokens a second as by the time of a request."""
    systems = [FakeSystem("ours", 0.125), FakeSystem("theirs", 0.25)]
    found = speeds(measure(systems, rounds_of(3, "documents", "single"), on_step=str))
    assert [(one.workload, one.system) for one in found] == [
        ("documents", "ours"), ("documents", "theirs"), ("single", "ours"), ("single", "theirs"),
    ]  # fmt: skip
    documents, theirs, single, their_single = found
    assert documents.tokens_per_s == Spread(median=200.0, low=200.0, high=200.0)
    assert theirs.texts_per_s.median == 4.0
    assert (documents.ratio, theirs.ratio, their_single.ratio) == (None, pytest.approx(2.0), pytest.approx(2.0))
    assert (documents.p50_ms, documents.agreement, theirs.agreement) == (None, None, pytest.approx(1.0))
    assert single.p50_ms.median == single.p95_ms.high == 125.0


def test_a_ratio_is_of_medians_and_not_of_single_rounds():
    """One round in which a peer was held up changes its spread, not the ratio."""

    def timing(system, number, *seconds):
        return Timing(workload="long", system=system, round_number=number, n_texts=2, n_tokens=60, seconds=seconds)

    seconds = {"ours": (1.0, 1.0, 1.0), "theirs": (3.0, 60.0, 2.0)}
    timings = tuple(timing(name, n, value) for name, values in seconds.items() for n, value in enumerate(values, 1))
    measured = Measurement(systems=("ours", "theirs"), timings=timings, agreements={}, lost={})
    _, theirs = speeds(measured)
    assert theirs.tokens_per_s == Spread(median=20.0, low=1.0, high=30.0)
    assert theirs.ratio == 3.0


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_peer_that_fails_is_given_up(call, caplog):
    """Its figures are dropped, warm-up or not, and the others go on; one line says why."""
    systems = [FakeSystem("ours", 0.1), FakeSystem("weak", 0.1, fails_in_call=call), FakeSystem("theirs", 0.1)]
    measurement = measure(systems, rounds_of(3, "documents"), on_step=str)
    assert measurement.lost == {"weak": "weak: it had enough"}
    assert measurement.systems == ("ours", "theirs")
    assert {one.system for one in measurement.timings} == {"ours", "theirs"}
    assert set(measurement.agreements) == {("documents", "theirs")}
    assert len(measurement.timings) == 6
    assert caplog.messages == ["weak: it had enough"]
    assert systems[1].n_calls == call


def test_our_own_failure_ends_it():
    """Without ours there is nothing to compare with."""
    with pytest.raises(BackendError, match="it had enough"):
        measure([FakeSystem("ours", 0.1, fails_in_call=2)], rounds_of(3, "documents"), on_step=str)


# What peers are told

ON_CPU = {"path": "m.gguf", "n_threads": 2, "placement": "cpu", "n_gpu_layers": 0, "pooling_type": "last"}
ALWAYS = ["--embedding", "-m", "m.gguf", "-t", "2"]


def server_line(n_tokens_max=100, *, is_tuned=False, own=None, **facts):
    return server_arguments(ON_CPU | facts, n_tokens_max=n_tokens_max, is_tuned=is_tuned, own=own)


def test_llama_server_runs_by_its_defaults():
    """File and threads are said; no device where ours has none, and as many layers where ours has some."""
    assert server_line() == server_line(5000) == [*ALWAYS, "--device", "none"]
    assert server_line(placement="gpu") == ALWAYS
    assert server_line(placement="partial", n_gpu_layers=7) == [*ALWAYS, "-ngl", "7"]


@pytest.mark.parametrize(("longest", "raised"), [(511, []), (512, ["-b", "2048", "-ub", "768"]),
                                                 (2500, ["-b", "2560", "-ub", "2560"])])  # fmt: skip
def test_llama_server_gets_a_ubatch_that_its_longest_text_fits(longest, raised):
    """Where pooling needs a text whole in one ubatch, and only there."""
    assert server_line(longest, pooling_type="mean", placement="gpu") == [*ALWAYS, *raised]


def test_llama_server_is_tuned():
    """With 16 slots, whose context holds the longest text; the user's own flags take their place."""
    tuned = server_line(is_tuned=True, placement="gpu")
    assert tuned == [*ALWAYS, "-c", "8192", "-b", "2048", "-ub", "512", "-np", "16", "--no-repack"]
    assert server_line(511, is_tuned=True, placement="gpu") == tuned
    assert server_line(512, is_tuned=True, placement="gpu")[6] == str(16 * 768)
    assert server_line(9999, is_tuned=True, own=("-ub", "64")) == [*ALWAYS, "--device", "none", "-ub", "64"]


def test_a_question_is_about_known_things():
    """Workloads and peers go by their names, and there is at least a text and a round."""
    for wrong in ({"workloads": ("songs",)}, {"against": ("ollama",)}, {"n_texts": 0}, {"n_rounds": 0}):
        with pytest.raises(ValueError):
            Question(model="m", **wrong)


def test_a_child_that_dies_leaves_its_last_words():
    """A system that cannot even be found ends its child, and the message has why."""
    with pytest.raises(BackendError, match="nobody: it ended with code 1; its last words: KeyError: 'nobody'"):
        System("nobody", {"system": "nobody"})


def test_a_machine_without_sentence_transformers_says_how_to_get_it(monkeypatch, tmp_path):
    """One line with the pip command; a package that cannot be imported stands in for none."""
    (tmp_path / "sentence_transformers.py").write_text("raise ImportError('gone')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError) as caught:
        System("theirs", {"system": "sentence-transformers", "model": "m", "n_threads": 1, "device": "cpu"})
    assert str(caught.value) == "theirs: not installed; pip install sentence-transformers"


FAKE_TRANSFORMERS = """
__version__ = "9.9"
print("a library that prints")
class SentenceTransformer:
    def __init__(self, model, device):
        if model == "missing":
            raise OSError("no such model\\nand many lines more")
        self.device = device
    def encode(self, texts, *, batch_size, prompt, show_progress_bar):
        import torch
        assert (batch_size, prompt, show_progress_bar, self.device) == (32, "", False, "cpu")
        print("a progress bar")
        return [[len(text), torch.n_threads] for text in texts]
"""


@pytest.fixture
def fake_transformers(monkeypatch, tmp_path):
    """Packages by those names, that count letters and print to stdout."""
    (tmp_path / "sentence_transformers.py").write_text(FAKE_TRANSFORMERS, encoding="utf-8")
    torch = "__version__ = '8.8'\nn_threads = 0\ndef set_num_threads(n):\n    global n_threads\n    n_threads = n\n"
    (tmp_path / "torch.py").write_text(torch, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return {"system": "sentence-transformers", "n_threads": 3, "device": "cpu"}


def test_sentence_transformers_embed_whole_strings(fake_transformers):
    """Prompt and text go in as one; what the library prints does not get in between."""
    with System("theirs", fake_transformers | {"model": "m"}) as system:
        assert system.version == "9.9, torch 8.8"
        answer = system.embed(["a", "bcd"], prompt="12", with_rows=True)
        assert answer.rows.tolist() == [[3, 3], [5, 3]]
        assert answer.seconds >= 0
        assert system.embed(["a"], prompt="", with_rows=False).rows is None
        system.stop()
        assert system.peak_bytes > 1 << 20
        with pytest.raises(BackendError, match="theirs was ended"):
            system.embed(["a"], prompt="", with_rows=False)


def test_a_model_that_sentence_transformers_lack_is_one_line(fake_transformers):
    """The first of its many."""
    with pytest.raises(BackendError, match=r"^theirs: missing cannot be loaded: no such model$"):
        System("theirs", fake_transformers | {"model": "missing"})


# What is shown


def made_speeds():
    """Every workload, with the longest name there is."""
    figures = {"gguf-embed": 0.0078125, "llama-server, tuned": 0.015625, "sentence-transformers": 4.0}
    systems = [FakeSystem(name, seconds) for name, seconds in figures.items()]
    return measure(systems, rounds_of(2, *WORKLOADS, n_texts=20, n_tokens=123_456), on_step=str)


@pytest.fixture
def made():
    """A whole comparison, with figures that are as wide as they get."""
    measurement = made_speeds()
    facts = {"device_description": "a processor", "n_threads": 2, "host_bytes": 1000 << 20}
    systems = [
        SystemFacts(name=name, version="6.2.0, torch 2.15.0", load_s=123.456, peak_bytes=1023 << 20,
                    facts={} if index else facts)
        for index, name in enumerate(measurement.systems)
    ]  # fmt: skip
    return Comparison(
        model_id="a-model",
        quant="Q4_K_M",
        machine=Hardware(accelerators=(), ram_total_bytes=2, ram_available_bytes=1, n_cores=2),
        versions={"python": "3.11"},
        systems=tuple(systems),
        tasks=tuple(
            dataclasses.replace(task, prompt="p: ")
            for task in rounds_of(1, *WORKLOADS, n_texts=64, n_tokens=123_456)[1]
        ),
        speeds=speeds(measurement),
        timings=measurement.timings,
        not_measured={"llama-cpp-python": "llama-cpp-python: why not"},
    )


@pytest.fixture
def shell(capsys, monkeypatch, made):
    """Run one command line over that comparison; what was asked is kept."""
    asked = []

    def compare(question, *, on_step):
        asked.append(question)
        on_step("round 1 of 1")
        return made

    monkeypatch.setattr("gguf_embed.bench.question.fetch", lambda *_given: None)
    monkeypatch.setattr(comparison, "compare", compare)

    def call(*arguments):
        capsys.readouterr()
        code = run(["bench", *map(str, arguments)])
        return SimpleNamespace(code=code, asked=asked[-1] if asked else None, **capsys.readouterr()._asdict())

    return call


def test_tables_fit_eighty_columns(shell):
    """A table a workload, ours first, and the ratio and the agreement beside each other system."""
    done = shell("all-minilm-l6-v2")
    assert (done.code, done.err) == (0, "round 1 of 1\n")
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[:2] == ["a-model Q4_K_M on a processor", "2 threads, medians of 2 rounds"]
    heads = [line for line in lines if line.partition(":")[0] in WORKLOADS]
    assert [line.partition(":")[0] for line in heads] == list(WORKLOADS)
    assert heads[2] == "single: 20 requests of 3 to 12 words after a prompt, 123,456 tokens a round"
    table = lines[lines.index(heads[0]) + 1 :][:4]
    assert table[0].split() == ["system", "tokens/s", "texts/s", "of", "rounds", "ours", "is", "agrees"]
    figures = table[2].removeprefix("llama-server, tuned").split()
    assert figures == ["395,059", "64.0", "395,059-395,059", "2.00x", "1.00000"]
    assert [line.split()[0] for line in table[1:]] == ["gguf-embed", "llama-server,", "sentence-transformers"]
    assert "1023 MiB" in done.out
    assert "1000 MiB" in done.out


def test_json_has_everything(shell, made):
    """One object: versions, machine, command line, each round's figures; the texts alone are left out."""
    told = json.loads(shell("all-minilm-l6-v2", "--json", "-q").out)
    assert told["model_id"] == "a-model"
    assert len(told["timings"]) == len(made.timings)
    assert told["timings"][0]["seconds"] == list(made.timings[0].seconds)
    assert [one["workload"] for one in told["tasks"]] == list(WORKLOADS)
    assert told["tasks"][0] == {"workload": "documents", "prompt": "p: ", "n_tokens": 123_456, "n_texts": 64}
    assert told["speeds"][1]["ratio"] == pytest.approx(2.0)
    assert told["systems"][0]["facts"]["host_bytes"] == 1000 << 20
    assert told["not_measured"] == {"llama-cpp-python": "llama-cpp-python: why not"}
    assert {"command", "machine", "versions", "question"} <= set(told)


def test_options_become_a_question(shell, monkeypatch, tmp_path):
    """Names with commas, limits, arguments as a shell splits them; what is left out is looked for."""
    monkeypatch.setattr(command.shutil, "which", lambda name: f"/bin/{name}")
    asked = shell("all-minilm-l6-v2", "-q").asked
    assert (asked.workloads, asked.against, asked.n_texts, asked.n_rounds) == (USUAL, (), 64, 5)
    assert str(asked.llama_server) == "/bin/llama-server"
    assert asked.sentence_transformers_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert asked.llama_server_args is None
    program = tmp_path / "server"
    program.touch()
    asked = shell(
        "all-minilm-l6-v2", "--only", "long, queries", "--against", "llama-server,llama-cpp-python", "--texts", 3,
        "--rounds", 2, "--threads", 1, "--device", "cpu", "--llama-server", program, "--llama-server-args",
        "-ub 64 --x 'a b'", "--sentence-transformers-model", "theirs",
    ).asked  # fmt: skip
    assert asked.workloads == ("long", "queries")
    assert asked.against == ("llama-server", "llama-cpp-python")
    assert (asked.n_texts, asked.n_rounds, asked.limits.n_threads, asked.limits.device) == (3, 2, 1, "cpu")
    assert (asked.llama_server, asked.llama_server_args) == (program, ("-ub", "64", "--x", "a b"))
    assert asked.sentence_transformers_model == "theirs"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "llama-server,ollama"], "'ollama' is no peer; there are llama-cpp-python, llama-server"),
        (["--only", "songs"], "'songs' is no workload; there are documents, queries, single, long"),
        (["--texts", "0"], "--texts"),
        (["--rounds", "0"], "--rounds"),
        (["--plot", "speeds.doc"], "speeds.doc does not end in .png, .svg, .pdf"),
        (["--llama-server", "/no/such/server"], "--llama-server"),
        (["--llama-server-args", "'"], "--llama-server-args"),
        (["--tune", "--against", "llama-server"], "--tune measures gguf-embed alone"),
        (["--tune", "--plot", "x.png"], "--tune measures gguf-embed alone"),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error(shell, arguments, words):
    """Before anything is fetched or loaded."""
    done = shell("all-minilm-l6-v2", *arguments)
    assert (done.code, done.out, done.asked) == (2, "", None)
    assert words in " ".join(done.err.split())


# The plot


def test_a_plot_is_drawn_whole(shell, tmp_path):
    """The format is the name's, and nothing else is left in the folder."""
    for name, magic in (("speeds.png", b"\x89PNG"), ("speeds.SVG", b"<?xml")):
        assert shell("all-minilm-l6-v2", "-q", "--plot", tmp_path / name).code == 0
        assert (tmp_path / name).read_bytes().startswith(magic)
    assert {path.name for path in tmp_path.iterdir()} == {"speeds.png", "speeds.SVG"}


def test_a_plot_says_what_it_shows(made, tmp_path):
    """Every system and workload by its name, our ratio beside the others, and which way is better."""
    target = tmp_path / "speeds.svg"
    plot.draw(made.speeds, target, title="the title")
    comments = target.read_text(encoding="utf-8")  # matplotlib writes each text as a comment before its outlines
    for words in (
        "the title",
        *WORKLOADS,
        "llama-server, tuned",
        "ours: 2.00x",
        "shorter is better",
        "longer is better",
    ):
        assert f"<!-- {words}" in comments or f"{words} -->" in comments, words


def test_a_plot_without_matplotlib_says_what_to_install(shell, monkeypatch, tmp_path):
    """At the door, with exit code 8."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError) as caught:
        plot.check_plot(tmp_path / "x.png")
    assert caught.value.extra == "plot"
    done = shell("all-minilm-l6-v2", "--plot", tmp_path / "x.png")
    assert (done.code, done.asked) == (8, None)
    assert 'pip install "gguf-embed[plot]"' in done.err


def test_a_plot_that_cannot_be_written_is_an_error(made, tmp_path):
    """The folder is named, and nothing is left."""
    with pytest.raises(StorageError, match="cannot be written"):
        plot.draw(made.speeds, tmp_path / "no" / "folder.png", title="")
