"""What a function is made of: to compare two of them, and as a digest that is the same in every process."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from ..errors import is_interrupt
from ..serialize.code import closed_over
from .content import Content, Refusal


def plain_function(function: Callable[..., Any]) -> Any:
    """What is inside of a partial, a bound method, a wrapper, or an object with a __call__; None where nothing is."""
    plain: Any = function
    while not hasattr(plain, "__code__"):
        inners = (getattr(plain, name, None) for name in ("__func__", "__wrapped__"))
        # Not of anything that has a `func`: a Mock has one without end.
        inner = plain.func if isinstance(plain, partial) else next(filter(None, inners), None)
        if inner is None:
            inner = type(plain).__call__
            if not hasattr(inner, "__code__"):
                return None
        plain = inner
    return plain


def innermost(function: Callable[..., Any]) -> Any:
    """The same, without what `functools.wraps` has put around it: the author's own."""
    plain = plain_function(function)
    return plain if plain is None else inspect.unwrap(plain)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a function comes from: two with the same origin are the same function (invariant 1)."""

    file: str
    qualname: str
    line: int

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Origin:
        if (plain := plain_function(function)) is None:
            return cls("<built-in>", repr(function), 0)
        code = plain.__code__
        return cls(
            os.path.abspath(code.co_filename) if os.sep in code.co_filename else code.co_filename,
            code.co_qualname,
            code.co_firstlineno,
        )

    def same(self, other: Origin) -> bool:
        """The line may move: an edited file is still the same function."""
        return (self.file, self.qualname) == (other.file, other.qualname)

    def __str__(self) -> str:
        return f"{self.qualname} ({self.file}:{self.line})"


_CACHED = type(functools.cache(len))


def fingerprint(*parts: Any) -> str:
    """A digest of functions' code, and of what they close over as far as that has a content."""
    content = Content()
    for part in parts:
        content.add(_known(part, frozenset()))
    return content.digest().hex()


def _known(value: Any, around: frozenset[int]) -> Any:
    """Something that has a content: of a function what it is made of, None for what has none."""
    parts = None if id(value) in around else _parts(value)
    if parts is not None:
        around |= {id(value)}
        code = [_written(value.__code__)] if isinstance(value, FunctionType) else []
        return [type(value).__name__, *code, *([name, _known(part, around)] for name, part in parts)]
    try:
        Content().add(value)
    except (Refusal, RecursionError):
        # Of an object that can be called, at least what is called.
        called = type(value).__call__ if callable(value) and id(value) not in around else None
        return _known(called, around | {id(value)}) if isinstance(called, FunctionType) else None
    return value


def difference(one: Any, other: Any) -> str | None:
    """
    In which part two functions differ that are written in the same place; None when they are the same.

    What they close over, defaults, the arguments of a partial and the object of a method are compared by content;
    what has no content that can be compared is the same only when it is the same object.
    """
    return _difference(one, other, "function", set())


def _difference(one: Any, other: Any, what: str, around: set[tuple[int, int]]) -> str | None:
    if one is other or (id(one), id(other)) in around:
        return None
    around.add((id(one), id(other)))
    if isinstance(one, FunctionType) and isinstance(other, FunctionType) and not _same_lines(one, other):
        return what
    parts, others = _parts(one), _parts(other)
    if parts is None or others is None:
        return None if parts is others and _equal(one, other) else what
    if type(one) is not type(other) or [name for name, _ in parts] != [name for name, _ in others]:
        return what
    inside = (
        _difference(part, its, what if name.startswith("[") or name == "function" else name, around)
        for (name, part), (_, its) in zip(parts, others, strict=True)
    )
    return next(filter(None, inside), None)


def _same_lines(one: FunctionType, other: FunctionType) -> bool:
    if not Origin.of(one).same(Origin.of(other)):
        return False
    # A file that was edited, and executed again, still has the same functions; but one execution of a file has two of
    # the same name, and a lambda has no name.
    told_apart = one.__globals__ is other.__globals__ or "<lambda>" in one.__qualname__
    return not told_apart or _equal(_written(one.__code__), _written(other.__code__))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, ModuleType) and isinstance(other, ModuleType):
        # One file may be two modules.
        file = getattr(one, "__file__", None)
        return file is not None and file == getattr(other, "__file__", None)
    if isinstance(one, BuiltinMethodType):
        return bool(one == other)
    if isinstance(one, type) and one.__module__ == getattr(other, "__module__", None):
        return False  # of one execution of its file, and so another class
    digests = []
    for each in (one, other):
        content = Content()
        try:
            content.add(each)
        except BaseException as error:  # a Refusal, or what an object of the user's raises when it is looked at
            if is_interrupt(error):
                raise
            return False
        digests.append(content.digest())
    return digests[0] == digests[1]


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """What a function, or something that holds functions, is made of, each part with its name; None for others."""
    kind = type(value)
    if isinstance(value, FunctionType):
        return list(_parts_of_function(value))
    if isinstance(value, functools.partial):
        given = [*enumerate(value.args), *sorted(value.keywords.items())]
        return [("function", value.func), *((f"argument {name!r} of its partial", part) for name, part in given)]
    if isinstance(value, MethodType):
        return [("function", value.__func__), ("object that it is a method of", value.__self__)]
    if kind is _CACHED or "__wrapped__" in getattr(value, "__dict__", ()):
        return [("function", value.__wrapped__)]
    # Of what holds functions, each one: Content would take them by their names.
    if kind in (list, tuple) and any(map(callable, value)):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if kind is dict and any(map(callable, value.values())) and all(type(key) is str for key in value):
        return [(f"[{key!r}]", value[key]) for key in sorted(value)]
    return None


def _parts_of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    given = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount][code.co_argcount - len(given) :]
    for name, default in [*zip(names, given, strict=True), *sorted((function.__kwdefaults__ or {}).items())]:
        yield f"default of {name!r}", default
    for name, value in closed_over(function).items():
        yield f"{name!r}, which it closes over", value


def _written(code: CodeType) -> tuple[Any, ...]:
    """What it says, and not where it stands."""
    consts = [_written(const) if isinstance(const, CodeType) else const for const in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_flags, consts
