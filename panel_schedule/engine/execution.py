"""One run of a function from its start to its end: begin, publish, time out, retry, cancel, end."""

from __future__ import annotations

import asyncio
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError, Future
from datetime import datetime
from functools import partial
from types import CoroutineType
from typing import Any, NamedTuple

from ..errors import Cancel, RunCancelled, RunCrashed, RunFailed, RunFenced, RunTimedOut, is_interrupt
from ..executors.base import Executor, WorkerLost
from ..executors.loop import Interrupted
from ..executors.processes import RemoteCall
from ..functions import spans
from ..functions.calls import CANCELLED, async_outcome, cancelled_inside, is_async, outcome
from ..functions.run import Cause, Run, RunRecord, RunState, _current, on_a_loop
from ..functions.task import Retry, RetryLater
from ..hashing.keys import arguments_text
from ..serialize.copies import snapshot
from ..serialize.errors import first_line
from ..session import leave_session
from .limits import Limits
from .service import Service
from .timers import Timer

log = logging.getLogger("panel_schedule")

# Seconds that a coroutine gets to end after its timeout, before a retry is given up.
LAST_WORDS = 1.0

# How a run ends that has gone wrong by itself.
TROUBLE = (RunState.FAILED, RunState.TIMED_OUT, RunState.CRASHED)

# In the spans and the metrics.
KINDS = {"Task": "task", "Job": "job", "Memoized function": "memo"}


class Work(NamedTuple):
    """
    What is executed, and how.

    Attributes
    ----------
    kind, label : str
        ``"Job"`` and the name of the function.
    function : callable
    executor : Executor
    isolated : bool
        Whether it runs in another process, to which it travels, and where it can be stopped whatever it does.
    elsewhere : bool
        Whether that is a worker of another program, on whatever machine.
    on_loop : bool
        Whether it runs on the event loop.
    is_async : bool
    timeout : float or None
        Seconds.
    retry : Retry
    limits : tuple of Limit or None
        Of what it needs a place each as long as its function runs.
    """

    kind: str
    label: str
    function: Callable[..., Any]
    executor: Executor
    isolated: bool
    elsewhere: bool
    on_loop: bool
    is_async: bool
    timeout: float | None
    retry: Retry
    limits: Limits | None = None

    @property
    def waits_before(self) -> bool:
        """Whether it waits for what it reads before it begins, and never while it runs."""
        return self.on_loop or self.limits is not None

    @property
    def in_thread(self) -> bool:
        """Whether it runs in a thread of this process."""
        return not (self.isolated or self.on_loop)

    @property
    def stoppable(self) -> bool:
        """Whether the function can be ended, so that it may be tried again after a timeout; a thread's cannot."""
        return self.isolated or self.is_async


def work_of(
    kind: str,
    label: str,
    function: Callable[..., Any],
    where: str,
    executor: Executor,
    timeout: float | None,
    retry: Retry,
    limits: Limits | None = None,
) -> Work:
    """What an executor of this name executes: ``"thread"``, ``"loop"`` or another one, in another process."""
    on_loop, isolated = where == "loop", where not in ("thread", "loop")
    elsewhere = isolated and where != "process"
    return Work(
        kind, label, function, executor, isolated, elsewhere, on_loop, is_async(function), timeout, retry, limits
    )


