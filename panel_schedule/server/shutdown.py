"""The end of a server: runs in flight get the grace period, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import atexit
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from typing import Any, TextIO

from tornado.httpserver import HTTPServer

from ..executors import forks
from ..executors.base import Executor
from ..notebook import in_notebook
from ..runtime import Runtime
from . import supervisor

log = logging.getLogger("panel_schedule")

# Seconds for the rest, after the grace period: a callback that holds the loop, threads that are not ours.
LAST_WORDS = 1.0

# Ctrl-C means "at once" when the stop is older than this. Before, it may be the first one: a child
# hears of that from the terminal and from its supervisor.
AGAIN = 0.5

# The grace period, in seconds, of a server that has not served anybody yet.
STARTING_GRACE = 2.0

# How often a child looks whether its supervisor still lives, in seconds.
LOOK = 1.0


class Stopping:
    """
    Stops this process once: at a signal, at the end of its supervisor, or because a first run failed.

    Meanwhile its loop goes on: cleanup code runs, and values reach the open pages.
    """

    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self._loop: asyncio.AbstractEventLoop | None = None
        self._supervisor: int | None = None
        self._once = threading.Lock()
        self._since: float | None = None
        self._failure: str | None = None
        # What has been reached: the loop's last turn, the return of `panel serve`, the exit handlers.
        self._left, self._returned, self._exiting = threading.Event(), threading.Event(), threading.Event()
        # Early, for exit handlers are called in reverse order.
        atexit.register(self._abandon)
        if hasattr(os, "register_at_fork"):
            forks.register(self._give_back)

    # ------------------------------------------------------------ who may stop it

    def watch(self, loop: asyncio.AbstractEventLoop) -> bool:
        """
        Let signals, and the end of the supervisor, stop this server. On the loop's thread; idempotent.

        False where that is somebody else's business: in a thread, and in a notebook's kernel.
        """
        if threading.current_thread() is not threading.main_thread() or in_notebook():
            return False
        if self._loop is not loop:
            self._loop = loop
            self._take_signals(loop)
            self._supervisor = supervisor.find()
            if self._supervisor is not None:
                supervisor.end_with_it()
                loop.call_soon(self._look)
        return True

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        interrupt, terminate = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        # Of Python, of Panel, or none in a background job. Any other is uvicorn's or the user's own.
        usual = interrupt in (signal.default_int_handler, signal.SIG_IGN, self._signalled)
        if not usual and _module(interrupt) != "panel.io.server":
            return
        if interrupt is not signal.SIG_IGN:
            self._take(loop, signal.SIGINT)
        # Bokeh's, which is a handler of the loop, leaves a coroutine no time to clean up.
        if terminate in (signal.SIG_DFL, self._signalled) or _module(terminate).startswith("asyncio"):
            self._take(loop, signal.SIGTERM)

    def _take(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        with suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, lambda: None)  # wakes the loop, and displaces Bokeh's
        # Called between any two lines of Python, also while a page holds the loop.
        signal.signal(number, self._signalled)

    def _give_back(self) -> None:
        """In the child of a fork: the signals that reach it mean no server."""
        self._since = None
        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) == self._signalled:
                signal.signal(number, default)
                signal.set_wakeup_fd(-1)

    def _look(self) -> None:
        if os.getppid() != self._supervisor:
            log.info("The supervisor is gone, so this process stops.")
            self._begin()
        elif self._loop is not None:
            self._loop.call_later(LOOK, self._look)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if not self._begin("\nInterrupted, shutting down"):
                self._hurry(frame)
        else:
            # Of several processes none says so: the last words are those of the one that has failed.
            self._begin("" if self._supervisor is not None else "Received signal SIGTERM, shutting down")

    def fail(self, message: str) -> None:
        """Stop at once, with `message` as the last words and a non-zero exit; under a supervisor all of it."""
        if not self._begin(failure=message):
            return
        if self._supervisor and os.getppid() == self._supervisor:
            # It would start this process again and again, each time to the same end.
            os.kill(self._supervisor, signal.SIGTERM)

    # ------------------------------------------------------------ the way out

    @property
    def begun(self) -> bool:
        return self._since is not None

    def _begin(self, notice: str = "", failure: str | None = None) -> bool:
        if not self._once.acquire(blocking=False):
            return False
        self._since, self._failure = self._runtime.clock.monotonic(), failure
        if failure is not None:
            self._runtime.grace = 0.0
        # Of its own: the loop has to turn meanwhile, or may be held by a page.
        threading.Thread(target=self._stop, args=(notice,), name="panel-schedule-stop", daemon=True).start()
        return True

    def _stop(self, notice: str) -> None:
        try:
            if notice:
                _say(notice, sys.stdout)
            turned = threading.Event()
            self._on_loop(turned.set)
            self._on_loop(_refuse_connections)
            turned.wait(LAST_WORDS)  # a setup script in the middle of it registers its tasks first
            if self._failure is None and self._runtime.started and self._runtime.waiting_for():
                # Nobody is served yet, perhaps because a first run has failed in another process.
                self._runtime.grace = min(self._runtime.config.grace_period, STARTING_GRACE)
            self._runtime.close()
        finally:
            atexit.register(self._exiting.set)  # late: the first to be called
            self._on_loop(self._leave)
            grace = self._runtime.config.grace_period if self._failure is None else 0.0
            elapsed = self._runtime.clock.monotonic() - (self._since or 0.0)
            self._see_out(LAST_WORDS + max(0.0, grace - elapsed))

    def _hurry(self, frame: FrameType | None) -> None:
        if self._left.is_set() and not self._returned.is_set():
            signal.default_int_handler(signal.SIGINT, frame)  # the script that called pn.serve goes on
        if self._since is not None and self._runtime.clock.monotonic() - self._since > AGAIN:
            # Not here: the line of Python that was interrupted may hold a lock.
            threading.Thread(target=self._cut_short, daemon=True).start()

    def _cut_short(self) -> None:
        for executor in self._executors():
            executor.hurry()
        self._see_out(LAST_WORDS)

    def _on_loop(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(call)

    def _leave(self) -> None:
        self._left.set()
        if self._failure is not None:
            self._returned.set()
            raise SystemExit(self._failure)
        if self._loop is not None:
            self._loop.stop()

    def returned(self) -> None:
        """The server has stopped: ``panel serve`` has nothing left to do but to exit."""
        if self._left.is_set():
            self._returned.set()

    def _see_out(self, seconds: float) -> None:
        """End the process if something else holds it back."""
        if self._left.wait(seconds):
            self._returned.wait()
            if self._exiting.wait(seconds):
                return
        elif self._failure is not None:
            _say(self._failure, sys.stderr)
        self._exit()

    def _executors(self) -> Iterable[Executor]:
        service = self._runtime._service  # not made only to be asked
        return service.executors.values() if service is not None else ()

    def _abandon(self) -> None:
        """The last of the exit handlers: a thread inside of a C++ extension would make Python abort now."""
        if self._since is not None and any(each.busy for each in self._executors()):
            logging.shutdown()
            self._exit()

    def _exit(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        failed = self._failure is not None or hasattr(sys, "last_type")
        os._exit(1 if failed else 0)


def _say(text: str, stream: TextIO) -> None:
    """In one write, for there may be other processes; and whether or not anybody listens any more."""
    with suppress(OSError, ValueError):
        print(f"{text}\n", end="", flush=True, file=stream)


def _refuse_connections() -> None:
    """Bokeh closes its sockets at the very end; until then a visitor would wait for an answer in vain."""
    for each in gc.get_objects():
        if issubclass(type(each), HTTPServer):
            each.stop()


def _module(handler: Any) -> str:
    return getattr(handler, "__module__", None) or ""
