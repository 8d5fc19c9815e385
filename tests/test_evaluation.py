"""quality/evaluation.py and candidates.py: which files are compared, and figures that a person can check."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gguf_embed.config import load_config
from gguf_embed.encoding import EmbedReport
from gguf_embed.errors import DimensionError, OfflineError, StorageError, UnknownQuantError
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.made import made_path
from gguf_embed.models.measured import load_measured
from gguf_embed.models.registry import load_registry
from gguf_embed.models.shelf import files_on_disk
from gguf_embed.models.specs import Matryoshka
from gguf_embed.quality import candidates as candidates_module
from gguf_embed.quality.candidates import Candidate, Subject, Wish, find_subject, get_candidates
from gguf_embed.quality.datasets import Material, Pairs, Retrieval, Texts
from gguf_embed.quality.evaluation import (
    Evaluation,
    Settings,
    check_comparable,
    dims_of,
    evaluate,
    keep,
    share,
    to_measured,
)

MINILM = "all-minilm-l6-v2"
SPECS = {spec.model_id: spec for spec in load_registry().models}
TEXTS = Texts(name="t", texts=tuple(f"text {n}" for n in range(24)))
PAIRS = Pairs(
    name="p", left=tuple(f"l{n}" for n in range(10)), right=tuple(f"r{n}" for n in range(10)),
    scores=tuple(map(float, range(10))),
)  # fmt: skip
RETRIEVAL = Retrieval(
    name="r", documents=tuple(f"d{n}" for n in range(12)), queries=("q0", "q1"), relevance=({0: 1.0}, {1: 1.0, 2: 1.0})
)


def vector_of(text, n_embd=8):
    """The same unit direction for a text each time."""
    return np.random.default_rng(sum(text.encode())).normal(size=n_embd).astype(np.float32)


class FakeModel:
    """Gives a text's direction plus noise; the diary tells what was asked of it."""

    n_embd = 8

    def __init__(self, quant, noise, diary, truncated=()):
        self.quant, self.noise, self.diary, self.truncated = quant, noise, diary, truncated

    def report(self, texts, options, *, on_batch=None):
        assert not options.normalize_embeddings
        assert options.truncate_dim == self.n_embd
        self.diary.append((self.quant, options.prompt_name, len(texts), options.truncate))
        random = np.random.default_rng(len(texts))
        rows = np.array([vector_of(text) for text in texts], dtype=np.float32)
        rows += self.noise * random.normal(size=rows.shape).astype(np.float32)
        if on_batch is not None:
            on_batch(len(texts), 0)
        return EmbedReport(embeddings=rows * 3, n_tokens=(1,) * len(texts), truncated=self.truncated)

    def __enter__(self):
        self.diary.append((self.quant, "opened"))
        return self

    def __exit__(self, *_):
        self.diary.append((self.quant, "closed"))


NOISES = {"F16": 0.0, "Q8_0": 0.02, "Q4_K_M": 0.4}


def run(material, *, noises=None, spec=None, diary=None, truncated=(), **settings):
    """Evaluate quantizations that differ in their noise."""
    noises = NOISES if noises is None else noises
    subject = Subject(model_id="m", spec=spec, base="m", quants=tuple(noises), is_file=False)
    found = [
        Candidate(quant=name, model=f"m:{name}", path=Path(f"m-{name}.gguf"), size_bytes=1000 - at, sha256="0" * 64)
        for at, name in enumerate(noises)
    ]
    diary = [] if diary is None else diary
    return evaluate(
        subject, found, material, lambda one: FakeModel(one.quant, noises[one.quant], diary, truncated),
        settings=Settings(**settings),
    )  # fmt: skip


# Figures


def test_the_reference_is_like_itself():
    """Cosines, neighbours and order are 1; what people judged is what it is."""
    [reference, *_] = run(Material(texts=TEXTS, pairs=PAIRS, retrieval=RETRIEVAL)).quants
    figures = reference.figures[0]
    ones = (figures.cosine_mean, figures.cosine_p1, figures.cosine_min, figures.neighbours_kept)
    assert (*ones, figures.rank_correlation) == pytest.approx((1,) * 5)
    assert -1 <= figures.spearman <= 1
    assert 0 <= figures.ndcg_at_10 <= 1
    assert reference.score == pytest.approx(1)


