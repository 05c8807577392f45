"""What a store that several processes share promises about background jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from ..functions.run import RunState
from ..serialize.codec import Encoded

# Of runs: whoever has started them. None is a user, too: one who has not logged in.
ANYBODY: Any = type("Anybody", (), {"__repr__": lambda self: "ANYBODY"})()


@dataclass(frozen=True, slots=True)
class JobRow:
    """
    What the store knows of one run of a background function.

    Attributes
    ----------
    id : str
        Of the run.
    function : str
        Name of the background function.
    key : str
        Digest of the arguments where equal calls are shared, else ``""``.
    durable : bool
        It outlives its process, or server.
    state : RunState
    attempt : int
        From 1.
    fence : int
        From 1, one more each time that another process takes it.
    orphan : bool
        Unfinished, and its process is gone or has released it.
    mine : bool
        Held by this process.
    percent : int
    message : str
    reason : str
        Why it was cancelled.
    error : str
        First line.
    partials : int
        How many there are.
    cancelled : bool
        Somebody asks its process to cancel it.
    queued_at, started_at, finished_at : datetime or None
    user : str or None
        Whose session has started it.
    expires_at : datetime or None
        Until then it can be seen; None as long as it is unfinished, or for ever.
    change : int
        Grows with every change of any job.
    """

    id: str
    function: str
    key: str
    durable: bool
    state: RunState
    attempt: int
    fence: int
    orphan: bool
    mine: bool
    percent: int
    message: str
    reason: str
    error: str
    partials: int
    cancelled: bool
    user: str | None
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    change: int


class Queue(Protocol):
    """
    Callable from any thread. A job whose process died before its end is an orphan if it is durable, else it crashed.

    Raises
    ------
    StoreError
        From every method, when it cannot be done now. It may be tried again.
    RunFenced
        From those that are given a `fence`, when the job is another process's by now, or has ended.
    """

    def enqueue(
        self,
        id: str,
        function: str,
        *,
        now: datetime,
        payload: Encoded | None,
        key: str = "",
        durable: bool = False,
        synced: bool,
        user: str | None = None,
    ) -> JobRow | None:
        """
        Keep a new run, held by this process; its fence is 1.

        With `key`, unless an equal one (same function and key) is under way, or has succeeded and not expired:
        that one is returned, and nothing kept. One atomic step: of two processes at the same instant one wins.

        Parameters
        ----------
        id, function : str
        now : datetime
        payload : Encoded or None
            What another process needs to run it. It stays the caller's to close.
        key : str
        durable : bool
            Other processes may take it when this one is gone.
        synced : bool
            On the disk before this returns, where the store outlives its server.
        user : str or None
            Whose session has started it.
        """
        ...

    def job(self, id: str) -> JobRow | None: ...

    def jobs(self, function: str, user: str | None = ANYBODY) -> list[JobRow]:
        """All that are under way and the last ones that ended, newest first; of everybody, or of one user."""
        ...

    def orphans(self) -> list[JobRow]:
        """Those that may be taken: durable, unfinished, and nobody's. Oldest first."""
        ...

    def take(self, id: str, now: datetime) -> tuple[JobRow, Any] | None:
        """
        Become the process of an orphan; with what it was enqueued with.

        It counts as an attempt if it had begun. None when another process has it, when it has ended, or
        when its payload cannot be read: then it has failed.
        """
        ...

    def begin(self, id: str, fence: int, now: datetime, attempt: int) -> None:
        """It is running."""
        ...

    def tell(self, id: str, fence: int, percent: int, message: str) -> None:
        """Tell the other processes how far it has come. Harmless when it is another one's by now."""
        ...

    def add_partial(self, id: str, fence: int, number: int, value: Any) -> None:
        """
        Keep the partial result of this number, from 0; those of an earlier attempt from there on go.

        Raises
        ------
        ValueRefused
        """
        ...

    def end(
        self,
        id: str,
        fence: int,
        state: RunState,
        *,
        now: datetime,
        value: Any = None,
        error: BaseException | None = None,
        traceback: str = "",
        reason: str = "",
        expires_at: datetime | None,
    ) -> Any:
        """
        It has ended so. Its payload goes, its partial results stay.

        Returns
        -------
        object
            Of one that has succeeded the value as all processes read it: a large one is one copy in memory.

        Raises
        ------
        ValueRefused
            When the value is not data, or cannot be shared by processes; nothing is changed.
        """
        ...

    def again(self, id: str, fence: int, attempt: int) -> None:
        """It is queued again, for a retry."""
        ...

    def cancel(self, id: str) -> None:
        """Ask its process to cancel it; an orphan has ended at once."""
        ...

    def follow(self, id: str, followed: bool) -> None:
        """Whether sessions of this process follow it."""
        ...

    def followed(self, id: str) -> bool:
        """Whether sessions of other processes do."""
        ...

    def value(self, id: str) -> Any:
        """
        What it returned.

        Raises
        ------
        KeyError
            When it has not succeeded, or has expired.
        ValueUnreadable
        """
        ...

    def partials(self, id: str, start: int = 0) -> list[Any]:
        """
        In order, from this number on.

        Raises
        ------
        ValueUnreadable
        """
        ...

    def failure(self, id: str) -> BaseException | None:
        """What it raised, caused by a `RemoteTraceback`; RunFailed where that cannot be unpickled."""
        ...

    def release(self) -> None:
        """This process stops: its durable jobs are orphans, at no attempt's cost, its other ones cancelled."""
        ...

    def watch_jobs(self, noticed: Callable[[str], object]) -> None:
        """Call ``noticed(id)`` when another process may have changed a job, or is gone. On whatever thread."""
        ...
