"""One heap of deadlines, on the monotonic clock, that follows the steps of the wall clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from datetime import datetime
from itertools import count
from typing import Any

from .clock import Clock

# The longest time without a look at the wall clock, in seconds (invariant 7).
LOOK = 30.0

# Below this many seconds the two clocks count as running alike.
_DRIFT = 0.0005


class Timer:
    """A callback and its deadline; `wall` is None of a mere delay, which no clock step moves."""

    __slots__ = ("argument", "callback", "deadline", "wall")

    def __init__(self, deadline: float, wall: float | None, callback: Callable[[Any], object] | None, argument: Any):
        self.deadline = deadline
        self.wall = wall
        self.callback = callback
        self.argument = argument


class Timers:
    """
    Deadlines in one heap.

    Not thread-safe: the scheduler's lock guards it.
    """

    def __init__(self, clock: Clock):
        self._clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = count()
        self._dead = 0
        self._offset = clock.now().timestamp() - clock.monotonic()

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def at(self, instant: datetime, callback: Callable[[Any], object], argument: Any) -> Timer:
        """Call ``callback(argument)`` at a time of the wall clock."""
        wall = instant.timestamp()
        return self._push(Timer(wall - self._offset, wall, callback, argument))

    def after(self, seconds: float, callback: Callable[[Any], object], argument: Any) -> Timer:
        """Call ``callback(argument)`` after a time that no clock step changes."""
        return self._push(Timer(self._clock.monotonic() + seconds, None, callback, argument))

    def cancel(self, timer: Timer | None) -> None:
        """Never call it. Harmless when it was called or cancelled before."""
        if timer is None or timer.callback is None:
            return
        timer.callback = timer.argument = None
        self._dead += 1
        if self._dead > 64 and self._dead > len(self._heap) // 2:
            self._heap = [item for item in self._heap if item[2].callback is not None]
            self._dead = 0
            heapq.heapify(self._heap)

    def look(self, now: datetime, monotonic: float) -> None:
        """Compare the clocks, and move the deadlines when the wall clock has stepped."""
        offset = now.timestamp() - monotonic
        if abs(offset - self._offset) < _DRIFT:
            return
        self._offset = offset
        for _, _, timer in self._heap:
            if timer.wall is not None:
                timer.deadline = timer.wall - offset
        self._heap = [(timer.deadline, number, timer) for _, number, timer in self._heap]
        heapq.heapify(self._heap)

    def fire(self, monotonic: float) -> None:
        """Call what is due, in order."""
        while self._heap and self._heap[0][0] <= monotonic:
            timer = heapq.heappop(self._heap)[2]
            callback, argument = timer.callback, timer.argument
            if callback is None:
                self._dead -= 1
                continue
            timer.callback = timer.argument = None
            callback(argument)

    def delay(self) -> float:
        """Seconds until the next deadline, or the next look at the wall clock."""
        if not self._heap:
            return LOOK
        return min(max(self._heap[0][0] - self._clock.monotonic(), 0.0), LOOK)

    @property
    def earliest(self) -> float:
        """The first deadline, on the monotonic clock."""
        return self._heap[0][0] if self._heap else float("inf")

    def _push(self, timer: Timer) -> Timer:
        heapq.heappush(self._heap, (timer.deadline, next(self._sequence), timer))
        return timer
