"""Prefixes that are shared and kept change no row, save what they should, and nothing wrong is left by a failure."""

from __future__ import annotations

import dataclasses
import gc
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
import synthetic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_embed import ClosedError, DecodeError, InvalidTextError, NonFiniteEmbeddingError, TextTooLongError
from gguf_embed.engine import session as session_module
from gguf_embed.engine.session import Session
from gguf_embed.engine.settings import SessionSettings
from gguf_embed.engine.windows import Windows
from gguf_embed.native.context import Context
from gguf_embed.native.layout import Layout
from gguf_embed.vectors import l2_normalize

SMALL = Layout(n_ctx=256, n_ubatch=64, n_seq_max=8, skips_head=True)
USUAL = Layout(n_ctx=2048, n_ubatch=512, n_seq_max=64, skips_head=True)
LAYOUTS = {
    "small": SMALL,
    "usual": USUAL,
    "one text a decode": dataclasses.replace(SMALL, n_seq_max=1),
    "hardly a cell to spare": dataclasses.replace(SMALL, n_ctx=64),
    "odd parts": dataclasses.replace(SMALL, n_ubatch=72),
    "q8_0 cache": dataclasses.replace(SMALL, kv_type="q8_0"),
}

PROMPT = "Instruct: the task\nQuery:"  # some 20 tokens of the synthetic vocabulary
WORDS = ("the", "capital", "of", "a", "thing", "and", "words", "on", "tides", "é", "你好", "🙂", "x", "=", "1", "\n")


