"""Every script in examples/ runs as its first lines say, on the small model; examples/ray_folder.py in test_ray.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def run(host_model, tmp_path, monkeypatch):
    """Run an example in an empty folder, and return what it printed."""
    assert host_model
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")

    def run_example(name, *words):
        pytest.importorskip("sklearn", reason="scripts/test-hosts runs this")
        command = [sys.executable, EXAMPLES / name, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_example


def test_rag(run, tmp_path):
    """The passage that answers is found and goes into the prompt; a second question needs no second indexing."""
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "cat.md").write_text("# The cat\n\nThe cat sleeps on the sofa all afternoon.\n")
    (notes / "bank.md").write_text("# The bank\n\nThe central bank raised its key rate.\n")
    printed = run("rag_langchain_chroma.py", str(notes), "Where does the cat sleep?")
    assert "2 passages are in rag.chroma" in printed
    assert re.search(r"^0\.\d\d  cat\.md: # The cat", printed, re.MULTILINE)
    assert "[cat.md]\n# The cat" in printed
    others = tmp_path / "others"
    others.mkdir()
    (others / "dog.md").write_text("# The dog\n\nThe dog sleeps in the kitchen.\n")
    assert "cat.md" not in run("rag_langchain_chroma.py", str(others), "Where does the cat sleep?")
    again = run("rag_langchain_chroma.py", str(notes), "Who raised the rate?")
    assert "passages are in" not in again
    assert again.index("bank.md") < again.index("cat.md")


def test_lancedb_notes(run):
    """The kitten by meaning, the postman by word, interest rates after opening again."""
    lines = run("lancedb_notes.py").splitlines()
    assert lines[0] == "4 notes of 384 dimensions with all-minilm-l6-v2"
    assert lines[1].endswith("The kitten naps on the couch.")
    assert lines[-2].strip() == "A dog is barking at the postman.  (hybrid)"
    assert lines[-1] == "The central bank raised its key rate."


def test_cluster_corpus(run, tmp_path):
    """Texts on two things come apart, and the picture is one."""
    corpus = tmp_path / "corpus.jsonl"
    texts = [f"A cat sleeps on the sofa, number {at}." for at in range(12)]
    texts += [f"The central bank raised rates by {at} points." for at in range(12)]
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    printed = run("cluster_corpus.py", str(corpus), "--clusters", "2", "--plot", "plot.png")
    assert printed.count("  12  ") == 2
    assert Path("plot.png").read_bytes()[:4] == b"\x89PNG"


def test_mrl_two_stage(run):
    """A longer shortlist never finds less, the longest finds nearly all, and more than the short vectors alone."""
    printed = run("mrl_two_stage.py", "--rows", "9000", "--dim", "512", "--queries", "20", "--plot", "plot.png")
    *rows, facts, _ = printed.splitlines()
    rows, facts = [json.loads(row) for row in rows], json.loads(facts)
    for stored in ("int8", "float16"):
        recalls = [row["recall@10"] for row in rows if row["stored"] == stored]
        assert recalls == sorted(recalls)
        assert recalls[-1] > 0.95
    assert rows[-1]["recall@10"] > facts["recall@10 of the shortlist alone"]
    assert Path("plot.png").read_bytes()[:4] == b"\x89PNG"


def test_desktop_app(run):
    """It asks, its server is killed, and it asks again: the same answer."""
    printed = run("desktop_app.py", "A cat is asleep.", "The kitten naps.", "Rates rose.").splitlines()
    assert printed[0].startswith("ready at http://127.0.0.1:")
    assert printed[1:3] == printed[3:5]
    assert printed[1].endswith("The kitten naps.")


def test_wrong_arguments_are_said_in_a_line(run, tmp_path):
    """A folder without Markdown, a file that is none, more clusters than texts, one text alone."""
    run("desktop_app.py", "a", "b")
    (tmp_path / "two.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    for words, said in [
        (["rag_langchain_chroma.py", str(tmp_path / "none"), "q"], "there is no Markdown with text in"),
        (["cluster_corpus.py", str(tmp_path / "none.jsonl")], "has to hold JSON objects with text"),
        (["cluster_corpus.py", str(tmp_path / "two.jsonl")], "for 2 texts it is 2 to 1"),
        (["desktop_app.py", "one"], "give two texts or more"),
    ]:
        done = subprocess.run(
            [sys.executable, EXAMPLES / words[0], *words[1:]], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_every_example_is_tested():
    """None is forgotten here."""
    tested = Path(__file__).read_text() + Path(__file__).with_name("test_ray.py").read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in tested] == []
