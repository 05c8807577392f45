"""The answers that the processes share: what a store has of them, and which were read, or are to be forgotten."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Hashable
from typing import Any

from ..coordination.answers import NOT_KEPT
from ..engine.service import Service
from ..errors import ScheduleError, StoreError, ValueUnreadable
from ..functions.lru import Answer
from ..functions.memoize import Memoized
from ..serialize.entry import Entry
from ..stores.cache import AnswerRow
from ..stores.hurry import SOON, in_a_hurry

log = logging.getLogger("panel_schedule")

Memo = Memoized[Any, Any]

# How often, in seconds, the store hears which answers were read.
TOLD = 1.0


class SharedAnswers:
    """
    Asks a store, and tells it; never on an event loop unless it says so.

    In a store in memory there are none: no other process could know of them.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service):
        self._service = service
        self.cache = service.store.cache
        # What the store has still to forget, before it is asked for anything.
        self._due: deque[tuple[str, str | None]] = deque()
        self._forgetting = threading.Lock()
        self._used: defaultdict[str, dict[str, Answer]] = defaultdict(dict)
        self._telling = False

    # ------------------------------------------------------------ what it has

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
            self.cache.value(row), row.version, row.updated_at, row.duration, row.basis,
            memo.until(self.age(row), row.ttl), row.size, row.key, row.call, row.ttl != NOT_KEPT,
        )  # fmt: skip

    def found(self, memo: Memo, row: AnswerRow | None) -> Answer | None:
        """The same; None where there is none, or another one by now, or where it is lost."""
        try:
            return self.answer(memo, row) if row is not None and row.version else None
        except (KeyError, ValueUnreadable):
            return None

    def last(self, memo: Memo, digest: str) -> Answer | None:
        """The last answer that there is, however old."""
        try:
            return self.found(memo, self.look(memo, digest))
        except (ScheduleError, OSError):
            return None

    def entry(self, memo: Memo, key: Hashable) -> Entry | None:
        """What is kept for a call, fresh or not."""
        if self._service.store.blocking:
            answer = self.found(memo, self.look(memo, memo.digest(key)))
        else:
            answer = memo.lru.answers.get(key)
        return None if answer is None or not answer.kept else answer.entry

    def entries(self, memo: Memo) -> dict[str, Entry]:
        """All that is kept of a function, by the text of the call, the one used last first."""
        if self._service.store.blocking:
            answers = [self.found(memo, row) for row in self.cache.answers(memo.name)]
        else:
            with self._service.locked:
                answers = list(reversed(memo.lru.answers.values()))
        return {answer.call: answer.entry for answer in answers if answer is not None and answer.kept}

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
        self._service.outbox.ask((), self.tell_used)

    def tell_used(self) -> None:
        """Let the store hear of it now."""
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

    def invalidate_soon(self, memo: Memo, key: Hashable | None) -> None:
        """From now on the store is asked for nothing before it has forgotten this."""
        self._due.append((memo.name, None if key is None else memo.digest(key)))

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
