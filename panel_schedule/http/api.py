"""Tasks as JSON: what they are at, what became of their runs, and what may be done with them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import panel as pn

from ..engine.presence import Process
from ..errors import RegistrationError
from ..executors.threads import ThreadExecutor
from ..functions.run import Run, RunRecord
from ..functions.task import Task
from ..runtime import Runtime
from ..stores.queue import JobRow
from ..triggers.words import in_words
from .access import Handler, all_tasks
from .openapi import MOST_RUNS, document
from .shared_answer import SharedAnswer

# Of an executor, and of a worker that it knows, what there is to say.
_LOAD, _WORKER = ("running", "waiting", "places"), ("executor", "name", "runs")

# Of a run, what only admins see.
FOR_ADMINS = ("user", "arguments", "traceback", "logs")


class Tasks(Handler):
    """All tasks, by name: the same for all who ask within a moment, as monitors do again and again."""

    def initialize(self, runtime: Runtime, threads: ThreadExecutor, shared: SharedAnswer) -> None:  # type: ignore[override]
        super().initialize(runtime, threads)
        self._shared = shared
        self._tag: str | None = None

    async def get(self) -> None:
        self.require_reader()
        body, self._tag = await self.wait(self._shared.get())
        self.answer(body)

    def compute_etag(self) -> str | None:
        return self._tag


class OneTask(Handler):
    """One task."""

    async def get(self, name: str) -> None:
        self.require_reader()
        self.answer(await self.aside(task_as_json, self.runtime, self.find(name)))


class TaskRuns(Handler):
    """Its last runs, newest first; from one on, those before it."""

    async def get(self, name: str) -> None:
        self.require_reader()
        task, text = self.find(name), self.get_query_argument("limit", "50")
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MOST_RUNS):
            self.refuse(400, f"limit={text!r} is no number from 1 to {MOST_RUNS}.")
        before = self.get_query_argument("before", "")
        runs = await self.aside(self._last, task, int(text), before)
        if runs is None:  # an empty answer were the end of the history
            self.refuse(404, f"before={before!r} is no run in the history of task {name!r}, or it is there no more.")
        self.answer({"runs": [run_as_json(run, self.is_admin) for run in runs]})

    def _last(self, task: Task[Any], limit: int, before: str) -> list[RunRecord] | None:
        """None where the run before which they are to be is not there."""
        runs = task.history
        first = next((place for place, run in enumerate(runs, 1) if run.id == before), None) if before else 0
        return None if first is None else runs[first : first + limit]


class Change(Handler):
    """What is done with a task."""

    def initialize(self, runtime: Runtime, threads: ThreadExecutor, shared: SharedAnswer) -> None:  # type: ignore[override]
        super().initialize(runtime, threads)
        self._shared = shared

    async def post(self, name: str, action: str) -> None:
        self.require_change()
        task = self.find(name)
        self.log_change(action, f"task {name}")
        try:
            run = await self.aside(getattr(self, f"_{action}"), task)
        except RegistrationError as error:  # it was cancelled meanwhile, or its schedule removed
            self.refuse(409, str(error))
        if run is None and action == "cancel":
            self.refuse(409, f"Task {name!r} has no run under way.")
        self._shared.forget()
        shown = None if run is None else {"id": run.id, "state": run.state.value}
        content = {"task": await self.aside(task_as_json, self.runtime, task), "run": shown}
        self.answer(content, 202 if action in ("refresh", "cancel") else 200)

    def _refresh(self, task: Task[Any]) -> Run:
        return task.refresh()

    def _cancel(self, task: Task[Any]) -> Run | None:
        return self.runtime.scheduler.cancel(task)

    def _pause(self, task: Task[Any]) -> None:
        task.pause()

    def _resume(self, task: Task[Any]) -> None:
        task.resume()


class Runs(Handler):
    """The runs of background functions that are under way, in all processes."""

    async def get(self) -> None:
        self.require_admin()
        runs = await self.aside(lambda: self.runtime.dispatcher.under_way())
        self.answer({"runs": [live_as_json(run) for run in runs]})


class CancelRun(Handler):
    """What is done with one of them."""

    async def post(self, id: str) -> None:
        self.require_change()
        run = await self.aside(self._look_up, id)
        if run is None:
            self.refuse(404, f"There is no run {id!r} of a background function, or it has ended too long ago.")
        if run.state.final:
            self.refuse(409, f"Run {id!r} has ended already: {run.state.replace('_', ' ')}.")
        self.log_change("cancel", f"run {id} of {run.task}")
        await self.aside(self._cancel, id)
        now = await self.aside(self._look_up, id)
        self.answer({"run": live_as_json(now or run)}, 202)

    def _look_up(self, id: str) -> Run | JobRow | None:
        return self.runtime.dispatcher.look_up(id)

    def _cancel(self, id: str) -> None:
        self.runtime.dispatcher.cancel(id)


class Workers(Handler):
    """The processes that share the store, and workers of Celery, idle or not."""

    async def get(self) -> None:
        self.require_reader()
        self.answer({"processes": await self.aside(self._all)})

    def _all(self) -> list[dict[str, Any]]:
        self.runtime.service  # noqa: B018
        presence = self.runtime.presence
        return [process_as_json(each) for each in (presence.here(), *presence.others())]


class OpenAPI(Handler):
    """What all of this takes and gives, as an OpenAPI document."""

    async def get(self) -> None:
        self.require_reader()
        self.answer(document(pn.state.base_url.rstrip("/") + self.server.prefix))


# ------------------------------------------------------------ as JSON


def all_as_json(runtime: Runtime) -> dict[str, Any]:
    """All tasks; on any thread."""
    return {"tasks": [task_as_json(runtime, task) for task in all_tasks(runtime)]}


def task_as_json(runtime: Runtime, task: Task[Any]) -> dict[str, Any]:
    """What everybody may know of a task. Its value is not part of it."""
    status, entry = task.status, task.entry
    return {
        "name": status.name,
        "state": status.state,
        "running": status.running,
        "schedule": in_words(runtime.scheduler.trigger(task)),
        "trigger": status.schedule,
        "version": status.version,
        "updated_at": _text(status.updated_at),
        "duration": entry.duration if entry is not None else None,
        "stale": status.stale,
        "error": status.error,
        "next_run": _text(status.next_run),
        "percent": status.percent,
        "message": status.message,
    }


def run_as_json(run: RunRecord, admin: bool) -> dict[str, Any]:
    """A run of the history."""
    shown = {
        "id": run.id,
        "slot": _text(run.key),
        "state": run.state.value,
        "attempt": run.attempt,
        "queued_at": _text(run.queued_at),
        "started_at": _text(run.started_at),
        "finished_at": _text(run.finished_at),
        "duration": run.duration,
        "error": run.error,
        "reason": run.reason,
        "until": _text(run.until),
        "owner": run.owner,
    }
    return shown | {name: getattr(run, name) for name in FOR_ADMINS if admin}


def live_as_json(run: Run | JobRow) -> dict[str, Any]:
    """A run of a background function, for admins. Who knows its id may follow it."""
    return {
        "id": run.id,
        "name": run.task,
        "state": run.state.value,
        "attempt": run.attempt,
        "user": run.user,
        "percent": run.percent,
        "message": run.message,
        "queued_at": _text(run.queued_at),
        "started_at": _text(run.started_at),
    }


def process_as_json(process: Process) -> dict[str, Any]:
    """A process of a server, or a worker of Celery."""
    state = process.state
    return {
        "name": process.name,
        "worker": state.worker,
        "host": state.host,
        "pid": state.pid,
        "alive": process.alive,
        "here": process.here,
        "since": _text(state.since),
        "heard": _text(process.heard),
        "queues": list(state.queues),
        "executors": {name: dict(zip(_LOAD, load, strict=True)) for name, load in state.executors.items()},
        "workers": [dict(zip(_WORKER, each, strict=True)) for each in state.workers],
        "hanging": list(state.hanging),
    }


def _text(value: datetime | str | None) -> str | None:
    return value.isoformat() if isinstance(value, datetime) else value
