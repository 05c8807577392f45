"""What a script reads again: without a question, as long as no process has committed anything (invariants 8, 10)."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from panel_schedule.coordination.tasks import USER
from panel_schedule.stores.file import records
from panel_schedule.stores.file.database import Database
from panel_schedule.stores.file.locks import OF_BYTES
from servers import eventually
from store_peer import PATIENCE, second

pytestmark = pytest.mark.skipif(not OF_BYTES, reason="here each read asks the database")

PUBLISH = "store.values.publish(USER, 'rates', {}, now=second(0)).version"


def value(store, name="rates"):
    entry = store.values.entry(USER, name)
    return None if entry is None else entry.value


@pytest.fixture
def questions(monkeypatch):
    """Those that this process asks from now on."""
    asked, read = [], Database.read

    def counted(self, question, *values):
        asked.append(question)
        return read(self, question, *values)

    monkeypatch.setattr(Database, "read", counted)
    return asked


def test_an_unchanged_value_costs_no_question(opened, peer, questions):
    """Nor does a name that is not there; each change of another process costs those of one read."""
    store, other = opened(), peer()
    other(PUBLISH.format(1))
    value(store), value(store, "weights")
    questions.clear()
    for _ in range(100):
        assert (1, None) == (value(store), value(store, "weights"))
    assert [] == questions

    other(PUBLISH.format(2))

    assert 2 == value(store)
    assert questions


def test_the_very_next_read_sees_what_any_process_has_published(opened, peer):
    """And what it has published itself, and that a value is deleted."""
    store, peers = opened(), [peer(), peer()]
    for number in range(1, 201):
        if number % 3 == 2:
            store.values.publish(USER, "rates", number, now=second(0))
        else:
            peers[number % 3](PUBLISH.format(number))
        assert [number] * 3 == [value(store), *(each("store.values.entry(USER, 'rates').value") for each in peers)]
    peers[0]("store.values.delete(USER, 'rates')")
    assert value(store) is None


def test_a_writer_that_dies_behind_its_commit_leaves_nobody_stale(opened, peer):
    """Killed before it could tell anybody."""
    store, other = opened(), peer()
    other(PUBLISH.format(1))
    assert 1 == value(store)
    other("from panel_schedule.stores.file.database import Guards")
    other("def end(self): os.kill(os.getpid(), signal.SIGKILL)")
    other("Guards.end = end")  # which comes right behind the commit

    other.send(PUBLISH.format(2))
    other.process.join(PATIENCE)

    assert (-signal.SIGKILL, 2) == (other.process.exitcode, value(store))


@pytest.mark.parametrize("seed", range(8))
def test_a_writer_that_dies_anywhere_leaves_nobody_stale(opened, peer, seed):
    """The next read is what a process reads that has just come."""
    chance, store, other = random.Random(seed), opened(), peer("import threading, time")
    other(PUBLISH.format(0))
    assert 0 == value(store)
    other.send(
        f"threading.Thread(target=lambda: (time.sleep({chance.random() * 0.03}), os.kill(os.getpid(), 9))).start()\n"
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    store.values.publish(USER, 'rates', number, now=second(0))\n"
    )
    while other.process.is_alive():
        value(store)
    other.process.join(PATIENCE)

    seen = value(store)
    assert seen == value(opened())
    store.values.publish(USER, "rates", "next", now=second(0))
    assert "next" == value(opened())


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_page_does_not_lie(opened, peer, home, seed):
    """Be it that of a writer that has died between the two copies of the head."""
    chance, store, other = random.Random(seed), opened(), peer()
    for number in range(1, 6):
        other(PUBLISH.format(number))
        assert number == value(store)
        begin, length = chance.choice([(0, 48), (48, 48), (0, 96), (chance.randrange(90), 4)])
        # SQLite's own locks go with any descriptor of that file that this process closes.
        damage = f"import os; os.pwrite(os.open({str(home / 'store.db-shm')!r}, os.O_RDWR), "
        damage += f"{bytes(length) if chance.random() < 0.3 else chance.randbytes(length)!r}, {begin})"
        subprocess.run([sys.executable, "-S", "-c", damage], check=True)
        assert [number] * 3 == [value(store), other("store.values.entry(USER, 'rates').value"), value(store)]


@pytest.mark.parametrize("late", [False, True], ids=["by one that had it", "by one that comes"])
def test_a_directory_that_was_replaced_is_seen(opened, peer, home, monkeypatch, late):
    """At once, where it was by a process that had the former one open, too; else before long."""
    if not late:
        monkeypatch.setattr(records, "LOOK_WITHOUT_BELL", 100 * PATIENCE)
    store, other = opened(), peer()
    other(PUBLISH.format(1))
    assert 1 == value(store)
    shutil.rmtree(home)

    (peer() if late else other)(
        "[store.values.publish(USER, 'rates', number, now=second(0)) for number in (2, 3, 4)] and None"
    )

    if late:
        eventually(lambda: value(store) == 4)
    assert 4 == value(store)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parent_and_child_of_a_fork_see_each_others_values(home):
    """At the very next read."""
    script = f"""
        import os
        import panel_schedule as ps
        ps.config.store = "file://{home}"
        ps.store["rates"] = 1
        assert ps.store["rates"] == 1
        (here, there), (mine, yours) = os.pipe(), os.pipe()
        if not (child := os.fork()):
            for number in range(1, 50, 2):
                assert ps.store["rates"] == number
                ps.store["rates"] = number + 1
                os.write(there, b"x"), os.read(mine, 1)
            os._exit(0)
        for number in range(2, 51, 2):
            os.read(here, 1)
            assert ps.store["rates"] == number
            ps.store["rates"] = number + 1
            os.write(yours, b"x")
        assert os.waitpid(child, 0)[1] == 0
        print(ps.store["rates"])
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=PATIENCE, check=False, env={**os.environ},
    )  # fmt: skip

    assert ("51\n", 0) == (done.stdout, done.returncode), done.stderr
