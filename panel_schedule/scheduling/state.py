"""A state: what the scheduler knows of one task, and who waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from datetime import datetime, tzinfo
from typing import Any, NamedTuple

from ..coordination.tasks import Claim
from ..engine.execution import Work
from ..engine.outbox import Subject
from ..engine.timers import Timer
from ..functions.run import Cause, Run, RunState
from ..functions.task import Task, TaskStatus, WhenIdle, named_tasks
from ..triggers import After, Computed, Schedule
from ..triggers.coming import zone_of
from .planner import ALLOWANCE, second_slot

# One for all states: there may be thousands.
NOTHING = frozenset[Task[Any]]()


class Seen(NamedTuple):
    """
    What an operator is told of a task.

    Attributes
    ----------
    task : Task
    status : TaskStatus
    trigger : Schedule
        The schedule in force.
    promise : datetime or None
        Until when its value is what it has promised; None where nothing says so.
    viewers : int
        Sessions that show it, in all processes as far as that is known.
    sources : tuple of str
        The tasks that its values are made of, as far as is known.
    """

    task: Task[Any]
    status: TaskStatus
    trigger: Schedule
    promise: datetime | None
    viewers: int
    sources: tuple[str, ...]


class TaskState(Subject):
    """
    The scheduler's state of one task.

    A task has at most one `run` that holds its claim and one `queued` behind it. A run
    whose `body` outlives it (timed out, cancelled, replaced) keeps the state busy until the
    body returns: two bodies of one task never run at once.
    """

    __slots__ = (
        "asking",
        "awaited",
        "awaiting",
        "base",
        "broken",
        "claim",
        "dates",
        "dependents",
        "depends",
        "elsewhere",
        "error",
        "execution",
        "farewell",
        "fault",
        "first",
        "follows",
        "gated",
        "goes_first",
        "handled",
        "held",
        "missed",
        "next",
        "outdated",
        "override",
        "paused",
        "promised",
        "queued",
        "read",
        "reads",
        "remote",
        "removed",
        "run",
        "slot_timer",
        "stale",
        "stale_timer",
        "task",
        "telling",
        "trigger",
        "untold",
        "version",
        "viewers",
        "waiters",
        "withheld",
        "work",
    )

    def __init__(self, task: Task[Any], work: Work, gated: bool):
        super().__init__()
        self.task = task
        # The schedule in force: the override of a reschedule, or the one in the code.
        self.base: Schedule = task.policy.trigger
        self.override: Schedule | None = None
        # Runs as long as the schedule in force is that of a newer version of the code.
        self.outdated: Timer | None = None
        self.trigger: Schedule = self.base
        self.work = work
        # Whether the server serves nothing before this task's first value.
        self.gated = gated
        self.next: datetime | None = None
        self.run: Run | None = None
        self.queued: Run | None = None
        # Of `run`, from the time when it has its claim.
        self.execution: Any = None
        self.claim: Claim | None = None
        # The right to ask a function for its dates, which each process would get other ones from.
        self.dates: Claim | None = None
        # Whether the store has been asked for the claim of `run` and has not answered yet.
        self.asking = False
        # What became of later slots, to be recorded after the one that is asked for.
        self.untold: tuple[Callable[[], object], ...] = ()
        self.paused = False
        self.removed = False
        # First line of the last failure, wherever it ran; "" when the last finished run succeeded.
        self.error = ""
        # Why it does not run any more: its schedule is of the user's own code, and failed. "" as long as that answers.
        self.broken = ""
        # A failure of which those say that wait for the first value.
        self.withheld: BaseException | None = None
        # Slots that came since the last value.
        self.missed = 0
        # Whether it is stale; and whether by itself, and not for the sake of what it is made of.
        self.stale = self.fault = False
        self.viewers = 0
        # Of a value and a schedule, see `promise`.
        self.promised: tuple[Any, Schedule | None, datetime | None] = (None, None, None)
        # What other processes do with the task: the run of one of them, those that wait for its end, whether
        # one holds the claim (also when only the body of its run is left), and how many sessions show it there.
        self.remote: Run | None = None
        self.waiters: tuple[Run, ...] = ()
        self.held = False
        self.elsewhere = 0
        # Whether this process claims its slots at once: the one that had it last does, the others a moment later.
        self.goes_first = True
        # The last slot, and the versions of its upstream, that some process has claimed or skipped.
        self.handled: datetime | None = None
        self.version = 0
        # The wave of a new value that another process is expected to follow, and the timer that ends the wait for that.
        self.awaited: datetime | None = None
        self.awaiting: Timer | None = None
        # Whether its progress is going to be told to the other processes.
        self.telling = False
        # What is to be called when the next run has ended.
        self.farewell: Callable[[], object] | None = None
        self.first: Future[Any] | None = None
        # Whose values cause its runs, by name, and the states whose runs its own values cause.
        self.follows: tuple[str, ...] = ()
        self.dependents: tuple[TaskState, ...] = ()
        self.reads: tuple[Task[Any], ...] = ()
        # The tasks that its runs have read.
        self.read = NOTHING
        # The tasks it is ordered behind, worked out when first needed.
        self.depends: tuple[Task[Any], ...] | None = None
        self.slot_timer: Timer | None = None
        self.stale_timer: Timer | None = None

    @property
    def rests(self) -> bool:
        """Whether it does not run for now: it is paused, or nobody watches."""
        return self.paused or (self.task.policy.when_idle is WhenIdle.SKIP and self.viewers + self.elsewhere == 0)

    @property
    def body(self) -> Future[Any] | None:
        """What an executor has of it."""
        return None if self.execution is None else self.execution.future

    @property
    def promise(self) -> datetime | None:
        """Until when its value is what its task has promised; None where nothing says so."""
        entry, limit = self.task.known, self.task.policy.stale_after
        if entry is None or self.paused or self.removed:
            return None
        if limit is not None:
            return entry.updated_at + limit + ALLOWANCE
        if self.promised[0] is not entry or self.promised[1] is not self.trigger:
            until = second_slot(self.trigger, entry.wave or entry.updated_at)
            until = None if until is None else until + self.task.policy.jitter
            self.promised = entry, self.trigger, until
        return self.promised[2]

    @property
    def busy(self) -> Cause | None:
        """Why no run can start now."""
        if self.run is None:
            # One that waits for another process gives way to a newer one, as behind a run of this process.
            return Cause.OVERLAP if self.queued is not None else None
        return Cause.ABANDONED if self.run.state.final else Cause.OVERLAP

    @property
    def failed(self) -> bool:
        """Whether its last run, wherever it was, has failed, and the next one is still to come."""
        to_come = any(run is not None and not run.state.final for run in (self.run, self.queued, self.remote))
        return self.error != "" and not to_come and not self.gated

    @property
    def clockless(self) -> bool:
        """Whether values of other tasks, and no clock, decide when it runs."""
        return isinstance(self.trigger, After)

    @property
    def computed(self) -> bool:
        """Whether a function works out when it runs."""
        return isinstance(self.trigger, Computed)

    @property
    def upstream(self) -> tuple[Task[Any], ...]:
        """The tasks whose values cause a run, by the schedule that is in force."""
        return self.trigger.tasks if isinstance(self.trigger, After) else ()

    @property
    def sources(self) -> tuple[Task[Any], ...]:
        """The tasks whose values its own is made of, as far as is known."""
        return (*self.upstream, *self.task.policy.needs, *self.read)

    def seen(self, zone: tzinfo) -> Seen:
        """What an operator is told of it."""
        sources = tuple(dict.fromkeys(task.name for task in self.sources))
        status = self.status(zone, self.remote)
        return Seen(self.task, status, self.trigger, self.promise, self.viewers + self.elsewhere, sources)

    def status(self, zone: tzinfo, elsewhere: Run | None) -> TaskStatus:
        """A snapshot; the next run in the zone of its schedule, or in `zone`. `elsewhere` is another process's run."""
        task, entry, run = self.task, self.task.known, self.run
        if run is None or run.state.final:
            run = elsewhere or self.queued
        if self.removed:
            state = "removed"
        elif run is not None:
            state = "queued" if run.state is RunState.QUEUED else "running"
        elif self.paused:
            state = "paused"
        else:
            state = "failed" if self.error or self.broken else "idle"
        zone = zone_of(self.trigger, None, zone)
        return TaskStatus(
            name=task.name,
            state=state,
            version=entry.version if entry else 0,
            updated_at=entry.updated_at if entry else None,
            stale=self.stale,
            error=self.error or self.broken,
            next_run=None if self.paused or self.removed or self.next is None else _told_in(zone, self.next),
            percent=run.percent if run else -1,
            message=run.message if run else "",
            schedule=str(self.trigger),
            hanging=self.work.executor.hanging,
        )


