"""Background functions in one process: what a run goes through, and who shares it (2.3, invariants 13, 17, 18)."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from contextlib import contextmanager, suppress
from decimal import Decimal
from fractions import Fraction
from textwrap import dedent
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import numpy as np
import panel as pn
import psutil
import pytest
from bokeh.document import Document
from bokeh.io.doc import patch_curdoc
from bokeh.plotting import figure
from panel.io.state import set_curdoc
from tornado.web import create_signed_value

import panel_schedule
from core import PATIENCE, messages
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import (
    ArgumentUnkeyable,
    RegistrationError,
    RunCancelled,
    RunCrashed,
    RunSkipped,
    RunTimedOut,
    StoreError,
    TriggerError,
    ValueRefused,
    WouldBlock,
)
from panel_schedule.executors import processes
from panel_schedule.functions.run import RunState, current_run, progress, track
from panel_schedule.functions.task import Retry
from panel_schedule.jobs import executions
from panel_schedule.jobs.execution import JobExecution
from panel_schedule.jobs.single_flight import Waiters
from panel_schedule.runtime import Runtime
from panel_schedule.testing.contracts.tools import hammer


class Waits:
    """Lets a body in a thread of its own tell that it is there, and wait for the test."""

    def __init__(self) -> None:
        self.there, self.go, self.calls = threading.Semaphore(0), threading.Semaphore(0), 0

    def __call__(self, *_: object) -> int:
        self.calls += 1
        self.there.release()
        assert self.go.acquire(timeout=PATIENCE)
        return self.calls

    def begun(self) -> None:
        assert self.there.acquire(timeout=PATIENCE)


def make(**options) -> Runtime:
    config = Config({})
    for option, value in {"store": "memory://", "max_processes": 2, "max_threads": 4, **options}.items():
        setattr(config, option, value)
    return Runtime(config)


def workers() -> list[psutil.Process]:
    """Its worker processes; others are those of other tests."""
    return [each for each in psutil.Process().children() if "_worker.py" in " ".join(each.cmdline())]


@pytest.fixture
def runtime():
    made = make()
    yield made
    made.grace = 0.0
    made.close()
    assert not workers()


@pytest.fixture
def real(runtime) -> Front:
    """The package with real threads and processes."""
    return Front(runtime)


@pytest.fixture
def shared(tmp_path):
    """The same on a store of files, as several processes have it."""
    made = make(store=f"file://{tmp_path / 'store'}")
    yield Front(made)
    made.grace = 0.0
    made.close()


KINDS = ("thread", "process", "loop")


def as_kind(function, kind):
    """The function, as an async one for the loop."""

    async def on_the_loop(*args):
        return function(*args)

    return on_the_loop if kind == "loop" else function


def when(condition, timeout: float = PATIENCE) -> None:
    """Wait for what a worker process, which gives no signal, has done."""
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


async def endless():
    await asyncio.Event().wait()


def as_coroutine(function):
    async def coroutine(number):
        await asyncio.sleep(0.001)
        return function(number) if number % 17 else await asyncio.sleep(0.3)

    return coroutine


# ------------------------------------------------------------ states


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_succeeds(real, ledger, kind):
    def power(base, exponent=2):
        return base**exponent

    power = real.background(executor=kind, name="power")(as_kind(power, kind))
    run = power.submit(3, 4)

    assert 81 == run.result(PATIENCE)
    assert (RunState.SUCCEEDED, 1, None, "", 81) == (run.state, run.attempt, run.error, run.reason, run.value)
    assert run.queued_at <= run.started_at <= run.finished_at
    assert 1 == ledger[run]
    assert [run] == power.runs()


def test_it_is_queued_then_running_then_over(core):
    function = core.ps.background(executor="thread", name="f")(core.held("f"))
    seen = []
    run = function.submit()
    run.watch(lambda: seen.append(str(run.state)))
    assert (RunState.QUEUED, 1, None) == (run.state, run.position, run.started_at)

    core.go()
    assert (RunState.RUNNING, 0, core.clock.now()) == (run.state, run.position, run.started_at)
    core.clock.advance("5s")
    core.thread.release(42)

    assert ["running", "succeeded"] == seen
    assert 5 == (run.finished_at - run.started_at).total_seconds()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_keeps_its_type_and_traceback(real, kind, caplog):
    def divide(number):
        return 1 / number

    run = real.background(executor=kind, name="divide")(as_kind(divide, kind)).submit(0)

    with pytest.raises(ZeroDivisionError):
        run.result(PATIENCE)
    assert (RunState.FAILED, ZeroDivisionError) == (run.state, type(run.error))
    assert "return 1 / number" in run.traceback
    (message,) = messages(caplog)
    assert message == f"Job 'divide' failed (run {run.id}: divide(0)): ZeroDivisionError: division by zero"


@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize("form", ["generator", "async generator", "async"])
def test_each_form_of_function(real, kind, form):
    def generator(number):
        yield number
        yield number + 1
        return number + 2

    async def async_generator(number):
        yield number
        yield number + 1

    async def coroutine(number):
        await asyncio.sleep(0)
        return number + 2

    kind = "loop" if form != "generator" and kind == "thread" else kind
    function = {"generator": generator, "async generator": async_generator, "async": coroutine}[form]
    run = real.background(executor=kind, name="f")(function).submit(1)

    assert {"generator": 3, "async generator": 2, "async": 3}[form] == run.result(PATIENCE)
    assert ([] if form == "async" else [1, 2]) == list(run.partials)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_model_is_no_result(real, kind):
    def plot():
        return {"plot": figure()}

    run = real.background(executor=kind, name="plot")(plot).submit()
    with pytest.raises(ValueRefused, match=r"Job 'plot': value\['plot'\] is a bokeh.*job\.pipe"):
        run.result(PATIENCE)
    assert RunState.FAILED == run.state


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_model_is_no_partial(real, kind):
    def plots():
        yield figure()

    run = real.background(executor=kind, name="plots")(plots).submit()
    with pytest.raises(ValueRefused):
        run.result(PATIENCE)
    assert [] == list(run.partials)


def test_what_a_shared_store_cannot_keep_is_refused_in_the_function(shared):
    """With its name, and where the function hears of it."""
    refused = []

    def locks():
        try:
            yield threading.Lock()
        except ValueRefused as error:
            refused.append(error)
        panel_schedule.current_run().publish(threading.Lock())

    run = shared.background(executor="thread", name="locks")(locks).submit()
    with pytest.raises(ValueRefused, match="Job 'locks'"):
        run.result(PATIENCE)
    assert [] == list(run.partials)


def test_a_plain_call_is_a_plain_call(core):
    @core.ps.background
    def double(number):
        return panel_schedule.current_run(), 2 * number

    assert (None, 4) == double(2)
    assert [] == double.runs()


def test_wrong_arguments_are_refused_at_once(core):
    @core.ps.background
    def power(base, exponent=2):
        return base**exponent

    for args, kwargs in (((), {}), ((1, 2, 3), {}), ((1,), {"exponnt": 3})):
        with pytest.raises(TypeError, match=r"Job 'power': .* It is called as power\(base, exponent=2\)"):
            power.submit(*args, **kwargs)
    assert [] == power.runs()


def test_a_run_sees_no_session(real):
    @real.background(executor="thread")
    def look():
        return pn.state.curdoc, pn.state.user, panel_schedule.current_run().task

    document = pn.state.curdoc or pn.io.document.Document()
    with pn.io.server.set_curdoc(document):
        run = look.submit()
    assert (None, None, "look") == run.result(PATIENCE)


@contextmanager
def session_of(user, monkeypatch):
    """Be the code of a page whose visitor has logged in."""
    monkeypatch.setattr(pn.config, "cookie_secret", "secret")
    cookie = create_signed_value("secret", "user", user).decode()
    document = Document()
    context = SimpleNamespace(request=SimpleNamespace(cookies={"user": cookie}), destroyed=False, session=None)
    document._session_context = lambda: context
    with set_curdoc(document):
        yield


def test_runs_are_found_by_the_user_whose_session_started_them(core, monkeypatch):
    """Whether it submits, or starts a job, be that on a thread that knows of no session."""
    f = core.ps.background(executor="thread", name="f")(lambda n=0: n)
    nobodys = f.submit()
    with session_of("ann", monkeypatch):
        job = f.job()
        anns = [f.submit(), job.start()]
    with session_of("bob", monkeypatch):
        bobs = [f.submit(2)]
        assert bobs == f.runs(user=pn.state.user)
    thread = threading.Thread(target=lambda: anns.append(job.start()))
    thread.start()
    thread.join()

    assert set(anns) == set(f.runs(user="ann"))
    assert [nobodys] == f.runs(user=None)
    assert {nobodys, *anns, *bobs} == set(f.runs())
    assert [] == f.runs(user="mallory")


def test_a_thread_takes_no_user_from_the_page_that_is_being_built(core, monkeypatch):
    """Bokeh before 3.10 shows its document to all of them."""
    f = core.ps.background(executor="thread", name="f")(lambda: 1)
    runs = []
    with session_of("ann", monkeypatch), patch_curdoc(pn.state.curdoc):
        thread = threading.Thread(target=lambda: runs.append(f.submit()))
        thread.start()
        thread.join()
    assert [None] == [run.user for run in runs]


def test_who_shares_a_run_shares_its_id_and_it_is_found_by_who_started_it(core, monkeypatch):
    f = core.ps.background(executor="thread", name="f", ttl="1h")(lambda: 1)
    with session_of("ann", monkeypatch):
        first = f.submit()
    with session_of("bob", monkeypatch):
        second = f.submit()

    assert first.id == second.id == f.runs(user="ann")[0].id
    assert [] == f.runs(user="bob")


def test_what_a_run_submits_is_of_its_user(real, monkeypatch):
    inner = real.background(executor="thread", name="inner")(lambda: 1)
    outer = real.background(executor="thread", name="outer")(lambda: inner.submit().user)
    with session_of("ann", monkeypatch):
        run = outer.submit()

    assert "ann" == run.result(PATIENCE)


def test_other_processes_know_the_user_of_a_run(shared, tmp_path, monkeypatch):
    f = shared.background(executor="thread", name="f")(lambda: 1)
    with session_of("ann", monkeypatch):
        run = f.submit()
    run.result(PATIENCE)
    other = make(store=f"file://{tmp_path / 'store'}")
    there = Front(other).background(executor="thread", name="f")(lambda: 1)
    try:
        when(lambda: there.runs())
        assert [(run.id, "ann")] == [(each.id, each.user) for each in there.runs(user="ann")]
        assert [] == there.runs(user="bob")
    finally:
        other.close()


def test_events_are_told_of_jobs(core):
    events = core.events()

    @core.ps.background(executor="thread", retry=1)
    def job(number):
        return 1 / number

    runs = [job.submit(number) for number in (1, 0)]
    core.go()
    core.run_for(2)
    assert [RunState.SUCCEEDED, RunState.FAILED] == [run.state for run in runs]
    assert [("succeeded", "job"), ("failed", "job")] == events


# ------------------------------------------------------------ progress and partial results


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_progress_is_quick(real, kind):
    """
    The fastest of several rounds, in time of the thread's own: other processes may want the processor, too.

    A message of ``logging`` that nobody wants takes 0.2 us where the processor is not slow.
    """

    def work():
        import logging

        nobody, rounds, logged = logging.getLogger("nobody").debug, [], []
        for _ in range(7):
            for tell, times in ((panel_schedule.progress, rounds), (nobody, logged)):
                message = ("working",) if tell is panel_schedule.progress else ()
                start = time.thread_time()
                for number in range(2000):
                    tell(number, 2000, *message)
                times.append((time.thread_time() - start) / 2000)
        return min(rounds), min(logged)

    progress, logged = real.background(executor=kind, name="work")(work).submit().result(PATIENCE)
    print(f"{progress * 1e6:.2f} us, {progress / logged:.1f} times a message that is not logged")
    assert progress < 15 * logged


def test_who_follows_hears_the_first_and_the_last_and_at_most_twenty_a_second(core):
    function = core.ps.background(executor="thread", name="f")(core.held("f"))
    run = function.submit()
    core.go()
    heard = []
    run.watch(lambda: heard.append((core.clock.monotonic(), run.percent, run.state)))
    start = core.clock.monotonic()
    for number in range(1000):
        run.report(number // 10, str(number))
        core.run_for(0.001)

    assert (start, 0) == heard[0][:2]
    assert 19 <= len(heard) <= 21
    core.run_for(0.1)
    assert 99 == heard[-1][1]
    before = len(heard)
    core.run_for(5)
    assert before == len(heard)
    core.thread.release()
    assert (100, RunState.SUCCEEDED) == heard[-1][1:]


def test_the_last_progress_is_never_lost_between_threads(real):
    """Whatever the reporting thread and the timer do at the same time."""
    reported, go_on = threading.Event(), threading.Event()

    @real.background(executor="thread")
    def work(rounds):
        for number in range(rounds):
            panel_schedule.progress(number, rounds, str(number))
            if number % 7 == 0:
                time.sleep(0.0007)
        reported.set()
        assert go_on.wait(PATIENCE)

    seen, changed = [], threading.Condition()
    run = work.submit(1500)

    def hear():
        with changed:
            seen.append(run.message)
            changed.notify_all()

    run.watch(hear)
    assert reported.wait(PATIENCE)
    with changed:
        assert changed.wait_for(lambda: seen and seen[-1] == "1499", timeout=1)
    go_on.set()
    run.result(PATIENCE)


def test_track_says_how_far_it_is(core):
    seen = []

    @core.ps.background(executor="thread")
    def years():
        run = panel_schedule.current_run()
        for _ in panel_schedule.track(range(4), message="year {}"):
            seen.append((run.percent, run.message))

    run = years.submit()
    core.go()
    assert [(0, "year 0"), (25, "year 1"), (50, "year 2"), (75, "year 3")] == seen
    assert (100, "done") == (run.percent, run.message)


class Stubborn:
    """Raises whatever it is asked."""

    def _raises(self, *_):
        raise ValueError("no")

    __str__ = __float__ = __len__ = __format__ = _raises
    __iter__ = lambda self: iter([1, 2])  # noqa: E731


NO_FRACTIONS = {
    "nan": (float("nan"), 10, -1),
    "of nan": (np.float64(1), np.float64("nan"), -1),
    "inf": (float("inf"), 10, -1),
    "of inf": (1, float("inf"), 0),
    "huge": (10**400, 10, 100),
    "of huge": (10**400, 10**401, 10),
    "huge of a float": (10**400, 2.5, -1),
    "of nothing": (1, 0, -1),
    "of less than nothing": (1, -5, -1),
    "less than nothing": (-1, 5, 0),
    "small integers": (np.int8(50), np.int8(100), 50),
    "decimal": (Decimal("0.3"), Decimal(1), 30),
    "fraction": (Fraction(1, 2), 1.0, 50),
    "text": ("5", "10", 50),
    "no number": ("five", 10, -1),
    "none": (None, 10, -1),
    "complex": (1j, 10, -1),
    "array": (np.array([1, 2]), np.array([3, 4]), -1),
    "object": (Stubborn(), Stubborn(), -1),
}


@pytest.mark.parametrize(("current", "total", "percent"), NO_FRACTIONS.values(), ids=NO_FRACTIONS)
def test_progress_takes_any_number_and_what_is_none(core, current, total, percent):
    f = core.ps.background(executor="thread", name="f")(lambda: (progress(current, total), current_run().percent)[1])
    run = f.submit()
    core.go()

    assert percent == run.result(0)


MESSAGES = {
    "number": (5, "5"),
    "none": (None, ""),
    "bytes": (b"a", "b'a'"),
    "object": (Stubborn(), "<Stubborn>"),
    "long": ("a" * 5000, "a" * 1000),
    "no text": ("\ud800", "\\ud800"),
    "braces": ("a {b} {", "a {b} {"),
}


@pytest.mark.parametrize(("message", "text"), MESSAGES.values(), ids=MESSAGES)
def test_a_message_is_text_whatever_it_is(core, message, text):
    f = core.ps.background(executor="thread", name="f")(lambda: progress(1, 2, message))
    run = f.submit()
    core.go()

    assert (RunState.SUCCEEDED, text) == (run.state, run.message)
    assert type(run.message) is str


TRACKED = {
    "{} of {}": "7 of 7",
    "{:.1f}": "7.0",
    "{:>3}|": "  7|",
    "file a{b}.csv {}": "file a{b}.csv 7",
    '{"step": 1} {}': '{"step": 1} 7',
    "a { b": "a { b",
    "{0.__class__}": "{0.__class__}",
    "{.real} {[0]}": "{.real} {[0]}",
    "{:z} {:%H}": "{:z} {:%H}",
    "{:99999999999}": "{:99999999999}",
}


@pytest.mark.parametrize("message", TRACKED)
def test_braces_end_no_run(core, message):
    told = []
    f = core.ps.background(executor="thread", name="f")(
        lambda: [told.append(current_run().message) for _ in track([7], message=message)]
    )
    f.submit()
    core.go()

    assert [TRACKED[message]] == told


def test_a_length_that_raises_is_unknown(core):
    told = []
    f = core.ps.background(executor="thread", name="f")(
        lambda: [told.append(current_run().percent) for _ in track(Stubborn(), message=Stubborn())]
    )
    run = f.submit()
    core.go()

    assert (RunState.SUCCEEDED, [-1, -1]) == (run.state, told)


def test_a_run_hears_of_its_end_in_the_text_of_a_message(core):
    """In a worker process that may come at any moment."""

    class Message:
        def __str__(self):
            raise RunCancelled("now")

    f = core.ps.background(executor="thread", name="f")(lambda: progress(1, 2, Message()))
    run = f.submit()
    core.go()

    assert RunState.SUCCEEDED is not run.state


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_partials_come_in_order_and_all_of_them(real, kind):
    def numbers(count):
        for number in range(count):
            if number % 2:
                yield number
            else:
                panel_schedule.current_run().publish(number)
        return "end"

    run = real.background(executor=kind, name="numbers")(numbers).submit(500)
    assert "end" == run.result(PATIENCE)
    assert list(range(500)) == list(run.partials)


def test_partials_of_many_threads_are_all_kept(real):
    @real.background(executor="thread")
    def publish():
        run = panel_schedule.current_run()
        hammer(8, lambda thread: [run.publish((thread, number)) for number in range(100)])

    run = publish.submit()
    run.result(PATIENCE)
    assert 800 == len(set(run.partials)) == len(run.partials)


@pytest.mark.parametrize("kind", KINDS)
def test_partials_reach_the_store_before_the_end(shared, kind):
    """Those of a coroutine, too, which waits for nothing, and those before the store has the run."""

    async def publish():
        for number in range(50):
            panel_schedule.current_run().publish(number)

    async def items():
        for number in range(50):
            yield number

    for function in (publish, items):
        name = function.__name__
        background = shared.background(executor=kind if kind != "thread" else "loop", name=name)(function)
        runs = [background.submit() for _ in range(3)]
        for run in runs:
            run.result(PATIENCE)
        queue = shared._runtime.service.store.queue
        assert [list(range(50))] * 3 == [queue.partials(run.id) for run in runs]


def test_what_a_function_changes_after_it_has_published_it_is_stored_as_it_was(shared):
    @shared.background(executor="thread")
    def grow():
        table = {}
        for number in range(100):
            table[number] = number
            yield table

    run = grow.submit()
    run.result(PATIENCE)
    stored = shared._runtime.service.store.queue.partials(run.id)
    assert list(range(1, 101)) == [len(each) for each in stored]


def test_a_retry_begins_anew(core):
    """Progress and partials of the attempt before are gone."""
    attempts = []

    @core.ps.background(executor="thread", retry=Retry(3, backoff="10s"))
    def work():
        run = panel_schedule.current_run()
        attempts.append((run.attempt, run.percent, list(run.partials), core.clock.monotonic()))
        panel_schedule.progress(1, 2, "half")
        yield len(attempts)
        if len(attempts) < 3:
            raise OSError("no")

    start = core.clock.monotonic()
    run = work.submit()
    core.go()
    assert (RunState.QUEUED, 2) == (run.state, run.attempt)
    core.run_for(9.9)
    assert 1 == len(attempts)
    core.run_for(30)
    assert [(1, -1, [], start), (2, -1, [], start + 10), (3, -1, [], start + 30)] == attempts
    assert ([3], 3, RunState.SUCCEEDED, None) == (list(run.partials), run.attempt, run.state, run.error)


# ------------------------------------------------------------ cancel and timeout


def test_cancel_before_it_begins(core):
    function = core.ps.background(executor="thread", name="f")(core.held("f"))
    run = function.submit()
    run.cancel()
    core.go()
    assert (RunState.CANCELLED, "cancelled", None) == (run.state, run.reason, run.started_at)
    assert not core.thread.parked
    with pytest.raises(RunCancelled, match="Job 'f': the run was cancelled"):
        run.result()


def test_cancel_in_the_pause_before_a_retry(core):
    calls = []

    @core.ps.background(executor="thread", retry=3)
    def fail():
        calls.append(1)
        raise OSError

    run = fail.submit()
    core.go()
    run.cancel()
    core.run_for(60)
    assert (RunState.CANCELLED, [1]) == (run.state, calls)


def test_cancel_of_a_thread_that_listens_and_of_one_that_does_not(core, ledger):
    heard = []

    def listens():
        try:
            core.thread.park()
            panel_schedule.progress(1)
        except RunCancelled as error:
            heard.append(str(error))
            assert panel_schedule.current_run().cancelled
            raise

    listening = core.ps.background(executor="thread", name="listens")(listens).submit()
    deaf = core.ps.background(executor="thread", name="deaf")(core.held("deaf")).submit()
    core.go()
    for run in (listening, deaf):
        run.cancel()
        run.cancel("again")
        assert (RunState.CANCELLED, "cancelled") == (run.state, run.reason)
    core.thread.release()
    core.thread.release("too late")
    for run in (listening, deaf):
        assert (RunState.CANCELLED, None, 1) == (run.state, run.value, ledger[run])
    assert 1 == len(heard)


def test_cancel_after_the_end_does_nothing(core):
    function = core.ps.background(executor="thread", name="f")(lambda: 42)
    run = function.submit()
    core.go()
    run.cancel()
    assert (RunState.SUCCEEDED, "", 42) == (run.state, run.reason, run.result())


def test_cancel_from_many_threads_ends_it_once(real, ledger):
    for number in range(20):
        waits = Waits()
        run = real.background(executor="thread", name=f"f{number}")(waits).submit()
        waits.begun()
        assert not hammer(8, lambda _, run=run: run.cancel())
        waits.go.release()
        with pytest.raises(RunCancelled):
            run.result(PATIENCE)
        assert 1 == ledger[run]


def test_cancel_of_a_process_interrupts_it(real, tmp_path):
    begun, cleaned = tmp_path / "begun", tmp_path / "cleaned"

    def sleep():
        try:
            begun.touch()
            time.sleep(60)
        finally:
            cleaned.touch()

    run = real.background(name="sleep")(sleep).submit()
    when(begun.exists)
    run.cancel()
    assert RunState.CANCELLED == run.state
    when(cleaned.exists)


def test_cancel_of_a_coroutine_reaches_it(real):
    begun, cleaned = threading.Event(), threading.Event()

    @real.background(executor="loop")
    async def sleep():
        try:
            begun.set()
            await asyncio.sleep(60)
        finally:
            cleaned.set()

    run = sleep.submit()
    assert begun.wait(PATIENCE)
    run.cancel()
    assert cleaned.wait(PATIENCE)
    assert RunState.CANCELLED == run.state


def test_a_timeout_abandons_a_thread(core, ledger):
    """It is final, whatever `retry` says: two bodies of a run never go at once."""
    function = core.ps.background(executor="thread", name="f", timeout="10s", retry=3)(core.held("f"))
    run = function.submit()
    core.run_for(60)  # the wait for its turn does not count
    assert RunState.RUNNING == run.state or core.thread.parked
    core.go()
    core.run_for(10.1)
    assert (RunState.TIMED_OUT, 1) == (run.state, run.attempt)
    with pytest.raises(RunTimedOut, match="timeout of 10 s"):
        run.result()
    with pytest.raises(RunTimedOut):
        run.publish("too late")
    core.thread.release("too late")
    assert (RunState.TIMED_OUT, None, [], 1) == (run.state, run.value, list(run.partials), ledger[run])


def test_a_timeout_ends_a_process_and_it_is_tried_again(real, tmp_path):
    count = tmp_path / "count"

    def slow():
        run = panel_schedule.current_run()
        with count.open("a") as file:
            file.write(f"{run.attempt}\n")
        yield run.attempt
        if run.attempt < 3:
            time.sleep(60)

    run = real.background(name="slow", timeout="1s", retry=Retry(3, backoff="10ms"))(slow).submit()
    assert 3 == run.result(PATIENCE)
    assert "1\n2\n3\n" == count.read_text()
    assert (3, [3]) == (run.attempt, list(run.partials))


def test_the_timeout_of_a_coroutine(core):
    attempts = []

    @core.ps.background(executor="loop", timeout="5s", retry=Retry(2, backoff="1s"))
    async def wait():
        attempts.append(panel_schedule.current_run().attempt)
        await asyncio.Event().wait()

    run = wait.submit()
    core.go()
    core.run_for(5.1)
    assert (RunState.QUEUED, 2) == (run.state, run.attempt)
    core.run_for(10)
    assert (RunState.TIMED_OUT, [1, 2]) == (run.state, attempts)


def test_a_process_that_dies_is_a_crash_and_tried_again(real, tmp_path, caplog):
    def die(times):
        if panel_schedule.current_run().attempt <= times:
            os._exit(7)
        return "alive"

    function = real.background(name="die", retry=Retry(2, backoff="10ms"))(die)
    assert "alive" == function.submit(1).result(PATIENCE)
    run = function.submit(5)
    with pytest.raises(RunCrashed, match="Job 'die': its worker process ended with exit code 7"):
        run.result(PATIENCE)
    assert (RunState.CRASHED, 2) == (run.state, run.attempt)
    assert "alive" == function.submit(0).result(PATIENCE)


# ------------------------------------------------------------ submitting


def test_the_queue_says_who_is_next(core):
    first = core.ps.background(name="first")(lambda: None)
    core.service.executors["job-process"] = executor = processes.ProcessExecutor(1)
    runs = [first.submit() for _ in range(3)]
    assert [1, 2, 3] == [run.position for run in runs]
    runs[1].cancel()
    assert [1, 0, 2] == [run.position for run in runs]
    heard = []
    runs[2].watch(lambda: heard.append(runs[2].position))
    runs[0].cancel()
    core.run_for(0.1)
    assert ([0, 0, 1], [1]) == ([run.position for run in runs], heard)
    executor.stop(0)


def test_the_places_of_all_who_wait_cost_one_look_at_the_queue(core, monkeypatch):
    """A page that shows 2,000 of them would take a second otherwise."""
    first = core.ps.background(name="first")(lambda: None)
    runs = [first.submit() for _ in range(200)]
    looks, look = [], executions.Executions.__iter__
    monkeypatch.setattr(executions.Executions, "__iter__", lambda self: looks.append(1) or look(self))
    assert list(range(1, 201)) == [run.position for run in runs]
    assert 1 == len(looks)


def test_who_waits_is_not_told_of_by_the_store(core, monkeypatch):
    """Nothing about those has changed that others would have to know: a thousand cost it nothing."""
    function = core.ps.background(executor="thread", name="f")(lambda: None)
    told = []
    monkeypatch.setattr(JobExecution, "tell", lambda *args: told.append(args))
    runs = [function.submit() for _ in range(200)]
    core.go()
    core.run_for(1)
    assert all(run.state is RunState.SUCCEEDED for run in runs)
    assert len(told) <= 2 * 200 + 200  # begin, end, and one for progress


def test_ten_thousand_wait_without_slowing_each_other(core):
    function = core.ps.background(executor="thread", name="f")(lambda number: number)
    start = time.perf_counter()
    runs = [function.submit(number) for number in range(10_000)]
    assert time.perf_counter() - start < 5
    assert 10_000 == len(function.runs())
    for run in runs:
        run.cancel()
    assert executions.KEPT == len(function.runs())


async def test_small_arguments_that_cannot_travel_are_refused_at_once_on_a_loop(real):
    function = real.background(name="f")(lambda lock: None)
    with pytest.raises(ValueRefused, match="Job 'f': argument 'lock'"):
        function.submit(threading.Lock())
    assert [] == function.runs()


async def test_large_arguments_are_no_work_of_the_loop(real):
    """Where they cannot travel it is the run that fails. The loop's own time counts: others use the machine, too."""
    function = real.background(name="f")(lambda *args: len(args[0]))
    large, spent = np.ones(10_000_000), []
    for _ in range(3):
        start = time.thread_time()
        good, bad = function.submit(large), function.submit(large, threading.Lock())
        spent.append(time.thread_time() - start)
        assert 10_000_000 == await good
        with pytest.raises(ValueRefused, match="Job 'f': argument 'args'"):
            await bad
        assert RunState.FAILED == bad.state
    assert min(spent) < 0.005


