"""The pages are true: their blocks run, their commands and links exist, and the site builds without a warning.

Blocks run page by page, top to bottom, in a folder of the page's own, each as a reader pastes it. No test reaches the
hub: Qwen3-Embedding and bge-small are stand-ins there, with the real architectures and random weights.
"""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

import click
import numpy as np
import pytest
import synthetic
from docs_blocks import (
    ROOT,
    SERVER,
    SHELLS,
    Skip,
    anchors,
    blocks,
    calls,
    check_call,
    commands,
    inline_code,
    links,
    models_table,
    option_names,
    pages,
    read,
    run_python,
    run_shell,
)
from serving import Served

from gguf_embed.cli.exits import EXIT_CODES, INTERRUPTED, UNWRITABLE
from gguf_embed.config import _KEYS
from gguf_embed.models.made import made_path

INSTALLS = "installs packages or builds llama.cpp"
HUB = "needs the model hub"
RUNS_ON = "runs until it is stopped; the tests start their own"
THEIRS = "another program's side, which is not here or fetches its model"
HOSTS = "needs hosts of adapters; tests/hosts runs it"
RESEARCH = "minutes, or means nothing without the real weights"
SKIPS = (
    Skip(page="README.md", needle="./scripts/", reason=INSTALLS),
    Skip(page="README.md", needle="pip install", reason=INSTALLS),
    Skip(page="README.md", needle="gguf-embed serve", reason=RUNS_ON),
    Skip(page="README.md", needle="gguf-embed quantize", reason=HUB),
    Skip(page="README.md", needle="gguf-embed bench", reason=RESEARCH),
    Skip(page="README.md", needle="gguf-embed verify", reason=RESEARCH),
    Skip(page="README.md", needle="gguf-embed eval", reason=RESEARCH),
    Skip(page="README.md", needle="old.npy", reason="another program's vectors"),
    Skip(page="README.md", needle="encode_stream(texts", reason="the texts are the reader's"),
    Skip(page="docs/quickstart.md", needle="python3 -m venv", reason=INSTALLS),
    Skip(page="docs/quickstart.md", needle="source .venv", reason=INSTALLS),
    Skip(page="docs/quickstart.md", needle="pip install", reason=INSTALLS),
    Skip(page="docs/quickstart.md", needle="gguf-embed serve", reason=RUNS_ON),
    Skip(page="docs/index.md", needle="gguf-embed serve", reason=RUNS_ON),
    Skip(page="docs/serving.md", needle="pip install", reason=INSTALLS),
    Skip(page="docs/serving.md", needle="gguf-embed serve", reason=RUNS_ON),
    Skip(page="docs/quality.md", needle="http://localhost:11434", reason=THEIRS),
    Skip(page="docs/quality.md", needle="laptop.parquet", reason="files of two machines"),
    Skip(page="docs/quality.md", needle="gguf-embed eval", reason=RESEARCH),
    Skip(page="docs/quality.md", needle="qwen3-embedding-4b:Q8_0", reason=RESEARCH),
    Skip(page="docs/coming-from/ollama.md", needle="ollama.embed(", reason=THEIRS),
    Skip(page="docs/coming-from/ollama.md", needle="ollama pull", reason=THEIRS),
    Skip(page="docs/coming-from/ollama.md", needle="ollama serve", reason=THEIRS),
    Skip(page="docs/coming-from/ollama.md", needle="11434", reason=THEIRS),
    Skip(page="docs/coming-from/ollama.md", needle="sha256-797b", reason=THEIRS),
    Skip(page="docs/coming-from/ollama.md", needle="gguf-embed serve", reason=RUNS_ON),
    Skip(page="docs/coming-from/sentence-transformers.md", needle="from sentence_transformers", reason=THEIRS),
    Skip(page="docs/coming-from/sentence-transformers.md", needle="gguf-embed serve", reason=RUNS_ON),
    Skip(page="docs/coming-from/fastembed.md", needle="from fastembed", reason=THEIRS),
    Skip(page="docs/coming-from/fastembed.md", needle="gguf-embed serve", reason=RUNS_ON),
    Skip(page="docs/coming-from/llama-cpp-python.md", needle="llama_cpp.server", reason=RUNS_ON),
    Skip(page="docs/coming-from/llama-cpp-python.md", needle="gguf-embed serve", reason=RUNS_ON),
    Skip(page="docs/examples.md", needle="mrl_two_stage", reason=HOSTS),
    Skip(page="docs/adapters.md", needle="", reason=HOSTS),
    Skip(page="docs/ray.md", needle="", reason=HOSTS),
)
# Options in the text that are other programs'.
OTHERS_OPTIONS = {"--no-cache-dir", "--extra-index-url", "--only-binary", "--no-repack", "--repack", "--modelfile"}
PAGES = pages()
RUNNABLE = ("python", *SHELLS)


