"""Cron schedules: the Vixie rule over the shifts of a zone, and what is refused."""

from __future__ import annotations

import random
import struct
import sys
from calendar import monthrange
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import MAXYEAR, UTC, date, datetime, time, timedelta
from functools import cache, partial
from io import BytesIO
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from croniter import CroniterBadDateError, croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from cron_reference import MINUTE, Schedule, Tick, clock
from panel_schedule.errors import TriggerError
from panel_schedule.triggers import Cron, Every
from panel_schedule.triggers.cron import CronExpression, Dialect

DAY = timedelta(days=1)
NOON = time(12)

SHIFTS = [
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"),
    ("Europe/Riga", "2021-03-28"),
    ("Europe/Riga", "2021-10-31"),
    ("America/Sao_Paulo", "2018-11-04"),  # at midnight
    ("America/Sao_Paulo", "2019-02-17"),
    ("Australia/Lord_Howe", "2026-04-05"),  # 30 min
    ("Australia/Lord_Howe", "2026-10-04"),
    ("Pacific/Apia", "2011-09-24"),
    ("Pacific/Apia", "2011-12-30"),  # a day that never was
    ("Pacific/Apia", "2012-04-01"),
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("Europe/Dublin", "2026-03-29"),
    ("Europe/Dublin", "2026-10-25"),
    ("Africa/Casablanca", "2023-03-19"),
    ("Africa/Casablanca", "2023-04-23"),
    ("Antarctica/Troll", "2026-03-29"),  # 2 h
    ("Antarctica/Troll", "2026-10-25"),
    ("America/St_Johns", "2010-03-14"),  # at 00:01
    ("America/St_Johns", "2010-11-07"),
    ("America/Caracas", "2007-12-09"),
    ("America/Caracas", "2016-05-01"),
    ("Asia/Pyongyang", "2015-08-15"),
    ("Asia/Pyongyang", "2018-05-05"),
    ("Asia/Kathmandu", "1986-01-01"),  # 15 min
    ("Asia/Tehran", "2021-03-22"),
    ("Asia/Tehran", "2021-09-22"),
    ("America/Godthab", "2023-03-26"),
    ("America/Godthab", "2024-10-27"),
    ("Asia/Dhaka", "2009-06-20"),
    ("Asia/Dhaka", "2009-12-31"),  # the fold ends with the year
    ("Africa/Cairo", "2023-04-28"),
    ("Antarctica/Casey", "2009-10-18"),  # forward by 3 h: a change of date
    ("Antarctica/Casey", "2010-03-05"),  # back by 3 h: a fold
    ("Antarctica/Vostok", "1994-02-01"),  # back by 7 h
    ("Antarctica/Vostok", "1994-11-01"),
    ("Pacific/Kwajalein", "1993-08-21"),
    ("Pacific/Kiritimati", "1994-12-31"),
    ("Asia/Kolkata", "2026-03-08"),  # none
]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


FAR = at("9000-01-01T00:00Z")


def walk(
    next_after: Callable[[datetime], datetime | None], t: datetime, *, until: datetime, limit: int
) -> list[datetime]:
    """The times after `t` and before `until`, at most `limit`."""
    found: list[datetime] = []
    while len(found) < limit and (following := next_after(t)) is not None and following < until:
        found.append(t := following)
    return found


