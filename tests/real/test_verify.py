"""`gguf-embed verify`: a sound file passes, and each broken one has its fault named."""

from __future__ import annotations

import json
import shutil

import broken
import gguf
import numpy as np
import pytest
import synthetic

from gguf_embed import Embedder
from gguf_embed.cli.app import run
from gguf_embed.engine.session import Session
from gguf_embed.native.head import HeadStop
from gguf_embed.native.weights import scan_tensors

pytestmark = pytest.mark.real


@pytest.fixture
def verify(capfd):
    """Run the command; returns the exit code and the checks by name."""

    def run_it(*arguments):
        code = run(["verify", *map(str, arguments), "--json"])
        told = capfd.readouterr().out
        facts = json.loads(told)
        return code, {check["name"]: check for check in facts["checks"]}, facts

    return run_it


def test_the_starter_model_is_right(starter_cache, verify):
    """Every check passes; the known scores are those of sentence-transformers."""
    code, checks, facts = verify("all-minilm-l6-v2")
    assert (code, facts["is_right"]) == (0, True)
    assert {check["state"] for check in checks.values()} == {"ok"}
    assert checks["known scores"]["figure"] <= 0.0005
    assert checks["batches"]["figure"] >= 0.9999
    assert facts["fingerprint"] == Embedder("all-minilm-l6-v2").fingerprint


def test_a_sound_qwen3_is_right(qwen3, verify):
    """By path, without a registry's word: skipped and computed head, flash attention and the plain CPU agree."""
    code, checks, _ = verify(qwen3)
    assert code == 0
    assert [name for name, check in checks.items() if check["state"] == "skipped"] == ["checksum", "known scores"]
    for name in ("batches", "head", "flash attention", "plain CPU"):
        assert checks[name]["figure"] >= 0.9999, name


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K_M", "Q3_K_M"])
def test_quantizations_are_right(qwen3_quantized, verify, quant):
    """They drift more between kernels, within the bounds that were measured."""
    code, checks, _ = verify(qwen3_quantized(quant))
    assert code == 0, {name: check["words"] for name, check in checks.items() if check["state"] == "fault"}


