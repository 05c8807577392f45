"""``task.stream()``: a page gets the new rows of a value, and its source is the last rows of it, exactly."""

from __future__ import annotations

import gc
import json
import math
import weakref
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from bokeh.document import Document
from bokeh.document.events import ColumnsPatchedEvent, ColumnsStreamedEvent
from panel.io.state import set_curdoc

from core import messages
from panel_schedule.views import base
from servers import Serve
from visitors import visitors

START = datetime(2026, 1, 1, tzinfo=UTC)


def ramp(first: int, last: int, **more: Any) -> dict[str, Any]:
    return {"x": np.arange(first, last), "y": np.arange(first, last) / 4} | more


def instants(first: int, last: int, unit: str = "s") -> Any:
    return (np.datetime64("2026-01-01", unit) + np.arange(first, last) * np.timedelta64(1, "s")).astype(f"M8[{unit}]")


class Page:
    """What a browser hears of a source."""

    def __init__(self, core: Any, values: list[Any], columns: Any = None, default: Any = None, **options: Any):
        self.values, self.core, self.heard = iter(values), core, list[Any]()
        self.task = core.ps.schedule(period="1h", first_run="skip", name="rows", default=default)(
            lambda: next(self.values)
        )
        self.source = self.task.stream(columns, **options)
        document = Document()
        document.add_root(self.source)
        document.on_change(self.heard.append)

    def next(self) -> tuple[str, int]:
        """With the next value: how it was told, and how many rows of it."""
        self.heard.clear()
        self.task.refresh()
        self.core.go()
        self.core.run_for(1)
        if not self.heard:
            return "nothing", 0
        if isinstance(self.heard[0], ColumnsPatchedEvent):
            _, *streamed = self.heard
            return "patch", sum(len(next(iter(event.data.values()))) for event in streamed)
        [event] = self.heard
        if isinstance(event, ColumnsStreamedEvent):
            return "stream", len(next(iter(event.data.values())))
        return "all", len(next(iter(self.source.data.values())))

    def shown(self, name: str) -> list[Any]:
        return list(self.source.data[name])


def pandas_frame(columns: dict[str, Any], index: Any = None) -> pd.DataFrame:
    return pd.DataFrame(columns, index=index)


