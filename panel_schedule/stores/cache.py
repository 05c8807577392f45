"""The answers of memoized functions in a store that several processes share: one of them computes each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from ..clock import Clock
from ..coordination import answers
from ..coordination.answers import ERROR, NOT_KEPT, PARTIAL, SPACE, UNLIMITED, VALUE, Basis, Limits, key_of, name_of
from ..coordination.history import MEMO
from ..coordination.record import Record, Refusal
from ..errors import RunCrashed, RunFailed, RunFenced, ValueUnreadable
from ..functions.run import RunRecord
from ..serialize.checks import require_data
from ..serialize.errors import packed_short, unpacked
from .records import HELD, NO_PARTS, Apply, Change, RecordStore, Result, Tell, noted

# How long a value stays that is not kept, or is larger than all the room: until those have it who wait for it.
PASSING = timedelta(seconds=10)

# The key of the record that says that all answers of a function were forgotten, with the owner who did it for its call.
ALL = ""


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """
    What the store knows of the answer to one call.

    Attributes
    ----------
    function : str
        Name of the memoized function.
    key : str
        Digest of the arguments.
    call, version, basis, updated_at, duration, fence, wanted, takeovers, failed, failed_at, partials, percent, message,
    ttl
        See `AnswerState`.
    held : bool
        A process that is alive computes it.
    mine : bool
        It is this one.
    record : Record
    """

    function: str
    key: str
    call: str
    version: int
    basis: Basis
    updated_at: datetime | None
    duration: float | None
    fence: int
    wanted: Basis
    takeovers: int
    failed: int
    failed_at: datetime | None
    partials: int
    percent: int
    message: str
    began_at: datetime | None
    ttl: float | None
    held: bool
    mine: bool
    record: Record

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return self.record.size


class Cache:
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
    RunFenced
        From those that are given a `fence`, when the computation does not count any more: it was invalidated,
        or another process does it.
    """

    def __init__(self, store: RecordStore, clock: Clock):
        self._store = store
        self._clock = clock
        store.subscribe(SPACE, self._let_go)

    # ------------------------------------------------------------ looking

    def look(self, function: str, key: str) -> AnswerRow | None:
        record = self._store.read(SPACE, name_of(function, key))
        return self._row(record) if record is not None else None

    def answers(self, function: str) -> list[AnswerRow]:
        """Those that have a value, the one that was used last first."""
        found = [record for record in self._store.scan(SPACE, function) if VALUE in record.parts]
        return [self._row(record) for record in sorted(found, key=_used, reverse=True)]

    def under_way_elsewhere(self) -> list[AnswerRow]:
        """Those that other processes compute."""
        found = [record for record in self._store.scan(SPACE, owner=HELD) if record.owner != self._store.me]
        return [row for row in map(self._row, found) if row.held]

    def _row(self, record: Record) -> AnswerRow:
        mine = record.owner == self._store.me
        held = record.owner is not None and (mine or self._store.alive(record.owner))
        state: dict[str, Any] = record.state._asdict()
        if VALUE not in record.parts:
            state["version"] = 0
        return AnswerRow(record.group, key_of(record), held=held, mine=mine, record=record, **state)

    def value(self, row: AnswerRow) -> Any:
        """
        The value of this version.

        Raises
        ------
        KeyError
            When there is another one by now, or none.
        ValueUnreadable
        """
        return self._load(row, VALUE)

    def partial(self, row: AnswerRow) -> Any:
        """The newest partial answer. Raises as `value`."""
        return self._load(row, PARTIAL)

    def _load(self, row: AnswerRow, kind: str) -> Any:
        if kind not in row.record.parts:
            raise KeyError(row.key)
        return self._store.load(row.record, kind, what=f"{_what(row.function)}: {row.call}")

    def failure(self, row: AnswerRow) -> BaseException:
        """What the last computation raised, caused by a `RemoteTraceback`."""
        what = _what(row.function)
        if ERROR not in row.record.parts:
            return RunCrashed(
                f"{what}: the process that computed {row.call} died, as did the one before. It is tried again when "
                "somebody asks for it anew; look for what kills them."
            )
        try:
            return unpacked(self._store.load(row.record, ERROR), what)
        except KeyError:
            return RunFailed(f"{what}: {row.call} failed in another process.")
        except ValueUnreadable as error:
            return RunFailed(f"{what}: {row.call} failed, and what it raised cannot be read: {error}.")

    # ------------------------------------------------------------ computing

    def claim(
        self, function: str, key: str, call: str, *, known: int, basis: Basis, now: datetime
    ) -> tuple[bool, AnswerRow]:
        """
        Get to compute an answer, unless it is there or another process computes it.

        One atomic step: of many processes at the same instant one wins. A computation whose process died is taken
        over, once; then it has failed.

        Parameters
        ----------
        function, key, call : str
        known : int
            The version that is not good enough; a greater one is returned instead.
        basis : tuple of int
            A computation under way for an older one does not count.
        now : datetime

        Returns
        -------
        mine : bool
            Whether this process is to compute it, under the row's `fence`.
        row : AnswerRow
        """
        seen: list[Record | None] = []
        # By owner whether he is alive. That is asked in between: a change is a pure function, which waits for nothing.
        lives = {self._store.me: True}

        def apply(record: Record | None, revision: int) -> Record | Refusal:
            seen[:] = [record]
            if record is not None and record.owner is not None and record.owner not in lives:
                return Refusal.HELD
            return answers.claim(
                record, revision, me=self._store.me, alive=lives.__getitem__, function=function, key=key, call=call,
                known=known, basis=basis, now=now,
            )  # fmt: skip

        while True:
            # Nobody has to hear of it: who wants the same comes here, too.
            [result] = self._store.write([Change(SPACE, name_of(function, key), apply)], tell=Tell.LATER)
            record = result.record or seen[0]
            assert record is not None
            if result.refusal is None or record.owner is None or record.owner in lives:
                break
            lives[record.owner] = self._store.alive(record.owner)
        return result.record is not None and record.owner == self._store.me, self._row(record)

    def publish(self, function: str, key: str, fence: int, value: Any) -> None:
        """
        Keep a partial answer in place of the last one.

        Raises
        ------
        ValueRefused
        """
        require_data(value, _what(function))
        apply = partial(answers.publish, me=self._store.me, fence=fence)
        _held(function, self._change(function, key, apply, {(PARTIAL, 0): value}))

    def progress(self, function: str, key: str, fence: int, percent: int, message: str) -> None:
        """It has come so far. Harmless when it is another one's by now."""
        apply = partial(answers.progress, me=self._store.me, fence=fence, percent=percent, message=message)
        self._change(function, key, apply, tell=Tell.SOON)

    def put(
        self,
        function: str,
        key: str,
        fence: int,
        value: Any,
        *,
        now: datetime,
        duration: float,
        expires_at: datetime | None,
        limits: Limits,
        run: RunRecord | None = None,
        ttl: float | None = None,
    ) -> tuple[AnswerRow, Any]:
        """
        The answer is there, as `run` says in the history. Those used longest ago go, as far as the limits say.

        One that is not kept, as `ttl` says, goes itself, as soon as those have it who wait for it in other processes.

        Returns
        -------
        row : AnswerRow
        value : object
            As all processes read it: a large one is one copy in memory.

        Raises
        ------
        ValueRefused
            When the value is not data, or cannot be shared by processes; nothing is changed.
        """
        require_data(value, _what(function))
        if ttl == NOT_KEPT:
            expires_at = now + PASSING
        done = partial(
            answers.succeed, me=self._store.me, fence=fence, now=now, duration=duration, expires_at=expires_at, ttl=ttl
        )
        record, parts = _held(function, self._change(function, key, done, {(VALUE, 0): value}, run=run))
        if limits.size is not None and record.size > limits.size:
            passing = partial(answers.expire, version=record.state.version, at=now + PASSING)
            self._change(function, key, passing, tell=Tell.LATER)
        self._trim(function, key, limits)
        return self._row(record), parts[VALUE, 0]

    def _trim(self, function: str, key: str, limits: Limits) -> None:
        if limits != UNLIMITED:
            entries, size = limits
            self._store.trim(SPACE, function, entries=entries, size=size, keep=name_of(function, key))

    def fail(
        self,
        function: str,
        key: str,
        fence: int,
        error: BaseException,
        *,
        now: datetime,
        limits: Limits = UNLIMITED,
        run: RunRecord | None = None,
    ) -> None:
        """
        There is none, as `run` says in the history; who waits for it in other processes hears why.

        A failure counts as an answer of its size: those used longest ago go, as far as the limits say. Its long texts
        are cut.
        """
        apply = partial(answers.fail, me=self._store.me, fence=fence, now=now)
        _held(function, self._change(function, key, apply, {(ERROR, 0): packed_short(error)}, run=run))
        self._trim(function, key, limits)

    def give_up(self, function: str, key: str, fence: int) -> None:
        """Let another process compute it. Harmless when it is another one's by now."""
        self._change(function, key, partial(answers.give_up, me=self._store.me, fence=fence, now=self._clock.now()))

    def _change(
        self,
        function: str,
        key: str,
        apply: Apply,
        parts: Mapping[tuple[str, int], Any] = NO_PARTS,
        tell: Tell = Tell.NOW,
        run: RunRecord | None = None,
    ) -> Result:
        changes = [Change(SPACE, name_of(function, key), apply, parts, _what(function))]
        if run is not None:
            changes.append(noted(MEMO, function, run))
        # What a loss of power takes is computed again.
        return self._store.write(changes, durable=False, together=True, tell=tell)[0]

    def release(self) -> None:
        """This process stops: let others compute what it has not ended."""
        me, now = self._store.me, self._clock.now()
        changes = [
            Change(SPACE, record.name, partial(answers.give_up, me=me, fence=record.state.fence, now=now))
            for record in self._store.scan(SPACE, owner=me)
        ]
        # Most processes have none, and a directory that is gone is not to be made again for that.
        if changes:
            self._store.write(changes, tell=Tell.NOW)

    # ------------------------------------------------------------ forgetting

    def invalidate(self, function: str, key: str | None = None) -> None:
        """Forget one answer or all; what computations under way come to does not count any more."""
        now, keys = self._clock.now(), dict.fromkeys([key or ALL])
        if key is None:
            keys |= dict.fromkeys(map(key_of, self._store.scan(SPACE, function)))
        self._store.write(
            [
                Change(SPACE, name_of(function, each), partial(
                    answers.invalidate, function=function, key=each, now=now, call="" if each else self._store.me,
                ))
                for each in keys
            ],
            tell=Tell.NOW,
        )  # fmt: skip

    def use(self, function: str, keys: Collection[str], now: datetime) -> None:
        """These were read."""
        self._store.use(SPACE, [name_of(function, key) for key in keys], now)

    # ------------------------------------------------------------ what the others do

    def watch_answers(self, noticed: Callable[[str, str], object]) -> None:
        """
        Call ``noticed(function, key)`` when a process may have changed an answer; on whatever thread.

        With the key ``""`` when another process has forgotten all of a function.
        """

        def changed(record: Record) -> None:
            # What this process has forgotten itself, it may have anew.
            if (key := key_of(record)) or record.state.call != self._store.me:
                noticed(record.group, key)

        self._store.subscribe(SPACE, changed)

    def _let_go(self, record: Record) -> None:
        """Let others take what a process has left undone that is gone."""
        if record.owner is not None and not self._store.alive(record.owner):
            apply = partial(answers.bury, alive=self._store.alive, now=self._clock.now())
            self._store.write([Change(SPACE, record.name, apply)], tell=Tell.NOW)


def _held(function: str, result: Result) -> tuple[Record, Any]:
    if result.record is None:
        raise RunFenced(f"{_what(function)}: its arguments were invalidated meanwhile, or are another process's.")
    return result.record, result.parts


def _used(record: Record) -> tuple[Any, int]:
    return record.used_at, record.revision


def _what(function: str) -> str:
    return f"Memoized function {function!r}"
