"""How long a server's event loop stands still when the monitor of 500 tasks is opened, and a blank page."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from statistics import median
from typing import Any

from .fresh import environment, fresh
from .stalls import Beat
from .table import Table, verdict

TASKS = 500
ROUNDS = 3
OPENED = 8
PAGES = ("blank", "monitor")
LIMIT = 20.0

# Opens a page as a browser does, in a process of its own: the page, its websocket, and the monitor's first question.
VISITOR = """
import sys, time
from bokeh.client import pull_session
from bokeh.document.events import MessageSentEvent
from panel.models.esm import DataEvent
import panel_schedule

url, asks = sys.argv[1], sys.argv[2] == "monitor"
for line in sys.stdin:
    session = pull_session(url=url)
    if asks:
        [model] = [each for each in session.document.models if hasattr(getattr(each, "data", None), "why_not")]
        event = DataEvent(model, {"ask": "all"})
        session.document.callbacks.trigger_on_change(MessageSentEvent(session.document, "bokeh_event", event))
        session.force_roundtrip()
    print("opened", flush=True)
    sys.stdin.readline()
    session.close()
    print("closed", flush=True)
"""


def blank() -> Any:
    import panel as pn

    return pn.Column(pn.pane.Str("blank"))


def measure() -> dict[str, list[float]]:
    """Milliseconds of the longest stall, by page."""
    from panel.io.server import get_server

    import panel_schedule as ps

    for number in range(TASKS):
        ps.schedule(period="1h", name=f"task {number}", first_run="background")(_value)
    found: dict[str, list[float]] = {page: [] for page in PAGES}

    async def main() -> None:
        server = get_server(
            {"/blank": blank}, port=0, address="127.0.0.1", extra_patterns=list(ps.ROUTES), start=True, show=False
        )
        beat = Beat()
        beating = asyncio.create_task(beat.beat())
        await asyncio.gather(*(task.ready() for task in ps.tasks.values()))
        visitors = {page: await _visitor(server.port, page) for page in PAGES}
        for turn in range(OPENED + 2):
            for page, visitor in visitors.items():

                async def visit(visitor: asyncio.subprocess.Process = visitor) -> None:
                    await _say(visitor, "opened")
                    await asyncio.sleep(1.0)  # the first rows come from a thread

                stall = await beat.around(visit)
                await _say(visitor, "closed")
                if turn > 1:  # what is made once is there
                    found[page].append(stall)
        beating.cancel()
        for visitor in visitors.values():
            visitor.terminate()
            await visitor.wait()
        server.stop()

    asyncio.run(main())
    return found


async def _visitor(port: int, page: str) -> asyncio.subprocess.Process:
    url = f"http://127.0.0.1:{port}/{'schedule' if page == 'monitor' else page}"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", VISITOR, url, page,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(),
    )  # fmt: skip


async def _say(visitor: asyncio.subprocess.Process, answer: str) -> None:
    assert visitor.stdin is not None
    assert visitor.stdout is not None
    visitor.stdin.write(b"\n")
    said = (await visitor.stdout.readline()).decode()
    assert re.match(answer, said), said


def _value() -> int:
    return 1


def tables() -> list[Table]:
    found: dict[str, list[float]] = {page: [] for page in PAGES}
    for _ in range(ROUNDS):
        for page, stalls in fresh(measure).items():
            found[page] += stalls
    table = Table(f"Opening the monitor of {TASKS} tasks", ["what", "longest stall of the loop, ms"])
    for page, words in (("blank", "a blank page of Panel"), ("monitor", "the monitor")):
        middle, worst = median(found[page]), max(found[page])
        mine = page == "monitor"
        table.add(
            words,
            f"{middle:.1f} ({min(found[page]):.1f} to {worst:.1f})",
            must=f"< {LIMIT:g} ms" if mine else "",
            met=verdict(median=middle < LIMIT, worst=worst < LIMIT) if mine else "",
        )
    table.text = (
        "A server with a coroutine on its event loop that sleeps 0.2 ms at a time: by how much it comes late at most "
        "while another process opens a page as a browser does, asks for the rows, and for a second after that. "
        f"{ROUNDS} rounds of {OPENED} visits by turns in fresh processes; medians, with the extremes."
    )
    return [table]
