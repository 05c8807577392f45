"""What a page shows of a table: its beginning, as text and numbers."""

from __future__ import annotations

import sys
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

import panel as pn

from ..notebook import in_notebook

# What a browser is given of a table: its first rows and columns, and the beginning of each text.
ROWS, COLUMNS, LETTERS = 1_000, 200, 500

PAGE = 20

# A browser has no larger integers.
_EXACT = 2**53


def load_tables() -> None:
    """Have a page that is being built load what tables are made of: a table may come when it is there already."""
    extensions = pn.state._extensions
    # None is all of them: nobody has called `pn.extension`.
    if extensions is not None and not pn.state.loaded and "tabulator" not in extensions:
        extensions.append("tabulator")


def _can_show_tables() -> bool:
    extensions = pn.state._extensions
    if pn.state.curdoc is None and in_notebook():  # which has what it was told to load
        extensions = pn.extension._loaded_extensions
    return extensions is None or "tabulator" in extensions


def table(value: Any) -> pn.viewable.Viewable | None:
    """
    A frame, a series, an index or a long array as a table; None of what is none of them.

    Nobody edits it: what were written into it would be saved nowhere. Cells and names are text as it is.
    """
    if (beginning := _beginning(value)) is None:
        return None
    shape, titles, columns = beginning
    import pandas as pd

    # Names of a frame may be of any kind, and there twice.
    names = [f"column {at}" for at in range(len(columns))]
    cells = [_cells(pd.Series(column)) for column in columns]
    shown = pd.DataFrame(dict(zip(names, cells, strict=True)), index=range(min(shape[0], ROWS)))
    titles = list(map(_title, titles))
    widget: pn.viewable.Viewable
    if _can_show_tables():
        wide = len(names) > PAGE
        texts = [name for name in names if shown[name].dtype.kind not in "biuf"]
        widget = pn.widgets.Tabulator(
            shown,
            titles={name: escape(title) for name, title in zip(names, titles, strict=True)},
            formatters={name: {"type": "plaintext"} for name in texts},
            configuration={"columnDefaults": {"maxWidth": 400}, "renderHorizontal": "virtual" if wide else "basic"},
            widths=120 if wide else {},  # to measure 200 columns takes a browser a minute
            layout="fit_data",
            show_index=False,
            disabled=True,
            pagination="local" if len(shown) > PAGE else None,
            page_size=PAGE,
            sizing_mode="stretch_width",
            stylesheets=[COLORS],
        )
    else:
        shown = shown.head(PAGE)
        shown.columns = pd.Index(titles)
        widget = pn.pane.DataFrame(shown, escape=True, index=False, sizing_mode="stretch_width")
    limits = zip(("rows", "columns"), (len(shown), COLUMNS), shape, strict=True)
    parts = [f"the first {there:,} of {whole:,} {what}" for what, there, whole in limits if there < whole]
    if not parts:
        return widget
    words = f"Shown: {', '.join(parts)}. Show it otherwise with JobPanel(job, render=...), or view.pipe(...)."
    return pn.Column(widget, pn.pane.HTML(words, styles={"opacity": "0.75"}), sizing_mode="stretch_width")


# Those of the page, be it a dark one.
COLORS = Path(__file__).with_name("table.css").read_text("utf-8")

# How many rows and columns the whole has, but for its index, and the names and cells of the first ones.
_Beginning = tuple[tuple[int, int], list[Any], list[Any]]


def _beginning(value: Any) -> _Beginning | None:
    pandas, numpy, polars, arrow = (sys.modules.get(name) for name in ("pandas", "numpy", "polars", "pyarrow"))
    if type(value).__module__ == "pandas.io.formats.style":
        value = value.data  # what it makes of it is HTML, with that of the cells
    if _is(value, pandas, "DataFrame"):
        return _of_frame(value)
    if _is(value, pandas, "Series"):
        _, titles, columns = _of_index(value.index)
        return (len(value), 1), [*titles, value.name], [*columns, value.iloc[:ROWS].array]
    if _is(value, pandas, "Index"):
        return _of_index(value)
    if _is(value, numpy, "ndarray"):
        return _of_array(value)
    if _is(value, polars, "DataFrame"):
        return value.shape, value.columns[:COLUMNS], [each.to_list() for each in value[:ROWS, :COLUMNS]]
    if _is(value, polars, "Series"):
        return (len(value), 1), [value.name], [value[:ROWS].to_list()]
    if _is(value, arrow, "Table", "RecordBatch"):
        titles = value.schema.names[:COLUMNS]
        return value.shape, titles, [value.column(at).slice(0, ROWS).to_pylist() for at in range(len(titles))]
    if _is(value, arrow, "Array", "ChunkedArray"):
        return (len(value), 1), [""], [value.slice(0, ROWS).to_pylist()]
    return None


def _is(value: Any, module: Any, *names: str) -> bool:
    return isinstance(value, tuple(kind for name in names if isinstance(kind := getattr(module, name, None), type)))


def _of_index(index: Any) -> _Beginning:
    first = index[:ROWS]
    return (len(index), index.nlevels), list(index.names), [first.get_level_values(at) for at in range(index.nlevels)]


def _of_frame(frame: Any) -> _Beginning:
    first = frame.iloc[:ROWS, :COLUMNS]
    _, titles, columns = _of_index(frame.index)
    cells = [first.iloc[:, at].array for at in range(first.shape[1])]
    return frame.shape, [*titles, *first.columns], [*columns, *cells]


def _of_array(array: Any) -> _Beginning | None:
    """Short ones, and those of more dimensions, numpy itself shows well."""
    if array.ndim == 1 and array.dtype.names:
        names = list(array.dtype.names)[:COLUMNS]
        return (len(array), len(array.dtype.names)), names, [list(array[name][:ROWS]) for name in names]
    if array.ndim not in (1, 2) or len(array) <= PAGE:
        return None
    whole = array if array.ndim == 2 else array[:, None]
    first = whole[:ROWS, :COLUMNS]
    return whole.shape, list(range(first.shape[1])), [first[:, at] for at in range(first.shape[1])]


def _title(name: Any) -> str:
    """Of one column; those of several levels have one name of all."""
    if isinstance(name, tuple):
        return " / ".join(map(_title, name))
    missing = name is None or (isinstance(name, float) and isnan(name))
    return "" if missing else str(name)[:LETTERS]


def _cells(column: Any) -> Any:
    """Numbers as such, so that they are sorted as such; all else as text."""
    import pandas as pd

    kind, extension = column.dtype.kind, pd.api.types.is_extension_array_dtype(column.dtype)
    if extension and kind in "iuf":
        return column.to_numpy(dtype="float64", na_value=float("nan"))
    if kind in "bf" and not extension:
        return column.to_numpy()
    if kind in "iu" and all(abs(int(each)) <= _EXACT for each in (column.min(), column.max()) if len(column)):
        return column.to_numpy()
    return ["" if missing else _text(cell) for cell, missing in zip(column, column.isna(), strict=True)]


def _text(cell: Any) -> str:
    text = str(cell)
    return text if len(text) <= LETTERS else f"{text[:LETTERS]}…"
