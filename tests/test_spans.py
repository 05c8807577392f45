"""Spans of OpenTelemetry around runs, by its own SDK."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import SpanProcessor

from core import PATIENCE
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import RunCrashed, RunTimedOut
from panel_schedule.functions.run import RunState, current_run
from panel_schedule.functions.task import Retry
from panel_schedule.runtime import Runtime
from servers import eventually
from tracing import begin, carrying, ids, linked, parent, require_carried


@pytest.fixture
def make():
    """Servers, here: ``make(store="memory://")``."""
    made = list[Runtime]()

    def make(**options) -> Front:
        config = Config({})
        config.store = "memory://"
        for name, value in options.items():
            setattr(config, name, value)
        made.append(Runtime(config))
        return Front(made[-1])

    yield make
    for runtime in made:
        runtime.grace = 0.0
        runtime.close()


@pytest.fixture
def ps(make):
    return make()


class Gate:
    """A function that says that it is there, and waits for the test."""

    __name__ = "gate"

    def __init__(self) -> None:
        self.there, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self) -> int:
        self.there.release()
        assert self.go.acquire(timeout=PATIENCE)
        return 42


# ------------------------------------------------------------ what a span says


def test_a_slot_of_a_clock_has_a_span_without_a_parent(core, spans):
    """Its attributes say of what kind it is, of which task, slot and attempt, and how it ended."""
    task = core.schedule(period="1m", first_run="skip", name="sales")(lambda: 1)
    with begin("the program that sets it up"):
        core.begin()
        core.run_for(60)
    span = spans.one("task sales")
    assert (None, (), trace.SpanKind.INTERNAL) == (span.parent, span.links, span.kind)
    assert {
        "panel_schedule.kind": "task",
        "panel_schedule.name": "sales",
        "panel_schedule.run": task.history[0].id,
        "panel_schedule.slot": "2026-01-01T00:01:00+00:00",
        "panel_schedule.attempt": 1,
        "panel_schedule.outcome": "succeeded",
    } == dict(span.attributes)
    assert trace.StatusCode.UNSET is span.status.status_code


@pytest.mark.parametrize("where", ["thread", "loop"])
def test_spans_of_the_function_are_its_children(ps, spans, where):
    """Where the function runs, the span of its run is the current one."""

    def total():
        trace.get_current_span().set_attribute("rows", 3)
        with begin("query"):
            return 1

    async def on_loop():
        return total()

    ps.background(executor=where, name="total")(on_loop if where == "loop" else total).submit().result(PATIENCE)
    span = spans.one("job total")
    assert 3 == span.attributes["rows"]
    assert ids(span) == parent(spans.one("query"))


def test_each_attempt_has_a_span_with_what_it_raised(ps, spans):
    """A failed attempt is an error with the exception, and the next one has a span of its own in the same trace."""
    calls = []

    @ps.background(executor="thread", retry=Retry(2, backoff=0.001))
    def flaky():
        calls.append(1)
        if len(calls) == 1:
            raise LookupError("no such table")

    with begin("click") as click:
        flaky.submit().result(PATIENCE)
    first, second = spans.all("job flaky")
    assert [1, 2] == [span.attributes["panel_schedule.attempt"] for span in (first, second)]
    assert ["failed", "succeeded"] == spans.outcomes("job flaky")
    assert [ids(click)] * 2 == [parent(first), parent(second)]
    assert (trace.StatusCode.ERROR, "LookupError: no such table") == (
        first.status.status_code,
        first.status.description,
    )
    assert trace.StatusCode.UNSET is second.status.status_code
    [event] = first.events
    assert ("exception", "LookupError", "no such table") == (
        event.name, event.attributes["exception.type"], event.attributes["exception.message"],
    )  # fmt: skip
    trail = event.attributes["exception.stacktrace"]
    assert "in flaky" in trail
    assert "panel_schedule/engine" not in trail


def test_a_span_ends_at_the_timeout_though_the_function_goes_on(ps, spans):
    """A function that hangs is seen."""
    gate = Gate()
    run = ps.background(executor="thread", timeout=0.05)(gate).submit()
    with pytest.raises(RunTimedOut):
        run.result(PATIENCE)
    span = spans.one("job gate")
    assert ("timed_out", trace.StatusCode.ERROR) == (span.attributes["panel_schedule.outcome"], span.status.status_code)
    gate.go.release()


def test_a_cancelled_run_is_no_error(ps, spans):
    """Who cancels it wants it so."""
    gate = Gate()
    run = ps.background(executor="thread")(gate).submit()
    assert gate.there.acquire(timeout=PATIENCE)
    run.cancel()
    span = spans.one("job gate")
    assert ("cancelled", trace.StatusCode.UNSET) == (span.attributes["panel_schedule.outcome"], span.status.status_code)
    assert () == span.events
    gate.go.release()


def test_what_does_not_begin_has_no_span(core, spans):
    """A slot that is left out is none."""
    task = core.schedule(period="1m", first_run="skip", name="sales")(lambda: 1)
    core.begin()
    task.pause()
    core.go()
    core.run_for(120)
    assert RunState.SKIPPED is task.history[0].state
    assert [] == spans.all("task sales")


# ------------------------------------------------------------ who asks


def test_the_parent_of_a_job_is_the_span_in_which_it_was_submitted(ps, spans):
    """And nothing else of that context gets into the run."""

    @ps.background(executor="thread")
    def total():
        return dict(baggage.get_all())

    with begin("click") as click, carrying(user="ada"):
        found = total.submit().result(PATIENCE)
    span = spans.one("job total")
    assert (ids(click), trace.SpanKind.CONSUMER) == (parent(span), span.kind)
    assert {} == found


def test_what_a_job_submits_is_its_child(ps, spans):
    """Traces go on from run to run."""

    @ps.background(executor="thread")
    def inner():
        return 1

    @ps.background(executor="thread")
    def outer():
        return inner.submit().result(PATIENCE)

    outer.submit().result(PATIENCE)
    assert ids(spans.one("job outer")) == parent(spans.one("job inner"))


def test_a_shared_run_is_linked_to_all_who_wait_for_it(ps, spans):
    """It is nobody's child, and has nobody's baggage: equal calls get what it gives, whoever was first."""
    gate, seen = Gate(), []

    @ps.memoize(executor="thread")
    def filtered(region):
        seen.append(dict(baggage.get_all()))
        return gate()

    clicks, runs = [], []
    for user in ("ada", "grace"):
        with begin("click") as click, carrying(user):
            runs.append(filtered.submit("north"))
        clicks.append(ids(click)[1])
        if not runs[1:]:
            assert gate.there.acquire(timeout=PATIENCE)
    gate.go.release()
    assert [42, 42] == [run.result(PATIENCE) for run in runs]
    span = spans.one("memo filtered")
    assert (None, clicks, trace.SpanKind.INTERNAL) == (span.parent, linked(span), span.kind)
    assert [{}] == seen


def test_an_answer_that_the_caller_computes_himself_has_neither(ps, spans):
    """On his own thread the function sees the span of its run, and not the caller's context."""

    @ps.memoize
    def filtered(region):
        with begin("query"):
            return dict(baggage.get_all())

    with begin("click") as click, carrying(user="ada"):
        assert {} == filtered("north")
        assert ids(click) == ids(trace.get_current_span())
    span = spans.one("memo filtered")
    assert (None, [ids(click)[1]]) == (span.parent, linked(span))
    assert ids(span) == parent(spans.one("query"))


