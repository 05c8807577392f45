"""Invariant 9: a run for slot t sees its upstream's values for slot t."""

from __future__ import annotations

import asyncio
import threading
import types

import panel as pn
import pytest

from core import PATIENCE, second, short
from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import CycleError, RunTimedOut
from panel_schedule.functions.registry import require_no_cycle
from panel_schedule.functions.run import RunState
from panel_schedule.functions.task import named_tasks
from panel_schedule.runtime import Runtime


def counter(core, name, *reads):
    """A function that counts its runs, and notes what it read."""

    def count():
        count.seen.append(tuple(read() for read in reads))
        return len(count.seen)

    count.seen = []
    count.__name__ = name
    return count


# ------------------------------------------------------------ after=


def test_a_follower_runs_after_each_final_value(core):
    """Once for each, and with that value."""
    raw = core.schedule(period="1m", first_run="background")(counter(core, "raw"))
    child = counter(core, "child", raw)
    core.schedule(after=raw)(child)
    core.begin()
    core.run_for(120)

    assert [(1,), (2,), (3,)] == child.seen


def test_a_follower_does_not_run_after_a_failure(core):
    """No value, no run."""

    @core.schedule(period="1m", first_run="background")
    def raw():
        raise OSError

    child = counter(core, "child", raw)
    core.schedule(after=raw)(child)
    core.begin()
    core.run_for(120)

    assert [] == child.seen


def test_a_chain_passes_each_value_on(core):
    """a -> b -> c -> d: one run each for each value of a, in order."""
    tasks, functions = [], []
    for name in "abcd":
        function = counter(core, name, *tasks[-1:])
        when = {"after": tasks[-1]} if tasks else {"period": "1m"}
        tasks.append(core.schedule(**when)(function))
        functions.append(function)
    core.begin()
    core.run_for(180)

    assert [4, 4, 4, 4] == [len(function.seen) for function in functions]
    assert [[(n,) for n in range(1, 5)]] * 3 == [function.seen for function in functions[1:]]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_diamond_runs_its_end_once_for_each_wave(core, kind):
    """a -> (b, c) -> d: d sees b and c of the same a."""
    a = core.schedule(period="1m")(counter(core, "a"))
    b = core.schedule(after=a, name="b")(lambda: a())
    c = core.schedule(after=a, name="c")(lambda: a())
    seen = []
    if kind == "sync":
        core.schedule(after=[b, c], name="d")(lambda: seen.append((b(), c())))
    else:

        async def d():
            seen.append((b(), c()))

        core.schedule(after=[b, c])(d)
    core.begin()
    core.run_for(120)

    assert [(1, 1), (2, 2), (3, 3)] == seen


def test_upstreams_of_one_wave_cause_one_run(core):
    """Ten tasks of one slot, one follower: one run for each slot (invariant 9)."""
    raws = [core.schedule(period="1m", name=f"raw{n}")(counter(core, f"raw{n}")) for n in range(10)]
    child = counter(core, "child", *raws)
    core.schedule(after=raws)(child)
    core.begin()
    core.run_for(120)

    assert [(1,) * 10, (2,) * 10, (3,) * 10] == child.seen


def test_a_wave_whose_upstreams_take_their_time_is_still_one(core):
    """The follower waits for all that the slot will bring."""
    fast = core.schedule(period="1m", first_run="skip")(counter(core, "fast"))
    slow_function = core.held("slow")
    slow = core.schedule(period="1m", first_run="skip")(slow_function)
    child = counter(core, "child", fast, slow)
    core.schedule(after=[fast, slow])(child)
    core.begin()
    core.run_for(70)
    before = list(child.seen)
    slow_function.finish("slow value")
    core.go()

    assert ([], [(1, "slow value")]) == (before, child.seen)


def test_a_follower_goes_on_when_one_of_its_upstreams_fails(core):
    """The failed one gives its last good value."""
    good = core.schedule(period="1m", first_run="skip")(counter(core, "good"))
    slow_function = core.held("slow")
    slow = core.schedule(period="1m", first_run="skip", default="default")(slow_function)
    child = counter(core, "child", good, slow)
    core.schedule(after=[good, slow])(child)
    core.begin()
    core.run_for(60)
    slow_function.finish(OSError("gone"))
    core.go()

    assert [(1, "default")] == child.seen


