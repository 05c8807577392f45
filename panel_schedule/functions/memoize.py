"""A memoized function: computed once for everybody who asks for the same."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypeVar

from ..clock import Clock
from ..coordination.answers import LAST_RESORT, NOT_KEPT, UNLIMITED, Basis, Limits, serves
from ..coordination.history import MEMO
from ..errors import NotReady, RegistrationError
from ..hashing.fingerprint import fingerprint
from ..hashing.keys import Keys, digested, signature_of
from ..serialize.copies import own_copy
from ..serialize.entry import Entry
from ..serialize.references import references
from ..session import without_session
from . import remote
from .calls import is_async
from .live import LiveAnswer
from .lru import LRU, Answer, Watched
from .registry import duration, require_fitting
from .run import Run, RunRecord
from .task import ONCE, Concurrency, Retry, Task

P = ParamSpec("P")
T = TypeVar("T")

NEVER = float("inf")

# In seconds, what a `ttl=` means that returns None: of a record, whose text has no infinite numbers.
FOR_EVER = 1e10

_NONE = timedelta()


@dataclass(frozen=True, slots=True)
class MemoPolicy:
    """Everything about a memoized function but its name and code; see ``ps.memoize`` for the meanings."""

    # Or what says it of an answer.
    ttl: timedelta | Callable[[Any], Any] | None = None
    max_stale: timedelta = timedelta()
    after: tuple[Task[Any], ...] = ()
    limits: Limits = UNLIMITED
    executor: str | None = None
    timeout: float | None = None
    retry: Retry = ONCE
    stale_if_error: bool = True
    error_ttl: timedelta = timedelta()
    ignore: tuple[str, ...] = ()
    keep: Callable[[Any], Any] | None = None
    concurrency: Concurrency | None = None


class MemoStats(NamedTuple):
    """
    What ``function.stats`` is: of this process, since its start.

    Attributes
    ----------
    hits : int
        How often an answer was there.
    misses : int
        How often one was computed, or could not be.
    """

    hits: int
    misses: int


class KeptAnswers(Protocol):
    """What is kept, as a memoized function sees it."""

    def use(self, memo: Memoized[Any, Any], key: Hashable, answer: Answer) -> None: ...
    def invalidate(self, memo: Memoized[Any, Any], key: Hashable | None = None) -> None: ...
    def unwatch(self, watched: Watched, changed: Callable[[], None]) -> None: ...


class SharedAnswers(Protocol):
    """What there is, here or in a store."""

    def entry(self, memo: Memoized[Any, Any], key: Hashable) -> Entry | None: ...


class SingleFlight(Protocol):
    """What a memoized function asks of the layers above."""

    @property
    def kept(self) -> KeptAnswers: ...
    @property
    def shared(self) -> SharedAnswers: ...
    def call(self, memo: Memoized[Any, Any], key: Hashable, args: Any, kwargs: Any) -> Any: ...
    async def awaited(self, memo: Memoized[Any, Any], key: Hashable, args: Any, kwargs: Any) -> Any: ...
    def submit(self, memo: Memoized[Any, Any], args: Any, kwargs: Any, refresh: bool = False) -> Run: ...


class Host(Protocol):
    """Who computes, keeps and shows the answers."""

    @property
    def clock(self) -> Clock: ...
    @property
    def single_flight(self) -> SingleFlight: ...

    def memo_view(self, memo: Memoized[Any, Any], args: Any, kwargs: Any) -> Any: ...
    def history(self, kind: str, name: str) -> list[RunRecord]: ...
    def ended(self, kind: str, name: str) -> int: ...


class Memoized(Generic[P, T]):
    """
    A function whose answers are kept, for all sessions and processes. Made by ``ps.memoize``.

    To call it gives the answer that there is, and else computes it; equal calls at the same time share one
    computation. An answer that is a data frame or series is a shallow copy of the caller's own; any other one is the
    shared object itself: read-only by convention.

    Attributes
    ----------
    name : str
    function : callable
        The undecorated function.
    policy : MemoPolicy

    Examples
    --------
    >>> import panel_schedule as ps
    >>> @ps.memoize(ttl="5m")
    ... def squared(number):
    ...     print("computes")
    ...     return number**2
    >>> squared(3)
    computes
    9
    >>> squared(number=3)
    9
    >>> squared.invalidate(3)
    >>> squared(3)
    computes
    9
    """

    def __init__(
        self,
        name: str,
        function: Callable[P, T],
        policy: MemoPolicy,
        host: Host,
        key: Callable[..., Any] | None = None,
    ):
        self.name = name
        self._host = host
        self.renew(LRU(policy.limits))
        self.become(function, policy, key)

    def renew(self, lru: LRU) -> None:
        """For the runtime alone: have these answers at hand, by the clock that it has now."""
        self.lru = lru
        self._answers = lru.answers
        self._now = self._host.clock.monotonic

    def become(self, function: Callable[P, T], policy: MemoPolicy, key: Callable[..., Any] | None) -> None:
        """Be this from now on: what it was, defined anew."""
        is_coroutine = is_async(function)
        require_fitting(f"Memoized function {self.name!r}", "memoize", function, policy.executor, key)
        functools.update_wrapper(self, function, updated=())  # its own attributes are not ours
        if is_coroutine:
            _mark(self)
        self.function = function
        self.policy = policy
        self.signature = signature_of(function)
        if unknown := [name for name in policy.ignore if name not in self.signature.parameters]:
            raise RegistrationError(
                f"Memoized function {self.name!r}: ignore= names {unknown[0]!r}, which is no parameter of it. It is "
                f"called as {self.name}{self.signature}."
            )
        if key is not None and policy.ignore:
            raise RegistrationError(
                f"Memoized function {self.name!r}: key= says what counts of all arguments, so that ignore= has nothing "
                "to say. Give one of them."
            )
        self.keys = Keys(self.name, function, key, policy.ignore)
        self.executor = policy.executor or ("loop" if is_coroutine else "thread")
        # What was computed by other code is no answer of this one.
        ignored = [policy.ignore] if policy.ignore else []
        self.fingerprint = fingerprint(function, key, *(task.name for task in policy.after), *ignored)
        self.lru.limits = policy.limits
        self._key = self.keys.local
        self._is_async = is_coroutine
        self._after = policy.after

    def __repr__(self) -> str:
        return f"<Memoized {self.name!r}>"

    def __panel__(self) -> Any:
        raise TypeError(
            f"{self!r} is a function of arguments, and a page can show what it gives: {self.name}.view(...)."
        )

    def __reduce__(self) -> Any:
        return remote.memo_named, (self.name, self._is_async)

    # ------------------------------------------------------------ asking

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """
        The answer; of an ``async def`` a coroutine that gives it.

        On the thread of a running event loop a plain function is computed elsewhere, and the loop waits for it.

        Raises
        ------
        TypeError
            When the function does not take these arguments.
        ArgumentUnkeyable
            When an argument has no key.
        """
        if self._is_async:
            # It begins when it is awaited.
            return self._awaited(*self.keys.now(args, kwargs))  # type: ignore[return-value]
        key = self._key(args, kwargs)
        answer = self._answers.get(key)
        if answer is None or answer.fresh_until <= self._now() or (self._after and not self.is_current(answer)):
            if remote.asker is not None:  # of a module that a worker process has imported
                return remote.ask("memo", self.name, (args, kwargs))  # type: ignore[no-any-return]
            return self._host.single_flight.call(self, key, args, kwargs)  # type: ignore[no-any-return]
        return self._take(key, answer)  # type: ignore[no-any-return]

    def _take(self, key: Hashable, answer: Answer) -> Any:
        if answer.told:
            self.lru.used(key)
        else:
            self._host.single_flight.kept.use(self, key, answer)
        return own_copy(answer.value) if answer.is_frame else answer.value

    async def _awaited(self, args: Any, kwargs: Any) -> Any:
        if remote.asker is not None:
            return remote.ask("memo", self.name, (args, kwargs))
        key = self._key(args, kwargs)
        answer = self._answers.get(key)
        if answer is None or answer.fresh_until <= self._now() or (self._after and not self.is_current(answer)):
            return await self._host.single_flight.awaited(self, key, args, kwargs)
        return self._take(key, answer)

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Run[T]:
        """
        The answer without blocking.

        Returns
        -------
        Run
            Of this caller's own: ``await run`` or ``run.result()`` gives the answer, ``run.cancel()`` gives up for
            this caller alone. What nobody waits for any more before it has begun never begins.

        Raises
        ------
        TypeError, ArgumentUnkeyable
            As a call does; of large arguments on an event loop it is the run that fails so.
        """
        return self._host.single_flight.submit(self, args, kwargs)

    def refresh(self, /, *args: P.args, **kwargs: P.kwargs) -> Run[T]:
        """
        Compute the answer anew, whatever is there, or join the computation under way. Live views get it, too.

        Returns
        -------
        Run
        """
        return self._host.single_flight.submit(self, args, kwargs, refresh=True)

    def view(self, /, *args: Any, **kwargs: Any) -> LiveAnswer[T | None]:
        """
        This session's :class:`MemoView`: the live answer to arguments that may change.

        Parameters
        ----------
        *args, **kwargs
            Arguments of the function: values, or references (widgets, params, ``rx`` expressions, tasks). A change
            of one computes in the background, and the newest ones win.
        """
        return self._host.memo_view(self, args, kwargs)  # type: ignore[no-any-return]

    def rx(self, /, *args: Any, **kwargs: Any) -> Any:
        """The live answer as a reactive expression; it is None until there is one. Arguments as of `view`."""
        return self.view(*args, **kwargs).rx()

    # ------------------------------------------------------------ what is kept

    def entry(self, /, *args: P.args, **kwargs: P.kwargs) -> Entry | None:
        """
        The answer that is kept for these arguments, with its version and time.

        Returns
        -------
        Entry or None
            Fresh or not; None where there is none.

        Raises
        ------
        TypeError, ArgumentUnkeyable
            As a call does.
        StoreError
            When a shared store cannot be read now.
        """
        return self._host.single_flight.shared.entry(self, self._key(args, kwargs))

    @property
    def history(self) -> list[RunRecord]:
        """
        The last computations, of all sessions and processes, newest first.

        Raises
        ------
        StoreError
            When a shared store cannot be read now.
        """
        return self._host.history(MEMO, self.name)

    @property
    def stats(self) -> MemoStats:
        """How often an answer was there, and how often it was computed; of this process alone."""
        return MemoStats(self.lru.hits, self._host.ended(MEMO, self.name))

    def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """
        Forget the answer to these arguments, in all processes: what it was made of has changed.

        Who asks from now on waits for a new one, and live views get it. What is being computed right now goes to
        those who wait for it, and is not kept.

        Raises
        ------
        TypeError, ArgumentUnkeyable
            As a call does.
        StoreError
            When a shared store cannot forget it now, as it does as soon as it can; not on an event loop.
        """
        self._host.single_flight.kept.invalidate(self, self._key(args, kwargs))

    def clear(self) -> None:
        """Forget all answers, in all processes, as `invalidate` does each of them."""
        self._host.single_flight.kept.invalidate(self)

    # ------------------------------------------------------------ for the layers above

    @property
    def missing(self) -> Task[Any] | None:
        """A task of ``after=`` that has nothing yet that an answer could be made of."""
        return next((task for task in self._after if task.entry is None and task.policy.default is None), None)

    def require_values(self, args: Any, kwargs: Any) -> None:
        """
        Raise unless there is something that an answer can be made of.

        Raises
        ------
        NotReady
            When a task of ``after=`` has no value yet.
        TypeError
            When an argument is a widget or another reference.
        """
        if (task := self.missing) is not None:
            raise NotReady(
                f"{self.name}() is made from the task {task.name!r}, which has no value yet. Wait for it: "
                f"{task.name}.wait_ready(), or `await {task.name}.ready()`; and let a page show {self.name}.view(...), "
                "which waits by itself. A server has the value before its first page when the task's module is named "
                "in --setup."
            )
        for value in (*args, *kwargs.values()):
            if references(value):
                raise TypeError(
                    f"{self.name}(): an argument is a reference ({type(value).__name__}), and a call takes values. "
                    f"Pass the value that it has now, or let a live answer follow it: {self.name}.view(...)."
                )

    @property
    def basis(self) -> Basis:
        """The versions that the tasks of ``after=`` have now."""
        return tuple([0 if (entry := task.entry) is None else entry.version for task in self._after])

    def is_current(self, answer: Answer) -> bool:
        """Whether no task of ``after=`` has a newer value than the answer was computed for."""
        return serves(answer.basis, self.basis)

    def digest(self, key: Hashable) -> str:
        """The key of a call for a store that several processes share."""
        return sha256(f"{self.fingerprint} {digested(key)}".encode()).hexdigest()

    def own_ttl(self, value: Any) -> float | None:
        """
        For how many seconds an answer is fresh, as its function says of it; None: as of all; or NOT_KEPT.

        Raises
        ------
        TriggerError
            When that is no duration. What ``keep=`` or ``ttl=`` itself raises is raised.
        """
        keep, ttl = self.policy.keep, self.policy.ttl
        if keep is not None and not self._said("keep", keep, value, bool):
            return NOT_KEPT
        if not callable(ttl):
            return None
        given = self._said("ttl", ttl, value, lambda told: None if told is None else duration("ttl", told))
        return FOR_EVER if given is None else float(given.total_seconds())

    def _said(self, option: str, function: Callable[[Any], Any], value: Any, meaning: Callable[[Any], Any]) -> Any:
        what = f"{option}= of memoized function {self.name!r}"
        try:
            return meaning(without_session(f"The {what}", function, value))
        except BaseException as error:
            error.add_note(f"That comes of the {what}, for an answer that was computed.")
            raise

    def until(self, age: float, own: float | None = None) -> tuple[float, float, float]:
        """
        Until when, on the monotonic clock, an answer of this age in seconds is fresh, good and kept.

        Parameters
        ----------
        own : float or None
            What `own_ttl` has said of it.
        """
        if (ttl := self._lifetime(own)) is None:
            return NEVER, NEVER, NEVER
        fresh = self._now() - age + ttl
        good = fresh + self.policy.max_stale.total_seconds()
        return fresh, good, good + (LAST_RESORT.total_seconds() if self.policy.stale_if_error else 0)

    def lasts(self, own: float | None = None) -> timedelta | None:
        """How long after its computation an answer may be of use; None without end."""
        if (ttl := self._lifetime(own)) is None or ttl >= FOR_EVER:
            return None
        return timedelta(seconds=ttl) + self.policy.max_stale + (LAST_RESORT if self.policy.stale_if_error else _NONE)

    def _lifetime(self, own: float | None) -> float | None:
        ttl = self.policy.ttl
        if isinstance(ttl, timedelta):
            return ttl.total_seconds()
        if ttl is None or own == NOT_KEPT:  # nor does one become stale that is shown, and not kept
            return None
        return own or 0.0  # where nothing was said of it, it is of a time when `ttl` was another one


def _mark(memo: Any) -> None:
    """Let `inspect` and `asyncio` know that a call gives a coroutine: ``pn.bind`` awaits it then."""
    if hasattr(inspect, "markcoroutinefunction"):
        inspect.markcoroutinefunction(memo)
    else:
        memo._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
        # What looks like a function is one for `inspect`, and it looks at the flags of its code.
        memo.__code__, memo.__defaults__, memo.__kwdefaults__ = Memoized._awaited.__code__, None, None
