"""A lock on a file that goes with the process that has it, whatever else opens and closes that file."""

from __future__ import annotations

import os
import struct
import threading
from contextlib import suppress
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, which has no forking server either
    fcntl: Any = None  # type: ignore[no-redef]

# Whether a lock can cover some bytes of a file only, and is seen by those who use POSIX record locks, as SQLite does.
OF_BYTES = hasattr(fcntl, "F_OFD_SETLK")

_FLOCK = "@hhqqi0q"  # struct flock: type, whence, start, length, pid

_files: set[LockFile] = set()
# Held at a fork, so that the child knows of every file that is open.
_opening = threading.RLock()


class LockFile:
    """
    A file that is open to be locked.

    The lock belongs to the open file description: a POSIX record lock would be lost as soon as this process
    closed any other descriptor of the file, as a copy of the directory does. A fork inherits the description,
    and would keep the lock beyond the end of this process; so its child closes it first of all.

    Raises
    ------
    OSError
    """

    def __init__(self, path: str | os.PathLike[str], flags: int = os.O_RDWR):
        with _opening:
            self.fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
            _files.add(self)

    def lock(self, *, shared: bool = False, wait: bool = False, start: int = 0, length: int = 0) -> bool:
        """Whether it is locked now; a length of 0 is all. Where locks are of whole files, so is this one."""
        try:
            if OF_BYTES:
                kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
                self._set(fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, kind, start, length)
            else:
                how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
                fcntl.flock(self.fd, how | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unlock(self, *, start: int = 0, length: int = 0) -> None:
        if OF_BYTES:
            self._set(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, start, length)
        else:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def _set(self, command: int, kind: int, start: int, length: int) -> None:
        fcntl.fcntl(self.fd, command, struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0))

    @property
    def closed(self) -> bool:
        """Also in the child of a fork."""
        return self.fd < 0

    def close(self) -> None:
        """Give the lock back. Idempotent."""
        with _opening:
            _files.discard(self)
            fd, self.fd = self.fd, -1
            if fd >= 0:
                os.close(fd)


def _let_go() -> None:
    """In the child of a fork. Only closed: who unlocks it takes it from the parent, too."""
    for file in list(_files):
        with suppress(OSError):
            file.close()
    _opening.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_let_go)
