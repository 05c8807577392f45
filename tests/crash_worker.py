"""
Worker processes that die on demand, for ``test_crashes.py``, which alone starts this script.

It imports everything once and forks a worker for each line of JSON on its standard input, whose
pid it answers. A worker looks for a bomb, a file of the store's directory, at each of the points
in `arm`; the one that can remove it kills itself there. When the input ends all workers do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import panel_schedule as ps
from panel_schedule.coordination import tasks
from panel_schedule.coordination.tasks import Claim
from panel_schedule.serialize.codec import Encoded
from panel_schedule.stores.file import blobs as shelf_module
from panel_schedule.stores.file.database import Database
from panel_schedule.stores.file.store import FileStore
from panel_schedule.stores.records import Request

EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
LARGE, SMALL = 100_000, 1_000


class Worker:
    """
    One process on a store.

    Parameters
    ----------
    folder : Path
        The test's; the store is in it, and so are bombs, journal and log.
    tasks : int
        How many there are; every other value gets a file of its own.
    period : str
        Of each task.
    reads : bool
        Whether it only reads.
    """

    def __init__(self, folder: Path, tasks: int, period: str, reads: bool):
        self.folder, self.reads = folder, reads
        # Until the clocks run, to read a task is to look in the store, which tells of what it finds: `seen` in `seen`.
        self.lock, self.versions = threading.RLock(), dict[str, int]()
        self.journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        ps.config.store = f"file://{folder / 'store'}"
        ps.config.history_limit = 1_000_000
        for number in range(tasks):
            size = SMALL if number % 2 else LARGE
            ps.schedule(period=period, name=f"task{number}", first_run="background")(partial(self.compute, size))

    def run(self) -> None:
        store = ps._runtime.service.store
        store.values.subscribe(self.seen)
        if self.reads:
            ps._runtime.service.start()
            threading.Event().wait()
        ps.run_forever()

    def compute(self, size: int) -> dict[str, Any]:
        run = ps.current_run()
        assert run is not None
        self.note("began", task=run.task, key=stored(run.key), run=run.id, attempt=run.attempt)
        self.explode("in the function", run.task, run.key, run.attempt)
        data = np.frombuffer(os.urandom(size), dtype=np.uint8)
        return {"task": run.task, "run": run.id, "data": data, "sum": zlib.crc32(data)}

    def seen(self, space: str, name: str, _: ps.Entry | None) -> None:
        """What a reader of the task has now; threads may tell of it in any order."""
        with self.lock:
            entry = ps.tasks[name].entry
            if entry is None or entry.version == self.versions.get(name):
                return
            self.versions[name], value = entry.version, entry.value
            whole = value["sum"] == zlib.crc32(value["data"]) and (name, entry.run_id) == (value["task"], value["run"])
            self.note("saw", task=name, version=entry.version, run=entry.run_id, whole=whole)

    def note(self, what: str, **facts: Any) -> None:
        """One write at the end of a file is whole, and outlives this process."""
        line = {"what": what, "pid": os.getpid(), "at": time.time(), **facts}
        os.write(self.journal, json.dumps(line).encode() + b"\n")

    def explode(self, point: str, task: str, key: Any, attempt: int) -> None:
        with suppress(FileNotFoundError):
            os.unlink(bomb(self.folder, point, attempt))
            self.note("died", point=point, task=task, key=stored(key), attempt=attempt)
            os.kill(os.getpid(), signal.SIGKILL)

    def arm(self) -> None:
        """Wrap what passes the points."""
        do_together, do = FileStore.do_together, FileStore.do
        write_file, write_encoded, write = shelf_module.write_file, Encoded.write, Database.write
        here = threading.local()

        def explode(point: str, held: Claim) -> None:
            self.explode(point, held.task, held.key, held.attempt)

        @contextmanager
        def making(requests: Sequence[Request]) -> Iterator[Callable[[Any], None]]:
            calls = [request.change.apply for request in requests if isinstance(request.change.apply, partial)]
            for call in calls:
                if call.func is tasks.claim:
                    self.explode("before the claim", call.keywords["task"], call.keywords["key"], 1)
            storing = (tasks.publish, tasks.succeed)
            here.claim = next((call.keywords["claim"] for call in calls if call.func in storing), None)
            try:
                yield lambda held: explode("after the claim", held) if isinstance(held, Claim) else None
            finally:
                here.claim = None

        def do_together_here(store: FileStore, requests: Sequence[Request]) -> Any:
            with making(requests) as made:
                answers = do_together(store, requests)
                for answer, _ in answers:
                    made(answer)
            return answers

        def do_here(store: FileStore, request: Request) -> Any:
            with making([request]) as made:
                answer = do(store, request)
                made(answer)
            return answer

        def write_file_here(path: Path, encoded: Encoded, *, sync: bool) -> None:
            write_file(path, encoded, sync=sync)
            explode("between the file and the commit", here.claim)

        def write_encoded_here(encoded: Encoded, fd: int) -> None:
            if bomb(self.folder, "in the file", here.claim.attempt).exists():
                os.write(fd, encoded.tobytes()[: encoded.size // 2])
                explode("in the file", here.claim)
                os.ftruncate(fd, 0)  # another process had the bomb
                os.lseek(fd, 0, os.SEEK_SET)
            write_encoded(encoded, fd)

        @contextmanager
        def write_here(database: Database, durable: bool = False) -> Iterator[Any]:
            with write(database, durable) as transaction:
                yield transaction
            if getattr(here, "claim", None) is not None:
                explode("after the commit", here.claim)

        FileStore.do_together, FileStore.do = do_together_here, do_here
        shelf_module.write_file, Encoded.write, Database.write = write_file_here, write_encoded_here, write_here


def stored(key: datetime | str) -> str:
    """A run's key as the database has it."""
    return f"@{(key - EPOCH) // MICROSECOND}" if isinstance(key, datetime) else key


def bomb(folder: Path, point: str, attempt: int) -> Path:
    return folder / f"bomb {point} {attempt}"


def work(order: dict[str, Any]) -> None:
    for number, action in ((signal.SIGCHLD, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, action)
    log = os.open(Path(order["folder"]) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, instead in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(instead, descriptor)
    worker = Worker(Path(order["folder"]), order["tasks"], order["period"], order["reads"])
    worker.arm()
    with suppress(KeyboardInterrupt):
        worker.run()


def bury(*_: object) -> None:
    """Who is dead is gone, and no zombie; that it was none of ours that killed it is told."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[1] not in (0, signal.SIGKILL):
                print(f"worker {found[0]} ended with status {found[1]}", file=sys.stderr, flush=True)


def main() -> None:
    signal.signal(signal.SIGCHLD, bury)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    workers = []
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                work(json.loads(line))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        workers.append(pid)
        print(pid, flush=True)
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