async def test_a_late_cancel_of_a_run_that_is_still_being_entered(real):
    function = real.background(name="f", ttl="1h")(lambda data: data.sum())
    data = np.ones(5_000_000)
    run = function.submit(data)
    run.cancel()
    with pytest.raises(RunCancelled):
        await run
    assert 5_000_000 == await function.submit(data)


async def test_the_result_of_an_unfinished_run_is_awaited_on_a_loop(real):
    waits = Waits()
    run = real.background(executor="thread", name="f")(waits).submit()
    with pytest.raises(WouldBlock, match="await run"):
        run.result()
    waits.go.release()
    assert 1 == await run
    assert 1 == run.result()


def test_a_run_does_not_wait_for_itself(real):
    @real.background(executor="thread")
    def wait():
        return panel_schedule.current_run().result()

    with pytest.raises(WouldBlock):
        wait.submit().result(PATIENCE)


def test_jobs_hold_up_no_task(real):
    """They have places of their own."""
    waits = Waits()
    function = real.background(executor="thread", name="f")(waits)
    runs = [function.submit() for _ in range(6)]
    for _ in range(4):
        waits.begun()

    task = real.schedule(period="1h", name="task")(lambda: 42)
    assert 42 == task.refresh().result(PATIENCE)
    for _ in runs:
        waits.go.release()
    assert [1, 2, 3, 4, 5, 6] == sorted(run.result(PATIENCE) for run in runs) or waits.calls == 6


