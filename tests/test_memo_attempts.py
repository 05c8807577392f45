"""Memoized functions that take too long, that are tried again, and that say how far they have come (2.4, 17, 18)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress

import pandas as pd
import pytest

from core import PATIENCE, messages
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import RegistrationError, RunCancelled, RunCrashed, RunTimedOut, TriggerError
from panel_schedule.functions.run import RunState, current_run, progress, track
from panel_schedule.functions.task import Retry
from panel_schedule.runtime import Runtime
from servers import eventually


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


class Gate:
    """Holds functions until it is opened; at the end of a test none stays in its thread."""

    def __init__(self):
        self.begun, self.opened = threading.Semaphore(0), threading.Event()

    def __call__(self):
        self.begun.release()
        assert self.opened.wait(PATIENCE)

    def await_begun(self):
        assert self.begun.acquire(timeout=PATIENCE)


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.opened.set()


def outcome(run):
    """The state of a run and what it has come to, as text."""
    with suppress(Exception):
        return run.state.value, run.outcome()
    return run.state.value, type(run.error).__name__


# ------------------------------------------------------------ timeout


def test_who_waits_hears_of_the_timeout_while_the_function_is_abandoned(core):
    """Whoever waits; and its value, which comes too late, is dropped."""
    function = core.held("f")
    f = core.ps.memoize(name="f", timeout="5s")(function)
    runs = [f.submit() for _ in range(3)]
    core.go()
    core.run_for(4.9)
    assert [RunState.RUNNING] * 3 == [run.state for run in runs]
    core.run_for(0.2)
    assert [("timed_out", "RunTimedOut")] * 3 == [outcome(run) for run in runs]
    assert "Memoized function 'f': it did not finish within its timeout of 5 s" in str(runs[0].error)
    assert 1 == function.flying
    function.finish("late")
    core.go()
    assert f.entry() is None


def test_the_timeout_counts_from_the_start_of_the_function(core):
    """What waits for a place does not take time."""
    f = core.ps.memoize(name="f", timeout="5s")(core.held("f"))
    run = f.submit()
    core.clock.advance("1h")
    core.go()
    core.run_for(4)
    assert RunState.RUNNING is run.state


def test_who_comes_after_a_timeout_tries_again(core):
    function = core.held("f")
    f = core.ps.memoize(name="f", timeout="5s")(function)
    f.submit()
    core.go()
    core.run_for(5.1)
    again = f.submit()
    core.go()
    function.finish("late")
    function.finish("good")
    core.go()
    assert ("succeeded", "good") == outcome(again)
    assert "good" == f.entry().value


def test_with_a_timeout_nothing_is_computed_on_the_thread_of_a_caller(ps):
    """He would not get away at the timeout."""
    f = ps.memoize(name="f", timeout="10s")(threading.current_thread)
    assert f() is not threading.current_thread()


@pytest.mark.parametrize("kind", ["thread", "loop", "process"])
def test_a_caller_gets_away_at_the_timeout(ps, kind, gate, tmp_path):
    """A coroutine is cancelled, and a worker process has ended."""
    ended = threading.Event()
    if kind == "thread":

        @ps.memoize(timeout="0.2s")
        def f(path):
            gate()
    elif kind == "loop":

        @ps.memoize(timeout="0.2s")
        async def f(path):
            try:
                await asyncio.sleep(PATIENCE * 6)
            finally:
                ended.set()
    else:

        @ps.memoize(timeout="2s", executor="process")  # within which it has said who it is, on a busy machine, too
        def f(path):
            import os
            import time
            from pathlib import Path

            Path(path).write_text(str(os.getpid()))
            time.sleep(600)

    start = time.monotonic()
    with pytest.raises(RunTimedOut, match=r"timeout of (0\.2|2) s"):
        asyncio.run(f(str(tmp_path / "pid"))) if kind == "loop" else f(str(tmp_path / "pid"))
    assert time.monotonic() - start < 6 * PATIENCE
    if kind == "loop":
        assert ended.wait(PATIENCE)
    elif kind == "process":
        pid = int((tmp_path / "pid").read_text())
        eventually(lambda: not _there(pid))


def _there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_coroutine_that_ignores_its_timeout_is_abandoned(core):
    go = asyncio.Event()

    @core.ps.memoize(timeout="5s")
    async def f():
        while not go.is_set():
            with suppress(asyncio.CancelledError):
                await go.wait()
        return "late"

    run = f.submit()
    core.go()
    core.run_for(5.1)
    assert ("timed_out", "RunTimedOut") == outcome(run)
    core.loop.call_soon(go.set)
    core.go()
    assert f.entry() is None


def test_at_a_timeout_the_last_good_answer_is_served(core, caplog):
    function = core.held("f")
    f = core.ps.memoize(name="f", timeout="5s", ttl="1m")(function)
    first = f.submit()
    core.go()
    function.finish("old")
    core.go()
    core.clock.advance("2m")
    run = f.submit()
    core.go()
    core.run_for(5.1)
    assert [("succeeded", "old")] * 2 == [outcome(first), outcome(run)]
    (message,) = messages(caplog)
    assert "the last good answer is served: RunTimedOut: Memoized function 'f'" in message
    function.finish("late")
    core.go()
    assert "old" == f.entry().value


def test_a_timeout_is_given_again_for_its_ttl(core):
    """As another failure is."""
    function = core.held("f")
    f = core.ps.memoize(name="f", timeout="5s", error_ttl="10s")(function)
    f.submit()
    core.go()
    core.run_for(6)
    again = f.submit()
    core.go()
    assert (("failed", "RunTimedOut"), 1) == (outcome(again), function.calls)
    core.run_for(10)
    f.submit()
    core.go()
    assert 2 == function.calls


def test_a_background_renewal_that_takes_too_long_keeps_the_answer(core):
    function = core.held("f")
    f = core.ps.memoize(name="f", timeout="5s", ttl="1m", max_stale="1h")(function)
    f.submit()
    core.go()
    function.finish("old")
    core.go()
    core.clock.advance("2m")
    for _ in range(2):
        assert "old" == f()
        core.go()
        core.run_for(6)
    assert 3 == function.calls


def test_a_value_that_is_being_stored_is_in_time(core, monkeypatch):
    """The function has ended: a timeout at that very moment would tell those who wait of another end than the store."""
    function = core.held("f")
    f = core.ps.memoize(name="f", timeout="5s", max_bytes=10**6)(function)
    run = f.submit()
    core.go()

    def encode(value, name):
        core.clock.advance("1h")
        core.service.tick()
        return real(value, name)

    from panel_schedule.cache import computation

    real = computation.encode
    monkeypatch.setattr(computation, "encode", encode)
    function.finish("in time")
    core.go()
    assert ("succeeded", "in time") == outcome(run)
    assert "in time" == f.entry().value


def test_a_timeout_just_before_the_end_wins(core):
    """Each way there is one outcome: its value is not kept."""
    function = core.held("f")
    f = core.ps.memoize(name="f", timeout="5s")(function)
    run = f.submit()
    core.go()
    core.clock.advance("5s")
    core.service.tick()  # and nothing that it leads to
    function.finish("late")
    core.go()
    assert (("timed_out", "RunTimedOut"), None) == (outcome(run), f.entry())


async def test_a_loop_that_waits_for_an_answer_gets_away_at_its_timeout(ps, gate):
    """Nothing turns it meanwhile."""

    @ps.memoize(timeout="0.2s")
    def f():
        gate()

    with pytest.raises(RunTimedOut):
        f()


async def test_a_loop_that_waits_gets_away_from_a_coroutine_that_needs_it(ps, gate):
    """Which runs on another one then."""

    @ps.memoize
    async def inner():
        await asyncio.sleep(PATIENCE * 6)

    @ps.memoize(timeout="0.2s")
    def outer():
        return inner.submit().result()

    with pytest.raises(RunTimedOut, match="'outer'"):
        outer()


def test_functions_that_are_abandoned_give_their_places_back(ps, gate):
    """There are two threads."""

    @ps.memoize(timeout="0.1s")
    def f(n):
        if n < 6:
            gate()
        return n

    for run in [f.submit(n) for n in range(6)]:
        with pytest.raises(RunTimedOut):
            run.result(PATIENCE)
    assert 6 == f(6)
    gate.opened.set()
    eventually(lambda: not ps._runtime.service.executors["memo-thread"].busy)
    assert 7 == f(7)


def test_functions_with_timeouts_that_need_others_do_not_wait_for_a_thread(ps):
    """Deeper than there are threads: who waits lends his place."""

    @ps.memoize(timeout="30s")
    def total(n):
        return n + total(n - 1) if n else 0

    assert 210 == total(20)
    assert sum(range(31)) == total.submit(30).result(PATIENCE)


def test_a_function_that_waits_for_one_that_takes_too_long_hears_of_it(ps, gate):
    """It is its failure; one of its own is told as such."""

    @ps.memoize(timeout="0.1s")
    def inner(n):
        gate()

    @ps.memoize(timeout="30s", stale_if_error=False)
    def outer(n):
        try:
            return inner(n)
        except RunTimedOut as error:
            return f"without: {error}"

    assert "without: Memoized function 'inner'" in outer(1)

    @ps.memoize(timeout="0.1s")
    def impatient(n):
        return patient(n)

    @ps.memoize(timeout="30s")
    def patient(n):
        gate()
        return "in the end"

    with pytest.raises(RunTimedOut, match="'impatient'"):
        impatient(1)
    waits = patient.submit(1)
    gate.opened.set()
    assert "in the end" == waits.result(PATIENCE)


def test_an_abandoned_function_is_told_to_stop(ps):
    told = threading.Event()

    @ps.memoize(timeout="0.1s")
    def f():
        run = current_run()
        while not run.cancelled:
            time.sleep(0.001)
        try:
            progress(1)
        except RunTimedOut:
            told.set()
        run.publish("late")

    with pytest.raises(RunTimedOut):
        f()
    assert told.wait(PATIENCE)
    eventually(lambda: not ps._runtime.service.executors["memo-thread"].busy)
    assert f.entry() is None


def test_what_is_over_leaves_nothing_behind(core):
    """Neither a timer, nor a computation that knows itself."""
    function = core.held("f")
    f = core.ps.memoize(name="f", timeout="5s", retry=Retry(2, backoff="1s"), stale_if_error=False)(function)
    run = f.submit()
    core.go()
    (computation,) = core.runtime.single_flight._all
    function.finish(OSError())
    core.run_for(1.1)
    function.finish("good")
    core.go()
    assert ("succeeded", "good") == outcome(run)
    timed_out = f.refresh()
    core.go()
    (late,) = core.runtime.single_flight._all
    core.run_for(5.1)
    assert RunState.TIMED_OUT is timed_out.state
    function.finish("late")
    core.go()
    for each in (computation, late):
        assert (None, None, None) == (each.body, each.future, each.run._execution)
    assert {} == core.runtime.single_flight._all
    assert 0 == len(core.service.timers)


# ------------------------------------------------------------ retry


def test_who_waits_waits_through_the_attempts(core, caplog):
    """Which follow each other as `Retry` says, and are counted."""
    attempts = []

    @core.ps.memoize(retry=Retry(3, backoff="10s"))
    def f():
        attempts.append((core.clock.monotonic(), current_run().attempt))
        if len(attempts) < 3:
            raise OSError(f"attempt {len(attempts)}")
        return "at last"

    runs = [f.submit(), f.submit()]
    start = core.clock.monotonic()
    core.go()
    assert [("queued", 2)] * 2 == [(run.state.value, run.attempt) for run in runs]
    runs.append(f.submit())
    core.run_for(31)
    assert [(0, 1), (10, 2), (30, 3)] == [(round(at - start), attempt) for at, attempt in attempts]
    assert [("succeeded", "at last")] * 3 == [outcome(run) for run in runs]
    assert [3] * 3 == [run.attempt for run in runs]
    assert ["attempt 1", "attempt 2"] == [message.rpartition(": ")[2] for message in messages(caplog)]
    assert "Memoized function 'f': attempt 1 of 3 failed (run " in messages(caplog)[0]
    assert ": f()), the next follows in 10 s" in messages(caplog)[0]


def test_after_the_last_attempt_all_hear_of_it_once(core):
    attempts = []

    @core.ps.memoize(retry=Retry(2, backoff="1s"), error_ttl="1h")
    def f():
        attempts.append(1)
        raise OSError(f"attempt {len(attempts)}")

    runs = [f.submit(), f.submit()]
    core.go()
    core.run_for(2)
    assert ["attempt 2"] * 2 == [str(run.error) for run in runs]
    assert "attempt 2" == str(f.submit().error)


def test_the_last_good_answer_is_served_after_the_last_attempt(core):
    attempts = []

    @core.ps.memoize(ttl="1m", retry=Retry(2, backoff="1s"))
    def f():
        attempts.append(1)
        if len(attempts) > 1:
            raise OSError
        return "old"

    f()
    core.clock.advance("2m")
    run = f.submit()
    core.go()
    assert (RunState.QUEUED, 2) == (run.state, len(attempts))
    core.run_for(2)
    assert (("succeeded", "old"), 3) == (outcome(run), len(attempts))


def test_a_caller_on_whose_thread_it_fails_waits_for_the_next_attempt(ps):
    """Which is not his to make: others may wait for it, too."""
    threads = []

    @ps.memoize(retry=Retry(2, backoff="50ms"))
    def f():
        threads.append(threading.current_thread())
        if len(threads) == 1:
            raise OSError
        return "good"

    assert "good" == f()
    assert [True, False] == [thread is threading.current_thread() for thread in threads]


def test_who_comes_between_two_attempts_does_not_hurry_the_next_one(ps):
    """He would compute at once what is to have a rest."""
    attempts = []

    @ps.memoize(retry=Retry(2, backoff="500ms"))
    def f():
        attempts.append(time.monotonic())
        if len(attempts) == 1:
            raise OSError
        return "good"

    run = f.submit()
    eventually(lambda: run.attempt == 2)
    assert ["good", "good"] == [f(), run.result(PATIENCE)]
    assert attempts[1] - attempts[0] >= 0.45


@pytest.mark.parametrize("kind", ["thread", "process", "loop"])
def test_each_attempt_gets_the_arguments_as_they_were(ps, kind, tmp_path):
    """Though the function changes them."""

    def body(rows, frame, path):
        seen = (list(rows), frame["a"].tolist())
        rows.append(99)
        frame.loc[0, "a"] = 99
        with open(path, "a") as file:
            file.write("attempt\n")
        with open(path) as file:
            if len(file.readlines()) < 3:
                raise OSError
        return seen

    if kind == "loop":

        @ps.memoize(retry=Retry(3, backoff="1ms"))
        async def f(rows, frame, path):
            return body(rows, frame, path)
    else:
        f = ps.memoize(name="f", retry=Retry(3, backoff="1ms"), executor=kind)(body)
    rows, frame = [1, 2], pd.DataFrame({"a": [1, 2]})
    run = f.submit(rows, frame, str(tmp_path / "attempts"))
    rows.append(3)  # the caller's own affair
    assert (([1, 2], [1, 2]), 3) == (run.result(PATIENCE * 6), run.attempt)


def test_a_worker_process_that_dies_is_one_attempt(ps, tmp_path):
    @ps.memoize(executor="process", retry=Retry(2, backoff="1ms"))
    def f(path, times):
        import os
        import signal
        from pathlib import Path

        died = Path(path)
        count = len(died.read_text()) if died.exists() else 0
        if count < times:
            died.write_text("x" * (count + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return f"after {count}"

    assert "after 1" == f.submit(str(tmp_path / "once"), 1).result(PATIENCE * 6)
    with pytest.raises(RunCrashed):
        f.submit(str(tmp_path / "twice"), 2).result(PATIENCE * 6)


def test_an_argument_that_cannot_travel_is_not_tried_again(ps):
    f = ps.memoize(name="f", executor="process", retry=Retry(5, backoff="1h"), key=lambda lock: 1)(lambda lock: 1)
    start = time.monotonic()
    with pytest.raises(Exception, match="'f'"):
        f.submit(threading.Lock()).result(PATIENCE)
    assert time.monotonic() - start < PATIENCE


def test_between_two_attempts_the_last_one_to_leave_ends_it(core):
    """Nobody wants the next one."""
    attempts = []

    @core.ps.memoize(retry=Retry(3, backoff="10s"))
    def f():
        attempts.append(1)
        raise OSError

    first, second = f.submit(), f.submit()
    core.go()
    first.cancel()
    core.run_for(11)
    assert (2, RunState.QUEUED) == (len(attempts), second.state)
    second.cancel()
    core.run_for(60)
    assert (2, {}) == (len(attempts), core.runtime.single_flight._all)
    with pytest.raises(RunCancelled):
        second.result(0)


def test_what_is_invalidated_between_two_attempts_is_not_kept(core):
    """Who waited gets it; who asks from then on has another one computed."""
    function = core.held("f")
    f = core.ps.memoize(name="f", retry=Retry(2, backoff="10s"))(function)
    run = f.submit()
    core.go()
    function.finish(OSError())
    core.go()
    f.invalidate()
    later = f.submit()
    core.go()
    core.run_for(11)
    function.finish("new")
    function.finish("old")
    core.go()
    assert [("succeeded", "old"), ("succeeded", "new")] == [outcome(run), outcome(later)]
    assert "new" == f.entry().value


def test_nothing_is_tried_again_when_the_server_stops(core):
    """Not what waits for its next attempt, and not what fails while it stops."""
    function = core.held("f")
    f = core.ps.memoize(name="f", retry=Retry(3, backoff="10s"))(lambda n: function())
    waits, runs = f.submit(1), f.submit(2)
    core.go()
    function.finish(OSError())
    core.go()
    core.service.stopping = True
    core.runtime.single_flight.stop()
    assert RunState.CANCELLED is waits.state
    function.finish(OSError("it failed while the server stopped"))
    core.go()
    assert RunState.FAILED is runs.state
    core.run_for(60)
    assert (2, {}) == (function.calls, core.runtime.single_flight._all)


def test_the_server_stops_during_the_delay(runtime, ps):
    """At once: nobody waits for the next attempt."""

    @ps.memoize(retry=Retry(3, backoff="1h"))
    def f():
        raise OSError

    run = f.submit()
    eventually(lambda: run.attempt == 2)
    start = time.monotonic()
    runtime.close()
    with pytest.raises(RunCancelled, match="the server stops"):
        run.result(PATIENCE)
    assert time.monotonic() - start < PATIENCE / 2


@pytest.fixture
def interruptible():
    """Ctrl-C reaches this process, also one that was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_of_one_who_waits_does_not_hurry_the_next_attempt(ps):
    """The thread that was here for it goes, and it is still to have its rest."""
    attempts, asked = [], threading.Event()

    @ps.memoize(retry=Retry(2, backoff="500ms"))
    def f():
        asked.set()
        attempts.append(time.monotonic())
        if len(attempts) == 1:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            raise OSError
        return "good"

    other = []
    waits = threading.Thread(target=lambda: asked.wait(PATIENCE) and other.append(f.submit().result(PATIENCE)))
    waits.start()
    with pytest.raises(KeyboardInterrupt):
        f()
    waits.join(PATIENCE)
    assert (["good"], 2) == (other, len(attempts))
    assert attempts[1] - attempts[0] >= 0.45


