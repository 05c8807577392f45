"""What in a value cannot be pickled, and how one gets there."""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from types import FunctionType, ModuleType
from typing import Any

from ..errors import is_interrupt
from .copies import frame_types

_ATOMS = (int, float, complex, bool, str, bytes, type(None))
_OBJECTS = "object"
_LOOKED_AT = 1_000_000


def refusal(value: Any, what: str, culprit: Any, error: BaseException) -> str:
    """Why a value cannot be pickled: `what` it is, the type of the `culprit` and its path inside the value."""
    path = None
    try:
        path = _path_to(culprit, value)
    except BaseException as trouble:  # whatever a user's __repr__ or __dict__ does
        if is_interrupt(trouble):
            raise
    where = f"{path} is" if path else f"value (a {_kind(value)}) holds"
    return (
        f"{what}: {where} a {_kind(culprit)}, which cannot be shared by processes ({told(error)}). Return plain data: "
        "numbers, text, containers, arrays, DataFrames; and open files, locks and connections where they are used."
    )


def _kind(thing: Any) -> str:
    kind = type(thing)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def told(error: BaseException) -> str:
    """The one line that says what went wrong."""
    return traceback.format_exception_only(error)[0].strip()


def _path_to(culprit: Any, value: Any) -> str | None:
    # Keeps what it has seen: the id of something that is gone is given to the next.
    seen = {id(value): value}
    found = deque([("value", value)])
    while found:
        path, holder = found.popleft()
        if holder is culprit:
            return path
        for key, item in _inside(holder):
            if type(item) not in _ATOMS and id(item) not in seen and len(seen) < _LOOKED_AT:
                seen[id(item)] = item
                found.append((path + key, item))
    return None


def _inside(holder: Any) -> Iterator[tuple[str, Any]]:
    """What pickling may come to next, and how one gets there."""
    kind = type(holder)
    if issubclass(kind, (type, ModuleType, FunctionType)):
        return
    numpy: Any = getattr(sys.modules.get("numpy"), "ndarray", None)  # none while another thread imports it
    pandas, _ = frame_types()
    pairs: Any = ()
    if issubclass(kind, (list, tuple, set, frozenset, deque)):
        pairs = enumerate(holder)
    elif getattr(holder, "dtype", _OBJECTS) != _OBJECTS:
        pass
    elif numpy and issubclass(kind, numpy):
        pairs = sys.modules["numpy"].ndenumerate(holder)
    elif issubclass(kind, (dict, *pandas)):
        pairs = holder.items()
    yield from ((f"[{key!r}]", item) for key, item in pairs)
    slots = (getattr(kind, "__slots__", ()) for kind in kind.__mro__)
    names = chain.from_iterable([names] if isinstance(names, str) else names for names in slots)
    for name in chain(getattr(holder, "__dict__", ()), names):
        with suppress(AttributeError):
            yield f".{name}", getattr(holder, name)
