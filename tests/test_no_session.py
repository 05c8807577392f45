"""No visitor's session in a run: whatever page is built meanwhile, a function that runs for everybody sees none."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import bokeh.io
import bokeh.plotting
import panel as pn
import pytest
from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.io.doc import patch_curdoc
from bokeh.resources import CDN
from panel.io.state import set_curdoc

from core import PATIENCE, messages
from panel_schedule import session
from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.runtime import Runtime

NOTHING = (None, {}, {}, None, None, {}, None)


@pytest.fixture
def ps() -> Iterator[Front]:
    runtime = Runtime(Config({}), SystemClock())
    runtime.grace = 0.0
    yield Front(runtime)
    runtime.close()


@pytest.fixture(autouse=True)
def _nobody_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_told", set())


def a_document() -> Document:
    """A visitor's, whose secrets nobody else is to see."""
    request = SimpleNamespace(
        cookies={"user": "alice"}, headers={"X-Secret": "alice"}, arguments={"of": [b"alice"]}, path="/app",
    )  # fmt: skip
    context = SimpleNamespace(
        request=request, id="alice", session=None, token_payload={}, destroyed=False,
        server_context=SimpleNamespace(sessions=[], application_context=SimpleNamespace(url="/app")),
    )  # fmt: skip
    document = Document()
    document._session_context = lambda: context
    return document


@contextmanager
def visited() -> Iterator[Document]:
    """The calling thread is inside a callback of a session."""
    document = a_document()
    with patch_curdoc(document), set_curdoc(document):
        assert pn.state.session_args
        yield document
        assert pn.state.curdoc is document
        assert bokeh.io.curdoc() is document


def look(*_: Any) -> tuple[Any, ...]:
    """What a session has, as far as it can be seen from here."""
    state = pn.state
    return (
        state.curdoc, state.cookies, state.headers, state.user, state.user_info, state.session_args,
        bokeh.io.curdoc().session_context,
    )  # fmt: skip


async def look_async(*_: Any) -> tuple[Any, ...]:
    await asyncio.sleep(0)
    return await asyncio.create_task(look_again())


async def look_again() -> tuple[Any, ...]:
    return look()


def look_from_a_thread() -> tuple[Any, ...]:
    seen = []
    thread = threading.Thread(target=lambda: seen.append(look()))
    thread.start()
    thread.join()
    return seen[0]


def look_after_each_yield(*_: Any) -> Iterator[tuple[Any, ...]]:
    yield look()
    yield look()
    return look()