BROKEN = {
    "without_eos": ("EOS", "says nothing of it"),
    "mean_pooling": ("pooling", "the file says mean"),
    "without_rank_head": ("rank head", "cls.output.weight is missing"),
    "chat_model": ("pooling", "a chat model"),
    "zero_tensor": ("weights", "blk.1.ffn_down.weight is all zeros"),
    "nan_weight": ("weights", "1 of 65,536 numbers of blk.2.attn_v.weight are NaN"),
    "other_pretokenizer": ("tokenizer", "tokenizer.ggml.pre is gpt-2"),
    "truncated": ("file", "cut short"),
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_each_fault_is_named(tmp_path, verify, fault):
    """One check says what is wrong, in words that a person can act on, and the exit code is 9."""
    name, words = BROKEN[fault]
    code, checks, facts = verify(getattr(broken, fault)(tmp_path))
    assert (code, facts["is_right"]) == (9, False)
    assert checks[name]["state"] == "fault"
    assert words in checks[name]["words"]


@pytest.mark.parametrize(("change", "name"), [({"add_eos": None}, "EOS"), ({"pooling_type": 1}, "pooling")])
def test_what_the_registry_sets_right_is_told_and_is_no_fault(registered, tmp_path, verify, change, name):
    """The file is wrong, its vectors here are not."""
    path = synthetic.write_qwen3(tmp_path / registered.name, **change)
    code, checks, _ = verify(path)
    assert (code, checks[name]["state"]) == (0, "mended")
    assert "Other programs do as the file says" in checks[name]["words"]


@pytest.mark.parametrize(
    ("change", "options"),
    [({"add_eos": None}, ["--add-eos"]), ({"pooling_type": None}, ["--pooling", "last"])],
)
def test_the_callers_word_counts(tmp_path, verify, change, options):
    """What the card says, given by hand."""
    code, checks, _ = verify(synthetic.write_qwen3(tmp_path / "one.gguf", **change), *options)
    assert code == 0
    assert "mended" in {check["state"] for check in checks.values()}


def test_a_changed_file_is_not_the_published_one(qwen3, tmp_path, verify):
    """A blob whose bytes are not those of its name."""
    blob = shutil.copy(qwen3, tmp_path / ("0" * 64))
    (tmp_path / "model.gguf").symlink_to(blob)
    code, checks, _ = verify(tmp_path / "model.gguf")
    assert (code, checks["checksum"]["state"]) == (9, "fault")
    assert "fetch it again" in checks["checksum"]["words"]


def test_a_changed_starter_file_is_noticed(starter, tmp_path, monkeypatch, verify):
    """It has no published sum, but the one that it has when it is made."""
    folder = tmp_path / "cache" / "models"
    folder.mkdir(parents=True)
    data = bytearray(starter.read_bytes())
    data[-1000:] = data[-2000:-1000]
    (folder / starter.name).write_bytes(data)
    _, checks, _ = verify("all-minilm-l6-v2")
    assert checks["checksum"]["state"] == "note"
    assert "or changed" in checks["checksum"]["words"]


def test_a_cut_file_of_a_name_is_a_fault_too(starter, tmp_path, verify):
    """A table and exit code 9, as for a path."""
    folder = tmp_path / "cache" / "models"
    folder.mkdir(parents=True)
    (folder / starter.name).write_bytes(starter.read_bytes()[:30_000_000])
    code, checks, _ = verify("all-minilm-l6-v2")
    assert (code, checks["file"]["state"]) == (9, "fault")


def test_the_caller_s_word_against_the_registry_s_proves_nothing(starter_cache, verify):
    """A note, and the known scores show it."""
    code, checks, _ = verify("all-minilm-l6-v2", "--pooling", "cls")
    assert (code, checks["pooling"]["state"], checks["known scores"]["state"]) == (9, "note", "fault")
    assert "the registry says mean" in checks["pooling"]["words"]


def test_other_vectors_than_expected(qwen3, verify):
    """--expect-fingerprint."""
    with Embedder(qwen3) as model:
        right = model.fingerprint
    assert verify(qwen3, "--expect-fingerprint", right)[0] == 0
    code, checks, _ = verify(qwen3, "--expect-fingerprint", "0" * 32)
    assert (code, checks["fingerprint"]["state"]) == (9, "fault")


@pytest.mark.parametrize(
    ("way", "name"), [("flash_attn", "flash attention"), ("skips_head", "head"), ("plain", "plain CPU")]
)
def test_ways_that_disagree(qwen3, verify, monkeypatch, way, name):
    """Each way of computing is held against the others."""
    with Embedder(qwen3) as model:
        model.load()  # the first look is over
    real = Session.embed_otherwise

    def meddling(self, tokens, **changes):
        rows = real(self, tokens, **changes)
        return rows[::-1].copy() if changes.get(way) is not None else rows

    monkeypatch.setattr(Session, "embed_otherwise", meddling)
    if way == "plain":
        monkeypatch.setattr(Session, "embed_plainly", lambda self, tokens: np.ones((len(tokens), 256)))
    code, checks, _ = verify(qwen3)
    assert code == 9
    assert [one for one, check in checks.items() if check["state"] == "fault"] == [name]


def test_for_people(starter_cache, capfd):
    """A line a check, folded at 80 columns, and the verdict last."""
    assert run(["verify", "all-minilm-l6-v2", "-q"]) == 0
    told = capfd.readouterr().out.splitlines()
    assert told[-1] == "17 checks are fine; no fault was found"
    assert max(map(len, told[1:])) <= 80
    assert any(line.startswith("known scores    ok") for line in told)


def test_unknown_names_are_what_they_are_everywhere(capfd):
    """No table, exit code 3."""
    assert run(["verify", "no-such-model"]) == 3
    assert capfd.readouterr().out == ""


def test_a_limit_of_the_user_s_is_no_fault_of_the_file(starter_cache, verify):
    """Known texts that are longer than --n-ctx are not compared."""
    code, checks, _ = verify("all-minilm-l6-v2", "--n-ctx", "16")
    assert (code, checks["known scores"]["state"]) == (0, "skipped")


def test_what_an_encoder_has_no_use_for_is_not_promised(starter_cache, verify):
    """--no-add-eos changes nothing there, and the table does not say so."""
    code, checks, _ = verify("all-minilm-l6-v2", "--no-add-eos")
    assert (code, checks["EOS"]["state"]) == (0, "ok")


@pytest.mark.parametrize(
    "options", [("--kv-type", "q8_0"), ("--expect-fingerprint", "zz"), ("--n-ctx", "9999999"), ("--skip-head",)]
)
def test_options_that_this_model_cannot_have(starter_cache, capfd, options):
    """A usage error, not a traceback and not a fault."""
    assert run(["verify", "all-minilm-l6-v2", *options]) == 2
    told = capfd.readouterr()
    assert (told.out, "Error:" in told.err) == ("", True)


def test_rows_that_were_taken_from_the_cpu_prove_nothing(qwen3, verify, monkeypatch):
    """A fast way that gives NaN for all is told, and is not held against itself."""
    with Embedder(qwen3) as model:
        model.load()
    real = HeadStop.rows
    monkeypatch.setattr(HeadStop, "rows", lambda stop: real(stop) * np.float32(np.nan))
    monkeypatch.setattr("gguf_embed.engine.canary._disagreement", lambda *_: "")
    _, checks, _ = verify(qwen3)
    assert checks["finite"]["state"] == "mended"
    assert checks["plain CPU"]["state"] == "skipped"
    assert "no text has a row of the model's own way" in checks["plain CPU"]["words"]


# The numbers of a file


@pytest.mark.parametrize("quant", ["F32", "Q8_0", "Q4_K_M", "Q3_K_M"])
def test_every_number_is_looked_at(qwen3, qwen3_quantized, quant):
    """Of every type; none is lost, none is NaN."""
    path = qwen3 if quant == "F32" else qwen3_quantized(quant)
    states = scan_tensors(path, n_threads=2)
    assert len(states) == 3 * 11 + 2
    assert not any(state.n_non_finite or state.n_zero_rows for state in states)


@pytest.mark.parametrize("quant", ["F32", "Q8_0", "Q4_K_M"])
def test_a_hole_is_seen(qwen3, qwen3_quantized, tmp_path, quant, verify):
    """Half a matrix of zero bytes, as a download that did not finish leaves them."""
    path = shutil.copy(qwen3 if quant == "F32" else qwen3_quantized(quant), tmp_path / f"hole-{quant}.gguf")
    start, size = broken.offset_of(path, "blk.0.ffn_up.weight")
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(size // 2))
    state = next(one for one in scan_tensors(path, n_threads=1) if one.name == "blk.0.ffn_up.weight")
    assert (state.n_zero_rows, state.n_rows, state.is_zero) == (256, 512, False)
    assert verify(path)[1]["weights"]["state"] == "fault"


def test_a_hole_in_a_table_is_seen(starter, tmp_path, verify):
    """Tokens that nobody uses may be zeros; a third of all may not."""
    path = shutil.copy(starter, tmp_path / "hole.gguf")
    start, size = broken.offset_of(path, "token_embd.weight")
    with path.open("r+b") as file:
        file.seek(start + size // 2)
        file.write(bytes(size // 3))
    code, checks, _ = verify(path)
    assert (code, checks["weights"]["state"]) == (9, "fault")
    assert "token_embd.weight are zeros" in checks["weights"]["words"]


def test_odd_tensors(tmp_path):
    """Empty ones and integers are left out; numbers of 64 bits are looked at."""
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "qwen3")
    writer.add_tensor("empty", np.zeros((0, 32), dtype=np.float32))
    writer.add_tensor("whole", np.arange(32, dtype=np.int32))
    writer.add_tensor("long", np.array([1.0, np.nan, 0.0, np.inf], dtype=np.float64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    [state] = scan_tensors(tmp_path / "odd.gguf", n_threads=2)
    assert (state.name, state.n_non_finite, state.n_values) == ("long", 2, 4)