TEXTS = [f"t{number}" for number in range(20)]
A, B = ramp(0, 5), ramp(0, 7)
CASES = {
    "grown": (A, B, ("stream", 2)),
    "the same": (A, A, ("nothing", 0)),
    "a window that slides": (A, ramp(2, 7), ("stream", 2)),
    "a window that slides by all": (A, ramp(5, 10), ("all", 5)),
    "one row in common": (A, ramp(4, 9), ("stream", 4)),
    "lost at the beginning alone": (A, ramp(2, 5), ("all", 3)),
    "fewer rows at the end": (B, A, ("all", 5)),
    "fewer and new ones": (B, ramp(4, 9), ("stream", 2)),
    "none any more": (A, ramp(0, 0), ("all", 0)),
    "from none on": (ramp(0, 0), A, ("all", 5)),
    "changed in the middle": (A, {**B, "y": np.array([0, 0.25, 9, 0.75, 1, 1.25, 1.5])}, ("all", 7)),
    "changed at the end": (A, {**B, "y": np.array([0, 0.25, 0.5, 0.75, 9, 1.25, 1.5])}, ("patch", 2)),
    "changed at the end alone": (A, {**A, "y": np.array([0, 0.25, 0.5, 8, 9])}, ("patch", 0)),
    "changed at the end of a window": (ramp(0, 5, z=[0] * 5), ramp(2, 7, z=[0, 0, 1, 1, 1]), ("patch", 2)),
    "changed at the end, and lost at the beginning": (A, {"x": [1, 2, 3, 9], "y": [0.25, 0.5, 0.75, 1]}, ("all", 4)),
    "four changed at the end": (ramp(0, 9), {**ramp(0, 9), "x": [0, 1, 2, 3, 4, 0, 0, 0, 0]}, ("all", 9)),
    "changed at the beginning": (A, {**B, "x": np.array([9, 1, 2, 3, 4, 5, 6])}, ("all", 7)),
    "another column": (A, {"x": B["x"], "z": B["y"]}, ("all", 7)),
    "one column more": (A, ramp(0, 7, z=np.arange(7)), ("all", 7)),
    "one column less": (A, {"x": B["x"]}, ("all", 7)),
    "columns in another order": (A, {"y": B["y"], "x": B["x"]}, ("stream", 2)),
    "not a number in what is common": (
        {"x": [1.0, math.nan, 3.0]},
        {"x": [1.0, math.nan, 3.0, math.nan]},
        ("stream", 1),
    ),
    "a number where none was": ({"x": [1.0, math.nan]}, {"x": [1.0, 2.0, 3.0]}, ("patch", 1)),
    "no instant": (
        {"x": np.array(["2026-01-01", "NaT"], "M8[s]")},
        {"x": np.array(["2026-01-01", "NaT", "2026-01-02"], "M8[s]")},
        ("stream", 1),
    ),
    "instants": ({"x": instants(0, 5)}, {"x": instants(1, 6)}, ("stream", 1)),
    "instants of another unit": ({"x": instants(0, 5)}, {"x": instants(1, 6, "ns")}, ("stream", 1)),
    "instants as objects": (
        {"x": [START, START + timedelta(1)]},
        {"x": [START + timedelta(1), START + timedelta(2)]},
        ("stream", 1),
    ),
    "instants as objects, then as an array": (
        {"x": [START, None]},
        {"x": np.array(["2026-01-01", "NaT", "2026-01-02"], "M8[s]")},
        ("stream", 1),
    ),
    "whole numbers become real": ({"x": [1, 2]}, {"x": [1.0, 2.0, 2.5]}, ("stream", 1)),
    "numbers become texts": ({"x": [1, 2]}, {"x": ["1", "2", "3"]}, ("all", 3)),
    "numbers become truths": ({"x": [0, 1]}, {"x": [False, True, True]}, ("all", 3)),
    "of objects 1 becomes True": ({"x": [None, 1]}, {"x": [None, True, 3]}, ("patch", 1)),
    "texts": ({"x": TEXTS[:5]}, {"x": TEXTS[3:20]}, ("stream", 15)),
    "texts with gaps": ({"x": ["a", None]}, {"x": ["a", None, "b"]}, ("stream", 1)),
    "all alike": ({"x": [7] * 5}, {"x": [7] * 6}, ("stream", 1)),
    "in turns": ({"x": [1, 2, 1, 2]}, {"x": [2, 1, 2, 1]}, ("stream", 1)),
    "arrays in cells": ({"x": [[1], [2, 3]]}, {"x": [[1], [2, 3], [4]]}, ("all", 3)),
    "rows of arrays": ({"x": np.ones((3, 2))}, {"x": np.ones((4, 2))}, ("all", 4)),
    "pandas": (pandas_frame(A), pandas_frame(B), ("stream", 2)),
    "pandas, a window": (
        pandas_frame(A),
        pandas_frame(B).tail(5),
        ("stream", 2),  # whose index still counts, from 2 on
    ),
    "pandas, a window counted anew": (pandas_frame(A), pandas_frame(ramp(2, 7)), ("stream", 2)),
    "pandas with an index": (
        pandas_frame(A, pd.date_range(START, periods=5)),
        pandas_frame(ramp(1, 6), pd.date_range(START + timedelta(1), periods=5)),
        ("stream", 1),
    ),
    "pandas with an index that has moved": (
        pandas_frame(A, pd.date_range(START, periods=5)),
        pandas_frame(B, pd.date_range(START + timedelta(1), periods=7)),
        ("all", 7),
    ),
    "pandas with what is missing": (
        pandas_frame({"x": pd.array([1, None], dtype="Int64"), "t": ["a", None]}),
        pandas_frame({"x": pd.array([1, None, 3], dtype="Int64"), "t": ["a", None, "b"]}),
        ("stream", 1),
    ),
    "pandas with categories": (
        pandas_frame({"x": pd.Categorical(["a", "b"])}),
        pandas_frame({"x": pd.Categorical(["a", "b", "c"])}),
        ("stream", 1),
    ),
    "polars": (pl.DataFrame(A), pl.DataFrame(B), ("stream", 2)),
    "polars with what is missing": (
        pl.DataFrame({"x": [1, None], "t": ["a", None]}),
        pl.DataFrame({"x": [1, None, 3], "t": ["a", None, "b"]}),
        ("stream", 1),
    ),
    "pandas, then polars": (pandas_frame(A), pl.DataFrame(B), ("stream", 2)),
}


