"""
Cron expressions, walked through local time as Vixie cron, Debian's, does it.

``croniter`` parses the fields and finds the next match on a clock that never shifts. This module joins
such matches over the shifts of a zone:

- *wildcard* jobs (the minute or the hour field begins with ``*``) follow real time: they see nothing of
  the hour that spring skips, and both passes of the hour that autumn repeats;
- *fixed* jobs run once: what the gap would have swallowed runs once, at its end, and the second pass of
  a fold is not for them;
- forward by three hours or more, or back by more than three, is a change of date: everything follows
  real time.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from datetime import MAXYEAR, UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo, available_timezones

from croniter import CroniterBadDateError, CroniterError, croniter

from ..errors import TriggerError

__all__ = ["TICK", "CronExpression", "Dialect", "Numbers", "find_zone", "next_day"]

Dialect = Literal["vixie", "panel"]

# Of minute, hour, day, month, weekday (0 is Sunday) and second; None of a field that any number will do for.
Numbers = tuple[list[int] | None, ...]

TICK = timedelta(microseconds=1)

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
_DATE_CHANGE = timedelta(hours=3)
_ORIGIN = datetime(2000, 1, 1)
# A leap day on a given weekday comes after 40 years at most. `*/5 3 * 3 L0` in Riga never does: it lies in the gap.
_YEARS_AHEAD = 50

_RANGE = re.compile(r"\b(\w+)-(\w+)\b(?:/\d+)?", re.ASCII)
_BEFORE_LAST = re.compile(r"l-(\d+)", re.ASCII)
_MOST_BEFORE = 27  # February has no more
_LAST_WEEKDAY = re.compile(r"(?:l-?)?([a-z]+?|\d)(?:#?l)?")


class _Field(NamedTuple):
    """What one field may hold, in the words of messages."""

    low: int
    high: int
    unit: str
    takes: str
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self.names) or self.high - self.low + 1

    def number(self, text: str) -> int | str:
        """The value of a number or name; of anything else itself."""
        short = [name[:3] for name in self.names]
        return int(text) if text.isdecimal() else self.low + short.index(text) if text in short else text

    def short(self, word: str) -> str:
        """The accepted name for what may be a longer or misspelt one."""
        close = get_close_matches(word, self.names, n=1)
        return close[0][:3] if close else word


_MONTHS = "january february march april may june july august september october november december"
_WEEKDAYS = "sunday monday tuesday wednesday thursday friday saturday"

# In croniter's order.
_FIELDS = {
    "minute": _Field(0, 59, "m", "0 to 59"),
    "hour": _Field(0, 23, "h", "0 to 23"),
    "day": _Field(
        1,
        31,
        "d",
        "1 to 31, 'L' for the last day, 'L-3' for the third one before that (up to 'L-27'), '15W' for the working day "
        "nearest to the 15th and 'LW' for the last one",
    ),
    "month": _Field(1, 12, "", "1 to 12 and jan to dec", tuple(_MONTHS.split())),
    "weekday": _Field(
        0,
        7,
        "d",
        "0 to 7, where 0 and 7 are Sunday, sun to sat, 'fri#2' for the second Friday and '5L' or 'L5' for the last one",
        tuple(_WEEKDAYS.split()),
    ),
    "second": _Field(0, 59, "s", "0 to 59"),
}

_ACCEPTED = (
    "Write five fields (minute hour day month weekday), six with the seconds first, or a nickname such as '@daily'"
)


class _Alternative(NamedTuple):
    """One of the expressions of which one has to match."""

    expression: croniter
    # So much earlier than the expression says: the third day before the last one is the last one three days earlier.
    early: timedelta = timedelta()

    def first_match(self, earliest: datetime) -> datetime:
        # A croniter keeps its position in itself, so threads that shared one would move each other.
        start = earliest + self.early - _SECOND
        found: datetime = copy(self.expression).get_next(datetime, start_time=start)
        return found - self.early


@dataclass(frozen=True, slots=True)
class CronExpression:
    """
    A cron expression, without a zone. Made by :meth:`parse`.

    Attributes
    ----------
    text : str
        The expression in lower case and single-spaced.
    fixed : bool
        Whether neither the minute nor the hour field begins with ``*``.
    warning : str
        What is rarely meant so, and the remedy; ``""`` where nothing is.
    fingerprint : str
        Equal where the expressions mean the same: ``0 9 * * mon`` and ``0 0 9 * * 1``.

    Examples
    --------
    >>> nightly = CronExpression.parse("30 2 * * *")
    >>> nightly.next_after(datetime(2026, 3, 7, 12, tzinfo=UTC), ZoneInfo("America/New_York"))
    datetime.datetime(2026, 3, 8, 7, 0, tzinfo=datetime.timezone.utc)
    """

    text: str
    fixed: bool
    warning: str
    fingerprint: str
    _alternatives: tuple[_Alternative, ...] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, dialect: Dialect = "vixie") -> CronExpression:
        """
        Read and check an expression.

        Parameters
        ----------
        text : str
            Five fields, six with the seconds first, or a nickname. ``L``, ``#`` and ``W`` as croniter has them; and in
            ``"vixie"`` ``LW``, ``L-3`` and ``5L``, as Quartz has them, with 0 for Sunday.
        dialect : {"vixie", "panel"}
            ``"panel"`` reads it as ``pn.state.schedule_task`` does: croniter's way, with the seconds last.

        Raises
        ------
        TriggerError
            If it cannot be read, or never matches.
        """
        if not isinstance(text, str):
            raise TriggerError(f"A cron expression is a string, not {text!r}. {_ACCEPTED}.")
        if dialect not in get_args(Dialect):
            raise TriggerError(f"The cron dialect {dialect!r} is unknown: 'vixie' or 'panel'.")
        tidy = " ".join(text.lower().split())
        _refuse_unsupported(text, tidy)
        fields = _named_fields(tidy, dialect)
        before_last = list[int]()
        if dialect == "vixie" and fields:
            before_last = _before_last(dict(fields)["day"])
            tidy = " ".join(_as_croniter_has_it(name, written) for name, written in fields)
        try:
            as_written = croniter(tidy, _ORIGIN, second_at_beginning=dialect == "vixie")
        except CroniterError as error:
            raise TriggerError(
                f"The cron expression {text!r} cannot be read: {_reason(text, dialect, error)}"
            ) from None
        alternatives = tuple(filter(_matches, _alternatives(as_written, dialect, before_last)))
        if not alternatives:
            raise TriggerError(
                f"The cron expression {text!r} never matches: no month that it names has such a day. "
                "Correct its day, month or weekday field."
            )
        minute, hour, *_ = as_written.expressions
        fixed = not (minute.startswith("*") or hour.startswith("*"))
        every_second = as_written.expanded[5:] == [["*"]]
        return cls(
            text=tidy,
            fixed=fixed,
            warning=_warning(text, fields, every_second and dialect == "vixie"),
            fingerprint=" or ".join(map(_canonical, alternatives)) + " fixed" * fixed + " panel" * (dialect == "panel"),
            _alternatives=alternatives,
        )

    @property
    def numbers(self) -> Numbers | None:
        """What its fields come to; None where it has a choice of days, or says ``L``, ``#`` or ``W``."""
        (expression, early), *others = self._alternatives
        fields = [*expression.expanded, [0]][:6]
        if others or early or expression.nth_weekday_of_month or expression.nearest_weekday or "l" in fields[2]:
            return None
        return tuple(None if field == ["*"] else field for field in fields)

    def next_after(self, t: datetime, zone: ZoneInfo) -> datetime | None:
        """
        The first time after an instant.

        Parameters
        ----------
        t : datetime
            Aware.
        zone : ZoneInfo
            The zone whose clock on the wall the expression speaks of.

        Returns
        -------
        datetime or None
            Aware, in UTC, strictly later than `t`; None if there is none within 50 years.
        """
        if t.year >= MAXYEAR - 2 * _YEARS_AHEAD:  # croniter looks ahead, too
            return None
        begin = t.astimezone(UTC).replace(microsecond=0, tzinfo=None) + _SECOND
        searched_from, match = datetime.max, datetime.min
        first_year = max(begin.year, 2)  # a year's stretches look at the day before it
        for year in range(first_year, first_year + _YEARS_AHEAD):
            begin = max(begin, datetime(year, 1, 1))
            for stretch in _stretches(zone, year):
                if stretch.end <= begin:
                    continue
                local_start = stretch.start + stretch.offset
                earliest = stretch.resume if self.fixed else local_start
                if stretch.start < begin:
                    earliest = max(earliest, begin + stretch.offset)
                # A match beyond the last stretch holds for this one, too, unless the clock was turned back.
                if not searched_from <= earliest <= match:
                    searched_from, match = earliest, self._first_match(earliest)
                found = max(match, local_start) - stretch.offset
                if found < stretch.end:
                    return found.replace(tzinfo=UTC)
        return None

    def _first_match(self, earliest: datetime) -> datetime:
        """The first match on a clock that never shifts, not before `earliest`."""
        return min(alternative.first_match(earliest) for alternative in self._alternatives)


