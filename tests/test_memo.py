"""Memoized functions in one process: one computation for all who ask for the same, and how long it lasts (2.4)."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from datetime import timedelta
from functools import partial, singledispatch
from unittest.mock import MagicMock, Mock

import numpy as np
import pandas as pd
import panel as pn
import pytest
from bokeh.document import Document
from bokeh.plotting import figure
from panel.io.state import set_curdoc

from core import PATIENCE, messages
from panel_schedule.cache.computation import Computation
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import (
    ArgumentUnkeyable,
    NotReady,
    RegistrationError,
    RunCancelled,
    RunFailed,
    TriggerError,
    ValueRefused,
    WouldBlock,
)
from panel_schedule.functions.run import RunState, current_run
from panel_schedule.hashing import content
from panel_schedule.hashing.fingerprint import fingerprint
from panel_schedule.runtime import Runtime
from panel_schedule.testing.contracts.tools import hammer


class Counted:
    """A function that counts its calls, and gives what it is told to."""

    def __init__(self, gives=lambda *args, **kwargs: args):
        self.calls = 0
        self.gives = gives
        self.__name__ = "f"

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.gives(*args, **kwargs)


class Gate:
    """Lets a function in a thread of its own tell that it is there, and wait for the test."""

    def __init__(self):
        self.calls, self.there, self.go = 0, threading.Semaphore(0), threading.Semaphore(0)
        self.__name__ = "gate"

    def __call__(self, *args):
        self.calls += 1
        self.there.release()
        assert self.go.acquire(timeout=PATIENCE)
        return self.calls

    def begun(self):
        assert self.there.acquire(timeout=PATIENCE)


@pytest.fixture
def runtime():
    config = Config({})
    config.store, config.max_threads, config.max_processes = "memory://", 2, 1
    made = Runtime(config)
    yield made
    made.grace = 0.0
    made.close()


@pytest.fixture
def ps(runtime):
    """The package with real threads and processes."""
    return Front(runtime)


# ------------------------------------------------------------ hits and misses


def test_equal_calls_are_computed_once(ps):
    function = Counted(lambda a, b=2: a * b)

    def f(a, b=2):
        return function(a, b)

    f = ps.memoize(f)
    assert [6, 6, 6, 8] == [f(3), f(3, 2), f(b=2, a=3), f(4)]
    assert 2 == function.calls


def test_what_looks_alike_is_told_apart(ps):
    """What other caches mix up: types, and where one argument ends and the next begins."""
    function = Counted()
    f = ps.memoize(name="f")(lambda *args: function(*args))
    for args in [(1,), (1.0,), (True,), ("1",), ("ab", "c"), ("a", "bc"), ([1, 2], 3), ([1], 2, 3)]:
        assert args == f(*args)
        assert [type(each) for each in args] == [type(each) for each in f(*args)]
    assert 8 == function.calls


def test_a_changed_cell_of_a_large_array_is_another_argument(ps):
    f = ps.memoize(name="f")(lambda array: float(array.sum()))
    array = np.zeros(1_000_000)
    assert 0.0 == f(array)
    array[123_457] = 1.0
    assert 1.0 == f(array)


def test_a_hit_gives_the_very_object(ps):
    f = ps.memoize(name="f")(lambda n: [n])
    assert f(1) is f(1)


class Connection:
    """A plain object, which an argument that counts would be a copy of."""

    def __init__(self, name):
        self.name, self.asked = name, []

    def ask(self, what):
        self.asked.append(what)
        return f"{self.name} says {what}"


@pytest.mark.parametrize("retry", [0, 1])
def test_what_is_ignored_is_the_first_callers_for_all_who_share(ps, retry):
    """The very object, also where a second attempt would get it; the text of the call does not tell it."""
    f = ps.memoize(name="f", ignore="connection", retry=retry)(lambda connection, what: connection.ask(what))
    first, second = Connection("first"), Connection("second")
    assert ["first says a", "first says a", "second says b"] == [f(first, "a"), f(second, what="a"), f(second, "b")]
    assert (["a"], ["b"]) == (first.asked, second.asked)
    assert ["f(..., 'b')", "f(..., 'a')"] == list(ps.store.entries(f))


def test_a_parameter_that_begins_with_an_underscore_is_ignored(ps):
    f = ps.memoize(name="f")(lambda what, _connection=None: _connection.ask(what))
    assert "first says a" == f("a", Connection("first")) == f("a", _connection=Connection("second")) == f("a")


@pytest.mark.slow
def test_an_ignored_argument_that_cannot_travel_is_told(ps):
    f = ps.memoize(name="f", ignore=["lock"], executor="process")(lambda lock, what: what)
    with pytest.raises(ValueRefused, match=r"Memoized function 'f': .*lock"):
        f(threading.Lock(), "a")


async def test_an_ignored_argument_of_a_coroutine_is_the_object_itself(ps):
    connection = Connection("first")

    @ps.memoize(ignore=["connection"])
    async def f(connection, what):
        return connection.ask(what)

    assert "first says a" == await f(connection, "a") == await f.submit(connection=Connection("second"), what="a")
    assert ["a"] == connection.asked


def test_to_ignore_another_parameter_forgets_the_answers_of_a_store(ps):
    """They lie under keys of other parameters, which may look alike."""

    def f(a, b):
        return a, b

    one, other = (ps.memoize(name=name, ignore=ignore)(f) for name, ignore in (("one", "a"), ("other", "b")))
    assert one._key((1, 2), {}) == other._key((2, 1), {})
    assert one.digest(one._key((1, 2), {})) != other.digest(other._key((2, 1), {}))


def test_a_hasher_is_asked_without_a_session(ps, monkeypatch):
    monkeypatch.setattr(content, "_hashers", singledispatch(content._no_hasher))
    seen = []
    ps.hasher(Connection, lambda connection: seen.append(pn.state.curdoc) or connection.name)
    f = ps.memoize(name="f")(lambda connection: connection.name)
    with set_curdoc(Document()):
        assert ["a", "a", "b"] == [f(Connection("a")), f(Connection("a")), f(Connection("b"))]
    assert [None] * 3 == seen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Connection", len), "it takes a class first"),
        ((list[int], len), "it takes a class first"),
        ((Connection, "url"), "it takes a plain function second"),
        ((Connection, asyncio.sleep), "it takes a plain function second"),
        ((str, len), r"ps.hasher\(str, ...\): plain data counts in full. Name the class"),
        ((object, id), r"ps.hasher\(object, ...\): plain data counts in full"),
    ],
)
def test_a_hasher_that_means_nothing_is_refused(ps, arguments, message):
    with pytest.raises(RegistrationError, match=message):
        ps.hasher(*arguments)


def test_none_is_an_answer(ps):
    function = Counted(lambda: None)
    f = ps.memoize(name="f")(function)
    assert [None, None] == [f(), f()]
    assert 1 == function.calls


def test_key_says_what_counts(ps):
    """An argument that it leaves out makes no difference."""
    function = Counted(lambda connection, region: f"{region} by {connection}")
    f = ps.memoize(name="f", key=lambda connection, region: region.lower())(function.gives)
    assert "north by first" == f("first", "north") == f("second", "NORTH")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, 2), TypeError, r"f\(\) takes 1 positional argument but 2 were given"),
        ((open(os.devnull),), ArgumentUnkeyable, r"f\(\): argument a .*key=: a function of the same arguments"),  # noqa: SIM115
    ],
)
def test_a_call_that_means_nothing_says_so(ps, arguments, error, message):
    f = ps.memoize(name="f")(lambda a: a)
    for call in (f, f.submit, f.refresh, f.invalidate, f.entry):
        with pytest.raises(error, match=message.replace("f\\(\\) takes", ".*takes")):
            call(*arguments)


def test_a_model_is_no_answer(ps):
    """It belongs to one document; nothing is kept of it."""
    f = ps.memoize(name="f")(lambda: figure())
    with pytest.raises(ValueRefused, match=r"Memoized function 'f': value is a bokeh\.plotting"):
        f()
    assert f.entry() is None


def test_the_plain_function_is_at_hand(ps):
    def plain(number):
        """Doc."""
        return number

    f = ps.memoize(plain)
    assert (plain, plain, "plain", "Doc.") == (f.function, f.__wrapped__, f.__name__, f.__doc__)
    assert "<Memoized 'plain'>" == repr(f)


# ------------------------------------------------------------ one computation


def test_twenty_threads_cause_one_execution(ps):
    gate = Gate()
    f = ps.memoize(gate)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(f("a"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    gate.begun()
    gate.go.release()
    for thread in threads:
        thread.join(PATIENCE)
    assert ([1] * 20, 1) == (answers, gate.calls)


async def test_twenty_coroutines_cause_one_execution(ps):
    calls, go = [], asyncio.Event()

    @ps.memoize
    async def f(number):
        calls.append(number)
        await go.wait()
        return number + 1

    callers = [asyncio.create_task(f(1)) for _ in range(20)]
    while not calls:
        await asyncio.sleep(0)
    go.set()
    assert [2] * 20 == await asyncio.gather(*callers)
    assert [1] == calls
    assert 2 == await f(1)


async def test_threads_coroutines_and_runs_share_one(ps):
    gate = Gate()
    f = ps.memoize(gate)
    run = f.submit("a")
    gate.begun()
    threads = [asyncio.to_thread(f, "a") for _ in range(3)]
    tasks = [asyncio.ensure_future(each) for each in (*threads, f.submit("a"), f.refresh("a"))]
    await asyncio.sleep(0)
    gate.go.release()
    assert [1] * 5 == await asyncio.gather(*tasks)
    assert (1, 1) == (await run, gate.calls)


def test_a_failure_is_shared_and_not_kept(ps):
    gate = Gate()

    @ps.memoize
    def f():
        gate()
        raise OSError(f"attempt {gate.calls}")

    runs = [f.submit() for _ in range(5)]
    gate.begun()
    gate.go.release(2)
    for run in runs:
        with pytest.raises(OSError, match="attempt 1"):
            run.result(PATIENCE)
    with pytest.raises(OSError, match="attempt 2"):
        f()


def test_who_gives_up_ends_nothing_for_the_others(ps):
    gate = Gate()
    f = ps.memoize(gate)
    first, second = f.submit(), f.submit()
    gate.begun()
    first.cancel()
    with pytest.raises(RunCancelled):
        first.result(PATIENCE)
    gate.go.release()
    assert 1 == second.result(PATIENCE)


async def test_a_cancelled_coroutine_ends_nothing_for_the_others(ps):
    go, begun = asyncio.Event(), asyncio.Event()

    @ps.memoize
    async def f():
        begun.set()
        await go.wait()
        return 42

    first, second = asyncio.create_task(f()), asyncio.create_task(f())
    await begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    go.set()
    assert 42 == await second


def test_what_nobody_waits_for_any_more_never_begins(core):
    """But what has begun is finished: its answer is good for the next one who asks."""
    function = core.held("f")
    f = core.ps.memoize(name="f")(lambda number: function())
    begun, queued = f.submit(1), f.submit(2)
    begun.cancel()
    assert RunState.CANCELLED is begun.state
    core.go()
    assert 1 == function.flying
    queued.cancel()
    function.finish("late")
    core.go()
    assert 1 == function.calls
    assert "late" == f(2)


def test_a_refresh_goes_on_when_its_caller_forgets_it(core):
    """As when a scheduled task warms the answers up."""
    function = Counted()
    f = core.ps.memoize(name="f")(lambda n: function(n))
    f.refresh(1)
    gc.collect()
    core.go()
    assert 1 == function.calls
    assert core.runtime.memos["f"].entry(1).value == (1,)


@pytest.mark.slow
def test_ctrl_c_in_the_thread_that_computes_leaves_the_others_their_answer(ps):
    """The function is called anew, in a thread of the package's."""
    script = """
        import os, signal, threading, panel_schedule as ps
        calls, joined = [], threading.Event()

        @ps.memoize
        def f():
            calls.append(threading.current_thread().name)
            if len(calls) == 1:
                joined.run = f.submit()
                os.kill(os.getpid(), signal.SIGINT)
                threading.Event().wait(10)
            return "answer"

        try:
            f()
        except KeyboardInterrupt:
            print("interrupted", joined.run.result(10), len(calls))
    """
    source = "\n".join(line[8:] for line in script.splitlines())
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert "interrupted answer 2\n" == done.stdout, done.stderr


