"""The last good values of tasks and names in ``ps.store``, of which every process has a copy in memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from ..clock import Clock
from ..coordination import tasks
from ..coordination.record import Record, Refusal
from ..coordination.tasks import TASK, USER, VALUE, TaskState
from ..errors import ScheduleError, StoreError, ValueUnreadable, is_interrupt
from ..serialize.checks import require_data
from ..serialize.codec import Mapped, encode
from ..serialize.entry import Entry
from .records import Change, RecordStore, Result, Tell

log = logging.getLogger("panel_schedule")

Listener = Callable[[str, str, Entry | None], object]


class Values:
    """
    Values on the records of a store, with a copy of each in this process.

    Callable from any thread.

    Parameters
    ----------
    records : RecordStore
    clock : Clock

    Raises
    ------
    StoreError
        From every method but `entry` and `names`, when a shared store cannot do it now. It may be tried again.
    """

    def __init__(self, records: RecordStore, clock: Clock):
        self._records = records
        self._clock = clock
        self._entries: dict[tuple[str, str], Entry] = {}
        # Versions that have been looked at, also of values that cannot be read.
        self._versions: dict[tuple[str, str], int] = {}
        self._complained: dict[tuple[str, str], int] = {}
        self._trouble = ""
        self._isolated: set[str] = set()
        self._applying = threading.Lock()
        self._listening = not records.blocking
        self._stored: list[Listener] = []
        if records.blocking:  # else no other process changes anything
            records.subscribe(TASK, self._changed, self._restore)
            records.subscribe(USER, self._changed)

    # ------------------------------------------------------------ reading

    def entry(self, space: str, name: str) -> Entry | None:
        """The stored value, None where there is none. From memory, at once, in a process that listens."""
        key = (space, name)
        if self._listening and (entry := self._entries.get(key)) is not None:
            return entry
        if not self._records.blocking or (self._listening and (space == USER or key in self._versions)):
            return None
        try:
            self._versions.setdefault(key, 0)
            if (record := self._records.read(space, name)) is not None:
                self.take_in(record)
        except ScheduleError as error:
            self._complain_once(error)
        return self._entries.get(key)

    def latest(self, space: str, name: str) -> Entry | None:
        """The same as the store has it now, though this process may still have to hear of it. Not on an event loop."""
        try:
            self._versions.setdefault((space, name), 0)
            if self._records.blocking and (record := self._records.read(space, name)) is not None:
                self.take_in(record)
        except ScheduleError as error:
            self._complain_once(error)
        return self._entries.get((space, name))

    def names(self, space: str) -> Iterator[str]:
        try:
            records = self._records.scan(space)
        except ScheduleError as error:
            self._complain_once(error)
            return iter([name for owner, name in list(self._entries) if owner == space])
        return iter([record.name for record in records if VALUE in record.parts])

    def _complain_once(self, error: Exception) -> None:
        if str(error) != self._trouble:
            self._trouble = str(error)
            log.error("What other processes have stored cannot be read now: %s", error)

    def known(self, space: str, name: str) -> Entry | None:
        """What this process has of it, without looking."""
        return self._entries.get((space, name))

    def entries(self) -> dict[tuple[str, str], Entry]:
        """A copy of all values that this process has."""
        with self._applying:
            return dict(self._entries)

    def unreadable(self, task: str) -> int:
        """The version of its value that this process could not read; 0 of none."""
        key = (TASK, task)
        return 0 if key in self._entries else self._versions.get(key, 0)

    # ------------------------------------------------------------ the copies

    def subscribe(self, stored: Listener) -> None:
        """Call ``stored(space, name, entry)`` after each new value or deletion, on whatever thread."""
        self._stored.append(stored)

    def listen(self) -> None:
        """From now on hear of other processes without being asked. Idempotent."""
        if not self._listening:
            for record in self._records.scan(USER):
                self.take_in(record)
            self._listening = True

    def isolate(self, task: str) -> None:
        """From its next entry on, keep what private copies of the task's value are made from."""
        self._isolated.add(task)

    def _changed(self, record: Record) -> None:
        # Other tasks' values, perhaps of last year's code, are nobody's business.
        if record.space == USER or (record.space, record.name) in self._versions:
            self.take_in(record)

    def followed(self, record: Record) -> None:
        """Who sees that a run has ended sees its value, too."""
        if (TASK, record.name) in self._versions:
            self.take_in(record)

    def take_in(self, record: Record) -> None:
        """Bring the copy of its value in line."""
        state: TaskState = record.state
        known = self._entries.get(key := (record.space, record.name))
        if VALUE not in record.parts:
            self._apply(*key, None, state.version)
        elif known is None or known.version != state.version or known.updated_at != state.updated_at:
            try:
                entry = self._entry(record, self._records.load(record, VALUE, what=whose(*key)))
            except KeyError:
                return  # there is a newer one, of which one hears next
            except StoreError as error:  # too many open files, say: it may be read later
                self._complain(record, error)
                raise
            except (ValueUnreadable, KeyboardInterrupt) as error:
                if is_interrupt(error):
                    raise
                self._complain(record, error)
                self._versions[key] = state.version
            else:
                self._apply(*key, entry)
        elif state.final and not known.final:
            self._apply(*key, replace(known, final=True))

    def _complain(self, record: Record, why: object) -> None:
        key, version = (record.space, record.name), record.state.version
        if self._complained.get(key) != version:
            self._complained[key], self._trouble = version, str(why)
            stays = "the last good one stays" if key in self._entries else "it has to be computed again"
            log.error("%s: version %d of its value cannot be read, %s: %s", whose(*key), version, stays, why)

    def _entry(self, record: Record, value: Any, source: Any = None) -> Entry:
        state: TaskState = record.state
        if source is None and record.space == TASK and record.name in self._isolated:
            source = self._records.source(record, VALUE, what=whose(TASK, record.name))
        return Entry(
            value, state.version, state.updated_at or self._clock.now(), state.duration, state.by or None, state.final,
            state.seen_wave, source,
        )  # fmt: skip

    def _apply(self, space: str, name: str, entry: Entry | None, version: int = 0) -> None:
        key, version = (space, name), entry.version if entry is not None else version
        with self._applying:
            known = self._entries.get(key)
            self._versions[key] = max(version, self._versions.get(key, 0))
            if entry is None:
                if known is None or known.version > version:
                    return
                del self._entries[key]
            elif (
                known is None
                or (known.version, known.final) < (version, entry.final)
                # Of two stores, after one was lost: the one that is there is right.
                or (known.version == version and known.updated_at != entry.updated_at)
            ):
                self._entries[key] = entry
            else:
                return
        if entry is not None:
            entry.holding  # noqa: B018  (here, and not on the loop that serves pages)
        for stored in self._stored:
            stored(space, name, entry)

    # ------------------------------------------------------------ writing

    def change(self, space: str, name: str, value: Any, **publish: Any) -> tuple[Change, Callable[[Result], Entry]]:
        """
        What stores a new version, and what makes an entry of what came of that.

        Parameters
        ----------
        space, name : str
        value : object
        **publish
            For `coordination.tasks.publish`.

        Raises
        ------
        ValueRefused
            When the value is not data.
        """
        what = whose(space, name)
        require_data(value, what)
        source = None
        if not self._records.blocking and space == TASK and name in self._isolated:
            source = private_source(value, what)
        apply = partial(tasks.publish, space=space, name=name, me=self._records.me, **publish)
        return Change(space, name, apply, {(VALUE, 0): value}, what), partial(self._published, source)

    def _published(self, source: Any, result: Result) -> Entry:
        assert result.record is not None
        key = (result.record.space, result.record.name)
        entry = self._entry(result.record, result.parts[VALUE, 0], source)
        self._apply(*key, entry)
        # The listener may have been quicker: there is one object for all, also for who waits for the run.
        known = self._entries.get(key)
        return known if known is not None and known.version == entry.version else entry

    def publish(self, space: str, name: str, value: Any, *, now: datetime) -> Entry:
        """
        Store a new version, which no run has given, and tell the listeners.

        Raises
        ------
        ValueRefused
            When the value is not data, or cannot be shared by processes; the old one stays.
        """
        change, published = self.change(space, name, value, now=now, duration=None, claim=None, final=True)
        [result] = self._records.write([change], tell=Tell.NOW)
        return published(result)

    def delete(self, space: str, name: str) -> None:
        """Forget the value. Raises KeyError where there is none."""
        [result] = self._records.write([Change(space, name, tasks.delete)], tell=Tell.NOW)
        if result.record is None:
            raise KeyError(name)
        self.take_in(result.record)

    # ------------------------------------------------------------ a store that has lost them

    def seed(self, entries: Mapping[tuple[str, str], Entry]) -> None:
        """Store these, but for what is there already."""
        for (space, name), entry in entries.items():
            try:
                self._put_back(space, name, entry)
            except ScheduleError as error:
                log.error("%s: its value is not stored: %s", whose(space, name), error)

    def _restore(self, since: int) -> None:
        """Raises StoreError, when some of them are not stored yet."""
        failed: StoreError | None = None
        for (space, name), entry in self.entries().items():
            try:
                self._put_back(space, name, entry)
            except StoreError as error:  # which costs the others nothing
                failed = error
            except ScheduleError as error:
                log.error("%s: its value is not stored: %s", whose(space, name), error)
        if failed is not None:
            raise failed

    def _put_back(self, space: str, name: str, entry: Entry) -> None:
        state = TaskState(entry.version, entry.updated_at, entry.duration, entry.run_id or "", entry.final, entry.wave)
        put_back(self._records, space, name, state, entry.shared)

    def inherit(self, other: Values) -> None:
        """Have what another one has: in the child of a fork, where its store is no store any more."""
        self._entries, self._versions, self._isolated = (
            dict(other._entries), dict(other._versions), set(other._isolated),
        )  # fmt: skip


