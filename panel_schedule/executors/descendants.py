"""The children of a process, and theirs, in whatever session they are."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress

_PR_SET_CHILD_SUBREAPER = 36

# What a worker process, and so each child of it, has in its environment.
MARK = "PANEL_SCHEDULE_WORKER"

# Where ``/proc/PID/stat`` has them, behind the state and the parent; see proc(5).
_FLAGS, _ENVIRONMENT = 4, slice(45, 47)
_KERNEL_THREAD = 0x00200000

# A process that goes on forking is ended by so many rounds, or not at all.
_ROUNDS = 100


def adopt_orphans() -> None:
    """Be the parent of every descendant whose own parent is gone, as a daemon's is; on Linux."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # then the process group is all that is known
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants(ancestor: int, mark: str) -> None:
    """
    Kill them all; of a process that is stopped or dead, and so neither forks nor reaps.

    While it lives it adopts orphans. When it has died somebody else does, and they are known by what `mark` put into
    its environment, which they inherit.
    """
    for _ in range(_ROUNDS):
        handles = dict[int, int]()
        found, complete = _descendants(ancestor, mark)
        if complete and not found:
            return
        try:
            for pid in found:
                with suppress(ProcessLookupError):
                    handles[pid] = os.pidfd_open(pid)
            # Its number may have become another's before it was opened.
            for pid in handles.keys() & _descendants(ancestor, mark)[0] if handles else ():
                with suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(handles[pid], signal.SIGKILL)
        finally:
            for handle in handles.values():
                os.close(handle)
        time.sleep(0.001)


def _descendants(ancestor: int, mark: str) -> tuple[set[int], bool]:
    """
    Those that are alive, and whether there is surely no other one.

    There may be one while any process has no environment yet, as in the middle of ``execve``, which takes up to some
    ten milliseconds on a busy machine; and when one has ended since the others were listed: its children are new.
    None where there is no ``/proc``, or no way to signal them safely.
    """
    if not hasattr(os, "pidfd_open"):
        return set(), True
    children, dead, left, complete = dict[int, list[int]](), set[int](), [ancestor], True
    variable = f"{MARK}={mark}".encode()
    with suppress(FileNotFoundError):
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            try:
                state, parent, *more = _read(pid, "stat").rpartition(b")")[2].split()
                children.setdefault(int(parent), []).append(pid)
                if state in b"ZX":
                    dead.add(pid)
                elif not int(more[_FLAGS]) & _KERNEL_THREAD:
                    environment = _read(pid, "environ")
                    if variable in environment.split(b"\0"):
                        left.append(pid)
                    elif not environment:  # it never had one, or has none yet
                        begin, end = more[_ENVIRONMENT]
                        complete &= begin == end != b"0"
            except (FileNotFoundError, ProcessLookupError):
                complete = False
            except OSError:  # another user's
                pass
    found = set[int]()
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, ())
    return found - dead - {ancestor}, complete


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()
