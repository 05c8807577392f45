"""Each policy of ``ps.schedule``, from the clock to the value."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from datetime import timedelta

import pytest
from bokeh.plotting import figure
from core import PATIENCE, Core, messages, second, short
from panel.pane import Markdown

from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.errors import (
    RegistrationError,
    RunCancelled,
    RunFenced,
    RunSkipped,
    RunTimedOut,
    ValueRefused,
    WouldBlock,
)
from panel_schedule.front import Front
from panel_schedule.run import Run, RunState, current_run, progress, track
from panel_schedule.runtime import Runtime
from panel_schedule.scheduler import Scheduler
from panel_schedule.stores.base import TASK
from panel_schedule.stores.memory import MemoryStore
from panel_schedule.task import Retry
from panel_schedule.triggers import Every


@pytest.fixture
def core():
    with Core() as core:
        yield core


def keys(task):
    """The slots of the runs that a history holds, oldest first."""
    return [record.key for record in reversed(task.history) if record.state is not RunState.SKIPPED]


# ------------------------------------------------------------ the rate


def test_slots_stand_on_a_fixed_grid_whatever_a_run_takes(core):
    """Runs that take 0.3 s, 0.9 s... leave the slots at whole seconds: no drift (invariant 3)."""
    seen = []
    tick = core.held("tick")
    task = core.schedule(period="1s", first_run="skip")(tick)
    core.begin()

    for duration in (0.3, 0.9, 0.1, 0.55):
        core.run_for(1 - core.clock.now().microsecond / 1e6)
        seen.append(core.clock.now())
        core.clock.advance(duration)
        tick.finish()

    assert [second(1), second(2), second(3), second(4)] == seen == keys(task)


def test_an_hour_of_seconds_is_three_thousand_six_hundred_runs(core):
    """Every slot leads to one run, none is lost to rounding."""
    count = []
    task = core.schedule(period="1s", first_run="skip")(lambda: count.append(1) or len(count))
    core.begin()

    core.run_for(3600)

    assert 3600 == len(count) == task()


@pytest.mark.parametrize("period", ["0.1s", "0.7s", "33ms", "7s"])
def test_odd_periods_neither_lose_nor_repeat_a_slot(core, period):
    """The slots of periods that binary fractions cannot hold come one by one (invariant 3)."""
    task = core.schedule(period=period, first_run="skip")(lambda: core.clock.now())
    core.begin()

    core.run_for(20)

    slots, step = keys(task), Every(period).period
    assert 50 >= len(slots) >= 2
    assert {step} == {after - before for before, after in zip(slots, slots[1:])}  # noqa: B905
    assert slots[-1] == task()


def test_slots_are_on_the_epoch_and_not_on_the_start_of_the_process(core):
    """A process that starts at some odd instant has the slots of everybody else (invariant 3)."""
    core.clock.advance("17.123s")
    task = core.schedule(period="15s", first_run="skip")(lambda: 1)

    core.begin()

    assert second(30) == task.status.next_run


def test_a_stall_of_two_seconds_gives_one_late_run_and_one_record(core):
    """A 200 ms task that could not run for 2 s runs once, late; the rest is one record (invariant 5)."""
    count = []
    task = core.schedule(period="200ms", first_run="skip")(lambda: count.append(1))
    core.begin()
    core.run_for(0.2)

    core.advance(2)

    late, skipped, regular = task.history
    assert 2 == len(count)
    assert (second(2.2), RunState.SUCCEEDED) == (late.key, late.state)
    assert ("missed", second(0.4), second(2.0)) == (skipped.reason, skipped.key, skipped.until)
    assert second(0.2) == regular.key


def test_after_a_stall_the_rate_is_the_old_one(core):
    """The late run does not shift the slots that follow."""
    task = core.schedule(period="1s", first_run="skip")(lambda: core.clock.now())
    core.begin()

    core.advance(5.5)
    core.run_for(0.5)

    assert second(6) == task()


def test_without_catch_up_what_was_missed_does_not_run(core):
    """catch_up=False: a stretch that was missed is recorded and left out; the next slot runs in time."""
    count = []
    task = core.schedule(period="1m", first_run="skip", catch_up=False)(lambda: count.append(1))
    core.begin()

    core.advance(5 * 60 + 45)
    missed = short(task.history)
    core.run_for(15)

    assert [("skipped", "missed")] == missed
    assert 1 == len(count)
    assert (second(60), second(300)) == (task.history[1].key, task.history[1].until)


def test_a_slot_a_little_late_still_counts_without_catch_up(core):
    """A slot within the 30 s between two looks at the clock is not missed."""
    task = core.schedule(period="1m", first_run="skip", catch_up=False)(lambda: 1)
    core.begin()

    core.advance(61)

    assert [("succeeded", "")] == short(task.history)


# ------------------------------------------------------------ overlap


def test_a_task_does_not_overlap_itself(core):
    """overlap="skip", the default: slots that come while it runs are one record (invariant 6)."""
    slow = core.held("slow")
    task = core.schedule(period="1s", first_run="skip")(slow)
    core.begin()
    core.run_for(4)

    slow.finish("done")

    assert 1 == slow.calls
    record = next(record for record in task.history if record.reason == "overlap")
    assert (second(2), second(4)) == (record.key, record.until)
    assert 2 == len(task.history)


def test_queue_keeps_one_and_it_is_the_newest(core):
    """overlap="queue": after the run in flight one more follows at once, for the newest slot."""
    slow = core.held("slow")
    task = core.schedule(period="1s", first_run="skip", overlap="queue")(slow)
    core.begin()
    core.run_for(4)

    slow.finish()
    core.go()
    slow.finish()

    assert [second(1), second(4)] == keys(task)
    assert 2 == slow.calls


def test_replace_ends_the_old_run_and_starts_the_new_one(core):
    """overlap="replace" of an async task: the old run is cancelled, the new one has its turn."""
    started = []

    @core.schedule(period="1s", first_run="skip", overlap="replace")
    async def slow():
        started.append(core.clock.now())
        await asyncio.Event().wait()

    core.begin()
    core.run_for(1)
    first = core.run_of(slow)
    core.run_for(1)

    assert [second(1), second(2)] == started
    assert (RunState.CANCELLED, "replaced") == (first.state, first.reason)
    assert RunState.RUNNING is core.run_of(slow).state


def test_a_replaced_thread_is_abandoned_and_its_successor_waits_for_it(core):
    """Two bodies of one task never run at once: the new one starts when the old body returns (invariant 6)."""
    slow = core.held("slow")
    task = core.schedule(period="1s", first_run="skip", overlap="replace")(slow)
    core.begin()
    core.run_for(1)
    first = core.run_of(task)
    core.run_for(1)

    assert (RunState.CANCELLED, 1) == (first.state, slow.calls)
    slow.finish("too late")
    core.go()
    slow.finish("in time")

    assert 2 == slow.calls
    assert "in time" == task()
    assert 1 == task.entry.version


# ------------------------------------------------------------ abandoned


def test_a_cancelled_thread_ends_its_run_at_once(core):
    """A body that ignores its cancel does not keep the run alive (invariants 6, 18)."""
    deaf = core.held("deaf")
    task = core.schedule(period="1s", first_run="skip")(deaf)
    core.begin()
    core.run_for(1)
    run = core.run_of(task)

    run.cancel()

    assert RunState.CANCELLED is run.state
    assert not task.status.running
    with pytest.raises(RunCancelled):
        run.result(PATIENCE)


def test_slots_beside_an_abandoned_body_are_skipped_with_that_reason(core):
    """Its process keeps the claim until the body returns (invariant 6)."""
    deaf = core.held("deaf")
    task = core.schedule(period="1s", first_run="skip")(deaf)
    core.begin()
    core.run_for(1)
    core.run_of(task).cancel()
    core.run_for(3)

    skipped = task.history[0]
    assert ("abandoned", second(2), second(4)) == (skipped.reason, skipped.key, skipped.until)
    assert 1 == deaf.calls


def test_the_claim_is_free_again_when_an_abandoned_body_returns(core):
    """After that the next slot runs as ever."""
    deaf = core.held("deaf")
    task = core.schedule(period="1s", first_run="skip")(deaf)
    core.begin()
    core.run_for(1)
    core.run_of(task).cancel()
    core.run_for(1)

    deaf.finish("dropped")
    core.run_for(1)
    deaf.finish("kept")

    assert "kept" == task()
    assert [("cancelled", "cancelled"), ("skipped", "abandoned"), ("succeeded", "")] == short(task.history)


def test_what_an_abandoned_generator_yields_is_fenced(core):
    """Yields after the cancel change no value, and end the generator (invariants 6, 10)."""
    reached = []

    @core.schedule(period="1s", first_run="skip")
    def steps():
        yield "first"
        core.thread.park()
        yield "second"
        reached.append("third")

    core.begin()
    core.run_for(1)
    core.run_of(steps).cancel()
    core.thread.release()

    assert ("first", 1) == (steps(), steps.entry.version)
    assert [] == reached


def test_an_abandoned_body_hears_of_it_from_progress(core):
    """ps.progress raises RunCancelled, and current_run().cancelled is True (invariant 18)."""
    heard = []

    @core.schedule(period="1s", first_run="skip")
    def listens():
        core.thread.park()
        heard.append(current_run().cancelled)
        try:
            progress(1)
        except RunCancelled as exc:
            heard.append(type(exc))
            raise

    core.begin()
    core.run_for(1)
    core.run_of(listens).cancel()
    core.thread.release()

    assert [True, RunCancelled] == heard


def test_a_cancelled_async_run_gets_its_cancelled_error(core):
    """The coroutine is told, its cleanup runs, and the next slot is served (invariant 18)."""
    cleaned = []

    @core.schedule(period="1s", first_run="skip")
    async def waits():
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(core.clock.now())

    core.begin()
    core.run_for(1)
    core.run_of(waits).cancel()
    core.go()
    core.run_for(1)

    assert [second(1)] == cleaned
    assert RunState.RUNNING is core.run_of(waits).state


def test_a_queued_run_that_is_cancelled_never_starts(core):
    """Neither the one behind a run in flight, nor one whose body waits for a place (invariant 18)."""
    slow = core.held("slow")
    task = core.schedule(period="1s", first_run="skip", overlap="queue")(slow)
    core.begin()
    core.run_for(2)
    core.queued(task).cancel()
    slow.finish()
    waiting = task.refresh()
    waiting.cancel()
    core.go()

    assert 1 == slow.calls
    assert [RunState.CANCELLED] * 2 == [waiting.state, task.history[2].state if len(task.history) > 2 else None]
    assert not task.status.running


# ------------------------------------------------------------ timeout


def test_a_thread_that_takes_too_long_is_abandoned(core):
    """The run is timed out at once, the last good value stays, later writes are dropped (invariant 6)."""
    slow = core.held("slow")
    task = core.schedule(period="1m", first_run="skip", timeout="5s")(slow)
    core.begin()
    core.run_for(60)
    slow.finish("good")
    core.run_for(60)
    run = core.run_of(task)

    core.run_for(5)
    state = run.state
    slow.finish("late")

    assert RunState.TIMED_OUT is state
    assert ("good", 1, True) == (task(), task.entry.version, task.status.stale)
    with pytest.raises(RunTimedOut, match=r"'slow'.*5 s"):
        run.result(PATIENCE)


def test_a_timeout_counts_from_the_start_of_the_run(core):
    """What a run waits for its place does not count."""
    slow = core.held("slow")
    task = core.schedule(period="1s", first_run="skip", timeout="5s", overlap="queue")(slow)
    core.begin()
    core.run_for(2)
    core.clock.advance(2)
    slow.finish()
    core.go()
    run = core.run_of(task)
    core.run_for(4)

    assert RunState.RUNNING is run.state


def test_a_run_in_time_cancels_its_timeout(core):
    """A timeout that is over with its run harms no later one."""
    task = core.schedule(period="1s", first_run="skip", timeout="10s")(lambda: 1)
    core.begin()

    core.run_for(30)

    assert {RunState.SUCCEEDED} == {record.state for record in task.history}


def test_a_threads_timeout_is_final(core):
    """It cannot be ended, so it cannot be tried again."""
    slow = core.held("slow")
    task = core.schedule(period="1h", timeout="5s", retry=3, first_run="background")(slow)
    core.begin()

    core.run_for(30)

    assert ([("timed_out", "")], 1) == (short(task.history), slow.calls)


def test_an_async_timeout_is_cancelled_and_tried_again(core):
    """A coroutine is ended by its timeout, and retry applies."""
    attempts = []

    @core.schedule(period="1h", timeout="5s", retry=Retry(2, backoff="10s"), first_run="background")
    async def slow():
        attempts.append(core.clock.now())
        if len(attempts) == 1:
            await asyncio.Event().wait()
        return "second"

    core.begin()
    core.run_for(15)

    assert [second(0), second(15)] == attempts
    assert "second" == slow()
    assert [("succeeded", "")] == short(slow.history)


def test_an_async_timeout_without_retry_ends_timed_out(core):
    """The run is TIMED_OUT and the coroutine gets its CancelledError."""
    cleaned = []

    @core.schedule(period="1h", timeout="5s", first_run="background")
    async def slow():
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    core.begin()
    core.run_for(5)

    assert ([("timed_out", "")], [True]) == (short(slow.history), cleaned)


def test_a_coroutine_that_ignores_its_timeout_is_abandoned(core):
    """It got its last words; then the run ends all the same, and slots say why they are skipped."""
    release = []

    @core.schedule(period="10s", timeout="1s", retry=2, first_run="skip")
    async def deaf():
        release.append(event := asyncio.Event())
        while not event.is_set():
            try:
                await event.wait()
            except asyncio.CancelledError:
                pass

    core.begin()
    core.run_for(10)
    run = core.run_of(deaf)
    core.run_for(10)

    assert RunState.TIMED_OUT is run.state
    assert ("skipped", "abandoned") == short(deaf.history)[-1]
    release[0].set()


# ------------------------------------------------------------ retry


def test_a_failed_run_is_tried_again_after_its_pause(core):
    """retry=2 with doubling pauses, by the clock; one run, three attempts."""
    attempts = []

    @core.schedule(period="1h", first_run="background", retry=Retry(3, backoff="2s"))
    def flaky():
        attempts.append(core.clock.now())
        if len(attempts) < 3:
            raise OSError("not yet")
        return "there"

    core.begin()
    run = core.run_of(flaky)
    core.run_for(10)

    assert [second(0), second(2), second(6)] == attempts
    assert ("there", 3, RunState.SUCCEEDED) == (flaky(), run.attempt, run.state)
    assert 1 == len(flaky.history)


def test_retries_end_and_the_last_error_counts(core):
    """A count of 2 is three attempts; then the run has failed with what the last one raised."""
    errors = [OSError("one"), OSError("two"), OSError("three")]

    @core.schedule(period="1h", first_run="background", retry=2)
    def broken():
        raise errors[current_run().attempt - 1]

    core.begin()
    run = core.run_of(broken)
    core.run_for(600)

    assert (RunState.FAILED, 3, errors[2]) == (run.state, run.attempt, run.error)


def test_a_pause_never_exceeds_the_longest(core):
    """max_delay bounds the doubling."""
    assert [1.0, 2.0, 3.0, 3.0] == Retry(5, backoff="1s", max_delay="3s").delays()


def test_a_run_between_two_attempts_can_be_cancelled(core):
    """It is queued then; the next attempt never comes."""
    attempts = []

    @core.schedule(period="1h", first_run="background", retry=Retry(3, backoff="10s"))
    def broken():
        attempts.append(1)
        raise OSError

    core.begin()
    run = core.run_of(broken)
    state = run.state
    run.cancel()
    core.run_for(60)

    assert (RunState.QUEUED, RunState.CANCELLED, 1) == (state, run.state, len(attempts))


def test_slots_beside_a_retry_are_skipped(core):
    """A run that waits for its next attempt still holds the task."""

    @core.schedule(period="1s", first_run="skip", retry=Retry(2, backoff="3s"))
    def broken():
        raise OSError("gone")

    core.begin()
    core.run_for(3)

    assert [("skipped", "overlap")] == short(broken.history)


@pytest.mark.parametrize(
    "options", [{"max_attempts": 0}, {"max_attempts": True}, {"max_attempts": 1.5}, {"max_attempts": -1}]
)
def test_a_retry_that_means_nothing_is_refused(options):
    """The number of attempts is a whole number from 1."""
    with pytest.raises(RegistrationError, match="max_attempts"):
        Retry(**options)


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
    outcomes = [OSError("a"), OSError("a"), OSError("b"), None, OSError("b")]

    @core.schedule(period="1m", first_run="skip")
    def fetch():
        if (outcome := outcomes[fetch_count()]) is not None:
            raise outcome

    def fetch_count(count=iter(range(5))):
        return next(count)

    core.begin()
    core.run_for(300)

    logged = messages(caplog, logging.ERROR)
    assert ["a", "b", "b"] == [message[-1] for message in logged]
    assert all("'fetch'" in message for message in logged)


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
    """result() raises the very exception of the function."""
    error = ZeroDivisionError("mine")

    @core.schedule(period="1m", first_run="skip")
    def fetch():
        raise error

    core.begin()
    run = fetch.refresh()
    core.go()

    with pytest.raises(ZeroDivisionError) as caught:
        run.result(PATIENCE)
    assert error is caught.value


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


# ------------------------------------------------------------ stale


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
        core.scheduler.tick()
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


# ------------------------------------------------------------ nobody watches


def test_an_idle_task_is_not_refreshed_while_nobody_watches(core):
    """when_idle="skip": slots are one record, with that reason."""
    count = []
    task = core.schedule(period="1m", first_run="background", when_idle="skip")(lambda: count.append(1))
    core.begin()

    core.run_for(180)

    assert 1 == len(count)
    assert [("succeeded", ""), ("skipped", "idle")] == short(task.history)


def test_the_first_viewer_of_a_stale_value_causes_a_refresh(core):
    """The second one does not."""
    count = []
    task = core.schedule(period="1m", first_run="background", when_idle="skip")(lambda: count.append(1))
    core.begin()
    core.run_for(180)

    core.scheduler.watch(task, 1)
    core.go()
    core.scheduler.watch(task, 1)
    core.go()

    assert 2 == len(count)
    assert not task.status.stale


def test_a_viewer_of_a_fresh_value_causes_nothing(core):
    """Before the next slot the value is as new as it gets."""
    count = []
    task = core.schedule(period="1m", first_run="background", when_idle="skip")(lambda: count.append(1))
    core.begin()
    core.run_for(30)

    core.scheduler.watch(task, 1)
    core.go()

    assert 1 == len(count)


def test_a_watched_task_runs_at_each_slot_until_the_last_viewer_leaves(core):
    """As many fewer as there were more."""
    count = []
    task = core.schedule(period="1m", first_run="skip", when_idle="skip")(lambda: count.append(1))
    core.begin()
    core.scheduler.watch(task, 2)
    core.run_for(60)
    core.scheduler.watch(task, -1)
    core.run_for(60)
    core.scheduler.watch(task, -1)
    core.run_for(60)

    assert 2 == len(count)


# ------------------------------------------------------------ the clock steps


def test_a_step_back_of_an_hour_is_recorded_and_the_slots_run_again(core, caplog):
    """Once: the repeated time is lived through like any other (invariant 7)."""
    count = []
    task = core.schedule(period="10m", first_run="skip")(lambda: count.append(1))
    core.begin()
    core.run_for(3600)

    core.clock.step(-3600)
    core.run_for(3600)

    assert 12 == len(count)
    assert 1 == sum(record.reason == "clock stepped back" for record in task.history)
    assert 1 == sum("stepped back" in message for message in messages(caplog))


def test_a_step_back_of_an_hour_stalls_nothing(core):
    """The next run comes at the next slot of the new time, and not an hour later."""
    task = core.schedule(period="1m", first_run="skip")(lambda: core.clock.now())
    core.begin()
    core.run_for(90)

    core.clock.step(-3600)
    core.run_for(120)

    assert second(-3420) == task()


def test_a_small_step_back_repeats_no_slot(core):
    """20 s back: what was run is not run again, and nothing is recorded."""
    count = []
    task = core.schedule(period="10s", first_run="skip")(lambda: count.append(1))
    core.begin()
    core.run_for(60)

    core.clock.step(-20)
    core.run_for(20)
    repeated = len(count)
    core.run_for(10)

    assert [6, 7] == [repeated, len(count)]
    assert "clock stepped back" not in [record.reason for record in task.history]


def test_a_step_forward_of_a_day_gives_one_late_run_for_each_task(core):
    """No storm: 86,400 missed slots are one record and one run."""
    counts = {}
    for number in range(20):
        core.schedule(period="1s", first_run="skip", name=f"task{number}")(
            lambda number=number: counts.update({number: counts.get(number, 0) + 1})
        )
    core.begin()
    core.run_for(1)

    core.clock.step(86400)
    core.tick()

    assert {2} == set(counts.values())
    assert 20 == len(counts)


def test_a_delay_does_not_notice_the_wall_clock(core):
    """Timeouts and retries are measured on the monotonic clock."""
    slow = core.held("slow")
    task = core.schedule(period="1d", first_run="background", timeout="10s")(slow)
    core.begin()
    run = core.run_of(task)
    core.clock.step(3600)
    core.tick()
    before = run.state
    core.run_for(10)

    assert [RunState.RUNNING, RunState.TIMED_OUT] == [before, run.state]


# ------------------------------------------------------------ acting on a task


def test_a_paused_task_skips_its_slots_until_it_is_resumed(core):
    """One record of the stretch; nothing is caught up."""
    count = []
    task = core.schedule(period="1m", first_run="skip")(lambda: count.append(1))
    core.begin()
    task.pause()
    core.run_for(150)
    paused = (task.status.state, task.status.next_run, len(count))
    task.resume()
    core.run_for(30)

    assert ("paused", None, 0) == paused
    assert 1 == len(count)
    assert [("skipped", "paused"), ("succeeded", "")] == short(task.history)


def test_a_task_paused_before_the_start_does_not_run_first(core):
    """Neither does the server wait for it."""
    count = []
    task = core.schedule(period="1m")(lambda: count.append(1))
    task.pause()
    core.begin()

    assert ([], []) == (count, core.runtime.waiting_for())


def test_a_refresh_of_a_paused_task_runs(core):
    """Pausing stops the clock, not the user."""
    task = core.schedule(period="1m", first_run="skip")(lambda: "asked")
    core.begin()
    task.pause()
    run = task.refresh()
    core.go()

    assert "asked" == run.result(PATIENCE)


def test_a_run_in_flight_survives_a_pause(core):
    """What has begun goes on."""
    slow = core.held("slow")
    task = core.schedule(period="1m", first_run="background")(slow)
    core.begin()
    task.pause()
    slow.finish("value")

    assert "value" == task()


def test_a_rescheduled_task_follows_its_new_schedule(core):
    """The old slots are gone, the value stays."""
    task = core.schedule(period="1h", first_run="background")(lambda: core.clock.now())
    core.begin()
    task.reschedule(period="10s")
    core.run_for(10)

    assert second(10) == task()
    assert second(20) == task.status.next_run
    assert "every 10 s" == task.status.schedule


def test_a_reschedule_before_the_start_holds(core):
    """It is kept, and takes effect with the clocks."""
    task = core.schedule(period="1h", first_run="skip")(lambda: core.clock.now())
    task.reschedule(period="10s")
    core.begin()
    core.run_for(10)

    assert second(10) == task()


def test_a_reschedule_that_means_nothing_leaves_the_old_one(core):
    """The error names what is wrong; the schedule is as before."""
    task = core.schedule(period="1h", first_run="skip")(lambda: 1)
    core.begin()
    with pytest.raises(ValueError, match="soon"):
        task.reschedule(period="soon")

    assert second(3600) == task.status.next_run


def test_a_reschedule_by_cron_takes_a_zone(core):
    """Local days, as in ps.schedule."""
    task = core.schedule(period="1h", first_run="skip")(lambda: 1)
    core.begin()
    task.reschedule(cron="0 4 * * *", timezone="Europe/Berlin")

    assert second(3 * 3600) == task.status.next_run


def test_a_rescheduled_follower_no_longer_follows(core):
    """after= is its schedule, and the new one takes its place."""
    raw = core.schedule(period="1m", first_run="background", name="raw")(lambda: 1)
    count = []
    child = core.schedule(after=raw, name="child")(lambda: count.append(1))
    core.begin()
    child.reschedule(period="1h")
    count.clear()
    core.run_for(120)

    assert [] == count


def test_a_removed_schedule_makes_the_task_its_plain_function(core):
    """No more runs, no more caching: each call calls (2.1)."""
    count = []

    @core.schedule(period="1m", first_run="background")
    def fetch():
        count.append(1)
        return len(count)

    core.begin()
    fetch.remove_schedule()
    core.run_for(600)
    runs = len(count)

    assert (1, 2, 3) == (runs, fetch(), fetch())
    assert ("removed", None) == (fetch.status.state, fetch.status.next_run)


def test_a_removed_async_task_gives_its_coroutine(core):
    """The plain function of an async task is async."""

    @core.schedule(period="1m", first_run="skip")
    async def fetch():
        return "mine"

    fetch.remove_schedule()

    assert "mine" == asyncio.run(fetch())


def test_a_removed_task_cannot_be_refreshed(core):
    """The error says what to do instead."""
    task = core.schedule(period="1m", first_run="skip", name="gone")(lambda: 1)
    task.remove_schedule()

    with pytest.raises(RegistrationError, match=r"'gone'.*removed.*call it instead"):
        task.refresh()


def test_a_run_between_two_attempts_ends_with_the_removal(core):
    """No more runs means no further attempt, either."""
    attempts = []

    @core.schedule(period="1h", first_run="background", retry=Retry(3, backoff="10s"))
    def broken():
        attempts.append(1)
        raise OSError

    core.begin()
    broken.remove_schedule()
    core.run_for(60)

    assert 1 == len(attempts)
    assert "removed" == broken.status.state


def test_a_removed_follower_is_left_alone(core):
    """New values upstream neither run it nor fill its history."""
    raw = core.schedule(period="1m", first_run="background", name="raw")(lambda: 1)
    child = core.schedule(after=raw, name="child")(lambda: 1)
    told = core.events("skipped")
    core.begin()
    child.remove_schedule()
    core.run_for(120)

    assert ([("succeeded", "")], []) == (short(child.history), told)


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
        for year in track([2024, 2025], message="year {}"):
            core.thread.park()
        return year

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


# ------------------------------------------------------------ dates


def test_dates_run_once_each_and_then_no_more(core):
    """After the last one there is no next run; the task and its value stay."""
    task = core.schedule(at=[second(10), second(20)], name="fetch")(lambda: core.clock.now())
    core.begin()
    core.run_for(60)

    assert [second(10), second(20)] == keys(task)
    assert (second(20), None) == (task(), task.status.next_run)
    assert "fetch" in core.ps.tasks


def test_a_callable_is_asked_for_each_next_date(core):
    """at=f(now_utc) with None at the end."""
    asked = []

    def at(now):
        asked.append(now)
        return now + timedelta(seconds=10) if len(asked) < 3 else None

    task = core.schedule(at=at, name="fetch")(lambda: core.clock.now())
    core.begin()
    core.run_for(60)

    assert [second(10), second(20)] == keys(task)
    assert [second(0), second(10), second(20)] == asked


def test_a_callable_that_raises_is_asked_again(core, caplog):
    """The failure is logged with the task's name, and the schedule goes on (section 4, traps)."""
    answers = iter([second(10), OSError("calendar"), second(60), None])

    def at(now):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    task = core.schedule(at=at, name="fetch")(lambda: core.clock.now())
    core.begin()
    core.run_for(120)

    assert [second(10), second(60)] == keys(task)
    assert "'fetch'" in messages(caplog)[0]


