"""Runs: how they end, what they publish, and who hears of it."""

from __future__ import annotations

import asyncio
import logging
import re
import threading

import pytest
from bokeh.plotting import figure
from panel.pane import Markdown
from panel.util import parse_query

from core import PATIENCE, Core, keys, messages, second, short
from panel_schedule.config import Config
from panel_schedule.coordination.tasks import TASK
from panel_schedule.decorators import Front
from panel_schedule.engine import hooks
from panel_schedule.errors import RunFenced, RunSkipped, TriggerError, ValueRefused, WouldBlock
from panel_schedule.functions.run import Run, RunState, track
from panel_schedule.runtime import Runtime
from panel_schedule.testing.contracts.tools import hammer

# ------------------------------------------------------------ failing


def test_a_failure_keeps_the_last_good_value(core):
    """The value, its version and time stay; the task is stale and says why (invariant 8)."""
    outcomes = iter(["good", OSError("no route\nto host")])

    @core.schedule(period="1m", first_run="background")
    def fetch():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    core.begin()
    before = fetch.entry
    core.run_for(60)

    assert ("good", before) == (fetch(), fetch.entry)
    status = fetch.status
    assert ("failed", True, "OSError: no route") == (status.state, status.stale, status.error)


def test_a_failure_is_logged_once_until_it_becomes_another(core, caplog):
    """The same error again is silent; a new one, and one after a recovery, is not (invariant 8)."""
    outcomes = iter([OSError("a"), OSError("a"), OSError("b"), None, OSError("b")])

    @core.schedule(period="1m", first_run="skip")
    def fetch():
        if (outcome := next(outcomes)) is not None:
            raise outcome

    core.begin()
    core.run_for(300)

    logged = messages(caplog, logging.ERROR)
    assert ["a", "b", "b"] == [message[-1] for message in logged]
    assert all("'fetch'" in message for message in logged)


@pytest.fixture
def failing(core):
    """``failing(30, "1s")``: a task of that period that fails so often and is well then; each time another number."""

    def make(times, period):
        numbers = iter(range(1000))

        @core.schedule(period=period, first_run="skip", name="fetch")
        def fetch():
            if (number := next(numbers)) < times:
                raise OSError(f"no route to {number}")

        core.begin()
        return fetch

    return make


def test_a_failure_that_goes_on_is_one_line_per_ten(core, failing, caplog):
    """With how often it was; the traceback is the first one's alone."""
    failing(31, "1s")
    core.run_for(31)

    first, *others = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert first.exc_info
    assert ["to 10 (11 times in 10 s)", "to 20 (21 times in 20 s)", "to 30 (31 times in 30 s)"] == [
        record.getMessage().partition("route ")[2] for record in others
    ]
    assert not any(record.exc_info for record in others)


def test_a_failure_that_goes_on_slowly_is_one_line_per_minute(core, failing, caplog):
    failing(9, "25s")
    core.run_for(225)

    assert ["0", "3 (4 times in 75 s)", "6 (7 times in 2 min)"] == [
        message.partition("to ")[2] for message in messages(caplog, logging.ERROR)
    ]


def test_the_log_says_when_a_task_has_recovered(core, failing, caplog):
    """How long it lasted, and which run it was; and the next failure is a first one."""
    task = failing(5, "2s")
    core.run_for(12)

    assert (
        f"Task 'fetch' has recovered after 10 s and 5 failed runs (run {task.history[0].id})." == messages(caplog)[-1]
    )


def test_the_log_names_the_run(core, failing, caplog):
    task = failing(1, "1s")
    core.run_for(1)

    assert f"(run {task.history[0].id})" in messages(caplog)[0]


def test_the_log_of_a_task_that_was_defined_anew_begins_anew(core, failing, caplog):
    """Of that name there was another one."""
    failing(1, "1s")
    core.run_for(1)
    core.ps.cancel_task("fetch")
    failing(1, "1s")
    core.run_for(1)

    assert [True, True] == [bool(record.exc_info) for record in caplog.records if record.levelno == logging.ERROR]


