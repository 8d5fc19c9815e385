"""`eval` on the command line, over a fake Embedder: options, what is printed, what is written, what is refused."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from gguf_embed.cli.app import run
from gguf_embed.config import load_config
from gguf_embed.encoding import EmbedReport
from gguf_embed.errors import MissingExtraError
from gguf_embed.models.made import made_path
from gguf_embed.models.measured import load_measured

MINILM = "all-minilm-l6-v2"


class FakeEmbedder:
    """Vectors hang on the text, and a little on the quantization."""

    made: list[FakeEmbedder]
    n_embd, model_id = 16, MINILM

    def __init__(self, model, *, limits):
        self.model, self.limits, self.options, self.is_closed = model, limits, [], False
        self.plan = SimpleNamespace()
        self.made.append(self)

    def report(self, texts, options, *, on_batch=None):
        self.options.append(options)
        noise = {"F16": 0.0, "Q8_0": 0.01}.get(self.model.rpartition(":")[2], 0.3)
        random = np.random.default_rng(3)
        rows = np.array([np.random.default_rng(sum(one.encode())).normal(size=16) for one in texts], dtype=np.float32)
        rows += noise * random.normal(size=rows.shape).astype(np.float32)
        if on_batch is not None:
            on_batch(len(texts), len(texts))
        return EmbedReport(embeddings=rows, n_tokens=(1,) * len(texts), truncated=())

    def __enter__(self):
        assert all(one.is_closed for one in self.made[:-1])
        return self

    def __exit__(self, *_):
        self.is_closed = True


@pytest.fixture(autouse=True)
def logs():
    """Commands set the log up for the whole process; it is put back as it was."""
    package = logging.getLogger("gguf_embed")
    before = (package.handlers[:], package.propagate, package.level)
    yield
    package.handlers[:], package.propagate = before[:2]
    package.setLevel(before[2])


@pytest.fixture
def embedder(monkeypatch):
    class Fake(FakeEmbedder):
        made: list[FakeEmbedder] = []  # noqa: RUF012 - one list a test

    monkeypatch.setattr("gguf_embed.embedder.Embedder", Fake)
    return Fake


@pytest.fixture
def shell(capsys, monkeypatch):
    """Run one command line in this process."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture
def shelf():
    """Three quantizations of all-MiniLM on this disk."""
    for quant in ("F16", "Q8_0", "Q4_K_M"):
        path = made_path(load_config().cache_dir, MINILM, quant)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * {"F16": 4000, "Q8_0": 2000}.get(quant, 1000))


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("".join(f"text {n}\n" for n in range(30)), encoding="utf-8")
    return path


def test_the_sample_is_measured_on_by_default(shell, embedder, shelf):
    """A table of what is on this disk, what its columns mean, the sweep not asked for left out."""
    done = shell("eval", "minilm")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == MINILM
    assert [line.split()[0] for line in lines if line.startswith(("F16", "Q8_0", "Q4_K_M"))][:3] == [
        "F16", "Q8_0", "Q4_K_M",
    ]  # fmt: skip
    assert "recall@10" in done.out
    assert "by dim" not in done.out
    assert max(map(len, lines)) <= 80
    assert [one.model for one in embedder.made] == [f"{MINILM}:{quant}" for quant in ("F16", "Q8_0", "Q4_K_M")]
    assert {options.prompt_name for options in embedder.made[0].options} == {None, "query", "document"}
    assert "kept for --prefer measured in" in done.err


def test_what_was_found_is_kept_and_orders_the_ladder(shell, embedder, shelf, texts):
    """Scores, sizes and what was measured on; --prefer measured takes it."""
    assert shell("plan", MINILM, "--prefer", "measured").code == 2
    assert shell("eval", MINILM, "--texts", texts).code == 0
    kept = load_measured(load_config().state_dir, MINILM)
    assert kept.order[-1] == "Q4_K_M"
    assert kept.measured_on[0].startswith("30 texts of notes.txt (")
    assert [one.size_bytes for one in kept.quants] == [4000, 2000, 1000]


