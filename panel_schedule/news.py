"""What is told of a task: that its value is stale, that it failed, how far it has come."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from .clock import Clock
from .errors import RunSkipped
from .executors.base import Executor
from .lanes import Lane
from .ledger import Ledger
from .locked import Locked
from .registry import Named
from .run import Run, RunState, first_line, own_traceback
from .session import leave_session
from .stores.base import Store
from .task import Task, is_async
from .timers import Timers

log = logging.getLogger("panel_schedule")

Handler = Callable[[Any, Run], Any]
EVENTS = ("failed", "recovered", "skipped", "stale", "succeeded")

# How often, in seconds, the other processes hear of a run's progress.
TELL = 0.1


class Desk(Protocol):
    """What the news need of the scheduler."""

    clock: Clock
    store: Store
    executors: dict[str, Executor]
    handlers: dict[str, list[Handler]]
    lanes: dict[str, Lane]
    timers: Timers
    locked: Locked
    ledger: Ledger
    changed: Callable[[Task[Any]], object]

    def defer(self, call: Callable[[], object]) -> None: ...
    def touch(self, lane: Lane) -> None: ...


class News:
    """The part of the scheduler that tells: the log, the handlers of ``ps.on``, the pages; under its lock."""

    def __init__(self, desk: Desk):
        self._s = desk

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

    def complain(self, lane: Lane, error: BaseException) -> None:
        """Log a failure once; again only when it becomes another one."""
        text = first_line(error)
        if text == lane.reported:
            return
        lane.reported = text
        last_good = "the last good value stays" if lane.task.entry else "there is no value yet"
        log.error("Task %r failed, %s: %s", lane.task.name, last_good, text, exc_info=own_traceback(error))

    def emit(self, event: str, task: Named, run: Run) -> None:
        """Call the handlers of an event, in an executor: they can never hurt a run."""
        for handler in list(self._s.handlers[event]):
            executor = self._s.executors["loop" if is_async(handler) else "handler"]
            body = partial(_tell, event, handler, task, run)
            self._s.locked.submitted.add(executor)
            future = executor.submit(body)
            future.add_done_callback(partial(_report_handler, event, task.name))

    def skipped(self, lane: Lane, run: Run, new: bool) -> None:
        """Say so, if it is news."""
        if new:
            self.emit("skipped", lane.task, run)

    def progressed(self, lane: Lane) -> None:
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


def _tell(event: str, handler: Handler, task: Named, run: Run) -> Any:
    leave_session(f"A handler of the event {event!r}, {getattr(handler, '__qualname__', handler)!r},")
    return handler(task, run)


def _report_handler(event: str, task: str, future: Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("Task %r: a handler of the event %r failed: %s", task, event, first_line(error), exc_info=error)
