"""What may happen to the places of a limit: as many runs as it has places go at the same time, in whatever process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from .record import Record, Refusal, state_of

SPACE = "place"

# So long a place is known that nobody has taken again.
KEPT = timedelta(hours=1)

Alive = Callable[[str], bool]


class Limit(NamedTuple):
    """
    How many runs may go at the same time.

    Attributes
    ----------
    name : str
        ``"group 'warehouse'"``; ``"Job 'simulate'"`` of one function.
    size : int
    """

    name: str
    size: int


@state_of(SPACE)
class PlaceState(NamedTuple):
    """
    Who has one place. The group of its record is the limit's name, its owner the process while the place is taken.

    Attributes
    ----------
    process : str
        Which has it, or had it last.
    holder : str
        The run of that process.
    """

    process: str = ""
    holder: str = ""


def name_of(limit: str, number: int) -> str:
    """Of the record of one place."""
    return f"{limit} {number}"


def is_taken(record: Record | None, alive: Alive) -> bool:
    """Whether a run has it, in a process that lives."""
    return record is not None and record.owner is not None and alive(record.owner)


def is_mine(record: Record, me: str, holder: str) -> bool:
    """Whether this run has it."""
    return record.owner == me and bool(record.state.holder == holder)


def vacant(records: Iterable[Record], limit: Limit, alive: Alive) -> int | None:
    """The number of a place that is free, of the records of a limit; None where there is none."""
    known = {record.name: record for record in records}
    numbers = (n for n in range(limit.size) if not is_taken(known.get(name_of(limit.name, n)), alive))
    return next(numbers, None)


def take(
    record: Record | None, revision: int, *, limit: str, number: int, me: str, holder: str, alive: Alive
) -> Record | Refusal:
    """A run takes a place, which is free, or which a dead process has left."""
    if is_taken(record, alive):
        return Refusal.HELD
    return Record(SPACE, name_of(limit, number), PlaceState(me, holder), limit, me)


def free(record: Record | None, revision: int, *, me: str, holder: str, now: datetime) -> Record | Refusal:
    """It needs the place no more."""
    if record is None or not is_mine(record, me, holder):
        return Refusal.FENCED
    return record._replace(owner=None, expires_at=now + KEPT)
