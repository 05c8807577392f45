"""A task: a named function plus its policy."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from numbers import Integral
from types import FunctionType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ..errors import RegistrationError, ScheduleError, TriggerError
from ..serialize.code import closed_over, names_in
from ..serialize.copies import is_frame, own_copy
from ..serialize.entry import Entry
from ..triggers import After, Period, Schedule, parse_period
from ..triggers.combined import part_of
from . import remote
from .live import LiveTask
from .run import Run, RunRecord, _current, in_seconds

T = TypeVar("T")


class Overlap(StrEnum):
    """What a slot does that comes while its task still runs."""

    SKIP = "skip"
    QUEUE = "queue"
    REPLACE = "replace"


class FirstRun(StrEnum):
    """When a task that has no value yet runs for the first time."""

    WAIT = "wait"
    BACKGROUND = "background"
    SKIP = "skip"


class WhenIdle(StrEnum):
    """Whether a task is refreshed while nobody watches it."""

    RUN = "run"
    SKIP = "skip"


class Concurrency(NamedTuple):
    """
    What limits how many runs go at the same time, in all processes.

    Attributes
    ----------
    max_running : int or None
        Of the function.
    group : str or None
        Of all functions of the group, as ``ps.config.groups`` says.
    """

    max_running: int | None = None
    group: str | None = None


Errors = type[BaseException] | tuple[type[BaseException], ...]

# Attempts in all where a function asks for another one by itself, and no `retry=` says how many.
ASKED = 3


@dataclass(frozen=True, slots=True)
class Retry:
    """
    How often, and how soon, a failed run is tried again.

    Parameters
    ----------
    max_attempts : int
        Attempts in all, the first included.
    backoff : period
        Pause before the second attempt; it doubles before each further one.
    max_delay : period
        The longest pause.
    on : exception class or tuple of these
        What is tried again; by default everything. A timeout is an ``errors.RunTimedOut``, which is a TimeoutError, and
        a worker that died an ``errors.RunCrashed``.
    never_on : exception class or tuple of these
        What is not, though it is one of `on`.
    jitter : period
        Each pause is longer by a part of this, which looks like chance, so that not all come again at once.
    delay : callable
        ``delay(attempt)``, the pause after the failure of that attempt, counted from 1: a period, or 0. In place of
        `backoff` and `max_delay`.

    Examples
    --------
    >>> Retry(max_attempts=4, backoff="2s", max_delay="5s").delays()
    [2.0, 4.0, 5.0]
    >>> Retry(max_attempts=4, delay=lambda attempt: 10 * attempt, never_on=ValueError).delays()
    [10.0, 20.0, 30.0]
    """

    max_attempts: int = 3
    backoff: str | float | timedelta = 1.0
    max_delay: str | float | timedelta = 60.0
    on: Errors | None = None
    never_on: Errors = ()
    jitter: str | float | timedelta = 0.0
    # Another one of each execution of its file.
    delay: Callable[[int], str | float | timedelta] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        count: Any = self.max_attempts
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise RegistrationError(f"Retry(max_attempts={count!r}) must be a whole number of at least 1.")
        object.__setattr__(self, "max_attempts", int(count))
        for option in ("backoff", "max_delay", "jitter"):
            try:
                if option != "jitter" or self.jitter != 0:
                    parse_period(getattr(self, option))
            except TriggerError as error:
                raise TriggerError(f"Retry({option}={getattr(self, option)!r}) is no duration. {error}") from None

        for option in ("on", "never_on"):
            kinds = getattr(self, option)
            if kinds is None and option == "on":
                continue
            kinds = kinds if isinstance(kinds, tuple) else (kinds,)
            if (option == "on" and not kinds) or not all(_is_error(kind) for kind in kinds):
                raise RegistrationError(
                    f"Retry({option}={getattr(self, option)!r}) must be an exception class or a tuple of these, as in "
                    "(ConnectionError, TimeoutError)."
                )
            object.__setattr__(self, option, kinds)
        if self.delay is not None and not callable(self.delay):
            raise RegistrationError(
                f"Retry(delay={self.delay!r}) must be a function of the number of the attempt that has failed. For a "
                "pause that is always the same write backoff= and max_delay= of that."
            )

    def wants(self, error: BaseException) -> bool:
        """Whether what failed so is to be tried again, if there is an attempt left."""
        return (self.on is None or isinstance(error, self.on)) and not isinstance(error, self.never_on)

    @property
    def most_later(self) -> int:
        """Attempts in all of what asks for another one itself: who does has no need to say so twice."""
        return self.max_attempts if self.max_attempts > 1 else ASKED

    def pause(self, attempt: int, run: str = "") -> float:
        """
        Seconds to wait after the failure of `attempt`, counted from 1; with the id of a `run` its jitter, too.

        Raises
        ------
        TriggerError
            When ``delay=`` gives what is no period. What it raises passes.
        """
        if self.delay is not None:
            given = self.delay(attempt)
            try:
                pause = 0.0 if type(given) is not bool and given == 0 else parse_period(given).total_seconds()
            except TriggerError as error:
                raise TriggerError(f"Retry(delay=...) gave {given!r} for attempt {attempt}. {error}") from None
        else:
            longest = parse_period(self.max_delay).total_seconds()
            pause = float(min(parse_period(self.backoff).total_seconds() * 2 ** min(attempt - 1, 60), longest))
        if run and self.jitter != 0:
            pause += part_of(parse_period(self.jitter), run, attempt).total_seconds()
        return pause

    def delays(self) -> list[float]:
        """All pauses, in seconds, without their jitter."""
        return [self.pause(attempt) for attempt in range(1, self.max_attempts)]


def _is_error(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


ONCE = Retry(max_attempts=1)


class RetryLater(ScheduleError):
    """
    A function raises it to be run again for the same occasion: the slot, or the call.

    It counts as an attempt, of as many as ``retry=`` allows; without that of three.

    Parameters
    ----------
    delay : period
        How long from now: ``"5m"``, or seconds.
    reason : str
        For the log.

    Raises
    ------
    TriggerError
        When the delay means nothing.

    Examples
    --------
    >>> raise RetryLater("5m", "the file is not there yet")
    Traceback (most recent call last):
    panel_schedule.functions.task.RetryLater: again in 5m: the file is not there yet
    """

    def __init__(self, delay: Period, reason: str = ""):
        super().__init__(delay, reason)
        try:
            self.delay = parse_period(delay).total_seconds()
        except TriggerError as error:
            raise TriggerError(f"RetryLater({delay!r}): {error}") from None

    def __str__(self) -> str:
        delay, reason = self.args
        return f"again in {delay if isinstance(delay, str) else f'{self.delay:g} s'}{f': {reason}' if reason else ''}"


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything about a task but its name and function; see ``ps.schedule`` for the meanings."""

    trigger: Schedule
    first_run: FirstRun = FirstRun.WAIT
    executor: str | None = None
    timeout: float | None = None
    retry: Retry = ONCE
    overlap: Overlap = Overlap.SKIP
    catch_up: bool = True
    # How late a slot may begin: None as `catch_up` says.
    misfire_grace: timedelta | None = None
    # Each slot begins later than it is by a part of this, see `late_by`.
    jitter: timedelta = timedelta()
    when_idle: WhenIdle = WhenIdle.RUN
    needs: tuple[Task[Any], ...] = ()
    default: Any = None
    stale_after: timedelta | None = None
    # Whether each read is a private copy-on-write view; None: of a data frame or series.
    isolate: bool | None = None
    concurrency: Concurrency | None = None
    # Panel's own tasks: no slot before `start`, and forgotten when their dates are used up.
    start: datetime | None = None
    forget: bool = False
    # When dates were given: from then on they can be missed, also before the clocks start.
    given: datetime | None = None

    @property
    def upstream(self) -> tuple[Task[Any], ...]:
        """The tasks whose values cause a run."""
        return self.trigger.tasks if isinstance(self.trigger, After) else ()

    def late_by(self, task: str, slot: datetime) -> timedelta:
        """How much later than its time a slot begins, in every process."""
        return part_of(self.jitter, task, slot)


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """
    A snapshot of a task, ``task.status``.

    Attributes
    ----------
    name : str
    state : str
        ``"idle"``, ``"queued"``, ``"running"``, ``"failed"``, ``"paused"`` or ``"removed"``.
    version : int
        Of the value; 0 before the first one.
    updated_at : datetime or None
        Aware UTC.
    stale : bool
        The value is older than the task promised.
    error : str
        First line of the last failure, ``""`` when the last finished run succeeded.
    next_run : datetime or None
        Aware, in the zone of the cron schedule, else of ``ps.config.timezone`` or UTC; None where no clock decides.
    percent : int
        0 to 100, -1 while unknown.
    message : str
    schedule : str
        The trigger in words.
    hanging : tuple of str
        What still runs, in the executor of this task, though nobody waits for it any more: tasks that have timed out,
        say. Each has given its place to another function, up to a limit.
    """

    name: str
    state: str
    version: int
    updated_at: datetime | None
    stale: bool
    error: str
    next_run: datetime | None
    percent: int
    message: str
    schedule: str
    hanging: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        """True from queued on."""
        return self.state in ("queued", "running")


