"""`compare` with real vectors: sentence-transformers' own, our server's in three dialects, and a missing EOS."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import synthetic
from serving import Served

from gguf_embed.cli.app import run
from gguf_embed.jobs.records import Record
from gguf_embed.quality.comparing import Question, compare
from gguf_embed.quality.verdicts import Kind

pytestmark = pytest.mark.real

NAME = "all-minilm-l6-v2"


@pytest.fixture
def texts(golden_texts):
    """The golden texts but the empty one, which OpenAI's dialect refuses."""
    return tuple(Record(text=text, id=i) for i, text in enumerate(golden_texts) if text)


def test_minilm_is_sentence_transformers_own(starter_cache, golden, golden_texts, tmp_path, capsys):
    """A user who comes from there may keep the index: the command says so, from a saved .npy."""
    np.save(tmp_path / "theirs.npy", golden("minilm")["embeddings"])
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(golden_texts)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = [NAME, str(tmp_path / "theirs.npy"), "-i", str(tmp_path / "texts.jsonl"), "--at-least", "0.9999"]
    assert run(["compare", *arguments, "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean"] >= 0.9999
    assert (found["verdict"]["kind"], found["n_texts"]) == ("same", 64)
    assert found["neighbours_kept"] >= 0.99
    assert run(["compare", *arguments, "--prompt", "something else entirely: ", "-q"]) == 9


def test_what_embed_wrote_is_what_compare_reads(starter_cache, golden_texts, tmp_path, capsys):
    """Each format that a job writes is a side, with the same fingerprint as the model's."""
    lines = [json.dumps({"id": f"n{i}", "text": text}) for i, text in enumerate(golden_texts)]
    source = tmp_path / "texts.jsonl"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in ("a.npy", "a.jsonl", "a.parquet"):
        assert run(["embed", "-m", NAME, "-i", str(source), "-o", str(tmp_path / name), "-q"]) == 0
        capsys.readouterr()
        assert run(["compare", NAME, str(tmp_path / name), "-i", str(source), "--json", "-q"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["verdict"]["kind"], found["is_same_fingerprint"]) == ("same", True), name
        assert found["ids"][:2] == ["n0", "n1"]
    assert run(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "a.parquet"), "--at-least", "0.99999", "-q"]) == 0


@pytest.fixture(scope="module")
def served(starter, tmp_path_factory):
    """Our own server, which asks for a key."""
    folder = tmp_path_factory.mktemp("served")
    with Served(folder, starter, NAME, GGUF_EMBED_API_KEY="a-key-of-some-length") as server:
        yield server


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("", "tei"),
        (f"#{NAME}", "ollama"),
        (f"/v1#{NAME}", "openai"),
        ("/v1/embeddings", "openai"),
        (f"/api/embed#{NAME}", "ollama"),
        ("/embed", "tei"),
    ],
)
def test_our_server_agrees_with_our_model(starter_cache, served, texts, path, dialect):
    """In all three dialects, found by the path or by asking."""
    found = compare(Question(a=NAME, b=served.url + path, texts=texts, api_keys=("a-key-of-some-length",)))
    assert found.b.facts["dialect"] == dialect
    assert found.verdict.kind is Kind.SAME
    assert found.agreement.least >= 0.9999
    assert found.is_same_fingerprint is True


PROGRAM = """
import json, sys
from pathlib import Path
from gguf_embed.native.reference import Reference
texts = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
print(json.dumps(Reference(Path(sys.argv[1]), n_tokens_max=1024, n_threads=2).embed(texts)))
"""


def test_a_missing_eos_is_different(qwen3, tmp_path, golden_texts):
    """llama-cpp-python embeds with an old file whose texts get no EOS: other vectors, and the causes say so.

    With the right file its vectors are the same, so nothing but the EOS is told apart here.
    """
    # It reads control tokens out of texts, and does not normalise them: these differ for reasons of their own.
    plain = [text for text in golden_texts if "<|" not in text and unicodedata.is_normalized("NFC", text)]
    texts = [text for text in plain if text.strip()]
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    found = {}
    for name, add_eos in (("right", True), ("bare", False)):
        path = synthetic.write_qwen3(tmp_path / f"{name}.gguf", add_eos=add_eos)
        command = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "texts.json")]
        done = subprocess.run(command, capture_output=True, check=True)
        (tmp_path / f"{name}.json").write_bytes(done.stdout)
        records = tuple(Record(text=text) for text in texts)
        found[name] = compare(Question(a=str(qwen3), b=str(tmp_path / f"{name}.json"), texts=records))
    assert found["right"].verdict.kind is Kind.SAME
    assert found["bare"].verdict.kind is Kind.DIFFERENT
    assert found["bare"].agreement.mean < 0.95
    assert found["bare"].verdict.causes


def test_an_old_file_can_be_told_of_its_eos(qwen3, tmp_path, golden_texts, capsys):
    """It is refused with the option that helps, and with that it is the same."""
    bare = synthetic.write_qwen3(tmp_path / "bare.gguf", add_eos=False)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in golden_texts))
    arguments = ["compare", str(qwen3), str(bare), "-i", str(tmp_path / "t.jsonl"), "-q", "--at-least", "0.9999"]
    assert run(arguments) == 6
    assert "--add-eos" in capsys.readouterr().err
    assert run([*arguments, "--add-eos"]) == 0


def test_a_model_is_the_same_as_itself(qwen3, golden_texts):
    """By its vectors and by its fingerprint."""
    texts = tuple(Record(text=text) for text in golden_texts if text.strip())
    found = compare(Question(a=str(qwen3), b=str(qwen3), texts=texts))
    assert (found.verdict.kind, found.is_same_fingerprint) == (Kind.SAME, True)


def test_quantization_is_told_apart_from_the_same(qwen3, qwen3_quantized, golden_texts):
    """Q8_0 of a file has another fingerprint, nearly its vectors, and no word of other models."""
    texts = tuple(Record(text=text) for text in golden_texts if text.strip())
    found = compare(Question(a=str(qwen3), b=str(qwen3_quantized("Q8_0")), texts=texts))
    assert found.is_same_fingerprint is False
    assert found.verdict.kind in (Kind.SAME, Kind.ROUNDING)
    assert 0.99 <= found.agreement.mean < 1
