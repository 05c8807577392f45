"""How many runs go at the same time: ``max_running`` of a function, and ``ps.config.groups`` of several."""

from __future__ import annotations

from functools import partial
from unittest.mock import Mock

import pytest

import panel_schedule as ps
from core import PATIENCE, Core, messages
from job_peer import Host
from panel_schedule.config import Config
from panel_schedule.coordination import places
from panel_schedule.coordination.places import SPACE, Limit, PlaceState
from panel_schedule.coordination.record import Record, Refusal
from panel_schedule.decorators import Front
from panel_schedule.errors import ConfigError, RegistrationError, StoreError
from panel_schedule.functions.run import RunState
from panel_schedule.runtime import Runtime
from panel_schedule.stores.base import Store
from panel_schedule.stores.records import Change
from panel_schedule.testing.contracts.tools import second
from servers import eventually

QUEUED, RUNNING, SUCCEEDED = RunState.QUEUED, RunState.RUNNING, RunState.SUCCEEDED

pytest_plugins = ["panel_schedule.testing.plugin"]
pytestmark = pytest.mark.stores("asked")
with_a_death = pytest.mark.stores("asked", lease=1.0)

TWO = Limit("group 'two'", 2)


def alive(owner):
    return owner in ("me", "other")


def place(owner, holder="run", number=0):
    return Record(SPACE, f"{TWO.name} {number}", PlaceState(owner or "me", holder), TWO.name, owner)


# ------------------------------------------------------------ what may happen to a place


@pytest.mark.parametrize(
    ("before", "taken"),
    [
        (None, True),
        (place(None), True),
        (place("dead"), True),
        (place("other"), False),
        (place("me", "another"), False),
    ],
)
def test_a_place_is_taken_unless_a_living_process_has_it(before, taken) -> None:
    after = places.take(before, 1, limit=TWO.name, number=0, me="me", holder="run", alive=alive)
    assert after == (place("me") if taken else Refusal.HELD)


@pytest.mark.parametrize(
    ("before", "freed"),
    [
        (None, False),
        (place(None), False),
        (place("other"), False),
        (place("me", "another"), False),
        (place("me"), True),
    ],
)
def test_a_place_is_given_back_by_who_has_it(before, freed) -> None:
    after = places.free(before, 1, me="me", holder="run", now=second(0))
    assert after == (place(None)._replace(expires_at=second(3600)) if freed else Refusal.FENCED)


@pytest.mark.parametrize(
    ("records", "number"),
    [
        ([], 0),
        ([place("other")], 1),
        ([place("other", number=1)], 0),
        ([place("other"), place("me", number=1)], None),
        ([place("other"), place("dead", number=1)], 1),
        ([place("other"), place("me", number=1), place(None, number=2)], None),
    ],
)
def test_the_first_place_that_nobody_living_has_is_vacant(records, number) -> None:
    """One beyond the size of the limit is none: another process may still have a larger one."""
    assert number == places.vacant(records, TWO, alive)


# ------------------------------------------------------------ what a store promises


def test_a_holder_has_one_place_of_each_limit_or_none(opened) -> None:
    """However often it asks; and what another one has of both comes free together."""
    store = opened()
    one, two = Limit("group 'one'", 1), Limit("group 'two'", 2)
    assert [None, None] == [store.places.take([two, one], "a") for _ in range(2)]
    assert one == store.places.take([two, one], "b")
    assert None is store.places.take([two], "c")
    assert two == store.places.take([two], "d")
    store.places.free([two, one], "a")
    assert None is store.places.take([two, one], "b")
    assert ["b", "c"] == sorted(each.state.holder for each in store.records.scan(SPACE, two.name, owner=store.me))


