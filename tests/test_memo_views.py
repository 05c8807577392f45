"""What a session sees of a memoized function: the newest arguments win, and everybody is told once (2.4)."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from concurrent.futures import Future

import numpy as np
import pandas as pd
import panel as pn
import param
import pytest
from bokeh.document import Document
from panel.io.state import set_curdoc

from core import messages
from panel_schedule.cache.computation import Computation
from panel_schedule.functions.run import current_run, progress
from panel_schedule.functions.task import Retry
from panel_schedule.views import memo
from panel_schedule.views.components import Freshness


def told(view, *names):
    """What its params become, one list for each update."""
    updates = []
    view.param.watch(lambda *events: updates.append({event.name: event.new for event in events}), list(names))
    return updates


def state(view):
    return view.value, view.running, view.error, view.stale


class Context:
    """As much of a session's as a view looks at."""

    id = "session"


documents = []


def in_session():
    """Be the code of a page."""
    document = Document()
    document._session_context = lambda: Context
    documents.append(document)
    return set_curdoc(document)


# ------------------------------------------------------------ arguments


def test_a_view_computes_in_the_background_and_then_shows(core):
    function = core.held("f")
    f = core.ps.memoize(name="f")(lambda n: function())
    view = f.view(1)
    updates = told(view, "value", "running", "version", "updated_at")
    assert (None, True, "", False) == state(view)
    core.go()
    assert (None, True, 0) == (view.value, view.running, view.version)
    function.finish("answer")
    core.go()
    assert ("answer", False, "", False) == state(view)
    # Dependents update once for each answer.
    assert [{"value": "answer", "running": False, "version": 1, "updated_at": core.clock.now()}] == updates


def test_what_is_there_is_shown_at_once(core):
    f = core.ps.memoize(name="f")(lambda n: n * 10)
    f(1)
    view = f.view(n=1)
    assert (10, False, "", False) == state(view)
    assert view.updated_at == core.clock.now()


def test_an_answer_that_is_not_kept_is_shown_and_asked_for_once(core):
    """Also by a view of another page that shows the one of before."""
    answers = iter([1, None, 3])
    f = core.ps.memoize(keep=lambda answer: answer is not None, name="f")(lambda n: next(answers))
    view, other = (f.view(pn.widgets.IntInput(value=7)) for _ in range(2))
    core.go()
    assert (1, 1) == (view.value, other.value)
    view.refresh()
    core.go()
    core.run_for(10)
    assert [(None, False, "", False)] * 2 == [state(view), state(other)]
    assert 3 == f(7)


def test_what_is_ignored_is_the_object_itself_and_its_change_computes_nothing(core):
    class Connection:
        asked = 0

        def ask(self):
            self.asked += 1
            return self.asked

    connections = Connection(), Connection()
    number = pn.widgets.IntInput(value=0)
    f = core.ps.memoize(ignore="connection", name="f")(lambda connection: connection.ask())
    view = f.view(pn.bind(lambda n: connections[n], number))
    core.go()
    number.value = 1
    core.go()
    assert (1, 1, 0) == (view.value, connections[0].asked, connections[1].asked)


@pytest.mark.parametrize("kind", ["widget", "param", "rx", "bind", "nested"])
def test_arguments_may_be_references(core, kind):
    widget = pn.widgets.IntSlider(value=1, start=0, end=9)
    reference = {
        "widget": widget,
        "param": widget.param.value,
        "rx": widget.rx() + 0,
        "bind": pn.bind(lambda n: n, widget),
        "nested": {"n": [widget]},
    }[kind]
    f = core.ps.memoize(name="f")(lambda n, factor: (n["n"][0] if isinstance(n, dict) else n) * factor)
    view = f.view(reference, factor=10)
    core.go()
    assert 10 == view.value
    widget.value = 2
    core.go()
    assert (20, False, "", False) == state(view)


def test_a_task_may_be_an_argument(core):
    numbers = iter([3, 4])
    task = core.ps.schedule(period="1h", first_run="skip", name="task")(lambda: next(numbers))
    f = core.ps.memoize(name="f")(lambda n: n * 10)
    view = f.view(task)
    core.go()
    # It has no value yet: there is nothing to compute.
    assert (None, False, "", False) == state(view)
    assert not core.ps.store.entries(f)
    for expected in (30, 40):
        task.refresh()
        core.go()
        assert expected == view.value
        core.run_for(1)


