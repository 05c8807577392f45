"""The wake-ups of the processes that share a directory: one datagram socket each."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

_BELL = ".sock"

# The kernel takes no longer path for a socket.
_LONGEST = 100

# Seconds that the others can wait to hear that a run begins or ends: to wake them takes longer than what it is about.
MOMENT = 0.001

# Seconds until a bell that was closed is looked for again.
_PAUSE = 0.05


class WakeUps:
    """
    Wakes the other processes; a ring says no more than "look".

    What there is to see stands in the database, so a ring that is lost, because a stopped
    process lets its queue fill up, loses nothing.
    """

    def __init__(self, folder: Path, me: str):
        self._directory = os.open(folder / "peers", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folder = folder / "peers"
        self._me = me + _BELL
        self._mine = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._mine.setblocking(False)
        self._theirs = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._theirs.setblocking(False)
        self._owed = False
        # Without a bell of its own a process has to look often.
        self.works = True
        try:
            self._mine.bind(self._address(self._me))
        except OSError:
            self.works = False

    def ring(self) -> None:
        """Wake everybody else. Never waits."""
        try:
            with os.scandir(self._folder) as found:
                names = [each.name for each in found if each.name.endswith(_BELL) and each.name != self._me]
        except OSError:
            return  # they look by themselves before long
        for name in names:
            with suppress(OSError):  # its queue is full, so it is awake; or it is gone
                self._theirs.sendto(b"!", self._address(name))

    def ring_soon(self) -> None:
        """Wake everybody else in a moment, once for all that comes until then; for those who `wait`."""
        if not self._owed:
            self._owed = True
            self.ring_here()

    def ring_here(self) -> None:
        """Wake the own listener."""
        with suppress(OSError):
            self._theirs.sendto(b"!", self._address(self._me))

    def wait(self, seconds: float) -> None:
        """Until it rings; all rings since the last time are one."""
        self._receive(seconds)
        if self._owed:
            self._receive(MOMENT)
            # First this: what changes from here on is owed again.
            self._owed = False
            self.ring()

    def _receive(self, seconds: float) -> None:
        try:
            # Not select(), which knows no descriptor beyond 1023.
            self._mine.settimeout(max(seconds, 0.001))
            self._mine.recv(16)
            self._mine.setblocking(False)
            while True:
                self._mine.recv(16)
        except (TimeoutError, BlockingIOError):
            pass
        except OSError:  # closed: the directory is being made anew
            time.sleep(min(seconds, _PAUSE))

    def close(self) -> None:
        """Idempotent."""
        with suppress(OSError):
            os.unlink(self._folder / self._me)
        self._mine.close()
        self._theirs.close()
        directory, self._directory = self._directory, -1
        if directory >= 0:
            os.close(directory)

    def _address(self, name: str) -> str:
        path = str(self._folder / name)
        if len(os.fsencode(path)) <= _LONGEST:
            return path
        return f"/proc/self/fd/{self._directory}/{name}"
