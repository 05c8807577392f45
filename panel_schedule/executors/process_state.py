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
from typing import Any

# Settable things that a function may leave behind, by their modules.
_ATTRIBUTES: list[tuple[Any, list[str]]] = [
    (sys, ["stdin", "stdout", "stderr", "argv", "excepthook", "displayhook", "unraisablehook", "dont_write_bytecode"]),
    (threading, ["excepthook"]),
]

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
# Without the wrapper, which looks each up in an enum.
_handler_of = getattr(signal.getsignal, "__wrapped__", signal.getsignal)
_SIGNALS = [int(number) for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})]


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
        self._handlers = [_handler_of(number) for number in _SIGNALS]
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        self._attributes = [(holder, name, getattr(holder, name)) for holder, names in _ATTRIBUTES for name in names]
        self._arguments = list(sys.argv)
        self._files = self._standard_files()
        self._limits = [resource.getrlimit(limit) for limit in _LIMITS]
        self._niceness = os.getpriority(os.PRIO_PROCESS, 0)
        self._locale = locale.setlocale(locale.LC_ALL)
        self._settings = self._get_settings()
        self._loggers = {logger: _state_of(logger) for logger in _loggers() if not _is_new(logger)}
        self.imported()

    def imported(self) -> None:
        """What a function needs has been imported: the warnings that its modules ignore stay so."""
        self._warnings = list(warnings.filters)

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
        for number, handler in zip(_SIGNALS, self._handlers, strict=True):
            if handler is not None and _handler_of(number) != handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        os.fchdir(self._folder)
        os.umask(self._umask)
        if os.environ._data != self._encoded:  # type: ignore[attr-defined]  # 60 times as fast as the mapping itself
            os.environ.clear()
            os.environ.update(self._environment)
            time.tzset()
        for holder, name, value in self._attributes:
            setattr(holder, name, value)
        sys.argv[:] = self._arguments
        for limit, values in zip(_LIMITS, self._limits, strict=True):
            if resource.getrlimit(limit) != values:
                resource.setrlimit(limit, values)
        if os.getpriority(os.PRIO_PROCESS, 0) != self._niceness:
            os.setpriority(os.PRIO_PROCESS, 0, self._niceness)
        if locale.setlocale(locale.LC_ALL) != self._locale:
            locale.setlocale(locale.LC_ALL, self._locale)
        if self._get_settings() != self._settings:
            self._set_settings()
        if warnings.filters != self._warnings:
            warnings.resetwarnings()
            warnings.filters[:] = self._warnings  # type: ignore[index]
        self._restore_loggers()

    @staticmethod
    def _standard_files() -> list[tuple[int, int]]:
        return [(found.st_dev, found.st_ino) for found in map(os.fstat, (0, 1, 2))]

    @staticmethod
    def _get_settings() -> tuple[Any, ...]:
        return (
            sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), socket.getdefaulttimeout(),
            sys.gettrace(), sys.getprofile(), logging.root.manager.disable,
        )  # fmt: skip

    def _set_settings(self) -> None:
        recursion, interval, collecting, timeout, trace, profile, disabled = self._settings
        sys.setrecursionlimit(recursion)
        sys.setswitchinterval(interval)
        (gc.enable if collecting else gc.disable)()
        socket.setdefaulttimeout(timeout)
        sys.settrace(trace)
        sys.setprofile(profile)
        logging.disable(disabled)

    def _restore_loggers(self) -> None:
        for logger in _loggers():
            # Most are in no state but that of a new one, both times.
            former = self._loggers.get(logger, _NEW)
            if (former is not _NEW or not _is_new(logger)) and _state_of(logger) != former:
                handlers, filters, level, logger.propagate, logger.disabled = former
                logger.handlers[:], logger.filters[:] = handlers, filters
                logger.setLevel(level)


def _loggers() -> list[logging.Logger]:
    there = list(logging.root.manager.loggerDict.values())
    return [logging.root, *(each for each in there if isinstance(each, logging.Logger))]


def _is_new(logger: logging.Logger) -> bool:
    return not (logger.handlers or logger.filters or logger.level or logger.disabled) and logger.propagate


def _state_of(logger: logging.Logger) -> tuple[Any, ...]:
    return list(logger.handlers), list(logger.filters), logger.level, logger.propagate, logger.disabled


# Of a logger that nobody has set up.
_NEW: tuple[Any, ...] = ([], [], logging.NOTSET, True, False)
