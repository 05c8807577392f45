"""Functions in the workers of Celery, on a real broker and real workers."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import panel_schedule
from celery_worker import TASKS, CeleryWorker
from core import PATIENCE, messages
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import ConfigError, RunCrashed, ScheduleError
from panel_schedule.executors import elsewhere
from panel_schedule.functions.run import RunState
from panel_schedule.http.api import process_as_json
from panel_schedule.monitor.watch import Watch
from panel_schedule.runtime import Runtime
from panel_schedule.stores import server_records
from panel_schedule.testing import ExecutorContract
from redis_server import RedisServer
from servers import eventually
from tracing import require_carried

celery = pytest.importorskip("celery", reason="needs the package celery")
redis = pytest.importorskip("redis", reason="needs the package redis")


class Site:
    """A folder with tasks, their broker and store, and the workers and servers of a test."""

    def __init__(self, folder: Path, broker: str, store: str, namespace: str):
        self.folder, self.broker, self.store, self.namespace = folder, broker, store, namespace
        self.workers, self.runtimes = list[CeleryWorker](), list[Runtime]()
        self.app = celery.Celery("dashboard", broker=broker)
        folder.mkdir(exist_ok=True)
        self.write()

    def write(self, more: str = "") -> None:
        """The file with the tasks."""
        text = TASKS.format(broker=self.broker, store=self.store, namespace=self.namespace)
        (self.folder / "tasks.py").write_text(text + more)

    def worker(self, *options, **how) -> CeleryWorker:
        self.workers.append(CeleryWorker(self.folder, *options, **how))
        return self.workers[-1]

    def two_workers(self) -> list[CeleryWorker]:
        """Of one call at a time, and both of them take messages."""
        started = [self.worker("-n", f"{name}@%h", concurrency=1) for name in ("one", "two")]
        return [worker.wait() for worker in started]

    def server(self, **options) -> Front:
        """The functions of a server process, here."""
        config = Config({})
        config.store, config.namespace, config.celery = self.store, self.namespace, self.app
        for name, value in options.items():
            setattr(config, name, value)
        self.runtimes.append(Runtime(config))
        return Front(self.runtimes[-1])

    def close_servers(self) -> None:
        for runtime in self.runtimes:
            runtime.grace = 0.0
            runtime.close()
        self.runtimes.clear()

    def close(self) -> None:
        self.close_servers()
        for worker in self.workers:
            worker.end()


# After a second of work the broker gives a message to another process, too.
IMPATIENT = """
celery_app.conf.broker_transport_options = {
    "visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1,
}
"""


@pytest.fixture(scope="module")
def shared(redis_server, tmp_path_factory):
    """One worker, for tests that leave it as it was."""
    site = Site(tmp_path_factory.mktemp("site"), f"{redis_server.url}/1", redis_server.url, "celery-shared")
    site.write(IMPATIENT)
    site.worker().wait()
    yield site
    site.close()


@pytest.fixture
def ps(shared):
    """A server, and the worker that all share."""
    yield shared.server()
    shared.close_servers()


class TestCelery(ExecutorContract):
    where, places, isolated = "celery", 2, True

    @pytest.fixture
    def executor(self, ps):
        return ps._runtime.service.executors["celery"]


def test_a_task_follows_its_last_value(ps):
    """Which the worker reads when its function asks for it, and not after its own first item."""

    def grow():
        before = panel_schedule.current_run().previous or []
        yield [*before, 0]
        yield [*before, panel_schedule.current_run().previous]

    def late():
        yield 0
        yield panel_schedule.current_run().previous

    task = ps.schedule(period="1h", executor="celery", first_run="skip", name="grow")(grow)
    assert [None] == task.refresh().result(PATIENCE)
    assert [None, [None]] == task.refresh().result(PATIENCE)
    run = ps.schedule(period="1h", executor="celery", first_run="skip", name="late")(late).refresh()
    with pytest.raises(ScheduleError, match="before the first item"):
        run.result(PATIENCE)
    work = ps.background(executor="celery", name="work")(lambda: panel_schedule.current_run().previous)
    assert work.submit().result(PATIENCE) is None


def test_spans_of_a_worker_are_children_of_the_run(ps, spans, tmp_path):
    """The run's span is the server's, begins when the call is sent, and says when a worker has begun with it."""
    span = require_carried(ps, spans, tmp_path / "spans", "celery")
    assert ["begun"] == [event.name for event in span.events]


def test_the_history_has_what_was_logged_there_and_names_the_worker(ps):
    def fails():
        logging.getLogger("shop").warning("slow")
        raise ValueError("no")

    failing = ps.background(executor="celery", name="fails")(fails)
    with pytest.raises(ValueError, match="no"):
        failing.submit().result(PATIENCE)
    eventually(lambda: failing.history, PATIENCE)
    [run] = failing.history
    assert run.logs.endswith("WARNING shop: slow")
    assert "in fails" in run.traceback
    assert run.owner not in ("", ps._runtime.service.store.me)


@pytest.fixture
def site(redis_server, tmp_path):
    """A namespace and a broker of the test's own."""
    broker = f"{redis_server.url}/2"
    with redis.Redis.from_url(broker) as client:
        client.flushdb()
    made = Site(tmp_path / "site", broker, redis_server.url, tmp_path.name)
    yield made
    made.close()


