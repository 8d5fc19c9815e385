"""normalizing.py: NFC for Qwen, BERT's accent stripping, nothing elsewhere."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.engine.normalizing import normalizer_for

compose = normalizer_for("bpe", "qwen2", strips_accents=False)
strip = normalizer_for("wpm", "", strips_accents=True)

UNTOUCHED = [
    pytest.param("bpe", "gpt-2", False, id="another BPE"),
    pytest.param("bpe", "", False, id="BPE without a name"),
    pytest.param("bpe", "llama-bpe", True, id="BPE ignores the WordPiece flag"),
    pytest.param("wpm", "", False, id="cased WordPiece"),
    pytest.param("wpm", "qwen2", False, id="WordPiece ignores the BPE name"),
    pytest.param("spm", "qwen2", True, id="SentencePiece"),
    pytest.param("ugm", "", True, id="Unigram"),
]
TEXT = st.text(st.characters(exclude_categories=("Cs",)))


@pytest.mark.parametrize(("vocab_type", "pretokenizer", "strips_accents"), UNTOUCHED)
def test_other_tokenizers_get_the_text_as_it_is(vocab_type, pretokenizer, strips_accents):
    """Where llama.cpp does all that the reference does, nothing is touched."""
    normalize = normalizer_for(vocab_type, pretokenizer, strips_accents=strips_accents)
    text = "cafe\u0301 \u212b \uac00 \t caf\u00e9"
    assert normalize(text) == text


@pytest.mark.parametrize(
    ("text", "composed"),
    [
        pytest.param("cafe\u0301", "caf\u00e9", id="e and acute"),
        pytest.param("\u212b", "\u00c5", id="Angstrom sign"),
        pytest.param("\u1112\u1161\u11ab", "\ud55c", id="jamo to a syllable"),
        pytest.param("\u0344", "\u0308\u0301", id="excluded from composition"),
        pytest.param("\ufb01", "\ufb01", id="compatibility forms stay"),
        pytest.param("caf\u00e9", "caf\u00e9", id="composed already"),
        pytest.param("", "", id="empty"),
    ],
)
def test_qwen_texts_are_composed(text, composed):
    """Qwen's reference tokenizer puts texts into NFC before it cuts them."""
    assert compose(text) == composed


@given(TEXT)
def test_composing_is_nfc(text):
    """Canonically equal texts become equal, so they get equal vectors."""
    assert unicodedata.is_normalized("NFC", compose(text))
    assert compose(unicodedata.normalize("NFD", text)) == compose(text)


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        pytest.param("Caf\u00e9 na\u00efve", "Cafe naive", id="Latin"),
        pytest.param("cafe\u0301", "cafe", id="decomposed already"),
        pytest.param("Vi\u1ec7t", "Viet", id="two marks on one letter"),
        pytest.param("\u03ac\u0390", "\u03b1\u03b9", id="Greek"),
        pytest.param("\u0439", "\u0438", id="Cyrillic short i"),
        pytest.param("\u00f8\u0142", "\u00f8\u0142", id="strokes are no marks"),
        pytest.param("\u4e2d\u6587", "\u4e2d\u6587", id="Chinese"),
        pytest.param("", "", id="empty"),
    ],
)
def test_bert_texts_lose_their_accents(text, stripped):
    """BERT decomposes and drops the marks that have no width of their own."""
    assert strip(text) == stripped


def test_a_hangul_syllable_becomes_all_of_its_jamo():
    """llama.cpp alone keeps the first part of three."""
    assert strip("\ud55c") == "\u1112\u1161\u11ab"
    assert strip("\uac00") == "\u1100\u1161"


def test_devanagari_keeps_its_vowel_signs():
    """Spacing marks are vowels and stay; the virama, which has no width, goes."""
    assert strip("\u0939\u093f\u0928\u094d\u0926\u0940") == "\u0939\u093f\u0928\u0926\u0940"


def test_tamil_keeps_its_vowel_signs():
    """A Tamil vowel sign of two parts is taken apart and both stay."""
    assert strip("\u0b95\u0bca") == "\u0b95\u0bc6\u0bbe"


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_untouched(text):
    """Plain text goes through both as it is, control characters too."""
    assert strip(text) == text
    assert compose(text) == text


@given(TEXT)
def test_stripping_twice_is_stripping_once(text):
    """What comes out has no marks left to drop."""
    once = strip(text)
    assert strip(once) == once
    assert not any(unicodedata.category(char) == "Mn" for char in once)