@pytest.mark.parametrize(
    ("zone", "expr", "start", "expected"),
    [
        pytest.param(
            "America/New_York",
            "30 2 * * *",
            "2026-03-07T12:00Z",
            ["2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00"],
            id="a fixed time in a gap runs at its end",
        ),
        pytest.param(
            "America/New_York",
            "0,20,40 2 * * *",
            "2026-03-07T12:00Z",
            ["2026-03-08T03:00-04:00", "2026-03-09T02:00-04:00"],
            id="several fixed times in a gap run once",
        ),
        pytest.param(
            "America/New_York",
            "30 1 * * *",
            "2026-10-31T12:00Z",
            ["2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"],
            id="a fixed time in a fold runs in its first pass",
        ),
        pytest.param(
            "Europe/Riga",
            "*/30 * * * *",
            "2021-10-30T23:40Z",
            [
                "2021-10-31T03:00+03:00",
                "2021-10-31T03:30+03:00",
                "2021-10-31T03:00+02:00",
                "2021-10-31T03:30+02:00",
                "2021-10-31T04:00+02:00",
            ],
            id="a wildcard job runs in both passes of a fold",
        ),
        pytest.param(
            "America/Sao_Paulo",
            "0 0 * * *",
            "2018-11-03T12:00Z",
            ["2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00"],
            id="a midnight that never was runs at one",
        ),
        pytest.param(
            "Australia/Lord_Howe",
            "45 1 * * *",
            "2026-04-04T00:00Z",
            ["2026-04-05T01:45+11:00", "2026-04-06T01:45+10:30"],
            id="half an hour back is a fold of half an hour",
        ),
        pytest.param(
            "Australia/Lord_Howe",
            "30 * * * *",
            "2026-10-04T00:00+10:30",
            [
                "2026-10-04T00:30+10:30",
                "2026-10-04T01:30+10:30",
                "2026-10-04T02:30+11:00",
                "2026-10-04T03:30+11:00",
            ],
            id="half an hour forward is a gap of half an hour",
        ),
        pytest.param(
            "America/New_York",
            "*/30 2 * * *",
            "2026-03-08T00:00-05:00",
            ["2026-03-09T02:00-04:00", "2026-03-09T02:30-04:00"],
            id="a wildcard job sees nothing of a gap",
        ),
        pytest.param(
            "Pacific/Apia",
            "0 12 * * *",
            "2011-12-28T00:00Z",
            ["2011-12-28T12:00-10:00", "2011-12-29T12:00-10:00", "2011-12-31T12:00+14:00"],
            id="a day that never was runs nothing",
        ),
        pytest.param(
            "Antarctica/Casey",
            "30 1 * * *",
            "2010-03-04T00:00Z",
            ["2010-03-05T01:30+11:00", "2010-03-06T01:30+08:00"],
            id="three hours back are a fold",
        ),
        pytest.param(
            "Antarctica/Casey",
            "30 3 * * *",
            "2009-10-16T23:00Z",
            ["2009-10-19T03:30+11:00"],
            id="three hours forward are a change of date",
        ),
        pytest.param(
            "Antarctica/Vostok",
            "0 20 * * *",
            "1994-01-31T00:00Z",
            ["1994-01-31T20:00+07:00", "1994-01-31T20:00+00:00", "1994-02-01T20:00+00:00"],
            id="more than three hours back are a change of date",
        ),
        pytest.param(
            "America/New_York",
            "0 9 */2 * 1",
            "2026-08-31T00:00Z",
            ["2026-08-31T09:00-04:00", "2026-09-07T09:00-04:00", "2026-09-21T09:00-04:00"],
            id="day and weekday are AND-ed beside a star",
        ),
        pytest.param(
            "UTC",
            "0 9 1-7 * 1",
            "2026-08-31T00:00Z",
            ["2026-08-31T09:00Z", "2026-09-01T09:00Z", "2026-09-02T09:00Z"],
            id="day and weekday are OR-ed without one",
        ),
        pytest.param(
            "UTC",
            "0 0 15 * mon#2",
            "2026-09-01T00:00Z",
            ["2026-09-14T00:00Z", "2026-09-15T00:00Z", "2026-10-12T00:00Z"],
            id="OR holds beside a nth weekday",
        ),
        pytest.param(
            "UTC",
            "0 0 30W * 1",
            "2026-05-26T00:00Z",
            ["2026-05-29T00:00Z", "2026-06-01T00:00Z"],
            id="OR holds beside a nearest working day",
        ),
        pytest.param(
            "UTC",
            "0 0 31 2 mon",
            "2026-02-03T00:00Z",
            ["2026-02-09T00:00Z", "2026-02-16T00:00Z"],
            id="a day that never comes leaves the weekday",
        ),
        pytest.param(
            "UTC",
            "0 0 L * *",
            "2028-02-01T00:00Z",
            ["2028-02-29T00:00Z", "2028-03-31T00:00Z"],
            id="L is the last day",
        ),
        pytest.param(
            "UTC",
            "0 18 * * L5",
            "2026-01-01T00:00Z",
            ["2026-01-30T18:00Z", "2026-02-27T18:00Z"],
            id="L5 is the last Friday",
        ),
        pytest.param(
            "UTC",
            "0 18 * * 5L",
            "2026-01-01T00:00Z",
            ["2026-01-30T18:00Z", "2026-02-27T18:00Z"],
            id="5L, too",
        ),
        pytest.param(
            "UTC",
            "0 0 L-3 * *",
            "2028-02-01T00:00Z",
            ["2028-02-26T00:00Z", "2028-03-28T00:00Z", "2028-04-27T00:00Z"],
            id="L-3 is the third day before the last",
        ),
        pytest.param(
            "UTC",
            "0 0 15,L-1,L-3 2,3 *",
            "2026-02-01T00:00Z",
            ["2026-02-15T00:00Z", "2026-02-25T00:00Z", "2026-02-27T00:00Z", "2026-03-15T00:00Z", "2026-03-28T00:00Z"],
            id="L-3 in a list",
        ),
        pytest.param(
            "UTC",
            "0 0 L-3 * mon",
            "2026-01-20T00:00Z",
            ["2026-01-26T00:00Z", "2026-01-28T00:00Z", "2026-02-02T00:00Z"],
            id="L-3 or a weekday",
        ),
        pytest.param(
            "UTC",
            "0 0 29 2 */7",
            "2026-01-01T00:00Z",
            ["2032-02-29T00:00Z", "2060-02-29T00:00Z", "2088-02-29T00:00Z", "2128-02-29T00:00Z"],
            id="a leap Sunday is found forty years ahead",
        ),
        pytest.param(
            "UTC",
            "10-10 8-8/2 * * *",
            "2026-01-01T00:00Z",
            ["2026-01-01T08:10Z", "2026-01-02T08:10Z"],
            id="a range of one value is that value",
        ),
        pytest.param(
            "UTC",
            "0 */15 * * * *",
            "2026-01-01T00:00Z",
            ["2026-01-01T00:15Z", "2026-01-01T00:30Z"],
            id="six fields begin with the seconds",
        ),
        pytest.param(
            "America/New_York",
            "*/20 30 2 * * *",
            "2026-03-07T12:00Z",
            ["2026-03-08T03:00-04:00", "2026-03-09T02:30-04:00", "2026-03-09T02:30:20-04:00"],
            id="seconds in a gap run once",
        ),
        pytest.param(
            "Europe/Berlin",
            "@daily",
            "2026-01-01T12:00Z",
            ["2026-01-02T00:00+01:00"],
            id="nicknames",
        ),
        pytest.param(
            "Asia/Dhaka",
            "30 23 * * *",
            "2009-12-31T00:00Z",
            ["2009-12-31T23:30+07:00", "2010-01-01T23:30+06:00"],
            id="a fold at the end of the year",
        ),
    ],
)
def test_next_after(zone: str, expr: str, start: str, expected: list[str]) -> None:
    """Known times around the shifts of a zone."""
    actual = walk(Cron(expr, zone).next_after, at(start), until=FAR, limit=len(expected))
    assert [at(time) for time in expected] == actual


