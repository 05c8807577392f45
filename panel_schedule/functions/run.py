"""A run: one execution of a task, its states, and the progress it reports."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from math import inf
from numbers import Real
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import RunCancelled, RunTimedOut, ScheduleError, WouldBlock, is_interrupt
from ..serialize.copies import own_copy
from ..serialize.entry import Entry
from ..serialize.errors import another, bare, first_line, for_waiter, is_bare, kept_traceback, traceback_text
from . import spans

T = TypeVar("T")
if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultTypeVar

    Result = DefaultTypeVar("Result", default=Any)
else:
    Result = TypeVar("Result")

log = logging.getLogger("panel_schedule")


# Ids that nobody has yet, made many at once: one at a time takes ten times as long.
_ids: deque[str] = deque()
_completing = threading.Lock()

# The previous value of a run whose function has not asked for it.
_UNREAD: Any = object()

# One for all runs: most have no watcher, and there are many of them.
_NOBODY = frozenset[Callable[[], object]]()

# Characters of a message: it reaches every page.
LONGEST_MESSAGE = 1000

# Of what a function logs, lines and characters that are kept until it has ended, and of a failure after that.
MOST_LINES, LONGEST_LOGS = 50, 4_000

# Where a message of `track` has the item. A width of more digits makes a text that fills the memory.
_FIELD = re.compile(r"\{(?::((?:[^{}\d]|\d{1,3}(?!\d))*))?\}")


def renew_ids() -> None:
    """In the child of a fork: its runs are others than its parent's and its siblings'."""
    _ids.clear()


def new_id() -> str:
    """
    An id that nobody can guess: who knows the id of a job's run may follow and cancel it.

    72 random bits, fit for an address. The letter before them keeps Panel from reading a number there.
    """
    try:
        return _ids.popleft()
    except IndexError:
        text = urlsafe_b64encode(os.urandom(9 * 256)).decode()
        first, *others = (f"r{text[start : start + 12]}" for start in range(0, len(text), 12))
        _ids.extend(others)
        return first


class RunState(StrEnum):
    """The states of a run. It is queued, then running, and ends in exactly one of the others."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    SKIPPED = "skipped"

    final: bool

    def __init__(self, text: str):
        # Whether a run stays in this state for good.
        self.final = text not in ("queued", "running")


# What counts as a failure: that a run was cancelled, or skipped, does not.
FAILURES = (RunState.FAILED, RunState.TIMED_OUT, RunState.CRASHED)


