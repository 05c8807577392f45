"""What a file store keeps of each task besides its value: schedule, claim, history."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from ...coordination.record import EPOCH, instant_of, micros, storable
from ...functions.run import RunRecord, RunState
from ..base import TAKEOVERS, TASK, Claim, Holder, Mark, Plan, Refusal, Row, extended
from .columns import key_of, pickled, portable, stored_key, stored_mark, unpickled
from .transaction import NEXT, Transaction

# What says something about the task; that a run was cancelled does not.
_OUTCOMES = (RunState.SUCCEEDED, RunState.FAILED, RunState.TIMED_OUT, RunState.CRASHED)

_CRASHED = "RunCrashed: the process that ran it died, as did the one that took it over or the one before."

_FREE = "owner = NULL, run_id = NULL, published = 0, over = 0, cancelled = ''"

_NEWER = "SELECT 1 FROM entries WHERE space = ? AND name = ? AND version > ? AND updated_at NOT NULL"

_ROW = """SELECT *, (SELECT sum(viewers) FROM viewers WHERE task = tasks.name AND owner != ?) AS watching
FROM tasks WHERE name = ?"""


class TaskRows(ABC):
    """The half of a file store that deals with schedules and runs; the other half knows the values."""

    _me: str
    _server: str
    _history_limit: int

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[Transaction]: ...
    @abstractmethod
    def _do(self, command: str, *values: Any) -> int: ...
    @abstractmethod
    def _read(self, question: str, *values: Any) -> list[sqlite3.Row]: ...
    @abstractmethod
    def _alive(self, owner: str) -> bool: ...
    @abstractmethod
    def _unlink(self, file: str | None) -> None: ...
    @abstractmethod
    def _catch_up(self) -> None: ...
    @abstractmethod
    def _unreadable(self, task: str) -> int: ...
    @abstractmethod
    def _clear(self, tx: Transaction, space: str, name: str) -> None: ...

    # ------------------------------------------------------------ schedules

    def enroll(self, plans: Iterable[Plan], *, again: bool = False, late: bool = False) -> dict[str, Row]:
        found: dict[str, Row] = {}
        with self._transaction() as tx:
            for plan in plans:
                gave_way = self._enroll(tx, plan, again, late)
                row = tx.one(_ROW, self._me, plan.task)
                assert row is not None
                found[plan.task] = self._row(row, gave_way, plan.trigger.fingerprint)
        return found

    def _enroll(self, tx: Transaction, plan: Plan, again: bool, late: bool) -> Any:
        """Bring the row in line with the plan; an override that gave way is returned."""
        name, trigger, first_seen = plan
        fingerprint = trigger.fingerprint
        row = tx.one("SELECT * FROM tasks WHERE name = ?", name)
        if row is None:
            self._insert(tx, name, fingerprint, trigger, first_seen)
            return None
        # Without a fingerprint it was claimed, by a script say, before anybody enrolled it.
        ours = row["server"] == self._server
        if row["forgotten"] and ours and not late:
            return None
        unchanged = not row["forgotten"] and row["fingerprint"] == fingerprint
        if ours and not again and not row["forgotten"] and row["fingerprint"]:
            return None
        if unchanged and not again:
            there = tx.one(_NEWER, TASK, name, self._unreadable(name))
            # Without a value to serve the slot that was handled last is the new server's first run.
            anew = "first_seen = max(first_seen, coalesce(last_slot, 0)), last_slot = NULL, last_version = 0,"
            tx.do(
                f"UPDATE tasks SET server = ?, removed = 0, {'' if there else anew} change = ? WHERE name = ?",
                *(self._server, tx.change(), name),
            )
            return None
        # Claim, fence and history stay: a run of the former schedule may be in flight.
        kept = unchanged and again
        tx.do(
            "UPDATE tasks SET server = ?, fingerprint = ?, trigger = ?, removed = 0, forgotten = 0, "
            f"{'' if kept else 'override = NULL, first_seen = ?, last_slot = NULL, last_version = 0,'} "
            "change = ? WHERE name = ?",
            *(self._server, fingerprint, portable(trigger)),
            *(() if kept else (micros(first_seen),)),
            *(tx.change(), name),
        )
        return None if kept or row["forgotten"] else unpickled(name, row["override"])

    def _insert(self, tx: Transaction, name: str, fingerprint: str, trigger: Any, first_seen: datetime) -> None:
        tx.do(
            "INSERT INTO tasks (name, server, fingerprint, trigger, first_seen, change) VALUES (?, ?, ?, ?, ?, ?)",
            *(name, self._server, fingerprint, portable(trigger), micros(first_seen), tx.change()),
        )

    def row(self, task: str, fingerprint: str | None = None) -> Row | None:
        found = self._read(_ROW, self._me, task)
        # Who sees that a run has ended sees its value, too.
        self._catch_up()
        return self._row(found[0], fingerprint=fingerprint) if found else None

    def _row(self, row: sqlite3.Row, gave_way: Any = None, fingerprint: str | None = None) -> Row:
        name, holder = row["name"], None
        if row["run_id"] is not None and row["owner"] != self._me:
            holder = Holder(
                row["run_id"], key_of(row["key"]), row["attempt"], instant_of(row["wave"]),
                instant_of(row["started_at"]), bool(row["over"]), not self._alive(row["owner"]),
                row["percent"], row["message"],
            )  # fmt: skip
        return Row(
            fingerprint=row["fingerprint"],
            first_seen=instant_of(row["first_seen"]) or EPOCH,
            last_slot=instant_of(row["last_slot"]),
            last_version=row["last_version"],
            trigger=unpickled(name, row["trigger"]) if fingerprint not in (None, row["fingerprint"]) else None,
            override=unpickled(name, row["override"]),
            gave_way=gave_way,
            paused=bool(row["paused"]),
            removed=bool(row["removed"]),
            forgotten=bool(row["forgotten"]),
            outcome=RunState(row["outcome"]) if row["outcome"] else None,
            error=row["error"],
            stale=bool(row["stale"]),
            viewers=row["watching"] or 0,
            holder=holder,
            cancelled=row["cancelled"],
            change=row["change"],
        )

    def amend(
        self,
        task: str,
        *,
        paused: bool | None = None,
        removed: bool | None = None,
        reschedule: Any = None,
        now: datetime | None = None,
    ) -> None:
        override = None if reschedule is None else pickled(task, reschedule)
        with self._transaction() as tx:
            number = tx.change()
            if paused is not None:
                tx.do("UPDATE tasks SET paused = ?, change = ? WHERE name = ?", paused, number, task)
            if removed is not None:
                tx.do("UPDATE tasks SET removed = ?, change = ? WHERE name = ?", removed, number, task)
            if reschedule is not None and now is not None:
                tx.do(
                    "UPDATE tasks SET override = ?, first_seen = ?, change = ? WHERE name = ?",
                    *(override, micros(now), number, task),
                )

    def rewind(self, task: str, now: datetime) -> bool:
        instant = micros(now)
        with self._transaction() as tx:
            late = "name = ? AND (last_slot > ? OR first_seen > ?)"
            if tx.one(f"SELECT 1 FROM tasks WHERE {late}", task, instant, instant) is None:
                return False
            tx.do(
                "UPDATE tasks SET last_slot = NULL, first_seen = ?, change = ? WHERE name = ?",
                *(instant, tx.change(), task),
            )
        return True

    def watch(self, task: str, viewers: int) -> None:
        with self._transaction() as tx:
            if viewers:
                tx.do("INSERT OR REPLACE INTO viewers VALUES (?, ?, ?)", self._me, task, viewers)
            else:
                tx.do("DELETE FROM viewers WHERE owner = ? AND task = ?", self._me, task)
            tx.do("UPDATE tasks SET change = ? WHERE name = ?", tx.change(), task)

    def flip(self, task: str, stale: bool) -> bool:
        with self._transaction() as tx:
            return tx.do("UPDATE tasks SET stale = ? WHERE name = ? AND stale != ?", stale, task, stale) > 0

    def forget(self, task: str) -> None:
        with self._transaction() as tx:
            file = tx.one("SELECT file FROM entries WHERE space = ? AND name = ?", TASK, task)
            self._clear(tx, TASK, task)
            tx.do("DELETE FROM runs WHERE task = ?", task)
            # The row stays as a tombstone: another process of this server, which has yet to hear of it, would
            # take a row that is not there for that of a task which never ran.
            tx.do(
                f"UPDATE tasks SET forgotten = 1, override = NULL, error = '', outcome = NULL, stale = 0, paused = 0, "
                f"{_FREE}, change = ? WHERE name = ?",
                *(tx.change(), task),
            )
        self._unlink(file["file"] if file else None)
        self._catch_up()

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
        column = "last_slot" if isinstance(mark, datetime) else "last_version"
        question = f"SELECT run_id, server, forgotten, fence, {column} AS last FROM tasks WHERE name = ?"
        while True:
            row = next(iter(self._read(question, task)), None)
            if row is None or (row["forgotten"] and row["server"] != self._server):
                self._begin_anew(task, now)
                continue
            # Most claims lose to another process: they cost no lock.
            refusal = self._refused(row, mark)
            newer = (TASK, task, self._unreadable(task)) if first else ()
            if refusal is None and first and self._read(_NEWER, *newer):
                refusal = Refusal.HANDLED
            if refusal is not None:
                # Whoever handled it may have published just now: the caller sees that value, too.
                self._catch_up()
                return refusal
            # Compare and set, in one statement: what has the lock for longer makes all the others wait.
            if self._do(
                f"UPDATE tasks SET owner = ?, run_id = ?, fence = fence + 1, attempt = 1, "
                f"takeovers = CASE outcome WHEN '{RunState.CRASHED}' THEN {TAKEOVERS} ELSE 0 END, "
                f"key = ?, wave = ?, started_at = ?, published = 0, over = 0, cancelled = '', percent = -1, "
                f"message = '', change = {NEXT}, {column} = ifnull(?, {column}) "
                f"WHERE name = ? AND run_id IS NULL AND NOT forgotten AND fence = ? AND {column} IS ? "
                f"{f'AND NOT EXISTS ({_NEWER})' if first else ''}",
                *(self._me, run_id, stored_key(key), micros(wave), micros(now), stored_mark(mark)),
                *(task, row["fence"], row["last"], *newer),
            ):
                return Claim(task, run_id, row["fence"] + 1, 1, key, wave)

    def _begin_anew(self, task: str, now: datetime) -> None:
        """A row for a task that nobody has enrolled, or that a former server has forgotten."""
        with self._transaction() as tx:
            if tx.one("SELECT 1 FROM tasks WHERE name = ?", task) is None:
                self._insert(tx, task, "", None, now)
            tx.do(
                "UPDATE tasks SET server = ?, fingerprint = '', trigger = NULL, forgotten = 0, removed = 0, "
                "first_seen = ?, last_slot = NULL, last_version = 0 WHERE name = ? AND forgotten AND server != ?",
                *(self._server, micros(now), task, self._server),
            )

    def _refused(self, row: sqlite3.Row, mark: Mark | None) -> Refusal | None:
        if row["forgotten"]:
            return Refusal.HANDLED if row["server"] == self._server else None
        if _handled(row["last"], mark):
            return Refusal.HANDLED
        return Refusal.HELD if row["run_id"] is not None else None

    def advance(self, claim: Claim, version: int) -> None:
        with self._transaction() as tx:
            tx.do(
                "UPDATE tasks SET last_version = max(last_version, ?) WHERE name = ? AND run_id = ? AND fence = ?",
                *(version, claim.task, claim.run_id, claim.fence),
            )

    def progress(self, claim: Claim, percent: int, message: str) -> None:
        self._do(
            f"UPDATE tasks SET percent = ?, message = ?, change = {NEXT} WHERE name = ? AND run_id = ? AND fence = ?",
            *(percent, storable(message), claim.task, claim.run_id, claim.fence),
        )

    def release(self, claim: Claim) -> None:
        self._do(
            f"UPDATE tasks SET {_FREE}, change = {NEXT} WHERE name = ? AND run_id = ? AND fence = ?",
            *(claim.task, claim.run_id, claim.fence),
        )

    def hand_over(self, claim: Claim) -> None:
        with self._transaction() as tx:
            tx.do(
                "UPDATE tasks SET owner = '', attempt = attempt - 1, takeovers = takeovers - 1, over = 0, change = ? "
                "WHERE name = ? AND run_id = ? AND fence = ?",
                *(tx.change(), claim.task, claim.run_id, claim.fence),
            )

    def take_over(self, task: str, now: datetime) -> Claim | RunRecord | None:
        with self._transaction() as tx:
            row = tx.one("SELECT * FROM tasks WHERE name = ?", task)
            if row is None or row["run_id"] is None or self._alive(row["owner"]):
                return None
            if row["over"]:
                # It had ended before its process did; only its body was still there.
                tx.do(f"UPDATE tasks SET {_FREE}, change = ? WHERE name = ?", tx.change(), task)
                return None
            if row["published"]:
                self._close(tx, row, RunState.SUCCEEDED, "", now)
                return None
            if row["takeovers"] >= TAKEOVERS:
                return self._close(tx, row, RunState.CRASHED, _CRASHED, now)
            tx.do(
                "UPDATE tasks SET owner = ?, fence = fence + 1, attempt = attempt + 1, "
                "takeovers = takeovers + 1, cancelled = '', started_at = ?, change = ? WHERE name = ?",
                *(self._me, micros(now), tx.change(), task),
            )
        return Claim(
            task, row["run_id"], row["fence"] + 1, row["attempt"] + 1, key_of(row["key"]), instant_of(row["wave"])
        )

    def _close(self, tx: Transaction, row: sqlite3.Row, state: RunState, error: str, now: datetime) -> RunRecord:
        """End the run of a process that cannot do so any more."""
        record = RunRecord(
            row["run_id"], key_of(row["key"]), state, row["attempt"], None, instant_of(row["started_at"]), now, error
        )
        self._add(tx, row["name"], record)
        tx.do(f"UPDATE tasks SET {_FREE}, change = ? WHERE name = ?", tx.change(), row["name"])
        return record

    def cancel(self, task: str, run_id: str) -> None:
        with self._transaction() as tx:
            tx.do(
                "UPDATE tasks SET cancelled = run_id, change = ? WHERE name = ? AND run_id = ?",
                *(tx.change(), task, run_id),
            )

    def record(self, task: str, record: RunRecord, mark: Mark | None = None) -> bool:
        with self._transaction() as tx:
            if mark is not None:
                column = "last_slot" if isinstance(mark, datetime) else "last_version"
                row = tx.one(f"SELECT forgotten, {column} AS last FROM tasks WHERE name = ?", task)
                if row is None or row["forgotten"] or _handled(row["last"], mark):
                    return False
                tx.do(f"UPDATE tasks SET {column} = ? WHERE name = ?", stored_mark(mark), task)
            return self._add(tx, task, record)

    def _add(self, tx: Transaction, task: str, record: RunRecord) -> bool:
        newest = tx.one("SELECT * FROM runs WHERE task = ? ORDER BY number DESC LIMIT 1", task)
        if newest is not None and (longer := extended(_record(newest), record)) is not None:
            tx.do(
                "UPDATE runs SET until = ?, finished_at = ? WHERE number = ?",
                *(micros(longer.until), micros(longer.finished_at), newest["number"]),
            )
            return False
        tx.do(
            "INSERT INTO runs (task, id, key, state, attempt, queued_at, started_at, finished_at, error, reason, "
            "until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(task, record.id, stored_key(record.key), str(record.state), record.attempt),
            *map(micros, (record.queued_at, record.started_at, record.finished_at)),
            *(storable(record.error), storable(record.reason), micros(record.until)),
        )
        tx.do(
            "DELETE FROM runs WHERE task = ? AND number <= (SELECT number FROM runs WHERE task = ? "
            "ORDER BY number DESC LIMIT 1 OFFSET ?)",
            *(task, task, self._history_limit),
        )
        if record.state is not RunState.SKIPPED:
            tx.do(
                "UPDATE tasks SET over = (over OR run_id IS ?), outcome = ?, error = coalesce(?, error), change = ? "
                "WHERE name = ?",
                *(record.id, str(record.state)),
                *(storable(record.error) if record.state in _OUTCOMES else None, tx.change(), task),
            )
        return True

    def history(self, task: str) -> list[RunRecord]:
        return [_record(row) for row in self._read("SELECT * FROM runs WHERE task = ? ORDER BY number DESC", task)]


def _handled(last: int | None, mark: Mark | None) -> bool:
    return mark is not None and last is not None and last >= stored_mark(mark)


def _record(row: sqlite3.Row) -> RunRecord:
    queued_at, started_at, finished_at = (instant_of(row[f"{what}_at"]) for what in ("queued", "started", "finished"))
    return RunRecord(
        row["id"], key_of(row["key"]), RunState(row["state"]), row["attempt"], queued_at, started_at, finished_at,
        row["error"], row["reason"], instant_of(row["until"]),
    )  # fmt: skip
