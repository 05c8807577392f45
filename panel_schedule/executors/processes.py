"""
Functions in a bounded number of worker processes, which can be stopped whatever they do.

Why not multiprocessing, loky or pebble: multiprocessing, and pebble on it, forks the server with its sockets and locks
or imports its ``__main__`` again, which takes 0.7 s; loky starts clean interpreters, but stops no single call. None of
them ends the children of a stopped function, nor maps a large result.
"""

from __future__ import annotations

import contextvars
import inspect
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any

import panel as pn

from ..errors import RunCancelled, RunCrashed, ScheduleError, ValueRefused, ValueUnreadable
from ..functions import spans
from ..functions.calls import PUBLISHED
from ..functions.run import Run, _current
from . import logs, wire
from .descendants import MARK, kill_descendants
from .threads import PlacedFuture, ThreadExecutor
from .wire import ByValue, Encoded, Gone, Value, Wire, encode
from .worker import conduct

# Seconds between SIGTERM and SIGKILL: of a cancelled body, and when the server itself is about to end.
GRACE = 2.0
SHORTLY = 0.5
# What a killed process group is waited for to be gone: longer only where nobody reaps orphans.
VANISHING = 0.2

# The server's own threads come first, however many bodies compute.
NICENESS = 19

SCRIPT = str(Path(__file__).parent.parent / "_worker.py")


def _nobody(*question: Any) -> Any:
    raise ScheduleError(f"Nobody answers {question!r} here.")


def _nothing(*args: Any) -> None:
    pass


class Call(ABC):
    """
    What a worker process runs, and who hears of it.

    Attributes
    ----------
    name : str
        Whose it is, for messages: ``"Task 'sales'"``.
    """

    name: str

    @abstractmethod
    def pack(self) -> None:
        """Make it ready to travel. Raises ValueRefused when it cannot."""

    @abstractmethod
    def take(self) -> tuple[Encoded, Encoded]:
        """As what it runs, and itself; it is not kept. It is about to begin: when this raises, it does not run."""

    @abstractmethod
    def hear(self, kind: bytes, value: Value) -> tuple[bytes, Encoded] | None:
        """What the worker says of it before its end; the answer, when it waits for one."""

    @abstractmethod
    def outcome(self, kind: bytes, value: Value) -> Any:
        """What came of it; what it raised is raised."""


