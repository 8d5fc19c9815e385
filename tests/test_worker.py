"""engine/worker.py with a fake session in a real child: what a crash costs, and what it does not."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import fake_session
import numpy as np
import psutil
import pytest

from gguf_embed.engine import process
from gguf_embed.engine.worker import Request, Worker
from gguf_embed.errors import (
    BackendError,
    ClosedError,
    DecodeError,
    ModelLoadError,
    TextTooLongError,
    WorkerCrashedError,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


class Counter:
    """An observer."""

    def __init__(self):
        self.steps, self.crashes = [], []

    def decoded(self, n_texts, n_tokens, seconds):
        self.steps.append((n_texts, n_tokens))

    def crashed(self, error):
        self.crashes.append(error)


@pytest.fixture
def start():
    """Make workers that are ended with the test."""
    made = []

    def start_one(clock=time.monotonic, observer=None, **options):
        made.append(Worker(partial(fake_session.opener, **options), name="fake", observer=observer, clock=clock))
        return made[-1]

    yield start_one
    for one in made:
        one.close()


def ask(*texts, **known):
    return Request(texts=list(texts), finish=fake_session.doubled, **known)


def words(worker, *texts, **known):
    """The number of words that came back for each text."""
    return (worker.submit(ask(*texts, **known)).wait(None).rows[:, 0] / 2).tolist()


def test_rows_come_in_the_order_of_the_texts_with_their_counts(start):
    """Equal texts are embedded once, `finish` runs in the child, and counts and cuts are told for every text."""
    counter = Counter()
    result = start(observer=counter).submit(ask("a b", "c", "a b", "x " * 60, truncate="end")).wait(None)
    assert (result.rows[:, 0] / 2).tolist() == [2, 1, 2, 50]
    assert result.rows[0, 2] != 2 * os.getpid()
    assert result.n_tokens == [2, 1, 2, 50]
    assert result.truncated == [3]
    until = time.monotonic() + 5
    while sum(n_texts for n_texts, _ in counter.steps) < 3:  # a step is counted after its rows were told
        assert time.monotonic() < until
    assert sum(n_texts for n_texts, _ in counter.steps) == 3


def test_nothing_is_started_before_it_is_needed(start):
    """No texts need no child; the first ones start it, and facts come from it."""
    worker = start()
    assert worker.process_id is None
    assert worker.submit(ask()).wait(None).rows.shape == (0, 0)
    assert worker.process_id is None
    assert worker.open() == {"pid": worker.process_id}


def test_a_progress_that_fails_is_told(start):
    """To whoever opens; nothing is left running."""

    def fail(*_numbers):
        raise ZeroDivisionError

    worker = start(sleep_s=20)
    with pytest.raises(ZeroDivisionError):
        worker.open(fail)
    assert worker.process_id is None


def test_a_subclass_of_str_is_a_text(start):
    """It need not be known to the child."""

    class Note(str):
        __slots__ = ()

    assert words(start(), Note("a b"), Note("c")) == [2, 1]


def test_a_worker_that_nobody_holds_ends_its_child(start):
    """As a model in this process is freed."""
    worker = Worker(fake_session.opener, name="fake")
    worker.open()
    child = worker.process_id
    assert words(worker, "a") == [1]
    del worker
    until = time.monotonic() + 5
    while psutil.pid_exists(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not psutil.pid_exists(child)


def test_progress_is_told_while_it_opens(start):
    """As for a download."""
    told = []
    start().open(lambda *numbers: told.append(numbers))
    assert told == [(1, 2)]


def test_many_threads_share_one_worker(start):
    """Each gets its own rows, in packed steps."""
    worker = start()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        wanted = [["w " * (1 + (number + at) % 9) for at in range(number % 5 + 1)] for number in range(200)]
        found = list(pool.map(lambda texts: words(worker, *texts), wanted))
    assert found == [[len(text.split()) for text in texts] for texts in wanted]


def test_on_batch_is_called_in_the_callers_thread(start):
    """As a Session does it; its counts add up to all texts."""
    told, into = [], np.empty((6, 3), dtype=np.float32)
    n_tokens, truncated = start().embed_texts(
        ["a", "b b", "a", "c", "d", "e"], into, finish=fake_session.doubled,
        on_batch=lambda *counts: told.append((threading.get_ident(), *counts)),
    )  # fmt: skip
    assert {one[0] for one in told} == {threading.get_ident()}
    assert sum(one[1] for one in told) == 6
    assert sum(one[2] for one in told) == sum(n_tokens) == 7
    assert truncated == []


def test_tokens_alone_can_be_had(start):
    """Ids and what they stand for, in order, with repeats."""
    result = start().submit(Request(texts=["a b", "c", "a b"], finish=None, with_pieces=True)).wait(None)
    said = [[result.pieces[token][0] for token in ids.tolist()] for ids in result.tokens]
    assert said == [["a", "b"], ["c"], ["a", "b"]]


# What goes wrong with a text


def test_a_text_that_is_too_long_fails_its_own_call(start):
    """By its place in the call; another one goes on."""
    worker = start()
    with pytest.raises(TextTooLongError) as caught:
        words(worker, "a", "a", "b " * 60)
    assert caught.value.index == 2
    assert words(worker, "a") == [1]


def test_a_text_that_is_no_text_never_leaves(start):
    """A TypeError in the caller."""
    worker = start()
    with pytest.raises(TypeError, match="text 1 is int"):
        worker.submit(ask("a", 1))
    assert worker.process_id is None


def test_a_decode_that_fails_fails_the_job_in_fault_alone(start):
    """The others of the same step are embedded without it."""
    worker = start()
    worker.open()
    blocker = worker.submit(ask("slow"))
    tickets = [worker.submit(ask(text, is_interactive=True)) for text in ("a", "broken", "c c")]
    assert tickets[0].wait(None).rows[0, 0] == 2
    assert tickets[2].wait(None).rows[0, 0] == 4
    with pytest.raises(DecodeError, match=r"with 1 texts, names \[0\]"):
        tickets[1].wait(None)
    blocker.wait(None)


def test_an_error_that_cannot_be_pickled_still_says_what_it_is(start):
    """It comes as a BackendError."""
    with pytest.raises(BackendError, match="Local: a class of its own"):
        words(start(), "unpicklable")


def test_an_error_in_on_batch_ends_the_call(start):
    """It comes out, and what was left of the texts is not decoded."""
    counter = Counter()
    worker = start(observer=counter)

    def fail(*_counts):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        worker.submit(ask(*(f"slow {number}" for number in range(400)))).wait(fail)
    time.sleep(0.3)
    n_steps = len(counter.steps)
    assert words(worker, "a") == [1]
    assert len(counter.steps) <= n_steps + 2
    assert sum(n_texts for n_texts, _ in counter.steps) < 100


# Order


def test_a_small_job_overtakes_a_large_one(start):
    """It is answered while the large one has most of its texts before it."""
    worker = start()
    worker.open()
    large = worker.submit(ask(*(f"slow {number}" for number in range(400))))
    time.sleep(0.1)
    begun = time.monotonic()
    assert words(worker, "a", is_interactive=True) == [1]
    assert time.monotonic() - begun < 1
    assert not large.is_done
    large.cancel()


# What ends the child


@pytest.mark.parametrize("word", ["abort", "exit"])
def test_a_crash_fails_the_job_that_was_decoded_and_no_other(start, word):
    """The error says how it ended; jobs that waited are done by the next child, and so is the next call."""
    counter = Counter()
    worker = start(observer=counter)
    first = worker.open()["pid"]
    blocker = worker.submit(ask("slow"))
    doomed = worker.submit(ask(f"{word} {word}", is_interactive=True))
    waiting = worker.submit(ask(*(f"{number} w" for number in range(50))))
    with pytest.raises(WorkerCrashedError) as caught:
        doomed.wait(None)
    assert caught.value.return_code == (7 if word == "exit" else -signal.SIGABRT if os.name == "posix" else 3)
    assert (waiting.wait(None).rows[:, 0] / 2).tolist() == [2] * 50
    assert blocker.wait(None).rows.shape == (1, 3)
    assert worker.open()["pid"] != first
    assert counter.crashes == [caught.value]


def test_what_came_before_a_crash_is_kept(start):
    """A job that waits between two of its steps goes on where it was, and no text is done twice."""
    counter = Counter()
    worker = start(observer=counter)
    worker.open()
    large = worker.submit(ask(*(f"slow {number}" for number in range(40))))
    while len(counter.steps) < 4:
        time.sleep(0.01)
    with pytest.raises(WorkerCrashedError):
        words(worker, "abort", is_interactive=True)
    assert (large.wait(None).rows[:, 0] / 2).tolist() == [2] * 40
    assert sum(n_texts for n_texts, _ in counter.steps) <= 44


@posix
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGABRT, signal.SIGSTOP, signal.SIGSEGV])
def test_a_signal_from_outside_is_a_crash_too(start, how):
    """A stopped child is seen and killed; a job that was not being decoded is done all the same."""
    worker = start(slow_s=1.0)
    worker.open()
    doomed = worker.submit(ask("slow", is_interactive=True))
    time.sleep(0.3)
    waiting = worker.submit(ask("a"))
    os.kill(worker.process_id, how)
    with pytest.raises(WorkerCrashedError, match="stopped" if how == signal.SIGSTOP else how.name):
        doomed.wait(None)
    assert waiting.wait(None).rows[0, 0] == 2


@posix
def test_a_child_without_a_sign_of_life_is_killed(start, monkeypatch):
    """Where the system does not tell that it was stopped, its silence does."""
    monkeypatch.setattr(process.WorkerProcess, "_is_stopped", lambda _: False)
    monkeypatch.setattr(process, "_N_SILENT", 4)
    worker = start(slow_s=60)
    worker.open()
    doomed = worker.submit(ask("slow"))
    time.sleep(0.2)
    os.kill(worker.process_id, signal.SIGSTOP)
    with pytest.raises(WorkerCrashedError, match="no sign of life for 2 s"):
        doomed.wait(None)


def test_a_decode_without_end_is_killed(start, monkeypatch):
    """It may take many times what those before it took, and no more."""
    monkeypatch.setattr("gguf_embed.engine.breaker._LEAST_S", 0.5)
    worker = start(slow_s=60)
    assert words(worker, "a") == [1]
    with pytest.raises(WorkerCrashedError, match="many times as long"):
        words(worker, "slow")
    assert words(worker, "a") == [1]


def test_a_crash_in_the_tokenizer_is_tried_once_more_and_then_its_jobs_own(start):
    """It may have been another job's doing; the second time it is not."""
    worker = start()
    with pytest.raises(WorkerCrashedError):
        words(worker, "tokenizer-abort")
    assert words(worker, "a") == [1]