@pytest.mark.parametrize(("one", "other", "expected"), CASES.values(), ids=CASES.keys())
def test_a_page_gets_what_is_new_and_shows_what_is_there(core, one, other, expected):
    page, fresh = Page(core, [one, other, one, other]), []
    page.next()
    assert expected == page.next()
    core.ps.cancel_task("rows")
    fresh = Page(core, [other])
    fresh.next()
    assert json.dumps(plain(fresh.source.data)) == json.dumps(plain(page.source.data))


def plain(data: Any) -> dict[str, Any]:
    return {name: [repr(each) for each in np.asarray(data[name]).tolist()] for name in sorted(data)}


@pytest.mark.parametrize(
    ("rollover", "told", "first"), [(3, [("all", 3), ("stream", 2), ("all", 3)], 7), (None, [("all", 5)], 0)]
)
def test_no_more_rows_are_shown_than_rollover_says(core, rollover, told, first):
    page = Page(core, [A, B, ramp(0, 10)], rollover=rollover)
    assert told == [page.next() for _ in told]
    assert first == page.source.data["x"][0]


def test_the_columns_are_those_that_were_asked_for_also_before_there_is_a_value(core):
    page = Page(core, [pandas_frame(A), pandas_frame(B)], ["y", "index"])
    assert {"y": [], "index": []} == page.source.data
    page.next()
    assert [0, 1, 2, 3, 4] == page.shown("index")
    assert ["index", "y"] == sorted(page.source.data)
    assert ("stream", 2) == page.next()


def test_the_default_is_shown_before_the_first_value(core):
    page = Page(core, [B], default=A)
    assert 5 == len(page.source.data["x"])
    assert ("stream", 2) == page.next()


def test_what_a_page_does_to_its_source_is_put_right(core):
    page = Page(core, [A, B, ramp(0, 8)])
    page.next()
    page.source.patch({"x": [(1, 99)]})
    assert ("all", 7) == page.next()
    page.source.data["mine"] = [0] * 7
    page.heard.clear()
    assert ("all", 8) == page.next()
    assert ["x", "y"] == sorted(page.source.data)


@pytest.mark.parametrize("kind", ["numbers", "texts"])
def test_what_a_page_does_to_its_source_changes_nothing_for_others(core, kind):
    """Nor does a patch of our own."""
    column = np.array([1.0, 2.0]) if kind == "numbers" else np.array(["a", "b"], object)
    page = Page(core, [{"x": column}, {"x": np.array([column[0], column[0]], column.dtype)}])
    page.next()
    value = page.task()
    page.source.patch({"x": [(0, column[1])]})
    assert list(column) == list(value["x"]) != page.shown("x")
    page.source.patch({"x": [(0, column[0])]})
    assert ("patch", 0) == page.next()
    assert list(column) == list(value["x"])


def test_a_session_has_one_of_its_own_which_is_always_the_same(core):
    task = core.ps.schedule(period="1h", first_run="skip", name="rows")(lambda: A)
    assert task.stream(["x"]) is task.stream(("x",)) is not task.stream(["y"])
    with set_curdoc(Document()):
        assert task.stream(["x"]) is not task.stream(["x"])  # of a document that no browser will ever see


class Context:
    """As much of a session's as a view looks at."""

    id = "session"
    server_context = None