def test_who_finds_that_another_process_was_quicker_takes_the_next_place_or_none(opened, monkeypatch) -> None:
    """Between the look and the change: what it could have of the other limits it has not taken then."""
    store, other = opened(), opened()
    one, two = Limit("group 'one'", 1), Limit("group 'two'", 2)
    write = store.records.write

    def be_late(*changes, **options):
        monkeypatch.setattr(store.records, "write", write)
        other.places.take([Limit(change.name.rpartition(" ")[0], 1) for change in changes[0][-1:]], "quick")
        return write(*changes, **options)

    monkeypatch.setattr(store.records, "write", be_late)
    assert None is store.places.take([two], "a")
    store.places.free([two], "a")
    monkeypatch.setattr(store.records, "write", be_late)
    assert one == store.places.take([two, one], "b")
    assert [] == store.records.scan(SPACE, owner=store.me)


# ------------------------------------------------------------ in one process


@pytest.fixture
def core():
    with Core(groups={"warehouse": 1}) as core:
        yield core


def states(*runs):
    return [str(run.state) for run in runs]


def test_as_many_runs_of_a_function_go_at_once_as_max_running_says(core) -> None:
    """The others are queued, and go in the order in which they came."""
    held = core.held("work")
    work = core.ps.background(executor="thread", max_running=2)(held)
    runs = [work.submit() for _ in range(4)]
    core.go()
    assert ["running", "running", "queued", "queued"] == states(*runs)
    assert [1, 2] == [run.position for run in runs[2:]]
    held.finish()
    core.go()
    assert ["succeeded", "running", "running", "queued"] == states(*runs)


def test_a_group_counts_tasks_jobs_and_answers(core) -> None:
    """Whichever came first goes first, and one at a time."""
    bodies = [core.held(name) for name in ("task", "job", "memo")]
    task = core.schedule(period="1h", first_run="skip", group="warehouse")(bodies[0])
    job = core.ps.background(executor="thread", group="warehouse")(bodies[1])
    memo = core.ps.memoize(executor="thread", group="warehouse")(bodies[2])
    core.begin()
    runs = [job.submit(), memo.submit(), task.refresh()]
    for number, body in enumerate((bodies[1], bodies[2], bodies[0])):
        core.go()
        assert ["succeeded"] * number + ["running"] + ["queued"] * (2 - number) == states(*runs)
        body.finish(number)
    core.go()
    assert [0, 1, 2] == [run.result() for run in runs]
    assert (2, 1) == (task(), memo())


def test_what_waits_for_its_own_function_lets_others_of_its_group_pass() -> None:
    """A full limit holds up who needs it, and nobody else."""
    with Core(groups={"warehouse": 2}) as core:
        slow, quick = core.held("slow"), core.held("quick")
        narrow = core.ps.background(executor="thread", group="warehouse", max_running=1)(slow)
        wide = core.ps.background(executor="thread", group="warehouse")(quick)
        runs = [narrow.submit(), narrow.submit(), wide.submit(), wide.submit()]
        core.go()
        assert ["running", "queued", "running", "queued"] == states(*runs)
        slow.finish()
        core.go()
        assert ["succeeded", "running", "running", "queued"] == states(*runs)


@pytest.mark.parametrize("first", ["narrow", "wide"])
def test_of_a_group_that_comes_first_goes_first_which_has_a_limit_of_its_own_or_none(core, first) -> None:
    """Neither is given the preference."""
    bodies = {name: core.held(name) for name in ("narrow", "wide")}
    jobs = {
        name: core.ps.background(executor="thread", group="warehouse", max_running=most)(bodies[name])
        for name, most in (("narrow", 1), ("wide", None))
    }
    jobs["wide"].submit()
    core.go()
    waiting = [jobs[name].submit() for name in sorted(jobs, key=lambda name: name != first)]
    bodies["wide"].finish()
    core.go()
    assert ["running", "queued"] == states(*waiting)


