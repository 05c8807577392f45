"""What 10,000 daily tasks cost before any of them runs: CPU to register, memory, CPU while idle."""

from __future__ import annotations

import asyncio
import gc
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from statistics import median

import psutil

from .fresh import fresh
from .table import Table, middle, verdict
from .ticks import SCHEDULERS

TASKS = 10_000
ROUNDS = 3
# Longer than the 30 s after which we look at the wall clock.
IDLE = 31.0


def measure(peer: str, idle: float) -> dict[str, float]:
    """CPU to register in s, growth in MB, idle CPU in percent of a core, of one peer in this process."""
    return asyncio.run(_measure(import_module(f"{__package__}.peers.{peer}"), idle))


async def _measure(peer, idle: float) -> dict[str, float]:
    def make():
        async def tick() -> None:
            raise AssertionError("due tomorrow")

        return tick

    functions = [(f"task {number}", make()) for number in range(TASKS)]
    peer.start(asyncio.get_running_loop())
    peer.daily("warm-up", make())
    await asyncio.sleep(0.5)
    gc.collect()
    before, memory = time.process_time(), psutil.Process().memory_info().rss
    for name, function in functions:
        peer.daily(name, function)
    # What registering left for the loop or a thread to do belongs to it.
    await asyncio.sleep(0.5)
    cpu = time.process_time() - before
    gc.collect()
    memory = psutil.Process().memory_info().rss - memory
    before = time.process_time()
    await asyncio.sleep(idle)
    return {"cpu": cpu, "memory": memory / 1e6, "idle": (time.process_time() - before) / idle * 100}


def tables() -> list[Table]:
    rounds = [{peer: fresh(measure, peer, 0.01) for peer in SCHEDULERS} for _ in range(ROUNDS)]
    with ThreadPoolExecutor() as pool:
        idle = dict(zip(SCHEDULERS, pool.map(lambda peer: fresh(measure, peer, IDLE)["idle"], SCHEDULERS), strict=True))
    values = {
        figure: {peer: median(measured[peer][figure] for measured in rounds) for peer in SCHEDULERS}
        for figure in ("cpu", "memory")
    }
    # To a hundredth of a percent: a timer that nobody sets off is nobody's merit.
    values["idle"] = {peer: round(percent, 2) for peer, percent in idle.items()}
    best = {figure: by_peer["ours"] <= min(by_peer.values()) for figure, by_peer in values.items()}
    table = Table("10,000 daily tasks", ["scheduler", "idle, % of a core", "memory, MB", "to register, s of CPU"])
    for peer, name in SCHEDULERS.items():
        table.add(
            name,
            f"{idle[peer]:.3f}",
            middle([measured[peer]["memory"] for measured in rounds], "{:.1f}"),
            middle([measured[peer]["cpu"] for measured in rounds]),
            must="no worse than the best" if peer == "ours" else "",
            met=verdict(idle=best["idle"], memory=best["memory"], registering=best["cpu"]) if peer == "ours" else "",
        )
    table.text = (
        f"{TASKS:,} `async` functions, due tomorrow, are registered one by one on a running loop. CPU is the whole "
        "process's from the first registration until half a second after the last; memory is the growth of the "
        f"resident set, after a garbage collection before and after. Medians of {ROUNDS} rounds in fresh processes "
        f"(in brackets the least and the most). Idle is one stretch of {IDLE:.0f} s after that, all three side by "
        "side; it counts as equal within 0.01 %. The rest: a task of ours is an object with a policy, a state, a "
        "status and a place in the registry, where Panel keeps a generator and a callback."
    )
    return [table]
