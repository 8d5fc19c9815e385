"""comparing.py, matching.py and verdicts.py: sides of every kind, rows of the same texts, and words that hold."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from fake_embeddings import FakeServer, tei

from gguf_embed.encoding import EmbedReport, EncodeOptions
from gguf_embed.errors import DimensionError, InputError
from gguf_embed.jobs.records import Record
from gguf_embed.prompts import PromptSet, resolve_prompt
from gguf_embed.quality.agreement import agree
from gguf_embed.quality.comparing import Hooks, Question, QuestionError, compare
from gguf_embed.quality.matching import match
from gguf_embed.quality.saved import Keys, digest_of
from gguf_embed.quality.verdicts import Evidence, Kind, judge, look_at, share_elsewhere
from gguf_embed.vectors import l2_normalize, truncate_dim


class FakeEmbedder:
    """Vectors of a text's length, its spaces and 1 (tei() of the fake server has the first and the last)."""

    prompts = PromptSet(query="find: ", document="")
    plan = SimpleNamespace(quant="Q8_0")

    def __init__(self, name, dim, log):
        if dim == 1:
            raise DimensionError("no", dim=dim, allowed="3")
        self.model_id, self.dim, self.log = name, dim, log

    def fingerprint_of(self, options):
        return f"{self.model_id}{options.prompt or ''}".rjust(32, "0")

    def report(self, texts, options, *, on_batch):
        prefix = resolve_prompt(self.prompts, prompt_name=options.prompt_name, prompt=options.prompt, task=None)
        self.log.append((self.model_id, tuple(prefix + text for text in texts)))
        rows = np.array([[len(prefix + text), 1.0] for text in texts], dtype=np.float32)
        on_batch(len(texts), 1)
        return EmbedReport(embeddings=truncate_dim(rows, self.dim or 2), n_tokens=(), truncated=())

    def __enter__(self):
        self.log.append(("open", self.model_id))
        return self

    def __exit__(self, *_):
        self.log.append(("close", self.model_id))


@pytest.fixture
def hooks():
    """Hooks with a log of what was opened and embedded."""
    log = []

    @contextlib.contextmanager
    def progress(name, n_texts):
        log.append(("progress", name, n_texts))
        yield lambda n: log.append(("texts", n))

    made = Hooks(open_model=lambda name, dim: FakeEmbedder(name, dim, log), load=lambda _: None,
                 fetch=lambda one: log.append(("fetch", one.model_id)), progress=progress)  # fmt: skip
    return made, log


def records(*texts, ids=None):
    return tuple(Record(text=text, id=ids[i] if ids else None) for i, text in enumerate(texts))


TEXTS = ("a", "bb b", "ccc")


def rows_of(texts):
    return [[len(text), 1.0] for text in texts]


def save(folder, name, texts=TEXTS, ids=None, **more):
    rows = [{"text": text, "embedding": row} for text, row in zip(texts, rows_of(texts), strict=True)]
    if ids is not None:
        rows = [{"id": id_, **row} for id_, row in zip(ids, rows, strict=True)]
    path = folder / name
    path.write_text("".join(json.dumps({**row, **more}) + "\n" for row in rows))
    return str(path)


# Sides


def test_a_model_against_a_saved_file_embeds_its_texts(tmp_path, hooks):
    """The texts that the file has are embedded, and the rows agree."""
    saved = save(tmp_path, "a.jsonl")
    found = compare(Question(a="m", b=saved), hooks[0])
    assert ("m", TEXTS) in hooks[1]
    assert found.verdict.kind is Kind.SAME
    assert found.keys.texts == TEXTS
    assert (found.a.kind, found.b.kind, found.a.look.is_unit, found.b.look.is_unit) == ("model", "file", True, False)
    assert any("cosine, not by dot product" in note for note in found.verdict.notes)


def test_models_run_one_after_the_other(hooks):
    """The first is closed before the second is loaded, so that both have the whole memory."""
    compare(Question(a="m", b="n", texts=records(*TEXTS)), hooks[0])
    assert [one for one in hooks[1] if one[0] in ("open", "close")] == [
        ("open", "n"), ("close", "n"), ("open", "m"), ("close", "m"), ("open", "n"), ("close", "n"),
    ]  # fmt: skip
    assert ("progress", "m", 3) in hooks[1]


