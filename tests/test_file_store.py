"""What the store of files promises beyond the contract of all stores: other processes, and whatever befalls a disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import stat
import sys
import threading
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from core import messages
from panel_schedule.coordination.record import Refusal
from panel_schedule.coordination.tasks import TASK, USER, Claim
from panel_schedule.errors import RunFenced, StoreError, ValueRefused
from panel_schedule.functions.run import RunState
from panel_schedule.serialize import codec
from panel_schedule.stores.file import database, directory, locks, opened
from panel_schedule.testing.contracts.tools import claim, ended, enroll, hammer, put, refusal
from panel_schedule.triggers import Computed, Dates, Every
from servers import eventually
from store_peer import PATIENCE, second

LARGE = 20_000  # numbers of 8 bytes: more than stands in the database

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")


def large(number):
    return np.full(LARGE, number)


def files(home):
    return sorted((home / "values").iterdir())


def value(store, name, space=USER):
    entry = store.values.entry(space, name)
    return None if entry is None else np.asarray(entry.value).flat[0].item()


def seen(peer, name):
    return peer(f"(lambda e: e and (e.version, int(e.value.flat[0])))(store.values.entry(USER, {name!r}))")


# ------------------------------------------------------------ several processes


def test_processes_see_each_others_values(opened, peer):
    """A bell wakes them: nobody looks by himself in this test (invariant 16)."""
    other = peer("opened.LOOK = 600")
    other("store.listen()")
    store = opened()
    for number in (1, 2, 3):
        put(store, "rates", large(number))
        assert ("rates", number) == other(f"heard.get(timeout={PATIENCE})")
        assert (number, number) == seen(other, "rates")
    store.values.delete(USER, "rates")
    assert ("rates", None) == other(f"heard.get(timeout={PATIENCE})")
    other("store.values.publish(USER, 'theirs', 7, now=second(0))")

    assert (7, ["theirs"]) == (value(store, "theirs"), list(store.values.names(USER)))


def test_processes_see_each_others_rows(opened, peer):
    """And who holds a task (invariant 6)."""
    store, other = opened(), peer()
    enroll(store, "sales")
    held = claim(store, "sales", "run1", key=second(1), mark=second(1), wave=second(1))
    store.tasks.amend("sales", paused=True)
    store.tasks.watch("sales", 3)
    other("store.tasks.count_viewers('sales')")

    row = other("store.tasks.row('sales')")

    assert (True, second(1), 3) == (row.paused, row.last_slot, row.viewers)
    assert ("run1", second(1), False, False) == (row.holder.run_id, row.holder.key, row.holder.over, row.holder.orphan)
    assert Refusal.HELD == other("store.do(store.tasks.claim('sales', 'run2', now=second(2), mark=second(2)))")
    assert Refusal.HANDLED == other("store.do(store.tasks.claim('sales', 'run2', now=second(2), mark=second(1)))")
    other("store.do(store.tasks.cancel('sales', 'run1'))")
    assert ("run1", None) == (store.tasks.row("sales").cancelled, store.tasks.row("sales").holder)
    store.do(store.tasks.record("sales", ended(1)))
    assert other("store.tasks.row('sales').holder.over")
    store.do(store.tasks.release(held))
    assert other("store.tasks.row('sales').holder") is None


def test_a_first_value_of_another_process_makes_a_first_run_unnecessary(opened, peer):
    """Whoever asks for the claim after that is told (invariant 8)."""
    store = opened()
    assert store.values.entry(TASK, "sales") is None
    peer()("store.values.publish(TASK, 'sales', 5, now=second(0))")

    assert Refusal.HANDLED == refusal(store, "sales", first=True)
    assert 5 == value(store, "sales", TASK)


def test_a_value_that_cannot_be_read_makes_a_first_run_necessary(opened, home):
    """It is there, and of no use."""
    put(opened(), "sales", large(1), TASK)
    files(home)[0].write_bytes(b"")
    store = opened()
    assert store.values.entry(TASK, "sales") is None

    assert refusal(store, "sales", first=True) is None


def test_the_first_process_of_a_server_decides_about_dates(opened, peer):
    """They are relative to now, and so differ in each process (invariant 3)."""
    store, other = opened(), peer()
    first, second_ = Dates(second(30)), Dates(second(31))
    enroll(store, "sales", first)

    row = other("store.tasks.enroll([Plan('sales', trigger, second(1))])['sales']", trigger=second_)

    assert (first, first.fingerprint, second(0)) == (row.trigger, row.fingerprint, row.first_seen)
    assert enroll(store, "sales", first).trigger is None
    assert ("", second_.fingerprint) == (
        row.error,
        enroll(opened(server="next"), "sales", second_, 9).fingerprint,
    )


def test_the_next_server_goes_on_where_the_last_one_ended(opened):
    """Schedule, override, pause, last slot, history and value; a removal was of the former code."""
    store = opened(server="first")
    enroll(store, "sales")
    store.do(store.tasks.release(claim(store, "sales", mark=second(5))))
    store.tasks.amend("sales", paused=True, removed=True, reschedule=Every("5m"), now=second(1))
    store.do(store.tasks.record("sales", ended(1)))
    put(store, "sales", large(1), TASK)
    store.close()

    store = opened(server="second")
    row = enroll(store, "sales", at=9)

    assert (second(1), second(5), Every("5m")) == (row.first_seen, row.last_slot, row.override)
    assert (True, False, None) == (row.paused, row.removed, row.gave_way)
    assert ([ended(1)], 1) == (store.history("sales"), value(store, "sales", TASK))


def test_a_changed_schedule_of_the_next_server_takes_over(opened):
    """The override gives way, and no slot of the new one was missed (invariant 5)."""
    store = opened(server="first")
    enroll(store, "sales")
    store.do(store.tasks.release(claim(store, "sales", mark=second(5))))
    store.tasks.amend("sales", reschedule=Every("5m"), now=second(1))

    row = enroll(opened(server="second"), "sales", Every("1d"), 9)

    assert (Every("5m"), None) == (row.gave_way, row.override)
    assert (second(9), None) == (row.first_seen, row.last_slot)


def test_a_task_that_was_forgotten_stays_so_for_who_has_yet_to_hear_of_it(opened, peer):
    """Another process of this server neither revives nor runs it, unless it is scheduled anew."""
    store, other = (
        opened(),
        peer("from panel_schedule.triggers import Every"),
    )
    enroll(store, "sales")
    store.tasks.forget("sales")

    assert other("store.tasks.enroll([Plan('sales', Every(5), second(1))])['sales'].forgotten")
    assert Refusal.HANDLED == other("store.do(store.tasks.claim('sales', 'run', now=second(2), mark=second(2)))")
    assert not other("store.do(store.tasks.record('sales', record, second(2)))", record=ended(2))
    assert not other("store.tasks.enroll([Plan('sales', Every(5), second(1))], late=True)['sales'].forgotten")
    assert isinstance(other("store.do(store.tasks.claim('sales', 'run', now=second(2), mark=second(2)))"), Claim)


def test_what_a_former_server_has_forgotten_a_script_can_run(opened):
    """It enrolls nothing, and must not be refused for ever."""
    store = opened(server="first")
    enroll(store, "sales")
    store.do(store.tasks.release(claim(store, "sales", mark=second(5))))
    store.tasks.forget("sales")
    store.close()
    store = opened(server="script")

    claim(store, "sales", mark=second(5))

    assert not store.tasks.row("sales").forgotten


def test_a_schedule_that_cannot_travel_is_refused(opened):
    """A function works it out; the message says what to give instead (invariant 11)."""
    store = opened()
    enroll(store, "sales")

    with pytest.raises(ValueRefused, match=r"Task 'sales'.*period, a cron expression or dates"):
        store.tasks.amend("sales", reschedule=Computed(lambda now: now, "mine"), now=second(1))
    assert store.tasks.row("sales").override is None


def test_a_stopped_process_blocks_nobody(opened, peer):
    """Its bell is full, that is all; when it goes on it sees the newest."""
    other = peer()
    other("store.listen()")
    store = opened()
    other.signal(signal.SIGSTOP)
    for number in range(1, 400):
        put(store, "rates", np.array(number))
    other.signal(signal.SIGCONT)

    eventually(lambda: seen(other, "rates") == (399, 399))


def test_without_a_bell_a_process_looks_often(opened, peer):
    """Where the system can give it none."""
    none = "from panel_schedule.stores.file import wakeup\nwakeup.WakeUps._address = lambda *a: '/no'"
    other = peer(f"opened.LOOK = 600\n{none}")
    other("store.listen()")
    put(opened(), "rates", large(1))

    assert ("rates", 1) == other(f"heard.get(timeout={PATIENCE})")


def test_paths_that_are_too_long_for_a_socket_have_a_bell(opened, peer, home):
    """The kernel takes about 104 bytes."""
    deep = home / ("deep" * 40) / "store"
    other = peer("opened.LOOK = opened.LOOK_WITHOUT_BELL = 600", path=deep)
    other("store.listen()")
    put(opened(deep), "rates", large(1))

    assert ("rates", 1) == other(f"heard.get(timeout={PATIENCE})")


def test_a_value_between_two_questions_is_not_overlooked(opened):
    """What another process stores while this one catches up is seen, at the latest with the next look."""
    (store, other), heard = (opened(), opened()), []
    enroll(other, "sales")
    store.records._catch_up()
    store.values.subscribe(lambda space, name, entry: heard.append(name))
    store.tasks.subscribe(heard.append)
    read = store.records._read

    def interrupted(question, *values, **options):
        rows = read(question, *values, **options)
        if "FROM records WHERE revision" in question:
            store.records._read = read
            put(other, "rates", 1)
            other.tasks.amend("sales", paused=True)
        return rows

    store.records._read = interrupted
    store.records._catch_up()
    assert [] == heard
    store.records._catch_up()

    assert ({"rates", "sales"}, 1) == (set(heard), value(store, "rates"))


def test_listeners_are_called_without_a_lock(opened):
    """A scheduler that has its own lock may wait for another thread that wants an entry."""
    store, other = opened(), opened()
    done, errors = threading.Event(), []

    def listener(*change):
        thread = threading.Thread(target=lambda: (store.values.entry(USER, "rates"), done.set()), daemon=True)
        thread.start()
        errors.extend([] if done.wait(PATIENCE) else ["deadlock"])

    store.values.subscribe(listener)
    put(other, "rates", 1)

    assert (1, []) == (value(store, "rates"), errors)


# ------------------------------------------------------------ life and death


def test_the_run_of_a_dead_process_is_taken_over_once(opened, peer, home):
    """It is noticed within 2 s; the process that dies of it, too, is the last one (invariant 14)."""
    claimed = "store.do(store.tasks.claim('sales', 'run1', now=second(1), key='key', mark=second(1), wave=second(1)))"
    first, second_, store = peer(), peer(), opened()
    enroll(store, "sales")
    lost = first(claimed)
    second_("store.listen()")
    assert second_("store.do(store.tasks.take_over('sales', second(2)))") is None
    second_("while not heard.empty(): heard.get()")
    first.kill()

    assert "sales" == second_("heard.get(timeout=2.5)")
    assert second_("store.tasks.row('sales').holder.orphan")
    assert refusal(store, "sales") == Refusal.HELD
    taken = second_("store.do(store.tasks.take_over('sales', second(2)))")
    assert ("run1", 2, "key", second(1)) == (taken.run_id, taken.attempt, taken.key, taken.wave)
    assert taken.fence > lost.fence
    assert store.do(store.tasks.take_over("sales", second(3))) is None
    second_.kill()
    crash = store.do(store.tasks.take_over("sales", second(4)))

    assert (RunState.CRASHED, 2, "run1", "key") == (crash.state, crash.attempt, crash.id, crash.key)
    assert [crash] == store.history("sales")
    assert (None, RunState.CRASHED) == (store.tasks.row("sales").holder, store.tasks.row("sales").outcome)
    assert refusal(store, "sales", mark=second(1)) == Refusal.HANDLED
    assert refusal(store, "sales", mark=second(2)) is None


def test_a_task_that_has_crashed_has_no_second_process(opened, peer):
    """Until it has succeeded, each of its runs may cost one process."""
    store = opened()
    enroll(store, "sales")
    store.do(store.tasks.record("sales", ended(0, RunState.CRASHED)))
    other = peer()
    other("store.do(store.tasks.claim('sales', 'run1', now=second(1)))")
    other.kill()

    assert RunState.CRASHED is store.do(store.tasks.take_over("sales", second(2))).state


def test_a_run_that_was_handed_over_costs_nobody_a_process(opened, peer):
    """A server that stops in an orderly way is no crash."""
    store = opened()
    enroll(store, "sales")
    for _ in range(3):
        other = peer()
        other("held = store.do(store.tasks.claim('sales', 'run1', now=second(1), mark=second(1)))")
        other("held = held if isinstance(held, Claim) else store.do(store.tasks.take_over('sales', second(1)))")
        assert 1 == other("held.attempt")
        other("(store.do(store.tasks.hand_over(held)), store.close())")

    taken = store.do(store.tasks.take_over("sales", second(2)))

    assert ("run1", 1) == (taken.run_id, taken.attempt)


def test_what_was_published_before_its_process_died_has_succeeded(opened, peer):
    """It is not run again; only the record was missing (invariant 14)."""
    store, other = opened(), peer()
    enroll(store, "sales")
    other("held = store.do(store.tasks.claim('sales', 'run1', now=second(1), mark=second(1)))")
    other("store.do(store.tasks.publish(5, now=second(2), claim=held))")
    other.kill()

    assert store.do(store.tasks.take_over("sales", second(3))) is None
    assert [("run1", RunState.SUCCEEDED)] == [(record.id, record.state) for record in store.history("sales")]
    assert (None, RunState.SUCCEEDED, 5) == (
        store.tasks.row("sales").holder,
        store.tasks.row("sales").outcome,
        value(store, "sales", TASK),
    )


def test_a_run_that_had_yielded_only_is_run_again(opened, peer):
    """Its last value was not final."""
    store, other = opened(), peer()
    enroll(store, "sales")
    other("held = store.do(store.tasks.claim('sales', 'run1', now=second(1), mark=second(1)))")
    other("store.do(store.tasks.publish(5, now=second(2), claim=held, final=False))")
    other.kill()

    assert isinstance(store.do(store.tasks.take_over("sales", second(3))), Claim)


def test_a_run_that_was_over_is_not_run_again(opened, peer):
    """Only its body was still there; what became of other runs meanwhile changes nothing."""
    store, other = opened(), peer()
    enroll(store, "sales")
    other("held = store.do(store.tasks.claim('sales', 'run1', now=second(1), mark=second(1)))")
    other("store.do(store.tasks.record('sales', record))", record=ended(1, RunState.TIMED_OUT))
    other("store.do(store.tasks.record('sales', record))", record=ended(2, RunState.CANCELLED))
    assert store.tasks.row("sales").holder.over
    other.kill()

    assert store.do(store.tasks.take_over("sales", second(3))) is None
    assert ["run2", "run1"] == [record.id for record in store.history("sales")]
    assert store.tasks.row("sales").holder is None


def test_the_child_of_a_fork_gives_no_lock_back(opened, peer):
    """Nor does its end, nor that it looks who is alive (invariant 14)."""
    store, other = opened(), peer()
    enroll(store, "sales")
    other("held = store.do(store.tasks.claim('sales', 'run1', now=second(1), mark=second(1)))")
    other(
        "def fork():\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        alive = store.records.alive(store.records._me)\n"
        "        more = FileStore(folder, SystemClock(), server='server')\n"
        "        held = more.tasks.row('sales').holder is not None\n"
        "        alive = alive and held and more.records.alive(store.records._me)\n"
        "        more.close()\n"
        "        os._exit(0 if alive else 1)\n"
        "    return os.waitpid(child, 0)[1]\n"
    )

    assert 0 == other("fork()")
    assert not store.tasks.row("sales").holder.orphan
    assert store.do(store.tasks.take_over("sales", second(9))) is None
    other("store.do(store.tasks.publish(5, now=second(2), claim=held))")


def test_a_copy_of_the_directory_by_its_process_leaves_it_alive(opened, peer, home, tmp_path):
    """It opens and closes every file there, as a backup, a virus scanner and ``lsof`` do (invariant 14)."""
    store, other = opened(), peer()
    enroll(store, "sales")
    other("held = store.do(store.tasks.claim('sales', 'run1', now=second(1), mark=second(1)))")

    other("import shutil; shutil.copytree(folder, to, ignore=shutil.ignore_patterns('*.sock'))", to=tmp_path / "backup")
    other("[path.read_bytes() for path in folder.rglob('*') if path.is_file()]")

    assert not store.tasks.row("sales").holder.orphan
    assert store.do(store.tasks.take_over("sales", second(9))) is None
    other("store.do(store.tasks.publish(5, now=second(2), claim=held))")


@pytest.mark.skipif(not locks.OF_BYTES, reason="needs locks of parts of files")
def test_a_copy_of_the_directory_by_its_process_leaves_it_its_database(opened, peer, home, tmp_path):
    """A process that comes and goes then takes its log away from nobody."""
    other = peer()
    other("store.values.publish(USER, 'first', 1, now=second(0))")
    other("import shutil; shutil.copytree(folder, to, ignore=shutil.ignore_patterns('*.sock'))", to=tmp_path / "backup")
    came = sqlite3.connect(home / "store.db")
    came.execute("SELECT count(*) FROM records").fetchone()
    came.close()
    other("store.values.publish(USER, 'second', 2, now=second(0))")

    store = opened()

    assert (1, 2) == (value(store, "first"), value(store, "second"))


@pytest.mark.skipif(not locks.OF_BYTES, reason="needs locks of parts of files")
def test_a_copy_of_the_directory_in_a_transaction_lets_nobody_else_write(opened, peer, home):
    """SQLite alone would have two writers then."""
    store, other = opened(), peer("database.PATIENCE = 0.01")
    with store.records._transaction() as tx:
        tx.do("INSERT INTO erased VALUES (1)")
        for path in home.glob("store.db*"):
            path.read_bytes()
        with pytest.raises(StoreError, match="Another process holds it"):
            other("store.values.publish(USER, 'rates', 1, now=second(0))")

    other("store.values.publish(USER, 'rates', 2, now=second(0))")
    assert 2 == value(store, "rates")


@pytest.mark.parametrize("start", ["os.fork() or os.execlp('sleep', 'sleep', '60')", "os.fork() or signal.pause()"])
def test_a_child_that_outlives_its_process_does_not_keep_it_alive(opened, peer, start):
    """Whatever it inherits, with and without a program of its own."""
    store, other = opened(), peer()
    enroll(store, "sales")
    other("store.do(store.tasks.claim('sales', 'run1', now=second(1), mark=second(1)))")
    child = other(start)
    try:
        other.kill()

        eventually(lambda: store.tasks.row("sales").holder.orphan)
        assert isinstance(store.do(store.tasks.take_over("sales", second(9))), Claim)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not locks.OF_BYTES, reason="needs locks that POSIX record locks see")
def test_processes_of_an_older_version_are_seen(opened, peer, home):
    """In a rolling update they hold POSIX record locks, and look by these."""
    store, other = opened(), peer()
    other("import fcntl; file = open(folder / 'peers' / '1-old.owner', 'w'); fcntl.lockf(file, fcntl.LOCK_EX)")
    assert store.records.alive("1-old")
    look = "mine = open(path, 'r+'); fcntl.lockf(mine, fcntl.LOCK_SH | fcntl.LOCK_NB)"
    with pytest.raises(BlockingIOError):
        other(look, path=home / "peers" / f"{store.records._me}.owner")
    other("file.close()")
    assert not store.records.alive("1-old")


def test_viewers_of_a_dead_process_do_not_count(opened, peer):
    """Their sessions are gone with it."""
    store, other = opened(), peer()
    enroll(store, "sales")
    other("store.tasks.watch('sales', 3)")
    store.tasks.count_viewers("sales")
    assert 3 == store.tasks.row("sales").viewers
    store.listen()
    other.kill()

    eventually(lambda: store.tasks.row("sales").viewers == 0)


def test_the_last_process_removes_what_nobody_named(opened, peer, home):
    """The directory of one server goes with it, a named one stays."""
    store, other = opened(persistent=False), peer(persistent=False)
    put(store, "rates", large(1))
    store.close()
    assert ("rates", 1) == (other("next(store.values.names(USER))"), other("store.values.entry(USER, 'rates').version"))
    other("store.close()")
    assert not home.exists()

    opened().close()
    assert home.exists()


def test_who_comes_while_the_last_one_tears_down_loses_nothing(opened, home, monkeypatch):
    """A process of the same server that starts late: it has a directory of its own, and not one that goes with that."""
    first, late = opened(persistent=False), []
    put(first, "rates", large(1))
    remove = shutil.rmtree

    def slowly(path, *args, **options):
        (Path(path) / "door").unlink()
        late.append(opened(persistent=False))
        put(late[0], "rates", large(2))
        monkeypatch.undo()
        remove(path, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    first.close()
    [store] = late
    assert store.records._liveness.known
    assert [home] == list(home.parent.iterdir())
    assert 2 == value(store, "rates")


def test_who_comes_when_it_is_torn_down_makes_it_anew(opened, home, monkeypatch):
    """Between two steps of who comes."""
    lock_file = directory.LockFile

    def gone(path, *args):
        monkeypatch.undo()
        shutil.rmtree(home)
        return lock_file(path, *args)

    monkeypatch.setattr(directory, "LockFile", gone)
    store = opened(persistent=False)
    put(store, "rates", 1)
    assert 1 == value(store, "rates")


def test_leftovers_of_killed_servers_are_swept(monkeypatch, tmp_path, peer):
    """By the next server; one that is alive keeps its directory."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = directory.automatic(os.getpid())
    gone, alive = mine.with_name("999999999-123"), mine.with_name("999999998-123")
    killed, living = peer(path=gone, persistent=False), peer(path=alive, persistent=False)
    killed.kill()
    (mine.parent / "something else").mkdir()
    half = mine.with_name("999999997-123.0a1b.gone")
    (half / "values").mkdir(parents=True)

    assert mine == directory.automatic(os.getpid())
    assert {alive, mine.parent / "something else"} == set(mine.parent.iterdir())
    living("store.values.publish(USER, 'a', 1, now=second(0))")


