"""What a store is: records that are compared and set, bytes that belong to them, and word of who changed what."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple, Protocol

from ..coordination import history
from ..coordination.record import EPOCH, Logged, Record, Refusal, storable
from ..coordination.tasks import TASK
from ..errors import ScheduleError
from ..functions.run import RunRecord
from ..serialize.codec import Encoded, decode

log = logging.getLogger("panel_schedule")

# Every group, or every owner, where one could be named.
ALL: Any = type("All", (), {"__repr__": lambda self: "ALL"})()

# Of records: those that are held, or are to be taken.
HELD: Any = type("Held", (), {"__repr__": lambda self: "HELD"})()


class Tell(IntEnum):
    """When other processes hear of a change: those that wait for it at once, else with what comes a moment later."""

    LATER = 0  # when they look the next time
    SOON = 1
    NOW = 2


Apply = Callable[[Record | None, int], Record | Logged | Refusal | None]

# How old the lines of a log become, and those of a log of failures.
LogAge = tuple[timedelta, timedelta]

# The spaces whose records have logs.
LOGGED = (TASK, history.SPACE)

# Seconds between one look for lines that have become older and the next.
HOUR = 3600.0


NO_PARTS: Mapping[tuple[str, int], Any] = {}


class Change(NamedTuple):
    """
    One change of one record.

    Attributes
    ----------
    space, name : str
    apply : callable
        ``apply(record, revision)``, a pure function of the record as it is, None where there is none, and of the number
        that the change will have. It gives the new record, with a line for its log where there is one to add, None to
        delete it, or a Refusal. It may be called several times. Of the number it only knows that it is greater than
        all before: a store that learns it later puts it into the state where this one stands.
    parts : mapping of (str, int) to object
        By kind and number: the values that the new record has from then on, if it names them. One that is `Encoded` is
        read as the value that was encoded, and stays the caller's to close.
    what : str
        How errors name it.
    """

    space: str
    name: str
    apply: Apply
    parts: Mapping[tuple[str, int], Any] = NO_PARTS
    what: str = ""


class Result(NamedTuple):
    """
    What came of a change.

    Attributes
    ----------
    record : Record or None
        As it is from now on; None where it was deleted, or refused.
    refusal : Refusal or None
    parts : mapping of (str, int) to object
        The values of the change as every process reads them.
    logged : RunRecord or None
        The line that was added to the log; None where there is none, or another one became longer.
    before : int
        The revision of the record that was changed; 0 of a new one, or where the store does not say.
    """

    record: Record | None
    refusal: Refusal | None = None
    parts: Mapping[tuple[str, int], Any] = NO_PARTS
    logged: RunRecord | None = None
    before: int = 0


class Request(NamedTuple):
    """
    A change, and what is made of its result.

    Attributes
    ----------
    change : Change
    answer : callable
        ``answer(result)``: what comes of it; it may raise.
    tell : Tell
    """

    change: Change
    answer: Callable[[Result], Any]
    tell: Tell = Tell.SOON


Changed = Callable[[Record], object]
Lost = Callable[[int], object]


class Source(Protocol):
    """What private copies of a part are made from, until it is closed."""

    def load(self) -> Any: ...
    def close(self) -> None: ...


class RecordStore(Protocol):
    """
    Callable from any thread; all that several processes share goes through this.

    Raises
    ------
    StoreError
        From every method, when it cannot be done now. It may be tried again.

    Attributes
    ----------
    me : str
        The owner that this process is.
    blocking : bool
        Whether a call may have to wait for a disk or a network: then it stays off the event loop and out of locks.
        Where not, no other process shares the store, and parts are kept as they are, and not as bytes.
    log_age : (timedelta, timedelta) or None
        How old the lines of a log become, and those of a log of failures, before `sweep` deletes them: whoever opens
        the store says so. None: as old as may be.
    """

    blocking: bool
    log_age: LogAge | None

    @property
    def me(self) -> str: ...

    def read(self, space: str, name: str) -> Record | None: ...

    def scan(self, space: str, group: str = ALL, *, owner: str | None = ALL, last: int | None = None) -> list[Record]:
        """
        All of a space, of a group, or of an owner, in the order in which they were made.

        Parameters
        ----------
        space, group : str
        owner : str or None
            None of those that nobody holds; HELD of all others.
        last : int, optional
            Only so many, those that were made last.
        """
        ...

    def write(
        self, changes: Sequence[Change], *, durable: bool | None = None, together: bool = False, tell: Tell = Tell.SOON
    ) -> list[Result]:
        """
        Make changes in one atomic step.

        Parameters
        ----------
        changes : sequence of Change
            Made one after the other: each finds its record as those before have left it.
        durable : bool, optional
            Where the store outlives its processes: True has all of it on the disk before this returns, False leaves
            that to the system. By default it is there if a part is large, and else may be lost with the power.
        together : bool
            When one is refused none is made.
        tell : Tell

        Returns
        -------
        list of Result
            In the order of the changes.

        Raises
        ------
        ValueRefused
            When a part cannot be stored, or not be read again; nothing is changed then.
        """
        ...

    def load(self, record: Record, kind: str, number: int = 0, what: str = "") -> Any:
        """
        A part of the record as it was when it was read.

        Raises
        ------
        KeyError
            When it has another one by now, or none.
        ValueUnreadable
        """
        ...

    def source(self, record: Record, kind: str, number: int = 0, what: str = "") -> Source:
        """The same to load it as often as one likes. It is closed when it is not needed any more."""
        ...

    def log(self, space: str, name: str, last: int | None = None) -> list[RunRecord]:
        """
        The last lines of the log of a record, newest first; and those of its log of failures, see `whole`.

        Each has as many as the store keeps. A line that is older than its `log_age` says goes in `sweep`.

        Parameters
        ----------
        space, name : str
        last : int, optional
            Only so many lines, those added last, and nothing of the log of failures: what is long of a failure is not
            read then.
        """
        ...

    def alive(self, owner: str) -> bool:
        """Whether the process of an owner lives; NOBODY does not."""
        ...

    def use(self, space: str, names: Collection[str], now: datetime) -> None:
        """These were used now. Nobody is told."""
        ...

    def trim(
        self,
        space: str,
        group: str = ALL,
        *,
        entries: int | None = None,
        size: int | None = None,
        keep: str = "",
        larger: bool = False,
    ) -> None:
        """
        Of the records that have parts and that nobody holds, delete those used longest ago.

        Parameters
        ----------
        space, group : str
        entries, size : int, optional
            So many, with so many bytes, stay.
        keep : str
            The name of one that stays in any case.
        larger : bool
            Whether those count, too, each of which is larger than all the room.
        """
        ...

    def watch(self, space: str, name: str, sessions: int) -> None:
        """So many sessions of this process follow the record."""
        ...

    def watchers(self, space: str, name: str) -> int:
        """How many of other processes do."""
        ...

    def subscribe(self, space: str, changed: Changed, lost: Lost = lambda since: None) -> None:
        """
        Call ``changed(record)`` after each change of a record of the space, also by this process; on whatever thread.

        And when the process of its owner is gone. Changes that follow each other fast may be told as one. What raises
        a StoreError is told again by a store that can have such errors; any other error is logged. Neither costs other
        subscribers, or other changes, anything.

        ``lost(since)`` when the store came back without something that it had, changed after that number: who has that
        stores it again. Where that is another machine it is called again until it raises no StoreError.
        """
        ...

    def listen(self) -> None:
        """From now on hear of other processes without being asked. Idempotent."""
        ...

    def sweep(self, now: datetime) -> None:
        """Delete what has expired by `now`, and is not held; once an hour at most, lines of logs that are too old."""
        ...

    def close(self) -> None:
        """This process is done with the store. Idempotent."""
        ...


# ------------------------------------------------------------ what stores are made of


def selected(records: Iterable[Record], group: str, owner: str | None, last: int | None) -> list[Record]:
    """Those that `RecordStore.scan` finds, of the records of a space in their order."""
    found = [each for each in records if group in (ALL, each.group) and _is_owned(each, owner)]
    return found if last is None else found[max(0, len(found) - last) :]


def _is_owned(record: Record, owner: str | None) -> bool:
    return owner is ALL or (record.owner is not None if owner is HELD else record.owner == owner)


def surplus(
    records: Iterable[Record],
    *,
    entries: int | None = None,
    size: int | None = None,
    keep: str = "",
    larger: bool = False,
) -> Iterator[Record]:
    """Those that `RecordStore.trim` deletes, of the records of a space or group."""
    most, room = (sys.maxsize if limit is None else limit for limit in (entries, size))
    there = [each for each in records if each.owner is None and each.size and (larger or each.size <= room)]
    count, total = len(there), sum(record.size for record in there)
    for record in sorted(there, key=_used):
        if count <= most and total <= room:
            break
        if record.name != keep:
            count, total = count - 1, total - record.size
            yield record


def _used(record: Record) -> tuple[datetime, int]:
    return record.used_at or EPOCH, record.created


def has_expired(record: Record, now: datetime) -> bool:
    """Whether `RecordStore.sweep` deletes it."""
    return record.owner is None and record.expires_at is not None and record.expires_at <= now


def numbered(new: Record, old: Record | None, size: int, revision: int) -> Record:
    """A record as it is stored in place of the old one: what the store says of it."""
    return Record._make((*new[:-3], size, old.created if old is not None else revision, revision))


def logged_in(
    logs: dict[tuple[str, ...], list[RunRecord]], new: Record | Logged | None, limit: int = 100
) -> tuple[Record | None, RunRecord | None]:
    """
    Take its line into the log of a record, newest first; the record, and the line where there is a new one.

    What `log_in` gives is read from there.
    """
    if not isinstance(new, Logged):
        return new, None
    record, entry, merged, failure = new
    log = logs.setdefault((record.space, record.name), [])
    failures = logs.setdefault((record.space, record.name, "failures"), [])
    if failure is not None:
        failures.insert(0, failure)
        del failures[limit:]
    if entry is None:
        log.clear()
        failures.clear()
    elif merged is not None and (longer := merged(log[0] if log else None, entry)) is not None:
        log[0] = longer
    else:
        log.insert(0, entry)
        del log[limit:]
        return record, entry
    return record, None


def log_in(
    logs: Mapping[tuple[str, ...], Sequence[RunRecord]], space: str, name: str, last: int | None = None
) -> list[RunRecord]:
    """The log of a record, as `RecordStore.log` gives it, of those that `logged_in` keeps."""
    lines = logs.get((space, name), ())
    return list(lines[:last]) if last is not None else whole(lines, logs.get((space, name, "failures"), ()))


def whole(lines: Sequence[RunRecord], failures: Sequence[RunRecord]) -> list[RunRecord]:
    """
    Both logs of a record as one.

    A failure that is still in the first one is there in brief; what is only in the second one is older than all of the
    first.
    """
    if not failures:
        return list(lines)
    left = {(each.id, each.finished_at): each for each in failures}
    return [left.pop((line.id, line.finished_at), line) for line in lines] + list(left.values())


_TEXTS = ("error", "reason", "owner", "user", "arguments", "traceback", "logs")


def as_stored(run: RunRecord) -> RunRecord:
    """With texts that any store can keep."""
    odd: dict[str, Any] = {name: storable(text) for name in _TEXTS if not (text := getattr(run, name)).isascii()}
    return replace(run, **odd) if odd else run


def noted(kind: str, function: str, run: RunRecord) -> Change:
    """A run of a function that is called on request becomes part of its history."""
    run, name = as_stored(run), history.name_of(kind, function)
    return Change(history.SPACE, name, partial(history.note, kind=kind, function=function, run=run))


class Reference(NamedTuple):
    """The `Source` of a part that is kept as it is: the very object."""

    value: Any

    def load(self) -> Any:
        return self.value

    def close(self) -> None:
        pass


def as_read(part: Any) -> Any:
    """The value of a part, be it `Encoded`."""
    return decode(bytearray(part.tobytes())) if isinstance(part, Encoded) else part


def tell_all(subscribers: Iterable[Changed], record: Record) -> Exception | None:
    """Tell each one, whatever the others raise; what one of them could not take in now, and is to be told again."""
    failed: Exception | None = None
    for changed in subscribers:
        try:
            changed(record)
        except (ScheduleError, OSError) as error:
            failed = error
        except Exception:
            log.exception("Hearing of a change failed at something that is a bug of panel-schedule; it goes on.")
    return failed