def test_the_newest_value_is_never_skipped(core):
    """However busy the follower is: after its run, one more with the newest value (4: newest only)."""
    raw = core.schedule(period="1s", first_run="skip")(counter(core, "raw"))
    seen, slow = [], core.held("child")

    def child():
        seen.append(raw())
        return slow()

    core.schedule(after=raw)(child)
    core.begin()
    core.run_for(5)
    slow.finish()
    core.go()
    slow.finish()
    core.go()

    assert [1, 5] == seen
    assert 0 == slow.flying


def test_a_follower_that_replaces_ends_its_old_run(core):
    """overlap="replace" applies to followers, too."""
    raw = core.schedule(period="1s", first_run="skip")(counter(core, "raw"))
    seen = []

    @core.schedule(after=raw, overlap="replace")
    async def child():
        seen.append(raw())
        await asyncio.Event().wait()

    core.begin()
    core.run_for(2)

    assert [1, 2] == seen
    assert [("cancelled", "replaced")] == short(child.history)


def test_a_refresh_upstream_reaches_the_followers(core):
    """A value is a value, whoever asked for it."""
    raw = core.schedule(period="1h", first_run="skip")(counter(core, "raw"))
    child = counter(core, "child", raw)
    core.schedule(after=raw)(child)
    core.begin()
    raw.refresh()
    core.go()

    assert [(1,)] == child.seen


def test_the_key_of_a_followers_run_is_the_upstreams_version(core):
    """The newest one (section 4)."""
    raw = core.schedule(period="1m", first_run="background")(counter(core, "raw"))
    child = core.schedule(after=raw, name="child")(lambda: raw())
    core.begin()
    core.run_for(60)

    assert ["version 2", "version 1"] == [record.key for record in child.history]


def test_a_follower_of_something_stale_is_stale(core):
    """Nothing stale hides behind a follower; and it has not recovered before its upstream has."""
    outcomes = iter([1, OSError("x")])

    @core.schedule(period="1m", first_run="background")
    def raw():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    child = core.schedule(after=raw, name="child")(lambda: raw())
    core.begin()
    fresh = child.status.stale
    core.run_for(60)

    assert [False, True] == [fresh, child.status.stale]


def test_a_follower_that_stays_stale_has_not_recovered(core):
    """A new value beside a stale upstream is no recovery: the event comes when it is fresh again."""

    @core.schedule(period="1m", first_run="background")
    def broken():
        if broken.entry:
            raise OSError("x")
        return 1

    good = core.schedule(period="1m", first_run="background", name="good")(lambda: 1)
    child = core.schedule(after=[broken, good], name="child")(lambda: 1)
    told = core.events("recovered")
    core.begin()
    core.run_for(180)

    assert (True, []) == (child.status.stale, told)


def test_a_follower_of_a_cancelled_task_lives_on(core):
    """Its other upstreams still run it."""
    one = core.schedule(period="1m", first_run="skip")(counter(core, "one"))
    two = core.schedule(period="1m", first_run="skip")(counter(core, "two"))
    child = counter(core, "child")
    core.schedule(after=[one, two])(child)
    core.begin()
    core.ps.cancel_task("one")
    core.run_for(60)

    assert 1 == len(child.seen)


def test_a_cancelled_follower_leaves_nothing_behind(core):
    """Its upstream's values neither run it, nor write a history under its name."""
    raw = core.schedule(period="1m", first_run="skip", name="raw")(lambda: 1)
    child = core.schedule(after=raw, name="child")(lambda: 1)
    told = core.events("skipped")
    core.begin()
    core.ps.cancel_task("child")
    core.run_for(120)

    assert ([], []) == (child.history, told)


