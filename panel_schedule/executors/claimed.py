"""In a worker of another program, as Celery: makes the calls that it has claimed, and tells the store of them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ..clock import Clock
from ..coordination.record import Record
from ..errors import RunCancelled, RunCrashed, RunFenced, StoreError, ValueUnreadable
from ..functions import spans
from ..functions.run import Run, RunState, _current
from ..serialize.checks import require_data
from ..session import leave_session
from . import logs
from .calls import LOG, PARTIAL, Calls
from .interruption import Interruption
from .wire import Inline, encode
from .worker import PACE, conduct

log = logging.getLogger("panel_schedule")

# Home hears after so many seconds that a call has begun, unless it has ended by then.
BRIEF = 0.02

# How often, in seconds, it is looked whether the home of a call is alive; and how long a dead one is waited for to be
# taken over by another process, which goes on with its calls.
LOOK = 1.0
ORPHANED = 15.0

# Seconds that the cleanup code of a cancelled call has, in a process that can be killed.
GRACE = 2.0

# Seconds until an end is told again that could not be, and how often it is tried.
AGAIN = 1.0
TIMES = 600

# So many records of the log wait at most while home does not listen.
LOGGED = 10_000


Previous = Callable[[str, str, bool], Any]


class ClaimedCall:
    """
    One call that this process makes, and what home is told of it.

    Parameters
    ----------
    calls : Calls
    record : Record
    call : object
        Who runs, and as bytes what is called.
    killable : bool
        Whether this process does nothing else.
    news : callable
        ``news(urgent)`` when there is something to tell.
    interruption : Interruption or None
        Where it runs on the main thread, which can be interrupted.
    previous : callable
        ``previous(task, run_id, published)``: what the task gave before.
    """

    def __init__(
        self,
        calls: Calls,
        record: Record,
        call: Any,
        killable: bool,
        news: Callable[[bool], object],
        interruption: Interruption | None,
        previous: Previous,
    ):
        (task, identity, key, attempt, *asked), self._packed = call
        self.name, self.label, self._home = record.name, record.group, record.state.home
        self._calls, self._killable, self._news, self._interruption = calls, killable, news, interruption
        self._run = run = Run(task, key, datetime.min.replace(tzinfo=UTC))
        run.id, run.attempt, run.state = identity, attempt, RunState.RUNNING
        run._execution, run._changed = self, partial(news, False)
        run.asked = asked[0] if asked else spans.NOWHERE
        # What home has not heard yet, and the number of the last thing that was said; what it was told last.
        self._lock = threading.Lock()
        self._said = deque[tuple[int, bytes, bytes]]()
        self._last = 0
        self._told: tuple[Any, ...] | None = None
        # Who waits for the answer to a partial result, by its number; why the last one was refused.
        self._answers: dict[int, threading.Event] = {}
        self._refusal: BaseException | None = None
        # One tells at a time, and nobody after the end; and nobody gets a signal of a call that is over.
        self._telling, self._signalling = threading.Lock(), threading.Lock()
        self._ended, self._over = False, threading.Event()
        self._previous, self._published = previous, False
        # Whether it is ended from outside, and why, if that is not what home has asked for.
        self._stopping, self._because = False, ""
        # Since when its home is known to be dead.
        self._orphaned: float | None = None

    # ------------------------------------------------------------ the function

    def make(self) -> None:
        """Call the function, and tell home what came of it."""
        before: Any = None
        if self._interruption is not None:
            self._interruption.begin(self._run)
            before = signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, partial(self._terminated, before))
        try:
            value, error = contextvars.Context().run(self._outcome)
            try:
                if error is None:
                    require_data(value, self.label)
                self._finish(value, error)
            except BaseException as refusal:  # whatever a value does that is stored
                self._finish(None, refusal)
        finally:
            with self._signalling:
                self._over.set()
            if self._interruption is not None:
                signal.signal(signal.SIGTERM, before)

    def _outcome(self) -> tuple[Any, BaseException | None]:
        """What the function returns, or what it raises."""
        interruption = self._interruption
        try:
            try:
                if interruption is not None:
                    interruption.open()
                _current.set(self._run)
                function, args, kwargs = self._unpack()
                leave_session(self.label)
                spans.enter_carried(self._run.asked)
                awaits = interruption.awaits if interruption is not None else _nobody
                return conduct(partial(function, *args, **kwargs), self._run.publish, awaits), None
            except asyncio.CancelledError:
                self._run.check()
                raise
            finally:
                if interruption is not None:
                    interruption.is_open = False
        except BaseException as error:
            if self._because and isinstance(error, RunCancelled):
                error = RunCrashed(f"{self.label}: {self._because}.")
            return None, error

    def _unpack(self) -> Any:
        try:
            return Inline(self._packed).load()
        except ValueUnreadable as error:
            self._run.check()  # what the stop has raised in there
            raise ValueUnreadable(
                f"{self.label}: its function or arguments cannot be read in a worker: {error}. What they need must be "
                "importable there, in the same versions; the worker imports the file with the tasks as the server does."
            ) from error.__cause__

    def previous(self) -> Any:
        return self._previous(self._run.task, self._run.id, self._published)

    def publish_inside(self, item: Any) -> None:
        """Home has it, or has refused it, when this returns."""
        self._published = True
        require_data(item, self.label)
        data = encode(item, self.label).tobytes()
        if self._over.is_set():
            raise RunFenced(f"{self.label}: a thread of it goes on after its end, and is not heard any more.")
        answer = threading.Event()
        with self._lock:
            number = self._say(PARTIAL, data)
            self._answers[number] = answer
        self._news(True)
        try:
            if self._interruption is not None:
                self._interruption.wait()
            while not answer.wait(LOOK):
                self._run.check()
        finally:
            if self._interruption is not None:
                self._interruption.waits = False
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            raise refusal
        self._run.check()

    def log(self, fields: dict[str, Any]) -> None:
        data = encode(fields, self.label).tobytes()
        with self._lock:
            if len(self._said) < LOGGED:
                self._say(LOG, data)
        self._news(False)

    def _say(self, kind: bytes, data: bytes) -> int:
        self._last += 1
        self._said.append((self._last, kind, data))
        return self._last

    # ------------------------------------------------------------ what home is told, and says

    @property
    def untold(self) -> bool:
        """Whether home has still to hear that it has begun."""
        return self._told is None

    def tell(self) -> None:
        """How far it has come, and what was said; on the worker's own thread."""
        if self._told is None:
            self._calls.listen()  # only now: each change of anything wakes a process that listens
        with self._telling:
            with self._lock:
                said, last = list(self._said), self._last
            news = (self._run.percent, self._run.message, last)
            if news != self._told and not self._ended:
                if not self._calls.tell(self.name, *news[:2], said, last):
                    self.stop("another process has it by now")
                self._told = news

    def _finish(self, value: Any, error: BaseException | None) -> None:
        """For as long as the store cannot be reached, again and again."""
        with self._telling:
            self._ended = True
        for _ in range(TIMES):
            with self._lock:
                said, last = list(self._said), self._last
            try:
                self._calls.finish(
                    self.name, self.label, value, error, self._run.percent, self._run.message, said, last
                )  # fmt: skip
                return
            except StoreError as trouble:
                log.error("%s: what came of it cannot be stored now; it is tried again. %s", self.label, trouble)
            threading.Event().wait(AGAIN)

    def changed(self, record: Record) -> None:
        """Home has said something."""
        state, self._home = record.state, record.state.home
        if state.heard:
            refusal = self._calls.refusal(record)
            with self._lock:
                while self._said and self._said[0][0] <= state.heard:
                    self._said.popleft()
                answered = [number for number in self._answers if number <= state.heard]
                self._refusal = refusal if answered and refusal is not None else self._refusal
                for number in answered:
                    self._answers.pop(number).set()
        if state.cancelled:
            self.stop("")

    # ------------------------------------------------------------ its end from outside

    def look(self, now: float) -> None:
        """Whether anybody wants it."""
        if self._calls.alive(self._home):
            self._orphaned = None
        elif self._orphaned is None:
            self._orphaned = now
        elif now - self._orphaned >= ORPHANED:
            self.stop("the process that asked for it has died")

    def stop(self, because: str) -> None:
        """End the function: it is interrupted where that can be, and else told at its next progress."""
        if self._stopping or self._over.is_set():
            return
        self._stopping, self._because = True, because
        if self._interruption is not None:
            thread = threading.Thread(target=self._insist, name="panel-schedule-stop", daemon=True)
            contextvars.Context().run(thread.start)
            return
        self._run.state = RunState.CANCELLED
        with self._lock:
            for answer in self._answers.values():
                answer.set()

    def _insist(self) -> None:
        # Again and again: what comes just before a blocking call does not interrupt it.
        for share in (0.02, 0.1, 0.38, 0.5):
            with self._signalling:
                if self._over.is_set():
                    return
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            if self._over.wait(GRACE * share):
                return
        if self._killable:
            os.kill(os.getpid(), signal.SIGKILL)

    def _terminated(self, before: Any, number: int, frame: Any) -> None:
        """SIGTERM: of this one's own, or of somebody else, who ends this process, or the whole worker that it is."""
        assert self._interruption is not None
        if not self._stopping and not self._killable and callable(before):
            before(number, frame)
            return
        if not self._stopping:
            self._stopping, self._because = True, "its worker process was told to end"
        self._interruption.stop()


