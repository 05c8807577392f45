"""What a store of files promises about background jobs: none is lost, and every process can follow and take it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import timedelta
from types import ModuleType

import numpy as np
import pytest

from core import PATIENCE, messages
from old_schema import as_of_schema
from panel_schedule.coordination.history import JOB
from panel_schedule.errors import (
    RunCancelled,
    RunCrashed,
    RunFailed,
    RunFenced,
    StoreError,
    ValueRefused,
    ValueUnreadable,
)
from panel_schedule.functions.run import RunState
from panel_schedule.serialize.codec import encode
from panel_schedule.serialize.errors import RemoteTraceback, traceback_text
from panel_schedule.stores import queue
from panel_schedule.stores.file import database
from panel_schedule.stores.file.records import FileRecords
from panel_schedule.stores.memory import MemoryStore
from panel_schedule.testing import VirtualClock
from panel_schedule.testing.contracts.tools import hammer
from servers import eventually
from store_peer import second

# Where a process dies that is noticed by its lock in a directory, and by its lease over a server.
pytestmark = pytest.mark.stores("asked")
anywhere, in_a_directory = pytest.mark.stores("all"), pytest.mark.stores("none")
with_a_death = pytest.mark.stores("asked", lease=1.0)

LARGE = 20_000  # numbers of 8 bytes: more than stands in the database

# Of another process: what it hears of jobs is in `jobs`.
THERE = """
import queue as queues
import numpy as np
from panel_schedule.functions.run import RunState
from panel_schedule.serialize.codec import encode
jobs = queues.Queue()
def enter(id, payload=None, **options):
    options = {"now": second(0), "synced": False} | options
    return store.queue.enqueue(id, "optimise", payload=encode(payload, "Job 'optimise'"), **options)
def listen():
    store.queue.watch_jobs(jobs.put)
    store.listen()
