"""margins.py: what failed loads taught, by machine and build, in a file that may be anything."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_embed.errors import StorageError
from gguf_embed.fit import margins
from gguf_embed.fit.hardware import Accelerator, Hardware
from gguf_embed.fit.margins import forget_margins, load_margins, margins_path, remember_margin

GIB, MIB = 1 << 30, 1 << 20
CARD = Accelerator(name="CUDA0", description="a card", total_bytes=4 * GIB, free_bytes=3 * GIB)
HERE = Hardware(
    accelerators=(CARD,), ram_total_bytes=16 * GIB, ram_available_bytes=10 * GIB, n_cores=4, processor="a processor"
)
LEARNT = {"CUDA0": 700 * MIB, "host": GIB}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


MARGINS = st.dictionaries(st.text(), st.integers(0, 1 << 50))


@settings(deadline=None, max_examples=25)
@given(MARGINS, MARGINS, st.text())
def test_what_is_remembered_is_loaded(first, second, processor):
    """Any names and sizes come back as they were written, the last ones, and another machine's stay beside them."""
    other = dataclasses.replace(HERE, processor=f"another {processor}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "state"
        remember_margin(folder, HERE, {"CUDA0": 1})
        remember_margin(folder, other, second)
        remember_margin(folder, HERE, first)
        assert load_margins(folder, HERE) == first
        assert load_margins(folder, other) == second
        assert [path.name for path in folder.iterdir()] == ["margins.json"]


def test_nothing_is_known_to_begin_with(folder):
    """Without a file there are no margins, and asking makes none."""
    assert load_margins(folder, HERE) == {}
    assert not folder.exists()


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(HERE, processor="another processor"),
        dataclasses.replace(HERE, accelerators=()),
        dataclasses.replace(HERE, accelerators=(CARD, CARD)),
        dataclasses.replace(HERE, accelerators=(dataclasses.replace(CARD, name="Vulkan0"),)),
        dataclasses.replace(HERE, accelerators=(dataclasses.replace(CARD, total_bytes=6 * GIB),)),
        dataclasses.replace(HERE, accelerators=(dataclasses.replace(CARD, description="another card"),)),
    ],
    ids=["processor", "no card", "two cards", "backend", "size", "product"],
)
def test_another_machine_learns_for_itself(folder, other):
    """The devices and the processor make a machine."""
    remember_margin(folder, HERE, LEARNT)
    assert load_margins(folder, other) == {}


def test_what_is_free_makes_no_other_machine(folder):
    """The same computer at another time of day is known again."""
    remember_margin(folder, HERE, LEARNT)
    busy = dataclasses.replace(
        HERE, ram_available_bytes=GIB, n_cores=2, accelerators=(dataclasses.replace(CARD, free_bytes=0),)
    )
    assert load_margins(folder, busy) == LEARNT


def test_another_build_of_llama_cpp_learns_anew(folder, monkeypatch):
    """Another version may take other memory, so what was learnt with this one does not count there."""
    remember_margin(folder, HERE, LEARNT)
    monkeypatch.setattr(margins, "version", lambda name: f"{version(name)}.post1")
    assert load_margins(folder, HERE) == {}
    remember_margin(folder, HERE, {"host": 5})
    assert load_margins(folder, HERE) == {"host": 5}
    monkeypatch.undo()
    assert load_margins(folder, HERE) == {}


DAMAGED = {
    "empty": b"",
    "half": b'{"a": {',
    "no text": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "nothing": b"null",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_no_file(folder, content):
    """It has taught nothing, and the next lesson is written over it."""
    folder.mkdir()
    margins_path(folder).write_bytes(content)
    assert load_margins(folder, HERE) == {}
    remember_margin(folder, HERE, LEARNT)
    assert load_margins(folder, HERE) == LEARNT


WRONG = {
    "no entry": 3,
    "no build": {"margins": LEARNT},
    "no margins": {"llama_cpp": version("llama-cpp-python")},
    "a list": {"llama_cpp": version("llama-cpp-python"), "margins": [1]},
    "a word": {"llama_cpp": version("llama-cpp-python"), "margins": {"CUDA0": "many"}},
    "null": {"llama_cpp": version("llama-cpp-python"), "margins": {"CUDA0": None}},
    "infinite": {"llama_cpp": version("llama-cpp-python"), "margins": {"CUDA0": float("inf")}},
}


@pytest.mark.parametrize("entry", WRONG.values(), ids=WRONG)
def test_an_entry_that_means_nothing_is_passed_over(folder, entry):
    """Whoever edits the file by hand cannot keep a model from being planned for."""
    folder.mkdir()
    margins_path(folder).write_text(json.dumps({HERE.fingerprint: entry}), encoding="utf-8")
    assert load_margins(folder, HERE) == {}


def test_a_folder_that_cannot_be_written_costs_only_the_memory_of_it(tmp_path, caplog):
    """The load that worked goes on; a line in the log says that the next one must learn again."""
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    folder = tmp_path / "file" / "state"
    with caplog.at_level(logging.INFO, "gguf_embed.fit.margins"):
        remember_margin(folder, HERE, LEARNT)
    assert str(margins_path(folder)) in caplog.text
    assert load_margins(folder, HERE) == {}


def test_forgetting_says_whether_there_was_anything(folder):
    """All machines are forgotten at once, and a second time there is nothing left."""
    remember_margin(folder, HERE, LEARNT)
    assert forget_margins(folder)
    assert load_margins(folder, HERE) == {}
    assert not forget_margins(folder)


def test_what_cannot_be_forgotten_is_an_error(folder):
    """A path that does not let itself be deleted is named."""
    margins_path(folder).mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot be deleted") as caught:
        forget_margins(folder)
    assert caught.value.path == margins_path(folder)
