"""Triggers: periods, dates, tasks and computed instants. Cron has a file of its own."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from itertools import count, islice
from threading import Barrier
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from panel_schedule.errors import TriggerError
from panel_schedule.triggers import After, Computed, Cron, Dates, Every, Period, Trigger, parse_period

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SALES, RATES = SimpleNamespace(name="sales"), SimpleNamespace(name="rates")

TRIGGERS = [
    Every("15m"),
    Every("1d", anchor=NEW_YEAR + 6 * HOUR),
    Cron("2 4 * * mon,fri", "Europe/Berlin"),
    Dates([NEW_YEAR, NEW_YEAR + HOUR]),
    After(SALES),
    Computed(lambda now: now + HOUR, "hourly"),
]


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
def test_is_a_trigger(trigger: Trigger) -> None:
    """Each fits the protocol, as a user's own class would."""
    assert isinstance(trigger, Trigger)


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
def test_a_naive_question_is_refused(trigger: Trigger) -> None:
    """Without a timezone, an instant is none."""
    with pytest.raises(TriggerError, match="has no timezone"):
        trigger.next_after(datetime(2026, 1, 1))


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
def test_the_answer_is_later_and_in_utc(trigger: Trigger) -> None:
    """In whatever zone the question is asked, and at one of its own instants, too."""
    t: datetime | None = datetime(2025, 12, 31, 18, tzinfo=ZoneInfo("America/New_York"))
    for _ in range(3):
        asked, t = t, trigger.next_after(t)
        if t is None:
            break
        assert (UTC, True) == (t.tzinfo, t > asked)


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        (Every("15m"), "every 15 min"),
        (Every("1 week 90 minutes"), "every 7 d 1 h 30 min"),
        (Every(1.0015), "every 1 s 1 ms 500 us"),
        (Every("1d", anchor=NEW_YEAR + 6 * HOUR), "every 1 d, through 2026-01-01 06:00:00 UTC"),
        (Cron("2 4 * * mon,fri", "Europe/Berlin"), "cron '2 4 * * mon,fri' Europe/Berlin"),
        (Dates(NEW_YEAR), "at 2026-01-01 00:00:00 UTC"),
        (Dates([NEW_YEAR, NEW_YEAR + HOUR]), "at 2 dates from 2026-01-01 00:00:00 UTC to 2026-01-01 01:00:00 UTC"),
        (After(SALES, RATES), "after sales, rates"),
        (Computed(lambda now: None, "market hours"), "computed by market hours"),
    ],
)
def test_reads_as_words(trigger: Trigger, expected: str) -> None:
    """What the monitor and the log show."""
    assert expected == str(trigger)


def test_fingerprints_tell_triggers_apart() -> None:
    """No two schedules share one."""
    assert len(TRIGGERS) == len({trigger.fingerprint for trigger in TRIGGERS})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Every("1h30m"), Every(5400)),
        (Every("15m"), Every("15m", anchor=NEW_YEAR)),
        (Every("1d", anchor=NEW_YEAR + HOUR), Every("1d", anchor=NEW_YEAR - 23 * HOUR)),
        (Every("1d", anchor=NEW_YEAR), Every("1d", anchor=datetime(2026, 1, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")))),
        (Cron("0 9 * * mon", "Europe/Berlin"), Cron("0 0 9 * * 1", ZoneInfo("Europe/Berlin"))),
        (Dates([NEW_YEAR, NEW_YEAR + HOUR]), Dates([NEW_YEAR + HOUR, NEW_YEAR, NEW_YEAR])),
        (After(SALES, RATES), After([RATES, SALES])),
    ],
)
def test_the_same_schedule_has_the_same_fingerprint(one: Trigger, other: Trigger) -> None:
    """However it was written."""
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Every("15m"), Every("16m")),
        (Every("15m"), Every("15m", anchor=NEW_YEAR + timedelta(microseconds=1))),
        (Dates(NEW_YEAR), Dates(NEW_YEAR + timedelta(microseconds=1))),
        (After(SALES), After(SALES, RATES)),
        (After(SimpleNamespace(name="a', 'b")), After(SimpleNamespace(name="a"), SimpleNamespace(name="b"))),
    ],
)
def test_another_schedule_has_another_fingerprint(one: Trigger, other: Trigger) -> None:
    """Down to a microsecond."""
    assert one.fingerprint != other.fingerprint


