"""What several processes cost that share a store and have nothing to do."""

from __future__ import annotations

import asyncio
import time
from tempfile import TemporaryDirectory

from .child import Child, all_of
from .table import Table, verdict

PROCESSES = 4
TASKS = 100
IDLE = 30.0


class Idler:
    """A server process, whose tasks are due each hour, and not now."""

    def __init__(self, tasks: int):
        import panel_schedule as ps

        minute = (time.localtime().tm_min + 30) % 60

        def nothing() -> None:
            raise AssertionError("due in half an hour")

        for number in range(tasks):
            ps.schedule(cron=f"{minute} * * * *", timezone="UTC", first_run="skip", name=f"task {number}")(nothing)

    async def idle(self) -> float:
        """Percent of a core."""
        # What starting has left to do comes first.
        await asyncio.sleep(3.0)
        before = time.process_time()
        await asyncio.sleep(IDLE)
        return (time.process_time() - before) / IDLE * 100


def tables() -> list[Table]:
    with TemporaryDirectory() as folder:
        groups = {
            tasks: [Child(Idler, tasks, store=f"file://{folder}/store") for _ in range(PROCESSES)]
            for tasks in (TASKS, 0)
        }
        children = [child for group in groups.values() for child in group]
        spent = all_of(children, "idle")
        for child in children:
            child.close()
    ours, bare = sum(spent[:PROCESSES]), sum(spent[PROCESSES:])
    table = Table(f"{PROCESSES} idle processes", ["what", "% of a core, together", "of one"])
    table.add(
        f"panel-schedule, {TASKS} tasks due hourly",
        f"{ours:.2f}",
        f"{min(spent[:PROCESSES]):.2f} to {max(spent[:PROCESSES]):.2f}",
        must="< 0.5 %",
        met=verdict(met=ours < 0.5),
    )
    table.add(
        "the same processes without a task",
        f"{bare:.2f}",
        f"{min(spent[PROCESSES:]):.2f} to {max(spent[PROCESSES:]):.2f}",
    )
    table.text = (
        f"CPU time of {PROCESSES} processes that share a store, in {IDLE:.0f} s after their start in which nothing is "
        "due, and nobody has a page open. Each looks once a second whether another one has died."
    )
    return [table]
