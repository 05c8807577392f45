"""The earthquakes of the last 24 hours, fetched once a minute for everybody."""

import json

import pandas as pd
import panel as pn
import panel_material_ui as pmui
from bokeh.models import ColumnDataSource, HoverTool, NumberFormatter, Range1d
from bokeh.plotting import figure
from page import AMBER, BLUE, ROSE, card, key, number, page, row, tile
from tasks.quakes import DATA, Feed, quakes

pn.extension("tabulator")

DEPTHS = {"less than 70 km deep": ROSE, "to 300 km": AMBER, "deeper": BLUE}
WEST = -30  # the left edge of the map, so that the Pacific is in its middle

source = ColumnDataSource({"x": [], "latitude": [], "size": [], "color": []})
plot = figure(
    sizing_mode="stretch_both",
    x_range=Range1d(WEST, WEST + 360, bounds="auto"),
    y_range=Range1d(-62, 84, bounds="auto"),
    tools="pan,wheel_zoom",
    active_scroll="wheel_zoom",
    toolbar_location=None,
)
plot.axis.visible = False
land = json.loads((DATA / "land.geojson").read_text())["geometry"]["coordinates"]
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
    )


def draw(events: pd.DataFrame) -> None:
    source.data = dict(events)


view = quakes.view()
least = pmui.FloatSlider(label="Magnitude at least", start=0, end=6, step=0.5, value=0, sizing_mode="stretch_width")
events = view.pipe(chosen, least)
pn.bind(draw, events, watch=True)
draw(chosen(view.value, 0))

table = pn.widgets.Tabulator(
    events,
    disabled=True,
    show_index=False,
    pagination="local",
    page_size=12,
    hidden_columns=["time", "longitude", "latitude", "x", "size", "color"],
    titles={"mag": "M", "place": "Where", "depth": "Depth, km", "ago": "When"},
    formatters={"mag": NumberFormatter(format="0.0"), "depth": NumberFormatter(format="0")},
    widths={"mag": 60, "depth": 90, "ago": 90},
    layout="fit_columns",
    sizing_mode="stretch_width",
)


def strongest(feed: Feed) -> str:
    event = feed.events.loc[feed.events["mag"].idxmax()]
    return number("Strongest", f"M {event.mag:.1f}", note=event.place)


def latest(feed: Feed) -> str:
    event = feed.events.loc[0]
    return number("Latest", f"M {event.mag:.1f}", note=event.place)


page(
    "quakes",
    "Earthquakes of the last 24 hours",
    "The feed of the US Geological Survey, fetched once a minute however many look on.",
    pmui.Alert(
        "The feed cannot be reached from here. These are made-up events in its format, served on this machine.",
        severity="warning",
        visible=view.pipe(lambda feed: feed.sample),
        margin=6,
        sizing_mode="stretch_width",
    ),
    row(
        tile(view.pipe(lambda feed: number("Earthquakes", f"{len(feed.events)}", note=feed.title))),
        tile(view.pipe(strongest)),
        tile(view.pipe(latest)),
        card(least),
    ),
    row(
        card(
            pn.pane.Bokeh(plot, sizing_mode="stretch_both", min_height=300, styles={"height": "calc(100vh - 380px)"}, margin=0),
            title=key(DEPTHS),
            task=quakes,
        ),
        card(table, title="Newest first"),
    ),
).servable()
