"""The public functions: what a dashboard's author calls."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from .calls import is_async
from .errors import RegistrationError, ScheduleError
from .news import EVENTS, Handler
from .onrequest import OnRequest, named
from .registry import Registry, build_policy, choose_trigger, duration, flag, panels_trigger, same_function
from .run import Run, refuse_to_block
from .runtime import Runtime
from .stopping import Stopping
from .task import FirstRun, Policy, Retry, Task
from .tracebacks import traceback_text
from .triggers import Computed, Dates, Every, Trigger
from .values import NamedValues

log = logging.getLogger("panel_schedule")


class Front(OnRequest):
    """
    The public functions of one runtime. The package has one; a test may make others.

    Attributes
    ----------
    tasks : mapping of str to Task
        Live, and read-only.
    store : NamedValues
    """

    def __init__(self, runtime: Runtime):
        super().__init__(runtime)
        self._runtime = runtime
        self.tasks: Registry = runtime.tasks
        self.store = NamedValues(
            lambda: runtime.scheduler.store,
            lambda: runtime.views,
            runtime.clock,
            lambda call: runtime.scheduler.ledger.aside(call),
            lambda function: runtime.flights.archive.entries(function),
        )

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
        when_idle: str = "run",
        needs: Task[Any] | Iterable[Task[Any]] = (),
        default: Any = None,
        stale_after: str | float | timedelta | None = None,
        isolate: bool | None = None,
    ) -> Callable[[Callable[[], Any]], Task[Any]]:
        """
        Run a function on a schedule, once for every visitor.

        Exactly one of `when`, `period`, `cron`, `at` and `after` says when.

        Parameters
        ----------
        when : str, timedelta, datetime, list of datetime or Trigger
            A period, a cron expression, dates, or a trigger of ``panel_schedule.triggers``.
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
            IANA name, for `cron`; by default ``ps.config.timezone``.
        name : str
            By default the function's.
        first_run : {"wait", "background", "skip"}
            ``"wait"``: no page is built before the first value, and the server stops when it cannot be
            had. ``"background"``: serve at once. ``"skip"``: wait for the first slot. By default
            ``"wait"``, but ``"skip"`` for `at`.
        executor : {"loop", "thread", "process"}
            By default an ``async def`` runs on the server's loop and a plain function in a thread. A function that
            computes for seconds belongs into a worker process: there it slows no page down, can be stopped
            whatever it does, and takes nothing with it when it crashes.
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

        Returns
        -------
        callable
            A decorator that turns a function into a :class:`Task`. A generator function publishes each
            value that it yields.

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
                default_timezone=self._runtime.config.timezone,
            )  # fmt: skip
            policy = build_policy(
                trigger, first_run=first_run, executor=executor, timeout=timeout, retry=retry, overlap=overlap,
                catch_up=catch_up, when_idle=when_idle, needs=needs, default=default, stale_after=stale_after,
                isolate=isolate, given=self._given(trigger),
            )  # fmt: skip
        except ScheduleError as error:
            # The function, and with it the task's name, comes after this; but the line is known.
            frame = sys._getframe(2)
            place = f"Task {name!r}" if name else f"@ps.schedule in {frame.f_code.co_filename}:{frame.f_lineno}"
            raise type(error)(f"{place}: {error}") from None
        self.tasks.warn_of(trigger)
        return partial(self._runtime.register, policy, name)

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
        threaded = flag("threaded", threaded)
        known: Task[Any] | None = self.tasks.get(name)
        if known is not None:
            if not same_function(known.function, callback):
                log.warning(
                    "A separate task is already scheduled under the name %r; the new one is ignored. To replace it, "
                    "call ps.cancel_task(%r) first.", name, name,
                )  # fmt: skip
            return known
        trigger, start = panels_trigger(name, at, period, cron, self._runtime.clock.now())
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
        Forget a task: no more runs, and its name is free again. A run in flight ends by itself.

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
        if not callable(handler):
            raise RegistrationError(f"The handler of {event!r} must be a function of (task, run), and not {handler!r}.")
        made = Handler(handler, None if timeout is None else duration("timeout", timeout).total_seconds())
        handlers = self._runtime.handlers[event]
        for known in handlers:
            # Of a file that is executed again, as a notebook's cell or under --dev.
            if same_function(known.function, handler):
                handlers.remove(known)
                break
        handlers.append(made)
        return lambda: handlers.remove(made) if made in handlers else None

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
        self._runtime.scheduler  # noqa: B018
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
