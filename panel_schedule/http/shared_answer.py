"""One answer for all who ask for the same within a moment."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ..clock import Clock
from ..executors.threads import ThreadExecutor
from .access import in_thread

# For so many seconds an answer is good: what is asked for 500 times a second is made ten times.
MOMENT = 0.1


class Made(NamedTuple):
    """An answer as it is sent; who has it from before, by its tag, need not get it again."""

    body: bytes
    tag: str


class SharedAnswer:
    """
    Made on a thread when somebody asks, and then for everybody. On the event loop.

    Parameters
    ----------
    make : callable
        What it says now; on a thread, as it may have to wait.
    threads : ThreadExecutor
    clock : Clock
    """

    def __init__(self, make: Callable[[], dict[str, Any]], threads: ThreadExecutor, clock: Clock):
        self._make, self._threads, self._clock = make, threads, clock
        self._made: asyncio.Future[Made] | None = None
        # Of one that has been made.
        self._until = 0.0

    async def get(self) -> Made:
        """What making it raises is raised in all who wait for it, and is not kept."""
        made = self._made
        if made is None or (made.done() and self._clock.monotonic() >= self._until):
            made = self._made = asyncio.wrap_future(in_thread(self._threads, partial(_encoded, self._make)))
            made.add_done_callback(self._over)
        return await asyncio.shield(made)

    def _over(self, made: asyncio.Future[Made]) -> None:
        self._until = self._clock.monotonic() + MOMENT
        if made is self._made and (made.cancelled() or made.exception() is not None):
            self._made = None

    def forget(self) -> None:
        """Something has been changed: who asks from now on is told of it."""
        self._made = None


def _encoded(make: Callable[[], dict[str, Any]]) -> Made:
    body = json.dumps(make()).encode()
    return Made(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
