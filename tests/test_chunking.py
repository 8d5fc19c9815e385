"""Chunks: spans that give the text back, no chunk above the limit, cuts where a reader would make them."""

from __future__ import annotations

import logging
import sys
import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gguf_embed.errors import InvalidTextError, MissingExtraError, TextTooLongError
from gguf_embed.stream.chunking import KINDS, Chunking, Span, chunk

pytest.importorskip("semantic_text_splitter")

N_OWN = 2  # special tokens


def by_bytes(text):
    """Four bytes a token, as of a tokenizer that keeps every byte."""
    return N_OWN + -(-len(text.encode()) // 4)


def by_words(text):
    """One token a word, as of a tokenizer that folds spaces and takes a long word for unknown."""
    return N_OWN + len(text.split())


def by_pairs(text):
    """More characters may have fewer tokens: each `ab` is one, so that `a` and `b` apart are two."""
    return N_OWN + len(text) - text.count("ab")


def by_whim(text):
    """Not monotone at all, but never above twice the characters."""
    return N_OWN + len(text) + (len(text) * 7919 % 13 if len(text) > 1 else 0)


def cut(text, *, kind="text", n_tokens_max=32, n_overlap=0, count=by_bytes):
    return chunk(text, kind=kind, n_tokens_max=n_tokens_max, n_overlap=n_overlap, count=count)


def pieces(text, spans):
    return [text[span.start : span.end] for span in spans]


def check(text, spans, *, n_tokens_max, n_overlap, count):
    """Hold the laws that every result keeps."""
    assert spans[0].start == 0
    assert spans[-1].end == len(text)
    whole = text[: spans[0].end]
    for before, after in pairwise(spans):
        assert before.start < after.start <= before.end < after.end
        shared = text[after.start : before.end]
        assert not shared or count(shared) - count("") <= n_overlap
        whole += text[before.end : after.end]
    assert whole == text
    assert all(count(piece) <= n_tokens_max for piece in pieces(text, spans))
    for span in spans:
        assert span.first_line == text[: span.start].count("\n") + 1
        assert span.last_line == text[: max(span.start, span.end - 1)].count("\n") + 1
    if count(text) <= n_tokens_max:
        assert len(spans) == 1


ODD = [
    "e\u0301\u0302", "\u200d", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea",
    "\U0001f44d\U0001f3fd", "\r\n", "\r", "\n", "\n\n", "\u2028", " ", "\t", "a" * 50, "ab", "漢字。", "Word. ",
    "# H\n", "```\n", "| a | b |\n", "def f():\n", "    ", "(", "{",
    "}", "'", '"', "\u0915\u094d\u0937\u093f", "\u0300",
]  # fmt: skip
ANY = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)
TEXTS = st.one_of(
    ANY,
    st.lists(st.sampled_from(ODD), max_size=120).map("".join),
    st.lists(st.one_of(st.sampled_from(ODD), ANY), max_size=40).map("".join),
)


@settings(max_examples=250, deadline=None)
@given(
    TEXTS, st.sampled_from(KINDS), st.integers(5, 60), st.integers(0, 40),
    st.sampled_from([by_bytes, by_words, by_pairs, by_whim]),
)  # fmt: skip
@example("", "text", 5, 0, by_bytes)
@example(" " * 500, "markdown", 8, 2, by_bytes)
@example("\n" * 500, "python", 8, 2, by_bytes)
@example("x" * 500, "c", 8, 2, by_bytes)
@example("\r\n" * 200, "text", 8, 2, by_bytes)
@example("e" + "\u0301" * 300, "text", 8, 2, by_bytes)
@example("👨‍👩‍👧‍👦" * 30, "text", 8, 2, by_bytes)
@example("ba" * 100, "text", 10, 3, by_pairs)
def test_spans_give_the_text_back_and_no_chunk_is_above_the_limit(text, kind, n_tokens_max, n_overlap, count):
    """The laws hold for any text, kind, limit and overlap, and for tokenizers that are not monotone."""
    limits = {"n_tokens_max": n_tokens_max, "n_overlap": min(n_overlap, n_tokens_max - N_OWN - 1)}
    if count is by_whim:
        limits["n_overlap"] = 0
    spans = cut(text, kind=kind, **limits, count=count)
    check(text, spans, **limits, count=count)
    assert spans == cut(text, kind=kind, **limits, count=count)


