"""Records on a Redis server that the tests start."""

from __future__ import annotations

import sys
import threading
from unittest.mock import MagicMock

import numpy as np
import pytest

from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.coordination.tasks import USER
from panel_schedule.errors import ConfigError, StoreError, ValueUnreadable
from panel_schedule.runtime import Runtime
from panel_schedule.stores import redis as redis_store
from panel_schedule.stores import server_records
from panel_schedule.stores.redis import RedisStore
from panel_schedule.stores.server_blobs import UNNAMED
from panel_schedule.testing import RecordStoreContract, SharedRecordStoreContract, StoreContract
from panel_schedule.testing.contracts.records import LARGE, SPACE, VALUE
from panel_schedule.testing.contracts.tools import START
from redis_server import RedisServer, free_port
from server_store import PATIENCE, ServerRecordsTests, eventually, one_line, put

redis = pytest.importorskip("redis", reason="needs the package redis")


@pytest.fixture
def server(redis_server) -> RedisServer:
    return redis_server


@pytest.fixture
def another(another_redis):
    return another_redis


@pytest.fixture
def opened(open_redis):
    return open_redis


@pytest.fixture
def looks_often(monkeypatch):
    """Nothing wakes a process that has changed something itself."""
    monkeypatch.setattr(server_records, "LOOK", 0.02)


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
        threads = set(threading.enumerate())
        store = opened(kind=RedisStore, server="server", history_limit=self.history_limit)
        store.listen()
        yield store
        store.close()
        assert set(threading.enumerate()) <= threads


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


class TestRedisServer(ServerRecordsTests):
    store = RedisStore

    @pytest.fixture
    def mortal(self, another):
        return another("--appendonly", "yes", "--appendfsync", "always")

    def calls(self, server):
        return server.calls()

    def until(self, server, owner, store):
        micros = server.client.zscore(f"{store._prefix}owners", owner)
        return micros and micros / 1e6

    def listeners(self, server, store):
        return server.client.pubsub_numsub(f"{store._prefix}bell")[0][1]

    def cut(self, server):
        server.client.client_kill_filter(_type="pubsub")

    def blobs(self, server, store):
        there = list(server.client.scan_iter(f"{store._prefix}blob:*"))
        return there, [blob for blob in there if 0 < server.client.ttl(blob) <= UNNAMED]

    def empty(self, server, store):
        server.client.flushdb()

    def expire(self, server, store):
        server.client.zincrby(f"{store._prefix}owners", -3600e6, store.me)

    def forget(self, server, store):
        server.client.zadd(f"{store._prefix}owners", {store.me: 0})


# ------------------------------------------------------------ what is told


def test_a_small_value_comes_with_the_word_of_it(opened, monkeypatch):
    """So that one call of each process is enough, however many values are new; a large one is asked for."""
    store, other = opened(kind=RedisStore), opened(kind=RedisStore)
    asked, heard = [], threading.Semaphore(0)
    part = store.records._part
    monkeypatch.setattr(store.records, "_part", lambda *which: asked.append(which) or part(*which))
    store.listen()
    store.values.subscribe(lambda *_: heard.release())
    eventually(lambda: store.records._client.pubsub_numsub(f"{store.records._prefix}bell")[0][1])

    def told(value):
        asked.clear()
        other.values.publish(USER, "rates", value, now=START)
        assert heard.acquire(timeout=PATIENCE)
        return store.values.entry(USER, "rates").value, len(asked)

    assert [("small", 0), ("newer", 0), ("x" * 5000, 1)] == [told(each) for each in ("small", "newer", "x" * 5000)]


# ------------------------------------------------------------ who lives


def test_a_server_that_was_away_takes_nobody_for_dead(server, opened):
    """Nobody could tell it that he lives: until he has had the time for it."""
    store, other = opened(), opened()
    prefix = store._prefix
    for owner in (store.me, other.me):
        server.client.zincrby(f"{prefix}owners", -3600e6, owner)
    assert [False, False] == [store.alive(owner) for owner in (store.me, other.me)]
    server.client.incrby(f"{prefix}heard", -3600 * 10**6)

    assert [True, True] == [store.alive(owner) for owner in (store.me, other.me)]
    put(other, "a", owner=other.me)
    assert [] == store._call("look", now="0")
    store._join()
    assert [True, True] == [store.alive(owner) for owner in (store.me, other.me)]
    server.client.zincrby(f"{prefix}owners", -3600e6, other.me)
    assert [b"contract\0a"] == [key for key, *_ in store._call("look", now="0")]


