"""Memoized functions in several processes: one computation for all of them, and over the end of any (2.4, 14, 19)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from textwrap import dedent

import pytest

from memo_peer import Neighbourhood
from panel_schedule.errors import RunCrashed
from servers import Serve, eventually
from store_address import StoreAddress
from visitors import Visitor, visitors

# Where a process dies that is noticed by its lock in a directory, and by its lease over a server.
pytestmark = pytest.mark.stores("asked")
in_a_directory = pytest.mark.stores("none")
with_a_death = pytest.mark.stores("asked", lease=1.0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, new_address):
    """Four processes that tests share which neither end one nor damage the store."""
    folder = tmp_path_factory.mktemp("shared")
    made = Neighbourhood(folder / "house", new_address(folder / "store"))
    for _ in range(4):
        made.host()
    yield made
    made.end()
    print(made.log())


@pytest.fixture
def house(tmp_path, address):
    made = Neighbourhood(tmp_path / "house", address)
    yield made
    made.end()
    print(made.log())


@contextmanager
def stopped(host):
    """It hears of nothing meanwhile, as one that is swapped out."""
    host.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        host.signal(signal.SIGCONT)


def fill(disk):
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


# ------------------------------------------------------------ one for all


@pytest.mark.parametrize("kind", ["slow", "remote", "looped"])
def test_callers_of_four_processes_at_once_share_one_computation(shared, kind):
    """Twenty of them, threads and coroutines; and nobody computes it after that."""
    name, hosts = f"one {kind}", shared.hosts
    for host in hosts:
        host.send(f"crowd({kind}, name)", name=name)
    for host in hosts:
        host.ask()
    shared.await_guests(20, hosts, kind)
    shared.await_begun(name)
    shared.go(name)
    found = [host("results()") for host in hosts]

    values = [value for mine in found for each in mine for value in (each if isinstance(each, list) else [each])]
    assert (20, 1) == (len(values), len(set(values)))
    assert set(values) == {host(f"{kind}.submit(name).result(5)", name=name) for host in hosts}
    assert 1 == shared.journal(name)


def test_many_calls_at_the_same_instant_are_computed_once_each(shared):
    """Fast ones, so that some begin when others have just ended."""
    names = [f"burst {number}" for number in range(40)]
    for host in shared.hosts:
        host.send("[quick(name) for name in names]", names=names)
    answers = [host.ask() for host in shared.hosts]

    assert 1 == len({tuple(each) for each in answers})
    assert [1] * 40 == [shared.journal(name) for name in names]


def test_a_failure_reaches_all_who_wait_and_nobody_else(shared):
    """With type and traceback; who asks after that tries again (section 3, errors)."""
    hosts = shared.hosts
    for host in hosts:
        host("crowd(broken, 'bad', coroutines=0)")
    shared.await_guests(12, hosts, "broken")
    shared.go("bad")
    told = []
    for host in hosts:
        told += host("[(type(each), each.filename, str(each.__cause__ or '')) for each in results()[:3]]")
    assert [(FileNotFoundError, "bad")] * 12 == [found[:2] for found in told]
    assert 9 == sum("in broken" in trace for *_, trace in told)  # of the three processes that only waited
    assert 1 == shared.journal("bad")
    again = hosts[1]("outcome(lambda: broken('bad'))")

    assert (FileNotFoundError, 2) == (type(again), shared.journal("bad"))


@pytest.mark.parametrize("how", ["unlucky.invalidate('unlucky')", "unlucky.clear()"])
def test_a_failure_is_given_again_in_all_processes_until_it_is_forgotten(shared, how):
    """In the one that does it, and in the others."""
    one, other, third, *_ = shared.hosts
    name = f"unlucky {how}"
    shared.define("""
@ps.memoize(error_ttl="1h", name=name)
def unlucky(of):
    note(name)
    raise ValueError(name)
""".replace("name", repr(name)).replace(f"{name!r}={name!r}", f"name={name!r}"), shared.hosts)  # fmt: skip
    for host in (one, other, one, other):
        assert name == str(host("outcome(lambda: unlucky('unlucky'))"))
    assert 1 == shared.journal(name)
    one(how)
    eventually(lambda: other("not ps._runtime.single_flight._failed[unlucky]"))
    for host in (one, other, third):
        assert name == str(host("outcome(lambda: unlucky('unlucky'))"))
    assert 2 == shared.journal(name)


def test_who_gives_up_ends_nothing_for_others(shared):
    """Neither the process that follows, nor the one that computes."""
    one, other, third, *_ = shared.hosts
    one("run = slow.submit('given up')")
    shared.await_begun("given up")
    for host in (other, third):
        host("(run := slow.submit('given up'), again := slow.submit('given up')) and 0")
    shared.await_guests(5, shared.hosts, "slow")
    other("run.cancel()")
    one("run.cancel()")
    shared.await_guests(3, shared.hosts, "slow")
    shared.go("given up")

    assert 1 == len({other("again.result(5)"), third("run.result(5)"), third("again.result(5)")})
    assert 1 == shared.journal("given up")


def test_what_is_dropped_before_it_begins_is_left_to_others(house):
    """All threads were busy; who waits in another process gets it there."""
    one, other = house.host(max_threads=1), house.host()
    one("(busy := slow.submit('busy')) and 0")
    house.await_begun("busy")
    one("(queued := slow.submit('queued')) and 0")
    eventually(lambda: 2 == len(house.rows("SELECT 1 FROM answers WHERE owner NOT NULL")))
    other("(mine := slow.submit('queued')) and 0")
    house.await_guests(1, [other])
    house.go("queued")
    one("queued.cancel()")

    assert "queued by" in other("mine.result(5)")
    assert ["slow('busy')"] == one("under_way()")


def test_who_gives_up_before_the_store_has_answered_keeps_nothing(shared):
    """On a loop nobody waits for the store; others must not wait for what nobody computes."""
    one, other, *_ = shared.hosts
    one("""
async def hasty(name):
    cache, go = ps._runtime.single_flight.shared.cache, threading.Event()
    claim = type(cache).claim
    cache.claim = lambda *args, **kwargs: (go.wait(10), claim(cache, *args, **kwargs))[1]
    try:
        run = slow.submit(name)
        run.cancel()
    finally:
        go.set()
        while ps._runtime.service.outbox._pending:
            await asyncio.sleep(0.001)
        del cache.claim
    return run.state.value
