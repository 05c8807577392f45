"""What a process has of a store on a server, and stores again when the server has lost it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from ..coordination.record import NOBODY, Record, Refusal
from .records import Change
from .signed import Key

# The logs of so many records are remembered, and so many records that this process has held last.
MOST_LOGS, MOST_LEFT = 4000, 200


class Kept:
    """
    The lines of logs that a process has written, the records that it holds, and how it has left those that it has held.

    Parameters
    ----------
    me : str
        The owner that this process is.
    log_limit : int
        How many lines the log of each record keeps.
    """

    def __init__(self, me: str, log_limit: int):
        self._me, self._log_limit = me, log_limit
        self._lines: dict[Key, tuple[Record, deque[str], deque[str]]] = {}
        # Each with the number of the change since which it is held; and with the parts that it was left with.
        self._held: dict[Key, int] = {}
        self._left: dict[Key, tuple[Record, Mapping[tuple[str, int], Any]]] = {}

    def note_lines(
        self,
        key: Key,
        record: Record | None,
        cleared: bool,
        longer: str,
        lines: Sequence[str],
        failures: Sequence[str],
    ) -> None:
        """What `Draft.log` says was done to the logs of a record, by this process."""
        if cleared or record is None:
            self._lines.pop(key, None)
        if record is None or not (longer or lines):
            return
        if len(self._lines) >= MOST_LOGS:
            self._lines.clear()
        new = deque[str](maxlen=self._log_limit), deque[str](maxlen=self._log_limit)
        _, mine, failed = self._lines.get(key, (None, *new))
        if longer:
            with suppress(IndexError):  # it was perhaps another process's
                mine.pop()
            mine.append(longer)
        mine.extend(lines)
        failed.extend(failures)
        self._lines[key] = record, mine, failed

    def note_held(self, key: Key, record: Record | None, parts: Mapping[tuple[str, int], Any], *, small: bool) -> None:
        """This process has changed a record to this, with these new parts; `small`: it is remembered as it is left."""
        if record is not None and record.owner == self._me:
            self._held[key] = record.revision
            self._left.pop(key, None)
        elif self._held.pop(key, None) is not None and record is not None and small:
            if len(self._left) >= MOST_LEFT:
                del self._left[next(iter(self._left))]
            self._left[key] = record, parts

    def hear(self, record: Record) -> None:
        """A process has changed a record to this; what it was like before may be heard late."""
        key = (record.space, record.name)
        if record.owner != self._me and record.revision > self._held.get(key, 0):
            self._held.pop(key, None)

    def lines(self) -> list[tuple[Key, Change | None, tuple[list[str], list[str]]]]:
        """By record the lines for its two logs, and the change that makes it where all there is of it is its log."""
        return [
            (
                key,
                _once_more(record) if record.owner is None and not record.parts else None,
                (list(lines), list(failed)),
            )
            for key, (record, lines, failed) in list(self._lines.items())
        ]

    def as_left(self, there: Record) -> Change | None:
        """What a record becomes of which the store says that this process holds it; None where it does."""
        if (key := (there.space, there.name)) in self._held:
            return None
        left, parts = self._left.get(key, (there, {}))
        if left.revision <= there.revision:
            left, parts = there._replace(owner=NOBODY), {}
        return Change(*key, partial(_as_left, there=there, left=left, new=set(parts)), parts)


def _once_more(held: Record) -> Change:
    return Change(held.space, held.name, lambda record, revision: record or held)


def _as_left(
    record: Record | None, revision: int, *, there: Record, left: Record, new: set[tuple[str, int]]
) -> Record | Refusal:
    """With its new parts, and what is still there of the others."""
    if record != there:
        return Refusal.HELD
    parts = {
        kind: most if (kind, 0) in new else min(most, there.parts.get(kind, 0)) for kind, most in left.parts.items()
    }
    return left._replace(parts={kind: most for kind, most in parts.items() if most})
