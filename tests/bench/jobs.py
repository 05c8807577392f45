"""A trivial background job, from its submission to its result; and twenty of them at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from .child import Child
from .dashes import LOOK, MISSING, Managed, managers
from .dashes import NAMES as DASHES
from .table import Table, middle, verdict

ROUNDS = 7
COUNT = 15
PAUSE = 0.02
BURST = 20
LIMITS = {"thread": 0.5, "process": 2.0}
BURST_LIMIT = 40.0

# By peer: what it is, where it runs, and who can read the result.
ROWS = {
    "ours thread": ("panel-schedule", "thread", "this process"),
    "ours process": ("panel-schedule", "process", "this process"),
    "shared thread": ("panel-schedule, `file://` store", "thread", "all processes"),
    "shared process": ("panel-schedule, `file://` store", "process", "all processes"),
    "disk": (DASHES["disk"], "process", "all processes"),
    "celery": (DASHES["celery"], "process", "all processes"),
    "pool thread": ("a bare `ThreadPoolExecutor`", "thread", "this process"),
    "pool process": ("a bare `ProcessPoolExecutor`", "process", "this process"),
}


def trivial(number: int) -> int:
    return number


class Jobs:
    """A server's loop, from which jobs are submitted and on which they are awaited."""

    submit: Callable[[int], Any]

    def __init__(self, kind: str):
        self.number = 0

    async def one(self) -> None:
        self.number += 1
        number = self.number
        result = await self.submit(number)
        assert result == number

    async def one_by_one(self, count: int, pause: float) -> list[float]:
        """Seconds of each."""
        spent = []
        for _ in range(count):
            if pause:
                await asyncio.sleep(pause)
            begin = time.perf_counter()
            await self.one()
            spent.append(time.perf_counter() - begin)
        return spent

    async def burst(self, count: int) -> float:
        """Seconds until the last."""
        begin = time.perf_counter()
        await asyncio.gather(*(self.one() for _ in range(count)))
        return time.perf_counter() - begin


class Ours(Jobs):
    def __init__(self, kind: str):
        import panel_schedule as ps

        super().__init__(kind)
        self.submit = ps.background(executor=kind, name="trivial")(trivial).submit


class Pool(Jobs):
    def __init__(self, kind: str):
        super().__init__(kind)
        self.executor: Executor = (
            ThreadPoolExecutor(8) if kind == "thread" else ProcessPoolExecutor(2, get_context("spawn"))
        )

    def submit(self, number: int) -> Any:
        return asyncio.wrap_future(self.executor.submit(trivial, number))


def measure() -> dict[str, dict[str, list[float]]]:
    """By peer and figure, in ms: the median of each round."""
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        peers: dict[str, Child] = {}
        for name, place in stack.enter_context(managers()).items():
            peers[name] = Child(Managed, place)
        for kind in LIMITS:
            peers[f"ours {kind}"] = Child(Ours, kind)
            peers[f"shared {kind}"] = Child(Ours, kind, store=f"file://{folder}/{kind}")
            peers[f"pool {kind}"] = Child(Pool, kind)
        for peer in peers.values():
            stack.callback(peer.close)
        for number in range(ROUNDS + 1):
            for name, peer in peers.items():
                warm, cold = (peer.ask("one_by_one", COUNT, pause) for pause in (0, PAUSE))
                figures = {"warm": median(warm), "cold": median(cold), "burst": peer.ask("burst", BURST)}
                if number:  # the first round warms up
                    for figure, seconds in figures.items():
                        found.setdefault(name, {}).setdefault(figure, []).append(1e3 * seconds)
    return found


def tables() -> list[Table]:
    found = measure()
    single = Table(
        "A trivial job, until its result is there",
        ["what", "runs in a", "result for", "one right after another, ms", "times ours", "each after a pause, ms"],
    )
    burst = Table(
        f"{BURST} trivial jobs at once, until all results are there",
        ["what", "runs in a", "result for", "ms", "times ours"],
    )
    ours = {figure: median(each) for figure, each in found["shared process"].items()}
    for name, row in ROWS.items():
        if name not in found:
            single.add(*row, MISSING, "", "")
            burst.add(*row, MISSING, "")
            continue
        middles = {figure: median(each) for figure, each in found[name].items()}
        limit = LIMITS[row[1]] if row[0].startswith("panel-schedule") else None
        single.add(
            *row,
            middle(found[name]["warm"]),
            f"{middles['warm'] / ours['warm']:.1f}",
            middle(found[name]["cold"]),
            must="" if limit is None else f"<= {limit:g} ms",
            met="" if limit is None else verdict(warm=middles["warm"] <= limit, after_a_pause=middles["cold"] <= limit),
        )
        burst.add(
            *row,
            middle(found[name]["burst"], "{:.1f}"),
            f"{middles['burst'] / ours['burst']:.1f}",
            must="" if limit is None else f"<= {BURST_LIMIT:g} ms",
            met="" if limit is None else verdict(met=middles["burst"] <= BURST_LIMIT),
        )
    how = (
        "Ours, and the bare pools, are submitted and awaited on an event loop. Dash's managers do what a request has "
        f"them do (`build_cache_key`, `call_job_fn`), and are asked `result_ready` each {LOOK * 1000:g} ms, where a "
        "page asks each second; what `get_result` takes then, to read it and to end the job, is left out. The workers "
        "are warm; DiskcacheManager has none, and forks for each job. Times ours: of our process with the `file://` "
        "store, which like Dash's results all server processes share."
    )
    single.text = (
        f"{ROUNDS} rounds of {COUNT} jobs by turns; the median of the rounds' medians, in brackets the least and the "
        f"most. {how} A pause of {PAUSE * 1000:.0f} ms lets all processes sleep, so that they go on with cold caches: "
        "the machine's part grows, as the bare pools show."
    )
    burst.text = (
        f"{ROUNDS} rounds by turns; median, in brackets the least and the most. {how} A server has 2 worker processes "
        "and 8 threads of ours by default, as have the bare pools; Celery as many as there are cores."
    )
    return [single, burst]