def test_two_users_have_a_run_each(core):
    numbers = iter(range(10))
    function = core.ps.background(executor="thread", name="f")(lambda: next(numbers))
    one, other = function.submit(), function.submit()
    core.go()
    assert (0, 1) == (one.result(), other.result())
    assert one.id != other.id


# ------------------------------------------------------------ sharing with ttl


def test_twenty_at_once_are_one_execution(real):
    waits = Waits()
    function = real.background(executor="thread", name="f", ttl="1h")(lambda data: waits())
    runs = []

    def ask(*_):
        runs.append(function.submit({"a": [1, 2]}))

    assert not hammer(20, ask)
    waits.begun()
    waits.go.release()
    assert {1} == {run.result(PATIENCE) for run in runs}
    assert 1 == len({run.id for run in runs}) == len(function.runs()) == waits.calls
    assert 20 == len(set(map(id, runs)))

    late = function.submit({"a": [1, 2]})
    assert (RunState.SUCCEEDED, 1) == (late.state, late.result())
    assert 1 == waits.calls


def test_a_result_is_shared_until_its_ttl_after_the_end(core):
    function = core.ps.background(executor="thread", name="f", ttl="10s")(core.held("f"))
    first = function.submit()
    core.go()
    core.run_for(30)
    core.thread.release("first")
    core.run_for(9.9)
    hit = function.submit()
    assert (RunState.SUCCEEDED, "first") == (hit.state, hit.value)
    core.run_for(0.2)
    later = function.submit()
    assert RunState.QUEUED == later.state
    core.go()
    core.thread.release("second")
    assert ("first", "second") == (first.result(), later.result())