# ------------------------------------------------------------ functions that call others


def test_nested_calls_need_no_thread_of_their_own(ps):
    """Two threads that wait for what is queued behind them would wait for ever; so they compute it."""
    inner = ps.memoize(name="inner")(lambda n: n * 10)
    meet = threading.Barrier(2)

    @ps.memoize
    def outer(n):
        meet.wait(PATIENCE)
        return inner(n) + 1

    runs = [outer.submit(n) for n in (1, 2)]
    assert [11, 21] == [run.result(PATIENCE) for run in runs]


def test_what_is_queued_is_computed_by_who_waits_for_it(ps):
    """All threads of the pool are taken, by functions that want what has no thread."""
    gates = [threading.Event(), threading.Event()]

    inner = ps.memoize(name="inner")(lambda: "inner")

    @ps.memoize
    def outer(n):
        gates[0].set()
        assert gates[1].wait(PATIENCE)
        return inner()

    runs = [outer.submit(1), outer.submit(2)]
    assert gates[0].wait(PATIENCE)
    queued = inner.submit()
    gates[1].set()
    assert ["inner"] * 3 == [run.result(PATIENCE) for run in (*runs, queued)]


@pytest.mark.parametrize("form", ["plain", "async"])
def test_functions_that_wait_for_each_other_are_an_error(ps, form):
    if form == "plain":

        @ps.memoize
        def first():
            return second()

        @ps.memoize
        def second():
            return first()
    else:

        @ps.memoize
        async def first():
            return await second()

        @ps.memoize
        async def second():
            return await first()

    with pytest.raises(WouldBlock, match=r"second\(\) waits for first\(\), which waits for it"):
        first.submit().result(PATIENCE)