def next_day(day: date, zone: ZoneInfo) -> datetime:
    """When the day after another one begins: at midnight, or where clocks leave that out, at the end of the gap."""
    return datetime.combine(day + _DAY, time(), zone).astimezone(UTC)


def find_zone(timezone: str | ZoneInfo | None, what: str) -> ZoneInfo:
    """The zone of that name, which `what` has; a TriggerError with the remedy if the name is missing or unknown."""
    name = timezone.key if isinstance(timezone, ZoneInfo) else timezone
    if not isinstance(name, str):
        given = "has no timezone" if timezone is None else f"cannot use {timezone!r} as timezone"
        raise TriggerError(
            f"The {what} {given}. Name one, timezone='Europe/Berlin' or 'UTC', or set ps.config.timezone."
        )
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: a directory, as in "Europe"
        known = available_timezones()
        close = get_close_matches(name, known, n=1)
        remedy = f"Is it {close[0]!r}?" if close else "Use an IANA name such as 'Europe/Berlin'."
        if not known:
            remedy = "This machine has no timezone data: pip install tzdata."
        raise TriggerError(f"The timezone {name!r} of the {what} is unknown. {remedy}") from None


class _Stretch(NamedTuple):
    """A time of constant offset; naive datetimes, `start` and `end` in UTC."""

    start: datetime
    end: datetime
    offset: timedelta
    resume: datetime
    """The local time from which fixed jobs are still to run: where the clock on the wall was before the
    shift, thus earlier than the local start after a gap, and later in a fold."""


