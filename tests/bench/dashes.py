"""Dash's background callbacks as a peer: where they can run here, their manager as Dash uses it, their server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from .caches import free_port, listens, redis_server
from .fresh import ROOT, command, environment

NAMES = {"disk": "Dash, DiskcacheManager", "celery": "Dash, CeleryManager and Redis"}
MISSING = "not measured: no redis-server"

# Between two looks for a result: of our own, and far less than Dash's, which costs it no time to speak of.
LOOK = 0.0002
# How long a result may take to come before the benchmark fails.
PATIENCE = 10.0
# And how long jobs that have one get to end.
SETTLING = 0.05


@contextmanager
def managers() -> Iterator[dict[str, str]]:
    """Where each manager keeps its results; Celery's with a worker that is ready, and only if there is Redis."""
    with ExitStack() as stack:
        places = {"disk": stack.enter_context(TemporaryDirectory())}
        port = stack.enter_context(redis_server())
        if port is not None:
            places["celery"] = f"redis://127.0.0.1:{port}/0"
            stack.enter_context(_worker(places["celery"]))
        yield places


@contextmanager
def _worker(place: str) -> Iterator[None]:
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        # As its documentation starts it: as many processes as there are cores.
        words = ["-m", "celery", "--app", "tests.bench.dash_page:celery", "worker", "--loglevel", "INFO"]
        with log.open("w") as output:
            worker = subprocess.Popen(
                [sys.executable, "-W", "ignore", *words],
                cwd=ROOT, env=dash_environment(place), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            while " ready." not in log.read_text():
                assert worker.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            end(worker)


@contextmanager
def dash_server(place: str) -> Iterator[tuple[str, psutil.Process]]:
    """The page's URL, and the process that serves it as ``app.run`` does."""
    port = free_port()
    server = subprocess.Popen(
        command("dash_page", str(port)),
        cwd=ROOT, env=dash_environment(place), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        listens(port, 30)
        yield f"http://127.0.0.1:{port}", psutil.Process(server.pid)
    finally:
        end(server)


def dash_environment(place: str) -> dict[str, str]:
    return {**environment(), "BENCH_DASH": place}


def end(process: subprocess.Popen[Any]) -> None:
    """A process and all its children, whatever they do."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for each in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


class Managed:
    """A server process of Dash, as far as a background callback goes: the manager does what a request has it do."""

    def __init__(self, place: str):
        os.environ["BENCH_DASH"] = place
        from dash._utils import AttributeDict

        from . import dash_page

        self.manager, self.function, self.context = dash_page.manager, dash_page.quick, AttributeDict()
        # The page's first one.
        self.job = next(iter(self.manager.func_registry.values()))
        self.number = 0
        self.jobs: list[tuple[str, Any, str]] = []

    def submit(self) -> tuple[str, Any, str]:
        """Its cache key, its job, and what will come out."""
        self.number += 1
        key = self.manager.build_cache_key(self.function, [self.number], [], None)
        return key, self.manager.call_job_fn(key, self.job, [self.number], self.context), f"quick {self.number} done"

    def spend(self, count: int) -> float:
        """Seconds until all of so many jobs, submitted at once, have their results."""
        begin = time.perf_counter()
        jobs = [self.submit() for _ in range(count)]
        missing = [key for key, _, _ in jobs]
        while missing := [key for key in missing if not self.manager.result_ready(key)]:
            time.sleep(LOOK)
            assert time.perf_counter() < begin + PATIENCE, f"{len(missing)} results of {count} have not come"
        self.jobs += jobs
        return time.perf_counter() - begin

    def clear(self) -> None:
        """
        Read the results, which ends the jobs; off the clock.

        A job of Celery that has not ended by itself meanwhile would take its worker's process with it.
        """
        time.sleep(SETTLING)
        for key, job, expected in self.jobs:
            assert self.manager.get_result(key, job) == expected
        self.jobs.clear()

    def one_by_one(self, count: int, pause: float) -> list[float]:
        """Seconds of each."""
        spent = []
        for _ in range(count):
            time.sleep(pause)
            spent.append(self.spend(1))
        self.clear()
        return spent

    def burst(self, count: int) -> float:
        """Seconds until the last."""
        spent = self.spend(count)
        self.clear()
        return spent
