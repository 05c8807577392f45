"""What became of the runs of a function that is called on request. A task's own record has its history."""

from __future__ import annotations

from typing import NamedTuple

from ..functions.run import RunRecord
from .record import Logged, Record, Refusal, logged, state_of

SPACE = "history"

# The kinds of functions.
JOB, MEMO = "job", "memo"


@state_of(SPACE)
class HistoryState(NamedTuple):
    """Nothing: all there is of it is its log."""


def name_of(kind: str, function: str) -> str:
    """Of the record of one function."""
    return f"{kind} {function}"


def erase(record: Record | None, revision: int) -> Logged | Refusal:
    """Drop the history of a function, or of a task; all else stays."""
    return Refusal.ABSENT if record is None else Logged(record, None)


def parts_of(name: str) -> tuple[str, str]:
    """The kind and the function of the record of this name."""
    kind, _, function = name.partition(" ")
    return kind, function


def note(record: Record | None, revision: int, *, kind: str, function: str, run: RunRecord) -> Logged:
    """A run has ended."""
    if record is None:
        record = Record(SPACE, name_of(kind, function), HistoryState(), kind)
    return logged(record, run)
