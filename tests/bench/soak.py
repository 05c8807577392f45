"""What a process has grown by after many runs."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from .child import Child, all_of
from .table import Table, verdict

# Minutes of the soak, and of the warm-up before it.
MINUTES = float(os.environ.get("SOAK_MINUTES", "1"))
WARM_UP = 2.0

PER_SECOND = 50
TURN = 0.1


class Soaked:
    """A server process with everything at work: tasks, jobs of all kinds, answers, views, named values."""

    def __init__(self, folder: str) -> None:
        import panel_schedule as ps

        self._ps, self._folder, self._count = ps, Path(folder), 0
        ps.schedule(period="1s", first_run="background", name="tick")(time.time)
        ps.schedule(after=ps.tasks["tick"], first_run="background", name="follow")(lambda: ps.tasks["tick"]())
        job = ps.background(executor="thread", result_ttl="30s", name="job")(self._job)
        shared = ps.background(executor="thread", ttl="2s", result_ttl="30s", name="shared")(lambda number: number)
        durable = ps.background(executor="thread", durable=bool(folder), result_ttl="30s", name="durable")(self._job)
        failing = ps.background(executor="thread", result_ttl="30s", name="failing")(self._fail)
        answer = ps.memoize(ttl="1s", max_entries=100, stale_if_error=False, name="answer")(lambda number: number)
        self._kinds: list[Any] = [
            job.submit, shared.submit, durable.submit, failing.submit, answer.submit,
            lambda number: answer.view(number % 50).value, lambda number: ps.tasks["tick"].refresh(),
            lambda number: ps.store.update({f"name {number % 50}": number}),
        ]  # fmt: skip

    def _job(self, number: int) -> int:
        self._ps.progress(1, 2, "half")
        return number

    def _fail(self, number: int) -> int:
        raise ValueError(f"no {number}")

    async def soak(self, warm_up: float, minutes: float) -> list[float]:
        """Before and after: MB of memory, objects, MB of the database; and how many runs that were."""
        import logging

        logging.getLogger("panel_schedule").setLevel(logging.CRITICAL)
        self._ps._runtime.start(asyncio.get_running_loop())
        await self._work(warm_up * 60)
        before = self._size()
        count = self._count
        await self._work(minutes * 60)
        return [*before, *self._size(), self._count - count]

    async def _work(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for _ in range(round(PER_SECOND * TURN)):
                self._count += 1
                self._kinds[self._count % len(self._kinds)](self._count)
            await asyncio.sleep(TURN)

    def _size(self) -> list[float]:
        gc.collect()
        database = sum(path.stat().st_size for path in self._folder.glob("store/store.db")) if self._folder.name else 0
        return [psutil.Process().memory_info().rss / 1e6, len(gc.get_objects()), database / 1e6]


def tables() -> list[Table]:
    with TemporaryDirectory() as folder:
        children = [Child(Soaked, ""), Child(Soaked, folder, store=f"file://{folder}/store")]
        grown = all_of(children, "soak", WARM_UP, MINUTES)
        for child in children:
            child.close()
    table = Table(
        f"A soak of {MINUTES:g} minutes", ["store", "runs", "MB before", "MB after", "objects", "database MB"]
    )
    for name, (mb, objects, database, mb_after, objects_after, database_after, count) in zip(
        ("`memory://`", "`file://`"), grown, strict=True
    ):
        table.add(
            *(name, f"{count:,.0f}", f"{mb:.1f}", f"{mb_after:.1f}", f"{objects_after - objects:+,.0f}"),
            f"{database_after - database:+.2f}",
            must="< 5 MB more",
            met=verdict(met=mb_after - mb < 5 and database_after - database < 5),
        )
    table.text = (
        f"What a process has grown by in {MINUTES:g} minutes (`SOAK_MINUTES`) of {PER_SECOND} calls a second, after "
        f"{WARM_UP:g} minutes of the same: tasks, jobs that succeed and that fail, shared and durable ones, memoized "
        "calls and views, named values. Results of jobs are kept for 30 s."
    )
    return [table]