def test_functions_in_two_threads_that_wait_for_each_other_are_an_error(ps):
    meet = threading.Barrier(2)

    @ps.memoize
    def first():
        meet.wait(PATIENCE)
        return second()

    @ps.memoize
    def second():
        meet.wait(PATIENCE)
        return first()

    errors = []
    for run in (first.submit(), second.submit()):
        with suppress(WouldBlock):
            run.result(PATIENCE)
        errors.append(run.error)
    assert any(isinstance(error, WouldBlock) for error in errors)


def test_the_function_sees_its_run_and_no_session(ps):
    seen = []
    f = ps.memoize(name="f")(lambda: seen.append((current_run().task, pn.state.curdoc)))
    f()
    f.refresh().result(PATIENCE)
    assert [("f", None)] * 2 == seen
    assert current_run() is None


# ------------------------------------------------------------ the forms of functions


def test_of_a_generator_the_answer_is_what_it_returns_or_its_last_item(ps):
    @ps.memoize
    def counted(n, last=None):
        yield from range(n)
        return last

    assert [2, "last", None] == [counted(3), counted(3, last="last"), counted(0)]


async def test_of_an_async_generator_the_answer_is_its_last_item(ps):
    @ps.memoize
    async def counted(n):
        for i in range(n):
            yield i

    assert 2 == await counted(3)


async def test_an_async_function_gives_a_coroutine(ps):
    """So that tasks can be made of it, and ``pn.bind`` awaits it."""

    @ps.memoize
    async def f(n):
        return n + 1

    assert asyncio.iscoroutinefunction(f)
    assert 2 == await asyncio.create_task(f(1))
    widget = pn.widgets.IntInput(value=5)
    assert 6 == await pn.bind(f, widget)()


def test_an_async_function_needs_no_loop_of_the_callers(ps):
    async def f(n):
        return n + 1

    f = ps.memoize(f)
    assert 2 == f.submit(1).result(PATIENCE)
    assert 2 == asyncio.run(f(1))


def test_a_function_in_a_worker_process(ps):
    f = ps.memoize(name="pid", executor="process")(lambda: __import__("os").getpid())
    assert f() not in (0, os.getpid())
    assert f() == f.submit().result(PATIENCE)


def test_a_worker_process_asks_the_server(ps, runtime):
    """One computation for both; and a computation in a worker that waits for another one lends its place."""
    calls = Counted(lambda n: n * 10)
    inner = ps.memoize(name="inner", executor="process")(lambda n: n * 10)
    here = ps.memoize(name="here")(calls.gives)
    outer = ps.memoize(name="outer", executor="process")(lambda n: inner(n) + here(n))
    job = ps.background(name="job")(lambda n: outer(n) + 1)
    assert 41 == job.submit(2).result(6 * PATIENCE)  # the workers come last where a machine is busy
    assert [20, 20, 40] == [memo.entry(2).value for memo in (inner, here, outer)]


def test_an_async_function_is_awaited_in_a_worker_process(ps):
    async def inner(n):
        return n * 10

    inner = ps.memoize(inner)

    async def outer(n):
        return await inner(n) + 1

    outer = ps.memoize(executor="process")(outer)
    assert 21 == outer.submit(2).result(6 * PATIENCE)


# ------------------------------------------------------------ on an event loop


async def test_a_miss_on_a_loop_warns_once(ps, caplog):
    """The loop waits: there is no other way to give a plain caller the answer."""
    names = []
    f = ps.memoize(name="f")(lambda n: names.append(threading.current_thread()) or n)
    assert [1, 2, 1] == [f(1), f(2), f(1)]
    (message,) = messages(caplog)
    assert "f.view(...)" in message
    assert "await f.submit(...)" in message
    assert threading.current_thread() not in names


async def test_large_arguments_are_keyed_off_the_loop(ps):
    """And what is wrong with them is the run's."""
    f = ps.memoize(name="f")(lambda array: float(array.sum()))
    names = []
    local = f.keys.local
    f.keys.local = lambda *call: names.append(threading.current_thread()) or local(*call)
    assert 1e6 == await f.submit(np.ones(1_000_000))
    assert threading.current_thread() not in names
    with pytest.raises(ArgumentUnkeyable):
        await f.submit([np.ones(1_000_000), threading.Lock()])


