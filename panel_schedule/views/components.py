"""Panel components that show a task."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import panel as pn
import param
from panel.custom import JSComponent
from panel.viewable import Viewer

from ..functions.task import Task
from .base import TaskView
from .display import display
from .memo import MemoView
from .table import load_tables


class FreshnessLine(JSComponent):
    """The line itself. The seconds are counted in the browser, so that an idle page costs the server nothing."""

    updated = param.Number(default=None, allow_None=True, doc="Unix time of the value, in seconds.")

    fresh_until = param.Number(default=None, allow_None=True, doc="Unix time up to which that is what was promised.")

    now = param.Number(default=0.0, doc="Unix time at the server when it said so: the browser's clock may be wrong.")

    state = param.String(default="idle")

    stale = param.Boolean(default=False)

    error = param.String(default="")

    label = param.String(default="")

    _esm = """
    const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

    function span(seconds) {
      const i = UNITS.findIndex(([size]) => seconds >= size);
      const [size, unit] = UNITS[i];
      const whole = Math.floor(seconds / size);
      return `${whole} ${unit}`;
    }

    const ago = (seconds) => seconds < 1 ? "just now" : span(seconds) + " ago";
    const old = (seconds) => seconds < 1 ? "just in" : span(seconds) + " old";

    export function render({ model, el, view }) {
      const line = document.createElement("div");
      line.className = "line";
      line.setAttribute("role", "status");
      const dot = line.appendChild(document.createElement("span"));
      dot.className = "dot";
      const text = line.appendChild(document.createElement("span"));
      const badge = line.appendChild(document.createElement("span"));
      badge.className = "badge";
      const reason = line.appendChild(document.createElement("span"));
      reason.className = "reason";
      el.appendChild(line);

      // The server is heard no more: what it said last may be true no longer.
      let gone = false;
      let ahead = 0;

      function paint() {
        const now = Date.now() / 1000 - ahead;
        const label = model.label ? model.label + " " : "";
        const lost = model.label ? model.label + ": " : "";
        if (model.updated === null) {
          const waits = model.error ? "no value yet" : "waiting for the first value";
          text.textContent = gone ? lost + "server gone, no value yet" : label + waits;
        } else {
          const age = Math.max(0, now - model.updated);
          text.textContent = gone ? lost + `server gone, last value ${old(age)}` : label + "updated " + ago(age);
          text.title = new Date((model.updated + ahead) * 1000).toLocaleString();
        }
        const failed = model.error !== "";
        const late = model.fresh_until !== null && now > model.fresh_until && model.state !== "running";
        const stale = model.stale || (late && !["paused", "removed"].includes(model.state));
        const waiting = model.updated === null;
        const kind = failed ? "failed" : gone ? "gone" : stale ? "stale" : waiting ? "waiting" : model.state;
        line.dataset.kind = kind;
        const words = { failed: "failed", stale: "stale", paused: "paused", removed: "no longer updated" };
        badge.textContent = words[kind] || "";
        reason.textContent = failed ? model.error : "";
        reason.title = model.error;
      }

      function hear() {
        ahead = Date.now() / 1000 - model.now;
        gone = false;
        paint();
      }

      hear();
      model.on("now", hear);
      model.on(["updated", "fresh_until", "state", "stale", "error", "label"], paint);
      const timer = setInterval(paint, 1000);
      let there = true;
      model.on("remove", () => { there = false; clearInterval(timer); });
      const page = view?.model?.document;
      const listen = (event, is) => {
        try {
          page?.on_event(event, () => { if (there) { gone = is; paint(); } });
        } catch {
          // An older Bokeh does not say so; the promised age does.
        }
      };
      listen("connection_lost", true);
      listen("client_reconnected", false);
    }
    """

    _stylesheets = [
        """
        :host { width: 100%; }
        .line { display: flex; align-items: center; gap: 0.5em; font-size: 0.85em; line-height: 1.6;
                color: var(--panel-on-background-color, #555); opacity: 0.9; min-width: 0; }
        .line > span { white-space: nowrap; }
        .dot { width: 0.6em; height: 0.6em; border-radius: 50%; flex: none; background: #2e9e5b; }
        .line[data-kind="running"] .dot, .line[data-kind="queued"] .dot { background: #3b82c4; }
        .line[data-kind="waiting"] .dot { background: #8a8a8a; }
        .line[data-kind="gone"] { color: #b86e00; opacity: 1; font-weight: 600; }
        .line[data-kind="gone"] .dot, .line[data-kind="stale"] .dot, .line[data-kind="paused"] .dot,
        .line[data-kind="removed"] .dot { background: #d08700; }
        .line[data-kind="failed"] .dot { background: #d63b30; }
        .badge:empty, .reason:empty { display: none; }
        .badge { padding: 0 0.6em; border-radius: 0.8em; font-weight: 600; color: #fff; background: #9a6700; }
        .line[data-kind="failed"] .badge { background: #c62f25; }
        .reason { overflow: hidden; text-overflow: ellipsis; min-width: 0; }
        """
    ]


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
        view: TaskView | MemoView = task.view() if isinstance(task, Task) else task
        self._line = FreshnessLine(label=label, sizing_mode="stretch_width", margin=(2, 10))
        # Told in one message; on the view of this very session, with which it goes.
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
        self._line.param.update(
            updated=updated.timestamp() if updated else None,
            fresh_until=until.timestamp() if until is not None else None,
            now=now.timestamp(),
            state=state,
            stale=stale,
            error=view.error,
        )

    def __panel__(self) -> Any:
        return self._line


def show(task: Task[Any] | MemoView) -> pn.viewable.Viewable:
    """How a task renders: its value, and how fresh it is under it."""
    view = task.view() if isinstance(task, Task) else task
    load_tables()
    value = pn.panel(view.pipe(display), sizing_mode="stretch_width")
    return pn.Column(value, Freshness(task), sizing_mode="stretch_width")