@pytest.mark.parametrize("how", ["fail", "cancel"])
def test_what_did_not_succeed_is_not_shared_later(core, how):
    function = core.ps.background(executor="thread", name="f", ttl="10s")(core.held("f"))
    one, other = function.submit(), function.submit()
    core.go()
    if how == "fail":
        core.thread.release(OSError("no"))
        assert [RunState.FAILED] * 2 == [one.state, other.state]
        assert isinstance(other.error, OSError)
    else:
        one.cancel()
        other.cancel()
        core.thread.release("too late")
    again = function.submit()
    core.go()
    core.thread.release(42)
    assert 42 == again.result()


def test_who_gives_up_does_not_cancel_the_others_but_the_last_does(core):
    function = core.ps.background(executor="thread", name="f", ttl="10s")(core.held("f"))
    runs = [function.submit() for _ in range(3)]
    core.go()
    runs[0].cancel()
    runs[1].cancel()
    assert [RunState.CANCELLED, RunState.CANCELLED, RunState.RUNNING] == [run.state for run in runs]
    (shared,) = function.runs()
    assert RunState.RUNNING == shared.state
    runs[2].cancel("bored")
    assert (RunState.CANCELLED, "bored") == (shared.state, shared.reason)
    core.thread.release("too late")


def test_who_looks_on_does_not_cancel_for_those_who_wait(core):
    """A page that shows a run by its id, and ends."""
    function = core.ps.background(executor="thread", name="f", ttl="10s")(core.held("f"))
    mine = function.submit()
    core.go()
    by_id, by_run = function.job(), function.job()
    by_id.attach(mine.id)
    by_run.attach(function.runs()[0])
    by_id.cancel()
    by_run._leave()
    assert RunState.RUNNING == mine.state
    core.thread.release(42)
    assert 42 == mine.result()


