"""``ps.schedule_task`` and ``ps.cancel_task`` mean what Panel's pair means."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from core import PATIENCE, START, messages, second
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import RegistrationError, ScheduleError
from panel_schedule.runtime import Runtime


@pytest.fixture
def berlin(monkeypatch):
    """A machine in Berlin, two hours ahead of UTC in summer."""
    before = os.environ.get("TZ")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    if before is None:
        monkeypatch.delenv("TZ")
    else:
        monkeypatch.setenv("TZ", before)
    time.tzset()


def local(instant):
    """As ``datetime.now()`` would say it: naive, in the machine's own zone."""
    return instant.astimezone().replace(tzinfo=None)


def noting(core):
    """A callback, and when it ran."""
    ran = []
    return (lambda: ran.append(core.clock.now())), ran


# ------------------------------------------------------------ period


def test_a_period_runs_at_once_and_then_at_its_rate(core):
    """As Panel's: the first time when it is scheduled."""
    callback, ran = noting(core)
    core.begin()
    core.clock.advance(0.3)
    core.ps.schedule_task("periodic", callback, period="0.5s")
    core.go()
    core.run_for(1)

    assert [second(0.3), second(0.8), second(1.3)] == ran


def test_a_period_counts_from_its_date(core):
    """With `at`, nothing before that."""
    callback, ran = noting(core)
    core.ps.schedule_task("periodic", callback, period=timedelta(seconds=10), at=local(second(7)))
    core.begin()
    core.run_for(30)

    assert [second(7), second(17), second(27)] == ran


def test_a_period_whose_date_has_passed_goes_on_from_there(core):
    """It keeps the rhythm, and does not catch up on the past one by one."""
    callback, ran = noting(core)
    core.ps.schedule_task("periodic", callback, period="1h", at=local(START - timedelta(minutes=30)))
    core.begin()
    core.run_for(3600)

    assert [second(1800)] == ran[-1:]
    assert len(ran) <= 2


def test_a_stall_gives_one_late_run(core):
    """Not ten in a row, as Panel's (section 4, traps)."""
    callback, ran = noting(core)
    core.ps.schedule_task("periodic", callback, period="200ms")
    core.begin()
    core.advance(2.1)

    assert [second(0), second(2.1)] == ran


@pytest.mark.parametrize("period", ["soon", "0s", 0, -1, "5 parsecs"])
def test_a_period_that_means_nothing_is_refused(core, period):
    """Panel takes "5 parsecs" for 0 seconds."""
    with pytest.raises(ScheduleError, match="period"):
        core.ps.schedule_task("periodic", print, period=period)
    assert {} == dict(core.ps.tasks)


# ------------------------------------------------------------ at


def test_a_naive_date_is_local_time(core, berlin):
    """Once, at that time, and then the task is gone."""
    callback, ran = noting(core)
    core.begin()
    core.ps.schedule_task("appointment", callback, at=datetime(2026, 1, 1, 1, 0, 30))
    core.run_for(60)

    assert [second(30)] == ran
    assert {} == dict(core.ps.tasks)


def test_an_aware_date_is_what_it_says(core, berlin):
    """In any zone."""
    callback, ran = noting(core)
    core.begin()
    core.ps.schedule_task("appointment", callback, at=second(30))
    core.run_for(60)

    assert [second(30)] == ran


def test_an_iterator_gives_local_dates_one_by_one(core, berlin):
    """As late as possible, and then the task is gone."""
    callback, ran = noting(core)
    core.begin()
    core.ps.schedule_task("appointments", callback, at=iter([local(second(n)) for n in (5, 8, 13)]))
    core.run_for(10)
    meanwhile = list(core.ps.tasks)
    core.run_for(10)

    assert [second(5), second(8), second(13)] == ran
    assert (["appointments"], []) == (meanwhile, list(core.ps.tasks))


