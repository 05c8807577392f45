"""The directory of a file store while it is open: what can happen to it, and what the other processes do there."""

from __future__ import annotations

import logging
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import Context
from pathlib import Path
from typing import Any

from ...clock import Clock
from ...errors import ScheduleError, StoreError
from ..records import Tell
from .blobs import Blobs
from .database import Corrupt, Database, salvage, set_aside
from .directory import door, private, remove_if_left
from .liveness import Liveness
from .transaction import Transaction
from .wakeup import WakeUps

log = logging.getLogger("panel_schedule")

# How often, in seconds, a process looks who has died, and for changes that no bell told it of.
LOOK = 1.0

# The same where a process can have no bell.
LOOK_WITHOUT_BELL = 0.05

_FILES = "SELECT file FROM blobs WHERE file NOT NULL"


class OpenDirectory(ABC):
    """The part of a file store that keeps its directory open; the other one knows the records."""

    def __init__(self, folder: Path, clock: Clock, persistent: bool):
        self._folder = folder
        self._clock = clock
        self._persistent = persistent
        # Held while the directory is opened.
        self._opening = threading.RLock()
        self._listener: threading.Thread | None = None
        self._closed = False
        self._trouble = ""
        self._liveness = Liveness(folder, clock)
        self._blobs = Blobs(folder / "values", self._liveness, self._renew)
        self._open()

    @abstractmethod
    def _catch_up(self) -> None: ...
    @abstractmethod
    def _rescue(self, former: Database, database: Database) -> None: ...
    @abstractmethod
    def _ask_for_lost(self) -> None: ...
    @abstractmethod
    def _look_around(self) -> None: ...

    @property
    def _files(self) -> Path:
        return self._blobs.folder

    # ------------------------------------------------------------ the directory

    def _open(self, corrupt: Database | None = None, why: object = None, deleted: Database | None = None) -> None:
        private(self._folder)
        try:
            with door(self._folder), ExitStack() as undo:
                self._files.mkdir(mode=0o700, exist_ok=True)
                self._me = self._liveness.join()
                undo.callback(self._liveness.leave)
                wake_ups = WakeUps(self._folder, self._me)
                undo.callback(wake_ups.close)
                # Another process may have set it aside meanwhile.
                database = self._connect(why if corrupt is not None and corrupt.there else None)
                if deleted is not None:  # it can be read as long as it is open
                    self._rescue(deleted, database)
                # Only now: nobody is to find it empty meanwhile.
                self._database, self._wake_ups = database, wake_ups
                undo.pop_all()
            self._sweep()
        except OSError as error:
            raise StoreError(
                f"The store {self._folder} cannot be used: {error.strerror or error}. Give the user that runs the "
                "server the right to write there, or name another directory in ps.config.store."
            ) from error

    def _connect(self, why: object = None) -> Database:
        path, synchronous = self._folder / "store.db", "NORMAL" if self._persistent else "OFF"
        if why is None:
            try:
                return Database(path, synchronous)
            except Corrupt as found:
                why = found
        aside = set_aside(path, why)
        try:
            database = Database(path, synchronous)
            with database.write() as tx:
                salvage(aside, tx)
        except Corrupt as error:
            raise StoreError(f"The store {self._folder} cannot be used: a new database is corrupt ({error}).") from None
        return database

    def _renew(self, corrupt: Database | None = None, why: object = None) -> None:
        """
        Go on with another database, where the one that is open is corrupt or gone.

        Values that this process has in memory are not lost.
        """
        if corrupt is None and self._database.there and self._liveness.known:
            return
        with self._opening:
            former = self._database
            if self._closed or (corrupt is not former if corrupt else former.there and self._liveness.known):
                return
            self._wake_ups.close()
            self._open(corrupt, why, former if corrupt is None and not former.there else None)
            self._ask_for_lost()
            if not former.there:
                former.touch()
            # Only now: as long as it is open no other file gets its number, by which it is told from others.
            former.close()
            if corrupt is None:
                log.error(
                    "Files of the store's directory %s were deleted or replaced while it was in use. It goes on with "
                    "the values that this process has.", self._folder,
                )  # fmt: skip
            self._wake_ups.ring()
        self._catch_up()

    @contextmanager
    def _transaction(self, durable: bool = False, news: bool = False) -> Iterator[Transaction]:
        """The others hear of it in a moment, of `news` at once."""
        self._require_open()
        self._renew()
        database = self._database
        try:
            with database.write(durable) as tx:
                yield tx
        except Corrupt as why:
            self._renew(database, why)
            raise self._renewed(why) from why
        if tx.changed:
            self._ring(at_once=news)

    def _do(self, command: str, *values: Any, tell: Tell = Tell.SOON) -> list[sqlite3.Row]:
        """A transaction of one statement: what it returns. The others hear of it where that is something."""
        self._require_open()
        self._renew()
        database = self._database
        try:
            done = database.do(command, *values)
        except Corrupt as why:
            self._renew(database, why)
            raise self._renewed(why) from why
        if done and tell is not Tell.LATER:
            self._ring(at_once=tell is Tell.NOW)
        return done

    def _ring(self, at_once: bool = False) -> None:
        if at_once or self._listener is None or not self._wake_ups.works:
            self._wake_ups.ring()
        else:
            self._wake_ups.ring_soon()

    def _read(self, question: str, *values: Any, of: Database | None = None) -> list[sqlite3.Row]:
        self._require_open()
        database = of or self._database
        try:
            return database.read(question, *values)
        except Corrupt as why:
            self._renew(database, why)
            raise self._renewed(why) from why

    def _unlink_unless_known(self, file: str | None) -> None:
        """After a failure that may have come behind the commit: Ctrl-C comes anywhere."""
        with suppress(ScheduleError):  # it is swept some day
            if file is not None and not self._read(f"SELECT 1 FROM ({_FILES}) WHERE file = ?", file):
                self._blobs.unlink(file)

    def _sweep(self) -> None:
        """Remove the value files that nothing refers to: who was to do so has died before he could."""
        # Asked in this order: what was committed meanwhile is to be seen.
        left = self._blobs.doubtful()
        known = {row["file"] for row in self._read(_FILES)}
        for file in left:
            if file not in known:
                self._blobs.unlink(file)

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError(f"The store {self._folder} is closed. Make another one.")

    def _renewed(self, why: object) -> StoreError:
        return StoreError(f"The store {self._folder} was corrupt ({why}) and has been made anew. Try again.")

    def close(self) -> None:
        with self._opening:
            if self._closed:
                return
            self._closed = True
        self._wake_ups.ring_here()
        if self._listener is not None and self._listener is not threading.current_thread():
            self._listener.join(LOOK)
        with suppress(ScheduleError, Corrupt), self._database.write() as tx:
            tx.do("DELETE FROM viewers WHERE owner = ?", self._me)
        with suppress(OSError), door(self._folder) if self._database.there else nullcontext():
            self._leave()
        self._leave()
        if not self._persistent and self._folder.exists():
            remove_if_left(self._folder)

    def _leave(self) -> None:
        """Idempotent."""
        self._database.close()
        self._wake_ups.close()
        self._liveness.leave()

    # ------------------------------------------------------------ what the others do

    def _complain_once(self, error: Exception) -> None:
        if str(error) != self._trouble:
            self._trouble = str(error)
            log.error("What other processes have stored cannot be read now: %s", error)

    def listen(self) -> None:
        with self._opening:
            if self._listener is None and not self._closed:
                self._listener = threading.Thread(target=self._listen, name="panel-schedule-store", daemon=True)
                Context().run(self._listener.start)

    def _listen(self) -> None:
        looked = self._clock.monotonic()
        while not self._closed:
            # Also when it rings all the time.
            pause = looked + LOOK - self._clock.monotonic()
            self._wake_ups.wait(pause if self._wake_ups.works else min(pause, LOOK_WITHOUT_BELL))
            if self._closed:
                return
            try:
                self._catch_up()
                if self._clock.monotonic() - looked >= LOOK:
                    looked = self._clock.monotonic()
                    self._renew()
                    self._look_around()
            except (ScheduleError, OSError) as error:
                if not self._closed:
                    self._complain_once(error)
                    self._wake_ups.wait(LOOK)
            except BaseException:  # of the store's own thread
                log.exception("Reading the store failed at something that is a bug of panel-schedule; it goes on.")
                self._wake_ups.wait(LOOK)