def test_orphaned_files_are_swept(opened, peer, home):
    """Those that no row names, of processes that died before they could; nobody else's."""
    other, dead, store = peer(), peer(), opened()
    put(store, "rates", large(1))
    dead("store.values.publish(USER, 'theirs', value, now=second(0))", value=large(2))
    for process in (dead, other):
        process("store.records._blobs._pending.add(f'{store.records._me}.77')")  # it is about to be committed
        process("(store.records._files / f'{store.records._me}.77').write_bytes(b'half')")
    before = set(files(home))
    dead.kill()
    orphan = next(path for path in before if path.name == f"{dead_name(before, other)}.77")

    opened()

    assert {orphan} == before - set(files(home))
    assert (1, 2) == (value(store, "rates"), value(store, "theirs"))


def test_a_file_of_the_living_that_a_dead_one_has_replaced_is_swept(opened, peer, home):
    """Who commits removes what he has replaced, if he lives to."""
    writer, victim = peer(), peer()
    writer("store.listen()")
    writer("store.values.publish(USER, 'rates', value, now=second(0))", value=large(1))
    [old] = files(home)
    victim("import os; store.records._unlink = lambda files: os._exit(1)")
    with pytest.raises(EOFError):
        victim("store.values.publish(USER, 'rates', value, now=second(1))", value=large(2))
    assert old in files(home)
    eventually(lambda: (2, 2) == seen(writer, "rates") and old not in files(home), timeout=5.0)
    writer("store.values.publish(USER, 'rates', value, now=second(2))", value=large(3))
    assert 1 == len(files(home))
    assert 3 == value(opened(), "rates")


