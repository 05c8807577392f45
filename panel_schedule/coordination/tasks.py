"""What may happen to a task, or a name in ``ps.store``: its value, its schedule, and the one run that holds it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from ..functions.run import RunRecord, RunState
from .record import NOBODY, Logged, Record, Refusal, logged, state_of

# The two spaces: what a user puts into ``ps.store``, and what tasks publish.
USER, TASK = "user", "task"

# The parts that a record can have: the value, the schedule where its dates are relative to now, and a reschedule.
VALUE, TRIGGER, OVERRIDE = "value", "schedule", "reschedule"

# How often a run is taken over from a process that died before it counts as crashed: a task
# that kills its process must not kill every one in turn.
TAKEOVERS = 1

# So many schedules are known to be older than the one in force.
_SUPERSEDED = 8

# In place of the number of a record of which a process has not all parts: whoever has all of them knows more.
IN_PART = 1

# What says something about the task; that a run was cancelled does not.
_OUTCOMES = (RunState.SUCCEEDED, RunState.FAILED, RunState.TIMED_OUT, RunState.CRASHED)

_CRASHED = "RunCrashed: the process that ran it died, as did the one that took it over or the one before."

# The occasion of a run that is handled once: the slot of a clock, the sum of the upstream's versions, or a request.
Mark = datetime | int | str

Alive = Callable[[str], bool]


@state_of(TASK)
@state_of(USER)
class TaskState(NamedTuple):
    """
    What all processes know of a task besides its parts; of a name in ``ps.store`` there is only the value.

    Attributes
    ----------
    version : int
        Of the value; it stays when the value is deleted, so that it only grows.
    updated_at : datetime or None
        None where there is no value.
    duration : float or None
        Seconds that its run took.
    by : str
        Id of the run that has published it.
    final : bool
        False of what a generator has yielded before its last value.
    seen_wave : datetime or None
        The slot for which that run was made.
    server : str
        The server whose schedule it is.
    scheduled_by : str
        The owner that came in last with that schedule in its code.
    fingerprint : str
        Of the schedule in the code; ``""`` of a task that was claimed, by a script say, before anybody enrolled it.
    superseded : tuple of str
        Of the schedules that it has replaced, oldest first.
    schedule : str
        The one in the code, in words.
    stale_after : float or None
        Seconds after which the value is stale; None where the schedule says it.
    first_seen : datetime or None
        Only slots after this instant can be missed. None where nobody has enrolled or claimed it.
    last_slot : datetime or None
        The last slot that was claimed or skipped.
    last_version : int
        The sum of the upstream's versions for which an ``after=`` task ran last.
    paused, removed, forgotten, stale : bool
    outcome : str
        How the last run ended.
    error : str
        First line of its failure.
    run_id : str
        Of the run that holds it.
    fence : int
        One more with each claim.
    claimer : str
        The owner that claimed it last.
    claimed : int
        The number of that change.
    attempt, takeovers : int
    key : datetime or str or None
        Of the run.
    wave, started_at : datetime or None
    published : bool
        Its last value was its final one.
    over : bool
        The run has ended; its body has not.
    cancelled : str
        Id of a run that somebody wants to be cancelled.
    requested : str
        Somebody has asked for a run, by this id, and none has begun since.
    percent : int
    message : str
    restored : int
        Where the store has lost the record, and a process has put it back: the number of its last change of before.
    """

    version: int = 0
    updated_at: datetime | None = None
    duration: float | None = None
    by: str = ""
    final: bool = True
    seen_wave: datetime | None = None
    server: str = ""
    scheduled_by: str = ""
    fingerprint: str = ""
    superseded: tuple[str, ...] = ()
    schedule: str = ""
    stale_after: float | None = None
    first_seen: datetime | None = None
    last_slot: datetime | None = None
    last_version: int = 0
    paused: bool = False
    removed: bool = False
    forgotten: bool = False
    stale: bool = False
    outcome: str = ""
    error: str = ""
    run_id: str = ""
    fence: int = 0
    claimer: str = ""
    claimed: int = 0
    attempt: int = 1
    takeovers: int = 0
    key: datetime | str | None = None
    wave: datetime | None = None
    started_at: datetime | None = None
    published: bool = False
    over: bool = False
    cancelled: str = ""
    requested: str = ""
    percent: int = -1
    message: str = ""
    restored: int = 0


class Claim(NamedTuple):
    """
    The right of one run to publish values of its task. A later fence makes it void.

    Attributes
    ----------
    task, run_id : str
    fence : int
    attempt : int
        More than 1 after a takeover.
    key : datetime or str or None
        Of the run that was taken over.
    wave : datetime or None
        The same.
    version : int
        Of the value that there was when the claim was got, which no other run can change from then on.
    """

    task: str
    run_id: str
    fence: int
    attempt: int = 1
    key: datetime | str | None = None
    wave: datetime | None = None
    version: int = 0


# ------------------------------------------------------------ the value


def publish(
    record: Record | None,
    revision: int,
    *,
    space: str,
    name: str,
    now: datetime,
    duration: float | None,
    claim: Claim | None,
    final: bool,
    me: str,
) -> Record | Refusal:
    """There is a new value; under a claim only as long as that holds."""
    if record is None:
        record = Record(space, name, TaskState())
    if claim is not None and (not _is_held(record, claim, me) or record.state.over):
        return Refusal.FENCED
    before: TaskState = record.state
    state = before._replace(
        version=before.version + 1,
        updated_at=now,
        duration=duration,
        by=claim.run_id if claim is not None else "",
        final=final,
        seen_wave=claim.wave if claim is not None else None,
        published=final if claim is not None else before.published,
    )
    return record._replace(state=state, parts={**record.parts, VALUE: 1})


def finalize(record: Record | None, revision: int, *, claim: Claim, me: str) -> Record | Refusal:
    """The last value that the run has published was its final one."""
    if record is None or not _is_held(record, claim, me) or record.state.over:
        return Refusal.FENCED
    final = record.state.final or record.state.by == claim.run_id
    return record._replace(state=record.state._replace(published=True, final=final))


def delete(record: Record | None, revision: int) -> Record | Refusal:
    """There is no value any more."""
    if record is None or VALUE not in record.parts:
        return Refusal.ABSENT
    return _valueless(record)


def restore(record: Record | None, revision: int, *, held: Record, lost: bool) -> Record | Refusal:
    """A store that has lost a value gets what a process has in memory; `lost` where its bytes are."""
    state: TaskState = held.state
    if record is None:
        return held._replace(owner=None, parts={VALUE: 1}, created=0)
    if record.state.version > state.version or (record.state.version == state.version and not lost):
        return Refusal.HANDLED
    if is_newer(record, state.updated_at):
        return Refusal.HELD
    value = {name: getattr(state, name) for name in _VALUE_FIELDS}
    return record._replace(state=record.state._replace(**value), parts={**record.parts, VALUE: 1})


def outrank(record: Record | None, revision: int, *, version: int) -> Record | Refusal:
    """The value that is there was made after the one of this version, by who did not know of that."""
    if record is None or record.state.version > version:
        return Refusal.HANDLED
    return record._replace(state=record.state._replace(version=version + 1))


def is_newer(record: Record, updated_at: datetime | None) -> bool:
    """Whether there is a value that was made later."""
    there = record.state.updated_at
    return VALUE in record.parts and None not in (there, updated_at) and there > updated_at


def is_another(record: Record, state: TaskState) -> bool:
    """Whether there is a value of the same version that was not made at the same time, or by the same run."""
    there: TaskState = record.state
    same = (there.updated_at, there.by) == (state.updated_at, state.by)
    return VALUE in record.parts and there.version == state.version and not same


def reinstate(record: Record | None, revision: int, *, held: Record, whole: bool = True) -> Record | Refusal:
    """
    A store that has lost what it knew of a task, but for its value, gets what a process knows.

    What was handled or claimed since then stays so. Its parts are those of `held`, whose number says who knows most;
    where that is not the `whole` of them others know more.
    """
    known = held.revision if whole else IN_PART
    state: TaskState = held.state._replace(restored=known)
    if record is None:
        return held._replace(state=state._replace(updated_at=None), parts=_without(held, VALUE), created=0)
    there: TaskState = record.state
    if known <= there.restored or held.revision == record.revision:
        return Refusal.HANDLED
    # Of one from before the end may be lost, which this process has known; and it may have known one that has ended.
    if there.run_id:
        claimed = there.claimed > held.revision or there.fence > state.fence
    else:
        claimed = state.run_id != "" and there.fence >= state.fence
    kept = _VALUE_FIELDS + (_CLAIM_FIELDS if claimed else ())
    if claimed and not there.run_id:
        kept += ("outcome", "error")
    state = state._replace(
        **{name: getattr(there, name) for name in kept},
        last_slot=max(filter(None, (there.last_slot, state.last_slot)), default=None),
        last_version=max(there.last_version, state.last_version),
    )
    if not claimed:
        state = state._replace(fence=max(there.fence, state.fence))
    value = {VALUE: 1} if VALUE in record.parts else {}
    owner = record.owner if claimed else held.owner
    return record._replace(owner=owner, state=state, parts=_without(held, VALUE) | value)


def rejoin(
    record: Record | None, revision: int, *, base: Record | None, held: Record, written: Collection[str], me: str
) -> Record | Refusal:
    """
    A process that could not reach the store has had a task for itself, and is back; of its value see `outrank`.

    What was handled by either is handled, and what it has changed of the schedule is changed. Its run goes on, unless
    another process has claimed one meanwhile.

    Parameters
    ----------
    base, held : Record
        As it was when the store was last reached, and as the process has it.
    written : collection of str
        The parts, but for the value, that it has got since.
    """
    if record is None or record.state.first_seen is None:
        return reinstate(record, revision, held=held)
    there, state, before = record.state, held.state, base.state if base is not None else TaskState()
    changed = [name for name in _SCHEDULE_FIELDS if getattr(state, name) != getattr(before, name)]
    there = there._replace(
        **{name: getattr(state, name) for name in changed},
        last_slot=max(filter(None, (there.last_slot, state.last_slot)), default=None),
        last_version=max(there.last_version, state.last_version),
    )
    dropped = (base.parts.keys() if base is not None else set[str]()) - held.parts.keys() - {VALUE}
    parts = {kind: count for kind, count in record.parts.items() if kind not in dropped}
    record = record._replace(parts=parts | {kind: 1 for kind in written if kind in held.parts})
    # One that the store has got again since, and that nobody knew to be this process's, is nobody's.
    others = record.owner not in (None, me) and (record.owner, there.run_id) != (NOBODY, state.run_id)
    if others or held.owner not in (None, me):
        return record._replace(state=there)
    if held.owner == me and state.fence >= there.fence:
        own = {name: getattr(state, name) for name in _CLAIM_FIELDS}
        state = there._replace(**own | {"claimed": revision, "requested": there.requested})
        return record._replace(owner=me, state=state)
    state = there._replace(**_FREE, fence=max(there.fence, state.fence))
    return record._replace(owner=None, state=state)


_SCHEDULE_FIELDS = (
    "server", "scheduled_by", "fingerprint", "superseded", "first_seen", "paused", "removed", "forgotten", "stale",
    "requested", "schedule", "stale_after",
)  # fmt: skip
_VALUE_FIELDS = ("version", "updated_at", "duration", "by", "final", "seen_wave")
_CLAIM_FIELDS = (
    "run_id", "fence", "claimer", "claimed", "attempt", "takeovers", "key", "wave", "started_at", "published", "over",
    "cancelled", "requested", "percent", "message",
)  # fmt: skip


def _valueless(record: Record) -> Record:
    return record._replace(parts=_without(record, VALUE), state=record.state._replace(updated_at=None))


def _without(record: Record, part: str) -> dict[str, int]:
    return {kind: count for kind, count in record.parts.items() if kind != part}


# ------------------------------------------------------------ the schedule


def enroll(
    record: Record | None,
    revision: int,
    *,
    name: str,
    server: str,
    fingerprint: str,
    portable: bool,
    first_seen: datetime,
    again: bool,
    late: bool,
    unreadable: int,
    me: str,
    alive: Alive,
    schedule: str = "",
    stale_after: float | None = None,
) -> Record | Refusal:
    """
    Bring it in line with the schedule in the code.

    Of two versions of the code, as they are there during a rolling update, the one that came in first is the older one:
    its schedule does not come back as long as the process lives that has replaced it.

    Parameters
    ----------
    portable : bool
        Whether there is a part with the schedule.
    again : bool
        The function was defined anew.
    late : bool
        One that was forgotten comes back.
    unreadable : int
        The version of the value that this process cannot read.
    schedule : str
        In words.
    stale_after : float or None
    """
    if record is None:
        fresh = TaskState(
            server=server, scheduled_by=me, fingerprint=fingerprint, first_seen=first_seen, schedule=schedule,
            stale_after=stale_after,
        )  # fmt: skip
        return Record(TASK, name, fresh, parts={TRIGGER: 1}) if portable else Record(TASK, name, fresh)
    parts = {kind: count for kind, count in record.parts.items() if kind != TRIGGER} | (
        {TRIGGER: 1} if portable else {}
    )
    before: TaskState = record.state
    state = before._replace(
        server=server, scheduled_by=me, fingerprint=fingerprint, removed=False, forgotten=False, schedule=schedule,
        stale_after=stale_after,
    )  # fmt: skip
    if before.first_seen is None:
        return record._replace(parts=parts, state=state._replace(first_seen=first_seen))
    ours, unchanged = before.server == server, not before.forgotten and before.fingerprint == fingerprint
    if before.forgotten and ours and not late:
        return Refusal.HANDLED
    if ours and not again and not before.forgotten and before.fingerprint:
        return Refusal.HANDLED
    if not (unchanged or ours or before.forgotten) and fingerprint in before.superseded and alive(before.scheduled_by):
        return Refusal.HANDLED
    if unchanged and not again:
        if not has_newer(record, unreadable):
            # Without a value to serve the slot that was handled last is the new server's first run.
            seen = max(before.first_seen, before.last_slot or before.first_seen)
            state = state._replace(first_seen=seen, last_slot=None, last_version=0)
        return record._replace(state=state)
    # Claim, fence and history stay: a run of the former schedule may be in flight.
    if not unchanged:
        parts.pop(OVERRIDE, None)
        former = [each for each in before.superseded if each != fingerprint]
        superseded = (*former, before.fingerprint)[-_SUPERSEDED:]
        state = state._replace(first_seen=first_seen, last_slot=None, last_version=0, superseded=superseded)
    return record._replace(parts=parts, state=state)


def amend(
    record: Record | None,
    revision: int,
    *,
    paused: bool | None,
    removed: bool | None,
    rescheduled: datetime | None,
) -> Record | Refusal:
    """Change what is not None; the slots of a reschedule count from then."""
    if record is None or record.state.first_seen is None:
        return Refusal.ABSENT
    state: TaskState = record.state
    if paused is not None:
        state = state._replace(paused=paused)
    if removed is not None:
        state = state._replace(removed=removed)
    if rescheduled is None:
        return record._replace(state=state)
    return record._replace(state=state._replace(first_seen=rescheduled), parts={**record.parts, OVERRIDE: 1})


def rewind(record: Record | None, revision: int, *, now: datetime) -> Record | Refusal:
    """The clock has stepped back: slots later than that were not handled."""
    if record is None or record.state.first_seen is None:
        return Refusal.ABSENT
    if max(record.state.first_seen, record.state.last_slot or now) <= now:
        return Refusal.HANDLED
    return record._replace(state=record.state._replace(first_seen=now, last_slot=None))


def mark_stale(record: Record | None, revision: int, *, stale: bool) -> Record | Refusal:
    """The value is found stale, or no longer so."""
    if record is None or record.state.stale == stale:
        return Refusal.HANDLED
    return record._replace(state=record.state._replace(stale=stale))


def forget(record: Record | None, revision: int) -> Refusal | Logged:
    """
    Drop value, schedule and history.

    The record stays: another process of this server, which has yet to hear of it, would take one that is not there for
    that of a task which never ran.
    """
    if record is None:
        return Refusal.ABSENT
    state = record.state._replace(
        **_FREE, updated_at=None, forgotten=True, error="", outcome="", stale=False, paused=False, requested="",
    )  # fmt: skip
    parts = {TRIGGER: 1} if TRIGGER in record.parts else {}
    return Logged(record._replace(owner=None, parts=parts, state=state), None)


# ------------------------------------------------------------ the run


def claim(
    record: Record | None,
    revision: int,
    *,
    me: str,
    server: str,
    task: str,
    run_id: str,
    now: datetime,
    key: datetime | str | None,
    mark: Mark | None,
    wave: datetime | None,
    first: bool,
    unreadable: int,
) -> Record | Refusal:
    """
    The task is the run's, unless another one has it or its `mark` was handled before.

    Parameters
    ----------
    mark : datetime or int or str or None
        None of a run that this process asks for itself.
    first : bool
        A value that is there by now refuses it, too; but not the one that is `unreadable` here.
    """
    record = record or Record(TASK, task, TaskState())
    before: TaskState = record.state
    if before.run_id == run_id and record.owner == me:  # it has the claim, and was not told so
        return record
    if before.forgotten and before.server == server:
        return Refusal.HANDLED
    if before.first_seen is None or before.forgotten:  # nobody has enrolled it
        before = before._replace(
            server=server,
            fingerprint="",
            forgotten=False,
            removed=False,
            first_seen=now,
            last_slot=None,
            last_version=0,
        )
        record = record._replace(parts={kind: count for kind, count in record.parts.items() if kind != TRIGGER})
    if _is_handled(before, mark):
        return Refusal.HANDLED
    if before.run_id:
        return Refusal.HELD
    if first and has_newer(record, unreadable):
        return Refusal.HANDLED
    state = before._replace(
        run_id=run_id,
        fence=before.fence + 1,
        claimer=me,
        claimed=revision,
        attempt=1,
        takeovers=TAKEOVERS if before.outcome == RunState.CRASHED else 0,
        key=key,
        wave=wave,
        started_at=now,
        published=False,
        over=False,
        cancelled="",
        percent=-1,
        message="",
        # Any run will do that begins after the request.
        **{"requested": "", **_handled(mark)},
    )
    return record._replace(owner=me, state=state)


def advance(record: Record | None, revision: int, *, claim: Claim, version: int) -> Record | Refusal:
    """The run is going to see these versions of its upstream, too."""
    if record is None or not _is_of(record, claim):
        return Refusal.FENCED
    last = max(record.state.last_version, version)
    return record._replace(state=record.state._replace(last_version=last))


def progress(record: Record | None, revision: int, *, claim: Claim, percent: int, message: str) -> Record | Refusal:
    """It has come so far."""
    if record is None or not _is_of(record, claim):
        return Refusal.FENCED
    return record._replace(state=record.state._replace(percent=percent, message=message))


def release(record: Record | None, revision: int, *, claim: Claim) -> Record | Refusal:
    """Give the claim back."""
    if record is None or not _is_of(record, claim):
        return Refusal.FENCED
    return _free(record)


def abandon(record: Record | None, revision: int) -> Record | Refusal | None:
    """
    Whoever holds it is none of those who know the record: it stayed with the parent of a fork.

    One that was forgotten is gone: there is no late comer to be told of that.
    """
    if record is not None and record.state.forgotten:
        return None
    if record is None or not record.state.run_id:
        return Refusal.ABSENT
    state: TaskState = record.state
    outcome = state.outcome if state.outcome == RunState.CRASHED else str(RunState.CANCELLED)
    return _free(record._replace(state=state._replace(outcome=outcome)))


def hand_over(record: Record | None, revision: int, *, claim: Claim) -> Record | Refusal:
    """Let another process finish the run, at no attempt's cost."""
    if record is None or not _is_of(record, claim):
        return Refusal.FENCED
    state: TaskState = record.state
    state = state._replace(attempt=state.attempt - 1, takeovers=state.takeovers - 1, over=False)
    return record._replace(owner=NOBODY, state=state)


