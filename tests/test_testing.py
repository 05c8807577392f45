"""Virtual time for tests of one's own: what runs when, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import documents
import panel_schedule as ps
from panel_schedule.errors import ScheduleError, TriggerError
from panel_schedule.testing import Schedule, simulate
from panel_schedule.testing import schedule as module
from servers import write_files

PAGE = Path(__file__).parent.parent / "docs" / "testing.md"

pytest_plugins = ["panel_schedule.testing.plugin"]


def of(schedule: Schedule, name: str) -> list[str]:
    """The times and outcomes of a function's runs."""
    return [f"{run.at:%H:%M:%S} {run.state}" for run in schedule.runs if run.name == name]


def test_the_tests_of_the_documentation_pass(tmp_path: Path) -> None:
    write_files(tmp_path, documents.files(PAGE))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    env = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST")}
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert 0 == ended.returncode, ended.stdout + ended.stderr
    assert "6 passed" in ended.stdout


def test_each_run_comes_at_its_time(schedule: Schedule) -> None:
    """And sees that time on the clock; first runs come at once, what is made of others after them."""
    seen = []

    @ps.schedule(period="20m")
    def raw() -> int:
        seen.append(schedule.now)
        return len(seen)

    @ps.schedule(after=raw)
    def doubled() -> int:
        return 2 * raw()

    schedule.advance("1h")
    assert [schedule.clock.now() - timedelta(minutes=minutes) for minutes in (60, 40, 20, 0)] == seen
    assert (4, 8) == (raw(), doubled())
    assert ["00:00:00 succeeded", "00:20:00 succeeded", "00:40:00 succeeded", "01:00:00 succeeded"] == of(
        schedule, "raw"
    )
    assert ["raw", "doubled"] * 4 == [run.name for run in schedule.runs]


def test_all_kinds_of_functions_run_and_are_told(schedule: Schedule) -> None:
    """In threads of this process, wherever they run in production."""
    here = []

    @ps.schedule(period="1h", executor="process")
    def task() -> int:
        here.append(threading.current_thread())
        return os.getpid()

    @ps.schedule(period="1h")
    async def on_a_loop() -> int:
        await asyncio.sleep(0)
        return 1

    @ps.background(executor="process")
    def job() -> int:
        return os.getpid()

    @ps.memoize
    def memo() -> int:
        return os.getpid()

    schedule.begin()
    run = job.submit()
    schedule.settle()
    assert [os.getpid()] * 3 == [task(), run.result(), memo()]
    assert 1 == on_a_loop()
    assert here
    assert {("task", "task"), ("task", "on_a_loop"), ("job", "job"), ("memo", "memo")} == {
        (run.kind, run.name) for run in schedule.runs
    }


def test_a_body_that_waits_for_another_tasks_retry_lets_time_pass(schedule: Schedule) -> None:
    """Who reads a value that is still to come for his own slot waits for it, in virtual time."""
    outcomes = iter([1, ValueError("no"), 2])

    @ps.schedule(period="1h", retry=ps.Retry(2, "10m", "10m"))
    def raw() -> int:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @ps.schedule(period="1h")
    def reader() -> tuple[int, datetime]:
        return raw(), schedule.now  # type: ignore[return-value]

    schedule.advance("90m")
    assert (2, datetime(2026, 1, 1, 1, 10, tzinfo=UTC)) == reader()


def test_a_timeout_needs_no_waiting(schedule: Schedule) -> None:
    """Of an async function: its time is that of the clock, and it is cancelled when that says so."""

    @ps.background(timeout="10m")
    def job() -> None:
        raise ValueError("no")

    @ps.schedule(period="1h", stale_after="90m", first_run="skip")
    def task() -> int:
        raise ValueError("no")

    run = job.submit()
    schedule.advance("2h")
    assert "failed" == run.state
    assert ["01:00:00 failed", "02:00:00 failed"] == of(schedule, "task")


def test_handlers_are_called_and_alerts_are_not_sent(tmp_path: Path) -> None:
    told: list[str] = []

    @ps.schedule(period="1h")
    def task() -> int:
        raise ValueError("no")

    withdraw = ps.alert(f"exec:/usr/bin/touch {tmp_path}/sent", on="failed", after=1, tasks=task)
    try:
        with Schedule() as schedule:
            ps.on("failed", lambda task, run: told.append(task.name))
            schedule.advance("1h")
        assert ["task", "task"] == told
        assert not ps._runtime.handlers["failed"]
        assert ps._runtime.alerts
        assert not list(tmp_path.iterdir())
    finally:
        withdraw()
        ps.cancel_task("task")


