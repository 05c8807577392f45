"""Several processes share a store: each slot runs once, and all of them show the same."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from itertools import pairwise

import pytest

import panel_schedule.engine.outbox
from core import PATIENCE, START, Core, keys, messages, second, short
from panel_schedule.coordination.record import Refusal
from panel_schedule.coordination.tasks import TASK
from panel_schedule.errors import RegistrationError, RunCancelled, RunCrashed, RunFailed, StoreError
from panel_schedule.functions.run import RunState, progress
from panel_schedule.stores.file.store import FileStore
from panel_schedule.stores.postgres import PostgresStore
from panel_schedule.stores.redis import RedisStore
from panel_schedule.testing import VirtualClock

pytestmark = pytest.mark.unhurried


class Server:
    """
    A server of several processes, all of which live in this one.

    Each has a store of its own on one directory, or one namespace; the clock is the same. Nothing happens by itself:
    `settle` lets everybody do what there is to be done, and hear of each other.
    """

    def __init__(self, stack):
        self.clock = VirtualClock(START)
        self.cores = []
        self._stack = stack
        self.name = "server"
        self.persistent = True

    def join(self, ahead=0):
        """Another process, whose clock is so many seconds ahead."""
        clock = VirtualClock(self.clock.now() + timedelta(seconds=ahead)) if ahead else self.clock
        core = self._stack.enter_context(Core(clock, self.make_store()))
        core.service.outbox.drain = lambda timeout: core.go()
        self.cores.append(core)
        return core

    def schedule(self, *when, make, **policy):
        """The task of all processes; ``make(core)`` makes its function."""
        return [core.schedule(*when, **policy)(make(core)) for core in self.cores]

    def begin(self):
        for core in self.cores:
            core.begin()
        self.settle()

    def settle(self):
        """Until nobody has anything more to do."""
        while sum(core.go() + core.hear() for core in self.cores):
            pass

    def advance(self, seconds):
        if seconds:
            self.clock.advance(seconds)
        for core in self.cores:
            core.service.tick()
        self.settle()

    def run_for(self, seconds):
        """Let time pass as in real life: each process wakes up at each of its deadlines."""
        until = self.clock.monotonic() + seconds
        while (left := until - self.clock.monotonic()) > 1e-6:
            delay = min(core.service.timers.delay() for core in self.cores)
            self.advance(max(min(delay, left), 0.001))

    def stir(self, chance):
        """One thing that some process does by itself."""
        core = chance.choice(self.cores)
        match chance.randrange(7):
            case 0:
                core.service.tick()
            case 1:
                core.hear()
            case 2:
                core.thread.go()
            case 3:
                core._turn()
            case 4:
                core.publisher.step()
            case 5 if chance.random() < 0.1:
                core.store.records._look_around()
            case _:
                core.writer.step()

    def kill(self, core):
        """It is gone, without a word."""
        self.cores.remove(core)
        self.end(core.store.records)

    def look(self):
        """What each process does once a second."""
        for core in self.cores:
            core.store.records._look_around()
        self.settle()

    def stop(self, core):
        """It stops as on SIGTERM."""
        core.service.stop(0)
        self.cores.remove(core)

    def restart(self):
        """All go; a new server has the same directory."""
        for core in list(self.cores):
            self.stop(core)
        self.name += "'"


class OnFiles(Server):
    def __init__(self, folder, stack):
        super().__init__(stack)
        self.folder = folder

    def make_store(self):
        return FileStore(self.folder, self.clock, server=self.name, persistent=self.persistent, history_limit=10_000)

    def end(self, records):
        records._liveness._living.close()


class OnServer(Server):
    def __init__(self, make, server, namespace, stack):
        super().__init__(stack)
        self.make, self.url, self.namespace = make, server.url, namespace

    def make_store(self):
        return self.make(self.url, self.clock, server=self.name, history_limit=10_000, namespace=self.namespace)

    def end(self, records):
        """As when its lease is over."""
        records._closing.set()
        records._threads[0].join()
        records._call("leave")


@pytest.fixture(params=["file", "redis", "postgres"])
def server(request, tmp_path):
    with ExitStack() as stack:
        if request.param == "file":
            yield OnFiles(tmp_path / "store", stack)
        elif request.param == "redis":
            yield OnServer(RedisStore, request.getfixturevalue("redis_server"), tmp_path.name, stack)
        else:
            yield OnServer(PostgresStore, request.getfixturevalue("postgres_server"), tmp_path.name, stack)


@pytest.fixture
def pair(server):
    """Two processes."""
    server.join(), server.join()
    return server


# ------------------------------------------------------------ who claims


def tries(server):
    """The claims that the processes try from now on: which one, of which task."""
    tried = []
    for core in server.cores:
        tasks = core.service.store.tasks
        claim = tasks.claim
        tasks.claim = lambda task, *args, claim=claim, core=core, **options: (
            tried.append((core, task)) or claim(task, *args, **options)
        )
    return tried


def lateness(task):
    """Of the slots that ran, oldest first, in seconds."""
    return [(run.started_at - run.key).total_seconds() for run in reversed(task.history) if run.started_at is not None]


def test_the_process_that_had_a_task_last_goes_first(server):
    """The others hear of its claim before they try; nothing comes later for that."""
    for _ in range(5):
        server.join()
    tasks = server.schedule(make=counter([]), period="1m", first_run="skip")
    server.begin()
    server.run_for(61)
    tried = tries(server)
    server.run_for(600)

    assert 10 == len(tried)
    assert 1 == len(set(tried))
    assert {0.0} == set(lateness(tasks[0]))
    assert statuses(tasks)


def test_who_comes_in_does_not_try_either(pair):
    tasks = pair.schedule(make=counter([]), period="1m", first_run="skip")
    pair.begin()
    pair.run_for(61)
    core = pair.join()
    late = core.schedule(period="1m", first_run="skip")(counter([])(core))
    tried = tries(pair)
    core.begin()
    pair.run_for(120)

    assert 2 == len(tried)
    assert core not in {core for core, _ in tried}
    assert statuses([*tasks, late])


def test_when_it_is_gone_another_one_has_the_slot_a_moment_later(server):
    """And goes first from then on."""
    for _ in range(5):
        server.join()
    tasks = server.schedule(make=counter([]), period="1m", first_run="skip")
    server.begin()
    server.run_for(61)
    tried = tries(server)
    server.run_for(60)
    [(gone, _)] = tried
    tried.clear()
    last = next(task for core, task in zip(server.cores, tasks, strict=True) if core is not gone)
    server.kill(gone)
    server.run_for(180)

    first, second_, third = lateness(last)[-3:]
    assert 0.25 <= first <= 0.5
    assert 0.0 == second_ == third
    assert 3 == len(tried)


def test_who_has_the_claim_knows_that_the_run_before_it_has_ended(pair):
    """Though no word of that has come, nor ever may: what follows the task does not wait for it."""
    one, other = pair.cores
    pair.schedule(make=counter([]), period="1m", first_run="skip")
    pair.begin()
    tasks, state = one.service.store.tasks, other.scheduler.states["task"]
    held = one.service.store.do(tasks.claim("task", "by hand", now=second(30)))
    pair.settle()
    assert state.remote is not None
    one.service.store.do(tasks.release(held))
    pair.clock.advance(61)
    other.service.tick()
    while other.go():
        pass

    assert 1 == state.task.entry.version
    assert state.remote is None


def test_a_slot_that_another_one_has_before_its_time_here_is_left_to_it(pair):
    """By a clock that is ahead."""
    ahead, behind = pair.cores
    tasks = pair.schedule(make=counter([]), period="1m", first_run="skip")
    pair.begin()
    pair.run_for(61)
    tried = tries(pair)
    slot = second(120)
    ahead.service.store.do(ahead.service.store.tasks.claim("task", "early", now=slot, key=slot, mark=slot))
    pair.settle()
    tried.clear()
    pair.run_for(60)

    assert behind not in {core for core, _ in tried}
    assert second(180) == tasks[1].status.next_run


def test_a_new_value_is_followed_by_the_process_that_published_it(server):
    """The others leave its follower to that one; whoever needs both waits for it (invariant 9)."""
    for _ in range(4):
        server.join()
    seen, readers = [], []
    follow(server, seen, first_run="skip")
    for core in server.cores:
        raw, follower = core.ps.tasks["raw"], core.ps.tasks["follower"]
        core.schedule(period="1m", name="reader", needs=[follower], first_run="skip")(
            lambda raw=raw, follower=follower: readers.append((raw(), follower()))
        )
    server.begin()
    server.run_for(61)
    tried = tries(server)
    server.run_for(300)

    assert {"raw": 5, "follower": 5, "reader": 5} == Counter(task for _, task in tried)
    assert all(follower is not None for _, follower in readers)
    assert 6 == len(seen)


def test_a_slot_that_waits_when_the_clock_steps_back_comes_again(pair):
    """It would be taken for handled until then."""
    tasks = pair.schedule(make=held, period="1m", first_run="skip", overlap="queue")
    pair.begin()
    pair.run_for(121)
    assert any(core.queued(task) for core, task in zip(pair.cores, tasks, strict=True))
    pair.clock.step(-3600)
    pair.advance(0)
    for core, task in zip(pair.cores, tasks, strict=True):
        if core.thread.parked:
            task.function.finish("value")
    pair.settle()
    pair.run_for(61)

    assert {core.run_of(task).key for core, task in zip(pair.cores, tasks, strict=True) if core.thread.parked} == {
        second(121 - 3600 + 59)
    }


# ------------------------------------------------------------ two versions of the code


@pytest.mark.parametrize("new", ["cron", "after"])
def test_during_a_rolling_update_the_newer_schedule_holds(server, new, caplog):
    """Also where the old code starts once more; and when the newer code is gone the old one's comes back."""
    calls = []

    def come_in(version):
        server.name += "'"
        core = server.join()
        base = core.schedule(period="10m", name="base", first_run="skip")(lambda: 1)
        when = (
            {"period": "1m"}
            if version == "old"
            else {"cron": "*/5 * * * *", "timezone": "UTC"}
            if new == "cron"
            else {"after": base}
        )
        core.schedule(name="task", first_run="skip", **when)(lambda: calls.append(version) or version)
        core.begin()
        server.settle()
        return core

    old = come_in("old")
    server.run_for(121)
    assert ["old"] * 2 == calls
    newer = come_in("new")
    again = come_in("old")
    server.run_for(1200)

    slots = keys(newer.ps.tasks["task"])[2:]
    assert (4 if new == "cron" else 2) == len(slots) == len(calls) - 2
    assert new != "cron" or all(slot.minute % 5 == 0 for slot in slots)
    told = [text for text in messages(caplog) if "newer version of the code" in text]
    assert 2 == len(told)
    assert "Task 'task': a newer version of the code is in use" in told[0]
    assert "here it is every 1 min" in told[0]

    calls.clear()
    server.kill(newer)
    server.run_for(240)
    assert {"old"} == set(calls)
    assert [60.0] == list({(b - a).total_seconds() for a, b in pairwise(keys(old.ps.tasks["task"])[-3:])})
    assert "every 1 min" == old.ps.tasks["task"].status.schedule == again.ps.tasks["task"].status.schedule