def test_jobs_that_fail_the_same_way_are_logged_once_in_ten(core, caplog):
    """The first one with its traceback; each line names a run and its arguments, shortened."""

    @core.ps.background(executor="thread")
    def divide(number, text, unspeakable):
        raise ZeroDivisionError(f"{number} times")

    class Unspeakable:
        def __repr__(self):
            raise OSError

    for number in range(12):
        divide.submit(number, "x" * 1000, Unspeakable())
        core.go()
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    lines = [record.getMessage() for record in records]

    assert [True, False] == [bool(record.exc_info) for record in records]
    assert all("divide(" in line and "xxx" in line and len(line) < 400 for line in lines)
    assert "(11 times" in lines[1]
    core.clock.advance("1h")
    divide.submit(0, "", None)
    core.go()
    assert caplog.records[-1].exc_info


def test_jobs_that_are_tried_again_say_so_once(core, caplog):
    """While they keep failing each attempt is more of the same."""

    @core.ps.background(executor="thread", retry=2)
    def divide():
        raise ZeroDivisionError

    for _ in range(2):
        divide.submit()
        core.go()
        core.run_for(20)

    assert 3 == len(messages(caplog))


def test_the_log_of_a_failure_shows_the_users_traceback(core, caplog):
    """exc_info of the record leads to the function itself."""

    @core.schedule(period="1m", first_run="skip")
    def fetch():
        raise OSError("gone")

    core.begin()
    core.run_for(60)

    assert "in fetch" in caplog.text


def test_a_task_recovers(core):
    """The first good value after a failure takes the error away and is told as "recovered"."""
    outcomes = iter([1, OSError("x"), 2])
    told = core.events("recovered", "failed")

    @core.schedule(period="1m", first_run="background")
    def fetch():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    core.begin()
    core.run_for(120)

    assert [("failed", "fetch"), ("recovered", "fetch")] == told
    assert ("idle", "", False) == (fetch.status.state, fetch.status.error, fetch.status.stale)


def test_what_a_function_raises_keeps_its_type(core):
    """Each result() raises an exception of its caller's own; the very one holds the frames of all who wait for it."""
    error = ZeroDivisionError("mine")

    @core.schedule(period="1m", first_run="skip")
    def fetch():
        raise error

    core.begin()
    run = fetch.refresh()
    core.go()

    with pytest.raises(ZeroDivisionError) as caught:
        run.result(PATIENCE)
    assert (ZeroDivisionError, error.args) == (type(caught.value), caught.value.args)
    assert caught.value not in (error, run.error)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_no_exception_of_a_function_ends_more_than_its_run(core, error):
    """sys.exit() in a thread's function is a failed run, and the schedule goes on."""
    raising = [error]

    @core.schedule(period="1m", first_run="skip")
    def fetch():
        if raising:
            raise raising.pop()
        return "fine"

    core.begin()
    core.run_for(120)

    assert [("failed", ""), ("succeeded", "")] == short(fetch.history)


def test_a_handler_that_hangs_is_left_behind_after_its_limit(core, caplog):
    """It is called for the next event then, and the log says so."""
    seen = []

    def hangs(task, run):
        seen.append(task.name)
        core.thread.park()

    core.ps.on("succeeded", hangs, timeout="90s")
    task = core.schedule(period="1m", first_run="background", name="sales")(lambda: 1)
    core.begin()
    core.run_for(60)
    before = list(seen)
    core.run_for(40)

    assert [["sales"], ["sales"] * 2] == [before, seen]
    assert 2 == task.entry.version
    (line,) = [line for line in messages(caplog) if "did not finish within 90 s" in line]
    assert "handler" in line
    assert "'succeeded'" in line


def test_a_handler_that_hangs_holds_up_no_other_one(core):
    """Also of the same event, and before its limit."""
    told = []
    core.ps.on("succeeded", lambda task, run: core.thread.park())
    core.ps.on("succeeded", lambda task, run: told.append(task.name))
    core.schedule(period="1m", first_run="background", name="sales")(lambda: 1)
    core.begin()
    core.run_for(300)

    assert ["sales"] * 6 == told