@lru_cache(maxsize=1024)
def _stretches(zone: ZoneInfo, year: int) -> tuple[_Stretch, ...]:
    """The stretches of a year in UTC, and of the day before it: a fold may reach into the year."""
    first, end = datetime(year, 1, 1) - _DAY, datetime(year + 1, 1, 1)
    starts, offsets = [first], [_offset(zone, first)]
    # Day by day is close enough: no zone has ever shifted twice within 95 hours.
    for number in range((end - first).days):
        day, offset = first + number * _DAY, _offset(zone, first + (number + 1) * _DAY)
        if offset != offsets[-1]:
            start = day + _SECOND * bisect_left(
                range(86_400), True, key=lambda second: _offset(zone, day + second * _SECOND) != offsets[-1]
            )
            if start < end:
                starts.append(start)
                offsets.append(offset)
    return tuple(
        _Stretch(start, until, offset, _resume(start, before, offset))
        for start, until, before, offset in zip(
            starts, [*starts[1:], end], [offsets[0], *offsets], offsets, strict=False
        )
    )


def _resume(start: datetime, before: timedelta, after: timedelta) -> datetime:
    return start + (before if -_DATE_CHANGE <= after - before < _DATE_CHANGE else after)


def _offset(zone: ZoneInfo, instant: datetime) -> timedelta:
    # Not utcoffset(): zoneinfo loses the fold of a wall time where the fold reaches over the turn of the UTC year.
    return zone.fromutc(instant.replace(tzinfo=zone)).replace(tzinfo=None) - instant