def test_a_new_version_replaces_the_schedule_of_the_one_before(server):
    """As often as there is one; also back to an earlier one, once the processes of the newer one are gone."""
    cores = []
    for minutes in (1, 2, 3, 1):
        server.name += "'"
        cores.append(server.join())
        cores[-1].schedule(period=f"{minutes}m", name="task", first_run="skip")(lambda: 1)
        cores[-1].begin()
        server.settle()
        if len(cores) == 3:
            assert ["every 3 min"] * 3 == [core.ps.tasks["task"].status.schedule for core in cores]
            server.kill(cores[2])
            server.kill(cores[1])
    server.run_for(61)

    assert ["every 1 min"] * 2 == [core.ps.tasks["task"].status.schedule for core in (cores[0], cores[3])]


# ------------------------------------------------------------ one run for all


def counter(calls, outcomes=None):
    """Makes functions that count their calls in `calls`, and return how many there were; or the next outcome."""

    def make(core):
        def task():
            calls.append(core)
            if outcomes is None:
                return len(calls)
            if isinstance(outcome := outcomes.pop(0), Exception):
                raise outcome
            return outcome

        return task

    return make


def held(core):
    return core.held("task")


def statuses(tasks):
    """What the processes show, which must be one and the same."""
    one, *others = [task.status for task in tasks]
    for other in others:
        assert one == other
    return one


@pytest.mark.parametrize("seed", range(10))
def test_a_slot_runs_once_however_the_processes_interleave(seed, server):
    """Each slot has one run and one record (invariant 14)."""
    chance, calls = random.Random(seed), []
    for _ in range(3):
        server.join()
    one, *_ = server.schedule(make=counter(calls), period="1m", first_run="skip", overlap="queue")
    server.begin()
    for _ in range(10):
        server.clock.advance(60)
        for _ in range(chance.randrange(60)):
            server.stir(chance)
    server.advance(0)

    slots = keys(one)
    assert len(calls) == len(slots) == len(set(slots))
    assert second(600) == slots[-1]


def test_all_processes_serve_the_value(pair):
    """And its version and time."""
    tasks = pair.schedule(make=counter([]), period="1m")
    pair.begin()
    pair.run_for(120)

    assert [(3, 3, second(120))] * 2 == [(task(), task.entry.version, task.entry.updated_at) for task in tasks]


def test_all_processes_show_a_run(pair):
    """While it runs, when it has failed, and when it has recovered."""
    functions = {}
    tasks = pair.schedule(make=lambda core: functions.setdefault(core, held(core)), period="1m", first_run="skip")
    pair.begin()
    pair.run_for(60)
    (runner,) = [function for function in functions.values() if function.flying]
    running = statuses(tasks)
    runner.finish(OSError("gone"))
    pair.settle()
    failed = statuses(tasks)
    tasks[1].refresh()
    pair.settle()
    (runner,) = [function for function in functions.values() if function.flying]
    runner.finish("value")
    pair.settle()
    idle = statuses(tasks)

    assert ("running", second(120)) == (running.state, running.next_run)
    assert ("failed", True, "OSError: gone") == (failed.state, failed.stale, failed.error)
    assert ("idle", False, "", 1) == (idle.state, idle.stale, idle.error, idle.version)


def test_all_processes_show_a_timeout(pair):
    """Its run has ended in all of them, though its thread has not."""
    tasks = pair.schedule(make=held, period="1m", timeout="5s", first_run="skip")
    pair.begin()
    pair.run_for(70)

    status = statuses(tasks)
    assert ("failed", False) == (status.state, status.running)
    assert status.error.startswith("RunTimedOut: Task 'task': it did not finish within its timeout of 5 s.")


def test_each_yield_reaches_all_processes(pair):
    """As a version; the followers run for the final one only (2.1)."""
    seen = []

    def parts(core):
        def generate():
            for number in range(3):
                core.thread.park()
                yield number

        return generate

    tasks = pair.schedule(make=parts, name="parts", period="1m", first_run="background")
    for core, task in zip(pair.cores, tasks, strict=True):
        core.schedule(after=task, name="follower")(lambda task=task: seen.append(task()))
    pair.begin()
    values = []
    for _ in range(3):
        pair.cores[0].thread.release()
        pair.settle()
        values.append([(task(), task.entry.version) for task in tasks])

    assert [[(0, 1)] * 2, [(1, 2)] * 2, [(2, 3)] * 2] == values
    assert [2] == seen


