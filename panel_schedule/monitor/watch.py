"""What the monitor shows, gathered for all sessions of a process that look, and told as what has changed."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from ..coordination import history
from ..coordination.history import JOB, MEMO, parts_of
from ..coordination.tasks import TASK
from ..engine.presence import Process
from ..errors import ScheduleError
from ..executors.threads import ThreadExecutor
from ..functions.run import Run, RunRecord, RunState
from ..runtime import Runtime
from ..stores.base import Store
from ..stores.queue import JobRow
from ..triggers import Trigger
from ..triggers.words import in_words
from .graph import Edge, Node, drawing, edges_of, state_of
from .rows import Kept, Load, Past, Row, for_anybody, identity, job_row, memo_row, past, task_row
from .timeline import Bars, Ran, arrange, as_numbers
from .workers import as_html

log = logging.getLogger("panel_schedule")

# Seconds between one look and the next.
EVERY = 1.0

# What is counted of the answers of a memoized function.
KEPT = ("answers", "bytes")

# So many seconds of a look may go into histories; what is left is read with the next one, which follows soon.
READING, SOON = 0.2, 0.05

# Of a history that is known so many lines are read first; and after so many that were new all of it, so that what the
# store has dropped goes here as well.
NEWEST, ANEW = 8, 50

Key = tuple[str, str]  # kind and name of a function

Sums = tuple[Mapping[tuple[str, ...], float], Mapping[tuple[str, ...], float]]


class Known(NamedTuple):
    """
    What there is to say of the history of a function, of which the runs themselves are not kept.

    Attributes
    ----------
    revision : int
        Of the change of its record as of which this is so.
    past : Past
    ran : Ran or None
    newest : tuple of (str, datetime or None)
        Id and end of the run that ended last.
    added : int
        How many runs have ended since all of the history was read.
    """

    revision: int = 0
    past: Past = Past()
    ran: Ran | None = None
    newest: tuple[str, datetime | None] | None = None
    added: int = 0


UNKNOWN = Known()


class Told(NamedTuple):
    """
    A row, None where the function is gone; as text, for admins and for others; the number of the look that found it so.
    """

    row: Row | None
    text: str
    for_anybody: str
    look: int


class Watch:
    """
    Looks at all functions of a process once a second, on a thread, while a session wants to know; none costs nothing.

    Parameters
    ----------
    runtime : Runtime
    sums : callable
        What all processes of this server have counted, and what there is in them now: of a memoized function
        ``("hits", name)``, and ``("answers", name)`` with ``("bytes", name)``.
    """

    def __init__(self, runtime: Runtime, sums: Callable[[], Sums] = lambda: ({}, {})):
        self._runtime, self._sums = runtime, sums
        self._threads = ThreadExecutor(1)
        self._lock = threading.Lock()
        self._sessions: dict[Callable[[], object], None] = {}
        self._looking = False
        self._rows: dict[str, Told] = {}
        self._look = 0
        self._head = ""
        # What the history of each function comes to. The runs themselves may be many, and Python's garbage collector,
        # for which all threads stand still, would look at each of them.
        self._pasts: dict[Key, Known] = {}
        # What is under way; and by its length, and for whom, the last timeline that was asked for.
        self._live: list[tuple[str, str, Ran]] = []
        self._arranged: dict[tuple[timedelta, bool], Bars] = {}
        self._arranging = threading.Lock()
        # The schedule of each task, in words.
        self._words: dict[str, tuple[Trigger, str]] = {}

    def begin(self, changed: Callable[[], object]) -> None:
        """From now on call `changed` when there is something new; on whatever thread. Idempotent."""
        with self._lock:
            self._sessions[changed] = None
            if self._looking:
                return
            # What was so when somebody looked last is no news.
            self._looking, self._rows, self._head = True, {}, ""
        self._go()

    def end(self, changed: Callable[[], object]) -> None:
        """This session has ended."""
        with self._lock:
            self._sessions.pop(changed, None)

    def since(self, look: int, admin: bool) -> tuple[str, int]:
        """
        What is new since a look, as JSON for an admin or for anybody, and the number of the last one.

        Returns
        -------
        tuple of str and int
            ``""`` where nothing is, or no look has ended yet.
        """
        with self._lock:
            now, rows, head = self._look, self._rows, self._head
        if now == look or not head:
            return "", look
        new = [told.text if admin else told.for_anybody for told in rows.values() if told.look > look and told.text]
        gone = [id for id, told in rows.items() if told.look > look and not told.text] if look else []
        told = f'"all": {json.dumps(not look)}, "rows": [{", ".join(new)}], "gone": {json.dumps(gone)}'
        return f'{{{told}, "head": {head}, "now": {self._runtime.clock.now().timestamp()}}}', now

    # ------------------------------------------------------------ drawn

    def bars(self, length: timedelta, admin: bool) -> Bars:
        """
        Of all runs of so long, as of the last look, for an admin or for anybody.

        Nothing is read for it, and sessions share what is made.
        """
        until = self._runtime.clock.now()
        with self._arranging:
            made = self._arranged.get((length, admin))
            if made is None or until.timestamp() - made.until / 1000 >= EVERY:
                past = [(name, kind, known.ran) for (kind, name), known in list(self._pasts.items()) if known.ran]
                made = self._arranged[length, admin] = arrange([*past, *self._live], until - length, until, admin)
        return made

    def drawing(self) -> str:
        """What is made of what, as it was at the last look."""
        now, runtime = self._runtime.clock.now().timestamp(), self._runtime
        with self._lock:
            rows = [told.row for told in self._rows.values() if told.row is not None and told.row["kind"] != JOB]
        nodes = [Node(row["id"], row["name"], _state(row, now), function=row["kind"] == MEMO) for row in rows]
        read = [
            Edge(identity(TASK, source), identity(TASK, seen.task.name), "reads")
            for seen in runtime.scheduler.survey()
            for source in seen.sources
        ]
        # Of two edges between the same the later one is drawn: what is declared says more than what was seen.
        return drawing(nodes, [*read, *edges_of(list(runtime.tasks.values()), list(runtime.memos.values()))])

    def workers(self) -> str:
        """The processes that share the store, as HTML; what others are at is some seconds old, if it can be read."""
        presence, trouble, others = self._runtime.presence, "", list[Process]()
        try:
            others = presence.others()
        except ScheduleError as error:
            trouble = str(error)
        return as_html([presence.here(), *others], self._runtime.clock.now(), trouble)

    # ------------------------------------------------------------ one look

    def _go(self) -> None:
        self._threads.submit(self._take)
        self._threads.flush()

    def _take(self) -> None:
        with self._lock:
            if not self._sessions or self._runtime.stopping:
                self._looking = False
                return
        again = EVERY
        try:
            again = self._gather()
        except ScheduleError as error:
            self._tell(None, str(error))
        except Exception:
            log.exception("The monitor failed at something that is a bug of panel-schedule; it goes on.")
        try:
            self._runtime.later(again, self._go)
        except ScheduleError:  # there is no store: who looks again begins anew
            with self._lock:
                self._looking = False

    def _gather(self) -> float:
        """Look once; seconds until the next look."""
        trouble, left, load = "", True, dict[str, Load]()
        try:
            if self._head:  # who waits for the page gets it before the store is asked
                left = self._read_histories()
                # What ends after its history was read is shown as running until the next look.
                under_way = self._runtime.dispatcher.under_way()
                load, self._live = _load(under_way), list(self._under_way(under_way))
        except ScheduleError as error:  # what this process knows by itself it says nevertheless
            trouble, left = str(error), False
        self._tell(list(self._functions(load)), trouble)
        return SOON if left else EVERY

    def _functions(self, load: dict[str, Load]) -> Iterator[Row]:
        runtime = self._runtime
        for seen in runtime.scheduler.survey():
            name = seen.task.name
            if (words := self._words.get(name)) is None or words[0] is not seen.trigger:
                words = self._words[name] = seen.trigger, in_words(seen.trigger)
            yield task_row(seen, self._of(TASK, name), words[1])
        for job in list(runtime.jobs.values()):
            yield job_row(job, self._of(JOB, job.name), load.get(job.name, Load()))
        counts, there = self._sums() if runtime.memos else ({}, {})
        for memo in list(runtime.memos.values()):
            computed = sum(counts.get(("runs", memo.name, MEMO, outcome.value), 0) for outcome in RunState)
            of_server = (
                counts.get(("hits", memo.name), 0),
                computed,
                *(there.get((what, memo.name), 0) for what in KEPT),
            )
            yield memo_row(memo, self._of(MEMO, memo.name), Kept(*map(int, of_server)))

    def _of(self, kind: str, name: str) -> Past:
        return self._pasts.get((kind, name), UNKNOWN).past

    def _read_histories(self) -> bool:
        """Read those that have changed; whether some are left."""
        runtime, store = self._runtime, self._runtime.service.store
        known = {(TASK, name) for name in runtime.tasks} | {(JOB, name) for name in runtime.jobs}
        known |= {(MEMO, name) for name in runtime.memos}
        changed = {(TASK, record.name): record.revision for record in store.records.scan(TASK)}
        changed |= {parts_of(record.name): record.revision for record in store.records.scan(history.SPACE)}
        until = runtime.clock.monotonic() + READING
        for (kind, name), revision in changed.items():
            if (kind, name) not in known or self._pasts.get((kind, name), UNKNOWN).revision == revision:
                continue
            if runtime.clock.monotonic() > until:
                return True
            before = self._pasts.get((kind, name), UNKNOWN)
            self._pasts[kind, name] = _more(store, kind, name, before, revision) or _all(store, kind, name, revision)
        for gone in self._pasts.keys() - known:
            del self._pasts[gone]
        return False

    def _under_way(self, runs: Iterable[Run | JobRow]) -> Iterator[tuple[str, str, Ran]]:
        """What has begun and not ended, in all processes: tasks, these jobs, and memoized functions."""
        runtime, records = self._runtime, self._runtime.service.store.records
        for record in records.scan(TASK):
            state = record.state
            if state.run_id and not state.over and records.alive(record.owner or ""):
                yield record.name, TASK, _running(state.attempt, state.started_at, state.key)
        for run in runs:
            yield run.task, JOB, _running(run.attempt, run.started_at)
        for run in runtime.single_flight.under_way():
            yield run.task, MEMO, _running(run.attempt, run.started_at)
        for row in self._runtime.service.store.cache.under_way_elsewhere():
            yield row.function, MEMO, _running(row.takeovers + 1, row.began_at)

    def _tell(self, rows: list[Row] | None, trouble: str) -> None:
        """Note what is new, and tell those who look; `rows` is None where nothing could be gathered."""
        head = json.dumps({"trouble": trouble} | (self._state() if rows is not None else {}))
        # Of a look, only its thread changes these. The texts are made before the lock, for which the event loop waits.
        look, former, told = self._look + 1, self._rows, self._rows
        if rows is not None:
            new = {row["id"]: _told(former.get(row["id"]), row, look) for row in rows}
            told = {id: _told(each, None, look) for id, each in former.items() if id not in new} | new
        if head == self._head and all(each.look < look for each in told.values()):
            return
        with self._lock:
            self._rows, self._look, self._head = told, look, head
            sessions = list(self._sessions)
        for changed in sessions:
            changed()

    def _state(self) -> Row:
        """Of the whole: what waits in this process, and what hangs."""
        executors = self._runtime.service.executors.values()
        hanging = sorted({name for executor in executors for name in executor.hanging})
        return {"waiting": self._runtime.waiting(), "hanging": hanging, "process": os.getpid()}


def _all(store: Store, kind: str, name: str, revision: int) -> Known:
    """All of the history of a function."""
    runs = store.history(name, kind)
    newest = next((_mark(run) for run in runs if run.state is not RunState.SKIPPED), None)
    return Known(revision, past(store.complete(runs)), as_numbers(runs), newest)


def _more(store: Store, kind: str, name: str, known: Known, revision: int) -> Known | None:
    """What is known with what has ended since; None where the newest lines of the history do not reach back so far."""
    if known.newest is None or known.ran is None or known.added >= ANEW:
        return None
    # Slots that were skipped become longer, and nothing is said of them here.
    runs = [run for run in store.history(name, kind, NEWEST) if run.state is not RunState.SKIPPED]
    there = next((place for place, run in enumerate(runs) if _mark(run) == known.newest), None)
    if there is None:
        return None
    new = runs[:there]
    newest = _mark(new[0]) if new else known.newest
    return Known(revision, past(new, known.past), as_numbers(new, known.ran), newest, known.added + len(new))


def _mark(run: RunRecord) -> tuple[str, datetime | None]:
    return run.id, run.finished_at


def _load(runs: Iterable[Run | JobRow]) -> dict[str, Load]:
    """By function, how many of these are under way."""
    counts = Counter((run.task, run.state) for run in runs)
    return {
        name: Load(counts[name, RunState.RUNNING], counts[name, RunState.QUEUED])
        for name in {name for name, _ in counts}
    }


def _running(attempt: int, since: datetime | None, slot: datetime | str | None = None) -> Ran:
    return as_numbers([RunRecord("", slot, RunState.RUNNING, attempt, started_at=since)])


def _told(former: Told | None, row: Row | None, look: int) -> Told:
    if former is not None and former.row == row:
        return former
    if row is None:
        return Told(None, "", "", look)
    text, other = json.dumps(row), for_anybody(row)
    return Told(row, text, text if other == row else json.dumps(other), look)


def _state(row: Row, now: float) -> str:
    """In the words of the graph; what has no value yet is not stale, as in the table."""
    has_value, late = row["updated"] is not None, row["until"] is not None and row["until"] < now
    return state_of(row["state"], row["error"], has_value and (row["stale"] or late), has_value or row["kind"] == MEMO)
