"""What the scheduler asks of a store: values, schedules, the one run that holds a task, and its history."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from ..clock import Clock
from ..coordination import history, tasks
from ..coordination.record import EPOCH, Record, Refusal, storable
from ..coordination.tasks import OVERRIDE, TASK, TRIGGER, USER, VALUE, Claim, Mark, TaskState
from ..errors import RunFenced, ScheduleError, StoreError, ValueRefused, ValueUnreadable, is_interrupt
from ..functions.run import RunRecord, RunState
from ..serialize.checks import require_data
from ..serialize.codec import Mapped, encode
from ..serialize.entry import Entry
from ..triggers import Dates, Every, Trigger
from .cache import Cache
from .queue import MOST_BYTES, Queue
from .records import NO_PARTS, Apply, Change, RecordStore, Result, Tell, as_stored, noted

__all__ = ["DATES", "TASK", "USER", "Claim", "Holder", "Mark", "Plan", "Refusal", "Row", "Store", "fenced", "whose"]

log = logging.getLogger("panel_schedule")

# Before the name of a task: the claim by which one process asks a function of the user's for its dates.
DATES = "\x1fdates of "


@dataclass(frozen=True, slots=True)
class Holder:
    """
    The run of another process that holds a task.

    Attributes
    ----------
    run_id : str
    key : datetime or str or None
    attempt : int
    wave, started_at : datetime or None
    over : bool
        The run has ended; its body has not.
    orphan : bool
        Its process is gone, or has handed it over: whoever takes it may have it.
    percent : int
    message : str
    """

    run_id: str
    key: datetime | str | None
    attempt: int
    wave: datetime | None
    started_at: datetime | None
    over: bool
    orphan: bool
    percent: int = -1
    message: str = ""


class Row(NamedTuple):
    """
    What a store remembers of a task besides its value.

    Attributes
    ----------
    fingerprint : str
        Of the schedule in the code.
    first_seen : datetime
        Only slots after this instant, at which the schedule was first seen, can be missed.
    last_slot : datetime or None
        The last slot that was claimed or skipped.
    last_version : int
        The sum of the upstream's versions for which an ``after=`` task ran last.
    trigger : Trigger or None
        Of the process that came first, where another one's code says ``now + 30 s``.
    override : Trigger or None
        Of a `reschedule`.
    gave_way : Trigger or None
        An override that the store has just dropped, as the schedule in the code has changed.
    paused, removed, forgotten : bool
    outcome : RunState or None
        How the last run ended.
    error : str
        First line of its failure.
    stale : bool
        A process has found the value stale.
    viewers : int
        Sessions of other processes that show the task; counted for those that rest when nobody does.
    holder : Holder or None
    cancelled : str
        Id of a run that somebody wants to be cancelled.
    change : int
        Grows with every change of any row.
    """

    fingerprint: str
    first_seen: datetime
    last_slot: datetime | None = None
    last_version: int = 0
    trigger: Any = None
    override: Any = None
    gave_way: Any = None
    paused: bool = False
    removed: bool = False
    forgotten: bool = False
    outcome: RunState | None = None
    error: str = ""
    stale: bool = False
    viewers: int = 0
    holder: Holder | None = None
    cancelled: str = ""
    change: int = 0


class Plan(NamedTuple):
    """A task as the code of this process has it."""

    task: str
    trigger: Trigger
    first_seen: datetime


class Request(NamedTuple):
    """
    What is to be asked of a store, together with others in one transaction.

    Attributes
    ----------
    change : Change
    answer : callable
        ``answer(result)``: what came of it; it may raise.
    tell : Tell
    """

    change: Change
    answer: Callable[[Result], Any]
    tell: Tell = Tell.SOON


Listener = Callable[[str, str, Entry | None], object]


class Store:
    """
    Tasks and names of ``ps.store`` on the records of a store, with a copy of their values in this process.

    Callable from any thread.

    Parameters
    ----------
    records : RecordStore
    clock : Clock
    server : str
        Names the server that this process is part of.
    max_result_bytes : int
        Of what is kept of background runs that have ended.

    Attributes
    ----------
    queue : Queue
        The background jobs.
    cache : Cache
        The answers of memoized functions.

    Raises
    ------
    StoreError
        From every method but `entry` and `names`, when a shared store cannot do it now. It may be tried again.
    """

    def __init__(self, records: RecordStore, clock: Clock, server: str = "", max_result_bytes: int = MOST_BYTES):
        self.records = records
        self.queue, self.cache = Queue(records, clock, max_result_bytes), Cache(records, clock)
        self._clock = clock
        self._server = server
        self._entries: dict[tuple[str, str], Entry] = {}
        # Versions that have been looked at, also of values that cannot be read.
        self._versions: dict[tuple[str, str], int] = {}
        self._complained: dict[tuple[str, str], int] = {}
        self._trouble = ""
        # The last change of each task that is known here: it was made here, or was told of.
        self._known: dict[str, int] = {}
        self._isolated: set[str] = set()
        self._voided: set[Claim] = set()
        self._applying = threading.Lock()
        self._listening = not records.blocking
        self._stored: list[Listener] = []
        self._noticed: list[Callable[[str], object]] = []
        if records.blocking:  # else no other process changes anything
            for space in (TASK, USER):
                records.subscribe(space, self._changed, self._restore)

    @property
    def blocking(self) -> bool:
        """Whether a call may have to wait: then it stays off the event loop and out of locks."""
        return self.records.blocking

    # ------------------------------------------------------------ values

    def entry(self, space: str, name: str) -> Entry | None:
        """The stored value, None where there is none. From memory, at once, in a process that listens."""
        key = (space, name)
        if not self.blocking or (self._listening and (space == USER or key in self._versions)):
            return self._entries.get(key)
        try:
            self._versions.setdefault(key, 0)
            if (record := self.records.read(space, name)) is not None:
                self._take_in(record)
        except ScheduleError as error:
            self._complain_once(error)
        return self._entries.get(key)

    def names(self, space: str) -> Iterator[str]:
        try:
            records = self.records.scan(space)
        except ScheduleError as error:
            self._complain_once(error)
            return iter([name for owner, name in list(self._entries) if owner == space])
        return iter([record.name for record in records if VALUE in record.parts])

    def _complain_once(self, error: Exception) -> None:
        if str(error) != self._trouble:
            self._trouble = str(error)
            log.error("What other processes have stored cannot be read now: %s", error)

    def _changed(self, record: Record) -> None:
        """A process may have changed a record."""
        key = (record.space, record.name)
        # Other tasks' values, perhaps of last year's code, are nobody's business.
        if record.space == USER or key in self._versions:
            self._take_in(record)
        if record.space == TASK and (
            record.owner not in (None, self.records.me) or self._known.get(record.name) != record.revision
        ):
            self._known[record.name] = record.revision
            for noticed in self._noticed:
                noticed(record.name)

    def _take_in(self, record: Record) -> None:
        """Bring the copy of its value in line."""
        state: TaskState = record.state
        known = self._entries.get(key := (record.space, record.name))
        if VALUE not in record.parts:
            self._apply(*key, None, state.version)
        elif known is None or known.version != state.version or known.updated_at != state.updated_at:
            try:
                entry = self._entry(record, self.records.load(record, VALUE, what=whose(*key)))
            except KeyError:
                return  # there is a newer one, of which one hears next
            except StoreError as error:  # too many open files, say: it may be read later
                self._complain(record, error)
                raise
            except (ValueUnreadable, KeyboardInterrupt) as error:
                if is_interrupt(error):
                    raise
                self._complain(record, error)
                self._versions[key] = state.version
            else:
                self._apply(*key, entry)
        elif state.final and not known.final:
            self._apply(*key, replace(known, final=True))

    def _complain(self, record: Record, why: object) -> None:
        key, version = (record.space, record.name), record.state.version
        if self._complained.get(key) != version:
            self._complained[key], self._trouble = version, str(why)
            stays = "the last good one stays" if key in self._entries else "it has to be computed again"
            log.error("%s: version %d of its value cannot be read, %s: %s", whose(*key), version, stays, why)

    def _entry(self, record: Record, value: Any, source: Any = None) -> Entry:
        state: TaskState = record.state
        if source is None and record.space == TASK and record.name in self._isolated:
            source = self.records.source(record, VALUE, what=whose(TASK, record.name))
        return Entry(
            value, state.version, state.updated_at or self._clock.now(), state.duration, state.by or None, state.final,
            state.seen_wave, source,
        )  # fmt: skip

    def _apply(self, space: str, name: str, entry: Entry | None, version: int = 0) -> None:
        key, version = (space, name), entry.version if entry is not None else version
        with self._applying:
            known = self._entries.get(key)
            self._versions[key] = max(version, self._versions.get(key, 0))
            if entry is None:
                if known is None or known.version > version:
                    return
                del self._entries[key]
            elif (
                known is None
                or (known.version, known.final) < (version, entry.final)
                # Of two stores, after one was lost: the one that is there is right.
                or (known.version == version and known.updated_at != entry.updated_at)
            ):
                self._entries[key] = entry
            else:
                return
        if entry is not None:
            entry.holding  # noqa: B018  (here, and not on the loop that serves pages)
        for stored in self._stored:
            stored(space, name, entry)

    def publish(
        self,
        space: str,
        name: str,
        value: Any,
        *,
        now: datetime,
        duration: float | None = None,
        claim: Claim | None = None,
        final: bool = True,
    ) -> Entry:
        """
        Store a new version and tell the listeners.

        Raises
        ------
        ValueRefused
            When the value is not data, or cannot be shared by processes; the old one stays.
        RunFenced
            When `claim` is no longer the task's own; the value is dropped.
        """
        entry: Entry = self.answer_to(
            self.to_publish(space, name, value, now=now, duration=duration, claim=claim, final=final)
        )
        return entry

    def to_publish(
        self,
        space: str,
        name: str,
        value: Any,
        *,
        now: datetime,
        duration: float | None = None,
        claim: Claim | None = None,
        final: bool = True,
    ) -> Request:
        """The same as a request."""
        what = whose(space, name)
        require_data(value, what)
        source = None
        if not self.blocking and space == TASK and name in self._isolated:
            source = private_source(value, what)
        self._require(claim)
        apply = partial(
            tasks.publish, space=space, name=name, now=now, duration=duration, claim=claim, final=final,
            me=self.records.me,
        )  # fmt: skip
        change = Change(space, name, apply, {(VALUE, 0): value}, what)
        return Request(change, partial(self._published, name, source), Tell.NOW)

    def to_succeed(self, publish: Request, claim: Claim, run: RunRecord) -> Request:
        """It publishes, or finalizes, so; with that the run of the claim is over, and in the history."""
        apply = partial(tasks.succeed, publish=publish.change.apply, claim=claim, run=as_stored(run))
        answer = partial(self._succeeded, claim, publish.answer)
        return Request(publish.change._replace(apply=apply), answer, publish.tell)

    def _succeeded(self, claim: Claim, answer: Callable[[Result], Any], result: Result) -> Any:
        self._voided.discard(claim)
        return answer(result)

    def _published(self, name: str, source: Any, result: Result) -> Entry:
        if result.record is None:
            raise fenced(name)
        entry = self._entry(result.record, result.parts[VALUE, 0], source)
        self._apply(result.record.space, name, entry)
        # The listener may have been quicker: there is one object for all, also for who waits for the run.
        known = self._entries.get((result.record.space, name))
        return known if known is not None and known.version == entry.version else entry

    # ------------------------------------------------------------ requests

    def perform(self, requests: Sequence[Request]) -> list[tuple[Any, BaseException | None]]:
        """
        What comes of each, or what it raises; in one transaction.

        Raises
        ------
        StoreError
            When nothing was done.
        ValueRefused
            When one of them cannot be stored; nothing was done.
        """
        tell = Tell.NOW if any(request.tell is Tell.NOW for request in requests) else Tell.SOON
        results = self.records.write([request.change for request in requests], tell=tell)
        answers = list[tuple[Any, BaseException | None]]()
        for request, result in zip(requests, results, strict=True):
            self._learn(result)
            try:
                answers.append((request.answer(result), None))
            except Exception as error:
                answers.append((None, error))
        return answers

    def answer_to(self, request: Request) -> Any:
        """What comes of one, alone."""
        [result] = self.records.write([request.change], tell=request.tell)
        self._learn(result)
        return request.answer(result)

    def _learn(self, result: Result) -> None:
        """Of a change that was made here nobody has to be told, unless another process has made one before it."""
        record = result.record
        if record is None or record.space != TASK or not self.blocking:
            return
        if self._known.get(record.name, 0) == result.before:
            self._known[record.name] = record.revision

    def finalize(self, claim: Claim) -> Entry | None:
        """The last value that the claim's run has published was its final one."""
        entry: Entry | None = self.answer_to(self.to_finalize(claim))
        return entry

    def to_finalize(self, claim: Claim) -> Request:
        """The same as a request."""
        self._require(claim)
        change = Change(TASK, claim.task, partial(tasks.finalize, claim=claim, me=self.records.me))
        return Request(change, partial(self._finalized, claim.task), Tell.NOW)

    def _finalized(self, task: str, result: Result) -> Entry | None:
        if result.record is None:
            raise fenced(task)
        self._take_in(result.record)
        return self._entries.get((TASK, task))

    def _require(self, claim: Claim | None) -> None:
        if claim is not None and claim in self._voided:
            raise fenced(claim.task)

    def delete(self, space: str, name: str) -> None:
        """Forget the value. Raises KeyError where there is none."""
        [result] = self.records.write([Change(space, name, tasks.delete)], tell=Tell.NOW)
        if result.record is None:
            raise KeyError(name)
        self._take_in(result.record)

    def isolate(self, task: str) -> None:
        """From its next entry on, keep what private copies of the task's value are made from."""
        self._isolated.add(task)

    def subscribe(self, stored: Listener, noticed: Callable[[str], object] = lambda task: None) -> None:
        """
        Call ``stored(space, name, entry)`` after each new value or deletion.

        And ``noticed(task)`` when another process may have changed the record of a task. On whatever thread.
        """
        self._stored.append(stored)
        self._noticed.append(noticed)

    def listen(self) -> None:
        """From now on hear of other processes without being asked. Idempotent."""
        self.records.listen()
        if not self._listening:
            for record in self.records.scan(USER):
                self._take_in(record)
            self._listening = True

    def close(self) -> None:
        """This process is done with the store: others go on with what it has not ended. Idempotent."""
        with suppress(ScheduleError):
            self.queue.release()
            self.cache.release()
        self.records.close()

    def forked(self) -> Store | None:
        """What the child of a fork has in its place; None where it opens the store for itself."""
        return None

    def entries(self) -> dict[tuple[str, str], Entry]:
        """A copy of all values that this process has."""
        with self._applying:
            return dict(self._entries)

    def seed(self, entries: Mapping[tuple[str, str], Entry]) -> None:
        """Store these, but for what is there already."""
        for (space, name), entry in entries.items():
            try:
                self._put_back(space, name, entry)
            except ScheduleError as error:
                log.error("%s: its value is not stored: %s", whose(space, name), error)

    def _restore(self) -> None:
        self.seed(self.entries())

    def _put_back(self, space: str, name: str, entry: Entry) -> None:
        record, lost = self.records.read(space, name), False
        if record is not None and record.state.version == entry.version:
            try:
                self.records.source(record, VALUE).close()
                return
            except (KeyError, ValueUnreadable):
                lost = True
        state = TaskState(entry.version, entry.updated_at, entry.duration, entry.run_id or "", entry.final, entry.wave)
        apply = partial(tasks.restore, held=Record(space, name, state), lost=lost)
        self.records.write([Change(space, name, apply, {(VALUE, 0): entry.shared}, whose(space, name))], tell=Tell.NOW)

    def _unreadable(self, task: str) -> int:
        """The version of its value that this process could not read; 0 of none."""
        key = (TASK, task)
        return 0 if key in self._entries else self._versions.get(key, 0)

    # ------------------------------------------------------------ schedules

    def enroll(self, plans: Iterable[Plan], *, again: bool = False, late: bool = False) -> dict[str, Row]:
        """
        Remember the schedules, where they are new or changed.

        Within one server the first process decides: another one whose dates differ, because they
        are relative to now, gets the first one's in ``Row.trigger``.

        Parameters
        ----------
        plans : iterable of Plan
        again : bool
            The function was defined anew: its schedule replaces the known one.
        late : bool
            The task is scheduled while the server runs: one that was forgotten comes back.
        """
        plans = list(plans)
        before = {plan.task: self.records.read(TASK, plan.task) for plan in plans}
        rescheduled = {
            name: self._schedule(record, OVERRIDE)
            for name, record in before.items()
            if record is not None and OVERRIDE in record.parts and not record.state.forgotten
        }
        results = self.records.write([self._enrolled(plan, again, late) for plan in plans])
        found: dict[str, Row] = {}
        for plan, result in zip(plans, results, strict=True):
            record = result.record or self.records.read(TASK, plan.task)
            assert record is not None
            gave_way = None if OVERRIDE in record.parts else rescheduled.get(plan.task)
            found[plan.task] = self._row(record, gave_way, plan.trigger.fingerprint)
        return found

    def _enrolled(self, plan: Plan, again: bool, late: bool) -> Change:
        name, trigger, first_seen = plan
        # What the other processes of this server get instead of their own, if it means the same there.
        parts = {(TRIGGER, 0): trigger} if self.blocking and isinstance(trigger, (Dates, Every)) else NO_PARTS
        apply = partial(
            tasks.enroll, name=name, server=self._server, fingerprint=trigger.fingerprint, portable=bool(parts),
            first_seen=first_seen, again=again, late=late, unreadable=self._unreadable(name),
        )  # fmt: skip
        return Change(TASK, name, apply, parts, whose(TASK, name))

    def row(self, task: str, fingerprint: str | None = None) -> Row | None:
        """What is known of a task; with the `fingerprint` of a schedule, another one is in ``Row.trigger``."""
        record = self.records.read(TASK, task)
        if record is None or record.state.first_seen is None:
            return None
        # Who sees that a run has ended sees its value, too.
        self._changed_here(record)
        return self._row(record, fingerprint=fingerprint)

    def _changed_here(self, record: Record) -> None:
        if (TASK, record.name) in self._versions:
            self._take_in(record)

    def _row(self, record: Record, gave_way: Any = None, fingerprint: str | None = None) -> Row:
        state: TaskState = record.state
        holder = None
        if state.run_id and record.owner != self.records.me:
            holder = Holder(
                state.run_id, state.key, state.attempt, state.wave, state.started_at, state.over,
                not self.records.alive(record.owner or ""), state.percent, state.message,
            )  # fmt: skip
        differs = fingerprint not in (None, state.fingerprint)
        return Row(
            fingerprint=state.fingerprint,
            first_seen=state.first_seen or EPOCH,
            last_slot=state.last_slot,
            last_version=state.last_version,
            trigger=self._schedule(record, TRIGGER) if differs else None,
            override=self._schedule(record, OVERRIDE),
            gave_way=gave_way,
            paused=state.paused,
            removed=state.removed,
            forgotten=state.forgotten,
            outcome=RunState(state.outcome) if state.outcome else None,
            error=state.error,
            stale=state.stale,
            viewers=self.records.watchers(TASK, record.name),
            holder=holder,
            cancelled=state.cancelled,
            change=record.revision,
        )

    def _schedule(self, record: Record, part: str) -> Any:
        if part not in record.parts:
            return None
        try:
            return self.records.load(record, part, what=f"Task {record.name!r}: its {part}")
        except (KeyError, ValueUnreadable) as error:
            log.error(
                "Task %r: a schedule that was stored cannot be read, so the one in the code holds: %s",
                record.name, error,
            )  # fmt: skip
            return None

    def amend(
        self,
        task: str,
        *,
        paused: bool | None = None,
        removed: bool | None = None,
        reschedule: Any = None,
        now: datetime | None = None,
    ) -> None:
        """Change what is not None; `reschedule` is another trigger, whose slots count from `now`."""
        parts = NO_PARTS if reschedule is None else {(OVERRIDE, 0): reschedule}
        rescheduled = None if reschedule is None else now
        apply = partial(tasks.amend, paused=paused, removed=removed, rescheduled=rescheduled)
        try:
            self._change(task, apply, parts)
        except ValueRefused as error:
            raise ValueRefused(
                f"Task {task!r}: the schedule {reschedule} cannot be shared by processes ({error}). Reschedule it to a "
                "period, a cron expression or dates."
            ) from error

    def rewind(self, task: str, now: datetime) -> bool:
        """The clock has stepped back to `now`: slots later than that were not handled. False when it is known."""
        return self._change(task, partial(tasks.rewind, now=now)).record is not None

    def watch(self, task: str, viewers: int) -> None:
        """So many sessions of this process show the task."""
        self.records.watch(TASK, task, viewers)
        self._change(task, _as_it_is)

    def mark_stale(self, task: str, stale: bool) -> bool:
        """Whether this process is the first one that finds the value stale, or no longer so."""
        return self._change(task, partial(tasks.mark_stale, stale=stale), tell=Tell.LATER).record is not None

    def forget(self, task: str) -> None:
        """Drop value, schedule and history of a task."""
        result = self._change(task, tasks.forget)
        if result.record is not None:
            self._take_in(result.record)

    def _change(
        self, task: str, apply: Apply, parts: Mapping[tuple[str, int], Any] = NO_PARTS, tell: Tell = Tell.SOON
    ) -> Result:
        [result] = self.records.write([Change(TASK, task, apply, parts, whose(TASK, task))], tell=tell)
        self._learn(result)
        return result

    # ------------------------------------------------------------ runs

    def claim(
        self,
        task: str,
        run_id: str,
        *,
        now: datetime,
        key: datetime | str | None = None,
        mark: Mark | None = None,
        wave: datetime | None = None,
        first: bool = False,
    ) -> Claim | Refusal:
        """
        Compare and set: the claim of a task, unless another run holds it or `mark` was handled before.

        `mark` is None for a run on request; with `first` a value that is there by now refuses it, too.
        """
        answer: Claim | Refusal = self.answer_to(
            self.to_claim(task, run_id, now=now, key=key, mark=mark, wave=wave, first=first)
        )
        return answer

    def to_claim(
        self,
        task: str,
        run_id: str,
        *,
        now: datetime,
        key: datetime | str | None = None,
        mark: Mark | None = None,
        wave: datetime | None = None,
        first: bool = False,
    ) -> Request:
        """The same as a request."""
        apply = partial(
            tasks.claim, me=self.records.me, server=self._server, task=task, run_id=run_id, now=now, key=key, mark=mark,
            wave=wave, first=first, unreadable=self._unreadable(task),
        )  # fmt: skip
        return Request(Change(TASK, task, apply), partial(self._claimed, task, run_id, key, wave))

    def _claimed(
        self, task: str, run_id: str, key: datetime | str | None, wave: datetime | None, result: Result
    ) -> Claim | Refusal:
        if result.record is None:
            # Whoever handled it may have published just now: the caller sees that value, too.
            with suppress(ScheduleError):  # it comes later
                if self.blocking and (record := self.records.read(TASK, task)) is not None:
                    self._changed_here(record)
            assert result.refusal is not None
            return result.refusal
        return Claim(task, run_id, result.record.state.fence, 1, key, wave)

    def advance(self, claim: Claim, version: int) -> None:
        """The run that has the claim is going to see these versions of its upstream, too."""
        self._change(claim.task, partial(tasks.advance, claim=claim, version=version), tell=Tell.LATER)

    def progress(self, claim: Claim, percent: int, message: str) -> None:
        """Tell the other processes how far the run has come."""
        if self.blocking:
            message = storable(message)
            self._change(claim.task, partial(tasks.progress, claim=claim, percent=percent, message=message))

    def fence(self, claim: Claim) -> Claim:
        """Let nothing more be published under the claim; the one returned holds the task until its release. At once."""
        # Only this process can publish under it, so that only this process has to know.
        self._voided.add(claim)
        return claim

    def release(self, claim: Claim) -> None:
        """Give the claim back. Harmless when it was lost before."""
        self.answer_to(self.to_release(claim))

    def to_release(self, claim: Claim) -> Request:
        """The same as a request."""
        change = Change(TASK, claim.task, partial(tasks.release, claim=claim))
        return Request(change, lambda result: self._voided.discard(claim))

    def hand_over(self, claim: Claim) -> None:
        """Let another process finish the run, now or when one starts."""
        self._change(claim.task, partial(tasks.hand_over, claim=claim))

    def take_over(self, task: str, now: datetime) -> Claim | RunRecord | None:
        """
        The claim of a run whose process is gone.

        The record of its crash, when it has cost one process too many; None when it had ended, or is had by another.
        """
        me = self.records.me
        result = self._change(task, partial(tasks.take_over, me=me, alive=self.records.alive, now=now))
        if result.record is None:
            return None
        if result.record.owner != me:
            crashed = result.logged is not None and result.logged.state is RunState.CRASHED
            return result.logged if crashed else None
        state: TaskState = result.record.state
        return Claim(task, state.run_id, state.fence, state.attempt, state.key, state.wave)

    def cancel(self, task: str, run_id: str) -> None:
        """Ask the process of a run to cancel it."""
        self._change(task, partial(tasks.cancel, run_id=run_id))

    def record(self, task: str, record: RunRecord, mark: Mark | None = None) -> bool:
        """
        Add to the history; a skipped stretch that goes on becomes longer instead.

        With `mark` only if that was not handled before, which it is then.

        Returns
        -------
        bool
            Whether there is a new record.
        """
        done: bool = self.answer_to(self.to_record(task, record, mark))
        return done

    def to_record(
        self, task: str, record: RunRecord, mark: Mark | None = None, released: Claim | None = None
    ) -> Request:
        """The same as a request; `released` is a claim that is given back with it."""
        apply = partial(tasks.note, task=task, run=as_stored(record), mark=mark, released=released)
        return Request(Change(TASK, task, apply), partial(self._recorded, released))

    def _recorded(self, released: Claim | None, result: Result) -> bool:
        if released is not None:
            self._voided.discard(released)
        return result.logged is not None

    def to_note(self, kind: str, function: str, run: RunRecord) -> Request:
        """Record a run of a function that is called on request, as a request."""
        return Request(noted(kind, function, run), lambda result: None)

    def history(self, name: str, kind: str = TASK) -> list[RunRecord]:
        """Of a task, or of a function of another kind; newest first."""
        if kind == TASK:
            return self.records.log(TASK, name)
        return self.records.log(history.SPACE, history.name_of(kind, name))


def _as_it_is(record: Record | None, revision: int) -> Record | Refusal:
    return record if record is not None else Refusal.ABSENT


def whose(space: str, name: str) -> str:
    """How an error names a value."""
    return f"Task {name!r}" if space == TASK else f"ps.store[{name!r}]"


def private_source(value: Any, what: str) -> Mapped:
    """Bytes of this process alone, that private copies are made from."""
    encoded = encode(value, what)
    try:
        return Mapped.anonymous(encoded)
    finally:
        encoded.close()


def fenced(task: str) -> RunFenced:
    """The error of a run whose claim is another one's by now."""
    return RunFenced(
        f"Task {task!r}: the run lost its claim before it published; its value is dropped. "
        "It was cancelled, replaced or timed out, or its process was taken for dead: give the task a longer timeout "
        "or period."
    )