def test_a_follower_does_not_wait_for_the_slots_of_a_value_that_is_there(server):
    """A process whose clock is ahead has published it: for this one those slots are still to come, and ever more."""
    slow, fast = server.join(), server.join(ahead=600)
    task, _ = server.schedule(make=counter([]), period="1m", first_run="skip")
    follower = slow.schedule(after=task, name="follower")(lambda: task())
    server.begin()
    fast.clock.advance(60)
    fast.service.tick()
    server.settle()
    slow.clock.advance(1)  # the publisher would have been the first to follow it
    slow.tick()
    server.settle()

    assert (1, 1) == (task(), follower())


# ------------------------------------------------------------ runs that another process has


def test_a_refresh_joins_the_run_of_another_process(pair):
    """And gets its value."""
    first, second_one = pair.schedule(make=held, period="1m", first_run="skip")
    pair.begin()
    first.refresh()
    pair.settle()
    joined = second_one.refresh()
    pair.settle()
    first.function.finish("value")
    pair.settle()

    assert ("value", 0) == (joined.result(PATIENCE), second_one.function.calls)


def test_a_refresh_that_both_ask_for_is_one_run(pair):
    """Also when neither has heard of the other."""
    tasks = pair.schedule(make=held, period="1m", first_run="skip")
    pair.begin()
    runs = [task.refresh() for task in tasks]
    pair.settle()
    tasks[0].function.finish("value")
    pair.settle()

    assert ["value"] * 2 == [run.result(PATIENCE) for run in runs]
    assert [1, 0] == [task.function.calls for task in tasks]


def test_a_refresh_gets_the_error_of_the_run_that_it_joined(pair):
    """RunFailed, which names the cause."""
    tasks = pair.schedule(make=held, period="1m", first_run="skip")
    pair.begin()
    joined = [task.refresh() for task in tasks][1]
    pair.settle()
    tasks[0].function.finish(OSError("no route"))
    pair.settle()

    with pytest.raises(RunFailed, match=r"Task 'task': .* OSError: no route"):
        joined.result(PATIENCE)


@pytest.fixture
def outsider(server):
    """The store as a program has it that knows none of the tasks, and runs nothing."""
    store = server.make_store()
    yield store
    store.close()


def test_a_run_that_an_outsider_asks_for_is_one_process_s(pair, outsider):
    """Of all that hear of it; it is no slot, and the next one comes in its turn."""
    calls = []
    tasks = pair.schedule(make=counter(calls), period="1m", first_run="skip")
    pair.begin()
    assert outsider.tasks.request("task", "q1") is None
    pair.settle()
    asked = list(calls)
    pair.run_for(61)

    assert 1 == len(asked)
    assert ["request q1", second(60)] == [run.key for run in reversed(tasks[0].history)]
    assert "idle" == statuses(tasks).state


def test_what_an_outsider_asks_for_is_not_run_again(pair, outsider):
    """Neither by a process that comes in later, nor at the next start."""
    calls = []
    pair.schedule(make=counter(calls), period="1d", first_run="skip")
    pair.begin()
    outsider.tasks.request("task", "q1")
    pair.settle()
    late = pair.join()
    late.schedule(period="1d", first_run="skip", name="task")(counter(calls)(late))
    late.begin()
    pair.settle()
    pair.run_for(60)

    assert 1 == len(calls)


def test_an_outsider_that_asks_during_a_run_joins_it(pair, outsider):
    """And there is no second one."""
    tasks = pair.schedule(make=held, period="1d", first_run="skip")
    pair.begin()
    tasks[0].refresh()
    pair.settle()
    refusals = [outsider.tasks.request("task", id) for id in ("q1", "q2")]
    tasks[0].function.finish("value")
    pair.settle()

    assert [Refusal.HELD] * 2 == refusals
    assert [1, 0] == [task.function.calls for task in tasks]


def test_what_an_outsider_asks_for_waits_for_an_abandoned_body(pair, outsider):
    """As a refresh does."""
    tasks = pair.schedule(make=held, period="1d", timeout="5s", first_run="skip")
    pair.begin()
    tasks[0].refresh()
    pair.settle()
    pair.run_for(10)
    asked = outsider.tasks.request("task", "q1")
    pair.settle()
    before = [task.function.calls for task in tasks]
    tasks[0].function.finish()
    pair.settle()

    assert (None, [1, 0]) == (asked, before)
    assert 2 == sum(task.function.calls for task in tasks)


def test_a_slot_that_is_skipped_does_not_take_what_an_outsider_asks_for_with_it(pair, outsider):
    """It waits for an abandoned body of a task that is paused."""
    tasks = pair.schedule(make=held, period="1m", timeout="5s", first_run="skip")
    pair.begin()
    tasks[0].refresh()
    pair.settle()
    pair.run_for(10)
    tasks[0].pause()
    outsider.tasks.request("task", "q1")
    pair.settle()
    pair.run_for(60)
    tasks[0].function.finish()
    pair.settle()

    assert 2 == sum(task.function.calls for task in tasks)


def test_what_an_outsider_asks_for_while_nobody_is_there_is_done_at_the_next_start(server, outsider):
    """Where the last value is still fresh, too."""
    calls, core = [], server.join()
    core.schedule(period="1d", name="task", first_run="skip")(counter(calls)(core))
    server.begin()
    server.restart()
    assert outsider.tasks.request("task", "q1") is None
    core = server.join()
    core.schedule(period="1d", name="task", first_run="skip")(counter(calls)(core))
    server.begin()

    assert [core] == calls


def test_the_first_run_is_what_an_outsider_has_asked_for(server, outsider):
    """It begins after that, so that it will do."""
    calls, core = [], server.join()
    core.schedule(period="1d", name="task", first_run="skip")(counter(calls)(core))
    server.begin()
    server.restart()
    outsider.tasks.request("task", "q1")
    core = server.join()
    core.schedule(period="1d", name="task", first_run="background")(counter(calls)(core))
    server.begin()

    assert 1 == len(calls)


def test_an_outsider_cannot_ask_for_what_nobody_has_scheduled(pair, outsider):
    """Nor for what was removed."""
    tasks = pair.schedule(make=held, period="1d", first_run="skip")
    pair.begin()
    tasks[0].remove_schedule()
    pair.settle()

    assert [Refusal.ABSENT] * 2 == [outsider.tasks.request(name, "q1") for name in ("task", "other")]


def test_a_run_can_be_cancelled_from_another_process(pair):
    """Its waiters hear of it."""
    tasks = pair.schedule(make=held, period="1m", first_run="skip")
    pair.begin()
    run = tasks[0].refresh()
    pair.settle()
    joined = tasks[1].refresh()
    joined.cancel()
    pair.settle()

    assert [RunState.CANCELLED] * 2 == [run.state, joined.state]
    with pytest.raises(RunCancelled):
        joined.result(PATIENCE)


def test_a_run_is_cancelled_that_has_begun_elsewhere_a_moment_ago(pair):
    """By its task, in a process that has not heard of it yet."""
    there, here = pair.schedule(make=held, period="1h", first_run="skip")
    pair.begin()
    run = there.refresh()
    pair.cores[0].go()
    assert run.id == pair.cores[1].scheduler.cancel(here).id
    pair.settle()
    assert RunState.CANCELLED is run.state
    assert pair.cores[1].scheduler.cancel(here) is None


def test_a_request_that_has_joined_another_cancels_it(pair):
    """Both have asked at once."""
    tasks = pair.schedule(make=held, period="1m", first_run="skip")
    pair.begin()
    runs = [task.refresh() for task in tasks]
    pair.settle()
    runs[1].cancel()
    pair.settle()

    assert [RunState.CANCELLED] * 2 == [run.state for run in runs]


def test_a_refresh_waits_for_an_abandoned_body_elsewhere(pair):
    """As it does for one of its own process."""
    tasks = pair.schedule(make=held, period="1d", timeout="5s", first_run="skip")
    pair.begin()
    tasks[0].refresh()
    pair.settle()
    pair.run_for(10)
    waiting = tasks[1].refresh()
    pair.settle()
    before = waiting.state
    tasks[0].function.finish()
    pair.settle()
    tasks[1].function.finish("value")
    pair.settle()

    assert (RunState.QUEUED, "value") == (before, waiting.result(PATIENCE))