class Cause(StrEnum):
    """Why slots were skipped, or a run was: what its ``reason`` says."""

    MISSED = "missed"
    PAUSED = "paused"
    IDLE = "idle"
    OVERLAP = "overlap"
    ABANDONED = "abandoned"
    ELSEWHERE = "claimed elsewhere"
    CROWDED = "too many wait"
    CLOCK = "clock stepped back"
    STALE = "stale"
    # Of what was cancelled:
    CANCELLED = "cancelled"
    REPLACED = "replaced"
    REMOVED = "cancelled: the schedule was removed"
    SESSION_ENDED = "cancelled: its session has ended"
    STOPS = "cancelled: the server stops"
    TAKEN_OVER = "taken over by another process"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """
    What ``task.history`` keeps of a finished run, or of a stretch of skipped slots.

    Attributes
    ----------
    id : str
    key : datetime or str
        The slot (aware UTC) of a clock, the upstream's version of ``after=``, or a request id.
    state : RunState
    attempt : int
        From 1.
    queued_at, started_at, finished_at : datetime or None
        Aware UTC.
    error : str
        First line of what went wrong; ``""`` when nothing did.
    reason : str
        Why slots were skipped: ``"overlap"``, ``"missed"``, ``"paused"``, ``"idle"``...
    until : datetime or None
        Last slot of a skipped stretch that begins at `key`.
    owner : str
        The process that has run it; ``""`` where that is not known.
    user : str
        Of a background job: who was logged in; ``""`` without a login.
    arguments : str
        Of a job or a memoized call, as short text: ``"'north', year=2026"``. What is called a password, a secret, a
        token or a key is ``...`` there.
    traceback : str
        Of a failure: its traceback, of which the end is kept.
    logs : str
        Of a failure: the last lines that its function has logged.
    """

    id: str
    key: datetime | str | None
    state: RunState
    attempt: int = 1
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: str = ""
    reason: str = ""
    until: datetime | None = None
    owner: str = ""
    user: str = ""
    arguments: str = ""
    traceback: str = ""
    logs: str = ""

    @property
    def ended_at(self) -> datetime | None:
        """When it has ended; of slots that were skipped the last one."""
        return self.finished_at or self.queued_at

    @property
    def brief(self) -> RunRecord:
        """Without what is long."""
        return replace(self, traceback="", logs="") if self.traceback or self.logs else self

    @property
    def duration(self) -> float | None:
        """Seconds from start to end, None of a run that never started."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()


def failures_in_a_row(runs: Iterable[RunRecord]) -> int:
    """How many have failed since the last success, of runs that come newest first."""
    count = 0
    for run in runs:
        if run.state is RunState.SUCCEEDED:
            break
        count += run.state in FAILURES
    return count


class Partials(list[Any]):
    """Partial results, which are read as all values are, and kept as they were when they came."""

    def append(self, value: Any) -> None:
        super().append(own_copy(value))

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return [own_copy(each) for each in found] if isinstance(at, slice) else own_copy(found)

    def __iter__(self) -> Iterator[Any]:
        return map(own_copy, super().__iter__())


class Run(Generic[Result]):
    """
    One execution of a task: what ``task.refresh()`` returns. ``await run`` gives its result.

    Attributes
    ----------
    id : str
        Nobody can guess it: who knows that of a job's run may follow it.
    task : str
        Name of the task.
    user : str or None
        Of a background job: ``pn.state.user`` of the session that started it; None without a login.
    key : datetime or str
        The slot, the upstream's version or the request that caused the run.
    state : RunState
    attempt : int
        From 1; more after retries.
    percent : int
        0 to 100, -1 while unknown.
    message : str
    error : BaseException or None
        What the function raised: a copy of it, whose traceback has the places, and no variables. Who waits for the run
        gets another one.
    queued_at, started_at, finished_at : datetime or None
        Aware UTC.
    due_at : datetime or None
        Of a background run that was submitted for later: it does not begin before. Aware UTC.
    reason : str
        Why it was skipped or cancelled.
    partials : list
        What it has published on the way, in order; a data frame is the reader's own copy.
    """

    __slots__ = (
        "__weakref__",
        "_changed",
        "_ended",
        "_execution",
        "_future",
        "_load",
        "_logged",
        "_previous",
        "_rank",
        "_span",
        "_stop",
        "_value",
        "_waiting",
        "_watchers",
        "arguments",
        "asked",
        "attempt",
        "due_at",
        "error",
        "expired",
        "finished_at",
        "first",
        "id",
        "key",
        "mark",
        "message",
        "partials",
        "percent",
        "queued_at",
        "reason",
        "started_at",
        "state",
        "task",
        "until",
        "user",
        "wave",
        "worker",
    )

    def __init__(
        self,
        task: str,
        key: datetime | str | None,
        queued_at: datetime,
        wave: datetime | None = None,
        mark: datetime | int | str | None = None,
    ):
        self.id = new_id()
        self.task = task
        self.user: str | None = None
        # What its function was called with, as text; None as long as nobody has asked.
        self.arguments: str | None = None
        # The worker of another program that runs it, if one does.
        self.worker = ""
        self._logged: deque[str] | None = None
        # What its function has asked for, so that it stays the same.
        self._previous: Any = _UNREAD
        self.key = key
        self.queued_at = queued_at
        self.due_at: datetime | None = None
        # The instant whose upstream values this run must see (invariant 9). None: whatever is there.
        self.wave = wave
        # The occasion that is handled once by all processes: the slot, the sum of the upstream's versions, or the id of
        # a request that another process has made.
        self.mark = mark
        # Whether it is only to make the first value, and needless where there is one.
        self.first = False
        self.state = RunState.QUEUED
        self.attempt = 1
        self.percent = -1
        self.message = ""
        self.error: BaseException | None = None
        self.started_at: datetime | None = None
        self.finished_at: datetime | None = None
        self.reason = ""
        self.expired = False
        self.until: datetime | None = None
        self.partials: Sequence[Any] = ()
        self._future: Future[Any] | None = None
        self._ended = False
        self._value: Any = None
        self._changed: Callable[[], object] | None = None
        self._stop: Callable[[Run, str], object] | None = None
        # What executes it in this process, while its function runs.
        self._execution: Any = None
        # The span of its attempt that is under way in this process; and in which it was asked for.
        self._span: Any = None
        self.asked = spans.NOWHERE
        # What the function that waits for it does meanwhile: it is seen to wait.
        self._waiting: Callable[[], AbstractContextManager[object]] | None = None
        self._rank: Callable[[], int] | None = None
        self._watchers = _NOBODY
        # Fetches the value from a shared store, of a run that has ended in another process.
        self._load: Callable[[], Any] | None = None

    def __repr__(self) -> str:
        return f"<Run {self.task!r} {self.state} attempt {self.attempt}>"

    @property
    def on_occasion(self) -> bool:
        """Whether it is for a slot or for a value of its upstream; else somebody has asked for it."""
        return self.mark is not None and not isinstance(self.mark, str)

    @property
    def cancelled(self) -> bool:
        """Whether the run has ended from outside: the function should return soon."""
        return self.expired or self.state in (RunState.CANCELLED, RunState.TIMED_OUT)

    @property
    def value(self) -> Any:
        """What the function has returned, a data frame as the reader's own copy; None before it has succeeded."""
        value = self.shared
        return value.value if isinstance(value, Entry) else own_copy(value)

    @property
    def shared(self) -> Any:
        """The very object, or the entry of it."""
        if (load := self._load) is not None:
            self._value, self._load = load(), None
        return self._value

    @property
    def position(self) -> int:
        """Place in the queue, from 1; 0 when it has begun. Of a run in this process."""
        rank = self._rank
        return rank() if rank is not None and self.state is RunState.QUEUED else 0

    def watch(self, changed: Callable[[], object]) -> Callable[[], None]:
        """
        Call `changed` when something about the run is new, on whatever thread; it must return at once.

        Returns
        -------
        callable
            Ends it.
        """
        with _completing:
            self._watchers |= {changed}

        def unwatch() -> None:
            with _completing:
                self._watchers -= {changed}

        return unwatch

    @property
    def watched(self) -> bool:
        """Whether anybody follows it."""
        return bool(self._watchers)

    @property
    def called_with(self) -> str:
        """The arguments of a job or a memoized function as short text, as far as this process knows them."""
        execution = self._execution
        return self.arguments or "" if execution is None else execution.arguments

    @property
    def traceback(self) -> str:
        """The traceback of `error` from the user's function on, in whichever process it was; ``""`` without one."""
        return traceback_text(self.error)

    @property
    def logs(self) -> str:
        """The last lines that its function has logged, in the process that has asked for it; times are UTC."""
        return "\n".join(self._logged or ())

    @property
    def previous(self) -> Any:
        """
        Of a task: the last good value, or its ``default``, as it was when this attempt began; for its function alone.

        No other run publishes from then on, so that what is made of it follows it. What an earlier attempt, or a run
        that has failed, has published before its end is a last value, too. Of a job or a memoized function it is None.

        Raises
        ------
        ScheduleError
            When the function does not run; or has published already, and asks for it for the first time.
        RunCancelled, RunTimedOut
            When the run was ended meanwhile.
        """
        if self._previous is _UNREAD:
            if self.cancelled:
                self.check()
            if (execution := self._execution) is None or self.state.final:
                raise ScheduleError(
                    f"{self!r}: its previous value is for its function, while that runs. Read the task itself."
                )
            self._previous = execution.previous()
        return self._previous

    def publish(self, partial: Any) -> None:
        """
        Show a partial result, from inside of the function: the next of `partials`, or a task's next version.

        Raises
        ------
        RunCancelled, RunTimedOut
            When the run was ended meanwhile.
        """
        self.check()
        if (execution := self._execution) is not None:
            execution.publish_inside(partial)

    def cancel(self, reason: str = Cause.CANCELLED) -> None:
        """End the run now. A thread's function that does not listen is abandoned: its writes are dropped."""
        if (stop := self._stop) is not None:
            stop(self, reason)

    def result(self, timeout: float | None = None) -> Result:
        """
        Wait for the end of the run and return the function's value.

        Parameters
        ----------
        timeout : float, optional
            Seconds; None waits for as long as it takes.

        Raises
        ------
        WouldBlock
            On the thread of a running event loop, where ``await run`` belongs; in a cell of a notebook only where the
            kernel's loop runs the function.
        TimeoutError
            When the run has not ended in time; it goes on.
        RunCancelled, RunTimedOut, RunSkipped
            When it ended so. An exception that the function itself raised is raised unchanged.
        RunFailed
            When the function raised what is no Exception, such as SystemExit, or a CancelledError: caused by it.
        """
        timeout = in_seconds(f"The run of {self.task!r}: result()", timeout)
        if not self._ended:
            self._refuse_itself()
            what = f"result() of an unfinished run of {self.task!r}"
            blocking = block(what, "await run", self.task)
        else:
            blocking = nullcontext()
        waiting = self._waiting  # None from its end on
        with nullcontext() if waiting is None else waiting(), blocking:
            self._completion().result(timeout)
        return self.outcome()

    def __await__(self) -> Generator[Any, None, Result]:
        self._refuse_itself()
        future = asyncio.wrap_future(self._completion())
        # Shielded: he must not cancel the run for the others.
        waiting = self._waiting  # None from its end on
        with nullcontext() if waiting is None else waiting(), place:
            yield from asyncio.shield(future).__await__()
        return self.outcome()

    def outcome(self) -> Result:
        """Of a run that has ended: its value, or its error raised, an instance of the caller's own."""
        if self.error is not None:
            raise for_waiter(self.task, self.error)
        return self.value  # type: ignore[no-any-return]

    def _refuse_itself(self) -> None:
        if _current.get() is self:
            raise WouldBlock(f"{self.task!r} waits for its own run, which would never end. Return instead.")

    def add_done_callback(self, fn: Callable[[Run], object]) -> None:
        """Call ``fn(run)`` when the run has ended, at once if it has; on the thread that ended it."""

        self._completion().add_done_callback(lambda _: self._tell("callback", fn, self))

    def record(self, owner: str) -> RunRecord:
        """This run as a history keeps it: without its value."""
        return self.record_as(self.state, self.finished_at, self.error, owner, self.key)

    def record_as(
        self,
        state: RunState,
        finished_at: datetime | None,
        error: BaseException | None,
        owner: str,
        key: datetime | str | None,
    ) -> RunRecord:
        """The same of one that is about to end so."""
        return RunRecord(
            self.id, key, state, self.attempt, self.queued_at, self.started_at, finished_at, first_line(error),
            str(self.reason), self.until, "" if self.started_at is None else self.worker or owner, self.user or "",
            self.arguments or "", *((kept_traceback(error), self.logs) if state in FAILURES else ()),
        )  # fmt: skip

    def note(self, record: logging.LogRecord) -> None:
        """Something is logged in it; the last lines are kept."""
        try:
            at, error = datetime.fromtimestamp(record.created, UTC), record.exc_info and record.exc_info[1]
            text = f"{at:%H:%M:%S} {record.levelname} {record.name}: {record.getMessage()}"
            text = f"{text} ({first_line(error)})" if error else text
        except Exception:  # whatever is logged, its handlers complain of it
            return
        if (lines := self._logged) is None:
            lines = self._logged = deque(maxlen=MOST_LINES)
        lines.append(text[:LONGEST_LOGS])
        while sum(map(len, lines)) + len(lines) > LONGEST_LOGS and len(lines) > 1:
            lines.popleft()

    # ------------------------------------------------------------ for those who run it

    def begin(self, now: datetime) -> None:
        self.state = RunState.RUNNING
        self.started_at = now
        self.percent, self.message, self._previous = -1, "", _UNREAD  # of an earlier attempt

    def again(self, error: BaseException) -> None:
        self.state = RunState.QUEUED
        self.error = another(error)
        self.attempt += 1
        self.expired = False

    def end(self, state: RunState, now: datetime, error: BaseException | None = None, value: Any = None) -> None:
        # First: whoever sees that it has succeeded sees what it gave, and not what becomes of a frame that it kept.
        self._value = own_copy(value)
        self.state, self._previous = state, _UNREAD
        if state not in FAILURES:
            self._logged = None
        self.error = error if error is None or is_bare(error) else another(error)
        self.finished_at = now
        if state is RunState.SUCCEEDED:
            self.percent = 100 if self.percent >= 0 else -1

    def resolve(self, value: Any = None) -> None:
        """Wake who waits for the result; apart from `end`, so that it happens outside of locks."""
        if self._span is not None:
            self.end_span(self.state, self.error)
        with _completing:
            self._value, self._ended = value if isinstance(value, Entry) else own_copy(value), True
            future = self._future
        if future is not None:
            self._settle(future)

    @property
    def carrier(self) -> spans.Carrier:
        """The span of its attempt that is under way, as it travels."""
        return spans.NOWHERE if self._span is None else spans.carried(self._span)

    def end_span(self, outcome: RunState, error: BaseException | None) -> None:
        """Its attempt has ended so; outside of locks."""
        span, self._span = self._span, None
        if span is not None:
            spans.end(span, outcome, error)

    def _completion(self) -> Future[Any]:
        """Made when first asked for: nobody waits for most scheduled runs."""
        with _completing:
            future, late = self._future, False
            if future is None:
                future, late = Future(), self._ended
                self._future = future
        if late:
            self._settle(future)
        return future

    def _settle(self, future: Future[Any]) -> None:
        try:
            self.shared  # noqa: B018  # fetched here, where nobody is kept waiting
        except BaseException as error:  # who waits gets to hear of it
            if is_interrupt(error):
                raise
        finally:
            future.set_result(None)

    def touch(self) -> None:
        """Tell those who watch it."""
        for changed in self._watchers:
            self._tell("watcher", changed)

    def _tell(self, who: str, call: Callable[..., object], *args: Any) -> None:
        try:
            call(*args)
        except BaseException as error:  # others wait for the same run, or watch it
            if is_interrupt(error):
                raise
            log.error("A %s of a run of %r failed: %s", who, self.task, first_line(error), exc_info=bare(error))

    def report(self, percent: int, message: str) -> None:
        if (percent, message) != (self.percent, self.message):
            self.percent, self.message = percent, message
            if (changed := self._changed) is not None:
                changed()

    def check(self) -> None:
        """Raise in the function's own thread once the run has been ended from outside."""
        if self.expired or self.state is RunState.TIMED_OUT:
            raise RunTimedOut(f"The run of {self.task!r} has timed out; its function was told to stop.")
        if self.state.final:
            how = self.reason or self.state
            raise RunCancelled(f"The run of {self.task!r} was {how}; its function was told to stop.")


