"""The monitor as the page ``/schedule`` of a server."""

from __future__ import annotations

import asyncio
import weakref
from functools import partial
from typing import Any

import panel as pn
from bokeh.application.handlers.document_lifecycle import DocumentLifecycleHandler
from bokeh.application.handlers.handler import Handler
from bokeh.document import Document
from bokeh.server.contexts import ApplicationContext
from bokeh.server.urls import per_app_patterns
from panel.io.application import Application
from panel.io.server import DocHandler
from panel.io.state import set_curdoc
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.web import RedirectHandler

from .component import Monitor

PATH = "/schedule"

# Milliseconds after which a session without a page ends, and between one look for such and the next.
UNUSED, CLEAN = 15_000, 17_000

# Seconds between one step of making a page and the next. With 0 the loop would come to the next step before it comes to
# what has become due during the last one.
PAUSE = 0.001


class Building(Handler):
    """
    Builds the document of a session.

    Panel would build it and make its page in one step of the loop, in which no other session is served: it is three
    steps here, of about the same length.

    Parameters
    ----------
    monitor : type
    """

    def __init__(self, monitor: type[Monitor]):
        super().__init__()
        self._monitor = monitor
        self._made = weakref.WeakKeyDictionary[Document, Any]()

    async def on_session_created(self, session_context: Any) -> None:
        """Make what will be in it."""
        document = session_context._document
        with set_curdoc(document):
            pn.extension(design="native")  # whatever the apps look like
            # Where panel-material-ui is imported a plain page has no ground of its own, and stays white.
            dark = {"background": "var(--panel-background-color, #121212)", "min-height": "100vh"}
            styles = dark if pn.config.theme == "dark" else {}
            page = self._made[document] = self._monitor().__panel__()
            page.styles |= styles
        await asyncio.sleep(PAUSE)

    def modify_document(self, doc: Document) -> None:
        """Put it there."""
        with set_curdoc(doc):
            self._made.pop(doc).server_doc(doc, title="Schedule", location=False)


class PageHandler(DocHandler):
    """Makes the page of a document that was built."""

    async def get_session(self) -> Any:
        """A session; the page is made in another step of the loop."""
        session = await super().get_session()  # type: ignore[misc]
        await asyncio.sleep(PAUSE)
        return session


class Page:
    """
    A page of a server besides its apps, behind the same login.

    It is none of Bokeh's own apps: these are listed at ``/``, and a server with one of them leads there.

    Parameters
    ----------
    monitor : type
    """

    def __init__(self, monitor: type[Monitor]):
        self.application = Application(Building(monitor))
        self.application.add(DocumentLifecycleHandler())
        self._context = ApplicationContext(self.application, url=PATH)
        self._cleaning: PeriodicCallback | None = None

    def routes(self) -> list[tuple[str, Any, dict[str, Any]]]:
        """For Bokeh's server."""
        given = {"application_context": self._context, "bokeh_websocket_path": f"{PATH}/ws"}
        # What the page loads it names by addresses that begin beside it: with a slash behind they would be wrong.
        handlers = {path: handler for path, handler, *_ in per_app_patterns}
        page, socket = (PATH, PageHandler, given), (f"{PATH}/ws", handlers["/ws"], given)
        return [page, socket, (f"{PATH}/", RedirectHandler, {"url": f"..{PATH}", "permanent": False})]

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """A server begins to serve it on the loop that runs. Idempotent."""
        if self._context._loop is None or self._context._loop.asyncio_loop is not loop:  # type: ignore[attr-defined]
            self._context._loop = IOLoop.current()
            self._cleaning = PeriodicCallback(partial(self._context._cleanup_sessions, UNUSED), CLEAN)
            self._cleaning.start()
