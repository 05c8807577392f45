"""What comes of a schedule, and in which zone it is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

from ..errors import TriggerError
from . import Trigger
from .combined import zone_name


def zone_of(trigger: Trigger, zone: tzinfo | None, default: tzinfo = UTC) -> tzinfo:
    """In which a schedule is told: `zone`, else its own, else `default`."""
    name = zone_name(trigger)
    return zone or (ZoneInfo(name) if name is not None else default)


def slot_after(trigger: Trigger, t: datetime) -> datetime | None:
    """For who looks, and has nobody to tell that a trigger of the user's own failed: then there is none."""
    try:
        return trigger.next_after(t)
    except TriggerError:
        return None


def slots_after(trigger: Trigger, start: datetime) -> Iterator[datetime]:
    """One after the other, as long as there are any."""
    slot = trigger.next_after(start)
    while slot is not None:
        yield slot
        slot = trigger.next_after(slot)