@pytest.mark.parametrize("kind", ["text", "markdown", "python"])
@pytest.mark.parametrize("n_overlap", [0, 9])
def test_the_laws_hold_over_many_windows(kind, n_overlap):
    """Texts that a splitter gets in several windows are cut by the same laws."""
    text = "".join(
        f"# Part {n}\n\nSome words é 漢 of it.\n\n    def f{n}(a):\r\n        return (a, {n})\n" for n in range(900)
    )
    limits = {"n_tokens_max": 40, "n_overlap": n_overlap, "count": by_bytes}
    spans = cut(text, kind=kind, **limits)
    check(text, spans, **limits)


def test_a_window_leaves_no_cut_of_its_own():
    """Where a splitter's window ends, no sentence is cut in two."""
    text = "Twenty-two characters. " * 4000
    assert all(piece.endswith(". ") for piece in pieces(text, cut(text)))


def test_an_overlap_gives_way_to_the_limit():
    """Where a chunk and its overlap together have more tokens than apart, the overlap is shorter."""

    def count(text):
        return by_words(text) + 5 * (len(text.split()) > 20)

    text = "word " * 200
    spans = cut(text, n_tokens_max=30, n_overlap=8, count=count)
    check(text, spans, n_tokens_max=30, n_overlap=8, count=count)
    assert spans[1].start < spans[0].end


def test_a_text_that_fits_is_one_span():
    """Nothing is cut that need not be, and an empty text is a span on line 1."""
    assert cut("") == [Span(start=0, end=0, first_line=1, last_line=1)]
    assert cut("one\ntwo\n") == [Span(start=0, end=8, first_line=1, last_line=2)]
    assert cut("# a\n\n# b\n", kind="markdown", n_overlap=4)[0].end == 9


PROSE = (
    "It was a bright cold morning, and the harbour lay still under a thin fog. Boats knocked against the quay. "
    "Nobody had come down yet from the houses, whose windows were dark, except for the baker, who is always first. "
    "She carried two baskets across the square and set them on the wall. Then she waited; the ferry was late again. "
)


@pytest.mark.parametrize("kind", ["text", "markdown"])
def test_neighbours_share_about_what_was_asked_for(kind):
    """In prose an overlap is two thirds of what is allowed on average, and begins with a word."""
    text = "\n\n".join(PROSE * 2 for _ in range(12))
    spans = cut(text, kind=kind, n_tokens_max=128, n_overlap=24)
    check(text, spans, n_tokens_max=128, n_overlap=24, count=by_bytes)
    shared = [text[after.start : before.end] for before, after in pairwise(spans)]
    assert sum(by_bytes(piece) - N_OWN for piece in shared) >= 24 * len(shared) * 2 / 3
    assert all(text[span.start - 1].isspace() and not text[span.start].isspace() for span in spans[1:])


def test_markdown_is_cut_at_headings_first():
    """Sections that do not fit together are cut apart at their headings."""
    text = "".join(f"## Part {n}\n\nShort one. {'Word of it. ' * n}\n\nAnother paragraph.\n\n" for n in (3, 6, 4, 5))
    found = pieces(text, cut(text, kind="markdown", n_tokens_max=40))
    assert len(found) == 4
    assert all(piece.startswith("## Part") for piece in found)


def test_markdown_is_cut_at_paragraphs_before_sentences():
    """A section that does not fit is cut between paragraphs, a paragraph that does not fit between sentences."""
    text = "# Title\n\n" + "One thing. Two things.\n\n" * 4 + "First of a long row. " * 12
    found = pieces(text, cut(text, kind="markdown", n_tokens_max=30))
    assert found[1].startswith("One thing.") or found[0].endswith("Two things.\n\n")
    assert all(piece.endswith(("\n\n", ". ")) for piece in found)


def test_text_is_cut_at_paragraphs_then_sentences_then_words():
    """What is cut first is what a reader would cut first."""
    paragraphs = "A first line.\nIts second one.\n\n" * 5
    assert set(pieces(paragraphs, cut(paragraphs, n_tokens_max=12))) == {"A first line.\nIts second one.\n\n"}
    sentences = "This one is a sentence. " * 9
    assert set(pieces(sentences, cut(sentences, n_tokens_max=9))) == {"This one is a sentence. "}
    words = "word " * 40
    assert all(piece.endswith("word ") for piece in pieces(words, cut(words, n_tokens_max=9)))