# ------------------------------------------------------------ orders


def test_pause_and_resume_reach_all_processes(pair):
    """Whoever gives the order."""
    calls = []
    tasks = pair.schedule(make=counter(calls), period="1m", first_run="skip")
    pair.begin()
    tasks[1].pause()
    pair.settle()
    paused = statuses(tasks)
    pair.run_for(120)
    tasks[0].resume()
    pair.settle()
    pair.run_for(60)

    assert ("paused", None, 1) == (paused.state, paused.next_run, len(calls))
    assert ("idle", second(240)) == (statuses(tasks).state, statuses(tasks).next_run)
    assert [("skipped", "paused"), ("succeeded", "")] == short(tasks[0].history)


def test_a_reschedule_reaches_all_processes(pair):
    """Its slots, and no others, run from then on."""
    tasks = pair.schedule(make=counter([]), period="1m", first_run="skip")
    pair.begin()
    tasks[1].reschedule(period="10s")
    pair.settle()
    status = statuses(tasks)
    pair.run_for(30)

    assert ("every 10 s", second(10)) == (status.schedule, status.next_run)
    assert [second(10), second(20), second(30)] == keys(tasks[0])


def test_a_reschedule_that_no_other_process_can_follow_is_refused(pair):
    """A function of this process alone."""
    task, _ = pair.schedule(make=counter([]), period="1m", first_run="skip")
    pair.begin()

    with pytest.raises(RegistrationError, match=r"Task 'task': .*function"):
        task.reschedule(at=lambda now: now + timedelta(seconds=1))
    assert second(60) == task.status.next_run


def test_remove_schedule_reaches_all_processes(pair):
    """The function is a plain one in all of them."""
    tasks = pair.schedule(make=counter([], ["value", "direct"]), period="1m", first_run="background")
    pair.begin()
    tasks[0].remove_schedule()
    pair.settle()
    pair.run_for(120)

    assert "removed" == statuses(tasks).state
    assert "direct" == tasks[1]()


def test_cancel_task_reaches_all_processes(pair):
    """The task is gone from their registries, too."""
    tasks = pair.schedule(make=counter([]), period="1m", first_run="background")
    pair.begin()
    pair.cores[1].ps.cancel_task("task")
    pair.settle()
    pair.run_for(120)

    assert [[], []] == [list(core.ps.tasks) for core in pair.cores]
    assert 1 == tasks[0].entry.version


def test_a_restarted_server_keeps_pause_and_reschedule(pair):
    """Of a store that does (2.1)."""
    paused, moved = (pair.schedule(make=counter([]), period="1m", name=name)[0] for name in ("paused", "moved"))
    pair.begin()
    paused.pause()
    moved.reschedule(period="10s")
    pair.settle()
    pair.restart()
    pair.join(), pair.join()
    paused, moved = (pair.schedule(make=counter([]), period="1m", name=name) for name in ("paused", "moved"))
    pair.begin()

    assert ("paused", "every 10 s") == (statuses(paused).state, statuses(moved).schedule)


def test_a_reschedule_gives_way_to_another_schedule_in_the_code(pair, caplog):
    """And one process says so."""
    pair.schedule(make=counter([]), period="1m")
    pair.begin()
    pair.cores[0].ps.tasks["task"].reschedule(period="10s")
    pair.settle()
    pair.restart()
    pair.join(), pair.join()
    tasks = pair.schedule(make=counter([]), period="2m")
    pair.begin()

    assert "every 2 min" == statuses(tasks).schedule
    assert ["gives way" in message for message in messages(caplog)] == [True]


# ------------------------------------------------------------ scripts, in which no clock runs


def work(script):
    """Let a script do what it has to. Its loop, on which the clocks would start, stands still."""
    while script.writer.go() or script.thread.go() or script.publisher.go():
        pass


def test_a_script_sees_the_state_that_the_server_sees(pair):
    """Failed and stale, with the error and the next run; and well again."""
    there, here = pair.schedule(make=counter([], [1, OSError("no rates"), 2]), period="1m")
    pair.cores[0].begin()
    for state, stale, error in (("idle", False, ""), ("failed", True, "OSError: no rates"), ("idle", False, "")):
        seen = here.status
        assert (state, stale, error) == (seen.state, seen.stale, seen.error)
        assert there.status == seen
        pair.cores[0].run_for(60)


def test_a_script_sees_a_run_of_the_server_and_how_far_it_is(pair):
    """And that it is gone with its server, though nobody has taken it over."""
    park = pair.cores[0].thread.park

    def make(core):
        def task():
            progress(1, 4, "first of 4")
            park()

        return task

    _, task = pair.schedule(make=make, period="1h")
    pair.cores[0].begin()
    pair.cores[0].run_for(1)
    assert ("running", 25, "first of 4") == (task.status.state, task.status.percent, task.status.message)
    pair.kill(pair.cores[0])
    assert ("idle", -1) == (task.status.state, task.status.percent)


def test_a_script_reads_the_newest_value_each_time(pair):
    """``task()`` and ``task.entry``, though nobody tells it of new ones."""
    _, task = pair.schedule(make=counter([]), period="1m")
    assert (None, None) == (task(), task.entry)
    pair.cores[0].begin()
    assert (1, 1) == (task(), task.entry.version)
    pair.cores[0].run_for(60)
    assert (2, 2) == (task.entry.version, task())


@pytest.mark.parametrize(
    ("act", "state", "schedule"),
    [
        (lambda task: task.pause(), "paused", "every 1 min"),
        (lambda task: task.reschedule(period="1h"), "idle", "every 1 h"),
        (lambda task: task.remove_schedule(), "removed", "every 1 min"),
    ],
)
def test_what_was_ordered_in_the_server_is_seen_by_a_script(pair, act, state, schedule):
    """Paused, rescheduled, removed; and the other way round."""
    tasks = pair.schedule(make=counter([]), period="1m")
    pair.cores[0].begin()
    for task in tasks:
        act(task)
        assert (state, schedule) == (task.status.state, task.status.schedule)
        pair.cores[0].go(), pair.cores[0].hear()
        assert [(state, schedule)] * 2 == [(each.status.state, each.status.schedule) for each in tasks]


def test_a_look_of_a_script_changes_nothing_in_the_store(pair):
    """It neither claims nor judges: its handlers hear of nothing."""
    told = pair.cores[1].events()
    upstream = pair.schedule(make=counter([], [1] + [OSError("x")] * 9), name="upstream", period="1m")
    tasks = pair.schedule(make=counter([]), name="task", period="1m", stale_after="30s")
    pair.cores[0].begin()
    pair.kill(pair.cores[0])
    pair.clock.advance(600)
    (script,) = pair.cores
    rows = script.store.records.scan(TASK)
    assert [True, True] == [task.status.stale for task in (upstream[1], tasks[1])]
    work(script)
    assert (rows, []) == (script.store.records.scan(TASK), told)


def test_a_script_that_refreshes_a_failed_task_makes_it_well_for_all(pair):
    """Its own run counts at once, before and after it is written."""
    there, here = pair.schedule(make=counter([], [OSError("x"), 2]), period="1m", first_run="background")
    pair.cores[0].begin()
    assert here.status.stale
    run = here.refresh()
    work(pair.cores[1])
    assert (2, "idle", "", False) == (run.result(), here.status.state, here.status.error, here.status.stale)
    pair.cores[0].hear(), pair.cores[0].go()
    assert there.status == here.status


# ------------------------------------------------------------ overlap


