"""The decorators of functions that run on request: what a dashboard's author calls."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from difflib import get_close_matches
from functools import partial, wraps
from typing import Any, TypeVar

from .errors import RegistrationError, ScheduleError
from .functions import Functions
from .jobs import build_job_policy
from .memo import build_memo_policy
from .task import Retry, Task

F = TypeVar("F", bound=Callable[..., Any])


def named(method: F) -> F:
    """Be called in errors as its users call it: a misspelt option is one of ``ps.memoize()``; the near one is named."""
    method.__qualname__ = f"ps.{method.__name__}"
    options = dict.fromkeys(list(inspect.signature(method).parameters)[1:])

    @wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name in options:
                continue
            near = get_close_matches(name, options, n=1)
            remedy = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(options)}."
            raise TypeError(f"{method.__qualname__}() got an unexpected keyword argument {name!r}. {remedy}")
        return method(*args, **kwargs)

    return checked  # type: ignore[return-value]


class OnRequest:
    """The public decorators ``background`` and ``memoize`` of one runtime."""

    def __init__(self, functions: Functions):
        self._functions = functions

    @named
    def background(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        executor: str = "process",
        timeout: str | float | timedelta | None = None,
        retry: int | Retry = 0,
        durable: bool = False,
        ttl: str | float | timedelta | None = None,
        key: Callable[..., Any] | None = None,
        retrigger: str = "replace",
        on_session_end: str = "cancel",
        result_ttl: str | float | timedelta = "1d",
        name: str | None = None,
    ) -> Any:
        """
        Make a function run in the background, on request: with progress, partial results and cancel.

        Parameters
        ----------
        function : callable
            The function, where the decorator is used bare.
        executor : {"process", "thread", "loop"}
            A worker process, which can be stopped whatever it does; a thread, which cannot, for functions that mostly
            wait; the server's event loop, for an ``async def`` that only waits.
        timeout : period
            A run that takes longer, from its beginning, ends ``timed_out``.
        retry : int or Retry
            How many times a run is tried again that has failed, timed out, or whose process died. A thread's timeout
            is final.
        durable : bool
            Function, arguments and options are on the disk before ``submit`` returns, on an event loop before the run
            begins, and stay until it has ended: when the server dies another process, or the next server, runs it
            again, at least once more. Needs ``ps.config.store = "file:///..."``, a result and arguments that can be
            pickled, and a function that may run twice.
        ttl : period
            Share results: equal calls in flight join, and for this long after the end of a run that succeeded its
            result is given again, to everybody. By default nothing is shared.
        key : callable
            With `ttl`, called as the function is: what it returns says which calls are equal, in place of all
            arguments.
        retrigger : {"replace", "queue", "ignore"}
            What a second start of a session's job does while its run is under way: it cancels that one, waits for
            its end, or is dropped.
        on_session_end : {"cancel", "continue"}
            What becomes of a job's run when its session ends and no other one has attached to it.
        result_ttl : period
            How long a run that has ended can be found by ``function.runs()`` and ``job.attach(id)``.
        name : str
            By default the function's.

        Returns
        -------
        Background
            Or a decorator that makes one.

        Raises
        ------
        RegistrationError, TriggerError
            When the function or an option means nothing.

        Examples
        --------
        >>> import panel_schedule as ps
        >>> @ps.background(executor="thread", timeout="10m")
        ... def total(items):
        ...     return sum(ps.track(items))
        >>> run = total.submit([1, 2, 3])
        >>> run.result(), run.percent
        (6, 100)
        """
        try:
            _require_function(function, "timeout='10m'")
            policy = build_job_policy(
                executor=executor, timeout=timeout, retry=retry, durable=durable, ttl=ttl, retrigger=retrigger,
                on_session_end=on_session_end, result_ttl=result_ttl,
            )  # fmt: skip
        except ScheduleError as error:
            raise _placed(error, name and f"Job {name!r}", "@ps.background") from None
        decorate = partial(self._functions.register_job, policy, name, key)
        return decorate if function is None else decorate(function)

    @named
    def memoize(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        ttl: str | float | timedelta | None = None,
        max_stale: str | float | timedelta = 0,
        after: Task[Any] | Iterable[Task[Any]] = (),
        max_entries: int | None = 128,
        max_bytes: int | None = None,
        key: Callable[..., Any] | None = None,
        executor: str | None = None,
        stale_if_error: bool = True,
        error_ttl: str | float | timedelta = 0,
        name: str | None = None,
    ) -> Any:
        """
        Compute a function once for everybody who asks for the same, in all sessions and processes.

        Equal calls at the same time share one computation. Its answer is fresh for `ttl` after its end; for
        `max_stale` after that it is served at once, while one computation in the background renews it; from then on
        callers wait.

        Parameters
        ----------
        function : callable
            The function, where the decorator is used bare. A generator function shows each value that it yields in
            live views; the answer is the last one, or what it returns.
        ttl : period
            How long an answer is fresh; by default for ever.
        max_stale : period
            By default not at all.
        after : Task or list of Task
            Tasks that the function reads: an answer is good only as long as none of them has a new value, and live
            views compute anew when one has.
        max_entries, max_bytes : int or None
            How many answers, and how many bytes of them, are kept, in each process and in the store that they share.
            Those used longest ago go first. None is no limit.
        key : callable
            Called as the function is: what it returns says which calls are equal, in place of all arguments.
        executor : {"thread", "process", "loop"}
            By default a plain function runs in a thread, be it the caller's own, and an ``async def`` on the server's
            loop. A function that computes for seconds slows no page down in a worker process.
        stale_if_error : bool
            Whether the last answer is served when a new one cannot be had, for a week beyond its lifetime. Live views
            show it as stale, with the error. Not when a task of `after` has a new value.
        error_ttl : period
            How long a failure is given again to those who ask for the same, without another attempt. By default who
            waited shares it, and who comes later tries again.
        name : str
            By default the function's.

        Returns
        -------
        Memoized
            Or a decorator that makes one.

        Raises
        ------
        RegistrationError, TriggerError
            When the function or an option means nothing.

        Examples
        --------
        >>> import panel_schedule as ps
        >>> @ps.memoize(ttl="5m", max_stale="1h")
        ... def filtered(region, year):
        ...     return f"{region} in {year}"
        >>> filtered("north", 2026)
        'north in 2026'
        >>> filtered.entry(year=2026, region="north").value
        'north in 2026'
        """
        try:
            _require_function(function, "ttl='5m'")
            policy = build_memo_policy(
                ttl=ttl, max_stale=max_stale, after=after, max_entries=max_entries, max_bytes=max_bytes,
                executor=executor, stale_if_error=stale_if_error, error_ttl=error_ttl,
            )  # fmt: skip
        except ScheduleError as error:
            raise _placed(error, name and f"Memoized function {name!r}", "@ps.memoize") from None
        decorate = partial(self._functions.register_memo, policy, name, key)
        return decorate if function is None else decorate(function)


def _require_function(function: Any, example: str) -> None:
    if function is not None and not callable(function):
        raise RegistrationError(f"options go by name, as in {example}, and {function!r} is no function.")


def _placed(error: ScheduleError, what: str | None, decorator: str) -> ScheduleError:
    """The error with the place of the decorator, whose function, and with it the name, comes after this."""
    frame = sys._getframe(3)
    return type(error)(f"{what or f'{decorator} in {frame.f_code.co_filename}:{frame.f_lineno}'}: {error}")
