"""The best mix of stocks: a minute's search in a worker process, to be watched while it goes on, and kept for all."""

from datetime import UTC, datetime

import numpy as np
import panel as pn
import panel_material_ui as pmui
from bokeh.models import ColorBar, ColumnDataSource, HoverTool, LinearColorMapper, NumeralTickFormatter, Range1d
from bokeh.palettes import interp_palette
from bokeh.plotting import figure

from common.page import AMBER, BLUE, ROSE, TEAL, VIOLET, Ago, card, chart, key, number, page, row, side, stacked, tile
from tasks.portfolio import FALL, GAIN, RISK, WEIGHTS, Found, apart, optimise

pn.extension()

TICKERS = {"AAPL": BLUE, "FB": AMBER, "GOOG": TEAL, "IBM": VIOLET, "MSFT": ROSE}
GREY, ORANGE = "#94a3b8", "#ea580c"
PERCENT = NumeralTickFormatter(format="0 %")

METHOD = """
Daily closing prices of Quandl WIKI, as bokeh_sampledata has them, adjusted for splits and dividends. They end on
1 March 2013; those of FB begin on 18 May 2012.

**Return**: the mean of the simple daily returns, times 252. **Risk**: their standard deviation, times √252.
**Sharpe ratio**: return less the risk-free rate, by risk. A mix is brought back to its weights every day; none of them
is below 0, together they are 1.
"""

# ------------------------------------------------------------ the job

wide = {"sizing_mode": "stretch_width", "margin": (4, 16)}
stocks = pmui.CheckButtonGroup(
    options=list(TICKERS), value=["AAPL", "GOOG", "IBM", "MSFT"], size="small", **wide | {"margin": (12, 16)}
)
years = pmui.IntSlider(label="Years", value=8, start=1, end=13, **wide)
rate = pmui.FloatSlider(label="Risk-free rate, % a year", value=2, end=6, step=0.5, format="0.0", **wide)
millions = pmui.FloatSlider(
    label="Mixes to try, in millions", value=2.5, start=0.5, end=5, step=0.5, format="0.0", **wide
)

job = optimise.job(
    stocks, years, rate=rate.param.value.rx() / 100, mixes=pn.bind(lambda value: round(value * 1e6), millions)
)

# ------------------------------------------------------------ the charts

tried = ColumnDataSource({"risk": [], "gain": [], "fall": []})
frontier = ColumnDataSource({"risk": [], "gain": [], **{ticker: [] for ticker in TICKERS}})
alone = ColumnDataSource({"risk": [], "gain": [], "name": [], "color": []})
picks = ColumnDataSource({"risk": [], "gain": [], "name": []})
weights = ColumnDataSource({"ticker": [], "weight": [], "text": [], "color": []})

look = {
    "sizing_mode": "stretch_both",
    "tools": "",
    "toolbar_location": None,
    "min_border_left": 60,
    "min_border_right": 20,
}

space = figure(x_axis_label="Risk a year", y_axis_label="Return a year", **look)
space.x_range.range_padding = space.y_range.range_padding = 0.3
depth = LinearColorMapper(interp_palette([ORANGE, GREY], 64), low=-0.6, high=-0.4)
space.scatter("risk", "gain", source=tried, size=4, alpha=0.4, color={"field": "fall", "transform": depth})
space.line("risk", "gain", source=frontier, line_width=2.5, color=BLUE)
dots = space.scatter("risk", "gain", source=alone, size=11, color="color", line_color="white", line_width=1.5)
stars = space.scatter(
    "risk", "gain", source=picks, size=22, marker="star", color=AMBER, line_color="white", line_width=1.5
)
pill = {"text_font_size": "11px", "text_font_style": "bold", "text_color": "white", "padding": 4, "border_radius": 6}
space.text(
    "risk", "gain", "name", source=alone, y_offset=10, anchor="top_center", background_fill_color="color", **pill
)
space.text(
    "risk", "gain", "name", source=picks, y_offset=-12, anchor="bottom_center",
    background_fill_color="#b45309", **pill,
)  # fmt: skip
space.add_layout(ColorBar(color_mapper=depth, formatter=PERCENT, width=8, padding=6), "right")
space.add_tools(HoverTool(tooltips="<b>@name</b><br>risk @risk{0.0 %}, return @gain{0.0 %}", renderers=[dots, stars]))