def test_a_callable_gets_and_gives_naive_utc(core, berlin):
    """The one place where Panel means UTC."""
    callback, ran = noting(core)
    asked = []

    def at(now):
        asked.append(now)
        return now + timedelta(seconds=10) if len(asked) <= 2 else None

    core.begin()
    core.ps.schedule_task("computed", callback, at=at)
    core.run_for(60)

    assert [second(10), second(20)] == ran
    assert datetime(2026, 1, 1) == asked[0]
    assert {} == dict(core.ps.tasks)


def test_a_callable_may_give_aware_dates(core, berlin):
    """Panel takes whatever time zone off them; here it counts."""
    callback, ran = noting(core)
    dates = iter([second(10).astimezone(), None])
    core.begin()
    core.ps.schedule_task("computed", callback, at=lambda now: next(dates))
    core.run_for(60)

    assert [second(10)] == ran


def test_a_callable_that_raises_is_asked_again(core, caplog):
    """It is logged, and the task stays (section 4, traps)."""
    callback, ran = noting(core)
    answers = iter([datetime(2026, 1, 1, 0, 0, 10), OSError("calendar"), datetime(2026, 1, 1, 0, 1), None])

    def at(now):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    core.begin()
    core.ps.schedule_task("computed", callback, at=at)
    core.run_for(20)
    meanwhile = list(core.ps.tasks)
    core.run_for(60)

    assert (["computed"], [second(10), second(60)]) == (meanwhile, ran)
    assert any("'computed'" in message for message in messages(caplog))


def test_a_callable_that_raises_at_first_is_asked_again(core):
    """The task is not forgotten before it has begun."""
    callback, ran = noting(core)
    answers = iter([OSError("calendar"), datetime(2026, 1, 1, 0, 1), None])

    def at(now):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    core.begin()
    core.ps.schedule_task("computed", callback, at=at)
    meanwhile = list(core.ps.tasks)
    core.run_for(90)

    assert (["computed"], [second(60)]) == (meanwhile, ran)


def test_a_date_that_passes_before_the_server_starts_is_kept_late(core):
    """A setup script runs before the server: a date in between is missed, and missed slots run once, late (5)."""
    callback, ran = noting(core)
    core.ps.schedule_task("appointment", callback, at=local(second(1)))
    core.clock.advance(2)
    core.begin()
    core.tick()
    core.run_for(10)

    assert [second(2)] == ran


def test_neither_date_nor_rate_is_refused(core):
    """It would mean nothing; the error names the task."""
    with pytest.raises(RegistrationError, match=r"'never'.*period=, cron= and at="):
        core.ps.schedule_task("never", print)


# ------------------------------------------------------------ cron


def test_cron_is_read_in_utc(core, berlin):
    """As Panel's, wherever the machine stands."""
    callback, ran = noting(core)
    core.begin()
    core.ps.schedule_task("nightly", callback, cron="0 4 * * *")
    core.run_for(5 * 3600)

    assert [second(4 * 3600)] == ran


def test_the_seconds_of_cron_are_last(core):
    """As croniter has them, which Panel uses."""
    callback, ran = noting(core)
    core.begin()
    core.ps.schedule_task("often", callback, cron="* * * * * 15")
    core.run_for(90)

    assert [second(15), second(75)] == ran


def test_cron_begins_at_its_date(core):
    """With `at`, nothing before that; a local time, as everywhere in Panel's."""
    callback, ran = noting(core)
    core.begin()
    core.ps.schedule_task("often", callback, cron="* * * * *", at=local(second(150)))
    core.run_for(300)

    assert [second(180), second(240), second(300)] == ran


@pytest.mark.parametrize("at", [iter([]), lambda now: now])
def test_cron_takes_one_date_only(core, at):
    """A ValueError, as Panel's."""
    with pytest.raises(ValueError, match=r"'often'.*cron=.*at="):
        core.ps.schedule_task("often", print, cron="* * * * *", at=at)