@pytest.mark.parametrize("kind", ["task", "job", "memo"])
def test_what_is_cancelled_while_it_waits_ends_at_once_and_frees_nothing(core, kind) -> None:
    """Who came after it waits as before."""
    held, other = core.held("held"), core.held("other")
    job = core.ps.background(executor="thread", group="warehouse")(held)
    first = job.submit()
    core.go()
    if kind == "task":
        core.begin()
        run = core.schedule(period="1h", first_run="skip", group="warehouse")(other).refresh()
    elif kind == "job":
        run = core.ps.background(executor="thread", group="warehouse")(other).submit()
    else:
        run = core.ps.memoize(executor="thread", group="warehouse")(other).submit()
    last = job.submit()
    core.go()
    assert ["running", "queued", "queued"] == states(first, run, last)
    run.cancel()
    core.go()
    assert ["running", "cancelled", "queued"] == states(first, run, last)
    held.finish()
    core.go()
    assert ["succeeded", "cancelled", "running"] == states(first, run, last)
    assert 0 == other.calls


def test_a_run_has_its_place_until_its_function_has_ended(core) -> None:
    """Also where that is a thread that goes on after a timeout: the warehouse is at work for it all the same."""
    held = core.held("work")
    work = core.ps.background(executor="thread", group="warehouse", timeout="10s")(held)
    first, second_one = work.submit(), work.submit()
    core.go()
    core.advance(11)
    assert ["timed_out", "queued"] == states(first, second_one)
    held.finish()
    core.go()
    assert RUNNING == second_one.state


def test_a_timeout_counts_from_the_beginning_of_the_function(core) -> None:
    """What waits for a place does not run out of time."""
    held = core.held("work")
    other = core.ps.background(executor="thread", group="warehouse", name="other")(held)
    work = core.ps.background(executor="thread", group="warehouse", timeout="10s", name="work")(held)
    first, run = other.submit(), work.submit()
    core.go()
    core.run_for(60)
    held.finish()
    core.go()
    core.run_for(9)
    assert ["succeeded", "running"] == states(first, run)
    core.run_for(2)
    assert RunState.TIMED_OUT == run.state


def test_a_task_takes_no_place_while_it_waits_for_one_that_it_reads(core) -> None:
    """Of its own group, and which comes later in the same slot: else both would wait for ever."""
    body = core.held("slow")
    slow = core.schedule(period="1m", first_run="skip")(body)
    late = core.schedule(period="1m", first_run="skip", needs=slow, group="warehouse", name="late")(lambda: 1)

    def read() -> int | None:
        return late()

    reader = core.schedule(period="1m", first_run="skip", group="warehouse")(read)
    core.begin()
    core.run_for(60)
    body.finish()
    core.go()
    assert (1, 1) == (late(), reader())


def test_a_place_is_free_in_the_pause_before_another_attempt(core) -> None:
    """Which waits for its turn again."""
    held = core.held("work")
    work = core.ps.background(executor="thread", group="warehouse", retry=1)(held)
    first, other = work.submit(), work.submit()
    core.go()
    held.finish(OSError("away"))
    core.go()
    assert ["queued", "running"] == states(first, other)
    core.run_for(30)
    assert ["queued", "running"] == states(first, other)
    held.finish()
    core.go()
    assert ["running", "succeeded"] == states(first, other)


def test_a_failure_of_what_is_at_its_turn_holds_up_nothing(core) -> None:
    """Its place is free as that of any other."""
    held = core.held("work")
    work = core.ps.background(executor="thread", group="warehouse")(held)
    first, other = work.submit(), work.submit()
    core.go()
    held.finish(OSError("away"))
    core.go()
    assert ["failed", "running"] == states(first, other)


def test_a_stop_cancels_what_waits_for_a_place(core) -> None:
    """It has not begun, and never does."""
    held = core.held("work")
    work = core.ps.background(executor="thread", group="warehouse")(held)
    runs = [work.submit(), work.submit()]
    core.go()
    core.runtime._dispatcher.stop()
    assert "cancelled" == str(runs[1].state)
    held.finish()
    core.go()
    assert 1 == held.calls


