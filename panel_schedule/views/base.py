"""The session's own reactive face of a task or a stored value; it dies with the session."""

from __future__ import annotations

import asyncio
import logging
import threading
import warnings
import weakref
from collections.abc import Callable
from contextvars import Context
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any, TypeVar

import panel as pn
import param
from bokeh.document import Document
from panel.io.state import set_curdoc
from param import Skip
from param.parameterized import Event, Watcher, _batch_call_watchers, discard_events

from ..clock import Clock
from ..coordination.tasks import TASK, USER
from ..errors import is_interrupt
from ..functions.task import Task
from ..serialize.copies import holding_frames, own_copies
from ..serialize.entry import Entry
from ..serialize.errors import first_line
from .widgets import Percent, Text

log = logging.getLogger("panel_schedule")

# The fan-out updates up to this many documents, for up to this many seconds, then lets the
# event loop turn: 200 sessions at once would stall every page otherwise.
BURST = 5
BURST_SECONDS = 0.005
PAUSE_SECONDS = 0.001

# An update that fails is repeated so often, the first time after twice so many seconds, then after twice as many.
REPEATS = 6
REPEAT_SECONDS = 0.05


# So many of one session are more than a page needs.
MANY = 50

# No value is the same as this one: param compares the old one with the new one, item by item.
outdated = object()


class _OwnValue(param.Parameter):  # type: ignore[type-arg]
    """A value that belongs to one session: reading it in another one warns."""

    def __get__(self, obj: Any, objtype: Any = None) -> Any:
        if obj is not None:
            obj._warn_abroad()
        return super().__get__(obj, objtype)


