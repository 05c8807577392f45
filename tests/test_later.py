"""Background runs that are submitted for later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from core import START, Core, second
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import TriggerError
from panel_schedule.functions.background import Background
from panel_schedule.functions.run import RunState
from panel_schedule.runtime import Runtime
from panel_schedule.testing import VirtualClock
from servers import Serve

CALLED: list[Any] = []


def note(item: Any) -> Any:
    CALLED.append(item)
    return item


@pytest.fixture(autouse=True)
def _nothing_called() -> None:
    CALLED.clear()


@pytest.fixture
def core() -> Iterator[Core]:
    with Core() as core:
        yield core


@pytest.mark.parametrize(
    "submit",
    [
        lambda job: job.submit_in("10m", "a"),
        lambda job: job.submit_in(600, "a"),
        lambda job: job.submit_in(timedelta(minutes=10), item="a"),
        lambda job: job.submit_at(START + timedelta(minutes=10), "a"),
        lambda job: job.submit_at(datetime(2026, 1, 1, 1, 10, tzinfo=ZoneInfo("Europe/Berlin")), "a"),
    ],
)
def test_it_begins_when_it_is_due(core: Core, submit: Callable[[Any], Any]) -> None:
    """Neither before nor later, and until then it waits where everybody sees it."""
    job = core.ps.background(executor="thread")(note)
    run = submit(job)
    core.run_for(599)
    assert ([], RunState.QUEUED, second(600), [run]) == (CALLED, run.state, run.due_at, job.runs())
    core.run_for(1)
    assert (["a"], "a", second(600)) == (CALLED, run.result(), run.started_at)


def test_a_time_that_is_past_is_now(core: Core) -> None:
    run = core.ps.background(executor="thread")(note).submit_at(START - timedelta(days=1), 1)
    core.go()
    assert 1 == run.result()


def test_who_waits_for_a_place_does_not_wait_for_what_comes_later(core: Core) -> None:
    """It is no part of the queue before it is due."""
    held = core.held("job")
    job = core.ps.background(executor="thread")(held)
    later, first = job.submit_in("10m"), job.submit()
    assert (0, 1, 1) == (
        core.runtime.dispatcher.executions.rank(core.runtime.dispatcher.executions.get(later.id)),  # type: ignore[arg-type]
        core.runtime.dispatcher.executions.rank(core.runtime.dispatcher.executions.get(first.id)),  # type: ignore[arg-type]
        core.runtime.dispatcher.executions.waiting,
    )
    core.go()
    held.finish(1)
    assert (RunState.SUCCEEDED, RunState.QUEUED) == (first.state, later.state)


def test_a_cancelled_one_never_begins(core: Core) -> None:
    run = core.ps.background(executor="thread")(note).submit_in("10m", 1)
    run.cancel()
    core.run_for(1200)
    assert ([], RunState.CANCELLED) == (CALLED, run.state)


def test_its_timeout_and_retries_begin_with_it(core: Core) -> None:
    """And a retry waits no longer than ever."""
    outcomes = iter([ValueError("no"), 1])

    def flaky() -> int:
        CALLED.append(core.clock.now())
        if isinstance(outcome := next(outcomes), Exception):
            raise outcome
        return outcome

    job = core.ps.background(executor="thread", timeout="5s", retry=1)(flaky)
    run = job.submit_in("10m")
    core.run_for(700)
    assert (1, second(600)) == (run.result(), CALLED[0])
    assert second(610) > CALLED[1]


def test_it_shares_no_result_with_those_who_ask_now(core: Core) -> None:
    """Of a function whose equal calls are one: they would have to wait for it."""
    job = core.ps.background(executor="thread", ttl="1h")(note)
    later, now = job.submit_in("10m", "a"), job.submit("a")
    core.go()
    assert ("a", RunState.QUEUED) == (now.result(), later.state)
    core.run_for(600)
    assert (["a", "a"], "a") == (CALLED, later.result())


@pytest.mark.parametrize("down", [5, 20])
def test_a_durable_one_survives_a_restart(tmp_path: Path, down: int) -> None:
    """It begins when it is due, or with the next server where none was there then; and it counts as one attempt."""
    clock = VirtualClock(START)

    @contextmanager
    def server() -> Iterator[tuple[Runtime, Background[Any, Any]]]:
        runtime = Runtime(Config({"PANEL_SCHEDULE_STORE": f"file://{tmp_path}/store"}), clock)
        job = Front(runtime).background(executor="thread", durable=True, name="job")(note)
        runtime.scheduler.begin()
        runtime.dispatcher.follower.recover()
        try:
            yield runtime, job
        finally:
            runtime.close()

    with server() as (_, job):
        id = job.submit_in("10m", "a").id
    clock.advance(timedelta(minutes=down))
    with server() as (runtime, _):
        run = runtime.dispatcher.find(id)
        assert run is not None
        if down < 10:
            runtime.service.tick()
            assert ([], RunState.QUEUED, second(600)) == (CALLED, run.state, run.due_at)
            clock.advance("5m")
            runtime.service.tick()
        assert ("a", ["a"], 1) == (run.result(30), CALLED, run.attempt)


@pytest.mark.parametrize(
    ("submit", "message"),
    [
        (
            lambda job: job.submit_at(datetime(2026, 1, 1), 1),
            r"Job 'note': submit_at\(\): its time has no timezone: datetime.*. Add one",
        ),
        (lambda job: job.submit_at("6:00", 1), r"its time has to be an aware datetime, not '6:00'"),
        (
            lambda job: job.submit_in("soon", 1),
            r"Job 'note': submit_in\(\) takes a period such as '10m', seconds or a timedelta\. .*'soon'",
        ),
        (lambda job: job.submit_in("-5m", 1), r"submit_in\(\) takes a period"),
        (lambda job: job.submit_in(10**12, 1), r"submit_in\(\) takes a period"),
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused_at_once(core: Core, submit: Callable[[Any], Any], message: str) -> None:
    job = core.ps.background(executor="thread")(note)
    with pytest.raises(TriggerError, match=message):
        submit(job)
    with pytest.raises(TypeError, match="missing a required argument"):
        job.submit_in("5m")
    assert [] == job.runs()


def test_functions_in_worker_processes_submit_for_later_too(serve: Serve) -> None:
    tasks = """
        import panel_schedule as ps
        from datetime import UTC, datetime, timedelta

        @ps.background
        def later(item):
            print("later", item, flush=True)

        @ps.schedule(period="1h", executor="process")
        def task():
            later.submit_in(0.2, "in")
            later.submit_at(datetime.now(UTC) + timedelta(seconds=0.2), "at")
            return 1
    """
    server = serve("app.py --setup tasks.py", {"app.py": "", "tasks.py": tasks})
    server.wait_for("later in")
    server.wait_for("later at")