def test_a_coroutine_that_hangs_as_a_handler_is_cancelled(core):
    """The events that waited meanwhile reach it."""
    seen, cancelled = [], []

    async def hangs(task, run):
        seen.append(task.name)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(task.name)
            raise

    core.ps.on("succeeded", hangs, timeout="10s")
    core.schedule(period="1m", first_run="background", name="sales")(lambda: 1)
    core.begin()
    core.run_for(70)

    assert [["sales"] * 2, ["sales"] * 2] == [seen, cancelled]


def test_a_handler_without_a_limit_is_waited_for(core, caplog):
    """timeout=None; a limit that means nothing is refused at once."""
    core.ps.on("succeeded", lambda task, run: core.thread.park(), timeout=None)
    core.schedule(period="1d", first_run="background", name="sales")(lambda: 1)
    core.begin()
    core.run_for(3600)

    assert [] == messages(caplog)
    with pytest.raises(TriggerError, match="timeout='soon'"):
        core.ps.on("succeeded", print, timeout="soon")


def test_what_waits_for_a_handler_that_hangs_has_a_bound(core, caplog, monkeypatch):
    """The oldest event is dropped, and the log says so."""
    monkeypatch.setattr(hooks, "LONGEST_QUEUE", 2)
    core.ps.on("succeeded", lambda task, run: core.thread.park(), timeout=None)
    core.schedule(period="1m", first_run="background", name="sales")(lambda: 1)
    core.begin()
    core.run_for(180)

    (line,) = messages(caplog)
    assert "Task 'sales': the handler" in line
    assert "its oldest event is dropped" in line


# ------------------------------------------------------------ stale


@pytest.mark.parametrize("how", ["needs", "after", "read"])
def test_what_is_made_of_a_failed_value_is_stale(core, how):
    """However it is; until a new value is there, also where another one stands between."""
    broken = []

    @core.schedule(period="1m", first_run="background")
    def raw():
        if broken:
            raise OSError("no route")
        return 1

    def made_of(source, name):
        options = {"needs": {"period": "1m", "needs": [source]}, "after": {"after": source}, "read": {"period": "1m"}}
        return core.schedule(first_run="background", name=name, **options[how])(lambda: source() + 1)

    clean = made_of(raw, "clean")
    chart = made_of(clean, "chart")
    core.begin()
    core.run_for(60)
    seen = [chart.status.stale]
    broken.append(True)
    core.run_for(60)
    seen += [clean.status.stale, chart.status.stale, chart.status.error]
    broken.clear()
    core.run_for(60)

    assert [False, True, True, "", False] == [*seen, chart.status.stale]


def test_tasks_that_read_each_other_are_not_stale_for_ever(core):
    """Each for the other's sake."""
    broken, tasks = [], {}

    def one():
        if broken:
            raise OSError("no route")
        return (tasks["other"]() or 0) + 1

    tasks["one"] = core.schedule(cron="*/2 * * * *", timezone="UTC", name="one")(one)
    tasks["other"] = core.schedule(cron="1-59/2 * * * *", timezone="UTC", name="other")(lambda: tasks["one"]() or 1)
    core.begin()
    core.run_for(300)
    broken.append(True)
    core.run_for(300)
    seen = [task.status.stale for task in tasks.values()]
    broken.clear()
    core.run_for(300)

    assert [[True, True], [False, False]] == [seen, [task.status.stale for task in tasks.values()]]


def test_two_due_slots_without_a_value_make_it_stale(core):
    """One slot without a value is not enough (2.1)."""
    slow = core.held("slow")
    task = core.schedule(period="1m", first_run="background")(slow)
    core.begin()
    slow.finish("value")
    core.run_for(60)
    one = task.status.stale
    core.run_for(60)

    assert [False, True] == [one, task.status.stale]


def test_a_new_value_is_fresh_again(core):
    """The run that was late ends the staleness, and tells of it."""
    slow = core.held("slow")
    task = core.schedule(period="1m", first_run="background")(slow)
    told = core.events("stale", "recovered")
    core.begin()
    slow.finish("value")
    core.run_for(120)
    slow.finish("newer")
    core.go()

    assert not task.status.stale
    assert [("stale", "slow"), ("recovered", "slow")] == told