class View(param.Parameterized):
    """
    A stored value as seen by one session. Its params serve as references for any component.

    A data frame is handed over as the session's own shallow copy (copy-on-write; a full copy before pandas 3), also one
    in a dict, list, tuple or dataclass, so that an editable table changes nobody else's data.
    """

    value = _OwnValue(doc="The last good value.")

    version = param.Integer(default=0, doc="Number of the value, from 1; 0 before the first one.")

    updated_at = param.Parameter(doc="When the value was stored: an aware datetime in UTC, None before the first one.")

    # The task that it shows, if it is one.
    _task: Task[Any] | None = None

    def __init__(self, home: weakref.ref[Document] | None, changed: Callable[[], None], **params: Any):
        self._home = home
        # Knows nothing of the session: it is what runs and answers, that everybody shares, call.
        self._changed = changed
        self._abroad = False
        # What it shows before there is a value: a copy of this.
        self._default: Any = None
        # The watchers that have failed, with what they are still to be told; and how the last one did.
        self._untold: dict[int, tuple[Watcher, list[Event]]] = {}
        self._trouble: BaseException | None = None
        super().__init__(**params)

    def pipe(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """
        Bind a function to the live value: ``pn.panel(view.pipe(chart))``.

        Parameters
        ----------
        function : callable
            Called as ``function(value, *args, **kwargs)`` after each update, and not before
            there is a value: until then nothing is shown.
        *args, **kwargs
            Values or references, as in ``pn.bind``.
        """
        if not callable(function):
            raise TypeError(f"{self.name}: pipe() takes a function of the value, and not {function!r}.")

        def piped(value: Any, *args: Any, **kwargs: Any) -> Any:
            if self.version == 0:
                raise Skip
            return function(value, *args, **kwargs)

        return pn.bind(piped, self.param.value, *args, **kwargs)

    def _set(self, **changes: Any) -> None:
        """
        Set params, and tell each watcher of all that concerns it: one that fails stops no other one.

        It is told again with the next call.
        """
        told = self.param
        with _batch_call_watchers(self, enable=True, run=False):
            told.update(**changes)
        events, watchers = list(told._events), list(told._state_watchers)
        untold, self._untold, self._trouble = self._untold, {}, None
        calls = {id(watcher): (watcher, events) for watcher in sorted(watchers, key=lambda each: each.precedence)}
        for watcher, earlier in untold.values():
            later = {event.name for event in events} if id(watcher) in calls else set()
            missed = [event._replace(new=getattr(self, event.name)) for event in earlier if event.name not in later]
            calls[id(watcher)] = watcher, [*missed, *(events if later else [])]
        for watcher, due in calls.values():
            told._events, told._state_watchers = list(due), [watcher]
            try:
                told._batch_call_watchers()
            except BaseException as error:
                if is_interrupt(error):
                    raise
                self._trouble = error
                self._untold[id(watcher)] = watcher, due

    def _follow(self) -> None:
        """Bring the params up to date; under the lock of the session's document."""
        raise NotImplementedError

    def _leave(self) -> None:
        """The session has ended."""

    def _attempt(self) -> None:
        """Bring it up to date at once; where that fails, soon."""
        try:
            self._follow()
        except BaseException as error:
            if is_interrupt(error):
                raise
            self._changed()
        else:
            if self._trouble is not None:
                self._changed()

    def _take(self, entry: Entry | None, default: Any) -> dict[str, Any]:
        if entry is None:
            if self.version or default is self._default:
                return {}
            self._default = default
            return {"value": own_copies(default, holding_frames(default))}
        if entry.version == self.version:
            return {}
        value = entry.for_page()
        with discard_events(self):
            # param compares the old value with the new one, item by item, to see whether it changed.
            # A new version is news by itself, also when a task returns the list that it returned before.
            self.value = outdated
        return {"value": value, "version": entry.version, "updated_at": entry.updated_at}

    def _warn_abroad(self) -> None:
        if self._abroad or (here := pn.state.curdoc) is None or here.session_context is None:
            return
        if self._home is not None and here is self._home():
            return
        self._abroad = True
        warnings.warn(
            f"{self!r} belongs to another session than the one that reads it now. Make one with .view() (or .rx) in "
            "the code of the page, once per session, instead of sharing one through a global.",
            stacklevel=4,
        )


class NamedView(View):
    """A value in ``ps.store`` as seen by one session; made by ``ps.store.rx(name)``."""

    def __init__(
        self,
        home: weakref.ref[Document] | None,
        changed: Callable[[], None],
        name: str,
        entry: Callable[[], Entry | None],
    ):
        super().__init__(home, changed, name=name)
        self._entry = entry

    def _follow(self) -> None:
        now = self._entry()
        # A value that was deleted leaves nothing behind, unlike a task's.
        self._set(**({"value": None, "version": 0, "updated_at": None} if now is None else self._take(now, None)))


class TaskView(View):
    """
    A task as seen by one session; made by ``task.view()``.

    Besides its value it carries what there is to say about it: state, progress, errors.
    """

    state: Any = param.Selector(
        default="idle",
        objects=["idle", "queued", "running", "failed", "paused", "removed"],
        doc="What the task is doing.",
    )

    running = param.Boolean(default=False, doc="True from queued on, until the run has ended.")

    percent = Percent(doc="Progress of the run; -1 while unknown.")

    message = Text(doc="What the run says about its progress.")

    error = Text(doc='First line of the last failure; "" when the last run succeeded.')

    stale = param.Boolean(default=False, doc="The value is older than the task promised.")

    next_run = param.Parameter(
        doc="""
        When it is due next: an aware datetime, in the zone of its cron schedule, else of ``ps.config.timezone`` or
        UTC. None where no clock decides."""
    )

    _task: Task[Any]

    def __init__(self, home: weakref.ref[Document] | None, changed: Callable[[], None], task: Task[Any]):
        super().__init__(home, changed, name=task.name)
        self._task = task
        # By columns and rows, what keeps a source in line with it.
        self._streams: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<TaskView {self.name!r} version {self.version}>"

    def _promise(self) -> tuple[datetime, datetime | None]:
        """What time it is, and until when the value is what the task promised."""
        return self._task.promise()

    def _follow(self) -> None:
        task, status = self._task, self._task.status
        news = {}
        try:
            news = self._take(task.entry, task.policy.default)
        finally:  # whatever becomes of the value
            self._set(
                state=status.state,
                running=status.running,
                percent=status.percent,
                message=status.message,
                error=status.error,
                stale=status.stale,
                next_run=status.next_run,
                **news,
            )


V = TypeVar("V", bound=View)

# Makes a view of a document's, which calls the second when there is news.
_Make = Callable[[weakref.ref[Document] | None, Callable[[], None]], V]

# The namespace of what belongs to one session, beside those of the store; and the view of all others of that session.
OWN = "own"
PAGE = (OWN, "page")


class _Session:
    """What one document shows, and what of it has changed. Never refers to the document strongly."""

    __slots__ = ("__weakref__", "changed", "document", "failing", "loaded", "views")

    def __init__(self, document: weakref.ref[Document] | None):
        self.document = document
        # A change that is sent while the browser still loads the page can be lost: it waits until then.
        self.loaded = document is None or pn.state.loaded
        self.views: dict[tuple[str, str], View] = {}
        self.changed: set[tuple[str, str]] = set()
        # How often the update of a view has failed.
        self.failing: dict[tuple[str, str], int] = {}


class Views:
    """
    All views of this process, and the way a new value takes to them.

    Parameters
    ----------
    clock : Clock
    loop : callable
        Returns the server's (or the notebook's) event loop, None where there is none.
    watch : callable
        ``watch(task, 1)`` and ``watch(task, -1)`` when a session begins and ceases to show a task.
    """

    def __init__(
        self,
        clock: Clock,
        loop: Callable[[], asyncio.AbstractEventLoop | None],
        watch: Callable[[Task[Any], int], object],
    ):
        self._clock = clock
        self._loop = loop
        self._watch = watch
        self._lock = threading.Lock()
        self._number = count(1)
        # By document, so that the lookup is one per session; emptied by the session's end.
        self._sessions: dict[Document | None, _Session] = {}
        self._showing: dict[tuple[str, str], set[_Session]] = {}
        self._waiting: dict[_Session, None] = {}
        self._pumping: object = None
        # Seconds that one document takes, a running mean; it begins high, so that the first burst is short.
        self._cost = BURST_SECONDS

    def __len__(self) -> int:
        """How many views are alive."""
        with self._lock:
            return sum(len(session.views) for session in self._sessions.values())

    def of_task(self, task: Task[Any]) -> TaskView:
        """This session's view of a task."""
        return self._stored((TASK, task.name), lambda home, changed: TaskView(home, changed, task), task)

    def of_name(self, name: str, entry: Callable[[], Entry | None]) -> View:
        """This session's view of a value in ``ps.store``."""
        return self._stored((USER, name), lambda home, changed: NamedView(home, changed, name, entry))

    def _stored(self, key: tuple[str, str], make: _Make[V], task: Task[Any] | None = None) -> V:
        view, new = self._find(key, make, task)
        if new:
            # After subscribing, read once more: a value may have come in between.
            view._attempt()
        return view

    def admit(self, make: _Make[V], name: str | None = None) -> V:
        """
        A view of this session's own of something that no other session sees.

        Parameters
        ----------
        make : callable
            Called as ``make(home, changed)``; the view's ``_follow()`` comes after each ``changed()``, and its
            ``_leave()`` at the end of the session.
        name : str, optional
            With the same one a session gets the same view again.
        """
        return self._find((OWN, name or str(next(self._number))), make)[0]

    def mine(self) -> list[View]:
        """All that this session has."""
        with self._lock:
            session = self._sessions.get(pn.state.curdoc)
            return [] if session is None else list(session.views.values())

    def changed(self, space: str, name: str) -> None:
        """Something about it is new; callable from any thread, returns at once."""
        key = (space, name)
        if key not in self._showing:
            return
        with self._lock:
            sessions = list(self._showing.get(key, ()))
        self._update(key, sessions)

    def _update(self, key: tuple[str, str], sessions: list[_Session]) -> None:
        with self._lock:
            for session in sessions:
                session.changed.add(key)
                if session.loaded:
                    self._waiting[session] = None
            if not self._waiting:
                return
            loop = self._loop()
            # One at a time: two threads that update one view would disturb each other in param.
            if self._pumping is (loop or self):
                return
            self._pumping = loop or self
        if loop is None:
            # In a script there is no loop to hand it to: watchers run where the value was published.
            while (waiting := self._next_waiting()) is not None:
                self._deliver(waiting)
        else:
            loop.call_soon_threadsafe(self._pump, loop, context=Context())

    # ------------------------------------------------------------ sessions

    def _find(self, key: tuple[str, str], make: _Make[V], task: Task[Any] | None = None) -> tuple[V, bool]:
        """The view of this key, and whether it is new."""
        document = pn.state.curdoc
        with self._lock:
            session = self._sessions.get(document)
            known: Any = session.views.get(key) if session is not None else None
        if known is not None and known._task is task:
            return known, False
        if known is not None and known._task is not None:
            # Of a task of that name which was cancelled: its view keeps the last value, for those who have it.
            self._watch(known._task, -1)
        view = make(None if document is None else weakref.ref(document), partial(self.changed, *key))
        # A document without a session, as --warm makes them, no browser will ever see: nobody would end it.
        if document is None or document.session_context is not None:
            self._enter(document, key, view)
        return view, True

    def _enter(self, document: Document | None, key: tuple[str, str], view: View) -> None:
        home = None if document is None else weakref.ref(document)
        with self._lock:
            session = self._sessions.get(document)
            opened = session is None
            if session is None:
                session = self._sessions[document] = _Session(home)
            session.views[key] = view
            page = PAGE in session.views
            many = len(session.views) == MANY and document is not None
            self._showing.setdefault(key, set()).add(session)
        if many:
            log.warning(
                "One session has made %d views and jobs, the last one of %r. Those that are made in a callback, or in "
                "a function of pn.bind, pile up until the session ends: make one outside, and give it the widgets "
                "themselves as arguments.", MANY, view.name,
            )  # fmt: skip
        if opened and document is not None:
            document.on_session_destroyed(_weakly(Views.forget, weakref.ref(self), weakref.ref(document)))
            if not session.loaded:
                document.on_event("document_ready", _weakly(Views.loaded, weakref.ref(self), weakref.ref(session)))
        if view._task is not None:
            self._watch(view._task, 1)
        if page:
            self._update(PAGE, [session])

    def loaded(self, session: _Session) -> None:
        """The browser has loaded the page: tell it what has changed meanwhile."""
        with self._lock:
            session.loaded = True
            changed = list(session.changed)
        for key in changed:
            self.changed(*key)

    def forget(self, document: Document | None) -> None:
        """The session of a document has ended."""
        with self._lock:
            session = self._sessions.pop(document, None)
            if session is None:
                return
            self._waiting.pop(session, None)
            for key in session.views:
                showing = self._showing[key]
                showing.discard(session)
                if not showing:
                    del self._showing[key]
            left = list(session.views.values())
            session.views.clear()
        for view in left:
            view._leave()
            if view._task is not None:
                self._watch(view._task, -1)

    # ------------------------------------------------------------ fan-out

    def _pump(self, loop: asyncio.AbstractEventLoop) -> None:
        """Update a few documents, then let the loop turn."""
        burst = max(1, min(BURST, int(BURST_SECONDS / max(self._cost, 1e-6))))
        for _ in range(burst):
            session = self._next_waiting()
            if session is None:
                return
            self._deliver(session)
        loop.call_later(PAUSE_SECONDS, self._pump, loop, context=Context())

    def _next_waiting(self) -> _Session | None:
        with self._lock:
            if not self._waiting:
                self._pumping = None
                return None
            session = next(iter(self._waiting))
            del self._waiting[session]
            return session

    def _deliver(self, session: _Session) -> None:
        if session.document is None:
            self._push(session)
            return
        document = session.document()
        if document is None:
            return
        try:
            # Bokeh runs it under the document's lock; by then it may have newer values still.
            document.add_next_tick_callback(partial(self._push, session))
        except AttributeError:
            # The document was destroyed a moment ago.
            self.forget(document)

    def _push(self, session: _Session) -> None:
        document = None if session.document is None else session.document()
        if session.document is not None and document is None:
            return
        with self._lock:
            changed, session.changed = session.changed, set()
            shown = {key: session.views[key] for key in changed if key in session.views}
        started = self._clock.monotonic()
        with set_curdoc(document):
            for key, each in shown.items():
                try:
                    each._follow()
                    trouble = each._trouble
                except BaseException as error:
                    if is_interrupt(error):
                        raise
                    trouble = error
                if trouble is None:
                    session.failing.pop(key, None)
                else:
                    self._repeat(session, key, each, trouble)
        self._cost += 0.2 * (self._clock.monotonic() - started - self._cost)

    def _repeat(self, session: _Session, key: tuple[str, str], view: View, trouble: BaseException) -> None:
        """Update it again in a moment, when what was in its way may be over: a module that was half imported, say."""
        session.failing[key] = attempt = session.failing.get(key, 0) + 1
        loop = self._loop()
        if attempt <= REPEATS and loop is not None:
            again = partial(self._update, key, [session])
            loop.call_soon_threadsafe(loop.call_later, REPEAT_SECONDS * 2**attempt, again, context=Context())
            return
        del session.failing[key]
        view._untold, view._trouble = {}, None
        log.error(
            "A watcher of the view of %r failed%s; no other watcher and no other session is affected: %s",
            view.name, f" {attempt} times" if attempt > 1 else "", first_line(trouble), exc_info=trouble,
        )  # fmt: skip


def as_reference(value: Any) -> Any:
    """A task stands for its live value wherever param accepts a reference."""
    return value.view().param.value if isinstance(value, Task) else value


def _weakly(method: Callable[[Any, Any], None], *references: weakref.ref[Any]) -> Callable[[Any], None]:
    """A callback of a document, which keeps alive nothing of what it is about."""

    def call(event: Any) -> None:
        owner, other = (reference() for reference in references)
        if owner is not None and other is not None:
            method(owner, other)

    return call


param.parameterized.register_reference_transform(as_reference)
