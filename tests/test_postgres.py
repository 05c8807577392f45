"""Records on a PostgreSQL server that the tests start."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from itertools import count
from unittest.mock import MagicMock

import numpy as np
import pytest

from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.coordination.tasks import USER
from panel_schedule.errors import ConfigError, StoreError, ValueUnreadable
from panel_schedule.runtime import Runtime
from panel_schedule.stores import postgres as postgres_store
from panel_schedule.stores import postgres_server as postgres_connections
from panel_schedule.stores import server_records
from panel_schedule.stores.hurry import hurried
from panel_schedule.stores.postgres import PostgresRecords, PostgresStore, schema_of
from panel_schedule.stores.records import Tell
from panel_schedule.testing import RecordStoreContract, SharedRecordStoreContract, StoreContract
from panel_schedule.testing.contracts.records import LARGE, SPACE, VALUE
from panel_schedule.testing.contracts.tools import START, hammer
from postgres_server import PostgresServer
from redis_server import free_port
from server_store import PATIENCE, ServerRecordsTests, addition, eventually, number_of, one_line, put, to

psycopg = pytest.importorskip("psycopg", reason="needs the package psycopg")


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


@pytest.fixture(scope="module")
def another():
    """For tests that stop it, and start it again."""
    server = PostgresServer()
    yield server
    server.stop()


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


class Statements:
    """How many there were so far."""

    def __init__(self, monkeypatch):
        self.count, ask = 0, postgres_connections.Connection.ask

        def counted(connection, statement, *args):
            self.count += "join" not in statement
            return ask(connection, statement, *args)

        monkeypatch.setattr(postgres_connections.Connection, "ask", counted)


class TestPostgresServer(ServerRecordsTests):
    store = PostgresStore

    @pytest.fixture
    def mortal(self, another):
        return another

    @pytest.fixture(autouse=True)
    def statements(self, monkeypatch):
        self._statements = Statements(monkeypatch)

    def calls(self, server):
        return self._statements.count

    def until(self, server, owner, store):
        found = server.all(
            f'SELECT extract(epoch FROM until)::float FROM "{store._schema}".owners WHERE owner = %s', owner
        )
        return found[0] if found else None

    def listeners(self, server, store):
        [listening] = server.all("SELECT count(*) FROM pg_stat_activity WHERE query = %s", f'LISTEN "{store._schema}"')
        return listening

    def cut(self, server):
        server.all("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(query, 'LISTEN')")

    def blobs(self, server, store):
        expiring = f"""
            SELECT stamp, expires_at BETWEEN now() AND now() + interval '1 hour' AS expires FROM "{store._schema}".blobs
        """
        found = server.all(expiring)
        assert {stamp for stamp, _ in found} == set(server.all(f'SELECT DISTINCT stamp FROM "{store._schema}".pieces'))
        return [stamp for stamp, _ in found], [stamp for stamp, expires in found if expires]

    def empty(self, server, store):
        server.all(f'DROP SCHEMA "{store._schema}" CASCADE')

    def forget(self, server, store):
        server.all(f'DELETE FROM "{store._schema}".owners WHERE owner = %s', store.me)