"""


@pytest.fixture
def worker(peer):
    """Start processes that know how to enter jobs."""
    return lambda before="", **options: peer(THERE + before, **options)


def large(number):
    return np.full(LARGE, number)


def enter(store, id="run1", payload=None, **options):
    options = {"now": second(0), "synced": False} | options
    return store.queue.enqueue(id, "optimise", payload=encode(payload, "Job 'optimise'"), **options)


def succeed(store, id="run1", fence=1, value=None, expires_at=None):
    return store.queue.end(id, fence, RunState.SUCCEEDED, now=second(9), value=value, expires_at=expires_at)


def states(store, *ids):
    return [store.queue.job(id).state for id in ids]


# ------------------------------------------------------------ one process


def test_a_store_of_one_process_has_a_queue_as_well():
    store = MemoryStore(clock=VirtualClock())
    assert enter(store) is None
    assert RunState.QUEUED is store.queue.job("run1").state
    assert "done" == succeed(store, value="done")
    assert "done" == store.queue.value("run1")


def test_a_job_is_followed_from_its_submit_to_its_end(opened):
    """Every process sees every step (invariant 17)."""
    store, other = opened(), opened()
    assert enter(store, key="digest", durable=True) is None
    queued = other.queue.job("run1")
    assert ("optimise", "digest", RunState.QUEUED, 1, 1) == (
        queued.function, queued.key, queued.state, queued.attempt, queued.fence,
    )  # fmt: skip
    assert (second(0), None, False, True) == (queued.queued_at, queued.started_at, queued.mine, queued.durable)
    store.queue.begin("run1", 1, second(1), 1)
    store.queue.tell("run1", 1, 40, "year \udcff")
    running = other.queue.job("run1")
    assert (RunState.RUNNING, second(1), 40, "year \\udcff") == (
        running.state, running.started_at, running.percent, running.message,
    )  # fmt: skip
    assert store.queue.job("run1").mine
    store.queue.again("run1", 1, 2)
    assert (RunState.QUEUED, 2) == (other.queue.job("run1").state, other.queue.job("run1").attempt)
    store.queue.begin("run1", 1, second(2), 2)
    store.queue.tell("run1", 1, 50, "")

    assert [1] == succeed(store, value=[1])

    ended = other.queue.job("run1")
    assert (RunState.SUCCEEDED, second(9), 100, False) == (ended.state, ended.finished_at, ended.percent, ended.orphan)
    assert [1] == other.queue.value("run1")
    assert (None, []) == (other.queue.failure("run1"), other.queue.orphans())
    assert ended.record.revision > running.record.revision > queued.record.revision


def test_jobs_are_listed_newest_first(opened):
    """Of one function."""
    store = opened()
    for number in range(3):
        enter(store, f"run{number}")
    store.queue.enqueue("else", "another", now=second(0), payload=None, synced=False)

    assert ["run2", "run1", "run0"] == [job.id for job in store.queue.jobs("optimise")]
    assert (None, []) == (store.queue.job("unknown"), store.queue.jobs("unknown"))


def test_the_last_ones_that_ended_are_listed_and_all_that_have_not(opened):
    """Of one user as well, however many others have had since."""
    store = opened()
    queue = store.queue
    for number in range(200):
        enter(store, f"run{number}", user="ann" if number < 60 else "bob")
        if number >= 5:
            queue.end(f"run{number}", 1, RunState.SUCCEEDED, now=second(1), value=1, expires_at=None)

    def ids(*numbers):
        return [f"run{number}" for number in numbers]

    assert ids(*range(199, 149, -1), *range(4, -1, -1)) == [job.id for job in queue.jobs("optimise")]
    assert ids(*range(59, 9, -1), *range(4, -1, -1)) == [job.id for job in queue.jobs("optimise", "ann")]
    assert 1 == queue.value("run7")


@anywhere
def test_an_error_keeps_its_type_and_traceback(opened):
    """In every process (section 3, errors)."""
    store = opened()
    enter(store)
    try:
        raise FileNotFoundError(2, "No such file", "a.csv")
    except FileNotFoundError as error:
        store.queue.end("run1", 1, RunState.FAILED, now=second(1), error=error, reason="why", expires_at=None)
    job, error = opened().queue.job("run1"), opened().queue.failure("run1")

    assert ("FileNotFoundError: [Errno 2] No such file: 'a.csv'", "why") == (job.error, job.reason)
    assert (FileNotFoundError, "a.csv") == (type(error), error.filename)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "test_an_error_keeps" in traceback_text(error)
    with pytest.raises(KeyError, match="run1"):
        store.queue.value("run1")


def test_an_error_that_cannot_be_read_says_what_it_was(opened, monkeypatch):
    """With the traceback of its process."""
    module = ModuleType("code_of_last_year")
    module.Odd = type("Odd", (Exception,), {"__module__": "code_of_last_year"})
    monkeypatch.setitem(sys.modules, "code_of_last_year", module)
    store = opened()
    enter(store, "gone")
    enter(store, "never")
    for id, error in (("gone", module.Odd("no luck")), ("never", ValueError(sys._getframe()))):
        store.queue.end(id, 1, RunState.FAILED, now=second(1), error=error, traceback="there", expires_at=None)
    monkeypatch.delitem(sys.modules, "code_of_last_year")

    for id, line in (("gone", "Odd: no luck"), ("never", "ValueError: <frame")):
        error = store.queue.failure(id)
        assert isinstance(error, RunFailed)
        assert f"Job 'optimise' failed in another process: {line}" in str(error)
        assert "there" == traceback_text(error)


def test_a_value_that_cannot_be_shared_changes_nothing(opened, address):
    """The job can still end otherwise (invariant 11)."""
    store = opened()
    enter(store)
    for value in (sys._getframe(), [large(1), Odd()]):
        with pytest.raises(ValueRefused, match="Job 'optimise'"):
            succeed(store, value=value)
        with pytest.raises(ValueRefused, match="Job 'optimise'"):
            store.queue.add_partial("run1", 1, 0, sys._getframe())

    assert ([RunState.QUEUED], []) == (states(store, "run1"), address.large_parts())
    succeed(store, value=1)
    assert 1 == store.queue.value("run1")


class Odd:
    def __reduce__(self):
        return divmod, (1, 0)


def test_partials_stay_in_order(opened, address):
    """None is dropped, large ones are files, and those of an earlier attempt go as the next one begins."""
    store, other = opened(), opened()
    enter(store)
    store.queue.begin("run1", 1, second(1), 1)
    for number in (0, 2, 1, 3):  # by threads, say
        store.queue.add_partial("run1", 1, number, large(number) if number % 2 else number)
    assert [0, 1, 2, 3] == [int(np.asarray(each).flat[0]) for each in other.queue.partials("run1")]
    assert (4, 2) == (other.queue.job("run1").partials, len(address.large_parts()))
    assert [3] == [int(each[-1]) for each in other.queue.partials("run1", 3)]
    store.queue.begin("run1", 1, second(2), 2)
    assert 0 == other.queue.job("run1").partials
    store.queue.add_partial("run1", 1, 0, "anew")
    assert (["anew"], 1, []) == (other.queue.partials("run1"), other.queue.job("run1").partials, address.large_parts())

    succeed(store)

    assert ["anew"] == other.queue.partials("run1")


def test_partials_of_many_threads_are_all_kept(opened):
    """And each of their calls returns."""
    store = opened()
    enter(store)

    def body(thread):
        for number in range(20):
            store.queue.add_partial("run1", 1, 20 * thread + number, (thread, number))
            store.queue.tell("run1", 1, number, "")

    assert [] == hammer(4, body)
    assert [(thread, number) for thread in range(4) for number in range(20)] == store.queue.partials("run1")


def test_who_has_lost_a_job_cannot_change_it(opened, address):
    """Each of its writes compares the fence (invariant 10); progress is dropped."""
    store, other = opened(), opened()
    enter(store, payload="A", durable=True)
    store.queue.begin("run1", 1, second(1), 1)
    store.queue.release()
    taken, payload = other.queue.take("run1", second(2))
    assert ("A", 2, 1, RunState.QUEUED) == (payload, taken.fence, taken.attempt, taken.state)

    store.queue.tell("run1", 1, 99, "late")
    for late in (
        lambda: succeed(store, value=large(1)),
        lambda: store.queue.begin("run1", 1, second(1), 1),
        lambda: store.queue.again("run1", 1, 2),
        lambda: store.queue.add_partial("run1", 1, 0, large(1)),
        lambda: other.queue.begin("run1", 1, second(1), 1),
        lambda: succeed(other, fence=1),
        lambda: succeed(store, "unknown"),
    ):
        with pytest.raises(RunFenced):
            late()

    assert ((-1, 0), []) == ((other.queue.job("run1").percent, other.queue.job("run1").partials), address.large_parts())
    succeed(other, fence=2)
    with pytest.raises(RunFenced):
        succeed(other, fence=2)


# ------------------------------------------------------------ one for all


@anywhere
def test_equal_calls_share_one_job(opened):
    """Under way or succeeded; not one that failed, is being cancelled or has expired, nor other arguments."""
    clock = VirtualClock()
    store, other = opened(clock=clock), opened(clock=clock)
    assert enter(store, "run1", key="a") is None
    assert "run1" == enter(other, "run2", key="a", payload=large(1)).id
    assert enter(other, "run3", key="b") is None
    succeed(store, "run1", expires_at=second(60))
    assert "run1" == enter(other, "run4", key="a").id
    assert enter(store, "run5", key="a", now=second(60)) is None
    store.queue.cancel("run5")
    assert enter(other, "run6", key="a", now=second(60)) is None
    other.queue.end("run6", 1, RunState.FAILED, now=second(61), error=ValueError(), expires_at=second(120))
    assert enter(other, "run7", key="a", now=second(62)) is None
    assert other.queue.job("run2") is None
    assert enter(store, "run8") is enter(store, "run9") is None


@anywhere
def test_one_of_many_processes_wins(worker, address):
    """Each time that they come with the same key at once; what the others brought is gone."""
    workers = [worker() for _ in range(4)]
    for number, each in enumerate(workers):
        each.send(f"[enter('run{number}-%d' % n, np.full(9000, n), key=str(n)) for n in range(60)]")
    answers = [each._answer() for each in workers]

    for number, found in enumerate(zip(*answers, strict=True)):
        assert 1 == sum(job is None for job in found)
        (winner,) = [index for index, job in enumerate(found) if job is None]
        assert {f"run{winner}-{number}"} == {job.id for job in found if job is not None}
    assert 60 == len(address.large_parts())


@with_a_death
def test_an_orphan_is_not_joined(opened, worker):
    """Nobody may ever take it."""
    other = worker()
    other("enter('run1', key='a', durable=True)")
    store = opened()
    assert "run1" == enter(store, "run2", key="a").id
    other.kill()

    assert enter(store, "run3", key="a") is None


# ------------------------------------------------------------ life and death


@with_a_death
def test_the_durable_job_of_a_dead_process_is_taken_once(opened, worker):
    """It is noticed within 2 s in every process (invariant 14), and one of them takes it."""
    first, others = worker(), [worker() for _ in range(3)]
    first("[enter(f'run{n}', (n, 'A'), durable=True) for n in range(30)]")
    first("store.queue.begin('run0', 1, second(1), 1)")
    for other in others:
        other("listen()")
    assert others[0]("store.queue.take('run0', second(1))") is None
    first.kill()
    for other in others:
        assert "run" == other("jobs.get(timeout=2)")[:3]
    store = opened()
    assert 30 == len(store.queue.orphans())
    for other in others:
        other.send("[(n, t) for n in range(30) if (t := store.queue.take(f'run{n}', second(2)))]")
    taken = [each for other in others for each in other._answer()]

    assert list(range(30)) == sorted(number for number, _ in taken)
    assert all((number, "A") == payload for number, (_, payload) in taken)
    assert {0: 2} | dict.fromkeys(range(1, 30), 1) == {number: job.attempt for number, (job, _) in taken}
    assert {(2, RunState.QUEUED, True)} == {(job.fence, job.state, job.mine) for _, (job, _) in taken}
    assert [] == store.queue.orphans()


@with_a_death
def test_a_job_that_is_not_durable_crashes_with_its_process(opened, worker):
    """The first that notices says so (invariant 17); nobody runs it again."""
    store, first, other = opened(), worker(), worker()
    first("enter('run1', np.full(9000, 1))")
    first("store.queue.begin('run1', 1, second(1), 1)")
    other("listen()")
    first.kill()

    assert "run1" == other("jobs.get(timeout=2)")
    job, error = store.queue.job("run1"), store.queue.failure("run1")
    assert (RunState.CRASHED, False) == (job.state, job.orphan)
    assert isinstance(error, RunCrashed)
    assert [("run1", RunState.CRASHED, job.error)] == [
        (run.id, run.state, run.error) for run in store.history("optimise", JOB)
    ]
    assert "Job 'optimise': the process that ran it died. Submit it again" in str(error)
    assert store.queue.take("run1", second(2)) is None
    assert job.expires_at - job.finished_at == timedelta(days=1)


@with_a_death
def test_who_does_not_listen_sees_a_crash_as_well(opened, worker, address):
    """A script asks; and its arguments are gone."""
    store, first = opened(), worker()
    first("enter('run1', np.full(9000, 1))")
    first.kill()

    assert ([RunState.CRASHED], []) == (states(store, "run1"), address.large_parts())


@with_a_death
def test_a_cancelled_job_of_a_dead_process_is_not_run_again(opened, worker):
    """Somebody had asked for that."""
    store, first = opened(), worker()
    first("enter('run1', durable=True)")
    store.queue.cancel("run1")
    first.kill()

    assert (None, []) == (store.queue.take("run1", second(1)), store.queue.orphans())
    store.records._look_around()
    assert [RunState.CANCELLED] == states(store, "run1")


@with_a_death
def test_one_that_is_cancelled_as_its_new_process_lets_it_go_has_ended(opened, worker, monkeypatch):
    """Nobody would take it, and nobody holds it."""
    store, other, first = opened(), opened(), worker()
    first("enter('run1', durable=True)")
    first.kill()

    def load(*part):
        other.queue.cancel("run1")
        raise StoreError("not now")

    monkeypatch.setattr(store.records, "load", load)
    with pytest.raises(StoreError, match="not now"):
        store.queue.take("run1", second(1))
    assert RunState.QUEUED is other.queue.job("run1").state
    other.records._catch_up()

    assert RunState.CANCELLED is store.queue.job("run1").state


def test_a_process_that_stops_loses_nothing(worker):
    """Its durable jobs are another's at once, at no attempt's cost (invariant 19); the rest is cancelled."""
    first, other = worker(), worker()
    first("enter('durable', 'A', durable=True), enter('other'), enter('unwanted', durable=True)")
    first("store.queue.begin('durable', 1, second(1), 1)")
    first("store.queue.cancel('unwanted')")
    other("listen()")
    first("store.queue.release()")

    assert {"durable", "other", "unwanted"} == {other("jobs.get(timeout=2)") for _ in range(3)}
    assert ["durable"] == [job.id for job in other("store.queue.orphans()")]
    assert [RunState.CANCELLED] * 2 == other("[store.queue.job(id).state for id in ('other', 'unwanted')]")
    assert isinstance(other("store.queue.failure('other')"), RunCancelled)
    job, payload = other("store.queue.take('durable', second(2))")
    assert (1, "A") == (job.attempt, payload)


def test_closing_a_store_releases(opened):
    """Whoever forgot."""
    first, store = opened(), opened()
    enter(first, durable=True)
    enter(first, "run2")
    for id in ("run1", "run2"):
        first.queue.begin(id, 1, second(1), 1)
    first.close()

    assert [RunState.QUEUED, RunState.CANCELLED] == states(store, "run1", "run2")
    assert 1 == store.queue.take("run1", second(2))[0].attempt


@anywhere
def test_another_process_cancels(worker):
    """The process that has it hears of it; it is for that one to end it (invariant 18)."""
    first, other = worker(), worker()
    first("listen()")
    first("enter('run1')")
    first("store.queue.tell('run1', 1, 5, '')")
    other("store.queue.cancel('run1')")

    assert "run1" == first("jobs.get(timeout=2)")
    assert (True, RunState.QUEUED) == first("(lambda job: (job.cancelled, job.state))(store.queue.job('run1'))")
    first("store.queue.end('run1', 1, RunState.CANCELLED, now=second(1), expires_at=None)")
    other("store.queue.cancel('run1')")
    assert (False, RunState.CANCELLED) == other("(lambda job: (job.cancelled, job.state))(store.queue.job('run1'))")


def test_an_orphan_is_cancelled_at_once(opened, address):
    """There is nobody to ask."""
    first, store = opened(), opened()
    enter(first, payload=large(1), durable=True)
    first.queue.release()

    store.queue.cancel("run1")

    assert ([RunState.CANCELLED], [], []) == (states(store, "run1"), address.large_parts(), store.queue.orphans())


def test_a_process_hears_of_others_jobs_and_not_of_its_own(worker):
    """A bell wakes it: nobody looks by himself in this test (invariant 16)."""
    first, other = worker("opened.LOOK = server_records.LOOK = 600"), worker("opened.LOOK = server_records.LOOK = 600")
    first("listen()")
    other("listen()")
    first("enter('run1')")
    first("store.queue.begin('run1', 1, second(1), 1)")
    assert "run1" == other("jobs.get(timeout=2)")
    other("enter('run2')")

    assert "run2" == first("jobs.get(timeout=2)")


@in_a_directory
def test_those_whose_file_was_deleted_are_not_taken_for_dead(worker, home):
    """They come back before anybody calls it a crash."""
    first, other = worker("opened.LOOK = 0.1"), worker("opened.LOOK = 0.3")
    first("listen()")
    first("enter('run1')")
    shutil.rmtree(home / "peers")
    other("store.records._look_around()")
    eventually(lambda: other("store.records.alive(owner)", owner=first("store.records._me")))
    other("store.records._look_around()")

    assert RunState.QUEUED is other("store.queue.job('run1').state")


# ------------------------------------------------------------ values


def test_a_large_result_is_one_copy_in_memory(worker):
    """In the process that made it, too (invariant 12)."""
    anonymous = "int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1])"
    first, other = worker(), worker()
    first("enter('run1')")
    first("value = np.ones(12_500_000)")
    first("value = store.queue.end('run1', 1, RunState.SUCCEEDED, now=second(1), value=value, expires_at=None)")
    for process in (first, other):
        process(f"before = {anonymous}")
        process("value = store.queue.value('run1')")
        assert 12_500_000 == process("value.sum()")
        assert process(f"{anonymous} - before") < 10_000  # KB, of 100,000
    assert not first("np.shares_memory(value, np.ones(1))")


def test_what_has_expired_is_gone_with_its_files(opened, address):
    """For whoever asks at once, and from the disk before long; the numbers of changes go on."""
    clock = VirtualClock()
    store, other = opened(clock=clock), opened(clock=clock)
    heard = []
    other.queue.watch_jobs(heard.append)
    enter(store, "kept")
    enter(store, "run1", payload=large(1))
    store.queue.add_partial("run1", 1, 0, large(2))
    succeed(store, value=large(3), expires_at=clock.now() + timedelta(seconds=60))
    assert 2 == len(address.large_parts())
    other.records._catch_up()
    last = store.queue.job("run1").record.revision
    clock.advance("1m")

    assert (None, ["kept"]) == (other.queue.job("run1"), [job.id for job in other.queue.jobs("optimise")])
    with pytest.raises(KeyError):
        other.queue.value("run1")
    assert ([], None) == (other.queue.partials("run1"), other.queue.failure("run1"))
    other.records._look_around()

    assert [] == address.large_parts()
    if address.is_directory:
        assert 0 == len(store.records._read("SELECT 1 FROM blobs WHERE name = 'run1'"))
    heard.clear()
    enter(store, "run2")
    other.records._catch_up()
    assert ["run2"] == heard
    assert store.queue.job("run2").record.revision > last


@in_a_directory
def test_what_has_expired_goes_when_a_store_is_opened(opened, address):
    """A script may be the only one that ever comes."""
    store = opened()
    enter(store)
    succeed(store, value=large(1), expires_at=second(10))
    store.close()
    opened()

    assert [] == address.large_parts()


@in_a_directory
def test_files_of_jobs_are_swept_if_no_row_names_them(worker, opened, address):
    """Of a process that died between file and commit; the others stay."""
    first = worker()
    first("enter('run1', np.full(9000, 1), durable=True)")
    first("store.queue.add_partial('run1', 1, 0, np.full(9000, 2))")
    first("enter('run2')")
    first("store.queue.end('run2', 1, RunState.SUCCEEDED, now=second(1), value=np.full(9000, 3), expires_at=None)")
    named = address.large_parts()
    first("(store.records._files / f'{store.records._me}.77').write_bytes(b'half')")
    first.kill()
    store = opened()

    assert named == address.large_parts()
    assert 1 == store.queue.take("run1", second(1))[1][0]
    assert (2, 3) == (store.queue.partials("run1")[0][0], store.queue.value("run2")[0])


@in_a_directory
def test_ctrl_c_behind_the_commit_loses_nothing(opened, monkeypatch):
    """The file is the job's by then."""
    store = opened()
    enter(store)

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(store.records._wake_ups, "ring", interrupt)
    with pytest.raises(KeyboardInterrupt):
        succeed(store, value=large(5))

    assert 5 == store.queue.value("run1")[0]


