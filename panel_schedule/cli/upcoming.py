"""The next runs of a schedule, and where clocks are moved between them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import NamedTuple
from zoneinfo import ZoneInfo

from ..triggers import Cron, Trigger
from .table import lasting


class Upcoming(NamedTuple):
    """
    One run to come.

    Attributes
    ----------
    at : datetime
        In the zone of the schedule, or the one that was asked for.
    moved : timedelta
        By how much the clocks of the schedule's zone are moved since the run before, or since the start.
    """

    at: datetime
    moved: timedelta = timedelta()

    @property
    def note(self) -> str:
        """What is said of clocks that are moved; ``""`` where they are not."""
        if not self.moved:
            return ""
        return f"clocks {'forward' if self.moved > timedelta() else 'back'} by {lasting(self.moved)} before it"


def zone_of(trigger: Trigger, zone: tzinfo | None, default: tzinfo = UTC) -> tzinfo:
    """In which a schedule is told: `zone`, else its own, else `default`."""
    return zone or (ZoneInfo(trigger.timezone) if isinstance(trigger, Cron) else default)


def upcoming(
    trigger: Trigger, start: datetime, count: int, zone: tzinfo | None = None, default: tzinfo = UTC
) -> list[Upcoming]:
    """
    The next runs after an instant.

    Parameters
    ----------
    trigger : Trigger
    start : datetime
        Aware.
    count : int
    zone, default : tzinfo, optional
        See `zone_of`.
    """
    told, own = zone_of(trigger, zone, default), zone_of(trigger, None, default)
    found, before = list[Upcoming](), _offset(start, own)
    for slot in islice(_slots(trigger, start), count):
        offset = _offset(slot, own)
        found.append(Upcoming(slot.astimezone(told), offset - before))
        before = offset
    return found


def _slots(trigger: Trigger, start: datetime) -> Iterator[datetime]:
    slot = trigger.next_after(start)
    while slot is not None:
        yield slot
        slot = trigger.next_after(slot)


def _offset(instant: datetime, zone: tzinfo) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta()
