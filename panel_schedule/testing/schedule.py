"""A schedule on virtual time: what runs when, and what comes of it, without waiting for it."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .. import _runtime
from ..clock import SystemClock
from ..coordination.history import parts_of
from ..coordination.tasks import TASK
from ..engine.service import Service
from ..errors import ScheduleError
from ..executors.base import Executor
from ..executors.threads import ThreadExecutor
from ..functions.run import RunRecord, RunState
from ..functions.task import Task
from ..stores.memory import MemoryStore
from ..triggers import Period, parse_period
from .clock import VirtualClock

# Real seconds that a function may take: virtual time stands still meanwhile.
PATIENCE = 60.0

# Real seconds between one look at what still runs and the next; and after which a function that waits for another one,
# which the clock has still to start, counts as waiting.
LOOK = 0.0005
WAITS = 0.3

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """
    A run that has ended, or a stretch of slots that were skipped.

    Attributes
    ----------
    name : str
        Of the task, job or memoized function.
    kind : {"task", "job", "memo"}
    at : datetime
        When it was due, or else began, in the time zone of the schedule.
    state : RunState
    attempt : int
        From 1.
    error : str
        First line of what went wrong; ``""`` when nothing did.
    reason : str
        Why slots were skipped, or a run cancelled.
    record : RunRecord
        All that the history knows of it.
    """

    name: str
    kind: str
    at: datetime
    state: RunState
    attempt: int
    error: str
    reason: str
    record: RunRecord

    def __str__(self) -> str:
        attempt = f" (attempt {self.attempt})" if self.attempt > 1 else ""
        why = f": {self.error or self.reason}" if self.error or self.reason else ""
        return f"{self.at:%a %Y-%m-%d %H:%M:%S %Z}  {self.name}  {self.state}{attempt}{why}"


class Threads(ThreadExecutor):
    """
    Threads, of which is known how many have lent their place.

    Attributes
    ----------
    lent : int
        How many functions wait for something of others.
    """

    lent = 0

    @contextmanager
    def lend(self) -> Iterator[None]:
        with super().lend():
            with self._lock:
                self.lent += 1
            try:
                yield
            finally:
                with self._lock:
                    self.lent -= 1


class VirtualService(Service):
    """
    A service whose clock stands still until it is moved.

    All functions run in threads of this process, those too that run elsewhere in production: what a test has replaced
    is replaced for them.
    """

    def __init__(self, clock: VirtualClock, *args: Any, **kwargs: Any):
        super().__init__(clock, *args, **kwargs)
        # Whoever has it sees no tick half done, nor what one has still to hand out.
        self._turn = threading.Lock()
        self._real = SystemClock()

    def tick(self) -> float:
        """Do all that is due now."""
        with self._turn:
            return super().tick()

    def settle(self) -> None:
        """
        Do all that is due now, and what it leads to, until nothing more happens without the clock.

        Raises
        ------
        ScheduleError
            When a function has not ended after 60 seconds of real time.
        """
        began = waits_since = self._real.monotonic()
        while True:
            with self._turn:
                delay = super().tick()
                loads = [executor.load for executor in self.executors.values()]
                waiting = sum(executor.lent for executor in self.executors.values() if isinstance(executor, Threads))
            now = self._real.monotonic()
            if not delay or sum(load.running + load.waiting for load in loads) > waiting:
                waits_since = now
            elif not waiting or now - waits_since >= WAITS:
                return
            if now - began > PATIENCE:
                raise ScheduleError(
                    f"A function has still not ended after {PATIENCE:g} s. Virtual time stands still while functions "
                    "run, and those that sleep do so in real time: have the test replace what it waits for."
                )
            threading.Event().wait(LOOK)


class Schedule:
    """
    All tasks, jobs and memoized functions of this process, on virtual time. The fixture ``schedule`` is one.

    While it is open they are as if nothing had ever run: without values, answers, history, or clocks of real time.
    What is registered, stored or configured meanwhile is gone when it closes, and what was there before is back. All
    runs in threads of this process, whatever `executor` says; alerts are not sent.

    Parameters
    ----------
    start : datetime, optional
        What time it is at first. By default the beginning of 2026. A naive one is of the zone `tz`.
    tz : str, optional
        Name of the IANA time zone that `runs` are told in; UTC by default.

    Attributes
    ----------
    runs : list of SimulatedRun
        All that have ended so far, in that order.

    Examples
    --------
    >>> import panel_schedule as ps
    >>> from panel_schedule.testing import Schedule
    >>> @ps.schedule(cron="0 6 * * *", timezone="UTC", first_run="skip")
    ... def report():
    ...     return "sold"
    >>> with Schedule() as schedule:
    ...     schedule.advance("1d")
    ...     report()
    'sold'
    >>> print(*schedule.runs)
    Thu 2026-01-01 06:00:00 UTC  report  succeeded
    >>> ps.cancel_task("report")
    """

    def __init__(self, start: datetime | None = None, tz: str | None = None):
        self._zone = _zone(tz)
        self.clock = VirtualClock(self._aware(start or START))
        self.runs: list[SimulatedRun] = []
        self._opened = ExitStack()

    def __repr__(self) -> str:
        return f"<Schedule at {self.now:%Y-%m-%d %H:%M:%S %Z}, {len(self.runs)} runs>"

    def __enter__(self) -> Schedule:
        self._opened.enter_context(_runtime.isolated(self.clock, self._make))
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    @property
    def now(self) -> datetime:
        """What time it is, in the schedule's zone."""
        return self.clock.now().astimezone(self._zone)

    def begin(self, at: datetime | None = None) -> None:
        """
        Start the clocks, as a server does: first runs, and from then on what is due. Idempotent.

        `advance` and `run_until` do so as well.

        Parameters
        ----------
        at : datetime, optional
            At this time, which is not before now: until then nothing runs. A naive one is of the schedule's zone.

        Raises
        ------
        ScheduleError
            When they have started before.
        """
        service = self._service()
        if at is not None:
            if service.begun:
                raise ScheduleError("The clocks of this schedule run already: begin(at) comes before advance().")
            self._move(self._aware(at))
        if not service.begun:
            _runtime.started = True
            _runtime.scheduler.begin()
        self.settle()

    def settle(self) -> None:
        """Let everything end that time need not pass for: what was submitted or refreshed by hand, say."""
        service = self._service()
        with _loop_is_held():
            service.settle()

    def advance(self, period: Period) -> None:
        """
        Let time pass, and all run that comes to be due meanwhile, each at its time.

        Parameters
        ----------
        period : str, float or timedelta
            ``"1h"``, seconds, or a timedelta.

        Raises
        ------
        ScheduleError
            When a function does not end within a minute of real time.
        TriggerError
            When the period means nothing.
        """
        self.run_until(self.clock.now() + parse_period(period))

    def run_until(self, when: datetime) -> None:
        """
        Let time pass until then. What is due just then has run when this returns.

        Parameters
        ----------
        when : datetime
            A naive one is of the schedule's zone.

        Raises
        ------
        ScheduleError
            When it is past, or a function does not end within a minute of real time.
        """
        when = self._aware(when)
        if when < self.clock.now():
            raise ScheduleError(f"It is {self.now} by the schedule's clock, and time does not run back to {when}.")
        service = self._service()
        self.begin()
        while (left := (when - self.clock.now()).total_seconds()) > 0:
            due = service.timers.earliest - self.clock.monotonic()
            # Up to the next microsecond, as a datetime can tell no less.
            self.clock.advance(timedelta(microseconds=max(1, math.ceil(min(left, due) * 1e6))))
            self.settle()

    def _move(self, when: datetime) -> None:
        if when < self.clock.now():
            raise ScheduleError(f"It is {self.now} by the schedule's clock, and time does not run back to {when}.")
        self.clock.advance(when - self.clock.now())

    def _aware(self, when: datetime) -> datetime:
        return (when if when.tzinfo is not None else when.replace(tzinfo=self._zone)).astimezone(UTC)

    def _service(self) -> VirtualService:
        if _runtime.clock is not self.clock:
            raise ScheduleError("This schedule is closed: use it inside of its with statement, or as a fixture.")
        service = _runtime.service
        assert isinstance(service, VirtualService)
        return service

    def _make(self) -> Service:
        config = _runtime.config
        config.freeze()
        store = MemoryStore(config.history_limit, self.clock)
        own = ("thread", "process", "celery", "dask", "job-thread", "job-process", "memo-thread", "memo-process")
        executors: dict[str, Executor] = {name: Threads(config.max_threads) for name in own}
        executors |= {name: ThreadExecutor(1) for name in ("handler", "alert", "store", "requests", "publisher")}
        executors["loop"] = _runtime.loops
        service = VirtualService(
            self.clock, store, executors, _runtime.handlers, changed=_runtime.show_change, counts=_runtime.counts,
            groups=config.groups,
        )  # fmt: skip
        service.readers.append(self._note)
        return service

    def _note(self, space: str, name: str, run: RunRecord) -> None:
        kind, title = (TASK, name) if space == TASK else parts_of(name)
        at = run.key if isinstance(run.key, datetime) else run.started_at or run.ended_at
        assert at is not None
        at = at.astimezone(self._zone)
        self.runs.append(SimulatedRun(title, kind, at, run.state, run.attempt, run.error, run.reason, run))


