"""What every executor promises: it is what ``concurrent.futures`` already says it is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from ..errors import RunCrashed


class WorkerLost(RunCrashed):
    """The machine that it ran on is lost, or the way there: that is not the function's doing, which may run again."""


class Load(NamedTuple):
    """How many bodies run, how many wait, and for how many there is a place; -1 where that is not known here."""

    running: int = 0
    waiting: int = 0
    places: int = -1


class Executor(Protocol):
    """Runs bodies somewhere, each in an empty context: a run sees no session."""

    def submit(self, body: Callable[[], Any], name: str = "") -> Future[Any]:
        """
        Run ``body()`` soon after the next `flush`.

        The future's ``cancel()`` keeps a waiting body from starting; a coroutine that runs
        gets `CancelledError`, and a thread cannot be interrupted: it gives its place back. The
        future is done when the body has really ended.
        """
        ...

    def flush(self) -> None:
        """Hand over what was submitted, in one go. Apart, so that no body wakes up to a lock that is still held."""
        ...

    def lend(self) -> AbstractContextManager[object]:
        """Give the caller's place to another body while the caller waits."""
        ...

    def stop(self, grace: float) -> None:
        """Cancel what can be, wait up to `grace` seconds for the rest, and for what their futures call at their end."""
        ...

    def hurry(self) -> None:
        """Wait no longer: what a `stop` waits for, now or later, is left behind."""
        ...

    @property
    def hanging(self) -> tuple[str, ...]:
        """The names of the bodies that still run though nobody waits for them any more."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a body runs, be it one that was left behind."""
        ...

    @property
    def load(self) -> Load:
        """How much there is to do."""
        ...

    @property
    def workers(self) -> list[tuple[str, str]]:
        """The workers that it knows of without asking anybody: the name of each, and what it runs, ``""`` if idle."""
        ...
