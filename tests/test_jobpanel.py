"""What a job's panel is made of, without a page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from html import escape, unescape
from typing import Any

import numpy as np
import pandas as pd
import panel as pn
import polars as pl
import pyarrow as pa
import pytest
from bokeh.document import Document
from panel.io.state import set_curdoc

from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.functions.background import Background
from panel_schedule.functions.run import current_run, progress
from panel_schedule.runtime import Runtime
from panel_schedule.views.display import display
from panel_schedule.views.job_panel import JobPanel


@pytest.fixture
def front() -> Front:
    return Front(Runtime(Config({})))


def background(front: Front, function: Callable[..., Any], **options: Any) -> Background[..., Any]:
    return front.background(executor="thread", name="job", **options)(function)


def shown(panel: JobPanel) -> Any:
    """What stands where the result does: nothing, or a pane's object."""
    pane = panel.__panel__()[-1][0]._pane
    return getattr(pane, "object", None)


def test_the_inputs_are_the_widgets_among_the_arguments(front: Front) -> None:
    """In the order of the function, each once; neither plain values nor other references."""
    first, second, third = (pn.widgets.IntInput(name=name) for name in ("first", "second", "third"))

    def function(a: Any, b: Any, c: Any, *more: Any, d: Any, e: Any, **rest: Any) -> None: ...

    job = background(front, function).job(1, second, first.param.value, third, 5, second, e=first, d=pn.rx(3), f=third)
    assert job.inputs == [second, third, first]
    assert list(JobPanel(job).__panel__()[0]) == [second, third, first]
    assert background(front, function).job(b=second).inputs == [second]


def test_nothing_is_shown_before_the_first_result(front: Front) -> None:
    """And a result that was there before the panel is."""
    job = background(front, lambda: pd.DataFrame({"a": [1]})).job()
    panel = JobPanel(job)
    panel.__panel__().get_root()
    assert shown(panel) is None
    job.start().result(5)
    for each in (panel, JobPanel(job)):
        assert isinstance(each.__panel__()[-1][0]._pane, pn.widgets.Tabulator)


def test_a_result_stays_until_there_is_another_one(front: Front) -> None:
    """A failed run leaves it; a partial result stays when nothing better has come."""

    def function(fails: bool, part: str = "") -> str:
        if part:
            current_run().publish(part)  # type: ignore[union-attr]
        if fails:
            raise ValueError("no")
        return f"with {part}" if part else "without"

    job = background(front, function).job()
    panel = JobPanel(job, render=pn.pane.Str)
    panel.__panel__().get_root()
    seen = []
    for fails, part in [(False, ""), (True, ""), (True, "part"), (True, ""), (False, "part")]:
        with suppress(ValueError):
            job.start(fails, part).result(5)
        seen.append(shown(panel))
    assert seen == ["without", "without", "part", "without", "with part"]