def words(n: int, seed: int = 0) -> str:
    """A text of its own for each seed."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(n))


HEADER = "# " + words(12, seed=101) + "\n"
SECTION = HEADER + "## " + words(12, seed=102) + "\n"
LONG_HEADER = words(45, seed=103)  # longer than SMALL.n_ubatch
ENDLESS_HEADER = words(80, seed=104)  # longer than half of SMALL.n_ctx


@pytest.fixture(scope="module")
def right(qwen3):
    """Embed each text by the ordinary path, alone, with nothing shared: what every other way must give."""
    known, sessions = {}, {}

    def row_of(kv_type, ids):
        key = (kv_type, ids.tobytes())
        if key not in known:
            decoder = sessions[kv_type]._decoder
            known[key] = l2_normalize(decoder.decode([ids]))[0]
            assert not decoder._kept._kept
        return known[key]

    def rows_of(texts, prompt="", *, kv_type="f16"):
        if kv_type not in sessions:
            layout = Layout(n_ctx=1024, n_ubatch=64, n_seq_max=1, kv_type=kv_type)
            sessions[kv_type] = Session(settings_of(qwen3, layout))
        tokens, _ = sessions[kv_type].tokenize(texts, prefix=prompt)
        return np.array([row_of(kv_type, ids) for ids in tokens], dtype=np.float32).reshape(len(texts), 256)

    yield rows_of
    for session in sessions.values():
        session.close()


def settings_of(path, layout, **known):
    options = {"pooling_type": "last", "n_ctx_max": 1024, "n_batch": layout.n_ubatch}
    return SessionSettings(path=path, layout=layout, **options | known)


@pytest.fixture
def open_session(qwen3):
    """Open the synthetic Qwen3 in some layout; all are closed at the end."""
    opened = []

    def open_one(layout=SMALL, *, path=qwen3, **known):
        opened.append(Session(settings_of(path, layout, **known)))
        return opened[-1]

    yield open_one
    for session in opened:
        session.close()


@pytest.fixture
def decodes(monkeypatch):
    """Every llama_decode as (tokens, first position, texts)."""
    made = []
    real = Context.decode

    def noted(self, token, pos, seq_id, **options):
        made.append((len(token), int(pos[0]), len(set(seq_id.tolist()))))
        return real(self, token, pos, seq_id, **options)

    monkeypatch.setattr(Context, "decode", noted)
    return made


@pytest.fixture
def narrow_windows(monkeypatch):
    """Windows of four texts, and all that were opened."""
    opened = []

    class Narrow(Windows):
        def __init__(self, *arguments):
            super().__init__(*arguments, n_texts=4)
            opened.append(self)

    monkeypatch.setattr(session_module, "Windows", Narrow)
    return opened


def embed(session, texts, prompt="", **options):
    """Unit rows of texts."""
    rows = np.full((len(texts), session.n_embd), np.nan, dtype=np.float32)
    session.embed_texts(texts, rows, finish=l2_normalize, prefix=prompt, **options)
    return rows


def n_tokens_of(session, texts, prompt=""):
    return [len(ids) for ids in session.tokenize(texts, prefix=prompt)[0]]


def n_prompt_of(session, prompt):
    """Tokens with which every text begins after a prompt that ends in a space or a line break."""
    one, other = session.tokenize(["x", "1"], prefix=prompt)[0]
    return int(np.flatnonzero(one != other)[0])


def run(decodes):
    """Tokens that were computed since the last look."""
    n_tokens = sum(n for n, _, _ in decodes)
    decodes.clear()
    return n_tokens


def cosines(a, b):
    return np.einsum("ij,ij->i", a, b)


# The same rows

PROMPTS = st.sampled_from(["", PROMPT, "Instruct: another\nQuery:", f"{LONG_HEADER}\nQuery:"])
HEADS = st.sampled_from(["", HEADER, SECTION, f"{SECTION}### a ", LONG_HEADER, ENDLESS_HEADER])
TAILS = st.sampled_from(["", *[words(n, seed=n) for n in (1, 2, 5, 12)]])
SOME_TEXTS = st.lists(st.builds(str.__add__, HEADS, TAILS), min_size=1, max_size=8)
CALLS = st.lists(st.tuples(PROMPTS, SOME_TEXTS, st.sampled_from([None, None, 1, 3])), min_size=2, max_size=3)


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls=CALLS, skips_head=st.booleans())
def test_any_calls_in_turn_give_the_rows_of_each_text_alone(qwen3, right, name, calls, skips_head):
    """Whatever is shared, kept, given up or lost to growth, with the head or without it."""
    layout = dataclasses.replace(LAYOUTS[name], skips_head=skips_head)
    session = Session(settings_of(qwen3, layout))
    try:
        for prompt, texts, batch_size in calls:
            rows = embed(session, texts, prompt, batch_size=batch_size)
            expected = right(texts, prompt, kv_type=layout.kv_type)
            assert cosines(rows, expected).min(initial=1) >= (0.99999 if layout.kv_type == "f16" else 0.9995)
    finally:
        session.close()


@pytest.mark.parametrize("skips_head", [True, False])
@pytest.mark.parametrize("head", [HEADER, SECTION, LONG_HEADER, ENDLESS_HEADER])
def test_shared_beginnings(open_session, right, decodes, head, skips_head):
    """Beginnings within a decode, over several, and beyond half of the context: shared, and right."""
    session = open_session(dataclasses.replace(SMALL, skips_head=skips_head))
    texts = [head + words(n, seed=n) for n in range(10)]
    for _ in range(2):
        decodes.clear()
        rows = embed(session, texts)
        assert run(decodes) < 0.7 * sum(n_tokens_of(session, texts))
        assert cosines(rows, right(texts)).min() >= 0.99999


@pytest.mark.parametrize("skips_head", [True, False])
@pytest.mark.parametrize(("n_ubatch", "n_texts", "n_tokens"), [(64, 1, 236), (64, 2, 140), (256, 6, 40)])
def test_texts_beside_a_longer_prefix(open_session, skips_head, n_ubatch, n_texts, n_tokens):
    """Texts that begin as the first part of a kept prefix have their cells, whatever the rest of it takes."""
    layout = dataclasses.replace(SMALL, n_ubatch=n_ubatch, skips_head=skips_head)
    session = open_session(layout)
    header = np.arange(128, dtype=np.int32)
    session.embed([np.append(header, [n]).astype(np.int32) for n in (5, 6, 7)])
    assert [len(kept) for kept in list(session._decoder._kept._kept.values())] == [128]
    tokens = [np.append(header[:10], np.arange(n, n + n_tokens - 10) % 250).astype(np.int32) for n in range(n_texts)]
    rows = session.embed(tokens)
    alone = open_session(dataclasses.replace(SMALL, skips_head=False))._decoder
    expected = np.concatenate([alone.decode([ids]) for ids in tokens])
    assert cosines(l2_normalize(rows), l2_normalize(expected)).min() >= 0.99999


def test_a_full_decode_beside_a_prefix(open_session, right):
    """Where a decode may take all cells, a batch takes those that its prefix leaves."""
    session = open_session(dataclasses.replace(SMALL, n_ubatch=256))
    texts = [LONG_HEADER + words(12, seed=n) for n in range(8)]
    for _ in range(2):
        assert cosines(embed(session, texts), right(texts)).min() >= 0.99999


def test_token_lists_share_too(open_session, right, decodes):
    """What takes ids groups them as what takes texts."""
    session = open_session()
    texts = [SECTION + words(n, seed=n) for n in range(10)]
    tokens, _ = session.tokenize(texts)
    decodes.clear()
    rows = session.embed(tokens)
    assert run(decodes) < 0.7 * sum(map(len, tokens))
    assert cosines(l2_normalize(rows), right(texts)).min() >= 0.99999


def test_a_prompt_longer_than_any_text_may_be(open_session, right):
    """Every text is cut within the prompt: all are the same, and their last token is computed all the same."""
    session = open_session()
    prompt = words(700)
    texts = ["the", "a", "capital"]
    n_tokens, truncated = session.embed_texts(
        texts, rows := np.empty((3, 256), np.float32), finish=l2_normalize, prefix=prompt, truncate="end"
    )
    assert (n_tokens, truncated) == ([1024] * 3, [0, 1, 2])
    [ids] = session.tokenize(["the"], prefix=prompt, truncate="end")[0]
    whole = open_session(dataclasses.replace(SMALL, n_ctx=1024, skips_head=False))
    assert cosines(rows, np.repeat(l2_normalize(whole._decoder.decode([ids])), 3, axis=0)).min() >= 0.99999


def test_finished_rows_lie_where_they_belong(open_session, right):
    """A cut in `finish`, rows in the caller's order, and equal texts with rows of their own."""
    session = open_session()
    texts = [SECTION, "the", *[SECTION + words(n, seed=n) for n in range(6)], "the", SECTION]
    rows = np.full((len(texts) + 1, 8), np.nan, dtype=np.float32)
    session.embed_texts(texts, rows[:-1], finish=lambda raw: l2_normalize(raw[:, :8]))
    assert np.isnan(rows[-1]).all()
    assert cosines(rows[:-1], l2_normalize(right(texts)[:, :8])).min() >= 0.9999


