"""What the other processes do with the same background functions, and what this one makes of it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from ..coordination.tasks import TAKEOVERS
from ..engine.outbox import MOST
from ..engine.service import Service
from ..engine.timers import Timer
from ..errors import RunCancelled, RunCrashed, RunError, ScheduleError, ValueRefused, ValueUnreadable, is_interrupt
from ..functions.background import Background
from ..functions.run import Partials, Run, RunState, new_id, on_a_loop
from ..functions.spans import NOWHERE
from ..serialize.codec import Encoded, encode
from ..stores.queue import JobRow
from .execution import JobExecution
from .executions import Executions
from .single_flight import Waiters

log = logging.getLogger("panel_schedule")

# Seconds until the store is asked again for what could not be taken up.
PAUSE = 5.0

# How often, in seconds, it is looked what became of runs of other processes, though nothing was heard.
LOOK = 1.0

# How long, in seconds, the processes have for putting back what the store has lost.
PATIENCE = 15.0

# A function that ends within so many seconds is entered in the store with its end; and one of a worker of another
# program, which is further away.
AT_ONCE, AWAY = 0.002, 0.02


class Follower:
    """
    Follows the rows of a store that several processes share.

    In a store in memory there are none: no other process could know of them.

    Parameters
    ----------
    service : Service
    executions : Executions
    waiters : Waiters
    functions : mapping
        Those that this process knows, by name: for runs that another process, or an earlier one, has left behind.
    enter : callable
        ``enter(execution)`` starts one, or lets it join one that does the same.
    """

    def __init__(
        self,
        service: Service,
        executions: Executions,
        waiters: Waiters,
        functions: Mapping[str, Background[Any, Any]],
        enter: Callable[[JobExecution], object],
    ):
        self._service = service
        self._executions = executions
        self._waiters = waiters
        self._submit = enter
        self._queue = service.store.queue
        self._functions = functions
        # Functions that this process does not know, as it has said.
        self._unknown: set[str] = set()
        # The runs of other processes that somebody here looks at.
        self._elsewhere: WeakValueDictionary[str, Run] = WeakValueDictionary()
        # How many sessions of this process follow each.
        self._followers: Counter[str] = Counter()
        self._looking = False
        # By their ids those that this process may have taken, and was not told so.
        self._untold: dict[str, JobRow] = {}
        # When it is tried again to take up what could not be.
        self._again: Timer | None = None
        # Until when what is missing in the store may still be put back, by the process that runs it.
        self._patient_until = 0.0
        self._queue.watch_jobs(self._noticed, self._follows, self._put_back)

    def add(self, function: Background[Any, Any]) -> None:
        """A function is there: it may be that an earlier process has left runs of it behind."""
        if function.policy.durable and not self._service.store.blocking:
            log.warning(
                "Job %r is durable=True, and the store is in memory: its runs are lost when this process ends. Set "
                "ps.config.store = 'file:///var/lib/myapp', say.", function.name,
            )  # fmt: skip
        if self._service.begun:
            self.recover()

    # ------------------------------------------------------------ telling them

    def prepare(self, execution: JobExecution) -> Encoded | None:
        """What another process needs to run it; to be followed by `announce`. Raises what is wrong with that."""
        if not self._service.store.blocking:
            return None
        durable = execution.job.policy.durable
        payload = encode((execution.args, execution.kwargs), execution.name) if durable else None
        execution.stored.clear()
        return payload

    def announce(self, execution: JobExecution, payload: Encoded | None) -> None:
        """Start it unless another process does the same. What is durable and cannot be stored fails."""
        if not self._service.store.blocking:
            execution.launch()
            return
        if not (execution.job.policy.durable or execution.key):
            execution.entry = partial(self._enter_all, [execution])
            execution.launch()
            if execution.work.elsewhere:
                with self._service.locked:
                    self._service.timers.after(AWAY, self._gather, execution)
            else:
                self._gather(execution)
        elif on_a_loop():
            # The loop has pages to serve, and a disk takes its time.
            self._service.outbox.aside(partial(self._enter_first, execution, payload))
        else:
            # On the disk before anybody is told that it was accepted; and whether another process does the same must
            # be known before it starts.
            self._enter_first(execution, payload)

    def _gather(self, execution: JobExecution) -> None:
        self._service.outbox.gather(self._enter_soon, execution)

    def _enter_soon(self, executions: list[JobExecution]) -> None:
        time.sleep(AT_ONCE)
        due = [execution for execution in executions if execution.take_entry() is not None]
        for start in range(0, len(due), MOST):
            self._enter_all(due[start : start + MOST])

    def _enter_all(self, executions: list[JobExecution]) -> None:
        began = [execution.began for execution in executions]
        try:
            self._queue.enqueue_all([execution.run for execution in executions], began)
        except BaseException as error:
            for execution in executions:
                self._not_entered(execution, error)
        else:
            for execution, at in zip(executions, began, strict=True):
                self._entered(execution, None, at)

    def follow(self, id: str, more: int) -> None:
        """So many more sessions of this process follow a run, or fewer."""
        with self._service.locked:
            before = self._followers[id]
            self._followers[id] += more
            after = self._followers[id]
            if not after:
                del self._followers[id]
            if (before > 0) != (after > 0):
                self._service.outbox.ask((), partial(self._queue.follow, id, after > 0))

    def abandon(self, run: Run, reason: str) -> None:
        """Cancel it, unless somebody follows it in another process."""
        if not self._service.store.blocking:
            run.cancel(reason)
            return
        self._service.outbox.aside(partial(self._abandon, run, reason))

    def _abandon(self, run: Run, reason: str) -> None:
        try:
            followed = self._queue.followed(run.id)
        except ScheduleError as error:
            self._service.outbox.complain(
                "The run %s of %r goes on, as nobody can say who follows it. %s", run.id, run.task, error
            )
            return
        if not (followed or run.watched or self._service.stopping):
            run.cancel(reason)

    def _enter_first(self, execution: JobExecution, payload: Encoded | None) -> None:
        run, durable = execution.run, execution.job.policy.durable
        try:
            row = self._queue.enqueue(
                run.id, run.task, now=run.queued_at, payload=payload, key=execution.key, durable=durable,
                synced=durable, user=run.user, asked=run.asked if durable else NOWHERE, due_at=run.due_at,
            )  # fmt: skip
            self._entered(execution, row)
        except BaseException as error:
            self._not_entered(execution, error)
        execution.launch()

    def _not_entered(self, execution: JobExecution, error: BaseException) -> None:
        if is_interrupt(error):
            raise error
        if execution.job.policy.durable:
            execution.fence = 1  # perhaps it was stored: then it has ended, too
            execution.refuse(error)
            raise error
        log.error("%s: other processes do not hear of it, as it could not be stored. %s", execution.name, error)
        execution.stored.set()

    def _entered(self, execution: JobExecution, row: JobRow | None, began: datetime | None = None) -> None:
        with self._service.locked:
            if row is None:
                execution.fence = 1
                execution.tell_all(began)
            elif not execution.run.state.final:  # else nobody wants it any more
                self._leave_it_to_another(execution, row)
        execution.stored.set()
        if row is not None:
            self._noticed(row.id)

    def _leave_it_to_another(self, execution: JobExecution, row: JobRow) -> None:
        """Another process does the same, or has done it: follow that."""
        self._executions.drop(execution)
        known = self._executions.get(row.id)
        if known is not None:  # as somebody here does already
            known.key, known.body = execution.key, execution.body
            known.args, known.kwargs = execution.args, execution.kwargs
            waiters, execution.waiters = execution.waiters, []
            for waiter in waiters:
                self._waiters.welcome(known, waiter)
        else:
            known = execution
            for run in execution.runs:
                run.id = row.id
            execution.remote, execution.run.user = True, row.user
            execution.run._stop = partial(self._cancel_there, row.id)
            self._follow(execution)
        self._waiters.shared[execution.run.task, execution.key] = known

    # ------------------------------------------------------------ following them

    def runs(self, name: str, known: Collection[str], user: str | None) -> list[Run]:
        """Those of a function but the ones whose ids are known."""
        try:
            rows = self._queue.jobs(name, user)
        except ScheduleError as error:
            log.error("%s", error)
            return []
        return [self._run(row) for row in rows if row.id not in known]

    def find(self, id: str) -> Run | None:
        """The run of this id; where nobody has it any more it is taken up here, as somebody wants it."""
        row = self._queue.job(id)
        if row is None:
            return None
        run = self._run(row)
        if row.orphan:
            self._service.outbox.aside(partial(self._noticed, row.id))
        return run

    def _run(self, row: JobRow) -> Run:
        """The run of a row: this process's own, or one that follows it."""
        with self._service.locked:
            known = self._executions.get(row.id)
            run = known.run if known is not None else self._elsewhere.get(row.id)
            if run is not None:
                return run
            run = self._elsewhere[row.id] = self._executions.new(row.function)
            run.id, run.key, run.queued_at = row.id, f"request {row.id}", row.queued_at or run.queued_at
            run.user, run.due_at, run._stop = row.user, row.due_at, partial(self._cancel_there, row.id)
            function = self._functions.get(row.function)
            if not row.state.final and function is not None:
                execution = self._executions.make(function, run, (), {})
                execution.remote, execution.key = True, row.key
                self._follow(execution)
        self._sync(run, row)
        return run

    def _follow(self, execution: JobExecution) -> None:
        """Another process runs it. Under the lock."""
        self._executions.add(execution)
        self._keep_looking()

    def _keep_looking(self) -> None:
        """What is followed may be lost without a word, deleted before this process looked. Under the lock."""
        if not self._looking and any(execution.remote for execution in self._executions):
            self._looking = True
            self._service.timers.after(LOOK, self._look, None)

    def _look(self, _: None) -> None:
        self._looking = False
        if any(execution.remote for execution in self._executions):
            self._service.outbox.aside(self._see_to_all)
        self._keep_looking()

    def _see_to_all(self) -> None:
        with suppress(ScheduleError, OSError):  # it is looked again before long
            for execution in self._executions:
                if execution.remote:
                    self._see_to(execution, self._queue.job(execution.run.id))

    def _see_to(self, execution: JobExecution, row: JobRow | None) -> None:
        """What the store says of one that another process runs."""
        if row is None:
            if self._service.clock.monotonic() >= self._patient_until:
                self._lost(execution)
        elif not row.orphan:
            self._sync(execution.run, row, execution)

    def _cancel_there(self, id: str, run: Run, reason: str) -> None:
        if not run.state.final:
            with self._service.locked:
                self._service.outbox.ask((), partial(self._queue.cancel, id))

    def _follows(self, id: str) -> bool:
        """Whether another process has this run, and somebody here looks at it."""
        execution = self._executions.get(id)
        return execution is not None and execution.remote

    def _noticed(self, id: str) -> None:
        """Another process may have changed the row of a run; on any thread but the loop."""
        row, execution = self._queue.job(id), self._executions.get(id)
        if row is not None and row.orphan:
            self._take(row)
        elif execution is None:
            return
        elif execution.remote:
            self._see_to(execution, row)
        elif row is not None and row.cancelled:
            execution.run.cancel()
        elif row is not None and execution.fence and not row.mine and not row.state.final:
            execution.lose()

    def _lost(self, execution: JobExecution) -> None:
        """It ended, and has expired before this process looked."""
        error = RunCrashed(f"{execution.name}: the run has ended in another process, and what came of it has expired.")
        with self._service.locked:
            if execution.run.state.final or not execution.remote:
                return
            self._move_out(execution)
            execution.told_end = True
            execution.end(RunState.CRASHED, error)

    def _sync(self, run: Run, row: JobRow, execution: JobExecution | None = None) -> None:
        """Bring a run in line with what the store says of it."""
        queue = self._queue
        partials: Sequence[Any] = run.partials
        if (row.attempt, row.partials) != (run.attempt, len(partials)):
            if row.state.final and execution is None:
                partials = _Stored(row.partials, partial(queue.partials, row.id))
            else:
                known = [] if row.attempt != run.attempt or row.partials < len(partials) else list(partials)
                try:
                    partials = Partials([*known, *queue.partials(row.id, len(known))])
                except ValueUnreadable as unreadable:
                    log.error("%s", unreadable)
        value: Any = None
        error: BaseException | None = None
        state = row.state
        if state is RunState.SUCCEEDED and execution is not None:
            try:
                value = queue.value(row.id)
            except KeyError:
                self._lost(execution)
                return
            except ValueUnreadable as lost:
                state, error = RunState.FAILED, lost
        elif row.state.final and row.state is not RunState.SUCCEEDED:
            error = queue.failure(row.id) or _error_of(row)
        with self._service.locked:
            if run.state.final or (execution is not None and not execution.remote):
                return
            run.attempt, run.percent, run.message, run.partials = row.attempt, row.percent, row.message, partials
            run.reason, run.started_at = row.reason, row.started_at
            if not row.state.final:
                run.state = row.state
                if execution is not None:
                    self._executions.touch(execution)
            elif execution is not None:
                if state is RunState.CANCELLED or state is not row.state:
                    self._move_out(execution)
                execution.told_end = True
                execution.end(state, error, value, at=row.finished_at)
            else:
                run.end(row.state, row.finished_at or self._service.clock.now(), error)
                run._load = partial(queue.value, row.id) if error is None else None
                run.resolve()

    def _move_out(self, execution: JobExecution) -> None:
        """
        It was told to stop, or what it left has expired: they who wait for it here still want it.

        Each of them gets an execution, which is entered when the lock is free. Under the lock.
        """
        if execution.body is None or self._service.stopping:
            return
        waiters, execution.waiters = execution.waiters, []
        for run in waiters:
            each = self._executions.make(execution.job, run, execution.args, execution.kwargs)
            run.id, run.state = new_id(), RunState.QUEUED
            run._stop = each.cancel
            self._service.defer(partial(self._submit, each))

    # ------------------------------------------------------------ a store that has lost them

    def _put_back(self, since: int) -> None:
        """It gets those that run here. Raises StoreError, when some of them are not stored yet."""
        self._patient_until = self._service.clock.monotonic() + PATIENCE
        with self._service.locked:
            mine = [each for each in self._executions if each.fence and not each.remote and not each.told_end]
        for execution in mine:
            durable = execution.job.policy.durable
            payload = encode((execution.args, execution.kwargs), execution.name) if durable else None
            try:
                self._queue.put_back(
                    execution.run, execution.fence, key=execution.key, durable=durable, payload=payload
                )
            except ValueRefused as error:
                log.error("%s: other processes do not hear of it any more. %s", execution.name, error)
            finally:
                if payload is not None:
                    payload.close()

    # ------------------------------------------------------------ taking over

    def recover(self) -> None:
        """Go on with what earlier processes have left behind."""
        if self._service.store.blocking and not self._service.stopping:
            self._service.outbox.aside(self._take_all)

    def _take_all(self) -> None:
        try:
            orphans = {row.id: row for row in self._queue.orphans()}
        except ScheduleError as error:
            self._try_later(error)
            return
        for row in (self._untold | orphans).values():
            self._take(row)

    def _try_later(self, error: ScheduleError) -> None:
        self._service.outbox.complain("What other processes have left behind is not taken up now: %s", error)
        with self._service.locked:
            self._service.timers.cancel(self._again)
            self._again = self._service.timers.after(PAUSE, lambda _: self.recover(), None)

    def _take(self, row: JobRow) -> None:
        if row.function not in self._functions and row.function not in self._unknown and self._service.begun:
            self._unknown.add(row.function)
            log.warning(
                "Job %r has runs that an earlier process left unfinished, and no function of that name is defined "
                "here. They are kept until one is: import its module in the file that --setup names.", row.function,
            )  # fmt: skip
        try:
            self._take_over(row)
        except ScheduleError as error:
            self._untold[row.id] = row
            self._try_later(error)
        else:
            self._untold.pop(row.id, None)

    def _take_over(self, row: JobRow) -> None:
        function, execution = self._functions.get(row.function), self._executions.get(row.id)
        # In a script only for somebody who waits for it: the others are for those with a server.
        if function is None or self._service.stopping or not (self._service.begun or execution is not None):
            return
        taken = self._queue.take(row.id, self._service.clock.now(), row.fence)
        if taken is None:
            return
        row, (args, kwargs) = taken
        with self._service.locked:
            execution = self._executions.get(row.id)  # somebody may have come meanwhile who follows it
            if execution is not None and not execution.remote:  # this process was taken for dead: it goes on
                execution.fence = row.fence
                execution.tell_all(None)
                return
            if execution is None:
                execution = self._executions.make(function, self._executions.new(row.function), args, kwargs)
                execution.run.id, execution.run.queued_at = row.id, row.queued_at or execution.run.queued_at
                execution.run.user = row.user
            run, execution.key = execution.run, row.key
            run.attempt, execution.fence, execution.remote = row.attempt, row.fence, False
            run.asked, run.due_at = row.asked, row.due_at
            execution.args, execution.kwargs = args, kwargs
            execution.stored.set()
            run.state, run.partials, run.started_at = RunState.QUEUED, Partials(), None
            self._executions.admit(execution)
            if execution.key:
                self._waiters.shared.setdefault((run.task, execution.key), execution)
            if run.attempt > max(function.policy.retry.max_attempts, 1 + TAKEOVERS):
                error = RunCrashed(
                    f"{execution.name}: the process that ran it died, as did those before. It is not tried again; look "
                    "for what kills them, and submit it again."
                )
                execution.end(RunState.CRASHED, error)
                return
        log.log(
            logging.WARNING if row.attempt > 1 else logging.INFO,
            "%s: the process that had run %s is gone; attempt %d runs here.", execution.name, row.id, row.attempt,
        )  # fmt: skip
        try:
            execution.pack()
        except BaseException as error:  # of a thread of ours
            execution.refuse(error)
        execution.launch()


class _Stored(Sequence[Any]):
    """Partial results in a shared store, read when somebody looks."""

    def __init__(self, count: int, load: Callable[[], list[Any]]):
        self._count = count
        self._load = load
        self._items: list[Any] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if self._items is None:
            self._items = self._load()
        return self._items[index]


def _error_of(row: JobRow) -> RunError:
    kind = RunCancelled if row.state is RunState.CANCELLED else RunCrashed
    return kind(f"Job {row.function!r}: {row.error or f'the run was {row.reason or row.state}.'}")