def too_late(task: str) -> ScheduleError:
    """What is raised where a function asks for the previous value that it has replaced."""
    return ScheduleError(
        f"Task {task!r}: its function has published, or yielded, before it asked for ps.current_run().previous. Ask "
        "for it before the first item, which takes its place; from then on it stays the same."
    )


class Place(threading.local):
    """
    The place of the calling thread's body in its executor; ``with place:`` others have it while the body only waits.

    For coroutines as well: it is theirs again when none of the thread's waits any more.
    """

    lend: Callable[[], AbstractContextManager[object]] | None = None
    # In the thread of a notebook's cells, which may block its loop: ``hold(function)`` while they wait for that one.
    hold: Callable[[str], AbstractContextManager[object]] | None = None
    _waiting = 0
    _lent: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        self._waiting += 1
        if self._lent is None and self.lend is not None:
            self._lent = self.lend()
            self._lent.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._waiting -= 1
        if not self._waiting and self._lent is not None:
            lent, self._lent = self._lent, None
            lent.__exit__(None, None, None)


place = Place()

_current: ContextVar[Run | None] = ContextVar("panel_schedule_run", default=None)


def current_run() -> Run | None:
    """
    The run that the calling function is part of; None outside of one.

    Examples
    --------
    >>> import panel_schedule as ps
    >>> ps.current_run() is None
    True
    """
    return _current.get()


