"""The process that forked those of a server: how they know of it, and how it hands a signal on to them."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from types import FrameType

from tornado import process

PR_SET_PDEATHSIG = 1  # Linux, prctl(2)
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_imported_in = os.getpid()


def find() -> int | None:
    """The pid of this process's supervisor: None when there was never one, 0 when it has ended already."""
    if process.task_id() is None:
        return None
    parent = os.getppid()
    if os.getpid() != _imported_in:
        return parent if parent == _imported_in else 0
    # Imported in the child, and maybe too late: init, which adopts orphans, has a process group of its own.
    try:
        return parent if os.getpgid(parent) == os.getpgrp() else 0
    except OSError:
        return 0


def others() -> str | None:
    """The program of which this process is one worker of several that it cannot know; None for Bokeh's own servers."""
    if process.task_id() is not None:
        return None
    if os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn"):
        return "gunicorn"
    several = "--workers" in sys.argv or os.environ.get("WEB_CONCURRENCY", "1") != "1"
    return "uvicorn" if several and "uvicorn" in sys.modules and multiprocessing.parent_process() else None


def end_with_it() -> None:
    """Let the kernel send SIGTERM when the supervisor ends, where it does that; elsewhere one has to look."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))


def install() -> None:
    """
    Teach tornado's supervisor to hand on what it is told, and to end after its children.

    For where this package is imported before the fork: by ``--plugins``, and with ``--num-procs 0``.
    """
    fork_processes: Callable[..., int] = process.fork_processes

    @wraps(fork_processes)
    def supervised(num_processes: int | None, max_restarts: int | None = None) -> int:
        return _Supervisor().run(lambda: fork_processes(num_processes, max_restarts))

    process.fork_processes = supervised


class _Told(BaseException):
    """Leads out of tornado's endless wait."""


class _Supervisor:
    def __init__(self) -> None:
        self._fork = os.fork
        self._children: set[int] = set()
        self._told = False
        self._code = 0

    def run(self, fork_processes: Callable[[], int]) -> int:
        former = {number: signal.signal(number, self._signalled) for number in SIGNALS}

        def fork() -> int:
            # A signal in between waits: the child would take it for its own, or be unknown here.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            pid = self._fork()
            if pid:
                self._children.add(pid)
            else:
                os.fork = self._fork
                for number, handler in former.items():
                    signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            return pid

        os.fork = fork
        try:
            return fork_processes()
        except _Told:
            for pid in self._children:
                self._ended(pid, 0)
            raise SystemExit(self._code) from None

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        # Told of by SIGTERM first, for from the terminal a child has Ctrl-C already; again by SIGINT.
        for pid in [pid for pid in self._children if not self._ended(pid, os.WNOHANG)]:
            os.kill(pid, number if self._told else signal.SIGTERM)
        if not self._told:
            self._told = True
            _refuse_connections()
            raise _Told

    def _ended(self, pid: int, options: int) -> bool:
        try:
            ended, status = os.waitpid(pid, options)
        except ChildProcessError:  # tornado has seen it
            return True
        if ended:
            self._code = max(self._code, os.waitstatus_to_exitcode(status))
        return bool(ended)


def _refuse_connections() -> None:
    """Close the listening sockets that the children have inherited: nobody answers there."""
    for each in gc.get_objects():
        if issubclass(type(each), socket.socket):
            with suppress(OSError):
                if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    each.close()
