"""The answers that the processes share: what a store is told of them, and has of them."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Hashable
from datetime import datetime
from functools import partial
from typing import Any

from ..engine.service import Service
from ..errors import RunFenced, ScheduleError, StoreError, ValueUnreadable
from ..functions.lru import Answer
from ..functions.memoize import Memoized
from ..functions.run import RunRecord
from ..serialize.entry import Entry
from ..stores.cache import AnswerRow
from ..stores.hurry import SOON, hurried, in_a_hurry

log = logging.getLogger("panel_schedule")

Memo = Memoized[Any, Any]

# How often, in seconds, the store hears which answers were read.
TOLD = 1.0


class OwnAnswers:
    """In place of `SharedAnswers`, where no other process can know of them: nobody has any, and nobody hears."""

    def __init__(self, service: Service):
        self._service = service

    def digest(self, memo: Memo, key: Hashable) -> str:
        return ""

    def last(self, memo: Memo, digest: str) -> Answer | None:
        return None

    def entry(self, memo: Memo, key: Hashable) -> Entry | None:
        answer = memo.lru.answers.get(key)
        return None if answer is None else answer.entry

    def entries(self, memo: Memo) -> dict[str, Entry]:
        with self._service.locked:
            answers = list(memo.lru.answers.values())
        return {answer.call: answer.entry for answer in reversed(answers)}

    def put(self, *what: Any, **more: Any) -> Answer | None:
        return None

    def publish(self, *what: Any) -> None:
        pass

    def progress(self, *what: Any) -> None:
        pass

    def fail(self, *what: Any, **more: Any) -> None:
        pass

    def give_up(self, *what: Any) -> None:
        pass

    def use(self, memo: Memo, answer: Answer) -> None:
        pass

    def invalidate_soon(self, memo: Memo, key: Hashable | None) -> bool:
        return False

    def forget_due(self) -> None:
        pass


class SharedAnswers(OwnAnswers):
    """
    Asks a store, and tells it; never on an event loop unless it says so.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service):
        super().__init__(service)
        self.cache = service.store.cache
        # What the store has still to forget, before it is asked for anything.
        self._due: deque[tuple[str, str | None]] = deque()
        self._forgetting = threading.Lock()
        self._used: defaultdict[str, dict[str, Answer]] = defaultdict(dict)
        self._telling = False

    # ------------------------------------------------------------ what it has

    def digest(self, memo: Memo, key: Hashable) -> str:
        """The key of a call in the store."""
        return memo.digest(key)

    def look(self, memo: Memo, digest: str) -> AnswerRow | None:
        """What it says of a call."""
        return self.cache.look(memo.name, digest)

    def age(self, row: AnswerRow) -> float:
        """Seconds since the answer was computed."""
        assert row.updated_at is not None
        return max(0.0, (self._service.clock.now() - row.updated_at).total_seconds())

    def answer(self, memo: Memo, row: AnswerRow) -> Answer:
        """
        The answer of a row.

        Raises
        ------
        KeyError
            When there is another one by now, or none.
        ValueUnreadable
        """
        assert row.updated_at is not None
        return Answer(
            self.cache.value(row), row.version, row.updated_at, row.duration, row.basis, memo.until(self.age(row)),
            row.size, row.key, row.call,
        )  # fmt: skip

    def last(self, memo: Memo, digest: str) -> Answer | None:
        """The last answer that there is, however old."""
        try:
            row = self.look(memo, digest)
            return self.answer(memo, row) if row is not None and row.version else None
        except (ScheduleError, OSError, KeyError):
            return None

    def entry(self, memo: Memo, key: Hashable) -> Entry | None:
        """What is kept for a call, fresh or not."""
        row = self.look(memo, memo.digest(key))
        return self._entry(memo, row) if row is not None and row.version else None

    def entries(self, memo: Memo) -> dict[str, Entry]:
        """All that is kept of a function, by the text of the call, the one used last first."""
        found = {row.call: self._entry(memo, row) for row in self.cache.answers(memo.name)}
        return {call: entry for call, entry in found.items() if entry is not None}

    def _entry(self, memo: Memo, row: AnswerRow) -> Entry | None:
        try:
            return self.answer(memo, row).entry
        except (KeyError, ValueUnreadable):  # it was replaced, or is lost
            return None

    # ------------------------------------------------------------ a computation of this process

    def publish(self, memo: Memo, digest: str, fence: int, item: Any) -> None:
        """Let the pages of other processes show a partial answer."""
        try:
            self.cache.publish(memo.name, digest, fence, item)
        except (StoreError, RunFenced) as error:
            log.debug("%s: a partial answer is not shown by other processes: %s", _named(memo), error)

    def progress(self, memo: Memo, digest: str, fence: int, percent: int, message: str) -> None:
        """Let them show how far it has come."""
        self.cache.progress(memo.name, digest, fence, percent, message)

    def put(
        self,
        memo: Memo,
        digest: str,
        fence: int,
        value: Any,
        *,
        now: datetime,
        duration: float,
        run: RunRecord,
        held: Callable[[], bool],
    ) -> Answer | None:
        """
        The answer as all processes read it; None when the store cannot take it now.

        Raises
        ------
        RunFenced
            When it was invalidated meanwhile.
        ValueRefused
        """
        lasts = memo.lasts
        try:
            with hurried(held):
                self._tell_used()
                row, value = self.cache.put(
                    memo.name, digest, fence, value, now=now, duration=duration,
                    expires_at=None if lasts is None else now + lasts, limits=memo.policy.limits, run=run,
                )  # fmt: skip
        except (StoreError, OSError) as error:
            self._service.outbox.complain(
                "%s: other processes do not get what it gave, as it cannot be stored. %s", _named(memo), error
            )
            with self._service.locked:
                self.give_up(memo, digest, fence)
            return None
        return Answer(value, row.version, now, duration, row.basis, memo.until(0.0), row.size, digest, row.call)

    def fail(
        self, memo: Memo, digest: str, fence: int, error: BaseException, *, run: RunRecord, held: Callable[[], bool]
    ) -> None:
        """Tell those who wait for it in other processes."""
        try:
            with hurried(held):
                now = self._service.clock.now()
                self.cache.fail(memo.name, digest, fence, error, now=now, limits=memo.policy.limits, run=run)
        except RunFenced:
            pass
        except (StoreError, OSError) as trouble:
            self._service.outbox.complain("%s: other processes do not hear that it failed. %s", _named(memo), trouble)
            with self._service.locked:
                self.give_up(memo, digest, fence)

    def give_up(self, memo: Memo, digest: str, fence: int) -> None:
        """Let them compute it, as soon as the store can hear of it. Under the lock."""
        self._service.outbox.ask((), partial(self.cache.give_up, memo.name, digest, fence))

    # ------------------------------------------------------------ what is read

    def use(self, memo: Memo, answer: Answer) -> None:
        """It was read; the store hears of it in a moment. On any thread."""
        answer.told = True
        with self._service.locked:
            self._used[memo.name][answer.digest] = answer
            if not self._telling:
                self._telling = True
                self._service.timers.after(TOLD, self._tell_in_time, None)

    def _tell_in_time(self, _: None) -> None:
        self._telling = False
        self._service.outbox.ask((), self._tell_used)

    def _tell_used(self) -> None:
        with self._service.locked:
            used, self._used = self._used, defaultdict(dict)
        for function, answers in used.items():
            for answer in answers.values():
                answer.told = False
            try:
                self.cache.use(function, list(answers), self._service.clock.now())
            except (StoreError, OSError) as error:
                log.debug("Which answers were used is not known to the store: %s", error)

    # ------------------------------------------------------------ what is invalidated

    def invalidate_soon(self, memo: Memo, key: Hashable | None) -> bool:
        """From now on the store is asked for nothing before it has forgotten this. Whether there is a store."""
        self._due.append((memo.name, None if key is None else memo.digest(key)))
        return True

    def forget_due(self) -> None:
        """Let the store forget it now."""
        if not self._forgetting.acquire(timeout=SOON if in_a_hurry() else -1):
            raise StoreError("The store is busy with forgetting what was invalidated.")
        try:
            while self._due:
                self.cache.invalidate(*self._due[0])
                self._due.popleft()
        finally:
            self._forgetting.release()


def _named(memo: Memo) -> str:
    return f"Memoized function {memo.name!r}"
