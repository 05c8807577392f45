"""What a script sees of a value: views without a session follow it where it is published."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import panel as pn
import param
import pytest
from panel.io.state import set_curdoc

from core import Core
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import RegistrationError
from panel_schedule.functions.run import progress
from panel_schedule.functions.task import Task
from panel_schedule.runtime import Runtime
from panel_schedule.serialize.entry import Entry
from panel_schedule.views import base
from panel_schedule.views.components import Freshness
from panel_schedule.views.data_health import PageView


@pytest.fixture
def front() -> Front:
    return Front(Runtime(Config({})))


def task_of(front: Front, function: Callable[[], Any], **options: Any) -> Task[Any]:
    return front.schedule(period="1h", name="task", **options)(function)


def counting() -> Callable[[], int]:
    numbers = iter(range(1, 100))
    return lambda: next(numbers)


def test_rx_shows_the_default_and_then_each_new_value(front: Front) -> None:
    """``task.rx()`` needs no server."""
    task = task_of(front, counting(), default=0)
    doubled = task.rx() * 2
    assert doubled.rx.value == 0
    task.refresh().result(5)
    assert doubled.rx.value == 2
    task.refresh().result(5)
    assert doubled.rx.value == 4


def test_a_task_is_a_reference_wherever_param_takes_one(front: Front) -> None:
    """Widgets, panes, ``pn.bind``, ``pn.rx`` and any Parameterized with ``allow_refs``."""
    task = task_of(front, counting(), default=0)

    class Shown(param.Parameterized):
        number = param.Integer(allow_refs=True)

    shown, slider = Shown(number=task), pn.widgets.IntSlider(value=task, start=0, end=9)
    bound, expression = pn.bind(lambda number: -number, task), pn.rx(task) + 1
    task.refresh().result(5)
    assert (shown.number, slider.value, bound(), expression.rx.value) == (1, 1, -1, 2)


def test_pipe_shows_nothing_until_there_is_a_value(front: Front) -> None:
    """The function never sees the default."""
    seen = []
    task = task_of(front, counting(), default="none yet")
    shown = pn.panel(task.view().pipe(lambda number: seen.append(number) or f"number {number}"))
    shown.get_root()
    assert seen == []
    task.refresh().result(5)
    assert seen == [1]
    assert shown._pane.object == "number 1"


def test_a_view_tells_state_error_and_version(front: Front) -> None:
    """Its params follow the task's status."""
    answers = iter([1, ValueError("no such table\nsecond line"), 2])

    def answer() -> int:
        result = next(answers)
        if isinstance(result, Exception):
            raise result
        return result

    view = task_of(front, answer).view()
    states = []
    view.param.watch(lambda event: states.append(event.new), "state")
    task = front.tasks["task"]
    task.refresh().result(5)
    assert (view.version, view.value, view.error, view.stale, view.running) == (1, 1, "", False, False)
    with pytest.raises(ValueError, match="no such table"):
        task.refresh().result(5)
    assert (view.version, view.value, view.state) == (1, 1, "failed")
    assert (view.error, view.stale) == ("ValueError: no such table", True)
    task.refresh().result(5)
    assert (view.version, view.value, view.error, view.stale) == (2, 2, "", False)
    assert states[-1] == "idle"
    assert "running" in states


def test_progress_of_a_run_reaches_the_view(front: Front) -> None:
    """``percent`` and ``message`` are what ``ps.progress`` reports, while the run is under way."""
    shown = threading.Event()

    def work() -> bool:
        progress(1, 4, "a quarter")
        return shown.wait(10)

    view = task_of(front, work).view()
    view.param.watch(lambda *events: (view.percent, view.message) == (25, "a quarter") and shown.set(), ["percent"])
    assert front.tasks["task"].refresh().result(15)


def test_the_same_object_published_again_is_news(front: Front) -> None:
    """A task may change and return the list that it returned before: watchers are told."""
    numbers: list[int] = []
    task = task_of(front, lambda: numbers.append(len(numbers)) or numbers)
    seen = []
    task.view().param.watch(lambda event: seen.append(len(event.new)), "value")
    task.refresh().result(5)
    task.refresh().result(5)
    assert seen == [1, 2]


