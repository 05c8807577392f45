"""Scheduled tasks in worker processes: ``@ps.schedule(executor="process")``."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import psutil
import pytest

import panel_schedule
from core import PATIENCE, messages
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import RunCancelled, RunCrashed, RunTimedOut
from panel_schedule.functions.run import RunState
from panel_schedule.functions.task import Retry
from panel_schedule.runtime import Runtime


def workers() -> list[psutil.Process]:
    """Its worker processes; others are those of other tests."""
    return [each for each in psutil.Process().children() if "_worker.py" in " ".join(each.cmdline())]


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    return "memory://" if request.param == "memory" else f"file://{tmp_path / 'store'}"


@pytest.fixture
def ps(store):
    """The package with real processes, on either store."""
    config = Config({})
    config.store, config.max_processes, config.max_threads = store, 4, 4
    runtime = Runtime(config)
    yield Front(runtime)
    runtime.grace = 0.0
    runtime.close()
    assert not workers()


def process_task(ps, name, function, **policy):
    return ps.schedule(period="1h", executor="process", first_run="background", name=name, **policy)(function)


def begin(ps):
    """Start the clocks, as a server does."""
    ps._runtime.started = True
    ps._runtime._begin()


def when(condition, timeout: float = PATIENCE) -> None:
    """Wait for what a worker process, which gives no signal, has done."""
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_its_value_is_the_tasks(ps):
    """A large one, too; computed elsewhere."""

    def numbers():
        return {"pid": os.getpid(), "data": np.arange(1_000_000)}

    task = process_task(ps, "numbers", numbers)
    run = task.refresh()
    value = run.result(PATIENCE)
    assert os.getpid() != value["pid"]
    assert 499_999_500_000 == value["data"].sum() == task()["data"].sum()
    assert (RunState.SUCCEEDED, 1, run.id) == (run.state, task.entry.version, task.entry.run_id)


@pytest.mark.parametrize("form", ["generator", "async generator", "publish"])
def test_each_partial_is_a_version(ps, tmp_path, form):
    go = tmp_path / "go"

    def wait():
        while not go.exists():
            time.sleep(0.002)

    def generator():
        yield 1
        wait()
        yield 2
        return 3

    async def async_generator():
        yield 1
        wait()
        yield 2
        yield 3

    def publish():
        run = panel_schedule.current_run()
        run.publish(1)
        wait()
        run.publish(2)
        return 3

    function = {"generator": generator, "async generator": async_generator, "publish": publish}[form]
    task = process_task(ps, "task", function)
    run = task.refresh()
    when(lambda: task() == 1)
    assert (1, RunState.RUNNING, False) == (task.entry.version, run.state, task.entry.final)
    go.touch()
    assert 3 == run.result(PATIENCE) == task()
    assert task.entry.final
    assert 3 == task.entry.version


def test_an_async_function_has_a_loop_of_its_own(ps):
    async def work():
        import asyncio

        await asyncio.sleep(0)
        return os.getpid()

    assert os.getpid() != process_task(ps, "work", work).refresh().result(PATIENCE)


def test_progress_reaches_the_run(ps, tmp_path):
    go = tmp_path / "go"

    def work():
        panel_schedule.progress(1, 4, "a quarter")
        while not go.exists():
            time.sleep(0.002)

    run = process_task(ps, "work", work).refresh()
    when(lambda: (25, "a quarter") == (run.percent, run.message))
    go.touch()
    run.result(PATIENCE)
    assert 100 == run.percent


def test_cancel_ends_it_and_the_last_value_stays(ps, tmp_path):
    begun, cleaned, first = tmp_path / "begun", tmp_path / "cleaned", tmp_path / "first"

    def work():
        if not first.exists():
            first.touch()
            return "good"
        try:
            begun.touch()
            time.sleep(60)
        finally:
            cleaned.touch()

    task = process_task(ps, "work", work)
    task.refresh().result(PATIENCE)
    run = task.refresh()
    when(begun.exists)
    run.cancel()
    assert RunState.CANCELLED == run.state
    with pytest.raises(RunCancelled):
        run.result()
    when(cleaned.exists)
    assert "good" == task()
    when(lambda: not task.status.running)


def test_a_timeout_is_tried_again(ps, tmp_path):
    def slow():
        attempt = panel_schedule.current_run().attempt
        if attempt < 2:
            time.sleep(60)
        return attempt

    task = process_task(ps, "slow", slow, timeout="1s", retry=Retry(2, backoff="10ms"))
    assert 2 == task.refresh().result(PATIENCE)

    never = process_task(ps, "never", lambda: time.sleep(60), timeout="300ms")
    with pytest.raises(RunTimedOut, match=r"Task 'never': it did not finish within its timeout of 0.3 s"):
        never.refresh().result(PATIENCE)


def test_a_crash_is_told_and_the_last_value_stays(ps, tmp_path, caplog):
    die = tmp_path / "die"

    def work():
        if die.exists():
            os._exit(3)
        return "good"

    failed, told = [], threading.Event()
    ps.on("failed", lambda task, run: (failed.append((task.name, run.state)), told.set()))
    task = process_task(ps, "work", work)
    task.refresh().result(PATIENCE)
    die.touch()
    run = task.refresh()
    with pytest.raises(RunCrashed, match="Task 'work': its worker process ended with exit code 3"):
        run.result(PATIENCE)
    assert (RunState.CRASHED, "good", True) == (run.state, task(), task.status.stale)
    assert told.wait(PATIENCE)
    assert [("work", RunState.CRASHED)] == failed
    assert any("the last good value stays" in message for message in messages(caplog))

    die.unlink()
    assert "good" == task.refresh().result(PATIENCE)
    assert not task.status.stale


def test_an_error_keeps_its_traceback(ps):
    def divide():
        return 1 / 0

    run = process_task(ps, "divide", divide).refresh()
    with pytest.raises(ZeroDivisionError):
        run.result(PATIENCE)
    assert "return 1 / 0" in run.traceback


def test_a_read_waits_for_the_value_of_the_same_slot(ps, tmp_path):
    """Invariant 9, over a pipe."""
    go = tmp_path / "go"

    def upstream():
        while not go.exists():
            time.sleep(0.002)
        return "new"

    raw = process_task(ps, "raw", upstream)
    reader = process_task(ps, "reader", lambda: f"read {raw()}")
    begin(ps)
    when(lambda: ps.tasks["reader"].status.running)
    go.touch()
    assert "read new" == reader.wait_ready(PATIENCE)


def test_waiting_readers_lend_their_places(ps, tmp_path):
    """Four of them on four places do not keep out what they wait for."""
    go = tmp_path / "go"
    readers = []

    def upstream():
        while len(list(tmp_path.glob("reader *"))) < 4 and not go.exists():
            time.sleep(0.002)
        return 7

    def reading(number):
        def read():
            (tmp_path / f"reader {number}").touch()
            return raw() + number

        return read

    raw = process_task(ps, "raw", upstream)
    readers = [process_task(ps, f"reader{number}", reading(number)) for number in range(4)]
    begin(ps)
    assert [7, 8, 9, 10] == [reader.wait_ready(PATIENCE) for reader in readers]
    assert not go.exists()


def test_needs_and_after(ps):
    """Each is run after what it depends on, in whichever process that was."""
    raw = process_task(ps, "raw", lambda: 1)
    needing = process_task(ps, "needing", lambda: raw() + 1, needs=[raw])

    @ps.schedule(after=[needing], executor="process", first_run="background")
    def following():
        return needing() + 1

    begin(ps)
    assert 3 == following.wait_ready(PATIENCE)
    assert (1, 2) == (raw(), needing())


def test_it_writes_and_reads_the_users_store(ps):
    ps.store["rate"] = 2
    store = ps.store

    def work():
        store["doubled"] = store["rate"] * 2
        return sorted(store)

    assert ["doubled", "rate"] == process_task(ps, "work", work).refresh().result(PATIENCE)
    assert 4 == ps.store["doubled"]


def test_a_stop_cancels_it_and_that_is_no_failure(ps, tmp_path, caplog):
    begun = tmp_path / "begun"

    def work():
        begun.touch()
        time.sleep(60)

    failed = []
    ps.on("failed", lambda task, run: failed.append(run))
    run = process_task(ps, "work", work).refresh()
    when(begun.exists)
    ps._runtime.grace = 0.0
    ps._runtime.close()
    assert RunState.CANCELLED == run.state
    assert ([], []) == (failed, messages(caplog))
