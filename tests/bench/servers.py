"""Replicas that share a Redis or PostgreSQL server: what reading costs, how soon a value comes, how much one does."""

from __future__ import annotations

import asyncio
import pickle
import random
import time
import timeit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import postgres_server
import redis_server

from .child import Child
from .table import Table, middle, verdict

READS = 9
SECONDS = 0.05
VALUES = 300
PAUSE = 0.02
PAD = b"x" * 1000
TASKS = 3000
WARM_UP, COUNTED = 3.0, 6.0
ROUNDS = 3

# What is read, and what a page's author writes.
SHAPES = {"1 KB of bytes": "small", "10 MB of numbers (numpy)": "array", "a frame of 10 MB": "frame"}


class Replica:
    """One with three tasks, which it may run, or be told of."""

    def __init__(self, plain: str):
        import numpy
        import pandas

        import panel_schedule as ps

        self.ps, self.late = ps, list[float]()
        self.plain: Any = None
        if plain:
            import redis

            self.plain = redis.Redis.from_url(plain)
        numbers = numpy.random.default_rng(1).random((125_000, 10))
        made = {
            "small": lambda: (time.monotonic(), PAD), "array": lambda: numbers,
            "frame": lambda: pandas.DataFrame(numbers, columns=list("abcdefghij")),
        }  # fmt: skip
        self.tasks = {
            name: ps.schedule(period="1d", first_run="skip", name=name)(function) for name, function in made.items()
        }
        ps._runtime.start(asyncio.get_running_loop())
        ps._runtime.service.store.values.subscribe(self._came)

    def _came(self, space: str, name: str, entry: Any) -> None:
        if entry is not None and name == "small":
            self.late.append(time.monotonic() - entry.value[0])

    async def store(self) -> None:
        """All three, in both ways."""
        for name, task in self.tasks.items():
            value = await task.refresh()
            if self.plain is not None:
                self.plain.set(name, pickle.dumps(value, 5))

    async def ready(self) -> None:
        for task in self.tasks.values():
            await task.ready()

    async def read(self, name: str) -> tuple[float, float]:
        """Microseconds of ours, less the empty loop's, and of theirs."""
        ours, nothing = (timeit.Timer(each, "t = names['t']", globals={"names": {"t": self.tasks[name]}})
                         for each in ("t()", "pass"))  # fmt: skip
        number = int(SECONDS * ours.autorange()[0] / ours.autorange()[1]) or 1
        spent = (ours.timeit(number) - nothing.timeit(number)) / number
        begin = time.perf_counter()
        for _ in range(times := 3 if name != "small" else 100):
            pickle.loads(self.plain.get(name))
        return spent * 1e6, (time.perf_counter() - begin) / times * 1e6

    async def publish(self) -> None:
        for _ in range(VALUES):
            await self.tasks["small"].refresh()
            await asyncio.sleep(PAUSE * random.random() * 2)

    async def arrived(self) -> list[float]:
        """Seconds from when each value was made, of those since the last question."""
        await asyncio.sleep(0.5)
        late, self.late = self.late, []
        return late


class Busy:
    """One process, with more tasks than it can run."""

    def __init__(self, namespace: str):
        import panel_schedule as ps
        from panel_schedule.triggers import Every

        self.runs, ps.config.namespace = 0, namespace
        ps._runtime.start(asyncio.get_running_loop())
        for number in range(TASKS):
            ps.schedule(Every("1s"), name=f"task {number}", first_run="skip")(self._tick)

    async def _tick(self) -> None:
        self.runs += 1

    async def measure(self) -> tuple[float, float]:
        """Runs a second, and ms of CPU of this process for each."""
        await asyncio.sleep(WARM_UP)
        self.runs, began, cpu = 0, time.perf_counter(), time.process_time()
        await asyncio.sleep(COUNTED)
        return self.runs / (time.perf_counter() - began), (time.process_time() - cpu) / self.runs * 1e3