""")
    assert "cancelled" == one("asyncio.run(hasty('hasty'))")
    shared.go("hasty")
    assert "hasty by" in other("slow.submit('hasty').result(5)")
    assert [] == one("under_way()")


def test_a_newer_value_of_a_task_is_computed_at_once_everywhere(shared):
    """Once for all, though the computation for the older value is still under way; that one does not count."""
    hosts = shared.hosts
    shared.define("""
@ps.schedule(period="1d", first_run="skip")
def source():
    return time.time()

@ps.memoize(after=source)
def made(name):
    note(name, source())
    version = source.entry.version
    await_go(f"{name} {version}")
    return version
""", hosts)  # fmt: skip
    hosts[0]("source.refresh().result(5)")
    eventually(lambda: all(host("source.entry is not None and source.entry.version == 1") for host in hosts))
    for host in hosts:
        host("(first := made.submit('after')) and 0")
    shared.await_guests(4, hosts, "made")
    # By the one that knows for sure that the first run is over: another one might join that.
    hosts[0]("source.refresh().result(5)")
    eventually(lambda: all(host("source.entry.version == 2") for host in hosts))
    for host in hosts:
        host("(newer := made.submit('after')) and 0")
    shared.go("after 2")
    assert [2] * 4 == [host("newer.result(5)") for host in hosts]
    shared.go("after 1")
    assert {1, 2} >= {host("first.result(5)") for host in hosts}
    assert [2] * 4 == [host("made('after')") for host in hosts]
    lines = [line for line in (shared.folder / "journal").read_text().splitlines() if line.startswith("after ")]
    assert 2 == len(lines) == len(set(lines))


# ------------------------------------------------------------ the end of a process


@pytest.mark.alone
@with_a_death
def test_another_process_takes_over_within_two_seconds(house):
    """All who wait get the value, and it was computed twice (invariant 14)."""
    one, *others = [house.host() for _ in range(4)]
    one("crowd(slow, 'a', coroutines=0)")
    house.await_begun("a")
    for host in others:
        host("crowd(slow, 'a')")
    house.await_guests(18, [one, *others])
    start = time.monotonic()
    one.kill()
    house.await_begun("a", 2)
    assert time.monotonic() - start < 2.0 + (house.address.lease or 0.0)
    house.go("a")
    found = {str(value) for host in others for value in host("results()")[:3]}

    assert (1, 2) == (len(found), house.journal("a"))
    assert [(None, 0)] == house.rows("SELECT owner, takeovers FROM answers")


@with_a_death
def test_what_kills_its_process_kills_one_more_and_then_has_crashed(house):
    """For those who wait; the next one to ask tries again, and no other answer suffers (invariant 14)."""
    hosts = [house.host() for _ in range(3)]
    hosts[2]("quick('kept')")
    for host in hosts:
        host("ask(lambda: poison('p'))")
    house.await_guests(3, hosts)
    house.go("p")
    eventually(lambda: 2 == sum(not host.alive for host in hosts))
    (left,) = [host for host in hosts if host.alive]
    (error,) = left("results()")

    assert isinstance(error, RunCrashed)
    assert "poison('p') died, as did the one before" in str(error)
    assert 2 == house.journal("p")
    (house.folder / "harmless p").touch()
    assert "p done" == left("poison('p')")
    assert 1 == left("quick('kept') and 1") == house.journal("kept")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_what_is_computed_to_others(house, how):
    """At once, without waiting for its end to be noticed; no row stays owned, no trace on the terminal (19)."""
    one, other = house.host(grace_period=0.2), house.host()
    one("crowd(slow, 'a')")
    one("(run := looped.submit('b')) and 0")
    house.await_begun("a")
    house.await_begun("b")
    other("crowd(slow, 'a')")
    one.signal(how)
    eventually(lambda: not one.alive, 5)
    house.await_begun("a", 2)
    house.go("a", "b")

    assert 4 == len(other("results()"))
    assert [] == house.rows("SELECT * FROM answers WHERE owner NOT NULL")
    assert "b done" == other("looped.submit('b').result(5)")
    assert "Traceback" not in house.log()


def test_within_the_grace_period_an_answer_is_computed_and_kept(house):
    host = house.host(grace_period=10)
    host("(run := slow.submit('a')) and 0")
    house.await_begun("a")
    host.signal(signal.SIGTERM)
    house.go("a")
    eventually(lambda: not host.alive)

    assert [(None, "slow('a')")] == house.rows("SELECT owner, call FROM answers WHERE updated_at NOT NULL")


# ------------------------------------------------------------ forgetting


@pytest.mark.parametrize("how", ["quick.invalidate({!r})", "quick.clear()"])
def test_what_is_forgotten_in_one_process_is_forgotten_in_all(shared, how):
    """And is computed once more, for all of them."""
    hosts, name = shared.hosts, f"forgotten {how[:8]}{len(how)}"
    first = {host("quick(name)", name=name) for host in hosts}
    assert 1 == len(first)
    hosts[1](how.format(name))
    eventually(lambda: not any(host("name in str(list(quick.lru.answers))", name=name) for host in hosts))
    again = {host("quick(name)", name=name) for host in hosts}

    assert (1, 2) == (len(again), shared.journal(name))


def test_what_is_computed_when_it_is_forgotten_is_not_kept(shared):
    """Who waited for it gets it, who asks from then on gets a newer one, in whichever process."""
    one, other, third, *_ = shared.hosts
    shared.define("""
@ps.memoize
def stamped(name):
    mark = (folder / f"stamp {name}").read_text()
    note(name)
    await_go(f"{name} {mark}")
    return mark
