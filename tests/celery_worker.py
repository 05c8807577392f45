"""A Celery worker that the tests start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

# What a test waits at most for it to start or to end, in seconds.
PATIENCE = 40.0

# What every file with tasks begins with; the worker needs no more for functions that travel by value.
TASKS = """\
import panel_schedule as ps
from celery import Celery

celery_app = Celery("dashboard", broker={broker!r})
celery_app.conf.broker_connection_retry_on_startup = True
ps.config.celery = celery_app
ps.config.store = {store!r}
ps.config.namespace = {namespace!r}
"""


class CeleryWorker:
    """
    ``celery -A tasks:celery_app worker``, in a process group of its own.

    Parameters
    ----------
    folder : Path
        Where ``tasks.py`` is.
    pool, concurrency
        As Celery has them.
    """

    def __init__(self, folder: Path, *options: str, pool: str = "prefork", concurrency: int = 2):
        self.ready, self.lines = threading.Event(), list[str]()
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "celery", "-A", "tasks:celery_app", "worker", "--pool", pool,
                "--concurrency", str(concurrency), "--without-gossip", "--without-mingle", "-l", "INFO", *options,
            ],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def wait(self) -> CeleryWorker:
        """Until it takes messages."""
        assert self.ready.wait(PATIENCE), self.output()
        return self

    def output(self) -> str:
        return "".join(self.lines)

    @property
    def children(self) -> list[psutil.Process]:
        """Of the prefork pool."""
        return psutil.Process(self.process.pid).children()

    def kill(self) -> None:
        """The whole worker, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    def stop(self) -> None:
        """As an administrator does; nothing of it stays."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        print(self.output())

    def end(self) -> None:
        """At once: what it is at does not matter any more."""
        if self.process.poll() is None:
            self.kill()
        print(self.output())

    def _read(self) -> None:
        stream: Any = self.process.stdout
        for line in stream:
            self.lines.append(line)
            if " ready." in line:
                self.ready.set()