@pytest.fixture
def server():
    made = FakeServer(embed=tei, info={"model_id": "o/m"})
    yield made
    made.close()


def test_a_server_gets_the_prompt_of_the_model_beside_it(server, hooks):
    """Both sides embed the same characters."""
    found = compare(
        Question(a="m", b=server.url, texts=records(*TEXTS), options=EncodeOptions(prompt_name="query")), hooks[0]
    )
    assert server.posted()[-1][1]["inputs"] == ["find: a", "find: bb b", "find: ccc"]
    assert ("m", ("find: a", "find: bb b", "find: ccc")) in hooks[1]
    assert (found.a.prompt, found.b.prompt) == ("find: ", "find: ")
    assert found.verdict.kind is Kind.SAME
    assert found.b.facts == {"dialect": "tei", "model": "o/m"}


def test_no_prompt_goes_unasked(server, hooks):
    """The default is the raw text on both sides."""
    compare(Question(a="m", b=server.url, texts=records(*TEXTS)), hooks[0])
    assert server.posted()[-1][1]["inputs"] == list(TEXTS)


def test_a_prompt_of_ones_own_needs_no_model(server, tmp_path, hooks):
    """--prompt goes to a server; --as cannot, where nobody knows its prompts."""
    saved = save(tmp_path, "a.jsonl")
    compare(Question(a=saved, b=server.url, options=EncodeOptions(prompt="p: ")), hooks[0])
    assert server.posted()[-1][1]["inputs"][0] == "p: a"
    with pytest.raises(QuestionError, match="with --prompt instead"):
        compare(Question(a=saved, b=server.url, options=EncodeOptions(prompt_name="query")), hooks[0])


def test_two_servers_get_a_key_each(server, hooks):
    """In their order; no server sees the other's."""
    other = FakeServer(embed=tei)
    try:
        question = Question(a=server.url + "/embed", b=other.url + "/embed", texts=records("x"), api_keys=("k1", "k2"))
        compare(question, hooks[0])
        assert server.seen[-1][3]["Authorization"] == "Bearer k1"
        assert other.seen[-1][3]["Authorization"] == "Bearer k2"
    finally:
        other.close()


def test_a_cut_is_the_models_own_where_it_was_trained(tmp_path, hooks):
    """2 of 2 components is the model's; 1 is refused by it, so whole rows are cut plainly."""
    saved = save(tmp_path, "a.jsonl")
    assert compare(Question(a="m", b=saved, dim=2), hooks[0]).dim == 2
    found = compare(Question(a="m", b=saved, dim=1), hooks[0])
    assert (found.dim, found.a.dim, found.b.dim) == (1, 2, 2)
    assert found.agreement.mean == pytest.approx(1)


def test_fingerprints_are_held_against_each_other(tmp_path, hooks):
    """Equal, different, or unknown where one has none."""
    np.save(tmp_path / "a.npy", np.array(rows_of(TEXTS)))
    question = Question(a="m", b=str(tmp_path / "a.npy"), texts=records(*TEXTS))
    assert compare(question, hooks[0]).is_same_fingerprint is None
    for fingerprint, expected in (("m".rjust(32, "0"), True), ("other", False)):
        (tmp_path / "a.npy.meta.json").write_text(json.dumps({"fingerprint": fingerprint}))
        assert compare(question, hooks[0]).is_same_fingerprint is expected
    (tmp_path / "a.npy.meta.json").write_text(json.dumps({"fingerprint": "m".rjust(32, "0")}))
    prompted = dataclasses.replace(question, options=EncodeOptions(prompt="of my own: "))
    assert compare(prompted, hooks[0]).is_same_fingerprint is False


def test_fingerprints_of_other_lengths_tell_nothing(tmp_path):
    """A length is part of a fingerprint, so a cut file has another one with the same model."""
    for name, dim, fingerprint in (("a", 4, "x"), ("b", 2, "y")):
        np.save(tmp_path / f"{name}.npy", np.ones((3, dim)))
        (tmp_path / f"{name}.npy.meta.json").write_text(json.dumps({"fingerprint": fingerprint}))
    found = compare(Question(a=str(tmp_path / "a.npy"), b=str(tmp_path / "b.npy"), dim=2))
    assert found.is_same_fingerprint is None


