"""What docs/corpora.md shows is what happens: its blocks are run one after the other in one folder."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORPORA = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", CORPORA, re.DOTALL)
NEEDS_THE_HUB = "qwen3-embedding"


@pytest.fixture
def desk(tmp_path, monkeypatch, starter_cache):
    """A folder with what the examples read, and `gguf-embed` on the path."""
    folder = tmp_path / "desk"
    (folder / "notes" / "drafts").mkdir(parents=True)
    for number in range(5):
        words = " ".join(f"Sentence {number}.{at} tells of cats and of interest rates." for at in range(20))
        (folder / "notes" / f"{number}.md").write_text(f"# Note {number}\n\n{words}\n", encoding="utf-8")
    (folder / "notes" / "drafts" / "draft.md").write_text("A draft.\n", encoding="utf-8")
    (folder / "notes" / "main.py").write_text("def main():\n    return 1\n", encoding="utf-8")
    (folder / "articles.csv").write_text('slug;body\none;"A, b; c"\ntwo;"Line\nbreak"\n', encoding="utf-8")
    (folder / "queries.txt").write_text("What do cats do?\nWhere are rates?\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GGUF_EMBED_MODEL", "all-minilm-l6-v2")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    return folder


def run_shell(text):
    """Run a block line by line, without what needs the hub."""
    for line in text.splitlines():
        if NEEDS_THE_HUB not in line:
            subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True, capture_output=True)  # noqa: S607


@pytest.mark.real
def test_every_example_of_corpora(desk):
    """Shell blocks exit with 0, and Python blocks print the block that follows them."""
    for index, (language, text) in enumerate(BLOCKS):
        if language == "sh":
            run_shell(text)
        elif language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(text, "corpora.md", "exec"), {})  # noqa: S102 - our own text
            assert output.getvalue() == BLOCKS[index + 1][1]
