"""What is due and what to do about it: tables and brute force against the planner."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from panel_schedule.functions.run import Cause
from panel_schedule.functions.task import Overlap
from panel_schedule.scheduling.planner import (
    ON_TIME,
    Action,
    Decision,
    Due,
    Stretch,
    decide,
    due,
    last_slot,
    latest_slot,
)
from panel_schedule.triggers import After, Computed, Cron, Dates, Every

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Counted:
    """A trigger that counts how often it is asked."""

    def __init__(self, trigger):
        self.trigger = trigger
        self.asked = 0

    def next_after(self, t):
        self.asked += 1
        return self.trigger.next_after(t)


# ------------------------------------------------------------ decide


def expected_decision(overlap, catch_up, missed, paused, idle, busy, late) -> Decision:
    """The rules of DESIGN (2.1, 5, 6), read as prose and written down anew."""
    latest = NOW - late
    first = latest - missed * SECOND

    def skip(reason):
        return Decision(Action.SKIP, latest, Stretch(first, latest, reason))

    if paused:
        return skip("paused")
    if idle:
        return skip("idle")
    if not catch_up and late > ON_TIME:
        return skip("missed")
    if busy and overlap == "skip":
        return skip("overlap" if busy is Cause.OVERLAP else "abandoned")
    left_out = Stretch(first, latest - SECOND, "missed") if missed else None
    if not busy:
        return Decision(Action.RUN, latest, left_out)
    # An abandoned body cannot be replaced: what comes after it has to wait for it.
    replaces = overlap == "replace" and busy is Cause.OVERLAP
    return Decision(Action.REPLACE if replaces else Action.QUEUE, latest, left_out)


CASES = list(
    product(
        Overlap,
        (True, False),
        (0, 1, 40),
        (True, False),
        (True, False),
        (None, Cause.OVERLAP, Cause.ABANDONED),
        (timedelta(0), timedelta(hours=1)),
    )
)


@pytest.mark.parametrize(("overlap", "catch_up", "missed", "paused", "idle", "busy", "late"), CASES)
def test_every_combination_is_decided_by_the_rules(overlap, catch_up, missed, paused, idle, busy, late):
    """Paused goes before idle, idle before missed, missed before busy; at most the latest slot runs."""
    trigger = Every("1s")
    pending = Due(NOW - late - missed * SECOND, NOW - late, NOW - late + SECOND)

    decision = decide(
        pending, NOW, overlap=overlap, catch_up=catch_up, paused=paused, idle=idle, busy=busy, trigger=trigger
    )

    assert expected_decision(overlap, catch_up, missed, paused, idle, busy, late) == decision


def test_all_combinations_are_covered():
    """The table above is the whole product of the policies and states."""
    assert 3 * 2 * 3 * 2 * 2 * 3 * 2 == len(set(CASES))


def test_a_slot_is_missed_only_after_the_longest_time_between_two_looks():
    """With catch_up=False a slot that is 30 s late still runs, and one a moment later does not."""
    on_time, too_late = NOW - ON_TIME, NOW - ON_TIME - timedelta(microseconds=1)

    actions = [decide(Due(slot, slot, None), NOW, catch_up=False).action for slot in (on_time, too_late)]

    assert [Action.RUN, Action.SKIP] == actions


def test_the_skipped_stretch_ends_with_the_last_slot_before_the_one_that_runs():
    """The record of missed slots names slots of the trigger, and not instants between them."""
    dates = [NOW - timedelta(hours=hours) for hours in (9, 7, 4, 1)]
    pending = due(Dates(dates), dates[0], NOW)

    decision = decide(pending, NOW, trigger=Dates(dates))

    assert Decision(Action.RUN, dates[3], Stretch(dates[0], dates[2], "missed")) == decision


# ------------------------------------------------------------ due


def test_nothing_is_due_before_the_next_slot():
    """A slot that is still to come is not due, and neither is no slot at all."""
    assert [None, None] == [due(Every("1s"), NOW + SECOND, NOW), due(Every("1s"), None, NOW)]


def test_a_slot_is_due_at_its_very_instant():
    """The slot's own instant counts as due, and the following one as upcoming."""
    assert Due(NOW, NOW, NOW + SECOND) == due(Every("1s"), NOW, NOW)


def test_a_month_of_missed_seconds_is_found_with_few_questions():
    """2.6 million missed slots cost fewer than 60 calls of next_after (invariant 5)."""
    trigger = Counted(Every("1s"))
    first = NOW - timedelta(days=30)

    pending = due(trigger, first, NOW + timedelta(milliseconds=400))

    assert Due(first, NOW, NOW + SECOND) == pending
    assert trigger.asked < 60


def test_a_sparse_cron_is_found_with_few_questions():
    """Years between two slots cost a few dozen calls, not one per second or day."""
    trigger = Counted(Cron("0 0 29 2 *", timezone="UTC"))

    found = last_slot(trigger, NOW)

    assert datetime(2024, 2, 29, tzinfo=UTC) == found
    assert trigger.asked < 100