# ------------------------------------------------------------ both


def test_a_threads_timeout_is_final(core):
    function = core.held("f")
    f = core.ps.memoize(name="f", timeout="5s", retry=3)(function)
    run = f.submit()
    core.go()
    core.run_for(60)
    assert (("timed_out", "RunTimedOut"), 1) == (outcome(run), function.calls)


def test_a_coroutine_that_takes_too_long_is_tried_again(core):
    """Each attempt has its own time."""
    attempts = []

    @core.ps.memoize(timeout="5s", retry=Retry(3, backoff="10s"))
    async def f():
        attempts.append(current_run().attempt)
        await (asyncio.sleep(0) if len(attempts) == 3 else asyncio.Event().wait())
        return len(attempts)

    run = f.submit()
    core.go()
    core.run_for(5.1)
    assert (RunState.QUEUED, 2, [1]) == (run.state, run.attempt, attempts)
    core.run_for(60)
    assert (("succeeded", 3), [1, 2, 3]) == (outcome(run), attempts)


def test_a_process_that_takes_too_long_is_tried_again(ps, tmp_path):
    @ps.memoize(executor="process", timeout="1s", retry=Retry(2, backoff="10ms"))
    def f(path):
        import time
        from pathlib import Path

        if not Path(path).exists():
            Path(path).touch()
            time.sleep(600)
        return "good"

    run = f.submit(str(tmp_path / "tried"))
    assert ("good", 2) == (run.result(PATIENCE * 6), run.attempt)


