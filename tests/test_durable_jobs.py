"""Background functions in several processes, and over the end of any of them (invariants 14, 17, 19)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

import panel_schedule
from job_peer import Host
from panel_schedule.config import Config
from panel_schedule.coordination.processes import SPACE
from panel_schedule.decorators import Front
from panel_schedule.functions.run import RunState
from panel_schedule.runtime import Runtime
from panel_schedule.serialize.codec import encode
from panel_schedule.stores.base import Store
from servers import Serve, eventually
from store_address import StoreAddress
from store_peer import PATIENCE
from views import Onlooker

# Where a process dies that is noticed by its lock in a directory, and by its lease over a server.
pytestmark = pytest.mark.stores("asked")
anywhere, in_a_directory = pytest.mark.stores("all"), pytest.mark.stores("none")
with_a_death = pytest.mark.stores("asked", lease=1.0)

AUDIT = """
    CREATE TABLE ended (id TEXT, state TEXT);
    CREATE TRIGGER ends AFTER UPDATE OF owner ON records
    WHEN NEW.space = 'run' AND OLD.owner NOT NULL AND NEW.owner IS NULL BEGIN
        INSERT INTO ended VALUES (NEW.name, json_extract(NEW.state, '$[0].state'));
    END;
"""


# A payload without arguments.
NOTHING = encode(((), {}), "Job 'work'")


@pytest.fixture
def store(address) -> Iterator[Store]:
    """The store of a test, open in its process."""
    with closing(address.open()) as store:
        yield store


@pytest.fixture
def runtime(address) -> Iterator[Runtime]:
    """A server on it, in the same process."""
    config = Config({})
    config.store, config.namespace = address.url, address.namespace
    runtime = Runtime(config)
    runtime.started = True
    runtime._begin()
    yield runtime
    runtime.grace = 0.0
    runtime.close()


class House:
    """A store, the processes on it, and what there is to be seen from outside."""

    def __init__(self, folder: Path, address: StoreAddress):
        folder.mkdir(exist_ok=True)
        self.folder, self.address = folder, address
        self._onlooker = Onlooker(address)
        if address.is_directory:
            with closing(sqlite3.connect(address.path / "store.db")) as connection:
                connection.executescript(AUDIT)
        self.hosts: list[Host] = []

    def host(self, *args, **options) -> Host:
        self.hosts.append(Host(self.folder, *args, address=self.address, **options))
        return self.hosts[-1]

    def rows(self, question: str, *values) -> list[tuple]:
        return self._onlooker.rows(question, *values)

    def states(self) -> list[tuple[str, str, int]]:
        return self.rows("SELECT id, state, attempt FROM jobs ORDER BY number")

    def state(self, id: str) -> tuple[str, int]:
        (row,) = self.rows("SELECT state, attempt FROM jobs WHERE id = ?", id)
        return row

    def ended(self) -> list[tuple[str, str]]:
        """Id and state, each time that one ended; a run that could end twice would be twice in its history, too."""
        return self.rows("SELECT * FROM ended") if self.address.is_directory else self._onlooker.ended()

    def journal(self) -> list[str]:
        path = self.folder / "journal"
        return path.read_text().splitlines() if path.exists() else []

    def await_line(self, line: str, timeout: float = 10.0) -> None:
        eventually(lambda: line in self.journal(), timeout)

    def await_state(self, id: str, state: str, timeout: float = 10.0) -> int:
        """Its attempt."""
        return eventually(lambda: next((a for i, s, a in self.states() if (i, s) == (id, state)), None), timeout)

    def go(self, *names: str) -> None:
        for name in names:
            (self.folder / f"go {name}").touch()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def end(self) -> None:
        for host in self.hosts:
            host.kill()
        self._onlooker.close()

    def assert_sound(self) -> None:
        """Nothing has ended twice, and no file is left that no row names."""
        assert [] == [each for each in Counter(id for id, _ in self.ended()).items() if each[1] > 1]
        if self.address.is_directory:
            self.address.open().close()
            known = {file for (file,) in self.rows("SELECT file FROM blobs WHERE file NOT NULL")}
            assert set() == {path.name for path in (self.address.path / "values").iterdir()} - known


@pytest.fixture
def house(tmp_path, address):
    made = House(tmp_path / "house", address)
    yield made
    made.end()
    print(made.log() if (made.folder / "log").exists() else "")


# ------------------------------------------------------------ the end of a process


@with_a_death
def test_it_is_on_the_disk_before_submit_returns(house):
    """Killed at once, a script leaves its job to the next server."""
    script = house.host(serves=False)
    script.send("durable.submit('a') and os.kill(os.getpid(), 9)")
    eventually(lambda: not script.alive)
    ((id, _, attempt),) = house.states()
    house.go("a")
    house.host()
    assert house.await_state(id, "succeeded") - attempt in (0, 1)  # it may have begun
    house.assert_sound()


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["durable", "threaded"])
@with_a_death
def test_another_process_takes_over_within_two_seconds(house, kind):
    one, other = house.host(), house.host()
    id = one(f"{kind}.submit('a').id")
    house.await_line("began a 1")
    other.send(f"[run for run in {kind}.runs()][0].result(20)")
    start = time.monotonic()
    one.kill()
    eventually(lambda: 2 == house.state(id)[1])
    assert time.monotonic() - start < 2.0 + (house.address.lease or 0.0)
    house.await_line("began a 2")  # by a worker process that has to start first
    house.go("a")
    assert "a done" == other.ask()
    assert ("succeeded", 2) == house.state(id)
    assert ["a 2"] == other("ps._runtime.dispatcher.find(id).partials[:]", id=id)
    house.assert_sound()


@anywhere
def test_a_run_of_another_process_is_listed_and_cancelled_by_its_id(house, runtime):
    """By a process that does not even have the function."""
    id = house.host()("fleeting.submit('a').id")
    house.await_line("began a 1")
    [run] = eventually(runtime.dispatcher.under_way)
    assert ("fleeting", id) == (run.task, run.id)
    runtime.dispatcher.cancel(id)
    house.await_state(id, "cancelled")
    assert ([], "cancelled") == (runtime.dispatcher.under_way(), runtime.dispatcher.look_up(id).state)
    assert runtime.dispatcher.look_up("unknown") is None


@with_a_death
def test_processes_see_each_other_and_which_one_has_died(house, runtime):
    host, pid = house.host(), os.getpid()
    theirs = host("os.getpid()")
    records = runtime.service.store.records

    def there():
        return {record.state.pid: records.alive(record.name) for record in records.scan(SPACE)}

    eventually(lambda: there() == {pid: True, theirs: True})
    host.kill()
    eventually(lambda: there() == {pid: True, theirs: False})


@with_a_death
def test_what_kills_its_server_ends_crashed_and_the_others_go_on(house):
    one = house.host()
    one.send("poison.submit()")
    eventually(lambda: not one.alive)
    other = house.host()
    eventually(lambda: not other.alive)
    last = house.host()
    ((id, *_),) = house.states()
    house.await_state(id, "crashed")
    assert ["poison 1", "poison 2"] == house.journal()
    house.go("b")
    assert "b done" == last("durable.submit('b').result(20)")
    assert "RunCrashed" in last("repr(poison.runs()[0].error)")
    house.assert_sound()


def test_what_kills_its_worker_ends_crashed_and_the_others_go_on(house):
    host = house.host()
    assert "crashed" == host("(run := poisoned_worker.submit()).add_done_callback(lambda _: 0) or (wait := "
                             "threading.Event()) and run.add_done_callback(lambda _: wait.set()) or wait.wait(20) and "
                             "str(run.state)")  # fmt: skip
    assert ["poisoned 1", "poisoned 2"] == house.journal()
    house.go("b")
    assert "b done" == host("durable.submit('b').result(20)")


POINTS = ("before the enqueue", "after the enqueue", "in the function", "in the end", "after the end")


@pytest.mark.parametrize("point", POINTS)
@with_a_death
def test_a_process_that_is_killed_anywhere_loses_no_job_and_ends_none_twice(house, point):
    """Another one finishes it, with its value."""
    house.host()
    for number in range(2):
        (house.folder / f"bomb {point}").touch()
        victim = house.host(serves="enqueue" not in point)
        victim.send("quick.submit(number)", number=number)
        eventually(lambda: not (house.folder / f"bomb {point}").exists())
        eventually(lambda: not all(host.alive for host in house.hosts))
        house.hosts = [host for host in house.hosts if host.alive]
        if not house.hosts:
            house.host()
        expected = 0 if point == "before the enqueue" else number + 1
        eventually(lambda expected=expected: expected == sum(s == "succeeded" for _, s, _ in house.states()))
    if point != "before the enqueue":
        (host, *_) = house.hosts
        values = host("[run.value for run in quick.runs()]")
        assert [bytes([number]) * 100_000 for number in (1, 0)] == values
        assert {1, 2} >= {attempt for *_, attempt in house.states()}
    house.assert_sound()


@with_a_death
def test_a_result_waits_for_its_reader(house):
    first = house.host()
    house.go("a")
    id = first("durable.submit('a').id")
    house.await_state(id, "succeeded")
    first.kill()
    second = house.host(serves=False)
    assert ("a done", ["a 1"]) == second("((run := ps._runtime.dispatcher.find(id)).value, list(run.partials))", id=id)
    assert "a done" == second("ps._runtime.dispatcher.find(id).result()", id=id)
    assert [id] == second("[run.id for run in durable.runs()]")


@with_a_death
def test_queued_ones_survive_too(house):
    """With two places, and all of them killed."""
    one = house.host()
    names = [f"n{number}" for number in range(5)]
    ids = one("[durable.submit(name).id for name in names]", names=names)
    eventually(lambda: 2 == len(house.journal()))
    one.kill()
    house.go(*names)
    house.host()
    assert [2, 2, 1, 1, 1] == sorted((house.await_state(id, "succeeded") for id in ids), reverse=True)
    house.assert_sound()


# ------------------------------------------------------------ a stop


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_rolling_restart_loses_nothing(house, how):
    """What runs is given back after the grace period, what waits at once; each is done once more."""
    old = house.host(grace_period=0.3)
    names = ["a", "b", "c", "d"]
    ids = old("[durable.submit(name).id for name in names]", names=names)
    eventually(lambda: 2 == len(house.journal()))
    new = house.host()
    old.signal(how)
    eventually(lambda: not old.alive, 5)
    assert 0 == old.process.exitcode
    house.go(*names)
    for id in ids:
        house.await_state(id, "succeeded")
    assert set(ids) == {id for id, state in house.ended() if state == "succeeded"}
    assert 4 == len(new("[run.result(5) for run in durable.runs()]"))
    assert not re.search("Traceback|never retrieved", house.log())
    house.assert_sound()


@pytest.mark.parametrize("kind", ["threaded", "looped", "stubborn"])
def test_each_kind_is_given_back(house, kind):
    """What ends with an error because it is told to stop has not failed for good."""
    old = house.host(grace_period=0.2)
    id = old(f"{kind}.submit('a').id")
    house.await_line("began a 1")
    old.signal(signal.SIGTERM)
    eventually(lambda: not old.alive, 5)
    assert "queued" == house.state(id)[0]
    house.go("a")
    new = house.host()
    house.await_state(id, "succeeded")
    assert "a done" == new("ps._runtime.dispatcher.find(id).result(5)", id=id)
    house.assert_sound()


def test_within_the_grace_period_a_job_ends(house):
    host = house.host(grace_period=10)
    id = host("durable.submit('a').id")
    house.await_line("began a 1")
    host.signal(signal.SIGTERM)
    house.go("a")
    eventually(lambda: not host.alive)
    assert ("succeeded", 1) == house.state(id)


@pytest.mark.parametrize(("how", "state"), [("stop", "cancelled"), ("kill", "crashed")])
@with_a_death
def test_one_that_is_not_durable_ends_visibly_for_those_who_follow(house, how, state):
    one, other = house.host(grace_period=0.1), house.host()
    one("run = fleeting.submit('a')")
    house.await_line("began a 1")
    eventually(lambda: other("len(fleeting.runs())"))
    other("(run := fleeting.runs()[0], done := threading.Event(), run.add_done_callback(lambda _: done.set())) and 0")
    getattr(one, how)()
    assert other("done.wait(5)")
    assert state == other("str(run.state)")
    assert state == other("str(fleeting.runs()[0].state)")


def test_who_finds_a_run_as_it_is_taken_over_sees_its_end(runtime, store, monkeypatch):
    """A page that is loaded again while a server comes up, say."""
    found, take = [], runtime.service.store.queue.take

    def take_late(id, *args):
        found.append(runtime.dispatcher.find(id))
        return take(id, *args)

    monkeypatch.setattr(runtime.service.store.queue, "take", take_late)
    Front(runtime).background(durable=True, executor="thread", name="work")(lambda: "ended")
    store.queue.enqueue("run1", "work", now=runtime.service.clock.now(), payload=NOTHING, durable=True, synced=False)
    store.close()
    run = eventually(lambda: found)[0]

    assert "ended" == run.result(PATIENCE)


def test_a_run_whose_process_was_taken_for_dead_goes_on_there(runtime, store, monkeypatch):
    """If nobody has taken it meanwhile: its function runs once."""
    begun, go = [], threading.Event()

    @Front(runtime).background(durable=True, executor="thread")
    def work():
        begun.append(threading.get_ident())
        panel_schedule.current_run().publish("half")
        assert go.wait(PATIENCE)
        return "ended"

    run = work.submit()
    eventually(lambda: run.partials)
    record = store.queue.job(run.id).record
    with monkeypatch.context() as patch:
        patch.setattr(type(store.records), "alive", lambda self, owner: False)
        store.queue._bury(record)
    eventually(lambda: (2, ["half"]) == (store.queue.job(run.id).fence, store.queue.partials(run.id)))
    go.set()

    assert "ended" == run.result(PATIENCE)
    assert ("ended", 1) == (store.queue.value(run.id), len(begun))


def test_a_run_that_ends_as_its_process_takes_it_up_again_has_its_result(runtime, store, monkeypatch):
    """And what it publishes in between."""
    go, ends, queue = threading.Event(), threading.Event(), runtime.service.store.queue
    take, end = queue.take, queue.end

    def take_slowly(*args):
        taken = take(*args)
        go.set()
        assert ends.wait(PATIENCE)
        return taken

    def end_soon(*args, **options):
        try:
            return end(*args, **options)
        finally:
            ends.set()

    monkeypatch.setattr(queue, "take", take_slowly)
    monkeypatch.setattr(queue, "end", end_soon)

    @Front(runtime).background(durable=True, executor="thread")
    def work():
        panel_schedule.current_run().publish("half")
        assert go.wait(PATIENCE)
        panel_schedule.current_run().publish("whole")
        return "ended"

    run = work.submit()
    eventually(lambda: ["half"] == store.queue.partials(run.id))
    record = store.queue.job(run.id).record
    with monkeypatch.context() as patch:
        patch.setattr(type(store.records), "alive", lambda self, owner: False)
        store.queue._bury(record)

    assert "ended" == run.result(PATIENCE)
    eventually(lambda: ["half", "whole"] == store.queue.partials(run.id))
    assert ("ended", 1) == (store.queue.value(run.id), store.queue.job(run.id).attempt)


@with_a_death
def test_a_function_that_is_gone_keeps_its_run(house):
    """And the log says so, once."""
    script = house.host(serves=False)
    script.send("(durable.submit('a'), durable.submit('b'), os.kill(os.getpid(), 9))")
    eventually(lambda: not script.alive)
    empty = house.host(jobs="import panel_schedule as ps\n")
    eventually(lambda: "Job 'durable' has runs" in house.log())
    empty("ps._runtime.dispatcher.follower._take_all()")
    assert 1 == house.log().count("Job 'durable' has runs")
    assert 2 == len(house.states())
    empty.kill()
    house.go("a", "b")
    house.host()
    for id, *_ in house.states():
        house.await_state(id, "succeeded")


# ------------------------------------------------------------ the view from another process


@anywhere
def test_another_process_follows_attaches_and_cancels(house):
    one, other = house.host(), house.host()
    id = one("(mine := fleeting.submit('a')).id")
    house.await_line("began a 1")
    eventually(lambda: other("[run.state.value for run in fleeting.runs()]") == ["running"])
    other("(job := fleeting.job(), job.attach(id), run := job.run) and 0", id=id)
    eventually(lambda: (50, "half", ["a 1"]) == other("(run.percent, run.message, list(run.partials))"))
    other("run.cancel()")
    eventually(lambda: "cancelled" == one("mine.state.value") == other("run.state.value"))


def test_what_it_has_reported_before_the_store_had_it_arrives_there(house):
    source = """
