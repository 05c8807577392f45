"""A trivial job in a Celery worker, from its submission to its result; and twenty of them at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from .caches import redis_server
from .child import Child
from .dashes import MISSING, Managed, end, managers
from .dashes import NAMES as DASHES
from .fresh import ROOT, environment
from .jobs import BURST, COUNT, PAUSE, ROUNDS, Jobs
from .table import Table, middle, verdict

LIMIT = 5.0

ROWS = {
    "ours": "panel-schedule, `executor='celery'`",
    "bare": "Celery's own `delay().get()`",
    "dash": DASHES["celery"],
}


class Ours(Jobs):
    def __init__(self, place: str):
        super().__init__(place)
        os.environ["BENCH_CELERY"] = place
        from . import celery_tasks

        self.submit = celery_tasks.trivial.submit


class Bare(Jobs):
    """On a thread each, as `get` blocks."""

    def __init__(self, place: str):
        super().__init__(place)
        os.environ["BENCH_CELERY"] = place
        from . import celery_tasks

        self.bare = celery_tasks.bare

    def submit(self, number: int) -> Any:
        return asyncio.to_thread(lambda: self.bare.delay(number).get(timeout=10))


@contextmanager
def worker(place: str) -> Iterator[None]:
    """With as many processes as there are cores, as Celery has them."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        words = ["-m", "celery", "--app", "tests.bench.celery_tasks:app", "worker", "--loglevel", "INFO"]
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", *words],
                cwd=ROOT, env={**environment(), "BENCH_CELERY": place, "PANEL_SCHEDULE_STORE": f"{place}/0"},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            while " ready." not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            end(process)


def measure() -> dict[str, dict[str, list[float]]]:
    """By peer and figure, in ms: the median of each round."""
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        port = stack.enter_context(redis_server())
        if port is None:
            return found
        place = f"redis://127.0.0.1:{port}"
        stack.enter_context(worker(place))
        peers = {
            "ours": Child(Ours, place, store=f"{place}/0"),
            "bare": Child(Bare, place, store=f"{place}/0"),
            "dash": Child(Managed, stack.enter_context(managers())["celery"]),
        }
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
    table = Table(
        "A trivial job in a Celery worker, until its result is there",
        ["what", "one right after another, ms", "times ours", "each after a pause, ms", f"{BURST} at once, ms"],
    )
    for name, what in ROWS.items():
        if name not in found:
            table.add(what, MISSING, "", "", "")
            continue
        middles = {figure: median(each) for figure, each in found[name].items()}
        ours = name == "ours"
        table.add(
            what,
            middle(found[name]["warm"]),
            f"{middles['warm'] / median(found['ours']['warm']):.1f}",
            middle(found[name]["cold"]),
            middle(found[name]["burst"], "{:.1f}"),
            must=f"<= {LIMIT:g} ms" if ours else "",
            met=verdict(warm=middles["warm"] <= LIMIT, after_a_pause=middles["cold"] <= LIMIT) if ours else "",
        )
    table.text = (
        f"{ROUNDS} rounds of {COUNT} jobs by turns; the median of the rounds' medians, in brackets the least and the "
        "most. Broker, store and result backend are one Redis server; the workers have as many processes as there are "
        "cores, and are warm. Ours is submitted and awaited on an event loop, and its result pushed; that of Celery is "
        "waited for on a thread; Dash's manager does what a request has it do, and is asked each 0.2 ms, where a page "
        "asks each second. A pause of 20 ms lets all processes sleep."
    )
    return [table]
