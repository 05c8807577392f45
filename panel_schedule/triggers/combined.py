"""Schedules that are made of others: any of several, one within limits, and one of a user's own class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from traceback import format_exception_only
from typing import Any
from zoneinfo import ZoneInfo

from ..errors import TriggerError, is_interrupt
from ..session import without_session
from . import Cron, Dates, Every, Schedule, Trigger, in_utc
from .cron import TICK, next_day

__all__ = ["AnyOf", "Limited", "Own", "is_portable", "leaves", "part_of", "zone_name"]

# So many days in a row `skip=` may leave out: ten years.
_MOST_DAYS = 3660

Skip = frozenset[date] | Callable[[date], Any]


def zone_name(trigger: Trigger) -> str | None:
    """The zone in whose time a schedule is written; None where it is none, or several."""
    name = getattr(trigger, "timezone", None)
    return name if isinstance(name, str) else None


def leaves(trigger: Trigger) -> Iterator[Trigger]:
    """The schedules that it is made of."""
    if isinstance(trigger, AnyOf):
        for each in trigger.triggers:
            yield from leaves(each)
    elif isinstance(trigger, Limited):
        yield from leaves(trigger.trigger)
    else:
        yield trigger


def is_portable(trigger: Trigger) -> bool:
    """Whether it means the same in any process, also in one that has nothing of the user's code."""
    if isinstance(trigger, Limited) and callable(trigger.skip):
        return False
    if isinstance(trigger, (AnyOf, Limited)):
        return all(map(is_portable, trigger.triggers if isinstance(trigger, AnyOf) else [trigger.trigger]))
    return isinstance(trigger, (Cron, Dates, Every))


def part_of(longest: timedelta, *what: Any) -> timedelta:
    """A part of a time that looks like chance, and is always the same for the same thing, in every process."""
    if not longest:
        return longest
    number = int.from_bytes(sha256("\n".join(map(str, what)).encode()).digest()[:8], "big")
    return longest * (number / 2**64)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Whenever one of several says so; what two of them say at the same time is one slot."""

    triggers: tuple[Schedule, ...]

    def next_after(self, t: datetime) -> datetime | None:
        """The earliest; see :meth:`Trigger.next_after`."""
        return min((slot for each in self.triggers if (slot := each.next_after(t)) is not None), default=None)

    @property
    def timezone(self) -> str | None:
        names = {zone_name(each) for each in self.triggers}
        return names.pop() if len(names) == 1 else None

    @property
    def fingerprint(self) -> str:
        """Those of all, in any order."""
        return f"any of {sorted({each.fingerprint for each in self.triggers})}"

    def __str__(self) -> str:
        return " or ".join(map(str, self.triggers))


@dataclass(frozen=True, slots=True)
class Limited:
    """
    A schedule from `start` to `end`, both included, and without the days of `skip`.

    Parameters
    ----------
    trigger : Schedule
    start, end : datetime or None
        Aware, in UTC.
    skip : frozenset of date, or callable, or None
        The days of the zone on which nothing runs, or ``skip(date)``, which says whether it is one of them.
    timezone : str or None
        None where nothing is asked of days, and the schedule has no zone of its own.
    said : str
        What `skip` is, as fingerprint.
    """

    trigger: Schedule
    start: datetime | None
    end: datetime | None
    skip: Skip | None = field(compare=False)
    timezone: str | None
    said: str

    def next_after(self, t: datetime) -> datetime | None:
        """The next slot that is within the limits; see :meth:`Trigger.next_after`."""
        if self.start is not None and t < self.start:
            t = self.start - TICK
        for _ in range(_MOST_DAYS):
            slot = self.trigger.next_after(t)
            if slot is None or (self.end is not None and slot > self.end):
                return None
            if self.skip is None or self.timezone is None:
                return slot
            zone = ZoneInfo(self.timezone)
            try:
                day = slot.astimezone(zone).date()
            except OverflowError:  # on the last day of the calendar
                return None
            if not self._skips(day):
                return slot
            # Not earlier than the slot: where clocks are put back at midnight a day comes to its end twice.
            t = max(slot, next_day(day, zone) - TICK)
        return None

    def _skips(self, day: date) -> bool:
        if isinstance(self.skip, frozenset):
            return day in self.skip
        assert self.skip is not None
        try:
            return bool(without_session("skip=", self.skip, day))
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise TriggerError(f"skip={self.said} failed for {day}: {_line(error)}") from error

    @property
    def limits(self) -> str:
        """They in words, after those of the schedule."""
        zone = UTC if self.timezone is None else ZoneInfo(self.timezone)
        said = [
            f", {word} {at.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}"
            for word, at in (("from", self.start), ("until", self.end))
            if at is not None
        ]
        if isinstance(self.skip, frozenset):
            said.append(f", but not on {min(self.skip)}" if len(self.skip) == 1 else f", but for {len(self.skip)} days")
        elif self.skip is not None:
            said.append(f", but for the days of {self.said}")
        return "".join(said)

    @property
    def fingerprint(self) -> str:
        """Of a function that says which days it is the name: what it will say is not known."""
        return f"{[self.trigger.fingerprint, str(self.start), str(self.end), self.said, str(self.timezone)]}"

    def __str__(self) -> str:
        return f"{self.trigger}{self.limits}"


@dataclass(frozen=True, slots=True)
class Own:
    """
    A trigger of a user's own class, which is held to what a trigger promises.

    Parameters
    ----------
    trigger : Trigger
    fingerprint : str
    words : str
        What people are told of it.
    """

    trigger: Trigger = field(compare=False)
    fingerprint: str
    words: str = field(compare=False)

    def next_after(self, t: datetime) -> datetime | None:
        """What it answers; a TriggerError if that is no later instant, or it raises, or is not what it was."""
        try:
            answer = without_session(f"Trigger {self.words}", self.trigger.next_after, t.astimezone(UTC))
            now = getattr(self.trigger, "fingerprint", None)
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise TriggerError(
                f"The trigger {self.words} failed when it was asked for the first time after {t}: {_line(error)}"
            ) from error
        if now is not None and own_fingerprint(now) != self.fingerprint:
            raise TriggerError(
                f"The trigger {self.words} is not frozen: its fingerprint has become {now!r} since it was scheduled. "
                "What it answers may depend on nothing but its fields and the instant that it is asked with."
            )
        if answer is None:
            return None
        slot = in_utc(answer, f"What the trigger {self.words} gave for the first time after {t}")
        if slot <= t:
            raise TriggerError(
                f"The trigger {self.words} gave {slot} for the first time after {t}, which is not later. Let "
                "next_after(t) give the first instant that is strictly later than t, or None when there is none."
            )
        return slot

    def __str__(self) -> str:
        return self.words


def own_fingerprint(text: str) -> str:
    """Of a trigger of a user's own class, by what that says of itself."""
    return f"own {text}"


def _line(error: BaseException) -> str:
    return format_exception_only(error)[-1].strip()