def test_one_view_may_be_the_argument_of_another(core):
    """Which computes nothing before the first has an answer."""
    seen = []
    widget = pn.widgets.IntInput(value=1)
    first = core.ps.memoize(name="first")(lambda n: n + 1)
    second = core.ps.memoize(name="second")(lambda n: seen.append(n) or n * 10)
    view = second.view(first.view(widget))
    core.go()
    core.run_for(1)
    widget.value = 5
    core.go()
    assert [2, 6] == seen
    assert 60 == view.value


def test_what_is_set_in_one_go_is_computed_once(core):
    a, b = pn.widgets.IntInput(value=1), pn.widgets.IntInput(value=1)
    calls = []
    f = core.ps.memoize(name="f")(lambda a, b: calls.append((a, b)) or a + b)
    view = f.view(a, b)
    core.go()
    a.value, b.value = 2, 3
    core.go()
    assert [(1, 1), (2, 3)] == calls
    assert 5 == view.value


def test_equal_arguments_again_are_no_news(core):
    widget = pn.widgets.TextInput(value="north")
    f = core.ps.memoize(name="f")(lambda region: region)
    view = f.view(pn.bind(str.strip, widget))
    core.go()
    updates = told(view, "value", "running")
    widget.value = " north "
    core.go()
    assert [] == updates


def test_large_arguments_are_keyed_off_the_loop(core):
    class Input(param.Parameterized):
        array = param.Parameter()

    source = Input(array=np.ones(1_000_000))
    f = core.ps.memoize(name="f")(lambda array: float(array.sum()))
    view = f.view(source.param.array)
    core.go()
    names, local = [], f.keys.local
    f.keys.local = lambda *call: names.append(asyncio._get_running_loop()) or local(*call)
    core.loop.call_soon(lambda: source.param.update(array=np.zeros(1_000_000)))
    core.go()
    assert [None] == names
    assert (0.0, False, "", False) == state(view)


# ------------------------------------------------------------ the newest arguments win


def test_a_slow_old_answer_never_overwrites_a_newer_one(core):
    widget = pn.widgets.IntInput(value=1)
    calls = []
    first, second = core.held("first"), core.held("second")
    f = core.ps.memoize(name="f")(lambda n: calls.append(n) or (first() if n == 1 else second()))
    view = f.view(widget)
    core.go()
    widget.value = 2
    core.go()
    assert [1, 2] == calls
    second.finish("new")
    core.go()
    updates = told(view, "value", "version")
    first.finish("old")
    core.go()
    assert ("new", False, "", False) == state(view)
    assert [] == updates
    assert "old" == f(1)  # it was not for nothing


def test_back_to_what_is_being_computed_is_no_second_computation(core):
    widget = pn.widgets.IntInput(value=1)
    function = core.held("f")
    f = core.ps.memoize(name="f")(lambda n: function())
    view = f.view(widget)
    core.go()
    for n in (2, 1):
        core.run_for(1)
        widget.value = n
        core.go()
    assert 2 == function.calls
    function.finish("one")
    core.go()
    assert ("one", False, "", False) == state(view)


@pytest.mark.parametrize("gap", [0.02, 0.1, 0.3])
def test_a_dragged_slider_runs_the_first_and_the_last(core, gap):
    """Fifty inputs in a second; or as many, of a page that is so busy that it takes them slowly."""
    slider = pn.widgets.IntSlider(value=0, start=0, end=100)
    calls = []
    f = core.ps.memoize(name="f")(lambda n: calls.append(n) or n)
    view = f.view(slider)
    core.go()
    for n in range(1, 51):
        slider.value = n
        core.go()
        core.run_for(gap)
        assert view.running or view.value == n
    core.run_for(max(memo.SETTLING, 2 * gap))
    assert [0, 1, 50] == calls
    assert (50, False, "", False) == state(view)


def test_what_is_known_is_shown_while_the_slider_is_dragged(core):
    slider = pn.widgets.IntSlider(value=0, start=0, end=100)
    f = core.ps.memoize(name="f")(lambda n: n)
    for n in range(10):
        f(n)
    view = f.view(slider)
    for n in range(1, 10):
        slider.value = n
        core.go()
        assert (n, False) == (view.value, view.running)


