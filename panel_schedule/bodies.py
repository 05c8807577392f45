"""Inside a run: the user's function, and what it publishes on the way."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from contextlib import aclosing, closing
from functools import partial
from typing import Any, Protocol

from .clock import Clock
from .errors import RunFenced
from .executors.base import PUBLISHED
from .lanes import Lane
from .ledger import Ledger
from .locked import Locked
from .run import Run, _current
from .stores.base import TASK, Store

log = logging.getLogger("panel_schedule")

# A plain function that holds the event loop for longer than this, in seconds, is named in a warning.
HELD_TOO_LONG = 0.1


class Desk(Protocol):
    """What a body finds at the scheduler's."""

    clock: Clock
    store: Store
    locked: Locked
    ledger: Ledger

    def touch(self, lane: Lane) -> None: ...


class Bodies:
    """
    Makes the bodies that executors run; outside of the scheduler's lock.

    Parameters
    ----------
    desk : Desk
    limit : callable
        ``limit(lane, run)`` when the function begins: from then on its timeout runs.
    """

    def __init__(self, desk: Desk, limit: Callable[[Lane, Run], object]):
        self._s = desk
        self._limit = limit
        self._warned: set[str] = set()

    def make(self, lane: Lane, run: Run) -> Callable[[], Any]:
        """What an executor is to call."""
        return self._async_body(lane, run) if lane.is_async else self._body(lane, run)

    def _body(self, lane: Lane, run: Run) -> Callable[[], Any]:
        function, on_loop = lane.task.function, lane.on_loop

        def body() -> Any:
            self._begin(lane, run)
            _current.set(run)
            started = self._s.clock.monotonic()
            result = function()
            if inspect.isgenerator(result):
                aside = on_loop and self._s.store.blocking
                result = self._drain_aside(lane, run, result) if aside else self._drain(lane, run, result)
            if on_loop:
                self._warn_if_held(lane.task.name, self._s.clock.monotonic() - started)
            return result

        return body

    def _async_body(self, lane: Lane, run: Run) -> Callable[[], Any]:
        function = lane.task.function

        async def body() -> Any:
            self._begin(lane, run)
            _current.set(run)
            result = function()
            if not inspect.isasyncgen(result):
                return await result
            count = 0
            async with aclosing(result):
                async for value in result:
                    await self._yielded_aside(lane, run, value)
                    count += 1
            return PUBLISHED if count else None

        return body

    def _begin(self, lane: Lane, run: Run) -> None:
        with self._s.locked:
            run.check()
            run.begin(self._s.clock.now())
            self._limit(lane, run)
            self._s.touch(lane)

    def _drain(self, lane: Lane, run: Run, values: Any) -> Any:
        count = 0
        # Closed even when the run has ended in between: its cleanup code is part of the body.
        with closing(values):
            while True:
                try:
                    value = next(values)
                except StopIteration as stop:
                    return PUBLISHED if stop.value is None and count else stop.value
                self._yielded(lane, run, value)
                count += 1

    async def _drain_aside(self, lane: Lane, run: Run, values: Any) -> Any:
        """The same for a plain generator on the loop."""
        count = 0
        with closing(values):
            while True:
                try:
                    value = next(values)
                except StopIteration as stop:
                    return PUBLISHED if stop.value is None and count else stop.value
                await self._yielded_aside(lane, run, value)
                count += 1

    def _yielded(self, lane: Lane, run: Run, value: Any) -> None:
        run.check()
        self.publish(lane, run, value, final=False)

    async def _yielded_aside(self, lane: Lane, run: Run, value: Any) -> None:
        if not self._s.store.blocking:
            self._yielded(lane, run, value)
        else:
            await asyncio.wrap_future(self._s.ledger.aside(partial(self._yielded, lane, run, value)))

    def publish(self, lane: Lane, run: Run, value: Any, final: bool = True) -> Any:
        claim = lane.claim
        if claim is None or claim.run_id != run.id or run.state.final or run.started_at is None:
            raise RunFenced(f"Task {run.task!r}: the run has ended before it published; its value is dropped.")
        if value is PUBLISHED:
            entry = self._s.store.seal(claim)
            return entry.value if entry is not None else None
        now = self._s.clock.now()
        duration = (now - run.started_at).total_seconds()
        return self._s.store.publish(TASK, run.task, value, now=now, duration=duration, claim=claim, final=final).value

    def _warn_if_held(self, name: str, seconds: float) -> None:
        if seconds > HELD_TOO_LONG and name not in self._warned:
            self._warned.add(name)
            log.warning(
                "Task %r held the event loop, and with it every open page, for %.0f ms. Run it in a thread: "
                "threaded=True of ps.schedule_task, executor='thread' of ps.schedule.", name, seconds * 1000,
            )  # fmt: skip