# Who shares nothing


@pytest.mark.parametrize("model", ["bert", "starter"])
def test_encoders_share_nothing(request, open_session, decodes, model):
    """Every token sees every other: all are computed, in every call, and rows are those of each text alone."""
    pooling_type = {"bert": "cls", "starter": "mean"}[model]
    layout = dataclasses.replace(SMALL, skips_head=False)
    session = open_session(
        layout, path=request.getfixturevalue(model), pooling_type=pooling_type, n_ctx_max=64, n_batch=64
    )
    prompt = "a cat on the mat sat on a cat: "
    texts = [f"the cat sat on the mat and {chr(97 + n)} dogs run" for n in range(9)]
    decodes.clear()
    for _ in range(2):
        rows = embed(session, texts, prompt)
        assert run(decodes) == sum(n_tokens_of(session, texts, prompt))
    alone = np.concatenate([embed(session, [text], prompt) for text in texts])
    assert cosines(rows, alone).min() >= 0.99999
    assert session._decoder.n_prefix_max == 0


@pytest.mark.parametrize("pooling_type", ["mean", "cls"])
def test_other_poolings_share_nothing(open_session, decodes, pooling_type):
    """Mean and CLS need the rows of the prefix as well."""
    session = open_session(dataclasses.replace(SMALL, skips_head=False), pooling_type=pooling_type)
    texts = [SECTION + words(2, seed=n) for n in range(4)]
    decodes.clear()
    rows = embed(session, texts)
    assert run(decodes) == sum(n_tokens_of(session, texts))
    assert cosines(rows, np.concatenate([embed(session, [text]) for text in texts])).min() >= 0.99999


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """A synthetic Gemma 3: most layers see 32 tokens back alone."""

    class Writer(gguf.GGUFWriter):
        def add_file_type(self, ftype):
            self.add_sliding_window(32)
            super().add_file_type(ftype)

    def tensors(shape, *arguments, **options):
        yield from plain(shape, *arguments, **options)
        for layer in range(shape.n_layer):
            for name in ("post_attention_norm", "post_ffw_norm"):
                yield f"blk.{layer}.{name}.weight", np.ones(shape.n_embd, dtype=np.float32)

    plain = synthetic.qwen3_tensors
    path = tmp_path_factory.mktemp("gemma3") / "synthetic-gemma3-F32.gguf"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gguf, "GGUFWriter", Writer)
        patched.setattr(synthetic, "qwen3_tensors", tensors)
        return synthetic.write_qwen3(path, architecture="gemma3", shape=synthetic.Qwen3Shape(n_layer=6))


