"""What is told of a task: that its value is stale, that it failed, how far it has come."""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from ..clock import Clock
from ..engine.lock import Locked
from ..engine.outbox import Outbox
from ..engine.timers import Timer, Timers
from ..errors import RunSkipped
from ..executors.base import Executor
from ..executors.loop import Interrupted
from ..functions.calls import CANCELLED, is_async
from ..functions.registry import Named
from ..functions.run import Run, RunState
from ..functions.task import Task
from ..serialize.errors import bare, first_line
from ..session import leave_session
from ..stores.base import Store
from .state import TaskState, Waves

log = logging.getLogger("panel_schedule")

EVENTS = ("failed", "recovered", "skipped", "stale", "succeeded")

# What goes on failing is logged again after so many failures, or seconds.
EVERY = 10
MINUTE = 60.0

# So many kinds of failure of one function are shown with their traceback.
KINDS = 10

# After so many seconds without a failure that of a job or a memoized function is a first one again.
FORGET = 600.0

# So many events wait for a handler at most.
LONGEST_QUEUE = 1000

# How often, in seconds, the other processes hear of a run's progress.
TELL = 0.1


class Handler:
    """A function of ``ps.on``, and how many seconds it may take; it is called for one event after another."""

    __slots__ = ("call", "function", "timeout", "waiting")

    def __init__(self, function: Callable[[Any, Run], Any], timeout: float | None = None):
        self.function = function
        self.timeout = timeout
        # Under way, and what follows it.
        self.call: HandlerCall | None = None
        self.waiting: deque[HandlerCall] = deque(maxlen=LONGEST_QUEUE)


class HandlerCall:
    """One call of a handler, from the time when it begins."""

    __slots__ = ("event", "future", "handler", "late", "run", "task", "timer")

    def __init__(self, event: str, handler: Handler, task: Named, run: Run):
        self.event = event
        self.handler = handler
        self.task = task
        self.run = run
        self.future: Future[Any] | None = None
        self.timer: Timer | None = None
        self.late = False

    @property
    def name(self) -> str:
        """As the log has it."""
        function = self.handler.function
        return f"handler {getattr(function, '__qualname__', None) or function!r} of the event {self.event!r}"


class Desk(Protocol):
    """What hooks need of the scheduler."""

    clock: Clock
    store: Store
    executors: dict[str, Executor]
    handlers: dict[str, list[Handler]]
    states: dict[str, TaskState]
    timers: Timers
    waves: Waves
    locked: Locked
    outbox: Outbox
    stopping: bool
    changed: Callable[[Task[Any]], object]

    def defer(self, call: Callable[[], object]) -> None: ...
    def touch(self, state: TaskState) -> None: ...


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
            log.error("%s: %s", what, text, exc_info=bare(error))
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