def test_stale_after_says_it_otherwise(core):
    """With stale_after the age alone counts: not a failure, and not slots."""
    outcomes = iter([1, OSError("x")] + [OSError("y")] * 100)

    @core.schedule(period="1m", first_run="background", stale_after="90s")
    def fetch():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    core.begin()
    core.run_for(89)
    before = fetch.status.stale
    core.run_for(1)

    assert [False, True] == [before, fetch.status.stale]


def test_stale_after_starts_anew_with_each_value(core):
    """A value that comes in time keeps the task fresh."""
    task = core.schedule(period="1m", first_run="background", stale_after="90s")(lambda: 1)
    told = core.events("stale")
    core.begin()

    core.run_for(600)

    assert (False, []) == (task.status.stale, told)


def test_a_clock_that_runs_a_little_behind_does_not_hang_stale_after(core):
    """A wall clock slewed back by less than the scheduler notices must not make a timer fire for ever."""
    core.schedule(period="1h", first_run="background", stale_after="90s")(lambda: 1)
    core.begin()
    core.clock.step(-0.0003)
    done = threading.Event()

    def ticks():
        core.clock.advance(90)
        core.service.tick()
        done.set()

    threading.Thread(target=ticks, daemon=True).start()
    finished = done.wait(2)
    core.clock.step(1)  # ends the loop, if there is one

    assert finished
    assert done.wait(PATIENCE)


def test_a_slot_fires_although_the_clocks_differ_a_little(core):
    """The slew that the timers do not notice may delay a slot, but not beyond the next tick."""
    count = []
    core.schedule(period="10s", first_run="skip")(lambda: count.append(1))
    core.begin()
    core.clock.step(-0.0003)
    core.advance(10)
    core.advance(0.001)

    assert 1 == len(count)


# ------------------------------------------------------------ events