def test_fingerprints_are_the_same_in_every_process() -> None:
    """Another process, with another seed for its hashes, comes to the same."""
    code = (
        "from panel_schedule.triggers import *; from datetime import datetime, UTC; from types import SimpleNamespace;"
        "sales, rates = SimpleNamespace(name='sales'), SimpleNamespace(name='rates');"
        "print(After(sales, rates).fingerprint, Cron('0 9 */2 * mon#1,fri#2', 'UTC').fingerprint,"
        "Dates(datetime(2026, 1, 1, tzinfo=UTC)).fingerprint)"
    )
    expected = " ".join(
        trigger.fingerprint for trigger in (After(SALES, RATES), Cron("0 9 */2 * mon#1,fri#2", "UTC"), Dates(NEW_YEAR))
    )
    for seed in ("1", "2"):
        process = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert expected == process.stdout.strip()


@pytest.mark.parametrize("trigger", TRIGGERS[:4], ids=str)
def test_survives_a_pickle(trigger: Trigger) -> None:
    """A store keeps the trigger of a reschedule: a copy is equal and answers equally."""
    kept = pickle.loads(pickle.dumps(trigger))
    assert (trigger, hash(trigger)) == (kept, hash(kept))
    assert trigger.next_after(NEW_YEAR) == kept.next_after(NEW_YEAR)


@pytest.mark.parametrize("trigger", TRIGGERS[:5], ids=str)
def test_is_frozen(trigger: Trigger) -> None:
    """A trigger is a value."""
    with pytest.raises(AttributeError):
        setattr(trigger, fields(trigger)[0].name, HOUR)  # type: ignore[arg-type]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
@pytest.mark.parametrize("question", [date(2026, 1, 1), "now", None, Mock(), MagicMock()])
def test_a_question_that_is_no_datetime_is_refused(trigger: Trigger, question: object) -> None:
    """By the package's own error, whatever it pretends to be."""
    with pytest.raises(TriggerError, match="an aware datetime"):
        trigger.next_after(question)  # type: ignore[arg-type]


# -- periods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("30s", timedelta(seconds=30)),
        ("15m", timedelta(minutes=15)),
        ("1h30m", timedelta(minutes=90)),
        ("1d", timedelta(days=1)),
        ("1w", timedelta(weeks=1)),
        ("5 minutes", timedelta(minutes=5)),
        ("1 hour", timedelta(hours=1)),
        ("1 hour 30 minutes", timedelta(minutes=90)),
        ("2 hrs 1 min", timedelta(minutes=121)),
        ("90 sec", timedelta(seconds=90)),
        ("1.5h", timedelta(minutes=90)),
        ("0.1s", timedelta(milliseconds=100)),
        ("  15 M ", timedelta(minutes=15)),
        ("1w2d3h4m5s6ms", timedelta(weeks=1, days=2, hours=3, minutes=4, seconds=5, milliseconds=6)),
        (90, timedelta(seconds=90)),
        (0.5, timedelta(milliseconds=500)),
        (0.001, timedelta(milliseconds=1)),
        (np.int64(5), timedelta(seconds=5)),
        (Fraction(1, 4), timedelta(milliseconds=250)),
        (timedelta(hours=2), timedelta(hours=2)),
        (pd.Timedelta("2h"), timedelta(hours=2)),
    ],
)
def test_a_period_is_read(value: Period, expected: timedelta) -> None:
    """As people write it, in seconds, or as it is; always as a plain timedelta."""
    actual = parse_period(value)
    assert (expected, timedelta) == (actual, type(actual))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "cannot be read"),
        ("  ", "cannot be read"),
        ("abc", "cannot be read"),
        ("5 minutes ago", "cannot be read"),
        ("-5m", "cannot be read"),
        ("5 fortnights", "cannot be read"),
        ("1m1h", "the larger first"),
        ("1h1h", "each once"),
        ("1h30", "cannot be read"),
        ("1,5h", "cannot be read"),
        ("1e3s", "cannot be read"),
        ("٣m", "cannot be read"),
        ("100", "Write '100s', or 100 without quotes"),
        ("0s", "too short: one millisecond"),
        ("0.9ms", "too short: one millisecond"),
        (0, "too short: one millisecond"),
        (-1, "too short: one millisecond"),
        (0.0009, "too short: one millisecond"),
        (timedelta(0), "too short: one millisecond"),
        (timedelta(microseconds=999), "too short: one millisecond"),
        (True, "cannot be read"),
        (float("nan"), "cannot be read"),
        (None, "cannot be read"),
        ([1], "cannot be read"),
        (b"5m", "cannot be read"),
        (np.timedelta64(5, "m"), "cannot be read; pandas.Timedelta"),
        (np.timedelta64("NaT"), "cannot be read"),
        (np.timedelta64(5), "cannot be read"),
        (Mock(), "cannot be read"),
        (MagicMock(), "cannot be read"),
        (float("inf"), "too long"),
        (1e300, "too long"),
        (10**400, "too long"),
        ("9" * 400 + "s", "too long"),
        ("99999999999w", "too long"),
        (timedelta.max, "too long"),
    ],
)
def test_a_meaningless_period_is_refused(value: object, reason: str) -> None:
    """The message says what was given, what is wrong with it, and what is accepted."""
    with pytest.raises(TriggerError, match=reason) as caught:
        parse_period(value)  # type: ignore[arg-type]
    assert (True, True) == (repr(value) in str(caught.value), "'1h30m'" in str(caught.value))


