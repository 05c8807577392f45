"""The records of a file store: rows of its database, and their parts beside them or in files."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ...clock import Clock
from ...coordination.record import NOBODY, Logged, Record, Refusal, instant_of, micros, of_text, text_of
from ...errors import ScheduleError, StoreError, ValueUnreadable
from ...functions.run import RunRecord
from ...serialize.codec import Encoded, encode
from ..records import ALL, HELD, HOUR, Change, Changed, LogAge, Lost, Result, Source, Tell, numbered, tell_all, whole
from .database import Corrupt, Database
from .history import RUN, more_of, row_of, run_of
from .opened import LOOK_WITHOUT_BELL, OpenDirectory
from .transaction import Transaction, seal_of

log = logging.getLogger("panel_schedule")

_ONE = "space = ? AND name = ?"
_RUN = ", ".join(f"{column} = ?" for column in RUN.split(", "))
_LOGS = ("runs", "failures")
_PART = f"{_ONE} AND kind = ? AND number = ?"
_COLUMNS = "space, name, record_group, owner, used_at, expires_at, size, created, revision, state"

# The number of the next change. Records are deleted, so that the last number of a deleted one stands apart.
_NEXT = (
    "(SELECT 1 + max((SELECT ifnull(max(revision), 0) FROM records), (SELECT ifnull(max(revision), 0) FROM erased)))"
)


class _Ahead(int):
    """The number of a change that is not known yet."""


_AHEAD = _Ahead()

# So many records are remembered.
_REMEMBERED = 4000


class _Refused(Exception):
    """Of changes that are made together one was refused."""


class _Placed(NamedTuple):
    """A part that is written, and that nobody knows of yet."""

    inline: bytes | None
    file: str | None
    size: int
    value: Any


class _Known(NamedTuple):
    """The records that were read since a database had this head."""

    database: Database | None = None
    head: bytes = b""
    records: dict[tuple[str, str], Record | None] = {}


class _Said(NamedTuple):
    """What the text of a record's row says."""

    text: str
    state: Any
    parts: Mapping[str, int]


