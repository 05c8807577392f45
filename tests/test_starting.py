"""First runs, dates, start and stop."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import timedelta

import panel as pn
import pytest
from bokeh.application import Application
from panel.io.session import generate_session
from panel.io.state import set_curdoc

from core import PATIENCE, keys, messages, second
from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.engine.service import Service
from panel_schedule.errors import ConfigError, StoreError
from panel_schedule.functions.run import Run, RunState
from panel_schedule.runtime import Runtime
from panel_schedule.stores.memory import MemoryStore

# ------------------------------------------------------------ dates


def test_dates_run_once_each_and_then_no_more(core):
    """After the last one there is no next run; the task and its value stay."""
    task = core.schedule(at=[second(10), second(20)], name="fetch")(lambda: core.clock.now())
    core.begin()
    core.run_for(60)

    assert [second(10), second(20)] == keys(task)
    assert (second(20), None) == (task(), task.status.next_run)
    assert "fetch" in core.ps.tasks


def test_a_callable_is_asked_for_each_next_date(core):
    """at=f(now_utc) with None at the end."""
    asked = []

    def at(now):
        asked.append(now)
        return now + timedelta(seconds=10) if len(asked) < 3 else None

    task = core.schedule(at=at, name="fetch")(lambda: core.clock.now())
    core.begin()
    core.run_for(60)

    assert [second(10), second(20)] == keys(task)
    assert [second(0), second(10), second(20)] == asked


def test_a_callable_that_raises_is_asked_again(core, caplog):
    """The failure is logged with the task's name, and the schedule goes on (section 4, traps)."""
    answers = iter([second(10), OSError("calendar"), second(60), None])

    def at(now):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    task = core.schedule(at=at, name="fetch")(lambda: core.clock.now())
    core.begin()
    core.run_for(120)

    assert [second(10), second(60)] == keys(task)
    assert "'fetch'" in messages(caplog)[0]


def test_a_callable_that_raises_at_the_start_is_asked_again(core, caplog):
    """At the first question, too."""
    answers = iter([OSError("calendar"), second(60), None])

    def at(now):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    task = core.schedule(at=at, name="fetch")(lambda: core.clock.now())
    core.begin()
    core.run_for(120)

    assert [second(60)] == keys(task)


def test_a_callable_that_raises_does_not_keep_the_others_from_starting(core):
    """With a first run, too: whatever at= does, the other tasks have theirs."""

    def at(now):
        raise OSError("calendar")

    task = core.schedule(at=at, name="dates", first_run="background")(lambda: 1)
    other = core.schedule(period="1h", name="other", first_run="background")(lambda: 2)
    core.begin()

    assert (1, 2) == (task(), other())


# ------------------------------------------------------------ first runs


def test_the_server_waits_for_first_runs_by_default(core):
    """first_run="wait": the gate names the task until its value is there."""
    slow = core.held("slow")
    task = core.schedule(period="1h")(slow)
    core.begin()
    before = core.runtime.waiting_for()
    slow.finish(1)

    assert ([task], []) == (before, core.runtime.waiting_for())


def test_a_first_run_takes_the_latest_slot(core):
    """Its key is the slot that is due, so that it does not run twice (invariant 8)."""
    core.clock.advance(90)
    task = core.schedule(period="1m")(core.held("slow"))
    core.begin()

    assert second(60) == core.run_of(task).key
    assert second(120) == task.status.next_run


@pytest.mark.parametrize(("first_run", "runs"), [("wait", 1), ("background", 1), ("skip", 0)])
def test_first_run_says_whether_there_is_one(core, first_run, runs):
    """And only "wait" holds the visitors."""
    slow = core.held("slow")
    core.schedule(period="1h", first_run=first_run)(slow)
    core.begin()

    assert (runs, first_run == "wait") == (slow.calls, bool(core.runtime.waiting_for()))


def test_tasks_with_dates_skip_their_first_run_by_default(core):
    """An appointment is kept at its time."""
    count = []
    core.schedule(at=[second(10)], name="fetch")(lambda: count.append(core.clock.now()))
    core.begin()
    core.run_for(20)

    assert [second(10)] == count


