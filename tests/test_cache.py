"""What a store of files promises about the answers of memoized functions: one process computes each, all have it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import sys
from contextlib import closing, nullcontext, suppress
from datetime import timedelta
from types import ModuleType

import numpy as np
import pytest

from core import messages
from old_schema import as_of_schema
from panel_schedule.coordination.answers import UNLIMITED, Limits
from panel_schedule.errors import RunCrashed, RunFailed, RunFenced, StoreError, ValueRefused, ValueUnreadable
from panel_schedule.serialize.errors import RemoteTraceback, traceback_text
from panel_schedule.stores.file import database
from panel_schedule.stores.memory import MemoryStore
from panel_schedule.testing import VirtualClock
from panel_schedule.testing.contracts.tools import hammer
from servers import eventually
from store_peer import second

# Where a process dies that is noticed by its lock in a directory, and by its lease over a server.
pytestmark = pytest.mark.stores("asked")
anywhere, in_a_directory = pytest.mark.stores("all"), pytest.mark.stores("none")
with_a_death = pytest.mark.stores("asked", lease=1.0)

LARGE = 20_000  # numbers of 8 bytes: more than stands in the database
EARLY, LATE = second(0), second(1)

# Of another process: what it hears of answers is in `answers`.
THERE = """
import queue as queues
import numpy as np
from panel_schedule.coordination.answers import UNLIMITED, Limits
answers = queues.Queue()
def claim(key="a", known=0, basis=()):
    return store.cache.claim("f", key, f"f({key})", known=known, basis=basis, now=SystemClock().now())
def put(fence, value, key="a", limits=UNLIMITED, expires_at=None):
    return store.cache.put("f", key, fence, value, now=second(1), duration=1, expires_at=expires_at, limits=limits)
def give(value, key="a", **options):
    return put(claim(key, 10**18)[1].fence, value, key, **options)[0].version
def value(key="a"):
    return store.cache.value(store.cache.look("f", key))
def listen():
    store.cache.watch_answers(lambda function, key: function and answers.put((function, key)))
    store.listen()
