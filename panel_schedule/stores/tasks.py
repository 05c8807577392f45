"""The tasks of all processes on the records of a store: their schedules, their runs, their history."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from ..coordination import tasks
from ..coordination.record import EPOCH, Record, Refusal, storable
from ..coordination.tasks import OVERRIDE, TASK, TRIGGER, VALUE, Claim, Mark, TaskState
from ..errors import RunFenced, ScheduleError, ValueRefused, ValueUnreadable
from ..functions.run import RunRecord, RunState
from ..serialize.entry import Entry
from ..triggers import Schedule, Trigger, Unknown
from ..triggers.combined import is_portable
from ..triggers.words import in_words
from .records import NO_PARTS, Apply, Change, RecordStore, Request, Result, Tell, as_stored
from .values import Values, whose

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
    foreign : bool
        Whether that is the schedule of another version of the code, which holds as long as its processes live.
    first_seen : datetime
        Only slots after this instant, at which the schedule was first seen, can be missed.
    last_slot : datetime or None
        The last slot that was claimed or skipped.
    last_version : int
        The sum of the upstream's versions for which an ``after=`` task ran last.
    trigger : Trigger or None
        The one in force where the code of this process has another one: ``now + 30 s`` and came later, or `foreign`.
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
        Sessions of other processes that show the task; 0 if they are not counted, see `Tasks.count_viewers`.
    holder : Holder or None
    goes_first : bool
        Whether this process has claimed it last, or nobody has who may still live.
    cancelled : str
        Id of a run that somebody wants to be cancelled.
    requested : str
        Somebody has asked for a run, by this id, and none has begun since.
    change : int
        Grows with every change of any row.
    """

    fingerprint: str
    first_seen: datetime
    foreign: bool = False
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
    goes_first: bool = True
    cancelled: str = ""
    requested: str = ""
    change: int = 0


class Plan(NamedTuple):
    """A task as the code of this process has it."""

    task: str
    trigger: Schedule
    first_seen: datetime
    stale_after: timedelta | None = None


