"""Which address is answered by what."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..executors.threads import ThreadExecutor
from ..monitor.component import Monitor, monitor_of
from ..monitor.page import Page
from ..runtime import Runtime
from ..server.panel import Gate
from .access import in_thread
from .api import CancelRun, Change, OneTask, OpenAPI, Runs, TaskRuns, Tasks, Workers, all_as_json
from .health import Healthz, Readyz
from .metrics import Metrics
from .shared_answer import SharedAnswer
from .totals import Totals

# Questions that may wait at once: a store that hangs holds up so many, and no page.
THREADS = 4

# Questions of probes that may wait at once, whatever hangs: none of them asks the store.
PROBES = 2

TASKS, RUNS = "/schedule/api/tasks", "/schedule/api/runs"


def routes(runtime: Runtime, gate: Gate) -> tuple[list[tuple[str, Any, dict[str, Any]]], type[Monitor]]:
    """For Bokeh's server, and the monitor. Made before it forks, so that its processes share what they count."""
    totals = Totals(runtime, gate.sessions)
    monitor = monitor_of(runtime, totals.read)
    threads, page = ThreadExecutor(THREADS), Page(monitor)
    gate.on_served += [partial(totals.begin, aside=partial(in_thread, ThreadExecutor(1))), page.begin]
    gate.open_at_once.add(page.application)
    given = {"runtime": runtime, "threads": threads}
    probed = {"runtime": runtime, "threads": ThreadExecutor(PROBES)}
    shared = {"shared": SharedAnswer(partial(all_as_json, runtime), threads, runtime.clock)}
    every = [
        *page.routes(),
        ("/schedule/healthz", Healthz, probed),
        ("/schedule/readyz", Readyz, probed),
        ("/schedule/metrics", Metrics, given | {"totals": totals}),
        ("/schedule/api/openapi.json", OpenAPI, given),
        (TASKS, Tasks, given | shared),
        (f"{TASKS}/([^/]+)", OneTask, given),
        (f"{TASKS}/([^/]+)/runs", TaskRuns, given),
        (f"{TASKS}/([^/]+)/(refresh|pause|resume|cancel)", Change, given | shared),
        (RUNS, Runs, given),
        ("/schedule/api/workers", Workers, given),
        (f"{RUNS}/([^/]+)/cancel", CancelRun, given),
    ]
    return every, monitor
