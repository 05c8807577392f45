"""10,000 tasks that are due each second: how many runs there are, and how long the loop is held up."""

from __future__ import annotations

import asyncio
import gc
import time
from importlib import import_module
from statistics import median

from .fresh import fresh
from .table import Table, middle, verdict
from .ticks import SCHEDULERS

TASKS = 10_000
WARM_UP = 4.0
SECONDS = 8.0
ROUNDS = 3
GAP = 50.0


def measure(peer: str) -> dict[str, float]:
    """Runs per second, the worst gap of the loop and the longest garbage collection in ms, CPU per run in us."""
    return asyncio.run(_measure(import_module(f"{__package__}.peers.{peer}")))


async def _measure(peer) -> dict[str, float]:
    runs, worst, longest, collecting = 0, 0.0, 0.0, 0.0

    def collected(phase: str, info: dict[str, int]) -> None:
        nonlocal longest, collecting
        if phase == "start":
            collecting = time.perf_counter()
        else:
            longest = max(longest, time.perf_counter() - collecting)

    def make():
        async def tick() -> None:
            nonlocal runs
            runs += 1

        return tick

    async def beat() -> None:
        nonlocal worst
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            worst, last = max(worst, now - last), now

    peer.start(asyncio.get_running_loop())
    for number in range(TASKS):
        peer.every_second(f"task {number}", make(), 0.0)
    beating = asyncio.create_task(beat())
    gc.callbacks.append(collected)
    await asyncio.sleep(WARM_UP)
    runs, worst, longest, began, cpu = 0, 0.0, 0.0, time.perf_counter(), time.process_time()
    await asyncio.sleep(SECONDS)
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu
    beating.cancel()
    gc.callbacks.remove(collected)
    return {"rate": runs / spent, "gap": worst * 1e3, "gc": longest * 1e3, "cpu": cpu / max(runs, 1) * 1e6}


def tables() -> list[Table]:
    rounds = [{peer: fresh(measure, peer) for peer in SCHEDULERS} for _ in range(ROUNDS)]

    def all_of(peer: str, figure: str) -> list[float]:
        return [measured[peer][figure] for measured in rounds]

    columns = ["scheduler", "runs per second", "worst gap of the loop, ms", "longest garbage collection, ms", "CPU, us"]
    table = Table("10,000 tasks each second", columns)
    for peer, name in SCHEDULERS.items():
        ours = peer == "ours"
        table.add(
            name,
            middle(all_of(peer, "rate"), "{:.0f}"),
            middle(all_of(peer, "gap"), "{:.0f}"),
            middle(all_of(peer, "gc"), "{:.0f}"),
            middle(all_of(peer, "cpu"), "{:.0f}"),
            must=f"not fewer runs than Panel, gap <= {GAP:.0f} ms" if ours else "",
            met=verdict(
                runs=median(all_of("ours", "rate")) >= median(all_of("panels", "rate")),
                gap=median(all_of("ours", "gap")) <= GAP,
            )
            if ours
            else "",
        )
    table.text = (
        f"{TASKS:,} empty `async` tasks, all due at each full second; {SECONDS:.0f} s of it, medians of {ROUNDS} "
        "rounds in fresh processes (in brackets the least and the most). Where a machine cannot run all of them in a "
        "second, slots are skipped (by Panel: come late). The gap is the longest time between two turns of a coroutine "
        "on the same loop that sleeps 1 ms at a time: what a page would wait. While Python collects garbage "
        "everything stands still, the longer the more objects there are. CPU is the whole process's, per run."
    )
    return [table]
