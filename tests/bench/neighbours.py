"""What it costs to read a value that another process has stored: again and again, and for the first time."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
import timeit
from functools import partial
from itertools import chain
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from .caches import NAMES, STATEMENTS, Cache, places
from .child import Child
from .table import Table, middle, verdict

READS = 15
SECONDS = 0.05
FIRSTS = 15
ROWS, COLUMNS = 125_000, 10  # 10 MB of floats
OURS = ("task", "store")


def frame(number: int) -> Any:
    import numpy as np
    import pandas as pd

    values = np.random.default_rng(number).random((ROWS, COLUMNS))
    return pd.DataFrame(values, columns=[f"column {index}" for index in range(COLUMNS)])


class Writer:
    """The process that stores what the others read."""

    def __init__(self, kind: str, place: Any):
        self.value: Any = None
        self.put = partial(asyncio.to_thread, Cache(kind, place).put, "value") if kind != "task" else self._task()

    def _task(self) -> Any:
        import panel_schedule as ps

        task = ps.schedule(period="1d", first_run="skip", name="value")(lambda: self.value)
        return lambda value: task.refresh()

    async def bytes(self) -> None:
        await self._put(os.urandom(1024))

    async def frame(self, number: int) -> None:
        await self._put(frame(number))

    async def _put(self, value: Any) -> None:
        self.value = value
        await self.put(value)


class Asking:
    """Another process, which asks for the value."""

    timers: list[tuple[timeit.Timer, int]]

    def __init__(self, kind: str, place: Any):
        import pandas  # noqa: F401

        self.cache = Cache(kind, place)
        self.names, self.statement, self.timers = self.cache.names, STATEMENTS[kind], []

    async def ready(self) -> None:
        """Once the writer's bytes are there."""
        while self._value() is None:
            await asyncio.sleep(0.01)
        assert len(self._value()) == 1024

    def _value(self) -> Any:
        return eval(self.statement, self.names)

    def read(self) -> float:
        """Seconds per read, less the empty loop's."""
        if not self.timers:
            setup = "\n".join(f"{name} = names['{name}']" for name in self.names)
            for statement in (self.statement, "pass"):
                timer = timeit.Timer(statement, setup, globals={"names": self.names})
                number, seconds = timer.autorange()
                self.timers.append((timer, max(1, int(number * SECONDS / seconds))))
        read, nothing = (timer.timeit(number) / number for timer, number in self.timers)
        return read - nothing

    async def first(self, number: int) -> tuple[float, float]:
        """Seconds until the new frame is there, and those to add up all its numbers, the first time."""
        value, seconds = await self._take()
        begin = time.perf_counter()
        total = float(value.to_numpy().sum())
        summed = time.perf_counter() - begin
        assert abs(total - float(frame(number).to_numpy().sum())) < 1e-3, "it is another frame"
        return seconds, summed

    async def _take(self) -> tuple[Any, float]:
        begin = time.perf_counter()
        value = self.cache.get("value")
        return value, time.perf_counter() - begin


class Listening(Asking):
    """A server of ours, which hears of the value: from the bell until the page's code would get the new one."""

    def __init__(self, kind: str, place: Any):
        import pandas  # noqa: F401

        import panel_schedule as ps
        from panel_schedule.stores.file.wakeup import WakeUps

        wait = WakeUps.wait

        def wait_here(bells: Any, seconds: float) -> Any:
            answer = wait(bells, seconds)
            self.told = time.perf_counter()
            return answer

        WakeUps.wait = wait_here
        self.told = 0.0
        self.taken: list[tuple[Any, float]] = []
        task = ps.schedule(period="1d", first_run="skip", name="value")(lambda: None)
        self.names, self.statement, self.timers = {"task": task, "ps": ps}, STATEMENTS[kind], []
        task._host.service.store.values.subscribe(self._stored)

    def _stored(self, space: str, name: str, entry: Any) -> None:
        value = self._value()
        self.taken = [(value, time.perf_counter() - self.told)]

    def _value(self) -> Any:
        try:
            return super()._value()
        except KeyError:
            return None

    async def _take(self) -> tuple[Any, float]:
        while not self.taken or isinstance(self.taken[0][0], bytes):
            await asyncio.sleep(0.005)
        return self.taken.pop()


