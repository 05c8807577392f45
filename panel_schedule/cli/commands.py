"""``panel-schedule``: what each command does with a file, or with a store that is in use."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click

import panel_schedule as ps

from ..clock import SystemClock
from ..config import ENV_PREFIX, Config, shown
from ..coordination.history import JOB, MEMO
from ..coordination.record import Refusal
from ..coordination.tasks import TASK
from ..errors import ConfigError, ScheduleError, TriggerError
from ..functions.calls import is_async
from ..functions.run import FAILURES, RunRecord, RunState, new_id
from ..functions.task import Policy
from ..stores.base import Store
from ..triggers import After, Trigger, parse_period
from ..triggers.words import in_words
from . import live
from .table import ago, iso, lasting, local, table
from .tasks_file import Unusable, load, own_lines, root_of
from .upcoming import Upcoming, upcoming

# How often, in seconds, it is looked whether a run has ended that somebody waits for.
LOOK = 0.1

# So many names are told of those that there are.
NAMES = 20


class _Commands(click.Group):
    """Errors of the package are told without a traceback, and end with exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ScheduleError, Unusable) as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ps.__version__, prog_name="panel-schedule")
def main() -> None:
    """Scheduled tasks of Panel dashboards: check and run a file, or look into a store that is in use."""


# ------------------------------------------------------------ options that several commands have


_file = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_kind = click.option("--kind", type=click.Choice([TASK, JOB, MEMO]), help="Of functions of this kind alone.")


def _on_store(command: Callable[..., Any]) -> Callable[..., Any]:
    """With `store`, opened as the option and the environment say."""

    @click.option(
        "--store", "url", metavar="URL", envvar=f"{ENV_PREFIX}STORE", show_envvar=True, required=True,
        help="That of the server: file:///dir, redis://..., postgresql://...",
    )  # fmt: skip
    @wraps(command)
    def opening(*args: Any, url: str, **options: Any) -> Any:
        with _usage(), live.opened(_on(Config(), url), SystemClock()) as store:
            return command(*args, store=store, **options)

    return opening


@contextmanager
def _usage() -> Iterator[None]:
    """What an option says that means nothing is a matter of usage."""
    try:
        yield
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


def _on(config: Config, url: str) -> Config:
    config.store = url
    return config


def _period(text: str) -> timedelta:
    try:
        return parse_period(text)
    except TriggerError as error:
        raise click.BadParameter(str(error)) from None


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise click.BadParameter(f"{name!r} is no IANA time zone such as 'Europe/Berlin'.") from None


