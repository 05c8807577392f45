"""The answers of memoized functions in a file store: who computes each of them, and which have to go."""

from __future__ import annotations

import logging
import sqlite3
import sys
from collections.abc import Callable, Collection, Iterable
from datetime import datetime, timedelta
from typing import Any

from ...errors import RunCrashed, RunFailed, RunFenced, ScheduleError, ValueUnreadable
from ...serialize.checks import require_data
from ...serialize.codec import decode, encode
from ...serialize.errors import packed_short, unpacked
from ..base import TAKEOVERS
from ..cache import UNLIMITED, AnswerRow, Basis, Limits, serves
from .columns import instant_of, micros
from .database import Corrupt, Database, Transaction
from .opened import OpenDirectory

log = logging.getLogger("panel_schedule")

# The key of the row that says that all answers of a function were forgotten, with the owner who did it for its call.
ALL = ""

# How long a row without a value stays: until the others have heard of it.
EMPTY = timedelta(hours=1)

# The same of a value that is larger than all the room: until those have it who wait for it.
PASSING = timedelta(seconds=10)

# All but the values themselves.
_SEEN = """function, key, call, version, basis, updated_at, duration, size, fence, owner, wanted, failed, failed_at,
partials, takeovers"""

_ONE = "function = ? AND key = ?"

# Each row of it is a number that was given; of a database that was lost, too.
_COUNTED = "SELECT max(changes) AS changes FROM counted"

_FREE = "owner = NULL, wanted = '', takeovers = 0, partials = 0, partial_inline = NULL, partial_file = NULL"

_VALUELESS = "updated_at = NULL, inline = NULL, file = NULL, size = 0, failed = 0, failed_at = NULL, error = NULL"