@pytest.mark.parametrize("damage", ["gone", "truncated", "code"])
@in_a_directory
def test_arguments_that_cannot_be_read_end_a_job(opened, address, damage, monkeypatch):
    """It has failed, and the error says why; it would fail in every process."""
    module = ModuleType("code_of_last_year")
    module.Portfolio = type("Portfolio", (), {"__module__": "code_of_last_year"})
    monkeypatch.setitem(sys.modules, "code_of_last_year", module)
    first, store = opened(), opened(clock=VirtualClock())
    enter(first, payload=[module.Portfolio(), large(1)], durable=True)
    first.queue.release()
    (path,) = (address.path / "values").iterdir()
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        monkeypatch.delitem(sys.modules, "code_of_last_year")

    assert store.queue.take("run1", second(1)) is None
    error = store.queue.failure("run1")
    assert ([RunState.FAILED], ValueUnreadable) == (states(store, "run1"), type(error))
    assert "Job 'optimise': its arguments cannot be read" in str(error)
    (run,) = store.history("optimise", JOB)
    assert ("run1", RunState.FAILED) == (run.id, run.state)
    assert "its arguments cannot be read" in run.error
    assert ([], []) == (store.queue.orphans(), address.large_parts())


@in_a_directory
def test_a_value_that_cannot_be_read_is_an_error(opened, address, home):
    """With the reason; one that cannot be read for a moment can be asked for again."""
    store = opened()
    enter(store)
    succeed(store, value=large(1))
    (path,) = (address.path / "values").iterdir()
    moved = path.rename(home / "moved")
    with pytest.raises(ValueUnreadable, match=r"Job 'optimise': its value cannot be read, its file was deleted"):
        store.queue.value("run1")
    path.symlink_to(path)
    with pytest.raises(StoreError, match="cannot be read now"):
        store.queue.value("run1")
    path.unlink()
    moved.rename(path)
    assert 1 == store.queue.value("run1")[0]