def test_a_data_frame_is_the_views_own_copy(front: Front) -> None:
    """What a session writes into it, nobody else sees."""
    task = task_of(front, lambda: pd.DataFrame({"a": [1, 2]}))
    task.refresh().result(5)
    task.view().value.loc[0, "a"] = 99
    assert task().loc[0, "a"] == 1
    assert task.entry.value.loc[0, "a"] == 1


def test_a_view_is_the_same_one_each_time(front: Front) -> None:
    task = task_of(front, counting())
    assert task.view() is task.view()


def test_a_document_without_a_session_is_not_registered(front: Front) -> None:
    """``--warm`` builds documents that nobody will end: their views must not pile up."""
    from bokeh.document import Document

    task = task_of(front, counting())
    task.refresh().result(5)
    with set_curdoc(Document()):
        assert task.view().value == 1
    assert len(front._runtime.views) == 0


def test_a_document_without_a_session_is_no_viewer(front: Front) -> None:
    """A probe runs an app whose task somebody looks at, too: nobody would ever say that it has left."""
    from bokeh.document import Document

    task = task_of(front, counting())
    task.view()
    with set_curdoc(Document()):
        task.view()
    assert front._runtime.scheduler.states[task.name].viewers == 1


def test_a_stored_value_is_live(front: Front) -> None:
    """``ps.store.rx(name)``: None until there is a value, and again after it was deleted."""
    rates = front.store.rx("rates")
    assert rates.rx.value is None
    front.store["rates"] = 1.5
    assert rates.rx.value == 1.5
    del front.store["rates"]
    assert rates.rx.value is None


def test_a_removed_task_leaves_its_views_the_last_value(front: Front) -> None:
    """``remove_schedule``: the task calls the function, its views keep what they have."""
    task = task_of(front, counting())
    task.refresh().result(5)
    view = task.view()
    task.remove_schedule()
    assert task() == 2
    assert (view.value, view.state) == (1, "removed")


