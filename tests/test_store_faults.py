"""What goes wrong with a store that replicas share, on real processes, and what holds nevertheless (8, 10, 14, 17)."""

from __future__ import annotations

import signal
import time
from contextlib import closing
from functools import partial
from types import SimpleNamespace

import pytest

from faults import BUSY, LONG, LONGER, MakeServer, Site, eventually
from panel_schedule.coordination import tasks
from panel_schedule.coordination.record import Record
from panel_schedule.coordination.tasks import TASK, VALUE
from panel_schedule.stores.records import Change
from panel_schedule.testing.contracts.tools import START
from proxy import Proxy

# ------------------------------------------------------------ the server dies


def test_a_server_that_is_killed_and_comes_back(site: Site) -> None:
    """With all that it had, or nearly all: no version goes back, and everything goes on by itself."""
    site.replicas_run(2)
    for _ in range(2):
        site.server.kill()
        site.server.start()
        print(f"each value came anew after {site.await_values():.2f} s")
    site.end()
    site.assert_sound(kept=site.server.exact)


def test_a_record_that_a_server_has_lost_has_no_value_of_the_one_before_it(
    site: Site, proxy: Proxy, new_server: MakeServer
) -> None:
    """Who has heard of a new value, and asks for it when another server has taken over, is not given an older one."""

    def put(value: str) -> Record:
        made = partial(tasks.publish, space=TASK, name="sales", now=START, duration=None, claim=None, final=True, me="")
        [result] = store.write([Change(TASK, "sales", made, {(VALUE, 0): value})], durable=True)
        assert result.record is not None
        return result.record

    with closing(Site(site.folder, site.server)) as through:
        through.server = SimpleNamespace(url=site.server.through(proxy))
        with closing(through.opened()) as opened:
            store = opened.records
            former = put("former")
            lagging = new_server(of=site.server)
            newest = put("newest")
            assert store.load(newest, VALUE) == "newest"
            proxy.to = lagging.port
            proxy.drop()
            with pytest.raises(KeyError):
                store.load(newest, VALUE)
            assert store.load(former, VALUE) == "former"


def test_what_a_run_gives_while_the_server_is_gone_is_stored_when_it_is_back(site: Site) -> None:
    """It was not computed in vain; and a task of once an hour is not without it for an hour."""
    one, other = (site.replica(busy=False, lease=LONG) for _ in range(2))
    id = one("replica.refresh('long')")
    eventually(lambda: site.journal("began", task="long"))
    site.server.kill()
    site.go("long 1")
    eventually(lambda: site.log().count("cannot be used now") >= 2)
    site.server.start()
    eventually(lambda: other("replica.version('long')") == 1)
    site.end()
    with closing(site.opened()) as store:
        assert [(id, "succeeded")] == [(run.id, run.state) for run in store.history("long")]


def test_what_a_generator_yields_while_the_server_is_gone_is_stored_when_it_is_back(site: Site) -> None:
    """It waits for that; and what follows comes after it."""
    one, other = (site.replica(busy=False, lease=LONG) for _ in range(2))
    one("replica.refresh('long parts')")
    eventually(lambda: other("replica.version('long parts')") == 1)
    site.server.kill()
    site.go("parts")
    eventually(lambda: site.log().count("cannot be used now") >= 2)
    site.server.start()
    eventually(lambda: other("replica.version('long parts')") == 3)
    site.end()
    with closing(site.opened()) as store:
        assert ["succeeded"] == [run.state for run in store.history("long parts")]


def test_a_value_that_the_server_never_takes_fails_and_holds_up_nothing(site: Site) -> None:
    """All others go on, and its run says why."""
    (one,) = site.replicas_run(1)
    site.server.refuse()
    id = one("replica.refresh('huge')")
    eventually(lambda: "Task 'huge' failed" in site.log())
    site.await_values()
    site.end()
    site.assert_sound()
    with closing(site.opened()) as store:
        assert [(id, "failed")] == [(run.id, run.state) for run in store.history("huge")]


def test_a_server_that_is_killed_and_has_forgotten_everything(forgetful: Site) -> None:
    """It gets the values again from those who have them: no version goes back, and everything goes on by itself."""
    forgetful.replicas_run(3)
    for _ in range(2):
        forgetful.server.kill()
        forgetful.server.start()
        print(f"each value came anew after {forgetful.await_values():.2f} s")
    forgetful.end()
    forgetful.assert_sound(kept=False)