# ------------------------------------------------------------ lifetimes


def test_an_answer_lasts_for_its_ttl_from_the_end_of_its_computation(core):
    function = core.held("f")
    f = core.ps.memoize(ttl="1m", name="f")(function)
    run = f.submit()
    core.go()
    core.clock.advance("10m")
    function.finish("first")
    core.clock.advance("59s")
    assert "first" == f() == run.result()
    core.clock.advance("1s")
    f.submit()
    core.go()
    assert 2 == function.calls


def test_without_a_ttl_it_lasts_for_ever(core):
    function = Counted()
    f = core.ps.memoize(name="f")(function)
    f()
    core.clock.advance("9000d")
    f()
    assert 1 == function.calls


def test_a_lifetime_may_be_said_of_each_answer(core):
    """As `ttl` takes it; None is for ever."""
    answers = iter([("1m", 1), (timedelta(minutes=10), 2), (None, 3), ("never", 4)])
    f = core.ps.memoize(ttl=lambda answer: answer[0], stale_if_error=False, name="f")(lambda: next(answers))
    assert 1 == f()[1]
    core.clock.advance("59s")
    assert 1 == f()[1]
    core.clock.advance("1s")
    assert 2 == f()[1]
    core.clock.advance("9m")
    assert 2 == f()[1]
    core.clock.advance("1m")
    assert 3 == f()[1]
    core.clock.advance("9000d")
    assert 3 == f()[1]


def test_a_lifetime_of_an_answer_that_means_nothing_is_told(core):
    f = core.ps.memoize(ttl=lambda answer: answer, name="f")(lambda n: n)
    with pytest.raises(TriggerError, match="ttl=0 is no duration") as caught:
        f(0)
    assert ["That comes of the ttl= of memoized function 'f', for an answer that was computed."] == (
        caught.value.__notes__
    )
    assert core.ps.store.entries(f) == {}


def test_what_is_not_to_be_kept_is_for_those_who_wait(core):
    function = core.held("f")
    f = core.ps.memoize(keep=lambda answer: answer is not None, name="f")(function)
    first, second = f.submit(), f.submit()
    core.go()
    function.finish(None)
    assert [None, None] == [first.result(), second.result()]
    assert (1, None, {}) == (function.calls, f.entry(), core.ps.store.entries(f))
    third = f.submit()
    core.go()
    function.finish("answer")
    assert "answer" == third.result() == f()
    assert 2 == function.calls


def test_what_was_kept_before_goes_with_one_that_is_not(core):
    """Else who asks next got an answer that is older than the last one."""
    answers = iter([1, None, OSError("no database")])

    @core.ps.memoize(ttl="1m", max_stale="1h", keep=lambda answer: answer is not None)
    def f():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert 1 == f()
    core.clock.advance("2m")
    assert 1 == f()  # and it is renewed
    core.go()
    assert f.entry() is None
    with pytest.raises(OSError, match="no database"):
        f()


@pytest.mark.parametrize("option", ["keep", "ttl"])
def test_what_an_option_raises_of_an_answer_is_raised_by_the_call(core, option):
    f = core.ps.memoize(name="f", **{option: lambda answer: answer["until"]})(lambda: {})
    with pytest.raises(KeyError, match="until") as caught:
        f()
    assert [f"That comes of the {option}= of memoized function 'f', for an answer that was computed."] == (
        caught.value.__notes__
    )


def test_hits_and_misses_are_counted(ps):
    """A computation is one miss for all who wait for it, also one that fails."""
    f = ps.memoize(name="f")(lambda n: 1 / n)
    assert (0, 0) == f.stats
    assert [1.0, 0.5, 1.0, 1.0] == [f(1), f(2), f(1), f.submit(1).result()]
    with pytest.raises(ZeroDivisionError):
        f(0)
    assert (2, 3) == (f.stats.hits, f.stats.misses)


def test_a_step_of_the_clock_changes_no_lifetime(core):
    function = Counted()
    f = core.ps.memoize(ttl="1m", name="f")(function)
    f()
    core.clock.step(3600)
    f()
    assert 1 == function.calls


def test_a_stale_answer_is_served_at_once_and_renewed_once(core):
    answers = iter(range(9))
    f = core.ps.memoize(ttl="1m", max_stale="1h", name="f")(lambda: next(answers))
    assert 0 == f()
    core.clock.advance("2m")
    assert [0, 0, 0] == [f(), f(), f.submit().result()]
    core.go()
    assert [1, 1] == [f(), f()]
    core.clock.advance("62m")
    assert 2 == f()


def test_the_last_answer_is_served_where_a_new_one_cannot_be_had(core, caplog):
    """Also to those who have waited for it; who looks at the log knows, once."""
    answers = iter([1, OSError("no database"), OSError("no database"), 4])

    @core.ps.memoize(ttl="1m")
    def f():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert 1 == f()
    core.clock.advance("1h")
    assert [1, 1, 4] == [f(), f(), f()]
    (message,) = messages(caplog)
    assert re.fullmatch(r"f\(\) failed \(run \S+\), the last good answer is served: OSError: no database", message)


def test_not_where_that_is_not_wanted(core):
    fails = []

    @core.ps.memoize(ttl="1m", stale_if_error=False)
    def f():
        if fails:
            raise OSError("no database")
        return 1

    f()
    core.clock.advance("1h")
    fails.append(True)
    with pytest.raises(OSError, match="no database"):
        f()


def test_a_background_failure_keeps_the_answer(core, caplog):
    fails = []

    @core.ps.memoize(ttl="1m", max_stale="1h")
    def f():
        if fails:
            raise OSError("no database")
        return 1

    f()
    core.clock.advance("2m")
    fails.append(True)
    assert 1 == f()
    core.go()
    assert 1 == f()
    (message,) = messages(caplog)
    assert "the last good answer is served: OSError: no database" in message


