"""What the monitor says of each function: pure, of plain values that a browser can read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple

from ..coordination.history import JOB, MEMO
from ..coordination.tasks import TASK
from ..errors import TriggerError
from ..functions.background import Background
from ..functions.memoize import Memoized
from ..functions.run import FAILURES, Run, RunRecord, RunState, failures_in_a_row
from ..hashing.keys import arguments_text
from ..scheduling.state import Seen
from ..serialize.errors import first_line, type_of
from ..triggers import Every
from ..triggers.coming import slots_after, zone_of

Row = dict[str, Any]

# So many durations are drawn of a function, and so many runs listed; so many times to come are told.
DURATIONS, RUNS, NEXT = 20, 50, 5

# So many partial results of a run under way.
PARTIALS = 5

# So much of an error is told in a table.
LETTERS = 300


class Past(NamedTuple):
    """
    What the history of a function comes to.

    Attributes
    ----------
    failures : int
        In a row, up to now.
    error : str
        First line of the last run's failure; ``""`` where it has none.
    success : float or None
        When the last one ended well, in Unix seconds.
    durations : list of [float, int]
        Of the last runs, oldest first: seconds, and 0 for a failure, else 1.
    """

    failures: int = 0
    error: str = ""
    success: float | None = None
    durations: Sequence[Sequence[float]] = ()


NOTHING = Past()


def past(runs: Sequence[RunRecord], before: Past = NOTHING) -> Past:
    """Of a history, newest first, or of what was added to one that comes to `before`."""
    last = next((run for run in runs if run.state is not RunState.SKIPPED), None)
    success = next((run for run in runs if run.state is RunState.SUCCEEDED), None)
    ended = list(islice((run for run in runs if run.duration is not None), DURATIONS))
    durations = [[round(run.duration or 0, 4), int(run.state not in FAILURES)] for run in reversed(ended)]
    return Past(
        failures_in_a_row(runs) + (before.failures if success is None else 0),
        before.error if last is None else last.error[:LETTERS] if last.state in FAILURES else "",
        before.success if success is None else _seconds(success.finished_at),
        [*before.durations, *durations][-DURATIONS:],
    )


class Load(NamedTuple):
    """How many runs of a background function are under way, and how many wait."""

    running: int = 0
    waiting: int = 0


class Kept(NamedTuple):
    """
    Of a memoized function, in all processes of this server.

    Attributes
    ----------
    hits, computed : int
        How often an answer was there, and how often it was computed.
    answers, bytes : int
        How many are there, and their bytes, as far as these are known.
    """

    hits: int = 0
    computed: int = 0
    answers: int = 0
    bytes: int = 0


def identity(kind: str, name: str) -> str:
    """By which a browser names a function."""
    return f"{kind} {name}"


def task_row(seen: Seen, past: Past, schedule: str) -> Row:
    """Of a task, with its schedule in words; times are Unix times in seconds."""
    status = seen.status
    return _row(TASK, status.name, past) | {
        "state": status.state,
        "schedule": schedule,
        "updated": _seconds(status.updated_at),
        "until": _seconds(seen.promise),
        "stale": status.stale,
        "error": status.error[:LETTERS],
        "next": _seconds(status.next_run),
        "percent": status.percent,
        "message": status.message,
        "viewers": seen.viewers,
    }


def job_row(job: Background[Any, Any], past: Past, load: Load) -> Row:
    """Of a background function."""
    state = "running" if load.running else "queued" if load.waiting else "failed" if past.error else "idle"
    waiting = f", {load.waiting} wait" if load.waiting else ""
    message = f"{load.running} under way{waiting}" if any(load) else ""
    return _row(JOB, job.name, past) | {"state": state, "schedule": "on request", "message": message}


def memo_row(memo: Memoized[Any, Any], past: Past, kept: Kept) -> Row:
    """Of a memoized function."""
    ttl = memo.policy.ttl
    after = f"after {', '.join(task.name for task in memo.policy.after)}" if memo.policy.after else ""
    for_long = str(Every(ttl)).replace("every", "kept") if isinstance(ttl, timedelta) else "kept"
    return _row(MEMO, memo.name, past) | {
        "state": "failed" if past.error else "idle",
        "schedule": ", ".join(filter(None, [for_long, after])),
        "message": f"{kept.answers:,} at hand{_size(kept.bytes)}, {_hits(kept)}",
    }


def _hits(kept: Kept) -> str:
    asked = kept.hits + kept.computed
    rate = f" ({100 * kept.hits // asked} %)" if asked else ""
    return f"{kept.hits:,} hit{'s' * (kept.hits != 1)}{rate}"


def _row(kind: str, name: str, past: Past) -> Row:
    """What the history says."""
    return {
        "id": identity(kind, name),
        "kind": kind,
        "name": name,
        "updated": past.success,
        "until": None,
        "stale": False,
        "error": past.error,
        "next": None,
        "percent": -1,
        "viewers": None,
        "failures": past.failures,
        "durations": past.durations,
    }


def for_anybody(row: Row) -> Row:
    """As those get it who are no admins."""
    return row | {"error": told_error(row["error"], row["kind"], admin=False)}


def told_error(line: str, kind: str, admin: bool) -> str:
    """The first line of an error, or its type alone where a visitor's arguments may be in it: a task has none."""
    return line if admin or kind == TASK else type_of(line)


