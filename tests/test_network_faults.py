"""What a network does between replicas and the store that they share, and what holds nevertheless (8, 10, 14)."""

from __future__ import annotations

import random
import signal
import time
from contextlib import closing

import pytest

from faults import CHANGE, LONGER, Site, eventually
from proxy import Proxy


def test_a_network_that_cuts_replies_and_connections(site: Site, proxy: Proxy) -> None:
    """Whatever the process has heard of what it wrote: each slot has one result, and each run one end."""
    dice = random.Random(12)
    site.replicas_run(3, proxy)
    for number in range(1, 41):
        if dice.random() < 0.5:
            proxy.cut = 1
        else:
            proxy.torn = 1
        eventually(lambda number=number: proxy.cuts >= number)
        if number % 10 == 0:
            proxy.drop()
    print(f"each value came anew after {site.await_values():.2f} s")
    site.end()
    site.assert_sound()


def test_a_claim_that_nobody_could_tell_is_had_by_who_asked(site: Site, proxy: Proxy) -> None:
    """Also when another process has changed the record before it is asked again."""
    one, other = site.replica(proxy, busy=False), site.replica(busy=False)
    site.settle(one, "long")
    proxy.lose = CHANGE
    id = one("replica.refresh('long')")
    site.await_change(other, "long", lambda state: state.run_id == id)
    proxy.lose = b""
    site.go("long 1")
    eventually(lambda: other("replica.version('long')") == 1)


def test_a_takeover_that_nobody_could_tell_is_had_by_who_asked(site: Site, proxy: Proxy) -> None:
    """The same."""
    one, heir, other = site.replica(busy=False), site.replica(proxy, busy=False), site.replica(busy=False)
    site.settle(heir, "long")
    one("replica.refresh('long')")
    eventually(lambda: site.journal("began", task="long"))
    other.signal(signal.SIGSTOP)  # it would be the heir, perhaps
    proxy.lose = CHANGE
    one.kill()
    with closing(site.opened()) as store:
        eventually(lambda: store.records.read("task", "long").state.attempt == 2)
    other.signal(signal.SIGCONT)
    site.await_change(other, "long", lambda state: state.attempt == 2)
    proxy.lose = b""
    site.go("long 2")
    eventually(lambda: heir("replica.version('long')") == 1)


def test_a_network_that_passes_nothing_for_a_while(site: Site, proxy: Proxy) -> None:
    """It costs nobody his lease: the server has heard of nobody."""
    one, other = site.replicas_run(2, proxy)
    one("replica.refresh('long')")
    eventually(lambda: site.journal("began", task="long"))
    proxy.stall()
    time.sleep(LONGER)
    site.go("long 1")
    proxy.resume()
    print(f"each value came anew after {site.await_values():.2f} s")
    eventually(lambda: other("replica.version('long')") == 1)
    assert 1 == len(site.journal("began", task="long"))
    site.end()
    site.assert_sound()


def test_a_replica_that_is_cut_off_longer_than_its_lease(site: Site, proxy: Proxy) -> None:
    """Others take over what it had; it serves what it has, its late value is dropped, and it finds its way back."""
    one, other = site.replica(proxy), site.replica()
    site.await_values()
    one("replica.refresh('long')")
    eventually(lambda: site.journal("began", task="long"))
    proxy.stall()
    eventually(lambda: site.journal("began", task="long", attempt=2))
    site.go("long 1")
    eventually(lambda: "cannot be used now" in site.log())
    site.go("long 2")
    eventually(lambda: other("replica.version('long')") == 1)
    assert one("replica.version('plain')") > 0
    proxy.resume()
    eventually(lambda: one("replica.version('long')") == 1)
    site.await_values()
    assert [2] == [line["fence"] for line in site.journal("stored", task="long")]
    site.end()
    site.assert_sound()


@pytest.mark.alone
def test_a_slow_network_holds_up_no_page_and_no_clock(site: Site, proxy: Proxy) -> None:
    """With 200 ms a call: a read, a turn of the loop and a timer take no longer than ever."""
    (one,) = site.replicas_run(1, proxy, patience=5.0)
    proxy.delay = 0.2
    one("replica.measure()")
    site.await_values()
    read, turn, timer = one("(replica.slowest_read, replica.slowest_turn, replica.slowest_timer)")
    print(f"slowest read {read * 1e3:.1f} ms, turn of the loop {turn * 1e3:.1f} ms, timer {timer * 1e3:.1f} ms")
    assert max(read, turn, timer) < proxy.delay
    proxy.delay = 0.0
    site.end()
    site.assert_sound()