def skips_of(block, code):
    """List the entries of the table that are about some code."""
    return [skip for skip in SKIPS if skip.takes(block, code)]


# What they say


@pytest.mark.parametrize("page", PAGES)
def test_every_command_exists(page):
    """Verbs, options and the choices of options are click's own, in blocks and in the text, run or not."""
    lines = [line for block in blocks(page) if block.language in SHELLS for line in commands(block)]
    for line in (*lines, *(code for code in inline_code(page) if code.startswith("gguf-embed "))):
        for arguments in calls(line):
            try:
                check_call(arguments)
            except click.UsageError as error:
                if line in lines or not isinstance(error, click.BadOptionUsage):  # a sentence may leave a value out
                    pytest.fail(f"{page}: {line}\n{error.format_message()}")


@pytest.mark.parametrize("page", PAGES)
def test_names_in_the_text_exist(page):
    """Options, variables and scripts that a sentence names are there."""
    known = option_names() | OTHERS_OPTIONS
    variables = {f"GGUF_EMBED_{key.upper()}" for key in _KEYS} | {
        f"GGUF_EMBED_{one}_DIR" for one in ("CACHE", "CONFIG", "STATE")
    }
    for code in inline_code(page):
        if option := re.match(r"--[a-z][a-z-]+", code):
            assert option[0] in known, f"{page}: {code}"
        if variable := re.match(r"GGUF_EMBED_\w+", code):
            assert variable[0] in variables, f"{page}: {code}"
        if script := re.match(r"scripts/[\w-]+", code):
            assert (ROOT / script[0]).is_file(), f"{page}: {code}"


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_data_and_python_parse(page):
    """Python compiles, also where it is not run; ini, JSON, TOML and XML are what they say."""
    parse = {
        "ini": configparser.ConfigParser(interpolation=None, strict=False).read_string,
        "json": json.loads,
        "python": ast.parse,
        "toml": tomllib.loads,
        "xml": ET.fromstring,
    }
    for block in blocks(page):
        if block.language in parse:
            parse[block.language](block.text)
        else:
            assert block.language in (*SHELLS, "text"), f"{block} is {block.language!r}"


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    """Files and headings that a page links to are there, as a plain Git host resolves them."""
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.is_file(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(path.resolve().relative_to(ROOT).as_posix()), f"{page}: {link}"


def test_every_skip_still_exists():
    """An entry of the table that is about nothing any more is taken out."""
    code = [
        (block, one)
        for page in PAGES
        for block in blocks(page)
        if block.language in RUNNABLE
        for one in (commands(block) if block.language in SHELLS else [block.text])
    ]
    for skip in SKIPS:
        assert any(skip.takes(*one) for one in code), skip


def test_the_table_of_models_is_the_registry():
    """docs/models.md has each model of models.toml with its facts."""
    assert models_table() in read("docs/models.md"), models_table()


def test_the_reference_has_every_setting_and_exit_code():
    """docs/reference/cli.md has a row for each key of config.toml and each code."""
    rows = [[cell.strip() for cell in line.split("|")] for line in read("docs/reference/cli.md").splitlines()]
    codes = {int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
    assert codes == {0, 1, 2, *EXIT_CODES.values(), INTERRUPTED, UNWRITABLE}
    assert {row[1].strip("`") for row in rows if len(row) > 2 and row[2].startswith("`GGUF_EMBED_")} - {""} == set(
        _KEYS
    )


def test_the_readme_and_the_quickstart_install_alike():
    """What builds llama.cpp for a GPU is the same on both pages."""
    found = [
        {line for block in blocks(page) for line in commands(block) if "CMAKE_ARGS" in line}
        for page in ("README.md", "docs/quickstart.md")
    ]
    assert found[0] == found[1] != set()


# What they do


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Models with random weights, where `gguf-embed quantize` would have put the real ones."""
    folder = tmp_path_factory.mktemp("stand-ins")

    def place(model_id, quant):
        path = made_path(folder, model_id, quant)
        path.parent.mkdir(parents=True)
        return path

    for model_id, quant, n_embd in (("qwen3-embedding-0.6b", "Q8_0", 1024), ("qwen3-embedding-4b", "Q4_K_M", 2560)):
        shape = synthetic.Qwen3Shape(n_layer=1, n_embd=n_embd, n_ff=256, n_head=1, n_head_kv=1, n_ctx_train=32768)
        synthetic.write_qwen3(place(model_id, quant), shape=shape, f16=True)
    synthetic.write_bert(place("bge-small-en-v1.5", "Q8_0"), n_embd=384, n_layer=1, n_ctx_train=512)
    return folder / "quantized"


@pytest.fixture(scope="module")
def served(starter, tmp_path_factory):
    """A server of the starter model, in place of the one that a page has told its reader to start."""
    with Served(tmp_path_factory.mktemp("served"), starter, "all-minilm-l6-v2") as server:
        yield server


@pytest.fixture
def desk(tmp_path, monkeypatch, starter_cache, stand_ins):
    """A folder with what the examples read, and `gguf-embed` on the path."""
    for path in stand_ins.glob("*/*.gguf"):
        made = tmp_path / "cache" / "quantized" / path.parent.name / path.name
        made.parent.mkdir(parents=True)
        made.symlink_to(path)
    folder = tmp_path / "desk"
    folder.mkdir()
    (folder / "all-minilm-l6-v2-F16.gguf").symlink_to(starter_cache)
    (folder / "qwen3-embedding-0.6b-Q8_0.gguf").symlink_to(next(stand_ins.glob("*0.6b/*.gguf")))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return folder


def write_texts(folder):
    """Write what pages read that do not write it themselves."""
    (folder / "notes" / "drafts").mkdir(parents=True)
    for number in range(5):
        words = " ".join(f"Sentence {number}.{at} tells of cats and of interest rates." for at in range(20))
        (folder / "notes" / f"{number}.md").write_text(f"# Note {number}\n\n{words}\n", encoding="utf-8")
    (folder / "notes" / "drafts" / "draft.md").write_text("A draft.\n", encoding="utf-8")
    (folder / "notes" / "main.py").write_text("def main():\n    return 1\n", encoding="utf-8")
    (folder / "reports").mkdir()
    (folder / "reports" / "one.md").write_text("# Report\n\nAll is well.\n", encoding="utf-8")
    (folder / "articles.csv").write_text('slug;body\none;"A, b; c"\ntwo;"Line\nbreak"\n', encoding="utf-8")
    (folder / "queries.txt").write_text("What do cats do?\nWhere are rates?\n", encoding="utf-8")
    texts = ["A cat sleeps.", "Interest rates rose."]
    (folder / "docs.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in texts), encoding="utf-8")
    np.save(folder / "old.npy", np.eye(2, 384, dtype=np.float32))


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # examples leave what a program's end would close
@pytest.mark.parametrize("page", [page for page in PAGES if any(one.language in RUNNABLE for one in blocks(page))])
def test_blocks_do_what_the_page_says(page, desk, tmp_path, monkeypatch, request):
    """Commands exit with 0, and what a page shows is what is printed."""
    if page != "docs/quickstart.md":
        write_texts(desk)
    if page != "README.md":
        monkeypatch.setenv("GGUF_EMBED_MODEL", "all-minilm-l6-v2")
    text = read(page)
    replacing = {SERVER: request.getfixturevalue("served").url.partition("//")[2]} if SERVER in text else {}
    names = {} if page == "README.md" else None  # its second example goes on from the first
    for block in blocks(page):
        if page == "README.md" and block.language == "console":
            continue  # test_readme.py has them
        is_elsewhere = "--profile" in block.text  # a plan for another machine asks neither this disk nor the network
        monkeypatch.setenv("HF_HUB_OFFLINE", "0" if is_elsewhere else "1")
        monkeypatch.setenv("GGUF_EMBED_CACHE_DIR", str(tmp_path / ("elsewhere" if is_elsewhere else "cache")))
        if block.language in SHELLS:
            run_shell(block, without=[one for one in commands(block) if skips_of(block, one)], replacing=replacing)
        elif block.language == "python" and not skips_of(block, block.text):
            run_python(block, replacing=replacing, names=names)
        elif block.language == "toml":
            (tmp_path / "config").mkdir(exist_ok=True)
            (tmp_path / "config" / "models.toml").write_text(block.text, encoding="utf-8")


@pytest.mark.real
def test_the_site_builds_without_a_warning(tmp_path):
    """Every page is reached, every reference is found, every docstring is sound."""
    options = ["-W", "--keep-going", "-n", "-q", "-b", "html", "-d", str(tmp_path / "doctrees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
    assert "--chunk" in (tmp_path / "site" / "reference" / "cli.html").read_text(encoding="utf-8")