def _named_fields(text: str, dialect: Dialect) -> list[tuple[str, str]]:
    """The fields with their names, as they are written; none of a nickname, or of what has too many or too few."""
    fields, names = text.split(), list(_FIELDS)
    if len(fields) not in (5, 6):
        return []
    if dialect == "vixie" and len(fields) == 6:
        names.insert(0, names.pop())
    return list(zip(names, fields, strict=False))


def _without_one_value_ranges(name: str, text: str) -> str:
    """croniter reads 5-5 as the whole field; cron, and everybody else, as 5: however the two ends are written."""

    def shortened(found: re.Match[str]) -> str:
        first, last = map(_FIELDS[name].number, found.groups())
        return found[1] if first == last or (name == "weekday" and (first, last) == (7, 0)) else found[0]

    return _RANGE.sub(shortened, text)


def _as_croniter_has_it(name: str, text: str) -> str:
    """A field, of which `_before_last` has something of its own."""
    items = _without_one_value_ranges(name, text).split(",")
    if name == "day":
        # Those are put beside the rest; in place of nothing else something that croniter can read.
        items = ["31w" if item == "lw" else item for item in items if not _is_before_last(item)] or ["l"]
    if name == "weekday":
        items = [_last_weekday(item) or item for item in items]
    return ",".join(items)


def _is_before_last(item: str) -> bool:
    found = _BEFORE_LAST.fullmatch(item)
    return found is not None and 1 <= int(found[1]) <= _MOST_BEFORE


def _before_last(day: str) -> list[int]:
    """So many days before the last one; 0 is what the rest of a day field says, if it says anything."""
    items = day.split(",")
    numbers = [int(item[2:]) for item in items if _is_before_last(item)]
    return ([0] if len(numbers) < len(items) else []) + numbers if numbers else []


def _last_weekday(item: str) -> str:
    """``L5`` of ``5L`` and ``friL``; ``""`` of anything else."""
    number = _FIELDS["weekday"].number(item[:-1]) if item.endswith("l") else ""
    return f"l{number % 7}" if isinstance(number, int) and number <= 7 else ""


def _warning(text: str, fields: list[tuple[str, str]], every_second: bool) -> str:
    if every_second:
        return (
            f"The cron expression {text!r} begins with *, and six fields put the seconds first: it runs every second. "
            "For once a minute write '0 * * * * *'."
        )
    for name, written in fields:
        accepted = _FIELDS[name]
        for step in map(int, re.findall(r"/(\d+)", written)):
            if step > accepted.size:
                remedy = f'period="{step}{accepted.unit}"' if accepted.unit else "the dates, at=[...]"
                return (
                    f"The cron expression {text!r} has a step of {step} in its {name} field, which has {accepted.size} "
                    f"values and begins anew after the last one: it stays at the first. If every {step} "
                    f"{name.removeprefix('week')}s is meant, write {remedy}."
                )
    return ""


def _refuse_unsupported(text: str, tidy: str) -> None:
    """Refuse what croniter would take, or would refuse without naming the remedy."""
    if tidy == "@reboot":
        raise TriggerError("The cron expression '@reboot' names no time. The run at the start is `first_run=`.")
    fields = tidy.split()
    if len(fields) == 7:
        remedy = f"Leave the last one out: {' '.join(text.split()[:6])!r}" if fields[6] == "*" else _ACCEPTED
        raise TriggerError(f"The cron expression {text!r} has seven fields, and years are not supported. {remedy}.")
    if len(fields) in (5, 6) and any(re.match(r"[hr]\b", name) for name in fields):
        raise TriggerError(
            f"The cron expression {text!r} has an `H` or `R` field, which would differ from process to process. "
            "Write the numbers."
        )