@pytest.mark.parametrize("overlap", ["skip", "queue", "replace"])
def test_overlap_holds_across_processes(pair, overlap):
    """What is skipped is recorded once, and told once; nothing runs twice."""
    told = [core.events("skipped", "succeeded") for core in pair.cores]
    tasks = pair.schedule(make=held, period="1m", first_run="skip", overlap=overlap)
    pair.begin()
    pair.run_for(180)
    for _ in range(3):
        for task in tasks:
            while task.function.flying:
                task.function.finish("value")
                pair.settle()

    expected = {
        "skip": [("skipped", "overlap"), ("succeeded", "")],
        "queue": [("skipped", "overlap"), ("succeeded", ""), ("succeeded", "")],
        "replace": [("cancelled", "replaced"), ("skipped", "overlap"), ("succeeded", "")],
    }[overlap]
    assert expected == sorted(short(tasks[0].history), key=lambda pair: expected.index(pair))
    events = [event for each in told for event, _ in each]
    assert (1, expected.count(("succeeded", ""))) == (events.count("skipped"), events.count("succeeded"))


def test_a_queued_slot_gives_way_to_the_newest_in_all_processes(pair):
    """The newest runs, whoever it is that has waited with which one."""
    tasks = pair.schedule(make=held, period="1m", first_run="skip", overlap="queue")
    pair.begin()
    pair.run_for(60)
    for number in range(2, 5):
        pair.clock.advance(60)
        for core in pair.cores[:: 1 if number % 2 else -1]:
            core.tick()
        pair.settle()
    tasks[0].function.finish()
    pair.settle()
    for task in tasks:
        while task.function.flying:
            task.function.finish()
            pair.settle()

    assert [second(60), second(240)] == keys(tasks[0])


def test_an_abandoned_body_blocks_the_slots_of_all_processes(pair):
    """With the reason, until the body returns (6)."""
    tasks = pair.schedule(make=held, period="1m", timeout="5s", first_run="skip")
    pair.begin()
    pair.run_for(180)
    tasks[0].function.finish()
    pair.settle()
    pair.run_for(60)
    for task in tasks:
        if task.function.flying:
            task.function.finish("value")
    pair.settle()

    assert [("timed_out", ""), ("skipped", "abandoned"), ("succeeded", "")] == short(tasks[0].history)


# ------------------------------------------------------------ events


def test_each_event_is_told_by_one_process(pair):
    """Each once: failed, stale, recovered, succeeded."""
    told = [core.events() for core in pair.cores]
    outcomes = [1, OSError("x"), 2]
    pair.schedule(make=counter([], outcomes), period="1m", first_run="background")
    pair.begin()
    pair.run_for(120)

    events = sorted(event for each in told for event, _ in each)
    assert ["failed", "recovered", "stale", "succeeded", "succeeded"] == events


def test_a_process_that_was_blocked_finds_nothing_stale(pair):
    """Others have made the values of the slots that it has missed."""
    told = [core.events("stale") for core in pair.cores]
    tasks = pair.schedule(make=counter([]), period="1m", first_run="background")
    pair.begin()
    for _ in range(5):
        pair.clock.advance(60)
        pair.cores[0].tick()
        pair.settle()
    pair.cores[1].tick()
    pair.settle()

    assert [[], []] == told
    assert not statuses(tasks).stale


# ------------------------------------------------------------ when_idle


def test_a_viewer_anywhere_keeps_a_task_running(pair):
    """With when_idle="skip"; when the last one has gone it rests."""
    calls = []
    tasks = pair.schedule(make=counter(calls), period="1m", when_idle="skip", first_run="background")
    pair.begin()
    pair.cores[1].scheduler.watch(tasks[1], 1)
    pair.settle()
    pair.run_for(60)
    watched = len(calls)
    pair.cores[1].scheduler.watch(tasks[1], -1)
    pair.settle()
    pair.run_for(120)

    assert (2, 2) == (watched, len(calls))


def test_the_first_viewer_anywhere_of_a_stale_value_refreshes_it(pair):
    """The second one, in another process, does not."""
    calls = []
    tasks = pair.schedule(make=counter(calls), period="1m", when_idle="skip", first_run="background")
    pair.begin()
    pair.run_for(180)
    for core, task in zip(pair.cores, tasks, strict=True):
        core.scheduler.watch(task, 1)
        pair.settle()

    assert 2 == len(calls)


# ------------------------------------------------------------ after=, waves


def follow(server, seen, **policy):
    """A task and its follower in each process."""
    tasks = server.schedule(make=counter([]), name="raw", period="1m", **policy)
    for core, task in zip(server.cores, tasks, strict=True):
        core.schedule(after=task, name="follower")(lambda task=task: seen.append(task()) or len(seen))
    return tasks


def test_a_follower_runs_once_for_each_final_value(pair):
    """Whichever process has published it."""
    seen = []
    tasks = follow(pair, seen, first_run="skip")
    pair.begin()
    pair.run_for(120)
    tasks[1].refresh()
    pair.settle()

    assert [1, 2, 3] == seen


def test_a_follower_runs_although_the_publisher_died(pair):
    """Right after the value was there."""
    seen = []
    follow(pair, seen, first_run="skip")
    pair.begin()
    pair.clock.advance(60)
    one, _ = pair.cores
    one.service.tick()
    one.writer.go()
    one.thread.go()
    pair.kill(one)
    pair.advance(0)
    assert [] == seen
    pair.run_for(1)  # the publisher would have been the first to follow it
    pair.look()

    assert [1] == seen
    assert [("succeeded", "")] == short(pair.cores[0].ps.tasks["raw"].history)


def test_several_upstream_values_of_one_wave_cause_one_run(pair, monkeypatch):
    """Wherever each of them is made (invariant 9)."""
    monkeypatch.setattr(panel_schedule.engine.outbox, "MOST", 1)
    seen = []
    for name in "ab":
        pair.schedule(make=held, name=name, period="1m", first_run="skip")
    for core in pair.cores:
        tasks = [core.ps.tasks[name] for name in "ab"]
        core.schedule(after=tasks, name="follower")(lambda tasks=tasks: seen.append([task() for task in tasks]))
    pair.begin()
    pair.clock.advance(60)
    for core in pair.cores:
        core.service.tick()
    one, other = pair.cores
    one.writer.step(), other.writer.step(), other.writer.step(), one.writer.step()
    pair.settle()
    for _ in range(2):
        for core in pair.cores:
            if core.thread.parked:
                core.thread.release("value")
                pair.settle()

    assert [["value", "value"]] == seen


def test_a_reader_sees_the_value_that_another_process_makes_for_its_slot(pair):
    """It waits for it (invariant 9)."""
    seen = []
    raws = pair.schedule(make=held, name="raw", period="1m", first_run="skip")
    one, other = pair.cores
    reader = other.schedule(period="1m", name="reader", first_run="skip")(lambda: seen.append(raws[1]()))
    pair.begin()
    pair.clock.advance(60)
    one.tick()
    pair.settle()
    other.tick()
    pair.settle()
    before, run = list(seen), other.run_of(reader)
    raws[0].function.finish("of this slot")
    pair.settle()
    run.result(PATIENCE)

    assert ([], ["of this slot"]) == (before, seen)


# ------------------------------------------------------------ first runs


def test_one_process_makes_the_first_value(pair):
    """The other one waits for it."""
    tasks = pair.schedule(make=held, period="1h")
    pair.begin()
    waiting = [len(core.scheduler.gate()) for core in pair.cores]
    tasks[0].function.finish("value")
    pair.settle()

    assert ([1, 1], [1, 0]) == (waiting, [task.function.calls for task in tasks])
    assert ([0, 0], ["value"] * 2) == ([len(core.scheduler.gate()) for core in pair.cores], [task() for task in tasks])


def test_a_first_run_that_comes_with_the_next_slot_joins_the_one_in_flight(pair):
    """The second process was a moment later."""
    tasks = pair.schedule(make=held, period="1h")
    one, other = pair.cores
    one.begin()
    pair.clock.advance(3600)
    other.begin()
    pair.settle()
    tasks[0].function.finish("value")
    pair.settle()

    assert ["value"] * 2 == [task() for task in tasks]
    assert [] == [record for record in short(tasks[1].history) if record[0] == "skipped" and record[1] != "overlap"]


