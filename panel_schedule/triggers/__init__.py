"""
Triggers say *when*: values with a ``next_after(t)``. A trigger owns no clock; what it is asked, it answers.

Every instant that a trigger gives is aware, in UTC, and strictly later than the one that it was asked with.
"""

from __future__ import annotations

import math
import re
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from hashlib import sha256
from numbers import Real
from threading import RLock
from typing import Any, Protocol, runtime_checkable
from zoneinfo import ZoneInfo

from ..errors import TriggerError
from ..session import without_session
from .cron import TICK, CronExpression, Dialect, Numbers, find_zone, next_day

__all__ = ["After", "Computed", "Cron", "Dates", "Every", "Period", "Trigger", "parse_period"]
__dir__ = __all__.copy

Period = str | float | timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SHORTEST = timedelta(milliseconds=1)
_LONGEST = datetime.max.replace(tzinfo=UTC) - _EPOCH
_UNITS = {
    "weeks": "w|weeks?",
    "days": "d|days?",
    "hours": "h|hrs?|hours?",
    "minutes": "m|mins?|minutes?",
    "seconds": "s|secs?|seconds?",
    "milliseconds": "ms|msecs?|milliseconds?",
}
_PERIOD = re.compile(
    r"\s*" + "".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?)\s*(?:{names})\s*)?" for unit, names in _UNITS.items()),
    re.ASCII | re.IGNORECASE,
)
_ACCEPTED = (
    "Give '30s', '1h30m', '1.5h' or '5 minutes' (units w, d, h, m, s, ms; the larger first, each once), "
    "a number of seconds, or a timedelta"
)
_MEMORY = 1024  # instants that a Computed looks back on
_PATIENCE = 1000  # instants in a row that may fail to advance


@runtime_checkable
class Trigger(Protocol):
    """
    What says when a task runs. Any class with this method can be given to ``ps.schedule``.

    It is a frozen value and owns no clock: what it answers depends on nothing but its fields and the instant that it is
    asked with. It is asked often, on threads of the scheduler, and so is to answer at once. ``str(trigger)`` says it to
    people.

    Two triggers are the same schedule, in all processes and also after a restart, if they are of the same class with
    the same fields: of a frozen dataclass or a named tuple. Any other class says it itself, by an attribute
    ``fingerprint``, which is a text.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... class Doubling:
    ...     first: datetime
    ...
    ...     def next_after(self, t: datetime) -> datetime | None:
    ...         ahead = timedelta(hours=1)
    ...         while self.first + ahead <= t:
    ...             ahead *= 2
    ...         return self.first + ahead
    >>> Doubling(datetime(2026, 1, 1, tzinfo=UTC)).next_after(datetime(2026, 1, 1, 5, tzinfo=UTC))
    datetime.datetime(2026, 1, 1, 8, 0, tzinfo=datetime.timezone.utc)
    """

    def next_after(self, t: datetime) -> datetime | None:
        """
        The first instant after another.

        Parameters
        ----------
        t : datetime
            Aware; a naive one is a TriggerError.

        Returns
        -------
        datetime or None
            Aware, in UTC, strictly later than `t`; None when there is none.
        """


class Schedule(Trigger, Protocol):
    """A trigger as the scheduler has it; ``str(trigger)`` says it to people."""

    @property
    def fingerprint(self) -> str:
        """The same in every process; equal for the same schedule, and for no other."""


def parse_period(value: Period) -> timedelta:
    """
    Read a period, strictly: what means nothing is a TriggerError.

    Parameters
    ----------
    value : str, float or timedelta
        ``"500ms"``, ``"1h30m"``, ``"1 hour 30 minutes"``, ``"1.5h"``: the larger unit first, each once, in any case.
        A number is in seconds.

    Returns
    -------
    timedelta
        At least one millisecond.

    Examples
    --------
    >>> parse_period("1h30m")
    datetime.timedelta(seconds=5400)
    >>> parse_period("5 minutes") == parse_period(300)
    True
    """
    try:
        period = _from_text(value) if isinstance(value, str) else _from_number(value)
    except OverflowError:
        period = timedelta.max
    if period < _SHORTEST:
        raise TriggerError(f"The period {value!r} is too short: one millisecond is the least. {_ACCEPTED}.")
    if period > _LONGEST:
        raise TriggerError(f"The period {value!r} is too long: the calendar ends in the year 9999. {_ACCEPTED}.")
    return period