class Execution(ABC):
    """
    One execution of a function, to its one final state.

    A task's, a job's and a memoized function's differ in what is made of what the function gives: each kind has a
    subclass, which says that in the methods below "what each kind makes of it".

    Attributes
    ----------
    work : Work
    run : Run
        What ``ps.current_run()`` is inside.
    args, kwargs : tuple, dict
    body : callable or None
        What an executor is to call.
    future : Future or None
        Of the body, from the time when an executor has it until it is over.
    timer : Timer or None
        Of the timeout.
    waiters : list of Run
        Of those who share it, each his own.
    """

    __slots__ = (
        "args", "body", "future", "kwargs", "run", "service", "taken_over", "telling", "timer", "told", "waiters",
        "work",
    )  # fmt: skip

    # Who follows a run hears of its progress this often, in seconds.
    pace = 0.05

    def __init__(
        self, service: Service, work: Work, run: Run, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ):
        self.service = service
        self.work = work
        self.run = run
        self.args, self.kwargs = args, kwargs or {}
        self.body: Callable[[], Any] | None = None
        self.future: Future[Any] | None = None
        self.timer: Timer | None = None
        # Whether it was started again as its worker was lost.
        self.taken_over = False
        # Whether its progress was told a moment ago, and what that was.
        self.waiters: list[Run] = []
        self.telling = False
        self.told: tuple[Any, ...] = ()
        if work.limits is not None:
            own = None if (caller := _current.get()) is None else caller._execution
            if isinstance(own, Execution) and own.work.limits is not None:
                service.limiter.warn(own.name, own.work.limits, self.name, work.limits)

    @property
    def name(self) -> str:
        """As errors and the log have it: ``Job 'total'``."""
        return f"{self.work.kind} {self.work.label!r}"

    @property
    def parameters(self) -> Sequence[str]:
        """How the function calls its arguments."""
        return ()

    @property
    def hidden(self) -> Collection[str]:
        """Which of them are not told."""
        return ()

    @property
    def arguments(self) -> str:
        """They as text, shortened: ``[1, 2], year=2026``."""
        if (text := self.run.arguments) is None:
            text = arguments_text(self.parameters, self.args, self.kwargs, self.hidden)
            self.run.arguments = text
        return text

    @property
    def call(self) -> str:
        """The call as text: ``total([1, 2])``."""
        return f"{self.work.label}({self.arguments})"

    # ------------------------------------------------------------ the body

    def prepare(self) -> None:
        """Make what the executor can call."""
        if self.work.isolated:
            self.body = RemoteCall(
                self.name, self.work.function, self.args, self.kwargs, run=self.run,
                begin=self.begin, trace=self.trace, receive=self.publish,
                answer=partial(self.service.answer, self.run),
            )  # fmt: skip
        else:
            self.body = self._async_body if self.work.is_async else self._body

    def pack(self) -> None:
        """
        The same, with the arguments as they are now; without the lock.

        Raises
        ------
        ValueRefused
            When one of them cannot travel.
        """
        self.prepare()
        if isinstance(self.body, RemoteCall):
            self.body.pack()

    def start(self) -> None:
        """Hand the body to its executor, as soon as there is a place for it. Under the lock."""
        if self.body is None:
            self.prepare()
        assert self.body is not None
        limits = self.work.limits
        if limits is not None and not self.service.limiter.holds(self.run):
            self.service.limiter.enter(self.run, limits, self.start)
            return
        executor = self.work.executor
        self.service.locked.submitted.add(executor)
        self.future = executor.submit(self.body, self.name)
        if limits is not None:  # first: what follows may start it again
            self.future.add_done_callback(lambda _: self.service.limiter.leave(self.run))
        self.future.add_done_callback(self.body_ended)

    def _enter(self) -> None:
        """In the context of the body."""
        _current.set(self.run)
        leave_session(self.name)
        if spans.is_on():
            self.trace()
            spans.enter(self.run._span)

    def trace(self) -> spans.Carrier:
        """Let the attempt that begins have its span; that as it travels. Without the lock."""
        run, work = self.run, self.work
        if run._span is None and spans.is_on():
            kind = KINDS[work.kind]
            about: dict[str, str | int] = {
                "panel_schedule.kind": kind,
                "panel_schedule.name": work.label,
                "panel_schedule.run": run.id,
                "panel_schedule.attempt": run.attempt,
            }
            if run.on_occasion:
                about["panel_schedule.slot"] = run.key.isoformat() if isinstance(run.key, datetime) else str(run.key)
            parent = run.asked if self.is_own else spans.NOWHERE
            links = () if self.is_own else [each.asked for each in self.runs]
            run._span = spans.begin(f"{kind} {work.label}", about, parent, links, kind == "job")
        return run.carrier

    def _body(self) -> Any:
        self.begin()
        self._enter()
        result = self.invoke()
        if self.work.on_loop and inspect.isgenerator(result):
            return async_outcome(result, self._publish_from_loop)
        return outcome(result, self.publish)

    async def _async_body(self) -> Any:
        self.begin()
        await self.begun_on_loop()
        self._enter()
        result = self.invoke()
        if isinstance(result, CoroutineType):  # nearly always
            return await result
        return await async_outcome(result, self._publish_from_loop)

    def invoke(self) -> Any:
        """Call the function."""
        args, kwargs = self.args, self.kwargs
        if self.run.attempt < self.work.retry.max_attempts:
            args, kwargs = self.now()  # the next attempt gets them as they were, too
        return self.work.function(*args, **kwargs)

    def previous(self) -> Any:
        """What its function gave before; only a task has such."""
        return None

    def now(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies of the arguments."""
        return snapshot(self.args, self.kwargs)

    def begin(self) -> None:
        """The function begins: from now on its timeout runs."""
        with self.service.locked:
            self.run.check()
            self.run.begin(self.service.clock.now())
            self.run._execution = self
            self.limit()
            self.begun()
        if (span := self.run._span) is not None:  # of a call that has waited for a worker of another program
            spans.mark(span, "begun")

    def limit(self) -> None:
        """Let the timeout run. Under the lock."""
        self.service.timers.cancel(self.timer)
        if (timeout := self.work.timeout) is not None:
            self.timer = self.service.timers.after(timeout, Execution._timed_out, self)

    async def _publish_from_loop(self, item: Any) -> None:
        if self.service.store.blocking:
            await asyncio.wrap_future(self.service.outbox.aside(partial(self.publish, item)))
        else:
            self.publish(item)

    def publish_inside(self, item: Any) -> None:
        """What the function itself publishes; an async one cannot be made to wait for it."""
        if self.service.store.blocking and on_a_loop():
            self.publish_late(item)
        else:
            self.publish(item)

    # ------------------------------------------------------------ its end

    def body_ended(self, future: Future[Any]) -> None:
        """The body is over, wherever it ran; called there, without the lock."""
        self.in_time()
        if self.takes_long and on_a_loop():
            self.service.outbox.aside(partial(self._conclude, future))
        else:
            self._conclude(future)

    def in_time(self) -> None:
        """Its function has ended: that to store what it gave takes long is no fault of its."""
        if self.timer is not None:
            with self.service.locked:
                self.service.timers.cancel(self.timer)

    def _conclude(self, future: Future[Any]) -> None:
        try:
            error = future.exception()
        except CancelledError as cancelled:
            self.conclude(error=cancelled, cancelled=True)
        else:
            self.conclude(future.result() if error is None else None, error)

    def conclude(self, result: Any = None, error: BaseException | None = None, cancelled: bool = False) -> None:
        """Store what the body gave, and end it."""
        value = None
        if error is None and not self.run.state.final:
            try:
                value = self.deposit(result)
            except BaseException as exc:  # a value can raise anything while it is stored
                error = exc
        self.concluded(value, error, cancelled)

    def concluded(self, value: Any, error: BaseException | None, cancelled: bool = False) -> None:
        """What the body gave is stored, or could not be: end it, whatever happens, for all who wait for it."""
        try:
            self._concluded(value, error, cancelled)
        except BaseException as bug:
            with self.service.locked:
                if not self.run.state.final:
                    self.end(RunState.FAILED, error or bug)
            raise

    def _concluded(self, value: Any, error: BaseException | None, cancelled: bool) -> None:
        run, service = self.run, self.service
        if isinstance(error, CANCELLED):
            ended = cancelled or isinstance(error, Interrupted) or service.stopping
            error = error if ended else cancelled_inside(self.name, error)
        outcome = RunState.CRASHED if isinstance(error, RunCrashed) else RunState.FAILED
        if run.expired and error is not None:
            outcome, error = RunState.TIMED_OUT, self._timeout_error()
        # Else it is what the function itself has got from a run that was cancelled, and raises.
        stopped = isinstance(error, (*CANCELLED, RunFenced, Cancel))
        stopped = stopped or (service.stopping and isinstance(error, (RunCancelled, RetryLater)))
        if isinstance(error, RetryLater) and not (stopped or self._comes_again(error)):
            error = self._asked_in_vain(error)
        if error is not None and not (stopped or run.state.final):
            if self._comes_again(error):
                run.end_span(outcome, error)  # each attempt has one
            else:
                self.fails(outcome, error)
        with service.locked:
            self.future = run._execution = None
            service.timers.cancel(self.timer)
            if run.state.final:
                self.left()
            elif error is None:
                self.end(RunState.SUCCEEDED, value=value)
            elif stopped:
                self.stopped(error)
            else:
                self._failed(outcome, error)
            if run.state.final:
                self.body = None  # which knows this: only the garbage collection would end that

    def _comes_again(self, error: BaseException) -> bool:
        # A lost worker is a takeover: an attempt, beyond those that there are, but only once.
        again, retry = isinstance(error, WorkerLost) and not self.taken_over, self.work.retry
        if isinstance(error, RetryLater):
            again = self.run.attempt < retry.most_later
        return (again or (self.run.attempt < retry.max_attempts and retry.wants(error))) and self.retries

    def _asked_in_vain(self, error: RetryLater) -> RunFailed:
        attempts = self.run.attempt
        failed = RunFailed(
            f"{self.name}: its function asked to be run {error}, and this was the last of {attempts} attempts. Allow "
            f"it more, retry=ps.Retry(max_attempts={2 * attempts})."
        )
        failed.__cause__ = error
        return failed

    def why_stopped(self, error: BaseException) -> str:
        """The reason of its run, whose body was ended from outside, or has ended itself by `Cancel`."""
        if isinstance(error, Cancel):
            return f"{Cause.CANCELLED}: {error}" if error.args else Cause.CANCELLED
        return Cause.STOPS if self.service.stopping else Cause.CANCELLED

    def _failed(self, outcome: RunState, error: BaseException) -> None:
        if not self._comes_again(error):
            self.end(outcome, error)
            return
        self.taken_over |= isinstance(error, WorkerLost)
        run, call = self.run, self.call
        later = isinstance(error, RetryLater)
        try:
            delay = self._pause(error)
        except BaseException as bug:
            if is_interrupt(bug):
                raise
            log.exception("%s: its Retry(delay=...) failed, and so it is not tried again.", self.name)
            self.end(outcome, error)
            return
        attempts = self.work.retry.most_later if later else self.work.retry.max_attempts
        # While it keeps failing each attempt is more of the same.
        log.log(
            logging.DEBUG if self.is_failing else logging.INFO if later else logging.WARNING,
            "%s: attempt %d of %d failed (run %s%s), the next follows in %g s: %s", self.name, run.attempt,
            max(attempts, run.attempt + 1), run.id, call and f": {call}", delay, first_line(error),
        )  # fmt: skip
        run.again(error)
        self.service.timers.after(delay, Execution._start_again, self)
        self.repeated()

    def _pause(self, error: BaseException) -> float:
        if isinstance(error, RetryLater):
            return error.delay
        return 0.0 if isinstance(error, WorkerLost) else self.work.retry.pause(self.run.attempt, self.run.id)

    def _start_again(self) -> None:
        if not self.run.state.final:
            self.start()

    def _timed_out(self) -> None:
        run, future = self.run, self.future
        if run.state.final or self.too_late:
            return
        retry = self.work.retry
        again = run.attempt < retry.max_attempts and retry.wants(self._timeout_error())
        again = again and self.work.stoppable and future is not None
        if again and not run.expired:
            run.expired = True
            if self.work.on_loop:  # a process will have ended soon, whatever it does
                self.timer = self.service.timers.after(LAST_WORDS, Execution._timed_out, self)
        else:
            # A thread cannot be ended, and two bodies of a run never go at once: its timeout is final.
            self.end(RunState.TIMED_OUT, self._timeout_error())
        if future is not None:
            future.cancel()

    def _timeout_error(self) -> RunTimedOut:
        return RunTimedOut(
            f"{self.name}: it did not finish within its timeout of {self.work.timeout:g} s. Give it a longer one, or "
            "less to do."
        )

    def cancel(self, run: Run, reason: str) -> None:
        """End it from outside, at once. Its body is told to stop."""
        with self.service.locked:
            if run.state.final:
                return
            future = self.future
            run.reason = reason
            self.end(RunState.CANCELLED, RunCancelled(f"{self.name}: the run was {reason}."))
            if future is not None:
                future.cancel()

    def record(self, outcome: RunState, error: BaseException | None = None) -> RunRecord:
        """It for the history, as it is about to end."""
        self.arguments  # noqa: B018  # made while they are there
        return self.run.record_as(outcome, self.service.clock.now(), error, self.service.store.me, self.run.key)

    # ------------------------------------------------------------ who shares it; under the lock

    @property
    def runs(self) -> list[Run]:
        """Its run, and those of its waiters."""
        return [self.run, *self.waiters]

    def inform(self, waiter: Run) -> None:
        """Bring a waiter up to date."""
        run = self.run
        waiter.percent, waiter.message = run.percent, run.message
        waiter.attempt, waiter.partials, waiter.started_at = run.attempt, run.partials, run.started_at
        if not run.state.final:
            waiter.state = run.state

    def join(self, waiter: Run) -> None:
        """One more waits for it."""
        self.inform(waiter)
        waiter._stop = self.leave
        self.waiters.append(waiter)
        if waiter.asked and self.run._span is not None:
            spans.link(self.run._span, waiter.asked)

    def leave(self, waiter: Run, reason: str) -> None:
        """Who gives up ends nothing for the others. Takes the lock."""
        with self.service.locked:
            if waiter.state.final:
                return
            if waiter not in self.waiters:  # it has just moved to another execution
                self.service.defer(lambda: waiter.cancel(reason))
                return
            self.waiters.remove(waiter)
            waiter.reason = reason
            error = RunCancelled(f"{self.name}: the run was {reason}.")
            waiter.end(RunState.CANCELLED, self.service.clock.now(), error)
            waiter._stop = waiter._waiting = None
            self.service.defer(waiter.touch)
            self.service.defer(waiter.resolve)
            if not self.waiters:
                self.unwanted(reason)

    # ------------------------------------------------------------ its progress

    def progressed(self) -> None:
        """On the thread of the function, at each step: who follows it hears of it at once, and then now and then."""
        if not self.telling:
            self.telling = True
            with self.service.locked:
                self._tell()

    def _tell(self) -> None:
        run = self.run
        # In this order: who makes progress from here on finds that nobody is about to tell.
        self.telling = False
        news = (run.attempt, run.percent, run.message, len(run.partials))
        if news != self.told and not run.state.final:
            self.telling, self.told = True, news
            self.service.timers.after(self.pace, Execution._tell, self)
            self.tell_progress(run.percent, run.message)

    # ------------------------------------------------------------ what each kind makes of it

    @abstractmethod
    def publish(self, item: Any) -> None:
        """Take in what the function gives before its end; on its own thread, or in another one of a coroutine."""

    def publish_late(self, item: Any) -> None:
        """The same on an event loop, which cannot wait for a store."""
        self.publish(item)

    @abstractmethod
    def deposit(self, result: Any) -> Any:
        """Store what it has given at its end; the value as everybody reads it. Without the lock."""

    @abstractmethod
    def end(self, outcome: RunState, error: BaseException | None = None, value: Any = None) -> None:
        """Bring it to its final state, and tell who waits for it. Under the lock."""

    @property
    def too_late(self) -> bool:
        """Whether it is about to succeed, and is neither cancelled nor out of time any more."""
        return False

    @property
    def takes_long(self) -> bool:
        """Whether to store what it gives may take long."""
        return self.service.store.blocking

    def begun(self) -> None:
        """It has begun. Under the lock."""

    async def begun_on_loop(self) -> None:
        """Before a coroutine begins, in which to wait for what `begun` has led to."""

    def unwanted(self, reason: str) -> None:
        """The last one who waited for it has given up. Under the lock."""

    def fails(self, outcome: RunState, error: BaseException) -> None:
        """It is about to end so, and is not tried again. Without the lock."""

    def stopped(self, error: BaseException) -> None:
        """Its body has been ended from outside. Under the lock."""
        self.end(RunState.CANCELLED, error)

    def left(self) -> None:
        """Its body has come to its end after it. Under the lock."""

    def repeated(self) -> None:
        """Another attempt is going to follow. Under the lock."""

    def tell_progress(self, percent: int, message: str) -> None:
        """Its progress is news. Under the lock."""

    @property
    def is_own(self) -> bool:
        """Whether it is for nobody but who has asked for it."""
        return False

    @property
    def retries(self) -> bool:
        """Whether it may be tried again now."""
        return not self.service.stopping

    @property
    def is_failing(self) -> bool:
        """Whether it is known that the function fails."""
        return False
