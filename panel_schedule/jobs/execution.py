"""One execution of a background function from its start to its end: begin, publish, time out, retry, end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from ..clock import Clock
from ..engine.lock import Locked
from ..engine.outbox import Outbox
from ..engine.timers import Timers
from ..errors import RunCancelled, RunCrashed, RunFenced, RunTimedOut, StoreError, ValueRefused
from ..executors.base import Executor
from ..executors.loop import Interrupted
from ..executors.processes import Parcel
from ..functions.calls import CANCELLED, PUBLISHED, async_outcome, cancelled_inside, outcome
from ..functions.run import Partials, Run, RunState, _current, on_a_loop
from ..scheduling.execution import LAST_WORDS, STOPS, TROUBLE
from ..scheduling.hooks import FORGET, Hooks
from ..serialize.checks import is_light, require_data, size_of
from ..serialize.codec import encode
from ..serialize.copies import snapshot
from ..serialize.errors import first_line, traceback_text
from ..session import leave_session
from ..stores.base import Store
from ..stores.queue import Queue
from .executions import PROGRESS, Execution, Executions

log = logging.getLogger("panel_schedule")

# How a body ends that was told to stop, on a loop or before it began.
STOPPED = (asyncio.CancelledError, CancelledError, RunFenced)

# So often, in seconds, who waits for the store looks whether that is in trouble.
LOOK = 0.1

# Where each kind runs: apart from the tasks, which must not wait for what visitors start.
EXECUTORS = {"process": "job-process", "thread": "job-thread", "loop": "loop"}


class Desk(Protocol):
    """What a runner finds at the scheduler's."""

    clock: Clock
    store: Store
    executors: dict[str, Executor]
    timers: Timers
    locked: Locked
    outbox: Outbox
    hooks: Hooks
    stopping: bool

    def defer(self, call: Callable[[], object]) -> None: ...
    def answer(self, run: Run, question: str, *args: Any) -> Any: ...


