"""The service thread: one timer; what is due goes to `slots`, what runs to `execution`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from datetime import UTC, datetime, tzinfo
from functools import partial
from typing import Any

from ..clock import Clock
from ..engine.lock import Bell, Locked
from ..engine.outbox import Outbox
from ..engine.timers import Timers
from ..errors import NotReady, RegistrationError
from ..executors.base import Executor
from ..functions.calls import is_async
from ..functions.run import Run, RunRecord, RunState
from ..functions.task import FirstRun, Task, TaskStatus, WhenIdle
from ..serialize.entry import Entry
from ..stores.base import TASK, Plan, Store
from ..triggers import Computed, Trigger
from .execution import STOPS, Execution
from .follower import Follower
from .hooks import EVENTS, Handler, Hooks
from .planner import ALLOWANCE, second_slot
from .rpc import answer
from .slots import Slots
from .state import TaskState, Waves

log = logging.getLogger("panel_schedule")


# The executors that serve the store; they end last.
STORING = ("store", "publisher")

# Seconds that the store gets at the end to take what is still to be written.
LAST_WRITES = 2.0

# How many timers go off in one tick, and for how many seconds the thread sleeps before the rest of what is due. While
# it plans, the event loop stands still for want of the lock or of the interpreter; and runs that end before others are
# planned leave Python's garbage collector, for which everything stands still, little to look at.
PER_TICK = 10
REST = 0.0005


class Scheduler:
    """
    Runs tasks when they are due. One thread, one heap, one timer.

    Parameters
    ----------
    clock : Clock
    store : Store
    executors : dict
        By name: ``"loop"``, ``"thread"``, ``"handler"`` for the functions of ``ps.on``, and, for a store that
        may block, ``"store"`` with one thread and ``"publisher"``.
    handlers : dict
        By event, those of ``ps.on``.
    changed : callable
        ``changed(task)`` after each change of a task's status, on any thread, outside of locks.
    exhausted : callable
        ``exhausted(task)`` when a task that is to be forgotten has no date left.
    fatal : callable
        ``fatal(task, run)`` when a first run that the server waits for has failed.
    """

    def __init__(
        self,
        clock: Clock,
        store: Store,
        executors: dict[str, Executor],
        handlers: dict[str, list[Handler]] | None = None,
        changed: Callable[[Task[Any]], object] = lambda task: None,
        exhausted: Callable[[Task[Any]], object] = lambda task: None,
        fatal: Callable[[Task[Any], Run], object] = lambda task, run: None,
        zone: tzinfo = UTC,
    ):
        self.clock = clock
        self.store = store
        self.executors = executors
        self.handlers = handlers or {event: [] for event in EVENTS}
        self.changed = changed
        self.exhausted = exhausted
        self.fatal = fatal
        # In which people are told times, where a schedule has no zone of its own.
        self.zone = zone
        # What a memoized function is asked in a worker process; the layer above knows these functions.
        self.compute: Callable[[str, Any, Any], Any]
        self.submit: Callable[[Run, str, Any, Any], Run]
        self.find: Callable[[Run, str], Run]
        self.states: dict[str, TaskState] = {}
        self.timers = Timers(clock)
        self.lock = threading.RLock()
        self.begun = self.stopping = False
        # Whether values that other processes store come by themselves, and need not be looked for.
        self._told = not store.blocking
        # From the beginning of a stop to its end: whoever asks for a run then is late.
        self._closing = False
        # Names that are used again are other tasks, and no late comers of this server.
        self._discarded: set[str] = set()
        self.waves = Waves(self.states, self.lock)
        self.hooks = Hooks(self)
        self.execution = Execution(self)
        self.follower = Follower(self)
        self.outbox = Outbox(self, self.follower.follow)
        self.slots = Slots(self)
        self.locked = Locked(self.lock, self.waves, self._released, lambda task: self.changed(task))
        self._bell = Bell()
        self._asleep_until = float("inf")
        # The thread that serves now; another one that finds itself replaced goes.
        self._serving: threading.Thread | None = None
        store.subscribe(self._stored, self.outbox.noticed)

    # ------------------------------------------------------------ lifecycle

    def start(self) -> None:
        """Start the service thread: timeouts and retries work, no clock decides yet. Idempotent."""
        self.store.listen()
        with self.lock:
            if self._serving is None and not self._closing:
                self.stopping = False
                self.outbox.reopen()
                self._serving = threading.Thread(target=self._serve, name="panel-schedule", daemon=True)
                Context().run(self._serving.start)
                self._listening()

    def begin(self) -> None:
        """Start the clocks: first runs, then slots. Idempotent."""
        self.start()
        with self.locked:
            if self._closing:
                return
            if not self.begun:
                self.begun, self.stopping = True, False
                self._listening()
                self.slots.enter(self.states.values())

    def _listening(self) -> None:
        """From now on values of other processes come by themselves."""
        self._told = True
        for state in self.states.values():
            state.task.become(plain=state.removed)

    def stop(self, grace: float, still: Callable[[], object] = lambda: None) -> None:
        """
        No new runs; those in flight get `grace` seconds, async ones are cancelled. Idempotent.

        `still` is called when nothing runs any more, and the store is still open.
        """
        with self.locked:
            self._serving, self.begun, self.stopping, self._closing = None, False, True, True
            for state in self.states.values():
                self.timers.cancel(state.slot_timer)
                state.next = None
                self.slots.resign(state)
                if state.queued is not None:
                    self.execution.cancel(state, state.queued, STOPS)
                if state.run is not None and state.run.state is RunState.QUEUED:
                    self.execution.cancel(state, state.run, STOPS)
        self._bell.ring()
        deadline = self.clock.monotonic() + grace
        for name, executor in self.executors.items():
            if name not in STORING:
                executor.stop(max(0.0, deadline - self.clock.monotonic()))
        with self.locked:
            for state in self.states.values():
                if state.run is not None:
                    self.execution.abandon(state, state.run)
        still()
        self.outbox.drain(LAST_WRITES)
        self.store.close()
        self._closing = False

    def defer(self, call: Callable[[], object]) -> None:
        """Call it once the lock is free: what may run a stranger's code."""
        self.locked.deferred.append(call)

    def _released(self) -> None:
        """The lock is free: wake the service thread if it would oversleep."""
        if self.timers.earliest < self._asleep_until:
            self._asleep_until = 0.0
            self._bell.ring()

    def tick(self) -> float:
        """Do all that is due, and return how many seconds there are until the next look."""
        with self.locked:
            self._asleep_until = 0.0
            now, monotonic = self.clock.now(), self.clock.monotonic()
            self.slots.look(now, monotonic)
            self.timers.fire(monotonic, PER_TICK)
            self.slots.plan(now)
            self._asleep_until = self.timers.earliest
            return self.timers.delay()

    def _serve(self) -> None:
        while self._serving is threading.current_thread():
            try:
                delay = self.tick()
            except BaseException:  # of its own thread, which serves everybody
                log.exception("The scheduler failed at something that is a bug of panel-schedule; it goes on.")
                delay = 1.0
            if self._serving is threading.current_thread():
                self._bell.wait(delay or REST)

    # ------------------------------------------------------------ tasks

    def add(self, task: Task[Any], gated: bool = True) -> None:
        """Take a task in; it runs as soon as the clocks do."""
        state = TaskState(task, *self._executor(task), gated and task.policy.first_run is FirstRun.WAIT)
        if task.policy.isolate:
            self.store.isolate(task.name)
        if (entry := self.store.entry(TASK, task.name)) is not None:
            task.take(entry)
        task.become(plain=False, told=self._told)
        with self.locked:
            if (former := self.states.get(task.name)) is not None:
                self.discard(former.task)
            self.states[task.name] = state
            self.waves.follow(state, state.upstream)
            if self.begun:
                self.slots.enter([state], late=True)
            elif task.name in self._discarded:
                plan = Plan(task.name, task.policy.trigger, self.clock.now())
                self.outbox.ask([state], partial(self.store.enroll, [plan], late=True))

    def redefine(self, task: Task[Any]) -> None:
        """The task got another function or policy: keep its value and history, run it anew."""
        with self.locked:
            state = self.states[task.name]
            state.executor, state.on_loop, state.abroad = self._executor(task)
            state.is_async, state.reads, state.depends = is_async(task.function), (), None
            state.removed = state.gated = False
            self.hooks.failures.ended(("task", task.name))
            state.trigger = state.base = task.policy.trigger
            state.override = None
            self.waves.follow(state, state.upstream)
            if self.begun:
                self.slots.enter([state], again=True)

    def discard(self, task: Task[Any]) -> None:
        """Forget a task and what is stored of it. A run in flight ends by itself, unseen."""
        with self.locked:
            state = self.states.get(task.name)
            if state is not None and state.task is task:
                self._let_go(state)
                # What a run of it publishes now comes too late, and the next task of its name need not wait for it.
                self._discarded.add(task.name)
                self.outbox.ask([state], partial(self.store.forget, task.name))

    def drop(self, task: Task[Any]) -> None:
        """Forget a task in this process; what is stored of it stays."""
        with self.locked:
            state = self.states.get(task.name)
            if state is not None and state.task is task:
                self._let_go(state)

    def lose(self, state: TaskState) -> None:
        """Another process has forgotten the task."""
        self._let_go(state)
        self.defer(partial(self.exhausted, state.task))

    def _let_go(self, state: TaskState) -> None:
        self.remove(state.task, told=True)
        self.waves.leave(state)
        del self.states[state.task.name]
        self.hooks.failures.ended(("task", state.task.name))

    def _state(self, task: Task[Any]) -> TaskState:
        state = self.states.get(task.name)
        if state is None or state.task is not task:
            raise RegistrationError(f"Task {task.name!r} was cancelled; schedule its function again.")
        return state

    def remove(self, task: Task[Any], told: bool = False) -> None:
        with self.locked:
            state = self._state(task)
            if not told:
                self.outbox.ask([state], partial(self.store.amend, task.name, removed=True))
            first, state.first = state.first, None
            if first is not None:
                error = NotReady(f"Task {task.name!r}: its schedule was removed before it had a value.")
                self.defer(lambda: first.set_exception(error))
            state.removed, state.next, state.stale = True, None, False
            self.slots.resign(state)
            task.become(plain=True, told=self._told)
            for timer in (state.slot_timer, state.stale_timer):
                self.timers.cancel(timer)
            for run in (state.queued, state.run):
                if run is not None and run.state is RunState.QUEUED:
                    self.execution.cancel(state, run, "cancelled: the schedule was removed")
            self.touch(state)

    def exhaust(self, task: Task[Any]) -> None:
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
        with self.locked:
            state = self._state(task)
            state.paused = paused
            self.outbox.ask([state], partial(self._amend, state, paused=paused))
            self.touch(state)

    def reschedule(self, task: Task[Any], trigger: Trigger) -> None:
        self.look(task)
        with self.locked:
            state = self._state(task)
            if state.removed:
                raise RegistrationError(f"Task {task.name!r}: its schedule was removed; define it again instead.")
            if self.store.blocking and isinstance(trigger, Computed):
                raise RegistrationError(
                    f"Task {task.name!r}: a function that works out the dates is known to this process alone, and the "
                    "new schedule is for all that share the store. Give dates, a period or a cron expression."
                )
            now = self.clock.now()
            slot = trigger.next_after(now)  # may be a function of the user's, and fail
            state.override = state.trigger = trigger
            state.depends = None
            self.outbox.ask([state], partial(self._amend, state, reschedule=trigger, now=now))
            self.waves.follow(state, state.upstream)
            if self.begun:
                self.slots.arm(state, slot)
            self.touch(state)

    def refresh(self, task: Task[Any]) -> Run:
        self.start()
        self.look(task)
        with self.locked:
            state = self._state(task)
            if self._closing:
                return self.execution.refuse(state)
            if state.removed:
                raise RegistrationError(
                    f"Task {task.name!r}: its schedule was removed, so there is nothing to refresh; call it instead."
                )
            if state.run is not None and not state.run.state.final:
                return state.run
            if state.queued is not None or state.remote is not None:
                return state.queued or state.remote  # type: ignore[return-value]
            run = self.execution.new(state, "", None)
            run.key = f"request {run.id}"
            self.execution.launch(state, run)
            return run

    def answer(self, run: Run, question: str, *args: Any) -> Any:
        """Answer what a function asks in its worker process."""
        return answer(self, run, question, *args)

    def await_turn(self, task: Task[Any], run: Run) -> None:
        reader, upstream = self.states.get(run.task), self.states.get(task.name)
        if reader is not None and upstream is not None:
            self.waves.wait(reader, run, upstream)

    def first_value(self, task: Task[Any]) -> Future[Entry]:
        """A future of the first value's entry, shared by all who wait."""
        with self.lock:
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
        with self.lock:
            empty = [state for state in self.states.values() if state.gated and state.task.known is None]
            return [state for state in empty if self._comes(state)]

    def serve_without(self, task: Task[Any], run: Run) -> None:
        """The first run that pages wait for has failed: they wait no longer, and say so."""
        with self.locked:
            state = self.states.get(task.name)
            if state is not None and state.task is task:
                state.gated = False
                error, state.withheld = state.withheld, None
                if error is not None:
                    self.hooks.complain(state, run, error)

    def promise(self, task: Task[Any]) -> tuple[datetime, datetime | None]:
        """The time, and until when the value is what its task has promised; None where nothing says so."""
        now = self.clock.now()
        with self.lock:
            state, entry = self.states.get(task.name), task.known
            if state is None or state.task is not task or entry is None or state.paused or state.removed:
                return now, None
            if (limit := task.policy.stale_after) is not None:
                return now, entry.updated_at + limit + ALLOWANCE
            if state.promised[0] is not entry or state.promised[1] is not state.trigger:
                state.promised = entry, state.trigger, second_slot(state.trigger, entry.wave or entry.updated_at)
            return now, state.promised[2]

    def watch(self, task: Task[Any], viewers: int) -> None:
        """Count `viewers` more, or fewer. The first viewer of a stale value of an idle task refreshes it."""
        with self.locked:
            state = self.states.get(task.name)
            if state is None or state.task is not task:
                return
            state.viewers += viewers
            if task.policy.when_idle is not WhenIdle.SKIP:
                return
            self.outbox.ask([state], partial(self.store.watch, task.name, state.viewers))
            welcome = viewers > 0 and state.viewers == viewers and not state.elsewhere
            outdated = state.stale or (state.missed > 0 and state.run is None)
            if welcome and outdated and self.begun and not state.paused and not state.removed:
                self.refresh(task)

    def look(self, task: Task[Any]) -> Run | None:
        """
        Where no clocks run, in a script: take in what the store says of a task, without beginning anything.

        Returns
        -------
        Run or None
            The one that another process has under way; with clocks it is known without looking.
        """
        with self.lock:
            state = self.states.get(task.name)
            if state is None or state.task is not task:
                return None
            if self.begun or self.stopping or state.writing or not self.store.blocking:
                # What is still to be written is not in the store, but here.
                return state.remote
        row = self.store.row(task.name, task.policy.trigger.fingerprint)
        with self.locked:
            if row is None or self.begun or state.writing or self.states.get(task.name) is not state:
                return state.remote
            return self.follower.look(state, row)

    def status(self, task: Task[Any]) -> TaskStatus:
        elsewhere = self.look(task)
        with self.lock:
            state = self.states.get(task.name)
            if state is None or state.task is not task:
                state = TaskState(task, *self._executor(task), gated=False)
                state.removed = True
            return state.status(self.zone, elsewhere)

    def history(self, task: Task[Any]) -> list[RunRecord]:
        return self.store.history(task.name)

    def touch(self, state: TaskState) -> None:
        """The task's status has changed: tell those who show it."""
        if state.viewers:
            self.locked.touched.add(state.task)

    def _stored(self, space: str, name: str, entry: Entry | None) -> None:
        state = self.states.get(name) if space == TASK else None
        if state is None or entry is None:
            return
        task = state.task
        with self.locked:
            known = task.known
            if known is not None and (known.version, known.final) >= (entry.version, entry.final):
                return
            task.take(entry)
            first, state.first = state.first, None
            if first is not None:
                self.defer(partial(first.set_result, task.readable(entry)))
            if state.viewers:
                self.locked.touched.add(task)
            if state.claim is None or state.claim.run_id != entry.run_id:
                self._came_from_elsewhere(state, entry)

    def _came_from_elsewhere(self, state: TaskState, entry: Entry) -> None:
        """Another process has published it."""
        state.missed = 0
        if not self.begun:  # in a script: it judges nobody's runs but its own
            return
        self.hooks.judge(state)
        if entry.final:
            # Each process tries to follow it: the one that published it may have died since.
            for dependent in state.dependents:
                self.execution.trigger(dependent, entry.wave or entry.updated_at)

    def _executor(self, task: Task[Any]) -> tuple[Executor, bool, bool]:
        name = task.policy.executor or ("loop" if is_async(task.function) else "thread")
        return self.executors[name], name == "loop", name == "process"

    def _comes(self, state: TaskState) -> bool:
        """Whether a first run is on its way: not where it waits for a task that skips its own."""
        if state.task.policy.first_run is FirstRun.SKIP or state.removed or state.paused:
            return False
        if state.clockless:
            upstream = [(up, self.states.get(up.name)) for up in state.upstream]
            return any(up.known or (at is not None and not at.failed and self._comes(at)) for up, at in upstream)
        return True

    def _amend(self, state: TaskState, **changes: Any) -> None:
        name = state.task.name
        if self.store.row(name) is None:  # in a script, where no clock has enrolled it
            self.store.enroll([Plan(name, state.task.policy.trigger, self.clock.now())])
        self.store.amend(name, **changes)

    def arm_anew(self, state: TaskState) -> None:
        """It has got another schedule: its slots count from now."""
        if self.begun and not state.removed:
            self.slots.advance(state, self.clock.now())
