"""Real daily prices, loaded into DuckDB by one task, summed up by others as soon as that is done."""

import panel as pn
from bokeh.models import ColumnDataSource, HoverTool, NumberFormatter
from bokeh.plotting import figure
from page import AMBER, BLUE, ROSE, TEAL, VIOLET, card, key, number, page, row, tile
from tasks.stocks import NEW_YORK, bell, growth, mover, prices, summary

pn.extension("tabulator")

TICKERS = {"AAPL": BLUE, "FB": AMBER, "GOOG": TEAL, "IBM": VIOLET, "MSFT": ROSE}

source = ColumnDataSource()
plot = figure(
    x_axis_type="datetime",
    sizing_mode="stretch_both",
    min_border_left=50,
    min_border_right=20,
    tools="",
    toolbar_location=None,
)
for ticker, color in TICKERS.items():
    line = plot.line("date", ticker, source=source, color=color, line_width=2)
plot.x_range.range_padding = 0
tooltips = [("", "@date{%e %B %Y}")] + [(ticker, f"@{ticker}{{0.0}}") for ticker in TICKERS]
plot.add_tools(HoverTool(tooltips=tooltips, formatters={"@date": "datetime"}, mode="vline", renderers=[line]))


def draw(frame) -> None:
    source.data = dict(frame.reindex(columns=["date", *TICKERS]))


def opening(next_run, rung) -> str:
    at = f"{next_run.astimezone(NEW_YORK):%A, %H:%M}" if next_run else "–"
    return number("New York opens", at, note=f"last rung {rung:%A, %H:%M}" if rung else "has not rung since the server started")


pn.bind(draw, growth, watch=True)
draw(growth())

table = pn.widgets.Tabulator(
    summary,
    disabled=True,
    show_index=False,
    sizing_mode="stretch_width",
    layout="fit_columns",
    titles={"ticker": "Stock", "close": "Close", "change": "Day", "year": "Year", "range": "Range of a year", "volume": "Volume"},
    formatters={
        "close": NumberFormatter(format="$0.00"),
        "change": NumberFormatter(format="+0.0 %"),
        "year": NumberFormatter(format="+0 %"),
        "range": {"type": "progress", "max": 100, "color": BLUE},
        "volume": NumberFormatter(format="0.0 a"),
    },
)

page(
    "stocks",
    "Stocks, played back",
    "A job loads a trading day every two seconds, as if it were a night; what depends on it follows, once for everybody.",
    row(
        tile(prices.view().pipe(lambda loaded: number("Trading day", f"{loaded.day:%-d %b %Y}", note=f"{loaded.rows:,} prices in DuckDB"))),
        tile(mover.view().pipe(lambda move: number("Biggest move", move[0], f"{move[1]:+.1%}")), task=mover),
        tile(pn.bind(opening, bell.view().param.next_run, bell)),
    ),
    row(
        card(
            pn.pane.Bokeh(plot, sizing_mode="stretch_both", min_height=300, styles={"height": "calc(100vh - 330px)"}, margin=0),
            title=key(TICKERS),
            task=growth,
        ),
        card(table, title="On this day", task=summary),
    ),
).servable()
