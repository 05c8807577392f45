"""Plain functions, in a bounded number of daemon threads."""

from __future__ import annotations

import contextvars
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

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


class ThreadExecutor:
    """
    At most `max_threads` bodies at once, first come, first served.

    The standard library's pool joins its threads when the interpreter exits, so that one
    endless body would hold a stopping server; these are daemons.
    """

    def __init__(self, max_threads: int):
        self._places = max_threads
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._hurried = False
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._batch: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._pending: set[Future[Any]] = set()
        # In the queue and promised to nobody; threads that nothing is promised to; threads in all.
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._idle = 0
        self._threads = 0

    def submit(self, body: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
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

    def stop(self, grace: float) -> None:
        with self._lock:
            pending = list(self._pending)
        left = {future for future in pending if not future.cancel()}
        # A future wakes who waits for it before it calls its callbacks, and it is these that end a run.
        with self._ended:
            self._ended.wait_for(lambda: self._hurried or left.isdisjoint(self._pending), timeout=grace)

    def hurry(self) -> None:
        self._hurried = True
        with self._ended:
            self._ended.notify_all()

    @property
    def busy(self) -> bool:
        return bool(self._pending)

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
        while True:
            future, body = self._queue.get()
            self._run(future, body)
            # An idle worker must not keep the last value alive.
            del future, body
            with self._lock:
                lent = self._threads > self._places
                if lent:
                    self._threads -= 1
                else:
                    self._idle += 1
                self._serve()
            if lent:
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
                self._ended.notify_all()