"""


@pytest.fixture
def worker(peer):
    """Start processes that know how to claim."""
    return lambda before="", **options: peer(THERE + before, **options)


def large(number):
    return np.full(LARGE, number)


def claim(store, key="a", known=0, basis=(), now=EARLY, function="f"):
    return store.cache.claim(function, key, f"{function}({key})", known=known, basis=basis, now=now)


def put(store, fence, value=None, key="a", now=LATE, limits=UNLIMITED, expires_at=None, function="f"):
    return store.cache.put(function, key, fence, value, now=now, duration=1.5, expires_at=expires_at, limits=limits)


def give(store, value=None, key="a", known=10**18, **options):
    """Compute an answer, whatever is there; its row."""
    mine, row = claim(store, key, known, function=options.get("function", "f"))
    assert mine
    return put(store, row.fence, value, key, **options)[0]


def fail(store, fence, error, key="a", now=LATE):
    store.cache.fail("f", key, fence, error, now=now)


def value(store, key="a"):
    return store.cache.value(store.cache.look("f", key))


def kept(store, function="f"):
    return sorted(row.key for row in store.cache.answers(function))


def heard_by(store):
    heard = []
    store.cache.watch_answers(lambda function, key: function and heard.append((function, key)))
    return heard


# ------------------------------------------------------------ one computes


def test_a_store_of_one_process_has_a_cache_as_well():
    store = MemoryStore(clock=VirtualClock())
    mine, row = store.cache.claim("f", "key", "f()", known=0, basis=(), now=second(0))
    assert mine
    store.cache.put("f", "key", row.fence, 5, now=second(1), duration=1.0, expires_at=None, limits=UNLIMITED)
    assert 5 == store.cache.value(store.cache.look("f", "key"))


def test_an_answer_is_followed_from_its_claim_to_its_value(opened):
    """Every process sees every step."""
    store, other = opened(), opened()
    assert other.cache.look("f", "a") is None
    mine, row = claim(store, basis=(3, 1))
    assert (True, "f", "a", "f(a)", 0) == (mine, row.function, row.key, row.call, row.version)
    seen = other.cache.look("f", "a")
    assert (True, False, (3, 1), row.fence) == (seen.held, seen.mine, seen.wanted, seen.fence)
    assert store.cache.look("f", "a").mine
    assert [] == other.cache.answers("f")
    with pytest.raises(KeyError):
        other.cache.value(seen)

    stored, returned = put(store, row.fence, [1])

    assert [1] == returned == value(other)
    seen = other.cache.look("f", "a")
    assert (stored.version, (3, 1), second(1), 1.5) == (seen.version, seen.basis, seen.updated_at, seen.duration)
    assert (False, False, 0, ["a"]) == (seen.held, seen.mine, seen.failed, kept(other))
    assert seen.size > 0


@anywhere
def test_one_of_many_processes_wins_each_answer(worker):
    """They come at once; all others are told who has it."""
    workers = [worker() for _ in range(4)]
    for each in workers:
        each.send("[claim(str(number)) for number in range(60)]")
    for found in zip(*[each._answer() for each in workers], strict=True):
        (fence,) = [row.fence for mine, row in found if mine]
        assert {(fence, True)} == {(row.fence, row.held) for _, row in found}


def test_one_of_many_threads_stores_an_answer(opened):
    """Whichever of a process claimed last: it alone holds the fence."""
    store, fences, stored = opened(), [], []

    def body(thread):
        for number in range(15):
            mine, row = claim(store, str(number))
            fences.extend([row.fence] if mine else [])
            with suppress(RunFenced):
                stored.append(put(store, row.fence, thread, str(number))[0].key)

    assert [] == hammer(4, body)
    assert sorted(map(str, range(15))) == sorted(stored) == kept(store)
    assert len(fences) == len(set(fences))


def test_an_answer_that_is_there_is_not_computed(opened):
    """Unless it is the one that was not good enough."""
    store, other = opened(), opened()
    version = give(store).version

    mine, row = claim(other, known=version - 1)
    assert (False, version, False) == (mine, row.version, row.held)
    mine, row = claim(other, known=version)
    assert (True, version) == (mine, row.version)
    assert (False, True) == (claim(store, known=version)[0], store.cache.look("f", "a").held)


@anywhere
def test_a_newer_basis_does_not_wait_for_an_older_one(opened):
    """What that comes to does not count any more (invariant 10); the other way round one waits."""
    store, other, third = opened(), opened(), opened()
    old = claim(store, basis=(1, 7))[1]
    mine, new = claim(other, basis=(2, 7))
    assert (True, (2, 7)) == (mine, new.wanted)
    assert [False] * 2 == [claim(third, basis=basis)[0] for basis in ((2, 7), (1, 7))]

    with pytest.raises(RunFenced):
        put(store, old.fence, "old")
    put(other, new.fence, "new")
    assert ("new", (2, 7)) == (value(store), store.cache.look("f", "a").basis)


def test_equal_keys_of_two_functions_are_two_answers(opened):
    store = opened()
    give(store, 1, function="f")
    give(store, 2, function="g")
    store.cache.invalidate("f")

    assert ([], ["a"]) == (kept(store, "f"), kept(store, "g"))


# ------------------------------------------------------------ ending


def test_who_has_lost_a_computation_cannot_end_it(opened, address):
    """Each of its writes compares the fence (invariant 10), and leaves no file."""
    store, other = opened(), opened()
    fence = claim(store)[1].fence
    for lose in (
        lambda: other.cache.invalidate("f", "a"),
        lambda: other.cache.invalidate("f"),
        lambda: store.cache.release(),
        lambda: store.cache.give_up("f", "a", store.cache.look("f", "a").fence),
    ):
        lose()
        for late in (
            lambda fence=fence: put(store, fence, large(1)),
            lambda fence=fence: fail(store, fence, ValueError()),
            lambda fence=fence: store.cache.publish("f", "a", fence, large(1)),
            lambda: put(store, 77, 1, "unknown"),
        ):
            with pytest.raises(RunFenced, match="Memoized function 'f'"):
                late()
        assert ([], []) == (kept(other), address.large_parts())
        fence = claim(store)[1].fence
    put(store, fence, 1)
    with pytest.raises(RunFenced):
        put(store, fence, 2)
    assert 1 == value(other)


@anywhere
def test_a_failure_keeps_its_type_and_traceback(opened):
    """In every process (section 3, errors); the next one to ask tries again, and a success ends it."""
    store, other = opened(), opened()
    row = claim(store)[1]
    try:
        raise FileNotFoundError(2, "No such file", "a.csv")
    except FileNotFoundError as error:
        fail(store, row.fence, error, now=second(5))
    seen = other.cache.look("f", "a")
    assert (row.fence, second(5), False) == (seen.failed, seen.failed_at, seen.held)
    error = other.cache.failure(seen)
    assert (FileNotFoundError, "a.csv") == (type(error), error.filename)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "test_a_failure_keeps" in traceback_text(error)

    mine, again = claim(other)
    assert (True, True) == (mine, again.failed < again.fence)
    put(other, again.fence, 1)
    assert (0, None) == (store.cache.look("f", "a").failed, store.cache.look("f", "a").failed_at)


def test_a_failure_that_cannot_be_read_says_what_it_was(opened, monkeypatch):
    module = ModuleType("code_of_last_year")
    module.Odd = type("Odd", (Exception,), {"__module__": "code_of_last_year"})
    monkeypatch.setitem(sys.modules, "code_of_last_year", module)
    store = opened()
    fail(store, claim(store, "gone")[1].fence, module.Odd("no luck"), "gone")
    fail(store, claim(store, "never")[1].fence, ValueError(sys._getframe()), "never")
    monkeypatch.delitem(sys.modules, "code_of_last_year")

    for key, line in (("gone", "Odd: no luck"), ("never", "ValueError: <frame")):
        error = store.cache.failure(store.cache.look("f", key))
        assert isinstance(error, RunFailed)
        assert f"Memoized function 'f' failed in another process: {line}" in str(error)


def test_a_failure_costs_no_answer(opened):
    """What was there before stays."""
    store, other = opened(), opened()
    version = give(store, "old").version
    fail(store, claim(store, known=version)[1].fence, ValueError())

    assert ("old", version, ["a"]) == (value(other), other.cache.look("f", "a").version, kept(other))


def test_a_value_that_cannot_be_shared_changes_nothing(opened, address):
    """The computation can still fail (invariant 11)."""
    store = opened()
    fence = claim(store)[1].fence
    for bad in (sys._getframe(), [large(1), Odd()]):
        with pytest.raises(ValueRefused, match="Memoized function 'f'"):
            put(store, fence, bad)
        with pytest.raises(ValueRefused, match="Memoized function 'f'"):
            store.cache.publish("f", "a", fence, sys._getframe())

    assert (True, []) == (store.cache.look("f", "a").mine, address.large_parts())
    fail(store, fence, ValueError())


class Odd:
    def __reduce__(self):
        return divmod, (1, 0)


def test_who_gives_up_leaves_it_to_others(opened):
    """At no attempt's cost; and harmlessly, when it is another one's by now."""
    store, other, third = opened(), opened(), opened()
    for _ in range(3):
        fence = claim(store)[1].fence
        store.cache.give_up("f", "a", fence)
    mine, row = claim(other)
    assert mine
    store.cache.give_up("f", "a", fence)
    store.cache.give_up("f", "a", row.fence)
    assert (False, True) == (claim(third)[0], third.cache.look("f", "a").held)
    put(other, row.fence, 1)


def test_partials_take_the_place_of_one_another(opened, address):
    """All processes can read the newest; they go when the answer is there."""
    store, other = opened(), opened()
    fence = claim(store)[1].fence
    for number in range(4):
        store.cache.publish("f", "a", fence, large(number) if number % 2 else number)
        row = other.cache.look("f", "a")
        assert (number + 1, number) == (row.partials, int(np.asarray(other.cache.partial(row)).flat[0]))
    assert 1 == len(address.large_parts())
    put(store, fence, "all")

    assert (0, []) == (other.cache.look("f", "a").partials, address.large_parts())
    with pytest.raises(KeyError):
        other.cache.partial(row)


@pytest.mark.parametrize("end", ["invalidate", "fail", "release", "give_up"])
def test_what_ends_without_an_answer_leaves_no_partial(opened, address, end):
    """Neither a row says that there is one, nor is a file left."""
    store = opened()
    fence = claim(store)[1].fence
    store.cache.publish("f", "a", fence, large(1))
    match end:
        case "invalidate":
            opened().cache.invalidate("f", "a")
        case "fail":
            fail(store, fence, ValueError())
        case "release":
            store.cache.release()
        case "give_up":
            store.cache.give_up("f", "a", fence)

    assert (0, []) == (store.cache.look("f", "a").partials, address.large_parts())


def test_a_computation_has_no_partials_of_the_one_that_it_replaced(opened, address):
    """They were of older values."""
    store, other = opened(), opened()
    old = claim(store, basis=(1,))[1]
    store.cache.publish("f", "a", old.fence, large(1))
    mine, row = claim(other, basis=(2,))

    assert (True, 0) == (mine, row.partials)
    with pytest.raises(KeyError):
        store.cache.partial(store.cache.look("f", "a"))
    assert [] == address.large_parts()


def test_versions_only_grow(opened, home):
    """Whatever is forgotten in between, of whichever call (invariant 10)."""
    clock = VirtualClock()
    store = opened(clock=clock)
    versions = [give(store).version, give(store).version]
    store.cache.invalidate("f", "a")
    versions.append(give(store).version)
    versions.append(give(store, key="b", limits=Limits(1)).version)
    versions.append(give(store, expires_at=clock.now() + timedelta(seconds=1)).version)
    clock.advance("3h")
    store.records.sweep(store._clock.now())
    versions.append(give(store).version)
    store.close()
    versions.append(give(opened()).version)

    assert sorted(set(versions)) == versions


# ------------------------------------------------------------ life and death


@with_a_death
def test_the_computation_of_a_dead_process_is_taken_over_once(opened, worker):
    """Then it has failed, for those who wait; who asks anew tries again (invariant 14)."""
    store, first, second_one, third = opened(), worker(), worker(), worker()
    fence = first("claim()[1].fence")
    assert not claim(store)[0]
    first.kill()
    mine, row = second_one("claim()")
    assert (True, True) == (mine, row.fence > fence)
    second_one.kill()
    mine, row = third("claim()")
    assert (False, row.fence, False) == (mine, row.failed, row.held)
    error = store.cache.failure(row)
    assert isinstance(error, RunCrashed)
    assert "Memoized function 'f': the process that computed f(a) died, as did the one before" in str(error)

    assert third("claim()[0]")
    third.kill()
    assert claim(store)[0]  # counted from the beginning


@with_a_death
def test_the_others_hear_of_a_death_within_two_seconds(worker, opened, address):
    """All that it computed is free then, and its partial answers are gone (invariant 14)."""
    first, others = worker(), [worker() for _ in range(2)]
    first("[claim(str(n)) for n in range(5)]")
    first("store.cache.publish('f', '0', store.cache.look('f', '0').fence, np.full(9000, 1))")
    for other in others:
        other("listen()")
    first.kill()
    for other in others:
        assert {("f", str(n)) for n in range(5)} == {other("answers.get(timeout=2)") for _ in range(5)}

    def rows():
        return {(row.held, row.partials) for row in (opened().cache.look("f", str(n)) for n in range(5))}

    eventually(lambda: {(False, 0)} == rows())
    eventually(lambda: [] == address.large_parts())


@with_a_death
def test_a_death_spoils_no_answer(opened, worker):
    """What was there stays there, and so do its files."""
    store, first = opened(), worker()
    first("give(np.full(9000, 7))")
    version = store.cache.look("f", "a").version
    first("claim(known=10**18)")
    first.kill()
    store.records._look_around()

    assert (version, 7) == (store.cache.look("f", "a").version, value(opened())[0])


def test_a_stopped_process_is_not_dead(opened, worker):
    """Never by elapsed time (invariant 14)."""
    store, other = opened(), worker()
    other("claim()")
    other.signal(signal.SIGSTOP)
    store.records._look_around()

    assert (False, True) == (claim(store)[0], store.cache.look("f", "a").held)
    other.signal(signal.SIGCONT)


@pytest.mark.parametrize("how", ["release", "close"])
def test_a_process_that_stops_leaves_its_computations_to_others(worker, how):
    """At once, and at no attempt's cost (invariant 19)."""
    first, other = worker(), worker()
    first("claim()")
    other("listen()")
    first("store.cache.release()" if how == "release" else "store.close()")

    assert ("f", "a") == other("answers.get(timeout=2)")
    assert other("claim()[0]")
    assert 0 == other("store.cache.look('f', 'a').takeovers")