# ------------------------------------------------------------ progress


def test_the_runs_of_all_who_wait_make_progress(core):
    """Also of who comes in the middle of it; at the end it is complete."""
    steps = []
    f = core.ps.memoize(name="f")(lambda: [(progress(n, 4, f"step {n}"), core.thread.park()) for n in (1, 3)])
    first = f.submit()
    core.go()
    second = f.submit()
    steps += [(run.percent, run.message) for run in (first, second)]
    core.thread.release()
    core.run_for(0.1)
    steps += [(run.percent, run.message) for run in (first, second)]
    core.thread.release()
    core.go()
    assert [(25, "step 1")] * 2 + [(75, "step 3")] * 2 == steps
    assert [(100, "step 3")] * 2 == [(run.percent, run.message) for run in (first, second)]


def test_who_watches_a_run_is_told_of_its_progress(core):
    f = core.ps.memoize(name="f")(lambda: (progress(1, 4), core.thread.park()))
    run, seen = f.submit(), []
    run.watch(lambda: seen.append(run.percent))
    core.go()
    assert 25 == seen[-1]


def test_each_attempt_makes_progress_anew(core):
    def body():
        core.thread.park()
        for _ in track("ab", message="{}"):
            core.thread.park()
        raise OSError

    f = core.ps.memoize(name="f", retry=Retry(2, backoff="10s"))(body)
    run = f.submit()
    core.go()
    core.thread.release(), core.thread.release()
    core.run_for(0.1)
    assert (50, "b") == (run.percent, run.message)
    core.thread.release()
    core.run_for(10.1)
    assert (2, -1, "") == (run.attempt, run.percent, run.message)