bars = figure(y_range=[], x_range=Range1d(0, 1.3), outline_line_color=None, **look)
bars.hbar("ticker", right="weight", height=0.62, source=weights, color="color")
bars.text(
    "weight", "ticker", "text", source=weights, x_offset=6, text_baseline="middle", text_font_size="13px",
    text_color=GREY,
)  # fmt: skip
bars.xaxis.visible = False
bars.grid.visible = False

shares = figure(x_axis_label="Risk a year", x_range=Range1d(0.2, 0.4), y_range=Range1d(0, 1), **look)
shares.varea_stack(list(TICKERS), x="risk", source=frontier, color=list(TICKERS.values()), alpha=0.8)
shares.xaxis.ticker.desired_num_ticks = 4
for plot in (space, shares):
    plot.axis.formatter = PERCENT


class Drawn:
    """What is in the charts."""

    run, parts = None, 0


def begin() -> None:
    """Show each stock by itself, until there is more to show."""
    Drawn.run, Drawn.parts = job.run, 0
    for source in (tried, frontier, picks, weights):
        source.data = {name: [] for name in source.data}
    names = sorted(stocks.value)
    mixes = apart(names, years.value, rate.value / 100) if len(names) > 1 else []
    alone.data = {
        "risk": [mix.risk for mix in mixes],
        "gain": [mix.gain for mix in mixes],
        "name": names[: len(mixes)],
        "color": [TICKERS[name] for name in names[: len(mixes)]],
    }
    bars.y_range.factors = names[::-1]


def preview() -> None:
    if job.run is None:
        begin()


def draw() -> None:
    """Add the mixes that each partial result since the last time has brought; for all else the newest one will do."""
    parts = job.run.partials
    if job.run is not Drawn.run or len(parts) < Drawn.parts:
        begin()
    if not (new := parts[Drawn.parts :]):
        return
    Drawn.parts += len(new)
    rows = np.concatenate([part.drawn for part in new])
    tried.stream({"risk": rows[:, RISK], "gain": rows[:, GAIN], "fall": rows[:, FALL]})
    depth.update(low=min(tried.data["fall"]), high=max(tried.data["fall"]))
    found: Found = new[-1]
    risk, gain = found.frontier[:, RISK], found.frontier[:, GAIN]
    share = dict.fromkeys(TICKERS, np.zeros(len(risk)))
    share |= zip(found.tickers, found.frontier[:, WEIGHTS].T, strict=True)
    frontier.data = {"risk": risk, "gain": gain, **share}
    shares.x_range.update(start=risk[0], end=risk[-1])
    picks.data = {
        "risk": [found.best.risk, found.safest.risk],
        "gain": [found.best.gain, found.safest.gain],
        "name": ["Best", "Safest"],
    }
    weights.data = {
        "ticker": list(found.tickers),
        "weight": list(found.best.weights.values()),
        "text": [f"{100 * weight:.1f} %" for weight in found.best.weights.values()],
        "color": [TICKERS[ticker] for ticker in found.tickers],
    }


# Panel does not always hold the document's lock where a click ends up, and Bokeh's models insist on it.
pn.bind(lambda *_: pn.state.execute(preview), stocks, years, watch=True)
job.param.watch(lambda _: pn.state.execute(draw), "partial")
begin()

# ------------------------------------------------------------ the words


def heading(found: Found | None) -> str:
    if found is None:
        return key({}, "Each stock by itself. Start the search, and watch the mixes come.")
    first, last = (f"{day.day} {day:%B %Y}" for day in (found.first, found.last))
    return key({"Shallow falls": GREY, "Deep falls": ORANGE}, f"{first} to {last}, {found.days:,} returns")


