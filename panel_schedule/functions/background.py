"""A background function: what runs on request, once for each who asks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from ..clock import Clock
from ..coordination.history import JOB
from ..coordination.jobs import ANYBODY
from ..errors import RegistrationError, TriggerError
from ..hashing.keys import Keys, signature_of
from ..serialize.checks import require_arguments
from ..serialize.references import references
from ..triggers import Period, in_utc, parse_period
from . import remote
from .registry import require_fitting
from .remote import RemoteRun, function_named
from .run import Run, RunRecord
from .task import ONCE, Concurrency, Retry, Task

P = ParamSpec("P")
T = TypeVar("T")


class Retrigger(StrEnum):
    """What a second start of a session's job does while its first run is under way."""

    REPLACE = "replace"
    QUEUE = "queue"
    IGNORE = "ignore"


class OnSessionEnd(StrEnum):
    """What becomes of a job's run when the session that started it ends."""

    CANCEL = "cancel"
    CONTINUE = "continue"


@dataclass(frozen=True, slots=True)
class JobPolicy:
    """Everything about a background function but its name and code; see ``ps.background`` for the meanings."""

    executor: str = "process"
    timeout: float | None = None
    retry: Retry = ONCE
    durable: bool = False
    ttl: timedelta | None = None
    retrigger: Retrigger = Retrigger.REPLACE
    on_session_end: OnSessionEnd = OnSessionEnd.CANCEL
    result_ttl: timedelta = timedelta(days=1)
    concurrency: Concurrency | None = None