CODE = {
    "python": ("def f{n}(a, b):\n    if a:\n        return b\n    return a\n\n\n", "def f"),
    "javascript": ("function f{n}(a, b) {{\n  if (a) {{\n    return b;\n  }}\n  return a;\n}}\n\n", "function f"),
    "typescript": ("function f{n}(a: number, b: B): B {{\n  return a ? b : a;\n}}\n\n", "function f"),
    "tsx": ("const F{n} = (p: P) => {{\n  return <b>{{p.a}} and {{p.b}}</b>;\n}};\n\n", "const F"),
    "go": ("func f{n}(a int, b int) int {{\n\tif a > b {{\n\t\treturn b\n\t}}\n\treturn a\n}}\n\n", "func f"),
    "rust": ("fn f{n}(a: u8, b: u8) -> u8 {{\n    if a > b {{\n        return b;\n    }}\n    a\n}}\n\n", "fn f"),
    "java": ("class A{n} {{\n  int f(int a, int b) {{\n    return a > b ? b : a;\n  }}\n}}\n\n", "class A"),
    "c": ("int f{n}(int a, int b) {{\n  if (a > b) {{\n    return b;\n  }}\n  return a;\n}}\n\n", "int f"),
    "cpp": ("auto f{n}(int a, A b) -> int {{\n  if (a > b) {{\n    return b;\n  }}\n  return a;\n}}\n\n", "auto f"),
    "c_sharp": ("class A{n} {{\n  int F(int a, int b) {{\n    return a > b ? b : a;\n  }}\n}}\n\n", "class A"),
    "ruby": ("def f{n}(a, b)\n  if a > b\n    return b\n  end\n  a\nend\n\n", "def f"),
    "php": ("function f{n}($a, $b) {{\n  if ($a) {{\n    return $b;\n  }}\n  return $a;\n}}\n\n", "function f"),
    "bash": ("f{n}() {{\n  if [ -n $1 ]; then\n    echo $2\n  fi\n  echo done\n}}\n\n", "f"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CODE)
def test_code_is_cut_at_definitions(kind):
    """Definitions that do not fit together begin their chunks, which hold two or three of them."""
    pytest.importorskip(f"tree_sitter_{kind.replace('tsx', 'typescript')}")
    template, opening = CODE[kind]
    text = ("<?php\n" if kind == "php" else "") + "".join(template.format(n=n) for n in range(10, 20))
    found = pieces(text, cut(text, kind=kind, n_tokens_max=3 * by_bytes(template) - 12))
    assert 4 <= len(found) <= 6
    assert all(piece.startswith(opening) for piece in found[1:])
    assert all(piece.rstrip().endswith(template.rstrip().replace("}}", "}")[-3:]) for piece in found)


def test_a_method_is_not_torn_from_its_indentation():
    """A chunk of code begins where a line begins."""
    method = "    def m{n}(self):\n        return self.value_of({n})\n\n"
    text = "class A:\n" + "".join(method.format(n=n) for n in range(30))
    spans = cut(text, kind="python", n_tokens_max=44)
    assert all(piece.startswith("    def m") for piece in pieces(text, spans)[1:])
    assert [span.first_line for span in spans[1:]] == [span.last_line + 1 for span in spans[:-1]]


def test_without_a_grammar_code_is_cut_as_text(monkeypatch, caplog):
    """A grammar that is not installed changes where the cuts are, and says so in the debug log."""
    monkeypatch.setitem(sys.modules, "tree_sitter_go", None)
    text = "func f() int {\n\treturn 1\n}\n\n" * 20
    with caplog.at_level(logging.DEBUG, "gguf_embed"):
        assert cut(text, kind="go") == cut(text)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    """Chunking is an extra; its absence is known before the first long text."""
    monkeypatch.setitem(sys.modules, "semantic_text_splitter", None)
    with pytest.raises(MissingExtraError, match=r'pip install "gguf-embed\[corpus\]"') as caught:
        cut("short")
    assert caught.value.extra == "corpus"


def test_a_character_above_the_limit_is_an_error():
    """What cannot be cut further is named with its place."""
    with pytest.raises(TextTooLongError, match=r"character '🙂' at 100 alone has 9 tokens .* at most 8") as caught:
        cut("a " * 50 + "🙂 b", n_tokens_max=8, count=lambda text: N_OWN + len(text.split()) + 6 * text.count("🙂"))
    assert (caught.value.index, caught.value.n_tokens, caught.value.n_ctx) == (0, 9, 8)


def test_a_prompt_above_the_limit_is_an_error():
    """A prompt that leaves no room for a text is not the text's fault."""
    with pytest.raises(TextTooLongError, match="prompt and special tokens alone have 40 tokens"):
        cut("a", n_tokens_max=32, count=lambda text: 40 + len(text))
    with pytest.raises(ValueError, match="has 8 beside prompt"):
        cut("a", n_tokens_max=48, n_overlap=8, count=lambda text: 40 + len(text))


def test_what_a_tokenizer_refuses_for_its_length_is_cut():
    """Pieces that are too long or endless to be counted are too large, and an empty one has no tokens."""

    def count(text):
        if not text:
            raise InvalidTextError("empty", index=0, reason="empty")
        if len(text) > 300:
            raise TextTooLongError("long", index=0, n_tokens=300, n_ctx=300)
        if len(text) > 100:
            raise InvalidTextError("endless", index=0, reason="endless run")
        return len(text)

    text = "x" * 1000
    assert max(map(len, pieces(text, cut(text, n_tokens_max=200, count=count)))) <= 100


def test_what_a_tokenizer_refuses_for_another_reason_is_raised():
    """A NUL does not become shorter by cutting."""

    def count(text):
        if "\0" in text:
            raise InvalidTextError("NUL", index=0, reason="NUL character")
        return len(text)

    with pytest.raises(InvalidTextError, match="NUL"):
        cut("a\0" * 100, count=count)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"kind": "cobol"}, "kind is 'cobol'"), ({"n_overlap": 32}, "n_overlap is 32"), ({"n_overlap": -1}, "is -1"),
     ({"n_tokens_max": 0}, "n_tokens_max, 0")],
)  # fmt: skip
def test_wrong_numbers_and_kinds_are_value_errors(wrong, named):
    """The caller's mistakes name the value."""
    with pytest.raises(ValueError, match=named):
        cut("a", **wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"long": "split"}, {"n_tokens": 0, "long": "chunk"}, {"n_overlap": -1, "long": "chunk"},
     {"n_tokens": 8, "n_overlap": 8, "long": "mean"}, {"n_tokens": 8}, {"n_overlap": 8, "long": "truncate"}],
)  # fmt: skip
def test_a_chunking_that_means_nothing_is_a_value_error(wrong):
    """Values out of range, and limits beside what does not cut, are refused."""
    with pytest.raises(ValueError, match=r"long|n_tokens|n_overlap"):
        Chunking(**wrong)


