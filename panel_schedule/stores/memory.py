"""The store of one process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

from ..functions.run import RunRecord
from ..serialize.checks import require_data
from ..serialize.codec import Mapped, encode
from ..serialize.entry import Entry
from .base import TASK, Claim, Listener, Mark, Plan, Refusal, Row, extended, fenced, whose


class MemoryStore:
    """
    Values by reference in this process; gone with it.

    Parameters
    ----------
    history_limit : int
        How many records each task's history keeps.
    """

    blocking = False
    queue = None
    cache = None

    def __init__(self, history_limit: int = 50):
        self._history_limit = history_limit
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, str], Entry] = {}
        self._versions: dict[tuple[str, str], int] = {}
        self._rows: dict[str, Row] = {}
        # The one column that changes with every run, apart from the rows.
        self._marks: dict[str, Mark] = {}
        self._claims: dict[str, Claim] = {}
        self._fences: dict[str, int] = {}
        self._stale: set[str] = set()
        self._histories: dict[str, deque[RunRecord]] = {}
        self._isolated: set[str] = set()
        self._listeners: list[Listener] = []

    def forked(self) -> MemoryStore:
        """The same values for the child of a fork, where locks, claims and listeners of the parent mean nothing."""
        child = MemoryStore(self._history_limit)
        for name in ("_entries", "_versions", "_rows", "_marks", "_fences", "_isolated"):
            getattr(child, name).update(getattr(self, name))
        return child

    # ------------------------------------------------------------ values

    def entries(self) -> dict[tuple[str, str], Entry]:
        """A copy of all of them."""
        with self._lock:
            return dict(self._entries)

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
        final: bool = True,
    ) -> Entry:
        require_data(value, whose(space, name))
        source = self._private(value, whose(space, name)) if name in self._isolated else None
        key = (space, name)
        with self._lock:
            if claim is not None and self._claims.get(claim.task) != claim:
                raise fenced(claim.task)
            version = self._versions[key] = self._versions.get(key, 0) + 1
            run_id, wave = (claim.run_id, claim.wave) if claim else (None, None)
            entry = Entry(value, version, now, duration, run_id, final, wave, source)
            self._entries[key] = entry
        entry.holding  # noqa: B018  (here, and not on the loop that serves pages)
        self._tell(space, name, entry)
        return entry

    def _private(self, value: Any, what: str) -> Mapped:
        encoded = encode(value, what)
        try:
            return Mapped.anonymous(encoded)
        finally:
            encoded.close()

    def seal(self, claim: Claim) -> Entry | None:
        key = (TASK, claim.task)
        with self._lock:
            if self._claims.get(claim.task) != claim:
                raise fenced(claim.task)
            entry = self._entries.get(key)
            if entry is None or entry.final or entry.run_id != claim.run_id:
                return entry
            entry = self._entries[key] = replace(entry, final=True)
        self._tell(*key, entry)
        return entry

    def delete(self, space: str, name: str) -> None:
        with self._lock:
            if self._entries.pop((space, name), None) is None:
                raise KeyError(name)
        self._tell(space, name, None)

    def isolate(self, task: str) -> None:
        self._isolated.add(task)

    def subscribe(self, stored: Listener, noticed: Callable[[str], object] = lambda task: None) -> None:
        self._listeners.append(stored)

    def listen(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _tell(self, space: str, name: str, entry: Entry | None) -> None:
        for listener in self._listeners:
            listener(space, name, entry)

    # ------------------------------------------------------------ schedules

    def enroll(self, plans: Iterable[Plan], *, again: bool = False, late: bool = False) -> dict[str, Row]:
        found = {}
        with self._lock:
            for task, trigger, first_seen in plans:
                row, fingerprint = self._rows.get(task), trigger.fingerprint
                if row is not None and row.fingerprint == fingerprint:
                    found[task] = self._complete(task, row)
                    continue
                found[task] = self._rows[task] = Row(fingerprint, first_seen, paused=row is not None and row.paused)
                self._marks.pop(task, None)
                if row is not None:
                    found[task] = found[task]._replace(gave_way=row.override)
        return found

    def row(self, task: str, fingerprint: str | None = None) -> Row | None:
        row = self._rows.get(task)
        return self._complete(task, row) if row is not None else None

    def _complete(self, task: str, row: Row) -> Row:
        mark = self._marks.get(task)
        return row if mark is None else row._replace(**_marked(mark))

    def amend(
        self,
        task: str,
        *,
        paused: bool | None = None,
        removed: bool | None = None,
        reschedule: Any = None,
        now: datetime | None = None,
    ) -> None:
        with self._lock:
            row = self._rows.get(task)
            if row is None:
                return
            if reschedule is not None and now is not None:
                row = row._replace(override=reschedule, first_seen=now)
            self._rows[task] = row._replace(
                paused=row.paused if paused is None else paused,
                removed=row.removed if removed is None else removed,
            )

    def rewind(self, task: str, now: datetime) -> bool:
        with self._lock:
            row, mark = self._rows.get(task), self._marks.get(task)
            if row is None:
                return False
            late = isinstance(mark, datetime) and mark > now
            if late:
                del self._marks[task]
            if late or row.first_seen > now:
                self._rows[task] = row._replace(first_seen=now)
            return late or row.first_seen > now

    def watch(self, task: str, viewers: int) -> None:
        pass

    def flip(self, task: str, stale: bool) -> bool:
        with self._lock:
            before = task in self._stale
            (self._stale.add if stale else self._stale.discard)(task)
        return before != stale

    def forget(self, task: str) -> None:
        with self._lock:
            for table in (self._rows, self._marks, self._histories, self._claims):
                table.pop(task, None)
            self._stale.discard(task)
            self._entries.pop((TASK, task), None)

    # ------------------------------------------------------------ runs

    def claim(
        self,
        task: str,
        run_id: str,
        *,
        now: datetime,
        key: datetime | str | None = None,
        mark: Mark | None = None,
        wave: datetime | None = None,
        first: bool = False,
    ) -> Claim | Refusal:
        with self._lock:
            if (mark is not None and self._handled(task, mark)) or (first and (TASK, task) in self._entries):
                return Refusal.HANDLED
            if task in self._claims:
                return Refusal.HELD
            if mark is not None:
                self._marks[task] = mark
            fence = self._fences[task] = self._fences.get(task, 0) + 1
            claim = self._claims[task] = Claim(task, run_id, fence, 1, key, wave)
        return claim

    def _handled(self, task: str, mark: Mark) -> bool:
        last = self._marks.get(task)
        # Of another kind after a reschedule from dates to a clock, say.
        return last is not None and type(last) is type(mark) and last >= mark  # type: ignore[operator]

    def advance(self, claim: Claim, version: int) -> None:
        with self._lock:
            if self._claims.get(claim.task) == claim:
                self._marks[claim.task] = version

    def progress(self, claim: Claim, percent: int, message: str) -> None:
        pass

    def void(self, claim: Claim) -> Claim:
        with self._lock:
            if self._claims.get(claim.task) != claim:
                return claim
            fence = self._fences[claim.task] = claim.fence + 1
            held = self._claims[claim.task] = replace(claim, fence=fence)
        return held

    def release(self, claim: Claim) -> None:
        with self._lock:
            if self._claims.get(claim.task) == claim:
                del self._claims[claim.task]

    def hand_over(self, claim: Claim) -> None:
        self.release(claim)

    def take_over(self, task: str, now: datetime) -> Claim | RunRecord | None:
        return None

    def cancel(self, task: str, run_id: str) -> None:
        pass

    def record(self, task: str, record: RunRecord, mark: Mark | None = None) -> bool:
        with self._lock:
            if mark is not None:
                if self._handled(task, mark):
                    return False
                self._marks[task] = mark
            history = self._histories.get(task)
            if history is None:
                history = self._histories[task] = deque(maxlen=self._history_limit)
            if (longer := extended(history[0] if history else None, record)) is not None:
                history[0] = longer
                return False
            history.appendleft(record)
            return True

    def history(self, task: str) -> list[RunRecord]:
        with self._lock:
            return list(self._histories.get(task, ()))


def _marked(mark: Mark) -> dict[str, Any]:
    return {"last_slot": mark} if isinstance(mark, datetime) else {"last_version": mark}