def test_next_is_strictly_later() -> None:
    """Asked with one of its own times, a schedule gives the next one; a microsecond before, that time."""
    cron, noon = Cron("0 12 * * *", "UTC"), at("2026-01-01T12:00Z")
    assert noon + DAY == cron.next_after(noon)
    assert noon + DAY == cron.next_after(noon + timedelta(microseconds=1))
    assert noon == cron.next_after(noon - timedelta(microseconds=1))


def test_any_zone_may_ask() -> None:
    """The instant counts, not the zone that it is written in; the answer is in UTC."""
    cron = Cron("0 12 * * *", "Asia/Tokyo")
    expected = at("2026-01-01T03:00Z")
    actual = cron.next_after(datetime(2025, 12, 31, 23, tzinfo=ZoneInfo("America/New_York")) - timedelta(hours=2))
    assert (expected, UTC) == (actual, actual.tzinfo if actual else None)


def test_the_calendar_ends() -> None:
    """Near the ends of the calendar there is an answer, or none, but no error."""
    cron = Cron("0 0 29 2 *", "Europe/Berlin")
    assert cron.next_after(datetime.max.replace(tzinfo=UTC)) is None
    assert cron.next_after(datetime(MAXYEAR - 100, 1, 1, tzinfo=UTC)) is None
    assert cron.next_after(datetime(MAXYEAR - 101, 12, 31, tzinfo=UTC)) is not None
    assert cron.next_after(datetime.min.replace(tzinfo=UTC)) is not None


def test_what_always_falls_into_the_gap_has_no_next() -> None:
    """Riga's clocks skip this hour each year, and a wildcard job follows them: the search ends."""
    assert Cron("*/5 3 * 3 L0", "Europe/Riga").next_after(at("2026-01-01T00:00Z")) is None


# -- against the reference ---------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Three days around a shift, and what the reference's clock shows in them."""

    zone: ZoneInfo
    start: datetime
    end: datetime
    shift: datetime
    wall: datetime
    ticks: tuple[Tick, ...]