def test_three_crashes_in_a_row_are_a_loop(start):
    """Nothing is started for a minute, and the error says why; then it is tried again."""
    now = [0.0]
    worker = start(clock=lambda: now[0])
    for _ in range(3):
        assert worker.trouble is None
        now[0] += 10
        with pytest.raises(WorkerCrashedError):
            words(worker, "abort")
    with pytest.raises(WorkerCrashedError, match=r"crashed 3 times in 90 s.*for 60 s.*SIGABRT|code 3") as caught:
        words(worker, "a")
    assert worker.trouble == str(caught.value)
    now[0] += 61
    assert worker.trouble is None
    assert words(worker, "a") == [1]


def test_crashes_now_and_then_are_no_loop(start):
    """Three in more than ninety seconds are borne."""
    now = [0.0]
    worker = start(clock=lambda: now[0])
    for _ in range(5):
        now[0] += 50
        with pytest.raises(WorkerCrashedError):
            words(worker, "exit")
        assert words(worker, "a") == [1]


def test_a_loop_fails_those_who_wait_too(start):
    """Nobody waits for a child that will not come."""
    worker = start(clock=lambda: 0.0)
    worker.open()
    tickets = [worker.submit(ask(f"abort {number}", is_interactive=True, batch_size=1 + number)) for number in range(5)]
    for ticket in tickets:
        with pytest.raises(WorkerCrashedError):
            ticket.wait(None)