def test_noise_costs():
    """The coarser one is less like the reference in every figure, and its score is lower."""
    _, fine, coarse = run(Material(texts=TEXTS)).quants
    for name in ("cosine_mean", "cosine_p1", "cosine_min", "neighbours_kept", "rank_correlation"):
        assert getattr(coarse.figures[0], name) < getattr(fine.figures[0], name) <= 1
    assert coarse.score == coarse.figures[0].neighbours_kept
    assert fine.figures[0].cosine_min <= fine.figures[0].cosine_p1 <= fine.figures[0].cosine_mean


def test_what_was_not_asked_is_none():
    """Pairs alone give Spearman's alone."""
    [figures] = run(Material(pairs=PAIRS)).quants[0].figures
    known = {name for name, value in dataclasses.asdict(figures).items() if value is not None}
    assert known == {"dim", "spearman"}


def test_retrieval_by_hand(monkeypatch):
    """The first query finds its document second, the other one of two first: nDCG and recall are means of these."""
    rows = {"q0": [1, 0, 0], "q1": [0, 1, 0], "d0": [0.9, 0, 0.1], "d3": [1, 0, 0], "d1": [0, 1, 0], "d2": [0, 0, -1]}
    monkeypatch.setitem(globals(), "vector_of", lambda text: np.array(rows.get(text, [-1, -1, 0]), dtype=np.float32))
    monkeypatch.setattr(FakeModel, "n_embd", 3)
    [figures] = run(Material(retrieval=RETRIEVAL), noises={"F16": 0.0}).quants[0].figures
    second, third = 1 / np.log2(3), 1 / np.log2(4)
    # d2 is at right angles to q1, as d0 and d3 are: equal scores keep the order, so it comes third, after d1 and d0.
    expected = (second + (1 + third) / (1 + second)) / 2
    assert figures.ndcg_at_10 == pytest.approx(expected)
    assert figures.recall_at_10 == 1


def test_prompts_and_order_of_work():
    """One model open at a time, each text embedded once; queries and documents have their prompts, others none."""
    diary = []
    run(Material(texts=TEXTS, pairs=PAIRS, retrieval=RETRIEVAL), noises={"F16": 0, "Q8_0": 0.1}, diary=diary,
        dims=(4, 2), truncate="end")  # fmt: skip
    once = [(None, 24), (None, 10), (None, 10), ("query", 2), ("document", 12)]
    assert diary == [
        entry
        for quant in ("F16", "Q8_0")
        for entry in ((quant, "opened"), *((quant, *one, "end") for one in once), (quant, "closed"))
    ]


def test_the_same_twice_is_the_same():
    """To the last digit."""
    material = Material(texts=TEXTS, pairs=PAIRS, retrieval=RETRIEVAL)
    assert run(material, dims=(4,)) == run(material, dims=(4,))


def test_texts_are_counted_while_they_are_embedded():
    """The watcher hears of each quantization, how many texts there are, and each batch."""
    heard = []

    class Watching:
        def __init__(self, quant, n_texts):
            heard.append((quant, n_texts))

        def __enter__(self):
            return lambda n_texts, _: heard.append(n_texts)

        def __exit__(self, *_):
            heard.append("done")

    run(Material(texts=TEXTS, retrieval=RETRIEVAL), noises={"F16": 0}, watch=Watching)
    assert heard == [("F16", 38), 24, 2, 12, "done"]


def test_tasks_are_run_while_the_model_is_open():
    """Their main scores are part of the score, as shares of the reference's."""
    scores = {"F16": 0.8, "Q8_0": 0.6, "Q4_K_M": 0.4}
    found = run(Material(tasks=("T",)), run_tasks=lambda model: (("T", scores[model.quant]),))
    assert [one.tasks for one in found.quants] == [(("T", score),) for score in scores.values()]
    assert [one.score for one in found.quants] == pytest.approx([1, 0.75, 0.5])
    assert found.measured_on == ("T of mteb",)


def test_a_score_is_the_mean_of_what_is_kept():
    """Neighbours kept count as they are, Spearman's and nDCG as shares of the reference's, each at most 1."""
    found = run(Material(texts=TEXTS, pairs=PAIRS, retrieval=RETRIEVAL))
    coarse = found.quants[2]
    shares = [found.kept(coarse, name, 8) for name in ("neighbours_kept", "spearman", "ndcg_at_10")]
    assert shares[0] == coarse.figures[0].neighbours_kept
    known = [min(one, 1) for one in shares if one is not None]
    assert coarse.score == pytest.approx(sum(known) / len(known))