def dead_name(paths, living):
    owners = {path.name.rpartition(".")[0] for path in paths if path.name.endswith(".77")}
    (dead,) = owners - {living("store.records._me")}
    return dead


def test_nothing_of_a_closed_store_is_taken_for_damage(opened, home, caplog):
    """What comes late gets an error, and the directory is left alone."""
    store = opened()
    put(store, "rates", 1)
    store.close()
    store.close()

    for late in (lambda: put(store, "rates", 2), lambda: store.tasks.row("x"), lambda: store.history("x")):
        with pytest.raises(StoreError, match="closed"):
            late()
    assert 1 == value(store, "rates")
    assert [] == list(home.glob("*corrupt*"))
    assert 1 == value(opened(), "rates")


# ------------------------------------------------------------ values


def test_large_values_are_files_that_go_with_their_successor(opened, home):
    """One for each value, none for small ones; deleted ones and refused ones leave nothing."""
    store = opened()
    for number in range(4):
        put(store, "rates", large(number))
        put(store, "small", number)
    assert 1 == len(files(home))
    put(store, "sales", large(1), TASK)
    store.values.delete(USER, "rates")
    store.tasks.forget("sales")
    lost = claim(store, "other")
    store.do(store.tasks.release(lost))
    with pytest.raises(RunFenced):
        put(store, "other", large(1), TASK, claim=lost)

    assert [] == files(home)