@lru_cache(maxsize=256)
def _grid(period: timedelta, anchor: datetime) -> str:
    """One text for all tasks that share a period: stores keep it for each of them."""
    return f"every {period // _MICROSECOND} us + {(anchor - _EPOCH) % period // _MICROSECOND} us"


@lru_cache(maxsize=256)
def _from_text(text: str) -> timedelta:
    match = _PERIOD.fullmatch(text)
    numbers = {unit: float(number) for unit, number in match.groupdict().items() if number} if match else {}
    if not numbers:
        hint = f" Is it seconds? Write '{text}s', or {text} without quotes." if text.isdecimal() else ""
        raise TriggerError(f"The period {text!r} cannot be read.{hint} {_ACCEPTED}.")
    return timedelta(**numbers)


def _from_number(value: object) -> timedelta:
    if isinstance(value, timedelta):
        # A pandas Timedelta is one, too; its nanoseconds have no place on the grid.
        return timedelta(value.days, value.seconds, value.microseconds)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.timedelta64):  # a whole number to Python, and nobody knows of what
        raise TriggerError(f"The period {value!r} cannot be read; pandas.Timedelta(...) of it can. {_ACCEPTED}.")
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise TriggerError(f"The period {value!r} cannot be read. {_ACCEPTED}.")
    return timedelta(seconds=float(value))


