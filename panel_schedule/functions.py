"""The part of the runtime that knows the functions that run on request: background ones, and memoized ones."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import panel as pn
from bokeh.io.doc import _PATCHED_CURDOCS

from .clock import Clock
from .components import show
from .config import Config
from .data import is_light
from .dispatcher import Dispatcher
from .errors import ArgumentUnkeyable, RegistrationError
from .executors.loop import LoopExecutor
from .flights import Flights
from .jobpanel import JobPanel, Progress
from .jobs import Background, JobPolicy
from .jobview import Job
from .keys import digested
from .memo import Memoized, MemoPolicy
from .memoview import MemoView
from .notebook import in_notebook, remember
from .recall import Watched
from .references import references
from .registry import may_replace, require_nameable, same_function, taken
from .run import Run, current_run, on_a_loop
from .scheduler import Scheduler
from .task import Task
from .views import Views


class Functions(ABC):
    """Registers them, and gives each session its own face of them; the other part of the runtime knows the tasks."""

    clock: Clock
    config: Config
    views: Views
    loops: LoopExecutor
    _lock: Any
    _scheduler: Scheduler | None
    _dispatcher: Dispatcher
    _flights: Flights

    def __init__(self) -> None:
        self.jobs: dict[str, Background[Any, Any]] = {}
        self.memos: dict[str, Memoized[Any, Any]] = {}
        # Runs that functions in worker processes have started, until their own have ended.
        self._children: dict[Run, dict[str, Run]] = {}

    @property
    @abstractmethod
    def scheduler(self) -> Scheduler: ...
    @abstractmethod
    def start(self, loop: asyncio.AbstractEventLoop) -> None: ...
    @abstractmethod
    def _loop_here(self) -> asyncio.AbstractEventLoop | None: ...

    @property
    def dispatcher(self) -> Dispatcher:
        """What hands background runs out; made with the scheduler."""
        self.scheduler  # noqa: B018
        return self._dispatcher

    @property
    def flights(self) -> Flights:
        """What computes answers; made with the scheduler."""
        self.scheduler  # noqa: B018
        return self._flights

    def _attach(self, scheduler: Scheduler) -> None:
        """Serve the functions that there are with a new scheduler."""
        config = self.config
        self._dispatcher = Dispatcher(scheduler, config.max_result_bytes, config.max_queued)
        self._flights = Flights(scheduler, self.loops)
        scheduler.compute, scheduler.submit, scheduler.find = self._compute, self._submit, self._find
        for job in self.jobs.values():
            self._dispatcher.add(job)
        for memo in self.memos.values():
            self._flights.add(memo)

    def _compute(self, name: str, args: Any, kwargs: Any) -> Any:
        """The answer of a memoized function, for a worker process."""
        if (memo := self.memos.get(name)) is None:
            raise RegistrationError(f"There is no memoized function {name!r} in the server: import its module there.")
        return self.flights.call(memo, memo.keys.local(args, kwargs), args, kwargs)

    def _submit(self, run: Run, name: str, args: Any, kwargs: Any) -> Run:
        """Start a run of a background function for a function in a worker process, whose own run this is."""
        if (job := self.jobs.get(name)) is None:
            raise RegistrationError(f"There is no background function {name!r} in the server: import its module there.")
        child = job.submit_for(run.user, args, kwargs)
        if (children := self._children.get(run)) is None:
            children = self._children[run] = {}
            run.add_done_callback(lambda run: self._children.pop(run, None))
        children[child.id] = child
        return child

    def _find(self, run: Run, id: str) -> Run:
        """A run that a function in a worker process asks for, by its id."""
        found = self._children.get(run, {}).get(id) or self.find(id)
        if found is None:
            raise KeyError(f"There is no run {id!r}, or it ended too long ago.")
        return found

    # ------------------------------------------------------------ registering

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
                _again(known, "job", policy, key, function)
                return known
            remember(f"Job {name!r}")
            background = self.jobs[name] = Background(name, function, policy, self, key)
            if self._scheduler is not None:
                self._dispatcher.add(background)
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
                if _again(known, "memoized function", policy, key, function) and self._scheduler is not None:
                    self._flights.archive.forget(known)
                return known
            remember(f"Memoized function {name!r}")
            memo = self.memos[name] = Memoized(name, function, policy, self, key)
            if self._scheduler is not None:
                self._flights.add(memo)
            return memo

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

    def find(self, id: str) -> Run | None:
        return self.dispatcher.find(id)

    def follow(self, run: Run, changed: Callable[[], object]) -> Callable[[], None]:
        return self.dispatcher.follow(run, changed)

    def abandon(self, run: Run, reason: str) -> None:
        self.dispatcher.abandon(run, reason)

    def show_job(self, job: Job) -> Any:
        return JobPanel(job)

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
        view._attempt(view._follow, view._changed)
        return view

    def ask(self, memo: Memoized[Any, Any], key: Hashable, args: Any, kwargs: Any, refresh: bool) -> Run:
        return self.flights.join(memo, key, args, kwargs, refresh)

    def watch_call(self, memo: Memoized[Any, Any], key: Hashable, changed: Callable[[], None]) -> Watched:
        return self.flights.archive.watch(memo, key, changed)

    def unwatch_call(self, watched: Watched, changed: Callable[[], None]) -> None:
        self.flights.archive.unwatch(watched, changed)

    def later(self, seconds: float, call: Callable[[], object]) -> Callable[[], None]:
        scheduler = self.scheduler
        scheduler.start()
        with scheduler.locked:
            timer = scheduler.timers.after(seconds, lambda _: scheduler.defer(call), None)

        def cancel() -> None:
            with scheduler.locked:
                scheduler.timers.cancel(timer)

        return cancel

    def aside(self, call: Callable[[], object]) -> object:
        return self.scheduler.ledger.aside(call)

    def show_memo(self, view: MemoView) -> Any:
        return show(view)


def _plain(function: Any) -> Any:
    if isinstance(function, (Task, Background, Memoized)):
        raise RegistrationError(f"{function!r} is no plain function; {function.name}.function is: decorate that one.")
    return function


def _again(known: Any, kind: str, policy: Any, key: Any, function: Any) -> bool:
    """A function under a known name: the same one, or its new definition where that may change; whether it did."""
    anew = in_notebook() or (bool(pn.config.autoreload) and may_replace(known.function, function))
    if not anew and not same_function(known.function, function):
        raise taken(known, function, kind)
    if anew:
        remember(f"{'Job' if kind == 'job' else 'Memoized function'} {known.name!r}")
        known.become(function, policy, key)
    return anew
