"""A real Dask scheduler and workers for tests, each a process, on free ports of the loopback address."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

FOUND = re.compile(r"(?:Scheduler at|Start worker at): +(tcp://127\.0\.0\.1:\d+)")
REGISTERED = "Registered to:"


class Process:
    """What ``dask scheduler`` or ``dask worker`` starts; `address` is known once it serves."""

    def __init__(self, module: str, *args: str, sign: str, folder: Path, env: dict[str, str] | None = None):
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *args, "--no-dashboard"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
            env={**os.environ, "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s", **(env or {})},
        )  # fmt: skip
        self.address = ""
        self.lines: list[str] = []
        self._sign, self._there = sign, threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._there.wait(30), "".join(self.lines)
        assert self.address, "".join(self.lines)

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if (found := FOUND.search(line)) is not None:
                self.address = found[1]
            if self._sign in line:
                self._there.set()
        self._there.set()


class DaskCluster:
    """A scheduler, and the workers that were started with it."""

    def __init__(self, folder: Path, port: int = 0, env: dict[str, str] | None = None):
        self.folder, self.env = folder, env
        self.scheduler = self._scheduler(port)
        self.workers: list[Process] = []

    @property
    def address(self) -> str:
        return self.scheduler.address

    def worker(self, threads: int = 2, env: dict[str, str] | None = None) -> Process:
        """Start one more worker; it is there when this returns."""
        options = ["--nthreads", str(threads), "--no-nanny", "--local-directory", str(self.folder)]
        worker = self._process("dask_worker", self.address, *options, sign=REGISTERED, env=env)
        self.workers.append(worker)
        return worker

    def restart(self) -> None:
        """Kill the scheduler, and start another one at its address."""
        port = int(self.address.rpartition(":")[2])
        self.scheduler.kill()
        self.scheduler = self._scheduler(port)

    def close(self) -> None:
        """At once: what it is at does not matter any more."""
        for process in (*self.workers, self.scheduler):
            process.kill()

    def _scheduler(self, port: int) -> Process:
        return self._process("dask_scheduler", "--port", str(port), sign="Scheduler at")

    def _process(self, module: str, *args: str, sign: str, env: dict[str, str] | None = None) -> Process:
        return Process(module, *args, "--host", "127.0.0.1", sign=sign, folder=self.folder, env=env or self.env)