def test_a_callable_that_raises_at_the_start_is_asked_again(core, caplog):
    """At the first question, too."""
    answers = iter([OSError("calendar"), second(60), None])

    def at(now):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    task = core.schedule(at=at, name="fetch")(lambda: core.clock.now())
    core.begin()
    core.run_for(120)

    assert [second(60)] == keys(task)


def test_a_callable_that_raises_does_not_keep_the_others_from_starting(core):
    """With a first run, too: whatever at= does, the other tasks have theirs."""

    def at(now):
        raise OSError("calendar")

    task = core.schedule(at=at, name="dates", first_run="background")(lambda: 1)
    other = core.schedule(period="1h", name="other", first_run="background")(lambda: 2)
    core.begin()

    assert (1, 2) == (task(), other())


# ------------------------------------------------------------ first runs


def test_the_server_waits_for_first_runs_by_default(core):
    """first_run="wait": the gate names the task until its value is there."""
    slow = core.held("slow")
    task = core.schedule(period="1h")(slow)
    core.begin()
    before = core.runtime.waiting_for()
    slow.finish(1)

    assert ([task], []) == (before, core.runtime.waiting_for())


def test_a_first_run_takes_the_latest_slot(core):
    """Its key is the slot that is due, so that it does not run twice (invariant 8)."""
    core.clock.advance(90)
    task = core.schedule(period="1m")(core.held("slow"))
    core.begin()

    assert second(60) == core.run_of(task).key
    assert second(120) == task.status.next_run


