"""The monitor as a component, as the page ``/schedule``, and as a tab of Panel's ``--admin``."""

from __future__ import annotations

import asyncio
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
from bokeh.application.handlers.document_lifecycle import DocumentLifecycleHandler
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.server.contexts import ApplicationContext
from bokeh.server.urls import per_app_patterns
from panel.custom import JSComponent
from panel.io.application import Application
from panel.io.state import set_curdoc
from panel.viewable import Viewer
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.web import RedirectHandler

from ..errors import ScheduleError
from ..executors.threads import ThreadExecutor
from ..runtime import Runtime
from ..views.admins import refusal
from ..views.base import View
from .actions import act, detail
from .watch import Watch

log = logging.getLogger("panel_schedule")

HERE = Path(__file__).parent

PATH = "/schedule"

# Milliseconds after which a session without a page ends, and between one look for such and the next.
UNUSED, CLEAN = 15_000, 17_000

# Questions and changes that may wait at once for a store.
THREADS = 4


class MonitorTable(JSComponent):
    """What the browser draws of it. It is told by messages, each of them JSON: what is new, once it has asked."""

    dark = param.Boolean(default=False, doc="Whether the page is dark, as Panel's themes have it.")

    why_not = param.String(default="", doc="Why this visitor may change nothing.")

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
    """

    def __init__(
        self,
        home: weakref.ref[Document] | None,
        changed: Callable[[], None],
        watch: Watch,
        send: Callable[[str], object],
    ):
        super().__init__(home, changed, name="monitor")
        self._watch, self._send = watch, send
        self._asked, self._seen = False, 0
        self._answers = deque[str]()

    def begin(self) -> None:
        """The browser wants to be told all, and from then on what is new."""
        self._asked, self._seen = True, 0
        self._watch.begin(self._changed)
        self._follow()

    def answer(self, content: dict[str, Any]) -> None:
        """To a question of the browser; on any thread."""
        self._answers.append(json.dumps(content))
        self._changed()

    def _follow(self) -> None:
        while self._answers:
            self._send(self._answers.popleft())
        if self._asked:
            text, self._seen = self._watch.since(self._seen)
            if text:
                self._send(text)

    def _leave(self) -> None:
        self._watch.end(self._changed)


class Monitor(Viewer):
    """
    All tasks, background functions and memoized functions of a server: what is stale or fails, and why.

    It is the page ``/schedule`` of ``panel serve --plugins panel_schedule`` and a tab of ``--admin``; this is the same
    for a page of one's own. It is pushed: a change shows within a second, in whichever process it was. Users of
    ``ps.config.admins`` may run, pause, resume, cancel, reschedule and invalidate what they see; nobody else may.

    Examples
    --------
    >>> import panel_schedule as ps
    >>> page = ps.Monitor()
    """

    # Of all sessions, bound by `monitor_of`.
    _runtime: Runtime
    _watch: Watch
    _threads: ThreadExecutor

    def __init__(self, **params: Any):
        super().__init__(**params)
        dark = pn.config.theme == "dark"
        table = self._table = MonitorTable(dark=dark, why_not=self._refusal(), sizing_mode="stretch_width")
        self._view = self._runtime.views.admit(
            lambda home, changed: MonitorView(home, changed, self._watch, table._send_msg)
        )
        table.on_msg(lambda event: self._hear(event.data))

    def _refusal(self) -> str:
        return refusal(self._runtime.config.admins)

    def _hear(self, said: Any) -> None:
        """The browser asks for something; it may say anything."""
        match said:
            case {"ask": "all"}:
                self._view.begin()
            case {"ask": "detail", "id": str(id)}:
                self._aside(partial(detail, self._runtime, id, not self._refusal()), "detail")
            case {"do": str(action), "id": str(id)}:
                if why_not := self._refusal():
                    self._view.answer({"failed": why_not})
                    return
                given = (said["given"],) if isinstance(said.get("given"), str) else ()
                log.info("The monitor: user %r asks for %s of %r%s.", pn.state.user, action, id, "".join(given))
                self._aside(partial(act, self._runtime, id, action, given), "done")

    def _aside(self, call: Callable[[], Any], name: str) -> None:
        """Answer with what it gives, from a thread that may wait."""
        future = self._threads.submit(call)
        self._threads.flush()
        future.add_done_callback(partial(self._answer, name))

    def _answer(self, name: str, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            self._view.answer({name: future.result()})
            return
        if not isinstance(error, (ScheduleError, ValueError)):
            log.error("The monitor failed at something that is a bug of panel-schedule.", exc_info=error)
        self._view.answer({"failed": str(error)})

    def __panel__(self) -> Any:
        return self._table


def monitor_of(runtime: Runtime) -> type[Monitor]:
    """The component of a runtime, whose sessions share one look at it; also as a tab of Panel's ``--admin``."""
    bound = {
        "_runtime": runtime,
        "_watch": Watch(runtime),
        "_threads": ThreadExecutor(THREADS),
        "__doc__": Monitor.__doc__,
        "__module__": "panel_schedule",
    }
    kind: type[Monitor] = type("Monitor", (Monitor,), bound)
    pn.config.admin_plugins = [*pn.config.admin_plugins, ("Schedule", kind)]
    return kind


# ------------------------------------------------------------ the page


class Page:
    """
    A page of a server besides its apps, behind the same login.

    It is none of Bokeh's own apps: these are listed at ``/``, and a server with one of them leads there.

    Parameters
    ----------
    monitor : type
    """

    def __init__(self, monitor: type[Monitor]):
        self._monitor = monitor
        self.application = Application(FunctionHandler(self._build))
        self.application.add(DocumentLifecycleHandler())
        self._context = ApplicationContext(self.application, url=PATH)
        self._cleaning: PeriodicCallback | None = None

    def routes(self) -> list[tuple[str, Any, dict[str, Any]]]:
        """For Bokeh's server."""
        given = {"application_context": self._context, "bokeh_websocket_path": f"{PATH}/ws"}
        # What the page loads it names by addresses that begin beside it: with a slash behind they would be wrong.
        handlers = {path: handler for path, handler, *_ in per_app_patterns}
        page, socket = (PATH, handlers["/?"], given), (f"{PATH}/ws", handlers["/ws"], given)
        return [page, socket, (f"{PATH}/", RedirectHandler, {"url": f"..{PATH}", "permanent": False})]

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """A server begins to serve it on the loop that runs. Idempotent."""
        if self._context._loop is None or self._context._loop.asyncio_loop is not loop:  # type: ignore[attr-defined]
            self._context._loop = IOLoop.current()
            self._cleaning = PeriodicCallback(partial(self._context._cleanup_sessions, UNUSED), CLEAN)
            self._cleaning.start()

    def _build(self, document: Document) -> None:
        with set_curdoc(document):
            pn.extension()
            page = pn.Column(self._monitor(), sizing_mode="stretch_width", margin=0)
            page.server_doc(document, title="Schedule")
