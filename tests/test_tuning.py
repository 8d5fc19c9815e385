"""tuning.py and bench/trials.py: what was fastest here, in a file that may be anything, and how it is found."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_embed.bench.measuring import Spread
from gguf_embed.bench.trials import Trial, batch_candidates, choose, is_steady, search, thread_candidates
from gguf_embed.errors import StorageError
from gguf_embed.fit.hardware import Accelerator, Hardware
from gguf_embed.fit.margins import load_margins, remember_margin
from gguf_embed.fit.tuning import Tuning, forget_tunings, load_tuning, remember_tuning, tuning_path
from gguf_embed.models.header import ModelFacts

GIB = 1 << 30
CARD = Accelerator(name="CUDA0", description="a card", total_bytes=4 * GIB, free_bytes=3 * GIB)
HERE = Hardware(
    accelerators=(CARD,), ram_total_bytes=16 * GIB, ram_available_bytes=10 * GIB, n_cores=4, processor="a processor"
)
FACTS = ModelFacts(
    architecture="qwen3", quant="Q4_K_M", n_layer=10, n_embd=16, n_ff=64, n_head=4, n_head_kv=2, head_dim=8, n_vocab=50,
    n_ctx_train=4096, pooling_type="last", is_causal=True, add_eos=True, layer_sizes=(100,) * 10, table_bytes=70,
    output_bytes=60, is_tied=True,
)  # fmt: skip
FASTER = Tuning(n_batch=128, n_threads=3)

TUNINGS = st.builds(Tuning, n_batch=st.none() | st.integers(1, 1 << 16), n_threads=st.none() | st.integers(1, 512))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


@settings(deadline=None, max_examples=25)
@given(TUNINGS, TUNINGS, TUNINGS)
def test_what_is_remembered_is_loaded(first, second, third):
    """The last of a model and placement comes back, and those of another model or machine stay beside it."""
    other, elsewhere = dataclasses.replace(FACTS, n_embd=32), dataclasses.replace(HERE, processor="another")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "state"
        for machine, facts, tuning in (
            (HERE, FACTS, FASTER), (elsewhere, FACTS, third), (HERE, other, second), (HERE, FACTS, first),
        ):  # fmt: skip
            remember_tuning(folder, machine, facts, "cpu", tuning)
        assert load_tuning(folder, HERE, FACTS, "cpu") == first
        assert load_tuning(folder, HERE, other, "cpu") == second
        assert load_tuning(folder, elsewhere, FACTS, "cpu") == third
        assert {path.name for path in folder.iterdir()} == {"tuning.json"}


def test_nothing_is_known_to_begin_with(folder):
    """Without a file the tuning is empty, and neither asking nor remembering nothing makes one."""
    assert load_tuning(folder, HERE, FACTS, "cpu") == Tuning()
    remember_tuning(folder, HERE, FACTS, "cpu", Tuning())
    assert not folder.exists()


@pytest.mark.parametrize(
    "change",
    [{"architecture": "bert"}, {"n_embd": 32}, {"n_layer": 11}, {"quant": "Q8_0"}, {"quant": None}],
    ids=" ".join,
)
def test_another_model_is_measured_for_itself(folder, change):
    """Architecture, size and quantization make a model."""
    remember_tuning(folder, HERE, FACTS, "cpu", FASTER)
    assert load_tuning(folder, HERE, dataclasses.replace(FACTS, **change), "cpu") == Tuning()


def test_another_place_is_measured_for_itself(folder):
    """What is fastest on the CPU says nothing of the device, nor of another machine."""
    remember_tuning(folder, HERE, FACTS, "cpu", FASTER)
    assert load_tuning(folder, HERE, FACTS, "gpu") == Tuning()
    assert load_tuning(folder, dataclasses.replace(HERE, accelerators=()), FACTS, "cpu") == Tuning()


def test_what_is_free_or_longest_makes_no_other_model(folder):
    """The same file on a fuller machine, with another longest text, is known again."""
    remember_tuning(folder, HERE, FACTS, "cpu", FASTER)
    fuller = dataclasses.replace(HERE, ram_available_bytes=GIB)
    assert load_tuning(folder, fuller, dataclasses.replace(FACTS, n_ctx_train=512), "cpu") == FASTER


def test_threads_count_for_as_many_cores_alone(folder):
    """A process that is held to fewer cores takes the packing and not the threads."""
    remember_tuning(folder, HERE, FACTS, "cpu", FASTER)
    held = dataclasses.replace(HERE, n_cores=2)
    assert load_tuning(folder, held, FACTS, "cpu") == Tuning(n_batch=128)


def test_an_empty_tuning_takes_one_out(folder):
    """What is no longer faster is forgotten, and the others stay."""
    remember_tuning(folder, HERE, FACTS, "cpu", FASTER)
    remember_tuning(folder, HERE, FACTS, "gpu", FASTER)
    remember_tuning(folder, HERE, FACTS, "cpu", Tuning())
    assert load_tuning(folder, HERE, FACTS, "cpu") == Tuning()
    assert load_tuning(folder, HERE, FACTS, "gpu") == FASTER


DAMAGED = {"empty": b"", "half": b'{"a": {', "no text": b"\xff\xfe", "a list": b"[1]", "deep": b"[" * 100_000}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_no_file(folder, content):
    """It says nothing, and what is found next is written over it."""
    folder.mkdir()
    tuning_path(folder).write_bytes(content)
    assert load_tuning(folder, HERE, FACTS, "cpu") == Tuning()
    remember_tuning(folder, HERE, FACTS, "cpu", FASTER)
    assert load_tuning(folder, HERE, FACTS, "cpu") == FASTER


WRONG = {
    "no entry": 3, "zero": {"n_batch": 0}, "below": {"n_batch": -1}, "too many": {"n_batch": 1 << 20},
    "a fraction": {"n_batch": 1.5}, "a word": {"n_batch": "128"}, "true": {"n_batch": True}, "a list": {"n_batch": [1]},
    "threads": {"n_threads": 513, "n_cores": 4}, "no threads": {"n_threads": 0, "n_cores": 4},
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_an_entry_that_means_nothing_is_passed_over(folder, wrong):
    """Whoever edits the file by hand cannot keep a model from being planned for."""
    remember_tuning(folder, HERE, FACTS, "cpu", FASTER)
    known = json.loads(tuning_path(folder).read_text(encoding="utf-8"))
    (key,) = known[HERE.fingerprint]
    known[HERE.fingerprint][key] = wrong
    tuning_path(folder).write_text(json.dumps(known), encoding="utf-8")
    assert load_tuning(folder, HERE, FACTS, "cpu") == Tuning()
    tuning_path(folder).write_text(json.dumps({HERE.fingerprint: wrong}), encoding="utf-8")
    assert load_tuning(folder, HERE, FACTS, "cpu") == Tuning()
    remember_tuning(folder, HERE, FACTS, "cpu", FASTER)
    assert load_tuning(folder, HERE, FACTS, "cpu") == FASTER


@pytest.mark.parametrize("value", [0, 1.0, "1", True, 1 << 20])
@pytest.mark.parametrize("name", ["n_batch", "n_threads"])
def test_a_tuning_is_of_whole_numbers_in_range(name, value):
    """What llama.cpp would abort on can be neither made nor read."""
    with pytest.raises(ValueError, match=name):
        Tuning(**{name: value})


def test_what_cannot_be_kept_is_an_error(tmp_path):
    """Whoever asked to have it remembered is told that it is not."""
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot be written"):
        remember_tuning(tmp_path / "file" / "state", HERE, FACTS, "cpu", FASTER)


def test_forgetting_says_whether_there_was_anything(folder):
    """All are forgotten at once, a second time there is nothing left, and what loads taught stays."""
    remember_tuning(folder, HERE, FACTS, "cpu", FASTER)
    remember_margin(folder, HERE, {"host": 5})
    assert forget_tunings(folder)
    assert load_tuning(folder, HERE, FACTS, "cpu") == Tuning()
    assert not forget_tunings(folder)
    assert load_margins(folder, HERE) == {"host": 5}


# Trials


def planned(n_batch=512, n_threads=4, n_seq_max=64, n_ubatch=512):
    """What of a plan the trials look at."""
    return SimpleNamespace(
        n_batch=n_batch, n_threads=n_threads, layout=SimpleNamespace(n_seq_max=n_seq_max, n_ubatch=n_ubatch)
    )


def trial(median, *, apart=1.1, n_batch=512, n_threads=4):
    low = 2 * median / (1 + apart)
    return Trial(n_batch=n_batch, n_threads=n_threads, tokens_per_s=Spread(median=median, low=low, high=apart * low))


def bench_of(speed, *, apart=1.1):
    """A machine where a pair of n_batch and n_threads has the speed that a function says; and what it was asked."""
    asked = []

    def run(pairs):
        asked.append(list(pairs))
        return [trial(speed(*pair), apart=apart, n_batch=pair[0], n_threads=pair[1]) for pair in pairs]

    return run, asked


@pytest.mark.parametrize(
    ("plan", "sizes"),
    [
        (planned(), (64, 128, 256, 512)),
        (planned(n_batch=256, n_seq_max=128), (128, 256, 512)),
        (planned(n_batch=200, n_ubatch=256), (64, 128, 200, 256)),
        (planned(n_batch=16, n_seq_max=16, n_ubatch=16), (16,)),
    ],
)
def test_sizes_that_the_layout_allows(plan, sizes):
    """From n_seq_max to n_ubatch, and the plan's own."""
    assert batch_candidates(plan) == sizes


