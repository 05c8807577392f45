"""
In a worker process: what stands for the package's functions and objects there; each read of one asks the server.

A module that a function needs is imported there, too, and its decorators are those of this file: without Panel, which
takes a second, and without a scheduler.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping
from functools import partial, reduce, update_wrapper
from hashlib import sha256
from importlib import import_module
from types import CodeType, GenericAlias
from typing import Any

from ..errors import ScheduleError
from .calls import is_async

log = logging.getLogger("panel_schedule")

# Where earlier versions have pickled `task_named` and its siblings from, in stores and queued jobs that are still read.
sys.modules.setdefault("panel_schedule.abroad", sys.modules[__name__])

# In a worker process, what asks the server: ``asker("task", "sales")``. None everywhere else. It is one for the
# process, which runs one body at a time, so that threads of the user's own, without context variables, may read too.
asker: Callable[..., Any] | None = None


def ask(*question: Any) -> Any:
    """
    The server's answer; what it raises is raised.

    Raises
    ------
    ScheduleError
        Outside of a worker process, and in a child of one.
    """
    if asker is None:
        raise ScheduleError(
            "What stands for tasks and for ps.store in a worker process was called outside of one. Read them in the "
            "function itself, and pass on what they gave."
        )
    return asker(*question)


def refuse_here(what: str) -> None:
    """Raise in a worker process, where `what` cannot be had."""
    if asker is not None:
        raise _beyond(what)


class OfTheServer(ScheduleError, AttributeError):
    """What is asked of a stand-in that only the server has."""


def _beyond(what: str) -> OfTheServer:
    return OfTheServer(
        f"{what} is the server's, and this is one of its worker processes: the function that runs here can read tasks, "
        "call memoized functions, submit jobs, read and write ps.store, report progress and publish. Do the rest in "
        "the server, with what it returns."
    )


def function_of(module: str, path: str, digest: str) -> Any:
    """
    What a decorated function of a module comes back as: the module's own, with the module's own objects.

    In a worker process whose module has it with other code, or cannot be imported, it is the server's, by value.
    """
    try:
        if module in _failed:
            raise ImportError(f"{module} failed before.")
        found: Any = reduce(getattr, path.split("."), import_module(module))
        function = getattr(found, "function", found)
        if asker is None or written(function) == digest:
            return function
    except BaseException as error:  # a module may leave at its import, too
        if asker is None:
            raise
        if module not in _failed:
            _failed.add(module)
            log.warning(
                "Module %r cannot be imported in a worker process (%s: %s), so its functions run there as copies, "
                "without the module's own objects. Let it do nothing at its import that only the server can.",
                module, type(error).__name__, error,
            )  # fmt: skip
    return ask("function", module, path)


# Which modules could not be imported here.
_failed: set[str] = set()


def written(function: Any) -> str:
    """A digest of a function's code, wherever it stands."""

    def told(code: Any) -> Any:
        consts = [
            told(const) if isinstance(const, CodeType)
            else sorted(map(repr, const)) if isinstance(const, frozenset) else repr(const)
            for const in code.co_consts
        ]  # fmt: skip
        return code.co_code, code.co_names, code.co_varnames, code.co_freevars, consts

    return sha256(repr(told(function.__code__)).encode()).hexdigest()


def task_named(name: str) -> Any:
    """What a pickled task comes back as: itself where it is known, in a worker process what stands for it."""
    if asker is not None:
        return tasks[name]
    return _known("Task", sys.modules["panel_schedule"].tasks, name)


def function_named(name: str, function: Callable[..., Any]) -> Any:
    """What a pickled background function comes back as: itself where it is known, else the plain function."""
    package = sys.modules.get("panel_schedule") if asker is None else None
    return package._runtime.jobs[name] if package is not None else RemoteFunction(name, function)


def memo_named(name: str, is_async: bool) -> Any:
    """What a pickled memoized function comes back as: itself, and in a worker process what asks for answers."""
    if asker is not None:
        return RemoteMemo(name, is_async)
    return _known("Memoized function", sys.modules["panel_schedule"]._runtime.memos, name)