# ------------------------------------------------------------ room


def test_what_was_used_longest_ago_goes_first(opened, worker, address):
    """By whichever process it was used; each function has room of its own."""
    store, other = opened(), worker()
    give(store, 0, "other", function="g")
    for number, key in enumerate("abc"):
        give(store, large(number), key, now=second(number))
    other("store.cache.use('f', ['a', 'unknown'], second(10))")
    give(store, large(3), "d", now=second(11), limits=Limits(3))
    assert ["a", "c", "d"] == kept(store)
    assert other("give(4, 'e', limits=Limits(2))")  # at second(1)

    assert (["d", "e"], ["other"], 1) == (kept(store), kept(store, "g"), len(address.large_parts()))
    assert ["d", "e"] == [row.key for row in store.cache.answers("f")]


def test_what_takes_more_bytes_than_allowed_goes(opened, address):
    """Those used longest ago first, as many as it takes."""
    store = opened()
    for number, key in enumerate("abcd"):
        size = give(store, large(number), key, now=second(number)).size
    give(store, large(4), "e", now=second(5), limits=Limits(None, 3 * size))
    assert ["c", "d", "e"] == kept(store)
    give(store, 1, "small", now=second(6), limits=Limits(None, 3 * size))

    assert (["d", "e", "small"], 2) == (kept(store), len(address.large_parts()))