def take_over(
    record: Record | None, revision: int, *, me: str, alive: Alive, now: datetime, left: tuple[str, int] | None = None
) -> Record | Refusal | Logged:
    """
    The run of a process that is gone is this one's; or it has ended, with a line in the history.

    Parameters
    ----------
    left : tuple of str and int, optional
        That run, and its attempt there: if this process has the next one, it was taken over, and nobody was told so.
    """
    if record is None or not record.state.run_id:
        return Refusal.HELD
    state: TaskState = record.state
    if record.owner == me and left == (state.run_id, state.attempt - 1):
        return record
    if alive(record.owner or NOBODY):
        return Refusal.HELD
    if state.over:  # it had ended before its process did; only its body was still there
        return _free(record)
    if state.published:
        return _close(record, RunState.SUCCEEDED, "", now)
    if state.takeovers >= TAKEOVERS:
        return _close(record, RunState.CRASHED, _CRASHED, now)
    state = state._replace(
        fence=state.fence + 1, claimer=me, claimed=revision, attempt=state.attempt + 1, takeovers=state.takeovers + 1,
        cancelled="", started_at=now,
    )  # fmt: skip
    return record._replace(owner=me, state=state)


def request(record: Record | None, revision: int, *, id: str) -> Record | Refusal:
    """Ask for a run, of whichever process has the task; one that is under way or was asked for before will do."""
    if record is None or record.state.first_seen is None or record.state.forgotten or record.state.removed:
        return Refusal.ABSENT
    if record.state.requested or (record.state.run_id and not record.state.over):
        return Refusal.HELD
    return record._replace(state=record.state._replace(requested=id))