def test_a_year_of_missed_minutes_in_a_zone_is_found():
    """Daylight saving time in between does not disturb the search."""
    cron = Cron("30 2 * * *", timezone="Europe/Berlin")
    first = cron.next_after(NOW - timedelta(days=365))

    pending = due(cron, first, NOW)

    assert Due(first, datetime(2026, 3, 1, 1, 30, tzinfo=UTC), datetime(2026, 3, 2, 1, 30, tzinfo=UTC)) == pending


def test_used_up_dates_have_no_upcoming_slot():
    """After the last date nothing follows."""
    dates = [NOW - timedelta(hours=2), NOW - timedelta(hours=1)]

    assert Due(dates[0], dates[1], None) == due(Dates(dates), dates[0], NOW)


def test_dates_close_together_are_told_apart():
    """Two slots a microsecond apart are two slots."""
    dates = [NOW - timedelta(microseconds=2), NOW - timedelta(microseconds=1)]

    assert dates[1] == latest_slot(Dates(dates), dates[0], NOW)


def test_a_trigger_without_a_past_has_no_last_slot():
    """Dates to come, and after=, have no slot up to now."""
    task = type("Named", (), {"name": "raw"})()
    triggers = [Dates(NOW + SECOND), After(task), Computed(lambda now: None, "never")]

    assert [None, None, None] == [last_slot(trigger, NOW) for trigger in triggers]


def test_the_search_ends_at_the_given_instant():
    """No slot earlier than not_before is found, and one at it is."""
    dates = Dates([NOW - timedelta(hours=2)])
    bounds = (NOW - timedelta(hours=3), NOW - timedelta(hours=2), NOW - timedelta(hours=1))

    assert [dates.dates[0], dates.dates[0], None] == [last_slot(dates, NOW, not_before=bound) for bound in bounds]


def test_an_iterator_gives_each_date_once():
    """Looking back over dates that come one by one finds the last of them, and loses none."""
    asked = []

    def dates():
        for number in range(4):
            asked.append(number)
            yield NOW - (9 - number) * SECOND

    trigger = Computed.from_iterable(dates(), "dates")
    first = trigger.next_after(NOW - 10 * SECOND)

    pending = due(trigger, first, NOW)

    assert Due(NOW - 9 * SECOND, NOW - 6 * SECOND, None) == pending
    assert [0, 1, 2, 3] == asked


# ------------------------------------------------------------ brute force


def brute_slots(trigger, first, now):
    """All slots from `first` to `now`, one by one."""
    slots, slot = [], first
    while slot is not None and slot <= now:
        slots.append(slot)
        slot = trigger.next_after(slot)
    return slots, slot


def a_trigger(random):
    kind = random.randrange(4)
    if kind == 0:
        period = random.choice([0.05, 0.7, 1, 3, 60, 977.13, 86400])
        anchor = NOW - timedelta(seconds=random.uniform(0, 10**6)) if random.random() < 0.5 else None
        return Every(period, anchor=anchor), period * random.uniform(0, 400)
    if kind == 1:
        minute, hour = random.randrange(60), random.choice(["*", "*/5", "7", "2,14"])
        return Cron(f"{minute} {hour} * * *", timezone=random.choice(["UTC", "Europe/Berlin"])), 86400 * 20
    span = random.choice([1, 60, 10**6])
    dates = [NOW - timedelta(seconds=random.uniform(-span / 4, span)) for _ in range(random.randrange(1, 30))]
    if kind == 2:
        return Dates(dates), span
    return Computed.from_iterable(sorted(dates), "dates"), span


@pytest.mark.parametrize("seed", range(300))
def test_what_is_due_is_what_enumeration_finds(seed):
    """First, latest and upcoming slot agree with walking over every single one."""
    chance = random.Random(seed)
    trigger, span = a_trigger(chance)
    now = NOW + timedelta(seconds=chance.choice([0, 0, chance.uniform(-5, 5)]))
    first = trigger.next_after(now - timedelta(seconds=span * chance.random()))
    slots, upcoming = brute_slots(trigger, first, now)

    pending = due(trigger, first, now)

    assert (Due(slots[0], slots[-1], upcoming) if slots else None) == pending


@pytest.mark.parametrize("seed", range(200))
def test_the_last_slot_is_the_one_that_enumeration_finds(seed):
    """Looking back without a known first slot finds the last one all the same."""
    chance = random.Random(1000 + seed)
    trigger, span = a_trigger(chance)
    start = NOW - timedelta(seconds=span)
    slots, _ = brute_slots(trigger, trigger.next_after(start), NOW)

    found = last_slot(trigger, NOW, not_before=start + timedelta(microseconds=1))

    assert (slots[-1] if slots else None) == found
