"""The lock of a process's service, and what happens when it is given back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from ..errors import is_interrupt
from ..executors.base import Executor

log = logging.getLogger("panel_schedule")


class Bell:
    """Wakes one sleeping thread; rung before it sleeps, it wakes it at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        with suppress(RuntimeError):  # rung already
            self._lock.release()

    def wait(self, timeout: float) -> None:
        self._lock.acquire(timeout=timeout)


class Locked:
    """The service's lock. What was deferred while it was held is called when it is free again."""

    def __init__(
        self,
        lock: threading.RLock,
        released: Callable[[], object],
        changed: Callable[[Any], object] = lambda thing: None,
    ):
        self._lock = lock
        self._released = released
        self.changed = changed
        # Who waits for something of somebody else, and what finds those who need not wait any more.
        self.waits: list[Any] = []
        self.settle: Callable[[], object] = lambda: None
        self._depth = 0
        self.deferred: list[Callable[[], object]] = []
        # Whose status has changed, each once.
        self.touched: set[Any] = set()
        self.submitted: set[Executor] = set()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *exc: object) -> None:
        try:
            if self._depth == 1 and self.waits:
                # Something may have ended, or will not come: who waited for it goes on.
                self.settle()
        finally:
            self._depth -= 1
            if self._depth:
                self._lock.release()
            else:
                self._open()

    def _open(self) -> None:
        if not (self.submitted or self.touched or self.deferred):
            self._lock.release()
            self._released()
            return
        # The next holder collects into sets of its own.
        submitted, self.submitted = self.submitted, set()
        touched, self.touched = self.touched, set()
        deferred, self.deferred = self.deferred, []
        self._lock.release()
        calls: list[Callable[[], object]] = [executor.flush for executor in submitted]
        calls.append(self._released)
        if touched:
            calls += [partial(self.changed, thing) for thing in touched]
        calls += deferred
        interrupt = None
        for call in calls:
            try:
                call()
            except BaseException as error:
                if is_interrupt(error):
                    interrupt = error  # once the other ones are called
                else:
                    log.exception("A callback of a run failed; the other ones are not affected.")
        if interrupt is not None:
            raise interrupt
