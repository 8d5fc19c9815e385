"""quality/report.py and plots.py: tables that fit a terminal, Markdown, one HTML file, pictures that repeat."""

from __future__ import annotations

import builtins
import dataclasses
import json
import re
from html import escape
from html.parser import HTMLParser

import pytest

from gguf_embed.errors import MissingExtraError, StorageError
from gguf_embed.quality import plots
from gguf_embed.quality.evaluation import Evaluation, Figures, Judged
from gguf_embed.quality.plots import check_plots, draw_png, draw_svg
from gguf_embed.quality.report import legend, summary, tables, to_facts, to_html, to_markdown, write_report

SIZES = {"F16": 44 << 20, "Q8_0": 24 << 20, "Q4_K_M": 20 << 20, "Q4_K_S": (20 << 20) - 7}


def figures(dim, kept, **others):
    return Figures(
        dim=dim, cosine_mean=kept, cosine_p1=kept, cosine_min=kept / 2, neighbours_kept=kept, rank_correlation=kept,
        spearman=kept * 0.8, ndcg_at_10=kept * 0.9, recall_at_10=kept, **others,
    )  # fmt: skip


def evaluation(*, scores=(1.0, 0.995, 0.9, 0.89), dims=(384, 192), tasks=(), notes=()):
    """Four quantizations; what each keeps is its score at full length, and half of it at each other dim."""
    quants = tuple(
        Judged(
            quant=quant, file=f"m-{quant}.gguf", size_bytes=SIZES[quant], sha256="ab" * 32, tasks=tasks, score=score,
            figures=tuple(figures(dim, score if place == 0 else score / 2) for place, dim in enumerate(dims)),
        )
        for quant, score in zip(SIZES, scores, strict=False)
    )  # fmt: skip
    return Evaluation(model_id="a-<b>", reference="F16", dims=dims, measured_on=("24 texts",), quants=quants,
                      notes=notes)  # fmt: skip


def only_pairs():
    quants = tuple(
        Judged(quant=quant, file="f", size_bytes=SIZES[quant], sha256="", score=1.0,
               figures=(Figures(dim=8, spearman=0.5),))
        for quant in ("F16", "Q8_0")
    )  # fmt: skip
    return Evaluation(model_id="m", reference="F16", dims=(8,), measured_on=("10 pairs",), quants=quants)


# Tables


def test_the_first_table_fits_a_terminal():
    """All columns in 80 characters, two between them, also with a long size."""
    table, *_ = tables(evaluation())
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80
    assert table.columns == ("quant", "size", "cosine", "min", "top 10", "ranks", "pairs", "nDCG@10", "recall@10")
    assert table.rows[1] == (
        "Q8_0", "24 MiB", "0.99500", "0.49750", "0.9950", "0.9950", "0.7960", "0.8955", "0.9950",
    )  # fmt: skip


def test_only_what_was_measured_has_a_column():
    """And only that is explained."""
    [table] = tables(only_pairs())
    assert table.columns == ("quant", "size", "pairs")
    assert [title for title, _ in legend(only_pairs())] == ["pairs", "kept"]


def test_each_measure_has_a_table_by_dim():
    """A row a quantization, a column a dim; tasks of mteb have a table before them."""
    _, of_tasks, *sweeps = tables(evaluation(tasks=(("STSBenchmark", 0.81234), ("NFCorpus", 0.3))))
    assert (of_tasks.columns, of_tasks.rows[0]) == (("quant", "STSBenchmark", "NFCorpus"), ("F16", "0.8123", "0.3000"))
    assert [table.title for table in sweeps] == [
        "ten nearest kept, by dim",
        "pairs, Spearman, by dim",
        "nDCG@10, by dim",
    ]
    assert sweeps[0].columns == ("quant", "384", "192")
    assert sweeps[0].rows[1] == ("Q8_0", "0.9950", "0.4975")


def test_columns_name_the_reference():
    """What a figure is a share of is said."""
    assert "with that of F16 at the same dim" in dict(legend(evaluation()))["cosine"]
    assert "F16 at full length" in dict(legend(evaluation()))["top 10"]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (evaluation(), "mean of top 10, pairs and nDCG@10 as shares of F16's, each at most 1"),
        (only_pairs(), "pairs as a share of F16's, at most 1"),
        (evaluation(tasks=(("STSBenchmark", 0.8),)),
         "mean of top 10, pairs, nDCG@10 and mteb's scores as shares of F16's, each at most 1"),
    ],
    ids=["three", "one", "mteb"],
)  # fmt: skip
def test_the_one_number_is_explained(found, words):
    """In the terminal, in Markdown and in HTML."""
    assert dict(legend(found))["kept"] == words
    assert f"- **kept**: {words}" in to_markdown(found)
    assert f"<dt>kept</dt><dd>{escape(words)}</dd>" in to_html(found, [])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (
            (1, 0.995, 0.9, 0.8),
            "Q8_0 is the smallest that keeps 99% of what F16 reaches: 99.5% in 24 MiB instead of 44",
        ),
        ((1, 0.995, 0.9, 0.99), "Q4_K_S is the smallest that keeps 99%"),
        ((1, 0.985, 0.9, 0.8), "None of the smaller ones keeps 99% of what F16 reaches; Q8_0 comes nearest with 98.5%"),
    ],
)
def test_a_sentence_says_which(scores, expected):
    """The smallest that costs next to nothing, or which comes nearest."""
    assert summary(evaluation(scores=scores)).startswith(expected)


def test_no_sentence_where_there_is_nothing_to_say():
    """One quantization alone, or a reference that is the smallest."""
    assert summary(evaluation(scores=(1,))) == ""
    found = evaluation()
    assert summary(dataclasses.replace(found, quants=found.quants[::-1])) == ""


