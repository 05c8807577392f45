"""A clock that only moves when told to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ..triggers import Period, parse_period


class VirtualClock:
    """
    A clock for tests.

    Parameters
    ----------
    now : datetime
        Aware. By default the beginning of 2026, UTC.

    Examples
    --------
    >>> clock = VirtualClock()
    >>> clock.advance("1h30m")
    >>> clock.now().isoformat()
    '2026-01-01T01:30:00+00:00'
    """

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)):
        self._now = now.astimezone(UTC)
        self._passed = timedelta(0)

    def now(self) -> datetime:
        """The wall clock."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since an arbitrary start."""
        return 1000.0 + self._passed.total_seconds()

    def advance(self, period: Period) -> None:
        """Let time pass, on both clocks."""
        passed = parse_period(period)
        self._now += passed
        self._passed += passed

    def step(self, seconds: float) -> None:
        """Set the wall clock forward, or back, while no time passes."""
        self._now += timedelta(seconds=seconds)
