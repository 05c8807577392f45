"""How long a page takes from a changed input to the answer, where there is one."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from statistics import quantiles
from typing import Any

from visitors import visitors

from .memoizers import NAMES, OURS, memoizer, processes, small
from .table import Table

CHANGES = 50
ROUNDS = 6
PAUSE = 0.01
KINDS = ("ours", "shared", "panel")


class Page:
    """A server with one page, whose input changes."""

    document: Any
    input: Any
    server: Any

    def __init__(self, kind: str, folder: str):
        import panel

        self.pn: Any = panel
        self.kind = kind
        self.small = memoizer(kind, folder)(small)
        self.late: list[float] = []
        self.begin = 0.0

    async def serve(self) -> int:
        for year in range(2):
            await asyncio.to_thread(self.small, "north", year)
        self.server = self.pn.io.server.get_server({"/page": self.page}, port=0, address="127.0.0.1", start=True)
        return int(self.server.port)

    def page(self) -> Any:
        self.document = self.pn.state.curdoc
        self.input = self.pn.widgets.IntInput(value=0)
        live = self.small.view if self.kind in OURS else lambda *args: self.pn.bind(self.small, *args)
        pane = self.pn.pane.Markdown(live("north", self.input))
        pane.param.watch(self.shown, "object")
        return self.pn.Column(self.input, pane)

    def shown(self, event: Any) -> None:
        self.late.append(time.perf_counter() - self.begin)
        assert event.new == f"north in {self.input.value}"
        assert self.pn.state.curdoc is self.document

    def change(self) -> None:
        self.begin = time.perf_counter()
        self.input.value = 1 - self.input.value

    async def changes(self, count: int) -> list[float]:
        """Seconds of each, as an event of the browser would change it: in the document, under its lock."""
        self.late = []
        for number in range(count):
            self.document.add_next_tick_callback(self.change)
            deadline = time.monotonic() + 5
            while len(self.late) == number:
                assert time.monotonic() < deadline, "nothing is shown"
                await asyncio.sleep(PAUSE)
        return self.late


def measure() -> dict[str, list[float]]:
    return asyncio.run(_measure())


async def _measure() -> dict[str, list[float]]:
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with processes(Page, 1, KINDS) as crew:
        async with AsyncExitStack() as stack:
            for (page,) in crew.values():
                port = await asyncio.to_thread(page.ask, "serve")
                await stack.enter_async_context(visitors(f"http://127.0.0.1:{port}/page", 1))
            for number in range(ROUNDS + 1):
                for kind, (page,) in crew.items():
                    late = await asyncio.to_thread(page.ask, "changes", CHANGES)
                    if number:  # the first round warms up
                        found[kind] += late
    return found


def tables() -> list[Table]:
    table = Table("From a changed input to the shown answer, on a hit", ["what", "page", "p50, ms", "p99, ms"])
    for kind, late in measure().items():
        page = "small.view('north', input)" if kind in OURS else "pn.bind(small, 'north', input)"
        percentiles = [1e3 * each for each in quantiles(late, n=100)]
        table.add(NAMES[kind], f"`pn.pane.Markdown({page})`", f"{percentiles[49]:.2f}", f"{percentiles[98]:.2f}")
    table.text = (
        f"{ROUNDS * CHANGES} changes of an input, {PAUSE * 1000:.0f} ms after each other and by turns, in the document "
        "of an open session and under its lock, as a browser's are: until the pane's `object` is the answer, which was "
        "computed before. A view reads its arguments at the loop's next turn, so that several that change in one go "
        "are one change, and has what takes long done elsewhere; a bound function is called at once, and a miss of it "
        "holds up the loop."
    )
    return [table]
