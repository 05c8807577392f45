"""A family: a function of one parameter, and a task for each key that it is to have there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from ..errors import RegistrationError
from ..serialize.entry import Entry
from . import remote
from .calls import is_async
from .registry import is_text
from .task import FirstRun, Policy, Task

log = logging.getLogger("panel_schedule")

T = TypeVar("T")


class Family(Mapping[str, Task[T]]):
    """
    A function that runs once for each key, on a schedule. Made by ``ps.schedule(each=...)``.

    A mapping, read-only and live: ``family["north"]`` is a task like any other, ``family[north]`` in ``ps.tasks``, and
    its function is called with the key.

    Attributes
    ----------
    name : str
    function : callable
        The undecorated function.
    policy : Policy
        What all its tasks have in common.
    source : Task or None
        The task whose value lists the keys; None where they are fixed.

    Examples
    --------
    >>> import panel_schedule as ps
    >>> @ps.schedule(period="5m", each=["north", "south"], first_run="skip")
    ... def orders(region):
    ...     return f"orders of the {region}"
    >>> list(orders)
    ['north', 'south']
    >>> orders["north"].refresh().result()
    'orders of the north'
    >>> ps.tasks["orders[north]"] is orders["north"]
    True
    """

    def __init__(
        self,
        name: str,
        function: Callable[[str], Any],
        tasks: Mapping[str, Task[Any]],
        behind: Callable[[Family[Any]], object],
    ):
        self.name = name
        self._tasks = tasks
        # Called where there are new keys.
        self._behind = behind
        self.function = function
        self.policy: Policy
        self.source: Task[Any] | None = None
        # None before the first list of them.
        self._keys: dict[str, None] | None = None
        # The last one that was looked at.
        self._taken: Entry | None = None
        # Whether tasks come and go just now.
        self._changing = False

    def __repr__(self) -> str:
        return f"<Family {self.name!r}: {', '.join(self) or 'no keys'}>"

    # A mapping is what it holds; this one is itself, as its tasks are.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __reduce__(self) -> Any:
        return remote.family_named, (self.name,)

    def __getitem__(self, key: str) -> Task[T]:
        keys = self._now()
        if key in keys and (task := self._tasks.get(self.member(key))) is not None:
            return task
        there = ", ".join(keys) or "none"
        if self._keys is None and self.source is not None:
            there = f"none, as task {self.source.name!r}, whose value lists them, has none yet"
        raise KeyError(f"Family {self.name!r} has no key {key!r}; there are: {there}.")

    def __iter__(self) -> Iterator[str]:
        return iter([key for key in self._now() if self.member(key) in self._tasks])

    def __len__(self) -> int:
        return sum(self.member(key) in self._tasks for key in self._now())

    def _now(self) -> dict[str, None]:
        if self.source is not None and self.source.entry is not self._taken:
            self._behind(self)
        return self._keys or {}

    def end(self) -> None:
        """Nobody's tasks come or go any more; those that there are give their last values."""
        self._tasks, self._behind = {task.name: task for task in self.members}, lambda family: None

    @property
    def is_current(self) -> bool:
        """Whether its keys are those that were listed last, or fixed."""
        return self.source is None or self.source.known is self._taken

    def member(self, key: str) -> str:
        """The name of a key's task."""
        return f"{self.name}[{key}]"

    # ------------------------------------------------------------ for the runtime alone

    @property
    def members(self) -> list[Task[Any]]:
        """The tasks of the keys, without looking for newer ones."""
        return [self._tasks[name] for name in map(self.member, self._keys or ()) if name in self._tasks]

    def become(
        self, function: Callable[[str], Any], policy: Policy, source: Task[Any] | None, keys: dict[str, None] | None
    ) -> list[tuple[Policy, str, Callable[[], Any]]]:
        """Be this from now on; what is to be registered. `keys` are fixed, or None where a `source` lists them."""
        if source is not None and source not in (*policy.upstream, *policy.needs):
            policy = replace(policy, needs=(*policy.needs, source))
        self.function, self.policy = function, policy
        if source is None or source is not self.source:
            self.source, self._keys, self._taken = source, keys, None
        return [(policy, self.member(key), partial(function, key)) for key in self._keys or ()]

    def follow(
        self, come: Callable[[Policy, str, Callable[[], Any]], object], go: Callable[[Task[Any]], object]
    ) -> None:
        """Let tasks come and go as the source's last value says, once; under the runtime's lock."""
        while not self._changing and self.source is not None and (entry := self.source.known) is not self._taken:
            if entry is None or not entry.final:  # what is yielded before may be a part
                return
            self._taken = entry
            try:
                keys = keys_of(self.name, entry.value)
            except RegistrationError as error:
                log.error("%s The keys stay as they are.", error)
                return
            # Pages may be served by now, which do not wait for who comes.
            late = self._keys is not None and self.policy.first_run is FirstRun.WAIT
            policy = replace(self.policy, first_run=FirstRun.BACKGROUND) if late else self.policy
            former, self._keys = self.members, keys
            there = {self.member(key): partial(self.function, key) for key in keys}
            self._changing = True  # what is called by this may look here again
            try:
                for task in former:
                    if task.name not in there:
                        go(task)
                for name, function in there.items():
                    if name not in self._tasks:
                        come(policy, name, function)
            finally:
                self._changing = False

    def miss(self, task: Task[Any]) -> bool:
        """A task is gone from this process; whether it is one that is still to be there."""
        missed = self.source is not None and task.name in map(self.member, self._keys or ())
        if missed:
            self._taken = None
        return missed

    def state(self) -> tuple[Any, ...]:
        """What `reset` takes."""
        return self.function, self.policy, self.source, self._keys, self._taken

    def reset(self, state: tuple[Any, ...] | None = None) -> None:
        """Be as it was, or as if no keys had ever been listed."""
        if state is not None:
            self.function, self.policy, self.source, self._keys, self._taken = state
        elif self.source is not None:
            self._keys = self._taken = None


