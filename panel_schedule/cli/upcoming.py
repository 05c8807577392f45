"""The next runs of a schedule, and where clocks are moved between them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import NamedTuple

from ..triggers import Trigger
from ..triggers.coming import slots_after, zone_of
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
    for slot in islice(slots_after(trigger, start), count):
        offset = _offset(slot, own)
        found.append(Upcoming(slot.astimezone(told), offset - before))
        before = offset
    return found


def _offset(instant: datetime, zone: tzinfo) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta()