def test_nothing_stays() -> None:
    """Values, answers, names, options, tasks and time are those of before; a second schedule begins with nothing."""
    limit = ps.config.history_limit

    @ps.schedule(period="1h", first_run="skip", default="none")
    def task() -> str:
        return "a value"

    @ps.memoize
    def memo() -> float:
        return time.perf_counter()

    try:
        task.refresh().result()
        ps.store["name"] = "before"
        answer, history, entry = memo(), task.history, task.entry
        for _ in range(2):
            with Schedule() as schedule:
                ps.config.history_limit = limit + 1
                assert ("none", None, []) == (task(), task.entry, task.history)
                assert "name" not in ps.store
                assert answer != memo()

                @ps.schedule(period="1h")
                def another() -> int:
                    return 1

                schedule.advance("1h")
                task.pause()
                ps.store["name"] = "within"
            assert ("a value", entry, history) == (task(), task.entry, task.history)
            assert "idle" == task.status.state
            assert "before" == ps.store["name"]
            assert "another" not in ps.tasks
            assert limit == ps.config.history_limit
            assert answer == memo()
    finally:
        del ps.store["name"]
        ps.cancel_task("task")


def test_a_test_that_fails_leaves_nothing_either() -> None:
    def fail() -> None:
        with Schedule():
            ps.schedule(period="1h", name="broken")(lambda: 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "broken" not in ps.tasks


async def test_within_a_coroutine(schedule: Schedule) -> None:
    """Its loop stands still meanwhile, and no server begins on it."""

    @ps.schedule(period="1h")
    async def task() -> int:
        await asyncio.sleep(0.001)
        return 1

    schedule.advance("1h")
    assert (1, 2) == (task(), len(schedule.runs))


def test_a_zone_of_ones_own() -> None:
    """Naive times are of that zone, and runs are told in it."""
    with Schedule(datetime(2026, 3, 29), "Europe/Berlin") as schedule:

        @ps.schedule(period="1h", first_run="skip")
        def task() -> int:
            return 1

        schedule.run_until(datetime(2026, 3, 29, 4))
        assert ["01:00:00 succeeded", "03:00:00 succeeded", "04:00:00 succeeded"] == of(schedule, "task")
        assert "<Schedule at 2026-03-29 04:00:00 CEST, 3 runs>" == repr(schedule)


def test_days_pass_in_an_instant() -> None:
    """Those tasks run that are asked for, with what they are made of, and no others."""
    calls = []

    @ps.schedule(period="1h", first_run="skip")
    def other() -> None:
        calls.append("other")

    @ps.schedule(period="6h", first_run="skip")
    def raw() -> int:
        return 1

    @ps.schedule(after=raw, first_run="skip")
    def made() -> int:
        return raw() + 1

    try:
        runs = simulate(made, start=datetime(2026, 1, 1, tzinfo=UTC), until=datetime(2026, 1, 8, tzinfo=UTC))
        assert (28, 28) == tuple(sum(run.name == name for run in runs) for name in ("raw", "made"))
        assert ([], None, None) == (calls, raw(), made())
        assert "Thu 2026-01-01 06:00:00 UTC  raw  succeeded" == str(runs[0])
    finally:
        for name in ("made", "raw", "other"):
            ps.cancel_task(name)


def test_a_run_is_one_line(schedule: Schedule) -> None:
    @ps.schedule(period="1h", retry=ps.Retry(2, "1s"), first_run="skip")
    def task() -> int:
        raise ValueError("no")

    schedule.advance("61m")
    assert "Thu 2026-01-01 01:00:00 UTC  task  failed (attempt 2): ValueError: no" == str(schedule.runs[0])


def test_what_cannot_be_is_said(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cause and the remedy; and a function that does not end is no endless test."""
    with pytest.raises(ScheduleError, match="'Mars', which is no IANA time zone"):
        Schedule(tz="Mars")
    with pytest.raises(ScheduleError, match="time does not run back to 2025-01-01"):
        schedule.run_until(datetime(2025, 1, 1, tzinfo=UTC))
    with pytest.raises(TriggerError):
        schedule.advance("soon")
    schedule.begin()
    with pytest.raises(ScheduleError, match=r"begin\(at\) comes before advance"):
        schedule.begin(datetime(2027, 1, 1, tzinfo=UTC))
    function: Any = len
    with pytest.raises(ScheduleError, match=r"takes tasks, as ps.schedule makes them, and <built-in function len>"):
        simulate(function, start=datetime(2026, 1, 1), until=datetime(2026, 1, 2))
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    ended = threading.Event()
    ps.schedule(period="1h", name="endless", first_run="skip")(lambda: ended.wait(60))
    try:
        with pytest.raises(ScheduleError, match=r"has still not ended after 0\.01 s"):
            schedule.advance("1h")
    finally:
        ended.set()
    with Schedule() as closed:
        pass
    with pytest.raises(ScheduleError, match="This schedule is closed"):
        closed.advance("1h")
