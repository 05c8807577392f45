"""Background runs: who asks for one, who shares it, which process has it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

from .codec import encode
from .data import is_light
from .errors import RunCancelled, RunCrashed, RunError, ScheduleError
from .jobs import Background
from .run import Run, RunState, on_a_loop
from .runner import STOPS
from .stores.base import TAKEOVERS
from .stores.queue import JobRow
from .work import PROGRESS, Work, Workshop
from .work import Desk as Workplace

log = logging.getLogger("panel_schedule")

# Of each function so many runs that have ended are kept, for as long as their results are.
KEPT = 50

# Seconds until the store is asked again for what could not be taken up.
PAUSE = 5.0


class Desk(Workplace, Protocol):
    """What the dispatcher finds at the scheduler's."""

    begun: bool

    def start(self) -> None: ...


class Dispatcher:
    """
    Takes background runs in, and knows them all.

    Parameters
    ----------
    desk : Desk
    """

    def __init__(self, desk: Desk):
        self._s = desk
        self._queue = desk.store.queue
        self._workshop = Workshop(desk, self._moved, self._ended)
        self._functions: dict[str, Background[Any, Any]] = {}
        # Under way, in the order in which they came; those of other processes as far as anybody here follows them.
        self._works: dict[str, Work] = {}
        # By function and key: under way, or with a result that is still good.
        self._shared: dict[tuple[str, str], Work] = {}
        # By function, in the order in which they came; and of these the ones that have ended, in the order of that.
        self._recent: dict[str, dict[Run, None]] = {}
        self._over: dict[str, deque[Run]] = {}
        # Of which functions the next one is forgotten in time.
        self._forgetting: set[str] = set()
        # Functions that this process does not know, as it has said.
        self._unknown: set[str] = set()
        # Whether who waits is about to be told that it moves up.
        self._moving = False
        # Those of other processes that have ended and that somebody here looks at.
        self._elsewhere: WeakValueDictionary[str, Run] = WeakValueDictionary()
        if self._queue is not None:
            self._queue.watch_jobs(self._noticed)

    def add(self, function: Background[Any, Any]) -> None:
        """Know a function by its name, for runs that another process, or an earlier one, has left behind."""
        self._functions[function.name] = function
        if function.policy.durable and self._queue is None:
            log.warning(
                "Job %r is durable=True, and the store is in memory: its runs are lost when this process ends. Set "
                "ps.config.store = 'file:///var/lib/myapp', say.", function.name,
            )  # fmt: skip
        if self._s.begun:
            self.recover()

    # ------------------------------------------------------------ submitting

    def submit(self, function: Background[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        """Start a run, or join one that does the same."""
        self._s.start()
        work = Work(function, self._new(function.name), args, kwargs)
        run = work.run
        run._stop = self._stop_of(work)
        if self._s.stopping:
            with self._s.locked:
                run.reason = STOPS
                self._workshop.end(work, RunState.CANCELLED, RunCancelled(f"{work.name}: the server stops."))
        elif on_a_loop() and not is_light((args, kwargs)):
            # To pickle it would take long, and the loop has pages to serve.
            self._s.ledger.aside(partial(self._enter_late, work))
        else:
            self._enter(work)
        return run

    def _stop_of(self, work: Work) -> Callable[[Run, str], object]:
        return partial(self._workshop.cancel, work)

    def _new(self, name: str) -> Run:
        run = Run(name, "", self._s.clock.now())
        run.key, run.partials = f"request {run.id}", []
        return run

    def _enter_late(self, work: Work) -> None:
        try:
            self._enter(work)
        except Exception as error:
            self._fail(work, error)

    def _fail(self, work: Work, error: Exception) -> None:
        with self._s.locked:
            if not work.run.state.final:
                self._workshop.end(work, RunState.FAILED, error)

    def _enter(self, work: Work) -> None:
        """Raises what is wrong with the arguments; nothing has begun then."""
        function, caller, payload = work.function, work.run, None
        policy = function.policy
        if policy.ttl is not None:
            key = function.keys.digest(work.args, work.kwargs)
            if self._join(function, key, caller):
                return
            # Its run is nobody's own: the caller is a guest of it, as are those who ask for the same later.
            work = Work(function, self._new(function.name), work.args, work.kwargs)
            work.key, work.run.id = key, caller.id
        self._workshop.prepare(work)
        if policy.durable and self._queue is not None:
            payload = encode((work.args, work.kwargs), work.name)
        with self._s.locked:
            if caller.state.final or (work.key and self._join(function, work.key, caller)):
                return
            if work.key:
                self._shared[function.name, work.key] = work
                self._welcome(work, caller)
            self._remember(work)
        if self._queue is None:
            self._workshop.start(work)
            return
        run = work.run
        enqueue = partial(
            self._queue.enqueue, run.id, run.task,
            now=run.queued_at, payload=payload, key=work.key, durable=policy.durable, synced=policy.durable,
        )  # fmt: skip
        if policy.durable:
            # On the disk before anybody is told that it was accepted.
            try:
                self._entered(work, enqueue())
            except Exception as error:
                self._fail(work, error)
                raise
            self._workshop.start(work)
        elif not work.key:
            # First this: at its end it waits for it, in a thread of the same few.
            self._s.ledger.aside(partial(self._enqueue, work, enqueue))
            self._workshop.start(work)
        elif on_a_loop():
            self._s.ledger.aside(partial(self._enqueue, work, enqueue, self._workshop.start))
        else:
            # Whether another process does the same must be known before it starts.
            self._enqueue(work, enqueue, self._workshop.start)

    def _remember(self, work: Work) -> None:
        run = work.run
        self._works[run.id] = work
        self._recent.setdefault(run.task, {})[run] = None
        run._stop, run._rank = self._stop_of(work), partial(self._rank, work)
        run._publish, run._changed = partial(self._workshop.publish, work), partial(self._workshop.progressed, work)

    def _enqueue(
        self, work: Work, enqueue: Callable[[], JobRow | None], then: Callable[[Work], object] = lambda work: None
    ) -> None:
        try:
            self._entered(work, enqueue())
        except Exception as error:
            log.error("%s: other processes do not hear of it, as it could not be stored. %s", work.name, error)
            work.stored.set()
        then(work)

    def _entered(self, work: Work, row: JobRow | None) -> None:
        with self._s.locked:
            if row is None:
                work.fence = 1
                self._workshop.tell_all(work)
            else:
                self._leave_it_to_another(work, row)
        work.stored.set()
        if row is not None:
            self._noticed(row.id)

    def _leave_it_to_another(self, work: Work, row: JobRow) -> None:
        """Another process does the same, or has done it: follow that."""
        self._works.pop(work.run.id, None)
        self._recent[work.run.task].pop(work.run, None)
        known = self._works.get(row.id)
        if known is not None:  # as somebody here does already
            known.key, known.args, known.kwargs, known.body = work.key, work.args, work.kwargs, work.body
            guests, work.guests = work.guests, []
            for guest in guests:
                self._welcome(known, guest)
        else:
            known = self._works[row.id] = work
            for run in work.runs:
                run.id = row.id
            work.remote, work.run._stop = True, partial(self._cancel_there, row.id)
        self._shared[work.run.task, work.key] = known

    # ------------------------------------------------------------ sharing

    def _join(self, function: Background[Any, Any], key: str, guest: Run) -> bool:
        """Take part in what another call with the same arguments has started."""
        with self._s.locked:
            known = self._shared.get((function.name, key))
            if known is not None and not guest.state.final:
                self._welcome(known, guest)
            return known is not None

    def _welcome(self, work: Work, guest: Run) -> None:
        run, guest.id = work.run, work.run.id
        work.inform(guest)
        if run.state.final:
            guest._stop = None
            guest.end(run.state, run.finished_at or self._s.clock.now(), run.error, run.value)
            self._s.defer(guest.touch)
            self._s.defer(lambda: guest.resolve(run.value))
        else:
            if work.unwatch is None:
                # Who only looks on does not end it for those who wait.
                work.unwatch = run.watch(lambda: None)
            guest._stop, guest._rank = partial(self._leave, work), partial(self._rank, work)
            work.guests.append(guest)

    def _leave(self, work: Work, guest: Run, reason: str) -> None:
        """Who gives up ends nothing for the others."""
        with self._s.locked:
            if guest.state.final:
                return
            if guest not in work.guests:  # it has just moved to another work
                self._s.defer(lambda: guest.cancel(reason))
                return
            work.guests.remove(guest)
            guest.reason = reason
            guest.end(RunState.CANCELLED, self._s.clock.now(), RunCancelled(f"{work.name}: the run was {reason}."))
            self._s.defer(guest.touch)
            self._s.defer(guest.resolve)
            if not work.guests and work.unwatch is not None:
                work.unwatch()
                work.unwatch = None
                if not work.run.watched and not work.remote:
                    work.run.cancel(reason)

    def _ended(self, work: Work) -> None:
        run, ttl, name = work.run, work.function.policy.ttl, work.function.name
        self._works.pop(run.id, None)
        if run in self._recent.get(name, ()):
            self._over.setdefault(name, deque()).append(run)
            self._forget(name)
        if work.key:
            now, ended = self._s.clock.now(), run.finished_at
            if run.state is RunState.SUCCEEDED and ttl is not None and ended is not None:
                self._s.timers.after(max(0.0, (ended + ttl - now).total_seconds()), self._expire, work)
            else:
                self._expire(work)

    def _expire(self, work: Work) -> None:
        if self._shared.get((work.function.name, work.key)) is work:
            del self._shared[work.function.name, work.key]

    def _is_wanted(self, work: Work) -> bool:
        """Whether somebody here waits for what another process does."""
        return bool(work.guests) and work.body is not None and not self._s.stopping

    def _do_it_here(self, work: Work) -> None:
        """The other process was told to stop, or what it left has expired: they who wait for it here still want it."""
        with self._s.locked:
            self._works.pop(work.run.id, None)
            self._expire(work)
            own = [Work(work.function, guest, work.args, work.kwargs) for guest in work.guests]
            work.guests = []
            for each in own:
                run = each.run
                run.id, run.state, run._stop = self._new(run.task).id, RunState.QUEUED, self._stop_of(each)
        for each in own:
            self._enter_late(each)

    # ------------------------------------------------------------ looking

    def runs(self, function: Background[Any, Any]) -> list[Run]:
        """Newest first."""
        rows: list[JobRow] = []
        if self._queue is not None:
            try:
                rows = self._queue.jobs(function.name)
            except ScheduleError as error:
                log.error("%s", error)
        with self._s.locked:
            self._forget(function.name)
            here = {run.id: run for run in reversed(self._recent.get(function.name, {}))}
        stored = {row.id for row in rows}
        runs = [run for run in here.values() if run.id not in stored]
        runs += [here.get(row.id) or self._of(row) for row in rows]
        return sorted(runs, key=lambda run: run.queued_at, reverse=True)

    def find(self, id: str) -> Run | None:
        """The run of this id, in whichever process it is. Who cancels it ends nothing for others who share it."""
        with self._s.locked:
            if (work := self._works.get(id)) is not None:
                if not work.key:
                    return work.run
                guest = self._new(work.function.name)
                guest.queued_at = work.run.queued_at
                self._welcome(work, guest)
                return guest
            for recent in self._recent.values():
                for run in recent:
                    if run.id == id:
                        return run
        row = self._queue.job(id) if self._queue is not None else None
        return self._of(row) if row is not None else None

    def _forget(self, name: str) -> None:
        """Those of a function that ended too long ago."""
        over, recent, function = self._over.get(name), self._recent.get(name), self._functions[name]
        if over is None or recent is None:
            return
        until = self._s.clock.now() - function.policy.result_ttl
        while over and (len(over) > KEPT or (over[0].finished_at or until) <= until):
            recent.pop(over.popleft(), None)
        if over and name not in self._forgetting:
            self._forgetting.add(name)
            left = (over[0].finished_at or until) - until
            self._s.timers.after(left.total_seconds(), self._forget_in_time, name)

    def _forget_in_time(self, name: str) -> None:
        self._forgetting.discard(name)
        self._forget(name)

    def _rank(self, work: Work) -> int:
        """How many queued runs have to begin until it does, itself included; 0 when it has begun."""
        if not _is_queued(work):
            return 0
        kind, rank = work.function.policy.executor, 0
        for other in list(self._works.values()):
            rank += _is_queued(other) and other.function.policy.executor == kind
            if other is work:
                break
        return rank

    def _moved(self) -> None:
        if self._works and not self._moving:
            self._moving = True
            self._s.timers.after(PROGRESS, self._move, None)

    def _move(self, _: None) -> None:
        self._moving = False
        for work in self._works.values():
            if _is_queued(work):
                self._workshop.touch(work)

    # ------------------------------------------------------------ other processes

    def _of(self, row: JobRow) -> Run:
        """The run of a row: this process's own, or one that follows it."""
        with self._s.locked:
            run = work.run if (work := self._works.get(row.id)) is not None else self._elsewhere.get(row.id)
            if run is None:
                function = self._functions.get(row.function)
                run = self._new(row.function)
                run.id, run.key = row.id, f"request {row.id}"
                run.queued_at = row.queued_at or run.queued_at
                run._stop = partial(self._cancel_there, row.id)
                self._elsewhere[row.id] = run
                if not row.state.final and function is not None:
                    work = Work(function, run, (), {})
                    work.remote, work.key = True, row.key
                    work.stored.set()
                    self._works[row.id] = work
            else:
                return run
        self._sync(run, row)
        return run

    def _cancel_there(self, id: str, run: Run, reason: str) -> None:
        if self._queue is not None and not run.state.final:
            with self._s.locked:
                self._s.ledger.ask((), partial(self._queue.cancel, id))

    def _noticed(self, id: str) -> None:
        """Another process may have changed the row of a run; on any thread but the loop."""
        assert self._queue is not None
        row, work = self._queue.job(id), self._works.get(id)
        if row is None:
            if work is not None and work.remote:
                self._lost(work)
        elif row.orphan:
            self._take(row)
        elif work is not None and work.remote:
            self._sync(work.run, row, work)
        elif work is not None and row.cancelled:
            work.run.cancel()
        elif work is not None and work.fence and not row.mine and not row.state.final:
            self._workshop.lose(work)

    def _lost(self, work: Work) -> None:
        """It ended, and has expired before this process looked."""
        if self._is_wanted(work):
            self._do_it_here(work)
            return
        with self._s.locked:
            error = RunCrashed(f"{work.name}: the run has ended in another process, and what came of it has expired.")
            self._workshop.end(work, RunState.CRASHED, error, told=True)

    def _sync(self, run: Run, row: JobRow, work: Work | None = None) -> None:
        """Bring a run in line with what the store says of it."""
        queue = self._queue
        assert queue is not None
        if row.state is RunState.CANCELLED and work is not None and self._is_wanted(work):
            self._do_it_here(work)
            return
        partials: Sequence[Any] = run.partials
        if (row.attempt, row.partials) != (run.attempt, len(partials)):
            if row.state.final and work is None:
                partials = _Stored(row.partials, partial(queue.partials, row.id))
            else:
                known = [] if row.attempt != run.attempt or row.partials < len(partials) else list(partials)
                partials = [*known, *queue.partials(row.id, len(known))]
        value = error = None
        if row.state is RunState.SUCCEEDED and work is not None:
            value = queue.value(row.id)
        elif row.state.final and row.state is not RunState.SUCCEEDED:
            error = queue.failure(row.id) or _error_of(row)
        with self._s.locked:
            if run.state.final:
                return
            run.attempt, run.percent, run.message, run.partials = row.attempt, row.percent, row.message, partials
            run.reason, run.started_at = row.reason, row.started_at
            if not row.state.final:
                run.state = RunState.RUNNING if row.state is RunState.RUNNING else RunState.QUEUED
                if work is not None:
                    self._workshop.touch(work)
            elif work is not None:
                self._workshop.end(work, row.state, error, value, told=True, at=row.finished_at)
            else:
                run.end(row.state, row.finished_at or self._s.clock.now(), error)
                run._load = partial(queue.value, row.id) if error is None else None
                run.resolve()

    def recover(self) -> None:
        """Go on with what earlier processes have left behind."""
        if self._queue is not None:
            self._s.ledger.aside(self._take_all)

    def _take_all(self) -> None:
        assert self._queue is not None
        try:
            orphans = self._queue.orphans()
        except ScheduleError as error:
            self._try_later(error)
            return
        for row in orphans:
            self._take(row)
            if row.function not in self._functions and row.function not in self._unknown and self._s.begun:
                self._unknown.add(row.function)
                log.warning(
                    "Job %r has runs that an earlier process left unfinished, and no function of that name is defined "
                    "here. They are kept until one is: import its module in the file that --setup names.", row.function,
                )  # fmt: skip

    def _try_later(self, error: ScheduleError) -> None:
        log.error("What other processes have left behind is not taken up now: %s", error)
        with self._s.locked:
            self._s.timers.after(PAUSE, lambda _: self.recover(), None)

    def _take(self, row: JobRow) -> None:
        try:
            self._take_over(row)
        except ScheduleError as error:
            self._try_later(error)

    def _take_over(self, row: JobRow) -> None:
        function, work = self._functions.get(row.function), self._works.get(row.id)
        # In a script only for somebody who waits for it: the others are for those with a server.
        if function is None or self._s.stopping or not (self._s.begun or work is not None):
            return
        assert self._queue is not None
        taken = self._queue.take(row.id, self._s.clock.now())
        if taken is None:
            return
        row, (args, kwargs) = taken
        with self._s.locked:
            if work is None:
                work = Work(function, self._new(row.function), args, kwargs)
                work.run.id, work.run.queued_at = row.id, row.queued_at or work.run.queued_at
            run, work.key = work.run, row.key
            run.attempt, work.fence, work.remote, work.args, work.kwargs = row.attempt, row.fence, False, args, kwargs
            work.stored.set()
            run.state, run.partials, run.started_at = RunState.QUEUED, [], None
            self._remember(work)
            if work.key:
                self._shared.setdefault((run.task, work.key), work)
            if run.attempt > max(function.policy.retry.max_attempts, 1 + TAKEOVERS):
                error = RunCrashed(
                    f"{work.name}: the process that ran it died, as did those before. It is not tried again; look "
                    "for what kills them, and submit it again."
                )
                self._workshop.end(work, RunState.CRASHED, error)
                return
        log.log(
            logging.WARNING if row.attempt > 1 else logging.INFO,
            "%s: the process that had run %s is gone; attempt %d runs here.", work.name, row.id, row.attempt,
        )  # fmt: skip
        try:
            self._workshop.prepare(work)
        except Exception as error:
            self._fail(work, error)
        self._workshop.start(work)

    def stop(self) -> None:
        """What has not begun is left to other processes, or ends."""
        for work in list(self._works.values()):
            if _is_queued(work):
                self._workshop.cancel(work, work.run, STOPS)

    def release(self) -> None:
        """Leave what has not ended to other processes, now that nothing runs here any more."""
        for work in list(self._works.values()):
            if not work.remote:
                self._workshop.cancel(work, work.run, STOPS)
        if self._queue is not None:
            with self._s.locked:
                self._s.ledger.ask((), self._queue.release)


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


def _is_queued(work: Work) -> bool:
    return work.run.state is RunState.QUEUED and not work.remote


def _error_of(row: JobRow) -> RunError:
    kind = RunCancelled if row.state is RunState.CANCELLED else RunCrashed
    return kind(f"Job {row.function!r}: {row.error or f'the run was {row.reason or row.state}.'}")
