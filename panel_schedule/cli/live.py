"""What a store that is in use says of its tasks, without the app's code: no value is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..clock import Clock
from ..config import Config
from ..coordination import answers, history, jobs, processes
from ..coordination.record import EPOCH, Record
from ..coordination.tasks import TASK, VALUE, TaskState
from ..errors import ConfigError
from ..functions.run import RunRecord, RunState, failures_in_a_row
from ..runtime import open_records
from ..scheduling.planner import ALLOWANCE, second_slot
from ..stores.base import Store
from ..stores.records import HELD, Change, Tell
from ..stores.tasks import DATES
from ..triggers import Trigger
from ..triggers.coming import slot_after, zone_of
from ..triggers.words import in_words


@dataclass(frozen=True, slots=True)
class Status:
    """
    What a store says of one task.

    Attributes
    ----------
    name : str
    state : str
        ``"idle"``, ``"requested"``, ``"running"``, ``"orphaned"`` (its process is gone, and nobody has taken the run
        over), ``"paused"``, ``"failed"`` or ``"removed"``.
    schedule : str
        In words.
    stale : bool
        The value is older than the task has promised, or the last run has failed.
    version : int
        Of the value; 0 where there is none.
    last_success, next_run : datetime or None
        Aware; the next run is None where no clock decides, or only the code knows.
    failures : int
        Runs that have failed since the last success, as far as the history goes back.
    error : str
        First line of the last failure.
    owner : str
        The process that has claimed it last; ``"(gone)"`` is added where that is not alive any more.
    run : str
        Id of the run under way; ``""`` where there is none.
    percent : int
        How far that is, -1 while unknown.
    """

    name: str
    state: str
    schedule: str
    stale: bool
    version: int
    last_success: datetime | None
    next_run: datetime | None
    failures: int
    error: str
    owner: str
    run: str
    percent: int


@contextmanager
def opened(config: Config, clock: Clock) -> Iterator[Store]:
    """
    The store that a configuration names, for as long as it is needed.

    Raises
    ------
    ConfigError
        When it is not one that this process can share, or a directory without a store.
    StoreError
        When it cannot be opened.
    """
    url = config.store
    if url in ("auto", "memory://"):
        raise ConfigError(
            f"The store {url!r} is private to the processes of one server, so that nothing else can look into it. Give "
            "the server a store that others can open, such as PANEL_SCHEDULE_STORE=file:///var/lib/myapp, and name "
            "the same one here."
        )
    if urlsplit(url).scheme == "file" and not (Path(unquote(urlsplit(url).path)) / "store.db").exists():
        raise ConfigError(f"There is no store at {url}. Name the one that the server has, as its ps.config.store.")
    store = Store(open_records(config, clock), clock)
    try:
        yield store
    finally:
        store.close()


# ------------------------------------------------------------ tasks


def tasks_of(store: Store) -> dict[str, Record]:
    """The records of all tasks that somebody has scheduled or run, by name."""
    records = sorted(store.records.scan(TASK), key=lambda record: record.name)
    return {
        each.name: each
        for each in records
        if each.state.first_seen is not None and not each.state.forgotten and not each.name.startswith(DATES)
    }


def is_in_use(store: Store) -> bool:
    """Whether a process is there that runs tasks: one that has said so, or has scheduled or claimed one."""
    names = {each.name for each in store.records.scan(processes.SPACE)}
    for record in tasks_of(store).values():
        names |= {record.state.scheduled_by, record.state.claimer} - {""}
    return any(map(store.records.alive, names))


def status_of(store: Store, record: Record, now: datetime, zone: tzinfo) -> Status:
    """Of one task; its next run in the zone of its schedule, or in `zone`."""
    state: TaskState = record.state
    trigger = store.tasks.schedule(record)
    runs = runs_of(store, record.name) if state.error else []
    return Status(
        name=record.name,
        state=_state(store, record),
        schedule=in_words(trigger) if trigger is not None else state.schedule,
        stale=_is_stale(record, trigger, now),
        version=state.version if VALUE in record.parts else 0,
        last_success=_last_success(state, runs),
        next_run=_next_run(state, trigger, now, zone),
        failures=failures_in_a_row(runs),
        error=state.error,
        owner=_owner(store, state),
        run=state.run_id if not state.over else "",
        percent=state.percent if state.run_id and not state.over else -1,
    )


def _state(store: Store, record: Record) -> str:
    state: TaskState = record.state
    if state.removed:
        return "removed"
    if state.run_id and not state.over:
        return "running" if store.records.alive(record.owner or "") else "orphaned"
    if state.requested:
        return "requested"
    if state.paused:
        return "paused"
    return "failed" if state.error else "idle"


def _is_stale(record: Record, trigger: Trigger | None, now: datetime) -> bool:
    """Also where no process is there that would find it so."""
    state: TaskState = record.state
    if state.removed:
        return False
    if state.stale or (state.error != "" and state.stale_after is None):
        return True
    if state.paused:
        return False
    since = (state.seen_wave or state.updated_at) if VALUE in record.parts else state.first_seen
    if state.stale_after is not None and state.updated_at is not None:
        return now >= state.updated_at + timedelta(seconds=state.stale_after) + ALLOWANCE
    until = second_slot(trigger, since) if trigger is not None and since is not None else None
    return until is not None and until < now


def _last_success(state: TaskState, runs: Sequence[RunRecord]) -> datetime | None:
    if not state.error:
        return state.updated_at
    return next((run.finished_at for run in runs if run.state is RunState.SUCCEEDED), None)


def _next_run(state: TaskState, trigger: Trigger | None, now: datetime, zone: tzinfo) -> datetime | None:
    if trigger is None or state.paused or state.removed:
        return None
    slot = slot_after(trigger, now)
    return None if slot is None else slot.astimezone(zone_of(trigger, None, zone))


def _owner(store: Store, state: TaskState) -> str:
    if not state.claimer or store.records.alive(state.claimer):
        return state.claimer
    return f"{state.claimer} (gone)"


# ------------------------------------------------------------ runs


def functions_of(store: Store) -> list[tuple[str, str]]:
    """Kind and name of each function that may have a history."""
    found = [(TASK, name) for name in tasks_of(store)]
    return found + [
        (each.group, each.name.removeprefix(f"{each.group} ")) for each in store.records.scan(history.SPACE)
    ]


def runs_of(store: Store, name: str, kind: str = TASK) -> list[RunRecord]:
    """The history of one function, newest first."""
    return store.history(name, kind)


def when(run: RunRecord) -> datetime:
    """When a run ended, or the slots were that were skipped."""
    return run.finished_at or run.queued_at or EPOCH


def erase(store: Store, kind: str, name: str) -> None:
    """Drop the history of one function."""
    space, name = (TASK, name) if kind == TASK else (history.SPACE, history.name_of(kind, name))
    store.records.write([Change(space, name, history.erase)], tell=Tell.NOW)


def under_way(store: Store) -> dict[str, tuple[str, str]]:
    """By its id what each run is that can be cancelled: a task's or a job's, and of which function."""
    found = {each.state.run_id: (TASK, each.name) for each in store.records.scan(TASK) if each.state.run_id}
    return found | {each.name: (history.JOB, each.group) for each in store.records.scan(jobs.SPACE, owner=HELD)}


def memoized(store: Store) -> set[str]:
    """The memoized functions of which there are answers."""
    return {record.group for record in store.records.scan(answers.SPACE)}
