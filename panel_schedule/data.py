"""What a value must be: data, which belongs to no document."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from .errors import ValueRefused

# A plot or a pane belongs to the one document that shows it. By module, as a worker process may have loaded none.
_BOUND = {"bokeh.model": ["Model"], "bokeh.document": ["Document"], "panel.viewable": ["Viewable", "Viewer"]}

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
    loaded = [(sys.modules.get(module), names) for module, names in _BOUND.items()]
    bound = tuple(getattr(module, name) for module, names in loaded for name in names if hasattr(module, name))
    found = _find_bound(value, bound, _DEPTH, iter(range(_BUDGET)))
    if found is not None:
        keys, culprit = found
        path = "value" + "".join(f"[{key!r}]" for key in reversed(keys))
        raise ValueRefused(
            f"{what}: {path} is a {type(culprit).__module__}.{type(culprit).__qualname__}, which belongs to one "
            "document and cannot be shared by sessions. Return the data, and build the plot or the pane from it in "
            "the app: pn.panel(task.view().pipe(make_plot)); of a memoized function it is "
            "function.view(...).pipe(make_plot), of a job job.pipe(make_plot)."
        )


def _find_bound(value: Any, bound: tuple[type, ...], depth: int, budget: Iterator[int]) -> tuple[list[Any], Any] | None:
    """The first bound object, and the keys that lead to it, the last one first."""
    if isinstance(value, bound):
        return [], value
    if depth == 0 or not isinstance(value, (dict, list, tuple, set, frozenset)):
        return None
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for (key, item), _ in zip(items, budget, strict=False):
        if type(item) in (int, float, str, bool):
            continue
        if (found := _find_bound(item, bound, depth - 1, budget)) is not None:
            found[0].append(key)
            return found
    return None


# Up to so many bytes to pickle something is no business of another thread.
_LIGHT = 256 * 1024


def is_light(value: Any) -> bool:
    """Whether it is quick to serialise, as far as a short look tells."""
    left, waiting = _LIGHT, [value]
    while waiting and left > 0:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            left -= 8 * len(value)
            if left > 0:
                waiting += value
        elif not isinstance(value, type):
            left -= _size(value)
            waiting += getattr(value, "__dict__", {}).values()
    return left > 0


def _size(value: Any) -> int:
    """Bytes, of a frame or an array with its contents."""
    try:
        if hasattr(value, "columns") and callable(memory := getattr(value, "memory_usage", None)):
            return int(memory().sum())
        for name in ("nbytes", "memory_usage", "estimated_size"):
            size = getattr(value, name, None)
            if size is not None:
                return int(size() if callable(size) else size)
    except (TypeError, AttributeError):  # something else by that name
        pass
    return sys.getsizeof(value, 0)
