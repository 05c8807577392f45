"""Who shares one execution of a background function with others that asked for the same."""

from __future__ import annotations

from functools import partial

from ..engine.service import Service
from ..functions.run import Run, RunState
from .execution import JobExecution
from .executions import Executions


class Waiters:
    """
    The runs of those who share executions; under the service's lock.

    Parameters
    ----------
    service : Service
    executions : Executions
    """

    def __init__(self, service: Service, executions: Executions):
        self._service = service
        self._executions = executions
        executions.ended = self.over
        # By function and key: under way, or with a result that is still good.
        self.shared: dict[tuple[str, str], JobExecution] = {}

    def join(self, name: str, key: str, waiter: Run) -> bool:
        """Take part in what another call with the same arguments has started."""
        known = self.shared.get((name, key))
        if known is not None and not waiter.state.final:
            self.welcome(known, waiter)
        return known is not None

    def welcome(self, execution: JobExecution, waiter: Run) -> None:
        """Let it share the execution, or the result."""
        run, waiter.id = execution.run, execution.run.id
        execution.inform(waiter)
        if run.state.final:
            waiter._stop = None
            waiter.end(run.state, run.finished_at or self._service.clock.now(), run.error, run.shared)
            self._service.defer(waiter.touch)
            self._service.defer(lambda: waiter.resolve(run.shared))
        else:
            if execution.unwatch is None:
                # Who only looks on does not end it for those who wait.
                execution.unwatch = run.watch(lambda: None)
            waiter._rank = partial(self._executions.rank, execution)
            execution.join(waiter)

    def over(self, execution: JobExecution) -> None:
        """It has ended: who asks for the same from now on gets its result, as long as that is good."""
        run, ttl = execution.run, execution.job.policy.ttl
        if run.state is RunState.SUCCEEDED and ttl is not None and run.finished_at is not None:
            left = run.finished_at + ttl - self._service.clock.now()
            self._service.timers.after(max(0.0, left.total_seconds()), self.expire, execution)
        else:
            self.expire(execution)

    def expire(self, execution: JobExecution) -> None:
        """Who asks for the same from now on starts anew."""
        name = execution.job.name
        if self.shared.get((name, execution.key)) is execution:
            del self.shared[name, execution.key]
