"""Texts end in exactly one EOS, and control tokens spelt out in a text stay text."""

from __future__ import annotations

import logging

import pytest
import synthetic

from gguf_embed import Embedder, UnsupportedModelError

EOS = synthetic.bpe_vocabulary().index(synthetic.END_OF_TEXT)
CONTROL = [synthetic.bpe_vocabulary().index(token) for token in synthetic.CONTROL_TOKENS]


@pytest.mark.parametrize("text", ["the capital", "", "ends in <|endoftext|>", "<|im_start|>user", "é" * 50])
def test_one_eos_at_the_end(qwen3, text):
    """Normal, empty and literal texts have one EOS, the last id, and no other control token."""
    with Embedder(str(qwen3)) as model:
        [ids] = model.tokenize([text])
    assert ids[-1] == EOS
    assert not set(ids[:-1]) & set(CONTROL)


def test_truncation_keeps_the_eos(qwen3, caplog):
    """A text cut by truncate="end" ends in its EOS, has the vector of the text cut beforehand, and is reported."""
    with Embedder(str(qwen3)) as model:
        whole = "a" * (model.max_seq_length + 500)
        cut = "a" * (model.max_seq_length - 1)
        with caplog.at_level(logging.WARNING, "gguf_embed"):
            vector = model.encode(whole, truncate="end")
        assert "1 of 1 texts were cut to 1024 tokens" in caplog.text
        assert model.similarity(vector, model.encode(cut))[0, 0] >= 0.9999


def test_file_without_eos_is_refused(tmp_path):
    """A last-token file whose tokenizer adds no EOS is a named error that says what to do."""
    path = synthetic.write_qwen3(tmp_path / "old.gguf", add_eos=None)
    with pytest.raises(UnsupportedModelError, match=r"add_eos_token is not true.*--add-eos"):
        Embedder(str(path)).load()


def test_file_without_eos_can_be_overridden(tmp_path, qwen3, caplog):
    """add_eos=True gives the vectors of the right file and says so."""
    path = synthetic.write_qwen3(tmp_path / "old.gguf", add_eos=False)
    with Embedder(str(path), add_eos=True) as old, Embedder(str(qwen3)) as right:
        assert old.tokenize(["the"]) == right.tokenize(["the"])
        assert old.similarity(old.encode("the capital"), right.encode("the capital"))[0, 0] > 0.99999
    assert "add_eos_token is False in the file; using True" in caplog.text


def test_wrong_pooling_is_overridden_by_the_registry(registered, tmp_path, caplog):
    """A file that the registry knows is pooled by the registry's word, not its header's, and that is shown."""
    path = synthetic.write_qwen3(tmp_path / registered.name, pooling_type=1)
    with Embedder(str(path)) as wrong, Embedder(str(registered)) as right:
        assert wrong.similarity(wrong.encode("the capital"), right.encode("the capital"))[0, 0] > 0.99999
    assert "pooling is mean in the file; using last" in caplog.text


def test_chat_model_is_refused(tmp_path):
    """A GGUF that says nothing of pooling, as chat models do, is a named error."""
    path = synthetic.write_qwen3(tmp_path / "chat.gguf", pooling_type=None)
    with pytest.raises(UnsupportedModelError, match=r"says nothing of pooling.*--pooling last"):
        _ = Embedder(str(path)).plan


def test_chat_model_can_be_overridden(tmp_path, qwen3):
    """pooling_type="last" gives the vectors of the right file."""
    path = synthetic.write_qwen3(tmp_path / "chat.gguf", pooling_type=None)
    with Embedder(str(path), pooling_type="last") as told, Embedder(str(qwen3)) as right:
        assert told.similarity(told.encode("the capital"), right.encode("the capital"))[0, 0] > 0.99999
