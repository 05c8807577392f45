"""
Copies of values.

What a reader gets of a value that many share: its data frames as copies of the reader's own. And what a function gets
of its arguments: they are those of the moment of the call, whatever its caller does to them later.
"""

from __future__ import annotations

import copy
import sys
from array import array
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from io import BytesIO, StringIO
from itertools import islice
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    EllipsisType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
    NoneType,
    SimpleNamespace,
)
from typing import Any, NamedTuple
from uuid import UUID

from ..errors import is_interrupt

# Nothing is inside of these, and nobody can change them.
PLAIN: frozenset[type] = frozenset(
    {bool, int, float, complex, str, bytes, NoneType, EllipsisType, range, date, datetime, time, timedelta, Decimal}
)

# How many containers are looked into, and of how many items of each the types: some 2 ms of a long list, 50 ms of many
# short ones.
CONTAINERS = 20_000
ITEMS = 100_000

# What is found in something: how a message has the way there, with the keys, and the things.
Parts = Iterable[tuple[str, Sequence[Any], Sequence[Any]]]


class Found(NamedTuple):
    """Something in a value, and how one gets there."""

    thing: Any
    holder: Found | None = None
    form: str = ""
    key: Any = None

    @property
    def path(self) -> str:
        """Behind the name of the value: ``"['north'].table[3]"``."""
        steps, found = list[str](), self
        while found.holder is not None:
            steps.append(found.form.format(found.key))
            found = found.holder
        return "".join(reversed(steps))

    @property
    def kind(self) -> str:
        """``"pandas.DataFrame"``."""
        return f"{type(self.thing).__module__}.{type(self.thing).__qualname__}"


def walk(value: Any, inside: Callable[[Any], Parts], room: int = CONTAINERS) -> Iterator[tuple[Found, bool]]:
    """
    What is in a value, itself first, plain things left out; what is near comes before what is deep inside.

    Parameters
    ----------
    inside : callable
        Gives the parts of one thing. Of a list of plain things only the types are looked at.
    room : int
        How many containers are looked into, and five times as many items of each.

    Yields
    ------
    Found, bool
        And whether it is seen for the first time: only then it is looked into.
    """
    # It keeps what it has seen: the id of something that is gone is given to the next.
    waiting, seen, items = deque([Found(value)]), dict[int, Any](), 5 * room
    while waiting:
        found = waiting.popleft()
        new = id(found.thing) not in seen
        yield found, new
        if not new:
            continue
        seen[id(found.thing)] = found.thing
        for form, keys, things in inside(found.thing):
            room -= 1
            if room < 0:
                return
            if kinds := set(map(type, islice(things, max(ITEMS, items)))) - PLAIN:
                for key, thing in islice(zip(keys, things, strict=False), items):
                    if type(thing) in kinds:
                        waiting.append(Found(thing, found, form, key))


def containers(value: Any) -> Parts:
    """The items of a built-in container, and the fields of a record."""
    kind = type(value)
    if issubclass(kind, dict):
        keys = list(dict.keys(value))
        return ("[{!r}]", keys, list(dict.values(value))), (" key {!r}", keys, keys)
    for base in (list, tuple, deque, set, frozenset):
        if issubclass(kind, base):
            things = value if kind is list or kind is tuple else list(base.__iter__(value))
            return [("[{}]", range(len(things)), things)]
    if not (names := field_names(value)):
        return ()
    own = getattr(value, "__dict__", None)
    there = [name for name in names if own is None or name in own]
    return [(".{}", there, [getattr(value, name) for name in there])]


def field_names(value: Any) -> list[str]:
    """Of a dataclass, an attrs or a pydantic object, or a namespace; of anything else none."""
    kind = type(value)
    if kind is SimpleNamespace:
        return list(vars(value))
    for attribute in ("__dataclass_fields__", "__pydantic_fields__"):
        if isinstance(fields := getattr(kind, attribute, None), dict):
            return list(fields)
    return [each.name for each in getattr(kind, "__attrs_attrs__", ())]


# ------------------------------------------------------------ data frames


