"""A server that comes back without what it had gets it again from the processes that have it."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from panel_schedule.clock import SystemClock
from panel_schedule.config import Config
from panel_schedule.coordination import jobs, tasks
from panel_schedule.coordination.record import Record, Refusal
from panel_schedule.coordination.tasks import OVERRIDE, TASK, TRIGGER, USER, VALUE, TaskState
from panel_schedule.decorators import Front
from panel_schedule.errors import StoreError
from panel_schedule.functions.run import RunState, progress
from panel_schedule.runtime import Runtime
from panel_schedule.stores import packing, server_records
from panel_schedule.stores.hurry import hurried
from panel_schedule.stores.postgres import PostgresStore
from panel_schedule.stores.redis import RedisStore
from panel_schedule.testing.contracts.tools import DAILY, START, claim, ended, enroll, put, refusal, row_of, second
from panel_schedule.triggers import Dates
from proxy import Proxy
from servers import eventually

redis = pytest.importorskip("redis", reason="needs the package redis")


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(server_records, "LOOK", 0.05)
    monkeypatch.setattr(server_records, "AGAIN", 0.05)


class Loss:
    """A Redis server, and how it loses all that it has: ``loss()``."""

    store = RedisStore

    def __init__(self, how, another_redis):
        self._how, self._another = how, another_redis
        self.server = another_redis()
        self._proxy = Proxy(self.server.port)
        self.url = self._proxy.url

    def __call__(self):
        match self._how:
            case "restart":
                self.server.kill()
                self.server.start()
            case "flush":
                self.server.client.flushall()
            case "failover":
                self.server = self._another()
                self._proxy.to = self.server.port
                self._proxy.drop()

    def records(self, space=""):
        """How many there are by now."""
        return len(self.server.client.keys(f"*:record:{space}*"))

    def logs(self):
        return len(self.server.client.keys("*:log:*"))

    def close(self):
        self._proxy.close()


class SchemaLoss:
    """The same of a PostgreSQL database."""

    store = PostgresStore

    def __init__(self, server):
        self._server, self.url = server, server.url
        self._before = set(self._schemas())

    def _schemas(self):
        return self._server.all("SELECT nspname FROM pg_namespace WHERE starts_with(nspname, 'panel_schedule_')")

    def __call__(self):
        for schema in set(self._schemas()) - self._before:
            self._server.all(f'DROP SCHEMA "{schema}" CASCADE')

    def _count(self, question):
        schemas = set(self._schemas()) - self._before
        return sum(self._server.all(question.format(f'"{schema}"'))[0] for schema in schemas)

    def records(self, space=""):
        return self._count(f"SELECT count(*) FROM {{}}.records WHERE starts_with(space, '{space}')")

    def logs(self):
        return self._count("SELECT count(DISTINCT (space, name)) FROM {}.logs")

    def close(self):
        self()


@pytest.fixture(params=["restart", "flush", "failover", "drop"])
def loss(request):
    if request.param == "drop":
        loss = SchemaLoss(request.getfixturevalue("postgres_server"))
    else:
        loss = Loss(request.param, request.getfixturevalue("another_redis"))
    yield loss
    loss.close()


@pytest.fixture
def flush(another_redis):
    loss = Loss("flush", another_redis)
    yield loss
    loss.close()


class LastChanges:
    """A Redis server that loses what has changed since `keep`, when it is killed and starts again: ``loss()``."""

    store = RedisStore

    def __init__(self, another_redis):
        self._server = another_redis()
        self.url = self._server.url

    def keep(self):
        self._server.client.save()

    def __call__(self):
        self._server.kill()
        self._server.start()


class LastCommits:
    """The same of a PostgreSQL server, of what it was not to wait for."""

    store = PostgresStore

    def __init__(self, server):
        server.renew(keeps=True)
        self._server, self.url = server, server.url

    def keep(self):
        self._server.lose_from_now_on()

    def __call__(self):
        self._server.kill()
        self._server.start()


@pytest.fixture(params=["redis", "postgres"])
def last_changes(request):
    if request.param == "redis":
        return LastChanges(request.getfixturevalue("another_redis"))
    return LastCommits(request.getfixturevalue("mortal_postgres"))


@pytest.fixture
def join(open_redis):
    """Another process of the server: ``join(loss)``."""

    def make(loss, listens=True, **options):
        store = open_redis(loss.url, loss.store, server="server", **options)
        if listens:
            store.listen()
        return store

    return make


def versions(store):
    return {
        (space, name): store.values.entry(space, name).version
        for space in (USER, TASK)
        for name in store.values.names(space)
    }


# ------------------------------------------------------------ values


@pytest.mark.slow
def test_no_last_good_value_is_lost_and_no_version_goes_back(loss, join):
    """Nor does anybody hear of a new one."""
    stores = [join(loss) for _ in range(3)]
    for number, store in enumerate(stores):
        for _ in range(number + 1):
            put(store, f"value {number}", {"number": number})
            put(store, f"task {number}", list(range(30_000)), TASK)
    for store in stores:
        for number in range(3):
            store.values.entry(TASK, f"task {number}")
    expected = {(space, f"{what} {n}"): n + 1 for space, what in ((USER, "value"), (TASK, "task")) for n in range(3)}
    eventually(lambda: all(versions(store) == expected for store in stores))
    told = []
    for store in stores:
        store.values.subscribe(lambda *what: told.append(what))
    loss()

    late = []

    def come_back():
        late[:] = late or [join(loss, listens=False)]
        return versions(late[0]) == expected

    eventually(lambda: loss.records() and come_back())
    assert [] == told
    assert {"number": 2} == late[0].values.entry(USER, "value 2").value
    assert 4 == put(late[0], "value 2", {}).version
    eventually(lambda: all(store.values.known(USER, "value 2").version == 4 for store in stores))


def test_the_newest_value_stays_with_a_version_above_all(flush, join):
    """Who did not know of the one of before has stored another one meanwhile."""
    store = join(flush, listens=False)
    for _ in range(3):
        before = put(store, "rates", "before")
    flush()
    other = join(flush, listens=False)
    later = START + timedelta(seconds=1)
    assert 1 == other.values.publish(USER, "rates", "after", now=later).version

    assert 0 == store.records.watchers(USER, "rates")  # whatever it asks
    assert 3 == before.version
    for each in (store, other):
        entry = each.values.entry(USER, "rates")
        assert ("after", 4, later) == (entry.value, entry.version, entry.updated_at)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "stays"), [(1, "again"), (-1, "lost")])
def test_who_knows_what_was_lost_hears_of_what_has_the_same_number_now(last_changes, join, seconds, stays):
    """Others make as many changes as were lost, before it asks: all agree in the end, on what was made later."""
    store = join(last_changes, listens=False)
    put(store, "rates", "kept")
    last_changes.keep()
    lost = put(store, "rates", "lost")
    last_changes()
    other = join(last_changes, listens=False)
    again = other.values.publish(USER, "rates", "again", now=START + timedelta(seconds=seconds))

    assert 0 == store.records.watchers(USER, "rates")  # whatever it asks
    assert (2, 2) == (lost.version, again.version)
    for each in (store, other):
        entry = each.values.entry(USER, "rates")
        assert (stays, 3) == (entry.value, entry.version)


@pytest.mark.slow
def test_a_task_whose_last_end_was_lost_is_not_held_for_ever(last_changes, join):
    """Though others have made as many changes as were lost before its process asks."""
    store = join(last_changes, listens=False)
    enroll(store, "sales", DAILY)
    held = claim(store, "sales")
    last_changes.keep()
    store.do(store.tasks.release(held))
    last_changes()
    other = join(last_changes, listens=False)
    put(other, "rates", 1)

    assert 0 == store.records.watchers(TASK, "sales")  # whatever it asks
    assert refusal(other, "sales") is None


def test_many_that_fill_it_at_once_do_not_disturb_each_other(flush, join):
    """Each value is stored as it was, once, whoever comes first."""
    stores = [join(flush, listens=False) for _ in range(3)]
    for number in range(5):
        for store in stores:
            entry = put(store, f"value {number}", number)
    for store in stores:
        for number in range(5):
            store.values.take_in(store.records.read(USER, f"value {number}"))
    for _ in range(5):
        flush()
        barrier, failed = threading.Barrier(3), []

        def read(store, barrier=barrier, failed=failed):
            barrier.wait(10)
            try:
                failed.extend(n for n in range(5) if store.records.read(USER, f"value {n}").state.version != 3)
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=read, args=[store]) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert [] == failed
        assert entry == stores[0].values.entry(USER, "value 4")


def test_it_is_tried_until_it_is_done(flush, join, caplog, monkeypatch):
    """Though the server fails meanwhile; until then nothing else is done there."""
    monkeypatch.setattr(packing, "packing_of", lambda name: None)
    store = join(flush)
    entry = put(store, "rates", {"EUR": 1.0, "more": bytes(range(256)) * 40_000})
    client = flush.server.client
    client.config_set("maxmemory", client.info("memory")["used_memory"] - 5_000_000)
    flush()
    eventually(lambda: store.records._owing and "Raise the server's maxmemory" in caplog.text)
    assert entry == store.values.entry(USER, "rates")
    flush.server.client.config_set("maxmemory", "0")

    eventually(lambda: not store.records._owing and not store.records._is_filling)
    assert {(USER, "rates"): 1} == versions(join(flush, listens=False))


# ------------------------------------------------------------ tasks


@pytest.mark.slow
def test_schedules_and_history_are_there_again(loss, join):
    """What was paused is paused, what was rescheduled is; no slot is handled twice."""
    one, other = join(loss), join(loss)
    for store in (one, other):
        enroll(store, "paused")
        enroll(store, "rescheduled", Dates([second(10), second(20)]))
    one.tasks.amend("paused", paused=True)
    other.tasks.amend("rescheduled", reschedule=DAILY, now=second(5))
    for number, store in enumerate((one, other, one, other)):
        state, text = (RunState.FAILED, f"in {number}") if number in (1, 2) else (RunState.SUCCEEDED, "")
        store.do(store.tasks.record("paused", ended(number, state, traceback=text), mark=second(number)))
    one.do(one.note("job", "report", ended(7)))
    known = [row_of(one, name) for name in ("paused", "rescheduled")]
    history = [one.history("paused"), one.history("report", "job")]
    eventually(lambda: [row_of(other, name) for name in ("paused", "rescheduled")] == known)
    loss()

    late = []

    def come_back():
        late[:] = late or [join(loss, listens=False)]
        return [late[0].history("paused"), late[0].history("report", "job")] == history

    eventually(lambda: loss.logs() == 2 and come_back())
    again = [row_of(late[0], name) for name in ("paused", "rescheduled")]
    assert [row._replace(change=0) for row in known] == [row._replace(change=0) for row in again]
    assert (True, DAILY, second(3)) == (again[0].paused, again[1].override, again[0].last_slot)
    assert Refusal.HANDLED is late[0].do(late[0].tasks.claim("paused", "again", now=second(9), mark=second(3)))


def test_who_knows_a_part_does_not_stand_in_the_way_of_who_knows_all(flush, join):
    """A script that has paused a task, and has never looked at what it was rescheduled to, may come first."""
    server, script = join(flush, listens=False), join(flush, listens=False)
    enroll(server, "sales")
    server.tasks.amend("sales", reschedule=DAILY, now=second(5))
    script.tasks.amend("sales", paused=True)
    server.tasks.row("sales")
    flush()
    assert (True, None) == ((row := row_of(script, "sales")).paused, row.override)
    assert 0 == server.records.watchers(TASK, "sales")  # whatever it asks
    for store in (server, script):
        assert (True, DAILY) == ((row := row_of(store, "sales")).paused, row.override)


def test_an_event_loop_does_not_wait_for_that(flush, join):
    """Nor does it do so itself: another thread does."""
    store = join(flush, listens=False)
    put(store, "rates", 1)
    flush()
    with hurried(lambda: True), pytest.raises(StoreError, match="is being filled again"):
        store.records.watchers(USER, "rates")
    eventually(lambda: versions(store) == {(USER, "rates"): 1})


def test_what_runs_goes_on(flush, join):
    """Its claim is there again, and so nobody else begins; its value is the next version."""
    one, other = join(flush, listens=False), join(flush, listens=False)
    put(one, "sales", "before", TASK)
    held = claim(one, "sales", mark=second(1))
    other.tasks.row("sales")
    flush()
    # Who knows of the claim by hearsay may come first.
    assert not row_of(other, "sales").holder.orphan
    assert Refusal.HELD is other.do(other.tasks.claim("sales", "other", now=second(2), mark=second(2)))

    assert 2 == put(one, "sales", "after", TASK, claim=held).version
    one.do(one.tasks.release(held))
    assert "after" == other.values.entry(TASK, "sales").value
    assert claim(other, "sales", "other", mark=second(2)).fence > held.fence


def test_who_has_not_heard_of_the_loss_yet_is_not_dead(flush, join, monkeypatch):
    """As long as he has time for that."""
    monkeypatch.setattr(server_records, "LEASE", 1.0)
    one, other = join(flush, listens=False), join(flush, listens=False)
    one.records._closing.set()  # it stands still
    claim(one, "sales")
    other.tasks.row("sales")
    flush()
    assert not row_of(other, "sales").holder.orphan
    eventually(lambda: row_of(other, "sales").holder.orphan)


TASKS = """
import panel_schedule as ps