def test_a_first_run_that_fails_is_known_to_all_processes(pair):
    """Nobody waits for ever, and nobody tries it again at once (8)."""
    fatal = []
    tasks = pair.schedule(make=held, period="1h")
    for core in pair.cores:
        core.scheduler.fatal = lambda task, run: fatal.append((run.state, str(run.error)))
    pair.begin()
    tasks[0].function.finish(OSError("no route"))
    pair.settle()

    assert [RunState.FAILED] * 2 == [state for state, _ in fatal]
    assert all("no route" in error for _, error in fatal)
    assert 0 == tasks[1].function.calls


def test_where_nothing_is_ended_no_process_waits_for_a_first_run_that_failed(pair, caplog):
    """The process of the run says so; pages are built in all of them."""
    tasks = pair.schedule(make=held, period="1h")
    pair.begin()
    tasks[0].function.finish(OSError("no route"))
    pair.settle()

    assert [[], []] == [core.scheduler.gate() for core in pair.cores]
    assert 1 == sum("no route" in message for message in messages(caplog))


def test_the_process_that_sees_a_task_recover_says_how_long_it_lasted(pair, caplog):
    """Each one logs the failures of its own runs; the others know of them."""
    outcomes = iter([OSError("no route"), 42])

    def fetch():
        if isinstance(outcome := next(outcomes), Exception):
            raise outcome
        return outcome

    tasks = pair.schedule(make=lambda core: fetch, period="1h", first_run="skip")
    pair.begin()
    tasks[0].refresh()
    pair.settle()
    pair.clock.advance(30)
    tasks[1].refresh()
    pair.settle()

    first, last = messages(caplog)
    assert "no route" in first
    assert "has recovered after 30 s" in last
    assert not any(core.service.hooks.failures.known(("task", tasks[0].name)) for core in pair.cores)


def test_a_restarted_server_tries_a_failed_first_run_again(pair):
    """The slot was handled, but there is no value to serve."""
    calls = []
    pair.schedule(make=counter(calls, [OSError("down"), "value"]), period="1d")
    pair.begin()
    pair.restart()
    pair.join(), pair.join()
    tasks = pair.schedule(make=counter(calls, ["value"]), period="1d")
    pair.begin()

    assert (["value"] * 2, 2) == ([task() for task in tasks], len(calls))


# ------------------------------------------------------------ dying


def test_another_process_takes_over_from_a_dead_one(pair, caplog):
    """Within one look, as attempt 2 of the same slot."""
    tasks = pair.schedule(make=held, period="1m", first_run="skip")
    pair.begin()
    pair.run_for(60)
    joined = tasks[1].refresh()
    pair.kill(pair.cores[0])
    pair.look()
    tasks[1].function.finish("value")
    pair.settle()

    (record,) = tasks[1].history
    assert (second(60), 2, RunState.SUCCEEDED) == (record.key, record.attempt, record.state)
    assert "value" == joined.result(PATIENCE)
    assert ["the process that ran it is gone; attempt 2" in message for message in messages(caplog)] == [True]


def test_what_died_together_is_taken_over_one_after_the_other(pair):
    """One may have killed the others: each has the process for itself at first, and an innocent one dies but once."""
    made = [pair.schedule(make=held, period="1m", first_run="skip", name=name) for name in ("one", "two", "three")]
    pair.begin()
    pair.run_for(60)
    pair.kill(pair.cores[0])
    pair.look()
    functions = [tasks[1].function for tasks in made]

    assert [0, 0, 1] == sorted(function.calls for function in functions)
    (suspect,) = [function for function in functions if function.calls]
    suspect.finish("it was not this one")
    pair.settle()
    assert [0, 1, 1] == sorted(function.calls for function in functions)
    pair.run_for(0.1)  # the second one goes on, and lives
    assert [1, 1, 1] == [function.calls for function in functions]
    for function in functions:
        if function.flying:
            function.finish("value")
    pair.settle()
    assert all((2, RunState.SUCCEEDED) == (tasks[1].history[0].attempt, tasks[1].history[0].state) for tasks in made)


def test_a_task_that_ends_its_processes_crashes(server):
    """After one takeover; all see why, and its next slots go on (14)."""
    for _ in range(3):
        server.join()
    told = server.cores[2].events("failed")
    tasks = server.schedule(make=held, period="1m", first_run="skip")
    server.begin()
    server.run_for(60)
    for _ in range(2):
        server.kill(next(core for core in server.cores if core.thread.parked))
        server.look()
    late = server.join()
    tasks = [tasks[2], late.schedule(period="1m", first_run="skip")(held(late))]
    server.begin()
    crashed = statuses(tasks)
    server.run_for(60)
    for task in tasks:
        if task.function.flying:
            task.function.finish("value")
    server.settle()

    assert ("failed", True) == (crashed.state, crashed.error.startswith("RunCrashed: "))
    assert [("crashed", ""), ("succeeded", "")] == short(tasks[0].history)
    assert [("failed", "task")] == told
    assert "idle" == statuses(tasks).state


def test_a_refresh_fails_when_its_run_has_crashed(server):
    """Whoever has joined it hears of it."""
    for _ in range(3):
        server.join()
    tasks = server.schedule(make=held, period="1d", first_run="skip")
    server.begin()
    joined = [task.refresh() for task in tasks][2]
    for _ in range(2):
        server.settle()
        server.kill(next(core for core in server.cores if core.thread.parked))
        server.look()

    with pytest.raises(RunCrashed):
        joined.result(PATIENCE)


def test_a_process_that_stops_hands_its_slot_over(pair):
    """At once, and it counts as no takeover (19)."""
    tasks = pair.schedule(make=held, period="1m", first_run="skip")
    pair.begin()
    pair.run_for(60)
    joined = tasks[1].refresh()
    pair.stop(pair.cores[0])
    pair.settle()
    tasks[1].function.finish("value")
    pair.settle()

    (record,) = tasks[1].history
    assert (second(60), 1, RunState.SUCCEEDED) == (record.key, record.attempt, record.state)
    assert "value" == joined.result(PATIENCE)


@pytest.mark.parametrize("overlap", ["queue", "replace"])
def test_a_queued_slot_survives_the_stop_of_a_process(pair, overlap):
    """Another one runs it."""
    tasks = pair.schedule(make=held, period="1m", first_run="skip", overlap=overlap)
    pair.begin()
    pair.run_for(121)
    pair.stop(pair.cores[0])
    pair.settle()
    for _ in range(2):
        if tasks[1].function.flying:
            tasks[1].function.finish("value")
            pair.settle()

    assert second(120) == keys(tasks[1])[-1]
    assert ("succeeded", "") == short(tasks[1].history)[-1]


def test_an_unfinished_slot_is_run_by_the_next_server(pair):
    """Of a store that outlives this one."""
    pair.schedule(make=held, period="1h", first_run="skip")
    pair.begin()
    pair.run_for(3600)
    pair.restart()
    pair.join()
    (task,) = pair.schedule(make=counter([]), period="1h", first_run="skip")
    pair.begin()

    assert [second(3600)] == keys(task)
    assert 1 == task()


def test_a_request_ends_with_its_process(pair):
    """Nobody waits for it any more; others may ask again at once."""
    tasks = pair.schedule(make=held, period="1h", first_run="skip")
    pair.begin()
    tasks[0].refresh()
    pair.settle()
    pair.stop(pair.cores[0])
    pair.settle()

    assert (0, "idle") == (tasks[1].function.calls, tasks[1].status.state)
    assert [("cancelled", "cancelled: the server stops")] == short(tasks[1].history)


def test_what_a_user_has_cancelled_is_not_handed_over(pair):
    """Though its body still runs when the process stops."""
    tasks = pair.schedule(make=held, period="1m", first_run="skip")
    pair.begin()
    pair.run_for(60)
    pair.cores[0].run_of(tasks[0]).cancel()
    pair.settle()
    pair.stop(pair.cores[0])
    pair.settle()

    assert 0 == tasks[1].function.calls
    assert [("cancelled", "cancelled")] == short(tasks[1].history)