def test_guests_see_the_progress_of_what_they_share(real, tmp_path):
    """Of a worker process, too."""
    go = tmp_path / "go"

    def work():
        panel_schedule.progress(1, 2, "half")
        yield "partial"
        while not go.exists():
            time.sleep(0.005)

    function = real.background(name="work", ttl="1h")(work)
    runs = [function.submit() for _ in range(3)]
    seen = threading.Semaphore(0)
    for run in runs:
        run.watch(lambda run=run: run.message == "half" and run.partials and seen.release())
    when(lambda: all(run.message == "half" and list(run.partials) == ["partial"] for run in runs))
    assert [50] * 3 == [run.percent for run in runs]
    assert seen.acquire(timeout=PATIENCE)
    go.touch()
    assert ["partial"] * 3 == [run.result(PATIENCE) for run in runs]
    assert all(run.started_at is not None for run in runs)


def test_equal_arguments_are_equal_however_they_are_given(core):
    calls = []
    function = core.ps.background(executor="thread", name="f", ttl="10s")(lambda a, b=2, **more: calls.append(1))
    function.submit(1, x={"a": 1, "b": 2})
    function.submit(1, 2, x={"b": 2, "a": 1})
    function.submit(b=2, a=1, x={"a": 1, "b": 2})
    core.go()
    assert [1] == calls
    function.submit(1.0, x={"a": 1, "b": 2})
    function.submit("1", x={"a": 1, "b": 2})
    core.go()
    assert [1, 1, 1] == calls


def test_key_says_what_counts(core):
    calls = []

    @core.ps.background(executor="thread", ttl="10s", key=lambda region, connection: region)
    def query(region, connection):
        calls.append(region)

    for region in ("north", "south", "north"):
        query.submit(region, threading.Lock())
    core.go()
    assert ["north", "south"] == calls


def test_an_argument_without_a_key_is_named(core):
    function = core.ps.background(executor="thread", name="f", ttl="10s")(lambda lock: None)
    with pytest.raises(ArgumentUnkeyable, match=r"f\(\): argument lock"):
        function.submit(threading.Lock())


# ------------------------------------------------------------ looking back


def test_runs_are_listed_newest_first_bounded_and_expire(core, monkeypatch):
    monkeypatch.setattr(executions, "KEPT", 3)
    function = core.ps.background(executor="thread", name="f", result_ttl="1h")(lambda number: number)
    runs = []
    for number in range(5):
        runs.append(function.submit(number))
        core.go()
        core.run_for(60)
    assert [runs[4], runs[3], runs[2]] == function.runs()
    core.run_for(3600 - 150)
    assert [runs[4], runs[3]] == function.runs()
    core.run_for(3600)
    assert [] == function.runs()


