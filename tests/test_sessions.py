"""Hundreds of visitors of a real server, on the test's own event loop."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import panel as pn
import psutil
import pytest
from bokeh.document import Document

import panel_schedule as ps
from panel_schedule import _runtime as runtime
from panel_schedule.views.base import TaskView, View
from visitors import Visitor, visitors


@asynccontextmanager
async def site(app: Callable[[], Any]) -> AsyncIterator[str]:
    """Serve a page on the running loop; its sessions end soon after their window is closed."""
    server = pn.io.server.get_server(
        {"/app": app},
        port=0,
        address="127.0.0.1",
        start=True,
        unused_session_lifetime_milliseconds=100,
        check_unused_sessions_milliseconds=20,
    )
    try:
        yield f"http://127.0.0.1:{server.port}/app"
    finally:
        await until(lambda: not server.get_sessions())
        server.stop()
        await until(lambda: not runtime.begun)  # in Bokeh 3.10 a moment later


async def until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    """Let the loop turn until the condition holds."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


def alive(kind: type) -> int:
    gc.collect()
    return sum(isinstance(each, kind) for each in gc.get_objects())


def counter(name: str) -> ps.Task[str]:
    numbers = iter(range(1, 10_000))
    return ps.schedule(period="1d", name=name, first_run="background")(lambda: f"value {next(numbers)}")


async def test_every_session_gets_each_new_value_pushed() -> None:
    """200 open pages, one refresh: each of them is told, without asking."""
    task = counter("pushed")
    # One after another: of two that open at the same time Panel 1.10 with Bokeh 3.10 refuses one now and then.
    async with site(lambda: pn.pane.Markdown(task)) as url, visitors(url, 200, at_once=1) as pages:
        value = await task.refresh()
        await asyncio.gather(*(page.read_until("PATCH-DOC", value) for page in pages))
    ps.cancel_task("pushed")


async def test_a_burst_of_values_coalesces_to_the_newest() -> None:
    """Invariant 21: of a thousand values in a moment a page gets few, and always the last."""
    ps.store["burst"] = 0

    def app() -> pn.pane.Markdown:
        return pn.pane.Markdown(ps.store.rx("burst").rx.pipe(lambda number: f"value {number}!"))

    async with site(app) as url, visitors(url, 1) as (page,):
        for number in range(1, 1001):
            ps.store["burst"] = number
        received = 0
        async with asyncio.timeout(10):
            while "value 1000!" not in (await page.read())[1]:
                received += 1
        assert received < 20
    del ps.store["burst"]


@pytest.mark.timeout(400)
async def test_a_thousand_sessions_leave_nothing_behind() -> None:
    """Invariant 20: no view, watcher or document is alive, and memory is flat."""
    task = counter("thousand")

    def app() -> pn.Column:
        view = task.view()
        return pn.Column(pn.pane.Markdown(task), pn.pane.Str(view.pipe(str)), ps.Freshness(task))

    views, documents = alive(View), alive(Document)
    process, resident = psutil.Process(), []
    async with site(app) as url:
        for _ in range(20):
            async with visitors(url, 50, at_once=2):
                await task.refresh()
            await until(lambda: len(runtime.views) == 0)
            gc.collect()
            resident.append(process.memory_info().rss / 2**20)
    assert runtime.scheduler.states["thousand"].viewers == 0
    ps.cancel_task("thousand")
    # A callback of the last session may still be on its way through the loop.
    await until(lambda: alive(View) == views and alive(Document) <= documents)
    # The first rounds fill caches; 100 KB that each later session left would show as 50 MB.
    assert max(resident[-5:]) - max(resident[8:11]) < 20


async def test_a_view_dies_with_its_session_while_the_task_runs() -> None:
    """Closing a page in the middle of a run hurts neither the run nor the other pages."""
    started, go = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        started.set()
        await go.wait()
        return "value slow"

    task = ps.schedule(period="1d", name="slow", first_run="skip")(slow)
    async with site(lambda: pn.pane.Markdown(task)) as url:
        leaving, staying = await Visitor.open(url), await Visitor.open(url)
        run = task.refresh()
        await started.wait()
        await leaving.close()
        await until(lambda: len(runtime.views) == 1)
        go.set()
        assert await run == "value slow"
        await staying.read_until("PATCH-DOC", "value slow")
        await staying.close()
    ps.cancel_task("slow")


async def test_one_sessions_failing_watcher_stops_no_other() -> None:
    """Invariant 21."""
    task = counter("watched")
    count = iter(range(10))

    def app() -> pn.pane.Markdown:
        if next(count) == 0:
            task.view().param.watch(lambda event: 1 / 0, "value")
        return pn.pane.Markdown(task)

    async with site(app) as url, visitors(url, 3) as pages:
        value = await task.refresh()
        await asyncio.gather(*(page.read_until("PATCH-DOC", value) for page in pages[1:]))
    ps.cancel_task("watched")


async def test_a_view_of_another_session_warns() -> None:
    """A view kept in a global and read by the next session belongs to the first."""
    task = counter("kept")
    kept: list[TaskView] = []

    def app() -> str:
        kept.append(task.view())
        return str(kept[0].value)

    async with site(app) as url:
        await task.ready(10)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with visitors(url, 2):
                pass
        messages = [str(warning.message) for warning in caught if "belongs to another session" in str(warning.message)]
        assert len(messages) == 1
        assert ".view()" in messages[0]
        kept.clear()
    ps.cancel_task("kept")


async def test_a_task_that_rests_while_idle_runs_for_its_first_viewer() -> None:
    """``when_idle="skip"``: nobody watched, slots passed; the first page causes a refresh."""
    numbers = iter(range(1, 100))
    task = ps.schedule(period="50ms", name="resting", when_idle="skip")(lambda: f"value {next(numbers)}")
    async with site(lambda: pn.pane.Markdown(task)) as url:
        await until(lambda: task.status.stale)
        assert task() == "value 1"
        async with visitors(url, 1) as (page,):
            await page.read_until("PATCH-DOC", "value 3")
    ps.cancel_task("resting")


async def test_what_the_gate_waits_for_is_logged_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Invariant 8; every 10 s, and here more often. With the task's name and what it is doing."""
    monkeypatch.setattr("panel_schedule.server.panel.REMINDER", 0.05)
    go = asyncio.Event()

    async def late() -> str:
        await go.wait()
        return "value"

    ps.schedule(period="1d", name="late")(late)

    def reminders() -> int:
        return sum("first value of: late (running)" in record.getMessage() for record in caplog.records)

    async with site(lambda: pn.pane.Str(ps.tasks["late"]())) as url:
        await until(lambda: reminders() >= 3)
        go.set()
        async with visitors(url, 1):
            pass
    ps.cancel_task("late")