def counting(begun: Path, go: Path):
    """A function that writes down each of its attempts, says which process it is and whose child, and waits."""

    def work():
        import os
        import time

        run = panel_schedule.current_run()
        with begun.open("a") as file:
            file.write(f"{run.attempt}\n")
        run.publish((os.getpid(), os.getppid()))
        while run.attempt == 1 and not go.exists():
            time.sleep(0.002)
        return run.attempt

    return work


def begins(run) -> Any:
    """Wait for what a function publishes first."""
    there = threading.Event()
    unwatch = run.watch(lambda: run.partials and there.set())
    if not run.partials:
        assert there.wait(PATIENCE), run
    unwatch()
    return run.partials[0]


# ------------------------------------------------------------ what runs there


MORE = """
@ps.schedule(period="1h", first_run="background")
def rates():
    return {"EUR": 2}

@ps.memoize(executor="celery", ttl="1h")
def doubled(number):
    return 2 * number

@ps.background(executor="celery")
def inner(number):
    return number + 1

@ps.background(executor="celery")
def outer():
    ps.progress(1, 2, "half")
    ps.store["seen"] = (rates(), doubled(21))
    return ps.store["seen"], inner(1), ps.current_run().attempt, ps._runtime.begun

@ps.schedule(period="1h", first_run="background", executor="celery")
def report():
    yield "first"
    yield [rates()["EUR"], doubled(4)]
"""


@pytest.fixture
def loaded(site, monkeypatch):
    """The file with the tasks as the server of this process has it: ``loaded(MORE)``."""

    def load(more: str) -> ModuleType:
        tasks = ModuleType("tasks")
        tasks.ps, tasks.__file__ = site.server(), str(site.folder / "tasks.py")
        monkeypatch.setitem(sys.modules, "tasks", tasks)
        exec(compile(more, tasks.__file__, "exec"), vars(tasks))
        return tasks

    return load


@pytest.mark.smoke
def test_what_a_file_with_tasks_defines_works_in_a_worker(site, loaded):
    """Tasks, memoized functions, ``ps.store``, progress; and no clock runs there, which is no server."""
    site.write(MORE)
    worker = site.worker().wait()
    tasks = loaded(MORE)
    tasks.rates.refresh().result(PATIENCE)
    run = tasks.outer.submit()
    assert run.result(PATIENCE) == (({"EUR": 2}, 42), 2, 1, False)
    assert (run.percent, tasks.ps.store["seen"]) == (100, ({"EUR": 2}, 42))
    assert tasks.doubled(5) == 10
    assert tasks.report.refresh().result(PATIENCE) == tasks.report() == [2, 8]
    assert tasks.report.entry.version == 2
    assert "Traceback" not in worker.output()