def put_back(records: RecordStore, space: str, name: str, state: TaskState, value: Any) -> None:
    """
    A store that lacks a value gets it, as `state` describes it, unless there is one that was made later.

    Of two of the same version the one that was made later stays, with another version.

    Raises
    ------
    StoreError, ValueRefused
    """
    while _compared(records, space, name, state, value) is Refusal.HELD:
        pass  # it was changed meanwhile


def _compared(records: RecordStore, space: str, name: str, state: TaskState, value: Any) -> Refusal | None:
    record, lost = records.read(space, name), False
    if record is not None and record.state.version <= state.version and tasks.is_newer(record, state.updated_at):
        change = Change(space, name, partial(tasks.outrank, version=state.version))
        return records.write([change], tell=Tell.NOW)[0].refusal
    if record is not None and tasks.is_another(record, state):
        state = state._replace(version=state.version + 1)
    elif record is not None and record.state.version == state.version:
        try:
            records.source(record, VALUE).close()
            return None
        except (KeyError, ValueUnreadable):
            lost = True
    apply = partial(tasks.restore, held=Record(space, name, state), lost=lost)
    change = Change(space, name, apply, {(VALUE, 0): value}, whose(space, name))
    return records.write([change], tell=Tell.NOW)[0].refusal


def whose(space: str, name: str) -> str:
    """How an error names a value."""
    return f"Task {name!r}" if space == TASK else f"ps.store[{name!r}]"


def private_source(value: Any, what: str) -> Mapped:
    """Bytes of this process alone, that private copies are made from."""
    encoded = encode(value, what)
    try:
        return Mapped.anonymous(encoded)
    finally:
        encoded.close()
