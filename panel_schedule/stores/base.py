"""What every store promises its callers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from ..errors import RunFenced
from ..functions.run import RunRecord, RunState
from ..serialize.entry import Entry
from ..triggers import Trigger
from .cache import Cache
from .queue import Queue

# The two namespaces: what a user puts into ``ps.store``, and what tasks publish.
USER = "user"
TASK = "task"

# Before the name of a task: the claim by which one process asks a function of the user's for its dates.
DATES = "\x1fdates of "

# How often a run is taken over from a process that died before it counts as crashed: a task
# that kills its process must not kill every one in turn.
TAKEOVERS = 1

# Seconds for which an event loop stands still for a store that is busy, at most.
SOON = 0.1

# The occasion of a run that is handled once: the slot of a clock, or the sum of the upstream's versions.
Mark = datetime | int


@dataclass(frozen=True, slots=True)
class Claim:
    """
    The right of one run to publish values of its task. A later fence makes it void.

    Attributes
    ----------
    task, run_id : str
    fence : int
    attempt : int
        More than 1 after a takeover.
    key : datetime or str or None
        Of the run that was taken over.
    wave : datetime or None
        The same.
    """

    task: str
    run_id: str
    fence: int
    attempt: int = 1
    key: datetime | str | None = None
    wave: datetime | None = None


class Refusal(StrEnum):
    """Why there is no claim."""

    HELD = "held"  # another run has it
    HANDLED = "handled"  # its slot was claimed or skipped before


@dataclass(frozen=True, slots=True)
class Holder:
    """
    The run of another process that holds a task.

    Attributes
    ----------
    run_id : str
    key : datetime or str or None
    attempt : int
    wave, started_at : datetime or None
    over : bool
        The run has ended; its body has not.
    orphan : bool
        Its process is gone, or has handed it over: whoever takes it may have it.
    percent : int
    message : str
    """

    run_id: str
    key: datetime | str | None
    attempt: int
    wave: datetime | None
    started_at: datetime | None
    over: bool
    orphan: bool
    percent: int = -1
    message: str = ""


class Row(NamedTuple):
    """
    What a store remembers of a task besides its value.

    Attributes
    ----------
    fingerprint : str
        Of the schedule in the code.
    first_seen : datetime
        Only slots after this instant, at which the schedule was first seen, can be missed.
    last_slot : datetime or None
        The last slot that was claimed or skipped.
    last_version : int
        The sum of the upstream's versions for which an ``after=`` task ran last.
    trigger : Trigger or None
        Of the process that came first, where another one's code says ``now + 30 s``.
    override : Trigger or None
        Of a `reschedule`.
    gave_way : Trigger or None
        An override that the store has just dropped, as the schedule in the code has changed.
    paused, removed, forgotten : bool
    outcome : RunState or None
        How the last run ended.
    error : str
        First line of its failure.
    stale : bool
        A process has found the value stale.
    viewers : int
        Sessions of other processes that show the task; counted for those that rest when nobody does.
    holder : Holder or None
    cancelled : str
        Id of a run that somebody wants to be cancelled.
    change : int
        Grows with every change of any row.
    """

    fingerprint: str
    first_seen: datetime
    last_slot: datetime | None = None
    last_version: int = 0
    trigger: Any = None
    override: Any = None
    gave_way: Any = None
    paused: bool = False
    removed: bool = False
    forgotten: bool = False
    outcome: RunState | None = None
    error: str = ""
    stale: bool = False
    viewers: int = 0
    holder: Holder | None = None
    cancelled: str = ""
    change: int = 0


class Plan(NamedTuple):
    """A task as the code of this process has it."""

    task: str
    trigger: Trigger
    first_seen: datetime


Listener = Callable[[str, str, Entry | None], object]


class Store(Protocol):
    """
    Callable from any thread.

    Raises
    ------
    StoreError
        From every method but `entry` and `names`, when a shared store cannot do it now. It may be tried again.
    """

    # Whether a call may have to wait for a disk or a network: then it stays off the event loop and out of locks.
    blocking: bool

    @property
    def queue(self) -> Queue | None:
        """The background jobs, in a store that several processes share."""
        ...

    @property
    def cache(self) -> Cache | None:
        """The answers of memoized functions, in a store that several processes share."""
        ...

    def entry(self, space: str, name: str) -> Entry | None:
        """The stored value, None where there is none. From memory, at once."""
        ...

    def names(self, space: str) -> Iterator[str]: ...

    def publish(
        self,
        space: str,
        name: str,
        value: Any,
        *,
        now: datetime,
        duration: float | None = None,
        claim: Claim | None = None,
        final: bool = True,
    ) -> Entry:
        """
        Store a new version and tell the listeners.

        Raises
        ------
        ValueRefused
            When the value is not data, or cannot be shared by processes; the old one stays.
        RunFenced
            When `claim` is no longer the task's own; the value is dropped.
        """
        ...

    def seal(self, claim: Claim) -> Entry | None:
        """The last value that the claim's run has published was its final one."""
        ...

    def delete(self, space: str, name: str) -> None:
        """Forget the value. Raises KeyError where there is none."""
        ...

    def isolate(self, task: str) -> None:
        """From its next entry on, keep what private copies of the task's value are made from."""
        ...

    def subscribe(self, stored: Listener, noticed: Callable[[str], object] = lambda task: None) -> None:
        """
        Call ``stored(space, name, entry)`` after each new value or deletion.

        And ``noticed(task)`` when another process may have changed the row of a task. On whatever thread.
        """
        ...

    def listen(self) -> None:
        """From now on hear of other processes without being asked. Idempotent."""
        ...

    def close(self) -> None:
        """This process is done with the store. Idempotent."""
        ...

    # ------------------------------------------------------------ schedules

    def enroll(self, plans: Iterable[Plan], *, again: bool = False, late: bool = False) -> dict[str, Row]:
        """
        Remember the schedules, where they are new or changed.

        Within one server the first process decides: another one whose dates differ, because they
        are relative to now, gets the first one's in ``Row.trigger``.

        Parameters
        ----------
        plans : iterable of Plan
        again : bool
            The function was defined anew: its schedule replaces the known one.
        late : bool
            The task is scheduled while the server runs: one that was forgotten comes back.
        """
        ...

    def row(self, task: str, fingerprint: str | None = None) -> Row | None:
        """What is known of a task; with the `fingerprint` of a schedule, another one is in ``Row.trigger``."""
        ...

    def amend(
        self,
        task: str,
        *,
        paused: bool | None = None,
        removed: bool | None = None,
        reschedule: Any = None,
        now: datetime | None = None,
    ) -> None:
        """Change what is not None; `reschedule` is another trigger, whose slots count from `now`."""
        ...

    def rewind(self, task: str, now: datetime) -> bool:
        """The clock has stepped back to `now`: slots later than that were not handled. False when it is known."""
        ...

    def watch(self, task: str, viewers: int) -> None:
        """So many sessions of this process show the task."""
        ...

    def flip(self, task: str, stale: bool) -> bool:
        """Whether this process is the first one that finds the value stale, or no longer so."""
        ...

    def forget(self, task: str) -> None:
        """Drop value, row and history of a task."""
        ...

    # ------------------------------------------------------------ runs

    def claim(
        self,
        task: str,
        run_id: str,
        *,
        now: datetime,
        key: datetime | str | None = None,
        mark: Mark | None = None,
        wave: datetime | None = None,
        first: bool = False,
    ) -> Claim | Refusal:
        """
        Compare and set: the claim of a task, unless another run holds it or `mark` was handled before.

        `mark` is None for a run on request; with `first` a value that is there by now refuses it, too.
        """
        ...

    def advance(self, claim: Claim, version: int) -> None:
        """The run that has the claim is going to see these versions of its upstream, too."""
        ...

    def progress(self, claim: Claim, percent: int, message: str) -> None:
        """Tell the other processes how far the run has come."""
        ...

    def void(self, claim: Claim) -> Claim:
        """Let nothing more be published under the claim; the one returned holds the task until its release. At once."""
        ...

    def release(self, claim: Claim) -> None:
        """Give the claim back. Harmless when it was lost before."""
        ...

    def hand_over(self, claim: Claim) -> None:
        """Let another process finish the run, now or when one starts."""
        ...

    def take_over(self, task: str, now: datetime) -> Claim | RunRecord | None:
        """
        The claim of a run whose process is gone.

        The record of its crash, when it has cost one process too many; None when it had ended, or is had by another.
        """
        ...

    def cancel(self, task: str, run_id: str) -> None:
        """Ask the process of a run to cancel it."""
        ...

    def record(self, task: str, record: RunRecord, mark: Mark | None = None) -> bool:
        """
        Add to the history; a skipped stretch that goes on becomes longer instead.

        With `mark` only if that was not handled before, which it is then.

        Returns
        -------
        bool
            Whether there is a new record.
        """
        ...

    def history(self, task: str) -> list[RunRecord]:
        """Newest first."""
        ...