def test_a_reader_keeps_a_value_whose_file_is_gone(opened):
    """A map lives longer than its name."""
    store, other = opened(), opened()
    put(store, "rates", large(1))
    mapped = other.values.entry(USER, "rates").value
    put(store, "rates", large(2))

    assert (1, 2) == (mapped[-1], value(other, "rates"))


def test_frames_and_classes_travel(opened, peer):
    """A polars frame; and what no other process can import, by value."""
    module = ModuleType("panel_setup_module")
    exec("class Result:\n    data = list(range(9))\n    def total(self): return sum(self.data)",
         module.__dict__)  # fmt: skip
    store, other = opened(), peer()
    frame = pl.DataFrame({"a": range(50_000), "b": ["text"] * 50_000})
    put(store, "frame", frame)
    put(store, "result", module.Result())

    assert frame.equals(other("store.values.entry(USER, 'frame').value"))
    assert 36 == other("store.values.entry(USER, 'result').value.total()")


def test_a_value_that_cannot_be_read_back_is_refused(opened, home):
    """Here, and not by an error in each of the others (invariant 11)."""
    store = opened()
    put(store, "rates", 1)

    with pytest.raises(ValueRefused, match=r"ps\.store\['rates'\]: .*ZeroDivisionError"):
        put(store, "rates", Unreadable())
    assert (1, []) == (value(store, "rates"), files(home))


