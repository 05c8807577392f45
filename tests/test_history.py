"""The history of functions that are called on request: one kind of record for all, and the same in every store."""

from __future__ import annotations

import asyncio

import pytest

import panel_schedule as package
from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.coordination.history import JOB
from panel_schedule.decorators import Front
from panel_schedule.errors import RunCancelled, RunTimedOut
from panel_schedule.functions.run import RunRecord, RunState
from panel_schedule.runtime import Runtime
from panel_schedule.serialize.codec import encode
from panel_schedule.stores.file.store import FileStore
from servers import eventually


def front_of(store, **options):
    config = Config({})
    config.store = store
    for name, value in options.items():
        setattr(config, name, value)
    return Front(Runtime(config, SystemClock()))


@pytest.fixture(params=["memory", "file"])
def ps(request, tmp_path):
    front = front_of("memory://" if request.param == "memory" else f"file://{tmp_path / 'store'}", history_limit=5)
    yield front
    front._runtime.grace = 0.0
    front._runtime.close()


def states(function):
    return [record.state for record in function.history]


def test_the_runs_of_a_job_are_its_history(ps):
    """Newest first, with what went wrong; and all of them are records as those of tasks are."""
    job = ps.background(executor="thread", name="job")(lambda number: 1 / number)
    run = job.submit(2)
    assert 0.5 == run.result(10)
    failed = job.submit(0)
    with pytest.raises(ZeroDivisionError):
        failed.result(10)
    eventually(lambda: len(job.history) == 2)
    last, first = job.history
    assert (RunState.FAILED, failed.id, f"request {failed.id}") == (last.state, last.id, last.key)
    assert "division by zero" in last.error
    assert (RunState.SUCCEEDED, run.id, "") == (first.state, first.id, first.error)
    assert first.queued_at <= first.started_at <= first.finished_at
    assert {RunRecord} == {type(record) for record in job.history}


def test_what_was_cancelled_is_in_the_history(ps):
    job = ps.background(executor="loop", name="job")(hangs)
    run = job.submit()
    run.cancel("too late")
    with pytest.raises(RunCancelled):
        run.result(10)
    eventually(lambda: states(job) == [RunState.CANCELLED])
    assert "too late" == job.history[0].reason


def test_a_run_that_was_tried_again_is_one_line_with_the_number_of_its_attempts(ps):
    attempts = []

    @ps.background(executor="thread", retry=package.Retry(3, backoff=0.001))
    def job():
        attempts.append(package.current_run().attempt)
        if len(attempts) < 3:
            raise OSError("not yet")

    job.submit().result(10)
    eventually(lambda: [(RunState.SUCCEEDED, 3)] == [(record.state, record.attempt) for record in job.history])


def test_a_history_is_as_long_as_that_of_a_task(ps):
    job = ps.background(executor="thread", name="job")(lambda number: number)
    memo = ps.memoize(name="memo")(lambda number: number)
    runs = [job.submit(number) for number in range(8)]
    assert list(range(8)) == [run.result(10) for run in runs]
    assert list(range(8)) == [memo(number) for number in range(8)]
    eventually(lambda: 5 == len(job.history))
    assert [f"memo({number})" for number in (7, 6, 5, 4, 3)] == [record.key for record in memo.history]


def test_the_computations_of_a_memoized_function_are_its_history(ps):
    """One line for each that was computed, however many have asked; none for what was at hand."""
    memo = ps.memoize(name="memo", stale_if_error=False)(lambda number: 1 / number)
    assert [0.5] * 3 == [memo(2) for _ in range(3)]
    with pytest.raises(ZeroDivisionError):
        memo(0)
    last, first = memo.history
    assert ("memo(0)", RunState.FAILED) == (last.key, last.state)
    assert "division by zero" in last.error
    assert ("memo(2)", RunState.SUCCEEDED, "") == (first.key, first.state, first.error)


def test_a_timeout_is_one_in_the_history(ps):
    memo = ps.memoize(name="memo", timeout=0.05)(hangs)
    job = ps.background(executor="loop", name="job", timeout=0.05)(hangs)
    for run in (memo.submit(), job.submit()):
        with pytest.raises(RunTimedOut):
            run.result(10)
    eventually(lambda: ([RunState.TIMED_OUT],) * 2 == (states(memo), states(job)))
    assert all("timeout of 0.05 s" in function.history[0].error for function in (memo, job))


def test_a_job_that_is_not_taken_is_in_the_history(tmp_path):
    front = front_of(f"file://{tmp_path / 'store'}", max_queued=1)
    job = front.background(executor="loop", name="job")(hangs)
    runs = [job.submit() for _ in range(2)]
    eventually(lambda: [(RunState.SKIPPED, runs[1].id)] == [(each.state, each.id) for each in job.history])
    front._runtime.grace = 0.0
    front._runtime.close()


def test_what_its_process_leaves_at_its_end_is_in_the_history(tmp_path):
    """A run that nobody goes on with was cancelled: the store says so, as its process says nothing any more."""
    here, there = (FileStore(tmp_path / "store", SystemClock(), server=name) for name in ("here", "there"))
    now = SystemClock().now()
    there.queue.enqueue("r1", "job", now=now, payload=encode(None, "it"), synced=False)
    there.queue.enqueue("r2", "job", now=now, payload=encode(None, "it"), synced=False, durable=True)
    there.close()
    assert [("r1", RunState.CANCELLED)] == [(each.id, each.state) for each in here.history("job", JOB)]
    here.queue.cancel("r2")
    assert ["r2", "r1"] == [each.id for each in here.history("job", JOB)]
    here.close()


def test_other_processes_read_it(tmp_path):
    """It is in the store, and not in a process."""
    one, other = (front_of(f"file://{tmp_path / 'store'}") for _ in range(2))
    functions = [front.background(executor="thread", name="job")(double) for front in (one, other)]
    memos = [front.memoize(name="memo")(double) for front in (one, other)]
    assert 4 == functions[0].submit(2).result(10)
    assert 6 == memos[0](3)
    eventually(lambda: len(functions[1].history) == 1)
    assert functions[0].history == functions[1].history
    assert ["memo(3)"] == [record.key for record in memos[1].history]
    for front in (one, other):
        front._runtime.grace = 0.0
        front._runtime.close()


def double(number):
    return 2 * number


async def hangs():
    await asyncio.sleep(600)
