"""Fixtures that several files share: a scheduler driven by hand, a real server, a real browser."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from core import Core
from faults import MakeServer, Postgres, Redis, Site
from panel_schedule.clock import Clock, SystemClock
from panel_schedule.functions.run import Run
from panel_schedule.stores import server_records
from panel_schedule.stores.base import Store
from panel_schedule.stores.redis import RedisRecords
from postgres_server import PostgresServer
from proxy import Proxy
from redis_server import RedisServer
from servers import PanelServer, Serve, write_files
from store_address import StoreAddress
from store_peer import Peer
from windows import NewPage, launch, windows

# What takes long: tests with a server, a browser or processes of their own, by fixture, and whole files of them.
_SLOW = {"bare", "browser", "forgetful", "house", "kernel", "open_page", "peer", "serve", "serve_two", "site"}
_SLOW |= {"test_busy_store", "test_crashes", "test_peers", "test_sessions", "test_stalls", "test_stopping"}
_SLOW |= {"test_background", "test_damaged_store", "test_errors_kept", "test_process_tasks", "test_what_bodies_raise"}
_SLOW |= {"test_celery", "test_dask", "test_worker_processes"}
_SLOW |= {"another_redis", "postgres_server", "test_large_values", "test_lost_store", "test_memo_processes"}
_SLOW |= {"test_redis_addresses"}

# Files of them that take longest, longest first: about half a minute or more of one process each.
_LONG = ("celery", "job_faults", "background", "worker_processes", "crashes", "dask", "store_faults", "sessions")
_LONG += ("store_job_faults", "topology", "postgres", "server", "stopping", "durable_jobs", "http", "memo_processes")
_LONG += ("explorer", "network_faults", "store_loss", "monitor", "docs", "what_bodies_raise", "lost_store", "processes")
_ORDER = {f"test_{name}": place for place, name in enumerate(_LONG)}

# Tests that are marked ``stores("asked")`` run on a directory, or on servers as well if this is "all": see the marker.
ON_ALL_STORES = os.environ.get("PANEL_SCHEDULE_TEST_STORES") == "all"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Mark what ``make test-quick`` leaves out, and let files of it come first, the longest before others.

    Processes that get file after file end at the same time when the last ones are short. Browser tests come last, of a
    file and of those that are not long: while a browser is there, Playwright keeps an event loop running in its
    thread, under which ``asyncio.run`` and async tests are refused.
    """
    for item in items:
        on_server = getattr(item, "callspec", None) and item.callspec.params.get("store_kind", "file") != "file"
        if on_server or not _SLOW.isdisjoint((item.path.stem, *getattr(item, "fixturenames", ()))):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> tuple[bool, int, bool]:
        browser = "browser" in getattr(item, "fixturenames", ())
        return item.path not in slow, _ORDER.get(item.path.stem, len(_ORDER)), browser

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What has been imported is no garbage: who collects it looks only at what came since."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def core() -> Iterator[Core]:
    with Core() as core:
        yield core


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> dict[Run, int]:
    """All runs that are made, and how often each of them ended."""
    ended: dict[Run, int] = {}
    end, init = Run.end, Run.__init__

    def counted_init(self: Run, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        ended[self] = 0

    def counted_end(self: Run, *args: Any, **kwargs: Any) -> None:
        ended[self] += 1
        end(self, *args, **kwargs)

    monkeypatch.setattr(Run, "__init__", counted_init)
    monkeypatch.setattr(Run, "end", counted_end)
    return ended


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An SDK of OpenTelemetry that is set up for this test; imported for it alone."""
    from opentelemetry import trace

    from tracing import Spans

    made = Spans()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", made.provider)
    return made


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """
    Start servers: ``serve("app.py --setup tasks.py", {"app.py": ..., "tasks.py": ...})``.

    The first argument is what a user types after ``panel serve``, the second the files that it names.
    `env` adds to the environment; with ``wait=False`` the server may still be starting, or fail to.
    Each one is stopped after the test; one that must be killed or leaves a process behind fails it.
    """
    with ExitStack() as started:

        def start(
            command: str,
            files: Mapping[str, str] | None = None,
            *,
            env: Mapping[str, str] | None = None,
            wait: bool = True,
        ) -> PanelServer:
            write_files(tmp_path, files or {})
            server = PanelServer(command, tmp_path, env=env)
            started.callback(lambda: print(server.output()))
            started.callback(server.close)
            if wait:
                server.wait_started()
            return server

        yield start


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for the tests of a file: the next one of this process may want to run a loop."""
    with sync_playwright() as playwright, launch(playwright, tmp_path_factory.mktemp("home")) as chromium:
        yield chromium


@pytest.fixture
def new_page(browser: Browser, serve: Serve) -> Iterator[NewPage]:
    """
    Open windows: ``new_page(server.url)`` gives a Playwright page, each a visitor of its own.

    An error on a page's console, or an uncaught one, fails the test, unless its text contains one of
    the strings in ``allow=``. The windows close before the servers of `serve` stop.
    """
    with windows(browser) as open_page:
        yield open_page


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "store"


_KINDS = ("file", "redis", "postgres")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests over several processes on each kind of store, as their mark says."""
    mark = metafunc.definition.get_closest_marker("stores")
    if mark is not None and "store_kind" in metafunc.fixturenames:
        anywhere = mark.args[0] == "all" or (mark.args[0] == "asked" and ON_ALL_STORES)
        metafunc.parametrize("store_kind", _KINDS if anywhere else _KINDS[:1], indirect=True, scope="module")


@pytest.fixture(scope="module")
def store_kind(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "file")


@pytest.fixture(scope="module")
def new_address(request: pytest.FixtureRequest, store_kind: str) -> Callable[..., StoreAddress]:
    """Where one more store is: ``new_address(path)``, on a server with ``lease=``."""
    if store_kind == "file":
        return lambda path, lease=None: StoreAddress.of(path)
    url = request.getfixturevalue(f"{store_kind}_server").url
    return lambda path, lease=None: StoreAddress(url, f"test-{next(_namespaces)}", lease)


@pytest.fixture
def address(
    request: pytest.FixtureRequest, new_address: Callable[..., StoreAddress], home: Path
) -> Iterator[StoreAddress]:
    """Of the store of the test."""
    mark = request.node.get_closest_marker("stores")
    made = new_address(home, **(mark.kwargs if mark else {}))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.constants().items():
            patch.setattr(server_records, name, value)
        yield made


@pytest.fixture
def opened(address: StoreAddress) -> Iterator[Callable[..., Store]]:
    """Open stores in this process: ``opened()``."""
    stores = list[Store]()

    def open_one(path: Path | None = None, clock: Clock | None = None, **options: Any) -> Store:
        where = address if path is None else StoreAddress.of(path)
        stores.append(where.open(clock, **options))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def peer(address: StoreAddress) -> Iterator[Callable[..., Peer]]:
    """Start processes that have the store open: ``peer()``."""
    peers = list[Peer]()

    def start(before: str = "", path: Path | None = None, **options: Any) -> Peer:
        where = address if path is None else StoreAddress.of(path)
        peers.append(Peer(where, before, **options))
        return peers[-1]

    yield start
    for each in peers:
        each.end()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One for all tests of this process: each takes a namespace of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One for all tests of this process, as the one above."""
    server = PostgresServer()
    yield server
    server.stop()


_namespaces = count()


@pytest.fixture
def open_redis(redis_server: RedisServer) -> Iterator[Callable[..., Any]]:
    """Open stores on it, or on the one of a URL: ``open_redis()``; all of one test on one namespace."""
    stores, namespace = list[Any](), f"test-{next(_namespaces)}"

    def open_one(url: str = redis_server.url, kind: Any = RedisRecords, **options: Any) -> Any:
        stores.append(kind(url, SystemClock(), **({"namespace": namespace} | options)))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def another_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start servers of the test's own: ``another_redis("--appendonly", "yes")``."""
    servers = list[RedisServer]()

    def start(*options: str) -> RedisServer:
        folder = tmp_path / f"redis-{len(servers)}"
        folder.mkdir()
        servers.append(RedisServer(folder, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def mortal_postgres() -> Iterator[Postgres]:
    """To be stopped and started again: a new one takes longer than most tests with it."""
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture(params=[Redis, Postgres], ids=lambda kind: kind.store)
def new_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeServer]:
    """Start servers: ``new_server()``; with `keeps` and `of` as that of `Redis` has them."""
    own, numbers = list[Redis | Postgres](), count()

    def start(keeps: bool = True, of: Any = None) -> Redis | Postgres:
        if (number := next(numbers)) == 0 and request.param is Postgres:
            server: Postgres = request.getfixturevalue("mortal_postgres")
            server.renew(keeps)
            return server
        own.append(request.param(tmp_path / f"server{number}", keeps, of))
        return own[-1]

    yield start
    for server in own:
        server.stop()


@pytest.fixture
def site(new_server: MakeServer, tmp_path: Path) -> Iterator[Site]:
    """Replicas on a server with a store."""
    with closing(Site(tmp_path, new_server())) as site:
        yield site


@pytest.fixture
def forgetful(new_server: MakeServer, tmp_path: Path) -> Iterator[Site]:
    """The same, on one that has forgotten everything when it was killed."""
    with closing(Site(tmp_path, new_server(keeps=False))) as site:
        yield site


@pytest.fixture
def proxy(site: Site) -> Iterator[Proxy]:
    """Between replicas and their server."""
    with closing(Proxy(site.server.port)) as proxy:
        yield proxy


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this system lets nobody mount a disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)
