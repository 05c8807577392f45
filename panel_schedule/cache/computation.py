"""One computation of an answer: what is asked, who waits for it, who computes it, and what comes of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import Context
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any

from ..coordination.answers import NOT_KEPT, Basis, serves
from ..coordination.history import MEMO
from ..engine.execution import Execution, work_of
from ..engine.service import Service
from ..errors import RunCancelled, RunCrashed, RunFenced, RunTimedOut, StoreError, is_interrupt
from ..executors.threads import PlacedFuture
from ..functions.calls import PUBLISHED
from ..functions.lru import Answer
from ..functions.memoize import Memoized
from ..functions.run import Run, RunRecord, RunState
from ..serialize.checks import require_data
from ..serialize.codec import encode
from ..serialize.copies import own_copy
from ..stores.hurry import hurried
from .answers import KeptAnswers

log = logging.getLogger("panel_schedule")

# How a computation of another process has ended, of which the error is known.
ENDS: dict[type[BaseException], RunState] = {RunTimedOut: RunState.TIMED_OUT, RunCrashed: RunState.CRASHED}

# Of answers that no store has.
_versions = count(1)


class Elsewhere(RunCancelled):
    """Raised before a function begins: another thread computes it already, or nobody wants it any more."""


class Computation(Execution):
    """
    A computation, in this process or followed in another one.

    Parameters
    ----------
    service : Service
    answers : KeptAnswers
    memo : Memoized
    key : hashable
    args, kwargs : tuple, dict
    basis : tuple of int
        The versions of the tasks of ``after=`` for which it is made.
    run : Run
        What ``ps.current_run()`` is inside.
    advanced, ended : callable
        ``advanced(computation)`` with its progress, and ``ended(computation, outcome, error)``, under the lock.

    Attributes
    ----------
    refresh : bool
        Whether an answer that is there is no reason not to compute.
    renews : bool
        Whether only a fresh one is.
    wanted : bool
        Whether it is computed though nobody waits for it.
    heard : bool
        Whether somebody who waits gets to hear of a failure as an error that is raised.
    held : bool
        Whether an event loop stands still until it has ended.
    kept : bool
        Whether its answer is kept, as it was not invalidated meanwhile.
    ready : bool
        Whether this process may begin it now.
    started : bool
    waits_for : list of Computation
        What its function waits for; a coroutine may wait for several.
    last : object
        Its newest partial answer.
    answer : Answer or None
        What came of it, unless that is not kept.
    value : object
        The same, kept or not.
    old : Answer or None
        What is served in place of one that could not be computed.
    ago : float
        How many seconds ago it has failed.
    settled : bool
        Whether the store knows that it has failed, and what it has from before is known.
    digest : str
        Its key in a shared store.
    fence : int
        Its right to store the answer, or that of the process that computes it; 0 where it has none.
    remote : bool
        Whether another process computes it.
    known : int
        The version in the store that was not good enough.
    partials : int
        How many partial answers that process had published.
    telling_store : bool
        Whether the store is about to be told of its progress.
    """

    __slots__ = (
        "advanced",
        "ago",
        "answer",
        "answers",
        "basis",
        "digest",
        "ended",
        "fence",
        "heard",
        "held",
        "kept",
        "key",
        "known",
        "last",
        "memo",
        "old",
        "partials",
        "ready",
        "refresh",
        "remote",
        "renews",
        "settled",
        "started",
        "telling_store",
        "value",
        "waits_for",
        "wanted",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        answers: KeptAnswers,
        memo: Memoized[Any, Any],
        key: Hashable,
        args: Any,
        kwargs: Any,
        basis: Basis,
        run: Run,
        advanced: Callable[[Computation], object],
        ended: Callable[[Computation, RunState, BaseException | None], object],
    ):
        policy, executor = memo.policy, service.executor("memo", memo.executor)
        limits = policy.concurrency and service.limiter.of(f"Memoized function {memo.name!r}", policy.concurrency)
        work = work_of(
            "Memoized function", memo.name, memo.function, memo.executor, executor, policy.timeout, policy.retry, limits
        )
        super().__init__(service, work, run, args, kwargs)
        self.answers = answers
        self.memo = memo
        self.key = key
        self.basis = basis
        self.advanced, self.ended = advanced, ended
        self.refresh = self.renews = self.wanted = self.heard = self.ready = self.started = self.remote = False
        self.held, self.kept, self.settled, self.telling_store = False, True, False, False
        self.ago = 0.0
        self.waits_for: list[Computation] = []
        self.last: Any = None
        self.answer: Answer | None = None
        self.old: Answer | None = None
        self.value: Any = None
        self.digest = ""
        self.fence = self.known = self.partials = 0
        run._changed = self.progressed

    @property
    def takes_long(self) -> bool:
        return self.service.store.blocking or self.memo.policy.limits.size is not None

    @property
    def is_failing(self) -> bool:
        return self.service.hooks.failures.known(("memo", self.memo.name))

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.run.state.final

    # ------------------------------------------------------------ beginning

    def launch(self, here: bool = False) -> None:
        """Compute it in an executor; or on the calling thread, if it is `here` for that and calls `help` next."""
        try:
            self.pack()
        except BaseException as error:  # an argument that cannot travel
            if is_interrupt(error):
                raise
            self._fail(RunState.FAILED, error)  # nor would it the next time
            return
        with self.service.locked:
            self.ready = True
            if not (self.over or (here and self.work.in_thread)):
                self.start()

    def start(self) -> None:
        self.ready = True
        super().start()

    def begin(self) -> None:
        with self.service.locked:
            if self.started or self.over:
                raise Elsewhere(f"{self.name}: nobody waits for it any more.")
            self.started, self.last = True, None
            super().begin()

    def begun(self) -> None:
        for waiter in self.waiters:
            self.inform(waiter)
        if self.run.attempt > 1:
            self.progressed()  # it is at its beginning again

    def help(self) -> None:
        """Compute it on this thread if it has still to begin: one of a full pool that waits would wait for itself."""
        if not self.work.in_thread or not self.ready or self.started:
            return
        try:
            result = Context().run(self._body)
        except Elsewhere:
            pass
        except BaseException as error:
            if not is_interrupt(error):
                self.conclude(error=error)
                return
            # Ctrl-C of this thread's own is none of the others'.
            with self.service.locked:
                self.run._execution = self.future = None
                self.service.timers.cancel(self.timer)
                self.started = False
            raise
        else:
            self.conclude(result)

    def hand_on(self) -> None:
        """The thread that was here for it goes: an executor computes it for the others."""
        if self.ready and not self.started and self.future is None:
            self.launch()

    # ------------------------------------------------------------ under way

    def publish(self, item: Any) -> None:
        """A partial answer: for the pages that show it; who waits wants the last one."""
        require_data(item, self.name)
        if self.fence:
            try:
                self.service.store.cache.publish(self.memo.name, self.digest, self.fence, item)
            except (StoreError, RunFenced) as error:
                log.debug("%s: a partial answer is not shown by other processes: %s", self.name, error)
        with self.service.locked:
            self.run.check()
            self.last = item
            self.answers.tell_partial(self.memo, self.key, item)

    def tell_progress(self, percent: int, message: str) -> None:
        for waiter in self.waiters:
            self.inform(waiter)
            if waiter.watched:
                self.service.defer(waiter.touch)
        self.advanced(self)
        if self.fence and not (self.remote or self.telling_store):
            self.telling_store = True
            self.service.outbox.ask((), self._tell_store, self._store_told)

    def _tell_store(self) -> tuple[Any, ...]:
        """How far it has come by then: in the queue of a store that is busy it stands once."""
        told = _, percent, message, _ = self.told
        self.service.store.cache.progress(self.memo.name, self.digest, self.fence, percent, message)
        return told

    def _store_told(self, told: tuple[Any, ...]) -> None:
        if told == self.told:
            self.telling_store = False
        else:  # it has come further meanwhile
            self.service.outbox.ask((), self._tell_store, self._store_told)

    def repeated(self) -> None:
        self.started = self.ready = False
        for waiter in self.waiters:
            self.inform(waiter)

    # ------------------------------------------------------------ ending

    def body_ended(self, future: Future[Any]) -> None:
        elsewhere = not future.cancelled() and isinstance(future.exception(), Elsewhere)
        if self.over:  # what it gives comes too late
            with self.service.locked:
                self.future = self.run._execution = self.body = None
        elif not elsewhere:
            super().body_ended(future)

    def deposit(self, result: Any) -> Any:
        self.value = value = self.last if result is PUBLISHED else result
        require_data(value, self.name)
        memo, now = self.memo, self.service.clock.now()
        duration = max(0.0, (now - (self.run.started_at or now)).total_seconds())
        ttl = memo.own_ttl(value)
        try:
            if self.fence:
                self._share(value, now, duration, ttl)
        except RunFenced:
            self.kept = False
            return value
        if self.answer is None:
            size = 0
            if memo.policy.limits.size is not None:
                encoded = encode(value, self.name)
                size = encoded.size
                encoded.close()
            self.answer = Answer(
                own_copy(value), max(self.known, next(_versions)), now, duration, self.basis, memo.until(0.0, ttl),
                size, self.digest, self.call, ttl != NOT_KEPT,
            )  # fmt: skip
        return value

    def _share(self, value: Any, now: datetime, duration: float, ttl: float | None) -> None:
        """It is the answer of all processes, as they read it, unless the store cannot take it now."""
        memo, lasts = self.memo, self.memo.lasts(ttl)
        with self._ending("other processes do not get what it gave, as it cannot be stored"):
            self.answers.shared.tell_used()
            row, value = self.service.store.cache.put(
                memo.name, self.digest, self.fence, value, now=now, duration=duration,
                expires_at=None if lasts is None else now + lasts, limits=memo.policy.limits,
                run=self.record(RunState.SUCCEEDED), ttl=ttl,
            )  # fmt: skip
            self.answer = Answer(
                value, row.version, now, duration, row.basis, memo.until(0.0, ttl), row.size, self.digest, row.call,
                ttl != NOT_KEPT,
            )  # fmt: skip

    @contextmanager
    def _ending(self, lost: str) -> Iterator[None]:
        """While the store is told of its end; what is `lost` where that cannot be."""
        try:
            # Of one for which an event loop stands still the store is to be quick.
            with hurried(lambda: self.held):
                yield
        except (StoreError, OSError) as error:
            self.service.outbox.complain("%s: %s. %s", self.name, lost, error)
            with self.service.locked:
                self.give_up()

    def give_up(self) -> None:
        """Let another process compute it, as soon as the store can hear of it. Under the lock."""
        if self.fence and not self.remote:
            give_up = partial(self.service.store.cache.give_up, self.memo.name, self.digest, self.fence)
            self.service.outbox.ask((), give_up)

    def fails(self, outcome: RunState, error: BaseException) -> None:
        if self.fence and not self.remote:
            run, limits = self.record(outcome, error), self.memo.policy.limits
            with suppress(RunFenced), self._ending("other processes do not hear that it failed"):
                self.service.store.cache.fail(
                    self.memo.name, self.digest, self.fence, error, now=self.service.clock.now(), limits=limits, run=run
                )
        self.old, self.settled = self.last_resort(), True

    def record(self, outcome: RunState, error: BaseException | None = None) -> RunRecord:
        return self.run.record_as(outcome, self.service.clock.now(), error, self.service.store.me, self.call)

    @property
    def parameters(self) -> Sequence[str]:
        return self.memo.keys.parameters

    @property
    def hidden(self) -> Collection[str]:
        return self.memo.keys.ignored

    def now(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.memo.keys.now(self.args, self.kwargs)

    def last_resort(self) -> Answer | None:
        """What is served in place of an answer that could not be computed."""
        memo = self.memo
        if not memo.policy.stale_if_error or not self.kept:
            return None
        old = memo.lru.answers.get(self.key)
        if old is None:
            old = self.answers.shared.last(memo, self.digest)
        if (
            old is None
            or not old.kept
            or old.kept_until <= self.service.clock.monotonic()
            or not serves(old.basis, self.basis)
        ):
            return None
        return old

    def stopped(self, error: BaseException) -> None:
        self.drop(self.why_stopped(error))

    def unwanted(self, reason: str) -> None:
        if self.wanted:
            return
        if not self.started:
            self.drop(reason)
        elif isinstance(self.future, PlacedFuture):
            self.future.leave()  # its answer is kept, if one comes

    def drop(self, reason: str) -> None:
        """Let others compute it, if they want it. Under the lock."""
        future = self.future
        for run in self.runs:
            run.reason = reason
        self.ended(self, RunState.CANCELLED, RunCancelled(f"{self.name}: the run was {reason}."))
        if future is not None:
            future.cancel()
        self.give_up()

    def end(self, outcome: RunState, error: BaseException | None = None, value: Any = None) -> None:
        if error is None or self.settled:
            if not self.fence:  # else the store has it with the answer
                record = self.record(outcome, error)
                self.service.outbox.ask((), self.service.store.note(MEMO, self.memo.name, record))
            self.ended(self, outcome, error)
            return
        # At its timeout.
        self.run.end(outcome, self.service.clock.now(), error)
        if self.service.store.blocking:  # what there was before is asked of it, which may take long
            self.service.outbox.aside(partial(self._fail, outcome, error))
        else:
            self._fail(outcome, error)

    def _fail(self, outcome: RunState, error: BaseException) -> None:
        try:
            self.fails(outcome, error)
        finally:
            with self.service.locked:
                self.settled = True
                self.end(outcome, error)

    # ------------------------------------------------------------ what another process has computed; under the lock

    def arrive(self, answer: Answer) -> None:
        """There is an answer."""
        if not self.over:
            self.answer = answer
            self.ended(self, RunState.SUCCEEDED, None)

    def arrive_failed(self, error: BaseException, old: Answer | None, ago: float) -> None:
        """There is none, since some seconds `ago`."""
        if not self.over:
            self.old, self.ago = old, ago
            self.ended(self, ENDS.get(type(error), RunState.FAILED), error)
