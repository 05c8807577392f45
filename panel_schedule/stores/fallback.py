"""What a process does with tasks for as long as it cannot reach the store that it shares: it runs them for itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from ..clock import Clock
from ..coordination import tasks
from ..coordination.record import NOBODY, Record, Refusal
from ..coordination.tasks import TASK, VALUE
from ..errors import ScheduleError, StoreError
from ..functions.run import RunRecord
from ..serialize.codec import Encoded, Inline, encode
from .records import (
    ALL,
    NO_PARTS,
    Change,
    Changed,
    LogAge,
    Lost,
    RecordStore,
    Reference,
    Result,
    Source,
    Tell,
    log_in,
    logged_in,
    numbered,
    selected,
    tell_all,
)
from .values import put_back

log = logging.getLogger("panel_schedule")

# Seconds between two looks whether the server is there again.
AGAIN = 1.0

T = TypeVar("T")


@dataclass(slots=True)
class _Copy:
    """
    The record of a task as this process has it for itself.

    Attributes
    ----------
    base : Record or None
        As the server had it last.
    record : Record
    published : Inline or None
        Its value, if it has got one since.
    written : set of str
        Other parts that it has got since.
    """

    base: Record | None
    record: Record
    published: Inline | None = None
    written: set[str] = field(default_factory=set)


class _Filling(threading.local):
    now = False


class Fallback:
    """
    A `RecordStore` that goes on without its server, for tasks alone.

    What is asked of tasks in vain for as long as others take this process to be alive is done here from then on, with
    copies of the records as they were last known. When the server is there again it gets what has come of that: values,
    slots that were handled, history. Of two processes that have run the same task the newer value holds: `put_back`.

    Parameters
    ----------
    shared : RecordStore
        On the server.
    clock : Clock
    shown : str
        How messages name the server.
    lease : float
        Seconds for which others take this process to be alive without a word of it.
    log_limit : int
        How many lines the log of each record keeps.

    Attributes
    ----------
    away : bool
        Whether this process goes on without the server.
    """

    blocking = True
    log_age: LogAge | None = None

    def __init__(self, shared: RecordStore, clock: Clock, shown: str, lease: float, log_limit: int):
        self._shared, self._clock, self._shown, self._lease = shared, clock, shown, lease
        self._log_limit = log_limit
        self.away = False
        # By kind of call, since when it fails.
        self._failing: dict[str, float] = {}
        # All of tasks that this process has seen, as it was last; and their parts but for values.
        self._known: dict[str, Record] = {}
        self._parts: dict[tuple[str, str], Any] = {}
        # What it has for itself, and the lines of logs that it has written meanwhile.
        self._own: dict[str, _Copy] = {}
        self._lines: dict[tuple[str, ...], list[RunRecord]] = {}
        self._watched: dict[str, int] = {}
        self._lock = threading.RLock()
        self._subscribers: list[Changed] = []
        # Whether this thread stores again what the server has lost.
        self._filling = _Filling()
        self._closing = threading.Event()

    @property
    def me(self) -> str:
        return self._shared.me

    # ------------------------------------------------------------ which of both

    def _here(self, space: str, name: str) -> bool:
        return space == TASK and not self._filling.now and (self.away or name in self._own)

    def _ask(self, kind: str, ask: Callable[[], T], instead: Callable[[], T]) -> T:
        """Of the server; or of this process, from when the server has failed for too long."""
        try:
            answer = ask()
        except StoreError:
            now = self._clock.monotonic()
            if now - self._failing.setdefault(kind, now) < self._lease:
                raise
            self._leave()
            return instead()
        self._failing.pop(kind, None)
        return answer

    def _leave(self) -> None:
        with self._lock:
            if self.away or self._closing.is_set():
                return
            self.away = True
            # What others run they may well go on with: it is not taken over, and holds up nothing here.
            held = [record for record in self._known.values() if record.owner not in (None, self.me)]
            freed = [tasks.abandon(record, record.revision) for record in held]
            self._known |= {record.name: record for record in freed if isinstance(record, Record)}
            # All are told: that a run of another process has ended may be known here, and its word never come.
            names = list(self._known)
        log.error(
            "This process runs its tasks for itself until the store %s can be used again, as ps.config.on_store_loss "
            "is 'run'.", self._shown,
        )  # fmt: skip
        thread = threading.Thread(target=self._come_back, args=(names,), name="panel-schedule-fallback", daemon=True)
        Context().run(thread.start)

    # ------------------------------------------------------------ reading

    def read(self, space: str, name: str) -> Record | None:
        if space != TASK:
            return self._shared.read(space, name)
        if self._here(space, name):
            return self._known.get(name)
        record = self._ask("read", partial(self._shared.read, space, name), lambda: self._known.get(name))
        return self._learn(record)

    def _learn(self, record: Record | None) -> Record | None:
        """As it is on the server; unless this process has it for itself."""
        if record is None or record.space != TASK or record.name in self._own:
            return record
        known = self._known.get(record.name)
        if known is None or known.revision <= record.revision:
            self._known[record.name] = record
        return record

    def scan(self, space: str, group: str = ALL, *, owner: str | None = ALL, last: int | None = None) -> list[Record]:
        shared = partial(self._shared.scan, space, group, owner=owner, last=last)
        if space != TASK:
            return shared()
        known = partial(selected, self._known.values(), group, owner, last)
        records = known() if self.away else self._ask("read", shared, known)
        own = self._own
        return [own[each.name].record if each.name in own else self._learn(each) or each for each in records]

    def load(self, record: Record, kind: str, number: int = 0, what: str = "") -> Any:
        shared = partial(self._shared.load, record, kind, number, what)
        if record.space != TASK:
            return shared()

        def own() -> Any:
            if (part := self._part(record, kind)) is None:
                raise KeyError(record.name)
            return part.load()

        if self.away or self._part(record, kind) is not None:
            return own()
        part = self._ask("read", shared, own)
        if kind != VALUE:
            self._parts[record.name, kind] = part
        return part

    def source(self, record: Record, kind: str, number: int = 0, what: str = "") -> Source:
        if record.space != TASK or (part := self._part(record, kind)) is None:
            return self._shared.source(record, kind, number, what)
        return part

    def _part(self, record: Record, kind: str) -> Source | None:
        """What this process has of it for itself."""
        if not self._here(TASK, record.name):
            return None
        if kind == VALUE:
            copy = self._own.get(record.name)
            return copy.published if copy is not None else None
        part = self._parts.get((record.name, kind))
        return None if part is None else Reference(part)

    def log(self, space: str, name: str, last: int | None = None) -> list[RunRecord]:
        shared = partial(self._shared.log, space, name, last)
        if space != TASK:
            return shared()

        def lines() -> list[RunRecord]:
            return log_in(self._lines, space, name, last)

        return lines() if self._here(space, name) else self._ask("read", shared, lines)

    def alive(self, owner: str) -> bool:
        def alone() -> bool:
            return owner == self.me

        return alone() if self.away or owner == NOBODY else self._ask("read", partial(self._shared.alive, owner), alone)

    # ------------------------------------------------------------ writing

    def write(
        self, changes: Sequence[Change], *, durable: bool | None = None, together: bool = False, tell: Tell = Tell.SOON
    ) -> list[Result]:
        shared = partial(self._shared.write, durable=durable, together=together, tell=tell)
        if all(change.space != TASK for change in changes):
            return shared(changes)
        if self.away or self._own:
            with self._lock:
                here = [self._here(change.space, change.name) for change in changes]
                others = [each for each, mine in zip(changes, here, strict=True) if not mine]
                there = iter(shared(others) if others else ())
                return [self._make(each) if mine else next(there) for each, mine in zip(changes, here, strict=True)]
        results = self._ask("write", partial(shared, changes), partial(self._make_all, changes))
        for change, result in zip(changes, results, strict=True):
            if self._learn(result.record) is not None and change.space == TASK:
                self._parts |= {(change.name, kind): part for (kind, _), part in change.parts.items() if kind != VALUE}
        return results

    def _make_all(self, changes: Sequence[Change]) -> list[Result]:
        with self._lock:
            return [self._make(change) for change in changes]

    def _make(self, change: Change) -> Result:
        """Of what this process has for itself; its number stays that of what the server had."""
        name, parts = change.name, {part: _encoded(value, change.what) for part, value in change.parts.items()}
        old = self._known.get(name)
        revision = old.revision if old is not None else 1
        new = change.apply(old, revision)
        if isinstance(new, Refusal):
            return Result(None, new)
        new, line = logged_in(self._lines, new, self._log_limit)
        assert new is not None
        published = parts.get((VALUE, 0))
        size = len(published.data) if published is not None else old.size if old is not None else 0
        self._known[name] = record = numbered(new, old, size, revision)
        copy = self._own.setdefault(name, _Copy(old, record))
        copy.record, copy.published = record, published or (copy.published if VALUE in record.parts else None)
        copy.written |= {kind for kind, _ in parts} - {VALUE}
        loaded = {part: each.load() for part, each in parts.items()}
        self._parts |= {(name, kind): part for (kind, _), part in loaded.items() if kind != VALUE}
        return Result(record, None, loaded or NO_PARTS, line, revision if old is not None else 0)

    # ------------------------------------------------------------ the server is there again

    def _come_back(self, names: Sequence[str]) -> None:
        self._tell([self._known[name] for name in names])
        while self.away and not self._closing.wait(min(AGAIN, self._lease / 3)):
            try:
                self._shared.scan(TASK, last=1)
                self._give_back()
            except StoreError:
                self.away = True  # still, or again

    def _give_back(self) -> None:
        for name in list(self._own):
            with self._lock:
                try:
                    self._rejoin(name)
                except StoreError:
                    raise
                except Exception:
                    log.exception("Task %r: giving it back to the store failed at a bug of panel-schedule.", name)
                del self._own[name]
                self.away = False  # the server takes it: what comes from now on goes there
            self._tell([self._known[name]])
        self.away = False
        self._failing.clear()
        for name, sessions in list(self._watched.items()):
            self._shared.watch(TASK, name, sessions)
            del self._watched[name]
        log.info("The store %s works again, and has what this process has computed meanwhile.", self._shown)

    def _rejoin(self, name: str) -> None:
        """The server gets what this process has of a task for itself. Raises StoreError when it takes nothing."""
        copy, there = self._own[name], self._shared.read(TASK, name)
        if copy.published is not None:
            try:
                put_back(self._shared, TASK, name, copy.record.state, copy.published.load())
            except StoreError:
                raise
            except ScheduleError as error:
                log.error("Task %r: its value is not stored: %s", name, error)
        parts, known = {kind: part for (owner, kind), part in self._parts.items() if owner == name}, copy.record
        if there is None or there.state.first_seen is None:  # it has never had it
            known = known._replace(parts=dict.fromkeys(parts, 1))
        else:
            parts = {kind: parts[kind] for kind in copy.written}
        rejoined = partial(tasks.rejoin, base=copy.base, held=known, written=parts.keys(), me=self.me)
        lines = reversed(log_in(self._lines, TASK, name))
        notes = [partial(tasks.note, task=name, run=run, mark=None, claim=None, release=False) for run in lines]
        results = self._shared.write(
            [
                Change(TASK, name, rejoined, {(kind, 0): part for kind, part in parts.items()}),
                *(Change(TASK, name, note) for note in notes),
            ],
            tell=Tell.NOW,
        )
        self._lines.pop((TASK, name), None)
        self._lines.pop((TASK, name, "failures"), None)
        self._known[name] = results[-1].record or known

    def _tell(self, records: Sequence[Record]) -> None:
        for record in records:
            if (error := tell_all(self._subscribers, record)) is not None:
                log.error("%s", error)

    # ------------------------------------------------------------ the rest

    def watch(self, space: str, name: str, sessions: int) -> None:
        shared = partial(self._shared.watch, space, name, sessions)
        if space != TASK:
            shared()
        elif self.away:
            self._watched[name] = sessions
        else:
            self._ask("watch", shared, partial(self._watched.__setitem__, name, sessions))

    def watchers(self, space: str, name: str) -> int:
        return 0 if self.away else self._ask("read", partial(self._shared.watchers, space, name), lambda: 0)

    def subscribe(self, space: str, changed: Changed, lost: Lost = lambda since: None) -> None:
        if space == TASK:
            self._subscribers.append(changed)
            self._shared.subscribe(space, partial(self._changed, changed), partial(self._fill, lost))
        else:
            self._shared.subscribe(space, changed, lost)

    def _changed(self, changed: Changed, record: Record) -> None:
        if record.name not in self._own:
            self._learn(record)
            changed(record)

    def _fill(self, lost: Lost, since: int) -> None:
        self._filling.now = True
        try:
            lost(since)
        finally:
            self._filling.now = False

    def use(self, space: str, names: Collection[str], now: datetime) -> None:
        self._shared.use(space, names, now)

    def trim(
        self,
        space: str,
        group: str = ALL,
        *,
        entries: int | None = None,
        size: int | None = None,
        keep: str = "",
        larger: bool = False,
    ) -> None:
        self._shared.trim(space, group, entries=entries, size=size, keep=keep, larger=larger)

    def sweep(self, now: datetime) -> None:
        self._shared.sweep(now)

    def listen(self) -> None:
        self._shared.listen()

    def close(self) -> None:
        self._closing.set()
        self._shared.close()


def _encoded(value: Any, what: str) -> Inline:
    encoded = value if isinstance(value, Encoded) else encode(value, what)
    try:
        return Inline(encoded.tobytes())
    finally:
        if encoded is not value:
            encoded.close()
