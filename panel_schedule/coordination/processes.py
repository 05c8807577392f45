"""What may happen to what a process says of itself: that it is there, what it is at, and that it is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from .record import Record, Refusal, state_of

SPACE = "process"

# So long one is named that has died.
KEPT = timedelta(hours=1)


@state_of(SPACE)
class ProcessState(NamedTuple):
    """
    What a process says of itself. Its record has its name as an owner, and is owned by it.

    Attributes
    ----------
    host : str
    pid : int
    since : datetime or None
        When its clocks began to turn.
    executors : mapping of str to sequence of int
        By name, how many functions run there, how many wait, and how many places there are, -1 for any number.
    workers : sequence of (str, str, str)
        Executor and name of each worker that is known, and what it runs; ``""`` where it is idle.
    hanging : sequence of str
        What still runs there though nobody waits for it.
    gone_at : datetime or None
        When it was found dead.
    """

    host: str = ""
    pid: int = 0
    since: datetime | None = None
    executors: Mapping[str, Any] = {}
    workers: Sequence[Any] = ()
    hanging: Sequence[str] = ()
    gone_at: datetime | None = None


def tell(record: Record | None, revision: int, *, me: str, state: ProcessState) -> Record | Refusal:
    """It is there, and at this."""
    if record is not None and record.owner == me and record.state == state:
        return Refusal.HANDLED
    return Record(SPACE, me, state, owner=me)


def leave(record: Record | None, revision: int) -> None:
    """It ends as it should: nothing is left to say."""


def bury(record: Record | None, revision: int, *, alive: Callable[[str], bool], now: datetime) -> Record | Refusal:
    """It may have died."""
    if record is None or record.owner is None or alive(record.owner):
        return Refusal.HELD
    return record._replace(owner=None, state=record.state._replace(gone_at=now), expires_at=now + KEPT)
