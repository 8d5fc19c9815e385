"""errors.py: a tree that pickles, prints and exits as documented."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest

from gguf_embed import errors
from gguf_embed.cli.exits import EXIT_CODES, INTERRUPTED, exit_code
from gguf_embed.errors import GGUFEmbedError

CLASSES = [
    one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, GGUFEmbedError)
]  # fmt: skip
LEAVES = [one for one in CLASSES if not one.__subclasses__()]
VALUES = {
    "path": Path("a/b.gguf"),
    "key": "device",
    "table": "models.x",
    "model_id": "x",
    "suggestions": ("y", "z"),
    "quant": "Q4_K_M",
    "available": ("Q8_0",),
    "repo": "o/r",
    "url": "http://h/f",
    "attempts": 5,
    "expected": "aa",
    "actual": "bb",
    "required_bytes": 7,
    "available_bytes": 3,
    "rejected": ({"quant": "Q8_0"},),
    "return_code": -3,
    "index": 4,
    "n_tokens": 900,
    "n_ctx": 512,
    "reason": "NUL",
    "dim": 12,
    "allowed": "32..64",
    "extra": "arrow",
    "why": "was ended by SIGABRT",
}
EXPECTED_CODES = {
    "ConfigError": 2,
    "InvalidRegistryError": 2,
    "UnknownModelError": 3,
    "UnknownQuantError": 3,
    "OfflineError": 4,
    "AccessDeniedError": 4,
    "AllocationError": 6,
    "DownloadError": 4,
    "ChecksumError": 4,
    "StorageError": 4,
    "DoesNotFitError": 5,
    "InvalidGGUFError": 6,
    "UnsupportedModelError": 6,
    "DecodeError": 6,
    "NonFiniteEmbeddingError": 6,
    "ClosedError": 6,
    "WorkerCrashedError": 6,
    "TextTooLongError": 7,
    "InvalidTextError": 7,
    "DimensionError": 7,
    "JobError": 2,
    "FingerprintError": 9,
    "RemoteError": 4,
    "MissingExtraError": 8,
}


def facts_of(cls):
    """Attributes that the class's constructor asks for."""
    return {
        name: VALUES[name]
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def by_name(cls):
    return cls.__name__


@pytest.mark.parametrize("cls", CLASSES, ids=by_name)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickle(cls, protocol):
    """Class, message and every fact come back, so errors cross process boundaries."""
    facts = facts_of(cls)
    back = pickle.loads(pickle.dumps(cls("it broke", **facts), protocol))  # noqa: S301 - our own bytes
    assert type(back) is cls
    assert (str(back), back.message, back.args) == ("it broke", "it broke", ("it broke",))
    assert {name: getattr(back, name) for name in facts} == facts


@pytest.mark.parametrize("cls", CLASSES, ids=by_name)
def test_an_error_can_be_copied(cls):
    """A deep copy has the same message and facts."""
    error = cls("it broke", **facts_of(cls))
    assert vars(copy.deepcopy(error)) == vars(error)


@pytest.mark.parametrize("cls", [one for one in CLASSES if facts_of(one)], ids=by_name)
def test_facts_are_keywords_without_which_there_is_no_error(cls):
    """No fact can be forgotten or given by position."""
    with pytest.raises(TypeError):
        cls("it broke", *facts_of(cls).values())


def test_a_note_survives_pickle():
    """What add_note adds comes back too."""
    error = errors.ClosedError("closed")
    error.add_note("while embedding")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while embedding"]  # noqa: S301 - our own bytes


@pytest.mark.parametrize("cls", CLASSES, ids=by_name)
def test_an_error_descends_from_the_base_and_never_from_keyerror(cls):
    """One except clause catches them all; KeyError would quote its message."""
    assert issubclass(cls, GGUFEmbedError)
    assert not issubclass(cls, KeyError)


def test_every_error_is_exported():
    """__all__ has each class, sorted."""
    assert sorted(by_name(one) for one in CLASSES) == errors.__all__


def tree_of_docstring():
    """(class, parent) of each line of the module's tree, by its indentation."""
    parents, rows = {}, []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r" {4}([│├└─ ]*)(\w+Error)\b", line):
            depth = len(match[1]) // 3
            rows.append((match[2], parents.get(depth - 1)))
            parents[depth] = match[2]
    return rows


def test_the_docstring_draws_the_tree_that_there_is():
    """Every class is drawn once, under the class that it descends from."""
    drawn = tree_of_docstring()
    real = {by_name(one): by_name(one.__bases__[0]) for one in CLASSES}
    assert dict(drawn) == real | {"GGUFEmbedError": None}
    assert len(drawn) == len(real)


@pytest.mark.parametrize("cls", CLASSES, ids=by_name)
def test_the_docstring_names_the_facts(cls):
    """A class's line of the tree has its facts, its own or by a line above."""
    line = next(line for line in (errors.__doc__ or "").splitlines() if re.search(rf"\b{by_name(cls)}\b", line))
    own = facts_of(cls)
    assert all(re.search(rf"\b{name}\b", line) for name in own), line


@pytest.mark.parametrize("cls", LEAVES, ids=by_name)
def test_every_leaf_has_the_exit_code_of_the_design(cls):
    """The shell sees the documented code for each kind of failure."""
    assert exit_code(cls("it broke", **facts_of(cls))) == EXPECTED_CODES[by_name(cls)]


def test_every_leaf_has_an_expected_code():
    """A new class cannot come without a code in this test."""
    assert set(EXPECTED_CODES) == {by_name(one) for one in LEAVES}


def test_every_entry_of_the_table_is_reached():
    """No entry of EXIT_CODES is shadowed by entries below it."""
    reached = {next(one for one in leaf.__mro__ if one in EXIT_CODES) for leaf in LEAVES}
    assert reached == set(EXIT_CODES)


def test_the_table_has_only_documented_codes():
    """2 to 9 are given out, 1 is left to bugs, 130 to interruptions."""
    assert set(EXIT_CODES.values()) == set(range(2, 10))
    assert INTERRUPTED == 130


@pytest.mark.parametrize(
    ("cls", "stock"),
    [
        (errors.InputError, ValueError),
        (errors.TextTooLongError, ValueError),
        (errors.DimensionError, ValueError),
        (errors.MissingExtraError, ImportError),
    ],
    ids=lambda value: value.__name__,
)
def test_stock_classes_catch_ours_where_people_expect_it(cls, stock):
    """A text that is too long is a ValueError, a missing extra an ImportError."""
    assert issubclass(cls, stock)
