"""Functions on a Dask cluster."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from textwrap import dedent
from zipfile import ZipFile

import numpy as np
import pytest

import panel_schedule
from core import PATIENCE
from dask_cluster import DaskCluster
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.errors import ConfigError, RunCrashed, ScheduleError
from panel_schedule.executors import dask, dask_worker
from panel_schedule.functions.run import RunState
from panel_schedule.runtime import Runtime
from panel_schedule.testing import ExecutorContract
from servers import eventually
from tracing import require_carried

distributed = pytest.importorskip("distributed", reason="Dask is not installed")
pytestmark = pytest.mark.slow

_names = itertools.count()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One that most tests share: what ends its scheduler or its worker has one of its own."""
    made = DaskCluster(tmp_path_factory.mktemp("dask"))
    made.worker(threads=2)
    yield made
    made.close()


def front(dask, **options) -> Front:
    config = Config({})
    config.store, config.dask = "memory://", dask
    for option, value in options.items():
        setattr(config, option, value)
    return Front(Runtime(config))


@pytest.fixture
def ps(cluster):
    made = front(cluster.address)
    yield made
    made._runtime.grace = 0.0
    made._runtime.close()


@contextmanager
def own_cluster(folder):
    cluster = DaskCluster(folder)
    ps = front(cluster.address)
    try:
        yield cluster, ps
    finally:
        ps._runtime.grace = 0.0
        ps._runtime.close()
        cluster.close()


def job(ps, function, name=None, **options):
    return ps.background(executor="dask", name=name or f"job{next(_names)}", **options)(function)


def begin(ps):
    """Start the clocks, as a server does."""
    ps._runtime.started = True
    ps._runtime._begin()


def slow(go):
    """A function that waits for a file, and gives its attempt."""

    def work():
        panel_schedule.progress(0)
        while not go.exists():
            time.sleep(0.01)
        return panel_schedule.current_run().attempt

    return work


def tasks_of(client) -> list[str]:
    """What the scheduler knows; by a lambda, as this module is not there."""
    return client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))


def queues_of(client) -> list[str]:
    return client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.extensions["queues"].queues))