# ------------------------------------------------------------ needs=


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_task_needs_has_its_value_for_the_slot(core, kind):
    """The run waits for it, and begins when it is there."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1m", first_run="skip")(raw_function)
    seen = []
    read = {"raw": raw}  # not named in the code

    def sync_reader():
        seen.append(read["raw"]())

    async def async_reader():
        seen.append(read["raw"]())

    reader = core.schedule(period="1m", first_run="skip", needs=raw, name="reader")(
        sync_reader if kind == "sync" else async_reader
    )
    core.begin()
    core.run_for(60)
    before = (list(seen), reader.status.state)
    raw_function.finish("value")
    core.go()

    assert (([], "queued"), ["value"]) == (before, seen)


def test_what_a_task_needs_may_have_failed(core):
    """Then it reads the last good value."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1m", first_run="background")(raw_function)
    reader = counter(core, "reader", raw)
    core.schedule(period="1m", first_run="skip", needs=[raw])(reader)
    core.begin()
    raw_function.finish("good")
    core.run_for(60)
    raw_function.finish(OSError("gone"))
    core.go()

    assert [("good",)] == reader.seen


def test_a_slower_need_is_not_waited_for_between_its_slots(core):
    """Its value for its latest slot up to t is there already."""
    raw = core.schedule(period="1h", first_run="background")(counter(core, "raw"))
    reader = counter(core, "reader", raw)
    core.schedule(period="1m", first_run="skip", needs=[raw])(reader)
    core.begin()
    core.run_for(120)

    assert [(1,), (1,)] == reader.seen


def test_a_paused_need_is_not_waited_for(core):
    """Nothing will come."""
    raw = core.schedule(period="1m", first_run="background")(counter(core, "raw"))
    reader = counter(core, "reader", raw)
    core.schedule(period="1m", first_run="skip", needs=[raw])(reader)
    core.begin()
    raw.pause()
    core.run_for(60)

    assert [(1,)] == reader.seen


def test_a_need_that_is_paused_or_removed_meanwhile_is_let_go(core):
    """Who waits for it goes on with the last good value."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1m", first_run="skip", default="default", retry=1)(raw_function)
    reader = counter(core, "reader", raw)
    core.schedule(period="1m", first_run="skip", needs=[raw])(reader)
    core.begin()
    core.run_for(60)
    core.run_of(raw).cancel()
    core.go()

    assert [("default",)] == reader.seen


def test_an_abandoned_need_is_not_waited_for(core):
    """Its run has ended; what its body still does concerns nobody."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1m", first_run="skip", default="default", timeout="5s")(raw_function)
    reader = counter(core, "reader", raw)
    core.schedule(period="1m", first_run="skip", needs=[raw])(reader)
    core.begin()
    core.run_for(65)

    assert [("default",)] == reader.seen


def test_a_need_between_two_attempts_is_waited_for(core):
    """Its value for the slot is still to come."""
    outcomes = iter([OSError("x"), "value"])

    @core.schedule(period="1m", first_run="skip", retry=1, default="default")
    def raw():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    reader = counter(core, "reader", raw)
    core.schedule(period="1m", first_run="skip", needs=[raw])(reader)
    core.begin()
    core.run_for(62)

    assert [("value",)] == reader.seen