def test_a_job_attaches_by_id(core):
    function = core.ps.background(executor="thread", name="f")(core.held("f"))
    run = function.submit()
    job = function.job()
    job.attach(run.id)
    assert run is job.run
    core.go()
    core.thread.release(42)
    with pytest.raises(KeyError, match="there is no run 'nobody'"):
        job.attach("nobody")
    other = function.job()
    other.attach(run.id)
    assert 42 == other.run.value


def test_nothing_holds_a_result_for_ever(core):
    """Not the package once it has expired, though nobody asks for anything any more."""

    class Result:
        pass

    function = core.ps.background(executor="thread", name="f", result_ttl="1h", ttl="10m")(lambda: Result())
    function.submit()
    core.go()
    kept = weakref.ref(function.runs()[0].value)
    core.run_for(3700)
    gc.collect()
    assert kept() is None


def test_a_result_goes_with_its_run(core):
    """Without the help of the garbage collector, as it may be large; also where somebody saw it wait."""

    class Result:
        pass

    function = core.ps.background(executor="thread", name="f", result_ttl="1s")(lambda: Result())
    run = function.submit()
    assert 1 == run.position
    core.go()
    kept = weakref.ref(run.value)
    gc.collect()
    gc.disable()
    try:
        core.run_for(2)
        del run
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_runs_leave_nothing(real, kind):
    function = real.background(executor=kind, name="f", result_ttl="1ms")(as_kind(lambda: b"x" * 10_000, kind))

    def some(number):
        for run in [function.submit() for _ in range(number)]:
            run.result(PATIENCE)

    def state():
        gc.collect()
        here = psutil.Process()
        return here.num_fds(), here.num_threads(), len(here.children())

    some(50)
    before = state()
    tracemalloc.start()
    some(100)
    gc.collect()
    first = tracemalloc.get_traced_memory()[0]
    some(850)
    when(lambda: not function.runs())
    after = state()
    grown = tracemalloc.get_traced_memory()[0] - first
    tracemalloc.stop()
    assert all(now <= then + 2 for then, now in zip(before, after, strict=True)), (before, after)
    assert grown < 400_000


def test_a_server_that_stops_amid_its_start_says_nothing_of_its_store(shared, caplog):
    """What begins to look for what others have left finds it closed, and that is no trouble."""
    function = shared.background(executor="thread", name="f")(lambda: 42)
    run = function.submit()
    assert 42 == run.result(PATIENCE)
    follower = shared._runtime.dispatcher.follower
    shared._runtime.close()
    follower._take_all()
    follower._abandon(run, "replaced")
    assert [] == caplog.messages


def test_what_cannot_be_taken_up_is_tried_again_once_for_all(shared, monkeypatch):
    """Each run that was left had a timer of its own, at which all were tried: their number grew without end."""
    run = shared.background(executor="thread", name="f")(lambda: 42).submit()
    assert 42 == run.result(PATIENCE)
    follower, timers = shared._runtime.dispatcher.follower, shared._runtime.service.timers
    when(lambda: follower._queue.job(run.id))
    left = [follower._queue.job(run.id)] * 9

    def fails(row):
        raise StoreError("The disk is full.")

    monkeypatch.setattr(follower._queue, "orphans", lambda: left)
    monkeypatch.setattr(follower, "_take_over", fails)
    before = len(timers)
    follower._take_all()
    assert len(timers) <= before + 1


@pytest.mark.parametrize("store", ["memory", "file"])
def test_whatever_happens_each_run_ends_once(store, real, shared, ledger):
    """Runs of all kinds, shared and not, that fail, are tried again, time out and are cancelled from eight threads."""
    ps = real if store == "memory" else shared

    def body(number):
        for step in panel_schedule.track(range(number % 4)):
            panel_schedule.current_run().publish(step)
            time.sleep(0.001)
        if number % 3 == 0:
            raise OSError(number)
        if number % 17 == 0:
            time.sleep(0.2)
        return number

    functions = [
        ps.background(executor=kind, ttl=ttl, name=f"{kind} {ttl}", timeout="100ms", retry=Retry(2, backoff="1ms"))(
            as_coroutine(body) if kind == "loop" else body
        )
        for kind in KINDS
        for ttl in (None, "20ms")
    ]
    runs = []

    def work(thread):
        chance = random.Random(thread)
        for _ in range(40):
            run = chance.choice(functions).submit(chance.randrange(20))
            runs.append(run)
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.004)
                run.cancel()

    assert not hammer(8, work)
    for run in runs:
        with suppress(OSError, RunCancelled, RunTimedOut):
            run.result(PATIENCE * 2)
        assert run.state.final
    assert {1} == {ledger[run] for run in runs}
    assert 1 == max(ledger.values())
    assert 0 == len([*ps._runtime.dispatcher.executions])
    if store == "file":
        queue = ps._runtime.service.store.queue
        when(lambda: all(row.state.final for each in functions for row in queue.jobs(each.name)))


# ------------------------------------------------------------ registering


def test_the_same_function_twice_is_one(core, tmp_path):
    source = "def job(): return 1\nmade = ps.background(job)"
    first, second = {"ps": core.ps, "__name__": "tasks"}, {"ps": core.ps, "__name__": "tasks"}
    exec(compile(source, "tasks.py", "exec"), first)
    exec(compile(source, "tasks.py", "exec"), second)
    assert first["made"] is second["made"]


def test_another_function_under_a_taken_name_is_an_error(core):
    core.ps.background(name="job")(lambda: 1)

    def job():
        pass

    with pytest.raises(RegistrationError, match=r"Job 'job' is defined twice: first as .*test_background.py:\d+"):
        core.ps.background(job)


def test_what_cannot_be_a_job(core):
    background = core.ps.background
    with pytest.raises(RegistrationError, match="no name of its own: give the job one, with name="):
        background(lambda: 1)
    with pytest.raises(RegistrationError, match="Only a function can be made a job"):
        background(executor="thread")(42)

    def served():
        pass

    served.__module__ = "bokeh_app_123"
    with pytest.raises(RegistrationError, match="Job 'served' is defined in the served script itself"):
        background(served)
    with pytest.raises(RegistrationError, match=r"is no plain function; job\.function is"):
        background(background(name="job")(lambda: 1))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"executor": "cluster"}, RegistrationError, "executor='cluster' is unknown"),
        ({"timeout": "soon"}, TriggerError, "timeout"),
        ({"retry": -1}, RegistrationError, "retry=-1 must be a count"),
        ({"durable": "yes"}, RegistrationError, "durable='yes' must be True or False"),
        ({"ttl": "never"}, TriggerError, "ttl"),
        ({"ttl": "2d"}, TriggerError, "ttl='2d' is longer than result_ttl='1d'"),
        ({"retrigger": "both"}, RegistrationError, "retrigger='both' is unknown; accepted are 'replace'"),
        ({"on_session_end": "stay"}, RegistrationError, "on_session_end='stay' is unknown"),
    ],
)
def test_an_option_that_means_nothing_is_refused_with_its_place(core, options, kind, words):
    with pytest.raises(kind, match=rf"@ps.background in .*test_background.py:\d+: .*{words}"):
        core.ps.background(**options)
    with pytest.raises(kind, match=rf"Job 'job': .*{words}"):
        core.ps.background(**options, name="job")


