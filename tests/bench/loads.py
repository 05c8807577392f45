"""What a page takes to load while all workers of its server compute."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx

from servers import PanelServer, eventually

from .fresh import environment
from .table import Table, middle, verdict

ROUNDS = 5
LOADS = 12
POOL_LOADS = 4
LIMIT = 20.0
JOB_PAGE = Path(__file__).with_name("job_page.py")

ROWS = {
    "idle": "idle",
    "busy": "busy: panel-schedule, one on each core",
    "pool": "busy: a bare `multiprocessing.Process`, one on each core",
}


def measure() -> dict[str, list[float]]:
    """Milliseconds of each load."""
    found: dict[str, list[float]] = {name: [] for name in ROWS}
    with TemporaryDirectory() as folder:
        options = {"BENCH_SHOW": "loads", "PANEL_SCHEDULE_MAX_PROCESSES": str(os.cpu_count())}
        server = PanelServer(str(JOB_PAGE), Path(folder), env={**environment(), **options})
        try:
            server.wait_started()
            with httpx.Client(base_url=f"{server.url}/job_page", timeout=60) as client:
                for _ in range(LOADS):  # warms up
                    load(client)
                for _ in range(ROUNDS):
                    for name, loads in found.items():
                        client.get("", params={"work": name}).raise_for_status()
                        eventually(lambda name=name: working(server) == (0 if name == "idle" else os.cpu_count()), 20)
                        loads += [load(client) for _ in range(POOL_LOADS if name == "pool" else LOADS)]
                client.get("", params={"work": "idle"}).raise_for_status()
        finally:
            server.close()
    return found


def load(client: httpx.Client) -> float:
    begin = time.perf_counter()
    client.get("").raise_for_status()
    return (time.perf_counter() - begin) * 1e3


def working(server: PanelServer) -> int:
    """How many of its processes compute."""
    spent = []
    for _ in range(2):
        spent.append({each.pid: sum(each.cpu_times()[:2]) for each in server.descendants()})
        time.sleep(0.3)
    before, after = spent
    return sum(seconds > before.get(pid, seconds) for pid, seconds in after.items())


def tables() -> list[Table]:
    found = measure()
    table = Table("A page load while all workers compute", ["workers", "ms", "slower by, %"])
    idle = median(found["idle"])
    for name, row in ROWS.items():
        slower = (median(found[name]) / idle - 1) * 100
        ours = name == "busy"
        table.add(
            row,
            middle(found[name], "{:.1f}"),
            f"{slower:+.0f}",
            must=f"< {LIMIT:g} %" if ours else "",
            met=verdict(met=slower < LIMIT) if ours else "",
        )
    table.text = (
        f"{ROUNDS * LOADS} loads of a page of `panel serve` (its document is built each time) in each state, by turns "
        f"of {LOADS} ({ROUNDS * POOL_LOADS} of the last row), on {os.cpu_count()} cores, by a client on the same "
        "machine; medians, in brackets the least and the most. As many workers as there are cores compute without a "
        "pause. Ours do so with the lowest priority, so that the server comes first whatever they do; those of the "
        "last row are as any other process."
    )
    return [table]
