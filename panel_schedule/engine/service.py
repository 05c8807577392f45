"""What tasks, jobs and memoized functions share: one lock, one timer, one thread that serves them, and the store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextvars import Context
from datetime import datetime
from typing import Any, Protocol

from ..clock import Clock
from ..coordination.tasks import USER
from ..errors import ScheduleError
from ..executors.base import Executor
from ..functions.run import Run, RunRecord
from ..stores.base import Store
from .counts import Counts
from .hooks import EVENTS, Handler, Hooks
from .limits import Limiter
from .lock import Bell, Locked
from .outbox import REQUESTS, SUBJECTS, Outbox
from .timers import Timers

log = logging.getLogger("panel_schedule")

# The executors that serve the store; they end last.
STORING = (SUBJECTS, REQUESTS, "publisher")

# Seconds that the store gets at the end to take what is still to be written.
LAST_WRITES = 2.0

# How many timers go off in one tick; and of what is due beyond that, how many in each of the next, and after how many
# seconds of sleep. While the thread plans, the event loop stands still for want of the lock or of the interpreter; and
# runs that end before others are planned leave Python's garbage collector, for which everything stands still, little to
# look at.
AT_ONCE = 100
IN_TURN = 10
REST = 0.0005

Answer = Callable[[Run, str, Any], Any]


class Source(Protocol):
    """Of what asks for runs: tasks, jobs, or answers."""

    def stop(self) -> None:
        """Nothing new begins."""
        ...

    def release(self) -> None:
        """Nothing runs here any more: what has not ended is left to other processes, or ends."""
        ...


class Service:
    """
    One lock, one heap of timers, one thread.

    Parameters
    ----------
    clock : Clock
    store : Store
    executors : dict
        By the names that authors use, ``"loop"``, ``"thread"``, ``"process"``, and, where a kind of functions has
        places of its own, with the kind before, ``"job-thread"``; ``"handler"`` for the functions of ``ps.on``; and for
        a store that may block ``"store"`` and ``"requests"``, with one thread each, and ``"publisher"``.
    handlers : dict
        By event, those of ``ps.on``.
    changed : callable
        ``changed(task)`` after each change of a task's status, on any thread, outside of locks.
    counts : Counts, optional
        Those of this process, to go on with.
    groups : mapping of str to int, optional
        By name, how many runs of each go at the same time.

    Attributes
    ----------
    begun : bool
        Whether the clocks run. In a script they do not.
    stopping : bool
        Whether nothing new begins, as the server stops or has stopped.
    closing : bool
        From the beginning of a stop to its end: who asks for a run then is late.
    sources : list of Source
    readers : list of callable
        ``reader(space, name, run)`` once for each new line of a history, in the process that has written it: at once,
        on any thread, so they only take note.
    questions : dict
        By name what functions ask in their worker processes, see `answer`.
    look : callable
        ``look(now, monotonic)`` at each tick: how the clocks stand to each other.
    plan : callable
        ``plan(now)`` at each tick, once the timers have gone off.
    listening : callable
        When values of other processes begin to come by themselves.
    """

    def __init__(
        self,
        clock: Clock,
        store: Store,
        executors: dict[str, Executor],
        handlers: dict[str, list[Handler]] | None = None,
        changed: Callable[[Any], object] = lambda task: None,
        counts: Counts | None = None,
        groups: Mapping[str, int] | None = None,
    ):
        self.clock = clock
        self.store = store
        self.executors = executors
        self.counts = counts or Counts()
        self.readers = [self.counts.logged]
        store.logged = self._logged
        self.timers = Timers(clock)
        self.lock = threading.RLock()
        self.locked = Locked(self.lock, self._released, changed)
        self.outbox = Outbox(clock, store, executors, self.locked)
        self.limiter = Limiter(store, self.timers, self.outbox, self.locked, groups or {})
        handlers = handlers or {event: [] for event in EVENTS}
        self.hooks = Hooks(clock, executors, handlers, self.timers, self.locked)
        self.begun = self.stopping = self.closing = False
        self.sources: list[Source] = []
        self.look: Callable[[datetime, float], object] = self.timers.look
        self.plan: Callable[[datetime], object] = lambda now: None
        self.listening: Callable[[], object] = lambda: None
        self.questions: dict[str, Answer] = {
            "get": self._get,
            "set": lambda run, name, value: store.values.publish(USER, name, value, now=clock.now()) and None,
            "delete": lambda run, name, value: store.values.delete(USER, name),
            "names": lambda run, name, value: list(store.values.names(USER)),
        }
        self._bell = Bell()
        self._asleep_until = float("inf")
        # Whether the last tick has left something that was due.
        self._more = False
        # The thread that serves now; another one that finds itself replaced goes.
        self._serving: threading.Thread | None = None

    # ------------------------------------------------------------ lifecycle

    def start(self) -> None:
        """Start the thread: timeouts and retries work, no clock decides yet. Idempotent."""
        self.store.listen()
        with self.lock:
            if self._serving is None and not self.closing:
                self.stopping = self.hooks.stopping = False
                self.outbox.reopen()
                self._serving = threading.Thread(target=self._serve, name="panel-schedule", daemon=True)
                Context().run(self._serving.start)
                self.listening()

    def stop(self, grace: float) -> None:
        """No new runs; those in flight get `grace` seconds, async ones are cancelled. Idempotent."""
        with self.locked:
            self._serving, self.begun, self.stopping, self.closing = None, False, True, True
            self.hooks.stopping = True
            for source in self.sources:
                source.stop()
        self._bell.ring()
        deadline = self.clock.monotonic() + grace
        for name, executor in self.executors.items():
            if name not in STORING:
                executor.stop(max(0.0, deadline - self.clock.monotonic()))
        for source in self.sources:
            source.release()
        self.outbox.drain(LAST_WRITES)
        self.store.close()
        self.closing = False

    # ------------------------------------------------------------ the thread

    def tick(self) -> float:
        """Do all that is due, and return how many seconds there are until the next look."""
        with self.locked:
            self._asleep_until = 0.0
            now, monotonic = self.clock.now(), self.clock.monotonic()
            self.look(now, monotonic)
            self.timers.fire(monotonic, IN_TURN if self._more else AT_ONCE)
            self.plan(now)
            self._asleep_until = self.timers.earliest
            delay = self.timers.delay()
            self._more = delay == 0.0
            return delay

    def turns(self, timeout: float) -> bool:
        """Whether its thread goes round within so many seconds, or need not. Waits for that, on a thread that may."""
        if self._serving is None:
            return True
        turned = threading.Event()
        if not self.lock.acquire(timeout=timeout):
            return False
        self.lock.release()
        with self.locked:
            self.timers.after(0.0, lambda _: turned.set(), None)
        return turned.wait(timeout)

    def _serve(self) -> None:
        while self._serving is threading.current_thread():
            try:
                delay = self.tick()
            except BaseException:  # of its own thread, which serves everybody
                log.exception("The scheduler failed at something that is a bug of panel-schedule; it goes on.")
                delay = 1.0
            if self._serving is threading.current_thread():
                self._bell.wait(delay or REST)

    def _released(self) -> None:
        """The lock is free: wake the thread if it would oversleep."""
        if self.timers.earliest < self._asleep_until:
            self._asleep_until = 0.0
            self._bell.ring()

    def executor(self, kind: str, where: str) -> Executor:
        """
        Where functions of a kind run.

        Parameters
        ----------
        kind : {"task", "job", "memo"}
        where : str
            As their authors name it.
        """
        return self.executors.get(f"{kind}-{where}") or self.executors[where]

    def defer(self, call: Callable[[], object]) -> None:
        """Call it once the lock is free: what may run a stranger's code."""
        self.locked.deferred.append(call)

    # ------------------------------------------------------------ what functions in worker processes ask

    def answer(self, run: Run, question: str, name: str = "", value: Any = None) -> Any:
        """
        Answer a question that the function of `run` asks in its worker process; on a thread that may wait.

        Raises
        ------
        KeyError
            When nothing is stored under that name.
        """
        if (ask := self.questions.get(question)) is None:
            raise ScheduleError(f"A worker process asks {question!r}, to which there is no answer.")
        return ask(run, name, value)

    def _logged(self, space: str, name: str, run: RunRecord) -> None:
        for reader in list(self.readers):
            reader(space, name, run)

    def _get(self, run: Run, name: str, value: Any) -> Any:
        if (entry := self.store.values.entry(USER, name)) is None:
            raise KeyError(name)
        return entry.shared
