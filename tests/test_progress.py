"""progress.py: lines on stderr where it is no terminal, a bar where it is; stdout stays data."""

from __future__ import annotations

import io
import sys

import pytest

from gguf_embed import progress
from gguf_embed.progress import download_progress, texts_progress

MIB = 1 << 20


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """time.monotonic under a test's hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def test_texts_are_counted_in_plain_lines(clock, capsys):
    """Where stderr is no terminal: a line with texts done and tokens a second, and nothing on stdout."""
    with texts_progress(1200) as on_batch:
        clock(10)
        on_batch(1000, 50_000)
        on_batch(200, 10_000)
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "embedding: 1,000/1,200 texts  5,000 tokens/s",
        "embedding: 1,200/1,200 texts  6,000 tokens/s",
    ]
    assert out == ""


def test_lines_are_rare(clock, capsys):
    """A batch every second gives a line every five, and one at the end."""
    with texts_progress(12) as on_batch:
        for _ in range(12):
            clock(1)
            on_batch(1, 10)
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["5/12", "10/12", "12/12"]


def test_a_download_is_told_in_bytes(clock, capsys):
    """Present, total and speed; bytes of an earlier run do not count for the speed."""
    with download_progress("model Q4_K_M") as on_bytes:
        on_bytes(100 * MIB, 400 * MIB)
        clock(10)
        on_bytes(200 * MIB, 400 * MIB)
        clock(1)
        on_bytes(400 * MIB, 400 * MIB)
    assert capsys.readouterr().err.splitlines() == [
        "model Q4_K_M: 200 MiB of 400 MiB  10 MiB/s",
        "model Q4_K_M: 400 MiB of 400 MiB  27 MiB/s",
    ]


def test_a_file_that_is_there_needs_one_line(clock, capsys):
    """Everything present at the first call has no speed."""
    with download_progress("m") as on_bytes:
        on_bytes(MIB, MIB)
    assert capsys.readouterr().err == "m: 1 MiB of 1 MiB\n"


def test_nothing_done_says_nothing(capsys):
    """No texts and no downloads leave stderr empty."""
    with texts_progress(0), download_progress("m"):
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "make", [lambda: texts_progress(2), lambda: download_progress("bytes")], ids=["texts", "bytes"]
)
def test_a_terminal_gets_a_bar_on_stderr(make, monkeypatch, capsys):
    """A bar is drawn there, and stdout gets not a byte."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with make() as advance:
        advance(1, 2)
        advance(2, 2)
    assert "texts" in screen.getvalue() or "bytes" in screen.getvalue()
    assert "\x1b[" in screen.getvalue()
    assert capsys.readouterr().out == ""


def test_without_stderr_there_is_no_progress(monkeypatch):
    """A program without a console, as pythonw, does not fail for want of one."""
    monkeypatch.setattr(sys, "stderr", None)
    with texts_progress(1) as on_batch, download_progress("m") as on_bytes:
        on_batch(1, 5)
        on_bytes(1, 1)


def test_an_error_ends_the_bar(monkeypatch):
    """What is raised inside goes on, and the cursor comes back."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")

    def embed():
        with texts_progress(2) as on_batch:
            on_batch(1, 1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        embed()
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h") == 1
