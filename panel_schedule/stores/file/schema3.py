"""The jobs and answers of a database of an earlier release, schema 3 and before, as records."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ...coordination import answers, jobs
from ...coordination.answers import AnswerState
from ...coordination.jobs import JobState, SharedState, shared_name
from ...coordination.record import Record, instant_of, text_of
from ...functions.run import RunState
from .transaction import Transaction

# The tables that are no more. Those of values and of tasks stay as they are.
EARLIER = ("jobs", "parts", "answers", "swept", "counted")

# A command, and its values.
_Command = tuple[str, tuple[Any, ...]]

_RECORD = "INTO records (space, name, record_group, owner, used_at, expires_at, size, created, revision, state)"
_BLOB = "INTO blobs (space, name, kind, number, revision, size, inline, file, seal)"


def carry_over(old: sqlite3.Connection, into: Transaction) -> int:
    """What can be read there, from both ends; how many rows that were."""
    old.row_factory, copied = sqlite3.Row, 0
    for table, convert in _CONVERT.items():
        for order in ("ASC", "DESC"):
            with suppress(sqlite3.Error):  # an earlier one has no such table; a corrupt one an end
                for row in old.execute(f"SELECT * FROM {table} ORDER BY rowid {order}"):
                    for command, values in convert(row):
                        marks = ", ".join("?" * len(values))
                        copied += into.do(f"INSERT OR IGNORE {command} VALUES ({marks})", *values)
    # Whatever has had a number had a smaller one than what comes.
    last = [0]
    for table, column in (("jobs", "change"), ("swept", "change"), ("answers", "change"), ("counted", "changes")):
        with suppress(sqlite3.Error):
            last += [row[0] or 0 for row in old.execute(f"SELECT max({column}) FROM {table}")]
    if max(last):
        into.do("INSERT INTO erased VALUES (?)", max(last))
    return copied


def _jobs(row: sqlite3.Row) -> Iterator[_Command]:
    user = row["user"] if "user" in row.keys() else None  # noqa: SIM118  (a Row is no mapping)
    state = JobState(
        row["key"], bool(row["durable"]), user, RunState(row["state"]), row["attempt"], row["fence"], row["percent"],
        row["message"], row["reason"], row["error"], bool(row["cancelled"]),
        *(instant_of(row[f"{what}_at"]) for what in ("queued", "started", "finished")),
    )  # fmt: skip
    kinds = {jobs.PARTIAL: row["partials"], jobs.VALUE: 1, jobs.ERROR: 1, jobs.ARGUMENTS: 1}
    if state.state.final:
        del kinds[jobs.ARGUMENTS], kinds[jobs.ERROR if state.state is RunState.SUCCEEDED else jobs.VALUE]
    else:
        del kinds[jobs.VALUE], kinds[jobs.ERROR]
    record = Record(jobs.SPACE, row["id"], state, parts={kind: count for kind, count in kinds.items() if count})
    yield _RECORD, (
        jobs.SPACE, row["id"], row["function"], row["owner"], row["queued_at"], row["expires_at"], 1, row["number"],
        row["change"], text_of(record),
    )  # fmt: skip
    if row["key"] and not state.cancelled and (row["owner"] is not None or state.state is RunState.SUCCEEDED):
        shared, until = shared_name(row["function"], row["key"]), row["expires_at"]
        record = Record(jobs.SHARED, shared, SharedState(row["id"], instant_of(until)))
        values = (jobs.SHARED, shared, row["function"], None, None, until, 0, row["number"], row["change"])
        yield _RECORD, (*values, text_of(record))


def _parts(row: sqlite3.Row) -> Iterator[_Command]:
    yield _BLOB, (jobs.SPACE, row["job"], row["kind"], row["number"], 0, _size(row["inline"]), row["inline"],
                  row["file"], None)  # fmt: skip


def _answers(row: sqlite3.Row) -> Iterator[_Command]:
    if row["updated_at"] is None:
        return
    state = AnswerState(
        row["call"], row["version"], tuple(map(int, row["basis"].split(","))) if row["basis"] else (),
        instant_of(row["updated_at"]), row["duration"],
    )  # fmt: skip
    name = answers.name_of(row["function"], row["key"])
    record = Record(answers.SPACE, name, state, parts={answers.VALUE: 1})
    yield _RECORD, (
        answers.SPACE, name, row["function"], None, row["used_at"], row["expires_at"], row["size"], row["change"],
        row["change"], text_of(record),
    )  # fmt: skip
    seal = f"Memoized function {row['function']!r} for {row['key']}"
    yield _BLOB, (answers.SPACE, name, answers.VALUE, 0, 0, row["size"], row["inline"], row["file"], seal)


def _size(inline: bytes | None) -> int:
    """Of a part in a file it is not known; it counts as one byte until it expires."""
    return 1 if inline is None else len(inline)


_CONVERT: dict[str, Callable[[sqlite3.Row], Iterator[_Command]]] = {
    "jobs": _jobs,
    "parts": _parts,
    "answers": _answers,
}
