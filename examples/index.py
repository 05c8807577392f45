"""The way in: what the examples are about, each with a number that is alive."""

import panel as pn
import panel_material_ui as pmui

import panel_schedule as ps
from common.page import PAGES, card, live, number, page, row
from tasks.machine import Sample, machine
from tasks.quakes import Feed, quakes
from tasks.stocks import Loaded, prices

pn.extension()


def cpu(samples: tuple[Sample, ...]) -> str:
    return number("CPU", f"{samples[-1].cpu:.0f}", "%", f"memory {samples[-1].memory:.0f} %")


def day(loaded: Loaded) -> str:
    return number("Trading day", f"{loaded.day.day} {loaded.day:%B %Y}", note=f"{loaded.rows:,} prices")


def count(feed: Feed) -> str:
    return number("Earthquakes", f"{len(feed.events)}", note=feed.title)


def door(path: str, text: str, task: ps.Task, show) -> pmui.Paper:
    return card(
        pmui.Typography(PAGES[path], variant="h6", margin=(14, 14, 4, 14)),
        pmui.Typography(text, variant="body2", margin=(0, 14), sizing_mode="stretch_width", sx={"opacity": 0.75}),
        live(task.view().pipe(show)),
        pmui.Button(name="Open", href=path, target="_self", variant="outlined", margin=(4, 14, 16, 14)),
    )


page(
    "",
    "Once on the server, live for everyone",
    "Each example has its tasks in a module of its own. They run on their schedules, however many visitors there are.",
    row(
        door(
            "machine",
            "CPU, memory and network of the server, sampled once a second. "
            "The charts are streamed, and stay where you zoom them.",
            machine,
            cpu,
        ),
        door(
            "stocks",
            "Daily prices are loaded into DuckDB, and summed up as soon as that is done. "
            "One of the sources keeps failing: its last value stays.",
            prices,
            day,
        ),
        door(
            "quakes",
            "An async task fetches the earthquakes of the last 24 hours, onto a map and into a table. "
            "What one visitor filters out stays there for the others.",
            quakes,
            count,
        ),
    ),
).servable()