def said(caplog, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


class TestContract(ExecutorContract):
    where, places, isolated = "dask", 2, True

    @pytest.fixture
    def executor(self, ps):
        return ps._runtime.service.executor("job", self.where)


# ------------------------------------------------------------ what runs there


@pytest.mark.smoke
def test_a_task_and_a_memoized_function_run_there(ps):
    """As jobs do; the value is the task's."""
    task = ps.schedule(period="1h", executor="dask", first_run="background", name="where")(os.getppid)
    memo = ps.memoize(executor="dask", name="double")(lambda number: (2 * number, os.getppid()))
    begin(ps)

    assert os.getpid() != task.wait_ready(PATIENCE)
    assert (42, task()) == memo(21)


def test_a_task_follows_its_last_value(ps):
    """Which the worker reads when its function asks for it, and not after its own first item."""

    def grow():
        before = panel_schedule.current_run().previous or []
        yield [*before, 0]
        yield [*before, panel_schedule.current_run().previous]

    def late():
        yield 0
        yield panel_schedule.current_run().previous

    task = ps.schedule(period="1h", executor="dask", first_run="skip", name="grow")(grow)
    assert [None] == task.refresh().result(PATIENCE)
    assert [None, [None]] == task.refresh().result(PATIENCE)
    run = ps.schedule(period="1h", executor="dask", first_run="skip", name="late")(late).refresh()
    with pytest.raises(ScheduleError, match="before the first item"):
        run.result(PATIENCE)
    work = ps.background(executor="dask", name="work")(lambda: panel_schedule.current_run().previous)
    assert work.submit().result(PATIENCE) is None


def test_spans_of_a_worker_are_children_of_the_run(ps, spans, tmp_path):
    """The run's span is the server's; the worker has its context."""
    require_carried(ps, spans, tmp_path / "spans", "dask")


def test_workers_are_known_before_anything_ran_there(ps, cluster):
    """From a moment after somebody has looked on."""
    executor = ps._runtime.service.executors["dask"]
    assert [(cluster.workers[0].address, "")] == eventually(lambda: executor.workers, PATIENCE)


def test_the_history_has_what_was_logged_there_and_names_the_worker(ps):
    def fails():
        logging.getLogger("shop").warning("slow")
        raise ValueError("no")

    failing = ps.background(executor="dask", name="fails")(fails)
    with pytest.raises(ValueError, match="no"):
        failing.submit().result(PATIENCE)
    eventually(lambda: failing.history, PATIENCE)
    [run] = failing.history
    assert run.logs.endswith("WARNING shop: slow")
    assert "in fails" in run.traceback
    assert run.owner not in ("", ps._runtime.service.store.me)


def test_a_function_reads_and_writes_what_the_server_has(ps):
    """Tasks, ps.store, memoized functions and jobs, as in a worker process."""
    ps.store["rates"] = {"EUR": 1.1}
    sales = ps.schedule(period="1h", name="sales", executor="thread", first_run="background")(lambda: [1, 2])
    half = ps.memoize(executor="thread", name="half")(lambda number: number / 2)
    begin(ps)
    sales.wait_ready(PATIENCE)

    def work():
        panel_schedule.store["seen"] = (sales(), panel_schedule.store["rates"], half(5))
        return sorted(panel_schedule.store)

    assert ["rates", "seen"] == job(ps, work).submit().result(PATIENCE)
    assert ([1, 2], {"EUR": 1.1}, 2.5) == ps.store["seen"]


def test_what_is_large_arrives_whole(ps):
    """An argument, a partial, a value of ps.store and a result: each of several messages, or gathered by Dask."""
    size = 3 * dask_worker.LARGE // 8 + 5

    def work(table):
        panel_schedule.current_run().publish(table + 1)
        panel_schedule.store["table"] = table + 2
        return panel_schedule.store["table"] + 1

    run = job(ps, work).submit(np.arange(size, dtype=float))
    result = run.result(PATIENCE)

    assert [size, size, size] == [len(each) for each in (run.partials[0], ps.store["table"], result)]
    assert [1.0, 2.0, 3.0] == [each[0] for each in (run.partials[0], ps.store["table"], result)]
    assert size + 2.0 == result[-1]
    result[0] = 7  # its memory is its own


def test_a_module_that_a_worker_does_not_have_is_sent(ps, tmp_path, monkeypatch):
    """Workers need this package, and nothing else of the server's files."""
    with ZipFile(tmp_path / "app.zip", "w") as app:  # no folder for a worker, as one of another machine is none
        app.writestr("gone/__init__.py", "from .rates import Rate\n")
        app.writestr("gone/rates.py", "class Rate:\n    def __init__(self, value):\n        self.value = 1 / value\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "app.zip")
        gone = importlib.import_module("gone")

    def work(rate):
        return type(rate)(rate.value * 8)

    run = job(ps, work).submit(gone.Rate(2))
    assert (gone.Rate, 0.25) == (type(run.result(PATIENCE)), run.result().value)
    run = job(ps, lambda rate: type(rate)(0)).submit(gone.Rate(2))
    with pytest.raises(ZeroDivisionError):
        run.result(PATIENCE)
    assert "self.value = 1 / value" in run.traceback


def test_who_waits_for_another_run_gives_it_his_thread(ps):
    """As many parents as the cluster has threads."""
    child = job(ps, lambda number: number + 1, name="child")

    def work(number):
        return child.submit(number).result()

    parent = job(ps, work)
    assert [1, 2, 3] == [run.result(PATIENCE) for run in [parent.submit(number) for number in range(3)]]


# ------------------------------------------------------------ what goes wrong


def test_a_lost_worker_starts_the_run_again_once(tmp_path, caplog):
    """Counted by this process, and not by Dask: the second loss is a crash, and a third start there is none."""
    with own_cluster(tmp_path) as (cluster, ps):
        begun = tmp_path / "begun"

        def work():
            with begun.open("a") as file:
                file.write(f"{panel_schedule.current_run().attempt}\n")
            panel_schedule.progress(0)
            time.sleep(3600)

        cluster.worker(1)
        run = job(ps, work).submit()
        eventually(lambda: run.percent == 0, PATIENCE)
        cluster.workers[-1].kill()
        eventually(lambda: said(caplog, "has no worker"), PATIENCE)
        cluster.worker(1)
        eventually(lambda: begun.read_text() == "1\n2\n", PATIENCE)
        cluster.workers[-1].kill()
        with pytest.raises(RunCrashed, match="was lost"):
            run.result(PATIENCE)

        assert (RunState.CRASHED, "1\n2\n") == (run.state, begun.read_text())
        cluster.worker(1)
        assert 1 == job(ps, lambda: 1).submit().result(PATIENCE)
        assert "1\n2\n" == begun.read_text()


def test_a_scheduler_that_comes_late_goes_and_comes_back(tmp_path, caplog):
    """What is to run there waits; what ran is started again; each is one line. All values are served meanwhile."""
    port, cluster = free_port(), None
    ps = front(f"tcp://127.0.0.1:{port}")
    try:
        ps.store["rates"] = 1.1
        task = ps.schedule(period="1h", executor="dask", first_run="background", name="slow")(slow(tmp_path / "go"))
        begin(ps)
        run = task.refresh()
        eventually(lambda: said(caplog, "cannot be reached"), PATIENCE)
        assert (1.1, None, RunState.QUEUED) == (ps.store["rates"], task(), run.state)

        cluster = DaskCluster(tmp_path, port)
        cluster.worker(1)
        eventually(lambda: run.percent == 0, PATIENCE)
        cluster.restart()
        eventually(lambda: run.attempt == 2, PATIENCE)
        assert (1.1, None) == (ps.store["rates"], task())
        (tmp_path / "go").touch()
        cluster.worker(1)
        assert 2 == run.result(PATIENCE) == task()
        assert [2, 2] == [len(said(caplog, text)) for text in ("cannot be reached", "is there")]
    finally:
        ps._runtime.close()
        if cluster is not None:
            cluster.close()


def test_a_server_that_dies_leaves_nothing_running(cluster, tmp_path):
    """Its function is stopped on the worker, and its cleanup code runs."""
    source = f"""
        import pathlib, time
        import panel_schedule as ps
        ps.config.dask = {cluster.address!r}
        @ps.background(executor="dask")
        def work():
            try:
                ps.progress(0)
                pathlib.Path("begun").touch()
                time.sleep(3600)
            finally:
                pathlib.Path({str(tmp_path)!r}, "cleaned").touch()
        work.submit().result()
    """
    source = source.replace('Path("begun")', f"Path({str(tmp_path / 'begun')!r})")
    server = subprocess.Popen([sys.executable, "-c", dedent(source)], stderr=subprocess.DEVNULL)
    eventually((tmp_path / "begun").exists, PATIENCE)
    server.kill()
    server.wait()
    eventually((tmp_path / "cleaned").exists, PATIENCE)


def test_what_waits_survives_a_restart_of_all_workers(tmp_path):
    """``Client.restart`` cancels all tasks of Dask; that is no cancel of ours."""
    with own_cluster(tmp_path) as (cluster, ps):
        run = job(ps, lambda: 1).submit()
        with distributed.Client(cluster.address, set_as_default=False) as client:
            eventually(lambda: tasks_of(client), PATIENCE)
            client.restart(wait_for_workers=False)
        cluster.worker(1)
        assert 1 == run.result(PATIENCE)


def test_nothing_stays_with_dask(ps, cluster):
    """Of what has ended, however it did: no task, no value and no queue; and of a server that has stopped, either."""
    with distributed.Client(cluster.address, set_as_default=False) as client:
        before = queues_of(client)  # of a server that was killed its own is there
        work = job(ps, lambda size: b"x" * size)
        for size in (1, 2 * dask_worker.LARGE):
            assert size == len(work.submit(size).result(PATIENCE))
        with pytest.raises(TypeError):
            work.submit(None).result(PATIENCE)
        executor = ps._runtime.service.executors["dask"]
        eventually(lambda: not tasks_of(client), PATIENCE)
        eventually(lambda: {*before, executor._connection.queue} == {*queues_of(client)}, PATIENCE)
        ps._runtime.close()
        eventually(lambda: before == queues_of(client), PATIENCE)
    assert ({}, False) == (executor._known, executor.busy)


def test_a_client_may_be_closed_that_was_given(cluster):
    """Its address and security count; a sync one, or an async one."""
    with distributed.Client(cluster.address, set_as_default=False) as client:
        ps = front(client)
        work = job(ps, lambda: 1)
        assert 1 == work.submit().result(PATIENCE)
    assert 1 == work.submit().result(PATIENCE)
    ps._runtime.close()
    with pytest.raises(ConfigError, match="is closed"):
        job(front(client), lambda: 1).submit()


async def test_an_async_client_is_given(cluster):
    async with distributed.Client(cluster.address, asynchronous=True, set_as_default=False) as client:
        ps = front(client)
        assert 1 == await job(ps, lambda: 1).submit()
        ps._runtime.close()


def test_another_version_is_named_with_its_remedy(ps, monkeypatch):
    monkeypatch.setattr(dask, "versions", lambda: ("0.0", "3.99"))
    with pytest.raises(ScheduleError, match=r"panel-schedule .* and Python 3\.99. Install the same versions"):
        job(ps, lambda: 1).submit().result(PATIENCE)


def test_a_worker_without_this_package_is_named(tmp_path):
    (tmp_path / "panel_schedule.py").touch()  # found first, and has nothing
    with own_cluster(tmp_path) as (cluster, ps):
        cluster.worker(1, env={"PYTHONPATH": str(tmp_path)})
        with pytest.raises(RunCrashed, match="pip install panel-schedule"):
            job(ps, lambda: 1).submit().result(PATIENCE)


def test_the_dashboard_of_a_cluster_in_this_process_is_no_server_of_ours(tmp_path):
    """Its loop is not taken for Panel's, and its end is not ours."""
    source = """
        import distributed
        import panel_schedule as ps
        with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster:
            print(cluster.scheduler.http_server is not None, ps._runtime.loops.adopted)
            ps.store["rates"] = 1
        print(ps._runtime.service.stopping)
    """
    told = subprocess.run([sys.executable, "-c", dedent(source)], capture_output=True, text=True, timeout=60)
    assert "True None\nFalse\n" == told.stdout, told.stderr


# ------------------------------------------------------------ configuration


def test_who_names_no_cluster_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"Job 'work' has executor='dask'.*ps.config.dask = 'tcp://"):
        job(front(None), lambda: 1, name="work").submit()


@pytest.mark.parametrize("wrong", ["scheduler", "scheduler:8786", "", 8786, object()])
def test_what_is_no_cluster_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"ps\.config\.dask is"):
        front(wrong)


def test_the_environment_names_it():
    assert "tcp://host:8786" == Config({"PANEL_SCHEDULE_DASK": "tcp://host:8786"}).dask


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'panel-schedule\[dask\]'"):
        job(front("tcp://127.0.0.1:1"), lambda: 1).submit()