def test_the_source_is_garbage_after_its_session(core):
    """And so is what kept it in line; that of another session is not."""
    task = core.ps.schedule(period="1h", first_run="skip", name="rows")(lambda: A)
    documents = [Document(), Document()]
    for document in documents:
        document._session_context = lambda: Context
    sources = []
    for document in documents:
        with set_curdoc(document):
            sources.append(weakref.ref(task.stream(["x"])))
            document.add_root(sources[-1]())
    assert sources[0]() is not sources[1]()
    ended = documents.pop(0)
    core.runtime.views.forget(ended)
    ended.clear()
    del ended, document
    gc.collect()
    assert [True, False] == [source() is None for source in sources]
    assert len(core.runtime.views) == 1


WRONG = [
    ({"columns": "x"}, TypeError, r"rows.stream\('x'\): it takes the names of columns"),
    ({"columns": [1]}, TypeError, r"rows.stream\(\[1\]\): it takes the names of columns"),
    ({"columns": 1}, TypeError, "it takes the names of columns|not iterable"),
    ({"rollover": 0}, ValueError, r"rows.stream\(rollover=0\): it is a whole number of rows"),
    ({"rollover": True}, ValueError, "it is a whole number of rows"),
    ({"columns": ["z"]}, ValueError, r"Task 'rows': its value has no column 'z', .* It has 'x', 'y'\."),
    ({"default": [1]}, TypeError, "Task 'rows': its value is a list, and stream.. shows the rows of a data frame"),
    ({"default": {"x": [1], "y": []}}, ValueError, "are not of the same length, .* {'x': 1, 'y': 0}"),
    (
        {"default": pd.DataFrame({"a": [1]}, pd.MultiIndex.from_tuples([(1, 2)]))},
        ValueError,
        r"an index of several levels\. Make columns of them: reset_index\(\)",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_what_means_nothing_is_told(core, options, error, message):
    with pytest.raises(error, match=message):
        Page(core, [], **{"default": A} | options)


def test_a_later_value_that_has_no_rows_is_logged_and_the_rows_stay(core, caplog, monkeypatch):
    monkeypatch.setattr(base, "REPEATS", 0)
    page = Page(core, [A, None])
    page.next()
    page.next()
    assert 5 == len(page.source.data["x"])
    [told] = messages(caplog)
    assert "Task 'rows': its value is a NoneType, and stream() shows the rows of a data frame" in told


SETUP = """
import pandas as pd
import panel_schedule as ps

ROWS = 10_000

@ps.schedule(period="500ms")
def prices():
    before = ps.current_run().previous
    first = 0 if before is None else int(before["time"].iloc[-1]) + 1
    rows = range(first, first + (ROWS if before is None else 1))
    new = pd.DataFrame({"time": rows, **{name: [(row % 97) / 7 for row in rows] for name in "abcde"}})
    return new if before is None else pd.concat([before, new]).tail(ROWS).reset_index(drop=True)
"""

APP = """
import panel as pn
from bokeh.plotting import figure
from tasks import prices

plot = figure()
plot.line("time", "a", source=prices.stream(rollover=10_000))
pn.pane.Bokeh(plot).servable()
"""


@pytest.mark.slow
async def test_a_session_gets_a_row_and_not_the_frame(serve: Serve) -> None:
    """At most 1 KB of its websocket for each, of a frame that has 10,000 of 6 columns; whatever the others do."""
    server = serve("app.py --setup tasks.py", {"tasks.py": SETUP, "app.py": APP})
    async with visitors(f"{server.url}/app", 2) as pages:
        sizes = []
        for page in pages:
            page.received = 0
            await page.document()
            whole, times = page.received, []
            while len(times) < 3:
                page.received = 0
                kind, content = await page.read()
                if kind == "PATCH-DOC" and "ColumnsStreamed" in content:
                    times.append(dict(json.loads(content)["events"][0]["data"]["entries"])["time"])
                    sizes.append(page.received)
            assert times == [[times[0][0] + more] for more in range(3)]
    print(f"bytes for each row: {sizes}; for all that there are: {whole}")
    assert max(sizes) <= 1000
    assert whole > 400_000
