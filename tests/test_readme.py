"""What the README shows is what happens."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_embed.cli.app import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
CONSOLES = [text for language, text in BLOCKS if language == "console"]


def same(shown: str, promised: str) -> bool:
    """Compare line by line, cosines to 0.005: processors round F16 differently."""
    number = re.compile(r"-?0\.\d+")
    shown_lines, promised_lines = (
        [line.rstrip() for line in text.strip("\n").splitlines()] for text in (shown, promised)
    )
    if [number.sub("#", line) for line in shown_lines] != [number.sub("#", line) for line in promised_lines]:
        return False
    figures = [[float(figure) for figure in number.findall("\n".join(text))] for text in (shown_lines, promised_lines)]
    return figures[0] == pytest.approx(figures[1], abs=0.005)


@pytest.mark.real
@pytest.mark.parametrize("block", CONSOLES, ids=lambda block: block.split("\n", 1)[0][2:50])
def test_console_blocks(block, starter_cache, capsys):
    """Each command prints what the README says it prints."""
    command, expected = block.split("\n", 1)
    assert run(shlex.split(command.removeprefix("$ gguf-embed "))) == 0
    shown = capsys.readouterr().out
    assert same(shown, expected), shown


@pytest.mark.real
def test_python_example(starter_cache):
    """The first Python example prints the block that follows it."""
    index = next(index for index, (language, _) in enumerate(BLOCKS) if language == "python")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(BLOCKS[index][1], "README.md", "exec"), {})  # noqa: S102 - our own text
    assert same(output.getvalue(), BLOCKS[index + 1][1]), output.getvalue()


def test_every_command_is_real():
    """Every verb and option in the README's shell blocks exists."""
    for language, text in BLOCKS:
        if language not in ("sh", "console"):
            continue
        for verb, rest in re.findall(r"gguf-embed ([a-z]+)(.*)", text):
            with contextlib.redirect_stdout(io.StringIO()) as help_text:
                assert run([verb, "--help"]) == 0, verb
            for option in re.findall(r"(?<=\s)--[a-z-]+", rest.split("#")[0]):
                assert option in help_text.getvalue(), f"{verb} {option}"


def test_commands_of_the_readme_are_files():
    """The two commands can be run."""
    for name in re.findall(r"\./(scripts/\w+)", README):
        assert (ROOT / name).stat().st_mode & 0o111, name


def test_the_profile_table_is_up_to_date():
    """docs/profiles.md is what scripts/profile-table writes."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "profile-table"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
