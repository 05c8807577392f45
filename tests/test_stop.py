"""``ps.stop()``: all that a process has scheduled or started ends, and what comes afterwards begins anew."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from core import PATIENCE
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import NotReady, RegistrationError, ScheduleError
from panel_schedule.functions.run import Run, RunState
from panel_schedule.runtime import Runtime
from servers import Serve, eventually

Make = Callable[..., Front]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """The package as a process has it: ``make()`` in memory, ``make("file")`` on one that all of a test share."""
    with ExitStack() as made:

        def one(store: str = "memory") -> Front:
            config = Config({})
            config.store = "memory://" if store == "memory" else f"file://{tmp_path / 'store'}"
            runtime = Runtime(config)
            runtime.grace = 0.0
            made.callback(runtime.close)
            return Front(runtime)

        yield one


@pytest.fixture(params=["memory", "file"])
def ps(request: pytest.FixtureRequest, make: Make) -> Front:
    return make(request.param)


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """What bodies wait for; set in the end."""
    event = threading.Event()
    yield event
    event.set()


def sleep() -> None:
    time.sleep(60)


async def never() -> None:
    await asyncio.Event().wait()


def begun(run: Run) -> Run:
    eventually(lambda: run.state is RunState.RUNNING)
    return run


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("panel-schedule")]


@pytest.mark.parametrize("where", ["thread", "process", "loop"])
def test_a_job_under_way_is_cancelled(ps: Front, held: threading.Event, where: str) -> None:
    """Wherever it runs; and one that waits for its time."""
    function: Any = {"thread": lambda: held.wait(PATIENCE), "process": sleep, "loop": never}[where]
    job = ps.background(executor=where, name="job")(function)  # type: ignore[call-overload]
    runs = [begun(job.submit()), job.submit_in("1h")]
    ps.stop()
    assert [RunState.CANCELLED] * 2 == [run.state for run in runs]


def test_nothing_is_left_of_it(make: Make) -> None:
    """No thread, and no process."""
    ps, before = make(), threads()
    task = ps.schedule(period="1h", name="task")(lambda: 1)
    job = ps.background(name="job")(len)
    assert (1, 2) == (task.wait_ready(PATIENCE), job.submit([1, 2]).result(PATIENCE))
    ps.stop()
    eventually(lambda: set(threads()) <= set(before))
    assert not [child for child in psutil.Process().children() if "_worker.py" in " ".join(child.cmdline())]


def test_a_durable_job_does_not_come_again(make: Make, held: threading.Event) -> None:
    """It is cancelled for good, and not left to the next process, as at the end of a server."""
    ps = make("file")
    run = begun(ps.background(executor="thread", durable=True, name="job")(lambda: held.wait(PATIENCE)).submit())
    ps.stop()
    job = make("file").background(executor="thread", durable=True, name="job")(lambda: 1)
    assert [(run.id, RunState.CANCELLED)] == [(known.id, known.state) for known in job.runs()]


def test_values_stay(ps: Front) -> None:
    """In the store, and of the task; whose view says that it runs no more."""
    ps.store["name"] = 5
    task = ps.schedule(period="1h", name="task")(lambda: 1)
    task.wait_ready(PATIENCE)
    view = task.view()
    ps.stop()
    assert (5, 1, 1, "removed") == (ps.store["name"], task(), view.value, task.status.state)
    assert [] == list(ps.tasks)
    with pytest.raises(RegistrationError, match="schedule its function again"):
        task.refresh()


@pytest.mark.parametrize("each", [["north"], lambda: ["north"]], ids=["fixed keys", "a function"])
def test_a_family_has_its_last_values_and_begins_anew(ps: Front, each: Any) -> None:
    def defined() -> Any:
        family = ps.schedule(period="1h", name="sales", each=each)(lambda key: key)
        if family.source is not None:
            family.source.wait_ready(PATIENCE)
        family["north"].wait_ready(PATIENCE)
        return family

    before = defined()
    ps.stop()
    assert (["north"], "north") == (list(before), before["north"]())
    assert [] == list(ps.tasks)
    after = defined()
    assert after is not before
    assert ("north", "north") == (after["north"](), before["north"]())


def test_who_waits_for_a_first_value_is_told(make: Make, held: threading.Event) -> None:
    ps = make()
    task = ps.schedule(period="1h", name="task")(lambda: held.wait(PATIENCE))
    begun(task.refresh())
    first = ps._runtime.scheduler.first_value(task)
    ps.stop()
    assert isinstance(first.exception(PATIENCE), NotReady)


def test_what_is_defined_afterwards_begins_anew(ps: Front) -> None:
    """The name is free, jobs and memoized functions are there as before."""
    job = ps.background(executor="thread", name="job")(lambda: 3)
    memo = ps.memoize(name="memo")(lambda: 4)
    ps.schedule(period="1h", name="task")(lambda: 1).wait_ready(PATIENCE)
    assert 4 == memo()
    ps.stop()
    task = ps.schedule(period="1h", name="task")(lambda: 2)
    assert (2, 3, 4) == (task.refresh().result(PATIENCE), job.submit().result(PATIENCE), memo())


async def test_the_clocks_stand_still_and_start_again(ps: Front) -> None:
    """On a loop, where a task starts by itself: after the end its successor does so, too."""
    task = ps.schedule(period="20ms", name="task")(lambda: "first")
    await task.ready(PATIENCE)
    service = ps._runtime.service
    ps.stop()
    assert [False, True, 0] == [service.begun, service.stopping, len(service.timers)]
    fresh = ps.schedule(period="20ms", name="task")(lambda: "fresh")
    async with asyncio.timeout(PATIENCE):
        while fresh() != "fresh":
            await asyncio.sleep(0.01)


def test_again_and_before_anything_it_does_nothing(make: Make) -> None:
    ps = make()
    ps.stop()
    assert ps._runtime._service is None
    ps.store["name"] = 1
    ps.stop()
    ps.stop()
    assert 1 == ps.store["name"]


def test_other_processes_keep_the_task(make: Make) -> None:
    """What is stored of it is theirs as well: only this process has ended."""
    ps, other = make("file"), make("file")
    for each in (ps, other):
        each.schedule(period="1h", name="task")(lambda: 1)
    ps.tasks["task"].wait_ready(PATIENCE)
    ps.stop()
    assert (1, "idle") == (other.tasks["task"].wait_ready(PATIENCE), other.tasks["task"].status.state)


def test_an_alert_ends(make: Make) -> None:
    ps = make()
    ps.alert(lambda message: None, on="failed")
    ps.store["name"] = 1
    ps.stop()
    assert {} == ps._runtime.alerts


@pytest.mark.slow
def test_a_server_refuses_it(serve: Serve) -> None:
    """A page of one visitor does not end what the others look at."""
    server = serve(
        "app.py --setup tasks.py",
        {
            "tasks.py": """
                import panel_schedule as ps

                @ps.schedule(period="50ms", executor="thread")
                def task(numbers=iter(range(10_000))):
                    if (number := next(numbers)) == 1:
                        try:
                            ps.stop()
                        except ps.ScheduleError as error:
                            print("refused:", error, flush=True)
                    elif number == 3:
                        print("goes on", flush=True)
                    return number
            """,
            "app.py": "import panel as pn\npn.pane.Str('hello').servable()",
        },
    )
    server.wait_for("refused: ps.stop() is for notebooks and scripts")
    server.wait_for("goes on")


def test_what_runs_until_it_is_ended_refuses_it(make: Make) -> None:
    """So that ``ps.run_forever()`` does not go on with nothing to do."""
    ps = make()
    ps._runtime.fatal, ps._runtime.started = lambda task, run: None, True
    with pytest.raises(ScheduleError, match="Ctrl-C or SIGTERM"):
        ps.stop()
    ps._runtime.started = False
