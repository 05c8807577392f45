"""One computation for all who ask for the same: who begins it, who waits for it, and who is told."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from contextlib import nullcontext
from contextvars import Context
from functools import partial
from typing import Any

from ..coordination.answers import Basis, serves
from ..engine.hooks import FORGET
from ..engine.service import Service
from ..errors import RunCancelled
from ..executors.loop import LoopExecutor
from ..functions import spans
from ..functions.calls import PUBLISHED, async_outcome, outcome
from ..functions.lru import Answer, Watched
from ..functions.memoize import Memoized
from ..functions.run import Cause, Run, RunState, in_a_cell, on_a_loop, place
from ..serialize.checks import is_light
from ..serialize.errors import LARGEST, another, shortened
from ..session import leave_session, without_session
from .answers import KeptAnswers
from .computation import Computation
from .follower import Follower
from .recursion import Recursion
from .shared import SharedAnswers

log = logging.getLogger("panel_schedule")

Memo = Memoized[Any, Any]


class SingleFlight:
    """
    All computations of memoized functions that are under way.

    Parameters
    ----------
    service : Service
    loops : LoopExecutor
    memos : mapping
        All of them, by name.
    """

    def __init__(self, service: Service, loops: LoopExecutor, memos: Mapping[str, Memo]):
        self._service = service
        self._loops = loops
        service.sources.append(self)
        self._under_way: dict[tuple[Memo, Hashable], Computation] = {}
        # Those, too, whose answers are not kept, as they were invalidated.
        self._all: dict[Computation, None] = {}
        # Failures that are given again for a while: until when, on the monotonic clock.
        self._failed: defaultdict[Memo, dict[Hashable, tuple[float, BaseException]]] = defaultdict(dict)
        self._warned: set[str] = set()
        self.recursion = Recursion(service)
        self.shared = SharedAnswers(service)
        self.kept = KeptAnswers(service, self._detach, self.shared)
        self.follower = Follower(service, self.kept, memos, self.renew, self.failing)

    def under_way(self) -> list[Run]:
        """Those of this process."""
        with self._service.lock:
            return [computation.run for computation in self._all if not computation.remote]

    # ------------------------------------------------------------ asking

    def call(self, memo: Memo, key: Hashable, args: Any, kwargs: Any) -> Any:
        """The answer, which this thread waits for, and computes itself where that is quicker."""
        if self._service.stopping:
            items = list[Any]()
            value = without_session(_named(memo), lambda: outcome(memo.function(*args, **kwargs), items.append))
            return items[-1] if value is PUBLISHED else value
        on_loop, waiter = on_a_loop(), self._waiter(memo)
        # At a timeout the caller goes on, and the function does not; and what has limits has to wait for its turn.
        here = not on_loop and self.recursion.has_room and (memo.policy.timeout or memo.policy.concurrency) is None
        computation = self._ask(memo, key, args, kwargs, waiter, held=on_loop, here=here)
        if computation is None:
            return waiter.result()
        try:
            with self.recursion.awaiting(computation):
                if on_loop and not in_a_cell():
                    self._warn_of_loop(memo)
                elif here:
                    self.recursion.help(computation)
                with nullcontext() if waiter.state.final else self._loops.hold() if on_loop else place:
                    waiter._completion().result()
                return waiter.outcome()
        except BaseException:
            waiter.cancel()  # Ctrl-C, say: the others go on waiting
            computation.hand_on()
            raise

    async def awaited(self, memo: Memo, key: Hashable, args: Any, kwargs: Any) -> Any:
        """The same for a coroutine."""
        if self._service.stopping:
            items = list[Any]()

            async def take(item: Any) -> None:
                items.append(item)

            async def compute() -> Any:
                leave_session(_named(memo))
                return await async_outcome(memo.function(*args, **kwargs), take)

            value = await asyncio.create_task(compute(), context=Context())
            return items[-1] if value is PUBLISHED else value
        waiter = self._waiter(memo)
        self._ask(memo, key, args, kwargs, waiter, copied=True)
        try:
            return await waiter
        except BaseException:
            waiter.cancel()
            raise

    def submit(self, memo: Memo, args: Any, kwargs: Any, refresh: bool = False) -> Run:
        """
        A run of the caller's own that gives the answer.

        Parameters
        ----------
        refresh : bool
            Whether an answer that is there is not good enough.
        """
        if not on_a_loop() or is_light((args, kwargs)) or self._service.stopping:
            return self.join(memo, memo.keys.local(args, kwargs), args, kwargs, refresh, heard=True)
        # To make a key of it takes long, and the loop has pages to serve.
        memo.keys.bind(args, kwargs)
        self._service.start()
        waiter = self._waiter(memo)
        self._service.outbox.aside(partial(self._submit, memo, *memo.keys.now(args, kwargs), refresh, waiter))
        return waiter

    def _submit(self, memo: Memo, args: Any, kwargs: Any, refresh: bool, waiter: Run) -> None:
        try:
            self._ask(memo, memo.keys.local(args, kwargs), args, kwargs, waiter, refresh=refresh, copied=True)
        except BaseException as error:  # of a thread of ours
            with self._service.locked:
                if not waiter.state.final:
                    self._end(waiter, RunState.FAILED, error)

    def join(self, memo: Memo, key: Hashable, args: Any, kwargs: Any, refresh: bool, heard: bool = False) -> Run:
        """
        The same of who knows the key.

        Parameters
        ----------
        heard : bool
            Whether the caller gets to hear of a failure as an error that is raised.
        """
        waiter = self._waiter(memo)
        self._ask(memo, key, args, kwargs, waiter, refresh=refresh, heard=heard)
        return waiter

    def _waiter(self, memo: Memo) -> Run:
        run = Run(memo.name, "", self._service.clock.now())
        run.key, run.asked = f"request {run.id}", spans.here()
        return run

    def _ask(
        self,
        memo: Memo,
        key: Hashable,
        args: Any,
        kwargs: Any,
        waiter: Run | None,
        *,
        refresh: bool = False,
        heard: bool = True,
        held: bool = False,
        here: bool = False,
        copied: bool = False,
    ) -> Computation | None:
        """
        Take part in a computation, or begin one; None when the answer is there, and the waiter has it.

        Parameters
        ----------
        waiter : Run or None
            None of what is computed for nobody in particular.
        held : bool
            The calling thread is an event loop's, which stands still until the answer is there.
        here : bool
            The calling thread is going to compute it.
        copied : bool
            Whether nobody else has the arguments.
        """
        if self._service.stopping:
            if waiter is not None:
                with self._service.locked:
                    stops = RunCancelled(f"{_named(memo)}: the server stops.")
                    self._end(waiter, RunState.CANCELLED, stops)
            return None
        if heard and waiter is not None:
            memo.require_values(args, kwargs)
        self._service.start()
        basis, loop = memo.basis, asyncio._get_running_loop()
        if loop is not None and memo.executor == "loop":
            self._loops.offer(loop)
        with self._service.locked:
            if waiter is not None and not refresh and self._serve(memo, key, args, kwargs, basis, waiter):
                return None
            computation = self._under_way.get((memo, key))
            if computation is not None and serves(computation.basis, basis):
                computation.refresh |= refresh
                computation.held |= held
                self._welcome(computation, waiter, heard)
                return computation
            computation = self._under_way[memo, key] = Computation(
                self._service, self.kept, memo, key, args, kwargs, basis, self._waiter(memo), self._advanced,
                self._ended,
            )  # fmt: skip
            computation.refresh, computation.renews, computation.held = refresh, waiter is None, held
            self._all[computation] = None
            self._welcome(computation, waiter, heard)
        if not copied:
            # Outside of the lock, and before anybody computes: whoever calls may change them as soon as this returns.
            computation.args, computation.kwargs = memo.keys.now(args, kwargs)
        # To ask the store, or to pickle arguments, may take long; and who has a stale answer does not wait at all.
        works = self._service.store.blocking or memo.executor not in ("thread", "loop")
        try:
            if works and not held and (loop is not None or waiter is None):
                self._service.outbox.aside(partial(self.follower.look_up, computation))
            else:
                self.follower.look_up(computation, here)
        except BaseException as error:  # no room on the stack, say: nobody is to wait for it for ever
            with self._service.locked:
                if not computation.over and not computation.started:
                    self._fail(computation, error)
            raise
        return computation

    def _serve(self, memo: Memo, key: Hashable, args: Any, kwargs: Any, basis: Basis, waiter: Run) -> bool:
        """Give what is there, if it is good enough. Under the lock."""
        now, failure = self._service.clock.monotonic(), self._failure(memo, key)
        answer = memo.lru.answers.get(key)
        if answer is not None and not serves(answer.basis, basis):
            answer = None
        if answer is not None and answer.good_until > now:
            self.kept.use(memo, key, answer)
            if answer.fresh_until <= now and failure is None:
                self._service.defer(partial(self._ask, memo, key, args, kwargs, None))
        elif failure is None:
            return False
        elif answer is None or answer.kept_until <= now or not memo.policy.stale_if_error:
            self._end(waiter, RunState.FAILED, another(failure))
            return True
        self._end(waiter, RunState.SUCCEEDED, value=answer.value)
        return True

    def _failure(self, memo: Memo, key: Hashable) -> BaseException | None:
        """Why it has failed, so shortly ago that it is not tried again."""
        until, error = self._failed[memo].get(key, (0.0, None))
        return error if until > self._service.clock.monotonic() else None

    def failing(self, memo: Memo) -> list[Hashable]:
        """The calls whose failure is given again for a while."""
        return list(self._failed[memo])

    def renew(self, computation: Computation) -> None:
        """Compute it anew, in the background."""
        if self._failure(computation.memo, computation.key) is None:
            self._ask(computation.memo, computation.key, computation.args, computation.kwargs, None)

    # ------------------------------------------------------------ waiting; under the lock

    def _welcome(self, computation: Computation, waiter: Run | None, heard: bool) -> None:
        if waiter is None:
            computation.wanted = True
            return
        computation.heard |= heard
        computation.join(waiter)
        waiter._waiting = partial(self.recursion.awaiting, computation)

    def _detach(self, memo: Memo, key: Hashable | None) -> list[Hashable]:
        """What is computed right now is for those who wait for it, and not kept."""
        keys = [key]
        if key is None:
            keys = [*(known for owner, known in self._under_way if owner is memo), *self._failed[memo]]
        for each in keys:
            self._failed[memo].pop(each, None)
            computation = self._under_way.get((memo, each))
            if computation is not None and not computation.remote:  # that one looks at the store itself
                del self._under_way[memo, each]
                computation.kept = False
        return keys

    # ------------------------------------------------------------ what it tells; under the lock

    def watch(self, memo: Memo, key: Hashable, changed: Callable[[], None]) -> Watched:
        """What is new about one call, as `KeptAnswers.watch` says, and how far it has come."""
        watched = self.kept.watch(memo, key, changed)
        with self._service.locked:
            if (computation := self._under_way.get((memo, key))) is not None:
                self._advanced(computation)
        return watched

    def _advanced(self, computation: Computation) -> None:
        """It has come further; pages look at the one whose answer is going to be kept."""
        memo, key, run = computation.memo, computation.key, computation.run
        if self._under_way.get((memo, key)) is computation:
            self.kept.tell_progress(memo, key, run.percent, run.message)

    # ------------------------------------------------------------ ending; under the lock

    def _ended(self, computation: Computation, outcome: RunState, error: BaseException | None) -> None:
        """There is an answer, or there is none, or it is not computed."""
        if computation not in self._all:  # a stop has ended it, before the store had heard of its timeout
            return
        memo, key, answer = computation.memo, computation.key, computation.answer
        if error is not None and outcome is not RunState.CANCELLED:
            self._failed_with(computation, outcome, error)
            return
        self._finish(computation, outcome, error, computation.value if answer is None else answer.value)
        if error is None and answer is not None and computation.kept:
            self._failed[memo].pop(key, None)
            self.kept.keep(memo, key, answer)

    def _failed_with(self, computation: Computation, outcome: RunState, error: BaseException) -> None:
        """There is none; who waits gets the old one, if there is one."""
        memo, key, old = computation.memo, computation.key, computation.old
        if (ttl := memo.policy.error_ttl.total_seconds() - computation.ago) > 0 and computation.kept:
            self._keep_failure(memo, key, self._service.clock.monotonic() + ttl, shortened(error))
            self._service.timers.after(ttl, partial(self._forget_failure, memo), key)
        if not computation.kept:  # it was invalidated meanwhile
            old = None
        if old is None:
            self._finish(computation, outcome, error)
        else:
            self._finish(computation, RunState.SUCCEEDED, value=old.value)
            self.kept.keep(memo, key, old)
        if (old is not None or not computation.heard) and not computation.remote:
            self._service.defer(partial(self._complain, computation, error, old))
        if computation.kept:
            self.kept.tell_failure(memo, key, another(error))

    def _fail(self, computation: Computation, error: BaseException) -> None:
        """It cannot even begin: nobody is to wait for it for ever, here or in another process."""
        computation.give_up()
        self._finish(computation, RunState.FAILED, error)

    def _keep_failure(self, memo: Memo, key: Hashable, until: float, error: BaseException) -> None:
        """As many as answers, and at most so many as have room: visitors can make many of them."""
        kept, (entries, size) = self._failed[memo], memo.policy.limits
        kept.pop(key, None)
        kept[key] = until, error
        most = min(sys.maxsize if entries is None else entries, sys.maxsize if size is None else size // LARGEST)
        while len(kept) > max(1, most):
            del kept[next(iter(kept))]

    def _forget_failure(self, memo: Memo, key: Hashable) -> None:
        if key in self._failed[memo] and self._failure(memo, key) is None:
            del self._failed[memo][key]

    def _complain(self, computation: Computation, error: BaseException, old: Answer | None) -> None:
        """Log a failure that nobody hears of otherwise."""
        stays = "the last good answer is served" if old is not None else "there is no answer"
        what = f"{computation.call} failed (run {computation.run.id}), {stays}"
        self._service.hooks.failures.failed(("memo", computation.memo.name), what, error, FORGET)

    def _finish(
        self, computation: Computation, state: RunState, error: BaseException | None = None, value: Any = None
    ) -> None:
        if self._under_way.get((computation.memo, computation.key)) is computation:
            del self._under_way[computation.memo, computation.key]
            self.kept.tell_progress(computation.memo, computation.key)
        self._all.pop(computation, None)
        self.follower.over(computation)
        self._service.timers.cancel(computation.timer)
        runs, computation.waiters = computation.runs, []
        for run in runs:
            run.attempt = computation.run.attempt
            self._end(run, state, error, value)

    def _end(self, run: Run, state: RunState, error: BaseException | None = None, value: Any = None) -> None:
        if not run.state.final:  # at its timeout it has ended already
            run.end(state, self._service.clock.now(), error, value)
        run._stop = run._waiting = run._execution = run._changed = None
        self._service.defer(run.touch)
        self._service.defer(partial(run.resolve, value))

    # ------------------------------------------------------------ lifecycle

    def stop(self) -> None:
        """What has not begun never does; another process may compute it."""
        with self._service.locked:
            for computation in list(self._all):
                if not computation.started:
                    computation.drop(Cause.STOPS)

    def release(self) -> None:
        """Nothing runs here any more: nobody waits for what has not ended."""
        with self._service.locked:
            for computation in list(self._all):
                computation.drop(Cause.STOPS)

    def _warn_of_loop(self, memo: Memo) -> None:
        if memo.name not in self._warned:
            self._warned.add(memo.name)
            log.warning(
                "Memoized function %r was called on the event loop, which waits while it is computed, and with it "
                "every open page. In a page write %s.view(...), which computes in the background; in a coroutine "
                "`await %s.submit(...)`.", memo.name, memo.name, memo.name,
            )  # fmt: skip


def _named(memo: Memo) -> str:
    return f"Memoized function {memo.name!r}"