class Runner:
    """
    Where executions are done, each to its one final state.

    Parameters
    ----------
    desk : Desk
    executions : Executions
    ended : callable
        ``ended(execution)``, under the lock.
    """

    def __init__(self, desk: Desk, executions: Executions, ended: Callable[[Execution], object]):
        self._s = desk
        self._executions = executions
        self._ended = ended

    # ------------------------------------------------------------ beginning

    def admit(self, execution: Execution) -> None:
        """It is under way from now on. Under the lock."""
        run = execution.run
        self._executions.add(execution)
        run._stop = partial(self.cancel, execution)
        run._publish, run._changed = partial(self.publish, execution), partial(self.progressed, execution)

    def prepare(self, execution: Execution) -> None:
        """Make what an executor can call. Raises ValueRefused when an argument cannot travel."""
        function, kind = execution.function.function, execution.function.policy.executor
        begin, receive = partial(self._begin, execution), partial(self.publish, execution)
        if kind == "process":
            execution.body = parcel = Parcel(
                execution.name, function, execution.args, execution.kwargs, run=execution.run,
                begin=begin, receive=receive, answer=partial(self._s.answer, execution.run),
            )  # fmt: skip
            parcel.pack()
            return

        def call() -> Any:
            args, kwargs = execution.args, execution.kwargs
            if execution.run.attempt < execution.function.policy.retry.max_attempts:
                args, kwargs = snapshot(args, kwargs)  # the next attempt gets them as they were, too
            return function(*args, **kwargs)

        def body() -> Any:
            begin()
            _current.set(execution.run)
            leave_session(execution.name)
            return outcome(call(), receive)

        async def async_body() -> Any:
            begin()
            if self._counts(execution):
                await asyncio.wrap_future(self._s.outbox.aside(partial(self._settle, execution)))
            _current.set(execution.run)
            leave_session(execution.name)
            return await async_outcome(call(), publish)

        async def publish(item: Any) -> None:
            receive(item)
            if self._s.store.queue is not None:
                await asyncio.wrap_future(self._s.outbox.aside(partial(self._settle, execution)))

        execution.body = async_body if kind == "loop" else body

    def start(self, execution: Execution) -> None:
        """Hand it to its executor."""
        with self._s.locked:
            if execution.run.state.final or execution.remote or execution.body is None:
                return
            executor = self._s.executors[EXECUTORS[execution.function.policy.executor]]
            self._s.locked.submitted.add(executor)
            execution.future = executor.submit(execution.body, execution.name)
            execution.future.add_done_callback(partial(self._over, execution))

    def _begin(self, execution: Execution) -> None:
        run = execution.run
        with self._s.locked:
            run.check()
            run.begin(self._s.clock.now())
            run.partials, run.percent, run.message = Partials(), -1, ""  # of an earlier attempt
            execution.size = execution.dropped = 0
            self.tell_begin(execution)
            if (timeout := execution.function.policy.timeout) is not None:
                execution.timer = self._s.timers.after(timeout, self._timed_out, execution)
            self._executions.touch(execution)
            self._executions.moved()
        if self._counts(execution) and not on_a_loop():
            self._settle(execution)

    def _counts(self, execution: Execution) -> bool:
        """Whether its attempts are counted by others: what kills its process at once must not do so again and again."""
        return execution.function.policy.durable and self._s.store.queue is not None

    # ------------------------------------------------------------ under way

    def publish(self, execution: Execution, item: Any) -> None:
        """Take in a partial result; on the thread of the body, or the loop."""
        run, waits = execution.run, not on_a_loop()
        run.check()
        require_data(item, execution.name)
        shared, abroad = self._s.store.queue is not None, execution.function.policy.executor == "process"
        if shared and not abroad and (waits or is_light(item)):
            # What cannot be stored is refused here, and not where nobody hears of it.
            encode(item, execution.name).close()
        with self._s.locked:
            run.check()
            assert isinstance(run.partials, list)
            run.partials.append(item)
            self._make_room(execution, run.partials)
            self._tell_partial(execution, len(run.partials) - 1, item)
        if shared and waits:
            # The function may change what it has published as soon as this returns.
            self._settle(execution)
        self.progressed(execution)

    def _make_room(self, execution: Execution, partials: list[Any]) -> None:
        """A run that goes on for ever keeps its newest partial results. Under the lock."""
        execution.size += size_of(partials[-1])
        while execution.size > self._executions.most_bytes and execution.dropped < len(partials) - 1:
            if not execution.dropped:
                log.warning(
                    "%s: its partial results take more than ps.config.max_result_bytes=%d; the oldest ones are None "
                    "from now on.", execution.name, self._executions.most_bytes,
                )  # fmt: skip
            execution.size -= size_of(partials[execution.dropped])
            partials[execution.dropped] = None
            execution.dropped += 1

    def progressed(self, execution: Execution) -> None:
        """On the thread of the run, at each step: those who follow it hear of it at once, and then now and then."""
        if not execution.telling:
            execution.telling = True
            with self._s.locked:
                self._tell_progress(execution)

    def _tell_progress(self, execution: Execution) -> None:
        run = execution.run
        # In this order: who makes hooks from here on finds that nobody is about to tell.
        execution.telling = False
        hooks = (run.attempt, run.percent, run.message, len(run.partials))
        if hooks != execution.told and not run.state.final:
            execution.telling, execution.told = True, hooks
            self._s.timers.after(PROGRESS, self._tell_progress, execution)
            self._executions.touch(execution)
            self._tell_how_far(execution)

    def _tell_how_far(self, execution: Execution) -> None:
        run = execution.run
        percent, message = run.percent, run.message
        self.tell(execution, lambda queue: queue.tell(run.id, execution.fence, percent, message))

    # ------------------------------------------------------------ ending

    def _over(self, execution: Execution, future: Future[Any]) -> None:
        """The body is over, wherever it ran; called there, without the lock."""
        if on_a_loop() and self._s.store.blocking:
            self._s.outbox.aside(partial(self._conclude, execution, future))
        else:
            self._conclude(execution, future)

    def _conclude(self, execution: Execution, future: Future[Any]) -> None:
        run, value, told = execution.run, None, False
        error: BaseException | None = CancelledError() if future.cancelled() else future.exception()
        if error is None and not run.state.final:
            try:
                value, told = self._deposit(execution, future.result())
            except BaseException as exc:  # a value can raise anything while it is stored
                error = exc
        ended = future.cancelled() or isinstance(error, Interrupted) or self._s.stopping
        if isinstance(error, CANCELLED) and not ended:
            error = cancelled_inside(execution.name, error)
        with self._s.locked:
            execution.future = None
            self._s.timers.cancel(execution.timer)
            if run.state.final:
                return
            if run.expired and error is not None:
                self._failed(execution, RunState.TIMED_OUT, self._timeout_error(execution))
            elif error is None:
                self.end(execution, RunState.SUCCEEDED, value=value, told=told)
            elif isinstance(error, STOPPED) or (self._s.stopping and isinstance(error, RunCancelled)):
                self.cancel(execution, run, STOPS if self._s.stopping else "cancelled")
            else:
                self._failed(execution, RunState.CRASHED if isinstance(error, RunCrashed) else RunState.FAILED, error)

    def _deposit(self, execution: Execution, result: Any) -> tuple[Any, bool]:
        """The value as everybody reads it from now on, and whether a shared store has it."""
        run = execution.run
        value = run.partials[-1] if result is PUBLISHED else result
        require_data(value, execution.name)
        if self._s.store.queue is not None:
            self._settle(execution)  # its partial results come first
            if execution.fence:
                try:
                    return self._tell_end(self._s.store.queue, execution, RunState.SUCCEEDED, value), True
                except (StoreError, OSError) as error:
                    log.error("%s: its result cannot be stored now; it is tried again. %s", execution.name, error)
        return value, False

    def _failed(self, execution: Execution, state: RunState, error: BaseException) -> None:
        run, retry, durable = execution.run, execution.function.policy.retry, execution.function.policy.durable
        if run.attempt >= retry.max_attempts or (self._s.stopping and not durable):
            self.end(execution, state, error)
            return
        delay = retry.delay(run.attempt)
        log.log(
            logging.DEBUG if self._s.hooks.failures.known(("job", execution.function.name)) else logging.WARNING,
            "%s: attempt %d of %d failed (run %s: %s), the next follows in %g s: %s",
            execution.name, run.attempt, retry.max_attempts, run.id, execution.call, delay, first_line(error),
        )  # fmt: skip
        run.again(error)
        attempt = run.attempt
        self.tell(execution, lambda queue: queue.again(run.id, execution.fence, attempt))
        if self._s.stopping:
            self.cancel(execution, run, STOPS)  # another process tries it again
            return
        self._s.timers.after(delay, self.start, execution)
        self._executions.touch(execution)

    def _timed_out(self, execution: Execution) -> None:
        run, future = execution.run, execution.future
        if run.state.final or future is None:
            return
        # A thread cannot be ended, and two bodies of a run never go at once: its timeout is final.
        last = (
            run.attempt >= execution.function.policy.retry.max_attempts
            or execution.function.policy.executor == "thread"
        )
        if last or run.expired:
            self.end(execution, RunState.TIMED_OUT, self._timeout_error(execution))
        else:
            run.expired = True
            if execution.function.policy.executor == "loop":  # a process will have ended soon, whatever it does
                execution.timer = self._s.timers.after(LAST_WORDS, self._timed_out, execution)
        future.cancel()

    def _timeout_error(self, execution: Execution) -> RunTimedOut:
        return RunTimedOut(
            f"{execution.name}: it did not finish within its timeout of {execution.function.policy.timeout:g} s. Give "
            "it a longer one, or less to do."
        )

    def cancel(self, execution: Execution, run: Run, reason: str) -> None:
        """End it from outside, at once; its body is told to stop."""
        with self._s.locked:
            if run.state.final:
                return
            if execution.joined:  # it has just moved to another execution
                self._s.defer(lambda: run.cancel(reason))
                return
            future = execution.future
            run.reason = reason
            self.end(execution, RunState.CANCELLED, RunCancelled(f"{execution.name}: the run was {reason}."))
            if future is not None:
                future.cancel()

    def refuse(self, execution: Execution, error: BaseException) -> None:
        """It cannot even begin."""
        with self._s.locked:
            if not execution.run.state.final:
                self.end(execution, RunState.FAILED, error)

    def end(
        self,
        execution: Execution,
        state: RunState,
        error: BaseException | None = None,
        value: Any = None,
        told: bool = False,
        at: datetime | None = None,
    ) -> None:
        """Bring its runs to their final state. Under the lock."""
        now = at or self._s.clock.now()
        self._s.timers.cancel(execution.timer)
        for run in execution.runs:
            if run.state.final:  # a waiter who has cancelled while it came in
                continue
            if run is not execution.run:
                execution.inform(run)
            run.reason = execution.run.reason
            run.end(state, now, error, value)
            # What it refers to need not live as long as its result.
            run._stop = run._rank = run._publish = run._changed = None
            self._s.defer(run.touch)
            self._s.defer(partial(run.resolve, value))
        unfinished = execution.function.policy.durable and execution.run.reason == STOPS
        if not told and not unfinished:  # else another process finishes it, or the next server
            self.tell(execution, lambda queue: self._tell_end(queue, execution, state, value))
        if execution.remote:
            pass  # the process that ran it says what came of it
        elif state in TROUBLE:
            assert error is not None
            what = f"{execution.name} {state.replace('_', ' ')} (run {execution.run.id}: {execution.call})"
            self._s.hooks.failures.failed(("job", execution.function.name), what, error, FORGET)
            self._s.hooks.emit("failed", execution.function, execution.run)
        elif state is RunState.SUCCEEDED:
            self._s.hooks.emit("succeeded", execution.function, execution.run)
        execution.waiters, execution.args, execution.kwargs, execution.body = [], (), {}, None
        self._executions.over(execution)
        self._ended(execution)
        self._executions.moved()

    # ------------------------------------------------------------ what a shared store is told

    def tell(self, execution: Execution, call: Callable[[Queue], object]) -> None:
        """Let the store know, in order, once it has the row. Under the lock."""
        queue = self._s.store.queue
        if queue is not None and execution.fence and not execution.remote:
            self._s.outbox.ask((), partial(self._try, execution, call, queue))

    def _try(self, execution: Execution, call: Callable[[Queue], object], queue: Queue) -> None:
        try:
            call(queue)
        except ValueRefused as error:  # of a coroutine, which could not wait for this
            log.error("%s", error)
        except RunFenced:
            row = queue.job(execution.run.id)
            if row is not None and not row.state.final:  # else its end was told by the thread of the body, meanwhile
                self.lose(execution)

    def lose(self, execution: Execution) -> None:
        """Another process has taken it over, as this one was taken for dead."""
        with self._s.locked:
            execution.fence = 0
            self.cancel(execution, execution.run, "taken over by another process")

    def tell_begin(self, execution: Execution) -> None:
        run = execution.run
        if (now := run.started_at) is not None:
            attempt = run.attempt
            self.tell(execution, lambda queue: queue.begin(run.id, execution.fence, now, attempt))

    def _tell_partial(self, execution: Execution, number: int, item: Any) -> None:
        run = execution.run
        self.tell(execution, lambda queue: queue.add_partial(run.id, execution.fence, number, item))

    def tell_all(self, execution: Execution) -> None:
        """What has happened before the store had it. Under the lock."""
        run = execution.run
        self.tell_begin(execution)
        if execution.told:
            self._tell_how_far(execution)
        for number, item in enumerate(run.partials):
            self._tell_partial(execution, number, item)
        if run.state.final:
            self.tell(execution, lambda queue: self._tell_end(queue, execution, run.state, run.shared))

    def _settle(self, execution: Execution) -> None:
        """Wait until the store was told what went before, unless it cannot take it now."""
        execution.stored.wait()
        done = threading.Event()
        with self._s.locked:
            self.tell(execution, lambda queue: done.set())
            if not execution.fence:
                return
        while not done.wait(LOOK) and not self._s.outbox.troubled:
            pass

    def _tell_end(self, queue: Queue, execution: Execution, state: RunState, value: Any) -> Any:
        run, policy, now = execution.run, execution.function.policy, self._s.clock.now()
        kept = policy.ttl if policy.ttl is not None and state is RunState.SUCCEEDED else policy.result_ttl
        return queue.end(
            run.id, execution.fence, state, now=now, value=value, error=run.error, traceback=traceback_text(run.error),
            reason=run.reason, expires_at=now + kept,
        )  # fmt: skip