def _instant(text: str) -> datetime:
    """In UTC where it has no offset."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no date such as 2026-03-28 or 2026-03-28T12:00+01:00.") from None
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)


def _say(text: str, data: Any, as_json: bool) -> None:
    click.echo(json.dumps(data, indent=2) if as_json else text)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As wide as the terminal, where there is one."""
    return table(headers, rows, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def _require(name: str, there: Iterable[str], what: str = "task") -> None:
    """An unknown name is told with those that there are; of many, with those that are like it."""
    if name not in (names := sorted(there)):
        shown = names if len(names) <= NAMES else get_close_matches(name, names, NAMES, 0.5) or names[:NAMES]
        more = f", and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
        raise click.UsageError(f"There is no {what} {name!r}; there are: {', '.join(shown) or 'none'}{more}.")


def _functions(store: Store, name: str | None, kind: str | None) -> list[tuple[str, str]]:
    """Kind and name of those that have a history: all, or those of a name, or kind."""
    there = [(each, function) for each, function in live.functions_of(store) if kind in (None, each)]
    if name is not None:
        _require(name, {function for _, function in there}, kind or "function")
    return [(each, function) for each, function in there if name in (None, function)]


def _tell_if_alone(store: Store) -> None:
    if not live.is_in_use(store):
        click.echo("No process is at this store: nothing runs before one starts.", err=True)


# ------------------------------------------------------------ a file


@main.command()
@_file
@_json
def check(file: Path, as_json: bool) -> None:
    """
    Import FILE, and list what it schedules. Nothing is started.

    Exits with 1, and the reason, when FILE cannot be imported or run, or schedules nothing.
    """
    load(file)
    ps._runtime.check()
    found = []
    for task in ps.tasks.values():
        first = _upcoming(file, task.policy.trigger, SystemClock().now(), 1)
        where = task.policy.executor or ("loop" if is_async(task.function) else "thread")
        found.append(("task", task.name, _words(task.policy), first[0].at if first else None, where))
    found += [("job", name, "on request", None, job.policy.executor) for name, job in ps._runtime.jobs.items()]
    found += [("memo", name, "on request", None, memo.executor) for name, memo in ps._runtime.memos.items()]
    if not found:
        raise click.ClickException(f"{file} schedules nothing: it has no @ps.schedule, @ps.background or @ps.memoize.")
    rows = [(name, kind, schedule, local(at), where) for kind, name, schedule, at, where in found]
    data = [
        {"name": name, "kind": kind, "schedule": schedule, "next_run": iso(at), "executor": where}
        for kind, name, schedule, at, where in found
    ]
    _say(_table(("NAME", "KIND", "SCHEDULE", "NEXT RUN", "RUNS IN"), rows), data, as_json)


@main.command("next")
@_file
@click.option("-n", "count", type=click.IntRange(1), default=5, show_default=True, help="So many runs of each task.")
@click.option("--task", "name", metavar="NAME", help="Of this task alone.")
@click.option(
    "--tz", "zone", type=_zone, metavar="ZONE", help="Tell times in this zone, and not in that of each schedule."
)
@click.option("--from", "start", type=_instant, metavar="DATE", help="Begin at this date, and not now.")
@_json
def next_(file: Path, count: int, name: str | None, zone: tzinfo | None, start: datetime | None, as_json: bool) -> None:
    """
    List when the tasks of FILE run next. Nothing is started.

    Where clocks are moved before a run, it says so.
    """
    load(file)
    if name is not None:
        _require(name, ps.tasks)
    said, data, now = [], [], start or SystemClock().now()
    for task in ps.tasks.values():
        if name in (None, task.name):
            trigger = task.policy.trigger
            runs = _upcoming(file, trigger, now, count, zone)
            said.append(
                "\n".join([f"{task.name}: {_words(task.policy)}", *_lines(trigger, runs, None if start else now)])
            )
            data.append(
                {
                    "name": task.name,
                    "schedule": _words(task.policy),
                    "after": [upstream.name for upstream in task.policy.upstream],
                    "runs": [
                        {
                            "at": iso(run.at),
                            "utc": iso(run.at.astimezone(UTC)),
                            "clocks_moved": run.moved.total_seconds(),
                        }
                        for run in runs
                    ],
                }
            )
    _say("\n\n".join(said) or "No task is scheduled.", data, as_json)


def _words(policy: Policy) -> str:
    """When a task runs, and how late that may be."""
    said = in_words(policy.trigger)
    if policy.jitter:
        said += f"; each up to {lasting(policy.jitter)} later"
    if policy.misfire_grace is not None:
        said += f"; none that is more than {lasting(policy.misfire_grace)} late"
    return said


def _lines(trigger: Trigger, runs: list[Upcoming], now: datetime | None) -> list[str]:
    if isinstance(trigger, After):
        names = " or ".join(task.name for task in trigger.tasks)
        return [f"  whenever {names} has a new final value; no clock says when"]
    times = [local(run.at) for run in runs]
    width = max(map(len, times), default=0)
    notes = [run.note or (ago(run.at, now) if now else "") for run in runs]
    lines = [f"  {time:{width}}  {note}".rstrip() for time, note in zip(times, notes, strict=True)]
    return lines or ["  never: its dates are over"]


def _upcoming(file: Path, trigger: Trigger, now: datetime, count: int, zone: tzinfo | None = None) -> list[Upcoming]:
    """A function of the user's may be asked, and fail."""
    default = ZoneInfo(ps.config.timezone) if ps.config.timezone else UTC
    try:
        return upcoming(trigger, now, count, zone, default)
    except Exception as error:
        raise Unusable(f"{trigger} gives no dates.\n\n{own_lines(error, root_of(file))}") from error


@main.command()
@_file
@click.option("--store", "url", metavar="URL", help="In place of what FILE or the environment says.")
def run(file: Path, url: str | None) -> None:
    """
    Run the tasks of FILE without a web server. SIGTERM or Ctrl-C ends it.

    With a store it shares each slot with all other processes that have it, be they servers or more of these.
    """
    if url is not None:
        with _usage():
            ps.config.store = url
    load(file)
    if url is not None and ps.config.store != url:
        raise click.UsageError(f"{file} sets ps.config.store itself, to {shown(ps.config.store)}; leave --store out.")
    ps._runtime.check()
    # After the file, which may set up its own.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("panel_schedule").info(
        "%d tasks of %s run here; the store is %s.", len(ps.tasks), file, shown(ps.config.store)
    )
    ps.run_forever()


# ------------------------------------------------------------ a store that is in use


