"""Records on a Redis server that the tests start."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from functools import partial
from unittest.mock import MagicMock

import numpy as np
import pytest

from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.coordination.record import Record
from panel_schedule.coordination.tasks import USER
from panel_schedule.errors import ConfigError, StoreError, ValueRefused, ValueUnreadable
from panel_schedule.runtime import Runtime
from panel_schedule.serialize.codec import encode
from panel_schedule.stores import redis as redis_store
from panel_schedule.stores.hurry import hurried
from panel_schedule.stores.records import Change, Tell
from panel_schedule.stores.redis import RedisStore
from panel_schedule.stores.redis_blobs import UNNAMED
from panel_schedule.testing import RecordStoreContract, SharedRecordStoreContract, StoreContract
from panel_schedule.testing.contracts.records import LARGE, SPACE, VALUE, ContractState, Heard
from panel_schedule.testing.contracts.tools import START
from redis_server import Proxy, RedisServer, free_port

redis = pytest.importorskip("redis", reason="needs the package redis")

PATIENCE = 20.0


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


# ------------------------------------------------------------ a change


def to(name, number=0, *values, **more):
    """The record has this number and these values from now on."""
    parts = {(VALUE, place): value for place, value in enumerate(values)}
    record = Record(SPACE, name, ContractState(number), parts={VALUE: len(parts)} if parts else {}, **more)
    return Change(SPACE, name, lambda old, revision: record, parts, f"Record {name!r}")


def addition(name, calls=None):
    def apply(old, revision):
        if calls is not None:
            calls.append(old and old.state.number)
        return Record(SPACE, name, ContractState((old.state.number if old else 0) + 1))

    return Change(SPACE, name, apply)


def put(store, *args, tell=Tell.NOW, **more):
    return store.write([to(*args, **more)], tell=tell)[0].record


def number_of(store, name="a"):
    return store.read(SPACE, name).state.number


def eventually(condition):
    """What another thread or the server does before long."""
    pause, left = threading.Event(), PATIENCE
    while not condition():
        pause.wait(0.01)
        left -= 0.01
        assert left > 0


def trips(server, call):
    """How many round trips it takes."""
    before = server.calls()
    call()
    return server.calls() - before


def test_a_change_is_one_round_trip(server, opened):
    """From the second on: what this process left is what it takes the record to be. A refusal is one, too."""
    store = opened()
    put(store, "a", 1, "value")
    wrong = Change(SPACE, "a", lambda old, revision: redis_store.Refusal.HELD)

    assert [1, 1, 1, 1] == [
        trips(server, lambda: store.write([addition("a")])),
        trips(server, lambda: put(store, "a", 2, np.zeros(10))),
        trips(server, lambda: store.write([addition("a"), to("a", 3)], together=True)),
        trips(server, lambda: store.write([wrong])),
    ]


def test_a_change_is_made_anew_when_another_process_was_quicker(server, opened):
    """Of what the record is by then; that costs a second round trip, and no third."""
    store, other, calls = opened(), opened(), []
    store.write([addition("a")])
    other.write([addition("a")])

    assert 2 == trips(server, lambda: store.write([addition("a", calls)]))
    assert ([1, 2], 3) == (calls, number_of(other))


def test_a_refusal_is_never_of_yesterday(opened):
    """Nor is an error: it is true of what the record is, and not of what this process has seen last."""
    store, other = opened(), opened()

    def claim(me, old, revision):
        if old is not None and old.owner:
            raise LookupError("held")
        return Record(SPACE, "a", ContractState(), owner=me)

    put(store, "a", owner="me")
    put(other, "a")
    assert store.write([Change(SPACE, "a", partial(claim, "me"))])[0].record is not None
    put(other, "a", owner="other")
    with pytest.raises(LookupError):
        store.write([Change(SPACE, "a", partial(claim, "me"))])


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("changes", [1, 2])
def test_a_change_whose_reply_is_lost_is_made_once(proxy, opened, changes):
    """It is sent again, and the server sees that it has made it."""
    store, other = opened(proxy.url), opened()
    store.write([addition("a"), addition("b")])
    proxy.cut = 1

    results = store.write([addition("a"), addition("b")][:changes])

    assert (1, 2) == (proxy.cuts, number_of(other))
    assert [other.read(SPACE, name) for name in "ab"][:changes] == [result.record for result in results]
    store.write([addition("a")])
    assert 3 == number_of(other)


def test_a_change_that_is_tried_again_is_made_once(server, proxy, opened, monkeypatch):
    """Also when nobody could say whether it was made: its parts are there, and what comes of it."""
    store, other = opened(proxy.url), opened()
    put(store, "a")
    value = np.zeros(LARGE)
    changes = [addition("b"), to("a", 5, value)]
    send = store._send

    def send_in_vain(step):
        proxy.cut = 3
        return send(step)

    monkeypatch.setattr(store, "_send", send_in_vain)
    with pytest.raises(StoreError, match="cannot be used now"):
        store.write(changes)
    monkeypatch.setattr(store, "_send", send)
    made = other.read(SPACE, "b")
    assert (1, 5) == (made.state.number, number_of(other))
    proxy.cut = 0

    results = store.write(changes)

    assert [made, other.read(SPACE, "a")] == [result.record for result in results]
    assert (LARGE, 1) == (len(other.load(results[1].record, VALUE)), len(blobs(server, store)))
    assert 2 == store.write(changes)[0].record.state.number


# ------------------------------------------------------------ who lives


def test_an_owner_lives_as_long_as_it_says_so(server, opened, monkeypatch):
    """On a thread of its own, on the server's clock."""
    monkeypatch.setattr(redis_store, "LEASE", 0.3)
    store, other = opened(), opened()

    def until():
        return server.client.zscore(f"{store._prefix}owners", store.me)

    first = until()
    eventually(lambda: until() > first + 0.3e6)
    assert other.alive(store.me)