def test_cron_does_not_run_at_once(core):
    """Only at its times."""
    callback, ran = noting(core)
    core.begin()
    core.ps.schedule_task("nightly", callback, cron="0 4 * * *")
    core.run_for(60)

    assert [] == ran


# ------------------------------------------------------------ where it runs


def test_a_plain_callback_runs_on_the_loop(core):
    """As Panel's; that is what `threaded` is for."""
    threads = []
    core.begin()
    core.ps.schedule_task("plain", lambda: threads.append(threading.current_thread()), period="1s")
    core.go()

    assert [threading.current_thread()] == threads  # which drives the loop in this test


def test_a_threaded_callback_runs_in_a_thread_every_time(core):
    """Not the first time only (section 4, traps)."""
    threads = []

    def callback():
        threads.append(threading.current_thread().name)

    core.begin()
    core.ps.schedule_task("threaded", callback, period="1s", threaded=True)
    core.go()
    core.run_for(3)

    assert ["hand"] * 4 == threads


def test_an_async_callback_runs_on_the_loop(core):
    """Whatever `threaded` says."""
    loops = []

    async def callback():
        loops.append(asyncio.get_running_loop())

    core.begin()
    core.ps.schedule_task("async", callback, period="1s", threaded=True)
    core.go()

    assert [core.loop] == loops


def test_threaded_tasks_run_side_by_side(core):
    """Two of them, each in a thread."""
    core.begin()
    one, two = core.held("one"), core.held("two")
    core.ps.schedule_task("one", one, period="1s", threaded=True)
    core.ps.schedule_task("two", two, period="1s", threaded=True)
    core.go()

    assert (1, 1) == (one.flying, two.flying)


def test_a_callback_that_held_the_loop_is_named_once(core, caplog):
    """More than 100 ms: a warning with the task, the time and the remedy (2.1)."""

    def slow():
        core.clock.advance(0.25)

    core.begin()
    core.ps.schedule_task("slow", slow, period="1s")
    core.go()
    core.run_for(3)

    (warning,) = [message for message in messages(caplog) if "held" in message]
    assert "'slow'" in warning
    assert "250 ms" in warning
    assert "threaded=True" in warning


def test_a_quick_callback_is_not_warned_of(core, caplog):
    """90 ms are fine."""
    core.begin()
    core.ps.schedule_task("quick", lambda: core.clock.advance(0.09), period="1s")
    core.go()

    assert [] == messages(caplog)


def test_a_threaded_callback_holds_no_loop(core, caplog):
    """However long it takes."""
    core.begin()
    core.ps.schedule_task("slow", lambda: core.clock.advance(5), period="10s", threaded=True)
    core.go()

    assert [] == messages(caplog)


def test_a_callback_that_fails_goes_on(core, caplog):
    """It is logged once, and called again at its next time."""
    ran = []

    def broken():
        ran.append(core.clock.now())
        raise OSError("gone")

    core.begin()
    core.ps.schedule_task("broken", broken, period="1s")
    core.go()
    core.run_for(2)

    assert [second(0), second(1), second(2)] == ran
    assert 1 == sum("'broken' failed" in message for message in messages(caplog))


def test_a_callback_holds_no_visitor(core):
    """Its first run is no first value that a page would wait for."""
    core.ps.schedule_task("periodic", core.held("periodic"), period="1s", threaded=True)
    core.begin()

    assert [] == core.runtime.waiting_for()


# ------------------------------------------------------------ names


def test_the_same_callback_again_is_the_same_task(core, caplog):
    """Scheduling is idempotent: nothing runs twice, nothing is said."""
    callback, ran = noting(core)
    core.begin()
    first = core.ps.schedule_task("periodic", callback, period="1s")
    core.go()
    core.clock.advance(0.5)
    second_time = core.ps.schedule_task("periodic", callback, period="1s")
    core.go()
    core.run_for(0.5)

    assert first is second_time
    assert [second(0), second(1)] == ran
    assert [] == messages(caplog)


