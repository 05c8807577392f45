"""What a timeline of 50,000 runs costs a server's event loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta

from bokeh.document import Document
from bokeh.protocol import Protocol

from panel_schedule.functions.run import RunRecord, RunState
from panel_schedule.monitor.timeline import Bars, Timeline, arrange, as_numbers

from .fresh import fresh
from .stalls import Beat
from .table import Table, middle, verdict

RUNS = 50_000
FUNCTIONS = 500
FAILS = 0.02
ROUNDS = 5
LIMIT = 20.0
START = datetime(2026, 1, 1, tzinfo=UTC)


def records() -> dict[str, list[RunRecord]]:
    """Runs of a day, by function."""
    chance, found = random.Random(1), defaultdict[str, list[RunRecord]](list)
    for number in range(RUNS):
        at = START + timedelta(seconds=chance.random() * 86_400)
        end = at + timedelta(seconds=chance.choice([0.01, 0.2, 3, 30]))
        fails = chance.random() < FAILS
        state, error = (RunState.FAILED, "ValueError: no") if fails else (RunState.SUCCEEDED, "")
        found[f"task {number % FUNCTIONS}"].append(RunRecord(f"r{number}", at, state, 1, at, at, end, error))
    return found


class Page:
    """A page with a timeline, and what becomes of its changes in Bokeh's server."""

    def __init__(self) -> None:
        self.timeline, self.document = Timeline(span="day"), Document()
        self.document.add_root(self.timeline._figure)
        self.events: list[object] = []
        self.document.on_change(self.events.append)

    def update(self, bars: Bars) -> tuple[float, float]:
        """Milliseconds until it is ready to be sent, and kilobytes."""
        self.events.clear()
        began = time.perf_counter()
        self.timeline.update(bars)
        size = 0
        for event in self.events:
            message = Protocol().create("PATCH-DOC", [event])
            size += len(message.content_json) + sum(len(buffer.to_bytes()) for buffer in message.buffers)
        return (time.perf_counter() - began) * 1e3, size / 1000


def measure() -> dict[str, float]:
    """Milliseconds, and kilobytes, by row."""
    histories, page, day, end = records(), Page(), timedelta(days=1), START + timedelta(days=1)
    found: dict[str, float] = {}
    began = time.perf_counter()
    runs = [(name, "task", as_numbers(history)) for name, history in histories.items()]
    found["numbers"] = (time.perf_counter() - began) * 1e3

    async def main() -> None:
        beat = Beat()
        beating = asyncio.create_task(beat.beat())
        bars: list[Bars] = []

        async def aside() -> None:
            bars.append(await asyncio.to_thread(arrange, runs, end - day, end, admin=True))

        began = time.perf_counter()
        found["stall"] = await beat.around(aside)
        found["arrange"] = (time.perf_counter() - began) * 1e3 - 60  # without what `around` waits
        found["bars"] = len(bars[0].keys)
        found["first"], found["first size"] = page.update(bars[0])
        later = end + timedelta(seconds=1)
        done = {"started_at": later, "finished_at": later}
        more = [
            (name, "task", as_numbers([RunRecord(f"new {name}", later, RunState.SUCCEEDED, **done)]))
            for name in bars[0].rows[-5:]
        ]
        found["step"], found["step size"] = page.update(arrange([*runs, *more], later - day, later, admin=True))
        beating.cancel()

    asyncio.run(main())
    return found


def tables() -> list[Table]:
    rounds = [fresh(measure) for _ in range(ROUNDS)]
    table = Table(f"A timeline of {RUNS:,} runs", ["what", "ms", "kB"])
    rows = {
        "on a thread: what is kept of all histories, once": ("numbers", "", False),
        "on a thread: the bars of all runs": ("arrange", "", False),
        "the loop meanwhile: longest stall": ("stall", "", True),
        f"on the loop: {round(rounds[0]['bars']):,} bars for a new page": ("first", "first size", True),
        "on the loop: 5 more runs a second later": ("step", "step size", True),
    }
    for what, (name, size, limited) in rows.items():
        values = [each[name] for each in rounds]
        table.add(
            what,
            middle(values),
            f"{rounds[0][size]:.0f}" if size else "",
            must=f"< {LIMIT:g} ms" if limited else "",
            met=verdict(median=sorted(values)[ROUNDS // 2] < LIMIT, worst=max(values) < LIMIT) if limited else "",
        )
    table.text = (
        f"{FUNCTIONS} tasks in a day, of whose runs {FAILS:.0%} fail. On the loop is what a session costs there, with "
        f"Bokeh's messages made, before they are compressed. {ROUNDS} rounds in fresh processes; medians, with the "
        "least and the most."
    )
    return [table]