def test_dims_are_swept(shell, embedder, shelf, texts):
    """A table a measure; a model that was not trained for it is measured with a note."""
    done = shell("eval", MINILM, "--texts", texts, "--dims", "8,4")
    assert "ten nearest kept, by dim" in done.out
    assert f"{MINILM} was not trained to be cut; 8, 4 are its first components" in done.out
    assert len(embedder.made[0].options) == 1


def test_json_has_everything(shell, embedder, shelf, texts):
    """And the same twice."""
    done = [shell("eval", MINILM, "--texts", texts, "--json", "--dims", "8") for _ in range(2)]
    assert done[0].out == done[1].out
    facts = json.loads(done[0].out)
    assert (facts["model_id"], facts["reference"], facts["dims"]) == (MINILM, "F16", [16, 8])
    assert [one["quant"] for one in facts["quants"]] == ["F16", "Q8_0", "Q4_K_M"]
    assert facts["quants"][0]["figures"][0]["cosine_mean"] == pytest.approx(1)


@pytest.mark.parametrize(("name", "start"), [("r.html", "<!doctype html>"), ("r.md", "# What quantization costs"),
                                             ("r.PNG", "\x89PNG")])  # fmt: skip
def test_reports(shell, embedder, shelf, texts, tmp_path, name, start):
    """The name says which; the table is printed all the same."""
    done = shell("eval", MINILM, "--texts", texts, "-o", tmp_path / name)
    assert done.code == 0
    assert (tmp_path / name).read_bytes().decode("latin-1").startswith(start)
    assert "top 10" in done.out
    assert done.err.endswith(f"report in {tmp_path / name}\n")
    assert shell("eval", MINILM, "--texts", texts, "-o", tmp_path / name, "-q").err == ""


def test_a_small_experiment_is_not_kept(shell, embedder, shelf, texts, tmp_path):
    """Said on stderr with what to type; as many on other texts take the place of what was kept."""
    (tmp_path / "other.txt").write_text("".join(f"other {n}\n" for n in range(20)), encoding="utf-8")
    assert shell("eval", MINILM, "--texts", texts).code == 0
    done = shell("eval", MINILM, "--texts", tmp_path / "other.txt", "--quants", "F16,Q8_0")
    assert "run eval on these data with --quants F16,Q8_0,Q4_K_M" in " ".join(done.err.split())
    assert "kept for --prefer measured in" not in done.err
    assert len(load_measured(load_config().state_dir, MINILM).quants) == 3
    done = shell("eval", MINILM, "--texts", tmp_path / "other.txt")
    assert "this replaces F16, Q8_0, Q4_K_M of all-minilm-l6-v2" in " ".join(done.err.split())
    assert load_measured(load_config().state_dir, MINILM).measured_on[0].startswith("20 texts of other.txt")


def test_limits_and_truncation_are_passed_on(shell, embedder, shelf, texts):
    """To each of them; quiet says nothing on stderr."""
    done = shell("eval", MINILM, "--texts", texts, "--truncate", "end", "--device", "cpu", "--threads", "3", "-q")
    assert (done.code, done.err) == (0, "")
    assert {(one.limits.device, one.limits.n_threads) for one in embedder.made} == {("cpu", 3)}
    assert {options.truncate for one in embedder.made for options in one.options} == {"end"}


def test_pairs_and_retrieval(shell, embedder, shelf, tmp_path):
    """Only the columns that were asked."""
    (tmp_path / "p.tsv").write_text("".join(f"a{n}\tb{n}\t{n}\n" for n in range(10)), encoding="utf-8")
    done = shell("eval", MINILM, "--pairs", tmp_path / "p.tsv", "--reference", "q8_0")
    heading = next(line for line in done.out.splitlines() if line.startswith("quant"))
    assert heading.split() == ["quant", "size", "pairs"]
    assert embedder.made[0].model == f"{MINILM}:Q8_0"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("--quants", "Q9_X"), 3, "all-minilm-l6-v2 has no quant 'Q9_X'; it has F16, Q8_0"),
        (("--quants", "F16,Q4_K_S"), 3, "or add --make to this command"),
        (("--dims", "17"), 7, "dim is 17; the model gives 16, so it is 1..16"),
        (("--dims", "half"), 2, "'half' is no dim; write them like 384,256,128"),
        (("--dims", "0"), 2, "'0' is no dim"),
        (("-o", "r.txt"), 2, "r.txt does not end in .html, .md, .png"),
        (("-o", "none/r.md"), 2, "there is no folder none"),
        (("--texts", "none.txt"), 2, "'none.txt' does not exist"),
        (("--reference", "best"), 3, "has no quant 'best'"),
    ],
)
def test_what_is_refused(shell, embedder, shelf, arguments, code, expected):
    """With the words to type; nothing is kept."""
    done = shell("eval", MINILM, *arguments)
    assert (done.code, done.out) == (code, "")
    assert expected in " ".join(done.err.split())
    assert load_measured(load_config().state_dir, MINILM) is None