def test_who_calls_a_memoized_function_waits_for_its_turn(core) -> None:
    """It is not computed beside the others on the caller's own thread."""
    held = core.held("work")
    core.ps.background(executor="thread", group="warehouse")(held).submit()
    core.go()
    memo = core.ps.memoize(group="warehouse", name="memo")(core.held("memo"))
    caller = core.ps.background(executor="thread", name="caller")(lambda: memo())
    run = caller.submit()
    core.go()
    assert (RUNNING, 0) == (run.state, memo.function.calls)
    held.finish()
    core.go()
    memo.function.finish(7)
    core.go()
    assert 7 == run.result()


def test_without_limits_no_record_is_made(core) -> None:
    """Nor is anything asked."""
    run = core.ps.background(executor="thread", name="job")(lambda: 1).submit()
    core.go()
    assert (SUCCEEDED, []) == (run.state, core.service.store.records.scan(SPACE))
    assert SPACE not in core.service.store.records._subscribers


def test_a_run_that_asks_for_another_one_of_its_limit_is_named_in_a_warning(core, caplog) -> None:
    """Once: if it waits for it, neither ends."""
    inner = core.ps.background(executor="thread", group="warehouse", name="inner")(lambda: 1)
    outer = core.ps.background(executor="thread", group="warehouse", name="outer")(lambda: inner.submit() and None)
    outer.submit()
    core.go()
    outer.submit()
    core.go()
    warnings = [each for each in messages(caplog) if "asks for" in each]
    assert 1 == len(warnings)
    assert "Job 'outer' asks for Job 'inner'" in warnings[0]
    assert "group 'warehouse'" in warnings[0]


def test_so_is_one_that_does_so_in_a_worker_process(caplog) -> None:
    """The server knows which run asks there."""
    config = Config({})
    config.store, config.groups = "memory://", {"warehouse": 1}
    runtime = Runtime(config)
    front = Front(runtime)
    inner = front.background(executor="thread", group="warehouse", name="inner")(lambda: 1)
    try:
        front.background(group="warehouse", name="outer")(lambda: inner.submit() and None).submit().result(PATIENCE)
    finally:
        runtime.close()
    assert ["Job 'outer' asks for Job 'inner'"] == [each.partition(",")[0] for each in messages(caplog)]


def test_limits_hold_on_virtual_time(schedule) -> None:
    """As in production."""
    ps.config.groups = {"warehouse": 1}
    now, most = [0], [0]

    def count():
        now[0] += 1
        most[0] = max(most[0], now[0])
        ps.current_run().report(1, "")
        now[0] -= 1

    for name in "abc":
        ps.schedule(period="1h", name=name, group="warehouse")(count)
    schedule.advance("1h")
    assert (1, 6) == (most[0], len(schedule.runs))


# ------------------------------------------------------------ a store that cannot be asked


def test_what_waits_looks_again_when_the_store_works_again(opened, caplog, monkeypatch) -> None:
    """Nothing goes beyond the limit meanwhile; the log says once why it waits."""
    with Core(store=opened(), groups={"warehouse": 1}) as core:
        held = core.held("work")
        work = core.ps.background(executor="thread", group="warehouse")(held)
        with monkeypatch.context() as patch:
            patch.setattr(core.service.store.places, "take", Mock(side_effect=StoreError("It is gone.")))
            run = work.submit()
            core.go()
            core.run_for(3)
            assert QUEUED == run.state
            assert 1 == sum("It is gone." in each for each in messages(caplog))
        core.run_for(1)
        assert RUNNING == run.state