def test_a_queued_computation_of_older_arguments_never_begins(core):
    widget = pn.widgets.IntInput(value=1)
    calls = []
    f = core.ps.memoize(name="f")(lambda n: calls.append(n) or n)
    f.view(widget)
    widget.value = 2
    core._turn()
    core.run_for(1)
    assert [2] == calls


def test_a_dependent_only_input_does_not_recompute(core):
    calls, drawn = [], []
    colour = pn.widgets.Select(value="red", options=["red", "blue"])
    f = core.ps.memoize(name="f")(lambda n: calls.append(n) or n)
    view = f.view(1)
    shown = pn.panel(view.pipe(lambda value, colour: drawn.append((value, colour)) or f"{value} {colour}", colour))
    shown.get_root()
    core.go()
    colour.value = "blue"
    core.go()
    assert [1] == calls
    assert [(1, "red"), (1, "blue")] == drawn


# ------------------------------------------------------------ many views


def test_views_of_the_same_arguments_share_a_computation(core):
    function = core.held("f")
    f = core.ps.memoize(name="f")(lambda n: function())
    views = [f.view(1) for _ in range(5)]
    core.go()
    function.finish("answer")
    core.go()
    assert ["answer"] * 5 == [view.value for view in views]
    assert 1 == function.calls


def test_a_refresh_reaches_all_views_once(core):
    answers = iter(range(9))
    f = core.ps.memoize(name="f")(lambda n: next(answers))
    views = [f.view(1) for _ in range(3)]
    core.go()
    updates = [told(view, "value", "version", "running") for view in views]
    f.refresh(1)
    core.go()
    assert [[{"value": 1, "version": 2}]] * 3 == updates


def test_a_view_can_refresh(core):
    """It fits a button."""
    answers = iter(range(9))
    f = core.ps.memoize(name="f")(lambda n: next(answers))
    view = f.view(1)
    core.go()
    run = view.refresh(object())
    core._turn()
    assert (0, True) == (view.value, view.running)
    core.go()
    assert (1, 1, False) == (run.result(), view.value, view.running)


def test_each_view_has_its_own_copy_of_a_frame(core):
    """An editable table changes nobody else's data."""
    f = core.ps.memoize(name="f")(lambda: pd.DataFrame({"a": [1]}))
    f()
    view = f.view()
    with in_session():
        another = f.view()
    view.value.loc[0, "a"] = 99
    with set_curdoc(another._home()):
        other = another.value
    assert [99, 1, 1] == [view.value["a"][0], other["a"][0], f()["a"][0]]


def test_a_session_has_one_view_of_a_call_that_does_not_change(core):
    """However often it asks for it, as a callback may; and another session another one."""
    f = core.ps.memoize(name="f")(lambda n, m=2: n)
    widget = pn.widgets.IntInput(value=1)
    assert f.view(1) is f.view(n=1, m=2)
    assert f.view(1) is not f.view(widget)
    with in_session():
        other = f.view(1)
    assert f.view(1) is not other


def test_many_views_of_one_session_are_told(core, caplog):
    """They pile up until it ends."""
    f = core.ps.memoize(name="f")(lambda n: n)
    with in_session():
        for n in range(200):
            f.view(n)
    (message,) = messages(caplog)
    assert "has made 50 views and jobs, the last one of 'f'" in message
    assert "give it the widgets themselves" in message


@pytest.mark.parametrize("one", [True, False])
def test_what_is_invalidated_is_computed_anew_by_those_who_look(core, one):
    answers = iter(range(9))
    f = core.ps.memoize(name="f")(lambda n: next(answers))
    views = [f.view(1), f.view(1)]
    core.go()
    f.invalidate(1) if one else f.clear()
    core._turn()
    assert [(0, True, "", True)] * 2 == [state(view) for view in views]
    core.go()
    assert [(1, False, "", False)] * 2 == [state(view) for view in views]


def test_to_invalidate_others_is_no_news(core):
    calls = []
    f = core.ps.memoize(name="f", max_bytes=10)(lambda n: calls.append(n) or bytes(100))
    f.view(1)
    core.go()
    f.invalidate(2)
    core.go()
    assert [1] == calls


