"""What stands for a value that changes: widgets, params, bound functions."""

from __future__ import annotations

from typing import Any

from param.parameterized import Parameter, resolve_ref, resolve_value


def references(value: Any, *, nested: bool = False) -> list[Parameter]:  # type: ignore[type-arg]
    """The params that a value stands for. What looks like a reference and is none, as any Mock does, has none."""
    try:
        return resolve_ref(value, recursive=nested)
    except TypeError:
        return []


def resolved(value: Any) -> Any:
    """A value with the references in it replaced by what they stand for now."""
    try:
        return resolve_value(value)
    except TypeError:
        if references(value, nested=True):
            raise
        return value