class Listing:
    """What the task runs that lists the keys of a family: a function of the author's, whose answer is looked at."""

    def __init__(self, family: str, function: Callable[[], Any]):
        self.family = family
        self.__wrapped__ = function

    def __call__(self) -> Any:
        return list(keys_of(self.family, self.__wrapped__()))


class AsyncListing(Listing):
    """The same of an ``async def``."""

    async def __call__(self) -> Any:
        return list(keys_of(self.family, await self.__wrapped__()))


def listing(family: str, function: Callable[[], Any], policy: Policy) -> tuple[Policy, str, Listing]:
    """What is to be registered, so that a function is asked for the keys when the clocks start, and for each slot."""
    first = FirstRun.BACKGROUND if policy.first_run is FirstRun.SKIP else policy.first_run
    made = (AsyncListing if is_async(function) else Listing)(family, function)
    own = Policy(
        policy.trigger, first, timeout=policy.timeout, retry=policy.retry, catch_up=policy.catch_up,
        misfire_grace=policy.misfire_grace, given=policy.given,
    )  # fmt: skip
    return own, f"{family}[]", made


def keys_of(family: str, value: Any) -> dict[str, None]:
    """
    The keys that a value lists, in their order.

    Raises
    ------
    RegistrationError
        When they are not texts, each once and not empty.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise RegistrationError(
            f"Family {family!r}: {value!r} is no list of keys. Give texts, as in ['north', 'south']."
        )
    keys = dict[str, None]()
    for key in value:
        if not isinstance(key, str) or not key or not is_text(key):
            raise RegistrationError(
                f"Family {family!r}: its keys must be texts that can be written, and not empty, and one is {key!r}. "
                "The key is part of its task's name, the same in all processes: make a text of it, as by str(key)."
            )
        if key in keys:
            raise RegistrationError(f"Family {family!r}: the key {key!r} comes twice, and has one task. Leave one out.")
        keys[str(key)] = None  # numpy's are a kind of their own
    return keys
