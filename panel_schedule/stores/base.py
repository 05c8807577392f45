"""What every store promises its callers, and what a value must be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from bokeh.document import Document
from bokeh.model import Model
from panel.viewable import Viewable, Viewer

from ..entry import Entry
from ..errors import ValueRefused
from ..run import RunRecord

# The two namespaces: what a user puts into ``ps.store``, and what tasks publish.
USER = "user"
TASK = "task"


@dataclass(frozen=True, slots=True)
class Claim:
    """The right of one run to publish values of its task. A later fence makes it void."""

    task: str
    run_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class Row:
    """
    What a store remembers of a task besides its value.

    Attributes
    ----------
    fingerprint : str
        Of the schedule in the code.
    first_seen : datetime
        Only slots after this instant, at which the schedule was first seen, can be missed.
    last_slot : datetime or None
        The last slot that was claimed or skipped.
    paused : bool
    override : object
        The trigger of a `reschedule`, None without one.
    """

    fingerprint: str
    first_seen: datetime
    last_slot: datetime | None = None
    paused: bool = False
    override: Any = None


Listener = Callable[[str, str, Entry | None], object]


class Store(Protocol):
    """Callable from any thread."""

    def entry(self, space: str, name: str) -> Entry | None:
        """The stored value, None where there is none."""
        ...

    def names(self, space: str) -> Iterator[str]: ...

    def publish(
        self,
        space: str,
        name: str,
        value: Any,
        *,
        now: datetime,
        duration: float | None = None,
        claim: Claim | None = None,
    ) -> Entry:
        """
        Store a new version and tell the listeners.

        Raises
        ------
        ValueRefused
            When the value is not data; the old one stays.
        RunFenced
            When `claim` is no longer the task's own; the value is dropped.
        """
        ...

    def delete(self, space: str, name: str) -> None:
        """Forget the value. Raises KeyError where there is none."""
        ...

    def subscribe(self, listener: Listener) -> None:
        """Call ``listener(space, name, entry)`` after each change, on the thread that made it."""
        ...

    def row(self, task: str) -> Row | None: ...

    def amend(self, task: str, **changes: Any) -> Row:
        """Change, or create, the row of a task."""
        ...

    def claim(self, task: str, run_id: str, slot: datetime | None) -> Claim | None:
        """
        Compare and set: the claim of a task, None when another run holds it or `slot` was handled before.

        `slot` is None for a run on request.
        """
        ...

    def void(self, claim: Claim) -> Claim:
        """Let nothing more be published under the claim; the one returned holds the task until its release."""
        ...

    def release(self, claim: Claim) -> None:
        """Give the claim back. Harmless when it was lost before."""
        ...

    def record(self, task: str, record: RunRecord, replaces: RunRecord | None = None) -> None:
        """Add to the history, or replace its newest record when that is `replaces`."""
        ...

    def history(self, task: str) -> list[RunRecord]:
        """Newest first."""
        ...

    def forget(self, task: str) -> None:
        """Drop value, row and history of a task."""
        ...


# A plot or a pane belongs to the one document that shows it.
BOUND = (Model, Document, Viewable, Viewer)

# How many items are looked at, and how deep.
_BUDGET = 10_000
_DEPTH = 4


def require_data(value: Any, what: str) -> None:
    """
    Raise unless `value` is data that many sessions can share.

    Containers are looked into, 4 levels deep, 10,000 items in all: a convenience for the
    author and no proof.

    Raises
    ------
    ValueRefused
        Naming `what` was given, the type and the path inside the value.
    """
    if inspect.iscoroutine(value):
        value.close()
        raise ValueRefused(
            f"{what}: the value is a coroutine that nobody awaited. Write the function as an `async def`."
        )
    found = _find_bound(value, _DEPTH, iter(range(_BUDGET)))
    if found is not None:
        keys, culprit = found
        path = "value" + "".join(f"[{key!r}]" for key in reversed(keys))
        raise ValueRefused(
            f"{what}: {path} is a {type(culprit).__module__}.{type(culprit).__qualname__}, which belongs to one "
            "document and cannot be shared by sessions. Return the data, and build the plot or the pane from it in "
            "the app: pn.panel(task.view().pipe(make_plot))."
        )


def _find_bound(value: Any, depth: int, budget: Iterator[int]) -> tuple[list[Any], Any] | None:
    """The first bound object, and the keys that lead to it, the last one first."""
    if isinstance(value, BOUND):
        return [], value
    if depth == 0 or not isinstance(value, (dict, list, tuple, set, frozenset)):
        return None
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for (key, item), _ in zip(items, budget, strict=False):
        if type(item) in (int, float, str, bool):
            continue
        if (found := _find_bound(item, depth - 1, budget)) is not None:
            found[0].append(key)
            return found
    return None