""", shared.hosts)  # fmt: skip
    (shared.folder / "stamp s").write_text("old")
    one("(run := stamped.submit('s')) and 0")
    shared.await_begun("s")
    (shared.folder / "stamp s").write_text("new")
    other("stamped.invalidate('s')")
    eventually(lambda: one("not any(each[0] is stamped for each in list(ps._runtime.single_flight._under_way))"))
    for host in (one, other, third):
        host("(again := stamped.submit('s')) and 0")
    shared.go("s new")
    assert ["new"] * 3 == [host("again.result(5)") for host in (one, other, third)]
    shared.go("s old")

    assert "old" == one("run.result(5)")
    assert ["new"] * 4 == [host("stamped('s')") for host in shared.hosts]
    assert 2 == shared.journal("s")


def test_nobody_joins_a_computation_of_before_though_a_newer_one_has_begun(shared):
    """A process that hears late finds the row claimed again: that says as well that its own does not count."""
    one, other, *_ = shared.hosts
    shared.define("""
@ps.memoize
def late(name):
    mark = (folder / f"stamp {name}").read_text()
    note(name)
    await_go(f"{name} {mark}")
    return mark
""", shared.hosts)  # fmt: skip
    (shared.folder / "stamp l").write_text("old")
    one("(run := late.submit('l')) and 0")
    shared.await_begun("l")
    with stopped(one):
        (shared.folder / "stamp l").write_text("new")
        other("late.invalidate('l')")
        other("(again := late.submit('l')) and 0")
        shared.await_begun("l", 2)
    try:
        # A change that it does hear of, after the one in question.
        other("quick('l is heard')")
        eventually(lambda: one("(records := ps._runtime.service.store.records)._seen[1] * (not records._untold)") >=
            shared.rows("SELECT max(change) FROM answers WHERE function = 'late'")[0][0])  # fmt: skip
        one("(again := late.submit('l')) and 0")
        shared.go("l new")
        assert "new" == other("again.result(5)")
        shared.go("l old")
        assert "new" == one("again.result(5)")
    finally:
        shared.go("l new", "l old")


def test_an_answer_that_was_forgotten_is_not_served_though_a_newer_one_fails(shared):
    """Nor while that is under way: what it was made of has changed."""
    one, other, *_ = shared.hosts
    shared.define("""
@ps.memoize
def doubtful(name):
    note(name)
    if (folder / "doubt").exists():
        await_go("doubtful")
        raise ValueError("no luck")
    return "old"
""", shared.hosts)  # fmt: skip
    assert ["old", "old"] == [host("doubtful('d')") for host in (one, other)]
    (shared.folder / "doubt").touch()
    with stopped(one):
        other("doubtful.invalidate('d')")
        other("(run := doubtful.submit('d')) and 0")
        shared.await_begun("d", 2)
    eventually(lambda: one("'d' not in str(list(doubtful.lru.answers))"))
    shared.go("doubtful")

    assert "no luck" == str(one("outcome(lambda: doubtful('d'))"))


def test_it_is_forgotten_in_a_process_that_alone_still_had_it(house):
    """Others needed its room in the store; it is not served by anybody, though."""
    one, other = house.host(), house.host()
    source = """
@ps.memoize(max_entries=2)
def roomy(name):
    note(name)
    return os.getpid()
"""
    house.define(source, [one, other])
    for how in ("roomy.invalidate('a')", "roomy.clear()"):
        one("roomy('a')")
        other("[roomy(name) for name in 'bcde']")
        assert [] == house.rows("SELECT 1 FROM answers WHERE call = ?", "roomy('a')")
        other(how)
        eventually(lambda: 0 == one("len(roomy.lru.answers)"))
        before = house.journal("a")
        one("roomy('a')")
        assert before + 1 == house.journal("a")


def test_on_a_loop_nobody_gets_what_was_forgotten_a_moment_ago(shared):
    """Though nobody there waits for the store to hear of it."""
    one, *_ = shared.hosts
    shared.define("""
@ps.memoize
async def counted(name):
    note(name)
    return (folder / "journal").read_text().splitlines().count(name)

async def forgets(name):
    found = []
    for _ in range(30):
        counted.invalidate(name)
        found.append(await counted(name))
    return found
""", shared.hosts)  # fmt: skip
    assert list(range(1, 31)) == one("asyncio.run(forgets('fickle'))")


# ------------------------------------------------------------ stale


STALE = """
@ps.memoize(ttl="0.4s", max_stale="1h")
def stale(name):
    note(name)
    if (folder / f"gate {name}").exists():
        await_go(name)
    return (folder / "journal").read_text().splitlines().count(name)
"""


def test_a_stale_answer_is_served_everywhere_while_one_process_renews_it(shared):
    """At once, and then all have the new one."""
    hosts = shared.hosts
    shared.define(STALE, hosts)
    assert [1] * 4 == [host("stale('st')") for host in hosts]
    (shared.folder / "gate st").touch()
    eventually(lambda: all(host("not stale.lru.answers or all(each.fresh_until < time.monotonic() "
                                "for each in stale.lru.answers.values())") for host in hosts))  # fmt: skip
    for _ in range(3):
        for host in hosts:
            host.send("[stale('st') for _ in range(20)]")
        assert [[1] * 20] * 4 == [host.ask() for host in hosts]
    shared.await_begun("st", 2)
    (shared.folder / "gate st").unlink()
    shared.go("st")
    eventually(lambda: all(2 <= host("stale('st')") for host in hosts))
    assert 0 == sum(host("guests('stale')") for host in hosts)


def test_what_is_not_kept_is_for_those_who_wait_in_all_processes(shared):
    """Who asks after that, in whichever process, gets another one; and nothing older."""
    hosts, (one, other, third, *_) = shared.hosts, shared.hosts
    shared.define("""
@ps.memoize(keep=lambda answer: answer != "none", ttl=lambda answer: "1h")
def choosy(name):
    note(name)
    await_go(f"{name} {(folder / name).read_text()}")
    return (folder / name).read_text()