def test_durable_without_a_store_is_warned_of(core, caplog):
    function = core.ps.background(executor="thread", durable=True, name="f")(lambda: 42)
    (message,) = messages(caplog)
    assert message.startswith("Job 'f' is durable=True, and the store is in memory")
    run = function.submit()
    core.go()
    assert 42 == run.result()


def test_options_that_do_not_fit_the_function(core):
    async def coroutine():
        pass

    def plain():
        pass

    for options, function, words in (
        ({"executor": "loop"}, plain, "Job 'plain': a plain function would hold the event loop"),
        ({"executor": "thread"}, coroutine, "Job 'coroutine': an async function runs on an event loop"),
        ({"key": len}, plain, "Job 'plain': key= says which calls share a result, and without ttl= none do"),
        ({"key": "n", "ttl": "1h"}, plain, "Job 'plain': key='n' must be a function"),
    ):
        with pytest.raises(RegistrationError, match=words):
            core.ps.background(**options)(function)


@pytest.mark.parametrize("mock", [Mock(), MagicMock()], ids=lambda mock: type(mock).__name__)
def test_a_mock_is_an_argument_like_any_other(core, mock):
    """Though it has every attribute, a reference's, too."""
    run = core.ps.background(executor="thread", name="f")(lambda value: value is mock).submit(mock)
    core.go()
    assert run.result() is True


def test_options_go_by_name(core):
    with pytest.raises(RegistrationError, match=r"options go by name, as in timeout='10m', and '10m' is no function"):
        core.ps.background("10m")


def test_a_method_is_made_a_job_by_its_object(core):
    class Report:
        def write(self, month):
            return f"{month} written"

    with pytest.raises(RegistrationError, match=r"Job .write. is a method.*\(obj\.write\)"):
        core.ps.background(Report.write)
    run = core.ps.background(executor="thread")(Report().write).submit("May")
    core.go()
    assert "May written" == run.result()


def test_a_reference_is_for_a_job_and_not_for_submit(core):
    @core.ps.background(executor="thread")
    def double(number):
        return 2 * number

    slider = pn.widgets.IntSlider(value=2)
    with pytest.raises(TypeError, match=r"Job 'double': argument 'number' is a reference \(IntSlider\).*double\.job\("):
        double.submit(slider)
    run = double.job(slider).start()
    core.go()
    assert 4 == run.result()


def test_a_job_shows_runs_of_its_own_function_only(core):
    first, second = (core.ps.background(executor="thread", name=name)(lambda: 42) for name in ("first", "second"))
    with pytest.raises(TypeError, match="Job 'second' cannot show a run of 'first'"):
        second.job().attach(first.submit())


# ------------------------------------------------------------ what a function may use


def test_a_function_that_names_others(real):
    """Plain calls of itself and of another one; a task and the store are read, and no run is started there."""

    @real.background
    def double(number):
        return 2 * number

    @real.background
    def count(number):
        return 0 if number == 0 else 1 + count(number - 1)

    real.store["rate"] = 3
    rates = real.schedule(period="1h", name="rates")(lambda: {"eur": 7})
    rates.refresh().result(PATIENCE)
    store = real.store

    @real.background
    def use():
        try:
            double.runs()
        except AttributeError as error:
            refused = str(error)
        store["rate"] += rates()["eur"]
        return double(4), count(5), refused

    eight, five, refused = use.submit().result(PATIENCE)
    assert (8, 5, 10) == (eight, five, store["rate"])
    assert refused.startswith("'runs' of job 'double' is the server's")


# ------------------------------------------------------------ without a server

SCRIPT = """
    import atexit, os, time
    # Called last: what comes then is the interpreter's own end, which with Panel takes a second.
    atexit.register(lambda: print(time.time(), flush=True))
    import panel_schedule as ps

    @ps.schedule(period="1h")
    def rates():
        return 7

    @ps.background
    def work(number):
        for _ in ps.track(range(2)):
            pass
        yield os.getpid()
        return number * 2

    @ps.background
    def names():
        ps.store["b"] = ps.store["a"] + 1
        try:
            work.runs()
        except AttributeError as error:
            refused = str(error)
        return rates(), work.function is not None, refused

    @ps.background(executor="loop")
    async def coroutine():
        return 5

    @ps.background(executor="thread", ttl="1h")
    def thread():
        return 6

    if __name__ == "__main__":
        rates.refresh().result()
        ps.store["a"] = 1
        run = work.submit(4)
        print(run.result(30), run.percent, run.partials[0] != os.getpid())
        print(coroutine.submit().result(30), thread.submit().result(30), thread.submit().result(30))
        print(names.submit().result(30), ps.store["b"])
        print(run.partials[0], time.time(), flush=True)
"""


@pytest.mark.alone
def test_everything_works_in_a_plain_script(tmp_path):
    """And it ends within a second, with its worker processes."""
    path = tmp_path / "script.py"
    path.write_text(dedent(SCRIPT))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert ("", 0) == (done.stderr, done.returncode)
    first, second, third, last, ended = done.stdout.splitlines()
    assert ("8 100 True", "5 6 6") == (first, second)
    assert third.startswith("(7, True, \"'runs' of job 'work' is the server's")
    assert third.endswith(" 2")
    pid, at = last.split()
    assert float(ended) - float(at) < 1.0
    when(lambda: not psutil.pid_exists(int(pid)))


def test_a_script_that_ends_before_its_job_takes_it_along(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(
        dedent(
            """
            import time, pathlib
            import panel_schedule as ps
            ps.config.grace_period = 0.2

            @ps.background
            def sleep():
                import os
                yield os.getpid()
                time.sleep(60)

            if __name__ == "__main__":
                run = sleep.submit()
                while not run.partials:
                    time.sleep(0.01)
                print(run.partials[0], time.time(), flush=True)
            """
        )
    )
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60, check=False)
    pid, at = done.stdout.split()
    assert ("", 0) == (done.stderr, done.returncode)
    assert time.time() - float(at) < 3.0
    when(lambda: not psutil.pid_exists(int(pid)))


# ------------------------------------------------------------ functions that hang


def test_jobs_that_hang_and_were_cancelled_keep_no_place(real):
    """One visitor clicks Run and Cancel; another one's job runs all the same."""
    hanging = [Waits() for _ in range(6)]
    deaf = real.background(executor="thread", name="deaf")(lambda number: hanging[number]())
    quick = real.background(executor="thread", name="quick")(lambda: "done")
    for number, gate in enumerate(hanging):
        run = deaf.submit(number)
        gate.begun()
        run.cancel()
    assert "done" == quick.submit().result(PATIENCE)
    for gate in hanging:
        gate.go.release()


def test_tasks_that_hang_and_have_timed_out_keep_no_place_and_a_status_names_them(real, runtime):
    """Each of them stays blocked itself: it does not overlap itself."""
    gates = [Waits() for _ in range(5)]
    runs = []
    for number, gate in enumerate(gates):
        task = real.schedule(period="1h", first_run="skip", timeout=0.05, name=f"deaf{number}")(gate)
        runs.append(task.refresh())
        gate.begun()
    innocent = real.schedule(period="1h", first_run="skip", name="innocent")(lambda: 1)
    for run in runs:
        with pytest.raises(RunTimedOut):
            run.result(PATIENCE)
    assert 1 == innocent.refresh().result(PATIENCE)
    assert tuple(f"Task 'deaf{number}'" for number in range(5)) == innocent.status.hanging
    for gate in gates:
        gate.go.release()
    when(lambda: innocent.status.hanging == ())