def test_true_is_not_one_second() -> None:
    """Not even after 1 was asked for, which is equal."""
    parse_period(1)
    with pytest.raises(TriggerError):
        parse_period(True)


@pytest.mark.parametrize(
    ("period", "anchor", "t", "expected"),
    [
        ("15m", None, "2026-01-01T12:07:00", "2026-01-01T12:15:00"),
        ("15m", None, "2026-01-01T12:15:00", "2026-01-01T12:30:00"),
        ("15m", None, "2026-01-01T12:14:59.999999", "2026-01-01T12:15:00"),
        ("1d", None, "2026-01-01T12:00:00", "2026-01-02T00:00:00"),
        ("1w", None, "2026-01-01T00:00:00", "2026-01-08T00:00:00"),  # the epoch was a Thursday
        ("7s", None, "1969-12-31T23:59:59", "1970-01-01T00:00:00"),
        ("7s", None, "1969-12-31T23:59:50", "1969-12-31T23:59:53"),
        ("1d", "2026-01-01T06:00:00", "2026-01-05T05:00:00", "2026-01-05T06:00:00"),
        ("1d", "2026-01-01T06:00:00", "2020-01-05T07:00:00", "2020-01-06T06:00:00"),
        ("1d", "2026-01-01T06:00:00", "2026-01-01T06:00:00", "2026-01-02T06:00:00"),
    ],
)
def test_a_period_stands_on_its_grid(period: str, anchor: str | None, t: str, expected: str) -> None:
    """On the epoch, or through the anchor in both directions."""
    start = None if anchor is None else datetime.fromisoformat(anchor).replace(tzinfo=UTC)
    actual = Every(period, start).next_after(datetime.fromisoformat(t).replace(tzinfo=UTC))
    assert datetime.fromisoformat(expected).replace(tzinfo=UTC) == actual


def test_a_period_does_not_drift() -> None:
    """A tenth of a second has no exact float, and the grid does not care."""
    every, t = Every(0.1), NEW_YEAR
    for _ in range(10_000):
        t = every.next_after(t) or t
    assert NEW_YEAR + timedelta(seconds=1_000) == t


def test_a_period_keeps_its_pace_through_a_shift() -> None:
    """An anchor and a question in the same zone are instants, not wall times."""
    zone = ZoneInfo("Europe/Berlin")
    every = Every("1d", anchor=datetime(2026, 3, 28, 12, tzinfo=zone))
    actual = every.next_after(datetime(2026, 3, 28, 13, tzinfo=zone))
    assert datetime(2026, 3, 29, 13, tzinfo=zone).astimezone(UTC) == actual


def test_a_period_ends_with_the_calendar() -> None:
    """Past the year 9999 there is nothing, and no error."""
    assert Every("5000 w").next_after(datetime.max.replace(tzinfo=UTC)) is None


@pytest.mark.parametrize("anchor", [datetime(2026, 1, 1), date(2026, 1, 1), "2026-01-01"])
def test_an_anchor_is_aware(anchor: object) -> None:
    """A wall time without a zone anchors nothing."""
    with pytest.raises(TriggerError, match="The anchor of a period"):
        Every("1d", anchor=anchor)  # type: ignore[arg-type]


# -- dates -------------------------------------------------------------------------------------------------------------