""", hosts)  # fmt: skip
    (shared.folder / "choosy").write_text("some")
    shared.go("choosy some")
    assert ["some"] * 4 == [host("choosy('choosy')") for host in hosts]
    (shared.folder / "choosy").write_text("none")
    one("(run := choosy.refresh('choosy')) and 0")
    shared.await_begun("choosy", 2)
    for host in (other, third):
        host("(run := choosy.refresh('choosy')) and 0")
    shared.await_guests(3, hosts, "choosy")
    shared.go("choosy none")
    assert ["none"] * 3 == [host("run.result(5)") for host in (one, other, third)]
    assert 2 == shared.journal("choosy")
    assert [None] * 4 == [host("choosy.entry('choosy')") for host in hosts]
    (shared.folder / "choosy").write_text("other")
    shared.go("choosy other")
    eventually(lambda: not any(host("len(choosy.lru.answers)") for host in hosts))
    assert ["other"] * 4 == [host("choosy('choosy')") for host in reversed(hosts)]
    assert 3 == shared.journal("choosy")


def test_how_long_an_answer_lasts_is_known_to_a_process_that_only_reads_it(shared):
    one, other, *_ = shared.hosts
    shared.define("""
@ps.memoize(ttl=lambda answer: {"for ever": None, "an hour": "1h"}[answer])
def lasting(name):
    note(name)
    return name
""", shared.hosts)  # fmt: skip
    for name in ("for ever", "an hour"):
        assert [name] * 2 == [host("lasting(name)", name=name) for host in (one, other)]
        assert 1 == shared.journal(name)
    left = other("[answer.fresh_until - time.monotonic() for answer in lasting.lru.answers.values()]")
    assert left[0] > 1e9
    assert 3500 < left[1] < 3600


def test_a_process_that_has_not_heard_of_the_new_answer_takes_it(shared):
    """Where it finds its own stale it does not compute what another process has just computed."""
    one, other, *_ = shared.hosts
    source = STALE.replace("stale(", "deaf(").replace('"0.4s"', '"3s"')
    shared.define(source, shared.hosts)
    assert [1, 1] == [host("deaf('deaf')") for host in (one, other)]
    other("heard = ps._runtime.service.store.records._subscribers['answer'][:]")
    other("ps._runtime.service.store.records._subscribers['answer'].clear()")
    try:
        for host in (one, other):
            host("[setattr(each, 'fresh_until', 0.0) for each in deaf.lru.answers.values()]")
        assert 2 == one("deaf.refresh('deaf').result(5)")
        assert 1 == other("deaf('deaf')")
        eventually(lambda: 2 == other("deaf('deaf')"))
        assert 2 == shared.journal("deaf")
    finally:
        other("ps._runtime.service.store.records._subscribers['answer'].extend(heard)")


def test_an_answer_that_comes_after_its_lifetime_keeps_no_news_back(house):
    """A process that was stopped for a while hears of it when it is of no use any more."""
    one, other = house.host(), house.host()
    house.define("""
@ps.memoize(ttl="0.2s", stale_if_error=False)
def brief(name):
    note(name)
    await_go(name)
    return name
""", [one, other])  # fmt: skip
    one("(a := brief.submit('a'), b := brief.submit('b')) and 0")
    house.await_begun("a")
    house.await_begun("b")
    other("(a := brief.submit('a'), b := brief.submit('b')) and 0")
    house.await_guests(2, [other])
    with stopped(other):
        house.go("a", "b")
        one("(a.result(5), b.result(5))")
        ended = time.monotonic()
        eventually(lambda: time.monotonic() > ended + 0.3)

    assert ("a", "b") == other("(a.result(5), b.result(5))")
    assert "bug" not in house.log()


def test_who_waits_for_a_process_that_stops_takes_over(house):
    """To be stopped is no failure of the function: nobody hears of it as one."""
    one, other = house.host(), house.host()
    one("(run := looped.submit('a')) and 0")
    house.await_begun("a")
    other("(run := looped.submit('a')) and 0")
    house.await_guests(1, [other])
    one.stop()
    house.await_begun("a", 2)
    house.go("a")

    assert "a done" == other("run.result(5)")


# ------------------------------------------------------------ room


def test_what_was_used_longest_ago_in_all_processes_goes_first(house):
    """Also of what a process has read once that did not compute it: it came from the store, not from its own memory."""
    one, other = house.host(), house.host()
    house.define("""
@ps.memoize(max_entries=3)
def few(name):
    note(name)
    return name
""", [one, other])  # fmt: skip
    one("[few(name) for name in 'abc']")
    used = "SELECT used_at FROM answers WHERE call = ?"
    before = house.rows(used, "few('a')")
    other("few('a')")
    eventually(lambda: house.rows(used, "few('a')") > before, 5)
    one("few('d')")

    assert {"few('a')", "few('c')", "few('d')"} == {call for (call,) in house.rows("SELECT call FROM answers")}


def test_what_others_push_out_before_a_process_has_read_it_is_computed_again(house):
    """It was told too late: nobody is stuck."""
    one, other = house.host(), house.host()
    house.define("""
@ps.memoize(max_entries=1)
def single(name):
    note(name)
    await_go(name)
    return name
""", [one, other])  # fmt: skip
    one("(run := single.submit('a')) and 0")
    house.await_begun("a")
    other("(run := single.submit('a')) and 0")
    house.await_guests(1, [other])
    with stopped(other):
        house.go("a", "b")
        one("(run.result(5), single('b'))")

    assert "a" == other("run.result(5)")


# ------------------------------------------------------------ views


def test_a_view_shows_the_partial_answers_of_another_process(shared):
    one, other, *_ = shared.hosts
    shared.define("""
@ps.memoize
def growing(name):
    note(name)
    for number in range(3):
        yield number
        await_go(f"{name} {number}")
    yield "all"
""", shared.hosts)  # fmt: skip
    one("(run := growing.submit('g')) and 0")
    shared.await_begun("g")
    other("view = growing.view('g')")
    for number in range(3):
        eventually(lambda number=number: (number, True) == other("(view.value, view.running)"))
        shared.go(f"g {number}")
    eventually(lambda: ("all", False) == other("(view.value, view.running)"))
    assert ("all", 1) == (one("run.result(5)"), shared.journal("g"))


@with_a_death
def test_a_view_shows_the_partial_answers_of_the_process_that_took_over(house):
    """From the first one on, though the dead one had come further."""
    hosts = [house.host() for _ in range(3)]
    house.define("""
@ps.memoize
def growing(name):
    note(name)
    for number in range(4):
        yield os.getpid(), number
        await_go(f"{os.getpid()} {number}")
    yield "all"
