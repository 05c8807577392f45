"""This machine, live: sampled once a second on the server, however many look on."""

import panel as pn
import psutil
from bokeh.models import ColumnDataSource, CustomJSTickFormatter, DataRange1d, Range1d
from bokeh.plotting import figure
from page import AMBER, BLUE, TEAL, VIOLET, card, key, page, tile, tiles
from tasks.machine import WINDOW, Sample, machine

pn.extension()

CLOCK = CustomJSTickFormatter(code="return new Date(tick).toLocaleTimeString([], {hourCycle: 'h23'})")
BYTES = CustomJSTickFormatter(code="""
    const bytes = Math.abs(tick)
    return bytes >= 1e6 ? bytes / 1e6 + " MB" : bytes >= 1e3 ? bytes / 1e3 + " kB" : bytes
""")

source = ColumnDataSource({field: [] for field in Sample._fields})


def draw(samples: tuple[Sample, ...]) -> None:
    """Stream what came after the last sample drawn: a view may skip versions, and misses nothing."""
    drawn = source.data["time"]
    new = [sample for sample in samples if not drawn or sample.time > drawn[-1]]
    if new:
        source.stream(dict(zip(Sample._fields, map(list, zip(*new)), strict=True)), rollover=WINDOW)


def chart(lines: dict[str, str], y_range: Range1d, y_format) -> pn.pane.Bokeh:
    plot = figure(
        x_range=time, y_range=y_range, height=230, sizing_mode="stretch_width", min_border_left=60, toolbar_location=None,
        tools="xpan,xwheel_zoom", active_scroll="xwheel_zoom",
    )  # fmt: skip
    for field, color in lines.items():
        plot.varea("time", 0, field, source=source, color=color, alpha=0.15)
        plot.line("time", field, source=source, color=color, line_width=2)
    plot.xaxis.formatter, plot.yaxis.formatter = CLOCK, y_format
    return pn.pane.Bokeh(plot, sizing_mode="stretch_width")


def rate(label: str, now: float, most: float) -> str:
    return tile(label, f"{now / 1e3:,.1f}", "kB/s", f"at most {most / 1e3:,.0f} kB/s in ten minutes")


# It follows the newest sample, until the visitor pans or zooms.
time = DataRange1d(follow="end", range_padding=0)

view = machine.view()
draw(view.value)
view.param.watch(lambda event: draw(event.new), "value")

page(
    "machine",
    "This machine, live",
    "One sample a second, taken once on the server and pushed to every open page. Drag and scroll to look back.",
    tiles(
        view.pipe(lambda all: tile("CPU", f"{all[-1].cpu:.0f}", "%", f"of {psutil.cpu_count()} cores")),
        view.pipe(lambda all: tile("Memory", f"{all[-1].memory:.0f}", "%", f"of {psutil.virtual_memory().total / 2**30:.0f} GB")),
        view.pipe(lambda all: rate("Network in", all[-1].download, max(sample.download for sample in all))),
        view.pipe(lambda all: rate("Network out", all[-1].upload, max(sample.upload for sample in all))),
    ),
    card(chart({"cpu": BLUE, "memory": VIOLET}, Range1d(0, 100), "0"), title=key(CPU=BLUE, Memory=VIOLET), task=machine),
    card(chart({"download": TEAL, "upload": AMBER}, DataRange1d(only_visible=True), BYTES), title=key(In=TEAL, Out=AMBER)),
).servable()
