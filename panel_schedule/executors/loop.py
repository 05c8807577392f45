"""Async functions, and plain ones that ask for it, on the server's event loop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from ..errors import is_interrupt
from .base import Load

log = logging.getLogger("panel_schedule")

# What is started and ended between two turns of a loop, so that pages are served in between: as many bodies as take
# this long, in seconds, judged by those of the turn before; and at most so many.
TURN = 0.005
MOST = 64


class Interrupted(asyncio.CancelledError):
    """A body that ended as its loop did, or by Ctrl-C: not by what its function did."""


class LoopFuture(Future[Any]):
    """A future whose ``cancel()`` also reaches a body that is already running on the loop."""

    loop: asyncio.AbstractEventLoop | None = None
    task: asyncio.Task[Any] | None = None
    name = ""

    def cancel(self) -> bool:
        if super().cancel():
            return True
        task, loop = self.task, self.loop
        if task is not None and loop is not None:
            with suppress(RuntimeError):  # closed
                loop.call_soon_threadsafe(task.cancel)
        return False


class LoopExecutor:
    """
    Runs bodies on the loop that was adopted, and on one of its own where no server runs.

    Thousands of bodies that are due at once start, and end, over as many turns of the loop as they need.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._hurried = self._awaited = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._own: asyncio.AbstractEventLoop | None = None
        self._callers: asyncio.AbstractEventLoop | None = None
        self._batch: deque[tuple[LoopFuture, Callable[[], Any]]] = deque()
        self._running: set[LoopFuture] = set()
        # Bodies that are over, of which nobody has been told yet: what they gave, and what they raised.
        self._over: deque[tuple[LoopFuture, Any, BaseException | None]] = deque()
        # The loop that has been called, and has not come to it yet.
        self._called: asyncio.AbstractEventLoop | None = None
        # How many bodies have a turn, and when the last one began, where this one follows at once.
        self._share = MOST // 8
        self._turned: float | None = None
        # Loops whose threads wait for an answer, and how often.
        self._held = Counter[asyncio.AbstractEventLoop]()

    def adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this loop from now on: the server's or the notebook's."""
        with self._lock:
            self._loop = loop
        self.flush()
        for future in list(self._running):
            if future.loop is not None and future.loop.is_closed():
                # Its loop went away in the middle of it: it will never say so itself.
                self._running.discard(future)
                future.set_exception(Interrupted())

    def offer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this loop as long as it runs, where there is no server: what a script has opened belongs to its own."""
        self._callers = loop

    @property
    def adopted(self) -> asyncio.AbstractEventLoop | None:
        """The server's loop; None where there is none, or no longer."""
        loop = self._loop
        return None if loop is None or loop.is_closed() else loop

    def submit(self, body: Callable[[], Any], name: str = "") -> Future[Any]:
        future = LoopFuture()
        future.name = name
        self._batch.append((future, body))
        return future

    def flush(self) -> None:
        if self._batch:
            self._call(self._target())

    def lend(self) -> AbstractContextManager[object]:
        return nullcontext()

    @property
    def hanging(self) -> tuple[str, ...]:
        return ()  # a loop has no places

    @property
    def load(self) -> Load:
        return Load(len(self._running), len(self._batch))

    @property
    def workers(self) -> list[tuple[str, str]]:
        return []

    def runs_here(self, function: str) -> bool:
        """Whether the loop of this thread is in the middle of a function of this name."""
        loop = asyncio.get_running_loop()
        return any(future.loop is loop and future.name.endswith(f" {function!r}") for future in list(self._running))

    @contextmanager
    def hold(self) -> Iterator[None]:
        """While the thread of the running loop waits for what may need a loop: a loop of this one's own has to do."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._held[loop] += 1
        self.flush()  # what the loop has not begun
        try:
            yield
        finally:
            with self._lock:
                self._held -= Counter([loop])

    def stop(self, grace: float) -> None:
        with self._lock:
            own, self._own, adopted, self._loop = self._own, None, self._loop, None
        running = list(self._running)
        for future in [*(future for future, _ in list(self._batch)), *running]:
            future.cancel()
        if own is not None:
            own.call_soon_threadsafe(own.stop)
        # A loop that does not turn, or this thread's own, would end nothing while it is waited for.
        here = asyncio._get_running_loop()
        left = {f for f in running if f.loop is not None and f.loop is not here and f.loop.is_running()}
        # A future wakes who waits for it before it calls its callbacks, and it is these that end a run.
        with self._ended:
            self._awaited = True  # before it looks who runs
            self._ended.wait_for(lambda: self._hurried or left.isdisjoint(self._running), timeout=grace)
        if adopted is not None and here is None and not adopted.is_running() and not adopted.is_closed():
            # Bokeh stops its loop first and tells us then: let it turn once more, for the cleanup code.
            tasks = [f.task for f in running if f.loop is adopted and f.task is not None]
            if tasks:
                adopted.run_until_complete(asyncio.wait(tasks, timeout=grace))
        while self._over:
            self._end(*self._over.popleft())

    def hurry(self) -> None:
        self._hurried = True
        with self._ended:
            self._ended.notify_all()

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._called is not loop:
            self._called = loop  # first: it may come at once
            loop.call_soon_threadsafe(self._take_turn, context=contextvars.Context())

    def _take_turn(self) -> None:
        """Tell of bodies that are over, and start others. They run when this has returned."""
        loop, self._called = asyncio.get_running_loop(), None
        now = loop.time()
        if self._turned is not None:
            self._share = max(1, min(MOST, int(self._share * TURN / max(now - self._turned, 1e-6))))
        with suppress(IndexError):  # no more
            for _ in range(self._share):
                if self._over:
                    self._end(*self._over.popleft())
                else:
                    self._start(loop, *self._batch.popleft())
        self._turned = now if self._over or self._batch else None
        if self._over:
            self._call(loop)
        else:
            self.flush()

    def _start(self, loop: asyncio.AbstractEventLoop, future: LoopFuture, body: Callable[[], Any]) -> None:
        if future.set_running_or_notify_cancel():
            future.loop = loop
            self._running.add(future)
            # An empty context each: a task created inside a session would keep its document alive.
            future.task = loop.create_task(self._run(future, body), context=contextvars.Context())

    async def _run(self, future: LoopFuture, body: Callable[[], Any]) -> None:
        result = None
        try:
            result = body()
            if inspect.isawaitable(result):
                result = await result
        except BaseException as exc:
            outcome: BaseException | None = exc
            if is_interrupt(exc):
                # Ctrl-C that happens to arrive in here is the server's business: its loop gets it, and
                # no task keeps it, which would print it again at the end.
                outcome = Interrupted()
                asyncio.get_running_loop().call_soon(_interrupt)
        else:
            outcome = None
        future.task = None
        if len(self._running) > MOST:  # others may end in this same turn
            self._over.append((future, result, outcome))
            self._call(asyncio.get_running_loop())
        else:
            self._end(future, result, outcome)

    def _end(self, future: LoopFuture, result: Any, outcome: BaseException | None) -> None:
        try:
            if future.done():  # given up, when the loop went away
                return
            if outcome is None:
                future.set_result(result)
            else:
                future.set_exception(outcome)
        finally:
            self._running.discard(future)
            if self._awaited:
                with self._ended:
                    self._ended.notify_all()

    def _target(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is not None and not self._loop.is_closed() and self._loop not in self._held:
                return self._loop
            if self._callers is not None and self._callers.is_running() and self._callers not in self._held:
                return self._callers
            if self._own is None:
                self._own = asyncio.new_event_loop()
                thread = threading.Thread(target=_turn, args=[self._own], name="panel-schedule-loop", daemon=True)
                contextvars.Context().run(thread.start)
            return self._own


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """Until it is stopped; what was cancelled then gets to know of it."""
    while True:
        try:
            loop.run_forever()
        except BaseException:  # a SystemExit, say, in a task that a function has started: asyncio lets it through
            log.exception("A task of the event loop wanted to end it; the loop goes on.")
        else:
            break
    if left := asyncio.all_tasks(loop):
        loop.run_until_complete(asyncio.wait(left))
    loop.close()


def _interrupt() -> None:
    raise KeyboardInterrupt
