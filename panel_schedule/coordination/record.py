"""The record: what all processes know of one thing, and how it is written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from ..functions.run import FAILURES, RunRecord

T = TypeVar("T")
C = TypeVar("C", bound=type)

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


def _with_quick_replace(cls: C) -> C:
    """A NamedTuple whose `_replace` takes a third of the time: each change of a record calls it twice."""
    places: dict[str, int] = {name: place for place, name in enumerate(cls._fields)}  # type: ignore[attr-defined]
    new = tuple.__new__

    def _replace(self: Any, **fields: Any) -> Any:
        values = list(self)
        for name, value in fields.items():
            values[places[name]] = value
        return new(cls, values)

    cls._replace = _replace  # type: ignore[attr-defined]
    return cls


@_with_quick_replace
class Record(NamedTuple):
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
        Bytes of its parts.
    created, revision : int
        The numbers of its first and of its last change; a later change of any record has a greater one. The store sets
        these last three.
    """

    space: str
    name: str
    state: Any
    group: str = ""
    owner: str | None = None
    used_at: datetime | None = None
    expires_at: datetime | None = None
    parts: Mapping[str, int] = {}
    size: int = 0
    created: int = 0
    revision: int = 0


class Logged(NamedTuple):
    """
    A record with a line for its log.

    Attributes
    ----------
    record : Record
    entry : RunRecord or None
        None deletes the log.
    merged : callable or None
        ``merged(newest, entry)``: what stands in place of the newest line and this one, or None where both stand; None
        of a line that always stands by itself.
    failure : RunRecord or None
        The line as a second log has it, of what has failed alone: whole, and not pushed out by what comes after it.
    """

    record: Record
    entry: RunRecord | None
    merged: Callable[[RunRecord | None, RunRecord], RunRecord | None] | None = None
    failure: RunRecord | None = None


def logged(
    record: Record, run: RunRecord, merged: Callable[[RunRecord | None, RunRecord], RunRecord | None] | None = None
) -> Logged:
    """With a line for a run that has ended; a failure is in both logs, and what is long of it in the second."""
    return Logged(record, run.brief, None, run) if run.state in FAILURES else Logged(record, run, merged)


# ------------------------------------------------------------ records as text


class _Kind(NamedTuple):
    """
    The states of one space.

    Attributes
    ----------
    cls : type
    defaults : list
    places : dict
        By the name of a field its place, and what makes of its JSON what it was.
    """

    cls: Any
    defaults: list[Any]
    places: dict[str, tuple[int, Callable[[Any], Any] | None]]


_KINDS: dict[str, _Kind] = {}


def state_of(space: str) -> Callable[[type[T]], type[T]]:
    """Register the class of the states of a space: a NamedTuple of plain values and instants, all with defaults."""

    def register(cls: type[T]) -> type[T]:
        defaults: dict[str, Any] = cls._field_defaults  # type: ignore[attr-defined]
        places = {
            name: (number, _convert(default, str(cls.__annotations__[name])))
            for number, (name, default) in enumerate(defaults.items())
        }
        _KINDS[space] = _Kind(cls, list(defaults.values()), places)
        return _with_quick_replace(cls)

    return register


def _convert(default: Any, annotation: str) -> Callable[[Any], Any] | None:
    if "datetime" in annotation:
        return _moment
    return type(default) if isinstance(default, (tuple, StrEnum)) else None


def _moment(value: Any) -> Any:
    return instant_of(value) if type(value) is int else value


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
    state, kind = {}, _KINDS[record.space]
    for name, value, default in zip(kind.places, record.state, kind.defaults, strict=True):
        if value is not default and value != default:
            state[name] = micros(value) if isinstance(value, datetime) else value
    return _encoder.encode((state, record.parts))


_encoder = json.JSONEncoder(separators=(",", ":"))


_decoder = json.JSONDecoder()


def of_text(space: str, text: str) -> tuple[Any, dict[str, int]]:
    """State and parts again. What a newer release has added is left out."""
    (found, parts), end = _decoder.raw_decode(text)
    if end != len(text):
        raise ValueError(f"{text!r} is no state of a record.")
    kind = _KINDS[space]
    values = kind.defaults.copy()
    for name, value in found.items():
        if (place := kind.places.get(name)) is not None:
            number, convert = place
            values[number] = value if convert is None or value is None else convert(value)
    return kind.cls._make(values), parts
