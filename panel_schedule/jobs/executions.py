"""Executions of background functions: those under way, and what is still known of those that were."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from ..engine.service import Service
from ..functions.background import Background
from ..functions.run import Partials, Run
from ..serialize.checks import size_of
from .execution import JobExecution

# Of each function so many runs that have ended are kept, for as long as their results are.
KEPT = 50


class Recent:
    """The runs of one function, in the order in which they came, until they have ended too long ago."""

    __slots__ = ("over", "runs", "waiting")

    def __init__(self) -> None:
        self.runs: dict[Run, None] = {}
        # Those of them that have ended, in the order of that.
        self.over: deque[Run] = deque()
        # Whether the next one is forgotten in time.
        self.waiting = False


class Executions:
    """
    Those under way by the id of their runs, in the order in which they came, and the runs of late.

    Those of other processes are among them as far as anybody here follows them. Under the service's lock, but for
    `new` and `rank`.

    Parameters
    ----------
    service : Service
    most_bytes : int
        Of what is kept of the runs of all functions that have ended, and of one that is under way.
    """

    def __init__(self, service: Service, most_bytes: int):
        self._service = service
        self.most_bytes = most_bytes
        # How many of each function are under way in this process.
        self._counts = Counter[Background[Any, Any]]()
        # What is kept of those that have ended, in the order of that.
        self._sizes: dict[Run, tuple[Background[Any, Any], int]] = {}
        self._size = 0
        self._under_way: dict[str, JobExecution] = {}
        self._recent: defaultdict[Background[Any, Any], Recent] = defaultdict(Recent)
        # Counts what changes the ranks; and the ranks as they were after so many changes, by the ids of the runs, so
        # that it keeps none of them alive.
        self._changes = 0
        self._ranked: tuple[int, dict[str, int]] = (0, {})
        # Whether who waits is about to be told that it moves up.
        self._moving = False
        # Called with each one that has ended.
        self.ended: Callable[[JobExecution], object] = lambda execution: None

    def __iter__(self) -> Iterator[JobExecution]:
        return iter(list(self._under_way.values()))

    def new(self, name: str) -> Run:
        """A run of the function of this name."""
        run = Run(name, "", self._service.clock.now())
        run.key, run.partials = f"request {run.id}", Partials()
        return run

    def make(
        self, job: Background[Any, Any], run: Run, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> JobExecution:
        """An execution, which is not under way yet."""
        return JobExecution(
            self._service, job, run, args, kwargs or {}, self.most_bytes, self.touch, self._moved, self._over
        )

    def admit(self, execution: JobExecution) -> None:
        """It is under way in this process from now on."""
        self.add(execution)
        execution.run._stop, execution.run._changed = execution.cancel, execution.progressed

    def add(self, execution: JobExecution) -> None:
        """It is under way."""
        self._under_way[execution.run.id] = execution
        self._changes += 1
        if not execution.remote:
            self._counts[execution.job] += 1
            self._recent[execution.job].runs[execution.run] = None
            execution.run._rank = partial(self.rank, execution)

    def drop(self, execution: JobExecution) -> None:
        """Know nothing of it, as if it had never come."""
        self._leave(execution)
        self._recent[execution.job].runs.pop(execution.run, None)

    def _leave(self, execution: JobExecution) -> None:
        self._changes += 1
        if self._under_way.pop(execution.run.id, None) is execution and not execution.remote:
            self._counts[execution.job] -= 1

    def count(self, function: Background[Any, Any]) -> int:
        """How many of a function are under way in this process, or wait."""
        return self._counts[function]

    @property
    def waiting(self) -> int:
        """How many have still to begin in this process."""
        return sum(execution.queued for execution in self)

    def get(self, id: str) -> JobExecution | None:
        """The one under way whose run has this id."""
        return self._under_way.get(id)

    # ------------------------------------------------------------ looking back

    def _over(self, execution: JobExecution) -> None:
        """It has ended."""
        self._leave(execution)
        self.ended(execution)
        recent = self._recent[execution.job]
        if execution.run in recent.runs:
            recent.over.append(execution.run)
            error = execution.run.error
            size = execution.size + size_of(execution.run._value if error is None else (error.args, vars(error)))
            self._sizes[execution.run] = execution.job, size
            self._size += size
            self._forget(execution.job)
            while self._size > self.most_bytes and len(self._sizes) > 1:
                oldest, (function, _) = next(iter(self._sizes.items()))
                with suppress(ValueError):
                    self._recent[function].over.remove(oldest)
                self._let_go(function, oldest)

    def _let_go(self, function: Background[Any, Any], run: Run) -> None:
        """Who still holds the run has what it gave; here it is not known any more."""
        self._recent[function].runs.pop(run, None)
        _, size = self._sizes.pop(run, (function, 0))
        self._size -= size

    def runs(self, function: Background[Any, Any]) -> list[Run]:
        """Those of this process, newest first."""
        self._forget(function)
        return list(reversed(self._recent[function].runs))

    def find(self, id: str) -> Run | None:
        """The run of late that has this id."""
        return next((run for recent in self._recent.values() for run in recent.runs if run.id == id), None)

    def _forget(self, function: Background[Any, Any]) -> None:
        """The runs that ended too long ago."""
        recent, until = self._recent[function], self._service.clock.now() - function.policy.result_ttl
        over = recent.over
        while over and (len(over) > KEPT or (over[0].finished_at or until) <= until):
            self._let_go(function, over.popleft())
        if over and not recent.waiting:
            recent.waiting = True
            left = (over[0].finished_at or until) - until
            self._service.timers.after(left.total_seconds(), self._forget_in_time, function)

    def _forget_in_time(self, function: Background[Any, Any]) -> None:
        self._recent[function].waiting = False
        self._forget(function)

    # ------------------------------------------------------------ those who follow them

    def touch(self, execution: JobExecution) -> None:
        """Something about it is new: tell those who follow its runs."""
        self._changes += 1
        for waiter in execution.waiters:
            execution.inform(waiter)
        for run in execution.runs:
            if run.watched:
                self._service.defer(run.touch)

    def rank(self, execution: JobExecution) -> int:
        """How many queued runs have to begin until it does, itself included; 0 when it has begun."""
        if not execution.queued:
            return 0
        if self._ranked[0] != self._changes:
            changes, ranks, last = self._changes, dict[str, int](), Counter[str]()
            for other in self:
                if other.queued:
                    kind = other.job.policy.executor
                    last[kind] += 1
                    ranks[other.run.id] = last[kind]
            self._ranked = changes, ranks
        return self._ranked[1].get(execution.run.id, 0)

    def _moved(self, execution: JobExecution) -> None:
        """A queued one has begun or gone: the others move up."""
        self._changes += 1
        if self._under_way and not self._moving:
            self._moving = True
            self._service.timers.after(JobExecution.pace, self._move, None)

    def _move(self, _: None) -> None:
        self._moving = False
        for execution in self:
            if execution.queued:
                self.touch(execution)
