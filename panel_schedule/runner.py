"""One run from its claim to its end: start, publish, time out, retry, settle."""

from __future__ import annotations

import asyncio
import inspect
import logging
from asyncio import CancelledError
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import aclosing, closing
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from .clock import Clock
from .errors import RunCancelled, RunCrashed, RunFenced, RunSkipped, RunTimedOut
from .executors.base import Executor
from .lanes import Lane, Waves
from .ledger import Ledger
from .locked import Locked
from .run import Run, RunState, _current, first_line, own_traceback
from .stores.base import TASK, Claim, Refusal, Row, Store
from .task import Overlap, Task, WhenIdle, is_async
from .timers import Timers

log = logging.getLogger("panel_schedule")

Handler = Callable[[Task[Any], Run], Any]
EVENTS = ("failed", "recovered", "skipped", "stale", "succeeded")

# A plain function that holds the event loop for longer than this, in seconds, is named in a warning.
HELD_TOO_LONG = 0.1

# Seconds that a coroutine gets to end after its timeout, before a retry is given up.
LAST_WORDS = 1.0

# Why a run is cancelled that the end of its server ends.
STOPS = "cancelled: the server stops"

# How often, in seconds, the other processes hear of a run's progress.
TELL = 0.1

# What a body returns that has published its final value itself.
PUBLISHED = object()


class Peers(Protocol):
    """What the other processes do."""

    def refused(self, lane: Lane, run: Run, refusal: Refusal, row: Row | None) -> None: ...


class Desk(Protocol):
    """What the runner finds at the scheduler's."""

    clock: Clock
    store: Store
    executors: dict[str, Executor]
    handlers: dict[str, list[Handler]]
    lanes: dict[str, Lane]
    timers: Timers
    waves: Waves
    locked: Locked
    ledger: Ledger
    peers: Peers
    begun: bool
    stopping: bool
    changed: Callable[[Task[Any]], object]
    fatal: Callable[[Task[Any], Run], object]

    def defer(self, call: Callable[[], object]) -> None: ...
    def touch(self, lane: Lane) -> None: ...