class SchedulerPort(Protocol):
    """What a task asks of the scheduler; the layers above hand it down."""

    def look(self, task: Task[Any]) -> object: ...
    def refresh(self, task: Task[Any]) -> Run: ...
    def await_turn(self, task: Task[Any], run: Run) -> None: ...
    def first_value(self, task: Task[Any]) -> Future[Entry]: ...
    def pause(self, task: Task[Any], paused: bool) -> None: ...
    def reschedule(self, task: Task[Any], trigger: Schedule) -> None: ...
    def remove(self, task: Task[Any]) -> None: ...
    def status(self, task: Task[Any]) -> TaskStatus: ...
    def promise(self, task: Task[Any]) -> tuple[datetime, datetime | None]: ...
    def history(self, task: Task[Any]) -> list[RunRecord]: ...


class Host(Protocol):
    """Who runs a task and shows it. A task knows of the layers above only what stands here."""

    @property
    def scheduler(self) -> SchedulerPort: ...

    def trigger(self, when: Any, *, period: Any, cron: Any, at: Any, timezone: str | None) -> Schedule: ...
    def ready(self, task: Task[Any], timeout: float | None) -> Awaitable[Any]: ...
    def wait_ready(self, task: Task[Any], timeout: float | None) -> Any: ...
    def view(self, task: Task[Any]) -> Any: ...
    def stream(self, task: Task[Any], columns: tuple[str, ...] | None, rollover: int | None) -> Any: ...
    def show(self, task: Task[Any]) -> Any: ...