@pytest.mark.parametrize("event", ["succeeded", "failed", "recovered", "stale", "skipped"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_every_event_reaches_its_handlers(core, event, kind):
    """A plain handler in a thread, an async one on the loop; both get (task, run)."""
    told = []
    if kind == "sync":
        core.ps.on(event, lambda task, run: told.append((task.name, run.task)))
    else:

        async def handler(task, run):
            await asyncio.sleep(0)
            told.append((task.name, run.task))

        core.ps.on(event, handler)
    outcomes = iter([1, OSError("x"), 2])

    @core.schedule(period="1m", first_run="background")
    def fetch():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    core.begin()
    core.run_for(120)
    fetch.pause()
    core.run_for(60)

    assert {"succeeded": 2}.get(event, 1) == len(told)
    assert {("fetch", "fetch")} == set(told)


def test_a_handler_that_raises_hurts_nothing(core, caplog):
    """It is logged with task and event; other handlers and the run are as ever."""
    told = []

    def bad(task, run):
        raise ValueError("handler")

    async def worse(task, run):
        raise ValueError("async handler")

    core.ps.on("succeeded", bad)
    core.ps.on("succeeded", worse)
    core.ps.on("succeeded", lambda task, run: told.append(run.state))
    task = core.schedule(period="1m", first_run="background", name="fetch")(lambda: 1)
    core.begin()
    core.run_for(60)

    assert ([RunState.SUCCEEDED] * 2, [("succeeded", "")] * 2) == (told, short(task.history))
    assert "'fetch'" in messages(caplog)[0]
    assert "'succeeded'" in messages(caplog)[0]


def test_a_handler_that_never_returns_holds_up_no_run():
    """It can never hurt a run: not by taking the last thread, either (2.1)."""
    config = Config({})
    config.max_threads = 1
    front = Front(Runtime(config))
    release, entered = threading.Event(), threading.Event()

    def endless(task, run):
        entered.set()
        release.wait(PATIENCE)

    front.on("succeeded", endless)
    task = front.schedule(period="1h", first_run="skip", name="fetch")(lambda: 1)
    task.refresh().result(PATIENCE)
    assert entered.wait(PATIENCE)
    try:
        assert 1 == task.refresh().result(1)
    finally:
        release.set()


def test_the_returned_function_takes_the_handler_away(core):
    """Calling it twice is harmless."""
    told = []
    remove = core.ps.on("succeeded", lambda task, run: told.append(1))
    core.schedule(period="1m", first_run="background", name="fetch")(lambda: 1)
    core.begin()
    remove()
    remove()
    core.run_for(60)

    assert [1] == told


def test_an_unknown_event_is_refused(core):
    """The error lists the events there are."""
    with pytest.raises(ValueError, match=r"'done'.*'succeeded'"):
        core.ps.on("done", print)


def test_a_stretch_of_skipped_slots_is_told_once(core):
    """As it is recorded once."""
    told = core.events("skipped")
    task = core.schedule(period="1s", first_run="skip", name="fetch")(lambda: 1)
    core.begin()
    task.pause()

    core.run_for(10)

    assert [("skipped", "fetch")] == told


# ------------------------------------------------------------ refresh and runs


def test_a_refresh_joins_the_run_in_flight(core):
    """Everybody who asks meanwhile gets the same run."""
    slow = core.held("slow")
    task = core.schedule(period="1h", first_run="skip")(slow)
    core.begin()
    runs = [task.refresh(), task.refresh()]
    core.go()
    runs.append(task.refresh())
    slow.finish("value")

    assert 1 == slow.calls
    assert 1 == len(set(map(id, runs)))
    assert "value" == runs[0].result(PATIENCE)


def test_a_refresh_joins_a_scheduled_run(core):
    """The run of a slot is as good as any."""
    slow = core.held("slow")
    task = core.schedule(period="1m", first_run="skip")(slow)
    core.begin()
    core.run_for(60)

    assert core.run_of(task) is task.refresh()


def test_refreshes_have_keys_of_their_own(core):
    """Each request has an id (section 4: a request id for refresh)."""
    task = core.schedule(period="1h", first_run="skip", name="fetch")(lambda: 1)
    core.begin()
    for _ in range(3):
        task.refresh()
        core.go()

    assert 3 == len(set(keys(task)))


def test_nobody_guesses_the_id_of_a_run(core):
    """72 random bits, which stand in an address and are read from it as they are."""
    task = core.schedule(period="1h", first_run="skip", name="fetch")(lambda: 1)
    function = core.ps.background(lambda: 1, name="job")
    core.begin()
    ids = [Run("task", None, second(0)).id for _ in range(999)] + [task.refresh().id, function.submit().id]

    assert 1001 == len(set(ids)) == sum(re.fullmatch("r[0-9A-Za-z_-]{12}", id) is not None for id in ids)
    assert all(id == parse_query(f"?run={id}")["run"] for id in ids)
    # No place in them has few characters, and none follows from the one before.
    assert all(len({id[place] for id in ids}) > 50 for place in range(1, 13))


def test_threads_get_ids_of_their_own():
    ids = list[str]()
    wrong = hammer(8, lambda _: ids.extend([Run("task", None, second(0)).id for _ in range(2000)]))

    assert ([], 16_000) == (wrong, len(set(ids)))


def test_refresh_fits_on_click(core):
    """A lone event argument is ignored."""
    task = core.schedule(period="1h", first_run="skip", name="fetch")(lambda: 1)
    run = task.refresh(object())
    core.go()

    assert 1 == run.result(PATIENCE)


def test_a_refresh_beside_an_abandoned_body_waits_for_it(core):
    """It follows as soon as the body has returned."""
    slow = core.held("slow")
    task = core.schedule(period="1h", first_run="skip")(slow)
    core.begin()
    first = task.refresh()
    core.go()
    first.cancel()
    second_run = task.refresh()
    state = second_run.state
    slow.finish("dropped")
    core.go()
    slow.finish("kept")

    assert (RunState.QUEUED, "kept", "kept") == (state, second_run.result(PATIENCE), task())


def test_a_run_can_be_awaited(core):
    """await run gives the result, also of a run that has ended."""
    task = core.schedule(period="1h", first_run="skip", name="fetch")(lambda: 42)
    run = task.refresh()

    async def reads():
        core.thread.go()
        return await run, await run

    assert (42, 42) == core.loop.run_until_complete(reads())


def test_who_stops_awaiting_a_run_does_not_cancel_it(core):
    """The run belongs to everybody."""
    slow = core.held("slow")
    task = core.schedule(period="1h", first_run="skip")(slow)
    run = task.refresh()
    core.go()

    async def gives_up():
        await asyncio.wait_for(run, 0)

    with pytest.raises(TimeoutError):
        core.loop.run_until_complete(gives_up())
    slow.finish("value")

    assert "value" == run.result(PATIENCE)


def test_the_result_of_an_unfinished_run_would_block_a_loop(core):
    """On a running loop's thread result() raises and names await; of an ended run it does not (2.2)."""
    slow = core.held("slow")
    task = core.schedule(period="1h", first_run="skip")(slow)
    run = task.refresh()
    core.go()

    async def blocks():
        return run.result()

    with pytest.raises(WouldBlock, match=r"'slow'.*await"):
        core.loop.run_until_complete(blocks())
    slow.finish(7)
    assert 7 == core.loop.run_until_complete(blocks())


def test_a_result_that_does_not_come_in_time_is_a_timeout(core):
    """The run goes on."""
    slow = core.held("slow")
    run = core.schedule(period="1h", first_run="skip")(slow).refresh()
    core.go()

    with pytest.raises(TimeoutError):
        run.result(0.01)
    assert RunState.RUNNING is run.state


def test_done_callbacks_are_called_once_each(core):
    """Before the end and after it."""
    called = []
    task = core.schedule(period="1h", first_run="skip", name="fetch")(lambda: 1)
    run = task.refresh()
    run.add_done_callback(called.append)
    core.go()
    run.add_done_callback(called.append)

    assert [run, run] == called


def test_progress_is_what_the_run_says(core):
    """Percent and message of the run in flight are the task's, and gone with it."""

    @core.schedule(period="1h", first_run="skip")
    def steps():
        for _ in track([2024, 2025], message="year {}"):
            core.thread.park()

    core.begin()
    run = steps.refresh()
    core.go()
    core.thread.release()
    during = (steps.status.percent, steps.status.message, run.percent)
    core.thread.release()

    assert (50, "year 2025", 50) == during
    assert (-1, "", 100) == (steps.status.percent, steps.status.message, run.percent)


def test_the_history_keeps_the_newest_runs():
    """ps.config.history_limit of them, newest first."""
    with Core(history_limit=3) as core:
        task = core.schedule(period="1m", first_run="skip", name="fetch")(lambda: 1)
        core.begin()
        core.run_for(300)

        assert [second(300), second(240), second(180)] == [record.key for record in task.history]


def test_a_record_says_when_and_how_long(core):
    """Queued, started, finished, in aware UTC."""
    slow = core.held("slow")
    task = core.schedule(period="1m", first_run="skip")(slow)
    core.begin()
    core.run_for(60)
    core.clock.advance(5)
    slow.finish()
    (record,) = task.history

    assert (second(60), second(60), second(65)) == (record.queued_at, record.started_at, record.finished_at)
    assert 5.0 == record.duration == task.entry.duration


# ------------------------------------------------------------ generators


def test_each_yield_is_a_version(core):
    """Readers see the parts as they come; the last one is the result."""

    @core.schedule(period="1h", first_run="skip")
    def parts():
        yield "a"
        core.thread.park()
        yield "b"

    run = parts.refresh()
    core.go()
    during = (parts(), parts.entry.version)
    core.thread.release()

    assert ("a", 1) == during
    assert ("b", 2, "b") == (parts(), parts.entry.version, run.result(PATIENCE))


def test_a_generators_return_value_is_final(core):
    """A return value other than None is one more version."""

    @core.schedule(period="1h", first_run="skip")
    def parts():
        yield "part"
        return "whole"

    run = parts.refresh()
    core.go()

    assert ("whole", 2, "whole") == (parts(), parts.entry.version, run.result(PATIENCE))


def test_an_async_generator_publishes_each_yield(core):
    """On the loop, all the same."""
    seen = []

    @core.schedule(period="1h", first_run="skip")
    async def parts():
        for part in "abc":
            yield part
            seen.append(parts.entry.version)

    run = parts.refresh()
    core.go()

    assert ([1, 2, 3], "c", "c") == (seen, parts(), run.result(PATIENCE))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_generator_that_fails_midway_leaves_its_last_yield_stale(core, kind):
    """What was published stays (2.1)."""

    def sync_parts():
        yield "part"
        raise OSError("midway")

    async def async_parts():
        yield "part"
        raise OSError("midway")

    task = core.schedule(period="1h", first_run="skip", name="parts")(sync_parts if kind == "sync" else async_parts)
    task.refresh()
    core.go()

    assert ("part", 1, True, "failed") == (task(), task.entry.version, task.status.stale, task.status.state)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_generator_that_yields_nothing_has_no_last_yield(core, kind):
    """Its value is None, as that of any function that returns nothing."""

    def sync_parts():
        yield from ()

    async def async_parts():
        for part in ():
            yield part

    task = core.schedule(period="1h", first_run="skip", name="parts", default="before")(
        sync_parts if kind == "sync" else async_parts
    )
    run = task.refresh()
    core.go()

    assert (None, None) == (task(), run.result(PATIENCE))


def test_an_abandoned_generator_has_cleaned_up_before_the_next_run_begins(core):
    """Its `finally` belongs to its body: what it locks is free again when the task is (invariant 6)."""
    order = []

    @core.schedule(period="1h", first_run="skip")
    def parts():
        order.append("enter")
        try:
            yield 1
            core.thread.park()
            yield 2
        finally:
            order.append("leave")

    core.begin()
    parts.refresh()
    core.go()
    core.run_of(parts).cancel()
    parts.refresh()
    core.thread.release()
    core.go()
    core.thread.release()

    assert ["enter", "leave", "enter", "leave"] == order


def test_an_async_generator_has_cleaned_up_when_its_run_ends(core):
    """Also when a yield was refused: not some time later."""
    order = []

    @core.schedule(period="1h", first_run="skip")
    async def parts():
        try:
            yield figure()
        finally:
            order.append("leave")

    run = parts.refresh()
    run.add_done_callback(lambda run: order.append("ended"))
    core.go()

    assert ["leave", "ended"] == order


def test_a_yield_is_no_final_value(core):
    """after= fires once, on the final one (2.1)."""

    @core.schedule(period="1h", first_run="skip")
    def parts():
        yield 1
        yield 2
        yield 3

    seen = []
    core.schedule(after=parts, name="child")(lambda: seen.append(parts()))
    core.begin()
    parts.refresh()
    core.go()

    assert [3] == seen


# ------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (figure, "value is a"),
        (lambda: Markdown("x"), "value is a"),
        (lambda: {"charts": [1, figure()]}, r"value\['charts'\]\[1\] is a"),
        (lambda: ({"deep": {"er": (Markdown("x"),)}},), r"value\[0\]\['deep'\]\['er'\]\[0\] is a"),
    ],
)
def test_what_belongs_to_a_document_is_no_value(core, make, path):
    """Bokeh models and Panel objects are refused, with task, type and path in the message (invariant 11)."""
    task = core.schedule(period="1h", first_run="skip", name="plots")(make)
    run = task.refresh()
    core.go()

    with pytest.raises(ValueRefused, match=rf"'plots'.*{path} (bokeh|panel)\."):
        run.result(PATIENCE)
    assert (None, "failed") == (task.entry, task.status.state)


