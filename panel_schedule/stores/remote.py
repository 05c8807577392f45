"""The calls in a store that workers of another program, as Celery, make for the processes that ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from ..clock import Clock
from ..coordination import remote
from ..coordination.record import Record, Refusal, storable
from ..coordination.remote import CALL, ERROR, REFUSED, SAID, SPACE, VALUE
from ..functions.calls import PUBLISHED
from ..functions.run import RunState
from ..serialize.errors import packed, unpacked
from .records import HELD, NO_PARTS, Apply, Change, Lost, RecordStore, Result, Tell

# How long what came of one is kept that nobody has come for.
KEPT = timedelta(hours=1)


class RemoteCalls:
    """
    Callable from any thread. A call has a name; home is the process that asks for it.

    Parameters
    ----------
    store : RecordStore
    clock : Clock

    Attributes
    ----------
    records : RecordStore
        The store.

    Raises
    ------
    StoreError
        From every method, when it cannot be done now. It may be tried again.
    """

    def __init__(self, store: RecordStore, clock: Clock):
        self.records = self._store = store
        self._clock = clock
        self.alive = store.alive
        self.listen = store.listen

    @property
    def me(self) -> str:
        """The owner that this process is."""
        return self._store.me

    def subscribe(self, changed: Callable[[Record], object], lost: Lost = lambda since: None) -> None:
        """Call ``changed(record)`` when one has changed, or its owner is gone; ``lost(since)`` when some are lost."""
        self._store.subscribe(SPACE, changed, lost)

    # ------------------------------------------------------------ home

    def read(self, name: str) -> Record | None:
        return self._store.read(SPACE, name)

    def submit(self, name: str, label: str, call: Any) -> bool:
        """
        Let workers have a call. Tried again, it is the same one. Whether it is this process's.

        Raises
        ------
        ValueRefused
        """
        apply = partial(remote.submit, name=name, label=label, home=self._store.me, alive=self._store.alive)
        result = self._change(name, apply, {(CALL, 0): call}, label, tell=Tell.LATER)
        return result.refusal is not Refusal.HELD

    def adopt(self, name: str) -> Record | None:
        """Be the home of one whose own is dead; None where there is none."""
        if self.read(name) is None:
            return None
        return self._change(name, partial(remote.adopt, home=self._store.me, alive=self._store.alive)).record

    def cancel(self, name: str) -> bool:
        """Ask for its end; whether it never begins."""
        result = self._change(name, partial(remote.cancel, home=self._store.me), tell=Tell.NOW)
        return result.record is None and result.refusal is None

    def said(self, record: Record) -> Sequence[tuple[int, bytes, bytes]]:
        """By number and kind, as bytes, what its worker has said and home has not heard yet; perhaps more than that."""
        try:
            found: Sequence[tuple[int, bytes, bytes]] = self._store.load(record, SAID, 0, record.group)
        except KeyError:  # it has said more by now, of which home hears
            return []
        return found

    def hear(self, name: str, heard: int, refusal: BaseException | None) -> None:
        """Home has taken in what was said up to this number, or has refused the last of it."""
        apply = partial(remote.hear, home=self._store.me, heard=heard, refused=refusal is not None)
        self._change(name, apply, {} if refusal is None else {(REFUSED, 0): packed(refusal)}, tell=Tell.NOW)

    def outcome(self, record: Record) -> Any:
        """
        What it has returned; what it has raised is raised.

        Raises
        ------
        ValueUnreadable
        """
        if ERROR in record.parts:
            raise unpacked(self._store.load(record, ERROR), record.group)
        return self._store.load(record, VALUE, 0, f"{record.group}: its result") if VALUE in record.parts else PUBLISHED

    def drop(self, name: str) -> None:
        """Home has what came of it."""
        self._change(name, partial(remote.drop, home=self._store.me), tell=Tell.LATER)

    def bury(self) -> None:
        """Forget those whose home and worker are dead."""
        for record in self._store.scan(SPACE, owner=HELD):
            if not self._store.alive(record.state.home):
                self._change(record.name, partial(remote.bury, alive=self._store.alive), tell=Tell.LATER)

    # ------------------------------------------------------------ the worker

    def claim(self, name: str, worker: str, killable: bool) -> tuple[Record, Any] | None:
        """
        Become the worker of a call; with what is called. None where another one is, or nobody wants it any more.

        Raises
        ------
        ValueUnreadable
        """
        apply = partial(remote.claim, me=self._store.me, worker=worker, killable=killable)
        record = self._change(name, apply, tell=Tell.LATER).record
        return None if record is None else (record, self._store.load(record, CALL, 0, record.group))

    def tell(self, name: str, percent: int, message: str, said: Sequence[tuple[int, bytes, bytes]], last: int) -> bool:
        """How far it has come, and what it has said that home has not heard; whether it is still this one's."""
        apply = partial(remote.tell, me=self._store.me, percent=percent, message=storable(message), said=last)
        return self._change(name, apply, {(SAID, 0): said} if said else {}, tell=Tell.NOW).record is not None

    def refusal(self, record: Record) -> BaseException | None:
        """Why home has refused the last thing that was said."""
        return unpacked(self._store.load(record, REFUSED), record.group) if REFUSED in record.parts else None

    def finish(
        self,
        name: str,
        label: str,
        value: Any,
        error: BaseException | None,
        percent: int,
        message: str,
        said: Sequence[tuple[int, bytes, bytes]],
        last: int,
    ) -> None:
        """
        It has ended so.

        Raises
        ------
        ValueRefused
            When the value cannot be stored; it has not ended then.
        """
        part, parts = "", dict[tuple[str, int], Any]({(SAID, 0): said} if said else {})
        if error is not None:
            part, parts[ERROR, 0] = ERROR, packed(error)
        elif value is not PUBLISHED:
            part, parts[VALUE, 0] = VALUE, value
        apply = partial(
            remote.finish, me=self._store.me, state=RunState.SUCCEEDED if error is None else RunState.FAILED, part=part,
            percent=percent, message=storable(message), said=last, expires_at=self._clock.now() + KEPT,
        )  # fmt: skip
        self._change(name, apply, parts, label, tell=Tell.NOW)

    def lose(self, name: str, worker: str) -> None:
        """A worker process of this name has died."""
        self._change(name, partial(remote.lose, worker=worker), tell=Tell.NOW)

    def _change(
        self, name: str, apply: Apply, parts: Any = NO_PARTS, label: str = "", tell: Tell = Tell.SOON
    ) -> Result:
        [result] = self._store.write([Change(SPACE, name, apply, parts, label)], tell=tell)
        return result
