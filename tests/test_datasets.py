"""quality/datasets.py: texts, pairs and judged searches are read, and what is wrong with a file is said."""

from __future__ import annotations

import json

import pytest

from gguf_embed.errors import InputError
from gguf_embed.quality.datasets import Material, Retrieval, load_pairs, load_retrieval, load_sample, load_texts

N_DOCUMENTS = 12


def lines(*objects):
    return "".join(f"{json.dumps(one)}\n" for one in objects)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"text {n}\n" for n in range(20)), encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path):
    """Write a file of ten pairs, after and before what a test adds; the name says how it is read."""

    def write(name, first="", last="", separator="\t"):
        path = tmp_path / name
        rows = "".join(f"left {n}{separator}right {n}{separator}{n / 2}\n" for n in range(10))
        path.write_text(first + rows + last, encoding="utf-8")
        return path

    return write


@pytest.fixture
def beir(tmp_path):
    """A folder as BEIR has it: d0 to d11, three queries, of which q2 has no relevant document."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = ({"_id": f"d{n}", "title": f"Title {n}" if n else "", "text": f"text {n}"} for n in range(N_DOCUMENTS))
    (folder / "corpus.jsonl").write_text(lines(*documents), encoding="utf-8")
    (folder / "queries.jsonl").write_text(
        lines(*({"_id": f"q{n}", "text": f"query {n}"} for n in range(3))), encoding="utf-8"
    )
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td3\t2\nq1\td4\t0\nq2\td1\t0\n", encoding="utf-8"
    )
    return folder


# Texts


def test_texts_are_read_as_for_embed(tmp_path, texts):
    """Lines, JSON Lines and several files; a text that comes again counts once."""
    (tmp_path / "more.jsonl").write_text(lines({"text": "text 3"}, {"text": "another"}), encoding="utf-8")
    read = load_texts([texts, tmp_path / "more.jsonl"])
    assert read.texts == (*(f"text {n}" for n in range(20)), "another")
    assert read.name == "texts.txt, more.jsonl"
    assert str(read).startswith("21 texts of texts.txt, more.jsonl (")


def test_few_texts_say_nothing(tmp_path):
    """Among fewer than twenty the ten nearest are half of all: an error, not a figure."""
    (tmp_path / "one.txt").write_text("a text\na text\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"one\.txt has 1 text, each counted once; give at least 20"):
        load_texts([tmp_path / "one.txt"])


def test_a_text_that_cannot_be_read_is_an_error(tmp_path, texts):
    """Nothing is left out silently."""
    texts.write_bytes(texts.read_bytes() + b"\xff\n")
    with pytest.raises(InputError, match="line 21"):
        load_texts([texts])


# Pairs


@pytest.mark.parametrize(
    ("name", "first", "separator"),
    [
        ("a.tsv", "", "\t"),
        ("a.tsv", "sentence1\tsentence2\tscore\n", "\t"),
        ("a.txt", "", "\t"),
        ("a.csv", "Sentence1,Sentence2,Score\n", ","),
        ("a.csv", "", ","),
        ("a.tsv", "\ufeff\n", "\t"),
    ],
)
def test_pairs_of_a_table(pairs, name, first, separator):
    """With a header or without one, with commas or tabs, blank lines and a byte order mark."""
    read = load_pairs(pairs(name, first, separator=separator))
    assert (read.left[3], read.right[3], read.scores[3]) == ("left 3", "right 3", 1.5)
    assert len(read.left) == len(read.right) == len(read.scores) == 10


def test_a_header_orders_the_columns(tmp_path):
    """By their names, with other columns between them; a quote in a .tsv is a character."""
    rows = "".join(f'{n}\tx\t"left {n}\tright {n}\n' for n in range(10))
    (tmp_path / "a.tsv").write_text(f"score\tgenre\tsentence1\tsentence2\n{rows}", encoding="utf-8")
    read = load_pairs(tmp_path / "a.tsv")
    assert (read.left[2], read.right[2], read.scores[2]) == ('"left 2', "right 2", 2)


def test_pairs_of_json_lines(tmp_path):
    """Fields by the same names."""
    rows = ({"sentence1": f"l{n}", "sentence2": f"r{n}", "score": n} for n in range(10))
    (tmp_path / "a.jsonl").write_text(lines(*rows), encoding="utf-8")
    assert load_pairs(tmp_path / "a.jsonl").scores == tuple(map(float, range(10)))


def test_a_comma_in_quotes_is_no_column(pairs):
    """CSV has its quotes."""
    read = load_pairs(pairs("a.csv", last='"a, b",c,3\n', separator=","))
    assert read.left[-1] == "a, b"


@pytest.mark.parametrize(
    ("name", "last", "expected"),
    [
        ("a.tsv", "a\tb\tmuch\n", r"a\.tsv, line 11: score is 'much', which is no number"),
        ("a.tsv", "a\tb\tnan\n", "score is 'nan'"),
        ("a.tsv", "a\tb\n", "line 11 has 2 columns; it has sentence1, sentence2, score"),
        ("a.jsonl", "", r"a\.jsonl, line 1 is no JSON"),
    ],
)
def test_a_line_that_is_no_pair(pairs, name, last, expected):
    """The file and the line are named."""
    with pytest.raises(InputError, match=expected):
        load_pairs(pairs(name, last=last))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"sentence1": "a", "sentence2": "b"}, "line 1 has no score; each has sentence1, sentence2, score"),
        ({"sentence1": "a", "sentence2": "b", "score": True}, "score is True"),
        ({"sentence1": "a", "sentence2": "b", "score": None}, "score is None"),
        (["a", "b", 1], "line 1 is no JSON object"),
    ],
)
def test_an_object_that_is_no_pair(tmp_path, line, expected):
    """A field is missing, or its value is none."""
    (tmp_path / "a.jsonl").write_text(lines(line), encoding="utf-8")
    with pytest.raises(InputError, match=expected):
        load_pairs(tmp_path / "a.jsonl")


def test_files_without_pairs(tmp_path):
    """Empty, too short, without an order, not there, not UTF-8: each says what it wants."""
    path = tmp_path / "a.tsv"
    for content, expected in (
        (b"", "a.tsv has 0 pairs; give at least 10: two texts and a score a line"),
        (b"a\tb\t1\n", "a.tsv has 1 pairs"),
        (b"a\tb\t1\n" * 12, "scores every pair 1; without an order nothing is measured"),
        (b"\xff\xfe\xff\n", "is no UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=expected):
            load_pairs(path)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.tsv cannot be read"):
        load_pairs(path)


# Retrieval


def test_a_folder_of_beir(beir):
    """Title before text; judgements by position; a query without a relevant document is left out and counted."""
    read = load_retrieval(beir)
    assert read.documents[:2] == ("text 0", "Title 1 text 1")
    assert read.queries == ("query 0", "query 1")
    assert read.relevance == ({0: 1.0}, {3: 2.0, 4: 0.0})
    assert read.n_left_out == 1
    assert str(read).startswith("2 queries over 12 documents of beir, 1 without a relevant document left out (")


def test_judgements_lie_in_several_places(beir):
    """test.tsv goes before other splits; without it all count; a single file does, as table or as JSON Lines."""
    qrels, test = beir / "qrels", beir / "qrels" / "test.tsv"
    (qrels / "dev.tsv").write_text("q2\td5\t1\n", encoding="utf-8")
    assert len(load_retrieval(beir).queries) == 2
    test.rename(qrels / "train.tsv")
    assert len(load_retrieval(beir).queries) == 3
    for path in qrels.iterdir():
        path.unlink()
    (beir / "qrels.jsonl").write_text(lines({"query-id": "q2", "corpus-id": "d5", "score": 3}), encoding="utf-8")
    assert load_retrieval(beir).relevance == ({5: 3.0},)
    (beir / "qrels.tsv").write_text("q0\td5\t1\n", encoding="utf-8")
    assert load_retrieval(beir).queries == ("query 0",)
    (beir / "qrels.tsv").unlink()
    (beir / "qrels.jsonl").unlink()
    with pytest.raises(InputError, match=r"has no qrels/test\.tsv, qrels\.tsv or qrels\.jsonl"):
        load_retrieval(beir)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("q0\td99\t1\n", r"test\.tsv, line 6: 'd99' is not in corpus\.jsonl; add it there, or delete the line"),
        ("q9\td0\t1\n", r"line 6: 'q9' is not in queries\.jsonl"),
        ("q0\td0\tx\n", "line 6: score is 'x'"),
        ("q0\td0\n", "line 6 has 2 columns; it has query-id, corpus-id, score"),
    ],
)
def test_a_judgement_of_nothing(beir, line, expected):
    """What it names is there, or it is an error: recall would fall for no fault of the model's."""
    with (beir / "qrels" / "test.tsv").open("a", encoding="utf-8") as file:
        file.write(line)
    with pytest.raises(InputError, match=expected):
        load_retrieval(beir)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("corpus.jsonl", None, r"corpus\.jsonl cannot be read: No such file"),
        ("corpus.jsonl", lines({"_id": "a", "text": "x"}, {"_id": "a", "text": "y"}), "_id 'a' comes twice"),
        ("corpus.jsonl", lines({"_id": "a"}), "line 1 has no _id and text"),
        ("corpus.jsonl", lines({"text": "a"}), "line 1 has no _id and text"),
        ("queries.jsonl", "", "'q0' is not in queries"),
        ("qrels/test.tsv", "q0\td0\t0\n", "has no query with a relevant document; see its qrels"),
    ],
)
def test_a_folder_that_is_not_whole(beir, name, content, expected):
    """The file and what it lacks are named."""
    if content is None:
        (beir / name).unlink()
    else:
        (beir / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=expected):
        load_retrieval(beir)


