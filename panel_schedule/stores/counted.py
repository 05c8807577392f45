"""A record store that says of each run what became of it, once for all processes that share the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..functions.run import RunRecord
from .records import Change, LogAge, RecordStore, Result, Tell


class Counted:
    """
    A `RecordStore`, with word of each new line of a log.

    The process that has written the line hears of it, and no other one: so that the sum over all processes is right,
    also where one of them says how the run of another one has ended that is gone.

    Parameters
    ----------
    store : RecordStore
    logged : callable
        ``logged(space, name, run)`` after the transaction, on the thread of the write.
    """

    log_age: LogAge | None = None

    def __init__(self, store: RecordStore, logged: Callable[[str, str, RunRecord], object]):
        self._store, self._logged = store, logged
        self.blocking = store.blocking

    @property
    def me(self) -> str:
        return self._store.me

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write(
        self, changes: Sequence[Change], *, durable: bool | None = None, together: bool = False, tell: Tell = Tell.SOON
    ) -> list[Result]:
        results = self._store.write(changes, durable=durable, together=together, tell=tell)
        for change, result in zip(changes, results, strict=True):
            if result.logged is not None:
                self._logged(change.space, change.name, result.logged)
        return results
