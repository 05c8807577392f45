"""The monitor as the page ``/schedule`` of a server."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import panel as pn
from bokeh.application.handlers.document_lifecycle import DocumentLifecycleHandler
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.server.contexts import ApplicationContext
from bokeh.server.urls import per_app_patterns
from panel.io.application import Application
from panel.io.state import set_curdoc
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.web import RedirectHandler

from .component import Monitor

PATH = "/schedule"

# Milliseconds after which a session without a page ends, and between one look for such and the next.
UNUSED, CLEAN = 15_000, 17_000


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
            pn.extension(design="native")  # whatever the apps look like
            # Where panel-material-ui is imported a plain page has no ground of its own, and stays white.
            dark = {"background": "var(--panel-background-color, #121212)", "min-height": "100vh"}
            styles = dark if pn.config.theme == "dark" else {}
            page = self._monitor().__panel__()
            page.styles |= styles
            page.server_doc(document, title="Schedule")
