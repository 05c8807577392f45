"""Panel components that show a job."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import panel as pn
import param
from panel.viewable import Viewer

from ..errors import is_interrupt
from ..functions.run import RunState
from ..serialize.errors import bare, first_line
from .display import Text, display
from .job import Job
from .table import load_tables
from .widgets import Told

log = logging.getLogger("panel_schedule")

HERE = Path(__file__).parent


class ProgressBar(Told):
    """The bar itself."""

    _esm = HERE.joinpath("progress.js").read_text("utf-8")

    _stylesheets = [HERE.joinpath("progress.css").read_text("utf-8")]


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
