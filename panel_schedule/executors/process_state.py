"""What of a worker process is put back after each run, so that nothing of one meets the next."""

from __future__ import annotations

import gc
import locale
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from .logs import Settings

_ATTRIBUTES: list[tuple[Any, list[str]]] = [
    (sys, ["stdin", "stdout", "stderr", "argv", "excepthook", "displayhook", "unraisablehook", "dont_write_bytecode"]),
    (threading, ["excepthook"]),
]

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
# Without the wrapper, which looks each up in an enum.
_handler_of = getattr(signal.getsignal, "__wrapped__", signal.getsignal)
_SIGNALS = [int(number) for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})]


def _handle(number: int, handler: Any) -> None:
    if handler is not None:  # one in C, which Python cannot put back
        signal.signal(number, handler)


# What a function may leave behind: how each is read, and how it is set.
_STATES: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
    *((partial(_handler_of, number), partial(_handle, number)) for number in _SIGNALS),
    *((partial(getattr, held, name), partial(setattr, held, name)) for held, names in _ATTRIBUTES for name in names),
    *((partial(resource.getrlimit, limit), partial(resource.setrlimit, limit)) for limit in _LIMITS),
    (partial(os.getpriority, os.PRIO_PROCESS, 0), partial(os.setpriority, os.PRIO_PROCESS, 0)),
    (partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    (gc.isenabled, lambda collecting: gc.enable() if collecting else gc.disable()),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    (sys.gettrace, sys.settrace),
    (sys.getprofile, sys.setprofile),
]


class ProcessState:
    """
    The state of this process when it is made: on the main thread, before the first body.

    Left alone are modules and what they hold, threads, children, open files, and the seeds of random numbers: a model
    that was loaded stays loaded.
    """

    def __init__(self) -> None:
        self._folder = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
        self._environment, self._encoded = dict(os.environ), dict(os.environ._data)  # type: ignore[attr-defined]
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._states = [get() for get, _ in _STATES]
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        self._arguments = list(sys.argv)
        self._files = self._standard_files()
        self._show_warning = warnings.showwarning
        self._first_loggers = {name: state for name, logger in _loggers() if (state := _state_of(logger)) != _NEW}
        self._logging: Settings | None = None
        self._warnings = list(warnings.filters)

    def follow(self, logs: Settings) -> None:
        """From now on the loggers have the server's levels."""
        if logs != self._logging:
            self._logging, levels = logs, logs[0]
            for name in levels:
                logging.getLogger(name)  # which makes it
            self._loggers = {
                name: (*self._first_loggers.get(name, _NEW)[:3], *levels.get(name, (logging.NOTSET, False)))
                for name in {*self._first_loggers, *levels}
            }
            self._restore_loggers(logs)

    def imported(self) -> None:
        """
        What a function needs has been imported.

        The warnings that its modules ignore stay so; logging is set up by the server.
        """
        self._warnings = list(warnings.filters)
        if self._logging is not None:
            self._restore_loggers(self._logging)

    def restore(self) -> bool:
        """Put it back, on the main thread. False when something cannot be: then the process is of no more use."""
        try:
            self._restore()
            return self._standard_files() == self._files and not sys.stdout.closed and not sys.stderr.closed
        except Exception:
            # Whatever it was, another process starts without it.
            return False

    def _restore(self) -> None:
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        signal.set_wakeup_fd(-1)
        for (get, put), value in zip(_STATES, self._states, strict=True):
            if get() != value:
                put(value)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        os.fchdir(self._folder)
        os.umask(self._umask)
        if os.environ._data != self._encoded:  # type: ignore[attr-defined]  # 60 times as fast as the mapping itself
            os.environ.clear()
            os.environ.update(self._environment)
            time.tzset()
        sys.argv[:] = self._arguments
        if warnings.filters != self._warnings:
            warnings.resetwarnings()
            warnings.filters[:] = self._warnings  # type: ignore[index]
        if self._logging is not None:
            self._restore_loggers(self._logging)

    @staticmethod
    def _standard_files() -> list[tuple[int, int]]:
        return [(found.st_dev, found.st_ino) for found in map(os.fstat, (0, 1, 2))]

    def _restore_loggers(self, logs: Settings) -> None:
        _, disabled, capturing = logs
        changed = False
        for name, logger in _loggers():
            # Most are in the state of a new one, and have to be.
            if (
                logger.level or logger.handlers or logger.filters or logger.disabled or not logger.propagate
                or name in self._loggers
            ) and _state_of(logger) != (state := self._loggers.get(name, _NEW)):  # fmt: skip
                handlers, filters, logger.propagate, logger.level, logger.disabled = state
                logger.handlers[:], logger.filters[:] = handlers, filters
                changed = True
        if changed or logging.root.manager.disable != disabled:
            logging.disable(disabled)  # which also makes the loggers forget what is enabled
        logging.captureWarnings(False)
        warnings.showwarning = self._show_warning
        logging.captureWarnings(capturing)


def _loggers() -> list[tuple[str, logging.Logger]]:
    found: list[Any] = [("root", logging.root), *logging.root.manager.loggerDict.items()]
    return [each for each in found if type(each[1]) is not logging.PlaceHolder]


def _state_of(logger: logging.Logger) -> tuple[Any, ...]:
    return list(logger.handlers), list(logger.filters), logger.propagate, logger.level, logger.disabled


# Of a logger that nobody has set up.
_NEW: tuple[Any, ...] = ([], [], True, logging.NOTSET, False)
