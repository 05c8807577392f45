"""Large values of a store on another machine: one of the processes of this one fetches each, and all of them map it."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from ..clock import Clock
from ..errors import StoreError
from ..serialize.codec import Mapped
from .file.directory import door, private, remove_if_left
from .file.liveness import Liveness
from .file.locks import LockFile
from .hurry import in_a_hurry

log = logging.getLogger("panel_schedule")

# So many bytes of them stay: beyond that those go that were fetched first.
MOST = 2 * 1024**3

# Seconds that a process waits for another one that fetches the same, and how often it looks.
PATIENCE, LOOK = 10.0, 0.005

# What a file may be named: it is another machine that says so.
_NAME = re.compile(r"[\w-]+\.\d+")
_UNFINISHED = ".part"

Write = Callable[[int], object]


class LocalFiles:
    """
    A directory of files, each written once, by one process.

    It is below the system's directory for temporary files, and private to this user: what is in it is trusted. It goes
    with the last process that uses it; of one that was killed, with the next one that comes. Where it cannot be used
    this process has the values for itself.

    Parameters
    ----------
    name : str
        Of the store: processes with the same one share the files.
    clock : Clock
    """

    def __init__(self, name: str, clock: Clock):
        self._root = Path(tempfile.gettempdir()) / f"panel-schedule-{os.geteuid()}"
        self._folder = self._root / f"fetched-{name}"
        self._clock = clock
        self._liveness: Liveness | None = None
        self._joining = threading.Lock()
        self._closed = self._complained = False

    def get(self, name: str, write: Write) -> Mapped:
        """
        The file of this name; where there is none, or none can be, what ``write(descriptor)`` writes.

        Parameters
        ----------
        name : str
        write : callable
            What it raises is raised, and then there is no file; but an OSError is taken for one of this file.

        Raises
        ------
        ValueError
            When that is no name.
        OSError
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} names no file")
        try:
            return self._shared(self._folder / name, write)
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning(
                    "The processes of this machine do not share their large values, each has its own: %s. "
                    "Mend that, or name another directory in TMPDIR.", error,
                )  # fmt: skip
            return Mapped.made(write)

    def _shared(self, path: Path, write: Write) -> Mapped:
        with suppress(FileNotFoundError):
            return Mapped.open(path)
        self._join()
        unfinished = path.with_name(path.name + _UNFINISHED)
        until = self._clock.monotonic() + (0 if in_a_hurry() else PATIENCE)
        while True:
            file = LockFile(unfinished, os.O_RDWR | os.O_CREAT)
            try:
                while not file.lock():
                    if self._clock.monotonic() >= until:
                        return Mapped.made(write)
                    threading.Event().wait(LOOK)
                if _is_at(file, unfinished):  # else the one who had it before has finished
                    if not path.exists():
                        self._write(file, write, unfinished, path)
                        self._trim()
                    else:
                        unfinished.unlink()
                with suppress(FileNotFoundError):
                    return Mapped.open(path)
            finally:
                file.close()

    def _write(self, file: LockFile, write: Write, unfinished: Path, path: Path) -> None:
        try:
            os.ftruncate(file.fd, 0)
            write(file.fd)
            unfinished.rename(path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise

    def _join(self) -> None:
        """The directory is there, and stays as long as this process needs it. Raises OSError."""
        try:
            with self._joining:
                private(self._root, follow=False)
                if self._liveness is None and not self._closed:
                    for left in self._root.glob("fetched-*"):
                        remove_if_left(left)
                    with door(self._folder):
                        liveness = Liveness(self._folder)
                        liveness.join()
                        self._liveness = liveness
                private(self._folder, follow=False)
        except StoreError as error:
            raise OSError(str(error).partition(". ")[0]) from None

    # ------------------------------------------------------------ what is not needed any more

    def names(self) -> list[str]:
        """Of all files that are there, if this process uses any."""
        if self._liveness is None:
            return []
        try:
            return [name for name in os.listdir(self._folder) if _NAME.fullmatch(name)]
        except OSError:
            return []

    def remove(self, names: Collection[str]) -> None:
        """Nobody needs these; who has one has it still. And those go that a process has left half written."""
        for name in names:
            with suppress(OSError):
                (self._folder / name).unlink()
        for path in self._folder.glob(f"*{_UNFINISHED}"):
            with suppress(OSError):
                file = LockFile(path)
                try:
                    if file.lock() and _is_at(file, path):
                        path.unlink()
                finally:
                    file.close()

    def _trim(self) -> None:
        found = list[tuple[float, int, Path]]()
        for name in self.names():
            with suppress(OSError):
                stat = (path := self._folder / name).stat()
                found.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found)[:-1]:
            if total <= MOST:
                break
            total -= size
            with suppress(OSError):
                path.unlink()

    def close(self) -> None:
        """This process needs none of them. Idempotent."""
        with self._joining:
            self._closed, liveness, self._liveness = True, self._liveness, None
        if liveness is not None:
            liveness.leave()
            remove_if_left(self._folder)


def _is_at(file: LockFile, path: Path) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(file.fd).st_ino
    except FileNotFoundError:
        return False
