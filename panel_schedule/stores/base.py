"""A store and what this process has in it: values, tasks, jobs, answers, and the history of all runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from ..clock import Clock
from ..coordination import history
from ..coordination.tasks import TASK
from ..errors import ScheduleError
from ..functions.run import FAILURES, RunRecord
from .cache import Cache
from .counted import Counted
from .fallback import Fallback
from .hurry import leaving
from .places import Places
from .queue import MOST_BYTES, Queue
from .records import HOUR, LogAge, RecordStore, Request, noted
from .remote import RemoteCalls
from .tasks import Tasks
from .values import Values

# So many times as long as others failures are in the history.
FAILURES_LAST = 4


class Store:
    """
    The records of a store, and what they are used for. Whatever the store, this is the same.

    Parameters
    ----------
    records : RecordStore
    clock : Clock
    server : str
        Names the server that this process is part of.
    max_result_bytes : int
        Of what is kept of background runs that have ended.
    fallback : Fallback, optional
        Over the records, for those of tasks: it goes on where they cannot be reached.

    Attributes
    ----------
    values : Values
        Of tasks, and of names in ``ps.store``.
    tasks : Tasks
    queue : Queue
        The background jobs.
    cache : Cache
        The answers of memoized functions.
    logged : callable
        ``logged(space, name, run)`` when this process has added a line to a history.
    remote : RemoteCalls
        What workers of another program, as Celery, run for this process.
    places : Places
        Of the limits on how many runs go at the same time.
    """

    logged: Callable[[str, str, RunRecord], object]

    def __init__(
        self,
        records: RecordStore,
        clock: Clock,
        server: str = "",
        max_result_bytes: int = MOST_BYTES,
        fallback: Fallback | None = None,
    ):
        self.records, self._fallback = records, fallback
        self._of_tasks: RecordStore = Counted(fallback or records, self._ended)
        counted: RecordStore = Counted(records, self._ended)
        self.values = Values(self._of_tasks, clock)
        self.tasks = Tasks(self._of_tasks, self.values, server)
        self.queue, self.cache = Queue(counted, clock, max_result_bytes), Cache(counted, clock)
        self.remote, self.places = RemoteCalls(records, clock), Places(records, clock)
        self._clock = clock
        self._age: LogAge | None = None
        self._sweeps_at = clock.monotonic() + HOUR
        self.logged = lambda space, name, run: None

    def _ended(self, space: str, name: str, run: RunRecord) -> None:
        self.logged(space, name, run)
        if not self.blocking and self._clock.monotonic() >= self._sweeps_at:  # else the store has a thread for it
            self._sweeps_at = self._clock.monotonic() + HOUR
            self.records.sweep(self._clock.now())

    def keep_history(self, age: timedelta | None) -> None:
        """Show, and keep, no run that ended longer ago, and no failure that ended four times as long ago; None: all."""
        self._age = None if age is None else (age, FAILURES_LAST * age)
        self.records.log_age = self._age

    @property
    def blocking(self) -> bool:
        """Whether a call may have to wait: then it stays off the event loop and out of locks."""
        return self.records.blocking

    @property
    def me(self) -> str:
        """The owner that this process is."""
        return self.records.me

    @property
    def away(self) -> bool:
        """Whether this process runs its tasks for itself, as the store cannot be reached."""
        return self._fallback is not None and self._fallback.away

    # ------------------------------------------------------------ changes

    def do(self, request: Request) -> Any:
        """What comes of one request, alone in its transaction."""
        [result] = self._of_tasks.write([request.change], tell=request.tell)
        return request.answer(result)

    def do_together(self, requests: Sequence[Request]) -> list[tuple[Any, BaseException | None]]:
        """
        What comes of each, or what it raises; in one transaction.

        Raises
        ------
        StoreError
            When nothing was done.
        ValueRefused
            When one of them cannot be stored; nothing was done.
        """
        tell, answers = max(request.tell for request in requests), list[tuple[Any, BaseException | None]]()
        results = self._of_tasks.write([request.change for request in requests], tell=tell)
        for request, result in zip(requests, results, strict=True):
            try:
                answers.append((request.answer(result), None))
            except Exception as error:
                answers.append((None, error))
        return answers

    # ------------------------------------------------------------ history

    def note(self, kind: str, function: str, run: RunRecord) -> Request:
        """Record a run of a function that is called on request."""
        return Request(noted(kind, function, run), lambda result: None)

    def history(self, name: str, kind: str = TASK, last: int | None = None) -> list[RunRecord]:
        """Of a task, or of a function of another kind, newest first; or `last` lines of it, see `RecordStore.log`."""
        space, name = (TASK, name) if kind == TASK else (history.SPACE, history.name_of(kind, name))
        runs = self._of_tasks.log(space, name, last)
        if self._age is None:
            return runs
        since, failures_since = (self._clock.now() - age for age in self._age)
        return [
            run for run in runs
            if run.ended_at is None or run.ended_at >= (failures_since if run.state in FAILURES else since)
        ]  # fmt: skip

    def complete(self, runs: list[RunRecord]) -> list[RunRecord]:
        """Of a history what is no older than a success becomes: what it shows of failures in a row is true."""
        if self._age is None:
            return runs
        since = self._clock.now() - self._age[0]
        return [run for run in runs if run.ended_at is None or run.ended_at >= since]

    # ------------------------------------------------------------ lifecycle

    def listen(self) -> None:
        """From now on hear of other processes without being asked. Idempotent."""
        self._of_tasks.listen()
        self.values.listen()

    def close(self) -> None:
        """This process is done with the store: others go on with what it has not ended. Idempotent."""
        with leaving():
            with suppress(ScheduleError):
                self.queue.release()
                self.cache.release()
            self._of_tasks.close()

    def forked(self) -> Store | None:
        """What the child of a fork has in its place; None where it opens the store for itself."""
        return None
