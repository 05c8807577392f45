"""The store of one process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

from ..entry import Entry
from ..errors import RunFenced
from ..run import RunRecord
from .base import TASK, Claim, Listener, Row, require_data


class MemoryStore:
    """
    Values by reference in this process; gone with it.

    Parameters
    ----------
    history_limit : int
        How many records each task's history keeps.
    """

    def __init__(self, history_limit: int = 50):
        self._history_limit = history_limit
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, str], Entry] = {}
        self._versions: dict[tuple[str, str], int] = {}
        self._rows: dict[str, Row] = {}
        # The one column that changes with every run, apart from the rows.
        self._slots: dict[str, datetime] = {}
        self._claims: dict[str, Claim] = {}
        self._fences: dict[str, int] = {}
        self._histories: dict[str, deque[RunRecord]] = {}
        self._listeners: list[Listener] = []

    def forked(self) -> MemoryStore:
        """The same values for the child of a fork, where locks, claims and listeners of the parent mean nothing."""
        child = MemoryStore(self._history_limit)
        for name in ("_entries", "_versions", "_rows", "_slots", "_fences"):
            getattr(child, name).update(getattr(self, name))
        return child

    # ------------------------------------------------------------ values

    def entry(self, space: str, name: str) -> Entry | None:
        return self._entries.get((space, name))

    def names(self, space: str) -> Iterator[str]:
        with self._lock:
            return iter([name for owner, name in self._entries if owner == space])

    def publish(
        self,
        space: str,
        name: str,
        value: Any,
        *,
        now: datetime,
        duration: float | None = None,
        claim: Claim | None = None,
    ) -> Entry:
        require_data(value, f"Task {name!r}" if space == TASK else f"ps.store[{name!r}]")
        key = (space, name)
        with self._lock:
            if claim is not None and self._claims.get(claim.task) != claim:
                raise RunFenced(
                    f"Task {claim.task!r}: the run lost its claim before it published; its value is dropped. "
                    "It was cancelled, replaced or timed out: give the task a longer timeout or period."
                )
            version = self._versions[key] = self._versions.get(key, 0) + 1
            entry = Entry(value, version, now, duration, claim.run_id if claim else None)
            self._entries[key] = entry
        self._tell(space, name, entry)
        return entry

    def delete(self, space: str, name: str) -> None:
        with self._lock:
            if self._entries.pop((space, name), None) is None:
                raise KeyError(name)
        self._tell(space, name, None)

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def _tell(self, space: str, name: str, entry: Entry | None) -> None:
        for listener in self._listeners:
            listener(space, name, entry)

    # ------------------------------------------------------------ tasks

    def row(self, task: str) -> Row | None:
        row, last = self._rows.get(task), self._slots.get(task)
        return replace(row, last_slot=last) if row is not None and last is not None else row

    def amend(self, task: str, **changes: Any) -> Row:
        with self._lock:
            if "last_slot" in changes:
                self._slots.pop(task, None)
                if (slot := changes.pop("last_slot")) is not None:
                    self._slots[task] = slot
            old = self._rows.get(task)
            row = self._rows[task] = replace(old, **changes) if old else Row(**changes)
            last = self._slots.get(task)
            return row if last is None else replace(row, last_slot=last)

    def claim(self, task: str, run_id: str, slot: datetime | None) -> Claim | None:
        with self._lock:
            if task in self._claims:
                return None
            if slot is not None:
                last = self._slots.get(task)
                if last is not None and last >= slot:
                    return None
                self._slots[task] = slot
            fence = self._fences[task] = self._fences.get(task, 0) + 1
            claim = self._claims[task] = Claim(task, run_id, fence)
        return claim

    def void(self, claim: Claim) -> Claim:
        with self._lock:
            if self._claims.get(claim.task) != claim:
                return claim
            fence = self._fences[claim.task] = claim.fence + 1
            held = self._claims[claim.task] = Claim(claim.task, claim.run_id, fence)
        return held

    def release(self, claim: Claim) -> None:
        with self._lock:
            if self._claims.get(claim.task) == claim:
                del self._claims[claim.task]

    def record(self, task: str, record: RunRecord, replaces: RunRecord | None = None) -> None:
        with self._lock:
            history = self._histories.get(task)
            if history is None:
                history = self._histories[task] = deque(maxlen=self._history_limit)
            if replaces is not None and history and history[0] is replaces:
                history[0] = record
            else:
                history.appendleft(record)

    def history(self, task: str) -> list[RunRecord]:
        with self._lock:
            return list(self._histories.get(task, ()))

    def forget(self, task: str) -> None:
        with self._lock:
            for table in (self._rows, self._slots, self._histories):
                table.pop(task, None)
            self._entries.pop((TASK, task), None)