@pytest.mark.parametrize("old", [False, True])
def test_a_failure_is_given_again_for_its_ttl(core, old):
    """To those who ask for the same; or the last answer."""
    calls, fails = [], [not old]

    @core.ps.memoize(ttl="1m", error_ttl="10s")
    def f():
        calls.append(len(calls))
        if fails[-1]:
            raise OSError(f"attempt {len(calls)}")
        return "answer"

    def ask():
        try:
            return f()
        except OSError as error:
            return str(error)

    if old:
        f()
        calls.clear()
        core.clock.advance("2m")
        fails.append(True)
    given = "answer" if old else "attempt 1"
    assert [given] * 3 == [ask(), ask(), ask()]
    assert 1 == len(calls)
    core.clock.advance("10s")
    fails.append(False)
    assert "answer" == ask()
    assert 2 == len(calls)


# ------------------------------------------------------------ how many are kept


def test_the_answer_used_longest_ago_goes_first(ps):
    function = Counted()
    f = ps.memoize(max_entries=3, name="f")(lambda n: function(n))
    for n in (1, 2, 3, 1, 4):
        f(n)
    assert ["f(4)", "f(1)", "f(3)"] == list(ps.store.entries(f))
    f(1)
    assert 4 == function.calls


def test_bytes_are_limited_too(ps, caplog):
    """One that is larger than all that may be kept is given, and not kept."""
    f = ps.memoize(max_bytes=25_000, max_entries=None, name="f")(lambda n, size=10_000: bytes(size))
    for n in (1, 2, 3):
        f(n)
    assert ["f(3)", "f(2)"] == list(ps.store.entries(f))
    assert 30_000 == len(f(4, size=30_000))
    assert ["f(3)", "f(2)"] == list(ps.store.entries(f))
    assert "larger than max_bytes=25000" in messages(caplog)[0]


def test_what_can_be_of_no_use_any_more_goes(core):
    """A week beyond its lifetime nothing is left of it, though nothing limits the number."""
    f = core.ps.memoize(ttl="1m", max_entries=None, name="f")(lambda n: n)
    f(1), f(2)
    core.clock.advance("8d")
    f(3)
    assert ["f(3)"] == list(core.ps.store.entries(f))


def test_a_dropped_answer_is_garbage(ps):
    class Value:
        pass

    f = ps.memoize(max_entries=1, name="f")(lambda n: Value())
    dead = weakref.ref(f(1))
    f(2)
    gc.collect()
    assert dead() is None


# ------------------------------------------------------------ forgetting, and looking


def test_invalidate_forgets_one_and_clear_all(ps):
    function = Counted()
    f = ps.memoize(name="f")(lambda n=0: function(n))
    f(1), f(2), f(0)
    f.invalidate(1)
    f(1), f(2)
    assert 4 == function.calls
    f.clear()
    assert {} == ps.store.entries(f)
    f(1), f(2)
    assert 6 == function.calls


def test_what_is_under_way_when_it_is_invalidated_is_for_those_who_wait(core):
    """It has perhaps read what has changed since: who asks later gets another one."""
    function = core.held("f")
    f = core.ps.memoize(name="f")(function)
    before = f.submit()
    core.go()
    f.invalidate()
    after = f.submit()
    core.go()
    function.finish("before")
    core.go()
    assert f.entry() is None
    function.finish("after")
    core.go()
    assert ["before", "after", "after"] == [before.result(), after.result(), f()]


def test_an_entry_tells_version_and_time(core):
    f = core.ps.memoize(name="f")(lambda n: n)
    assert f.entry(1) is None
    f(1)
    first = f.entry(1)
    core.clock.advance("1h")
    f.refresh(1)
    core.go()
    second = f.entry(1)
    assert (1, 1) == (first.value, second.value)
    assert second.version > first.version > 0
    assert 3600 == (second.updated_at - first.updated_at).total_seconds()
    assert {"f(1)": second} == core.ps.store.entries(f)


def test_entries_name_calls_shortly(ps):
    f = ps.memoize(name="f")(lambda *args, **kwargs: None)
    f("x" * 1000, np.zeros((3, 4)), list(range(100)), frame=pd.DataFrame({"a": [1]}))
    (call,) = ps.store.entries(f)
    assert call.endswith("<ndarray (3, 4)>, <list of 100>, frame=<DataFrame (1, 1)>)")
    assert len(call) <= 200


def test_refresh_replaces_a_fresh_answer(ps):
    answers = iter(range(9))
    f = ps.memoize(name="f")(lambda: next(answers))
    assert 0 == f()
    assert 1 == f.refresh().result(PATIENCE) == f()


# ------------------------------------------------------------ after a task


def test_a_new_value_of_a_task_is_another_key(ps):
    numbers = iter(range(10, 99, 10))
    sales = ps.schedule(period="1h", first_run="skip", name="sales")(lambda: next(numbers))
    calls = []

    @ps.memoize(after=[sales])
    def doubled(n):
        calls.append(n)
        return sales() * n

    sales.refresh().result(PATIENCE)
    assert [20, 20, 30] == [doubled(2), doubled(2), doubled(3)]
    sales.refresh().result(PATIENCE)
    assert [40, 40] == [doubled(2), doubled(2)]
    assert [2, 3, 2] == calls


def test_nothing_stale_hides_behind_a_task(ps):
    """Neither `max_stale` nor `stale_if_error` give what was computed from an older value of it."""
    sales = ps.schedule(period="1h", first_run="skip", name="sales")(lambda: 1)
    fails = []

    @ps.memoize(after=sales, ttl="1h", max_stale="1d")
    def f():
        if fails:
            raise OSError("no database")
        return 1

    sales.refresh().result(PATIENCE)
    f()
    sales.refresh().result(PATIENCE)
    fails.append(True)
    with pytest.raises(OSError, match="no database"):
        f()


def test_who_asks_for_a_newer_basis_does_not_join_an_older_computation(core):
    sales = core.ps.schedule(period="1h", first_run="skip", name="sales")(lambda: None)
    function = core.held("f")
    f = core.ps.memoize(after=sales, name="f")(function)
    sales.refresh()
    core.go()
    old = f.submit()
    core.go()
    sales.refresh()
    core.go()
    new = f.submit()
    core.go()
    assert 2 == function.flying
    function.finish("old")
    function.finish("new")
    core.go()
    assert ["old", "new", "new"] == [old.result(), new.result(), f()]


