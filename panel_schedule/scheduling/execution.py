"""One run from its claim to its end: start, publish, time out, retry, settle."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from ..clock import Clock
from ..engine.lock import Locked
from ..engine.outbox import Outbox
from ..engine.timers import Timers
from ..errors import RunCancelled, RunCrashed, RunFenced, RunSkipped, RunTimedOut
from ..executors.base import Executor
from ..executors.loop import Interrupted
from ..functions.calls import CANCELLED, cancelled_inside
from ..functions.run import Run, RunState
from ..functions.task import Overlap, Task, WhenIdle
from ..serialize.errors import first_line
from ..stores.base import Claim, Refusal, Row, Store
from .body import Body
from .hooks import Hooks
from .state import TaskState, Waves

log = logging.getLogger("panel_schedule")

# Seconds that a coroutine gets to end after its timeout, before a retry is given up.
LAST_WORDS = 1.0

# How a run ends that has gone wrong by itself.
TROUBLE = (RunState.FAILED, RunState.TIMED_OUT, RunState.CRASHED)

# Why a run is cancelled that the end of its server ends.
STOPS = "cancelled: the server stops"


class Follower(Protocol):
    """What the other processes do."""

    def refused(self, lane: TaskState, run: Run, refusal: Refusal, row: Row | None) -> None: ...


class Desk(Protocol):
    """What the execution finds at the scheduler's."""

    clock: Clock
    store: Store
    executors: dict[str, Executor]
    lanes: dict[str, TaskState]
    timers: Timers
    waves: Waves
    locked: Locked
    outbox: Outbox
    hooks: Hooks
    follower: Follower
    begun: bool
    stopping: bool
    changed: Callable[[Task[Any]], object]
    fatal: Callable[[Task[Any], Run], object]

    def defer(self, call: Callable[[], object]) -> None: ...
    def touch(self, lane: TaskState) -> None: ...
    def answer(self, run: Run, question: str, *args: Any) -> Any: ...


