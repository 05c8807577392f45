"""One alert in one process: it hears of tasks, and sends what is due, if no other process does."""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

from ..coordination import alerts
from ..coordination.alerts import SPACE, AlertState, Condition, Event, Notice, Terms, Trouble
from ..coordination.record import Record
from ..engine.service import Service
from ..engine.timers import Timer
from ..errors import ScheduleError
from ..functions.registry import Named
from ..functions.run import Run
from ..functions.task import Task
from ..serialize.errors import bare, first_line
from ..stores.hurry import leaving
from ..stores.records import Apply, Change, Tell
from .channels import Channel, Function
from .messages import compose

log = logging.getLogger("panel_schedule")

# How often, in seconds, it is looked whether a task is late, and after how many what could not be done is tried again.
LOOK, AGAIN = 60.0, 10.0

# So many events wait at most for a store that cannot be reached.
MOST = 10_000

# What is heard, by what it means here.
_HEARD = {"failed": "failed", "succeeded": "succeeded", "recovered": "succeeded"}


class Policy(NamedTuple):
    """
    What an author has asked for.

    Attributes
    ----------
    channel : Channel
    terms : Terms
    tasks : frozenset of str or None
        None: all of them.
    """

    channel: Channel
    terms: Terms
    tasks: frozenset[str] | None

    @property
    def name(self) -> str:
        """The same in all processes, and after a restart."""
        watched = "*" if self.tasks is None else sorted(self.tasks)
        told = repr((self.channel.key, sorted(self.terms.on), watched))
        return sha256(told.encode("utf-8", "backslashreplace")).hexdigest()[:20]


