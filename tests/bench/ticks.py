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


def measure(peer: str, spread: float) -> dict[str, float]:
    """Lateness in ms and CPU in us, of one peer in this process; the tasks are due within `spread` seconds."""
    return asyncio.run(_measure(import_module(f"{__package__}.peers.{peer}"), spread))


async def _measure(peer, spread: float) -> dict[str, float]:
    late: list[float] = []

    def make(offset: float):
        async def tick() -> None:
            late.append((time.time() - offset + 0.5) % 1.0 - 0.5)

        return tick

    peer.start(asyncio.get_running_loop())
    for number in range(TASKS):
        offset = number / TASKS * spread
        peer.every_second(f"task {number}", make(offset), offset)
    await asyncio.sleep(WARM_UP)
    # To the middle between two bursts, so that as many are counted as were measured.
    await asyncio.sleep((0.5 - time.time()) % 1.0)
    late.clear()
    before = time.process_time()
    await asyncio.sleep(SECONDS)
    cpu, came = time.process_time() - before, late.copy()
    assert abs(len(came) - TASKS * SECONDS) < TASKS, f"{len(came)} ticks came instead of {TASKS * SECONDS:.0f}"
    percentiles = quantiles(came, n=100)
    return {"p50": percentiles[49] * 1e3, "p99": percentiles[98] * 1e3, "cpu": cpu / len(came) * 1e6}


def tables() -> list[Table]:
    names = SCHEDULERS | FLOORS
    rounds = []
    for _ in range(ROUNDS):
        rounds.append({peer: fresh(measure, peer, 1.0) for peer in names})
        for peer in SCHEDULERS:
            rounds[-1][peer]["together"] = fresh(measure, peer, 0.0)["cpu"]

    def all_of(peer: str, figure: str) -> list[float]:
        return [measured[peer][figure] for measured in rounds]

    def is_best(figure: str) -> bool:
        values = {peer: median(all_of(peer, figure)) for peer in SCHEDULERS}
        return values["ours"] <= min(values.values())

    lateness = Table("Lateness of a tick", ["scheduler", "p50, ms", "p99, ms"])
    cpu = Table("CPU per tick", ["scheduler", "due one by one, us", "due together, us"])
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
            middle(all_of(peer, "together"), "{:.0f}") if peer in SCHEDULERS else "",
            must=must,
            met=verdict(one_by_one=is_best("cpu"), together=is_best("together")) if ours else "",
        )
    lateness.text = (
        f"{TASKS} `async` tasks at one second, due 10 ms after each other, on an otherwise idle loop: the time from "
        f"the instant that is due to the first line of the task. Medians of {ROUNDS} rounds of {SECONDS:.0f} s, each "
        "in a fresh process (in brackets the best and the worst round). The rest: Panel and APScheduler sleep in "
        "`epoll`, which rounds up to whole milliseconds; we sleep on a lock. The last two rows schedule nothing: "
        "what they have at p99 is the machine's, whose cores other processes hold."
    )
    cpu.text = (
        "CPU time of the whole process by number of ticks; the tasks are empty, and each of our runs is claimed, "
        "published and recorded (state, times, value, history). One by one are the runs of the table above: the "
        "process sleeps 10 ms before each tick and goes on with cold caches, so that a wake-up costs what the last "
        "two rows show without any scheduling. We wake a thread and the loop, so that a page that holds the loop "
        "costs no slot of a task in a thread; the others wake the loop. The difference to the row with two wake-ups "
        "is our planning, claiming and recording, cold. Due together are the same tasks at the same instant of each "
        "second: one wake-up, or two, for all of them, and the same work warm."
    )
    return [lateness, cpu]