def test_a_refused_value_leaves_the_old_one(core):
    """It is a failure like any other (invariant 11)."""
    values = iter([1, figure()])
    task = core.schedule(period="1m", first_run="background", name="fetch")(lambda: next(values))
    core.begin()
    core.run_for(60)

    assert (1, True) == (task(), task.status.stale)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_refused_yield_ends_the_generator(core, kind):
    """The last good yield stays."""
    closed = []

    def sync_parts():
        try:
            yield 1
            yield figure()
        finally:
            closed.append(1)

    async def async_parts():
        try:
            yield 1
            yield figure()
        finally:
            closed.append(1)

    task = core.schedule(period="1h", first_run="skip", name="parts")(sync_parts if kind == "sync" else async_parts)
    run = task.refresh()
    core.go()

    with pytest.raises(ValueRefused):
        run.result(PATIENCE)
    assert 1 == task()


def test_none_is_a_value(core):
    """It replaces the default, and counts as the first value."""
    task = core.schedule(period="1h", first_run="wait", default="before", name="fetch")(lambda: None)
    before = task()
    core.begin()

    assert ("before", None, 1) == (before, task(), task.entry.version)
    assert [] == core.runtime.waiting_for()


def test_a_coroutine_is_no_value(core):
    """A plain function that returns a coroutine is a mistake that is told, not a value for everybody."""

    async def inner():
        return 1

    task = core.schedule(period="1h", first_run="skip", name="fetch")(lambda: inner())
    run = task.refresh()
    core.go()

    try:
        result = run.result(PATIENCE)
    except Exception as exc:
        assert "fetch" in str(exc)  # noqa: PT017
    else:
        assert 1 == result