def simulate(
    tasks: Task[Any] | Iterable[Task[Any]], *, start: datetime, until: datetime, tz: str | None = None
) -> list[SimulatedRun]:
    """
    Run tasks through virtual days, and say what ran when, and with which outcome.

    The functions really run, in threads of this process; no other tasks do. Nothing of it stays.

    Parameters
    ----------
    tasks : Task or list of Task
        With those that they are made of.
    start, until : datetime
        Naive ones are of the zone `tz`.
    tz : str, optional
        Name of the IANA time zone that the runs are told in; UTC by default.

    Returns
    -------
    list of SimulatedRun
        In the order in which they ended.

    Raises
    ------
    ScheduleError
        When `until` is before `start`, or a function does not end within a minute of real time.

    Examples
    --------
    >>> from datetime import datetime
    >>> import panel_schedule as ps
    >>> from panel_schedule.testing import simulate
    >>> @ps.schedule(cron="30 2 * * *", timezone="Europe/Berlin", first_run="skip")
    ... def nightly():
    ...     return 1
    >>> runs = simulate(nightly, start=datetime(2026, 3, 28), until=datetime(2026, 3, 31), tz="Europe/Berlin")
    >>> print(*runs, sep="\\n")
    Sat 2026-03-28 02:30:00 CET  nightly  succeeded
    Sun 2026-03-29 03:00:00 CEST  nightly  succeeded
    Mon 2026-03-30 02:30:00 CEST  nightly  succeeded
    >>> ps.cancel_task("nightly")
    """
    wanted = list(tasks) if isinstance(tasks, Iterable) else [tasks]
    found = dict[Task[Any], None]()
    while wanted:
        task = wanted.pop()
        if not isinstance(task, Task):
            raise ScheduleError(f"simulate() takes tasks, as ps.schedule makes them, and {task!r} is none.")
        if task not in found:
            found[task] = None
            wanted += [*task.policy.upstream, *task.policy.needs]
    with Schedule(start, tz) as schedule:
        for task in list(_runtime.tasks.values()):
            if task not in found:
                _runtime.tasks.discard(task)
        schedule.run_until(until)
    return schedule.runs


@contextmanager
def _loop_is_held() -> Iterator[None]:
    """Where a coroutine calls, its loop stands still meanwhile: async functions run on another one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        yield
    else:
        with _runtime.loops.hold():
            yield


def _zone(name: str | None) -> tzinfo:
    if name is None:
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise ScheduleError(f"tz is {name!r}, which is no IANA time zone such as 'Europe/Berlin'.") from None
