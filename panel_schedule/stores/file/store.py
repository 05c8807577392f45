"""The store of all processes on one machine: a directory with a database, and a file for each large value."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ...clock import Clock
from ...coordination.record import instant_of, micros
from ...errors import ScheduleError, ValueUnreadable, is_interrupt
from ...serialize.checks import require_data
from ...serialize.codec import Inline, Mapped
from ...serialize.entry import Entry
from ..base import TASK, USER, Claim, fenced, whose
from ..cache import Cache
from ..queue import MOST_BYTES, Queue
from .database import Corrupt, Database
from .opened import OpenDirectory
from .records import FileRecords
from .task_rows import TaskRows
from .transaction import Transaction

log = logging.getLogger("panel_schedule")

_THERE = "updated_at IS NOT NULL"


class FileStore(OpenDirectory, TaskRows):
    """
    Values, claims and history in a directory that several processes share.

    Parameters
    ----------
    folder : Path
    clock : Clock
    server : str
        Names the server that this process is part of.
    persistent : bool
        Whether the values outlive the server, and a loss of power. Else the directory goes with the last process.
    history_limit : int
        How many records each task's history keeps.
    max_result_bytes : int
        Of what is kept of background runs that have ended.

    Raises
    ------
    StoreError
        When the directory cannot be used, or is not safe.
    """

    blocking = True

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        server: str = "",
        persistent: bool = True,
        history_limit: int = 50,
        max_result_bytes: int = MOST_BYTES,
    ):
        self._history_limit = history_limit
        self._entries: dict[tuple[str, str], Entry] = {}
        # Versions that have been looked at, also of values that cannot be read.
        self._versions: dict[tuple[str, str], int] = {}
        self._complained: dict[tuple[str, str], int] = {}
        # What could not be read for lack of something, and is tried again.
        self._retry: set[tuple[str, str]] = set()
        self._isolated: set[str] = set()
        self._voided: set[Claim] = set()
        # The newest file that this process has written of each value.
        self._wrote: dict[tuple[str, str], tuple[int, str]] = {}
        self._applying = threading.Lock()
        # When the directory of the value files had changed, the last time that it was looked at.
        self._shelved = 0
        self.records = FileRecords(self)
        super().__init__(folder, clock, persistent)
        self.queue = Queue(self.records, clock, max_result_bytes)
        self.cache = Cache(self.records, clock)
        self._server = server or self._me
        self._catch_up()

    # ------------------------------------------------------------ reading

    def entry(self, space: str, name: str) -> Entry | None:
        key = (space, name)
        if self._listener is not None and (entry := self._entries.get(key)) is not None:
            return entry
        try:
            if self._listener is None:
                self._renew()
                self._catch_up()
            if key not in self._versions and space == TASK:
                # Other tasks' values, perhaps of last year's code, are nobody's business.
                self._versions[key] = 0
                self._load(self._read(f"SELECT * FROM entries WHERE space = ? AND name = ? AND {_THERE}", space, name))
        except ScheduleError as error:
            if self._versions.get(key) == 0:
                del self._versions[key]
            self._complain_once(error)
        return self._entries.get(key)

    def names(self, space: str) -> Iterator[str]:
        try:
            rows = self._read(f"SELECT name FROM entries WHERE space = ? AND {_THERE}", space)
        except ScheduleError as error:
            self._complain_once(error)
            return iter([name for owner, name in list(self._entries) if owner == space])
        return iter([row["name"] for row in rows])

    def _catch_up(self) -> None:
        """Take in what has changed since the last time. All that changed before the call is known after it."""
        # No lock is held while listeners are called. Two threads at once do the same twice, which changes nothing.
        for space, name in [self._retry.pop() for _ in range(len(self._retry))]:
            self._load(self._read(f"SELECT * FROM entries WHERE space = ? AND name = ? AND {_THERE}", space, name))
        database = self._database
        values, tasks = database.read_up_to
        entries = self._read("SELECT * FROM entries WHERE change > ? ORDER BY change", values, of=database)
        rows = self._read("SELECT name, change FROM tasks WHERE change > ?", tasks, of=database)
        self._load([row for row in entries if row["space"] == USER or (TASK, row["name"]) in self._versions])
        # Apart: a value may be stored between the two questions.
        database.read_up_to = (
            max([values, *(row["change"] for row in entries)]),
            max([tasks, *(row["change"] for row in rows)]),
        )
        self._trouble = ""
        for row in rows:
            self._notice(row["name"])
        self.records.catch_up()

    def _load(self, rows: list[sqlite3.Row]) -> None:
        for row in rows:
            space, name = row["space"], row["name"]
            wrote = self._wrote.get((space, name))
            if wrote is not None and wrote[0] < row["version"]:
                # Whoever has replaced it should have, but may have died since.
                del self._wrote[space, name]
                self._blobs.unlink(wrote[1])
            if row["updated_at"] is None:
                self._apply(space, name, None, row["version"])
                continue
            known = self._entries.get((space, name))
            if known is not None and (known.version, micros(known.updated_at)) == (row["version"], row["updated_at"]):
                if row["final"] and not known.final:
                    self._apply(space, name, replace(known, final=True))
                continue
            try:
                source = self._blobs.source(row["inline"], row["file"], whose(space, name))
                entry = Entry(
                    source.load(), row["version"], instant_of(row["updated_at"]) or self._clock.now(), row["duration"],
                    row["run_id"], bool(row["final"]), instant_of(row["wave"]), self._kept(space, name, source),
                )  # fmt: skip
            except FileNotFoundError:
                # A newer one has taken its place already, and comes with the next look.
                if self._read("SELECT 1 FROM entries WHERE file = ?", row["file"]):
                    self._complain(space, name, row, "its file is gone")
                    self._versions[space, name] = row["version"]
            except OSError as error:  # too many open files, say: it may be read later
                self._retry.add((space, name))
                self._complain(space, name, row, error)
            except (ValueUnreadable, TypeError, ValueError, OverflowError, KeyboardInterrupt) as error:
                if is_interrupt(error):
                    raise
                self._complain(space, name, row, error)
                self._versions[space, name] = row["version"]
            else:
                self._apply(space, name, entry)

    def _complain(self, space: str, name: str, row: sqlite3.Row, why: object) -> None:
        if self._complained.get((space, name)) == row["version"]:
            return
        self._complained[space, name] = row["version"]
        stays = "the last good one stays" if (space, name) in self._entries else "it has to be computed again"
        log.error("%s: version %d of its value cannot be read, %s: %s", whose(space, name), row["version"], stays, why)

    def _apply(self, space: str, name: str, entry: Entry | None, version: int = 0) -> None:
        key, version = (space, name), entry.version if entry is not None else version
        with self._applying:
            known = self._entries.get(key)
            self._versions[key] = max(version, self._versions.get(key, 0))
            if entry is None:
                if known is None or known.version > version:
                    return
                del self._entries[key]
            elif (
                known is None
                or (known.version, known.final) < (version, entry.final)
                or (
                    # Of two databases, after one was lost: the one that is there is right.
                    known.version == version and known.updated_at != entry.updated_at
                )
            ):
                self._entries[key] = entry
            else:
                return
        if entry is not None:
            entry.holding  # noqa: B018  (here, and not on the loop that serves pages)
        for stored in self._stored:
            stored(space, name, entry)

    def _unreadable(self, task: str) -> int:
        """The version of its value that this process could not read; 0 of none."""
        key = (TASK, task)
        return 0 if key in self._entries else self._versions.get(key, 0)

    # ------------------------------------------------------------ writing

    def publish(
        self,
        space: str,
        name: str,
        value: Any,
        *,
        now: datetime,
        duration: float | None = None,
        claim: Claim | None = None,
        final: bool = True,
    ) -> Entry:
        require_data(value, whose(space, name))
        inline, file = self._blobs.put(value, whose(space, name), whose(space, name))
        try:
            # What the others get, this process gets as well: one copy in memory, and no surprise on one of them only.
            # And before the others hear of it: what cannot be read is refused, what they replace is unlinked.
            source = self._blobs.source(inline, file, whose(space, name))
            value = self._blobs.reread(source, whose(space, name))
            with self._transaction(durable=self._persistent and file is not None, news=True) as tx:
                if claim is not None:
                    self._require_claim(tx, claim, final)
                old = tx.one("SELECT version, file FROM entries WHERE space = ? AND name = ?", space, name)
                run_id, wave = (claim.run_id, claim.wave) if claim else (None, None)
                version = (old["version"] if old else 0) + 1
                entry = Entry(value, version, now, duration, run_id, final, wave, self._kept(space, name, source))
                self._set_entry(tx, space, name, entry, inline, file)
        except BaseException:
            self._unlink_unless_known(file)
            raise
        # From here on nothing points to the old file; who has it mapped keeps it.
        self._blobs.unlink(old["file"] if old else None)
        if file is not None:
            self._wrote[space, name] = version, file
        self._apply(space, name, entry)
        # The listener may have been quicker: there is one object for all, also for who waits for the run.
        known = self._entries.get((space, name))
        return known if known is not None and known.version == version else entry

    def _require_claim(self, tx: Transaction, claim: Claim, final: bool) -> None:
        held = tx.do(
            "UPDATE tasks SET published = ? WHERE name = ? AND run_id = ? AND fence = ? AND owner = ? AND over = 0",
            *(final, claim.task, claim.run_id, claim.fence, self._me),
        )
        if not held or claim in self._voided:
            raise fenced(claim.task)

    def _set_entry(
        self, tx: Transaction, space: str, name: str, entry: Entry, inline: bytes | None, file: str | None
    ) -> None:
        tx.do(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(space, name, entry.version, micros(entry.updated_at), entry.duration, entry.run_id, entry.final),
            *(micros(entry.wave), inline, file, tx.change()),
        )

    def seal(self, claim: Claim) -> Entry | None:
        with self._transaction(news=True) as tx:
            self._require_claim(tx, claim, True)
            tx.do(
                "UPDATE entries SET final = 1, change = ? WHERE space = ? AND name = ? AND run_id = ?",
                *(tx.change(), TASK, claim.task, claim.run_id),
            )
        self._catch_up()
        return self._entries.get((TASK, claim.task))

    def delete(self, space: str, name: str) -> None:
        with self._transaction(news=True) as tx:
            row = tx.one(f"SELECT file FROM entries WHERE space = ? AND name = ? AND {_THERE}", space, name)
            if row is None:
                raise KeyError(name)
            self._clear(tx, space, name)
        self._blobs.unlink(row["file"])
        self._catch_up()

    def _clear(self, tx: Transaction, space: str, name: str) -> None:
        """The version stays: the next value of that name gets a greater one."""
        tx.do(
            "UPDATE entries SET updated_at = NULL, inline = NULL, file = NULL, change = ? WHERE space = ? AND name = ?",
            *(tx.change(), space, name),
        )

    def isolate(self, task: str) -> None:
        self._isolated.add(task)

    def void(self, claim: Claim) -> Claim:
        # Only this process can publish under it, so that only this process has to know.
        self._voided.add(claim)
        return claim

    def release(self, claim: Claim) -> None:
        super().release(claim)
        self._voided.discard(claim)

    # ------------------------------------------------------------ files

    def _kept(self, space: str, name: str, source: Inline | Mapped) -> Inline | Mapped | None:
        """What private copies are made from; a descriptor is not held open for nothing."""
        if space == TASK and name in self._isolated:
            return source
        source.close()
        return None

    def _unlink(self, file: str | None) -> None:
        self._blobs.unlink(file)

    def seed(self, entries: dict[tuple[str, str], Entry]) -> None:
        """Store these, but for what is there already."""
        for (space, name), entry in list(entries.items()):
            try:
                self._seed(space, name, entry)
            except (ScheduleError, Corrupt) as error:
                log.error("%s: its value is not stored: %s", whose(space, name), error)

    def _seed(self, space: str, name: str, entry: Entry) -> None:
        question = "SELECT version, file FROM entries WHERE space = ? AND name = ?"
        if self._outdated(next(iter(self._database.read(question, space, name)), None), entry):
            inline, file = self._blobs.put(entry.shared, whose(space, name), whose(space, name))
            try:
                with self._database.write() as tx:
                    if self._outdated(tx.one(question, space, name), entry):
                        self._set_entry(tx, space, name, entry, inline, file)
                        file = None
            finally:
                self._blobs.unlink(file)

    def _outdated(self, row: sqlite3.Row | None, entry: Entry) -> bool:
        if row is None or row["version"] < entry.version:
            return True
        return row["version"] == entry.version and row["file"] is not None and not (self._files / row["file"]).exists()

    def _replace_files(self) -> None:
        """Write the values anew whose files somebody has deleted, and that this process has."""
        self._files.mkdir(mode=0o700, exist_ok=True)
        changed = self._files.stat().st_mtime_ns
        if changed != self._shelved:
            self._shelved = changed
            there = set(os.listdir(self._files))
            rows = self._read("SELECT space, name, file FROM entries WHERE file IS NOT NULL")
            gone = [(row["space"], row["name"]) for row in rows if row["file"] not in there]
            self.seed({key: self._entries[key] for key in gone if key in self._entries})

    # ------------------------------------------------------------ jobs and answers

    def _sweep(self) -> None:
        with suppress(ScheduleError):  # on a full disk say: it is done some day
            self.records.sweep(self._clock.now())
        super()._sweep()

    def _rescue(self, former: Database) -> None:
        self.records.rescue(former)

    def _look_for_the_dead(self) -> None:
        self.records.look_for_the_dead()
        super()._look_for_the_dead()

    def close(self) -> None:
        with suppress(ScheduleError):
            self.queue.release()
            self.cache.release()
        super().close()