def tell(found: Found | None, label: str, say) -> str:
    return number(label, *say(found)) if found else number(label, "...", note="after the search")


def sharpe(found: Found) -> tuple[str, str, str]:
    return f"{found.best.sharpe:.3f}", "", f"of {found.tried:,} mixes"


def gain(found: Found) -> tuple[str, str, str]:
    return f"{100 * found.best.gain:.1f}", "% a year", f"{100 * found.rate:.1f} % without risk"


def risk(found: Found) -> tuple[str, str, str]:
    return f"{100 * found.best.risk:.1f}", "% a year", f"safest mix {100 * found.safest.risk:.1f} %"


def fall(found: Found) -> tuple[str, str, str]:
    return f"{-100 * found.best.fall:.1f}", "%", f"and $1 became ${found.best.growth:.2f}"


def origin(state: str) -> dict:
    """Whose computation it is, and how old: only what the run's own times tell."""
    run, age = job.run, 0.0
    text = "A result is kept for an hour: who asks for the same finds it, or joins the search that is under way."
    if run and run.started_at:
        joined = run.started_at < run.queued_at
        if state == "running":
            text = "It was under way already: you have joined it." if joined else "Who asks for the same now joins in."
        elif state == "succeeded":
            age = (datetime.now(UTC) - run.finished_at).total_seconds()
            if run.finished_at <= run.queued_at:
                text = "Served at once: it was computed {}, for everybody who asks for the same within the hour."
            elif joined:
                text = "Computed {}. You had joined a search that was under way."
            else:
                text = "Computed {}, and for an hour for everybody who asks for the same."
        elif state == "cancelled":
            text = "What was found until then stays on this page. It is not kept."
    return {"text": text, "age": age}


# ------------------------------------------------------------ the page

job.run_button.param.update(name="Search", sizing_mode="stretch_width", margin=(6, 4, 6, 16))
job.cancel_button.param.update(button_style="outline", sizing_mode="stretch_width", margin=(6, 16, 6, 4))
tiles = {"Highest Sharpe ratio": sharpe, "Return of the best mix": gain, "Its risk": risk, "Its deepest fall": fall}
controls = card(
    stocks,
    years,
    rate,
    millions,
    row(job.run_button, job.cancel_button),
    pn.Column(job.progress, margin=(4, 6), sizing_mode="stretch_width"),
    Ago(told=pn.bind(origin, job.param.state), sizing_mode="stretch_width", margin=(0, 16, 12, 16)),
    pn.pane.Markdown(
        METHOD, sizing_mode="stretch_width", margin=(0, 16), styles={"font-size": "12px", "opacity": "0.7"}
    ),
    sizing_mode="stretch_both",
    min_height=620,
    sx={"overflow": "auto"},
)

page(
    "portfolio",
    "The best mix of stocks",
    "A search that takes a minute of computing, in a process of its own: no page waits for it, and it can be stopped.",
    stacked(
        side(controls, 330),
        pmui.Column(
            stacked(*(tile(pn.bind(tell, job.param.partial, label, say)) for label, say in tiles.items()), share=40),
            stacked(
                card(
                    chart(space), title=pn.bind(heading, job.param.partial), sizing_mode="stretch_both", min_height=380
                ),
                side(
                    pmui.Column(
                        card(chart(bars), title="The best mix", sizing_mode="stretch_both", min_height=210),
                        card(
                            chart(shares),
                            title="All mixes on the line, by risk",
                            sizing_mode="stretch_both",
                            min_height=210,
                        ),
                        sizing_mode="stretch_both",
                    ),
                    320,
                ),
                sizing_mode="stretch_both",
            ),
            sizing_mode="stretch_both",
        ),
        sizing_mode="stretch_both",
    ),
).servable()