def test_what_is_larger_than_all_the_room_pushes_nothing_out(opened):
    """It could not stay in any case."""
    store = opened()
    give(store, 1, "a")
    give(store, 2, "b")
    give(store, large(1), "large", limits=Limits(None, 10_000), now=second(2))

    assert {"a", "b"} <= set(kept(store))


def test_what_is_computed_anew_is_not_pushed_out(opened):
    """It stays until there is another one, which has to find room as all have."""
    store, other = opened(), opened()
    version = give(store, "old").version
    fence = claim(store, known=version)[1].fence
    give(other, "new", "b", now=second(2), limits=Limits(1))
    assert (["a", "b"], version, True) == (kept(store), *((row := other.cache.look("f", "a")).version, row.held))

    put(store, fence, "again", limits=Limits(1))
    assert (["a"], "again") == (kept(other), value(other))


def test_many_processes_stay_within_the_limit(worker, opened, address):
    """And no file of what has gone is left."""
    workers = [worker() for _ in range(3)]
    for number, each in enumerate(workers):
        each.send(f"[give(np.full(9000, {number}), f'{number}-{{n}}', limits=Limits(5)) for n in range(25)]")
    for each in workers:
        each._answer()

    assert (5, 5) == (len(kept(opened())), len(address.large_parts()))