# ------------------------------------------------------------ what lasts


@with_a_death
def test_a_restart_goes_on_with_what_was_there(opened, worker):
    """Results until they expire, unfinished durable jobs with their partials (persistent stores)."""
    first = worker(server="first")
    first("enter('run1', 'A', key='a', durable=True, synced=True), enter('run2', key='b'), enter('run3')")
    first("store.queue.begin('run1', 1, second(1), 1)")
    first("store.queue.add_partial('run1', 1, 0, 'half')")
    first("store.queue.end('run2', 1, RunState.SUCCEEDED, now=second(1), value=np.full(9000, 2), expires_at=None)")
    first.kill()
    store = opened(server="second")

    assert ["run1"] == [job.id for job in store.queue.orphans()]
    job, payload = store.queue.take("run1", second(5))
    assert (2, "A", ["half"]) == (job.attempt, payload, store.queue.partials("run1"))
    assert "run2" == enter(store, "run4", key="b").id
    assert 2 == store.queue.value("run2")[0]
    assert [RunState.CRASHED] == states(store, "run3")


@in_a_directory
def test_a_store_of_the_first_version_gets_the_tables(opened, home):
    """What it holds stays."""
    opened().close()
    rates = encode(1, "")
    rates.seal("ps.store['rates']")
    entry = "INSERT INTO entries VALUES ('user', 'rates', 3, 1000000, NULL, NULL, 1, NULL, :value, NULL, 5)"
    as_of_schema(1, home / "store.db", entry, value=rates.tobytes())
    store = opened()

    assert 1 == store.values.entry("user", "rates").value
    enter(store)
    assert [RunState.QUEUED] == states(store, "run1")
    assert database.SCHEMA_VERSION == store.records._read("PRAGMA user_version")[0][0]


