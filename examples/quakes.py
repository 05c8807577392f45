"""The earthquakes of the last 24 hours, fetched once a minute for everybody."""

import json

import pandas as pd
import panel as pn
import panel_material_ui as pmui
from bokeh.models import ColumnDataSource, HoverTool, NumberFormatter, Range1d
from bokeh.plotting import figure

from common.page import AMBER, BLUE, ROSE, card, chart, key, number, page, row, table, tile
from tasks.quakes import DATA, Feed, quakes

pn.extension("tabulator")

DEPTHS = {"less than 70 km deep": ROSE, "to 300 km": AMBER, "deeper": BLUE}
WEST = -30  # the left edge of the map, so that the Pacific is in its middle

source = ColumnDataSource({"x": [], "latitude": [], "size": [], "color": []})
plot = figure(
    sizing_mode="stretch_both",
    x_range=Range1d(WEST, WEST + 360, bounds="auto"),
    y_range=Range1d(-60, 84, bounds="auto"),
    tools="pan,wheel_zoom",
    active_scroll="wheel_zoom",
    toolbar_location=None,
)
plot.axis.visible = False
land = json.loads((DATA / "land.json").read_text())["polygons"]
for shift in (0, 360):
    plot.multi_polygons(
        [[[[x + shift for x, _ in ring] for ring in polygon] for polygon in land]],
        [[[[y for _, y in ring] for ring in polygon] for polygon in land]],
        color="#64748b",
        alpha=0.25,
        line_color=None,
    )
dots = plot.scatter("x", "latitude", size="size", color="color", alpha=0.6, source=source)
plot.add_tools(HoverTool(tooltips="<b>M @mag{0.0}</b> @place<br>@depth{0} km deep, @ago", renderers=[dots]))


def chosen(feed: Feed, least: float) -> pd.DataFrame:
    """The events of at least that magnitude, with what the map and the table want to know."""
    events = feed.events[feed.events["mag"] >= least]
    minutes = (pd.Timestamp.now("UTC") - events["time"]).dt.total_seconds() // 60
    return events.assign(
        ago=[f"{m:.0f} min ago" if m < 60 else f"{m // 60:.0f} h ago" for m in minutes],
        x=(events["longitude"] - WEST) % 360 + WEST,
        size=4 + events["mag"].clip(0) ** 2,
        color=pd.cut(events["depth"], [-10, 70, 300, 1000], labels=list(DEPTHS.values())).astype(str),
    ).drop(columns=["time", "longitude"])


def count(feed: Feed) -> str:
    return number("Earthquakes", f"{len(feed.events)}", note=feed.title)


def strongest(feed: Feed) -> str:
    event = feed.events.loc[feed.events["mag"].idxmax()]
    return number("Strongest", f"M {event.mag:.1f}", note=event.place)


def latest(feed: Feed) -> str:
    event = feed.events.loc[0]
    return number("Latest", f"M {event.mag:.1f}", note=event.place)


view = quakes.view()
least = pmui.FloatSlider(label="Magnitude at least", end=6, step=0.5, sizing_mode="stretch_width", margin=(17, 20))
events = table(
    view.pipe(chosen, least),
    pagination="local",
    sizing_mode="stretch_both",
    hidden_columns=["latitude", "x", "size", "color"],
    titles={"mag": "M", "place": "Where", "depth": "km deep", "ago": "When"},
    formatters={"mag": NumberFormatter(format="0.0"), "depth": NumberFormatter(format="0")},
    text_align=dict.fromkeys(["mag", "depth", "ago"], "right"),
    header_align=dict.fromkeys(["mag", "depth", "ago"], "right"),
    widths={"mag": 55, "depth": 75, "ago": 95},
)
events.param.watch(lambda event: source.update(data=dict(event.new)), "value")  # the map shows what the table shows

page(
    "quakes",
    "Earthquakes of the last 24 hours",
    "The feed of the US Geological Survey, fetched once a minute however many look on.",
    pmui.Alert(
        title="The feed cannot be reached from here. These are made-up events in its format, served by this machine.",
        severity="warning",
        visible=pn.bind(lambda feed: bool(feed and feed.sample), quakes),
        sx={"py": 0, "alignItems": "center", "& .MuiAlertTitle-root": {"fontSize": 14, "mb": 0}},
        margin=6,
        sizing_mode="stretch_width",
    ),
    row(
        tile(view.pipe(count)),
        tile(view.pipe(strongest)),
        tile(view.pipe(latest)),
        card(least),
    ),
    row(
        card(chart(plot), title=key(DEPTHS), task=quakes, sizing_mode="stretch_both"),
        card(events, title="Newest first", width=470, sizing_mode="stretch_height"),
        sizing_mode="stretch_both",
    ),
).servable()