def test_a_scheduled_task_warms_up(core):
    """The recipe: the first visitor finds the popular answers there."""
    function = Counted()
    f = core.ps.memoize(name="f")(lambda region: function(region))

    @core.ps.schedule(period="1h")
    def warm():
        for region in ("north", "south"):
            f.refresh(region)

    core.begin()
    assert 2 == function.calls
    f("north")
    assert 2 == function.calls


# ------------------------------------------------------------ registering


def test_the_same_function_again_is_the_same_object(ps):
    """As when the app imports the setup script."""
    source = "def f(n):\n    return n\n"
    spaces = [{}, {}]
    for space in spaces:
        exec(compile(source, "/tmp/tasks.py", "exec"), space)
    assert ps.memoize(spaces[0]["f"]) is ps.memoize(ttl="1h")(spaces[1]["f"])


def test_another_function_under_a_taken_name_is_an_error(ps):
    ps.memoize(name="f")(lambda: 1)

    def f():
        return 2

    with pytest.raises(RegistrationError, match=r"Memoized function 'f' is defined twice: .*name="):
        ps.memoize(f)


def test_one_that_closes_over_something_else_is_another_function(ps):
    """Else one customer would see the other's numbers."""

    def make(customer):
        @ps.memoize
        def orders(year):
            return customer, year

        return orders

    first = make("one")
    assert make("one") is first
    with pytest.raises(RegistrationError, match="defined twice"):
        make("two")


def method(ps):
    class Database:
        @ps.memoize
        def query(self, region):
            return region


def class_method(ps):
    class Database:
        @classmethod
        @ps.memoize
        def query(cls, region):
            return region


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (method, RegistrationError, r"'query' is a method.*ps\.memoize\(name='\.\.\.'\)\(obj\.query\)"),
        (class_method, RegistrationError, "'query' is a method"),
        (lambda ps: ps.memoize("5m"), RegistrationError, "@ps.memoize in .*: options go by name, as in ttl='5m'"),
        (lambda ps: ps.memoize(ttl="soon"), TriggerError, "ttl='soon' is no duration"),
        (lambda ps: ps.memoize(max_stale="1h"), TriggerError, "max_stale='1h' begins when ttl= is over"),
        (lambda ps: ps.memoize(error_ttl="x"), TriggerError, "error_ttl='x' is no duration"),
        (lambda ps: ps.memoize(max_entries=0), RegistrationError, "max_entries=0 must be a whole number"),
        (lambda ps: ps.memoize(max_entries=-1), RegistrationError, "max_entries=-1 must be a whole number"),
        (lambda ps: ps.memoize(max_entries=True), RegistrationError, "max_entries=True must be a whole number"),
        (lambda ps: ps.memoize(max_bytes="1"), RegistrationError, "max_bytes='1' must be a whole number"),
        (lambda ps: ps.memoize(error_ttl=-1), TriggerError, "error_ttl=-1 is no duration"),
        (lambda ps: ps.memoize(error_ttl=False), TriggerError, "error_ttl=False is no duration"),
        (lambda ps: ps.memoize(ttl=0), TriggerError, "ttl=0 is no duration"),
        (lambda ps: ps.memoize(ttl="5m", max_stale=""), TriggerError, "max_stale='' is no duration"),
        (lambda ps: ps.memoize(after=MagicMock()), TriggerError, "after= takes a task or a list of tasks"),
        (lambda ps: ps.memoize(max_bytes=1.5), RegistrationError, r"max_bytes=1\.5 must be a whole number"),
        (lambda ps: ps.memoize(after=["sales"]), TriggerError, "after= takes a task or a list of tasks"),
        (lambda ps: ps.memoize(executor="fast"), RegistrationError, "executor='fast' is unknown"),
        (lambda ps: ps.memoize(keep=True), RegistrationError, "keep=True must be a plain function"),
        (lambda ps: ps.memoize(ttl=asyncio.sleep), RegistrationError, "ttl=.* must be a plain function"),
        (lambda ps: ps.memoize(ignore=1), RegistrationError, "ignore=1 must be the name of a parameter, or a list"),
        (lambda ps: ps.memoize(ignore=[1]), RegistrationError, r"ignore=\[1\] must be the name of a parameter"),
        (lambda ps: ps.memoize(name="f", ignore="c")(lambda a: a), RegistrationError, "ignore= names 'c', which is no"),
        (
            lambda ps: ps.memoize(name="f", ignore="a", key=len)(lambda a: a),
            RegistrationError,
            "key= says what counts of all arguments, so that ignore= has nothing to say",
        ),
        (lambda ps: ps.memoize(stale_if_error=1), RegistrationError, "stale_if_error=1 must be True or False"),
        (lambda ps: ps.memoize(name="f", key=3)(len), RegistrationError, "key=3 must be a function"),
        (lambda ps: ps.memoize(lambda: 1), RegistrationError, "has no name of its own"),
        (lambda ps: ps.memoize(executor="loop", name="f")(len), RegistrationError, "would hold the event loop"),
        (lambda ps: ps.memoize(executor="thread")(asyncio.sleep), RegistrationError, "not in a thread"),
        (lambda ps: ps.memoize(ps.memoize(name="f")(lambda: 1)), RegistrationError, "is no plain function"),
    ],
)
def test_what_means_nothing_is_refused(ps, wrong, error, message):
    with pytest.raises(error, match=message):
        wrong(ps)


def test_a_bound_method_works(ps):
    class Database:
        def query(self, region):
            return f"{region} of {self.name}"

    database = Database()
    database.name = "one"
    query = ps.memoize(name="one")(database.query)
    assert "north of one" == query("north")


def test_a_static_method_works(ps):
    class Database:
        @staticmethod
        @ps.memoize
        def query(region):
            return region

    assert "north" == Database.query("north") == Database().query("north")


# ------------------------------------------------------------ the end


def test_what_has_not_begun_is_cancelled_when_the_server_stops(core):
    f = core.ps.memoize(name="f")(core.held("f"))
    begun = f.submit()
    core.go()
    g = core.ps.memoize(name="g")(core.held("g"))
    queued = g.submit()
    core.runtime.grace = 0.0
    core.runtime.close()
    assert [RunState.CANCELLED] * 2 == [begun.state, queued.state]
    assert RunState.CANCELLED is f.submit().state


