"""Who is alive: a process is, as long as it holds the lock on its own file."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ...clock import Clock, SystemClock
from .locks import LockFile

_LIVING = ".owner"

# Where somebody has deleted the files of all, each process looks for its own within so many seconds, and makes it anew.
PATIENCE = 2.0


class Liveness:
    """
    The processes that share a directory.

    A lock goes with its process, whatever ends it, within a millisecond: no heartbeat, no guess
    by elapsed time, and no pid that is another one's by now.

    Parameters
    ----------
    folder : Path
    clock : Clock, optional
    """

    def __init__(self, folder: Path, clock: Clock | None = None):
        self._folder = folder / "peers"
        self._clock = clock or SystemClock()
        # Until then a file that is missing says nothing.
        self._deleted_until = 0.0
        self._living: LockFile | None = None
        self.me = ""
        self._mine = ""

    def join(self) -> str:
        """Be alive from now on, under the id that is returned."""
        self.me = self.me or f"{os.getpid()}-{secrets.token_hex(4)}"
        if self._is_deleted:
            self._deleted_until = self._clock.monotonic() + PATIENCE
        self._folder.mkdir(mode=0o700, exist_ok=True)
        # Locked before it gets its name: nobody must find it unlocked.
        unborn = self._folder / f"{self.me}.new"
        unborn.unlink(missing_ok=True)
        living = LockFile(unborn, os.O_RDWR | os.O_CREAT)
        living.lock()
        unborn.rename(self._path(self.me))
        self._mine = str(self._path(self.me))
        if self._living is not None:  # of a file that somebody has deleted
            self._living.close()
        self._living = living
        return self.me

    @property
    def known(self) -> bool:
        """Whether the others can see that this process lives: somebody may have deleted its file."""
        return os.path.exists(self._mine)

    @property
    def _is_deleted(self) -> bool:
        """Whether somebody has deleted the file of this process: and so, it may be, those of all."""
        return self._living is not None and not self._living.closed and not self.known

    @property
    def comings(self) -> int:
        """What changes whenever a process comes or goes."""
        try:
            return os.stat(self._folder).st_mtime_ns
        except OSError:
            return 0

    def leave(self) -> None:
        """Be dead: the file goes first, so that nobody mistakes this for a crash."""
        if self._living is not None:
            if not self._living.closed:
                self._path(self.me).unlink(missing_ok=True)
            self._living.close()
            self._living = None

    def alive(self, owner: str) -> bool:
        """Whether the process of an owner lives, as far as can be told."""
        if owner == self.me and self._living is not None and not self._living.closed:
            return True
        try:
            file = LockFile(self._path(owner))
        except FileNotFoundError:
            # It has said goodbye, unless all were deleted: to take one that lives for dead is what costs a run.
            return self._is_deleted or self._clock.monotonic() < self._deleted_until
        try:
            # A shared one: two that ask at once must not take each other for the owner.
            return not file.lock(shared=True)
        finally:
            file.close()

    def others(self) -> Iterator[str]:
        """All that have come and not said goodbye, but for this one; perhaps dead."""
        try:
            with os.scandir(self._folder) as found:
                names = [each.name for each in found]
        except FileNotFoundError:
            return
        for name in names:
            if name.endswith(_LIVING) and (owner := name.removesuffix(_LIVING)) != self.me:
                yield owner

    def anyone(self) -> bool:
        """Whether any other process is alive."""
        return any(map(self.alive, self.others()))

    def bury(self, owner: str) -> None:
        """Nothing is left to be done for a dead one."""
        for suffix in (_LIVING, ".sock"):
            (self._folder / f"{owner}{suffix}").unlink(missing_ok=True)

    def _path(self, owner: str) -> Path:
        return self._folder / f"{owner}{_LIVING}"