def _known(what: str, known: Mapping[str, Any], name: str) -> Any:
    try:
        return known[name]
    except KeyError:
        raise ScheduleError(
            f"{what} {name!r} was pickled by its name, and this process has none of that name. Import its module first."
        ) from None


def family_named(name: str) -> Any:
    """What a pickled family comes back as: itself, and in a worker process what stands for it."""
    if asker is not None:
        return RemoteFamily(name)
    return _known("Family", sys.modules["panel_schedule"]._runtime.families, name)


def store_here() -> Any:
    """What a pickled ``ps.store`` comes back as."""
    return store if asker is not None else sys.modules["panel_schedule"].store


class RemoteObject:
    """What stands for an object of the server, which alone has all the rest of it."""

    __slots__ = ()
    __class_getitem__: Any = classmethod(GenericAlias)
    _kind: str
    name: str

    def _told(self) -> str:
        return f"{self._kind} {self.name!r}"

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise _beyond(f"{attribute!r} of {self._told()}")

    def __repr__(self) -> str:
        return f"<{self._kind.capitalize()} {self.name!r} of the server>"


class RemoteTask(RemoteObject):
    """A task of the server, to read: ``sales()``."""

    function: Callable[..., Any]  # of a task whose module was imported here

    __slots__ = ("__weakref__", "function", "name")
    _kind = "task"

    def __init__(self, name: str):
        self.name = name

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.function

    def __call__(self) -> Any:
        return ask("task", self.name)

    def __reduce__(self) -> Any:
        return task_named, (self.name,)


class RemoteStore(RemoteObject, MutableMapping[str, Any]):
    """``ps.store`` of the server."""

    def _told(self) -> str:
        return "ps.store"

    def __getitem__(self, name: str) -> Any:
        return ask("get", name)

    def __setitem__(self, name: str, value: Any) -> None:
        ask("set", name, value)

    def __delitem__(self, name: str) -> None:
        ask("delete", name)

    def __iter__(self) -> Iterator[str]:
        return iter(ask("names"))

    def __len__(self) -> int:
        return len(ask("names"))

    def __repr__(self) -> str:
        return "<store of the server>"

    def __reduce__(self) -> Any:
        return store_here, ()


store = RemoteStore()


class RemoteFunction(RemoteObject):
    """A background function of the server, to submit; here it can be called, too, as the plain function."""

    _kind = "job"

    def __init__(self, name: str, function: Callable[..., Any]):
        self.name = name
        update_wrapper(self, function, updated=())
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        return RemoteRun.submit(self.name, args, kwargs)

    def submit_at(self, when: Any, /, *args: Any, **kwargs: Any) -> Any:
        return RemoteRun.submit(self.name, args, kwargs, ("at", when))

    def submit_in(self, delay: Any, /, *args: Any, **kwargs: Any) -> Any:
        return RemoteRun.submit(self.name, args, kwargs, ("in", delay))

    def __reduce__(self) -> Any:
        return function_named, (self.name, self.function)


class RemoteMemo(RemoteObject):
    """A memoized function of the server, to call: ``filtered("north", 2026)``."""

    _kind = "memoized function"

    def __init__(self, name: str, is_async: bool, function: Callable[..., Any] | None = None):
        self.name = name
        self.is_async = is_async
        if function is not None:
            update_wrapper(self, function, updated=())
            self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._awaited(args, kwargs) if self.is_async else ask("memo", self.name, (args, kwargs))

    async def _awaited(self, args: Any, kwargs: Any) -> Any:
        return ask("memo", self.name, (args, kwargs))

    def __reduce__(self) -> Any:
        return memo_named, (self.name, self.is_async)


class RemoteTasks(dict[str, RemoteTask]):
    """``ps.tasks``: those of the modules that were imported here, and any other of the server by its name."""

    def __missing__(self, name: str) -> RemoteTask:
        return RemoteTask(name)


tasks = RemoteTasks()


