"""engine/checks.py over a session whose answers a person can check by eye: each check fails where it should."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from gguf_embed.engine.checks import (
    Check,
    check_agreement,
    check_batches,
    check_distinct,
    check_finite,
    check_flash_attn,
    check_tokens,
    drift_bound,
)
from gguf_embed.errors import BackendError, DecodeError, NonFiniteEmbeddingError

CLS, EOS, MARK = 1, 2, 3
TEXTS = ["ab", "b", "", "abc"]


class FakeSession:
    """A token is a letter; CLS and EOS go around; a row counts a, b and c, and one."""

    max_tokens = 20

    def __init__(self, pooling_type="last"):
        self.settings = SimpleNamespace(pooling_type=pooling_type, n_batch=64)
        self.layout = SimpleNamespace(n_seq_max=8, flash_attn="auto", kv_type="f16")
        self.n_rescued = 0
        self.closing = np.array([EOS], dtype=np.int32)
        self.opens = self.closes = True
        self.obeys = False
        self.neighbours = 0.0
        self.failure = None

    def tokenize(self, texts, *, truncate="error"):
        """Letters to ids."""
        found = []
        for text in texts:
            body = [100 + ord(letter) % 100 for letter in text.replace("word ", "w")][: self.max_tokens - 2]
            if self.obeys and "<|" in text:
                body[3] = MARK
            found.append(np.array([CLS] * self.opens + body + [EOS] * self.closes, dtype=np.int32))
        return found, []

    def pieces(self, ids):
        """Which are control tokens."""
        return {token: (f"<{token}>", token in (CLS, EOS, MARK)) for token in ids}

    def embed(self, tokens):
        """Counts, and something of the neighbours where that is wanted."""
        if self.failure is not None:
            raise self.failure
        rows = [[(ids == 100 + ord(letter) % 100).sum() for letter in "abc"] + [1] for ids in tokens]
        rows = np.array(rows, dtype=np.float32)
        return rows + self.neighbours * (rows.sum(axis=0) - rows)


@pytest.fixture
def session():
    """A sound one."""
    return FakeSession()


def sample_of(session, texts=TEXTS):
    check, sample = check_finite(session, texts)
    assert check.state == "ok"
    return sample


def test_a_sound_model_passes(session):
    """Every check is ok, and says so with its figure."""
    sample = sample_of(session)
    checks = [
        check_tokens(session, TEXTS),
        check_distinct(sample),
        check_batches(session, sample, bound=0.9999),
        check_agreement("other", sample, session.embed, bound=0.9999, words="w", fault="f"),
    ]
    assert [check.state for check in checks] == ["ok"] * 4
    assert "one <2> (2)" in checks[0].words
    assert checks[2].figure == pytest.approx(1)


def test_texts_without_their_end(session):
    """No EOS, and two of them."""
    session.closes = False
    assert "ends in token" in check_tokens(session, TEXTS).words
    session.closes = True
    session.tokenize = lambda texts, truncate="error": ([np.array([5, EOS, EOS], dtype=np.int32)] * len(texts), [])
    assert "closing token twice" in check_tokens(session, TEXTS).words


def test_a_pooled_first_token_that_is_a_word():
    """CLS pooling wants an opening token; others do not care."""
    for pooling_type, state in (("cls", "fault"), ("mean", "ok")):
        session = FakeSession(pooling_type)
        assert check_tokens(session, TEXTS).state == "ok"
        session.opens = False
        assert check_tokens(session, TEXTS).state == state


def test_control_tokens_that_are_obeyed(session):
    """Spelt out in a text they are text."""
    session.obeys = True
    check = check_tokens(session, TEXTS)
    assert (check.state, "obeyed" in check.words) == ("fault", True)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (NonFiniteEmbeddingError("text 0 has none", index=0), "'ab': text 0 has none"),
        (DecodeError("llama_decode returned -3", return_code=-3), "'ab': llama_decode returned -3"),
    ],
)
def test_a_text_without_a_row(session, failure, words):
    """It is named, and there is no sample to go on with."""
    session.failure = failure
    check, sample = check_finite(session, TEXTS)
    assert (check.state, check.words, sample) == ("fault", words, None)


def test_rescued_texts_are_told(session):
    """Right in the end, and not as they should be."""
    real = session.embed

    def embed(tokens):
        session.n_rescued += sum(len(ids) == 4 for ids in tokens)  # "ab"
        return real(tokens)

    session.embed = embed
    check, sample = check_finite(session, TEXTS)
    assert (check.state, check.figure, sample.is_rescued.tolist()) == ("mended", 1, [True, False, False, False])
    check = check_agreement("x", sample, lambda tokens: sample.rows[1:], bound=0.9999, words="w", fault="f")
    assert check.state == "ok"  # the rescued one is not held against anything
    check = check_batches(session, sample, bound=0.9999)
    assert check.state == "ok"


def test_rows_that_are_lost_in_batches_alone(session):
    """They are right in the end, and batches are of no use."""
    sample = sample_of(session)
    real = session.embed

    def embed(tokens):
        session.n_rescued += len(tokens) if len(tokens) > 1 else 0
        return real(tokens)

    session.embed = embed
    check = check_batches(session, sample, bound=0.9999)
    assert (check.state, check.figure) == ("mended", 8)


def test_one_text_a_decode_is_no_batch(session):
    """Nothing is claimed where nothing was tried."""
    sample = sample_of(session)
    session.settings.n_batch = 3
    assert check_batches(session, sample, bound=0.9999).state == "skipped"


@pytest.mark.parametrize(
    ("finite_with", "finite_without", "state"), [(False, True, "fault"), (False, False, "ok"), (True, True, "ok")]
)
def test_flash_attention_that_loses_rows(session, finite_with, finite_without, state):
    """Where texts have a row without it alone, it is to blame; where nothing or everything helps, it is not."""
    sample = sample_of(session)
    sample = dataclasses.replace(sample, is_rescued=np.array([True, False, False, False]))

    def otherwise(tokens, *, flash_attn=None):
        rows = session.embed(tokens)
        is_finite = finite_without if flash_attn == "off" else finite_with
        return rows if is_finite or len(tokens) > 1 else rows * np.nan

    session.embed_otherwise = otherwise
    assert check_flash_attn(session, sample, bound=0.9999).state == state


def test_flash_attention_that_is_off_or_needed(session):
    """Said, and nothing is compared."""
    sample = sample_of(session)
    session.layout.flash_attn = "off"
    assert check_flash_attn(session, sample, bound=0.9999).state == "note"
    session.layout.flash_attn, session.layout.kv_type = "auto", "q8_0"
    assert check_flash_attn(session, sample, bound=0.9999).state == "skipped"


def test_one_vector_for_all(session):
    """And texts of the same tokens are not held against each other."""
    assert check_distinct(sample_of(session, ["ab", "ba", "b"])).state == "ok"
    session.embed = lambda tokens: np.ones((len(tokens), 4), dtype=np.float32)
    check = check_distinct(sample_of(session))
    assert (check.state, "the same vector" in check.words) == ("fault", True)


def test_neighbours_that_show(session):
    """A row that hangs on the batch, by how much and for which text."""
    sample = sample_of(session)
    session.neighbours = 0.3
    check = check_batches(session, sample, bound=0.9999)
    assert check.state == "fault"
    assert check.figure < 0.99
    assert "hangs on the texts beside it" in check.words


def test_another_way_that_differs_fails_or_cannot_be_gone(session):
    """Figures, NaN, and no memory."""
    sample = sample_of(session)
    how = {"bound": 0.9999, "words": "w", "fault": "it differs"}
    assert check_agreement("x", sample, lambda tokens: sample.rows[::-1], **how).state == "fault"
    lost = np.full((4, 4), np.nan, dtype=np.float32)
    assert "not finite" in check_agreement("x", sample, lambda tokens: lost, **how).words

    def refuse(tokens):
        raise BackendError("no memory")

    check = check_agreement("x", sample, refuse, **how)
    assert (check.state, check.words) == ("skipped", "no memory")


def test_quantizations_may_drift_more():
    """And devices, which add in float16."""
    on_cpu, on_device = ([drift_bound(one, on_device=where) for one in ("F32", "F16", "Q8_0", "Q4_K_M", None)]
                         for where in (False, True))  # fmt: skip
    assert on_cpu == [0.9999, 0.9999, 0.995, 0.995, 0.995]
    assert on_device == [0.999, 0.999, 0.995, 0.995, 0.995]


def test_a_state_is_a_known_word():
    """A typo is a mistake."""
    with pytest.raises(ValueError, match="state is 'fine'"):
        Check(name="x", state="fine", words="")
