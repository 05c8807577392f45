"""What in a value cannot be pickled, and how one gets there."""

from __future__ import annotations

import sys
import traceback
from itertools import islice
from types import FunctionType, ModuleType
from typing import Any

from ..errors import is_interrupt
from .copies import Parts, attributes, containers, frame_types, walk

# How many containers are looked into, and five times as many items of each.
_LOOKED_INTO = 200_000


def refusal(value: Any, what: str, culprit: Any, error: BaseException) -> str:
    """Why a value cannot be pickled: `what` it is, the type of the `culprit` and its path inside the value."""
    path, kind = None, kind_name(type(culprit))
    try:
        found = (each for each, _ in walk(value, _inside, _LOOKED_INTO) if each.thing is culprit)
        path = next((each.path for each in found), None)
    except BaseException as trouble:  # whatever a user's __repr__ or __dict__ does
        if is_interrupt(trouble):
            raise
    where = f"value{path} is" if path is not None else f"value (a {kind_name(type(value))}) holds"
    return (
        f"{what}: {where} a {kind}, which cannot be shared by processes ({told(error)}). Return plain data: "
        "numbers, text, containers, arrays, DataFrames; and open files, locks and connections where they are used."
    )


def kind_name(kind: type) -> str:
    """As messages have it: ``"list"``, ``"pandas.DataFrame"``."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def told(error: BaseException) -> str:
    """The one line that says what went wrong."""
    return traceback.format_exception_only(error)[0].strip()


def _inside(thing: Any) -> Parts:
    """What pickling may come to next, and how one gets there."""
    kind, numpy, (pandas, _) = type(thing), sys.modules.get("numpy"), frame_types()
    if issubclass(kind, (type, ModuleType, FunctionType)):
        return ()
    pairs: Any = ()
    if issubclass(kind, getattr(numpy, "ndarray", ())):  # none while another thread imports it
        pairs = sys.modules["numpy"].ndenumerate(thing) if thing.dtype.hasobject else ()
    elif issubclass(kind, pandas):
        pairs = thing.items() if thing.ndim == 2 or thing.dtype == object else ()
    items, own = list(islice(pairs, 5 * _LOOKED_INTO)), attributes(thing)
    labelled = "[{!r}]", [label for label, _ in items], [item for _, item in items]
    return [*containers(thing), labelled, (".{}", list(own), list(own.values()))]
