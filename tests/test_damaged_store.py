"""Whatever happens to the files of a store, it serves what was stored, or nothing."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import zlib
from datetime import timedelta

import numpy as np
import pytest

from core import messages
from panel_schedule.clock import SystemClock
from panel_schedule.coordination.answers import UNLIMITED
from panel_schedule.coordination.tasks import TASK, USER
from panel_schedule.errors import ScheduleError
from panel_schedule.functions.run import RunState
from panel_schedule.serialize.codec import encode
from panel_schedule.stores.file.store import FileStore
from panel_schedule.testing.contracts.tools import START, put, second

NAMES = [f"value {number}" for number in range(6)]
LATER = SystemClock().now() + timedelta(days=9)


def value(name, version=2):
    """Large ones are files, of equal lengths; small ones stand in the database, some with arrays out of band."""
    number = NAMES.index(name)
    size = (20_000, 500, 5_000)[number % 3]
    return {"name": name, "version": version, "array": np.full(size, version * 100.0 + number)}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def fill(store, version):
    now = SystemClock().now()
    for name in NAMES:
        put(store, name, value(name, version))
        put(store, name, value(name, version), TASK)
        cache, queue = store.cache, store.queue
        mine, row = cache.claim("memo", name, name, known=version - 1 and 10**9, basis=(), now=now)
        assert mine
        cache.put("memo", name, row.fence, value(name, version), now=now, duration=1, expires_at=LATER,
                  limits=UNLIMITED)  # fmt: skip
        id = f"{name} {version}"
        arguments = encode(((value(name, version),), {}), "Job")
        queue.enqueue(id, "job", now=now, payload=arguments, durable=True, synced=False)
        if version == 1:
            queue.add_partial(id, 1, 0, value(name, version))
            queue.end(id, 1, RunState.SUCCEEDED, now=now, value=value(name, version), expires_at=LATER)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store that was killed with its log unread, and the files that its values had before."""
    home = tmp_path_factory.mktemp("whole")
    store = FileStore(home / "live", SystemClock(), server="server")
    fill(store, 1)
    shutil.copytree(home / "live" / "values", home / "former")
    fill(store, 2)
    shutil.copytree(home / "live", home / "store", ignore=shutil.ignore_patterns("*.sock", "*.owner"))
    store.close()
    return home


def damage(chance, home, former):
    """One thing that befalls a file."""
    files = sorted(path for path in [*(home / "values").iterdir(), *home.glob("store.db*")] if path.stat().st_size)
    values = [path for path in files if path.parent.name == "values"]
    path = chance.choice(files)
    data = bytearray(path.read_bytes())
    kind = chance.choice(["truncate", "extend", "empty", "swap", "former", "link", "flip", "page", "noise", "delete"])
    match kind:
        case "truncate":
            del data[chance.randrange(len(data)) :]
        case "extend":
            data += chance.randbytes(chance.randrange(1, 9_000))
        case "empty":
            data.clear()
        case "swap" | "former" | "link":
            path, other = chance.sample(values, 2)
            data = bytearray(path.read_bytes())
            if kind == "swap":
                swapped = other.read_bytes()
                other.write_bytes(data)
                data = bytearray(swapped)
            elif kind == "former":
                data = bytearray(chance.choice(sorted(former.iterdir())).read_bytes())
            else:
                path.unlink()
                os.link(other, path)
                return kind, path.name
        case "flip":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case "page":
            at = chance.randrange(len(data)) // 4096 * 4096
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        case "noise":
            at = chance.randrange(len(data))
            data[at : at + 300] = chance.randbytes(len(data[at : at + 300]))
        case "delete":
            path.unlink()
            return kind, path.name
    path.write_bytes(data)
    return kind, path.name


def read(ask):
    """The answer, None where it is lost."""
    try:
        return ask()
    except (ScheduleError, KeyError):
        return None


def found_in(store):
    """All that a store has: what it is, whose it is, of which version it may be, and the value."""
    for name in NAMES:
        for space in (USER, TASK):
            if (entry := store.values.entry(space, name)) is not None:
                yield space, name, (1, 2), entry.value
        row = read(lambda: store.cache.look("memo", name))  # noqa: B023
        if row is not None and row.version:
            yield "answer", name, (1, 2), read(lambda: store.cache.value(row))  # noqa: B023
        id = f"{name} 1"
        yield "result", name, (1,), read(lambda: store.queue.value(id))  # noqa: B023
        for partial in read(lambda: store.queue.partials(id)) or ():  # noqa: B023
            yield "partial", name, (1,), partial
        taken = read(lambda: store.queue.take(f"{name} 2", second(0)))  # noqa: B023
        if taken is not None:
            yield "arguments", name, (2,), taken[1][0][0]


@pytest.mark.parametrize("seed", range(60))
def test_nothing_wrong_is_served_of_a_damaged_store(whole, tmp_path, seed):
    """Nor does it crash, and it can be used as before."""
    chance, home = random.Random(seed), tmp_path / "store"
    shutil.copytree(whole / "store", home)
    what = [damage(chance, home, whole / "former") for _ in range(chance.choice([1, 1, 3]))]

    store = FileStore(home, SystemClock(), server="server")
    try:
        for kind, name, versions, found in found_in(store):
            assert found is None or any(same(found, value(name, version)) for version in versions), (what, kind, name)
        put(store, "new", value(NAMES[0]))
        assert same(value(NAMES[0]), store.values.entry(USER, "new").value)
    finally:
        store.close()