class AnswerRows:
    """The part of a file store that is its `Cache`."""

    def __init__(self, directory: OpenDirectory):
        self._directory = directory
        self._noticed: list[Callable[[str, str], object]] = []
        # The last change that was taken in, and of which database.
        self._seen: tuple[Database | None, int] = (None, 0)

    # ------------------------------------------------------------ looking

    def look(self, function: str, key: str) -> AnswerRow | None:
        rows = self._directory._read(f"SELECT {_SEEN} FROM answers WHERE {_ONE}", function, key)
        return self._row(rows[0]) if rows else None

    def answers(self, function: str) -> list[AnswerRow]:
        question = f"SELECT {_SEEN} FROM answers WHERE function = ? AND updated_at NOT NULL ORDER BY used_at DESC"
        return [self._row(row) for row in self._directory._read(question, function)]

    def _row(self, row: sqlite3.Row) -> AnswerRow:
        mine, there = row["owner"] == self._directory._me, row["updated_at"] is not None
        return AnswerRow(
            row["function"], row["key"], row["call"], row["version"] if there else 0, _basis(row["basis"]),
            instant_of(row["updated_at"]), row["duration"], row["size"], row["fence"],
            row["owner"] is not None and (mine or self._directory._alive(row["owner"])), mine, _basis(row["wanted"]),
            row["failed"], instant_of(row["failed_at"]), row["partials"],
        )  # fmt: skip

    def value(self, row: AnswerRow) -> Any:
        return self._load("inline, file", "updated_at NOT NULL AND version = ?", row, row.version)

    def partial(self, row: AnswerRow) -> Any:
        return self._load(
            "partial_inline AS inline, partial_file AS file", "partials > 0 AND fence = ?", row, row.fence
        )

    def _load(self, columns: str, which: str, row: AnswerRow, number: int) -> Any:
        question = f"SELECT {columns} FROM answers WHERE {_ONE} AND {which}"
        found = self._directory._read(question, row.function, row.key, number)
        if not found:
            raise KeyError(row.key)
        try:
            whose = _whose(row.function, row.key)
            source = self._directory._blobs.source(found[0]["inline"], found[0]["file"], whose)
            try:
                return source.load()
            finally:
                source.close()
        except FileNotFoundError:
            if not self._directory._read(
                f"SELECT 1 FROM answers WHERE {_ONE} AND {which}", row.function, row.key, number
            ):
                raise KeyError(row.key) from None  # it was replaced meanwhile
            raise ValueUnreadable(f"{_what(row.function)}: the file of {row.call} was deleted.") from None
        except (OSError, ValueError, TypeError, OverflowError) as error:
            raise ValueUnreadable(f"{_what(row.function)}: {row.call} cannot be read: {error}.") from error

    def failure(self, row: AnswerRow) -> BaseException:
        found = self._directory._read(f"SELECT error FROM answers WHERE {_ONE}", row.function, row.key)
        if not found or found[0]["error"] is None:
            return RunFailed(f"{_what(row.function)}: {row.call} failed in another process.")
        try:
            kept = decode(bytearray(found[0]["error"]))
        except ValueUnreadable as error:
            return RunFailed(f"{_what(row.function)}: {row.call} failed, and what it raised cannot be read: {error}.")
        return unpacked(kept, _what(row.function))

    # ------------------------------------------------------------ computing

    def claim(
        self, function: str, key: str, call: str, *, known: int, basis: Basis, now: datetime
    ) -> tuple[bool, AnswerRow]:
        former = None
        with self._directory._transaction() as tx:
            row = tx.one(f"SELECT {_SEEN} FROM answers WHERE {_ONE}", function, key)
            if row is not None and row["owner"] is not None and not self._directory._alive(row["owner"]):
                self._bury(tx, row)
                row = tx.one(f"SELECT {_SEEN} FROM answers WHERE {_ONE}", function, key)
                assert row is not None
                if row["failed"] == row["fence"]:
                    return False, self._row(row)
            if row is not None:
                found = self._row(row)
                if found.version > known or (found.held and not found.mine and serves(found.wanted, basis)):
                    return False, found
            # Nobody has to hear of it: who wants the same comes here, too.
            fence, wanted = self._next(tx), _stored(basis)
            if row is None:
                tx.do(
                    "INSERT INTO answers (function, key, call, used_at, owner, fence, wanted, change) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    *(function, key, call, micros(now), self._directory._me, fence, wanted, fence),
                )
            else:
                former = tx.one(f"SELECT partial_file AS file FROM answers WHERE {_ONE}", function, key)
                tx.do(
                    "UPDATE answers SET owner = ?, fence = ?, wanted = ?, call = ?, used_at = max(used_at, ?), "
                    f"partials = 0, partial_inline = NULL, partial_file = NULL WHERE {_ONE}",
                    *(self._directory._me, fence, wanted, call, micros(now), function, key),
                )
            row = tx.one(f"SELECT {_SEEN} FROM answers WHERE {_ONE}", function, key)
        self._unlink([former["file"] if former is not None else None])
        assert row is not None
        return True, self._row(row)

    def _next(self, tx: Transaction) -> int:
        """A number that no change and no computation had before. Rows are deleted, so that it stands apart."""
        tx.do("UPDATE counted SET changes = 1 + max(changes, (SELECT ifnull(max(change), 0) FROM answers))")
        row = tx.one(_COUNTED)
        assert row is not None
        return int(row["changes"])

    def _changed(self, tx: Transaction) -> int:
        """The same of a change that the others are told."""
        tx.changed = True
        return self._next(tx)

    def _held(self, tx: Transaction, function: str, key: str, fence: int) -> sqlite3.Row:
        row = tx.one(f"SELECT * FROM answers WHERE {_ONE}", function, key)
        if row is None or (row["fence"], row["owner"]) != (fence, self._directory._me):
            raise RunFenced(f"{_what(function)}: its arguments were invalidated meanwhile, or are another process's.")
        return row

    def publish(self, function: str, key: str, fence: int, value: Any) -> None:
        require_data(value, _what(function))
        inline, file = self._directory._blobs.put(value, _what(function), _whose(function, key))
        try:
            with self._directory._transaction(news=True) as tx:
                old = self._held(tx, function, key, fence)["partial_file"]
                tx.do(
                    "UPDATE answers SET partials = partials + 1, partial_inline = ?, partial_file = ?, change = ? "
                    f"WHERE {_ONE}",
                    *(inline, file, self._changed(tx), function, key),
                )
        except BaseException:
            self._directory._unlink_unless_known(file)
            raise
        self._directory._blobs.unlink(old)

    def put(
        self,
        function: str,
        key: str,
        fence: int,
        value: Any,
        *,
        now: datetime,
        duration: float,
        expires_at: datetime | None,
        limits: Limits,
    ) -> tuple[AnswerRow, Any]:
        what, whose, blobs = _what(function), _whose(function, key), self._directory._blobs
        require_data(value, what)
        encoded = encode(value, what)
        try:
            size = encoded.size
            # Not on the disk before its row is: what a loss of power takes is computed again.
            inline, file = blobs.place(encoded, whose, False)
        finally:
            encoded.close()
        if limits.size is not None and size > limits.size:
            expires_at = now + PASSING
        try:
            source = blobs.source(inline, file, whose)
            value = blobs.reread(source, what)
            source.close()
            with self._directory._transaction(news=True) as tx:
                old = self._held(tx, function, key, fence)
                change = self._changed(tx)
                tx.do(
                    f"UPDATE answers SET {_FREE}, version = ?, basis = wanted, updated_at = ?, duration = ?, size = ?, "
                    "used_at = ?, inline = ?, file = ?, failed = 0, failed_at = NULL, error = NULL, expires_at = ?, "
                    f"change = ? WHERE {_ONE}",
                    *(change, micros(now), duration, size, micros(now), inline, file, micros(expires_at), change),
                    *(function, key),
                )
                gone = [old["file"], old["partial_file"], *self._make_room(tx, function, key, limits)]
                new = tx.one(f"SELECT {_SEEN} FROM answers WHERE {_ONE}", function, key)
        except BaseException:
            self._directory._unlink_unless_known(file)
            raise
        self._unlink(gone)
        assert new is not None
        return self._row(new), value

    def _make_room(self, tx: Transaction, function: str, key: str, limits: Limits) -> list[str | None]:
        """Let go of what was used longest ago, but not of this one; the files that are nobody's then."""
        if limits == UNLIMITED:
            return []
        # What has no room in any case pushes nothing out.
        room = limits.size if limits.size is not None else sys.maxsize
        there = f"FROM answers WHERE function = ? AND (updated_at NOT NULL OR failed) AND size <= {room:d}"
        held = tx.one(f"SELECT count(*) AS entries, ifnull(sum(size), 0) AS size {there}", function)
        assert held is not None
        entries, size, gone = held["entries"], held["size"], []
        beyond = max(0, entries - limits.entries) if limits.entries is not None else 0
        if not beyond and size <= room:
            return []
        for row in tx.all(f"SELECT key, size, file {there} AND key != ? ORDER BY used_at, change", function, key):
            if beyond <= 0 and size <= room:
                break
            beyond, size = beyond - 1, size - row["size"]
            tx.do(f"UPDATE answers SET {_VALUELESS} WHERE {_ONE}", function, row["key"])
            # One that is just being computed again keeps its row.
            tx.do(f"DELETE FROM answers WHERE {_ONE} AND owner IS NULL", function, row["key"])
            gone.append(row["file"])
        return gone

    def fail(
        self,
        function: str,
        key: str,
        fence: int,
        error: BaseException,
        *,
        now: datetime,
        limits: Limits = UNLIMITED,
    ) -> None:
        kept = encode(packed_short(error), "").tobytes()
        with self._directory._transaction(news=True) as tx:
            gone = [self._held(tx, function, key, fence)["partial_file"]]
            self._fail(tx, function, key, fence, kept, now)
            gone += self._make_room(tx, function, key, limits)
        self._unlink(gone)

    def _fail(self, tx: Transaction, function: str, key: str, fence: int, kept: bytes, now: datetime) -> None:
        tx.do(
            f"UPDATE answers SET {_FREE}, failed = ?, failed_at = ?, error = ?, used_at = max(used_at, ?), change = ?, "
            f"size = CASE WHEN updated_at IS NULL THEN ? ELSE size END WHERE {_ONE}",
            *(fence, micros(now), kept, micros(now), self._changed(tx), len(kept), function, key),
        )

    def give_up(self, function: str, key: str, fence: int) -> None:
        self._give_up(f"{_ONE} AND fence = ? AND owner = ?", function, key, fence, self._directory._me)

    def release(self) -> None:
        # Most processes have none, and a directory that is gone is not to be made again for that.
        if self._directory._read("SELECT 1 FROM answers WHERE owner = ? LIMIT 1", self._directory._me):
            self._give_up("owner = ?", self._directory._me)

    def _give_up(self, which: str, *values: Any) -> None:
        now = micros(self._directory._clock.now())
        with self._directory._transaction(news=True) as tx:
            gone = tx.all(f"SELECT partial_file FROM answers WHERE {which}", *values)
            tx.do(
                f"UPDATE answers SET {_FREE}, used_at = max(used_at, ?), change = ? WHERE {which}",
                *(now, self._changed(tx), *values),
            )
        self._unlink(row["partial_file"] for row in gone)

    def _bury(self, tx: Transaction, row: sqlite3.Row) -> None:
        """Its process has died: another one takes it, unless that has happened before."""
        function, key, taken = row["function"], row["key"], row["takeovers"] + 1
        if taken > TAKEOVERS:
            died = RunCrashed(
                f"{_what(function)}: the process that computed {row['call']} died, as did the one before. It is tried "
                "again when somebody asks for it anew; look for what kills them."
            )
            self._fail(
                tx, function, key, row["fence"], encode(packed_short(died), "").tobytes(), self._directory._clock.now()
            )
        else:
            tx.do(
                f"UPDATE answers SET {_FREE}, takeovers = ?, used_at = max(used_at, ?), change = ? WHERE {_ONE}",
                *(taken, micros(self._directory._clock.now()), self._changed(tx), function, key),
            )

    # ------------------------------------------------------------ forgetting

    def invalidate(self, function: str, key: str | None = None) -> None:
        which, values = ("function = ?", [function]) if key is None else (_ONE, [function, key])
        with self._directory._transaction(news=True) as tx:
            gone = tx.all(f"SELECT file, partial_file FROM answers WHERE {which}", *values)
            # A row for those, too, that have gone from here and that other processes may still have at hand.
            tx.do("INSERT OR IGNORE INTO answers (function, key, call, used_at, change) VALUES (?, ?, '', 0, 0)",
                  function, key or ALL)  # fmt: skip
            now = micros(self._directory._clock.now())
            tx.do(
                f"UPDATE answers SET {_VALUELESS}, {_FREE}, used_at = ?, change = ? WHERE {which}",
                *(now, self._changed(tx), *values),
            )
            if key is None:
                tx.do(f"UPDATE answers SET call = ? WHERE {_ONE}", self._directory._me, function, ALL)
        self._unlink(file for row in gone for file in row)

    def use(self, function: str, keys: Collection[str], now: datetime) -> None:
        with self._directory._transaction() as tx:
            for key in keys:
                tx.do(f"UPDATE answers SET used_at = max(used_at, ?) WHERE {_ONE}", micros(now), function, key)

    def _unlink(self, files: Iterable[str | None]) -> None:
        for file in files:
            self._directory._blobs.unlink(file)

    def rescue(self, former: Database) -> None:
        """Go on counting where a database was that was deleted: its answers are still in use."""
        try:
            with self._directory._database.write() as tx:
                tx.do("INSERT INTO counted VALUES (?)", former.read(_COUNTED)[0]["changes"])
        except (ScheduleError, Corrupt) as error:
            log.error("The answers of memoized functions are computed anew: %s", error)

    # ------------------------------------------------------------ what the others do

    def watch_answers(self, noticed: Callable[[str, str], object]) -> None:
        if not self._noticed:
            database = self._directory._database
            self._seen = database, self._directory._read(_COUNTED, of=database)[0]["changes"]
        self._noticed.append(noticed)

    def catch_up(self) -> None:
        """Tell of what has changed since the last time."""
        if not self._noticed:
            return
        database, (former, last) = self._directory._database, self._seen
        question = "SELECT function, key, call, change FROM answers WHERE change > ? ORDER BY change, key"
        rows = self._directory._read(question, last if database is former else 0, of=database)
        if database is not former:
            self._seen = database, 0
        for row in rows:
            # One that cannot be taken in comes again.
            self._seen = database, row["change"] - 1
            # What this process has forgotten itself, it may have anew.
            if row["key"] != ALL or row["call"] != self._directory._me:
                for noticed in self._noticed:
                    noticed(row["function"], row["key"])
        if rows:
            self._seen = database, rows[-1]["change"]

    def look_for_the_dead(self) -> None:
        """Let others take what processes have left undone that are gone; and forget what time asks for."""
        liveness = self._directory._read("SELECT DISTINCT owner FROM answers WHERE owner NOT NULL")
        for row in liveness:
            if not self._directory._alive(row["owner"]):
                with self._directory._transaction(news=True) as tx:
                    for left in tx.all(f"SELECT {_SEEN} FROM answers WHERE owner = ?", row["owner"]):
                        self._bury(tx, left)
        self.sweep()

    def sweep(self) -> None:
        """Forget what has expired, and rows without a value that all have heard of."""
        now = self._directory._clock.now()
        times = micros(now), micros(now - EMPTY)
        which = "owner IS NULL AND (expires_at <= ? OR (updated_at IS NULL AND used_at <= ?))"
        if not self._directory._read(f"SELECT 1 FROM answers WHERE {which} LIMIT 1", *times):
            return
        with self._directory._transaction() as tx:
            gone = tx.all(f"SELECT file FROM answers WHERE {which}", *times)
            tx.do(f"DELETE FROM answers WHERE {which}", *times)
        self._unlink(row["file"] for row in gone)


def _what(function: str) -> str:
    return f"Memoized function {function!r}"


def _whose(function: str, key: str) -> str:
    """What seals its answer and its partial answers."""
    return f"{_what(function)} for {key}"


def _stored(basis: Basis) -> str:
    return ",".join(map(str, basis))


def _basis(text: str) -> Basis:
    return tuple(map(int, text.split(","))) if text else ()
