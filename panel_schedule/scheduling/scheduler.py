"""Tasks: what their authors and their pages ask of them. What is due goes to `slots`, what is to run to `runs`."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, tzinfo
from functools import partial
from typing import Any

from ..coordination.alerts import Condition
from ..coordination.tasks import TASK
from ..engine.execution import Work, work_of
from ..engine.service import Service
from ..errors import NotReady, RegistrationError
from ..functions import spans
from ..functions.calls import is_async
from ..functions.run import Cause, Run, RunRecord, RunState, _current
from ..functions.task import FirstRun, Task, TaskStatus, WhenIdle
from ..serialize.entry import Entry
from ..stores.tasks import DATES, Plan, Row
from ..triggers import Computed, Schedule
from .follower import Follower
from .health import Health
from .runs import Runs
from .slots import Slots
from .state import Seen, TaskState, Waves

log = logging.getLogger("panel_schedule")


# So many tasks are worth it to tell Python's garbage collector of them.
MANY = 1000


class Scheduler:
    """
    Runs tasks when they are due.

    Parameters
    ----------
    service : Service
    exhausted : callable
        ``exhausted(task)`` when a task that is to be forgotten has no date left.
    fatal : callable
        ``fatal(task, run)`` when a first run that the server waits for has failed.
    zone : tzinfo
        In which people are told times, where a schedule has no zone of its own.
    """

    def __init__(
        self,
        service: Service,
        exhausted: Callable[[Task[Any]], object] = lambda task: None,
        fatal: Callable[[Task[Any], Run], object] = lambda task, run: None,
        zone: tzinfo = UTC,
    ):
        self.service = service
        self.exhausted = exhausted
        self.fatal = fatal
        self.zone = zone
        self.states: dict[str, TaskState] = {}
        # Whether values that other processes store come by themselves, and need not be looked for.
        self._told = not service.store.blocking
        # Names that are used again are other tasks, and no late comers of this server.
        self._discarded: set[str] = set()
        self.waves = Waves(self.states, service.lock)
        self.health = Health(service, self.states, self.waves)
        self.runs = Runs(service, self.states, self.waves, self.health, lambda task, run: self.fatal(task, run))
        self.slots = Slots(service, self.states, self.waves, self.runs, self.health, self._exhaust)
        self.follower = Follower(
            service, self.runs, self.health, self.slots, lambda state: self.remove(state.task, told=True), self._lose
        )
        self.runs.refused, self.slots.entered = self.follower.refused, self.follower.follow
        service.locked.waits, service.locked.settle = self.waves.waits, self.waves.settle
        service.look, service.plan, service.listening = self.slots.look, self.slots.plan, self._listening
        service.outbox.read, service.outbox.follow = self._read, self._follow
        service.questions["task"] = self._value_for
        service.sources.append(self)
        service.store.values.subscribe(self._stored)
        service.store.tasks.subscribe(self._noticed)

    # ------------------------------------------------------------ lifecycle

    def begin(self) -> None:
        """Start the clocks: first runs, then slots. Idempotent."""
        service = self.service
        service.start()
        with service.locked:
            if not (service.begun or service.closing):
                service.begun, service.stopping = True, False
                self._listening()
                self.slots.enter(self.states.values())
        if len(self.states) >= MANY:
            # From now on they are there for good, and Python's garbage collector, for which the loop stands still as
            # long as there is to look at, need not look at them again and again.
            gc.collect()
            gc.freeze()

    def _listening(self) -> None:
        """From now on values of other processes come by themselves."""
        self._told = True
        for state in self.states.values():
            state.task.become(plain=state.removed)

    def stop(self) -> None:
        """Nothing new begins; under the lock."""
        for state in self.states.values():
            self.service.timers.cancel(state.slot_timer)
            state.next = None
            self.slots.resign(state)
            for run in (state.queued, state.run):
                if run is not None and run.state is RunState.QUEUED:
                    self.runs.cancel(state, run, Cause.STOPS)

    def release(self) -> None:
        """The grace period is over: what still runs is left to other processes."""
        with self.service.locked:
            for state in self.states.values():
                if state.run is not None:
                    self.runs.abandon(state, state.run)

    # ------------------------------------------------------------ what the store says

    def _noticed(self, name: str) -> None:
        """Another process has perhaps changed the row of a task; on any thread."""
        with self.service.locked:
            if (state := self.states.get(name.removeprefix(DATES))) is not None:
                self.service.outbox.noticed(state)

    def _read(self, state: TaskState) -> Row | None:
        return self.service.store.tasks.told(state.task.name, state.task.policy.trigger.fingerprint)

    def _follow(self, state: TaskState, row: Row | None) -> None:
        if self.states.get(state.task.name) is state:
            self.follower.follow(state, row)

    def _value_for(self, run: Run, name: str, _: Any) -> Any:
        """For a function in a worker process."""
        if (state := self.states.get(name)) is None:
            raise RegistrationError(f"Task {name!r} is not scheduled any more; schedule its function again.")
        # Its own slot says which value it is to see, and for which it waits.
        _current.set(run)
        return state.task()

    # ------------------------------------------------------------ tasks

    def add(self, task: Task[Any], gated: bool = True) -> None:
        """Take a task in; it runs as soon as the clocks do."""
        state = TaskState(task, self._work(task), gated and task.policy.first_run is FirstRun.WAIT)
        if task.policy.isolate:
            self.service.store.values.isolate(task.name)
        if task.policy.when_idle is WhenIdle.SKIP:
            self.service.store.tasks.count_viewers(task.name)
        if (entry := self.service.store.values.entry(TASK, task.name)) is not None:
            task.take(entry)
        task.become(plain=False, told=self._told)
        with self.service.locked:
            if (former := self.states.get(task.name)) is not None:
                self.discard(former.task)
            self.states[task.name] = state
            self.waves.follow(state, state.upstream)
            if self.service.begun:
                self.slots.enter([state], late=True)
            elif task.name in self._discarded:
                plan = Plan(task.name, task.policy.trigger, self.service.clock.now(), task.policy.stale_after)
                self.service.outbox.ask([state], partial(self.service.store.tasks.enroll, [plan], late=True))

    def redefine(self, task: Task[Any]) -> None:
        """The task got another function or policy: keep its value and history, run it anew."""
        with self.service.locked:
            state = self.states[task.name]
            if task.policy.when_idle is WhenIdle.SKIP:
                self.service.store.tasks.count_viewers(task.name)
            state.work, state.reads, state.depends = self._work(task), (), None
            state.removed = state.gated = False
            self.service.hooks.failures.ended(("task", task.name))
            state.trigger = state.base = task.policy.trigger
            state.override = None
            self.waves.follow(state, state.upstream)
            if self.service.begun:
                self.slots.enter([state], again=True)

    def discard(self, task: Task[Any], *, cancel: bool = False) -> None:
        """Forget a task and what is stored of it. A run in flight ends by itself, unseen; `cancel` stops it."""
        with self.service.locked:
            state = self.states.get(task.name)
            if state is not None and state.task is task:
                if cancel:
                    state.gated = False  # nobody waits for its first value
                    for run in (state.queued, state.run):
                        if run is not None:
                            self.runs.cancel(state, run, Cause.REMOVED)
                self._let_go(state)
                # What a run of it publishes now comes too late, and the next task of its name need not wait for it.
                self._discarded.add(task.name)
                self.service.outbox.ask([state], partial(self.service.store.tasks.forget, task.name))

    def drop(self, task: Task[Any]) -> None:
        """Forget a task in this process; what is stored of it stays."""
        with self.service.locked:
            state = self.states.get(task.name)
            if state is not None and state.task is task:
                self._let_go(state)

    def leave(self) -> None:
        """
        This process is done with its tasks: their runs are cancelled, and their values are read as before.

        What is stored of them is for others; in a store that nobody else has it goes.
        """
        with self.service.locked:
            for state in list(self.states.values()):
                for run in (state.queued, state.run):
                    if run is not None:
                        self.runs.cancel(state, run, Cause.CANCELLED)
                if self.service.store.blocking:
                    self.drop(state.task)
                else:
                    self.discard(state.task)
                state.task.become(plain=False)

    def _lose(self, state: TaskState) -> None:
        """Another process has forgotten the task."""
        self._let_go(state)
        self.service.defer(partial(self.exhausted, state.task))

    def _let_go(self, state: TaskState) -> None:
        self.remove(state.task, told=True)
        self.waves.leave(state)
        del self.states[state.task.name]
        self.service.hooks.failures.ended(("task", state.task.name))

    def _state(self, task: Task[Any]) -> TaskState:
        state = self.states.get(task.name)
        if state is None or state.task is not task:
            raise RegistrationError(f"Task {task.name!r} was cancelled; schedule its function again.")
        return state

    def remove(self, task: Task[Any], told: bool = False) -> None:
        with self.service.locked:
            state = self._state(task)
            if not told:
                self.service.outbox.ask([state], partial(self.service.store.tasks.amend, task.name, removed=True))
            first, state.first = state.first, None
            if first is not None:
                error = NotReady(f"Task {task.name!r}: its schedule was removed before it had a value.")
                self.service.defer(lambda: first.set_exception(error))
            state.removed, state.next, state.stale = True, None, False
            self.slots.resign(state)
            task.become(plain=True, told=self._told)
            for timer in (state.slot_timer, state.stale_timer):
                self.service.timers.cancel(timer)
            for run in (state.queued, state.run):
                if run is not None and run.state is RunState.QUEUED:
                    self.runs.cancel(state, run, Cause.REMOVED)
            self.health.touch(state)

    def _exhaust(self, task: Task[Any]) -> None:
        """Its dates are used up: its name is free at once, and it goes when its last run has ended."""
        self.exhausted(task)
        self._outlive(task)

    def _outlive(self, task: Task[Any]) -> None:
        state = self.states.get(task.name)
        if state is None or state.task is not task:
            return
        for run in (state.run, state.queued, state.remote):
            if run is not None and not run.state.final:
                run.add_done_callback(lambda _: self._outlive(task))
                return
        self.discard(task)

    def last_run(self, task: Task[Any], then: Callable[[], object]) -> None:
        """Call `then` when the run that begins next has ended."""
        self._state(task).farewell = then

    def pause(self, task: Task[Any], paused: bool) -> None:
        self.look(task)
        with self.service.locked:
            state = self._state(task)
            state.paused = paused
            self.service.outbox.ask([state], partial(self._amend, state, paused=paused))
            self.health.touch(state)

    def reschedule(self, task: Task[Any], trigger: Schedule) -> None:
        self.look(task)
        with self.service.locked:
            state = self._state(task)
            if state.removed:
                raise RegistrationError(f"Task {task.name!r}: its schedule was removed; define it again instead.")
            if self.service.store.blocking and isinstance(trigger, Computed):
                raise RegistrationError(
                    f"Task {task.name!r}: a function that works out the dates is known to this process alone, and the "
                    "new schedule is for all that share the store. Give dates, a period or a cron expression."
                )
            now = self.service.clock.now()
            slot = trigger.next_after(now)  # may be a function of the user's, and fail
            state.override = state.trigger = trigger
            state.depends = None
            self.service.outbox.ask([state], partial(self._amend, state, reschedule=trigger, now=now))
            self.waves.follow(state, state.upstream)
            if self.service.begun:
                self.slots.arm(state, slot)
            self.health.touch(state)

    def refresh(self, task: Task[Any]) -> Run:
        self.service.start()
        self.look(task)
        with self.service.locked:
            state = self._state(task)
            if self.service.closing:
                return self.runs.refuse(state)
            if state.removed:
                raise RegistrationError(
                    f"Task {task.name!r}: its schedule was removed, so there is nothing to refresh; call it instead."
                )
            if state.run is not None and not state.run.state.final:
                return state.run
            if state.queued is not None or state.remote is not None:
                return state.queued or state.remote  # type: ignore[return-value]
            run = self.runs.new(state, "", None)
            run.key, run.asked = f"request {run.id}", spans.here()
            self.runs.launch(state, run)
            return run

    def cancel(self, task: Task[Any]) -> Run | None:
        """Cancel the run under way, in whichever process, or the one that waits; None where there is none."""
        run = next(iter(self.under_way(task)), None)
        if run is not None:
            run.cancel()
        return run

    def under_way(self, task: Task[Any]) -> list[Run]:
        """The runs that have not ended: the one that runs, in whichever process, and the one that waits here."""
        elsewhere = self.look(task)
        with self.service.locked:
            state = self._state(task)
            here = [run for run in (state.run, elsewhere, state.queued) if run is not None and not run.state.final]
        # Of one that has just begun elsewhere this process may not have heard yet.
        found = None if here else self.follower.find(state)
        return here if found is None else [found]

    def await_turn(self, task: Task[Any], run: Run) -> None:
        reader, upstream = self.states.get(run.task), self.states.get(task.name)
        if reader is not None and upstream is not None:
            self.waves.wait(reader, run, upstream)

    def first_value(self, task: Task[Any]) -> Future[Entry]:
        """A future of the first value's entry, shared by all who wait."""
        with self.service.lock:
            state = self._state(task)
            if task.known is not None:
                there: Future[Entry] = Future()
                there.set_result(task.known)
                return there
            if state.first is None:
                state.first = Future()
            return state.first

    def gate(self) -> list[TaskState]:
        """The tasks without whose first value no page is built."""
        with self.service.lock:
            empty = [state for state in self.states.values() if state.gated and state.task.known is None]
            return [state for state in empty if self._comes(state)]

    def serve_without(self, task: Task[Any], run: Run) -> None:
        """The first run that pages wait for has failed: they wait no longer, and say so."""
        with self.service.locked:
            state = self.states.get(task.name)
            if state is not None and state.task is task:
                state.gated = False
                error, state.withheld = state.withheld, None
                if error is not None:
                    self.health.complain(state, run, error)

    def promise(self, task: Task[Any]) -> tuple[datetime, datetime | None]:
        """The time, and until when the value is what its task has promised; None where nothing says so."""
        now = self.service.clock.now()
        with self.service.lock:
            state = self.states.get(task.name)
            return now, None if state is None or state.task is not task else state.promise

    def watch(self, task: Task[Any], viewers: int) -> None:
        """Count `viewers` more, or fewer. The first viewer of a stale value of an idle task refreshes it."""
        with self.service.locked:
            state = self.states.get(task.name)
            if state is None or state.task is not task:
                return
            state.viewers += viewers
            if task.policy.when_idle is not WhenIdle.SKIP:
                return
            self.service.outbox.ask([state], partial(self.service.store.tasks.watch, task.name, state.viewers))
            welcome = viewers > 0 and state.viewers == viewers and not state.elsewhere
            outdated = state.stale or (state.missed > 0 and state.run is None)
            if welcome and outdated and self.service.begun and not state.paused and not state.removed:
                self.refresh(task)

    def look(self, task: Task[Any]) -> Run | None:
        """
        Where no clocks run, in a script: take in what the store says of a task, without beginning anything.

        Returns
        -------
        Run or None
            The one that another process has under way; with clocks it is known without looking.
        """
        with self.service.lock:
            state = self.states.get(task.name)
            if state is None or state.task is not task:
                return None
            if self.service.begun or self.service.stopping or state.writing or not self.service.store.blocking:
                # What is still to be written is not in the store, but here.
                return state.remote
        row = self.service.store.tasks.row(task.name, task.policy.trigger.fingerprint)
        with self.service.locked:
            if row is None or self.service.begun or state.writing or self.states.get(task.name) is not state:
                return state.remote
            return self.follower.look(state, row)

    def status(self, task: Task[Any]) -> TaskStatus:
        elsewhere = self.look(task)
        with self.service.lock:
            state = self.states.get(task.name)
            if state is None or state.task is not task:
                state = TaskState(task, self._work(task), gated=False)
                state.removed = True
            return state.status(self.zone, elsewhere)

    def trigger(self, task: Task[Any]) -> Schedule:
        """The schedule of a task that is in force, or was."""
        state = self.states.get(task.name)
        return state.trigger if state is not None and state.task is task else task.policy.trigger

    def survey(self) -> list[Seen]:
        """How all tasks are. Others get the lock between one and the next."""
        with self.service.lock:
            states = list(self.states.values())
        found = []
        for state in states:
            with self.service.lock:
                found.append(state.seen(self.zone))
        return found

    def conditions(self) -> dict[str, Condition]:
        """How the tasks are, by name."""
        with self.service.lock:
            return self.health.conditions()

    def waiting(self) -> int:
        """How many runs have been asked for in this process and have not begun."""
        with self.service.lock:
            runs = [run for state in self.states.values() for run in (state.run, state.queued) if run is not None]
            return sum(run.state is RunState.QUEUED for run in runs)

    def history(self, task: Task[Any]) -> list[RunRecord]:
        return self.service.store.history(task.name)

    def _stored(self, space: str, name: str, entry: Entry | None) -> None:
        state = self.states.get(name) if space == TASK else None
        if state is None or entry is None:
            return
        task = state.task
        with self.service.locked:
            known = task.known
            if known is not None and (known.version, known.final) >= (entry.version, entry.final):
                return
            task.take(entry)
            first, state.first = state.first, None
            if first is not None:
                self.service.defer(partial(first.set_result, task.readable(entry)))
            if state.viewers:
                self.service.locked.touched.add(task)
            if state.claim is None or state.claim.run_id != entry.run_id:
                self._came_from_elsewhere(state, entry)

    def _came_from_elsewhere(self, state: TaskState, entry: Entry) -> None:
        """Another process has published it."""
        state.missed = 0
        if not self.service.begun:  # in a script: it judges nobody's runs but its own
            return
        self.health.judge(state)
        if entry.final:
            for dependent in state.dependents:
                self.slots.expect(dependent, entry.wave or entry.updated_at)

    def _work(self, task: Task[Any]) -> Work:
        policy = task.policy
        where = policy.executor or ("loop" if is_async(task.function) else "thread")
        executor = self.service.executor("task", where)
        limits = policy.concurrency and self.service.limiter.of(f"Task {task.name!r}", policy.concurrency)
        return work_of("Task", task.name, task.function, where, executor, policy.timeout, policy.retry, limits)

    def _comes(self, state: TaskState) -> bool:
        """Whether a first run is on its way: not where it waits for a task that skips its own."""
        if state.task.policy.first_run is FirstRun.SKIP or state.removed or state.paused:
            return False
        if state.clockless:
            upstream = [(up, self.states.get(up.name)) for up in state.upstream]
            return any(up.known or (at is not None and not at.failed and self._comes(at)) for up, at in upstream)
        return True

    def _amend(self, state: TaskState, **changes: Any) -> None:
        name, policy = state.task.name, state.task.policy
        if self.service.store.tasks.row(name) is None:  # in a script, where no clock has enrolled it
            plan = Plan(name, policy.trigger, self.service.clock.now(), policy.stale_after)
            self.service.store.tasks.enroll([plan])
        self.service.store.tasks.amend(name, **changes)
