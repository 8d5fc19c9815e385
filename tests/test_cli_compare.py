"""`compare` on the command line: figures and verdict on stdout, exit codes, and what to type after a mistake."""

from __future__ import annotations

import json
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from fake_embeddings import FakeServer, tei

from gguf_embed.cli.app import run
from gguf_embed.encoding import EmbedReport
from gguf_embed.errors import OfflineError
from gguf_embed.fit.planner import Limits
from gguf_embed.prompts import PromptSet
from gguf_embed.vectors import l2_normalize


class FakeEmbedder:
    """Vectors of a text's length and 1; "turned" has the two the other way round."""

    made: list[FakeEmbedder] = []  # noqa: RUF012 - emptied by the fixture
    prompts = PromptSet(query="q", document="d")
    plan = SimpleNamespace(model_id="fake", quant="Q8_0")

    def fingerprint_of(self, options):
        return "f" * 32

    def __init__(self, model, *, limits, prefer, truncate_dim, pooling_type, add_eos):
        self.model_id, self.limits, self.texts, self.truncate = model, limits, (), None
        self.given = (prefer, truncate_dim, pooling_type, add_eos)
        self.made.append(self)

    def fetch(self, on_progress=None):
        pass

    def load(self, on_progress=None):
        pass

    def report(self, texts, options, *, on_batch):
        self.texts, self.truncate = texts, options.truncate
        on_batch(len(texts), 1)
        rows = l2_normalize(np.array([[len(text), 1] for text in texts], dtype=np.float32))
        rows = rows[:, ::-1] if self.model_id == "turned" else rows
        return EmbedReport(embeddings=rows, n_tokens=(), truncated=(3,) if options.truncate == "end" else ())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture(autouse=True)
def embedder(monkeypatch):
    """The fake in the Embedder's place; `made` has those that were opened."""
    FakeEmbedder.made.clear()
    monkeypatch.setattr("gguf_embed.embedder.Embedder", FakeEmbedder)
    yield FakeEmbedder
    package = logging.getLogger("gguf_embed")
    package.handlers[:], package.propagate = [], True


@pytest.fixture
def shell(monkeypatch, capsys, tmp_path):
    """Run one command line at 80 columns: (code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = run(["compare", *map(str, arguments)])
        sys.stdout.flush()
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def texts(tmp_path):
    """Forty texts of different lengths, a line each; saved vectors of them as the fake makes them."""
    lines = ["word " * n + "é" for n in range(1, 41)]
    (tmp_path / "t.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    np.save(tmp_path / "same.npy", np.array([[len(line), 1] for line in lines], dtype=np.float64))
    np.save(tmp_path / "other.npy", np.array([[1, len(line)] for line in lines], dtype=np.float64))
    return lines


def test_the_same_is_said_first(shell, texts):
    """The verdict, then the sides, the figures and the worst texts, within 80 columns."""
    code, out, err = shell("m", "same.npy", "-i", "t.txt", "-q")
    assert (code, err) == (0, "")
    assert out.startswith("The same: an index made with A can be searched with B.\n")
    assert "A  m: Q8_0, 2 components, unit length\n" in out
    assert "B  same.npy: 2 components, lengths 6.08 to 201\n" in out
    assert "cosine            mean 1.00000, least 1.00000" in out
    assert "neighbours        100.0% of each text's 10 nearest are the same in both\n" in out
    assert "texts             40\n" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_difference_is_no_failure_unless_asked(shell, texts):
    """--at-least makes it one, with a code of its own, after everything was printed."""
    code, out, _ = shell("m", "other.npy", "-i", "t.txt", "-q")
    assert (code, out.startswith("Different vectors: an index made with A has to be made again")) == (0, True)
    code, again, err = shell("m", "other.npy", "-i", "t.txt", "-q", "--at-least", "0.99")
    mean = json.loads(shell("m", "other.npy", "-i", "t.txt", "-q", "--json")[1])["mean"]
    assert (code, again, err) == (9, out, f"mean cosine {mean:.5f} is below --at-least 0.99\n")
    assert shell("m", "same.npy", "-i", "t.txt", "-q", "--at-least", "0.99")[0] == 0


def test_the_worst_texts_are_shortened_to_the_line(shell, texts):
    """As many as asked for, the worst first, and none where none is wanted."""
    _, out, _ = shell("m", "other.npy", "-i", "t.txt", "-q", "--worst", "3")
    worst = out.partition("\nWorst\n")[2].splitlines()
    assert len(worst) == 3
    assert worst[0].endswith("...")
    assert len(worst[0]) == 80
    assert max(map(len, worst)) <= 80
    assert "Worst" not in shell("m", "other.npy", "-i", "t.txt", "-q", "--worst", "0")[1]


def test_wide_and_unprintable_texts_keep_to_the_line(shell, tmp_path):
    """A text moves no cursor, and a wide character counts twice."""
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"text": "北京" * 60}) + "\n" + json.dumps({"text": "\x1b[2Jx"}) + "\n"
    )
    _, out, _ = shell("m", "turned", "-i", "t.jsonl", "-q")
    assert "\x1b" not in out
    assert max(len(line) + sum(c in "北京" for c in line) for line in out.splitlines()) <= 80


def test_json_has_everything(shell, texts):
    """Each text's cosine, the sides, the figures and the verdict."""
    code, out, _ = shell("m", "other.npy", "-i", "t.txt", "-q", "--json", "--worst", "2", "--device", "cpu")
    found = json.loads(out)
    assert code == 0
    assert (found["n_texts"], found["dim"], len(found["cosines"])) == (40, 2, 40)
    assert found["verdict"]["kind"] == "different"
    assert found["least"] == pytest.approx(min(found["cosines"]), abs=1e-6)
    assert [row["text"] for row in found["worst"]] == texts[:-3:-1]
    assert found["a"]["facts"] == {"model": "m", "quant": "Q8_0"}
    assert found["a"]["fingerprint"] == "f" * 32
    assert found["b"]["look"]["is_unit"] is False


