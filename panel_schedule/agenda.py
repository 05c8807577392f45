"""When each task runs: first runs, slots that are due, slots that are skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Protocol

from .clock import Clock
from .errors import RunSkipped
from .lanes import Lane, Waves
from .planner import STEP_BACK, TICK, Action, Due, Stretch, decide, due, last_slot, stepped_back
from .run import Run, RunRecord, RunState
from .runner import Runner
from .stores.base import Store
from .task import FirstRun, Task, WhenIdle
from .timers import Timers

log = logging.getLogger("panel_schedule")

# A date callable that raised is asked again after this many seconds.
ASK_AGAIN = 30.0


class Desk(Protocol):
    """What the agenda finds at the scheduler's."""

    clock: Clock
    store: Store
    lanes: dict[str, Lane]
    timers: Timers
    waves: Waves
    runner: Runner

    def exhaust(self, task: Task[Any]) -> None: ...
    def defer(self, call: Callable[[], object]) -> None: ...


class Agenda:
    """The part of the scheduler that knows the clocks; under its lock. The planner decides, this carries out."""

    def __init__(self, desk: Desk):
        self._s = desk
        self._due: list[Lane] = []
        self._came = self._due.append  # bound once: each armed timer holds it
        self._seen = desk.clock.now()

    def enter(self, lanes: Iterable[Lane], again: bool = False) -> None:
        """First runs, of all lanes before any starts: each must see whom it waits for."""
        now = self._seen = self._s.clock.now()
        first = [lane for lane in lanes if not lane.removed and self._first_run(lane, now, again)]
        for lane in first:
            assert lane.run is not None
            self._s.runner.start(lane, lane.run)

    def _first_run(self, lane: Lane, now: datetime, again: bool) -> bool:
        policy, fingerprint = lane.task.policy, lane.task.policy.trigger.fingerprint
        row = self._s.store.row(lane.task.name)
        if row is None or row.fingerprint != fingerprint:
            if row is not None and row.override is not None:
                log.warning(
                    "Task %r: its reschedule (%s) gives way, because the schedule in the code has changed to %s.",
                    lane.task.name, row.override, policy.trigger,
                )  # fmt: skip
            # An appointment made before the clocks started, in a setup script, can be missed already.
            seen = now if again else policy.given or now
            row = self._s.store.amend(
                lane.task.name, fingerprint=fingerprint, first_seen=seen, last_slot=None, override=None
            )
        if lane.trigger is not (row.override or policy.trigger):
            lane.trigger, lane.depends = row.override or policy.trigger, None
            self._s.waves.follow(lane, lane.upstream)
        lane.paused = row.paused
        since = max(filter(None, (row.first_seen, row.last_slot)))
        if policy.start is not None and policy.start > since:
            since = policy.start - TICK
        self._advance(lane, since)
        wanted = policy.first_run is not FirstRun.SKIP and not lane.paused and (again or lane.task.entry is None)
        if lane.clockless:
            versions = [upstream.entry.version for upstream in lane.upstream if upstream.entry is not None]
            if wanted and versions:
                self._s.runner.trigger(lane, f"version {versions[0]}", now)
            return False
        self._s.runner.judge(lane)
        if not wanted:
            return False
        if lane.run is not None:
            self._s.runner.queue(lane, self._s.runner.new(lane, f"first {now.isoformat()}", now))
            return False
        slot = None if again or lane.next is None else last_slot(lane.trigger, now)
        lane.run = self._s.runner.new(lane, slot or f"first {now.isoformat()}", now)
        return True

    def plan(self, now: datetime) -> None:
        """Decide what becomes of the slots that have come."""
        lanes, starting = self._due.copy(), []
        self._due.clear()  # in place: armed timers append to it
        for lane in lanes:
            failed = False
            try:
                pending = due(lane.trigger, lane.next, now)
            except Exception:
                # It is the slot after this one that is not known.
                assert lane.next is not None
                pending, failed = Due(lane.next, lane.next, None), True
                self._ask_later(lane)
            if pending is None:
                self.arm(lane, lane.next)
                continue
            policy = lane.task.policy
            lane.missed += 1 if pending.first == pending.latest else 2
            decision = decide(
                pending,
                now,
                overlap=policy.overlap,
                catch_up=policy.catch_up,
                paused=lane.paused,
                idle=policy.when_idle is WhenIdle.SKIP and lane.viewers == 0,
                busy=lane.busy,
                trigger=lane.trigger,
            )
            if not failed:
                self.arm(lane, pending.upcoming)
            if decision.skipped is not None:
                self._skip(lane, decision.skipped)
            if decision.action is Action.RUN:
                lane.run = self._s.runner.new(lane, decision.slot, decision.slot)
                starting.append(lane)
            elif decision.action is not Action.SKIP:
                self._s.runner.queue(lane, self._s.runner.new(lane, decision.slot, decision.slot))
                if decision.action is Action.REPLACE and lane.run is not None:
                    self._s.runner.cancel(lane, lane.run, "replaced")
            if lane.missed > 1 or lane.stale:
                self._s.runner.judge(lane)
        for lane in starting:
            if lane.run is not None:
                self._s.runner.start(lane, lane.run)

    def _advance(self, lane: Lane, since: datetime) -> None:
        try:
            slot = lane.trigger.next_after(since)
        except Exception:
            self._ask_later(lane)
        else:
            self.arm(lane, slot)

    def _ask_later(self, lane: Lane) -> None:
        log.exception(
            "Task %r: the function given as at= failed; it is asked again in %g s.", lane.task.name, ASK_AGAIN
        )
        self._s.timers.cancel(lane.slot_timer)
        lane.next, lane.slot_timer = None, self._s.timers.after(ASK_AGAIN, self._ask_again, lane)

    def _ask_again(self, lane: Lane) -> None:
        self._advance(lane, self._s.clock.now())

    def arm(self, lane: Lane, slot: datetime | None) -> None:
        """Set the timer of the next slot; None for none."""
        self._s.timers.cancel(lane.slot_timer)
        lane.next, lane.slot_timer = slot, None
        if slot is not None:
            lane.slot_timer = self._s.timers.at(slot, self._came, lane)
        elif lane.task.policy.forget:
            self._s.defer(lambda: self._s.exhaust(lane.task))

    def _skip(self, lane: Lane, stretch: Stretch) -> None:
        """Record a stretch of skipped slots; one that goes on becomes longer instead."""
        self._s.store.amend(lane.task.name, last_slot=stretch.last)
        before = lane.skipped
        goes_on = before is not None and before.reason == stretch.reason
        record = RunRecord(
            id=before.id if goes_on and before else f"skipped-{stretch.first.isoformat()}",
            key=before.key if goes_on and before else stretch.first,
            state=RunState.SKIPPED,
            finished_at=self._s.clock.now(),
            reason=stretch.reason,
            until=stretch.last,
        )
        self._s.store.record(lane.task.name, record, replaces=before if goes_on else None)
        lane.skipped = record
        if not goes_on:
            run = Run(lane.task.name, stretch.first, self._s.clock.now())
            run.reason, run.until = stretch.reason, stretch.last
            run.end(RunState.SKIPPED, self._s.clock.now(), RunSkipped(f"Task {run.task!r}: {stretch.reason}."))
            self._s.defer(run.resolve)
            self._s.runner.emit("skipped", lane.task, run)

    def look(self, now: datetime, monotonic: float) -> None:
        """Follow the steps of the wall clock (invariant 7)."""
        self._s.timers.look(now, monotonic)
        before, self._seen = self._seen, now
        if before - now <= STEP_BACK:
            return
        for lane in self._s.lanes.values():
            row = self._s.store.row(lane.task.name)
            reset = stepped_back(max(filter(None, (row.first_seen, row.last_slot))), before, now) if row else None
            if reset is None or lane.next is None:
                continue
            self._s.store.amend(lane.task.name, last_slot=None, first_seen=reset)
            self._advance(lane, reset)
            self._s.store.record(
                lane.task.name,
                RunRecord(f"clock-{now.isoformat()}", now, RunState.SKIPPED, reason="clock stepped back", until=before),
            )
        log.warning("The clock stepped back by %.0f s, to %s.", (before - now).total_seconds(), now.isoformat())