def test_a_new_value_of_a_task_recomputes_once_for_all(core):
    numbers = iter([1, 2, 3])
    sales = core.ps.schedule(period="1h", first_run="skip", name="sales")(lambda: next(numbers))
    calls = []
    f = core.ps.memoize(after=sales, name="f")(lambda n: calls.append(sales()) or sales() * n)
    sales.refresh()
    core.go()
    views = [f.view(10) for _ in range(4)]
    core.go()
    sales.refresh()
    core.go()
    assert [20] * 4 == [view.value for view in views]
    assert [1, 2] == calls
    assert [(20, False, "", False)] * 4 == [state(view) for view in views]


def test_it_shows_the_old_answer_as_stale_until_then(core):
    sales = core.ps.schedule(period="1h", first_run="skip", name="sales")(lambda: None)
    function = core.held("f")
    f = core.ps.memoize(after=sales, name="f")(function)
    sales.refresh()
    core.go()
    view = f.view()
    core.go()
    function.finish("old")
    core.go()
    sales.refresh()
    core.go()
    assert ("old", True, "", True) == state(view)
    function.finish("new")
    core.go()
    assert ("new", False, "", False) == state(view)


def test_what_is_made_of_a_stale_task_is_stale(core):
    """Until that has a new value; nothing is computed for it."""
    outcomes = iter([2, OSError("no route"), 3])

    @core.ps.schedule(period="1h", first_run="skip")
    def sales():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    calls = []
    f = core.ps.memoize(after=sales, name="f")(lambda n: calls.append(n) or sales() * n)
    shown = []
    for _ in range(3):
        sales.refresh()
        core.go()
        view = f.view(10)
        core.go()
        shown.append((view.value, view.stale))
    assert [(20, False), (20, True), (30, False)] == shown
    assert [10, 10] == calls


def test_a_view_waits_for_the_first_value_of_a_task(core):
    sales = core.ps.schedule(period="1h", first_run="skip", name="sales")(lambda: 2)
    calls = []
    f = core.ps.memoize(after=sales, name="f")(lambda n: calls.append(n) or sales() * n)
    view = f.view(10)
    core.go()
    assert (None, False, "", False) == state(view)
    sales.refresh()
    core.go()
    assert ([10], (20, False, "", False)) == (calls, state(view))


# ------------------------------------------------------------ states


