"""One run of a task from the time when it has its claim: the function, and what it publishes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, NamedTuple

from ..coordination.tasks import TASK, Claim
from ..engine.execution import Execution
from ..engine.service import Service
from ..errors import Cancel, RunCancelled, RunFenced, StoreError, ValueRefused
from ..functions.calls import CANCELLED, PUBLISHED
from ..functions.run import Cause, Run, RunRecord, RunState, on_a_loop, too_late
from ..serialize.checks import is_light
from ..serialize.copies import own_copy
from ..serialize.entry import Entry
from ..stores.records import Request
from .state import TaskState

log = logging.getLogger("panel_schedule")

# How often a value is tried again once a store that failed takes other things: else it is the value that it refuses.
TRIES = 3

# So often, in seconds, who waits for the store looks whether it waits in vain.
LOOK = 0.1

# A plain function that holds the event loop for longer than this, in seconds, is named in a warning.
HELD_TOO_LONG = 0.1

_warned = set[str]()


class Events(NamedTuple):
    """
    Who hears what comes of executions. All under the lock.

    Attributes
    ----------
    begun : callable
        ``begun(state)``; also when another attempt is going to follow.
    ended : callable
        ``ended(state, run, outcome, error, value)``
    left : callable
        ``left(state)`` when the body has come to its end after its run.
    """

    begun: Callable[[TaskState], object]
    ended: Callable[[TaskState, Run, RunState, BaseException | None, Any], object]
    left: Callable[[TaskState], object]


class TaskExecution(Execution):
    """
    The execution of a run that has its claim.

    Parameters
    ----------
    service : Service
    state : TaskState
    run : Run
    events : Events

    Attributes
    ----------
    recorded : RunRecord or None
        What the store is being told, or was told, of its end, together with its value: to cancel it comes too late.
    """

    __slots__ = ("depositing", "events", "published", "recorded", "state", "tries")

    pace = 0.1

    def __init__(self, service: Service, state: TaskState, run: Run, events: Events):
        if state.work.function is not state.task.function:  # edited, under --dev
            state.work = state.work._replace(function=state.task.function)
        super().__init__(service, state.work, run)
        self.state = state
        self.events = events
        self.recorded: RunRecord | None = None
        # What stores its value.
        self.depositing: Request | None = None
        self.tries = TRIES
        # Whether this attempt has given something.
        self.published = False

    @property
    def call(self) -> str:
        return ""  # there is but one

    @property
    def retries(self) -> bool:
        return not (self.state.removed or self.service.stopping)

    @property
    def is_failing(self) -> bool:
        return self.state.error != ""

    @property
    def too_late(self) -> bool:
        return self.recorded is not None

    def submit(self) -> None:
        """Hand it to its executor, unless it has ended meanwhile. Under the lock."""
        if not self.run.state.final:
            self.service.timers.cancel(self.timer)
            self.start()

    def invoke(self) -> Any:
        if self.work.is_async or not self.work.on_loop:
            return self.work.function()
        clock = self.service.clock
        started = clock.monotonic()
        try:
            return self.work.function()
        finally:
            self._warn_if_held(clock.monotonic() - started)

    def _warn_if_held(self, seconds: float) -> None:
        name = self.run.task
        if seconds > HELD_TOO_LONG and name not in _warned:
            _warned.add(name)
            log.warning(
                "Task %r held the event loop, and with it every open page, for %.0f ms. Run it in a thread: "
                "threaded=True of ps.schedule_task, executor='thread' of ps.schedule.", name, seconds * 1000,
            )  # fmt: skip

    # ------------------------------------------------------------ what it publishes

    def begun(self) -> None:
        self.published = False
        self.events.begun(self.state)

    async def begun_on_loop(self) -> None:
        if self._is_behind:
            await asyncio.wrap_future(self.service.outbox.aside(self._latest))

    @property
    def _is_behind(self) -> bool:
        """Whether this process has still to hear of the value that there was when the run got its claim."""
        entry, claim = self.service.store.values.known(TASK, self.run.task), self.state.claim
        return claim is not None and (0 if entry is None else entry.version) < claim.version

    def _latest(self) -> Entry | None:
        return self.service.store.values.latest(TASK, self.run.task)

    def previous(self) -> Any:
        self._claim()
        if self.published:
            raise too_late(self.run.task)
        entry = self._latest() if self._is_behind else self.service.store.values.known(TASK, self.run.task)
        return self.state.task.value_of(entry)

    def publish(self, item: Any) -> None:
        self.published = True
        while True:
            self.run.check()
            try:
                self.service.store.do(self._to_publish(item, self._claim(), final=False))
                return
            except StoreError:
                if not self._await_store():
                    raise

    def _await_store(self) -> bool:
        """Wait until the store takes other things again; whether it did, and the value may be tried again."""
        works = threading.Event()
        if not self._when_store_works(works.set):
            return False
        while not works.wait(LOOK):
            if self.run.state.final or self.service.stopping:
                return False
        return True

    def _when_store_works(self, then: Callable[[], object]) -> bool:
        """Call ``then()``, under the lock, once the store takes something small; False when it was tried enough."""
        with self.service.locked:
            if not self.tries or self.service.stopping or (claim := self.state.claim) is None:
                return False
            self.tries -= 1
            small = self.service.store.tasks.progress(claim, self.run.percent, self.run.message)
            self.service.outbox.ask([self.state], small, lambda _: then())
            return True

    def publish_late(self, item: Any) -> None:
        self.published = True
        with self.service.locked:
            self.service.outbox.ask([self.state], partial(self._publish_late, item))

    def _publish_late(self, item: Any) -> None:
        try:
            self.publish(item)
        except (RunFenced, RunCancelled, ValueRefused) as error:
            log.error("%s", error)

    def _claim(self) -> Claim:
        """Raises RunFenced when the run has ended."""
        run, claim = self.run, self.state.claim
        if claim is None or claim.run_id != run.id or run.state.final or run.started_at is None:
            raise RunFenced(f"Task {run.task!r}: the run has ended before it published; its value is dropped.")
        return claim

    def _to_publish(self, value: Any, claim: Claim, final: bool = True) -> Request:
        run, now = self.run, self.service.clock.now()
        if self.state.task.policy.isolate is not False:
            value = own_copy(value)  # a frame that the function keeps, and goes on to change
        duration = (now - (run.started_at or now)).total_seconds()
        return self.service.store.tasks.publish(value, now=now, duration=duration, claim=claim, final=final)

    def _to_succeed(self, result: Any) -> Request:
        """Its value and its end."""
        tasks, claim = self.service.store.tasks, self._claim()
        request = tasks.finalize(claim) if result is PUBLISHED else self._to_publish(result, claim)
        with self.service.lock:
            claim = self._claim()
            self.recorded = self.record(RunState.SUCCEEDED)
        seen = self.run.mark if isinstance(self.run.mark, int) else 0
        request = tasks.succeed(request, claim, self.recorded, seen)
        self.depositing = request._replace(answer=lambda result: self._readable(request.answer(result)))
        return self.depositing

    def _readable(self, entry: Entry | None) -> Any:
        return self.state.task.readable(entry) if entry is not None else None

    def tell_progress(self, percent: int, message: str) -> None:
        if self.state.claim is not None:
            progress = self.service.store.tasks.progress(self.state.claim, percent, message)
            self.service.outbox.ask([self.state], progress)

    def progressed(self) -> None:
        self.service.locked.changed(self.state.task)
        if self.service.store.blocking:  # and now and then in the other processes
            super().progressed()

    # ------------------------------------------------------------ its end

    def body_ended(self, future: Future[Any]) -> None:
        if self.takes_long and on_a_loop() and (future.cancelled() or future.exception() or is_light(future.result())):
            self.in_time()
            self.service.outbox.gather(conclude_together, (self, future))
        else:
            super().body_ended(future)

    def deposit(self, result: Any) -> Any:
        return self.service.store.do(self._to_succeed(result))

    def to_deposit(self, future: Future[Any]) -> Request | BaseException | None:
        """What is to be stored, or why there is nothing."""
        error = None if future.cancelled() else future.exception()
        if error is not None or future.cancelled() or self.run.state.final:
            return error
        try:
            return self._to_succeed(future.result())
        except BaseException as exc:  # a value can raise anything while it is looked at
            return exc

    def concluded(self, value: Any, error: BaseException | None, cancelled: bool = False) -> None:
        if error is not None and self.recorded is not None:
            if isinstance(error, StoreError) and self._when_store_works(self._aside):
                return  # it was not computed in vain
            if isinstance(error, RunFenced) and self._was_stored():
                error, value = None, self._readable(self.service.store.values.entry(TASK, self.run.task))
        if error is not None:
            self.recorded = None
        self.depositing = None
        super().concluded(value, error, cancelled)

    def _aside(self) -> None:
        self.service.outbox.aside(self._deposit_again)

    def _deposit_again(self) -> None:
        value, error = None, None
        assert self.depositing is not None
        try:
            value = self.service.store.do(self.depositing)
        except BaseException as exc:  # a value can raise anything while it is stored
            error = exc
        self.concluded(value, error)

    def _was_stored(self) -> bool:
        """Whether it has lost its claim as it has stored its value, and was not told so."""
        try:
            return self.recorded in self.service.store.history(self.run.task)
        except StoreError:
            return False

    def stopped(self, error: BaseException) -> None:
        if isinstance(error, CANCELLED) or not isinstance(error, RunFenced):
            if isinstance(error, Cancel):
                self.run.reason = self.why_stopped(error)
            error = RunCancelled(f"{self.name}: the run was {self.run.reason or Cause.CANCELLED}.")
        self.end(RunState.CANCELLED, error)

    def left(self) -> None:
        self.events.left(self.state)

    def repeated(self) -> None:
        self.events.begun(self.state)

    def end(self, outcome: RunState, error: BaseException | None = None, value: Any = None) -> None:
        self.events.ended(self.state, self.run, outcome, error, value)


def conclude_together(ended: list[tuple[TaskExecution, Future[Any]]]) -> None:
    """Store what several gave in one transaction, and end them."""
    found = [(execution, future, execution.to_deposit(future)) for execution, future in ended]
    answers = iter(_stored(found[0][0].service, [what for *_, what in found if isinstance(what, Request)]))
    for execution, future, what in found:
        value, error = next(answers) if isinstance(what, Request) else (None, what)
        execution.concluded(value, CancelledError() if future.cancelled() else error, future.cancelled())


def _stored(service: Service, requests: list[Request]) -> list[tuple[Any, BaseException | None]]:
    if not requests:
        return []
    try:
        return service.store.do_together(requests)
    except BaseException as error:  # a value can raise anything while it is stored
        if len(requests) == 1 or isinstance(error, StoreError):
            return [(None, error)] * len(requests)
        return [_stored(service, [request])[0] for request in requests]