def test_plan_options_go_to_models(shell, texts, embedder):
    """Each model side is opened with them, and with the length to compare."""
    shell("m", "turned", "-i", "t.txt", "-q", "--device", "cpu", "--n-ctx", "64", "--prefer", "small", "-d", "2",
          "--pooling", "mean", "--add-eos")  # fmt: skip
    assert [one.model_id for one in embedder.made] == ["turned", "m", "turned"]  # tried first
    for one in embedder.made[1:]:
        assert one.limits == Limits(device="cpu", n_ctx=64).over(SimpleNamespace(**vars_of_config()))
        assert one.given == ("small", 2, "mean", True)


def vars_of_config():
    from gguf_embed.config import load_config  # noqa: PLC0415 - reads the test's environment

    config = load_config()
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_long_texts_can_be_cut(shell, texts, embedder):
    """As the error of one advises; how many were is said beside the side."""
    code, out, _ = shell("m", "turned", "-i", "t.txt", "-q", "--truncate", "end")
    assert (code, [one.truncate for one in embedder.made]) == (0, [None, "end", "end"])
    assert "unit length, 1 cut to its longest" in " ".join(out.split())
    assert "cut to" not in shell("m", "turned", "-i", "t.txt", "-q")[1]


@pytest.mark.parametrize("second", ["http://127.0.0.1:9/embed", "unknown"])
def test_a_mistake_in_b_is_found_before_a_is_embedded(shell, texts, embedder, second, monkeypatch):
    """Embedding may take hours."""

    def fetch(self, on_progress=None):
        if self.model_id == "unknown":
            raise OfflineError("not here")

    monkeypatch.setattr(embedder, "fetch", fetch)
    assert shell("m", second, "-i", "t.txt")[:2] == (4, "")
    assert [one.texts for one in embedder.made if one.model_id == "m"] == []


def test_a_server_is_a_side(shell, texts):
    """Its progress is told on stderr, its dialect and model on stdout."""
    server = FakeServer(embed=tei, info={"model_id": "o/m"})
    try:
        code, out, err = shell("m", server.url, "-i", "t.txt", "--prompt", "p: ", "--api-key", "k")
    finally:
        server.close()
    assert code == 0
    assert f"B  {server.url}/embed: tei o/m, 2 components, lengths" in out
    assert "prompt 'p:" in out
    assert f"{server.url}: 40/40 texts" in err
    assert [body["inputs"][0] for _, body in server.posted()][:2] == ["p: word é"] * 2  # tried, then asked
    assert len(server.posted()[0][1]["inputs"]) == 1


