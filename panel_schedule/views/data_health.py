"""A badge for the head of a page: whether all that the page shows is as fresh as was promised."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import panel as pn
import param
from bokeh.document import Document
from panel.viewable import Viewer

from ..errors import RegistrationError
from .base import TaskView, View
from .memo import MemoView
from .widgets import Told

log = logging.getLogger("panel_schedule")

HERE = Path(__file__).parent


class HealthBadge(Told):
    """The badge itself, and the list that it opens."""

    _esm = HERE.joinpath("data_health.js").read_text("utf-8")

    _stylesheets = [HERE.joinpath("data_health.css").read_text("utf-8")]


class PageView(View):
    """
    All tasks and answers of one session, and how fresh each is.

    Parameters
    ----------
    home, changed
        See `View`.
    views : callable
        What else the session has, as often as it is asked.
    may_run : callable
        Whether who is logged in where it is called may have something of it run.
    """

    shown = param.List(default=[], doc="Of each what the badge says of it.")

    def __init__(
        self,
        home: weakref.ref[Document] | None,
        changed: Callable[[], None],
        views: Callable[[], list[View]],
        may_run: Callable[[], bool],
    ):
        super().__init__(home, changed, name="page")
        self._views, self._may_run = views, may_run
        # By which the browser names them: there may be several of one name.
        self._numbers: weakref.WeakKeyDictionary[View, int] = weakref.WeakKeyDictionary()
        self._number = count()

    def _follow(self) -> None:
        views = [view for view in self._views() if isinstance(view, (TaskView, MemoView))]
        for view in views:
            if view not in self._numbers:
                self._numbers[view] = next(self._number)
                running = "running" if isinstance(view, MemoView) else "state"
                view.param.watch(lambda *_: self._changed(), ["version", "updated_at", "stale", "error", running])
        may = self._may_run()
        told = [_told(view) | {"number": self._numbers[view], "run": _run(view) if may else ""} for view in views]
        self._set(shown=sorted(told, key=lambda each: str(each["name"])))

    def run_now(self, said: Any) -> None:
        """The browser asks for a run, or an answer computed anew. It may say anything, whoever looks at it."""
        if not (isinstance(said, dict) and self._may_run()):
            return
        for view in self._views():
            if isinstance(view, (TaskView, MemoView)) and self._numbers.get(view, "") == said.get("run"):
                log.warning("The badge of a page: user %r asks for a run of %r", pn.state.user, view.name)
                with suppress(RegistrationError):  # it was cancelled a moment ago
                    (view._task if isinstance(view, TaskView) else view).refresh()


def _told(view: TaskView | MemoView) -> dict[str, Any]:
    now, until = view._promise()
    if isinstance(view, TaskView):
        state = "idle" if view.running and view.version else view.state
    else:
        state = "running" if view.running else "idle"
    return {
        "name": view.name,
        # Unix times in seconds, as in `Freshness`.
        "updated": view.updated_at.timestamp() if view.updated_at else None,
        "fresh_until": until.timestamp() if until is not None else None,
        "now": now.timestamp(),
        "state": state,
        "stale": view.stale and state != "running",
        "error": view.error,
    }


def _run(view: TaskView | MemoView) -> str:
    """What its button says; "" where there is none, as of a task that runs no more."""
    if isinstance(view, TaskView) and view.state == "removed":
        return ""
    return "Running" if view.running else "Run now"


class DataHealth(Viewer):
    """
    A badge that says how fresh the data of a page is: "All 5 up to date".

    It shows the worst state of all tasks and answers of memoized functions that the page has, which it finds by itself,
    also those that come later. Clicked on it opens a list of each: how old it is, until when it was promised, and the
    first line of the last error. The browser counts for itself, and says so when the server is gone. For users of
    ``ps.config.admins`` each has a button that runs it now, or computes the answer anew.

    Parameters
    ----------
    label : str
        Put before it, ``"Data"`` say.

    Examples
    --------
    >>> import panel_schedule as ps
    >>> @ps.schedule(period="1h", first_run="skip")
    ... def prices():
    ...     return [1, 2, 3]
    >>> badge = ps.DataHealth()
    """

    # The view of this session, from who has the views.
    _of_page: ClassVar[staticmethod[[], PageView]]

    def __init__(self, label: str = "", **params: Any):
        if not isinstance(label, str):
            raise TypeError(
                f"ps.DataHealth(label={label!r}): the label is a text. What the page shows it finds by itself."
            )
        super().__init__(**params)
        self._badge = HealthBadge(label=label, margin=(2, 10))
        view = self._of_page()
        self._badge.on_msg(lambda event: view.run_now(event.data))
        view.param.watch(lambda *_: self._tell(view), "shown")
        self._tell(view)

    def _tell(self, view: PageView) -> None:
        self._badge.told = {"items": view.shown}

    def __panel__(self) -> Any:
        return self._badge
