"""A trivial job on a Dask cluster, and one with a large result, until it is there; how long the loop stands still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from dask_cluster import DaskCluster

from .fresh import environment, fresh
from .stalls import Beat
from .table import Table, middle

ROUNDS = 7
COUNT = 15
PAUSE = 0.02
MEGABYTES = 50

ROWS = {
    "ours": "panel-schedule, `executor='dask'`",
    "bare": "`client.submit(function).result()`",
    "direct": "the same, `direct_to_workers=True`",
}

Submit = Callable[[int], Awaitable[Any]]


def trivial(number: int) -> int:
    return number


def large(number: int) -> Any:
    import numpy as np

    return np.full(MEGABYTES << 17, float(number))


async def each_after_a_pause(submit: Submit) -> float:
    """Milliseconds of one, the median."""
    spent = []
    for number in range(COUNT):
        await asyncio.sleep(PAUSE)
        begin = time.perf_counter()
        assert await submit(number) == number
        spent.append(1e3 * (time.perf_counter() - begin))
    return median(spent)


async def with_its_stall(beat: Beat, submit: Submit) -> tuple[float, float]:
    """Milliseconds until the result is there, and of the longest pause of the loop meanwhile."""
    await asyncio.sleep(PAUSE)
    beat.longest, begin = 0.0, time.perf_counter()
    result = await submit(1)
    spent = 1e3 * (time.perf_counter() - begin)
    assert result[-1] == 1.0
    return spent, 1e3 * beat.longest


async def all_by_turns(address: str) -> dict[str, dict[str, list[float]]]:
    from distributed import Client

    import panel_schedule as ps

    ps.config.dask = address
    jobs = {function: ps.background(executor="dask")(function) for function in (trivial, large)}
    found: dict[str, dict[str, list[float]]] = {peer: {"trivial": [], "large": [], "stall": []} for peer in ROWS}
    beat = Beat()
    beating = asyncio.create_task(beat.beat())
    with (
        Client(address, set_as_default=False) as bare,
        Client(address, set_as_default=False, direct_to_workers=True) as direct,
    ):

        def peers(function: Callable[[int], Any]) -> dict[str, Submit]:
            async def ours(number: int) -> Any:
                return await jobs[function].submit(number)

            async def through(client: Client, number: int) -> Any:
                return await asyncio.to_thread(client.submit(function, number, pure=False).result)

            return {"ours": ours, "bare": partial(through, bare), "direct": partial(through, direct)}

        for number in range(ROUNDS + 1):
            for peer, submit in peers(trivial).items():
                spent = await each_after_a_pause(submit)
                if number:  # the first round warms up
                    found[peer]["trivial"].append(spent)
            for peer, submit in peers(large).items():
                spent, stall = await with_its_stall(beat, submit)
                if number:
                    found[peer]["large"].append(spent)
                    found[peer]["stall"].append(stall)
    beating.cancel()
    return found


def measure(address: str) -> dict[str, dict[str, list[float]]]:
    return asyncio.run(all_by_turns(address))


def tables() -> list[Table]:
    with TemporaryDirectory() as folder:
        cluster = DaskCluster(Path(folder), env=environment())  # in which Dask finds what the bare client gives it
        try:
            cluster.worker(threads=2)
            found = fresh(measure, cluster.address)
        finally:
            cluster.close()
    table = Table(
        "A job on a Dask cluster, until its result is there",
        ["what", "trivial, ms", f"with a result of {MEGABYTES} MB, ms", "longest pause of the loop meanwhile, ms"],
    )
    for peer, what in ROWS.items():
        figures = found[peer]
        table.add(
            what, middle(figures["trivial"]), middle(figures["large"], "{:.0f}"), middle(figures["stall"], "{:.1f}")
        )
    table.text = (
        f"{ROUNDS} rounds by turns, each of {COUNT} trivial jobs, {PAUSE * 1000:.0f} ms apart, and one with an array "
        "as its result; the median, in brackets the least and the most. A scheduler and a worker of two threads on the "
        "same machine. Ours runs in a process of its own, which can be stopped, and tells its server that it begins; "
        "the bare one runs in a thread of the Dask worker, is waited for in a thread of the server, and has no "
        "progress, no cancel and no history. By default a client has its results through the scheduler; ours has large "
        "ones straight from the worker where it can reach it."
    )
    return [table]
