"""Real daily prices, loaded into DuckDB by one task, summed up by others as soon as that is done."""

from datetime import datetime

import panel as pn
from bokeh.models import ColumnDataSource, HoverTool, HTMLTemplateFormatter, NumberFormatter
from bokeh.plotting import figure

from common.page import AMBER, BLUE, ROSE, TEAL, VIOLET, card, chart, follow, key, number, page, row, table, tile
from tasks.stocks import NEW_YORK, Loaded, bell, growth, mover, prices, summary

pn.extension("tabulator")

TICKERS = {"AAPL": BLUE, "FB": AMBER, "GOOG": TEAL, "IBM": VIOLET, "MSFT": ROSE}

source = ColumnDataSource({field: [] for field in ("date", *TICKERS)})
plot = figure(
    x_axis_type="datetime",
    sizing_mode="stretch_both",
    min_border_left=70,
    min_border_right=20,
    tools="",
    toolbar_location=None,
)
plot.x_range.range_padding = 0
for ticker, color in TICKERS.items():
    line = plot.line("date", ticker, source=source, color=color, line_width=2)
plot.add_tools(
    HoverTool(
        tooltips=[("", "@date{%e %B %Y}"), *((ticker, f"@{ticker}{{0.0}}") for ticker in TICKERS)],
        formatters={"@date": "datetime"},
        mode="vline",
        renderers=[line],
    )
)


def draw(frame) -> None:
    source.data = dict(frame.reindex(columns=list(source.data)))  # a stock that is not yet there is an empty line


def day(loaded: Loaded) -> str:
    return number("Trading day", f"{loaded.day.day} {loaded.day:%B %Y}", note=f"{loaded.rows:,} prices in DuckDB")


def move(biggest: tuple[str, float]) -> str:
    ticker, change = biggest
    return number("Biggest move", ticker, f"{change:+.1%}")


def opening(next_run: datetime | None, rung: datetime | None) -> str:
    soon = f"{next_run.astimezone(NEW_YORK):%A, %H:%M}" if next_run else ""
    return number("New York opens", soon, note=f"the last bell was on {rung:%A}" if rung else "no bell so far")


follow(growth, draw)

signed = HTMLTemplateFormatter(
    template="""<span style="color: <%= value < 0 ? '#dc2626' : '#16a34a' %>">
        <%= value < 0 ? '' : '+' %><%= (100 * value).toFixed(1) %> %</span>"""
)
stocks = table(
    summary,
    titles={
        "ticker": "Stock",
        "close": "Close",
        "change": "Day",
        "year": "Year",
        "range": "Between the year's low and high",
        "volume": "Volume",
    },
    formatters={
        "close": NumberFormatter(format="$0.00"),
        "change": signed,
        "year": signed,
        "range": {"type": "progress", "max": 100, "color": BLUE},
        "volume": NumberFormatter(format="0,0"),
    },
    text_align=dict.fromkeys(["close", "change", "year", "volume"], "right"),
    header_align=dict.fromkeys(["close", "change", "year", "volume"], "right"),
    widths={"range": "35%"},
)

page(
    "stocks",
    "Stocks, played back",
    "Real prices of 2012 and 2013. A job loads another day every two seconds, and what depends on it follows at once.",
    row(
        tile(prices.view().pipe(day)),
        tile(mover.view().pipe(move), task=mover),
        tile(pn.bind(opening, bell.view().param.next_run, bell)),
    ),
    card(chart(plot), title=key(TICKERS, "a year ago = 100"), task=growth, sizing_mode="stretch_both"),
    card(stocks, title="The day", task=summary),
).servable()