def test_a_first_run_that_fails_is_fatal_if_the_server_waits_for_it(core):
    """Only then (invariant 8)."""
    told = []
    core.scheduler.fatal = lambda task, run: told.append((task.name, run.state))

    def broken():
        raise OSError("gone")

    core.schedule(period="1h", name="waited")(broken)
    core.schedule(period="1h", name="background", first_run="background")(broken)
    core.begin()

    assert [("waited", RunState.FAILED)] == told


def test_a_later_failure_is_not_fatal(core):
    """There is a last good value."""
    told = []
    core.scheduler.fatal = lambda task, run: told.append(task.name)
    outcomes = iter([1, OSError("x")])

    @core.schedule(period="1m")
    def fetch():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    core.begin()
    core.run_for(60)

    assert [] == told


def test_a_follower_has_its_first_run_when_its_upstream_has_a_value(core):
    """The gate waits for both (invariant 8)."""
    slow = core.held("slow")
    raw = core.schedule(period="1h")(slow)
    child = core.schedule(after=raw, name="child")(lambda: raw() * 2)
    core.begin()
    before = core.runtime.waiting_for()
    slow.finish(21)
    core.go()

    assert ([raw, child], []) == (before, core.runtime.waiting_for())
    assert 42 == child()


def test_a_task_that_warming_up_has_registered_is_waited_for(core, caplog):
    """``--warm`` runs an app before the server is there: no visitor has asked for less (invariant 8)."""
    session = generate_session(Application(), initialize=False)
    with set_curdoc(session.document):
        task = core.schedule(period="1h", name="sales")(lambda: 42)

    assert ([task], []) == (core.runtime.waiting_for(), messages(caplog))


def test_the_gate_does_not_wait_for_what_nothing_brings(core):
    """A follower of a task that skips its first run holds nobody."""
    raw = core.schedule(period="1h", first_run="skip", name="raw")(lambda: 1)
    core.schedule(after=raw, name="child")(lambda: 1)
    core.begin()

    assert [] == core.runtime.waiting_for()


def test_the_gate_survives_a_cancelled_upstream(core):
    """Tasks may go; who follows them does not hold up the server, and breaks nothing."""
    raw = core.schedule(period="1h", first_run="skip", name="raw")(lambda: 1)
    core.schedule(after=raw, name="child")(lambda: 1)
    core.begin()
    core.ps.cancel_task("raw")

    assert [] == core.runtime.waiting_for()


def test_a_task_registered_later_starts_at_once(core):
    """The clocks run already."""
    core.begin()
    task = core.schedule(period="1h", name="late")(lambda: "value")
    core.go()

    assert "value" == task()


@pytest.fixture
def ended(core):
    """A server that ends when a first run has failed: those that have."""
    told = []
    core.runtime.fatal = lambda task, run: told.append((task.name, run.state))
    return told


def broken():
    raise OSError("gone")


@pytest.mark.parametrize(
    ("option", "setup", "ends"),
    [(None, True, True), (None, False, False), ("serve", True, False), ("exit", False, True)],
)
def test_who_is_ended_by_a_first_run_that_fails(core, ended, monkeypatch, option, setup, ends):
    """`panel serve --setup` alone, unless ps.config.first_run_failure says it otherwise (8)."""
    monkeypatch.setattr(pn.state, "_setup_module", object() if setup else None)
    core.config._frozen = False
    core.config.first_run_failure = option
    core.schedule(period="1h", name="task")(broken)
    core.begin()

    assert ends == bool(ended)
    assert ends == bool(core.runtime.waiting_for())  # else the pages are built


