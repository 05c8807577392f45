"""What comes of a schedule, and in which zone it is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

from . import Cron, Trigger


def zone_of(trigger: Trigger, zone: tzinfo | None, default: tzinfo = UTC) -> tzinfo:
    """In which a schedule is told: `zone`, else its own, else `default`."""
    return zone or (ZoneInfo(trigger.timezone) if isinstance(trigger, Cron) else default)


def slots_after(trigger: Trigger, start: datetime) -> Iterator[datetime]:
    """One after the other, as long as there are any."""
    slot = trigger.next_after(start)
    while slot is not None:
        yield slot
        slot = trigger.next_after(slot)