# Opening


def test_a_model_that_does_not_load_is_an_error_and_no_crash(start, tmp_path):
    """Every job that waits gets it, and the next one tries again."""
    worker = start(refuse=tmp_path)
    tickets = [worker.submit(ask("a")) for _ in range(3)]
    for ticket in tickets:
        with pytest.raises(ModelLoadError, match="it is no model"):
            ticket.wait(None)
    for _ in range(4):
        with pytest.raises(ModelLoadError):
            worker.open()
    assert worker.trouble is None


def test_a_crash_while_it_opens_fails_those_who_wait(start):
    """And three of them are a loop."""
    worker = start(abort=True)
    for _ in range(3):
        with pytest.raises(WorkerCrashedError, match=r"SIGABRT|code 3"):
            words(worker, "a")
    with pytest.raises(WorkerCrashedError, match="3 times"):
        worker.open()


def test_jobs_that_come_while_it_opens_wait(start):
    """They are done in order when it is there."""
    worker = start(sleep_s=0.3)
    tickets = [worker.submit(ask("w " * n)) for n in (1, 2, 3)]
    assert [ticket.wait(None).rows[0, 0] / 2 for ticket in tickets] == [1, 2, 3]


# Ending


def test_stopping_gives_the_memory_back_and_the_next_job_starts_again(start):
    """The child ends at once; jobs that were not done are told."""
    worker = start()
    first = worker.open()["pid"]
    ticket = worker.submit(ask(*(f"slow {number}" for number in range(100))))
    time.sleep(0.1)
    begun = time.monotonic()
    worker.stop()
    assert time.monotonic() - begun < 2
    with pytest.raises(ClosedError):
        ticket.wait(None)
    assert worker.process_id is None
    assert words(worker, "a") == [1]
    assert worker.open()["pid"] != first
    assert worker.trouble is None