@pytest.mark.parametrize("users", [True, False])
@in_a_directory
def test_jobs_of_schema_3_go_on(opened, home, users):
    """Those of before runs had users are nobody's; equal calls go on to share one."""
    opened().close()
    columns = "number, id, function, key, durable, owner, state, queued_at, expires_at, change"
    old = [
        "(1, 'old', 'optimise', '', 1, '', 'queued', 1000000, NULL, 3)",
        "(2, 'done', 'optimise', 'k', 0, NULL, 'succeeded', 2000000, NULL, 4)",
    ]
    as_of_schema(
        3, home / "store.db",
        *(f"INSERT INTO jobs ({columns}) VALUES {row}" for row in old),
        *(["UPDATE jobs SET user = 'bob'"] if users else ["ALTER TABLE jobs DROP COLUMN user"]),
    )  # fmt: skip
    store = opened(clock=VirtualClock())
    enter(store, "new", user="ann")

    bob = "bob" if users else None
    assert {"old": bob, "done": bob, "new": "ann"} == {job.id: job.user for job in store.queue.jobs("optimise")}
    assert "done" == enter(store, "equal", key="k").id
    assert ["old"] == [job.id for job in store.queue.orphans()]
    assert ["new", "done", "old"] == [job.id for job in store.queue.jobs("optimise")]


