"""What a store with a secret takes for its own: what was signed for this record, and for this version of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from panel_schedule.coordination.record import Record
from panel_schedule.errors import ValueUnreadable
from panel_schedule.stores.records import Change
from panel_schedule.testing.contracts.records import SPACE, VALUE, ContractState

redis = pytest.importorskip("redis", reason="needs the package redis")

# More than travels with a record, in bytes.
LARGE = 100_000


class Unpickled:
    """Whoever reads it is told on."""

    count = 0

    def __init__(self, version, size):
        self.state = version, b"x" * size

    def __reduce__(self):
        return Unpickled.read, self.state

    @staticmethod
    def read(version, data):
        Unpickled.count += 1
        return version


def put(store, version, size):
    record = Record(SPACE, "a", ContractState(version), parts={VALUE: 1})
    return store.write([Change(SPACE, "a", lambda old, revision: record, {(VALUE, 0): Unpickled(version, size)})])


def delete(store):
    store.write([Change(SPACE, "a", lambda old, revision: None)])


def value(store):
    return store.load(store.read(SPACE, "a"), VALUE)


class Thief:
    """Who can write to the server, and knows no secret."""

    def __init__(self, server, store):
        self.client, self.prefix = server.client, store._prefix

    def take(self, what):
        """All keys of that kind."""
        return {key: self.client.dump(key) for key in self.client.scan_iter(f"{self.prefix}{what}:*")}

    def bring(self, *taken):
        for key, data in [each for some in taken for each in some.items()]:
            self.client.restore(key, 0, data, replace=True)


@pytest.fixture
def thief(redis_server, open_redis):
    return Thief(redis_server, open_redis())


@pytest.mark.parametrize("size", [1, LARGE])
@pytest.mark.parametrize("again", [put, lambda *args: (delete(args[0]), put(*args))])
def test_an_older_value_is_not_taken_for_the_one_of_now(open_redis, thief, size, again):
    """Nobody unpickles it, though it was signed for the same record."""
    ours = open_redis(secret="s3cret")
    put(ours, 1, size)
    former = thief.take("parts"), thief.take("blob")
    again(ours, 2, size)
    thief.bring(*former)

    for store in (ours, open_redis(secret="s3cret")):
        Unpickled.count = 0
        with pytest.raises(ValueUnreadable, match="older one"):
            value(store)
        assert 0 == Unpickled.count
    put(ours, 3, size)
    assert 3 == value(open_redis(secret="s3cret"))


@pytest.mark.parametrize("size", [1, LARGE])
def test_who_has_seen_a_newer_one_does_not_go_back_with_the_record(open_redis, thief, size):
    """Who has not cannot know it."""
    ours, other = open_redis(secret="s3cret"), open_redis(secret="s3cret")
    put(ours, 1, size)
    former = thief.take("parts"), thief.take("blob"), thief.take("record")
    put(ours, 2, size)
    assert 2 == value(other)
    thief.bring(*former)

    for store in (ours, other):
        with pytest.raises(ValueUnreadable, match="older one"):
            value(store)
    assert 1 == value(open_redis(secret="s3cret"))


@pytest.mark.parametrize("size", [1, LARGE])
def test_what_follows_is_never_taken_for_older(open_redis, size):
    """Whoever writes it, whatever was deleted, and whatever each of them has seen."""
    stores = [open_redis(secret="s3cret") for _ in range(3)]
    for number in range(12):
        store = stores[number % 3]
        if number % 4 == 3:
            delete(store)
        put(store, number, size)
        assert [number] * 2 == [value(other) for other in (stores[0], stores[(number + 1) % 3])]


@pytest.mark.parametrize("field", range(1, 8))
def test_all_that_is_said_of_a_part_is_signed(redis_server, open_redis, field):
    """But for the number of its change, which the server gives."""
    ours = open_redis(secret="s3cret")
    put(ours, 1, LARGE)
    key = f"{ours._prefix}parts:{SPACE}\0a"
    words = redis_server.client.hget(key, f"{VALUE}\0{0}").removesuffix(b"\n").split(b" ")
    assert 8 == len(words)
    words[field] = {b"-": b"zstd"}.get(words[field], words[field][:-1] + (b"0" if words[field][-1:] != b"0" else b"1"))
    redis_server.client.hset(key, f"{VALUE}\0{0}", b" ".join(words) + b"\n")
    Unpickled.count = 0
    with pytest.raises(ValueUnreadable, match="not signed"):
        value(open_redis(secret="s3cret"))
    assert 0 == Unpickled.count


@pytest.mark.parametrize("field", ["0", "1", "digests"])
def test_each_piece_of_a_large_part_is_signed(redis_server, open_redis, field, tmp_path, monkeypatch):
    monkeypatch.setattr("panel_schedule.stores.server_blobs.PIECE", LARGE // 2 + 1000)
    ours = open_redis(secret="s3cret")
    put(ours, 1, LARGE)
    [blob] = redis_server.client.scan_iter(f"{ours._prefix}blob:*")
    piece = redis_server.client.hget(blob, field)
    redis_server.client.hset(blob, field, piece[:-1] + bytes([piece[-1] ^ 1]))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # as on another machine
    Unpickled.count = 0
    with pytest.raises(ValueUnreadable, match="not those that were signed"):
        value(open_redis(secret="s3cret"))
    assert 0 == Unpickled.count


PROGRAM = """
import sys, numpy as np, panel_schedule as ps
ps.config.store, ps.config.secret, size = sys.argv[1], sys.argv[2], int(sys.argv[3])

@ps.schedule(period="1h")
def task():
    print("computed")
    return np.full(size, 2)

@ps.memoize
def answer(number):
    print("computed")
    return np.full(size, number)

@ps.background(executor="thread", ttl="1h", durable=True)
def job(number):
    print("computed")
    return np.full(size, number)

if task() is None:
    task.refresh().result(20)
print(*(float(each.mean()) for each in [task(), answer(3), job.submit(4).result(20)]))
for run in job.runs():
    try:
        run.result(20)
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 100_000])
def test_what_is_not_signed_is_computed_anew(another_redis, size):
    """Tasks, answers and jobs; the result of a job of before is an error. Said once."""
    url = another_redis().url

    def run(secret):
        code = [sys.executable, "-c", PROGRAM, url, secret, str(size)]
        done = subprocess.run(code, capture_output=True, text=True, timeout=50, check=True, env=dict(os.environ))
        return done.stdout.split(), len(re.findall("not signed with ps.config.secret", done.stderr))

    values = ["2.0", "3.0", "4.0"]
    assert (["computed"] * 3 + values, 0) == run("theirs")
    assert (values, 0) == run("theirs")
    assert (["computed"] * 3 + [*values, "ValueUnreadable"], 1) == run("ours")
    assert ([*values, "ValueUnreadable"], 1) == run("ours")