""", hosts)  # fmt: skip
    first, other, viewer = hosts
    dead, heir = first("os.getpid()"), other("os.getpid()")
    first("(run := growing.submit('g')) and 0")
    house.await_begun("g")
    viewer("view = growing.view('g')")
    for number in range(3):
        eventually(lambda number=number: (dead, number) == viewer("view.value"))
        house.go(f"{dead} {number}")
    viewer("follow = ps._runtime.single_flight.follower.look_up")  # it is the other one that takes over
    viewer("ps._runtime.single_flight.follower.look_up = lambda *args: (await_go('viewer'), follow(*args))")
    other("(run := growing.submit('g')) and 0")
    first.kill()
    house.await_begun("g", 2)
    house.go("viewer")
    for number in range(4):
        eventually(lambda number=number: (heir, number) == viewer("view.value"))
        house.go(f"{heir} {number}")
    eventually(lambda: ("all", False) == viewer("(view.value, view.running)"))


def test_views_of_all_processes_follow_what_is_forgotten_and_renewed(shared):
    """One computation each time."""
    hosts = shared.hosts
    shared.define("""
@ps.memoize
def shown(name):
    note(name)
    return (folder / "journal").read_text().splitlines().count(name)
""", hosts)  # fmt: skip
    for host in hosts:
        host("(shows := shown.view('v')) and 0")
    for number, change in enumerate(["0", "shown.refresh('v').result(5)", "shown.invalidate('v')", "shown.clear()"], 1):
        hosts[number % 4](change)
        eventually(lambda number=number: [(number, False, False)] * 4 == [
            host("(shows.value, shows.running, shows.stale)") for host in hosts
        ])  # fmt: skip
        assert number == shared.journal("v")


def test_views_of_more_answers_than_there_is_room_for_come_to_rest(house):
    """Each process pushes out what the other shows, and nobody computes it again for that."""
    one, other = house.host(), house.host()
    house.define("""
@ps.memoize(max_entries=1)
def cramped(name):
    note(name)
    return name
""", [one, other])  # fmt: skip
    one("views = [cramped.view(name) for name in 'ab']")
    other("views = [cramped.view(name) for name in 'cd']")
    for host, names in ((one, ["a", "b"]), (other, ["c", "d"])):
        eventually(lambda host=host, names=names: names == host("[view.value for view in views]"))
    one("cramped.clear()")
    eventually(lambda: all(house.journal(name) >= 2 for name in "abcd"))
    one("cramped('e')")
    other("cramped('f')")
    one("quick('settled')")
    other("quick('settled')")

    assert all(house.journal(name) <= 3 for name in "abcd")


def test_a_view_says_that_another_process_has_failed(shared):
    """With the error, until one succeeds."""
    one, other, *_ = shared.hosts
    shared.define("""
@ps.memoize
def moody(name):
    note(name)
    if (folder / "mood").exists():
        raise ValueError("bad mood")
    return "good"
""", shared.hosts)  # fmt: skip
    other("view = moody.view('m')")
    eventually(lambda: "good" == other("view.value"))
    (shared.folder / "mood").touch()
    one("outcome(moody.refresh('m').result)")
    eventually(lambda: ("good", "ValueError: bad mood", True) == other("(view.value, view.error, view.stale)"))
    (shared.folder / "mood").unlink()
    one("moody.refresh('m').result(5)")
    eventually(lambda: ("good", "", False) == other("(view.value, view.error, view.stale)"))


# ------------------------------------------------------------ inside of one another


def test_functions_that_ask_for_one_another_do_not_wait_for_ever(house):
    """Whichever process computes which, with one thread each."""
    source = """
@ps.memoize
def tree(number):
    note(f"tree {number}")
    return 1 if number < 2 else tree(number - 1) + tree(number - 2)
"""
    hosts = [house.host(source, max_threads=1) for _ in range(3)]
    for host in hosts:
        host.send("[tree.submit(number) for number in (12, 11, 13)] and [tree(13), tree(12), tree(14)]")
    assert [[377, 233, 610]] * 3 == [host.ask() for host in hosts]
    assert [1] * 15 == [house.journal(f"tree {number}") for number in range(15)]


def test_functions_in_worker_processes_ask_for_one_another(house):
    """With one worker in each server."""
    source = """
@ps.memoize(executor="process")
def heap(number):
    note(f"heap {number}")
    return 1 if number < 2 else heap(number - 1) + heap(number - 2)
"""
    hosts = [house.host(source, max_processes=1) for _ in range(2)]
    for host in hosts:
        host.send("heap(3)")
    assert [3, 3] == [host.ask() for host in hosts]
    assert [1] * 4 == [house.journal(f"heap {number}") for number in range(4)]


def test_jobs_and_tasks_in_worker_processes_share_the_answers(shared):
    """Of the server, and with it of all processes."""
    source = """
@ps.background(executor="process")
def job(name):
    return quick(name), quick(name)

@ps.schedule(period="1d", first_run="skip", executor="process")
def task():
    return quick("worker")
"""
    one, other, *_ = shared.hosts
    shared.define(source, [one, other])
    found = {*one("job.submit('worker').result(10)"), *other("job.submit('worker').result(10)"),
             one("task.refresh().result(10)"), other("quick('worker')")}  # fmt: skip

    assert (1, 1) == (len(found), shared.journal("worker"))


# ------------------------------------------------------------ what lasts


def test_a_restart_finds_the_answers(house):
    """And computes none of them again; of other code they are no answers."""
    source = """
@ps.memoize
def model(name):
    note(name)
    return (1, name)
