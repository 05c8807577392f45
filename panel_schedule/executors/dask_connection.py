"""The connection of a server to a Dask scheduler: on a thread of its own, and back again when it was lost."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from secrets import token_hex
from typing import Any

from ..errors import ConfigError
from .dask_worker import LARGE, Answer, Message, parts, put
from .wire import Encoded

log = logging.getLogger("panel_schedule")

# Seconds that connecting to the scheduler may take, and to a worker; and between two attempts, at first and at most.
CONNECTING = 10.0
REACHING = 2.0
PAUSE, LONGEST_PAUSE = 0.25, 5.0


class Connection:
    """
    An open connection; what it calls is called on its thread, as all coroutines here are.

    Parameters
    ----------
    address : str
        Of the scheduler.
    options : dict
        Of ``distributed.Client``.
    heard : callable
        ``heard(*message)`` with each message of a run.
    lost : callable
        ``lost(connection, worker)`` with the address of a worker that is gone; with None when the connection is, and
        with it all that Dask was given.

    Attributes
    ----------
    queue : str
        Where workers put their messages.
    client : distributed.Client or None
        None while there is no connection.
    """

    def __init__(
        self,
        address: str,
        options: dict[str, Any],
        heard: Callable[..., object],
        lost: Callable[[Connection, str | None], object],
    ):
        self.queue = ""
        self.client: Any = None
        self._address, self._options, self._heard, self._lost = address, options, heard, lost
        self._connected = asyncio.Event()
        # By their addresses, as the scheduler tells of them.
        self.workers: set[str] = set()
        self._direct: bool | None = None
        # Of what was warned.
        self._unreachable = self._alone = False
        self._loop = asyncio.new_event_loop()
        self._serving = self._loop.create_task(self._stay_connected(), context=contextvars.Context())
        thread = threading.Thread(target=self._turn, name="panel-schedule-dask", daemon=True)
        contextvars.Context().run(thread.start)

    def soon(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it on the thread; nothing once it is closed."""
        try:
            done = contextvars.Context().run(asyncio.run_coroutine_threadsafe, work, self._loop)
        except RuntimeError:  # closed
            work.close()
        else:
            done.add_done_callback(_see)

    def close(self) -> None:
        """It ends soon. Idempotent."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._serving.cancel)

    # ------------------------------------------------------------ on its thread

    async def ready(self) -> None:
        """Wait for the scheduler; says where there is no worker."""
        await self._connected.wait()
        if not self.workers:
            self._warn_of_no_worker()

    def submit(self, function: Callable[..., Any], argument: bytes, key: str) -> Any:
        """A task of Dask, as its future. Right after `ready`."""
        return self.client.submit(function, argument, key=key, pure=False)

    async def cancel(self, task: Any) -> None:
        if self.client is not None:
            await self.client.cancel([task])

    async def gather(self, task: Any, worker: str) -> Any:
        """What a task has given: straight from its worker, where that can be reached."""
        if self._direct is None:
            self._direct = False
            with suppress(OSError):
                async with asyncio.timeout(REACHING):
                    await self.client.rpc(worker).identity()
                self._direct = True
        return await self.client.gather(task, direct=self._direct)

    async def say(self, place: str, *answers: tuple[bytes, Encoded]) -> None:
        """Answer a worker, in its queue."""
        batch, size, client = list[Answer](), 0, self.client
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

    def _turn(self) -> None:
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serving)
        for task in (left := asyncio.all_tasks(self._loop)):
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left))
        self._loop.close()

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
            except Exception as error:
                self._warn_of_no_scheduler(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _serve(self, client: Any) -> None:
        """Hear what workers say, until the connection is lost, when this raises OSError."""
        from distributed import Queue

        self.queue, self._direct = f"panel-schedule-{token_hex(8)}", client.direct_to_workers
        queue = await Queue(self.queue, client=client)
        client.subscribe_topic("all", self._hear_of_workers)
        self.workers = set(await client.nthreads())
        if self._unreachable:
            log.warning("The Dask scheduler %s is there.", self._address)
        self.client, self._unreachable, self._alone = client, False, False
        self._connected.set()
        try:
            while True:
                message: Message = await queue.get()
                self._heard(*message)
        finally:
            for _ in range(2):  # so often has the line above made it
                queue.close()
            self.client = None
            self._connected.clear()
            self._lost(self, None)

    def _hear_of_workers(self, event: tuple[float, Any]) -> None:
        _, told = event
        if told.get("action") == "add-worker":
            self.workers.add(told["worker"])
            self._alone = False
        elif told.get("action") == "remove-worker":
            self.workers.discard(told["worker"])
            self._lost(self, told["worker"])

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
                type(error).__name__ if isinstance(error, OSError) else error,
            )  # fmt: skip


def found(cluster: Any) -> tuple[str, dict[str, Any]]:
    """
    The address of a scheduler, or of that of a client, and how to connect.

    Raises
    ------
    ConfigError
    """
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


def _see(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.error("What is done for a run on Dask failed.", exc_info=error)


def _is_no_close(record: logging.LogRecord) -> bool:
    """A client that is closed while it wants to come back says so with a traceback."""
    return not (record.exc_info and record.exc_info[0] is asyncio.CancelledError)