def test_sliding_windows_see_what_they_should(open_session, windowed):
    """llama.cpp gives the cells that a window has left behind to other texts; no text may begin with them then."""
    layout = dataclasses.replace(SMALL, n_ctx=512)
    session = open_session(layout, path=windowed)
    alone = open_session(dataclasses.replace(layout, skips_head=False), path=windowed)._decoder
    rng = np.random.default_rng(0)
    headers = [rng.integers(0, 250, n).astype(np.int32) for n in (20, 60, 120, 100)]
    # The fourth header needs the cells of the first two, and some of the third's that its window has left behind.
    for header in [*headers, headers[2][:30]]:
        tokens = [np.append(header, [n, n]).astype(np.int32) for n in (1, 2, 3)]
        expected = l2_normalize(np.concatenate([alone.decode([ids]) for ids in tokens]))
        assert cosines(l2_normalize(session.embed(tokens)), expected).min() >= 0.9999


# The same bits

SAME_CALLS = {
    "one query with a prompt": (["the capital"], PROMPT),
    "one text, no prompt": ([words(20)], ""),
    "a prompt": ([words(n % 9, seed=n) for n in range(20)], PROMPT),
    "a header": ([SECTION + words(n % 9, seed=n) for n in range(20)], ""),
    "nothing in common": ([words(n % 9, seed=n) for n in range(20)], ""),
    "a header of some": ([SECTION * (n % 2) + words(9, seed=n) for n in range(20)], ""),
    "two headers": ([(HEADER, LONG_HEADER)[n % 2] + words(9, seed=n) for n in range(20)], ""),
    "a text that the context grows for": ([words(200)], ""),
    "growth and others": ([words(200), *[SECTION + words(9, seed=n) for n in range(9)]], ""),
}


@pytest.mark.parametrize("name", ["small", "odd parts"])
@pytest.mark.parametrize("call", SAME_CALLS)
def test_the_same_call_again_gives_the_same_bits(open_session, call, name):
    """Though its prefixes are kept by then, and the context has grown.

    Where several prefixes are kept by then, attention may sum the cells in another order.
    """
    session, (texts, prompt) = open_session(LAYOUTS[name]), SAME_CALLS[call]
    rows = embed(session, texts, prompt)
    for _ in range(2):
        again = embed(session, texts, prompt)
        assert cosines(again, rows).min() >= 0.999999
        assert np.array_equal(again, rows) or name == "odd parts"


# What is computed


@pytest.mark.parametrize("layout", [SMALL, USUAL, LAYOUTS["one text a decode"]], ids=["small", "usual", "one"])
def test_a_prompt_is_computed_once_and_not_again(open_session, decodes, layout):
    """The first call computes it once for all texts, the next ones only what is theirs."""
    session = open_session(layout)
    texts = [f"{n} {words(n % 5, seed=n)}" for n in range(30)]
    n_prompt, n_tokens = n_prompt_of(session, PROMPT), sum(n_tokens_of(session, texts, PROMPT))
    decodes.clear()
    embed(session, texts, PROMPT)
    assert [one for one in decodes if one[1] == 0] == [(n_prompt, 0, 1)]
    assert run(decodes) == n_prompt + n_tokens - 30 * n_prompt
    for again in (texts, [text + "!" for text in texts]):
        embed(session, again, PROMPT)
        assert run(decodes) == sum(n_tokens_of(session, again, PROMPT)) - 30 * n_prompt


def test_a_common_beginning_is_computed_once_and_not_again(open_session, decodes):
    """Without a prompt too."""
    session = open_session()
    texts = [LONG_HEADER + tail for tail in ("x", "1", "=", "the", "é")]
    [header, *_] = n_tokens_of(session, [LONG_HEADER + "x"])
    n_prefix, n_tokens = header - 2, sum(n_tokens_of(session, texts))  # but for "x" and EOS
    decodes.clear()
    embed(session, texts)
    assert n_prefix > SMALL.n_ubatch
    assert run(decodes) == n_prefix + n_tokens - 5 * n_prefix
    embed(session, texts)
    assert run(decodes) == n_tokens - 5 * n_prefix


