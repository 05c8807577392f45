"""
A scheduler that a test drives by hand.

The clock is virtual, no service thread runs, a thread's body is in flight until the test lets it
go, and the event loop turns only when told to: nothing here sleeps, and nothing is left to chance.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.executors.base import Load
from panel_schedule.functions.run import Run, RunRecord, RunState, place
from panel_schedule.functions.task import Task
from panel_schedule.runtime import Runtime
from panel_schedule.stores.base import Store
from panel_schedule.testing import VirtualClock

# What a test waits at most for a thread that has nothing more to wait for.
PATIENCE = 30.0

START = datetime(2026, 1, 1, tzinfo=UTC)


def second(number: float) -> datetime:
    """So many seconds after the beginning of a test."""
    return START + timedelta(seconds=number)


class Dismissed(BaseException):
    """Raised in a parked body when the test is over."""


class Body:
    """A body in its own thread. `still` while it is over, parked, or waits for another task."""

    def __init__(self, future: Future[Any], function: Callable[[], Any]):
        self.future = future
        self.function = function
        self.still = threading.Event()
        self.released = threading.Event()
        self.outcome: Any = None
        self._thread: threading.Thread | None = None

    def start(self, here: threading.local, lend: Callable[[], AbstractContextManager[object]]) -> None:
        def work() -> None:
            here.body = self
            place.lend = lend
            try:
                result = contextvars.Context().run(self.function)
            except BaseException as exc:
                self.future.set_exception(exc)
            else:
                self.future.set_result(result)
            finally:
                self.still.set()

        self._thread = threading.Thread(target=work, name="hand", daemon=True)
        self._thread.start()
        assert self.still.wait(PATIENCE), "a body neither ends nor parks"

    @property
    def waits(self) -> bool:
        """Whether it has still to be told of what it waits for; its thread needs a moment to go on when it was."""
        assert self._thread is not None
        with uncollected():
            frame = sys._current_frames().get(self._thread.ident or 0)
        if frame is None or frame.f_code is not threading.Condition.wait.__code__:
            return False
        names = frame.f_locals
        return "waiter" in names and names["waiter"] in names["self"]._waiters


@contextmanager
def uncollected() -> Iterator[None]:
    """
    Without Python's garbage collector.

    It may come to a `threading.local`, which needs a lock that `sys._current_frames` holds: with Python 3.11 the
    thread then waits for itself (https://github.com/python/cpython/issues/106883).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class HandExecutor:
    """An executor whose bodies start with `go`, one after another, and end when the test lets them."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._submitted: list[Body] = []
        self._handed_over: deque[Body] = deque()
        self._over = False
        self.parked: list[Body] = []
        self._lent: list[Body] = []

    hanging: tuple[str, ...] = ()
    load = Load()
    workers: tuple[tuple[str, str], ...] = ()

    def submit(self, body: Callable[[], Any], name: str = "") -> Future[Any]:
        future: Future[Any] = Future()
        self._submitted.append(Body(future, body))
        return future

    def flush(self) -> None:
        submitted, self._submitted = self._submitted, []
        self._handed_over.extend(submitted)

    @contextmanager
    def lend(self) -> Iterator[None]:
        body: Body = self._here.body
        self._lent.append(body)
        body.still.set()
        try:
            yield
        finally:
            body.still.clear()
            self._lent.remove(body)

    @property
    def lent(self) -> int:
        """How many bodies wait for something else."""
        return len(self._lent)

    def stop(self, grace: float) -> None:
        for body in (*self._submitted, *self._handed_over):
            body.future.cancel()

    def go(self) -> bool:
        """Start what was handed over, and let those go on that need not wait any more; False when there was nothing."""
        begun = self._go_on()
        while self._handed_over:
            body = self._handed_over.popleft()
            if body.future.set_running_or_notify_cancel():
                body.start(self._here, self.lend)
            begun = True
        return begun

    def _go_on(self) -> bool:
        begun, until = False, time.monotonic() + PATIENCE
        while told := [body for body in list(self._lent) if not body.waits]:
            begun = True
            time.sleep(0)  # it goes on by itself
            assert time.monotonic() < until, "a body neither ends nor waits"
            for body in told:
                assert body in self._lent or body.still.wait(PATIENCE), "a body neither ends nor parks"
        return begun

    def park(self) -> Any:
        """Called in a body: stay in flight until `release`; returns, or raises, what that was given."""
        body: Body = self._here.body
        body.released.clear()
        self.parked.append(body)
        body.still.set()
        assert body.released.wait(PATIENCE * 6)
        if self._over:
            raise Dismissed
        if isinstance(body.outcome, BaseException):
            raise body.outcome
        return body.outcome

    def release(self, outcome: Any = None, body: Body | None = None) -> None:
        """Let a parked body go on, the oldest by default, and wait until it is still again."""
        body = body or self.parked[0]
        self.parked.remove(body)
        body.outcome = outcome
        body.still.clear()
        body.released.set()
        assert body.still.wait(PATIENCE), "a body neither ends nor parks"

    def dismiss(self) -> None:
        self._over = True
        while self.parked:
            self.release()


class StepExecutor:
    """An executor whose bodies run in the thread of the test, one at each `step`: when a store is asked."""

    def __init__(self) -> None:
        self._submitted: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._handed_over: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, body: Callable[[], Any], name: str = "") -> Future[Any]:
        future: Future[Any] = Future()
        self._submitted.append((future, body))
        return future

    def flush(self) -> None:
        submitted, self._submitted = self._submitted, []
        self._handed_over.extend(submitted)

    def step(self) -> bool:
        """Run the oldest of what was handed over; False when there is nothing."""
        if not self._handed_over:
            return False
        future, body = self._handed_over.popleft()
        try:
            future.set_result(contextvars.Context().run(body))
        except Exception as exc:
            future.set_exception(exc)
        return True

    def go(self) -> bool:
        """Run all of it."""
        begun = False
        while self.step():
            begun = True
        return begun

    def stop(self, grace: float) -> None:
        pass


class Held:
    """A plain function that stays in flight until `finish`."""

    def __init__(self, executor: HandExecutor, name: str):
        self.__name__ = name
        self.calls = 0
        self._executor = executor
        self._bodies: list[Body] = []

    def __call__(self) -> Any:
        self.calls += 1
        self._bodies.append(self._executor._here.body)
        return self._executor.park()

    @property
    def flying(self) -> int:
        """How many calls are in flight."""
        return len(self._bodies)

    def finish(self, outcome: Any = None) -> None:
        """End the oldest call in flight with a value, or an exception."""
        self._executor.release(outcome, self._bodies.pop(0))


class Core:
    """
    Runtime, front and scheduler of one test.

    Parameters
    ----------
    clock : VirtualClock, optional
    store : Store, optional
        One that other cores share. Its calls are made by `go`, and news of the others come with `hear`.
    options
        Of ``ps.config``.
    """

    def __init__(
        self,
        clock: VirtualClock | None = None,
        store: Store | None = None,
        **options: Any,
    ):
        self.clock = clock or VirtualClock(START)
        self.config = Config({})
        for option, value in options.items():
            setattr(self.config, option, value)
        self.runtime = Runtime(self.config, self.clock)
        self.store = store
        if store is not None:
            self.runtime._make_store = lambda: store  # type: ignore[method-assign]
            store.listen = lambda: None  # type: ignore[method-assign]
        self.ps = Front(self.runtime)
        self.scheduler, self.service = self.runtime.scheduler, self.runtime.service
        self.service.start = lambda: None  # type: ignore[method-assign]
        self.thread = HandExecutor()
        for name in ("thread", "handler", "job-thread", "job-process", "memo-thread", "memo-process"):
            self.service.executors[name] = self.thread
        self.writer, self.publisher, self.alerts = StepExecutor(), StepExecutor(), StepExecutor()
        self.service.executors |= {"store": self.writer, "requests": self.writer, "publisher": self.publisher}
        self.service.executors["alert"] = self.alerts
        self.loop = asyncio.new_event_loop()
        self.runtime.loops.adopt(self.loop)

    def __enter__(self) -> Core:
        return self

    def __exit__(self, *exc: object) -> None:
        self.thread.dismiss()
        self.runtime.loops.stop(0)
        self._turn()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self._turn()
        self.loop.close()
        if self.store is not None:
            self.store.close()

    def schedule(self, *when: Any, name: str | None = None, **policy: Any) -> Callable[[Callable[[], Any]], Task[Any]]:
        """``ps.schedule``, but that a lambda needs no name."""

        def decorate(function: Callable[[], Any]) -> Task[Any]:
            nameless = getattr(function, "__name__", "") == "<lambda>" and name is None
            return self.ps.schedule(*when, name="task" if nameless else name, **policy)(function)

        return decorate

    # ------------------------------------------------------------ time

    def begin(self) -> None:
        """Start the clocks."""
        self.scheduler.begin()
        self.go()

    def go(self) -> bool:
        """Let everything run that can, until what is left waits for the test or the clock. False: there was nothing."""
        begun = False
        while self.thread.go() or self._turn() or self.writer.go() or self.publisher.go() or self.alerts.go():
            begun = True
        return begun

    def hear(self) -> bool:
        """Take in what other cores have stored; False when there was nothing."""
        assert self.store is not None
        seen = self.store.records._seen
        self.store.records._catch_up()
        return seen != self.store.records._seen

    def tick(self) -> float:
        """All that is due, of which the scheduler does some at a time, and what it leads to."""
        while True:
            delay = self.service.tick()
            if not self.go() or delay:
                return delay

    def advance(self, seconds: float) -> None:
        """Let the process be blocked for so long, and look at the clock only then."""
        self.clock.advance(seconds)
        self.tick()

    def run_for(self, seconds: float) -> None:
        """Let time pass as in real life: the scheduler wakes up at each of its deadlines."""
        until = self.clock.monotonic() + seconds
        while (left := until - self.clock.monotonic()) > 1e-6:
            delay = max(min(self.service.timers.delay(), left), 0.001)
            self.clock.advance(timedelta(seconds=delay))
            self.tick()

    def _turn(self) -> bool:
        turned = False
        while self._has_work():
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
            turned = True
        return turned

    def _has_work(self) -> bool:
        """Now or in an instant: the fan-out pauses for a millisecond between its bursts."""
        timers = self.loop._scheduled  # type: ignore[attr-defined]
        return bool(self.loop._ready) or any(  # type: ignore[attr-defined]
            not timer.cancelled() and timer.when() - self.loop.time() < 0.02 for timer in timers
        )

    # ------------------------------------------------------------ what is asked often

    def held(self, name: str) -> Held:
        return Held(self.thread, name)

    def run_of(self, task: Task[Any]) -> Run:
        """The run that holds the task now."""
        run = self.scheduler.states[task.name].run
        assert run is not None, f"{task.name} has no run"
        return run

    def queued(self, task: Task[Any]) -> Run | None:
        return self.scheduler.states[task.name].queued

    def events(self, *names: str) -> list[tuple[str, str]]:
        """(event, task) of what is told to the handlers of ``ps.on`` from now on."""
        told: list[tuple[str, str]] = []
        for name in names or ("succeeded", "failed", "recovered", "stale", "skipped"):
            self.ps.on(name, lambda task, run, name=name: told.append((name, task.name)))
        return told


def short(records: list[RunRecord]) -> list[tuple[str, str]]:
    """(state, reason) of a history, oldest first."""
    return [(str(record.state), record.reason) for record in reversed(records)]


def messages(caplog: Any, level: int = logging.WARNING) -> list[str]:
    """What the package logged from `level` on."""
    return [
        record.getMessage() for record in caplog.records if record.levelno >= level and record.name == "panel_schedule"
    ]


def keys(task: Task[Any]) -> list[Any]:
    """The slots of the runs that a history holds, oldest first."""
    return [record.key for record in reversed(task.history) if record.state is not RunState.SKIPPED]