@dataclass(eq=False, repr=False)
class RemoteCall(Call):
    """
    A body that travels: a function with its arguments, and who is told at home.

    Parameters
    ----------
    name : str
        Whose it is, for messages: ``"Task 'sales'"``.
    function : callable
        A function, a coroutine function, or a (sync or async) generator function: each item of it is a partial.
    run : Run, optional
        What ``ps.current_run()`` is in the worker; progress is reported to it.
    begin : callable
        Called when the worker is about to begin. When it raises, the body does not run.
    receive : callable
        ``receive(partial)``, in order. While it runs the function waits; what it raises is raised there.
    trace : callable
        ``trace()`` lets what begins have a span, and gives that, for the worker.
    answer : callable
        ``answer(kind, *args)`` to what the function asks: ``("task", name)``, ``("get", name)``,
        ``("set", name, value)``, ``("delete", name)``, ``("names",)`` of ``ps.store``.
    """

    name: str
    function: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    run: Run | None = None
    begin: Callable[[], object] = _nothing
    receive: Callable[[Any], object] = _nothing
    trace: Callable[[], spans.Carrier] = lambda: spans.NOWHERE
    answer: Callable[..., Any] = _nobody
    _packed: Encoded | None = field(default=None, init=False)

    def __call__(self) -> Any:
        """Run it here."""
        self.begin()
        _current.set(self.run)
        return conduct(partial(self.function, *self.args, **self.kwargs), self.receive)

    def pack(self) -> None:
        """
        Encode the function and its arguments, unless it is done.

        Raises
        ------
        ValueRefused
            When one of them cannot travel: names it, the type of the culprit and its path inside.
        """
        if self._packed is None:
            try:
                self._packed = encode((self.function, self.args, self.kwargs), self.name)
            except ValueRefused as error:
                raise self._blame() or error from error.__cause__

    def packed(self) -> Encoded:
        """What `pack` has made; it is not kept."""
        self.pack()
        packed, self._packed = self._packed, None
        assert packed is not None
        return packed

    def take(self) -> tuple[Encoded, Encoded]:
        packed = self.packed()
        self.begin()
        run = self.run
        who = (self.name, "", None, 1) if run is None else (run.task, run.id, run.key, run.attempt)
        return encode((self.name, *who, self.trace(), sys.path, logs.settings()), self.name), packed

    def hear(self, kind: bytes, value: Value) -> tuple[bytes, Encoded] | None:
        if kind == wire.PROGRESS:
            if self.run is not None:
                self.run.report(*value.load())
        elif kind == wire.LOG:
            context = contextvars.Context()  # for filters that look for the run
            context.run(_current.set, self.run)
            context.run(logs.handle, value.load())
        elif kind == wire.PARTIAL:
            return self._answer(value, self._received)
        elif kind == wire.QUESTION:
            return self._answer(value, self._answered)
        elif kind == wire.MODULE:
            return self._answer(value, _whereabouts)
        return None

    def outcome(self, kind: bytes, value: Value) -> Any:
        if kind == wire.PUBLISHED:
            return PUBLISHED
        if kind == wire.RAISED:
            raise wire.decode_error(value, self.name)
        try:
            return value.load()
        except ValueUnreadable as error:
            raise ValueUnreadable(f"{self.name}: its result cannot be read in the server: {error}.") from error

    def _answer(self, value: Value, call: Callable[[Any], Any]) -> tuple[bytes, Encoded]:
        try:
            context = contextvars.Context()
            if self.run is not None and self.run._span is not None:  # what it submits from there is of its span
                context.run(spans.enter, self.run._span)
            return wire.ANSWER, encode(context.run(call, value.load()), self.name)
        except BaseException as error:  # whatever a value does that is read or answered
            return wire.REFUSAL, wire.encode_error(error, self.name)

    def _received(self, item: Any) -> None:
        self.receive(item)

    def _answered(self, question: tuple[Any, ...]) -> Any:
        if question[0] == "function":
            _, module, path = question
            return ByValue(reduce(getattr, path.split("."), sys.modules[module]).function)
        if question[0] == "source":
            return _source(question[1])
        return self.answer(*question)

    def _blame(self) -> ValueRefused | None:
        for name, value in self._parts():
            try:
                encode(value, f"{self.name}: {name}")
            except ValueRefused as error:
                return ValueRefused(str(error).replace("Return plain data", "Pass plain data"))
        return None

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """What may not travel, the smallest first."""
        try:
            bound = inspect.signature(self.function).bind(*self.args, **self.kwargs).arguments
        except (TypeError, ValueError):
            bound = {**{str(number): value for number, value in enumerate(self.args)}, **self.kwargs}
        yield from ((f"argument {name!r}", value) for name, value in bound.items())
        with suppress(TypeError, ValueError):
            used = inspect.getclosurevars(self.function)
            yield from ((f"{name!r}, which its function closes over", value) for name, value in used.nonlocals.items())
            yield from ((f"global {name!r}, which its function uses", value) for name, value in used.globals.items())
        yield "its function", self.function


