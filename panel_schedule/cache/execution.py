"""Who computes answers: an executor, or the very thread that waits for one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any, Protocol

from ..coordination.answers import serves
from ..engine.service import STOPS, Service
from ..errors import RunCancelled, RunFenced, WouldBlock, is_interrupt
from ..executors.loop import Interrupted
from ..executors.processes import Parcel
from ..functions.calls import CANCELLED, PUBLISHED, async_outcome, cancelled_inside, outcome
from ..functions.run import Run, _current, on_a_loop
from ..serialize.checks import require_data
from ..serialize.codec import encode
from ..serialize.copies import own_copy
from ..session import leave_session
from .computation import Computation
from .lru import Answer

# Where each kind runs: apart from tasks and jobs, which somebody else waits for.
EXECUTORS = {"process": "memo-process", "thread": "memo-thread", "loop": "loop"}

# So many functions deep a thread computes what it waits for itself: each takes several frames of its stack, of 1000.
DEEPEST = 40

# What a body gives that found its computation begun or ended by somebody else.
_NOTHING = object()


class Tower(Protocol):
    """Who hears what comes of a computation."""

    def succeed(self, computation: Computation, answer: Answer | None, value: Any = None) -> None: ...
    def fail_with(self, computation: Computation, error: BaseException, old: Answer | None = None) -> None: ...
    def fail(self, computation: Computation, error: BaseException) -> None: ...
    def published(self, computation: Computation, item: Any) -> None: ...


class Shared(Protocol):
    """The store that the processes share."""

    def publish(self, computation: Computation, item: Any) -> None: ...
    def deposit(self, computation: Computation, value: Any, now: datetime, duration: float) -> Answer | None: ...
    def failed(self, computation: Computation, error: BaseException) -> None: ...
    def last(self, computation: Computation) -> Answer | None: ...


class Runner:
    """
    Computes, once each, what it is given.

    Parameters
    ----------
    service : Service
    tower : Tower
    """

    def __init__(self, service: Service, tower: Tower):
        self._service = service
        self._tower = tower
        self._version = count(1)
        self._by_run: dict[Run, Computation] = {}
        self.shared: Shared | None = None
        self._here = threading.local()

    # ------------------------------------------------------------ beginning

    def submit(self, computation: Computation, here: bool = False) -> None:
        """Compute it in an executor; or on the calling thread, if it is `here` for that and calls `help` next."""
        kind = computation.memo.executor
        executor = self._service.executors[EXECUTORS[kind]]
        try:
            body = self._body(computation, kind)
        except BaseException as error:  # an argument that cannot travel
            if is_interrupt(error):
                raise
            self._surely(computation, None, error)
            return
        with self._service.locked:
            computation.ready = True
            if computation.over or (here and kind == "thread"):
                return
            self._service.locked.submitted.add(executor)
            computation.future = executor.submit(body, computation.name)
            computation.future.add_done_callback(partial(self._over, computation))

    @property
    def can_help(self) -> bool:
        """Whether this thread's stack has room for one more function: deep in a recursion another thread goes on."""
        return getattr(self._here, "depth", 0) < DEEPEST

    def help(self, computation: Computation) -> None:
        """Compute it on this thread if it has still to begin: one of a full pool that waits would wait for itself."""
        if computation.memo.executor != "thread" or not computation.ready or computation.begun or not self.can_help:
            return
        self._here.depth = getattr(self._here, "depth", 0) + 1
        try:
            result = Context().run(self._compute, computation)
        except BaseException as error:
            if not is_interrupt(error):
                self._surely(computation, None, error)
                return
            # Ctrl-C of this thread's own is none of the others'.
            with self._service.locked:
                self._by_run.pop(computation.run, None)
                computation.begun, computation.future = False, None
            raise
        else:
            if result is not _NOTHING:
                self._surely(computation, result)
        finally:
            self._here.depth -= 1

    def leave(self, computation: Computation) -> None:
        """The thread that was here for it goes: an executor computes it for the others."""
        if computation.ready and not computation.begun and computation.future is None:
            self.submit(computation)

    def _body(self, computation: Computation, kind: str) -> Callable[[], Any]:
        function, args, kwargs = computation.memo.function, computation.args, computation.kwargs
        if kind == "process":
            parcel = Parcel(
                computation.name, function, args, kwargs, run=computation.run,
                begin=partial(self._begin_abroad, computation), receive=partial(self._publish, computation),
                answer=partial(self._service.answer, computation.run),
            )  # fmt: skip
            parcel.pack()
            return parcel

        async def async_body() -> Any:
            if not self._begin(computation):
                return _NOTHING
            _current.set(computation.run)
            leave_session(computation.name)
            return await async_outcome(function(*args, **kwargs), publish)

        async def publish(item: Any) -> None:
            if self.shared is None:
                self._publish(computation, item)
            else:
                await asyncio.wrap_future(self._service.outbox.aside(partial(self._publish, computation, item)))

        return async_body if kind == "loop" else partial(self._compute, computation)

    def _compute(self, computation: Computation) -> Any:
        if not self._begin(computation):
            return _NOTHING
        _current.set(computation.run)
        leave_session(computation.name)
        return outcome(
            computation.memo.function(*computation.args, **computation.kwargs), partial(self._publish, computation)
        )

    def _begin(self, computation: Computation) -> bool:
        with self._service.locked:
            if computation.begun or computation.over:
                return False
            computation.begun = True
            if computation.memo.executor == "thread":
                computation.run._publish = partial(self._publish, computation)
            self._by_run[computation.run] = computation
            now = self._service.clock.now()
            for run in (computation.run, *computation.waiters):
                run.begin(now)
        return True

    def _begin_abroad(self, computation: Computation) -> None:
        if not self._begin(computation):
            raise RunCancelled(f"{computation.name}: nobody waits for it any more.")

    # ------------------------------------------------------------ waiting

    @contextmanager
    def awaiting(self, other: Computation) -> Iterator[None]:
        """
        What the calling function does until it has the answer of another one.

        Raises
        ------
        WouldBlock
            When that one waits for it.
        """
        own = self._calling
        if own is None:
            yield
            return
        with self._service.locked:
            ahead, seen = [other], set[Computation]()
            while ahead:
                computation = ahead.pop()
                if computation is own and other is own:
                    raise WouldBlock(
                        f"{own.call} waits for itself, which would never end. Call the plain function there, "
                        f"{own.memo.name}.function(...), or let the recursion come to other arguments."
                    )
                if computation is own:
                    raise WouldBlock(
                        f"{own.call} waits for {other.call}, which waits for it: neither would ever end. Let one of "
                        "them do without the other."
                    )
                if computation not in seen:
                    seen.add(computation)
                    ahead += computation.waits_for
            own.waits_for.append(other)
        try:
            yield
        finally:
            with self._service.locked:
                own.waits_for.remove(other)

    def lend(self) -> AbstractContextManager[object]:
        """While the calling function only waits, its place is somebody else's."""
        own = self._calling
        return nullcontext() if own is None else self._service.executors[EXECUTORS[own.memo.executor]].lend()

    @property
    def _calling(self) -> Computation | None:
        run = _current.get()
        return self._by_run.get(run) if run is not None else None

    # ------------------------------------------------------------ ending

    def _publish(self, computation: Computation, item: Any) -> None:
        """A partial answer: for the pages that show it; who waits wants the last one."""
        require_data(item, computation.name)
        if self.shared is not None and computation.fence:
            self.shared.publish(computation, item)
        with self._service.locked:
            computation.run.check()
            computation.last = item
            self._tower.published(computation, item)

    def _over(self, computation: Computation, future: Future[Any]) -> None:
        """The body is over, wherever it ran; called there, without the lock."""
        if computation.over:
            return
        error: BaseException | None = Interrupted() if future.cancelled() else future.exception()
        result = None if error is not None else future.result()
        if result is _NOTHING:
            return
        if on_a_loop() and (self.shared is not None or computation.memo.policy.limits.size is not None):
            self._service.outbox.aside(partial(self._surely, computation, result, error))
        else:
            self._surely(computation, result, error)

    def _surely(self, computation: Computation, result: Any, error: BaseException | None = None) -> None:
        """Conclude it, whatever happens: what does not end has everybody wait who asks for the same."""
        try:
            self._conclude(computation, result, error)
        except BaseException as trouble:
            with self._service.locked:
                self._by_run.pop(computation.run, None)
                if not computation.over:
                    self._tower.fail(computation, error or trouble)
            raise

    def _conclude(self, computation: Computation, result: Any, error: BaseException | None = None) -> None:
        """Store what came of it, and tell who waits."""
        value, answer, old = None, None, None
        if isinstance(error, CANCELLED) and not (self._service.stopping or isinstance(error, Interrupted)):
            error = cancelled_inside(computation.name, error)
        elif isinstance(error, CANCELLED):
            error = RunCancelled(f"{computation.name}: the run was {STOPS if self._service.stopping else 'cancelled'}.")
        if error is None:
            try:
                value = computation.last if result is PUBLISHED else result
                require_data(value, computation.name)
                answer = self._deposit(computation, value)
            except RunFenced:
                computation.kept = False
            except BaseException as refusal:  # a value can raise anything while it is stored
                error = refusal
        if error is not None:
            # What the stop has ended another process may do, see `fail_with`.
            if self.shared is not None and not (self._service.stopping and isinstance(error, RunCancelled)):
                self.shared.failed(computation, error)
            old = self.last_resort(computation)
        with self._service.locked:
            self._by_run.pop(computation.run, None)
            if computation.over:
                return
            if error is None:
                self._tower.succeed(computation, answer, value)
            else:
                self._tower.fail_with(computation, error, old)

    def _deposit(self, computation: Computation, value: Any) -> Answer:
        memo, now = computation.memo, self._service.clock.now()
        duration = max(0.0, (now - (computation.run.started_at or now)).total_seconds())
        if self.shared is not None and computation.fence:
            stored = self.shared.deposit(computation, value, now, duration)
            if stored is not None:
                return stored
        size = 0
        if memo.policy.limits.size is not None:
            encoded = encode(value, computation.name)
            size = encoded.size
            encoded.close()
        until = memo.until(0.0)
        return Answer(
            own_copy(value), max(computation.known, next(self._version)), now, duration, computation.basis, until, size,
            computation.digest, computation.call,
        )  # fmt: skip

    def last_resort(self, computation: Computation) -> Answer | None:
        """What is served in place of an answer that could not be computed."""
        memo = computation.memo
        if not memo.policy.stale_if_error or not computation.kept:
            return None
        old = memo.recall.answers.get(computation.key)
        if old is None and self.shared is not None:
            old = self.shared.last(computation)
        good = (
            old is not None
            and old.kept_until > self._service.clock.monotonic()
            and serves(old.basis, computation.basis)
        )
        return old if good else None
