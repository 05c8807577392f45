"""Whether a task is well: its value stale, its runs failing; and who is told of that."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

from ..coordination.alerts import Condition
from ..engine.service import Service
from ..errors import RunSkipped
from ..functions.run import Cause, Run, RunState
from .state import TaskState, Waves

log = logging.getLogger("panel_schedule")


class Health:
    """Looks after the tasks; under the service's lock."""

    def __init__(self, service: Service, states: dict[str, TaskState], waves: Waves):
        self._service = service
        self._states = states
        self._waves = waves

    def touch(self, state: TaskState) -> None:
        """The task's status has changed: tell those who show it."""
        if state.viewers:
            self._service.locked.touched.add(state.task)

    def judge(self, state: TaskState) -> None:
        """Work out whether the value is stale, and say so when that has changed."""
        limit, entry = state.task.policy.stale_after, state.task.known
        if limit is not None:
            now = self._service.clock.now()
            stale = entry is not None and now - entry.updated_at >= limit
            if entry is not None and not stale:
                self._service.timers.cancel(state.stale_timer)
                state.stale_timer = self._service.timers.at(entry.updated_at + limit, self.judge, state)
        else:
            stale = state.error != "" or (state.missed >= 2 and entry is not None)
        stale = stale or state.broken != ""
        state.fault = stale
        # What is made of a stale value is stale, too. Tasks may read each other: neither is stale for the other's sake.
        stale = stale or (bool(state.sources) and any(each.fault for each in self._sources(state)))
        if stale == state.stale:
            return
        state.stale = stale
        self.touch(state)
        request = self._service.store.tasks.mark_stale(state.task.name, stale)
        self._service.outbox.ask([state], request, partial(self._flipped, state, state.run))
        for product in self._waves.products(state.task):
            self.judge(product)

    def conditions(self) -> dict[str, Condition]:
        """How the tasks are, by name; those that rest are well."""
        return {name: self._condition(state) for name, state in self._states.items() if not state.removed}

    def _condition(self, state: TaskState) -> Condition:
        entry, limit = state.task.known, state.task.policy.stale_after
        updated_at = entry.updated_at if entry is not None else None
        if state.rests:
            return Condition(updated_at)
        overdue = limit is not None and updated_at is not None and self._service.clock.now() - updated_at >= limit
        missed = state.missed if limit is None and entry is not None else 0
        return Condition(updated_at, missed, overdue, state.stale)

    def _flipped(self, state: TaskState, run: Run | None, first: bool) -> None:
        """All processes find it stale; one of them says so."""
        if not (first and state.stale):
            return
        if run is None:
            run = Run(state.task.name, None, self._service.clock.now())
            run.reason = Cause.STALE
            error = RunSkipped(f"Task {run.task!r}: a value that got stale is no run.")
            run.end(RunState.SKIPPED, run.queued_at, error)
            self._service.defer(run.resolve)
        self._service.hooks.emit("stale", state.task, run)

    def _sources(self, state: TaskState) -> Iterator[TaskState]:
        """It, and all whose values its own is made of."""
        seen, ahead = {state}, [state]
        while ahead:
            yield (each := ahead.pop())
            there = {self._states.get(task.name) for task in each.sources}
            new = {source for source in there if source is not None} - seen
            seen |= new
            ahead += new

    def complain(self, state: TaskState, run: Run, error: BaseException) -> None:
        """Log a failure of this process's own."""
        last_good = "the last good value stays" if state.task.known else "there is no value yet"
        self._service.hooks.failures.failed(
            ("task", run.task), f"Task {run.task!r} failed (run {run.id}), {last_good}", error
        )

    def recovered(self, state: TaskState, run: Run) -> None:
        """Log that a task is well again."""
        lasted = self._service.hooks.failures.ended(("task", run.task))
        if lasted is not None:
            log.warning("Task %r has recovered after %s (run %s).", run.task, lasted, run.id)
        else:
            log.info("Task %r has recovered (run %s).", run.task, run.id)

    def follow(self, state: TaskState, error: str) -> None:
        """Another process says how the last run has ended: what its log says, and from when on it counts here."""
        if error and not state.error:
            self._service.hooks.failures.began(("task", state.task.name))
        elif not error:
            self._service.hooks.failures.ended(("task", state.task.name))
        state.error = error

    def skipped(self, state: TaskState, run: Run, new: bool | None) -> None:
        """Say so, if it is news; None when another process has said it, False when more of the same was skipped."""
        if new is not None:
            self._service.counts.add("skipped", run.task, run.reason)
        if new:
            self._service.hooks.emit("skipped", state.task, run)
