"""`quantize` on the command line with the starter model: made, found by its name, deleted."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_hub import FakeHub

from gguf_embed import Embedder
from gguf_embed.cli.app import run
from gguf_embed.models.header import load_facts

MODEL = "all-minilm-l6-v2"


@pytest.fixture
def shell(capfd):
    """Run one command line in this process: exit code, stdout, stderr."""
    package = logging.getLogger("gguf_embed")
    before = (package.handlers[:], package.propagate, package.level)

    def call(*arguments):
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    yield call
    package.handlers[:], package.propagate = before[:2]
    package.setLevel(before[2])


@pytest.fixture(autouse=True)
def cache(starter, tmp_path, monkeypatch):
    """A cache of the test's own, with the starter model in it; the network is not needed."""
    folder = tmp_path / "cache" / starter.parent.name
    folder.mkdir(parents=True)
    (folder / starter.name).symlink_to(starter)
    monkeypatch.setenv("GGUF_EMBED_N_THREADS", "1")
    return folder.parent


@pytest.fixture(scope="module")
def made_once(starter, tmp_path_factory):
    """A Q4_K_S of the starter model, made by the command."""
    folder = tmp_path_factory.mktemp("made")
    target = folder / "made-Q4_K_S.gguf"
    assert run(["quantize", str(starter), "--to", "Q4_K_S", "-o", str(target), "-q"]) == 0
    return target


@pytest.fixture
def made(made_once, cache):
    """That file where the command puts it for the model's name."""
    path = cache / "quantized" / MODEL / f"{MODEL}-Q4_K_S.gguf"
    path.parent.mkdir(parents=True)
    shutil.copy(made_once, path)
    return path


def test_the_path_is_printed_and_the_file_is_what_it_says(shell, cache, starter):
    """The path alone on stdout, progress and warnings on stderr; the name is taken in any case."""
    code, out, err = shell("quantize", MODEL, "--to", "q4_k_s")
    path = Path(out.removesuffix("\n"))
    assert code == 0
    assert path == cache / "quantized" / MODEL / f"{MODEL}-Q4_K_S.gguf"
    assert "making Q4_K_S: 101/101 tensors" in err
    facts = load_facts(path)
    assert (facts.quant, facts.n_embd) == ("Q4_K_S", 384)
    assert facts.weights_bytes < load_facts(starter).weights_bytes / 2
    before = path.stat().st_mtime_ns
    code, out, err = shell("quantize", MODEL, "--to", "Q4_K_S", "--json", "-q")  # made already
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["model"], told["quant"], told["path"]) == (MODEL, "Q4_K_S", str(path))
    assert told["size_bytes"] == path.stat().st_size
    assert told["from"].endswith(starter.name)
    assert path.stat().st_mtime_ns == before


def test_what_was_made_is_found_by_its_name(shell, made):
    """`list` shows it, `plan` takes it and `embed` runs it, without the network and beside the starter's F16."""
    files = json.loads(shell("list", "--json")[1])
    assert [(one["model"], one["quant"]) for one in files] == [(MODEL, "F16"), (MODEL, "Q4_K_S")]
    assert files[1]["path"] == str(made)
    plan = json.loads(shell("plan", f"{MODEL}:q4_k_s", "--json")[1])
    assert (plan["quant"], plan["is_on_disk"], plan["file"]) == ("Q4_K_S", True, str(made))
    code, out, _ = shell("embed", "-m", f"{MODEL}:Q4_K_S", "a text")
    assert code == 0
    rows = [json.loads(shell("embed", "-m", name, "a text")[1]) for name in (MODEL, f"{MODEL}:F16")]
    assert rows[0] == rows[1]
    assert 0.9 < np.dot(json.loads(out), rows[0]) < 0.99999


def test_what_was_made_is_found_offline(made, monkeypatch):
    """With the network off a name leads to the file that was made."""
    monkeypatch.setenv("GGUF_EMBED_OFFLINE", "1")
    with Embedder(f"{MODEL}:Q4_K_S") as model:
        assert model.load() == made
        assert (model.plan.quant, model.model_id, model.max_seq_length) == ("Q4_K_S", MODEL, 256)


