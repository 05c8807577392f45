"""What all processes of a server have counted: whichever of them is asked gives the same sums."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tornado.process import task_id

from ..engine.counts import Key
from ..runtime import Runtime
from ..server import supervisor
from .shared_memory import PLACES, SharedMemory

log = logging.getLogger("panel_schedule")

# Seconds after which what this process has counted is there for the others.
PUBLISH = 2.0

Numbers = dict[Key, float]


class Totals:
    """
    The counts of a server.

    With one process they are its own. Several that were forked by a supervisor share memory: each writes there what it
    has counted, every two seconds and when it is asked, and who is asked adds them up. As the place of a process
    outlives it, and the one that is started in its stead goes on from there, no sum ever falls; and it takes no store.

    Parameters
    ----------
    runtime : Runtime
    sessions : callable
        How many are open in this process.
    """

    def __init__(self, runtime: Runtime, sessions: Callable[[], int]):
        self._runtime, self._sessions = runtime, sessions
        self._memory = SharedMemory()
        self._made_in = os.getpid()
        self._lock = threading.Lock()
        # The process that this is; its place, None where it is the only one; and what its predecessors have counted.
        self._pid = 0
        self._place: int | None = None
        self._before: Numbers = {}
        self._told = b""
        self._complained = False

    def begin(self, loop: asyncio.AbstractEventLoop, aside: Callable[[Callable[[], Any]], Future[Any]]) -> None:
        """
        From now on write for the other processes what this one counts, if there are any. Idempotent.

        Parameters
        ----------
        aside : callable
            Has it written on a thread; where that takes long, nothing more is asked of it meanwhile.
        """
        with self._lock:
            if self._pid == os.getpid():
                return
            self._enter()
            if self._place is None:
                return

        def again(published: Future[Any] | None) -> None:
            if published is None or published.done():
                published = aside(self.publish)
            loop.call_later(PUBLISH, again, published)

        again(None)

    def read(self) -> tuple[Numbers, Numbers]:
        """The sums of what only grows, and of what is there now. Takes some milliseconds."""
        counts, gauges = self.publish()
        for place in range(PLACES) if self._place is not None else ():
            if place != self._place and (text := self._memory.read(place)):
                others = _of_text(text)
                counts, gauges = _sum(counts, others[0]), _sum(gauges, others[1])
        return counts, gauges

    def publish(self) -> tuple[Numbers, Numbers]:
        """Write for the others what this process has counted; that is what it gives."""
        with self._lock:
            if self._pid != os.getpid():
                self._enter()
            counts, gauges = _sum(self._before, self._counted()), self._gauges()
            if self._place is not None:
                text = _as_text(counts, gauges)
                if text != self._told:
                    self._told = text
                    if not self._memory.write(self._place, text) and not self._complained:
                        self._complained = True
                        log.warning(
                            "/schedule/metrics: there is no room for what this process counts (of thousands of "
                            "functions, or beside 64 other processes), so that the others do not have its numbers. "
                            "Run replicas with fewer processes each."
                        )
            return counts, gauges

    def _enter(self) -> None:
        self._pid = os.getpid()
        forked = self._pid != self._made_in and supervisor.find()
        self._place = task_id() if forked else None
        self._before, self._told = {}, b""
        if self._place is not None and (text := self._memory.read(self._place)):
            self._before = _of_text(text)[0]

    def _counted(self) -> Numbers:
        hits = {("hits", memo.name): memo.lru.hits for memo in list(self._runtime.memos.values())}
        return self._runtime.counts.snapshot() | hits

    def _gauges(self) -> Numbers:
        gauges: Numbers = {("queue", kind): waiting for kind, waiting in self._runtime.waiting().items()}
        for memo in list(self._runtime.memos.values()):
            answers = list(memo.lru.answers.values())
            gauges["answers", memo.name] = len(answers)
            gauges["bytes", memo.name] = sum(answer.size for answer in answers)
        return gauges | {("sessions",): self._sessions()}


def _sum(one: Numbers, other: Numbers) -> Numbers:
    total = dict(one)
    for key, value in other.items():
        total[key] = total.get(key, 0) + value
    return total


def _as_text(*numbers: Numbers) -> bytes:
    return json.dumps([[[*key, value] for key, value in each.items()] for each in numbers]).encode()


def _of_text(text: bytes) -> tuple[Numbers, Numbers]:
    counts, gauges = ({tuple(key): value for *key, value in each} for each in json.loads(text))
    return counts, gauges