@cache
def window(zone: ZoneInfo, day: str) -> Window:
    middle = datetime.fromisoformat(day).replace(tzinfo=zone).astimezone(UTC)
    start, end = middle - DAY, middle + 2 * DAY
    ticks = tuple(clock(zone, start, end))
    shifts = [after for before, after in pairwise(ticks) if after[1] - before[1] != MINUTE]
    shift, wall, _ = shifts[0] if shifts else ticks[len(ticks) // 2]
    return Window(zone, start, end, shift, wall, ticks)


def turn_of_year(rule: str) -> ZoneInfo:
    """A zone without a name, and with a rule of its own in the syntax of POSIX's TZ."""
    header = b"TZif2" + bytes(15)
    one_type = header + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lbb", 0, 0, 0) + b"STD\0"
    return ZoneInfo.from_file(BytesIO(one_type + one_type + f"\n{rule}\n".encode()))


WINDOWS = [
    *((ZoneInfo(zone), day) for zone, day in SHIFTS),
    (turn_of_year("STD1DST0,J100/0,J365/23:30"), "2026-12-31"),  # a fold from 23:30 to 00:30 UTC
    (turn_of_year("STD1DST0,J100/0,J364/23:30"), "2026-12-30"),
    (turn_of_year("STD0DST-1,J1/0,J200/0"), "2027-01-01"),  # a gap at midnight UTC
]


def number_field(rng: random.Random, low: int, high: int, near: int) -> str:
    """A random field of numbers, often close to a given one."""
    one, *_, other = sorted(rng.sample(range(low, high + 1), 3))
    before, after = max(low, near - rng.randint(0, 2)), min(high, near + rng.randint(0, 2))
    step = rng.choice([1, 2, 3, 5, 10, 15, 20, 30])
    lists = [f"{one}", f"{one},{other}", f"{one}-{other}", f"{one}-{other}/{step}", f"{one}/{step}", f"{one:02}-{one}"]
    nearby = [f"{before}", f"{after}", f"{before},{after}"] + [f"{before}-{after}"] * (before < after)
    return rng.choice(["*", f"*/{step}", *lists, *nearby])


def random_expression(rng: random.Random, near: datetime, ours: bool = True) -> str:
    """An expression that is likely to match around a local time; also one that croniter cannot read, if `ours`."""
    minute, hour = number_field(rng, 0, 59, rng.choice([0, 15, 30, 45])), number_field(rng, 0, 23, near.hour)
    months = [f"{near.month}", f"{near:%b}", f"{near:%b}-{near.month}", "*/2", "1-6", "3,10"]
    month = rng.choice(["*", "*", "*", "*", *months])
    before, day, after = (max(1, min(28, near.day + offset)) for offset in (-1, 0, 1))
    days = [*"*****", "*/2", f"{day}", f"{before},{after}", f"{before}-29", "*/3", f"{day}W", "L"]
    if ours:
        days += ["LW", f"L-{rng.randint(1, 27)}", f"{day},L-{rng.randint(1, 3)}", f"L-{min(27, max(1, 30 - day))}"]
    sunday_first = near.isoweekday() % 7
    weekdays = [
        *"*****",
        "0",
        "7",
        "1-5",
        "sun,mon",
        "*/2",
        "6-7",
        f"{near:%a}-{sunday_first}",
        f"{near:%a}#{rng.randint(1, 4)}",
        f"L{sunday_first}",
    ]
    weekdays += [f"{sunday_first}L", f"{near:%a}L"] if ours else []
    seconds = rng.choice([""] * 6 + ["0 ", "30 ", "*/20 ", "15,45 ", "* "])
    return f"{seconds}{minute} {hour} {rng.choice(days)} {month} {rng.choice(weekdays)}".lower()


def random_instant(rng: random.Random, around: Window) -> datetime:
    """Anywhere in a window, but often close to the shift, and a second or nothing from a round time."""
    t = around.start + rng.random() * (around.end - around.start)
    if rng.random() < 0.6:
        t = around.shift + rng.uniform(-3, 4) * timedelta(hours=1)
    if rng.random() < 0.6:
        round_times = [around.shift, t.replace(minute=rng.choice([0, 30]), second=0, microsecond=0)]
        t = rng.choice(round_times) + rng.choice([-1, 0, 1]) * timedelta(seconds=1)
    return t


def disagreements(seed: int, walks: int) -> list[tuple[str, ZoneInfo, datetime]]:
    """Random walks that differ from the reference: expression, zone, start."""
    rng, found = random.Random(seed), []
    for _ in range(walks):
        around = window(*rng.choice(WINDOWS))
        expr, t = random_expression(rng, around.wall), random_instant(rng, around)
        expected = [run for run in Schedule(expr).runs(around.ticks) if run > t][:12]
        next_after = partial(CronExpression.parse(expr).next_after, zone=around.zone)
        if expected != walk(next_after, t, until=around.end, limit=12):
            found.append((expr, around.zone, t))
    return found


@pytest.mark.slow
@pytest.mark.unhurried
@pytest.mark.parametrize("seed", range(4))
def test_random_walks_agree_with_the_reference(seed: int) -> None:
    """From any instant around a shift, any expression runs when Vixie cron runs it."""
    assert [] == disagreements(seed, 1_000)


@given(
    around=st.sampled_from(WINDOWS),
    time_of_day=st.tuples(st.integers(0, 59), st.integers(-3, 3)),
    day=st.sampled_from(["L", "LW", "{0}W", "L-{1}", "{0},L-{1}", "L-{1},L-{2}", "*"]),
    weekday=st.sampled_from(["*", "*/2", "{3}", "{3}L", "L{3}", "*/3"]),
    minutes=st.integers(-2000, 2000),
)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_days_from_the_end_of_a_month_agree_with_the_reference(
    around: tuple[ZoneInfo, str], time_of_day: tuple[int, int], day: str, weekday: str, minutes: int
) -> None:
    """Around the shifts of a zone, with lists, beside weekdays."""
    found = window(*around)
    near = found.wall
    left = max(1, min(27, monthrange(near.year, near.month)[1] - near.day))
    minute, hour = time_of_day
    fields = [str(minute), str((near.hour + hour) % 24), day, "*", weekday]
    expr = " ".join(fields).format(near.day, left, min(27, left + 1), near.isoweekday() % 7).lower()
    t = max(found.start, found.shift + minutes * MINUTE)
    expected = [run for run in Schedule(expr).runs(found.ticks) if run > t]
    next_after = partial(CronExpression.parse(expr).next_after, zone=found.zone)
    assert expected == walk(next_after, t, until=found.end, limit=99), expr


@given(
    around=st.sampled_from(SHIFTS),
    time_of_day=st.tuples(st.integers(0, 59), st.integers(-3, 3)),
    days=st.integers(1, 3),
    before=st.integers(-400, 400),
    minutes=st.integers(-1500, 2500),
)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_whole_days_of_a_zone_agree_with_the_reference(
    around: tuple[str, str], time_of_day: tuple[int, int], days: int, before: int, minutes: int
) -> None:
    """Every so many days it is what a daily job does."""
    found = window(ZoneInfo(around[0]), around[1])
    minute, hour = time_of_day[0], (found.wall.hour + time_of_day[1]) % 24
    anchor = datetime.combine(found.wall.date() + before * DAY, time(hour, minute))
    trigger = Every(days * DAY, anchor=anchor, timezone=found.zone)
    t = max(found.start, found.shift + minutes * MINUTE)
    expected = [
        run
        for run in Schedule(f"{minute} {hour} * * *").runs(found.ticks)
        if run > t and (run.astimezone(found.zone).date() - anchor.date()).days % days == 0
    ]
    assert expected == walk(trigger.next_after, t, until=found.end, limit=99)


def test_asking_again_is_walking_on() -> None:
    """A schedule has no memory: asked from anywhere between two of its times, it gives the later one."""
    rng = random.Random(5)
    for around in [window(*shift) for shift in WINDOWS for _ in range(5)]:
        expression = CronExpression.parse(random_expression(rng, around.wall))
        next_after = partial(expression.next_after, zone=around.zone)
        times = [around.start, *walk(next_after, around.start, until=around.end, limit=100)]
        for before, following in pairwise(times):
            t = before + rng.random() * (following - before - timedelta(microseconds=1))
            assert following == next_after(t), (expression, around.zone, t)


def test_a_fold_is_over_when_the_search_goes_on_into_the_next_year() -> None:
    """The second pass of 23:15 is as little a run for a yearly job as for a daily one."""
    zone, _ = WINDOWS[-2]
    yearly = CronExpression.parse("15 23 30 12 *")
    assert at("2027-12-30T23:15Z") == yearly.next_after(at("2026-12-30T23:20Z"), zone)


@pytest.mark.slow
@pytest.mark.unhurried
@pytest.mark.parametrize("zone", ["America/New_York", "Africa/Casablanca"])
def test_a_whole_year_agrees_with_the_reference(zone: str) -> None:
    """Nothing is missed, and nothing added, far from the shifts."""
    rng = random.Random(zone)
    start, end = at("2025-12-15T00:00Z"), at("2027-01-15T00:00Z")
    texts = [
        f"{rng.randint(0, 59)} {rng.choice('*2')} {day} * {weekday}" for day in ("*", "31", "*/7") for weekday in "*0"
    ]
    schedules = [Schedule(text) for text in texts]
    expected: list[list[datetime]] = [[] for _ in schedules]
    for tick in clock(ZoneInfo(zone), start, end):
        for schedule, times in zip(schedules, expected, strict=False):
            times += schedule.runs([tick])
    for text, times in zip(texts, expected, strict=False):
        assert times == walk(Cron(text, zone).next_after, start - timedelta(seconds=1), until=end, limit=10**6), text


@pytest.mark.slow
@pytest.mark.unhurried
def test_days_agree_with_the_reference() -> None:
    """Days, months and weekdays combine as the reference has it, over three years."""
    rng = random.Random(7)
    start = at("2026-12-31T23:59Z")
    calendar = [date(2027, 1, 1) + number * DAY for number in range(3 * 365)]
    end = datetime.combine(calendar[-1] + DAY, time.min, UTC)
    for _ in range(120):
        _, _, day, month, weekday = random_expression(rng, datetime.combine(rng.choice(calendar), NOON)).split()[-5:]
        text = f"30 6 {day} {month} {weekday}"
        schedule = Schedule(text)
        expected = [datetime(d.year, d.month, d.day, 6, 30, tzinfo=UTC) for d in calendar if schedule.has_day(d)]
        assert expected == walk(Cron(text, "UTC").next_after, start, until=end, limit=10**6), text


@pytest.mark.parametrize(
    "expr",
    [
        "30 6 * * mon-1",
        "30 6 * * 1-MON",
        "30 6 * * sun-0",
        "30 6 * * 0-sun,fri-5",
        "30 6 * * mon-1/2",
        "30 6 * * sun-7",
        "30 6 * * 0-7",
        "30 6 * * 7-7",
        "30 6 * jan-1 *",
        "30 6 * dec-12,3-mar *",
        "30 6 05-5 * *",
        "30 6 07-7/3,9 * *",
        "030-30 06-6 * * *",
    ],
)
def test_a_range_of_one_value_is_that_value_however_it_is_written(expr: str) -> None:
    """Over a year, as the reference has it; `sun-7` is the whole week, as 0-7 is."""
    schedule, start = Schedule(expr), at("2026-12-31T23:59Z")
    days = [date(2027, 1, 1) + number * DAY for number in range(365)]
    expected = [datetime(d.year, d.month, d.day, 6, 30, tzinfo=UTC) for d in days if schedule.has_day(d)]
    assert expected == walk(Cron(expr, "UTC").next_after, start, until=at("2028-01-01T00:00Z"), limit=10**6)


@pytest.mark.parametrize("expr", ["0 0 * * 7-0", "0 0 * * 7-sun", "0 0 * * Sun-Sun"])
def test_a_range_from_sunday_to_sunday_is_sunday(expr: str) -> None:
    assert Cron("0 0 * * sun", "UTC").fingerprint == Cron(expr, "UTC").fingerprint


def test_threads_do_not_disturb_each_other(request: pytest.FixtureRequest) -> None:
    """One schedule, asked by several threads at once, answers each as if alone."""
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)
    cron = Cron("*/7 * * * *", "Europe/Berlin")
    starts = [at("2026-03-28T00:00Z") + number * timedelta(minutes=11) for number in range(2_000)]
    expected = [cron.next_after(t) for t in starts]
    with ThreadPoolExecutor(4) as pool:
        assert expected == list(pool.map(cron.next_after, starts))