class Hooks:
    """The part of the scheduler that tells: the log, the handlers of ``ps.on``, the pages; under its lock."""

    def __init__(self, desk: Desk):
        self._s = desk
        self.failures = FailureLog(desk.clock)

    def judge(self, state: TaskState) -> None:
        """Work out whether the value is stale, and say so when that has changed."""
        limit, entry = state.task.policy.stale_after, state.task.known
        if limit is not None:
            now = self._s.clock.now()
            stale = entry is not None and now - entry.updated_at >= limit
            if entry is not None and not stale:
                self._s.timers.cancel(state.stale_timer)
                state.stale_timer = self._s.timers.at(entry.updated_at + limit, self.judge, state)
        else:
            stale = state.error != "" or (state.missed >= 2 and entry is not None)
        state.fault = stale
        # What is made of a stale value is stale, too. Tasks may read each other: neither is stale for the other's sake.
        stale = stale or (bool(state.sources) and any(each.fault for each in self._sources(state)))
        if stale == state.stale:
            return
        state.stale = stale
        self._s.touch(state)
        run = state.run
        if run is None:
            run = Run(state.task.name, None, self._s.clock.now())
            run.reason = "stale"
            error = RunSkipped(f"Task {run.task!r}: a value that got stale is no run.")
            run.end(RunState.SKIPPED, run.queued_at, error)
            self._s.defer(run.resolve)
        self._s.outbox.ask(
            [state], partial(self._s.store.mark_stale, state.task.name, stale), partial(self._flipped, state, run)
        )
        for product in self._s.waves.products(state.task):
            self.judge(product)

    def _flipped(self, state: TaskState, run: Run, first: bool) -> None:
        """All processes find it stale; one of them says so."""
        if first and state.stale:
            self.emit("stale", state.task, run)

    def _sources(self, state: TaskState) -> Iterator[TaskState]:
        """It, and all whose values its own is made of."""
        seen, ahead = {state}, [state]
        while ahead:
            yield (each := ahead.pop())
            there = {self._s.states.get(task.name) for task in each.sources}
            new = {source for source in there if source is not None} - seen
            seen |= new
            ahead += new

    def complain(self, state: TaskState, run: Run, error: BaseException) -> None:
        """Log a failure of this process's own."""
        last_good = "the last good value stays" if state.task.known else "there is no value yet"
        self.failures.failed(("task", run.task), f"Task {run.task!r} failed (run {run.id}), {last_good}", error)

    def recovered(self, state: TaskState, run: Run) -> None:
        """Log that a task is well again."""
        lasted = self.failures.ended(("task", run.task))
        if lasted is not None:
            log.warning("Task %r has recovered after %s (run %s).", run.task, lasted, run.id)
        else:
            log.info("Task %r has recovered (run %s).", run.task, run.id)

    def follow(self, state: TaskState, error: str) -> None:
        """Another process says how the last run has ended: what its log says, and from when on it counts here."""
        if error and not state.error:
            self.failures.began(("task", state.task.name))
        elif not error:
            self.failures.ended(("task", state.task.name))
        state.error = error

    def emit(self, event: str, task: Named, run: Run) -> None:
        """Call the handlers of an event, in an executor: they can never hurt a run."""
        for handler in list(self._s.handlers[event]):
            if len(handler.waiting) == LONGEST_QUEUE:
                dropped = handler.waiting[0]
                log.error("Task %r: the %s is behind; its oldest event is dropped.", dropped.task.name, dropped.name)
            handler.waiting.append(HandlerCall(event, handler, task, run))
            self._call_next(handler)

    def _call_next(self, handler: Handler) -> None:
        """A handler that hangs holds up no other one. Under the lock."""
        if handler.call is not None or not handler.waiting:
            return
        call = handler.call = handler.waiting.popleft()
        executor = self._s.executors["loop" if is_async(handler.function) else "handler"]
        self._s.locked.submitted.add(executor)
        call.future = executor.submit(partial(self._call, call), call.name)
        call.future.add_done_callback(partial(self._called, call))

    def _call(self, call: HandlerCall) -> Any:
        """In the executor."""
        if (timeout := call.handler.timeout) is not None:
            with self._s.locked:
                call.timer = self._s.timers.after(timeout, self._give_up, call)
        leave_session(f"The {call.name}")
        return call.handler.function(call.task, call.run)

    def _give_up(self, call: HandlerCall) -> None:
        """It hangs: what comes next goes on, in its place. Under the lock."""
        call.late, call.handler.call = True, None
        log.error(
            "Task %r: the %s did not finish within %g s, and is left behind, so that the next events reach it. Give "
            "what it waits for a timeout, or it a longer one: ps.on(%r, ..., timeout='2m').",
            call.task.name, call.name, call.handler.timeout, call.event,
        )  # fmt: skip
        if call.future is not None:
            call.future.cancel()
        self._call_next(call.handler)

    def _called(self, call: HandlerCall, future: Future[Any]) -> None:
        with self._s.locked:
            self._s.timers.cancel(call.timer)
            if call.handler.call is call:
                call.handler.call = None
                self._call_next(call.handler)
        error = None if call.late or future.cancelled() else future.exception()
        stopped = isinstance(error, CANCELLED) and (self._s.stopping or isinstance(error, Interrupted))
        if error is not None and not stopped:
            log.error("Task %r: the %s failed: %s", call.task.name, call.name, first_line(error), exc_info=bare(error))

    def skipped(self, state: TaskState, run: Run, new: bool) -> None:
        """Say so, if it is hooks."""
        if new:
            self.emit("skipped", state.task, run)

    def progressed(self, state: TaskState) -> None:
        """On the thread of the run: the pages hear of it here, and now and then in the other processes."""
        self._s.changed(state.task)
        if self._s.store.blocking and not state.telling:
            state.telling = True
            with self._s.locked:
                self._s.timers.after(TELL, self._tell_progress, state)

    def _tell_progress(self, state: TaskState) -> None:
        state.telling = False
        if state.claim is not None and state.run is not None and not state.run.state.final:
            run, store = state.run, self._s.store
            self._s.outbox.ask([state], partial(store.progress, state.claim, run.percent, run.message))
