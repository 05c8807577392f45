"""Records on a PostgreSQL server that the tests start."""

from __future__ import annotations

import sys
import threading
from datetime import timedelta
from itertools import count
from unittest.mock import MagicMock

import numpy as np
import pytest
from click.testing import CliRunner

from panel_schedule.cli.commands import main
from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.coordination.record import NOBODY
from panel_schedule.coordination.tasks import USER
from panel_schedule.errors import ConfigError, StoreError, ValueUnreadable
from panel_schedule.functions.run import RunState
from panel_schedule.runtime import Runtime
from panel_schedule.stores import postgres as postgres_store
from panel_schedule.stores import postgres_server as postgres_connections
from panel_schedule.stores import server_records
from panel_schedule.stores.hurry import hurried
from panel_schedule.stores.postgres import PostgresRecords, PostgresStore, schema_of
from panel_schedule.testing import RecordStoreContract, SharedRecordStoreContract, StoreContract
from panel_schedule.testing.contracts.records import LARGE, SPACE, VALUE
from panel_schedule.testing.contracts.tools import START, ended, hammer
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
    stores, namespace = [], f"postgres-{next(_namespaces)}"

    def open_one(url=server.url, kind=PostgresRecords, **options):
        stores.append(kind(url, SystemClock(), **({"namespace": namespace} | options)))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture(scope="module")
def another():
    """For tests that stop it, and start it again."""
    server = PostgresServer("-c", "wal_writer_delay=10000")  # so what is not durable is lost
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
        threads = set(threading.enumerate())
        store = opened(kind=PostgresStore, server="server", history_limit=self.history_limit)
        store.listen()
        yield store
        store.close()
        assert set(threading.enumerate()) <= threads


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

    def expire(self, server, store):
        late = f"UPDATE \"{store._schema}\".owners SET until = until - interval '1 hour'"
        server.all(f"{late} WHERE owner = %s", store.me)

    def forget(self, server, store):
        server.all(f"UPDATE \"{store._schema}\".owners SET until = '-infinity' WHERE owner = %s", store.me)


# ------------------------------------------------------------ changes


def test_no_change_is_missed_by_who_asks_what_came_since(opened):
    """Numbers are given in the order of commits: none appears that is smaller than one that was seen."""
    reader, writers, heard = opened(), [opened() for _ in range(3)], []
    reader.subscribe(SPACE, heard.append)

    def body(number):
        if number < 3:
            for each in range(40):
                writers[number].write([to(f"{number} {each}"), to(f"{number} {each} too")])
        else:
            for _ in range(60):
                reader._catch_up()

    assert [] == hammer(4, body)
    reader._catch_up()
    assert {(each.name, each.revision) for each in heard} == {(each.name, each.revision) for each in reader.scan(SPACE)}
    assert 240 == len(heard)


@pytest.mark.parametrize("name", ["␀", "␀0", "a\0␀", r"\u0000", "\\\0", "ü"])
def test_texts_that_the_server_does_not_have(opened, name):
    """It has no NUL; what stands in its place is a text, too."""
    store, other = opened(), opened()
    record = put(store, name, 1, "value", group=name, owner=name)
    assert record == other.read(SPACE, name) == other.scan(SPACE, name, owner=name)[0]
    assert "value" == other.load(record, VALUE)
    store.watch(SPACE, name, 2)
    assert 2 == other.watchers(SPACE, name)


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_durable_outlives_the_server(another, opened, durable):
    """Of anything else the last moment may be lost, which is noticed: who has it stores it again."""
    store, lost = opened(another.url), []
    store.subscribe(SPACE, lambda record: None, lost.append)
    store.write([to("a", 1)], durable=True)
    another.lose_from_now_on()
    store.write([to("a", 2)], durable=durable)
    another.kill()
    another.start()

    assert (2 if durable else 1) == number_of(store)
    store.write([to("a", 3)])
    assert (not durable) == bool(lost)


def test_a_large_value_is_durable(another, opened):
    store = opened(another.url)
    store.write([to("a", 1, np.zeros(LARGE))])
    another.kill()
    another.start()
    assert LARGE == len(store.load(store.read(SPACE, "a"), VALUE))


def test_a_server_that_was_started_anew_is_no_error(another, opened):
    """Connections that are lost are made again; a change that was perhaps made is made once."""
    store = opened(another.url)
    store.write([addition("a")], durable=True)
    another.kill()
    another.start()
    store.write([addition("a")])
    assert 2 == number_of(store)


