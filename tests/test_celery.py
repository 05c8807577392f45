"""Functions in the workers of Celery, on a real broker and real workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_worker import TASKS, CeleryWorker
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.runtime import Runtime
from panel_schedule.testing import ExecutorContract

celery = pytest.importorskip("celery", reason="needs the package celery")


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
            worker.stop()


@pytest.fixture(scope="module")
def shared(redis_server, tmp_path_factory):
    """One worker, for tests that leave it as it was."""
    site = Site(tmp_path_factory.mktemp("site"), f"{redis_server.url}/1", redis_server.url, "celery-shared")
    site.worker().wait()
    yield site
    site.close()


class TestCelery(ExecutorContract):
    where, places, isolated = "celery", 2, True

    @pytest.fixture
    def ps(self, shared):
        yield shared.server()
        shared.close_servers()

    @pytest.fixture
    def executor(self, ps):
        return ps._runtime.service.executors["celery"]
