"""What goes wrong with a store that replicas share, on real processes, and what holds nevertheless (8, 10, 14, 17)."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from job_peer import Host
from panel_schedule.config import Config
from panel_schedule.coordination.history import JOB
from panel_schedule.errors import ValueUnreadable
from panel_schedule.runtime import Runtime
from panel_schedule.stores.base import Store
from proxy import Proxy
from redis_server import RedisServer, free_port
from servers import Serve
from servers import eventually as eventually_within

# Seconds that a test waits at most for what another process does.
PATIENCE = 30.0

eventually = partial(eventually_within, timeout=PATIENCE)

# Seconds: of a replica, in place of 15; and what a fault lasts that is to outlast it.
LEASE = 1.0
LONGER = 2 * LEASE

BUSY = ("plain", "large", "async", "parts", "after")


class Redis(RedisServer):
    """
    A server, and all that these tests ask of one; that of another kind of store has the same.

    Attributes
    ----------
    store : str
        The module in `panel_schedule.stores`, with its time limits.
    change : bytes
        What is in a request that changes records.
    """

    store, change = "redis", b"swap"

    def __init__(self, folder: Path, keeps: bool = True):
        folder.mkdir()
        super().__init__(folder, *(("--appendonly", "yes", "--appendfsync", "always") if keeps else ()))

    def through(self, proxy: Proxy) -> str:
        """Its address there."""
        return self.url.replace(str(self.port), str(proxy.port))

    def fill(self) -> None:
        """There is no room for anything more."""
        self.client.config_set("maxmemory", "1")

    def empty(self) -> None:
        self.client.config_set("maxmemory", "0")

    def refuse(self) -> None:
        """It takes no value of more than 1 MB."""
        self.client.config_set("proto-max-bulk-len", "1mb")


class Site:
    """
    A server with a store, and the replicas that share it.

    Parameters
    ----------
    folder : Path
    server : Redis
    """

    def __init__(self, folder: Path, server: Redis):
        self.folder, self.server = folder, server
        self.replicas: list[Host] = []

    def replica(self, proxy: Proxy | None = None, **options: Any) -> Host:
        """Start one that reaches the store directly, or by a proxy; options are `Replica`'s, or of ``ps.config``."""
        configured = {name: options.pop(name) for name in list(options) if name in Config.options()}
        source = f"import replica\nreplica = replica.Replica(folder, {self.server.store!r}, {LEASE}, **{options!r})"
        url = self.server.url if proxy is None else self.server.through(proxy)
        host = Host(self.folder, source, jobs="", store=url, history_limit=100_000, **configured)
        self.replicas.append(host)
        return host

    def replicas_run(self, number: int, proxy: Proxy | None = None, **options: Any) -> list[Host]:
        """Start so many, and wait until each has seen a value of each task."""
        started = [self.replica(proxy, **options) for _ in range(number)]
        self.await_values()
        return started

    def journal(self, what: str, **facts: Any) -> list[dict[str, Any]]:
        path = self.folder / "journal"
        # A line that is being written has no end yet.
        lines = map(json.loads, path.read_text().split("\n")[:-1]) if path.exists() else ()
        return [line for line in lines if line["what"] == what and facts.items() <= line.items()]

    def await_values(self) -> float:
        """Wait until each replica has seen a value of each task from now on; how many seconds that took."""
        now, living = time.monotonic(), {host.process.pid for host in self.replicas if host.alive}

        def missing() -> set[Any]:
            seen = {(line["pid"], line["task"]) for line in self.journal("saw") if line["at"] > now}
            return {(pid, task) for pid in living for task in BUSY} - seen

        try:
            eventually(lambda: not missing())
        except AssertionError:
            raise AssertionError(f"Nobody of {living} has seen {missing()}") from None
        return time.monotonic() - now

    def go(self, name: str) -> None:
        (self.folder / f"go {name}").touch()

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def opened(self) -> Store:
        """The store, as one more process has it; to be closed."""
        config = Config({})
        config.store, config.history_limit = self.server.url, 100_000
        return Runtime(config)._make_store()

    def await_change(self, host: Host, task: str, there: Callable[[Any], bool]) -> None:
        """Wait until the state of a task is so, and let another process change it once more."""
        with closing(self.opened()) as store:
            eventually(lambda: there(store.records.read("task", task).state))
            host(f"replica.pause({task!r})")
            eventually(lambda: store.records.read("task", task).state.paused)

    def jobs(self) -> dict[str, str]:
        """The state of each that the store knows, by its id."""
        with closing(self.opened()) as store:
            return {job.id: str(job.state) for job in store.queue.jobs("in a thread")}

    def end(self) -> None:
        """All stop as on SIGTERM."""
        for host in self.replicas:
            if host.alive:
                assert host.stop() in (0, -signal.SIGTERM)

    def close(self) -> None:
        for host in self.replicas:
            host.signal(signal.SIGCONT)
            host.kill()
        print(self.log())

    # ------------------------------------------------------------ what must hold

    def assert_sound(self, kept: bool = True) -> None:
        """
        After all have ended.

        Parameters
        ----------
        kept : bool
            Whether the store has lost nothing: then it knows every run.
        """
        assert [] == self.journal("went back")
        assert [] == self.journal("saw", whole=False)
        stored = self.journal("stored")
        assert [] == _twice((line["task"], line["key"], line["fence"]) for line in stored)
        assert [] == _twice((line["task"], line["run"]) for line in stored)
        with closing(self.opened()) as store:
            newest = {task: max(line["version"] for line in self.journal("saw", task=task)) for task in BUSY}
            for task, version in newest.items():
                entry = store.values.entry("task", task)
                assert entry is not None
                assert entry.version >= version
            began = defaultdict(set)
            for line in self.journal("began"):
                if "task" in line:
                    began[line["task"]].add(line["run"])
            for task, runs in began.items():
                ended = [run for run in store.history(task) if run.state != "skipped"]
                assert [] == _twice(run.id for run in ended)
                if kept:
                    assert [] == _twice((line["task"], line["key"]) for line in stored)
                    assert [] == _twice(run.key for run in ended if run.state == "succeeded")
                    record = store.records.read("task", task)
                    assert set() == runs - {run.id for run in ended} - {record.state.run_id}
        print(f"{len(stored)} values, {len(self.journal('began'))} runs")

    def assert_one_end(self, function: str, id: str, state: str, attempt: int) -> None:
        with closing(self.opened()) as store:
            assert [(id, state, attempt)] == [(run.id, run.state, run.attempt) for run in store.history(function, JOB)]
            job = store.queue.job(id)
            assert job is not None
            assert (state, attempt) == (job.state, job.attempt)