def test_a_process_has_three_connections(server, opened):
    """For statements, for its lease, and for word of changes."""
    there = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'panel-schedule'"
    eventually(lambda: [0] == server.all(there))
    store = opened()
    put(store, "a", 1, np.zeros(LARGE))
    assert [2] == server.all(there)
    store.listen()
    eventually(lambda: [3] == server.all(there))
    store.close()
    eventually(lambda: [0] == server.all(there))


def test_more_threads_than_connections_wait_for_each_other(server, opened):
    store = opened()
    errors = hammer(postgres_connections.MOST + 4, lambda number: store._ask("SELECT pg_sleep(0.01)"))
    assert ([], postgres_connections.MOST) == (errors, len(store._server._idle))


# ------------------------------------------------------------ who lives


def test_a_server_that_was_away_takes_nobody_for_dead(server, opened):
    """Nobody could tell it that he lives: until he has had the time for it."""
    store, other = opened(), opened()
    late = f"UPDATE \"{store._schema}\".owners SET until = until - interval '1 hour'"
    server.all(f"{late} WHERE owner = %s", other.me)
    assert [True, False] == [store.alive(owner) for owner in (store.me, other.me)]
    server.all(late)

    assert [True, True] == [store.alive(owner) for owner in (store.me, other.me)]
    put(other, "a", owner=other.me)
    assert [] == store._call("look", now="0")
    store._join()
    assert [True, True] == [store.alive(owner) for owner in (store.me, other.me)]
    server.all(f"{late} WHERE owner = %s", other.me)
    assert [[SPACE, "a"]] == [key for key, *_ in store._call("look", now="0")]


# ------------------------------------------------------------ parts


def test_a_part_stands_in_for_no_other_one(server, opened):
    """Its signature says whose it is, and which version."""
    store = opened(secret="s3cret")
    for name in "ab":
        put(store, name, 1, name, f"second {name}")
    parts = f'"{store._schema}".parts'
    old = server.all(f"SELECT data FROM {parts} WHERE name = 'a' AND part LIKE '%%0' AND %s", True)
    put(store, "a", 2, "new")
    for foreign in (f"(SELECT data FROM {parts} WHERE name = 'b' AND part LIKE '%%0')", "%s"):
        server.all(f"UPDATE {parts} SET data = {foreign} WHERE name = 'a'", *old[: foreign.count("%s")])
        with pytest.raises(ValueUnreadable):
            store.load(store.read(SPACE, "a"), VALUE)


@pytest.mark.parametrize("damaged", [b"", b"nonsense", b"2 3\n", b"1 2 - - - -\n", b"1 2 - - - - -\nnonsense"])
def test_a_damaged_part_cannot_be_read(server, opened, damaged):
    store = opened()
    record = put(store, "a", 1, "value")
    server.all(f'UPDATE "{store._schema}".parts SET data = %s', damaged)
    with pytest.raises(ValueUnreadable, match="Task 'a' cannot be read"):
        store.load(record, VALUE, what="Task 'a'")


