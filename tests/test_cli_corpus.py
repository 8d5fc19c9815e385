"""`embed` over files and `cache`: what is refused before anything is loaded, what is shown, what is kept."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from gguf_embed import vectors
from gguf_embed.cli import corpus, embed, events
from gguf_embed.cli.app import run
from gguf_embed.config import load_config
from gguf_embed.jobs import records, sinks
from gguf_embed.jobs.job import Progress
from gguf_embed.stream import chunking
from gguf_embed.stream.cache import CachedRow, user_cache


@pytest.fixture
def shell(capsys):
    """Run one command line: (code, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("a\nb\n")
    (tmp_path / "o.npy.rows.jsonl").write_text('"a"\n')
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("text", "--json"), "--json tells of a run that writes a file"),
        (("-i", "in.txt", "--json"), "--json tells of a run that writes a file"),
        (("text", "--precision", "int8"), "int8 spreads the range of many rows and got one; add --ranges"),
        (("text", "--ranges", "in.txt"), "--ranges are for --precision int8 and uint8, not float32"),
        (("text", "--truncate", "end", "--long", "mean"), "--truncate end and --long mean exclude each other"),
        (("text", "--overlap", "5"), "--overlap is of chunks; add --chunk TOKENS"),
        (("text", "--chunk", "5", "--overlap", "5"), "--overlap 5 must be less than --chunk 5"),
        (
            ("text", "--chunk", "5", "--long", "truncate"),
            "--chunk cuts long texts, so --long is chunk or mean, not truncate",
        ),
        (("-i", "in.txt", "--glob", "*.md"), "globs choose files of folders"),
        (("-i", "in.txt", "--encoding", "klingon"), "'klingon' is no encoding"),
        (("-i", "nowhere"), "does not exist"),
        (("-i", "in.txt", "-o", "in.txt", "-f", "npy"), "in.txt is read and would be overwritten by -o in.txt"),
        (("-i", "o.npy.rows.jsonl", "-o", "o.npy"), "would be overwritten by -o o.npy"),
        (("text", "--restart"), "are for -i, not for texts given here"),
        (("-i", "-", "-i", "-"), "stdin can be read once"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(shell, lines, monkeypatch, arguments, words):
    """Exit code 2 and what is wrong, before a model is looked for."""
    monkeypatch.chdir(lines.parent)
    code, out, err = shell("embed", "-m", "all-minilm-l6-v2", *arguments)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())


def test_choices_are_those_of_the_library():
    """Written twice so that --help loads nothing; the same all the same."""
    assert corpus._INPUT_FORMATS == records.FORMATS
    assert corpus._LONG == chunking.LONG
    assert set(embed._FORMATS) == set(sinks.FORMATS)
    assert embed._PRECISIONS == vectors.PRECISIONS


def source(n_done=0, n_total=None):
    return SimpleNamespace(n_done=n_done, n_total=n_total, unit="bytes")


def counts(**known):
    return events.Counts(source=source(**known), output="o.npy", is_job=True)


def test_bad_texts_beyond_twenty_are_counted(capsys):
    """The first twenty are named; then one line says that the others are only counted."""
    with events.shown(counts(), is_quiet=False) as view:
        for number in range(50):
            view.on_bad(f"line {number}", ValueError(f"line {number}: no JSON"))
        view.done(Progress(n_records=50, n_failed=50))
    shown = capsys.readouterr().err.splitlines()
    assert shown[:20] == [f"skipped: line {number}: no JSON" for number in range(20)]
    assert shown[20:] == ["skipped: more of them, which are only counted from here",
                          "0 rows of 50 texts in 0.0 s: 50 without a vector"]  # fmt: skip


def test_quiet_says_nothing_but_that_it_was_interrupted(capsys):
    """-q leaves out bad texts and totals."""
    with events.shown(counts(), is_quiet=True) as view:
        view.on_progress(Progress(n_rows=5))
        view.on_bad("line 1", ValueError("line 1: no JSON"))
        view.done(Progress(n_rows=5, n_records=6))
    assert capsys.readouterr().err == ""
    with events.shown(counts(), is_quiet=True) as view:
        view.stopped(Progress(n_rows=9, n_kept=5))
    assert capsys.readouterr().err == "interrupted; 5 rows are kept, and the same command goes on\n"


def test_totals_fit_a_terminal():
    """One line of 80 columns for a large job, with what was computed, found and resumed."""
    progress = Progress(n_records=1_000_000, n_rows=1_000_000, n_decoded=400_000, n_tokens=7_000_000,
                        n_cached=500_000, n_resumed=100_000, seconds=3720)  # fmt: skip
    words = events._totals(progress)
    assert words == (
        "1,000,000 rows in 1 h 2 min: 400,000 computed (1,882 tokens/s), 500,000 from the cache, 100,000 resumed"
    )
    assert len(events._totals(Progress(n_records=5000, n_rows=5000, n_decoded=5000, n_tokens=80_000, seconds=9))) < 80


def test_events_have_what_a_bar_needs(capsys):
    """Fraction and seconds left by what was read, memory in bytes; twice a second at most."""
    with events.events(counts(n_done=25, n_total=100)) as view:
        for _ in range(10):
            view.on_progress(Progress(n_rows=5, n_tokens=100, seconds=2.0))
        view.done(Progress(n_rows=20, seconds=8.0))
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["event"] for one in told] == ["start", "progress", "done"]
    assert (told[0]["total"], told[0]["unit"], told[0]["output"]) == (100, "bytes", "o.npy")
    assert (told[1]["fraction"], told[1]["eta_seconds"], told[1]["tokens_per_second"]) == (0.25, 6.0, 50.0)
    assert told[1]["resident_bytes"] > 1 << 20


# cache


def fill(n_rows=3):
    with user_cache(load_config()) as cache:
        cache.put((str(number).encode(), CachedRow(row=np.ones(4, dtype=np.float32), n_tokens=1, truncated=False))
                  for number in range(n_rows))  # fmt: skip
        return cache.path


def test_the_cache_is_shown_and_cleared(shell):
    """Path, vectors and size; clearing says what was freed."""
    path = fill()
    assert shell("cache", "path") == (0, f"{path}\n", "")
    code, out, _ = shell("cache", "info")
    assert (code, "vectors  3\n" in out, "of 4.00 GiB" in out) == (0, True, True)
    facts = json.loads(shell("cache", "info", "--json")[1])
    assert (facts["path"], facts["n_rows"], facts["limit_bytes"]) == (str(path), 3, 4 << 30)
    code, out, _ = shell("cache", "clear", "--yes")
    assert (code, out.startswith("freed")) == (0, True)
    assert json.loads(shell("cache", "info", "--json")[1])["n_rows"] == 0


def test_clearing_asks_first(shell, monkeypatch):
    """No answer is no."""
    fill()
    monkeypatch.setattr("click.confirm", lambda *_, **__: False)
    assert shell("cache", "clear") == (0, "", "nothing was deleted\n")
    assert json.loads(shell("cache", "info", "--json")[1])["n_rows"] == 3


@pytest.mark.parametrize(("size", "limit_bytes"), [("0", 0), ("20GiB", 20 << 30), ("512MiB", 512 << 20)])
def test_the_size_is_configured(shell, monkeypatch, size, limit_bytes):
    """By GGUF_EMBED_CACHE_SIZE, as other sizes."""
    monkeypatch.setenv("GGUF_EMBED_CACHE_SIZE", size)
    assert json.loads(shell("cache", "info", "--json")[1])["limit_bytes"] == limit_bytes