def test_a_job_that_equal_calls_share_is_linked_to_them(ps, spans):
    """With ttl= it is as an answer."""
    gate = Gate()
    job = ps.background(executor="thread", ttl="1h")(gate)
    clicks, runs = [], []
    for _ in range(2):
        with begin("click") as click:
            runs.append(job.submit())
        clicks.append(ids(click)[1])
        if not runs[1:]:
            assert gate.there.acquire(timeout=PATIENCE)
    gate.go.release()
    assert [42, 42] == [run.result(PATIENCE) for run in runs]
    span = spans.one("job gate")
    assert (None, clicks) == (span.parent, linked(span))


def test_a_refresh_is_linked_to_who_has_asked_for_it(core, spans):
    """The value is for everybody."""
    task = core.schedule(period="1m", first_run="skip", name="sales")(lambda: 1)
    with begin("click") as click:
        task.refresh()
    core.go()
    span = spans.one("task sales")
    assert (None, [ids(click)[1]]) == (span.parent, linked(span))
    assert "panel_schedule.slot" not in span.attributes


def test_a_task_that_follows_another_one_is_linked_to_its_run(core, spans):
    """So a late chart leads to the slow query."""
    raw = core.schedule(period="1m", first_run="skip", name="raw")(lambda: 1)
    core.schedule(after=raw, name="chart")(lambda: 2)
    core.begin()
    core.run_for(60)
    chart = spans.one("task chart")
    assert (None, [ids(spans.one("task raw"))[1]]) == (chart.parent, linked(chart))
    assert "version 1" == chart.attributes["panel_schedule.slot"]


