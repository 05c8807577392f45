"""The background functions of `job_page`."""

from __future__ import annotations

import os
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

import panel_schedule as ps


def done(kind: str, clicks: int) -> str:
    return f"{kind} {clicks} done"


QUICK = {
    "process": ps.background(executor="process", name="quick in a process")(done),
    "thread": ps.background(executor="thread", name="quick in a thread")(done),
}


@ps.background
def long() -> str:
    time.sleep(300)
    return "long done"


def compute() -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sum(range(10_000))


busy = ps.background(name="busy")(compute)


class Work:
    """What the workers do during page loads."""

    def __init__(self) -> None:
        self.runs: list[ps.Run] = []
        self.children: list[BaseProcess] = []

    def __call__(self, who: str) -> None:
        """Let nobody compute, then `who`: ``"idle"``, ``"busy"`` (ours) or ``"pool"``."""
        for run in self.runs:
            run.cancel()
        for child in self.children:
            child.kill()
        cores = range(os.cpu_count() or 1)
        self.runs = [busy.submit() for _ in cores] if who == "busy" else []
        self.children = [get_context("spawn").Process(target=compute, daemon=True) for _ in cores if who == "pool"]
        for child in self.children:
            child.start()


work = Work()
