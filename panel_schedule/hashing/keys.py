"""
What makes two calls the same call: the key of a call's arguments.

A key stands for the whole content of the arguments, in every process and after every restart. It has two forms: of a
few plain values it is these values, quick to make and to look up; of anything else it is a digest, of the content in
a form in which no two contents are alike. A shared store takes digests only, see `digested`.
"""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from enum import Enum
from hashlib import sha256  # which processors have in hardware; without, blake2b were quicker
from itertools import zip_longest
from types import FunctionType, NoneType
from typing import Any

from ..errors import ArgumentUnkeyable, is_interrupt
from ..serialize.copies import snapshot
from ..serialize.references import references
from ..session import without_session
from .content import Content, Refusal

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60

# What a key of plain values may hold; more than that is kept and compared as a digest.
_LONG = 256
_WIDE = 2**64


class Keys:
    """
    The keys of the calls of one function.

    Calls with the same arguments have the same key: by position or by name, a default given or left out. Types count,
    so that ``1``, ``1.0`` and ``True`` differ; the order of dicts and sets and the layout of arrays do not.

    Parameters
    ----------
    name : str
        Of the function, for messages.
    key : callable, optional
        Called with the arguments of each call; what it returns makes the key in their place.
    ignore : iterable of str
        Parameters that do not count; those whose names begin with an underscore do not, either.

    Attributes
    ----------
    parameters : list of str
        Their names.
    ignored : frozenset of str
        The names of those that do not count.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        key: Callable[..., Any] | None = None,
        ignore: Iterable[str] = (),
    ):
        self.name = name
        self._key = key
        parameters = list(signature_of(function).parameters.values())
        self.parameters = [parameter.name for parameter in parameters]
        self.ignored = frozenset(ignore) | {each for each in self.parameters if each.startswith("_")}
        counted = [parameter for parameter in parameters if parameter.name not in self.ignored]
        self._counted = [parameter.name for parameter in counted]
        self._sorts = bool(counted) and counted[-1].kind is inspect.Parameter.VAR_KEYWORD
        self._bind = _binder(name, parameters, self.parameters)
        self._pick = _binder(name, parameters, self._counted) if self.ignored else self._bind

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """
        The value of each parameter, in their order, defaults included.

        Raises
        ------
        TypeError
            As the call itself would raise it.
        """
        return self._bind(*args, **kwargs)

    def now(self, args: Any, kwargs: Any, but: Iterable[Any] = ()) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments as a `snapshot` has them; what does not count is no data, and passed as it is."""
        if self.ignored:
            given = [*zip(self.parameters, args, strict=False), *kwargs.items()]
            but = [*but, *(value for name, value in given if name in self.ignored)]
        return snapshot(args, kwargs, but)

    def local(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
        """
        The key of a call, for a dict of this function in this process.

        Raises
        ------
        TypeError
            As the call itself would raise it.
        ArgumentUnkeyable
            When an argument has no content that a key could be made of, or ``key=`` fails.
        """
        try:
            if self._key is not None:
                values = flat = (self._chosen(args, kwargs),)
            else:
                values = flat = self._pick(*args, **kwargs)
                if self._sorts:
                    flat = (*values[:-1], tuple(sorted(values[-1].items())))
            return _plain(flat) or self._digest(values)
        except RecursionError as error:
            raise ArgumentUnkeyable(f"{self.name}(): its arguments are nested too deeply. {_REMEDY}") from error
        except BaseException as error:
            if isinstance(error, Exception) or is_interrupt(error):
                raise
            raise ArgumentUnkeyable(
                f"{self.name}(): an argument raised {type(error).__name__} when a key was made of it. {_REMEDY}"
            ) from error

    def digest(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The key of a call, for a store: ``digested(local(args, kwargs))``."""
        return digested(self.local(args, kwargs))

    def _chosen(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        assert self._key is not None
        try:
            return without_session(f"The key= of {self.name}()", self._key, *args, **kwargs)
        except BaseException as error:
            if is_interrupt(error):
                raise
            self._bind(*args, **kwargs)  # a wrong call is no fault of key=
            raise ArgumentUnkeyable(
                f"{self.name}(): its key= raised {type(error).__name__}: {error}. Give it the parameters of the "
                "function, and let it return what counts of them."
            ) from error

    def _digest(self, values: tuple[Any, ...]) -> str:
        names = ["key(...)"] if self._key else [f"argument {name}" for name in self._counted]
        content = Content()
        try:
            for name, value in zip(names, values, strict=True):
                content.part("{}", name, value)
        except Refusal as refusal:
            if references(value):
                raise ArgumentUnkeyable(
                    f"{self.name}(): {name} is a reference ({type(value).__name__}). Pass the value that it has now; "
                    f"where the answer is to follow it, write {self.name}.view(...) of a memoized function, and "
                    f"{self.name}.job(...) of a background function."
                ) from None
            raise ArgumentUnkeyable(f"{self.name}(): {refusal.path} {refusal}. {_REMEDY}") from refusal.__cause__
        return content.digest().hex()


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """What it takes; of some built-in functions nobody knows."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args, **kwargs: None)


def digested(key: Hashable) -> str:
    """The local key of a call as 64 hexadecimal digits, the same in every process."""
    return key if isinstance(key, str) else sha256(repr(key).encode()).hexdigest()


_REMEDY = (
    "Pass plain data, or say what counts of the arguments, with key=: a function of the same arguments; or what counts "
    "of all of a type, with ps.hasher(type, function). A parameter that does not count at all goes into ignore=."
)


def _binder(
    name: str, parameters: Sequence[inspect.Parameter], returned: Iterable[str]
) -> Callable[..., tuple[Any, ...]]:
    """A function with these parameters that returns values of them. A tenth of the time of `Signature.bind`."""
    empty = inspect.Parameter.empty
    bare = [p.replace(annotation=empty, default=p.default if p.default is empty else None) for p in parameters]
    names = "".join(f"{each}, " for each in returned)
    bind: FunctionType = eval(f"lambda {str(inspect.Signature(bare))[1:-1]}: ({names})")
    given = [parameter for parameter in parameters if parameter.default is not empty]
    bind.__defaults__ = tuple(p.default for p in given if p.kind is not p.KEYWORD_ONLY)
    bind.__kwdefaults__ = {p.name: p.default for p in given if p.kind is p.KEYWORD_ONLY}
    bind.__name__ = bind.__qualname__ = name
    return bind


def _plain(values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Few and short plain values with their types; None for others. `repr` tells any two of these apart."""
    if len(values) > _LONG:
        return None
    kinds, plain = tuple(map(type, values)), None
    for at, kind in enumerate(kinds):
        value = values[at]
        if kind is str or kind is bytes:
            if len(value) > _LONG:
                return None
            continue
        if kind is int:
            if not -_WIDE < value < _WIDE:
                return None
            continue
        if kind is bool or kind is NoneType:
            continue
        if kind is float:
            if value and value == value:
                continue
            value = repr(value)  # 0.0 == -0.0, and no nan equals another
        elif kind is not tuple or (value := _plain(value)) is None:
            return None
        if plain is None:
            plain = list(values)
        plain[at] = value
    return values if plain is None else tuple(plain), kinds


def arguments_text(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], hidden: Collection[str] = ()
) -> str:
    """
    ``'north', year=2026``, shortened, for people; never fails, and takes no time to speak of, whatever they are.

    Nothing of a class that is not known is called. What is called a password, a secret, a token or a key is not told.

    Parameters
    ----------
    names : sequence of str
        Of the parameters, in their order.
    hidden : collection of str
        Those that are not told, either.
    """

    def told_of(name: str | None, value: Any) -> str:
        return "..." if name is not None and (name in hidden or _is_secret(name)) else _told(value)

    told = [told_of(name, each) for name, each in zip_longest(names[: len(args)], args)]
    told += [f"{name}={told_of(name, each)}" for name, each in kwargs.items()]
    text = ", ".join(told)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


_LONGEST = 200

# So many of its items are told of a collection, and those of what is in it only so deep.
_ITEMS, _DEPTH = 9, 3

_is_secret = re.compile("passw|secret|token|key|credential", re.IGNORECASE).search

# What says what it is in few words.
_SPEAK = {"datetime", "decimal", "uuid", "pathlib", "fractions", "zoneinfo", "ipaddress"}
_HAVE_A_SHAPE = {"numpy", "pandas", "polars", "pyarrow"}


def _told(value: Any, depth: int = _DEPTH) -> str:
    try:
        return _plainly(value, depth)
    except BaseException as error:
        if is_interrupt(error):
            raise
        return f"<{_name(type(value))}>"


# Of a class, asked of nothing that it or its metaclass has defined.
_name, _qualname, _module = (type.__dict__[f"__{each}__"].__get__ for each in ("name", "qualname", "module"))


def _is(kind: type, *known: type) -> bool:
    """Whether it is one of these; for `in` its metaclass may have an `__eq__`."""
    return any(kind is each for each in known)


def _plainly(value: Any, depth: int) -> str:
    kind = type(value)  # and not its `__class__`, for which a lazy proxy evaluates what it stands for
    if _is(kind, str, int, float, bool, NoneType, complex):
        return _short.repr(value)
    if _is(kind, bytes, bytearray, memoryview):
        return _short.repr(bytes(value[:30])) if len(value) <= 30 else f"<{kind.__name__} of {len(value)}>"
    if _is(kind, list, tuple, set, frozenset, dict):
        return _collection(value, kind, depth)
    if issubclass(kind, type):
        return str(_qualname(value))
    if issubclass(kind, Enum) and (member := object.__getattribute__(value, "_name_")):
        return f"{_name(kind)}.{member}"
    home = _module(kind).partition(".")[0]
    if home in _HAVE_A_SHAPE and isinstance(shape := getattr(value, "shape", None), tuple):
        return f"<{kind.__name__} {shape}>"
    if home in _SPEAK or home == "panel_schedule":
        return _short.repr(value)
    return f"<{_name(kind)}>"


def _collection(value: Any, kind: type, depth: int) -> str:
    if len(value) > _ITEMS or (value and not depth):
        return f"<{kind.__name__} of {len(value)}>"
    if kind is dict:
        told = [
            f"{_told(name, 0)}: {'...' if type(name) is str and _is_secret(name) else _told(each, depth - 1)}"
            for name, each in value.items()
        ]
        return f"{{{', '.join(told)}}}"
    inside = ", ".join([_told(each, depth - 1) for each in value])
    if kind is list or kind is tuple:
        return f"[{inside}]" if kind is list else f"({inside})"
    return f"{{{inside}}}" if value else f"{kind.__name__}()"