def cancel(record: Record | None, revision: int, *, run_id: str) -> Record | Refusal:
    """Ask the process of a run to cancel it."""
    if record is None or record.state.run_id != run_id:
        return Refusal.ABSENT
    return record._replace(state=record.state._replace(cancelled=run_id))


def note(
    record: Record | None,
    revision: int,
    *,
    task: str,
    run: RunRecord,
    mark: Mark | None,
    claim: Claim | None,
    release: bool,
) -> Refusal | Logged:
    """
    A line for the history.

    Parameters
    ----------
    mark : datetime or int or str or None
        There is one only if this was not handled before, which it is then.
    claim : Claim or None
        The run's. Of one that was lost to another process that one says how it ended.
    release : bool
        The claim is given back.
    """
    if record is None and mark is not None:
        return Refusal.ABSENT
    record = record or Record(TASK, task, TaskState())
    state: TaskState = record.state
    if mark is not None and (state.forgotten or _is_handled(state, mark)):
        return Refusal.HANDLED
    if claim is not None and not _is_of(record, claim) and state.fence >= claim.fence:  # else the store has lost it
        return Refusal.FENCED
    return _logged(record, run, mark, free=release and claim is not None and _is_of(record, claim))


def succeed(
    record: Record | None,
    revision: int,
    *,
    publish: Callable[[Record | None, int], Any],
    claim: Claim,
    run: RunRecord,
    version: int = 0,
) -> Refusal | Logged:
    """
    What `publish` or `finalize` does, with a line for the history, and the claim is given back: all in one step.

    Parameters
    ----------
    version : int
        The sum of the upstream's versions that it has seen, which may have grown since its claim.
    """
    published: Record | Refusal = publish(record, revision)
    if isinstance(published, Refusal):
        return published
    state: TaskState = published.state
    if version > state.last_version:
        published = published._replace(state=state._replace(last_version=version))
    return note(published, revision, task=claim.task, run=run, mark=None, claim=claim, release=True)


