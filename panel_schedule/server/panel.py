"""Where a Bokeh server meets the runtime: it starts the clocks, and holds the first visitors."""

from __future__ import annotations

import asyncio
import logging
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial, wraps
from html import escape
from typing import Any

import panel as pn
from bokeh.application import Application
from bokeh.document import Document
from bokeh.models.callbacks import CustomJS
from bokeh.models.widgets.markups import Div
from bokeh.server.server import BaseServer
from bokeh.server.views.ws import WSHandler
from tornado.process import task_id

from ..errors import ConfigError, StoreError
from ..functions.run import Run
from ..functions.task import Task
from ..notebook import in_notebook
from ..runtime import Runtime, has_setup_script
from ..serialize.errors import traceback_text
from ..session import separate
from . import supervisor
from .modules import Executed
from .reload import Reloader
from .shutdown import Stopping

log = logging.getLogger("panel_schedule")

# How often the log says what the first visitors wait for, in seconds.
REMINDER = 10.0

# How often a waiting visitor looks whether a task was paused or cancelled meanwhile, in seconds.
RECHECK = 1.0

_PAGE = """
<div style="font: 16px/1.6 system-ui, sans-serif; max-width: 36em; margin: 20vh auto; color: #555; text-align: center">
  <p style="font-size: 1.4em; margin: 0">The dashboard {state}.</p>
  <p>{why}</p>
</div>
"""

# Seconds after which a page that shows no dashboard yet is loaded again.
RELOAD = 2
RELOAD_UNUSABLE = 15


executed = Executed()


def install(runtime: Runtime) -> Gate:
    """
    Teach Bokeh's ``Application`` about the runtime; Panel's inherits it.

    The load hook starts the clocks, the session hook holds a visitor until the first values
    are there: Bokeh awaits it before it builds the document. What is pushed is sent at once.
    """
    separate()
    executed.install()
    gate = Gate(runtime)
    gate.install()
    supervisor.install()
    if task_id() is not None:
        # One of several processes, whose setup script imports us after the load hooks have run.
        gate.serve_here()
    return gate