def test_after_the_end_a_call_computes(ps, runtime):
    f = ps.memoize(name="f")(lambda n: n + 1)
    f(1)
    runtime.close()
    assert 3 == f(2)


def test_every_run_ends_once_whatever_happens(ps, ledger):
    """A storm of calls, refreshes, invalidations and cancels from threads."""
    f = ps.memoize(name="f", ttl="50ms", max_stale="50ms", max_entries=3)(_moody)

    def storm(number):
        for step in range(60):
            n = (number + step) % 5
            with suppress(ValueError, RunCancelled):
                match (number * 7 + step) % 6:
                    case 0:
                        f.refresh(n)
                    case 1:
                        f.invalidate(n)
                    case 2:
                        f.submit(n).cancel()
                    case _:
                        assert n * 2 == f(n)

    assert [] == hammer(6, storm)
    f.clear()
    for n in range(5):
        with suppress(ValueError):
            f.submit(n).result(PATIENCE)
    for run in list(ledger):  # also those that nobody waits for, as an answer was stale
        with suppress(ValueError, RunCancelled):
            run.result(PATIENCE)
    flights = f._host.single_flight
    assert not flights._under_way
    assert not flights._all
    assert {1} == set(ledger.values())


def _moody(n):
    if n == 4:
        raise ValueError("four")
    return n * 2


def test_a_child_of_a_fork_computes_for_itself(ps):
    f = ps.memoize(name="f")(lambda n: n)
    f(1)
    pid = os.fork()
    if not pid:
        with suppress(BaseException):
            f._host.forget()
            os._exit(0 if f(2) == 2 else 1)
        os._exit(2)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def test_after_the_end_a_coroutine_computes(ps, runtime):
    @ps.memoize
    async def f(n):
        return n + 1

    @ps.memoize
    async def g(n):
        yield n + 1

    assert 2 == await f(1)
    runtime.close()
    assert [3, 4] == [await f(2), await g(3)]


def test_what_is_over_at_once_is_given_and_not_kept(core):
    """A lifetime that is shorter than the computation's last step."""
    f = core.ps.memoize(ttl="1ms", stale_if_error=False, name="f")(lambda n: n)
    keep = core.runtime.single_flight.kept.keep
    core.runtime.single_flight.kept.keep = lambda *answer: core.clock.advance(1) or keep(*answer)
    assert [1, 2, 1] == [f(1), f(2), f(1)]


def test_a_new_definition_replaces_the_old_one(core, monkeypatch):
    """In a notebook, and after an edit under --dev: its answers go, and live views get new ones."""
    monkeypatch.setattr(pn.config, "autoreload", True)
    widget = pn.widgets.IntInput(value=3)
    sources = ["def f(n):\n    return n\n", "def f(n, factor=10):\n    return n * factor\n"]
    spaces = [{}, {}]
    for source, space in zip(sources, spaces, strict=True):
        exec(compile(source, "/tmp/tasks.py", "exec"), space)
    f = core.ps.memoize(spaces[0]["f"])
    view = f.view(widget)
    core.go()
    assert (3, 3) == (f(3), view.value)
    assert f is core.ps.memoize(spaces[1]["f"])
    core.go()
    assert (30, 30) == (f(3), view.value)


# ------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("how", ["submit", "refresh"])
def test_a_function_that_waits_for_its_own_run_is_an_error(ps, how):
    @ps.memoize
    def f():
        return getattr(f, how)().result()

    with pytest.raises(WouldBlock, match=r"f\(\) waits for itself, .*f\.function\(\.\.\.\)"):
        f.submit().result(PATIENCE)


async def test_a_cycle_is_seen_among_several_that_are_awaited_at_once(ps):
    there = asyncio.Event()

    @ps.memoize
    async def first():
        return await asyncio.gather(second(), third())

    @ps.memoize
    async def second():
        await there.wait()
        return await first()

    @ps.memoize
    async def third():
        there.set()

    with pytest.raises(WouldBlock, match="waits for it"):
        await asyncio.wait_for(first(), PATIENCE)


def test_a_function_that_waits_for_a_run_lends_its_thread(ps):
    """Else as many as there are threads would wait for what has none."""
    inner = ps.memoize(name="inner")(lambda n: n * 10)
    meet = threading.Barrier(2)

    @ps.memoize
    def outer(n):
        meet.wait(PATIENCE)
        return inner.submit(n).result(PATIENCE)

    runs = [outer.submit(n) for n in (1, 2)]
    assert [10, 20] == [run.result(PATIENCE) for run in runs]


@pytest.mark.parametrize("store", ["memory", "file"])
def test_a_deep_recursion_ends(tmp_path, store):
    """Deeper than one thread's stack allows; and what fails leaves nobody waiting."""
    config = Config({})
    config.store = "memory://" if store == "memory" else f"file://{tmp_path / 'store'}"
    runtime = Runtime(config)
    ps = Front(runtime)

    @ps.memoize(max_entries=None)
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    @ps.memoize
    def endless(n):
        return endless.function(n + 1)

    assert 222232244629420445529739893505090668888 < fibonacci(300)
    for _ in range(2):
        with pytest.raises(RecursionError):
            endless(1)
    assert not runtime.single_flight._all
    runtime.grace = 0.0
    runtime.close()


def test_a_kept_failure_does_not_collect_its_callers(core):
    """Each `raise` adds frames to an error, with all that stands in them."""

    class Session:
        pass

    @core.ps.memoize(error_ttl="1h")
    def f():
        raise OSError("no database")

    def ask():
        session = Session()
        alive.append(weakref.ref(session))
        with suppress(OSError):
            f()

    alive = []
    for _ in range(20):
        ask()
    gc.collect()
    assert sum(each() is not None for each in alive) <= 1


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, BaseException, asyncio.CancelledError])
@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_odd_errors_keep_nobody_waiting(ps, error, kind):
    def plain():
        raise error("odd")

    async def on_the_loop():
        raise error("odd")

    f = ps.memoize(name="f")(plain if kind == "thread" else on_the_loop)
    run = f.submit()
    with pytest.raises((error, RunFailed)):
        run.result(PATIENCE)
    assert not f._host.single_flight._all