def _reason(text: str, dialect: Dialect, error: CroniterError) -> str:
    """What is wrong with an expression that croniter refuses, as it is written; and the remedy."""
    for name, written in _named_fields(text, dialect):
        for item in written.split(","):
            if not item or not _is_readable(name, item.lower()):
                wrong = f"its {name} field has {item!r}"
                if (remedy := _accepted_spelling(name, item.lower())) is not None:
                    return f"{wrong}. Write {remedy}."
                beyond = ", which is out of range" if item.isdecimal() else ""
                return f"{wrong}{beyond}. It takes {_FIELDS[name].takes}; and lists, ranges and steps of these."
    if _named_fields(text, dialect):  # each item is right, and not beside the others
        words = re.sub(r"^\[.*?\] is not acceptable\. |  Cron: .*", "", str(error))
        return f"{words.rstrip('.')}. {_ACCEPTED}."
    return f"it has {len(text.split())} fields. {_ACCEPTED}."


def _is_readable(name: str, item: str) -> bool:
    if name == "day" and _is_before_last(item):
        return True
    fields = [_as_croniter_has_it(name, item) if each == name else "*" for each in _FIELDS]
    try:
        croniter(" ".join(fields), _ORIGIN)
    except CroniterError:
        return False
    return True


def _accepted_spelling(name: str, item: str) -> str | None:
    """How an item is to be written, where another spelling means it elsewhere: Quartz has 5L, and people Friday."""
    names = _FIELDS[name].names
    if not names:
        return None
    if name == "weekday" and "l" in (item[:1], item[-1:]) and (last := _LAST_WEEKDAY.fullmatch(item)):
        number = _FIELDS[name].number(_FIELDS[name].short(last[1]))
        if isinstance(number, int) and number <= 7:
            return f"'L{number}', the last {names[number % 7].capitalize()}"
    short = re.sub("[a-z]+", lambda word: _FIELDS[name].short(word[0]), item)
    return repr(short) if _is_readable(name, short) else None


def _alternatives(parsed: croniter, dialect: Dialect, before_last: list[int]) -> Iterator[_Alternative]:
    """The expressions of which one has to match: two where day and weekday are OR-ed."""
    if dialect == "panel":
        yield _Alternative(parsed)
        return
    minute, hour, day, month, weekday, *seconds = parsed.expressions

    def expression(day: str, weekday: str) -> croniter:
        return croniter(" ".join([minute, hour, day, month, weekday, *seconds]), _ORIGIN, day_or=False)

    both = day[0] in "*?" or weekday[0] in "*?"
    for number in before_last or [0]:
        beside = _days_later(parsed, number) if both and number else weekday if both else "*"
        yield _Alternative(expression("l" if number else day, beside), number * _DAY)
    if not both:
        # Not croniter's own OR: it drops the day field beside a `#`, and the weekday field beside a `W`.
        yield _Alternative(expression("*", weekday))


def _days_later(parsed: croniter, number: int) -> str:
    """The weekday field of a day so many days after the one that it is meant for."""
    if parsed.nth_weekday_of_month:
        raise TriggerError(
            f"The cron expression {' '.join(parsed.expressions)!r} asks for a day before the last one that is such a "
            "weekday, too. Take one of these out."
        )
    weekdays = parsed.expanded[4]
    return "*" if weekdays == ["*"] else ",".join(str((weekday + number) % 7) for weekday in weekdays)


def _matches(alternative: _Alternative) -> bool:
    try:
        alternative.expression.get_next(datetime, start_time=_ORIGIN)
    except CroniterBadDateError:
        return False
    return True


def _canonical(alternative: _Alternative) -> str:
    expression, early = alternative
    fields = [",".join(map(str, values)) for values in [*expression.expanded, [0]][:6]]
    nth = sorted(f"{day}#{n}" for day, ns in expression.nth_weekday_of_month.items() for n in ns)
    nearest = [f"{day}w" for day in sorted(expression.nearest_weekday)]
    return " ".join([*fields, *nth, *nearest, *([f"{early.days} days earlier"] if early else [])])
