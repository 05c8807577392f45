"""The background jobs in a store that several processes share: who has each, how far it is, what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from ..clock import Clock
from ..coordination import jobs
from ..coordination.history import JOB
from ..coordination.jobs import (
    ANYBODY,
    ARGUMENTS,
    ERROR,
    KEPT,
    PARTIAL,
    SHARED,
    SPACE,
    VALUE,
    JobState,
    shared_name,
)
from ..coordination.record import Record, Refusal, storable
from ..errors import RunCancelled, RunCrashed, RunFenced, ValueUnreadable
from ..functions.run import Run, RunRecord, RunState, on_a_loop
from ..functions.spans import NOWHERE, Carrier
from ..serialize.checks import require_data
from ..serialize.codec import Encoded
from ..serialize.errors import first_line, packed, unpacked
from .records import HELD, Apply, Change, Lost, RecordStore, noted

log = logging.getLogger("panel_schedule")

# So many that have ended are kept, of all functions; and the bytes of what they gave, by default. How often in seconds
# it is looked whether there are more.
MOST, MOST_BYTES, LOOK = 10_000, 256 * 1024**2, 10.0

# So many that have ended are listed of a function, or of one user's.
LISTED = 50


@dataclass(frozen=True, slots=True)
class JobRow:
    """
    What the store knows of one run of a background function.

    Attributes
    ----------
    id : str
        Of the run.
    function : str
        Name of the background function.
    key, durable, user, state, attempt, fence, percent, message, reason, error, cancelled, due_at
        See `JobState`.
    queued_at, started_at, finished_at : datetime or None
    orphan : bool
        Unfinished, and its process is gone or has released it.
    mine : bool
        Held by this process.
    partials : int
        How many there are.
    expires_at : datetime or None
        Until then it can be seen; None as long as it is unfinished, or for ever.
    record : Record
    """

    id: str
    function: str
    key: str
    durable: bool
    user: str | None
    state: RunState
    attempt: int
    fence: int
    percent: int
    message: str
    reason: str
    error: str
    cancelled: bool
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    asked: Carrier
    due_at: datetime | None
    orphan: bool
    mine: bool
    partials: int
    expires_at: datetime | None
    record: Record

    @property
    def task(self) -> str:
        """Name of the background function, as a `Run` has it."""
        return self.function


class Queue:
    """
    Callable from any thread. A job whose process died before its end is an orphan if it is durable, else it crashed.

    Parameters
    ----------
    store : RecordStore
    clock : Clock
    most_bytes : int
        Of what is kept of jobs that have ended.

    Raises
    ------
    StoreError
        From every method, when it cannot be done now. It may be tried again.
    RunFenced
        From those that are given a `fence`, when the job is another process's by now, or has ended.
    """

    def __init__(self, store: RecordStore, clock: Clock, most_bytes: int = MOST_BYTES):
        self._store = store
        self._clock = clock
        self._most_bytes = most_bytes
        # When it is looked again whether too many are kept.
        self._counts_at = 0.0
        store.subscribe(SPACE, self._bury)

    # ------------------------------------------------------------ entering

    def enqueue(
        self,
        id: str,
        function: str,
        *,
        now: datetime,
        payload: Encoded | None,
        key: str = "",
        durable: bool = False,
        synced: bool,
        user: str | None = None,
        started_at: datetime | None = None,
        asked: Carrier = NOWHERE,
        due_at: datetime | None = None,
    ) -> JobRow | None:
        """
        Keep a new run, held by this process; its fence is 1.

        With `key`, unless an equal one (same function and key) is under way, or has succeeded and not expired:
        that one is returned, and nothing kept. One atomic step: of two processes at the same instant one wins.

        Parameters
        ----------
        id, function : str
        now : datetime
        payload : Encoded or None
            What another process needs to run it. It stays the caller's to close.
        key : str
        durable : bool
            Other processes may take it when this one is gone.
        synced : bool
            On the disk before this returns, where the store outlives its server.
        user : str or None
            Whose session has started it.
        started_at : datetime or None
            Of one that is running already.
        asked : Carrier
            In which span.
        due_at : datetime or None
            It does not begin before.
        """
        enter = self._entry(id, function, key, durable, payload, user, now, started_at, asked, due_at)
        changes, name = [enter], shared_name(function, key)
        while True:
            gone = ""
            if key and (shared := self._store.read(SHARED, name)) is not None:
                known = self._find(shared.state.run, now)
                if known is not None and not known.orphan and not known.cancelled and _is_good(known):
                    return known
                gone = shared.state.run
            if key:
                share = partial(jobs.share, function=function, key=key, run=id, gone=gone, now=now)
                changes[1:] = [Change(SHARED, name, share)]
            results = self._store.write(changes, durable=True if durable or synced else None, together=True)
            if not any(result.refusal for result in results):
                return None
            if results[0].refusal is Refusal.HANDLED:
                raise RuntimeError(f"A run with the id {id} was submitted before.")

    def enqueue_all(self, runs: Sequence[Run], began: Sequence[datetime | None]) -> None:
        """Keep new runs in one step, held by this process; those that have begun since when."""
        self._store.write(
            [
                self._entry(run.id, run.task, "", False, None, run.user, run.queued_at, at, due_at=run.due_at)
                for run, at in zip(runs, began, strict=True)
            ]
        )

    def put_back(self, run: Run, fence: int, *, key: str, durable: bool, payload: Encoded | None) -> None:
        """Keep a run that this process has, where the store has lost it; with its partial results."""
        state = JobState(
            key, durable, run.user, run.state, run.attempt, fence, run.percent, run.message, queued_at=run.queued_at,
            started_at=run.started_at, asked=run.asked if durable else NOWHERE, due_at=run.due_at,
        )  # fmt: skip
        parts: dict[tuple[str, int], Any] = {(ARGUMENTS, 0): payload} if payload is not None else {}
        partials = dict(enumerate(run.partials))
        counts = ({ARGUMENTS: 1} if parts else {}) | ({PARTIAL: len(partials)} if partials else {})
        held = Record(SPACE, run.id, state, run.task, self._store.me, run.queued_at, parts=counts)
        parts |= {(PARTIAL, number): partial for number, partial in partials.items()}
        changes = [Change(SPACE, run.id, partial(jobs.restore, held=held), parts, _what(run.task))]
        if key:
            share = partial(jobs.share, function=run.task, key=key, run=run.id, gone="", now=self._clock.now())
            changes.append(Change(SHARED, shared_name(run.task, key), share))
        self._store.write(changes, durable=True if durable else None)

    def _entry(
        self, id: str, function: str, key: str, durable: bool, payload: Encoded | None, user: str | None, now: datetime,
        started_at: datetime | None, asked: Carrier = NOWHERE, due_at: datetime | None = None,
    ) -> Change:  # fmt: skip
        # Without arguments one that is durable has None, so that those that are missing are known to be lost.
        parts = {(ARGUMENTS, 0): payload} if payload is not None or durable else {}
        enter = partial(
            jobs.enqueue, me=self._store.me, id=id, function=function, key=key, durable=durable, user=user, now=now,
            arguments=bool(parts), started_at=started_at, asked=asked, due_at=due_at,
        )  # fmt: skip
        return Change(SPACE, id, enter, parts, _what(function))

    # ------------------------------------------------------------ looking

    def job(self, id: str) -> JobRow | None:
        """The run of this id, if it can be seen."""
        found = self._find(id, self._clock.now())
        if found is not None and found.orphan and not found.durable and not on_a_loop():
            self._bury(found.record)
            found = self._find(id, self._clock.now())
        return found

    def _find(self, id: str, now: datetime) -> JobRow | None:
        record = self._store.read(SPACE, id)
        return None if record is None or not _is_seen(record, now) else self._job(record)

    def jobs(self, function: str, user: str | None = ANYBODY) -> list[JobRow]:
        """All that are under way and the last ones that ended, newest first; of everybody, or of one user."""
        now, held = self._clock.now(), self._store.scan(SPACE, function, owner=HELD)
        last, ended = LISTED, list[Record]()
        while True:
            some = self._store.scan(SPACE, function, owner=None, last=last)
            ended = [record for record in some if _is_seen(record, now) and user in (ANYBODY, record.state.user)]
            if len(ended) >= LISTED or len(some) < last:
                break
            last *= 4
        held = [record for record in held if user in (ANYBODY, record.state.user)]
        return [self._job(record) for record in sorted([*held, *ended[-LISTED:]], key=_created, reverse=True)]

    def under_way(self) -> list[JobRow]:
        """Those of all functions that have not ended, oldest first."""
        return [self._job(record) for record in sorted(self._store.scan(SPACE, owner=HELD), key=_created)]

    def orphans(self) -> list[JobRow]:
        """Those that may be taken: durable, unfinished, and nobody's. Oldest first."""
        held = self._store.scan(SPACE, owner=HELD)
        return [self._job(record) for record in held if jobs.is_orphan(record, self._store.alive)]

    def _job(self, record: Record) -> JobRow:
        mine = record.owner == self._store.me
        orphan = not mine and record.owner is not None and not self._store.alive(record.owner)
        partials, state = record.parts.get(PARTIAL, 0), record.state._asdict()
        return JobRow(
            record.name, record.group, orphan=orphan, mine=mine, partials=partials, expires_at=record.expires_at,
            record=record, **state,
        )  # fmt: skip

    # ------------------------------------------------------------ running

    def take(self, id: str, now: datetime, left: int = 0) -> tuple[JobRow, Any] | None:
        """
        Become the process of an orphan, which was left with that fence; with what it was enqueued with.

        It counts as an attempt if it had begun. None when another process has it, when it has ended, or
        when its payload cannot be read: then it has failed.
        """
        take = partial(jobs.take, me=self._store.me, alive=self._store.alive, left=left)
        [result] = self._store.write([Change(SPACE, id, take)])
        if result.record is None:
            return None
        job = self._job(result.record)
        try:
            return job, self._one(job, ARGUMENTS)
        except ValueUnreadable as error:
            with suppress(RunFenced):
                failed = result.record.state._replace(state=RunState.FAILED, finished_at=now, error=first_line(error))
                run = _as_run(id, failed, self._store.me)
                self.end(id, job.fence, RunState.FAILED, now=now, error=error, expires_at=now + KEPT, run=run)
            return None
        except BaseException:
            self._store.write([Change(SPACE, id, partial(jobs.let_go, me=self._store.me, fence=job.fence))])
            raise

    def begin(self, id: str, fence: int, now: datetime, attempt: int) -> None:
        """It is running."""
        self._held(id, partial(jobs.begin, me=self._store.me, fence=fence, now=now, attempt=attempt))

    def again(self, id: str, fence: int, attempt: int) -> None:
        """It is queued again, for a retry."""
        self._held(id, partial(jobs.again, me=self._store.me, fence=fence, attempt=attempt))

    def tell(self, id: str, fence: int, percent: int, message: str) -> None:
        """Tell the other processes how far it has come. Harmless when it is another one's by now."""
        with suppress(RunFenced):
            self._held(
                id, partial(jobs.progress, me=self._store.me, fence=fence, percent=percent, message=storable(message))
            )

    def add_partial(self, id: str, fence: int, number: int, value: Any) -> None:
        """
        Keep the partial result of this number, from 0; those of an earlier attempt are gone.

        Raises
        ------
        ValueRefused
        """
        what = _what(self._require(id, fence).group)
        require_data(value, what)
        apply = partial(jobs.publish, me=self._store.me, fence=fence, number=number)
        self._held(id, apply, {(PARTIAL, number): value}, what)

    def _held(self, id: str, apply: Any, parts: dict[tuple[str, int], Any] | None = None, what: str = "") -> Record:
        [result] = self._store.write([Change(SPACE, id, apply, parts or {}, what)])
        if result.record is None:
            raise _fenced(id)
        return result.record

    def _require(self, id: str, fence: int) -> Record:
        record = self._store.read(SPACE, id)
        if record is None or not jobs.is_held(record, self._store.me, fence):
            raise _fenced(id)
        return record

    # ------------------------------------------------------------ ending

    def end(
        self,
        id: str,
        fence: int,
        state: RunState,
        *,
        now: datetime,
        value: Any = None,
        error: BaseException | None = None,
        traceback: str = "",
        reason: str = "",
        expires_at: datetime | None,
        run: RunRecord | None = None,
        lost: bool = False,
    ) -> Any:
        """
        It has ended so, which `run` says in the history. Its payload goes, its partial results stay.

        With `lost` it has succeeded, and its value cannot be kept.

        Returns
        -------
        object
            Of one that has succeeded the value as all processes read it: a large one is one copy in memory.

        Raises
        ------
        ValueRefused
            When the value is not data, or cannot be shared by processes; nothing is changed.
        """
        record = self._require(id, fence)
        finish = self._finish(id, record.group, fence, state, now, value, error, traceback, reason, expires_at, lost)
        settled = self._settled(record, state is RunState.SUCCEEDED and not lost, expires_at)
        history = [noted(JOB, record.group, run)] if run is not None else []
        return self._end([*settled, *history, finish], record.state.durable)

    def enqueue_and_end(
        self,
        id: str,
        function: str,
        *,
        queued_at: datetime,
        started_at: datetime,
        now: datetime,
        value: Any,
        user: str | None,
        expires_at: datetime,
        run: RunRecord,
    ) -> Any:
        """Keep a run that has succeeded before the store had it. As `enqueue` and `end`, in one step."""
        enter = self._entry(id, function, "", False, None, user, queued_at, started_at)
        finish = self._finish(id, function, 1, RunState.SUCCEEDED, now, value, None, "", "", expires_at)

        def both(record: Record | None, revision: int) -> Any:
            entered: Any = enter.apply(record, revision)
            return entered if isinstance(entered, Refusal) else finish.apply(entered, revision)

        return self._end([noted(JOB, function, run), finish._replace(apply=both)], False)

    def _finish(
        self, id: str, function: str, fence: int, state: RunState, now: datetime, value: Any,
        error: BaseException | None, traceback: str, reason: str, expires_at: datetime | None, lost: bool = False,
    ) -> Change:  # fmt: skip
        what, part, parts = _what(function), "", dict[tuple[str, int], Any]()
        if state is RunState.SUCCEEDED and not lost:
            require_data(value, what)
            part, parts = VALUE, {(VALUE, 0): value}
        elif error is not None:
            part, parts = ERROR, {(ERROR, 0): packed(error, traceback)}
        finish = partial(
            jobs.finish, me=self._store.me, fence=fence, state=state, now=now, part=part,
            error=storable(first_line(error)), reason=storable(reason), expires_at=expires_at,
        )  # fmt: skip
        return Change(SPACE, id, finish, parts, what)

    def _end(self, changes: list[Change], durable: bool) -> Any:
        """Make them, the end of a run last; the value as all processes read it."""
        result = self._store.write(changes, durable=True if durable else None, together=True)[-1]
        if result.record is None:
            raise _fenced(changes[-1].name)
        self._make_room(result.record.name)
        return result.parts.get((VALUE, 0))

    def _settled(self, record: Record, good: bool = False, until: datetime | None = None) -> list[Change]:
        """What those hear who ask for the same."""
        if not record.state.key:
            return []
        settle = partial(jobs.settle, run=record.name, good=good, until=until)
        return [Change(SHARED, shared_name(record.group, record.state.key), settle)]

    def _make_room(self, newest: str) -> None:
        if self._clock.monotonic() >= self._counts_at:
            self._counts_at = self._clock.monotonic() + LOOK
            self._store.trim(SPACE, entries=MOST, size=self._most_bytes, keep=newest, larger=True)

    def cancel(self, id: str) -> None:
        """Ask its process to cancel it; an orphan has ended at once."""
        record = self._store.read(SPACE, id)
        if record is not None:
            apply = partial(jobs.ask_to_cancel, alive=self._store.alive, now=self._clock.now())
            self._store.write([*_with_line(record, apply), *self._settled(record)], together=True)

    def release(self) -> None:
        """This process stops: its durable jobs are orphans, at no attempt's cost, its other ones cancelled."""
        changes, apply = list[Change](), partial(jobs.release, me=self._store.me, now=self._clock.now())
        for record in self._store.scan(SPACE, owner=self._store.me):
            changes += _with_line(record, apply)
            if not record.state.durable:
                changes += self._settled(record)
        # Most processes have none, and a directory that is gone is not to be made again for that.
        if changes:
            self._store.write(changes, durable=True)

    def _bury(self, record: Record) -> None:
        """Do what a process has left undone that is gone."""
        if record.owner and record.owner != self._store.me and not self._store.alive(record.owner):
            apply = partial(jobs.bury, alive=self._store.alive, now=self._clock.now())
            settled = [] if record.state.durable and not record.state.cancelled else self._settled(record)
            self._store.write([*_with_line(record, apply), *settled], together=True)

    # ------------------------------------------------------------ what came of it

    def value(self, id: str) -> Any:
        """
        What it returned.

        Raises
        ------
        KeyError
            When it has not succeeded, or has expired.
        ValueUnreadable
        """
        job = self._find(id, self._clock.now())
        if job is None or job.state is not RunState.SUCCEEDED:
            raise KeyError(id)
        try:
            return self._one(job, VALUE)
        except ValueUnreadable as error:
            if self._find(id, self._clock.now()) is None:  # it was swept meanwhile
                raise KeyError(id) from None
            # Who asks for the same gets another one.
            shared = self._store.read(SHARED, shared_name(job.function, job.key)) if job.key else None
            if shared is not None and shared.state.run == id:
                self._store.write(self._settled(job.record))
                log.error("%s", error)
            raise

    def partials(self, id: str, start: int = 0) -> list[Any]:
        """
        In order, from this number on.

        Raises
        ------
        ValueUnreadable
        """
        job, found = self._find(id, self._clock.now()), list[Any]()
        if job is None:
            return found
        for number in range(start, job.partials):
            with suppress(KeyError):  # one that could not be stored
                found.append(self._part(job, PARTIAL, number))
        return found

    def failure(self, id: str) -> BaseException | None:
        """What it raised, caused by a `RemoteTraceback`; RunFailed where that cannot be unpickled."""
        job = self._find(id, self._clock.now())
        if job is None or not job.error:
            return None
        if ERROR not in job.record.parts and job.state in (RunState.CANCELLED, RunState.CRASHED):
            kind = RunCancelled if job.state is RunState.CANCELLED else RunCrashed
            return kind(job.error.partition(": ")[2])
        kept = job.error, "", b""
        with suppress(ValueUnreadable):
            kept = self._one(job, ERROR)
        return unpacked(kept, _what(job.function))

    def _one(self, job: JobRow, kind: str) -> Any:
        try:
            return self._part(job, kind)
        except KeyError:
            raise ValueUnreadable(f"{_what(job.function)}: its {kind} is lost. Submit it again.") from None

    def _part(self, job: JobRow, kind: str, number: int = 0) -> Any:
        try:
            return self._store.load(job.record, kind, number, f"{_what(job.function)}: its {kind}")
        except ValueUnreadable as error:
            raise ValueUnreadable(f"{error} Submit it again.") from error

    # ------------------------------------------------------------ who follows it

    def follow(self, id: str, followed: bool) -> None:
        """Whether sessions of this process follow it."""
        self._store.watch(SPACE, id, int(followed))

    def followed(self, id: str) -> bool:
        """Whether sessions of other processes do."""
        return self._store.watchers(SPACE, id) > 0

    def watch_jobs(
        self,
        noticed: Callable[[str], object],
        follows: Callable[[str], bool] = lambda id: True,
        lost: Lost = lambda since: None,
    ) -> None:
        """
        Call ``noticed(id)`` when another process may have changed a job, or is gone. On whatever thread.

        Of those that have ended only where ``follows(id)``. And ``lost(since)`` when the store has lost jobs: who runs
        one is to `put_back` that.
        """

        def changed(record: Record) -> None:
            # Of those that it holds a process knows everything but this.
            if record.owner is None:
                wanted = follows(record.name)
            else:
                wanted = record.owner != self._store.me or record.state.cancelled
            if wanted:
                noticed(record.name)

        self._store.subscribe(SPACE, changed, lost)


def _with_line(record: Record, apply: Apply) -> list[Change]:
    """A change, with a line for the history if that ends the run: its process cannot say so any more."""
    change, new = Change(SPACE, record.name, apply), apply(record, 0)
    if not isinstance(new, Record) or not new.state.state.final:
        return [change]
    return [change, noted(JOB, record.group, _as_run(new.name, new.state, record.owner or ""))]


def _as_run(id: str, state: JobState, owner: str) -> RunRecord:
    return RunRecord(
        id, f"request {id}", state.state, state.attempt, state.queued_at, state.started_at, state.finished_at,
        state.error, state.reason, None, owner if state.started_at is not None else "", state.user or "",
    )  # fmt: skip


def _is_good(job: JobRow) -> bool:
    """Whether it is under way, or has a result."""
    return not job.state.final or job.state is RunState.SUCCEEDED


def _is_seen(record: Record, now: datetime) -> bool:
    return record.expires_at is None or record.expires_at > now


def _created(record: Record) -> int:
    return record.created


def _what(function: str) -> str:
    return f"Job {function!r}"


def _fenced(id: str) -> RunFenced:
    return RunFenced(f"Run {id} of a background function has ended, or is another process's by now; this is dropped.")