def test_lengths_that_differ_are_told(tmp_path):
    """With the -d that would do."""
    np.save(tmp_path / "a.npy", np.ones((3, 4)))
    np.save(tmp_path / "b.npy", np.ones((3, 2)))
    a, b = str(tmp_path / "a.npy"), str(tmp_path / "b.npy")
    with pytest.raises(InputError, match=r"has 4 components and .* has 2\..*add -d 2"):
        compare(Question(a=a, b=b))
    assert compare(Question(a=a, b=b, dim=2)).dim == 2
    with pytest.raises(InputError, match=r"-d 3 is more than the 2 components of .*b\.npy"):
        compare(Question(a=a, b=b, dim=3))


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"b": "n"}, "add -i FILE"),
        ({"b": "a.npy"}, r"a\.npy has no texts to embed .*add -i FILE"),
        ({"b": "n", "texts": records("x"), "api_keys": ("k",)}, "1 --api-key for 0 URLs"),
        ({"b": "n", "texts": records("x"), "dim": 0}, "-d is 0"),
        ({"a": "a.npy", "b": "a.npy", "options": EncodeOptions(prompt="x")}, "both sides are saved"),
        ({"b": "http://", "texts": records("x")}, "is no URL of a server"),
        ({"b": "http://h", "texts": records("x"), "api_keys": ("sec\nret",)}, "the API key has a space"),
    ],
)
def test_what_makes_no_sense_is_the_callers_mistake(tmp_path, monkeypatch, hooks, known, words):
    """A QuestionError before anything is embedded."""
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.ones((2, 2)))
    with pytest.raises(QuestionError, match=words):
        compare(Question(**{"a": "m", **known}), hooks[0])
    assert hooks[1] == []


def test_a_prompt_that_a_model_has_not_is_the_callers_mistake(hooks):
    """And what fails while it embeds is none."""
    question = Question(a="m", b="m", texts=records("x"), options=EncodeOptions(prompt_name="poem"))
    with pytest.raises(QuestionError, match="unknown prompt_name 'poem'"):
        compare(question, hooks[0])

    def broken(_):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug") as caught:
        compare(
            Question(a="m", b="m", texts=records("x")),
            Hooks(open_model=hooks[0].open_model, load=broken, fetch=lambda _: None),
        )
    assert not isinstance(caught.value, QuestionError)


def test_a_file_that_is_neither_is_told(tmp_path, hooks):
    """A .txt is no vectors and no model; an input without texts is no input."""
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"no file of vectors \(\.npy.*no \.gguf"):
        compare(Question(a=str(tmp_path / "a.txt"), b="m", texts=records("x")), hooks[0])
    with pytest.raises(InputError, match="no texts in the input"):
        compare(Question(a="m", b="m", texts=()), hooks[0])


# Matching


def keys(texts, ids=None, **known):
    return Keys(n=len(texts), ids=ids, texts=tuple(texts), digests=tuple(map(digest_of, texts)), **known)


def test_rows_are_matched_by_id(tmp_path):
    """In another order, and with rows that the other has not, which are counted."""
    a = save(tmp_path, "a.jsonl", ("x", "yy", "zzz"), ids=(1, 2, 3))
    b = save(tmp_path, "b.jsonl", ("zzz", "wwww", "x"), ids=("3", "4", "1"))
    found = compare(Question(a=a, b=b))
    assert found.keys.ids == ("1", "3")
    assert found.agreement.least == pytest.approx(1)
    assert (found.a.n_left_out, found.b.n_left_out) == (1, 1)


def test_without_ids_rows_are_matched_by_position():
    """Where one has ids and the other none."""
    matched, places = match([("a", keys("xy", ids=("1", "2"))), ("b", keys("xy"))])
    assert [one.tolist() for one in places] == [[0, 1], [0, 1]]
    assert matched.ids == ("1", "2")