queue = ps._runtime.dispatcher.follower._queue
enqueue_all = queue.enqueue_all
queue.enqueue_all = lambda *args: (await_go("stored"), enqueue_all(*args))[1]

@ps.background(executor="thread")
def hasty():
    ps.progress(1, 2, "half")
    note("began")
    await_go("hasty")
"""
    one, other = house.host(), house.host()
    one(source)
    other("hasty = ps.background(name='hasty', executor='thread')(lambda: None)")
    one("(mine := hasty.submit()) and 0")
    house.await_line("began")
    house.go("stored")
    eventually(lambda: [(50, "half")] == other("[(run.percent, run.message) for run in hasty.runs()]"))
    house.go("hasty")


@pytest.mark.parametrize(
    ("body", "state", "changes"),
    [
        ("return 'done'", "succeeded", 1),
        ("return threading.Lock()", "failed", 2),
        ("raise ValueError('no')", "failed", 2),
        ("ps.progress(1, 2); return 'done'", "succeeded", 3),
        ("ps.current_run().publish('a'); return 'done'", "succeeded", 3),
    ],
)
def test_what_takes_no_time_is_entered_with_its_end(house, body, state, changes):
    """One change for all of it, where there is nothing else to be told."""
    source = f"""
import threading

outbox, kept = ps._runtime.service.outbox, []
aside, outbox.aside = outbox.aside, kept.append