# ------------------------------------------------------------ forgetting


def test_one_answer_is_forgotten_or_all(opened, address):
    """In all processes, with their files; others stay."""
    store, other = opened(), opened()
    for key in "abc":
        give(store, large(1), key)
    row = store.cache.look("f", "a")
    other.cache.invalidate("f", "a")
    assert (["b", "c"], 2, 0) == (kept(store), len(address.large_parts()), store.cache.look("f", "a").version)
    with pytest.raises(KeyError):
        store.cache.value(row)
    assert claim(store)[0]
    other.cache.invalidate("f")

    assert ([], []) == (kept(store), address.large_parts())
    assert claim(other)[0]  # not the one of before
    other.cache.invalidate("unknown", "a")
    other.cache.invalidate("unknown")


@pytest.mark.parametrize("all_of_them", [False, True])
def test_it_is_heard_though_the_store_has_let_go_of_it(opened, all_of_them):
    """Another process may still have it at hand: it was pushed out by others, or has expired."""
    store, other = opened(), opened()
    give(store, 1, "a")
    give(store, 2, "b", now=second(2), limits=Limits(1))
    heard = heard_by(other)
    store.cache.invalidate("f", None if all_of_them else "a")
    other.records._catch_up()

    if all_of_them:
        assert "f" in [function for function, key in heard if key != "b"]
    else:
        assert ("f", "a") in heard


def test_what_was_replaced_leaves_no_file(opened, address):
    """The last one stays, also for who reads it from now on."""
    store, other = opened(), opened()
    for number in range(3):
        give(store if number % 2 else other, large(number))
    (_,), found = address.large_parts(), value(opened())

    assert 2 == found[0]
    give(store, "small")
    assert [] == address.large_parts()
    assert 2 == found[-1]  # who has it keeps it


def test_what_has_expired_is_gone_with_its_files(opened, address):
    """One that is just being computed anew stays, so that its claim does."""
    clock = VirtualClock()
    store, other = opened(clock=clock), opened(clock=clock)
    soon = clock.now() + timedelta(seconds=60)
    for key in "abc":
        give(store, large(1), key, expires_at=None if key == "c" else soon, now=clock.now())
    claim(store, "b", known=10**18)
    clock.advance("59s")
    other.records.sweep(other._clock.now())
    assert ["a", "b", "c"] == kept(store)
    clock.advance("1s")
    other.records.sweep(other._clock.now())

    assert (["b", "c"], 2) == (kept(store), len(address.large_parts()))
    assert store.cache.look("f", "b").mine


@in_a_directory
def test_what_has_expired_goes_when_a_store_is_opened(opened, address):
    """A script may be the only one that ever comes."""
    store = opened()
    give(store, large(1), expires_at=second(10))
    store.close()
    opened()

    assert [] == address.large_parts()


def test_a_row_without_a_value_goes_in_the_end(opened):
    """All have heard of it by then."""
    clock = VirtualClock()
    store = opened(clock=clock)
    give(store, 1, "a", now=clock.now())
    store.cache.invalidate("f", "a")
    clock.advance("59m")
    store.records.sweep(store._clock.now())
    assert store.cache.look("f", "a") is not None
    clock.advance("2m")
    store.records.sweep(store._clock.now())

    assert store.cache.look("f", "a") is None


