"""The monitor as a component, and as a tab of Panel's ``--admin``."""

from __future__ import annotations

import json
import logging
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import panel as pn
import param
from bokeh.document import Document
from panel.custom import JSComponent
from panel.viewable import Viewer

from ..errors import ScheduleError
from ..executors.threads import ThreadExecutor
from ..functions.run import RunState
from ..runtime import Runtime
from ..views.admins import refusal
from ..views.base import View
from .actions import act, detail, one_run
from .graph import Graph
from .timeline import Bars, Timeline
from .watch import Sums, Watch
from .workers import Workers

log = logging.getLogger("panel_schedule")

HERE = Path(__file__).parent

# Questions and changes that may wait at once for a store.
THREADS = 4

# Seconds between one drawing of a tab and the next.
PAUSE = 5.0


class MonitorTable(JSComponent):
    """What the browser draws of it. It is told by messages, each of them JSON: what is new, once it has asked."""

    dark = param.Boolean(default=False, doc="Whether the page is dark, as Panel's themes have it.")

    why_not = param.String(default="", doc="Why this visitor may change nothing.")

    tab = param.String(default="Functions", doc="What is looked at; anything but these is shown below it.")

    _esm = HERE.joinpath("monitor.js").read_text("utf-8")

    _stylesheets = [HERE.joinpath("monitor.css").read_text("utf-8")]


class MonitorView(View):
    """
    What one session has been told of the monitor.

    Parameters
    ----------
    home, changed
        See `View`.
    watch : Watch
    send : callable
        Takes a message for the browser.
    is_admin : callable
        Whether its visitor is one.

    Attributes
    ----------
    looked : callable
        Called when there is something new, after the browser was told.
    """

    def __init__(
        self,
        home: weakref.ref[Document] | None,
        changed: Callable[[], None],
        watch: Watch,
        send: Callable[[str], object],
        is_admin: Callable[[], bool],
    ):
        super().__init__(home, changed, name="monitor")
        self._watch, self._send, self._is_admin = watch, send, is_admin
        self._asked, self._seen = False, 0
        self._calls = deque[Callable[[], object]]()
        self.looked: Callable[[], object] = lambda: None

    def begin(self) -> None:
        """The browser wants to be told all, and from then on what is new."""
        self._asked, self._seen = True, 0
        self._watch.begin(self._changed)
        self._follow()

    def soon(self, call: Callable[[], object]) -> None:
        """Call it under the lock of the session's document; on any thread."""
        self._calls.append(call)
        self._changed()

    def answer(self, content: dict[str, Any]) -> None:
        """Answer a question of the browser; on any thread."""
        self.soon(partial(self._send, json.dumps(content)))

    def _follow(self) -> None:
        while self._calls:
            self._calls.popleft()()
        if self._asked:
            text, self._seen = self._watch.since(self._seen, self._is_admin())
            if text:
                self._send(text)
                self.looked()

    def _leave(self) -> None:
        self._watch.end(self._changed)


class Drawing:
    """
    A tab that is drawn on a thread: when it comes to be shown, and after that when something is new.

    Parameters
    ----------
    make : callable
        Gives what is to be called, on a thread, for what is to be drawn; under the lock of the session's document.
    show : callable
        Draws it; under that lock. True: it goes on changing, and is drawn again.
    aside : callable
        ``aside(call, then)``: call it on a thread, and `then` under that lock with a future of what it gave.
    later : callable
        ``later(seconds, call)``.
    """

    def __init__(
        self,
        make: Callable[[], Callable[[], Any]],
        show: Callable[[Any], object],
        aside: Callable[[Callable[[], Any], Callable[[Future[Any]], object]], object],
        later: Callable[[float, Callable[[], object]], object],
    ):
        self._make, self._show, self._aside, self._later = make, show, aside, later
        # Whether it is being made, and is to be made again; and the pauses that are not over.
        self._making = self._again = False
        self._pauses = 0

    def draw(self, at_once: bool = False) -> None:
        """Draw it as soon as the pause after the last time is over, or at once."""
        if self._making or (self._pauses and not at_once):
            self._again = True
            return
        self._making, self._again = True, False
        self._aside(self._make(), self._made)

    def _made(self, future: Future[Any]) -> None:
        self._making = False
        if future.exception() is None and self._show(future.result()):
            self._again = True
        self._pauses += 1
        self._later(PAUSE, self._rested)

    def _rested(self) -> None:
        self._pauses -= 1
        if self._again:
            self.draw()