def test_another_callback_under_a_taken_name_is_ignored_with_a_warning(core, caplog):
    """As Panel's; the warning names the task and the remedy (invariant 1)."""
    ran = []

    def other():
        ran.append("other")

    core.begin()
    first = core.ps.schedule_task("periodic", lambda: ran.append("first"), period="1s")
    ignored = core.ps.schedule_task("periodic", other, period="1s")
    core.go()
    core.run_for(1)

    assert first is ignored
    assert ["first", "first"] == ran
    (warning,) = messages(caplog)
    assert "'periodic'" in warning
    assert "cancel_task('periodic')" in warning


def test_a_callback_of_the_served_script_is_refused(core):
    """Panel's own test; the error says where to put it (invariant 2)."""
    space = {"__name__": "bokeh_app_42"}
    exec("def callback(): pass", space)

    with pytest.raises(RegistrationError, match=r"'periodic'.*--setup"):
        core.ps.schedule_task("periodic", space["callback"], period="1s")


@pytest.mark.parametrize("kind", ["partial", "method"])
def test_callbacks_of_all_kinds_are_taken(core, kind):
    """They need no name of their own."""
    ran = []
    callback = functools.partial(ran.append, 1) if kind == "partial" else ran.clear
    core.begin()
    core.ps.schedule_task("periodic", callback, period="1s")
    core.go()

    assert ([1] if kind == "partial" else []) == ran


# ------------------------------------------------------------ cancel_task


def test_a_cancelled_task_runs_no_more(core):
    """And its name is free."""
    callback, ran = noting(core)
    core.begin()
    core.ps.schedule_task("periodic", callback, period="0.1s")
    core.go()
    core.run_for(0.3)
    core.ps.cancel_task("periodic")
    count = len(ran)
    core.run_for(5)

    assert 4 == count == len(ran)
    assert "periodic" not in core.ps.tasks


def test_cancelling_an_unknown_task_is_a_key_error(core):
    """As Panel's, and it names it."""
    with pytest.raises(KeyError, match="'periodic'"):
        core.ps.cancel_task("periodic")


def test_a_task_can_be_cancelled_before_anything_has_started():
    """In a setup script, say."""
    front = Front(Runtime(Config({})))
    front.schedule_task("periodic", print, period="1s")

    front.cancel_task("periodic")

    assert {} == dict(front.tasks)


def test_a_task_can_be_cancelled_and_scheduled_anew(core):
    """One timer, not two (section 4, traps)."""
    ran = []
    core.begin()
    for label in "abc":
        core.ps.schedule_task("periodic", functools.partial(ran.append, label), period="1s")
        core.go()
        if label != "c":
            core.ps.cancel_task("periodic")
    ran.clear()
    core.run_for(3)

    assert ["c"] * 3 == ran


def test_with_wait_the_next_run_still_happens(core):
    """And none after it."""
    callback, ran = noting(core)
    core.begin()
    core.ps.schedule_task("periodic", callback, period="1s")
    core.go()
    core.ps.cancel_task("periodic", wait=True)
    meanwhile = list(core.ps.tasks)
    core.run_for(5)

    assert [second(0), second(1)] == ran
    assert (["periodic"], []) == (meanwhile, list(core.ps.tasks))


def test_with_wait_a_next_run_that_fails_is_the_last_one_too(core):
    """However it ends."""
    ran = []

    def broken():
        ran.append(1)
        raise OSError

    core.begin()
    core.ps.schedule_task("broken", broken, period="1s")
    core.go()
    core.ps.cancel_task("broken", wait=True)
    core.run_for(5)

    assert 2 == len(ran)
    assert {} == dict(core.ps.tasks)


def test_a_run_in_flight_ends_by_itself_unseen(core):
    """Nothing of it remains under the name."""
    slow = core.held("slow")
    core.begin()
    task = core.ps.schedule_task("slow", slow, period="1s", threaded=True)
    core.go()
    run = core.run_of(task)
    core.ps.cancel_task("slow")
    slow.finish("late")

    assert run.state.final
    assert (None, []) == (core.service.store.values.entry("task", "slow"), core.service.store.history("slow"))