def test_two_saved_files_need_no_texts(shell, texts):
    """Rows go by position."""
    code, out, _ = shell("same.npy", "other.npy", "-q")
    assert code == 0
    assert "row 40" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("m", "n"), 2, "add -i FILE"),
        (("m", "same.npy"), 2, "same.npy has no texts to embed for the other side; add -i FILE"),
        (("same.npy", "other.npy", "--as", "query"), 2, "both sides are saved"),
        (("same.npy", "other.npy", "-d", "0"), 2, "--dim"),
        (("same.npy", "other.npy", "-d", "9"), 7, "-d 9 is more than the 2 components"),
        (("same.npy", "none.npy"), 7, "none.npy is not there"),
        (
            ("m", "localhost:12001", "-i", "t.txt"),
            2,
            "a server's URL begins with http://, as in http://localhost:12001",
        ),
        (("m", "http://", "-i", "t.txt"), 2, "http:// is no URL of a server"),
        (("m", "http://127.0.0.1:9/embed", "-i", "t.txt"), 4, "cannot be reached"),
        (("m", "same.npy", "-i", "bad.jsonl"), 7, "bad.jsonl, line 1: no JSON"),
        (("m", "same.npy", "-i", "t.txt", "--task", "x"), 2, "takes no task"),
        (("m", "same.npy", "-i", "t.txt", "--api-key", "k"), 2, "1 --api-key for 0 URLs"),
        (("m", "t.txt", "-i", "t.txt"), 7, "no file of vectors"),
        (("one.npy", "same.npy"), 7, "one.npy has 1 rows and same.npy has 40"),
        (("m",), 2, "Missing argument 'B'"),
        (("m", "n", "-i", "t.txt", "--at-least", "2"), 2, "--at-least"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_told_with_what_to_type(shell, texts, tmp_path, arguments, code, words):
    """On stderr, with the code of its kind, and nothing on stdout."""
    (tmp_path / "bad.jsonl").write_text("{\n")
    np.save(tmp_path / "one.npy", np.ones((1, 2)))
    found, out, err = shell(*arguments)
    assert (found, out) == (code, "")
    assert words in " ".join(err.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("m", "http://user:secret@host:99999/x", "-i", "t.txt"),
        ("m", "http://127.0.0.1:9/embed", "-i", "t.txt", "--api-key", "secret\nx"),
        ("m", "http://u:secret@127.0.0.1:9/embed?key=secret", "-i", "t.txt", "--api-key", "secret-key"),
    ],
)
def test_no_secret_is_printed(shell, texts, arguments, embedder):
    """Neither a password nor a key, whatever is wrong with it."""
    code, out, err = shell(*arguments)
    assert code in (2, 4)
    assert "secret" not in out + err


def test_a_key_is_checked_before_a_model_is_opened(shell, texts, embedder):
    """Embedding may take hours."""
    assert shell("m", "http://127.0.0.1:9/embed", "-i", "t.txt", "--api-key", "a b")[0] == 2
    assert embedder.made == []


def test_a_bug_is_no_mistake_of_the_users(shell, texts, monkeypatch):
    """It ends in a traceback, not in words about options."""

    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr("gguf_embed.quality.comparing.agree", broken)
    with pytest.raises(ValueError, match="a bug"):
        shell("m", "same.npy", "-i", "t.txt", "-q")


def test_rows_that_are_no_objects_are_a_damaged_file(shell, texts, tmp_path):
    """Exit code 7 with its name, not a usage error."""
    (tmp_path / "same.npy.rows.jsonl").write_text("5\n" * 40)
    code, out, err = shell("m", "same.npy", "-i", "t.txt", "-q")
    assert (code, out) == (7, "")
    assert "same.npy.rows.jsonl, line 1: expected an object" in " ".join(err.split())


def test_a_sample_is_said_to_be_one(shell, texts, monkeypatch):
    """In the line of the neighbours, and as a number for programs."""
    monkeypatch.setattr("gguf_embed.quality.agreement._N_TEXTS_SAMPLED", 39)
    monkeypatch.setattr("gguf_embed.quality.agreement._N_SAMPLE", 30)
    out = shell("m", "same.npy", "-i", "t.txt", "-q")[1]
    assert "neighbours        100.0% of the 10 nearest of 30 texts drawn are the same\n" in out
    assert max(map(len, out.splitlines())) <= 80
    assert json.loads(shell("m", "same.npy", "-i", "t.txt", "-q", "--json")[1])["n_sampled"] == 30