@in_a_directory
def test_jobs_of_a_corrupt_database_are_saved(opened, home, caplog):
    """With all that can still be read."""
    store = opened()
    for number in range(60):
        enter(store, f"run{number}", payload=np.full(1000, number), durable=True)
    enter(store, "done")
    succeed(store, "done", value=large(7))
    store.close()
    data = bytearray((home / "store.db").read_bytes())
    data[60 * 4096 : 62 * 4096] = os.urandom(2 * 4096)
    (home / "store.db").write_bytes(data)
    store = opened(clock=VirtualClock())

    orphans = [job.id for job in store.queue.orphans()]
    assert len(orphans) > 30
    taken = {id: store.queue.take(id, second(1)) for id in orphans}
    whole = {id: int(found[1][0]) for id, found in taken.items() if found}
    assert len(whole) > 20
    assert all(f"run{number}" == id for id, number in whole.items())
    assert {RunState.FAILED} >= {store.queue.job(id).state for id in orphans if id not in whole}
    assert "is kept as store.db.corrupt-1" in messages(caplog)[0]


@pytest.mark.parametrize("loss", ["the database", "the directory"])
@pytest.mark.parametrize("listening", [True, False], ids=["in a server", "in a script"])
@in_a_directory
def test_what_is_deleted_in_use_costs_no_job(worker, opened, home, loss, listening):
    """Who has one goes on with it, and the others see it again."""
    first, other = worker(), worker()
    first("enter('run1', 'A', durable=True), enter('run2')")
    first("store.queue.end('run2', 1, RunState.SUCCEEDED, now=second(1), value=7, expires_at=None)")
    if listening:
        first("listen()")
        other("listen()")
    if loss == "the directory":
        gone = home.rename(home.with_name("gone"))  # at once: what is made anew there is not to be deleted, too
        shutil.rmtree(gone)
    else:
        for path in home.glob("store.db*"):
            path.unlink()
    first("store.queue.begin('run1', 1, second(1), 1)")
    other("enter('run3')")

    def seen(process):
        with suppress(StoreError):
            return sorted(job.id for job in process("store.queue.jobs('optimise')"))

    for process in (first, other):
        eventually(lambda process=process: ["run1", "run2", "run3"] == seen(process))
        assert (7, False) == process("(store.queue.value('run2'), store.queue.job('run1').orphan)")
    first("store.queue.release()")
    assert "A" == other("store.queue.take('run1', second(2))")[1]


