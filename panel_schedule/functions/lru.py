"""The answers of a memoized function that this process has at hand, and who looks at them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from ..coordination.answers import Basis, Limits
from ..serialize.copies import is_frame
from ..serialize.entry import Entry


@dataclass(slots=True, eq=False, repr=False, weakref_slot=True)
class Answer:
    """
    What a function gave for some arguments.

    Attributes
    ----------
    value : object
        The very object, which everybody shares.
    version : int
        Grows with each new answer of the store.
    updated_at : datetime
        When its computation ended: from then on it counts.
    duration : float or None
        Seconds.
    basis : tuple of int
        The versions of the tasks of ``after=`` for which it was computed.
    fresh_until, good_until, kept_until : float
        On the monotonic clock: until then it is served as it is; while it is computed anew; where that fails.
    size : int
        Bytes, where that matters.
    digest : str
        Its key in a shared store.
    call : str
        The call as text.
    kept : bool
        Whether it is given to who asks later, and not only to those who wait for it.
    is_frame : bool
        Whether each reader gets a copy of his own.
    told : bool
        Whether the store need not hear that it is used, as it has heard a moment ago.
    """

    value: Any
    version: int
    updated_at: datetime
    duration: float | None
    basis: Basis
    until: InitVar[tuple[float, float, float]]
    size: int = 0
    digest: str = ""
    call: str = ""
    kept: bool = True
    fresh_until: float = field(init=False)
    good_until: float = field(init=False)
    kept_until: float = field(init=False)
    is_frame: bool = field(init=False)
    told: bool = field(init=False)
    _entry: Entry | None = field(default=None, init=False)

    def __post_init__(self, until: tuple[float, float, float]) -> None:
        self.fresh_until, self.good_until, self.kept_until = until
        self.is_frame = is_frame(self.value)
        self.told = not self.digest

    @property
    def entry(self) -> Entry:
        """It in the envelope of all values."""
        if self._entry is None:
            self._entry = Entry(self.value, self.version, self.updated_at, self.duration)
        return self._entry


@dataclass(slots=True, eq=False, repr=False, weakref_slot=True)
class Watched:
    """One call that live views show: its newest answer, or what went wrong."""

    key: Hashable
    digest: str
    answer: Answer | None
    # The newest partial answer of the computation under way, or of one that has failed then.
    partial: Entry | None = None
    error: BaseException | None = None
    # How far the computation under way has come, in whichever process.
    percent: int = -1
    message: str = ""
    # How often it was invalidated.
    stirred: int = 0
    # What they want to be called when something is new. They know nothing of their sessions.
    viewers: WeakSet[Callable[[], None]] = field(default_factory=WeakSet)


class LRU:
    """
    Answers by the keys of their calls, the one that was used last at the end.

    Read by everybody, changed under the service's lock.

    Parameters
    ----------
    limits : Limits
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.answers: OrderedDict[Hashable, Answer] = OrderedDict()
        self.keys: dict[str, Hashable] = {}
        self.watched: WeakValueDictionary[Hashable, Watched] = WeakValueDictionary()
        self._size = 0
        # How often one of them was served. Without a lock, for which each hit would pay: one may be lost.
        self.hits = 0

    def used(self, key: Hashable) -> None:
        """It was read."""
        self.hits += 1
        try:  # noqa: SIM105  (`suppress` takes longer than all the rest)
            self.answers.move_to_end(key)
        except KeyError:  # it has just gone
            pass

    def put(self, key: Hashable, answer: Answer, now: float) -> bool:
        """Keep an answer; False when it is larger than all that may be kept."""
        self.drop(key)
        entries, size = self.limits
        if size is not None and answer.size > size:
            return False
        self.answers[key] = answer
        self._size += answer.size
        if answer.digest:
            self.keys[answer.digest] = key
        while self.answers:
            try:
                oldest, its = next(iter(self.answers.items()))
            except RuntimeError:  # a hit, which needs no lock, has just moved one to the end
                continue
            beyond = (entries is not None and len(self.answers) > entries) or (size is not None and self._size > size)
            if not beyond and its.kept_until > now:
                break
            self.drop(oldest)
        return True

    def drop(self, key: Hashable) -> None:
        if (answer := self.answers.pop(key, None)) is not None:
            self._size -= answer.size
            self.keys.pop(answer.digest, None)

    def clear(self) -> None:
        self.answers.clear()
        self.keys.clear()
        self._size = self.hits = 0

    def find(self, digest: str) -> Hashable | None:
        """The key of this digest, if it is here or somebody looks at it."""
        if (key := self.keys.get(digest)) is None:
            key = next((each.key for each in list(self.watched.values()) if each.digest == digest), None)
        return key

    def watch(self, key: Hashable, digest: str) -> Watched:
        """What the views of this call share."""
        if (watched := self.watched.get(key)) is None:
            watched = self.watched[key] = Watched(key, digest, self.answers.get(key))
        return watched
