"""A process that shares a store with a test, and does what it is told over a pipe."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from multiprocessing.connection import Connection
from typing import Any

from panel_schedule.clock import SystemClock
from panel_schedule.coordination.tasks import TASK, USER, Claim
from panel_schedule.stores import server_records
from panel_schedule.stores.base import Store
from panel_schedule.stores.file import database, opened
from panel_schedule.stores.file.store import FileStore
from panel_schedule.stores.tasks import Plan
from panel_schedule.testing.contracts.tools import second
from servers import eventually
from store_address import StoreAddress

# What a test waits at most for another process that has nothing more to wait for.
PATIENCE = 20.0

# Children of a clean process that has imported everything: they start in no time, and inherit nothing of the test.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["panel_schedule.testing.contracts.tools", "store_address", "psycopg", "redis", "polars", "pyarrow", "frozen"]
)


class Peer:
    """
    ``peer("store.values.entry(USER, 'a').value")`` is evaluated there, with `store`, and comes back.

    Parameters
    ----------
    address : StoreAddress
    before : str
        Statements that are executed before the store is opened.
    options
        Of the store.
    """

    def __init__(self, address: StoreAddress, before: str = "", **options: Any):
        self._pipe, theirs = _processes.Pipe()
        self.process = _processes.Process(target=work, args=(theirs, address, before, options), daemon=True)
        self.process.start()
        theirs.close()
        self._answer()
        self._address, self._owner = address, self("store.records.me")
        self._witness: Store | None = None

    def __call__(self, source: str, **names: Any) -> Any:
        self.send(source, **names)
        return self._answer()

    def send(self, source: str, **names: Any) -> None:
        self._pipe.send((source, names))

    def _answer(self) -> Any:
        assert self._pipe.poll(PATIENCE), "the other process does not answer"
        answer, error = self._pipe.recv()
        if error is not None:
            raise error
        return answer

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """As the system does it when memory is short: no word of goodbye. Returns when others can see it."""
        self.signal(signal.SIGKILL)
        self.process.join(PATIENCE)
        if not self._address.is_directory:
            self._witness = witness = self._address.open()
            eventually(lambda: not witness.records.alive(self._owner))

    def end(self) -> None:
        if self.process.is_alive():
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            self.process.join(PATIENCE)
        if self._witness is not None:
            self._witness.close()


def work(pipe: Connection, address: StoreAddress, before: str, options: dict[str, Any]) -> None:
    # Whatever it hears is put where the test can wait for it.
    heard: queue.Queue[Any] = queue.Queue()
    names: dict[str, Any] = {**globals(), "folder": address.path, "heard": heard}
    error: BaseException | None = None
    try:
        address.hasten()
        exec(before, names)
        store = names["store"] = address.open(**options)
        store.values.subscribe(lambda space, name, entry: heard.put((name, entry and entry.version)))
        store.tasks.subscribe(heard.put)
    except Exception as exc:
        error = exc
    pipe.send((None, error))
    evaluate(pipe, names)


def evaluate(pipe: Connection, names: dict[str, Any]) -> None:
    while True:
        try:
            source, more = pipe.recv()
        except EOFError:
            os._exit(0)
        names.update(more)
        try:
            try:
                code = compile(source, "told", "eval")
            except SyntaxError:
                code = compile(source, "told", "exec")
            answer, error = eval(code, names), None
        except Exception as exc:
            answer, error = None, exc
        pipe.send((answer, error))


# What a test uses there.
__all__ = ["TASK", "USER", "Claim", "FileStore", "Peer", "Plan", "SystemClock", "database", "opened", "second"]
__all__ += ["server_records"]
