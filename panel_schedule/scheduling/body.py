"""Inside a run: the user's function, and what it publishes on the way."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from functools import partial
from types import CoroutineType
from typing import Any, Protocol

from ..engine.service import Service
from ..errors import RunFenced, ValueRefused
from ..executors.processes import Parcel
from ..functions.calls import PUBLISHED, async_outcome, outcome
from ..functions.run import Run, _current, on_a_loop
from ..serialize.copies import own_copy
from ..serialize.entry import Entry
from ..session import leave_session
from ..stores.base import TASK, Request
from ..stores.records import Result
from .state import TaskState

log = logging.getLogger("panel_schedule")

# A plain function that holds the event loop for longer than this, in seconds, is named in a warning.
HELD_TOO_LONG = 0.1


class Desk(Protocol):
    """What a body finds at the scheduler's."""

    def touch(self, state: TaskState) -> None: ...


class Body:
    """
    Makes the bodies that executors run; outside of the scheduler's lock.

    Parameters
    ----------
    service : Service
    desk : Desk
    limit : callable
        ``limit(state, run)`` when the function begins: from then on its timeout runs.
    """

    def __init__(self, service: Service, desk: Desk, limit: Callable[[TaskState, Run], object]):
        self._service = service
        self._s = desk
        self._limit = limit
        self._warned: set[str] = set()

    def make(self, state: TaskState, run: Run) -> Callable[[], Any]:
        """What an executor is to call."""
        run._publish = partial(self._published, state, run)
        if state.abroad:
            return Parcel(
                f"Task {run.task!r}", state.task.function, run=run,
                begin=partial(self._begin, state, run), receive=partial(self._yielded, state, run),
                answer=partial(self._service.answer, run),
            )  # fmt: skip
        return self._async_body(state, run) if state.is_async else self._body(state, run)

    def _body(self, state: TaskState, run: Run) -> Callable[[], Any]:
        function, on_loop = state.task.function, state.on_loop

        def body() -> Any:
            self._begin(state, run)
            _current.set(run)
            leave_session(f"Task {run.task!r}")
            started = self._service.clock.monotonic()
            result = function()
            if on_loop and self._service.store.blocking and inspect.isgenerator(result):
                result = async_outcome(result, partial(self._yielded_aside, state, run))
            else:
                result = outcome(result, partial(self._yielded, state, run))
            if on_loop:
                self._warn_if_held(state.task.name, self._service.clock.monotonic() - started)
            return result

        return body

    def _async_body(self, state: TaskState, run: Run) -> Callable[[], Any]:
        function = state.task.function

        async def body() -> Any:
            self._begin(state, run)
            _current.set(run)
            leave_session(f"Task {run.task!r}")
            result = function()
            if isinstance(result, CoroutineType):  # nearly always
                return await result
            return await async_outcome(result, partial(self._yielded_aside, state, run))

        return body

    def _begin(self, state: TaskState, run: Run) -> None:
        with self._service.locked:
            run.check()
            run.begin(self._service.clock.now())
            self._limit(state, run)
            self._s.touch(state)

    def _yielded(self, state: TaskState, run: Run, value: Any) -> None:
        run.check()
        self.publish(state, run, value, final=False)

    async def _yielded_aside(self, state: TaskState, run: Run, value: Any) -> None:
        if not self._service.store.blocking:
            self._yielded(state, run, value)
        else:
            await asyncio.wrap_future(self._service.outbox.aside(partial(self._yielded, state, run, value)))

    def _published(self, state: TaskState, run: Run, value: Any) -> None:
        """What the function itself publishes; an async one cannot be made to wait for it."""
        if not (self._service.store.blocking and on_a_loop()):
            self._yielded(state, run, value)
            return
        with self._service.locked:
            self._service.outbox.ask([state], partial(self._publish_late, state, run, value))

    def _publish_late(self, state: TaskState, run: Run, value: Any) -> None:
        try:
            self.publish(state, run, value, final=False)
        except (RunFenced, ValueRefused) as error:
            log.error("%s", error)

    def publish(self, state: TaskState, run: Run, value: Any, final: bool = True) -> Any:
        """Store a value of the run; as everybody reads it."""
        return self._service.store.answer_to(self.to_publish(state, run, value, final))

    def to_publish(self, state: TaskState, run: Run, value: Any, final: bool = True) -> Request:
        """The same as a request. Raises RunFenced when the run has ended."""
        claim, store = state.claim, self._service.store
        if claim is None or claim.run_id != run.id or run.state.final or run.started_at is None:
            raise RunFenced(f"Task {run.task!r}: the run has ended before it published; its value is dropped.")
        if value is PUBLISHED:
            request = store.to_finalize(claim)
        else:
            now = self._service.clock.now()
            duration = (now - run.started_at).total_seconds()
            if state.task.policy.isolate is not False:
                value = own_copy(value)  # a frame that the function keeps, and goes on to change
            request = store.to_publish(
                TASK, run.task, value, now=now, duration=duration, claim=claim, final=final
            )  # fmt: skip
        return request._replace(answer=partial(self._readable, state, request.answer))

    def _readable(self, state: TaskState, answer: Callable[[Result], Entry | None], result: Result) -> Any:
        entry = answer(result)
        return state.task.readable(entry) if entry is not None else None

    def _warn_if_held(self, name: str, seconds: float) -> None:
        if seconds > HELD_TOO_LONG and name not in self._warned:
            self._warned.add(name)
            log.warning(
                "Task %r held the event loop, and with it every open page, for %.0f ms. Run it in a thread: "
                "threaded=True of ps.schedule_task, executor='thread' of ps.schedule.", name, seconds * 1000,
            )  # fmt: skip
