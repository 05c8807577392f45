"""
Functions on a Dask cluster: the task of Dask only wakes a worker, which asks this process for what to run.

So arguments rest here until they are needed, of the cluster only the workers need this package, and a task that Dask
starts anew, because its worker was lost, is refused when it asks: it is this process that counts. What both sides say
to each other goes through queues of Dask's scheduler, which needs no shared store and no port of this process's; to
cancel is Dask's own, and what a worker does then is in `dask_worker`.
"""

from __future__ import annotations

import asyncio
import pickle
import re
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, suppress
from functools import partial
from secrets import token_hex
from typing import Any

from ..errors import ConfigError, RunCancelled, RunCrashed, RunFenced, ScheduleError
from . import dask_worker, wire
from .base import Load, WorkerLost
from .dask_connection import Connection, found
from .dask_worker import BEGIN, versions
from .processes import SHORTLY, RemoteCall
from .threads import ThreadExecutor
from .wire import Arrived, Encoded

# Threads on which is dealt with what was heard, of any number of runs.
THREADS = 8


def require(cluster: Any, what: str) -> None:
    """Raise ConfigError where `what` is to run on Dask, and there is none."""
    if cluster is None:
        raise ConfigError(
            f"{what} has executor='dask', and nothing says where Dask is. Set it at the top of the setup script: "
            "ps.config.dask = 'tcp://scheduler:8786'."
        )


class Errand:
    """What Dask is given: bytes, which its scheduler does not read, and which a worker reads by running it."""

    def __init__(self, *args: Any):
        self._args = args

    def __reduce__(self) -> Any:
        return dask_worker.execute, self._args


class DaskFuture(Future[Any]):
    """
    A future whose ``cancel()`` also stops a function that already runs on a Dask worker.

    Attributes
    ----------
    call : RemoteCall
    connection : Connection or None
        To the cluster that has it.
    key : str
        Of the task of Dask.
    task : distributed.Future or None
        That task.
    following : asyncio.Task or None
        What waits for its end.
    place, worker : str
        Where its function runs: the queue for answers, and the worker's address; ``""`` before it begins.
    stopped : bool
        Whether it was cancelled.
    """

    def __init__(self, call: RemoteCall, stop: Callable[[DaskFuture], object]):
        super().__init__()
        self.call = call
        self.connection: Connection | None = None
        self.task: Any = None
        self.following: asyncio.Task[Any] | None = None
        self.key = self.place = self.worker = ""
        self.stopped = False
        self._stop = stop
        # What was heard of a message; messages that nobody has dealt with yet, and whether a thread is about to.
        self.parts = bytearray()
        self.heard = deque[Callable[[], object]]()
        self.dealing = False

    def cancel(self) -> bool:
        cancelled = super().cancel()
        self._stop(self)
        return cancelled