def test_a_run_in_flight_leaves_nothing_to_the_next_task_of_its_name(core):
    """What the old function returns is not the new task's value."""
    slow = core.held("old")
    core.begin()
    core.ps.schedule_task("name", slow, period="1h", threaded=True)
    core.go()
    core.ps.cancel_task("name")
    task = core.schedule(period="1h", first_run="skip", name="name")(lambda: "new")
    slow.finish("old")
    core.go()

    assert task() is None


def test_the_next_task_of_its_name_runs_beside_or_after_a_run_in_flight(core):
    """Its run is not lost."""
    slow, (callback, ran) = core.held("old"), noting(core)
    core.begin()
    core.ps.schedule_task("name", slow, period="1h", threaded=True)
    core.go()
    core.ps.cancel_task("name")
    core.ps.schedule_task("name", callback, at=local(second(10)))
    core.run_for(20)
    slow.finish("old")
    core.go()
    core.run_for(20)

    assert 1 == len(ran)


def test_a_callback_may_schedule_itself_anew(core):
    """Cancel and schedule under the same name, in the callback: each run leads to the next."""
    ran = []
    core.begin()

    def callback():
        ran.append(core.clock.now())
        if "chain" in core.ps.tasks:
            core.ps.cancel_task("chain")
        if len(ran) < 3:
            core.ps.schedule_task("chain", callback, at=local(core.clock.now() + timedelta(seconds=10)))

    core.ps.schedule_task("chain", callback, at=local(second(10)))
    core.run_for(60)

    assert [second(10), second(20), second(30)] == ran
    assert {} == dict(core.ps.tasks)


def test_a_callback_may_give_itself_another_period(core):
    """The new one begins with a run at once, as any does; the old timer is gone."""
    ran = []
    core.begin()

    def callback():
        ran.append(core.clock.now())
        if len(ran) == 2:
            core.ps.cancel_task("changing")
            core.ps.schedule_task("changing", callback, period="10s")

    core.ps.schedule_task("changing", callback, period="1s")
    core.go()
    core.run_for(21)

    assert [second(0), second(1)] == ran[:2]
    assert [second(11), second(21)] == ran[-2:]
    assert len(ran) in (4, 5)


def test_a_callback_may_schedule_itself_anew_after_its_last_date(core):
    """Its name is free by then, also without cancel_task."""
    ran = []
    core.begin()

    def callback():
        ran.append(core.clock.now())
        if len(ran) < 3:
            core.ps.schedule_task("chain", callback, at=local(core.clock.now() + timedelta(seconds=10)))

    core.ps.schedule_task("chain", callback, at=local(second(10)))
    core.run_for(60)

    assert [second(10), second(20), second(30)] == ran


# ------------------------------------------------------------ on a server's loop


