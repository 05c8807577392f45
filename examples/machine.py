"""This machine, live: sampled once a second on the server, however many look on."""

from typing import Any

import panel as pn
import psutil
from bokeh.models import CustomJS, CustomJSTickFormatter, DataRange1d, Range1d
from bokeh.plotting import figure

from common.page import AMBER, BLUE, TEAL, VIOLET, card, chart, key, number, page, row, tile
from tasks.machine import WINDOW, machine

pn.extension()

CORES, MEMORY = psutil.cpu_count(), psutil.virtual_memory().total / 2**30

CLOCK = "return new Date(tick).toLocaleTimeString([], {hourCycle: 'h23'})"
PERCENT = "return `${tick} %`"
BYTES = """
    const bytes = Math.abs(tick)
    return bytes >= 1e6 ? `${bytes / 1e6} MB/s` : bytes >= 1e3 ? `${bytes / 1e3} kB/s` : `${bytes} B/s`
"""

# Each page gets a row a second, and not the ten minutes.
source = machine.stream(["time", "cpu", "memory", "in", "out"], rollover=WINDOW)
time = DataRange1d(follow="end", range_padding=0)  # keeps to the newest sample, until the visitor looks elsewhere


def history(lines: dict[str, str], y_range: Range1d | DataRange1d, unit: str) -> figure:
    plot = figure(
        x_axis_type="datetime",
        x_range=time,
        y_range=y_range,
        sizing_mode="stretch_both",
        min_border_left=70,
        min_border_right=20,
        tools="xpan,xwheel_zoom",
        active_scroll="xwheel_zoom",
        toolbar_location=None,
    )
    for field, color in lines.items():
        plot.varea("time", 0, field, source=source, color=color, alpha=0.15)
        plot.line("time", field, source=source, color=color, line_width=2)
    plot.xaxis.formatter = CustomJSTickFormatter(code=CLOCK)
    plot.yaxis.formatter = CustomJSTickFormatter(code=unit)
    plot.js_on_event("doubletap", CustomJS(args={"plot": plot}, code="plot.reset.emit()"))
    return plot


def cpu(samples: dict[str, list[Any]]) -> str:
    return number("CPU", f"{samples['cpu'][-1]:.0f}", "%", f"of {CORES} cores")


def memory(samples: dict[str, list[Any]]) -> str:
    return number("Memory", f"{samples['memory'][-1]:.0f}", "%", f"of {MEMORY:.0f} GB")


def rate(samples: dict[str, list[Any]], label: str, name: str) -> str:
    rates = [abs(each) / 1e3 for each in samples[name]]
    return number(label, f"{rates[-1]:,.1f}", "kB/s", f"at most {max(rates):,.0f} kB/s in ten minutes")


view = machine.view()

page(
    "machine",
    "This machine, live",
    "One sample a second, for every open page. Drag or scroll a chart to look back, double-click to follow again.",
    row(
        tile(view.pipe(cpu)),
        tile(view.pipe(memory)),
        tile(view.pipe(rate, "Network in", "in")),
        tile(view.pipe(rate, "Network out", "out")),
    ),
    card(
        chart(history({"cpu": BLUE, "memory": VIOLET}, Range1d(0, 100), PERCENT)),
        title=key({"CPU": BLUE, "Memory": VIOLET}),
        task=machine,
        sizing_mode="stretch_both",
    ),
    card(
        chart(history({"in": TEAL, "out": AMBER}, DataRange1d(only_visible=True), BYTES)),
        title=key({"In": TEAL, "Out": AMBER}),
        sizing_mode="stretch_both",
    ),
).servable()