def test_ids_that_repeat_match_where_both_repeat_alike():
    """Equal lists of ids are positions; else they have to be unique."""
    twice = keys("xyz", ids=("1", "1", "2"))
    assert [one.tolist() for one in match([("a", twice), ("b", twice)])[1]] == [[0, 1, 2]] * 2
    with pytest.raises(InputError, match="a has the id '1' more than once"):
        match([("a", twice), ("b", keys("xyz", ids=("1", "2", "3")))])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (keys("xyz"), "a has 2 rows and b has 3"),
        (keys("xz"), r"a and b have other texts in 1 of 2 rows, first in\s+row 2 and row 2"),
        (keys("pq", ids=("8", "9")), "no id in common .*--id"),
        (keys("yz", ids=("2", "1")), "other texts in 1 of 2 rows, first in row 1 and row 2"),
    ],
)
def test_rows_of_other_texts_are_refused(other, words):
    """What differs, and where."""
    with pytest.raises(InputError, match=words):
        match([("a", keys("xy", ids=("1", "2"))), ("b", other)])


def test_texts_of_the_input_are_held_against_saved_ones(tmp_path, hooks):
    """Vectors of other texts say nothing of models."""
    saved = save(tmp_path, "a.jsonl")
    with pytest.raises(InputError, match=r"a\.jsonl and the texts have other texts in 3 of 3 rows"):
        compare(Question(a="m", b=saved, texts=records("p", "q", "r")), hooks[0])


# Verdicts


@pytest.fixture
def rows():
    return l2_normalize(np.random.default_rng(5).standard_normal((200, 32)).astype(np.float32))


def judged(a, b, **known):
    return judge(
        Evidence(agreement=agree(a, b), looks=(look_at(a), look_at(b)), share_elsewhere=share_elsewhere(a, b), **known)
    )


def near(rows, cosine, seed=1):
    """Rows at about this cosine from others, in directions of their own."""
    noise = np.random.default_rng(seed).standard_normal(rows.shape).astype(np.float32)
    noise = l2_normalize(noise - (noise * rows).sum(1, keepdims=True) * rows)
    return np.asarray(cosine * rows + np.sqrt(1 - cosine**2) * noise, dtype=np.float32)


def test_the_same_may_be_searched(rows):
    """All above 0.9999, whatever the length of rows."""
    found = judged(rows, near(rows, 0.99995))
    assert (found.kind, found.causes, found.notes) == (Kind.SAME, (), ())
    assert "can be searched with B" in found.words
    assert judged(rows, 2 * rows).notes == (
        "rows of A have unit length and those of B have not: search by cosine, not by dot product.",
    )


def test_one_text_keeps_all_from_being_the_same(rows):
    """It is the least cosine that counts, not the mean."""
    other = rows.copy()
    other[9] = near(rows[9:10], 0.985)[0]
    assert agree(rows, other).mean > 0.9999
    assert judged(rows, other).kind is Kind.ROUNDING


def test_rounding_tells_what_a_search_keeps(rows):
    """The mean above 0.99: the share of neighbours decides, and is told."""
    found = judged(rows, near(rows, 0.995))
    kept = agree(rows, near(rows, 0.995)).neighbours_kept
    assert found.kind is Kind.ROUNDING
    assert f"{kept:.1%} are the same in both" in found.words
    assert found.causes == ()
    assert "fingerprints are equal" in judged(rows, near(rows, 0.995), is_same_fingerprint=True).notes[0]
    assert "give at least 20 texts" in judged(rows[:9], near(rows[:9], 0.995)).words


def test_few_texts_are_said_to_be_few(rows):
    """What three texts show is not much."""
    assert judged(rows[:3], rows[:3]).notes == ("this is of 3 texts; some hundred of your own tell more.",)


def test_a_few_texts_that_differ_are_no_rounding(rows):
    """A high mean does not hide them; where they are the long ones that is said."""
    other = rows.copy()
    other[:2] = near(rows[:2], 0.6)
    found = judged(rows, other, n_chars=[5000, 4000, *[100] * 198])
    assert found.kind is Kind.SOME
    assert "2 of 200 are below 0.9" in found.words
    assert found.causes == (
        "those that differ are longer (4,500 characters against 100): one side cuts long texts.",
    )  # fmt: skip
    assert "some texts agree" in judged(rows, other, n_chars=[100] * 200).causes[0]


@pytest.mark.parametrize("cosine", [0.98, 0.8, 0.3, 0.0, -1.0])
def test_different_is_different(rows, cosine):
    """Below 0.99 an index has to be made again, and there is a cause or the word that there is none."""
    found = judged(rows, near(rows, cosine))
    assert found.kind is Kind.DIFFERENT
    assert "has to be made again" in found.words
    assert found.causes


def causes(*given, **known):
    return " ".join(judged(*given, **known).causes)


