"""What the other processes do with the same tasks, and what this one makes of it."""

from __future__ import annotations

import logging
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from ..clock import Clock
from ..engine.lock import Locked
from ..engine.outbox import Outbox
from ..errors import RunCancelled, RunCrashed, RunError, RunFailed, RunTimedOut
from ..functions.run import Run, RunRecord, RunState
from ..functions.task import Overlap, Task
from ..stores.base import Claim, Holder, Refusal, Row, Store
from ..triggers import Trigger
from .execution import Execution
from .hooks import Hooks
from .state import TaskState, Waves

log = logging.getLogger("panel_schedule")

_ERRORS = {RunState.CANCELLED: RunCancelled, RunState.TIMED_OUT: RunTimedOut, RunState.CRASHED: RunCrashed}


class Slots(Protocol):
    """When each task runs."""

    def elect(self, lane: TaskState) -> None: ...


class Desk(Protocol):
    """What the follower find at the scheduler's."""

    clock: Clock
    store: Store
    lanes: dict[str, TaskState]
    waves: Waves
    execution: Execution
    hooks: Hooks
    slots: Slots
    outbox: Outbox
    locked: Locked
    begun: bool
    stopping: bool

    def touch(self, lane: TaskState) -> None: ...
    def lose(self, lane: TaskState) -> None: ...
    def remove(self, task: Task[Any], told: bool = False) -> None: ...
    def arm_anew(self, lane: TaskState) -> None: ...
    def promise(self, task: Task[Any]) -> tuple[datetime, datetime | None]: ...