def test_luck_with_one_measure_pays_for_no_other():
    """A task that comes out better than the reference's counts as much as it, and no more."""
    scores = iter([(("A", 0.5), ("B", 0.5)), (("A", 0.75), ("B", 0.45))])
    material = Material(tasks=("A", "B"))
    found = run(material, noises={"F16": 0.0, "Q8_0": 0.02}, run_tasks=lambda _: next(scores))
    assert [one.score for one in found.quants] == pytest.approx([1, 0.95])


def test_few_pairs_and_queries_are_noted():
    """A hundred of them are not few, and texts without labels are not counted."""
    [note] = run(Material(texts=TEXTS, pairs=PAIRS, retrieval=RETRIEVAL)).notes
    assert note == "10 pairs and 2 queries are few: differences of some hundredths are chance."
    many = Pairs(name="p", left=PAIRS.left * 10, right=PAIRS.right * 10, scores=PAIRS.scores * 10)
    assert run(Material(texts=TEXTS, pairs=many)).notes == ()


@pytest.mark.parametrize(("value", "whole", "expected"), [
    (0.5, 1.0, 0.5), (1.1, 1.0, 1.1), (0.5, 0.0, None), (0.5, -0.1, None), (None, 1.0, None), (0.5, None, None),
])  # fmt: skip
def test_a_share_of_nothing_is_none(value, whole, expected):
    """Where the reference reaches nothing, nothing can be kept of it."""
    assert share(value, whole) == expected


# Dims


def test_dims_by_default():
    """Halves of a trained range, a trained list as it is, the full length alone otherwise."""
    assert dims_of(2560, Matryoshka(min=32, max=2560), None) == (2560, 1280, 640, 320, 160, 80, 40)
    assert dims_of(768, Matryoshka(min=256, max=512), None) == (768, 384)
    assert dims_of(768, Matryoshka(dims=(512, 64)), None) == (768, 512, 64)
    assert dims_of(384, None, None) == (384,)


def test_dims_that_are_asked_for():
    """The full length is always among them; one beyond it is an error."""
    assert dims_of(384, None, (96, 192, 96)) == (384, 192, 96)
    with pytest.raises(DimensionError, match="dim is 385; the model gives 384"):
        dims_of(384, None, (385,))
    with pytest.raises(DimensionError):
        dims_of(384, None, (0,))


def test_cut_vectors_are_held_against_the_right_ones():
    """Cosines at the same dim, so the reference's are 1; neighbours at full length, so even it loses some."""
    reference = run(Material(texts=TEXTS), dims=(2,)).quants[0]
    assert [one.dim for one in reference.figures] == [8, 2]
    assert reference.figures[1].cosine_min == pytest.approx(1)
    assert reference.figures[1].neighbours_kept < 1
    assert reference.figures[1].rank_correlation < 1


def test_layer_norm_goes_before_a_cut(monkeypatch):
    """As the model was trained for, and only where it is cut."""
    seen = []
    monkeypatch.setattr("gguf_embed.encoding.vectors.layer_norm", lambda rows: seen.append(rows.shape) or rows)
    spec = dataclasses.replace(SPECS[MINILM], n_embd=8, shape=None, matryoshka=Matryoshka(dims=(4,),
                               layer_norm_first=True))  # fmt: skip
    run(Material(pairs=PAIRS), noises={"F16": 0}, spec=spec)
    assert seen == [(10, 8), (10, 8)]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, "Whether m was trained to be cut is not known, to 4, 2 or at all."),
        (SPECS[MINILM], "m was not trained to be cut; 4, 2 are its first components nevertheless."),
        (
            dataclasses.replace(SPECS[MINILM], n_embd=8, shape=None, matryoshka=Matryoshka(dims=(4,))),
            "m was trained for 8, 4; 2 is none of them.",
        ),
    ],
    ids=["unknown", "not trained", "not for this"],
)
def test_a_dim_that_was_not_trained_is_noted(spec, expected):
    """It is measured nevertheless, which says what it costs."""
    assert run(Material(pairs=PAIRS), spec=spec, dims=(4, 2)).notes[0] == expected


def test_cut_texts_are_noted():
    """And counted with each quantization."""
    found = run(Material(pairs=PAIRS), truncated=(3,))
    assert found.notes[:1] == ("2 texts were longer than the model takes, and were cut.",)
    assert {one.n_truncated for one in found.quants} == {2}