@main.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_on_store
@_json
def status(names: tuple[str, ...], store: Store, as_json: bool) -> None:
    """
    Say how the tasks are, all or those named.

    Where no process is there that would run them it says so. Exits with 1 when one of them is stale, and when there is
    none.
    """
    there, now = live.tasks_of(store), SystemClock().now()
    for name in names:
        _require(name, there)
    found = [live.status_of(store, there[name], now, UTC) for name in names or there]
    data = [asdict(each) | {"last_success": iso(each.last_success), "next_run": iso(each.next_run)} for each in found]
    headers = ("NAME", "STATE", "SCHEDULE", "LAST SUCCESS", "AGE", "NEXT RUN", "FAILURES", "ERROR", "OWNER")
    rows = [
        (
            each.name, _state(each), each.schedule, local(each.last_success),
            lasting(now - each.last_success) if each.last_success else "", local(each.next_run), str(each.failures),
            each.error, each.owner,
        )
        for each in found
    ]  # fmt: skip
    _say(_table(headers, rows) if found else "Nobody has scheduled a task there.", data, as_json)
    if found and not as_json:
        _tell_if_alone(store)
    if not found or any(each.stale for each in found):
        raise SystemExit(1)


def _state(status: live.Status) -> str:
    state = f"{status.state} {status.percent} %" if status.percent >= 0 else status.state
    return f"{state}, stale" if status.stale and status.state != "failed" else state


@main.command()
@click.argument("name", required=False)
@click.option("--since", type=_period, metavar="PERIOD", help="Not longer ago: 1d, 12h.")
@click.option("--failed", is_flag=True, help="Those that failed, timed out or crashed.")
@_kind
@click.option("-n", "count", type=click.IntRange(1), help="The last so many of these.")
@click.option("--long", is_flag=True, help="With users, arguments, processes, tracebacks and log lines.")
@_on_store
@_json
def history(
    name: str | None, since: timedelta | None, failed: bool, kind: str | None, count: int | None, long: bool,
    store: Store, as_json: bool,
) -> None:  # fmt: skip
    """
    List the runs that have ended.

    Newest first; of the task, job or memoized function NAME, or of all.

    Exits with 1 where --failed finds a run.
    """
    now = SystemClock().now()
    found = [
        (kind, each, run)
        for kind, each in _functions(store, name, kind)
        for run in live.runs_of(store, each, kind)
        if (since is None or live.when(run) >= now - since) and (not failed or run.state in FAILURES)
    ]
    found = sorted(found, key=lambda each: live.when(each[2]), reverse=True)[:count]
    data = [
        {"name": each, "kind": kind} | {key: _plain(value) for key, value in asdict(run).items()}
        | {"duration": run.duration}
        for kind, each, run in found
    ]  # fmt: skip
    rows = [
        (
            local(live.when(run)), each, kind, run.state.replace("_", " "),
            f"{run.duration:.1f} s" if run.duration is not None else "", str(run.attempt), run.id,
            run.error or run.reason,
        )
        for kind, each, run in found
    ]  # fmt: skip
    headers = ("ENDED", "NAME", "KIND", "OUTCOME", "TOOK", "ATTEMPT", "RUN", "WHY")
    text = _table(headers, rows) if found else "No run."
    if long:
        text = "\n\n".join([text, *(_from_near(each, run) for _, each, run in found)])
    _say(text, data, as_json)
    if failed and found:
        raise SystemExit(1)


def _from_near(name: str, run: RunRecord) -> str:
    """All that there is to say of one run."""
    facts = {
        "called with": run.arguments,
        "for": run.user,
        "in": run.owner,
        "traceback": run.traceback,
        "log": run.logs,
    }
    lines = [f"{name}, run {run.id}: {run.state.replace('_', ' ')} {local(live.when(run))}"]
    for what, text in facts.items():
        if "\n" in text:
            lines += [f"  {what}:", *(f"    {line}" for line in text.splitlines())]
        elif text:
            lines.append(f"  {what}: {text}")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    return iso(value) if isinstance(value, datetime) else value


