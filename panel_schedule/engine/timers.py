"""One heap of deadlines, on the monotonic clock, that follows the steps of the wall clock."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable
from datetime import datetime
from itertools import count
from typing import Any

from ..clock import Clock

# The longest time without a look at the wall clock, in seconds (invariant 7).
LOOK = 30.0

# Below this many seconds the two clocks count as running alike.
_DRIFT = 0.0005

# Floats round: what is due within half of the microsecond that a datetime can tell is due.
_ROUNDING = 0.5e-6


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

    Not thread-safe: the service's lock guards it.
    """

    def __init__(self, clock: Clock):
        self._clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = count()
        self._dead = 0
        # Wall times are counted from here: as seconds since 1970 they would have no microseconds.
        self._start = clock.now()
        self._offset = -clock.monotonic()

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def at(self, instant: datetime, callback: Callable[[Any], object], argument: Any) -> Timer:
        """Call ``callback(argument)`` at a time of the wall clock."""
        wall = (instant - self._start).total_seconds()
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
            living = [item for item in self._heap if item[2].callback is not None]
            self._dead -= len(self._heap) - len(living)
            self._heap = living
            heapq.heapify(self._heap)

    def look(self, now: datetime, monotonic: float) -> None:
        """Compare the clocks, and move the deadlines when the wall clock has stepped."""
        offset = (now - self._start).total_seconds() - monotonic
        if abs(offset - self._offset) < _DRIFT:
            return
        self._offset = offset
        for _, _, timer in self._heap:
            if timer.wall is not None:
                timer.deadline = timer.wall - offset
        self._heap = [(timer.deadline, number, timer) for _, number, timer in self._heap]
        heapq.heapify(self._heap)

    def fire(self, monotonic: float, most: int = sys.maxsize) -> None:
        """
        Call what is due, in order, and `most` of it.

        What these calls set has its turn the next time, however soon it is due.
        """
        newest, later = next(self._sequence), list[tuple[float, int, Timer]]()
        try:
            while most > 0 and self._heap and self._heap[0][0] - monotonic < _ROUNDING:
                item = heapq.heappop(self._heap)
                timer = item[2]
                callback, argument = timer.callback, timer.argument
                if callback is None:
                    self._dead -= 1
                elif item[1] > newest:
                    later.append(item)
                else:
                    most -= 1
                    timer.callback = timer.argument = None
                    callback(argument)
        finally:
            for item in later:
                heapq.heappush(self._heap, item)

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
