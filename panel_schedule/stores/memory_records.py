"""The records of one process: by reference, and gone with it."""

from __future__ import annotations

import logging
import sys
import threading
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from ..coordination.record import Record, Refusal
from ..serialize.checks import size_of
from ..serialize.codec import Encoded, decode
from .records import ALL, Change, Changed, Result, Tell, has_expired, numbered, selected, surplus, tell_all

log = logging.getLogger("panel_schedule")


class MemoryRecords:
    """
    A `RecordStore` in this process.

    Parts are kept as they are: who must not share an object with others gives a copy.
    """

    me = "here"

    def __init__(self) -> None:
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
        self, changes: Sequence[Change], *, durable: bool = False, together: bool = False, tell: Tell = Tell.SOON
    ) -> list[Result]:
        with self._lock:
            revision = self._revision + 1
            outcomes: list[Record | Refusal | None] = []
            left: dict[tuple[str, str], Record | None] = {}
            for change in changes:
                key = space, name = change.space, change.name
                outcome = change.apply(left[key] if key in left else self._records[space].get(name), revision)
                outcomes.append(outcome)
                if not isinstance(outcome, Refusal):
                    left[key] = outcome
            if together and any(isinstance(outcome, Refusal) for outcome in outcomes):
                return [Result(None, outcome if isinstance(outcome, Refusal) else None) for outcome in outcomes]
            self._revision = revision
            results = [self._set(change, outcome, revision) for change, outcome in zip(changes, outcomes, strict=True)]
        for result in results:
            if result.record is not None:
                failed = tell_all(self._subscribers[result.record.space], result.record)
                if failed is not None:  # there is nothing here that could be ready for it later
                    log.error("%s", failed)
        return results

    def _set(self, change: Change, new: Record | Refusal | None, revision: int) -> Result:
        if isinstance(new, Refusal):
            return Result(None, new)
        key, records = (change.space, change.name), self._records[change.space]
        if new is None:
            records.pop(change.name, None)
            self._parts.pop(key, None)
            return Result(None)
        old = records.get(change.name)
        size = old.size if old is not None else 0
        if change.parts or (old is not None and old.parts != new.parts):
            parts = self._parts.setdefault(key, {})
            parts |= {each: (revision, _kept(value)) for each, value in change.parts.items()}
            for kind, number in [each for each in parts if each[1] >= new.parts.get(each[0], 0)]:
                del parts[kind, number]
            size = sum(_size(value) for _, value in parts.values())
        records[change.name] = new = numbered(new, old, size, revision)
        return Result(new, None, {each: _read(_kept(value)) for each, value in change.parts.items()})

    def load(self, record: Record, kind: str, number: int = 0, what: str = "") -> Any:
        revision, value = self._parts.get((record.space, record.name), {}).get((kind, number), (sys.maxsize, None))
        if revision > record.revision:
            raise KeyError(record.name)
        return _read(value)

    def alive(self, owner: str) -> bool:
        return owner == self.me

    def use(self, space: str, names: Collection[str], now: datetime) -> None:
        with self._lock:
            for name in names:
                if (record := self._records[space].get(name)) is not None:
                    used_at = max(record.used_at or now, now)
                    self._records[space][name] = replace(record, used_at=used_at)

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

    def sweep(self, now: datetime) -> None:
        with self._lock:
            for records in list(self._records.values()):
                for record in list(records.values()):
                    if has_expired(record, now):
                        self._erase(record)

    def watch(self, space: str, name: str, sessions: int) -> None:
        pass  # there is no other process that would ask

    def watchers(self, space: str, name: str) -> int:
        return 0

    def subscribe(self, space: str, changed: Changed) -> None:
        self._subscribers[space].append(changed)

    def listen(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Bytes(bytes):
    """What was encoded when it came; each who reads it gets a value of his own."""


def _kept(value: Any) -> Any:
    return _Bytes(value.tobytes()) if isinstance(value, Encoded) else value


def _read(kept: Any) -> Any:
    return decode(bytearray(kept)) if isinstance(kept, _Bytes) else kept


def _size(kept: Any) -> int:
    return max(1, size_of(kept))
