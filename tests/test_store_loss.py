"""Replicas that run tasks for themselves while their store is away: ``on_store_loss = "run"`` (10, 14, 17)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from faults import BUSY, Postgres, Redis, Site, eventually


@pytest.fixture(params=[(Redis, False), (Postgres, True)], ids=["redis that forgets", "postgres"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Its server, when it was killed and is there again, has nothing, or nearly all that it had."""
    kind, keeps = request.param
    server = request.getfixturevalue("mortal_postgres") if kind is Postgres else kind(tmp_path / "server", keeps)
    if kind is Postgres:
        server.renew(keeps)
    with closing(Site(tmp_path, server)) as site:
        yield site
    if kind is Redis:
        server.stop()


def lose_server(site: Site) -> None:
    """Until all replicas go on without it."""
    site.server.kill()
    for host in site.replicas:
        if host.alive:
            eventually(partial(host, "replica.away()"))


def await_return(site: Site) -> None:
    """Until all replicas that live share it again."""
    for host in site.replicas:
        if host.alive:
            eventually(lambda host=host: not host("replica.away()"))


def test_each_replica_runs_the_tasks_for_itself_until_the_server_is_back(site: Site) -> None:
    """New values go on coming to each; then one runs for all again, no version goes back, each run has one end."""
    hosts = [site.replica(on_store_loss="run") for _ in range(2)]
    site.await_values()
    lose_server(site)
    print(f"each value came anew after {site.await_values():.2f} s")
    alone = {line["pid"] for line in site.journal("stored")}
    assert {host.process.pid for host in hosts} == alone
    site.server.start()
    await_return(site)
    print(f"each value came anew after {site.await_values():.2f} s")
    site.end()
    assert [] == site.journal("went back")
    assert [] == site.journal("saw", whole=False)
    with closing(site.opened()) as store:
        for task in BUSY:
            entry, runs = store.values.entry("task", task), store.history(task)
            assert entry is not None
            assert entry.version >= max(line["version"] for line in site.journal("saw", task=task))
            assert {1} == set(Counter(run.id for run in runs).values())
            assert {run.state for run in runs} <= {"succeeded", "skipped", "cancelled"}


def test_a_run_goes_on_when_the_server_goes_and_when_it_comes(site: Site) -> None:
    """Begun with the server and ended without, or the other way round: its value is there, with one end of it."""
    one, other = (site.replica(busy=False, on_store_loss="run") for _ in range(2))
    first = one("replica.refresh('long')")
    eventually(lambda: site.journal("began", task="long"))
    site.server.kill()
    site.go("long 1")
    eventually(lambda: one("replica.version('long')") == 1)
    second = one("replica.refresh('long parts')")
    eventually(lambda: one("replica.version('long parts')") == 1)
    assert (0, 0) == (other("replica.version('long')"), other("replica.version('long parts')"))
    site.server.start()
    eventually(lambda: other("replica.version('long')") == 1)
    site.go("parts")
    eventually(lambda: other("replica.version('long parts')") == 3)
    site.end()
    with closing(site.opened()) as store:
        assert [(first, "succeeded")] == [(run.id, run.state) for run in store.history("long")]
        assert [(second, "succeeded")] == [(run.id, run.state) for run in store.history("long parts")]


def test_what_a_replica_ran_that_went_with_the_server_holds_up_nothing(site: Site) -> None:
    """Its run is not taken over, as it may live: it is run for the next slot."""
    one, _ = (site.replica(on_store_loss="run") for _ in range(2))
    site.await_values()
    one("replica.refresh('long')")
    eventually(lambda: site.journal("began", task="long"))
    one.kill()
    lose_server(site)
    print(f"each value came anew after {site.await_values():.2f} s")
    assert 1 == len(site.journal("began", task="long"))
    site.server.start()
    await_return(site)
    print(f"each value came anew after {site.await_values():.2f} s")
    site.end()


@pytest.mark.parametrize("site", [(Redis, False)], ids=["redis that forgets"], indirect=True)
def test_a_limit_counts_in_each_replica_while_the_server_is_away(site: Site) -> None:
    """What needs a place gets one of its own process; then all count together again, and nothing is left taken."""
    limited = """
import panel_schedule as ps
for name in ("one", "two"):
    ps.schedule(period="1s", name=name, first_run="background", group="warehouse")(lambda: replica.compute(10))
"""
    hosts = [site.replica(busy=False, on_store_loss="run", groups={"warehouse": 1}) for _ in range(2)]

    def await_all() -> None:
        for host in hosts:
            before = [host(f"replica.version('{name}')") for name in ("one", "two")]
            for name, version in zip(("one", "two"), before, strict=True):
                eventually(lambda host=host, name=name, version=version: host(f"replica.version('{name}')") > version)

    for host in hosts:
        host(limited)
    await_all()
    lose_server(site)
    await_all()
    site.server.start()
    await_return(site)
    await_all()
    for host in hosts:
        host("[ps.tasks[name].pause() for name in ('one', 'two')] and None")
    with closing(site.opened()) as store:
        eventually(lambda: not [each for each in store.records.scan("place") if each.owner is not None])
    site.end()


def test_what_was_paused_meanwhile_stays_paused(site: Site) -> None:
    """And a job that waits for the server holds up no task."""
    one, other = (site.replica(on_store_loss="run") for _ in range(2))
    site.await_values()
    one("replica.submit('thread')")
    eventually(lambda: site.journal("began", job="in a thread"))
    lose_server(site)
    site.go("job 1")
    site.await_values()
    one("replica.pause('plain')")
    site.server.start()
    await_return(site)
    eventually(lambda: other("replica.state_of('plain')") == "paused")
    site.end()
