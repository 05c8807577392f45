"""One execution of a background function, and who shares it; what a store is told of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from ..coordination.history import JOB
from ..engine.execution import TROUBLE, Execution, work_of
from ..engine.hooks import FORGET
from ..engine.service import Service
from ..errors import RunFenced, StoreError, ValueRefused
from ..functions.background import Background
from ..functions.calls import PUBLISHED
from ..functions.run import Cause, Partials, Run, RunState, on_a_loop
from ..serialize.checks import is_light, require_data, size_of
from ..serialize.codec import encode
from ..serialize.errors import traceback_text
from ..stores.queue import Queue

log = logging.getLogger("panel_schedule")

# So often, in seconds, who waits for the store looks whether that is in trouble.
LOOK = 0.1

# Seconds in which a run that was taken from a process which lives comes back to it.
PATIENCE = 5.0

# How often something is told anew that a store refuses, though it takes other things; then it is lost.
TRIES = 3


class JobExecution(Execution):
    """
    One execution of a background function.

    With ``ttl=`` several who ask for the same share it: each has a run of their own, a waiter.

    Parameters
    ----------
    service : Service
    job : Background
    run : Run
    args, kwargs : tuple, dict
    most_bytes : int
        Of the partial results that it keeps.
    changed, moved, ended : callable
        ``changed(execution)``, under the lock, when there is something new about it, when it leaves the queue, and when
        it has ended.
    """

    __slots__ = (
        "asked",
        "changed",
        "dropped",
        "ended",
        "entry",
        "fence",
        "job",
        "key",
        "made",
        "most_bytes",
        "moved",
        "refused",
        "remote",
        "size",
        "stored",
        "told_end",
        "unwatch",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        job: Background[Any, Any],
        run: Run,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        most_bytes: int,
        changed: Callable[[JobExecution], object],
        moved: Callable[[JobExecution], object],
        ended: Callable[[JobExecution], object],
    ):
        policy = job.policy
        executor = service.executor("job", policy.executor)
        limits = policy.concurrency and service.limiter.of(f"Job {job.name!r}", policy.concurrency)
        work = work_of("Job", job.name, job.function, policy.executor, executor, policy.timeout, policy.retry, limits)
        super().__init__(service, work, run, args, kwargs)
        self.job = job
        self.most_bytes = most_bytes
        self.changed, self.moved, self.ended = changed, moved, ended
        self.key = ""
        # Whether the store knows of its end.
        self.told_end = False
        # Ends the watching that says that it has waiters.
        self.unwatch: Callable[[], object] | None = None
        # Its right to change the row in a shared store; 0 where it has none.
        self.fence = 0
        # How many calls the store was asked for, and how many it has answered, one after another.
        self.asked = self.made = 0
        # How often in turn the store has refused the same.
        self.refused = 0
        # Enters it in a shared store, beside its function; None where somebody has begun to, or nobody is to.
        self.entry: Callable[[], object] | None = None
        # Not set as long as a shared store is about to have it.
        self.stored = threading.Event()
        self.stored.set()
        # Bytes of its partial results, and how many of these were dropped as they were too many.
        self.size = self.dropped = 0
        # Whether another process runs it; its body is there only if somebody here asked for the same.
        self.remote = False

    @property
    def parameters(self) -> Sequence[str]:
        return self.job.keys.parameters

    @property
    def is_own(self) -> bool:
        return not self.key

    @property
    def retries(self) -> bool:
        # Of a durable one another process tries it again.
        return self.job.policy.durable or not self.service.stopping

    @property
    def is_failing(self) -> bool:
        return self.service.hooks.failures.known(("job", self.job.name))

    @property
    def shared(self) -> bool:
        """Whether a shared store has it, or is about to have it."""
        return self.fence > 0 or not self.stored.is_set()

    @property
    def began(self) -> datetime | None:
        """When its first attempt has begun, which then need not be told apart from its entry."""
        return self.run.started_at if self.run.attempt == 1 and not self.key else None

    @property
    def queued(self) -> bool:
        """Whether it has still to begin in this process, and may."""
        return self.run.state is RunState.QUEUED and not (self.remote or self.comes_later)

    @property
    def comes_later(self) -> bool:
        """Whether it was submitted for a time that is still to come."""
        return (due := self.run.due_at) is not None and due > self.service.clock.now()

    # ------------------------------------------------------------ beginning

    def launch(self) -> None:
        """Hand it to its executor when it is due, unless it has ended meanwhile or another process does it."""
        with self.service.locked:
            if self.run.state.final or self.remote or self.body is None:
                return
            if self.comes_later:
                assert self.run.due_at is not None
                self.timer = self.service.timers.at(self.run.due_at, JobExecution.launch, self)
            else:
                self.start()

    def begin(self) -> None:
        super().begin()
        if self._counts and not on_a_loop():
            self._settle()

    def begun(self) -> None:
        run = self.run
        run.partials = Partials()  # without those of an earlier attempt
        self.size = self.dropped = 0
        self._tell_begin()
        self.changed(self)
        self.moved(self)

    async def begun_on_loop(self) -> None:
        if self._counts and on_a_loop():
            await asyncio.wrap_future(self.service.outbox.aside(self._settle))

    @property
    def _counts(self) -> bool:
        """Whether its attempts are counted by others: what kills its process at once must not do so again and again."""
        return self.job.policy.durable and self.fence > 0

    # ------------------------------------------------------------ under way

    def publish(self, item: Any) -> None:
        run, waits = self.run, not on_a_loop()
        run.check()
        require_data(item, self.name)
        if self.shared and not self.work.isolated and (waits or is_light(item)):
            # What cannot be stored is refused here, and not where nobody hears of it.
            encode(item, self.name).close()
        with self.service.locked:
            run.check()
            assert isinstance(run.partials, list)
            run.partials.append(item)
            self._make_room(run.partials)
            self.tell(Queue.add_partial, len(run.partials) - 1, item)
        if self.shared and waits:
            # The function may change what it has published as soon as this returns.
            self._settle()
        self.progressed()

    def _make_room(self, partials: list[Any]) -> None:
        """A run that goes on for ever keeps its newest partial results. Under the lock."""
        self.size += size_of(partials[-1])
        most = self.most_bytes
        while self.size > most and self.dropped < len(partials) - 1:
            if not self.dropped:
                log.warning(
                    "%s: its partial results take more than ps.config.max_result_bytes=%d; the oldest ones are None "
                    "from now on.", self.name, most,
                )  # fmt: skip
            self.size -= size_of(partials[self.dropped])
            partials[self.dropped] = None
            self.dropped += 1

    def tell_progress(self, percent: int, message: str) -> None:
        self.changed(self)
        if (percent, message) != (-1, ""):  # else it has published, which the store knows
            self.tell(Queue.tell, percent, message)

    # ------------------------------------------------------------ ending

    def deposit(self, result: Any) -> Any:
        value = self.run.partials[-1] if result is PUBLISHED else result
        require_data(value, self.name)
        told = self.told or self.run.partials or self.run.attempt > 1
        if not told and (entry := self.take_entry()) is not None:
            return self._enter_and_end(entry, value)
        self._settle()  # its partial results come first
        if self.fence:
            try:
                value = self._deposit(value)
                self.told_end = True
            except (StoreError, OSError) as error:
                self.service.outbox.complain(
                    "%s: its result cannot be stored now; it is tried again. %s", self.name, error
                )
        return value

    def _deposit(self, value: Any) -> Any:
        while True:
            fence = self.fence
            try:
                return self._tell_end(RunState.SUCCEEDED, value)
            except RunFenced:
                until = self.service.clock.monotonic() + PATIENCE
                while self.fence == fence and self.service.clock.monotonic() < until and self._comes_back():
                    threading.Event().wait(LOOK)
                if self.fence in (0, fence):
                    raise

    def _comes_back(self) -> bool:
        """Whether this process, as it was taken for dead, has lost it to nobody, and so takes it up again."""
        row = self.service.store.queue.job(self.run.id)
        return row is not None and not row.state.final and (row.mine or row.orphan)

    def _enter_and_end(self, entry: Callable[[], object], value: Any) -> Any:
        """It has ended before the store has heard of it, which does so in one step."""
        run, now = self.run, self.service.clock.now()
        try:
            value = self.service.store.queue.enqueue_and_end(
                run.id, self.job.name, queued_at=run.queued_at, started_at=run.started_at or now, now=now, value=value,
                user=run.user, expires_at=now + self.job.policy.result_ttl, run=self.record(RunState.SUCCEEDED),
            )  # fmt: skip
        except BaseException as error:
            entry()
            if not isinstance(error, (StoreError, OSError)):
                raise
        else:
            self.fence, self.told_end = 1, True
            self.stored.set()
        return value

    def repeated(self) -> None:
        self.tell(Queue.again, self.run.attempt)
        if self.service.stopping:
            self.cancel(self.run, Cause.STOPS)  # another process tries it again
        else:
            self.changed(self)

    def stopped(self, error: BaseException) -> None:
        self.cancel(self.run, self.why_stopped(error))

    def cancel(self, run: Run, reason: str) -> None:
        with self.service.locked:
            if run._stop in (None, self.cancel):
                super().cancel(run, reason)
            else:  # it has just moved to another execution
                self.service.defer(lambda: run.cancel(reason))

    def unwanted(self, reason: str) -> None:
        if self.unwatch is not None:
            self.unwatch()
            self.unwatch = None
            if not (self.run.watched or self.remote):
                self.run.cancel(reason)

    def refuse(self, error: BaseException) -> None:
        """It cannot even begin."""
        with self.service.locked:
            if not self.run.state.final:
                self.end(RunState.FAILED, error)

    def end(
        self,
        outcome: RunState,
        error: BaseException | None = None,
        value: Any = None,
        at: datetime | None = None,
    ) -> None:
        now, own = at or self.service.clock.now(), self.run
        self.service.timers.cancel(self.timer)
        for run in self.runs:
            if run.state.final:  # a waiter who has cancelled while it came in
                continue
            if run is not own:
                self.inform(run)
            run.reason = own.reason
            run.end(outcome, now, error, value)
            # What it refers to need not live as long as its result.
            run._stop = run._rank = run._execution = run._changed = None
            self.service.defer(run.touch)
            self.service.defer(partial(run.resolve, value))
        unfinished = self.job.policy.durable and own.reason is Cause.STOPS
        if self.told_end or unfinished:  # another process finishes it, or the next server
            pass
        elif self.fence and not self.remote:
            self._ask_for_end(outcome, value)
        elif not self.shared or outcome is RunState.SKIPPED:
            self.service.outbox.ask((), self.service.store.note(JOB, self.job.name, self.record(outcome, error)))
        if self.remote:
            pass  # the process that ran it says what came of it
        elif outcome in TROUBLE:
            assert error is not None
            what = f"{self.name} {outcome.replace('_', ' ')} (run {own.id}: {self.call})"
            self.service.hooks.failures.failed(("job", self.job.name), what, error, FORGET)
            self.service.hooks.emit("failed", self.job, own)
        elif outcome is RunState.SUCCEEDED:
            self.service.hooks.emit("succeeded", self.job, own)
        if not self.told_end:
            self.arguments  # noqa: B018  # as the store will be told
        self.waiters, self.args, self.kwargs, self.body = [], (), {}, None
        self.ended(self)
        self.moved(self)

    # ------------------------------------------------------------ what a shared store is told

    def enter(self) -> None:
        """Let the store have it, unless somebody has begun with that."""
        if (entry := self.take_entry()) is not None:
            entry()

    def take_entry(self) -> Callable[[], object] | None:
        """The same for who does it himself."""
        with self.service.locked:
            entry, self.entry = self.entry, None
        return entry

    def tell(self, call: Callable[..., object], *what: Any, instead: Callable[[], object] = lambda: None) -> None:
        """
        Let the store know, in order, once it has the row: ``call(queue, id, fence, *what)``. Under the lock.

        ``instead()`` when it takes other things, and not this.
        """
        if self.fence and not self.remote:
            self.asked += 1
            self.service.outbox.ask((), partial(self._try, call, what, instead))

    def _ask_for_end(self, outcome: RunState, value: Any) -> None:
        end = partial(self._tell_end, outcome)
        self.tell(lambda *_: end(value), instead=partial(end, None, lost=True))

    def _try(self, call: Callable[..., object], what: tuple[Any, ...], instead: Callable[[], object]) -> None:
        queue = self.service.store.queue
        try:
            call(queue, self.run.id, self.fence, *what)
        except ValueRefused as error:  # of a coroutine, which could not wait for this
            log.error("%s", error)
        except RunFenced:
            row = queue.job(self.run.id)
            # Else its end was told by the thread of the body, meanwhile; or it comes back, and all is told anew.
            if row is not None and not (row.state.final or row.mine or row.orphan):
                self.lose()
        except StoreError as error:
            queue.tell(self.run.id, self.fence, self.run.percent, self.run.message)  # else nobody else's turn comes
            self.refused += 1
            if self.refused < TRIES:
                raise
            log.error(
                "%s: something of its run %s is lost, as the store does not take it. %s", self.name, self.run.id, error
            )
            instead()
        self.made, self.refused = self.made + 1, 0

    def lose(self) -> None:
        """Another process has taken it over, as this one was taken for dead."""
        with self.service.locked:
            self.fence, self.told_end = 0, True
            self.cancel(self.run, Cause.TAKEN_OVER)

    def _tell_begin(self) -> None:
        if (now := self.run.started_at) is not None:
            self.tell(Queue.begin, now, self.run.attempt)

    def tell_all(self, began: datetime | None) -> None:
        """What has happened before the store had it, which knows when it `began`, if that. Under the lock."""
        run = self.run
        if began is None or (run.started_at, run.attempt) != (began, 1):
            self._tell_begin()
        if self.told:
            self.tell_progress(run.percent, run.message)
        for number, item in enumerate(run.partials):
            self.tell(Queue.add_partial, number, item)
        if run.state.final:
            self._ask_for_end(run.state, run.shared)

    def _settle(self) -> None:
        """Wait until the store was told what went before, unless it cannot take it now."""
        self.enter()
        self.stored.wait()
        done = threading.Event()
        with self.service.locked:
            if not self.fence or self.asked == self.made:
                return
            self.tell(lambda *_: done.set())
        while not done.wait(LOOK) and not self.service.outbox.troubled:
            pass

    def _tell_end(self, outcome: RunState, value: Any, lost: bool = False) -> Any:
        run, policy, now = self.run, self.job.policy, self.service.clock.now()
        kept = policy.ttl if policy.ttl is not None and outcome is RunState.SUCCEEDED else policy.result_ttl
        return self.service.store.queue.end(
            run.id, self.fence, outcome, now=now, value=value, error=run.error, traceback=traceback_text(run.error),
            reason=str(run.reason), expires_at=now + kept, run=self.record(outcome, run.error), lost=lost,
        )  # fmt: skip