def test_closing_ends_it_for_good(start):
    """Twice is allowed, also while it opens; then there is ClosedError."""
    worker = start(sleep_s=30)
    opening = worker.opening()
    time.sleep(0.2)
    begun = time.monotonic()
    worker.close()
    worker.close()
    assert time.monotonic() - begun < 2
    with pytest.raises(ClosedError):
        opening.result()
    with pytest.raises(ClosedError):
        worker.submit(ask("a"))


def test_what_the_child_logs_is_logged_here(start, caplog):
    """By its own logger's name and level."""
    caplog.set_level(logging.WARNING, logger="gguf_embed")
    worker = start()
    with pytest.raises(WorkerCrashedError):
        words(worker, "exit")
    assert "ended with code 7" in caplog.text


@posix
def test_a_child_ends_with_its_parent(tmp_path):
    """Also one that is killed, whose child could not be told."""
    code = (
        f"import sys; sys.path[:0] = [{str(Path(fake_session.__file__).parent)!r}]\n"
        "import fake_session, os, functools\n"
        "from gguf_embed.engine.worker import Worker\n"
        "worker = Worker(fake_session.opener, name='x'); worker.open(); print(worker.process_id, flush=True)\n"
        "import time; time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"{child} is still there")


@posix
def test_a_worker_is_not_shared_with_a_forked_process(start):
    """Its threads did not come along: an error, not a wait without end."""
    worker = start()
    worker.open()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            worker.submit(ask("a"))
        except BackendError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert b"forked" in os.read(reader, 4096)
    os.close(reader)
    assert words(worker, "a") == [1]