"""
    house.host(source)("model('m')")
    house.hosts.pop().stop()
    again = house.host(source)
    assert (1, "m") == again("model('m')")
    assert 1 == house.journal("m")
    changed = house.host(source.replace("(1, name)", "(2, name)"))
    assert (2, "m") == changed("model('m')")

    assert ((1, "m"), 2) == (again("model('m')"), house.journal("m"))


def test_the_answers_outlive_the_seed_of_hashes(tmp_path, address):
    """Sets in the code and in arguments stand in another order in each process."""
    script = """
        import os, sys
        import panel_schedule as ps

        ps.config.store, ps.config.namespace = sys.argv[1:]
        rates = {"north", "south", "east", "west", None}

        @ps.memoize
        def model(names, *, how=frozenset(("x", "y", "z"))):
            if "north" in {"north", "south", "east", "west", "centre"}:
                print("computes")
            return [each for each in sorted(names) if rates]

        print(model({"north", "south", "east", "west"}))
    """
    path = tmp_path / "script.py"
    path.write_text(dedent(script))
    out = ""
    for seed in ("1", "2"):
        command = [sys.executable, str(path), address.url, address.namespace]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        out += subprocess.run(command, env=env, capture_output=True, text=True, timeout=40, check=True).stdout

    assert 1 == out.count("computes")
    assert 2 == out.count("['east', 'north', 'south', 'west']")


# ------------------------------------------------------------ trouble with the store


BREAK = """
from panel_schedule.errors import StoreError
from panel_schedule.stores.file.database import Database
from panel_schedule.stores.server_records import ServerRecords
writes = {each: each.write for each in (Database, ServerRecords)}
def fails(*args, **options):
    raise StoreError("the disk is on fire")
for each in writes:
    each.write = fails
"""


def test_a_store_that_fails_costs_no_answer(house):
    """Each process computes for itself then, and the log says so."""
    one, other = house.host(), house.host()
    one("quick('kept')")
    house.define(BREAK, [one, other])

    assert one("quick('a')") == one("quick('a')") != other("quick('a')")
    assert one("quick('kept')") == other("quick('kept')") == one("os.getpid()")
    assert 2 == house.journal("a")
    assert "the disk is on fire" in house.log()


def test_an_answer_of_a_time_of_trouble_is_forgotten_with_the_others(house):
    """It was not stored, and yet another process can say that it is not valid any more."""
    one, other = house.host(), house.host()
    one(BREAK)
    one("quick('a')")
    one("[setattr(each, 'write', write) for each, write in writes.items()]")
    other("quick.invalidate('a')")

    eventually(lambda: one("quick('a')") and 2 == house.journal("a"))


@in_a_directory
def test_a_full_disk_keeps_nobody_waiting(tiny, tmp_path):
    """Neither those who compute, nor those who wait for them in another process."""
    house = Neighbourhood(tmp_path, StoreAddress(f"file://{tiny / 'store'}"))
    try:
        one, other = house.host(), house.host()
        house.define("""
@ps.memoize
def large(name):
    note(name)
    await_go(name)
    return bytes(300_000)
""", [one, other])  # fmt: skip
        house.go("b")
        one("(run := large.submit('a')) and 0")
        house.await_begun("a")
        other("(run := large.submit('a')) and 0")
        house.await_guests(1, [other])
        house.go("a")
        fill(tiny)
        assert [300_000] * 2 == [host("len(run.result(10))") for host in (one, other)]
        assert 300_000 == one("len(large('b'))")
    finally:
        house.end()
        print(house.log())


@pytest.mark.parametrize("loss", ["the database", "the directory"])
@in_a_directory
def test_what_is_deleted_in_use_keeps_nobody_waiting(house, loss):
    """Those who wait for another process hear nothing of it any more; all have right answers."""
    one, other = house.host(), house.host()
    one("(quick('a'), run := slow.submit('x')) and 0")
    house.await_begun("x")
    other("(quick('a'), run := slow.submit('x')) and 0")
    house.await_guests(1, [other])
    if loss == "the directory":
        shutil.rmtree(house.address.path)
    else:
        for path in house.address.path.glob("store.db*"):
            path.unlink()
    house.go("x")

    assert "x by" in one("run.result(5)")
    assert "x by" in other("run.result(5)")
    other("quick.invalidate('a')")
    eventually(lambda: one("quick('a')") and 2 <= house.journal("a"))
    assert one("quick('b')") == other("quick('b')")


# ------------------------------------------------------------ whatever comes together


STORM = """
import random

