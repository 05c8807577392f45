"""
What Vixie cron does, one minute of real time after the other: the yardstick for ``panel_schedule.triggers.cron``.

It shares nothing with that module, nor with croniter. Cron keeps a virtual clock, the last minute of local
time that it has dealt with, and each minute compares it with the clock on the wall:

- one minute ahead: everything that matches runs;
- further ahead, by up to 180 minutes: a gap. Wildcard jobs run if they match now; fixed jobs run if they match
  any of the minutes in between;
- not ahead, by less than 180 minutes: a fold. Wildcard jobs run, the virtual clock waits;
- else the date was changed: the virtual clock is set, everything that matches now runs.

Two things are our own: a fixed job that the gap holds several times runs once, and minutes have seconds.
"""

from __future__ import annotations

from calendar import day_abbr, month_abbr, monthrange
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
MONTHS = {name.lower(): number for number, name in enumerate(month_abbr) if name}
WEEKDAYS = {name.lower(): (number + 1) % 7 for number, name in enumerate(day_abbr)}

Tick = tuple[datetime, datetime, list[datetime]]


def clock(zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[Tick]:
    """Each real minute: the instant, the clock on the wall, and the local minutes that fixed jobs have reached."""
    virtual = None
    instant = start.astimezone(UTC)
    while instant < end:
        wall = instant.astimezone(zone).replace(tzinfo=None)
        ahead = 1 if virtual is None else (wall - virtual) // MINUTE
        if 1 < ahead <= 180:
            reached = [virtual + number * MINUTE for number in range(1, ahead + 1)]
        elif -180 < ahead <= 0:
            reached = []
        else:
            reached = [wall]
        if reached:
            virtual = wall
        yield instant, wall, reached
        instant += MINUTE


class Schedule:
    """The fields of an expression, as sets."""

    def __init__(self, text: str) -> None:
        *seconds, minute, hour, day, month, weekday = text.lower().split()
        self.fixed = not minute.startswith("*") and not hour.startswith("*")
        self.either = not day.startswith("*") and not weekday.startswith("*")
        self.seconds = sorted(values(seconds[0], 0, 59)) if seconds else [0]
        self.minutes = values(minute, 0, 59)
        self.hours = values(hour, 0, 23)
        self.months = values(month, 1, 12, MONTHS)
        self.day, self.weekday = day, weekday
        self._days: dict[date, bool] = {}

    def runs(self, ticks: Iterable[Tick]) -> list[datetime]:
        """Every instant at which the job runs while the clock ticks."""
        found = []
        for instant, wall, reached in ticks:
            due = [minute for minute in (reached if self.fixed else [wall]) if self.has(minute)]
            if wall in due:
                seconds = self.seconds if due == [wall] else [0, *self.seconds]
                found += [instant + timedelta(seconds=second) for second in sorted(set(seconds))]
            elif due:
                found.append(instant)
        return found

    def has(self, minute: datetime) -> bool:
        """Whether the fields match a minute."""
        return minute.minute in self.minutes and minute.hour in self.hours and self.has_day(minute.date())

    def has_day(self, day: date) -> bool:
        """Whether the day, month and weekday fields match a date."""
        if day not in self._days:
            matches = is_day(self.day, day), is_weekday(self.weekday, day)
            self._days[day] = day.month in self.months and (any(matches) if self.either else all(matches))
        return self._days[day]


def values(field: str, low: int, high: int, names: dict[str, int] | None = None) -> set[int]:
    """The numbers of a list of ``*``, ``5``, ``1-5``, each perhaps with ``/step``."""

    def number(text: str) -> int:
        return names[text] if names and text in names else int(text)

    found: set[int] = set()
    for item in field.split(","):
        span, _, step = item.partition("/")
        if span == "*":
            first, last = low, high
        elif "-" in span:
            first, last = map(number, span.split("-"))
        else:
            first = number(span)
            last = high if step else first
        found.update(range(first, last + 1, int(step or 1)))
    return found


def is_day(field: str, day: date) -> bool:
    """
    Whether a day-of-month field matches.

    ``L`` is the last, ``L-3`` the third before it, ``15W`` the working day nearest to the 15th, ``LW`` the last one.
    """
    length = monthrange(day.year, day.month)[1]
    if "," in field:
        return any(is_day(item, day) for item in field.split(","))
    if field == "l" or field.startswith("l-"):
        return day.day == length - int(field[2:] or 0)
    if field == "lw":
        later = range(day.day + 1, length + 1)
        return day.isoweekday() <= 5 and all(day.replace(day=number).isoweekday() > 5 for number in later)
    if field.endswith("w"):
        target = day.replace(day=min(int(field[:-1]), length))
        working = [
            other
            for number in range(1, length + 1)
            if (other := day.replace(day=number)).isoweekday() <= 5 and abs(other - target) <= timedelta(days=2)
        ]
        return day == min(working, key=lambda other: abs(other - target))
    return day.day in values(field, 1, 31)


def is_weekday(field: str, day: date) -> bool:
    """Whether a weekday field matches: ``fri#2`` is the second Friday, ``L5``, ``5L`` and ``friL`` the last."""
    weekday = day.isoweekday() % 7
    if "#" in field:
        name, _, nth = field.partition("#")
        return weekday in values(name, 0, 6, WEEKDAYS) and (day.day - 1) // 7 + 1 == int(nth)
    if field.startswith("l") or field.endswith("l"):
        return (
            weekday in {number % 7 for number in values(field.strip("l"), 0, 6, WEEKDAYS)}
            and (day + timedelta(days=7)).month != day.month
        )
    return weekday in {number % 7 for number in values(field, 0, 6, WEEKDAYS)}
