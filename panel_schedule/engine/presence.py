"""What this process says of itself to those that share its store: for whoever looks at the workers."""

from __future__ import annotations

import logging
import os
import socket
from datetime import datetime
from functools import partial

from ..coordination import processes
from ..coordination.processes import SPACE, ProcessState
from ..coordination.record import Record
from ..errors import ScheduleError
from ..functions.registry import EXECUTORS
from ..stores.hurry import leaving
from ..stores.records import Change, Tell
from .service import Service
from .timers import Timer

log = logging.getLogger("panel_schedule")

# So often, in seconds, it is said what has changed.
EVERY = 5.0


class Presence:
    """
    A record of this process, written while its clocks turn; where no other process shares the store there is none.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service):
        self._service, self._records = service, service.store.records
        self._since: datetime | None = None
        self._told: ProcessState | None = None
        self._timer: Timer | None = None
        service.sources.append(self)
        self._records.subscribe(SPACE, self._changed, self._lost)

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
            self._service.outbox.aside(self._tell)
            self._timer = self._service.timers.after(EVERY, self._go_on, None)

    def _tell(self) -> None:
        try:
            if (state := self.now()) != self._told:
                tell = partial(processes.tell, me=self._records.me, state=state)
                self._records.write([Change(SPACE, self._records.me, tell)], tell=Tell.LATER)
                self._told = state
        except ScheduleError as error:
            log.debug("What this process is at is told later: %s", error)

    def _changed(self, record: Record) -> None:
        if record.owner and record.owner != self._records.me and not self._records.alive(record.owner):
            bury = partial(processes.bury, alive=self._records.alive, now=self._service.clock.now())
            self._records.write([Change(SPACE, record.name, bury)])

    def _lost(self, since: int) -> None:
        """The store has forgotten it."""
        self._told = None

    def stop(self) -> None:
        self._service.timers.cancel(self._timer)

    def release(self) -> None:
        if self._told is not None:
            try:
                with leaving():
                    self._records.write([Change(SPACE, self._records.me, processes.leave)])
            except ScheduleError as error:
                log.debug("That this process ends is not in the store: %s", error)
            self._told = self._since = None
