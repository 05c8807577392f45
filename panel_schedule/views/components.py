"""Panel components that show a task."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import panel as pn
from panel.viewable import Viewer

from ..functions.task import Task
from .base import TaskView
from .display import display
from .memo import MemoView
from .table import load_tables
from .widgets import Told

HERE = Path(__file__).parent


class FreshnessLine(Told):
    """The line itself."""

    _esm = HERE.joinpath("freshness.js").read_text("utf-8")

    _stylesheets = [HERE.joinpath("freshness.css").read_text("utf-8")]


class Freshness(Viewer):
    """
    One line that says how old a value is: "updated 12 s ago".

    It turns to a visible badge when the value is stale or the task failed, with the first
    line of the error. The browser counts for itself: it turns amber when the value gets older
    than the task promised, and when the connection to the server is lost.

    Parameters
    ----------
    task : Task or MemoView
    label : str
        Put before it, ``"Prices"`` say.

    Examples
    --------
    >>> import panel_schedule as ps
    >>> @ps.schedule(period="1h", first_run="skip")
    ... def prices():
    ...     return [1, 2, 3]
    >>> line = ps.Freshness(prices, label="Prices")
    """

    def __init__(self, task: Task[Any] | MemoView, label: str = "", **params: Any):
        if not isinstance(task, (Task, MemoView)):
            raise TypeError(
                "Freshness shows a task, made by ps.schedule, or a view of a memoized function, as function.view(...) "
                f"makes them, and not {task!r}."
            )
        super().__init__(**params)
        view: Any = task.view() if isinstance(task, Task) else task
        self._line = FreshnessLine(label=label, sizing_mode="stretch_width", margin=(2, 10))
        # On the view of this very session, with which it goes.
        news = ["version", "updated_at", "stale", "error", "running" if isinstance(view, MemoView) else "state"]
        view.param.watch(lambda *_: self._follow(view), news)
        self._follow(view)

    def _follow(self, view: TaskView | MemoView) -> None:
        updated: datetime | None = view.updated_at
        stale = view.stale
        if isinstance(view, MemoView):
            # The next answer is on its way: that the last one is of other arguments is no news.
            state, stale = ("running", False) if view.running else ("idle", stale)
        else:
            # Whether a run is under way matters only to those who wait for the first value: a line
            # that flickers with each run tells nobody anything.
            state = "idle" if view.running and view.version else view.state
        now, until = view._promise()
        self._line.told = {
            # Unix times in seconds: of the value, until when it is what was promised, and of the server when it says
            # so, as the browser's clock may be wrong.
            "updated": updated.timestamp() if updated else None,
            "fresh_until": until.timestamp() if until is not None else None,
            "now": now.timestamp(),
            "state": state,
            "stale": stale,
            "error": view.error,
        }

    def __panel__(self) -> Any:
        return self._line


def show(task: Task[Any] | MemoView) -> pn.viewable.Viewable:
    """How a task renders: its value, and how fresh it is under it."""
    view = task.view() if isinstance(task, Task) else task
    load_tables()
    value = pn.panel(view.pipe(display), sizing_mode="stretch_width")
    return pn.Column(value, Freshness(task), sizing_mode="stretch_width")