def test_dates_come_in_order() -> None:
    """Sorted, each once, in UTC, and then nothing."""
    berlin = ZoneInfo("Europe/Berlin")
    dates = Dates([NEW_YEAR + HOUR, NEW_YEAR, datetime(2026, 1, 1, 2, tzinfo=berlin)])
    assert (NEW_YEAR, NEW_YEAR + HOUR) == dates.dates
    assert NEW_YEAR == dates.next_after(NEW_YEAR - HOUR)
    assert NEW_YEAR + HOUR == dates.next_after(NEW_YEAR)
    assert dates.next_after(NEW_YEAR + HOUR) is None


def test_one_date_needs_no_list() -> None:
    """A datetime stands for itself."""
    assert Dates([NEW_YEAR]) == Dates(NEW_YEAR)


def test_dates_of_pandas_become_plain_ones() -> None:
    """A key in a store has one form."""
    dates = Dates(pd.date_range("2026-01-01", periods=2, freq="h", tz="UTC"))
    assert (NEW_YEAR, NEW_YEAR + HOUR) == dates.dates
    assert {datetime} == {type(instant) for instant in dates.dates}


@pytest.mark.parametrize(
    ("dates", "reason"),
    [
        ([], "no date"),
        (datetime(2026, 1, 1), "tzinfo="),
        ([NEW_YEAR, datetime(2026, 1, 1)], "tzinfo="),
        (pd.NaT, "no timezone"),
        ([date(2026, 1, 1)], "aware datetime"),
        ("2026-01-01", "'2026-01-01'"),
        (5, "aware datetime"),
    ],
)
def test_what_is_no_date_is_refused(dates: object, reason: str) -> None:
    """With what is wrong, or how to add a timezone."""
    with pytest.raises(TriggerError, match=reason):
        Dates(dates)  # type: ignore[arg-type]


# -- after -------------------------------------------------------------------------------------------------------------


def test_after_has_no_next_instant() -> None:
    """Its slots come from the tasks that it follows."""
    assert After(SALES).next_after(NEW_YEAR) is None


@pytest.mark.parametrize("tasks", [(SALES, RATES), ([SALES, RATES],), ((SALES, RATES),)])
def test_after_takes_tasks_or_a_list_of_them(tasks: tuple[object, ...]) -> None:
    """`after=raw` and `after=[raw, other]` are both natural."""
    assert (SALES, RATES) == After(*tasks).tasks


@pytest.mark.parametrize("tasks", [(), ([],), ("sales",), (SALES, None), (SimpleNamespace(name=None),)])
def test_after_refuses_what_is_no_task(tasks: tuple[object, ...]) -> None:
    """A name is no task, nor is nothing."""
    with pytest.raises(TriggerError, match="after="):
        After(*tasks)


# -- computed ----------------------------------------------------------------------------------------------------------


def hours(start: datetime = NEW_YEAR) -> Iterator[datetime]:
    return (start + number * HOUR for number in count())


def test_computed_instants_come_from_the_function() -> None:
    """Asked with an instant in UTC, it gives the next one."""
    asked = []

    def source(now: datetime) -> datetime:
        asked.append(now)
        return now + HOUR

    trigger = Computed(source, "later")
    assert NEW_YEAR + HOUR == trigger.next_after(NEW_YEAR.astimezone(ZoneInfo("Asia/Tokyo")))
    assert NEW_YEAR + 2 * HOUR == trigger.next_after(NEW_YEAR + HOUR)
    assert [NEW_YEAR, NEW_YEAR + HOUR] == asked
    assert {UTC} == {now.tzinfo for now in asked}


def test_a_function_is_never_asked_about_the_past() -> None:
    """It is asked with the last instant that it gave, when that is later than the question."""
    answers, asked = iter([NEW_YEAR + HOUR, NEW_YEAR + 2 * HOUR]), []

    def source(now: datetime) -> datetime:
        asked.append(now)
        return next(answers)

    trigger = Computed(source, "later")
    trigger.next_after(NEW_YEAR)
    assert NEW_YEAR + 2 * HOUR == trigger.next_after(NEW_YEAR + HOUR)
    assert [NEW_YEAR, NEW_YEAR + HOUR] == asked


def test_an_endless_iterator_is_consumed_as_late_as_possible() -> None:
    """Each element is pulled once, and only when it is needed."""
    pulled = []

    def endless() -> Iterator[datetime]:
        for instant in hours():
            pulled.append(instant)
            yield instant

    trigger = Computed.from_iterable(endless(), "hourly")
    assert [] == pulled
    for t in (NEW_YEAR, NEW_YEAR, NEW_YEAR + HOUR / 2, NEW_YEAR - HOUR, NEW_YEAR):
        trigger.next_after(t)
    assert [NEW_YEAR, NEW_YEAR + HOUR] == pulled


