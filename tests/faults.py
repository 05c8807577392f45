"""Servers with a store, replicas that share it, and what must hold whatever goes wrong (8, 10, 14, 17)."""

from __future__ import annotations

import json
import shutil
import signal
import time
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from job_peer import Host
from panel_schedule.config import Config
from panel_schedule.coordination.history import JOB
from panel_schedule.runtime import Runtime
from panel_schedule.stores.base import Store
from postgres_server import PostgresServer
from proxy import Proxy
from redis_server import RedisServer
from servers import eventually as eventually_within

# Seconds that a test waits at most for what another process does.
PATIENCE = 30.0

eventually = partial(eventually_within, timeout=PATIENCE)

# Seconds: of a replica, in place of 15; and what a fault lasts that is to outlast it.
LEASE = 1.0
LONGER = 2 * LEASE

BUSY = ("plain", "large", "async", "parts", "after")


# What is in a request that changes records.
CHANGE = b'"ahead"'


class Redis(RedisServer):
    """
    A server, and all that these tests ask of one; that of another kind of store has the same.

    Parameters
    ----------
    folder : Path
    keeps : bool
        Whether it has anything when it comes back after it was killed.
    of : Redis
        It has what that one has by now.

    Attributes
    ----------
    store : str
        The module in `panel_schedule.stores`, with its time limits.
    full : str
        What is said of one that has no room.
    exact : bool
        Whether it loses nothing at all when it is killed.
    """

    store, full, exact = "redis", "Raise the server's maxmemory", True

    def __init__(self, folder: Path, keeps: bool = True, of: Redis | None = None):
        if of is None:
            folder.mkdir()
        else:
            of.pause()
            shutil.copytree(of.folder, folder, ignore=shutil.ignore_patterns("sock"))
            of.go_on()
        super().__init__(folder, *(("--appendonly", "yes", "--appendfsync", "always") if keeps else ()))

    def through(self, proxy: Proxy) -> str:
        """Its address there."""
        return self.url.replace(str(self.port), str(proxy.port))

    def cut(self) -> None:
        """It closes the connections of all others."""
        for kind in ("normal", "pubsub"):
            self.client.client_kill_filter(_type=kind, skipme=True)

    def fill(self) -> None:
        """There is no room for anything more."""
        self.client.config_set("maxmemory", "1")

    def empty(self) -> None:
        self.client.config_set("maxmemory", "0")

    def refuse(self) -> None:
        """It takes no value of more than 1 MB."""
        self.client.config_set("proto-max-bulk-len", "1mb")


class Postgres(PostgresServer):
    """
    The same; the store is in a database that is made anew for each test, and at each start where it is to keep nothing.

    What is committed without waiting for the disk is lost when it is killed: of all but durable jobs and large values
    the last half second.
    """

    store, full, exact = "postgres", "this server is a replica, or read-only", False

    def __init__(self, folder: Path | None = None, keeps: bool = True, of: Postgres | None = None):
        self.starts: list[float] = []
        super().__init__(of=of)
        self.url, self._keeps = self.url.replace("/postgres", "/store"), keeps
        if of is None:
            self._make()

    def start(self) -> None:
        self.starts.append(time.monotonic())
        super().start()
        if not getattr(self, "_keeps", True):
            self._make()

    def renew(self, keeps: bool) -> None:
        """It is there, as if it was a new one."""
        self._keeps = keeps
        if self.process.poll() is None:
            self.go_on()
        else:
            self.start()
        self._set("RESET ALL")
        self._make()

    def _make(self) -> None:
        self.all("DROP DATABASE IF EXISTS store WITH (FORCE)")
        self.all("CREATE DATABASE store")

    def through(self, proxy: Proxy) -> str:
        return self.url.replace(str(self.port), str(proxy.port))

    def cut(self) -> None:
        self.all("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'store'")

    def fill(self) -> None:
        """It writes nothing any more."""
        self._set("SET default_transaction_read_only = on")

    def empty(self) -> None:
        self._set("SET default_transaction_read_only = off")

    def refuse(self) -> None:
        import psycopg

        with psycopg.connect(self.url) as connection:
            connection.execute("ALTER TABLE panel_schedule_default.pieces ADD CHECK (length(data) < 1000000)")

    def _set(self, setting: str) -> None:
        self.all(f"ALTER SYSTEM {setting}")
        self.all("SELECT pg_reload_conf()")


MakeServer = Callable[..., Redis | Postgres]


class Site:
    """
    A server with a store, and the replicas that share it.

    Parameters
    ----------
    folder : Path
    server : Redis or Postgres
    """

    def __init__(self, folder: Path, server: Redis | Postgres):
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

    def settle(self, host: Host, task: str) -> None:
        """Wait until all has been stored that a process had to say since its start."""
        with closing(self.opened()) as store:
            for call, paused in (("pause", True), ("resume", False)):
                host(f"replica.{call}({task!r})")
                eventually(
                    lambda paused=paused: (
                        (record := store.records.read("task", task)) is not None and record.state.paused is paused
                    )
                )

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
        # A claim that was lost before anybody else has heard of it is made again, under the same fence.
        starts = [] if self.server.exact else self.server.starts
        assert [] == _twice((line["task"], line["key"], line["fence"], bisect(starts, line["at"])) for line in stored)
        if self.server.exact:  # else a run whose end was lost is run again, under the next fence
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
