"""What the other processes do with the same memoized functions, and what this one makes of it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

from ..coordination.answers import NOT_KEPT, Basis, serves
from ..engine.service import Service
from ..errors import RunFenced, ScheduleError, ValueUnreadable, is_interrupt
from ..functions.memoize import Memoized
from ..stores.cache import AnswerRow
from ..stores.hurry import hurried
from .answers import KeptAnswers
from .computation import Computation

Memo = Memoized[Any, Any]

log = logging.getLogger("panel_schedule")

# How often, in seconds, who waits for another process looks at the store though nothing was heard.
LOOK = 1.0

# So long, in seconds, another process may know newer values of the tasks of ``after=`` than this one does.
LAG = 10.0


class Follower:
    """
    Follows the rows of a store that several processes share; never on an event loop.

    In a store in memory there are none: no other process could know of them.

    Parameters
    ----------
    service : Service
    kept : KeptAnswers
    memos : mapping
        The functions that this process knows, by name.
    renew : callable
        ``renew(computation)`` when what the store has is stale: compute it anew, in the background.
    failing : callable
        ``failing(memo)``: the keys of the calls whose failure is given again for a while.
    """

    def __init__(
        self,
        service: Service,
        kept: KeptAnswers,
        memos: Mapping[str, Memo],
        renew: Callable[[Computation], object],
        failing: Callable[[Memo], list[Hashable]],
    ):
        self._service = service
        self._shared = kept.shared
        self._kept = kept
        self._renew = renew
        self._failing = failing
        self._memos = memos
        # The computations by function and digest, here and elsewhere: of several values of a task there may be several.
        self._computations: defaultdict[tuple[str, str], dict[Computation, None]] = defaultdict(dict)
        self._looking = False
        service.store.cache.watch_answers(self._noticed)

    # ------------------------------------------------------------ before a computation

    def look_up(self, computation: Computation, here: bool = False) -> None:
        """Take what the store has, or follow the process that computes it, or compute it."""
        if not self._service.store.blocking:
            computation.launch(here)
            return
        computation.digest = computation.memo.digest(computation.key)
        try:
            with hurried(lambda: computation.held):
                self._look_up(computation, here)
        except RunFenced:  # of this process itself, which has just left
            computation.launch(here)
        except BaseException as error:
            if is_interrupt(error):
                raise
            if not isinstance(error, (ScheduleError, OSError)):
                log.exception("%s: its store failed at something that is a bug of panel-schedule.", computation.name)
            else:
                log.error(
                    "%s: it is computed by each process for itself, as the store fails. %s", computation.name, error
                )
            computation.launch(here)

    def _look_up(self, computation: Computation, here: bool) -> None:
        memo = computation.memo
        with self._service.locked:
            if computation.over:
                return
            self._computations[memo.name, computation.digest][computation] = None
        self._shared.forget_due()
        computation.partials = 0
        row = self._shared.look(memo, computation.digest)
        computation.known = row.version if row is not None else 0
        if row is not None and not computation.refresh and self._settles(computation, row):
            return
        mine, row = self._shared.cache.claim(
            memo.name, computation.digest, computation.call,
            known=computation.known, basis=computation.basis, now=self._service.clock.now(),
        )  # fmt: skip
        with self._service.locked:
            computation.fence, computation.remote = row.fence, not mine
            if computation.over:  # nobody wants it any more
                computation.give_up()
            self._keep_looking()
        if mine:
            computation.launch(here)
        else:
            # It may have ended before this process was listening.
            self._follow(computation)

    def _settles(self, computation: Computation, row: AnswerRow) -> bool:
        """Whether what the store has is good enough: then it is the computation's."""
        memo, now = computation.memo, self._service.clock.now()
        if row.failed and row.failed_at is not None and row.failed_at + memo.policy.error_ttl > now:
            self._fail(computation, row, (now - row.failed_at).total_seconds())
            return True
        if not row.version or row.ttl == NOT_KEPT or not self._counts(row, computation.basis):
            return False
        lifetime = memo.until(self._shared.age(row), row.ttl)
        if lifetime[0 if computation.renews else 1] <= self._service.clock.monotonic():
            return False
        try:
            answer = self._shared.answer(memo, row)
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
                computation.arrive(answer)
                self._shared.use(memo, answer)
                memo.lru.hits += 1
                if stale:
                    self._service.defer(partial(self._renew, computation))
        self._look_again(memo, computation.key, row)
        return True

    def _look_again(self, memo: Memo, key: Hashable, row: AnswerRow) -> None:
        """What was invalidated between the look and the landing, and was not known here by then."""
        now = self._shared.cache.look(row.function, row.key)
        if now is None or now.version != row.version:
            self._take_in(memo, key, now)

    def _counts(self, row: AnswerRow, basis: Basis) -> bool:
        """Whether an answer is of values that are no older than those that this process knows of ``after=``."""
        return serves(row.basis, basis) and (row.basis == basis or self._shared.age(row) < LAG)

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
        if (memo := self._memos.get(function)) is None:
            return
        if not digest:
            self._kept.forget(memo)
            return
        with self._service.locked:
            computations = list(self._computations.get((function, digest), ()))
        for computation in computations:
            if computation.remote:
                self._follow(computation)
        if all(computation.fence and not computation.remote for computation in computations):
            self._hear(memo, digest, computations)
        elif (row := self._shared.cache.look(function, digest)) is not None and not row.version:
            # One looks at the row itself, but what it is to replace is served meanwhile.
            with self._service.locked:
                self._kept.drop(memo, computations[0].key)

    def _hear(self, memo: Memo, digest: str, computations: list[Computation]) -> None:
        """Of a row that may say something new about what is computed, or known, in this process."""
        with self._service.locked:
            key = computations[0].key if computations else memo.lru.find(digest)
        if key is None:
            key = next((each for each in self._failing(memo) if memo.digest(each) == digest), None)
        if key is None:
            return
        row = self._shared.look(memo, digest)
        if row is not None and any(_is_own_doing(computation, row) for computation in computations):
            return
        fences = [computation.fence for computation in computations]
        if row is not None and computations and not row.mine and row.fence not in fences:
            self._kept.forget(memo, key)  # another process computes it, as what is computed here is of before
            return
        self._take_in(memo, key, row)

    def _take_in(self, memo: Memo, key: Hashable, row: AnswerRow | None) -> None:
        """Bring what this process knows of a call in line with its row."""
        known, watched = memo.lru.answers.get(key), memo.lru.watched.get(key)
        elsewhere = row is not None and row.held and not row.mine
        with self._service.locked:
            self._kept.tell_progress(memo, key, *((row.percent, row.message) if row and elsewhere else ()))
        if row is None:
            return  # others needed the room; it is as good as it was
        if not row.version and (known is not None or not (row.held or row.failed)):
            self._kept.forget(memo, key)
        if row.version and (known is None or row.version > known.version):
            if (answer := self._shared.found(memo, row)) is None:
                return  # it is read, or computed, when somebody asks for it
            with self._service.locked:
                newer = memo.lru.answers.get(key)
                if newer is None or newer.version < answer.version:
                    self._kept.keep(memo, key, answer)
        elif watched is not None and elsewhere:
            self._show_partial(memo, key, row)
        elif watched is not None and row.failed:
            error = self._shared.cache.failure(row)
            with self._service.locked:
                self._kept.tell_failure(memo, key, error)

    @property
    def _remote(self) -> list[Computation]:
        known = self._computations.values()
        return [computation for computations in known for computation in computations if computation.remote]

    def _keep_looking(self) -> None:
        """What is followed may be lost without a word, with the database or for want of room. Under the lock."""
        if not self._looking and self._remote:
            self._looking = True
            self._service.timers.after(LOOK, self._look, None)

    def _look(self, _: None) -> None:
        self._looking = False
        for computation in self._remote:
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
                self._shared.cache.use(computation.memo.name, [computation.digest], self._service.clock.now())
            row = self._shared.look(computation.memo, computation.digest)
            if computation.over:
                return
            if row is not None and self._arrives(computation, row):
                return
            if self._take_over(computation):
                self.look_up(computation)
        except (ScheduleError, OSError) as error:
            if self._take_over(computation):
                self._service.outbox.complain(
                    "%s: it is computed here, as the store fails. %s", computation.name, error
                )
                computation.launch()

    def _take_over(self, computation: Computation) -> bool:
        """Whether this thread is the first to see that nobody else does it."""
        with self._service.locked:
            if computation.over or not computation.remote:
                return False
            computation.remote, computation.fence = False, 0
            computation.run.report(-1, "")
            return True

    def _arrives(self, computation: Computation, row: AnswerRow) -> bool:
        """Whether the process that computes it has ended, or goes on."""
        if row.version > computation.known and serves(row.basis, computation.basis):
            if (answer := self._shared.found(computation.memo, row)) is None:
                return False
            with self._service.locked:
                computation.arrive(answer)
            self._look_again(computation.memo, computation.key, row)
        elif 0 < computation.fence <= row.failed:
            self._fail(computation, row)
        elif row.held and not row.mine and serves(row.wanted, computation.basis):
            if row.fence != computation.fence:
                computation.fence, computation.partials = row.fence, 0
            computation.run.report(row.percent, row.message)
            if row.partials > computation.partials:
                computation.partials = row.partials
                self._show_partial(computation.memo, computation.key, row)
        else:
            return False
        return True

    def _fail(self, computation: Computation, row: AnswerRow, ago: float = 0.0) -> None:
        error, old = self._shared.cache.failure(row), computation.last_resort()
        with self._service.locked:
            computation.arrive_failed(error, old, ago)

    def _show_partial(self, memo: Memo, key: Hashable, row: AnswerRow) -> None:
        if memo.lru.watched.get(key) is None or not row.partials:
            return
        try:
            item = self._shared.cache.partial(row)
        except (KeyError, ValueUnreadable):  # there is a newer one
            return
        with self._service.locked:
            self._kept.tell_partial(memo, key, item)


def _is_own_doing(computation: Computation, row: AnswerRow) -> bool:
    """Whether a computation of this process has left the row so."""
    return row.fence == computation.fence and (row.mine or row.version > computation.known or row.failed == row.fence)
