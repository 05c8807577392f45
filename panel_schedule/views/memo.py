"""A memoized function as one session sees it: the live answer to arguments that change."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol

import param
from bokeh.document import Document
from param.parameterized import Event

from ..cache.single_flight import SingleFlight
from ..clock import Clock
from ..coordination.answers import Basis
from ..engine.service import Service
from ..errors import is_interrupt
from ..functions.lru import Answer, Watched
from ..functions.memoize import Memoized
from ..functions.run import Run, RunState, on_a_loop
from ..scheduling.planner import ALLOWANCE
from ..serialize.checks import is_light
from ..serialize.entry import Entry
from ..serialize.errors import first_line
from ..serialize.references import references, resolved
from .base import View
from .widgets import Percent, Text

# Inputs that follow one another within this time, in seconds, are one movement, as a dragged slider makes: after its
# first one, only its last is computed.
MOVEMENT = 0.5

# It is over when nothing comes for this long, or for twice the time between the last two: a busy page takes them late.
SETTLING = 0.15

Call = tuple[tuple[Any, ...], dict[str, Any]]
Memo = Memoized[Any, Any]
# A key, the versions of the tasks of ``after=``, and how often the answer was invalidated.
Wish = tuple[Hashable, Basis, int]


class Host(Protocol):
    """What a view asks of the layers above."""

    @property
    def clock(self) -> Clock: ...
    @property
    def service(self) -> Service: ...
    @property
    def single_flight(self) -> SingleFlight: ...

    def later(self, seconds: float, call: Callable[[], object]) -> Callable[[], None]: ...
    def show(self, shown: MemoView) -> Any: ...


class MemoView(View):
    """
    The answer of a memoized function to a session's own arguments; made by ``function.view(...)``.

    It may be handed to any component where a live value is wanted, and its params serve as references. A change of
    an argument computes in the background; what was there stays until the new answer comes, and the newest arguments
    win.

    Examples
    --------
    >>> import panel_schedule as ps
    >>> @ps.memoize
    ... def squared(number):
    ...     return number**2
    >>> squared(7)
    49
    >>> view = squared.view(7)
    >>> view.value, view.running, view.stale
    (49, False, False)
    """

    running = param.Boolean(default=False, doc="An answer to the arguments as they are now is on its way.")

    percent = Percent(
        doc="How far that has come; -1 while unknown. Also of what others compute anew, in whichever process."
    )

    message = Text(doc="What the function says about its progress.")

    error = Text(doc='First line of what went wrong with these arguments; "" when nothing did.')

    stale = param.Boolean(
        default=False,
        doc="""
        Whether `value` is something else than a fresh answer to the arguments as they are now: of earlier ones,
        beyond its lifetime, or of before a task of ``after=`` had a new value; or such a task is stale itself.""",
    )

    def __init__(
        self,
        home: weakref.ref[Document] | None,
        changed: Callable[[], None],
        memo: Memo,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        host: Host,
    ):
        super().__init__(home, changed, name=memo.name)
        try:
            memo.signature.bind_partial(*args, **kwargs)  # which names what there is not, before what is missing
            bound = memo.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{memo.name}.view(): {error}. It takes {memo.signature}.") from None
        self._memo = memo
        self._host = host
        self._given: Call = memo.keys.now(bound.args, bound.kwargs)
        self._references = list(_references(self._given))
        self._upstream = [task.view() for task in memo.policy.after]
        news = [param for view in self._upstream for param in (view.param.version, view.param.stale)]
        self._watchers = [*_watch(self._references, self._move), *_watch(news, self._stir)]
        # The arguments as they were read last; and their key, with what is known of that call, once there is one.
        self._call: Call = (), {}
        self._key: Hashable | None = None
        self._watched: Watched | None = None
        # Arguments whose key another thread makes, and the key behind them once there is one.
        self._making: list[Any] | None = None
        self._moved = True
        self._moved_at = self._settled_at = float("-inf")
        # What was asked for last: asked again, it would come to the same. And who asks.
        self._asked: Wish | None = None
        self._run: Run | None = None
        self._unwatch: Callable[[], None] = lambda: None
        # What is shown, and for which wish; and the partial answer that was seen last.
        self._shown: tuple[Answer | None, Wish | None] = (None, None)
        self._partial: Entry | None = None
        self._failure = ""
        self._timers: dict[str, Callable[[], None]] = {}
        self._over = False

    def __repr__(self) -> str:
        return f"<MemoView {self.name!r} version {self.version}>"

    def __panel__(self) -> Any:
        return self._host.show(self)

    def __getitem__(self, key: object) -> Any:
        raise TypeError(
            f"{self!r} is a live view and not the answer itself: use {self.name}.view(...).pipe(f), which calls "
            "f(answer) for each one, or its .value, which is None before the first one."
        )

    @property
    def rx(self) -> Any:
        """The live answer as a reactive expression; None before the first one."""
        return self.param.value.rx

    def refresh(self, _event: object = None) -> Run | None:
        """
        Compute the answer anew. Fits ``on_click=``.

        Returns
        -------
        Run or None
            None while an argument has no value yet.
        """
        if self._moved:
            self._read()
        if self._watched is not None:
            self._ask(refresh=True)
            self._changed()
        return self._run

    # ------------------------------------------------------------ arguments

    def _move(self, *events: Event) -> None:
        """An argument has changed. What is set in one go is read at the loop's next turn, all together."""
        now = self._host.clock.monotonic()
        if not self._moved:
            since = now - self._moved_at
            self._settled_at = now if since >= MOVEMENT else now + min(MOVEMENT, max(SETTLING, 2 * since))
        self._moved, self._moved_at = True, now
        self._changed()

    def _stir(self, *events: Event) -> None:
        """A task of ``after=`` has a new value, or one that is stale."""
        self._moved |= self._key is None  # it was perhaps the first
        self._changed()

    def _read(self) -> None:
        """Take the arguments as they are now."""
        self._moved, self._making = False, None
        waits = any(isinstance(each.owner, View) and not each.owner.version for each in self._references)
        if waits or self._memo.missing is not None:
            self._stand(None)  # what it is made of is still to come
            return
        try:
            call = resolved(self._given)
        except BaseException as error:
            if is_interrupt(error):
                raise
            self._refuse(error)
            return
        # A widget may change its value in place, while a key is made of it or before it is asked for.
        (given, named), (args, kwargs) = self._given, call
        call = self._memo.keys.now(args, kwargs, but=[*given, *named.values()])
        if not on_a_loop() or is_light(call):
            self._accept(call, self._key_of(call))
            return
        # To make a key of it takes long, and the loop has pages to serve.
        self._making = making = [call]
        self._host.service.outbox.aside(lambda: self._make(making))

    def _key_of(self, call: Call) -> Any:
        args, kwargs = call
        try:
            return self._memo.keys.local(args, kwargs)
        except Exception as error:
            return error

    def _make(self, making: list[Any]) -> None:
        """In another thread."""
        making.append(self._key_of(making[0]))
        self._changed()

    def _accept(self, call: Call, key: Any) -> None:
        """These are the arguments, and their key, or what is wrong with them."""
        self._making = None
        if isinstance(key, Exception):
            self._refuse(key)
            return
        self._call = call
        if key != self._key:
            self._stand(key)
            self._watched = self._host.single_flight.watch(self._memo, key, self._changed)

    def _refuse(self, error: BaseException) -> None:
        self._stand(None)
        self._failure = first_line(error)

    def _stand(self, key: Hashable | None) -> None:
        """Be about this call from now on; the last one is nobody's business any more."""
        self._leave_run()
        if self._watched is not None:
            self._host.single_flight.kept.unwatch(self._watched, self._changed)
        self._key, self._watched, self._asked, self._failure, self._partial = key, None, None, "", None

    # ------------------------------------------------------------ asking

    def _follow(self) -> None:
        """Bring the params in line with the arguments and their answer; under the lock of the session's document."""
        if self._over:
            return
        if self._moved:
            self._read()
        if (making := self._making) is not None and len(making) == 2:
            self._accept(*making)
        wish = self._wish
        if wish is not None and wish != self._asked:
            wait = self._settled_at - self._host.clock.monotonic()
            if wait <= 0 or self._at_hand:
                self._ask()
            else:
                self._arm("settled", wait)
        self._show()

    @property
    def _wish(self) -> Wish | None:
        """What is to be asked for: it is another one when the arguments, a task or the answer's validity change."""
        return None if self._watched is None else (self._key, self._memo.basis, self._watched.stirred)

    @property
    def _at_hand(self) -> bool:
        """Whether there is an answer, so that to ask costs nothing."""
        answer = self._memo.lru.answers.get(self._key)
        now = self._host.clock.monotonic()
        return answer is not None and answer.good_until > now and self._memo.is_current(answer)

    def _ask(self, refresh: bool = False) -> None:
        self._leave_run()
        self._asked, self._failure = self._wish, ""
        args, kwargs = self._call
        try:
            run = self._host.single_flight.join(self._memo, self._key, args, kwargs, refresh)
        except BaseException as error:
            if is_interrupt(error):
                raise
            self._failure = first_line(error)
        else:
            self._run, self._unwatch = run, run.watch(self._changed)

    def _leave_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            self._unwatch()
            run.cancel("replaced by newer arguments")

    def _leave(self) -> None:
        """The session has ended."""
        self._over = True
        for owner, watcher in self._watchers:
            owner.param.unwatch(watcher)
        for cancel in self._timers.values():
            cancel()
        self._stand(None)

    def _arm(self, what: str, seconds: float) -> None:
        """Look again in so many seconds."""
        if (cancel := self._timers.pop(what, None)) is not None:
            cancel()
        self._timers[what] = self._host.later(seconds, self._changed)

    # ------------------------------------------------------------ showing

    def _show(self) -> None:
        run = self._run
        try:
            news = self._news()
        except BaseException:
            # Whatever becomes of the value: it is tried again with the next look, which finds the run as it was.
            self._run = None if run is None or run.state.final else run
            self._tell({})
            self._run = run
            raise
        self._tell(news)

    def _news(self) -> dict[str, Any]:
        """What there is to show since the last time."""
        news, watched, answer = dict[str, Any](), self._watched, None
        if self._run is not None and self._run.state.final:
            answer = self._outcome(self._run)
            self._run = None
        elif watched is not None and watched.answer is not None and self._memo.is_current(watched.answer):
            answer = watched.answer
        if answer is not None and answer is not self._shown[0]:
            news = self._next(answer.entry)
            self._failure = ""
            if answer.fresh_until < float("inf"):
                # When it is no longer fresh, the page says so.
                self._arm("fresh", max(0.0, answer.fresh_until - self._host.clock.monotonic()))
        if answer is not None:
            self._shown = answer, self._wish
        elif watched is not None and watched.partial is not None and watched.partial is not self._partial:
            news = self._next(watched.partial)
            self._partial, self._shown = watched.partial, (None, None)
        return news

    def _tell(self, news: dict[str, Any]) -> None:
        error, wish, watched = self._failure, self._wish, self._watched
        if not error and self._run is None and watched is not None:
            error = first_line(watched.error)
        waits = self._making is not None or (wish is not None and wish != self._asked)
        self._set(
            **news,
            running=waits or self._run is not None,
            percent=-1 if watched is None else watched.percent,
            message="" if watched is None else watched.message,
            error=error,
            stale=bool(news or self.version)
            and (bool(error) or not self._is_fresh or any(view.stale for view in self._upstream)),
        )

    def _next(self, entry: Entry) -> dict[str, Any]:
        """The versions of a view are its own."""
        entry.holding  # noqa: B018  (found once for all views)
        return self._take(replace(entry, version=self.version + 1), None)

    def _outcome(self, run: Run) -> Answer | None:
        """What a run has come to."""
        self._unwatch()
        if run.state is not RunState.SUCCEEDED:
            self._failure = "" if run.state is RunState.CANCELLED else first_line(run.error)
            return None
        kept = self._watched.answer if self._watched is not None else None
        if kept is not None and kept.value is run.shared:
            return kept
        # One that is not kept: it is too large, or was invalidated meanwhile.
        memo, now = self._memo, run.finished_at or self._host.clock.now()
        return Answer(run.shared, 0, now, None, memo.basis, memo.until(0.0))

    def _promise(self) -> tuple[datetime, datetime | None]:
        now, answer = self._host.clock.now(), self._shown[0]
        if answer is None or answer.fresh_until == float("inf"):
            return now, None
        return now, now + timedelta(seconds=max(0.0, answer.fresh_until - self._host.clock.monotonic())) + ALLOWANCE

    @property
    def _is_fresh(self) -> bool:
        answer, wish = self._shown
        now = self._host.clock.monotonic()
        return answer is not None and wish == self._wish and answer.fresh_until > now


def _watch(parameters: list[Any], call: Callable[..., None]) -> Iterator[tuple[Any, Any]]:
    owners = defaultdict[Any, set[str]](set)
    for parameter in parameters:
        owners[parameter.owner].add(parameter.name)
    for owner, names in owners.items():
        yield owner, owner.param.watch(call, sorted(names))


def _references(call: Call) -> Iterator[Any]:
    args, kwargs = call
    for value in (*args, *kwargs.values()):
        yield from references(value, nested=True)


def _as_reference(value: Any) -> Any:
    """A view stands for its value wherever param accepts a reference."""
    return value.param.value if isinstance(value, MemoView) else value


param.parameterized.register_reference_transform(_as_reference)