# -- what an expression says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expr", ["*/15 * * * *", "* 2 * * *", "0 * * * *", "0 30 * * * *", "@hourly"])
def test_a_star_in_minute_or_hour_makes_a_wildcard_job(expr: str) -> None:
    """The first character of the minute or the hour field decides."""
    assert not CronExpression.parse(expr).fixed


@pytest.mark.parametrize("expr", ["0 2 * * *", "* 30 2 * * *", "0-59 0-23 * * *", "5,* 2 * * *", "@daily"])
def test_other_jobs_are_fixed(expr: str) -> None:
    """Neither the seconds, nor a star further back, nor a full range count."""
    assert CronExpression.parse(expr).fixed


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("* * * * * *", True),
        ("* 0 9 * * *", True),
        ("*/1 * * * * *", True),
        ("0 * * * * *", False),
        ("* * * * *", False),
    ],
)
def test_every_second_is_known(expr: str, expected: bool) -> None:
    """The seconds of a six-field expression may be unwanted: whoever registers it can warn."""
    assert expected == ("it runs every second" in Cron(expr, "UTC").warning)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0 9 * * mon-fri", "0 0 9 ? * 1,2,3,4,5"),
        ("@weekly", "0  0 * * 7"),
        ("0 0 1 JAN *", "0 0 1 1 *"),
        ("*/20 * * * *", "0,20,40 * * * *"),
    ],
)
def test_spelling_does_not_change_the_fingerprint(one: str, other: str) -> None:
    """The same schedule, written differently, is the same schedule."""
    assert Cron(one, "Europe/Berlin").fingerprint == Cron(other, "Europe/Berlin").fingerprint


