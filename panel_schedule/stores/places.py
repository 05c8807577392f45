"""The places of limits in a store: a semaphore of records, for all processes that share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ..clock import Clock
from ..coordination import places
from ..coordination.places import SPACE, Limit
from ..coordination.record import Record
from .records import Change, Lost, RecordStore, Tell

# So often in turn another process may be quicker; then this one waits for the next word of it.
TRIES = 20


class Places:
    """
    Callable from any thread.

    Parameters
    ----------
    store : RecordStore
    clock : Clock

    Raises
    ------
    StoreError
        From every method, when it cannot be done now. It may be tried again.
    """

    def __init__(self, store: RecordStore, clock: Clock):
        self._store = store
        self._clock = clock

    def take(self, limits: Sequence[Limit], holder: str) -> Limit | None:
        """
        Have a place of each limit, or of none. Tried again by the same holder, it takes no second one.

        Parameters
        ----------
        limits : sequence of Limit
        holder : str
            Names a run of this process.

        Returns
        -------
        Limit or None
            One that has no place left; None where the holder has a place of each.
        """
        me, alive = self._store.me, self._store.alive
        for _ in range(TRIES):
            changes = []
            for limit in limits:
                records = self._store.scan(SPACE, limit.name)
                if any(places.is_mine(record, me, holder) for record in records):
                    continue
                if (number := places.vacant(records, limit, alive)) is None:
                    return limit
                apply = partial(places.take, limit=limit.name, number=number, me=me, holder=holder, alive=alive)
                changes.append(Change(SPACE, places.name_of(limit.name, number), apply))
            # The others look when a place comes free.
            results = self._store.write(changes, together=True, tell=Tell.LATER) if changes else ()
            if all(result.refusal is None for result in results):
                return None
        return limits[0]

    def free(self, limits: Sequence[Limit], holder: str) -> None:
        """Give back what this holder has."""
        mine = [
            record.name
            for limit in limits
            for record in self._store.scan(SPACE, limit.name, owner=self._store.me)
            if record.state.holder == holder
        ]
        if mine:
            apply = partial(places.free, me=self._store.me, holder=holder, now=self._clock.now())
            self._store.write([Change(SPACE, name, apply) for name in mine], tell=Tell.NOW)

    def subscribe(self, changed: Callable[[], object], lost: Lost) -> None:
        """
        Call ``changed()`` when other processes have taken or given back places, or are gone.

        And ``lost(since)`` when places are lost that were taken after that number.
        """

        def hear(record: Record) -> None:
            if record.state.process != self._store.me:
                changed()

        self._store.subscribe(SPACE, hear, lost)
