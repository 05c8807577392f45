"""The answers that are kept of all memoized functions: which there are, who looks at them, which must go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from ..engine.service import Service
from ..functions.lru import Answer, Watched
from ..functions.memoize import Memoized
from ..functions.run import on_a_loop
from ..serialize.entry import Entry
from .shared import SharedAnswers

log = logging.getLogger("panel_schedule")

Memo = Memoized[Any, Any]


class KeptAnswers:
    """
    What is kept in this process, and through `shared` in all.

    Parameters
    ----------
    service : Service
    detach : callable
        ``detach(memo, key)``, under the lock: what is computed right now is not to be kept; the keys, of all.
    shared : SharedAnswers
    """

    def __init__(
        self,
        service: Service,
        detach: Callable[[Memo, Hashable | None], list[Hashable]],
        shared: SharedAnswers,
    ):
        self._service = service
        self._detach = detach
        self._warned: set[str] = set()
        self.shared = shared

    # ------------------------------------------------------------ keeping; under the lock

    def keep(self, memo: Memo, key: Hashable, answer: Answer) -> None:
        """From now on this is the answer, and what was there before is none any more."""
        if not answer.kept:
            memo.lru.drop(key)
        elif not memo.lru.put(key, answer, self._service.clock.monotonic()) and memo.name not in self._warned:
            self._warned.add(memo.name)
            log.warning(
                "Memoized function %r: an answer of %.1f MB is larger than max_bytes=%d, and is not kept. Allow for "
                "more, or return less.", memo.name, answer.size / 1e6, memo.policy.limits.size,
            )  # fmt: skip
        if (watched := memo.lru.watched.get(key)) is not None:
            watched.answer, watched.error, watched.partial = answer, None, None
            self._tell(watched)

    def use(self, memo: Memo, key: Hashable, answer: Answer) -> None:
        """It was read, which the store is told now and then."""
        memo.lru.used(key)
        if not answer.told:
            self.shared.use(memo, answer)

    def _tell(self, watched: Watched) -> None:
        for changed in list(watched.viewers):
            self._service.defer(changed)

    def tell_partial(self, memo: Memo, key: Hashable, item: Any) -> None:
        """A computation has given so much."""
        if (watched := memo.lru.watched.get(key)) is not None:
            watched.partial = Entry(item, 0, self._service.clock.now())
            self._tell(watched)

    def tell_progress(self, memo: Memo, key: Hashable, percent: int = -1, message: str = "") -> None:
        """A computation has come so far; or none is under way."""
        watched = memo.lru.watched.get(key)
        if watched is not None and (watched.percent, watched.message) != (percent, message):
            watched.percent, watched.message = percent, message
            self._tell(watched)

    def tell_failure(self, memo: Memo, key: Hashable, error: BaseException) -> None:
        """A computation has failed; what there was stays."""
        if (watched := memo.lru.watched.get(key)) is not None:
            watched.error = error
            self._tell(watched)

    # ------------------------------------------------------------ looking

    def watch(self, memo: Memo, key: Hashable, changed: Callable[[], None]) -> Watched:
        """What is new about one call, and `changed` is called then; for sessions. It ends with what is returned."""
        digest = memo.digest(key) if self._service.store.blocking else ""
        with self._service.locked:
            watched = memo.lru.watch(key, digest)
            watched.viewers.add(changed)
        return watched

    def unwatch(self, watched: Watched, changed: Callable[[], None]) -> None:
        """Call it no more. Under the lock, as others go through the set."""
        with self._service.locked:
            watched.viewers.discard(changed)

    # ------------------------------------------------------------ forgetting

    def invalidate(self, memo: Memo, key: Hashable | None = None) -> None:
        """Forget the answer to one call, or all of a function; everywhere, and here before this returns."""
        if not self._service.store.blocking:
            self.forget(memo, key)
            return
        self.shared.invalidate_soon(memo, key)
        self.forget(memo, key)
        invalidate = partial(self._invalidate_there, memo, key)
        if on_a_loop():
            with self._service.locked:  # which tries again until the store can take it
                self._service.outbox.ask((), invalidate)
        else:
            invalidate()

    def _invalidate_there(self, memo: Memo, key: Hashable | None) -> None:
        self.shared.forget_due()
        # What has been taken from the store meanwhile was of before. What was begun meanwhile was not.
        with self._service.locked:
            for each in list(memo.lru.answers) if key is None else [key]:
                self.drop(memo, each)

    def drop(self, memo: Memo, key: Hashable) -> None:
        """The answer that is at hand is none any more; what is computed right now counts. Under the lock."""
        if key in memo.lru.answers:
            self._forget(memo, key)

    def forget(self, memo: Memo, key: Hashable | None = None) -> None:
        """In this process: who asks from now on waits for another computation than the one under way."""
        with self._service.locked:
            known = [*memo.lru.answers, *memo.lru.watched] if key is None else [key]
            for each in dict.fromkeys([*known, *self._detach(memo, key)]):
                self._forget(memo, each)

    def _forget(self, memo: Memo, key: Hashable) -> None:
        memo.lru.drop(key)
        if (watched := memo.lru.watched.get(key)) is not None:
            watched.stirred, watched.answer = watched.stirred + 1, None
            watched.percent, watched.message = -1, ""
            self._tell(watched)
