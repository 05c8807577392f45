"""What may happen to what a process says of itself: that it is there, what it is at, and that it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from .record import Record, state_of

SPACE = "process"

# So long it is known what one has said last, if it has died.
KEPT = timedelta(hours=1)


@state_of(SPACE)
class ProcessState(NamedTuple):
    """
    What a process says of itself, be it of a server or the first one of a worker of Celery. The name of its record is
    that of the process as an owner; nobody holds it.

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
    worker : str
        The name that Celery has for it; ``""`` where it is none of its workers.
    queues : sequence of str
        Of Celery's, those from which it takes calls.
    """

    host: str = ""
    pid: int = 0
    since: datetime | None = None
    executors: Mapping[str, Any] = {}
    workers: Sequence[Any] = ()
    hanging: Sequence[str] = ()
    worker: str = ""
    queues: Sequence[str] = ()


def tell(record: Record | None, revision: int, *, me: str, state: ProcessState, now: datetime) -> Record:
    """It is there, and at this."""
    return Record(SPACE, me, state, expires_at=now + KEPT)


def leave(record: Record | None, revision: int) -> None:
    """It ends as it should: nothing is left to say."""


def heard_at(record: Record) -> datetime:
    """When it has said this."""
    assert record.expires_at is not None
    return record.expires_at - KEPT