@pytest.mark.parametrize(("first_run", "runs"), [("wait", 1), ("background", 1), ("skip", 0)])
def test_first_run_says_whether_there_is_one(core, first_run, runs):
    """And only "wait" holds the visitors."""
    slow = core.held("slow")
    core.schedule(period="1h", first_run=first_run)(slow)
    core.begin()

    assert (runs, first_run == "wait") == (slow.calls, bool(core.runtime.waiting_for()))


def test_tasks_with_dates_skip_their_first_run_by_default(core):
    """An appointment is kept at its time."""
    count = []
    core.schedule(at=[second(10)], name="fetch")(lambda: count.append(core.clock.now()))
    core.begin()
    core.run_for(20)

    assert [second(10)] == count


def test_a_first_run_that_fails_is_fatal_if_the_server_waits_for_it(core):
    """Only then (invariant 8)."""
    told = []
    core.scheduler.fatal = lambda task, run: told.append((task.name, run.state))

    def broken():
        raise OSError("gone")

    core.schedule(period="1h", name="waited")(broken)
    core.schedule(period="1h", name="background", first_run="background")(broken)
    core.begin()

    assert [("waited", RunState.FAILED)] == told


def test_a_later_failure_is_not_fatal(core):
    """There is a last good value."""
    told = []
    core.scheduler.fatal = lambda task, run: told.append(task.name)
    outcomes = iter([1, OSError("x")])

    @core.schedule(period="1m")
    def fetch():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    core.begin()
    core.run_for(60)

    assert [] == told


