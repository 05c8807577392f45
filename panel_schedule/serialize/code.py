"""What a function names in its code, and what it closes over."""

from __future__ import annotations

from contextlib import suppress
from types import CodeType, FunctionType
from typing import Any


def closed_over(function: FunctionType) -> dict[str, Any]:
    """What a function closes over, by its names there, as far as it is filled yet."""
    found = dict[str, Any]()
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):
            found[name] = cell.cell_contents
    return found


def names_in(code: CodeType) -> list[str]:
    """The names, of its module and of attributes, that it uses, and the functions that it defines."""
    inside = [each for const in code.co_consts if isinstance(const, CodeType) for each in names_in(const)]
    return [*code.co_names, *inside]
