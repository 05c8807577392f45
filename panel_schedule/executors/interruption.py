"""How the function that runs on the main thread is ended: an error is raised in it wherever it is."""

from __future__ import annotations

import _thread
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import RunCancelled
from ..functions.run import Run, RunState


class Interruption:
    """
    Ends a run when `stop` is called, by a signal handler on the main thread; but not amid what may not be cut in two.

    Attributes
    ----------
    run : Run or None
        The one that runs now.
    is_open : bool
        Whether an error may be raised on the main thread now. Set to False in a ``finally``: the call of a method
        would be one more place for the error.
    waits : bool
        Whether the main thread waits, and its event loop, where it has one, stands still. Set to False likewise.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        self.is_open = self.waits = False
        # Whether an error is to be raised.
        self._due = False
        self._task: asyncio.Task[Any] | None = None
        self._print_unraisable = sys.unraisablehook

    def begin(self, run: Run) -> None:
        """From now on it is this one that `stop` ends."""
        self.run, self._due = run, False

    def open(self) -> None:
        """What follows is ended by a stop, be it one of before."""
        self.is_open = True
        self._if_due()

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """On the main thread, a stop comes after what is inside."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before, self.is_open = self.is_open, False
        try:
            yield
        finally:
            self.is_open = before
        self._if_due()

    def wait(self) -> None:
        """What follows waits; a coroutine, too, is told there of a stop, and not by its loop, which stands still."""
        self.waits = threading.current_thread() is threading.main_thread()
        self._if_due()

    def stop(self) -> None:
        """The run is cancelled: in a signal handler. Harmless when it was before."""
        if self.run is not None and not self.run.cancelled:
            self.run.state, self._due = RunState.CANCELLED, True
        self._if_due()

    def awaits(self, task: asyncio.Task[Any] | None) -> None:
        """The function is this task of an event loop; None from its end on."""
        self._task = task

    def unraisable(self, lost: Any) -> None:
        """Python prints and forgets what is raised in a `__del__`, or in a hook of a fork; a stop comes once more."""
        if not isinstance(lost.exc_value, RunCancelled) or self.run is None:
            self._print_unraisable(lost)
            return
        self._due = True
        # By another thread, for here it would be lost as well. Not `threading.Thread`, which waits for its start.
        _thread.start_new_thread(os.kill, (os.getpid(), signal.SIGTERM))

    def _if_due(self) -> None:
        if not (self._due and self.is_open) or threading.current_thread() is not threading.main_thread():
            return
        self._due = False
        if self._task is not None and not self.waits:
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        elif self.run is not None:
            self.run.check()