def test_fingerprints_tell_schedules_apart() -> None:
    """Whatever changes the times changes the fingerprint: fields, the rule for shifts or days, zone, dialect."""
    crons = [
        Cron("0 2 * * *", "Europe/Berlin"),
        Cron("0 2 * * *", "Europe/Paris"),
        Cron("0 2 * * 1", "Europe/Berlin"),
        Cron("0 2 * * 1#1", "Europe/Berlin"),
        Cron("0 2 * * L1", "Europe/Berlin"),
        Cron("0 2 1 * *", "Europe/Berlin"),
        Cron("0 2 1W * *", "Europe/Berlin"),
        Cron("0-59 2 * * *", "Europe/Berlin"),
        Cron("* 2 * * *", "Europe/Berlin"),
        Cron("0 2 */2 * 1", "Europe/Berlin"),
        Cron("0 2 */2 * 1", "Europe/Berlin", dialect="panel"),
        Cron("0 0 2 * * *", "Europe/Berlin", dialect="panel"),
    ]
    assert len(crons) == len({cron.fingerprint for cron in crons})


def test_the_panel_dialect_reads_as_croniter_does() -> None:
    """`ps.schedule_task` keeps the times that `pn.state.schedule_task` has."""
    rng, start = random.Random(11), at("2026-01-01T00:00Z")
    for _ in range(300):
        fields = random_expression(rng, datetime(2026, 1, 10, 12), ours=False).split()
        text = " ".join([*fields[1:], fields[0]] if len(fields) == 6 else fields)
        times = croniter(text, start)
        try:
            croniter(text, start).get_next()
        except CroniterBadDateError:  # it drops the day beside a `#`, and finds nothing
            with pytest.raises(TriggerError, match="never matches"):
                Cron(text, "UTC", dialect="panel")
            continue
        next_after = Cron(text, "UTC", dialect="panel").next_after
        assert [times.get_next(datetime) for _ in range(5)] == walk(next_after, start, until=FAR, limit=5), text


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "reason"),
    [
        ("@reboot", "first_run"),
        ("0 0 30 2 *", "never matches"),
        ("0 0 31 4,6,9,11 *", "never matches"),
        ("0 0 0 1 1 * 2030", "seven fields"),
        ("H * * * *", "process to process"),
        ("R/5 * * * *", "process to process"),
        ("0 h(0-7) * * *", "process to process"),
        ("61 * * * *", "out of range"),
        ("* * * *", "five fields"),
        ("", "five fields"),
        ("every day", "five fields"),
        ("0 9 * * funday", "cannot be read"),
        ("*/0 * * * *", "cannot be read"),
        (None, "is a string"),
        (5, "is a string"),
    ],
)
@pytest.mark.parametrize("dialect", ["vixie", "panel"])
def test_a_meaningless_expression_is_refused(expr: object, reason: str, dialect: Dialect) -> None:
    """At once, and with what is wrong with it."""
    with pytest.raises(TriggerError, match=reason):
        Cron(expr, "UTC", dialect)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expr", "wrong", "right"),
    [
        ("0 0 * * 8L", "weekday field has '8L'", "'5L' or 'L5' for the last one"),
        ("0 0 * * FridayL", "weekday field has 'FridayL'", "Write 'L5', the last Friday."),
        ("0 0 * * fri#L", "weekday field has 'fri#L'", "Write 'L5'"),
        ("0 0 * * mon,Friday", "weekday field has 'Friday'", "Write 'fri'."),
        ("0 0 * * monday-friday", "weekday field has 'monday-friday'", "Write 'mon-fri'."),
        ("0 0 * * thurs#2", "weekday field has 'thurs#2'", "Write 'thu#2'."),
        ("0 0 1 January *", "month field has 'January'", "Write 'jan'."),
        ("0 0 1 1,sept/2 *", "month field has 'sept/2'", "Write 'sep/2'."),
        ("0 0 L-28 * *", "day field has 'L-28'", r"up to 'L-27'"),
        ("0 0 L-0 * *", "day field has 'L-0'", "'L' for the last day"),
        ("0 0 L-3W * *", "day field has 'L-3W'", "'L' for the last day"),
        ("0 0 * * 9", "weekday field has '9', which is out of range", "0 to 7"),
        ("61 * * * *", "minute field has '61', which is out of range", "0 to 59"),
        ("? * * * *", r"minute field has '\?'", "0 to 59"),
        ("0 0,, * * *", "hour field has ''", "0 to 23"),
        ("0 0 12 * * ? *", "seven fields", r"Leave the last one out: '0 0 12 \* \* \?'"),
        ("* * *", "it has 3 fields", "Write five fields"),
    ],
)
def test_a_refusal_quotes_what_was_written_and_names_the_accepted_spelling(expr: str, wrong: str, right: str) -> None:
    """Not what it was made of for croniter, nor croniter's number of the field."""
    with pytest.raises(TriggerError, match=f"{wrong}.*{right}"):
        Cron(expr, "UTC")


