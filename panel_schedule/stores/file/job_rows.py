"""The background jobs of a file store: who has each of them, how far it is, and what came of it."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from ...errors import RunCancelled, RunCrashed, RunError, RunFenced, ScheduleError, ValueUnreadable
from ...functions.run import RunState, on_a_loop
from ...serialize.checks import require_data
from ...serialize.codec import Encoded, encode
from ...serialize.errors import first_line, packed, unpacked
from ..queue import ANYBODY, JobRow
from .columns import instant_of, micros, storable
from .database import NEXT_OF_JOBS, Corrupt, Database, Transaction
from .job_blobs import ARGUMENTS, ERROR, PARTIAL, VALUE, JobBlobs, whose
from .opened import OpenDirectory

log = logging.getLogger("panel_schedule")

# Before the id of a job, where it stands among the tasks that sessions show.
_FOLLOWED = "\x1fjob "

# How long one can be seen whose process could not say it.
KEPT = timedelta(days=1)

# So many that have ended are kept, of all functions; and the bytes of what they gave, by default. How often in seconds
# it is looked whether there are more.
MOST, MOST_BYTES, LOOK = 10_000, 256 * 1024**2, 10.0

# So many that have ended are listed of a function, or of one user's.
LISTED = 50

# The owner of one that was released. One that has ended has none.
NOBODY = ""

_SEEN = "(expires_at IS NULL OR expires_at > ?)"

_EQUAL = f"""SELECT * FROM jobs WHERE function = ? AND key = ? AND NOT cancelled
AND (owner IS NOT NULL OR state = '{RunState.SUCCEEDED}' AND {_SEEN}) ORDER BY number DESC"""

# What a new database takes over of the last one.
_CARRIED = """id, function, key, durable, owner, state, attempt, fence, percent, message, reason, error, cancelled,
partials, queued_at, started_at, finished_at, expires_at, user"""

_Ask = Callable[..., list[sqlite3.Row]]


class JobRows:
    """The part of a file store that is its `Queue`."""

    def __init__(self, directory: OpenDirectory, most_bytes: int = MOST_BYTES):
        self._directory = directory
        self._most_bytes = most_bytes
        self._parts = JobBlobs(directory)
        # When it is looked again whether too many are kept, and the last change before it was.
        self._counts_at, self._counted = 0.0, 0
        self._noticed: list[Callable[[str], object]] = []
        # The last change that was taken in, and of which database.
        self._seen: tuple[Database | None, int] = (None, 0)
        # Liveness that had no file when this process looked last.
        self._missing: set[str] = set()

    # ------------------------------------------------------------ entering

    def enqueue(
        self,
        id: str,
        function: str,
        *,
        now: datetime,
        payload: Encoded | None,
        key: str = "",
        durable: bool = False,
        synced: bool,
        user: str | None = None,
    ) -> JobRow | None:
        # A hit costs no lock.
        if key and (known := self._equal(self._directory._read, function, key, now)) is not None:
            return known
        if payload is None and durable:
            payload = encode(None, _what(function))  # so that one that is missing is known to be lost
        inline, file = self._directory._blobs.place(payload, whose(id, ARGUMENTS), synced) if payload else (None, None)
        known = None
        try:
            with self._directory._transaction(durable=self._directory._persistent and (durable or synced)) as tx:
                if key:
                    known = self._equal(tx.all, function, key, now)
                if known is None:
                    tx.do(
                        "INSERT INTO jobs (id, function, key, durable, owner, state, queued_at, user, change) "
                        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        *(id, function, key, durable, self._directory._me, str(RunState.QUEUED), micros(now), user),
                        tx.change(NEXT_OF_JOBS),
                    )
                    if payload is not None:
                        self._parts.keep(tx, id, ARGUMENTS, inline, file)
        except BaseException:
            self._directory._unlink_unless_known(file)
            raise
        if known is not None:
            self._directory._blobs.unlink(file)
        return known

    def _equal(self, ask: _Ask, function: str, key: str, now: datetime) -> JobRow | None:
        found = map(self._job, ask(_EQUAL, function, key, micros(now)))
        return next((job for job in found if not job.orphan), None)

    # ------------------------------------------------------------ looking

    def job(self, id: str) -> JobRow | None:
        found = self._find(id)
        if found is not None and found.orphan and not found.durable and not on_a_loop():
            self.look()
            found = self._find(id)
        return found

    def _find(self, id: str) -> JobRow | None:
        rows = self._directory._read(f"SELECT * FROM jobs WHERE id = ? AND {_SEEN}", id, self._now())
        return self._job(rows[0]) if rows else None

    def jobs(self, function: str, user: str | None = ANYBODY) -> list[JobRow]:
        theirs, values = ("", ()) if user is ANYBODY else ("AND user IS ?", (user,))
        ended = f"SELECT * FROM jobs WHERE function = ? AND owner IS NULL {theirs} AND {_SEEN}"
        rows = self._directory._read(
            f"SELECT * FROM jobs WHERE function = ? AND owner NOT NULL {theirs} UNION ALL "
            f"SELECT * FROM ({ended} ORDER BY number DESC LIMIT {LISTED}) ORDER BY number DESC",
            *(function, *values, function, *values, self._now()),
        )
        return [self._job(row) for row in rows]

    def orphans(self) -> list[JobRow]:
        question = "SELECT * FROM jobs WHERE owner IS NOT NULL AND durable AND NOT cancelled ORDER BY number"
        return [job for job in map(self._job, self._directory._read(question)) if job.orphan]

    def _job(self, row: sqlite3.Row) -> JobRow:
        queued_at, started_at, finished_at, expires_at = (
            instant_of(row[f"{what}_at"]) for what in ("queued", "started", "finished", "expires")
        )
        mine = row["owner"] == self._directory._me
        return JobRow(
            row["id"], row["function"], row["key"], bool(row["durable"]), RunState(row["state"]), row["attempt"],
            row["fence"], not mine and row["owner"] is not None and not self._directory._alive(row["owner"]), mine,
            row["percent"], row["message"], row["reason"], row["error"], row["partials"], bool(row["cancelled"]),
            row["user"], queued_at, started_at, finished_at, expires_at, row["change"],
        )  # fmt: skip

    def _now(self) -> int | None:
        return micros(self._directory._clock.now())

    # ------------------------------------------------------------ running

    def take(self, id: str, now: datetime) -> tuple[JobRow, Any] | None:
        with self._directory._transaction() as tx:
            row = tx.one("SELECT * FROM jobs WHERE id = ? AND durable AND NOT cancelled", id)
            if row is None or row["owner"] is None or self._directory._alive(row["owner"]):
                return None
            tx.do(
                "UPDATE jobs SET owner = ?, fence = fence + 1, attempt = attempt + (state = ?), state = ?, "
                "percent = -1, message = '', change = ? WHERE id = ?",
                *(self._directory._me, str(RunState.RUNNING), str(RunState.QUEUED), tx.change(NEXT_OF_JOBS), id),
            )
            row = tx.one("SELECT * FROM jobs WHERE id = ?", id)
            assert row is not None
            job = self._job(row)
        try:
            return job, self._parts.one(id, _what(job.function), ARGUMENTS)
        except ValueUnreadable as error:
            with suppress(RunFenced):
                self.end(id, job.fence, RunState.FAILED, now=now, error=error, expires_at=now + KEPT)
            return None
        except BaseException:
            self._set(id, job.fence, "owner = ?", NOBODY)
            raise

    def begin(self, id: str, fence: int, now: datetime, attempt: int) -> None:
        columns = "state = ?, started_at = ?, attempt = ?, percent = -1, message = ''"
        if not self._set(id, fence, columns, str(RunState.RUNNING), micros(now), attempt):
            raise _fenced(id)

    def again(self, id: str, fence: int, attempt: int) -> None:
        if not self._set(id, fence, "state = ?, attempt = ?", str(RunState.QUEUED), attempt):
            raise _fenced(id)

    def tell(self, id: str, fence: int, percent: int, message: str) -> None:
        self._set(id, fence, "percent = ?, message = ?", percent, storable(message))

    def _set(self, id: str, fence: int, columns: str, *values: Any) -> int:
        return self._directory._do(
            f"UPDATE jobs SET {columns}, change = {NEXT_OF_JOBS} WHERE id = ? AND fence = ? AND owner = ?",
            *(*values, id, fence, self._directory._me),
        )

    def _held(self, ask: _Ask, id: str, fence: int) -> sqlite3.Row:
        rows = ask("SELECT * FROM jobs WHERE id = ? AND fence = ? AND owner = ?", id, fence, self._directory._me)
        if not rows:
            raise _fenced(id)
        return rows[0]

    def add_partial(self, id: str, fence: int, number: int, value: Any) -> None:
        what = _what(self._held(self._directory._read, id, fence)["function"])
        require_data(value, what)
        inline, file = self._directory._blobs.put(value, what, whose(id, PARTIAL, number))
        try:
            with self._directory._transaction() as tx:
                attempt = self._held(tx.all, id, fence)["attempt"]
                former = "job = ? AND kind = ? AND number >= ? AND (attempt < ? OR number = ?)"
                gone = self._parts.drop(tx, former, id, PARTIAL, number, attempt, number)
                self._parts.keep(tx, id, PARTIAL, inline, file, number, attempt)
                count = "(SELECT 1 + max(number) FROM parts WHERE job = jobs.id AND kind = ?)"
                tx.do(
                    f"UPDATE jobs SET partials = {count}, change = ? WHERE id = ?",
                    *(PARTIAL, tx.change(NEXT_OF_JOBS), id),
                )
        except BaseException:
            self._directory._unlink_unless_known(file)
            raise
        self._parts.unlink(gone)

    # ------------------------------------------------------------ ending

    def end(
        self,
        id: str,
        fence: int,
        state: RunState,
        *,
        now: datetime,
        value: Any = None,
        error: BaseException | None = None,
        traceback: str = "",
        reason: str = "",
        expires_at: datetime | None,
    ) -> Any:
        row = self._held(self._directory._read, id, fence)
        what, blobs = _what(row["function"]), self._directory._blobs
        kind, inline, file, returned = "", None, None, None
        try:
            if state is RunState.SUCCEEDED:
                require_data(value, what)
                kind, (inline, file) = VALUE, blobs.put(value, what, whose(id, VALUE))
                # What the others get, this process gets as well, as with every value.
                source = blobs.source(inline, file, whose(id, VALUE))
                returned = blobs.reread(source, what)
                source.close()
            elif error is not None:
                kind, (inline, file) = ERROR, blobs.put(packed(error, traceback), what, whose(id, ERROR))
            on_disk = self._directory._persistent and (bool(row["durable"]) or file is not None)
            with self._directory._transaction(durable=on_disk) as tx:
                self._held(tx.all, id, fence)
                gone = self._close(tx, id, state, now, first_line(error), reason, expires_at)
                if kind:
                    self._parts.keep(tx, id, kind, inline, file)
        except BaseException:
            self._directory._unlink_unless_known(file)
            raise
        self._parts.unlink(gone)
        return returned

    def cancel(self, id: str) -> None:
        gone: list[str] = []
        with self._directory._transaction() as tx:
            row = tx.one("SELECT * FROM jobs WHERE id = ? AND owner IS NOT NULL", id)
            if row is not None and self._directory._alive(row["owner"]):
                tx.do("UPDATE jobs SET cancelled = 1, change = ? WHERE id = ?", tx.change(NEXT_OF_JOBS), id)
            elif row is not None:
                gone = self._cancelled(tx, row, "the run was cancelled")
        self._parts.unlink(gone)

    def follow(self, id: str, followed: bool) -> None:
        me = self._directory._me
        if followed:
            self._directory._do("INSERT OR REPLACE INTO viewers VALUES (?, ?, 1)", me, _FOLLOWED + id)
        else:
            self._directory._do("DELETE FROM viewers WHERE owner = ? AND task = ?", me, _FOLLOWED + id)

    def followed(self, id: str) -> bool:
        question = "SELECT 1 FROM viewers WHERE task = ? AND owner != ? LIMIT 1"
        return bool(self._directory._read(question, _FOLLOWED + id, self._directory._me))

    def release(self) -> None:
        me, gone = self._directory._me, list[str]()
        # Most processes have none, and a directory that is gone is not to be made again for that.
        if not self._directory._read("SELECT 1 FROM jobs WHERE owner = ?", me):
            return
        with self._directory._transaction(durable=self._directory._persistent) as tx:
            for row in tx.all("SELECT * FROM jobs WHERE owner = ?", me):
                if row["durable"] and not row["cancelled"]:
                    self._give_away(tx, row, RunState.QUEUED)
                else:
                    gone += self._cancelled(tx, row, "the server stops")
        self._parts.unlink(gone)

    def _bury(self, owner: str) -> None:
        gone = list[str]()
        with self._directory._transaction() as tx:
            for row in tx.all("SELECT * FROM jobs WHERE owner = ?", owner):
                if row["cancelled"]:
                    gone += self._cancelled(tx, row, "the run was cancelled")
                elif row["durable"]:
                    self._give_away(tx, row, row["state"])
                else:
                    died = RunCrashed(
                        f"{_what(row['function'])}: the process that ran it died. Submit it again; with durable=True "
                        "another process would have taken it."
                    )
                    gone += self._stop(tx, row, RunState.CRASHED, died)
        self._parts.unlink(gone)

    def _give_away(self, tx: Transaction, row: sqlite3.Row, state: str) -> None:
        tx.do(
            "UPDATE jobs SET owner = ?, state = ?, change = ? WHERE id = ?",
            *(NOBODY, str(state), tx.change(NEXT_OF_JOBS), row["id"]),
        )

    def _cancelled(self, tx: Transaction, row: sqlite3.Row, why: str) -> list[str]:
        return self._stop(tx, row, RunState.CANCELLED, RunCancelled(f"{_what(row['function'])}: {why}."))

    def _stop(self, tx: Transaction, row: sqlite3.Row, state: RunState, error: RunError) -> list[str]:
        """End one for its process; the files that are nobody's then."""
        now = self._directory._clock.now()
        reason = str(state) if state is RunState.CANCELLED else ""
        self._parts.keep(tx, row["id"], ERROR, encode(packed(error), "").tobytes())
        return self._close(tx, row["id"], state, now, first_line(error), reason, now + KEPT)

    def _close(
        self,
        tx: Transaction,
        id: str,
        state: RunState,
        now: datetime,
        error: str,
        reason: str,
        expires_at: datetime | None,
    ) -> list[str]:
        tx.do(
            "UPDATE jobs SET owner = NULL, state = ?, finished_at = ?, error = ?, reason = ?, expires_at = ?, "
            "cancelled = 0, percent = CASE WHEN ? AND percent >= 0 THEN 100 ELSE percent END, change = ? WHERE id = ?",
            *(str(state), micros(now), storable(error), storable(reason), micros(expires_at)),
            *(state is RunState.SUCCEEDED, tx.change(NEXT_OF_JOBS), id),
        )
        tx.do("DELETE FROM viewers WHERE task = ?", _FOLLOWED + id)
        return self._parts.drop(tx, "job = ? AND kind = ?", id, ARGUMENTS)

    # ------------------------------------------------------------ what came of it

    def value(self, id: str) -> Any:
        job = self._find(id)
        if job is None or job.state is not RunState.SUCCEEDED:
            raise KeyError(id)
        try:
            return self._parts.one(id, _what(job.function), VALUE)
        except ValueUnreadable as error:
            if self._find(id) is None:  # it was swept meanwhile
                raise KeyError(id) from None
            # Who asks for the same gets another one.
            if self._directory._do(f"UPDATE jobs SET key = '', change = {NEXT_OF_JOBS} WHERE id = ? AND key != ''", id):
                log.error("%s", error)
            raise

    def partials(self, id: str, start: int = 0) -> list[Any]:
        job = self._find(id)
        return [] if job is None else self._parts.all(id, _what(job.function), PARTIAL, start)

    def failure(self, id: str) -> BaseException | None:
        job = self._find(id)
        if job is None or not job.error:
            return None
        kept = job.error, "", b""
        with suppress(ValueUnreadable):
            kept = self._parts.one(id, _what(job.function), ERROR)
        return unpacked(kept, _what(job.function))

    # ------------------------------------------------------------ what the others do

    def watch_jobs(self, noticed: Callable[[str], object]) -> None:
        if not self._noticed:
            database = self._directory._database
            last = self._directory._read(f"SELECT {NEXT_OF_JOBS} - 1 AS change", of=database)[0]["change"]
            self._seen = database, last
        self._noticed.append(noticed)

    def catch_up(self) -> None:
        """Tell of what has changed since the last time."""
        if not self._noticed:
            return
        database, (former, last) = self._directory._database, self._seen
        question = "SELECT id, owner, cancelled, change FROM jobs WHERE change > ? ORDER BY change"
        rows = self._directory._read(question, last if database is former else 0, of=database)
        if rows or database is not former:
            self._seen = database, rows[-1]["change"] if rows else 0
        for row in rows:
            # Of those that it holds a process knows everything but this.
            if row["owner"] != self._directory._me or row["cancelled"]:
                for noticed in self._noticed:
                    noticed(row["id"])

    def look(self) -> None:
        """Do what processes have left undone that are gone, and what time asks for."""
        liveness = self._directory._read(
            "SELECT DISTINCT owner FROM jobs WHERE owner IS NOT NULL AND owner != ?", NOBODY
        )
        gone = {row["owner"] for row in liveness if not self._directory._alive(row["owner"])}
        there = set(self._directory._liveness.others())
        for owner in gone & (there | self._missing):
            self._bury(owner)
        # Somebody may have deleted the file of one that is alive: then it is there again before the next look.
        self._missing = gone - there
        self.sweep()

    def sweep(self) -> None:
        """Forget what has expired, and the oldest of too many."""
        now = self._now()
        if self._directory._read("SELECT 1 FROM jobs WHERE expires_at <= ? LIMIT 1", now):
            self._forget("expires_at <= ?", now)
        if (last := self._beyond()) is not None:
            self._forget("owner IS NULL AND number <= ?", last)

    def _forget(self, which: str, value: int | None) -> None:
        with self._directory._transaction() as tx:
            # The next change gets a greater number than this, whatever is deleted.
            last = tx.change(NEXT_OF_JOBS)
            gone = self._parts.drop(tx, f"job IN (SELECT id FROM jobs WHERE {which})", value)
            tx.do(f"DELETE FROM jobs WHERE {which}", value)
            tx.do("DELETE FROM swept")
            tx.do("INSERT INTO swept VALUES (?)", last)
        self._parts.unlink(gone)

    def _beyond(self) -> int | None:
        """The number of the newest one that has ended and is beyond what is kept; None where there is room."""
        now = self._directory._clock.monotonic()
        if now < self._counts_at:
            return None
        self._counts_at = now + LOOK
        change = self._directory._read("SELECT ifnull(max(change), 0) AS change FROM jobs")[0]["change"]
        if change == self._counted:
            return None
        self._counted = change
        rows = self._directory._read(
            "SELECT jobs.number, ifnull(length(parts.inline), 0) AS size, parts.file FROM jobs "
            "LEFT JOIN parts ON parts.job = jobs.id WHERE owner IS NULL ORDER BY jobs.number DESC"
        )
        size, seen = 0, set[int]()
        for row in rows:
            seen.add(row["number"])
            size += row["size"] + self._directory._blobs.size(row["file"])
            if len(seen) > MOST or (size > self._most_bytes and len(seen) > 1):
                return int(row["number"])
        return None

    def rescue(self, former: Database) -> None:
        """Go on with what stands in a database that was deleted, but for what is there already."""
        try:
            with self._directory._database.write() as tx:
                for job in former.read(f"SELECT {_CARRIED} FROM jobs ORDER BY number"):
                    marks = ", ".join("?" * len(job))
                    if tx.do(
                        f"INSERT OR IGNORE INTO jobs ({_CARRIED}, change) VALUES ({marks}, ?)",
                        *(*job, tx.change(NEXT_OF_JOBS)),
                    ):
                        for part in former.read("SELECT * FROM parts WHERE job = ?", job["id"]):
                            tx.do("INSERT OR IGNORE INTO parts VALUES (?, ?, ?, ?, ?, ?)", *part)
        except (ScheduleError, Corrupt) as error:
            log.error("The background jobs of the store are lost: %s", error)


def _what(function: str) -> str:
    return f"Job {function!r}"


def _fenced(id: str) -> RunFenced:
    return RunFenced(f"Run {id} of a background function has ended, or is another process's by now; this is dropped.")