@pytest.mark.parametrize(
    ("option", "name", "content", "expected"),
    [
        ("--texts", "one.txt", "a text\n", "one.txt has 1 text, each counted once; give at least 20"),
        ("--pairs", "p.tsv", "", "p.tsv has 0 pairs; give at least 10"),
        (
            "--pairs",
            "p.tsv",
            "a\tb\tmuch\n",
            (
                "p.tsv, line 1: score is 'much', which is no number; the names of a "
                "first line are sentence1, sentence2, score"
            ),
        ),
        ("--retrieval", "beir/queries.jsonl", "", "corpus.jsonl cannot be read"),
    ],
)
def test_input_that_cannot_be_used(shell, embedder, shelf, tmp_path, option, name, content, expected):
    """Exit code 7 before any model is opened."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8")
    done = shell("eval", MINILM, option, path.parent if option == "--retrieval" else path)
    assert (done.code, embedder.made) == (7, [])
    assert expected in done.err


def test_nothing_here(shell, embedder):
    """The command that fetches the model."""
    done = shell("eval", MINILM)
    assert (done.code, embedder.made) == (3, [])
    assert f"gguf-embed pull {MINILM}" in done.err


def test_mteb_is_checked_at_the_door(shell, embedder, shelf, monkeypatch):
    """Its extra is named before anything is embedded."""

    def missing():
        raise MissingExtraError('run: pip install "gguf-embed[mteb]"', extra="mteb")

    monkeypatch.setattr("gguf_embed.quality.tasks._check_mteb", missing)
    done = shell("eval", MINILM, "--task", "STSBenchmark")
    assert (done.code, embedder.made) == (8, [])
    assert 'pip install "gguf-embed[mteb]"' in done.err


def test_tasks_are_run_and_shown(shell, embedder, shelf, monkeypatch):
    """A table of their main scores, with the truncation that was asked for."""
    asked = []

    def run_tasks(model, tasks, *, truncate):
        asked.append((model.model, tasks, truncate))
        return (("STSBenchmark", 0.8),)

    monkeypatch.setattr("gguf_embed.quality.tasks.find_tasks", lambda names: [f"task {name}" for name in names])
    monkeypatch.setattr("gguf_embed.quality.tasks.load_tasks", lambda _: None)
    monkeypatch.setattr("gguf_embed.quality.tasks.run_tasks", run_tasks)
    done = shell("eval", MINILM, "--task", "STSBenchmark", "--quants", "F16,Q8_0", "--truncate", "end")
    assert "mteb, main scores" in done.out
    assert "Q8_0         0.8000" in done.out
    assert asked == [(f"{MINILM}:{quant}", ["task STSBenchmark"], "end") for quant in ("F16", "Q8_0")]


def test_a_bug_is_no_mistake_of_the_users(shell, embedder, shelf, texts, monkeypatch):
    """It ends in a traceback, not in words about options."""

    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr("gguf_embed.quality.metrics.cosines", broken)
    with pytest.raises(ValueError, match="a bug"):
        shell("eval", MINILM, "--texts", texts)


def test_what_a_plan_refuses_is_an_option(shell, embedder, shelf, texts, monkeypatch):
    """A device that is not here is found when a model is planned."""

    def plan(_):
        raise ValueError("device is 'CUDA7'; it is auto, gpu or cpu")

    monkeypatch.setattr(embedder, "plan", property(plan, lambda *_: None), raising=False)
    done = shell("eval", MINILM, "--texts", texts, "--device", "CUDA7")
    assert done.code == 2
    assert "device is 'CUDA7'" in done.err
