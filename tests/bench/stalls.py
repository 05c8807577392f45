"""How long a big server's event loop stands still when a background job is submitted."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from .dashes import NAMES as DASHES
from .fresh import fresh
from .table import Table, verdict

GIGABYTE = 1 << 30
TICK = 0.0002
ROUNDS = 3
SUBMITS = 10
WITHIN = 0.05
LIMIT = 2.0

ROWS = {
    "cold": ("panel-schedule", "starts a worker process"),
    "warm": ("panel-schedule", "a worker waits for it"),
    "disk": (DASHES["disk"], "forks"),
    "quiet": ("nothing", ""),
}


class Beat:
    """A loop's pulse, and its longest pause."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def beat(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK)
            now = time.perf_counter()
            self.longest, last = max(self.longest, now - last - TICK), now

    async def around(self, submit: Callable[[], Awaitable[object]]) -> float:
        """Milliseconds of the longest pause from here on, until long after."""
        await asyncio.sleep(0.01)
        self.longest = 0.0
        await submit()
        await asyncio.sleep(WITHIN)
        return self.longest * 1e3


async def nothing() -> None:
    pass


async def ours(beat: Beat) -> dict[str, list[float]]:
    import panel_schedule as ps

    ps.config.max_processes = SUBMITS
    await ps.background(executor="thread", name="before")(nowhere).submit()
    jobs = ps.background(executor="process", name="job")(nap)
    runs: list[Any] = []

    async def cold() -> None:
        # All others are at work, so it needs a worker of its own.
        runs.append(jobs.submit(SUBMITS * WITHIN * 3))

    async def warm() -> None:
        runs.append(jobs.submit(0))

    found = {"cold": [await beat.around(cold) for _ in range(SUBMITS)]}
    await asyncio.gather(*runs)
    found["warm"] = [await beat.around(warm) for _ in range(SUBMITS)]
    found["quiet"] = [await beat.around(nothing) for _ in range(SUBMITS)]
    await asyncio.gather(*runs)
    return found


async def dash(beat: Beat) -> dict[str, list[float]]:
    with TemporaryDirectory() as folder:
        from .dashes import Managed

        managed = Managed(folder)

        async def submit() -> None:
            # As a request, which is a thread.
            managed.jobs.append(await asyncio.to_thread(managed.submit))

        await submit()
        found = {"disk": [await beat.around(submit) for _ in range(SUBMITS)]}
        managed.clear()
        return found


def nowhere() -> None:
    pass


def nap(seconds: float) -> None:
    time.sleep(seconds)


def measure(kind: str) -> dict[str, list[float]]:
    """Milliseconds by row, in a process that holds a gigabyte."""
    ballast = bytearray(GIGABYTE)
    ballast[::4096] = b"x" * len(ballast[::4096])  # so that it is there

    async def main() -> dict[str, list[float]]:
        beat = Beat()
        beating = asyncio.create_task(beat.beat())
        try:
            return await {"ours": ours, "dash": dash}[kind](beat)
        finally:
            beating.cancel()

    # Not epoll, which rounds a tick up to a millisecond.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(main())


def tables() -> list[Table]:
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for kind in ("ours", "dash"):
            for name, stalls in fresh(measure, kind).items():
                found.setdefault(name, []).extend(stalls)
    table = Table("A submit from a server of 1 GB", ["what", "the job", "longest stall, ms", "times ours, cold"])
    for name, row in ROWS.items():
        mine = name in ("cold", "warm")
        middle = median(found[name])
        table.add(
            *row,
            f"{middle:.2f} (at most {max(found[name]):.2f})",
            f"{middle / median(found['cold']):.1f}",
            must=f"< {LIMIT:g} ms" if mine else "",
            met=verdict(median=middle < LIMIT, worst=max(found[name]) < LIMIT) if mine else "",
        )
    table.text = (
        "A process that holds 1 GB, with a coroutine on its event loop that sleeps "
        f"{TICK * 1000:g} ms at a time: by how much it comes late at most, within {WITHIN * 1000:.0f} ms of a submit. "
        f"{ROUNDS} rounds of {SUBMITS} submits in fresh processes by turns; medians, and the worst of all. "
        "DiskcacheManager's `call_job_fn` runs in a thread, as a request of Dash does: what it forks is the whole "
        "server, whose page tables are copied while all its threads stand still. The last row submits nothing: the "
        "machine's own part."
    )
    return [table]
