"""Records on a PostgreSQL server that the tests start."""

from __future__ import annotations

import sys
import threading
from itertools import count

import pytest

from panel_schedule.clock import SystemClock
from panel_schedule.stores import server_records
from panel_schedule.stores.postgres import PostgresRecords, PostgresStore
from panel_schedule.testing import RecordStoreContract, SharedRecordStoreContract, StoreContract
from postgres_server import PostgresServer

psycopg = pytest.importorskip("psycopg", reason="needs the package psycopg")

PATIENCE = 20.0


@pytest.fixture
def server(postgres_server) -> PostgresServer:
    return postgres_server


_namespaces = count()


@pytest.fixture
def opened(server):
    """Open stores: ``opened()``; all of one test on one namespace."""
    stores, namespace = [], f"test-{next(_namespaces)}"

    def open_one(url=server.url, kind=PostgresRecords, **options):
        stores.append(kind(url, SystemClock(), **({"namespace": namespace} | options)))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def looks_often(monkeypatch):
    """Nothing wakes a process that has changed something itself."""
    monkeypatch.setattr(server_records, "LOOK", 0.02)


class TestPostgresStore(StoreContract):
    """As a script uses it: it asks whenever it wants to know."""

    scale = 50

    @pytest.fixture(autouse=True)
    def threads_that_take_turns_often(self):
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        yield
        sys.setswitchinterval(interval)

    @pytest.fixture
    def store(self, opened):
        return opened(kind=PostgresStore, history_limit=self.history_limit)


class TestListeningPostgresStore(TestPostgresStore):
    """As a server uses it: others tell it."""

    @pytest.fixture
    def store(self, opened):
        threads = threading.active_count()
        store = opened(kind=PostgresStore, server="server", history_limit=self.history_limit)
        store.listen()
        yield store
        store.close()
        assert threads == threading.active_count()


@pytest.mark.usefixtures("looks_often")
class TestPostgresRecords(RecordStoreContract):
    scale = 50

    @pytest.fixture
    def store(self, opened):
        return opened()


@pytest.mark.usefixtures("looks_often")
class TestSharedPostgresRecords(SharedRecordStoreContract):
    @pytest.fixture
    def store(self, opened):
        return opened()

    @pytest.fixture
    def other(self, opened):
        return opened()
