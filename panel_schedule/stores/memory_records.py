"""The records of one process: by reference, and gone with it."""

from __future__ import annotations

import logging
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any

from ..coordination.record import Logged, Record, Refusal
from ..functions.run import RunRecord, RunState
from ..serialize.checks import size_of
from ..serialize.codec import Encoded, decode
from .records import (
    ALL,
    NO_PARTS,
    Change,
    Changed,
    LogAge,
    Lost,
    Reference,
    Result,
    Source,
    Tell,
    has_expired,
    numbered,
    selected,
    surplus,
    tell_all,
    whole,
)

log = logging.getLogger("panel_schedule")

# A line of a log.
Line = tuple[Any, ...]


class MemoryRecords:
    """
    A `RecordStore` in this process.

    Parts are kept as they are: who must not share an object with others gives a copy.

    Parameters
    ----------
    log_limit : int
        How many lines the log of each record keeps.
    """

    me = "here"
    blocking = False

    def __init__(self, log_limit: int = 100) -> None:
        self._log_limit = log_limit
        self.log_age: LogAge | None = None
        self._logs: defaultdict[tuple[str, str], deque[Line]] = defaultdict(partial(deque, maxlen=log_limit))
        self._failures: defaultdict[tuple[str, str], deque[Line]] = defaultdict(partial(deque, maxlen=log_limit))
        self._lock = threading.Lock()
        self._records: defaultdict[str, dict[str, Record]] = defaultdict(dict)
        self._parts: dict[tuple[str, str], dict[tuple[str, int], tuple[int, Any]]] = {}
        self._revision = 0
        self._subscribers: defaultdict[str, list[Changed]] = defaultdict(list)

    def read(self, space: str, name: str) -> Record | None:
        return self._records[space].get(name)

    def scan(self, space: str, group: str = ALL, *, owner: str | None = ALL, last: int | None = None) -> list[Record]:
        with self._lock:
            records = list(self._records[space].values())
        return selected(records, group, owner, last)

    def write(
        self, changes: Sequence[Change], *, durable: bool | None = None, together: bool = False, tell: Tell = Tell.SOON
    ) -> list[Result]:
        if len(changes) == 1:
            change = changes[0]
            with self._lock:
                self._revision = revision = self._revision + 1
                new = change.apply(self._records[change.space].get(change.name), revision)
                results = [self._set(change, new, revision)]
        else:
            results = self._write_all(changes, together)
        for result in results if self._subscribers else ():
            if (record := result.record) is not None and (subscribers := self._subscribers.get(record.space)):
                failed = tell_all(subscribers, record)
                if failed is not None:  # there is nothing here that could be ready for it later
                    log.error("%s", failed)
        return results

    def _write_all(self, changes: Sequence[Change], together: bool) -> list[Result]:
        with self._lock:
            revision = self._revision + 1
            outcomes = self._outcomes(changes, revision)
            if together and any(isinstance(outcome, Refusal) for outcome in outcomes):
                return [Result(None, outcome if isinstance(outcome, Refusal) else None) for outcome in outcomes]
            self._revision = revision
            return [self._set(*each, revision) for each in zip(changes, outcomes, strict=True)]

    def _outcomes(self, changes: Sequence[Change], revision: int) -> list[Record | Logged | Refusal | None]:
        ahead, outcomes = dict[tuple[str, str], Record | None](), []
        for space, name, apply, _, _ in changes:
            known = ahead[space, name] if (space, name) in ahead else self._records[space].get(name)
            outcome = apply(known, revision)
            if not isinstance(outcome, Refusal):
                ahead[space, name] = outcome.record if isinstance(outcome, Logged) else outcome
            outcomes.append(outcome)
        return outcomes

    def _set(self, change: Change, outcome: Record | Logged | Refusal | None, revision: int) -> Result:
        if isinstance(outcome, Refusal):
            return Result(None, outcome)
        records, name = self._records[change.space], change.name
        old = records.get(name)
        logged = None
        if isinstance(outcome, Logged):
            logged = self._log_in(outcome)
            outcome = outcome.record
        new = outcome
        if new is None:
            if old is not None:
                self._erase(old)
            return Result(None)
        if not change.parts and (not new.parts if old is None else old.parts == new.parts):
            records[name] = new = numbered(new, old, old.size if old is not None else 0, revision)
            return Result(new, None, NO_PARTS, logged)
        parts = self._parts.setdefault((change.space, name), {})
        kept = {each: _kept(value) for each, value in change.parts.items()}
        parts |= {each: (revision, value) for each, value in kept.items()}
        for kind, number in [each for each in parts if each[1] >= new.parts.get(each[0], 0)]:
            del parts[kind, number]
        size = sum([_size(value) for _, value in parts.values()])
        records[name] = new = numbered(new, old, size, revision)
        return Result(new, None, {each: _read(value) for each, value in kept.items()}, logged)

    def _log_in(self, logged: Logged) -> RunRecord | None:
        """Take a line into the log of its record; it, if it is a new one."""
        record, entry, merged, failure = logged
        key = (record.space, record.name)
        log = self._logs[key]
        if failure is not None:
            self._failures[key].appendleft(_line(failure))
        if entry is None:
            log.clear()
            self._failures.pop(key, None)
        elif merged is not None and (longer := merged(_record(log[0]) if log else None, entry)) is not None:
            log[0] = _line(longer)
        else:
            log.appendleft(_line(entry))
            return entry
        return None

    def log(self, space: str, name: str, last: int | None = None) -> list[RunRecord]:
        with self._lock:
            if last is not None:
                return list(map(_record, islice(self._logs.get((space, name), ()), last)))
            lines, failures = (list(logs.get((space, name), ())) for logs in (self._logs, self._failures))
        return whole(list(map(_record, lines)), list(map(_record, failures)))

    def load(self, record: Record, kind: str, number: int = 0, what: str = "") -> Any:
        revision, value = self._parts.get((record.space, record.name), {}).get((kind, number), (sys.maxsize, None))
        if revision > record.revision:
            raise KeyError(record.name)
        return _read(value)

    def source(self, record: Record, kind: str, number: int = 0, what: str = "") -> Source:
        return Reference(self.load(record, kind, number))

    def alive(self, owner: str) -> bool:
        return owner == self.me

    def use(self, space: str, names: Collection[str], now: datetime) -> None:
        with self._lock:
            for name in names:
                if (record := self._records[space].get(name)) is not None:
                    used_at = max(record.used_at or now, now)
                    self._records[space][name] = record._replace(used_at=used_at)

    def trim(
        self,
        space: str,
        group: str = ALL,
        *,
        entries: int | None = None,
        size: int | None = None,
        keep: str = "",
        larger: bool = False,
    ) -> None:
        with self._lock:
            records = selected(self._records[space].values(), group, None, None)
            for record in surplus(records, entries=entries, size=size, keep=keep, larger=larger):
                self._erase(record)

    def _erase(self, record: Record) -> None:
        del self._records[record.space][record.name]
        self._parts.pop((record.space, record.name), None)
        for logs in (self._logs, self._failures):
            logs.pop((record.space, record.name), None)

    def sweep(self, now: datetime) -> None:
        with self._lock:
            if self.log_age is not None:
                for logs, age in zip((self._logs, self._failures), self.log_age, strict=True):
                    for lines in logs.values():
                        while lines and (ended := _record(lines[-1]).ended_at) is not None and ended < now - age:
                            lines.pop()
            for records in list(self._records.values()):
                for record in list(records.values()):
                    if has_expired(record, now):
                        self._erase(record)

    def watch(self, space: str, name: str, sessions: int) -> None:
        pass  # there is no other process that would ask

    def watchers(self, space: str, name: str) -> int:
        return 0

    def subscribe(self, space: str, changed: Changed, lost: Lost = lambda since: None) -> None:
        self._subscribers[space].append(changed)

    def forked(self) -> MemoryRecords:
        """The same for the child of a fork, where locks, holders and subscribers of the parent mean nothing."""
        child = MemoryRecords(self._log_limit)
        for space, records in self._records.items():
            child._records[space] = {name: record._replace(owner=None) for name, record in records.items()}
        child._parts, child._revision = {key: dict(parts) for key, parts in self._parts.items()}, self._revision
        return child

    def listen(self) -> None:
        pass

    def close(self) -> None:
        pass


def _line(run: RunRecord) -> Line:
    """As plain values: nothing that Python's garbage collector, for which everybody waits, would have to look at."""
    return (
        run.id, run.key, run.state.value, run.attempt, run.queued_at, run.started_at, run.finished_at, run.error,
        run.reason, run.until, run.owner, run.user, run.arguments, run.traceback, run.logs,
    )  # fmt: skip


def _record(line: Line) -> RunRecord:
    id, key, state, *others = line
    return RunRecord(id, key, RunState(state), *others)


class _Bytes(bytes):
    """What was encoded when it came; each who reads it gets a value of his own."""


def _kept(value: Any) -> Any:
    return _Bytes(value.tobytes()) if isinstance(value, Encoded) else value


def _read(kept: Any) -> Any:
    return decode(bytearray(kept)) if isinstance(kept, _Bytes) else kept


def _size(kept: Any) -> int:
    return 32 if isinstance(kept, (int, float)) else max(1, size_of(kept))
