"""When each task runs: first runs, slots that are due, slots that are skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from ..clock import Clock
from ..engine.outbox import Outbox
from ..engine.timers import Timers
from ..errors import RunSkipped, is_interrupt
from ..functions.run import Run, RunRecord, RunState
from ..functions.task import FirstRun, Task, WhenIdle
from ..stores.base import DATES, Claim, Plan, Refusal, Row, Store
from .execution import Execution
from .follower import Follower
from .hooks import Hooks
from .planner import STEP_BACK, TICK, Action, Due, Stretch, decide, due, last_slot
from .state import TaskState, Waves

log = logging.getLogger("panel_schedule")

# A date callable that raised is asked again after this many seconds.
ASK_AGAIN = 30.0


class Desk(Protocol):
    """What the slots finds at the scheduler's."""

    clock: Clock
    store: Store
    lanes: dict[str, TaskState]
    timers: Timers
    waves: Waves
    execution: Execution
    hooks: Hooks
    outbox: Outbox
    follower: Follower

    def exhaust(self, task: Task[Any]) -> None: ...
    def defer(self, call: Callable[[], object]) -> None: ...


class Slots:
    """The part of the scheduler that knows the clocks; under its lock. The planner decides, this carries out."""

    def __init__(self, desk: Desk):
        self._s = desk
        self._due: list[TaskState] = []
        self._came = self._due.append  # bound once: each armed timer holds it
        self._seen = desk.clock.now()

    def enter(self, lanes: Iterable[TaskState], again: bool = False, late: bool = False) -> None:
        """Take tasks in: what the store knows of them, their first runs, their next slots."""
        now = self._seen = self._s.clock.now()
        entering, plans = [], []
        for lane in lanes:
            if not lane.removed:
                entering.append(lane)
                name, policy = lane.task.name, lane.task.policy
                # An appointment made before the clocks started, in a setup script, can be missed already.
                plans.append(Plan(name, policy.trigger, now if again else policy.given or now))
        enroll = partial(self._s.store.enroll, plans, again=again, late=late)
        self._s.outbox.ask(entering, enroll, partial(self._entered, entering, again))

    def _entered(self, lanes: list[TaskState], again: bool, rows: dict[str, Row]) -> None:
        """First runs, of all lanes before any starts: each must see whom it waits for."""
        now, first = self._s.clock.now(), []
        for lane in lanes:
            name = lane.task.name
            if self._s.lanes.get(name) is lane and not lane.removed and self._first_run(lane, rows[name], now, again):
                first.append(lane)
        for lane in first:
            if lane.run is not None:
                self._s.execution.start(lane, lane.run)
        if self._s.store.blocking:
            for lane in lanes:
                if self._s.lanes.get(lane.task.name) is lane:
                    self._s.follower.follow(lane, rows[lane.task.name])

    def _first_run(self, lane: TaskState, row: Row, now: datetime, again: bool) -> bool:
        policy = lane.task.policy
        if row.gave_way is not None:
            log.warning(
                "Task %r: its reschedule (%s) gives way, because the schedule in the code has changed to %s.",
                lane.task.name, row.gave_way, policy.trigger,
            )  # fmt: skip
        if row.forgotten or row.removed:
            return False
        self._s.follower.reschedule(lane, row.override, row.trigger or policy.trigger)
        lane.paused, lane.error, lane.stale = row.paused, row.error or lane.error, row.stale or lane.stale
        lane.fault = lane.stale  # until it is judged here
        self.advance(lane, self._since(lane, row))
        wanted = policy.first_run is not FirstRun.SKIP and not lane.paused and (again or lane.task.known is None)
        self._s.hooks.judge(lane)
        if lane.clockless:
            version = sum(upstream.known.version for upstream in lane.upstream if upstream.known is not None)
            # Also where its upstream had a new value, and whoever was to follow it died.
            missed = not lane.paused and lane.task.known is not None and 0 < row.last_version < version
            if (wanted and version) or missed:
                self._s.execution.trigger(lane, now)
            return False
        if not wanted:
            return False
        if lane.run is not None:
            self._s.execution.queue(lane, self._s.execution.new(lane, f"first {now.isoformat()}", now))
            return False
        slot = None if again or lane.next is None else last_slot(lane.trigger, now)
        lane.run = self._s.execution.new(lane, slot or f"first {now.isoformat()}", now, slot)
        lane.run.first = not again
        return True

    def plan(self, now: datetime) -> None:
        """Decide what becomes of the slots that have come."""
        lanes, starting = self._due.copy(), []
        self._due.clear()  # in place: armed timers append to it
        for lane in lanes:
            failed = False
            try:
                pending = due(lane.trigger, lane.next, now)
            except BaseException as error:
                if is_interrupt(error):
                    raise
                # It is the slot after this one that is not known.
                assert lane.next is not None
                pending, failed = Due(lane.next, lane.next, None), True
                self._ask_later(lane)
            if pending is None:
                self.arm(lane, lane.next)
                continue
            policy = lane.task.policy
            lane.missed += self._without_value(lane, pending)
            decision = decide(
                pending,
                now,
                overlap=policy.overlap,
                catch_up=policy.catch_up,
                paused=lane.paused,
                idle=policy.when_idle is WhenIdle.SKIP and lane.viewers + lane.elsewhere == 0,
                busy=lane.busy,
                trigger=lane.trigger,
            )
            if not failed:
                self.arm(lane, pending.upcoming)
            # What becomes of earlier slots is told in their order: the store forgets none that it has heard of later.
            if decision.action is Action.SKIP and lane.queued is not None and lane.queued.mark is not None:
                waiting, lane.queued = lane.queued, None
                self._s.execution.drop(lane, waiting, decision.skipped.reason if decision.skipped else "")
            if decision.action in (Action.QUEUE, Action.REPLACE):
                self._s.execution.queue(lane, self._s.execution.new(lane, decision.slot, decision.slot, decision.slot))
            if decision.skipped is not None:
                self._skip(lane, decision.skipped)
            if decision.action is Action.RUN:
                lane.run = self._s.execution.new(lane, decision.slot, decision.slot, decision.slot)
                starting.append(lane)
            elif decision.action is Action.REPLACE and lane.run is not None:
                self._s.execution.cancel(lane, lane.run, "replaced")
            if lane.missed > 1 or lane.stale:
                self._s.hooks.judge(lane)
        for lane in starting:
            if lane.run is not None:
                self._s.execution.start(lane, lane.run)

    def _without_value(self, lane: TaskState, pending: Due) -> int:
        """How many slots, up to 2, no value has come for; another process may have been quicker."""
        wave = lane.task.known.wave if lane.task.known is not None else None
        slots = [pending.latest] if pending.first == pending.latest else [pending.first, pending.latest]
        return sum(1 for slot in slots if wave is None or slot > wave)

    def advance(self, lane: TaskState, since: datetime) -> None:
        if self._s.store.blocking and lane.computed and lane.dates is None:
            self.elect(lane)
            return
        try:
            slot = lane.trigger.next_after(since)
        except BaseException as error:
            if is_interrupt(error):
                raise
            self._ask_later(lane)
        else:
            self.arm(lane, slot)

    def elect(self, lane: TaskState) -> None:
        """One process asks the function for its dates; when that process is gone another one does."""
        if lane.dates is None and not lane.removed:
            self._s.outbox.ask([lane], partial(self._stand, lane.task.name), partial(self._elected, lane))

    def _stand(self, task: str) -> tuple[Claim | RunRecord | Refusal, Row | None]:
        store, now, name = self._s.store, self._s.clock.now(), DATES + task
        row = store.row(name)
        answer: Claim | RunRecord | Refusal = store.claim(name, f"dates {now.isoformat()}", now=now)
        if row is not None and row.holder is not None and row.holder.orphan:
            answer = store.take_over(name, now) or answer
        if isinstance(answer, RunRecord):  # it has been taken over before, and is free now
            answer = store.claim(name, f"dates {now.isoformat()}", now=now)
        return answer, store.row(task)

    def _elected(self, lane: TaskState, answer: tuple[Claim | RunRecord | Refusal, Row | None]) -> None:
        claim, row = answer
        if isinstance(claim, Claim) and lane.dates is None:
            lane.dates = claim
            if row is None or lane.removed or self._s.lanes.get(lane.task.name) is not lane:
                self.resign(lane)
            else:
                self.advance(lane, self._since(lane, row))

    def resign(self, lane: TaskState) -> None:
        """Let another process ask for the dates."""
        if lane.dates is not None:
            self._s.outbox.ask([lane], partial(self._s.store.release, lane.dates))
            lane.dates = None

    def _ask_later(self, lane: TaskState) -> None:
        log.exception(
            "Task %r: the function given as at= failed; it is asked again in %g s.", lane.task.name, ASK_AGAIN
        )
        self._s.timers.cancel(lane.slot_timer)
        lane.next, lane.slot_timer = None, self._s.timers.after(ASK_AGAIN, self._ask_again, lane)

    def _ask_again(self, lane: TaskState) -> None:
        self.advance(lane, self._s.clock.now())

    def arm(self, lane: TaskState, slot: datetime | None) -> None:
        """Set the timer of the next slot; None for none."""
        self._s.timers.cancel(lane.slot_timer)
        lane.next, lane.slot_timer = slot, None
        if slot is not None:
            lane.slot_timer = self._s.timers.at(slot, self._came, lane)
        elif lane.task.policy.forget:
            self._s.defer(lambda: self._s.exhaust(lane.task))

    def _skip(self, lane: TaskState, stretch: Stretch) -> None:
        """Record a stretch of skipped slots."""
        run = Run(lane.task.name, stretch.first, self._s.clock.now())
        run.reason, run.until = stretch.reason, stretch.last
        run.end(RunState.SKIPPED, run.queued_at, RunSkipped(f"Task {run.task!r}: {stretch.reason}."))
        self._s.defer(run.resolve)
        self._s.execution.note(lane, run, stretch.last, partial(self._s.hooks.skipped, lane, run))

    def look(self, now: datetime, monotonic: float) -> None:
        """Follow the steps of the wall clock (invariant 7)."""
        self._s.timers.look(now, monotonic)
        before, self._seen = self._seen, now
        if before - now <= STEP_BACK:
            return
        for lane in self._s.lanes.values():
            # What was handled at a time that is still to come is to be handled again.
            record = RunRecord(
                f"clock-{now.isoformat()}", now, RunState.SKIPPED, reason="clock stepped back", until=before
            )
            rewind = partial(self._rewind, lane.task.name, now, record)
            self._s.outbox.ask([lane], rewind, partial(self._rewound, lane))
        log.warning("The clock stepped back by %.0f s, to %s.", (before - now).total_seconds(), now.isoformat())

    def _rewind(self, task: str, now: datetime, record: RunRecord) -> Row | None:
        if self._s.store.rewind(task, now):
            self._s.store.record(task, record)
        return self._s.store.row(task)

    def _rewound(self, lane: TaskState, row: Row | None) -> None:
        if lane.next is not None and row is not None and not lane.removed:
            self.advance(lane, self._since(lane, row))

    def _since(self, lane: TaskState, row: Row) -> datetime:
        """The slots later than this are still to be handled."""
        since, start = max(filter(None, (row.first_seen, row.last_slot))), lane.task.policy.start
        return start - TICK if start is not None and start > since else since
