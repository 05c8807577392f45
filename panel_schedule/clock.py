"""The only module that knows what time it is; everything else is handed a :class:`Clock`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """A source of time. ``testing.VirtualClock`` is the other one."""

    def now(self) -> datetime:
        """The wall clock: an aware datetime in UTC. May step back or forward."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow, from an arbitrary start: for delays and timeouts."""
        ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()