@pytest.mark.parametrize("durable", [True, False])
@in_a_directory
def test_whose_directory_was_deleted_is_not_taken_for_dead(opened, home, durable):
    """Whoever hears of its jobs before it is back; who does not come back is dead."""
    clock = VirtualClock()
    first, other, third = opened(), opened(clock=clock), opened()
    enter(first, durable=durable)
    enter(third, "run2", durable=durable)
    jobs = other.queue.jobs("optimise")
    shutil.rmtree(home)

    for job in jobs:
        other.queue._bury(job.record)
    enter(other, "run3")
    first.queue.begin("run1", 1, second(1), 1)

    clock.advance("3s")
    for _ in range(2):
        other.records._look_around()
    assert RunState.RUNNING is other.queue.job("run1").state
    assert (RunState.QUEUED if durable else RunState.CRASHED) is other.queue.job("run2").state
    assert (["run2"] if durable else []) == [job.id for job in other.queue.orphans()]


@in_a_directory
def test_nobody_finds_the_store_empty_while_it_is_made_again(opened, home, monkeypatch):
    """Another thread that needs it waits until what can be saved is there."""
    store, rescue, saving, go = opened(), FileRecords._rescue, threading.Event(), threading.Event()
    enter(store, durable=True)

    def rescue_later(*args):
        saving.set()
        assert go.wait(PATIENCE)
        rescue(*args)

    monkeypatch.setattr(FileRecords, "_rescue", rescue_later)
    for path in home.glob("store.db*"):
        path.unlink()
    with ThreadPoolExecutor(2) as pool:
        entered = pool.submit(enter, store, "run2")
        assert saving.wait(PATIENCE)
        begun = pool.submit(store.queue.begin, "run1", 1, second(1), 1)
        early, _ = wait([begun], timeout=0.2)
        go.set()
        entered.result(PATIENCE), begun.result(PATIENCE)

    assert not early
    assert [RunState.RUNNING, RunState.QUEUED] == states(store, "run1", "run2")