def test_a_process_that_runs_its_tasks_for_itself_counts_for_itself(core, monkeypatch) -> None:
    """As many as there are places: those count, too, that it had from the store."""
    held = core.held("work")
    work = core.ps.background(executor="thread", group="warehouse")(held)
    first = work.submit()
    core.go()
    monkeypatch.setattr(Store, "away", True)
    monkeypatch.setattr(core.service.store.places, "take", Mock(side_effect=StoreError("It is gone.")))
    runs = [first, work.submit(), work.submit()]
    core.go()
    assert ["running", "queued", "queued"] == states(*runs)
    for number in range(2):
        held.finish()
        core.go()
        assert "running" == str(runs[number + 1].state)


def test_a_place_that_was_taken_though_the_store_did_not_say_so_is_given_back(opened, monkeypatch) -> None:
    """Its run was cancelled before it could be asked again."""
    with Core(store=opened(), groups={"warehouse": 1}) as core:
        work = core.ps.background(executor="thread", group="warehouse")(core.held("work"))
        take = core.service.store.places.take

        def lose(*args):
            take(*args)
            raise StoreError("Its answer is lost.")

        monkeypatch.setattr(core.service.store.places, "take", lose)
        run = work.submit()
        core.go()
        assert [core.service.store.me] == owners(core)
        run.cancel()
        core.go()
        assert [None] == owners(core)


def test_a_place_that_came_when_its_run_had_been_cancelled_is_given_back(opened, monkeypatch) -> None:
    """It was cancelled while the store was asked."""
    with Core(store=opened(), groups={"warehouse": 1}) as core:
        work = core.ps.background(executor="thread", group="warehouse")(core.held("work"))
        take = core.service.store.places.take

        def dawdle(*args):
            run.cancel()
            core.writer.go()
            return take(*args)

        monkeypatch.setattr(core.service.store.places, "take", dawdle)
        monkeypatch.setattr(core.thread, "submit", submitted := Mock())
        run = work.submit()
        core.go()
        assert ([None], []) == (owners(core), submitted.mock_calls)


def owners(core):
    return [each.owner for each in core.service.store.records.scan(SPACE)]


def test_places_that_a_store_has_lost_are_taken_again(opened) -> None:
    """By who has them, so that others go on counting him."""
    with Core(store=opened(), groups={"warehouse": 1}) as core:
        work = core.ps.background(executor="thread", group="warehouse")(core.held("work"))
        work.submit()
        core.go()
        records = core.service.store.records
        [record] = records.scan(SPACE)
        records.write([Change(SPACE, record.name, lambda *_: None)])
        for lost in records._lost:
            lost(0)
        assert [record.state] == [each.state for each in records.scan(SPACE, owner=records.me)]


# ------------------------------------------------------------ options


@pytest.mark.parametrize("kind", ["schedule", "background", "memoize"])
def test_a_group_that_nobody_has_sized_is_refused_when_the_service_starts(kind) -> None:
    """The configuration may come after the decorator; at its first use it is complete."""
    with Core(groups={"warehouse": 1}) as core:
        front, runtime = core.ps, core.runtime
        runtime._service = None
        options = {"period": "1h"} if kind == "schedule" else {}
        getattr(front, kind)(**options, name="f", group="warehuose")(lambda: 1)
        with pytest.raises(ConfigError, match=r"'f': its group='warehuose' is none of ps.config.groups, which"):
            runtime.check()


@pytest.mark.parametrize("kind", ["schedule", "background", "memoize"])
def test_later_it_is_refused_at_once(core, kind) -> None:
    options = {"period": "1h"} if kind == "schedule" else {}
    with pytest.raises(ConfigError, match=r"its group='api' is none of .* which has 'warehouse'"):
        getattr(core.ps, kind)(**options, name="f", group="api")(lambda: 1)


@pytest.mark.parametrize("kind", ["background", "memoize"])
@pytest.mark.parametrize("options", [{"max_running": 0}, {"max_running": True}, {"group": ""}, {"group": 2}])
def test_options_that_mean_nothing_are_refused(core, kind, options) -> None:
    with pytest.raises(RegistrationError, match="must be"):
        getattr(core.ps, kind)(**options)