class Server:
    """The loop of a server, in a thread, with a runtime of its own on the machine's clock."""

    def __init__(self):
        self.runtime = Runtime(Config({}))
        self.ps = Front(self.runtime)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        self.runtime.start(self.loop)
        return self

    def __exit__(self, *exc):
        self.runtime.grace = 1.0
        self.runtime.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()

    def call(self, function, *args, **kwargs):
        """As an app does: on the loop's thread."""

        async def body():
            return function(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(body(), self.loop).result(PATIENCE)


class Counting:
    """A callback that is waited for, and notes when it ran."""

    def __init__(self):
        self.ran = []
        self._step = threading.Semaphore(0)

    def __call__(self):
        self.ran.append((datetime.now(UTC), threading.current_thread()))
        self._step.release()

    def wait(self, times=1):
        for _ in range(times):
            assert self._step.acquire(timeout=PATIENCE)

    def times(self):
        return [when for when, _ in self.ran]


@pytest.fixture
def server():
    with Server() as server:
        yield server


def test_on_a_server_a_period_repeats_on_the_loops_thread(server):
    """Registered by an app, while the loop runs."""
    callback = Counting()
    server.call(server.ps.schedule_task, "periodic", callback, period="50ms")
    callback.wait(4)

    assert {server.thread} == {thread for _, thread in callback.ran}


def test_on_a_server_a_cancelled_task_stops(server):
    """No run begins after cancel_task has returned."""
    callback, other = Counting(), Counting()
    server.call(server.ps.schedule_task, "periodic", callback, period="20ms")
    callback.wait(2)
    server.call(server.ps.cancel_task, "periodic")
    count = len(callback.ran)
    server.call(server.ps.schedule_task, "other", other, period="20ms")
    other.wait(10)

    assert count == len(callback.ran)


def test_on_a_server_threads_serve_threaded_tasks(server):
    """Every time, and never the loop's own."""
    callback = Counting()
    server.call(server.ps.schedule_task, "threaded", callback, period="20ms", threaded=True)
    callback.wait(5)

    assert server.thread not in {thread for _, thread in callback.ran}


@pytest.mark.alone
def test_on_a_server_a_date_is_kept(server):
    """A naive local one, within Panel's own margin of 200 ms; and the name is free again."""
    callback, ended = Counting(), threading.Event()
    server.ps.on("succeeded", lambda task, run: ended.set())
    when = datetime.now() + timedelta(seconds=0.2)
    server.call(server.ps.schedule_task, "appointment", callback, at=when)
    callback.wait()
    assert ended.wait(PATIENCE)

    assert timedelta(0) <= callback.times()[0] - when.astimezone(UTC) < timedelta(seconds=0.2)
    assert "appointment" not in server.ps.tasks


@pytest.mark.alone
def test_on_a_server_an_iterator_of_dates_is_kept(server):
    """Each of them."""
    callback = Counting()
    dates = [datetime.now() + timedelta(seconds=seconds) for seconds in (0.1, 0.2)]
    server.call(server.ps.schedule_task, "appointments", callback, at=iter(dates))
    callback.wait(2)

    late = [ran - date.astimezone(UTC) for ran, date in zip(callback.times(), dates, strict=True)]
    assert all(timedelta(0) <= delay < timedelta(seconds=0.2) for delay in late)


def test_on_a_server_a_callable_is_asked_for_dates(server):
    """In naive UTC, both ways."""
    callback, asked = Counting(), []

    def at(now):
        asked.append(now)
        return now + timedelta(seconds=0.1) if len(asked) < 3 else None

    server.call(server.ps.schedule_task, "computed", callback, at=at)
    callback.wait(2)

    assert all(now.tzinfo is None for now in asked)
    assert abs(asked[0] - datetime.now(UTC).replace(tzinfo=None)) < timedelta(seconds=10)


def test_on_a_server_a_blocked_loop_gives_one_late_run(server):
    """A session that blocks the loop for a while leaves no heap of runs behind."""
    callback = Counting()
    server.call(server.ps.schedule_task, "periodic", callback, period="50ms")
    callback.wait(1)
    before = len(callback.ran)
    block = threading.Event()
    server.loop.call_soon_threadsafe(block.wait, 0.5)
    block_ended = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), server.loop)
    block_ended.result(PATIENCE)
    callback.wait(1)

    assert len(callback.ran) - before <= 4


def test_on_a_server_a_callback_may_schedule_itself_anew(server):
    """From inside, on the loop's thread."""
    ran, ended = [], threading.Event()

    def callback():
        ran.append(1)
        if "chain" in server.ps.tasks:
            server.ps.cancel_task("chain")
        if len(ran) == 3:
            ended.set()
        else:
            server.ps.schedule_task("chain", callback, at=datetime.now() + timedelta(seconds=0.05))

    server.call(server.ps.schedule_task, "chain", callback, at=datetime.now() + timedelta(seconds=0.05))

    assert ended.wait(PATIENCE)