def test_equal_texts_are_computed_once(open_session, right, decodes):
    """In one call; the caller is told of each of them all the same."""
    session = open_session()
    texts = ["the capital", "a", "the capital", LONG_HEADER, "a", "the capital"]
    told = []
    decodes.clear()
    rows = embed(session, texts, on_batch=lambda *done: told.append(done))
    assert run(decodes) == sum(n_tokens_of(session, ["the capital", "a", LONG_HEADER]))
    assert np.array_equal(rows[[0, 1, 0]], rows[[2, 4, 5]])
    assert cosines(rows, right(texts)).min() >= 0.99999
    assert np.sum(told, axis=0).tolist() == [6, sum(n_tokens_of(session, texts))]


def test_the_caller_is_told_of_whole_texts(open_session):
    """Batches add up to all texts with all their tokens, whatever of them was shared."""
    session = open_session()
    texts = [SECTION + words(n, seed=n) for n in range(12)] * 2
    for prompt in (PROMPT, "", PROMPT):
        told = []
        embed(session, texts, prompt, on_batch=lambda *done, told=told: told.append(done))
        assert np.sum(told, axis=0).tolist() == [24, sum(n_tokens_of(session, texts, prompt))]


def test_single_queries_compute_their_own_tokens(open_session, right, decodes):
    """From the second one on, a query with a prompt costs what is its own, in one decode."""
    session = open_session(USUAL)
    n_prompt = n_prompt_of(session, PROMPT)
    embed(session, ["the capital"], PROMPT)
    for query in ("of a thing", "x", "", "return " * 9, "the capital"):
        decodes.clear()
        rows = embed(session, [query], PROMPT)
        [n_tokens] = n_tokens_of(session, [query], PROMPT)
        assert [one[1:] for one in decodes] == [(min(n_prompt, n_tokens - 1), 1)]
        assert run(decodes) == n_tokens - min(n_prompt, n_tokens - 1)
        assert cosines(rows, right([query], PROMPT)).min() >= 0.99999


@pytest.mark.parametrize("between", [["of"] * 20, ["of", words(5)] * 10])
def test_a_text_again_and_again_is_remembered_once(open_session, decodes, between):
    """It does not push out what other texts had in common."""
    session = open_session(USUAL)
    for n in range(4):
        embed(session, [f"{PROMPT}{n} the"])
    assert not list(session._decoder._kept._kept.values())
    for text in between:
        embed(session, [text])
    decodes.clear()
    embed(session, [f"{PROMPT}4 the"])
    assert [first for _, first, _ in decodes] == [0, n_prompt_of(session, PROMPT)]


def test_what_is_remembered_is_bounded(open_session):
    """However many prompts and texts there were, and a prefix does not hold the text that it was cut from."""
    session = open_session()
    for n in range(40):
        embed(session, [f"{n} of a thing", f"{n} of a capital"], f"{n} {PROMPT}")
    sharing = session._sharing
    assert max(len(sharing._seen), len(sharing._prompts)) <= 16
    assert all(
        ids.base is None for ids in [*(ids for _, ids in sharing._seen), *list(session._decoder._kept._kept.values())]
    )


# What is kept

OTHER_PROMPTS = [f"{digit}{digit} the other task {digit}: " for digit in range(12)]


def test_prompts_in_turn(open_session, right):
    """More prompts than are kept, over and over."""
    session = open_session()
    texts = ["the capital", "of", words(20)]
    for prompt in OTHER_PROMPTS * 2:
        assert cosines(embed(session, texts, prompt), right(texts, prompt)).min() >= 0.99999
        assert len(list(session._decoder._kept._kept.values())) <= 8


@pytest.mark.parametrize("again", [[], [0], [0, 3, 1], [7, 6, 5, 4, 3, 2, 1, 0]])
def test_the_least_recently_used_prompt_goes_first(open_session, decodes, again):
    """Eight are kept; the ninth takes the place of the one that waited longest."""
    session = open_session(USUAL)
    used = [*range(8), *again, 8]
    for number in used:
        embed(session, ["the"], OTHER_PROMPTS[number])
    last_use = {number: len(used) - used[::-1].index(number) for number in range(9)}
    kept = sorted(last_use, key=last_use.__getitem__)[1:]
    assert [number for number in kept if is_computed(session, OTHER_PROMPTS[number], decodes)] == []


def is_computed(session, prompt, decodes):
    """Whether a query with this prompt computes its prompt."""
    decodes.clear()
    embed(session, ["the"], prompt)
    return any(first == 0 for _, first, _ in decodes)


