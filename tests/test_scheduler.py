"""Each policy of ``ps.schedule``, from the clock to the value."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest

from core import PATIENCE, keys, messages, second, short
from panel_schedule.engine.service import AT_ONCE, IN_TURN
from panel_schedule.errors import RegistrationError, RunCancelled, RunTimedOut
from panel_schedule.functions.run import RunState, current_run, progress
from panel_schedule.functions.task import Retry
from panel_schedule.scheduling.state import TaskState
from panel_schedule.triggers import Every

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
    assert 100 >= len(slots) >= 2
    assert {step} == {after - before for before, after in pairwise(slots)}
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
            with suppress(asyncio.CancelledError):
                await event.wait()

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

    assert (RunState.FAILED, 3, repr(errors[2])) == (run.state, run.attempt, repr(run.error))


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


# ------------------------------------------------------------ thousands of tasks


def test_what_is_due_at_once_is_planned_in_many_ticks(core):
    """Between them the lock is free, which the event loop needs; and what others are made of still comes first."""
    count, order = AT_ONCE + 4 * IN_TURN, []

    def ran(name):
        async def run():
            order.append(name)

        return run

    # The one that waits is planned first.
    last = core.schedule(period="1s", first_run="skip", name="last")(ran("last"))
    tasks = [core.schedule(period="1s", first_run="skip", name=f"t{n}")(ran(f"t{n}")) for n in range(count)]
    core.scheduler.states["last"].task.policy = replace(last.policy, needs=(tasks[-1],))
    core.begin()
    core.clock.advance(1)

    planned = []
    while core.service.tick() == 0.0:
        planned.append(sum(task.status.state == "queued" for task in tasks))
    core.go()
    first, *others = (after - before for before, after in pairwise([0, *planned, count]))
    assert first <= AT_ONCE
    assert max(others) <= IN_TURN
    assert [*(task.name for task in tasks), "last"] == order
    assert [second(1)] == keys(last)


def test_upstreams_that_are_planned_in_several_ticks_are_one_wave(core):
    """Which causes one run, with all of their values."""

    async def tick():
        return core.clock.now()

    tasks = [core.schedule(period="1s", first_run="skip", name=f"t{n}")(tick) for n in range(AT_ONCE + IN_TURN)]

    @core.schedule(after=[tasks[0], tasks[-1]], first_run="skip")
    async def both():
        return tasks[0](), tasks[-1]()

    core.begin()
    core.clock.advance(1)
    core.tick()

    assert ((second(1), second(1)), 1) == (both(), both.entry.version)


def test_a_value_that_gets_stale_is_no_matter_to_all_the_others(core, monkeypatch):
    """Whose values are made of it is known: nobody looks through thousands of tasks, for each of thousands."""
    looked, sources = [], TaskState.sources

    def fail():
        raise ValueError("no data")

    def counted(state):
        looked.append(state)
        return sources.fget(state)

    count = 100
    tasks = [core.schedule(period="1s", first_run="skip", name=f"t{n}")(fail) for n in range(count)]
    made = core.schedule(period="1d", first_run="skip", needs=tasks[:1], name="made")(lambda: 1)
    core.begin()
    monkeypatch.setattr(TaskState, "sources", property(counted))
    core.clock.advance(1)
    core.tick()

    assert all(task.status.stale for task in (*tasks, made))
    assert len(looked) < 10 * count


def test_a_task_that_is_gone_is_made_of_nothing(core):
    """Nothing keeps it in memory."""
    raw = core.schedule(period="1s", first_run="skip", name="raw")(lambda: 1)
    made = core.schedule(period="1s", first_run="skip", needs=raw, name="made")(lambda: raw())
    core.begin()
    core.run_for(1)
    waves, state = core.scheduler.waves, weakref.ref(core.scheduler.states["made"].task)
    assert [made] == [each.task for each in waves.products(raw)]
    core.runtime.cancel(made)
    del made
    gc.collect()

    assert ([], None) == (waves.products(raw), state())


def test_a_run_leaves_nothing_to_the_garbage_collector(core):
    """Which stands still for everybody, the longer the more there is."""

    async def tick():
        return 1

    task = core.schedule(period="1s", first_run="skip")(tick)
    core.begin()
    core.run_for(1)
    gc.collect()
    gc.disable()
    try:
        run = weakref.ref(task.refresh())
        core.go()
        assert (2, None) == (task.entry.version, run())
    finally:
        gc.enable()