@given(st.integers(1, 64), st.integers(1, 256))
def test_threads_to_try(n_threads, n_cpus):
    """The plan's and half of them, and more only where there are CPUs for them, never beyond twice as many."""
    tried = thread_candidates(n_threads, n_cpus)
    assert {n_threads, max(1, n_threads // 2)} <= set(tried)
    assert 1 <= min(tried) <= max(tried) <= max(n_threads, min(n_cpus, 2 * n_threads))
    assert list(tried) == sorted(set(tried))
    assert (max(tried) > n_threads) == (n_cpus > n_threads)


@pytest.mark.parametrize(("faster", "is_taken"), [(1.0, False), (1.02, False), (1.03, True), (2.0, True)])
def test_only_what_is_three_per_cent_faster_is_taken(faster, is_taken):
    """Two runs of one setting differ by as much as less would be."""
    default, other = trial(100.0), trial(100.0 * faster, n_batch=64)
    assert choose([other, default, trial(50.0, n_batch=128)], default) == (other if is_taken else default)


def test_threads_are_tried_with_the_better_packing():
    """First the sizes side by side with the plan's threads, then threads with the fastest of them."""
    run, asked = bench_of(lambda n_batch, n_threads: {128: 150.0}.get(n_batch, 100.0) * {2: 1.2}.get(n_threads, 1.0))
    found = search(planned(), run, n_cpus=4)
    assert asked == [[(64, 4), (128, 4), (256, 4), (512, 4)], [(128, 2), (128, 4)]]
    assert found.tuning == Tuning(n_batch=128, n_threads=2)
    assert found.gain == pytest.approx(1.5 * 1.2)
    assert len(found.trials) == 6


def test_a_default_that_is_as_good_stays():
    """Nothing is to be remembered where nothing is 3 % faster."""
    run, _ = bench_of(lambda n_batch, n_threads: 100.0 + n_batch % 3 - n_threads % 2)
    found = search(planned(), run, n_cpus=8)
    assert (found.tuning, found.gain, found.is_steady) == (Tuning(), 1.0, True)


def test_threads_that_were_given_stay():
    """Without processors to choose from n_batch alone is tried."""
    run, asked = bench_of(lambda n_batch, n_threads: 100.0 * n_threads + n_batch)
    assert search(planned(n_batch=64), run, n_cpus=None).tuning == Tuning(n_batch=512)
    assert len(asked) == 1


@pytest.mark.parametrize(("apart", "steady"), [(1.0, True), (1.4, True), (1.6, False), (30.0, False)])
def test_a_busy_machine_tells_nothing(apart, steady):
    """Rounds that are far from each other measured what else ran."""
    assert is_steady(trial(100.0, apart=apart)) == steady
    run, _ = bench_of(lambda n_batch, _n_threads: 200.0 if n_batch == 64 else 100.0, apart=apart)
    assert search(planned(), run, n_cpus=4).is_steady == steady