@pytest.mark.parametrize("lags", [True, False], ids=["that lags behind", "that is empty"])
def test_a_failover_to_a_server(site: Site, proxy: Proxy, new_server: MakeServer, lags: bool) -> None:
    """What it does not have it gets in the same way."""
    site.replicas_run(2, proxy)
    site.server, former = new_server(of=site.server) if lags else new_server(), site.server
    site.await_values()
    proxy.to = site.server.port
    proxy.drop()
    former.kill()
    print(f"each value came anew after {site.await_values():.2f} s")
    site.end()
    site.assert_sound(kept=False)


def test_a_server_that_closes_connections(site: Site) -> None:
    """In the middle of whatever it does: nothing is lost."""
    site.replicas_run(2)
    for _ in range(10):
        site.server.cut()
        stored = len(site.journal("stored"))
        eventually(lambda stored=stored: len(site.journal("stored")) > stored)
    print(f"each value came anew after {site.await_values():.2f} s")
    site.end()
    site.assert_sound()


# ------------------------------------------------------------ somebody stands still


def test_a_server_that_stood_still_longer_than_all_leases(site: Site) -> None:
    """Nobody is taken for dead, as nobody could say that he lives: no run is taken over."""
    one, other = site.replicas_run(2)
    one("replica.refresh('long')")
    eventually(lambda: site.journal("began", task="long"))
    site.server.pause()
    time.sleep(LONGER)
    site.server.go_on()
    print(f"each value came anew after {site.await_values():.2f} s")
    site.go("long 1")
    eventually(lambda: other("replica.version('long')") == 1)
    assert 1 == len(site.journal("began", task="long"))
    site.end()
    site.assert_sound()


def test_a_replica_that_stood_still_longer_than_its_lease_writes_nothing(site: Site) -> None:
    """Another one has run what it had; its late value is dropped, and its run has one end."""
    one, other = site.replicas_run(2)
    id = one("replica.refresh('long')")
    eventually(lambda: site.journal("began", task="long"))
    one.signal(signal.SIGSTOP)
    eventually(lambda: site.journal("began", task="long", attempt=2))
    site.go("long 2")
    eventually(lambda: other("replica.version('long')") == 1)
    site.go("long 1")
    one.signal(signal.SIGCONT)
    eventually(lambda: one("replica.version('long')") == 1)
    site.await_values()
    site.end()
    site.assert_sound()
    with closing(site.opened()) as store:
        assert [(id, "succeeded", 2)] == [(run.id, run.state, run.attempt) for run in store.history("long")]
        assert 1 == store.values.entry("task", "long").version
    assert [2] == [line["fence"] for line in site.journal("stored", task="long")]
    assert [1] == [line["fence"] for line in site.journal("fenced", task="long")]


def test_a_replica_stops_though_the_server_stands_still(site: Site) -> None:
    """It does not wait for it as long as at other times."""
    replica = site.replica(patience=10.0, grace_period=0.5)
    site.await_values()
    site.server.pause()
    stopped = time.monotonic()
    assert replica.stop() in (0, -signal.SIGTERM)
    print(f"it stopped after {time.monotonic() - stopped:.2f} s")
    assert time.monotonic() - stopped < 20.0
    site.server.go_on()


def test_replicas_whose_clocks_differ(site: Site) -> None:
    """By 10 s: no slot has two results. The slow one finds those of the next 10 s done when the fast one has gone."""
    slow, fast = site.replica(), site.replica(skew=10.0)
    site.await_values()
    fast.stop()
    before = slow("replica.version('plain')")
    slow("replica.refresh('plain')")
    eventually(lambda: slow("replica.version('plain')") > before)
    site.end()
    site.assert_sound()


# ------------------------------------------------------------ a full server


def test_a_full_server(site: Site) -> None:
    """The last good values are served, one line says what to do, and what was computed is stored when there is room."""
    one, other = site.replicas_run(2)
    id = one("replica.refresh('long')")
    eventually(lambda: site.journal("began", task="long"))
    site.server.fill()
    site.go("long 1")
    eventually(lambda: site.log().count(site.server.full) >= 2)
    assert min(each(f"replica.version({task!r})") for each in (one, other) for task in BUSY) > 0
    said = [line for line in site.log().splitlines() if site.server.full in line]
    assert len(said) <= 4  # of each process what it tries again, and that it cannot say that it lives
    site.server.empty()
    print(f"each value came anew after {site.await_values():.2f} s")
    eventually(lambda: other("replica.version('long')") == 1)
    site.end()
    site.assert_sound()
    with closing(site.opened()) as store:
        assert [(id, "succeeded")] == [(run.id, run.state) for run in store.history("long")]