# Keeping


def test_what_is_kept_of_an_evaluation():
    """Scores with sizes and checksums, and what was measured on."""
    kept = to_measured(run(Material(texts=TEXTS)))
    assert (kept.reference, kept.measured_on) == ("F16", (str(TEXTS),))
    assert [(one.quant, one.size_bytes, one.sha256) for one in kept.quants] == [
        ("F16", 1000, "0" * 64), ("Q8_0", 999, "0" * 64), ("Q4_K_M", 998, "0" * 64),
    ]  # fmt: skip


@pytest.mark.parametrize("noises", [{"F16": 0.0}, {"Q4_K_M": 0.4, "F16": 0.0}], ids=["alone", "a worse reference"])
def test_what_orders_nothing_is_not_kept(noises, tmp_path):
    """A single quantization, or some that were held against a coarser one, which nothing can surpass."""
    found = run(Material(texts=TEXTS), noises=noises)
    assert to_measured(found) is None
    subject = Subject(model_id="m", spec=None, base="m", quants=tuple(noises), is_file=False)
    assert keep(tmp_path, subject, found) is None


def test_an_evaluation_is_kept_by_the_model_s_name(tmp_path):
    """A file that was named by its path has no name to be asked by."""
    found = run(Material(texts=TEXTS))
    subject = Subject(model_id="m", spec=None, base="m", quants=tuple(NOISES), is_file=False)
    assert keep(tmp_path, dataclasses.replace(subject, is_file=True), found) is None
    assert keep(tmp_path, subject, found) == tmp_path / "evaluations.json"
    assert load_measured(tmp_path, "m") == to_measured(found)


def test_a_state_that_cannot_be_written_loses_no_figures(tmp_path, monkeypatch, caplog):
    """It is a warning, for the evaluation took its time."""

    def refuse(*_):
        raise StorageError("disk full", path=tmp_path)

    monkeypatch.setattr("gguf_embed.quality.evaluation.keep_measured", refuse)
    subject = Subject(model_id="m", spec=None, base="m", quants=tuple(NOISES), is_file=False)
    with caplog.at_level(logging.WARNING):
        assert keep(tmp_path, subject, run(Material(texts=TEXTS))) is None
    assert "disk full; nothing was kept for --prefer measured" in caplog.text


def test_a_share_at_a_dim_is_of_the_full_length():
    """So a curve by dim begins at what the quantization keeps."""
    found = run(Material(retrieval=RETRIEVAL), dims=(2,))
    assert isinstance(found, Evaluation)
    whole = found.quants[0].figures[0].ndcg_at_10
    assert found.kept(found.quants[1], "ndcg_at_10", 2) == pytest.approx(found.quants[1].figures[1].ndcg_at_10 / whole)


# Which files


@pytest.fixture
def catalog():
    return Catalog(load_config())


@pytest.fixture
def shelf(catalog):
    """Put quantizations of all-MiniLM where `quantize` puts them."""

    def put(*quants):
        for quant in quants:
            path = made_path(catalog.config.cache_dir, MINILM, quant)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(quant.encode())

    return put


def quants_of(catalog, **wish):
    return find_subject(catalog, Wish(**{"model": "minilm", **wish})).quants


def test_what_is_on_this_disk_is_compared(catalog, shelf):
    """Each quantization once, the best first as the reference."""
    shelf("Q4_K_M", "Q8_0", "Q3_K_M")
    assert quants_of(catalog) == ("Q8_0", "Q4_K_M", "Q3_K_M")
    subject = find_subject(catalog, Wish(model="minilm"))
    assert (subject.model_id, subject.base, subject.is_file) == (MINILM, MINILM, False)


@pytest.mark.parametrize("is_offline", [False, True])
def test_a_file_that_the_name_does_not_lead_to_is_left_out(catalog, shelf, monkeypatch, is_offline):
    """One of the shelf that would be fetched anew under this name is not on this disk as far as it goes."""
    shelf("Q8_0", "Q4_K_M")
    listed = [*files_on_disk(catalog, MINILM), dataclasses.replace(files_on_disk(catalog, MINILM)[0], quant="F16")]
    monkeypatch.setattr(candidates_module, "files_on_disk", lambda *_: listed)
    if is_offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert quants_of(Catalog(load_config())) == ("Q8_0", "Q4_K_M")