def _twice(items: Any) -> list[Any]:
    return [item for item, number in Counter(items).items() if number > 1]


MakeServer = Callable[..., Redis]


@pytest.fixture(params=[Redis], ids=["redis"])
def new_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeServer]:
    """Start servers: ``new_server()``, or ``new_server(keeps=False)`` one that has forgotten all when it was killed."""
    servers: list[Redis] = []

    def start(**options: Any) -> Redis:
        servers.append(request.param(tmp_path / f"server{len(servers)}", **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def site(new_server: MakeServer, tmp_path: Path) -> Iterator[Site]:
    with closing(Site(tmp_path, new_server())) as site:
        yield site


@pytest.fixture
def forgetful(new_server: MakeServer, tmp_path: Path) -> Iterator[Site]:
    """One whose server has forgotten everything when it was killed."""
    with closing(Site(tmp_path, new_server(keeps=False))) as site:
        yield site


@pytest.fixture
def proxy(site: Site) -> Iterator[Proxy]:
    with closing(Proxy(site.server.port)) as proxy:
        yield proxy


# ------------------------------------------------------------ the server dies


def test_a_server_that_is_killed_and_comes_back(site: Site) -> None:
    """With all that it had: nothing is lost, and everything goes on by itself."""
    site.replicas_run(2)
    for _ in range(2):
        site.server.kill()
        site.server.start()
        print(f"each value came anew after {site.await_values():.2f} s")
    site.end()
    site.assert_sound()


def test_what_a_run_gives_while_the_server_is_gone_is_stored_when_it_is_back(site: Site) -> None:
    """It was not computed in vain; and a task of once an hour is not without it for an hour."""
    one, other = site.replica(busy=False), site.replica(busy=False)
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
    one, other = site.replica(busy=False), site.replica(busy=False)
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


def test_a_failover_to_an_empty_server(site: Site, proxy: Proxy, new_server: MakeServer) -> None:
    """The same."""
    site.replicas_run(2, proxy)
    site.server, former = new_server(), site.server
    proxy.to = site.server.port
    proxy.drop()
    former.stop()
    print(f"each value came anew after {site.await_values():.2f} s")
    site.end()
    site.assert_sound(kept=False)


# ------------------------------------------------------------ somebody stands still


def test_a_server_that_stood_still_longer_than_all_leases(site: Site) -> None:
    """Nobody is taken for dead, as nobody could say that he lives: no run is taken over."""
    one, other = site.replicas_run(2)
    one("replica.refresh('long')")
    eventually(lambda: site.journal("began", task="long"))
    site.server.signal(signal.SIGSTOP)
    time.sleep(LONGER)
    site.server.signal(signal.SIGCONT)
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
    site.server.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    assert replica.stop() in (0, -signal.SIGTERM)
    print(f"it stopped after {time.monotonic() - stopped:.2f} s")
    assert time.monotonic() - stopped < 20.0
    site.server.signal(signal.SIGCONT)


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


# ------------------------------------------------------------ the network


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
    proxy.lose = site.server.change
    id = one("replica.refresh('long')")
    site.await_change(other, "long", lambda state: state.run_id == id)
    proxy.lose = b""
    site.go("long 1")
    eventually(lambda: other("replica.version('long')") == 1)


def test_a_takeover_that_nobody_could_tell_is_had_by_who_asked(site: Site, proxy: Proxy) -> None:
    """The same."""
    one, heir, other = site.replica(busy=False), site.replica(proxy, busy=False), site.replica(busy=False)
    one("replica.refresh('long')")
    eventually(lambda: site.journal("began", task="long"))
    other.signal(signal.SIGSTOP)  # it would be the heir, perhaps
    proxy.lose = site.server.change
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


# ------------------------------------------------------------ a full server


def test_a_full_server(site: Site) -> None:
    """The last good values are served, one line says what to do, and what was computed is stored when there is room."""
    one, other = site.replicas_run(2)
    id = one("replica.refresh('long')")
    eventually(lambda: site.journal("began", task="long"))
    site.server.fill()
    site.go("long 1")
    eventually(lambda: site.log().count("Raise the server's maxmemory") >= 2)
    assert min(each(f"replica.version({task!r})") for each in (one, other) for task in BUSY) > 0
    said = [line for line in site.log().splitlines() if "maxmemory" in line]
    assert len(said) <= 4  # of each process what it tries again, and that it cannot say that it lives
    site.server.empty()
    print(f"each value came anew after {site.await_values():.2f} s")
    eventually(lambda: other("replica.version('long')") == 1)
    site.end()
    site.assert_sound()
    with closing(site.opened()) as store:
        assert [(id, "succeeded")] == [(run.id, run.state) for run in store.history("long")]


# ------------------------------------------------------------ jobs


def test_a_job_that_was_refused_is_not_done_later(site: Site, proxy: Proxy) -> None:
    """The server has it, and nobody could say so: it ends as soon as that is known."""
    one, other = site.replica(proxy, busy=False), site.replica(busy=False)
    site.go("job 1")
    proxy.lose = site.server.change
    assert "" == one("replica.try_to_submit('thread')")
    [id] = site.jobs()
    proxy.lose = b""
    eventually(lambda: site.jobs() == {id: "failed"})
    one.kill()
    other("replica.jobs['thread'].submit(folder).result(10)")
    assert [] == site.journal("began", run=id)


def test_a_job_whose_takeover_nobody_could_tell_is_done(site: Site, proxy: Proxy) -> None:
    """Who has it, and was not told so, does it."""
    one, other = site.replica(busy=False), site.replica(proxy, busy=False)
    id = one("replica.submit('thread')")
    eventually(lambda: site.journal("began", run=id))
    one.kill()
    proxy.lose = site.server.change
    with closing(site.opened()) as store:
        eventually(lambda: store.records.read("run", id).state.fence == 2)
    proxy.lose = b""
    eventually(lambda: site.journal("began", run=id, attempt=2))
    site.go("job 2")
    eventually(lambda: other(f"replica.state('thread', {id!r})") == "succeeded")
    site.end()
    site.assert_one_end("in a thread", id, "succeeded", 2)


def test_a_result_that_the_server_never_takes_holds_up_nothing(site: Site) -> None:
    """Its job has succeeded, for who waits for it there; others are told that it is lost."""
    one, other = site.replicas_run(2)
    site.server.refuse()
    id = one("replica.submit_huge()")
    eventually(lambda: other(f"replica.state('huge', {id!r})") == "succeeded")
    assert "succeeded" == one(f"replica.state('huge', {id!r})")
    with pytest.raises(ValueUnreadable, match=r"Job 'huge job': its value is lost. Submit it again"):
        other(f"replica.run('huge', {id!r}).result(10)")
    site.await_values()
    site.end()
    site.assert_sound()
    site.assert_one_end("huge job", id, "succeeded", 1)


def test_a_worker_process_that_is_killed_in_mid_job(site: Site) -> None:
    """Its job is tried again, and has one end, which all see."""
    one, other = site.replica(busy=False), site.replica(busy=False)
    id = one("replica.submit('process')")
    [began] = eventually(lambda: site.journal("began", run=id))
    os.kill(began["pid"], signal.SIGKILL)
    eventually(lambda: site.journal("began", run=id, attempt=2))
    site.go("job 2")
    for each in (one, other):
        eventually(lambda each=each: each(f"replica.state('process', {id!r})") == "succeeded")
    site.end()
    site.assert_one_end("in a process", id, "succeeded", 2)


def test_a_replica_that_is_killed_in_mid_job(site: Site) -> None:
    """Another one does it within the lease."""
    one, other = site.replica(busy=False), site.replica(busy=False)
    id = one("replica.submit('thread')")
    eventually(lambda: site.journal("began", run=id))
    killed = time.monotonic()
    one.kill()
    eventually(lambda: site.journal("began", run=id, attempt=2))
    print(f"it was taken over after {time.monotonic() - killed:.2f} s")
    site.go("job 2")
    eventually(lambda: other(f"replica.state('thread', {id!r})") == "succeeded")
    site.end()
    site.assert_one_end("in a thread", id, "succeeded", 2)


def test_a_job_of_a_replica_that_stood_still_longer_than_its_lease(site: Site) -> None:
    """Another one does it; what comes of it too late is dropped, and it has one end."""
    one, other = site.replica(busy=False), site.replica(busy=False)
    id = one("replica.submit('thread')")
    eventually(lambda: site.journal("began", run=id))
    one.signal(signal.SIGSTOP)
    eventually(lambda: site.journal("began", run=id, attempt=2))
    site.go("job 1")
    one.signal(signal.SIGCONT)
    eventually(lambda: one(f"replica.state('thread', {id!r})") == "cancelled")
    assert "running" == other(f"replica.state('thread', {id!r})")
    site.go("job 2")
    eventually(lambda: other(f"replica.state('thread', {id!r})") == "succeeded")
    site.end()
    site.assert_one_end("in a thread", id, "succeeded", 2)


def test_a_job_that_ends_while_the_server_is_gone(site: Site) -> None:
    """Its result is stored when it is back."""
    one, other = site.replica(busy=False), site.replica(busy=False)
    id = one("replica.submit('thread')")
    eventually(lambda: site.journal("began", run=id))
    site.server.kill()
    site.go("job 1")
    eventually(lambda: "its result cannot be stored now" in site.log())
    site.server.start()
    eventually(lambda: other(f"replica.state('thread', {id!r})") == "succeeded")
    site.end()
    site.assert_one_end("in a thread", id, "succeeded", 1)


# ------------------------------------------------------------ a real server

APP = {
    "app.py": """
        import panel as pn
        from tasks import sales
        pn.pane.Str(f"sold {sales()}").servable()
    """,
    "tasks.py": """
        import panel_schedule as ps

        @ps.schedule(period="200ms")
        def sales():
            return 42
    """,
}


def test_pages_do_not_wait_for_a_slow_store(site: Site, proxy: Proxy, serve: Serve) -> None:
    """With 200 ms a call."""
    server = serve("app.py --setup tasks.py", APP, env={"PANEL_SCHEDULE_STORE": site.server.through(proxy)})
    page = f"{server.url}/app"
    httpx.get(page)  # the first one imports a lot
    proxy.delay = 0.2
    took = sorted(httpx.get(page).raise_for_status().elapsed.total_seconds() for _ in range(9))
    proxy.delay = 0.0
    print(f"a page came within {took[4] * 1e3:.0f} ms, {took[-1] * 1e3:.0f} at most")
    assert took[4] < 0.2


def test_a_store_that_cannot_be_used_ends_a_server_with_one_line(
    redis_server: RedisServer, serve: Serve, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Exit 1, and no password in it."""
    locked = RedisServer(tmp_path, "--requirepass", "right")
    unreachable = f"redis://user:hidden@127.0.0.1:{free_port()}"
    (tmp_path / "without" / "redis").mkdir(parents=True)
    (tmp_path / "without" / "redis" / "__init__.py").write_text("raise ImportError('there is none')")
    cases = {
        "Start the server, or correct host and port": {"STORE": unreachable},
        "Name or service not known. Start the server, or correct host": {"STORE": "redis://no-such-host.invalid"},
        "Correct user and password": {"STORE": f"redis://:hidden@127.0.0.1:{locked.port}"},
        "Correct the number of the database": {"STORE": f"{redis_server.url}/99"},
        "pip install 'panel-schedule[redis]'": {"STORE": redis_server.url, "PYTHONPATH": f"{tmp_path / 'without'}"},
    }
    servers = {}
    request.addfinalizer(locked.stop)
    for remedy, options in cases.items():
        env = {name if name == "PYTHONPATH" else f"PANEL_SCHEDULE_{name}": value for name, value in options.items()}
        servers[remedy] = serve("app.py --setup tasks.py", APP, env=env, wait=False)
    for remedy, server in servers.items():
        assert 1 == server.wait_exit()
        said = [line for line in server.output().splitlines() if "panel-schedule" in line]
        assert 1 == len(said), server.output()
        assert remedy in said[0]
        assert "Traceback" not in server.output()
        assert "hidden" not in server.output()
