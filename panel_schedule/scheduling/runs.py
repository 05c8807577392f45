"""Which run has a task, and which one waits for it: claim, launch, cancel, end, record."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from ..coordination.record import Refusal
from ..coordination.tasks import Claim, Mark
from ..engine.execution import TROUBLE
from ..engine.service import Service
from ..errors import RunCancelled, RunCrashed, RunSkipped
from ..functions import spans
from ..functions.run import Cause, Run, RunState
from ..functions.task import Overlap, Task
from ..serialize.errors import first_line
from ..stores.tasks import Row
from .execution import Events, TaskExecution
from .health import Health
from .state import TaskState, Waves

log = logging.getLogger("panel_schedule")


class Runs:
    """
    Which run has a task, which one waits behind it, and what becomes of them; under the lock.

    Parameters
    ----------
    service : Service
    states : dict
    waves : Waves
    health : Health
    fatal : callable
        ``fatal(task, run)`` when a first run that the server waits for has failed.

    Attributes
    ----------
    refused : callable
        ``refused(state, run, refusal, row)`` when another process was quicker.
    """

    def __init__(
        self,
        service: Service,
        states: dict[str, TaskState],
        waves: Waves,
        health: Health,
        fatal: Callable[[Task[Any], Run], object],
    ):
        self._service = service
        self._states = states
        self._waves = waves
        self._health = health
        self._fatal = fatal
        self.refused: Callable[[TaskState, Run, Refusal, Row | None], object]
        self._events = Events(health.touch, self._ended, self._free)

    # ------------------------------------------------------------ starting

    def new(self, state: TaskState, key: datetime | str, wave: datetime | None, mark: Mark | None = None) -> Run:
        run = Run(state.task.name, key, self._service.clock.now(), wave, mark)
        run._stop = partial(self.cancel, state)
        return run

    def refuse(self, state: TaskState) -> Run:
        """A run that is over before it begins: the server stops."""
        run = self.new(state, "late", None)
        error = RunCancelled(f"Task {run.task!r}: the server stops, so that nothing new begins.")
        run.end(RunState.CANCELLED, run.queued_at, error)
        self._service.defer(run.resolve)
        return run

    def launch(self, state: TaskState, run: Run) -> None:
        """Start now, or as soon as the body of an earlier run has ended."""
        if state.run is not None:
            self.queue(state, run)
        else:
            state.run = run
            self.start(state, run)

    def queue(self, state: TaskState, run: Run) -> None:
        """Let it follow the run in flight. There is one place, for the newest."""
        if state.queued is not None:
            self.drop(state, state.queued, Cause.OVERLAP)
        state.queued = run
        self._health.touch(state)

    def trigger(self, state: TaskState, wave: datetime, asked: spans.Carrier = spans.NOWHERE) -> None:
        """
        An upstream has a new final value. A task that follows others never skips the newest.

        Parameters
        ----------
        state : TaskState
        wave : datetime
        asked : Carrier
            The span of the run that gave the value, if that was here.
        """
        if state.removed or self._service.stopping:
            return
        version = self.upstream_version(state)
        key = f"version {version}"
        if state.rests:
            self.drop(state, self.new(state, key, wave, version), Cause.PAUSED if state.paused else Cause.IDLE)
            self.rest(state)
            return
        for waiting in (state.run, state.queued):
            if waiting is not None and waiting.state is RunState.QUEUED:
                # It has not begun, so it will read this value: one run for a whole wave.
                waiting.key, waiting.mark, waiting.asked = key, version, asked or waiting.asked
                waiting.wave = max(waiting.wave, wave) if waiting.wave is not None else None
                if waiting is state.run and (state.asking or state.claim is not None):
                    self._service.outbox.ask([state], partial(self._advance, state, version))
                return
        run = self.new(state, key, wave, version)
        run.asked = asked
        replaced = state.run if state.task.policy.overlap is Overlap.REPLACE else None
        self.launch(state, run)
        if replaced is not None:
            self.cancel(state, replaced, Cause.REPLACED)

    def upstream_version(self, state: TaskState) -> int:
        """What a run that begins now sees: the sum of its upstream's versions."""
        return sum(upstream.known.version for upstream in state.upstream if upstream.known is not None)

    def rest(self, state: TaskState) -> None:
        """There is a new value to follow, and it does not."""
        state.missed += 1
        self._health.judge(state)

    def _advance(self, state: TaskState, version: int) -> None:
        if (claim := state.claim) is not None:
            store = self._service.store
            store.do(store.tasks.advance(claim, version))

    def start(self, state: TaskState, run: Run) -> None:
        """Claim the slot of ``state.run``, and hand it to its executor once its upstream is there."""
        self.tell(state)
        self._health.touch(state)
        state.asking = True
        claim = self._service.store.tasks.claim(
            run.task, run.id, now=self._service.clock.now(), key=run.key, mark=run.mark, wave=run.wave, first=run.first
        )
        # First runs one by one: they come all at once, and one that kills its process takes with it what has begun.
        alone = state.task.known is None
        call = partial(self._service.store.do, claim) if alone else claim
        self._service.outbox.ask([state], call, partial(self._answered, state, run))

    def _answered(self, state: TaskState, run: Run, claim: Claim | Refusal) -> None:
        if isinstance(claim, Claim):
            state.asking = False
            if state.remote is not None:  # it has ended, and its word is still to come, or never will
                self._service.outbox.noticed(state)
            self.claimed(state, run, claim)
            self.tell(state)
        elif self._service.store.blocking:
            self._service.outbox.ask(
                [state], partial(self._service.store.tasks.row, run.task), partial(self._refused, state, run, claim)
            )
        else:
            self._refused(state, run, claim, None)

    def _refused(self, state: TaskState, run: Run, refusal: Refusal, row: Row | None) -> None:
        state.asking = False
        self._service.counts.add("conflicts", run.task)
        self.refused(state, run, refusal, row)
        self.tell(state)

    def claimed(self, state: TaskState, run: Run, claim: Claim) -> None:
        """The run may begin."""
        state.claim = claim
        if state.farewell is not None:
            farewell, state.farewell = state.farewell, None
            run.add_done_callback(lambda _: farewell())
        if run.state.final:  # cancelled meanwhile
            self.record(state, run)
            self._free(state)
            return
        execution = state.execution = TaskExecution(self._service, state, run, self._events)
        run._changed = execution.progressed
        if self._waves.hold(state, run, execution.submit):
            execution.limit()  # from now on, too: of the wait for its upstream
        else:
            execution.submit()

    # ------------------------------------------------------------ ending

    def _ended(self, state: TaskState, run: Run, outcome: RunState, error: BaseException | None, value: Any) -> None:
        if outcome is RunState.SUCCEEDED:
            self._succeeded(state, run, value)
        else:
            self._finish(state, run, outcome, error)

    def _succeeded(self, state: TaskState, run: Run, value: Any) -> None:
        troubled = state.error != "" or state.stale
        state.error, state.missed = "", 0
        self._finish(state, run, RunState.SUCCEEDED, value=value)
        if troubled and not state.stale:
            self._health.recovered(state, run)
            self._service.hooks.emit("recovered", state.task, run)
        self._service.hooks.emit("succeeded", state.task, run)
        for dependent in state.dependents:
            self.trigger(dependent, run.wave or run.queued_at, run.carrier)

    def cancel(self, state: TaskState, run: Run, reason: str) -> None:
        """End a run from outside, at once. Its body is asked to stop and keeps the state busy until it does."""
        with self._service.locked:
            if run.state.final:
                return
            execution = state.execution if state.run is run else None
            if execution is not None and execution.too_late:
                return
            error = RunCancelled(f"Task {run.task!r}: the run was {reason}.")
            run.reason = reason
            if state.queued is run:
                state.queued = None
                self._close(state, run, RunState.CANCELLED, error)
            elif state.run is run:
                body = state.body
                self._finish(state, run, RunState.CANCELLED, error)
                if body is not None:
                    body.cancel()

    def _finish(
        self, state: TaskState, run: Run, outcome: RunState, error: BaseException | None = None, value: Any = None
    ) -> None:
        """Bring ``state.run`` to its one terminal outcome, and the state to the next run if its body is gone."""
        if state.execution is not None:
            self._service.timers.cancel(state.execution.timer)
        if state.body is not None and state.claim is not None:
            state.claim = self._service.store.tasks.fence(state.claim)
        waited_for = (
            state.gated and state.task.known is None and outcome is not RunState.SUCCEEDED and self._service.begun
        )
        if error is not None and outcome in TROUBLE:
            state.error = first_line(error)
            if waited_for:  # whoever waits for it says so
                state.withheld = error
            else:
                self._health.complain(state, run, error)
        self._close(state, run, outcome, error, value)
        self._health.judge(state)
        if outcome in TROUBLE:
            self._service.hooks.emit("failed", state.task, run)
        if waited_for:
            self._service.defer(lambda: self._fatal(state.task, run))
        if state.body is None and not state.asking:
            self._free(state)

    def abandon(self, state: TaskState, run: Run) -> None:
        """The grace period is over, and the body is not: it ends with the process, and another one may begin anew."""
        if not run.state.final:
            run.reason = Cause.STOPS
            self._finish(state, run, RunState.CANCELLED, RunCancelled(f"Task {run.task!r}: the server stops."))
        if state.run is run and not state.asking:
            self._free(state)

    def crashed(self, state: TaskState, run: Run, error: RunCrashed) -> None:
        """It has ended two processes; it will not end this one, unless the server waits for its value."""
        self._health.complain(state, run, error)
        if not run.state.final:
            run.end(RunState.CRASHED, self._service.clock.now(), error)
            self.resolve(state, run)
        self._service.hooks.emit("failed", state.task, run)
        self.disappoint(state, run)

    def disappoint(self, state: TaskState, run: Run) -> None:
        """It has failed in another process; whoever waits here for its value waits in vain."""
        if state.gated and state.task.known is None:
            self._service.defer(lambda: self._fatal(state.task, run))

    def _close(
        self, state: TaskState, run: Run, outcome: RunState, error: BaseException | None = None, value: Any = None
    ) -> None:
        told = state.execution.recorded if state.execution is not None and state.run is run else None
        run.end(outcome, self._service.clock.now() if told is None else told.finished_at, error)
        run._changed = run._execution = None  # which know the run: only the garbage collection would end that
        if told is not None and outcome is RunState.SUCCEEDED:  # and has given the claim back with its value
            state.claim = None
        elif told is None and not (state.asking and state.run is run):  # else when it is known who has the claim
            self.record(state, run)
        self._health.touch(state)
        self._service.defer(lambda: run.resolve(value))

    def record(self, state: TaskState, run: Run, then: Callable[[bool | None], object] | None = None) -> None:
        if self._states.get(run.task) is state and not self._unfinished(run):
            claim = state.claim if state.claim is not None and state.claim.run_id == run.id else None
            release = claim is not None and state.run is run and state.body is None and not state.asking
            # Without a claim the first process that says what became of the slot is the one that is heard.
            self.note(state, run, None if claim is not None else run.mark, then, claim, release)
            if release:
                state.claim = None

    def note(
        self,
        state: TaskState,
        run: Run,
        mark: Mark | None,
        then: Callable[[bool | None], object] | None = None,
        claim: Claim | None = None,
        release: bool = False,
    ) -> None:
        """Record what became of a slot: in the order of the slots, as the store takes the earlier ones for handled."""
        if state.asking:
            state.untold += (partial(self.note, state, run, mark, then),)
        else:
            store = self._service.store
            self._service.outbox.ask(
                [state], store.tasks.record(run.task, run.record(store.me), mark, claim, release), then
            )

    def tell(self, state: TaskState) -> None:
        """Record what had to wait until it was known who has the claim."""
        untold, state.untold = state.untold, ()
        if untold and not self._service.stopping:  # else the slot before them is left to others, and so are they
            for note in untold:
                note()

    def drop(self, state: TaskState, run: Run, reason: str) -> None:
        """End a run that never started."""
        run.reason = reason
        error = RunSkipped(f"Task {run.task!r}: the run was skipped ({reason}).")
        run.end(RunState.SKIPPED, self._service.clock.now(), error)
        self.record(state, run, partial(self._health.skipped, state, run))
        self._health.touch(state)
        self._service.defer(run.resolve)

    def resolve(self, state: TaskState, run: Run) -> None:
        """Wake who waits for a run that ended elsewhere."""
        entry = state.task.known if run.error is None else None
        self._service.defer(lambda: run.resolve(entry))

    def _free(self, state: TaskState) -> None:
        """The body is gone: give the claim back, and let the next one start."""
        claim, run = state.claim, state.run
        state.run = state.execution = state.claim = None
        if claim is not None:
            unfinished = run is not None and self._unfinished(run)
            tasks = self._service.store.tasks
            self._service.outbox.ask([state], tasks.hand_over(claim) if unfinished else tasks.release(claim))
        self.next(state)

    def _unfinished(self, run: Run) -> bool:
        """Whether this process stops before the end of the run: another one finishes it, or the next server."""
        if not (self._service.stopping and self._service.store.blocking):
            return False
        ended_here = run.state is RunState.CANCELLED and run.reason in ("", Cause.STOPS)
        occasion = run.mark is not None or run.wave is not None  # nobody waits any more for a request
        return ended_here and occasion

    def next(self, state: TaskState) -> None:
        """Let the run start that has waited for the end of another one."""
        if state.queued is not None and not state.removed:
            state.run, state.queued = state.queued, None
            self.start(state, state.run)