def test_what_was_made_is_not_taken_unasked(made):
    """The model's own name still means its own ladder."""
    assert Embedder(MODEL).plan.quant == "F16"


def test_rm_removes_what_was_made(shell, made, starter):
    """By model and quantization; the file it was made from stays, and the name is unknown again, with the offer."""
    code, out, err = shell("rm", f"{MODEL}:Q4_K_S", "--yes")
    assert (code, out[:5]) == (0, "freed")
    assert str(made) in err
    assert not made.exists()
    assert starter.exists()
    assert [one["quant"] for one in json.loads(shell("list", "--json")[1])] == ["F16"]
    code, out, err = shell("embed", "-m", f"{MODEL}:Q4_K_S", "a text")
    assert (code, out) == (3, "")
    assert f"'gguf-embed quantize {MODEL} --to Q4_K_S' makes it" in err
    assert shell("rm", f"{MODEL}:Q4_K_S", "--yes")[0] == 3


def test_offline_it_is_made_from_what_is_here(shell, monkeypatch):
    """With the network off, the F16 that is on disk will do, though a Q8_0 is elsewhere."""
    monkeypatch.setenv("GGUF_EMBED_OFFLINE", "1")
    code, out, _ = shell("quantize", MODEL, "--to", "Q4_0", "-q")
    assert code == 0
    assert load_facts(Path(out.strip())).quant == "Q4_0"


def test_of_a_file_of_the_user_s_it_lies_beside_it(shell, starter, tmp_path):
    """The name is the file's with the new quantization in the old one's place; -o puts it elsewhere."""
    own = tmp_path / "own" / "my-model-F16.gguf"
    own.parent.mkdir()
    shutil.copy(starter, own)
    code, out, _ = shell("quantize", own, "--to", "Q8_0", "--threads", "1", "-q")
    assert (code, out) == (0, f"{own.with_name('my-model-Q8_0.gguf')}\n")
    elsewhere = tmp_path / "new" / "folder" / "x.gguf"
    code, out, _ = shell("quantize", own, "--to", "Q8_0", "-o", elsewhere, "-q")
    assert (code, out) == (0, f"{elsewhere}\n")
    assert elsewhere.read_bytes()[:4] == b"GGUF"
    assert sorted(path.name for path in own.parent.iterdir() if path.suffix == ".gguf") == [
        "my-model-F16.gguf", "my-model-Q8_0.gguf",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("to", "code", "words"),
    [("F32", 6, "what was rounded away does not come back"), ("F16", 6, "what was rounded away does not come back"),
     ("Q7_K", 2, "'Q7_K' is no quantization that can be made")],
)  # fmt: skip
def test_a_quantization_that_cannot_be_made_of_it(shell, cache, to, code, words):
    """No file of more bits, nor of a type that there is not; nothing is left behind."""
    done = shell("quantize", MODEL, "--to", to, "-q")
    assert done[:2] == (code, "")
    assert words in " ".join(done[2].split())
    assert not list(cache.rglob("quantized/**/*.gguf*"))


def test_of_a_repository_it_is_found_by_its_name(shell, qwen3_quantized, monkeypatch, cache):
    """A quantization of a repository that the registry does not know: fetched, made, and named after it."""
    repo = "someone/Synthetic-GGUF"
    with FakeHub() as hub:
        hub.add(repo, "synthetic-Q8_0.gguf", qwen3_quantized("Q8_0").read_bytes())
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        code, out, _ = shell("quantize", repo, "--to", "Q4_K_S", "-q")
        made = cache / "quantized" / "someone--Synthetic-GGUF" / "Synthetic-Q4_K_S.gguf"
        assert (code, out) == (0, f"{made}\n")
        hub.requests.clear()
        with Embedder(f"{repo}:Q4_K_S") as model:
            assert model.load() == made
            assert model.encode("the").shape == (256,)
        assert not any("/resolve/" in seen.path for seen in hub.requests)
    assert shell("rm", f"{repo}:Q4_K_S", "--yes")[0] == 0
    assert not made.exists()