def frame_types() -> tuple[tuple[type, ...], tuple[type, ...]]:
    """The data frames and series of pandas, and those of polars; none while another thread imports it."""
    pandas, polars = sys.modules.get("pandas"), sys.modules.get("polars")
    return _there(pandas, "DataFrame", "Series"), _there(polars, "DataFrame", "Series")


def _there(module: Any, *names: str) -> tuple[type, ...]:
    return tuple(filter(None, (getattr(module, name, None) for name in names)))


def is_frame(value: Any) -> bool:
    """Whether it is a data frame or a series."""
    kind = type(value)
    return kind not in PLAIN and any(issubclass(kind, types) for types in frame_types())


_NONE = frozenset[int]()


def holding_frames(value: Any) -> frozenset[int]:
    """The ids of the data frames and series in it, and of all that they are in; none where there are none."""
    if type(value) in PLAIN or not (kinds := sum(frame_types(), ())):
        return _NONE
    if issubclass(type(value), kinds):
        return frozenset({id(value)})
    frames, holders = list[int](), defaultdict[int, list[int]](list)
    for found, _ in walk(value, containers):
        if found.holder is not None:
            holders[id(found.thing)].append(id(found.holder.thing))
        if issubclass(type(found.thing), kinds):
            frames.append(id(found.thing))
    holding = set[int]()
    while frames:
        if (one := frames.pop()) not in holding:
            holding.add(one)
            frames += holders[one]
    return frozenset(holding)


# In the modules of what is read most there are none, which is known sooner than what a class inherits.
_NO_FRAMES = frozenset({"builtins", "collections", "datetime", "decimal", "numpy"})


def own_copy(value: Any) -> Any:
    """
    A data frame or series as a shallow copy of the reader's own; everything else as it is.

    What is written into it is copied first, so that nobody else sees it; before pandas 3 new columns only are the
    reader's own, unless pandas' option ``mode.copy_on_write`` is set.
    """
    kind = type(value)
    if kind in PLAIN or kind.__module__ in _NO_FRAMES:
        return value
    pandas, polars = frame_types()
    if issubclass(kind, pandas):
        return _copied(value, deep=False)
    return value.clone() if issubclass(kind, polars) else value


def own_copies(value: Any, holding: frozenset[int]) -> Any:
    """
    The same of a value as a page gets it, whose tables are edited: with the frames in its containers and records.

    Before pandas 3 the copies are full ones.

    Parameters
    ----------
    holding : frozenset of int
        What `holding_frames` has found. All else is the shared object itself.
    """
    try:
        return _Frames(holding).of(value) if holding else value
    except RecursionError:  # nested a thousand deep: shared, as all that is no table
        return value


def _copied(frame: Any, deep: bool) -> Any:
    mine, kind = frame.copy(deep=deep), type(frame)
    if type(mine) is not kind:  # of a subclass that does not say how it is made
        mine.__class__ = kind
    return mine


def _writes_through() -> bool:
    """Whether what is written into a shallow copy is written into the original."""
    pandas: Any = sys.modules["pandas"]
    return int(pandas.__version__.split(".")[0]) < 3 and pandas.get_option("mode.copy_on_write") is not True


def _items(value: Any, kind: type) -> Iterator[tuple[Callable[[Any, Any, Any], object], Any, Any]]:
    """How each is put into another one like this, its key, and it."""
    if issubclass(kind, dict):
        yield from ((dict.__setitem__, key, thing) for key, thing in list(dict.items(value)))
    elif issubclass(kind, (list, deque)):
        base: Any = list if issubclass(kind, list) else deque
        yield from ((base.__setitem__, at, thing) for at, thing in enumerate(base.__iter__(value)))
    else:
        names = [name for name in field_names(value) if hasattr(value, name)]
        yield from ((object.__setattr__, name, getattr(value, name)) for name in names)


# ------------------------------------------------------------ arguments


def snapshot(args: Any, kwargs: Any, but: Iterable[Any] = ()) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """
    Arguments as they are now, which no later change reaches.

    Copied are containers and records, arrays, frames (copy-on-write; in full before pandas 3), and plain objects that
    are made of such. What cannot change is not copied; what cannot be copied, a lock or a connection or an object that
    has one, is passed as it is, and so is all that is named by `but`.
    """
    if PLAIN.issuperset(map(type, args)) and PLAIN.issuperset(map(type, kwargs.values())):
        return args, kwargs
    now = _Snapshot()
    now._made.update((id(value), value) for value in but)
    return tuple(map(now.of, args)), {name: now.of(value) for name, value in kwargs.items()}