def test_a_worker_is_listed_while_it_is_idle(site, tmp_path):
    """Once, whatever its pool; as gone when it was killed, and not any more when it has ended as it should."""
    site.store = f"file://{tmp_path / 'store'}"
    site.write()
    workers = [site.worker("-n", f"{name}@host", "-Q", "reports,celery") for name in ("killed", "stopped")]
    runtime = site.server()._runtime
    watch = Watch(runtime)
    assert runtime.service

    def listed(worker: CeleryWorker, name: str) -> list[str]:
        title = f"<h3>Celery worker {name}@host, process {worker.process.pid} on "
        return [part for part in watch.workers().split("<article") if title in part]

    killed, stopped = (partial(listed, *each) for each in zip(workers, ("killed", "stopped"), strict=True))
    assert eventually(lambda: killed() and stopped(), PATIENCE)
    for [text] in (killed(), stopped()):
        assert "0 of 2 under way" in text
        assert "<p>Queues: celery, reports</p>" in text
    assert 3 == watch.workers().count("<article")  # with this process
    told = [process_as_json(each) for each in runtime.presence.others()]
    assert [("killed@host", 0, 2), ("stopped@host", 0, 2)] == sorted(
        (each["worker"], each["executors"]["celery"]["running"], each["executors"]["celery"]["places"]) for each in told
    )
    workers[0].kill()
    workers[1].stop()
    assert ([True], []) == (["Gone: it died." in text for text in killed()], stopped())


# ------------------------------------------------------------ workers that die


@pytest.fixture
def quickly(monkeypatch):
    """Leases of two seconds, in all processes."""
    monkeypatch.setattr(server_records, "LEASE", 2.0)
    return "import panel_schedule.stores.server_records as server_records\nserver_records.LEASE = 2.0\n"


@pytest.mark.parametrize("store", ["redis", "file"])
def test_the_run_of_a_worker_that_is_killed_is_made_again_by_another(site, quickly, tmp_path, store):
    """Within the lease, or at once where all are on one machine; once, and counted once."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    site.store = site.store if store == "redis" else f"file://{tmp_path / 'store'}"
    site.write(quickly)
    workers = site.two_workers()
    run = site.server().background(executor="celery", name="work", retry=2)(counting(begun, go)).submit()
    _, parent = begins(run)
    [killed] = [worker for worker in workers if worker.process.pid == parent]
    killed.kill()
    assert (run.result(PATIENCE), run.attempt) == (2, 2)
    assert begun.read_text() == "1\n2\n"


def test_the_run_of_a_worker_that_is_lost_is_made_again_once(site, tmp_path):
    """Without ``retry=``, as by Dask: that a machine is lost is not the function's doing."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    site.store = f"file://{tmp_path / 'store'}"
    site.write()
    workers = site.two_workers()
    run = site.server().background(executor="celery", name="work")(counting(begun, go)).submit()
    _, parent = begins(run)
    [killed] = [worker for worker in workers if worker.process.pid == parent]
    killed.kill()
    assert (run.result(PATIENCE), run.attempt) == (2, 2)


def test_a_process_of_a_worker_that_is_killed_is_seen_at_once(ps, tmp_path):
    """Its parent says so, long before its lease ends; without ``retry=`` the run has crashed."""
    run = ps.background(executor="celery", name="work")(counting(tmp_path / "begun", tmp_path / "go")).submit()
    pid, _ = begins(run)
    before = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunCrashed, match=r"Job 'work': its worker celery@.*/\d+ has died"):
        run.result(PATIENCE)
    assert time.monotonic() - before < server_records.LEASE / 3
    assert run.state is RunState.CRASHED