class Worker:
    """A process of its own, that runs one body at a time. Raises OSError when it cannot be started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.ready = False
        self._midway = False
        self._stopped = False
        here, there = socket.socketpair()
        self._wire = Wire(here)
        self._mark = secrets.token_hex(8)
        # Closed when this process ends, however it does: that ends the worker and its children.
        read, self._lifeline = os.pipe()
        path = os.pathsep.join(map(os.fspath, sys.path))
        flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        try:
            # By vfork: its cost does not grow with this process. A process group of its own, to be killed as one; not
            # a session, among which Linux shares the processor before it looks at how nice a process is.
            self._process = subprocess.Popen(
                [sys.executable, *flags, SCRIPT, str(there.fileno()), str(read), path],
                stdin=subprocess.DEVNULL, pass_fds=[there.fileno(), read], process_group=0,
                env={**os.environ, MARK: self._mark},
            )  # fmt: skip
        except BaseException:
            self.close()
            raise
        finally:
            there.close()
            os.close(read)
        with suppress(OSError):
            # Before it has begun to start: that is work, too.
            os.setpriority(os.PRIO_PROCESS, self.pid, NICENESS)
        _workers.add(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def idle(self) -> bool:
        """Whether it lives and waits for a body."""
        return self.ready and not self._stopped and not self._midway and self._wire.quiet()

    @property
    def there(self) -> bool:
        """Whether it answers: one that was killed a moment ago would take a body to its grave."""
        try:
            self._wire.send(wire.HELLO)
            self._wire.receive()
        except Gone:
            return False
        return True

    def run(self, call: Call) -> Any:
        """
        What the function returns; what it raises is raised.

        Raises
        ------
        Gone
            When the process has died.
        """
        if not self.ready:
            self._wire.receive()
            self.ready = True
        who, body = call.take()
        self._midway = True
        self._wire.send(wire.RUN, who)
        self._wire.send(wire.BODY, body)
        body.close()
        while True:
            kind, value = self._wire.receive()
            if kind in wire.ENDS:
                break
            if (answer := call.hear(kind, value)) is not None:
                self._wire.send(*answer)
        self._midway = False
        return call.outcome(kind, value)

    def stop(self, grace: float) -> None:
        """End what it runs: its cleanup code has `grace` seconds. It is of no more use then."""
        self._stopped = True
        self._signal(signal.SIGTERM)
        insisting = threading.Thread(target=self._insist, args=[grace], name="panel-schedule-stop", daemon=True)
        contextvars.Context().run(insisting.start)

    def _insist(self, grace: float) -> None:
        # Again and again: what comes just before a blocking call does not interrupt it.
        for share in (0.02, 0.1, 0.38, 0.5):
            if self._over.wait(grace * share):
                return
            self._signal(signal.SIGTERM)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with self._lock, suppress(ProcessLookupError, PermissionError):
            # Not of another process: the number is free only once this one was waited for.
            if self._process.returncode is None:
                if number == signal.SIGKILL:
                    os.kill(self.pid, signal.SIGSTOP)
                    kill_descendants(self.pid, self._mark)
                    os.killpg(self.pid, number)
                else:
                    os.kill(self.pid, number)

    def kill(self) -> int:
        """End it and its children; when this returns they are gone. How it ended, as `subprocess` has it."""
        self._over.set()
        self._signal(signal.SIGKILL)
        with self._lock:
            status = self._process.wait()
        self.close()
        for _ in range(int(VANISHING / 0.001)):
            try:
                os.killpg(self.pid, 0)
            except OSError:
                break
            time.sleep(0.001)
        return status

    def close(self) -> None:
        """Let go of it; where nobody else holds it, that ends it."""
        self._wire.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def _forget() -> None:
    """In the child of a fork, which would keep them alive when its parent is gone."""
    for worker in list(_workers):
        worker.close()


os.register_at_fork(after_in_child=_forget)


def _whereabouts(name: str) -> tuple[str | None, list[str] | None]:
    """The file of a module that was imported here, and the folders of a package."""
    module = sys.modules.get(name)
    folders = getattr(module, "__path__", None)
    return getattr(module, "__file__", None), None if folders is None else list(folders)


def _source(name: str) -> str | None:
    """Of a module of the user's own, for a machine that does not have it; packages have to be installed there."""
    module = sys.modules[name]
    installed = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    if any(Path(module.__file__ or "").is_relative_to(folder) for folder in installed):
        return None
    loader: Any = getattr(module.__spec__, "loader", None)
    return loader.get_source(name) if hasattr(loader, "get_source") else None


class ProcessFuture(PlacedFuture):
    """A future whose ``cancel()`` also stops a body that already runs in a worker process."""

    def __init__(self, give_back: Callable[[PlacedFuture], object], name: str) -> None:
        super().__init__(give_back, name)
        self._guard = threading.Lock()
        self._worker: Worker | None = None
        self.grace: float | None = None

    def cancel(self) -> bool:
        if Future.cancel(self):
            return True
        self.stop(GRACE)
        return False

    def stop(self, grace: float) -> None:
        """End the body if it runs: its cleanup code has `grace` seconds."""
        with self._guard:
            if self.grace is None or grace < self.grace:
                self.grace = grace
                if self._worker is not None:
                    self._worker.stop(grace)

    @contextmanager
    def carried_by(self, worker: Worker, name: str) -> Iterator[None]:
        """What is inside is the body: the worker does nothing else for anybody else."""
        with self._guard:
            if self.grace is not None:
                raise RunCancelled(f"{name}: the run was cancelled before its function began.")
            self._worker = worker
        try:
            yield
        finally:
            with self._guard:
                self._worker = None