class Rebuilding(Asking):
    """A process that has all the numbers already, and only makes a frame around them."""

    def __init__(self, kind: str, place: Any):
        self.buffers: list[pickle.PickleBuffer] = []
        self.stream = b""

    async def prepare(self, number: int) -> None:
        self.buffers.clear()
        self.stream = pickle.dumps(frame(number), 5, buffer_callback=self.buffers.append)

    async def _take(self) -> tuple[Any, float]:
        begin = time.perf_counter()
        value = pickle.loads(self.stream, buffers=self.buffers)
        return value, time.perf_counter() - begin


def measure() -> tuple[dict[str, list[float]], dict[str, list[tuple[float, float]]]]:
    """By peer, in seconds: reads, and first reads with what comes after."""
    reads: dict[str, list[float]] = {}
    firsts: dict[str, list[tuple[float, float]]] = {}
    with TemporaryDirectory() as folder, places(folder) as where:
        pairs: dict[str, tuple[Child, Child]] = {}
        for kind, place in where.items():
            reader = Listening if kind in OURS else Asking
            url = place if kind in OURS else "memory://"
            pairs[kind] = (Child(Writer, kind, place, store=url), Child(reader, kind, place, store=url))
        floor = Child(Rebuilding, "", "")
        for writer, reader in pairs.values():
            writer.ask("bytes")
            reader.ask("ready")
        for _ in range(READS):
            for kind, (_, reader) in pairs.items():
                reads.setdefault(kind, []).append(reader.ask("read"))
        # The first round warms up: pandas, and the files.
        for number in range(FIRSTS + 1):
            for kind, (writer, reader) in pairs.items():
                writer.ask("frame", number)
                firsts.setdefault(kind, []).append(reader.ask("first", number))
            floor.ask("prepare", number)
            firsts.setdefault("floor", []).append(floor.ask("first", number))
        for child in (floor, *chain.from_iterable(pairs.values())):
            child.close()
    return reads, {kind: some[1:] for kind, some in firsts.items()}


def tables() -> list[Table]:
    reads, firsts = measure()
    times = {kind: median(some) * 1e6 for kind, some in reads.items()}
    again = Table("Reading what another process has stored", ["what", "read as", "us", "Manager, times ours"])
    first = Table(
        "The first read of a new 10 MB DataFrame of another process",
        ["what", "ms", "Manager, times ours", "then to add it up, ms"],
    )
    manager = median(seconds for seconds, _ in firsts["manager"])
    for kind, name in NAMES.items():
        if kind not in reads:
            again.add(name, f"`{STATEMENTS[kind]}`", "redis-server is not installed", "")
            first.add(name, "redis-server is not installed", "", "")
            continue
        ours = kind in OURS
        ratio = times["manager"] / times[kind]
        again.add(
            name,
            f"`{STATEMENTS[kind]}`",
            f"{times[kind]:.3f}",
            f"{ratio:.1f}",
            must="<= 0.5 us, Manager >= 100 times" if ours else "",
            met=verdict(time=times[kind] <= 0.5, ratio=ratio >= 100) if ours else "",
        )
        there, summed = zip(*firsts[kind], strict=True)
        first.add(
            name,
            middle([1e3 * each for each in there], "{:.2f}"),
            f"{manager / median(there):.1f}",
            f"{median(summed) * 1e3:.2f}",
            must="<= 0.2 ms" if ours else "",
            met=verdict(met=median(there) <= 0.0002) if ours else "",
        )
    built = [1e3 * seconds for seconds, _ in firsts["floor"]]
    first.add("`pickle.loads` around numbers that are in memory", middle(built, "{:.2f}"), "", "")
    again.text = (
        f"1 KB of bytes that another process has put there and that has not changed since, read {READS} times for "
        f"{SECONDS * 1000:.0f} ms by turns; medians, less the empty loop's. Ours is in memory: another process that "
        "stores a new value rings, and the listener takes it in. The others ask a file or a server each time."
    )
    first.text = (
        f"{ROWS:,} rows of {COLUMNS} floats, {FIRSTS} new frames by turns, each stored by another process; medians, in "
        "brackets the best and the worst. The clock runs from when a process is told of the new frame until it has "
        "it: for ours from the bell that its listener hears, for the others from the call that reads. Each has slept "
        "until then, and goes on with cold caches: the last row is what pandas takes then to make a frame around "
        "numbers that are there already. The last column is what comes after: ours maps the file, and its pages come "
        "when they are touched."
    )
    return [again, first]
