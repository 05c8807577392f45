"""The database of an earlier release, schema 3 and before, as records."""

from __future__ import annotations

import logging
import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import chain
from typing import Any

from ...coordination import answers, jobs, tasks
from ...coordination.answers import AnswerState
from ...coordination.jobs import JobState, SharedState, shared_name
from ...coordination.record import Record, instant_of, text_of
from ...coordination.tasks import TaskState
from ...functions.run import RunState
from ...serialize.codec import encode
from .history import key_of
from .transaction import Transaction, seal_of

log = logging.getLogger("panel_schedule")

# The tables that are no more. That of the history stays as it is.
EARLIER = ("entries", "tasks", "jobs", "parts", "answers", "swept", "counted")

# Columns of tasks that are called as they were.
_PLAIN = ("server", "fingerprint", "last_version", "error", "fence", "attempt", "takeovers", "cancelled", "percent",
          "message")  # fmt: skip
_FLAGS = ("paused", "removed", "forgotten", "stale", "published", "over")
_TIMES = ("first_seen", "last_slot", "wave", "started_at")

# A command, and its values.
_Command = tuple[str, tuple[Any, ...]]

_RECORD = "INTO records (space, name, record_group, owner, used_at, expires_at, size, created, revision, state)"
_BLOB = "INTO blobs (space, name, kind, number, revision, size, inline, file, seal)"


def carry_over(old: sqlite3.Connection, into: Transaction) -> int:
    """What can be read there, from both ends; how many rows that were."""
    old.row_factory, copied = sqlite3.Row, 0
    entries = {(row["space"], row["name"]): row for row in _rows(old, "entries")}
    commands = [_tasks(row, entries.pop((tasks.TASK, row["name"]), None)) for row in _rows(old, "tasks")]
    commands += [_tasks(None, row) for row in entries.values()]
    for table, convert in (("jobs", _jobs), ("parts", _parts), ("answers", _answers)):
        commands += map(convert, _rows(old, table))
    for command, values in chain.from_iterable(commands):
        copied += into.do(f"INSERT OR IGNORE {command} VALUES ({', '.join('?' * len(values))})", *values)
    # Whatever has had a number had a smaller one than what comes.
    last = [0]
    for table in EARLIER:
        column = "changes" if table == "counted" else "change"
        with suppress(sqlite3.Error):
            last += [row[0] or 0 for row in old.execute(f"SELECT max({column}) FROM {table}")]
    if max(last):
        into.do("INSERT INTO erased VALUES (?)", max(last))
    return copied


def _rows(old: sqlite3.Connection, table: str) -> list[sqlite3.Row]:
    found: dict[int, sqlite3.Row] = {}
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.Error):  # an earlier one has no such table; a corrupt one an end
            for row in old.execute(f"SELECT rowid AS place, * FROM {table} ORDER BY rowid {order}"):
                if row["place"] in found:
                    break
                found[row["place"]] = row
    return list(found.values())


def _tasks(task: sqlite3.Row | None, entry: sqlite3.Row | None) -> Iterator[_Command]:
    """A task with its value, or a value alone."""
    space, name, parts, change = tasks.TASK, "", dict[str, int](), 0
    state = TaskState()
    if task is not None:
        name, change = task["name"], task["change"]
        fields: dict[str, Any] = {column: task[column] for column in _PLAIN}
        fields |= {column: bool(task[column]) for column in _FLAGS}
        fields |= {column: instant_of(task[column]) for column in _TIMES}
        state = TaskState(
            **fields, run_id=task["run_id"] or "", key=key_of(task["key"]), outcome=task["outcome"] or ""
        )  # fmt: skip
        for column, kind in (("trigger", tasks.TRIGGER), ("override", tasks.OVERRIDE)):
            if task[column] is not None and (schedule := _schedule(name, task[column])) is not None:
                seal = seal_of(space, name, kind, 0)
                with closing(encode(schedule, "")) as encoded:
                    encoded.seal(seal)
                    parts[kind] = 1
                    yield _BLOB, (space, name, kind, 0, 0, encoded.size, encoded.tobytes(), None, None)
    if entry is not None:
        space, name, change = entry["space"], entry["name"], max(change, entry["change"])
        state = state._replace(
            version=entry["version"], updated_at=instant_of(entry["updated_at"]), duration=entry["duration"],
            by=entry["run_id"] or "", final=bool(entry["final"]), seen_wave=instant_of(entry["wave"]),
        )  # fmt: skip
        if entry["updated_at"] is not None:
            seal = f"Task {name!r}" if space == tasks.TASK else f"ps.store[{name!r}]"
            parts[tasks.VALUE], size = 1, _size(entry["inline"])
            yield _BLOB, (space, name, tasks.VALUE, 0, 0, size, entry["inline"], entry["file"], seal)
    owner = task["owner"] if task is not None else None
    record = Record(space, name, state, parts=parts)
    yield _RECORD, (space, name, "", owner, None, None, len(parts), change, change, text_of(record))


def _schedule(task: str, data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except Exception as error:
        log.error("Task %r: a schedule that was stored cannot be read, so the one in the code holds: %s", task, error)
        return None


def _jobs(row: sqlite3.Row) -> Iterator[_Command]:
    user = row["user"] if "user" in row.keys() else None  # noqa: SIM118  (a Row is no mapping)
    state = JobState(
        row["key"], bool(row["durable"]), user, RunState(row["state"]), row["attempt"], row["fence"], row["percent"],
        row["message"], row["reason"], row["error"], bool(row["cancelled"]),
        instant_of(row["queued_at"]), instant_of(row["started_at"]), instant_of(row["finished_at"]),
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