@pytest.mark.parametrize("day", ["LW", "31W"])
def test_the_last_working_day(day: str) -> None:
    """It is the last Monday to Friday of each month."""
    days = [date(2026, month, day) for month in range(1, 13) for day in range(1, monthrange(2026, month)[1] + 1)]
    last = {day.month: day for day in days if day.isoweekday() <= 5}
    found = walk(
        Cron(f"0 0 {day} * *", "UTC").next_after, at("2025-12-31T12:00Z"), until=at("2027-01-01T00:00Z"), limit=99
    )
    assert list(last.values()) == [time.date() for time in found]


@pytest.mark.parametrize(
    ("expr", "remedy"),
    [
        ("*/90 * * * *", 'period="90m"'),
        ("0-59/90 * * * *", 'period="90m"'),
        ("5,*/61 * * * *", 'period="61m"'),
        ("0 */36 * * *", 'period="36h"'),
        ("*/75 * * * * *", 'period="75s"'),
        ("0 */90 * * * *", 'period="90m"'),
        ("0 0 */45 * *", 'period="45d"'),
        ("0 0 * * */9", 'period="9d"'),
        ("0 0 1 */18 *", "18 months is meant, write the dates"),
        ("* * * * * *", "0 * * * * *"),
    ],
)
def test_what_is_rarely_meant_so_has_a_warning(expr: str, remedy: str) -> None:
    """A step beyond its field stays at the field's first value, and the remedy is a period."""
    warning = Cron(expr, "UTC").warning
    assert repr(expr) in warning
    assert remedy in warning


