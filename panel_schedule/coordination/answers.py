"""What may happen to the answer to one call of a memoized function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from .record import Record, Refusal, state_of

# The versions of the tasks of ``after=`` for which an answer was computed, in their order.
Basis = tuple[int, ...]

SPACE = "answer"

# The parts that an answer can have.
VALUE, PARTIAL, ERROR = "value", "partial answer", "error"

# How often a computation is taken over from a process that died, before it has failed: one that kills its process must
# not kill every one in turn.
TAKEOVERS = 1

# How long after its lifetime an answer is kept for the case that it cannot be computed anew.
LAST_RESORT = timedelta(days=7)

# The `ttl` of an answer that is for those who wait for it, and that nobody is given who asks later.
NOT_KEPT = 0.0

# How long a record without a value stays: until the others have heard of it.
EMPTY = timedelta(hours=1)


class Limits(NamedTuple):
    """How much is kept of one function: so many answers, so many bytes of them."""

    entries: int | None = None
    size: int | None = None


UNLIMITED = Limits()


@state_of(SPACE)
class AnswerState(NamedTuple):
    """
    What all processes know of an answer besides its parts.

    Attributes
    ----------
    call : str
        The call as text, for people. Of the record of all calls, the process that has forgotten them.
    version : int
        Of the value; 0 where there is none.
    basis : tuple of int
    updated_at : datetime or None
    duration : float or None
        Seconds that its computation took.
    fence : int
        Of the computation under way, or the last one.
    wanted : tuple of int
        The basis of the computation under way.
    takeovers : int
    failed : int
        The fence of the last computation that failed, where none has succeeded since.
    failed_at : datetime or None
    partials : int
        How many partial answers the computation under way has published.
    percent : int
        How far it has come; -1 while that is unknown.
    message : str
    began_at : datetime or None
        When the computation under way began.
    ttl : float or None
        Seconds for which this value is fresh, where its function has said so of it; None: as of all; or NOT_KEPT.
    """

    call: str = ""
    version: int = 0
    basis: Basis = ()
    updated_at: datetime | None = None
    duration: float | None = None
    fence: int = 0
    wanted: Basis = ()
    takeovers: int = 0
    failed: int = 0
    failed_at: datetime | None = None
    partials: int = 0
    percent: int = -1
    message: str = ""
    began_at: datetime | None = None
    ttl: float | None = None


def serves(basis: Basis, wanted: Basis) -> bool:
    """Whether what was computed for `basis` is no older than what is wanted."""
    return len(basis) == len(wanted) and all(one >= other for one, other in zip(basis, wanted, strict=True))


def name_of(function: str, key: str) -> str:
    """Of the record of one call; of all calls with the key ``""``."""
    return f"{key} {function}"


def key_of(record: Record) -> str:
    """The other way round."""
    return record.name.partition(" ")[0]


def claim(
    record: Record | None,
    revision: int,
    *,
    me: str,
    alive: Callable[[str], bool],
    function: str,
    key: str,
    call: str,
    known: int,
    basis: Basis,
    now: datetime,
) -> Record | Refusal:
    """
    Get to compute it, unless there is a newer answer than `known`, or another process computes one that serves.

    One that was taken over too often has failed; then the record that is returned is nobody's.
    """
    if record is None:
        record = Record(SPACE, name_of(function, key), AnswerState(), function)
    elif record.owner is not None and not alive(record.owner):
        record = orphan(record, now)
        if record.state.failed == record.state.fence:
            return record
    state = record.state
    if VALUE in record.parts and state.version > known:
        return Refusal.HANDLED
    if record.owner not in (None, me) and serves(state.wanted, basis):
        return Refusal.HELD
    state = state._replace(call=call, fence=revision, wanted=basis, partials=0, percent=-1, message="", began_at=now)
    return _set(record, state, now, record.parts.keys() - {PARTIAL}, owner=me)


def publish(record: Record | None, revision: int, *, me: str, fence: int) -> Record | Refusal:
    """There is a partial answer, in place of the last one."""
    if record is None or not _is_held(record, me, fence):
        return Refusal.FENCED
    state = record.state._replace(partials=record.state.partials + 1)
    return record._replace(state=state, parts={**record.parts, PARTIAL: 1})


def progress(
    record: Record | None, revision: int, *, me: str, fence: int, percent: int, message: str
) -> Record | Refusal:
    """It has come so far."""
    if record is None or not _is_held(record, me, fence):
        return Refusal.FENCED
    return record._replace(state=record.state._replace(percent=percent, message=message))


def succeed(
    record: Record | None,
    revision: int,
    *,
    me: str,
    fence: int,
    now: datetime,
    duration: float,
    expires_at: datetime | None,
    ttl: float | None = None,
) -> Record | Refusal:
    """There is an answer, of the basis that was wanted."""
    if record is None or not _is_held(record, me, fence):
        return Refusal.FENCED
    state = AnswerState(record.state.call, revision, record.state.wanted, now, duration, fence, ttl=ttl)
    return _set(record, state, now, {VALUE})._replace(used_at=now, expires_at=expires_at)


def fail(record: Record | None, revision: int, *, me: str, fence: int, now: datetime) -> Record | Refusal:
    """There is none; the one of before stays."""
    if record is None or not _is_held(record, me, fence):
        return Refusal.FENCED
    return _failed(record, now, record.parts.keys() | {ERROR})


def give_up(record: Record | None, revision: int, *, me: str, fence: int, now: datetime) -> Record | Refusal:
    """Let another process compute it."""
    if record is None or not _is_held(record, me, fence):
        return Refusal.FENCED
    return _free(record, now)


def bury(record: Record | None, revision: int, *, alive: Callable[[str], bool], now: datetime) -> Record | Refusal:
    """The process that computes it may have died."""
    if record is None or record.owner is None or alive(record.owner):
        return Refusal.HELD
    return orphan(record, now)


def orphan(record: Record, now: datetime) -> Record:
    """The process that computes it has died: another one takes it, unless that has happened before."""
    taken = record.state.takeovers
    return _failed(record, now, record.parts.keys() - {ERROR}) if taken >= TAKEOVERS else _free(record, now, taken + 1)


def invalidate(
    record: Record | None, revision: int, *, function: str, key: str, now: datetime, call: str = ""
) -> Record:
    """
    Forget it; what a computation under way comes to does not count any more.

    There is a record from then on, as other processes may have at hand what has gone from here.
    """
    if record is None:
        record = Record(SPACE, name_of(function, key), AnswerState(call), function)
    return _set(record, AnswerState(call or record.state.call, fence=record.state.fence), now, ())


def _is_held(record: Record, me: str, fence: int) -> bool:
    return (record.owner, record.state.fence) == (me, fence)


def _free(record: Record, now: datetime, takeovers: int = 0) -> Record:
    state = record.state._replace(
        wanted=(), takeovers=takeovers, partials=0, percent=-1, message="", began_at=None
    )  # fmt: skip
    return _set(record, state, now, record.parts.keys() - {PARTIAL})


def _failed(record: Record, now: datetime, parts: Collection[str]) -> Record:
    state = record.state._replace(failed=record.state.fence, failed_at=now)
    return _free(record._replace(state=state, parts=dict.fromkeys(parts, 1)), now)


def _set(record: Record, state: AnswerState, now: datetime, parts: Iterable[str], owner: str | None = None) -> Record:
    return record._replace(
        state=state,
        owner=owner,
        parts=dict.fromkeys(parts, 1),
        used_at=max(record.used_at or now, now),
        expires_at=record.expires_at if state.version else now + EMPTY,
    )


def expire(record: Record | None, revision: int, *, version: int, at: datetime) -> Record | Refusal:
    """This version may be forgotten from then on."""
    if record is None or record.state.version != version:
        return Refusal.ABSENT
    return record._replace(expires_at=at)
