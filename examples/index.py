"""The way in: what the examples are about, each with a number that is alive."""

import panel as pn
import panel_material_ui as pmui

from page import card, live, number, page, row
from tasks.machine import machine
from tasks.quakes import quakes
from tasks.stocks import prices

pn.extension()


def door(path: str, title: str, text: str, content) -> pmui.Paper:
    return card(
        pmui.Typography(title, variant="h6", margin=(14, 14, 4, 14)),
        pmui.Typography(text, variant="body2", margin=(0, 14), sizing_mode="stretch_width", sx={"opacity": 0.75}),
        live(content),
        pmui.Button(name="Open", href=path, target="_self", variant="outlined", margin=(4, 14, 16, 14)),
    )


page(
    "",
    "Once on the server, live for everyone",
    "Each example has its tasks in a module of its own. They run on their schedules, however many visitors there are.",
    row(
        door(
            "machine",
            "Machine",
            "CPU, memory and network of the server, sampled once a second. The charts are streamed, and stay where you zoom them.",
            machine.view().pipe(lambda samples: number("CPU", f"{samples[-1].cpu:.0f}", "%", note=f"memory {samples[-1].memory:.0f} %")),
        ),
        door(
            "stocks",
            "Stocks",
            "Daily prices are loaded into DuckDB, and summed up as soon as that is done. One of the sources keeps failing: its last value stays.",
            prices.view().pipe(lambda loaded: number("Trading day", f"{loaded.day:%-d %B %Y}", note=f"{loaded.rows:,} prices")),
        ),
        door(
            "quakes",
            "Quakes",
            "An async task fetches the earthquakes of the last 24 hours, on a map and in a table. What one visitor filters out stays there for the others.",
            quakes.view().pipe(lambda feed: number("Earthquakes", f"{len(feed.events)}", note=feed.title)),
        ),
    ),
).servable()