def test_what_is_named_is_compared(catalog, shelf):
    """In any case and order; a reference that is named goes first, whatever it is."""
    shelf("Q4_K_M", "Q8_0", "Q3_K_M")
    assert quants_of(catalog, quants=("q3_k_m", "Q4_K_M")) == ("Q4_K_M", "Q3_K_M")
    assert quants_of(catalog, quants=("F16", "Q4_K_M"), reference="q4_k_m") == ("Q4_K_M", "F16")
    assert quants_of(catalog, reference="F16") == ("F16", "Q8_0", "Q4_K_M", "Q3_K_M")


def test_a_single_one_is_held_against_the_best_here(catalog, shelf):
    """Whether --quants names it or the reference itself."""
    shelf("Q8_0", "Q3_K_M")
    assert quants_of(catalog, quants=("Q3_K_M",)) == ("Q8_0", "Q3_K_M")
    assert quants_of(catalog, model="minilm:Q4_K_M") == ("Q8_0", "Q4_K_M")
    assert quants_of(catalog, quants=("F16",)) == ("F16", "Q8_0")


def test_nothing_on_this_disk(catalog):
    """The message has the command that fetches the model."""
    with pytest.raises(UnknownQuantError, match=f"nothing of {MINILM} is on this disk; fetch it: gguf-embed pull"):
        find_subject(catalog, Wish(model="minilm"))


def test_a_name_of_no_quantization(catalog, shelf):
    """Told before anything is fetched."""
    shelf("Q8_0")
    for wish in (Wish(model="minilm", quants=("Q9_X",)), Wish(model="minilm", reference="best")):
        with pytest.raises(UnknownQuantError, match="it has F16, Q8_0"):
            find_subject(catalog, wish)


def test_texts_compare_nothing_of_one(catalog, shelf):
    """Without labels a single quantization has nothing to be held against; with labels it has."""
    shelf("Q8_0")
    subject = find_subject(catalog, Wish(model="minilm"))
    with pytest.raises(UnknownQuantError, match="name more, such as: gguf-embed eval all-minilm-l6-v2 --quants Q8_0,"):
        check_comparable(subject, Material(texts=TEXTS))
    check_comparable(subject, Material(pairs=PAIRS))


def test_files_here_are_taken_as_they_are(catalog, shelf):
    """With size and checksum, and the reference that opens them."""
    shelf("Q8_0", "Q4_K_M")
    found = get_candidates(catalog, find_subject(catalog, Wish(model="minilm")))
    assert [(one.quant, one.model, one.size_bytes) for one in found] == [
        ("Q8_0", f"{MINILM}:Q8_0", 4), ("Q4_K_M", f"{MINILM}:Q4_K_M", 6),
    ]  # fmt: skip
    assert found[0].sha256 == hashlib.sha256(b"Q8_0").hexdigest()


def test_a_blob_is_not_read_for_the_sum_that_is_its_name(catalog, tmp_path):
    """As everywhere else; tens of gigabytes are not read to learn what is known."""
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"GGUF")
    (tmp_path / "Model-F16.gguf").symlink_to(blob)
    subject = find_subject(catalog, Wish(model=str(tmp_path / "Model-F16.gguf")))
    assert get_candidates(catalog, subject)[0].sha256 == "ab" * 32


def test_what_cannot_be_made_is_told(catalog, tmp_path, makings):
    """With what can be."""
    (tmp_path / "Model-F16.gguf").write_bytes(b"GGUF")
    subject = find_subject(catalog, Wish(model=str(tmp_path / "Model-F16.gguf"), quants=("F16", "Q9_X")))
    with pytest.raises(UnknownQuantError, match="Q9_X is no quantization that can be made; it is one of F32"):
        get_candidates(catalog, subject, makes=True)
    assert makings == []


def test_one_that_no_source_has_says_what_to_type(catalog, shelf):
    """The command that makes it, and the option that does it here and now."""
    shelf("Q8_0")
    subject = find_subject(catalog, Wish(model="minilm", quants=("Q8_0", "Q4_K_S")))
    with pytest.raises(UnknownQuantError, match=r"gguf-embed quantize .* --to Q4_K_S.*; or add --make to this command"):
        get_candidates(catalog, subject)


