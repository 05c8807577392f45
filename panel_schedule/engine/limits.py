"""How many runs go at the same time: what waits for a place of its limits, in the order in which it came."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count

from ..coordination.places import Limit
from ..errors import StoreError
from ..functions.registry import limits_of
from ..functions.run import Run
from ..functions.task import Concurrency
from ..stores.base import Store
from .lock import Locked
from .outbox import Outbox
from .timers import Timer, Timers

log = logging.getLogger("panel_schedule")

Limits = tuple[Limit, ...]

# How often, in seconds, what waits looks though nothing was heard.
LOOK = 1.0


@dataclass(slots=True, eq=False)
class _Entry:
    """
    One run that waits for its places, or has them.

    Attributes
    ----------
    run : Run
    limits : tuple of Limit
    go : callable
    number : int
        In the order in which they came.
    known : bool
        Whether the store may say that it has places.
    """

    run: Run
    limits: Limits
    go: Callable[[], object]
    number: int
    known: bool = False

    @property
    def holder(self) -> str:
        """How the store names it; another one at each attempt."""
        return f"{self.run.id}.{self.number}"


class Limiter:
    """
    Lets runs go that get a place of each of their limits. Under the service's lock, but where it says otherwise.

    Parameters
    ----------
    store : Store
    timers : Timers
    outbox : Outbox
    locked : Locked
    groups : mapping of str to int
        ``ps.config.groups``.
    """

    def __init__(self, store: Store, timers: Timers, outbox: Outbox, locked: Locked, groups: Mapping[str, int]):
        self._store, self._timers, self._outbox, self._locked, self._groups = store, timers, outbox, locked, groups
        self._numbers = count()
        # What waits, by limits: of those which have the same ones the first is the next.
        self._waiting: dict[Limits, dict[Run, _Entry]] = {}
        self._held: dict[Run, _Entry] = {}
        self._subscribed = False
        # Whether one thread hands places out, and whether it is to do so once more.
        self._serving = self._again = False
        self._timer: Timer | None = None
        self._trouble = ""
        self._warned = set[tuple[str, str]]()

    def of(self, what: str, concurrency: Concurrency) -> Limits:
        """
        The limits of a function; without the lock.

        Parameters
        ----------
        what : str
            As errors and the log name it.
        concurrency : Concurrency

        Raises
        ------
        ConfigError
            When there is no such group.
        """
        return limits_of(what, concurrency, self._groups)

    def warn(self, holder: str, held: Limits, name: str, limits: Limits) -> None:
        """Say once that who may hold a place asks for what needs one of the same, and perhaps waits for it."""
        if (limit := next((each for each in limits if each in held), None)) and (holder, name) not in self._warned:
            self._warned.add((holder, name))
            log.warning(
                "%s asks for %s, and both need one of the %d places of %s: where all are held by such as wait for "
                "others, none goes on. Do not wait for it in there, or take one of both out of the limit.",
                holder, name, limit.size, limit.name,
            )  # fmt: skip

    def holds(self, run: Run) -> bool:
        """Whether it has its places."""
        return run in self._held

    def enter(self, run: Run, limits: Limits, go: Callable[[], object]) -> None:
        """Call ``go()`` once it has a place of each limit, unless it has ended before."""
        if run in self._waiting.setdefault(limits, {}):
            return
        if not self._subscribed:
            self._subscribed = True
            self._store.places.subscribe(self._heard, self._put_back)
        self._waiting[limits][run] = _Entry(run, limits, go, next(self._numbers))
        run.add_done_callback(self._gone)
        self._look()

    def leave(self, run: Run) -> None:
        """Its function has ended: its places are free. Takes the lock."""
        with self._locked:
            self._free(self._held.pop(run))

    # ------------------------------------------------------------ what waits

    def _look(self, _: None = None) -> None:
        """Hand out what is free."""
        self._again = True
        if self._serving or not any(self._waiting.values()):
            return
        self._serving = True
        if self._store.blocking:
            self._outbox.aside(self._serve)
        else:
            self._serve()

    def _serve(self) -> None:
        """Takes the lock, but not while it asks the store."""
        done = False
        try:
            while self._turn():
                self._give_out()
            done, self._trouble = True, ""
        except (StoreError, OSError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._outbox.complain("What waits for a place of its limit waits for the store, too. %s", error)
        except Exception:
            log.exception("To hand out places failed at something that is a bug of panel-schedule; it goes on.")
        finally:
            with self._locked:
                self._serving &= done  # else another thread may serve by now
                if self._store.blocking and self._timer is None and any(self._waiting.values()):
                    self._timer = self._timers.after(LOOK, self._look_again, None)

    def _turn(self) -> bool:
        """Whether to look once more; else it is over, and the next one who calls `_look` begins anew."""
        with self._locked:
            again, self._again = self._again, False
            self._serving = again
            return again

    def _give_out(self) -> None:
        full = set[Limit]()
        while (entry := self._first(full)) is not None:
            if (lacking := self._take(entry)) is not None:
                full.add(lacking)
                continue
            with self._locked:
                self._waiting.get(entry.limits, {}).pop(entry.run, None)
                if entry.run.state.final:
                    self._free(entry)
                else:
                    self._held[entry.run] = entry
                    entry.go()

    def _first(self, full: set[Limit]) -> _Entry | None:
        """What has waited longest of what waits for no place of these."""
        with self._locked:
            firsts = [next(iter(each.values())) for each in self._waiting.values() if each]
            able = [entry for entry in firsts if full.isdisjoint(entry.limits)]
            return min(able, key=lambda entry: entry.number, default=None)

    def _take(self, entry: _Entry) -> Limit | None:
        """The limit that has no place for it."""
        if self._store.away:  # as long as this process runs its tasks for itself, it counts for itself
            with self._locked:
                held = [limit for other in self._held.values() for limit in other.limits]
            return next((limit for limit in entry.limits if held.count(limit) >= limit.size), None)
        entry.known = True  # also where the answer is lost
        try:
            lacking = self._store.places.take(entry.limits, entry.holder)
        except BaseException:
            with self._locked:
                if entry.run.state.final:  # nobody else frees what it may have taken
                    self._free(entry)
            raise
        entry.known = lacking is None
        return lacking

    def _look_again(self, _: None) -> None:
        self._timer = None
        self._look()

    # ------------------------------------------------------------ what has come to its end, and what is told

    def _gone(self, run: Run) -> None:
        """It has ended, perhaps while it waited. Without the lock."""
        with self._locked:
            for limits, waiting in list(self._waiting.items()):
                if (entry := waiting.pop(run, None)) is not None:
                    self._free(entry)
                if not waiting:
                    del self._waiting[limits]

    def _free(self, entry: _Entry) -> None:
        if entry.known:
            self._outbox.ask((), partial(self._store.places.free, entry.limits, entry.holder), self._look)
        else:
            self._look()

    def _heard(self) -> None:
        """Of other processes; on any thread."""
        with self._locked:
            self._look()

    def _put_back(self, since: int) -> None:
        """The store has lost what is taken; on a thread of its own. Raises StoreError when it is not stored yet."""
        with self._locked:
            held = list(self._held.values())
        for entry in held:
            entry.known = True
            self._store.places.take(entry.limits, entry.holder)
            with self._locked:
                if self._held.get(entry.run) is not entry:  # it has ended meanwhile
                    self._free(entry)
