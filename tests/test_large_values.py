"""Large values on a Redis server: in pieces, compressed, and once for all processes of a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from core import messages
from panel_schedule.clock import SystemClock
from panel_schedule.coordination.record import Record
from panel_schedule.coordination.tasks import USER
from panel_schedule.errors import StoreError, ValueUnreadable
from panel_schedule.stores import local_files, packing, server_blobs, server_records
from panel_schedule.stores.file.locks import LockFile
from panel_schedule.stores.hurry import hurried
from panel_schedule.stores.local_files import LocalFiles
from panel_schedule.stores.records import Change
from panel_schedule.stores.redis import RedisStore
from panel_schedule.testing.contracts.records import SPACE, VALUE, ContractState
from panel_schedule.testing.contracts.tools import START
from servers import eventually

redis = pytest.importorskip("redis", reason="needs the package redis")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The directory for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """From now on this is another machine: ``elsewhere()``."""

    def go():
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        monkeypatch.setenv("TMPDIR", str(folder))
        return folder

    return go


def put(store, value, name="a", **more):
    record = Record(SPACE, name, ContractState(), parts={VALUE: 1}, **more)
    change = Change(SPACE, name, lambda old, revision: record, {(VALUE, 0): value}, f"Record {name!r}")
    return store.write([change])[0].record


def value(store, name="a"):
    return store.load(store.read(SPACE, name), VALUE)


def files(folder):
    """What lies there for all processes."""
    return sorted(path for path in folder.glob("panel-schedule-*/fetched-*/*") if path.is_file() and path.suffix)


def noise(size, seed=0):
    """What nobody can compress."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def pieces(server, store):
    [blob] = server.client.scan_iter(f"{store._prefix}blob:*")
    return {field.decode(): len(data) for field, data in server.client.hgetall(blob).items() if field != b"pieces"}


# ------------------------------------------------------------ once for all processes


READER = """
import sys
from panel_schedule.clock import SystemClock
from panel_schedule.stores.redis import RedisRecords
from panel_schedule.coordination.record import state_of
from typing import NamedTuple

@state_of("contract")
class State(NamedTuple):
    number: int = 0

store = RedisRecords(sys.argv[1], SystemClock(), namespace=sys.argv[2], secret="s3cret")
record = store.read("contract", "a")
print("ready", flush=True)
sys.stdin.readline()
value = store.load(record, "value")
print(int(value.sum()), *{line.split()[-1] for line in open("/proc/self/maps") if "/fetched-" in line}, flush=True)
sys.stdin.readline()
store.close()
"""


@pytest.mark.slow
def test_one_process_of_a_machine_fetches_it_and_all_map_the_same_file(redis_server, open_redis, elsewhere):
    """Four that begin at the same time; when they have gone, nothing is left."""
    store, large = open_redis(secret="s3cret"), noise(10_000_000)
    put(store, large)
    folder = elsewhere()
    command = [sys.executable, "-c", READER, redis_server.url, store._namespace]
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(4)
    ]
    assert ["ready"] * 4 == [reader.stdout.readline().strip() for reader in readers]
    before = redis_server.client.info("commandstats")["cmdstat_hget"]["calls"]
    for reader in readers:
        reader.stdin.write("\n")
    said = [reader.stdout.readline().split() for reader in readers]

    [file] = files(folder)
    assert [[str(int(large.sum(dtype=int))), str(file)]] * 4 == said
    fetched = redis_server.client.info("commandstats")["cmdstat_hget"]["calls"] - before
    assert 4 * 2 + len(pieces(redis_server, store)) == fetched
    for reader in readers:
        reader.communicate("\n", 20)
    assert [] == list(folder.glob("panel-schedule-*/fetched-*"))


def test_who_has_stored_it_shares_it_too(redis_server, open_redis, temporary):
    """What he reads is what the others read, and they need not fetch it."""
    store, other = open_redis(), open_redis()
    record = Record(SPACE, "a", ContractState(), parts={VALUE: 1})
    result = store.write([Change(SPACE, "a", lambda old, revision: record, {(VALUE, 0): noise(10**6)})])[0]
    before = redis_server.client.info("commandstats")["cmdstat_hget"]["calls"]
    assert np.array_equal(result.parts[VALUE, 0], value(other))
    assert 2 == redis_server.client.info("commandstats")["cmdstat_hget"]["calls"] - before
    result.parts[VALUE, 0][:] = 0
    assert np.array_equal(noise(10**6), value(other))
    assert 1 == len(files(temporary))


