"""What a store that several processes share promises about the answers of memoized functions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

# How long after its lifetime an answer is kept for the case that it cannot be computed anew.
LAST_RESORT = timedelta(days=7)

# The versions of the tasks of ``after=`` for which an answer was computed, in their order.
Basis = tuple[int, ...]


def serves(basis: Basis, wanted: Basis) -> bool:
    """Whether what was computed for `basis` is no older than what is wanted."""
    return len(basis) == len(wanted) and all(one >= other for one, other in zip(basis, wanted, strict=True))


class Limits(NamedTuple):
    """How much is kept of one function: so many answers, so many bytes of them."""

    entries: int | None = None
    size: int | None = None


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """
    What the store knows of the answer to one call.

    Attributes
    ----------
    function : str
        Name of the memoized function.
    key : str
        Digest of the arguments.
    call : str
        The call as text, for people.
    version : int
        Of the value, grows with each new one of any call; 0 where there is none.
    basis : tuple of int
    updated_at : datetime or None
        When its computation ended.
    duration : float or None
        Seconds that it took.
    size : int
        Bytes of the value.
    fence : int
        Of the computation under way, or the last one; each one has a greater one.
    held : bool
        A process that is alive computes it.
    mine : bool
        It is this one.
    wanted : tuple of int
        The basis of the computation under way.
    failed : int
        Fence of the last computation that failed; 0 where one has succeeded since.
    failed_at : datetime or None
    partials : int
        How many partial answers the computation under way has published.
    """

    function: str
    key: str
    call: str
    version: int
    basis: Basis
    updated_at: datetime | None
    duration: float | None
    size: int
    fence: int
    held: bool
    mine: bool
    wanted: Basis
    failed: int
    failed_at: datetime | None
    partials: int


class Cache(Protocol):
    """
    Callable from any thread.

    Raises
    ------
    StoreError
        From every method, when it cannot be done now. It may be tried again.
    RunFenced
        From those that are given a `fence`, when the computation does not count any more: it was invalidated,
        or another process does it.
    """

    def look(self, function: str, key: str) -> AnswerRow | None: ...

    def answers(self, function: str) -> list[AnswerRow]:
        """Those that have a value, the one that was used last first."""
        ...

    def value(self, row: AnswerRow) -> Any:
        """
        The value of this version.

        Raises
        ------
        KeyError
            When there is another one by now, or none.
        ValueUnreadable
        """
        ...

    def partial(self, row: AnswerRow) -> Any:
        """The newest partial answer. Raises as `value`."""
        ...

    def failure(self, row: AnswerRow) -> BaseException:
        """What the last computation raised, caused by a `RemoteTraceback`."""
        ...

    def claim(
        self, function: str, key: str, call: str, *, known: int, basis: Basis, now: datetime
    ) -> tuple[bool, AnswerRow]:
        """
        Get to compute an answer, unless it is there or another process computes it.

        One atomic step: of many processes at the same instant one wins. A computation whose process died is taken
        over, once; then it has failed.

        Parameters
        ----------
        function, key, call : str
        known : int
            The version that is not good enough; a greater one is returned instead.
        basis : tuple of int
            A computation under way for an older one does not count.
        now : datetime

        Returns
        -------
        mine : bool
            Whether this process is to compute it, under the row's `fence`.
        row : AnswerRow
        """
        ...

    def publish(self, function: str, key: str, fence: int, value: Any) -> None:
        """
        Keep a partial answer in place of the last one.

        Raises
        ------
        ValueRefused
        """
        ...

    def put(
        self,
        function: str,
        key: str,
        fence: int,
        value: Any,
        *,
        now: datetime,
        duration: float,
        expires_at: datetime | None,
        limits: Limits,
    ) -> tuple[AnswerRow, Any]:
        """
        The answer is there. Those used longest ago go, as far as the limits say.

        Returns
        -------
        row : AnswerRow
        value : object
            As all processes read it: a large one is one copy in memory.

        Raises
        ------
        ValueRefused
            When the value is not data, or cannot be shared by processes; nothing is changed.
        """
        ...

    def fail(
        self,
        function: str,
        key: str,
        fence: int,
        error: BaseException,
        *,
        now: datetime,
        limits: Limits = UNLIMITED,
    ) -> None:
        """
        There is none; who waits for it in other processes hears why.

        A failure counts as an answer of its size: those used longest ago go, as far as the limits say. Its long texts
        are cut.
        """
        ...

    def give_up(self, function: str, key: str, fence: int) -> None:
        """Let another process compute it. Harmless when it is another one's by now."""
        ...

    def invalidate(self, function: str, key: str | None = None) -> None:
        """Forget one answer or all; what computations under way come to does not count any more."""
        ...

    def use(self, function: str, keys: Collection[str], now: datetime) -> None:
        """These were read."""
        ...

    def release(self) -> None:
        """This process stops: let others compute what it has not ended."""
        ...

    def watch_answers(self, noticed: Callable[[str, str], object]) -> None:
        """
        Call ``noticed(function, key)`` when a process may have changed an answer; on whatever thread.

        With the key ``""`` when another process has forgotten all of a function.
        """
        ...
