"""The page of our background jobs, for ``panel serve``; what it shows is named by its environment."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import panel as pn

from tests.bench import job_tasks

pn.extension("tabulator")


def quick(kind: str) -> pn.Column:
    """A button that starts a trivial job, and its result."""
    job = job_tasks.QUICK[kind].job(kind)
    button = pn.widgets.Button(name=kind, on_click=lambda event: job.start(clicks=event.new))
    return pn.Column(button, pn.pane.Str(job.param.value))


def bare() -> pn.Column:
    """The same without a job: what the page and its server take themselves."""
    text = pn.pane.Str("")
    button = pn.widgets.Button(name="bare")
    button.on_click(lambda event: setattr(text, "object", job_tasks.done("bare", event.new)))
    return pn.Column(button, text)


match os.environ["BENCH_SHOW"]:
    case "quick":
        pn.Column(quick("process"), quick("thread"), bare()).servable()
    case "waiting":
        waiting = job_tasks.long.job()
        waiting.start()
        pn.Column(waiting).servable()
    case "idle":
        pn.Column(job_tasks.long.job()).servable()
    case "loads":
        work = pn.state.location.query_params.get("work")
        if work is not None:
            job_tasks.work(work)
        # What a page of some size has.
        frame = pd.DataFrame(np.arange(1000.0).reshape(100, 10), columns=list("abcdefghij"))
        sliders = [pn.widgets.FloatSlider(name=name) for name in frame]
        pn.Row(pn.Column(*sliders), pn.widgets.Tabulator(frame), pn.pane.Markdown("# A page")).servable()
