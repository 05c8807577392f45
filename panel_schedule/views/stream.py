"""A task's value as a source for Bokeh's glyphs, to which each page gets the new rows, and not the whole."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource
from bokeh.util.serialization import convert_datetime_array, convert_datetime_type, is_datetime_type
from param.parameterized import Event

from ..serialize.copies import frame_types
from .base import TaskView

# So many ways in which a new value may follow what is shown are looked at; of values that repeat themselves are more.
TRIES = 8

# So many of the last rows may have changed: that of the minute that is not over yet, say.
MOST_CHANGED = 2

# From so many rows on their numbers travel as arrays, which are shorter then.
MANY = 50

Columns = dict[str, Any]


class Stream:
    """
    Keeps a source of one session in line with a task: it has the last rows of the value, exactly.

    Whether a value goes on from what the source has is seen by comparing them: else all of it is sent.

    Parameters
    ----------
    view : TaskView
        The session's.
    columns : tuple of str or None
    rollover : int or None
    """

    def __init__(self, view: TaskView, columns: Sequence[str] | None, rollover: int | None):
        self._view, self._columns, self._rollover = view, columns, rollover
        self._kinds: dict[str, np.dtype[Any]] = {}
        self.source = ColumnDataSource({name: [] for name in columns or ()})
        view.param.watch(self._changed, "value")
        if view.version or view.value is not None:
            self._show(view.value)

    def _changed(self, event: Event) -> None:
        self._show(event.new)

    def _show(self, value: Any) -> None:
        shown = columns_of(value, self._columns, f"Task {self._view.name!r}")
        if self._rollover is not None:
            shown = {name: column[-self._rollover :] for name, column in shown.items()}
        kinds = {name: column.dtype for name, column in shown.items()}
        before: Columns = {name: self.source.data[name] for name in self.source.data}
        follows = following(before, shown) if kinds == self._kinds else None
        if follows is None:
            # The page's own: it may edit them.
            self._kinds, self.source.data = kinds, {name: column.copy() for name, column in shown.items()}
            return
        changed, new = follows
        if changed:
            self.source.patch(cells_of(before, shown, changed, new))
        if new:
            rows = {name: column[-new:] for name, column in shown.items()}
            count = len(next(iter(shown.values())))
            self.source.stream(rows if new > MANY else {name: each.tolist() for name, each in rows.items()}, count)


def stream(view: TaskView, columns: tuple[str, ...] | None, rollover: int | None) -> ColumnDataSource:
    """The source of a session, which it has but once of these columns and rows."""
    key = columns, rollover
    if (made := view._streams.get(key)) is None:
        made = view._streams[key] = Stream(view, columns, rollover)
    return made.source


def columns_of(value: Any, names: Sequence[str] | None, what: str) -> Columns:
    """
    The columns of a value as arrays, as Bokeh sends them: instants are milliseconds.

    Raises
    ------
    TypeError
        When it has no columns.
    ValueError
        When one is missing, or is shorter than the others.
    """
    pandas, polars = frame_types()
    if isinstance(value, pandas) and hasattr(value, "columns"):
        found = _of_pandas(value, names, what)
    elif isinstance(value, polars) and hasattr(value, "get_columns"):
        found = {column.name: column.to_numpy() for column in value.get_columns()}
    elif isinstance(value, Mapping):
        found = dict(value)
    else:
        raise TypeError(
            f"{what}: its value is a {type(value).__name__}, and stream() shows the rows of a data frame, or of a dict "
            "of columns. Return one of these; a default= is such a one, too, or None."
        )
    if missing := [name for name in names or () if name not in found]:
        raise ValueError(
            f"{what}: its value has no column {missing[0]!r}, which stream() was asked for. It has "
            f"{', '.join(map(repr, found))}."
        )
    columns = {str(name): _as_array(found[name]) for name in (found if names is None else names)}
    if len(set((lengths := {name: len(column) for name, column in columns.items()}).values())) > 1:
        raise ValueError(
            f"{what}: the columns of its value are not of the same length, and stream() shows rows: {lengths}."
        )
    return columns


def _of_pandas(frame: Any, names: Sequence[str] | None, what: str) -> dict[Any, Any]:
    """With the index, as Bokeh has it, unless that only counts the rows and nobody has asked for it."""
    pd = sys.modules["pandas"]
    index = frame.index
    if isinstance(index, pd.MultiIndex):
        raise ValueError(f"{what}: its frame has an index of several levels. Make columns of them: reset_index().")
    found = {name: _of_series(pd, column) for name, column in frame.items()}
    name = index.name if index.name is not None else "index"
    if name not in found and (not isinstance(index, pd.RangeIndex) or index.name is not None or name in (names or ())):
        found = {name: _of_series(pd, index.to_series())} | found
    return found


def _of_series(pd: Any, series: Any) -> Any:
    kind = series.dtype
    if not isinstance(kind, np.dtype) and pd.api.types.is_numeric_dtype(kind):
        return series.to_numpy("f8", na_value=np.nan)  # what is missing there is like nothing else
    return (series if getattr(kind, "tz", None) is None else series.dt.tz_convert(None)).to_numpy()


def _as_array(column: Any) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(column)
    except ValueError:  # lists of several lengths
        array = np.empty((len(column), 0), object)
    if array.dtype.kind in "mM":
        return np.where(np.isnat(array), np.nan, convert_datetime_array(array))
    if array.dtype.kind in "iuf" and array.ndim == 1:
        # To a page all numbers are such; and of whole ones it would make room for as large ones as come first.
        return array.astype("f8", copy=False)
    if array.dtype == object and len(array) and all(each is None or is_datetime_type(each) for each in column):
        return np.array([np.nan if each is None else convert_datetime_type(each) for each in column], "f8")
    if array.ndim != 1:  # a polygon in each row, say
        rows = np.empty(len(array), object)
        for number, row in enumerate(column):
            rows[number] = row
        return rows
    return array.astype(object) if array.dtype.kind in "US" else array


def following(before: Columns, now: Columns) -> tuple[int, int] | None:
    """How many of the last rows of `before` have changed in `now`, and how many come after them; None of any other."""
    for changed in range(MOST_CHANGED + 1):
        kept = {name: column[: len(column) - changed] for name, column in before.items()}
        after = new_rows(kept, now)
        if after is None or after < changed:
            continue
        if after > changed or len(next(iter(now.values()))) == len(next(iter(before.values()))):
            return changed, after - changed
    return None


def cells_of(before: Columns, now: Columns, changed: int, new: int) -> dict[str, list[tuple[int, Any]]]:
    """Of the rows that have changed, as `following` says it: by column, the places and values of cells that have."""
    cells: dict[str, list[tuple[int, Any]]] = {}
    for name, column in now.items():
        first, values = len(before[name]) - changed, column[len(column) - new - changed : len(column) - new]
        for place, (was, value) in enumerate(zip(before[name][first:], values, strict=True), start=first):
            if not _equal(_one(was), _one(value)):
                cells.setdefault(name, []).append((place, value.item() if isinstance(value, np.generic) else value))
    return cells


def _one(cell: Any) -> np.ndarray[Any, Any]:
    array = np.empty(1, cell.dtype if isinstance(cell, np.generic) else object)
    array[0] = cell
    return array


def new_rows(before: Columns, now: Columns) -> int | None:
    """
    How many rows of `now` come after those of `before`, so that both end alike; None where it does not go on so.

    It may have lost as many as it likes at its beginning.
    """
    if before.keys() != now.keys() or not now:
        return None
    pairs = [(np.asarray(before[name]), column) for name, column in now.items()]
    old, count = len(pairs[0][0]), len(pairs[0][1])
    most = min(old, count)
    if not most or any(len(one) != old for one, _ in pairs):
        return None
    try:
        # With so many rows in common the last that there was is in it, and its first is in what there was.
        fits = np.arange(most, 0, -1)
        for one, other in pairs:
            fits = fits[_same(other[fits - 1], one[-1]) & _same(one[old - fits], other[0])]
        for common in fits[:TRIES]:
            if all(_equal(one[old - common :], other[:common]) for one, other in pairs):
                # To drop rows is all that there is to do where none is new.
                return int(count - common) if common < count or common == old else None
    except (TypeError, ValueError):  # of what cannot be compared
        return None
    return None


def _same(one: Any, other: Any) -> np.ndarray[Any, Any]:
    """Where they are equal; not a number is equal to itself."""
    same: np.ndarray[Any, Any] = np.asarray(one == other, bool)
    return same if same.all() else same | np.asarray((one != one) & (other != other), bool)


def _equal(one: Any, other: Any) -> bool:
    """Whether all are, and of the same type: True is not 1."""
    if not _same(one, other).all():
        return False
    return one.dtype != object or list(map(type, one)) == list(map(type, other))