@pytest.mark.parametrize("end", ["fail", "give_up", "release", "death"])
def test_the_end_of_what_took_hours_is_heard(opened, end, monkeypatch):
    """The row is not forgotten before those who wait have looked: nobody would tell them."""
    clock = VirtualClock()
    store, other = opened(clock=clock), opened(clock=clock)
    fence = claim(store, now=clock.now())[1].fence
    heard = heard_by(other)
    clock.advance("2h")
    match end:
        case "fail":
            fail(store, fence, ValueError("in the end"), now=clock.now())
        case "give_up":
            store.cache.give_up("f", "a", fence)
        case "release":
            store.cache.release()
        case "death":
            monkeypatch.setattr(other.records, "alive", lambda owner: owner != store.records.me)
            other.records._look_around()
    store.records.sweep(store._clock.now())
    other.records._catch_up()

    assert {("f", "a")} == set(heard)
    row = other.cache.look("f", "a")
    assert (False, fence if end == "fail" else 0) == (row.held, row.failed)


# ------------------------------------------------------------ hearing


def test_a_process_hears_of_the_answers_of_others(worker):
    """A bell wakes it: nobody looks by himself in this test (invariant 16)."""
    first, other = worker("opened.LOOK = server_records.LOOK = 600"), worker("opened.LOOK = server_records.LOOK = 600")
    other("listen()")
    for told in ("fence = claim()[1].fence", "put(fence, 1)", "store.cache.invalidate('f')", "give(2)",
                 "fail_now = store.cache.fail('f', 'a', claim(known=10**18)[1].fence, ValueError(), now=second(0))",
                 "store.cache.publish('f', 'a', claim(known=10**18)[1].fence, 'half')"):  # fmt: skip
        first(told)
        if not told.startswith("fence"):
            assert "f" == other("answers.get(timeout=2)[0]")
        other("[answers.get() for _ in range(answers.qsize())]")


def test_what_a_listener_chokes_on_keeps_no_news_from_it(opened, address):
    """The rest is told then, or the next time: who waits for it would wait for ever."""
    store, other = opened(), opened()
    heard = []

    def noticed(function, key):
        if key == "a" and not heard:
            heard.append("choked")
            raise StoreError("not now")
        heard.append(key)

    other.cache.watch_answers(noticed)
    for key in "abc":
        give(store, 1, key)
    with pytest.raises(StoreError, match="not now") if address.is_directory else nullcontext():
        other.records._catch_up()
    assert ["choked", "b", "c"] == heard
    other.records._catch_up()
    other.records._catch_up()
    assert ["choked", "b", "c", "a"] == heard


# ------------------------------------------------------------ values


def test_a_large_answer_is_one_copy_in_memory(worker):
    """In the process that made it, too (invariant 12)."""
    anonymous = "int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1])"
    first, other = worker(), worker()
    first("(fence := claim()[1].fence, array := np.ones(12_500_000)) and 0")
    first("(found := put(fence, array)[1], array := None) and 0")
    other("0")
    for process in (first, other):
        process(f"before = {anonymous}")
        process("found = value()")
        assert 12_500_000 == process("found.sum()")
        assert process(f"{anonymous} - before") < 10_000  # KB, of 100,000


@pytest.mark.parametrize("damage", ["gone", "truncated", "code"])
@in_a_directory
def test_a_value_that_cannot_be_read_is_an_error(opened, address, damage, monkeypatch):
    """It names the call; to compute it again mends it."""
    module = ModuleType("code_of_last_year")
    module.Portfolio = type("Portfolio", (), {"__module__": "code_of_last_year"})
    monkeypatch.setitem(sys.modules, "code_of_last_year", module)
    store, other = opened(), opened()
    give(store, [module.Portfolio(), large(1)])
    (path,) = (address.path / "values").iterdir()
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        monkeypatch.delitem(sys.modules, "code_of_last_year")

    with pytest.raises(ValueUnreadable, match=r"Memoized function 'f'.*f\(a\)"):
        value(other)
    give(other, 5)
    assert 5 == value(store)


@in_a_directory
def test_files_of_answers_are_swept_if_no_row_names_them(worker, opened, address):
    """Of a process that died between file and commit; the others stay."""
    first = worker()
    first("give(np.full(9000, 1))")
    named = address.large_parts()
    first("(store.records._files / f'{store.records._me}.77').write_bytes(b'half')")
    first("store.cache.publish('f', 'b', claim('b')[1].fence, np.full(9000, 2))")
    assert 3 == len(address.large_parts())
    first.kill()
    store = opened()
    store.records._look_around()
    store.records._sweep()

    assert named == address.large_parts()
    assert 1 == value(store)[0]


