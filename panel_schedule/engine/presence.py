"""What this process says of itself to those that share its store: for whoever looks at the workers."""

from __future__ import annotations

import logging
import os
import socket
import threading
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

# So often, in seconds, it is said what has changed; and all of it, as a store may have lost it.
EVERY, AGAIN = 5.0, 60.0


class Presence:
    """
    A record of this process, written while its clocks turn; where no other process shares the store there is none.

    Nobody is told of it: with many processes each would hear of each of them all the time. Who wants to know looks.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service):
        self._service, self._records = service, service.store.records
        self._since: datetime | None = None
        self._told: ProcessState | None = None
        self._told_at = 0.0
        self._timer: Timer | None = None
        # One thread at a time says something; and whether all is said.
        self._telling, self._ended = threading.Lock(), False
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
            self._service.outbox.aside(self._tell)
            self._timer = self._service.timers.after(EVERY, self._go_on, None)

    def _tell(self) -> None:
        now, clock = self._service.clock.monotonic(), self._service.clock
        with self._telling:
            state = self.now()
            if self._ended or (state == self._told and now < self._told_at + AGAIN):
                return
            tell = partial(processes.tell, me=self._records.me, state=state, now=clock.now())
            try:
                self._records.write([Change(SPACE, self._records.me, tell)], tell=Tell.LATER)
            except ScheduleError as error:
                log.debug("What this process is at is told later: %s", error)
            else:
                self._told, self._told_at = state, now

    def others(self) -> list[Record]:
        """
        What the others have said last.

        Raises
        ------
        StoreError
        """
        return [record for record in self._records.scan(SPACE) if record.name != self._records.me]

    def stop(self) -> None:
        self._service.timers.cancel(self._timer)

    def release(self) -> None:
        with self._telling:
            self._ended = True
            if self._since is None or not self._records.blocking:
                return
            try:
                with leaving():
                    self._records.write([Change(SPACE, self._records.me, processes.leave)])
            except ScheduleError as error:
                log.debug("That this process ends is not in the store: %s", error)