class Unreadable:
    def __reduce__(self):
        return divmod, (1, 0)


def test_a_value_whose_class_is_gone_is_reported(opened, monkeypatch, caplog):
    """After a restart with other code there is no value, and a reason."""
    module = ModuleType("code_of_last_year")
    module.Result = type("Result", (), {"__module__": "code_of_last_year"})
    monkeypatch.setitem(sys.modules, "code_of_last_year", module)
    store = opened()
    put(store, "sales", module.Result(), TASK)
    put(store, "rates", module.Result())
    store.close()
    monkeypatch.delitem(sys.modules, "code_of_last_year")
    store = opened()

    assert (None, None) == (store.values.entry(TASK, "sales"), store.values.entry(USER, "rates"))
    told = "\n".join(messages(caplog))
    assert "ps.store['rates']: version 1 of its value cannot be read, it has to be computed again" in told
    assert "Task 'sales'" in told
    assert "code_of_last_year" in told
    assert 2 == put(store, "rates", 1).version


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "flipped", "gone"])
def test_a_damaged_file_is_never_served(opened, home, caplog, damage):
    """The last good value stays, at a start there is none; both are said once, and the next value is good."""
    store, other = opened(), opened()
    put(store, "rates", large(1))
    assert 1 == value(other, "rates")
    put(store, "rates", large(2))
    (path,) = files(home)
    data = path.read_bytes()
    path.unlink()  # who has mapped it keeps it
    if damage != "gone":
        path.write_bytes({
            "truncated": data[:-1000], "empty": b"", "foreign": b"PK" + data, "flipped": data[:30] + b"?" + data[31:],
        }[damage])  # fmt: skip

    for _ in range(3):
        assert 1 == value(other, "rates")
    assert 1 == len(messages(caplog))
    assert "the last good one stays" in messages(caplog)[0]
    late = opened()
    assert value(late, "rates") is None
    assert "it has to be computed again" in messages(caplog)[1]
    put(store, "rates", large(3))
    assert (3, 3) == (value(other, "rates"), value(late, "rates"))


