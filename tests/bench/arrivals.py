"""How long a value takes from one process to a session of another one."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

from visitors import visitors

from .child import Child
from .table import Table, verdict

VALUES = 300
PAUSE = 0.02
POLLING = 3.0
PAD = "x" * 1000


def stamp() -> tuple[float, str]:
    """1 KB that says when it was made: the clock is the same in all processes."""
    return time.monotonic(), PAD


class Author:
    """The process where the values are made."""

    def __init__(self, folder: str):
        import diskcache

        import panel_schedule as ps

        self.ps = ps
        self.task = ps.schedule(period="1d", first_run="skip", name="note")(stamp)
        self.disk = diskcache.Cache(folder)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.address = f"{folder}.sock"

    async def bare(self) -> None:
        for _ in range(VALUES):
            await asyncio.to_thread(self._send)
            await asyncio.sleep(PAUSE * random.random() * 2)

    def _send(self) -> None:
        self.socket.sendto(json.dumps(stamp()).encode(), self.address)

    async def tasks(self) -> None:
        for _ in range(VALUES):
            await self.task.refresh()
            await asyncio.sleep(PAUSE * random.random() * 2)

    async def names(self) -> None:
        for _ in range(VALUES):
            self.ps.store["note"] = stamp()
            await asyncio.sleep(PAUSE * random.random() * 2)

    async def polls(self) -> None:
        async def one(number: int) -> None:
            await asyncio.sleep(POLLING * random.random())
            self.disk[number] = stamp()

        await asyncio.gather(*map(one, range(VALUES)))


class Reader:
    """A server process with one page, whose session notes when a value has reached it."""

    def __init__(self, folder: str):
        import diskcache
        import panel as pn

        import panel_schedule as ps

        self.pn, self.ps = pn, ps
        self.task = ps.schedule(period="1d", first_run="skip", name="note")(stamp)
        self.disk = diskcache.Cache(folder)
        self.known: set[int] = set()
        self.loop = asyncio.get_running_loop()
        self.late: list[float] = []
        self.polling = False
        self.server: Any = None
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"{folder}.sock")
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        while True:
            value = json.loads(self.socket.recv(1 << 16))
            self.loop.call_soon_threadsafe(lambda value=value: self.late.append(time.monotonic() - value[0]))

    def serve(self) -> int:
        self.server = self.pn.io.server.get_server(
            {"/page": self.page}, port=0, address="127.0.0.1", start=True, show=False
        )
        return self.server.port

    def page(self) -> Any:
        self.document = self.pn.state.curdoc
        self.live = [self.task.rx(), self.ps.store.rx("note")]
        for value in self.live:
            value.rx.watch(self.arrived)
        self.pn.state.add_periodic_callback(self.poll, period=1000)
        return self.pn.pane.Markdown("A page.")

    def arrived(self, value: Any) -> None:
        self.late.append(time.monotonic() - value[0])
        assert asyncio.get_running_loop() is self.loop
        assert self.pn.state.curdoc is self.document

    def poll(self) -> None:
        for number in self.disk.iterkeys() if self.polling else ():
            if number not in self.known:
                self.known.add(number)
                self.arrived(self.disk[number])

    async def take(self, polling: bool) -> list[float]:
        """The latencies since the last time, once it is quiet."""
        self.polling = polling
        await asyncio.sleep(1.5 if polling else 0.2)
        late, self.late = self.late, []
        return late


def measure() -> dict[str, list[float]]:
    return asyncio.run(_measure())


async def _measure() -> dict[str, list[float]]:
    found = {}
    with TemporaryDirectory() as folder:
        author, reader = (Child(kind, f"{folder}/disk", store=f"file://{folder}/store") for kind in (Author, Reader))
        port = await asyncio.to_thread(reader.ask, "serve")
        async with visitors(f"http://127.0.0.1:{port}/page", 1):
            for what in ("tasks", "names", "bare", "polls"):
                reader.ask("take", what == "polls")
                await asyncio.to_thread(author.ask, what)
                found[what] = await asyncio.to_thread(reader.ask, "take", what == "polls")
        for child in (author, reader):
            child.close()
    return found


def tables() -> list[Table]:
    table = Table("From one process to a session of another", ["what", "page", "p50, ms", "p99, ms"])
    rows = {
        "tasks": ("panel-schedule, a task's value", "`task.rx()`"),
        "names": ('panel-schedule, `ps.store["note"] = ...`', '`ps.store.rx("note")`'),
        "bare": ("a datagram to a thread, which wakes the loop", "none"),
        "polls": ("polling diskcache each second", "`pn.state.add_periodic_callback(poll, 1000)`"),
    }
    for what, late in measure().items():
        ours = what in ("tasks", "names")
        assert len(late) > 0.9 * VALUES, f"{len(late)} of {VALUES} values arrived: {what}"
        percentiles = [1e3 * each for each in quantiles(late, n=100)]
        table.add(
            *rows[what],
            f"{percentiles[49]:.2f}",
            f"{percentiles[98]:.2f}",
            must="p99 <= 5 ms" if ours else "",
            met=verdict(met=percentiles[98] <= 5) if ours else "",
        )
    table.text = (
        f"{VALUES} values of 1 KB, some {PAUSE * 1000:.0f} ms after each other, each of which says when it was made: "
        "from the last line of the function (or the line that stores) in one process to a watcher of the reactive "
        "expression in another, on the event loop of its server and in the document of an open session. The row "
        "without a page does nothing but wake that loop: what it has at p99 is the machine's."
    )
    return [table]