def test_first_runs_are_ordered_too(core):
    """The first value of the reader is made of the first value of what it needs, in whatever order they came."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1h")(raw_function)
    reader = counter(core, "reader", raw)
    core.schedule(period="1h", needs=[raw])(reader)
    core.begin()
    raw_function.finish("first")
    core.go()

    assert [("first",)] == reader.seen


def test_a_run_that_waits_for_its_needs_can_be_cancelled(core):
    """It never starts, and the next slot is served."""
    raw_function = core.held("raw")
    raw = core.schedule(period="10m", first_run="skip")(raw_function)
    reader = counter(core, "reader")
    task = core.schedule(period="10m", first_run="skip", needs=[raw])(reader)
    core.begin()
    core.run_for(600)
    run = core.run_of(task)
    run.cancel()
    raw_function.finish()
    core.go()
    core.run_for(600)
    raw_function.finish()
    core.go()

    assert (RunState.CANCELLED, 1) == (run.state, len(reader.seen))


def test_a_replaced_run_that_waits_for_its_needs_takes_nothing_from_its_successor(core):
    """The successor keeps the claim, runs, and its value counts."""
    raw_function = core.held("raw")
    raw = core.schedule(period="10m", first_run="background")(raw_function)
    reader = counter(core, "reader")
    task = core.schedule(period="1m", first_run="background", needs=[raw], overlap="replace")(reader)
    core.begin()
    core.run_for(60)
    raw_function.finish()
    core.go()

    assert [("cancelled", "replaced"), ("succeeded", "")] == short(task.history)
    assert (1, 1) == (len(reader.seen), task())


def test_cancelling_between_two_attempts_leaves_the_successor_alone(core):
    """What was queued behind the cancelled run starts, and ends as ever."""
    outcomes = iter([OSError("x"), "value"])

    @core.schedule(period="10s", first_run="skip", retry=1, overlap="queue")
    def fetch():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    core.begin()
    core.run_for(10)
    run = core.run_of(fetch)
    queued = core.scheduler.runs.new(core.scheduler.states["fetch"], "request test", None)
    with core.service.locked:
        core.scheduler.runs.queue(core.scheduler.states["fetch"], queued)
    run.cancel()
    core.go()

    assert (RunState.CANCELLED, RunState.SUCCEEDED, "value") == (run.state, queued.state, fetch())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_run_waits_at_most_its_own_timeout_for_its_needs(core, kind):
    """A need that never ends does not hold the reader for ever."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1h", first_run="background")(raw_function)

    def sync_reader():
        return "read"

    async def async_reader():
        return "read"

    reader = core.schedule(period="1h", first_run="background", needs=[raw], timeout="5s", name="reader")(
        sync_reader if kind == "sync" else async_reader
    )
    core.begin()
    core.run_for(10)

    assert not reader.status.running


# ------------------------------------------------------------ async functions


prices = rates = module = None  # set by the tests: what async functions name is looked up in globals


async def names_prices():
    return prices()


async def names_prices_in_a_nested_function():
    def inner():
        return [prices() for _ in range(1)]

    return inner()[0]


async def names_prices_through_a_module():
    return module.prices()


NAMING = [names_prices, names_prices_in_a_nested_function, names_prices_through_a_module]


@pytest.mark.parametrize("function", NAMING, ids=lambda function: function.__name__)
def test_an_async_function_waits_for_the_tasks_it_names(core, monkeypatch, function):
    """In its code, in nested code, and as an attribute of a module."""
    raw_function = core.held("prices")
    task = core.schedule(period="1m", first_run="skip")(raw_function)
    monkeypatch.setitem(globals(), "prices", task)
    monkeypatch.setitem(globals(), "module", types.SimpleNamespace())
    there = types.ModuleType("there")
    there.prices = task
    monkeypatch.setitem(globals(), "module", there)
    reader = core.schedule(period="1m", first_run="skip")(function)
    core.begin()
    core.run_for(60)
    before = reader.status.state
    raw_function.finish("value")
    core.go()

    assert ("queued", "value") == (before, reader())


def test_a_closure_names_its_tasks(core):
    """Free variables are looked at as well."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1m", first_run="skip")(raw_function)

    @core.schedule(period="1m", first_run="skip")
    async def reader():
        return raw()

    core.begin()
    core.run_for(60)
    raw_function.finish("value")
    core.go()

    assert "value" == reader()


def test_the_tasks_named_in_nested_code_are_found(core):
    """Comprehensions, lambdas and functions in functions."""
    raw = core.schedule(period="1m", first_run="skip", name="raw")(lambda: 1)

    def outer():
        def middle():
            return lambda: [raw() for _ in "x"]

        return middle

    assert [raw] == list(named_tasks(outer))


def test_what_an_async_function_read_before_is_waited_for_from_then_on(core):
    """A task that it finds at run time is not known the first time, and is the second time."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1m", first_run="skip", default="default")(raw_function)
    found, seen = {"raw": raw}, []

    @core.schedule(period="1m", first_run="skip")
    async def reader():
        seen.append(found["raw"]())

    core.begin()
    core.run_for(60)
    raw_function.finish("one")
    core.run_for(60)
    before = list(seen)
    raw_function.finish("two")
    core.go()

    assert (["default"], ["default", "two"]) == (before, seen)