def test_two_that_store_large_values_at_once_disturb_nobody(opened):
    """The file of one may be superseded before its process has looked back at it."""
    stores = [opened(), opened()]

    def body(number):
        for count in range(60):
            put(stores[number], "rates", large(count))

    assert [] == hammer(2, body)


def test_more_values_than_file_descriptors(peer, home):
    """Half of them are for values; what is beyond that is read instead of mapped, and nothing fails."""
    other = peer(
        "import resource, numpy as np\nresource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        "def put(number): store.values.publish(USER, str(number), np.full(9000, number), now=second(0))"
    )
    for number in range(0, 600, 100):
        other(f"for number in range({number}, {number + 100}): put(number)")

    assert 600 == len(files(home))
    assert list(range(600)) == other("[int(store.values.entry(USER, str(n)).value[-1]) for n in range(600)]")
    assert other("len(os.listdir('/proc/self/fd'))") < 100
    late = peer("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))")
    assert list(range(600)) == late("[int(store.values.entry(USER, str(n)).value[-1]) for n in range(600)]")


# ------------------------------------------------------------ who may


def test_nobody_else_may_look(opened, home):
    """Whatever the umask says."""
    umask = os.umask(0)
    try:
        store = opened()
        put(store, "rates", large(1))
    finally:
        os.umask(umask)

    for path in [home, *home.rglob("*")]:
        mode = path.stat().st_mode
        if not stat.S_ISSOCK(mode):
            assert (0o700 if stat.S_ISDIR(mode) else 0o600) == stat.S_IMODE(mode), path


@as_root
def test_the_directory_of_another_user_is_refused(opened, home):
    """The message says whose, and what to do."""
    home.mkdir(mode=0o700)
    os.chown(home, 65534, 65534)

    with pytest.raises(StoreError, match=r"belongs to user 65534.*ps\.config\.store, or chown"):
        opened()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_may_write_is_refused(opened, home, mode):
    """The message says what to do."""
    home.mkdir()
    home.chmod(mode)

    with pytest.raises(StoreError, match=f"can be written by other users.*chmod 700 {home}"):
        opened()


def test_a_file_in_place_of_the_directory_is_refused(opened, home):
    """By name."""
    home.write_text("")

    with pytest.raises(StoreError, match=f"{home}.*ps.config.store"):
        opened()


