"""Records on a Redis server that the tests start."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count

import pytest

from panel_schedule.clock import SystemClock
from panel_schedule.stores import redis as redis_store
from panel_schedule.stores.redis import RedisRecords, RedisStore
from panel_schedule.testing import RecordStoreContract, SharedRecordStoreContract, StoreContract

redis = pytest.importorskip("redis", reason="needs the package redis")

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")
if PROGRAM is None:
    pytest.skip("needs redis-server", allow_module_level=True)

PATIENCE = 20.0


class Server:
    """A server on a free port, with nothing of it outside of a directory."""

    def __init__(self, folder, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.options = folder, options
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client = redis.Redis(port=self.port)
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [
                PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "",
                "--unixsocket", str(self.folder / "sock"), *self.options,
            ],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for line in self.process.stdout:
            if "eady to accept connections" in line:
                break
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE)


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


_namespaces = count()


@pytest.fixture
def opened(server):
    """Open stores: ``opened()``; all of one test on one namespace."""
    stores, namespace = [], f"test-{next(_namespaces)}"

    def open_one(url=server.url, kind=RedisRecords, **options):
        stores.append(kind(url, SystemClock(), **({"namespace": namespace} | options)))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def looks_often(monkeypatch):
    """Nothing wakes a process that has changed something itself."""
    monkeypatch.setattr(redis_store, "LOOK", 0.02)


class TestRedisStore(StoreContract):
    """As a script uses it: it asks whenever it wants to know."""

    scale = 100

    @pytest.fixture(autouse=True)
    def threads_that_take_turns_often(self):
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        yield
        sys.setswitchinterval(interval)

    @pytest.fixture
    def store(self, opened):
        return opened(kind=RedisStore, history_limit=self.history_limit)


class TestListeningRedisStore(TestRedisStore):
    """As a server uses it: others tell it."""

    @pytest.fixture
    def store(self, opened):
        threads = threading.active_count()
        store = opened(kind=RedisStore, server="server", history_limit=self.history_limit)
        store.listen()
        yield store
        store.close()
        assert threads == threading.active_count()


@pytest.mark.usefixtures("looks_often")
class TestRedisRecords(RecordStoreContract):
    scale = 100

    @pytest.fixture
    def store(self, opened):
        return opened()


@pytest.mark.usefixtures("looks_often")
class TestSharedRedisRecords(SharedRecordStoreContract):
    @pytest.fixture
    def store(self, opened):
        return opened()

    @pytest.fixture
    def other(self, opened):
        return opened()