class RemoteFamily(RemoteObject, Mapping[str, RemoteTask]):
    """A family of tasks of the server, to read: ``sales["north"]()``."""

    _kind = "family"

    def __init__(self, name: str, function: Callable[..., Any] | None = None):
        self.name = name
        if function is not None:
            self.function = function

    def __getitem__(self, key: str) -> RemoteTask:
        if key not in (keys := ask("keys", self.name)):
            raise KeyError(f"Family {self.name!r} has no key {key!r}; there are: {', '.join(keys) or 'none'}.")
        return tasks[f"{self.name}[{key}]"]

    def __iter__(self) -> Iterator[str]:
        return iter(ask("keys", self.name))

    def __len__(self) -> int:
        return len(ask("keys", self.name))

    def __reduce__(self) -> Any:
        return family_named, (self.name,)


class RemoteConfig:
    """``ps.config``: what a module sets is for the server; what was not set here is read from the environment."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("panel_schedule.config").config, name)


config = RemoteConfig()


# The decorators. Their arguments are the server's business, which has refused what means nothing.


def schedule(*when: Any, name: str | None = None, each: Any = None, **options: Any) -> Callable[..., Any]:
    if each is not None:
        return lambda function: RemoteFamily(name or function.__name__, function)
    return lambda function: schedule_task(name or function.__name__, function)


def schedule_task(name: str, callback: Callable[..., Any], *args: Any, **options: Any) -> RemoteTask:
    task = tasks[name] = tasks[name]
    task.function = callback
    return task


def cancel_task(name: str, wait: bool = False) -> None:
    """Of a module that schedules anew. It is scheduled in the server."""
    tasks.pop(name, None)


def background(function: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Any) -> Any:
    if function is None:
        return partial(background, name=name)
    return RemoteFunction(name or function.__name__, function)


def memoize(function: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Any) -> Any:
    if function is None:
        return partial(memoize, name=name)
    return RemoteMemo(name or function.__name__, is_async(function), function)


def hasher(kind: type, function: Callable[..., Any]) -> None:
    """Keys are made in the server."""


def on(event: str, handler: Callable[..., Any], **options: Any) -> Callable[[], None]:
    return lambda: None


# The server answers after so many seconds at the latest: it gives its thread's place to others while it waits, and a
# thread of the user's own may ask something else in between.
_ROUND = 1.0
_SHORT_ROUND = 0.05


def _asked(attribute: str) -> Any:
    return property(lambda run: ask("run", run.id, attribute))


class RemoteRun:
    """
    A run in the server: what ``function.submit()`` returns in a worker process.

    Its state, progress and result are the server's; each look asks for them.

    Attributes
    ----------
    id : str
    """

    __slots__ = ("id",)

    def __init__(self, id: str):
        self.id = id

    @classmethod
    def submit(
        cls, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], later: tuple[str, Any] | None = None
    ) -> RemoteRun:
        """Have the server start a run of the background function of this name, now or ``("at", time)``."""
        return cls(ask("submit", name, (args, kwargs, later)))

    state: Any = _asked("state")
    percent: int = _asked("percent")
    message: str = _asked("message")
    attempt: int = _asked("attempt")
    reason: str = _asked("reason")
    traceback: str = _asked("traceback")
    due_at: Any = _asked("due_at")

    @property
    def partials(self) -> list[Any]:
        return list(ask("run", self.id, "partials"))

    def cancel(self, reason: str = "cancelled") -> None:
        """End the run now."""
        ask("cancel", self.id, reason)

    def result(self, timeout: float | None = None) -> Any:
        """
        Wait for the end of the run and return what its function does; what it raises is raised.

        Raises
        ------
        TimeoutError
            When the run has not ended within so many seconds; it goes on.
        """
        left = timeout
        while True:
            patience = _ROUND if left is None else max(0.0, min(_ROUND, left))
            ended, value = ask("result", self.id, patience)
            if ended:
                return value
            if left is not None and (left := left - patience) <= 0:
                raise TimeoutError(f"The run has not ended within {timeout} s; it goes on.")

    def __await__(self) -> Generator[Any, None, Any]:
        return self._awaited().__await__()

    async def _awaited(self) -> Any:
        while True:
            ended, value = await asyncio.to_thread(ask, "result", self.id, _SHORT_ROUND)
            if ended:
                return value

    def __repr__(self) -> str:
        return f"<Run {self.id} of the server>"

    def __reduce__(self) -> Any:
        raise TypeError("A run is no value that can be passed on: pass its result, run.result(), or its id.")