def test_one_that_a_source_has_is_fetched(catalog, shelf, monkeypatch):
    """As pull does; offline that is an error of the network."""
    shelf("Q4_K_M")
    subject = find_subject(catalog, Wish(model="minilm", quants=("Q8_0", "Q4_K_M")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError):
        get_candidates(Catalog(load_config()), subject)


@pytest.fixture
def makings(monkeypatch, tmp_path):
    """What would be quantized, of what; a file with the name of its quantization is written."""
    seen = []

    def make(_catalog, making, **_):
        seen.append((making.quant, making.source.quant))
        making.target.parent.mkdir(parents=True, exist_ok=True)
        making.target.write_bytes(b"made")
        return making.target

    monkeypatch.setattr(candidates_module, "make", make)
    return seen


def test_what_is_missing_is_made_of_the_best_here(catalog, shelf, makings):
    """Of the best file on this disk that is good enough; what is here is not made again."""
    shelf("F16", "Q8_0", "Q4_K_M")
    subject = find_subject(catalog, Wish(model="minilm", quants=("F16", "Q8_0", "Q4_K_M", "Q3_K_M")))
    found = get_candidates(catalog, subject, makes=True)
    assert makings == [("Q3_K_M", "F16")]
    assert found[-1].path == made_path(catalog.config.cache_dir, MINILM, "Q3_K_M")


def test_what_nothing_better_is_to_be_had_of_is_fetched(catalog, makings, monkeypatch):
    """A Q8_0 is not made of itself, nor an F16 of something smaller."""
    fetched = []

    def fetch(_self, _resolved, source, *, on_progress=None):
        fetched.append(source.quant)
        path = catalog.config.cache_dir / source.quant
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"fetched")
        return path

    monkeypatch.setattr(Catalog, "fetch", fetch)
    subject = find_subject(catalog, Wish(model="minilm", quants=("F16", "Q8_0", "Q4_K_M")))
    get_candidates(catalog, subject, makes=True)
    assert fetched == ["F16", "Q8_0"]
    assert makings == [("Q4_K_M", "Q8_0")]


def test_files_beside_each_other(catalog, tmp_path, makings):
    """A path stands for the files whose names differ in the quantization alone; what is made goes beside them."""
    for name in ("Model-F16.gguf", "Model-Q4_K_M.gguf", "Model-small-Q8_0.gguf", "other-Q8_0.gguf"):
        (tmp_path / name).write_bytes(name.encode())
    path = str(tmp_path / "Model-Q4_K_M.gguf")
    subject = find_subject(catalog, Wish(model=path, quants=()))
    assert (subject.quants, subject.is_file) == (("F16", "Q4_K_M"), True)
    assert [one.model for one in get_candidates(catalog, subject)] == [str(tmp_path / "Model-F16.gguf"), path]
    subject = find_subject(catalog, Wish(model=path, quants=("F16", "Q3_K_M")))
    with pytest.raises(UnknownQuantError, match=r"there is no Q3_K_M beside .*; add --make"):
        get_candidates(catalog, subject)
    assert get_candidates(catalog, subject, makes=True)[1].path == tmp_path / "Model-Q3_K_M.gguf"
    assert makings == [("Q3_K_M", "F16")]


def test_a_file_whose_name_says_nothing_is_called_by_its_header(catalog, tmp_path, monkeypatch):
    """The quantization is in the file, too; one whose header does not say is called by its name."""
    for name in ("mine.gguf", "mine-Q8_0.gguf", "other.gguf"):
        (tmp_path / name).write_bytes(name.encode())
    quants = {"mine.gguf": "F16", "other.gguf": None}
    monkeypatch.setattr(candidates_module, "load_facts", lambda path: SimpleNamespace(quant=quants[path.name]))
    subject = find_subject(catalog, Wish(model=str(tmp_path / "mine.gguf"), quants=("Q8_0",)))
    assert subject.quants == ("F16", "Q8_0")
    assert [one.path.name for one in get_candidates(catalog, subject)] == ["mine.gguf", "mine-Q8_0.gguf"]
    assert find_subject(catalog, Wish(model=str(tmp_path / "other.gguf"))).quants == ("other",)


def test_a_file_beside_that_is_no_model_is_left_out(catalog, tmp_path):
    """It is told where it is opened, and here nobody asked for it."""
    for name in ("mine.gguf", "mine-Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"no model")
    assert find_subject(catalog, Wish(model=str(tmp_path / "mine-Q8_0.gguf"))).quants == ("Q8_0",)
    assert find_subject(catalog, Wish(model=str(tmp_path / "mine.gguf"))).quants == ("Q8_0", "mine")