class ProcessExecutor(ThreadExecutor):
    """
    At most `max_processes` bodies at once, first come, first served, each in a worker process of its own.

    The threads talk to the workers, which are fresh interpreters, started when they are needed and then kept. One in
    which a body was stopped, or that died, is replaced.
    """

    def __init__(self, max_processes: int):
        super().__init__(max_processes)
        self._most_left = max_processes  # a process is dear
        self._kept: list[Worker] = []
        # By worker what it runs.
        self._busy: dict[Worker, str] = {}
        # Whether it was stopped, and nothing was submitted since.
        self._over = False

    def submit(self, body: Callable[[], Any], name: str = "") -> Future[Any]:
        call = body if isinstance(body, RemoteCall) else RemoteCall(name or "A function", body)
        future = ProcessFuture(self.give_back, name)
        with self._lock:
            self._over = False
            self._pending.add(future)
            self._batch.append((future, partial(self.carry, future, call)))
        return future

    def stop(self, grace: float) -> None:
        with self._lock:
            pending = [future for future in self._pending if isinstance(future, ProcessFuture)]
        # Not their own `cancel`: what runs may end by itself within the grace.
        left = {future for future in pending if not Future.cancel(future)}
        for patience in (grace, 2 * SHORTLY):
            with self._ended:
                self._ended.wait_for(lambda: self._hurried or left.isdisjoint(self._pending), timeout=patience)
            for future in left & self._pending:
                future.stop(0 if self._hurried else SHORTLY)
        with self._lock:
            idle, self._kept, self._over = self._kept, [], True
        self._dismiss()
        for worker in idle:
            worker.kill()

    def carry(self, future: ProcessFuture, call: Call) -> Any:
        """Run it now, on this thread; `future` can be cancelled meanwhile."""
        call.pack()
        worker = self._busy_worker(call.name)
        try:
            with future.carried_by(worker, call.name):
                return worker.run(call)
        except Gone:
            status = worker.kill()
            if future.grace is not None:
                raise RunCancelled(
                    f"{call.name}: the run was cancelled, and its worker process ended before its function did."
                ) from None
            raise RunCrashed(f"{call.name}: {_death(status, worker.ready)}") from None
        finally:
            with self._lock:
                del self._busy[worker]
            self._keep(worker)

    @property
    def workers(self) -> list[tuple[str, str]]:
        with self._lock:
            there = [*self._busy.items(), *((worker, "") for worker in self._kept)]
        return sorted((str(worker.pid), name) for worker, name in there)

    def _busy_worker(self, name: str) -> Worker:
        worker = self._worker(name)
        with self._lock:
            self._busy[worker] = name
        return worker

    def _worker(self, name: str) -> Worker:
        while True:
            with self._lock:
                if not self._kept:
                    break
                worker = self._kept.pop()
            if worker.idle and worker.there:
                return worker
            worker.kill()
        try:
            return Worker()
        except OSError as error:
            raise RunCrashed(
                f"{name}: no worker process could be started with {sys.executable!r} ({error}). Mend that, or run the "
                "function in a thread: executor='thread'."
            ) from error

    def _keep(self, worker: Worker) -> None:
        # Under --dev modules change, and a worker would have those of before.
        if worker.idle and not pn.config.autoreload:
            with self._lock:
                if len(self._kept) < self._places and not self._over:
                    self._kept.append(worker)
                    return
        worker.kill()


def _death(status: int, ready: bool) -> str:
    try:
        how = f"was killed by signal {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
    except ValueError:
        how = f"was killed by signal {-status}"
    if not ready:
        return (
            f"its worker process {how} before it could begin. See its output for the reason; the same interpreter must "
            f"start with: {sys.executable} -c pass"
        )
    remedy = "The function, or a library it calls, has ended the process; its output may say why."
    if -status == signal.SIGKILL:
        remedy = "Often that is the system when memory is short: see its log, and have fewer ps.config.max_processes."
    return f"its worker process {how}. {remedy}"