def test_an_error_is_shown_and_the_last_answer_stays(core, caplog):
    """Of earlier arguments, so it is stale; and the log says what went wrong."""
    widget = pn.widgets.IntInput(value=1)
    f = core.ps.memoize(name="f")(lambda n: 10 // n)
    view = f.view(widget)
    core.go()
    widget.value = 0
    core.go()
    assert (10, False, "ZeroDivisionError: integer division or modulo by zero", True) == state(view)
    assert re.search(r"f\(0\) failed \(run \S+\), there is no answer: ZeroDivisionError", caplog.text)
    widget.value = 5
    core.run_for(1)
    assert (2, False, "", False) == state(view)


def test_a_failure_is_tried_again_when_asked(core):
    fails = [True]

    def f(n):
        if fails:
            raise OSError("no database")
        return n

    view = core.ps.memoize(f).view(1)
    core.go()
    assert (None, False, "OSError: no database", False) == state(view)
    fails.clear()
    view.refresh()
    core.go()
    assert (1, False, "", False) == state(view)


def test_a_failed_renewal_keeps_the_answer_and_says_so(core):
    fails = []

    @core.ps.memoize(ttl="1m", max_stale="1h")
    def f():
        if fails:
            raise OSError("no database")
        return "answer"

    view = f.view()
    core.go()
    fails.append(True)
    f.refresh()
    core.go()
    assert ("answer", False, "OSError: no database", True) == state(view)
    fails.clear()
    f.refresh()
    core.go()
    assert ("answer", False, "", False) == state(view)


def test_an_argument_without_a_key_is_an_error(core):
    widget = pn.widgets.Select(options={"one": 1, "many": iter(())}, value=1)
    f = core.ps.memoize(name="f")(lambda n: n)
    view = f.view(widget)
    core.go()
    widget.value = widget.options["many"]
    core.go()
    assert (1, False, True) == (view.value, view.running, view.stale)
    assert "f(): argument n" in view.error


def test_it_grows_stale_by_itself(core):
    """When its lifetime is over, also on an idle page."""
    f = core.ps.memoize(ttl="1m", name="f")(lambda: "answer")
    view = f.view()
    core.go()
    core.run_for(59)
    assert not view.stale
    core.run_for(2)
    assert ("answer", False, "", True) == state(view)
    f.refresh()
    core.go()
    assert not view.stale


def test_what_is_too_large_to_be_kept_is_shown(core):
    f = core.ps.memoize(max_bytes=10, name="f")(lambda n: bytes(100))
    view = f.view(1)
    core.go()
    assert (bytes(100), False, "", False) == state(view)


def test_a_generator_shows_what_it_yields(core):
    steps = core.held("steps")

    @core.ps.memoize
    def f():
        yield "first"
        steps()
        yield "second"
        steps()
        return "last"

    view, values = f.view(), []
    view.param.watch(lambda event: values.append((event.new, view.running)), "value")
    core.go()
    for _ in range(2):
        steps.finish()
        core.go()
    assert [("first", True), ("second", True), ("last", False)] == values
    assert ("last", False, "", False) == state(view)


def test_a_generator_that_fails_midway_leaves_its_last_item(core):
    @core.ps.memoize
    def f():
        yield "first"
        raise OSError("midway")

    view = f.view()
    core.go()
    assert ("first", False, "OSError: midway", True) == state(view)
    assert f.entry() is None


# ------------------------------------------------------------ as a reference


def test_a_view_stands_for_its_value(core):
    """``Tabulator(view)``, ``pn.bind(f, view)``, ``pn.rx(view)``, and ``f.rx(...)``."""
    f = core.ps.memoize(name="f")(lambda n: n * 10)
    widget = pn.widgets.IntInput(value=1)
    view = f.view(widget)
    shown = pn.widgets.IntInput(value=view)
    expression, direct = pn.rx(view) if callable(pn.rx) else None, f.rx(widget)
    assert direct.rx.value is None
    core.go()
    assert (10, 10, 10) == (shown.value, direct.rx.value, expression.rx.value)
    widget.value = 2
    core.go()
    assert (20, 20, 20) == (shown.value, (direct + 0).rx.value, expression.rx.value)


def test_pipe_shows_nothing_until_the_first_answer(core):
    seen = []
    f = core.ps.memoize(name="f")(lambda n: n)
    shown = pn.panel(f.view(1).pipe(lambda value: seen.append(value) or f"number {value}"))
    shown.get_root()
    assert [] == seen
    core.go()
    assert [1] == seen
    assert "number 1" == shown._pane.object


def test_a_view_renders_with_its_freshness(core):
    f = core.ps.memoize(name="f")(lambda n: f"number {n}")
    panel = pn.panel(f.view(1))
    panel.get_root()
    core.go()
    value, line = panel[0], panel[1]
    assert "number 1" == value._pane.object
    assert core.clock.now().timestamp() == line.told["updated"]


def test_freshness_shows_a_view(core):
    """While the next answer is on its way, that the last one is of other arguments is no news."""
    widget = pn.widgets.IntInput(value=1)
    function = core.held("f")
    f = core.ps.memoize(name="f")(lambda n: function())
    line = Freshness(f.view(widget))._line
    core.go()
    assert ("running", None) == (line.told["state"], line.told["updated"])
    function.finish(1)
    core.go()
    assert ("idle", False) == (line.told["state"], line.told["stale"])
    widget.value = 2
    core.go()
    assert ("running", False) == (line.told["state"], line.told["stale"])
    function.finish(ValueError("no"))
    core.go()
    assert ("idle", True, "ValueError: no") == (line.told["state"], line.told["stale"], line.told["error"])
    with pytest.raises(TypeError, match=r"function\.view\(\.\.\.\)"):
        Freshness(f)


@pytest.mark.parametrize("wrong", [((), {}), ((1, 2), {}), ((1,), {"m": 2})])
def test_arguments_that_do_not_fit_are_an_error_at_once(core, wrong):
    args, kwargs = wrong
    f = core.ps.memoize(name="f")(lambda n: n)
    with pytest.raises(TypeError, match=r"f\.view\(\): .* It takes \(n\)"):
        f.view(*args, **kwargs)


# ------------------------------------------------------------ sessions


def test_a_view_dies_with_its_session(core):
    """Also one whose widget, or answer, lives on."""
    widget = pn.widgets.IntInput(value=1)
    function = core.held("f")
    f = core.ps.memoize(name="f", ttl="1h")(lambda n: function())
    document = Document()
    document._session_context = lambda: Context
    with set_curdoc(document):
        view = weakref.ref(f.view(widget))
    core.go()
    queued = core.runtime.single_flight._all
    assert 1 == len(queued)
    core.runtime.views.forget(document)
    gc.collect()
    assert view() is None
    function.finish("late")
    core.go()
    assert "late" == f(1)
    assert 0 == len(core.runtime.views)
    assert not core.runtime.memos["f"].lru.watched


def test_a_session_that_ends_waits_for_nothing(core):
    """What nobody else waits for never begins."""
    calls = []
    f = core.ps.memoize(name="f")(lambda n: calls.append(n))
    document = Document()
    document._session_context = lambda: Context
    with set_curdoc(document):
        f.view(1)
    core.runtime.views.forget(document)
    core.go()
    assert [] == calls


def test_a_page_that_no_browser_sees_leaves_nothing_behind(core):
    """As ``--warm`` and liveness probes make them."""
    f = core.ps.memoize(name="f")(lambda n: n)
    with set_curdoc(Document()):
        view = weakref.ref(f.view(1))
    core.go()
    gc.collect()
    assert view() is None
    assert not core.runtime.memos["f"].lru.watched


def test_what_is_no_argument_is_named(core):
    f = core.ps.memoize(name="f")(lambda region: region)
    with pytest.raises(TypeError, match="unexpected keyword argument 'regoin'"):
        f.view(regoin=1)


def test_a_view_is_not_its_answer(core):
    f = core.ps.memoize(name="f")(lambda: {"a": 1})
    with pytest.raises(TypeError, match=r"is a live view and not the answer itself: use f\.view\(\.\.\.\)\.pipe"):
        f.view()["a"]
    core.go()
    assert 1 == f.view().rx()["a"].rx.value


def test_new_arguments_are_never_computed_under_the_key_of_the_old_ones(core):
    """While another thread makes their key."""

    class Input(param.Parameterized):
        array = param.Parameter()

    source = Input(array=np.zeros(1_000_000))
    f = core.ps.memoize(name="f")(lambda array: float(array.sum()))
    view = f.view(source.param.array)
    core.go()
    kept = []
    core.runtime.service.executors["publisher"].submit = lambda body: kept.append(body) or Future()
    core.loop.call_soon(lambda: source.param.update(array=np.ones(1_000_000)))
    core._turn()
    f.refresh(np.zeros(1_000_000))
    view.refresh()
    core.go()
    del core.runtime.service.executors["publisher"].submit
    for body in kept:
        body()
    core.go()
    assert (1e6, False, "", False) == state(view)
    assert [0.0, 1e6] == [f(np.zeros(1_000_000)), f(np.ones(1_000_000))]


def test_a_function_may_publish_by_hand(core, monkeypatch):
    values = []

    @core.ps.memoize
    def f():
        current_run().publish("first")
        return "last"

    view = f.view()
    view.param.watch(lambda event: values.append(event.new), "value")
    publish = Computation.publish
    monkeypatch.setattr(Computation, "publish", lambda *item: (publish(*item), core._turn()))
    core.go()
    assert "last" == view.value
    assert "last" == values[-1]


# ------------------------------------------------------------ progress


def advances(core, *steps):
    """A function that says how far it is, and waits for the test after each step."""

    def body(*args):
        core.thread.park()
        for step in steps:
            progress(step, 100, f"at {step}")
            core.thread.park()
        return core.thread.park()

    return body


def far(*views):
    return [(view.percent, view.message) for view in views]


UNKNOWN = (-1, "")


def test_views_show_how_far_the_computation_is(core):
    """Whoever asked for it, from whenever on they look, each change once; until it is over."""
    f = core.ps.memoize(name="f")(advances(core, 10, 60))
    view = f.view(pn.widgets.IntInput(value=1))
    updates = told(view, "percent", "message", "value")
    core.go()
    assert [UNKNOWN] == far(view)
    core.thread.release()
    core.go()
    late = f.view(1)
    with in_session():
        abroad = f.view(1)
    core._turn()
    assert [(10, "at 10")] * 3 == far(view, late, abroad)
    core.thread.release()
    core.run_for(0.1)
    assert [(60, "at 60")] * 2 == far(view, late)
    core.thread.release()
    core.thread.release("answer")
    core.go()
    assert [UNKNOWN] * 2 == far(view, late)
    assert [
        {"percent": 10, "message": "at 10"}, {"percent": 60, "message": "at 60"},
        {"percent": -1, "message": "", "value": "answer"},
    ] == updates  # fmt: skip


def test_a_view_shows_how_far_it_is_with_its_newest_arguments(core):
    widget = pn.widgets.IntInput(value=1)
    f = core.ps.memoize(name="f")(advances(core, 10))
    view = f.view(widget)
    core.go()
    core.thread.release()
    core.go()
    assert [(10, "at 10")] == far(view)
    widget.value = 2
    core.go()
    assert [UNKNOWN] == far(view)
    widget.value = 1
    core.run_for(1)
    assert [(10, "at 10")] == far(view)


@pytest.mark.parametrize("how", ["call", "refresh"])
def test_a_view_shows_how_far_others_are_with_a_new_answer(core, how):
    """In the background, while it goes on showing the old one."""
    f = core.ps.memoize(name="f", ttl="1m", max_stale="1h")(advances(core, 40))
    f.submit()
    core.go()
    core.thread.release(), core.thread.release(), core.thread.release("old")
    core.go()
    view = f.view()
    core.run_for(61)
    assert ("old", False, "", True) == state(view)
    f() if how == "call" else f.refresh()
    core.go()
    core.thread.release()
    core.go()
    assert [(40, "at 40")] == far(view)
    assert ("old", False, "", True) == state(view)
    core.thread.release()
    core.thread.release("new")
    core.go()
    assert ([UNKNOWN], ("new", False, "", False)) == (far(view), state(view))


def test_a_view_made_while_a_fresh_answer_is_replaced_shows_how_far_that_is(core):
    f = core.ps.memoize(name="f")(advances(core, 40))
    for _ in range(2):
        f.refresh()
        core.go()
        core.thread.release()
        core.go()
        view = f.view()
        core._turn()
        assert [(40, "at 40")] == far(view)
        core.thread.release(), core.thread.release("answer")
        core.go()
        del view


@pytest.mark.parametrize("end", ["fails", "times out", "is cancelled", "is forgotten"])
def test_however_it_ends_the_progress_is_gone(core, end):
    f = core.ps.memoize(name="f", timeout="1h")(advances(core, 40, 60))
    run, view = f.submit(), f.view()
    core.go()
    core.thread.release()
    core.go()
    assert [(40, "at 40")] == far(view)
    if end == "fails":
        core.thread.release(OSError("gone"))
    elif end == "times out":
        core.run_for(3601)
    elif end == "is cancelled":
        core.service.stopping = True
        core.runtime.single_flight.release()
    else:
        f.invalidate()
    core.go()
    assert [UNKNOWN] == far(view)
    assert run.state.final == (end != "is forgotten")
    if end == "is forgotten":  # and that of what does not count any more is not shown
        core.thread.release()
        core.run_for(0.1)
        assert [UNKNOWN] == far(view)


def test_another_attempt_is_at_its_beginning(core):
    f = core.ps.memoize(name="f", retry=Retry(2, backoff="10s"))(advances(core, 40))
    view = f.view()
    core.go()
    core.thread.release()
    core.go()
    core.thread.release(OSError())
    core.run_for(10.1)
    assert ([UNKNOWN], True) == (far(view), view.running)
    core.thread.release()
    core.run_for(0.1)
    assert [(40, "at 40")] == far(view)


def test_progress_is_laid_out_as_that_of_a_task(core):
    """A bar and plain text."""
    f = core.ps.memoize(name="f")(advances(core, 40))
    view, task = f.view(), core.ps.schedule(period="1h", name="task")(lambda: 1).view()
    for name in ("percent", "message"):
        of_memo, of_task = (pn.panel(each.param[name]) for each in (view, task))
        assert type(of_memo) is type(of_task)
    core.go()
    core.thread.release()
    core.go()
    assert (40, "at 40") == (pn.panel(view.param.percent).value, pn.panel(view.param.message).value)
