"""A background function as one session sees it: what its buttons start, and how far that has come."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

import panel as pn
import param
from bokeh.document import Document
from bokeh.events import Event as BokehEvent
from panel.viewable import Viewer
from param.parameterized import Event, discard_events

from ..clock import Clock
from ..functions.background import Background, OnSessionEnd, Retrigger
from ..functions.run import Cause, Run, RunState
from ..jobs.queue import Dispatcher
from ..serialize.copies import holding_frames, own_copies, snapshot
from ..serialize.entry import Entry
from ..serialize.errors import first_line
from ..serialize.references import resolved
from .base import View, outdated
from .buttons import SteadyButton
from .widgets import Percent, Text

IDLE = "idle"

# After these there is an error to be read; that somebody cancelled it is none.
_TROUBLE = (RunState.FAILED, RunState.TIMED_OUT, RunState.CRASHED, RunState.SKIPPED)

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Host(Protocol):
    """What a job asks of the layers above."""

    @property
    def clock(self) -> Clock: ...
    @property
    def user(self) -> str | None: ...
    @property
    def dispatcher(self) -> Dispatcher: ...

    def show(self, shown: Job) -> Any: ...
    def show_progress(self, job: Job) -> Any: ...


class Job(View, Viewer):
    """
    A background function as seen by one session; made by ``function.job(...)``. Its params serve as references.

    Progress and partial results are reset when a run starts, and stay when it has ended; `value` stays until the
    next result. What a session sees is its own: two that start the same have a run each.

    Attributes
    ----------
    run : Run or None
        The run that it shows.

    Examples
    --------
    >>> import panel_schedule as ps
    >>> @ps.background(executor="thread")
    ... def power(base, exponent=2):
    ...     return base**exponent
    >>> job = power.job(base=3)
    >>> job.start(exponent=3).result()
    27
    """

    running = param.Boolean(default=False, doc="True from queued on, until the run has ended.")

    percent = Percent(doc="How far the run has come; -1 while unknown.")

    message = Text(doc="What the run says about its progress.")

    partial = param.Parameter(doc="The newest partial result; `run.partials` has all.")

    error = Text(doc='First line of what went wrong; "" when nothing did.')

    state: Any = param.Selector(
        default=IDLE, objects=[IDLE, *map(str, RunState)], doc="Of the run; 'idle' before the first one."
    )

    position = param.Integer(default=0, doc="Place in the queue, from 1; 0 when the run has begun.")

    started_at = param.Parameter(doc="When the run began: an aware datetime in UTC, None before.")

    finished_at = param.Parameter(doc="When the run ended: an aware datetime in UTC, None before.")

    def __init__(
        self,
        home: weakref.ref[Document] | None,
        changed: Callable[[], None],
        function: Background[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        host: Host,
    ):
        super().__init__(home, changed, name=function.name)
        self.run: Run | None = None
        self._function = function
        self._given = self._named(args, kwargs)
        self._host = host
        # Of the session: a click may come on a thread that knows of none.
        self._user = host.user
        self._waiting: deque[Call] = deque()
        self._unwatch: Callable[[], None] = lambda: None
        self._seen: tuple[Any, int] = (None, 0)
        # Whether the params are those of another run still, and what was wrong with a start.
        self._reset = False
        self._refused = ""
        # Whether this session started the run.
        self._started = False
        self._over = False
        # The run whose end has been told.
        self._ended: Run | None = None

    def __repr__(self) -> str:
        return f"<Job {self.name!r} {self.state}>"

    # ------------------------------------------------------------ acting

    def start(self, *args: Any, **kwargs: Any) -> Run | None:
        """
        Run the function with the session's arguments. Fits ``on_click=``: a lone event is ignored.

        Parameters
        ----------
        *args, **kwargs
            Instead of those given to ``function.job(...)``.

        Returns
        -------
        Run or None
            None when it is ignored, or waits for the end of another one: see `retrigger`.

        Raises
        ------
        TypeError
            When an argument is missing.
        ValueRefused, ArgumentUnkeyable
            As ``function.submit(...)`` does; `state` and `error` say so, too.
        """
        if not kwargs and len(args) == 1 and isinstance(args[0], (Event, BokehEvent)):
            args = ()
        call = snapshot(*self._call(args, kwargs))
        if self.run is not None and not self.run.state.final:
            match self._function.policy.retrigger:
                case Retrigger.IGNORE:
                    return None
                case Retrigger.QUEUE:
                    self._waiting.append(call)
                    return None
            self._unwatch()
            self._host.dispatcher.abandon(self.run, Cause.REPLACED)
        return self._launch(call)

    def cancel(self, _event: object = None) -> None:
        """Stop the run, and what waits behind it. Fits ``on_click=``."""
        self._waiting.clear()
        if self.run is not None:
            self.run.cancel()
            self._catch_up()

    def attach(self, run: Run | str) -> None:
        """
        Follow a run that there is already: after a reload of the page, say.

        Parameters
        ----------
        run : Run or str
            The run, or its id, which the page's address may carry.

        Raises
        ------
        KeyError
            When there is no run of this id, or no longer.
        TypeError
            When it is a run of another function.
        """
        if not isinstance(run, (str, Run)):
            raise TypeError(
                f"Job {self.name!r}: attach() takes a run of {self.name}.submit(), or its id, and not {run!r}."
            )
        found = self._host.dispatcher.find(run) if isinstance(run, str) else run
        if found is None:
            raise KeyError(
                f"Job {self.name!r}: there is no run {run!r}, or its result has expired. {self.name}.runs() has those "
                "that there are."
            )
        if found.task != self.name:
            raise TypeError(f"Job {self.name!r} cannot show a run of {found.task!r}. Attach a job of that function.")
        self._waiting.clear()
        self._started = False
        self._show(found)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        args, kwargs = self._in_order(self._given | self._named(args, kwargs))
        call = tuple(map(resolved, args)), {name: resolved(each) for name, each in kwargs.items()}
        self._function.check(*call)
        return call

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        signature = self._function.signature
        try:
            return signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"Job {self.name!r}: {error}. It takes {signature}.") from None

    def _in_order(self, arguments: dict[str, Any]) -> Call:
        bound = self._function.signature.bind_partial()
        bound.arguments |= {name: arguments[name] for name in bound.signature.parameters if name in arguments}
        return bound.args, bound.kwargs

    def _launch(self, call: Call) -> Run:
        args, kwargs = call
        try:
            run = self._function.submit_for(self._user, args, kwargs)
        except BaseException as error:
            self._refused = first_line(error)
            self._show(None)
            raise
        self._started = True
        self._show(run)
        return run

    def _show(self, run: Run | None) -> None:
        self._unwatch()
        self.run, self._seen, self._over, self._reset = run, (run, 0), False, True
        if run is not None:
            self._unwatch = self._host.dispatcher.follow(run, self._changed)
        self._catch_up()

    def _catch_up(self) -> None:
        """Follow at once while the page is being built, then under its lock: a click may come without."""
        home = None if self._home is None else self._home()
        if home is None or (home is pn.state.curdoc and not pn.state.loaded):
            self._attempt()
        else:
            self._changed()

    def _leave(self) -> None:
        """The session has ended."""
        self._waiting.clear()
        self._unwatch()
        run, policy = self.run, self._function.policy
        # Who only looks at a durable run, which has perhaps outlived its session and its server, does not end it.
        ends = policy.on_session_end is OnSessionEnd.CANCEL and (self._started or not policy.durable)
        if run is not None and ends:
            self._host.dispatcher.abandon(run, Cause.SESSION_ENDED)

    # ------------------------------------------------------------ following

    def _follow(self) -> None:
        """Bring the params in line with the run; under the lock of the session's document."""
        run, news = self.run, dict[str, Any]()
        if self._reset:
            self._reset, news = False, {"percent": -1, "message": "", "partial": None}
            if run is None:  # it was refused
                news |= {"state": str(RunState.FAILED), "running": False, "error": self._refused}
                self._set(**news)
        if run is None or self._over:
            self._set()  # for those watchers that have failed
            return
        state = run.state
        try:
            news |= self._read(run, state)
            self._over = state.final
        finally:  # whatever becomes of the value
            self._tell_state(run, state, news)

    def _read(self, run: Run, state: RunState) -> dict[str, Any]:
        """What it has given since the last time."""
        news, partials = dict[str, Any](), run.partials
        if partials and self._seen != (run, len(partials)):
            partial = own_copies(partials[-1], holding_frames(partials[-1]))
            self._seen = (run, len(partials))
            with discard_events(self):
                self.partial = outdated
            news["partial"] = partial
        if state is RunState.SUCCEEDED:
            news |= self._take(Entry(run.shared, self.version + 1, run.finished_at or run.queued_at), None)
        return news

    def _tell_state(self, run: Run, state: RunState, news: dict[str, Any]) -> None:
        ended = state.final and self._ended is not run
        news |= {
            "state": str(state),
            "running": not state.final,
            "percent": run.percent,
            "message": run.message,
            "error": first_line(run.error) if state in _TROUBLE else "",
            "position": run.position,
            "started_at": run.started_at,
            "finished_at": run.finished_at,
        }
        self._set(**news)
        if ended:
            self._ended = run
            self._unwatch()
            if self._waiting:
                self._launch(self._waiting.popleft())

    # ------------------------------------------------------------ showing

    @property
    def inputs(self) -> list[Any]:
        """The widgets among the arguments given to ``function.job(...)``, in the function's order."""
        args, kwargs = self._in_order(self._given)
        widgets = [each for each in (*args, *kwargs.values()) if isinstance(each, pn.widgets.base.WidgetBase)]
        return list(dict.fromkeys(widgets))

    @property
    def elapsed(self) -> float | None:
        """Seconds that the run has taken, so far or in all; None before it has begun, and when it was over before."""
        since: datetime | None = self.started_at
        until: datetime | None = self.finished_at
        if until is not None and self.run is not None and until <= self.run.queued_at:
            return None
        return ((until or self._host.clock.now()) - since).total_seconds() if since else None

    @cached_property
    def run_button(self) -> Any:
        """A button that starts it."""
        # To click again means something unless it is ignored.
        ignored = self._function.policy.retrigger is Retrigger.IGNORE
        useless = self.param.running if ignored else False
        return SteadyButton(name="Run", button_type="primary", on_click=self.start, useless=useless)

    @cached_property
    def cancel_button(self) -> Any:
        """A button that cancels it; looks disabled while there is nothing to cancel."""
        return SteadyButton(name="Cancel", on_click=self.cancel, useless=self.param.running.rx.not_())

    @cached_property
    def progress(self) -> Any:
        """The progress bar, with the message and the time that it takes."""
        return self._host.show_progress(self)

    @cached_property
    def _panel(self) -> Any:
        return self._host.show(self)

    def __panel__(self) -> Any:
        return self._panel