def test_each_store_has_files_of_its_own(open_redis, temporary):
    """Who has another secret, or none, trusts no others."""
    for options in ({}, {"secret": "a"}, {"secret": "b"}, {"namespace": "of-files"}):
        put(open_redis(**options), noise(10**5), options.get("secret", ""))
    assert 4 == len({file.parent for file in files(temporary)})


def test_they_are_for_this_user_alone(open_redis, temporary):
    put(open_redis(), noise(10**5))
    [file] = files(temporary)
    assert [0o700, 0o700, 0o600] == [path.stat().st_mode & 0o777 for path in (*list(file.parents)[1::-1], file)]


@pytest.mark.parametrize("wrong", ["open to others", "a file", "not writable"])
def test_without_a_safe_directory_each_process_has_its_own(open_redis, temporary, caplog, wrong):
    """Which the log says, once."""
    root = temporary / f"panel-schedule-{os.geteuid()}"
    match wrong:
        case "open to others":
            root.mkdir()
            root.chmod(0o777)
        case "a file":
            root.write_text("")
        case "not writable":
            (temporary / "gone").symlink_to("nowhere")
            root = temporary / "gone"
            local_files.tempfile.tempdir = str(root)
    store, other = open_redis(), open_redis()
    for number in range(2):
        put(store, noise(10**5, number))
        assert np.array_equal(noise(10**5, number), value(other))
    assert [True] * 2 == ["do not share their large values" in line for line in messages(caplog)]
    assert [] == files(temporary)


def test_a_value_is_read_while_the_directory_is_deleted(open_redis, temporary):
    """By one who tidies up: it is made anew."""
    store, other = open_redis(), open_redis()
    for number in range(2):
        put(store, noise(10**5, number))
        file = files(temporary)[-1]
        shutil.rmtree(file.parent)
        assert np.array_equal(noise(10**5, number), value(other))
        assert [file] == files(temporary)


@pytest.fixture
def shared(temporary):
    """The files of some store, as several processes have them: ``shared()``."""
    opened = []

    def make():
        opened.append(LocalFiles("store", SystemClock()))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def writing(data, calls=None, error=None):
    def write(fd):
        if calls is not None:
            calls.append(fd)
        os.write(fd, data)
        if error is not None:
            raise error

    return write


def content(mapped):
    data = os.pread(mapped.fileno(), 100, 0)
    mapped.close()
    return data


def test_what_a_process_has_left_half_written_is_written_anew(shared, temporary):
    """And deleted, when nobody asks for it."""
    files_ = shared()
    with pytest.raises(StoreError):
        files_.get("a.1", writing(b"half", error=StoreError("lost")))
    files_.get("a.0", writing(b"other")).close()
    folder = next(temporary.glob("*/*"))
    assert ["a.0"] == [path.name for path in folder.iterdir() if path.is_file() and path.name != "door"]
    for name in ("a.1", "a.2"):
        (folder / f"{name}.part").write_bytes(b"half of something longer")
    assert b"whole" == content(files_.get("a.1", writing(b"whole")))
    held = LockFile(folder / "a.3.part", os.O_RDWR | os.O_CREAT)
    held.lock()
    files_.remove([])
    assert ["a.3.part"] == [path.name for path in folder.glob("*.part")]
    held.close()


def test_nobody_waits_for_ever_for_one_who_fetches(shared, monkeypatch, temporary):
    """Stopped, he has his lock still. An event loop does not wait at all."""
    one, other, began, go = shared(), shared(), threading.Event(), threading.Event()

    def write(fd):
        began.set()
        go.wait(20)
        os.write(fd, b"first")

    thread = threading.Thread(target=lambda: one.get("a.1", write).close())
    thread.start()
    assert began.wait(20)
    with hurried(lambda: True):
        assert b"own" == content(other.get("a.1", writing(b"own")))
    monkeypatch.setattr(local_files, "PATIENCE", 0.05)
    assert b"own" == content(other.get("a.1", writing(b"own")))
    go.set()
    thread.join(20)
    assert b"first" == content(other.get("a.1", writing(b"own")))