def _nobody(task: asyncio.Task[Any] | None) -> None:
    pass


class RemoteWorker:
    """
    Makes calls in this process, one for each message; several at once where the program has threads for that.

    Parameters
    ----------
    calls : Calls
    clock : Clock
    previous : callable
        As of a `ClaimedCall`.
    """

    def __init__(self, calls: Calls, clock: Clock, previous: Previous):
        self._calls, self._clock, self._previous = calls, clock, previous
        self._lock = threading.Lock()
        self._running: dict[str, ClaimedCall] = {}
        # Of those that are about to be claimed, what was heard meanwhile.
        self._claiming: dict[str, Record | None] = {}
        self._thread: threading.Thread | None = None
        self._news, self._urgent = threading.Event(), threading.Event()

    def make(self, name: str, worker: str, killable: bool) -> bool:
        """
        Make the call of this name, unless somebody else does, or nobody wants it any more; whether it was there.

        Parameters
        ----------
        worker : str
            Names this process.
        killable : bool
            Whether this process does nothing but this call.
        """
        self._start()
        self._claiming[name] = None
        claimed = self._calls.claim(name, worker, killable)
        if claimed is None:
            del self._claiming[name]
            return False
        on_main = threading.current_thread() is threading.main_thread()
        call = ClaimedCall(
            self._calls, *claimed, killable, self._tell_soon, Interruption() if on_main else None, self._previous
        )
        self._running[name] = call
        self._news.set()
        if (heard := self._claiming.pop(name)) is not None:
            call.changed(heard)
        try:
            call.make()
        finally:
            del self._running[name]
        return True

    # ------------------------------------------------------------ the thread that tells, and what is heard

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._calls.subscribe(self._changed)
                logging.root.addHandler(_Handler())
                self._thread = threading.Thread(target=self._serve, name="panel-schedule-calls", daemon=True)
                contextvars.Context().run(self._thread.start)

    def _tell_soon(self, urgent: bool) -> None:
        if urgent:
            self._urgent.set()
        if not self._news.is_set():
            self._news.set()

    def _serve(self) -> None:
        looked = self._clock.monotonic()
        while True:
            self._news.wait(LOOK)
            self._news.clear()
            # What is not urgent waits for more of it; and a call that is over by then is told of once.
            untold = any(call.untold for call in list(self._running.values()))
            self._urgent.wait(BRIEF if untold else PACE)
            self._urgent.clear()
            calls = list(self._running.values())
            with suppress(StoreError):  # the next time
                for call in calls:
                    call.tell()
                if self._clock.monotonic() - looked >= LOOK:
                    looked = self._clock.monotonic()
                    for call in calls:
                        call.look(looked)

    def _changed(self, record: Record) -> None:
        if record.name in self._claiming:
            self._claiming[record.name] = record
        elif (call := self._running.get(record.name)) is not None:
            call.changed(record)


class _Handler(logging.Handler):
    """Of the root logger: what is logged in a call is told home, too."""

    def emit(self, record: logging.LogRecord) -> None:
        run = _current.get()
        if run is not None and isinstance(run._execution, ClaimedCall):
            run._execution.log(logs.fields_of(record))
