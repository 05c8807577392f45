"""How late 100 tasks come that are due in turn, 10 ms apart, and what each tick costs."""

from __future__ import annotations

import asyncio
import time
from importlib import import_module
from statistics import median, quantiles

from .fresh import fresh
from .table import Table, middle, verdict

TASKS = 100
WARM_UP = 3.0
SECONDS = 4.0
ROUNDS = 3

SCHEDULERS = {
    "ours": "panel-schedule",
    "panels": "`pn.state.schedule_task`",
    "apschedulers": "APScheduler AsyncIOScheduler",
}
FLOORS = {
    "two_wake_ups": "two wake-ups that do nothing: a thread, and by it the loop",
    "one_wake_up": "one wake-up that does nothing: the loop's own timer",
}


def measure(peer: str) -> dict[str, float]:
    """Lateness in ms and CPU in us, of one peer in this process."""
    return asyncio.run(_measure(import_module(f"{__package__}.peers.{peer}")))


async def _measure(peer) -> dict[str, float]:
    late: list[float] = []

    def make(offset: float):
        async def tick() -> None:
            late.append((time.time() - offset + 0.5) % 1.0 - 0.5)

        return tick

    peer.start(asyncio.get_running_loop())
    for number in range(TASKS):
        peer.every_second(f"task {number}", make(number / TASKS), number / TASKS)
    await asyncio.sleep(WARM_UP)
    late.clear()
    before = time.process_time()
    await asyncio.sleep(SECONDS)
    cpu, came = time.process_time() - before, late.copy()
    assert abs(len(came) - TASKS * SECONDS) < TASKS, f"{len(came)} ticks came instead of {TASKS * SECONDS:.0f}"
    percentiles = quantiles(came, n=100)
    return {"p50": percentiles[49] * 1e3, "p99": percentiles[98] * 1e3, "cpu": cpu / len(came) * 1e6}


def tables() -> list[Table]:
    names = SCHEDULERS | FLOORS
    rounds = [{peer: fresh(measure, peer) for peer in names} for _ in range(ROUNDS)]

    def all_of(peer: str, figure: str) -> list[float]:
        return [measured[peer][figure] for measured in rounds]

    def is_best(figure: str) -> bool:
        values = {peer: median(all_of(peer, figure)) for peer in SCHEDULERS}
        return values["ours"] <= min(values.values())

    lateness = Table("Lateness of a tick", ["scheduler", "p50, ms", "p99, ms"])
    cpu = Table("CPU per tick", ["scheduler", "us of CPU"])
    for peer, name in names.items():
        ours = peer == "ours"
        must = "no worse than the best scheduler" if ours else ""
        lateness.add(
            name,
            middle(all_of(peer, "p50")),
            middle(all_of(peer, "p99")),
            must=must,
            met=verdict(p50=is_best("p50"), p99=is_best("p99")) if ours else "",
        )
        cpu.add(
            name,
            middle(all_of(peer, "cpu"), "{:.0f}"),
            must=must,
            met=verdict(cpu=is_best("cpu")) if ours else "",
        )
    lateness.text = (
        f"{TASKS} `async` tasks at one second, due 10 ms after each other, on an otherwise idle loop: the time from "
        f"the instant that is due to the first line of the task. Medians of {ROUNDS} rounds of {SECONDS:.0f} s, each "
        "in a fresh process (in brackets the best and the worst round). The rest: Panel and APScheduler sleep in "
        "`epoll`, which rounds up to whole milliseconds; we sleep on a lock. What is left is two wake-ups of a "
        "process and the task's place in the loop. What p99 the last two rows have, which schedule nothing, is the "
        "machine's: other processes that hold the cores."
    )
    cpu.text = (
        "CPU time of the whole process in the same runs, by number of ticks; the tasks are empty, and we record each "
        "run (state, times, value, history). Most of it is no scheduler's: a processor that has slept for 10 ms runs "
        "cold, so each wake-up costs what the last two rows show, without any scheduling. We wake two threads for "
        "a tick, so that a loop that is held by a page costs no slot; Panel and APScheduler wake one. What is ours "
        "alone is the difference to the row with two wake-ups."
    )
    return [lateness, cpu]