def extended(newest: RunRecord | None, record: RunRecord) -> RunRecord | None:
    """One record for both, when `record` continues the skipped stretch `newest`; else None."""
    if newest is None or record.until is None or newest.until is None:
        return None
    if (newest.state, newest.reason) != (record.state, record.reason):
        return None
    return replace(newest, until=record.until, finished_at=record.finished_at)


def has_newer(record: Record, version: int) -> bool:
    """Whether there is a value, and a newer one than this."""
    return VALUE in record.parts and record.state.version > version


def _is_of(record: Record, claim: Claim) -> bool:
    return (record.state.run_id, record.state.fence) == (claim.run_id, claim.fence)


def _is_held(record: Record, claim: Claim, me: str) -> bool:
    return _is_of(record, claim) and record.owner == me


def _is_handled(state: TaskState, mark: Mark | None) -> bool:
    if isinstance(mark, datetime):
        return state.last_slot is not None and state.last_slot >= mark
    if isinstance(mark, str):
        return state.requested != mark
    return mark is not None and state.last_version >= mark


def _handled(mark: Mark | None) -> dict[str, Any]:
    if mark is None:
        return {}
    if isinstance(mark, str):
        return {"requested": ""}
    return {"last_slot" if isinstance(mark, datetime) else "last_version": mark}


# What the state of a task says that no run holds.
_FREE: dict[str, Any] = {"run_id": "", "published": False, "over": False, "cancelled": ""}


def _free(record: Record) -> Record:
    return record._replace(owner=None, state=record.state._replace(**_FREE))


def _close(record: Record, outcome: RunState, error: str, now: datetime) -> Logged:
    """End the run of a process that cannot do so any more."""
    state: TaskState = record.state
    run = RunRecord(
        state.run_id, state.key, outcome, state.attempt, None, state.started_at, now, error, owner=state.claimer
    )
    return _logged(record, run, free=True)


def _logged(record: Record, run: RunRecord, mark: Mark | None = None, free: bool = False) -> Logged:
    """With a line for the history; its slot handled, its claim given back."""
    state: TaskState = record.state
    changes = _handled(mark)
    if run.state is not RunState.SKIPPED:
        changes |= {"over": state.over or state.run_id == run.id, "outcome": str(run.state)}
        if run.state in _OUTCOMES:
            changes["error"] = run.error
    if free:
        changes |= _FREE
    record = record._replace(state=state._replace(**changes), owner=None if free else record.owner)
    return logged(record, run, extended if run.until is not None else None)
