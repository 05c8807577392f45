"""
A Dash app with background callbacks: the page, its manager, and with Redis its Celery.

``python -m tests.bench.dash_page PORT`` serves it; ``celery --app tests.bench.dash_page:celery worker`` works for it.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from dash import CeleryManager, Dash, DiskcacheManager, Input, Output, html

# A folder for diskcache, or the URL of Redis.
PLACE = os.environ["BENCH_DASH"]

manager: Any
if PLACE.startswith("redis://"):
    from celery import Celery

    celery = Celery("bench", broker=PLACE, backend=PLACE)
    manager = CeleryManager(celery)
else:
    import diskcache

    manager = DiskcacheManager(diskcache.Cache(PLACE))

app = Dash("bench", background_callback_manager=manager)
app.layout = html.Div(
    [html.Button("quick", id="quick"), html.Div(id="result"), html.Button("long", id="long"), html.Div(id="waited")]
)


@app.callback(Output("result", "children"), Input("quick", "n_clicks"), background=True, prevent_initial_call=True)
def quick(clicks: int) -> str:
    return f"quick {clicks} done"


@app.callback(Output("waited", "children"), Input("long", "n_clicks"), background=True, prevent_initial_call=True)
def long(clicks: int) -> str:
    time.sleep(300)
    return f"long {clicks} done"


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(sys.argv[1]))