def test_half_of_the_cells_are_for_texts(open_session, right):
    """Kept prefixes never take more than the other half together."""
    session = open_session()
    most = []
    for n in range(6):
        prompt = f"{n}{n} {words(40, seed=n)}:"
        assert 70 < n_prompt_of(session, prompt) <= SMALL.n_ctx // 2
        embed(session, ["the", "a"], prompt)
        most.append(session._decoder._kept.n_cells)
    assert max(most) <= SMALL.n_ctx // 2


def test_growth_loses_what_is_kept_and_it_comes_again(open_session, right, decodes):
    """A larger context begins empty: the prompt is computed once more, and then kept again."""
    session = open_session()
    long = words(150)
    embed(session, ["the"], PROMPT)
    rows = embed(session, [long])
    assert session._decoder._context.n_ctx > SMALL.n_ctx
    assert not list(session._decoder._kept._kept.values())
    assert cosines(rows, right([long])).min() >= 0.99999
    assert [is_computed(session, PROMPT, decodes) for _ in range(3)] == [True, False, False]


def test_growth_in_the_midst_of_a_group(open_session, right):
    """A prefix that is shared with a text that needs a larger context is computed there."""
    session = open_session()
    texts = [PROMPT + "a", PROMPT + "b", PROMPT + words(150), PROMPT + "c", SECTION, SECTION + "a", SECTION + "b"]
    for prompt in ("", PROMPT):
        assert cosines(embed(session, texts, prompt), right(texts, prompt)).min() >= 0.99999


@pytest.mark.parametrize("n_seq_max", [253, 254, 255, 256])
def test_sequences_that_are_left_over(open_session, right, n_seq_max):
    """llama.cpp has 256 sequences; where texts take nearly all or all, there is less to keep, down to nothing."""
    session = open_session(dataclasses.replace(USUAL, n_ubatch=2 * n_seq_max, n_seq_max=n_seq_max))
    texts = [words(n % 9, seed=n) for n in range(20)]
    for prompt in OTHER_PROMPTS[:4]:
        assert cosines(embed(session, texts, prompt), right(texts, prompt)).min() >= 0.99999
        assert len(list(session._decoder._kept._kept.values())) <= 256 - n_seq_max


# Failures

MIXED = [words(30), *[SECTION + words(n, seed=n) for n in range(6, 12)], *[LONG_HEADER + words(9, n) for n in range(4)]]


class Stumbling:
    """A method that fails the n-th time, before or after what it does; `failed` says whether it came to that."""

    def __init__(self, monkeypatch, name, error, *, at, is_after=False):
        self.n_calls, self.failed, real = 0, False, getattr(Context, name)

        def stumble(context, *arguments, **options):
            self.n_calls += 1
            is_now = self.n_calls == at + 1
            self.failed |= is_now
            if is_now and not is_after:
                raise error
            result = real(context, *arguments, **options)
            if is_now:
                raise error
            return result

        monkeypatch.setattr(Context, name, stumble)


def warm(open_session, layout=SMALL):
    """A session that keeps a prompt and a header."""
    session = open_session(layout)
    embed(session, ["the", "a"], PROMPT)
    embed(session, [HEADER + "x", HEADER + "1", HEADER + "=", HEADER + "a"])
    return session


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2, 4, 6, 8])
def test_a_decode_that_fails_leaves_nothing_wrong(open_session, right, decodes, monkeypatch, at, is_after):
    """In a prefix or in a batch, before or after its cells were written: its texts are decoded alone, all are right,
    the next calls too, and they share again.
    """  # noqa: D205 - one sentence
    session = warm(open_session)
    with monkeypatch.context() as patched:
        Stumbling(patched, "decode", DecodeError("no", return_code=-3), at=at, is_after=is_after)
        assert cosines(embed(session, MIXED), right(MIXED, "")).min() >= 0.99999
    assert session.n_rescued >= 1
    for texts, prompt in ((["of", "a"], PROMPT), (MIXED, ""), (["of", "a"], PROMPT)):
        assert cosines(embed(session, texts, prompt), right(texts, prompt)).min() >= 0.99999
    assert not is_computed(session, PROMPT, decodes)


def test_failures_come_at_every_decode(open_session, decodes):
    """The calls above have at least as many decodes as are made to fail, prefixes among them."""
    session = warm(open_session)
    decodes.clear()
    embed(session, MIXED)
    assert len(decodes) >= 9
    assert len([one for one in decodes if one[2] > 1]) >= 3