KILLED = """
import sys
from panel_schedule.clock import SystemClock
from panel_schedule.coordination.record import Record
from panel_schedule.stores import redis
from panel_schedule.stores.records import Change
from panel_schedule.testing.contracts.records import SPACE, ContractState

redis.LEASE = float(sys.argv[3])
store = redis.RedisRecords(sys.argv[1], SystemClock(), namespace=sys.argv[2])
store.write([Change(SPACE, "a", lambda old, revision: Record(SPACE, "a", ContractState(), owner=store.me))])
print(store.me, flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("looks_often")
def test_what_a_killed_process_has_left_is_told(server, opened, monkeypatch):
    """Within its lease."""
    monkeypatch.setattr(redis_store, "LEASE", 0.5)
    store, heard = opened(), Heard()
    command = [sys.executable, "-c", KILLED, server.url, store._namespace, "0.5"]
    killed = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    owner = killed.stdout.readline().strip()
    assert store.alive(owner)
    store.subscribe(SPACE, heard)
    store.listen()
    killed.kill()
    killed.communicate()

    eventually(lambda: not store.alive(owner))
    heard.records.clear()
    assert heard.of(store.read(SPACE, "a"))
    assert store.alive(store.me)
    put(store, "a")
    eventually(lambda: server.client.zscore(f"{store._prefix}owners", owner) is None)


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


@pytest.fixture
def looks_never(monkeypatch):
    """So that only messages tell anything."""
    monkeypatch.setattr(redis_store, "LOOK", 3600.0)


def listening(store):
    """A subscriber, once it listens."""
    heard = Heard()
    store.subscribe(SPACE, heard)
    store.listen()
    channel = f"{store._prefix}bell"
    eventually(lambda: store._client.pubsub_numsub(channel)[0][1])
    return heard


@pytest.mark.usefixtures("looks_never")
@pytest.mark.parametrize("tell", [Tell.NOW, Tell.SOON])
def test_a_message_wakes_who_listens(opened, tell):
    store, other = opened(), opened()
    heard = listening(store)
    assert heard.of(put(other, "a", tell=tell))


@pytest.mark.usefixtures("looks_never")
def test_what_can_wait_comes_with_the_next_change(opened):
    """Nobody is woken for it."""
    store, other = opened(), opened()
    heard = listening(store)
    later = put(other, "later", tell=Tell.LATER)
    assert heard.of(put(other, "now"))
    assert heard.of(later)


@pytest.mark.usefixtures("looks_never")
def test_after_each_reconnect_it_is_looked(server, opened):
    """What was changed meanwhile woke nobody."""
    store, other = opened(), opened()
    heard = listening(store)
    for number in range(3):
        missed = put(other, "a", number, tell=Tell.LATER)
        server.client.client_kill_filter(_type="pubsub")
        assert heard.of(missed)


@pytest.mark.usefixtures("looks_often")
def test_what_cannot_be_taken_in_now_is_told_again(opened):
    """And holds up nothing else."""
    store, other, failing = opened(), opened(), [True, True]

    def changed(record):
        if failing:
            failing.pop()
            raise StoreError("Not now.")

    store.subscribe(SPACE, changed)
    heard = listening(store)
    record = put(other, "a")
    eventually(lambda: not failing)
    assert heard.of(record)


# ------------------------------------------------------------ parts


class Unpickled:
    """Whoever reads it is told on."""

    count = 0

    def __reduce__(self):
        return Unpickled.read, ()

    @staticmethod
    def read():
        Unpickled.count += 1
        return "read"


@pytest.mark.parametrize("size", [1, LARGE])
@pytest.mark.parametrize("theirs", ["", "another"])
def test_what_was_not_signed_with_the_secret_is_never_unpickled(opened, caplog, size, theirs):
    """It is unreadable, which is logged once; what was signed is read by all who have the secret."""
    ours, other, foreign = opened(secret="s3cret"), opened(secret="s3cret"), opened(secret=theirs)
    for name in "ab":
        put(foreign, name, 1, [Unpickled(), b"x" * size])
    Unpickled.count = 0
    with caplog.at_level(logging.ERROR):
        for name in "ab":
            with pytest.raises(ValueUnreadable, match=r"value of contract .*not signed with the secret"):
                ours.load(ours.read(SPACE, name), VALUE)
    assert (0, 1) == (Unpickled.count, caplog.text.count("ps.config.secret"))

    put(ours, "a", 1, [Unpickled(), b"x" * size])
    Unpickled.count = 0
    assert "read" == other.load(other.read(SPACE, "a"), VALUE)[0]
    assert 1 == Unpickled.count


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


def test_a_value_without_signature_is_computed_again(opened):
    """The layer above takes it for none."""
    foreign, ours = opened(kind=RedisStore), opened(kind=RedisStore, secret="s3cret")
    foreign.values.publish(USER, "rates", 1, now=START)
    assert ours.values.entry(USER, "rates") is None
    ours.values.publish(USER, "rates", 2, now=START)
    assert 2 == ours.values.entry(USER, "rates").value


def test_a_value_that_is_too_large_is_refused_by_name(server, opened):
    """It changes nothing."""
    store = opened(max_value_bytes=1_000_000)
    kept = put(store, "a", 1, "old")
    with pytest.raises(
        ValueRefused, match=r"Record 'a': the value has 2.0 MB, and ps.config.max_value_bytes is 1.0 MB"
    ):
        put(store, "a", 2, b"x" * 2_000_000)
    assert ([kept], "old", []) == (store.scan(SPACE), store.load(kept, VALUE), blobs(server, store))


def blobs(server, store):
    return list(server.client.scan_iter(f"{store._prefix}blob:*"))


def test_a_large_part_goes_with_its_record(server, opened):
    """Nothing stays of one that was replaced, deleted, trimmed, swept, refused, or never named."""
    store, large = opened(), np.zeros(LARGE)
    for gone in (
        lambda: put(store, "a", 1, "small"),
        lambda: put(store, "a"),
        lambda: store.write([Change(SPACE, "a", lambda old, revision: None)]),
        lambda: store.trim(SPACE, entries=0),
        lambda: store.sweep(START),
    ):
        put(store, "a", 1, large, expires_at=START)
        assert 1 == len(blobs(server, store))
        assert -1 == server.client.ttl(blobs(server, store)[0])
        gone()
        assert [] == blobs(server, store)
    refusing = to("a", 1, large)._replace(apply=lambda old, revision: redis_store.Refusal.HELD)
    store.write([refusing])
    store.write([to("b"), refusing], together=True)
    store.write([to("a", 1, large), to("a", 2, "small")])
    assert [] == blobs(server, store)


def test_a_large_part_that_nobody_came_to_name_expires(server, opened):
    """Whoever was to do so has died."""
    store = opened()
    store._blobs.send("stamp.1", encode(np.zeros(LARGE), "A value"))
    [blob] = blobs(server, store)
    assert 0 < server.client.ttl(blob) <= UNNAMED


# ------------------------------------------------------------ namespaces


def test_namespaces_are_apart(opened):
    one, other = opened(), opened(namespace="another")
    put(one, "a", 1)
    assert (None, []) == (other.read(SPACE, "a"), other.scan(SPACE))


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


def one_line(error):
    """What is said of it."""
    text = str(error.value)
    assert "\n" not in text
    assert "hidden" not in text
    return text


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
        with pytest.raises(StoreError, match=r"Raise the server's maxmemory") as error:
            put(store, "a", 2, value)
        one_line(error)
    assert ([kept], "old") == (store.scan(SPACE), store.load(kept, VALUE))
    server.client.config_set("maxmemory", "0")
    assert put(store, "a", 2, "new").revision > kept.revision


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


def calls_of(store, record):
    """Each method once."""
    return [
        lambda: store.read(SPACE, "a"),
        lambda: store.scan(SPACE),
        lambda: put(store, "a", 5, np.zeros(LARGE)),
        lambda: store.write([addition("a")]),
        lambda: store.load(record, VALUE),
        lambda: store.source(record, VALUE),
        lambda: store.log(SPACE, "a"),
        lambda: store.alive(store.me),
        lambda: store.use(SPACE, ["a"], START),
        lambda: store.trim(SPACE),
        lambda: store.watch(SPACE, "a", 1),
        lambda: store.watchers(SPACE, "a"),
        lambda: store.sweep(START),
    ]


def test_every_call_of_a_store_whose_server_is_gone_is_a_store_error(another, opened):
    """Nothing else leaks; and when the server is back, with all it had, everything goes on by itself."""
    server = another("--appendonly", "yes", "--appendfsync", "always")
    store, lost, heard = opened(server.url), [], Heard()
    store.subscribe(SPACE, heard, lambda: lost.append(1))
    store.listen()
    record = put(store, "b", 1, np.zeros(LARGE))
    server.kill()
    for call in calls_of(store, record):
        with pytest.raises(StoreError, match="Start the server") as error:
            call()
        one_line(error)

    server.start()

    assert record == store.read(SPACE, "b")
    for call in calls_of(store, record):
        call()
    assert heard.of(store.read(SPACE, "a"))
    assert [] == lost


def test_every_call_of_a_closed_store_is_a_store_error(opened):
    store = opened()
    record = put(store, "b", 1, "value")
    store.close()
    for call in calls_of(store, record):
        with pytest.raises(StoreError, match="is closed"):
            call()


def test_a_server_that_stands_still_holds_no_event_loop(another, opened, monkeypatch):
    """Others wait for it, for a while."""
    monkeypatch.setattr(redis_store, "PATIENCE", 0.5)
    server = another()
    store = opened(server.url)
    put(store, "a")
    server.process.send_signal(signal.SIGSTOP)
    with hurried(lambda: True), pytest.raises(StoreError, match="Is the server stopped"):
        store.read(SPACE, "a")
    with pytest.raises(StoreError, match="Is the server stopped"):
        store.read(SPACE, "a")
    server.process.send_signal(signal.SIGCONT)
    assert 0 == number_of(store)


# ------------------------------------------------------------ a store that has lost something


@pytest.mark.usefixtures("looks_often")
def test_a_store_that_came_back_empty_gets_what_the_processes_have(another, opened):
    """No version goes back, and no number: a late write of before is not taken for one of now."""
    server = another()
    stores = [opened(server.url, RedisStore) for _ in range(2)]
    for store in stores:
        store.listen()
    for _ in range(3):
        entry = stores[0].values.publish(USER, "rates", {"EUR": 1}, now=START)
    eventually(lambda: stores[1].values.known(USER, "rates") == entry)
    before = stores[0].records.read(USER, "rates")
    server.kill()
    server.start()

    eventually(lambda: stores[0].records.read(USER, "rates") is not None)
    after = stores[0].records.read(USER, "rates")
    assert after.revision > before.revision
    assert (3, 3) == (entry.version, after.state.version)
    assert [4, 5] == [store.values.publish(USER, "rates", {}, now=START).version for store in stores]
    assert all(store.records.alive(other.records.me) for store in stores for other in stores)


@pytest.mark.parametrize("how", ["gone", "changed", "back"])
def test_a_loss_is_told(server, opened, how):
    """By the id, which is gone, or another one; or by the numbers, as a replica has them that lagged behind."""
    store, lost = opened(), []
    store.subscribe(SPACE, lambda record: None, lambda: lost.append(store.read(SPACE, "a")))
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
    assert 1 == len(lost)
    assert how == "changed" or after.revision > before.revision
    put(store, "a")
    assert 1 == len(lost)


def test_who_follows_what_is_known_again(server, opened):
    """When the store has lost it, or when this process was taken for dead."""
    store, other = opened(), opened()
    store.watch(SPACE, "a", 3)
    for lose in (server.client.flushdb, lambda: server.client.zadd(f"{store._prefix}owners", {store.me: 0})):
        lose()
        assert 0 == other.watchers(SPACE, "a")
        store._join()
        assert 3 == other.watchers(SPACE, "a")


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
    with pytest.raises(ConfigError, match=r"'auto'.*'memory://'.*'file:.*'redis://.*'rediss://.*'unix://"):
        Config({}).store = "postgres://host"


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