@contextmanager
def places() -> Iterator[dict[str, str]]:
    """The URLs of a store in a directory, and of those servers that are installed."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        found = {"a directory": f"file://{folder}/store"}
        if redis_server.PROGRAM:
            Path(folder, "redis").mkdir()
            redis = redis_server.RedisServer(Path(folder, "redis"))
            stack.callback(redis.stop)
            found["Redis"] = redis.url
        if postgres_server.POSTGRES:
            postgres = postgres_server.PostgresServer()
            stack.callback(postgres.stop)
            found["PostgreSQL"] = postgres.url
        yield found


def reading(url: str) -> Table:
    table = Table("Reading a value in a replica", ["what", "`task()`, us", "`redis.get` and `pickle.loads`, us"])
    writer, reader = (Child(Replica, url, store=url) for _ in range(2))
    writer.ask("store")
    reader.ask("ready")
    for what, name in SHAPES.items():
        ours, theirs = zip(*(reader.ask("read", name) for _ in range(READS)), strict=True)
        bound = name != "frame"
        table.add(
            what, middle(ours, "{:.3f}"), middle(theirs, "{:.0f}"), must="<= 0.5 us" if bound else "",
            met=verdict(met=median(ours) <= 0.5) if bound else "",
        )  # fmt: skip
    table.text = (
        f"Values that another process has computed, on a Redis server on loopback; {READS} rounds of "
        f"{SECONDS * 1000:.0f} ms, medians. Ours is in the memory of each replica, and comes by itself; of a frame "
        "each reader gets a copy of his own (copy-on-write), which is what its row shows."
    )
    for child in (writer, reader):
        child.close()
    return table


def arriving(where: dict[str, str]) -> Table:
    table = Table("A new value of 1 KB in another replica", ["by", "p50, ms", "p99, ms"])
    for what, url in where.items():
        writer, reader = (Child(Replica, "", store=url) for _ in range(2))
        writer.ask("store")
        reader.ask("ready")
        reader.ask("arrived")
        writer.ask("publish")
        cuts = quantiles((1e3 * each for each in reader.ask("arrived")), n=100)
        for child in (writer, reader):
            child.close()
        table.add(what, f"{cuts[49]:.2f}", f"{cuts[98]:.2f}", must="p99 <= 10 ms", met=verdict(met=cuts[98] <= 10))
    table.add("polling each second", "500", "990")
    table.text = (
        f"{VALUES} runs, each {1e3 * PAUSE:.0f} ms after the other on average: from when the function of the task has "
        "made its value in one process until the watchers of the value are called in another one. The last row is "
        "arithmetic."
    )
    return table


def running(where: dict[str, str]) -> Table:
    table = Table("Runs a second of one process, by its store", ["store", "runs a second", "CPU a run, ms"])
    found: dict[str, list[tuple[float, float]]] = {what: [] for what in where}
    for number in range(ROUNDS):
        for what, url in where.items():
            separate = f"{url}{number}" if url.startswith("file") else url
            child = Child(Busy, f"round{number}", store=separate)
            found[what].append(child.ask("measure"))
            child.close()
    rates = {what: median(rate for rate, _ in some) for what, some in found.items()}
    for what, some in found.items():
        rate, cpu = zip(*some, strict=True)
        must = ">= half of the directory's" if what == "Redis" else ""
        met = verdict(met=rates[what] >= rates["a directory"] / 2) if must else ""
        table.add(what, middle(rate, "{:.0f}"), middle(cpu), must=must, met=met)
    table.text = (
        f"{TASKS:,} empty `async` tasks, all due at each full second, which is more than the process can run; "
        f"{COUNTED:.0f} s of it, medians of {ROUNDS} rounds by turns. CPU is that of the process, without its server's."
    )
    return table


def tables() -> Iterator[Table]:
    with places() as where:
        if "Redis" in where:
            yield reading(where["Redis"])
        yield arriving(where)
        yield running(where)
