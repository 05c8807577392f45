"""The store of one process."""

from __future__ import annotations

from ..clock import Clock, SystemClock
from ..coordination import tasks
from ..coordination.tasks import TASK
from .base import Store
from .memory_records import MemoryRecords
from .records import Change


class MemoryStore(Store):
    """
    Values by reference in this process; gone with it.

    Parameters
    ----------
    history_limit : int
        How many records each task's history keeps.
    """

    records: MemoryRecords

    def __init__(self, history_limit: int = 100, clock: Clock | None = None, records: MemoryRecords | None = None):
        self._history_limit = history_limit
        super().__init__(records or MemoryRecords(history_limit), clock or SystemClock())

    def forked(self) -> MemoryStore:
        """The same values for the child of a fork, where locks, claims and listeners of the parent mean nothing."""
        records = self.records.forked()
        records.write([Change(TASK, record.name, tasks.abandon) for record in records.scan(TASK)])
        child = MemoryStore(self._history_limit, self._clock, records)
        child.values.inherit(self.values)
        return child
