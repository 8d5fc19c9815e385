"""Blocks of pages that need hosts do what the page says; the others are run by tests/test_docs.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from docs_blocks import Skip, blocks, commands, run_python, run_shell

pytest.importorskip("sklearn", reason="scripts/test-hosts runs this")

SKIPS = (Skip(page="docs/adapters.md", needle="STSBenchmark", reason="its data comes from the hub"),)
PAGES = ("docs/adapters.md",)


@pytest.fixture
def desk(tmp_path, starter_cache, monkeypatch):
    """An empty folder, the small model as the configured one, and programs of this environment on the path."""
    assert starter_cache.is_file()
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    monkeypatch.setenv("GGUF_EMBED_MODEL", "all-minilm-l6-v2")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    return tmp_path / "desk"


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("page", PAGES)
def test_blocks(page):
    """Each prints what stands below it."""
    for block in blocks(page):
        if any(skip.takes(block, block.text) for skip in SKIPS):
            continue
        if block.language == "python":
            run_python(block)
        elif block.language == "sh":
            run_shell(block, without=[line for line in commands(block) if "pip install" in line])


def test_every_skip_still_exists():
    """A block that is gone is not left out."""
    for skip in SKIPS:
        assert any(skip.takes(block, block.text) for block in blocks(skip.page))
