"""When each task runs: first runs, slots that are due, slots that are skipped."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from ..coordination.record import Refusal
from ..coordination.tasks import Claim
from ..engine.service import Service
from ..errors import RunSkipped, TriggerError, is_interrupt
from ..functions.run import Cause, Run, RunRecord, RunState
from ..functions.task import FirstRun, Task
from ..serialize.errors import bare, first_line
from ..stores.tasks import DATES, Plan, Row
from ..triggers import Schedule
from ..triggers.cron import TICK
from .health import Health
from .planner import STEP_BACK, Action, Due, Stretch, decide, due, last_slot
from .runs import Runs
from .state import TaskState, Waves

log = logging.getLogger("panel_schedule")

# A date callable that raised is asked again after this many seconds.
ASK_AGAIN = 30.0

# So many seconds, and up to twice as many, a process gives the one that had a task last for claiming its slot: not all
# at the same time, so that one of many that wait is heard of by the others.
MOMENT = 0.25

# How often, in seconds, a process looks whether the newer code is gone whose schedule it has taken over.
VERSIONS = 30.0


def _moment() -> float:
    return MOMENT * (1 + random.random())


class Slots:
    """
    When each task runs; under the lock. The planner decides, this carries out.

    Parameters
    ----------
    service : Service
    states : dict
    waves : Waves
    runs : Runs
    health : Health
    exhausted : callable
        ``exhausted(task)`` when a task that is to be forgotten has no date left.

    Attributes
    ----------
    entered : callable
        ``entered(state, row)`` when a task has come in, with what a shared store says of it.
    """

    def __init__(
        self,
        service: Service,
        states: dict[str, TaskState],
        waves: Waves,
        runs: Runs,
        health: Health,
        exhausted: Callable[[Task[Any]], object],
    ):
        self._service = service
        self._states = states
        self._waves = waves
        self._runs = runs
        self._health = health
        self._exhausted = exhausted
        self.entered: Callable[[TaskState, Row], object]
        self._due: list[TaskState] = []
        self._came = self._due.append  # bound once: each armed timer holds it
        self._seen = service.clock.now()

    def enter(self, states: Iterable[TaskState], again: bool = False, late: bool = False) -> None:
        """Take tasks in: what the store knows of them, their first runs, their next slots."""
        now = self._seen = self._service.clock.now()
        entering, plans = [], []
        for state in states:
            if not state.removed:
                entering.append(state)
                name, policy = state.task.name, state.task.policy
                # An appointment made before the clocks started, in a setup script, can be missed already.
                given = now if again else policy.given or now
                plans.append(Plan(name, policy.trigger, given, policy.stale_after))
        enroll = partial(self._service.store.tasks.enroll, plans, again=again, late=late)
        self._service.outbox.ask(entering, enroll, partial(self._entered, entering, again))

    def _entered(self, states: list[TaskState], again: bool, rows: dict[str, Row]) -> None:
        """First runs, of all states before any starts: each must see whom it waits for."""
        if self._service.stopping:  # meanwhile: what would begin now would find the store closed
            return
        now, first = self._service.clock.now(), []
        for state in states:
            name = state.task.name
            if self._states.get(name) is state and not state.removed and self._first_run(state, rows[name], now, again):
                first.append(state)
        for state in first:
            if state.run is not None:
                self._runs.start(state, state.run)
        if self._service.store.blocking:
            for state in states:
                if self._states.get(state.task.name) is state:
                    self.entered(state, rows[state.task.name])

    def _first_run(self, state: TaskState, row: Row, now: datetime, again: bool) -> bool:
        policy = state.task.policy
        if row.gave_way is not None:
            log.warning(
                "Task %r: its reschedule (%s) gives way, because the schedule in the code has changed to %s.",
                state.task.name, row.gave_way, policy.trigger,
            )  # fmt: skip
        if row.forgotten or row.removed:
            return False
        self._order(state, row)
        self.schedule(state, row)
        state.paused, state.error, state.stale = row.paused, row.error or state.error, row.stale or state.stale
        state.fault = state.stale  # until it is judged here
        self.advance(state, self._since(state, row))
        wanted = policy.first_run is not FirstRun.SKIP and not state.paused and (again or state.task.known is None)
        self._health.judge(state)
        if state.clockless:
            version = self._runs.upstream_version(state)
            # Also where its upstream had a new value, and whoever was to follow it died.
            missed = not state.paused and state.task.known is not None and 0 < row.last_version < version
            if (wanted and version) or missed:
                self._runs.trigger(state, now)
            return False
        if not wanted:
            return False
        if state.run is not None:
            self._runs.queue(state, self._runs.new(state, f"first {now.isoformat()}", now))
            return False
        slot = None if again or state.next is None else self._latest(state, now)
        state.run = self._runs.new(state, slot or f"first {now.isoformat()}", now, slot)
        state.run.first = not again
        return True

    def plan(self, now: datetime) -> None:
        """Decide what becomes of the slots that have come."""
        states, starting = self._due.copy(), []
        self._due.clear()  # in place: armed timers append to it
        for state in states:
            failed = False
            try:
                pending = due(state.trigger, state.next, now)
            except BaseException as error:
                if is_interrupt(error):
                    raise
                # It is the slot after this one that is not known.
                assert state.next is not None
                pending, failed = Due(state.next, state.next, None), True
                self._fail(state, error)
            if pending is None:
                self.arm(state, state.next)
                continue
            if state.handled is not None and state.handled >= pending.latest:
                if not failed:
                    self._leave(state, pending)
                continue
            policy = state.task.policy
            state.missed += self._without_value(state, pending)
            choose = partial(
                decide,
                pending,
                now,
                overlap=policy.overlap,
                catch_up=policy.catch_up,
                grace=policy.misfire_grace,
                late_by=policy.late_by(state.task.name, pending.latest),
                paused=state.paused,
                idle=state.rests,
                busy=state.busy,
            )
            try:
                decision = choose(trigger=state.trigger)
            except TriggerError:
                decision = choose()
            state.goes_first = state.goes_first or decision.action is Action.RUN  # until another one is quicker
            if not failed:
                self.arm(state, pending.upcoming)
            # What becomes of earlier slots is told in their order: the store forgets none that it has heard of later.
            if decision.action is Action.SKIP and state.queued is not None and state.queued.on_occasion:
                waiting, state.queued = state.queued, None
                self._runs.drop(state, waiting, decision.skipped.reason if decision.skipped else "")
            if decision.action in (Action.QUEUE, Action.REPLACE):
                self._runs.queue(state, self._runs.new(state, decision.slot, decision.slot, decision.slot))
            if decision.skipped is not None:
                self._skip(state, decision.skipped)
            if decision.action is Action.RUN:
                state.run = self._runs.new(state, decision.slot, decision.slot, decision.slot)
                starting.append(state)
            elif decision.action is Action.REPLACE and state.run is not None:
                self._runs.cancel(state, state.run, Cause.REPLACED)
            if state.missed > 1 or state.stale:
                self._health.judge(state)
        for state in starting:
            if state.run is not None:
                self._runs.start(state, state.run)

    # ------------------------------------------------------------ who goes first

    def follow(self, state: TaskState, row: Row) -> None:
        """Leave to other processes what they have claimed, and let the one go first that has claimed it last."""
        before = state.goes_first
        self._order(state, row)
        if state.awaited is not None and state.version >= self._runs.upstream_version(state):
            self._expect_nothing(state)
            if state.rests:
                self._runs.rest(state)
        if state.next is None:
            return
        if state.handled is not None and state.handled >= state.next:
            # By a clock that is ahead of this one it can have come before its time here: then it is left when it comes.
            pending = None if state.computed else self._pending(state)
            if pending is not None and state.handled >= pending.latest:
                self._leave(state, pending)
                return
        if state.goes_first != before:
            self.arm(state, state.next)

    def _pending(self, state: TaskState) -> Due | None:
        try:
            return due(state.trigger, state.next, self._service.clock.now())
        except TriggerError:  # which is told when the slot comes
            return None

    def _order(self, state: TaskState, row: Row) -> None:
        state.goes_first, state.handled, state.version = row.goes_first, row.last_slot, row.last_version

    def _leave(self, state: TaskState, pending: Due) -> None:
        """Another process has these slots."""
        state.missed += self._without_value(state, pending)
        self.arm(state, pending.upcoming)
        if state.missed > 1 or state.stale:
            self._health.judge(state)

    def expect(self, state: TaskState, wave: datetime) -> None:
        """Its upstream has a new value, by another process, which claims the run that follows, too, unless it died."""
        if any(run is not None and run.state is RunState.QUEUED for run in (state.run, state.queued)):
            self._runs.trigger(state, wave)  # it sees this value, too
            return
        if state.awaited is None and not state.removed:
            state.awaiting = self._service.timers.after(_moment(), self._overdue, state)
        state.awaited = wave

    def _overdue(self, state: TaskState) -> None:
        wave, handled = state.awaited, state.version >= self._runs.upstream_version(state)
        self._expect_nothing(state)
        if wave is not None and not handled:
            self._runs.trigger(state, wave)

    def _expect_nothing(self, state: TaskState) -> None:
        self._service.timers.cancel(state.awaiting)
        state.awaited = state.awaiting = None

    # ------------------------------------------------------------ slots that are due

    def _without_value(self, state: TaskState, pending: Due) -> int:
        """How many slots, up to 2, no value has come for; another process may have been quicker."""
        wave = state.task.known.wave if state.task.known is not None else None
        first, latest, _ = pending
        return (wave is None or latest > wave) + (first < latest and (wave is None or first > wave))

    def advance(self, state: TaskState, since: datetime) -> None:
        if self._service.store.blocking and state.computed and state.dates is None:
            self.elect(state)
            return
        try:
            slot = state.trigger.next_after(since)
        except BaseException as error:
            if is_interrupt(error):
                raise
            self._fail(state, error)
        else:
            self.arm(state, slot)

    def schedule(self, state: TaskState, row: Row) -> None:
        """Put the schedule into force that the task has in the store."""
        own = state.task.policy.trigger
        state.base, state.override = row.trigger or own, row.override
        self._follow_version(state, row, own)
        trigger = state.override or state.base
        if trigger is state.trigger or trigger.fingerprint == state.trigger.fingerprint:
            return
        state.trigger, state.depends = trigger, None
        self._waves.follow(state, state.upstream)
        self.arm_anew(state)

    def _follow_version(self, state: TaskState, row: Row, own: Schedule) -> None:
        """During a rolling update the newer code's schedule holds; when its processes are gone, the one here."""
        if row.foreign and state.outdated is None and self._service.begun:
            log.warning(
                "Task %r: a newer version of the code is in use, and its schedule (%s) holds; here it is %s.",
                state.task.name, state.base, own,
            )  # fmt: skip
            state.outdated = self._service.timers.after(VERSIONS, self._enroll_again, state)
        elif not row.foreign and state.outdated is not None:
            self._service.timers.cancel(state.outdated)
            state.outdated = None

    def _enroll_again(self, state: TaskState) -> None:
        if state.removed or self._states.get(state.task.name) is not state:
            return
        state.outdated = self._service.timers.after(VERSIONS, self._enroll_again, state)
        name, enroll = state.task.name, self._service.store.tasks.enroll
        policy = state.task.policy
        plan = Plan(name, policy.trigger, self._service.clock.now(), policy.stale_after)
        self._service.outbox.ask([state], partial(enroll, [plan]), lambda rows: self.entered(state, rows[name]))

    def arm_anew(self, state: TaskState) -> None:
        """It has got another schedule: its slots count from now."""
        if self._service.begun and not state.removed:
            self.advance(state, self._service.clock.now())

    def elect(self, state: TaskState) -> None:
        """One process asks the function for its dates; when that process is gone another one does."""
        if state.dates is None and not state.removed:
            self._service.outbox.ask([state], partial(self._stand, state.task.name), partial(self._elected, state))

    def _stand(self, task: str) -> tuple[Claim | RunRecord | Refusal, Row | None]:
        store, now, name = self._service.store, self._service.clock.now(), DATES + task
        tasks = store.tasks
        claim = tasks.claim(name, f"dates {now.isoformat()}", now=now)
        row = tasks.row(name)
        answer: Claim | RunRecord | Refusal = store.do(claim)
        if row is not None and row.holder is not None and row.holder.orphan:
            answer = store.do(tasks.take_over(name, now)) or answer
        if isinstance(answer, RunRecord):  # it has been taken over before, and is free now
            answer = store.do(claim)
        return answer, tasks.row(task)

    def _elected(self, state: TaskState, answer: tuple[Claim | RunRecord | Refusal, Row | None]) -> None:
        claim, row = answer
        if isinstance(claim, Claim) and state.dates is None:
            state.dates = claim
            if row is None or state.removed or self._states.get(state.task.name) is not state:
                self.resign(state)
            else:
                self.advance(state, self._since(state, row))

    def resign(self, state: TaskState) -> None:
        """Let another process ask for the dates."""
        if state.dates is not None:
            self._service.outbox.ask([state], self._service.store.tasks.release(state.dates))
            state.dates = None

    def _latest(self, state: TaskState, now: datetime) -> datetime | None:
        """The slot that a first run is for."""
        try:
            return last_slot(state.trigger, now)
        except TriggerError as error:
            self._fail(state, error)
            return None

    def _fail(self, state: TaskState, error: BaseException) -> None:
        """Nobody knows when it runs next. A function may know it later; a trigger is the same for ever."""
        self._service.timers.cancel(state.slot_timer)
        state.next = state.slot_timer = None
        if state.computed:
            self._ask_later(state)
        elif not state.broken:
            state.broken = first_line(error)
            log.error(
                "Task %r: its schedule failed, so it runs no more; other tasks do. It goes on with another schedule, "
                "by an edit of the code or task.reschedule(). %s", state.task.name, error,
                exc_info=bare(error.__cause__) if error.__cause__ is not None else None,
            )  # fmt: skip
            self._health.judge(state)
            self._health.touch(state)

    def _ask_later(self, state: TaskState) -> None:
        log.exception(
            "Task %r: the function given as at= failed; it is asked again in %g s.", state.task.name, ASK_AGAIN
        )
        state.slot_timer = self._service.timers.after(ASK_AGAIN, self._ask_again, state)

    def _ask_again(self, state: TaskState) -> None:
        self.advance(state, self._service.clock.now())

    def arm(self, state: TaskState, slot: datetime | None) -> None:
        """Set the timer of the next slot; None for none."""
        self._service.timers.cancel(state.slot_timer)
        state.next, state.slot_timer = slot, None
        if slot is not None:
            if state.broken:
                state.broken = ""
                self._health.judge(state)
            when = slot + state.task.policy.late_by(state.task.name, slot)
            if not state.goes_first:
                when += timedelta(seconds=_moment())
            state.slot_timer = self._service.timers.at(when, self._came, state)
        elif state.task.policy.forget and state.outdated is None:
            self._service.defer(lambda: self._exhausted(state.task))

    def _skip(self, state: TaskState, stretch: Stretch) -> None:
        """Record a stretch of skipped slots."""
        run = Run(state.task.name, stretch.first, self._service.clock.now())
        run.reason, run.until = stretch.reason, stretch.last
        run.end(RunState.SKIPPED, run.queued_at, RunSkipped(f"Task {run.task!r}: {stretch.reason}."))
        self._service.defer(run.resolve)
        self._runs.note(state, run, stretch.last, partial(self._health.skipped, state, run))

    def look(self, now: datetime, monotonic: float) -> None:
        """Follow the steps of the wall clock (invariant 7)."""
        self._service.timers.look(now, monotonic)
        before, self._seen = self._seen, now
        if before - now <= STEP_BACK:
            return
        for state in self._states.values():
            # What was handled at a time that is still to come is to be handled again, and what waits comes again.
            waiting = state.queued
            if waiting is not None and isinstance(waiting.mark, datetime) and waiting.mark > now:
                state.queued, waiting.mark = None, None
                self._runs.drop(state, waiting, Cause.CLOCK)
            record = RunRecord(f"clock-{now.isoformat()}", now, RunState.SKIPPED, reason=Cause.CLOCK, until=before)
            rewind = partial(self._rewind, state.task.name, now, record)
            self._service.outbox.ask([state], rewind, partial(self._rewound, state))
        log.warning("The clock stepped back by %.0f s, to %s.", (before - now).total_seconds(), now.isoformat())

    def _rewind(self, task: str, now: datetime, record: RunRecord) -> Row | None:
        store, tasks = self._service.store, self._service.store.tasks
        if store.do(tasks.rewind(task, now)):
            store.do(tasks.record(task, record))
        return tasks.row(task)

    def _rewound(self, state: TaskState, row: Row | None) -> None:
        if state.next is not None and row is not None and not state.removed:
            self.advance(state, self._since(state, row))

    def _since(self, state: TaskState, row: Row) -> datetime:
        """The slots later than this are still to be handled."""
        since, start = max(filter(None, (row.first_seen, row.last_slot))), state.task.policy.start
        return start - TICK if start is not None and start > since else since