def test_the_schedule_goes_on_after_a_first_run_that_failed(core, ended, caplog):
    """The log has the traceback, the status what a page shows, and the next slot its value."""
    outcomes = iter([OSError("gone"), 42])

    @core.schedule(period="1h")
    def task():
        if isinstance(outcome := next(outcomes), Exception):
            raise outcome
        return outcome

    core.begin()
    (message,) = messages(caplog)
    assert "'task' failed" in message
    assert "there is no value yet: OSError: gone" in message
    assert "in task" in caplog.text
    assert ("failed", "OSError: gone") == (task.status.state, task.status.error)
    core.run_for(3600)

    assert (42, []) == (task(), ended)


def test_a_first_run_is_tried_again_before_it_has_failed(core, ended, monkeypatch):
    """retry= is spent first (8)."""
    monkeypatch.setattr(pn.state, "_setup_module", object())
    outcomes = iter([OSError("gone"), OSError("gone"), 42])

    @core.schedule(period="1h", retry=2)
    def task():
        if isinstance(outcome := next(outcomes), Exception):
            raise outcome
        return outcome

    core.begin()
    assert ([], [task]) == (ended, core.runtime.waiting_for())
    core.run_for(60)

    assert ([], 42) == (ended, task())


def test_pages_do_not_wait_for_a_first_run_that_timed_out(core, ended):
    """Nor for a follower, which has nothing to follow."""
    raw = core.schedule(period="1h", timeout="10s")(core.held("raw"))
    core.schedule(after=raw, name="child")(lambda: 1)
    core.begin()
    assert 2 == len(core.runtime.waiting_for())
    core.run_for(10)

    assert ([], []) == (ended, core.runtime.waiting_for())


def test_pages_do_not_wait_for_the_follower_of_a_task_that_failed_in_the_background(core):
    """It would be held until a slot that may be an hour away."""
    raw = core.schedule(period="1h", first_run="background", name="raw")(broken)
    core.schedule(after=raw, name="child")(lambda: 1)
    core.begin()

    assert [] == core.runtime.waiting_for()


# ------------------------------------------------------------ lifecycle


def test_the_service_thread_starts_again_after_a_stop():
    """Start and stop are fine in any order, however quickly they follow each other (section 4)."""
    inside, leave, fired = threading.Event(), threading.Event(), threading.Event()

    def lingers():
        inside.set()
        leave.wait(PATIENCE)

    service = Service(SystemClock(), MemoryStore(), {})
    service.timers.after(0, lambda _: service.defer(lingers), None)
    service.start()
    assert inside.wait(PATIENCE)
    service.stop(0)
    service.start()
    with service.locked:
        service.timers.after(0, lambda _: fired.set(), None)
    leave.set()

    assert fired.wait(2)
    service.stop(0)


def test_stop_ends_what_has_not_begun(core):
    """Queued runs never start; the clocks decide nothing any more."""
    slow = core.held("slow")
    task = core.schedule(period="1m", first_run="skip", overlap="queue")(slow)
    core.begin()
    core.run_for(120)
    queued = core.queued(task)
    core.service.stop(0)
    slow.finish()
    core.run_for(600)

    assert (RunState.CANCELLED, 1) == (queued.state, slow.calls)


def test_nothing_new_begins_after_a_stop(core):
    """What is in flight when the grace period is over has ended; no new claims (invariants 17, 19)."""
    slow, count = core.held("slow"), []
    raw = core.schedule(period="1h", first_run="background")(slow)
    child = core.schedule(after=raw, name="child")(lambda: count.append(1))
    core.begin()
    run = core.run_of(raw)
    core.service.stop(0)
    slow.finish("value")
    core.go()

    assert (RunState.CANCELLED, None, []) == (run.state, raw(), count)
    assert not child.status.running


def test_a_run_that_fails_after_a_stop_is_not_tried_again(core):
    """It ends: `running` goes back to False (invariants 17, 19)."""
    slow = core.held("slow")
    task = core.schedule(period="1h", first_run="background", retry=3)(slow)
    core.begin()
    run = core.run_of(task)
    core.service.stop(0)
    slow.finish(OSError("gone"))
    core.go()

    assert run.state.final
    assert not task.status.running


