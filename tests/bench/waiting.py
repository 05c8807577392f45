"""What it costs a server that a hundred sessions wait for a long job."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import httpx
import psutil

from servers import PanelServer
from visitors import visitors

from .dashes import MISSING, dash_server, managers
from .dashes import NAMES as DASHES
from .fresh import environment
from .table import Table, verdict

SESSIONS = 100
SETTLE = 1.0
SECONDS = 5.0
LIMIT = 1.0
HEADERS = {"Content-Type": "application/json"}
LIMITS = httpx.Limits(max_connections=None)
JOB_PAGE = Path(__file__).with_name("job_page.py")
END_ID = re.compile(r'"end_id":\s*"([^"]+)"')

ROWS = {
    "waiting": ("panel-schedule", "each session waits for its own job"),
    "idle": ("panel-schedule", "the same pages, no job started"),
    "disk": (DASHES["disk"], "each page asks once a second"),
    "celery": (DASHES["celery"], "each page asks once a second"),
}


def spent(root: psutil.Process) -> float:
    """CPU seconds of a process and its children so far."""
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


async def load(root: psutil.Process, asked: Callable[[], int] = int) -> tuple[float, float]:
    """Percent of a core, and requests a second."""
    await asyncio.sleep(SETTLE)
    before, first = spent(root), asked()
    await asyncio.sleep(SECONDS)
    return (spent(root) - before) / SECONDS * 100, (asked() - first) / SECONDS


async def panels(show: str) -> tuple[float, float]:
    options = {"BENCH_SHOW": show, "PANEL_SCHEDULE_GRACE_PERIOD": "0.1"}
    with TemporaryDirectory() as folder:
        server = PanelServer(str(JOB_PAGE), Path(folder), env={**environment(), **options})
        try:
            await asyncio.to_thread(server.wait_started)
            async with visitors(f"{server.url}/job_page", SESSIONS):
                found = await load(psutil.Process(server.process.pid))
                assert bool(server.descendants()) == (show == "waiting"), "the jobs do not run"
                return found
        finally:
            await asyncio.to_thread(server.close)


async def dashes(place: str) -> tuple[float, float]:
    asked: list[float] = []
    with dash_server(place) as (url, root):
        async with httpx.AsyncClient(base_url=url, timeout=60, headers=HEADERS, limits=LIMITS) as client:
            asking: list[asyncio.Task[None]] = []
            try:
                for number in range(SESSIONS):
                    asking.append(asyncio.create_task(_ask(client, await _start(client, number), asked)))
                return await load(root, lambda: len(asked))
            finally:
                for task in asking:
                    task.cancel()
                ended = await asyncio.gather(*asking, return_exceptions=True)
                assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended


async def _start(client: httpx.AsyncClient, number: int) -> str:
    """As the page does when its button is clicked; where it asks for the result from then on."""
    found = END_ID.search((await client.get("/")).text)
    address = "/_dash-update-component"
    if found is not None:
        address += f"?endId={quote(found[1])}"
    answer = await client.post(address, content=_body(number))
    handles = answer.raise_for_status().json()
    words = [f"{name}={quote(handles[name])}" for name in ("cacheKey", "job")]
    return f"{address}{'&' if '?' in address else '?'}{'&'.join(words)}"


async def _ask(client: httpx.AsyncClient, address: str, asked: list[float]) -> None:
    await asyncio.sleep(random.random())
    while True:
        answer = await client.post(address, content=_body(None))
        assert answer.status_code == 200, answer.text
        assert "response" not in answer.json(), "the job has ended"
        asked.append(time.monotonic())
        # A page sets the next timer when it has the answer.
        await asyncio.sleep(1.0)


def _body(clicks: int | None) -> str:
    output = {"id": "waited", "property": "children"}
    return json.dumps(
        {
            "output": "waited.children",
            "outputs": output,
            "inputs": [{"id": "long", "property": "n_clicks", "value": clicks}],
            "changedPropIds": ["long.n_clicks"],
            "parsedChangedPropsIds": ["long.n_clicks"],
        }
    )


def tables() -> list[Table]:
    found = {show: asyncio.run(panels(show)) for show in ("waiting", "idle")}
    with managers() as places:
        found |= {name: asyncio.run(dashes(place)) for name, place in places.items()}
    table = Table(
        f"{SESSIONS} sessions wait for a long job", ["what", "how", "requests a second", "% of a core", "times ours"]
    )
    # What the system's clock of CPU times tells apart.
    least = 100 / os.sysconf("SC_CLK_TCK") / SECONDS
    ours = max(found["waiting"][0], least)
    for name, row in ROWS.items():
        if name not in found:
            table.add(*row, "", MISSING, "")
            continue
        percent, requests = found[name]
        table.add(
            *row,
            f"{requests:.0f}",
            f"{percent:.2f}" if percent >= least else f"< {least:.2f}",
            f"{percent / ours:.0f}" if name in DASHES else "",
            must=f"< {LIMIT:g} %" if name == "waiting" else "",
            met=verdict(met=percent < LIMIT) if name == "waiting" else "",
        )
    table.text = (
        f"CPU time of the server and its children in {SECONDS:.0f} s, while each of {SESSIONS} sessions waits for a "
        "job that sleeps. Ours are open pages with their websockets, each with a run of its own (2 are in their worker "
        "processes, the others are queued) and its job's panel; nothing is sent until there is news. Dash's are "
        "clients that ask as its page does, a second after each answer; with Celery the CPU of its worker and of Redis "
        "is not counted. Where ours is below what the system's clock tells apart, the last column takes that for it."
    )
    return [table]