def test_few_documents_say_nothing():
    """Of ten the first ten are all."""
    with pytest.raises(InputError, match="has 10 documents; give at least 11"):
        Retrieval(name="r", documents=tuple("abcdefghij"), queries=("q",), relevance=({0: 1.0},))


# The sample, and material as a whole


def test_the_sample_is_read_and_named():
    """Texts, pairs and searches of the package itself, each with a digest that a changed word changes."""
    sample = load_sample()
    assert sample.texts and sample.pairs and sample.retrieval  # noqa: PT018 - none is None
    assert [line.rpartition(" (")[0].split(" of ")[-1] for line in sample.lines] == ["the sample"] * 3
    assert load_sample().lines == sample.lines


def test_a_changed_word_changes_the_line(texts):
    """So figures of other contents under the same name are not taken for the same."""
    before = str(load_texts([texts]))
    texts.write_text(texts.read_text(encoding="utf-8").replace("text 7", "text seven"), encoding="utf-8")
    assert before != str(load_texts([texts]))


def test_there_is_something_to_measure_on():
    """Tasks alone are enough; nothing is not."""
    assert Material(tasks=("STSBenchmark",)).lines == ("STSBenchmark of mteb",)
    with pytest.raises(ValueError, match="nothing to measure on"):
        Material()