def test_who_claims_an_answer_asks_about_its_owner_in_between(server, opened, monkeypatch):
    """A change is a pure function, which waits for no network; the claim of a dead one counts as taken over."""
    gone, store = opened(kind=RedisStore), opened(kind=RedisStore)
    claimed = {"known": 0, "basis": (), "now": START}
    assert gone.cache.claim("f", "key", "f()", **claimed)[0]
    write, alive, amid = store.records.write, store.records.alive, []

    def write_(*args, **more):
        amid.append(1)
        done = write(*args, **more)
        amid.pop()
        return done

    def alive_(owner):
        assert [] == amid
        return alive(owner)

    monkeypatch.setattr(store.records, "write", write_)
    monkeypatch.setattr(store.records, "alive", alive_)
    mine, row = store.cache.claim("f", "key", "f()", **claimed)
    assert (False, True) == (mine, row.held)
    gone.records._closing.set()
    server.client.zadd(f"{store.records._prefix}owners", {gone.records.me: 0})
    mine, row = store.cache.claim("f", "key", "f()", **claimed)
    assert (True, True, 1) == (mine, row.mine, row.takeovers)


# ------------------------------------------------------------ who hears what


# ------------------------------------------------------------ parts


def test_a_part_stands_in_for_no_other_one(server, opened):
    """Its signature says whose it is."""
    store = opened(secret="s3cret")
    for name in "ab":
        put(store, name, 1, name, f"second {name}")
    parts = {name: f"{store._prefix}parts:{SPACE}\0{name}" for name in "ab"}
    first, second = (server.client.hget(parts["b"], f"{VALUE}\0{number}") for number in (0, 1))
    for foreign in (first.replace(b" ", b" ", 1), second):
        server.client.hset(parts["a"], f"{VALUE}\0{0}", foreign)
        with pytest.raises((ValueUnreadable, KeyError)):
            store.load(store.read(SPACE, "a")._replace(revision=2**60), VALUE)
    server.client.hset(parts["b"], f"{VALUE}\0{0}", second)
    with pytest.raises(ValueUnreadable):
        store.load(store.read(SPACE, "b"), VALUE)


@pytest.mark.parametrize("damaged", [b"", b"nonsense", b"1 2 3\n", b"1 2 - \nnonsense", b"1 2 - gone\n"])
def test_a_damaged_part_cannot_be_read(server, opened, damaged):
    store = opened()
    record = put(store, "a", 1, "value")
    server.client.hset(f"{store._prefix}parts:{SPACE}\0a", f"{VALUE}\0{0}", damaged)
    with pytest.raises(ValueUnreadable, match="Task 'a' cannot be read"):
        store.load(record, VALUE, what="Task 'a'")


# ------------------------------------------------------------ namespaces


def everything(store):
    """All that leaves a key."""
    record = put(store, "a", 1, np.zeros(LARGE), expires_at=START, group="ü")
    put(store, "b", 1, "small", owner=store.me)
    store.watch(SPACE, "a", 1)
    store.use(SPACE, ["a"], START)
    store.trim(SPACE, "ü", entries=1)
    assert (LARGE, ["a", "b"]) == (len(store.load(record, VALUE)), [each.name for each in store.scan(SPACE)])
    store.sweep(START)
    return record


