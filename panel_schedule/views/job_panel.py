"""Panel components that show a job."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import panel as pn
import param
from panel.custom import JSComponent
from panel.viewable import Viewer

from ..errors import is_interrupt
from ..functions.run import RunState
from ..serialize.errors import bare, first_line
from .display import Text, display
from .job import Job
from .table import load_tables

log = logging.getLogger("panel_schedule")


class ProgressBar(JSComponent):
    """The bar itself. The seconds are counted in the browser, so that a long run costs the server nothing."""

    label = param.String(default="", doc="What it is the progress of.")

    # In one piece, so that the browser never sees the state of one moment with the percent of another.
    told = param.Dict(default={}, doc="What there is to say about the run.")

    _esm = """
    const ENDS = { succeeded: "Done", failed: "Failed", timed_out: "Timed out", crashed: "Crashed",
                   cancelled: "Cancelled", skipped: "Not run" };
    const TROUBLE = ["failed", "timed_out", "crashed", "skipped"];

    function duration(seconds) {
      const s = Math.floor(seconds);
      if (s < 60) return `${s} s`;
      if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
      return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
    }

    function roughly(seconds) {
      if (seconds < 10) return duration(Math.ceil(seconds));
      if (seconds < 55) return duration(5 * Math.ceil(seconds / 5));
      const minutes = Math.round(seconds / 60);
      return minutes < 60 ? `${Math.max(1, minutes)} min` : duration(60 * minutes);
    }

    function ordinal(n) {
      const last = n % 100 > 10 && n % 100 < 14 ? 0 : n % 10;
      return n + (["th", "st", "nd", "rd"][last] || "th");
    }

    // When a run has begun and will have ended, on the clock of this browser.
    class Times {
      begun = null;
      end = null;
      percent = -1;

      tell({ state, percent, elapsed }) {
        if (state !== "running" || elapsed === null) return Object.assign(this, new Times());
        const now = Date.now() / 1000;
        const begun = now - elapsed;
        // The messages that were under way for the shortest time know best.
        if (this.begun === null || Math.abs(this.begun - begun) > 5) this.begun = begun;
        this.begun = Math.min(this.begun, begun);
        if (percent < this.percent) this.end = null;
        if (percent !== this.percent && percent >= 3 && elapsed >= 2) {
          const end = now + elapsed * (100 - percent) / percent;
          this.end = this.end === null ? end : this.end + 0.3 * (end - this.end);
        }
        this.percent = percent;
      }

      text() {
        if (this.begun === null) return "";
        const now = Date.now() / 1000;
        const words = [duration(Math.max(0, now - this.begun))];
        if (this.percent >= 0) words.unshift(`${this.percent} %`);
        if (this.end > now && this.percent < 100) words.push(`about ${roughly(this.end - now)} left`);
        return words.join(" · ");
      }
    }

    function headline({ state, message, elapsed, position }) {
      if (state === "queued") return position ? `Queued, ${ordinal(position)} in line` : "Queued";
      if (state === "running") return message || "Running";
      if (!(state in ENDS)) return "";
      const how = elapsed === null ? "" : ` ${state === "succeeded" ? "in" : "after"} ` +
        (elapsed < 10 ? `${Math.max(0.1, elapsed).toFixed(1)} s` : duration(elapsed));
      return ENDS[state] + how + (TROUBLE.includes(state) ? ". You can run it again." : "");
    }

    export function render({ model, el }) {
      const add = (parent, name, role) => {
        const child = parent.appendChild(document.createElement("div"));
        child.className = name;
        if (role) child.setAttribute("role", role);
        return child;
      };
      const root = document.createElement("div");
      root.className = "job";
      const bar = add(root, "bar", "progressbar");
      bar.setAttribute("aria-valuemin", 0);
      bar.setAttribute("aria-valuemax", 100);
      const fill = add(bar, "fill");
      const line = add(root, "line");
      const said = add(line, "said", "status");
      const head = add(said, "head");
      const reason = add(said, "reason");
      const time = add(line, "time");
      el.appendChild(root);

      const times = new Times();
      let timer = null;
      let announced = 0;

      function tick() {
        const text = times.text();
        if (time.textContent !== text) time.textContent = text;
      }

      function paint() {
        const told = model.told;
        const { state, percent } = told;
        const trouble = TROUBLE.includes(state);
        const underWay = state === "running";
        const known = state === "succeeded" ? 100 : percent;
        times.tell(told);
        root.dataset.kind = trouble ? "trouble" : underWay && percent < 0 ? "moving" : state;
        fill.style.width = known >= 0 ? `${known}%` : "";
        const text = headline(told);
        // A screen reader speaks what is said here: each end, but not each of thirty messages in a second.
        const aloud = !underWay || Date.now() - announced > 5000;
        if (aloud) announced = Date.now();
        said.setAttribute("aria-live", aloud ? "polite" : "off");
        if (head.textContent !== text) head.textContent = text;
        head.title = text;
        if (reason.textContent !== told.error) reason.textContent = told.error;
        bar.setAttribute("aria-label", model.label);
        const spoken = text || "Not started";
        bar.setAttribute("aria-valuetext", known >= 0 ? `${known} %, ${spoken}` : spoken);
        if (known >= 0) bar.setAttribute("aria-valuenow", known);
        else bar.removeAttribute("aria-valuenow");
        tick();
        if (underWay && timer === null) timer = setInterval(tick, 500);
        if (!underWay) stop();
      }

      function stop() {
        clearInterval(timer);
        timer = null;
      }

      model.on(["told", "label"], paint);
      model.on("remove", stop);
      paint();
    }
    """

    _stylesheets = [
        """
        :host { width: 100%; }
        .job { --color: var(--panel-primary-color, #0072b5); color: var(--panel-on-background-color, #212529);
               line-height: 1.5; min-width: 0; }
        .bar { height: 0.5em; border-radius: 0.25em; overflow: hidden; background: var(--panel-border-color, #e0e0e0); }
        .fill { height: 100%; width: 0; border-radius: inherit; background: var(--color);
                transition: width 0.3s ease-out, background-color 0.2s; }
        .line { display: flex; flex-wrap: wrap; gap: 0 1em; margin-top: 0.4em; min-height: 1.5em; }
        .said { flex: 1 1 14em; min-width: 0; }
        .head { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
        .time { flex: none; white-space: nowrap; font-variant-numeric: tabular-nums; opacity: 0.75; }
        .time:empty, .reason:empty { display: none; }
        .reason { margin-top: 0.4em; padding: 0.5em 0.8em; border-left: 4px solid var(--color); border-radius: 4px;
                  overflow-wrap: anywhere;
                  background: color-mix(in srgb, var(--color) 12%, var(--panel-background-color, #fff)); }

        .job[data-kind="succeeded"] { --color: var(--success-bg-color, #198754); }
        .job[data-kind="cancelled"] { --color: var(--secondary-bg-color, #6c757d); }
        .job[data-kind="trouble"] { --color: var(--danger-bg-color, #dc3545); }
        .job[data-kind="trouble"] .fill { min-width: 100%; }
        .job[data-kind="trouble"] .head { font-weight: 600; }
        .job[data-kind="moving"] .fill { width: 30%; transition: none; animation: move 1.6s ease-in-out infinite; }
        @keyframes move { from { transform: translateX(-100%); } to { transform: translateX(334%); } }
        @media (prefers-reduced-motion: reduce) {
          .fill { transition: none; }
          .job[data-kind="moving"] .fill { width: 100%; animation: none;
            background: repeating-linear-gradient(135deg, var(--color) 0 0.5em, transparent 0.5em 1em); }
        }
        @media (forced-colors: active) {
          .bar { border: 1px solid CanvasText; }
          .fill { background: Highlight; forced-color-adjust: none; }
        }
        """
    ]


class Progress(Viewer):
    """
    How far a job has come: a bar with the run's message, its time, and how it ended. What ``job.progress`` shows.

    Parameters
    ----------
    job : Job
    """

    def __init__(self, job: Job, **params: Any):
        super().__init__(**params)
        self._bar = ProgressBar(label=job.name, sizing_mode="stretch_width", margin=(5, 10))
        job.param.watch(
            lambda *_: self._follow(job),
            ["state", "percent", "message", "error", "position", "started_at", "finished_at"],
        )
        self._follow(job)

    def _follow(self, job: Job) -> None:
        elapsed = job.elapsed
        self._bar.told = {
            "state": job.state,
            "percent": job.percent,
            "message": job.message,
            "error": job.error,
            "position": job.position,
            # Seconds, and no instant: the clocks of server and browser may differ.
            "elapsed": None if elapsed is None else max(0.0, elapsed),
        }

    def __panel__(self) -> Any:
        return self._bar


class JobPanel(Viewer):
    """
    A job to be used: its widgets, buttons to run and cancel it, its progress, and its result.

    The result stays until the next one; partial results take its place while a run is under way.

    Parameters
    ----------
    job : Job
        Those of its arguments that are widgets are shown.
    render : callable, optional
        Called as ``render(result)`` with each result and partial result, returns what is to be shown:
        anything that ``pn.panel`` takes, where text is Markdown. By default that is the result itself, and text as
        it is: HTML in it, which may be a stranger's, is not run. ``render=pn.pane.Markdown`` shows text as Markdown.
        Of a table its first 1,000 rows and 200 columns are shown, with a line that says so;
        ``render=pn.widgets.Tabulator`` shows all of them.

    Examples
    --------
    >>> import panel as pn
    >>> import panel_schedule as ps
    >>> @ps.background(executor="thread")
    ... def power(base, exponent=2):
    ...     return base**exponent
    >>> base = pn.widgets.IntSlider(name="Base", end=9)
    >>> panel = ps.JobPanel(power.job(base), render="The power is **{}**.".format)
    """

    def __init__(self, job: Job, render: Callable[[Any], Any] = display, **params: Any):
        if not isinstance(job, Job):
            raise TypeError(f"JobPanel shows a job, made by function.job(...), and not {job!r}.")
        super().__init__(**params)
        self._job = job
        self._render = render
        result = pn.panel(pn.bind(self._result, job.param.value, job.param.partial), sizing_mode="stretch_width")
        self._layout = pn.Column(
            pn.FlexBox(*job.inputs),
            pn.Row(job.run_button, job.cancel_button),
            job.progress,
            pn.Column(
                result,
                sizing_mode="stretch_width",
                css_classes=pn.bind(_classes, job.param.running, job.param.partial),
                stylesheets=[RESULT],
            ),
            sizing_mode="stretch_width",
        )

    def _result(self, value: Any, partial: Any) -> Any:
        if partial is not None and self._job.state != RunState.SUCCEEDED:
            return self._rendered(partial)
        if self._job.version == 0:
            raise param.Skip
        return self._rendered(value)

    def _rendered(self, result: Any) -> Any:
        if result is None:
            return pn.Spacer(height=0)
        # An exception would reach the job's other watchers, and leave them with what was before.
        try:
            return pn.panel(self._render(result))
        except BaseException as error:
            if is_interrupt(error):
                raise
            log.error("Job %r: its result cannot be shown.", self._job.name, exc_info=bare(error))
            return Text(f"The result cannot be shown. {first_line(error)}")

    def __panel__(self) -> Any:
        load_tables()
        return self._layout


RESULT = """
:host { overflow-x: auto; transition: opacity 0.2s; }
:host(.former) { opacity: 0.45; transition-delay: 0.3s; }
"""


def _classes(running: bool, partial: Any) -> list[str]:
    """A result of the run before is dimmed."""
    return ["result", "former"] if running and partial is None else ["result"]