def test_the_automatic_directory_is_no_link(monkeypatch, tmp_path):
    """Somebody else may have put it into /tmp before."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / f"panel-schedule-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StoreError, match="no directory"):
        directory.automatic(os.getpid())


# ------------------------------------------------------------ the database


def damage_middle(path):
    data = bytearray(path.read_bytes())
    assert len(data) > 40 * 4096
    data[20 * 4096 : 22 * 4096] = os.urandom(2 * 4096)
    path.write_bytes(data)


DAMAGES = {
    "garbage at the start": lambda path: path.write_bytes(b"garbage" * 20 + path.read_bytes()[140:]),
    "garbage in the middle": damage_middle,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_corrupt_database_is_set_aside_at_a_start(opened, home, caplog, damage):
    """And rebuilt with what can still be read (SQLite in section 4)."""
    store = opened()
    for number in range(60):
        put(store, f"value{number}", np.full(1000, number))
    enroll(store, "sales")
    store.close()
    DAMAGES[damage](home / "store.db")
    store = opened()

    assert 8 == put(store, "new", 8).value
    left = [name for name in store.values.names(USER) if name != "new"]
    assert all(value(store, name) == int(name.removeprefix("value")) for name in left)
    if damage == "garbage in the middle":
        assert len(left) > 30
    if damage != "empty":
        assert ["store.db.corrupt-1"] == [path.name for path in home.glob("*corrupt-?")]
        assert "It is kept as store.db.corrupt-1" in messages(caplog)[0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_database_that_is_damaged_in_use_is_rebuilt(peer, home, damage):
    """With what all processes have in memory; they go on."""
    first, other = peer(persistent=True), peer()
    for number in range(60):
        first("store.values.publish(USER, f'value{number}', np.full(1000, number), now=second(0))"
              if number else "import numpy as np", number=number)  # fmt: skip
    first("store.values.publish(USER, 'value0', np.full(20_000, 0), now=second(0))")
    other("import numpy as np")
    assert 60 == other("len([entry for n in range(60) if (entry := store.values.entry(USER, f'value{n}'))])")
    first("store.records._database._writer.execute('PRAGMA wal_checkpoint(TRUNCATE)').close()")
    DAMAGES[damage](home / "store.db")

    def works(process, number):
        with suppress(StoreError):
            process("store.values.publish(USER, 'new', number, now=second(number))", number=number)
            return True

    eventually(lambda: works(first, 1))
    eventually(lambda: works(other, 2))
    late = peer()
    for process in (first, other, late):
        eventually(lambda process=process: process("store.values.entry(USER, 'new').value") == 2)
        found = process("[int(store.values.entry(USER, f'value{n}').value[-1]) for n in range(60)]")
        assert list(range(60)) == found


def test_a_database_is_set_aside_by_one_process_only(opened, home):
    """Two that find it corrupt at once do not throw away the new one of the other."""
    stores = [opened(), opened()]
    put(stores[0], "rates", 1)
    for store in stores:
        former, found = store.records._database, database.Corrupt("a page")
        store.records._renew(former, found)

    assert ["store.db.corrupt-1"] == [path.name for path in home.glob("*corrupt-?")]
    put(stores[0], "rates", 2)
    assert [2, 2] == [value(store, "rates") for store in stores]


def test_damage_that_is_found_within_a_transaction_is_no_deadlock(opened):
    """Rows are read in it."""
    store = opened()
    enroll(store, "sales")

    with pytest.raises(StoreError, match="made anew"), store.records._transaction():
        raise database.Corrupt("a page")
    assert 1 == put(store, "rates", 1).version


@contextmanager
def connection(home):
    found = sqlite3.connect(home / "store.db", isolation_level=None)
    yield found
    found.close()


def test_a_newer_store_is_refused(opened, home, caplog):
    """With the remedy; and left as it is."""
    opened().close()
    with connection(home) as found:
        found.execute("PRAGMA user_version = 99")

    for _ in range(2):
        with pytest.raises(StoreError, match=r"newer panel-schedule \(schema 99.*Upgrade panel-schedule"):
            opened()
    assert [] == list(home.glob("*corrupt*"))
    assert [] == list((home / "peers").iterdir())


def test_a_database_of_something_else_is_set_aside(opened, home, caplog):
    """It is not ours to write into."""
    home.mkdir(mode=0o700)
    with connection(home) as found:
        found.execute("CREATE TABLE theirs (a)")
    put(opened(), "rates", 1)

    assert "something else" in messages(caplog)[0]
    assert (home / "store.db.corrupt-1").exists()


def test_odd_names_of_directories_are_no_trap(opened, home):
    """What is salvaged is named by an URI."""
    odd = home.with_name("100% odd?#name")
    store = opened(odd)
    for number in range(60):
        put(store, f"value{number}", np.full(1000, number))
    store.close()
    damage_middle(odd / "store.db")

    assert len(list(opened(odd).values.names(USER))) > 30


def test_a_database_that_somebody_holds_is_an_error_for_a_while(opened, peer, home, monkeypatch):
    """Readers go on, writers wait for some seconds and say why; then it works (invariant 8)."""
    assert 5 == database.PATIENCE
    monkeypatch.setattr(database, "PATIENCE", 0.3)
    store, other = opened(), peer()
    put(store, "rates", 1)
    other("store.records._database._writer.execute('BEGIN IMMEDIATE').fetchall()")

    with pytest.raises(StoreError, match=r"locked.*Another process holds it"):
        put(store, "rates", 2)
    assert (1, ["rates"], None) == (value(store, "rates"), list(store.values.names(USER)), store.tasks.row("sales"))
    other("store.records._database._writer.execute('ROLLBACK').fetchall()")
    assert 2 == put(store, "rates", 2).version


# ------------------------------------------------------------ what befalls the directory


LOSSES = {
    "the directory": lambda home: shutil.rmtree(home),
    "the database": lambda home: [path.unlink() for path in home.glob("store.db*")],
    "a value file": lambda home: files(home)[0].unlink(),
    "all value files": lambda home: shutil.rmtree(home / "values"),
    "the peers": lambda home: shutil.rmtree(home / "peers"),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("listening", [True, False], ids=["in a server", "in a script"])
def test_what_is_deleted_in_use_comes_back(peer, home, loss, listening):
    """Readers go on, all processes follow, the values are there again, and everybody is known to be alive."""
    first, other = peer("import numpy as np"), peer("import numpy as np")
    first("store.values.publish(USER, 'rates', np.full(20_000, 1), now=second(0))")
    first("store.values.publish(USER, 'small', np.full(2, 2), now=second(0))")
    assert ((1, 1), (1, 2)) == (seen(other, "rates"), seen(other, "small"))
    if listening:
        first("store.listen()")
        other("store.listen()")
    LOSSES[loss](home)

    assert ((1, 1), (1, 1)) == (seen(first, "rates"), seen(other, "rates"))
    first("store.values.publish(USER, 'rates', np.full(20_000, 3), now=second(0))")
    eventually(lambda: seen(other, "rates") == (2, 3))
    other("store.values.publish(USER, 'rates', np.full(20_000, 4), now=second(0))")
    eventually(lambda: seen(first, "rates") == (3, 4))
    late = peer()
    assert ((3, 4), (1, 2)) == (seen(late, "rates"), seen(late, "small"))
    for one in (first, other):
        eventually(lambda one=one: late("store.records.alive(owner)", owner=one("store.records._me")))


def test_a_value_file_that_was_deleted_is_written_anew(opened, peer, home):
    """By a process that has the value, before anybody publishes again."""
    other = peer("import numpy as np")
    other("store.values.publish(USER, 'rates', np.full(20_000, 1), now=second(0))")
    other("store.listen()")
    files(home)[0].unlink()
    store = opened()

    eventually(lambda: value(store, "rates") == 1)
    assert 1 == store.values.entry(USER, "rates").version


def test_seeding_leaves_no_file_behind(opened, home):
    """What is there already is not written again."""
    store = opened()
    put(store, "rates", large(1))
    before = files(home)

    store.values.seed(store.values._entries)

    assert before == files(home)


@pytest.mark.parametrize("size", [LARGE, 5000], ids=["file", "database"])
def test_a_full_disk_costs_no_value(opened, tiny, size):
    """The error says so, the last good value is served, and when there is room again it goes on (invariant 8)."""
    store = opened(tiny / "store")
    put(store, "rates", np.full(size, 1))
    ballast = tiny / "ballast"
    with suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()

    with pytest.raises(StoreError, match=r"(?i)(no space left|full).*Free some space"):
        [put(store, "rates", np.full(size, number)) for number in range(2, 9)]
    entry = store.values.entry(USER, "rates")
    ballast.unlink()

    assert entry.version == entry.value[-1]
    assert entry.version + 1 == put(store, "rates", np.full(size, 99)).version
    assert 99 == value(opened(tiny / "store"), "rates")


@as_root
def test_a_directory_that_cannot_be_written_costs_no_value(peer, home):
    """The same for a right that is missing; also at a start."""
    drop = "import numpy as np\nos.setgid(65534)\nos.setuid(65534)"
    for path in (*home.parents, home):
        if path.is_relative_to(Path("/tmp")) and path != Path("/tmp"):
            path.mkdir(exist_ok=True)
            path.chmod(path.stat().st_mode | 0o711)
    home.chmod(0o700)
    os.chown(home, 65534, 65534)
    other = peer(drop)
    other("store.values.publish(USER, 'rates', np.full(20_000, 1), now=second(0))")
    (home / "values").chmod(0o500)

    with pytest.raises(StoreError, match=r"Permission denied.*right to write"):
        other("store.values.publish(USER, 'rates', np.full(20_000, 2), now=second(0))")
    assert (1, 1) == seen(other, "rates")
    with pytest.raises(StoreError, match="Make it yourself"):
        peer(drop, path=Path("/proc/store"))
    (home / "values").chmod(0o700)
    other("store.values.publish(USER, 'rates', np.full(20_000, 3), now=second(0))")
    assert (2, 3) == seen(other, "rates")


def test_a_bell_that_cannot_ring_costs_no_value(opened, monkeypatch):
    """The value is stored; the others look by themselves before long."""
    store, other = opened(), opened()

    def fail(*args):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("panel_schedule.stores.file.wakeup.os.scandir", fail)
        put(store, "rates", large(1))

    assert (1, 1) == (value(store, "rates"), value(other, "rates"))


def test_reading_raises_nothing(opened, monkeypatch, caplog):
    """Whatever the disk does: there is what was known, and one line in the log."""
    store = opened()
    put(store, "rates", 1)

    def fail(*args, **options):
        raise StoreError("the disk is gone")

    monkeypatch.setattr(store.records._database, "read", fail)

    for _ in range(3):
        assert (1, ["rates"], None) == (
            value(store, "rates"),
            list(store.values.names(USER)),
            store.values.entry(TASK, "sales"),
        )
    assert 1 == len(messages(caplog))


def test_what_was_promised_in_seconds():
    """A death is noticed within 2 s (invariant 14)."""
    assert timedelta(seconds=opened.LOOK) < timedelta(seconds=2)
    assert codec.FORMAT == 1


# ------------------------------------------------------------ what comes at a bad moment


def test_ctrl_c_behind_the_commit_loses_nothing(opened, monkeypatch):
    """The file is the value's by then."""
    store, other = opened(), opened()
    put(store, "big", large(1))

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(store.records._wake_ups, "ring", interrupt)
    with pytest.raises(KeyboardInterrupt):
        put(store, "big", large(2))

    assert 2 == value(other, "big")


def test_what_cannot_be_read_for_a_moment_is_read_later(opened, monkeypatch, caplog):
    """Too many open files, say: a daily value must not stay the old one for a day."""
    store, other = opened(), opened()
    put(store, "big", large(1))
    assert 1 == value(other, "big")
    opening, failed = codec.Mapped.open, []

    def fail_once(path):
        if not failed:
            failed.append(path)
            raise OSError(errno.EMFILE, "Too many open files")
        return opening(path)

    put(store, "big", large(2))
    monkeypatch.setattr(codec.Mapped, "open", fail_once)
    assert 1 == value(other, "big")

    assert 2 == value(other, "big")
    assert 1 == sum("Too many open files" in message for message in messages(caplog))


def test_an_error_that_is_no_valid_text_is_recorded(opened):
    """A file name of unknown encoding in its message."""
    store = opened()
    enroll(store, "sales")
    held = claim(store, "sales")
    store.do(store.tasks.progress(held, 5, "reading \udcff"))

    assert store.do(store.tasks.record("sales", ended(1, RunState.FAILED, error="no file \udcff")))
    assert "no file \\udcff" == store.history("sales")[0].error == store.tasks.row("sales").error