async def test_a_loop_that_waits_for_an_answer_holds_up_no_async_function(ps):
    """A plain function that needs one, called on the loop: it runs on another loop meanwhile."""

    @ps.memoize
    async def inner(n):
        return n * 10

    outer = ps.memoize(name="outer")(lambda n: inner.submit(n).result(PATIENCE) + 1)
    assert 21 == outer(2)


def test_of_some_builtins_nobody_knows_what_they_take(ps):
    assert 3 == ps.memoize(name="longest")(max)(1, 3, 2)


def test_a_parameter_may_have_any_name(ps):
    f = ps.memoize(name="f")(lambda **named: named)
    assert {"self": 1} == f(self=1) == f.submit(self=1).result(PATIENCE)


def test_entries_are_those_of_a_memoized_function(ps):
    with pytest.raises(TypeError, match=r"takes a memoized function, made by ps\.memoize, and not 'f'"):
        ps.store.entries("f")


@pytest.mark.slow
@pytest.mark.unhurried
def test_a_memoized_function_is_pickled_by_its_name():
    script = """
        import pickle, panel_schedule as ps
        @ps.memoize
        def f():
            return 42
        assert pickle.loads(pickle.dumps(f)) is f
    """
    source = "\n".join(line[8:] for line in script.splitlines())
    subprocess.run([sys.executable, "-c", source], check=True, timeout=60)


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize(
    "reference", [lambda w: w, lambda w: w.param.value, lambda w: w.rx(), lambda w: pn.bind(str, w)]
)
def test_a_reference_is_no_argument_of_a_call(ps, keyed, reference):
    """With ``key=`` as well, which would take it for a value that never changes."""
    f = ps.memoize(name="f", key=(lambda region: "one") if keyed else None)(lambda region: region)
    widget = reference(pn.widgets.Select(options=["a", "b"]))
    for call in (f, f.submit, f.refresh):
        with pytest.raises(TypeError, match=r"is a reference.*f\.view\(\.\.\.\)"):
            call(widget)


def test_what_is_made_from_a_task_needs_its_value(ps):
    """An answer that was made of nothing would be kept."""
    sales = ps.schedule(period="1h", first_run="skip", name="sales")(lambda: 1)
    rates = ps.schedule(period="1h", first_run="skip", name="rates", default=2)(lambda: 3)
    f = ps.memoize(after=[sales, rates], name="f")(lambda: sales() + rates())
    with pytest.raises(NotReady, match=r"f\(\) is made from the task 'sales', which has no value yet.*wait_ready"):
        f()
    sales.refresh().result(PATIENCE)
    assert 3 == f()


def test_a_misspelt_option_is_one_of_the_public_functions(ps):
    with pytest.raises(TypeError, match=r"^ps\.memoize\(\) got an unexpected keyword argument 'tll'"):
        ps.memoize(tll="5m")


@pytest.mark.parametrize("mock", [Mock(), MagicMock()], ids=lambda mock: type(mock).__name__)
def test_a_mock_is_an_argument_without_a_key(ps, mock):
    """It has every attribute, and so looks like a reference to everybody who asks it."""
    f = ps.memoize(name="f")(lambda value: value)
    with pytest.raises(ArgumentUnkeyable, match="argument value"):
        f(mock)
    with pytest.raises(ArgumentUnkeyable, match="argument value"):
        f.submit(mock)
    assert "argument value" in f.view(mock).error


def test_a_page_cannot_show_the_function_itself(ps):
    f = ps.memoize(name="f")(lambda n: n)
    with pytest.raises(TypeError, match=r"f\.view\(\.\.\.\)"):
        pn.panel(f)


def test_to_decorate_a_function_again_forgets_nothing(ps):
    """As an app does that decorates what it has imported, once for each session."""
    function = Counted()

    def load(n):
        return function(n)

    assert (1,) == ps.memoize(load)(1) == ps.memoize(load)(1)
    assert 1 == function.calls


def test_another_argument_of_a_partial_is_another_function(ps):
    """Its answers of an earlier server are none of this one's."""

    def query(table, n=1, *, unit="m"):
        return table

    prints = [
        fingerprint(each)
        for each in (partial(query, "a"), partial(query, "b"), partial(query, "a", unit="s"), partial(query, "a"))
    ]
    assert 3 == len(set(prints))
    assert prints[0] == prints[3]


def test_what_is_invalidated_while_it_fails_does_not_come_back(core, monkeypatch):
    function = core.held("f")
    f = core.ps.memoize(ttl="1m", name="f")(function)
    f.submit()
    core.go()
    function.finish("old")
    core.clock.advance("2m")
    run = f.submit()
    core.go()
    find = Computation.last_resort
    monkeypatch.setattr(Computation, "last_resort", lambda computation: (find(computation), f.invalidate())[0])
    function.finish(OSError("no database"))
    core.go()
    assert RunState.FAILED is run.state
    assert f.entry() is None


def test_computations_that_hang_and_that_nobody_waits_for_keep_no_place(ps):
    gates = [Gate() for _ in range(3)]
    hangs = ps.memoize(name="hangs")(lambda number: gates[number]())
    other = ps.memoize(name="other")(lambda number: number)
    for number, gate in enumerate(gates):
        run = hangs.submit(number)
        gate.begun()
        run.cancel()
    assert 1 == other.submit(1).result(PATIENCE)
    for gate in gates:
        gate.go.release()
    assert 1 == hangs(0)  # what comes of it in the end is kept


def test_failures_that_are_given_again_have_a_bound(runtime, ps):
    """As many as answers; their long texts are cut."""

    @ps.memoize(max_entries=3, error_ttl="1h")
    def fails(text):
        raise ValueError("no such customer: " + text)

    for number in range(10):
        with pytest.raises(ValueError, match=f"customer: {number}"):
            fails(f"{number} " + "x" * 20_000)

    kept = runtime.single_flight._failed[fails]
    assert 3 == len(kept)
    assert max(len(str(error)) for _, error in kept.values()) < 2_100