class Host(Protocol):
    """Who runs a background function and shows it."""

    @property
    def dispatcher(self) -> Dispatcher: ...
    @property
    def user(self) -> str | None: ...
    @property
    def clock(self) -> Clock: ...

    def job(self, function: Background[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...
    def history(self, kind: str, name: str) -> list[RunRecord]: ...


class Dispatcher(Protocol):
    """What a background function asks of the layers above."""

    def submit(
        self,
        function: Background[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        user: str | None,
        due_at: datetime | None = None,
    ) -> Run: ...
    def runs(self, function: Background[Any, Any], user: str | None) -> list[Run]: ...


class Background(Generic[P, T]):
    """
    A function that runs in the background, on request. Made by ``ps.background``.

    To call it is a plain call of the plain function.

    Attributes
    ----------
    name : str
    function : callable
        The undecorated function.
    policy : JobPolicy

    Examples
    --------
    >>> import panel_schedule as ps
    >>> @ps.background(executor="thread")
    ... def power(base, exponent=2):
    ...     return base**exponent
    >>> power(3)
    9
    >>> run = power.submit(3, exponent=4)
    >>> run.result()
    81
    >>> run.state
    <RunState.SUCCEEDED: 'succeeded'>
    """

    def __init__(
        self,
        name: str,
        function: Callable[P, T],
        policy: JobPolicy,
        host: Host,
        key: Callable[..., Any] | None = None,
    ):
        self.name = name
        self._host = host
        self.become(function, policy, key)

    def become(self, function: Callable[P, T], policy: JobPolicy, key: Callable[..., Any] | None) -> None:
        """Be this from now on: what it was, defined anew."""
        require_fitting(f"Job {self.name!r}", "background", function, policy.executor, key)
        if key is not None and policy.ttl is None:
            raise RegistrationError(
                f"Job {self.name!r}: key= says which calls share a result, and without ttl= none do. Give a ttl."
            )
        functools.update_wrapper(self, function, updated=())  # its own attributes are not ours
        self.function = function
        self.policy = policy
        self.signature = signature_of(function)
        self.keys = Keys(self.name, function, key)

    def __repr__(self) -> str:
        return f"<Background {self.name!r}>"

    def __reduce__(self) -> Any:
        return function_named, (self.name, self.function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the plain function, here and now."""
        return self.function(*args, **kwargs)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Run[T]:
        """
        Run the function in the background.

        Returns
        -------
        Run
            ``await run`` or ``run.result()`` gives what the function returns; ``run.cancel()`` stops it.

        Raises
        ------
        TypeError
            When the function does not take these arguments.
        ValueRefused
            When an argument belongs to a session, or can be used once, or cannot travel to another process: names
            it. Of arguments that are large and submitted on an event loop to a process it is the run that fails so, a
            moment later.
        ArgumentUnkeyable
            With `ttl`, when an argument has no key.
        """
        if remote.asker is not None:  # of a module that a worker process has imported
            return RemoteRun.submit(self.name, args, kwargs)  # type: ignore[return-value]
        return self.submit_for(self._host.user, args, kwargs)

    def submit_at(self, when: datetime, /, *args: P.args, **kwargs: P.kwargs) -> Run[T]:
        """
        Run the function at a time of the clock, or at once where that is past.

        Until then its run is ``"queued"``, and can be cancelled. With ``durable=True``, and a store that is kept, it
        survives restarts: if no server runs then, it begins with the next one. It shares no result with others,
        whatever ``ttl=`` says.

        Parameters
        ----------
        when : datetime
            Aware.
        *args, **kwargs
            As for `submit`, which says what is raised, too.

        Returns
        -------
        Run

        Raises
        ------
        TriggerError
            When it is no aware datetime.

        Examples
        --------
        >>> from datetime import UTC, datetime
        >>> import panel_schedule as ps
        >>> @ps.background(executor="thread", name="later")
        ... def later():
        ...     return 1
        >>> later.submit_at(datetime(2020, 1, 1, tzinfo=UTC)).result()
        1
        """
        if remote.asker is not None:
            return RemoteRun.submit(self.name, args, kwargs, ("at", when))  # type: ignore[return-value]
        return self.submit_for(self._host.user, args, kwargs, self.due("at", when))

    def submit_in(self, delay: Period, /, *args: P.args, **kwargs: P.kwargs) -> Run[T]:
        """
        Run the function after a while; see `submit_at`.

        Parameters
        ----------
        delay : str, float or timedelta
            ``"10m"``, seconds, or a timedelta.
        *args, **kwargs
            As for `submit`.

        Returns
        -------
        Run

        Raises
        ------
        TriggerError
            When the delay means nothing.
        """
        if remote.asker is not None:
            return RemoteRun.submit(self.name, args, kwargs, ("in", delay))  # type: ignore[return-value]
        return self.submit_for(self._host.user, args, kwargs, self.due("in", delay))

    def due(self, how: str, when: Any) -> datetime:
        """When it is to run that is submitted ``"at"`` a time, or ``"in"`` a while."""
        what = f"Job {self.name!r}: submit_{how}()"
        if how == "at":
            return in_utc(when, f"{what}: its time")
        try:
            return self._host.clock.now() + parse_period(when)
        except (TriggerError, OverflowError) as error:
            raise TriggerError(f"{what} takes a period such as '10m', seconds or a timedelta. {error}") from None

    def submit_for(
        self, user: str | None, args: tuple[Any, ...], kwargs: dict[str, Any], due_at: datetime | None = None
    ) -> Run[T]:
        """`submit`, of a session whose user this is."""
        self.check(args, kwargs)
        return self._host.dispatcher.submit(self, args, kwargs, user, due_at)

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise TypeError unless the function takes these arguments, and they are values."""
        try:
            arguments = self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"Job {self.name!r}: {error}. It is called as {self.name}{self.signature}.") from None
        for name, value in arguments.items():
            if not isinstance(value, Task) and references(value):
                raise TypeError(
                    f"Job {self.name!r}: argument {name!r} is a reference ({type(value).__name__}), and submit() takes "
                    f"values. Pass its value, or let a job take it when it starts: {self.name}.job(...)."
                )
        require_arguments(arguments, f"Job {self.name!r}")

    def job(self, *args: Any, **kwargs: Any) -> Any:
        """
        This session's :class:`Job`: what its buttons start, and what it shows.

        Parameters
        ----------
        *args, **kwargs
            Arguments of the function: values, or references (widgets, params, ``rx`` expressions, tasks) whose
            values at the start are taken. What is missing must come with ``job.start(...)``.
        """
        return self._host.job(self, args, kwargs)

    @property
    def history(self) -> list[RunRecord]:
        """
        The last runs that have ended, of all sessions and processes, newest first.

        Raises
        ------
        StoreError
            When a shared store cannot be read now.
        """
        return self._host.history(JOB, self.name)

    def runs(self, user: str | None = ANYBODY) -> list[Run]:
        """
        The runs under way and the last 50 that ended, of all sessions and processes, newest first.

        Older ones are found by their ids, until their ``result_ttl`` is over.

        Parameters
        ----------
        user : str or None
            Only those that a session of this user has started: ``pn.state.user``, where a page shows them. None means
            those that were started without a login; by default those of everybody, which no page should show.

        Returns
        -------
        list of Run
        """
        runs = self._host.dispatcher.runs(self, user)
        return runs if user is ANYBODY else [run for run in runs if run.user == user]