@pytest.mark.parametrize("size", [LARGE, 5000], ids=["file", "database"])
@in_a_directory
def test_a_full_disk_costs_no_job(opened, tiny, size):
    """The error says so, and when there is room again it goes on."""
    store = opened(tiny / "store")
    enter(store, durable=True)
    ballast = tiny / "ballast"
    with suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()

    with pytest.raises(StoreError, match=r"(?i)(no space left|full).*Free some space"):
        [store.queue.add_partial("run1", 1, number, np.full(size, number)) for number in range(9)]
    with pytest.raises(StoreError, match=r"(?i)(no space left|full).*Free some space"):
        [enter(store, f"more{number}", payload=np.full(size, number)) for number in range(9)]
    ballast.unlink()
    assert 3 == succeed(store, value=np.full(size, 3))[0]
    assert 3 == opened(tiny / "store").queue.value("run1")[0]


def test_nothing_is_stored_in_a_closed_store(opened):
    """What comes late gets an error."""
    store = opened()
    enter(store)
    store.close()

    for late in (lambda: enter(store, "run2"), lambda: store.queue.job("run1"), lambda: succeed(store)):
        with pytest.raises(StoreError, match="closed"):
            late()


def test_a_stopped_process_is_not_dead(opened, worker):
    """Never by elapsed time (invariant 14)."""
    store, other = opened(), worker()
    other("enter('run1', durable=True)")
    other.signal(signal.SIGSTOP)

    assert ([], None) == (store.queue.orphans(), store.queue.take("run1", second(1)))
    store.records._look_around()
    assert [RunState.QUEUED] == states(store, "run1")
    other.signal(signal.SIGCONT)


# ------------------------------------------------------------ what is kept has a bound


def later(monkeypatch):
    """Each end counts anew."""
    monkeypatch.setattr(queue, "LOOK", 0.0)


def test_beyond_so_many_bytes_the_oldest_results_go(opened, address, monkeypatch):
    """With their files; the newest one stays, however large."""
    later(monkeypatch)
    store = opened(max_result_bytes=2 * 8 * LARGE + 10_000)
    for number in range(4):
        enter(store, f"run{number}")
        succeed(store, f"run{number}", value=large(number))

    assert [None, None] == [store.queue.job(f"run{number}") for number in range(2)]
    assert [2, 3] == [int(store.queue.value(f"run{number}")[0]) for number in (2, 3)]
    assert 2 == len(address.large_parts())
    enter(store, "huge")
    succeed(store, "huge", value=np.full(4 * LARGE, 5.0))
    assert (None, 5.0) == (store.queue.job("run3"), store.queue.value("huge")[0])


def test_beyond_so_many_runs_the_oldest_go(opened, monkeypatch):
    """What is under way stays; and the others hear of what comes after."""
    later(monkeypatch)
    monkeypatch.setattr(queue, "MOST", 3)
    store = opened()
    enter(store, "open")
    for number in range(5):
        enter(store, f"run{number}")
        succeed(store, f"run{number}", value=number)

    left = [number for number in range(5) if store.queue.job(f"run{number}") is not None]
    assert [2, 3, 4] == left
    assert store.queue.job("open") is not None
    heard = []
    store.records._catch_up()
    store.queue.watch_jobs(heard.append)
    enter(store, "new")
    opened().queue.cancel("new")
    store.records._catch_up()
    assert ["new"] == heard
