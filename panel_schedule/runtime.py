"""The layers put together, once per process."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo

import panel as pn
from bokeh.io.doc import _PATCHED_CURDOCS
from bokeh.models import ColumnDataSource

from .alerts.alert import Alert
from .alerts.alert import Policy as AlertPolicy
from .cache.single_flight import SingleFlight
from .clock import Clock, SystemClock
from .config import POSTGRES, REDIS, Config, shown
from .coordination.alerts import Condition, key_of
from .coordination.history import JOB, MEMO
from .coordination.processes import ProcessState
from .coordination.tasks import TASK, USER
from .engine.counts import Counts
from .engine.hooks import EVENTS, Handler
from .engine.presence import Presence, WorkerPresence
from .engine.service import STORING, Service
from .errors import (
    ArgumentUnkeyable,
    ConfigError,
    NotReady,
    RegistrationError,
    ScheduleError,
    StoreError,
    TriggerError,
    WouldBlock,
)
from .executors import celery, dask
from .executors.base import Executor
from .executors.celery import CeleryExecutor
from .executors.claimed import RemoteWorker
from .executors.dask import DaskExecutor
from .executors.logs import keep_lines
from .executors.loop import LoopExecutor
from .executors.processes import ProcessExecutor
from .executors.threads import ThreadExecutor
from .functions import remote
from .functions.background import Background, JobPolicy
from .functions.calls import is_async
from .functions.edit import Edit, module_of
from .functions.family import Family, Listing, keys_of, listing
from .functions.lru import LRU
from .functions.memoize import Memoized, MemoPolicy
from .functions.registry import (
    Registry,
    choose_trigger,
    limits_of,
    may_replace,
    require_answer,
    require_family,
    require_nameable,
    require_no_cycle,
    require_schedulable,
    same_function,
    taken,
    was_edited,
)
from .functions.run import (
    Run,
    RunRecord,
    _current,
    block,
    current_run,
    on_a_loop,
    place,
    renew_ids,
    too_late,
)
from .functions.task import FirstRun, Policy, Task
from .hashing.keys import digested
from .jobs.queue import Dispatcher
from .notebook import in_notebook, remember, speak
from .scheduling.scheduler import Scheduler
from .serialize.checks import is_light
from .serialize.entry import Entry
from .serialize.errors import for_waiter
from .serialize.references import references
from .server import supervisor
from .stores.base import Store
from .stores.file.directory import automatic as folder_of
from .stores.file.directory import server_id
from .stores.file.records import FileRecords
from .stores.file.store import FileStore
from .stores.memory import MemoryStore
from .stores.postgres import PostgresRecords, PostgresStore
from .stores.records import RecordStore
from .stores.redis import RedisRecords, RedisStore
from .stores.remote import RemoteCalls
from .triggers import Schedule, parse_period
from .views.admins import refusal
from .views.base import PAGE, TaskView, Views
from .views.components import show
from .views.data_health import PageView
from .views.job import Job
from .views.job_panel import JobPanel, Progress
from .views.memo import MemoView
from .views.stream import stream

log = logging.getLogger("panel_schedule")

T = TypeVar("T")

# Seconds that ``ps.stop()`` gives functions, which were told to end, to do so.
SHORTLY = 1.0

# By the scheme of ``ps.config.store``, what is on a server that any number of machines share.
_SERVERS = dict.fromkeys(REDIS, RedisStore) | dict.fromkeys(POSTGRES, PostgresStore)


class Runtime:
    """
    Everything of one process: registry, store, scheduler, views.

    The package has one; a test may make others.

    Parameters
    ----------
    config : Config
    clock : Clock, optional
        The system's by default.
    """

    def __init__(self, config: Config, clock: Clock | None = None):
        self.config = config
        self.clock = clock or SystemClock()
        self.grace: float | None = None
        self.tasks = Registry()
        self.families: dict[str, Family[Any]] = {}
        self.jobs: dict[str, Background[Any, Any]] = {}
        self.memos: dict[str, Memoized[Any, Any]] = {}
        # Runs that functions in worker processes have started, until their own have ended.
        self._children: dict[Run, dict[str, Run]] = {}
        self.handlers: dict[str, list[Handler]] = {event: [] for event in EVENTS}
        self.alerts: dict[str, AlertPolicy] = {}
        self._ungated: set[str] = set()
        # While files are executed anew; and the tasks that were new there, without which a server served before.
        self._edit: Edit | None = None
        self._late: set[str] = set()
        # Called as ``fatal(task, run)`` when a first run has failed that a server waits for.
        self.fatal: Callable[[Task[Any], Run], object] | None = None
        # Called as ``unusable(error)`` when the store cannot be opened, before whoever needs it gets the error.
        self.unusable: Callable[[Exception], object] | None = None
        # Called on the loop when the clocks start.
        self.on_start: Callable[[asyncio.AbstractEventLoop], object] | None = None
        self._warned_of_setup = False
        # Of the server that this process is one of several of: the pid of their parent.
        self._supervisor = supervisor.find()
        # What a fork has left behind: never closed here, as that would disturb the parent's.
        self._former: list[Service | RemoteCalls] = []
        self._fresh()
        config.param.watch(self._register_with_celery, "celery")
        self._register_with_celery()
        # Makes the service in place of `_build`, for a test.
        self._made_by: Callable[[], Service] | None = None

    def _fresh(self) -> None:
        self._lock = threading.RLock()
        self._service: Service | None = None
        # Whether the clocks run.
        self.started = False
        self._inherited: Store | None = None
        # Where this process is a worker of another program, or has started such ones: the calls that they make.
        self._calls: RemoteCalls | None = None
        self._worker: RemoteWorker | None = None
        self._worker_presence: WorkerPresence | None = None
        self.loops = LoopExecutor()
        self.counts = Counts()
        self.views = Views(self.clock, lambda: self.loops.adopted, lambda *watched: self.scheduler.watch(*watched))

    @property
    def service(self) -> Service:
        """
        The service, made when it is first needed, with all that it serves: from then on the configuration is fixed.

        Raises
        ------
        StoreError, ConfigError
            When the store cannot be opened. The next one who needs it tries again.
        """
        if self._service is None:
            with self._lock:
                if self._service is None:
                    try:
                        service = self._made_by() if self._made_by is not None else self._build()
                    except (StoreError, ConfigError) as error:
                        if self.unusable is not None:
                            self.unusable(error)
                        raise
                    self._attach(service)
                    self._service = service
                    for task in self.tasks.values():
                        self._scheduler.add(task, gated=task.name not in self._ungated)
                    for family in list(self.families.values()):
                        self._follow(family)
        return self._service

    @property
    def scheduler(self) -> Scheduler:
        """What runs tasks; made with the service."""
        self.service  # noqa: B018
        return self._scheduler

    @property
    def dispatcher(self) -> Dispatcher:
        """What hands background runs out; made with the service."""
        self.service  # noqa: B018
        return self._dispatcher

    @property
    def single_flight(self) -> SingleFlight:
        """What computes answers; made with the service."""
        self.service  # noqa: B018
        return self._single_flight

    def check(self) -> None:
        """
        Refuse what could not start; nothing is opened for that.

        Raises
        ------
        ConfigError, RegistrationError
            When an option of the environment means nothing, or a function is to run where nothing runs it, or is of a
            group that is not there.
        """
        self.config.check()
        history_age(self.config)
        for task in self.tasks.values():
            self._require_able(f"Task {task.name!r}", task.policy, task.policy.executor)
        for family in self.families.values():
            self._require_able(f"Family {family.name!r}", family.policy, family.policy.executor)
        for job in self.jobs.values():
            self._require_able(f"Job {job.name!r}", job.policy, job.policy.executor)
        for memo in self.memos.values():
            self._require_able(f"Memoized function {memo.name!r}", memo.policy, memo.executor)

    def _build(self) -> Service:
        remote.refuse_here("The scheduler")
        self.check()
        store = self._make_store()
        store.keep_history(history_age(self.config))
        self.config.freeze()
        keep_lines()
        executors: dict[str, Executor] = {
            "loop": self.loops,
            "thread": ThreadExecutor(self.config.max_threads),
            "process": ProcessExecutor(self.config.max_processes),
            # Jobs have places of their own: what visitors start must not hold up what everybody waits for. And
            # so have answers: a page that waits for one does not wait for jobs.
            "job-thread": ThreadExecutor(self.config.max_threads),
            "job-process": ProcessExecutor(self.config.max_processes),
            "memo-thread": ThreadExecutor(self.config.max_threads),
            "memo-process": ProcessExecutor(self.config.max_processes),
            # Handlers have threads of their own: one that hangs takes none from the tasks.
            "handler": ThreadExecutor(8),
            # And so have alerts: what they wait for is outside of this server.
            "alert": ThreadExecutor(8),
            "store": ThreadExecutor(1),
            "requests": ThreadExecutor(1),
            "publisher": ThreadExecutor(2),
        }
        if (app := self.config.celery) is not None:
            executors["celery"] = CeleryExecutor(app, store.remote, self.clock, self._where_calls_are())
        if self._worker is not None:
            executors["memo-celery"] = ThreadExecutor(self.config.max_threads)
        if (cluster := self.config.dask) is not None:
            executors["dask"] = DaskExecutor(cluster)
        return Service(
            self.clock,
            store,
            executors,
            self.handlers,
            changed=self.show_change,
            counts=self.counts,
            groups=self.config.groups,
        )

    @contextmanager
    def isolated(self, clock: Clock, make: Callable[[], Service]) -> Iterator[None]:
        """
        For a test: meanwhile all functions are as if nothing had ever run, and nothing of what happens stays.

        Parameters
        ----------
        clock : Clock
        make : callable
            Makes the service when it is first needed.
        """
        before, options, frozen = dict(vars(self)), self.config.param.values(), self.config._frozen
        kept: list[dict[Any, Any]] = [
            self.tasks.by_name,
            self.families,
            self.jobs,
            self.memos,
            self.alerts,
            self.handlers,
        ]
        contents = [dict(each) for each in kept]
        called = {event: list(handlers) for event, handlers in self.handlers.items()}
        states = {task: task.state() for task in self.tasks.values()}
        answers = {memo: memo.lru for memo in self.memos.values()}
        families = {family: family.state() for family in self.families.values()}
        self.clock, self._made_by, self.config._frozen = clock, make, False
        self.alerts.clear()  # nobody is to be woken by a test
        self._fresh()
        for task in states:
            task.reset()
        for family in families:
            for task in family.members if family.source is not None else ():
                self.tasks.discard(task)
            family.reset()
        for memo in answers:
            memo.renew(LRU(memo.policy.limits))
        try:
            yield
        finally:
            if self._service is not None and not self._service.closing:
                self._service.stop(0.0)
            for each, content in zip(kept, contents, strict=True):
                each.clear()
                each.update(content)
            for event, handlers in called.items():
                self.handlers[event][:] = handlers
            self.config._frozen = False
            self.config.param.update(options)
            self.config._frozen = frozen
            vars(self).update(before)
            for task, state in states.items():
                task.reset(state)
            for family, keys in families.items():
                family.reset(keys)
            for memo, lru in answers.items():
                memo.renew(lru)

    def _attach(self, service: Service) -> None:
        """Serve the functions that there are."""
        config = self.config
        service.store.values.subscribe(self._stored)
        self._scheduler = Scheduler(
            service,
            exhausted=self._lost,
            fatal=self._first_run_failed,
            zone=ZoneInfo(config.timezone) if config.timezone else UTC,
        )
        service.store.values.subscribe(partial(self._listed, service))  # after the scheduler, which knows it by then
        self._dispatcher = Dispatcher(service, self.jobs, config.max_result_bytes, config.max_queued)
        self._single_flight = SingleFlight(service, self.loops, self.memos)
        service.questions |= {
            "memo": self._compute,
            "keys": lambda run, name, _: list(self.families[name]),
            "previous": lambda run, *_: run.previous,
            "submit": self._submit,
            "run": lambda run, id, attribute: getattr(self._find(run, id), attribute),
            "cancel": lambda run, id, reason: self._find(run, id).cancel(reason),
            "result": self._result,
        }
        for job in self.jobs.values():
            self._dispatcher.follower.add(job)
        self.presence = Presence(service)
        self._watching = {name: self._make_alert(service, policy) for name, policy in self.alerts.items()}

    def _make_alert(self, service: Service, policy: AlertPolicy) -> Alert:
        return Alert(service, policy, self._conditions, self.config.namespace)

    def _conditions(self) -> dict[str, Condition]:
        keys = [key_of(JOB, name) for name in list(self.jobs)] + [key_of(MEMO, name) for name in list(self.memos)]
        return self._scheduler.conditions() | dict.fromkeys(keys, Condition())

    def _make_store(self) -> Store:
        if self._supervisor is None:  # with --num-procs 0 the import came before the fork
            self._supervisor = supervisor.find()
        url, limit = self.config.store, self.config.history_limit
        if url == "memory://" or (url == "auto" and self._supervisor is None):
            return self._inherited or MemoryStore(limit, self.clock)
        parent = self._supervisor or os.getpid()
        make = _SERVERS.get(urlsplit(url).scheme)
        store = self._make_files(parent) if make is None else self._make_shared(make, parent)
        if self._inherited is not None:  # what a setup script has stored before the fork
            store.values.seed(self._inherited.values.entries())
        return store

    def _make_files(self, parent: int) -> Store:
        url = self.config.store
        if os.name != "posix":
            raise ConfigError(f"ps.config.store is {url!r}, which needs the file locks of a POSIX system.")
        automatic = url == "auto"
        return FileStore(
            folder_of(parent) if automatic else Path(unquote(urlsplit(url).path)),
            self.clock, server=server_id(parent), persistent=not automatic, history_limit=self.config.history_limit,
            max_result_bytes=self.config.max_result_bytes,
        )  # fmt: skip

    def _make_shared(self, make: type[RedisStore] | type[PostgresStore], parent: int) -> Store:
        config = self.config
        return make(
            config.store, self.clock, server=f"{socket.gethostname()}-{server_id(parent)}",
            history_limit=config.history_limit, max_result_bytes=config.max_result_bytes, namespace=config.namespace,
            secret=config.secret, max_value_bytes=config.max_value_bytes, on_store_loss=config.on_store_loss,
        )  # fmt: skip

    def show_change(self, task: Task[Any]) -> None:
        """The status of a task has changed."""
        self.views.changed(TASK, task.name)

    def _stored(self, space: str, name: str, entry: Entry | None) -> None:
        if space == USER:
            self.views.changed(space, name)

    # ------------------------------------------------------------ workers of another program

    def _require_able(self, what: str, policy: Policy | JobPolicy | MemoPolicy, where: str | None) -> None:
        if policy.concurrency is not None:
            limits_of(what, policy.concurrency, self.config.groups)
        if where == "celery":
            celery.require(self.config.celery, self.config.store, what)
        if where == "dask":
            dask.require(self.config.dask, what)

    def _register_with_celery(self, *_: Any) -> None:
        if (app := self.config.celery) is not None:
            celery.register(
                app, self._make_call, self._lose_call, self._where_calls_are, self._worker_ready, self._worker_ended
            )  # fmt: skip

    def _where_calls_are(self) -> str:
        return f"{shown(self.config.store)!r} in namespace {self.config.namespace!r}"

    def _lose_call(self, name: str, worker: str) -> None:
        self._open_calls().lose(name, worker)

    def _make_call(self, name: str, worker: str, killable: bool) -> bool:
        """In a worker, which is no server: no clock runs in it, and answers that it needs it computes itself."""
        with self._lock:
            if self._worker is None:
                self._worker = RemoteWorker(self._open_calls(), self.clock, self._previous)
        return self._worker.make(name, worker, killable)

    def _worker_ready(self, state: Callable[[], ProcessState]) -> None:
        """Also when a worker has lost its broker and found it again."""
        if self._worker_presence is None:
            self._worker_presence = WorkerPresence(lambda: self._open_calls().records, self.clock, state)

    def _worker_ended(self) -> None:
        if self._worker_presence is not None:
            self._worker_presence.end()

    def _previous(self, name: str, run_id: str, published: bool) -> Any:
        """What a task gave before this run, which is made in this worker; None where it is no task's."""
        store = self.service.store
        record = store.records.read(TASK, name)
        if record is None or record.state.run_id != run_id:
            return None
        if published:
            raise too_late(name)
        entry, task = store.values.latest(TASK, name), self.tasks.get(name)
        if task is None:  # the worker has the function, and not its file
            return None if entry is None else entry.value
        return task.value_of(entry)

    def _open_calls(self) -> RemoteCalls:
        """Apart from the store, which is opened when a function asks for something of it: most ask for nothing."""
        with self._lock:
            if self._calls is None:
                self.config.check()
                celery.require(self.config.celery, self.config.store, "A function")
                self._calls = RemoteCalls(open_records(self.config, self.clock), self.clock)
                self.config.freeze()
            return self._calls

    # ------------------------------------------------------------ lifecycle

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """
        Start the clocks, with the loop of a server or notebook. Idempotent.

        Parameters
        ----------
        loop : asyncio.AbstractEventLoop
            Where async functions run and views are updated.
        """
        if remote.asker is not None:  # a module that a worker process has imported
            return
        if self.loops.adopted is None:
            self.loops.adopt(loop)
        if not self.started:
            self.started = True
            if self._service is not None and self._service.stopping and self._service.store.blocking:
                # A server that starts again in the same process: what it shared it has left.
                self._service = None
            # At the loop's next turn: the rest of a setup script that is running now registers its tasks first.
            loop.call_soon_threadsafe(self._begin_on, loop)

    def _begin_on(self, loop: asyncio.AbstractEventLoop) -> None:
        # What cannot be opened has been said; the next visitor tries it again.
        with suppress(StoreError, ConfigError):
            self._begin()
            if self.on_start is not None:
                self.on_start(loop)

    def _begin(self) -> None:
        try:
            self.scheduler.begin()
        except (StoreError, ConfigError):
            self.started = False
            raise
        self.dispatcher.follower.recover()
        self.presence.begin()
        for alert in list(self._watching.values()):
            alert.begin()

    @property
    def begun(self) -> bool:
        """Whether they have begun: `start` lets them do so at the loop's next turn."""
        return self._service is not None and self._service.begun

    def stop(self) -> None:
        """Stop the clocks; runs in computation get the grace period. Idempotent."""
        if self.started:
            self.close()

    def end(self) -> None:
        """
        End all that this process has scheduled or started; what comes afterwards begins anew. Idempotent.

        Raises
        ------
        ScheduleError
            In a process that serves pages, or runs tasks until it is ended.
        """
        if self.fatal is not None and self.started and not in_notebook():
            raise ScheduleError(
                "ps.stop() is for notebooks and scripts, and this process serves others: it ends by Ctrl-C or SIGTERM. "
                "To end one task of it, call task.remove_schedule()."
            )
        with self._lock:
            for policy in list(self.alerts.values()):
                self.unwatch(policy)
            for family in self.families.values():
                family.end()
            self.families.clear()
            for task in list(self.tasks.values()):
                self.tasks.discard(task)
            service = self._service
        if service is None:
            return
        self.started = False
        self._scheduler.leave()
        self._dispatcher.leave()
        service.stop(SHORTLY)
        for name in STORING:
            service.executors[name].stop(0.0)
        for memo in self.memos.values():
            memo.lru.clear()  # that it is invalidated nobody would tell
        with self._lock:
            self._inherited = service.store.forked()  # what only this process has
            self._service = None

    def close(self) -> None:
        """
        When the interpreter exits: let runs in computation end within the grace period, unless a stop has done so.

        A thread that is still inside of a C++ extension when Python goes aborts the whole process.
        """
        if self._service is not None and not self._service.stopping:
            self.started = False
            grace = self.config.grace_period if self.grace is None else self.grace
            self._service.stop(grace)

    def forget(self) -> None:
        """In the child of a fork: threads, loops and runs stayed with the parent, so nothing here may tick."""
        former, inherited = self._service, self._inherited
        self._former += filter(None, [former, self._calls])
        renew_ids()
        self._fresh()
        for memo in self.memos.values():
            memo.lru.clear()  # that it is invalidated nobody would tell
        if former is not None:
            inherited = former.store.forked() or inherited
        self._inherited = inherited

    def waiting_for(self) -> list[Task[Any]]:
        """What the first visitors wait for: the tasks without a first value."""
        if not self.tasks:
            return []
        gated = self.scheduler.gate()
        for family in list(self.families.values()):  # whose keys may have come just now
            self._follow(family)
        return list(dict.fromkeys(state.task for state in gated + self.scheduler.gate()))

    @property
    def stopping(self) -> bool:
        """Whether it stops, or has stopped: nothing new begins."""
        return self._service is not None and self._service.stopping

    def turns(self, timeout: float) -> bool:
        """Whether what serves the tasks is alive, as far as it is needed; waits so many seconds for a sign of it."""
        return self._service is None or self._service.turns(timeout)

    def waiting(self) -> dict[str, int]:
        """By kind, how many runs of this process have still to begin."""
        if self._service is None:
            return {"task": 0, "job": 0}
        return {"task": self._scheduler.waiting(), "job": self._dispatcher.executions.waiting}

    def _first_run_failed(self, task: Task[Any], run: Run) -> None:
        default = "exit" if has_setup_script() else "serve"
        ends = (self.config.first_run_failure or default) == "exit" and task.name not in self._late
        if ends and self.fatal is not None:
            self.fatal(task, run)
        else:
            self.scheduler.serve_without(task, run)

    # ------------------------------------------------------------ what a task asks of the layers above it

    def trigger(self, when: Any, *, period: Any, cron: Any, at: Any, timezone: str | None) -> Schedule:
        default = self.config.timezone
        trigger = choose_trigger(when, period=period, cron=cron, at=at, timezone=timezone, default_timezone=default)
        self.tasks.warn_of(trigger)
        return trigger

    async def ready(self, task: Task[T], timeout: float | None) -> T:
        run: Run | None = None
        try:
            async with asyncio.timeout(timeout):
                if self._needs_a_hand(task):
                    for upstream in task.policy.upstream:
                        await self.ready(upstream, None)
                    run = task.refresh()
                    await run
                first = await asyncio.shield(asyncio.wrap_future(self.scheduler.first_value(task)))
                return first.value  # type: ignore[no-any-return]
        except NotReady:
            raise
        except TimeoutError:
            raise self._not_ready(task, run, timeout) from None

    def wait_ready(self, task: Task[T], timeout: float | None) -> T:
        run: Run | None = None
        future = self.scheduler.first_value(task)
        blocking: AbstractContextManager[object] = nullcontext()
        if not future.done():
            blocking = block(f"wait_ready() of task {task.name!r}", "await task.ready()", task.name)
        deadline = None if timeout is None else self.clock.monotonic() + timeout

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - self.clock.monotonic())

        try:
            if self._needs_a_hand(task):
                for upstream in task.policy.upstream:
                    self.wait_ready(upstream, left())
                run = task.refresh()
                run.result(left())
            with blocking:
                return future.result(left()).value  # type: ignore[no-any-return]
        except NotReady:
            raise
        except TimeoutError:
            raise self._not_ready(task, run, timeout) from None

    def _needs_a_hand(self, task: Task[Any]) -> bool:
        """Where no clock runs no value would ever come by itself."""
        return task.entry is None and not self.started

    def _not_ready(self, task: Task[Any], run: Run | None, timeout: float | None) -> BaseException:
        if run is not None and run.state.final and run.error is not None:
            return for_waiter(task.name, run.error)  # a TimeoutError of the function's own
        status = task.status
        why = status.error or f"it is {status.state}, and due next at {status.next_run}"
        return NotReady(f"Task {task.name!r} has no value after {timeout} s: {why}.")

    def view(self, task: Task[Any]) -> TaskView:
        return self.views.of_task(task)

    def stream(self, task: Task[Any], columns: tuple[str, ...] | None, rollover: int | None) -> ColumnDataSource:
        return stream(self.view(task), columns, rollover)

    def show(self, shown: Task[Any] | MemoView | Job) -> Any:
        return JobPanel(shown) if isinstance(shown, Job) else show(shown)

    # ------------------------------------------------------------ registering

    def register(self, policy: Policy, name: str | None, function: Callable[[], Any]) -> Task[Any]:
        """
        Make a task of a function, or find the one that it is already (invariant 1).

        Raises
        ------
        RegistrationError
            When the function cannot be scheduled or the name is taken.
        """
        if isinstance(function, Family):
            _plain(function)
        if isinstance(function, Task):
            raise RegistrationError(f"{function!r} is a task already; schedule its function: {function.name}.function.")
        name = require_schedulable(function, name)
        self._require_fitting(f"Task {name!r}", policy, function)
        with self._lock:
            task = self.tasks.get(name)
            changed = task is None or self._redefine(task, function, policy)
            if task is None:
                self._require_ready(f"Task {name!r}", policy)
                self.remember(f"Task {name!r}")
                in_session = _in_session()
                if in_session:
                    self._warn_of_setup(name)
                    self._ungated.add(name)
                task = self._take_in(policy, name, function, gated=not in_session)
        # In a notebook it waits for a value, of which the keys of a family may have to be taken in.
        if changed:
            self._start_where_a_loop_runs(task)
        elif in_notebook() and task.entry is None:  # a cell that was interrupted waits for it again
            self._show_first_run(task)
        return task

    def _require_fitting(self, what: str, policy: Policy, function: Callable[..., Any]) -> None:
        if policy.executor == "thread" and is_async(function):
            raise RegistrationError(
                f"{what}: an async function runs on the event loop, not in a thread. Leave executor='thread' out."
            )
        require_answer(what, policy.trigger, self.clock.now())

    def _require_ready(self, what: str, policy: Policy) -> None:
        for upstream in (*policy.upstream, *policy.needs):
            if self.tasks.get(upstream.name) is not upstream:
                raise RegistrationError(
                    f"{what} depends on {upstream.name!r}, which was cancelled and will never have a new value. "
                    "Schedule that one again first."
                )
        if self._service is not None:
            self._require_able(what, policy, policy.executor)

    def _take_in(self, policy: Policy, name: str, function: Callable[[], Any], gated: bool = True) -> Task[Any]:
        task: Task[Any] = Task(name, function, policy, self)
        self.tasks.add(task)
        if self._edit is not None:
            self._late.add(name)
        begin = partial(self._scheduler.add, task, gated) if self._service is not None else lambda: None
        self._take_up(task, function, begin, undo=lambda: self._drop(task))
        return task

    def _redefine(self, known: Task[Any], function: Callable[[], Any], policy: Policy) -> bool:
        """Let a task be what it is now, where that may change; whether it has changed, or begins anew."""
        self.remember(f"Task {known.name!r}")
        if not same_function(self._latest(known), function):
            if not self._may_replace(known, function):
                raise taken(known, function)
        elif not ((in_notebook() or pn.config.autoreload) and was_edited(known, function, policy)):
            if pn.config.autoreload:  # what it calls may be edited
                self._take_up(known, function, partial(setattr, known, "function", function))
            if not in_notebook() or known.entry is not None or self.scheduler.states[known.name].run is not None:
                return False
        require_no_cycle(known, policy)
        if self._service is not None:
            self._require_able(f"Task {known.name!r}", policy, policy.executor)

        def change() -> None:
            known.function = function
            known.become(plain=False)
            if self._service is not None:
                self._scheduler.redefine(known)

        undo = partial(setattr, known, "policy", known.policy)
        known.policy = policy
        self._take_up(known, function, change, undo)
        return True

    def register_family(
        self, each: Any, policy: Policy, name: str | None, function: Callable[[str], Any]
    ) -> Family[Any]:
        """
        Make a family of a function, or find the one that it is already (invariant 1).

        Raises
        ------
        RegistrationError
            When the function cannot be scheduled, the name is taken, or `each` means nothing.
        """
        name = require_family(_plain(function), name)
        what, known = f"Family {name!r}", self.families.get(name)
        if known is not None and not self._may_replace(known, function):
            if not same_function(self._latest(known), function):
                raise taken(known, function, "family")
            return known
        if policy.first_run is FirstRun.WAIT and _in_session():
            policy = replace(policy, first_run=FirstRun.BACKGROUND)
        if isinstance(each, Family):
            each = each.source or list(each)
        source: Task[Any] | None = each if issubclass(type(each), Task) else None
        self._require_fitting(what, policy, function)
        self._require_ready(what, policy if source is None else replace(policy, needs=(*policy.needs, source)))
        if source is None and callable(each):
            source = self.register(*listing(name, each, policy))
        keys = keys_of(name, each) if source is None else None
        family = known or Family(name, function, self.tasks, self._follow)
        if self._edit is not None:
            self._edit.on_failure(
                partial(self.families.pop, name, None) if known is None else partial(known.reset, known.state())
            )
            if known is None:
                self._late.add(what)
        former = family.members
        if source is not family.source and self.tasks.get(f"{name}[]") is family.source is not None:
            former.append(family.source)
        for member in family.become(function, policy, source, keys):
            self.register(*member)
        self.families[name] = family
        self.remember(what)

        def change() -> None:
            for task in former:  # here alone, as what a file no longer has
                if task not in family.members:
                    self._drop(task)
            if self._service is not None:
                self._follow(family)

        self._take_up(family, function, change)
        return family

    def _follow(self, family: Family[Any]) -> None:
        if family.is_current:
            return
        with self._lock:
            if self.families.get(family.name) is family:  # else it is gone
                family.follow(self._take_in, self._leave)
                if f"Family {family.name!r}" in self._late:
                    self._late.update(task.name for task in family.members)

    def _leave(self, task: Task[Any]) -> None:
        """It goes from all processes; who has no clock leaves it to those who have one to forget what is stored."""
        self.tasks.discard(task)
        if self._service is None:
            return
        if self.begun or not self._service.store.blocking:
            self._scheduler.discard(task, cancel=True)
        else:
            self._scheduler.drop(task)

    def _listed(self, service: Service, space: str, name: str, entry: Entry | None) -> None:
        """There is a new value, which may be the keys of a family."""
        for family in list(self.families.values()):
            if space == TASK and family.source is not None and family.source.name == name:
                with service.locked:  # once it is free
                    service.defer(partial(self._follow, family))

    def _lost(self, task: Task[Any]) -> None:
        """Another process has forgotten a task, or its dates are used up."""
        self.tasks.discard(task)
        for family in list(self.families.values()):
            if family.miss(task):  # the other one has heard of the keys of before, and late
                self._follow(family)

    def _again(self, known: Any, kind: str, policy: Any, key: Any, function: Any) -> None:
        """A function that runs on request under a known name: the same one, or its new definition."""
        anew = self._may_replace(known, function)
        if not anew and not same_function(self._latest(known), function):
            raise taken(known, function, kind)
        if not anew:
            return
        what = f"{'Job' if kind == 'job' else 'Memoized function'} {known.name!r}"
        if self._service is not None:
            self._require_able(what, policy, policy.executor)
        self.remember(what)
        if self._edit is not None:
            type(known)(known.name, function, policy, self, key)  # raises now what would be raised then

        def replace() -> None:
            known.become(function, policy, key)
            if isinstance(known, Memoized) and self._service is not None:
                self._single_flight.kept.forget(known)

        self._take_up(known, function, replace)

    # ------------------------------------------------------------ files that are executed anew

    @contextmanager
    def edit(self, modules: set[str]) -> Iterator[None]:
        """
        Surround the execution of files that were edited.

        What they declare takes effect at the end, and what they declare no more is gone from this process; what is
        stored stays, since the store may be that of a server in use. When something is raised, nothing has changed.
        """
        handlers = {event: list(known) for event, known in self.handlers.items()}
        edit = self._edit = Edit(modules)
        try:
            yield
        except BaseException:
            with self._lock:
                self._edit = None
                edit.undo()
            for event, former in handlers.items():
                self.handlers[event][:] = former
            raise
        with self._lock:
            self._edit = None
            edit.apply()
            for task in [task for task in self.tasks.values() if edit.leaves(task)]:
                log.info("Task %r is gone from its file.", task.name)
                self._drop(task)
            for family in [each for each in self.families.values() if edit.leaves(each)]:
                for task in (*family.members, *filter(None, [self.tasks.get(f"{family.name}[]")])):
                    self._drop(task)
            for functions in (self.families, self.jobs, self.memos):
                for known in [each for each in functions.values() if edit.leaves(each)]:
                    del functions[known.name]
        for event, former in handlers.items():
            left = [each for each in former if edit.leaves_handler(each.function)]
            self.handlers[event][:] = [each for each in self.handlers[event] if each not in left]

    def declaring(self) -> set[str]:
        """The names of the modules that have declared functions."""
        named = (self.tasks, self.families, self.jobs, self.memos)
        declared = [each for functions in named for each in functions.values()]
        return {module_of(each.function) for each in declared}

    def _take_up(
        self,
        known: Any,
        function: Callable[..., Any],
        change: Callable[[], object],
        undo: Callable[[], object] = lambda: None,
    ) -> None:
        """Change it now; what is declared while files are executed anew, when all of them have been."""
        if self._edit is None:
            change()
        else:
            self._edit.add(known, function, change)
            self._edit.on_failure(undo)

    def awaits(self, known: Any) -> bool:
        """Whether files are executed anew, and none has declared this yet that was declared before."""
        return self._edit is not None and known not in self._edit.declared

    def _latest(self, known: Any) -> Any:
        return known.function if self._edit is None else self._edit.latest(known)

    def _may_replace(self, known: Any, function: Any) -> bool:
        """Whether a function may take the place of one that has its name."""
        # What lists the keys of a family is that family's.
        left = self._edit is not None and (self._edit.leaves(known) or isinstance(known.function, Listing))
        return in_notebook() or (bool(pn.config.autoreload) and (left or may_replace(self._latest(known), function)))

    def _drop(self, task: Task[Any]) -> None:
        self.tasks.discard(task)
        if self._service is not None:
            self._scheduler.drop(task)

    def cancel(self, task: Task[Any]) -> None:
        """Forget a task; its name is free again."""
        with self._lock:
            self.scheduler.discard(task)
            self.tasks.discard(task)

    def _warn_of_setup(self, name: str) -> None:
        if not self._warned_of_setup and not self.started:
            self._warned_of_setup = True
            log.warning(
                "Task %r was registered by a session, so it starts with the first visitor instead of with the server. "
                "Serve with `panel serve app.py --setup tasks.py`, naming the file that defines it.", name,
            )  # fmt: skip

    def _start_where_a_loop_runs(self, task: Task[Any]) -> None:
        if (loop := self._loop_here()) is None or self._made_by is not None:
            return
        if not in_notebook():
            self.start(loop)
            return
        self.loops.adopt(loop)
        self.started = True
        self._begin()
        self._show_first_run(task)

    def _loop_here(self) -> asyncio.AbstractEventLoop | None:
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            return self.loops.adopted  # a server in another thread

    def remember(self, what: str) -> None:
        """In a notebook, the cell that runs now defines this, perhaps once more."""
        if in_notebook():
            remember(what, self._forget_undefined)
            place.hold = self._hold

    def _hold(self, function: str) -> AbstractContextManager[object]:
        """While a cell waits for a function, what else needs a loop has another one than the kernel's."""
        if self.loops.runs_here(function):
            raise WouldBlock(f"{function!r} runs on the event loop of this thread.")
        return self.loops.hold()

    def _forget_undefined(self, what: str) -> None:
        """A cell that has defined this does so no longer. Here alone, as what a file no longer has."""
        with self._lock:
            named = {f"Task {task.name!r}": [task] for task in self.tasks.values()}
            named |= {f"Family {family.name!r}": family.members for family in self.families.values()}
            if what in named:
                log.warning("%s has ended: the cell that defined it does so no longer.", what)
                for task in named[what]:
                    self._drop(task)
                for name in [name for name in self.families if f"Family {name!r}" == what]:
                    del self.families[name]

    def _show_first_run(self, task: Task[Any]) -> None:
        """In a notebook the cell waits for the first value, shows the traceback of a failure, and has its name."""
        run = self.scheduler.states[task.name].run
        if run is None or task.policy.first_run is not FirstRun.WAIT:
            return
        if any(state.work.on_loop and state.run is not None for state in list(self.scheduler.states.values())):
            # It may wait for the kernel's loop, which the cell itself holds: the traceback follows the cell.
            run.add_done_callback(_show_traceback)
        else:
            run._completion().result()
            _show_traceback(run)

    # ------------------------------------------------------------ what runs on request

    def _compute(self, run: Run, name: str, arguments: Any) -> Any:
        """The answer of a memoized function, for a worker process."""
        if (memo := self.memos.get(name)) is None:
            raise RegistrationError(f"There is no memoized function {name!r} in the server: import its module there.")
        # Its own run says what waits for what.
        _current.set(run)
        args, kwargs = arguments
        return self.single_flight.call(memo, memo.keys.local(args, kwargs), args, kwargs)

    def _submit(self, run: Run, name: str, arguments: Any) -> str:
        """Start a run of a background function for a function in a worker process, whose own run this is."""
        if (job := self.jobs.get(name)) is None:
            raise RegistrationError(f"There is no background function {name!r} in the server: import its module there.")
        _current.set(run)
        args, kwargs, later = arguments
        child = job.submit_for(run.user, args, kwargs, None if later is None else job.due(*later))
        if (children := self._children.get(run)) is None:
            children = self._children[run] = {}
            run.add_done_callback(lambda run: self._children.pop(run, None))
        children[child.id] = child
        return child.id

    def _result(self, run: Run, id: str, timeout: float | None) -> tuple[bool, Any]:
        """Whether it has ended in time, and what it gave."""
        child = self._find(run, id)
        with place:
            wait([child._completion()], timeout)
        return (True, child.result()) if child.state.final else (False, None)

    def _find(self, run: Run, id: str) -> Run:
        """A run that a function in a worker process asks for, by its id."""
        found = self._children.get(run, {}).get(id) or self.dispatcher.find(id)
        if found is None:
            raise KeyError(f"There is no run {id!r}, or it ended too long ago.")
        return found

    # ------------------------------------------------------------ registering what runs on request

    def register_job(
        self, policy: JobPolicy, name: str | None, key: Callable[..., Any] | None, function: Callable[..., Any]
    ) -> Background[Any, Any]:
        """
        Make a background function, or find the one that it is already (invariant 1).

        Raises
        ------
        RegistrationError
            When the name is taken, or the options do not fit the function.
        """
        name = require_nameable(_plain(function), name, "job")
        with self._lock:
            if (known := self.jobs.get(name)) is not None:
                self._again(known, "job", policy, key, function)
                return known
            if self._service is not None:
                self._require_able(f"Job {name!r}", policy, policy.executor)
            self.remember(f"Job {name!r}")
            background = self.jobs[name] = Background(name, function, policy, self, key)
            follow = partial(self._dispatcher.follower.add, background) if self._service is not None else lambda: None
            self._take_up(background, function, follow, undo=lambda: self.jobs.pop(name))
            # What earlier processes have left behind is for servers.
            if (loop := self._loop_here()) is not None and not in_notebook():
                self.start(loop)
            return background

    def register_memo(
        self, policy: MemoPolicy, name: str | None, key: Callable[..., Any] | None, function: Callable[..., Any]
    ) -> Memoized[Any, Any]:
        """
        Make a memoized function, or find the one that it is already.

        Raises
        ------
        RegistrationError
            When the name is taken, or the options do not fit the function.
        """
        name = require_nameable(_plain(function), name, "memoized function")
        with self._lock:
            if (known := self.memos.get(name)) is not None:
                self._again(known, "memoized function", policy, key, function)
                return known
            if self._service is not None:
                self._require_able(f"Memoized function {name!r}", policy, policy.executor)
            self.remember(f"Memoized function {name!r}")
            memo = self.memos[name] = Memoized(name, function, policy, self, key)
            self._take_up(memo, function, lambda: None, undo=lambda: self.memos.pop(name))
            return memo

    # ------------------------------------------------------------ alerts

    def watch(self, policy: AlertPolicy) -> None:
        """Tell somebody of what happens to functions; in place of what was asked for before of the same kind."""
        with self._lock:
            self.alerts[policy.name] = policy
            if self._service is not None:
                if (former := self._watching.get(policy.name)) is not None:
                    former.end()
                alert = self._watching[policy.name] = self._make_alert(self._service, policy)
                if self.begun:
                    alert.begin()

    def unwatch(self, policy: AlertPolicy) -> None:
        """Do not tell any more."""
        with self._lock:
            if self.alerts.get(policy.name) is policy:
                del self.alerts[policy.name]
                if self._service is not None:
                    self._watching.pop(policy.name).end()

    # ------------------------------------------------------------ what jobs ask of the layers above them

    @property
    def user(self) -> str | None:
        """
        Who is logged in where this is called: in code of a session, or in a run that one has started.

        Before 3.10 Bokeh shows to any thread the document of the page that the loop is building.
        """
        if (run := current_run()) is not None:
            return run.user
        known = on_a_loop() or pn.state._curdoc.get() is not None or not isinstance(_PATCHED_CURDOCS, list)
        return pn.state.user if known else None

    def job(self, function: Background[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job:
        return self.views.admit(lambda home, changed: Job(home, changed, function, args, kwargs, self))

    def history(self, kind: str, name: str) -> list[RunRecord]:
        return self.service.store.history(name, kind)

    def ended(self, kind: str, name: str) -> int:
        return self.counts.ended(kind, name)

    def page(self) -> PageView:
        """What this session shows."""
        view = self.views.admit(lambda home, changed: PageView(home, changed, self.views.mine, self._may_run), PAGE[1])
        view._attempt()
        return view

    def _may_run(self) -> bool:
        return not refusal(self.config.admins)

    def show_progress(self, job: Job) -> Any:
        return Progress(job)

    # ------------------------------------------------------------ and memoized functions

    def memo_view(self, memo: Memoized[Any, Any], args: Any, kwargs: Any) -> MemoView:
        def make(home: Any, changed: Callable[[], None]) -> MemoView:
            return MemoView(home, changed, memo, args, kwargs, self)

        name = None
        if not references((args, kwargs), nested=True) and is_light((args, kwargs)):
            # Of a call that does not change a session has one view, however often it asks for it.
            with suppress(ArgumentUnkeyable, TypeError):  # which the view itself says
                name = f"{memo.name} {digested(memo.keys.local(args, kwargs))}"
        view = self.views.admit(make, name)
        # Only now: what is new from here on reaches it.
        view._attempt()
        return view

    def later(self, seconds: float, call: Callable[[], object]) -> Callable[[], None]:
        service = self.service
        service.start()
        with service.locked:
            timer = service.timers.after(seconds, lambda _: service.defer(call), None)

        def cancel() -> None:
            with service.locked:
                service.timers.cancel(timer)

        return cancel


def _plain(function: Any) -> Any:
    if isinstance(function, (Task, Family, Background, Memoized)):
        raise RegistrationError(f"{function!r} is no plain function; {function.name}.function is: decorate that one.")
    return function


def _show_traceback(run: Run) -> None:
    if (error := run.error) is not None:
        speak(f"Task {run.task!r}")
        sys.modules["IPython"].get_ipython().showtraceback((type(error), error, error.__traceback__))


def history_age(config: Config) -> timedelta | None:
    """
    How old a run in the history becomes, None: as old as may be.

    Raises
    ------
    ConfigError
        When the option means nothing.
    """
    if config.history in (None, ""):
        return None
    try:
        return parse_period(config.history)
    except TriggerError as error:
        raise ConfigError(f"ps.config.history: {error} None keeps all.") from None


def open_records(config: Config, clock: Clock) -> RecordStore:
    """The store that the configuration names, with nothing on it: one that several processes can open."""
    limit, parts = config.history_limit, urlsplit(config.store)
    if parts.scheme not in _SERVERS:
        return FileRecords(Path(unquote(parts.path)), clock, log_limit=limit)
    make = RedisRecords if parts.scheme in REDIS else PostgresRecords
    return make(
        config.store, clock, namespace=config.namespace, secret=config.secret,
        max_value_bytes=config.max_value_bytes, log_limit=limit,
    )  # fmt: skip


def has_setup_script() -> bool:
    """Whether this is the server of ``panel serve --setup``, which is there for what the script defines."""
    return pn.state._setup_module is not None


def _in_session() -> bool:
    """Whether a visitor is there; not where ``--warm`` runs an app, in a session that belongs to no server yet."""
    document = pn.state.curdoc
    context = document.session_context if document is not None else None
    return context is not None and (context.server_context is not None or in_notebook())
