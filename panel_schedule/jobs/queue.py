"""Background runs: who asks for one, who shares it, which process has it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from ..coordination.record import EPOCH
from ..engine.service import Service
from ..errors import RunCancelled, RunSkipped
from ..functions import spans
from ..functions.background import Background
from ..functions.run import Cause, Run, RunState, on_a_loop
from ..serialize.checks import is_light
from ..serialize.copies import snapshot
from ..stores.queue import JobRow
from .execution import JobExecution
from .executions import Executions
from .follower import Follower
from .single_flight import Waiters

log = logging.getLogger("panel_schedule")


class Dispatcher:
    """
    Takes background runs in, and knows them all.

    Parameters
    ----------
    service : Service
    functions : mapping
        All of them, by name.
    most_bytes : int
        Of what is kept of runs that have ended.
    most_queued : int
        Of the runs of one function that have still to begin.
    """

    def __init__(
        self, service: Service, functions: Mapping[str, Background[Any, Any]], most_bytes: int, most_queued: int
    ):
        self._service = service
        self._most_queued = most_queued
        service.sources.append(self)
        self.executions = Executions(service, most_bytes)
        self.waiters = Waiters(service, self.executions)
        self.follower = Follower(service, self.executions, self.waiters, functions, self.enter)

    # ------------------------------------------------------------ submitting

    def submit(
        self,
        function: Background[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        user: str | None,
        due_at: datetime | None = None,
    ) -> Run:
        """Start a run, or join one that does the same; one that is due later joins none."""
        self._service.start()
        args, kwargs = snapshot(args, kwargs)
        execution = self.executions.make(function, self.executions.new(function.name), args, kwargs)
        run = execution.run
        run.user, run._stop, run.asked, run.due_at = user, execution.cancel, spans.here(), due_at
        if self._service.stopping:
            with self._service.locked:
                run.reason = Cause.STOPS
                execution.end(RunState.CANCELLED, RunCancelled(f"{execution.name}: the server stops."))
        elif on_a_loop() and not is_light((args, kwargs)):
            # To pickle it would take long, and the loop has pages to serve.
            self._service.outbox.aside(partial(self.enter, execution))
        else:
            self._enter(execution)
        return run

    def enter(self, execution: JobExecution) -> None:
        """Start it, or let it join one that does the same; what is wrong with its arguments ends it."""
        try:
            self._enter(execution)
        except BaseException as error:  # of a thread of ours
            execution.refuse(error)

    def _enter(self, execution: JobExecution) -> None:
        """Raises what is wrong with the arguments; nothing has begun then."""
        function, caller = execution.job, execution.run
        if function.policy.ttl is not None and caller.due_at is None:
            key = function.keys.digest(execution.args, execution.kwargs)
            with self._service.locked:
                if self.waiters.join(function.name, key, caller):
                    return
            # Its run is nobody's own: the caller is a waiter of it, as are those who ask for the same later.
            execution = self.executions.make(
                function, self.executions.new(function.name), execution.args, execution.kwargs
            )
            execution.key, execution.run.id, execution.run.user = key, caller.id, caller.user
            execution.run.asked = caller.asked
        execution.pack()
        payload = self.follower.prepare(execution)
        with self._service.locked:
            if caller.state.final or (execution.key and self.waiters.join(function.name, execution.key, caller)):
                return
            if self.executions.count(function) >= self._most_queued:
                self._skip(function, caller)
                return
            if execution.key:
                self.waiters.shared[function.name, execution.key] = execution
                self.waiters.welcome(execution, caller)
            self.executions.admit(execution)
        self.follower.announce(execution, payload)

    def _skip(self, function: Background[Any, Any], run: Run) -> None:
        """It does not begin, as too many wait. Under the lock."""
        run.reason = Cause.CROWDED
        error = RunSkipped(
            f"Job {function.name!r}: {self._most_queued:,} of its runs are under way or wait in this process, and no "
            "further one is taken. Try again later; ps.config.max_queued allows for more."
        )
        log.warning("%s", error)
        self.executions.make(function, run).end(RunState.SKIPPED, error)

    # ------------------------------------------------------------ looking

    def runs(self, function: Background[Any, Any], user: str | None) -> list[Run]:
        """Newest first; of everybody, or of one user."""
        with self._service.locked:
            here = {run.id: run for run in self.executions.runs(function)}
        there = self.follower.runs(function.name, here, user)
        return sorted([*here.values(), *there], key=lambda run: run.queued_at, reverse=True)

    def under_way(self) -> list[Run | JobRow]:
        """Of all functions, in whichever process; of those of another one what the store says."""
        with self._service.locked:
            here = {execution.run.id: execution.run for execution in self.executions if not execution.remote}
        there = [row for row in self._service.store.queue.under_way() if row.id not in here]
        return sorted([*here.values(), *there], key=lambda run: run.queued_at or EPOCH)

    def look_up(self, id: str) -> Run | JobRow | None:
        """The run of this id, in whichever process; nobody follows it for that."""
        with self._service.locked:
            execution = self.executions.get(id)
            run = self.executions.find(id) if execution is None else None if execution.remote else execution.run
        return run if run is not None else self._service.store.queue.job(id)

    def cancel(self, id: str) -> None:
        """Cancel the run of this id, in whichever process, for all who share it."""
        if isinstance(run := self.look_up(id), Run):
            run.cancel()
        else:
            self._service.store.queue.cancel(id)

    def find(self, id: str) -> Run | None:
        """The run of this id, in whichever process it is. Who cancels it ends nothing for others who share it."""
        self._service.start()
        with self._service.locked:
            if (execution := self.executions.get(id)) is not None:
                if not execution.key:
                    return execution.run
                waiter = self.executions.new(execution.job.name)
                waiter.queued_at, waiter.user = execution.run.queued_at, execution.run.user
                self.waiters.welcome(execution, waiter)
                return waiter
            run = self.executions.find(id)
        return run if run is not None else self.follower.find(id)

    # ------------------------------------------------------------ following

    def follow(self, run: Run, changed: Callable[[], object]) -> Callable[[], None]:
        """Call `changed` when something about a run is new, until what is returned is called; for sessions."""
        unwatch, id, counted = run.watch(changed), run.id, not run.state.final
        if counted:
            self.follower.follow(id, 1)

        def leave() -> None:
            nonlocal counted
            unwatch()
            if counted:
                counted = False
                self.follower.follow(id, -1)

        return leave

    def abandon(self, run: Run, reason: str) -> None:
        """Cancel a run that a session has no use for any more, unless another one follows it."""
        if run.state.final or run.watched or self._service.stopping:
            return
        self.follower.abandon(run, reason)

    # ------------------------------------------------------------ lifecycle

    def leave(self) -> None:
        """This process is done with its runs, the durable ones, too: they are cancelled for good."""
        for execution in self.executions:
            if not execution.remote:
                execution.cancel(execution.run, Cause.CANCELLED)

    def stop(self) -> None:
        """What has not begun is left to other processes, or ends."""
        for execution in self.executions:
            if execution.queued or execution.comes_later:
                execution.cancel(execution.run, Cause.STOPS)

    def release(self) -> None:
        """What has not ended ends here, where nothing runs now; the store leaves it to others when it is closed."""
        for execution in self.executions:
            if not execution.remote:
                execution.cancel(execution.run, Cause.STOPS)