def test_a_task_has_no_max_running(core) -> None:
    """It has one run anyway."""
    with pytest.raises(TypeError, match="max_running"):
        core.ps.schedule(period="1h", max_running=2)


def test_sizes_of_groups_come_from_the_environment_too() -> None:
    assert {"warehouse": 2, "api": 5} == Config({"PANEL_SCHEDULE_GROUPS": "warehouse=2, api=5"}).groups


@pytest.mark.parametrize("groups", [{"warehouse": 0}, {"warehouse": True}, {"": 1}, {1: 1}, {"warehouse": "2"}])
def test_sizes_that_mean_nothing_are_refused(groups) -> None:
    with pytest.raises(ConfigError, match=r"ps.config.groups is .* at least 1"):
        Config({}).groups = groups


# ------------------------------------------------------------ in several processes


JOBS = """
import os, time
import panel_schedule as ps
from panel_schedule.engine import limits

limits.LOOK = 60.0  # what is not heard comes too late
ps.config.groups = {"warehouse": 1}

def note(*words):
    file = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, (" ".join(map(str, words)) + chr(10)).encode())
    os.close(file)

@ps.background(executor="thread", group="warehouse", on_session_end="continue")
def work(name):
    note("began", name)
    while not (folder / f"go {name}").exists():
        time.sleep(0.005)
    note("ended", name)
    return name

@ps.memoize(group="warehouse", executor="thread")
def answer(name):
    return work.function(name)

runs = {}
def submit(name, of=work):
    runs[name] = of.submit(name)
def state(name):
    return str(runs[name].state)
"""


@pytest.fixture
def hosts(tmp_path, address):
    started = [Host(tmp_path, jobs=JOBS, address=address) for _ in range(2)]
    yield started
    for host in started:
        host.kill()
    print((tmp_path / "log").read_text())


def journal(folder):
    path = folder / "journal"
    return path.read_text().splitlines() if path.exists() else []


def await_line(folder, line):
    eventually(partial(lambda: line in journal(folder)))


def test_a_group_counts_all_processes_that_share_a_store(hosts, tmp_path) -> None:
    """A run in one and a computation in the other one do not go at the same time."""
    one, other = hosts
    one("submit('a')")
    await_line(tmp_path, "began a")
    other("submit('b', answer)")
    assert ("running", "queued") == (one("state('a')"), other("state('b')"))
    (tmp_path / "go b").touch()
    (tmp_path / "go a").touch()
    await_line(tmp_path, "ended b")
    assert ["began a", "ended a", "began b", "ended b"] == journal(tmp_path)


def test_a_process_with_much_to_do_lets_another_one_have_its_turn(hosts, tmp_path) -> None:
    """What waits there does not wait until all of it is done."""
    one, other = hosts
    names = [f"a{number}" for number in range(200)]
    one(f"[submit(name) for name in {names}] and None")
    await_line(tmp_path, "began a0")
    other("submit('b')")
    for name in ("b", *names):
        (tmp_path / f"go {name}").touch()
    await_line(tmp_path, "ended b")
    assert "began a199" not in journal(tmp_path)
    await_line(tmp_path, "ended a199")
    lines = [line.partition(" ") for line in journal(tmp_path)]
    assert ["began", "ended"] * 201 == [what for what, _, _ in lines]
    assert [name for _, _, name in lines[::2]] == [name for _, _, name in lines[1::2]]


@with_a_death
def test_the_place_of_a_process_that_died_comes_free(hosts, tmp_path) -> None:
    """Nobody has to give it back."""
    one, other = hosts
    one("submit('a')")
    await_line(tmp_path, "began a")
    other("submit('b')")
    one.kill()
    (tmp_path / "go b").touch()
    await_line(tmp_path, "ended b")
    assert ["began a", "began b", "ended b"] == journal(tmp_path)