@ps.memoize(ttl="30ms", max_stale="20ms", max_entries=3)
def stormy(number):
    token = os.open(folder / f"token {number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(token, b"x")
    os.close(token)
    yield number
    time.sleep(0.003)
    return number, os.path.getsize(folder / f"token {number}")

def storm(seed):
    chance, runs, wrong, newest = random.Random(seed), [], [], {}
    for _ in range(80):
        number = chance.randrange(5)
        match chance.randrange(10):
            case 0:
                stormy.invalidate(number)
                before = os.path.getsize(folder / f"token {number}") if (folder / f"token {number}").exists() else 0
                runs.append((stormy.submit(number), number, False, 0))
            case 1 if seed == 1:
                stormy.clear()
            case 2:
                runs.append((stormy.refresh(number), number, False, 0))
            case 3 | 4:
                run = stormy.submit(number)
                time.sleep(chance.random() * 0.004)
                run.cancel()
                runs.append((run, number, True, 0))
            case _:
                if stormy(number)[0] != number:
                    wrong.append(number)
    for run, number, cancelled, _ in runs:
        try:
            if run.result(10)[0] != number:
                wrong.append((number, run.result()))
        except Exception as error:
            if not (cancelled and isinstance(error, ps.errors.RunCancelled)):
                wrong.append(repr(error))
    return wrong
"""


def test_whatever_callers_do_in_whichever_process_all_get_their_answers(house):
    """Nobody waits for ever, nothing is left under way, and no file without a row."""
    hosts = [house.host(STORM) for _ in range(3)]
    for number, host in enumerate(hosts):
        host.send("storm(seed)", seed=number)
    assert [[], [], []] == [host.ask() for host in hosts]
    eventually(lambda: [[]] * 3 == [host("under_way()") for host in hosts])
    eventually(lambda: [] == house.rows("SELECT call FROM answers WHERE owner NOT NULL"))
    assert 3 >= len(house.rows("SELECT 1 FROM answers WHERE updated_at NOT NULL"))
    assert "bug" not in house.log()


# ------------------------------------------------------------ panel serve

FILES = {
    "app.py": """
        import panel as pn
        from tasks import heavy

        data = heavy.view("north")
        pn.Column(pn.pane.Str(data), pn.pane.Str(data.pipe(lambda text: f"piped {text}"))).servable()
    """,
    "tasks.py": """
        import pathlib, time
        import panel_schedule as ps

        @ps.schedule(period="1d")
        def source():
            print("publishes", flush=True)
            return time.time()

        @ps.schedule(period="100ms")
        def poke():
            if pathlib.Path("publish").exists():
                pathlib.Path("publish").unlink()
                source.refresh()

        @ps.memoize(ttl="1h", after=source)
        def heavy(region):
            version = source.entry.version
            print("computes for", version, flush=True)
            while not pathlib.Path(f"go {version}").exists():
                time.sleep(0.005)
            return f"{region} {version}"
    """,
}


async def test_twenty_sessions_of_four_server_processes_share_one_computation(serve: Serve, tmp_path, address):
    """On a cold cache, all at once; and one more when the task publishes, pushed to each of them."""
    server = serve("app.py --setup tasks.py --num-procs 4", FILES, env={} if address.is_directory else address.env())
    async with visitors(f"{server.url}/app", 20, at_once=20) as pages:
        await asyncio.to_thread(eventually, lambda: "computes for 1" in server.output())
        (tmp_path / "go 1").touch()
        await asyncio.gather(*(shows(page, "north 1", "piped north 1") for page in pages))
        assert 1 == server.output().count("computes")

        (tmp_path / "go 2").touch()
        (tmp_path / "publish").touch()
        await asyncio.gather(*(shows(page, "north 2", "piped north 2") for page in pages))
        assert (2, 2) == (server.output().count("computes"), server.output().count("publishes"))
    assert "Traceback" not in server.output()


async def shows(page: Visitor, *texts: str) -> None:
    """Until a page shows all of this."""
    async with asyncio.timeout(20):
        shown = ""
        while not all(f'"{text}"' in shown or f"{text}&lt;" in shown for text in texts):
            await page.send("PULL-DOC-REQ", {})
            shown = await page.read_until("PULL-DOC-REPLY")
            await asyncio.sleep(0.05)


# ------------------------------------------------------------ timeout, retry and progress

ATTEMPTS = """
from panel_schedule.errors import RunTimedOut

@ps.memoize(timeout="1s", OPTIONS)
def tardy(name):
    note(name)
    if not (folder / f"quick {name}").exists():
        await_go(name)
    return f"{name} by {os.getpid()}"

@ps.memoize(retry=ps.Retry(3, backoff="DELAY"))
def clumsy(name):
    note(name)
    ps.progress(40, message=f"attempt {ps.current_run().attempt}")
    await_go(f"{name} {ps.current_run().attempt}")
    if not (folder / f"able {name}").exists():
        raise OSError(name)
    return f"{name} by {os.getpid()}"
"""


def attempts(house, hosts, options="", delay="10ms"):
    house.define(ATTEMPTS.replace("OPTIONS", options).replace("DELAY", delay), hosts)


def test_who_waits_in_another_process_hears_of_a_timeout(house):
    """At once; who asks after that has it computed anew, where he is. The late value is nobody's."""
    one, other = house.host(), house.host()
    attempts(house, [one, other])
    one("(run := tardy.submit('t')) and 0")
    house.await_begun("t")
    other("(runs := [tardy.submit('t') for _ in range(2)]) and 0")
    for host, run in ((one, "run"), (other, "runs[0]"), (other, "runs[1]")):
        eventually(lambda host=host, run=run: "timed_out" == host(f"{run}.state.value"))
        assert host(f"type({run}.error) is RunTimedOut and \"'tardy'\" in str({run}.error)")
    assert 1 == house.journal("t")
    (house.folder / "quick t").touch()
    assert f"t by {other.process.pid}" == other("tardy('t')")
    house.go("t")
    eventually(lambda: not one("ps._runtime.service.executors['memo-thread'].busy"))
    assert f"t by {other.process.pid}" == one("tardy('t')") == other("tardy('t')")
    assert 2 == house.journal("t")


def test_at_a_timeout_all_processes_serve_the_last_good_answer(house):
    one, other = house.host(), house.host()
    attempts(house, [one, other], "ttl='500ms'")
    (house.folder / "quick t").touch()
    first = one("tardy('t')")
    (house.folder / "quick t").unlink()
    eventually(lambda: 0.8 < one("time.time() - tardy.entry('t').updated_at.timestamp()"))
    one("(run := tardy.submit('t')) and 0")
    house.await_begun("t", 2)
    assert first == other("tardy('t')") == one("run.result(5)")
    assert 2 == house.journal("t")


def test_a_timeout_is_given_again_in_all_processes(house):
    one, other = house.host(), house.host()
    attempts(house, [one, other], "error_ttl='1h'")
    for host in (one, other, one):
        assert "'tardy'" in host("str(outcome(lambda: tardy('t')))")
    assert 1 == house.journal("t")


def test_between_two_attempts_the_lease_stays_where_it_is(house):
    """Others wait through them, and compute nothing."""
    one, other = house.host(), house.host()
    attempts(house, [one, other], delay="300ms")
    one("(run := clumsy.submit('c')) and 0")
    house.await_begun("c")
    other("(run := clumsy.submit('c')) and 0")
    house.go("c 1")
    eventually(lambda: 2 == one("run.attempt"))
    assert [(1,)] == house.rows("SELECT count(*) FROM answers WHERE owner NOT NULL")
    other("(again := clumsy.submit('c')) and 0")
    (house.folder / "able c").touch()
    house.go("c 2")
    found = {host(f"{run}.result(5)") for host, run in ((one, "run"), (other, "run"), (other, "again"))}
    assert ({f"c by {one.process.pid}"}, 2) == (found, house.journal("c"))


def test_after_the_last_attempt_others_hear_of_it(house):
    one, other = house.host(), house.host()
    attempts(house, [one, other])
    house.go(*(f"c {attempt}" for attempt in (2, 3)))
    one("(run := clumsy.submit('c')) and 0")
    house.await_begun("c")
    other("(run := clumsy.submit('c')) and 0")
    house.await_guests(1, [other])
    house.go("c 1")
    for host in (one, other):
        assert "OSError('c')" == host("repr(outcome(lambda: run.result(5)))")
    assert 3 == house.journal("c")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@with_a_death
def test_another_process_takes_over_between_two_attempts(house, how):
    """It begins with the first one; a server that stops does not wait for the next."""
    one, other = house.host(), house.host()
    attempts(house, [one, other], delay="1h")
    house.go("c 1")
    one("(run := clumsy.submit('c')) and 0")
    eventually(lambda: 2 == one("run.attempt"))
    other("(run := clumsy.submit('c')) and 0")
    house.await_guests(1, [other])
    (house.folder / "able c").touch()
    one.signal(how)
    assert (f"c by {other.process.pid}", 1) == other("(run.result(5), run.attempt)")
    eventually(lambda: not one.alive)


def test_what_another_process_invalidates_between_two_attempts_is_not_kept(house):
    one, other = house.host(), house.host()
    attempts(house, [one, other], delay="500ms")
    one("(run := clumsy.submit('c')) and 0")
    house.await_begun("c")
    house.go("c 1")
    eventually(lambda: 2 == one("run.attempt"))
    other("clumsy.invalidate('c')")
    (house.folder / "able c").touch()
    house.go("c 2")
    assert f"c by {one.process.pid}" == one("run.result(5)")
    assert [None, None] == [host("clumsy.entry('c')") for host in (one, other)]


FAR = "(view.percent, view.message)"


def test_who_waits_in_another_process_sees_how_far_it_is(house):
    """Runs and views; and each attempt begins anew."""
    one, other = house.host(), house.host()
    attempts(house, [one, other])
    one("(run := clumsy.submit('c')) and 0")
    house.await_begun("c")
    other("(view := clumsy.view('c'), run := clumsy.submit('c')) and 0")
    for attempt in (1, 2, 3):
        for host, far in ((one, "(run.percent, run.message)"), (other, "(run.percent, run.message)"), (other, FAR)):
            eventually(lambda host=host, far=far, attempt=attempt: (40, f"attempt {attempt}") == host(far))
        if attempt == 3:
            (house.folder / "able c").touch()
        house.go(f"c {attempt}")
    assert f"c by {one.process.pid}" == other("run.result(5)")
    eventually(lambda: (-1, "", False) == other(f"(*{FAR}, view.running)"))
    assert 100 == other("run.percent")


@pytest.mark.parametrize("end", ["succeeds", "fails", "dies", "is forgotten"])
@with_a_death
def test_a_view_that_only_watches_sees_how_far_another_process_is(house, end):
    """Which makes a new answer, while that of before is fresh here; however it ends, nothing is left of it."""
    one, other = house.host(), house.host()
    house.define("""
@ps.memoize
def renewed(name):
    note(name)
    if (folder / "first").exists():
        return "old"
    ps.progress(1, 4, "begins")
    await_go("on")
    ps.progress(3, 4, "goes on")
    await_go("end")
    if (folder / "fails").exists():
        raise OSError
    return "new"
""", [one, other])  # fmt: skip
    (house.folder / "first").touch()
    other("(view := renewed.view('r')) and 0")
    eventually(lambda: "old" == other("view.value"))
    (house.folder / "first").unlink()
    one("(run := renewed.refresh('r')) and 0")
    eventually(lambda: (25, "begins") == other(FAR))
    house.go("on")
    eventually(lambda: (75, "goes on") == other(FAR))
    assert ("old", False) == other("(view.value, view.running)")
    if end == "dies":
        one.kill()
    elif end == "is forgotten":
        house.go("end")
        one("renewed.invalidate('r')")
    else:
        (house.folder / "fails").touch() if end == "fails" else None
        house.go("end")
    eventually(lambda: (-1, "") == other(FAR))
    eventually(lambda: ("old" if end in ("fails", "dies") else "new", False) == other("(view.value, view.running)"))
    assert (end == "fails") == other("view.error != ''")


def test_a_store_that_is_busy_holds_up_no_function_that_makes_progress(house):
    """It is told how far that is when it comes to it, and not each step."""
    one = house.host()
    one("""
@ps.memoize
def busy(name):
    cache = ps._runtime.single_flight.shared.cache
    progress, told, go = cache.progress, [], threading.Event()
    cache.progress = lambda *how: (told.append(how[-2]), go.wait(10), progress(*how))
    try:
        for number in range(100):
            ps.progress(number)
            time.sleep(0.01)
        time.sleep(0.3)  # and no more is said
        meanwhile = list(told), sum(map(len, ps._runtime.service.outbox._asked.values()))
        go.set()
        until = time.monotonic() + 5
        while told[-1] != 99 and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        del cache.progress
    return meanwhile, told
""")
    meanwhile, told = one("busy('b')")
    assert ([0], 1) == meanwhile
    # What it had come to, and, where that was known by then, the end.
    assert (0, 99) == (told[0], told[-1])
    assert len(told) <= 3


@with_a_death
def test_what_is_taken_over_is_at_its_beginning(house):
    one, other = house.host(), house.host()
    house.define("""
@ps.memoize
def mute(name):
    note(name)
    if not (folder / "mute").exists():
        ps.progress(40, message="so far")
    await_go(name)
""", [one, other])  # fmt: skip
    one("(run := mute.submit('m')) and 0")
    house.await_begun("m")
    other("(view := mute.view('m')) and 0")
    eventually(lambda: (40, "so far") == other(FAR))
    (house.folder / "mute").touch()
    one.kill()
    house.await_begun("m", 2)
    eventually(lambda: (-1, "", True) == other(f"(*{FAR}, view.running)"))
    house.go("m")


def test_a_view_that_only_watches_shows_partial_answers_after_a_failure(house):
    """That it has failed before is known; what comes now is news."""
    one, other = house.host(), house.host()
    house.define("""
@ps.memoize
def stumbles(name):
    note(name)
    if (folder / "stumble").exists():
        raise OSError
    if (folder / "grow").exists():
        yield "half"
        await_go("end")
    return "all"
""", [one, other])  # fmt: skip
    (house.folder / "stumble").touch()
    other("(view := stumbles.view('s')) and 0")
    eventually(lambda: other("view.error != ''"))
    (house.folder / "stumble").unlink()
    (house.folder / "grow").touch()
    one("(run := stumbles.submit('s')) and 0")
    eventually(lambda: "half" == other("view.value"))
    house.go("end")
    eventually(lambda: ("all", "", False) == other("(view.value, view.error, view.stale)"))