def test_progress_of_a_worker_process_reaches_those_who_wait(ps, tmp_path):
    @ps.memoize(executor="process")
    def f(path):
        import time
        from pathlib import Path

        import panel_schedule

        panel_schedule.progress(3, 4, "nearly")
        while not Path(path).exists():
            time.sleep(0.005)

    run = f.submit(str(tmp_path / "go"))
    eventually(lambda: (75, "nearly") == (run.percent, run.message))
    (tmp_path / "go").touch()
    run.result(PATIENCE)


def test_progress_of_one_function_is_none_of_another(ps):
    """One that calls it, be it on the same thread."""
    seen = []

    @ps.memoize
    def inner():
        progress(50, message="inner")

    @ps.memoize
    def outer():
        progress(10, message="outer")
        inner()
        seen.append((current_run().percent, current_run().message))

    outer()
    assert [(10, "outer")] == seen


def test_a_thousand_who_wait_do_not_make_progress_dear(ps, gate):
    """A function that reports every step pays next to nothing for those who look: they are told now and then."""
    took = []

    @ps.memoize
    def f():
        gate()
        start = time.thread_time()
        for n in range(100_000):
            progress(n, 100_000, "step")
        took.append(time.thread_time() - start)

    runs = [f.submit() for _ in range(1000)]
    told = []
    for run in runs:
        run.watch(lambda: told.append(1))
    gate.opened.set()
    assert [None] * 1000 == [run.result(PATIENCE) for run in runs]
    assert took[0] < 2.0
    assert len(told) < 1000 * 100
    assert {100} == {run.percent for run in runs}


# ------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout": 0}, TriggerError, "timeout=0 is no duration"),
        ({"timeout": "x"}, TriggerError, "timeout='x' is no duration"),
        ({"timeout": -1}, TriggerError, "timeout=-1 is no duration"),
        ({"timeout": True}, TriggerError, "timeout=True is no duration"),
        ({"retry": -1}, RegistrationError, r"retry=-1 must be a count of 0 or more, or a Retry\(...\)"),
        ({"retry": "2"}, RegistrationError, "retry='2' must be a count"),
        ({"retry": True}, RegistrationError, "retry=True must be a count"),
    ],
)
def test_what_means_nothing_is_refused_at_once(ps, options, error, message):
    """Where the decorator stands; with the name, where that is known."""
    with pytest.raises(error, match=rf"^@ps\.memoize in {__file__}:\d+: {message}"):
        ps.memoize(**options)
    with pytest.raises(error, match=rf"^Memoized function 'named': {message}"):
        ps.memoize(name="named", **options)