def test_a_process_that_an_administrator_ends_runs_its_cleanup_code(shared, ps, tmp_path):
    """SIGTERM: the run has crashed, as nobody has cancelled it."""
    cleaned = tmp_path / "cleaned"

    def work():
        import time

        try:
            panel_schedule.current_run().publish("begun")
            time.sleep(3600)
        finally:
            cleaned.touch()

    run = ps.background(executor="celery", name="work")(work).submit()
    begins(run)
    shared.app.control.terminate(f"{run.id}.1", signal="SIGTERM")
    with pytest.raises(RunCrashed, match="its worker process was told to end"):
        run.result(PATIENCE)
    assert cleaned.exists()


def test_a_function_that_ignores_its_cancel_is_killed(ps):
    """After its grace."""

    def deaf():
        import contextlib
        import time

        panel_schedule.current_run().publish("begun")
        while True:
            with contextlib.suppress(panel_schedule.errors.RunCancelled):
                time.sleep(3600)

    executor = ps._runtime.service.executors["celery"]
    run = ps.background(executor="celery", name="deaf")(deaf).submit()
    begins(run)
    run.cancel()
    assert run.state is RunState.CANCELLED
    assert executor.busy
    assert eventually(lambda: not executor.busy, PATIENCE)
    assert ps.background(executor="celery", name="next")(lambda: 1).submit().result(PATIENCE) == 1


# ------------------------------------------------------------ servers that die


LONG = """
@ps.background(executor="celery", durable=True)
def work(folder):
    import time

    with (folder / "begun").open("a") as file:
        file.write("begun")
    ps.current_run().publish("begun")
    while not (folder / "go").exists():
        time.sleep(0.002)
    return "ended"
"""

SERVER = """
import os, sys, threading
from pathlib import Path
import tasks
run, there = tasks.work.submit(Path(sys.argv[1])), threading.Event()
run.watch(lambda: run.partials and there.set())
if run.partials or there.wait(30):
    print(run.id, flush=True)
os._exit(9)
"""


