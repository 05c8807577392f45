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
        try:
            for pid in _descendants(ancestor, mark):
                with suppress(ProcessLookupError):
                    handles[pid] = os.pidfd_open(pid)
            if not handles:
                return
            # Its number may have become another's before it was opened.
            for pid in _descendants(ancestor, mark) & handles.keys():
                with suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(handles[pid], signal.SIGKILL)
        finally:
            for handle in handles.values():
                os.close(handle)
        time.sleep(0.001)


def _descendants(ancestor: int, mark: str) -> set[int]:
    """Those that are alive; none where there is no ``/proc``, or no way to signal them safely."""
    if not hasattr(os, "pidfd_open"):
        return set()
    children, dead, left = dict[int, list[int]](), set[int](), [ancestor]
    variable = f"{MARK}={mark}".encode()
    with suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                    state, parent, *_ = file.read().rpartition(b")")[2].split()
                    children.setdefault(int(parent), []).append(int(name))
                    if state in b"ZX":
                        dead.add(int(name))
                with suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                    if variable in file.read().split(b"\0"):
                        left.append(int(name))
    found = set[int]()
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, ())
    return found - dead - {ancestor}