def test_causes_that_are_known_come_first(rows):
    """A prompt on one side is a fact where both tell; nothing is guessed then."""
    found = judged(rows, near(rows, 0.8), prompts=("", "query: "), is_same_fingerprint=True)
    assert found.causes == ("A was made with no prompt, B with the prompt 'query: '.",)
    assert "EOS" in causes(rows, near(rows, 0.8), prompts=(None, "query: "))


def test_constant_rows_point_at_pooling(rows):
    """And at nothing else."""
    constant = np.tile(rows[:1], (200, 1))
    assert judged(rows, constant).causes == (
        "all rows of B are nearly one vector: wrong pooling, or one text again and again.",
    )
    assert "rows of A are nearly" in causes(constant, rows)


def test_rows_of_zeros_are_counted(rows):
    """They are no vectors."""
    other = rows.copy()
    other[50:] = 0
    assert "150 rows of B are all zeros" in causes(rows, other)


def test_another_order_is_found(rows):
    """Rows agree with other rows."""
    assert judged(rows, rows[::-1]).causes == (
        "100% of the rows agree with another row: one side is in another order.",
    )
    assert share_elsewhere(rows, rows) == 0


@pytest.mark.parametrize(("cosine", "is_named"), [(0.93, True), (0.8, True), (0.65, True), (0.97, False), (0.3, False)])
def test_a_mean_as_of_a_prompt_points_at_what_one_side_does(rows, cosine, is_named):
    """Of such a mean are prompts, EOS and poolings, as was measured; cosines that are equal point at nothing more."""
    assert ("a prompt, an end-of-text token (EOS) or another pooling" in causes(rows, near(rows, cosine))) is is_named
    mixed = np.where(np.arange(200)[:, None] % 2, near(rows, 0.9), near(rows, 0.7))
    assert judged(rows, mixed).causes == judged(rows, near(rows, float(agree(rows, mixed).mean))).causes


def test_a_quantization_that_moved_one_text_is_no_other_model(rows):
    """The least alike text of Q4_K_M was at 0.94 to 0.95 with a mean of 0.99; that is rounding."""
    other = near(rows, 0.995)
    other[9] = near(rows[9:10], 0.94)[0]
    assert judged(rows, other).kind is Kind.ROUNDING


def test_order_without_cosines_is_two_models(rows):
    """A rotation keeps the order of similarities, noise does not."""
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((32, 32)))
    assert "keep their order (1.00) and vectors do not" in causes(rows, np.asarray(rows @ turn, dtype=np.float32))
    assert "do not keep their order either" in causes(rows, near(rows, 0.0))


def test_an_equal_fingerprint_points_at_texts(rows):
    """The model is not to blame."""
    assert "look for other texts" in causes(rows, near(rows, 0.3), is_same_fingerprint=True)


def test_a_look_says_what_rows_are_like(rows):
    """Lengths, zeros, constancy; float16 rows still have unit length."""
    assert look_at(rows.astype(np.float16).astype(np.float32)).is_unit
    found = look_at(np.array([[3, 4], [0, 0]], dtype=np.float32))
    assert (found.is_unit, found.shortest, found.longest, found.n_zero, found.is_constant) == (False, 0, 5, 1, False)
    assert not look_at(np.zeros((2, 2), dtype=np.float32)).is_unit


def test_a_coarse_quantization_keeps_the_order(rows):
    """Noise that leaves similarities in order, at a mean below 0.99, is named as such."""
    wide = np.random.default_rng(6).standard_normal((200, 2)) @ np.random.default_rng(8).standard_normal((2, 64))
    wide = l2_normalize(wide.astype(np.float32))
    assert "coarse quantization" in causes(wide, near(wide, 0.98))
    assert "coarse quantization" not in causes(wide, near(wide, 0.7))


def test_texts_that_no_saved_row_has_are_counted(tmp_path, hooks):
    """Of the input, those that the file has are embedded, and the rest is told."""
    saved = save(tmp_path, "a.jsonl", ids=("1", "2", "3"))
    given = records("ccc", "new", "a", ids=("3", "9", "1"))
    found = compare(Question(a="m", b=saved, texts=given), hooks[0])
    assert ("m", ("a", "ccc")) in hooks[1]
    assert (found.a.n_left_out, found.b.n_left_out) == (1, 1)