def test_a_follower_has_its_first_run_when_its_upstream_has_a_value(core):
    """The gate waits for both (invariant 8)."""
    slow = core.held("slow")
    raw = core.schedule(period="1h")(slow)
    child = core.schedule(after=raw, name="child")(lambda: raw() * 2)
    core.begin()
    before = core.runtime.waiting_for()
    slow.finish(21)
    core.go()

    assert ([raw, child], []) == (before, core.runtime.waiting_for())
    assert 42 == child()


def test_the_gate_does_not_wait_for_what_nothing_brings(core):
    """A follower of a task that skips its first run holds nobody."""
    raw = core.schedule(period="1h", first_run="skip", name="raw")(lambda: 1)
    core.schedule(after=raw, name="child")(lambda: 1)
    core.begin()

    assert [] == core.runtime.waiting_for()


def test_the_gate_survives_a_cancelled_upstream(core):
    """Tasks may go; who follows them does not hold up the server, and breaks nothing."""
    raw = core.schedule(period="1h", first_run="skip", name="raw")(lambda: 1)
    core.schedule(after=raw, name="child")(lambda: 1)
    core.begin()
    core.ps.cancel_task("raw")

    assert [] == core.runtime.waiting_for()


def test_a_task_registered_later_starts_at_once(core):
    """The clocks run already."""
    core.begin()
    task = core.schedule(period="1h", name="late")(lambda: "value")
    core.go()

    assert "value" == task()