# ------------------------------------------------------------ jobs that wait for jobs


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_jobs_that_wait_for_jobs_lend_their_places(real, kind):
    """As many as there are places wait, and what they wait for runs."""
    child = real.background(executor=kind, name="child")(lambda number: number)
    parent = real.background(executor=kind, name="parent")(lambda number: child.submit(number).result())
    runs = [parent.submit(number) for number in range(5)]
    assert list(range(5)) == [run.result(PATIENCE) for run in runs]


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_coroutines_that_wait_for_jobs_lend_the_place_of_their_thread(real, kind):
    """Several at once; it is theirs again when none of them waits any more."""
    child = real.background(executor=kind, name="child")(lambda number: number)

    async def both(number):
        return await asyncio.gather(child.submit(number), child.submit(number + 1))

    function = both if kind == "process" else lambda number: asyncio.run(both(number))
    parent = real.background(executor=kind, name="parent")(function)
    runs = [parent.submit(number) for number in range(5)]
    assert [[number, number + 1] for number in range(5)] == [run.result(PATIENCE) for run in runs]


def test_tasks_and_memoized_functions_in_processes_submit_jobs(real):
    child = real.background(name="child")(lambda number: number)
    parent = real.background(executor="thread", name="parent")(lambda number: child.submit(number).result())
    task = real.schedule(period="1h", first_run="skip", executor="process", name="task")(
        lambda: parent.submit(7).result()
    )
    memo = real.memoize(executor="process", name="memo")(lambda number: parent.submit(number).result())
    assert (7, 8) == (task.refresh().result(PATIENCE), memo(8))


def test_a_run_that_a_worker_process_has_started_can_be_followed_there(real):
    """Its error, state and progress are the server's."""

    @real.background(name="child")
    def child(number):
        progress(1, 4, "a quarter")
        raise ValueError(f"mine {number}")

    @real.background(name="parent")
    def parent():
        run = child.submit(1)
        try:
            run.result()
        except ValueError as error:
            return str(error), str(run.state), run.percent, run.message, run.attempt

    assert ("mine 1", "failed", 25, "a quarter", 1) == parent.submit().result(PATIENCE)


def test_a_run_that_a_worker_process_has_started_can_be_cancelled_there(real):
    child = real.background(executor="loop", name="child")(endless)

    @real.background(name="parent")
    def parent():
        run = child.submit()
        try:
            run.result(0.01)
        except TimeoutError as error:
            text = str(error)
        run.cancel("no need")
        return text, str(run.state), run.reason

    text, *ended = parent.submit().result(PATIENCE)
    assert "The run has not ended within 0.01 s; it goes on." == text
    assert ["cancelled", "no need"] == ended


def test_what_a_worker_process_submits_is_checked_as_elsewhere(real):
    """A wrong argument is an error where it was given; there is nothing to be had of another function's name."""
    child = real.background(executor="thread", name="child")(lambda number: number)
    parent = real.background(name="parent")(lambda: child.submit(1, 2))
    with pytest.raises(TypeError, match="Job 'child': too many positional arguments"):
        parent.submit().result(PATIENCE)


def test_a_job_whose_parent_is_cancelled_keeps_no_thread_of_it(real, runtime):
    """Its worker process goes, and so does the thread that waited for it."""
    child = real.background(executor="loop", name="child")(endless)
    parent = real.background(name="parent")(lambda: child.submit().result())
    run = parent.submit()
    when(lambda: [each.state for each in child.runs()] == ["running"])
    run.cancel()
    when(lambda: not runtime.service.executors["job-process"].busy)
    child.runs()[0].cancel()


# ------------------------------------------------------------ what is kept has a bound


@pytest.fixture
def small():
    """Keeps a megabyte of results, and takes three runs of a function."""
    made = make(max_result_bytes=1_000_000, max_queued=3)
    yield Front(made)
    made.grace = 0.0
    made.close()


def test_what_ended_runs_keep_is_bounded_by_bytes_over_all_functions(small):
    """The oldest go first, and who holds one has it all the same."""
    one = small.background(executor="thread", name="one")(lambda: np.ones(50_000))
    other = small.background(executor="thread", name="other")(lambda: np.ones(50_000))
    runs = []
    for _ in range(3):
        for function in (one, other):
            runs.append(function.submit())
            runs[-1].result(PATIENCE)

    assert [runs[4]] == one.runs()
    assert [runs[5]] == other.runs()
    assert 50_000 == runs[0].result().sum()


@pytest.mark.parametrize("fails", [False, True])
def test_partial_results_and_errors_count(small, fails):
    class Large(Exception):
        pass

    def shows():
        for _ in range(4):
            yield np.ones(20_000)
        if fails:
            raise Large(np.ones(20_000))

    function = small.background(executor="thread", name="shows")(shows)
    for _ in range(4):
        run = function.submit()
        with suppress(Large):
            run.result(PATIENCE)
    assert [run] == function.runs()


def test_the_newest_run_is_kept_however_large(small):
    function = small.background(executor="thread", name="one")(lambda: np.ones(500_000))
    runs = [function.submit() for _ in range(2)]
    for run in runs:
        run.result(PATIENCE)
    assert 1 == len(function.runs())


def test_a_run_that_goes_on_for_ever_keeps_its_newest_partial_results(small, caplog):
    gate = Waits()

    def endless_search():
        for number in range(40):
            yield np.full(20_000, number)
        yield gate()

    run = small.background(executor="thread", name="search")(endless_search).submit()
    gate.begun()
    kept = [each is not None for each in run.partials]
    gate.go.release()
    run.result(PATIENCE)
    assert [False] * 34 + [True] * 6 == kept
    assert 41 == len(run.partials)
    (line,) = [each.message for each in caplog.records]
    assert line.startswith("Job 'search': its partial results take more than ps.config.max_result_bytes=1000000")


def test_a_run_too_many_is_not_taken(small, caplog):
    """It is skipped, and says why; when there is room again the next one is taken."""
    gate = Waits()
    function = small.background(executor="thread", name="slow")(gate)
    runs = [function.submit() for _ in range(3)]
    late = function.submit()

    assert (RunState.SKIPPED, "too many wait") == (late.state, late.reason)
    with pytest.raises(RunSkipped, match="3 of its runs are under way or wait"):
        late.result(PATIENCE)
    for _ in runs:
        gate.go.release()
    for run in runs:
        run.result(PATIENCE)
    gate.go.release()
    assert 4 == function.submit().result(PATIENCE)


def test_who_cancels_just_as_the_run_joins_another_ends_it_once(core, ledger, monkeypatch):
    """The one that was cancelled came to life again, and ended a second time."""
    stops, welcome = [], Waiters.welcome

    def seen(self, execution, waiter):
        stops.append(waiter._stop)  # what another thread has read already, which waits for the lock
        welcome(self, execution, waiter)

    monkeypatch.setattr(Waiters, "welcome", seen)
    function = core.ps.background(executor="thread", ttl="1h", name="f")(lambda: 1)
    run, other = function.submit(), function.submit()
    for stop, each in zip(stops, (run, other), strict=True):
        stop(each, "cancelled")
    core.go()
    assert {RunState.CANCELLED} == {run.state, other.state}
    assert 1 == max(ledger.values())