# ------------------------------------------------------------ one function, from near


def coming(seen: Seen, now: datetime, zone: tzinfo) -> list[Row]:
    """The next times of a task, in the zone of its schedule, or in `zone`."""
    if seen.status.state in ("paused", "removed"):
        return []
    where = zone_of(seen.trigger, None, zone)
    try:
        slots = list(islice(slots_after(seen.trigger, now), NEXT))
    except TriggerError:  # of the user's own code, and told elsewhere
        slots = []
    return [{"at": slot.timestamp(), "text": f"{slot.astimezone(where):%a %d %b %H:%M:%S %Z}"} for slot in slots]


def token_of(id: str) -> str:
    """By which a browser names a run. Who knows the id of a job's run may follow it."""
    return sha256(id.encode()).hexdigest()[:16]


def listed(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The last ones of a history, newest first; and of those before, as many that have failed."""
    return [*runs[:RUNS], *islice((run for run in runs[RUNS:] if run.state in FAILURES), RUNS)]


def run_row(run: RunRecord, kind: str, admin: bool) -> Row:
    """Of a run of the history of a function of this kind."""
    return {
        "run": token_of(run.id),
        "state": run.state.value,
        "at": _seconds(run.started_at or run.finished_at or run.queued_at),
        "duration": run.duration,
        "attempt": run.attempt,
        "error": told_error(run.error, kind, admin),
        "reason": run.reason,
    }


def live_row(run: Run, kind: str, admin: bool) -> Row:
    """Of a run under way of a function of this kind."""
    shown: Row = {
        "run": token_of(run.id),
        "state": run.state.value,
        "at": _seconds(run.started_at or run.queued_at),
        "percent": run.percent,
        "attempt": run.attempt,
    }
    return shown | _message(run, kind, admin) | ({"user": run.user} if admin else {})


def _message(run: Run, kind: str, admin: bool) -> Row:
    """What a background function says is for whoever asked for the run, and for admins."""
    return {"message": run.message} if admin or kind != JOB else {}


def run_page(run: RunRecord | Run, kind: str, admin: bool) -> Row:
    """All that there is to say of one run of a function of this kind. What is for admins is there for them alone."""
    times = {"Slot": run.key, "Asked for": run.queued_at, "Began": run.started_at, "Ended": run.finished_at}
    times |= {"Until": run.until}
    shown: Row = {
        "run": token_of(run.id),
        "state": run.state.value,
        "live": not run.state.final,
        "times": [(name, _seconds(at)) for name, at in times.items() if isinstance(at, datetime)],
        "error": told_error(first_line(run.error) if isinstance(run, Run) else run.error, kind, admin),
        "reason": str(run.reason),
        "attempt": run.attempt,
    }
    if isinstance(run, RunRecord):
        shown |= {"duration": run.duration, "owner": run.owner}
        mine: Row = {"arguments": run.arguments, "traceback": run.traceback, "logs": run.logs}
    else:
        shown |= {"percent": run.percent} | _message(run, kind, admin)
        first = max(0, len(run.partials) - PARTIALS)
        partials = [arguments_text((), [each], {}) for each in run.partials[first:]]
        mine = {"arguments": run.called_with, "traceback": run.traceback, "logs": run.logs,
                "partials": partials, "first": first + 1}  # fmt: skip
    return shown | ({"user": run.user or "", **mine} if admin else {})


def _size(count: float) -> str:
    """In a unit of its own; nothing where it is not known."""
    if not count:
        return ""
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if count < 999.5:
            break
        count, unit = count / 1000, larger
    return f" ({count:.3g} {unit})"


def _seconds(instant: datetime | None) -> float | None:
    return None if instant is None else instant.timestamp()