@pytest.mark.parametrize("secret", ["", "s3cret"])
def test_another_machine_fetches_a_large_part(opened, tmp_path, monkeypatch, secret):
    """In pieces; here it is another directory for temporary files."""
    value = np.random.default_rng(0).integers(0, 256, 2_500_000, np.uint8)
    record = put(opened(secret=secret), "a", 1, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    statements = Statements(monkeypatch)
    assert np.array_equal(value, opened(secret=secret).load(record, VALUE))
    assert 5 + bool(secret) == statements.count  # the version, the part, three pieces; and their digests


# ------------------------------------------------------------ the schema


def test_many_processes_may_start_at_once(server, opened):
    """One makes the schema, the others wait."""
    assert [] == hammer(6, lambda number: opened(namespace="start"))
    assert 1 == len(server.all("SELECT version FROM panel_schedule_start.store"))


def test_each_namespace_has_a_schema(opened):
    """Whatever its name is; of one that is too long for the server the end counts, too."""
    names = ["a", "A", "ü:/@-.", 'a"b', "x" * 60, "x" * 61, "ü" * 60]
    assert len(names) == len({schema_of(name) for name in names})
    assert max(len(schema_of(name).encode()) for name in names) <= 63
    for number, name in enumerate(names):
        put(opened(namespace=name), "a", number)
    assert list(range(len(names))) == [number_of(opened(namespace=name)) for name in names]


def test_a_newer_schema_is_refused(server, opened):
    store = opened()
    server.all(f'UPDATE "{store._schema}".store SET version = 99')
    with pytest.raises(
        StoreError, match=r"newer panel-schedule \(version 99.*Upgrade panel-schedule, or name"
    ) as error:
        opened()
    one_line(error)


def test_what_an_earlier_release_has_made_gets_what_is_new(server, opened):
    """By who opens it next; whoever has it open goes on."""
    store = opened(kind=PostgresStore)
    well, failed = ended(1), ended(2, RunState.FAILED, traceback="in f")
    store.do(store.tasks.record("sales", well))
    schema = f'"{store.records._schema}"'
    server.all(f"DROP TABLE {schema}.failures")
    server.all(f"DROP FUNCTION {schema}.forget")
    late = opened(kind=PostgresStore)
    late.do(late.tasks.record("sales", failed))
    late.keep_history(timedelta(days=1))
    late.records.sweep(SystemClock().now())
    late.keep_history(None)
    assert [] == late.history("sales") == store.history("sales")
    store.do(store.tasks.record("sales", failed))
    assert [failed] == late.history("sales")


def test_who_may_not_make_a_schema_may_use_one(server, opened):
    """It was made for him, empty."""
    server.all("CREATE ROLE guest LOGIN")
    url = server.url.replace("owner@", "guest@")
    with pytest.raises(StoreError, match=r"permission denied for database.*Give that user the right") as error:
        opened(url, namespace="guests")
    one_line(error)
    server.all("CREATE SCHEMA panel_schedule_guests AUTHORIZATION guest")
    put(opened(url, namespace="guests"), "a")


def test_who_does_not_own_a_schema_is_told_what_its_owner_has_to_do(server, opened, monkeypatch):
    """For the rights to use it, and for what a newer release adds: both in one line, as a command ends with 1."""
    owned = opened(namespace="owned")
    server.all("CREATE ROLE plain LOGIN")
    url = server.url.replace("owner@", "plain@")

    def refused(*why: str) -> str:
        """The statements that are named."""
        with pytest.raises(StoreError) as error:
            opened(url, namespace="owned")
        one_line(error)
        assert [] == [each for each in why if each not in str(error.value)]
        return str(error.value).partition("run: ")[2]

    def works() -> None:
        store, heard = opened(url, namespace="owned"), threading.Event()
        store.subscribe(SPACE, lambda record: heard.set())
        store.listen()
        put(store, "small")
        put(store, "large", 1, np.zeros(LARGE))
        put(owned, "theirs")
        assert heard.wait(PATIENCE)
        assert LARGE == len(store.load(store.read(SPACE, "large"), VALUE))
        store.log(SPACE, "small")
        store.trim(SPACE, entries=0)
        store.sweep(SystemClock().now())
        store.close()

    server.all(refused("permission denied for schema", "the owner of its schema, owner,"))
    works()
    for lost in ("TABLE {}.failures", "FUNCTION {}.forget"):
        server.all(f"DROP {lost}".format(f'"{owned._schema}"'))
    grant = refused("only the owner, owner, can add that", "panel-schedule status --store URL")
    monkeypatch.setenv("PANEL_SCHEDULE_NAMESPACE", "owned")
    asked = [CliRunner().invoke(main, ["status", "--store", each]) for each in (url, server.url)]
    assert [1, 1] == [each.exit_code for each in asked]
    assert ["only the owner" in each.output for each in asked] == [True, False]
    server.all(grant)
    works()


@pytest.mark.parametrize("how", ["gone", "changed", "back", "emptied", "dropped"])
def test_a_loss_is_told(server, opened, how):
    """By the id, which is gone, or another one; or by the numbers, as an older dump has them."""
    store, lost = opened(), []

    def hear(since):
        store.read(SPACE, "a")
        lost.append(since)

    store.subscribe(SPACE, lambda record: None, hear)
    put(store, "a")
    before, schema = put(store, "a"), f'"{store._schema}"'
    match how:
        case "gone":
            server.all(f"UPDATE {schema}.store SET id = ''")
        case "changed":
            server.all(f"UPDATE {schema}.store SET id = 'another'")
        case "back":
            server.all(f"UPDATE {schema}.store SET revision = revision - 1")
        case "emptied":
            server.all(f"TRUNCATE {schema}.store, {schema}.records")
        case "dropped":
            server.all(f"DROP SCHEMA {schema} CASCADE")
    after = put(store, "a")
    assert [before.revision - 1 if how == "back" else 0] == lost
    assert how == "changed" or after.revision > before.revision
    put(store, "a")
    assert 1 == len(lost)


def test_what_was_ended_here_is_not_held_when_that_is_lost(server, opened):
    """It is as this process has left it; what it knows nothing of, and is said to have, anybody may take."""
    store = opened()
    store.subscribe(SPACE, lambda record: None)
    for name, owner in (("ended", store.me), ("held", store.me), ("unknown", None)):
        put(store, name, 1, "first", owner=owner)
    server.all(f'CREATE TABLE "{store._schema}".before AS TABLE "{store._schema}".records')
    put(store, "ended", 2, "first", "second")
    server.all(f"""
        TRUNCATE "{store._schema}".records;
        INSERT INTO "{store._schema}".records SELECT * FROM "{store._schema}".before;
        DELETE FROM "{store._schema}".parts WHERE name = 'ended' AND part LIKE '%%1';
        UPDATE "{store._schema}".records SET owner = '{store.me}' WHERE name = 'unknown';
        UPDATE "{store._schema}".store SET revision = revision - 1
    """)
    put(store, "another")

    ended, held, unknown = (store.read(SPACE, name) for name in ("ended", "held", "unknown"))
    assert (None, store.me, NOBODY) == (ended.owner, held.owner, unknown.owner)
    assert (2, "second") == (ended.state.number, store.load(ended, VALUE, 1))
    assert (1, "first") == (unknown.state.number, store.load(unknown, VALUE))


def test_what_is_stored_again_step_by_step_is_still_held(server, opened):
    """As a value without its claim, and then both."""
    store = opened()

    def again(since):
        put(store, "a")
        put(store, "a", owner=store.me)

    store.subscribe(SPACE, lambda record: None, again)
    put(store, "a", owner=store.me)
    server.all(f'DROP SCHEMA "{store._schema}" CASCADE')
    put(store, "another")
    assert store.me == store.read(SPACE, "a").owner


def test_what_another_thread_claims_while_it_is_filled_is_held(server, opened, monkeypatch):
    """Who was waiting for the server before anybody knew of the loss does not wait for that."""
    store = opened()

    def again(since):
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(store, "_fill", lambda: None)
            thread = threading.Thread(target=lambda: put(store, "a", owner=store.me))
            thread.start()
            thread.join(30)

    store.subscribe(SPACE, lambda record: None, again)
    put(store, "before")
    server.all(f'DROP SCHEMA "{store._schema}" CASCADE')
    put(store, "another")
    assert store.me == store.read(SPACE, "a").owner


def test_who_hears_late_what_was_before_his_claim_still_holds_that(opened):
    """Else he would let go of it when the store loses something, and what he does then would come to nothing."""
    store = opened()
    store.subscribe(SPACE, lambda record: None)
    put(store, "a")
    _, *late = store._call("changes", spaces=[SPACE], since="0", small=server_records.SMALL)
    put(store, "a", owner=store.me)
    store._take_in(late)
    store._let_go(0)
    assert store.me == store.read(SPACE, "a").owner


# ------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("user", "database", "why"),
    [
        ("locked:hidden", "postgres", "password authentication failed.*Correct user and password"),
        ("locked", "postgres", "no password supplied.*Correct user and password"),
        ("nobody", "postgres", 'role "nobody" does not exist.*Correct user and password'),
        ("owner", "nowhere", 'database "nowhere" does not exist.*Correct the database'),
        ("owner", "refused", "pg_hba.conf rejects connection.*Let the server's pg_hba.conf"),
        ("owner", "postgres?sslmode=require", "SSL.*Correct the certificates"),
        ("owner", "latin", "encoding LATIN1.*UTF8"),
    ],
)
def test_a_wrong_url_is_one_line(server, opened, user, database, why):
    if not server.all("SELECT 1 FROM pg_roles WHERE rolname = %s", "locked"):
        server.all("CREATE ROLE locked LOGIN PASSWORD 'right'")
        server.all("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    url = f"postgresql://{user}@127.0.0.1:{server.port}/{database}"
    with pytest.raises(StoreError, match=f"127.0.0.1.* cannot be used now: .*{why}") as error:
        opened(url)
    one_line(error)


def test_an_unreachable_server_is_one_line(opened):
    with pytest.raises(
        StoreError, match=r"postgresql://127.0.0.1:\d+/db cannot be used now.*refused.*Start the server"
    ) as error:
        opened(f"postgresql://user:hidden@127.0.0.1:{free_port()}/db")
    one_line(error)


def test_a_url_that_means_nothing_is_one_line(opened):
    with pytest.raises(ConfigError, match=r"names no PostgreSQL server.*nothing") as error:
        opened("postgresql://user:hidden@localhost/db?nothing=1")
    one_line(error)


def test_an_old_server_is_one_line(opened, monkeypatch):
    monkeypatch.setattr(postgres_connections, "_OLDEST", 99)
    with pytest.raises(StoreError, match=r"PostgreSQL \d+, which is older than 99. Name a newer server") as error:
        opened()
    one_line(error)


def test_a_missing_extra_names_its_command(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'panel-schedule\[postgres\]'") as error:
        opened()
    one_line(error)


def test_a_replica_is_one_line(server, opened):
    """It is read-only, as this database is for a moment."""
    store = opened()
    store._ask("SET default_transaction_read_only TO on")
    with pytest.raises(StoreError, match=r"read-only transaction\. Name the primary") as error:
        put(store, "a")
    one_line(error)


def test_a_lock_of_somebody_else_is_one_line(server, opened, monkeypatch):
    """Nothing is changed then, and nothing later; and an event loop does not wait for it."""
    monkeypatch.setattr(postgres_store, "PATIENCE", 1.0)
    store = opened()
    put(store, "a", 1)
    with psycopg.connect(server.url) as somebody:
        somebody.execute(f'LOCK TABLE "{store._schema}".store')
        with pytest.raises(StoreError, match=r"statement timeout.*does somebody lock") as error:
            put(store, "a", 2)
        one_line(error)
        with hurried(lambda: True), pytest.raises(StoreError, match=r"no answer in time. Is the server stopped"):
            put(store, "a", 3)
        with somebody.cursor() as cursor:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            eventually(lambda: cursor.execute(waiting).fetchone() == (0,))
    assert 1 == number_of(store)


def test_what_is_none_of_ours_is_one_line(server, opened):
    """Somebody else has written there, or a newer release."""
    store = opened()
    put(store, "a")
    server.all(f"UPDATE \"{store._schema}\".records SET state = 'nonsense'")
    for call in (lambda: store.read(SPACE, "a"), lambda: store.scan(SPACE)):
        with pytest.raises(StoreError, match="namespace") as error:
            call()
        one_line(error)


# ------------------------------------------------------------ how it is named


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "socket"])
def test_the_url_makes_the_store(server, scheme):
    config = Config({})
    config.store = server.url.replace("postgresql", "postgres") if scheme == "postgres" else server.url
    if scheme == "socket":
        config.store = f"postgresql://owner@/postgres?host={server.folder}&port={server.port}"
    config.namespace, config.secret, config.history_limit = f"runtime-{scheme}", "s3cret", 7
    runtime = Runtime(config)
    try:
        store = runtime.service.store
        assert (PostgresStore, True) == (type(store), store.blocking)
        store.values.publish(USER, "rates", 1, now=START)
        assert 1 == store.values.entry(USER, "rates").value
    finally:
        runtime.service.stop(0)


