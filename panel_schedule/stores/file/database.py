"""The database of a file store: SQLite, and what can go wrong with it."""

from __future__ import annotations

import json
import logging
import mmap
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

from ...errors import StoreError
from ..hurry import SOON, in_a_hurry
from .locks import OF_BYTES, LockFile
from .schema3 import EARLIER, carry_over
from .transaction import Transaction

log = logging.getLogger("panel_schedule")

# Of the tables below: a newer one is refused.
SCHEMA_VERSION = 4

# Seconds for which a writer waits for the others. Long enough for a burst, and no deadlock.
PATIENCE = 5.0

# See `Record`; beside each its parts, its log, and who follows it.
_RECORDS = """
CREATE TABLE IF NOT EXISTS records (
    space TEXT NOT NULL, name TEXT NOT NULL, record_group TEXT NOT NULL, owner TEXT, used_at INTEGER,
    expires_at INTEGER, size INTEGER NOT NULL, created INTEGER NOT NULL, revision INTEGER NOT NULL, state TEXT NOT NULL,
    PRIMARY KEY (space, name)
);
CREATE INDEX IF NOT EXISTS changed_records ON records (revision);
CREATE INDEX IF NOT EXISTS groups_of_records ON records (space, record_group, created);
CREATE INDEX IF NOT EXISTS used_records ON records (space, record_group, used_at, size);
CREATE INDEX IF NOT EXISTS held_records ON records (owner) WHERE owner NOT NULL;
CREATE INDEX IF NOT EXISTS expiring_records ON records (expires_at) WHERE expires_at NOT NULL;
CREATE TABLE IF NOT EXISTS blobs (
    space TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, number INTEGER NOT NULL, revision INTEGER NOT NULL,
    size INTEGER NOT NULL, inline BLOB, file TEXT, seal TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS blobs_of_record ON blobs (space, name, kind, number);
CREATE INDEX IF NOT EXISTS files_of_blobs ON blobs (file) WHERE file NOT NULL;
CREATE TABLE IF NOT EXISTS erased (revision INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    number INTEGER PRIMARY KEY, task TEXT NOT NULL, id TEXT NOT NULL, key TEXT, state TEXT NOT NULL,
    attempt INTEGER NOT NULL, queued_at INTEGER, started_at INTEGER, finished_at INTEGER,
    error TEXT NOT NULL, reason TEXT NOT NULL, until INTEGER, more TEXT
);
CREATE INDEX IF NOT EXISTS runs_of_task ON runs (task, number);
CREATE TABLE IF NOT EXISTS viewers (
    owner TEXT NOT NULL, space TEXT NOT NULL, name TEXT NOT NULL, sessions INTEGER NOT NULL,
    PRIMARY KEY (space, name, owner)
) WITHOUT ROWID;
"""

# Releases that do not know these have the database open at the same time: they leave out what they do not know.
_ADDED = """
CREATE TABLE IF NOT EXISTS failures (
    number INTEGER PRIMARY KEY, task TEXT NOT NULL, id TEXT NOT NULL, key TEXT, state TEXT NOT NULL,
    attempt INTEGER NOT NULL, queued_at INTEGER, started_at INTEGER, finished_at INTEGER,
    error TEXT NOT NULL, reason TEXT NOT NULL, until INTEGER, more TEXT
);
CREATE INDEX IF NOT EXISTS failures_of_task ON failures (task, number);
"""

# What is worth saving of a corrupt database.
_COLUMNS = {
    "records": "space, name, record_group, owner, used_at, expires_at, size, created, revision, state",
    "blobs": "space, name, kind, number, revision, size, inline, file, seal",
    "erased": "revision",
    "runs": "number, task, id, key, state, attempt, queued_at, started_at, finished_at, error, reason, until, more",
    "failures": "number, task, id, key, state, attempt, queued_at, started_at, finished_at, error, reason, until, more",
}

# Bytes of the files that SQLite locks (its file format, "Locking"; its WAL format, 2.3.1): read locks on the first two
# say that somebody has the database open; the last is nobody's there.
_SHARED = (0x40000000 + 2, 510)
_OPEN = (120 + 8, 1)
_WRITING = (1 << 40, 1)

# Bytes at the start of the file with which SQLite indexes its log: the head, twice (its WAL format, 2.3.1).
_HEAD = 2 * 48

# That alone is a reason to set a database aside: an error of any other kind says nothing about the file.
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Corrupt(Exception):
    """The file is no database, or no longer a whole one."""


