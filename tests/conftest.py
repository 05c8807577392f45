"""Fixtures that several files share: a scheduler driven by hand, a real server, a real browser."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from core import Core
from panel_schedule.clock import Clock, SystemClock
from panel_schedule.functions.run import Run
from panel_schedule.stores.file.store import FileStore
from panel_schedule.stores.redis import RedisRecords
from postgres_server import PostgresServer
from redis_server import RedisServer
from servers import PanelServer, Serve, write_files
from store_peer import Peer
from windows import NewPage, launch, windows

# What takes long: tests with a server, a browser or processes of their own, by fixture, and whole files of them.
_SLOW = {"bare", "browser", "house", "kernel", "open_page", "peer", "serve", "serve_two", "site"}
_SLOW |= {"test_busy_store", "test_crashes", "test_peers", "test_sessions", "test_stalls", "test_stopping"}
_SLOW |= {"test_background", "test_damaged_store", "test_errors_kept", "test_process_tasks", "test_what_bodies_raise"}
_SLOW |= {"test_celery", "test_dask", "test_store_faults", "test_worker_processes"}
_SLOW |= {"another_redis", "postgres_server", "test_large_values", "test_lost_store", "test_redis_addresses"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Mark what ``make test-quick`` leaves out, and let files of it come first, browser tests last.

    Two processes that get file after file end at the same time when the last ones are short. While a browser is there,
    Playwright keeps an event loop running in its thread, under which ``asyncio.run`` and async tests are refused.
    """
    for item in items:
        if not _SLOW.isdisjoint((item.path.stem, *getattr(item, "fixturenames", ()))):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, "browser" in getattr(item, "fixturenames", ())))


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


@pytest.fixture
def opened(home: Path) -> Iterator[Callable[..., FileStore]]:
    """Open stores in this process: ``opened()``."""
    stores = list[FileStore]()

    def open_one(path: Path = home, clock: Clock | None = None, **options: Any) -> FileStore:
        stores.append(FileStore(path, clock or SystemClock(), **({"server": "server"} | options)))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def peer(home: Path) -> Iterator[Callable[..., Peer]]:
    """Start processes that have the store open: ``peer()``."""
    peers = list[Peer]()

    def start(before: str = "", path: Path = home, **options: Any) -> Peer:
        peers.append(Peer(path, before, **options))
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


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this system lets nobody mount a disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)