@pytest.mark.parametrize(
    "url", ["postgresql://host:port/db", "postgresql://u:hidden@host/a/b", "postgres://one:5432,two:x/db"]
)
def test_a_url_that_names_no_server_is_refused(url):
    with pytest.raises(ConfigError, match=r"ps\.config\.store.*postgresql://user:password@host") as error:
        Config({}).store = url
    one_line(error)


@pytest.mark.parametrize(
    "url", ["postgresql:///db", "postgresql://", "postgresql://u:p@one:5432,two/db?target_session_attrs=read-write"]
)
def test_what_libpq_knows_is_accepted(url):
    config = Config({})
    config.store = url
    assert url == config.store


def test_a_store_on_another_host_without_a_secret_warns(caplog, monkeypatch):
    """Loudly, and once."""
    monkeypatch.setattr(postgres_store, "PostgresRecords", MagicMock())
    hosts = {"10.0.0.1": 1, "": 0, "u@127.0.0.1:5432": 0, "localhost": 0, "localhost,10.0.0.1": 1, "%2Frun%2Fpg": 0}
    for host, warnings in hosts.items():
        for secret in ("", "s3cret"):
            caplog.clear()
            PostgresStore(f"postgresql://{host}/db", SystemClock(), secret=secret)
            assert (0 if secret else warnings) == caplog.text.count("ps.config.secret is not set")


def test_a_server_without_its_store_ends_with_one_line(serve):
    """Exit 1, under `panel serve --setup`."""
    tasks = "import panel_schedule as ps\n@ps.schedule(period='1h')\ndef sales():\n    return 1\n"
    env = {"PANEL_SCHEDULE_STORE": f"postgresql://127.0.0.1:{free_port()}/db"}
    files = {"app.py": "import panel as pn\npn.Row().servable()\n", "tasks.py": tasks}
    server = serve("app.py --setup tasks.py", files, env=env, wait=False)
    assert 1 == server.process.wait(PATIENCE)
    assert 1 == server.output().count("Start the server, or correct host and port")
