"""What may happen to an alert: what it has heard of functions, when there is something to say, and who says it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from .record import EPOCH, Record, Refusal, instant_of, micros, state_of, storable
from .tasks import TASK

SPACE = "alert"

# So long, after the first of them, what else goes wrong becomes part of the same message.
COLLECT = timedelta(seconds=5)

# The pauses before a message is tried again; after the last try it is given up.
PAUSES = tuple(timedelta(seconds=seconds) for seconds in (5, 20, 80, 320))

# What was heard so long ago last is forgotten.
KEPT = timedelta(days=30)


class Terms(NamedTuple):
    """
    What an alert says, and how often.

    Attributes
    ----------
    on : frozenset of str
        Of ``"failed"``, ``"stale"``, ``"recovered"``; or ``"alive"`` alone.
    after : int
        So many failures in a row.
    every : timedelta
        The pause between two messages about one task; of ``"alive"`` between two pings.
    """

    on: frozenset[str]
    after: int
    every: timedelta


# Between the kind and the name of a function that is no task.
_BETWEEN = "\x1f"


def key_of(kind: str, name: str) -> str:
    """By which an alert knows a function: a task by its name, another one by its kind as well."""
    return name if kind == TASK else f"{kind}{_BETWEEN}{name}"


def function_of(key: str) -> tuple[str, str]:
    """Kind and name of the function that an alert knows so."""
    kind, between, name = key.partition(_BETWEEN)
    return (kind, name) if between else (TASK, key)


class Condition(NamedTuple):
    """
    How a task is, as this process sees it; by default well, as what is called on request always is between its runs.

    Attributes
    ----------
    updated_at : datetime or None
        Of the value that is served.
    missed : int
        Slots that came since the last value.
    overdue : bool
        The value is older than its ``stale_after``.
    stale : bool
    """

    updated_at: datetime | None = None
    missed: int = 0
    overdue: bool = False
    stale: bool = False


class Event(NamedTuple):
    """
    Something that has happened to a task, or a function that is called on request.

    Attributes
    ----------
    what : {"failed", "stale", "succeeded"}
    task : str
        See `key_of`; so wherever an alert has tasks by name.
    at : datetime
    run, error : str
        Id of the run, and the first line of what it has raised.
    updated_at : datetime or None
        Of the value that is still served.
    """

    what: str
    task: str
    at: datetime
    run: str = ""
    error: str = ""
    updated_at: datetime | None = None


class Trouble(NamedTuple):
    """
    What an alert knows of a task that is not well, or was not. Instants are microseconds since 1970.

    Attributes
    ----------
    failures : int
        In a row.
    late : bool
        It has got stale, and not just because a run has failed.
    since, well_at : int
        When it began and, once it is well, ended.
    error, run : str
        Of the last failure.
    updated_at : int or None
    pending : int or None
        Since when there is something to say.
    told : bool
        It was said, and that it is well again was not.
    told_at : int or None
        When it was said last.
    """

    failures: int = 0
    late: bool = False
    since: int = 0
    well_at: int = 0
    error: str = ""
    run: str = ""
    updated_at: int | None = None
    pending: int | None = None
    told: bool = False
    told_at: int | None = None

    @property
    def well(self) -> bool:
        return not (self.failures or self.late)


@state_of(SPACE)
class AlertState(NamedTuple):
    """
    What all processes know of an alert. Who sends a message owns the record meanwhile.

    Attributes
    ----------
    troubles : mapping of str to sequence
        By task, the fields of a `Trouble`.
    attempts : int
        How often the message that is due was tried.
    again_at : datetime or None
        When it is tried again.
    pinged_at : datetime or None
    """

    troubles: Mapping[str, Any] = {}
    attempts: int = 0
    again_at: datetime | None = None
    pinged_at: datetime | None = None


class Notice(NamedTuple):
    """
    What is to be said.

    Attributes
    ----------
    troubled, recovered : dict of str to Trouble
        By task. Both are empty of a ping.
    """

    troubled: dict[str, Trouble]
    recovered: dict[str, Trouble]


def troubles_of(state: AlertState) -> dict[str, Trouble]:
    """By task."""
    return {task: Trouble(*fields) for task, fields in state.troubles.items()}


# ------------------------------------------------------------ hearing


def hear(
    record: Record | None, revision: int, *, name: str, events: Iterable[Event], terms: Terms, now: datetime
) -> Record | Refusal:
    """These have happened, in this order. One that was heard before changes nothing."""
    record = record or Record(SPACE, name, AlertState())
    troubles = before = troubles_of(record.state)
    for event in events:
        if event.what != "succeeded" or event.task in troubles:
            troubles = troubles | {event.task: _heard(troubles.get(event.task, Trouble()), event, terms)}
    # What is being said this moment stays, so that its end is said, too.
    troubles = troubles if record.owner is not None else _worth_it(troubles, terms, now)
    if troubles == before:
        return Refusal.HANDLED
    state: AlertState = record.state._replace(troubles=troubles)
    if not any(trouble.told or trouble.pending is not None for trouble in troubles.values()):
        state = state._replace(attempts=0, again_at=None)  # what was tried in vain need not be said any more
    return record._replace(state=state, expires_at=now + KEPT)


def _heard(trouble: Trouble, event: Event, terms: Terms) -> Trouble:
    at = micros(event.at)
    assert at is not None
    if event.what == "succeeded":
        if trouble.well:
            return trouble
        told = trouble.told and "recovered" in terms.on
        return trouble._replace(failures=0, late=False, well_at=at, pending=None, told=told)
    if event.what == "failed" and event.run == trouble.run:
        return trouble
    if trouble.well:
        trouble = trouble._replace(since=at, error="")
    trouble = trouble._replace(updated_at=micros(event.updated_at))
    if event.what == "stale":
        trouble = trouble._replace(late=True)
        speaks = "stale" in terms.on
    else:
        error = storable(event.error)
        trouble = trouble._replace(failures=trouble.failures + 1, error=error, run=event.run)
        speaks = "failed" in terms.on and trouble.failures >= terms.after
    return trouble._replace(pending=at) if speaks and trouble.pending is None else trouble


def _worth_it(troubles: dict[str, Trouble], terms: Terms, now: datetime) -> dict[str, Trouble]:
    """Without those of which nothing will be said."""
    return {
        task: trouble
        for task, trouble in troubles.items()
        if not trouble.well or trouble.told or (trouble.told_at is not None and _free_at(trouble, terms) > now)
    }


def _free_at(trouble: Trouble, terms: Terms) -> datetime:
    """From when on something may be said of it again."""
    told_at = instant_of(trouble.told_at)
    return EPOCH if told_at is None else told_at + terms.every


# ------------------------------------------------------------ saying


def due(state: AlertState, terms: Terms, known: Collection[str]) -> datetime | None:
    """
    When there is something to say; None where there is nothing.

    Parameters
    ----------
    known : collection of str
        The tasks that there are: nobody waits until one is well that is gone.
    """
    if "alive" in terms.on:
        at = EPOCH if state.pinged_at is None else state.pinged_at + terms.every
        return max(at, state.again_at or at)
    times = []
    troubles = troubles_of(state)
    for trouble in troubles.values():
        if (pending := instant_of(trouble.pending)) is not None:
            times.append(max(pending + COLLECT, _free_at(trouble, terms)))
    if recovered := _recovered(troubles, known):
        ended = [instant_of(trouble.well_at) or EPOCH for trouble in recovered.values()]
        times.append(max(ended) + COLLECT)
    return max(min(times), state.again_at or EPOCH) if times else None


def _recovered(troubles: dict[str, Trouble], known: Collection[str]) -> dict[str, Trouble]:
    """All that was said is well again; empty as long as something is not."""
    told = {task: trouble for task, trouble in troubles.items() if trouble.told and task in known}
    return told if all(trouble.well for trouble in told.values()) else {}


def notice_of(state: AlertState, terms: Terms, known: Collection[str], now: datetime) -> Notice:
    """What is to be said at that time."""
    troubles = troubles_of(state)
    troubled = {
        task: trouble
        for task, trouble in troubles.items()
        if trouble.pending is not None and _free_at(trouble, terms) <= now
    }
    return Notice(troubled, {} if troubled else _recovered(troubles, known))


def take(
    record: Record | None,
    revision: int,
    *,
    name: str,
    me: str,
    alive: Callable[[str], bool],
    terms: Terms,
    known: Collection[str],
    now: datetime,
) -> Record | Refusal:
    """It is this process that says what is due, unless another one is at it."""
    if record is None and "alive" in terms.on:
        record = Record(SPACE, name, AlertState())
    if record is None:
        return Refusal.ABSENT
    if record.owner not in (None, me) and alive(record.owner or ""):
        return Refusal.HELD
    at = due(record.state, terms, known)
    if at is None or at > now:
        return Refusal.HANDLED if record.owner is None else record._replace(owner=None)
    return record._replace(owner=me, state=record.state._replace(attempts=record.state.attempts + 1))


def sent(
    record: Record | None, revision: int, *, me: str, notice: Notice, terms: Terms, now: datetime
) -> Record | Refusal:
    """It was said."""
    if record is None or record.owner != me:
        return Refusal.FENCED
    troubles, at = troubles_of(record.state), micros(now)
    for task, said in notice.troubled.items():
        if (trouble := troubles.get(task)) is not None:
            # What came meanwhile is said after the pause.
            pending = at if trouble.failures > said.failures else None
            troubles[task] = trouble._replace(told="recovered" in terms.on, told_at=at, pending=pending)
    for task in notice.recovered:
        if (trouble := troubles.get(task)) is not None:
            troubles[task] = trouble._replace(told=not trouble.well)
    return _put_down(record, troubles, terms, now, pinged_at=now if "alive" in terms.on else None)


def failed(
    record: Record | None, revision: int, *, me: str, notice: Notice, terms: Terms, now: datetime
) -> Record | Refusal:
    """It could not be said: it is tried again, and given up in the end."""
    if record is None or record.owner != me:
        return Refusal.FENCED
    state: AlertState = record.state
    if state.attempts <= len(PAUSES):
        again_at = now + PAUSES[state.attempts - 1]
        return record._replace(owner=None, state=state._replace(again_at=again_at), expires_at=now + KEPT)
    troubles = troubles_of(state)
    for task in notice.troubled:
        if (trouble := troubles.get(task)) is not None:
            troubles[task] = trouble._replace(told_at=micros(now))
    for task in notice.recovered:
        if (trouble := troubles.get(task)) is not None:
            troubles[task] = trouble._replace(told=False)
    return _put_down(record, troubles, terms, now, pinged_at=now if "alive" in terms.on else None)


def _put_down(
    record: Record, troubles: dict[str, Trouble], terms: Terms, now: datetime, pinged_at: datetime | None
) -> Record:
    state = AlertState(_worth_it(troubles, terms, now), pinged_at=pinged_at)
    return record._replace(owner=None, state=state, expires_at=now + KEPT)


def restore(record: Record | None, revision: int, *, held: Record) -> Record | Refusal:
    """A store that has lost it gets what a process knows."""
    return Refusal.HANDLED if record is not None else held._replace(owner=None, created=0)
