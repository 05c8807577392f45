"""``ps.current_run().previous``: the value that a run follows, without a race, wherever it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest

import panel_schedule
from panel_schedule.config import Config
from panel_schedule.coordination.tasks import TASK
from panel_schedule.decorators import Front
from panel_schedule.errors import ScheduleError
from panel_schedule.functions.run import RunState
from panel_schedule.runtime import Runtime
from servers import eventually


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path) -> str:
    return "memory://" if request.param == "memory" else f"file://{tmp_path / 'store'}"


def front(store: str) -> Front:
    config = Config({})
    config.store, config.max_processes, config.max_threads = store, 1, 2
    return Front(Runtime(config))


def close(ps: Front) -> None:
    ps._runtime.grace = 0.0
    ps._runtime.close()


@pytest.fixture
def ps(store) -> Iterator[Front]:
    made = front(store)
    yield made
    close(made)


def task_of(ps: Front, function: Any, **options: Any) -> Any:
    return ps.schedule(period="1h", first_run="skip", name="task", **options)(function)


def functions() -> tuple[Any, Any, Any]:
    """That make their value of the one before; not of a module, whose import would take a worker process seconds."""

    def grow() -> Any:
        return (*(panel_schedule.current_run().previous or ()), panel_schedule.current_run().attempt)

    async def grow_on_loop() -> Any:
        return (*(panel_schedule.current_run().previous or ()), panel_schedule.current_run().attempt)

    def grow_step_by_step() -> Any:
        before = panel_schedule.current_run().previous or ()
        for number in range(2):
            yield (*before, number)
            assert panel_schedule.current_run().previous == (before or None)

    return grow, grow_on_loop, grow_step_by_step


grow, grow_on_loop, grow_step_by_step = functions()

WAYS = {
    "thread": (grow, "thread"),
    "loop": (grow_on_loop, "loop"),
    "process": (grow, "process"),
    "generator": (grow_step_by_step, "thread"),
    "generator in a process": (grow_step_by_step, "process"),
}


@pytest.mark.parametrize(("function", "executor"), WAYS.values(), ids=WAYS.keys())
def test_it_is_the_last_value_of_the_task(ps, function, executor):
    """Its own yields are none, and after them it is what it was."""
    task = task_of(ps, function, executor=executor)
    assert [(1,), (1, 1)] == [task.refresh().result(30) for _ in range(2)]


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_who_asks_after_its_own_first_yield_is_told(ps, executor):
    def late():
        yield 1
        yield panel_schedule.current_run().previous

    run = task_of(ps, late, executor=executor).refresh()
    with pytest.raises(ScheduleError, match=r"has published, or yielded, before it asked .* before the first item"):
        run.result(30)


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_what_an_earlier_attempt_has_yielded_is_a_last_value(ps, executor):
    """As readers see it: what follows it leaves nothing out."""

    def stumble():
        run = panel_schedule.current_run()
        yield [*(run.previous or []), run.attempt]
        if run.attempt == 1:
            raise OSError("away")

    task = task_of(ps, stumble, executor=executor, retry=panel_schedule.Retry(2, backoff="1ms"))
    assert [1, 2] == task.refresh().result(30)


def test_a_failure_leaves_it_as_it_was(ps):
    fails = [False, True, False]

    def function():
        before = panel_schedule.current_run().previous
        if fails.pop(0):
            raise OSError("away")
        return (before or 0) + 1

    task = task_of(ps, function)
    runs = []
    while fails:
        runs.append(task.refresh())
        runs[-1]._completion().result(30)
    assert [RunState.SUCCEEDED, RunState.FAILED, RunState.SUCCEEDED] == [run.state for run in runs]
    assert 2 == task()


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_before_the_first_value_it_is_the_default(ps, executor):
    task = task_of(ps, lambda: panel_schedule.current_run().previous, default=[0], executor=executor)
    assert [0] == task.refresh().result(30)


def test_a_frame_is_the_functions_own_copy(ps):
    def function():
        before = panel_schedule.current_run().previous
        if before is None:
            return pd.DataFrame({"a": [1, 2]})
        before["b"] = 3
        assert before is panel_schedule.current_run().previous
        return len(before.columns)

    task = task_of(ps, function)
    frame = task.refresh().result(30)
    assert 2 == task.refresh().result(30)
    assert ["a"] == list(frame.columns)


def test_a_large_array_is_mapped_for_a_worker_process(ps):
    def function():
        before = panel_schedule.current_run().previous
        return np.zeros(500_000) if before is None else float(before.sum()) + len(before)

    task = task_of(ps, function, executor="process")
    task.refresh().result(30)
    assert 500_000.0 == task.refresh().result(30)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_process_that_has_not_heard_of_the_last_value_follows_it_nevertheless(tmp_path, kind):
    """Of two that share a store: the claim says which version there is."""
    function = grow if kind == "sync" else grow_on_loop
    one, other = (front(f"file://{tmp_path / 'store'}") for _ in range(2))
    try:
        tasks = [task_of(each, function) for each in (one, other)]
        for each in (one, other):
            each._runtime.started = True
            each._runtime._begin()
        assert (1,) == tasks[0].refresh().result(30)
        there = other._runtime.scheduler.states["task"]
        assert eventually(lambda: there.task.known is not None and there.remote is None)  # else it joins that run
        assert (1, 1) == tasks[1].refresh().result(30)
        known = partial(one._runtime.service.store.values.known, TASK, "task")
        assert eventually(lambda: known() is not None and known().value == (1, 1))
        one._runtime.service.store.records._subscribers.clear()
        assert (1, 1, 1) == tasks[1].refresh().result(30)
        assert (1, 1) == known().value
        assert (1, 1, 1, 1) == tasks[0].refresh().result(30)
    finally:
        close(one)
        close(other)


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_job_and_a_memoized_function_have_none(ps, executor):
    def function():
        panel_schedule.current_run().publish(1)
        return panel_schedule.current_run().previous

    assert ps.background(executor=executor, name="job")(function).submit().result(30) is None
    assert ps.memoize(executor=executor, name="memo")(function)() is None


def test_it_is_for_the_function_alone(ps):
    run = task_of(ps, grow).refresh()
    run.result(30)
    with pytest.raises(ScheduleError, match="is for its function, while that runs"):
        run.previous  # noqa: B018


async def test_on_the_loop_of_a_server(store):
    ps = front(store)
    task = task_of(ps, grow_on_loop)
    try:
        assert [(1,), (1, 1)] == [await asyncio.wait_for(task.refresh(), 30) for _ in range(2)]
    finally:
        await asyncio.to_thread(close, ps)