class Guards:
    """
    Locks beside those of SQLite, which are POSIX record locks: a process loses these as soon as it closes any other
    descriptor of the files, as every copy of the directory does. Another process that opens and closes the database
    would then delete its log under the feet of this one.

    Raises
    ------
    StoreError
    """

    def __init__(self, path: Path):
        self._database = LockFile(path)
        try:
            self._log = LockFile(f"{path}-shm")
        except BaseException:
            self._database.close()
            raise
        for file, (start, length) in ((self._database, _SHARED), (self._log, _OPEN)):
            if not file.lock(shared=True, start=start, length=length):
                self.close()
                raise sqlite3.OperationalError("database is locked")
        # See `Database.head`.
        self.page = mmap.mmap(self._log.fd, _HEAD, access=mmap.ACCESS_READ)

    def begin(self) -> bool:
        """Whether no other process writes."""
        return self._log.lock(start=_WRITING[0], length=_WRITING[1])

    def end(self) -> None:
        self._log.unlock(start=_WRITING[0], length=_WRITING[1])

    def lift(self) -> None:
        """Before SQLite closes the files: the last one to do so puts its log away."""
        self.page.close()  # while nobody can shorten the file yet
        for file in (self._database, self._log):
            if not file.closed:
                file.unlock()

    def close(self) -> None:
        """After that: it takes SQLite's locks away."""
        self._database.close()
        self._log.close()