@pytest.mark.parametrize("call", ["put", "publish"])
@in_a_directory
def test_ctrl_c_behind_the_commit_loses_nothing(opened, monkeypatch, call):
    """The file is the answer's by then."""
    store = opened()
    fence = claim(store)[1].fence

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(store.records._wake_ups, "ring", interrupt)
    with pytest.raises(KeyboardInterrupt):
        put(store, fence, large(5)) if call == "put" else store.cache.publish("f", "a", fence, large(5))

    row = store.cache.look("f", "a")
    assert 5 == (store.cache.value(row) if call == "put" else store.cache.partial(row))[0]


# ------------------------------------------------------------ what lasts


@with_a_death
def test_a_restart_has_what_was_there(opened, worker):
    """Answers, and what is wrong with them; what was being computed is free."""
    first = worker(server="first")
    first("give(np.full(9000, 1), 'a'), give(2, 'b'), claim('c')")
    first.kill()
    store = opened(server="second")

    assert (1, 2, ["a", "b"]) == (value(store, "a")[0], value(store, "b"), kept(store))
    assert claim(store, "c")[0]


@pytest.mark.parametrize("version", [1, 2, 3])
@in_a_directory
def test_a_store_of_a_former_version_gets_the_tables(home, opened, version):
    """What it holds stays, answers as well; and the numbers of changes go on."""
    opened().close()
    found = ["INSERT INTO entries VALUES ('user', 'rates', 4, 1000000, NULL, NULL, 1, NULL, NULL, 'values.1', 3)"]
    if version > 1:
        found.append("INSERT INTO jobs (id, function, key, durable, state, change) VALUES ('r', 'j', '', 0, "
                     "'succeeded', 1)")  # fmt: skip
    if version > 2:
        found.append("INSERT INTO answers (function, key, call, version, basis, updated_at, used_at, size, change, "
                     "file) VALUES ('f', 'old', 'f(0)', 7, '3,1', 1000000, 1, 80, 7, 'values.2')")  # fmt: skip
        found.append("UPDATE counted SET changes = 9")
    as_of_schema(version, home / "store.db", *found)
    store, other = opened(), opened()

    assert (4, 4) == (database.SCHEMA_VERSION, store.records._read("PRAGMA user_version")[0][0])
    assert 4 == store.records.read("user", "rates").state.version
    assert (["r"] if version > 1 else []) == [job.id for job in store.queue.jobs("j")]
    row = store.cache.look("f", "old")
    assert version < 3 or (7, (3, 1), "f(0)", 80) == (row.version, row.basis, row.call, row.size)
    assert give(store, [1]).version > (9 if version > 2 else 0)
    assert [1] == value(other)


@in_a_directory
def test_a_store_of_a_newer_version_is_refused(home, opened):
    opened().close()
    with closing(sqlite3.connect(home / "store.db")) as newer:
        newer.execute("PRAGMA user_version = 5")
    with pytest.raises(StoreError, match="written by a newer panel-schedule"):
        opened()


@in_a_directory
def test_answers_of_a_corrupt_database_are_saved(opened, address, home, caplog):
    """With all that can still be read, files included; versions go on growing."""
    store = opened()
    for number in range(60):
        give(store, np.full(1000, number), str(number))
    last = give(store, large(7), "large").version
    store.close()
    data = bytearray((home / "store.db").read_bytes())
    data[80 * 4096 : 82 * 4096] = os.urandom(2 * 4096)
    (home / "store.db").write_bytes(data)
    store = opened()

    assert "is kept as store.db.corrupt-1" in messages(caplog)[0]
    rows = store.cache.answers("f")
    assert len(rows) >= 30
    whole = {}
    for row in rows:
        with suppress(ValueUnreadable):
            whole[row.key] = int(store.cache.value(row)[0])
    assert len(whole) > 20
    assert all(key == str(number) for key, number in whole.items() if key != "large")
    assert set(address.large_parts()) >= {r["file"] for r in store.records._read("SELECT file FROM blobs") if r[0]}
    assert claim(store, "new")[1].fence > max(row.version for row in rows)
    assert last >= max(row.version for row in rows)