# ------------------------------------------------------------ starting again


def test_a_fresh_value_needs_no_first_run(pair):
    """Its slots go on where they were (8)."""
    pair.schedule(make=counter([]), period="1h")
    pair.begin()
    pair.restart()
    calls = []
    pair.clock.advance(60)
    pair.join(), pair.join()
    tasks = pair.schedule(make=counter(calls), period="1h")
    pair.begin()

    assert ([], 1) == (calls, tasks[1]())


@pytest.mark.parametrize("catch_up", [True, False])
def test_a_slot_that_came_meanwhile_is_caught_up_once(pair, catch_up):
    """If the task wants that."""
    pair.schedule(make=counter([]), period="1h", catch_up=catch_up)
    pair.begin()
    pair.restart()
    calls = []
    pair.clock.advance(3 * 3600 + 600)
    pair.join(), pair.join()
    tasks = pair.schedule(make=counter(calls), period="1h", catch_up=catch_up)
    pair.begin()
    pair.advance(0)

    assert catch_up == len(calls)
    assert (second(3 * 3600) if catch_up else START) == keys(tasks[0])[-1]
    assert ("skipped", "missed") == short(tasks[0].history)[1]


class Legacy:
    """Its instances cannot be read any more once `gone`."""

    gone = False

    def __setstate__(self, state):
        if Legacy.gone:
            raise AttributeError("no such class")

    def __getstate__(self):
        return {"any": "state"}


def test_a_value_that_cannot_be_read_any_more_is_made_again(pair, monkeypatch):
    """Once, although the store has a version of it."""
    pair.schedule(make=counter([], [Legacy()]), period="1d")
    pair.begin()
    pair.restart()
    monkeypatch.setattr(Legacy, "gone", True)
    calls = []
    pair.join(), pair.join()
    tasks = pair.schedule(make=counter(calls), period="1d")
    pair.begin()

    assert ([(1, 2)] * 2, 1) == ([(task(), task.entry.version) for task in tasks], len(calls))


def test_a_followers_value_that_cannot_be_read_any_more_is_made_again(pair, monkeypatch):
    """The versions that it follows are those that it had followed."""
    for legacy in (True, False):
        calls = []
        raws = pair.schedule(make=counter([]), period="1d", name="raw")
        for core, raw in zip(pair.cores, raws, strict=True):
            core.schedule(after=raw, name="follower")(counter(calls, [Legacy() if legacy else "new"])(core))
        pair.begin()
        if legacy:
            pair.restart()
            monkeypatch.setattr(Legacy, "gone", True)
            pair.join(), pair.join()

    assert ["new"] * 2 == [core.ps.tasks["follower"]() for core in pair.cores]
    assert 1 == len(calls)


def test_dates_that_differ_by_process_run_once(pair):
    """The first process's (3)."""
    calls = []
    for number, core in enumerate(pair.cores):
        core.ps.schedule(at=[second(30 + number), second(90 + number)], name="task")(counter(calls)(core))
    pair.begin()
    pair.run_for(120)

    assert [second(30), second(90)] == keys(pair.cores[0].ps.tasks["task"])


def test_periods_whose_beginning_differs_by_process_run_once(pair):
    """As those of ps.schedule_task do."""
    calls = []
    for number, core in enumerate(pair.cores):
        core.ps.schedule_task("task", counter(calls)(core), at=second(10 + number), period="30s", threaded=True)
    pair.begin()
    pair.run_for(80)

    assert [second(10), second(40), second(70)] == keys(pair.cores[1].ps.tasks["task"])


def test_a_function_for_dates_is_asked_by_one_process(pair):
    """Each would answer with other dates: now + 30 s."""
    calls = []
    for number, core in enumerate(pair.cores):
        core.ps.schedule(
            at=lambda now, core=core, number=number: core.clock.now() + timedelta(seconds=30 + number), name="task"
        )(counter(calls)(core))
    pair.begin()
    pair.run_for(100)

    assert [second(30), second(60), second(90)] == keys(pair.cores[0].ps.tasks["task"])


@pytest.mark.parametrize("gently", [True, False])
def test_another_process_asks_for_dates_when_that_one_is_gone(pair, gently):
    """Dead, or stopped."""
    calls = []
    for core in pair.cores:
        core.ps.schedule(at=lambda now: now + timedelta(seconds=30), name="task")(counter(calls)(core))
    pair.begin()
    pair.run_for(30)
    (pair.stop if gently else pair.kill)(pair.cores[0])
    pair.settle()
    pair.look()
    pair.look()
    pair.run_for(60)

    assert [second(30), second(60), second(90)] == keys(pair.cores[0].ps.tasks["task"])


def test_a_process_that_comes_late_does_not_bring_back_what_is_over(pair):
    """A task whose dates are used up is forgotten (2.1)."""
    calls = []
    for core in pair.cores:
        core.ps.schedule_task("once", counter(calls)(core), at=second(10), threaded=True)
    pair.begin()
    pair.run_for(20)
    late = pair.join()
    late.ps.schedule_task("once", counter(calls)(late), at=second(40), threaded=True)
    late.begin()
    pair.settle()
    pair.run_for(60)

    assert 1 == len(calls)
    assert [[]] * 3 == [list(core.ps.tasks) for core in pair.cores]


def test_the_last_date_ends_no_run_of_another_process(pair):
    """The task is forgotten when its last run has ended, wherever that is."""
    told = pair.cores[0].events("succeeded")
    functions = [core.held("task") for core in pair.cores]
    for core, function in zip(pair.cores, functions, strict=True):
        core.ps.schedule_task("task", function, at=iter([second(10), second(11)]), threaded=True)
    pair.begin()
    pair.run_for(20)
    ran = functions[0] if functions[0].flying else functions[1]
    ran.finish("value")
    pair.settle()

    assert [("succeeded", "task")] == told
    assert [{}, {}] == [core.scheduler.states for core in pair.cores]


# ------------------------------------------------------------ clocks and disks


def test_a_step_back_of_the_clock_runs_the_repeated_slots_once(pair):
    """By one process each, and it is recorded once (7)."""
    calls = []
    tasks = pair.schedule(make=counter(calls), period="10m", first_run="skip")
    pair.begin()
    pair.run_for(3600)
    pair.clock.step(-3600)
    pair.advance(0)
    pair.run_for(1200)

    assert 8 == len(calls)
    assert 1 == short(tasks[0].history).count(("skipped", "clock stepped back"))
    assert "idle" == statuses(tasks).state


def test_a_step_forward_of_the_clock_makes_one_run(pair):
    """Of the latest slot; the others are one record."""
    calls = []
    tasks = pair.schedule(make=counter(calls), period="10m", first_run="skip")
    pair.begin()
    pair.clock.step(86400)
    pair.advance(0)

    assert 1 == len(calls)
    assert [("skipped", "missed"), ("succeeded", "")] == short(tasks[0].history)


def test_who_stops_before_the_store_has_answered_begins_nothing(pair):
    """What began then found the store closed, and its failure was the last word of the server."""
    calls = []
    pair.schedule(make=counter(calls), period="1m", first_run="background")
    one = pair.cores[0]
    one.scheduler.begin()
    one.service.stopping = True
    one.go()

    assert ([], [None]) == (calls, [state.run for state in one.scheduler.states.values()])


def test_a_store_that_fails_for_a_while_loses_nothing(pair, monkeypatch, caplog):
    """It delays, and is named once in the log."""
    monkeypatch.setattr(panel_schedule.engine.outbox, "FIRST_PAUSE", 0.001)
    caplog.set_level(logging.INFO)
    calls, left = [], [5]
    tasks = pair.schedule(make=counter(calls), period="1m", first_run="skip")
    pair.begin()
    store = pair.cores[0].store

    def failing(method):
        def call(*args, **options):
            if left[0]:
                left[0] -= 1
                raise StoreError("The disk is full.")
            return method(*args, **options)

        return call

    for name in ("do_together", "do"):
        monkeypatch.setattr(store, name, failing(getattr(store, name)))
    pair.run_for(120)

    assert [second(60), second(120)] == keys(tasks[1])
    told = [message for message in messages(caplog, logging.INFO) if "disk" in message or "works" in message]
    assert ["The disk is full. It is tried again; what was stored before goes on being served.",
            "The store works again."] == told  # fmt: skip