class Database:
    """
    Two connections to one file: a reader never waits for a writer.

    Parameters
    ----------
    path : Path
    synchronous : {"OFF", "NORMAL"}
        OFF for what need not survive a loss of power.

    Raises
    ------
    StoreError
        From each method, when it cannot be done now.
    Corrupt
        From each method, when the file must be set aside.
    """

    def __init__(self, path: Path, synchronous: str):
        self.path = path
        self._synchronous = synchronous
        self._writing = threading.Lock()
        self._guards: Guards | None = None
        self._page: mmap.mmap | bytes = b""
        self._reading = threading.Lock()
        with self._translated():
            self._writer = self._connect(timeout=PATIENCE)
            try:
                self._migrate()
                self._writer.execute("PRAGMA busy_timeout = 0")  # from here on `_patiently` waits
                self._reader = self._connect(timeout=PATIENCE)
                self._inode = os.stat(path).st_ino
                if OF_BYTES:
                    self._guards = Guards(path)
                    self._page = self._guards.page
            except BaseException:
                self._writer.close()
                raise

    def _connect(self, timeout: float) -> sqlite3.Connection:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute("PRAGMA journal_size_limit = 4000000")
        return connection

    def _migrate(self) -> None:
        if self._writer.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise Corrupt("its pages do not fit together")
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"The store {self.path.parent} was written by a newer panel-schedule (schema {version}, this one knows "
                f"{SCHEMA_VERSION}). Upgrade panel-schedule, or name another directory in ps.config.store."
            )
        if version == 0 and self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise Corrupt("it is a database of something else")
        if version == SCHEMA_VERSION and _columns(self._writer, "failures"):
            return
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            if version < SCHEMA_VERSION:
                self._create(version)
            if "more" not in _columns(self._writer, "runs"):
                self._writer.execute("ALTER TABLE runs ADD COLUMN more TEXT")
            for command in _ADDED.split(";"):
                self._writer.execute(command)
            self._writer.execute("COMMIT")
        except BaseException:
            self._writer.execute("ROLLBACK")
            raise

    def _create(self, version: int) -> None:
        if version:  # that of earlier releases had other columns, and nobody has it open
            self._writer.execute("DROP TABLE IF EXISTS viewers")
        for command in _RECORDS.split(";"):
            self._writer.execute(command)
        carry_over(self._writer, Transaction(self._writer))
        for table in EARLIER:
            self._writer.execute(f"DROP TABLE IF EXISTS {table}")
        self._writer.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @property
    def there(self) -> bool:
        """Whether the path still leads to the file that is open."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False

    @property
    def head(self) -> bytes:
        """
        What changes with each commit of any process, at no cost; empty where that cannot be known.

        It is where SQLite itself looks whether its readers have to look again: to write this page *is* to commit, so
        there is no instant, and no death, between a commit and word of it; and it needs no writer's help. It has a
        number that grows, the sums of all that is in the log, and the salt of that log; and all of this twice, one
        after the other. A writer that dies in between leaves two that differ, and who asks SQLite then has it finish
        the commit, or drop it. So nothing is ever believed that stands there, damaged or not: only that what is the
        same, byte by byte, as before the last question would get the same answer.
        """
        try:
            return self._page[:]
        except ValueError:  # it is closed
            return b""

    @contextmanager
    def write(self, durable: bool = False) -> Iterator[Transaction]:
        """
        A transaction, alone among all processes.

        Parameters
        ----------
        durable : bool
            On the disk before it returns.
        """
        with self._translated(), self._turn():
            if not self.there:
                raise StoreError(f"The store's database {self.path} has been deleted or replaced. It is made again.")
            if durable:
                self._writer.execute("PRAGMA synchronous = FULL")
            try:
                self._patiently("BEGIN IMMEDIATE")
                try:
                    yield Transaction(self._writer)
                    self._writer.execute("COMMIT")
                except BaseException:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
                finally:
                    if self._guards is not None:
                        self._guards.end()
            finally:
                if durable:
                    self._writer.execute(f"PRAGMA synchronous = {self._synchronous}")

    def do(self, command: str, *values: Any) -> list[sqlite3.Row]:
        """
        A transaction of one statement: what it returns.

        Little of Python happens while it has the lock.
        """
        with self._translated(), self._turn():
            try:
                return self._patiently(command, values).fetchall()
            finally:
                if self._guards is not None:
                    self._guards.end()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Alone among the threads of this process."""
        while not self._writing.acquire(timeout=SOON):
            if in_a_hurry():
                raise sqlite3.OperationalError("database is locked")
        try:
            yield
        finally:
            self._writing.release()

    def _patiently(self, command: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """
        Begin to write; to be followed by the end of the guards.

        SQLite's own waiting doubles its pauses up to 100 ms; the transactions here take a tenth of one.
        """
        pause, waited = 0.0001, 0.0
        while True:
            if self._guards is None or self._guards.begin():
                try:
                    return self._writer.execute(command, values)
                except BaseException as error:
                    if self._guards is not None:
                        self._guards.end()
                    if (
                        not isinstance(error, sqlite3.OperationalError)
                        or not _is_busy(error)
                        or waited > (SOON if in_a_hurry() else PATIENCE)
                    ):
                        raise
            elif waited > (SOON if in_a_hurry() else PATIENCE):
                raise sqlite3.OperationalError("database is locked")
            slept = pause * random.random()
            time.sleep(slept)
            waited += slept
            pause = min(pause * 1.1, 0.01)

    def read(self, question: str, *values: Any) -> list[sqlite3.Row]:
        """Rows of the last state that was committed."""
        with self._reading:
            try:
                return self._reader.execute(question, values).fetchall()
            except sqlite3.Error as error:
                raise self._told(error) from error

    def touch(self) -> None:
        """Commit nothing, so that those who go by its `head` look whether this is still the file that is there."""
        with self._writing, suppress(sqlite3.Error):
            self._writer.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def close(self) -> None:
        """Idempotent."""
        with self._writing, self._reading, suppress(sqlite3.Error):
            # The number may be given to the next file.
            self._inode = -1
            if self._guards is not None:
                self._guards.lift()
            self._writer.close()
            self._reader.close()
            if self._guards is not None:
                self._guards.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._told(error) from error
        except OSError as error:
            raise StoreError(f"The store {self.path.parent} cannot be used now: {error}.") from error

    def _told(self, error: sqlite3.Error) -> Exception:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _CORRUPT:
            return Corrupt(str(error))
        return StoreError(f"The store {self.path.parent} cannot be used now: {error}. {_remedy(error)}")


def set_aside(path: Path, why: object) -> Path:
    """Rename a corrupt database and what belongs to it; the new name is returned."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    log.error(
        "The store's database %s is corrupt (%s). It is kept as %s, and a new one takes over what can still be read.",
        path, why, aside.name,
    )  # fmt: skip
    return aside


def salvage(aside: Path, into: Transaction) -> int:
    """Copy what can be read of a corrupt database, values first; how many rows that were."""
    copied = 0
    with suppress(sqlite3.Error):
        old = sqlite3.connect(f"{aside.absolute().as_uri()}?mode=ro", uri=True)
        # From the end, too: a page in the middle stops the first pass.
        for (table, columns), order in product(_COLUMNS.items(), ("ASC", "DESC")):
            with suppress(sqlite3.Error):
                there = _columns(old, table)
                columns = ", ".join(column for column in columns.split(", ") if column in there)
                for row in old.execute(f"SELECT {columns} FROM {table} ORDER BY rowid {order}"):
                    marks = ", ".join("?" * len(row))
                    copied += into.do(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})", *row)
        copied += carry_over(old, into)
        old.close()
    _without_what_is_lost(into)
    return copied


def _without_what_is_lost(tx: Transaction) -> None:
    """No record names a part that is not there, and no part is there that none names."""
    there = {tuple(row) for row in tx.all("SELECT DISTINCT space, name, kind FROM blobs")}
    for space, name, text in tx.all("SELECT space, name, state FROM records"):
        state, parts = json.loads(text)
        left = {kind: count for kind, count in parts.items() if (space, name, kind) in there}
        if left != parts:
            tx.do("UPDATE records SET state = ? WHERE space = ? AND name = ?", json.dumps([state, left]), space, name)
    tx.do("DELETE FROM blobs WHERE (space, name) NOT IN (SELECT space, name FROM records)")


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}


def _is_busy(error: sqlite3.Error) -> bool:
    return "locked" in str(error) or "busy" in str(error)


def _remedy(error: sqlite3.Error) -> str:
    text = str(error)
    if "full" in text:
        return "Free some space on that disk."
    if "readonly" in text or "unable to open" in text:
        return "Give the user that runs the server the right to write there."
    if _is_busy(error):
        return "Another process holds it for seconds: is one stopped, or is the disk overloaded?"
    return "Look at that disk."