def test_all_keys_are_of_one_slot(another, opened):
    """So a cluster has them on one server, and scripts may use them there; here is one that is a cluster alone."""
    server = another("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    prefix = "panel-schedule:{mine}:"
    slot = redis.crc.key_slot(prefix.encode())
    server.client.execute_command("CLUSTER", "ADDSLOTS", slot)
    eventually(lambda: b"cluster_state:ok" in server.client.execute_command("CLUSTER", "INFO"))

    everything(opened(server.url, namespace="mine"))

    keys = server.client.keys()
    assert [] == [key for key in keys if not key.startswith(prefix.encode()) or redis.crc.key_slot(key) != slot]
    assert len(keys) > 5


# ------------------------------------------------------------ what goes wrong


def test_an_unreachable_server_is_one_line(opened):
    with pytest.raises(
        StoreError, match=r"redis://127.0.0.1:\d+ cannot be used now.*refused.*Start the server"
    ) as error:
        opened(f"redis://user:hidden@127.0.0.1:{free_port()}")
    one_line(error)


def test_a_wrong_password_is_one_line(another, opened):
    server = another("--requirepass", "right")
    for url in (f"redis://:hidden@127.0.0.1:{server.port}", server.url, f"{server.url}?password=hidden"):
        with pytest.raises(StoreError, match=r"cannot be used now.*Correct user and password") as error:
            opened(url)
        one_line(error)
    server.client = redis.Redis(port=server.port, password="right")
    assert opened(f"redis://:right@127.0.0.1:{server.port}").scan(SPACE) == []


def test_a_wrong_database_is_one_line(server, opened):
    with pytest.raises(
        StoreError, match=rf"{server.url}/99 cannot be used.*Correct the number of the database"
    ) as error:
        opened(f"{server.url}/99")
    one_line(error)


def test_a_missing_extra_names_its_command(server, opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"pip install 'panel-schedule\[redis\]'") as error:
        opened(server.url)
    one_line(error)


def test_a_full_server_is_one_line(another, opened):
    """Nothing is changed; it can still be read, and what is there goes on being served."""
    server = another()
    store = opened(server.url)
    kept = put(store, "a", 1, "old")
    server.client.config_set("maxmemory", "1")
    for value in ("small", np.zeros(LARGE)):
        with pytest.raises(StoreError, match=r"> 'maxmemory'\. Raise the server's maxmemory") as error:
            put(store, "a", 2, value)
        assert "script" not in one_line(error)
    assert ([kept], "old") == (store.scan(SPACE), store.load(kept, VALUE))
    server.client.config_set("maxmemory", "0")
    assert put(store, "a", 2, "new").revision > kept.revision


def test_a_line_does_not_say_where_in_the_script_it_is():
    """As servers before Redis 7 do: it is the same trouble wherever they have noticed it."""
    why = "OOM command not allowed when used memory > 'maxmemory'"
    older = redis.ResponseError(f"Error running script (call to f_6b1b): @user_script:1: @user_script: 1: -{why}.")
    assert why == redis_store._why(older)


def test_what_is_none_of_ours_is_one_line(server, opened):
    """Somebody else uses the same keys, or a newer release."""
    store = opened()
    put(store, "a")
    server.client.hset(f"{store._prefix}record:{SPACE}\0a", "text", "nonsense")
    server.client.set(f"{store._prefix}record:{SPACE}\0b", "nonsense")
    for call in (
        lambda: store.read(SPACE, "a"),
        lambda: store.read(SPACE, "b"),
        lambda: store.scan(SPACE),
        lambda: put(store, "b"),
    ):
        with pytest.raises(StoreError, match="namespace") as error:
            call()
        one_line(error)


# ------------------------------------------------------------ a store that has lost something


@pytest.mark.parametrize("how", ["gone", "changed", "back"])
def test_a_loss_is_told(server, opened, how):
    """By the id, which is gone, or another one; or by the numbers, as a replica has them that lagged behind."""
    store, lost = opened(), []

    def hear(since):
        store.read(SPACE, "a")
        lost.append(since)

    store.subscribe(SPACE, lambda record: None, hear)
    put(store, "a")
    before = put(store, "a")
    id, revision = f"{store._prefix}id", f"{store._prefix}revision"
    match how:
        case "gone":
            server.client.flushdb()
        case "changed":
            server.client.set(id, "another")
        case "back":
            server.client.decr(revision)
    after = put(store, "a")
    assert [before.revision - 1 if how == "back" else 0] == lost
    assert how == "changed" or after.revision > before.revision
    put(store, "a")
    assert 1 == len(lost)


# ------------------------------------------------------------ how it is named


@pytest.mark.parametrize("scheme", ["redis", "unix"])
def test_the_url_makes_the_store(server, scheme):
    config = Config({})
    config.store = server.url if scheme == "redis" else f"unix://{server.folder / 'sock'}?db=1"
    config.namespace, config.secret, config.history_limit = f"runtime-{scheme}", "s3cret", 7
    runtime = Runtime(config)
    try:
        store = runtime.service.store
        assert (RedisStore, True) == (type(store), store.blocking)
        store.values.publish(USER, "rates", 1, now=START)
        assert 1 == store.values.entry(USER, "rates").value
    finally:
        runtime.service.stop(0)


@pytest.mark.parametrize(
    "url", ["redis://", "redis://host:port", "redis://u:hidden@host/zero", "unix://", "rediss:///1"]
)
def test_a_url_that_names_no_server_is_refused(url):
    with pytest.raises(ConfigError, match=r"ps\.config\.store") as error:
        Config({}).store = url
    one_line(error)


def test_what_is_accepted_is_listed():
    with pytest.raises(
        ConfigError, match=r"'auto'.*'memory://'.*'file:.*'redis://.*'rediss://.*'unix://.*'postgresql://"
    ):
        Config({}).store = "mysql://host"


@pytest.mark.parametrize("name", ["", "a b", "{a}", "a\0"])
def test_a_namespace_is_a_name(name):
    with pytest.raises(ConfigError, match="namespace"):
        Config({}).namespace = name


def test_a_store_on_another_host_without_a_secret_warns(server, caplog, monkeypatch):
    """Loudly, and once."""
    monkeypatch.setattr(redis_store, "RedisRecords", MagicMock())
    for secret, host, warnings in (("", "10.0.0.1", 1), ("s3cret", "10.0.0.1", 0), ("", "127.0.0.1", 0)):
        caplog.clear()
        RedisStore(f"redis://{host}", SystemClock(), secret=secret)
        assert warnings == caplog.text.count("ps.config.secret is not set")


def test_a_server_without_its_store_ends_with_one_line(serve):
    """Exit 1, under `panel serve --setup`."""
    tasks = "import panel_schedule as ps\n@ps.schedule(period='1h')\ndef sales():\n    return 1\n"
    env = {"PANEL_SCHEDULE_STORE": f"redis://127.0.0.1:{free_port()}"}
    files = {"app.py": "import panel as pn\npn.Row().servable()\n", "tasks.py": tasks}
    server = serve("app.py --setup tasks.py", files, env=env, wait=False)
    assert 1 == server.process.wait(PATIENCE)
    assert 1 == server.output().count("Start the server, or correct host and port")