@pytest.mark.parametrize("loss", ["the database", "the directory"])
@pytest.mark.parametrize("listening", [True, False], ids=["in a server", "in a script"])
@in_a_directory
def test_what_is_deleted_in_use_is_computed_anew(worker, home, loss, listening):
    """What was being computed does not count, and versions go on growing: other processes have those of before."""
    first, other = worker(), worker()
    fence = first("claim('under way')[1].fence")
    version = first("[give(n) for n in range(9)][-1]")
    if listening:
        first("listen()")
        other("listen()")
    if loss == "the directory":
        shutil.rmtree(home)
    else:
        for path in home.glob("store.db*"):
            path.unlink()

    def gave(process, key, number):
        with suppress(StoreError):
            return process("give(number, key)", key=key, number=number)

    again = eventually(lambda: gave(other, "a", 7))
    with suppress(RunFenced, StoreError):  # with the database it is known what was under way
        first("put(fence, 1, 'under way')", fence=fence)
    assert eventually(lambda: again == first("(row := store.cache.look('f', 'a')) and row.version"))
    assert 7 == first("value()")
    assert eventually(lambda: gave(first, "b", 8))
    assert 8 == eventually(lambda: other("store.cache.look('f', 'b') and value('b')"))
    assert again > version


@pytest.mark.parametrize("size", [LARGE, 5000], ids=["file", "database"])
@in_a_directory
def test_a_full_disk_costs_no_answer_that_is_there(opened, tiny, size):
    """The error says so, and when there is room again it goes on."""
    store = opened(tiny / "store")
    give(store, 1, "there")
    fence = claim(store)[1].fence
    ballast = tiny / "ballast"
    with suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()

    with pytest.raises(StoreError, match=r"(?i)(no space left|full).*Free some space"):
        [give(store, np.full(size, number), str(number)) for number in range(9)]
    assert 1 == value(store, "there")
    ballast.unlink()
    assert 3 == put(store, fence, np.full(size, 3))[1][0]
    assert 3 == value(opened(tiny / "store"))[0]


def test_nothing_is_computed_in_a_closed_store(opened):
    """What comes late gets an error."""
    store = opened()
    fence = claim(store)[1].fence
    store.close()

    for late in (lambda: claim(store), lambda: store.cache.look("f", "a"), lambda: put(store, fence)):
        with pytest.raises(StoreError, match="closed"):
            late()


# ------------------------------------------------------------ failures have a bound


def rows(store):
    found = [(record.name.partition(" ")[0], record.size) for record in store.records.scan("answer", "f")
             if record.state.failed]  # fmt: skip
    return [{"key": key, "size": size} for key, size in sorted(found)]


def test_failures_count_among_the_entries(opened):
    """A visitor may ask for as many wrong things as he likes."""
    store = opened()
    for number in range(20):
        key = f"{number:02d}"
        store.cache.fail("f", key, claim(store, key)[1].fence, ValueError("no"), now=second(number), limits=Limits(3))

    assert ["17", "18", "19"] == [row["key"] for row in rows(store)]
    assert "no" == str(store.cache.failure(store.cache.look("f", "19")))


def test_failures_count_among_the_bytes(opened):
    store = opened()
    limits = Limits(None, 10_000)
    for number in range(20):
        key = f"{number:02d}"
        error = ValueError("no " + "x" * 1500)
        store.cache.fail("f", key, claim(store, key)[1].fence, error, now=second(number), limits=limits)

    assert 0 < sum(row["size"] for row in rows(store)) <= 10_000


def test_the_texts_of_a_failure_are_cut(opened):
    """Its type, and the beginning and end of what it says, stay."""
    store = opened()
    fail(store, claim(store)[1].fence, ValueError("no such customer: " + "x" * 100_000 + " (end)"))

    (row,) = rows(store)
    error = store.cache.failure(store.cache.look("f", "a"))
    assert row["size"] < 25_000
    assert ValueError is type(error)
    assert str(error).startswith("no such customer: xxx")
    assert str(error).endswith("xxx (end)")


def test_a_failure_that_is_large_by_itself_is_its_texts(opened):
    store = opened()
    fail(store, claim(store)[1].fence, ValueError(list(range(100_000))))

    (row,) = rows(store)
    assert row["size"] < 25_000
    assert isinstance(store.cache.failure(store.cache.look("f", "a")), RunFailed)


def test_answers_push_out_failures_that_are_older(opened):
    """And the other way round: each counts as one."""
    store = opened()
    store.cache.fail("f", "a", claim(store)[1].fence, ValueError("no"), now=second(0), limits=Limits(2))
    for number, key in enumerate("bc", start=1):
        give(store, number, key, now=second(number), limits=Limits(2))
    assert [] == rows(store)
    store.cache.fail("f", "d", claim(store, "d")[1].fence, ValueError("no"), now=second(9), limits=Limits(2))
    assert ["c"] == kept(store)