def progress(current: float, total: float = 100, message: str = "") -> None:
    """
    Report how far the current run has come. Does nothing outside of a run.

    Parameters
    ----------
    current, total : float
        ``current`` of ``total`` steps are done. What is no number, or NaN, or infinite, is shown as unknown.
    message : str
        Shown beside the bar, up to 1,000 characters of it; of anything else its text.

    Raises
    ------
    RunCancelled, RunTimedOut
        When the run was ended meanwhile: the way a thread's function hears of it.
    """
    run = _current.get()
    if run is not None:
        run.check()
        run.report(_percent(current, total), _text(message))


def _percent(current: Any, total: Any) -> int:
    """0 to 100; -1 where these are no numbers, or none that say how far it is: that ends no run."""
    try:
        current = current if isinstance(current, int) else float(current)
        total = total if isinstance(total, int) else float(total)
        return max(0, min(100, int(100 * current // total))) if total > 0 else -1
    except (RunCancelled, RunTimedOut):  # in a worker process one may come at any moment
        raise
    except Exception:
        return -1


def _text(message: Any) -> str:
    """What can be shown of it, whatever it is."""
    if type(message) is str and message.isascii():
        return message[:LONGEST_MESSAGE]
    try:
        text = "" if message is None else str(message)
    except (RunCancelled, RunTimedOut):
        raise
    except Exception:
        text = f"<{type(message).__name__}>"
    text = str.__getitem__(text, slice(LONGEST_MESSAGE))
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _filled(message: str, item: Any) -> str:
    """
    The message with the item for each ``{}``, or ``{:.1f}``, and nothing else changed.

    `str.format` stumbles over any other brace, and reads attributes of the item.
    """

    def fill(found: re.Match[str]) -> str:
        try:
            return format(item, found[1]) if found[1] else _text(item)
        except (RunCancelled, RunTimedOut):
            raise
        except Exception:
            return found[0]

    return _FIELD.sub(fill, message)


def track(items: Iterable[T], total: int | None = None, message: str = "") -> Iterator[T]:
    """
    Iterate over `items` and report each step as progress of the current run.

    Parameters
    ----------
    items : iterable
    total : int, optional
        How many there are; by default ``len(items)`` where it is known.
    message : str
        May contain ``{}``, which stands for the item, or ``{:.1f}``, for the item in a format of one value. Other
        braces are shown as they are.

    Examples
    --------
    >>> import panel_schedule as ps
    >>> [year * 2 for year in ps.track(range(3), message="year {}")]
    [0, 2, 4]
    """
    if total is None and isinstance(items, Sized):
        with suppress(Exception):  # then nobody knows
            total = len(items)
    done, message = 0, _text(message)
    for done, item in enumerate(items, start=1):
        progress(done - 1, total, _filled(message, item) if "{" in message else message)  # type: ignore[arg-type]
        yield item
    progress(done, total, message and "done")  # type: ignore[arg-type]


def in_seconds(what: str, timeout: Any) -> float | None:
    """A timeout of `what`, as it is given. Raises TypeError when it is no number."""
    if timeout is None or (isinstance(timeout, Real) and not isinstance(timeout, bool) and timeout < inf):
        return timeout  # type: ignore[return-value]  # mypy knows no numbers.Real
    raise TypeError(
        f"{what} was given timeout={timeout!r}: it is a number of seconds, 10 or 0.5, or None to wait for the end."
    )


def refuse_to_block(what: str, instead: str) -> None:
    """
    Raise when the calling thread runs an event loop, which a blocking call would stop.

    Raises
    ------
    WouldBlock
        Naming `what` would block and what to write `instead`.
    """
    if on_a_loop():
        raise would_block(what, instead)


def would_block(what: str, instead: str) -> WouldBlock:
    return WouldBlock(f"{what} would block the event loop of this thread. Write `{instead}` there.")


def block(what: str, instead: str, function: str) -> AbstractContextManager[object]:
    """
    What is entered while the calling thread waits for a run of a function: others have its place meanwhile.

    Raises
    ------
    WouldBlock
        As of `refuse_to_block`; in a cell of a notebook only where its loop runs that function.
    """
    if in_a_cell():
        assert place.hold is not None
        try:
            return place.hold(function)
        except WouldBlock:
            raise would_block(what, instead) from None
    refuse_to_block(what, instead)
    return place


def in_a_cell() -> bool:
    """Whether a cell of a notebook calls, and not what its loop runs."""
    return place.hold is not None and _current.get() is None and on_a_loop()


def on_a_loop() -> bool:
    """Whether an event loop runs on the calling thread."""
    return asyncio._get_running_loop() is not None