@ps.schedule(period="1s")
def clock():
    return "clock"

@ps.schedule(period="1h")
def rare():
    print("rare runs", flush=True)
    return "rare"
"""


@pytest.mark.slow
def test_two_servers_go_on_where_they_were(another_redis, serve, open_redis):
    """Real ones, when Redis is restarted without what it had: nothing that was handled runs again."""
    redis_server = another_redis()
    env = {"PANEL_SCHEDULE_STORE": redis_server.url}
    server = serve("app.py --setup tasks.py --num-procs 2", {"app.py": "", "tasks.py": TASKS}, env=env)

    def now(name):
        store = open_redis(redis_server.url, RedisStore, namespace="default")
        try:
            return store.tasks.row(name), store.values.entry(TASK, name)
        finally:
            store.close()

    def version():
        """0 while it is not there, or is just being replaced."""
        entry = now("clock")[1]
        return 0 if entry is None else entry.version

    store = open_redis(redis_server.url, RedisStore, namespace="default")
    eventually(lambda: (entry := store.values.entry(TASK, "clock")) is not None and entry.version > 1)
    store.tasks.amend("rare", paused=True)
    store.close()
    before = eventually(version)
    # They have heard of it: each looks once a second.
    eventually(lambda: version() > before + 2)
    paused, before = now("rare")[0], eventually(version)
    redis_server.kill()
    redis_server.start()

    eventually(lambda: version() > before + 1, 20)
    eventually(lambda: now("rare")[0])
    row, entry = now("rare")
    assert (True, paused.first_seen, paused.last_slot) == (row.paused, row.first_seen, row.last_slot)
    assert (1, "rare") == (entry.version, entry.value)
    assert 1 == server.output().count("rare runs")


HELD = Record(
    TASK, "sales", TaskState(7, second(70), fence=5, first_seen=START, fingerprint="hourly", paused=True,
                             last_slot=second(60), last_version=3), revision=100, parts={TRIGGER: 1, OVERRIDE: 1},
)  # fmt: skip


def again(there, **changes):
    """What becomes of a record, if that changes."""
    return tasks.reinstate(there, 900, held=HELD._replace(state=HELD.state._replace(**changes)))


def test_a_record_that_is_gone_is_as_it_was_but_for_its_value():
    new = again(None)
    assert ({TRIGGER: 1, OVERRIDE: 1}, None) == (new.parts, new.state.updated_at)
    assert HELD.state._replace(updated_at=None, restored=100) == new.state


@pytest.mark.parametrize("revision", [100, 200])
def test_what_is_there_as_late_as_it_was_held_stays(revision):
    restored = {100: 0, 200: 100}[revision]
    there = HELD._replace(state=HELD.state._replace(restored=restored), revision=revision)
    assert Refusal.HANDLED is again(there)


def test_a_record_of_who_knew_nothing_is_as_it_was_with_what_has_happened_since():
    there = Record(
        TASK, "sales", TaskState(8, second(80), first_seen=second(75), last_slot=second(80), run_id="now", fence=1,
                         claimed=150),
        owner="him", parts={VALUE: 1}, revision=200,
    )  # fmt: skip
    new = again(there, run_id="then", fence=5)
    state = new.state
    assert ("him", "now", 1, 8, second(80)) == (new.owner, state.run_id, state.fence, state.version, state.updated_at)
    assert (True, "hourly", START, second(80), 3) == (
        state.paused, state.fingerprint, state.first_seen, state.last_slot, state.last_version,
    )  # fmt: skip
    assert {VALUE: 1, TRIGGER: 1, OVERRIDE: 1} == new.parts
    free = again(there._replace(state=there.state._replace(run_id=""), owner=None), run_id="then", fence=5)
    assert ("then", 5) == (free.state.run_id, free.state.fence)


@pytest.mark.parametrize("fence", [5, 6])
def test_a_run_that_has_ended_since_is_not_put_back_by_who_has_not_heard_of_that(fence):
    """Its process does not know of it any more, and lives: the task would be held for ever."""
    there = HELD._replace(state=HELD.state._replace(fence=fence, outcome="failed", error="No."), revision=200)
    new = tasks.reinstate(there, 900, held=HELD._replace(owner="him", state=HELD.state._replace(run_id="then")))
    assert (None, "", fence) == (new.owner, new.state.run_id, new.state.fence)
    assert ("failed", "No.") == (new.state.outcome, new.state.error)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("revision", "restored", "fence"), [(90, 0, 5), (90, 0, 4), (200, 0, 4), (200, 90, 4)])
def test_a_claim_whose_end_is_lost_has_ended(revision, restored, fence, whole):
    """Whatever else has become of the record since then, and though somebody puts it back who has not heard of that."""
    restored = restored if whole else 0
    state = HELD.state._replace(run_id="then", fence=fence, claimed=90, restored=restored)
    there = HELD._replace(state=state, owner="him", revision=revision)
    new = tasks.reinstate(there, 900, held=HELD, whole=whole)
    assert (None, "", 5, 100 if whole else 1) == (new.owner, new.state.run_id, new.state.fence, new.state.restored)


@pytest.mark.parametrize(
    ("version", "at", "outcome"),
    [(8, 0, Refusal.HANDLED), (7, 0, Refusal.HANDLED), (6, 69, 7), (6, 71, Refusal.HELD), (0, None, 7)],
)
def test_a_value_is_put_back_unless_there_is_a_newer_one(version, at, outcome):
    there = HELD._replace(state=TaskState(version, at and second(at)), parts={VALUE: 1} if at is not None else {})
    new = tasks.restore(there, 900, held=HELD, lost=False)
    assert outcome == (new if isinstance(new, Refusal) else new.state.version)
    assert 8 == tasks.outrank(there._replace(state=TaskState(6)), 900, version=7).state.version
    assert Refusal.HANDLED is tasks.outrank(there._replace(state=TaskState(8)), 900, version=7)


# ------------------------------------------------------------ jobs


@pytest.mark.parametrize(("fence", "stays"), [(1, False), (2, True), (3, True)])
def test_a_job_whose_takeover_is_lost_is_that_of_who_took_it(fence, stays):
    """Unless it was taken over since."""
    held = Record(jobs.SPACE, "id", jobs.JobState(fence=2), owner="me")
    there = Record(jobs.SPACE, "id", jobs.JobState(fence=fence), owner="him")
    assert (Refusal.HANDLED if stays else held) == jobs.restore(there, 900, held=held)


class Process:
    """One that has jobs."""

    def __init__(self, loss, namespace):
        config = Config({})
        config.store, config.namespace = loss.url, namespace
        self.runtime, self.go = Runtime(config, SystemClock()), threading.Event()
        self.ps = Front(self.runtime)

        @self.ps.background(durable=True, executor="thread")
        def durable(number):
            yield number
            assert self.go.wait(20)
            yield number + 1

        @self.ps.background(executor="thread", ttl="1h")
        def shared(number):
            progress(number, 100, "half")
            assert self.go.wait(20)
            return number

        self.jobs = [durable, shared]

    def close(self):
        self.go.set()
        self.runtime.service.stop(1)


@pytest.fixture
def process(request):
    made = []

    def make(loss):
        made.append(Process(loss, "jobs"))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.slow
def test_jobs_that_run_are_there_again(loss, process, join):
    """With arguments, partial results and progress; and end there as elsewhere."""
    one = process(loss)
    runs = [job.submit(50) for job in one.jobs]
    store = join(loss, listens=False, namespace="jobs")
    eventually(lambda: [0, 1] == sorted(len(store.queue.partials(run.id)) for run in runs))
    eventually(lambda: store.queue.job(runs[1].id).percent == 50)
    loss()

    late = []

    def come_back():
        late[:] = late or [join(loss, listens=False, namespace="jobs")]
        return all(late[0].queue.job(run.id) for run in runs)

    eventually(lambda: loss.records("run") == 2 and come_back())
    durable, shared = (late[0].queue.job(run.id) for run in runs)
    assert (RunState.RUNNING, True, [50]) == (durable.state, durable.durable, late[0].queue.partials(durable.id))
    assert ((50,), {}) == late[0].records.load(durable.record, "arguments")
    assert (RunState.RUNNING, 50, "half") == (shared.state, shared.percent, shared.message)
    # An equal call shares it.
    known = late[0].queue.enqueue("other", "shared", now=START, payload=None, key=shared.key, synced=False)
    assert shared.id == known.id
    one.go.set()
    assert [51, 50] == [run.result(20) for run in runs]
    eventually(lambda: all(late[0].queue.job(run.id).state is RunState.SUCCEEDED for run in runs))
    assert [51, 50] == [late[0].queue.value(run.id) for run in runs]


def test_who_follows_a_job_waits_for_it_to_come_back(flush, process):
    """The process that runs it may be a moment late."""
    one, other = process(flush), process(flush)
    run = one.jobs[0].submit(1)
    eventually(lambda: other.runtime.service.store.queue.job(run.id))
    other.runtime.service.start()
    followed = other.jobs[0].runs()[0]
    follower = other.runtime.dispatcher.follower
    flush()
    records = one.runtime.service.store.records
    with records._filling:  # it cannot yet
        follower._see_to_all()
        assert not followed.state.final
    one.go.set()
    assert 2 == followed.result(20)
