"""
Functions on a Dask cluster: the task of Dask only wakes a worker, which asks this process for what to run.

So arguments rest here until they are needed, of the cluster only the workers need this package, and a task that Dask
starts anew, because its worker was lost, is refused when it asks: it is this process that counts. What both sides say
to each other goes through queues of Dask's scheduler, which needs no shared store and no port of this process's; to
cancel is Dask's own, and what a worker does then is in `dask_worker`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import pickle
import re
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import AbstractContextManager, suppress
from functools import partial
from secrets import token_hex
from typing import Any

from ..errors import ConfigError, RunCancelled, RunCrashed, RunFenced, ScheduleError
from . import dask_worker, wire
from .base import WorkerLost
from .dask_worker import BEGIN, LARGE, Answer, parts, put, versions
from .processes import SHORTLY, RemoteCall
from .threads import ThreadExecutor
from .wire import Arrived, Encoded

log = logging.getLogger("panel_schedule")

# Threads on which is dealt with what was heard, of any number of runs.
THREADS = 8

# Seconds that connecting to the scheduler may take, and to a worker; and between two attempts, at first and at most.
CONNECTING = 10.0
REACHING = 2.0
PAUSE, LONGEST_PAUSE = 0.25, 5.0


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
    key : str
        Of the task of Dask.
    task : distributed.Future or None
        That task.
    following : asyncio.Task or None
        What waits for its end.
    place, worker : str
        Where its function runs: the queue for answers, and the worker's address; ``""`` before it begins.
    """

    def __init__(self, call: RemoteCall, stop: Callable[[DaskFuture], object]):
        super().__init__()
        self.call = call
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

    It has a connection of its own, on a thread of its own, which comes back by itself when it was lost.

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
        self._address, self._options = _found(cluster)
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._hurried = False
        self._batch: list[DaskFuture] = []
        self._pending: set[DaskFuture] = set()
        self._threads = ThreadExecutor(THREADS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: asyncio.Task[None] | None = None
        # The rest is of the loop. What Dask has, by key; and whether it can be given any.
        self._known: dict[str, DaskFuture] = {}
        self._connected = asyncio.Event()
        self._client: Any = None
        self._direct: bool | None = None
        self._queue = ""
        self._workers: set[str] = set()
        # Of what was warned.
        self._unreachable = self._alone = False

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
            loop, serving, self._loop, self._serving = self._loop, self._serving, None, None
        if loop is not None and serving is not None:
            loop.call_soon_threadsafe(serving.cancel)

    # ------------------------------------------------------------ one run, on threads

    def _pack(self, future: DaskFuture) -> None:
        """Its arguments are those of now; then Dask may have it."""
        if future.done():
            return
        try:
            future.call.pack()
        except BaseException as error:
            self._end(future, error=error)
        else:
            self._connect()
            self._soon(self._run(future))

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
        try:
            who, body = call.take()
        except BaseException as error:
            self._refuse(place, call.name, error)
            raise
        self._soon(self._say(place, (wire.RUN, who), (wire.BODY, body)))

    def _answer(self, future: DaskFuture, place: str, kind: bytes, value: Arrived) -> None:
        if kind in wire.ENDS:
            self._end(future, future.call.outcome(kind, value))
        elif (answer := future.call.hear(kind, value)) is not None:
            self._soon(self._say(place, answer))

    def _refuse(self, place: str, name: str, error: BaseException) -> None:
        self._soon(self._say(place, (wire.REFUSAL, wire.encode_error(error, name))))

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
        if future.key:
            self._soon(self._cancel(future))

    def _forget(self, future: DaskFuture) -> None:
        with self._ended:
            self._pending.discard(future)
            self._ended.notify_all()
        if future.key:
            self._soon(self._drop(future))

    def _aside(self, call: Callable[[], object]) -> None:
        self._threads.submit(call)
        self._threads.flush()

    # ------------------------------------------------------------ one run, on the loop

    async def _run(self, future: DaskFuture) -> None:
        """Hand it to Dask, and see what becomes of its task. What becomes of the function is told by messages."""
        await self._connected.wait()
        if future.done():
            return
        if not self._workers:
            self._warn_of_no_worker()
        name = future.call.name
        # As Dask's dashboard has it, which leaves the end out.
        future.key = "-".join([*re.findall(r"\w+", name), token_hex(16)])
        self._known[future.key], future.following = future, asyncio.current_task()
        errand = pickle.dumps(Errand(versions(), self._queue, future.key, name))
        task = future.task = self._client.submit(pickle.loads, errand, key=future.key, pure=False)
        if future.stopped:
            await self._cancel(future)
        try:
            error = await task.exception()
        except CancelledError:  # by `_cancel`; or as the connection is lost, which is told by another one
            return
        if error is not None:
            self._deal(future, partial(self._end, future, error=self._misfortune(future, error)))

    def _misfortune(self, future: DaskFuture, error: BaseException) -> BaseException:
        """What the task of Dask has raised, and not its function."""
        name = future.call.name
        if isinstance(error, ScheduleError):
            return error
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "panel_schedule":
            return RunCrashed(
                f"{name}: a Dask worker has no panel-schedule. Install it there: pip install panel-schedule"
            )
        return RunCrashed(f"{name}: it could not be run by Dask: {type(error).__name__}: {error}")

    async def _gather(self, future: DaskFuture, kind: bytes) -> None:
        """A result that is too large for a message."""
        try:
            array = await self._client.gather(future.task, direct=await self._reaches(future.worker))
        except Exception:  # its worker is lost, and so it is itself
            self._deal(future, partial(self._lose, future))
        else:
            self._deal(future, partial(self._answer, future, future.place, kind, Arrived(array.data)))

    async def _reaches(self, worker: str) -> bool:
        """Whether workers can be connected to from here, which takes a third of the way by the scheduler."""
        if self._direct is None:
            self._direct = False
            with suppress(OSError):
                async with asyncio.timeout(REACHING):
                    await self._client.rpc(worker).identity()
                self._direct = True
        return self._direct

    async def _cancel(self, future: DaskFuture) -> None:
        if future.task is not None and self._client is not None:
            await self._client.cancel([future.task])

    async def _drop(self, future: DaskFuture) -> None:
        """Nobody needs the task of Dask any more, nor what it gave."""
        self._known.pop(future.key, None)
        if future.following is not None:
            future.following.cancel()
        future.task = future.following = None

    def _hear(self, key: str, place: str, kind: bytes, part: bytes | None, more: bool) -> None:
        """A message of a run, or a part of one."""
        future = self._known.get(key)
        if future is None or (kind != BEGIN and place != future.place):
            if kind in (BEGIN, *wire.ASKING) and not more:
                self._refuse(place, key, RunFenced(f"{key}: it is over, or another worker has it."))
        elif part is None:
            self._soon(self._gather(future, kind))
        else:
            future.parts += part
            if not more:
                value, future.parts = future.parts, bytearray()
                if kind == BEGIN:
                    self._deal(future, partial(self._begin, future, place, value.decode()))
                else:
                    self._deal(future, partial(self._answer, future, place, kind, Arrived(value)))

    async def _say(self, place: str, *answers: tuple[bytes, Encoded]) -> None:
        batch, size, client = list[Answer](), 0, self._client
        if client is None:
            return
        with suppress(OSError, KeyError):  # that the connection is lost, or the worker, is told by another one
            for kind, value in answers:
                for part, more in parts(value.tobytes()):
                    if batch and size + len(part) > LARGE:
                        await put(client, place, batch)
                        batch, size = [], 0
                    batch.append((kind, part, more))
                    size += len(part)
                value.close()
            await put(client, place, batch)

    # ------------------------------------------------------------ the connection

    def _connect(self) -> None:
        """Idempotent."""
        with self._lock:
            if self._loop is None:
                self._connected = asyncio.Event()
                self._loop = asyncio.new_event_loop()
                self._serving = self._loop.create_task(self._stay_connected(), context=contextvars.Context())
                ends = [self._loop, self._serving]
                thread = threading.Thread(target=_turn, args=ends, name="panel-schedule-dask", daemon=True)
                contextvars.Context().run(thread.start)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        """On the loop, unless that is over."""
        if (loop := self._loop) is not None and not loop.is_closed():
            done = contextvars.Context().run(asyncio.run_coroutine_threadsafe, work, loop)
            done.add_done_callback(_see)
        else:
            work.close()

    async def _stay_connected(self) -> None:
        from distributed import Client

        logging.getLogger("distributed.client").addFilter(_is_no_close)
        pause = PAUSE
        while True:
            try:
                async with Client(
                    self._address, asynchronous=True, set_as_default=False, timeout=CONNECTING, name="panel-schedule",
                    **self._options,
                ) as client:  # fmt: skip
                    pause = PAUSE
                    await self._serve(client)
            except (OSError, ImportError) as error:
                self._warn_of_no_scheduler(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _serve(self, client: Any) -> None:
        """Hear what workers say, until the connection is lost, when this raises OSError."""
        from distributed import Queue

        self._queue, self._direct = f"panel-schedule-{token_hex(8)}", client.direct_to_workers
        queue = await Queue(self._queue, client=client)
        client.subscribe_topic("all", self._hear_of_workers)
        self._workers = set(await client.nthreads())
        if self._unreachable:
            log.warning("The Dask scheduler %s is there.", self._address)
        self._client, self._unreachable, self._alone = client, False, False
        self._connected.set()
        try:
            while True:
                self._hear(*await queue.get())
        finally:
            for _ in range(2):  # so often has the line above made it
                queue.close()
            self._client = None
            self._connected.clear()
            self._leave()

    def _leave(self) -> None:
        """What had begun is lost; what waited goes on waiting."""
        known, self._known = list(self._known.values()), {}
        for future in known:
            if future.place:
                self._deal(future, partial(self._lose, future))
            elif not future.done():
                self._soon(self._run(future))

    def _hear_of_workers(self, event: tuple[float, Any]) -> None:
        _, told = event
        if told.get("action") == "add-worker":
            self._workers.add(told["worker"])
            self._alone = False
        elif told.get("action") == "remove-worker":
            self._workers.discard(told["worker"])
            for future in list(self._known.values()):
                if future.worker == told["worker"]:
                    self._deal(future, partial(self._lose, future))
            if self._known and not self._workers:
                self._warn_of_no_worker()

    def _warn_of_no_worker(self) -> None:
        if not self._alone:
            self._alone = True
            log.warning(
                "The Dask scheduler %s has no worker: what is to run there waits. Start one: dask worker %s",
                self._address, self._address,
            )  # fmt: skip

    def _warn_of_no_scheduler(self, error: BaseException) -> None:
        if not self._unreachable:
            self._unreachable = True
            log.error(
                "The Dask scheduler %s cannot be reached (%s): what is to run there waits, and it is tried again. "
                "Check ps.config.dask, and that it runs: dask scheduler", self._address,
                error if isinstance(error, ImportError) else type(error).__name__,
            )  # fmt: skip


def _see(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.error("What is done for a run on Dask failed.", exc_info=error)


def _is_no_close(record: logging.LogRecord) -> bool:
    """A client that is closed while it wants to come back says so with a traceback."""
    return not (record.exc_info and record.exc_info[0] is asyncio.CancelledError)


def _turn(loop: asyncio.AbstractEventLoop, serving: asyncio.Task[None]) -> None:
    """Until it is to stop."""
    with suppress(asyncio.CancelledError):
        loop.run_until_complete(serving)
    for task in (left := asyncio.all_tasks(loop)):
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.close()


def _found(cluster: Any) -> tuple[str, dict[str, Any]]:
    """The address of the scheduler, and how to connect."""
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError(
            "ps.config.dask is set, and Dask is not installed: pip install 'panel-schedule[dask]'"
        ) from None
    if not isinstance(cluster, Client):
        return str(cluster), {}
    if (scheduler := cluster.scheduler) is None:
        raise ConfigError("ps.config.dask is a Client that is closed. Give it an open one, or the scheduler's address.")
    return str(scheduler.address), {"security": cluster.security, "direct_to_workers": cluster.direct_to_workers}
