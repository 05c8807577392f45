"""The way in: what the examples are about, each with a number."""

from typing import Any

import panel as pn
import panel_material_ui as pmui

import panel_schedule as ps
from common.page import PAGES, card, live, number, page, stacked
from tasks.explorer import EXECUTIONS, executions
from tasks.machine import machine
from tasks.portfolio import optimise
from tasks.quakes import Feed, quakes
from tasks.stocks import Loaded, prices

pn.extension()


def cpu(samples: dict[str, list[Any]]) -> str:
    return number("CPU", f"{samples['cpu'][-1]:.0f}", "%", f"memory {samples['memory'][-1]:.0f} %")


def day(loaded: Loaded) -> str:
    return number("Trading day", f"{loaded.day.day} {loaded.day:%b %Y}", note=f"{loaded.rows:,} prices")


def count(feed: Feed) -> str:
    return number("Earthquakes", f"{len(feed.events)}", note=feed.title)


def best() -> str:
    """Of the last search that came to its end, whoever asked for it."""
    for run in optimise.runs():
        if run.state == "succeeded":
            found = run.value
            return number("Highest Sharpe ratio", f"{found.best.sharpe:.3f}", note=f"of {', '.join(found.tickers)}")
    return number("Highest Sharpe ratio", "...", note="nobody has searched yet")


def computed(_: object) -> str:
    return number("Queries", f"{executions()}", note="shared by all visitors")


def door(path: str, text: str, content) -> pmui.Paper:
    return card(
        pmui.Typography(PAGES[path], variant="h6", margin=(14, 14, 4, 14)),
        pmui.Typography(text, variant="body2", margin=(0, 14), sizing_mode="stretch_width", sx={"opacity": 0.75}),
        live(content),
        pmui.Button(name="Open", href=path, target="_self", variant="outlined", margin=(4, 14, 16, 14)),
    )


page(
    "",
    "Once on the server, live for everyone",
    "Each example has its tasks in a module of its own. They run on schedules or on request, for all visitors at once.",
    stacked(
        door(
            "machine",
            "CPU, memory and network of the server, sampled once a second. "
            "The charts are streamed, and stay where you zoom them.",
            machine.view().pipe(cpu),
        ),
        door(
            "stocks",
            "Daily prices are loaded into DuckDB, and summed up as soon as that is done. "
            "One of the sources keeps failing: its last value stays.",
            prices.view().pipe(day),
        ),
        door(
            "quakes",
            "An async task fetches the earthquakes of the last 24 hours, onto a map and into a table. "
            "What one visitor filters out stays there for the others.",
            quakes.view().pipe(count),
        ),
        door(
            "portfolio",
            "A minute's search runs in a process of its own, drawn as it goes on. "
            "Who asks for the same joins it, or finds its result.",
            best(),
        ),
        door(
            "explorer",
            "Filters over 1.5 million rows in DuckDB. Who asks for the same as somebody else before shares the answer, "
            "and a dragged slider asks twice.",
            pn.bind(computed, ps.store.rx(EXECUTIONS)),
        ),
        share=40,
    ),
).servable()
