"""The record: what all processes know of one thing, and how it is written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from ..functions.run import RunRecord

T = TypeVar("T")

# The owner of what anybody may take. What nobody holds, and nobody is to take, has none.
NOBODY = ""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)


class Refusal(StrEnum):
    """Why a change was not made."""

    HELD = "held"  # another one has it
    HANDLED = "handled"  # what it asks for was done before
    FENCED = "fenced"  # the right to do it was lost
    ABSENT = "absent"  # there is no such record


@dataclass(frozen=True, slots=True)
class Record:
    """
    What all processes know of one thing. What its `state` means is nothing to a store.

    Attributes
    ----------
    space, name : str
        Together its key.
    state : NamedTuple
        Of the class that was registered for the space, see `state_of`.
    group : str
        The records of one group are found together.
    owner : str or None
        The process that holds it; NOBODY where any process may take it; None where there is nothing to hold.
    used_at, expires_at : datetime or None
        When it was used last, and from when on it may be forgotten unless it is held. Aware UTC.
    parts : mapping of str to int
        Which parts there are, and how many of each kind; what it does not name any more is deleted.
    size : int
        Bytes of its parts. The store sets it.
    created, revision : int
        The numbers of its first and of its last change; a later change of any record has a greater one. The store sets
        them.
    """

    space: str
    name: str
    state: Any
    group: str = ""
    owner: str | None = None
    used_at: datetime | None = None
    expires_at: datetime | None = None
    parts: Mapping[str, int] = field(default_factory=dict)
    size: int = 0
    created: int = 0
    revision: int = 0


# ------------------------------------------------------------ records as text


class Logged(NamedTuple):
    """
    A record with a line for its log.

    Attributes
    ----------
    record : Record
    entry : RunRecord or None
        None deletes the log.
    merged : callable
        ``merged(newest, entry)``: what stands in place of the newest line and this one, or None where both stand.
    """

    record: Record
    entry: RunRecord | None
    merged: Callable[[RunRecord | None, RunRecord], RunRecord | None]


class _Field(NamedTuple):
    name: str
    default: Any
    convert: Callable[[Any], Any] | None


# What the state of each space is made of, and its class.
_STATES: dict[str, tuple[type[Any], list[_Field]]] = {}


def state_of(space: str) -> Callable[[type[T]], type[T]]:
    """Register the class of the states of a space: a NamedTuple of plain values and instants, all with defaults."""

    def register(cls: type[T]) -> type[T]:
        defaults: dict[str, Any] = cls._field_defaults  # type: ignore[attr-defined]
        fields = [_Field(name, default, _convert(default)) for name, default in defaults.items()]
        _STATES[space] = cls, fields
        return cls

    return register


def _convert(default: Any) -> Callable[[Any], Any] | None:
    """What makes of its JSON what it was."""
    return type(default) if isinstance(default, (tuple, StrEnum)) else None


def micros(instant: datetime | None) -> int | None:
    """Microseconds since 1970: exact, and in order."""
    return None if instant is None else (instant - EPOCH) // _TICK


def instant_of(micros: int | None) -> datetime | None:
    """The other way round."""
    return None if micros is None else EPOCH + micros * _TICK


def storable(text: str) -> str:
    """What can be stored: a file name in an error may be no valid text."""
    return text.encode("utf-8", "backslashreplace").decode()


def text_of(record: Record) -> str:
    """State and parts as JSON: nothing that is read runs code. What is as by default is left out."""
    state = {name: value for name, value in zip(record.state._fields, record.state, strict=True)
             if value != record.state._field_defaults[name]}  # fmt: skip
    return json.dumps([state, record.parts], default=_instant, separators=(",", ":"))


def _instant(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"t": micros(value)}
    raise TypeError(f"{value!r} is nothing that the state of a record can have.")


def _hook(found: dict[str, Any]) -> Any:
    return instant_of(found["t"]) if found.keys() == {"t"} else found


def of_text(space: str, text: str) -> tuple[Any, dict[str, int]]:
    """State and parts again. What a newer release has added is left out."""
    found, parts = json.loads(text, object_hook=_hook)
    cls, fields = _STATES[space]
    values = (
        default if name not in found else found[name] if convert is None else convert(found[name])
        for name, default, convert in fields
    )
    return cls(*values), parts
