"""What this process says of itself to those that share its store: for whoever looks at the workers."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from datetime import datetime
from functools import partial

from ..coordination import processes
from ..coordination.processes import SPACE, ProcessState
from ..coordination.record import Record
from ..errors import ScheduleError
from ..functions.registry import EXECUTORS
from ..stores.hurry import leaving
from ..stores.records import HELD, Change, Tell
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
        service.sources.append(self)

    def begin(self) -> None:
        """The clocks turn. Idempotent."""
        with self._service.locked:
            if self._since is None:
                self._since = self._service.clock.now()
                if self._records.blocking:
                    self._service.outbox.aside(self._see_to_others)
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
        now = self._service.clock.monotonic()
        try:
            if (state := self.now()) != self._told or now >= self._told_at + AGAIN:
                tell = partial(processes.tell, me=self._records.me, state=state)
                self._records.write([Change(SPACE, self._records.me, tell)], tell=Tell.LATER)
                self._told, self._told_at = state, now
        except ScheduleError as error:
            log.debug("What this process is at is told later: %s", error)

    def others(self) -> list[Record]:
        """
        What the others have said; one that has died since has no owner any more, and goes in time.

        Raises
        ------
        StoreError
        """
        alive, now = self._records.alive, self._service.clock.now()
        for record in self._records.scan(SPACE, owner=HELD):
            if record.owner != self._records.me and not alive(record.owner or ""):
                self._records.write([Change(SPACE, record.name, partial(processes.bury, alive=alive, now=now))])
        return [record for record in self._records.scan(SPACE) if record.name != self._records.me]

    def _see_to_others(self) -> None:
        """Of those that have died nothing stays for ever, though nobody looks."""
        with suppress(ScheduleError):
            self.others()

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