def test_of_many_one_writes(shared):
    """Whoever comes when."""
    stores, calls, found = [shared() for _ in range(3)], [], []

    def get(number):
        for name in range(20):
            found.append(content(stores[number % 3].get(f"a.{name}", writing(b"it", calls))))

    threads = [threading.Thread(target=get, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert ([b"it"] * 120, 20) == (found, len(calls))


@pytest.mark.parametrize("name", ["", "a", "../a.1", "/a.1", "a.1/b.1", "a.1.part", "door", "a.1\n"])
def test_a_file_has_no_other_name(shared, name):
    with pytest.raises(ValueError, match="names no file"):
        shared().get(name, writing(b""))


def test_what_a_killed_process_has_left_goes_with_the_next_one(shared, temporary):
    """Also of other stores; what somebody uses stays."""
    for name in ("other", "store"):
        left = LocalFiles(name, SystemClock())
        left.get("a.1", writing(b"left")).close()
        left._liveness._living.close()
    used = LocalFiles("used", SystemClock())
    used.get("a.1", writing(b"used")).close()
    shared().get("a.2", writing(b"new")).close()
    assert ["fetched-store/a.2", "fetched-used/a.1"] == [f"{file.parent.name}/{file.name}" for file in files(temporary)]
    used.close()


def test_the_oldest_go_when_there_are_too_many(shared, temporary, monkeypatch):
    monkeypatch.setattr(local_files, "MOST", 25)
    for number in range(5):
        shared().get(f"a.{number}", writing(b"ten bytes.")).close()
        os.utime(next(temporary.glob(f"*/*/a.{number}")), (number, number))
    assert ["a.3", "a.4"] == [file.name for file in files(temporary)]


def test_what_no_record_names_any_more_is_deleted(open_redis, temporary, monkeypatch):
    """In every process; who has it still has it."""
    monkeypatch.setattr(server_records, "LEASE", 0.3)
    store = open_redis()
    put(store, noise(10**5))
    put(store, noise(10**5), "b")
    assert 2 == len(files(temporary))
    read = value(store)
    put(store, noise(10**5, 2))
    store.write([Change(SPACE, "b", lambda old, revision: None)])
    eventually(lambda: len(files(temporary)) == 1)
    assert np.array_equal(noise(10**5), read)
    assert np.array_equal(noise(10**5, 2), value(store))


# ------------------------------------------------------------ in pieces


@pytest.mark.parametrize("secret", ["", "s3cret"])
@pytest.mark.parametrize("more", [-1, 0, 1, 2])
def test_it_travels_in_pieces(redis_server, open_redis, elsewhere, monkeypatch, secret, more):
    """However its size divides; no call moves more than one."""
    size = 100_000 + more
    store = open_redis(secret=secret)
    large = noise(size)
    monkeypatch.setattr(server_blobs, "PIECE", (put(store, large).size - more) // 4)
    put(store, large)
    count = 5 if more > 0 else 4
    lengths = pieces(redis_server, store)
    assert lengths.pop("digests", 0) == (32 * count if secret else 0)
    assert [str(number) for number in range(count)] == sorted(lengths)
    assert max(lengths.values()) <= server_blobs.PIECE
    elsewhere()
    assert np.array_equal(large, value(open_redis(secret=secret)))


def test_a_value_whose_beginning_was_lost_is_not_stored(redis_server, open_redis, monkeypatch):
    """By a server that was restarted meanwhile, say."""
    store = open_redis()
    kept = put(store, "old")
    put_piece = store._blobs._put

    def put_late(stamp, field, data):
        if field == "1":
            redis_server.client.delete(f"{store._prefix}blob:{stamp}")
        put_piece(stamp, field, data)

    monkeypatch.setattr(store._blobs, "_put", put_late)
    with pytest.raises(StoreError, match="lost a value while it was stored"):
        put(store, noise(3_000_000))
    assert (kept, "old", []) == (
        store.read(SPACE, "a"),
        value(store),
        redis_server.client.keys(f"{store._prefix}blob*"),
    )


def test_a_value_whose_bytes_are_gone_cannot_be_read(redis_server, open_redis, elsewhere):
    """All of them, or one piece."""
    store = open_redis()
    put(store, noise(3_000_000))
    elsewhere()
    other = open_redis()
    [blob] = redis_server.client.scan_iter(f"{store._prefix}blob:*")
    for lose in (lambda: redis_server.client.hdel(blob, "1"), lambda: redis_server.client.delete(blob)):
        lose()
        with pytest.raises(ValueUnreadable, match="its bytes are gone from the server"):
            value(other)


def test_a_value_that_is_replaced_while_it_is_fetched_is_another_one(redis_server, open_redis, elsewhere, monkeypatch):
    """Of which who reads hears next; he gets none that is half of each."""
    store = open_redis()
    put(store, noise(3_000_000))
    elsewhere()
    other = open_redis()
    record, get = other.read(SPACE, "a"), other._blobs._get

    def get_late(stamp, field):
        if field == "1" and get is not other._blobs._get:
            other._blobs._get = get
            put(store, noise(3_000_000, 1))
        return get(stamp, field)

    other._blobs._get = get_late
    with pytest.raises(KeyError):
        other.load(record, VALUE)
    assert np.array_equal(noise(3_000_000, 1), value(other))


# ------------------------------------------------------------ compressed


@pytest.fixture
def installed(monkeypatch):
    """What there is to compress with: ``installed("lz4")``."""
    there = packing.packing_of

    def only(*names):
        monkeypatch.setattr(packing, "packing_of", lambda name: there(name) if name in names else None)

    return only


@pytest.mark.parametrize("name", ["zstd", "lz4"])
@pytest.mark.parametrize("secret", ["", "s3cret"])
def test_what_becomes_much_smaller_is_compressed(redis_server, open_redis, elsewhere, installed, name, secret):
    """On the server; each process reads what was stored."""
    assert packing.packing_of(name) is not None, f"needs the package {packing._PACKAGES[name]}"
    installed(name)
    store = open_redis(secret=secret)
    for large, factor in ((np.arange(10**6) % 50, 0.2), (noise(3_000_000), 1.01)):
        size = put(store, large).size
        assert size >= large.nbytes
        assert sum(pieces(redis_server, store).values()) < factor * size
        assert (sum(pieces(redis_server, store).values()) < size) == (factor < 1)
    put(store, np.arange(10**6) % 50)
    elsewhere()
    assert np.array_equal(np.arange(10**6) % 50, value(open_redis(secret=secret)))


def test_without_a_package_nothing_is_compressed(redis_server, open_redis, installed):
    installed()
    store = open_redis()
    assert put(store, np.zeros(10**5)).size == sum(pieces(redis_server, store).values())


def test_who_lacks_the_package_says_which(open_redis, elsewhere, installed, caplog):
    """He keeps what he has, and reads it as soon as he can."""
    store = open_redis(kind=RedisStore)
    elsewhere()
    other = open_redis(kind=RedisStore)
    other.values.publish(USER, "a", "old", now=START)
    other.values._listening = True
    store.values.publish(USER, "a", np.zeros(10**5), now=START)
    installed()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"compressed as 'zstd'\. Install that .*: pip install zstandard"):
            other.values.take_in(other.records.read(USER, "a"))
    assert "old" == other.values.entry(USER, "a").value
    assert 1 == sum("pip install zstandard" in line for line in messages(caplog))
    installed("zstd")
    other.values.take_in(other.records.read(USER, "a"))
    assert 10**5 == len(other.values.entry(USER, "a").value)


def test_what_cannot_be_decompressed_cannot_be_read(redis_server, open_redis, elsewhere):
    store = open_redis()
    put(store, np.zeros(10**5))
    [blob] = redis_server.client.scan_iter(f"{store._prefix}blob:*")
    redis_server.client.hset(blob, "0", b"nonsense")
    elsewhere()
    with pytest.raises(ValueUnreadable, match="cannot be decompressed"):
        value(open_redis())


def test_nothing_of_it_is_imported_before_there_is_a_large_value():
    code = "import sys, panel_schedule; assert not {'redis', 'zstandard', 'lz4'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