@dataclass(frozen=True, slots=True, init=False)
class Every:
    """
    A fixed rate, on a grid: no drift, and no dependence on when the process started.

    Parameters
    ----------
    period : str, float or timedelta
        See :func:`parse_period`.
    anchor : datetime, optional
        Aware; a point of the grid, which goes on in both directions. By default the Unix epoch, so that
        ``"1d"`` is 00:00 UTC.
    timezone : str or ZoneInfo, optional
        Whole days on the clock of this zone, from an `anchor` without a timezone, or from midnight of a date. Where
        clocks are moved it is as with :class:`Cron`: what spring skips runs when the gap ends, what autumn repeats runs
        the first time.

    Examples
    --------
    >>> print(Every("15m"))
    every 15 min
    >>> Every("15m").next_after(datetime(2026, 1, 1, 12, 7, tzinfo=UTC))
    datetime.datetime(2026, 1, 1, 12, 15, tzinfo=datetime.timezone.utc)
    >>> print(Every("2w", anchor=datetime(2026, 1, 5, 9), timezone="Europe/Berlin"))
    every 14 d, through 2026-01-05 09:00:00 CET
    """

    period: timedelta
    # In UTC; of whole local days in their zone, and nothing else has that: stores keep triggers as they are.
    anchor: datetime | None

    def __init__(
        self, period: Period, anchor: datetime | date | None = None, timezone: str | ZoneInfo | None = None
    ) -> None:
        object.__setattr__(self, "period", parse_period(period))
        if timezone is not None:
            point: datetime | None = _local_anchor(self.period, anchor, timezone)
        else:
            point = None if anchor is None else in_utc(anchor, "The anchor of a period")
        object.__setattr__(self, "anchor", point)

    def next_after(self, t: datetime) -> datetime | None:
        """The next point of the grid; see :meth:`Trigger.next_after`."""
        _require_aware(t)
        origin = self.anchor or _EPOCH
        if isinstance(origin.tzinfo, ZoneInfo):
            return self._next_local(t, origin, origin.tzinfo)
        try:
            return origin + ((t - origin) // self.period + 1) * self.period
        except OverflowError:  # the calendar ends first
            return None

    def _next_local(self, t: datetime, origin: datetime, zone: ZoneInfo) -> datetime | None:
        daily = _daily(origin.time())
        while (slot := daily.next_after(t, zone)) is not None:
            day = slot.astimezone(zone).date()
            over = (day - origin.date()).days % self.period.days
            if not over:
                return slot
            try:
                # The day before the next one is over.
                t = max(slot, next_day(day + timedelta(days=self.period.days - over - 1), zone) - TICK)
            except OverflowError:  # the calendar ends first
                return None
        return None

    @property
    def timezone(self) -> str | None:
        """The zone of its days; None of those of UTC."""
        return self.anchor.tzinfo.key if self.anchor and isinstance(self.anchor.tzinfo, ZoneInfo) else None

    @property
    def fingerprint(self) -> str:
        """Period and phase: anchors that are a whole number of periods apart make the same grid."""
        if self.anchor is not None and self.timezone is not None:
            phase = self.anchor.toordinal() % self.period.days
            return f"every {self.period.days} d + {phase} d at {self.anchor.time()} {self.timezone}"
        return _grid(self.period, self.anchor or _EPOCH)

    def __str__(self) -> str:
        left, parts = self.period // _MICROSECOND, ""
        for name, size in {"us": 1000, "ms": 1000, "s": 60, "min": 60, "h": 24, "d": 10**9}.items():
            left, number = divmod(left, size)
            parts = f" {number} {name}{parts}" if number else parts
        return f"every{parts}" + (f", through {self.anchor:%Y-%m-%d %H:%M:%S %Z}" if self.anchor else "")


def _local_anchor(period: timedelta, anchor: Any, timezone: str | ZoneInfo) -> datetime:
    zone = find_zone(timezone, "period")
    if not isinstance(anchor, date):
        raise TriggerError(
            f"A period with timezone={zone.key!r} is of whole days that count from one of them: give it, "
            f"anchor=date(2026, 1, 5) or anchor=datetime(2026, 1, 5, 9), and not {anchor!r}."
        )
    if period % timedelta(days=1):
        raise TriggerError(
            f"A period of {period} is not of whole days, and with timezone={zone.key!r} it has to be. Hours are the "
            "same in all zones: leave timezone= out."
        )
    if not isinstance(anchor, datetime):
        anchor = datetime.combine(anchor, time())
    if anchor.tzinfo is not None or anchor.microsecond:
        raise TriggerError(
            f"With timezone={zone.key!r} the anchor of a period is a time of that zone, in whole seconds and without a "
            f"timezone of its own, and not {anchor!r}."
        )
    return datetime.combine(anchor.date(), anchor.time(), zone)


@lru_cache(maxsize=256)
def _daily(at: time) -> CronExpression:
    return CronExpression.parse(f"{at.second} {at.minute} {at.hour} * * *")


@dataclass(frozen=True, slots=True, init=False)
class Cron:
    """
    A cron expression on the clock of a zone, walked over its shifts as Vixie cron does it.

    A fixed time that spring skips runs once, when the gap ends; one that autumn repeats runs once, the first time.
    Expressions whose minute or hour begins with ``*`` follow real time.

    Parameters
    ----------
    expr : str
        Five fields, six with the seconds **first**, or a nickname such as ``"@daily"``. Day of month and weekday
        are OR-ed unless one of them begins with ``*``.
    timezone : str or ZoneInfo
        An IANA name. There is no default: the machine's own zone differs between laptop and server.
    dialect : {"vixie", "panel"}
        ``"panel"`` is the reading of ``pn.state.schedule_task``: the seconds last, and OR beside ``*/2``, too.

    Examples
    --------
    >>> cron = Cron("2 4 * * mon,fri", timezone="Europe/Berlin")
    >>> print(cron)
    cron '2 4 * * mon,fri' Europe/Berlin
    >>> cron.next_after(datetime(2026, 1, 1, tzinfo=UTC))
    datetime.datetime(2026, 1, 2, 3, 2, tzinfo=datetime.timezone.utc)
    """

    expr: str
    timezone: str
    dialect: Dialect
    _expression: CronExpression = field(repr=False, compare=False)
    _zone: ZoneInfo = field(repr=False, compare=False)

    def __init__(self, expr: str, timezone: str | ZoneInfo | None = None, dialect: Dialect = "vixie") -> None:
        zone = find_zone(timezone, f"cron schedule {expr!r}")
        object.__setattr__(self, "expr", expr)
        object.__setattr__(self, "timezone", zone.key)
        object.__setattr__(self, "dialect", dialect)
        object.__setattr__(self, "_expression", CronExpression.parse(expr, dialect))
        object.__setattr__(self, "_zone", zone)

    def next_after(self, t: datetime) -> datetime | None:
        """The next time on the wall; see :meth:`Trigger.next_after`."""
        _require_aware(t)
        return self._expression.next_after(t, self._zone)

    @property
    def warning(self) -> str:
        """What is rarely meant as it is written, and the remedy; ``""`` where nothing is."""
        return self._expression.warning

    @property
    def numbers(self) -> Numbers | None:
        """What the fields come to, see :attr:`CronExpression.numbers`."""
        return self._expression.numbers

    @property
    def fingerprint(self) -> str:
        """What the fields mean, however they are spelled, and the zone."""
        return f"cron {self._expression.fingerprint} {self.timezone}"

    def __reduce__(self) -> tuple[type[Cron], tuple[str, str, Dialect]]:
        # A store keeps triggers, and must not keep the insides of one version of croniter.
        return Cron, (self.expr, self.timezone, self.dialect)

    def __str__(self) -> str:
        return f"cron {self.expr!r} {self.timezone}"


@dataclass(frozen=True, slots=True, init=False)
class Dates:
    """
    Explicit instants, sorted, each once.

    Parameters
    ----------
    dates : datetime or iterable of datetime
        Aware, and at least one.

    Examples
    --------
    >>> print(Dates(datetime(2026, 1, 1, 12, tzinfo=UTC)))
    at 2026-01-01 12:00:00 UTC
    """

    dates: tuple[datetime, ...]

    def __init__(self, dates: datetime | Iterable[datetime]) -> None:
        given = dates if isinstance(dates, Iterable) and not isinstance(dates, str) else [dates]
        instants = sorted({in_utc(date, "A date to run at") for date in given})
        if not instants:
            raise TriggerError("There is no date to run at. Give at least one aware datetime.")
        object.__setattr__(self, "dates", tuple(instants))

    def next_after(self, t: datetime) -> datetime | None:
        """The next date; see :meth:`Trigger.next_after`."""
        _require_aware(t)
        following = bisect_right(self.dates, t)
        return self.dates[following] if following < len(self.dates) else None

    @property
    def fingerprint(self) -> str:
        """A digest of the dates."""
        return f"dates {sha256(' '.join(map(str, self.dates)).encode()).hexdigest()}"

    def __str__(self) -> str:
        first, last = _spoken(self.dates[0]), _spoken(self.dates[-1])
        return f"at {first}" if len(self.dates) == 1 else f"at {len(self.dates)} dates from {first} to {last}"


@dataclass(frozen=True, slots=True)
class Unknown:
    """A schedule that only other processes know."""

    def next_after(self, t: datetime) -> datetime | None:
        """It is up to them."""
        return None

    @property
    def fingerprint(self) -> str:
        return "unknown"

    def __str__(self) -> str:
        return "as a newer version of the code says"


@dataclass(frozen=True, slots=True, init=False)
class After:
    """Whenever one of the given tasks (or of one list of them) has a new final value; no clock knows when."""

    tasks: tuple[Any, ...]

    def __init__(self, *tasks: Any) -> None:
        if len(tasks) == 1 and isinstance(tasks[0], (list, tuple)):
            tasks = tuple(tasks[0])
        if not tasks:
            raise TriggerError("There is no task to run after. Give at least one: after=task.")
        for task in tasks:
            if not isinstance(getattr(task, "name", None), str):
                raise TriggerError(f"after= takes tasks, and {task!r} is none. Decorate it with @ps.schedule(...).")
        object.__setattr__(self, "tasks", tasks)

    def next_after(self, t: datetime) -> None:
        """None; see :meth:`Trigger.next_after`."""
        _require_aware(t)

    @property
    def fingerprint(self) -> str:
        """The names, in any order."""
        return f"after {sorted({task.name for task in self.tasks})}"

    def __str__(self) -> str:
        return f"after {', '.join(task.name for task in self.tasks)}"


class Computed:
    """
    Instants that a function works out, one by one, as they are asked for. Threads may share it.

    Each is asked of the function once, and the last 1024 are remembered, so that a function with a state of its own
    answers like a formula. (About a time before these, the oldest of them is the answer.)

    Parameters
    ----------
    source : callable
        Gets an instant, aware and in UTC: the one asked with, or the last known one if that is later. Returns a
        later one (aware), or None when there are no more. What it raises goes to the asker; the next ask tries again.
    label : str
        Names the schedule, for people and as fingerprint.

    Examples
    --------
    >>> later = Computed(lambda now: now + timedelta(days=1), "a day later")
    >>> later.next_after(datetime(2026, 1, 1, tzinfo=UTC))
    datetime.datetime(2026, 1, 2, 0, 0, tzinfo=datetime.timezone.utc)
    """

    def __init__(self, source: Callable[[datetime], datetime | None], label: str) -> None:
        self.label = label
        self._source = source
        self._known: deque[datetime] = deque(maxlen=_MEMORY)
        self._ended = False
        # Reentrant, for a source that asks for its own task's next run: an error is better than a deadlock.
        self._lock = RLock()

    @classmethod
    def from_iterable(cls, dates: Iterable[datetime], label: str) -> Computed:
        """Take the instants from an iterable of aware, ascending datetimes, as late as possible; it may be endless."""
        pending = iter(dates)
        return cls(lambda _: next(pending, None), label)

    def next_after(self, t: datetime) -> datetime | None:
        """The next instant; see :meth:`Trigger.next_after`. A source that never advances is a TriggerError, too."""
        _require_aware(t)
        with self._lock:
            while not self._known or self._known[-1] <= t:
                if self._ended:
                    return None
                self._learn(t.astimezone(UTC))
            return self._known[bisect_right(self._known, t)]

    def _learn(self, t: datetime) -> None:
        last = self._known[-1] if self._known else None
        for _ in range(_PATIENCE):
            given = without_session(f"at={self.label}", self._source, t if last is None else max(t, last))
            if given is None:
                self._ended = True
                return
            instant = in_utc(given, f"What {self.label} gave")
            if last is None or instant > last:
                self._known.append(instant)
                return
        raise TriggerError(f"{self.label} gave {_PATIENCE} dates in a row not later than {last}. Let it end with None.")

    @property
    def fingerprint(self) -> str:
        """The label: what the source will give is not known."""
        return f"computed {self.label}"

    def __str__(self) -> str:
        return f"computed by {self.label}"


def _require_aware(t: datetime) -> None:
    if not isinstance(t, datetime):
        raise TriggerError(f"A trigger is asked with an aware datetime, and not with {t!r}. Use datetime.now(UTC).")
    if t.utcoffset() is None:
        raise TriggerError(f"A trigger cannot tell when {t!r} is: it has no timezone. Use datetime.now(UTC).")


def in_utc(value: object, what: str) -> datetime:
    """A plain datetime in UTC, which `what` is, from any kind of aware one: pandas has another."""
    if not isinstance(value, datetime):
        raise TriggerError(f"{what} has to be an aware datetime, not {value!r}.")
    if value.tzinfo is None or value.utcoffset() is None:  # pandas' NaT has neither, and raises on the second
        raise TriggerError(f"{what} has no timezone: {value!r}. Add one: tzinfo=ZoneInfo('Europe/Berlin'), or UTC.")
    utc = value.astimezone(UTC)
    return datetime.combine(utc.date(), utc.timetz())


def _spoken(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"
