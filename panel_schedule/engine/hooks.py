"""Who is told what became of runs: the handlers of ``ps.on``, and the log."""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from ..clock import Clock
from ..executors.base import Executor
from ..executors.loop import Interrupted
from ..functions.calls import CANCELLED, is_async
from ..functions.registry import Named
from ..functions.run import Run
from ..serialize.errors import bare, first_line
from ..session import leave_session
from .lock import Locked
from .timers import Timer, Timers

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
            times = "" if failing.count == 1 else f" ({failing.count} times in {lasting(now - failing.since)})"
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
        lasted = lasting(self._clock.monotonic() - failing.since)
        return f"{lasted} and {failing.count} failed run{'s'[: failing.count > 1]}" if failing.count else lasted

    def known(self, name: tuple[str, str]) -> bool:
        """Whether its failing has been logged already."""
        return name in self._failing


def lasting(seconds: float) -> str:
    """``90 s``, ``25 min``, ``7.5 h``."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.3g} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 120 * MINUTE else f"{seconds / (60 * MINUTE):.1f} h"


class Hooks:
    """
    Calls the handlers of ``ps.on``, and has the log of failures.

    Attributes
    ----------
    failures : FailureLog
    stopping : bool
        Whether the server stops: a handler that this ends has not failed.
    listeners : list of callable
        Called as ``listener(event, task, run)`` at once, under the lock: they only take note.
    """

    def __init__(
        self,
        clock: Clock,
        executors: dict[str, Executor],
        handlers: dict[str, list[Handler]],
        timers: Timers,
        locked: Locked,
    ):
        self._executors = executors
        self._handlers = handlers
        self._timers = timers
        self._locked = locked
        self.failures = FailureLog(clock)
        self.stopping = False
        self.listeners: list[Callable[[str, Named, Run], object]] = []

    def emit(self, event: str, task: Named, run: Run) -> None:
        """Call the handlers of an event, in an executor: they can never hurt a run."""
        for listener in self.listeners:
            listener(event, task, run)
        for handler in list(self._handlers[event]):
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
        executor = self._executors["loop" if is_async(handler.function) else "handler"]
        self._locked.submitted.add(executor)
        call.future = executor.submit(partial(self._call, call), call.name)
        call.future.add_done_callback(partial(self._called, call))

    def _call(self, call: HandlerCall) -> Any:
        """In the executor."""
        if (timeout := call.handler.timeout) is not None:
            with self._locked:
                call.timer = self._timers.after(timeout, self._give_up, call)
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
        with self._locked:
            self._timers.cancel(call.timer)
            if call.handler.call is call:
                call.handler.call = None
                self._call_next(call.handler)
        error = None if call.late or future.cancelled() else future.exception()
        stopped = isinstance(error, CANCELLED) and (self.stopping or isinstance(error, Interrupted))
        if error is not None and not stopped:
            log.error("Task %r: the %s failed: %s", call.task.name, call.name, first_line(error), exc_info=bare(error))
