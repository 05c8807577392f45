"""This machine, live: sampled once a second on the server, however many look on."""

import panel as pn
import psutil
from bokeh.models import ColumnDataSource, CustomJSTickFormatter, DataRange1d, HoverTool, NumeralTickFormatter, Range1d
from bokeh.plotting import figure
from page import card, page, row, tile, tiles
from tasks.machine import WINDOW, Sample, machine

import panel_schedule as ps

pn.extension()

BLUE, VIOLET, TEAL, AMBER = "#3b82f6", "#a855f7", "#14b8a6", "#f59e0b"
CLOCK = "return new Date(tick).toLocaleTimeString([], {hourCycle: 'h23'})"  # the visitor's own time

source = ColumnDataSource({field: [] for field in Sample._fields})


def draw(samples: tuple[Sample, ...]) -> None:
    """Stream what came after the last sample drawn: a view that is busy skips versions, but misses nothing."""
    drawn = source.data["time"]
    new = [sample for sample in samples if not drawn or sample.time > drawn[-1]]
    if new:
        source.stream(dict(zip(Sample._fields, map(list, zip(*new)))), rollover=WINDOW)


def chart(lines: dict[str, tuple[str, str]], y_range, y_format: str, x_range) -> figure:
    plot = figure(
        height=230, sizing_mode="stretch_width", x_range=x_range, y_range=y_range,
        tools="xpan,xwheel_zoom,reset", active_drag="xpan", active_scroll="xwheel_zoom", toolbar_location=None,
    )
    for field, (label, color) in lines.items():
        plot.varea("time", 0, field, source=source, color=color, alpha=0.12)
        plot.line("time", field, source=source, color=color, line_width=2, legend_label=label)
    plot.xaxis.formatter = CustomJSTickFormatter(code=CLOCK)
    plot.yaxis.formatter = NumeralTickFormatter(format=y_format)
    plot.legend.location, plot.legend.orientation = "top_left", "horizontal"
    return plot


# Follows the newest sample until the visitor pans or zooms; a double click follows again.
time = DataRange1d(follow="end", range_padding=0)
load = chart({"cpu": ("CPU", BLUE), "memory": ("Memory", VIOLET)}, Range1d(0, 100), "0", time)
network = chart({"download": ("In", TEAL), "upload": ("Out", AMBER)}, DataRange1d(start=0, only_visible=True), "0 b", time)

view = machine.view()
draw(view.value)
view.param.watch(lambda event: draw(event.new), "value")

page(
    "machine",
    "This machine, live",
    "One sample a second, taken once on the server and pushed to every open page.",
    tiles(
        view.pipe(lambda samples: tile("CPU", f"{samples[-1].cpu:.0f}", "%", f"{psutil.cpu_count()} cores")),
        view.pipe(lambda samples: tile("Memory", f"{samples[-1].memory:.0f}", "%")),
        view.pipe(lambda samples: tile("Network in", f"{samples[-1].download / 1024:,.0f}", "KB/s")),
        view.pipe(lambda samples: tile("Network out", f"{samples[-1].upload / 1024:,.0f}", "KB/s")),
    ),
    card(pn.pane.Bokeh(load, sizing_mode="stretch_width"), title="CPU and memory, %"),
    card(pn.pane.Bokeh(network, sizing_mode="stretch_width"), title="Network, bytes per second"),
    ps.Freshness(machine),
).servable()
