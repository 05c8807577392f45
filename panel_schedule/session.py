"""
No visitor's session in a run: inside of one, Panel and Bokeh have no current document that a session owns.

An empty context is not enough. Up to 3.9 Bokeh keeps the current documents in one stack of the whole process, so that a
thread is told of the page that the event loop builds at that moment; here each thread gets a stack of its own, as from
Bokeh 3.10 on each context has. And Bokeh's default document may be a session's, too: a run gets one of its own.

Imports neither, as a worker process often has none of them.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token, copy_context
from typing import Any, TypeVar

from .notebook import speak

T = TypeVar("T")

log = logging.getLogger("panel_schedule")

# What of ``pn.state`` belongs to one session. Other members look for a document, too, and do well without.
_OF_A_SESSION = {
    "access_token", "app_url", "base_url", "browser_info", "cookies", "curdoc", "headers", "location", "notifications",
    "refresh_token", "rel_path", "served", "session_args", "template", "user", "user_info",
}  # fmt: skip

# Libraries that look for a document by themselves, whatever is built with them.
_LIBRARIES = {"bokeh", "geoviews", "holoviews", "hvplot", "panel", "panel_material_ui", "panel_schedule", "param"}

_told: set[str] = set()


class NoSession(list[Any]):
    """In place of Bokeh's stack of current documents: at its bottom lies one that no session has, made when needed."""

    __slots__ = ("_document", "_name")

    def __init__(self, name: str):
        self._name = name
        self._document: Any = None

    def __len__(self) -> int:
        size = super().__len__()
        if not size and self._name not in _told:
            _warn(self._name)
        return size or 1

    def __getitem__(self, at: Any) -> Any:
        if super().__len__():
            return super().__getitem__(at)
        if self._document is None:
            self._document = sys.modules["bokeh.document"].Document()
        return lambda: self._document

    def pop(self, at: Any = -1) -> Any:
        return super().pop(at) if super().__len__() else None


class _Stacks:
    """Bokeh's stack before 3.10: of each thread its own, and of a run, which may wait on a loop, in its context."""

    def __init__(self, documents: list[Any]):
        # Whoever is about to take one away again has put it there from here, or where servers run.
        self._before = documents
        self._threads = threading.local()
        self._threads.documents = documents
        self._run: ContextVar[NoSession | None] = ContextVar("panel_schedule_documents", default=None)

    @property
    def _documents(self) -> list[Any]:
        if (own := self._run.get()) is not None:
            return own
        documents: list[Any] | None = getattr(self._threads, "documents", None)
        if documents is None:
            main = threading.current_thread() is threading.main_thread()
            documents = self._threads.documents = self._before if main else []
        return documents

    def set(self, documents: NoSession) -> Token[NoSession | None]:
        return self._run.set(documents)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, at: Any) -> Any:
        return self._documents[at]

    def append(self, document: Any) -> None:
        self._documents.append(document)

    def pop(self) -> None:
        if documents := self._documents:
            documents.pop()


def separate() -> Any:
    """Give each thread its own current document, where Bokeh does not. Idempotent; None where there is no Bokeh."""
    module = sys.modules.get("bokeh.io.doc")
    documents = getattr(module, "_PATCHED_CURDOCS", None)
    if type(documents) is list:
        documents = module._PATCHED_CURDOCS = _Stacks(documents)  # type: ignore[union-attr]
    return documents


def leave_session(name: str) -> None:
    """
    From here on this context, which must be an empty one, sees no session.

    Parameters
    ----------
    name : str
        Who is told, once, when it looks for one: ``"Task 'sales'"``.
    """
    if (documents := separate()) is not None:
        documents.set(NoSession(name))
    speak(name)


def without_session(name: str, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What a call gives that sees no session, and all the rest of the caller's context."""

    def apart() -> T:
        leave_session(name)
        if (panel := sys.modules.get("panel.io.state")) is not None:
            panel.state._curdoc.set(None)
        return call(*args, **kwargs)

    return copy_context().run(apart)


def _warn(name: str) -> None:
    """Say it if it is the user's code that asks: not what a library does for it, nor Bokeh, which adds a document."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    what, reader = "bokeh.io.curdoc()", frame.f_back
    if frame.f_code.co_name != "curdoc":
        return
    while reader is not None and reader.f_globals.get("__name__") == "panel.io.state":
        member, reader = reader.f_code.co_name, reader.f_back
        what = f"pn.state.{member}" if member in _OF_A_SESSION else ""
    if not what or reader is None or str(reader.f_globals.get("__name__")).partition(".")[0] in _LIBRARIES:
        return
    _told.add(name)
    log.warning(
        "%s reads %s, in %s, line %d. It runs for all visitors and sees no session there: pass what it needs of one "
        "as an argument.", name, what, reader.f_code.co_filename, reader.f_lineno,
    )  # fmt: skip