def as_it_is_now(value: Any) -> Any:
    """The same of one value."""
    return _Snapshot().of(value)


class _Snapshot:
    """Copies of things that may change; what is found twice is copied once."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}
        # How many things were passed as they are though they may change.
        self._passed = 0

    def of(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        if id(value) not in self._made:
            self._made[id(value)] = value
            try:
                self._made[id(value)] = _quick_copy(value) or self._copy(value, type(value))
            except BaseException as error:  # nested a thousand deep, or of a class that refuses it
                if is_interrupt(error):
                    raise
                self._passed += 1
        return self._made[id(value)]

    def _copy(self, value: Any, kind: type) -> Any:
        if issubclass(kind, (list, dict, deque)):
            return self._filled(value, kind, copy.copy(value))
        if issubclass(kind, tuple):
            things = list(tuple.__iter__(value))
            news = things if PLAIN.issuperset(map(type, things)) else [self.of(thing) for thing in things]
            same = all(new is old for new, old in zip(news, things, strict=True))
            if not getattr(value, "__dict__", None):
                return value if same else tuple.__new__(kind, news)
            return self._with_attributes(value, tuple.__new__(kind, news))
        if issubclass(
            kind, (set, bytearray, array, BytesIO, StringIO)
        ):  # what is in a set can be hashed, and so should not change
            return self._with_attributes(value, copy.copy(value))
        if kind in _SEEN_THROUGH:
            return _SEEN_THROUGH[kind](self, value)
        if issubclass(kind, BaseException):
            return self._error(value)
        pandas, polars = frame_types()
        if issubclass(kind, pandas):
            return _copied(value, deep=_writes_through())
        if issubclass(kind, polars):
            return value.clone()
        library = kind.__module__.partition(".")[0]
        if library in ("numpy", "pandas"):
            return self._array(value, kind)
        if _is_fixed(kind, library):
            return value
        if names := field_names(value):
            fixed = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
            values = [getattr(value, name) for name in names]
            if fixed and all(self.of(thing) is thing for thing in values):
                return value
            return self._filled(value, kind, copy.copy(value))
        if is_plain(kind) and library not in CLOSED:
            return self._object(value)
        self._passed += 1
        return value

    def _filled(self, value: Any, kind: type, mine: Any) -> Any:
        # Before its items: one of them may lead back to it.
        self._made[id(value)] = mine
        for put, key, thing in _items(value, kind):
            if (new := self.of(thing)) is not thing:
                put(mine, key, new)
        return self._with_attributes(value, mine)

    def _with_attributes(self, value: Any, mine: Any) -> Any:
        """Those that a subclass of a container has, or a record beside its fields."""
        self._made[id(value)] = mine
        own: dict[str, Any] = getattr(mine, "__dict__", {})
        for name, thing in list(getattr(value, "__dict__", {}).items()):
            own[name] = self.of(thing)
        return mine

    def _error(self, value: BaseException) -> BaseException:
        mine: BaseException = copy.copy(value)
        mine.__dict__ = {}  # where tblib is, as with Dask, a copy shares its attributes with the original
        mine.args = self.of(value.args)
        mine.__cause__, mine.__context__ = value.__cause__, value.__context__
        mine.__suppress_context__, mine.__traceback__ = value.__suppress_context__, value.__traceback__
        self._with_attributes(value, mine)
        return mine

    def _array(self, value: Any, kind: type) -> Any:
        numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
        if issubclass(kind, _there(numpy, "ndarray")):
            mine = _copied_array(value)
            if mine.dtype.hasobject and mine.dtype.names is None:
                for at in sys.modules["numpy"].ndindex(value.shape):
                    mine[at] = self.of(value[at])
            return mine
        kinds = _there(getattr(getattr(pandas, "api", None), "extensions", None), "ExtensionArray")
        kinds += _there(pandas, "Index")  # its name may change
        return value.copy() if issubclass(kind, kinds) else value

    def _object(self, value: Any) -> Any:
        """A plain object; as it is, when there is something in it that cannot be copied: it is more than data then."""
        passed, mine = self._passed, copy.copy(value)
        self._made[id(value)] = mine
        for name, thing in attributes(value).items():
            if (new := self.of(thing)) is not thing:
                object.__setattr__(mine, name, new)
        return mine if passed == self._passed else value


class _Frames(_Snapshot):
    """Copies of frames, and of what they are in."""

    def __init__(self, holding: frozenset[int]):
        super().__init__()
        self._holding = holding

    def of(self, value: Any) -> Any:
        if id(value) not in self._holding:
            return value
        if id(value) not in self._made:
            self._made[id(value)] = value
            self._made[id(value)] = self._copy(value, type(value))
        return self._made[id(value)]


def _memory(snapshot: _Snapshot, view: memoryview) -> memoryview:
    kept = bytes(view) if view.readonly else bytearray(view)
    return memoryview(kept).cast("B").cast(view.format, view.shape) if view.ndim else memoryview(kept)  # type: ignore[call-overload]


# What shows something else, as that is now.
_SEEN_THROUGH: dict[type, Callable[[_Snapshot, Any], Any]] = {
    MappingProxyType: lambda snapshot, value: MappingProxyType(snapshot.of(dict(value))),
    type({}.keys()): lambda snapshot, value: dict.fromkeys(value).keys(),
    type({}.values()): lambda snapshot, value: snapshot.of(dict(enumerate(value))).values(),
    type({}.items()): lambda snapshot, value: snapshot.of(dict(value)).items(),
    type(OrderedDict().keys()): lambda snapshot, value: dict.fromkeys(value).keys(),
    type(OrderedDict().values()): lambda snapshot, value: snapshot.of(dict(enumerate(value))).values(),
    type(OrderedDict().items()): lambda snapshot, value: snapshot.of(dict(value)).items(),
    memoryview: _memory,
}


def _quick_copy(value: Any) -> Any:
    """Of rows and columns of plain things; None of all else."""
    if type(value) is dict and PLAIN.issuperset(map(type, value.values())):
        return value.copy()
    return value[:] if type(value) is list and PLAIN.issuperset(map(type, value)) else None


# From so many bytes on an array is copied by several threads: its caller may be an event loop.
_LARGE = 8 * 2**20
_THREADS = 4


def _copied_array(value: Any) -> Any:
    numpy: Any = sys.modules["numpy"]
    if value.nbytes < _LARGE or type(value) is not numpy.ndarray or value.dtype.hasobject or not value.flags.forc:
        return value.copy(order="K")
    mine = numpy.empty_like(value)
    there, here = mine.ravel(order="K"), value.ravel(order="K")
    step = -(-len(here) // _THREADS)
    with ThreadPoolExecutor(_THREADS) as threads:
        parts = [slice(at, at + step) for at in range(0, len(here), step)]
        deque(threads.map(lambda part: numpy.copyto(there[part], here[part]), parts), maxlen=0)
    return mine


# Of these libraries an object leads to all that there is.
CLOSED = (
    "builtins",
    "asyncio",
    "bokeh",
    "concurrent",
    "panel",
    "panel_schedule",
    "param",
    "threading",
    "tornado",
    "unittest",
)

_FIXED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, partial, frozenset, Enum, PurePath, UUID)


def _is_fixed(kind: type, library: str) -> bool:
    """Whether nobody changes it after it was made."""
    return issubclass(kind, (*_FIXED, *PLAIN - {range, bool, NoneType, EllipsisType})) or library in _IMMUTABLE


_IMMUTABLE = ("datetime", "fractions", "polars", "pyarrow", "re", "zoneinfo")


def is_plain(kind: type) -> bool:
    """Whether it is pickled attribute by attribute, as classes are that do not say otherwise."""
    return all(getattr(kind, name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__", "__getstate__"))


def attributes(value: Any) -> dict[str, Any]:
    """Those of a plain object."""
    found = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        names = vars(base).get("__slots__", ())
        for name in [names] if isinstance(names, str) else names:
            if not name.startswith("__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found
