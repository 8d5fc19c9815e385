"""From a name to vectors through a hub on loopback, with the real client and llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import synthetic
from fake_hub import FakeHub

from gguf_embed import DoesNotFitError, Embedder, Limits, OfflineError, UnsupportedModelError
from gguf_embed.cli.app import run

REPO = "someone/synthetic-GGUF"
QUANTS = ("Q8_0", "Q4_K_M", "Q4_K_S", "Q3_K_M")
QUANTS_OF_THE_LADDER = QUANTS[1:]


@pytest.fixture
def hub(qwen3_quantized, monkeypatch):
    """A hub whose repository holds four quantizations of the synthetic Qwen3."""
    with FakeHub() as fake:
        for quant in QUANTS:
            fake.add(REPO, f"synthetic.{quant}.gguf", qwen3_quantized(quant).read_bytes())
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake


def test_a_repository_becomes_vectors(hub):
    """The ladder's best is planned from headers alone, fetched, and embeds; again without a request for its bytes."""
    with Embedder(REPO) as model:
        assert model.plan.quant == "Q4_K_M"
        assert [lost.quant for lost in model.plan.rejected] == ["Q4_K_S", "Q3_K_M"]
        planned_with = hub.served_bytes
        first = model.encode("the capital")
    assert planned_with < 3 * (2 << 20)
    served = hub.served_bytes
    with Embedder(f"{REPO}:q4_k_m") as model:
        assert np.array_equal(model.encode("the capital"), first)
    assert hub.served_bytes == served


def test_cached_and_offline_makes_no_request(hub, monkeypatch):
    """With the network off a cached file is used without a request; another one is an error that says what to do."""
    Embedder(f"{REPO}:Q8_0").load()
    monkeypatch.setenv("GGUF_EMBED_OFFLINE", "1")
    seen = len(hub.requests)
    with Embedder(f"{REPO}:Q8_0") as model:
        assert model.encode("the").shape == (256,)
    with pytest.raises(OfflineError):
        Embedder(f"{REPO}:Q4_K_S").load()
    assert len(hub.requests) == seen


def test_less_memory_takes_a_smaller_quantization(hub):
    """Limits move the choice down the ladder, never up, until nothing fits."""
    plan = Embedder(REPO).plan
    taken = []
    for tenth in range(10, -1, -1):
        try:
            limits = Limits(memory_bytes=max(1, plan.required_bytes * tenth // 10))
            taken.append(QUANTS_OF_THE_LADDER.index(Embedder(REPO, limits=limits).plan.quant))
        except DoesNotFitError:
            taken.append(len(QUANTS_OF_THE_LADDER))
    assert taken == sorted(taken)
    assert (taken[0], taken[-1]) == (0, len(QUANTS_OF_THE_LADDER))


def test_a_listed_repository_of_the_registry(hub, tmp_path):
    """A quantization that the registry only knows a repository for is found there by its name."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.toml").write_text(
        f"""schema = 1
[models.listed]
base_repo = "someone/synthetic"
license = "MIT"
arch = "qwen3"
pooling_type = "last"
add_eos = true
n_embd = 256
max_tokens = 512
ladder = ["Q4_K_S"]
[[models.listed.discover]]
repo = "{REPO}"
quants = ["Q4_K_S"]
"""
    )
    with Embedder("listed") as model:
        assert model.encode("the").shape == (256,)
        assert model.load().name == "synthetic.Q4_K_S.gguf"
        assert model.max_seq_length == 512


def test_an_architecture_is_refused_before_weights_move(hub, tmp_path):
    """What this llama.cpp lacks is refused by the header; the rest of the file is never asked for."""
    path = synthetic.write_qwen3(tmp_path / "new.gguf", architecture="qwen9", f16=True, n_vocab=20_000)
    hub.add("someone/new-GGUF", "new.Q8_0.gguf", path.read_bytes())
    before = hub.served_bytes
    with pytest.raises(UnsupportedModelError, match="'qwen9'"):
        Embedder("someone/new-GGUF:Q8_0").load()
    assert hub.served_bytes - before < path.stat().st_size / 2


def test_pull_list_show_rm(hub, capsys):
    """The shell's round: fetch, see, delete."""
    assert run(["pull", f"{REPO}:Q3_K_M"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.is_file()
    assert run(["list", "--json"]) == 0
    [listed] = json.loads(capsys.readouterr().out)
    assert (listed["model"], listed["quant"], listed["path"]) == (REPO, "Q3_K_M", str(path))
    assert run(["show", f"{REPO}:Q3_K_M", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["header"]["pooling_type"] == "last"
    assert run(["rm", REPO, "--yes"]) == 0
    assert not path.exists()
    assert not list(path.parents[2].glob("blobs/*"))
    assert run(["rm", REPO, "--yes"]) == 3


def test_the_shell_embeds_through_pipes(hub):
    """A separate process reads lines, writes unit vectors to stdout and nothing else there."""
    command = [sys.executable, "-c", "from gguf_embed.cli import main; main()", "embed", "-m", REPO, "-f", "jsonl"]
    done = subprocess.run(command, input=b"the\ncapital\n\n", capture_output=True, check=True, timeout=120)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["the", "capital", ""]
    assert np.allclose(np.linalg.norm([row["embedding"] for row in rows], axis=1), 1, atol=1e-5)


def test_soak():
    """Random batches in one process: alive, finite, in bounded memory (scripts/soak runs 10,000 by hand)."""
    script = Path(__file__).parents[2] / "scripts" / "soak"
    done = subprocess.run(
        [sys.executable, str(script), "--batches", "200"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "alive, all finite" in done.stdout
