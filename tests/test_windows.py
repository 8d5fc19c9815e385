"""windows.py: laws of computing windows ahead in a second thread."""

from __future__ import annotations

import threading
import time
import weakref

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gguf_embed.engine.windows import N_TEXTS_WINDOW, Windows

WAIT_S = 20
TEXTS = st.lists(st.text(max_size=3), max_size=40)
N_TEXTS = st.integers(1, 12)


def ours():
    """Threads of a Windows that are still alive."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("gguf-embed-tokenize")]


def described(start, texts):
    """Give each text with its position, so that a person sees what came from where."""
    return [f"{start + index}:{text}" for index, text in enumerate(texts)]


class Gate:
    """A compute function that a test lets go, window by window; a window in `broken` raises its error."""

    def __init__(self, *, broken=None, is_open=False):
        self.broken, self.begun, self.threads = broken or {}, [], []
        self.changed = threading.Condition()
        self.n_open = 1_000_000 if is_open else 0

    def __call__(self, start, texts):
        with self.changed:
            self.begun.append(start)
            self.threads.append(threading.current_thread())
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: start < self.n_open, WAIT_S)
        if start in self.broken:
            raise self.broken[start]
        return start

    def open(self, n):
        """Let the windows that start before n go on."""
        with self.changed:
            self.n_open = n
            self.changed.notify_all()

    def wait_until_begun(self, start):
        with self.changed:
            assert self.changed.wait_for(lambda: start in self.begun, WAIT_S)


# What comes out


@given(TEXTS, N_TEXTS)
@example(["a"] * 12, 12)
@example(["a"] * 12, 4)
@example(["a"] * 13, 4)
def test_windows_are_one_call_in_pieces(texts, n_texts):
    """In order, each text once, under its own position, and no window longer than it may be."""
    with Windows(described, texts, n_texts=n_texts) as windows:
        pieces = list(windows)
    assert [text for _, piece in pieces for text in piece] == described(0, texts)
    assert [start for start, _ in pieces] == list(range(0, len(texts), n_texts))
    assert all(1 <= len(piece) <= n_texts for _, piece in pieces)
    assert not ours()


def test_no_texts_are_no_windows():
    """Nothing is computed for nothing."""
    gate = Gate(is_open=True)
    with Windows(gate, []) as windows:
        assert list(windows) == []
        windows.check()
    assert not gate.begun


def test_texts_of_any_sequence():
    """A tuple does as a list does."""
    with Windows(described, tuple("abcd"), n_texts=3) as windows:
        assert list(windows) == [(0, ["0:a", "1:b", "2:c"]), (3, ["3:d"])]


# Where it is computed


@pytest.mark.parametrize("n", [1, 4, N_TEXTS_WINDOW])
def test_one_window_is_done_in_the_callers_thread(n):
    """A single query starts no thread."""
    gate = Gate(is_open=True)
    with Windows(gate, ["a"] * n, n_texts=n) as windows:
        assert not gate.begun  # not before it is asked for
        assert list(windows) == [(0, 0)]
    assert gate.threads == [threading.current_thread()]


@pytest.mark.parametrize("n", [10, 100])
def test_several_are_done_in_one_other_thread(n):
    """One after the other, in order, so that compute needs no lock of its own."""
    gate = Gate(is_open=True)
    with Windows(gate, ["a"] * n, n_texts=9) as windows:
        assert [start for start, _ in windows] == list(range(0, n, 9))
    assert gate.begun == list(range(0, n, 9))
    assert len(set(gate.threads)) == 1
    assert threading.current_thread() not in gate.threads


@pytest.mark.parametrize(("n", "lengths"), [(1024, [1024]), (1025, [1024, 1])])
def test_the_usual_window(n, lengths):
    """1,024 texts are one window, and one more are two."""
    assert N_TEXTS_WINDOW == 1024
    with Windows(lambda _, texts: len(texts), ["a"] * n) as windows:
        assert [length for _, length in windows] == lengths


def test_later_windows_are_computed_meanwhile():
    """While the first one is in use, the others are done."""
    gate = Gate(is_open=True)
    with Windows(gate, ["a"] * 4, n_texts=1) as windows:
        each = iter(windows)
        assert next(each) == (0, 0)
        gate.wait_until_begun(3)


def test_the_first_window_does_not_wait_for_the_others():
    """It is given out as soon as it is done."""
    gate = Gate()
    gate.open(1)
    with Windows(gate, ["a"] * 3, n_texts=1) as windows:
        each = iter(windows)
        assert next(each) == (0, 0)
        gate.open(3)
        assert [start for start, _ in each] == [1, 2]


def test_a_window_that_was_used_is_let_go():
    """A long list's results are not held to its end."""

    class Result:
        pass

    with Windows(lambda *_: Result(), ["a"] * 5, n_texts=1) as windows:
        each = iter(windows)
        first = weakref.ref(next(each)[1])
        next(each)
        assert first() is None


# What goes wrong


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_a_late_error_is_known_early(kind):
    """While the first window is in use, check() raises what went wrong in the third."""
    wrong = kind("text 2 is wrong")
    gate = Gate(broken={2: wrong})
    gate.open(1)
    with Windows(gate, ["a"] * 4, n_texts=1) as windows:
        assert next(iter(windows)) == (0, 0)
        windows.check()  # nothing is wrong yet
        gate.open(4)
        gate.wait_until_begun(3)  # so the third is over
        with pytest.raises(kind, match="text 2 is wrong") as caught:
            windows.check()
    assert caught.value is wrong


def test_the_first_of_two_errors_is_told():
    """The caller mends texts from the first one on."""
    gate = Gate(broken={1: ValueError("first"), 2: ValueError("second")}, is_open=True)
    with Windows(gate, ["a"] * 5, n_texts=1) as windows:
        gate.wait_until_begun(4)
        for _ in range(2):
            with pytest.raises(ValueError, match="first"):
                windows.check()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_comes_at_its_turn_too(n, kind):
    """Whoever never checks gets it instead of the window."""
    wrong, got = kind("wrong"), []
    with (
        pytest.raises(kind) as caught,
        Windows(Gate(broken={n - 1: wrong}, is_open=True), "a" * n, n_texts=1) as windows,
    ):
        got.extend(start for start, _ in windows)
    assert caught.value is wrong
    assert got == list(range(n - 1))
    assert not ours()


class UserError(Exception):
    """What a caller's own code raises."""


def open_after_leaving(gate, windows):
    """Let what runs go on once the rest is dropped."""

    def wait():
        deadline = time.monotonic() + WAIT_S
        while not windows._ahead[-1].cancelled() and time.monotonic() < deadline:
            time.sleep(0.001)
        gate.open(50)

    threading.Thread(target=wait).start()


@pytest.mark.parametrize("how", ["error", "interrupt", "break", "never asked"])
def test_no_thread_is_left(how):
    """However the caller leaves: what has not begun is dropped, and what runs is waited for."""
    gate = Gate()
    gate.open(1)

    def leave():
        with Windows(gate, ["a"] * 50, n_texts=1) as windows:
            gate.wait_until_begun(1)
            open_after_leaving(gate, windows)
            for _ in windows if how != "never asked" else ():
                if how == "break":
                    break
                raise KeyboardInterrupt if how == "interrupt" else UserError

    if how in ("error", "interrupt"):
        with pytest.raises(UserError if how == "error" else KeyboardInterrupt):
            leave()
    else:
        leave()
    assert not ours()
    assert gate.begun == [0, 1]