@ps.background(executor="thread")
def short():
    {body}
"""
    one, other = house.host(source), house.host()
    for host in (one, other):
        host("ps._runtime.presence.release()")  # what it says of itself is a change, too
    other("short = ps.background(name='short', executor='thread')(lambda: None)")
    one("(run := short.submit(), run._completion().exception(10)) and 0")
    if "raise" in body:  # nobody waits for the store then
        one("while kept: kept.pop()()")
    eventually(lambda: [state] == other("[run.state.value for run in short.runs()]"))
    one("while kept: kept.pop()()")  # which somebody has done by now

    assert [(changes,)] == house.rows("SELECT 1 + revision - created FROM records WHERE space = 'run'")
    assert (
        [state]
        == other("[run.state.value for run in short.runs()]")
        == other("[run.state.value for run in short.history]")
    )
    if state == "succeeded":
        assert "done" == other("short.runs()[0].result(0)")


def test_what_it_publishes_arrives_there_in_order(house):
    one, other = house.host(), house.host()
    source = """
@ps.background(executor="thread")
def numbers():
    for number in range(200):
        yield number
        ps.progress(number, 200)
    await_go("numbers")
"""
    for host in (one, other):
        host(source)
    one("(mine := numbers.submit()).id")
    eventually(lambda: other("len(numbers.runs())"))
    other("run = numbers.runs()[0]")
    house.go("numbers")
    other("run.result(10)")
    assert list(range(200)) == other("list(run.partials)")


@anywhere
def test_four_processes_at_the_same_instant_share_one_execution(house):
    hosts = [house.host() for _ in range(4)]
    source = """
