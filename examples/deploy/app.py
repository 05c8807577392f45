"""One page: the orders as they come, a forecast, and a report on request."""

import asyncio
from typing import Any

import panel as pn
from bokeh.models import CustomJS

import panel_schedule as ps
from tasks import REGIONS, forecast, orders, report

pn.extension()

# A page whose server stops is loaded again, from another one, as soon as one answers.
RELOAD = """
    const again = () => fetch("liveness").then((answer) => answer.ok ? location.reload() : later(), later)
    const later = () => setTimeout(again, 500 + 1500 * Math.random())
    later()
"""

region = pn.widgets.Select(name="Region", options=REGIONS)
button = pn.widgets.Button(name="Report", button_type="primary")
job = report.job(region)
live = orders.view()


def latest(version: int, counts: dict[str, int] | None) -> str:
    return f"## {sum((counts or {}).values())} orders\nvalue {version}"


async def start(event: Any) -> None:
    """Say that it is under way once the store has it: from then on it survives this server."""
    run = await asyncio.to_thread(report.submit, region.value)
    job.attach(run)
    pn.state.location.update_query(run=run.id)
    accepted.object = f"accepted {run.id}"


def find() -> None:
    """After a reload, of this or another server: the report that the address names."""
    if run := pn.state.location.query_params.get("run"):
        job.attach(str(run))


accepted = pn.pane.Str()
button.on_click(start)
pn.state.onload(find)
pn.state.curdoc.js_on_event("connection_lost", CustomJS(code=RELOAD))

pn.Column(
    "# Orders",
    pn.pane.Markdown(pn.bind(latest, live.param.version, live.param.value)),
    ps.Freshness(orders),
    region,
    pn.pane.Markdown(forecast.view(region).pipe(lambda expected: f"{expected} orders are expected tomorrow.")),
    pn.Row(button, job.cancel_button),
    job.progress,
    job.pipe(str),
    accepted,
).servable()
