"""`eval` with the starter model: made, measured, reported, and in the order of `--prefer measured` from then on."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from gguf_embed import Embedder, truncate_dim
from gguf_embed.cli.app import run
from gguf_embed.models.made import made_path
from gguf_embed.quality.datasets import load_sample
from gguf_embed.quality.metrics import cosines

MODEL = "all-minilm-l6-v2"


@pytest.fixture
def shell(capfd, monkeypatch, starter_cache):
    """Run one command line in this process: exit code, stdout, stderr; the starter model is in the cache."""
    package = logging.getLogger("gguf_embed")
    before = (package.handlers[:], package.propagate, package.level)
    monkeypatch.setenv("GGUF_EMBED_N_THREADS", "1")

    def call(*arguments):
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    yield call
    package.handlers[:], package.propagate = before[:2]
    package.setLevel(before[2])


def test_what_quantization_costs(shell, tmp_path):
    """Made here, held against F16; finer costs less, cosines are those of the vectors, and the report has them."""
    code, out, _ = shell("eval", MODEL, "--quants", "F16,Q8_0,Q4_K_M", "--make", "--dims", "96", "--json",
                         "-o", tmp_path / "r.html")  # fmt: skip
    assert code == 0
    facts = json.loads(out)
    assert (facts["reference"], facts["dims"]) == ("F16", [384, 96])
    whole = {one["quant"]: one["figures"][0] for one in facts["quants"]}
    assert whole["F16"]["cosine_min"] == pytest.approx(1)
    assert 0.999 < whole["Q8_0"]["cosine_mean"] < 1
    assert 0.95 < whole["Q4_K_M"]["cosine_mean"] < whole["Q8_0"]["cosine_mean"]
    assert whole["Q4_K_M"]["rank_correlation"] < whole["Q8_0"]["rank_correlation"]
    assert whole["F16"]["ndcg_at_10"] > 0.5

    texts = load_sample().texts.texts
    rows = {}
    for quant in ("F16", "Q4_K_M"):
        with Embedder(f"{MODEL}:{quant}") as model:
            rows[quant] = model.encode(list(texts))
    coarse = facts["quants"][2]["figures"]
    assert cosines(rows["F16"], rows["Q4_K_M"]).mean() == pytest.approx(coarse[0]["cosine_mean"], abs=1e-5)
    cut = [truncate_dim(rows[quant], 96) for quant in ("F16", "Q4_K_M")]
    assert np.min(cosines(*cut)) == pytest.approx(coarse[1]["cosine_min"], abs=1e-5)

    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert f"{coarse[0]['cosine_mean']:.5f}" in page
    assert page.count("<svg") == 3


def test_the_same_call_twice(shell, tmp_path):
    """The same figures, to the last digit, and the same report, to the last byte; nothing is made again."""
    outs = []
    for name in ("a.html", "b.html"):
        code, out, err = shell("eval", MODEL, "--quants", "F16,Q4_K_M", "--make", "--json", "-o", tmp_path / name)
        assert code == 0
        outs.append(out)
    assert "making" not in err
    assert outs[0] == outs[1]
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_prefer_measured_takes_what_was_measured(shell, tmp_path):
    """The best that was measured, while it is here."""
    assert shell("plan", MODEL, "--prefer", "measured")[0] == 2
    assert shell("eval", MODEL, "--quants", "F16,Q4_K_M", "--make")[0] == 0
    plan = json.loads(shell("plan", MODEL, "--prefer", "measured", "--json")[1])
    assert plan["quant"] == "F16"
    with Embedder(MODEL, prefer="measured") as model:
        assert model.encode("a text").shape == (384,)
    kept = json.loads((tmp_path / "state" / "evaluations.json").read_text(encoding="utf-8"))
    for one in kept[MODEL]["quants"]:
        one["score"] = 1.0
    (tmp_path / "state" / "evaluations.json").write_text(json.dumps(kept), encoding="utf-8")
    plan = json.loads(shell("plan", MODEL, "--prefer", "measured", "--json")[1])
    assert plan["quant"] == "Q4_K_M"  # equal, and smaller
    made_path(tmp_path / "cache", MODEL, "Q4_K_M").unlink()
    assert json.loads(shell("plan", MODEL, "--prefer", "measured", "--json")[1])["quant"] == "F16"