FORMS = {
    "plain": (look, "thread"),
    "async": (look_async, "loop"),
    "a thread of its own": (look_from_a_thread, "thread"),
    "generator": (look_after_each_yield, "thread"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["task", "job", "memo"])
def test_a_run_sees_no_session_while_a_page_is_built(ps: Front, kind: str, form: str) -> None:
    function, executor = FORMS[form]
    match kind:
        case "task":
            start = ps.schedule(period="1h", first_run="skip", executor=executor)(function).refresh
        case "job":
            start = ps.background(executor=executor)(function).submit
        case "memo":
            start = ps.memoize(executor=executor)(function).submit
    with visited():
        assert NOTHING == start().result(PATIENCE)


def test_a_plain_function_on_the_loop_sees_no_session(ps: Front) -> None:
    with visited():
        task = ps.schedule_task("look", look, period="1h")
        assert NOTHING == task.refresh().result(PATIENCE)


def test_a_memoized_function_on_the_thread_of_its_caller_sees_no_session(ps: Front) -> None:
    with visited():
        assert NOTHING == ps.memoize(look)()


def test_a_memoized_function_that_fails_leaves_its_caller_the_session(ps: Front) -> None:
    fails = ps.memoize(name="fails")(lambda: 1 / 0)
    with visited(), pytest.raises(ZeroDivisionError):
        fails()


def test_a_memoized_function_that_is_called_while_the_server_stops_sees_no_session(ps: Front) -> None:
    memo, memo_async = ps.memoize(look), ps.memoize(look_async)
    ps.store["x"] = 1
    ps._runtime.service.stopping = True
    with visited():
        assert NOTHING == memo()
        assert NOTHING == asyncio.run(memo_async())


def test_a_coroutine_sees_no_session_that_a_failed_callback_has_left_on_the_loop(ps: Front) -> None:
    """Before 3.10 Bokeh does not take a document away whose callback has raised."""
    job = ps.background(executor="loop")(look_async)
    document = a_document()

    async def callback() -> Any:
        left = patch_curdoc(document)
        left.__enter__()
        try:
            return await job.submit()
        finally:
            left.__exit__(None, None, None)

    assert NOTHING == asyncio.run(callback())


def test_what_a_session_has_made_bokehs_default_document_is_not_seen(ps: Front) -> None:
    before = bokeh.io.curdoc()
    bokeh.io.doc.set_curdoc(document := a_document())
    try:
        assert NOTHING == ps.background(executor="thread")(look).submit().result(PATIENCE)
        assert bokeh.io.curdoc() is document
    finally:
        bokeh.io.doc.set_curdoc(before)


def test_a_handler_sees_no_session(ps: Front) -> None:
    seen, over = [], threading.Semaphore(0)

    def handler(task: Any, run: Any) -> None:
        seen.append(look())
        over.release()

    async def handler_async(task: Any, run: Any) -> None:
        handler(task, run)

    ps.on("succeeded", handler)
    ps.on("succeeded", handler_async)
    with visited():
        ps.background(executor="thread", name="job")(lambda: 1).submit().result(PATIENCE)
        assert over.acquire(timeout=PATIENCE)
        assert over.acquire(timeout=PATIENCE)
    assert [NOTHING, NOTHING] == seen


def test_what_makes_keys_and_dates_sees_no_session(ps: Front) -> None:
    seen = []

    def key(n: int) -> int:
        seen.append(look())
        return n

    with visited():
        ps.memoize(key=key, name="keyed")(lambda n: n)(1)
        ps.schedule(at=lambda now: seen.append(look()), first_run="skip", name="dated")(lambda: 1).status  # noqa: B018
    assert seen
    assert all(each == NOTHING for each in seen)


def test_a_run_can_patch_a_document_of_its_own(ps: Front) -> None:
    own = Document()

    def function() -> list[bool]:
        with patch_curdoc(own), set_curdoc(own):
            inside = [bokeh.io.curdoc() is own, pn.state.curdoc is own]
        return [*inside, bokeh.io.curdoc() is own, pn.state.curdoc is None]

    with visited():
        assert [True, True, False, True] == ps.background(executor="thread")(function).submit().result(PATIENCE)


def test_a_run_can_export_plots_and_pages(ps: Front, caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    def export() -> str:
        plot = bokeh.plotting.figure()
        plot.line([1, 2], [3, 4])
        bokeh.io.curdoc().add_root(bokeh.plotting.figure())
        pn.Column("# Report", pn.widgets.Button(name="b"), plot).save(tmp_path / "page.html")
        return file_html(plot, CDN, "plot")

    with visited() as document:
        assert "<html" in ps.background(executor="thread")(export).submit().result(PATIENCE)
        assert "Report" in (tmp_path / "page.html").read_text()
    assert not document.roots


def test_the_document_of_a_run_goes_with_it(ps: Front) -> None:
    made = []

    def function() -> None:
        document = bokeh.io.curdoc()
        assert bokeh.io.curdoc() is document
        made.append(weakref.ref(document))

    ps.background(executor="thread")(function).submit().result(PATIENCE)
    ps.memoize(function)()
    gc.collect()
    assert [None, None] == [document() for document in made]


@pytest.mark.parametrize(
    ("member", "name"),
    [
        (lambda: pn.state.user, "pn.state.user"),
        (lambda: pn.state.cookies, "pn.state.cookies"),
        (lambda: pn.state.session_args, "pn.state.session_args"),
        (lambda: pn.state.location, "pn.state.location"),
        (lambda: bokeh.io.curdoc().title, "bokeh.io.curdoc()"),
    ],
)
def test_who_looks_for_a_session_is_told_once_to_pass_what_it_needs(
    ps: Front, caplog: pytest.LogCaptureFixture, member: Any, name: str
) -> None:
    job = ps.background(executor="thread", name="report")(lambda: (member(), member())[0])
    for _ in range(2):
        job.submit().result(PATIENCE)
    (line,) = messages(caplog)
    assert line.startswith(f"Job 'report' reads {name}, in {__file__}, line ")
    assert "pass what it needs of one as an argument" in line


def test_what_a_library_looks_for_is_nobodys_fault(ps: Front, caplog: pytest.LogCaptureFixture) -> None:
    def function() -> None:
        pn.Column(pn.widgets.Button(name="b"), "text").get_root()
        pn.state.cache["seen"] = True

    ps.background(executor="thread")(function).submit().result(PATIENCE)
    assert [] == messages(caplog)