def test_a_read_in_an_async_function_never_blocks_the_loop(core):
    """Whatever is still to come, it gets the last good value at once."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1h", first_run="background", default="default")(raw_function)
    found = {"raw": raw}

    @core.schedule(period="1h", first_run="background")
    async def reader():
        return found["raw"]()

    core.begin()

    assert "default" == reader()


def test_a_plain_function_on_the_loop_does_not_block_it(core):
    """executor="loop" is ordered like an async one: a read that waited would stop what it waits for (13)."""
    seen, done = [], threading.Event()

    @core.schedule(period="1m", first_run="skip")
    async def raw():
        await asyncio.sleep(0)
        return "value"

    @core.schedule(period="1m", first_run="skip", executor="loop")
    def reader():
        seen.append(raw())

    core.begin()
    # The reader first, so that the loop meets it before what it reads.
    core.clock.advance(60)

    def turns():
        core.tick()
        done.set()

    thread = threading.Thread(target=turns, daemon=True)
    thread.start()
    ended = done.wait(2)
    if not ended:
        for wait in core.scheduler.waves.waits:
            wait.proceed()
        thread.join(PATIENCE)

    assert ended
    assert ["value"] == seen


def test_a_plain_function_on_the_loop_waits_for_nobody_in_its_body(core):
    """Beside a thread that takes its time, too: the loop goes on."""
    raw_function, done = core.held("raw"), threading.Event()
    raw = core.schedule(period="1m", first_run="skip", default="default")(raw_function)
    found = {"raw": raw}
    core.schedule(period="1m", first_run="skip", executor="loop", name="reader")(lambda: found["raw"]())
    core.begin()
    core.clock.advance(60)

    def turns():
        core.tick()
        done.set()

    thread = threading.Thread(target=turns, daemon=True)
    thread.start()
    ended = done.wait(2)
    if not ended:
        for wait in core.scheduler.waves.waits:
            wait.proceed()
        thread.join(PATIENCE)

    assert ended


# ------------------------------------------------------------ sync reads


def test_a_sync_read_waits_for_the_value_of_its_slot(core):
    """And goes on with it."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1m", first_run="skip", default="default")(raw_function)
    reader = core.schedule(period="1m", first_run="skip", name="reader")(lambda: raw())
    core.begin()
    core.run_for(60)
    run = core.run_of(reader)
    before = (run.state, core.thread.lent)
    raw_function.finish("value")

    assert "value" == run.result(PATIENCE)
    assert (RunState.RUNNING, 1) == before


def test_a_sync_read_of_its_own_value_does_not_wait(core):
    """A task may build on its last value."""
    task = core.schedule(period="1m", first_run="background", default=0, name="count")(
        lambda: core.ps.tasks["count"]() + 1
    )
    core.begin()
    core.run_for(120)

    assert 3 == task()


def test_a_read_outside_of_a_run_never_waits(core):
    """Readers never wait (invariant 8)."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1m", first_run="skip", default="default")(raw_function)
    core.begin()
    core.run_for(60)

    assert "default" == raw()


def test_a_read_in_a_refresh_never_waits(core):
    """Only scheduled runs have a slot to wait for."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1m", first_run="skip", default="default")(raw_function)
    reader = core.schedule(period="1h", first_run="skip", name="reader")(lambda: raw())
    core.begin()
    core.run_for(60)
    reader.refresh()
    core.go()

    assert "default" == reader()