# ------------------------------------------------------------ fences


def test_a_run_that_lost_its_claim_publishes_nothing(core):
    """The store refuses it in its own transaction (invariant 10)."""
    slow = core.held("slow")
    task = core.schedule(period="1h", first_run="skip")(slow)
    core.begin()
    run = task.refresh()
    core.go()
    core.service.store.tasks.fence(core.scheduler.states["slow"].claim)
    slow.finish("stolen")

    with pytest.raises(RunFenced, match="'slow'"):
        run.result(PATIENCE)
    assert core.service.store.values.entry(TASK, "slow") is None
    assert not task.status.running


def test_a_slot_that_was_claimed_elsewhere_is_skipped(core):
    """Another process was quicker: no run here, and no record either, as the other one has written it."""
    task = core.schedule(period="1m", first_run="skip", name="fetch")(lambda: 1)
    core.begin()
    theirs = core.service.store.do(core.service.store.tasks.claim("fetch", "another", now=second(60), mark=second(60)))
    core.run_for(60)
    core.service.store.do(core.service.store.tasks.release(theirs))
    core.run_for(60)

    assert [("succeeded", "")] == short(task.history)


def test_awaiting_a_skipped_run_says_that_it_was_skipped(core):
    """RunSkipped names task and reason."""
    slow = core.held("slow")
    task = core.schedule(period="1m", first_run="skip", overlap="queue")(slow)
    core.begin()
    core.run_for(120)
    dropped = core.queued(task)
    core.run_for(60)

    with pytest.raises(RunSkipped, match=r"'slow'.*overlap"):
        dropped.result(PATIENCE)


