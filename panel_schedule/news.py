"""What is told of a task: that its value is stale, that it failed, how far it has come."""

from __future__ import annotations

import logging
import re
import threading
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

# What goes on failing is logged again after so many failures, or seconds.
EVERY = 10
MINUTE = 60.0

# So many kinds of failure of one function are shown with their traceback.
KINDS = 10

# After so many seconds without a failure that of a job or a memoized function is a first one again.
FORGET = 600.0

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


class _Failing:
    """A function that fails, again and again."""

    __slots__ = ("at", "count", "kinds", "since", "told", "told_at")

    def __init__(self, now: float):
        self.since = self.at = self.told_at = now
        self.count = self.told = 0
        self.kinds: set[str] = set()


class FailureLog:
    """
    What the log says of functions that fail: of each kind of failure the first one with its traceback.

    Then one line per further `EVERY` failures, or per minute. On any thread.
    """

    def __init__(self, clock: Clock):
        self._clock = clock
        self._lock = threading.Lock()
        self._failing: dict[tuple[str, str], _Failing] = {}

    def failed(self, name: tuple[str, str], what: str, error: BaseException, forget: float = float("inf")) -> None:
        """
        Log that it has failed.

        Parameters
        ----------
        name : tuple of str
            Kind and name of the function.
        what : str
            The beginning of the line: what has failed, and what that means.
        error : BaseException
        forget : float
            After so many seconds without a failure the next one is a first one again.
        """
        now, text = self._clock.monotonic(), first_line(error)
        # Numbers are of the moment: a port, an id, how many rows.
        kind = re.sub(r"\d+", "0", text)
        with self._lock:
            failing = self._failing.get(name)
            if failing is None or now - failing.at > forget:
                failing = self._failing[name] = _Failing(now)
            failing.at, failing.count = now, failing.count + 1
            new = kind not in failing.kinds and len(failing.kinds) < KINDS
            if new:
                failing.kinds.add(kind)
            elif failing.count - failing.told < EVERY and now - failing.told_at <= MINUTE:
                return
            failing.told, failing.told_at = failing.count, now
            times = "" if failing.count == 1 else f" ({failing.count} times in {_lasting(now - failing.since)})"
        if new:
            log.error("%s: %s", what, text, exc_info=own_traceback(error))
        else:
            log.error("%s: %s%s", what, text, times)

    def began(self, name: tuple[str, str]) -> None:
        """It has failed, and another process has said so."""
        with self._lock:
            self._failing.setdefault(name, _Failing(self._clock.monotonic()))

    def ended(self, name: tuple[str, str]) -> str | None:
        """It is well again: how long it was not, and how often it has failed here; None when it was."""
        with self._lock:
            failing = self._failing.pop(name, None)
        if failing is None:
            return None
        lasted = _lasting(self._clock.monotonic() - failing.since)
        return f"{lasted} and {failing.count} failed run{'s'[: failing.count > 1]}" if failing.count else lasted

    def known(self, name: tuple[str, str]) -> bool:
        """Whether its failing has been logged already."""
        return name in self._failing


def _lasting(seconds: float) -> str:
    """``90 s``, ``25 min``, ``7.5 h``."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.3g} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 120 * MINUTE else f"{seconds / (60 * MINUTE):.1f} h"


class News:
    """The part of the scheduler that tells: the log, the handlers of ``ps.on``, the pages; under its lock."""

    def __init__(self, desk: Desk):
        self._s = desk
        self.failures = FailureLog(desk.clock)

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

    def complain(self, lane: Lane, run: Run, error: BaseException) -> None:
        """Log a failure of this process's own."""
        last_good = "the last good value stays" if lane.task.entry else "there is no value yet"
        self.failures.failed(("task", run.task), f"Task {run.task!r} failed (run {run.id}), {last_good}", error)

    def recovered(self, lane: Lane, run: Run) -> None:
        """Log that a task is well again."""
        lasted = self.failures.ended(("task", run.task))
        if lasted is not None:
            log.warning("Task %r has recovered after %s (run %s).", run.task, lasted, run.id)
        else:
            log.info("Task %r has recovered (run %s).", run.task, run.id)

    def follow(self, lane: Lane, error: str) -> None:
        """Another process says how the last run has ended: what its log says, and from when on it counts here."""
        if error and not lane.error:
            self.failures.began(("task", lane.task.name))
        elif not error:
            self.failures.ended(("task", lane.task.name))
        lane.error = error

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