def test_a_sync_read_waits_at_most_its_timeout(core):
    """Then its run is timed out, its body ends, and its state is free for the next slot."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1h", first_run="background")(raw_function)
    reader = core.schedule(period="1m", first_run="background", timeout="5s", name="reader")(lambda: raw())
    core.begin()
    run, body = core.run_of(reader), core.scheduler.states["reader"].body
    core.run_for(5)

    with pytest.raises(RunTimedOut):
        run.result(PATIENCE)
    with pytest.raises(RunTimedOut):
        body.result(2)


def test_a_sync_read_that_is_cancelled_ends(core):
    """The body that waits hears of the cancel."""
    raw_function = core.held("raw")
    raw = core.schedule(period="1h", first_run="background")(raw_function)
    reader = core.schedule(period="1m", first_run="background", name="reader")(lambda: raw())
    core.begin()
    run, body = core.run_of(reader), core.scheduler.states["reader"].body
    run.cancel()

    assert body.exception(PATIENCE) is not None
    assert RunState.CANCELLED is run.state


def test_waiting_readers_give_their_places_back():
    """Four readers on four threads wait for a fifth task, which still finds a place."""
    config = Config({})
    config.max_threads = 4
    runtime = Runtime(config, SystemClock())
    front, gate = Front(runtime), threading.Barrier(4, timeout=PATIENCE)
    readers = []

    def read():
        gate.wait()  # all four are running
        return raw()

    # Registered before what they read, so that they take the four places.
    for number in range(4):
        readers.append(front.schedule(period="1h", name=f"reader{number}")(read))
    raw = front.schedule(period="1h", name="raw")(lambda: "value")
    runtime.scheduler.begin()

    try:
        assert ["value"] * 4 == [reader.wait_ready(PATIENCE) for reader in readers]
    finally:
        runtime.service.stop(0)


# ------------------------------------------------------------ cycles


def test_a_task_cannot_follow_itself(core, monkeypatch):
    """A new definition that closes a circle is a CycleError that names the way round."""
    a = core.schedule(period="1m", name="a")(lambda: 1)
    b = core.schedule(after=a, name="b")(lambda: 1)
    c = core.schedule(period="1m", needs=b, name="c")(lambda: 1)
    core.schedule(period="1m", name="d")(lambda: 1)
    policy = core.ps.schedule(after=c).args[0]

    with pytest.raises(CycleError, match="a -> c -> b -> a"):
        require_no_cycle(a, policy)


def test_an_edited_file_that_closes_a_circle_is_refused(core, monkeypatch):
    """Under --dev, and the old definition stays."""
    monkeypatch.setattr(pn.config, "autoreload", True)
    space = {}
    source = "def a(): return {}\n"
    exec(compile(source.format(1), "/tmp/tasks.py", "exec"), space)
    a = core.schedule(period="1m")(space["a"])
    b = core.schedule(after=a, name="b")(lambda: 1)
    exec(compile(source.format(2), "/tmp/tasks.py", "exec"), space)

    with pytest.raises(CycleError, match=r"'a'.*a -> b -> a.*after= or needs="):
        core.schedule(after=b)(space["a"])
    assert 1 == a.function()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_circle_of_reads_is_no_deadlock(core, kind):
    """One of them reads the last good value, and all end (invariant 9)."""
    tasks = {}

    def sync_reader(other):
        return lambda: (tasks[other](), other)

    def async_reader(other):
        async def read():
            return tasks[other](), other

        return read

    make = sync_reader if kind == "sync" else async_reader
    ring = "abc"
    for name, other in zip(ring, "bca", strict=True):
        tasks[name] = core.schedule(period="1m", first_run="background", name=name, default="none")(make(other))
    core.begin()
    runs = [core.scheduler.states[name].run for name in ring]
    for run in filter(None, runs):
        run.result(PATIENCE)
    core.run_for(60)
    for run in filter(None, [core.scheduler.states[name].run for name in ring]):
        run.result(PATIENCE)

    assert [2, 2, 2] == [tasks[name].entry.version for name in ring]


def test_async_functions_that_name_each_other_are_no_deadlock(core, monkeypatch):
    """Foreseen reads in a circle: the first of them goes ahead."""

    async def reads_rates():
        return "prices", rates()

    async def reads_prices():
        return "rates", prices()

    monkeypatch.setitem(globals(), "prices", core.schedule(period="1m", name="prices")(reads_rates))
    monkeypatch.setitem(globals(), "rates", core.schedule(period="1m", name="rates")(reads_prices))
    core.begin()
    core.run_for(120)

    assert (3, 3) == (prices.entry.version, rates.entry.version)
    assert second(120) == prices.history[0].key
