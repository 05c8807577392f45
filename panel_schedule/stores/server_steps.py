"""What becomes of records in one step on a server: all that is known of it before the server gives its numbers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from ..coordination.record import Logged, Record, Refusal, instant_of, micros, of_text, text_of
from ..functions.run import RunRecord
from .file.history import RUN, more_of, row_of, run_of
from .records import Change, Result, numbered
from .signed import Head, Key

# What stands for the number of a change that is not known yet: greater than any, and in no text by chance.
AHEAD = 10**39 + secrets.randbits(100)
AHEAD_TEXT = str(AHEAD)

_LINE = RUN.split(", ")

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Row(NamedTuple):
    """A record, None where there is none; the newest line of its log; and how old its parts may be, by kind."""

    record: Record | None
    newest: str | bytes | None
    since: Mapping[str, int]


NONE = Row(None, None, {})


class Placed(NamedTuple):
    """A part: what is said of its bytes; these, if they travel with the record; and what it is read as."""

    head: Head
    data: bytes
    value: Any


_Sign = Callable[[Key, str, int, Head], str]


class Draft:
    """What becomes of one record in a step."""

    def __init__(self, key: Key, named: Any, row: Row):
        self._key, self._named = key, named
        # How old its parts may be, by kind.
        self.since = dict(row.since)
        self._was = self.record = row.record
        self._text = ""
        self._written = self._anew = False
        # By kind and number; None of one that is dropped.
        self._parts: dict[tuple[str, int], Placed | None] = {}
        # The newest line of the log as it was, and what stands in its place; lines that are added.
        self._newest: str | bytes | None = row.newest
        self._cleared, self._longer, self._lines = False, "", list[str]()
        self._failures: list[str] = []

    def make(self, change: Change, placed: Mapping[tuple[str, int], Placed]) -> Result:
        """What comes of a change, up to its numbers."""
        old = self.record
        new, line = change.apply(old, AHEAD), None
        if isinstance(new, Refusal):
            return Result(None, new)
        if isinstance(new, Logged):
            line, new = self._add(new), new.record
        self._written = True
        if new is None:
            self.record, self._anew = None, True
            self._parts.clear()
            self._clear_log()
            return Result(None)
        for kind, number in ((kind, n) for kind, most in (old.parts if old else {}).items() for n in range(most)):
            if number >= new.parts.get(kind, 0):
                self._parts[kind, number] = None
        self._parts |= {part: each for part, each in placed.items() if part[1] < new.parts.get(part[0], 0)}
        self.record = numbered(new, old, old.size if old else 0, AHEAD)
        values = {part: each.value for part, each in placed.items()}
        return Result(self.record, None, values, line, old.revision if old and old.revision != AHEAD else 0)

    def _clear_log(self) -> None:
        self._newest, self._cleared, self._longer = None, True, ""
        self._lines.clear()
        self._failures.clear()

    def _add(self, logged: Logged) -> RunRecord | None:
        """The line, if there is a new one."""
        entry, merged = logged.entry, logged.merged
        if entry is None:
            self._clear_log()
            return None
        if logged.failure is not None:
            self._failures.append(_line(logged.failure))
        newest = self._lines[-1] if self._lines else self._longer or self._newest
        if merged is not None and newest and (longer := merged(run_in(newest), entry)) is not None:
            if self._lines:
                self._lines[-1] = _line(longer)
            else:
                self._longer = _line(longer)
            return None
        self._lines.append(_line(entry))
        return entry

    def told(self, data: list[bytes], last: int, sign: _Sign) -> dict[str, Any]:
        """
        As the server takes it; the bytes of parts are added to `data`, and counted from 1.

        They are signed with the `last` number that this process knows: the record's own is not known yet.
        """
        record, was = self.record, self._was
        told: dict[str, Any] = {"key": self._named, "was": str(was.revision) if was else ""}
        if not self._written:
            return told
        told["anew"] = self._anew
        if record is None:
            return told
        put, base = [], max(last, was.revision if was else 0)
        for (kind, number), part in self._parts.items():
            if part is not None:
                head = part.head._replace(base=base)
                data.append(f"{head} {sign(self._key, kind, number, head)}\n".encode() + part.data)
                put.append((f"{kind}\0{number}", len(data), head.size, head.stamp, head.pieces))
                if number == 0:
                    self.since[kind] = base
        self.since = {kind: self.since.get(kind, base) for kind in record.parts}
        if was is None or self._anew or record.used_at != was.used_at:  # else it may have been used meanwhile
            told["used"] = instant_text(record.used_at)
        self._text = text_of(record)
        return told | {
            "group": record.group,
            "owner": "" if record.owner is None else f"={record.owner}",
            "expires": instant_text(record.expires_at),
            "text": self._text,
            "since": to_json(self.since),
            "drop": [f"{kind}\0{number}" for (kind, number), part in self._parts.items() if part is None],
            "put": put,
            "cleared": self._cleared,
            "longer": self._longer,
            "lines": self._lines,
            "failures": self._failures,
        }

    @property
    def log(self) -> tuple[bool, str, Sequence[str], Sequence[str]]:
        """Whether it was deleted; what stands in place of its newest line; what was added, and to that of failures."""
        return self._cleared, self._longer, self._lines, self._failures

    @property
    def values(self) -> dict[tuple[str, int], Any]:
        """Of its new parts."""
        return {part: each.value for part, each in self._parts.items() if each is not None}

    def stamps(self) -> set[str]:
        """Of the large parts that it has."""
        return {part.head.stamp for part in self._parts.values() if part is not None and self.record is not None}

    def row(self, size: int, revision: int) -> Row:
        """As it is from now on."""
        newest = (self._lines[-1] if self._lines else self._longer) or self._newest
        record = settled(self.record, size, revision, self._text) if self._written else self._was
        return Row(record, newest, self.since)


class Step(NamedTuple):
    """Changes as they are sent."""

    changes: Sequence[Change]
    drafts: Mapping[Key, Draft]
    results: Sequence[Result]
    args: dict[str, Any]
    data: Sequence[bytes]


def settled(record: Record | None, size: int, revision: int, text: str = "") -> Record | None:
    """With its numbers, now that they are known."""
    if record is None:
        return None
    text, state = text or text_of(record), record.state
    if AHEAD_TEXT in text:
        state, _ = of_text(record.space, text.replace(AHEAD_TEXT, str(revision)))
    created = revision if record.created == AHEAD else record.created
    return record._replace(state=state, size=size, created=created, revision=revision)


def instant_text(instant: datetime | None) -> str:
    """As commands have it: no server makes another number of it."""
    return "" if instant is None else str(micros(instant))


def instant_in(text: str) -> datetime | None:
    """The other way round."""
    return instant_of(int(text)) if text else None


def _line(run: RunRecord) -> str:
    return to_json(dict(zip(_LINE, row_of(run), strict=True)) | more_of(run))


def run_in(line: str | bytes) -> RunRecord:
    """A line of a log."""
    fields = json.loads(line)
    return run_of(fields, fields)


def since_in(text: str | bytes | None) -> dict[str, int]:
    found: dict[str, int] = json.loads(text) if text else {}
    return found