# Files


def test_markdown_has_the_tables():
    """Each with its line of dashes, what the columns mean, checksums, and a bar in a name is no column."""
    text = to_markdown(evaluation(notes=("A note.",), tasks=(("a|b", 0.5),)))
    assert "| quant | size | cosine |" in text
    assert "| Q8_0 | 24 MiB | 0.99500 |" in text
    assert "## nDCG@10, by dim" in text
    assert "| quant | a\\|b |\n| --- | ---: |" in text
    assert "- A note.\n- Measured on 24 texts.\n- F16: m-F16.gguf, 46,137,344 bytes, sha256 abab" in text
    assert all(line.endswith("|") for line in text.splitlines() if line.startswith("|"))


class Reading(HTMLParser):
    """What a page loads, and that each element that is opened is closed."""

    VOID = ("meta", "link", "br", "img", "path", "use", "rect", "defs")

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


def test_a_page_needs_no_other_file():
    """Tables and pictures in one file that loads nothing, with names escaped."""
    found = evaluation(notes=("Not <trained>.",))
    page = to_html(found, draw_svg(found))
    reading = Reading()
    reading.feed(page)
    assert reading.open == []
    assert all(link.startswith("#") for link in reading.loads)
    assert not re.search(r"url\((?!#)", page)
    assert "What quantization costs a-<b>" in reading.words
    assert "Not <trained>." in reading.words
    assert page.count("<svg") == 3
    assert {"Q4_K_S", "0.99500", "nDCG@10, by dim"} <= set(reading.words)


def test_a_page_follows_light_and_dark():
    """Ink, paper and grid of the pictures are the page's."""
    [(label, svg), *_] = draw_svg(evaluation())
    assert label.startswith("nDCG@10 of each quantization")
    assert "var(--ink)" in svg
    assert "var(--muted)" in svg
    assert not re.search(r"#20292e|#6b757b|#ffffff", svg)
    assert "prefers-color-scheme: dark" in to_html(evaluation(), ())


def test_the_same_evaluation_gives_the_same_bytes(tmp_path):
    """Pictures carry no date and no chance."""
    assert draw_svg(evaluation()) == draw_svg(evaluation())
    for name in ("a.png", "b.png"):
        draw_png(evaluation(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert not re.search(r"20\d\d-\d\d-\d\d", to_html(evaluation(), draw_svg(evaluation())))


def test_each_quantization_has_its_name_once_a_panel():
    """Beside its point by size, and in the legend by dim."""
    for dims, n_times in (((384, 192), 2), ((384,), 1)):
        for _, svg in draw_svg(evaluation(dims=dims)):
            assert [svg.count(f">{quant}</text>") for quant in SIZES] == [n_times] * 4


def test_tasks_alone_are_drawn():
    """What they keep by size; they are run at full length only."""
    quants = tuple(
        Judged(quant=quant, file="f", size_bytes=size, sha256="", tasks=(("T", 0.5),), score=0.9,
               figures=(Figures(dim=8), Figures(dim=4)))
        for quant, size in SIZES.items()
    )  # fmt: skip
    found = Evaluation(model_id="m", reference="F16", dims=(8, 4), measured_on=("T of mteb",), quants=quants)
    [(label, svg)] = draw_svg(found)
    assert "mteb" in label
    assert ">Q8_0</text>" in svg


def test_a_picture_is_written_whole(tmp_path):
    """A PNG in place of what was there, and nothing beside it; a folder that is not there is an error of the disk."""
    path = tmp_path / "r.png"
    path.write_bytes(b"old")
    draw_png(only_pairs(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="cannot be written: No such file"):
        draw_png(only_pairs(), tmp_path / "none" / "r.png")


def test_a_report_is_written_whole(tmp_path, monkeypatch):
    """What cannot be put in its place leaves the old file and nothing beside it."""
    path = tmp_path / "r.md"
    write_report(path, "old")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(StorageError, match=r"r\.md cannot be written: Permission denied"):
        write_report(path, "new")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"r.md": "old"}


def test_without_matplotlib_it_is_said_at_the_door(monkeypatch):
    """With the line that installs it."""
    check_plots()
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r'pip install "gguf-embed\[plot\]"'):
        check_plots()


def test_facts_are_json_with_versions():
    """Everything that was measured, and what it was measured with; no date."""
    facts = json.loads(json.dumps(to_facts(evaluation())))
    assert facts["quants"][1]["figures"][0]["neighbours_kept"] == 0.995
    assert set(facts["versions"]) == {"gguf-embed", "llama-cpp-python", "numpy"}
    assert set(facts) == {"model_id", "reference", "dims", "measured_on", "quants", "notes", "versions"}


def test_no_name_covers_another():
    """Ten quantizations of nearly one size that keep nearly the same; every name can be read."""
    from matplotlib.text import Annotation, Text  # noqa: PLC0415 - an extra

    quants = tuple(
        Judged(quant=f"Q{place}_K_M", file="f", size_bytes=(20 << 20) + place * 40_000, sha256="", score=1.0,
               figures=(Figures(dim=8, neighbours_kept=1 - place * 0.0002),))
        for place in range(10)
    )  # fmt: skip
    found = Evaluation(model_id="m", reference="Q0_K_M", dims=(8,), measured_on=(), quants=quants)
    figure = plots._figure(found, list(plots._measures(found)))
    names = [text for text in figure.axes[0].texts if isinstance(text, Annotation)]
    boxes = [Text.get_window_extent(text) for text in names]
    assert sorted(text.get_text() for text in names) == [one.quant for one in quants]
    assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])