def extended(newest: RunRecord | None, record: RunRecord) -> RunRecord | None:
    """One record for both, when `record` continues the skipped stretch `newest`; else None."""
    if newest is None or record.until is None or newest.until is None:
        return None
    if (newest.state, newest.reason) != (record.state, record.reason):
        return None
    return replace(newest, until=record.until, finished_at=record.finished_at)


_hurry = threading.local()


@contextmanager
def hurried(so: Callable[[], bool]) -> Iterator[None]:
    """While ``so()`` an event loop waits for what this thread does: a store that is busy then fails, and soon."""
    outer, _hurry.so = getattr(_hurry, "so", None), so  # in a body that computes another answer on its own thread
    try:
        yield
    finally:
        _hurry.so = outer


def in_a_hurry() -> bool:
    """Whether this thread is to wait for SOON at most."""
    so: Callable[[], bool] | None = getattr(_hurry, "so", None)
    return so is not None and so()


def whose(space: str, name: str) -> str:
    """How an error names a value."""
    return f"Task {name!r}" if space == TASK else f"ps.store[{name!r}]"


def fenced(task: str) -> RunFenced:
    """The error of a run whose claim is another one's by now."""
    return RunFenced(
        f"Task {task!r}: the run lost its claim before it published; its value is dropped. "
        "It was cancelled, replaced or timed out, or its process was taken for dead: give the task a longer timeout "
        "or period."
    )
