"""Chunks by the tokens of real tokenizers: no chunk above the limit, and the text comes back."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_embed.engine.tokenizing import OVERRIDES, Tokenizer
from gguf_embed.native.layout import Layout
from gguf_embed.native.llama import Model
from gguf_embed.stream.chunking import KINDS, chunk

pytest.importorskip("semantic_text_splitter")

PROMPT = "search_document: "
WORDS = [
    "0x1f, ", "The cat sat. ", "naïve ", "漢字かな。", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "e\u0301",
    "\r\n", "\n\n", "# Head\n", "    x = f(1)\n", "| a | b |\n", "antidisestablishmentarianism", "-" * 40, " " * 40,
]  # fmt: skip
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(WORDS), st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40)
    ),
    max_size=150,
).map("".join)


@pytest.fixture(scope="module", params=["starter", "qwen3"])
def count(request):
    """Tokens of a piece after a prompt, as WordPiece and as byte-level BPE count them."""
    with Model(request.getfixturevalue(request.param), Layout(), overrides=OVERRIDES) as model:
        tokenizer = Tokenizer(model, max_tokens=256)
        yield lambda piece: len(tokenizer.tokenize([piece], prefix=PROMPT)[0][0])


def check(text, spans, count, *, n_tokens_max, n_overlap):
    """Hold the laws by the model's own count, which raises for what is longer than the model takes."""
    assert spans[0].start == 0
    assert spans[-1].end == len(text)
    for before, after in pairwise(spans):
        assert before.start < after.start <= before.end < after.end
        assert count(text[after.start : before.end]) - count("") <= n_overlap
    assert all(count(text[span.start : span.end]) <= n_tokens_max for span in spans)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, kind=st.sampled_from(KINDS), n_tokens_max=st.integers(40, 256), n_overlap=st.integers(0, 12))
def test_no_chunk_is_above_the_limit_of_a_real_tokenizer(count, text, kind, n_tokens_max, n_overlap):
    """The laws hold by the model's own count, prompt and special tokens included."""
    spans = chunk(text, kind=kind, n_tokens_max=n_tokens_max, n_overlap=n_overlap, count=count)
    check(text, spans, count, n_tokens_max=n_tokens_max, n_overlap=n_overlap)


@pytest.mark.parametrize("hard", ["x" * 20_000, "e" + "\u0301" * 5000, "\n" * 5000 + "word " * 2000, "漢" * 5000])
def test_what_is_too_long_to_be_counted_is_cut(count, hard):
    """A text that the tokenizer refuses as a whole becomes chunks that it takes."""
    spans = chunk(hard, kind="text", n_tokens_max=128, n_overlap=8, count=count)
    check(hard, spans, count, n_tokens_max=128, n_overlap=8)