@pytest.mark.parametrize(
    "expr",
    ["*/60 * * * *", "0 */24 * * *", "9-20/30 * * * *", "0 0 */31 * *", "0 0 1 */12 *", "0 0 * * */7", "@daily"],
)
def test_a_step_within_its_field_has_no_warning(expr: str) -> None:
    assert not Cron(expr, "UTC").warning


@pytest.mark.parametrize(
    ("timezone", "remedy"),
    [
        (None, "timezone='Europe/Berlin'"),
        ("Europe/Belin", "'Europe/Berlin'"),
        ("Berlin", "'Europe/Berlin'"),
        ("Europe", "Is it"),
        ("", "IANA name"),
        ("../etc/passwd", "unknown"),
        (UTC, "or 'UTC'"),
        (5, "or 'UTC'"),
    ],
)
def test_a_zone_is_needed(timezone: object, remedy: str) -> None:
    """Without a known zone there is no schedule; the message names the remedy."""
    with pytest.raises(TriggerError, match=remedy):
        Cron("0 9 * * *", timezone)  # type: ignore[arg-type]


def test_an_unknown_dialect_is_refused() -> None:
    """A typo does not choose a reading."""
    with pytest.raises(TriggerError, match="'vixie' or 'panel'"):
        Cron("0 9 * * *", "UTC", "quartz")  # type: ignore[arg-type]