def ask(at):
    time.sleep(max(0, at - time.time()))
    runs = [shared.submit("a") for _ in range(3)]
    return [run.result(20) for run in runs]
"""
    for host in hosts:
        host(source)
    for host in hosts:
        host.send("ask(at)", at=time.time() + 0.2)
    eventually(lambda: house.journal())
    house.go("a")
    assert [["a done"] * 3] * 4 == [host.ask() for host in hosts]
    assert ["began a 1"] == house.journal()
    assert [1] * 4 == [host("len(shared.runs())") for host in hosts]


@anywhere
def test_who_gives_up_in_one_process_ends_nothing_in_another(house):
    """Neither who has joined, nor who has begun it: then another process does it anew."""
    one, other = house.host(), house.host()
    one("(mine := shared.submit('a')).id")
    house.await_line("began a 1")
    other("(theirs := shared.submit('a'), again := shared.submit('a')) and 0")
    eventually(lambda: "running" == other("theirs.state.value"))
    other("theirs.cancel()")
    assert ("cancelled", "running") == other("(theirs.state.value, again.state.value)")
    assert "running" == one("mine.state.value")
    one("mine.cancel()")
    eventually(lambda: 2 == house.journal().count("began a 1"))
    house.go("a")
    assert "a done" == other("again.result(10)")


def test_who_asks_while_another_process_gives_up_gets_the_result(house):
    """Here between the look at who waits and the end of the run."""
    one, other = house.host(), house.host()
    one("(mine := shared.submit('a')).id")
    house.await_line("began a 1")
    other("(theirs := shared.submit('a')).cancel()")
    other("(queue := ps._runtime.dispatcher.follower._queue, failure := queue.failure, late := []) and 0")
    other("queue.failure = lambda id: (late.append(shared.submit('a')), failure(id))[1]")
    one("mine.cancel()")
    eventually(lambda: other("len(late)"))
    house.go("a")
    assert "a done" == other("late[0].result(10)")


def test_who_follows_a_run_that_is_begun_anew_sees_its_end(house):
    one, other = house.host(), house.host()
    one("(mine := shared.submit('a')).id")
    house.await_line("began a 1")
    other("(followed := shared.runs()[0], asked := shared.submit('a')) and 0")
    one("mine.cancel()")
    eventually(lambda: "cancelled" == other("followed.state.value"))
    house.go("a")
    assert "a done" == other("asked.result(10)")


def test_what_has_expired_before_another_process_looks_is_done_there(house):
    """It was stopped, or had no time: of what is deleted nobody tells."""
    source = """