def test_a_call_that_can_never_succeed_stops_no_other(pair, monkeypatch, caplog):
    """It is logged; what comes after it is done."""
    tasks = pair.schedule(make=counter([]), period="1m", first_run="skip")
    pair.begin()
    for core in pair.cores:
        monkeypatch.setattr(core.store.tasks, "amend", lambda *args, **options: 1 / 0)
    tasks[0].pause()
    pair.settle()
    tasks[0].refresh()
    pair.settle()

    assert 1 == tasks[1]()
    assert ["division by zero" in caplog.text, True] == [True, tasks[0].status.version == 1]


# ------------------------------------------------------------ whatever happens


class World:
    """Six tasks of all kinds in each process, which depend on each other, fail, hang and come back, by chance."""

    def __init__(self, server, chance, steps_back):
        self.server = server
        self.chance = chance
        self.steps_back = steps_back
        self.flying = set()
        self.overlaps = []
        self.lingering = []
        self.names = []
        self.policies = []
        for number in range(6):
            self.invent(f"task{number}")
        self.tasks = {core: self.define(core) for core in server.cores}

    def invent(self, name):
        choice, some = self.chance.choice, self.some
        after = some()
        when = {"after": after} if after else {"period": choice(["7s", "30s", "60s"])}
        self.policies.append(
            dict(
                **when,
                name=name,
                overlap=choice(["skip", "queue", "replace"]),
                timeout=choice([None, "20s"]),
                retry=choice([0, 2]),
                first_run=choice(["background", "skip", "wait"]),
                needs=some(),
            )
        )
        self.kinds = [*getattr(self, "kinds", []), choice([self.plain, self.coroutine, self.parts])]
        self.names.append(name)

    def some(self):
        return self.chance.sample(self.names, min(len(self.names), self.chance.choice([0, 0, 1, 2])))

    def define(self, core):
        tasks = {}
        for policy, kind in zip(self.policies, self.kinds, strict=True):
            policy = {
                key: [tasks[name] for name in value] if key in ("after", "needs") else value
                for key, value in policy.items()
            }
            tasks[policy["name"]] = core.schedule(**policy)(kind(core, policy["name"]))
        return tasks

    def plain(self, core, name):
        def body():
            self.enter(core, name)
            try:
                if self.chance.random() < 0.5:
                    core.thread.park()
                return self.outcome(name)
            finally:
                self.flying.discard((core, name))

        return body

    def parts(self, core, name):
        def body():
            self.enter(core, name)
            try:
                yield 1
                if self.chance.random() < 0.5:
                    core.thread.park()
                yield self.outcome(name)
            finally:
                self.flying.discard((core, name))

        return body

    def coroutine(self, core, name):
        async def body():
            self.enter(core, name)
            try:
                if self.chance.random() < 0.5:
                    event = asyncio.Event()
                    self.lingering.append((core, event))
                    await event.wait()
                return self.outcome(name)
            finally:
                self.flying.discard((core, name))

        return body

    def enter(self, core, name):
        if any(other == name and there in self.server.cores for there, other in self.flying):
            self.overlaps.append(name)
        self.flying.add((core, name))

    def outcome(self, name):
        if self.chance.random() < 0.2:
            raise OSError("by chance")
        return name

    def step(self):
        """One thing that a user, a server or the clock may do."""
        chance, core = self.chance, self.chance.choice(self.server.cores)
        task = chance.choice(list(self.tasks[core].values()))
        state = core.scheduler.states[task.name]
        mine = [(there, event) for there, event in self.lingering if there is core]
        match chance.randrange(12):
            case 0:
                task.refresh()
            case 1 if state.run is not None:
                state.run.cancel()
            case 2 if state.queued or state.remote:
                (state.queued or state.remote).cancel()
            case 3:
                chance.choice([task.pause, task.resume])()
            case 4 if core.thread.parked:
                core.thread.release(body=chance.choice(core.thread.parked))
            case 5 if mine:
                self.lingering.remove(one := chance.choice(mine))
                one[1].set()
            case 6 if chance.random() < 0.1:
                self.server.clock.step(chance.choice([-3600, -10, 10, 3600] if self.steps_back else [10, 3600]))
            case 7 if chance.random() < 0.05:
                self.die(core)
            case _:
                self.server.clock.advance(chance.choice([1, 5, 10, 70]))
        for _ in range(chance.choice([0, 2, 10])):
            self.server.stir(chance)
        if chance.random() < 0.3:
            self.server.settle()

    def die(self, core):
        self.chance.choice([self.server.kill, self.server.stop])(core)
        new = self.server.join()
        self.tasks[new] = self.define(new)
        new.begin()

    def come_to_rest(self):
        """Nothing hangs any more, and time passes."""
        for _ in range(8):
            self.server.settle()
            self.server.look()
            while any(core.thread.parked for core in self.server.cores) or self.lingering:
                for core in self.server.cores:
                    for body in list(core.thread.parked):
                        core.thread.release(body=body)
                while self.lingering:
                    self.lingering.pop()[1].set()
                self.server.settle()
            self.server.advance(60)


@pytest.mark.parametrize(
    ("server", "seed"),
    [(kind, seed) for kind, seeds in (("file", 60), ("redis", 12), ("postgres", 6)) for seed in range(seeds)],
    indirect=["server"],
)
def test_a_random_hour_leaves_all_processes_sane(seed, server, ledger):
    """
    Bodies of a task never overlap, a slot has one final record, each run ends once, and in the end all processes show
    the same (invariants 6, 10, 14, 17).
    """
    chance = random.Random(seed)
    server.persistent = False  # which is quicker
    server.join(), server.join()
    world = World(server, chance, steps_back=seed % 3 == 0)
    if seed % 2:
        world.die = lambda core: None
    server.begin()
    for _ in range(120):
        world.step()
    for core in server.cores:
        for task in world.tasks[core].values():
            task.resume()
    world.come_to_rest()
    for core in server.cores:
        for task in world.tasks[core].values():
            task.pause()
    world.come_to_rest()
    refreshed = [task.refresh() for core in server.cores for task in world.tasks[core].values()]
    world.come_to_rest()

    assert [] == world.overlaps
    assert {1} == {times for run, times in ledger.items() if run.reason != "stale" and alive(run, world)}
    assert {RunState.SUCCEEDED, RunState.FAILED, RunState.TIMED_OUT} >= {run.state for run in refreshed}
    one, other = ([task.status for task in world.tasks[core].values()] for core in server.cores)
    assert one == other
    for task in world.tasks[server.cores[0]].values():
        once(task, world)


def alive(run, world):
    """Whether the process that made it is still there."""
    stop = run._stop
    runs = stop.func.__self__ if stop is not None else None
    return runs is None or runs in [core.scheduler.runs for core in world.server.cores]


def once(task, world):
    final = [record for record in task.history if record.state is not RunState.SKIPPED]
    ids = [record.id for record in final]
    assert len(ids) == len(set(ids)), [r for r in final if ids.count(r.id) > 1]
    if world.steps_back or not isinstance(task.policy.trigger.next_after(START), type(START)):
        return
    slots = [record.key for record in final if not isinstance(record.key, str)]
    assert len(slots) == len(set(slots)), sorted({slot for slot in slots if slots.count(slot) > 1})
    skipped = [(r.key, r.until or r.key) for r in task.history if r.state is RunState.SKIPPED]
    slot = START
    while (slot := task.policy.trigger.next_after(slot)) <= world.server.clock.now():
        assert slot in slots or any(first <= slot <= last for first, last in skipped if not isinstance(first, str))
