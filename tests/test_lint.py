"""Headers that llama.cpp would abort on are refused before it sees them."""

from __future__ import annotations

import logging

import gguf
import pytest
import synthetic

from gguf_embed.errors import InvalidGGUFError, UnsupportedModelError
from gguf_embed.models.header import facts_of_header, load_facts
from gguf_embed.models.lint import check_header
from gguf_embed.native import ggml


@pytest.fixture
def header(tmp_path):
    """A sound header to damage."""
    return ggml.load_header(synthetic.write_qwen3(tmp_path / "sound.gguf"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qwen3.block_count", 0),
        ("qwen3.block_count", 2**31 - 1),
        ("qwen3.context_length", 0),
        ("qwen3.embedding_length", -1),
        ("qwen3.attention.head_count", "four"),
        ("qwen3.attention.head_count", (float("nan"),)),
        ("qwen3.attention.head_count", True),
        ("qwen3.attention.layer_norm_rms_epsilon", float("nan")),
        ("tokenizer.ggml.eos_token_id", 1_000_000),
        ("tokenizer.ggml.padding_token_id", -1),
    ],
)
def test_impossible_values_are_named(header, tmp_path, key, value):
    """The message has the key and the value."""
    header.metadata[key] = value
    with pytest.raises(InvalidGGUFError, match=f"{key} is"):
        check_header(header, "qwen3", tmp_path / "damaged.gguf")


def test_a_sound_header_passes(header, tmp_path, caplog):
    """Nothing is refused and nothing is said of a sound file."""
    facts_of_header(header, tmp_path / "sound.gguf")
    assert caplog.text == ""


def test_wordpiece_needs_its_special_tokens(tmp_path):
    """A WordPiece vocabulary without ids of its own would take llama.cpp's, which lie outside a small one."""
    header = ggml.load_header(synthetic.write_bert(tmp_path / "bert.gguf"))
    del header.metadata["tokenizer.ggml.seperator_token_id"]
    with pytest.raises(InvalidGGUFError, match="seperator_token_id is 102 in a vocabulary of"):
        check_header(header, "bert", tmp_path / "bert.gguf")


def test_norms_in_half_precision_are_refused(header, tmp_path):
    """llama.cpp adds and multiplies norms as F32 alone."""
    tensors = tuple(
        ggml.TensorInfo(name=t.name, type_name="F16", shape=t.shape, size_bytes=t.size_bytes) for t in header.tensors
    )
    damaged = ggml.GGUFHeader(
        version=3, data_offset=0, metadata=header.metadata, array_lengths=header.array_lengths, tensors=tensors
    )
    with pytest.raises(InvalidGGUFError, match=r"norm\.weight is F16, and norms are F32"):
        check_header(damaged, "qwen3", tmp_path / "half.gguf")


def test_no_vocabulary_is_no_text_model(header, tmp_path):
    """A file without tokens is named as such."""
    header.array_lengths.clear()
    with pytest.raises(UnsupportedModelError, match="no vocabulary"):
        check_header(header, "qwen3", tmp_path / "none.gguf")


def test_a_missing_pretokenizer_is_said(header, tmp_path, caplog):
    """A BPE file that does not say how it cuts texts is a warning, since vectors may be off."""
    del header.metadata["tokenizer.ggml.pre"]
    with caplog.at_level(logging.WARNING, "gguf_embed"):
        check_header(header, "qwen3", tmp_path / "old.gguf")
    assert "tokenizer.ggml.pre" in caplog.text


def test_a_token_twice_is_refused(tmp_path, monkeypatch):
    """A vocabulary that has a token twice never reaches llama.cpp, which would abort the process."""
    real = gguf.GGUFWriter.add_token_list
    monkeypatch.setattr(gguf.GGUFWriter, "add_token_list", lambda self, tokens: real(self, [tokens[1], *tokens[1:]]))
    path = synthetic.write_qwen3(tmp_path / "twice.gguf")
    with pytest.raises(InvalidGGUFError, match="twice"):
        load_facts(path)