class Runner:
    """The part of the scheduler that deals with single runs; under its lock unless it says otherwise."""

    def __init__(self, desk: Desk):
        self._s = desk
        self._warned: set[str] = set()

    # ------------------------------------------------------------ starting

    def new(self, lane: Lane, key: datetime | str, wave: datetime | None, mark: datetime | int | None = None) -> Run:
        run = Run(lane.task.name, key, self._s.clock.now(), wave, mark)
        run._stop = partial(self.cancel, lane)
        run._changed = partial(self._progressed, lane)
        return run

    def _progressed(self, lane: Lane) -> None:
        """On the thread of the run: the pages hear of it here, and now and then in the other processes."""
        self._s.changed(lane.task)
        if self._s.store.blocking and not lane.telling:
            lane.telling = True
            with self._s.locked:
                self._s.timers.after(TELL, self._tell_progress, lane)

    def _tell_progress(self, lane: Lane) -> None:
        lane.telling = False
        if lane.claim is not None and lane.run is not None and not lane.run.state.final:
            run, store = lane.run, self._s.store
            self._s.ledger.ask([lane], partial(store.progress, lane.claim, run.percent, run.message))

    def refuse(self, lane: Lane) -> Run:
        """A run that is over before it begins: the server stops."""
        run = self.new(lane, "late", None)
        error = RunCancelled(f"Task {run.task!r}: the server stops, so that nothing new begins.")
        run.end(RunState.CANCELLED, run.queued_at, error)
        self._s.defer(run.resolve)
        return run

    def launch(self, lane: Lane, run: Run) -> None:
        """Start now, or as soon as the body of an earlier run has ended."""
        if lane.run is not None:
            self.queue(lane, run)
        else:
            lane.run = run
            self.start(lane, run)

    def queue(self, lane: Lane, run: Run) -> None:
        """Let it follow the run in flight. There is one place, for the newest."""
        if lane.queued is not None:
            self.drop(lane, lane.queued, "overlap")
        lane.queued = run
        self._s.touch(lane)

    def trigger(self, lane: Lane, wave: datetime) -> None:
        """An upstream has a new final value. A task that follows others never skips the newest."""
        if lane.removed or self._s.stopping:
            return
        version = sum(upstream.entry.version for upstream in lane.upstream if upstream.entry is not None)
        key = f"version {version}"
        if lane.paused or (lane.task.policy.when_idle is WhenIdle.SKIP and lane.viewers + lane.elsewhere == 0):
            lane.missed += 1
            self.drop(lane, self.new(lane, key, wave, version), "paused" if lane.paused else "idle")
            self.judge(lane)
            return
        for waiting in (lane.run, lane.queued):
            if waiting is not None and waiting.state is RunState.QUEUED:
                # It has not begun, so it will read this value: one run for a whole wave.
                waiting.key, waiting.mark = key, version
                waiting.wave = max(waiting.wave, wave) if waiting.wave is not None else None
                if waiting is lane.run and (lane.asking or lane.claim is not None):
                    self._s.ledger.ask([lane], partial(self._advance, lane, version))
                return
        run = self.new(lane, key, wave, version)
        replaced = lane.run if lane.task.policy.overlap is Overlap.REPLACE else None
        self.launch(lane, run)
        if replaced is not None:
            self.cancel(lane, replaced, "replaced")

    def _advance(self, lane: Lane, version: int) -> None:
        if (claim := lane.claim) is not None:
            self._s.store.advance(claim, version)

    def start(self, lane: Lane, run: Run) -> None:
        """Claim the slot of ``lane.run``, and hand it to its executor once its upstream is there."""
        self.tell(lane)
        self._s.touch(lane)
        lane.asking = True
        self._s.ledger.ask([lane], partial(self._ask, run), partial(self._answered, lane, run))

    def _ask(self, run: Run) -> tuple[Claim | Refusal, Row | None]:
        store, now = self._s.store, self._s.clock.now()
        answer = store.claim(run.task, run.id, now=now, key=run.key, mark=run.mark, wave=run.wave, first=run.first)
        return answer, None if isinstance(answer, Claim) or not store.blocking else store.row(run.task)

    def _answered(self, lane: Lane, run: Run, answer: tuple[Claim | Refusal, Row | None]) -> None:
        lane.asking = False
        claim, row = answer
        if isinstance(claim, Claim):
            self.claimed(lane, run, claim)
        else:
            self._s.peers.refused(lane, run, claim, row)
        self.tell(lane)

    def claimed(self, lane: Lane, run: Run, claim: Claim) -> None:
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

    def _limit(self, lane: Lane, run: Run) -> None:
        """From now on the timeout runs: of the function, and before that of the wait for its upstream."""
        self._s.timers.cancel(lane.timeout_timer)
        if (timeout := lane.task.policy.timeout) is not None:
            lane.timeout_timer = self._s.timers.after(timeout, partial(self._timed_out, lane), run)

    def _submit(self, lane: Lane, run: Run) -> None:
        if lane.run is not run or run.state.final:
            return
        self._s.timers.cancel(lane.timeout_timer)
        body = self._async_body(lane, run) if lane.is_async else self._body(lane, run)
        self._s.locked.submitted.add(lane.executor)
        lane.body = lane.executor.submit(body)
        lane.body.add_done_callback(partial(self._ended, lane, run))

    # ------------------------------------------------------------ inside the run, outside the lock

    def _body(self, lane: Lane, run: Run) -> Callable[[], Any]:
        function, on_loop = lane.task.function, lane.on_loop

        def body() -> Any:
            self._begin(lane, run)
            _current.set(run)
            started = self._s.clock.monotonic()
            result = function()
            if inspect.isgenerator(result):
                aside = on_loop and self._s.store.blocking
                result = self._drain_aside(lane, run, result) if aside else self._drain(lane, run, result)
            if on_loop:
                self._warn_if_held(lane.task.name, self._s.clock.monotonic() - started)
            return result

        return body

    def _async_body(self, lane: Lane, run: Run) -> Callable[[], Any]:
        function = lane.task.function

        async def body() -> Any:
            self._begin(lane, run)
            _current.set(run)
            result = function()
            if not inspect.isasyncgen(result):
                return await result
            count = 0
            async with aclosing(result):
                async for value in result:
                    await self._yielded_aside(lane, run, value)
                    count += 1
            return PUBLISHED if count else None

        return body

    def _begin(self, lane: Lane, run: Run) -> None:
        with self._s.locked:
            run.check()
            run.begin(self._s.clock.now())
            self._limit(lane, run)
            self._s.touch(lane)

    def _drain(self, lane: Lane, run: Run, values: Any) -> Any:
        count = 0
        # Closed even when the run has ended in between: its cleanup code is part of the body.
        with closing(values):
            while True:
                try:
                    value = next(values)
                except StopIteration as stop:
                    return PUBLISHED if stop.value is None and count else stop.value
                self._yielded(lane, run, value)
                count += 1

    async def _drain_aside(self, lane: Lane, run: Run, values: Any) -> Any:
        """The same for a plain generator on the loop."""
        count = 0
        with closing(values):
            while True:
                try:
                    value = next(values)
                except StopIteration as stop:
                    return PUBLISHED if stop.value is None and count else stop.value
                await self._yielded_aside(lane, run, value)
                count += 1

    def _yielded(self, lane: Lane, run: Run, value: Any) -> None:
        run.check()
        self._publish(lane, run, value, final=False)

    async def _yielded_aside(self, lane: Lane, run: Run, value: Any) -> None:
        if not self._s.store.blocking:
            self._yielded(lane, run, value)
        else:
            await asyncio.wrap_future(self._s.ledger.aside(partial(self._yielded, lane, run, value)))

    def _publish(self, lane: Lane, run: Run, value: Any, final: bool = True) -> Any:
        claim = lane.claim
        if claim is None or claim.run_id != run.id or run.state.final or run.started_at is None:
            raise RunFenced(f"Task {run.task!r}: the run has ended before it published; its value is dropped.")
        if value is PUBLISHED:
            entry = self._s.store.seal(claim)
            return entry.value if entry is not None else None
        now = self._s.clock.now()
        duration = (now - run.started_at).total_seconds()
        return self._s.store.publish(TASK, run.task, value, now=now, duration=duration, claim=claim, final=final).value

    def _warn_if_held(self, name: str, seconds: float) -> None:
        if seconds > HELD_TOO_LONG and name not in self._warned:
            self._warned.add(name)
            log.warning(
                "Task %r held the event loop, and with it every open page, for %.0f ms. Run it in a thread: "
                "threaded=True of ps.schedule_task, executor='thread' of ps.schedule.", name, seconds * 1000,
            )  # fmt: skip

    # ------------------------------------------------------------ ending

    def _ended(self, lane: Lane, run: Run, future: Future[Any]) -> None:
        """The body is over, wherever it ran; called there, without the lock."""
        if lane.on_loop and self._s.store.blocking:
            self._s.ledger.aside(partial(self._conclude, lane, run, future))
        else:
            self._conclude(lane, run, future)

    def _conclude(self, lane: Lane, run: Run, future: Future[Any]) -> None:
        error: BaseException | None = CancelledError() if future.cancelled() else future.exception()
        value = None
        if error is None and not run.state.final:
            try:
                value = self._publish(lane, run, future.result())
            except Exception as exc:
                error = exc
        with self._s.locked:
            lane.body = None
            self._s.timers.cancel(lane.timeout_timer)
            if run.state.final:
                self._free(lane)
            elif run.expired and error is not None:
                self._failed(lane, run, self._timeout_error(lane), RunState.TIMED_OUT)
            elif error is None:
                self._succeeded(lane, run, value)
            elif isinstance(error, (CancelledError, RunFenced)):
                fenced = error if isinstance(error, RunFenced) else None
                told = fenced or RunCancelled(f"Task {run.task!r}: the run was cancelled.")
                self._finish(lane, run, RunState.CANCELLED, told)
            else:
                self._failed(lane, run, error, RunState.FAILED)

    def _succeeded(self, lane: Lane, run: Run, value: Any) -> None:
        troubled = lane.error != "" or lane.stale
        lane.error, lane.reported, lane.missed = "", "", 0
        self._finish(lane, run, RunState.SUCCEEDED, value=value)
        if troubled and not lane.stale:
            log.info("Task %r has recovered.", run.task)
            self.emit("recovered", lane.task, run)
        self.emit("succeeded", lane.task, run)
        for dependent in lane.dependents:
            self.trigger(dependent, run.wave or run.queued_at)

    def _failed(self, lane: Lane, run: Run, error: BaseException, state: RunState) -> None:
        retry = lane.task.policy.retry
        if run.attempt < retry.max_attempts and not lane.removed and not self._s.stopping:
            delay = retry.delay(run.attempt)
            # While it keeps failing each attempt is more of the same.
            level = logging.DEBUG if lane.error else logging.WARNING
            log.log(
                level,
                "Task %r: attempt %d of %d failed, the next follows in %g s: %s",
                run.task, run.attempt, retry.max_attempts, delay, first_line(error),
            )  # fmt: skip
            run.again(error)
            self._s.timers.after(delay, partial(self._retry, lane), run)
            self._s.touch(lane)
            return
        self._finish(lane, run, state, error)

    def _retry(self, lane: Lane, run: Run) -> None:
        if lane.run is run and not run.state.final:
            self._submit(lane, run)

    def _timed_out(self, lane: Lane, run: Run) -> None:
        if lane.run is not run or run.state.final:
            return
        body, again = lane.body, run.attempt < lane.task.policy.retry.max_attempts
        if body is not None and lane.is_async and again and not run.expired:
            # A coroutine can be ended and tried again; a thread cannot, so its timeout is final.
            run.expired = True
            lane.timeout_timer = self._s.timers.after(LAST_WORDS, partial(self._timed_out, lane), run)
        else:
            self._finish(lane, run, RunState.TIMED_OUT, self._timeout_error(lane))
        if body is not None:
            body.cancel()

    def _timeout_error(self, lane: Lane) -> RunTimedOut:
        return RunTimedOut(
            f"Task {lane.task.name!r}: it did not finish within its timeout of {lane.task.policy.timeout:g} s. "
            "The last good value stays; give it a longer timeout or make it faster."
        )

    def cancel(self, lane: Lane, run: Run, reason: str) -> None:
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
        self, lane: Lane, run: Run, state: RunState, error: BaseException | None = None, value: Any = None
    ) -> None:
        """Bring ``lane.run`` to its one terminal state, and the lane to the next run if its body is gone."""
        store = self._s.store
        self._s.timers.cancel(lane.timeout_timer)
        if lane.body is not None and lane.claim is not None:
            lane.claim = store.void(lane.claim)
        waited_for = lane.gated and lane.task.entry is None and state is not RunState.SUCCEEDED and self._s.begun
        if error is not None and state in (RunState.FAILED, RunState.TIMED_OUT):
            lane.error = first_line(error)
            if not waited_for:  # whoever waits for it says so
                self._complain(lane, error)
        self._close(lane, run, state, error, value)
        self.judge(lane)
        if state in (RunState.FAILED, RunState.TIMED_OUT):
            self.emit("failed", lane.task, run)
        if waited_for:
            self._s.defer(lambda: self._s.fatal(lane.task, run))
        if lane.body is None and not lane.asking:
            self._free(lane)

    def abandon(self, lane: Lane, run: Run) -> None:
        """The grace period is over, and the body is not: it ends with the process, and another one may begin anew."""
        if not run.state.final:
            run.reason = STOPS
            self._finish(lane, run, RunState.CANCELLED, RunCancelled(f"Task {run.task!r}: the server stops."))
        if lane.run is run and not lane.asking:
            self._free(lane)

    def crashed(self, lane: Lane, run: Run, error: RunCrashed) -> None:
        """It has ended two processes; it will not end this one, unless the server waits for its value."""
        self._complain(lane, error)
        if not run.state.final:
            run.end(RunState.CRASHED, self._s.clock.now(), error)
            self.resolve(lane, run)
        self.emit("failed", lane.task, run)
        self.disappoint(lane, run)

    def disappoint(self, lane: Lane, run: Run) -> None:
        """It has failed in another process; whoever waits here for its value waits in vain."""
        if lane.gated and lane.task.entry is None:
            self._s.defer(lambda: self._s.fatal(lane.task, run))

    def _close(
        self, lane: Lane, run: Run, state: RunState, error: BaseException | None = None, value: Any = None
    ) -> None:
        run.end(state, self._s.clock.now(), error)
        if not (lane.asking and lane.run is run):  # else when it is known whether this process has the claim
            self.record(lane, run)
        self._s.touch(lane)
        self._s.defer(lambda: run.resolve(value))

    def record(self, lane: Lane, run: Run, then: Callable[[bool], object] | None = None) -> None:
        if self._s.lanes.get(run.task) is lane and not self._unfinished(run):
            claimed = lane.claim is not None and lane.claim.run_id == run.id
            # Without a claim the first process that says what became of the slot is the one that is heard.
            self.note(lane, run, None if claimed else run.mark, then)

    def note(
        self, lane: Lane, run: Run, mark: datetime | int | None, then: Callable[[bool], object] | None = None
    ) -> None:
        """Record what became of a slot: in the order of the slots, as the store takes the earlier ones for handled."""
        if lane.asking:
            lane.untold.append(partial(self.note, lane, run, mark, then))
        else:
            self._s.ledger.ask([lane], partial(self._s.store.record, run.task, run.record(), mark), then)

    def tell(self, lane: Lane) -> None:
        """Record what had to wait until it was known who has the claim."""
        untold, lane.untold = lane.untold, []
        if not self._s.stopping:  # else the slot before them is left to others, and so are they
            for note in untold:
                note()

    def drop(self, lane: Lane, run: Run, reason: str) -> None:
        """End a run that never started."""
        run.reason = reason
        error = RunSkipped(f"Task {run.task!r}: the run was skipped ({reason}).")
        run.end(RunState.SKIPPED, self._s.clock.now(), error)
        self.record(lane, run, partial(self.skipped, lane, run))
        self._s.touch(lane)
        self._s.defer(run.resolve)

    def skipped(self, lane: Lane, run: Run, new: bool) -> None:
        """Say so, if it is news."""
        if new:
            self.emit("skipped", lane.task, run)

    def resolve(self, lane: Lane, run: Run) -> None:
        """Wake who waits for a run that ended elsewhere."""
        value = lane.task.entry.value if lane.task.entry is not None and run.error is None else None
        self._s.defer(lambda: run.resolve(value))

    def _free(self, lane: Lane) -> None:
        """The body is gone: give the claim back, and let the next one start."""
        claim, run = lane.claim, lane.run
        lane.run = lane.claim = None
        if claim is not None:
            unfinished = run is not None and self._unfinished(run)
            give_back = self._s.store.hand_over if unfinished else self._s.store.release
            self._s.ledger.ask([lane], partial(give_back, claim))
        self.next(lane)

    def _unfinished(self, run: Run) -> bool:
        """Whether this process stops before the end of the run: another one finishes it, or the next server."""
        ended_here = run.state is RunState.CANCELLED and run.reason in ("", STOPS)
        occasion = run.mark is not None or run.wave is not None  # nobody waits any more for a request
        return self._s.stopping and self._s.store.blocking and ended_here and occasion

    def next(self, lane: Lane) -> None:
        """Let the run start that has waited for the end of another one."""
        if lane.queued is not None and not lane.removed:
            lane.run, lane.queued = lane.queued, None
            self.start(lane, lane.run)

    # ------------------------------------------------------------ telling

    def judge(self, lane: Lane) -> None:
        """Work out whether the value is stale, and say so when that has changed."""
        limit, entry = lane.task.policy.stale_after, lane.task.entry
        if limit is not None:
            now = self._s.clock.now()
            stale = entry is not None and now - entry.updated_at >= limit
            if entry is not None and not stale:
                self._s.timers.cancel(lane.stale_timer)
                lane.stale_timer = self._s.timers.at(entry.updated_at + limit, self.judge, lane)
        else:
            stale = lane.error != "" or (lane.missed >= 2 and entry is not None)
        if not stale and lane.clockless:
            stale = any(self._stale(upstream) for upstream in lane.upstream)
        if stale == lane.stale:
            return
        lane.stale = stale
        self._s.touch(lane)
        run = lane.run
        if run is None:
            run = Run(lane.task.name, None, self._s.clock.now())
            run.reason = "stale"
            error = RunSkipped(f"Task {run.task!r}: a value that got stale is no run.")
            run.end(RunState.SKIPPED, run.queued_at, error)
            self._s.defer(run.resolve)
        self._s.ledger.ask(
            [lane], partial(self._s.store.flip, lane.task.name, stale), partial(self._flipped, lane, run)
        )
        for dependent in lane.dependents:
            self.judge(dependent)

    def _flipped(self, lane: Lane, run: Run, first: bool) -> None:
        """All processes find it stale; one of them says so."""
        if first and lane.stale:
            self.emit("stale", lane.task, run)

    def _stale(self, task: Task[Any]) -> bool:
        lane = self._s.lanes.get(task.name)
        return lane is not None and lane.stale

    def _complain(self, lane: Lane, error: BaseException) -> None:
        """Log a failure once; again only when it becomes another one."""
        text = first_line(error)
        if text == lane.reported:
            return
        lane.reported = text
        last_good = "the last good value stays" if lane.task.entry else "there is no value yet"
        log.error("Task %r failed, %s: %s", lane.task.name, last_good, text, exc_info=own_traceback(error))

    def emit(self, event: str, task: Task[Any], run: Run) -> None:
        """Call the handlers of an event, in an executor: they can never hurt a run."""
        for handler in list(self._s.handlers[event]):
            executor = self._s.executors["loop" if is_async(handler) else "handler"]
            body = partial(handler, task, run)
            self._s.locked.submitted.add(executor)
            future = executor.submit(body)
            future.add_done_callback(partial(_report_handler, event, task.name))


def _report_handler(event: str, task: str, future: Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("Task %r: a handler of the event %r failed: %s", task, event, first_line(error), exc_info=error)