def test_computed_instants_are_remembered() -> None:
    """Looking back gives what was there, as a formula would, in any order."""
    trigger = Computed.from_iterable(hours(), "hourly")
    assert NEW_YEAR + 500 * HOUR == trigger.next_after(NEW_YEAR + 499.5 * HOUR)
    for number in (7, 499, 0, 250):
        assert NEW_YEAR + number * HOUR == trigger.next_after(NEW_YEAR + (number - 0.5) * HOUR)


def test_memory_is_bounded() -> None:
    """Of an endless past only the last 1024 stay; about a time before them, the oldest of them is the answer."""
    trigger = Computed.from_iterable(hours(), "hourly")
    assert NEW_YEAR + 5_000 * HOUR == trigger.next_after(NEW_YEAR + 4_999 * HOUR)
    assert NEW_YEAR + (5_000 - 1_023) * HOUR == trigger.next_after(NEW_YEAR)


def test_none_is_the_end() -> None:
    """From then on the function is left alone, and the known instants stay."""
    answers = iter([NEW_YEAR, None, NEW_YEAR + HOUR])
    trigger = Computed(lambda now: next(answers), "once")
    assert [None, None, NEW_YEAR] == [trigger.next_after(NEW_YEAR + offset) for offset in (0 * HOUR, HOUR, -HOUR)]


def test_an_exhausted_iterator_is_the_end() -> None:
    """A finite one ends like a list."""
    trigger = Computed.from_iterable(islice(hours(), 2), "twice")
    assert [NEW_YEAR + HOUR, None] == [trigger.next_after(NEW_YEAR + offset) for offset in (0 * HOUR, HOUR)]


def test_an_instant_out_of_order_is_skipped() -> None:
    """Slots only advance."""
    trigger = Computed.from_iterable([NEW_YEAR, NEW_YEAR - HOUR, NEW_YEAR, NEW_YEAR + HOUR], "unsorted")
    assert NEW_YEAR + HOUR == trigger.next_after(NEW_YEAR)


def test_a_function_that_never_advances_is_given_up() -> None:
    """After a thousand tries, with what is wrong; the next ask tries again."""
    asked = []

    def stuck(now: datetime) -> datetime:
        asked.append(now)
        return NEW_YEAR

    trigger = Computed(stuck, "stuck")
    for tries in (1_001, 2_001):
        with pytest.raises(TriggerError, match="stuck gave 1000 dates in a row"):
            trigger.next_after(NEW_YEAR)
        assert tries == len(asked)


@pytest.mark.parametrize(
    ("given", "reason"), [(datetime(2026, 1, 1), "tzinfo="), (date(2026, 1, 1), "aware datetime"), (5.0, "not 5.0")]
)
def test_what_a_function_gives_has_to_be_aware(given: object, reason: str) -> None:
    """The message names the schedule."""
    with pytest.raises(TriggerError, match=f"What broken gave.*{reason}"):
        Computed(lambda now: given, "broken").next_after(NEW_YEAR)  # type: ignore[arg-type, return-value]


def test_errors_of_a_function_pass_and_it_is_asked_again() -> None:
    """What it raises is the user's, and the next ask is a new one."""
    answers = iter([ZeroDivisionError("mine"), NEW_YEAR + HOUR])

    def source(now: datetime) -> datetime:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    trigger = Computed(source, "moody")
    with pytest.raises(ZeroDivisionError, match="mine"):
        trigger.next_after(NEW_YEAR)
    assert NEW_YEAR + HOUR == trigger.next_after(NEW_YEAR)


def test_threads_pull_each_instant_once() -> None:
    """A generator that two threads enter at once would raise; a lost instant would leave a hole."""
    trigger, barrier = Computed.from_iterable(hours(), "hourly"), Barrier(4)

    def walk(_: int) -> list[datetime | None]:
        barrier.wait()
        return [trigger.next_after(NEW_YEAR + number * HOUR) for number in range(900)]

    with ThreadPoolExecutor(4) as pool:
        walks = list(pool.map(walk, range(4)))
    assert [list(islice(hours(NEW_YEAR + HOUR), 900))] * 4 == walks


def test_a_function_that_asks_its_own_trigger_does_not_hang() -> None:
    """It recurs, which is an error; a deadlock would be silence."""
    trigger: Computed = Computed(lambda now: trigger.next_after(now), "itself")
    with pytest.raises(RecursionError):
        trigger.next_after(NEW_YEAR)