def test_a_failing_watcher_does_not_hurt_the_run(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    """What a watcher raises is logged, and the value is published all the same."""
    task = task_of(front, counting())
    task.view().param.watch(lambda event: 1 / 0, "value")
    assert task.refresh().result(5) == 1
    assert task() == 1
    assert "ZeroDivisionError" in caplog.text


class Page:
    """The loop of a server, turned by hand, and views without a document on it."""

    def __init__(self) -> None:
        self.runtime = Runtime(Config({}))
        self.front = Front(self.runtime)
        self.loop = asyncio.new_event_loop()
        self.runtime.loops.adopt(self.loop)

    def until(self, condition: Callable[[], Any]) -> None:
        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        self.loop.run_until_complete(asyncio.wait_for(wait(), 10))


@pytest.fixture
def page() -> Iterator[Page]:
    page = Page()
    yield page
    page.runtime.close()
    page.loop.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated at once."""
    monkeypatch.setattr(base, "REPEAT_SECONDS", 0.0)


def failing_at_first(times: int) -> Callable[[Any], None]:
    """A watcher that fails so often, and keeps what it is told then."""
    fails = iter(range(times))

    def watcher(event: Any) -> None:
        if next(fails, None) is not None:
            raise AttributeError("partially initialized module")
        told.append(event.new)

    told: list[Any] = []
    watcher.told = told  # type: ignore[attr-defined]
    return watcher


def task_view(page: Page) -> tuple[Any, Callable[[], Any]]:
    task = page.front.schedule(period="1h", name="task", first_run="skip")(lambda: "value")
    return task.view(), task.refresh


def job_view(page: Page) -> tuple[Any, Callable[[], Any]]:
    job = page.front.background(lambda: "value", executor="thread", name="job").job()
    return job, job.start


def memo_view(page: Page) -> tuple[Any, Callable[[], Any]]:
    gate = threading.Event()

    def slow() -> str:
        gate.wait(10)
        return "value"

    return page.front.memoize(slow, name="memo").view(), gate.set


KINDS = [task_view, job_view, memo_view]


@pytest.mark.parametrize("kind", KINDS)
def test_a_watcher_that_fails_is_told_again(page: Page, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Until it does not; the other ones are told once, and nothing is logged of what is over."""
    view, act = kind(page)
    failing, other = failing_at_first(3), failing_at_first(0)
    view.param.watch(failing, "value")
    view.param.watch(other, "value")
    act()
    page.until(lambda: failing.told)  # type: ignore[attr-defined]

    assert (["value"], ["value"]) == (failing.told, other.told)  # type: ignore[attr-defined]
    assert not view.running
    assert not caplog.records


@pytest.mark.parametrize("kind", KINDS)
def test_a_watcher_that_fails_for_good_is_logged_once(page: Page, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """And leaves the state right, and every other watcher told (17, 21)."""
    view, act = kind(page)
    states = failing_at_first(0)
    view.param.watch(lambda *events: 1 / 0, ["value", "running"])
    view.param.watch(states, "running")
    act()
    page.until(lambda: caplog.records)

    assert ("value", False) == (view.value, view.running)
    assert not (states.told and states.told[-1])  # type: ignore[attr-defined]
    (record,) = [each for each in caplog.records if each.name == "panel_schedule"]
    assert "ZeroDivisionError" in record.getMessage()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [2, 100])
def test_a_value_that_cannot_be_copied_now_holds_no_state_back(
    page: Page, kind: Any, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """pandas that another thread is importing, say: it is tried again, and `running` becomes False either way."""
    view, act = kind(page)
    fails, for_page = iter(range(times)), Entry.for_page

    def copy(entry: Entry) -> Any:
        if next(fails, None) is not None:
            raise AttributeError("partially initialized module 'pandas'")
        return for_page(entry)

    monkeypatch.setattr(Entry, "for_page", copy)
    act()
    page.until(lambda: view.value == "value" or caplog.records)

    assert (times == 2, False) == (view.value == "value", view.running)
    assert not isinstance(view.value, type(base.outdated)) or view.value is None or times == 2


def test_freshness_shows_the_badge_and_the_first_line_of_the_error(front: Front) -> None:
    """The browser's part is tested in a browser; this is what it is told."""

    def fail() -> None:
        raise ValueError("no such table\nsecond line")

    task = task_of(front, fail)
    line = Freshness(task).__panel__()
    assert (line.told["updated"], line.told["error"], line.told["stale"]) == (None, "", False)
    with pytest.raises(ValueError, match="no such table"):
        task.refresh().result(5)
    assert (line.told["error"], line.told["stale"], line.told["state"]) == ("ValueError: no such table", True, "failed")


def test_data_health_finds_by_itself_what_the_session_shows(front: Front) -> None:
    """Also what comes later; names of ``ps.store`` and jobs promise nothing."""

    def fail() -> None:
        raise ValueError("no such table\nsecond line")

    badge = front.DataHealth(label="Data").__panel__()
    assert ("Data", []) == (badge.label, badge.told["items"])
    front.store.rx("name")
    task = task_of(front, fail)
    task.view()
    answer = front.memoize(lambda number: number, name="answer")
    answer.view(7)
    with pytest.raises(ValueError, match="no such table"):
        task.refresh().result(5)
    told = {item["name"]: item for item in badge.told["items"]}
    assert {"task", "answer"} == told.keys()
    assert ("ValueError: no such table", "failed", True) == (
        told["task"]["error"], told["task"]["state"], told["task"]["stale"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "may", "ran"),
    [
        ({"run": 0}, True, ["task"]),
        ({"run": 1}, True, ["answer"]),
        ({"run": 0}, False, []),
        ({"run": 2}, True, []),
        ({"run": None}, True, []),
        ({"run": [0]}, True, []),
        ({}, True, []),
        ("run", True, []),
        (None, True, []),
    ],
)
def test_a_page_runs_what_its_list_has_for_those_who_may(
    core: Core, said: Any, may: bool, ran: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A task, or an answer computed anew, and it is in the log who has asked. A browser may send anything."""
    made = list[str]()
    task = task_of(core.ps, lambda: made.append("task"))
    view = core.ps.memoize(lambda: made.append("answer"), name="answer").view()
    core.go()
    made.clear()
    page = PageView(None, lambda: None, lambda: [task.view(), view], lambda: may)
    page._follow()
    assert {"Run now"} if may else {""} == {told["run"] for told in page.shown}
    page.run_now(said)
    core.go()
    assert ran == made
    asked = [f"The badge of a page: user None asks for a run of {name!r}" for name in ran]
    assert [("panel_schedule", logging.WARNING, text) for text in asked] == caplog.record_tuples


def test_a_task_that_runs_no_more_is_not_offered_to_be_run(front: Front) -> None:
    task = task_of(front, lambda: 1)
    page = PageView(None, lambda: None, lambda: [task.view()], lambda: True)
    task.remove_schedule()
    page._follow()
    assert [""] == [told["run"] for told in page.shown]


def test_the_next_task_of_a_name_has_a_view_of_its_own(front: Front) -> None:
    """After ``cancel_task`` the old view keeps the last value, and the new task does not inherit it."""
    old = task_of(front, lambda: "old")
    old.refresh().result(5)
    view = old.view()
    front.cancel_task("task")
    new = task_of(front, lambda: "new", default="none yet")
    assert new.view().value == "none yet"
    new.refresh().result(5)
    assert (view.value, new.view().value) == ("old", "new")


def test_a_cancelled_task_says_so(front: Front) -> None:
    """Instead of acting on the next task of its name."""
    old = task_of(front, lambda: "old")
    front.cancel_task("task")
    task_of(front, lambda: "new")
    for act in (old.refresh, old.pause, old.wait_ready):
        with pytest.raises(RegistrationError, match="'task' was cancelled"):
            act()


def test_an_async_function_in_a_thread_is_refused(front: Front) -> None:
    async def fetch() -> int:
        return 1

    with pytest.raises(RegistrationError, match="runs on the event loop"):
        task_of(front, fetch, executor="thread")


def test_freshness_of_something_else_is_an_error_that_says_so() -> None:
    with pytest.raises(TypeError, match="Freshness shows a task"):
        Freshness(lambda: 1)  # type: ignore[arg-type]


def test_a_task_renders_as_its_value_with_its_freshness(front: Front) -> None:
    """``pn.panel(task)``."""
    task = task_of(front, lambda: "# hello")
    value, line = pn.panel(task)
    value.get_root()
    task.refresh().result(5)
    assert value._pane.object == "# hello"
    assert line.told["updated"] is not None


def laid_out(view: Any, *names: str) -> list[Any]:
    """What a page gets of params that are laid out as they are: Bokeh models."""
    return pn.Row(*(view.param[name] for name in names)).get_root().references()  # type: ignore[no-any-return]


def of_type(models: Any, name: str) -> list[Any]:
    return [model for model in models if type(model).__name__ == name]


def faces(front: Front) -> dict[str, Any]:
    """A task, a job and an answer, as one session sees them."""

    def fail(number: int = 0) -> None:
        raise ValueError("<img onerror=alert(1)>")

    return {
        "task": front.schedule(period="1h", name="task", first_run="skip")(fail).view(),
        "job": front.background(executor="thread", name="job")(fail).job(),
        "answer": front.memoize(name="answer")(fail).view(1),
    }


@pytest.mark.parametrize("kind", ["task", "job"])
def test_progress_that_is_laid_out_as_it_is_is_a_bar(front: Front, kind: str) -> None:
    """Empty while nothing is known; an input would ask visitors to set it."""
    view = faces(front)[kind]
    (bar,) = of_type(laid_out(view, "percent"), "Progress")
    before = bar.value
    view.percent = 40
    assert (0, 40) == (before, bar.value)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("task", "message"), ("task", "error"), ("job", "message"), ("job", "error"), ("answer", "error")],
)
def test_a_text_that_is_laid_out_as_it_is_is_plain_text(front: Front, kind: str, name: str) -> None:
    """No input, no label, and nothing in it is HTML: a message may have what a visitor wrote."""
    view = faces(front)[kind]
    models = laid_out(view, name)
    setattr(view, name, "<img onerror=alert(1)>: 1 & 2")
    (text,) = of_type(models, "HTML") + of_type(models, "Div")
    assert "&lt;img onerror=alert(1)&gt;: 1 &amp; 2" == text.text
    assert [] == of_type(models, "TextInput")


def test_panels_own_params_are_laid_out_as_ever(front: Front) -> None:
    class Mine(param.Parameterized):
        number = param.Integer(default=3, bounds=(0, 9))
        text = param.String(default="mine")

    models = laid_out(Mine(), "number", "text")
    assert (1, 1) == (len(of_type(models, "Slider")), len(of_type(models, "TextInput")))
