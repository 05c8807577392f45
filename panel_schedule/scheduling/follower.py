"""What the other processes do with the same tasks, and what this one makes of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from ..coordination.record import Refusal
from ..coordination.tasks import Claim
from ..engine.service import Service
from ..errors import RunCancelled, RunCrashed, RunError, RunFailed, RunTimedOut
from ..functions.run import Cause, Run, RunRecord, RunState
from ..functions.task import Overlap
from ..stores.tasks import Holder, Row
from ..triggers.coming import slot_after
from .health import Health
from .runs import Runs
from .slots import Slots
from .state import TaskState

log = logging.getLogger("panel_schedule")

_ERRORS = {RunState.CANCELLED: RunCancelled, RunState.TIMED_OUT: RunTimedOut, RunState.CRASHED: RunCrashed}


# So long, in seconds, a run that was taken over from a process that died has for itself: of those that died together
# one may have killed the others, and would do so again.
ALONE = 0.1


class Follower:
    """
    Follows the rows of the store; under the lock.

    Parameters
    ----------
    service : Service
    runs : Runs
    health : Health
    slots : Slots
    removed, lost : callable
        ``removed(state)`` and ``lost(state)`` when another process has ended the schedule of a task, or forgotten it.
    """

    def __init__(
        self,
        service: Service,
        runs: Runs,
        health: Health,
        slots: Slots,
        removed: Callable[[TaskState], object],
        lost: Callable[[TaskState], object],
    ):
        self._service = service
        self._runs = runs
        self._health = health
        self._slots = slots
        self._removed = removed
        self._lost = lost
        # A run that was taken over a moment ago, and the states whose runs are still to be.
        self._suspect: Run | None = None
        self._later: dict[TaskState, Holder] = {}

    def follow(self, state: TaskState, row: Row | None) -> None:
        """Bring a state in line with what the store says of its task."""
        if row is None:
            return
        if row.forgotten:
            self._lost(state)
            return
        if row.removed and not state.removed:
            self._removed(state)
        self._slots.schedule(state, row)
        if state.computed and self._service.begun:
            self._slots.elect(state)
        state.elsewhere = row.viewers
        state.paused = row.paused
        self._follow_run(state, row)
        self._slots.follow(state, row)
        self._take_up(state, row)
        if state.error != row.error:
            self._health.follow(state, row.error)
            if self._service.begun:
                self._health.judge(state)
        if row.cancelled and state.run is not None and state.run.id == row.cancelled:
            self._runs.cancel(state, state.run, Cause.CANCELLED)
        self._health.touch(state)

    def look(self, state: TaskState, row: Row) -> Run | None:
        """Let a state say what the store says, where no clocks run; the run of another process, if there is one."""
        task, now = state.task, self._service.clock.now()
        if (row.removed or row.forgotten) and not state.removed:
            self._removed(state)
        self._slots.schedule(state, row)
        state.paused, state.error = row.paused, row.error
        # Also when nobody is there to find it stale.
        until = state.promise
        failed = row.error != "" and task.policy.stale_after is None
        state.stale = not state.removed and (row.stale or failed or (until is not None and until < now))
        # The store has the schedule of a task only if clocks run, or have run, for it.
        scheduled = row.fingerprint != "" and not (state.computed or state.removed)
        state.next = slot_after(state.trigger, max(now, task.policy.start or now)) if scheduled else None
        holder = row.holder
        if holder is None or holder.over or holder.orphan:
            return None
        run = self._run_elsewhere(state, holder)
        run.report(holder.percent, holder.message)
        return run

    def find(self, state: TaskState) -> Run | None:
        """The run of another process, as the store has it now; on a thread that may wait."""
        row = self._service.store.tasks.row(state.task.name) if self._service.store.blocking else None
        holder = None if row is None else row.holder
        return None if holder is None or holder.over else self._run_elsewhere(state, holder)

    def _follow_run(self, state: TaskState, row: Row) -> None:
        holder, ended = row.holder, None
        active = holder is not None and not holder.over
        state.held = holder is not None
        if state.remote is not None and not (active and holder is not None and holder.run_id == state.remote.id):
            ended, state.remote = state.remote, None
        if holder is not None and holder.orphan:
            self._take_over(state, holder)
        elif holder is not None and active and state.remote is None:
            state.remote = self._run_elsewhere(state, holder)
        if holder is not None and state.remote is not None:
            state.remote.report(holder.percent, holder.message)
        if ended is not None:
            self._end(state, ended, row)
        if not active:
            waiters, state.waiters = state.waiters, ()
            for run in waiters:
                self._end(state, run, row)
        if not state.held and state.run is None:
            self._runs.next(state)

    def _take_up(self, state: TaskState, row: Row) -> None:
        """Run what somebody has asked for who has no clock. All try, and the claim is one process's."""
        free = not state.held and state.queued is None and (state.run is None or state.run.state.final)
        if row.requested and free and self._service.begun and not (state.removed or self._service.stopping):
            self._runs.launch(state, self._runs.new(state, f"request {row.requested}", None, row.requested))

    def _run_elsewhere(self, state: TaskState, holder: Holder) -> Run:
        """The run of another process, for those who look at it, wait for it or cancel it here."""
        run = Run(state.task.name, holder.key, holder.started_at or self._service.clock.now(), holder.wave)
        run.id, run.attempt = holder.run_id, holder.attempt
        run.begin(run.queued_at)
        run._stop = partial(self._cancel_there, state)
        return run

    def _cancel_there(self, state: TaskState, run: Run, reason: str) -> None:
        with self._service.locked:
            if not run.state.final:
                self._service.outbox.ask([state], self._service.store.tasks.cancel(run.task, run.id))

    def _end(self, state: TaskState, run: Run, row: Row) -> None:
        """It has ended there, so it ends here; its record is written already."""
        outcome = row.outcome or RunState.CANCELLED
        error: RunError | None = None
        if outcome is not RunState.SUCCEEDED:
            kind = _ERRORS.get(outcome, RunFailed)
            error = kind(f"Task {run.task!r}: the run {outcome.replace('_', ' ')} in another process. {row.error}")
        run.end(outcome, self._service.clock.now(), error)
        self._runs.resolve(state, run)
        if run.first and error is not None and not isinstance(error, RunCancelled):
            self._runs.disappoint(state, run)

    # ------------------------------------------------------------ claims that others have

    def refused(self, state: TaskState, run: Run, refusal: Refusal, row: Row | None) -> None:
        """Another process was quicker, or is at it still."""
        state.run = None
        if run.state.final:  # cancelled meanwhile
            self._runs.record(state, run)
        else:
            over = row is not None and row.holder is not None and row.holder.over
            wanted = not run.on_occasion or run.first
            if refusal is Refusal.HANDLED or (wanted and not over):
                # A request joins what runs there; a slot that is handled there is handled.
                self._join(state, run)
            elif state.task.policy.overlap is Overlap.SKIP and not state.clockless and not wanted:
                self._runs.drop(state, run, Cause.ABANDONED if over else Cause.OVERLAP)
            elif state.queued is None and (run.mark is None or not state.untold):
                state.queued = run
            else:
                self._runs.drop(state, run, Cause.OVERLAP)
        if row is None:
            # A store of this process alone: only a claim of the same name that somebody else took by hand.
            for waiter in state.waiters:
                self._runs.drop(state, waiter, Cause.ELSEWHERE)
            state.waiters = ()
            self._runs.next(state)
            return
        self.follow(state, row)

    def _join(self, state: TaskState, run: Run) -> None:
        state.waiters += (run,)
        run._stop = partial(self._cancel_joined, state)

    def _cancel_joined(self, state: TaskState, run: Run, reason: str) -> None:
        with self._service.locked:
            joined = state.remote or state.run
            if joined is not None and not run.state.final:
                joined.cancel(reason)

    def _take_over(self, state: TaskState, holder: Holder) -> None:
        """The process of a run is gone: finish it here, and, where it has not stopped in peace, by itself at first."""
        # In a script only for somebody who waits for it: what is due is for those with a clock.
        wanted = self._service.begun or state.waiters
        if state.run is not None or state.removed or not wanted or self._service.stopping:
            return
        died = holder.attempt > 0
        if died and self._suspect is not None:
            self._later[state] = holder
            return
        run = state.run = self._runs.new(state, "takeover", None)
        self._suspect = run if died else self._suspect
        state.asking = True
        take = self._service.store.tasks.take_over(run.task, self._service.clock.now(), holder)
        self._service.outbox.ask([state], take, partial(self._taken, state, run))

    def _taken(self, state: TaskState, run: Run, claim: Claim | RunRecord | None) -> None:
        state.asking = False
        if isinstance(claim, Claim):
            run.id, run.key, run.wave, run.attempt = claim.run_id, claim.key, claim.wave, claim.attempt
            log.log(
                # One that stops in peace hands its run over, and it does not count as an attempt.
                logging.WARNING if run.attempt > 1 else logging.INFO,
                "Task %r: the process that ran it is gone; attempt %d of %s runs here.", run.task, run.attempt, run.key,
            )  # fmt: skip
            waiters, state.waiters = [*state.waiters, *filter(None, [state.remote])], ()
            state.remote, state.held = None, False
            for waiter in waiters:
                run.add_done_callback(partial(_echo, waiter))
            if self._suspect is run:
                run.add_done_callback(self._cleared)
                self._service.timers.after(ALONE, self._clear, run)
            self._runs.claimed(state, run, claim)
            self._runs.tell(state)
            return
        self._clear(run)
        state.run = None
        if isinstance(claim, RunRecord):
            run.id, run.key, run.attempt = claim.id, claim.key, claim.attempt
            self._runs.crashed(state, run, RunCrashed(f"Task {run.task!r}: {claim.error}"))
        elif not run.state.final:
            self._join(state, run)
        # Whatever became of it, the row knows.
        state.unread = True
        self._runs.tell(state)

    def _cleared(self, run: Run) -> None:
        """It has ended, and this process lives."""
        with self._service.locked:
            self._clear(run)

    def _clear(self, run: Run) -> None:
        if self._suspect is run:
            self._suspect = None
            later, self._later = self._later, {}
            for state, holder in later.items():
                self._take_over(state, holder)


def _echo(waiter: Run, run: Run) -> None:
    """It was joined while another process ran it; it has ended here."""
    assert run.finished_at is not None
    waiter.end(run.state, run.finished_at, run.error)
    waiter.resolve(run._value)
