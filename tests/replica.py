"""What the processes of ``test_store_faults.py`` run, and what they write down of it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import panel_schedule as ps
from panel_schedule.clock import SystemClock
from panel_schedule.coordination.tasks import TASK, Claim
from panel_schedule.errors import RunFenced, StoreError
from panel_schedule.functions.run import RunRecord
from panel_schedule.jobs import follower
from panel_schedule.stores import server_blobs, server_records
from panel_schedule.stores.records import Request, Result
from panel_schedule.stores.tasks import Tasks

# Of each of the tasks that run all the time.
PERIOD = "250ms"

# Bytes of a value that no store keeps beside its record.
LARGE = 200_000

# And of one that a server may be told to refuse.
HUGE = 3_000_000

# Where its jobs run.
PLACES = ("thread", "process")

# How often, and soon.
RETRY = ps.Retry(max_attempts=3, backoff=0.1)

# How often it tries to open its store, as whoever starts servers again does.
OPENINGS = 5

# Seconds between two looks of a reader.
BETWEEN = 0.002


def note(folder: Path, what: str, **facts: Any) -> None:
    """One write at the end of a file is whole, and outlives its process."""
    line = {"what": what, "pid": os.getpid(), "at": time.monotonic(), **facts}
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(journal, json.dumps(line).encode() + b"\n")
    os.close(journal)


def await_go(folder: Path, name: str) -> None:
    """Until the test says so."""
    while not (folder / f"go {name}").exists():
        time.sleep(0.005)


def work(folder: Path) -> str:
    """A job, in a thread or a worker process."""
    run = ps.current_run()
    assert run is not None
    note(folder, "began", job=run.task, run=run.id, attempt=run.attempt)
    await_go(folder, f"job {run.attempt}")
    return "done"


class Replica:
    """
    One process with tasks of each kind, on a store that it shares.

    Parameters
    ----------
    folder : Path
        The test's: with the journal of all its processes.
    store : str
        The module in `panel_schedule.stores`.
    lease, patience : float
        Seconds, in place of those of the stores.
    skew : float
        Seconds by which its clock is fast.
    busy : bool
        Whether it has the tasks that run all the time.
    """

    def __init__(
        self, folder: Path, store: str, lease: float, patience: float = 0.5, skew: float = 0.0, busy: bool = True
    ):
        module: Any = import_module(f"panel_schedule.stores.{store}")
        server_records.LEASE, server_records.LOOK, follower.PAUSE = lease, lease / 5, lease / 2
        module.PATIENCE = patience
        server_blobs.PIECE = 2 * 1024**2  # more than any server must take
        self.folder = folder
        if skew:
            SystemClock.now = lambda self: datetime.now(UTC) + timedelta(seconds=skew)  # type: ignore[method-assign]
        self.slowest_read, self.slowest_turn, self.slowest_timer = 0.0, 0.0, 0.0
        self._log_what_is_stored()
        if busy:
            first = ps.schedule(period=PERIOD, name="plain", first_run="background")(partial(self.compute, 100))
            ps.schedule(period=PERIOD, name="large", first_run="background")(partial(self.compute, LARGE))
            ps.schedule(period=PERIOD, name="async", first_run="background")(self.compute_on_loop)
            ps.schedule(period=PERIOD, name="parts", first_run="background")(self.compute_in_parts)
            ps.schedule(after=first, name="after", first_run="background")(partial(self.compute, 100))
        for name, function in (
            ("long", self.compute_long), ("long parts", self.compute_long_parts), ("huge", partial(self.compute, HUGE)),
        ):  # fmt: skip
            ps.schedule(period="1h", name=name, first_run="skip")(function)
        jobs = [
            ps.background(name=f"in a {where}", durable=True, retry=RETRY, executor=where)(work) for where in PLACES
        ]
        self.jobs = dict(zip(PLACES, jobs, strict=True))
        self.jobs["huge"] = ps.background(name="huge job", executor="thread")(partial(os.urandom, HUGE))
        for _ in range(OPENINGS):  # a busy machine may not make a schema within that patience
            with suppress(StoreError):
                ps._runtime.service  # noqa: B018
        ps._runtime.service.store.values.subscribe(self._seen)
        threading.Thread(target=self._read_all_the_time, daemon=True).start()

    # ------------------------------------------------------------ functions

    def compute(self, size: int) -> dict[str, Any]:
        run = ps.current_run()
        assert run is not None
        self.note("began", task=run.task, key=str(run.key), run=run.id, attempt=run.attempt)
        data = os.urandom(size)
        return {"task": run.task, "run": run.id, "data": data, "sum": zlib.crc32(data)}

    async def compute_on_loop(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        return self.compute(100)

    def compute_in_parts(self) -> Iterator[dict[str, Any]]:
        yield self.compute(100) | {"part": 1}
        yield self.compute(100) | {"part": 2}

    def compute_long(self) -> dict[str, Any]:
        """Until the test says so."""
        value, run = self.compute(100), ps.current_run()
        assert run is not None
        await_go(self.folder, f"long {run.attempt}")
        return value

    def compute_long_parts(self) -> Iterator[dict[str, Any]]:
        yield self.compute(100)
        await_go(self.folder, "parts")
        yield self.compute(100)
        yield self.compute(100)

    # ------------------------------------------------------------ what is written down

    def note(self, what: str, **facts: Any) -> None:
        note(self.folder, what, **facts)

    def _seen(self, space: str, name: str, entry: ps.Entry | None) -> None:
        if space != TASK or entry is None:
            return
        value = entry.value
        whole = value["sum"] == zlib.crc32(value["data"]) and (name, entry.run_id) == (value["task"], value["run"])
        self.note("saw", task=name, version=entry.version, run=entry.run_id, whole=whole)

    def _log_what_is_stored(self) -> None:
        """By the process that was told so."""
        succeed = Tasks.succeed

        def succeed_here(tasks: Tasks, publish: Request, claim: Claim, run: RunRecord, version: int) -> Request:
            request = succeed(tasks, publish, claim, run, version)

            def answer(result: Result) -> Any:
                facts = {"task": claim.task, "key": str(run.key), "run": claim.run_id, "fence": claim.fence}
                try:
                    answered = request.answer(result)
                except RunFenced:
                    self.note("fenced", **facts)
                    raise
                self.note("stored", **facts)
                return answered

            return request._replace(answer=answer)

        Tasks.succeed = succeed_here  # type: ignore[method-assign]

    def _read_all_the_time(self) -> None:
        """What pages do: a value that was there is there, and none is older than one before."""
        versions: dict[str, int] = {}
        while True:
            time.sleep(BETWEEN)
            for name, task in list(ps.tasks.items()):
                started = time.perf_counter()
                entry = task.entry
                self.slowest_read = max(self.slowest_read, time.perf_counter() - started)
                version = 0 if entry is None else entry.version
                if version < versions.get(name, 0):
                    self.note("went back", task=name, version=version, before=versions[name])
                versions[name] = version

    # ------------------------------------------------------------ what a test asks

    def refresh(self, name: str) -> str:
        """The id of its run."""
        return ps.tasks[name].refresh().id

    def pause(self, name: str) -> None:
        """One more change of its record."""
        ps.tasks[name].pause()

    def resume(self, name: str) -> None:
        ps.tasks[name].resume()

    def away(self) -> bool:
        """Whether it runs its tasks for itself."""
        return ps._runtime.service.store.away

    def state_of(self, name: str) -> str:
        """Of a task."""
        return ps.tasks[name].status.state

    def submit(self, where: str) -> str:
        return self.jobs[where].submit(self.folder).id

    def submit_huge(self) -> str:
        return self.jobs["huge"].submit().id

    def try_to_submit(self, where: str) -> str:
        """The id of its run, or nothing where it was refused as the store cannot be used."""
        try:
            return self.submit(where)
        except StoreError:
            return ""

    def run(self, where: str, id: str) -> ps.Run:
        """Of a job."""
        return next(run for run in self.jobs[where].runs() if run.id == id)

    def state(self, where: str, id: str) -> str:
        """The same; "" of one that the store does not know."""
        return next((str(run.state) for run in self.jobs[where].runs() if run.id == id), "")

    def version(self, name: str) -> int:
        entry = ps.tasks[name].entry
        return 0 if entry is None else entry.version

    # ------------------------------------------------------------ what is measured

    def measure(self) -> None:
        """Forget what was slow before; from now on turns of the loop and timers are measured, too."""
        self.slowest_read = self.slowest_turn = self.slowest_timer = 0.0
        loop, service = ps._runtime.loops.adopted, ps._runtime.service
        assert loop is not None

        def turn(due: float) -> None:
            self.slowest_turn = max(self.slowest_turn, time.perf_counter() - due)
            loop.call_later(0.01, turn, time.perf_counter() + 0.01)

        def rings(due: float) -> None:
            self.slowest_timer = max(self.slowest_timer, time.perf_counter() - due)
            service.timers.after(0.01, rings, time.perf_counter() + 0.01)

        loop.call_soon_threadsafe(turn, time.perf_counter())
        with service.locked:
            rings(time.perf_counter())