# ------------------------------------------------------------ in other processes


def test_spans_of_a_worker_process_are_children_of_the_run(ps, spans, tmp_path):
    """Its SDK, which the module of the function sets up there, sees the run's span as their parent."""
    require_carried(ps, spans, tmp_path / "spans", "process")


def test_what_a_worker_process_submits_is_a_child_of_its_run(ps, spans):
    """The server starts it for that."""

    @ps.background(executor="thread")
    def inner():
        return 1

    @ps.background(executor="process")
    def outer():
        return inner.submit().result()

    outer.submit().result(PATIENCE)
    assert ids(spans.one("job outer")) == parent(spans.one("job inner"))


def test_a_worker_that_dies_leaves_a_span_behind(ps, spans):
    """It is the server's, which says how it ended."""

    @ps.background(executor="process")
    def segfault():
        import os

        os._exit(3)

    with pytest.raises(RunCrashed):
        segfault.submit().result(PATIENCE)
    span = spans.one("job segfault")
    assert ("crashed", trace.StatusCode.ERROR) == (span.attributes["panel_schedule.outcome"], span.status.status_code)


def test_a_job_that_another_process_takes_over_stays_in_its_trace(make, spans, tmp_path):
    """The span in which it was submitted is the parent of each attempt, wherever that is."""
    gate = Gate()
    ps = make(store=f"file://{tmp_path}/store")
    with begin("click") as click:
        run = ps.background(executor="thread", durable=True, name="report")(gate).submit()
    assert gate.there.acquire(timeout=PATIENCE)
    ps._runtime.grace = 0.0
    ps._runtime.close()

    ps = make(store=f"file://{tmp_path}/store")
    ps.background(executor="thread", durable=True, name="report")(lambda: 1)
    ps._runtime.dispatcher.find(run.id).result(PATIENCE)
    gate.go.release()
    assert ["cancelled", "succeeded"] == spans.outcomes("job report")
    assert [ids(click)] * 2 == [parent(span) for span in spans.all("job report")]


# ------------------------------------------------------------ what it must not cost


def test_without_an_sdk_there_are_no_spans(ps):
    """The API alone, which a library may have imported, makes none."""
    seen = []

    @ps.background(executor="thread")
    def total():
        seen.append(current_run()._span)
        return trace.get_current_span()

    assert trace.INVALID_SPAN is total.submit().result(PATIENCE)
    assert [None] == seen


@pytest.mark.slow
@pytest.mark.unhurried
def test_a_program_that_has_no_use_for_it_does_not_import_it():
    """Neither the package nor a run does."""
    program = (
        "import sys, panel_schedule as ps\n"
        "print(ps.background(len, executor='thread', name='f').submit([1]).result(),"
        " [name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert "1 []" == said.stdout.strip()


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Broken(SpanProcessor):
    def on_start(self, span, parent_context=None):
        raise RuntimeError("on_start")

    def on_end(self, span):
        raise RuntimeError("on_end")


def test_nothing_that_goes_wrong_in_an_sdk_is_a_fault_of_a_run(ps, spans):
    """Whatever is plugged into it may raise."""
    spans.provider.add_span_processor(Broken())

    @ps.background(executor="thread")
    def total():
        return 1

    assert 1 == total.submit().result(PATIENCE)


def test_an_error_that_cannot_say_what_it_is_ends_its_span(ps, spans):
    """The SDK asks it for a message."""

    @ps.background(executor="thread")
    def total():
        raise Unspeakable

    run = total.submit()
    eventually(lambda: run.state.final and spans.all("job total"))
    assert "Unspeakable" == spans.one("job total").status.description


def test_spans_are_begun_and_exported_without_the_lock(ps, spans):
    """An exporter may take long, and the scheduler goes on meanwhile."""
    held = []

    class Looking(SpanProcessor):
        def on_start(self, span, parent_context=None):
            held.append(ps._runtime.service.lock._is_owned())

        def on_end(self, span):
            held.append(ps._runtime.service.lock._is_owned())

    spans.provider.add_span_processor(Looking())

    @ps.background(executor="thread", retry=Retry(2, backoff=0.001))
    def flaky():
        if current_run().attempt == 1:
            raise LookupError

    @ps.memoize
    def filtered():
        return 1

    @ps.schedule(period="1h", first_run="skip")
    def sales():
        return 1

    flaky.submit().result(PATIENCE)
    filtered()
    sales.refresh().result(PATIENCE)
    assert [False] * 8 == held
