"""What a process says of itself to those that share its store: for whoever looks at the workers."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from contextvars import Context
from datetime import datetime
from functools import partial
from typing import NamedTuple

from ..clock import Clock
from ..coordination import processes
from ..coordination.processes import SPACE, ProcessState
from ..errors import ScheduleError
from ..functions.registry import EXECUTORS
from ..stores.hurry import leaving
from ..stores.records import Change, RecordStore, Tell
from .service import Service
from .timers import Timer

log = logging.getLogger("panel_schedule")

# So often, in seconds, it is said what has changed; and all of it, as a store may have lost it.
EVERY, AGAIN = 5.0, 60.0


class Process(NamedTuple):
    """
    One process that shares the store.

    Attributes
    ----------
    name : str
        As an owner.
    state : ProcessState
        What it has said last.
    heard : datetime
        When that was.
    alive, here : bool
        Whether it lives, and is the one that shows this.
    """

    name: str
    state: ProcessState
    heard: datetime
    alive: bool
    here: bool = False


class OwnRecord:
    """
    The record of this process.

    Nobody is told of it: with many processes each would hear of each of them all the time. Who wants to know looks.

    Parameters
    ----------
    records : RecordStore
    clock : Clock
    """

    def __init__(self, records: RecordStore, clock: Clock):
        self._records, self._clock = records, clock
        self._told: ProcessState | None = None
        self._told_at = 0.0
        # One thread at a time says something; and whether all is said.
        self._telling, self._ended = threading.Lock(), False

    def tell(self, now: Callable[[], ProcessState]) -> None:
        """Say what there is to say, if it is new, or was said long ago."""
        at, me = self._clock.monotonic(), self._records.me
        with self._telling:
            state = now()
            if self._ended or (state == self._told and at < self._told_at + AGAIN):
                return
            tell = partial(processes.tell, me=me, state=state, now=self._clock.now())
            try:
                self._records.write([Change(SPACE, me, tell)], tell=Tell.LATER)
            except ScheduleError as error:
                log.debug("What this process is at is told later: %s", error)
            else:
                self._told, self._told_at = state, at

    def end(self, said: bool = True) -> None:
        """Say nothing any more; nothing of it is left, if something was `said`."""
        with self._telling:
            self._ended = True
            if not said:
                return
            try:
                with leaving():
                    self._records.write([Change(SPACE, self._records.me, processes.leave)])
            except ScheduleError as error:
                log.debug("That this process ends is not in the store: %s", error)


class Presence:
    """
    The record of a process of a server, while its clocks turn; where no other process shares the store there is none.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service):
        self._service, self._records = service, service.store.records
        self._own = OwnRecord(self._records, service.clock)
        self._since: datetime | None = None
        self._timer: Timer | None = None
        service.sources.append(self)

    def begin(self) -> None:
        """The clocks turn. Idempotent."""
        with self._service.locked:
            if self._since is None:
                self._since = self._service.clock.now()
                self._go_on()

    def now(self) -> ProcessState:
        """What there is to say."""
        executors = {
            name: executor for name, executor in self._service.executors.items() if name.rpartition("-")[2] in EXECUTORS
        }
        return ProcessState(
            socket.gethostname(),
            os.getpid(),
            self._since,
            {name: list(executor.load) for name, executor in executors.items()},
            tuple([name, *each] for name, executor in executors.items() for each in executor.workers),
            tuple(sorted({name for executor in executors.values() for name in executor.hanging})),
        )

    def _go_on(self, _: None = None) -> None:
        """Under the lock."""
        if self._records.blocking and not self._service.stopping:
            self._service.outbox.aside(partial(self._own.tell, self.now))
            self._timer = self._service.timers.after(EVERY, self._go_on, None)

    def here(self) -> Process:
        """This process."""
        return Process(self._records.me, self.now(), self._service.clock.now(), alive=True, here=True)

    def others(self) -> list[Process]:
        """
        The others, with what they have said last.

        Raises
        ------
        StoreError
        """
        return [
            Process(each.name, each.state, processes.heard_at(each), alive=self._records.alive(each.name))
            for each in self._records.scan(SPACE)
            if each.name != self._records.me
        ]

    def stop(self) -> None:
        self._service.timers.cancel(self._timer)

    def release(self) -> None:
        self._own.end(said=self._since is not None and self._records.blocking)


class WorkerPresence:
    """
    The record of a worker of another program, as Celery: of its first process, while it takes calls.

    Parameters
    ----------
    records : callable
        Opens the store.
    clock : Clock
    now : callable
        What there is to say, of which this adds host, pid and since when.
    """

    def __init__(self, records: Callable[[], RecordStore], clock: Clock, now: Callable[[], ProcessState]):
        self._open, self._clock, self._now = records, clock, now
        self._since = clock.now()
        self._own: OwnRecord | None = None
        # No child is forked while a database is at work, which would be so for ever in there.
        self._telling, self._ending = threading.Lock(), threading.Event()
        os.register_at_fork(
            before=self._telling.acquire,
            after_in_parent=self._telling.release,
            after_in_child=self._telling.release,
        )
        thread = threading.Thread(target=self._serve, name="panel-schedule-presence", daemon=True)
        Context().run(thread.start)

    def _serve(self) -> None:
        while True:
            with self._telling:
                if not self._ending.is_set():
                    self._tell()
            if self._ending.wait(EVERY):
                return

    def _tell(self) -> None:
        try:
            if self._own is None:
                self._own = OwnRecord(self._open(), self._clock)
        except ScheduleError as error:
            log.debug("That this worker is there is told later: %s", error)
        else:
            self._own.tell(self._state)

    def _state(self) -> ProcessState:
        return self._now()._replace(host=socket.gethostname(), pid=os.getpid(), since=self._since)

    def end(self) -> None:
        """It takes no calls any more."""
        self._ending.set()
        with self._telling:
            if self._own is not None:
                self._own.end()
