"""What may happen to one run of a background function, and to the right that equal calls share one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from ..functions.run import RunState
from ..functions.spans import NOWHERE, Carrier
from .record import NOBODY, Record, Refusal, state_of

SPACE = "run"

# Of runs: whoever has started them. None is a user, too: one who has not logged in.
ANYBODY: Any = type("Anybody", (), {"__repr__": lambda self: "ANYBODY"})()

# The records that say which run equal calls share.
SHARED = "shared run"

# The parts that a run can have.
ARGUMENTS, PARTIAL, VALUE, ERROR = "arguments", "partial result", "value", "error"

# An owner that does not live.
_GONE = "?"

# How long one can be seen whose process could not say it.
KEPT = timedelta(days=1)


@state_of(SPACE)
class JobState(NamedTuple):
    """
    What all processes know of a run besides its parts. The group of its record is the name of the function.

    Attributes
    ----------
    key : str
        Digest of the arguments where equal calls are shared, else ``""``.
    durable : bool
        It outlives its process, or server.
    user : str or None
        Whose session has started it.
    state : RunState
    attempt : int
        From 1.
    fence : int
        From 1, one more each time that another process takes it.
    percent : int
    message : str
    reason : str
        Why it was cancelled.
    error : str
        First line.
    cancelled : bool
        Somebody asks its process to cancel it.
    queued_at, started_at, finished_at : datetime or None
    asked : Carrier
        In which span somebody has asked for it, of one that is durable.
    due_at : datetime or None
        It does not begin before.
    """

    key: str = ""
    durable: bool = False
    user: str | None = None
    state: RunState = RunState.QUEUED
    attempt: int = 1
    fence: int = 1
    percent: int = -1
    message: str = ""
    reason: str = ""
    error: str = ""
    cancelled: bool = False
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    asked: Carrier = NOWHERE
    due_at: datetime | None = None


@state_of(SHARED)
class SharedState(NamedTuple):
    """
    Which run those share who ask for the same.

    Attributes
    ----------
    run : str
        Its id.
    until : datetime or None
        How long its result is good; None as long as it is under way, and of one that is good for ever.
    """

    run: str = ""
    until: datetime | None = None


# ------------------------------------------------------------ sharing


def shared_name(function: str, key: str) -> str:
    """Of the record that says which run is shared."""
    return f"{key} {function}"


def share(
    record: Record | None, revision: int, *, function: str, key: str, run: str, gone: str, now: datetime
) -> Record | Refusal:
    """The run is the one that is shared from now on, unless there is another one; `gone` is none any more."""
    if record is not None and record.state.run != gone and not (record.state.until and record.state.until <= now):
        return Refusal.HELD
    return Record(SHARED, shared_name(function, key), SharedState(run), function)


def settle(record: Record | None, revision: int, *, run: str, good: bool, until: datetime | None) -> Record | None:
    """It is over: a good result is shared until then, or for ever. Another run that is shared by now stays."""
    if record is None or record.state.run != run:
        return record
    return record._replace(state=SharedState(run, until), expires_at=until) if good else None


# ------------------------------------------------------------ one run


def enqueue(
    record: Record | None,
    revision: int,
    *,
    me: str,
    id: str,
    function: str,
    key: str,
    durable: bool,
    user: str | None,
    now: datetime,
    arguments: bool,
    started_at: datetime | None = None,
    asked: Carrier = NOWHERE,
    due_at: datetime | None = None,
) -> Record | Refusal:
    """It waits for its turn in this process, or is running there already."""
    if record is not None:
        return Refusal.HANDLED
    state = JobState(key, durable, user, queued_at=now, asked=asked, due_at=due_at)
    if started_at is not None:
        state = state._replace(state=RunState.RUNNING, started_at=started_at)
    return Record(SPACE, id, state, function, me, now, parts={ARGUMENTS: 1} if arguments else {})


def restore(record: Record | None, revision: int, *, held: Record) -> Record | Refusal:
    """A store that has lost it, or that it was taken over, gets it again from the process that runs it."""
    return Refusal.HANDLED if record is not None and record.state.fence >= held.state.fence else held


def begin(
    record: Record | None, revision: int, *, me: str, fence: int, now: datetime, attempt: int
) -> Record | Refusal:
    """It is running; what an earlier attempt has given is nothing any more."""
    if record is None or not is_held(record, me, fence):
        return Refusal.FENCED
    state = record.state._replace(state=RunState.RUNNING, started_at=now, attempt=attempt, percent=-1, message="")
    return record._replace(state=state, parts=_without(record, PARTIAL))


def again(record: Record | None, revision: int, *, me: str, fence: int, attempt: int) -> Record | Refusal:
    """It is queued again, for a retry."""
    if record is None or not is_held(record, me, fence):
        return Refusal.FENCED
    return record._replace(state=record.state._replace(state=RunState.QUEUED, attempt=attempt))


def progress(
    record: Record | None, revision: int, *, me: str, fence: int, percent: int, message: str
) -> Record | Refusal:
    """It has come so far."""
    if record is None or not is_held(record, me, fence):
        return Refusal.FENCED
    return record._replace(state=record.state._replace(percent=percent, message=message))


def publish(record: Record | None, revision: int, *, me: str, fence: int, number: int) -> Record | Refusal:
    """There is a partial result of this number, from 0."""
    if record is None or not is_held(record, me, fence):
        return Refusal.FENCED
    count = max(number + 1, record.parts.get(PARTIAL, 0))  # by threads they come in any order
    return record._replace(parts={**record.parts, PARTIAL: count})


def finish(
    record: Record | None,
    revision: int,
    *,
    me: str,
    fence: int,
    state: RunState,
    now: datetime,
    part: str,
    error: str,
    reason: str,
    expires_at: datetime | None,
) -> Record | Refusal:
    """It has ended so."""
    if record is None or not is_held(record, me, fence):
        return Refusal.FENCED
    return _end(record, state, now, error, reason, expires_at, part)


def ask_to_cancel(
    record: Record | None, revision: int, *, alive: Callable[[str], bool], now: datetime
) -> Record | Refusal:
    """Its process is to cancel it; without one it has ended at once."""
    if record is None or record.owner is None:
        return Refusal.ABSENT
    if alive(record.owner):
        return record._replace(state=record.state._replace(cancelled=True))
    return _stop(record, RunState.CANCELLED, "the run was cancelled", now)


def take(
    record: Record | None, revision: int, *, me: str, alive: Callable[[str], bool], left: int = 0
) -> Record | Refusal:
    """
    Become the process of one that is nobody's. It counts as an attempt if it had begun.

    Parameters
    ----------
    left : int
        The fence that it was left with: if this process has the next one, it was taken, and nobody was told so.
    """
    if record is not None and left and is_held(record, me, left + 1):
        return record
    if not is_orphan(record, alive):
        return Refusal.HELD
    assert record is not None
    state = record.state
    attempt = state.attempt + (state.state is RunState.RUNNING)
    return record._replace(
        owner=me, state=state._replace(fence=state.fence + 1, attempt=attempt, state=RunState.QUEUED)
    )


def let_go(record: Record | None, revision: int, *, me: str, fence: int) -> Record | Refusal:
    """It cannot be run here now: it is nobody's again; one that is to be cancelled is left to who buries it."""
    if record is None or not is_held(record, me, fence):
        return Refusal.FENCED
    return record._replace(owner=_GONE if record.state.cancelled else NOBODY)