def test_a_result_that_cannot_be_shown_says_so(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    """The bar and the buttons are told of the end all the same."""

    def render(value: Any) -> Any:
        raise KeyError("no such column")

    job = background(front, lambda: 1).job()
    panel = JobPanel(job, render)
    panel.__panel__().get_root()
    job.start().result(5)
    assert shown(panel) == "The result cannot be shown. KeyError: 'no such column'"
    assert (job.running, job.progress._bar.told["state"], job.cancel_button.useless) == (False, "succeeded", True)
    assert "its result cannot be shown" in caplog.text


STRANGE = "**a** <img src=x onerror=alert(1)>"


@pytest.mark.parametrize("text", [STRANGE, type("Text", (str,), {"_repr_html_": str})(STRANGE), np.str_(STRANGE)])
def test_text_is_shown_as_it_is(front: Front, text: str) -> None:
    """Whoever wrote it runs nothing in the reader's page; as a partial result neither."""
    waiting, go = threading.Event(), threading.Event()

    def function() -> str:
        current_run().publish(text)  # type: ignore[union-attr]
        waiting.set()
        assert go.wait(10)
        return text

    job = background(front, function).job()
    panel = JobPanel(job)
    panel.__panel__().get_root()
    run, panes = job.start(), []
    assert waiting.wait(10)
    job._follow()
    panes.append(panel.__panel__()[-1][0]._pane)
    go.set()
    run.result(5)
    panes.append(panel.__panel__()[-1][0]._pane)
    for pane in panes:
        assert isinstance(pane, pn.pane.Str)
        # Twice: the browser undoes the outer one before it reads the rest as HTML.
        assert pane.get_root().text == escape(f"<pre>{escape(STRANGE)}</pre>")


def test_what_contains_text_is_shown_as_it_is(front: Front) -> None:
    """What Panel would show by its `repr`, with the HTML inside of it; and what no browser reads as JSON."""
    for value in ((STRANGE,), {STRANGE}, {"a": float("nan"), "b": STRANGE}, ValueError(STRANGE), np.array([STRANGE])):
        shown = pn.panel(display(value))
        assert escape(STRANGE) in unescape(shown.get_root().text)
        assert STRANGE not in unescape(shown.get_root().text)
    assert isinstance(display({"a": [1, STRANGE]}), pn.pane.JSON)
    assert type(pn.panel(3)) is pn.pane.Str


def cells(table: Any) -> list[list[Any]]:
    return table.value.to_numpy().tolist()  # type: ignore[no-any-return]


def test_a_large_frame_is_shown_in_part(front: Front) -> None:
    """Its first rows and columns, which nobody edits, and a line that says so."""
    job = background(front, lambda: pd.DataFrame(np.zeros((1_500, 300)))).job()
    panel = JobPanel(job)
    job.start().result(5)
    table, words = panel.__panel__()[-1][0]._pane
    assert isinstance(table, pn.widgets.Tabulator)
    assert (table.disabled, table.pagination, table.value.shape) == (True, "local", (1_000, 201))
    assert "the first 1,000 of 1,500 rows, the first 200 of 300 columns" in words.object
    assert "render=" in words.object


FRAME = pd.DataFrame({"a": [1, 2]})
TABLES = {
    "series": (pd.Series([1, 2], name="a"), ["", "a"], [[0, 1], [1, 2]]),
    "index": (pd.Index([1, 2], name="a"), ["a"], [[1], [2]]),
    "styler": (FRAME.style, ["", "a"], [[0, 1], [1, 2]]),
    "polars": (pl.DataFrame({"a": [1, 2]}), ["a"], [[1], [2]]),
    "polars series": (pl.Series("a", [1, 2]), ["a"], [[1], [2]]),
    "arrow": (pa.table({"a": [1, 2]}), ["a"], [[1], [2]]),
    "long array": (np.arange(100), ["0"], [[each] for each in range(100)]),
    "records": (np.array([(1, "x")], dtype=[("a", int), ("b", "U1")]), ["a", "b"], [[1, "x"]]),
    "no rows": (pd.DataFrame({"a": []}), ["", "a"], []),
    "nothing": (pd.DataFrame(), [""], []),
    "names twice": (pd.DataFrame([[1, 2]], columns=["a", "a"]), ["", "a", "a"], [[0, 1, 2]]),
    "other names": (pd.DataFrame([[1, 2]], columns=[None, 1.5]), ["", "", "1.5"], [[0, 1, 2]]),
    "levels": (
        pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", 1)]), index=pd.MultiIndex.from_tuples([("x", 2)])),
        ["", "", "a / 1"],
        [["x", 2, 1]],
    ),
    "zone": (
        pd.DataFrame({"a": pd.to_datetime(["2026-01-01", None]).tz_localize("Europe/Berlin")}),
        ["", "a"],
        [[0, "2026-01-01 00:00:00+01:00"], [1, ""]],
    ),
    "objects": (pd.DataFrame({"a": [{"b": 1}, None, np.zeros(1)]}), ["", "a"], [[0, "{'b': 1}"], [1, ""], [2, "[0.]"]]),
    "large integers": (pd.DataFrame({"a": [2**60]}), ["", "a"], [[0, str(2**60)]]),
}


@pytest.mark.parametrize("kind", TABLES)
def test_what_is_a_table_is_shown_as_one(kind: str) -> None:
    """Numbers as such, all else as text."""
    value, titles, expected = TABLES[kind]
    table = display(value)
    assert isinstance(table, pn.widgets.Tabulator)
    table.get_root()
    assert (list(table.titles.values()), cells(table)) == (titles, expected)


def test_names_and_cells_of_a_table_are_shown_as_they_are() -> None:
    table = display(pd.DataFrame({STRANGE: [STRANGE]}, index=pd.Index([STRANGE], name=STRANGE)))
    assert list(table.titles.values()) == [escape(STRANGE)] * 2
    assert [each["type"] for each in table.formatters.values()] == ["plaintext"] * 2


def test_a_page_that_has_not_loaded_tables_shows_plain_ones() -> None:
    """As when `pn.extension` was called without them, and the component comes later."""
    with set_curdoc(Document()):
        pn.extension()
        table, words = display(pd.DataFrame({STRANGE: [STRANGE] * 30}))
        assert isinstance(table, pn.pane.DataFrame)
        assert len(table.object) == 20
        assert "the first 20 of 30 rows" in words.object
        assert STRANGE not in unescape(table.get_root().text)


def test_a_panel_has_its_page_load_what_tables_are_made_of(front: Front) -> None:
    with set_curdoc(document := Document()):
        pn.state._loaded[document] = False  # as of a session that is being built
        pn.extension()
        job = background(front, lambda: FRAME).job()
        panel = JobPanel(job)
        panel.__panel__()
        assert isinstance(display(FRAME), pn.widgets.Tabulator)


def test_an_error_is_shown_as_text(front: Front) -> None:
    def render(value: Any) -> Any:
        raise ValueError(STRANGE)

    job = background(front, lambda: 1).job()
    panel = JobPanel(job, render)
    job.start().result(5)
    assert STRANGE not in unescape(panel.__panel__()[-1][0]._pane.get_root().text)


@pytest.mark.parametrize("text", [STRANGE, np.str_(STRANGE)])
def test_tasks_and_answers_show_text_as_it_is(front: Front, text: str) -> None:
    task = front.schedule(period="1h", first_run="skip", name="task", default=text)(lambda: text)
    answer = front.memoize(executor="thread", name="answer")(lambda: text)
    answer()
    for shown in (task.__panel__(), answer.view().__panel__()):
        assert isinstance(shown[0]._pane, pn.pane.Str)


def test_markdown_is_shown_on_demand(front: Front) -> None:
    job = background(front, lambda: "**a**").job()
    panel = JobPanel(job, render=pn.pane.Markdown)
    job.start().result(5)
    assert isinstance(panel.__panel__()[-1][0]._pane, pn.pane.Markdown)


def test_each_push_reaches_the_bar_in_one_piece(front: Front) -> None:
    """State, percent, message and time change together or not at all."""
    seen = threading.Event()

    def function() -> None:
        progress(1, 4, "a quarter")
        assert seen.wait(10)

    job = background(front, function).job()
    told = []
    job.progress._bar.param.watch(
        lambda event: (told.append(event.new), event.new["percent"] == 25 and seen.set()), "told"
    )
    job.start().result(15)
    assert {"percent": 25, "message": "a quarter", "state": "running"}.items() <= told[-2].items()
    assert {"percent": 100, "state": "succeeded", "error": ""}.items() <= told[-1].items()
    assert 0 <= told[-2]["elapsed"] <= told[-1]["elapsed"] == job.elapsed


def test_a_panel_shows_a_job_alone() -> None:
    with pytest.raises(TypeError, match=r"made by function\.job"):
        JobPanel("job")  # type: ignore[arg-type]