class Gate:
    """Keeps documents from being built before their data is there."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        # What a document says instead of what its app would have built.
        self._instead: weakref.WeakKeyDictionary[Document, Callable[[Document], None]] = weakref.WeakKeyDictionary()
        self._said = ""
        self._stopping = Stopping(runtime)
        self._reloader = Reloader(executed.importers, runtime.declaring, runtime.edit)
        # Of the apps that this process serves.
        self._served: list[Any] = []
        # Called with the loop when it begins to serve.
        self.on_served: list[Callable[[asyncio.AbstractEventLoop], object]] = []
        # Apps whose visitors do not wait for the first values: they want to know why these do not come.
        self.open_at_once = weakref.WeakSet[Application]()
        # From the import on: the first session may be what imports the package.
        runtime.unusable = self._unusable
        self._watched = False

    def install(self) -> None:
        on_loaded, on_unloaded = Application.on_server_loaded, Application.on_server_unloaded
        on_created, initialize = Application.on_session_created, Application.initialize_document
        stop, opened = BaseServer.stop, WSHandler.open

        @wraps(on_loaded)
        def on_server_loaded(application: Application, server_context: Any) -> None:
            on_loaded(application, server_context)
            if not _is_a_dashboard(application):
                self._served.append(server_context)
                self._start()
                for served in self.on_served:
                    served(asyncio.get_running_loop())

        @wraps(on_unloaded)
        def on_server_unloaded(application: Application, server_context: Any) -> None:
            if not _is_a_dashboard(application):
                self._served = [each for each in self._served if each is not server_context]
                self._reloader.end()
                self._runtime.stop()
            on_unloaded(application, server_context)

        @wraps(stop)
        def stop_server(server: BaseServer, wait: bool = True) -> None:
            stop(server, wait)
            self._stopping.returned()

        @wraps(on_created)
        async def on_session_created(application: Application, session_context: Any) -> None:
            await on_created(application, session_context)
            if _is_a_dashboard(application):
                return
            self._start()
            if self._reloader.error and application not in self.open_at_once:
                self._instead[session_context._document] = partial(_say_broken, self._reloader.error)
                return
            try:
                if application not in self.open_at_once and not await self._open():
                    self._instead[session_context._document] = self._say_starting
            except (StoreError, ConfigError) as error:
                self._instead[session_context._document] = partial(_say_unusable, error)

        @wraps(initialize)
        def initialize_document(application: Application, document: Document) -> None:
            self._instead.pop(document, partial(initialize, application))(document)

        @wraps(opened)
        def open_promptly(handler: WSHandler) -> None:
            # Else the kernel holds a push back for 40 ms when the one before it is not acknowledged yet (Nagle).
            handler.set_nodelay(True)
            opened(handler)

        WSHandler.open = open_promptly  # type: ignore[method-assign]
        Application.on_server_loaded = on_server_loaded  # type: ignore[method-assign, assignment]
        Application.on_server_unloaded = on_server_unloaded  # type: ignore[method-assign, assignment]
        Application.on_session_created = on_session_created  # type: ignore[method-assign, assignment]
        BaseServer.stop = stop_server  # type: ignore[method-assign, assignment]
        Application.initialize_document = initialize_document  # type: ignore[method-assign, assignment]

    def sessions(self) -> int:
        """How many sessions are open in this process."""
        return sum(len(context.sessions) for context in list(self._served))

    def serve_here(self) -> None:
        """This is the process of a server: from now on a failing first run ends it. Idempotent."""
        # A program that schedules on its own loop may be ahead of the server that it starts there.
        late = self._runtime.on_start is None and self._runtime.begun
        self._runtime.fatal, self._runtime.on_start = self._end, self._clocks_start
        with suppress(RuntimeError):  # no loop runs on this thread
            loop = asyncio.get_running_loop()
            self._watched = self._stopping.watch(loop)
            if pn.config.autoreload:
                self._reloader.begin(loop)
            if late:
                self._clocks_start(loop)

    def _start(self) -> None:
        if self._stopping.begun:
            return  # a visitor on a connection that was there before
        # A script that serves, and whose apps import it by its name.
        executed.add(sys.modules["__main__"])
        loop = asyncio.get_running_loop()
        if self._runtime.loops.adopted is None:
            # Also without a task: one may be scheduled later, by a setup script or a thread.
            self._runtime.loops.adopt(loop)
        self.serve_here()
        if self._runtime.tasks or self._runtime.jobs or self._runtime.memos:
            self._runtime.start(loop)

    def _clocks_start(self, loop: asyncio.AbstractEventLoop) -> None:
        if task_id() is not None and self._runtime.config.store == "memory://":
            log.warning(
                "The server has several processes, and ps.config.store is 'memory://': each process runs every task "
                "itself, and has values of its own. Leave the option out to run each slot once."
            )
        if self._runtime.config.store in ("auto", "memory://") and (program := supervisor.others()):
            log.warning(
                "This process seems to be one of several workers of %s. Each one runs every task itself, and has "
                "values of its own, unless they share a store: ps.config.store = 'file:///var/lib/myapp'.", program,
            )  # fmt: skip
        loop.call_later(REMINDER, self._remind, loop)

    async def _open(self) -> bool:
        """Wait for the first values; False when they are not there within ``ps.config.ready_timeout``."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._runtime.config.ready_timeout
        while waiting := self._runtime.waiting_for():
            now = loop.time()
            if now >= give_up:
                return False
            first = [asyncio.wrap_future(self._runtime.scheduler.first_value(task)) for task in waiting]
            await asyncio.wait(first, timeout=min(give_up - now, RECHECK))
        return True

    def _remind(self, loop: asyncio.AbstractEventLoop) -> None:
        if waiting := self._runtime.waiting_for():
            reasons = [f"{task.name} ({task.status.error or task.status.state})" for task in waiting]
            log.warning("No page is built before the first value of: %s", ", ".join(reasons))
            loop.call_later(REMINDER, self._remind, loop)

    def _unusable(self, error: Exception) -> None:
        """The store cannot be opened: nothing can run here, and no value is there to be shown."""
        if has_setup_script():
            self._stop(f"panel-schedule: {error} The server stops.")
            return
        document = pn.state.curdoc
        if document is not None and document.session_context is not None and not document.roots:
            _say_unusable(error, document)
        elif self._runtime.loops.adopted is None or in_notebook():
            return  # whoever needs it gets the error
        if str(error) != self._said:  # each visitor comes upon it
            self._said = str(error)
            log.error("%s Until then no task runs here; each new visitor causes another try.", error)

    def _end(self, task: Task[Any], run: Run) -> None:
        """A server that cannot serve what it promised says so and goes."""
        message = (
            f"\npanel-schedule: the first run of task {task.name!r} {run.state.replace('_', ' ')}, so the server "
            "stops: there is nothing to serve. Mend the function, or let the server start without it: "
            "first_run='background', or for all tasks ps.config.first_run_failure = 'serve'."
            f"\n\n{traceback_text(run.error)}"
        )
        self._stop(message)

    def _stop(self, message: str) -> None:
        loop = self._runtime.loops.adopted
        if self._watched:
            self._stopping.fail(message)
        elif loop is not None:
            # A server in a thread ends with its thread, and only the log can tell why.
            self._runtime.grace = 0.0
            log.critical(message)
            loop.call_soon_threadsafe(sys.exit, message)

    def _say_starting(self, document: Document) -> None:
        names = ", ".join(task.name for task in self._runtime.waiting_for()) or "the first tasks"
        why = f"It waits for its first data: {names}. This page reloads by itself."
        _say(document, "Starting", _PAGE.format(state="is starting", why=escape(why)), RELOAD)


def _is_a_dashboard(application: Application) -> bool:
    """Of a Dask cluster in this process, which is served on a loop of its own."""
    functions = [getattr(handler, "_func", None) for handler in application.handlers]
    return any(
        str(getattr(getattr(each, "func", each), "__module__", "")).startswith("distributed.") for each in functions
    )


def _say_unusable(error: Exception, document: Document) -> None:
    _say(document, "Not available", _PAGE.format(state="cannot start", why=escape(str(error))), RELOAD_UNUSABLE)


def _say_broken(error: str, document: Document) -> None:
    """An edit cannot be executed. Panel loads the page again after the next one."""
    text = f"<p>What was edited cannot be executed; what was there before goes on.</p><pre>{escape(error)}</pre>"
    pn.pane.HTML(text, sizing_mode="stretch_width").server_doc(document, title="Error")


def _say(document: Document, title: str, text: str, reload: float) -> None:
    document.title = title
    document.add_root(Div(text=text, sizing_mode="stretch_width"))
    code = f"setTimeout(() => window.location.reload(), {reload * 1000})"
    document.js_on_event("document_ready", CustomJS(code=code))