@main.command()
@click.argument("name")
@click.option("--wait", "patience", type=_period, metavar="PERIOD", help="Wait for its end, so long at most.")
@_on_store
@_json
def refresh(name: str, patience: timedelta | None, store: Store, as_json: bool) -> None:
    """
    Let the task NAME run now.

    A process that has it runs it; when there is none, the next one that starts.

    Exits with 1 when it fails, or does not end in time.
    """
    _require(name, live.tasks_of(store))
    refusal = store.tasks.request(name, new_id())
    if refusal is Refusal.ABSENT:
        raise click.ClickException(f"The schedule of task {name!r} was removed, so that nobody runs it.")
    outcome = "running" if refusal else "requested"
    if patience is not None:
        outcome = _await_end(store, name, patience)
    said = {"running": f"Task {name!r} runs already.", "requested": f"Task {name!r} was asked to run."}
    _say(said.get(outcome, f"Task {name!r} {outcome.replace('_', ' ')}."), {"name": name, "outcome": outcome}, as_json)
    if patience is None and not as_json:
        _tell_if_alone(store)
    if patience is not None and outcome != RunState.SUCCEEDED:
        raise SystemExit(1)


def _await_end(store: Store, name: str, patience: timedelta) -> str:
    clock = SystemClock()
    until = clock.monotonic() + patience.total_seconds()
    while clock.monotonic() < until:
        record = store.records.read(TASK, name)
        if record is None or record.state.forgotten:
            raise click.ClickException(f"Task {name!r} was forgotten meanwhile.")
        if not record.state.requested and (record.state.over or not record.state.run_id):
            return str(record.state.outcome)
        time.sleep(LOOK)
    raise click.ClickException(
        f"Task {name!r} has not ended within {lasting(patience)}. `panel-schedule status {name}` says whether a "
        "process is there that runs it."
    )


@main.command()
@click.argument("name")
@_on_store
@_json
def pause(name: str, store: Store, as_json: bool) -> None:
    """Pause the task NAME. All processes skip its slots until `resume`; a run in flight goes on."""
    _require(name, live.tasks_of(store))
    store.tasks.amend(name, paused=True)
    _say(f"Task {name!r} is paused.", {"name": name, "paused": True}, as_json)


@main.command()
@click.argument("name")
@_on_store
@_json
def resume(name: str, store: Store, as_json: bool) -> None:
    """Go on with the task NAME, from its next slot."""
    _require(name, live.tasks_of(store))
    store.tasks.amend(name, paused=False)
    _say(f"Task {name!r} goes on with its next slot.", {"name": name, "paused": False}, as_json)


@main.command()
@click.argument("run_id", metavar="ID", required=False)
@_on_store
@_json
def cancel(run_id: str | None, store: Store, as_json: bool) -> None:
    """Cancel the run ID of a task or a job. Without an ID, list what can be cancelled."""
    there = live.under_way(store)
    if run_id is None:
        rows = [(id, name, kind) for id, (kind, name) in there.items()]
        data = [{"run": id, "name": name, "kind": kind} for id, name, kind in rows]
        _say(_table(("RUN", "NAME", "KIND"), rows) if rows else "No run is under way.", data, as_json)
        return
    _require(run_id, there, "run under way with the id")
    kind, name = there[run_id]
    if kind == TASK:
        store.do(store.tasks.cancel(name, run_id))
    else:
        store.queue.cancel(run_id)
    _say(f"Run {run_id} of {name!r} was asked to stop.", {"run": run_id, "name": name, "kind": kind}, as_json)


@main.command()
@click.argument("name")
@_on_store
@_json
def invalidate(name: str, store: Store, as_json: bool) -> None:
    """Forget the answers of the memoized function NAME."""
    _require(name, live.memoized(store), "answer of a memoized function")
    store.cache.invalidate(name)
    _say(f"The answers of {name!r} are forgotten.", {"name": name}, as_json)


@main.command()
@click.argument("name", required=False)
@click.option("--forget", is_flag=True, help="Of a task that the code no longer has: its value and schedule, too.")
@_kind
@_on_store
@_json
def purge(name: str | None, forget: bool, kind: str | None, store: Store, as_json: bool) -> None:
    """Delete the history of the function NAME, or of all."""
    functions = _functions(store, name, TASK if forget else kind)
    if forget:
        _forget(name, store)
        said = f"Task {name!r} is forgotten."
    else:
        for each, function in functions:
            live.erase(store, each, function)
        of_kind = "All histories are deleted." if kind is None else f"All histories of the kind {kind} are deleted."
        said = f"The history of {name!r} is deleted." if name else of_kind
    _say(said, [{"name": function, "kind": each} for each, function in functions], as_json)


def _forget(name: str | None, store: Store) -> None:
    if name is None:
        raise click.UsageError("--forget is for one task: name it.")
    _require(name, there := live.tasks_of(store))
    state = there[name].state
    if holders := [each for each in (state.scheduled_by, state.claimer) if each and store.records.alive(each)]:
        raise click.ClickException(
            f"Task {name!r} is in use by the process {holders[0]}. Take it out of the code first, and stop that one."
        )
    store.tasks.forget(name)