@ps.background(executor="thread", ttl="10ms")
def passing():
    note("began")
    await_go("passing")
    return "done"
"""
    one, other = house.host(source), house.host(source)
    id = one("(mine := passing.submit()).id")
    house.await_line("began")
    other("(theirs := passing.submit()) and 0")
    eventually(lambda: "running" == other("theirs.state.value"))
    other.signal(signal.SIGSTOP)
    house.go("passing")
    eventually(lambda: not house.rows("SELECT name FROM records WHERE name = ?", id))
    other.signal(signal.SIGCONT)
    assert "done" == other("theirs.result(10)")
    assert ["began"] * 2 == house.journal()
    assert 0 == other("len([*ps._runtime.dispatcher.executions])")


def test_who_gives_up_before_the_store_has_answered_spoils_nothing(house):
    """On a loop nobody waits for the store: here it says after the cancel that another process does the same."""
    source = """
import threading

async def hasty():
    queue, ledger, go = ps._runtime.dispatcher.follower._queue, ps._runtime.service.outbox, threading.Event()
    enqueue = queue.enqueue
    queue.enqueue = lambda *args, **kwargs: (go.wait(10), enqueue(*args, **kwargs))[1]
    run = shared.submit("a")
    run.cancel()
    go.set()
    while ledger._pending:
        await asyncio.sleep(0.001)
    return run.state.value