def _told_in(zone: tzinfo, instant: datetime) -> datetime:
    try:
        return instant.astimezone(zone)
    except OverflowError:  # on the last day of the calendar
        return instant


class Wait:
    """Somebody in the run of `owner` who waits until `upstream` has its values for `wave`."""

    __slots__ = ("owner", "proceed", "run", "upstream")

    def __init__(self, owner: TaskState, run: Run, upstream: tuple[TaskState, ...], proceed: Callable[[], object]):
        self.owner = owner
        self.run = run
        self.upstream = upstream
        self.proceed = proceed


class Waves:
    """
    The ordering of invariant 9: a run for slot t sees its upstream's values for slot t.

    Under the service's lock, but for `wait`.
    """

    def __init__(self, states: dict[str, TaskState], lock: threading.RLock):
        self._states = states
        self._lock = lock
        self.waits: list[Wait] = []
        # By task: whose values were ever made of its own.
        self._products: dict[Task[Any], dict[TaskState, None]] = {}

    def products(self, task: Task[Any]) -> list[TaskState]:
        """Whose values are made of those of a task."""
        return [state for state in self._products.get(task, ()) if task in state.sources]

    def leave(self, state: TaskState) -> None:
        """It goes: nobody's value is made of its own any more, and its own of nobody's."""
        self.follow(state, ())
        self._products.pop(state.task, None)
        for task in state.sources:
            self._products.get(task, {}).pop(state, None)

    def follow(self, state: TaskState, tasks: tuple[Task[Any], ...]) -> None:
        """Let values of these tasks, and of no others, cause its runs."""
        self._note_sources(state)
        for name in state.follows:
            if (other := self._states.get(name)) is not None:
                other.dependents = tuple(dependent for dependent in other.dependents if dependent is not state)
        state.follows = tuple(task.name for task in tasks if task.name in self._states)
        for name in state.follows:
            self._states[name].dependents += (state,)

    def _note_sources(self, state: TaskState) -> None:
        for task in state.sources:
            self._products.setdefault(task, {})[state] = None

    def pending(self, state: TaskState, wave: datetime) -> bool:
        """Whether a value of `state` for its latest slot up to `wave` is still to come."""
        if state.removed:
            return False
        for run in (state.run, state.queued, state.remote):
            if run is None or run.state.final or run.wave is None:
                continue
            # Of first runs each process has the wave at which it came itself: any of them is the one to wait for.
            if run.wave <= wave or state.task.known is None:
                return True
        if state.awaited is not None and state.awaited <= wave:
            return True
        if state.clockless:
            return any(self.pending(upstream, wave) for upstream in self._known(state.upstream))
        if state.next is None or state.next > wave or state.paused:
            return False
        # A process whose clock is ahead may have published it, and goes on to: this one would wait for ever.
        known = state.task.known
        return known is None or not known.final or known.wave is None or known.wave < wave

    def hold(self, state: TaskState, run: Run, proceed: Callable[[], object]) -> bool:
        """Call `proceed` later, once all that the run depends on is there; False when nothing is missing."""
        depends = self._depends_on(state) if run.wave is not None else ()
        missing = self._missing(state, run, self._known(depends)) if depends else ()
        if missing:
            self.waits.append(Wait(state, run, missing, proceed))
        return bool(missing)

    def wait(self, state: TaskState, run: Run, upstream: TaskState) -> None:
        """Block the run's own thread until `upstream` is there; its place goes to another meanwhile."""
        with self._lock:
            if upstream is not state and upstream.task not in state.read:
                state.read |= {upstream.task}
                self._note_sources(state)
            if state.work.waits_before and upstream.task not in state.reads:
                state.reads += (upstream.task,)
                state.depends = None
            missing = () if state.work.waits_before else self._missing(state, run, [upstream])
            if not missing:
                return
            there = threading.Event()
            self.waits.append(Wait(state, run, missing, there.set))
        with state.work.executor.lend():
            there.wait()
        run.check()

    def settle(self) -> None:
        """Let everybody go on for whom nothing is missing any more, or whose run has ended."""
        while ready := [wait for wait in self.waits if wait.run.state.final or not self._blocking(wait)]:
            self.waits[:] = [wait for wait in self.waits if wait not in ready]
            for wait in ready:
                wait.proceed()

    def _blocking(self, wait: Wait) -> bool:
        assert wait.run.wave is not None
        return any(self.pending(upstream, wait.run.wave) for upstream in wait.upstream)

    def _missing(self, state: TaskState, run: Run, upstream: Iterable[TaskState]) -> tuple[TaskState, ...]:
        assert run.wave is not None
        return tuple(
            up for up in upstream if up is not state and self.pending(up, run.wave) and not self._leads_to(up, state)
        )

    def _leads_to(self, start: TaskState, goal: TaskState) -> bool:
        """Whether `start` waits, directly or not, for `goal`: then `goal` must not wait for it."""
        seen, stack = {start}, [start]
        while stack:
            state = stack.pop()
            for wait in self.waits:
                if wait.owner is state:
                    if goal in wait.upstream:
                        return True
                    new = [up for up in wait.upstream if up not in seen]
                    seen.update(new)
                    stack += new
        return False

    def _depends_on(self, state: TaskState) -> tuple[Task[Any], ...]:
        if state.depends is None:
            policy = state.task.policy
            depends = {*policy.needs, *state.upstream, *state.reads}
            if state.work.waits_before:
                # It cannot be stopped at a read without stopping the loop, or what waits for its place, so its reads
                # are foreseen.
                depends.update(named_tasks(state.task.function))
            state.depends = tuple(depends)
        return state.depends

    def _known(self, tasks: Iterable[Task[Any]]) -> list[TaskState]:
        return [self._states[task.name] for task in tasks if task.name in self._states]
