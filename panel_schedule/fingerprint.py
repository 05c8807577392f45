"""What a function is made of, as a digest: the same in every process, and another one after an edit."""

from __future__ import annotations

import inspect
from contextlib import suppress
from types import CodeType
from typing import Any

from .content import Content, Refusal


def fingerprint(*parts: Any) -> str:
    """A digest of functions' code, and of what they close over as far as that has a content."""
    content = Content()
    for part in parts:
        content.add(_code(part))
    return content.digest().hex()


def _code(part: Any) -> Any:
    function = inspect.unwrap(getattr(part, "func", getattr(part, "__func__", part)))
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return part if isinstance(part, str) else None
    bound = (getattr(part, name, None) for name in ("args", "keywords"))
    given = (getattr(function, name, None) for name in ("__defaults__", "__kwdefaults__"))
    return _written(code), *map(_known, (*bound, *given)), *map(_cell, function.__closure__ or ())


def _written(code: CodeType) -> tuple[Any, ...]:
    """What it says, and not where it stands."""
    consts = [_written(const) if isinstance(const, CodeType) else _known(const) for const in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_flags, consts


def _cell(cell: Any) -> Any:
    with suppress(ValueError):  # not yet filled
        return _known(cell.cell_contents)
    return None


def _known(value: Any) -> Any:
    try:
        Content().add(value)
    except (Refusal, RecursionError):
        return None
    return value