"""
    one, other = house.host(), house.host(source)
    one("(mine := shared.submit('a')).id")
    house.await_line("began a 1")
    assert "cancelled" == other("asyncio.run(hasty())")
    other("(theirs := shared.submit('a')) and 0")
    house.go("a")
    assert "a done" == other("theirs.result(10)")
    assert ["began a 1"] == house.journal()
    assert 0 == other("len([*ps._runtime.dispatcher.executions])")


def test_a_result_of_another_process_is_shared_no_longer_than_its_ttl(house):
    source = """
@ps.background(executor="thread", ttl="3s")
def now():
    return time.time()
"""
    one, other = house.host(source), house.host(source)
    first = one("now.submit().result(10)")
    eventually(lambda: time.time() > first + 1.5)  # by the clocks of the processes themselves
    assert first == other("now.submit().result(10)")
    second = eventually(lambda: (found := other("now.submit().result(10)")) > first and found)
    # Not for another three seconds from the hit on.
    assert first + 2.9 < second < first + 4.4


def test_who_follows_a_shared_run_and_asks_for_the_same_gets_both(house):
    one, other = house.host(), house.host()
    one("(mine := shared.submit('a')).id")
    house.await_line("began a 1")
    eventually(lambda: other("len(shared.runs())"))
    other("(followed := shared.runs()[0], asked := shared.submit('a')) and 0")
    house.go("a")
    assert ("a done", "a done") == other("(asked.result(10), followed.result(10))")


STORM = """
import random

@ps.background(executor="thread", ttl="50ms")
def brief(number):
    yield number
    time.sleep(0.005)
    return number

def storm(seed):
    chance, runs, wrong = random.Random(seed), [], []
    for _ in range(60):
        number = chance.randrange(4)
        run = brief.submit(number)
        runs.append((run, number, chance.random() < 0.4))
        if runs[-1][2]:
            time.sleep(chance.random() * 0.006)
            run.cancel()
    for run, number, cancelled in runs:
        try:
            if run.result(10) != number:
                wrong.append((number, run.result()))
        except Exception as error:
            if not (cancelled and isinstance(error, ps.errors.RunCancelled)):
                wrong.append(repr(error))
    return wrong
