"""Plain functions, in a bounded number of daemon threads."""

from __future__ import annotations

import contextvars
import logging
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from ..functions.run import place
from .base import Load

log = logging.getLogger("panel_schedule")

# So many times its places an executor gives back, of bodies that nobody waits for any more and that still run.
GIVEN_BACK = 8

# A thread that burns CPU hands the interpreter over this often instead of every 5 ms,
# so that the event loop beside it keeps its rhythm.
SWITCH_INTERVAL = 0.0005


class _Switching:
    """Shortens the interpreter's switch interval while at least one body runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = 0
        self._before = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._active += 1
            if self._active == 1:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(SWITCH_INTERVAL, self._before))

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._active -= 1
            if self._active == 0:
                sys.setswitchinterval(self._before)


_switching = _Switching()


class PlacedFuture(Future[Any]):
    """A future whose body has a place in a pool, and a name."""

    def __init__(self, give_back: Callable[[PlacedFuture], object], name: str):
        super().__init__()
        self._give_back = give_back
        self.name = name

    def cancel(self) -> bool:
        """Keep it from beginning, or give its place to another body."""
        if super().cancel():
            return True
        self.leave()
        return False

    def leave(self) -> None:
        """Nobody waits for it any more: its place goes to another body, while it may still run."""
        self._give_back(self)


class ThreadExecutor:
    """
    At most `max_threads` bodies at once, first come, first served.

    The standard library's pool joins its threads when the interpreter exits, so that one
    endless body would hold a stopping server; these are daemons. A body that nobody waits for any
    more gives its place back: another thread does the work meanwhile, up to a limit.
    """

    def __init__(self, max_threads: int):
        self._places = max_threads
        # Bodies that nobody waits for any more, in the order of that, and how many of them may give their place back.
        self._left: dict[Future[Any], str] = {}
        self._most_left = GIVEN_BACK * max_threads
        self._complained = False
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._hurried = False
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._batch: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._pending: set[Future[Any]] = set()
        # In the queue and promised to nobody; threads that nothing is promised to; threads in all.
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._idle = 0
        self._threads = 0
        # Whether a thread that has nothing more to do ends.
        self._stopped = False

    def submit(self, body: Callable[[], Any], name: str = "") -> Future[Any]:
        future = PlacedFuture(self.give_back, name)
        with self._lock:
            self._stopped = False
            self._pending.add(future)
            self._batch.append((future, body))
        return future

    def flush(self) -> None:
        if self._batch:
            with self._lock:
                batch, self._batch = self._batch, []
                for item in batch:
                    self._waiting.append(item)
                    self._serve()

    @contextmanager
    def lend(self) -> Iterator[None]:
        with self._lock:
            self._places += 1
            self._serve()
        try:
            yield
        finally:
            with self._lock:
                self._places -= 1

    def give_back(self, future: PlacedFuture) -> None:
        """Let another body begin, though this one still runs."""
        with self._lock:
            if future in self._left or future not in self._pending or not future.running():
                return
            self._left[future] = future.name
            if len(self._left) <= self._most_left:
                self._places += 1
                self._serve()
            full = len(self._left) >= self._most_left and not self._complained
            self._complained |= full
        if full:
            log.error(
                "%d functions still run though nobody waits for them any more (timed out or cancelled): %s. No further "
                "one gives its place to another. Have them end: with a timeout for what they wait for, with "
                "ps.progress() in their loops, or with executor='process'.", len(self._left), ", ".join(self.hanging),
            )  # fmt: skip

    @property
    def hanging(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(sorted(set(filter(None, self._left.values()))))

    def stop(self, grace: float) -> None:
        with self._lock:
            pending = list(self._pending)
        # Not their own `cancel`: nothing takes the place of what runs.
        left = {future for future in pending if not Future.cancel(future)}
        # A future wakes who waits for it before it calls its callbacks, and it is these that end a run.
        with self._ended:
            self._ended.wait_for(lambda: self._hurried or left.isdisjoint(self._pending), timeout=grace)
        self._dismiss()

    def _dismiss(self) -> None:
        """Let the threads end that have nothing to do, now or later."""
        with self._lock:
            self._stopped = True
            for _ in range(self._idle):
                self._queue.put(None)
            self._threads -= self._idle
            self._idle = 0

    def hurry(self) -> None:
        self._hurried = True
        with self._ended:
            self._ended.notify_all()

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    @property
    def load(self) -> Load:
        with self._lock:
            waiting = len(self._waiting) + len(self._batch)
            return Load(len(self._pending) - waiting, waiting, self._places)

    @property
    def workers(self) -> list[tuple[str, str]]:
        return []

    def _serve(self) -> None:
        """Promise what waits to a thread, if there is a place."""
        if not self._waiting or self._threads - self._idle >= self._places:
            return
        # Only now: an idle thread beyond the places would take what lies in the queue.
        self._queue.put(self._waiting.popleft())
        if self._idle:
            self._idle -= 1
            return
        self._threads += 1
        thread = threading.Thread(target=self._work, name=f"panel-schedule-{self._threads}", daemon=True)
        # Python 3.14 may hand the starter's context to the thread: a session's would keep its document alive.
        contextvars.Context().run(thread.start)

    def _work(self) -> None:
        place.lend = self.lend
        while True:
            if (item := self._queue.get()) is None:
                return
            future, body = item
            try:
                self._run(future, body)
            except BaseException:  # of what the future calls at its end; the thread has others to serve
                log.exception("What follows the end of a body failed.")
            # An idle worker must not keep the last value alive.
            del future, body, item
            with self._lock:
                needless = self._threads > self._places or (self._stopped and not self._waiting)
                if needless:
                    self._threads -= 1
                else:
                    self._idle += 1
                self._serve()
            if needless:
                return

    def _run(self, future: Future[Any], body: Callable[[], Any]) -> None:
        try:
            if future.set_running_or_notify_cancel():
                with _switching:
                    try:
                        result = contextvars.Context().run(body)
                    except BaseException as exc:
                        error: BaseException | None = exc
                    else:
                        error = None
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
        finally:
            with self._ended:
                self._pending.discard(future)
                if self._left.pop(future, None) is not None:
                    self._places -= len(self._left) < self._most_left
                    self._complained &= bool(self._left)
                self._ended.notify_all()