def release(record: Record | None, revision: int, *, me: str, now: datetime) -> Record | Refusal:
    """Its process stops: a durable one is nobody's, at no attempt's cost."""
    if record is None or record.owner != me:
        return Refusal.FENCED
    if record.state.durable and not record.state.cancelled:
        return record._replace(owner=NOBODY, state=record.state._replace(state=RunState.QUEUED))
    return _stop(record, RunState.CANCELLED, "the server stops", now)


def bury(record: Record | None, revision: int, *, alive: Callable[[str], bool], now: datetime) -> Record | Refusal:
    """Its process may have died."""
    if record is None or record.owner in (None, NOBODY) or alive(record.owner or ""):
        return Refusal.HELD
    if record.state.cancelled:
        return _stop(record, RunState.CANCELLED, "the run was cancelled", now)
    if record.state.durable:
        return record._replace(owner=NOBODY)
    died = "the process that ran it died. Submit it again; with durable=True another process would have taken it"
    return _stop(record, RunState.CRASHED, died, now)


def is_held(record: Record, me: str, fence: int) -> bool:
    """Whether this process runs it, under this fence."""
    return (record.owner, record.state.fence) == (me, fence)


def is_orphan(record: Record | None, alive: Callable[[str], bool]) -> bool:
    """Whether any process may take it."""
    if record is None or record.owner is None or not record.state.durable or record.state.cancelled:
        return False
    return not alive(record.owner)


def _stop(record: Record, state: RunState, why: str, now: datetime) -> Record:
    """End it for its process."""
    kind = "RunCancelled" if state is RunState.CANCELLED else "RunCrashed"
    reason = str(state) if state is RunState.CANCELLED else ""
    return _end(record, state, now, f"{kind}: Job {record.group!r}: {why}.", reason, now + KEPT, "")


def _end(
    record: Record, state: RunState, now: datetime, error: str, reason: str, expires_at: datetime | None, part: str
) -> Record:
    parts = _without(record, ARGUMENTS) | ({part: 1} if part else {})
    before = record.state
    percent = 100 if state is RunState.SUCCEEDED and before.percent >= 0 else before.percent
    after = before._replace(state=state, finished_at=now, error=error, reason=reason, cancelled=False, percent=percent)
    return record._replace(state=after, owner=None, parts=parts, expires_at=expires_at)


def _without(record: Record, *kinds: str) -> dict[str, Any]:
    return {kind: count for kind, count in record.parts.items() if kind not in kinds}
