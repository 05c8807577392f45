"""What a value must be: data, which belongs to no document."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from bokeh.document import Document
from bokeh.model import Model
from panel.viewable import Viewable, Viewer

from ..errors import ValueRefused

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
