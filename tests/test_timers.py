"""One heap of deadlines that follows the wall clock."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from panel_schedule.engine.timers import LOOK, Timers
from panel_schedule.testing import VirtualClock
from panel_schedule.triggers import parse_period


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def timers(clock):
    return Timers(clock)


def at(timers, clock, seconds, then, argument):
    return timers.at(clock.now() + timedelta(seconds=seconds), then, argument)


def fire(timers, clock):
    timers.fire(clock.monotonic())


def look(timers, clock):
    timers.look(clock.now(), clock.monotonic())


def test_timers_fire_in_the_order_of_their_deadlines(timers, clock):
    """Wall timers and delays share one order, whatever the order in which they were set."""
    fired = []
    at(timers, clock, 3, fired.append, 3)
    timers.after(1, fired.append, 1)
    timers.after(4, fired.append, 4)
    at(timers, clock, 2, fired.append, 2)

    clock.advance(10)
    fire(timers, clock)

    assert [1, 2, 3, 4] == fired


def test_timers_of_one_deadline_fire_first_come_first_served(timers, clock):
    """Equal deadlines keep the order in which they were set."""
    fired = []
    for number in range(50):
        timers.after(1, fired.append, number)

    clock.advance(1)
    fire(timers, clock)

    assert list(range(50)) == fired


def test_a_timer_fires_once(timers, clock):
    """What has fired does not fire again."""
    fired = []
    timers.after(1, fired.append, 1)
    clock.advance(1)

    fire(timers, clock)
    fire(timers, clock)

    assert [1] == fired


def test_a_timer_does_not_fire_early(timers, clock):
    """A deadline that is still to come is left alone."""
    fired = []
    timers.after(1, fired.append, 1)

    clock.advance("999ms")
    fire(timers, clock)

    assert [] == fired


def test_a_cancelled_timer_never_fires(timers, clock):
    """Cancelling is final, and harmless a second time, after the firing, or of None."""
    fired = []
    cancelled, kept = timers.after(1, fired.append, "cancelled"), timers.after(1, fired.append, "kept")
    timers.cancel(cancelled)
    timers.cancel(cancelled)
    timers.cancel(None)

    clock.advance(1)
    fire(timers, clock)
    timers.cancel(kept)

    assert ["kept"] == fired
    assert 0 == len(timers)


def test_a_timer_may_cancel_one_that_is_due_with_it(timers, clock):
    """A callback that cancels another of the same instant keeps it from firing."""
    fired = []
    timers.after(1, lambda _: timers.cancel(second), None)
    second = timers.after(1, fired.append, "second")

    clock.advance(1)
    fire(timers, clock)

    assert [] == fired


def test_what_a_callback_sets_has_its_turn_the_next_time(timers, clock):
    """A callback that sets itself again for an instant that has passed starves nobody, and ends."""
    fired = []

    def again(_):
        fired.append("again")
        at(timers, clock, -1, again, None)

    timers.after(1, again, None)
    timers.after(2, fired.append, "other")
    clock.advance(2)
    fire(timers, clock)
    first = list(fired)
    fire(timers, clock)

    assert ["again", "other"] == first
    assert 0.0 == timers.delay()
    assert ["again", "other", "again"] == fired


def test_a_callback_that_raises_loses_no_other(timers, clock):
    """The rest fires the next time."""
    fired = []
    timers.after(1, lambda _: 1 / 0, None)
    timers.after(1, fired.append, "other")
    clock.advance(1)
    with pytest.raises(ZeroDivisionError):
        fire(timers, clock)

    fire(timers, clock)

    assert ["other"] == fired


@pytest.mark.parametrize("step", ["100ms", "33ms", "1ms", "700ms"])
def test_a_wall_timer_is_due_when_the_wall_clock_shows_its_time(timers, clock, step):
    """To the microsecond, also after many steps that binary fractions cannot hold."""
    late, fired = [], []
    for _ in range(3000):
        fired.clear()
        clock.step(0.017)
        look(timers, clock)
        instant = clock.now() + 3 * parse_period(step)
        timers.at(instant, fired.append, instant)
        for _ in range(3):
            clock.advance(step)
            fire(timers, clock)
        late += [] if fired == [clock.now()] else [instant]

    assert [] == late


def test_many_cancelled_timers_leave_few(timers):
    """10,000 cancelled timers are swept out, and are never counted."""
    kept = timers.after(1e6, print, None)
    for number in range(10_000):
        timers.cancel(timers.after(1 + number, print, None))

    assert 1 == len(timers)
    assert len(timers._heap) <= 130
    assert kept.deadline == timers._heap[0][2].deadline or timers._heap[0][2].callback is None


def test_sweeping_keeps_the_living(timers, clock):
    """Whatever is cancelled, the others fire, in order."""
    chance, fired = random.Random(7), []
    deadlines = {number: chance.uniform(1, 100) for number in range(2_000)}
    handles = {number: timers.after(seconds, fired.append, number) for number, seconds in deadlines.items()}
    gone = set(chance.sample(sorted(handles), 1_500))
    for number in gone:
        timers.cancel(handles[number])

    clock.advance(100)
    fire(timers, clock)

    assert sorted(set(deadlines) - gone, key=deadlines.__getitem__) == fired


@pytest.mark.parametrize(("step", "expected"), [(3600, ["wall"]), (-3600, ["delay"]), (0, ["wall", "delay"])])
def test_a_step_of_the_wall_clock_moves_wall_timers_and_no_delays(timers, clock, step, expected):
    """Forward, a wall timer is due at once; back, it is due an hour later; a delay never notices."""
    fired = []
    at(timers, clock, 10, fired.append, "wall")
    timers.after(10 if step <= 0 else 20, fired.append, "delay")

    clock.step(step)
    look(timers, clock)
    clock.advance(10 if step else 20)
    fire(timers, clock)

    assert expected == fired


def test_the_wall_clock_is_looked_at_at_least_every_thirty_seconds(timers, clock):
    """However far the next deadline, and without any, the delay is 30 s at most (invariant 7)."""
    without_any = timers.delay()
    timers.after(3600, print, None)

    assert [30.0, 30.0, 30.0] == [without_any, timers.delay(), LOOK]


def test_the_delay_is_the_time_to_the_next_deadline(timers, clock):
    """A deadline that has passed means no delay at all, never a negative one."""
    timers.after(10, print, None)
    clock.advance(4)
    before = timers.delay()
    clock.advance(10)

    assert [6.0, 0.0] == [before, timers.delay()]


def test_slow_drift_does_not_add_up(timers, clock):
    """Steps that are each too small to notice never sum up to more than half a millisecond."""
    fired = []
    at(timers, clock, 100, fired.append, "wall")

    for _ in range(1000):
        clock.step(0.0001)
        look(timers, clock)
    clock.advance("99.9s")
    look(timers, clock)
    clock.advance("1ms")
    fire(timers, clock)

    assert ["wall"] == fired


@pytest.mark.parametrize("seed", range(20))
def test_after_any_steps_each_wall_timer_fires_when_its_time_is_there(seed):
    """Compared with a list: at each look, exactly those fire whose time the wall clock has reached."""
    chance, clock = random.Random(seed), VirtualClock()
    timers, fired = Timers(clock), []
    waiting = {number: clock.now() + timedelta(seconds=chance.randrange(-50, 500)) for number in range(200)}
    for number, instant in waiting.items():
        timers.at(instant, fired.append, number)
    for _ in range(50):
        if chance.random() < 0.3:
            clock.step(chance.randrange(-120, 120))
        clock.advance(chance.randrange(1, 20))
        due = {number for number, instant in waiting.items() if instant <= clock.now()}
        for number in due:
            del waiting[number]
        fired.clear()

        look(timers, clock)
        fire(timers, clock)

        assert sorted(due) == sorted(fired)


def test_no_more_go_off_than_are_asked_for(timers, clock):
    """The others are due still, in their order."""
    fired = []
    for number in range(5):
        at(timers, clock, 0, fired.append, number)
    timers.fire(clock.monotonic(), 2)

    assert ([0, 1], 0.0) == (fired, timers.delay())
    fire(timers, clock)
    assert [0, 1, 2, 3, 4] == fired
