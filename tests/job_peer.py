"""A process with background functions on a store that it shares with others, which does what a test tells it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import panel_schedule as ps
from panel_schedule.coordination.jobs import SPACE
from panel_schedule.coordination.record import Record
from panel_schedule.stores.file.records import FileRecords
from panel_schedule.stores.queue import Queue
from panel_schedule.stores.server_records import ServerRecords
from store_address import StoreAddress
from store_peer import PATIENCE, _processes, evaluate

# Jobs that say when they begin, and go on when the test lets them.
JOBS = """
import asyncio, os, signal, threading, time
import panel_schedule as ps

def note(*words):
    file = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, (" ".join(map(str, words)) + chr(10)).encode())
    os.close(file)

def await_go(name):
    while not (folder / f"go {name}").exists():
        time.sleep(0.005)

def body(name):
    run = ps.current_run()
    note("began", name, run.attempt)
    ps.progress(1, 2, "half")
    yield f"{name} {run.attempt}"
    await_go(name)
    return f"{name} done"

durable = ps.background(name="durable", durable=True, retry=1)(body)
threaded = ps.background(name="threaded", durable=True, retry=1, executor="thread")(body)
fleeting = ps.background(name="fleeting", executor="thread")(body)
shared = ps.background(name="shared", ttl="1h", executor="thread")(body)

@ps.background(durable=True, executor="loop")
async def looped(name):
    note("began", name, ps.current_run().attempt)
    while not (folder / f"go {name}").exists():
        await asyncio.sleep(0.005)
    return f"{name} done"

@ps.background(durable=True, retry=1)
def stubborn(name):
    note("began", name, ps.current_run().attempt)
    try:
        await_go(name)
    except BaseException as error:
        raise OSError("it makes an error of its end")
    return f"{name} done"

@ps.background(durable=True, retry=1, executor="thread")
def poison():
    note("poison", ps.current_run().attempt)
    os.kill(os.getpid(), signal.SIGKILL)

@ps.background(durable=True, retry=1)
def poisoned_worker():
    note("poisoned", ps.current_run().attempt)
    os.kill(os.getpid(), signal.SIGKILL)

@ps.background(durable=True, executor="thread")
def quick(number):
    explode("in the function")
    return bytes([number % 256]) * 100_000
"""


class Host:
    """
    ``host("durable.submit('a').id")`` is evaluated there, with all of `JOBS`.

    Parameters
    ----------
    folder : Path
        The journal and the log are in it, and the store, if that has no address of its own.
    source : str
        More statements, executed before it serves.
    serves : bool
        Whether it is a server, with clocks, or only a script.
    jobs : str
    address : StoreAddress, optional
    options
        Of ``ps.config``.
    """

    def __init__(
        self,
        folder: Path,
        source: str = "",
        *,
        serves: bool = True,
        jobs: str = JOBS,
        address: StoreAddress | None = None,
        **options: Any,
    ):
        self._pipe, theirs = _processes.Pipe()
        address = address or StoreAddress(f"file://{folder / 'store'}")
        args = (theirs, folder, jobs + source, serves, address, options)
        self.process = _processes.Process(target=work, args=args)
        self.process.start()
        theirs.close()
        self.ask()

    def __call__(self, source: str, **names: Any) -> Any:
        self.send(source, **names)
        return self.ask()

    def send(self, source: str, **names: Any) -> None:
        self._pipe.send((source, names))

    def ask(self) -> Any:
        assert self._pipe.poll(PATIENCE), "the other process does not answer"
        answer, error = self._pipe.recv()
        if error is not None:
            raise error
        return answer

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.join(PATIENCE)

    def stop(self) -> int | None:
        self.signal(signal.SIGTERM)
        self.process.join(PATIENCE)
        return self.process.exitcode

    @property
    def alive(self) -> bool:
        return self.process.is_alive()


def work(
    pipe: Connection, folder: Path, source: str, serves: bool, address: StoreAddress, options: dict[str, Any]
) -> None:
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def explode(point: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(folder / f"bomb {point}")
            os.kill(os.getpid(), signal.SIGKILL)

    arm(explode)
    names: dict[str, Any] = {"folder": folder, "explode": explode, "__name__": "jobs"}
    error: BaseException | None = None
    try:
        address.hasten()
        ps.config.store, ps.config.namespace = address.url, address.namespace
        ps.config.max_processes = 2
        for option, value in options.items():
            setattr(ps.config, option, value)
        exec(source, names)
        ps._runtime.service.start()
    except Exception as exc:
        error = exc
    answering = threading.Thread(target=answer, args=(pipe, names, error, serves), daemon=True)
    answering.start()
    with suppress(KeyboardInterrupt):
        if serves:
            ps.run_forever()
        else:
            answering.join()
    ps._runtime.close()
    sys.stderr.flush()
    os._exit(0)


def answer(pipe: Connection, names: dict[str, Any], error: BaseException | None, serves: bool) -> None:
    # A server that is told to stop before it listens for that would just die.
    while serves and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        time.sleep(0.001)
    with suppress(OSError):
        pipe.send((None, error))
        evaluate(pipe, names)


def arm(explode: Callable[[str], None]) -> None:
    """Wrap what passes the points at which it may die."""
    enqueue, end, set, send = Queue.enqueue, Queue.end, FileRecords._set, ServerRecords._send

    def ends(record: Record | None) -> bool:
        return record is not None and record.space == SPACE and record.owner is None

    def enqueue_here(*args: Any, **options: Any) -> Any:
        explode("before the enqueue")
        row = enqueue(*args, **options)
        explode("after the enqueue")
        return row

    def set_here(self: FileRecords, tx: Any, old: Record | None, record: Record) -> None:
        set(self, tx, old, record)
        if ends(record):
            explode("in the end")

    def send_here(self: ServerRecords, step: Any) -> Any:
        if any(ends(result.record) for result in step.results):
            explode("in the end")
        return send(self, step)

    def end_here(*args: Any, **options: Any) -> Any:
        returned = end(*args, **options)
        explode("after the end")
        return returned

    Queue.enqueue, Queue.end = enqueue_here, end_here  # type: ignore[method-assign]
    FileRecords._set, ServerRecords._send = set_here, send_here  # type: ignore[method-assign]
