"""engine/schedule.py: what is tokenized and decoded next."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_embed.engine.schedule import N_TEXTS_AHEAD, N_TEXTS_GO, Job, Schedule, StepSize

SIZE = StepSize(n_batches=1, n_tokens=8, n_texts=4)
numbers = itertools.count()


def job_of(lengths, **known):
    """A job whose texts have these lengths in tokens."""
    return Job(job_id=next(numbers), texts=["x " * n for n in lengths], names=range(len(lengths)), **known)


def tokenize(schedule):
    """Tokenize all that may be."""
    while (found := schedule.next_to_tokenize()) is not None:
        job, which = found
        schedule.tokenized(job, which, [np.zeros(len(text.split()), dtype=np.int32) for text in job.texts[which]])


def cost_of(prompt):
    return lambda ids: max(1, len(ids) - len(prompt))


def steps_of(schedule, size=SIZE):
    """Everything, step by step."""
    found = []
    while True:
        tokenize(schedule)
        step = schedule.take(cost_of, size)
        if step is None:
            return found
        found.append(step)


def schedule_of(*jobs):
    schedule = Schedule()
    for job in jobs:
        schedule.add(job)
    return schedule


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_every_text_comes_exactly_once(wanted, n_batches):
    """Whatever the jobs and the step, each text is in one step, and a step holds what it may."""
    jobs = [job_of(lengths, is_interactive=small) for lengths, small in wanted]
    size = StepSize(n_batches=n_batches, n_tokens=8, n_texts=4)
    steps = steps_of(schedule_of(*jobs), size)
    came = [(job.job_id, position) for step in steps for job, positions in step.parts for position in positions]
    assert sorted(came) == sorted((job.job_id, at) for job in jobs for at in range(len(job.texts)))
    for step in steps:
        assert len(step.tokens) == sum(len(positions) for _, positions in step.parts)
        assert len(step.tokens) <= 4 * n_batches
        assert step.n_tokens <= 8 * n_batches or len(step.tokens) == 1


def test_small_jobs_go_first_and_together():
    """Interactive texts of several jobs share a step that comes before the large job's next one."""
    large, first, second = job_of([4] * 10), job_of([2], is_interactive=True), job_of([3], is_interactive=True)
    step = steps_of(schedule_of(large, first, second))[0]
    assert [job for job, _ in step.parts] == [first, second]


def test_a_large_job_gets_on_beside_many_small_ones():
    """Of four steps one is the large job's, however many small ones there are."""
    large = job_of([8] * 5)
    steps = steps_of(schedule_of(large, *(job_of([8], is_interactive=True) for _ in range(12))))
    turns = [index for index, step in enumerate(steps[:12]) if step.parts[0][0] is large]
    assert turns == [3, 7, 11]


def test_large_jobs_get_on_side_by_side():
    """A later large job does not wait for the end of an earlier one."""
    first, second = job_of([8] * 6), job_of([8] * 6)
    order = [step.parts[0][0] for step in steps_of(schedule_of(first, second))]
    assert order[:4].count(first) == order[:4].count(second) == 2


def test_the_last_texts_of_one_large_job_share_a_step_with_another():
    """No step is half empty while somebody waits."""
    first, second = job_of([3, 3, 2]), job_of([3] * 4)
    assert sum(step.n_tokens for step in steps_of(schedule_of(first, second))[:2]) >= 14


def test_other_prompts_and_batch_sizes_are_not_mixed():
    """A step has one prompt, and a batch_size counts for its own job alone."""
    jobs = [job_of([2] * 3, prompt="ab"), job_of([2] * 3), job_of([2] * 3, batch_size=1)]
    steps = steps_of(schedule_of(*jobs))
    assert all(len({job.prompt for job, _ in step.parts}) == 1 for step in steps)
    assert [len(step.tokens) for step in steps if step.parts[0][0] is jobs[2]] == [1, 1, 1]


def test_a_shared_prompt_costs_nothing():
    """What a prompt's texts share does not count against the step."""
    assert len(steps_of(schedule_of(job_of([6] * 4, prompt="abcd")))) == 1
    assert len(steps_of(schedule_of(job_of([6] * 4)))) == 4


def test_a_cancelled_job_is_forgotten():
    """What of it is tokenized later is dropped."""
    job = job_of([1] * (N_TEXTS_GO + 5))
    schedule = schedule_of(job)
    found = schedule.next_to_tokenize()
    assert schedule.remove(job.job_id) is job
    schedule.tokenized(job, found[1], [np.zeros(1, dtype=np.int32)] * N_TEXTS_GO)
    assert schedule.take(cost_of, SIZE) is None
    assert schedule.remove(job.job_id) is None
    assert not job.ready


def test_only_so_much_is_tokenized_ahead():
    """Memory does not grow with a job, and a small one's texts are tokenized before a large one's."""
    large = job_of([1] * (4 * N_TEXTS_AHEAD))
    schedule = schedule_of(large)
    tokenize(schedule)
    assert N_TEXTS_AHEAD <= len(large.ready) < N_TEXTS_AHEAD + N_TEXTS_GO
    other, small = job_of([1] * 300), job_of([1], is_interactive=True)
    schedule.add(other)
    schedule.add(small)
    assert schedule.next_to_tokenize()[0] is small


@pytest.mark.parametrize("batch_size", [None, 2, 100])
def test_a_batch_size_only_makes_steps_smaller(batch_size):
    """It never lifts the session's own limit."""
    assert SIZE.within(batch_size).n_texts == min(4, batch_size or 4)