class Tasks:
    """
    Tasks on the records of a store.

    Callable from any thread. What may share a transaction with other changes is a request, which changes nothing until
    it is performed.

    Parameters
    ----------
    records : RecordStore
    values : Values
    server : str
        Names the server that this process is part of.

    Raises
    ------
    StoreError
        From every method, and when a request is performed, when a shared store cannot do it now. It may be tried again.
    """

    def __init__(self, records: RecordStore, values: Values, server: str):
        self._records = records
        self._values = values
        self._server = server
        # The last change of each task that is known here: it was made here, or was told of.
        self._known: dict[str, int] = {}
        self._counted: set[str] = set()
        self._voided: set[Claim] = set()
        self._noticed: list[Callable[[str], object]] = []
        # Each record as it was last, and the schedules that are its parts: the store gets them again if it loses them.
        self._last: dict[str, Record] = {}
        # Those that have changed in a way that this process has not heard of yet.
        self._outdated: set[str] = set()
        self._schedules: dict[tuple[str, str], Any] = {}
        if records.blocking:  # else no other process changes anything
            records.subscribe(TASK, self._changed, self._restore)

    # ------------------------------------------------------------ what other processes change

    def subscribe(self, noticed: Callable[[str], object]) -> None:
        """Call ``noticed(task)`` when another process may have changed the record of a task, on whatever thread."""
        self._noticed.append(noticed)

    def _changed(self, record: Record) -> None:
        self._keep(record)
        if record.owner not in (None, self._records.me) or self._known.get(record.name) != record.revision:
            self._known[record.name] = record.revision
            for noticed in self._noticed:
                noticed(record.name)

    def _request(
        self, task: str, apply: Apply, answer: Callable[[Result], Any] = lambda result: None, tell: Tell = Tell.SOON
    ) -> Request:
        return self._asked(Change(TASK, task, apply), answer, tell)

    def _asked(self, change: Change, answer: Callable[[Result], Any], tell: Tell) -> Request:
        return Request(change, partial(self._answer, change.name, answer) if self._records.blocking else answer, tell)

    def _answer(self, task: str, answer: Callable[[Result], Any], result: Result) -> Any:
        self._learn(task, result)
        return answer(result)

    def _learn(self, task: str, result: Result) -> None:
        """Of a change that was made here nobody has to be told, unless another process has made one before it."""
        if (record := result.record) is None:
            self._outdated.add(task)
        else:
            self._keep(record)
            if self._known.get(record.name, 0) == result.before:
                self._known[record.name] = record.revision

    def _keep(self, record: Record) -> None:
        last = self._last.get(record.name)
        if last is None or last.revision <= record.revision:
            self._last[record.name] = record
            self._outdated.discard(record.name)

    def _restore(self, since: int) -> None:
        """What is lost is there again, as far as this process knows it. Raises StoreError, when some of it is not."""
        for name, record in list(self._last.items()):
            if record.revision <= since:
                continue
            parts = {
                (part, 0): schedule
                for part in (TRIGGER, OVERRIDE)
                if part in record.parts and (schedule := self._schedules.get((name, part))) is not None
            }
            held = record._replace(parts=dict.fromkeys((part for part, _ in parts), 1))
            whole = held.parts.keys() | {VALUE} == record.parts.keys() | {VALUE}
            change = Change(TASK, name, partial(tasks.reinstate, held=held, whole=whole), parts, whose(TASK, name))
            self._records.write([change])

    def _write(
        self, task: str, apply: Apply, parts: Mapping[tuple[str, int], Any] = NO_PARTS, tell: Tell = Tell.SOON
    ) -> Result:
        [result] = self._records.write([Change(TASK, task, apply, parts, whose(TASK, task))], tell=tell)
        if self._records.blocking:
            self._learn(task, result)
        return result

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
        names = {plan.task for plan in plans}
        rescheduled = {
            record.name: self._schedule(record, OVERRIDE)
            for record in self._records.scan(TASK)
            if record.name in names and OVERRIDE in record.parts and not record.state.forgotten
        }
        results = self._records.write([self._enrolled(plan, again, late) for plan in plans])
        found: dict[str, Row] = {}
        for plan, result in zip(plans, results, strict=True):
            record = result.record or self._records.read(TASK, plan.task)
            assert record is not None
            self._last[plan.task] = record
            if record.state.fingerprint == plan.trigger.fingerprint:
                self._schedules[plan.task, TRIGGER] = plan.trigger
            gave_way = None if OVERRIDE in record.parts else rescheduled.get(plan.task)
            row = self._row(record, gave_way, plan.trigger.fingerprint)
            # Who comes in does not wait for somebody who is gone for good.
            gone = not (row.goes_first or self._records.alive(record.state.claimer))
            found[plan.task] = row._replace(goes_first=True) if gone else row
        return found

    def _enrolled(self, plan: Plan, again: bool, late: bool) -> Change:
        name, trigger, first_seen, stale_after = plan
        # What other processes get instead of their own, if it means the same there.
        portable = self._records.blocking and is_portable(trigger)
        parts = {(TRIGGER, 0): trigger} if portable else NO_PARTS
        apply = partial(
            tasks.enroll, name=name, server=self._server, fingerprint=trigger.fingerprint, portable=bool(parts),
            first_seen=first_seen, again=again, late=late, unreadable=self._values.unreadable(name),
            me=self._records.me, alive=self._records.alive, schedule=in_words(trigger),
            stale_after=None if stale_after is None else stale_after.total_seconds(),
        )  # fmt: skip
        return Change(TASK, name, apply, parts, whose(TASK, name))

    def row(self, task: str, fingerprint: str | None = None) -> Row | None:
        """What is known of a task; with the `fingerprint` of a schedule, another one is in ``Row.trigger``."""
        record = self._records.read(TASK, task)
        if record is None or record.state.first_seen is None:
            return None
        self._keep(record)
        return self._followed(record, fingerprint)

    def told(self, task: str, fingerprint: str) -> Row | None:
        """What this process was told of a task last, or has changed itself: a network is not asked for that again."""
        record = self._last.get(task)
        if record is None or record.state.first_seen is None or task in self._outdated:
            return self.row(task, fingerprint)
        return self._followed(record, fingerprint)

    def _followed(self, record: Record, fingerprint: str | None = None) -> Row:
        self._values.followed(record)
        return self._row(record, fingerprint=fingerprint)

    def _row(self, record: Record, gave_way: Any = None, fingerprint: str | None = None) -> Row:
        state: TaskState = record.state
        holder = None
        if state.run_id and record.owner != self._records.me:
            holder = Holder(
                state.run_id, state.key, state.attempt, state.wave, state.started_at, state.over,
                not self._records.alive(record.owner or ""), state.percent, state.message,
            )  # fmt: skip
        differs = bool(state.fingerprint) and fingerprint not in (None, state.fingerprint)
        foreign = differs and state.server != self._server
        return Row(
            fingerprint=state.fingerprint,
            first_seen=state.first_seen or EPOCH,
            last_slot=state.last_slot,
            last_version=state.last_version,
            foreign=foreign,
            trigger=self._in_force(record, foreign) if differs else None,
            override=self._schedule(record, OVERRIDE),
            gave_way=gave_way,
            paused=state.paused,
            removed=state.removed,
            forgotten=state.forgotten,
            outcome=RunState(state.outcome) if state.outcome else None,
            error=state.error,
            stale=state.stale,
            viewers=self._records.watchers(TASK, record.name) if record.name in self._counted else 0,
            holder=holder,
            goes_first=state.claimer in ("", self._records.me),
            cancelled=state.cancelled,
            requested=state.requested,
            change=record.revision,
        )

    def _in_force(self, record: Record, foreign: bool) -> Any:
        """The schedule of another process."""
        if foreign and TRIGGER not in record.parts:
            return Unknown()
        found = self._schedules.get((record.name, TRIGGER))
        if found is None or found.fingerprint != record.state.fingerprint:
            return self._schedule(record, TRIGGER)
        return found

    def schedule(self, record: Record) -> Trigger | None:
        """The one in force; None where only the processes know it that have the code."""
        return self._schedule(record, OVERRIDE if OVERRIDE in record.parts else TRIGGER)  # type: ignore[no-any-return]

    def _schedule(self, record: Record, part: str) -> Any:
        if part not in record.parts:
            return None
        try:
            schedule = self._records.load(record, part, what=f"Task {record.name!r}: its {part}")
            self._schedules[record.name, part] = schedule
            return schedule
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
            self._write(task, apply, parts)
            self._schedules |= {(task, part): schedule for (part, _), schedule in parts.items()}
        except ValueRefused as error:
            raise ValueRefused(
                f"Task {task!r}: the schedule {reschedule} cannot be shared by processes ({error}). Reschedule it to a "
                "period, a cron expression or dates."
            ) from error

    def rewind(self, task: str, now: datetime) -> Request:
        """The clock has stepped back to `now`: slots later than that were not handled. False when it is known."""
        return self._request(task, partial(tasks.rewind, now=now), _is_made)

    def count_viewers(self, task: str) -> None:
        """From now on ``Row.viewers`` says how many there are."""
        self._counted.add(task)

    def watch(self, task: str, viewers: int) -> None:
        """So many sessions of this process show the task."""
        self._records.watch(TASK, task, viewers)
        self._write(task, _as_it_is)

    def mark_stale(self, task: str, stale: bool) -> Request:
        """Whether this process is the first one that finds the value stale, or no longer so."""
        return self._request(task, partial(tasks.mark_stale, stale=stale), _is_made, tell=Tell.LATER)

    def forget(self, task: str) -> None:
        """Drop value, schedule and history of a task."""
        result = self._write(task, tasks.forget)
        if result.record is not None:
            self._values.take_in(result.record)

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
    ) -> Request:
        """
        Compare and set: the claim of a task, unless another run holds it or `mark` was handled before.

        A Claim or a Refusal comes of it. `mark` is None for a run on request; with `first` a value that is there by now
        refuses it, too.
        """
        apply = partial(
            tasks.claim, me=self._records.me, server=self._server, task=task, run_id=run_id, now=now, key=key,
            mark=mark, wave=wave, first=first, unreadable=self._values.unreadable(task),
        )  # fmt: skip
        return self._request(task, apply, partial(self._claimed, task, run_id, key, wave))

    def _claimed(
        self, task: str, run_id: str, key: datetime | str | None, wave: datetime | None, result: Result
    ) -> Claim | Refusal:
        if result.record is None:
            # Whoever handled it may have published just now: the caller sees that value, too.
            with suppress(ScheduleError):  # it comes later
                if self._records.blocking and (record := self._records.read(TASK, task)) is not None:
                    self._values.followed(record)
            assert result.refusal is not None
            return result.refusal
        return Claim(task, run_id, result.record.state.fence, 1, key, wave, result.record.state.version)

    def publish(
        self, value: Any, *, now: datetime, duration: float | None = None, claim: Claim, final: bool = True
    ) -> Request:
        """
        A new version of the value; its entry comes of it, or RunFenced when `claim` is no longer the task's own.

        Raises
        ------
        ValueRefused
            When the value is not data, or cannot be shared by processes; the old one stays.
        RunFenced
        """
        self._require(claim)
        change, published = self._values.change(
            TASK, claim.task, value, now=now, duration=duration, claim=claim, final=final
        )
        return self._asked(change, partial(self._held, claim.task, published), Tell.NOW)

    def finalize(self, claim: Claim) -> Request:
        """The last value that the claim's run has published was its final one; its entry comes of it, or RunFenced."""
        self._require(claim)
        apply = partial(tasks.finalize, claim=claim, me=self._records.me)
        answer = partial(self._held, claim.task, self._finalized)
        return self._request(claim.task, apply, answer, tell=Tell.NOW)

    def _finalized(self, result: Result) -> Entry | None:
        assert result.record is not None
        self._values.take_in(result.record)
        return self._values.known(TASK, result.record.name)

    def succeed(self, publish: Request, claim: Claim, run: RunRecord, version: int = 0) -> Request:
        """
        It publishes, or finalizes, so; with that the run of the claim is over, and in the history.

        `version` is the sum of the upstream's versions that it has seen.
        """
        apply = partial(
            tasks.succeed, publish=publish.change.apply, claim=claim, run=as_stored(run), version=version
        )  # fmt: skip
        answer = partial(self._released, claim, publish.answer)
        space, name, _, parts, what = publish.change
        return Request(Change(space, name, apply, parts, what), answer, publish.tell)

    def _require(self, claim: Claim) -> None:
        if claim in self._voided:
            raise _fenced(claim.task)

    def _held(self, task: str, answer: Callable[[Result], Any], result: Result) -> Any:
        if result.record is None:
            raise _fenced(task)
        return answer(result)

    def advance(self, claim: Claim, version: int) -> Request:
        """The run that has the claim is going to see these versions of its upstream, too."""
        return self._request(claim.task, partial(tasks.advance, claim=claim, version=version))

    def progress(self, claim: Claim, percent: int, message: str) -> Request:
        """Tell the other processes how far the run has come."""
        message = storable(message)
        return self._request(claim.task, partial(tasks.progress, claim=claim, percent=percent, message=message))

    def fence(self, claim: Claim) -> Claim:
        """Let nothing more be published under the claim; the one returned holds the task until its release. At once."""
        # Only this process can publish under it, so that only this process has to know.
        self._voided.add(claim)
        return claim

    def release(self, claim: Claim) -> Request:
        """Give the claim back. Harmless when it was lost before."""
        return self._request(claim.task, partial(tasks.release, claim=claim), partial(self._released, claim, _nothing))

    def _released(self, claim: Claim | None, answer: Callable[[Result], Any], result: Result) -> Any:
        if claim is not None:
            self._voided.discard(claim)
        return answer(result)

    def hand_over(self, claim: Claim) -> Request:
        """Let another process finish the run, now or when one starts."""
        return self._request(claim.task, partial(tasks.hand_over, claim=claim))

    def take_over(self, task: str, now: datetime, left: Holder | None = None) -> Request:
        """
        The claim of a run whose process is gone; `left` is what is known of it there.

        The record of its crash comes of it, when it has cost one process too many; None when it had ended, or is had by
        another.
        """
        run = None if left is None else (left.run_id, left.attempt)
        apply = partial(tasks.take_over, me=self._records.me, alive=self._records.alive, now=now, left=run)
        return self._request(task, apply, partial(self._taken_over, task))

    def _taken_over(self, task: str, result: Result) -> Claim | RunRecord | None:
        if result.record is None:
            return None
        if result.record.owner != self._records.me:
            crashed = result.logged is not None and result.logged.state is RunState.CRASHED
            return result.logged if crashed else None
        state: TaskState = result.record.state
        return Claim(task, state.run_id, state.fence, state.attempt, state.key, state.wave, state.version)

    def request(self, task: str, id: str) -> Refusal | None:
        """
        Ask for a run, of whichever process has the task, now or when one starts.

        HELD where one is under way, or was asked for before; ABSENT where nobody has scheduled the task.
        """
        return self._write(task, partial(tasks.request, id=id), tell=Tell.NOW).refusal

    def cancel(self, task: str, run_id: str) -> Request:
        """Ask the process of a run to cancel it."""
        return self._request(task, partial(tasks.cancel, run_id=run_id))

    # ------------------------------------------------------------ what becomes of slots

    def record(
        self,
        task: str,
        record: RunRecord,
        mark: Mark | None = None,
        claim: Claim | None = None,
        release: bool = False,
    ) -> Request:
        """
        Add to the history; a skipped stretch that goes on becomes longer instead.

        Whether there is a new record comes of it; None when it was refused. With `mark` only if that was not handled
        before, which it is then; under a `claim` only if that was not lost to another process, and with `release` it is
        given back.
        """
        apply = partial(tasks.note, task=task, run=as_stored(record), mark=mark, claim=claim, release=release)
        return self._request(task, apply, partial(self._released, claim if release else None, _is_logged))


def _as_it_is(record: Record | None, revision: int) -> Record | Refusal:
    return record if record is not None else Refusal.ABSENT


def _nothing(result: Result) -> None:
    pass


def _is_made(result: Result) -> bool:
    return result.record is not None


def _is_logged(result: Result) -> bool | None:
    return None if result.refusal is not None else result.logged is not None


def _fenced(task: str) -> RunFenced:
    """The error of a run whose claim is another one's by now."""
    return RunFenced(
        f"Task {task!r}: the run lost its claim before it published; its value is dropped. "
        "It was cancelled, replaced or timed out, or its process was taken for dead: give the task a longer timeout "
        "or period."
    )
