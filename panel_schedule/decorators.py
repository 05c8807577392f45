"""The public functions: what a dashboard's author calls."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from .alerts.alert import Policy as AlertPolicy
from .alerts.channels import channel_of
from .coordination.alerts import Terms
from .coordination.answers import Limits
from .engine.hooks import EVENTS, Handler
from .errors import RegistrationError, ScheduleError, TriggerError
from .functions.background import Background, JobPolicy, OnSessionEnd, Retrigger
from .functions.calls import is_async
from .functions.family import Family
from .functions.memoize import Memoized, MemoPolicy
from .functions.registry import (
    Registry,
    as_retry,
    choice,
    choose_trigger,
    concurrency,
    duration,
    flag,
    isolation,
    limit,
    names,
    of_answer,
    panels_trigger,
    require_executor,
    same_function,
    takes,
    tasks_of,
)
from .functions.run import Run, refuse_to_block
from .functions.task import FirstRun, Overlap, Policy, Retry, Task, WhenIdle
from .functions.typed import BackgroundDecorator, MemoDecorator, TaskDecorator
from .hashing.content import has_content, set_hasher
from .hashing.fingerprint import fingerprint
from .runtime import Runtime
from .serialize.checks import require_data
from .serialize.errors import traceback_text
from .server.shutdown import Stopping
from .shared_values import NamedValues
from .triggers import After, Computed, Dates, Every, Schedule, Trigger
from .views.data_health import DataHealth

if TYPE_CHECKING:
    from .functions.typed import AsyncBackground, AsyncMemoized, AsyncSteppedBackground, SteppedBackground

log = logging.getLogger("panel_schedule")

P = ParamSpec("P")
T = TypeVar("T")

F = TypeVar("F", bound=Callable[..., Any])

# What an alert may be of.
Watched = Task[Any] | Background[Any, Any] | Memoized[Any, Any] | str


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


def _require_function(function: Any, example: str) -> None:
    if function is not None and not callable(function):
        raise RegistrationError(f"options go by name, as in {example}, and {function!r} is no function.")


def _placed(error: ScheduleError, what: str | None, decorator: str) -> ScheduleError:
    """The error with the place of the decorator, whose function, and with it the name, comes after this."""
    frame = sys._getframe(3)
    return type(error)(f"{what or f'{decorator} in {frame.f_code.co_filename}:{frame.f_lineno}'}: {error}")


def _of_clocks(option: str, value: Any, trigger: Trigger) -> timedelta | None:
    """The time that an option means which is for slots of a clock alone."""
    if value is not None and isinstance(trigger, After):
        raise RegistrationError(
            f"{option}={value!r} is about the slots of a clock, and this task runs {trigger}. Leave it out."
        )
    return None if value is None else duration(option, value)


def _not_longer(jitter: timedelta, trigger: Trigger) -> timedelta:
    if isinstance(trigger, Every) and jitter > trigger.period:
        raise RegistrationError(
            f"jitter={jitter} is longer than the period of {trigger.period}: a slot would come after the next one. "
            "Make it shorter."
        )
    return jitter


def is_period_of(one: Schedule, other: Schedule) -> bool:
    """Whether both are every so often, from whenever."""
    return isinstance(one, Every) and isinstance(other, Every) and one.period == other.period


def _names_of(tasks: Any) -> frozenset[str] | None:
    """Of the functions of an alert; a name may be that of one to come."""
    if tasks is None:
        return None
    several = isinstance(tasks, Iterable) and not isinstance(tasks, (str, Task, Family))
    kinds = (Task, Background, Memoized)
    names = [each.name if isinstance(each, kinds) else each for each in (tasks if several else [tasks])]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise RegistrationError(
            f"ps.alert(tasks={tasks!r}): it is a task or its name, the same of a background or memoized function, or a "
            "list of these."
        )
    return frozenset(names)


class Front:
    """
    The public functions of one runtime. The package has one; a test may make others.

    Attributes
    ----------
    tasks : mapping of str to Task
        Live, and read-only.
    store : NamedValues
    DataHealth : type
        The badge of the pages of this runtime.
    """

    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self.tasks: Registry = runtime.tasks
        self.store = NamedValues(
            lambda: runtime.service.store,
            lambda: runtime.views,
            runtime.clock,
            lambda call: runtime.service.outbox.aside(call),
            lambda function: runtime.single_flight.shared.entries(function),
        )
        bound = {"_of_page": staticmethod(runtime.page), "__doc__": DataHealth.__doc__, "__module__": __package__}
        self.DataHealth: type[DataHealth] = type("DataHealth", (DataHealth,), bound)

    @overload
    def background(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncBackground[P, T]: ...
    @overload
    def background(self, function: Callable[P, AsyncIterator[T]], /) -> AsyncSteppedBackground[P, T]: ...
    @overload
    def background(self, function: Callable[P, Iterator[T]], /) -> SteppedBackground[P, T]: ...
    @overload
    def background(self, function: Callable[P, T], /) -> Background[P, T]: ...
    @overload
    def background(
        self,
        function: None = None,
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
        max_running: int | None = None,
        group: str | None = None,
        name: str | None = None,
    ) -> BackgroundDecorator: ...
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
        max_running: int | None = None,
        group: str | None = None,
        name: str | None = None,
    ) -> Any:
        """
        Make a function run in the background, on request: with progress, partial results and cancel.

        Parameters
        ----------
        function : callable
            The function, where the decorator is used bare.
        executor : {"process", "thread", "loop", "celery", "dask"}
            A worker process, which can be stopped whatever it does; a thread, which cannot, for functions that mostly
            wait; the server's event loop, for an ``async def`` that only waits; a worker of ``ps.config.celery``, or of
            the Dask cluster ``ps.config.dask``.
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
            Share results: equal calls in computation join, and for this long after the end of a run that succeeded its
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
        max_running : int
            How many runs of the function go at the same time, in all processes that share the store; others wait. By
            default as many as its executor has places for.
        group : str
            The same for all functions of a group, as ``ps.config.groups`` says.
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
            require_executor(executor)
            if ttl is not None and duration("ttl", ttl) > duration("result_ttl", result_ttl):
                raise TriggerError(
                    f"ttl={ttl!r} is longer than result_ttl={result_ttl!r}, after which a result is gone."
                )
            policy = JobPolicy(
                executor=executor,
                timeout=None if timeout is None else duration("timeout", timeout).total_seconds(),
                retry=as_retry(retry),
                durable=flag("durable", durable),
                ttl=None if ttl is None else duration("ttl", ttl),
                retrigger=choice(Retrigger, "retrigger", retrigger),
                on_session_end=choice(OnSessionEnd, "on_session_end", on_session_end),
                result_ttl=duration("result_ttl", result_ttl),
                concurrency=concurrency(max_running, group),
            )
        except ScheduleError as error:
            raise _placed(error, name and f"Job {name!r}", "@ps.background") from None
        decorate = partial(self._runtime.register_job, policy, name, key)
        return decorate if function is None else decorate(function)

    @overload
    def memoize(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncMemoized[P, T]: ...
    @overload
    def memoize(self, function: Callable[P, AsyncIterator[T]], /) -> AsyncMemoized[P, T]: ...
    @overload
    def memoize(self, function: Callable[P, Iterator[T]], /) -> Memoized[P, T]: ...
    @overload
    def memoize(self, function: Callable[P, T], /) -> Memoized[P, T]: ...
    @overload
    def memoize(
        self,
        function: None = None,
        /,
        *,
        ttl: str | float | timedelta | Callable[[Any], Any] | None = None,
        max_stale: str | float | timedelta = 0,
        after: Task[Any] | Iterable[Task[Any]] = (),
        max_entries: int | None = 128,
        max_bytes: int | None = None,
        key: Callable[..., Any] | None = None,
        ignore: str | Iterable[str] = (),
        executor: str | None = None,
        timeout: str | float | timedelta | None = None,
        retry: int | Retry = 0,
        stale_if_error: bool = True,
        error_ttl: str | float | timedelta = 0,
        keep: Callable[[Any], Any] | None = None,
        max_running: int | None = None,
        group: str | None = None,
        name: str | None = None,
    ) -> MemoDecorator: ...
    @named
    def memoize(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        ttl: str | float | timedelta | Callable[[Any], Any] | None = None,
        max_stale: str | float | timedelta = 0,
        after: Task[Any] | Iterable[Task[Any]] = (),
        max_entries: int | None = 128,
        max_bytes: int | None = None,
        key: Callable[..., Any] | None = None,
        ignore: str | Iterable[str] = (),
        executor: str | None = None,
        timeout: str | float | timedelta | None = None,
        retry: int | Retry = 0,
        stale_if_error: bool = True,
        error_ttl: str | float | timedelta = 0,
        keep: Callable[[Any], Any] | None = None,
        max_running: int | None = None,
        group: str | None = None,
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
        ttl : period or callable
            How long an answer is fresh; by default for ever. Or a function of the answer that says so: it returns a
            period, or None for ever.
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
        ignore : str or iterable of str
            Parameters that do not count, a connection say. Those whose names begin with an underscore do not, either.
            Calls that differ in these alone share the answer that the first of them has computed, with its connection.
        executor : {"thread", "process", "loop", "celery", "dask"}
            By default a plain function runs in a thread, be it the caller's own, and an ``async def`` on the server's
            loop. A function that computes for seconds slows no page down in a worker process, or in a worker of
            ``ps.config.celery`` or ``ps.config.dask``.
        timeout : period
            A computation that takes longer has failed, for all who wait. A coroutine is cancelled and a worker process
            ended; a thread's function is abandoned, its value dropped, and it never runs on a caller's own thread.
        retry : int or Retry
            How many times a computation is tried again that has failed, timed out, or whose process died, before those
            who wait hear of it; with what pauses, says a `Retry`. A thread's timeout is final.
        stale_if_error : bool
            Whether the last answer is served when a new one cannot be had, for a week beyond its lifetime. Live views
            show it as stale, with the error. Not when a task of `after` has a new value.
        error_ttl : period
            How long a failure is given again to those who ask for the same, without another attempt. By default who
            waited shares it, and who comes later tries again.
        keep : callable
            A function of the answer: where it returns what is false, the answer is for those who wait for it and not
            kept, ``keep=lambda answer: answer is not None``. What was kept before goes as well.
        max_running : int
            How many computations of the function go at the same time, in all processes that share the store; others
            wait. None runs on a caller's own thread then.
        group : str
            The same for all functions of a group, as ``ps.config.groups`` says.
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
            if executor is not None:
                require_executor(executor)
            stale = duration("max_stale", max_stale, zero=True)
            if stale and ttl is None:
                raise TriggerError(f"max_stale={max_stale!r} begins when ttl= is over, and there is none. Give a ttl.")
            policy = MemoPolicy(
                ttl=of_answer("ttl", ttl) if callable(ttl) else None if ttl is None else duration("ttl", ttl),
                max_stale=stale,
                after=tasks_of("after", after),
                limits=Limits(limit("max_entries", max_entries), limit("max_bytes", max_bytes)),
                executor=executor,
                timeout=None if timeout is None else duration("timeout", timeout).total_seconds(),
                retry=as_retry(retry),
                stale_if_error=flag("stale_if_error", stale_if_error),
                error_ttl=duration("error_ttl", error_ttl, zero=True),
                ignore=names("ignore", ignore),
                keep=None if keep is None else of_answer("keep", keep),
                concurrency=concurrency(max_running, group),
            )
        except ScheduleError as error:
            raise _placed(error, name and f"Memoized function {name!r}", "@ps.memoize") from None
        decorate = partial(self._runtime.register_memo, policy, name, key)
        return decorate if function is None else decorate(function)

    @named
    def hasher(self, kind: type, function: Callable[[Any], Any], /) -> None:
        """
        Say what counts of all instances of a type in the arguments of memoized functions, and of jobs with ``ttl=``.

        It holds for subclasses, too, unless one has its own, as with `functools.singledispatch`; an instance of another
        class is another argument all the same. A second one for a type takes the place of the first.

        Parameters
        ----------
        kind : type
        function : callable
            ``function(instance)``, quick and without side effects: what it returns, any data, makes the key.

        Raises
        ------
        RegistrationError
            When that is no type or function, or plain data, which always counts in full.

        Examples
        --------
        >>> import panel_schedule as ps
        >>> class Warehouse:
        ...     def __init__(self, url):
        ...         self.url, self.calls = url, 0
        >>> ps.hasher(Warehouse, lambda warehouse: warehouse.url)
        >>> @ps.memoize
        ... def tables(warehouse):
        ...     print("asks", warehouse.url)
        ...     return ["sales"]
        >>> tables(Warehouse("sql://here")), tables(Warehouse("sql://here"))
        asks sql://here
        (['sales'], ['sales'])
        """
        if not isinstance(kind, type):
            raise RegistrationError(f"ps.hasher({kind!r}, ...): it takes a class first, of whose instances it is.")
        if not takes(function, 1) or is_async(function):
            raise RegistrationError(
                f"ps.hasher({kind.__qualname__}, {function!r}): it takes a plain function second, which returns what "
                "counts of an instance."
            )
        if has_content(kind):
            raise RegistrationError(
                f"ps.hasher({kind.__qualname__}, ...): plain data counts in full. Name the class that you mean, or a "
                "subclass of your own; of single arguments say what counts with key=, or nothing with ignore=."
            )
        set_hasher(kind, function, fingerprint(function))

    @named
    def schedule(
        self,
        when: Any = None,
        /,
        *,
        period: str | float | timedelta | None = None,
        cron: str | None = None,
        at: Any = None,
        after: Task[Any] | Iterable[Task[Any]] | None = None,
        timezone: str | None = None,
        name: str | None = None,
        first_run: str | None = None,
        executor: str | None = None,
        timeout: str | float | timedelta | None = None,
        retry: int | Retry = 0,
        overlap: str = "skip",
        catch_up: bool = True,
        misfire_grace: str | float | timedelta | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        skip: Any = None,
        jitter: str | float | timedelta | None = None,
        when_idle: str = "run",
        needs: Task[Any] | Iterable[Task[Any]] = (),
        default: Any = None,
        stale_after: str | float | timedelta | None = None,
        isolate: bool | None = None,
        each: Iterable[str] | Callable[[], Any] | Task[Any] | None = None,
        group: str | None = None,
    ) -> TaskDecorator:
        """
        Run a function on a schedule, once for every visitor.

        Exactly one of `when`, `period`, `cron`, `at` and `after` says when.

        Parameters
        ----------
        when : str, timedelta, datetime, list of datetime or Trigger
            A period, a cron expression, dates, or a trigger: of ``panel_schedule.triggers``, or of your own, which is
            anything with a ``next_after``. A list of triggers means any of them.
        period : str, float or timedelta
            ``"30s"``, ``"1h30m"``, ``"1d"``, ``"5 minutes"``, seconds. The slots stand on the Unix
            epoch: ``"1d"`` is midnight in UTC. For local days use `cron`.
        cron : str
            5 fields; 6 with seconds first; or ``@daily`` and the like. Needs a time zone.
        at : datetime, iterable of datetime, or callable
            Aware dates, or ``f(now_utc)`` that returns the next one, None after the last.
        after : Task or list of Task
            Whenever one of them has a new final value. Several within one wave cause one run. Never
            skips the newest value, whatever `overlap` says.
        timezone : str
            IANA name, for `cron`, `start`, `end` and `skip`; by default ``ps.config.timezone``.
        name : str
            By default the function's.
        first_run : {"wait", "background", "skip"}
            ``"wait"``: no page is built before the first value, and the server stops when it cannot be
            had. ``"background"``: serve at once. ``"skip"``: wait for the first slot. By default
            ``"wait"``, but ``"skip"`` for `at`.
        executor : {"loop", "thread", "process", "celery", "dask"}
            By default an ``async def`` runs on the server's loop and a plain function in a thread. A function that
            computes for seconds belongs into a worker process: there it slows no page down, can be stopped
            whatever it does, and takes nothing with it when it crashes; or into a worker of ``ps.config.celery`` or
            ``ps.config.dask``.
        timeout : period
            A run that takes longer ends ``timed_out``. A thread's function cannot be interrupted: it is
            abandoned, what it still publishes is dropped, and slots are skipped until it returns.
        retry : int or Retry
            How many times a failed run is tried again. A thread's timeout is final.
        overlap : {"skip", "queue", "replace"}
            What a slot does while the task still runs. ``"queue"`` keeps one, the newest.
        catch_up : bool
            Whether slots that were missed lead to one late run, of the latest. A slot counts as missed
            when it is more than 30 s late.
        misfire_grace : period
            How late a slot may begin; one that is later is skipped, as "missed". By default any that is caught up may,
            and 30 s without `catch_up`.
        start, end : datetime
            No slot before and after these, which may themselves be one. Aware, or in the `timezone`.
        skip : set of date, or callable
            The days on which nothing runs, in the `timezone`; or ``skip(date)``, which says whether it is one of them.
        jitter : period
            Each slot begins later by a part of this, which looks like chance and is the same in every process. Its key
            stays what it is.
        when_idle : {"run", "skip"}
            ``"skip"``: no refresh while nobody watches; the first viewer of a stale value causes one.
        needs : Task or list of Task
            Tasks whose values for the same slot must be there first.
        default : object
            What the task is before its first value.
        stale_after : period
            The age at which a value is stale. By default it is stale when the last run failed or two
            slots passed without a new value.
        isolate : bool, optional
            By default a data frame or series is read as a shallow copy of the reader's own (copy-on-write; before
            pandas 3 only new columns are its own), and any other value is the shared object itself. True: each
            ``task()`` is a private copy-on-write view of whatever it is. False: the very object, always.
        each : iterable of str, callable, or Task
            The function takes a key, and each of these keys has a task: they are a :class:`Family`. A function that
            lists them is asked at first and before each slot, by one process for all; of a task the value lists them.
            All other options hold for each of its tasks.
        group : str
            Of all functions of it, in all processes that share the store, only so many runs go at the same time as
            ``ps.config.groups`` says; others wait.

        Returns
        -------
        callable
            A decorator that turns a function into a :class:`Task`, or with `each` into a :class:`Family`. A generator
            function publishes each value that it yields.

        Raises
        ------
        RegistrationError
            When the function or an option cannot be scheduled.
        TriggerError
            When the schedule means nothing.

        Examples
        --------
        >>> import panel_schedule as ps
        >>> @ps.schedule(period="15m", first_run="skip")
        ... def sales():
        ...     return 100
        >>> @ps.schedule(after=sales)
        ... def doubled():
        ...     return sales() * 2
        >>> ps.tasks["doubled"]
        <Task 'doubled': after sales>
        """
        try:
            trigger = choose_trigger(
                when, period=period, cron=cron, at=at, after=after, timezone=timezone,
                default_timezone=self._runtime.config.timezone, start=start, end=end, skip=skip,
            )  # fmt: skip
            if executor is not None:
                require_executor(executor)
            if first_run is None:
                # Dates are appointments: running at some other time as well is nobody's expectation.
                first_run = FirstRun.SKIP if isinstance(trigger, (Dates, Computed)) else FirstRun.WAIT
            require_data(default, "default=")
            policy = Policy(
                trigger,
                executor=executor,
                timeout=None if timeout is None else duration("timeout", timeout).total_seconds(),
                retry=as_retry(retry),
                overlap=choice(Overlap, "overlap", overlap),
                first_run=choice(FirstRun, "first_run", first_run),
                catch_up=flag("catch_up", catch_up),
                misfire_grace=_of_clocks("misfire_grace", misfire_grace, trigger),
                jitter=_not_longer(_of_clocks("jitter", jitter, trigger) or timedelta(), trigger),
                when_idle=choice(WhenIdle, "when_idle", when_idle),
                needs=tasks_of("needs", needs),
                default=default,
                stale_after=None if stale_after is None else duration("stale_after", stale_after),
                isolate=isolation(isolate),
                concurrency=concurrency(None, group),
                given=self._given(trigger),
            )
        except ScheduleError as error:
            raise _placed(error, name and f"Task {name!r}", "@ps.schedule") from None
        self.tasks.warn_of(trigger)
        register: Any = self._runtime.register if each is None else partial(self._runtime.register_family, each)
        return partial(register, policy, name)

    def _given(self, trigger: Trigger) -> datetime | None:
        return self._runtime.clock.now() if isinstance(trigger, (Dates, Computed)) else None

    @named
    def schedule_task(
        self,
        name: str,
        callback: Callable[[], Any],
        at: Any = None,
        period: str | timedelta | None = None,
        cron: str | None = None,
        threaded: bool = False,
    ) -> Task[Any]:
        """
        Schedule a callback the way ``pn.state.schedule_task`` does; a drop-in for it.

        Differs from ``ps.schedule`` where Panel does: a naive `at` is local time and one of a callable
        is UTC, a cron expression is read in UTC with the seconds last, a `period` counts from `at`
        or from now, and a plain function runs on the event loop.

        Parameters
        ----------
        name : str
            Another callback under a taken name is ignored, with a warning.
        callback : callable
        at : datetime, iterator of datetime, or callable, optional
        period : str or timedelta, optional
            Without `at` the first run is at once.
        cron : str, optional
        threaded : bool
            Run a plain function in a thread, every time.

        Returns
        -------
        Task

        Raises
        ------
        RegistrationError, TriggerError
            When it cannot be scheduled.
        """
        known: Task[Any] | None = self.tasks.get(name)
        if known is not None and not self._runtime.awaits(known):
            if not same_function(known.function, callback):
                log.warning(
                    "A separate task is already scheduled under the name %r; the new one is ignored. To replace it, "
                    "call ps.cancel_task(%r) first.", name, name,
                )  # fmt: skip
            self._runtime.remember(f"Task {name!r}")
            return known
        try:
            threaded = flag("threaded", threaded)
            trigger, start = panels_trigger(at, period, cron, self._runtime.clock.now())
        except ScheduleError as error:
            raise _placed(error, f"Task {name!r}", "ps.schedule_task") from None
        if known is not None and start is None and is_period_of(known.policy.trigger, trigger):
            trigger = known.policy.trigger  # it counts from when it was scheduled first
        self.tasks.warn_of(trigger)
        executor = None if is_async(callback) else "thread" if threaded else "loop"
        # Panel runs a period without a date at once, and everything else at its time only.
        first_run = FirstRun.BACKGROUND if isinstance(trigger, Every) and start is None else FirstRun.SKIP
        given = self._given(trigger)
        policy = Policy(
            trigger, first_run=first_run, executor=executor, start=start, given=given, forget=given is not None
        )
        return self._runtime.register(policy, name, callback)

    @named
    def cancel_task(self, name: str, wait: bool = False) -> None:
        """
        Forget a task: no more runs, and its name is free again. A run in computation ends by itself.

        Parameters
        ----------
        name : str
        wait : bool
            Let its next run happen first.

        Raises
        ------
        KeyError
            When there is no such task.
        """
        task = self.tasks[name]
        if not flag("wait", wait):
            self._runtime.cancel(task)
            return

        def forget() -> None:
            if self.tasks.get(name) is task:
                self.cancel_task(name)

        self._runtime.scheduler.last_run(task, forget)

    @named
    def on(
        self, event: str, handler: Callable[[Task[Any], Run], Any], *, timeout: str | float | timedelta | None = "30s"
    ) -> Callable[[], None]:
        """
        Call a function when something happens to any task.

        Parameters
        ----------
        event : {"succeeded", "failed", "recovered", "stale", "skipped"}
        handler : callable
            ``handler(task, run)``, sync (in a thread) or async (on the loop), for one event after another. What it
            raises is logged.
        timeout : period or None
            A call that takes longer is left behind, with an error in the log, and the next one begins; that of an
            async handler is cancelled. None is no limit.

        Returns
        -------
        callable
            Takes the handler away again.

        Raises
        ------
        RegistrationError
            When there is no such event, or the handler is no function.
        TriggerError
            When the timeout means nothing.
        """
        if event not in EVENTS:
            raise RegistrationError(f"There is no event {event!r}; there are {', '.join(map(repr, EVENTS))}.")
        if not takes(handler, 2):
            raise RegistrationError(f"The handler of {event!r} must be a function of (task, run), and not {handler!r}.")
        made = Handler(handler, None if timeout is None else duration("timeout", timeout).total_seconds())
        handlers = self._runtime.handlers[event]
        # The same one is of a file that is executed again, as a notebook's cell or under --dev.
        others = [known for known in handlers if not same_function(known.function, handler)]
        handlers[:] = [*others, made]
        return lambda: handlers.remove(made) if made in handlers else None

    @named
    def alert(
        self,
        to: str | Callable[[dict[str, Any]], object],
        *,
        on: str | Iterable[str] = ("failed", "stale", "recovered"),
        after: int = 3,
        every: str | float | timedelta = "1h",
        tasks: Watched | Iterable[Watched] | None = None,
    ) -> Callable[[], None]:
        """
        Tell people when functions go wrong, and when they are well again; or tell a service that all is well.

        One of all processes that share the store sends a message. What goes wrong within five seconds is one message.
        One that is not accepted is tried again four times, within eight minutes.

        Parameters
        ----------
        to : str or callable
            ``"mailto:ops@example.org"``, by ``ps.config.smtp``; the address of a webhook of Slack or Teams, or any
            other one that takes JSON by POST; ``"slack+https://..."``, ``"teams+https://..."`` or
            ``"json+https://..."`` where the host does not say which; ``"exec:/path/of/a/command"``, which reads JSON
            from its standard input; a function of one dict, called in a thread.
        on : str or iterable of str
            ``"failed"``: so many runs of a task, a background or a memoized function as `after` says have failed in a
            row. ``"stale"``: no new value of a task came in time, though no run has failed. ``"recovered"``: all that
            was told of is well again. Or ``"alive"`` alone: a ping with GET, as long as a clock runs and no task is
            stale.
        after : int
            Failures in a row.
        every : period
            The pause between two messages about one function, or between two pings.
        tasks : Task, Background, Memoized, str or iterable of these
            These functions; of a name all that have it. By default all tasks, background and memoized functions.

        Returns
        -------
        callable
            Ends it.

        Raises
        ------
        RegistrationError
            When `to` cannot be sent to, or another argument means nothing. Nothing is sent to find that out.
        TriggerError
            When `every` is no period.

        Examples
        --------
        >>> import panel_schedule as ps
        >>> no_more = ps.alert("json+https://example.org/hook", after=2, every="30m")
        >>> no_more()
        """
        events = frozenset([on] if isinstance(on, str) else on)
        if unknown := sorted(map(repr, events - {"failed", "stale", "recovered", "alive"})):
            raise RegistrationError(
                f"ps.alert(on={on!r}): there is no {unknown[0]}; there are 'failed', 'stale', 'recovered', and 'alive'."
            )
        if not events - {"recovered"} or ("alive" in events and len(events) > 1):
            raise RegistrationError(
                f"ps.alert(on={on!r}) never has anything to say: give 'failed', 'stale' or both, and 'recovered' with "
                "them, or 'alive' alone."
            )
        if isinstance(after, bool) or not isinstance(after, int) or after < 1:
            raise RegistrationError(f"ps.alert(after={after!r}): it is a whole number of failures, at least 1.")
        if callable(to) and not takes(to, 1):
            raise RegistrationError(f"ps.alert sends to a function of one argument, the message, and not to {to!r}.")
        channel = channel_of(to, self._runtime.config.smtp, ping="alive" in events)
        policy = AlertPolicy(channel, Terms(events, after, duration("every", every)), _names_of(tasks))
        self._runtime.watch(policy)
        return partial(self._runtime.unwatch, policy)

    @named
    def stop(self) -> None:
        """
        End all that this process has scheduled or started: in a notebook or a script, as a new kernel would.

        Tasks are forgotten, and their names are free; runs and computations under way are cancelled; alerts end. What
        is in ``ps.store`` stays, and ``task()`` gives its last value. A function in a thread that does not hear of
        its end goes on for itself, and what it gives is dropped. Whatever is defined or submitted afterwards begins
        anew. Idempotent.

        Raises
        ------
        ScheduleError
            In a process that serves pages, or runs tasks until it is ended: others need what it does.

        Examples
        --------
        >>> import time
        >>> import panel_schedule as ps
        >>> @ps.background(executor="thread", name="sleeps")
        ... def sleeps():
        ...     for step in ps.track(range(1000)):
        ...         time.sleep(0.01)
        >>> run = sleeps.submit()
        >>> ps.stop()
        >>> run.state
        <RunState.CANCELLED: 'cancelled'>
        """
        self._runtime.end()

    @named
    def run_forever(self) -> None:
        """
        Run all scheduled tasks in this process, without a web server, until Ctrl-C or SIGTERM.

        Raises
        ------
        WouldBlock
            On the thread of a running event loop.
        StoreError
            When the store cannot be opened.
        """
        refuse_to_block("run_forever()", "panel serve")
        self._runtime.service  # noqa: B018
        loop = asyncio.new_event_loop()
        stopping = Stopping(self._runtime)
        watched = stopping.watch(loop)

        def fatal(task: Task[Any], run: Run) -> None:
            message = f"Task {task.name!r}: its first run failed.\n\n{traceback_text(run.error)}"
            if watched:
                stopping.fail(message)
            else:
                loop.call_soon_threadsafe(sys.exit, message)

        self._runtime.fatal = fatal
        self._runtime.start(loop)
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            log.info("Interrupted, shutting down.")
        finally:
            self._runtime.stop()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
