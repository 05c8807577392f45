"""What a value must be: data, which belongs to no document, and can be read again and again."""

from __future__ import annotations

import asyncio
import inspect
import io
import socket
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache, partial
from itertools import chain, islice
from types import (
    BuiltinMethodType,
    FunctionType,
    MappingProxyType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any, NamedTuple

from ..errors import ValueRefused, is_interrupt
from .code import closed_over, names_in
from .copies import CLOSED, CONTAINERS, ITEMS, PLAIN, Found, Parts, attributes, containers, frame_types, is_plain, walk

# What belongs to the one session that shows it. By module, as a worker process may have loaded none.
_BOUND = {
    "bokeh.model": ["Model"],
    "bokeh.document": ["Document"],
    "panel.viewable": ["Viewable", "Viewer"],
    "panel_schedule.views.base": ["View"],
}
# Of files in memory each attempt of a run has a copy, for another run one can wait again, and a mock is whatever it is
# asked for.
_ALLOWED = {
    "io": ["BytesIO", "StringIO"],
    "panel_schedule.functions.run": ["Run"],
    "unittest.mock": ["NonCallableMock"],
}
_REFERENCES = {"param.parameterized": ["Parameter", "Parameters"], "param.reactive": ["rx", "reactive_ops"]}

# How messages have the way to what is inside, see `_parts`. What is used once may be in the last two: there it serves
# the object, or the module, and not the reader.
_ATTRIBUTE, _CLOSES, _HIDDEN, _USES = ".{}", " closing over {}", ".{!s}", " using {}"

_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CACHED = type(lru_cache(len))


class _Reason(NamedTuple):
    """Why something is no data, and what to do instead: where it is a value, and where it is an argument."""

    of_value: str
    of_argument: str
    # It can be used once.
    once: bool = False


_PLOT = _Reason(
    "belongs to one document and cannot be shared by sessions. Return the data, and build the plot or the pane from it "
    "in the app: pn.panel(task.view().pipe(make_plot)); of a memoized function it is "
    "function.view(...).pipe(make_plot), of a job job.pipe(make_plot).",
    "belongs to one document, and a run to none. Pass the data that it shows, or the value that it has now.",
)
_REFERENCE = _Reason(
    "is a reference to what one session sees, and cannot be shared by sessions. Take the value that it has now: "
    "widget.value, expression.rx.value; and let a page combine the two: pn.bind(f, task, widget).",
    "is a reference to what one session sees, and a run belongs to none. Pass the value that it has now: widget.value, "
    "expression.rx.value.",
)
_ITERATOR = _Reason(
    "can be used once: its first reader would leave nothing to the others. Make a list of it: list(...).",
    "can be used once: a second attempt would find nothing. Pass a list of it: list(...).",
    once=True,
)
_FILE = _Reason(
    "can be read once: its first reader would leave nothing to the others. Take what is in it: file.read(), of a "
    "BytesIO or StringIO its getvalue().",
    "can be read once: a second attempt would find nothing. Pass its name, or what is in it: file.read().",
    once=True,
)
_LATER = _Reason(
    "is still to come, and not a value. Take what it gives: `await` it, or its result().",
    "is still to come, and not a value. Pass what it gives: `await` it, or its result().",
    once=True,
)


def require_data(value: Any, what: str) -> None:
    """
    Raise unless `value` is data that many sessions can share, each for itself.

    Refused are models, panes and references, which belong to one session, and what can be used once: iterators, files,
    futures. Containers, records, functions and plain objects are looked into, some 20,000 of them: a convenience for
    the author and no proof. What is in an object's private attributes may be used once.

    Raises
    ------
    ValueRefused
        Naming `what` was given, the type and the path inside the value.
    """
    if type(value) in PLAIN:
        return
    if inspect.iscoroutine(value):
        value.close()
        raise ValueRefused(
            f"{what}: the value is a coroutine that nobody awaited. Write the function as an `async def`."
        )
    for found, reason in _no_data(value, _Judge(), CONTAINERS):
        raise ValueRefused(f"{what}: value{found.path} is a {found.kind}, which {reason.of_value}")


def require_arguments(arguments: Mapping[str, Any], what: str) -> None:
    """
    The same of the arguments of a run, of which less is looked into: its caller may be an event loop.

    Raises
    ------
    ValueRefused
        Naming `what` is called, the argument, the type and the path inside the argument.
    """
    judge, allowed = _Judge(), _loaded(_ALLOWED)
    for name, value in arguments.items():
        if type(value) in PLAIN:
            continue
        try:
            found = list(_no_data(value, judge, _SOME))
        except BaseException as error:  # of an object that can be asked for nothing
            if is_interrupt(error):
                raise
            continue
        for thing, reason in found:
            if not issubclass(type(thing.thing), allowed):
                raise ValueRefused(
                    f"{what}: argument {name!r}: {name}{thing.path} is a {thing.kind}, which {reason.of_argument}"
                )


# So many containers take some 5 ms.
_SOME = 1_000


def _no_data(value: Any, judge: _Judge, room: int) -> Iterator[tuple[Found, _Reason]]:
    for found, _ in walk(value, partial(_parts, judge), room):
        reason = judge(found.thing)
        if reason is not None and not (found.form in (_HIDDEN, _USES) and reason.once):
            yield found, reason


class _Judge:
    """Why a thing is no data; None of what is. Asks no thing itself, as of some each question makes another one."""

    def __init__(self) -> None:
        self._bound, self._references = _loaded(_BOUND), _loaded(_REFERENCES)
        self._known: dict[type, _Reason | None] = {}

    def __call__(self, thing: Any) -> _Reason | None:
        kind = type(thing)
        if kind not in self._known:
            self._known[kind] = self._of(kind)
        reason = self._known[kind]
        if reason is None and (kind is FunctionType or kind is MethodType) and "_dinfo" in vars(thing):
            return _REFERENCE
        return reason

    def _of(self, kind: type) -> _Reason | None:
        if issubclass(kind, self._bound):
            return _PLOT
        if issubclass(kind, self._references):
            return _REFERENCE
        if issubclass(kind, (io.IOBase, socket.socket)):
            return _FILE
        names = {name for base in kind.__mro__ for name in ("__next__", "__anext__", "__await__") if name in vars(base)}
        if issubclass(kind, (Future, asyncio.Future)) or "__await__" in names:
            return _LATER
        return _ITERATOR if names else None


def _loaded(table: dict[str, list[str]]) -> tuple[type, ...]:
    modules = [(sys.modules.get(module), names) for module, names in table.items()]
    return tuple(getattr(module, name) for module, names in modules for name in names if hasattr(module, name))


def _parts(judge: _Judge, thing: Any) -> Parts:
    """What is in it that a reader comes to."""
    kind = type(thing)
    if judge(thing) or issubclass(kind, (type, ModuleType)):
        return ()
    if parts := containers(thing):
        return parts if kind.__module__ == "builtins" else [*parts, *_attributes(thing)]
    if issubclass(kind, MappingProxyType):
        return containers(dict(thing))
    if issubclass(kind, _VIEWS):
        return containers(list(thing))
    if issubclass(kind, BaseException):
        return [
            (".args[{}]", range(len(thing.args)), thing.args),
            (_ATTRIBUTE, list(vars(thing)), [*vars(thing).values()]),
        ]
    if kind is FunctionType:
        return _in_function(judge, thing)
    if issubclass(kind, partial):
        return [
            (".func{}", [""], [thing.func]),
            (".args[{}]", range(len(thing.args)), thing.args),
            (".keywords[{!r}]", list(thing.keywords), list(thing.keywords.values())),
        ]
    if issubclass(kind, (MethodType, BuiltinMethodType, MethodWrapperType)):
        called = [(_ATTRIBUTE, ["__func__"], [thing.__func__])] if issubclass(kind, MethodType) else []
        owner = thing.__self__
        return called if isinstance(owner, (type, ModuleType)) else [(_ATTRIBUTE, ["__self__"], [owner]), *called]
    if issubclass(kind, _CACHED):
        return [(_ATTRIBUTE, ["__wrapped__"], [thing.__wrapped__])]
    if issubclass(kind, weakref.ReferenceType):
        return [("{}", ["()"], [thing()])]
    return _objects(thing) or _attributes(thing)


def _in_function(judge: _Judge, function: FunctionType) -> Parts:
    parts = list[tuple[str, Sequence[Any], Sequence[Any]]]()
    inside = closed_over(function)
    parts.append((_CLOSES, list(inside), list(inside.values())))
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    parts.append(("'s default {}", range(len(defaults)), defaults))
    # Of a module's names only what belongs to a session: all else is the module's, and there for all who call it.
    names = [name for name in names_in(function.__code__) if judge(function.__globals__.get(name))]
    parts.append((_USES, names, [function.__globals__[name] for name in names]))
    return parts


def _objects(thing: Any) -> Parts:
    """What an array of objects holds, or a frame in its columns, and in what it carries beside them."""
    kind, numpy, (pandas, _) = type(thing), sys.modules.get("numpy"), frame_types()
    if issubclass(kind, getattr(numpy, "ndarray", ())):
        held = [("[{}]", range(thing.size), list(islice(thing.flat, ITEMS)))] if thing.dtype.hasobject else []
    elif not issubclass(kind, pandas):
        return ()
    elif thing.ndim == 1:
        held = [("[{}]", range(len(thing)), list(thing.iloc[:ITEMS].array))] if _has_objects(thing.dtype) else []
    else:
        columns = [(at, _as_form(name)) for at, (name, kind) in enumerate(thing.dtypes.items()) if _has_objects(kind)]
        held = [(form + "[{}]", range(len(thing)), list(thing.iloc[:ITEMS, at].array)) for at, form in columns]
    own: dict[str, Any] = getattr(thing, "__dict__", {})
    carried = {"_attrs", *getattr(kind, "_metadata", ())} if issubclass(kind, pandas) else own.keys()
    names = [name for name in own if name in carried]
    return [*held, (_ATTRIBUTE, [name.replace("_attrs", "attrs") for name in names], [own[name] for name in names])]


def _has_objects(dtype: Any) -> bool:
    """Of pandas' own types none has, and to make objects of its texts takes long."""
    return getattr(dtype, "hasobject", False)


def _as_form(name: Any) -> str:
    return f"[{name!r}]".replace("{", "{{").replace("}", "}}")


def _attributes(thing: Any) -> Parts:
    """Of an object that does not say itself what it is made of, as those of libraries do."""
    kind = type(thing)
    values: dict[str, Any] = {}
    parameterized = _loaded({"param.parameterized": ["Parameterized"]})
    if issubclass(kind, parameterized):
        values = thing._param__private.values
    elif kind.__module__.partition(".")[0] not in CLOSED and is_plain(kind):
        values = attributes(thing)
    public = [name for name in values if not str(name).startswith("_")]
    hidden = [name for name in values if str(name).startswith("_")]
    named = (_ATTRIBUTE, public), (_HIDDEN, hidden)
    return [(form, names, [values[name] for name in names]) for form, names in named]


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


# So many objects are looked at to estimate a size, and so many items of one container.
_LOOKS, _SAMPLE = 10_000, 100


def size_of(value: Any) -> int:
    """
    Bytes of memory, estimated: of a long container from its first items.

    Parameters
    ----------
    value : object
        Of any kind and depth; the estimate takes less than some 10 ms.
    """
    total, looks, waiting = 0.0, 0, [(value, 1.0)]
    while waiting and looks < _LOOKS:
        looks += 1
        each, weight = waiting.pop()
        if isinstance(each, (dict, list, tuple, set, frozenset)):
            total += weight * sys.getsizeof(each, 0)
            both = chain.from_iterable(each.items()) if isinstance(each, dict) else None
            items = list(islice(each if both is None else both, _SAMPLE))
            share = weight * len(each) * (1 if both is None else 2) / max(1, len(items))
            waiting += [(item, share) for item in items]
        elif not isinstance(each, type):
            total += weight * _size(each)
            waiting += [(item, weight) for item in (getattr(each, "__dict__", None) or {}).values()]
    return int(total)


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