def test_a_server_that_takes_over_finds_the_call_at_its_worker(site, quickly, loaded, tmp_path):
    """And goes on with that: the function runs once."""
    site.write(quickly + LONG)
    site.worker(concurrency=1)
    died = subprocess.run(
        [sys.executable, "-c", SERVER, tmp_path], cwd=site.folder, stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert died.returncode == 9
    tasks = loaded(LONG)
    runtime = tasks.ps._runtime
    runtime.started = True
    runtime._begin()
    run = runtime.dispatcher.find(died.stdout.strip())
    assert eventually(lambda: run.attempt == 2 and run.state is RunState.RUNNING, PATIENCE)
    (tmp_path / "go").touch()
    assert run.result(PATIENCE) == "ended"
    assert (tmp_path / "begun").read_text() == "begun"


def test_a_server_that_stops_leaves_its_durable_runs_to_the_next(site, tmp_path, caplog):
    """Which waits until the worker has ended what the first one has cancelled, and says so: nothing is lost."""
    site.worker(pool="threads", concurrency=2).wait()

    def work(folder):
        import contextlib
        import time

        first = not (folder / "begun").exists()
        with (folder / "begun").open("a") as file:
            file.write("begun ")
        # Home may be told of it, and stop, before this returns.
        with contextlib.suppress(panel_schedule.errors.RunCancelled):
            panel_schedule.current_run().publish("begun")
        while not (folder / "go").exists():
            time.sleep(0.002)
        while first:
            panel_schedule.progress(50)  # until it hears that it is cancelled
        return "ended"

    def server():
        there = site.server()
        there.background(executor="celery", durable=True, name="work")(work)
        there._runtime.started = True
        there._runtime._begin()
        return there._runtime

    first = server()
    run = first.jobs["work"].submit(tmp_path)
    begins(run)
    site.close_servers()
    assert run.state is RunState.CANCELLED
    second = server()
    taken = second.dispatcher.find(run.id)
    assert eventually(lambda: "still at what an earlier server has called" in caplog.text, PATIENCE)
    assert "begun " == (tmp_path / "begun").read_text()
    (tmp_path / "go").touch()
    assert taken.result(PATIENCE) == "ended"
    assert (tmp_path / "begun").read_text() == "begun begun "


# ------------------------------------------------------------ messages that come twice, late, or never


def test_a_visibility_timeout_makes_no_call_twice(shared, ps, tmp_path):
    """The message of a call comes again while it runs; who gets it does nothing."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    run = ps.background(executor="celery", name="work")(counting(begun, go)).submit()
    begins(run)
    assert eventually(lambda: f"[{run.id}.1] succeeded" in shared.workers[0].output(), PATIENCE)
    assert run.state is RunState.RUNNING
    go.touch()
    assert run.result(PATIENCE) == 1
    assert begun.read_text() == "1\n"


def test_a_message_that_is_lost_is_sent_again(site, monkeypatch, caplog):
    """And a call of which no worker hears is waited for, which the log says once."""
    monkeypatch.setattr(elsewhere, "RESEND", 0.2)
    monkeypatch.setattr(elsewhere, "LOOK", 0.05)
    server = site.server()
    runs = [server.background(executor="celery", name=f"job{n}")(lambda: "made").submit() for n in range(3)]
    assert eventually(lambda: messages(caplog), PATIENCE)
    with redis.Redis.from_url(site.broker) as client:
        client.delete("celery")
    site.worker()
    assert [run.result(PATIENCE) for run in runs] == ["made"] * 3
    (line,) = messages(caplog)
    assert "it waits, and no Celery worker answers on redis://" in line


def test_a_broker_that_is_away_costs_no_run(site, tmp_path, caplog):
    """It waits, is sent when the broker is there again, and the log says once what is wrong."""
    site.folder.joinpath("broker").mkdir()
    broker = RedisServer(site.folder / "broker")
    try:
        site.broker = f"{broker.url}/0"
        site.app.conf.broker_url = site.broker
        site.write()
        site.worker().wait()
        server = site.server()
        job = server.background(executor="celery", name="work")(lambda: 1)
        assert job.submit().result(PATIENCE) == 1
        # A worker that loses its connection with a message in hand ends itself, by a fault of Celery's.
        assert eventually(lambda: broker.client.hlen("unacked") == 0, PATIENCE)
        broker.kill()
        runs = [job.submit() for _ in range(3)]
        assert eventually(lambda: messages(caplog), PATIENCE)
        broker.start()
        assert [run.result(PATIENCE) for run in runs] == [1, 1, 1]
        (line,) = messages(caplog)
        assert line.startswith(f"The Celery broker {broker.url}")
        site.workers.pop().stop()
    finally:
        broker.stop()


# ------------------------------------------------------------ without workers


def test_without_a_worker_a_server_serves_what_there_is(site, monkeypatch, caplog):
    """Every last good value, and answers that are fresh; what is due waits, and the log says once for what."""
    monkeypatch.setattr(elsewhere, "RESEND", 0.2)
    monkeypatch.setattr(elsewhere, "LOOK", 0.05)

    def functions(server):
        answer = server.memoize(executor="celery", ttl="1h", name="answer")(lambda: 42)
        value = server.schedule(period="1h", first_run="wait", executor="celery", name="value")(lambda: "good")
        return value, answer

    worker = site.worker().wait()
    value, answer = functions(server := site.server())
    assert (value.refresh().result(PATIENCE), answer()) == ("good", 42)
    server.store["rates"] = 2
    site.close_servers()
    worker.stop()

    value, answer = functions(server := site.server())
    server._runtime.started = True
    server._runtime._begin()
    run = value.refresh()
    assert eventually(lambda: messages(caplog), PATIENCE)
    assert (value(), answer(), server.store["rates"]) == ("good", 42, 2)
    assert run.state is RunState.QUEUED
    assert [] == server._runtime.waiting_for()
    assert len(messages(caplog)) == 1


# ------------------------------------------------------------ pools


def test_the_pool_of_threads(site, tmp_path):
    """Several calls at once in one process; a cancelled one hears of it in `progress`."""
    site.worker(pool="threads", concurrency=2).wait()
    server = site.server()
    cleaned = tmp_path / "cleaned"

    def endless():
        import time

        try:
            panel_schedule.current_run().publish("begun")
            while True:
                panel_schedule.progress(0)
                time.sleep(0.002)
        finally:
            cleaned.touch()

    run = server.background(executor="celery", name="endless")(endless).submit()
    begins(run)
    job = server.background(executor="celery", name="two")(lambda: (yield 1))
    assert job.submit().result(PATIENCE) == 1
    run.cancel()
    assert eventually(cleaned.exists, PATIENCE)


def test_the_pool_of_one(site, tmp_path):
    """One call after another in the worker's own process, where it is interrupted as elsewhere."""
    worker = site.worker(pool="solo").wait()
    server = site.server()

    def sleep():
        import time

        panel_schedule.current_run().publish("begun")
        time.sleep(3600)

    run = server.background(executor="celery", name="sleep")(sleep).submit()
    begins(run)
    run.cancel()
    assert server.background(executor="celery", name="one")(lambda: 1).submit().result(PATIENCE) == 1
    assert worker.process.poll() is None


# ------------------------------------------------------------ what is configured wrongly


def test_a_worker_on_another_store_says_so(site):
    """As it finds no call there."""
    server = site.server()
    site.namespace = "elsewhere"
    site.write()
    worker = site.worker().wait()
    run = server.background(executor="celery", name="work")(lambda: 1).submit()
    assert eventually(
        lambda: "in namespace 'elsewhere'. Give both the same ps.config.store" in worker.output(), PATIENCE
    )
    run.cancel()


@pytest.mark.parametrize(
    ("app", "store", "told"),
    [
        (None, "redis://localhost", ["Job 'work'", "ps.config.celery is not set", "broker='redis://host:6379/1'"]),
        ("nowhere", "redis://localhost", ["Job 'work'", "names no broker"]),
        ("there", "memory://", ["Job 'work'", "ps.config.store is 'memory://'", "redis://host:6379/0"]),
        ("there", "auto", ["Job 'work'", "ps.config.store is 'auto'", "file:///a/directory"]),
    ],
)
def test_what_is_missing_is_named_at_the_start(app, store, told):
    """In one line, by whoever needs the store first."""
    config = Config({})
    config.store = store
    if app is not None:
        config.celery = celery.Celery("dashboard", broker="redis://localhost" if app == "there" else None)
    runtime = Runtime(config)
    Front(runtime).background(executor="celery", name="work")(lambda: 1)
    with pytest.raises(ConfigError) as raised:
        runtime.service  # noqa: B018
    line = str(raised.value)
    assert all(word in line for word in told), line
    assert "\n" not in line


def test_a_function_that_comes_later_is_refused_by_its_decorator(tmp_path):
    config = Config({})
    config.store = f"file://{tmp_path / 'store'}"
    runtime = Runtime(config)
    front = Front(runtime)
    front.store["started"] = True
    try:
        with pytest.raises(ConfigError, match=r"Task 'late' has executor='celery', and ps.config.celery is not set"):
            front.schedule(period="1h", executor="celery", name="late")(lambda: 1)
    finally:
        runtime.close()


def test_without_the_package_its_installation_is_named(monkeypatch):
    monkeypatch.setattr("panel_schedule.executors.celery.find_spec", lambda name: None)
    runtime = Runtime(Config({}))
    Front(runtime).memoize(executor="celery", name="answer")(lambda: 1)
    with pytest.raises(ConfigError, match=r"pip install 'panel-schedule\[celery\]'"):
        runtime.service  # noqa: B018


def test_what_is_no_app_is_refused():
    with pytest.raises(ConfigError, match=r"ps.config.celery is 'redis://localhost', which is no Celery app"):
        Config({}).celery = "redis://localhost"
    with pytest.raises(ConfigError, match="no Celery app"):
        Config({"PANEL_SCHEDULE_CELERY": "redis://localhost"})