class Task(Generic[T]):
    """
    A function that runs once, on a schedule, for every visitor. Made by ``ps.schedule``.

    ``task()`` is the last good value, at once. The task itself may be handed to any Panel
    component where a live value is wanted: ``pn.widgets.Tabulator(task)``.

    Attributes
    ----------
    name : str
    function : callable
        The undecorated function.
    policy : Policy

    Examples
    --------
    >>> import panel_schedule as ps
    >>> @ps.schedule(period="15m", first_run="skip", default=0)
    ... def answer():
    ...     return 42
    >>> answer()
    0
    >>> answer.refresh().result()
    42
    >>> answer()
    42
    """

    __slots__ = ("__weakref__", "_aside", "_host", "_plain", "_told", "_value", "function", "known", "name", "policy")

    def __init__(self, name: str, function: Callable[[], Any], policy: Policy, host: Host):
        self.name = name
        self.function = function
        self.policy = policy
        # The entry as this process has it, for the scheduler alone.
        self.known: Entry | None = None
        self._value: Any = policy.default
        self._plain = False
        # Whether new values of other processes come by themselves; else each read looks for them.
        self._told = False
        # Whether a read is more than to take the value.
        self._aside = True
        self._host = host

    def __repr__(self) -> str:
        return f"<Task {self.name!r}: {self.policy.trigger}>"

    def __reduce__(self) -> Any:
        return remote.task_named, (self.name,)

    @property
    def __wrapped__(self) -> Callable[[], Any]:
        return self.function

    # ------------------------------------------------------------ reading

    @property
    def entry(self) -> Entry | None:
        """The stored value with its version, time and duration; None before the first one."""
        if not self._told and remote.asker is None:
            self._host.scheduler.look(self)
        return self.known

    def __call__(self) -> T:
        """
        The last good value, at once; ``default`` before the first one.

        A data frame or series is a shallow copy of the reader's own, unless ``isolate=False``.
        """
        run = _current.get()
        if run is not None or self._aside:
            return self._read(run)  # type: ignore[no-any-return]
        return self._value  # type: ignore[no-any-return]

    def _read(self, run: Run | None) -> Any:
        if remote.asker is not None:
            return remote.asker("task", self.name)
        scheduler = self._host.scheduler
        if not self._told:
            scheduler.look(self)
        if self._plain:
            return self.function()
        if run is not None and run.wave is not None and run.task != self.name:
            scheduler.await_turn(self, run)
        if (entry := self.known) is not None:
            return entry.value
        return self.value_of(None)

    def take(self, entry: Entry) -> None:
        """For the scheduler alone: the value from now on."""
        # In this order: who reads meanwhile gets a copy rather than what is shared.
        self._aside = True
        self.known, self._value = self.readable(entry), entry.shared
        self._settle()

    def readable(self, entry: Entry) -> Entry:
        """An entry whose value is read as `isolate` says."""
        exact = self.policy.isolate is False
        return entry if entry.exact is exact else replace(entry, exact=exact)

    def value_of(self, entry: Entry | None) -> Any:
        """For those who run it: what a reader gets of an entry, and where there is none."""
        if entry is not None:
            return self.readable(entry).value
        return self.policy.default if self.policy.isolate is False else own_copy(self.policy.default)

    def become(self, *, plain: bool, told: bool = True) -> None:
        """For the scheduler alone: whether a call is one of the function, and whether new values come by themselves."""
        self._plain, self._told, self._aside = plain, told, True
        if self.known is None:
            self._value = self.policy.default
        else:
            self.known = self.readable(self.known)
        self._settle()

    def state(self) -> tuple[Any, ...]:
        """For the runtime alone: what `reset` takes."""
        return self.function, self.policy, self._plain, self._told, self.known

    def reset(self, state: tuple[Any, ...] | None = None) -> None:
        """For the runtime alone: be as if it had never run, or as it was."""
        known = None
        plain, told = False, False
        if state is not None:
            self.function, self.policy, plain, told, known = state
        self.known = None
        self.become(plain=plain, told=told)
        if known is not None:
            self.take(known)

    def _settle(self) -> None:
        entry, isolate = self.known, self.policy.isolate
        private = entry.is_private if entry is not None else isolate is not False and is_frame(self._value)
        self._aside = self._plain or private or not self._told

    async def ready(self, timeout: float | None = None) -> T:
        """
        Wait until the first value exists, and return it.

        Parameters
        ----------
        timeout : float, optional
            Seconds.

        Raises
        ------
        NotReady
            When there is none in time; the message says why.
        """
        return await self._host.ready(self, in_seconds(f"Task {self.name!r}: ready()", timeout))  # type: ignore[no-any-return]

    def wait_ready(self, timeout: float | None = None) -> T:
        """
        The blocking twin of `ready`, for threads and scripts; it runs the task where no server does.

        Raises
        ------
        NotReady
            When there is none in time.
        WouldBlock
            On the thread of a running event loop.
        """
        return self._host.wait_ready(self, in_seconds(f"Task {self.name!r}: wait_ready()", timeout))  # type: ignore[no-any-return]

    @property
    def status(self) -> TaskStatus:
        """A snapshot of the task's state."""
        return self._host.scheduler.status(self)

    @property
    def history(self) -> list[RunRecord]:
        """The last runs, newest first. A stretch of skipped slots is one record."""
        return self._host.scheduler.history(self)

    # ------------------------------------------------------------ showing

    def promise(self) -> tuple[datetime, datetime | None]:
        """For views alone: the time, and until when the value is what was promised; None where nothing says so."""
        return self._host.scheduler.promise(self)

    @property
    def rx(self) -> Any:
        """The live value as a reactive expression: ``task.rx()``, ``task.rx.pipe(f)``, ``task.rx.value``."""
        return self.view().param.value.rx

    def view(self) -> LiveTask[T]:
        """This session's own :class:`TaskView`, always the same one within a session."""
        return self._host.view(self)  # type: ignore[no-any-return]

    def stream(self, columns: Iterable[str] | None = None, *, rollover: int | None = 1000) -> Any:
        """
        A source for Bokeh's glyphs with the last rows of the value, to which each page gets the new rows alone.

        The value is a data frame of pandas or polars, or a dict of columns. Which rows are new is found by comparing: a
        value that begins as the one before has ended is streamed, however many rows it has lost at its beginning; any
        other one takes its place. The source is this session's own; asked for the same again, it is the same.

        Parameters
        ----------
        columns : iterable of str
            The names of those that the page needs, also before there is a value; by default all, the index of a frame
            of pandas included unless it only counts the rows. Instants are milliseconds in the source, numbers floats.
        rollover : int or None
            How many rows are shown at most; None is all.

        Returns
        -------
        bokeh.models.ColumnDataSource

        Raises
        ------
        TypeError, ValueError
            When the columns are no names, or the value that there is has no such columns. A later value that has none
            is told in the log, and the rows before stay.

        Examples
        --------
        >>> import panel_schedule as ps
        >>> @ps.schedule(period="1s", first_run="skip", default={"time": [], "load": []})
        ... def load():
        ...     before = ps.current_run().previous
        ...     return {"time": [*before["time"], 1.0], "load": [*before["load"], 0.5]}
        >>> source = load.stream(["time", "load"], rollover=600)
        >>> load.refresh().result()
        {'time': [1.0], 'load': [0.5]}
        >>> source.data["load"].tolist()
        [0.5]
        """
        names = columns if columns is None or isinstance(columns, str) else tuple(columns)
        if names is not None and not (isinstance(names, tuple) and all(isinstance(each, str) for each in names)):
            raise TypeError(
                f"{self.name}.stream({columns!r}): it takes the names of columns, ['time', 'price'], or none for all."
            )
        if rollover is not None and (isinstance(rollover, bool) or not isinstance(rollover, Integral) or rollover < 1):
            raise ValueError(
                f"{self.name}.stream(rollover={rollover!r}): it is a whole number of rows, at least 1, or None for all."
            )
        return self._host.stream(self, names, rollover)

    def __panel__(self) -> Any:
        return self._host.show(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        return self.__panel__()._repr_mimebundle_(include, exclude)

    # ------------------------------------------------------------ acting

    def refresh(self, _event: object = None) -> Run[T]:
        """
        Run now, or join the run in flight. Fits ``on_click=``.

        Returns
        -------
        Run
            ``await run`` or ``run.result()`` gives the value.
        """
        return self._host.scheduler.refresh(self)

    def pause(self) -> None:
        """Skip every slot until `resume`. A run in flight goes on."""
        self._host.scheduler.pause(self, True)

    def resume(self) -> None:
        """Go on with the next slot; what was paused over is not caught up."""
        self._host.scheduler.pause(self, False)

    def reschedule(
        self,
        when: Any = None,
        /,
        *,
        period: Any = None,
        cron: str | None = None,
        at: Any = None,
        timezone: str | None = None,
    ) -> None:
        """
        Give the task another schedule; exactly one of `when`, `period`, `cron` and `at`, as in ``ps.schedule``.

        It gives way, logged, when the schedule in the code changes. What ``start=``, ``end=`` and ``skip=`` have said
        is of the old one.

        Raises
        ------
        TriggerError
            When it means nothing; the old schedule stays.
        """
        try:
            trigger = self._host.trigger(when, period=period, cron=cron, at=at, timezone=timezone)
        except ScheduleError as error:
            raise type(error)(f"Task {self.name!r}: {error}") from None
        self._host.scheduler.reschedule(self, trigger)

    def remove_schedule(self) -> None:
        """
        No more runs and no more caching: from now on ``task()`` calls the plain function.

        Views keep the last value.
        """
        self._host.scheduler.remove(self)


def named_tasks(function: Callable[..., Any]) -> Iterator[Task[Any]]:
    """
    The tasks that a function names in its code, nested functions included.

    Looks at global names, at closures, and at attributes of modules it names. A name that
    is only built at run time is not found; reads seen in earlier runs cover those.
    """
    plain = inspect.unwrap(getattr(function, "func", getattr(function, "__func__", function)))
    if not isinstance(plain, FunctionType):
        return
    names = sorted(set(names_in(plain.__code__)))
    spaces = [*closed_over(plain).values(), *(plain.__globals__[name] for name in names if name in plain.__globals__)]
    for found in spaces:
        if isinstance(found, Task):
            yield found
        elif inspect.ismodule(found):
            attributes = (vars(found).get(name) for name in names)
            yield from (value for value in attributes if isinstance(value, Task))