class Monitor(Viewer):
    """
    All tasks, background functions and memoized functions of a server: what is stale or fails, and why.

    It is the page ``/schedule`` of ``panel serve --plugins panel_schedule`` and a tab of ``--admin``; this is the same
    for a page of one's own. It is pushed: a change shows within a second, in whichever process it was. Users of
    ``ps.config.admins`` may run, pause, resume, cancel, reschedule and invalidate what they see; nobody else may.

    Parameters
    ----------
    user : str, optional
        Who looks, where the program knows it and Panel does not, as in a FastAPI app; ``pn.state.user`` by default. It
        must be from where a browser cannot put it: no header, and no cookie that is not signed.

    Examples
    --------
    >>> import panel_schedule as ps
    >>> page = ps.Monitor()
    """

    user = param.String(default=None, allow_None=True, constant=True, doc="Who looks; None: whom Panel knows.")

    # Of all sessions, bound by `monitor_of`.
    _runtime: Runtime
    _watch: Watch
    _threads: ThreadExecutor

    def __init__(self, **params: Any):
        super().__init__(**params)
        dark = pn.config.theme == "dark"
        table = MonitorTable(dark=dark, why_not=self._refusal(), sizing_mode="stretch_width")
        view = self._view = self._runtime.views.admit(
            lambda home, changed: MonitorView(home, changed, self._watch, table._send_msg, lambda: not self._refusal())
        )
        table.on_msg(lambda event: self._hear(event.data))
        # Where Panel's theme cannot be loaded, as in monitor.css.
        styles = {"color": "var(--panel-on-background-color, #f4f4f4)"} if dark else {}
        self._table, self._page = table, pn.Column(table, sizing_mode="stretch_width", margin=0, styles=styles)
        # What is in the other tabs is made when they are opened: most visitors look at the first one. And they are
        # tabs of the table's own, as those of Panel cost as much as all the rest of the page.
        self._below = pn.Column(sizing_mode="stretch_width", margin=0)
        self._makers = {"Timeline": self._timeline, "Graph": self._graph, "Workers": self._workers}
        self._drawings = dict[str, tuple[Any, Drawing]]()
        table.param.watch(self._turn, "tab")
        view.looked = self._draw

    def _turn(self, *_: Any) -> None:
        """Another tab is looked at."""
        tab = self._table.tab
        if tab in self._makers and tab not in self._drawings:
            shown, drawing = self._makers[tab]()
            self._drawings[tab] = pn.Column(shown, margin=(10, 6), sizing_mode="stretch_width"), drawing
        self._below[:] = [self._drawings[tab][0]] if tab in self._drawings else []
        if len(self._page) == 1:  # only now, as each layout costs something
            self._page.append(self._below)
        self._draw()

    def _draw(self) -> None:
        if (shown := self._drawings.get(self._table.tab)) is not None:
            shown[1].draw()

    def _timeline(self) -> tuple[Timeline, Drawing]:
        timeline = Timeline()

        def show(bars: Bars) -> bool:
            timeline.update(bars)
            return bool(bars.counts.get(RunState.RUNNING)) and self._table.tab == "Timeline"

        def make() -> Callable[[], Bars]:
            return partial(self._watch.bars, timeline.length, not self._refusal())

        drawing = Drawing(make, show, self._aside, self._later)
        timeline.param.watch(lambda *_: drawing.draw(at_once=True), "span")
        return timeline, drawing

    def _graph(self) -> tuple[Graph, Drawing]:
        graph = Graph()
        return graph, Drawing(lambda: self._watch.drawing, graph.update, self._aside, self._later)

    def _workers(self) -> tuple[Workers, Drawing]:
        workers = Workers()

        def show(text: str) -> bool:
            workers.update(text)
            return bool(self._table.tab == "Workers")  # what others are at is no news of a function

        return workers, Drawing(lambda: self._watch.workers, show, self._aside, self._later)

    def _refusal(self) -> str:
        return refusal(self._runtime.config.admins, self.user)

    def _hear(self, said: Any) -> None:
        """The browser asks for something; it may say anything."""
        match said:
            case {"ask": "all"}:
                self._view.begin()
            case {"ask": "detail", "id": str(id)}:
                self._aside(partial(detail, self._runtime, id, not self._refusal()), partial(self._answer, "detail"))
            case {"ask": "run", "id": str(id), "run": str(run)}:
                ask = partial(one_run, self._runtime, id, run, not self._refusal())
                self._aside(ask, partial(self._answer, "run"))
            case {"do": str(action), "id": str(id)}:
                if why_not := self._refusal():
                    self._view.answer({"failed": why_not})
                    return
                given = (said["given"],) if isinstance(said.get("given"), str) else ()
                # A warning, which is what a server logs by default: whoever wonders why a task rests finds it there.
                user = self.user or pn.state.user
                log.warning("The monitor: user %r asks for %r of %r %s", user, action, id, given or "")
                self._aside(partial(act, self._runtime, id, action, given), partial(self._answer, "done"))

    def _aside(self, call: Callable[[], Any], then: Callable[[Future[Any]], object]) -> None:
        """From a thread that may wait."""
        future = self._threads.submit(call)
        self._threads.flush()
        future.add_done_callback(lambda future: self._view.soon(partial(self._done, then, future)))

    def _done(self, then: Callable[[Future[Any]], object], future: Future[Any]) -> None:
        error = future.exception()
        if error is not None and not isinstance(error, (ScheduleError, ValueError)):
            log.error("The monitor failed at something that is a bug of panel-schedule.", exc_info=error)
        then(future)

    def _answer(self, name: str, future: Future[Any]) -> None:
        error = future.exception()
        self._view.answer({"failed": str(error)} if error is not None else {name: future.result()})

    def _later(self, seconds: float, call: Callable[[], object]) -> None:
        self._runtime.later(seconds, lambda: self._view.soon(call))

    def __panel__(self) -> Any:
        return self._page


def monitor_of(runtime: Runtime, sums: Callable[[], Sums]) -> type[Monitor]:
    """
    The component of a runtime, whose sessions share one look at it; also as a tab of Panel's ``--admin``.

    See `Watch` for what `sums` gives.
    """
    bound = {
        "_runtime": runtime,
        "_watch": Watch(runtime, sums),
        "_threads": ThreadExecutor(THREADS),
        "__doc__": Monitor.__doc__,
        "__module__": "panel_schedule",
    }
    kind: type[Monitor] = type("Monitor", (Monitor,), bound)
    pn.config.admin_plugins = [*pn.config.admin_plugins, ("Schedule", kind)]
    return kind
