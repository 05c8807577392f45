"""One new value for 200 open pages: how long the loop stands still, when the last page has it, what stays behind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from statistics import median

from visitors import visitors

from .fresh import ROOT, command, environment, fresh
from .table import Table, verdict

SESSIONS = 200
UPDATES = 5
ROUNDS = 2
KINDS = {"ours": ("panel-schedule", "pn.pane.Markdown(task)"),
         "panels": ("a global parameter", "pn.pane.Markdown(GLOBAL.param.value)")}  # fmt: skip


class Page:
    """The server, as its driver sees it."""

    def __init__(self, kind: str):
        self.process = subprocess.Popen(
            command("page", kind), cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = f"http://127.0.0.1:{self._answer()}/page"

    def ask(self, what: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def measure(kind: str) -> dict[str, object]:
    """Stalls and totals in ms, by update, and the number of objects that outlived their sessions."""
    page = Page(kind)
    try:
        return asyncio.run(_measure(page))
    finally:
        page.close()


async def _measure(page: Page) -> dict[str, object]:
    stalls, totals, quiet = [], [], []
    async with visitors(page.url, SESSIONS) as pages:

        async def update() -> float:
            begin = time.perf_counter()
            page.ask("update")
            await asyncio.gather(*(visitor.read_until("PATCH-DOC", "value") for visitor in pages))
            return (time.perf_counter() - begin) * 1e3

        await update()
        page.ask("collect")
        for _ in range(UPDATES):
            page.ask("begin")
            await asyncio.sleep(0.3)
            quiet.append(page.ask("worst") * 1e3)
            totals.append(await update())
            stalls.append(page.ask("worst") * 1e3)
    return {"stalls": stalls, "totals": totals, "quiet": quiet, "leaked": page.ask("leaked")}


def tables() -> list[Table]:
    rounds = [{kind: fresh(measure, kind) for kind in KINDS} for _ in range(ROUNDS)]
    table = Table(
        f"One update to {SESSIONS} sessions",
        [
            "what",
            "page",
            "worst stall, ms",
            "without an update, ms",
            "until the last page, ms",
            "objects leaked",
        ],
    )
    for kind, (name, statement) in KINDS.items():
        stalls, totals, quiet = (
            [value for measured in rounds for value in measured[kind][figure]]
            for figure in ("stalls", "totals", "quiet")
        )
        leaked = max(measured[kind]["leaked"] for measured in rounds)
        table.add(
            name,
            f"`{statement}`",
            f"{median(stalls):.1f} (at most {max(stalls):.1f})",
            f"{median(quiet):.1f} (at most {max(quiet):.1f})",
            f"{median(totals):.0f} (at most {max(totals):.0f})",
            f"{leaked:.0f}",
            must="stall < 20 ms, 0 leaked" if kind == "ours" else "",
            met=_met(stalls, leaked) if kind == "ours" else "",
        )
    table.text = (
        f"A server process with {SESSIONS} open pages, each with its websocket, read by another process on the same "
        "machine. The stall is the longest time by which a coroutine that sleeps 1 ms at a time comes late; beside it "
        f"the same for 0.3 s in which nothing happens, the machine's own part. {ROUNDS} rounds of {UPDATES} updates "
        f"after one to warm up; medians, and the worst of all. Opening {SESSIONS} sessions "
        "leaves Python's garbage collector a pause of some 200 ms to make up for, in both, so both servers run one "
        "`gc.collect()` before the measured updates. Leaked are documents, panes and views that are alive after a "
        "garbage collection when all sessions have ended. We hand a few documents to the loop at a time and let it "
        "turn, so the last page has its value later, and no other page waits."
    )
    return [table]


def _met(stalls: list[float], leaked: float) -> str:
    claims = {"median": median(stalls) < 20, "worst": max(stalls) < 20, "leaked": leaked <= 0}
    return verdict(**claims)