def test_failures_cost_no_sequences(open_session, decodes):
    """After any number of them as many prefixes are kept as before."""
    session = open_session(USUAL)
    for n in range(20):
        embed(session, ["the"], OTHER_PROMPTS[n % 3])
        session._decoder.wipe()
    for prompt in OTHER_PROMPTS[:8]:
        embed(session, ["the"], prompt)
    assert [is_computed(session, prompt, decodes) for prompt in OTHER_PROMPTS[:8]] == [False] * 8


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("name", ["share", "forget"])
def test_a_ctrl_c_between_decodes_leaves_nothing_wrong(open_session, right, monkeypatch, name, is_after):
    """Wherever it comes while sequences are shared or forgotten: rows are right, and no sequence is lost."""
    session = open_session()
    for at in (0, 1, 2, 6):
        session._decoder.wipe()
        with monkeypatch.context() as patched:
            Stumbling(patched, name, KeyboardInterrupt(), at=at, is_after=is_after)
            with pytest.raises(KeyboardInterrupt):
                embed(session, MIXED)
        rows = embed(session, ["of", *MIXED])
        assert cosines(rows, right(["of", *MIXED])).min() >= 0.99999
    assert sorted([*session._decoder._kept._free, *session._decoder._kept._kept]) == list(range(8, 16))


@pytest.mark.parametrize("skips_head", [True, False])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_rows_that_are_not_finite(open_session, right, monkeypatch, caplog, at, skips_head):
    """Texts of a poisoned batch are embedded alone, under their own numbers, and the rest goes on."""
    session = warm(open_session, dataclasses.replace(SMALL, skips_head=skips_head))
    real, n_calls = Context.embeddings, []

    def poisoned(self, n_seq):
        rows = real(self, n_seq)
        n_calls.append(n_seq)
        if len(n_calls) == at + 1:
            rows[-1] = np.nan
        return rows

    texts = ["the", "the", *MIXED]
    with monkeypatch.context() as patched:
        patched.setattr(Context, "embeddings", poisoned)
        assert cosines(embed(session, texts), right(texts)).min() >= 0.99999
    assert len(n_calls) > at
    [number] = {int(record.getMessage().split()[1]) for record in caplog.records if "non-finite" in record.message}
    assert texts.index(texts[number]) == number
    assert cosines(embed(session, texts, PROMPT), right(texts, PROMPT)).min() >= 0.99999


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """A synthetic Qwen3 of which the letter z is not a number."""

    def tensors(*arguments, **options):
        for name, tensor in plain(*arguments, **options):
            if name == "token_embd.weight":
                tensor[synthetic.bpe_vocabulary().index("z")] = np.nan
            yield name, tensor

    plain = synthetic.qwen3_tensors
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(synthetic, "qwen3_tensors", tensors)
        return synthetic.write_qwen3(tmp_path_factory.mktemp("poisoned") / "poisoned-qwen3-F32.gguf")


@pytest.mark.parametrize("skips_head", [True, False])
@pytest.mark.parametrize("layout", ["small", "usual"])
def test_cells_that_are_not_finite(open_session, poisoned, right, layout, skips_head):
    """Neither a text nor a prefix that is not a number in the cache reaches the texts that come after it."""
    session = open_session(dataclasses.replace(LAYOUTS[layout], skips_head=skips_head), path=poisoned)
    for head in ("", SECTION):
        for texts in ([head + "z" * 150, *MIXED], [f"{SECTION}z{words(n, seed=n)}" for n in range(5)]):
            with pytest.raises(NonFiniteEmbeddingError):
                embed(session, texts)
            assert cosines(embed(session, [head, *MIXED]), right([head, *MIXED])).min() >= 0.99999


# Errors name the caller's text