class Execution:
    """The part of the scheduler that deals with single runs; under its lock unless it says otherwise."""

    def __init__(self, desk: Desk):
        self._s = desk
        self._bodies = Body(desk, self._limit)

    # ------------------------------------------------------------ starting

    def new(
        self, lane: TaskState, key: datetime | str, wave: datetime | None, mark: datetime | int | None = None
    ) -> Run:
        run = Run(lane.task.name, key, self._s.clock.now(), wave, mark)
        run._stop = partial(self.cancel, lane)
        run._changed = partial(self._s.hooks.progressed, lane)
        return run

    def refuse(self, lane: TaskState) -> Run:
        """A run that is over before it begins: the server stops."""
        run = self.new(lane, "late", None)
        error = RunCancelled(f"Task {run.task!r}: the server stops, so that nothing new begins.")
        run.end(RunState.CANCELLED, run.queued_at, error)
        self._s.defer(run.resolve)
        return run

    def launch(self, lane: TaskState, run: Run) -> None:
        """Start now, or as soon as the body of an earlier run has ended."""
        if lane.run is not None:
            self.queue(lane, run)
        else:
            lane.run = run
            self.start(lane, run)

    def queue(self, lane: TaskState, run: Run) -> None:
        """Let it follow the run in flight. There is one place, for the newest."""
        if lane.queued is not None:
            self.drop(lane, lane.queued, "overlap")
        lane.queued = run
        self._s.touch(lane)

    def trigger(self, lane: TaskState, wave: datetime) -> None:
        """An upstream has a new final value. A task that follows others never skips the newest."""
        if lane.removed or self._s.stopping:
            return
        version = sum(upstream.known.version for upstream in lane.upstream if upstream.known is not None)
        key = f"version {version}"
        if lane.paused or (lane.task.policy.when_idle is WhenIdle.SKIP and lane.viewers + lane.elsewhere == 0):
            lane.missed += 1
            self.drop(lane, self.new(lane, key, wave, version), "paused" if lane.paused else "idle")
            self._s.hooks.judge(lane)
            return
        for waiting in (lane.run, lane.queued):
            if waiting is not None and waiting.state is RunState.QUEUED:
                # It has not begun, so it will read this value: one run for a whole wave.
                waiting.key, waiting.mark = key, version
                waiting.wave = max(waiting.wave, wave) if waiting.wave is not None else None
                if waiting is lane.run and (lane.asking or lane.claim is not None):
                    self._s.outbox.ask([lane], partial(self._advance, lane, version))
                return
        run = self.new(lane, key, wave, version)
        replaced = lane.run if lane.task.policy.overlap is Overlap.REPLACE else None
        self.launch(lane, run)
        if replaced is not None:
            self.cancel(lane, replaced, "replaced")

    def _advance(self, lane: TaskState, version: int) -> None:
        if (claim := lane.claim) is not None:
            self._s.store.advance(claim, version)

    def start(self, lane: TaskState, run: Run) -> None:
        """Claim the slot of ``lane.run``, and hand it to its executor once its upstream is there."""
        self.tell(lane)
        self._s.touch(lane)
        lane.asking = True
        self._s.outbox.ask([lane], partial(self._ask, run), partial(self._answered, lane, run))

    def _ask(self, run: Run) -> tuple[Claim | Refusal, Row | None]:
        store, now = self._s.store, self._s.clock.now()
        answer = store.claim(run.task, run.id, now=now, key=run.key, mark=run.mark, wave=run.wave, first=run.first)
        return answer, None if isinstance(answer, Claim) or not store.blocking else store.row(run.task)

    def _answered(self, lane: TaskState, run: Run, answer: tuple[Claim | Refusal, Row | None]) -> None:
        lane.asking = False
        claim, row = answer
        if isinstance(claim, Claim):
            self.claimed(lane, run, claim)
        else:
            self._s.follower.refused(lane, run, claim, row)
        self.tell(lane)

    def claimed(self, lane: TaskState, run: Run, claim: Claim) -> None:
        """The run may begin."""
        lane.claim = claim
        if lane.farewell is not None:
            farewell, lane.farewell = lane.farewell, None
            run.add_done_callback(lambda _: farewell())
        if run.state.final:  # cancelled meanwhile
            self.record(lane, run)
            self._free(lane)
            return
        proceed = partial(self._submit, lane, run)
        if self._s.waves.hold(lane, run, proceed):
            self._limit(lane, run)
        else:
            proceed()

    def _limit(self, lane: TaskState, run: Run) -> None:
        """From now on the timeout runs: of the function, and before that of the wait for its upstream."""
        self._s.timers.cancel(lane.timeout_timer)
        if (timeout := lane.task.policy.timeout) is not None:
            lane.timeout_timer = self._s.timers.after(timeout, partial(self._timed_out, lane), run)

    def _submit(self, lane: TaskState, run: Run) -> None:
        if lane.run is not run or run.state.final:
            return
        self._s.timers.cancel(lane.timeout_timer)
        body = self._bodies.make(lane, run)
        self._s.locked.submitted.add(lane.executor)
        lane.body = lane.executor.submit(body, f"Task {run.task!r}")
        lane.body.add_done_callback(partial(self._ended, lane, run))

    # ------------------------------------------------------------ ending

    def _ended(self, lane: TaskState, run: Run, future: Future[Any]) -> None:
        """The body is over, wherever it ran; called there, without the lock."""
        if lane.on_loop and self._s.store.blocking:
            self._s.outbox.aside(partial(self._conclude, lane, run, future))
        else:
            self._conclude(lane, run, future)

    def _conclude(self, lane: TaskState, run: Run, future: Future[Any]) -> None:
        error: BaseException | None = CancelledError() if future.cancelled() else future.exception()
        value = None
        if error is None and not run.state.final:
            try:
                value = self._bodies.publish(lane, run, future.result())
            except BaseException as exc:  # a value can raise anything while it is stored
                error = exc
        ended = future.cancelled() or isinstance(error, Interrupted) or self._s.stopping
        if isinstance(error, CANCELLED) and not ended:
            error = cancelled_inside(f"Task {run.task!r}", error)
        with self._s.locked:
            lane.body = None
            # Else it is what the function itself has got from a run that was cancelled, and raises.
            stopped = self._s.stopping
            self._s.timers.cancel(lane.timeout_timer)
            if run.state.final:
                self._free(lane)
            elif run.expired and error is not None:
                self._failed(lane, run, self._timeout_error(lane), RunState.TIMED_OUT)
            elif error is None:
                self._succeeded(lane, run, value)
            elif isinstance(error, (*CANCELLED, RunFenced)) or (stopped and isinstance(error, RunCancelled)):
                fenced = error if isinstance(error, RunFenced) else None
                told = fenced or RunCancelled(f"Task {run.task!r}: the run was cancelled.")
                self._finish(lane, run, RunState.CANCELLED, told)
            else:
                self._failed(lane, run, error, RunState.CRASHED if isinstance(error, RunCrashed) else RunState.FAILED)

    def _succeeded(self, lane: TaskState, run: Run, value: Any) -> None:
        troubled = lane.error != "" or lane.stale
        lane.error, lane.missed = "", 0
        self._finish(lane, run, RunState.SUCCEEDED, value=value)
        if troubled and not lane.stale:
            self._s.hooks.recovered(lane, run)
            self._s.hooks.emit("recovered", lane.task, run)
        self._s.hooks.emit("succeeded", lane.task, run)
        for dependent in lane.dependents:
            self.trigger(dependent, run.wave or run.queued_at)

    def _failed(self, lane: TaskState, run: Run, error: BaseException, state: RunState) -> None:
        retry = lane.task.policy.retry
        if run.attempt < retry.max_attempts and not lane.removed and not self._s.stopping:
            delay = retry.delay(run.attempt)
            # While it keeps failing each attempt is more of the same.
            level = logging.DEBUG if lane.error else logging.WARNING
            log.log(
                level,
                "Task %r: attempt %d of %d failed (run %s), the next follows in %g s: %s",
                run.task, run.attempt, retry.max_attempts, run.id, delay, first_line(error),
            )  # fmt: skip
            run.again(error)
            self._s.timers.after(delay, partial(self._retry, lane), run)
            self._s.touch(lane)
            return
        self._finish(lane, run, state, error)

    def _retry(self, lane: TaskState, run: Run) -> None:
        if lane.run is run and not run.state.final:
            self._submit(lane, run)

    def _timed_out(self, lane: TaskState, run: Run) -> None:
        if lane.run is not run or run.state.final:
            return
        body, again = lane.body, run.attempt < lane.task.policy.retry.max_attempts
        if body is not None and lane.stoppable and again and not run.expired:
            # A coroutine and a process can be ended and tried again; a thread cannot, so its timeout is final.
            run.expired = True
            if lane.is_async and not lane.abroad:  # a process will have ended soon, whatever it does
                lane.timeout_timer = self._s.timers.after(LAST_WORDS, partial(self._timed_out, lane), run)
        else:
            self._finish(lane, run, RunState.TIMED_OUT, self._timeout_error(lane))
        if body is not None:
            body.cancel()

    def _timeout_error(self, lane: TaskState) -> RunTimedOut:
        return RunTimedOut(
            f"Task {lane.task.name!r}: it did not finish within its timeout of {lane.task.policy.timeout:g} s. "
            "The last good value stays; give it a longer timeout or make it faster."
        )

    def cancel(self, lane: TaskState, run: Run, reason: str) -> None:
        """End a run from outside, at once. Its body is asked to stop and keeps the lane busy until it does."""
        with self._s.locked:
            if run.state.final:
                return
            error = RunCancelled(f"Task {run.task!r}: the run was {reason}.")
            run.reason = reason
            if lane.queued is run:
                lane.queued = None
                self._close(lane, run, RunState.CANCELLED, error)
            elif lane.run is run:
                body = lane.body
                self._finish(lane, run, RunState.CANCELLED, error)
                if body is not None:
                    body.cancel()

    def _finish(
        self, lane: TaskState, run: Run, state: RunState, error: BaseException | None = None, value: Any = None
    ) -> None:
        """Bring ``lane.run`` to its one terminal state, and the lane to the next run if its body is gone."""
        store = self._s.store
        self._s.timers.cancel(lane.timeout_timer)
        if lane.body is not None and lane.claim is not None:
            lane.claim = store.void(lane.claim)
        waited_for = lane.gated and lane.task.known is None and state is not RunState.SUCCEEDED and self._s.begun
        if error is not None and state in TROUBLE:
            lane.error = first_line(error)
            if waited_for:  # whoever waits for it says so
                lane.withheld = error
            else:
                self._s.hooks.complain(lane, run, error)
        self._close(lane, run, state, error, value)
        self._s.hooks.judge(lane)
        if state in TROUBLE:
            self._s.hooks.emit("failed", lane.task, run)
        if waited_for:
            self._s.defer(lambda: self._s.fatal(lane.task, run))
        if lane.body is None and not lane.asking:
            self._free(lane)

    def abandon(self, lane: TaskState, run: Run) -> None:
        """The grace period is over, and the body is not: it ends with the process, and another one may begin anew."""
        if not run.state.final:
            run.reason = STOPS
            self._finish(lane, run, RunState.CANCELLED, RunCancelled(f"Task {run.task!r}: the server stops."))
        if lane.run is run and not lane.asking:
            self._free(lane)

    def crashed(self, lane: TaskState, run: Run, error: RunCrashed) -> None:
        """It has ended two processes; it will not end this one, unless the server waits for its value."""
        self._s.hooks.complain(lane, run, error)
        if not run.state.final:
            run.end(RunState.CRASHED, self._s.clock.now(), error)
            self.resolve(lane, run)
        self._s.hooks.emit("failed", lane.task, run)
        self.disappoint(lane, run)

    def disappoint(self, lane: TaskState, run: Run) -> None:
        """It has failed in another process; whoever waits here for its value waits in vain."""
        if lane.gated and lane.task.known is None:
            self._s.defer(lambda: self._s.fatal(lane.task, run))

    def _close(
        self, lane: TaskState, run: Run, state: RunState, error: BaseException | None = None, value: Any = None
    ) -> None:
        run.end(state, self._s.clock.now(), error)
        if not (lane.asking and lane.run is run):  # else when it is known whether this process has the claim
            self.record(lane, run)
        self._s.touch(lane)
        self._s.defer(lambda: run.resolve(value))

    def record(self, lane: TaskState, run: Run, then: Callable[[bool], object] | None = None) -> None:
        if self._s.lanes.get(run.task) is lane and not self._unfinished(run):
            claimed = lane.claim is not None and lane.claim.run_id == run.id
            # Without a claim the first process that says what became of the slot is the one that is heard.
            self.note(lane, run, None if claimed else run.mark, then)

    def note(
        self, lane: TaskState, run: Run, mark: datetime | int | None, then: Callable[[bool], object] | None = None
    ) -> None:
        """Record what became of a slot: in the order of the slots, as the store takes the earlier ones for handled."""
        if lane.asking:
            lane.untold += (partial(self.note, lane, run, mark, then),)
        else:
            self._s.outbox.ask([lane], partial(self._s.store.record, run.task, run.record(), mark), then)

    def tell(self, lane: TaskState) -> None:
        """Record what had to wait until it was known who has the claim."""
        untold, lane.untold = lane.untold, ()
        if not self._s.stopping:  # else the slot before them is left to others, and so are they
            for note in untold:
                note()

    def drop(self, lane: TaskState, run: Run, reason: str) -> None:
        """End a run that never started."""
        run.reason = reason
        error = RunSkipped(f"Task {run.task!r}: the run was skipped ({reason}).")
        run.end(RunState.SKIPPED, self._s.clock.now(), error)
        self.record(lane, run, partial(self._s.hooks.skipped, lane, run))
        self._s.touch(lane)
        self._s.defer(run.resolve)

    def resolve(self, lane: TaskState, run: Run) -> None:
        """Wake who waits for a run that ended elsewhere."""
        entry = lane.task.known if run.error is None else None
        self._s.defer(lambda: run.resolve(entry))

    def _free(self, lane: TaskState) -> None:
        """The body is gone: give the claim back, and let the next one start."""
        claim, run = lane.claim, lane.run
        lane.run = lane.claim = None
        if claim is not None:
            unfinished = run is not None and self._unfinished(run)
            give_back = self._s.store.hand_over if unfinished else self._s.store.release
            self._s.outbox.ask([lane], partial(give_back, claim))
        self.next(lane)

    def _unfinished(self, run: Run) -> bool:
        """Whether this process stops before the end of the run: another one finishes it, or the next server."""
        if not (self._s.stopping and self._s.store.blocking):
            return False
        ended_here = run.state is RunState.CANCELLED and run.reason in ("", STOPS)
        occasion = run.mark is not None or run.wave is not None  # nobody waits any more for a request
        return ended_here and occasion

    def next(self, lane: TaskState) -> None:
        """Let the run start that has waited for the end of another one."""
        if lane.queued is not None and not lane.removed:
            lane.run, lane.queued = lane.queued, None
            self.start(lane, lane.run)