def test_a_server_that_starts_again_shares_the_store_again(tmp_path):
    """``pn.serve`` twice in one process: the first stop has closed the store."""
    config = Config({})
    config.store = f"file://{tmp_path / 'store'}"
    runtime = Runtime(config)
    task = Front(runtime).schedule(period="1h", first_run="skip", name="task")(lambda: "value")
    for expected in (1, 2):
        loop = asyncio.new_event_loop()
        runtime.loops.adopt(loop)
        runtime.start(loop)
        loop.run_until_complete(asyncio.sleep(0))
        assert "value" == task.refresh().result(PATIENCE)
        assert expected == task.entry.version
        runtime.close()
        loop.close()


def test_a_name_that_was_cancelled_can_be_used_again_in_a_script(tmp_path):
    """Where no clock runs that would enrol it."""
    config = Config({})
    config.store = f"file://{tmp_path / 'store'}"
    runtime = Runtime(config)
    front = Front(runtime)
    schedule = front.schedule(period="1h", first_run="skip", name="task")
    assert 1 == schedule(lambda: 1).refresh().result(PATIENCE)
    front.cancel_task("task")

    assert 2 == schedule(lambda: 2).refresh().result(PATIENCE)
    runtime.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_runs_of_a_forks_children_are_told_apart():
    """They share a store (15), and what their parent had prepared for its next runs."""
    reader, writer = os.pipe()
    pids, _ = [], Run("task", None, second(0))
    for _ in range(2):
        pids.append(os.fork())
        if pids[-1] == 0:
            os.write(writer, f"{Run('task', None, second(0)).id}\n".encode())
            os._exit(0)
    for pid in pids:
        os.waitpid(pid, 0)
    ids = os.read(reader, 1000).decode().split()
    os.close(reader), os.close(writer)

    assert 2 == len(set(ids)) == len(ids)


# ------------------------------------------------------------ a store that cannot be opened


@pytest.fixture
def taken(tmp_path):
    """The path of a store's directory, where a file is."""
    path = tmp_path / "store"
    path.write_text("a file")
    return path


def test_a_store_that_cannot_be_opened_is_the_error_of_who_needs_it(taken):
    """In a script; a directory that is mended serves the next one who asks, and so does another one."""
    config = Config({})
    config.store = f"file://{taken}"
    runtime = Runtime(config)
    front = Front(runtime)
    task = front.schedule(period="1h", first_run="skip", name="task")(lambda: "value")
    uses = [task.refresh, task.wait_ready, front.run_forever, lambda: task.status, lambda: front.store["x"]]
    for use in uses:
        with pytest.raises(StoreError, match=f"{taken} cannot be made.*ps.config.store"):
            use()
    taken.unlink()
    config.store = f"file://{taken}"  # not frozen: nothing has started

    assert "value" == task.refresh().result(PATIENCE)
    runtime.close()


def test_the_clocks_start_when_the_store_can_be_opened(taken):
    """Each visitor tries it again; nothing fails in the loop meanwhile."""
    config, told, failed = Config({}), [], []
    config.store = f"file://{taken}"
    runtime = Runtime(config)
    runtime.unusable = lambda error: told.append(str(error))
    task = Front(runtime).schedule(period="1h", name="task")(lambda: "value")
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: failed.append(context))
    for _ in range(2):
        runtime.start(loop)
        loop.run_until_complete(asyncio.sleep(0))
    taken.unlink()
    runtime.start(loop)
    loop.run_until_complete(asyncio.sleep(0))

    assert "value" == loop.run_until_complete(task.ready(PATIENCE))
    assert ([], 2) == (failed, len(told))
    runtime.close()
    loop.close()


def test_an_environment_that_means_nothing_is_said_at_the_first_use():
    """An import that fails in a setup script would pass unnoticed where there are several processes."""
    runtime = Runtime(Config({"PANEL_SCHEDULE_STORE": "nonsense"}, strict=False))
    task = Front(runtime).schedule(period="1h", first_run="skip", name="task")(lambda: "value")

    with pytest.raises(ConfigError, match="nonsense"):
        task.refresh()