# ------------------------------------------------------------ lifecycle


def test_the_service_thread_starts_again_after_a_stop():
    """Start and stop are fine in any order, however quickly they follow each other (section 4)."""
    inside, leave, fired = threading.Event(), threading.Event(), threading.Event()

    def lingers():
        inside.set()
        leave.wait(PATIENCE)

    scheduler = Scheduler(SystemClock(), MemoryStore(), {})
    scheduler.timers.after(0, lambda _: scheduler.defer(lingers), None)
    scheduler.start()
    assert inside.wait(PATIENCE)
    scheduler.stop(0)
    scheduler.start()
    with scheduler.locked:
        scheduler.timers.after(0, lambda _: fired.set(), None)
    leave.set()

    assert fired.wait(2)
    scheduler.stop(0)


def test_stop_ends_what_has_not_begun(core):
    """Queued runs never start; the clocks decide nothing any more."""
    slow = core.held("slow")
    task = core.schedule(period="1m", first_run="skip", overlap="queue")(slow)
    core.begin()
    core.run_for(120)
    queued = core.queued(task)
    core.scheduler.stop(0)
    slow.finish()
    core.run_for(600)

    assert (RunState.CANCELLED, 1) == (queued.state, slow.calls)


# ------------------------------------------------------------ anything goes


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_each_run_ends_once_and_bodies_never_overlap(seed, monkeypatch):
    """A random hour: invariants 6, 10 and 17 hold, and in the end every task is idle and runs again."""
    chance, made, ended, flying = random.Random(seed), [], {}, {}
    end, init = Run.end, Run.__init__

    def counted_init(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(self)

    def counted_end(self, *args, **kwargs):
        ended[self] = ended.get(self, 0) + 1
        end(self, *args, **kwargs)

    monkeypatch.setattr(Run, "end", counted_end)
    monkeypatch.setattr(Run, "__init__", counted_init)
    with Core() as core:
        tasks, lingering = [], []

        def sync_body(name):
            def body():
                assert not flying.get(name), "two bodies of one task"
                flying[name] = True
                try:
                    if chance.random() < 0.5:
                        core.thread.park()
                    if chance.random() < 0.2:
                        raise OSError("by chance")
                    return name
                finally:
                    flying[name] = False

            return body

        def async_body(name):
            async def body():
                assert not flying.get(name), "two bodies of one task"
                flying[name] = True
                try:
                    if chance.random() < 0.5:
                        lingering.append(event := asyncio.Event())
                        await event.wait()
                    if chance.random() < 0.2:
                        raise OSError("by chance")
                    return name
                finally:
                    flying[name] = False

            return body

        for number in range(8):
            name = f"task{number}"
            options = {
                "overlap": chance.choice(["skip", "queue", "replace"]),
                "timeout": chance.choice([None, "20s"]),
                "retry": chance.choice([0, 2]),
                "first_run": chance.choice(["background", "skip"]),
                "needs": chance.sample(tasks, min(len(tasks), chance.choice([0, 0, 1, 2]))),
                "name": name,
            }
            after = chance.sample(tasks, min(len(tasks), chance.choice([0, 0, 1, 2])))
            when = {"after": after} if after else {"period": chance.choice(["7s", "30s", "60s"])}
            make = chance.choice([sync_body, async_body])
            tasks.append(core.schedule(**when, **options)(make(name)))
        core.begin()
        for _ in range(250):
            task = chance.choice(tasks)
            match chance.randrange(12):
                case 0:
                    task.refresh()
                case 1 if core.scheduler.lanes[task.name].run is not None:
                    core.run_of(task).cancel()
                case 2 if core.queued(task) is not None:
                    core.queued(task).cancel()
                case 3:
                    chance.choice([task.pause, task.resume])()
                case 4 if core.thread.parked:
                    core.thread.release(body=chance.choice(core.thread.parked))
                case 5 if lingering:
                    lingering.pop(chance.randrange(len(lingering))).set()
                case 6 if chance.random() < 0.1:
                    core.clock.step(chance.choice([-3600, -10, 10, 3600]))
                case _:
                    core.advance(chance.choice([1, 5, 10, 70]))
            core.go()
            for lane in core.scheduler.lanes.values():
                held = core.scheduler.store._claims.get(lane.task.name)
                assert held == lane.claim, "the lane and the store differ about who holds the claim"
                assert (lane.run is None) == (lane.claim is None), "a run without a claim, or a claim without a run"
        for task in tasks:
            task.pause()
        for _ in range(60):
            while core.thread.parked:
                core.thread.release()
            while lingering:
                lingering.pop().set()
            core.go()
            core.advance(60)

        assert [] == [run for run in made if run.state in (RunState.QUEUED, RunState.RUNNING) and run.reason != "stale"]
        assert {1} == set(ended.values())
        assert {"idle", "failed", "paused"} >= {task.status.state for task in tasks}
        runs = [task.refresh() for task in tasks]
        while core.thread.parked or lingering or core.thread._handed_over:
            while core.thread.parked:
                core.thread.release()
            while lingering:
                lingering.pop().set()
            core.go()
        core.advance(60)
        core.advance(60)
        while core.thread.parked or lingering:
            while core.thread.parked:
                core.thread.release()
            while lingering:
                lingering.pop().set()
            core.go()
            core.advance(60)
        assert all(run.state.final for run in runs)


# ------------------------------------------------------------ fences


def test_a_run_that_lost_its_claim_publishes_nothing(core):
    """The store refuses it in its own transaction (invariant 10)."""
    slow = core.held("slow")
    task = core.schedule(period="1h", first_run="skip")(slow)
    core.begin()
    run = task.refresh()
    core.go()
    core.scheduler.store.void(core.scheduler.lanes["slow"].claim)
    slow.finish("stolen")

    with pytest.raises(RunFenced, match="'slow'"):
        run.result(PATIENCE)
    assert core.scheduler.store.entry(TASK, "slow") is None
    assert not task.status.running


def test_a_slot_that_was_claimed_elsewhere_is_skipped(core):
    """Another process was quicker: no run here, and the run says so."""
    task = core.schedule(period="1m", first_run="skip", name="fetch")(lambda: 1)
    core.begin()
    theirs = core.scheduler.store.claim("fetch", "another", second(60))
    core.run_for(60)
    core.scheduler.store.release(theirs)
    core.run_for(60)

    assert [("skipped", "claimed elsewhere"), ("succeeded", "")] == short(task.history)


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