class FileRecords(OpenDirectory):
    """
    A `RecordStore` in a directory that several processes share.

    Parameters
    ----------
    folder : Path
    clock : Clock
    persistent : bool
        Whether the records outlive the server, and a loss of power. Else the directory goes with the last process.
    log_limit : int
        How many lines the log of each record keeps.

    Raises
    ------
    StoreError
        When the directory cannot be used, or is not safe.
    """

    blocking = True

    def __init__(self, folder: Path, clock: Clock, *, persistent: bool = True, log_limit: int = 100):
        self._log_limit = log_limit
        self.log_age: LogAge | None = None
        # From when on it is looked again for lines that are too old.
        self._forgets_at = 0.0
        self._lost: list[Lost] = []
        # When the directory of the files had changed, the last time that it was looked at.
        self._looked_at = 0
        self._subscribers: defaultdict[str, list[Changed]] = defaultdict(list)
        # The last change that was seen, and of which database; those that were seen and are still to be told.
        self._seen: tuple[Database | None, int] = (None, 0)
        self._untold: dict[tuple[str, str], Record] = {}
        self._known = _Known()
        # What was read or written last of each record, which is read again wherever it is changed or told of.
        self._said: dict[tuple[str, str], _Said] = {}
        # Until when, in a script, the directory is taken to be there: to look costs more than all else of a read.
        self._there_until = 0.0
        # See `Liveness.comings`; and owners that had no file, when this process looked last.
        self._comings = 0
        self._missing: set[str] = set()
        super().__init__(folder, clock, persistent)

    @property
    def me(self) -> str:
        return self._me

    def alive(self, owner: str) -> bool:
        return owner != NOBODY and self._liveness.alive(owner)

    # ------------------------------------------------------------ reading

    def read(self, space: str, name: str) -> Record | None:
        # First this: what is committed from here on changes it again, also where this file is not the store's any more.
        database = self._database
        head = database.head
        known, now = self._known, self._clock.monotonic()
        same = head == known.head and database is known.database and head
        if self._listener is None and not (same and now < self._there_until):
            self._renew()
            self._there_until = now + LOOK_WITHOUT_BELL
        if not same:
            known = self._known = _Known(database, head, {})
        records, key = known.records, (space, name)
        try:
            return records[key]
        except KeyError:
            rows = self._read(f"SELECT {_COLUMNS} FROM records WHERE {_ONE}", space, name)
        if len(records) >= _REMEMBERED:
            records.clear()
        record = records[key] = self._record(rows[0]) if rows else None
        return record

    def scan(self, space: str, group: str = ALL, *, owner: str | None = ALL, last: int | None = None) -> list[Record]:
        which, values = "space = ?", [space]
        if group is not ALL:
            which, values = f"{which} AND record_group = ?", [*values, group]
        if owner is HELD:
            which = f"{which} AND owner NOT NULL"
        elif owner is not ALL:
            which, values = f"{which} AND owner IS ?", [*values, owner]  # type: ignore[list-item]
        question = (
            f"SELECT {_COLUMNS} FROM records WHERE {which} ORDER BY created DESC LIMIT {-1 if last is None else last}"
        )
        return list(map(self._record, reversed(self._read(question, *values))))

    def load(self, record: Record, kind: str, number: int = 0, what: str = "") -> Any:
        what = what or f"The {kind} of {record.space} {record.name!r}"
        source = self.source(record, kind, number, what)
        try:
            return source.load()
        except OSError as error:
            raise StoreError(f"{what} cannot be read now: {error}.") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueUnreadable(f"{what} cannot be read: {error}.") from error
        finally:
            source.close()

    def source(self, record: Record, kind: str, number: int = 0, what: str = "") -> Source:
        key = (record.space, record.name, kind, number)
        question = f"SELECT inline, file, seal FROM blobs WHERE {_PART} AND revision <= ?"
        found = self._read(question, *key, record.revision)
        what = what or f"The {kind} of {record.space} {record.name!r}"
        if not found:
            raise KeyError(record.name)
        inline, file, seal = found[0]
        try:
            return self._blobs.source(inline, file, seal or seal_of(*key))
        except FileNotFoundError:
            if not self._read(question, *key, record.revision):
                raise KeyError(record.name) from None  # it was replaced meanwhile
            raise ValueUnreadable(f"{what} cannot be read, its file was deleted.") from None
        except OSError as error:  # too many open files, say
            raise StoreError(f"{what} cannot be read now: {error}.") from error
        except ValueError as error:
            raise ValueUnreadable(f"{what} cannot be read: {error}.") from error

    def log(self, space: str, name: str, last: int | None = None) -> list[RunRecord]:
        def lines(table: str) -> list[RunRecord]:
            question = f"SELECT * FROM {table} WHERE task = ? ORDER BY number DESC LIMIT ?"
            return list(map(_run, self._read(question, _line(space, name), -1 if last is None else last)))

        runs, failures = _LOGS
        if last is not None:
            return lines(runs)
        # In this order: a failure that comes in between is in what is read last.
        failed = lines(failures)
        return whole(lines(runs), failed)

    def _record(self, row: sqlite3.Row) -> Record:
        space, name, group, owner, used_at, expires_at, size, created, revision, text = row
        said = self._said.get((space, name))
        if said is None or said.text != text:
            said = self._remember(space, name, _Said(text, *of_text(space, text)))
        return Record(
            space, name, said.state, group, owner, instant_of(used_at), instant_of(expires_at), said.parts, size,
            created, revision,
        )  # fmt: skip

    def _text(self, record: Record) -> str:
        said = _Said(text_of(record), record.state, record.parts)
        return self._remember(record.space, record.name, said).text

    def _remember(self, space: str, name: str, said: _Said) -> _Said:
        if len(self._said) >= _REMEMBERED:
            self._said.clear()
        self._said[space, name] = said
        return said

    # ------------------------------------------------------------ writing

    def write(
        self, changes: Sequence[Change], *, durable: bool | None = None, together: bool = False, tell: Tell = Tell.SOON
    ) -> list[Result]:
        if len(changes) == 1 and (result := self._swap(changes[0], durable, tell)) is not None:
            return [result]
        placed: list[dict[tuple[str, int], _Placed]] = []
        gone: list[str] = []
        synced = self._persistent and durable is not False
        try:
            for change in changes:
                placed.append(made := {})
                for (kind, number), value in change.parts.items():
                    made[kind, number] = self._place(change, kind, number, value, synced)
            synced &= bool(durable) or any(part.file for made in placed for part in made.values())
            with suppress(_Refused), self._transaction(durable=synced, news=tell is Tell.NOW) as tx:
                revision = int(tx.all(f"SELECT {_NEXT}")[0][0])
                done = [
                    self._make(tx, change, made, revision, gone) for change, made in zip(changes, placed, strict=True)
                ]
                if together and any(result.refusal for result in done):
                    done, gone = [Result(None, result.refusal) for result in done], []
                    raise _Refused
                tx.changed = tell is not Tell.LATER and any(not result.refusal for result in done)
        except BaseException:
            for part in (part for made in placed for part in made.values()):
                self._unlink_unless_known(part.file)
                self._blobs.settle(part.file)
            raise
        self._unlink(gone)
        for made, result in zip(placed, done, strict=True):
            if result.record is None:
                self._unlink(part.file for part in made.values())
            for part in made.values():
                self._blobs.settle(part.file)
        return done

    def _swap(self, change: Change, durable: bool | None, tell: Tell) -> Result | None:
        """
        What came of it, where that needs no transaction; None where it does.

        What is refused costs no lock, which all processes wait for; and what leaves the parts as they are is one
        statement, which changes the record unless another process has done so meanwhile.
        """
        old = self.read(change.space, change.name)
        new = change.apply(old, _AHEAD)
        if isinstance(new, Refusal):
            return Result(None, new)
        if old is None or not isinstance(new, Record) or change.parts or new.parts != old.parts:
            return None
        if (durable and self._persistent) or _Ahead in map(type, new.state):
            return None
        columns, values = self._changes(old, new)
        swapped = self._do(
            f"UPDATE records SET {columns}, revision = {_NEXT} WHERE {_ONE} AND revision = ? RETURNING revision",
            *(*values, old.space, old.name, old.revision),
            tell=tell,
        )
        if not swapped:
            return None
        new = new._replace(size=old.size, created=old.created, revision=swapped[0][0])
        return Result(new, before=old.revision)

    def _changes(self, old: Record, new: Record) -> tuple[str, list[Any]]:
        """What differs, as columns and their values: what is set to what it was costs its index all the same."""
        columns, values = "state = ?", list[Any]([self._text(new)])
        if new.owner != old.owner:
            columns, values = f"{columns}, owner = ?", [*values, new.owner]
        if new.size != old.size:
            columns, values = f"{columns}, size = ?", [*values, new.size]
        for column in ("used_at", "expires_at"):
            if (instant := getattr(new, column)) != getattr(old, column):
                columns, values = f"{columns}, {column} = ?", [*values, micros(instant)]
        return columns, values

    def _place(self, change: Change, kind: str, number: int, value: Any, synced: bool) -> _Placed:
        blobs, seal = self._blobs, seal_of(change.space, change.name, kind, number)
        encoded = value if isinstance(value, Encoded) else encode(value, change.what)
        try:
            inline, file = blobs.place(encoded, seal, synced)
            size = encoded.size
        finally:
            if encoded is not value:
                encoded.close()
        try:
            # What the others get, this process gets as well: one copy in memory, and no surprise on one of them only.
            # And before the others hear of it: what cannot be read is refused.
            source = blobs.source(inline, file, seal)
            try:
                return _Placed(inline, file, size, blobs.reread(source, change.what))
            finally:
                source.close()
        except BaseException:
            blobs.unlink(file)
            raise

    def _make(
        self,
        tx: Transaction,
        change: Change,
        placed: Mapping[tuple[str, int], _Placed],
        revision: int,
        gone: list[str],
    ) -> Result:
        row = tx.one(f"SELECT {_COLUMNS} FROM records WHERE {_ONE}", change.space, change.name)
        old = self._record(row) if row is not None else None
        new = change.apply(old, revision)
        if isinstance(new, Refusal):
            return Result(None, new)
        logged = None
        if isinstance(new, Logged):
            logged, new = self._add(tx, new), new.record
        before: Mapping[str, int] = old.parts if old is not None else {}
        after: Mapping[str, int] = new.parts if new is not None else {}
        size = old.size if old is not None else 0
        for kind, count in before.items():
            if (left := after.get(kind, 0)) < count:
                size -= self._drop(tx, "kind = ? AND number >= ?", (change.space, change.name, kind, left), gone)
        for (kind, number), part in placed.items():
            if number >= after.get(kind, 0):  # which is nobody's
                gone += [part.file] if part.file is not None else []
                continue
            if number < before.get(kind, 0):
                size -= self._drop(tx, "kind = ? AND number = ?", (change.space, change.name, kind, number), gone)
            tx.do(
                "INSERT INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                *(change.space, change.name, kind, number, revision, part.size, part.inline, part.file),
            )
            size += part.size
        if new is None:
            if old is not None:
                self._erase(tx, _ONE, change.space, change.name)
            return Result(None)
        new = numbered(new, old, size, revision)
        self._set(tx, old, new)
        values = {key: part.value for key, part in placed.items()}
        return Result(new, None, values, logged, old.revision if old is not None else 0)

    def _add(self, tx: Transaction, logged: Logged) -> RunRecord | None:
        """The line, if there is a new one."""
        line, entry = _line(logged.record.space, logged.record.name), logged.entry
        if entry is None:
            for table in _LOGS:
                tx.do(f"DELETE FROM {table} WHERE task = ?", line)
            return None
        if logged.failure is not None:
            self._append(tx, "failures", line, logged.failure)
        if logged.merged is not None:
            newest = tx.one("SELECT * FROM runs WHERE task = ? ORDER BY number DESC LIMIT 1", line)
            longer = logged.merged(_run(newest) if newest is not None else None, entry)
            if longer is not None and newest is not None:
                tx.do(f"UPDATE runs SET {_RUN} WHERE number = ?", *row_of(longer), newest["number"])
                return None
        self._append(tx, "runs", line, entry)
        return entry

    def _append(self, tx: Transaction, table: str, line: str, run: RunRecord) -> None:
        more = more_of(run)
        tx.do(
            f"INSERT INTO {table} ({RUN}, task, more) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(*row_of(run), line, json.dumps(more) if more else None),
        )
        tx.do(
            f"DELETE FROM {table} WHERE task = ? AND number <= (SELECT number FROM {table} WHERE task = ? "
            "ORDER BY number DESC LIMIT 1 OFFSET ?)",
            *(line, line, self._log_limit),
        )

    def _set(self, tx: Transaction, old: Record | None, new: Record) -> None:
        if old is not None:
            columns, values = self._changes(old, new)
            command = f"UPDATE records SET {columns}, revision = ? WHERE {_ONE}"
            tx.do(command, *values, new.revision, new.space, new.name)
            return
        tx.do(
            f"INSERT INTO records ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(new.space, new.name, new.group, new.owner, micros(new.used_at), micros(new.expires_at)),
            *(new.size, new.created, new.revision, self._text(new)),
        )

    def _drop(self, tx: Transaction, which: str, values: tuple[Any, ...], gone: list[str]) -> int:
        """Delete parts; their bytes. Their files go after the commit."""
        rows = tx.all(f"SELECT size, file FROM blobs WHERE {_ONE} AND {which}", *values)
        tx.do(f"DELETE FROM blobs WHERE {_ONE} AND {which}", *values)
        gone += [row["file"] for row in rows if row["file"] is not None]
        return sum(row["size"] for row in rows)

    def _erase(self, tx: Transaction, which: str, *values: Any) -> list[str]:
        """Delete records; the files of their parts."""
        # The next change gets a greater number than this, whatever is deleted.
        last = tx.all(f"SELECT {_NEXT}")[0][0]
        theirs = f"FROM blobs WHERE (space, name) IN (SELECT space, name FROM records WHERE {which})"
        files = [row["file"] for row in tx.all(f"SELECT file {theirs} AND file NOT NULL", *values)]
        tx.do(f"DELETE {theirs}", *values)
        for space, name in tx.all(f"SELECT space, name FROM records WHERE {which}", *values):
            for table in _LOGS:
                tx.do(f"DELETE FROM {table} WHERE task = ?", _line(space, name))
        tx.do(f"DELETE FROM records WHERE {which}", *values)
        tx.do("DELETE FROM erased")
        tx.do("INSERT INTO erased VALUES (?)", last)
        return files

    def _unlink(self, files: Iterable[str | None]) -> None:
        for file in files:
            self._blobs.unlink(file)

    # ------------------------------------------------------------ what is used, and what must go

    def use(self, space: str, names: Collection[str], now: datetime) -> None:
        with self._transaction() as tx:
            for name in names:
                tx.do(f"UPDATE records SET used_at = max(ifnull(used_at, 0), ?) WHERE {_ONE}", micros(now), space, name)

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
        room = sys.maxsize if size is None else size
        most = sys.maxsize if entries is None else entries
        most_of_one = sys.maxsize if larger else room
        there, values = f"FROM records WHERE owner IS NULL AND size BETWEEN 1 AND {most_of_one} AND space = ?", [space]
        if group is not ALL:
            there, values = f"{there} AND record_group = ?", [space, group]
        totals = f"SELECT count(*) AS count, ifnull(sum(size), 0) AS size {there}"
        total = self._read(totals, *values)[0]
        if total["count"] <= most and total["size"] <= room:
            return
        with self._transaction() as tx:
            total, gone = tx.all(totals, *values)[0], list[str]()
            count, held = total["count"], total["size"]
            for row in tx.all(f"SELECT name, size {there} AND name != ? ORDER BY used_at, created", *values, keep):
                if count <= most and held <= room:
                    break
                count, held = count - 1, held - row["size"]
                gone += self._erase(tx, _ONE, space, row["name"])
        self._unlink(gone)

    def sweep(self, now: datetime) -> None:
        which, at = "owner IS NULL AND expires_at <= ?", micros(now)
        if self._read(f"SELECT 1 FROM records WHERE {which} LIMIT 1", at):
            with self._transaction() as tx:
                gone = self._erase(tx, which, at)
            self._unlink(gone)
        if self.log_age is not None and self._clock.monotonic() >= self._forgets_at:
            self._forgets_at = self._clock.monotonic() + HOUR
            for table, age in zip(_LOGS, self.log_age, strict=True):
                old, before = f"FROM {table} WHERE ifnull(finished_at, queued_at) < ?", micros(now - age)
                if self._read(f"SELECT 1 {old} LIMIT 1", before):
                    with self._transaction() as tx:
                        tx.do(f"DELETE {old}", before)

    # ------------------------------------------------------------ who follows what

    def watch(self, space: str, name: str, sessions: int) -> None:
        if sessions:
            self._do("INSERT OR REPLACE INTO viewers VALUES (?, ?, ?, ?) RETURNING 1", self.me, space, name, sessions)
        else:
            self._do(f"DELETE FROM viewers WHERE owner = ? AND {_ONE} RETURNING 1", self.me, space, name)

    def watchers(self, space: str, name: str) -> int:
        question = f"SELECT ifnull(sum(sessions), 0) FROM viewers WHERE {_ONE} AND owner != ?"
        return int(self._read(question, space, name, self.me)[0][0])

    # ------------------------------------------------------------ who changed what

    def subscribe(self, space: str, changed: Changed, lost: Lost = lambda since: None) -> None:
        if not self._subscribers:
            database = self._database
            self._seen = database, self._read(f"SELECT {_NEXT} - 1", of=database)[0][0]
        self._subscribers[space].append(changed)
        self._lost.append(lost)

    def _catch_up(self) -> None:
        """Tell of what has changed since the last time."""
        if not self._subscribers:
            return
        database, (former, last) = self._database, self._seen
        question = f"SELECT {_COLUMNS} FROM records WHERE revision > ? ORDER BY revision"
        rows = self._read(question, last if database is former else 0, of=database)
        self._to_tell(rows)
        self._seen = database, rows[-1]["revision"] if rows else last if database is former else 0
        self._tell()

    def _to_tell(self, rows: Iterable[sqlite3.Row]) -> None:
        self._untold |= {(row["space"], row["name"]): self._record(row) for row in rows}

    def _tell(self) -> None:
        """What cannot be taken in now comes again, and holds nothing up."""
        failed: Exception | None = None
        for key, record in list(self._untold.items()):
            if (error := tell_all(self._subscribers[record.space], record)) is not None:
                failed = error
            elif self._untold.get(key) is record:
                self._untold.pop(key, None)  # two threads may tell the same
        if failed is not None:
            raise failed

    def _look_around(self) -> None:
        """Tell of what processes have left undone that are gone; delete what time asks for; see whether files are."""
        owners = self._read("SELECT DISTINCT owner FROM records WHERE owner NOT NULL AND owner != ?", NOBODY)
        gone = {row["owner"] for row in owners if not self.alive(row["owner"])}
        if (comings := self._liveness.comings) != self._comings:  # somebody has gone, perhaps amid a change
            self._comings = comings
            self._sweep()
        there = set(self._liveness.others())
        for owner in gone & (there | self._missing):
            self._to_tell(self._read(f"SELECT {_COLUMNS} FROM records WHERE owner = ?", owner))
        # Somebody may have deleted the file of one that is alive: then it is there again before the next look.
        self._missing = gone - there
        self._tell()
        for owner in there - gone:
            if not self.alive(owner):
                self._bury(owner)
        self.sweep(self._clock.now())
        self._look_for_files()

    def _bury(self, owner: str) -> None:
        """Forget a process that is gone, and has left nothing undone."""
        with self._transaction() as tx:
            for space, name in tx.all("SELECT space, name FROM viewers WHERE owner = ?", owner):
                revision = tx.all(f"SELECT {_NEXT}")[0][0]
                tx.changed |= tx.do(f"UPDATE records SET revision = ? WHERE {_ONE}", revision, space, name) > 0
            tx.do("DELETE FROM viewers WHERE owner = ?", owner)
        self._liveness.bury(owner)
        self._sweep()

    def _look_for_files(self) -> None:
        """Somebody may have deleted some."""
        self._files.mkdir(mode=0o700, exist_ok=True)
        changed = self._files.stat().st_mtime_ns
        if changed != self._looked_at:
            self._looked_at = changed
            there = set(os.listdir(self._files))
            if any(row["file"] not in there for row in self._read("SELECT file FROM blobs WHERE file NOT NULL")):
                self._ask_for_lost()

    def _sweep(self) -> None:
        with suppress(ScheduleError):  # on a full disk say: it is done some day
            self.sweep(self._clock.now())
        super()._sweep()

    def _rescue(self, former: Database, database: Database) -> None:
        """Go on with what stands in a database that was deleted, but for what is there already."""
        try:
            with database.write() as tx:
                for table in ("records", "blobs", "erased", *_LOGS):
                    for row in former.read(f"SELECT * FROM {table}"):
                        tx.do(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", *row)
        except (ScheduleError, Corrupt) as error:
            log.error("Of the store only the values are left that this process has: %s", error)

    def _ask_for_lost(self) -> None:
        for lost in self._lost:
            try:
                lost(0)
            except ScheduleError as error:
                log.error("Not all that this process has is stored again: %s", error)


def _run(row: sqlite3.Row) -> RunRecord:
    return run_of(row, json.loads(row["more"] or "{}"))


def _line(space: str, name: str) -> str:
    """Whose line of a log it is."""
    return name if space == "task" else f"\x1f{space} {name}"
