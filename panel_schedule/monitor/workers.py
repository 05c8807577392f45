"""The processes that share the store, what each is at, and the workers that it knows of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import Any

import panel as pn
from panel.viewable import Viewer

from ..coordination.processes import ProcessState
from ..engine.hooks import lasting
from ..engine.presence import Process

# So many workers of one executor are named.
MOST = 20

_OWNERS = {"job": " of background functions", "memo": " of memoized functions"}
_WHERE = {"loop": "event loop", "thread": "threads", "process": "worker processes", "celery": "Celery", "dask": "Dask"}

_STYLE = """
:host { --faint: color-mix(in srgb, currentColor 14%, transparent); }
.all { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 12px; }
article { border: 1px solid var(--faint); border-radius: 6px; padding: 8px 12px; overflow-wrap: anywhere; }
h3 { margin: 0 0 2px; font-size: 1em; }
h3::before { content: ""; display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px; }
h3::before { background: #2e9e5b; }
.gone h3::before { background: #d63b30; border-radius: 1px; }
p { margin: 0 0 4px; }
ul { margin: 0; padding-left: 1.2em; }
.hangs { color: color-mix(in srgb, #d63b30 80%, currentColor); }
"""


def as_html(processes: Sequence[Process], now: datetime, trouble: str = "") -> str:
    """Below what is wrong: this one first, then those that live, longest first, then those that are gone."""
    ordered = sorted(processes, key=lambda each: (not each.here, not each.alive, each.state.since or now, each.name))
    above = f'<p class="hangs">{escape(trouble)}</p>' if trouble else ""
    return f'{above}<div class="all">{"".join(_article(each, now) for each in ordered)}</div>'


def _article(process: Process, now: datetime) -> str:
    state = process.state
    here = ", which shows this" if process.here else ""
    worker = f"Celery worker {state.worker}, process" if state.worker else "Process"
    title = f"<h3>{escape(f'{worker} {state.pid} on {state.host}')}{here}</h3>"
    if not process.alive:
        ago = lasting((now - process.heard).total_seconds())
        return f'<article class="gone">{title}<p>Gone: it died. Last heard {ago} ago.</p>{_since(state)}</article>'
    runs, waits = (sum(load[column] for load in state.executors.values()) for column in (0, 1))
    age = (
        f" for {lasting((now - state.since).total_seconds())}" if state.since is not None else ", with nothing on time"
    )
    of = f" of {sum(load[2] for load in state.executors.values())}" if state.worker else ""
    said = [f"Alive{age}", f"{runs}{of} under way", *([f"{waits} wait"] if waits else [])]
    parts = [title, f"<p>{' · '.join(said)}</p>"]
    if state.worker:
        return f"<article>{''.join(parts)}<p>Queues: {escape(', '.join(state.queues))}</p>{_since(state)}</article>"
    if state.hanging:
        parts.append(f'<p class="hangs">Hangs: {escape(", ".join(state.hanging))}</p>')
    lines = [_executor(name, load, state) for name, load in state.executors.items()]
    return f"<article>{''.join(parts)}<ul>{''.join(filter(None, lines))}</ul>{_since(state)}</article>"


def _since(state: ProcessState) -> str:
    return f"<p>Began {state.since:%Y-%m-%d %H:%M:%S} UTC</p>" if state.since is not None else ""


def _executor(name: str, load: Sequence[int], state: ProcessState) -> str:
    """What there is to say of it; nothing of one that was never used."""
    running, waiting, places = load
    workers = [(worker, what) for executor, worker, what in state.workers if executor == name]
    if not (running or waiting or workers):
        return ""
    kind, _, where = name.rpartition("-")
    words = f"{_WHERE.get(where, where)}{_OWNERS.get(kind, '')}"
    words += f": {running} of {places} run" if places >= 0 else f": {running} run"
    words += f", {waiting} wait" if waiting else ""
    if not workers:
        return f"<li>{escape(words)}</li>"
    more = [f"<li>and {len(workers) - MOST} more</li>"] if len(workers) > MOST else []
    named = [f"<li>{escape(worker)}: {escape(what) if what else 'idle'}</li>" for worker, what in workers[:MOST]]
    return f"<li>{escape(words)}<ul>{''.join([*named, *more])}</ul></li>"


class Workers(Viewer):
    """A list of the processes; `update` shows the HTML of `as_html`."""

    def __init__(self, **params: Any):
        super().__init__(**params)
        self._pane = pn.pane.HTML(stylesheets=[_STYLE], sizing_mode="stretch_width")

    def update(self, text: str) -> None:
        """Show this from now on; under the lock of the session's document."""
        self._pane.object = text

    def __panel__(self) -> Any:
        return self._pane
