"""The store of all processes on one machine: a directory with a database, and a file for each large value."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from ..clock import Clock
from ..entry import Entry
from ..errors import ScheduleError, StoreError, ValueUnreadable
from .base import TASK, USER, Claim, Listener, fenced, require_data, whose
from .codec import Encoded, Inline, Mapped, encode, write_file
from .database import Corrupt, Database, Transaction, salvage, set_aside
from .folder import door, private
from .owners import Owners
from .rows import Rows, _instant, _micros
from .wakeup import Bells

log = logging.getLogger("panel_schedule")

# Values up to this size, in bytes, stand in the database; larger ones get a file that all processes map.
INLINE = 64 * 1024

# How often, in seconds, a process looks who has died, and for changes that no bell told it of.
LOOK = 1.0

# The same where a process can have no bell.
LOOK_WITHOUT_BELL = 0.05

_THERE = "updated_at IS NOT NULL"


class FileStore(Rows):
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

    Raises
    ------
    StoreError
        When the directory cannot be used, or is not safe.
    """

    blocking = True

    def __init__(
        self, folder: Path, clock: Clock, *, server: str = "", persistent: bool = True, history_limit: int = 50
    ):
        self._folder = folder
        self._clock = clock
        self._persistent = persistent
        self._history_limit = history_limit
        self._stored: list[Listener] = []
        self._noticed: list[Callable[[str], object]] = []
        self._entries: dict[tuple[str, str], Entry] = {}
        # Versions that have been looked at, also of values that cannot be read.
        self._versions: dict[tuple[str, str], int] = {}
        self._isolated: set[str] = set()
        self._number = count(1)
        self._voided: set[Claim] = set()
        # Held while the directory is opened and while news of the others are taken in.
        self._opening = threading.RLock()
        self._applying = threading.Lock()
        self._listener: threading.Thread | None = None
        self._closed = False
        self._change = 0
        self._owners = Owners(folder)
        self._me = self._owners.me
        self._open()
        self._server = server or self._me

    # ------------------------------------------------------------ the directory

    def _open(self) -> None:
        private(self._folder)
        try:
            with door(self._folder):
                (self._folder / "values").mkdir(mode=0o700, exist_ok=True)
                self._me = self._owners.join()
                self._bells = Bells(self._folder, self._me)
                try:
                    self._database = self._connect()
                except Corrupt as why:
                    self._replace(why)
                self._sweep()
        except OSError as error:
            raise StoreError(
                f"The store {self._folder} cannot be used: {error.strerror or error}. Give the user that runs the "
                "server the right to write there, or name another directory in ps.config.store."
            ) from error
        self._catch_up()

    def _connect(self) -> Database:
        return Database(self._folder / "store.db", "NORMAL" if self._persistent else "OFF")

    def _replace(self, why: Corrupt) -> None:
        """Go on with a new database; values that this process has in memory are not lost."""
        aside = set_aside(self._folder / "store.db", why)
        self._database = self._connect()
        with self._database.write() as tx:
            salvage(aside, tx)
        self._change = 0
        self.seed(self._entries)

    def seed(self, entries: dict[tuple[str, str], Entry]) -> None:
        """Store these, but for what is there already."""
        for (space, name), entry in list(entries.items()):
            encoded = encode(entry.value, whose(space, name))
            inline, file = self._put(encoded)
            with self._database.write() as tx:
                there = tx.one("SELECT version FROM entries WHERE space = ? AND name = ?", space, name)
                if there is None or there["version"] < entry.version:
                    self._set_entry(tx, space, name, entry, inline, file)

    def _reopen(self) -> None:
        """The directory, or the database in it, has been deleted or replaced by somebody."""
        with self._opening:
            if self._closed or self._database.there:
                return
            log.error(
                "The store's directory %s was deleted while it was in use. It is made again with the values that "
                "this process has.", self._folder,
            )  # fmt: skip
            self._database.close()
            self._bells.close()
            self._open()
            self._change = 0
            self.seed(self._entries)
            self._bells.ring()

    def _sweep(self) -> None:
        """Remove the value files that nothing refers to, of processes that died before they could."""
        known = {row["file"] for row in self._read("SELECT file FROM entries WHERE file IS NOT NULL")}
        for path in (self._folder / "values").iterdir():
            if path.name not in known and not self._owners.alive(path.name.rpartition(".")[0]):
                self._unlink(path.name)

    @contextmanager
    def _transaction(self, durable: bool = False) -> Iterator[Transaction]:
        if not self._database.there:
            self._reopen()
        database = self._database
        try:
            with database.write(durable) as tx:
                yield tx
        except Corrupt as why:
            self._set_aside(database, why)
            raise StoreError(f"The store {self._folder} was corrupt ({why}) and has been made anew.") from why
        if tx.changed:
            self._bells.ring()

    def _read(self, question: str, *values: Any) -> list[sqlite3.Row]:
        database = self._database
        try:
            return database.read(question, *values)
        except Corrupt as why:
            self._set_aside(database, why)
            raise StoreError(f"The store {self._folder} was corrupt ({why}) and has been made anew.") from why

    def _set_aside(self, corrupt: Database, why: Corrupt) -> None:
        with self._opening:
            if corrupt is self._database:
                corrupt.close()
                if corrupt.there:  # else another process has done it
                    with door(self._folder):
                        self._replace(why)
                else:
                    self._database = self._connect()

    def _alive(self, owner: str) -> bool:
        return self._owners.alive(owner)

    def _unlink(self, file: str | None) -> None:
        if file is not None:
            (self._folder / "values" / file).unlink(missing_ok=True)

    def close(self) -> None:
        with self._opening:
            if self._closed:
                return
            self._closed = True
            self._bells.ring_here()
        if self._listener is not None and self._listener is not threading.current_thread():
            self._listener.join(LOOK)
        with suppress(OSError, ScheduleError), door(self._folder):
            with suppress(ScheduleError), self._transaction() as tx:
                tx.do("DELETE FROM viewers WHERE owner = ?", self._me)
            self._database.close()
            last = not self._owners.anyone()
            self._bells.close()
            self._owners.leave()
            if last and not self._persistent:
                shutil.rmtree(self._folder, ignore_errors=True)

    # ------------------------------------------------------------ values

    def entry(self, space: str, name: str) -> Entry | None:
        if self._listener is None:
            self._catch_up()
        key = (space, name)
        if key not in self._versions and space == TASK:
            # Other tasks' values, perhaps of last year's code, are nobody's business.
            self._versions[key] = 0
            self._load(self._read(f"SELECT * FROM entries WHERE space = ? AND name = ? AND {_THERE}", space, name))
        return self._entries.get(key)

    def names(self, space: str) -> Iterator[str]:
        rows = self._read(f"SELECT name FROM entries WHERE space = ? AND {_THERE}", space)
        return iter([row["name"] for row in rows])

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
        encoded = encode(value, whose(space, name))
        inline, file = self._put(encoded)
        try:
            with self._transaction(durable=self._persistent and file is not None) as tx:
                if claim is not None:
                    self._require_claim(tx, claim, final)
                old = tx.one("SELECT version, file FROM entries WHERE space = ? AND name = ?", space, name)
                run_id, wave = (claim.run_id, claim.wave) if claim else (None, None)
                entry = Entry(value, (old["version"] if old else 0) + 1, now, duration, run_id, final, wave)
                self._set_entry(tx, space, name, entry, inline, file)
        except BaseException:
            self._unlink(file)
            raise
        # From here on nothing points to the old file; who has it mapped keeps it.
        self._unlink(old["file"] if old else None)
        source = self._source(name, inline, file)
        # What the others get, this process gets as well: one copy in memory, and no surprise on one of them only.
        entry = Entry(source.load(), entry.version, now, duration, run_id, final, wave, self._kept(space, name, source))
        self._apply(space, name, entry)
        return entry

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
            *(space, name, entry.version, _micros(entry.updated_at), entry.duration, entry.run_id, entry.final),
            *(_micros(entry.wave), inline, file, tx.change()),
        )

    def _put(self, encoded: Encoded) -> tuple[bytes | None, str | None]:
        """The value as bytes, or in a file that is complete before anybody hears of it."""
        if encoded.size <= INLINE:
            return encoded.tobytes(), None
        file = f"{self._me}.{next(self._number)}"
        try:
            write_file(self._folder / "values" / file, encoded, sync=self._persistent)
            if self._persistent:
                _sync(self._folder / "values")
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not self._database.there:
                self._reopen()
                return self._put(encoded)
            raise StoreError(
                f"The store {self._folder} cannot take a value of {encoded.size / 1e6:.1f} MB: "
                f"{error.strerror or error}. Free some space, or name another directory in ps.config.store."
            ) from error
        return None, file

    def _source(self, name: str, inline: bytes | None, file: str | None) -> Inline | Mapped:
        return Inline(inline) if inline is not None else Mapped.open(self._folder / "values" / str(file))

    def _kept(self, space: str, name: str, source: Inline | Mapped) -> Inline | Mapped | None:
        """What private copies are made from; a descriptor is not held open for nothing."""
        if space == TASK and name in self._isolated:
            return source
        source.close()
        return None

    def seal(self, claim: Claim) -> Entry | None:
        with self._transaction() as tx:
            self._require_claim(tx, claim, True)
            tx.do(
                "UPDATE entries SET final = 1, change = ? WHERE space = ? AND name = ? AND run_id = ?",
                *(tx.change(), TASK, claim.task, claim.run_id),
            )
        return self._entries.get((TASK, claim.task))

    def delete(self, space: str, name: str) -> None:
        with self._transaction() as tx:
            row = tx.one(f"SELECT file FROM entries WHERE space = ? AND name = ? AND {_THERE}", space, name)
            if row is None:
                raise KeyError(name)
            # The version stays: the next value of that name gets a greater one.
            tx.do(
                "UPDATE entries SET updated_at = NULL, inline = NULL, file = NULL, change = ? "
                "WHERE space = ? AND name = ?",
                *(tx.change(), space, name),
            )
        self._unlink(row["file"])
        self._catch_up()

    def isolate(self, task: str) -> None:
        self._isolated.add(task)

    def subscribe(self, stored: Listener, noticed: Callable[[str], object] = lambda task: None) -> None:
        self._stored.append(stored)
        self._noticed.append(noticed)

    # ------------------------------------------------------------ what the others do

    def listen(self) -> None:
        with self._opening:
            if self._listener is None and not self._closed:
                self._listener = threading.Thread(target=self._listen, name="panel-schedule-store", daemon=True)
                Context().run(self._listener.start)

    def _listen(self) -> None:
        looked = self._clock.monotonic()
        while not self._closed:
            self._bells.wait(LOOK if self._bells.works else LOOK_WITHOUT_BELL)
            if self._closed:
                return
            try:
                self._catch_up()
                if self._clock.monotonic() - looked >= LOOK:
                    looked = self._clock.monotonic()
                    if not self._database.there:
                        self._reopen()
                    self._look_for_the_dead()
            except ScheduleError as error:
                log.error("What other processes have stored cannot be read now: %s", error)
                self._bells.wait(LOOK)
            except Exception:
                log.exception("Reading the store failed at something that is a bug of panel-schedule; it goes on.")
                self._bells.wait(LOOK)

    def _look_for_the_dead(self) -> None:
        for owner in self._owners.others():
            if not self._owners.alive(owner):
                tasks = self._read("SELECT name FROM tasks WHERE owner = ?", owner)
                for task in tasks:
                    self._notice(task["name"])
                if not tasks:
                    with self._transaction() as tx:
                        tx.do("UPDATE tasks SET change = ? WHERE name IN (SELECT task FROM viewers WHERE owner = ?)",
                              tx.change(), owner)  # fmt: skip
                        tx.do("DELETE FROM viewers WHERE owner = ?", owner)
                    self._owners.bury(owner)
                    self._sweep()

    def _catch_up(self) -> None:
        """Take in what has changed since the last time. All that changed before the call is known after it."""
        with self._opening:
            entries = self._read("SELECT * FROM entries WHERE change > ? ORDER BY change", self._change)
            tasks = self._read("SELECT name, change FROM tasks WHERE change > ?", self._change)
            self._load([row for row in entries if row["space"] == USER or (TASK, row["name"]) in self._versions])
            self._change = max([self._change, *(row["change"] for row in (*entries, *tasks))])
            for row in tasks:
                self._notice(row["name"])

    def _notice(self, task: str) -> None:
        for noticed in self._noticed:
            noticed(task)

    def _load(self, rows: list[sqlite3.Row]) -> None:
        for row in rows:
            space, name = row["space"], row["name"]
            if row["updated_at"] is None:
                self._apply(space, name, None, row["version"])
                continue
            known = self._entries.get((space, name))
            if known is not None and known.version == row["version"]:
                if row["final"] and not known.final:
                    self._apply(space, name, replace(known, final=True))
                continue
            try:
                source = self._source(name, row["inline"], row["file"])
                value = source.load()
            except FileNotFoundError:
                # A newer one has taken its place already, and comes with the next look.
                if self._read("SELECT 1 FROM entries WHERE file = ?", row["file"]):
                    self._complain(space, name, row, "its file is gone")
                continue
            except (ValueUnreadable, OSError) as error:
                self._complain(space, name, row, error)
                continue
            entry = Entry(
                value, row["version"], _instant(row["updated_at"]) or self._clock.now(), row["duration"],
                row["run_id"], bool(row["final"]), _instant(row["wave"]), self._kept(space, name, source),
            )  # fmt: skip
            self._apply(space, name, entry)

    def _complain(self, space: str, name: str, row: sqlite3.Row, why: object) -> None:
        if self._versions.get((space, name)) == row["version"]:
            return
        self._versions[space, name] = row["version"]
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
            elif known is None or (known.version, known.final) < (version, entry.final):
                self._entries[key] = entry
            else:
                return
        for stored in self._stored:
            stored(space, name, entry)

    def _seen(self, name: str) -> int:
        return self._versions.get((TASK, name), 0)

    # ------------------------------------------------------------ void

    def void(self, claim: Claim) -> Claim:
        # Only this process can publish under it, so that only this process has to know.
        self._voided.add(claim)
        return claim

    def release(self, claim: Claim) -> None:
        super().release(claim)
        self._voided.discard(claim)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
