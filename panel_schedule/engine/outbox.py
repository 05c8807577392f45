"""What a process has to say to the store, in order, and what that answers."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from itertools import islice, takewhile
from typing import Any, NamedTuple, TypeVar, cast

from ..clock import Clock
from ..errors import StoreError, is_interrupt
from ..executors.base import Executor
from ..stores.base import Store
from ..stores.records import Request
from .lock import Locked

log = logging.getLogger("panel_schedule")

# Pauses, in seconds, before a call that failed is tried again: the first, and the longest.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0

# So many requests share a transaction at most: others wait for its end.
MOST = 200

# Of what was asked in vain.
_UNKNOWN = Exception()

T = TypeVar("T")


class Subject:
    """
    What calls are about.

    Attributes
    ----------
    writing : int
        How many of them the store has not answered yet.
    unread, reading : bool
        Whether what the store has of it is to be read once they are answered, or is being read.
    """

    __slots__ = ("reading", "unread", "writing")

    def __init__(self) -> None:
        self.writing = 0
        self.unread = self.reading = False


Call = Request | Callable[[], Any]

# The executors that make calls, one thread each: those about subjects, and others, of functions that are called on
# request. Neither waits for what the other one asks in vain.
SUBJECTS, REQUESTS = "store", "requests"


class _Asked(NamedTuple):
    subjects: Sequence[Subject]
    call: Call
    then: Callable[[Any], object] | None


class Outbox:
    """
    Calls to the store.

    A store in memory answers at once. One on a disk may let its caller wait, so it is asked by
    threads of the outbox's own, one call after another, outside of the service's lock: a disk
    that hangs stops no page and no clock. A call that the store cannot serve now is tried until it can.

    Attributes
    ----------
    read : callable
        ``read(subject)`` asks the store for what it has.
    follow : callable
        ``follow(subject, answer)``, under the lock, with what that gave.
    """

    def __init__(self, clock: Clock, store: Store, executors: dict[str, Executor], locked: Locked):
        self._clock = clock
        self._store = store
        self._executors = executors
        self._locked = locked
        self.read: Callable[[Any], Any]
        self.follow: Callable[[Any, Any], object]
        self._pending: set[Future[Any]] = set()
        # By executor, what was asked and is not answered, in that order: the first of it is being made.
        self._asked: dict[str, deque[_Asked]] = {SUBJECTS: deque(), REQUESTS: deque()}
        self._gathered: dict[Callable[[list[Any]], object], list[Any]] = {}
        self._gathering = threading.Lock()
        # By executor, why it tries again.
        self._trouble: dict[str, str] = {}
        self._hurry = threading.Event()
        # Whether the store is closed: what comes now comes too late, and nobody needs to know.
        self._over = False

    def ask(self, subjects: Sequence[Subject], call: Call, then: Callable[[Any], object] | None = None) -> None:
        """
        Make a call about these, and give its answer to `then`. Under the lock, both.

        Requests that follow each other share a transaction.
        """
        if not self._store.blocking:
            answer = self._store.do(call) if isinstance(call, Request) else call()
            if then is not None:
                then(answer)
            return
        for subject in subjects:
            subject.writing += 1
        where = SUBJECTS if subjects else REQUESTS
        self._asked[where].append(_Asked(subjects, call, then))
        if len(self._asked[where]) == 1:
            self._submit(where, partial(self._make, where))

    def gather(self, handle: Callable[[list[T]], object], item: T) -> None:
        """Let `handle` have this item, in another thread, with those that come until it gets to it."""
        with self._gathering:
            gathered = self._gathered.setdefault(handle, [])
            gathered.append(item)
            first = len(gathered) == 1
        if first:
            self.aside(partial(self._hand_on, handle))

    def _hand_on(self, handle: Callable[[list[Any]], object]) -> None:
        with self._gathering:
            items = self._gathered.pop(handle)
        handle(items)

    def aside(self, call: Callable[[], Any]) -> Future[Any]:
        """Do at once, in another thread, what is too slow for the event loop: to serialise a value and store it."""
        executor = self._executors["publisher"]
        future = executor.submit(call)
        self._remember(future)
        executor.flush()
        return future

    def noticed(self, subject: Subject) -> None:
        """Another process has perhaps changed what the store has of it. Under the lock."""
        if subject.writing:
            # What is read now would be without what is still to be written, and undo that here.
            subject.unread = True
        elif not subject.reading:
            subject.reading = True
            self._submit(SUBJECTS, partial(self._read, subject))

    @property
    def troubled(self) -> bool:
        """Whether the store cannot serve what it was asked last."""
        return bool(self._trouble)

    def complain(self, message: str, *args: object) -> None:
        """Say in the log what cannot be done, as the store fails; of one that is closed nobody needs to know."""
        if not self._over:
            log.error(message, *args)

    def drain(self, timeout: float) -> None:
        """Wait until everything is written, up to `timeout` seconds; what fails is not tried again."""
        self._hurry.set()
        until = self._clock.monotonic() + timeout
        while (pending := set(self._pending)) and (left := until - self._clock.monotonic()) > 0:
            wait(pending, timeout=left)
        self._over = True

    def reopen(self) -> None:
        """There is a future after all: what fails is tried again."""
        self._hurry.clear()
        self._over = False

    def _submit(self, name: str, call: Callable[[], object]) -> None:
        executor = self._executors[name]
        self._locked.submitted.add(executor)
        self._remember(executor.submit(call))

    def _remember(self, future: Future[Any]) -> None:
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)

    def _make(self, where: str) -> None:
        asked = self._asked[where]
        with self._locked:
            some = list(takewhile(lambda each: isinstance(each.call, Request), islice(asked, MOST))) or [asked[0]]
        done, outcomes = self._try(where, partial(self._outcomes, where, [each.call for each in some]))
        with self._locked:
            for number, each in enumerate(some):
                self._made(each, outcomes[number] if done else (None, _UNKNOWN))
            for _ in some:  # only now: what they have led to comes after them
                asked.popleft()
            if asked:
                self._submit(where, partial(self._make, where))

    def _outcomes(self, where: str, calls: list[Call]) -> list[tuple[Any, BaseException | None]]:
        """What came of each."""
        if not isinstance(calls[0], Request):
            return [(calls[0](), None)]
        requests = cast(list[Request], calls)
        try:
            return self._store.do_together(requests)
        except (StoreError, OSError):
            raise
        except Exception:
            if len(calls) == 1:
                raise
            # One that cannot be stored is not to cost the others theirs.
            tried = [self._try(where, partial(self._outcomes, where, [call])) for call in calls]
            return [outcome[0] if done else (None, _UNKNOWN) for done, outcome in tried]

    def _made(self, asked: _Asked, outcome: tuple[Any, BaseException | None]) -> None:
        answer, error = outcome
        for subject in asked.subjects:
            subject.writing -= 1
        try:
            if error is not None and error is not _UNKNOWN:
                raise error
            if error is None and asked.then is not None:
                asked.then(answer)
        except Exception:  # others have asked, too
            log.exception("An answer of the store led to something that is a bug of panel-schedule; it goes on.")
        for subject in asked.subjects:
            if subject.unread and not subject.writing:
                subject.unread, subject.reading = False, True
                self._submit(SUBJECTS, partial(self._read, subject))

    def _read(self, subject: Subject) -> None:
        subject.reading = False
        done, answer = self._try(SUBJECTS, partial(self.read, subject))
        with self._locked:
            if subject.writing:
                subject.unread = True
            elif done:
                self.follow(subject, answer)

    def _try(self, where: str, call: Callable[[], Any]) -> tuple[bool, Any]:
        """Whether there is an answer, and the answer."""
        try:
            return True, self._insist(where, call)
        except (StoreError, OSError) as error:
            self.complain("%s The server stops, so that it is not tried again.", error)
        except BaseException as error:
            if is_interrupt(error):
                raise
            log.exception("The store refused something that is a bug of panel-schedule; it goes on.")
        return False, None

    def _insist(self, where: str, call: Callable[[], Any]) -> Any:
        pause = FIRST_PAUSE
        while True:
            try:
                answer = call()
            except (StoreError, OSError) as error:
                if self._hurry.is_set():
                    raise
                if str(error) not in self._trouble.values():
                    log.error("%s It is tried again; what was stored before goes on being served.", error)
                self._trouble[where] = str(error)
                if self._hurry.wait(pause):
                    raise
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                if self._trouble.pop(where, "") and not self._trouble and not self._store.away:
                    log.info("The store works again.")
                return answer
