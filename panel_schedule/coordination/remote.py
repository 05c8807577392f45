"""What may happen to a call that one process asks for and a worker of another program, as Celery, makes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from ..functions.run import RunState
from .record import Record, Refusal, state_of

SPACE = "remote"

# The parts that a call can have: what is called; what its worker has said and home has not heard yet, and why home has
# refused the last of it; what came of it.
CALL, SAID, REFUSED, VALUE, ERROR = "call", "said", "refused", "value", "error"

# An owner that does not live.
GONE = "?"


@state_of(SPACE)
class RemoteState(NamedTuple):
    """
    What all processes know of a call. The group of its record is whose it is, for messages: ``"Job 'total'"``.

    Its owner is the process that asks for it, and from its claim on the worker process.

    Attributes
    ----------
    home : str
        The process that asks for it.
    state : RunState
        Queued, running, and at its end succeeded or failed.
    worker : str
        The name of the process that has claimed it.
    killable : bool
        Whether that process does nothing else.
    cancelled : bool
        Home asks for its end.
    percent : int
    message : str
    said, heard : int
        The number of the last thing that the worker has said, and of the last one that home has taken in.
    """

    home: str = ""
    state: RunState = RunState.QUEUED
    worker: str = ""
    killable: bool = False
    cancelled: bool = False
    percent: int = -1
    message: str = ""
    said: int = 0
    heard: int = 0


# ------------------------------------------------------------ home


def submit(
    record: Record | None, revision: int, *, name: str, label: str, home: str, alive: Callable[[str], bool]
) -> Record | Refusal:
    """It waits for a worker; in place of one that the dead have left, or that was cancelled for a home that is dead."""
    if record is not None and record.state.home == home:
        return Refusal.HANDLED
    if record is not None:
        stopped = _is_stopped(record) and record.owner is None and not alive(record.state.home)
        if not stopped and bury(record, revision, alive=alive) is not None:
            return Refusal.HELD
    return Record(SPACE, name, RemoteState(home), label, home, parts={CALL: 1})


def adopt(record: Record | None, revision: int, *, home: str, alive: Callable[[str], bool]) -> Record | Refusal:
    """Its home is dead, and this process does the same: it goes on for this one, unless its worker is dead, too."""
    if record is None or _is_stopped(record):
        return Refusal.ABSENT
    if alive(record.state.home):
        return Refusal.HELD
    if record.state.state is RunState.RUNNING and not alive(record.owner or ""):
        return Refusal.ABSENT
    owner = home if record.state.state is RunState.QUEUED else record.owner
    return record._replace(owner=owner, state=record.state._replace(home=home))


def hear(record: Record | None, revision: int, *, home: str, heard: int, refused: bool) -> Record | Refusal:
    """Home has taken in what was said up to this number, or has refused the last of it."""
    if record is None or record.state.home != home or record.state.state is not RunState.RUNNING:
        return Refusal.FENCED
    state = record.state._replace(heard=max(heard, record.state.heard))
    parts = _without(record, *([SAID] if state.heard >= state.said else []), REFUSED)
    return record._replace(state=state, parts=parts | ({REFUSED: 1} if refused else {}))


def cancel(record: Record | None, revision: int, *, home: str) -> Record | Refusal | None:
    """Nobody wants it any more: it never begins, or its worker is to end it."""
    if record is None or record.state.home != home or record.state.state.final:
        return Refusal.ABSENT
    if record.state.state is RunState.QUEUED:
        return None
    return record._replace(state=record.state._replace(cancelled=True))


def drop(record: Record | None, revision: int, *, home: str) -> Refusal | None:
    """Home has what came of it."""
    return None if record is not None and record.state.home == home else Refusal.ABSENT


def bury(record: Record | None, revision: int, *, alive: Callable[[str], bool]) -> Refusal | None:
    """Both that have to do with it are dead."""
    if record is None or record.owner is None or alive(record.owner) or alive(record.state.home):
        return Refusal.HELD
    return None


# ------------------------------------------------------------ the worker


def claim(record: Record | None, revision: int, *, me: str, worker: str, killable: bool) -> Record | Refusal:
    """A worker makes it, once for all: whoever else gets the same message does nothing."""
    if record is None:
        return Refusal.ABSENT
    if record.state.state is not RunState.QUEUED:
        return Refusal.HANDLED
    state = record.state._replace(state=RunState.RUNNING, worker=worker, killable=killable)
    return record._replace(owner=me, state=state)


def tell(record: Record | None, revision: int, *, me: str, percent: int, message: str, said: int) -> Record | Refusal:
    """It has come so far, and has said so much."""
    if record is None or not _is_held(record, me):
        return Refusal.FENCED
    return _told(record, percent, message, said)


def finish(
    record: Record | None,
    revision: int,
    *,
    me: str,
    state: RunState,
    part: str,
    percent: int,
    message: str,
    said: int,
    expires_at: datetime,
) -> Record | Refusal:
    """It has ended so, and home comes for it."""
    if record is None or not _is_held(record, me):
        return Refusal.FENCED
    told = _told(record, percent, message, said)
    parts = {kind: number for kind, number in told.parts.items() if kind in (SAID, REFUSED)} | (
        {part: 1} if part else {}
    )
    return told._replace(state=told.state._replace(state=state), owner=None, parts=parts, expires_at=expires_at)


def lose(record: Record | None, revision: int, *, worker: str) -> Record | Refusal:
    """The process of this name has died: who has started it says so, before it can be seen."""
    if record is None or record.owner is None or record.state.worker != worker:
        return Refusal.ABSENT
    return record._replace(owner=GONE)


def _is_held(record: Record, me: str) -> bool:
    """Whether this process makes it."""
    return record.owner == me and record.state.state is RunState.RUNNING


def _is_stopped(record: Record) -> bool:
    """Whether home has asked for its end, and it has nothing to give for all that."""
    return record.state.cancelled and record.state.state is not RunState.SUCCEEDED


def _told(record: Record, percent: int, message: str, said: int) -> Record:
    state = record.state._replace(percent=percent, message=message, said=said)
    return record._replace(state=state, parts={**record.parts, SAID: 1} if said > state.heard else record.parts)


def _without(record: Record, *kinds: str) -> dict[str, int]:
    return {kind: count for kind, count in record.parts.items() if kind not in kinds}
