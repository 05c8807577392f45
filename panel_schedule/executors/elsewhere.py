"""
Functions in the workers of another program, as Celery.

The store is the truth. A call is a record in it, which a worker claims once for all; the other program only wakes
workers. So a message that comes twice, late, or not at all costs no call and makes none twice.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

from ..clock import Clock
from ..coordination.record import Record
from ..coordination.remote import GONE
from ..errors import RunCancelled, RunCrashed, ScheduleError, StoreError
from ..functions.run import RunState, _current, new_id
from . import logs
from .base import Load, WorkerLost
from .calls import LOG, Calls
from .processes import GRACE, SHORTLY, RemoteCall
from .threads import ThreadExecutor
from .wire import Inline

log = logging.getLogger("panel_schedule")

# How many calls are sent, or have their results read, at once: on threads, as both may wait for the store.
CARRIERS = 8

# How often, in seconds, it is looked what is to be done about calls of which nothing is heard.
LOOK = 1.0

# Seconds until a call that no worker has claimed is sent again, which doubles each time up to the most.
RESEND, MOST_PATIENT = 5.0, 300.0

# Seconds until what could not be sent is tried again.
AGAIN = 1.0

# A cancelled call has its grace in the worker; so much longer, and it is killed from here.
INSIST = GRACE + 1.0

# How often, in seconds, calls are looked for that nobody is there for any more.
BURY = 60.0


class RemoteFuture(Future[Any]):
    """
    A call that is made elsewhere; its ``cancel()`` also ends one that runs. As a future it runs once it is handed over.

    Attributes
    ----------
    name : str
        Of its record; ``""`` before it has one.
    begun, worker : bool, str
        Whether a worker has claimed it, and which.
    news : Record or None
        What was heard of it, and is still to be taken in; by one thread at a time, if `busy`.
    revision : int
        Of what was taken in last.
    """

    def __init__(self, call: RemoteCall, stop: Callable[[RemoteFuture], object]):
        super().__init__()
        self.call = call
        self.name = self.worker = ""
        self.data: Any = None
        self.begun = self.busy = self.killable = self.sent = False
        self.news: Record | None = None
        self.revision = 0
        self.percent, self.message = -1, ""
        # The number of the last message that was taken in, and of which the worker knows that; why it was refused.
        self.heard = self.acknowledged = 0
        self.refused: BaseException | None = None
        # When it is sent again, and after how many seconds once more; since when it is to end.
        self.due, self.patience = 0.0, RESEND
        self.stopped_at: float | None = None
        # What home has raised, which ends it.
        self.refusal: BaseException | None = None
        self._stop = stop

    def cancel(self) -> bool:
        if super().cancel():
            return True
        self._stop(self)
        return False


class RemoteExecutor(ABC):
    """
    Any number of bodies at once, each of which waits for a place in a worker.

    Parameters
    ----------
    calls : Calls
    clock : Clock
    """

    def __init__(self, calls: Calls, clock: Clock):
        self._calls, self._clock = calls, clock
        self._carriers = ThreadExecutor(CARRIERS)
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._hurried = False
        self._batch: list[RemoteFuture] = []
        self._pending: set[RemoteFuture] = set()
        self._known: dict[str, RemoteFuture] = {}
        # The newest that was heard of those that are perhaps adopted.
        self._adopting: dict[str, Record | None] = {}
        self._look = threading.Event()
        self._thread: threading.Thread | None = None
        self._trouble = ""
        # How many calls were claimed; whether it is asked whether workers are there, and was said that none is.
        self._claims = 0
        self._asking = self._deserted = False
        calls.subscribe(self._changed, self._lost)

    # ------------------------------------------------------------ what wakes the workers

    @abstractmethod
    def send(self, name: str) -> None:
        """
        Have a worker make the call of this name.

        Raises
        ------
        ScheduleError
            When that cannot be sent now; it is tried again.
        """

    @abstractmethod
    def kill(self, name: str) -> None:
        """End the worker process that makes the call, which does nothing else."""

    @abstractmethod
    def complaint(self) -> str:
        """What to say when no worker is there; ``""`` when one answers."""

    # ------------------------------------------------------------ what every executor does

    def submit(self, body: Callable[[], Any], name: str = "") -> Future[Any]:
        call = body if isinstance(body, RemoteCall) else RemoteCall(name or "A function", body)
        future = RemoteFuture(call, self._stop)
        with self._lock:
            self._pending.add(future)
            self._batch.append(future)
        return future

    def flush(self) -> None:
        if self._batch:
            with self._lock:
                batch, self._batch = self._batch, []
            self._start()
            for future in batch:
                self._carry(self._hand_over, future)

    def lend(self) -> AbstractContextManager[object]:
        return nullcontext()  # the places are the workers'

    def stop(self, grace: float) -> None:
        with self._lock:
            pending = list(self._pending)
        left = {future for future in pending if not Future.cancel(future)}
        for future in pending:
            if future not in left:
                self._forget(future)
            elif not future.begun:
                future.cancel()
        for patience in (grace, 2 * SHORTLY):
            with self._ended:
                self._ended.wait_for(lambda: self._hurried or left.isdisjoint(self._pending), timeout=patience)
            for future in left & self._pending:
                future.cancel()
        self._carriers.stop(SHORTLY)
        with self._lock:
            self._thread = None
        self._look.set()

    def hurry(self) -> None:
        self._hurried = True
        with self._ended:
            self._ended.notify_all()

    @property
    def hanging(self) -> tuple[str, ...]:
        now = self._clock.monotonic()
        with self._lock:
            late = [f.call.name for f in self._pending if f.stopped_at is not None and now > f.stopped_at + GRACE]
        return tuple(sorted(set(late)))

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    @property
    def load(self) -> Load:
        with self._lock:
            running = sum(future.begun for future in self._pending)
            return Load(running, len(self._pending) - running)

    @property
    def workers(self) -> list[tuple[str, str]]:
        """Those that make a call of this process."""
        with self._lock:
            return sorted((future.worker, future.call.name) for future in self._pending if future.worker)

    # ------------------------------------------------------------ a call goes out

    def _carry(self, body: Callable[[RemoteFuture], object], future: RemoteFuture) -> None:
        self._carriers.submit(partial(self._safely, body, future))
        self._carriers.flush()

    def _safely(self, body: Callable[[RemoteFuture], object], future: RemoteFuture) -> None:
        """What goes wrong with the store is tried again; what else goes wrong ends the call."""
        try:
            body(future)
        except StoreError as error:
            self._complain(str(error))
        except BaseException as error:
            self._end(future, error=error)

    def _hand_over(self, future: RemoteFuture) -> None:
        if not future.set_running_or_notify_cancel():
            self._forget(future)
            return
        call, run = future.call, future.call.run
        packed = call.packed()
        who = (call.name, "", None, 1) if run is None else (run.task, run.id, run.key, run.attempt)
        # Its span begins here, as the worker has to know it: with the time that it waits for one.
        trace = call.trace()
        future.data = ((*who, trace) if trace else who), packed.tobytes()  # without one as earlier releases have it
        packed.close()
        name = new_id() if run is None else f"{run.id}.{run.attempt}"
        if run is not None and run.attempt > 1 and self._adopts(future, f"{run.id}.{run.attempt - 1}"):
            return
        self._known[name] = future
        future.name, future.due = name, self._clock.monotonic() + AGAIN
        self._submit(future)

    def _adopts(self, future: RemoteFuture, name: str) -> bool:
        """Whether the process that has asked for it is dead, and a worker is still at it: then it goes on for this."""
        # What is heard of it meanwhile is this call's only if it is adopted: an earlier attempt may have died here.
        self._adopting[name] = None
        if (record := self._calls.adopt(name)) is None:
            del self._adopting[name]
            return False
        future.name, future.data, future.heard = name, None, record.state.heard
        future.acknowledged = future.heard
        self._known[name] = future
        self._changed(self._adopting.pop(name) or record)
        return True

    def _submit(self, future: RemoteFuture) -> None:
        mine = self._calls.submit(future.name, future.call.name, future.data)
        if not mine and not self._adopts(future, future.name):
            # A server that has had the run still lives, or its worker does, which is to end: this one's turn comes. If
            # the run is another process's by now, this one hears that as it hears it of any.
            future.due = self._clock.monotonic() + AGAIN
            if future.stopped_at is not None:
                self._end(future, error=future.refusal or _unbegun(future))
            else:
                self._complain(f"{future.call.name}: a worker is still at what an earlier server has called; it waits.")
            return
        future.data = None
        if future.stopped_at is not None:
            self._withdraw(future)
        elif not future.begun:
            self._send(future)

    def _send(self, future: RemoteFuture) -> None:
        try:
            self.send(future.name)
        except ScheduleError as error:
            future.due, future.sent = self._clock.monotonic() + AGAIN, False
            self._complain(str(error))
        else:
            future.sent = True
            future.due, future.patience = self._clock.monotonic() + future.patience, 2 * future.patience
            future.patience = min(future.patience, MOST_PATIENT)

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            log.error("%s", trouble)

    # ------------------------------------------------------------ what becomes of it

    def _changed(self, record: Record) -> None:
        """Of the store, on whatever thread."""
        if record.name in self._adopting:
            self._adopting[record.name] = record
            return
        if (future := self._known.get(record.name)) is None or record.state.home != self._calls.me:
            return
        with self._lock:
            if future.news is None or future.news.revision <= record.revision:
                future.news = record
            if future.busy:
                return
            future.busy = True
        self._carry(self._take_in, future)

    def _take_in(self, future: RemoteFuture) -> None:
        while True:
            with self._lock:
                record, future.news = future.news, None
                future.busy = record is not None and not future.done()
            if record is None or future.done():
                return
            try:
                self._hear(future, record)
            except BaseException:
                with self._lock:  # once more, when it is looked the next time
                    future.news, future.busy = future.news or record, False
                raise

    def _hear(self, future: RemoteFuture, record: Record) -> None:
        state = record.state
        if state.state is RunState.QUEUED:
            return
        context, run = contextvars.Context(), future.call.run
        context.run(_current.set, run)
        future.killable = state.killable
        if not future.begun:
            future.begun, self._deserted, self._trouble = True, False, ""
            future.worker = record.state.worker
            self._claims += 1
            if run is not None:
                run.worker = state.worker
            try:
                future.call.begin()
            except BaseException as error:  # the run has ended meanwhile
                self._refuse(future, error)
        if run is not None and (state.percent, state.message) != (future.percent, future.message):
            future.percent, future.message = state.percent, state.message
            context.run(run.report, state.percent, state.message)
        if state.said > future.acknowledged:
            self._listen(future, record, context)
        # What is told again without a change is told as its owner may be gone.
        again, future.revision = record.revision <= future.revision, record.revision
        if state.state.final:
            self._conclude(future, record)
        elif (again or record.owner == GONE) and not self._calls.alive(record.owner or ""):
            self._crashed(future, record)

    def _listen(self, future: RemoteFuture, record: Record, context: contextvars.Context) -> None:
        for number, kind, data in self._calls.said(record):
            if number <= future.heard:
                continue
            future.heard = number
            value = Inline(data).load()
            if kind == LOG:
                context.run(logs.handle, value)
                continue
            try:
                contextvars.Context().run(future.call.receive, value)
            except BaseException as error:  # of the run, which has ended or has lost its claim
                future.refused = error
        if not record.state.state.final and future.heard > future.acknowledged:
            self._calls.hear(future.name, future.heard, future.refused)
            future.acknowledged, future.refused = future.heard, None

    def _refuse(self, future: RemoteFuture, error: BaseException) -> None:
        future.refusal = future.refusal or error
        self._stop(future)

    def _conclude(self, future: RemoteFuture, record: Record) -> None:
        value, error = None, future.refusal
        if error is None:
            try:
                value = self._calls.outcome(record)
            except StoreError:
                raise
            except BaseException as raised:
                error = raised
        self._end(future, value, error)
        self._calls.drop(future.name)

    def _crashed(self, future: RemoteFuture, record: Record) -> None:
        worker = record.state.worker
        if future.stopped_at is not None:
            error: BaseException = RunCancelled(
                f"{future.call.name}: the run was cancelled, and its worker {worker} ended before its function did."
            )
        else:
            # One that its parent has seen dying has perhaps died of the function.
            kind = RunCrashed if record.owner == GONE else WorkerLost
            error = kind(
                f"{future.call.name}: its worker {worker} has died. The function, or a library it calls, may have "
                "ended the process; or the system, when memory is short. The log of the worker may say why."
            )
        self._end(future, error=future.refusal or error)
        self._calls.drop(future.name)

    def _end(self, future: RemoteFuture, value: Any = None, error: BaseException | None = None) -> None:
        try:
            if future.done():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        finally:
            self._forget(future)

    def _forget(self, future: RemoteFuture) -> None:
        self._known.pop(future.name, None)
        with self._ended:
            self._pending.discard(future)
            self._ended.notify_all()

    def _lost(self, since: int) -> None:
        """The store has come back without some of it: who is at such a call will find that it is nobody's."""
        for future in list(self._known.values()):
            if not future.data and (future.revision > since or self._calls.read(future.name) is None):
                error = RunCrashed(f"{future.call.name}: the store has lost what is known of its run.")
                self._carry(partial(self._end, error=error), future)

    # ------------------------------------------------------------ its end from outside

    def _stop(self, future: RemoteFuture) -> None:
        """Under the service's lock, or on a loop: the store is asked on another thread."""
        if future.stopped_at is None:
            future.stopped_at = self._clock.monotonic()
            self._carry(self._withdraw, future)

    def _withdraw(self, future: RemoteFuture) -> None:
        if future.name and not future.done() and self._calls.cancel(future.name):
            self._end(future, error=future.refusal or _unbegun(future))

    # ------------------------------------------------------------ the thread that looks

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._calls.listen()
                self._thread = threading.Thread(target=self._serve, name="panel-schedule-calls", daemon=True)
                contextvars.Context().run(self._thread.start)
        self._look.set()

    def _serve(self) -> None:
        buried, pause = self._clock.monotonic() - BURY, threading.Event()
        while self._thread is threading.current_thread():
            if not self._known:
                self._look.wait()
            self._look.clear()
            pause.wait(LOOK)
            now = self._clock.monotonic()
            for future in list(self._known.values()):
                if self._is_due(future, now):
                    self._carry(self._see_to, future)
            if now - buried >= BURY:
                buried = now
                with suppress(StoreError):
                    self._calls.bury()

    def _is_due(self, future: RemoteFuture, now: float) -> bool:
        with self._lock:
            if future.busy:
                return False
            late = future.stopped_at is not None and now >= future.stopped_at + INSIST
            return future.news is not None or late or (not future.begun and now >= future.due)

    def _see_to(self, future: RemoteFuture) -> None:
        """Something is to be done about it, of which nobody has told."""
        now = self._clock.monotonic()
        if future.news is not None:
            self._changed(future.news)
        elif future.data is not None:
            future.due = now + AGAIN
            self._submit(future)
        elif future.stopped_at is not None:
            future.stopped_at = now
            self._withdraw(future)
            if future.begun and future.killable:
                self.kill(future.name)
        else:
            self._ask(future)
            self._send(future)

    def _ask(self, future: RemoteFuture) -> None:
        """Whether a worker is there, who has not claimed what was sent."""
        with self._lock:
            if self._asking or self._deserted or not future.sent:
                return
            self._asking, claims = True, self._claims
        try:
            complaint = self.complaint()
        finally:
            self._asking = False
        if complaint and claims == self._claims:
            self._deserted = True
            log.warning("%s: %s", future.call.name, complaint)


def _unbegun(future: RemoteFuture) -> RunCancelled:
    return RunCancelled(f"{future.call.name}: the run was cancelled before its function began.")