class DaskExecutor:
    """
    Runs functions on the workers of a Dask cluster, as many at once as these have threads.

    Parameters
    ----------
    cluster : str or distributed.Client
        The address of its scheduler, or a client that has one; it is not used itself, and may be closed.

    Raises
    ------
    ConfigError
        When Dask is not installed, or the client was closed.
    """

    def __init__(self, cluster: Any):
        self._address, self._options = found(cluster)
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._hurried = self._stopped = False
        self._batch: list[DaskFuture] = []
        self._pending: set[DaskFuture] = set()
        self._threads = ThreadExecutor(THREADS)
        self._connection: Connection | None = None
        # By key what Dask has; touched on the thread of the connection only.
        self._known: dict[str, DaskFuture] = {}

    def submit(self, body: Callable[[], Any], name: str = "") -> Future[Any]:
        future = DaskFuture(
            body if isinstance(body, RemoteCall) else RemoteCall(name or "A function", body), self._stop
        )
        with self._lock:
            self._pending.add(future)
            self._batch.append(future)
        return future

    def flush(self) -> None:
        if self._batch:
            with self._lock:
                batch, self._batch = self._batch, []
            for future in batch:
                self._aside(partial(self._pack, future))

    def lend(self) -> AbstractContextManager[object]:
        return self._threads.lend()

    @property
    def hanging(self) -> tuple[str, ...]:
        return ()  # what is cancelled is ended

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    @property
    def load(self) -> Load:
        with self._lock:
            running = sum(bool(future.worker) for future in self._pending)
            return Load(running, len(self._pending) - running)

    @property
    def workers(self) -> list[tuple[str, str]]:
        """Those of the cluster, of which its scheduler tells from a moment after the first look on."""
        with self._lock:
            busy = [(future.worker, future.call.name) for future in self._pending if future.worker]
            there = set[str]() if self._stopped else set(self._connected().workers)
        idle = there - {worker for worker, _ in busy}
        return sorted([*busy, *((worker, "") for worker in idle)])

    def hurry(self) -> None:
        self._hurried = True
        with self._ended:
            self._ended.notify_all()

    def stop(self, grace: float) -> None:
        with self._lock:
            pending = list(self._pending)
        left = set[DaskFuture]()
        for future in pending:
            # Not their own `cancel`: what runs may end by itself within the grace.
            if Future.cancel(future):
                self._stop(future)
            else:
                left.add(future)
        for patience in (grace, 2 * SHORTLY):
            with self._ended:
                self._ended.wait_for(lambda: self._hurried or left.isdisjoint(self._pending), timeout=patience)
            for future in left & self._pending:
                self._stop(future)
        with self._lock:
            connection, self._connection, self._stopped = self._connection, None, True
        if connection is not None:
            connection.close()

    # ------------------------------------------------------------ one run, on threads

    def _pack(self, future: DaskFuture) -> None:
        """Its arguments are those of now; then Dask may have it."""
        if future.done():
            return
        try:
            future.call.pack()
        except BaseException as error:
            self._end(future, error=error)
            return
        with self._lock:
            future.connection = connection = self._connected()
        connection.soon(self._run(future, connection))

    def _connected(self) -> Connection:
        """Under the lock."""
        if self._connection is None:
            self._connection = Connection(self._address, self._options, self._hear, self._miss)
        return self._connection

    def _deal(self, future: DaskFuture, call: Callable[[], object]) -> None:
        """Call what may take long, and for each run one thing after another."""
        with self._lock:
            future.heard.append(call)
            if future.dealing:
                return
            future.dealing = True
        self._aside(partial(self._deal_in_order, future))

    def _deal_in_order(self, future: DaskFuture) -> None:
        while True:
            with self._lock:
                if not future.heard:
                    future.dealing = False
                    return
                call = future.heard.popleft()
            try:
                call()
            except BaseException as error:
                self._end(future, error=error)

    def _begin(self, future: DaskFuture, place: str, worker: str) -> None:
        call = future.call
        if future.place:
            self._refuse(place, call.name, RunFenced(f"{call.name}: it has begun before, on {future.worker}."))
            self._lose(future)
            return
        if future.cancelled() or not future.set_running_or_notify_cancel():
            self._refuse(place, call.name, RunCancelled(f"{call.name}: it was cancelled before its function began."))
            return
        future.place, future.worker = place, worker
        if isinstance(call, RemoteCall) and call.run is not None:
            call.run.worker = worker
        try:
            who, body = call.take()
        except BaseException as error:
            self._refuse(place, call.name, error)
            raise
        self._say(place, (wire.RUN, who), (wire.BODY, body))

    def _answer(self, future: DaskFuture, place: str, kind: bytes, value: Arrived) -> None:
        if kind in wire.ENDS:
            self._end(future, future.call.outcome(kind, value))
        elif (answer := future.call.hear(kind, value)) is not None:
            self._say(place, answer)

    def _refuse(self, place: str, name: str, error: BaseException) -> None:
        self._say(place, (wire.REFUSAL, wire.encode_error(error, name)))

    def _say(self, place: str, *answers: tuple[bytes, Encoded]) -> None:
        if (connection := self._connection) is not None:
            connection.soon(connection.say(place, *answers))

    def _lose(self, future: DaskFuture) -> None:
        who = f"{future.call.name}: the Dask worker {future.worker}"
        error: BaseException = RunCancelled(f"{who} is not heard of any more, and the run was cancelled.")
        if not future.stopped:
            error = WorkerLost(f"{who} was lost, or the way to it. Its log may say why; often its memory was short.")
        self._end(future, error=error)

    def _end(self, future: DaskFuture, result: Any = None, error: BaseException | None = None) -> None:
        with suppress(InvalidStateError):  # it was cancelled, or is over
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self._forget(future)

    def _stop(self, future: DaskFuture) -> None:
        """Dask's task is cancelled; the worker stops its function."""
        future.stopped = True
        if future.cancelled():
            self._forget(future)
        elif (connection := future.connection) is not None:
            connection.soon(self._cancel(future, connection))

    def _forget(self, future: DaskFuture) -> None:
        with self._ended:
            self._pending.discard(future)
            self._ended.notify_all()
        if future.connection is not None:
            future.connection.soon(self._drop(future))

    def _aside(self, call: Callable[[], object]) -> None:
        self._threads.submit(call)
        self._threads.flush()

    # ------------------------------------------------------------ one run, on the thread of the connection

    async def _run(self, future: DaskFuture, connection: Connection) -> None:
        """Hand it to Dask, and see what becomes of its task. What becomes of the function is told by messages."""
        await connection.ready()
        if future.done():
            return
        name = future.call.name
        # As Dask's dashboard has it, which leaves the end out.
        future.key = key = "-".join([*re.findall(r"\w+", name), token_hex(16)])
        self._known[key], future.following = future, asyncio.current_task()
        errand = Errand(versions(), connection.queue, key, name)
        task = future.task = connection.submit(pickle.loads, pickle.dumps(errand), key)
        if future.stopped:
            await connection.cancel(task)
        error = await task.exception()
        if task.cancelled():
            self._start_again(future, key)
        elif error is not None:
            self._deal(future, partial(self._end, future, error=_misfortune(name, error)))

    def _start_again(self, future: DaskFuture, key: str) -> None:
        """Somebody has cancelled the task of Dask, with ``Client.restart`` say, and not the run."""
        connection = future.connection
        if not (future.place or future.stopped or connection is None) and self._known.pop(key, None) is not None:
            connection.soon(self._run(future, connection))

    async def _cancel(self, future: DaskFuture, connection: Connection) -> None:
        if future.task is not None:
            await connection.cancel(future.task)

    async def _gather(self, future: DaskFuture, kind: bytes, connection: Connection) -> None:
        """A result that is too large for a message."""
        try:
            array = await connection.gather(future.task, future.worker)
        except Exception:  # its worker is lost, and so it is itself
            self._deal(future, partial(self._lose, future))
        else:
            self._deal(future, partial(self._answer, future, future.place, kind, Arrived(array.data)))

    async def _drop(self, future: DaskFuture) -> None:
        """Nobody needs the task of Dask any more, nor what it gave."""
        self._known.pop(future.key, None)
        if future.following is not None:
            future.following.cancel()
        future.task = future.following = None

    def _hear(self, key: str, place: str, kind: bytes, part: bytes | None, more: bool) -> None:
        """A message of a run, or a part of one."""
        future = self._known.get(key)
        if future is None or future.connection is None or (kind != BEGIN and place != future.place):
            if kind in (BEGIN, *wire.ASKING) and not more:
                self._refuse(place, key, RunFenced(f"{key}: it is over, or another worker has it."))
        elif part is None:
            future.connection.soon(self._gather(future, kind, future.connection))
        else:
            future.parts += part
            if not more:
                value, future.parts = future.parts, bytearray()
                if kind == BEGIN:
                    self._deal(future, partial(self._begin, future, place, value.decode()))
                else:
                    self._deal(future, partial(self._answer, future, place, kind, Arrived(value)))

    def _miss(self, connection: Connection, worker: str | None) -> None:
        """A worker, or all that this connection has led to. What had begun is lost; what waited goes on waiting."""
        for key, future in list(self._known.items()):
            if future.connection is connection and worker in (None, future.worker):
                if future.place:
                    self._deal(future, partial(self._lose, future))
                else:
                    self._start_again(future, key)


def _misfortune(name: str, error: BaseException) -> BaseException:
    """What a task of Dask has raised, and not its function."""
    if isinstance(error, ScheduleError):
        return error
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "panel_schedule":
        return RunCrashed(f"{name}: a Dask worker has no panel-schedule. Install it there: pip install panel-schedule")
    return RunCrashed(f"{name}: it could not be run by Dask: {type(error).__name__}: {error}")