def test_a_chunking_has_defaults():
    """Without being told, a long text is an error."""
    assert Chunking() == Chunking(n_tokens=None, n_overlap=0, long="error")
    assert Chunking(n_tokens=9, n_overlap=8, long="mean").n_overlap == 8


N = 1_000_000
HARD = {
    "a word": "a" * N,
    "line feeds": "\n" * N,
    "spaces": " " * N,
    "a table": "| a | b |\n|---|---|\n" + "| cell one | cell two |\n" * (N // 24),
    "brackets": "(" * (N // 2) + ")" * (N // 2),
    "quotes": ">" * N,
    "else if": "if (a) {\n  b();\n} else " * (N // 24),
    "a chain": "a +\n" * (N // 4),
    "indents": "".join(" " * (n % 100) + "if x:\n" for n in range(N // 56)),
    "lists": "".join(" " * (n % 100) + "- x\n" for n in range(N // 54)),
}


@pytest.mark.parametrize("kind", ["text", "markdown", "c"])
@pytest.mark.parametrize("hard", HARD)
def test_time_grows_with_the_text_and_no_faster(hard, kind):
    """A megabyte of what leads splitters astray is counted a few times over and ends in seconds."""
    n_chars = 0

    def count(piece):
        nonlocal n_chars
        n_chars += len(piece)
        return N_OWN + len(piece) // 4

    text = HARD[hard][:N]
    begun = time.perf_counter()
    spans = cut(text, kind=kind, n_tokens_max=256, count=count)
    assert time.perf_counter() - begun < 20
    assert n_chars < 30 * len(text)
    assert len(spans) < len(text) / 100
