"""Who shares one execution of a background function with others that asked for the same."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from ..engine.lock import Locked
from ..errors import RunCancelled
from ..functions.run import Run, RunState
from .executions import Desk as Workplace
from .executions import Work, Works


class Desk(Workplace, Protocol):
    """What the guests find at the scheduler's."""

    locked: Locked


class Guests:
    """
    The runs of those who share works; under the scheduler's lock.

    Parameters
    ----------
    desk : Desk
    works : Works
    """

    def __init__(self, desk: Desk, works: Works):
        self._s = desk
        self._works = works
        # By function and key: under way, or with a result that is still good.
        self.shared: dict[tuple[str, str], Work] = {}

    def join(self, name: str, key: str, guest: Run) -> bool:
        """Take part in what another call with the same arguments has started."""
        known = self.shared.get((name, key))
        if known is not None and not guest.state.final:
            self.welcome(known, guest)
        return known is not None

    def welcome(self, work: Work, guest: Run) -> None:
        """Let it share the work, or the result."""
        run, guest.id = work.run, work.run.id
        work.inform(guest)
        if run.state.final:
            guest._stop = None
            guest.end(run.state, run.finished_at or self._s.clock.now(), run.error, run.shared)
            self._s.defer(guest.touch)
            self._s.defer(lambda: guest.resolve(run.shared))
        else:
            if work.unwatch is None:
                # Who only looks on does not end it for those who wait.
                work.unwatch = run.watch(lambda: None)
            guest._stop, guest._rank = partial(self._leave, work), partial(self._works.rank, work)
            work.guests.append(guest)

    def _leave(self, work: Work, guest: Run, reason: str) -> None:
        """Who gives up ends nothing for the others."""
        with self._s.locked:
            if guest.state.final:
                return
            if guest not in work.guests:  # it has just moved to another work
                self._s.defer(lambda: guest.cancel(reason))
                return
            work.guests.remove(guest)
            guest.reason = reason
            guest.end(RunState.CANCELLED, self._s.clock.now(), RunCancelled(f"{work.name}: the run was {reason}."))
            self._s.defer(guest.touch)
            self._s.defer(guest.resolve)
            if not work.guests and work.unwatch is not None:
                work.unwatch()
                work.unwatch = None
                if not work.run.watched and not work.remote:
                    work.run.cancel(reason)

    def over(self, work: Work) -> None:
        """It has ended: who asks for the same from now on gets its result, as long as that is good."""
        run, ttl = work.run, work.function.policy.ttl
        if run.state is RunState.SUCCEEDED and ttl is not None and run.finished_at is not None:
            left = run.finished_at + ttl - self._s.clock.now()
            self._s.timers.after(max(0.0, left.total_seconds()), self.expire, work)
        else:
            self.expire(work)

    def expire(self, work: Work) -> None:
        """Who asks for the same from now on starts anew."""
        name = work.function.name
        if self.shared.get((name, work.key)) is work:
            del self.shared[name, work.key]