def test_a_text_without_a_row_is_named(open_session, monkeypatch):
    """By the first of its equals, whatever the batch was."""
    session = open_session()
    texts = ["the", "the", *MIXED, "x y"]
    [lost] = session.tokenize(["x y"], prefix=PROMPT)[0]
    real_decode, real_rows, running = Context.decode, Context.embeddings, []

    def noted(self, token, pos, seq_id, **options):
        running[:] = [token, seq_id]
        return real_decode(self, token, pos, seq_id, **options)

    def poisoned(self, n_seq):
        rows = real_rows(self, n_seq)
        token, seq_id = running
        for seq in range(n_seq):
            own = token[seq_id == seq]
            rows[seq] *= 0 if np.array_equal(own, lost[len(lost) - len(own) :]) else 1
        return rows

    monkeypatch.setattr(Context, "decode", noted)
    monkeypatch.setattr(Context, "embeddings", poisoned)
    with pytest.raises(NonFiniteEmbeddingError) as caught:
        embed(session, [*texts, "x y"], PROMPT)
    assert caught.value.index == texts.index("x y")


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_errors_have_the_callers_index(open_session, narrow_windows, prompt):
    """With equal texts before it, behind a prompt, and in a later window."""
    session = open_session()
    fine = ["the", "the", *[words(3, seed=n % 6) for n in range(11)], "the"]
    with pytest.raises(TextTooLongError, match="text 14 has") as caught:
        embed(session, [*fine, "x" * 1200, "a", "x" * 1200], prompt)
    assert caught.value.index == 14
    assert caught.value.n_tokens == 1201 + sum(n_tokens_of(session, [""], prompt)) - 1
    for wrong, at in (("ab\0", 2), ("abc\ud800", 3)):
        with pytest.raises(InvalidTextError, match=rf"text 14 has .* at {at}\b") as invalid:
            embed(session, [*fine, wrong, wrong], prompt)
        assert invalid.value.index == 14
    with pytest.raises(TypeError, match="text 14 is bytes"):
        embed(session, [*fine, b"a"], prompt)
    assert len(narrow_windows[0]._starts) > 1


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_cut_texts_have_the_callers_positions(open_session, narrow_windows, prompt):
    """Each of equal ones, in any window, with the tokens that were embedded."""
    session = open_session()
    long = ["x" * 1200, "y" * 1300]
    texts = ["a", long[0], *[words(3, seed=n) for n in range(7)], long[1], "a", long[0], long[0]]
    rows = np.empty((len(texts), 256), dtype=np.float32)
    n_tokens, truncated = session.embed_texts(texts, rows, finish=l2_normalize, prefix=prompt, truncate="end")
    assert truncated == [1, 9, 11, 12]
    assert n_tokens == [len(ids) for ids in session.tokenize(texts, prefix=prompt, truncate="end")[0]]
    assert n_tokens[1] == n_tokens[9] == 1024
    assert np.array_equal(rows[[1, 1]], rows[[11, 12]])


def test_a_late_error_stops_the_decodes(open_session, narrow_windows, decodes):
    """Nothing more is decoded once a text of any later window is known to be wrong."""
    session = open_session()
    texts = [words(30, seed=n) for n in range(60)]
    known = threading.Event()

    def wait(*_):
        while narrow_windows[0]._error is None:
            known.wait(0.001)

    decodes.clear()
    with pytest.raises(InvalidTextError, match="text 59") as caught:
        embed(session, [*texts[:-1], "ab\0"], on_batch=wait, batch_size=1)
    assert caught.value.index == 59
    assert len(decodes) <= 4  # two texts of 40 to 80 tokens
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gguf-embed-tokenize")]


# Threads


def test_threads_with_prompts_of_their_own(open_session, right):
    """Each thread gets its own rows, whatever the others keep and give up meanwhile."""
    session = open_session()

    def work(number):
        prompt = OTHER_PROMPTS[number]
        texts = [words(n, seed=n + number) for n in range(6)] + [words(150, seed=number)] * (number == 3)
        return [(texts, prompt, embed(session, texts, prompt)) for _ in range(4)]

    with ThreadPoolExecutor(6) as pool:
        done = [one for some in pool.map(work, range(6)) for one in some]
    assert len(done) == 24
    for texts, prompt, rows in done:
        assert cosines(rows, right(texts, prompt)).min() >= 0.99999


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1])
def test_closing_in_the_midst_of_calls(open_session, narrow_windows, delay_s):
    """Threads that tokenize ahead and share prefixes get ClosedError, and nobody waits for ever."""
    session = open_session()
    failures = []

    def work(number):
        try:
            while True:
                embed(session, [SECTION + words(5, seed=n) for n in range(40)], OTHER_PROMPTS[number])
        except ClosedError:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever else it is, the test shows it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    threading.Event().wait(delay_s)
    session.close()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


def test_a_forgotten_session_is_freed_at_once(qwen3):
    """Weights go with the last name of their session, not when Python happens to look for cycles."""
    session = Session(settings_of(qwen3, SMALL))
    embed(session, ["the"], PROMPT)
    model = weakref.ref(session._model)
    gc.disable()
    try:
        del session
        assert model() is None
    finally:
        gc.enable()
