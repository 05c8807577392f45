"""Real daily prices, loaded into DuckDB by one task, summed up by others as soon as that is done."""

import panel as pn
from bokeh.models import ColumnDataSource, HoverTool, HTMLTemplateFormatter, NumberFormatter
from bokeh.plotting import figure

from page import AMBER, BLUE, ROSE, TEAL, VIOLET, card, chart, follow, key, number, page, row, table, tile
from tasks.stocks import NEW_YORK, bell, growth, mover, prices, summary

pn.extension("tabulator")

TICKERS = {"AAPL": BLUE, "FB": AMBER, "GOOG": TEAL, "IBM": VIOLET, "MSFT": ROSE}
SIGNED = "<span style='color: <%= value < 0 ? \"#dc2626\" : \"#16a34a\" %>'><%= value < 0 ? \"\" : \"+\" %><%= (100 * value).toFixed(1) %> %</span>"

source = ColumnDataSource({field: [] for field in ("date", *TICKERS)})
plot = figure(
    x_axis_type="datetime",
    sizing_mode="stretch_both",
    min_border_left=70,
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
    source.data = dict(frame.reindex(columns=list(source.data)))


follow(growth, draw)


def opening(next_run, rung) -> str:
    soon = f"{next_run.astimezone(NEW_YORK):%A, %H:%M}" if next_run else "–"
    return number("New York opens", soon, note=f"last on {rung:%A, %H:%M}" if rung else "the bell has not rung since the server started")


page(
    "stocks",
    "Stocks, played back",
    "A job loads a trading day every two seconds, as if it were a night. What depends on it follows, once for everybody.",
    row(
        tile(
            prices.view().pipe(
                lambda loaded: number("Trading day", f"{loaded.day:%-d %B %Y}", note=f"{loaded.rows:,} prices in DuckDB")
            )
        ),
        tile(mover.view().pipe(lambda move: number("Biggest move", move[0], f"{move[1]:+.1%}")), task=mover),
        tile(pn.bind(opening, bell.view().param.next_run, bell)),
    ),
    card(chart(plot), title=key(TICKERS) + " <span style='font-weight: 400; opacity: 0.7'>&nbsp; a year ago = 100</span>", task=growth, sizing_mode="stretch_both"),
    card(
        table(
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
                "close": NumberFormatter(format="$0.00", text_align="right"),
                "change": HTMLTemplateFormatter(template=SIGNED),
                "year": HTMLTemplateFormatter(template=SIGNED),
                "range": {"type": "progress", "max": 100, "color": BLUE},
                "volume": NumberFormatter(format="0,0", text_align="right"),
            },
            text_align={"change": "right", "year": "right"},
            header_align={"close": "right", "change": "right", "year": "right", "volume": "right"},
            widths={"range": "35%"},
        ),
        title="The day",
        task=summary,
    ),
).servable()