def test_what_is_computed_from_a_stale_value_is_stale(core):
    """By needs= as by after=; until that one has recovered."""
    outcomes = iter([1, OSError("gone"), 3])

    @core.schedule(period="1m")
    def raw():
        if isinstance(outcome := next(outcomes), Exception):
            raise outcome
        return outcome

    child = core.schedule(period="1m", needs=raw, name="child")(lambda: raw())
    core.begin()
    seen = [child.status.stale]
    for _ in range(2):
        core.run_for(60)
        seen.append(child.status.stale)

    assert [False, True, False] == seen


@pytest.mark.parametrize(
    ("options", "seconds"),
    [({"period": "1m"}, 122), ({"period": "1m", "stale_after": "10m"}, 602), ({"cron": "0 * * * *"}, 7202)],
)
def test_a_page_knows_until_when_a_value_is_fresh(core, options, seconds):
    """stale_after=, or two slots of its schedule; two seconds are for the way to the page."""
    task = core.schedule(name="task", timezone="UTC" if "cron" in options else None, **options)(lambda: 1)
    assert (core.clock.now(), None) == task.promise()
    core.begin()

    assert (second(0), second(seconds)) == task.promise()


def test_a_paused_task_promises_nothing(core):
    task = core.schedule(period="1m", name="task")(lambda: 1)
    core.begin()
    task.pause()

    assert (second(0), None) == task.promise()