class Follower:
    """The part of the scheduler that follows the rows of the store; under its lock."""

    def __init__(self, desk: Desk):
        self._s = desk

    def follow(self, lane: TaskState, row: Row | None) -> None:
        """Bring a lane in line with what the store says of its task."""
        if row is None:
            return
        if row.forgotten:
            self._s.lose(lane)
            return
        if row.removed and not lane.removed:
            self._s.remove(lane.task, told=True)
        self.reschedule(lane, row.override)
        if lane.computed and self._s.begun:
            self._s.slots.elect(lane)
        lane.elsewhere = row.viewers
        lane.paused = row.paused
        self._follow_run(lane, row)
        if lane.error != row.error:
            self._s.hooks.follow(lane, row.error)
            if self._s.begun:
                self._s.hooks.judge(lane)
        if row.cancelled and lane.run is not None and lane.run.id == row.cancelled:
            self._s.execution.cancel(lane, lane.run, "cancelled")
        self._s.touch(lane)

    def look(self, lane: TaskState, row: Row) -> Run | None:
        """Let a lane say what the store says, where no clocks run; the run of another process, if there is one."""
        task, now = lane.task, self._s.clock.now()
        if (row.removed or row.forgotten) and not lane.removed:
            self._s.remove(task, told=True)
        self.reschedule(lane, row.override, row.trigger or task.policy.trigger)
        lane.paused, lane.error = row.paused, row.error
        # Also when nobody is there to find it stale.
        until = self._s.promise(task)[1]
        failed = row.error != "" and task.policy.stale_after is None
        lane.stale = not lane.removed and (row.stale or failed or (until is not None and until < now))
        # The store has the schedule of a task only if clocks run, or have run, for it.
        scheduled = row.fingerprint != "" and not (lane.computed or lane.removed)
        lane.next = lane.trigger.next_after(max(now, task.policy.start or now)) if scheduled else None
        holder = row.holder
        if holder is None or holder.over or holder.orphan:
            return None
        run = self._mirror(lane, holder)
        run.report(holder.percent, holder.message)
        return run

    def reschedule(self, lane: TaskState, override: Trigger | None, base: Trigger | None = None) -> None:
        """Put a schedule into force that another process, or an earlier one, has given the task."""
        lane.base = base or lane.base
        trigger = override or lane.base
        lane.override = override
        if trigger is lane.trigger or trigger.fingerprint == lane.trigger.fingerprint:
            return
        lane.trigger, lane.depends = trigger, None
        self._s.waves.follow(lane, lane.upstream)
        self._s.arm_anew(lane)

    def _follow_run(self, lane: TaskState, row: Row) -> None:
        holder, ended = row.holder, None
        active = holder is not None and not holder.over
        lane.held = holder is not None
        if lane.remote is not None and not (active and holder is not None and holder.run_id == lane.remote.id):
            ended, lane.remote = lane.remote, None
        if holder is not None and holder.orphan:
            self._take_over(lane)
        elif holder is not None and active and lane.remote is None:
            lane.remote = self._mirror(lane, holder)
        if holder is not None and lane.remote is not None:
            lane.remote.report(holder.percent, holder.message)
        if ended is not None:
            self._end(lane, ended, row)
        if not active:
            joiners, lane.joiners = lane.joiners, ()
            for run in joiners:
                self._end(lane, run, row)
        if not lane.held and lane.run is None:
            self._s.execution.next(lane)

    def _mirror(self, lane: TaskState, holder: Holder) -> Run:
        """The run of another process, for those who look at it, wait for it or cancel it here."""
        run = Run(lane.task.name, holder.key, holder.started_at or self._s.clock.now(), holder.wave)
        run.id, run.attempt = holder.run_id, holder.attempt
        run.begin(run.queued_at)
        run._stop = partial(self._cancel_there, lane)
        return run

    def _cancel_there(self, lane: TaskState, run: Run, reason: str) -> None:
        with self._s.locked:
            if not run.state.final:
                self._s.outbox.ask([lane], partial(self._s.store.cancel, run.task, run.id))

    def _end(self, lane: TaskState, run: Run, row: Row) -> None:
        """It has ended there, so it ends here; its record is written already."""
        state = row.outcome or RunState.CANCELLED
        error: RunError | None = None
        if state is not RunState.SUCCEEDED:
            kind = _ERRORS.get(state, RunFailed)
            error = kind(f"Task {run.task!r}: the run {state.replace('_', ' ')} in another process. {row.error}")
        run.end(state, self._s.clock.now(), error)
        self._s.execution.resolve(lane, run)
        if run.first and error is not None and not isinstance(error, RunCancelled):
            self._s.execution.disappoint(lane, run)

    # ------------------------------------------------------------ claims that others have

    def refused(self, lane: TaskState, run: Run, refusal: Refusal, row: Row | None) -> None:
        """Another process was quicker, or is at it still."""
        lane.run = None
        if run.state.final:  # cancelled meanwhile
            self._s.execution.record(lane, run)
        else:
            over = row is not None and row.holder is not None and row.holder.over
            wanted = run.mark is None or run.first
            if refusal is Refusal.HANDLED or (wanted and not over):
                # A request joins what runs there; a slot that is handled there is handled.
                self._join(lane, run)
            elif lane.task.policy.overlap is Overlap.SKIP and not lane.clockless and not wanted:
                self._s.execution.drop(lane, run, "abandoned" if over else "overlap")
            elif lane.queued is None and (run.mark is None or not lane.untold):
                lane.queued = run
            else:
                self._s.execution.drop(lane, run, "overlap")
        if row is None:
            # A store of this process alone: only a claim of the same name that somebody else took by hand.
            for joiner in lane.joiners:
                self._s.execution.drop(lane, joiner, "claimed elsewhere")
            lane.joiners = ()
            self._s.execution.next(lane)
            return
        self.follow(lane, row)

    def _join(self, lane: TaskState, run: Run) -> None:
        lane.joiners += (run,)
        run._stop = partial(self._cancel_joined, lane)

    def _cancel_joined(self, lane: TaskState, run: Run, reason: str) -> None:
        with self._s.locked:
            joined = lane.remote or lane.run
            if joined is not None and not run.state.final:
                joined.cancel(reason)

    def _take_over(self, lane: TaskState) -> None:
        """The process of a run is gone: finish it here."""
        # In a script only for somebody who waits for it: what is due is for those with a clock.
        wanted = self._s.begun or lane.joiners
        if lane.run is not None or lane.removed or not wanted or self._s.stopping:
            return
        run = lane.run = self._s.execution.new(lane, "takeover", None)
        lane.asking = True
        take = partial(self._s.store.take_over, run.task, self._s.clock.now())
        self._s.outbox.ask([lane], take, partial(self._taken, lane, run))

    def _taken(self, lane: TaskState, run: Run, claim: Claim | RunRecord | None) -> None:
        lane.asking = False
        if isinstance(claim, Claim):
            run.id, run.key, run.wave, run.attempt = claim.run_id, claim.key, claim.wave, claim.attempt
            log.log(
                # One that stops in peace hands its run over, and it does not count as an attempt.
                logging.WARNING if run.attempt > 1 else logging.INFO,
                "Task %r: the process that ran it is gone; attempt %d of %s runs here.", run.task, run.attempt, run.key,
            )  # fmt: skip
            joiners, lane.joiners = [*lane.joiners, *filter(None, [lane.remote])], ()
            lane.remote, lane.held = None, False
            for joiner in joiners:
                run.add_done_callback(partial(_echo, joiner))
            self._s.execution.claimed(lane, run, claim)
            self._s.execution.tell(lane)
            return
        lane.run = None
        if isinstance(claim, RunRecord):
            run.id, run.key, run.attempt = claim.id, claim.key, claim.attempt
            self._s.execution.crashed(lane, run, RunCrashed(f"Task {run.task!r}: {claim.error}"))
        elif not run.state.final:
            self._join(lane, run)
        # Whatever became of it, the row knows.
        lane.unread = True
        self._s.execution.tell(lane)


def _echo(joiner: Run, run: Run) -> None:
    """It was joined while another process ran it; it has ended here."""
    assert run.finished_at is not None
    joiner.end(run.state, run.finished_at, run.error)
    joiner.resolve(run._value)