"""


def test_whoever_asks_for_the_same_and_gives_up_in_whichever_process(house):
    """Who has not given up gets the result, whatever the others do."""
    hosts = [house.host(STORM) for _ in range(3)]
    for number, host in enumerate(hosts):
        host.send("storm(seed)", seed=number)
    assert [[], [], []] == [host.ask() for host in hosts]
    eventually(lambda: all(state not in ("queued", "running") for _, state, _ in house.states()))
    eventually(lambda: [0] * 3 == [host("len([*ps._runtime.dispatcher.executions])") for host in hosts])


# ------------------------------------------------------------ trouble with the store


@in_a_directory
def test_a_database_that_is_deleted_during_a_job_costs_no_result(house):
    host = house.host()
    host("run = durable.submit('a')")
    house.await_line("began a 1")
    for path in house.address.path.glob("store.db*"):
        path.unlink()
    house.go("a")
    assert "a done" == host("run.result(10)")
    assert "were deleted or replaced while it was in use" in house.log()


@in_a_directory
def test_a_store_that_is_deleted_during_a_job_costs_no_result(house):
    host = house.host()
    host("run = fleeting.submit('a')")
    house.await_line("began a 1")
    # At one go: the directory is made again as soon as it is missed, and then it would not be empty at the end.
    shutil.rmtree(house.address.path.rename(house.address.path.with_name("gone")))
    house.go("a")
    assert "a done" == host("run.result(10)")


@in_a_directory
def test_a_full_disk_during_a_job_costs_no_result(tiny, tmp_path):
    house = House(tmp_path / "house", StoreAddress(f"file://{tiny / 'store'}"))
    source = """
@ps.background(executor="thread", durable=True)
def large():
    note("began")
    await_go("large")
    for _ in range(3):
        yield bytes(100)
    return bytes(10_000_000)
"""
    try:
        host = house.host(source)
        host("run = large.submit()")
        house.await_line("began")
        house.go("large")
        assert 10_000_000 == host("len(run.result(10))")
        assert ("succeeded", 3) == host("(run.state.value, len(run.partials))")
        assert "Job 'large': its result cannot be stored now; it is tried again" in house.log()
    finally:
        house.end()


# ------------------------------------------------------------ panel serve

FILES = {
    "app.py": """
        import panel as pn
        pn.pane.Str("hello").servable()
    """,
    "tasks.py": """
        import contextlib, os, pathlib, time
        import panel_schedule as ps

        @ps.background(durable=True, retry=1)
        def work(name):
            file = os.open("journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(file, f"{name} {ps.current_run().attempt}\\n".encode())
            while not pathlib.Path("go").exists():
                time.sleep(0.005)
            return name

        if os.environ.get("SUBMIT"):
            with contextlib.suppress(FileExistsError):  # one of the processes does
                pathlib.Path("submitted").touch(exist_ok=False)
                for number in range(3):
                    work.submit(f"job{number}")
    """,
}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_server_that_is_killed_goes_on_after_its_restart(serve: Serve, tmp_path, address, processes):
    command = f"app.py --setup tasks.py --num-procs {processes}"
    env = {**address.env(), "PANEL_SCHEDULE_MAX_PROCESSES": "3"}
    journal = tmp_path / "journal"
    server = serve(command, FILES, env={**env, "SUBMIT": "1"})
    eventually(lambda: journal.exists() and 3 == len(journal.read_text().splitlines()), 20)
    family = server.descendants()
    for process in [psutil.Process(server.process.pid), *family]:
        with suppress(psutil.NoSuchProcess):  # a worker goes with its server
            if not any("_worker.py" in part for part in process.cmdline()):
                process.kill()
    eventually(lambda: not server.descendants(), 5)

    serve(command, env=env)
    eventually(lambda: 6 == len(journal.read_text().splitlines()), 20)
    (tmp_path / "go").touch()
    with closing(Onlooker(address)) as onlooker:
        states = "SELECT state, attempt FROM jobs ORDER BY number"
        eventually(lambda: [("succeeded", 2)] * 3 == onlooker.rows(states), 20)
    assert Counter(f"job{n} {a}" for n in range(3) for a in (1, 2)) == Counter(journal.read_text().splitlines())


assert RunState.SUCCEEDED == "succeeded"
