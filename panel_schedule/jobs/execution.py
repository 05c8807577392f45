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
from .executions import PROGRESS, Work, Works

log = logging.getLogger("panel_schedule")

# How a body ends that was told to stop, on a loop or before it began.
STOPPED = (asyncio.CancelledError, CancelledError, RunFenced)

# So often, in seconds, who waits for the store looks whether that is in trouble.
LOOK = 0.1

# Where each kind runs: apart from the tasks, which must not wait for what visitors start.
EXECUTORS = {"process": "job-process", "thread": "job-thread", "loop": "loop"}


class Desk(Protocol):
    """What a workshop finds at the scheduler's."""

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


class Workshop:
    """
    Where works are done, each to its one final state.

    Parameters
    ----------
    desk : Desk
    works : Works
    ended : callable
        ``ended(work)``, under the lock.
    """

    def __init__(self, desk: Desk, works: Works, ended: Callable[[Work], object]):
        self._s = desk
        self._works = works
        self._ended = ended

    # ------------------------------------------------------------ beginning

    def admit(self, work: Work) -> None:
        """It is under way from now on. Under the lock."""
        run = work.run
        self._works.add(work)
        run._stop = partial(self.cancel, work)
        run._publish, run._changed = partial(self.publish, work), partial(self.progressed, work)

    def prepare(self, work: Work) -> None:
        """Make what an executor can call. Raises ValueRefused when an argument cannot travel."""
        function, kind = work.function.function, work.function.policy.executor
        begin, receive = partial(self._begin, work), partial(self.publish, work)
        if kind == "process":
            work.body = parcel = Parcel(
                work.name, function, work.args, work.kwargs, run=work.run,
                begin=begin, receive=receive, answer=partial(self._s.answer, work.run),
            )  # fmt: skip
            parcel.pack()
            return

        def call() -> Any:
            args, kwargs = work.args, work.kwargs
            if work.run.attempt < work.function.policy.retry.max_attempts:
                args, kwargs = snapshot(args, kwargs)  # the next attempt gets them as they were, too
            return function(*args, **kwargs)

        def body() -> Any:
            begin()
            _current.set(work.run)
            leave_session(work.name)
            return outcome(call(), receive)

        async def async_body() -> Any:
            begin()
            if self._counts(work):
                await asyncio.wrap_future(self._s.outbox.aside(partial(self._settle, work)))
            _current.set(work.run)
            leave_session(work.name)
            return await async_outcome(call(), publish)

        async def publish(item: Any) -> None:
            receive(item)
            if self._s.store.queue is not None:
                await asyncio.wrap_future(self._s.outbox.aside(partial(self._settle, work)))

        work.body = async_body if kind == "loop" else body

    def start(self, work: Work) -> None:
        """Hand it to its executor."""
        with self._s.locked:
            if work.run.state.final or work.remote or work.body is None:
                return
            executor = self._s.executors[EXECUTORS[work.function.policy.executor]]
            self._s.locked.submitted.add(executor)
            work.future = executor.submit(work.body, work.name)
            work.future.add_done_callback(partial(self._over, work))

    def _begin(self, work: Work) -> None:
        run = work.run
        with self._s.locked:
            run.check()
            run.begin(self._s.clock.now())
            run.partials, run.percent, run.message = Partials(), -1, ""  # of an earlier attempt
            work.size = work.dropped = 0
            self.tell_begin(work)
            if (timeout := work.function.policy.timeout) is not None:
                work.timer = self._s.timers.after(timeout, self._timed_out, work)
            self._works.touch(work)
            self._works.moved()
        if self._counts(work) and not on_a_loop():
            self._settle(work)

    def _counts(self, work: Work) -> bool:
        """Whether its attempts are counted by others: what kills its process at once must not do so again and again."""
        return work.function.policy.durable and self._s.store.queue is not None

    # ------------------------------------------------------------ under way

    def publish(self, work: Work, item: Any) -> None:
        """Take in a partial result; on the thread of the body, or the loop."""
        run, waits = work.run, not on_a_loop()
        run.check()
        require_data(item, work.name)
        shared, abroad = self._s.store.queue is not None, work.function.policy.executor == "process"
        if shared and not abroad and (waits or is_light(item)):
            # What cannot be stored is refused here, and not where nobody hears of it.
            encode(item, work.name).close()
        with self._s.locked:
            run.check()
            assert isinstance(run.partials, list)
            run.partials.append(item)
            self._make_room(work, run.partials)
            self._tell_partial(work, len(run.partials) - 1, item)
        if shared and waits:
            # The function may change what it has published as soon as this returns.
            self._settle(work)
        self.progressed(work)

    def _make_room(self, work: Work, partials: list[Any]) -> None:
        """A run that goes on for ever keeps its newest partial results. Under the lock."""
        work.size += size_of(partials[-1])
        while work.size > self._works.most_bytes and work.dropped < len(partials) - 1:
            if not work.dropped:
                log.warning(
                    "%s: its partial results take more than ps.config.max_result_bytes=%d; the oldest ones are None "
                    "from now on.", work.name, self._works.most_bytes,
                )  # fmt: skip
            work.size -= size_of(partials[work.dropped])
            partials[work.dropped] = None
            work.dropped += 1

    def progressed(self, work: Work) -> None:
        """On the thread of the run, at each step: those who follow it hear of it at once, and then now and then."""
        if not work.telling:
            work.telling = True
            with self._s.locked:
                self._tell_progress(work)

    def _tell_progress(self, work: Work) -> None:
        run = work.run
        # In this order: who makes hooks from here on finds that nobody is about to tell.
        work.telling = False
        hooks = (run.attempt, run.percent, run.message, len(run.partials))
        if hooks != work.told and not run.state.final:
            work.telling, work.told = True, hooks
            self._s.timers.after(PROGRESS, self._tell_progress, work)
            self._works.touch(work)
            _, percent, message, _ = hooks
            self.tell(work, lambda queue: queue.tell(run.id, work.fence, percent, message))

    # ------------------------------------------------------------ ending

    def _over(self, work: Work, future: Future[Any]) -> None:
        """The body is over, wherever it ran; called there, without the lock."""
        if on_a_loop() and self._s.store.blocking:
            self._s.outbox.aside(partial(self._conclude, work, future))
        else:
            self._conclude(work, future)

    def _conclude(self, work: Work, future: Future[Any]) -> None:
        run, value, told = work.run, None, False
        error: BaseException | None = CancelledError() if future.cancelled() else future.exception()
        if error is None and not run.state.final:
            try:
                value, told = self._deposit(work, future.result())
            except BaseException as exc:  # a value can raise anything while it is stored
                error = exc
        ended = future.cancelled() or isinstance(error, Interrupted) or self._s.stopping
        if isinstance(error, CANCELLED) and not ended:
            error = cancelled_inside(work.name, error)
        with self._s.locked:
            work.future = None
            self._s.timers.cancel(work.timer)
            if run.state.final:
                return
            if run.expired and error is not None:
                self._failed(work, RunState.TIMED_OUT, self._timeout_error(work))
            elif error is None:
                self.end(work, RunState.SUCCEEDED, value=value, told=told)
            elif isinstance(error, STOPPED) or (self._s.stopping and isinstance(error, RunCancelled)):
                self.cancel(work, run, STOPS if self._s.stopping else "cancelled")
            else:
                self._failed(work, RunState.CRASHED if isinstance(error, RunCrashed) else RunState.FAILED, error)

    def _deposit(self, work: Work, result: Any) -> tuple[Any, bool]:
        """The value as everybody reads it from now on, and whether a shared store has it."""
        run = work.run
        value = run.partials[-1] if result is PUBLISHED else result
        require_data(value, work.name)
        if self._s.store.queue is not None:
            self._settle(work)  # its partial results come first
            if work.fence:
                try:
                    return self._tell_end(self._s.store.queue, work, RunState.SUCCEEDED, value), True
                except (StoreError, OSError) as error:
                    log.error("%s: its result cannot be stored now; it is tried again. %s", work.name, error)
        return value, False

    def _failed(self, work: Work, state: RunState, error: BaseException) -> None:
        run, retry, durable = work.run, work.function.policy.retry, work.function.policy.durable
        if run.attempt >= retry.max_attempts or (self._s.stopping and not durable):
            self.end(work, state, error)
            return
        delay = retry.delay(run.attempt)
        log.log(
            logging.DEBUG if self._s.hooks.failures.known(("job", work.function.name)) else logging.WARNING,
            "%s: attempt %d of %d failed (run %s: %s), the next follows in %g s: %s",
            work.name, run.attempt, retry.max_attempts, run.id, work.call, delay, first_line(error),
        )  # fmt: skip
        run.again(error)
        attempt = run.attempt
        self.tell(work, lambda queue: queue.again(run.id, work.fence, attempt))
        if self._s.stopping:
            self.cancel(work, run, STOPS)  # another process tries it again
            return
        self._s.timers.after(delay, self.start, work)
        self._works.touch(work)

    def _timed_out(self, work: Work) -> None:
        run, future = work.run, work.future
        if run.state.final or future is None:
            return
        # A thread cannot be ended, and two bodies of a run never go at once: its timeout is final.
        last = run.attempt >= work.function.policy.retry.max_attempts or work.function.policy.executor == "thread"
        if last or run.expired:
            self.end(work, RunState.TIMED_OUT, self._timeout_error(work))
        else:
            run.expired = True
            if work.function.policy.executor == "loop":  # a process will have ended soon, whatever it does
                work.timer = self._s.timers.after(LAST_WORDS, self._timed_out, work)
        future.cancel()

    def _timeout_error(self, work: Work) -> RunTimedOut:
        return RunTimedOut(
            f"{work.name}: it did not finish within its timeout of {work.function.policy.timeout:g} s. Give it a "
            "longer one, or less to do."
        )

    def cancel(self, work: Work, run: Run, reason: str) -> None:
        """End it from outside, at once; its body is told to stop."""
        with self._s.locked:
            if run.state.final:
                return
            future = work.future
            run.reason = reason
            self.end(work, RunState.CANCELLED, RunCancelled(f"{work.name}: the run was {reason}."))
            if future is not None:
                future.cancel()

    def refuse(self, work: Work, error: BaseException) -> None:
        """It cannot even begin."""
        with self._s.locked:
            if not work.run.state.final:
                self.end(work, RunState.FAILED, error)

    def end(
        self,
        work: Work,
        state: RunState,
        error: BaseException | None = None,
        value: Any = None,
        told: bool = False,
        at: datetime | None = None,
    ) -> None:
        """Bring its runs to their final state. Under the lock."""
        now = at or self._s.clock.now()
        self._s.timers.cancel(work.timer)
        for run in work.runs:
            if run.state.final:  # a guest who has cancelled while it came in
                continue
            if run is not work.run:
                work.inform(run)
            run.reason = work.run.reason
            run.end(state, now, error, value)
            # What it refers to need not live as long as its result.
            run._stop = run._rank = run._publish = run._changed = None
            self._s.defer(run.touch)
            self._s.defer(partial(run.resolve, value))
        unfinished = work.function.policy.durable and work.run.reason == STOPS
        if not told and not unfinished:  # else another process finishes it, or the next server
            self.tell(work, lambda queue: self._tell_end(queue, work, state, value))
        if work.remote:
            pass  # the process that ran it says what came of it
        elif state in TROUBLE:
            assert error is not None
            what = f"{work.name} {state.replace('_', ' ')} (run {work.run.id}: {work.call})"
            self._s.hooks.failures.failed(("job", work.function.name), what, error, FORGET)
            self._s.hooks.emit("failed", work.function, work.run)
        elif state is RunState.SUCCEEDED:
            self._s.hooks.emit("succeeded", work.function, work.run)
        work.guests, work.args, work.kwargs, work.body = [], (), {}, None
        self._works.over(work)
        self._ended(work)
        self._works.moved()

    # ------------------------------------------------------------ what a shared store is told

    def tell(self, work: Work, call: Callable[[Queue], object]) -> None:
        """Let the store know, in order, once it has the row. Under the lock."""
        queue = self._s.store.queue
        if queue is not None and work.fence and not work.remote:
            self._s.outbox.ask((), partial(self._try, work, call, queue))

    def _try(self, work: Work, call: Callable[[Queue], object], queue: Queue) -> None:
        try:
            call(queue)
        except ValueRefused as error:  # of a coroutine, which could not wait for this
            log.error("%s", error)
        except RunFenced:
            row = queue.job(work.run.id)
            if row is not None and not row.state.final:  # else its end was told by the thread of the body, meanwhile
                self.lose(work)

    def lose(self, work: Work) -> None:
        """Another process has taken it over, as this one was taken for dead."""
        with self._s.locked:
            work.fence = 0
            self.cancel(work, work.run, "taken over by another process")

    def tell_begin(self, work: Work) -> None:
        run = work.run
        if (now := run.started_at) is not None:
            attempt = run.attempt
            self.tell(work, lambda queue: queue.begin(run.id, work.fence, now, attempt))

    def _tell_partial(self, work: Work, number: int, item: Any) -> None:
        run = work.run
        self.tell(work, lambda queue: queue.add_partial(run.id, work.fence, number, item))

    def tell_all(self, work: Work) -> None:
        """What has happened before the store had it. Under the lock."""
        run = work.run
        self.tell_begin(work)
        for number, item in enumerate(run.partials):
            self._tell_partial(work, number, item)
        if run.state.final:
            self.tell(work, lambda queue: self._tell_end(queue, work, run.state, run.shared))

    def _settle(self, work: Work) -> None:
        """Wait until the store was told what went before, unless it cannot take it now."""
        work.stored.wait()
        done = threading.Event()
        with self._s.locked:
            self.tell(work, lambda queue: done.set())
            if not work.fence:
                return
        while not done.wait(LOOK) and not self._s.outbox.troubled:
            pass

    def _tell_end(self, queue: Queue, work: Work, state: RunState, value: Any) -> Any:
        run, policy, now = work.run, work.function.policy, self._s.clock.now()
        kept = policy.ttl if policy.ttl is not None and state is RunState.SUCCEEDED else policy.result_ttl
        return queue.end(
            run.id, work.fence, state, now=now, value=value, error=run.error, traceback=traceback_text(run.error),
            reason=run.reason, expires_at=now + kept,
        )  # fmt: skip