def test_a_whole_store_serves_everything(whole, tmp_path):
    shutil.copytree(whole / "store", tmp_path / "store")
    store = FileStore(tmp_path / "store", SystemClock(), server="server")

    served = [(kind, name) for kind, name, versions, found in found_in(store) if same(found, value(name, versions[-1]))]

    store.close()
    assert 6 * len(NAMES) == len(served)


@pytest.mark.parametrize("how", ["flip", "swap"])
def test_what_is_changed_under_a_living_process_is_seen(opened, home, how):
    """Its file is not read again, unless something has changed it since."""
    writer = opened()
    for name in NAMES[::3]:
        put(writer, name, value(name))
    one, other = sorted((home / "values").iterdir())
    if how == "swap":
        one.rename(home / "x"), other.rename(one), (home / "x").rename(other)
    else:
        with one.open("r+b") as file:
            file.seek(-9, os.SEEK_END)
            file.write(b"x")

    reader = opened()

    lost = [name for name in NAMES[::3] if reader.values.entry(USER, name) is None]
    assert {"flip": NAMES[:1], "swap": NAMES[::3]}[how] == lost


def test_a_value_that_fails_its_check_is_in_the_log(opened, home, caplog):
    put(opened(), "rates", value(NAMES[0]))
    (file,) = (home / "values").iterdir()
    file.write_bytes(file.read_bytes()[:-8] + b"\xff" * 8)

    assert opened().values.entry(USER, "rates") is None
    assert any("ps.store['rates']: version 1" in line and "have changed" in line for line in messages(caplog))


def unsealed(value):
    """As all values were written before there were seals; with the array inside of the pickle, for brevity."""
    stream = pickle.dumps(value, 5)
    head = struct.pack("<8sIQI", b"\x93PSVALUE", 1, 28 + 16 + len(stream), 1)
    table = struct.pack("<QQ", 28 + 16, len(stream))
    return head + struct.pack("<I", zlib.crc32(head + table + stream)) + table + stream


def test_values_of_an_older_version_are_read(opened, home):
    """They have no seal, in files and in rows."""
    large, small = value(NAMES[0]), value(NAMES[1])
    store = opened()
    put(store, "large", large), put(store, "small", small)
    store.close()
    (file,) = (home / "values").iterdir()
    file.write_bytes(unsealed(large))
    with sqlite3.connect(home / "store.db") as database:
        database.execute("UPDATE blobs SET inline = ? WHERE inline NOT NULL", [unsealed(small)])

    store = opened()

    assert same(large, store.values.entry(USER, "large").value)
    assert same(small, store.values.entry(USER, "small").value)


def test_a_value_in_another_row_is_not_that_rows(opened, home):
    store = opened()
    put(store, "one", 1), put(store, "other", 2)
    store.close()
    with sqlite3.connect(home / "store.db") as database:
        database.execute("UPDATE blobs SET inline = (SELECT inline FROM blobs WHERE name = 'one')")

    store = opened()

    assert (1, None) == (store.values.entry(USER, "one").value, store.values.entry(USER, "other"))


PROGRAM = """
import sys, numpy as np, panel_schedule as ps
ps.config.store = sys.argv[1]

@ps.memoize
def answer(number):
    print("computed")
    return np.full(100_000, number)

@ps.background(executor="thread", ttl="1h")
def job(number):
    print("computed")
    return np.full(100_000, number)

@ps.background(executor="thread", ttl="1h", durable=True)
def durable(number):
    print("computed")
    return np.full(100_000, number)

print(*(float(each.mean()) for each in [answer(3), job.submit(4).result(20), durable.submit(5).result(20)]))
"""


def test_what_cannot_be_read_is_computed_anew(tmp_path):
    """An answer, and the results of jobs for an equal call; once."""
    values = ["3.0", "4.0", "5.0"]

    def run():
        code = [sys.executable, "-c", PROGRAM, f"file://{tmp_path}/store"]
        done = subprocess.run(code, capture_output=True, text=True, timeout=50, check=True)
        return done.stdout.split()

    assert ["computed"] * 3 + values == run()
    for path in (tmp_path / "store" / "values").iterdir():
        path.write_bytes(path.read_bytes()[:-8] + b"\xff" * 8)
    assert ["computed"] * 3 + values == run()
    assert values == run()


def test_an_error_that_cannot_be_read_is_an_error(opened, home):
    store = opened()
    _, row = store.cache.claim("memo", "key", "memo(1)", known=0, basis=(), now=START)
    store.cache.fail("memo", "key", row.fence, ValueError("no"), now=START)
    store.records._do("UPDATE blobs SET inline = substr(inline, 1, 30) WHERE kind = 'error'")

    assert "memo(1) failed" in str(store.cache.failure(store.cache.look("memo", "key")))
