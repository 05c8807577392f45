"""In a Dask worker: runs what a server has asked for in a worker process of its own, and passes on what both say."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from secrets import token_hex
from typing import Any

import numpy as np

from ..errors import RunCancelled, ScheduleError
from . import wire
from .processes import Call, ProcessExecutor, ProcessFuture
from .wire import Encoded, Inline, Received, Value

# All messages go through Dask's scheduler: in parts of at most so many bytes. The server gathers a larger result.
LARGE = 1_000_000

# Who waits for an answer gives his thread to another run after so many seconds; and looks this often whether his own
# is still wanted.
SHORTLY = 0.1
ROUND = 1.0

# The states of a task of Dask that is on a thread, or has given it away.
RUNNING = ("executing", "long-running")

# A Dask worker limits by its threads how many functions run at once, and so how many processes there are.
MANY = 10_000

# The first message of a run, to which the server's answer is what is to run.
BEGIN = b"B"

PLUGIN = "panel-schedule"

# A message to the server: which run says it, the queue for its answer, its kind, and a part of its value; whether more
# of it follow. A result that is left has no value. What the server answers are several, without the first two.
Message = tuple[str, str, bytes, bytes | None, bool]
Answer = tuple[bytes, bytes, bool]


def parts(value: memoryview | bytes) -> Iterator[tuple[bytes, bool]]:
    """What fits into one message, again and again; and whether more follows."""
    view = memoryview(value)
    for at in range(0, max(1, len(view)), LARGE):
        yield bytes(view[at : at + LARGE]), at + LARGE < len(view)


def versions() -> tuple[str, str]:
    """What must be the same on both sides: of this package, and of Python, whose functions travel as bytecode."""
    return sys.modules[__package__.partition(".")[0]].__version__, ".".join(map(str, sys.version_info[:2]))


def put(client: Any, queue: str, message: Any) -> Any:
    """Into a queue that another one has made. A `distributed.Queue` would make it first, as a round trip of its own."""
    return client.sync(client.scheduler.queue_put, name=queue, data=message, timeout=None)


class Line:
    """What one run and its server say to each other, on two of Dask's queues."""

    def __init__(self, worker: Any, client: Any, server: str, key: str):
        from distributed import Queue

        self._worker, self._client, self._server, self._key = worker, client, server, key
        self._own = Queue(f"{key}-{token_hex(4)}", client)
        self._heard = deque[Answer]()

    def tell(self, kind: bytes, value: memoryview | bytes) -> None:
        for part, more in parts(value):
            self._put(kind, part, more)

    def leave(self, kind: bytes) -> None:
        """Tell that there is a result."""
        self._put(kind, None, False)

    def _put(self, kind: bytes, part: bytes | None, more: bool) -> None:
        message: Message = (self._key, self._own.name, kind, part, more)
        put(self._client, self._server, message)

    def listen(self) -> tuple[bytes, bytes]:
        """Wait for an answer. Raises RunCancelled when nobody wants the run any more, and so nobody answers."""
        value, more, kind = bytearray(), True, b""
        while more:
            if not self._heard:
                self._hear()
            kind, part, more = self._heard.popleft()
            value += part
        return kind, bytes(value)

    def _hear(self) -> None:
        with suppress(TimeoutError):
            self._heard += self._own.get(timeout=SHORTLY)
        if not self._heard:
            # It waits for another run, maybe, which needs a thread of this worker.
            from distributed import rejoin, secede

            secede()
            try:
                self._wait()
            finally:
                rejoin()

    def _wait(self) -> None:
        while not self._heard:
            try:
                self._heard += self._own.get(timeout=ROUND)
            except TimeoutError:
                task = self._worker.state.tasks.get(self._key)
                if task is None or task.state not in RUNNING:
                    raise RunCancelled("The run was cancelled, or its server is gone.") from None

    def close(self) -> None:
        self._own.close()


class RelayedCall(Call):
    """What runs here for a server: the worker process hears from it, and it from the worker process."""

    def __init__(self, name: str, line: Line, place: str):
        self.name = name
        self._line = line
        self._place = place

    def pack(self) -> None:
        """The server has done so."""

    def take(self) -> tuple[Encoded, Encoded]:
        self._line.tell(BEGIN, self._place.encode())
        kind, who = self._line.listen()
        if kind == wire.REFUSAL:
            raise wire.decode_error(Inline(who), self.name)
        *told, path, settings = Inline(who).load()
        # Its folders may be here as well; the packages are this machine's.
        path = [*sys.path, *(folder for folder in path if folder not in sys.path)]
        return wire.encode((*told, path, settings), self.name), Received(self._line.listen()[1])

    def hear(self, kind: bytes, value: Value) -> tuple[bytes, Encoded] | None:
        self._line.tell(kind, value.buffer)
        if kind not in wire.ASKING:
            return None
        kind, answer = self._line.listen()
        return kind, Received(answer)

    def outcome(self, kind: bytes, value: Value) -> tuple[bytes, memoryview]:
        return kind, value.buffer


_processes = ProcessExecutor(MANY)
_running: dict[str, ProcessFuture] = {}
_watching = threading.Lock()


def execute(theirs: tuple[str, str], server: str, key: str, name: str) -> Any:
    """
    Run what a server has asked for. This is all that Dask itself knows of it: a task of the same key.

    Parameters
    ----------
    theirs : (str, str)
        The versions of the server.
    server : str
        Its queue.
    key, name : str
        Which run, and whose it is: ``"Task 'sales'"``.

    Returns
    -------
    ndarray or None
        The bytes of a result that is too large for a message: as an array, of which Dask makes no copies.
    """
    from distributed import get_client, get_worker

    worker = get_worker()
    if theirs != versions():
        what = "panel-schedule {} and Python {}"
        raise ScheduleError(
            f"{name}: the Dask worker {worker.address} has {what.format(*versions())}, and the server "
            f"{what.format(*theirs)}. Install the same versions in both."
        )
    _watch(worker)
    line = Line(worker, get_client(), server, key)
    try:
        _running[key] = future = _future(name)
        try:
            kind, data = _processes.carry(future, RelayedCall(name, line, worker.address))
        except BaseException as error:
            kind, data = wire.RAISED, wire.encode_error(error, name).tobytes()
        if len(data) <= LARGE:
            line.tell(kind, data)
            return None
        line.leave(kind)
        return np.frombuffer(data, np.uint8)
    finally:
        _running.pop(key, None)
        line.close()


def _future(name: str) -> ProcessFuture:
    """Of what runs on this thread, and can be cancelled by others."""
    future = ProcessFuture(lambda future: None, name)
    future.set_running_or_notify_cancel()
    return future


def _watch(worker: Any) -> None:
    """From now on this worker stops what is cancelled, or whose server is gone: Dask lets it run to its end."""
    from distributed import WorkerPlugin
    from distributed.utils import sync

    class Stopping(WorkerPlugin):
        def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
            if start in RUNNING and finish == "released" and (future := _running.get(key)) is not None:
                future.cancel()

        def teardown(self, worker: Any) -> None:
            for future in list(_running.values()):
                future.stop(0)

    with _watching, suppress(TimeoutError):
        if PLUGIN not in worker.plugins:
            sync(worker.loop, worker.plugin_add, plugin=Stopping(), name=PLUGIN)