class Alert:
    """
    What it works at is done in its own executor, one thing after another: no run waits for it.

    Parameters
    ----------
    service : Service
    policy : Policy
    conditions : callable
        How the tasks are, by name.
    namespace : str
    """

    def __init__(
        self, service: Service, policy: Policy, conditions: Callable[[], dict[str, Condition]], namespace: str
    ):
        self.policy = policy
        self._service = service
        self._conditions = conditions
        self._namespace = namespace
        self._name = policy.name
        self._records = service.store.records
        self._record: Record | None = None
        # What has happened, and is not in the store yet: event, task and run.
        self._events: deque[tuple[str, Task[Any], Run]] = deque(maxlen=MOST)
        # What came of a message, which the store does not know yet.
        self._outcome: Apply | None = None
        self._future: Future[Any] | None = None
        self._wanted = self._ended = False
        self._timer: Timer | None = None
        self._look_timer: Timer | None = None
        self._trouble = ""
        service.sources.append(self)
        service.hooks.listeners.append(self._heard)
        self._records.subscribe(SPACE, self._changed, self._restore)

    def begin(self) -> None:
        """From now on it looks after the tasks by itself, and goes on with what was left. Idempotent."""
        with self._service.locked:
            self._ended = False
            self._ring()

    def end(self) -> None:
        """It is not wanted any more."""
        with self._service.locked:
            self.stop()
            if self._heard in self._service.hooks.listeners:
                self._service.hooks.listeners.remove(self._heard)
                self._service.sources.remove(self)

    def stop(self) -> None:
        self._ended = True
        self._service.timers.cancel(self._timer)
        self._service.timers.cancel(self._look_timer)
        self._look_timer = None

    def release(self) -> None:
        """What was heard is for other processes, or the next server."""
        try:
            with leaving():
                self._settle()
        except ScheduleError as error:
            log.error("%s: what has happened last is not in the store: %s", self._what, error)

    @property
    def _what(self) -> str:
        return f"The alert to {self.policy.channel.name}"

    # ------------------------------------------------------------ hearing

    def _heard(self, event: str, task: Named, run: Run) -> None:
        """Take note. Under the lock."""
        if self._ended or not isinstance(task, Task) or not self._watches(task.name):
            return
        if event == "succeeded" and not self._events and task.name not in self._state.troubles:
            return  # as it nearly always is
        if event in _HEARD and "alive" not in self.policy.terms.on:
            self._events.append((_HEARD[event], task, run))
        if event != "skipped":
            self._ring()

    @property
    def _speaks(self) -> bool:
        """A script leaves it to the servers that share its store: it may end, or not reach anybody."""
        return self._service.begun or not self._records.blocking

    def _watches(self, task: str) -> bool:
        return self.policy.tasks is None or task in self.policy.tasks

    @property
    def _state(self) -> AlertState:
        record = self._record
        return AlertState() if record is None else record.state

    def _changed(self, record: Record) -> None:
        if record.name == self._name and not self._ended:
            with self._service.locked:
                self._take_in(record)
                if self._future is None:
                    self._arm()

    def _take_in(self, record: Record) -> None:
        with self._service.locked:
            if self._record is None or self._record.revision <= record.revision:
                self._record = record

    def _restore(self, since: int) -> None:
        """The store has lost it, and counts anew."""
        if (held := self._record) is not None:
            self._records.write([Change(SPACE, self._name, partial(alerts.restore, held=held))])
            self._record = self._records.read(SPACE, self._name)

    # ------------------------------------------------------------ working

    def _ring(self, _: object = None) -> None:
        """There may be something to do. Under the lock."""
        self._wanted = True
        if self._future is None and not self._ended:
            self._wanted = False
            executor = self._service.executors["alert"]
            self._service.locked.submitted.add(executor)
            self._future = executor.submit(self._work, self._what)
            self._future.add_done_callback(self._worked)

    def _worked(self, future: Future[Any]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            log.error("%s failed at something: %s", self._what, first_line(error), exc_info=bare(error))
        with self._service.locked:
            self._future = None
            if self._wanted and error is None:
                self._ring()
            elif not self._ended:
                self._arm(AGAIN if error is not None or self._trouble else None)

    def _arm(self, seconds: float | None = None) -> None:
        """Work again when there is something to say, or to look at. Under the lock."""
        timers, record = self._service.timers, self._record
        timers.cancel(self._timer)
        if self._ended or not (self._speaks or seconds):
            return
        if seconds is None and record is not None and record.owner not in (None, self._records.me):
            seconds = AGAIN  # another process is at it, and may die
        terms, state = self.policy.terms, self._state
        at = alerts.due(state, terms, self._conditions() if state.troubles else ())
        if seconds is None and at is not None and at > self._service.clock.now():
            self._timer = timers.at(at, self._ring, None)
        elif seconds is not None or at is not None:  # it was looked at just now, and cannot be said yet
            self._timer = timers.after(seconds or LOOK, self._ring, None)
        if "stale" in terms.on and self._service.begun and self._look_timer is None:
            self._look_timer = timers.after(LOOK, self._look_again, None)

    def _look_again(self, _: object) -> None:
        self._look_timer = None
        self._ring()

    def _work(self) -> None:
        """In the executor."""
        try:
            self._settle()
            if self._service.begun:
                self._look()
            notice = self._take()
            if notice is not None:
                self._send(notice)
                self._settle()
            self._trouble = ""
        except ScheduleError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.error("%s waits for the store: %s", self._what, error)

    def _settle(self) -> None:
        """Write down what has come of a message, and what has happened."""
        if self._outcome is not None:
            self._write(self._outcome)
            self._outcome = None
        with self._service.locked:
            events = list(self._events)
        if events:
            self._hear([_event(*each, self._service) for each in events])
            with self._service.locked:
                for each in events:
                    if self._events and self._events[0] is each:
                        self._events.popleft()
        elif self._record is None:
            record = self._records.read(SPACE, self._name)
            if record is not None:
                self._take_in(record)

    def _hear(self, events: list[Event]) -> None:
        now = self._service.clock.now()
        self._write(partial(alerts.hear, name=self._name, events=events, terms=self.policy.terms, now=now))

    def _write(self, apply: Apply, tell: Tell = Tell.SOON) -> bool:
        """Whether it was done."""
        [result] = self._records.write([Change(SPACE, self._name, apply)], tell=tell)
        if result.record is not None:
            self._take_in(result.record)
        return result.record is not None

    def _look(self) -> None:
        """Hear of tasks that are late."""
        if "stale" not in self.policy.terms.on:
            return
        troubles, now = alerts.troubles_of(self._state), self._service.clock.now()
        late = []
        for task, condition in self._watched().items():
            known = troubles.get(task, Trouble())
            # A slot whose run has failed is no slot without a run.
            if not known.late and (condition.overdue or condition.missed >= known.failures + 2):
                late.append(Event("stale", task, now, updated_at=condition.updated_at))
        if late:
            self._hear(late)

    def _watched(self) -> dict[str, Condition]:
        return {task: condition for task, condition in self._conditions().items() if self._watches(task)}

    def _take(self) -> Notice | None:
        """What this process is to say now."""
        terms, now, conditions = self.policy.terms, self._service.clock.now(), self._watched()
        if "alive" in terms.on and not (
            self._service.begun and not any(condition.stale for condition in conditions.values())
        ):
            return None
        at = alerts.due(self._state, terms, conditions)
        if self._ended or not self._speaks or at is None or at > now:
            return None
        me = self._records.me
        take = partial(
            alerts.take, name=self._name, me=me, alive=self._records.alive, terms=terms, known=frozenset(conditions),
            now=now,
        )  # fmt: skip
        if not self._write(take, Tell.NOW) or self._record is None or self._record.owner != me:
            return None
        return alerts.notice_of(self._state, terms, conditions, now)

    def _send(self, notice: Notice) -> None:
        clock, terms, channel = self._service.clock, self.policy.terms, self.policy.channel
        message = compose(notice, terms, clock.now(), socket.gethostname(), self._namespace)
        step = alerts.sent
        try:
            channel.send(message)
        except BaseException as error:  # of a stranger's function
            step = alerts.failed
            left = len(alerts.PAUSES) + 1 - self._state.attempts
            then = "it is tried again" if left > 0 else "it is given up"
            trace = bare(error) if isinstance(channel, Function) else None
            log.error("%s was not sent, %s: %s", self._what, then, channel.explain(error), exc_info=trace)
        self._outcome = partial(step, me=self._records.me, notice=notice, terms=terms, now=clock.now())


def _event(what: str, task: Task[Any], run: Run, service: Service) -> Event:
    entry = task.known
    updated_at = entry.updated_at if entry is not None else None
    error = first_line(run.error) if what == "failed" else ""
    return Event(what, task.name, run.finished_at or service.clock.now(), run.id, error, updated_at)
