"""How much memory several processes take that hold the same large frame."""

from __future__ import annotations

import asyncio
import gc
import pickle
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .child import Child, all_of
from .table import Table, verdict

PROCESSES = 4
ROWS, COLUMNS = 2_500_000, 10
SIZE = ROWS * COLUMNS * 8 / 1e6


def frame() -> Any:
    import numpy as np
    import pandas as pd

    return pd.DataFrame(np.random.default_rng(0).random((ROWS, COLUMNS)), columns=list("abcdefghij"))


def pss() -> float:
    """The memory of this process in MB; what several share counts in parts."""
    gc.collect()
    found = re.search(r"^Pss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


class Ours:
    """A server with a task whose value is the frame."""

    def __init__(self, path: str):
        import pandas  # noqa: F401

        import panel_schedule as ps

        self.task = ps.schedule(period="1d", first_run="skip", name="frame")(frame)

    def bare(self) -> float:
        return pss()

    async def store(self) -> None:
        await self.task.refresh()

    async def hold(self) -> float:
        while self.task() is None:
            await asyncio.sleep(0.05)
        return float(self.task().to_numpy().sum())

    def held(self) -> float:
        return pss()


class Pickles:
    """The usual way: each process loads the file."""

    def __init__(self, path: str):
        import pandas  # noqa: F401

        self.path = Path(path)
        self.value: Any = None

    def bare(self) -> float:
        return pss()

    def store(self) -> None:
        with self.path.open("wb") as file:
            pickle.dump(frame(), file, protocol=5)

    def hold(self) -> float:
        with self.path.open("rb") as file:
            self.value = pickle.load(file)
        return float(self.value.to_numpy().sum())

    def held(self) -> float:
        return pss()


def measure(kind: type) -> tuple[float, float]:
    """MB that all processes together take more than without the frame, and the seconds until all have it."""
    with TemporaryDirectory() as folder:
        children = [Child(kind, f"{folder}/frame", store=f"file://{folder}/store") for _ in range(PROCESSES)]
        bare = all_of(children, "bare")
        begin = time.perf_counter()
        children[0].ask("store")
        sums = all_of(children, "hold")
        seconds = time.perf_counter() - begin
        assert len(set(sums)) == 1
        held = all_of(children, "held")
        for child in children:
            child.close()
    return sum(held) - sum(bare), seconds


def tables() -> list[Table]:
    table = Table(
        f"One {SIZE:.0f} MB frame in {PROCESSES} processes", ["what", "MB in all", "copies", "until all have it, s"]
    )
    for name, kind in (("panel-schedule, `task()`", Ours), ("`pickle.load` in each", Pickles)):
        memory, seconds = measure(kind)
        copies, ours = memory / SIZE, kind is Ours
        table.add(
            name,
            f"{memory:.0f}",
            f"{copies:.2f}",
            f"{seconds:.1f}",
            must="<= 1.15 copies" if ours else "",
            met=verdict(met=copies <= 1.15) if ours else "",
        )
    table.text = (
        "The proportional set size (`/proc/*/smaps_rollup`) of all processes, which have added up all numbers of the "
        "frame, less that of the same processes before; one of them has made the frame and stored it."
    )
    return [table]
