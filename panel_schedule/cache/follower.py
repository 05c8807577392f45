"""What the other processes do with the same memoized functions, and what this one makes of it."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Hashable
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from ..coordination.answers import Basis, serves
from ..engine.service import Service
from ..errors import RunFenced, ScheduleError, StoreError, ValueUnreadable, is_interrupt
from ..functions.memoize import Memoized
from ..serialize.entry import Entry
from ..stores.cache import AnswerRow, Cache
from ..stores.hurry import SOON, hurried, in_a_hurry
from .answers import Archive
from .computation import Computation
from .execution import Runner
from .lru import Answer

log = logging.getLogger("panel_schedule")

# How often, in seconds, who waits for another process looks at the store though nothing was heard.
LOOK = 1.0

# How often, in seconds, the store hears which answers were read.
TOLD = 1.0

# So long, in seconds, another process may know newer values of the tasks of ``after=`` than this one does.
LAG = 10.0


class SingleFlight(Protocol):
    """Who asks in this process."""

    runner: Runner
    archive: Archive

    def succeed(self, computation: Computation, answer: Answer | None, value: Any = None) -> None: ...
    def fail_with(
        self, computation: Computation, error: BaseException, old: Answer | None = None, ago: float = 0.0
    ) -> None: ...
    def renew(self, computation: Computation) -> None: ...
    def failing(self, memo: Memoized[Any, Any]) -> list[Hashable]: ...


class Follower:
    """
    Follows the rows of a store that several processes share; never on an event loop.

    Parameters
    ----------
    service : Service
    computations : SingleFlight
    cache : Cache
    """

    def __init__(self, service: Service, computations: SingleFlight, cache: Cache):
        self._service = service
        self._f = computations
        self._cache = cache
        self.memos: dict[str, Memoized[Any, Any]] = {}
        # The computations by function and digest, here and elsewhere: of several values of a task there may be several.
        self._computations: defaultdict[tuple[str, str], dict[Computation, None]] = defaultdict(dict)
        self._looking = False
        # What the store has still to forget, before it is asked for anything.
        self._due: deque[tuple[str, str | None]] = deque()
        self._forgetting = threading.Lock()
        self._used: defaultdict[str, dict[str, Answer]] = defaultdict(dict)
        self._telling = False
        cache.watch_answers(self._noticed)

    # ------------------------------------------------------------ before a computation

    def look_up(self, computation: Computation, here: bool = False) -> None:
        """Take what the store has, or follow the process that computes it, or compute it."""
        memo = computation.memo
        computation.digest = memo.digest(computation.key)
        try:
            with hurried(lambda: computation.held):
                self._look_up(computation, here)
        except RunFenced:  # of this process itself, which has just left
            self._f.runner.submit(computation, here)
        except BaseException as error:
            if is_interrupt(error):
                raise
            if not isinstance(error, (ScheduleError, OSError)):
                log.exception("%s: its store failed at something that is a bug of panel-schedule.", computation.name)
            else:
                log.error(
                    "%s: it is computed by each process for itself, as the store fails. %s", computation.name, error
                )
            self._f.runner.submit(computation, here)

    def _look_up(self, computation: Computation, here: bool) -> None:
        memo = computation.memo
        with self._service.locked:
            if computation.over:
                return
            self._computations[memo.name, computation.digest][computation] = None
        self._forget_due()
        computation.partials = 0
        row = self._cache.look(memo.name, computation.digest)
        computation.known = row.version if row is not None else 0
        if row is not None and not computation.refresh and self._settles(computation, row):
            return
        mine, row = self._cache.claim(
            memo.name, computation.digest, computation.call,
            known=computation.known, basis=computation.basis, now=self._service.clock.now(),
        )  # fmt: skip
        with self._service.locked:
            computation.fence, computation.remote = row.fence, not mine
            if computation.over and mine:  # nobody wants it any more
                self.give_up(computation, row.fence)
            self._keep_looking()
        if mine:
            self._f.runner.submit(computation, here)
        else:
            # It may have ended before this process was listening.
            self._follow(computation)

    def _settles(self, computation: Computation, row: AnswerRow) -> bool:
        """Whether what the store has is good enough: then it is the computation's."""
        memo, now = computation.memo, self._service.clock.now()
        if row.failed and row.failed_at is not None and row.failed_at + memo.policy.error_ttl > now:
            self._fail(computation, row, (now - row.failed_at).total_seconds())
            return True
        if not row.version or not self._counts(row, computation.basis):
            return False
        lifetime = memo.until(self._age(row))
        if lifetime[0 if computation.renews else 1] <= self._service.clock.monotonic():
            return False
        try:
            answer = self._answer(memo, row)
        except KeyError:
            return False
        except ValueUnreadable as error:
            log.error("%s It is computed again.", error)
            return False
        stale = answer.fresh_until <= self._service.clock.monotonic()
        with self._service.locked:
            if computation.refresh and not computation.over:  # somebody has asked for another one meanwhile
                return False
            if not computation.over:
                self._f.succeed(computation, answer)
                self.use(memo, answer)
                if stale:
                    self._service.defer(partial(self._f.renew, computation))
        self._look_again(memo, computation.key, row)
        return True

    def _look_again(self, memo: Memoized[Any, Any], key: Hashable, row: AnswerRow) -> None:
        """What was invalidated between the look and the landing, and was not known here by then."""
        now = self._cache.look(row.function, row.key)
        if now is None or now.version != row.version:
            self._take_in(memo, key, now)

    def _counts(self, row: AnswerRow, basis: Basis) -> bool:
        """Whether an answer is of values that are no older than those that this process knows of ``after=``."""
        return serves(row.basis, basis) and (row.basis == basis or self._age(row) < LAG)

    def _age(self, row: AnswerRow) -> float:
        assert row.updated_at is not None
        return max(0.0, (self._service.clock.now() - row.updated_at).total_seconds())

    def _answer(self, memo: Memoized[Any, Any], row: AnswerRow) -> Answer:
        assert row.updated_at is not None
        return Answer(
            self._cache.value(row), row.version, row.updated_at, row.duration, row.basis, memo.until(self._age(row)),
            row.size, row.key, row.call,
        )  # fmt: skip

    # ------------------------------------------------------------ a computation of this process

    def publish(self, computation: Computation, item: Any) -> None:
        """Let the pages of other processes show a partial answer."""
        try:
            self._cache.publish(computation.memo.name, computation.digest, computation.fence, item)
        except (StoreError, RunFenced) as error:
            log.debug("%s: a partial answer is not shown by other processes: %s", computation.name, error)

    def deposit(self, computation: Computation, value: Any, now: datetime, duration: float) -> Answer | None:
        """
        The answer as all processes read it; None when the store cannot take it now.

        Raises
        ------
        RunFenced
            When it was invalidated meanwhile.
        ValueRefused
        """
        memo = computation.memo
        lasts = memo.lasts
        try:
            with hurried(lambda: computation.held):
                self._tell_used()
                row, value = self._cache.put(
                    memo.name, computation.digest, computation.fence, value, now=now, duration=duration,
                    expires_at=None if lasts is None else now + lasts, limits=memo.policy.limits,
                )  # fmt: skip
        except (StoreError, OSError) as error:
            log.error(
                "%s: other processes do not get what it gave, as it cannot be stored. %s", computation.name, error
            )
            with self._service.locked:
                self.give_up(computation, computation.fence)
            return None
        return Answer(
            value, row.version, now, duration, row.basis, memo.until(0.0), row.size, computation.digest, row.call
        )  # fmt: skip

    def failed(self, computation: Computation, error: BaseException) -> None:
        """Tell those who wait for it in other processes."""
        if not computation.fence or computation.remote:
            return
        try:
            with hurried(lambda: computation.held):
                memo, now = computation.memo, self._service.clock.now()
                self._cache.fail(
                    memo.name, computation.digest, computation.fence, error, now=now, limits=memo.policy.limits
                )  # fmt: skip
        except RunFenced:
            pass
        except (StoreError, OSError) as trouble:
            log.error("%s: other processes do not hear that it failed. %s", computation.name, trouble)
            with self._service.locked:
                self.give_up(computation, computation.fence)

    def give_up(self, computation: Computation, fence: int) -> None:
        """Let them compute it, as soon as the store can hear of it. Under the lock."""
        self._service.outbox.ask((), partial(self._cache.give_up, computation.memo.name, computation.digest, fence))

    def last(self, computation: Computation) -> Answer | None:
        """The last answer that the store has, however old."""
        try:
            row = self._cache.look(computation.memo.name, computation.digest)
            return self._answer(computation.memo, row) if row is not None and row.version else None
        except (ScheduleError, OSError, KeyError):
            return None

    def over(self, computation: Computation) -> None:
        """It has ended; under the lock."""
        name = computation.memo.name, computation.digest
        if name in self._computations:
            self._computations[name].pop(computation, None)
            if not self._computations[name]:
                del self._computations[name]

    # ------------------------------------------------------------ a computation of another process

    def _noticed(self, function: str, digest: str) -> None:
        """A process may have changed a row; on the store's thread."""
        if (memo := self.memos.get(function)) is None:
            return
        if not digest:
            self._f.archive.forget(memo)
            return
        with self._service.locked:
            computations = list(self._computations.get((function, digest), ()))
        for computation in computations:
            if computation.remote:
                self._follow(computation)
        if all(computation.fence and not computation.remote for computation in computations):
            self._hear(memo, digest, computations)
        elif (row := self._cache.look(function, digest)) is not None and not row.version:
            # One looks at the row itself, but what it is to replace is served meanwhile.
            with self._service.locked:
                self._f.archive.drop(memo, computations[0].key)

    def _hear(self, memo: Memoized[Any, Any], digest: str, computations: list[Computation]) -> None:
        """Of a row that may say something new about what is computed, or known, in this process."""
        with self._service.locked:
            key = computations[0].key if computations else memo.recall.find(digest)
        if key is None:
            key = next((each for each in self._f.failing(memo) if memo.digest(each) == digest), None)
        if key is None:
            return
        row = self._cache.look(memo.name, digest)
        if row is not None and any(_is_own_doing(computation, row) for computation in computations):
            return
        if (
            row is not None
            and computations
            and not row.mine
            and all(row.fence != computation.fence for computation in computations)
        ):
            self._f.archive.forget(memo, key)  # another process computes it, as what is computed here is of before
            return
        self._take_in(memo, key, row)

    def _take_in(self, memo: Memoized[Any, Any], key: Hashable, row: AnswerRow | None) -> None:
        """Bring what this process knows of a call in line with its row."""
        known, watched = memo.recall.answers.get(key), memo.recall.watched.get(key)
        if row is None:
            return  # others needed the room; it is as good as it was
        if not row.version and (known is not None or not (row.held or row.failed)):
            self._f.archive.forget(memo, key)
        if row.version and (known is None or row.version > known.version):
            try:
                answer = self._answer(memo, row)
            except (KeyError, ValueUnreadable):  # it is read, or computed, when somebody asks for it
                return
            with self._service.locked:
                newer = memo.recall.answers.get(key)
                if newer is None or newer.version < answer.version:
                    self._f.archive.keep(memo, key, answer)
        elif watched is not None and row.failed:
            error = self._cache.failure(row)
            with self._service.locked:
                self._f.archive.tell_failure(memo, key, error)
        elif watched is not None and row.held and not row.mine:
            self._show_partial(memo, key, row)

    def _keep_looking(self) -> None:
        """What is followed may be lost without a word, with the database or for want of room. Under the lock."""
        if not self._looking and any(
            computation.remote for computations in self._computations.values() for computation in computations
        ):
            self._looking = True
            self._service.timers.after(LOOK, self._look, None)

    def _look(self, _: None) -> None:
        self._looking = False
        for computation in [
            computation
            for computations in self._computations.values()
            for computation in computations
            if computation.remote
        ]:
            self._service.outbox.aside(partial(self._follow, computation, writes=True))
        self._keep_looking()

    def _follow(self, computation: Computation, writes: bool = False) -> None:
        """
        See how far another process is, and do it here where none does it.

        Parameters
        ----------
        writes : bool
            Whether to see first that the store can be written to: on a full disk that process cannot even say that it
            has ended.
        """
        try:
            if writes:
                self._cache.use(computation.memo.name, [computation.digest], self._service.clock.now())
            row = self._cache.look(computation.memo.name, computation.digest)
            if computation.over:
                return
            if row is not None and self._arrives(computation, row):
                return
            if self._take_over(computation):
                self.look_up(computation)
        except (ScheduleError, OSError) as error:
            if self._take_over(computation):
                log.error("%s: it is computed here, as the store fails. %s", computation.name, error)
                self._f.runner.submit(computation)

    def _take_over(self, computation: Computation) -> bool:
        """Whether this thread is the first to see that nobody else does it."""
        with self._service.locked:
            if computation.over or not computation.remote:
                return False
            computation.remote, computation.fence = False, 0
            return True

    def _arrives(self, computation: Computation, row: AnswerRow) -> bool:
        """Whether the process that computes it has ended, or goes on."""
        if row.version > computation.known and serves(row.basis, computation.basis):
            try:
                answer = self._answer(computation.memo, row)
            except (KeyError, ValueUnreadable):
                return False
            with self._service.locked:
                if not computation.over:
                    self._f.succeed(computation, answer)
            self._look_again(computation.memo, computation.key, row)
        elif 0 < computation.fence <= row.failed:
            self._fail(computation, row)
        elif row.held and not row.mine and serves(row.wanted, computation.basis):
            if row.fence != computation.fence:
                computation.fence, computation.partials = row.fence, 0
            if row.partials > computation.partials:
                computation.partials = row.partials
                self._show_partial(computation.memo, computation.key, row)
        else:
            return False
        return True

    def _fail(self, computation: Computation, row: AnswerRow, ago: float = 0.0) -> None:
        error, old = self._cache.failure(row), self._f.runner.last_resort(computation)
        with self._service.locked:
            if not computation.over:
                self._f.fail_with(computation, error, old, ago)

    def _show_partial(self, memo: Memoized[Any, Any], key: Hashable, row: AnswerRow) -> None:
        if memo.recall.watched.get(key) is None or not row.partials:
            return
        try:
            item = self._cache.partial(row)
        except (KeyError, ValueUnreadable):  # there is a newer one
            return
        with self._service.locked:
            self._f.archive.tell_partial(memo, key, item)

    # ------------------------------------------------------------ what is kept

    def use(self, memo: Memoized[Any, Any], answer: Answer) -> None:
        """It was read; the store hears of it in a moment."""
        answer.told = True
        with self._service.locked:
            self._used[memo.name][answer.digest] = answer
            if not self._telling:
                self._telling = True
                self._service.timers.after(TOLD, self._tell_in_time, None)

    def _tell_in_time(self, _: None) -> None:
        self._telling = False
        self._service.outbox.ask((), self._tell_used)

    def _tell_used(self) -> None:
        with self._service.locked:
            used, self._used = self._used, defaultdict(dict)
        for function, answers in used.items():
            for answer in answers.values():
                answer.told = False
            try:
                self._cache.use(function, list(answers), self._service.clock.now())
            except (StoreError, OSError) as error:
                log.debug("Which answers were used is not known to the store: %s", error)

    def entry(self, memo: Memoized[Any, Any], key: Hashable) -> Entry | None:
        row = self._cache.look(memo.name, memo.digest(key))
        return self._entry(memo, row) if row is not None and row.version else None

    def entries(self, memo: Memoized[Any, Any]) -> dict[str, Entry]:
        found = {row.call: self._entry(memo, row) for row in self._cache.answers(memo.name)}
        return {call: entry for call, entry in found.items() if entry is not None}

    def _entry(self, memo: Memoized[Any, Any], row: AnswerRow) -> Entry | None:
        try:
            return self._answer(memo, row).entry
        except (KeyError, ValueUnreadable):  # it was replaced, or is lost
            return None

    def invalidate_soon(self, memo: Memoized[Any, Any], key: Hashable | None) -> None:
        """From now on the store is asked for nothing before it has forgotten this."""
        self._due.append((memo.name, None if key is None else memo.digest(key)))

    def invalidate(self) -> None:
        """Let the store forget it now."""
        self._forget_due()

    def _forget_due(self) -> None:
        if not self._forgetting.acquire(timeout=SOON if in_a_hurry() else -1):
            raise StoreError("The store is busy with forgetting what was invalidated.")
        try:
            while self._due:
                self._cache.invalidate(*self._due[0])
                self._due.popleft()
        finally:
            self._forgetting.release()


def _is_own_doing(computation: Computation, row: AnswerRow) -> bool:
    """Whether a computation of this process has left the row so."""
    return row.fence == computation.fence and (row.mine or row.version > computation.known or row.failed == row.fence)
